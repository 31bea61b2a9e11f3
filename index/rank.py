"""From what the backends propose to the final order: one scoring for all, ties broken by id.

The score of a query and a row is their inner product, summed in float64 over the stored half-precision row, rounded
to float32 and clipped to [−1, 1]. Equal scores are ordered by id. So the answer depends neither on the backend's
arithmetic nor on how the rows are spread over segments; where exact backends cannot rule out that a row they left out
belongs among the k best, they are asked for more. Knows segments and searchers; no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reid.errors import SnapshotCorrupt
from reid.index import snapshot
from reid.index.backends import OVERSAMPLE, Searcher
from reid.index.segments import Segment, decoded, encoded, find
from reid.records import Candidates

SPARE = 16  # rows asked for beyond k, so that rounding cannot change the k best
ROUNDING = 1e-5  # how far a backend's float32 inner product of unit rows may be off
_BLOCK = 256  # queries at a time


@dataclass(frozen=True, slots=True)
class Part:
    """A segment to search: `mask (n,) bool` its rows that may be proposed (None: all), `first` its first global row."""

    segment: Segment
    searcher: Searcher
    mask: NDArray[np.bool_] | None
    first: int


def nearest(
    parts: Sequence[Part], queries: NDArray[np.float32], k: int, forbidden: Sequence[AbstractSet[str]] | None
) -> list[Candidates]:
    """The k best of all `parts` for each of `queries (Q, D)`, without the ids `forbidden` to that query."""
    found: list[Candidates] = []
    for low in range(0, len(queries), _BLOCK):
        block = queries[low : low + _BLOCK]
        found += _nearest(parts, block, k, None if forbidden is None else forbidden[low : low + _BLOCK])
    return found


def _nearest(
    parts: Sequence[Part], queries: NDArray[np.float32], k: int, forbidden: Sequence[AbstractSet[str]] | None
) -> list[Candidates]:
    total = sum(len(part.segment.ids) for part in parts)
    out = [Candidates((), ()) for _ in queries]
    keys, most = _forbidden_keys(parts, forbidden, total)
    asking = np.arange(len(queries))
    spare = SPARE
    while len(asking) and parts:
        rows, bound = _proposed(parts, queries[asking], asking, k, spare, most, keys, total)
        ids, scores, position = _scored(parts, queries[asking], rows)
        order = np.lexsort((ids, -scores, position))
        counts = np.bincount(position, minlength=len(asking))
        starts = np.cumsum(counts) - counts
        again = []
        for at, number in enumerate(asking):
            mine = order[starts[at] : starts[at] + min(k, counts[at])]
            worst = scores[mine[-1]] if counts[at] >= k else -np.inf
            if bound[at] > -np.inf and worst <= bound[at] + ROUNDING:
                again.append(number)
            else:
                out[number] = Candidates(tuple(decoded(ids[mine])), tuple(scores[mine].tolist()))
        asking = np.array(again, np.int64)
        spare *= 8
    return out


def _proposed(
    parts: Sequence[Part],
    queries: NDArray[np.float32],
    numbers: NDArray[np.int64],
    k: int,
    spare: int,
    most: int,
    forbidden: NDArray[np.int64],
    total: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Global rows `(Q, c)` worth scoring, −1 for none, and the greatest score `(Q,)` that another row may have."""
    proposals = [part.searcher.propose(queries, k + spare + most, part.mask) for part in parts]
    scores = np.concatenate([each.scores for each in proposals], axis=1)
    rows = np.concatenate(
        [np.where(each.rows >= 0, each.rows + part.first, -1) for each, part in zip(proposals, parts, strict=True)],
        axis=1,
    )
    bounds = np.stack([each.bound for each in proposals])
    approximate = bool(np.isposinf(bounds).any())
    bound = np.where(np.isposinf(bounds), -np.inf, bounds).max(axis=0)
    if len(forbidden):
        banned = np.isin(rows + numbers[:, None] * total, forbidden) & (rows >= 0)
        scores = np.where(banned, -np.inf, scores)
        rows = np.where(banned, -1, rows)
    keep = OVERSAMPLE * k + spare if approximate else k + spare
    if rows.shape[1] > keep:
        columns = np.argpartition(-scores, keep - 1, axis=1)[:, :keep]
        scores, rows = np.take_along_axis(scores, columns, axis=1), np.take_along_axis(rows, columns, axis=1)
        bound = np.maximum(bound, np.where(rows.min(axis=1) >= 0, scores.min(axis=1), -np.inf))
    return rows, bound.astype(np.float32)


def _scored(
    parts: Sequence[Part], queries: NDArray[np.float32], rows: NDArray[np.int64]
) -> tuple[NDArray[np.bytes_], NDArray[np.float32], NDArray[np.intp]]:
    """Of each global row in `rows (Q, c)` its id, its score and its query, flat and without the −1."""
    position, column = np.nonzero(rows >= 0)
    flat = rows[position, column]
    width = max(part.segment.ids.dtype.itemsize for part in parts)
    ids = np.empty(len(flat), f"S{width}")
    scores = np.empty(len(flat), np.float32)
    for part in parts:
        mine = np.flatnonzero((flat >= part.first) & (flat < part.first + len(part.segment.ids)))
        local = flat[mine] - part.first
        ids[mine] = part.segment.ids[local]
        for low in range(0, len(mine), 4096):
            chunk = slice(low, low + 4096)
            stored = part.segment.vectors[local[chunk]].astype(np.float64)
            scores[mine[chunk]] = np.einsum("nd,nd->n", stored, queries[position[mine[chunk]]].astype(np.float64))
        if not np.isfinite(scores[mine]).all():
            raise SnapshotCorrupt(
                "stored vectors are not numbers", source=part.segment.record.vectors.name, next_step=snapshot.REBUILD
            )
    return ids, np.clip(scores, -1, 1), position


def _forbidden_keys(
    parts: Sequence[Part], forbidden: Sequence[AbstractSet[str]] | None, total: int
) -> tuple[NDArray[np.int64], int]:
    """`query number × total + global row` of every forbidden pair, and the most that one query has."""
    if forbidden is None or not any(forbidden):
        return np.empty(0, np.int64), 0
    sizes = [len(each) for each in forbidden]
    wanted = encoded(each for ids in forbidden for each in ids)
    query = np.repeat(np.arange(len(sizes)), sizes)
    keys = []
    for part in parts:
        rows = find(part.segment.ids, wanted)
        keys.append((query * total + rows + part.first)[rows >= 0])
    found = np.concatenate([np.empty(0, np.int64), *keys])  # no part is left where a filter allows nothing
    return found, int(np.bincount(found // total).max()) if len(found) else 0
