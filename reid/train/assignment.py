"""Permutations of least cost: the linear assignment problem, over a matrix or over listed pairs.

An answer is `partner (N,) int64`, a permutation, or None where every permutation uses a pair that must not be used.
What photos and identities are is `reid.train.mining`'s business, which problem to solve how is chosen there too.

Which library solves what was measured on scores of a real model (`bench/lap.py`): over a matrix `lap` (Jonker &
Volgenant, Computing 38, 1987) beats SciPy's solver at every size, by two to five times; over listed pairs SciPy's
`min_weight_full_bipartite_matching` beats `lap.lapmod`, and says so where there is no assignment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.errors import TrainError

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.int64]
Int32 = NDArray[np.int32]
EdgeSolver = Literal["auto", "lap", "scipy"]

_CHUNK = 4_000_000  # matrix elements handled at once
_SMALL = 512  # photos, up to which a sparse problem is solved as a dense one


def codes_of(labels: ArrayLike) -> IntArray:
    """Labels as numbers 0 … C−1 in sorted order."""
    array = np.asarray(labels)
    if array.ndim != 1:
        raise ValueError(f"labels {array.shape}: expected one a photo")
    return np.unique(array, return_inverse=True)[1].astype(np.int64) if len(array) else np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """What each pair costs: −(score + K·U[0,1)), infinite within an identity and where forbidden. Drawn in chunks of
    rows.

    `scores (N, N)`; `codes (N,)` identities as numbers; `never (P,)` forbidden pairs i·N + j, sorted, in both
    directions. The same `seed` gives the same costs, however often they are asked for.
    """

    scores: FloatArray
    codes: IntArray
    noise: float
    never: IntArray
    seed: int

    @property
    def starts(self) -> range:
        """The first rows of the chunks."""
        return range(0, len(self.codes), max(1, _CHUNK // max(1, len(self.codes))))

    def chunk(self, start: int, out: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """The costs of the rows from `start` on, `(rows, N) float64`, written into `out` where given.

        Raises:
            TrainError: a score is not a number.
        """
        n = len(self.codes)
        stop = min(start + self.starts.step, n)
        part = np.negative(self.scores[start:stop], out=out, dtype=np.float64)
        if not np.isfinite(part.sum()):
            raise not_numbers()
        if self.noise:
            part -= self.noise * np.random.default_rng([self.seed, start]).random(part.shape, np.float32)
        part[self.codes[start:stop, None] == self.codes[None, :]] = np.inf
        first, last = np.searchsorted(self.never, [start * n, stop * n])
        part.ravel()[self.never[first:last] - start * n] = np.inf
        return part


def draw_costs(scores: FloatArray, codes: IntArray, noise: float, pairs: IntArray, rng: np.random.Generator) -> Costs:
    """Costs with noise drawn from `rng`; `pairs (P, 2)` are forbidden as they stand, in that direction."""
    never = np.unique(pairs[:, 0] * len(codes) + pairs[:, 1])
    return Costs(scores, codes, noise, never, int(rng.integers(2**63)))


def not_numbers() -> TrainError:
    """The error for scores that are NaN or infinite."""
    return TrainError(
        "scores hold values that are not numbers", next_step="look for photos whose vectors are not finite"
    )


def solve_dense(costs: Costs, solver: Literal["lap", "scipy"] = "lap") -> IntArray | None:
    """The permutation of least cost; needs N² float64.

    Costs are brought to [0, 1], and an infinite one to N + 1: more than any whole assignment without one, so that one
    is used only if there is no other way. (`lap` takes 10⁶ for infinity, hence the scaling.)

    Raises:
        TrainError: a score is not a number.
    """
    n = len(costs.codes)
    cost = np.empty((n, n), np.float64)
    low, high = np.inf, -np.inf
    for start in costs.starts:
        part = costs.chunk(start, cost[start : start + costs.starts.step])
        low = min(low, float(part.min(initial=np.inf)))
        high = max(high, float(part.max(initial=-np.inf, where=np.isfinite(part))))
    if low > high:  # not one pair may be used
        return np.empty(0, np.int64) if not n else None
    for start in costs.starts:
        part = cost[start : start + costs.starts.step]
        part -= low
        part /= max(high - low, 1e-300)
        part[~np.isfinite(part)] = n + 1.0
    partner = _solve(cost, solver)
    return None if cost[np.arange(n), partner].max(initial=0.0) > n else partner


def _solve(cost: NDArray[np.float64], solver: Literal["lap", "scipy"]) -> IntArray:
    """The cheapest permutation. (`lap` writes outside its arrays when there is nothing to assign.)"""
    if not len(cost):
        return np.empty(0, np.int64)
    if solver == "scipy":
        from scipy.optimize import linear_sum_assignment

        return np.asarray(linear_sum_assignment(cost)[1], np.int64)
    import lap

    return np.asarray(lap.lapjv(cost, return_cost=False)[0], np.int64)


def solve_edges(
    keys: IntArray, cost: NDArray[np.float64], n: int, solver: EdgeSolver = "auto", *, feasible: bool = False
) -> IntArray | None:
    """The permutation of least cost over the pairs of `keys (E,)` = i·n + j, sorted, with costs `cost (E,)`.

    `feasible` says that a permutation is known to exist and spares `lap` the test for one: its sparse solver crashes
    without, and takes the difference to a second choice that must be there.
    """
    if not n:
        return np.empty(0, np.int64)
    low, high = float(cost.min(initial=np.inf)), float(cost.max(initial=-np.inf))
    cost = (cost - low) / max(high - low, 1e-300)
    if n <= _SMALL:
        return _as_dense(keys, cost, n)
    starts, columns = np.searchsorted(keys, np.arange(n + 1) * n).astype(np.int32), (keys % n).astype(np.int32)
    if np.diff(starts).min() < 2 or np.bincount(columns, minlength=n).min() < 1:
        return None
    if solver != "lap":
        return _solve_edges_scipy(starts, columns, cost, n)
    if not feasible and not _has_permutation(starts, columns, n):
        return None
    return _solve_edges_lap(starts, columns, cost, n)


def _solve_edges_lap(starts: Int32, columns: Int32, cost: NDArray[np.float64], n: int) -> IntArray:
    import lap

    partner, _ = lap.lapmod(n, cost, starts, columns, return_cost=False, fp_version=lap.FP_2)
    return np.asarray(partner, np.int64)


def _solve_edges_scipy(starts: Int32, columns: Int32, cost: NDArray[np.float64], n: int) -> IntArray | None:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    listed = csr_array((cost + 1.0, columns, starts), shape=(n, n))  # an explicit zero would count as no pair
    try:
        return np.asarray(min_weight_full_bipartite_matching(listed)[1], np.int64)
    except ValueError:  # there is none
        return None


def _as_dense(keys: IntArray, cost: NDArray[np.float64], n: int) -> IntArray | None:
    """The cheapest permutation of a small sparse problem; what is not listed costs more than any whole permutation."""
    full = np.full((n, n), n + 1.0)
    full.ravel()[keys] = cost
    partner = _solve(full, "lap")
    return partner if np.isin(np.arange(n) * n + partner, keys).all() else None


def _has_permutation(starts: Int32, columns: Int32, n: int) -> bool:
    """Whether the listed pairs hold a permutation at all (Hopcroft & Karp)."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    listed = csr_array((np.ones(len(columns), np.int8), columns, starts), shape=(n, n))
    return bool((maximum_bipartite_matching(listed, perm_type="column") >= 0).all())
