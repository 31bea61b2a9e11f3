"""One whale under one view becomes one photo with everything known about it.

`render` is the pure function of the package: the same fluke, view and size give the same bytes, in any process. The
steps are laid out in `_compose`: place the fluke, paint the sea, mirror, put the fluke in front, close the water over
it, wash, drops, camera.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

import cv2
import numpy as np
import numpy.typing as npt

from reid.records import Box
from reid.synth import camera, scene
from reid.synth.fluke import Fluke
from reid.synth.noise import Field
from reid.synth.pose import Placement, place, slope_light, unplace
from reid.synth.skin import SCALE, SHAPE, landmarks, outline, skin, to_pixels
from reid.synth.view import View, planes

LONG_SIDE = 640
_PHOTO = 31  # stream of random numbers


@dataclass(frozen=True, slots=True, eq=False)
class RenderedPhoto:
    """A photo and the truth about it. Coordinates are pixels of `pixels`, whose JPEG losses are already in.

    `landmarks` (4, 2) float32: left tip, notch, right tip, base, as they lie in the picture; a tip that is cut off or
    under water keeps its true place outside `mask`; the base is raised to the water where the sea covers it. `mask`
    (H, W) bool: the fluke above water, wash and drops not subtracted; `box` is its tight bounding box.
    """

    pixels: npt.NDArray[np.uint8]
    identity: str
    box: Box
    landmarks: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    year: int
    encounter: str
    taken_at: datetime
    latitude: float
    longitude: float


@dataclass(frozen=True, slots=True, eq=False)
class Exposed:
    """A photo before its file: `jpeg` decodes to the pixels; `landmarks` and `mask` as in `RenderedPhoto`."""

    jpeg: bytes
    landmarks: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    width: int
    height: int


def render(individual: Fluke, view: View, size: tuple[int, int] | None = None) -> RenderedPhoto:
    """Photograph `individual` under `view`; `size` (width, height) in pixels, None: 640 on the long side."""
    photo = expose(individual, view, size)
    return RenderedPhoto(
        pixels=camera.decode(photo.jpeg),
        identity=individual.identity,
        box=tight_box(photo.mask),
        landmarks=photo.landmarks,
        mask=photo.mask,
        year=view.taken_at.year,
        encounter=view.encounter,
        taken_at=view.taken_at,
        latitude=view.latitude,
        longitude=view.longitude,
    )


def expose(individual: Fluke, view: View, size: tuple[int, int] | None = None, long_side: int = LONG_SIDE) -> Exposed:
    """The same as `render`, as JPEG bytes; `long_side` in pixels where `size` is None."""
    rng = np.random.default_rng([_PHOTO, view.seed])
    shape, placement = _framed(individual, view, size, long_side)
    picture, mask, marks = _compose(individual, placement, shape, rng)
    if view.turned:
        picture, mask, marks = _turned(picture, mask, marks, view.turned)
    if view.margin:
        edge = round(view.margin * shape[0])
        picture[shape[0] - edge :] = 252
        mask[shape[0] - edge :] = False
    data = camera.encode(picture, view.jpeg_quality)
    return Exposed(jpeg=data, landmarks=marks, mask=mask, width=shape[1], height=shape[0])


def tight_box(mask: npt.NDArray[np.bool_]) -> Box:
    """Bounding box of what is set; the whole picture where nothing is."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return Box(0.0, 0.0, float(mask.shape[1]), float(mask.shape[0]), confidence=0.0, origin="whole")
    return Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def _framed(
    individual: Fluke, view: View, size: tuple[int, int] | None, long_side: int
) -> tuple[tuple[int, int], Placement]:
    """Choose the photo's shape (H, W) and put the visible part of the fluke into it as `view` asks."""
    line = place(outline(individual), Placement(view))
    foot = place(np.array([0.0, view.waterline]), Placement(view))
    level = foot[1] + np.tan(view.camera_roll) * (line[:, 0] - foot[0])
    seen = line[line[:, 1] < level + 0.02]
    low, high = seen.min(axis=0), seen.max(axis=0)
    wide, tall = high - low
    if size is None:
        aspect = min(view.aspect, 0.93 * wide / tall / min(view.fill, 1.0)) if view.fill <= 1.0 else view.aspect
        aspect = max(aspect, 0.75)
        size = (long_side, round(long_side / aspect)) if aspect >= 1 else (round(long_side * aspect), long_side)
    width, height = size
    scale = view.fill * width / wide
    if view.fill <= 1.0:
        scale = min(scale, 0.94 * height / tall)
    slack_x, slack_y = max(width - wide * scale, 0.0), max(height - tall * scale, 0.0)
    dx, dy = view.offset_x * width, view.offset_y * height
    if view.fill <= 1.0:
        dx, dy = float(np.clip(dx, -0.5 * slack_x, 0.5 * slack_x)), float(np.clip(dy, -0.48 * slack_y, 0.48 * slack_y))
    middle = (low + high) / 2 * scale
    return (height, width), Placement(view, scale, width / 2 + dx - middle[0], height / 2 + dy - middle[1])


