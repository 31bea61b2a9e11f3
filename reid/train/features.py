"""Vectors of augmented views of every photo, computed once and kept: what heads are trained on within minutes.

A photo gives V views; view 0 is the plain crop of the production path, the others are augmented; each comes as it is
and mirrored. So one photo is an array `(V, 2, D)`, `[:, 0]` upright and `[:, 1]` mirrored. The views of a photo depend
on its key and the seed alone, not on its place in the list.

    <folder>/<digest of model, augmentation, number of views, seed>/
      vectors.f16   one row of V·2·D float16 (little-endian) for each photo, appended
      keys.txt      the photos' keys, one a line, in the same order

An interrupted run goes on where it stopped: whatever was appended whole is kept. Photos that cannot be read are
reported and left out.

Knows pixels, boxes and vectors; no identities.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from reid import crop, images
from reid.embed import Embedder
from reid.errors import PhotoError, TrainError
from reid.models import Preprocessing
from reid.records import Box, Failure

Pixels = NDArray[np.uint8]
Progress = Callable[[int, int], None]  # photos done, photos in all

_BLOCK = 32  # photos embedded and appended at once
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How views differ from the plain crop; 0 switches a kind off. Angles in degrees, the rest in shares.

    Each view draws uniformly within ±rotate, ±shear, ±shift (of the box), a widening of the box from −widen to +widen,
    a factor of 1 ± light on brightness and 1 ± contrast; `grey`, `jpeg` and `shrink` are probabilities of losing the
    colours, of JPEG artefacts (quality 30 to 80) and of having been photographed two to three times smaller.
    """

    rotate: float = 8.0
    shear: float = 6.0
    shift: float = 0.04
    widen: float = 0.08
    light: float = 0.25
    contrast: float = 0.25
    grey: float = 0.2
    jpeg: float = 2 / 9
    shrink: float = 2 / 9


@dataclass(frozen=True, slots=True)
class Source:
    """One photo to embed. `box` in pixels of the upright original, None for all of it.

    `drawn_width` and `drawn_height` say in what size of photo the box was drawn, where the file has been resized since;
    0 means its own. `mask` is a picture of the upright photo's size that says where exactly the animal is; None where
    nobody has.
    """

    path: Path
    box: Box | None = None
    drawn_width: int = 0
    drawn_height: int = 0
    mask: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """`vectors (n, V, 2, D) float16` unit rows of the photos `rows (n,) int64` (places in the list asked for)."""

    vectors: NDArray[np.float16]
    rows: NDArray[np.int64]
    failures: tuple[Failure, ...]


def cached(
    sources: Sequence[Source],
    embedder: Embedder,
    folder: Path,
    *,
    views: int = 4,
    augmentation: Augmentation = Augmentation(),
    seed: int = 0,
    progress: Progress | None = None,
) -> Features:
    """The views of every photo, from `folder` where they are kept, else computed and kept there.

    Raises:
        TrainError: the folder cannot be written to.
    """
    if views < 1:
        raise ValueError(f"views must be 1 or more, not {views}")
    facts = [_FORMAT, embedder.card.fingerprint, asdict(augmentation), views, seed]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    try:
        store = _Store(folder / digest[:16], views, embedder.card.dim)
        failures = _fill(store, sources, embedder, views, augmentation, seed, progress)
    except OSError as error:
        raise TrainError(
            f"cannot keep vectors there ({error.strerror or error})",
            source=str(folder),
            next_step="free some space, or choose another folder",
        ) from error
    places = {key: place for place, key in enumerate(store.keys)}
    found = [(row, places[key]) for row, key in enumerate(failures.keys) if key in places]
    rows = np.array([row for row, _ in found], np.int64)
    vectors = store.read(np.array([place for _, place in found], np.int64))
    return Features(vectors, rows, tuple(failures.list))


def views_of(
    pixels: Pixels,
    box: Box,
    preprocessing: Preprocessing,
    views: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    augmentation: Augmentation = Augmentation(),
) -> Pixels:
    """`(views, 2, height, width, 3) uint8 RGB`: the plain crop and its augmented views, each upright and mirrored."""
    crops = [crop.cut(pixels, box, preprocessing, scale=scale)]
    crops += [_augmented(pixels, box, preprocessing, scale, augmentation, rng) for _ in range(views - 1)]
    upright = np.stack(crops)
    return np.stack([upright, upright[:, :, ::-1]], axis=1)


def _augmented(
    pixels: Pixels,
    box: Box,
    preprocessing: Preprocessing,
    scale: tuple[float, float],
    how: Augmentation,
    rng: np.random.Generator,
) -> Pixels:
    """One augmented crop."""
    x, y, widen = rng.uniform(-1, 1, 3) * (how.shift, how.shift, how.widen)
    if rng.random() < how.shrink:
        factor = 1 / rng.uniform(2, 3)
        size = max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor))
        scale = scale[0] * size[0] / pixels.shape[1], scale[1] * size[1] / pixels.shape[0]
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    seen = crop.cut(pixels, box, preprocessing, scale=scale, view=crop.View(widen=widen, shift_x=x, shift_y=y))
    return _retoned(_warped(seen, how, rng), how, rng)


