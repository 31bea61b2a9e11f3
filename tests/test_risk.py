"""Error rates at a threshold, what a sample is worth, and promises about queries not seen yet."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from reid import promise, risk
from reid.intervals import clopper_pearson
from reid.leaving_out import leave_one_out, nearest
from reid.promise import Promise, choose_policy, promise_matches, promise_new, verdict
from reid.risk import Cases, drift, intraclass_correlation, mixture_scores, risk_curve, worth


def population(rng: np.random.Generator, animals: int, photos: int, likeness: float, gap: float) -> Cases:
    """Each photo has a score with its own animal and a best one with another, `gap` lower; an animal's are alike."""
    animal = np.repeat(np.arange(animals), photos)

    def noise() -> NDArray[np.float64]:
        shared = rng.normal(size=animals)[animal]
        return np.asarray(math.sqrt(likeness) * shared + math.sqrt(1 - likeness) * rng.normal(size=len(animal)))

    other, own = noise(), gap + noise()
    return Cases(np.maximum(own, other), other > own, animal, other, animal)


def false_match_rate(everyone: Cases, threshold: float, new_share: float) -> float:
    known, unknown = everyone.known_score >= threshold, everyone.unknown_score >= threshold
    wrong = (1 - new_share) * (known & everyone.known_wrong).mean() + new_share * unknown.mean()
    return float(wrong / ((1 - new_share) * known.mean() + new_share * unknown.mean()))


def false_new_rate(everyone: Cases, threshold: float, new_share: float) -> float:
    known = (1 - new_share) * (everyone.known_score < threshold).mean()
    return float(known / (known + new_share * (everyone.unknown_score < threshold).mean()))


def rates_by_loop(cases: Cases, threshold: float, new_share: float) -> tuple[float, float, float, float]:
    """Automatic, false match, miss, false new: every photo is a query, weighed to the mixture."""
    automatic = wrong = below = known_below = 0.0
    for score, is_wrong in zip(cases.known_score, cases.known_wrong, strict=True):
        weight = (1 - new_share) / len(cases.known_score)
        if score >= threshold:
            automatic += weight
            wrong += weight if is_wrong else 0.0
        else:
            below += weight
            known_below += weight
    for score in cases.unknown_score:
        weight = new_share / len(cases.unknown_score)
        if score >= threshold:
            automatic += weight
            wrong += weight
        else:
            below += weight
    miss = sum(s < threshold for s in cases.known_score) / len(cases.known_score)
    return (
        automatic,
        wrong / automatic if automatic else math.nan,
        miss,
        known_below / below if below else math.nan,
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.3, 0.8]))
@settings(max_examples=30, deadline=None)
def test_the_curve_counts_queries_of_the_stated_mixture(seed: int, new_share: float) -> None:
    rng = np.random.default_rng(seed)
    cases = population(rng, int(rng.integers(1, 20)), int(rng.integers(1, 5)), 0.3, 1.5)
    at = np.r_[-9.0, 9.0, rng.choice(cases.known_score, 4)]
    curve = risk_curve(cases, new_share, at)
    assert curve.thresholds.tolist() == sorted(at.tolist(), reverse=True)
    expected = np.array([rates_by_loop(cases, t, new_share) for t in curve.thresholds])
    found = np.c_[curve.automatic, curve.false_match, curve.miss, curve.false_new]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_intervals_of_the_curve_cover_the_rate_of_all_animals() -> None:
    everyone = population(np.random.default_rng(99), 30_000, 4, 0.5, 2.5)
    at = np.array([1.0, 1.8, 2.4])
    truth = risk_curve(everyone, 0.3, at).false_match
    inside = np.zeros(3)
    for repeat in range(100):
        curve = risk_curve(population(np.random.default_rng(repeat), 120, 4, 0.5, 2.5), 0.3, at, level=0.9)
        inside += (curve.false_match_low <= truth) & (truth <= curve.false_match_high)
    assert (inside >= 84).all(), inside


def test_a_curve_over_nothing_is_empty() -> None:
    nobody = np.empty(0)
    cases = Cases(nobody, nobody.astype(bool), nobody.astype(int), nobody, nobody.astype(int))
    assert risk_curve(cases).thresholds.shape == (0,)
    assert worth(cases).queries == 0
    for refused in (promise_matches(cases, 0.05), promise_new(cases, 0.05)):
        assert (refused.threshold, refused.needed) == (None, None)
    assert mixture_scores(cases).shape == (0,)


