"""One photo taken in for a comparison: what the embedder sees, keypoints of the animal and of its surroundings.

The way is enrolment's and the query's: `intake` reads the photo, places the box and cuts the embedder's crop; the
keypoints come from the box. Beside them stands a window `WIDER` around the box, so that evidence that is not the
animal's can be seen. Knows one photo at a time. Must not know stores, identities or what it is compared with.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid import crop, images, intake, learned
from reid.crop import PLAIN, View
from reid.errors import InputError
from reid.explain import Pixels
from reid.heatmap import GRID, Occluded, occlude
from reid.images import printable
from reid.keypoints import KeypointConfig, LocalFeatures, describe, mirrored
from reid.models import Preprocessing
from reid.pictures import enlarged
from reid.records import Box, Sighting
from reid.verify import VerifyConfig

WIDER = 0.3
"""Of the box's size, on each side: how far around the animal is looked for evidence that is not the animal's."""
SIDE = 640
"""Pixels of the box's long side that are decoded, where the photo has them."""
LARGEST = 1024
"""Pixels of the window's long side at most."""

Crops = NDArray[np.uint8]
Vectors = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Eye:
    """How photos are embedded: `embed` takes `(N, H, W, 3) uint8 RGB` crops, cut as `preprocessing` says, to unit rows
    as the store compares them. Where it looks by several `views`, the plain one first, `joined` takes the `(V, H, W, 3)`
    crops of one box to the one row `(1, D)` that serves; heat maps are of the plain view.
    """

    preprocessing: Preprocessing
    embed: Callable[[Crops], Vectors]
    views: tuple[View, ...] = (PLAIN,)
    joined: Callable[[Crops], Vectors] | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """What to look for and how."""

    matches: bool = True  # False: neither matches nor overlay
    warp: bool = True  # False: no overlay
    heat: bool = True  # False: no heat maps, which take most of the time
    mirror: bool = False  # True: the first photo is also tried mirrored, for a flipped scan
    grid: int = GRID  # patches a side of the heat maps
    sparse: bool = False  # True: every other patch only, for many pairs at a time
    keypoints: KeypointConfig = field(default_factory=KeypointConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A photo that was looked at. `window (H, W, 3)` is the box and what is `WIDER` around it; `frame` XYXY the box in
    its pixels, and `inside (H, W)` the animal: the mask where there is one, else the box.

    `near` are the keypoints of the box alone, in pixels of the box; `wide` those of the whole window. `view` is the
    crop as the embedder sees it (`crop`), in its true shape, and `crop_inside` the animal in `crop`. `vector (D,)` is
    its embedding, `occluded` those of the plain view under patches. `box` is in pixels of the photo, None for the whole photo.
    """

    name: str
    box: Box | None
    window: Pixels
    frame: tuple[int, int, int, int]
    inside: Bools
    near: LocalFeatures | None
    wide: LocalFeatures | None
    view: Pixels
    crop_inside: Bools
    vector: Vectors
    occluded: Occluded | None
    knows_outside: bool
    seconds: float


def look(
    path: Path,
    eye: Eye,
    options: Options,
    *,
    box: Box | None = None,
    mask: Bools | None = None,
    name: str = "",
) -> Seen:
    """Take one photo in. `box` in pixels of the upright photo (None: all of it); `mask (H, W)`, of the upright photo's
    size, True on the animal.

    Raises:
        PhotoError: the photo cannot be used.
        InputError: the box lies outside it, or the mask is of another size.
    """
    start = time.perf_counter()
    prepared = intake.prepare([Sighting(path, name or printable(path), box=box)], eye.preprocessing, eye.views)
    if not prepared.boxes:
        problem = prepared.failures[0]
        raise InputError(problem.message, source=problem.source, next_step=problem.next_step)
    placed, facts = prepared.boxes[0], prepared.facts
    if mask is not None and mask.shape != (facts.height, facts.width):
        raise InputError(
            f"the mask is {mask.shape[1]}×{mask.shape[0]} pixels, the photo {facts.width}×{facts.height}",
            source=printable(path),
            next_step="give a mask of the upright photo's size",
        )
    decoded = images.read(path, box=placed, target=SIDE)
    animal = _animal(decoded.pixels.shape[:2], placed, decoded.scale, mask)
    window, frame, inside = _window(decoded.pixels, placed, decoded.scale, animal)
    whole = placed.origin == "whole"
    near, wide = None, None
    if options.matches:
        near = _as_asked(path, placed, mask, eye.preprocessing, frame, options)
        bare = (frame[3] - frame[1], frame[2] - frame[0]) == window.shape[:2] and mask is None
        wide = near if bare else _described(window, None, options, max(window.shape[:2]) / _long(frame))
    view, crop_inside = _embedded_view(decoded.pixels, placed, decoded.scale, animal, eye.preprocessing)
    occluded = occlude(prepared.crops[0], eye.embed, grid=options.grid, sparse=options.sparse) if options.heat else None
    return Seen(
        name or path.name,
        None if whole else placed,
        window,
        frame,
        inside,
        near,
        wide,
        view,
        crop_inside,
        (eye.joined or eye.embed)(prepared.crops)[0] if occluded is None or eye.joined else occluded.vector,
        occluded,
        mask is not None or not whole,
        time.perf_counter() - start,
    )


def flipped(seen: Seen) -> Seen:
    """Left and right exchanged in what matches are drawn on."""
    width = seen.window.shape[1]
    x0, y0, x1, y1 = seen.frame
    return replace(
        seen,
        window=np.ascontiguousarray(seen.window[:, ::-1]),
        frame=(width - x1, y0, width - x0, y1),
        inside=np.ascontiguousarray(seen.inside[:, ::-1]),
        near=None if seen.near is None else mirrored(seen.near),
        wide=None if seen.wide is None else mirrored(seen.wide),
    )


def _animal(size: tuple[int, ...], box: Box, scale: float, mask: Bools | None) -> Pixels:
    """The decoded photo's size, `(H, W, 3)`, 255 on the animal: a picture, so that it can be cut as the photo is."""
    out = np.zeros((*size[:2], 3), np.uint8)
    x0, y0, x1, y1 = (round(v * scale) for v in (box.x0, box.y0, box.x1, box.y1))
    out[max(y0, 0) : max(y1, y0 + 1), max(x0, 0) : max(x1, x0 + 1)] = 255
    if mask is None:
        return out
    fitted = enlarged(mask.astype(np.uint8) * np.uint8(255), size[1], size[0])
    return np.asarray(np.where(fitted[:, :, None] >= 128, out, 0), np.uint8)


def _window(pixels: Pixels, box: Box, scale: float, animal: Pixels) -> tuple[Pixels, tuple[int, int, int, int], Bools]:
    """The box and what is around it, at most `LARGEST` pixels long; the box in it, and the animal in it."""
    height, width = pixels.shape[:2]
    dx, dy = WIDER * box.width, WIDER * box.height
    x0, y0 = max(0, round((box.x0 - dx) * scale)), max(0, round((box.y0 - dy) * scale))
    x1 = min(width, max(x0 + 1, round((box.x1 + dx) * scale)))
    y1 = min(height, max(y0 + 1, round((box.y1 + dy) * scale)))
    cut, inside = pixels[y0:y1, x0:x1], animal[y0:y1, x0:x1, 0]
    factor = min(1.0, LARGEST / max(cut.shape[:2]))
    if factor < 1:
        size = max(1, round(cut.shape[1] * factor)), max(1, round(cut.shape[0] * factor))
        cut, inside = enlarged(cut, *size), enlarged(inside, *size)
    high, wide = cut.shape[:2]
    left, top = (
        int(np.clip(round((v * scale - o) * factor), 0, n - 1)) for v, o, n in ((box.x0, x0, wide), (box.y0, y0, high))
    )
    right = int(np.clip(round((box.x1 * scale - x0) * factor), left + 1, wide))
    bottom = int(np.clip(round((box.y1 * scale - y0) * factor), top + 1, high))
    return np.ascontiguousarray(cut), (left, top, right, bottom), inside >= 128


def _as_asked(
    path: Path,
    box: Box,
    mask: Bools | None,
    preprocessing: Preprocessing,
    frame: tuple[int, int, int, int],
    options: Options,
) -> LocalFeatures:
    """Keypoints of the box from the very pixels that a query and an enrolment describe, in pixels of `frame`."""
    photo, config = images.load(path), options.keypoints
    decoded = images.read(photo, box=box, target=intake.target_of(preprocessing, config, box))
    coarse = intake.described_scale(photo, config, box)
    found = _described(*intake.region(decoded, box, mask, coarse), options)
    width, height = frame[2] - frame[0], frame[3] - frame[1]
    by = np.array([width / max(1, found.width), height / max(1, found.height)], np.float32)
    return replace(
        found, xy=found.xy * by, scale=found.scale * np.float32(np.sqrt(by.prod())), height=height, width=width
    )


def _long(frame: tuple[int, int, int, int]) -> int:
    """The longer side of a box in pixels."""
    return max(frame[2] - frame[0], frame[3] - frame[1])


def _described(crop: Pixels, mask: Pixels | Bools | None, options: Options, wider: float = 1.0) -> LocalFeatures:
    """What geometry compares: of a window `wider` times the box's size, twice as many points at the same scale."""
    network, config = options.verify.learned, options.keypoints
    times = 1 if wider == 1.0 else 2
    if network is not None:
        wide = replace(
            network,
            long_side=round(network.long_side * wider),
            min_long_side=round(network.min_long_side * wider),
            max_keypoints=times * network.max_keypoints,
        )
        return learned.describe(crop, mask, wide)
    changed = replace(
        config,
        long_side=round(config.long_side * wider),
        min_long_side=round(config.min_long_side * wider),
        max_keypoints=times * config.max_keypoints,
    )
    return describe(crop, mask, changed)


def _embedded_view(
    pixels: Pixels, box: Box, scale: float, animal: Pixels, preprocessing: Preprocessing
) -> tuple[Pixels, Bools]:
    """What the embedder sees, in its true shape, and the animal in the embedder's own crop."""
    both = (scale, scale)
    mask = crop.cut(animal, box, replace(preprocessing, mean=(0.0, 0.0, 0.0)), scale=both)[:, :, 0] >= 128
    shape = (preprocessing.width, preprocessing.height)
    if preprocessing.shape == "squash":
        height, width = pixels.shape[:2]
        dx, dy = preprocessing.margin * box.width, preprocessing.margin * box.height
        shown = (
            (min(box.x1 + dx, width / scale) - max(box.x0 - dx, 0)) * scale,
            (min(box.y1 + dy, height / scale) - max(box.y0 - dy, 0)) * scale,
        )
        shape = (max(1, round(shown[0])), max(1, round(shown[1])))
    factor = SIDE / max(shape)
    size = replace(preprocessing, width=max(1, round(shape[0] * factor)), height=max(1, round(shape[1] * factor)))
    return crop.cut(pixels, box, size, scale=both), mask
