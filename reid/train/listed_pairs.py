"""The pairs a sparse assignment may use: those of neighbour lists, and random rotations so that there always is one.

A pair is a key i·N + j, photo i set against photo j; what is known of it is a score, NaN where nothing is. Conventions
otherwise as in `reid.train.mining`. Knows arrays only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.index import scan
from reid.train.assignment import FloatArray, IntArray, not_numbers

PairScores = Callable[[IntArray, IntArray], FloatArray]  # photo numbers (P,), (P,) → scores (P,)

_AT_ONCE = 2000  # photos whose nearest are looked for at once
_STRAYS, _MOST_STRAYS = 10, 200  # unlisted partners of each photo that noise may choose, at least and at most
ROTATIONS = 3  # fallback partners of each photo in a sparse assignment
TRIES = 20  # draws of rotations before none is taken to be free of forbidden pairs


def listed_edges(
    neighbours: NDArray[np.integer[Any]], scores: FloatArray, codes: IntArray, pairs: IntArray
) -> tuple[IntArray, NDArray[np.float64]]:
    """The allowed listed pairs in both directions as sorted keys i·N + j, and their scores."""
    n = len(codes)
    row = np.repeat(np.arange(n), neighbours.shape[1])
    column = neighbours.ravel().astype(np.int64)
    if len(column) and column.max() >= n:
        raise ValueError(f"neighbours name photo {column.max()} of {n}")
    keep = column >= 0
    keep[keep] = codes[row[keep]] != codes[column[keep]]
    row, column, value = row[keep], column[keep], scores.ravel()[keep].astype(np.float64)
    if not np.isfinite(value).all():
        raise not_numbers()
    keys, first = np.unique(np.concatenate([row * n + column, column * n + row]), return_index=True)
    value = np.concatenate([value, value])[first]
    allowed = ~_among(keys, _keys_of(pairs, n))
    return keys[allowed], value[allowed]


def with_strays(
    keys: IntArray,
    value: NDArray[np.float64],
    codes: IntArray,
    pairs: IntArray,
    noise: float,
    rng: np.random.Generator,
    pair_scores: PairScores,
) -> tuple[IntArray, NDArray[np.float64]]:
    """`keys` and their noisy scores, value + K·U[0,1), with the unlisted pairs that noise would lift above the others.

    Of a photo's N noises the largest are about 1 − j/N: so many random photos get these, and compete as they would over
    the whole matrix. Without them noise would only shuffle each photo's neighbours, and pairs stay harder than exact ones
    of the same K.
    """
    n = len(codes)
    wanted = math.ceil(2 * n / noise)  # beyond, noise lifts them by less than scores differ
    m = min(max(_STRAYS, wanted), _MOST_STRAYS, n - 1)
    row, column = np.repeat(np.arange(n), m), rng.integers(0, n, n * m)
    lift = 1 - np.cumsum(rng.exponential(size=(n, m)), axis=1).ravel() / n
    added, first = np.unique(row * n + column, return_index=True)
    free = (codes[row[first]] != codes[column[first]]) & ~_among(added, keys)
    free &= ~_among(added, _keys_of(pairs, n))
    added, first = added[free], first[free]
    strayed = pair_scores(added // n, added % n) + noise * lift[first]
    together = np.concatenate([keys, added])
    order = np.argsort(together)
    return together[order], np.concatenate([value + noise * rng.random(len(value)), strayed])[order]


def edge_costs(value: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """−score; a pair of unknown score (NaN) costs the whole range of the others beyond the worst of them."""
    cost = -value
    unknown = np.isnan(cost)
    known = cost[~unknown]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    reach = (high - low) or 1.0
    cost[unknown] = high + reach * (1.0 + rng.random(int(unknown.sum())))
    return cost


def with_rotations(
    keys: IntArray,
    value: NDArray[np.float64],
    codes: IntArray,
    pairs: IntArray,
    rng: np.random.Generator,
    pair_scores: PairScores | None,
) -> tuple[IntArray, NDArray[np.float64], bool]:
    """`keys` and `value` with random rotations added, and whether one of these is free of forbidden pairs.

    One such rotation makes the whole feasible, so the first is drawn again, a few times, until it has none. NaN is the
    score of a pair of which nothing is known.
    """
    n = len(codes)
    never = _keys_of(pairs, n)
    every = np.arange(n)
    rotations = [every * n + rotation(codes, rng) for _ in range(ROTATIONS)]
    clean = not _among(rotations[0], never).any()
    for _ in range(TRIES):
        if clean:
            break
        rotations[0] = every * n + rotation(codes, rng)
        clean = not _among(rotations[0], never).any()
    added = np.unique(np.concatenate(rotations))
    added = added[~_among(added, never) & ~_among(added, keys)]
    known = np.full(len(added), np.nan)
    if pair_scores is not None:
        known[:] = pair_scores(added // n, added % n)
    together = np.concatenate([keys, added])
    order = np.argsort(together)
    return together[order], np.concatenate([value, known])[order], clean


def _keys_of(pairs: IntArray, n: int) -> IntArray:
    """The keys of pairs, sorted."""
    keys: IntArray = np.sort(pairs[:, 0] * n + pairs[:, 1])
    return keys


def _among(some: IntArray, keys: IntArray) -> NDArray[np.bool_]:
    """Which of `some` are among sorted `keys`: quicker than `np.isin`, which would sort or hash them all again."""
    if not len(keys):
        return np.zeros(len(some), np.bool_)
    found: NDArray[np.bool_] = keys[np.searchsorted(keys, some).clip(max=len(keys) - 1)] == some
    return found


def rotation(codes: IntArray, rng: np.random.Generator) -> IntArray:
    """A random partner of another identity for every photo, each used once. (N,) int64.

    Photos are shuffled, sorted by identities in random order and moved on by a random number of places between the
    largest identity's size and N minus it: no photo can then land on its own identity.
    """
    order = shuffled_by_identity(codes, rng)
    largest = int(np.bincount(codes).max()) if len(codes) else 0
    partner = np.empty(len(codes), np.int64)
    partner[order] = np.roll(order, int(rng.integers(largest, len(codes) - largest + 1))) if len(codes) else order
    return partner


def exchanged(partner: IntArray, codes: IntArray, pairs: IntArray, rng: np.random.Generator) -> IntArray | None:
    """`partner` with each photo of a forbidden pair given another photo's partner, and that photo its own; None where no
    photo is found to exchange with. `pairs (2P, 2)` in both directions.
    """
    n = len(codes)
    never = np.unique(pairs[:, 0] * n + pairs[:, 1])
    partner = partner.copy()

    def fits(photos: IntArray, others: IntArray) -> NDArray[np.bool_]:
        keys = photos * n + others
        at = np.searchsorted(never, keys).clip(max=len(never) - 1)
        good: NDArray[np.bool_] = (codes[photos] != codes[others]) & (never[at] != keys)
        return good

    for photo in np.flatnonzero(~fits(np.arange(n), partner)).tolist():
        if fits(np.array([photo]), partner[[photo]])[0]:
            continue  # it got another one meanwhile
        order = rng.permutation(n)
        good = order[fits(np.full(n, photo), partner[order]) & fits(order, np.full(n, partner[photo]))]
        if not len(good):
            return None
        partner[[photo, good[0]]] = partner[[good[0], photo]]
    return partner


def shuffled_by_identity(codes: IntArray, rng: np.random.Generator) -> IntArray:
    """Photo numbers with each identity's together, identities and photos within them in random order."""
    rank = rng.permutation(int(codes.max(initial=-1)) + 1)
    return np.lexsort((rng.random(len(codes)), rank[codes]))


def nearest_others(rows: NDArray[np.float32], codes: IntArray, k: int) -> IntArray:
    """Each photo's nearest ones of other identities by the product of unit `rows (N, D)`, best first: `(N, k) int64`, −1
    where there are no more. By the scan of the gallery index: memory grows with N, time with N².
    """
    n = len(codes)
    near = np.full((n, k), -1, np.int64)
    halves = rows.astype(np.float16)
    own = np.bincount(codes)[codes] if n else codes
    for start in range(0, n, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        found = scan.many(halves, rows[part], min(n, k + int(own[part].max())), None).rows
        other = codes[found] != codes[part, None]
        order = np.argsort(~other, axis=1, kind="stable")[:, :k]
        near[part, : order.shape[1]] = np.where(
            np.take_along_axis(other, order, 1), np.take_along_axis(found, order, 1), -1
        )
    return near
