"""Several models' scores of one query as one: P = Σ w_i · P_i^α, with w and α fitted on out-of-fold scores.

P_i is the softmax of model i's identity scores at a temperature of its own, by maximum likelihood, so that a model whose
cosines differ little and one whose cosines differ much speak one language. α → 0 lets the models vote, 1 is their
weighted mean, above 1 the surest speaks. The fit never loses to the best single model on the data it saw; `fit_apart`
says what it gives on data that it did not see.

    matrices   one (Q, I) float array a model: queries × identities, −inf where the gallery has none to compare
    truth      (Q,) int column of each query's identity; −1: none of them, and the query is passed over

Pure functions on arrays. Source: the score-based ensemble of 768×256 ArcFace systems in Humpback Whale Identification
(2019), whose α was ½ by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.metrics import reciprocal_ranks

Floats = NDArray[np.float64]
IntArray = NDArray[np.int64]

ALPHAS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
STEPS = (0.25, 0.125, 0.0625, 0.03125)  # weight that is moved from one model to another, coarse to fine
_COLDEST, _HOTTEST = 1e-3, 1e2  # temperatures, in standard deviations of a model's scores
_SEARCHED = 40  # halvings of the golden section


@dataclass(frozen=True, slots=True)
class Fusion:
    """What was fitted: `weights` sum to 1, one a model, beside the `temperatures` of their softmax; `map_at_5` on the
    fitted queries, `singles` that of each model by itself, `queries` how many there were.
    """

    weights: tuple[float, ...]
    alpha: float
    temperatures: tuple[float, ...]
    map_at_5: float
    singles: tuple[float, ...]
    queries: int


def fit_fusion(matrices: Sequence[NDArray[Any]], truth: ArrayLike, *, alphas: Sequence[float] = ALPHAS) -> Fusion:
    """Weights and power for which Σ w·P^α finds most of the truth: MAP@5, ties going to the higher likelihood of the
    truth. With one of `alphas` alone it is held at that.

    The search starts from equal weights and from each model alone, and moves weight from one model to another as long
    as that helps.

    Raises:
        ValueError: shapes that do not fit, NaN, or no query whose identity is among the columns.
    """
    scores, aim = _checked(matrices, truth)
    temperatures = tuple(temperature(one, aim) for one in scores)
    logs = [_log_softmax(one, t) for one, t in zip(scores, temperatures, strict=True)]
    n = len(logs)
    singles = tuple(_worth(np.exp(one), aim)[0] for one in logs)
    best: tuple[tuple[float, float], Floats, float] | None = None
    for alpha in alphas:
        powers = np.stack([np.exp(alpha * one) for one in logs])
        starts = [np.full(n, 1.0 / n), *np.eye(n)]
        values = [_worth(np.tensordot(start, powers, 1), aim) for start in starts]
        first = max(range(len(starts)), key=lambda i: (values[i], -i))
        weights, value = _climbed(powers, aim, starts[first], values[first])
        if best is None or value[0] > best[0][0] or (value[0] == best[0][0] and abs(alpha - 1) < abs(best[2] - 1)):
            best = value, weights, alpha
    assert best is not None  # there is an α
    return Fusion(tuple(float(w) for w in best[1]), float(best[2]), temperatures, best[0][0], singles, len(aim))


def fuse(matrices: Sequence[NDArray[Any]], fusion: Fusion) -> Floats:
    """Σ w·P^α of the same models' scores `(Q, I)`, float64."""
    total = np.zeros(np.shape(matrices[0]))
    for one, weight, heat in zip(matrices, fusion.weights, fusion.temperatures, strict=True):
        if weight:
            total += weight * np.exp(fusion.alpha * _log_softmax(np.asarray(one, np.float64), heat))
    return total


