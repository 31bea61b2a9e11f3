"""Photos with boxes and points for training a cropper: a user's own, and what lies beside the animals in them.

Photos are kept as squashed squares `(N, S, S, 3) uint8 RGB`; whatever lies in them is in shares of the square, x to
the right and y down, so 0 to 1 inside the photo. An animal comes with an outline: the extreme points of its mask in
`DIRECTIONS` directions. The tight box of a turned and sheared animal then follows exactly from the turned outline, which
the turned corners of its box would not give.

Landmarks are left tip, notch, right tip and base, as they lie in the picture.

Knows pixels and points; no renderer, no networks, and not how photos are varied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid import images
from reid.errors import PhotoError
from reid.locate import squash
from reid.records import Box, Failure

Pixels = NDArray[np.uint8]
Points = NDArray[np.float32]
Progress = Callable[[str, int, int], None]

STORED = 160  # pixels a side of a kept photo
DIRECTIONS = 32  # extreme points kept of an outline
STRIP = 0.2  # of a photo's area, the least that counts as background
STREAM = 61  # of random numbers, for this training's photos


@dataclass(frozen=True, slots=True, eq=False)
class Photos:
    """N photos. `outline (N, DIRECTIONS, 2)` and `landmarks (N, 4, 2)` float32, shares of the photo; `animal (N,)` bool:
    there is one at all; `marked (N,)` bool: its landmarks are known; `shaped (N,)` bool: its outline is one, and not
    only the corners of a box; `group (N,)` int64: photos of one animal have one number, and stay in one fold.
    """

    pixels: Pixels
    outline: Points
    landmarks: Points
    animal: NDArray[np.bool_]
    marked: NDArray[np.bool_]
    shaped: NDArray[np.bool_]
    group: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pixels)

    @classmethod
    def none(cls) -> Photos:
        """No photos."""
        return cls.without(np.zeros((0, STORED, STORED, 3), np.uint8))

    @classmethod
    def without(cls, pixels: Pixels) -> Photos:
        """Photos `(N, STORED, STORED, 3)` without an animal, each a group of its own."""
        n = len(pixels)
        no = np.zeros(n, np.bool_)
        outline, marks = np.zeros((n, DIRECTIONS, 2), np.float32), np.zeros((n, 4, 2), np.float32)
        return cls(pixels, outline, marks, no, no, no, np.arange(n))

    def part(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Photos:
        """Those at the places `chosen`."""
        return Photos(*(getattr(self, f.name)[chosen] for f in fields(self)))


def joined(parts: Sequence[Photos]) -> Photos:
    """Several sets as one; groups of different sets stay apart."""
    shifted, top = [], 0
    for part in parts:
        shifted.append(replace(part, group=part.group + top))
        top += int(part.group.max(initial=-1)) + 1
    return Photos(*(np.concatenate([getattr(part, f.name) for part in shifted]) for f in fields(Photos)))


def beside(photos: Photos) -> Photos:
    """What lies beside the animals, as photos without one: of each photo the largest strip left or right of, above or
    below the box, where it is at least `STRIP` of the photo.
    """
    pixels = []
    for one, (x0, y0, x1, y1) in zip(photos.pixels, box_of(photos.outline) * STORED, strict=True):
        strips = [one[:, : int(x0)], one[:, int(np.ceil(x1)) :], one[: int(y0)], one[int(np.ceil(y1)) :]]
        largest = max(strips, key=lambda strip: strip.shape[0] * strip.shape[1])
        if largest.size >= STRIP * one.size:
            pixels.append(squash(largest, STORED))
    return Photos.without(np.stack(pixels) if pixels else np.zeros((0, STORED, STORED, 3), np.uint8))


def scrambled(photos: Photos, *, seed: int) -> Photos:
    """The same photos cut into tiles that are dealt anew: all that an animal's photo is made of, and no animal."""
    made = []
    for number, one in enumerate(photos.pixels):
        rng = np.random.default_rng([STREAM, seed, number, 2])
        n = int(rng.choice((4, 5, 8)))
        size = STORED // n
        tiles = one[: n * size, : n * size].reshape(n, size, n, size, 3).swapaxes(1, 2).reshape(n * n, size, size, 3)
        dealt = tiles[rng.permutation(n * n)].reshape(n, n, size, size, 3).swapaxes(1, 2)
        made.append(squash(dealt.reshape(n * size, n * size, 3), STORED))
    return Photos.without(np.stack(made)) if made else Photos.none()


def boxed(
    photos: Sequence[tuple[Path, Box, tuple[int, int] | None]],
    groups: Sequence[int],
    *,
    progress: Progress | None = None,
) -> tuple[Photos, list[Failure]]:
    """A user's photos with their boxes, drawn in a photo of the size (width, height) given, None for its own. Those that
    cannot be read are left out and named.
    """
    kept: list[tuple[Pixels, Points, int]] = []
    failures = []
    for number, ((path, box, drawn), group) in enumerate(zip(photos, groups, strict=True)):
        try:
            loaded = images.load(path)
            pixels = images.read(loaded, target=(STORED, STORED)).pixels
        except PhotoError as error:
            failures.append(Failure(str(path), error.code, error.message, error.next_step))
            continue
        width, height = drawn or (loaded.facts.width, loaded.facts.height)
        x0, y0, x1, y1 = np.clip(np.array([box.x0, box.y0, box.x1, box.y1]) / (width, height, width, height), 0, 1)
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float32)
        kept.append((squash(pixels, STORED), np.resize(corners, (DIRECTIONS, 2)), group))
        if progress is not None and number % 50 == 49:
            progress("photos", number + 1, len(photos))
    n = len(kept)
    yes, no = np.ones(n, np.bool_), np.zeros(n, np.bool_)
    return Photos(
        np.stack([p for p, _, _ in kept]) if n else np.zeros((0, STORED, STORED, 3), np.uint8),
        np.stack([o for _, o, _ in kept]) if n else np.zeros((0, DIRECTIONS, 2), np.float32),
        np.zeros((n, 4, 2), np.float32),
        yes,
        no,
        no,
        np.array([g for _, _, g in kept], np.int64),
    ), failures


def outline_of(mask: NDArray[np.bool_]) -> Points:
    """The mask's extreme points, `(DIRECTIONS, 2)` in shares of the picture; NaN where nothing is set.

    Pixels count with their corners, so that the outline's box is the mask's tight box.
    """
    height, width = mask.shape
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return np.full((DIRECTIONS, 2), np.nan, np.float32)
    first, last = mask[rows].argmax(axis=1), width - mask[rows][:, ::-1].argmax(axis=1)
    ends = [np.stack([x, y], -1) for x in (first, last) for y in (rows, rows + 1)]
    points = np.concatenate(ends).astype(np.float32)
    angles = np.arange(DIRECTIONS) * (2 * np.pi / DIRECTIONS)
    far = (points @ np.stack([np.cos(angles), np.sin(angles)])).argmax(axis=0)
    return np.asarray(points[far] / np.array([width, height], np.float32), np.float32)


def box_of(outline: Points) -> Points:
    """The box of outlines `(..., D, 2)`, clipped to the photo: `(..., 4)` XYXY."""
    low, high = outline.min(axis=-2), outline.max(axis=-2)
    return np.asarray(np.clip(np.concatenate([low, high], axis=-1), 0.0, 1.0), np.float32)
