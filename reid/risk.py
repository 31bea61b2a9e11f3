"""How often answers are wrong at each threshold, what a sample of left-out photos is worth, and when it has aged.

Pure functions on arrays, numpy alone; knows nothing of photos or stores. Known and unknown left-out photos stand for
queries that show an animal of the gallery with probability 1 − new_share, and a new one otherwise. Two things keep the
numbers honest:

* Mixture. The two kinds are weighed to the stated share, and the sample is only as large as the scarcer kind allows:
T = min(known / (1 − new_share), unknown / new_share) queries, whatever the other kind has in plenty. * Likeness.
Photos of one animal err together. The correlation ρ of mistakes within animals is measured, and T is divided by the
design effect 1 + (b − 1)ρ, b the photos an animal has in the mixture, averaged over photos (Kish, Survey Sampling,
1965; exact intervals on effective counts: Korn & Graubard, Survey Methodology 24, 1998).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.decide import DEFAULT_NEW_SHARE
from reid.intervals import clopper_pearson, kolmogorov_smirnov
from reid.leaving_out import LeftOut

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

REFERENCE_ERRORS = (
    0.1  # share of left-out animals matched at the score where the likeness of an animal's photos is measured
)
GROWTH = 0.25  # growth (or loss) of the gallery since the measurement from which it counts as another gallery
SHIFT_P = 0.01  # p-value below which recent scores count as other scores than those measured
SHIFT_LEAST = 0.1  # and the distance below which a shift, however certain, does not matter


@dataclass(frozen=True, slots=True, eq=False)
class Cases:
    """What left-out photos would have been answered, one row a photo and kind.

    `known_score (A,)`, `known_wrong (A,)` bool: best score with the animal in the gallery, and whether the best was
    another animal. `unknown_score (B,)`: best score with the animal taken out; any match is false. `known_animal
    (A,)` and `unknown_animal (B,)` are identity codes, the same in both.
    """

    known_score: FloatArray
    known_wrong: BoolArray
    known_animal: IntArray
    unknown_score: FloatArray
    unknown_animal: IntArray

    @classmethod
    def of(cls, left_out: LeftOut) -> Cases:
        """The cases of `leaving_out.leave_one_out`."""
        known, unknown = left_out.known_case, left_out.unknown_case
        return cls(
            np.nan_to_num(left_out.known_best[known], nan=-np.inf),  # nothing to match it with: below any threshold
            ~left_out.known_right[known],
            left_out.identity[known],
            left_out.other_scores[unknown, 0],
            left_out.identity[unknown],
        )

    @classmethod
    def nothing(cls) -> Cases:
        """Of no photos."""
        none, codes = np.empty(0), np.empty(0, np.int64)
        return cls(none, np.empty(0, np.bool_), codes, none, codes)

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain values for JSON, scores to six digits; −∞ (nothing to match with) becomes null."""
        return {
            "known_score": [round(x, 6) if math.isfinite(x) else None for x in self.known_score.tolist()],
            "known_wrong": self.known_wrong.astype(int).tolist(),
            "known_animal": self.known_animal.tolist(),
            "unknown_score": [round(x, 6) for x in self.unknown_score.tolist()],
            "unknown_animal": self.unknown_animal.tolist(),
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Cases:
        """Inverse of `to_dict`. KeyError, TypeError or ValueError for what it cannot have written."""
        known = np.array([-np.inf if x is None else x for x in raw["known_score"]], np.float64)
        found = cls(
            known,
            np.array(raw["known_wrong"], np.bool_),
            np.array(raw["known_animal"], np.int64),
            np.array(raw["unknown_score"], np.float64),
            np.array(raw["unknown_animal"], np.int64),
        )
        if not len(known) == len(found.known_wrong) == len(found.known_animal):
            raise ValueError("known cases of different lengths")
        if len(found.unknown_score) != len(found.unknown_animal):
            raise ValueError("unknown cases of different lengths")
        return found


# How much the cases are worth ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Worth:
    """The sample as independent queries: `queries` = mixture / `design_effect`; `likeness` is ρ, in [0, 1]."""

    queries: float
    design_effect: float
    likeness: float
    animals: int


def worth(cases: Cases, new_share: float = DEFAULT_NEW_SHARE, of: Literal["matches", "new"] = "matches") -> Worth:
    """How many independent queries the cases amount to at this share of new animals; see the module's opening.

    Likeness is that of the mistakes in question: false matches, or known animals that score too low and are called new.
    """
    if not 0 <= new_share <= 1:
        raise ValueError(f"new_share {new_share} lies outside [0, 1]")
    known, unknown = len(cases.known_score), len(cases.unknown_score)
    mixture = min(
        known / (1 - new_share) if new_share < 1 else math.inf, unknown / new_share if new_share else math.inf
    )
    names, code = np.unique(np.concatenate([cases.known_animal, cases.unknown_animal]), return_inverse=True)
    if not mixture:
        return Worth(0.0, 1.0, 0.0, len(names))
    # How often each animal stands in a mixture of that size, as itself and as a stranger together.
    share = np.r_[np.full(known, (1 - new_share) / max(known, 1)), np.full(unknown, new_share / max(unknown, 1))]
    photos = mixture * np.bincount(code, weights=share, minlength=len(names))
    likeness = _likeness(cases, of)
    effect = 1 + max(0.0, float((photos**2).sum() / photos.sum()) - 1) * likeness
    return Worth(mixture / effect, effect, likeness, len(names))


def _likeness(cases: Cases, of: Literal["matches", "new"]) -> float:
    """Intraclass correlation of a mistake over the photos of an animal, at the score where a tenth of them make it."""
    if of == "matches":
        scores, animals = cases.unknown_score, cases.unknown_animal
    else:
        scores, animals = -cases.known_score, cases.known_animal
    if not len(scores):
        return 0.0
    return intraclass_correlation(scores >= np.quantile(scores, 1 - REFERENCE_ERRORS), animals)


def intraclass_correlation(values: ArrayLike, groups: ArrayLike) -> float:
    """One-way analysis-of-variance estimate, clipped to [0, 1]; 0 where no group has two values or nothing varies."""
    value = np.asarray(values, dtype=np.float64)
    names, code, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    n, k = len(value), len(names)
    if k < 2 or n == k:
        return 0.0
    means = np.bincount(code, weights=value) / counts
    between = float((counts * (means - value.mean()) ** 2).sum()) / (k - 1)
    within = float(((value - means[code]) ** 2).sum()) / (n - k)
    size = (n - float((counts**2).sum()) / n) / (k - 1)
    total = between + (size - 1) * within
    return min(1.0, max(0.0, (between - within) / total)) if total > 0 else 0.0


# Curves --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class RiskCurve:
    """Rates at each threshold, strictest first, all (T,); `low` and `high` are exact intervals on the sample's worth.

    `automatic`: share of queries scoring at or above the threshold. `false_match`: share of those that are wrong (NaN
    where there are none). `miss`: share of known animals that score below it. `false_new`: share of the queries below
    it that show a known animal after all.
    """

    thresholds: FloatArray
    automatic: FloatArray
    false_match: FloatArray
    false_match_low: FloatArray
    false_match_high: FloatArray
    miss: FloatArray
    false_new: FloatArray
    level: float


def risk_curve(
    cases: Cases, new_share: float = DEFAULT_NEW_SHARE, thresholds: ArrayLike | None = None, level: float = 0.95
) -> RiskCurve:
    """Rates of the expected mixture at `thresholds (T,)`, or at 200 spread evenly over the scores seen.

    The intervals hold for a threshold fixed beforehand; one chosen because of its curve needs `promise_matches`.
    """
    if thresholds is None:
        seen = np.unique(np.concatenate([cases.known_score, cases.unknown_score]))
        at = seen[np.unique(np.linspace(0, len(seen) - 1, 200).astype(int))] if len(seen) else seen
    else:
        at = np.asarray(thresholds, dtype=np.float64)
    at = np.sort(at)[::-1]
    accepted, wrong, known = accepted_shares(cases, new_share, at)
    queries = worth(cases, new_share).queries if len(at) else 0.0
    low, high = clopper_pearson(wrong * queries, np.maximum(accepted * queries, wrong * queries), level)
    return RiskCurve(
        at, accepted, ratio(wrong, accepted), low, high, 1 - known, _false_new(cases, new_share, at), level
    )


def accepted_shares(cases: Cases, new_share: float, at: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """At thresholds (T,): share of all queries accepted, share accepted wrongly, share of the known accepted."""
    known = share_above(cases.known_score, at)
    known_wrong = share_above(cases.known_score[cases.known_wrong], at) * _mean(cases.known_wrong)
    unknown = share_above(cases.unknown_score, at)
    accepted = (1 - new_share) * known + new_share * unknown
    return accepted, (1 - new_share) * known_wrong + new_share * unknown, known


def _false_new(cases: Cases, new_share: float, at: FloatArray) -> FloatArray:
    known = (1 - new_share) * (1 - share_above(cases.known_score, at))
    unknown = new_share * (1 - share_above(cases.unknown_score, at))
    return ratio(known, known + unknown)


@dataclass(frozen=True, slots=True)
class RiskPoint:
    """The rates of `RiskCurve` at one threshold, and how many left-out photos score at or above it: `known` with their
    animal in the gallery, `wrong` of these with another animal first, `unknown` with their animal taken out.
    """

    threshold: float
    automatic: float
    false_match: float
    false_match_low: float
    false_match_high: float
    miss: float
    false_new: float
    known: int
    wrong: int
    unknown: int


@dataclass(frozen=True, slots=True)
class RiskTable:
    """A risk–coverage curve in a few points, strictest first; `queries` is what the photos behind it are worth."""

    points: tuple[RiskPoint, ...]
    new_share: float
    level: float
    known_photos: int
    unknown_photos: int
    animals: int
    queries: float


def risk_table(cases: Cases, new_share: float = DEFAULT_NEW_SHARE, n: int = 12, level: float = 0.95) -> RiskTable:
    """`risk_curve` at `n` thresholds (fewer where scores are alike) that decide ever more queries, in equal steps."""
    spread = mixture_scores(cases, new_share, n)
    at = np.unique(spread[np.isfinite(spread)])
    curve = risk_curve(cases, new_share, at, level)
    value = worth(cases, new_share)

    def above(scores: FloatArray, threshold: float) -> int:
        return int((scores >= threshold).sum())

    points = tuple(
        RiskPoint(
            threshold=t,
            automatic=float(curve.automatic[i]),
            false_match=float(curve.false_match[i]),
            false_match_low=float(curve.false_match_low[i]),
            false_match_high=float(curve.false_match_high[i]),
            miss=float(curve.miss[i]),
            false_new=float(curve.false_new[i]),
            known=above(cases.known_score, t),
            wrong=above(cases.known_score[cases.known_wrong], t),
            unknown=above(cases.unknown_score, t),
        )
        for i, t in enumerate(curve.thresholds.tolist())
    )
    photos = len(cases.known_score), len(cases.unknown_score)
    return RiskTable(points, new_share, level, *photos, value.animals, value.queries)


# Ageing --------------------------------------------------------------------------------------------


def mixture_scores(cases: Cases, new_share: float = DEFAULT_NEW_SHARE, n: int = 512) -> FloatArray:
    """The best scores expected of queries, as `n` evenly weighted quantiles (n,), to keep beside a promise."""
    scores = np.concatenate([cases.known_score, cases.unknown_score])
    if not len(scores):
        return np.empty(0)
    known, unknown = len(cases.known_score), len(cases.unknown_score)
    weight = np.r_[np.full(known, (1 - new_share) / max(known, 1)), np.full(unknown, new_share / max(unknown, 1))]
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(weight[order]) / weight.sum()
    at = np.searchsorted(reached, (np.arange(n) + 0.5) / n, side="left")
    return scores[order][np.minimum(at, len(scores) - 1)]


@dataclass(frozen=True, slots=True)
class Drift:
    """Whether a promise has aged, and why. `growth` of the gallery as a share; `distance`, `p_value` of the scores."""

    drifted: bool
    reasons: tuple[str, ...]
    growth: float
    distance: float
    p_value: float


def drift(measured: ArrayLike, recent: ArrayLike, photos_then: int, photos_now: int) -> Drift:
    """Compare `recent (R,)` best scores of queries with `measured (M,)` ones (`mixture_scores`), and gallery sizes.

    Hand in one score an encounter: the frames of a burst would raise a false alarm. Another share of new animals than
    the promise assumed shows as a shift too, and rightly: the promised rate depends on it.
    """
    growth = photos_now / photos_then - 1 if photos_then else (math.inf if photos_now else 0.0)
    shift = kolmogorov_smirnov(measured, recent)
    reasons = []
    if abs(growth) > GROWTH:
        word = "grown" if growth > 0 else "shrunk"
        reasons.append(
            f"the gallery has {word} from {photos_then} to {photos_now} photos since the rates were measured"
        )
    if shift.p_value < SHIFT_P and shift.distance > SHIFT_LEAST:
        reasons.append(
            f"recent queries score differently from those measured (distance {shift.distance:.2f}, "
            f"p {shift.p_value:.1g}): other photos, or another share of new animals"
        )
    return Drift(bool(reasons), tuple(reasons), growth, shift.distance, shift.p_value)


def share_above(scores: FloatArray, at: FloatArray) -> FloatArray:
    """Share of `scores (N,)` at or above each of `at (T,)`; 0 where there are none."""
    if not len(scores):
        return np.zeros(len(at))
    return (len(scores) - np.searchsorted(np.sort(scores), at, side="left")) / len(scores)


def _mean(values: BoolArray) -> float:
    return float(values.mean()) if len(values) else 0.0


def ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    """part / whole, (T,), NaN where the whole is nothing."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), math.nan)