def fit_apart(matrices: Sequence[NDArray[Any]], truth: ArrayLike, *, seed: int = 0) -> float:
    """MAP@5 of fusions on queries that they were not fitted on: two halves of the identities, each scored by the fit of
    the other. NaN where a half would be empty.
    """
    aim = np.asarray(truth, np.int64)
    known = np.unique(aim[aim >= 0])
    first = np.random.default_rng(seed).permutation(known)[: len(known) // 2]
    inside = np.isin(aim, first)
    halves = np.flatnonzero(inside), np.flatnonzero(~inside & (aim >= 0))
    if not all(len(half) for half in halves):
        return float("nan")
    found = []
    for own, other in (halves, halves[::-1]):
        fitted = fit_fusion([one[other] for one in matrices], aim[other])
        found.append(reciprocal_ranks(ranks(fuse([one[own] for one in matrices], fitted), aim[own])))
    return float(np.concatenate(found).mean())


def temperature(scores: Floats, truth: IntArray) -> float:
    """The T for which softmax(scores / T) gives the truth its highest likelihood (golden section over log T)."""
    finite = scores[np.isfinite(scores)]
    spread = float(finite.std()) or 1.0
    low, high = np.log(_COLDEST * spread), np.log(_HOTTEST * spread)
    ratio = (5**0.5 - 1) / 2

    def loss(at: float) -> float:
        picked = _log_softmax(scores, float(np.exp(at)))[np.arange(len(truth)), truth]
        return -float(np.maximum(picked, -1e3).mean())

    a, b = high - ratio * (high - low), low + ratio * (high - low)
    loss_a, loss_b = loss(a), loss(b)
    for _ in range(_SEARCHED):
        if loss_a <= loss_b:
            high, b, loss_b = b, a, loss_a
            a = high - ratio * (high - low)
            loss_a = loss(a)
        else:
            low, a, loss_a = a, b, loss_b
            b = low + ratio * (high - low)
            loss_b = loss(b)
    return float(np.exp((low + high) / 2))


def ranks(scores: Floats, truth: IntArray) -> IntArray:
    """Rank of each query's identity among the columns, from 1; of equal scores the truth comes last."""
    own = np.take_along_axis(scores, truth[:, None], axis=1)
    return np.asarray((scores >= own).sum(axis=1), np.int64)


def _climbed(
    powers: Floats, truth: IntArray, weights: Floats, value: tuple[float, float]
) -> tuple[Floats, tuple[float, float]]:
    """Weight moved from one model to another, in ever smaller steps, as long as it helps."""
    now = np.tensordot(weights, powers, 1)
    for step in STEPS:
        better = True
        while better:
            better = False
            for giver in range(len(weights)):
                for taker in range(len(weights)):
                    moved = min(step, weights[giver])
                    if giver == taker or moved <= 0:
                        continue
                    tried = now + moved * (powers[taker] - powers[giver])
                    found = _worth(tried, truth)
                    if found > value:
                        weights = weights.copy()
                        weights[giver] -= moved
                        weights[taker] += moved
                        now, value, better = tried, found, True
    return weights, value


def _worth(scores: Floats, truth: IntArray) -> tuple[float, float]:
    """MAP@5, and the mean log share of the truth (rounded, so that a search by it ends)."""
    own = scores[np.arange(len(truth)), truth]
    share = own / np.maximum(scores.sum(axis=1), 1e-300)
    points = float(reciprocal_ranks(ranks(scores, truth)).mean())
    return round(points, 12), round(float(np.log(np.maximum(share, 1e-300)).mean()), 6)


def _log_softmax(scores: Floats, heat: float) -> Floats:
    """log softmax(scores / heat) a row; −inf stays."""
    top = scores.max(axis=1, keepdims=True)
    shifted = (scores - np.where(np.isfinite(top), top, 0.0)) / heat
    with np.errstate(divide="ignore"):
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), np.float64)


def _checked(matrices: Sequence[NDArray[Any]], truth: ArrayLike) -> tuple[list[Floats], IntArray]:
    """The queries that have their identity among the columns."""
    aim = np.asarray(truth, np.int64)
    shape = np.shape(matrices[0]) if matrices else ()
    if len(shape) != 2 or any(np.shape(one) != shape for one in matrices) or aim.shape != shape[:1]:
        raise ValueError(
            f"matrices {[np.shape(one) for one in matrices]} for {aim.shape} queries: expected (Q, I) each"
        )
    if aim.max(initial=-1) >= shape[1] or any(np.isnan(one).any() for one in matrices):
        raise ValueError("a truth beyond the columns, or scores that are NaN")
    usable = aim >= 0
    for one in matrices:
        usable &= np.isfinite(np.asarray(one)[np.arange(len(aim)), np.maximum(aim, 0)])
    if not usable.any():
        raise ValueError("no query has its identity among the columns")
    return [np.asarray(one, np.float64)[usable] for one in matrices], aim[usable]
