"""One photo's way from bytes to crops, shared by enrolment and query so that both see exactly the same pixels.

`prepare` reads a file once, takes its facts and its perceptual hash, places the boxes, and cuts the views an embedder
wants. `prepare_all` does so on several threads (decoding releases the interpreter), in order, a few photos ahead of
whoever takes them. Knows files and crops; no names, no stores.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid import crop, images, keypoints
from reid.errors import ReidError
from reid.exchange import failure_of, fit_box
from reid.keypoints import KeypointConfig, LocalFeatures
from reid.models import Preprocessing
from reid.records import Box, Failure, PhotoFacts, Sighting

AHEAD = 24  # photos prepared in advance; bounds memory


@dataclass(frozen=True, slots=True)
class Prepared:
    """A photo ready to embed: one box for each sighting that could be placed, `crops (boxes · views, H, W, 3) uint8
    RGB`.

    `facts` carry the perceptual hash, and the table's time and place where it gave them. `local` are the local features
    of each box, empty where none were asked for. `failures` are the sightings whose box could not be placed.
    """

    facts: PhotoFacts
    mtime_ns: int | None
    sightings: tuple[Sighting, ...]
    boxes: tuple[Box, ...]
    crops: NDArray[np.uint8]
    failures: tuple[Failure, ...] = ()
    local: tuple[LocalFeatures, ...] = ()


def by_photo(sightings: Sequence[Sighting]) -> list[tuple[Sighting, ...]]:
    """Sightings grouped by file, in order of first mention: a photo with several animals is read once."""
    groups: dict[str, list[Sighting]] = {}
    for sighting in sightings:
        groups.setdefault(os.path.abspath(sighting.path), []).append(sighting)
    return [tuple(group) for group in groups.values()]


def place_boxes(
    sightings: Sequence[Sighting], width: int, height: int
) -> tuple[list[Sighting], list[Box], list[Failure]]:
    """The box of each sighting in pixels of the upright photo: the table's, fitted, or the whole photo; and those that
    do not fit.
    """
    kept, boxes, failures = [], [], []
    for sighting in sightings:
        try:
            box = sighting.box and fit_box(sighting.box, width, height, sighting.where, sighting.declared_size)
        except ReidError as error:
            failures.append(failure_of(error))
            continue
        kept.append(sighting)
        boxes.append(box or crop.whole(width, height))
    return kept, boxes, failures


def prepare(
    sightings: Sequence[Sighting],
    preprocessing: Preprocessing,
    views: tuple[crop.View, ...] = (crop.PLAIN,),
    describe: KeypointConfig | None = None,
) -> Prepared:
    """Read one photo and cut its animals; all `sightings` are of that file. With `describe`, local features as well.

    Raises:
        PhotoError: the photo cannot be used.
    """
    path = sightings[0].path
    mtime = _mtime(path)
    loaded = images.load(path)
    facts = loaded.facts
    kept, boxes, failures = place_boxes(sightings, facts.width, facts.height)
    smallest = min(boxes, key=lambda box: box.width * box.height) if boxes else None
    target = (preprocessing.width, preprocessing.height)
    if describe is not None:
        tall = smallest is not None and smallest.height > smallest.width
        long = describe.long_side
        target = (target[0], max(target[1], long)) if tall else (max(target[0], long), target[1])
    decoded = images.read(loaded, box=smallest, target=target)
    scale = (decoded.scale, decoded.scale)
    cut = [crop.cut_views(decoded.pixels, box, preprocessing, views, scale=scale) for box in boxes if views]
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
    local: tuple[LocalFeatures, ...] = ()
    if describe is not None:
        regions = (crop.region(decoded.pixels, box, scale=scale) for box in boxes)
        local = tuple(keypoints.describe(pixels, None, describe) for pixels in regions)
    return Prepared(facts, mtime, tuple(kept), tuple(boxes), np.concatenate([empty, *cut]), tuple(failures), local)


def prepare_all(
    photos: Sequence[Sequence[Sighting]],
    preprocessing: Preprocessing,
    views: tuple[crop.View, ...],
    *,
    workers: int = 0,
    describe: KeypointConfig | None = None,
) -> Iterator[Prepared | Failure]:
    """`prepare` for each photo, in order; one that cannot be used becomes a Failure. `workers` 0: one a processor."""
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        waiting: deque[Future[Prepared | Failure]] = deque()
        try:
            for group in photos:
                waiting.append(pool.submit(_attempt, group, preprocessing, views, describe))
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
) -> Prepared | Failure:
    try:
        return prepare(sightings, preprocessing, views, describe)
    except ReidError as error:
        return failure_of(error)


def _mtime(path: Path) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None
