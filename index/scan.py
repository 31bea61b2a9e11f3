"""Exact inner products over half-precision rows, by two kernels that propose the same rows.

`FewQueries` walks all rows once per query with faiss's fused decode-and-dot, rows shared out among threads: best for a
handful of queries. `many` decodes a block of rows to float32 and multiplies it with all queries at once: best for
batches, and the one that needs numpy alone. Both return `Proposals`: the rows whose inner product is greatest, up to
rounding of float32; whoever asks computes the final scores itself.

Convention: `mask (n,) bool` marks the rows that may be proposed, None means all of them. `rows` index into the given
vectors, −1 where there are fewer than k. Knows arrays only: no ids, no files.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_BLOCK, MOST_BLOCK = 2048, 16_384  # rows decoded at a time by `many`: a 48th of all, within these
ROWS_PER_THREAD = 16_384  # fewer rows than this are not worth a thread of their own
SPARSE = 0.5  # `many` gathers the allowed rows when they are fewer than this share, and masks scores otherwise

_MAGNITUDE = np.int32(
    -1879056384
)  # 0x8FFFE000: the sign and the 15 magnitude bits of a half, moved to their float32 places
_REBIAS = np.float32(2.0**112)  # the exponent bias of float32 less that of a half: 127 − 15


@dataclass(frozen=True, slots=True)
class Proposals:
    """Candidate rows of Q queries: `scores (Q, k) float32`, −inf beside row −1; `rows (Q, k) int64`, each at most once.

    Every allowed row that is not proposed scores at most `bound (Q,) float32` (−inf where all are proposed, +inf
    where the backend is approximate and promises nothing).
    """

    scores: NDArray[np.float32]
    rows: NDArray[np.int64]
    bound: NDArray[np.float32]


def nothing(n_queries: int) -> Proposals:
    """No rows for any of the queries."""
    empty = np.empty((n_queries, 0))
    return Proposals(empty.astype(np.float32), empty.astype(np.int64), np.full(n_queries, -np.inf, np.float32))


def decode(halves: NDArray[np.float16], out: NDArray[np.float32]) -> None:
    """Write `halves (n, D) float16`, which must be finite, into `out (n, D) float32`.

    Moves the bits and multiplies by 2¹¹², which also restores subnormal numbers: four passes that numpy vectorises,
    and five times the speed of its own conversion where the processor has no AVX-512.
    """
    bits = out.view(np.int32)
    np.copyto(bits, halves.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, _MAGNITUDE, out=bits)
    np.multiply(out, _REBIAS, out=out)


def many(
    vectors: NDArray[np.float16], queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None
) -> Proposals:
    """The k best of `vectors (n, D)` for each of `queries (Q, D)`, by blocks of matrix products."""
    chosen = None
    if mask is not None:
        allowed = np.flatnonzero(mask)
        if len(allowed) < SPARSE * len(vectors):
            chosen, mask = allowed, None
    n = len(vectors) if chosen is None else len(chosen)
    best = _Best(len(queries), k)
    block = min(n, max(LEAST_BLOCK, min(MOST_BLOCK, n // 48)))
    decoded = np.empty((block, vectors.shape[1]), np.float32)
    products = np.empty((block, len(queries)), np.float32)  # rows × queries: this way round BLAS waits less
    for low in range(0, n, block or 1):
        high = min(n, low + block)
        halves = vectors[low:high] if chosen is None else vectors[chosen[low:high]]
        decode(np.asarray(halves), decoded[: high - low])
        scores = products[: high - low]
        np.matmul(decoded[: high - low], queries.T, out=scores)
        if mask is not None:
            scores[~mask[low:high]] = -np.inf
        best.offer(scores, low)
    found = best.take()
    return found if chosen is None else _translated(found, chosen)


class _Best:
    """The k best scores of each query among blocks of rows offered one after another."""

    def __init__(self, n_queries: int, k: int) -> None:
        self._k = k
        self._scores = np.full((n_queries, k), -np.inf, np.float32)
        self._rows = np.full((n_queries, k), -1, np.int64)
        self._floor = np.full(n_queries, -np.inf, np.float32)
        self._waiting: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
        self._n_waiting = 0
        self._offered = 0

    def offer(self, scores: NDArray[np.float32], first_row: int) -> None:
        """Consider `scores (c, Q)` of the rows from `first_row` on."""
        self._offered += len(scores)
        if first_row == 0 and len(scores) > self._k:
            by_query = np.ascontiguousarray(scores.T)
            rows = np.argpartition(by_query, len(scores) - self._k, axis=1)[:, -self._k :]
            self._merge_dense(np.take_along_axis(by_query, rows, axis=1), rows.astype(np.int64))
            return
        row, query = np.nonzero(scores > self._floor)
        self._waiting.append((query, scores[row, query], row + first_row))
        self._n_waiting += len(query)
        if self._n_waiting > self._scores.size:
            self._settle()

    def take(self) -> Proposals:
        """What was found, best first."""
        self._settle()
        rows = np.where(np.isneginf(self._scores), -1, self._rows)
        full = rows[:, -1] >= 0 if self._offered > self._k else np.zeros(len(rows), np.bool_)
        bound = np.where(full, self._scores[:, -1], np.float32(-np.inf)).astype(np.float32)
        return Proposals(self._scores, rows, bound)

    def _settle(self) -> None:
        """Merge what waits, and raise the floor."""
        if not self._n_waiting:
            return
        query, scores, rows = (np.concatenate(part) for part in zip(*self._waiting, strict=True))
        self._waiting, self._n_waiting = [], 0
        order = np.lexsort((-scores, query))
        query, scores, rows = query[order], scores[order], rows[order]
        rank = np.arange(len(query)) - np.searchsorted(query, query)
        kept = rank < self._k
        dense = np.full(self._scores.shape, -np.inf, np.float32)
        dense_rows = np.full(self._scores.shape, -1, np.int64)
        dense[query[kept], rank[kept]] = scores[kept]
        dense_rows[query[kept], rank[kept]] = rows[kept]
        self._merge_dense(dense, dense_rows)

    def _merge_dense(self, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        scores = np.concatenate([self._scores, scores], axis=1)
        rows = np.concatenate([self._rows, rows], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self._k]
        self._scores = np.take_along_axis(scores, order, axis=1)
        self._rows = np.take_along_axis(rows, order, axis=1)
        self._floor = self._scores[:, -1].copy()


class FewQueries:
    """The k best of `vectors (n, D)`, query by query: faiss reads the rows where they lie, each thread its share."""

    def __init__(self, faiss: Any, vectors: NDArray[np.float16]) -> None:
        """`faiss` is the module, handed over by the one that owns it. Keeps `vectors`, copies nothing."""
        n = len(vectors)
        threads = max(1, min(faiss.omp_get_max_threads(), n // ROWS_PER_THREAD))
        edges = [n * i // threads for i in range(threads + 1)]
        self._faiss = faiss
        self._vectors = vectors
        self._shares = [
            (low, high, _codes_in_place(faiss, vectors[low:high])) for low, high in zip(edges, edges[1:], strict=False)
        ]

    def propose(self, queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None) -> Proposals:
        """The k best for each of `queries (Q, D)`."""
        queries = np.ascontiguousarray(queries)
        if len(self._shares) == 1:
            return self._scan(self._shares[0], queries, k, mask)
        with ThreadPoolExecutor(len(self._shares)) as pool:
            return joined(list(pool.map(lambda share: self._scan(share, queries, k, mask), self._shares)), k)

    def _scan(
        self, share: tuple[int, int, Any], queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None
    ) -> Proposals:
        """What one thread has to do, with no threads of faiss's own: idle ones would spin on a core that others need."""
        low, high, index = share
        wanted = min(k, high - low)
        parameters = None
        if mask is not None:
            bits = np.packbits(mask[low:high], bitorder="little")
            selector = self._faiss.IDSelectorBitmap(high - low, self._faiss.swig_ptr(bits))
            parameters = self._faiss.SearchParameters(sel=selector)
        threads = self._faiss.omp_get_max_threads()
        self._faiss.omp_set_num_threads(1)  # of the calling thread alone
        try:
            scores, rows = index.search(queries, wanted, params=parameters)
        finally:
            self._faiss.omp_set_num_threads(threads)
        rows = np.where(rows >= 0, rows + low, -1)
        scores = np.where(rows >= 0, scores, np.float32(-np.inf))
        full = (rows[:, -1] >= 0) & (high - low > wanted)
        return Proposals(scores, rows, np.where(full, scores[:, -1], np.float32(-np.inf)))


