"""Everything round the whale: sea in perspective, sky and coast, the waterline, wash, dripping water and spray.

Knows the view and where the fluke covers the picture, nothing of the individual. Pictures are (H, W, 3) float32
linear RGB, covers (H, W) float32 in [0, 1]. Randomness comes from the generator passed in, in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from reid.synth.noise import Field, ocean, smoothstep, window
from reid.synth.view import View


@dataclass(frozen=True, slots=True)
class Sea:
    """Water without the whale: `picture` (H, W, 3); `slope` (across) and `height` (H, W), unit deviation."""

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
    below = roll_c * y - roll_s * x - np.float32(horizon)
    across = roll_c * x + roll_s * y
    near = np.float32(max(row - horizon, 4.0))
    grain = np.float32(100.0 / (c.wave_size * scale))  # tile pixels a picture pixel at the whale
    squat = np.float32(2.2 + 2.4 * (1.0 - min(max(-view.horizon, 0.0), 2.0) / 2.0))
    inverse = near / np.maximum(below, np.float32(2.0))
    tile = ocean(c.sea, 0.5)
    start = rng.random(4).astype(np.float32) * 512
    u, v = across * (grain * inverse), inverse * (squat * grain * near)
    swell = _wrapped(tile, u + start[0], start[1] - v)
    ripple = _wrapped(tile, u * np.float32(3.7) + start[2], start[3] - v * np.float32(3.7))
    calm = np.float32(1.0) / (np.float32(1.0) + np.float32(0.35) * inverse * inverse * squat * grain)
    weight = np.float32(0.35 + 0.55 * c.choppiness)
    surface = np.asarray((swell + weight * ripple) * calm[..., None], np.float32)
    return Sea(
        _lit_sea(surface, np.asarray(inverse, np.float32), np.asarray(below, np.float32), view, rng),
        surface[..., 0],
        surface[..., 2],
    )


def _wrapped(tile: Field, u: Field, v: Field) -> Field:
    """Bilinear look-up in a wrapping tile."""
    return np.asarray(cv2.remap(tile, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP), np.float32)


def _lit_sea(surface: Field, inverse: Field, below: Field, view: View, rng: np.random.Generator) -> Field:
    """Colour of the waves: slopes towards us show the deep, slopes away mirror the sky; then sun, foam, coast."""
    c = view.conditions
    deep, sky = np.array(c.water, np.float32), np.array(c.sky, np.float32)
    facing = surface[..., 1] + np.float32(0.35) * surface[..., 0]
    base = np.float32(0.30) + np.float32(0.4) * (
        np.float32(1.0) - np.exp(-np.float32(0.25) * (inverse - 1.0).clip(0.0))
    )
    mirrored = np.clip(base + np.float32(0.24 * c.sea_contrast) * facing, 0.0, 1.3)
    picture = np.asarray(deep + (sky - deep) * mirrored[..., None], np.float32)
    if c.glints > 0:
        sparkle = np.clip(
            facing + np.float32(c.sun_side) * surface[..., 0] - np.float32(2.2 - 0.7 * c.glints), 0.0, 2.0
        )
        picture += (np.float32(0.9 * c.glints) * sparkle)[..., None]
    if c.whitecaps > 0:
        foam = smoothstep(
            2.0 - 1.1 * c.whitecaps, 3.2, surface[..., 2] + 0.35 * window(rng, "grain", below.shape, (1.2, 0.7))
        )
        picture += (foam * np.float32(0.8))[..., None] * (np.float32(0.85) - picture)
    if float(below.min()) < 1.0:
        picture = _above_horizon(picture, below, view, rng)
    return picture


def _above_horizon(picture: Field, below: Field, view: View, rng: np.random.Generator) -> Field:
    """Replace what lies above the horizon by sky and, where there is one, a hazy coast."""
    c = view.conditions
    height = below.shape[0]
    sky = np.array(c.sky, np.float32)
    cloud = window(rng, "cloud", below.shape, (3.0, 1.2))
    air = sky * np.float32(1.05) * (1.0 + 0.05 * cloud - 0.10 * np.clip(-below / height, 0.0, 1.0))[..., None]
    if c.shore > 0:
        knots = window(rng, "cloud", (1, below.shape[1]), (2.0, 1.0))[0]
        ridge = np.float32(c.shore * height) * (np.float32(0.7) + np.float32(0.35) * knots)[None, :]
        land = smoothstep(-1.5, 1.5, ridge + below)
        shade = (0.35 * sky + 0.65 * np.array((0.10, 0.11, 0.10), np.float32))[None, None, :]
        rock = shade * (1.0 + 0.25 * window(rng, "grain", below.shape, (1.5, 0.8)))[..., None]
        air += land[..., None] * (rock - air)
    edge = smoothstep(-1.0, 1.5, below)[..., None]
    return np.asarray(air + (picture - air) * edge, np.float32)


def reflect(water: Sea, cover: Field, line: Field, scale: float, strength: float) -> None:
    """Darken `water.picture` in place where the fluke mirrors in it; broken up by the slopes."""
    height, width = cover.shape
    y = np.arange(height, dtype=np.float32)[:, None]
    under = y - line[None, :]
    source_y = line[None, :] - under * np.float32(1.7) + water.height * np.float32(0.03 * scale)
    source_x = np.arange(width, dtype=np.float32)[None, :] + water.slope * np.float32(0.04 * scale)
    mirrored = cv2.remap(cover, source_x, source_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    fade = np.exp(-np.maximum(under, 0.0) * np.float32(2.2 / scale)) * (under > 0)
    water.picture[...] *= (np.float32(1.0) - np.float32(strength) * mirrored * fade)[..., None]


def wash(picture: Field, line: Field, centre: float, scale: float, view: View, rng: np.random.Generator) -> None:
    """White water where the stock enters the sea, in place: dense at the centre, ragged outwards."""
    height, width = picture.shape[:2]
    y = np.arange(height, dtype=np.float32)[:, None] - line[None, :]
    x = (np.arange(width, dtype=np.float32)[None, :] - np.float32(centre)) * np.float32(1.0 / scale)
    spread, tall = 0.35 + 0.55 * min(view.splash, 1.5), 0.04 + 0.09 * min(view.splash, 2.0)
    froth = window(rng, "cloud", (height, width), (scale / 260.0 + 0.15, scale / 600.0 + 0.08))
    grain = window(rng, "grain", (height, width), (1.1, 0.8))
    up = np.where(y < 0, y * np.float32(1.0 / (tall * scale)), y * np.float32(0.45 / (tall * scale)))
    body = np.float32(0.9 + 1.3 * view.splash) * np.exp(-((x / np.float32(spread)) ** 2) - up * up)
    cover = smoothstep(0.95, 1.9, body + 0.42 * froth + 0.22 * grain) * np.float32(0.92)
    lightness = np.clip(0.78 + 0.10 * froth + 0.08 * grain, 0.3, 1.0) * np.float32(
        0.35 + 0.65 * min(view.conditions.light_on_fluke, 1.0)
    )
    tint = 0.5 * np.array(view.conditions.light, np.float32) + 0.5
    picture += cover[..., None] * (lightness[..., None] * tint - picture)


def streams(picture: Field, cover: Field, scale: float, view: View, rng: np.random.Generator) -> None:
    """Water running off the lower edges in threads, in place."""
    reach = max(int(0.22 * scale * min(view.streaming + 0.3, 1.2)), 2)
    fallen = cv2.blur(cover, (1, reach), anchor=(0, reach - 1), borderType=cv2.BORDER_REPLICATE)
    threads = window(rng, "grain", cover.shape, (max(scale / 300.0, 0.3), scale / 12.0))
    amount = smoothstep(1.3 - 0.8 * min(view.streaming, 1.2), 2.6, threads) * np.clip(fallen * (1.0 - cover), 0.0, 1.0)
    picture += (np.float32(0.75) * amount)[..., None] * (
        np.float32(0.8) * np.array(view.conditions.sky, np.float32) + 0.2 - picture
    )


def spray(picture: Field, line: Field, centre: float, scale: float, view: View, rng: np.random.Generator) -> None:
    """Flying drops, in place: bright dots about the fluke, denser near the water."""
    n = int(160 * min(view.spray, 2.0))
    if n == 0:
        return
    height, width = picture.shape[:2]
    xs = centre + scale * rng.normal(0.0, 0.6, n)
    ys = line[np.clip(xs, 0, width - 1).astype(int)] - scale * np.abs(rng.exponential(0.10, n))
    drops = np.zeros((height, width), np.uint8)
    for x, y, size, value in zip(xs, ys, rng.exponential(0.0022 * scale, n), rng.uniform(60, 230, n), strict=True):
        cv2.circle(drops, (round(x * 8), round(y * 8)), round(min(size, 3.0) * 8), int(value), -1, cv2.LINE_AA, 3)
    picture += (drops * np.float32(1 / 255.0))[..., None] * (
        np.float32(0.9) * max(view.conditions.light_on_fluke, 0.4) - picture
    ).clip(0.0)
