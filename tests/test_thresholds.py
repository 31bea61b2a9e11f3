"""The threshold: that the measured one is the best there is, how sure it is, and what happens with too little to measure."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from reid.config import Objective
from reid.decide import insert_new
from reid.leaving_out import LeftOut, leave_one_out, nearest
from reid.metrics import baks, baus, geometric, map_at_k
from reid.thresholds import choose_threshold, expected_score

NEW = "new_whale"


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
def test_the_objective_is_what_the_metrics_say_of_the_answers(objective: Objective, new_share: float) -> None:
    cases = gallery(3, animals=25, photos=3)
    rng = np.random.default_rng(0)
    seen = np.concatenate([cases.truth_score, cases.other_scores.ravel()])
    for threshold in [-1.0, 2.0, *rng.choice(seen[~np.isnan(seen)], 12), *rng.random(8)]:
        expected = score_by_answers(cases, float(threshold), objective, new_share)
        assert expected_score(cases, float(threshold), objective, new_share) == pytest.approx(expected)


@pytest.mark.parametrize("objective", ["map_at_5", "balanced", "geometric"])
def test_no_other_threshold_scores_higher(objective: Objective) -> None:
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
