"""Each source calibrated by itself to P(same animal), then fused: logistic regression, or the classic Σ w·P^α.

A source may speak by one of several columns (a cosine, or how far it is behind the best one) through a logistic curve or
a staircase (`reid.calibrate.CALIBRATIONS`): taken is what loses least, in log loss, on pairs of animals that the curve
was not fitted on. Weights are fitted on such out-of-fold probabilities, and what comes of them is made a probability
again by a curve. Pairs that a source says nothing of (geometry compares a few candidates alone) get the share of matches
among such pairs.

Pure functions on arrays; knows no photos, no stores, and not where columns come from. Sources: WildFusion (Cermak et
al. 2024) for calibrated scores; the score-based ensembles of Humpback Whale Identification 2019 for Σ w·P^α; Wolpert,
Stacked generalization (1992), for weights on out-of-fold values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from reid import calibrate, logistic
from reid.calibrate import Calibration
from reid.errors import InputError
from reid.logistic import Logistic, logit
from reid.score import FEWEST, folds_of

Floats = NDArray[np.float64]
IntArray = NDArray[np.int64]
Columns = Mapping[str, Floats]
Way = Literal["logistic", "power"]
WAYS: tuple[Way, ...] = get_args(Way)

SPEAKS_BY: dict[str, tuple[str, ...]] = {
    "cosine": ("cosine", "cosine_behind_best", "cosine_standing"),
    "votes": ("log_votes", "log_votes_behind_best", "votes_share"),
    "geometry": ("validator", "log_weight"),
    "siamese": ("siamese", "siamese_behind_best"),
}
"""Columns by which a source may speak."""
FOLDS = 5
MOST_OTHERS = 20_000  # pairs of different animals that curves and weights are fitted on; a random choice of more
ALPHAS = (0.1, 0.25, 0.5, 1.0, 2.0)
STEPS = (0.25, 0.125, 0.0625, 0.03125)  # weight that is moved from one source to another, coarse to fine
_IN_SIGHT = 8  # animals of a query that each source may bring before the weights of Σ w·P^α


@dataclass(frozen=True, slots=True)
class Source:
    """One source: the column it speaks by, the curve to P(same), and P where the column is NaN. `loss` is its
    out-of-fold log loss a pair.
    """

    name: str
    column: str
    curve: Calibration
    absent: float
    loss: float = math.nan

    def probability(self, columns: Columns) -> Floats:
        """P(same animal) `(N,)`."""
        return _applied(self.curve, self.absent, columns[self.column])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name, "column": self.column, "curve": self.curve.to_dict(), "absent": self.absent,
            "loss": self.loss,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Source:
        """Inverse of `to_dict`. KeyError, TypeError or ValueError for what it cannot have written."""
        found = cls(
            raw["name"], raw["column"], Calibration.from_dict(raw["curve"]), float(raw["absent"]), float(raw["loss"])
        )
        if found.column not in SPEAKS_BY.get(found.name, ()) or not 0 < found.absent < 1:
            raise ValueError(f"not a source: '{found.name}' by '{found.column}'")
        return found


@dataclass(frozen=True, slots=True)
class Combined:
    """Sources and their weights, one each. `logistic`: `offset` + Σ w·logit P; `power`: Σ w·P^`alpha`, where the
    weights sum to 1. `curve` makes a probability of that.
    """

    way: Way
    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    curve: Calibration
    offset: float = 0.0
    alpha: float = 1.0

    def probability(self, columns: Columns) -> Floats:
        """P(same animal) `(N,)` of pairs with these columns; those that no source speaks by may be missing."""
        heard = np.stack([one.probability(columns) for one in self.sources], axis=1)
        return self.curve.probability(_value(self.way, heard, self.weights, self.offset, self.alpha))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "way": self.way, "sources": [one.to_dict() for one in self.sources], "weights": list(self.weights),
            "curve": self.curve.to_dict(), "offset": self.offset, "alpha": self.alpha,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Combined:
        """Inverse of `to_dict`. KeyError, TypeError or ValueError for what it cannot have written."""
        found = cls(
            raw["way"],
            tuple(Source.from_dict(one) for one in raw["sources"]),
            tuple(float(w) for w in raw["weights"]),
            Calibration.from_dict(raw["curve"]),
            float(raw["offset"]),
            float(raw["alpha"]),
        )
        numbers = [*found.weights, found.offset, found.alpha]
        if found.way not in WAYS or not found.sources or len(found.sources) != len(found.weights):
            raise ValueError(f"not a fusion of sources: '{found.way}'")
        if not np.isfinite(numbers).all():
            raise ValueError("not a fusion of sources: its weights are not finite")
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """N pairs of a query and a candidate: `columns` by name (N,), `same (N,)` bool, `animals (N, 2)` codes of both, and
    `lists (N,)` the query's number where its animal is among those that can be found, −1 where it was taken out.
    """

    columns: Columns
    same: NDArray[np.bool_]
    animals: IntArray
    lists: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """The sources fitted on all pairs, and what each says of each pair out of fold, `(N, S)`; `fold (N,)` of the pair's
    query, and `apart (F, N)` bool: the pairs that a fold's fit may see.
    """

    sources: tuple[Source, ...]
    out_of_fold: Floats
    fold: IntArray
    apart: NDArray[np.bool_]
    weights: Floats  # (N,): of the pairs that are fitted on; 0 for those left aside


def hear(pairs: Pairs, seed: int = 0) -> Heard:
    """Calibrate every source that there are columns of.

    Raises:
        InputError: fewer than `FEWEST` pairs of either kind, or all of one animal.
    """
    same = pairs.same
    if min(int(same.sum()), int((~same).sum())) < FEWEST:
        raise InputError(
            f"{int(same.sum())} matching and {int((~same).sum())} other pairs are too few to calibrate on",
            next_step=f"enrol more photos: {FEWEST} pairs of each kind are the least",
        )
    codes = np.unique(pairs.animals, return_inverse=True)[1].reshape(pairs.animals.shape).astype(np.int64)
    if codes.max() < 1:
        raise InputError("all pairs are of one animal", next_step="enrol photos of others")
    fold_of = folds_of(codes, FOLDS, seed)[codes]
    fold = fold_of[:, 0]
    apart = np.stack([(fold_of != f).all(axis=1) for f in range(int(fold_of.max()) + 1)])
    weights = _weights(same, seed)
    found, heard = [], []
    for name, columns in SPEAKS_BY.items():
        there = [column for column in columns if column in pairs.columns]
        tried = [
            one
            for column in there
            for kind in calibrate.CALIBRATIONS
            if (one := _source(name, column, kind, pairs, fold, apart, weights)) is not None
        ]
        if tried:
            source, values = min(tried, key=lambda one: one[0].loss)
            found.append(source)
            heard.append(values)
    return Heard(tuple(found), np.stack(heard, axis=1), fold, apart, weights)


def _weights(same: NDArray[np.bool_], seed: int) -> Floats:
    """1 for every match, and for a random choice of the others as much as stands for all of them."""
    weights = np.ones(len(same))
    others = np.flatnonzero(~same)
    if len(others) > MOST_OTHERS:
        weights[others] = 0.0
        weights[np.random.default_rng(seed).permutation(others)[:MOST_OTHERS]] = len(others) / MOST_OTHERS
    return weights


def _source(
    name: str, column: str, kind: str, pairs: Pairs, fold: IntArray, apart: NDArray[np.bool_], weights: Floats
) -> tuple[Source, Floats] | None:
    """A source by one column and one curve, with its out-of-fold probabilities; None where there is too little."""
    values = pairs.columns[column]
    out = np.empty(len(values))
    for f, seen in enumerate(apart):
        fitted = _curve(kind, values, pairs.same, weights * seen)
        if fitted is None:
            return None
        out[fold == f] = _applied(*fitted, values[fold == f])
    whole = _curve(kind, values, pairs.same, weights)
    if whole is None:
        return None
    return Source(name, column, *whole, log_loss(out, pairs.same, weights)), out


def _curve(kind: str, values: Floats, same: NDArray[np.bool_], weights: Floats) -> tuple[Calibration, float] | None:
    """The curve of the pairs that have a value, and the share of matches among those that have none."""
    there = np.isfinite(values) & (weights > 0)
    if not 0 < same[there].sum() < there.sum():
        return None
    without = ~np.isfinite(values)
    mass, matches = (weights * without).sum(), (weights * without * same).sum()
    return calibrate.CALIBRATIONS[kind](values[there], same[there], weights[there]), float((matches + 1) / (mass + 2))


def _applied(curve: Calibration, absent: float, values: Floats) -> Floats:
    return np.where(np.isfinite(values), curve.probability(np.nan_to_num(values)), absent)


def log_loss(probability: Floats, same: NDArray[np.bool_], weights: Floats) -> float:
    """Mean −log of the probability given to what was the case."""
    p = np.clip(probability, 1e-9, 1 - 1e-9)
    return float(np.average(-np.log(np.where(same, p, 1 - p)), weights=weights))


def combine(pairs: Pairs, heard: Heard, way: Way) -> tuple[Combined, Floats]:
    """The sources fused, and P(same) `(N,)` of every pair by weights that saw no pair with its query's animal."""
    value = np.empty(len(pairs.same))
    for f, seen in enumerate(heard.apart):
        mine = heard.fold == f
        value[mine] = _value(way, heard.out_of_fold[mine], *_fitted(pairs, heard, seen, way))
    weights, offset, alpha = _fitted(pairs, heard, np.ones(len(value), np.bool_), way)
    curve = calibrate.fit_platt(value, pairs.same, heard.weights)
    return Combined(way, heard.sources, weights, curve, offset, alpha), curve.probability(value)


