"""Ways to propose the rows nearest to a query; faiss lives here and in `local`.

A backend has two sides. `build` may write a search structure beside a segment's vectors, once; `open` gives a
`Searcher` over the mapped rows and that structure. A searcher only *proposes* rows: the gallery computes the final
scores of what was proposed from the stored half-precision rows, so that all backends score alike and an approximate
one loses candidates, never precision.

| name | structure | proposes |
| --- | --- | --- |
| `flat` | none | the exact nearest rows, by a scan |
| `hnsw` | HNSW graph of 32 links over 8-bit codes (Malkov and Yashunin 2016) | approximately |
| `ivf` | inverted lists of 8-bit codes around k-means centres (Sivic and Zisserman 2003) | approximately |
| `gpu` | none on disk, float32 rows on the GPU | the exact nearest rows |

Structures are read memory-mapped. Knows arrays and one file; no ids, no manifests. Errors: `GalleryError` for an
unknown name, `MissingExtra` where there is no GPU, `SnapshotCorrupt` for a structure that faiss cannot read.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reid.errors import GalleryError, MissingExtra, SnapshotCorrupt
from reid.index import cluster, scan
from reid.index.scan import Proposals

Halves = NDArray[np.float16]
Queries = NDArray[np.float32]
Mask = NDArray[np.bool_] | None

STRUCTURE_ROWS = 1024  # smaller segments are scanned whatever the backend
FEW_QUERIES = 6  # up to so many queries are scanned one by one, more are multiplied as a batch: measured crossing
SCAN_ROWS = 4096  # fewer rows than this are multiplied: starting a scan costs as much
NARROW = (
    0.15  # an approximate search among less than this share of the rows is done exactly: cheaper, and it finds them
)
HNSW_LINKS = 32
HNSW_BUILD_EFFORT = 100  # candidates kept while linking a row
HNSW_EFFORT = 96  # candidates kept while searching
IVF_SHARE = 24  # one in so many lists is searched, and never fewer than IVF_LISTS_LEAST
IVF_LISTS_LEAST = 32
OVERSAMPLE = 3  # approximate backends propose so many times k, for their codes of 8 bits misorder near ties
GPU_MOST = 2048  # candidates that faiss gives on a GPU
_CHUNK = 16_384  # rows decoded at a time while building
_TRAIN_ROWS_PER_LIST = 40
_TRAIN_ROWS_CODES = 16_384


class Searcher(Protocol):
    """Proposes rows of one segment."""

    def propose(self, queries: Queries, k: int, mask: Mask) -> Proposals:
        """At least the k nearest of `mask`'s rows to each of `queries (Q, D)`, as far as the backend finds them."""
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    """`build(vectors, path)` writes a structure, None where there is none.

    `open(vectors, path)` takes it (None if none).
    """

    build: Callable[[Halves, Path], None] | None
    open: Callable[[Halves, Path | None], Searcher]


class FlatScan:
    """Exact scan of mapped rows. Needs faiss only when it is asked again and again, or for many rows."""

    def __init__(self, vectors: Halves, path: Path | None = None) -> None:
        self._vectors = vectors
        self._asked = False
        self._few: scan.FewQueries | None = None

    def propose(self, queries: Queries, k: int, mask: Mask) -> Proposals:
        """See `Searcher.propose`. Exact: `bound` holds."""
        k = min(k, len(self._vectors))
        first, self._asked = not self._asked, True
        one_shot = first and "faiss" not in sys.modules  # importing faiss takes as long as multiplying 500,000 rows
        if len(queries) > FEW_QUERIES or len(self._vectors) < SCAN_ROWS or one_shot:
            return scan.many(self._vectors, queries, k, mask)
        if self._few is None:
            self._few = scan.FewQueries(_faiss(), self._vectors)
        return self._few.propose(queries, k, mask)


class Approximate:
    """A faiss structure, with an exact scan where a filter leaves few rows."""

    def __init__(self, vectors: Halves, path: Path, effort: Callable[[Any, int, Any], Any]) -> None:
        """`effort(index, k, selector)` gives faiss's search parameters."""
        faiss = _faiss()
        path.stat()  # FileNotFoundError is for the caller: the gallery may have moved on
        try:
            self._owner = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise SnapshotCorrupt(
                "faiss cannot read this structure", source=str(path), next_step="rebuild it: `reid reindex`"
            ) from error
        self._index = faiss.downcast_index(self._owner)  # a view: `_owner` must outlive it
        if self._index.ntotal != len(vectors) or self._index.d != vectors.shape[1]:
            raise SnapshotCorrupt(
                f"a structure of {self._index.ntotal} rows beside {len(vectors)} vectors",
                source=str(path),
                next_step="rebuild it: `reid reindex`",
            )
        self._exact = FlatScan(vectors)
        self._effort = effort
        self._rows = len(vectors)

    def propose(self, queries: Queries, k: int, mask: Mask) -> Proposals:
        """See `Searcher.propose`. Approximate: promises no bound, except where it scanned."""
        wanted = min(self._rows, OVERSAMPLE * k)
        if wanted > NARROW * self._rows or (mask is not None and np.count_nonzero(mask) < NARROW * self._rows):
            return self._exact.propose(queries, k, mask)
        selector = None
        if mask is not None:
            faiss = _faiss()
            bits = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(mask), faiss.swig_ptr(bits))
        distances, rows = self._index.search(queries, wanted, params=self._effort(self._index, wanted, selector))
        scores = np.where(rows >= 0, -distances / 2 + 1, -np.inf).astype(np.float32)  # of unit rows: |a−b|² = 2 − 2 a·b
        return Proposals(scores, rows, np.full(len(queries), np.inf, np.float32))