def _warped(seen: Pixels, how: Augmentation, rng: np.random.Generator) -> Pixels:
    """Rotated and sheared about the centre; what comes in from outside repeats the edge."""
    turn, shear = np.deg2rad(rng.uniform(-1, 1, 2) * (how.rotate, how.shear))
    height, width = seen.shape[:2]
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.array(
        [[1, np.tan(shear)], [0, 1]]
    )
    centre = np.array([width / 2, height / 2])
    matrix = np.concatenate([linear, (centre - linear @ centre)[:, None]], axis=1)
    return np.asarray(
        cv2.warpAffine(seen, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )


def _retoned(seen: Pixels, how: Augmentation, rng: np.random.Generator) -> Pixels:
    """Lighter or darker, flatter or harder, perhaps grey, perhaps a worse JPEG."""
    light, contrast = 1 + rng.uniform(-1, 1, 2) * (how.light, how.contrast)
    tones = seen.astype(np.float32)
    if rng.random() < how.grey:
        tones = np.repeat(tones @ np.array([0.299, 0.587, 0.114], np.float32)[:, None], 3, axis=2)
    middle = float(tones.mean())
    seen = np.clip((tones - middle) * contrast + middle * light, 0, 255).astype(np.uint8)
    if rng.random() < how.jpeg:
        quality = int(rng.integers(30, 81))
        _, data = cv2.imencode(".jpg", seen[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        seen = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)[:, :, ::-1]
    return seen


@dataclass(frozen=True, slots=True)
class _Asked:
    """The key of every source ("" where it cannot be read), and why."""

    keys: list[str]
    list: list[Failure]


def _fill(
    store: _Store,
    sources: Sequence[Source],
    embedder: Embedder,
    views: int,
    augmentation: Augmentation,
    seed: int,
    progress: Progress | None,
) -> _Asked:
    """Append the photos that the store lacks."""
    asked = _Asked([], [])
    known = set(store.keys)
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(sources), _BLOCK):
            block = list(
                pool.map(
                    lambda source: _prepared(source, known, embedder.card.preprocessing, views, augmentation, seed),
                    sources[start : start + _BLOCK],
                )
            )
            asked.keys.extend(key for key, _, _ in block)
            asked.list.extend(failure for _, _, failure in block if failure is not None)
            fresh = {key: crops for key, crops, _ in block if crops is not None}
            if fresh:
                stacked = np.concatenate([crops.reshape(-1, *crops.shape[2:]) for crops in fresh.values()])
                store.append(list(fresh), embedder.embed(stacked))
                known.update(fresh)
            if progress is not None:
                progress(min(start + _BLOCK, len(sources)), len(sources))
    return asked


def _prepared(
    source: Source, known: set[str], preprocessing: Preprocessing, views: int, augmentation: Augmentation, seed: int
) -> tuple[str, Pixels | None, Failure | None]:
    """The key of a source, its crops where they are not known yet, and why it cannot be used."""
    try:
        photo = images.load(source.path)
        drawn = source.drawn_width or photo.facts.width, source.drawn_height or photo.facts.height
        box = source.box or crop.whole(*drawn)
        key = hashlib.sha256(f"{photo.facts.sha256} {asdict(box)} {drawn}".encode()).hexdigest()
        if key in known:
            return key, None, None
        pixels = images.read(photo).pixels
    except PhotoError as error:
        return "", None, Failure(str(source.path), error.code, error.message, error.next_step)
    scale = pixels.shape[1] / drawn[0], pixels.shape[0] / drawn[1]
    rng = np.random.default_rng([seed, int(key[:16], 16)])
    return key, views_of(pixels, box, preprocessing, views, rng, scale=scale, augmentation=augmentation), None


class _Store:
    """The two files described in the module's docstring."""

    def __init__(self, folder: Path, views: int, dim: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._vectors, self._keys = folder / "vectors.f16", folder / "keys.txt"
        self._shape = views, 2, dim
        self._row = views * 2 * dim * 2
        self.keys = self._whole()

    def _whole(self) -> list[str]:
        """The keys whose rows are complete; what an interruption left half-written is cut off."""
        lines = self._keys.read_text(encoding="ascii").splitlines() if self._keys.is_file() else []
        rows = self._vectors.stat().st_size // self._row if self._vectors.is_file() else 0
        keys = [line for line in lines[:rows] if len(line) == 64]
        for path, size in ((self._vectors, len(keys) * self._row), (self._keys, len(keys) * 65)):
            with path.open("ab"):
                os.truncate(path, size)
        return keys

    def append(self, keys: list[str], vectors: NDArray[np.float32]) -> None:
        """`vectors (len(keys)·V·2, D)`; the rows are on disk before their keys."""
        for path, data in (
            (self._vectors, vectors.astype("<f2").tobytes()),
            (self._keys, "".join(f"{key}\n" for key in keys).encode("ascii")),
        ):
            with path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        self.keys.extend(keys)

    def read(self, places: NDArray[np.int64]) -> NDArray[np.float16]:
        """`(n, V, 2, D)` of the rows at `places`."""
        if not len(places):
            return np.empty((0, *self._shape), np.float16)
        rows = np.memmap(self._vectors, "<f2", "r", shape=(len(self.keys), *self._shape))
        return np.asarray(rows[places], np.float16)
