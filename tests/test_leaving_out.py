"""Left-out photos: both cases from one list are those of galleries without the photo and without its animal."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from reid.aggregate import AGGREGATIONS, identity_scores
from reid.leaving_out import Neighbours, leave_one_out, nearest


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
