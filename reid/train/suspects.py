"""Identities that may be one animal under two names, found before they are set against each other.

Hard-negative mining would choose just these pairs, and where they are one animal it teaches the wrong thing. So the two
identities are not set against each other (`merged` codes in the assignment's place of labels), nor taken for one, and
someone who decides is told.

How sure is sure: of pairs of photos that score as high, by the labels of all the others, so many are of one identity
(`likely`). Scores of any model will do, as they are.

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


def likely(
    rows: FloatArray, near: NDArray[np.integer[Any]], labels: ArrayLike, sure: float, *, apart: ArrayLike | None = None
) -> Suspects:
    """Of each two identities that are one with a probability of `sure` or more, the two photos that are most alike.

    `rows (N, D)` unit rows; `near (N, k)` the nearest photos of other identities, −1 where a list has ended. The
    probability is an isotonic regression over these pairs and the as many nearest of each photo's own identity, on
    whether they are of one; each identity, and each two of them, has one vote, so that a split animal with many photos
    does not speak for itself. Photos of the same `apart (N,)` code (of one picture, say) are no pair. 1 suspects nobody.
    """
    codes = codes_of(labels)
    others = np.argwhere(near >= 0)
    first, second = others[:, 0], near[others[:, 0], others[:, 1]].astype(np.int64)
    own_first, own_second = _own_pairs(np.asarray(rows), codes, near.shape[1])
    one = np.concatenate([first, own_first]).astype(np.int64)
    other = np.concatenate([second, own_second]).astype(np.int64)
    if apart is not None:
        places = np.asarray(apart)
        keep = places[one] != places[other]
        one, other = one[keep], other[keep]
    score = _products(np.asarray(rows), one, other)
    low, high = np.minimum(codes[one], codes[other]), np.maximum(codes[one], codes[other])
    two = np.unique(low * (int(codes.max(initial=0)) + 1) + high, return_inverse=True)[1]
    vote = 1 / np.bincount(two)[two] if len(two) else np.empty(0)
    order = np.argsort(-score, kind="stable")
    # Isotonic probabilities are `sure` or more on that part of the order on which votes for one, less `sure`, add up
    # to the most.
    summed = np.cumsum(vote[order] * ((low == high)[order] - sure))
    inside = order[: int(summed.argmax()) + 1] if len(summed) and summed.max() > 0 else order[:0]
    inside = inside[low[inside] != high[inside]]
    inside = inside[np.sort(np.unique(two[inside], return_index=True)[1])]  # of each two identities the best pair
    return _suspects(one[inside], other[inside], score[inside], len(codes))


def _own_pairs(rows: FloatArray, codes: IntArray, k: int) -> tuple[IntArray, IntArray]:
    """Each photo and its at most k nearest of its own identity."""
    order = np.argsort(codes, kind="stable")
    first, second = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for members in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        if len(members) < 2:
            continue
        alike = rows[members] @ rows[members].T
        np.fill_diagonal(alike, -np.inf)
        best = np.argsort(-alike, axis=1, kind="stable")[:, : min(k, len(members) - 1)]
        first.append(np.repeat(members, best.shape[1]))
        second.append(members[best.ravel()])
    return np.concatenate(first), np.concatenate(second)


def _products(rows: FloatArray, one: IntArray, other: IntArray) -> NDArray[np.float64]:
    """Inner products of pairs of rows."""
    out = np.empty(len(one), np.float64)
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    for start in range(0, len(one), step):
        part = slice(start, start + step)
        out[part] = np.einsum("pd,pd->p", rows[one[part]], rows[other[part]])
    return out


def _suspects(rows: IntArray, columns: IntArray, values: FloatArray, n: int) -> Suspects:
    low, high = np.minimum(rows, columns), np.maximum(rows, columns)
    order = np.lexsort((high, low, -values))  # best first, then the first of each pair is its higher score
    keys = (low * n + high)[order]
    first = np.sort(np.unique(keys, return_index=True)[1])
    pairs = np.stack([keys[first] // n, keys[first] % n], axis=1)
    return Suspects(pairs, np.asarray(values, np.float64)[order][first])


def merged(labels: ArrayLike, pairs: ArrayLike, *, share: float = 1.0) -> IntArray:
    """Codes `(N,) int64` in which identities joined by `pairs (P, 2)` of photos share one: a chain of suspects becomes
    one group. The first pairs come first, and one that would make a group of more than `share` of the photos is passed
    over.
    """
    codes = codes_of(labels)
    parent = list(range(int(codes.max(initial=-1)) + 1))
    size = np.bincount(codes, minlength=len(parent)).tolist()

    def root(code: int) -> int:
        while parent[code] != code:
            parent[code] = parent[parent[code]]
            code = parent[code]
        return code

    for i, j in np.asarray(pairs, np.int64).reshape(-1, 2):
        one, other = root(int(codes[i])), root(int(codes[j]))
        if one != other and size[one] + size[other] <= share * len(codes):
            parent[one] = other
            size[other] += size[one]
    return codes_of([root(int(code)) for code in codes])
