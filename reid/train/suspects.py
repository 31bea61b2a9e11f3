"""Identities that may be one animal under two names, found before they are set against each other.

Hard-negative mining would choose just these pairs, and where they are one animal it teaches the wrong thing. So they
are left out of the assignment (`Suspects.pairs` as `forbidden`) or merged (`merged`), and shown to someone who decides.

Conventions as in `reid.train.mining`. Knows arrays and labels only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.train.assignment import FloatArray, IntArray, codes_of

_CHUNK = 4_000_000  # matrix elements handled at once


@dataclass(frozen=True, slots=True, eq=False)
class Suspects:
    """Photos of different identities that look like one animal, most alike first: `pairs (P, 2) int64`, i < j; `scores
    (P,) float64`.
    """

    pairs: IntArray
    scores: NDArray[np.float64]


def find_suspects(scores: FloatArray, labels: ArrayLike, bound: float) -> Suspects:
    """Pairs of different identities that score above `bound`, from `scores (N, N)` (the higher of both directions)."""
    codes = codes_of(labels)
    rows, columns, values = [], [], []
    step = max(1, _CHUNK // max(1, len(codes)))
    for start in range(0, len(codes), step):
        part = np.asarray(scores[start : start + step])
        row, column = np.nonzero((part > bound) & (codes[start : start + step, None] != codes[None, :]))
        rows.append(row + start)
        columns.append(column)
        values.append(part[row, column])
    if not rows:
        return Suspects(np.empty((0, 2), np.int64), np.empty(0))
    return _suspects(np.concatenate(rows), np.concatenate(columns), np.concatenate(values), len(codes))


def find_suspects_listed(
    neighbours: NDArray[np.integer[Any]], scores: FloatArray, labels: ArrayLike, bound: float
) -> Suspects:
    """As `find_suspects`, from lists of neighbours `(N, k)` (−1 where a list has ended) and their scores."""
    codes = codes_of(labels)
    row, place = np.nonzero((neighbours >= 0) & (scores > bound))
    column = neighbours[row, place].astype(np.int64)
    other = codes[row] != codes[column]
    return _suspects(row[other], column[other], scores[row, place][other], len(codes))


def _suspects(rows: IntArray, columns: IntArray, values: FloatArray, n: int) -> Suspects:
    low, high = np.minimum(rows, columns), np.maximum(rows, columns)
    order = np.lexsort((high, low, -values))  # best first, then the first of each pair is its higher score
    keys = (low * n + high)[order]
    first = np.sort(np.unique(keys, return_index=True)[1])
    pairs = np.stack([keys[first] // n, keys[first] % n], axis=1)
    return Suspects(pairs, np.asarray(values, np.float64)[order][first])


def merged(labels: ArrayLike, pairs: ArrayLike) -> IntArray:
    """Codes `(N,) int64` in which identities joined by `pairs (P, 2)` of photos share one: a chain of suspects becomes
    one group.
    """
    codes = codes_of(labels)
    parent = list(range(int(codes.max(initial=-1)) + 1))

    def root(code: int) -> int:
        while parent[code] != code:
            parent[code] = parent[parent[code]]
            code = parent[code]
        return code

    for i, j in np.asarray(pairs, np.int64).reshape(-1, 2):
        parent[root(int(codes[i]))] = root(int(codes[j]))
    return codes_of([root(int(code)) for code in codes])
