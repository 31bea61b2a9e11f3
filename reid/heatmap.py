"""What made two photos' vectors alike: cover a crop patch by patch, and see by how much their cosine falls.

Occlusion sensitivity (Zeiler & Fergus, ECCV 2014) with the exported graph as it stands: no gradients and no torch, so
it holds for any embedder. A crop is covered and embedded once (`occlude`); its heat against any number of other
vectors (`heat`) is then one matrix product. Knows crops and vectors. Must not know photos, boxes, models or stores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.errors import InputError

GRID = 7
"""Patches a side: 49 more embeddings a crop."""
SPREAD = 1.5
"""Side of a patch, in cells of the grid: neighbours overlap, so that a mark on a border is not missed."""

SPARSE_SPREAD = 2.0
"""The same where only every other cell is covered, like the black fields of a chess-board."""

Crops = NDArray[np.uint8]
Floats = NDArray[np.float32]
Embed = Callable[[Crops], Floats]
"""`(N, H, W, 3) uint8 RGB` → `(N, D) float32` unit rows, as the store compares them."""


@dataclass(frozen=True, slots=True, eq=False)
class Occluded:
    """A crop and its covered copies as vectors: `vector (D,)`, `covered (P, D)`, and the cells `(P,)` of the
    grid that they belong to, counted row by row from the top left; `milliseconds` that it took."""

    vector: Floats
    covered: Floats
    cells: NDArray[np.intp]
    grid: int
    height: int
    width: int
    milliseconds: float


@dataclass(frozen=True, slots=True, eq=False)
class HeatMap:
    """`drops (g, g) float32`: by how much the cosine of the pair falls when that patch is covered (negative: rises).
    `map (H, W) float32` is the same in pixels of the crop, smooth. `cosine` is that of the uncovered pair."""

    drops: Floats
    map: Floats
    cosine: float
    milliseconds: float


def patches(height: int, width: int, grid: int = GRID, spread: float = SPREAD) -> NDArray[np.intp]:
    """`(grid·grid, 4)`: x0, y0, x1, y1 of every patch in pixels, row by row, around the middles of the grid's cells and
    clipped to the crop; every pixel lies under at least one.

    Raises:
        InputError: a grid finer than the pixels, or patches smaller than cells.
    """
    if not (1 <= grid <= min(height, width) and spread >= 1):
        raise InputError(
            f"a grid of {grid} with patches of {spread:g} cells does not fit a crop of {width}×{height} pixels",
            next_step="use a grid of 7 and patches of 1.5 cells",
        )
    bounds = []
    for size in (width, height):
        middle = (np.arange(grid) + 0.5) * size / grid
        reach = spread * size / grid / 2
        low = np.clip(np.floor(middle - reach), 0, size).astype(np.intp)
        high = np.clip(np.ceil(middle + reach), 0, size).astype(np.intp)
        bounds.append((low, high))
    (x0, x1), (y0, y1) = bounds
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    return np.stack([x0[columns], y0[rows], x1[columns], y1[rows]], axis=1)


def covered_crops(crop: Crops, places: NDArray[np.intp], colour: tuple[float, ...] | None = None) -> Crops:
    """`crop (H, W, 3)` with one of `places (P, 4)` after the other covered, `(P, H, W, 3)`.

    `colour` of the patches, RGB; None: the grey of the crop's own mean.
    """
    fill = np.full(3, crop.mean()) if colour is None else np.array(colour)
    out = np.repeat(crop[None], len(places), axis=0)
    for copy, (x0, y0, x1, y1) in zip(out, places, strict=True):
        copy[y0:y1, x0:x1] = np.rint(fill).astype(np.uint8)
    return out


def occlude(crop: Crops, embed: Embed, *, grid: int = GRID, sparse: bool = False) -> Occluded:
    """Embed `crop (H, W, 3) uint8` and its covered copies in one batch.

    `sparse` covers every other cell with larger patches, in half the time; `heat` fills in the others.
    """
    start = time.perf_counter()
    places = patches(crop.shape[0], crop.shape[1], grid, SPARSE_SPREAD if sparse else SPREAD)
    cells = np.arange(grid * grid)
    if sparse:
        cells = cells[(cells // grid + cells % grid) % 2 == 0]
    vectors = embed(np.concatenate([crop[None], covered_crops(crop, places[cells])]))
    spent = 1000 * (time.perf_counter() - start)
    return Occluded(vectors[0], vectors[1:], cells, grid, crop.shape[0], crop.shape[1], spent)


def heat(mine: Occluded, other: Floats) -> HeatMap:
    """What in the crop of `mine` made it like the vector `other (D,)`."""
    start = time.perf_counter()
    cosine = float(mine.vector @ other)
    flat = np.full(mine.grid * mine.grid, np.nan)
    flat[mine.cells] = cosine - mine.covered @ other
    drops = _filled(flat.reshape(mine.grid, mine.grid)).astype(np.float32)
    smooth = upsampled(drops, mine.height, mine.width)
    return HeatMap(drops, smooth, cosine, mine.milliseconds + 1000 * (time.perf_counter() - start))


def _filled(drops: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN cells become the mean of those neighbours, above, below and beside, that are known."""
    framed = np.pad(drops, 1, constant_values=np.nan)
    around = np.stack([framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]])
    known = np.isfinite(around)
    mean = np.where(known, around, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(np.isfinite(drops), drops, mean)


def upsampled(drops: Floats, height: int, width: int) -> Floats:
    """`(g, g)` → `(height, width)`, bilinear between the middles of the cells, constant beyond the outermost."""
    return np.asarray(cv2.resize(drops, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def share_outside(heat_map: Floats, inside: NDArray[np.bool_]) -> float | None:
    """Share of the positive heat `(H, W)` that lies where `inside (H, W)` is False.

    None where there is less positive heat than negative: then the likeness rests on no part of this crop, and where
    the rest of it lies means nothing.
    """
    positive, negative = np.maximum(heat_map, 0), np.maximum(-heat_map, 0)
    total = float(positive.sum())
    return float(positive[~inside].sum()) / total if total > float(negative.sum()) else None