def _codes_in_place(faiss: Any, vectors: NDArray[np.float16]) -> Any:
    """A faiss index whose codes are these rows, not a copy of them; they must outlive it."""
    index = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    codes = vectors.view(np.uint8)
    view, start = index.codes, faiss.swig_ptr(codes)
    view.is_owned = False
    view.view_data = view.c_ptr = start
    view.view_size = view.c_size = codes.size
    index.ntotal = len(vectors)
    index.is_trained = True
    return index


def joined(parts: list[Proposals], k: int) -> Proposals:
    """The k best of several disjoint sets of proposals for the same queries."""
    scores = np.concatenate([part.scores for part in parts], axis=1)
    rows = np.concatenate([part.rows for part in parts], axis=1)
    bound = np.max([part.bound for part in parts], axis=0).astype(np.float32)
    if scores.shape[1] > k:
        order = np.argsort(-scores, axis=1, kind="stable")
        scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
        bound = np.maximum(bound, scores[:, k])
        scores, rows = scores[:, :k], rows[:, :k]
    return Proposals(scores, rows, bound)


def _translated(found: Proposals, chosen: NDArray[np.int64]) -> Proposals:
    """Proposals over `vectors[chosen]`, as rows of `vectors`."""
    return Proposals(found.scores, np.where(found.rows >= 0, chosen[found.rows], -1), found.bound)
