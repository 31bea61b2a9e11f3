"""Answers and thresholds: what the query does with a threshold, and that the measured one is the best there is."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from reid import decide
from reid.aggregate import AGGREGATIONS, identity_scores
from reid.decide import LeftOut, Neighbours, choose_threshold, expected_score, insert_new, leave_one_out, nearest
from reid.metrics import baks, baus, geometric, map_at_k

NEW = "new_whale"


def test_the_new_individual_stands_after_those_at_or_above_the_threshold() -> None:
    labels, scores = ["a", "b", "c"], [0.9, 0.5, 0.2]
    assert insert_new(labels, scores, 0.95, NEW) == (NEW, "a", "b", "c")
    assert insert_new(labels, scores, 0.9, NEW) == ("a", NEW, "b", "c")
    assert insert_new(labels, scores, 0.5, NEW) == ("a", "b", NEW, "c")
    assert insert_new(labels, scores, 0.1, NEW) == ("a", "b", "c", NEW)
    assert insert_new([], [], 0.5, NEW) == (NEW,)


def test_an_answer_has_at_most_five_labels() -> None:
    labels, scores = list("abcdefg"), [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    assert insert_new(labels, scores, 0.75, NEW) == ("a", "b", NEW, "c", "d")
    assert insert_new(labels, scores, 0.55, NEW) == ("a", "b", "c", "d", NEW)
    assert insert_new(labels, scores, 0.45, NEW) == ("a", "b", "c", "d", "e")
    assert insert_new(labels, scores, 0.75, NEW, k=2) == ("a", "b")


def test_lists_that_make_no_answer_are_refused() -> None:
    with pytest.raises(ValueError, match="one score a label"):
        insert_new(["a"], [0.5, 0.4], 0.5, NEW)
    with pytest.raises(ValueError, match="best first"):
        insert_new(["a", "b"], [0.4, 0.5], 0.5, NEW)
    with pytest.raises(ValueError, match="new_whale"):
        insert_new(["a", NEW], [0.5, 0.4], 0.5, NEW)


def test_the_status_is_new_exactly_when_the_new_individual_comes_first() -> None:
    assert decide.status_of((NEW, "a"), NEW) == "new"
    assert decide.status_of(("a", NEW), NEW) == "match"
    with pytest.raises(ValueError, match="no_candidates"):
        decide.status_of((), NEW)


# Leaving photos out


def left_out_by_loop(
    scores: NDArray[np.float64], identities: NDArray[np.int64], encounters: NDArray[np.int64], photo: int, method: str
) -> tuple[dict[int, float], dict[int, float]]:
    """Identity scores of one photo with its encounter gone, and with its animal gone too, from the whole matrix."""
    answers = []
    for animal_gone in (False, True):
        rows = []
        for g in range(len(identities)):
            same_encounter = encounters[g] == encounters[photo] and encounters[photo] >= 0
            if g == photo or same_encounter or identities[g] < 0:
                continue
            if animal_gone and identities[g] == identities[photo]:
                continue
            rows.append(g)
        ranking = identity_scores(scores[photo, rows], identities[rows], method)
        answers.append(dict(zip(ranking.codes.tolist(), ranking.scores.tolist(), strict=True)))
    return answers[0], answers[1]


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(AGGREGATIONS)))
@settings(max_examples=60, deadline=None)
def test_whole_lists_give_what_a_gallery_without_the_photos_gives(seed: int, method: str) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 25))
    identities, encounters = rng.integers(-1, 8, n), rng.integers(-1, 6, n)
    scores = rng.permutation(n * n).reshape(n, n) / (n * n)  # no ties
    cases = leave_one_out(np.arange(n), nearest(scores, n), identities, encounters, method)
    assert cases.n_truncated == 0
    for photo in range(n):
        known, unknown = left_out_by_loop(scores, identities, encounters, photo, method)
        mine = int(identities[photo])
        best = sorted(unknown.values(), reverse=True)[:5]
        np.testing.assert_allclose(cases.other_scores[photo], best + [math.nan] * (5 - len(best)))
        assert cases.unknown_case[photo] == (mine >= 0 and bool(unknown))
        assert cases.known_case[photo] == (mine >= 0 and mine in known)
        if mine >= 0 and mine in known:
            assert cases.truth_score[photo] == pytest.approx(known[mine])
            assert cases.known_best[photo] == pytest.approx(max(known.values()))
            ahead = sum(s > known[mine] + 1e-12 for c, s in known.items() if c != mine)
            if sum(abs(s - known[mine]) < 1e-12 for s in known.values()) == 1:
                assert cases.truth_rank[photo] == ahead + 1
                assert cases.known_right[photo] == (ahead == 0)
        elif mine >= 0:
            assert cases.truth_rank[photo] == 0 and math.isnan(cases.truth_score[photo])


def test_a_subset_of_photos_gives_their_rows_of_the_whole() -> None:
    rng = np.random.default_rng(1)
    scores, identities, encounters = rng.random((60, 60)), rng.integers(0, 15, 60), rng.integers(0, 30, 60)
    near = nearest(scores, 60)
    whole = leave_one_out(np.arange(60), near, identities, encounters)
    picked = np.array([7, 3, 41])
    part = leave_one_out(picked, Neighbours(near.rows[picked], near.scores[picked]), identities, encounters)
    np.testing.assert_array_equal(part.other_scores, whole.other_scores[picked])
    np.testing.assert_array_equal(part.truth_rank, whole.truth_rank[picked])
    np.testing.assert_array_equal(part.known_case, whole.known_case[picked])


def test_a_shorter_list_gives_the_same_cases_or_says_it_cannot_tell() -> None:
    rng = np.random.default_rng(2)
    identities = np.repeat(np.arange(20), 6)
    scores = rng.random((120, 120)) + 0.6 * (identities[:, None] == identities)
    encounters = np.arange(120) // 2
    whole = leave_one_out(np.arange(120), nearest(scores, 120), identities, encounters)
    seen = []
    for k in (6, 9, 40):
        cut = leave_one_out(np.arange(120), nearest(scores, k), identities, encounters)
        told = cut.unknown_case
        np.testing.assert_array_equal(cut.other_scores[told], whole.other_scores[told])
        listed = cut.truth_rank > 0
        np.testing.assert_array_equal(cut.truth_rank[listed], whole.truth_rank[listed])
        missing = cut.known_case & ~listed  # from a list long enough to tell: not among the five either way
        assert (whole.truth_rank[missing] > 5).all()
        assert cut.n_truncated == (~told).sum()
        seen.append(cut.n_truncated)
    assert seen[0] > seen[1] > seen[2] == 0


def test_an_animal_seen_in_one_encounter_only_is_no_known_case() -> None:
    identities, encounters = np.array([0, 0, 1, 1, 2]), np.array([5, 5, 6, 7, -1])
    cases = leave_one_out(np.arange(5), nearest(np.eye(5), 5), identities, encounters)
    assert cases.known_case.tolist() == [False, False, True, True, False]
    assert cases.unknown_case.tolist() == [True] * 5


def test_photos_of_nobody_are_neither_case_nor_candidate() -> None:
    scores = np.array([[1, 0.9, 0.2], [0.9, 1, 0.1], [0.2, 0.1, 1]])
    cases = leave_one_out([0, 1, 2], nearest(scores, 3), [0, -1, 1], [-1, -1, -1])
    assert cases.unknown_case.tolist() == [True, False, True]
    assert cases.other_scores[0, 0] == 0.2
    assert not cases.known_case.any()


def test_nothing_left_out_is_an_ordinary_result() -> None:
    cases = leave_one_out([], Neighbours(np.empty((0, 4), dtype=np.int64), np.empty((0, 4))), [0, 1], [0, 1])
    assert cases.known_case.shape == (0,) and cases.other_scores.shape == (0, 5)
    alone = leave_one_out([0], Neighbours(np.array([[0, -1]]), np.array([[1.0, math.nan]])), [0], [0])
    assert not alone.known_case.any() and not alone.unknown_case.any()


def test_ten_thousand_photos_with_a_hundred_neighbours_take_seconds() -> None:
    rng = np.random.default_rng(0)
    near = Neighbours(rng.integers(0, 10_000, (10_000, 100)), np.sort(rng.random((10_000, 100)))[:, ::-1])
    start = time.perf_counter()
    leave_one_out(np.arange(10_000), near, rng.integers(0, 3000, 10_000), rng.integers(0, 6000, 10_000))
    assert time.perf_counter() - start < 15  # about 0.5 s on an idle core


# The threshold


def gallery(seed: int, animals: int = 60, photos: int = 4, gain: float = 0.5) -> LeftOut:
    """A gallery whose photos of one animal score higher by `gain`, every photo its own encounter."""
    rng = np.random.default_rng(seed)
    identities = np.repeat(np.arange(animals), photos)
    n = len(identities)
    scores = 0.5 * rng.random((n, n)) + gain * rng.random((n, 1)) * (identities[:, None] == identities)
    return leave_one_out(np.arange(n), nearest(scores, n), identities, np.full(n, -1))


def score_by_answers(cases: LeftOut, threshold: float, objective: str, new_share: float) -> float:
    """Write every answer out as labels, and let the metrics judge it."""
    answers: dict[bool, list[tuple[str, ...]]] = {True: [], False: []}
    truths: dict[bool, list[str]] = {True: [], False: []}
    for i, animal in enumerate(cases.identity):
        others = [float(s) for s in cases.other_scores[i] if not math.isnan(s)]
        labels = [f"other_{j}" for j in range(len(others))]
        if cases.unknown_case[i]:
            answers[False].append(insert_new(labels, others, threshold, NEW))
            truths[False].append(f"w_{animal}")
        if cases.known_case[i]:
            rank = int(cases.truth_rank[i])
            if 0 < rank <= len(others) + 1:
                labels = [*labels[: rank - 1], f"w_{animal}", *labels[rank - 1 :]]
                others = [*others[: rank - 1], float(cases.truth_score[i]), *others[rank - 1 :]]
            answers[True].append(insert_new(labels, others, threshold, NEW))
            truths[True].append(f"w_{animal}")
    if objective == "map_at_5":
        known = map_at_k(answers[True], truths[True])
        return (1 - new_share) * known + new_share * map_at_k(answers[False], [NEW] * len(answers[False]))
    known = baks([a[0] for a in answers[True]], truths[True], [False] * len(truths[True]))
    unknown = baus([a[0] for a in answers[False]], truths[False], [True] * len(truths[False]), NEW)
    return (known + unknown) / 2 if objective == "balanced" else geometric(known, unknown)


@pytest.mark.parametrize("objective", ["map_at_5", "balanced", "geometric"])
@pytest.mark.parametrize("new_share", [0.0, 0.3, 1.0])
def test_the_objective_is_what_the_metrics_say_of_the_answers(objective: decide.Objective, new_share: float) -> None:
    cases = gallery(3, animals=25, photos=3)
    rng = np.random.default_rng(0)
    seen = np.concatenate([cases.truth_score, cases.other_scores.ravel()])
    for threshold in [-1.0, 2.0, *rng.choice(seen[~np.isnan(seen)], 12), *rng.random(8)]:
        expected = score_by_answers(cases, float(threshold), objective, new_share)
        assert expected_score(cases, float(threshold), objective, new_share) == pytest.approx(expected)


@pytest.mark.parametrize("objective", ["map_at_5", "balanced", "geometric"])
def test_no_other_threshold_scores_higher(objective: decide.Objective) -> None:
    cases = gallery(4)
    found = choose_threshold(cases, objective, new_share=0.3, n=50)
    assert found.basis == "measured"
    assert found.score == pytest.approx(score_by_answers(cases, found.value, objective, 0.3))
    seen = np.concatenate([cases.truth_score, cases.other_scores.ravel(), [-1.0, 2.0]])
    rivals = [expected_score(cases, float(t), objective, 0.3) for t in np.unique(seen[~np.isnan(seen)])]
    assert max(rivals) == pytest.approx(found.score)
    assert found.low <= found.value <= found.high
    assert found.score_low <= found.score <= found.score_high


def test_the_result_counts_what_stands_behind_it() -> None:
    found = choose_threshold(gallery(5, animals=30, photos=3), n=20)
    assert (found.known_photos, found.known_identities) == (90, 30)
    assert (found.unknown_photos, found.unknown_identities) == (90, 30)
    assert "90 known" in found.reason


def test_more_new_animals_expected_means_a_higher_threshold() -> None:
    cases = gallery(6)
    values = [choose_threshold(cases, new_share=share, n=5).value for share in (0.0, 0.1, 0.3, 0.7, 1.0)]
    assert values == sorted(values)
    assert values[0] < values[-1]
    known = cases.truth_score[cases.known_case & (cases.truth_rank > 0) & (cases.truth_rank <= 5)]
    assert values[0] <= known.min() and values[-1] > np.nanmax(cases.other_scores)


def test_the_same_seed_gives_the_same_interval() -> None:
    cases = gallery(7)
    assert choose_threshold(cases, n=30, seed=5) == choose_threshold(cases, n=30, seed=5)
    assert choose_threshold(cases, n=30, seed=5).low != choose_threshold(cases, n=30, seed=6).low


def test_a_threshold_from_one_half_of_the_animals_serves_the_other_half() -> None:
    cases = gallery(8, animals=200)
    half = cases.identity < 100
    first, second = (
        replace(cases, known_case=cases.known_case & side, unknown_case=cases.unknown_case & side)
        for side in (half, ~half)
    )
    chosen = choose_threshold(first, n=200)
    best = choose_threshold(second, n=5)
    assert expected_score(second, chosen.value, "map_at_5", 0.3) > best.score - 0.02
    assert chosen.low <= best.value <= chosen.high


def test_no_draws_give_no_interval() -> None:
    found = choose_threshold(gallery(1), n=0)
    assert found.basis == "measured" and math.isnan(found.low) and math.isnan(found.score_high)


def test_animals_with_one_photo_give_unknown_cases_only() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((50, 50))
    cases = leave_one_out(np.arange(50), nearest(scores, 50), np.arange(50), np.full(50, -1))
    found = choose_threshold(cases)
    assert found.basis == "unknowns"
    assert "0 photos of 0 animals have a second sighting" in found.reason
    assert (cases.other_scores[:, 0] < found.value).mean() == pytest.approx(0.9, abs=0.02)
    assert math.isnan(found.score) and math.isnan(found.low)


@pytest.mark.parametrize(("animals", "photos"), [(0, 1), (1, 30), (9, 5), (19, 1)])
def test_too_little_data_falls_back_to_the_default_and_says_why(animals: int, photos: int) -> None:
    n = animals * photos
    scores = np.random.default_rng(0).random((n, n))
    identities = np.repeat(np.arange(animals), photos)
    found = choose_threshold(leave_one_out(np.arange(n), nearest(scores, n), identities, np.full(n, -1)), default=0.42)
    assert (found.value, found.basis) == (0.42, "default")
    assert "are needed" in found.reason and "0.42" in found.reason


def test_a_share_or_objective_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="new_share"):
        choose_threshold(gallery(1), new_share=1.5)
    with pytest.raises(ValueError, match="expected map_at_5"):
        choose_threshold(gallery(1), objective="f1")  # type: ignore[arg-type]
