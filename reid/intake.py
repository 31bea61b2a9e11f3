"""One photo's way from bytes to crops, shared by enrolment and query so that both see exactly the same pixels.

`prepare` reads a file once, takes its facts and its perceptual hash, places the boxes, and cuts the views an embedder
wants. `prepare_all` does so on several threads (decoding releases the interpreter), in order, a few photos ahead of
whoever takes them. Knows files and crops; no names, no stores.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from reid import crop, images, keypoints, masks
from reid.errors import InputError, ReidError
from reid.exchange import failure_of, fit_box
from reid.keypoints import KeypointConfig, LocalFeatures
from reid.locate import Croppers, Located, Locator
from reid.models import Preprocessing
from reid.records import Box, Failure, PhotoFacts, Sighting

AHEAD = 24  # photos prepared in advance; bounds memory

_SPARE = 120  # per cent of the side to which a box is reduced for its local features, to be decoded at least
WITHOUT_MASK = "; the photo is used without it"  # ends the message of a mask that cannot be used
NO_CROP = Preprocessing(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""For `prepare` without views: what is cut where nothing is to be embedded."""
Describe = Callable[[NDArray[np.uint8], NDArray[np.uint8] | None], LocalFeatures | None]  # crop, mask of its size


@dataclass(frozen=True, slots=True)
class Prepared:
    """A photo ready to embed: one box for each sighting that could be placed, `crops (boxes · views, H, W, 3) uint8
    RGB`.

    `facts` carry the perceptual hash, and the table's time and place where it gave them. `local` are the local features
    of each box, empty where none were asked for. `failures` are the sightings whose box could not be placed. `qualities`
    say of each box how far the folds of a cropper agreed on it (1: wholly), None where no cropper drew it.
    """

    facts: PhotoFacts
    mtime_ns: int | None
    sightings: tuple[Sighting, ...]
    boxes: tuple[Box, ...]
    crops: NDArray[np.uint8]
    failures: tuple[Failure, ...] = ()
    local: tuple[LocalFeatures, ...] = ()
    qualities: tuple[float | None, ...] = ()
    further: tuple[LocalFeatures | None, ...] = ()  # of another kind, None where they could not be had
    masks: tuple[bytes | None, ...] = ()  # PNGs of the upright photo's size, None where nothing is said


Find = Callable[
    [Sighting], Box | None
]  # the box of a sighting that has none; None: there is nothing to enrol or to ask


def by_photo(sightings: Sequence[Sighting]) -> list[tuple[Sighting, ...]]:
    """Sightings grouped by file, in order of first mention: a photo with several animals is read once."""
    groups: dict[str, list[Sighting]] = {}
    for sighting in sightings:
        groups.setdefault(os.path.abspath(sighting.path), []).append(sighting)
    return [tuple(group) for group in groups.values()]


@dataclass(frozen=True, slots=True, eq=False)
class Masked:
    """Sightings of a photo whose masks are pixels now: `(H, W) bool` of the upright photo. One that had a mask and no
    box has the box around it. Masks that cannot be used are among the `failures`, and their sightings go on without; one
    without a box whose mask is empty is left out, for it says that there is no animal.
    """

    sightings: tuple[Sighting, ...]
    failures: tuple[Failure, ...]
    _drawn: dict[int, NDArray[np.bool_]]

    def of(self, sighting: Sighting) -> NDArray[np.bool_] | None:
        """The mask of one of `sightings`, None where it has none."""
        return self._drawn.get(id(sighting))

    def encoded(
        self, sightings: Sequence[Sighting], boxes: Sequence[Box]
    ) -> dict[tuple[float, float, float, float], bytes]:
        """PNGs of those of `sightings` that have a mask, by the corners of their boxes."""
        pairs = ((self.of(sighting), box) for sighting, box in zip(sightings, boxes, strict=True))
        return {(b.x0, b.y0, b.x1, b.y1): masks.encoded(mask) for mask, b in pairs if mask is not None}


def with_masks(sightings: Sequence[Sighting], width: int, height: int) -> Masked:
    """The masks of sightings in a photo of this upright size."""
    kept, failures, drawn = [], [], {}
    for sighting in sightings:
        if sighting.mask is not None:
            try:
                mask = masks.raster(sighting.mask, width, height, sighting.declared_size, sighting.where)
            except ReidError as error:
                unusable = failure_of(error)
                failures.append(replace(unusable, message=unusable.message + WITHOUT_MASK))
                kept.append(replace(sighting, mask=None))
                continue
            corners = masks.bounds(mask)
            if corners is None:
                failures.append(_empty(sighting))
                if sighting.box is not None:
                    kept.append(replace(sighting, mask=None))
                continue
            if sighting.box is None:
                sighting = replace(sighting, box=Box(*corners), declared_size=None)
            drawn[id(sighting)] = mask
        kept.append(sighting)
    return Masked(tuple(kept), tuple(failures), drawn)