def _fitted(pairs: Pairs, heard: Heard, seen: NDArray[np.bool_], way: Way) -> tuple[tuple[float, ...], float, float]:
    """Weights, offset and α, fitted on the pairs `seen (N,)`."""
    if way == "power":
        return _powers(pairs, heard, seen)
    rows = seen & (heard.weights > 0)
    try:
        found: Logistic = logistic.fit(logit(heard.out_of_fold[rows]), pairs.same[rows], heard.weights[rows])
    except ValueError:  # a fold without either kind
        return (1.0,) * len(heard.sources), 0.0, 1.0
    return found.weights, found.offset, 1.0


def _value(way: Way, heard: Floats, weights: Sequence[float], offset: float, alpha: float) -> Floats:
    """What the sources' probabilities `(N, S)` come to, `(N,)`."""
    rows = logit(heard) if way == "logistic" else heard**alpha
    return np.asarray(offset + rows @ np.array(weights, np.float64))


# Σ w·P^α -------------------------------------------------------------------------------------------


def _powers(pairs: Pairs, heard: Heard, seen: NDArray[np.bool_]) -> tuple[tuple[float, ...], float, float]:
    """Weights and α with the best mean reciprocal rank of the queries' animals.

    The search starts from equal weights and from each source alone, and moves weight from one source to another as
    long as that helps.
    """
    lists = _Lists.of(pairs, heard.out_of_fold, seen)
    n = len(heard.sources)
    best = (-1.0, np.full(n, 1 / n), 1.0)
    for alpha in ALPHAS:
        powers = lists.heard**alpha
        starts = [np.full(n, 1 / n), *np.eye(n)]
        values = [lists.worth(powers @ start) for start in starts]
        first = int(np.argmax(values))
        weights, value = _climbed(lists, powers, starts[first], values[first])
        if value > best[0] or (value == best[0] and abs(alpha - 1) < abs(best[2] - 1)):
            best = (value, weights, alpha)
    return tuple(best[1].tolist()), 0.0, best[2]