def _compose(
    individual: Fluke, placement: Placement, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Picture (H, W, 3) uint8, mask (H, W), landmarks (4, 2): sea first, then the whale, then the water before it."""
    view, scale = placement.view, placement.scale
    foot = place(np.array([0.0, view.waterline]), placement)
    centre, row = float(foot[0]), float(foot[1])
    line = scene.waterline(shape[1], row, scale, view, centre, rng)
    rows, columns = _extent(individual, placement, shape)
    texture, across = _seen(individual, placement, rows, columns)
    depth = line[None, columns] - np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
    cover = np.zeros(shape, np.float32)
    cover[rows, columns] = texture[1] * np.float32(1 / 255.0) * np.clip(depth + np.float32(0.5), 0.0, 1.0)
    water = scene.sea(shape, view, row, scale, rng)
    scene.reflect(water, cover, line, scale, 0.55)
    picture = water.picture
    part = picture[:, rows, columns]
    part += cover[rows, columns] * (_lit_skin(individual, texture, across, placement) - part)
    below = slice(rows.start, min(rows.stop + round(0.1 * scale), shape[0]))
    scene.streams(picture[:, below, columns], cover[below, columns], scale, view, rng)
    scene.wash(picture, line, centre, scale, view, rng)
    scene.spray(picture, line, centre, scale, view, rng)
    marks = place(landmarks(individual), placement)
    marks[3] = _base(marks[3], marks[1], line)
    return camera.expose(picture, view, rng), cover > 0.5, marks.astype(np.float32)


def _extent(individual: Fluke, placement: Placement, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the picture that the whole fluke, drowned parts too, may touch; at least one pixel each."""
    line = place(outline(individual), placement)
    low = np.clip(np.floor(line.min(axis=0)).astype(int) - 3, 0, (shape[1] - 1, shape[0] - 1))
    high = np.clip(np.ceil(line.max(axis=0)).astype(int) + 4, low + 1, (shape[1], shape[0]))
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


def _seen(individual: Fluke, placement: Placement, rows: slice, columns: slice) -> tuple[list[Field], Field]:
    """The skin in a part of the photo: its four channels, (h, w) float32 in 0..255, and canonical x of each pixel."""
    flat = skin(individual)
    here = replace(placement, dx=placement.dx - columns.start, dy=placement.dy - rows.start)
    x, y = unplace((rows.stop - rows.start, columns.stop - columns.start), here)
    shrink = min(placement.scale / SCALE, 1.0)
    if shrink < 0.7:
        small = (max(round(SHAPE[1] * shrink), 2), max(round(SHAPE[0] * shrink), 2))
        flat = np.asarray(cv2.resize(flat, small, interpolation=cv2.INTER_AREA), np.uint8)
    sx, sy = flat.shape[1] / SHAPE[1], flat.shape[0] / SHAPE[0]
    origin = to_pixels(np.zeros(2))
    u = x * np.float32(SCALE * sx) + np.float32(origin[0] * sx - 0.5)
    v = y * np.float32(SCALE * sy) + np.float32(origin[1] * sy - 0.5)
    seen = cv2.remap(flat, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(0, 0, 128, 0))
    return [plane.astype(np.float32) for plane in cv2.split(seen)], x


def _lit_skin(individual: Fluke, texture: list[Field], across: Field, placement: Placement) -> Field:
    """Colour of the skin (P, h, w): pigment, algae, light on the bent surface, wet highlights."""
    c, grey = placement.view.conditions, placement.view.grey
    warmth = individual.pigment.warmth
    pale = planes((0.86, 0.86 - 0.02 * warmth, 0.84 - 0.07 * warmth), grey)
    dark = planes((0.95 + 0.25 * warmth, 0.97 + 0.08 * warmth, 1.04), grey)
    white = texture[0] * np.float32(1 / 255.0)
    colour = np.asarray(white * (dark + (pale - dark) * white), np.float32)
    if c.algae > 0:
        film = texture[3] * np.float32(c.algae / 255.0)
        colour *= np.float32(1.0) - film * planes((0.12, 0.38, 0.82), grey)
    stations = np.linspace(-1.3, 1.3, 105)
    light = slope_light(stations, placement, c.sun_side)
    coarse = np.interp(across[::4, ::4], stations, light).astype(np.float32)
    shade = cv2.resize(coarse, (across.shape[1], across.shape[0]), interpolation=cv2.INTER_LINEAR)
    relief = (texture[2] - np.float32(128.0)) * np.float32(1 / 28.0)
    colour *= shade * (np.float32(1.0) + np.float32(0.09) * relief) * (c.light_on_fluke * planes(c.light, grey))
    wet = np.clip(relief - np.float32(0.9), 0.0, 2.0) * np.float32(0.10 * c.gloss) + np.float32(0.012)
    return np.asarray(colour + wet * planes(c.sky, grey), np.float32)


def _base(base: npt.NDArray[np.float64], notch: npt.NDArray[np.float64], line: Field) -> npt.NDArray[np.float64]:
    """The base landmark, moved up the seam to the surface where it lies under water."""
    for t in np.linspace(0.0, 1.0, 65):
        point = base + (notch - base) * t
        column = int(np.clip(point[0], 0, len(line) - 1))
        if point[1] <= line[column]:
            return np.asarray(point, np.float64)
    return notch


def _turned(
    picture: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], marks: npt.NDArray[np.float32], angle: float
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Turn a finished picture as people do to level a fluke: white corners, nothing cut off beyond the old frame."""
    height, width = mask.shape
    shrink = 1.0 / (1.0 + 0.6 * abs(np.sin(angle)))
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), float(np.degrees(angle)), shrink)
    turned = cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=(255, 255, 255))
    flags = cv2.warpAffine(mask.astype(np.uint8) * 255, matrix, (width, height), flags=cv2.INTER_LINEAR)
    moved = marks @ matrix[:, :2].T + matrix[:, 2]
    return np.asarray(turned, np.uint8), np.asarray(flags > 127), moved.astype(np.float32)