def test_thresholds_are_spread_over_the_scores_when_none_are_given() -> None:
    cases = population(np.random.default_rng(0), 300, 2, 0.0, 3.0)
    curve = risk_curve(cases)
    assert len(curve.thresholds) == 200
    assert curve.thresholds[0] == cases.known_score.max() and curve.thresholds[-1] == cases.unknown_score.min()
    assert curve.automatic[-1] == 1.0


# What a sample is worth


def test_independent_photos_are_worth_the_mixture_the_scarcer_kind_allows() -> None:
    rng = np.random.default_rng(0)
    cases = population(rng, 1000, 1, 0.0, 3.0)
    assert worth(cases, 0.5).queries == pytest.approx(2000)
    assert worth(cases, 0.2).queries == pytest.approx(1250)
    few_unknown = Cases(
        cases.known_score, cases.known_wrong, cases.known_animal, cases.unknown_score[:50], cases.unknown_animal[:50]
    )
    assert worth(few_unknown, 0.5).queries == pytest.approx(100)


def test_photos_that_err_together_are_worth_about_one_an_animal() -> None:
    rng = np.random.default_rng(1)
    alike = worth(population(rng, 200, 10, 1.0, 3.0), 0.3)
    assert alike.likeness == pytest.approx(1.0)
    assert alike.queries == pytest.approx(200, rel=0.01)
    apart = worth(population(rng, 200, 10, 0.0, 3.0), 0.3)
    assert apart.likeness < 0.03 and apart.queries > 1800


def intraclass_by_loop(values: list[float], groups: list[int]) -> float:
    members = {g: [v for v, h in zip(values, groups, strict=True) if h == g] for g in groups}
    n, k, mean = len(values), len(members), sum(values) / len(values)
    between = sum(len(m) * (sum(m) / len(m) - mean) ** 2 for m in members.values()) / (k - 1)
    within = sum((v - sum(m) / len(m)) ** 2 for m in members.values() for v in m) / (n - k)
    size = (n - sum(len(m) ** 2 for m in members.values()) / n) / (k - 1)
    total = between + (size - 1) * within
    return min(1.0, max(0.0, (between - within) / total)) if total > 1e-12 else 0.0


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=40))
def test_likeness_is_the_analysis_of_variance(rows: list[tuple[int, int]]) -> None:
    values, groups = [float(v) for v, _ in rows], [g for _, g in rows]
    found = intraclass_correlation(values, groups)
    if len(set(groups)) < 2 or len(set(groups)) == len(groups):
        assert found == 0.0
    else:
        assert found == pytest.approx(intraclass_by_loop(values, groups), abs=1e-9)


# Promises


@pytest.mark.parametrize(
    ("animals", "photos", "likeness", "gap", "rate", "new_share"),
    [(400, 1, 0.0, 4.0, 0.05, 0.3), (200, 6, 0.6, 3.5, 0.05, 0.3), (1000, 1, 0.0, 3.0, 0.02, 0.5)],
)
def test_a_promise_holds_on_fresh_queries_as_often_as_it_says(
    animals: int, photos: int, likeness: float, gap: float, rate: float, new_share: float
) -> None:
    """40 catalogues, each with its promise at 80 %; a rate that is really higher may turn up in a fifth of them."""
    everyone = population(np.random.default_rng(12345), 100_000, 1, 0.0, gap)
    broken = given_matches = 0
    for repeat in range(40):
        cases = population(np.random.default_rng(repeat), animals, photos, likeness, gap)
        found = promise_matches(cases, rate, 0.8, new_share)
        if found.threshold is not None:
            given_matches += 1
            broken += false_match_rate(everyone, found.threshold, new_share) > rate
            assert found.measured <= found.upper <= rate + 1e-9
            assert found.automatic_low <= found.automatic <= found.automatic_high
    assert given_matches >= 36  # refusing everything would be no achievement
    assert broken <= 12  # 8 expected at the very worst; more than 12 of 40 has a probability of 4 % even then


def test_the_promised_threshold_decides_nearly_as_much_as_perfect_knowledge_would() -> None:
    everyone = population(np.random.default_rng(1), 200_000, 1, 0.0, 4.0)
    curve = risk_curve(everyone, 0.3, np.linspace(-3, 8, 400))
    ideal = float(curve.automatic[curve.false_match <= 0.05].max())
    found = promise_matches(population(np.random.default_rng(2), 1500, 1, 0.0, 4.0), 0.05)
    assert 0.93 * ideal < found.automatic < 1.02 * ideal


