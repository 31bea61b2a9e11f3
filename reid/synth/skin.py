"""The underside of one fluke, laid flat: outline, pigment, scars, drawn once as a picture in the canonical frame.

Knows the individual and nothing of sea, light or camera. The picture covers x in [-1.06, 1.06] and y in [-0.40, 0.96]
half spans (see `fluke.py` for the frame) at `SCALE` pixels a half span; channels are uint8: whiteness, cover, relief,
algae.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from reid.synth.fluke import Fluke, Lobe, Mark
from reid.synth.noise import Field, smoothstep, window

LEFT, TOP, RIGHT, BOTTOM = -1.06, -0.40, 1.06, 0.96
SCALE = 340.0
SHAPE = (round((BOTTOM - TOP) * SCALE), round((RIGHT - LEFT) * SCALE))
STOCK_JOIN = 0.56  # y at which the lobes have become the tail stock

Points = npt.NDArray[np.float64]
_SKIN = 21  # stream of random numbers


@lru_cache(maxsize=6)
def skin(individual: Fluke) -> npt.NDArray[np.uint8]:
    """The flat underside, (462, 721, 4) uint8: whiteness, cover, relief (128 = flat), algae. Read-only."""
    born = tuple(nick for nick in individual.nicks if nick.since == 0)
    unworn, relief, algae = _unworn(replace(individual, age=0, marks=(), nicks=born))
    white = _scarred(individual, unworn)
    picture = cv2.merge([cv2.convertScaleAbs(white, alpha=255.0), _cover(individual), relief, algae])
    picture.setflags(write=False)
    return np.asarray(picture, np.uint8)


@lru_cache(maxsize=6)
def _unworn(individual: Fluke) -> tuple[Field, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """What the years do not change: whiteness before scars (H, W) float32, relief and algae (H, W) uint8."""
    rng = np.random.default_rng([_SKIN, individual.seed, individual.index])
    depth = cv2.distanceTransform((_cover(individual) > 127).astype(np.uint8), cv2.DIST_L2, 3) / np.float32(SCALE)
    white = _pigmentation(individual, rng, np.asarray(depth, np.float32))
    relief = cv2.convertScaleAbs(np.clip(128.0 + 28.0 * window(rng, "cloud", SHAPE, (2.2, 4.5), 0.2), 0, 255))
    algae = cv2.convertScaleAbs(smoothstep(-0.6, 1.6, window(rng, "cloud", SHAPE, (1.6, 1.2))), alpha=255.0)
    return white, np.asarray(relief, np.uint8), np.asarray(algae, np.uint8)


def _cover(individual: Fluke) -> npt.NDArray[np.uint8]:
    """Where there is skin, (H, W) uint8, 255 inside, smooth at the edge."""
    cover = np.zeros(SHAPE, np.uint8)
    cv2.fillPoly(cover, [np.round(to_pixels(outline(individual)) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return cover


def to_pixels(points: Points) -> Points:
    """Canonical (..., 2) → pixel coordinates of the skin picture."""
    return (points - (LEFT, TOP)) * SCALE


@lru_cache(maxsize=64)
def outline(individual: Fluke) -> Points:
    """Closed outline, (N, 2) float64, canonical frame: notch, right lobe, stock, left lobe. Read-only."""
    right = _lobe_line(individual, individual.right, +1)
    left = _lobe_line(individual, individual.left, -1) * (-1.0, 1.0)
    s = individual.stock
    stock = np.array([(s, 0.64), (s * 0.92, 0.72), (s * 1.05, 0.84), (s * 1.35, 1.02)])
    line = np.concatenate([right, stock, stock[::-1] * (-1.0, 1.0), left[::-1]])
    line.setflags(write=False)
    return line


def landmarks(individual: Fluke) -> Points:
    """Left tip, notch, right tip, base in the canonical frame, (4, 2) float64."""
    left, right = individual.left.tip, individual.right.tip
    return np.array([(-left[0], left[1]), (0.0, individual.notch_depth * 0.5), right, (0.0, STOCK_JOIN)])


def _lobe_line(individual: Fluke, lobe: Lobe, side: int) -> Points:
    """Notch → trailing edge → tip → leading edge → stock of one lobe, drawn as a right lobe; (N, 2)."""
    nw, nd = individual.notch_width, individual.notch_depth
    knots = [(0.0, nd * 0.5), (nw * 0.6, -nd * 0.25 - 0.012), lobe.shoulder, lobe.middle, lobe.hollow, lobe.tip]
    trailing = _smooth(knots, 44)
    trailing[:, 1] += _ragged(individual, trailing[:, 0], side)
    leading = _smooth([lobe.tip, *lobe.leading, (individual.stock * 1.25, STOCK_JOIN)], 14)
    return np.concatenate([trailing, leading[1:]])


def _ragged(individual: Fluke, x: Points, side: int) -> Points:
    """Displacement of the trailing edge along y at x (N,), half spans, positive into the lobe: serration and nicks."""
    rng = np.random.default_rng([_SKIN, individual.seed, individual.index, side + 1])
    total = np.zeros_like(x)
    for octave, weight in ((1.0, 0.5), (2.1, 0.32), (4.3, 0.18)):
        n = int(individual.serration_grain * octave)
        knots = rng.standard_normal(n + 1)
        total += weight * np.interp(x, np.linspace(0.0, 1.0, n + 1), np.abs(knots) - 0.8)
    total *= individual.serration * 2.2 * (0.25 + 0.75 * np.clip(x / 0.5, 0.0, 1.0))
    for nick in individual.nicks:
        if nick.at * side > 0.03:
            total += nick.depth * np.clip(1.0 - np.abs(x - abs(nick.at)) / nick.width, 0.0, 1.0) ** 0.8
    return np.asarray(total * np.clip((1.0 - x) / 0.04, 0.0, 1.0) * np.clip(x / 0.03, 0.0, 1.0))


def _smooth(knots: list[tuple[float, float]], steps: int) -> Points:
    """Catmull-Rom curve through all knots, `steps` points a span; (N, 2)."""
    p = np.array(knots)
    p = np.concatenate([[2 * p[0] - p[1]], p, [2 * p[-1] - p[-2]]])
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[:, None]
    spans = []
    for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False):
        spans.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate([*spans, p[-2:-1]])


@lru_cache(maxsize=1)
def _grid() -> tuple[Field, Field]:
    """Canonical x and y of every pixel of the skin picture, each float32 (1, W) and (H, 1)."""
    x = (LEFT + (np.arange(SHAPE[1], dtype=np.float32) + 0.5) / np.float32(SCALE)).astype(np.float32)[None, :]
    y = (TOP + (np.arange(SHAPE[0], dtype=np.float32) + 0.5) / np.float32(SCALE)).astype(np.float32)[:, None]
    return x, y


def _pigmentation(individual: Fluke, rng: np.random.Generator, depth: Field) -> Field:
    """Whiteness in [0, 1], (H, W) float32; `depth` is the distance to the outline in half spans."""
    p = individual.pigment
    x, y = _grid()
    cloud = window(rng, "cloud", SHAPE, (1.5, 1.5))
    fine = window(rng, "grain", SHAPE, (1.6, 1.9))
    streak = window(rng, "grain", SHAPE, (1.0, 6.0), 0.12)
    away = np.hypot(x, (y - 0.42) * 0.75, dtype=np.float32)
    level = p.outward * (away - p.core) + p.asymmetry * p.outward * np.tanh(x * np.float32(5.0))
    level += p.blotchiness * cloud * 0.55 + p.streakiness * streak * 0.35 + p.speckle * fine * 0.3
    ragged = p.edge_width * (1.0 + p.edge_raggedness * (0.9 * cloud + 0.8 * streak + 0.4 * fine))
    trailing = np.clip(
        (0.16 - y) * 4.0, 0.18, 1.0
    )  # the dark rim is broad along the trailing edge, thin along the leading one
    level -= 6.0 * smoothstep(
        0.0, 1.0, np.asarray(1.3 - depth / np.maximum(ragged * trailing + 0.004, 0.003), np.float32)
    )
    seam = np.exp(-((x / (0.012 + 0.07 * np.clip(y, 0.0, 1.0))) ** 2)) * smoothstep(0.02, 0.3, y) * p.seam
    level -= 5.0 * seam * np.clip(0.45 + 0.6 * cloud + 0.35 * streak, 0.0, 1.5)
    level -= 3.0 * smoothstep(STOCK_JOIN - 0.06, STOCK_JOIN + 0.12, y + 0.05 * cloud)
    white = smoothstep(-0.5, 0.5, level * (np.float32(p.sharpness) / 4.0))
    tone = p.white * (1.0 - p.mottle * (0.5 + 0.5 * cloud + 0.35 * fine))
    flecks = smoothstep(1.9, 2.7, np.asarray(0.85 * fine + 0.5 * cloud + 0.35 * streak + 0.5 * p.speckle, np.float32))
    dark = p.black * (1.0 + 0.35 * cloud) + flecks * min(0.25 + 0.5 * p.speckle, 0.8)
    tips = (
        smoothstep(0.55, 1.0, np.abs(x))
        * smoothstep(0.3, 1.5, fine + 0.5 * cloud + 0.3 * streak)
        * np.float32(min(p.tip_scarring, 1.0))
    )
    return np.asarray(np.clip(dark + (tone - dark) * np.maximum(white, tips), 0.0, 1.0), dtype=np.float32)


def _scarred(individual: Fluke, white: Field) -> Field:
    """Draw all marks that have come by the whale's age; pale ones fade by 4 % a year."""
    pale, dark = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    for mark in individual.marks:
        strength = abs(mark.tone) * (0.96 ** (individual.age - mark.since) if mark.tone > 0 else 1.0)
        _draw(mark, pale if mark.tone > 0 else dark, int(255 * strength))
    soft_pale, soft_dark = (
        np.asarray(cv2.GaussianBlur(layer, (3, 3), 0.8), np.float32) / 255 for layer in (pale, dark)
    )
    high, low = np.float32(max(individual.pigment.white * 0.92, 0.6)), np.float32(individual.pigment.black)
    white = np.asarray(white + (high - white) * soft_pale, np.float32)
    return np.asarray(white + (low - white) * soft_dark, dtype=np.float32)


