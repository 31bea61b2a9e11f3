"""From photos to animals: image scores → identity scores, one photo or a whole encounter; vectors → identity centres.

Knows arrays and integer identity codes only; numpy alone. Higher scores are better. Code −1 marks a gallery photo
that nobody has named: it is no candidate and is left out. What is aggregated is what the caller hands in, so on a
shortlist a mean is the mean over the *shortlisted* photos of an animal.

Sources (Kaggle Humpback Whale Identification 2019): max and mean over an animal's photos (public Siamese kernels,
ArcFace ensembles), trimmed identity centres (third place), sum above a threshold, then the rest by their maximum
(fifth place).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Grouped:
    """Scores sorted by group and best first within it: group g is `values[starts[g] : starts[g] + counts[g]]`."""

    values: FloatArray  # (R,)
    starts: IntArray  # (G,)
    counts: IntArray  # (G,), all ≥ 1

    def mean_of(self, first: IntArray, last: IntArray) -> FloatArray:
        """Mean of places first … last − 1 of each group, (G,) both, counted from 0 and never empty."""
        place = np.arange(len(self.values)) - np.repeat(self.starts, self.counts)
        kept = (place >= np.repeat(first, self.counts)) & (place < np.repeat(last, self.counts))
        sums = np.add.reduceat(np.where(kept, self.values, 0.0), self.starts)
        return np.asarray(sums / (last - first), dtype=np.float64)


def _mean(groups: Grouped, threshold: float) -> FloatArray:
    return groups.mean_of(np.zeros_like(groups.counts), groups.counts)


def _max(groups: Grouped, threshold: float) -> FloatArray:
    return groups.values[groups.starts]


def _top_half(groups: Grouped, threshold: float) -> FloatArray:
    return groups.mean_of(np.zeros_like(groups.counts), (groups.counts + 1) // 2)


def _trimmed(groups: Grouped, threshold: float) -> FloatArray:
    cut = groups.counts // 4
    return groups.mean_of(cut, groups.counts - cut)


def _sum_above(groups: Grouped, threshold: float) -> FloatArray:
    if threshold < 0:
        raise ValueError(f"threshold {threshold} is negative: sums of negative scores would not rank")
    sums = np.add.reduceat(np.where(groups.values >= threshold, groups.values, 0.0), groups.starts)
    return np.maximum(sums, groups.values[groups.starts])


AGGREGATIONS: dict[str, Callable[[Grouped, float], FloatArray]] = {
    "max": _max,  # the best photo speaks for the animal
    "mean": _mean,  # all of its photos do
    "top_half": _top_half,  # the better half, rounded up: ignores the other side and bad photos
    "trimmed": _trimmed,  # without the best and the worst quarter, rounded down
    "sum_above": _sum_above,  # sum of the scores at or above a threshold ≥ 0; an animal without one keeps its best
}


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Animals best first. All (M,).

    `best` is the row, among the scores handed in, of the photo that speaks most for the animal, and `query` the photo
    of the encounter it was compared with (0 for a single photo). Equal scores go by the best photo, then by the lower
    code.
    """

    codes: IntArray
    scores: FloatArray
    best: IntArray
    query: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Aggregated:
    """One score for each distinct key, ascending. `best` is the row of the group's highest score. All (G,)."""

    keys: IntArray
    scores: FloatArray
    best: IntArray


def aggregate(keys: ArrayLike, scores: ArrayLike, method: str = "max", threshold: float = 0.0) -> Aggregated:
    """One score a group: `keys (R,)` int names the group of each of `scores (R,)`.

    `threshold` is used by `sum_above` alone. Raises ValueError for an unknown method, naming those there are, and for
    NaN.
    """
    if method not in AGGREGATIONS:
        raise ValueError(f"unknown aggregation '{method}': expected {', '.join(AGGREGATIONS)}")
    key, value = np.asarray(keys, dtype=np.int64), np.asarray(scores, dtype=np.float64)
    if key.shape != value.shape or key.ndim != 1:
        raise ValueError(f"keys {key.shape} and scores {value.shape}: expected (R,) both")
    if np.isnan(value).any():
        raise ValueError("scores hold NaN: leave out what was not scored")
    order = np.lexsort((-value, key))
    distinct, first, counts = np.unique(key[order], return_index=True, return_counts=True)
    if not len(distinct):
        return Aggregated(distinct, np.empty(0), np.empty(0, dtype=np.int64))
    starts = first.astype(np.int64)
    groups = Grouped(value[order], starts, counts.astype(np.int64))
    return Aggregated(distinct, AGGREGATIONS[method](groups, threshold), order[starts].astype(np.int64))