def test_a_promise_about_new_animals_holds_on_fresh_queries() -> None:
    everyone = population(np.random.default_rng(7), 200_000, 1, 0.0, 4.0)
    broken = 0
    for repeat in range(40):
        cases = population(np.random.default_rng(100 + repeat), 400, 1, 0.0, 4.0)
        found = promise_new(cases, 0.05, 0.8)
        assert found.threshold is not None
        broken += false_new_rate(everyone, found.threshold, 0.3) > 0.05
    assert broken <= 12


def test_a_tighter_rate_or_more_confidence_decides_less() -> None:
    cases = population(np.random.default_rng(3), 2000, 1, 0.0, 3.5)
    by_rate = [promise_matches(cases, rate).automatic for rate in (0.01, 0.02, 0.05, 0.2)]
    by_confidence = [promise_matches(cases, 0.05, c).automatic for c in (0.999, 0.95, 0.5)]
    assert by_rate == sorted(by_rate) and by_rate[0] < by_rate[-1]
    assert by_confidence == sorted(by_confidence)


def test_one_in_a_hundred_cannot_be_promised_from_fifty_photos() -> None:
    found = promise_matches(population(np.random.default_rng(0), 50, 1, 0.0, 9.0), 0.01)
    assert found.threshold is None
    assert "at least 299 independent matches" in found.reason and "50 photos" in found.reason
    assert "about 299 would do" in found.reason
    assert found.needed == 299  # known photos, all of them accepted; strangers are left below the threshold
    assert (found.photos, found.animals, found.automatic) == (50, 50, 0.0)
    assert math.isnan(found.measured)


def test_a_few_photos_that_are_mostly_mistakes_are_not_asked_for_more() -> None:
    found = promise_matches(population(np.random.default_rng(0), 40, 1, 0.0, 0.0), 0.05)
    assert found.threshold is None and found.needed is None
    assert "at least 59 independent matches" in found.reason and "better evidence is needed" in found.reason


def test_the_number_said_to_be_needed_is_enough() -> None:
    """Refused for want of photos: with as many as it asks for, like these, most catalogues get their promise."""
    refused = [promise_matches(population(np.random.default_rng(s), 120, 1, 0.0, 3.2), 0.03) for s in range(12)]
    asked = [p.needed for p in refused if p.threshold is None and p.needed is not None]
    assert len(asked) >= 3
    enough = max(asked)
    given_now = [
        promise_matches(population(np.random.default_rng(50 + s), enough, 1, 0.0, 3.2), 0.03) for s in range(8)
    ]
    assert sum(p.threshold is not None for p in given_now) >= 6


def test_scores_that_cannot_tell_animals_apart_are_refused_whatever_their_number() -> None:
    found = promise_matches(population(np.random.default_rng(0), 3000, 1, 0.0, 0.0), 0.05)
    assert found.threshold is None and found.needed is None
    assert "better evidence is needed" in found.reason


def test_a_few_unknown_animals_do_not_hide_behind_many_known_photos() -> None:
    """No unknown among 20 was matched: that says little about the next one, however many known photos there are."""
    rng = np.random.default_rng(0)
    cases = population(rng, 700, 1, 0.0, 9.0)
    lucky = Cases(cases.known_score, cases.known_wrong, cases.known_animal, np.zeros(20), np.arange(20))
    assert promise_matches(lucky, 0.01, new_share=0.5).threshold is None
    assert promise_matches(cases, 0.01, new_share=0.5).threshold is not None


def test_the_bound_is_the_exact_one_for_the_start_that_passed() -> None:
    cases = population(np.random.default_rng(4), 800, 1, 0.0, 4.0)
    found = promise_matches(cases, 0.05, 0.95, 0.3)
    assert found.threshold is not None
    curve = risk_curve(cases, 0.3, [found.threshold])
    assert found.measured == pytest.approx(curve.false_match[0])
    n = found.automatic * found.queries
    plain = clopper_pearson(found.measured * n, n, 0.9)[1][0]
    assert plain <= found.upper <= 0.05  # wider than a bound for a threshold that was not chosen


@pytest.mark.parametrize(("rate", "confidence"), [(0.0, 0.95), (1.0, 0.95), (0.05, 1.0), (0.05, 0.0)])
def test_certainty_cannot_be_promised(rate: float, confidence: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        promise_matches(population(np.random.default_rng(0), 30, 1, 0.0, 3.0), rate, confidence)


def test_a_share_of_new_animals_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match="new_share"):
        worth(population(np.random.default_rng(0), 30, 1, 0.0, 3.0), 1.2)


# Policy