def _draw(mark: Mark, layer: npt.NDArray[np.uint8], value: int) -> None:
    """One mark on to one layer (changed in place), keeping the stronger of what is there and `value`."""
    at = to_pixels(np.array([mark.x, mark.y]))
    along = np.array([np.cos(mark.angle), np.sin(mark.angle)])
    across = np.array([-along[1], along[0]])
    centre = (round(float(at[0]) * 16), round(float(at[1]) * 16))
    if mark.kind in ("scratch", "rake"):
        t = np.linspace(-0.5, 0.5, 9)[:, None]
        for strand in range(mark.strands):
            offset = (strand - (mark.strands - 1) / 2) * 0.022
            shift = 0.3 * mark.length * np.sin(7.0 * strand + 40.0 * mark.angle)
            line = at + SCALE * (
                along * (t * mark.length * (1.0 - 0.1 * strand) + (shift if mark.strands > 1 else 0.0))
                + across * (mark.bow * mark.length * (t**2 - 0.1) + offset)
            )
            thick = max(1, round(mark.width * SCALE))
            cv2.polylines(layer, [np.round(line * 16).astype(np.int32)], False, value, thick, cv2.LINE_AA, 4)
    elif mark.kind == "ring":
        cv2.circle(
            layer,
            centre,
            round(mark.length * SCALE * 16),
            value,
            max(1, round(mark.length * SCALE * 0.35)),
            cv2.LINE_AA,
            4,
        )
    else:
        size = (max(1, round(mark.length * SCALE)), max(1, round(mark.length * SCALE * (0.5 + abs(mark.bow)))))
        cv2.ellipse(
            layer,
            (centre[0] // 16, centre[1] // 16),
            size,
            float(np.degrees(mark.angle)),
            0,
            360,
            value,
            -1,
            cv2.LINE_AA,
        )
