"""Near-duplicate photos by their 64-bit perceptual hashes, without comparing all with all.

By the pigeonhole principle two hashes that differ in at most d bits agree exactly on at least one of d + 1 blocks of
bits (Norouzi, Punjani and Fleet, "Fast search in Hamming space with multi-index hashing", CVPR 2012). So only hashes
that share a block are compared, and the work grows about linearly with the number of photos. This module knows
integers, nothing of photos or files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CHUNK = 2_000_000  # candidate pairs held at once: about 64 MB


@dataclass(frozen=True, slots=True, eq=False)
class NearDuplicates:
    """Pairs `first[i]`, `second[i]` (int64 row numbers) that differ in `distance[i]` (uint8) bits, sorted.

    Within one set first < second; between two sets `first` counts in `hashes` and `second` in `other`.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    distance: NDArray[np.uint8]

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.first)


def near_duplicates(
    hashes: NDArray[np.uint64], max_distance: int = 2, other: NDArray[np.uint64] | None = None
) -> NearDuplicates:
    """All pairs within `hashes` (N,) uint64, or between `hashes` and `other` (M,), at most `max_distance` bits apart.

    Identical hashes are compared once, however many photos share them; the *answer* still grows with the square of
    such a crowd. `max_distance` 0 to 15, meant for a few bits: the blocks shorten, and the work grows, with every
    bit.
    """
    if not 0 <= max_distance <= 15:
        raise ValueError(f"max_distance must be 0 to 15, not {max_distance}")
    hashes = np.asarray(hashes, np.uint64)
    within = other is None
    rows, row_members = _grouped(hashes)
    columns, column_members = (rows, row_members) if within else _grouped(np.asarray(other, np.uint64))
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]] = []
    for a, b, distance in _close_values(rows, columns, max_distance, within):
        parts.append(_spread(a, b, distance, row_members, column_members))
    if not parts:
        return NearDuplicates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))
    first, second, apart = (np.concatenate([part[i] for part in parts]) for i in range(3))
    if within:
        first, second = np.minimum(first, second), np.maximum(first, second)
        keep = first < second
        first, second, apart = first[keep], second[keep], apart[keep]
    order = np.lexsort((second, first))
    if within and len(order):  # members of one value meet from both sides
        same = (np.diff(first[order]) == 0) & (np.diff(second[order]) == 0)
        order = order[np.concatenate(([True], ~same))]
    return NearDuplicates(first[order], second[order], apart[order].astype(np.uint8))


@dataclass(frozen=True, slots=True, eq=False)
class _Members:
    """Rows of each distinct value: those of value v are `order[start[v] : start[v] + count[v]]`."""

    order: NDArray[np.int64]
    start: NDArray[np.int64]
    count: NDArray[np.int64]


def _grouped(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], _Members]:
    values, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable").astype(np.int64)
    return values, _Members(order, np.cumsum(counts) - counts, counts.astype(np.int64))


def _close_values(
    rows: NDArray[np.uint64], columns: NDArray[np.uint64], max_distance: int, within: bool
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]]:
    """Index pairs of distinct values at most `max_distance` apart, each once: in the first block they share."""
    edges = [64 * i // (max_distance + 1) for i in range(max_distance + 2)]
    masks = [np.uint64(((1 << (high - low)) - 1) << low) for low, high in zip(edges, edges[1:], strict=False)]
    for number, mask in enumerate(masks):
        order = np.argsort(columns & mask, kind="stable")
        keys = (columns & mask)[order]
        wanted = rows & mask
        left, right = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        for a, slots in _ranges(left, right):
            b = order[slots]
            if within:
                kept = a <= b  # a value with itself holds the pairs of identical hashes
                a, b = a[kept], b[kept]
            difference = rows[a] ^ columns[b]
            distance = np.bitwise_count(difference)
            kept = distance <= max_distance
            for earlier in masks[:number]:
                kept &= (difference & earlier) != 0
            if kept.any():
                yield a[kept], b[kept], distance[kept]


def _ranges(left: NDArray[np.int64], right: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(row, slot) for every slot in [left[row], right[row]), in pieces of about `_CHUNK`."""
    ends = np.cumsum(right - left)
    begin = 0
    while begin < len(left):
        done = int(ends[begin - 1]) if begin else 0
        stop = max(begin + 1, int(np.searchsorted(ends, done + _CHUNK, "right")))
        counts = (right - left)[begin:stop]
        yield np.repeat(np.arange(begin, stop), counts), _expanded(left[begin:stop], counts)
        begin = stop


def _expanded(start: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """`start[0]`, `start[0]+1`, … `counts[0]` of them, then those of `start[1]`, and so on."""
    total = int(counts.sum())
    expanded: NDArray[np.int64] = np.arange(total) + np.repeat(start - (np.cumsum(counts) - counts), counts)
    return expanded


def _spread(
    a: NDArray[np.int64], b: NDArray[np.int64], distance: NDArray[np.uint8], rows: _Members, columns: _Members
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Pairs of values → pairs of the photos that have them."""
    sizes = rows.count[a] * columns.count[b]
    pair = np.repeat(np.arange(len(a)), sizes)
    within = _expanded(np.zeros(len(a), np.int64), sizes)
    wide = columns.count[b][pair]
    first = rows.order[rows.start[a][pair] + within // wide]
    second = columns.order[columns.start[b][pair] + within % wide]
    return first, second, distance[pair]