def _empty(sighting: Sighting) -> Failure:
    """Said of a mask in which nothing is marked."""
    message, step = "its mask is empty: no animal is marked", "mark the animal, or leave the mask away"
    if sighting.box is not None:
        return Failure(sighting.where, InputError.code, message + WITHOUT_MASK, step)
    return Failure(sighting.where, "no_detection", message, step)


def place_boxes(
    sightings: Sequence[Sighting], width: int, height: int, find: Find | None = None
) -> tuple[list[Sighting], list[Box], list[Failure]]:
    """The box of each sighting in pixels of the upright photo: the table's, fitted, else the one that `find` gives, the
    whole photo where there is no `find`; and the failures, of boxes that do not fit and of animals that `find` does not.
    """
    kept, boxes, failures = [], [], []
    for sighting in sightings:
        try:
            box = sighting.box and fit_box(sighting.box, width, height, sighting.where, sighting.declared_size)
        except ReidError as error:
            failures.append(failure_of(error))
            continue
        box = box or (crop.whole(width, height) if find is None else find(sighting))
        if box is None:
            failures.append(no_animal(sighting))
            continue
        kept.append(sighting)
        boxes.append(box)
    return kept, boxes, failures


def no_animal(sighting: Sighting) -> Failure:
    """Said of a photo in which no animal was found, where a whole photo is not to serve."""
    return Failure(
        sighting.where,
        "no_detection",
        "no animal was found in the photo",
        'give its box, or set when_none = "whole" under [crop] in reid.toml',
    )


def prepare(
    sightings: Sequence[Sighting],
    preprocessing: Preprocessing,
    views: tuple[crop.View, ...] = (crop.PLAIN,),
    describe: KeypointConfig | None = None,
    croppers: Croppers | None = None,
    further: Describe | None = None,
) -> Prepared:
    """Read one photo and cut its animals; all `sightings` are of that file. With `describe`, local features as well;
    with `croppers`, boxes for sightings that have none, and landmarks for views that want them; with `further`, local
    features of another kind beside the first. Where there is a mask, keypoints are those within it.

    Raises:
        PhotoError: the photo cannot be used.
    """
    path = sightings[0].path
    mtime = _mtime(path)
    loaded = images.load(path)
    facts = loaded.facts
    finder = _Finder(loaded, croppers) if croppers is not None else None
    masked = with_masks(sightings, facts.width, facts.height)
    kept, boxes, failures = place_boxes(masked.sightings, facts.width, facts.height, finder)
    failures[:0] = masked.failures
    smallest = min(boxes, key=lambda box: box.width * box.height) if boxes else None
    decoded = images.read(loaded, box=smallest, target=target_of(preprocessing, describe, smallest))
    scale = (decoded.scale, decoded.scale)
    marks = _landmarks(decoded.pixels, kept, boxes, scale, views, croppers)
    cut = [
        crop.cut_views(decoded.pixels, box, preprocessing, views, scale=scale, landmarks=points)
        for box, points in zip(boxes, marks, strict=True)
        if views
    ]
    empty = np.empty((0, preprocessing.height, preprocessing.width, 3), np.uint8)
    first = sightings[0]
    facts = replace(
        facts,
        path=Path(os.path.abspath(path)),
        phash=images.perceptual_hash(decoded.pixels),
        notes=decoded.notes,
        taken_at=first.taken_at or facts.taken_at,
        latitude=facts.latitude if first.latitude is None else first.latitude,
        longitude=facts.longitude if first.longitude is None else first.longitude,
    )
    local: list[LocalFeatures] = []
    more: list[LocalFeatures | None] = []
    drawn = [masked.of(sighting) for sighting in kept]
    if describe is not None:
        coarse = described_scale(loaded, describe, smallest)
        for box, mask in zip(boxes, drawn, strict=True):
            pixels, inside = region(decoded, box, mask, coarse)
            local.append(keypoints.describe(pixels, inside, describe))
            more += [further(pixels, inside)] if further is not None else []
    pngs = tuple(None if mask is None else masks.encoded(mask) for mask in drawn)
    qualities = tuple(finder.quality(box) if finder else None for box in boxes)
    crops = np.concatenate([empty, *cut])
    return Prepared(
        facts, mtime, tuple(kept), tuple(boxes), crops, tuple(failures), tuple(local), qualities, tuple(more), pngs
    )


