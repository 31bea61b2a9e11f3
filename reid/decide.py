"""From identity scores to an answer: five labels, the new individual among them, and the threshold that puts it there.

Pure functions on arrays and labels; knows nothing of photos, stores or models, and needs numpy alone. An animal is
put before the new individual when `score >= threshold`. Ranks count from 1, and 0 means "not in the list". Codes are
integers ≥ 0, −1 means nobody knows.

The threshold is measured on the user's own gallery by leaving photos out, each together with its whole encounter
(frames of one sighting match for reasons that have nothing to do with the animal): once with its animal still in the
gallery, which shows how known animals score, and once with the whole animal taken out, which shows how new ones do.
Both come from one list of nearest neighbours a photo, because taking an animal out only shortens the list.

Sources: `new_whale` inserted at a threshold chosen for MAP@5 (all teams of the Kaggle challenge of 2019);
√(BAKS·BAUS) from AnimalCLEF 2025.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.aggregate import aggregate

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

LABELS = 5  # labels in an answer
# Cosine, used where the gallery is too small to measure one: with ImageNet EfficientNet-lite0, nine in ten left-out
# animals stay below it (.870 on humpback flukes, .881 on nyala). Other models need their own.
DEFAULT_THRESHOLD = 0.88
DEFAULT_NEW_SHARE = 0.3  # of photos that show an animal not in the gallery; the Kaggle test set had .276
MIN_CASES = 20  # photos of either kind below which no threshold is measured
MIN_IDENTITIES = 10  # animals of either kind, likewise
UNKNOWNS_CALLED_NEW = 0.9  # where only unknown cases exist: the share of them that the threshold calls new

Objective = Literal["map_at_5", "balanced", "geometric"]


# Answering -----------------------------------------------------------------------------------------


def place_of_new(scores: ArrayLike, threshold: float) -> int:
    """How many known animals stand before the new individual, given their `scores (M,)`, best first."""
    return int((np.asarray(scores, dtype=np.float64) >= threshold).sum())


def insert_new(
    labels: Sequence[str], scores: ArrayLike, threshold: float, new_label: str, k: int = LABELS
) -> tuple[str, ...]:
    """The first k of: animals scoring at or above `threshold`, the new individual, the other animals.

    `labels` and `scores (M,)` best first. With k animals or more above the threshold the new individual falls off the
    end. Raises ValueError when the lists differ in length, are out of order, or an animal bears the new individual's
    name.
    """
    score = np.asarray(scores, dtype=np.float64)
    if score.shape != (len(labels),):
        raise ValueError(f"{len(labels)} labels but scores {score.shape}: one score a label")
    if (np.diff(score) > 0).any():
        raise ValueError("scores rise along the list: expected best first")
    if new_label in labels:
        raise ValueError(f"an animal is called '{new_label}', the name for new ones: photos of nobody carry no name")
    before = place_of_new(score, threshold)
    return (*labels[:before], new_label, *labels[before:])[:k]


def status_of(labels: Sequence[str], new_label: str) -> Literal["match", "new"]:
    """`new` when the new individual comes first, else `match`. ValueError for an empty list: that is no answer."""
    if not labels:
        raise ValueError("no labels: without candidates the answer is `no_candidates`, not `new`")
    return "new" if labels[0] == new_label else "match"


def clearly_beyond(score: float, threshold: float) -> bool:
    """Whether a score lies at least half the way from a threshold to 1, the score of a photo with itself.

    Asked of a match where the threshold was not measured on this gallery: what is barely beyond it may be owed to
    photos unlike those it comes from.
    """
    return score >= threshold + (1.0 - threshold) / 2


# Leaving photos out --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """Nearest gallery rows of each photo, best first: `rows (Q, K)` int64, −1 past a list's end; `scores (Q, K)`."""

    rows: IntArray
    scores: FloatArray


def nearest(scores: ArrayLike, k: int) -> Neighbours:
    """The k best columns of each row of `scores (Q, N)`, for galleries small enough to have the whole matrix."""
    matrix = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-matrix, axis=1, kind="stable")[:, :k].astype(np.int64)
    return Neighbours(order, np.take_along_axis(matrix, order, axis=1))


@dataclass(frozen=True, slots=True, eq=False)
class LeftOut:
    """What each left-out photo would have been answered; the photos are those handed to `leave_one_out`, (Q,) of them.

    With its animal in the gallery, the truth scores `truth_score` (NaN where it is not in the list) at rank
    `truth_rank`, and the best of all `known_best` (NaN where the list is empty). With its animal taken out, the best
    others score `other_scores (Q, depth)`, best first, NaN where there are fewer. `known_case` and `unknown_case` (Q,)
    bool say which photos count as either kind; `n_truncated` is how many were left out because their list ran out
    before it could tell.
    """

    identity: IntArray
    truth_score: FloatArray
    truth_rank: IntArray
    other_scores: FloatArray
    known_case: BoolArray
    unknown_case: BoolArray
    n_truncated: int
    known_best: FloatArray

    @property
    def known_right(self) -> BoolArray:
        """Whether the truth comes first with the animal in the gallery, (Q,)."""
        return np.asarray(self.truth_rank == 1)