def identity_scores(scores: ArrayLike, codes: ArrayLike, method: str = "max", threshold: float = 0.0) -> Ranking:
    """Image scores of one query photo → its animals, best first: `scores (K,)`, identity `codes (K,)`, −1 left out."""
    value, code = np.asarray(scores, dtype=np.float64), np.asarray(codes, dtype=np.int64)
    named = np.flatnonzero(code >= 0)
    found = aggregate(code[named], value[named], method, threshold)
    best = named[found.best]
    order = np.lexsort((found.keys, -value[best], -found.scores))
    return Ranking(found.keys[order], found.scores[order], best[order], np.zeros(len(order), dtype=np.int64))


def fuse_photos(rankings: Sequence[Ranking], bursts: ArrayLike | None = None, across: str = "mean") -> Ranking:
    """The photos of one encounter → one ranking: mean within each burst, then `mean` or `max` across bursts.

    `bursts (P,)` names the burst of each photo, so that ten frames of one second have one vote; None takes each photo
    for itself. An animal missing from a photo's list gets that list's lowest score: it scored no higher, or it would
    be listed. A photo without candidates is neutral. `best` and `query` point at the photo pair that scored highest
    for the animal.
    """
    if across not in ("mean", "max"):
        raise ValueError(f"unknown way across photos '{across}': expected mean, max")
    groups = np.arange(len(rankings)) if bursts is None else np.unique(np.asarray(bursts), return_inverse=True)[1]
    if len(groups) != len(rankings):
        raise ValueError(f"{len(rankings)} photos but {len(groups)} bursts: one burst a photo")
    heard = [p for p, ranking in enumerate(rankings) if len(ranking.codes)]
    if not heard:
        nothing = np.empty(0, dtype=np.int64)
        return Ranking(nothing, np.empty(0), nothing, nothing)
    codes = np.unique(np.concatenate([rankings[p].codes for p in heard]))
    table = np.empty((len(heard), len(codes)))
    listed = np.full((len(heard), len(codes)), -np.inf)
    rows = np.zeros((len(heard), len(codes)), dtype=np.int64)
    for i, p in enumerate(heard):
        at = np.searchsorted(codes, rankings[p].codes)
        table[i] = rankings[p].scores.min()
        table[i, at] = listed[i, at] = rankings[p].scores
        rows[i, at] = rankings[p].best
    burst = np.unique(groups[heard], return_inverse=True)[1]
    votes = np.zeros((int(burst.max()) + 1, len(codes)))
    np.add.at(votes, burst, table)
    votes /= np.bincount(burst)[:, None]
    fused = votes.mean(axis=0) if across == "mean" else votes.max(axis=0)
    witness = listed.argmax(axis=0)
    every = np.arange(len(codes))
    order = np.lexsort((codes, -listed[witness, every], -fused))
    query = np.asarray(heard, dtype=np.int64)[witness]
    return Ranking(codes[order], fused[order], rows[witness, every][order], query[order])


# Vectors -------------------------------------------------------------------------------------------


def trimmed_centre(vectors: ArrayLike, drop: float = 0.25) -> NDArray[np.float32]:
    """Unit rows `(n, D)` → unit centre `(D,)` float32 without the share `drop` (rounded down) farthest from the mean.

    So one photo of the wrong animal, or of its other side, does not pull the centre away. Vectors that cancel out
    have no centre; the first of them stands for it then.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"vectors of shape {rows.shape}: expected (n, D) with n ≥ 1")
    if not 0 <= drop < 1:
        raise ValueError(f"drop {drop} lies outside [0, 1)")
    near = np.argsort(-(rows @ rows.mean(axis=0)), kind="stable")[: len(rows) - int(len(rows) * drop)]
    centre = rows[near].mean(axis=0)
    length = float(np.linalg.norm(centre))
    return np.asarray(centre / length if length > 1e-9 else rows[0], dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Centres:
    """`vectors (M, D)` float32 unit rows, one for each of `codes (M,)` ascending; `counts (M,)` photos behind each."""

    codes: IntArray
    vectors: NDArray[np.float32]
    counts: IntArray


def identity_centres(vectors: ArrayLike, codes: ArrayLike, drop: float = 0.25) -> Centres:
    """Trimmed centre of each animal: unit rows `vectors (N, D)`, `codes (N,)`, −1 left out."""
    rows, code = np.asarray(vectors), np.asarray(codes, dtype=np.int64)
    if rows.ndim != 2 or len(rows) != len(code):
        raise ValueError(f"vectors {rows.shape} for codes {code.shape}: one code a row")
    named = np.flatnonzero(code >= 0)
    order = named[np.argsort(code[named], kind="stable")]
    distinct, starts, counts = np.unique(code[order], return_index=True, return_counts=True)
    centres = np.empty((len(distinct), rows.shape[1]), dtype=np.float32)
    for i, (start, count) in enumerate(zip(starts, counts, strict=True)):
        centres[i] = trimmed_centre(rows[order[start : start + count]], drop)
    return Centres(distinct, centres, counts.astype(np.int64))