def test_scores_between_the_thresholds_are_reviewed() -> None:
    assert [verdict(s, 0.8, 0.4) for s in (0.9, 0.8, 0.79, 0.4, 0.39)] == ["match", "match", "review", "review", "new"]
    assert [verdict(s, None, 0.4) for s in (0.9, 0.3)] == ["review", "new"]
    assert [verdict(s, 0.8, None) for s in (0.9, 0.3)] == ["match", "review"]
    assert verdict(0.5, None, None) == "review"


@pytest.mark.parametrize("gap", [0.0, 2.0, 4.0, 8.0])
def test_no_score_is_both_match_and_new(gap: float) -> None:
    cases = population(np.random.default_rng(0), 1500, 1, 0.0, gap)
    policy = choose_policy(cases, 0.05, 0.05)
    if policy.matches.threshold is not None and policy.new.threshold is not None:
        assert policy.new.threshold <= policy.matches.threshold
    share = {"match": 0.0, "new": 0.0, "review": 0.0}
    for scores, weight in ((cases.known_score, 0.7), (cases.unknown_score, 0.3)):
        for score in scores:
            share[policy.verdict(float(score))] += weight / len(scores)
    assert share["match"] == pytest.approx(policy.matches.automatic)
    assert share["new"] == pytest.approx(policy.new.automatic)
    assert policy.automatic == pytest.approx(1 - share["review"])
    assert (share["review"] == pytest.approx(1.0)) == (gap == 0.0)


def test_cases_come_from_left_out_photos() -> None:
    scores = np.array([[1, 0.9, 0.3, 0.2], [0.9, 1, 0.95, 0.1], [0.3, 0.95, 1, 0.4], [0.2, 0.1, 0.4, 1]])
    left_out = leave_one_out(np.arange(4), nearest(scores, 4), [0, 0, 1, 2], np.full(4, -1))
    cases = Cases.of(left_out)
    assert cases.known_score.tolist() == [0.9, 0.95]
    assert cases.known_wrong.tolist() == [False, True]
    assert cases.unknown_score.tolist() == [0.3, 0.95, 0.95, 0.4]
    assert (cases.known_animal.tolist(), cases.unknown_animal.tolist()) == ([0, 0], [0, 0, 1, 2])


# Ageing


def test_mixture_scores_have_the_distribution_of_the_mixture() -> None:
    cases = population(np.random.default_rng(0), 4000, 1, 0.0, 3.0)
    kept = mixture_scores(cases, 0.3, 400)
    assert kept.shape == (400,) and (np.diff(kept) >= 0).all()
    for at in (-1.0, 0.0, 1.5, 3.0):
        expected = 0.7 * (cases.known_score < at).mean() + 0.3 * (cases.unknown_score < at).mean()
        assert (kept < at).mean() == pytest.approx(expected, abs=0.005)


def test_queries_like_those_measured_raise_no_alarm_and_others_do() -> None:
    rng = np.random.default_rng(0)
    measured = mixture_scores(population(rng, 2000, 1, 0.0, 3.0), 0.3)
    alarms = sum(
        drift(
            measured, rng.permutation(mixture_scores(population(rng, 300, 1, 0.0, 3.0), 0.3, 150)), 1000, 1100
        ).drifted
        for _ in range(50)
    )
    assert alarms <= 2
    other_camera = drift(measured, mixture_scores(population(rng, 300, 1, 0.0, 1.5), 0.3, 150), 1000, 1100)
    assert other_camera.drifted and "score differently" in other_camera.reasons[0]
    nearly_all_new = drift(measured, mixture_scores(population(rng, 300, 1, 0.0, 3.0), 0.9, 150), 1000, 1100)
    assert nearly_all_new.drifted and nearly_all_new.distance > 0.3


@pytest.mark.parametrize(("now", "drifted"), [(1000, False), (1240, False), (1300, True), (800, False), (700, True)])
def test_a_gallery_that_has_changed_by_a_quarter_is_another_gallery(now: int, drifted: bool) -> None:
    found = drift([], [], 1000, now)
    assert found.drifted == drifted
    assert found.growth == pytest.approx(now / 1000 - 1)
    assert not drifted or f"{now} photos" in found.reasons[0]


def test_a_promise_is_made_of_plain_numbers() -> None:
    found = promise_matches(population(np.random.default_rng(0), 400, 1, 0.0, 4.0), 0.05)
    assert isinstance(found, Promise)
    assert {type(getattr(found, name)) for name in Promise.__slots__} <= {float, int, str, type(None)}
    assert promise.verdict(9.0, found.threshold, None) == "match"
    assert risk.SHIFT_P < 0.05
