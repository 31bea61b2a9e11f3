"""How good the answers are: ranking, open-set, verification, calibration and localisation scores.

Pure functions on arrays and labels. Knows nothing of photos, models or stores, and needs numpy alone. Conventions:
higher scores are better; a comparison is accepted when `score >= threshold`; ranks count from 1, and 0 means "not in
the list"; a score over nothing is NaN, never 0 and never an exception. Where ties are possible they are counted as
ties, not as luck.

Sources: MAP@5 as in the Kaggle Humpback Whale Identification challenge; CMC and photo-level mAP as in Zheng et al.,
Scalable Person Re-identification (ICCV 2015); BAKS and BAUS as in AnimalCLEF 2025; AUROC as the Mann-Whitney
statistic (Hanley & McNeil 1982); ECE from Guo et al., On Calibration of Modern Neural Networks (ICML 2017), its
equal-mass form from Nixon et al. 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.intervals import Interval as Interval
from reid.intervals import bootstrap_interval as bootstrap_interval
from reid.intervals import group_means as group_means

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

GALLERY_SIZES = ("1", "2", "3-9", ">=10")  # photos of the query's identity in the gallery
_CHUNK = 4_000_000  # scores sorted at once while ranking a matrix


# Ranking ------------------------------------------------------------------------------------------


def ranks_of_truth(predictions: Sequence[Sequence[str]], truth: Sequence[str]) -> IntArray:
    """Rank from 1 at which each true label *first* stands in its list, 0 where it is absent. (N,) int64."""
    if len(predictions) != len(truth):
        raise ValueError(f"{len(predictions)} predictions for {len(truth)} truths: one list a query")
    found = (
        list(labels).index(true) + 1 if true in labels else 0 for labels, true in zip(predictions, truth, strict=True)
    )
    return np.fromiter(found, dtype=np.int64, count=len(truth))


def reciprocal_ranks(ranks: ArrayLike, k: int = 5) -> FloatArray:
    """1/rank where 1 ≤ rank ≤ k, else 0. (N,) float64: what MAP@k is the mean of, ready for a bootstrap."""
    rank = np.asarray(ranks, dtype=np.int64)
    return np.where((rank >= 1) & (rank <= k), 1.0 / np.maximum(rank, 1), 0.0)


def map_at_k(predictions: Sequence[Sequence[str]], truth: Sequence[str], k: int = 5) -> float:
    """Mean average precision at k with one true label a query, as Kaggle computes it: the mean of 1/rank.

    A label listed twice earns once, at its first place, and the repetition still uses up a place. `new_whale` is a
    label like any other.
    """
    return _mean(reciprocal_ranks(ranks_of_truth(predictions, truth), k))


def hits_at_k(ranks: ArrayLike, k: int) -> BoolArray:
    """Whether the truth stands among the first k. (N,) bool."""
    rank = np.asarray(ranks, dtype=np.int64)
    return (rank >= 1) & (rank <= k)


def top_k_accuracy(predictions: Sequence[Sequence[str]], truth: Sequence[str], k: int = 1) -> float:
    """Share of queries whose true label is among the first k."""
    return _mean(hits_at_k(ranks_of_truth(predictions, truth), k))


def cmc(ranks: ArrayLike, depth: int) -> FloatArray:
    """Cumulative match characteristic: share of queries with their truth within rank r, r = 1 … depth. (depth,)."""
    rank = np.asarray(ranks, dtype=np.int64)
    if not len(rank):
        return np.full(depth, math.nan)
    within = rank[(rank >= 1) & (rank <= depth)]
    return np.cumsum(np.bincount(within, minlength=depth + 1)[1:]) / len(rank)


def average_precision_ranked(ranked: ArrayLike, queries: ArrayLike, relevant: ArrayLike) -> FloatArray:
    """Average precision of each query over the gallery's *photos*, from ranked identity codes.

    `ranked (Q, K)` codes of the gallery photos best first, −1 where a list has ended; `queries (Q,)` true codes;
    `relevant (Q,)` how many photos of that identity the gallery holds, listed or not, so that a cut list scores less,
    not more. → (Q,) float64 in [0, 1], NaN where nothing is relevant.
    """
    codes, true = np.asarray(ranked), np.asarray(queries)
    total = np.asarray(relevant, dtype=np.float64)
    hit = (codes == true[:, None]) & (codes >= 0)
    precision = np.cumsum(hit, axis=1) / np.arange(1, codes.shape[1] + 1)
    return np.where(total > 0, (precision * hit).sum(axis=1) / np.maximum(total, 1), math.nan)


def average_precision(scores: ArrayLike, queries: ArrayLike, gallery: ArrayLike) -> FloatArray:
    """As `average_precision_ranked`, from `scores (Q, N)` with identity codes `queries (Q,)` and `gallery (N,)`.

    A code of −1 means nobody knows: such a query is NaN, such a gallery photo is never right. Equal scores keep the
    gallery's order.
    """
    matrix = np.asarray(scores)
    true, codes = np.asarray(queries, dtype=np.int64), np.asarray(gallery, dtype=np.int64)
    if matrix.shape != (len(true), len(codes)):
        raise ValueError(f"scores {matrix.shape} for {len(true)} queries and {len(codes)} gallery photos")
    photos = np.bincount(codes[codes >= 0], minlength=int(true.max(initial=0)) + 1)
    relevant = np.where(true >= 0, photos[np.maximum(true, 0)], 0)
    out = np.full(len(true), math.nan)
    step = max(1, _CHUNK // max(1, len(codes)))
    for start in range(0, len(true), step):
        part = slice(start, start + step)
        order = np.argsort(-matrix[part].astype(np.float64), axis=1, kind="stable")
        out[part] = average_precision_ranked(codes[order], true[part], relevant[part])
    return out


def mean_average_precision(scores: ArrayLike, queries: ArrayLike, gallery: ArrayLike) -> float:
    """Mean of `average_precision` over the queries that have a photo in the gallery (known queries)."""
    values = average_precision(scores, queries, gallery)
    return _mean(values[np.isfinite(values)])


@dataclass(frozen=True, slots=True)
class SizeScore:
    """The mean of a measure over the queries of one class of gallery size."""

    n: int
    value: float


def by_gallery_size(values: ArrayLike, photos: ArrayLike) -> dict[str, SizeScore]:
    """Mean of `values (N,)` over queries whose identity has 1, 2, 3-9 or ≥10 photos (`photos (N,)`) in the gallery.

    Queries with none (new animals) are in no class. Keys are `GALLERY_SIZES`, always all four.
    """
    value, count = np.asarray(values, dtype=np.float64), np.asarray(photos, dtype=np.int64)
    size_class = np.digitize(count, [1, 2, 3, 10])
    return {
        name: SizeScore(int((size_class == i).sum()), _mean(value[size_class == i]))
        for i, name in enumerate(GALLERY_SIZES, start=1)
    }


# Open set -----------------------------------------------------------------------------------------


def baks(predicted: Sequence[str], truth: Sequence[str], is_new: ArrayLike) -> float:
    """Balanced accuracy on known identities: the mean over them of the share of their photos given the right name.

    `predicted (N,)` first labels, `truth (N,)` identities, `is_new (N,)` whether the identity is absent from the
    gallery. A known animal called new is wrong.
    """
    known = ~np.asarray(is_new, dtype=np.bool_)
    right = np.array([p == t for p, t in zip(predicted, truth, strict=True)], dtype=np.bool_)
    return _mean(group_means(right[known], np.asarray(truth)[known])[1])


def baus(predicted: Sequence[str], truth: Sequence[str], is_new: ArrayLike, new_label: str = "new_whale") -> float:
    """Balanced accuracy on unknown identities: the mean over them of the share of their photos called `new_label`.

    `truth` keeps new animals apart: photos that are merely "somebody new" need a name each, not `new_whale` for all.
    """
    new = np.asarray(is_new, dtype=np.bool_)
    right = np.array([p == new_label for p in predicted], dtype=np.bool_)
    return _mean(group_means(right[new], np.asarray(truth)[new])[1])


def geometric(known: float, unknown: float) -> float:
    """√(BAKS·BAUS), the score of AnimalCLEF; NaN where either is."""
    return math.sqrt(known * unknown)


def auroc(scores: ArrayLike, is_positive: ArrayLike) -> float:
    """Probability that a positive outscores a negative, ties counting half. `scores (N,)`, `is_positive (N,)` bool."""
    score, positive = _scored(scores, is_positive)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return math.nan
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(middle_rank[inverse][positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


# Verification -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Roc:
    """Error rates at each distinct score, strictest first: accepted is `score >= thresholds[i]`.

    All (T,) float64; the first threshold is +inf, where nothing is accepted. `false_match` is the share of negatives
    accepted (FAR), `true_match` that of positives (TAR).
    """

    thresholds: FloatArray
    false_match: FloatArray
    true_match: FloatArray


def roc(scores: ArrayLike, is_positive: ArrayLike) -> Roc:
    """Receiver operating characteristic; rates are NaN where there is no pair of that kind."""
    score, positive = _scored(scores, is_positive)
    order = np.argsort(-score, kind="stable")
    score, positive = score[order], positive[order]
    last = np.flatnonzero(np.append(np.diff(score) != 0, True)) if len(score) else np.empty(0, dtype=np.intp)
    accepted = np.append(0, np.cumsum(positive)[last])
    refused = np.append(0, np.cumsum(~positive)[last])
    return Roc(
        np.append(math.inf, score[last]),
        refused / refused[-1] if refused[-1] else np.full(len(refused), math.nan),
        accepted / accepted[-1] if accepted[-1] else np.full(len(accepted), math.nan),
    )


def equal_error_rate(curve: Roc) -> float:
    """Where the false-match rate equals the miss rate, linearly between the two points of the curve that enclose it."""
    miss = 1 - curve.true_match
    gap = curve.false_match - miss
    if np.isnan(gap).any():
        return math.nan
    right = int(np.argmax(gap >= 0))
    if gap[right] == 0:
        return float(miss[right])
    share = -gap[right - 1] / (gap[right] - gap[right - 1])
    return float(miss[right - 1] + share * (miss[right] - miss[right - 1]))


def true_match_at(curve: Roc, false_match: float) -> float:
    """TAR@FAR: the most positives accepted at any threshold with a false-match rate of at most `false_match`."""
    allowed = curve.false_match <= false_match
    return float(curve.true_match[allowed].max()) if allowed.any() else math.nan


def false_match_at(scores: ArrayLike, is_positive: ArrayLike, miss_rate: float) -> float:
    """Share of negatives accepted at the strictest threshold that misses at most `miss_rate` of the positives."""
    curve = roc(scores, is_positive)
    allowed = 1 - curve.true_match <= miss_rate + 1e-12
    return float(curve.false_match[allowed].min()) if allowed.any() else math.nan


# Calibration --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """A reliability diagram as a table: bins from low to high probability, empty bins left out. All (B,)."""

    count: IntArray
    probability: FloatArray  # mean stated in the bin
    share: FloatArray  # of the bin that came true


def reliability(
    probabilities: ArrayLike, came_true: ArrayLike, bins: int = 15, spacing: Literal["width", "mass"] = "width"
) -> Reliability:
    """Stated against observed, in bins of equal width over [0, 1] or of equal mass (equal values stay together)."""
    stated, true = _scored(probabilities, came_true)
    if ((stated < 0) | (stated > 1)).any():
        raise ValueError("probabilities must lie in [0, 1]")
    if not len(stated):
        return Reliability(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0))
    inner = np.arange(1, bins) / bins
    edges = inner if spacing == "width" else np.quantile(stated, inner, method="inverted_cdf")
    bin_of = np.searchsorted(edges, stated, side="left")  # a bin is (edge, next edge], the first closed below
    count = np.bincount(bin_of, minlength=bins)
    full = count > 0
    stated_sum = np.bincount(bin_of, weights=stated, minlength=bins)
    true_sum = np.bincount(bin_of, weights=true, minlength=bins)
    return Reliability(count[full].astype(np.int64), stated_sum[full] / count[full], true_sum[full] / count[full])


def expected_calibration_error(
    probabilities: ArrayLike, came_true: ArrayLike, bins: int = 15, spacing: Literal["width", "mass"] = "width"
) -> float:
    """ECE: the mean over queries of |stated − observed| of their bin."""
    table = reliability(probabilities, came_true, bins, spacing)
    if not len(table.count):
        return math.nan
    return float(np.average(np.abs(table.probability - table.share), weights=table.count))


# Localisation -------------------------------------------------------------------------------------


def box_iou(first: ArrayLike, second: ArrayLike) -> FloatArray:
    """Intersection over union of XYXY boxes `(..., 4)`, broadcast: `box_iou(a[:, None], b)` is the table of all pairs.

    A box turned inside out (x1 < x0) has no area; the IoU of two boxes without area is 0.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inside = np.clip(overlap, 0, None).prod(axis=-1)
    areas = [np.clip(box[..., 2:] - box[..., :2], 0, None).prod(axis=-1) for box in (a, b)]
    union: FloatArray = areas[0] + areas[1] - inside
    return np.asarray(np.where(union > 0, inside / np.where(union > 0, union, 1.0), 0.0), dtype=np.float64)


