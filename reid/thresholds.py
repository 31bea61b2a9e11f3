"""The threshold at which the new individual is put: the best over left-out photos, how sure that is, and on what basis.

Known cases show how an animal scores that is in the gallery, unknown ones how one does that is not (`reid.leaving_out`);
the threshold weighs them by the share of new animals that is expected. Pure functions on arrays.

Sources: `new_whale` at a threshold chosen for MAP@5 (all teams of the Kaggle challenge of 2019); √(BAKS·BAUS) from
AnimalCLEF 2025.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from reid.config import Objective
from reid.decide import DEFAULT_NEW_SHARE, DEFAULT_THRESHOLD, LABELS
from reid.leaving_out import FloatArray, IntArray, LeftOut

MIN_CASES = 20  # photos of either kind below which no threshold is measured
MIN_IDENTITIES = 10  # animals of either kind, likewise
UNKNOWNS_CALLED_NEW = 0.9  # where only unknown cases exist: the share of them that the threshold calls new


@dataclass(frozen=True, slots=True)
class NewThreshold:
    """Where the new individual stands, and how that is known. `value` is always usable.

    `basis`: `measured` on known and unknown cases; `unknowns`, where animals with a second sighting are too few, put
    where nine in ten left-out animals are called new; `default`, where there is too little of either. `reason` says
    in words what was missing. `low`, `high` enclose the threshold, `score_low`, `score_high` the objective's value
    `score` at it, by bootstrap over animals (NaN unless measured). The score is that of the photos the threshold was
    chosen on, so slightly kind.
    """

    value: float
    basis: Literal["measured", "unknowns", "default"]
    reason: str
    objective: Objective
    new_share: float
    score: float = math.nan
    low: float = math.nan
    high: float = math.nan
    score_low: float = math.nan
    score_high: float = math.nan
    known_photos: int = 0
    known_identities: int = 0
    unknown_photos: int = 0
    unknown_identities: int = 0
    n_truncated: int = 0


def choose_threshold(
    cases: LeftOut,
    objective: Objective = "map_at_5",
    new_share: float = DEFAULT_NEW_SHARE,
    default: float = DEFAULT_THRESHOLD,
    n: int = 300,
    seed: int = 0,
    level: float = 0.95,
) -> NewThreshold:
    """The threshold with the best expected objective when `new_share` of the photos show a new animal.

    `map_at_5` is the mean over photos, (1 − new_share) · known + new_share · unknown; `balanced` is (BAKS + BAUS)/2
    and `geometric` √(BAKS·BAUS), both means over animals and so free of the share. Every score seen is tried, and the
    middle of the best stretch is taken; `n` bootstrap draws, 0 for no interval. Never raises for little data: see
    `NewThreshold.basis`.
    """
    if not 0 <= new_share <= 1:
        raise ValueError(f"new_share {new_share} lies outside [0, 1]")
    known, unknown = cases.identity[cases.known_case], cases.identity[cases.unknown_case]
    counts = {
        "known_photos": len(known),
        "known_identities": len(np.unique(known)),
        "unknown_photos": len(unknown),
        "unknown_identities": len(np.unique(unknown)),
        "n_truncated": cases.n_truncated,
    }
    enough_known = counts["known_photos"] >= MIN_CASES and counts["known_identities"] >= MIN_IDENTITIES
    enough_unknown = counts["unknown_photos"] >= MIN_CASES and counts["unknown_identities"] >= MIN_IDENTITIES
    needs = f"{MIN_CASES} photos of {MIN_IDENTITIES} animals are needed"
    if not enough_unknown:
        reason = (
            f"{counts['unknown_photos']} photos of {counts['unknown_identities']} animals can be left out, {needs}: "
            f"the default threshold {default:g} is used"
        )
        return NewThreshold(default, "default", reason, objective, new_share, **counts)
    if not enough_known:
        value = float(np.quantile(cases.other_scores[cases.unknown_case, 0], UNKNOWNS_CALLED_NEW))
        reason = (
            f"{counts['known_photos']} photos of {counts['known_identities']} animals have a second sighting, {needs}: "
            f"the threshold is put where {UNKNOWNS_CALLED_NEW:.0%} of left-out animals are called new"
        )
        return NewThreshold(value, "unknowns", reason, objective, new_share, **counts)
    curve = _Curve.of(cases, objective, new_share)
    regions = curve.values(np.ones(curve.n_identities))
    value, score = curve.best(regions)
    low, high, score_low, score_high = _bootstrap_threshold(curve, value, n, seed, level)
    reason = f"measured on {counts['known_photos']} known and {counts['unknown_photos']} left-out photos"
    return NewThreshold(
        value, "measured", reason, objective, new_share, score, low, high, score_low, score_high, **counts
    )


def expected_score(cases: LeftOut, threshold: float, objective: Objective, new_share: float) -> float:
    """The objective at one threshold, NaN where a kind of case that it needs is missing."""
    curve = _Curve.of(cases, objective, new_share)
    return float(curve.values(np.ones(curve.n_identities))[int(np.searchsorted(curve.breaks, threshold, side="left"))])


def _bootstrap_threshold(
    curve: _Curve, value: float, n: int, seed: int, level: float
) -> tuple[float, float, float, float]:
    rng = np.random.default_rng(seed)
    chosen = int(np.searchsorted(curve.breaks, value, side="left"))
    drawn = np.full((n, 2), math.nan)
    for i in range(n):
        weights = np.bincount(rng.integers(curve.n_identities, size=curve.n_identities), minlength=curve.n_identities)
        regions = curve.values(weights.astype(np.float64))
        if np.isfinite(regions).all():
            drawn[i] = curve.best(regions)[0], regions[chosen]
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    if not len(drawn):
        return math.nan, math.nan, math.nan, math.nan
    (low, score_low), (high, score_high) = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0).tolist()
    return low, high, score_low, score_high


@dataclass(frozen=True, slots=True, eq=False)
class _Curve:
    """The objective as a step function of the threshold.

    It is constant for thresholds in (breaks[j − 1], breaks[j]], region j of 0 … B. Each case has a value in region 0
    and jumps on crossing a score, so a curve for other weights of the animals is one weighted count and one
    cumulative sum.
    """

    breaks: FloatArray  # (B,) ascending, distinct
    owner: tuple[IntArray, IntArray]  # animal 0 … G − 1 of each case: known, unknown
    weight: tuple[FloatArray, FloatArray]  # of each case
    base: tuple[FloatArray, FloatArray]  # value of each case in region 0
    jump: tuple[FloatArray, FloatArray]  # (J,) change of value on entering `region`
    region: tuple[IntArray, IntArray]  # (J,) in 1 … B
    case: tuple[IntArray, IntArray]  # (J,) the case that jumps
    n_identities: int
    objective: Objective
    new_share: float

    @classmethod
    def of(cls, cases: LeftOut, objective: Objective, new_share: float) -> _Curve:
        """Jumps of both kinds of case under `objective`."""
        known, unknown = cases.known_case, cases.unknown_case
        ranked = cases.truth_rank[known]
        others = cases.other_scores[unknown]
        if objective == "map_at_5":
            base = (_worth(ranked - 1, ranked > 0), _worth((~np.isnan(others)).sum(axis=1)))
            down = (ranked > 0) & (base[0] > 0)
            places = np.arange(others.shape[1])
            steps = np.broadcast_to(_worth(places) - _worth(places + 1), others.shape)
            jumps = ((_worth(ranked) - base[0])[down], steps[~np.isnan(others)])
            at = (cases.truth_score[known][down], others[~np.isnan(others)])
            case = (np.flatnonzero(down), np.nonzero(~np.isnan(others))[0])
        elif objective in ("balanced", "geometric"):
            base = ((ranked == 1).astype(np.float64), np.zeros(len(others)))
            down = ranked == 1
            jumps = (-np.ones(int(down.sum())), np.ones(len(others)))
            at = (cases.truth_score[known][down], others[:, 0])
            case = (np.flatnonzero(down), np.arange(len(others)))
        else:
            raise ValueError(f"unknown objective '{objective}': expected map_at_5, balanced, geometric")
        breaks = np.unique(np.concatenate(at))
        _, owner = np.unique(np.concatenate([cases.identity[known], cases.identity[unknown]]), return_inverse=True)
        owners = (owner[: len(ranked)], owner[len(ranked) :])
        n_identities = int(owner.max(initial=-1)) + 1
        weight = tuple(
            np.ones(len(o)) if objective == "map_at_5" else 1 / np.bincount(o, minlength=n_identities)[o]
            for o in owners
        )
        region = tuple(np.searchsorted(breaks, a) + 1 for a in at)
        return cls(
            breaks, owners, (weight[0], weight[1]), base, jumps, (region[0], region[1]), case, n_identities,
            objective, new_share,
        )  # fmt: skip

    def values(self, animals: FloatArray) -> FloatArray:
        """Objective in each region, (B + 1,), with animal g counted `animals[g]` times."""
        means = []
        for kind in (0, 1):
            weight = self.weight[kind] * animals[self.owner[kind]]
            total = weight.sum()
            if total == 0:
                means.append(np.full(len(self.breaks) + 1, math.nan))
                continue
            jumps = self.jump[kind] * weight[self.case[kind]]
            change = np.bincount(self.region[kind], weights=jumps, minlength=len(self.breaks) + 1)
            means.append(((weight * self.base[kind]).sum() + np.cumsum(change)) / total)
        known, unknown = means
        if self.objective == "map_at_5":
            return np.asarray((1 - self.new_share) * known + self.new_share * unknown)
        if self.objective == "balanced":
            return np.asarray((known + unknown) / 2)
        return np.asarray(np.sqrt(np.clip(known, 0, None) * np.clip(unknown, 0, None)))

    def best(self, regions: FloatArray) -> tuple[float, float]:
        """Threshold in the middle of the first best stretch, and the objective there."""
        top = regions >= regions.max() - 1e-12
        first = int(np.argmax(top))
        last = first + int(np.argmin(np.append(top[first:], False))) - 1
        score = float(regions[first])
        if first == 0:  # everything before the new individual: any threshold up to the last break will do
            return float(self.breaks[last if last < len(self.breaks) else -1]), score
        if last == len(self.breaks):  # the new individual before everything
            return float(np.nextafter(self.breaks[-1], math.inf)), score
        middle = (self.breaks[first - 1] + self.breaks[last]) / 2
        return float(middle if middle > self.breaks[first - 1] else self.breaks[last]), score


def _worth(before: ArrayLike, counts: ArrayLike = True) -> FloatArray:
    """What a true label with `before` labels in front of it earns under MAP@5."""
    ahead = np.asarray(before, dtype=np.float64)
    return np.where((ahead < LABELS) & np.asarray(counts), 1 / (1 + np.maximum(ahead, 0)), 0.0)
