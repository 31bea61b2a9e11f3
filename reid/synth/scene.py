"""Everything round the whale: sea in perspective, sky and coast, the waterline, wash, dripping water and spray.

Knows the view and where the fluke covers the picture, nothing of the individual. Pictures are (P, H, W)
float32, linear light in P = 3 planes (red, green, blue) or one for black-and-white film; covers (H, W) float32 in
[0, 1]. Randomness comes from the generator passed in, in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from reid.synth.noise import STEEP, Field, ocean, smoothstep, window
from reid.synth.view import View, planes


@dataclass(frozen=True, slots=True)
class Sea:
    """Water without the whale: `picture` (P, H, W); `slope` (across) and `height` (H, W), of about unit deviation."""

    picture: Field
    slope: Field
    height: Field


def waterline(width: int, row: float, scale: float, view: View, centre: float, rng: np.random.Generator) -> Field:
    """Row at which the sea closes over the fluke, for every column: (W,) float32. `scale`: pixels a half span."""
    x = np.arange(width, dtype=np.float32)
    wave = np.zeros(width, np.float32)
    for length, height in ((0.9, 0.022), (0.35, 0.010), (0.10, 0.004)):
        n = max(int(width / (length * scale)), 1) + 2
        knots = rng.standard_normal(n)
        at = np.linspace(0, n - 1, width)
        base = at.astype(int).clip(0, n - 2)
        t = at - base
        wave += (height * scale * (knots[base] + (knots[base + 1] - knots[base]) * t * t * (3 - 2 * t))).astype(
            np.float32
        )
    return np.asarray(
        row + np.tan(view.camera_roll) * (x - centre) + wave * (0.5 + view.conditions.sea_contrast), np.float32
    )


def sea(shape: tuple[int, int], view: View, row: float, scale: float, rng: np.random.Generator) -> Sea:
    """The sea with sky above the horizon; `row` is where the whale stands, `scale` its half span, both in pixels."""
    c = view.conditions
    height, width = shape
    horizon = min(view.horizon * height, row - 0.05 * height)
    x = (np.arange(width, dtype=np.float32) - width / 2)[None, :]
    y = np.arange(height, dtype=np.float32)[:, None]
    roll_c, roll_s = np.float32(np.cos(view.camera_roll)), np.float32(np.sin(view.camera_roll))
    below = np.asarray(roll_c * y - roll_s * x - np.float32(horizon), np.float32)
    across = roll_c * x + roll_s * y
    near = np.float32(max(row - horizon, 4.0))
    grain = np.float32(85.0 / (c.wave_size * scale))  # tile pixels a picture pixel at the whale
    squat = np.float32(2.2 + 2.4 * (1.0 - min(max(-view.horizon, 0.0), 2.0) / 2.0))
    inverse = np.asarray(near / np.maximum(below, np.float32(2.0)), np.float32)
    start = rng.random(4).astype(np.float32) * 512
    u, v = across * (grain * inverse), inverse * (squat * grain * near)
    far = squat * grain * inverse * inverse
    swell = _waves(c.sea, u + start[0], start[1] - v)
    ripple = _waves(c.sea, u * np.float32(3.7) + start[2], start[3] - v * np.float32(3.7))
    calm = np.float32(1 / STEEP) / (np.float32(1.0) + np.float32(0.35) * far)
    weight = np.float32(0.22 + 0.45 * c.choppiness)
    slope, away, rise = (
        np.asarray((a + weight * b - np.float32(128.0) * (1 + weight)) * calm, np.float32)
        for a, b in zip(cv2.split(swell), cv2.split(ripple), strict=True)
    )
    facing = away + np.float32(0.35) * slope
    return Sea(_lit_sea(facing, slope, rise, inverse, below, view, rng), slope, rise)


def _waves(number: int, u: Field, v: Field) -> npt.NDArray[np.uint8]:
    """Bilinear look-up in a wrapping ocean tile: (H, W, 3) uint8."""
    return np.asarray(cv2.remap(ocean(number), u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP), np.uint8)


def _lit_sea(
    facing: Field, slope: Field, rise: Field, inverse: Field, below: Field, view: View, rng: np.random.Generator
) -> Field:
    """Colour of the waves: slopes towards us show the deep, slopes away mirror the sky; then sun, foam, coast."""
    c = view.conditions
    deep, sky = planes(c.water, view.grey), planes(c.sky, view.grey)
    haze = np.exp(np.float32(-0.25) * np.maximum(inverse - np.float32(1.0), 0.0))
    mirrored = np.float32(0.70) - np.float32(0.4) * haze + np.float32(0.40 * c.sea_contrast) * facing
    picture = np.asarray(deep + (sky - deep) * np.clip(mirrored, 0.0, 1.5), np.float32)
    if c.glints > 0:
        sun = facing + np.float32(c.sun_side) * slope - np.float32(2.2 - 0.7 * c.glints)
        picture += np.float32(0.9 * c.glints) * np.clip(sun, 0.0, 2.0)
    if c.whitecaps > 0:
        torn = np.float32(0.35) * window(rng, "grain", below.shape, (1.2, 0.7))
        picture += (
            np.float32(0.8) * smoothstep(2.0 - 1.1 * c.whitecaps, 3.2, rise + torn) * (np.float32(0.85) - picture)
        )
    if float(below.min()) < 1.0:
        picture = _above_horizon(picture, below, view, rng)
    return picture


def _above_horizon(picture: Field, below: Field, view: View, rng: np.random.Generator) -> Field:
    """Replace what lies above the horizon by sky and, where there is one, a hazy coast."""
    c = view.conditions
    height = below.shape[0]
    sky = planes(c.sky, view.grey)
    cloud = window(rng, "cloud", below.shape, (3.0, 1.2))
    air = np.asarray(sky * (1.05 + 0.05 * cloud - 0.10 * np.clip(-below / height, 0.0, 1.0)), np.float32)
    if c.shore > 0:
        knots = window(rng, "cloud", (1, below.shape[1]), (2.0, 1.0))[0]
        ridge = np.float32(c.shore * height) * (np.float32(0.7) + np.float32(0.35) * knots)[None, :]
        rock = 0.35 * sky + 0.65 * planes((0.10, 0.11, 0.10), view.grey)
        rough = 1.0 + 0.25 * window(rng, "grain", below.shape, (1.5, 0.8))
        air += smoothstep(-1.5, 1.5, ridge + below) * (rock * rough - air)
    return np.asarray(air + (picture - air) * smoothstep(-1.0, 1.5, below), np.float32)


def reflect(water: Sea, cover: Field, line: Field, scale: float, strength: float) -> None:
    """Darken `water.picture` in place where the fluke mirrors in it; broken up by the slopes."""
    first = int(np.clip(line.min(), 0, cover.shape[0]))
    last = int(np.clip(line.max() + 0.9 * scale, first, cover.shape[0]))
    if last == first:
        return
    under = np.arange(first, last, dtype=np.float32)[:, None] - line[None, :]
    source_y = line[None, :] - under * np.float32(1.7) + water.height[first:last] * np.float32(0.03 * scale)
    source_x = np.arange(len(line), dtype=np.float32)[None, :] + water.slope[first:last] * np.float32(0.04 * scale)
    mirrored = cv2.remap(cover, source_x, source_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    fade = np.exp(np.maximum(under, 0.0) * np.float32(-2.2 / scale)) * (under > 0)
    water.picture[:, first:last] *= np.float32(1.0) - np.float32(strength) * mirrored * fade


def wash(picture: Field, line: Field, centre: float, scale: float, view: View, rng: np.random.Generator) -> None:
    """White water where the stock enters the sea, in place: dense at the centre, ragged outwards."""
    spread, tall = 0.4 + 0.75 * min(view.splash, 1.5), (0.035 + 0.06 * min(view.splash, 2.0)) * scale
    height, width = picture.shape[1:]
    rows = slice(*np.clip((int(line.min() - 2.2 * tall), int(line.max() + 4.9 * tall)), 0, height))
    columns = slice(*np.clip((int(centre - 2.2 * spread * scale), int(centre + 2.2 * spread * scale)), 0, width))
    part = picture[:, rows, columns]
    if part.size == 0:
        return
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - line[None, columns]
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) - np.float32(centre)) * np.float32(1 / scale / spread)
    froth = window(rng, "cloud", y.shape, (scale / 260.0 + 0.15, scale / 600.0 + 0.08))
    grain = window(rng, "grain", y.shape, (1.1, 0.8))
    up = y * np.where(y < 0, np.float32(1.0 / tall), np.float32(0.45 / tall))
    body = np.float32(0.9 + 1.3 * view.splash) * np.exp(-(x * x)[None, :] - up * up)
    torn = (np.float32(0.42) * froth + np.float32(0.32) * grain) * np.minimum(np.float32(3.0) * body, 1.0)
    cover = smoothstep(0.95, 1.8, body + torn) * np.float32(0.92)
    shine = np.float32(0.5 + 0.5 * min(view.conditions.light_on_fluke, 1.0))
    lightness = np.clip(0.72 + 0.12 * froth + 0.14 * grain, 0.3, 1.0) * shine
    part += cover * (lightness * (0.5 * planes(view.conditions.light, view.grey) + np.float32(0.5)) - part)


def streams(picture: Field, cover: Field, scale: float, view: View, rng: np.random.Generator) -> None:
    """Water running off the lower edges in threads, in place; `picture` and `cover` may be any matching part."""
    reach = max(int(0.22 * scale * min(view.streaming + 0.3, 1.2)), 2)
    fallen = cv2.blur(cover, (1, reach), anchor=(0, reach - 1), borderType=cv2.BORDER_REPLICATE)
    threads = window(rng, "grain", cover.shape, (max(scale / 300.0, 0.3), scale / 12.0))
    amount = smoothstep(1.3 - 0.8 * min(view.streaming, 1.2), 2.6, threads)
    amount *= np.float32(0.75) * fallen * (np.float32(1.0) - cover)
    picture += amount * (np.float32(0.8) * planes(view.conditions.sky, view.grey) + np.float32(0.2) - picture)


def spray(picture: Field, line: Field, centre: float, scale: float, view: View, rng: np.random.Generator) -> None:
    """Flying drops, in place: bright dots about the fluke, denser near the water."""
    n = int(160 * min(view.spray, 2.0))
    if n == 0:
        return
    height, width = picture.shape[1:]
    xs = centre + scale * rng.normal(0.0, 0.6, n)
    ys = line[np.clip(xs, 0, width - 1).astype(int)] - scale * np.abs(rng.exponential(0.10, n))
    drops = np.zeros((height, width), np.uint8)
    for x, y, size, value in zip(xs, ys, rng.exponential(0.0022 * scale, n), rng.uniform(60, 230, n), strict=True):
        cv2.circle(drops, (round(x * 8), round(y * 8)), round(min(size, 3.0) * 8), int(value), -1, cv2.LINE_AA, 3)
    wet = np.nonzero(drops)
    bright = np.float32(0.9) * max(view.conditions.light_on_fluke, 0.4)
    for plane in picture:
        under = plane[wet]
        plane[wet] = under + drops[wet] * np.float32(1 / 255.0) * np.maximum(bright - under, 0.0)
