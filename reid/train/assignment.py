"""Permutations of least cost: the linear assignment problem, dense and sparse, with pairs that must not be used.

Scores are higher for better pairs; `noise` K adds K·U[0,1) to each. An answer is `partner (N,) int64`, a permutation,
or None where every permutation uses a pair that must not be used. This is the one owner of `lap` (Jonker & Volgenant,
Computing 38, 1987); what photos and identities are is `reid.train.mining`'s business."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.errors import TrainError

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.int64]
Solver = Literal["auto", "lap", "scipy"]

_CHUNK = 4_000_000  # matrix elements handled at once
_SMALL = 512  # photos, up to which a sparse problem is solved as a dense one


def codes_of(labels: ArrayLike) -> IntArray:
    """Labels as numbers 0 … C−1 in sorted order."""
    array = np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(f"labels {array.shape}: expected one a photo")
    return np.unique(array, return_inverse=True)[1].astype(np.int64) if len(array) else np.empty(0, np.int64)


def assign_dense(
    scores: FloatArray,
    codes: IntArray,
    noise: float,
    pairs: IntArray,
    rng: np.random.Generator,
    solver: Solver = "auto",
) -> IntArray | None:
    """The permutation of highest total score in which `codes[i] != codes[partner[i]]` and no row of `pairs (P, 2)` is
    used.

    Raises:
        TrainError: a score is not a number.
    """
    cost, never = _cost_matrix(scores, codes, noise, pairs, rng)
    partner = _solve(cost, solver)
    return None if cost[np.arange(len(codes)), partner].max(initial=0.0) >= never else partner


def _cost_matrix(
    scores: FloatArray, codes: IntArray, noise: float, pairs: IntArray, rng: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """Costs `(N, N) float64` and the price of what must not be.

    Scores with noise are brought to [0, 1], 0 for the highest. A pair that must not be costs N + 1: more than any whole
    assignment without one, so that one is used only if there is no other way. (`lap` takes 10⁶ for infinity, hence the
    scaling.)"""
    n = len(codes)
    cost = np.empty((n, n), np.float64)
    step = max(1, _CHUNK // max(1, n))
    for start in range(0, n, step):
        part = cost[start : start + step]
        np.negative(scores[start : start + step], out=part)
        if noise:
            part -= noise * rng.random(part.shape, np.float32)
    low, high = float(cost.min(initial=np.inf)), float(cost.max(initial=-np.inf))
    if n and not np.isfinite(high - low):
        raise TrainError(
            "scores hold values that are not numbers", next_step="look for photos whose vectors are not finite"
        )
    never = n + 1.0
    for start in range(0, n, step):
        part = cost[start : start + step]
        part -= low
        part /= max(high - low, 1e-300)
        part[codes[start : start + step, None] == codes[None, :]] = never
    cost[pairs[:, 0], pairs[:, 1]] = never
    return cost, never


def _solve(cost: NDArray[np.float64], solver: Solver) -> IntArray:
    """The cheapest permutation. (`lap` writes outside its arrays when there is nothing to assign.)"""
    if not len(cost):
        return np.empty(0, np.int64)
    if solver == "scipy":
        from scipy.optimize import linear_sum_assignment

        return np.asarray(linear_sum_assignment(cost)[1], np.int64)
    import lap

    return np.asarray(lap.lapjv(cost, return_cost=False)[0], np.int64)


def assign_sparse(
    keys: IntArray,
    value: NDArray[np.float64],
    n: int,
    noise: float,
    rng: np.random.Generator,
    *,
    feasible: bool = False,
) -> IntArray | None:
    """The permutation of highest total score over the pairs of `keys (E,)` = i·n + j, sorted, with scores `value (E,)`.

    A pair whose score is unknown (NaN) costs the whole range of the others beyond the worst of them. `feasible` says
    that a permutation is known to exist and spares the test for one.
    """
    import lap

    cost = -(value + noise * rng.random(len(value)))
    low, high = float(np.nanmin(cost, initial=np.inf)), float(np.nanmax(cost, initial=-np.inf))
    cost = (cost - low) / max(high - low, 1e-300)
    unknown = np.isnan(cost)
    cost[unknown] = 2.0 + rng.random(int(unknown.sum()))
    if n <= _SMALL:
        return _as_dense(keys, cost, n)
    starts, columns = np.searchsorted(keys, np.arange(n + 1) * n), keys % n
    # lapmod crashes where there is no permutation, and takes the difference to a second choice that must be there.
    degrees = np.diff(starts)
    if degrees.min() < 2 or np.bincount(columns, minlength=n).min() < 1:
        return None
    if not feasible and not _has_permutation(starts, columns, n):
        return None
    x, _ = lap.lapmod(
        n, cost, starts.astype(np.int32), columns.astype(np.int32), return_cost=False, fp_version=lap.FP_2
    )
    partner: IntArray = x.astype(np.int64)
    asked = np.arange(n) * n + partner
    listed = keys[np.minimum(np.searchsorted(keys, asked), len(keys) - 1)] == asked
    assert listed.all() and len(np.unique(partner)) == n, "lapmod answered with a pair that it was not given"
    return partner


def _as_dense(keys: IntArray, cost: NDArray[np.float64], n: int) -> IntArray | None:
    """The cheapest permutation of a small sparse problem; what is not listed costs more than any whole permutation."""
    full = np.full((n, n), 3.0 * n + 1.0)
    full.ravel()[keys] = cost
    partner = _solve(full, "lap")
    return partner if np.isin(np.arange(n) * n + partner, keys).all() else None


def _has_permutation(starts: IntArray, columns: IntArray, n: int) -> bool:
    """Whether the listed pairs hold a permutation at all (Hopcroft & Karp)."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    listed = csr_array((np.ones(len(columns), np.int8), columns, starts), shape=(n, n))
    return bool((maximum_bipartite_matching(listed, perm_type="column") >= 0).all())