def _climbed(lists: _Lists, powers: Floats, weights: Floats, value: float) -> tuple[Floats, float]:
    """Move weight between two sources, in ever smaller steps, as long as that helps."""
    for step in STEPS:
        better = True
        while better:
            better = False
            for giver, taker in ((g, t) for g in range(len(weights)) for t in range(len(weights)) if g != t):
                if weights[giver] < step:
                    continue
                moved = weights.copy()
                moved[giver] -= step
                moved[taker] += step
                found = lists.worth(powers @ moved)
                if found > value:
                    weights, value, better = moved, found, True
    return weights, value


@dataclass(frozen=True, slots=True, eq=False)
class _Lists:
    """Rows of the queries whose animal can be found, sorted by query and animal; animals that no source has among its
    best are left out, for speed.
    """

    heard: Floats  # (M, S)
    starts: IntArray  # (G,) where each animal of each query begins
    query: IntArray  # (G,) 0 … Q − 1
    own: NDArray[np.bool_]  # (G,)
    queries: int  # those whose animal is in no list count, too

    @classmethod
    def of(cls, pairs: Pairs, heard: Floats, seen: NDArray[np.bool_]) -> _Lists:
        rows = np.flatnonzero(seen & (pairs.lists >= 0))
        rows = rows[np.lexsort((pairs.animals[rows, 1], pairs.lists[rows]))]
        names, query = np.unique(pairs.lists[rows], return_inverse=True)
        animal = pairs.animals[rows, 1]
        begins = np.flatnonzero(np.r_[True, (np.diff(query) != 0) | (np.diff(animal) != 0)]) if len(rows) else rows
        best = np.maximum.reduceat(heard[rows], begins, axis=0) if len(rows) else np.empty((0, heard.shape[1]))
        own = pairs.same[rows][begins]
        near = own.copy()
        for column in best.T:
            order = np.lexsort((-column, query[begins]))
            first = np.searchsorted(query[begins][order], np.arange(len(names)))
            place = np.arange(len(order)) - first[query[begins][order]]
            near[order[place < _IN_SIGHT]] = True
        sizes = np.diff(np.r_[begins, len(rows)])
        kept = np.repeat(near, sizes)
        starts = np.cumsum(sizes[near]) - sizes[near]
        return cls(heard[rows][kept], starts.astype(np.int64), query[begins][near], own[near], len(names))

    def worth(self, values: Floats) -> float:
        """Mean reciprocal rank of the own animals by `values (M,)`, each animal by its best photo; ties count half."""
        if not self.own.any():
            return 0.0
        score = np.maximum.reduceat(values, self.starts)
        aim = np.full(self.queries, np.inf)
        aim[self.query[self.own]] = score[self.own]
        ahead = (score > aim[self.query]) + 0.5 * ((score == aim[self.query]) & ~self.own)
        rank = 1 + np.bincount(self.query, weights=ahead, minlength=self.queries)
        return float(np.where(np.isfinite(aim), 1 / rank, 0.0).sum() / self.queries)