def landmark_error(predicted: ArrayLike, truth: ArrayLike, scale: ArrayLike = 1.0) -> FloatArray:
    """Mean landmark distance of each photo: `predicted`, `truth (N, L, 2)` pixels, `scale` () or (N,) pixels → (N,).

    Landmarks with a NaN in `truth` (hidden) are left out, and a photo without any is NaN. `scale`, say the box
    diagonal, turns pixels into shares of the animal. A NaN in `predicted` where the truth is visible stays NaN: a
    miss is not hidden.
    """
    true = np.asarray(truth, dtype=np.float64)
    distance = np.linalg.norm(np.asarray(predicted, dtype=np.float64) - true, axis=-1)
    seen = ~np.isnan(true).any(axis=-1)
    count = seen.sum(axis=-1)
    mean = np.where(seen, distance, 0.0).sum(axis=-1) / np.maximum(count, 1)
    return np.where(count > 0, mean, math.nan) / np.asarray(scale, dtype=np.float64)


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _scored(scores: ArrayLike, is_true: ArrayLike) -> tuple[FloatArray, BoolArray]:
    score, true = np.asarray(scores, dtype=np.float64).ravel(), np.asarray(is_true, dtype=np.bool_).ravel()
    if score.shape != true.shape:
        raise ValueError(f"{len(score)} scores for {len(true)} truths")
    if np.isnan(score).any():
        raise ValueError("scores hold NaN: leave out what was not scored")
    return score, true