def build_hnsw(vectors: Halves, path: Path) -> None:
    """Link the rows of `vectors (n, D)`: about .3 ms a row on two cores at 512 dimensions and 100,000 rows."""
    faiss = _faiss()
    index = faiss.IndexHNSWSQ(vectors.shape[1], faiss.ScalarQuantizer.QT_8bit, HNSW_LINKS)
    index.hnsw.efConstruction = HNSW_BUILD_EFFORT
    index.train(_sample(vectors, _TRAIN_ROWS_CODES))
    _add(index, vectors)
    faiss.write_index(index, str(path))


def open_hnsw(vectors: Halves, path: Path | None) -> Searcher:
    """Search by `build_hnsw`'s file."""

    def effort(index: Any, k: int, selector: Any) -> Any:
        return _faiss().SearchParametersHNSW(efSearch=max(HNSW_EFFORT, k), sel=selector)

    return FlatScan(vectors) if path is None else Approximate(vectors, path, effort)


def build_ivf(vectors: Halves, path: Path) -> None:
    """Cluster the rows of `vectors (n, D)` into about 4 √n lists.

    Centres and lists are found with numpy's matrix products: those inside the faiss wheel are several times slower.
    """
    faiss = _faiss()
    n_lists = max(1, min(int(4 * math.sqrt(len(vectors))), len(vectors) // 39))
    centres = cluster.centres(_sample(vectors, _TRAIN_ROWS_PER_LIST * n_lists), n_lists)
    quantizer = faiss.IndexFlatL2(vectors.shape[1])
    quantizer.add(centres)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, vectors.shape[1], n_lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_L2
    )
    index.train(_sample(vectors, _TRAIN_ROWS_CODES))  # the codes alone: the centres are there
    for low in range(0, len(vectors), _CHUNK):
        rows = _floats(vectors[low : low + _CHUNK])
        lists = cluster.nearest(rows, centres)
        ids = np.arange(low, low + len(rows))
        index.add_core(len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(ids), faiss.swig_ptr(lists))
    faiss.write_index(index, str(path))


def open_ivf(vectors: Halves, path: Path | None) -> Searcher:
    """Search by `build_ivf`'s file."""

    def effort(index: Any, k: int, selector: Any) -> Any:
        lists = min(index.nlist, max(IVF_LISTS_LEAST, index.nlist // IVF_SHARE))
        return _faiss().SearchParametersIVF(nprobe=lists, sel=selector)

    return FlatScan(vectors) if path is None else Approximate(vectors, path, effort)


class GpuScan:
    """Exact scan on a GPU, by a faiss index that gives inner products and cannot filter."""

    def __init__(self, vectors: Halves, index: Any, keep: Any = None) -> None:
        """`index` is an empty inner-product index of faiss; the rows are added to it here.

        `keep` lives as long as this.
        """
        _add(index, vectors)
        self._keep = keep
        self._index = index
        self._exact = FlatScan(vectors)
        self._rows = len(vectors)

    def propose(self, queries: Queries, k: int, mask: Mask) -> Proposals:
        """See `Searcher.propose`.

        Asks for as many more rows as the filter forbids; scans on the CPU where that is too many.
        """
        forbidden = 0 if mask is None else self._rows - int(np.count_nonzero(mask))
        wanted = min(self._rows, k + forbidden)
        if wanted > GPU_MOST:
            return self._exact.propose(queries, k, mask)
        scores, rows = self._index.search(queries, wanted)
        rows = np.asarray(rows, np.int64)
        if mask is not None:
            rows = np.where((rows >= 0) & mask[rows], rows, -1)
        full = wanted < self._rows
        bound = scores[:, -1] if full else np.full(len(queries), -np.inf)
        return Proposals(np.where(rows >= 0, scores, -np.inf).astype(np.float32), rows, bound.astype(np.float32))


def open_gpu(vectors: Halves, path: Path | None) -> Searcher:
    """Copy the rows to the first GPU, as float32 so that its products are exact; small segments stay on the CPU."""
    faiss = _faiss()
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        raise MissingExtra(
            "the gpu backend needs faiss-gpu and an NVIDIA GPU",
            next_step="install faiss-gpu instead of faiss-cpu (extra `gpu`), or `reid reindex --backend flat`",
        )
    if len(vectors) < scan.ROWS_PER_THREAD:
        return FlatScan(vectors)
    resources = faiss.StandardGpuResources()
    return GpuScan(vectors, faiss.GpuIndexFlatIP(resources, vectors.shape[1]), keep=resources)


BACKENDS: dict[str, Backend] = {
    "flat": Backend(None, FlatScan),
    "hnsw": Backend(build_hnsw, open_hnsw),
    "ivf": Backend(build_ivf, open_ivf),
    "gpu": Backend(None, open_gpu),
}


def named(name: str) -> Backend:
    """The backend called `name`; `GalleryError` where there is none."""
    if name not in BACKENDS:
        raise GalleryError(f"no backend {name!r}", next_step=f"choose one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def _faiss() -> Any:
    """faiss, imported at first need: .2 s that a single query of a small gallery does not pay."""
    import faiss

    return faiss


def _add(index: Any, vectors: Halves) -> None:
    for low in range(0, len(vectors), _CHUNK):
        index.add(_floats(vectors[low : low + _CHUNK]))


def _sample(vectors: Halves, most: int) -> NDArray[np.float32]:
    """At most so many rows, evenly spread."""
    step = max(1, math.ceil(len(vectors) / most))
    return _floats(vectors[::step])


def _floats(halves: Halves) -> NDArray[np.float32]:
    out = np.empty(halves.shape, np.float32)
    scan.decode(np.ascontiguousarray(halves), out)
    return out
