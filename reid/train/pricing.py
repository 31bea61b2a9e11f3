"""The exact assignment of many photos without an N² float64 matrix: a few pairs first, then a proof that the rest are
not needed.

Only the cheapest pairs of each row and column are assigned at first. The dual prices u, v of that small problem then
price every pair of the large one: where c_ij − u_i − v_j ≥ 0 for all of them, the assignment is optimal over the whole
matrix (linear-programming duality). Pairs that are priced below zero join the small problem and it is solved again. On
scores of real models three or four rounds are enough, and they cost a small part of what the whole matrix costs.
Source: column generation, Dantzig & Wolfe 1960; the prices by Bellman & Ford.

Knows costs only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from reid.train.assignment import Costs, IntArray, solve_dense, solve_edges

Floats = NDArray[np.float64]

_NEAREST = 50  # pairs of each row to begin with
_PER_CHUNK = 40_000  # pairs that one chunk of rows may add in one round
_ROUNDS = 50
_TOLERANCE = 1e-9  # by how much of the costs' range a pair may be priced below zero


def solve_priced(costs: Costs, known: list[IntArray]) -> IntArray | None:
    """The permutation of least cost over all N² pairs.

    `known` are permutations that may be used, to begin with: one without an infinite cost makes the first problem
    feasible. Without such a one, and should the rounds not come to an end, the whole matrix is solved instead.

    Raises:
        TrainError: a score is not a number.
    """
    n = len(costs.codes)
    if not n:
        return np.empty(0, np.int64)
    keys, cost = _cheapest(costs, known)
    tolerance = _TOLERANCE * max(float(np.ptp(cost)) if len(cost) else 0.0, 1e-300)
    column_price: Floats | None = None
    for _ in range(_ROUNDS):
        partner = solve_edges(keys, cost, n)
        if partner is None:
            break
        row_price, column_price = _prices(keys, cost, partner, tolerance, column_price)
        more_keys, more_cost = _underpriced(costs, row_price, column_price, tolerance)
        if not len(more_keys):
            return partner
        keys, cost = _joined(np.concatenate([keys, more_keys]), np.concatenate([cost, more_cost]))
    return solve_dense(costs)


def _cheapest(costs: Costs, known: list[IntArray]) -> tuple[IntArray, Floats]:
    """The cheapest pairs of each row, the cheapest of each column in each chunk of rows, and those of `known`."""
    n = len(costs.codes)
    k = min(_NEAREST, n)

    def cheapest(start: int) -> tuple[IntArray, Floats]:
        part = costs.chunk(start)
        row = np.arange(len(part))
        near = np.argpartition(part.astype(np.float32), k - 1, axis=1)[:, :k]
        keys = [(row[:, None] * n + near).ravel(), part.argmin(axis=0) * n + np.arange(n)]
        keys += [row * n + partner[start : start + len(part)] for partner in known]
        inside = np.unique(np.concatenate(keys))
        cost = part.ravel()[inside]
        finite = np.isfinite(cost)
        return inside[finite] + start * n, cost[finite]

    found = list(_on_threads(cheapest, costs.starts))
    return np.concatenate([keys for keys, _ in found]), np.concatenate([cost for _, cost in found])


def _underpriced(costs: Costs, row_price: Floats, column_price: Floats, tolerance: float) -> tuple[IntArray, Floats]:
    """Pairs of the whole matrix that cost less than their row's and column's prices together."""
    n = len(costs.codes)

    def find(start: int) -> tuple[IntArray, Floats]:
        part = costs.chunk(start)
        part -= row_price[start : start + len(part), None]
        part -= column_price
        inside = np.flatnonzero(part < -tolerance)
        if len(inside) > _PER_CHUNK:
            inside = inside[np.argpartition(part.ravel()[inside], _PER_CHUNK)[:_PER_CHUNK]]
        row, column = inside // n + start, inside % n
        return row * n + column, part.ravel()[inside] + row_price[row] + column_price[column]

    found = list(_on_threads(find, costs.starts))
    return np.concatenate([keys for keys, _ in found]), np.concatenate([cost for _, cost in found])


def _joined(keys: IntArray, cost: Floats) -> tuple[IntArray, Floats]:
    keys, first = np.unique(keys, return_index=True)
    return keys, cost[first]


def _prices(
    keys: IntArray, cost: Floats, partner: IntArray, tolerance: float, start: Floats | None
) -> tuple[Floats, Floats]:
    """Dual prices (rows, columns) of an optimal `partner` over listed pairs: c_ij − u_i − v_j ≥ 0, and 0 where
    assigned.

    With u_i = c_i,partner(i) − v_partner(i) this asks for v_j ≤ v_partner(i) + c_ij − c_i,partner(i): shortest paths,
    by Bellman & Ford over all pairs at once. From an earlier `start` few steps are enough; without one, the mean of the
    highest prices below zero and the lowest above is taken, which lies well inside what is allowed and so leaves few
    pairs of the whole matrix underpriced.
    """
    n = len(partner)
    row, column = keys // n, keys % n
    assigned = cost[np.searchsorted(keys, np.arange(n) * n + partner)]
    step = cost - assigned[row]
    source = partner[row]
    if start is not None:
        price = _lowered(start, source, column, step, tolerance)
    else:
        below = _lowered(np.zeros(n), source, column, step, tolerance)
        above = -_lowered(np.zeros(n), column, source, step, tolerance)
        price = (below + above) / 2
    return assigned - price[partner], price


def _lowered(price: Floats, source: IntArray, target: IntArray, step: Floats, tolerance: float) -> Floats:
    """The highest prices ≤ `price` with price[target] ≤ price[source] + step for every pair; all photos are targets."""
    order = np.argsort(target, kind="stable")
    source, step = source[order], step[order]
    first = np.searchsorted(target[order], np.arange(len(price)))
    for _ in range(len(price)):
        lower = np.minimum(price, np.minimum.reduceat(price[source] + step, first))
        if float((price - lower).max()) <= tolerance / len(price):
            return lower
        price = lower
    return price


def _on_threads(work: Callable[[int], tuple[IntArray, Floats]], starts: range) -> Iterator[tuple[IntArray, Floats]]:
    """Chunks side by side (numpy leaves the interpreter free), answers in order; at most two, to keep memory small."""
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        yield from pool.map(work, starts)