def described_scale(photo: images.LoadedPhoto, describe: KeypointConfig, smallest: Box | None) -> float:
    """Pixels per pixel of the original from which a photo's boxes are described. It hangs on the photo and on
    `describe` alone, so that a gallery described long ago, beside another embedder, holds what a query has.
    """
    if not describe.long_side:
        return 1.0
    return images.scale_for(photo, box=smallest, target=_SPARE * describe.long_side // 100)


def target_of(preprocessing: Preprocessing, describe: KeypointConfig | None, smallest: Box | None) -> tuple[int, int]:
    """Width and height in pixels that a photo's smallest box needs, for the embedder and, with `describe`, for that."""
    target = preprocessing.finest
    if describe is None:
        return target
    tall = smallest is not None and smallest.height > smallest.width
    long = _SPARE * describe.long_side // 100
    return (target[0], max(target[1], long)) if tall else (max(target[0], long), target[1])


def region(
    decoded: images.DecodedPhoto, box: Box, mask: NDArray[np.bool_] | None, coarse: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """What is described of a decoded photo: its box at the scale `coarse` (that of the photo or below), and the photo's
    mask as the box is cut, where there is one.
    """
    scale = (decoded.scale, decoded.scale)
    pixels = crop.region(decoded.pixels, box, scale=scale)
    inside = None if mask is None else _inside(mask, box, decoded.pixels.shape[:2], scale)
    by = coarse / decoded.scale
    if by >= 1:
        return pixels, inside
    size = max(1, round(pixels.shape[1] * by)), max(1, round(pixels.shape[0] * by))
    pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    if inside is not None:
        inside = np.asarray(cv2.resize(inside, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    return pixels, inside


def _inside(
    mask: NDArray[np.bool_], box: Box, decoded: tuple[int, ...], scale: tuple[float, float]
) -> NDArray[np.uint8]:
    """The mask, cut as the box is cut from a photo decoded to this size (height, width)."""
    small = cv2.resize(mask.astype(np.uint8), (decoded[1], decoded[0]), interpolation=cv2.INTER_NEAREST)
    return crop.region(np.asarray(small, np.uint8), box, scale=scale)


class _Finder:
    """Finds the animal of one photo, read at the croppers' size, and only if it has to be found."""

    def __init__(self, photo: images.LoadedPhoto, croppers: Croppers) -> None:
        self._photo, self._croppers = photo, croppers
        self._found: dict[Locator, Located] = {}

    def __call__(self, sighting: Sighting) -> Box | None:
        """See `Find`."""
        facts = self._photo.facts
        locator = self._croppers.of(sighting.species)
        if locator is not None:
            if locator not in self._found:
                side = 2 * locator.card.side  # it may look again, closer
                pixels = images.read(self._photo, target=(side, side)).pixels
                self._found[locator] = locator.locate(pixels, (facts.width, facts.height))
            found = self._found[locator]
            if found.confidence >= self._croppers.confidence:
                return found.box
            if not self._croppers.whole:
                return None
        return crop.whole(facts.width, facts.height)

    def quality(self, box: Box) -> float | None:
        """1 where the folds agreed on a box that was found here; None for other boxes."""
        return next((1.0 - found.spread for found in self._found.values() if found.box is box), None)


def _landmarks(
    pixels: NDArray[np.uint8],
    sightings: Sequence[Sighting],
    boxes: Sequence[Box],
    scale: tuple[float, float],
    views: tuple[crop.View, ...],
    croppers: Croppers | None,
) -> list[NDArray[np.float32] | None]:
    """The landmarks of each box where a view wants them and they are found."""
    if croppers is None or not any(view.aligned for view in views):
        return [None] * len(boxes)
    locators = [croppers.of(sighting.species) for sighting in sightings]
    return [
        None if locator is None else locator.landmarks_in(pixels, box, scale)
        for locator, box in zip(locators, boxes, strict=True)
    ]


def prepare_all(
    photos: Sequence[Sequence[Sighting]],
    preprocessing: Preprocessing,
    views: tuple[crop.View, ...],
    *,
    workers: int = 0,
    describe: KeypointConfig | None = None,
    croppers: Croppers | None = None,
    further: Describe | None = None,
) -> Iterator[Prepared | Failure]:
    """`prepare` for each photo, in order; one that cannot be used becomes a Failure. `workers` 0: one a processor."""
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        waiting: deque[Future[Prepared | Failure]] = deque()
        try:
            for group in photos:
                waiting.append(pool.submit(_attempt, group, preprocessing, views, describe, croppers, further))
                if len(waiting) >= AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()


def _attempt(
    sightings: Sequence[Sighting],
    preprocessing: Preprocessing,
    views: tuple[crop.View, ...],
    describe: KeypointConfig | None,
    croppers: Croppers | None,
    further: Describe | None,
) -> Prepared | Failure:
    try:
        return prepare(sightings, preprocessing, views, describe, croppers, further)
    except ReidError as error:
        return failure_of(error)
    except Exception as error:  # a library's trouble with one photo must not cost the others
        return Failure(
            "; ".join(dict.fromkeys(str(one.path) for one in sightings)), "error",
            f"the photo could not be prepared ({type(error).__name__}: {error})",
            "save it anew as a JPEG; if that does not help, report it with this message",
        )  # fmt: skip


def _mtime(path: Path) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None