def leave_one_out(
    photos: ArrayLike,
    neighbours: Neighbours,
    identities: ArrayLike,
    encounters: ArrayLike,
    method: str = "max",
    depth: int = LABELS,
    threshold: float = 0.0,
) -> LeftOut:
    """Both cases of every photo of `photos (Q,)`, gallery rows, from its neighbour list alone: no matrix of all pairs.

    `neighbours` are lists over the gallery (the photo itself may be among them), `identities (N,)` and `encounters
    (N,)` codes of all gallery rows, −1 unknown. The photo and its encounter are struck from the list, then image
    scores are aggregated to animals by `method` as in a query. Photos of nobody are no candidates and no cases.

    Lists should hold k = the query's shortlist + the largest encounter. Where a list runs out before `depth` other
    animals have appeared, although the gallery holds more, nothing is known of what comes next: the photo is no
    unknown case, and a known case only if its animal has appeared. A known animal that is missing from a list long
    enough has rank 0, which is what the query, with the same shortlist, would have made of it.
    """
    rows = np.asarray(photos, dtype=np.int64)
    identity, encounter = np.asarray(identities, dtype=np.int64), np.asarray(encounters, dtype=np.int64)
    near = neighbours.rows
    if near.shape != neighbours.scores.shape or len(near) != len(rows):
        raise ValueError(f"{len(rows)} photos but neighbours {near.shape} with scores {neighbours.scores.shape}")
    own = identity[rows]
    same = (near == rows[:, None]) | ((encounter[near] == encounter[rows][:, None]) & (encounter[rows] >= 0)[:, None])
    usable = (near >= 0) & ~same & (identity[near] >= 0)
    query, column = np.nonzero(usable)
    n_codes = int(identity.max(initial=0)) + 1
    animals = aggregate(
        query * n_codes + identity[near[query, column]], neighbours.scores[query, column], method, threshold
    )
    best_score = neighbours.scores[query, column][animals.best]
    query, code = np.divmod(animals.keys, n_codes)
    order = np.lexsort((code, -best_score, -animals.scores, query))
    query, code, score = query[order], code[order], animals.scores[order]

    sizes = np.bincount(query, minlength=len(rows))
    place = np.arange(len(query)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    is_own = code == own[query]
    truth_score, truth_rank = np.full(len(rows), math.nan), np.zeros(len(rows), dtype=np.int64)
    truth_score[query[is_own]] = score[is_own]
    truth_rank[query[is_own]] = place[is_own] + 1
    other_place = place - ((truth_rank[query] > 0) & (place >= truth_rank[query]))
    listed = ~is_own & (other_place < depth)
    others = np.full((len(rows), depth), math.nan)
    others[query[listed], other_place[listed]] = score[listed]

    whole = (near < 0).any(axis=1) | ((near != rows[:, None]).sum(axis=1) >= len(identity) - 1)
    told = whole | ~np.isnan(others[:, -1])
    has_other_photo = _photos_elsewhere(identity, encounter)[rows] > 0
    named = own >= 0
    known = named & has_other_photo & (told | (truth_rank > 0))
    unknown = named & told & ~np.isnan(others[:, 0])
    truncated = named & ~told
    best = np.fmax(truth_score, others[:, 0])
    return LeftOut(own, truth_score, truth_rank, others, known, unknown, int(truncated.sum()), best)


def both_cases(known: LeftOut, unknown: LeftOut) -> LeftOut:
    """Known cases from one list of answers and unknown ones from another, of the same photos: where scores depend on
    who else is in the list, taking an animal out gives other scores, not just a shorter list.
    """
    return replace(known, other_scores=unknown.other_scores, unknown_case=unknown.unknown_case)


def _photos_elsewhere(identity: IntArray, encounter: IntArray) -> IntArray:
    """How many photos of the same animal each row has outside its own encounter, (N,)."""
    alone = np.where(encounter >= 0, encounter, encounter.max(initial=-1) + 1 + np.arange(len(encounter)))
    _, animal, of_animal = np.unique(identity, return_inverse=True, return_counts=True)
    pairs = np.unique(np.stack([identity, alone]), axis=1, return_inverse=True, return_counts=True)
    return np.asarray(of_animal[animal] - pairs[2][pairs[1].ravel()], dtype=np.int64)


# The threshold -------------------------------------------------------------------------------------


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
