"""Every measure against an obvious loop, and against a library's where one has it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from reid import metrics

LABELS = ["w_1", "w_2", "w_3", "w_4", "w_5", "new_whale"]


def kaggle_average_precision(predicted: list[str], true: str, k: int) -> float:
    """The definition: sum over places of precision there, for hits not seen before, over the one relevant label."""
    hits, total, seen = 0, 0.0, set()
    for place, label in enumerate(predicted[:k], start=1):
        if label == true and label not in seen:
            hits += 1
            total += hits / place
        seen.add(label)
    return total


@given(
    st.lists(st.tuples(st.lists(st.sampled_from(LABELS), max_size=7), st.sampled_from(LABELS)), min_size=1, max_size=8),
    st.integers(1, 6),
)
def test_map_is_what_kaggle_computes(rows: list[tuple[list[str], str]], k: int) -> None:
    predictions, truth = [tuple(p) for p, _ in rows], [t for _, t in rows]
    expected = sum(kaggle_average_precision(list(p), t, k) for p, t in rows) / len(rows)
    assert metrics.map_at_k(predictions, truth, k) == pytest.approx(expected, abs=1e-12)


def test_a_repeated_label_earns_once_and_uses_up_a_place() -> None:
    assert metrics.map_at_k([("a", "a", "b")], ["a"]) == 1.0
    assert metrics.map_at_k([("a", "a", "b")], ["b"]) == pytest.approx(1 / 3)


def test_answering_new_first_scores_the_share_of_new_photos() -> None:
    truth = ["new_whale"] * 3 + ["w_1"] * 7
    assert metrics.map_at_k([("new_whale",)] * 10, truth) == pytest.approx(0.3)


def test_the_place_counts_only_within_k() -> None:
    lists = [("b", "c", "d", "e", "a"), ("b", "c", "d", "e", "f", "a")]
    assert metrics.ranks_of_truth(lists, ["a", "a"]).tolist() == [5, 6]
    assert metrics.reciprocal_ranks([5, 6, 0, 1]).tolist() == [0.2, 0.0, 0.0, 1.0]
    assert metrics.top_k_accuracy(lists, ["a", "a"], 5) == 0.5


def test_nothing_to_score_is_nan_not_zero() -> None:
    assert math.isnan(metrics.map_at_k([], []))
    assert math.isnan(metrics.top_k_accuracy([], []))
    assert math.isnan(metrics.mean_average_precision(np.empty((0, 3)), [], [0, 1, 2]))
    assert math.isnan(metrics.expected_calibration_error([], []))
    assert math.isnan(metrics.auroc([1.0, 2.0], [True, True]))
    assert math.isnan(metrics.baks([], [], []))
    assert np.isnan(metrics.cmc([], 3)).tolist() == [True, True, True]


def test_lists_and_truths_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one list a query"):
        metrics.map_at_k([("a",)], ["a", "b"])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_cmc_counts_truths_within_each_rank(ranks: list[int]) -> None:
    expected = [sum(1 for r in ranks if 1 <= r <= depth) / len(ranks) for depth in range(1, 7)]
    assert metrics.cmc(ranks, 6).tolist() == pytest.approx(expected)


def average_precision_by_loop(ranked: list[int], true: int, relevant: int) -> float:
    hits, total = 0, 0.0
    for place, code in enumerate(ranked, start=1):
        if code == true:
            hits += 1
            total += hits / place
    return total / relevant if relevant else math.nan


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 25))
@settings(max_examples=60)
def test_photo_level_average_precision_is_the_loop(seed: int, n_queries: int, n_gallery: int) -> None:
    rng = np.random.default_rng(seed)
    queries, gallery = rng.integers(0, 5, n_queries), rng.integers(0, 4, n_gallery)
    scores = rng.integers(0, 6, (n_queries, n_gallery)) / 4  # ties on purpose
    expected = []
    for q in range(n_queries):
        ranked = sorted(range(n_gallery), key=lambda g: (-scores[q, g], g))
        relevant = sum(1 for g in gallery if g == queries[q])
        expected.append(average_precision_by_loop([int(gallery[g]) for g in ranked], int(queries[q]), relevant))
    np.testing.assert_allclose(metrics.average_precision(scores, queries, gallery), expected, atol=1e-12)


def test_photos_of_nobody_take_places_but_are_never_right() -> None:
    scores = np.array([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]])
    np.testing.assert_allclose(metrics.average_precision(scores, [2, -1], [-1, 2, -1]), [0.5, math.nan])


def test_a_cut_list_scores_less_than_the_whole_one() -> None:
    ranked = np.array([[3, 1, -1, -1], [3, 1, 3, 3]])
    assert metrics.average_precision_ranked(ranked, [3, 3], [3, 3]).tolist() == pytest.approx(
        [1 / 3, (1 + 2 / 3 + 3 / 4) / 3]
    )


def test_photo_level_map_agrees_with_scikit_learn() -> None:
    reference = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    queries, gallery, scores = rng.integers(0, 6, 20), rng.integers(0, 5, 80), rng.normal(size=(20, 80))
    known = [q for q in range(20) if queries[q] in gallery]
    expected = np.mean([reference.average_precision_score(gallery == queries[q], scores[q]) for q in known])
    assert metrics.mean_average_precision(scores, queries, gallery) == pytest.approx(expected)


def test_ranking_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    queries, gallery, scores = rng.integers(0, 9, 33), rng.integers(0, 9, 50), rng.normal(size=(33, 50))
    whole = metrics.average_precision(scores, queries, gallery)
    monkeypatch.setattr(metrics, "_CHUNK", 120)
    np.testing.assert_array_equal(metrics.average_precision(scores, queries, gallery), whole)


def test_a_breakdown_puts_each_query_in_the_class_of_its_gallery_photos() -> None:
    photos = [0, 1, 1, 2, 3, 9, 10, 40]
    values = [9, 0, 1, 0.5, 0.25, 0.75, 1, 0]
    found = metrics.by_gallery_size(values, photos)
    assert found == {
        "1": metrics.SizeScore(2, 0.5),
        "2": metrics.SizeScore(1, 0.5),
        "3-9": metrics.SizeScore(2, 0.5),
        ">=10": metrics.SizeScore(2, 0.5),
    }
    assert math.isnan(metrics.by_gallery_size([1.0], [2])["1"].value)


# Open set


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "new"]), st.sampled_from(["a", "b", "c", "d"])), min_size=1, max_size=30
    )
)
def test_balanced_accuracies_are_means_over_animals_of_means_over_their_photos(rows: list[tuple[str, str]]) -> None:
    predicted, truth = [p for p, _ in rows], [t for _, t in rows]
    gallery = {"a", "b"}
    shares: dict[bool, list[float]] = {True: [], False: []}
    for animal in sorted(set(truth)):
        mine = [p for p, t in rows if t == animal]
        right = [p == (animal if animal in gallery else "new") for p in mine]
        shares[animal in gallery].append(sum(right) / len(right))
    is_new = [t not in gallery for t in truth]
    for found, expected in (
        (metrics.baks(predicted, truth, is_new), shares[True]),
        (metrics.baus(predicted, truth, is_new, "new"), shares[False]),
    ):
        assert math.isnan(found) if not expected else found == pytest.approx(sum(expected) / len(expected))


def test_the_geometric_mean_is_ruined_by_either_half() -> None:
    assert metrics.geometric(0.9, 0.4) == pytest.approx(0.6)
    assert metrics.geometric(1.0, 0.0) == 0.0
    assert math.isnan(metrics.geometric(0.9, math.nan))


SCORED = st.lists(st.tuples(st.integers(-4, 4).map(lambda v: v / 3), st.booleans()), min_size=1, max_size=40)


@given(SCORED)
def test_auroc_counts_pairs_and_half_the_ties(rows: list[tuple[float, bool]]) -> None:
    positives, negatives = [s for s, p in rows if p], [s for s, p in rows if not p]
    found = metrics.auroc([s for s, _ in rows], [p for _, p in rows])
    if not positives or not negatives:
        assert math.isnan(found)
        return
    wins = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives)
    assert found == pytest.approx(wins / (len(positives) * len(negatives)))


# Verification


@given(SCORED)
def test_each_point_of_the_roc_is_a_count_at_its_threshold(rows: list[tuple[float, bool]]) -> None:
    scores, positive = [s for s, _ in rows], [p for _, p in rows]
    curve = metrics.roc(scores, positive)
    assert curve.thresholds.tolist() == [math.inf, *sorted(set(scores), reverse=True)]
    for kind, rates in ((True, curve.true_match), (False, curve.false_match)):
        mine = [s for s, p in rows if p is kind]
        if not mine:
            assert np.isnan(rates).all()
            continue
        assert rates.tolist() == pytest.approx([sum(s >= t for s in mine) / len(mine) for t in curve.thresholds])


@given(SCORED, st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]))
def test_operating_points_are_the_best_that_any_threshold_gives(rows: list[tuple[float, bool]], rate: float) -> None:
    positives, negatives = [s for s, p in rows if p], [s for s, p in rows if not p]
    if not positives or not negatives:
        return
    scores, positive = [s for s, _ in rows], [p for _, p in rows]
    points = [
        (sum(s >= t for s in negatives) / len(negatives), sum(s >= t for s in positives) / len(positives))
        for t in [math.inf, *scores]
    ]
    assert metrics.true_match_at(metrics.roc(scores, positive), rate) == pytest.approx(
        max(tar for far, tar in points if far <= rate)
    )
    assert metrics.false_match_at(scores, positive, rate) == pytest.approx(
        min(far for far, tar in points if 1 - tar <= rate + 1e-9)
    )


def test_a_miss_rate_of_three_in_ten_survives_floating_point() -> None:
    scores = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 3.5]
    assert metrics.false_match_at(scores, [True] * 10 + [False], 0.3) == 0.0


@given(SCORED)
def test_the_equal_error_rate_lies_on_the_curve_where_the_errors_cross(rows: list[tuple[float, bool]]) -> None:
    scores, positive = [s for s, _ in rows], [p for _, p in rows]
    found = metrics.equal_error_rate(metrics.roc(scores, positive))
    positives, negatives = [s for s, p in rows if p], [s for s, p in rows if not p]
    if not positives or not negatives:
        assert math.isnan(found)
        return
    points = [
        (sum(s >= t for s in negatives) / len(negatives), sum(s < t for s in positives) / len(positives))
        for t in [math.inf, *sorted(set(scores), reverse=True)]
    ]
    for (far0, miss0), (far1, miss1) in zip(points, points[1:], strict=False):
        if far0 <= miss0 and far1 >= miss1:  # walk the segment in fine steps to where the two meet
            steps = np.linspace(0, 1, 20001)
            gap = np.abs((far0 + steps * (far1 - far0)) - (miss0 + steps * (miss1 - miss0)))
            assert found == pytest.approx(miss0 + steps[gap.argmin()] * (miss1 - miss0), abs=1e-4)
            return
    raise AssertionError("the curve goes from (0, 1) to (1, 0) and must cross")


def test_verification_scores_agree_with_scikit_learn() -> None:
    reference = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    positive = rng.random(400) < 0.4
    scores = np.round(rng.normal(size=400) + positive, 1)
    assert metrics.auroc(scores, positive) == pytest.approx(reference.roc_auc_score(positive, scores))
    far, tar, thresholds = reference.roc_curve(positive, scores, drop_intermediate=False)
    curve = metrics.roc(scores, positive)
    np.testing.assert_allclose(np.c_[curve.false_match, curve.true_match], np.c_[far, tar])
    np.testing.assert_allclose(curve.thresholds[1:], thresholds[1:])


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        metrics.auroc([0.1, math.nan], [True, False])


# Calibration


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 12),
    st.sampled_from(["width", "mass"]),
)
def test_calibration_error_is_the_weighted_gap_of_the_bins(
    rows: list[tuple[float, bool]], bins: int, spacing: str
) -> None:
    stated = sorted(p for p, _ in rows)
    if spacing == "width":
        edges = [i / bins for i in range(1, bins)]
    else:  # the smallest value that at least i/bins of the sample do not exceed
        edges = [
            next(v for v in stated if sum(s <= v for s in stated) >= i / bins * len(stated) - 1e-9)
            for i in range(1, bins)
        ]
    contents: dict[int, list[tuple[float, bool]]] = {}
    for p, true in rows:
        contents.setdefault(sum(p > e for e in edges), []).append((p, true))
    expected = 0.0
    for inside in contents.values():
        gap = abs(sum(p for p, _ in inside) / len(inside) - sum(t for _, t in inside) / len(inside))
        expected += gap * len(inside) / len(rows)
    found = metrics.expected_calibration_error([p for p, _ in rows], [t for _, t in rows], bins, spacing)  # type: ignore[arg-type]
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_calibrated_forecaster_has_almost_no_error_and_a_boaster_has_much() -> None:
    rng = np.random.default_rng(2)
    stated = rng.random(50_000)
    came_true = rng.random(50_000) < stated
    assert metrics.expected_calibration_error(stated, came_true) < 0.015
    assert metrics.expected_calibration_error(np.ones(50_000), came_true) == pytest.approx(0.5, abs=0.01)


def test_the_reliability_table_leaves_out_empty_bins() -> None:
    table = metrics.reliability([0.05, 0.1, 0.95], [False, True, True], bins=10)
    assert table.count.tolist() == [2, 1]
    assert table.probability.tolist() == pytest.approx([0.075, 0.95])
    assert table.share.tolist() == pytest.approx([0.5, 1.0])


def test_bins_of_equal_mass_hold_equal_numbers() -> None:
    stated = np.random.default_rng(4).random(1000) ** 4
    assert metrics.reliability(stated, np.zeros(1000), bins=10, spacing="mass").count.tolist() == [100] * 10


def test_a_probability_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        metrics.reliability([1.2], [True])


# Localisation


def pixels(box: NDArray[np.int64]) -> set[tuple[int, int]]:
    return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}


@given(st.lists(st.integers(0, 7), min_size=8, max_size=8))
def test_box_iou_counts_pixels(numbers: list[int]) -> None:
    first, second = np.array(numbers[:4]), np.array(numbers[4:])
    one, two = pixels(first), pixels(second)
    expected = len(one & two) / len(one | two) if one | two else 0.0
    assert float(metrics.box_iou(first, second)) == pytest.approx(expected)


def test_box_iou_broadcasts_to_the_table_of_all_pairs() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6]])
    expected = np.array([[1, 1 / 7, 0], [1 / 7, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(metrics.box_iou(boxes[:, None], boxes), expected)


def test_landmark_error_leaves_out_hidden_points_but_not_missed_ones() -> None:
    truth = np.array([[[0, 0], [10, 0]], [[0, 0], [math.nan, math.nan]], [[math.nan] * 2] * 2, [[0, 0], [1, 1]]])
    found = np.array([[[3, 4], [10, 0]], [[0, 2], [7, 7]], [[1, 1]] * 2, [[0, 0], [math.nan, 1]]])
    np.testing.assert_allclose(metrics.landmark_error(found, truth), [2.5, 2, math.nan, math.nan])
    np.testing.assert_allclose(metrics.landmark_error(found, truth, [10, 4, 1, 1]), [0.25, 0.5, math.nan, math.nan])
