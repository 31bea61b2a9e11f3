"""Inverted lists of bytes: coarse cells over descriptors, and an exact scan inside the cells that are looked into
(faiss IVF-SQ8).

Knows uint8 arrays of 128 columns and rows numbered from 0. Must not know photos, ids, votes or manifests.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.errors import SnapshotCorrupt

DIM = 128
MOST_CELLS = 65_536
SAMPLES = 20
"""Descriptors per cell that the cells are made from."""
_CHUNK = 65_536  # descriptors turned into floats at a time
_SEED = 1234

Descriptors = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """`centroids (n, 128) float32` and the exact index over them."""

    centroids: NDArray[np.float32]
    quantiser: Any = field(init=False)

    def __post_init__(self) -> None:
        """Build the index over the centroids."""
        faiss = _faiss()
        quantiser = faiss.IndexFlatL2(DIM)
        quantiser.add(np.ascontiguousarray(self.centroids, np.float32))
        object.__setattr__(self, "quantiser", quantiser)

    @property
    def count(self) -> int:
        """How many."""
        return len(self.centroids)


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """One open set of inverted lists; `index` is None where it holds no descriptor."""

    index: Any
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Coarse:
    """For each query descriptor its nearest cells `(Q, probes) int64` and their squared distances `float32`."""

    cell: NDArray[np.int64]
    distance: NDArray[np.float32]


def cells_for(count: int) -> int:
    """Cells for so many descriptors: a power of two near 3½·√count, at least 32 descriptors a cell."""
    if count <= 0:
        return 0
    wanted = 1 << round(math.log2(3.5 * math.sqrt(count)))
    return max(1, min(MOST_CELLS, wanted, count // 32))


def trained(arrays: Sequence[Descriptors], expected: int = 0) -> Cells | None:
    """Cells for these descriptors, or for `expected` like them, by k-means on a sample; None where there are none. The
    same input gives the same cells."""
    faiss = _faiss()
    count = sum(len(array) for array in arrays)
    cells = min(cells_for(max(count, expected)), max(1, count // 2)) if count else 0
    if cells == 0:
        return None
    if cells == 1:
        mean = sum(array.sum(axis=0, dtype=np.float64) for array in arrays) / count
        return Cells(np.asarray(mean, np.float32)[None])
    wanted = min(count, SAMPLES * cells)
    rows = np.sort(np.random.default_rng(_SEED).choice(count, wanted, replace=False))
    ends = np.cumsum([len(array) for array in arrays])
    cuts = np.searchsorted(rows, ends)
    pieces = [
        array[rows[low:high] - (end - len(array))]
        for array, end, low, high in zip(arrays, ends, np.concatenate([[0], cuts[:-1]]), cuts, strict=True)
    ]
    sample = np.concatenate(pieces).astype(np.float32)
    kmeans = faiss.Kmeans(
        DIM, cells, niter=5, seed=_SEED, min_points_per_centroid=1, max_points_per_centroid=SAMPLES, verbose=False
    )
    kmeans.train(sample)
    return Cells(np.asarray(kmeans.centroids, np.float32))


def write(
    path: Path, cells: Cells | None, arrays: Sequence[Descriptors], known: Sequence[NDArray[np.int32] | None] = ()
) -> None:
    """Write the lists of `arrays`, rows numbered through, to `path`; an empty file where there is no descriptor.

    `known[i] (N_i,) int32` are the cells of an array's rows where they were found before (with the same cells), None or
    missing where they are still to be found: that is most of the work.
    """
    faiss = _faiss()
    if cells is None or not any(len(array) for array in arrays):
        path.write_bytes(b"")
        return
    index = faiss.IndexIVFScalarQuantizer(
        cells.quantiser, DIM, cells.count, faiss.ScalarQuantizer.QT_8bit_direct, faiss.METRIC_L2, False
    )
    index.own_fields = False
    index.is_trained = True  # bytes are kept as they are: there is nothing to learn
    cell_of = [*known, *[None] * (len(arrays) - len(known))]
    first = 0
    for chunk, cell in _chunks(arrays, cell_of):
        floats, rows = chunk.astype(np.float32), np.arange(first, first + len(chunk), dtype=np.int64)
        unknown = np.flatnonzero(cell < 0)
        if len(unknown):
            cell[unknown] = cells.quantiser.search(floats[unknown], 1)[1][:, 0]
        index.add_core(len(chunk), faiss.swig_ptr(floats), faiss.swig_ptr(rows), faiss.swig_ptr(cell))
        first += len(chunk)
    index.quantizer = faiss.IndexFlatL2(DIM)  # the cells are kept once, not with every segment
    faiss.write_index(index, str(path))


def _chunks(
    arrays: Sequence[Descriptors], cells: Sequence[NDArray[np.int32] | None]
) -> Iterator[tuple[Descriptors, NDArray[np.int64]]]:
    """About `_CHUNK` rows at a time, with their cells, −1 where they are not known."""
    waiting: list[Descriptors] = []
    found: list[NDArray[np.int64]] = []
    held = 0
    for array, cell in zip(arrays, cells, strict=True):
        waiting.append(array)
        found.append(np.full(len(array), -1, np.int64) if cell is None else cell.astype(np.int64))
        held += len(array)
        if held >= _CHUNK:
            yield np.concatenate(waiting), np.concatenate(found)
            waiting, found, held = [], [], 0
    if held:
        yield np.concatenate(waiting), np.concatenate(found)


def opened(path: Path, rows: int) -> Lists:
    """The lists in `path`, memory-mapped where the system can. `SnapshotCorrupt` where they are not `rows`
    descriptors."""
    faiss = _faiss()
    if rows == 0:
        return Lists(None, 0)
    mapped = 0 if sys.platform == "win32" else faiss.IO_FLAG_MMAP
    try:
        index = faiss.read_index(str(path), mapped)
    except RuntimeError as error:
        raise SnapshotCorrupt("not inverted lists", source=str(path), next_step="rebuild it: `reid reindex`") from error
    if index.ntotal != rows or index.d != DIM:
        raise SnapshotCorrupt(
            f"{index.ntotal} descriptors, recorded {rows}", source=str(path), next_step="rebuild it: `reid reindex`"
        )
    return Lists(index, rows)


def nearest_cells(cells: Cells, query: Descriptors, probes: int) -> Coarse:
    """The cells in which the neighbours of `query (Q, 128)` are looked for."""
    distance, cell = cells.quantiser.search(query.astype(np.float32), min(probes, cells.count))
    return Coarse(cell, distance)


def search(
    lists: Lists,
    query: Descriptors,
    k: int,
    coarse: Coarse,
    only: tuple[NDArray[np.int64], NDArray[np.bool_]] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k nearest rows `(Q, k)`: squared distances in bytes², ascending, and row numbers, −1 for none.

    `only`: `starts (P + 1,)` and `keep (P,) bool`: rows starts[p] to starts[p + 1] count where keep[p].
    """
    faiss = _faiss()
    count = len(query)
    distance = np.full((count, k), np.inf, np.float32)
    row = np.full((count, k), -1, np.int64)
    if lists.index is None or count == 0:
        return distance, row
    parameters: Any = faiss.SearchParametersIVF()
    parameters.nprobe = coarse.cell.shape[1]
    if only is not None:
        starts, keep = only
        bits = np.packbits(np.repeat(keep, np.diff(starts)), bitorder="little")
        selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        parameters.sel = selector
    floats = np.ascontiguousarray(query, np.float32)
    lists.index.search_preassigned_c(
        count,
        faiss.swig_ptr(floats),
        k,
        faiss.swig_ptr(np.ascontiguousarray(coarse.cell)),
        faiss.swig_ptr(np.ascontiguousarray(coarse.distance)),
        faiss.swig_ptr(distance),
        faiss.swig_ptr(row),
        False,
        parameters,
    )
    return distance, row


def unpacked(
    lists: Lists, starts: NDArray[np.int64], dead: NDArray[np.uint32]
) -> tuple[list[Descriptors], list[NDArray[np.int32]]]:
    """The descriptors of each photo that is not `dead`, as they were added, and the cell of each: the lists put back
    in order.
    """
    faiss = _faiss()
    flat = np.zeros((lists.rows, DIM), np.uint8)
    cell_of = np.zeros(lists.rows, np.int32)
    if lists.index is not None:
        stored = faiss.downcast_InvertedLists(lists.index.invlists)
        for cell in range(stored.nlist):
            size = stored.list_size(cell)
            if size:
                rows = faiss.rev_swig_ptr(stored.get_ids(cell), size)
                flat[rows] = faiss.rev_swig_ptr(stored.get_codes(cell), size * DIM).reshape(size, DIM)
                cell_of[rows] = cell
    gone = set(dead.tolist())
    kept = [slice(starts[at], starts[at + 1]) for at in range(len(starts) - 1) if at not in gone]
    return [flat[part] for part in kept], [cell_of[part] for part in kept]


def _faiss() -> Any:
    """faiss, imported at first need: .2 s that a query by the embedder alone does not pay."""
    import faiss

    return faiss
