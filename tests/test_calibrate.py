"""Score → probability: the curves of scikit-learn, the properties they promise, and their way through JSON."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from reid.calibrate import CALIBRATIONS, Calibration, fit_isotonic, fit_platt
from reid.metrics import expected_calibration_error

SCORES = st.integers(-8, 8).map(lambda v: v / 8)
# One of either kind always, so that no list has to be thrown away.
PAIRS = st.tuples(st.lists(st.tuples(SCORES, st.booleans()), max_size=48), SCORES, SCORES).map(
    lambda drawn: [*drawn[0], (drawn[1], True), (drawn[2], False)]
)


def apart(pairs: list[tuple[float, bool]]) -> tuple[list[float], list[bool]]:
    return [s for s, _ in pairs], [same for _, same in pairs]


def sample(n: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    scores = rng.normal(0.4, 0.2, n)
    return scores, rng.random(n) < 1 / (1 + np.exp(-(12 * scores - 6)))


@given(PAIRS, st.sampled_from(sorted(CALIBRATIONS)))
@example([(-0.625, True), (-0.625, True), (-0.75, False)], "platt")
def test_no_curve_falls_or_reaches_certainty(pairs: list[tuple[float, bool]], kind: str) -> None:
    curve = CALIBRATIONS[kind](*apart(pairs))
    stated = curve.probability(np.linspace(-2, 2, 401))
    assert (np.diff(stated) >= 0).all()
    assert ((stated > 0) & (stated < 1)).all()


@given(PAIRS, st.sampled_from(sorted(CALIBRATIONS)))
def test_a_curve_survives_json_exactly(pairs: list[tuple[float, bool]], kind: str) -> None:
    curve = CALIBRATIONS[kind](*apart(pairs))
    assert Calibration.from_dict(json.loads(json.dumps(curve.to_dict()))) == curve


@given(PAIRS)
@settings(max_examples=60)
def test_the_isotonic_curve_is_the_max_min_formula(pairs: list[tuple[float, bool]]) -> None:
    """At each score: the largest over starts at or below it of the smallest mean over ends at or above it."""
    scores, same = apart(pairs)
    curve = fit_isotonic(scores, same, bounded=False)
    distinct = sorted(set(scores))
    for at in distinct:
        expected = max(
            min(float(np.mean([t for s, t in pairs if start <= s <= end])) for end in distinct if end >= at)
            for start in distinct
            if start <= at
        )
        assert float(curve.probability(at)) == pytest.approx(expected, abs=1e-12)


def test_isotonic_agrees_with_scikit_learn_between_and_beyond_its_steps() -> None:
    reference = pytest.importorskip("sklearn.isotonic")
    rng = np.random.default_rng(1)
    for n in (10, 300, 3000):
        scores, same = sample(n, n)
        scores = np.round(scores, 2)  # ties
        weights = rng.integers(1, 4, n).astype(float)
        theirs = reference.IsotonicRegression(out_of_bounds="clip", y_min=0, y_max=1)
        theirs.fit(scores, same.astype(float), sample_weight=weights)
        at = np.linspace(-1, 2, 999)
        ours = fit_isotonic(scores, same, weights, bounded=False)
        np.testing.assert_allclose(ours.probability(at), theirs.predict(at), atol=1e-9)


def test_platt_agrees_with_scikit_learn() -> None:
    reference = pytest.importorskip("sklearn.linear_model")
    for seed, shift in ((0, 0.0), (1, 300.0)):
        scores, same = sample(500, seed)
        scores += shift  # RANSAC inliers, votes: scores that are not near 0
        theirs = reference.LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000)
        theirs.fit((scores - shift)[:, None], same)
        ours = fit_platt(scores, same, smooth=False)
        assert ours.slope == pytest.approx(float(theirs.coef_[0, 0]), rel=1e-4)
        expected = theirs.predict_proba((scores - shift)[:, None])[:, 1]
        np.testing.assert_allclose(ours.probability(scores), expected, atol=1e-5)


def test_a_weight_of_two_is_the_pair_twice() -> None:
    scores, same = sample(200)
    weights = np.arange(200) % 3
    repeated = np.repeat(np.arange(200), weights)
    at = np.linspace(-0.5, 1.5, 50)
    for once, twice in (
        (fit_platt(scores, same, weights), fit_platt(scores[repeated], same[repeated])),
        (
            fit_isotonic(scores, same, weights, bounded=False),
            fit_isotonic(scores[repeated], same[repeated], bounded=False),
        ),
    ):
        np.testing.assert_allclose(once.probability(at), twice.probability(at), atol=1e-9)


def test_scores_that_separate_perfectly_still_give_a_finite_curve() -> None:
    scores, same = np.r_[np.zeros(30), np.ones(30)], np.arange(60) >= 30
    curve = fit_platt(scores, same)
    assert curve.probability([0.0, 1.0]).tolist() == pytest.approx([1 / 32, 31 / 32], abs=1e-6)
    assert math.isfinite(fit_platt(scores, same, smooth=False).slope)
    assert fit_isotonic(scores, same).probability([0.0, 1.0]).tolist() == pytest.approx([1 / 62, 61 / 62])


@pytest.mark.parametrize("scores", [[0.5] * 10, list(range(10))])
def test_scores_that_say_nothing_or_the_opposite_give_a_flat_curve(scores: list[float]) -> None:
    same = [True, True, True, True, False, False, False, False, False, False]
    curve = fit_platt(scores, same, smooth=False)
    assert curve.slope == 0
    np.testing.assert_allclose(curve.probability([-9.0, 0.0, 99.0]), 0.4)
    np.testing.assert_allclose(fit_isotonic(scores, same).probability([-9.0, 0.0, 99.0]), 0.4)


@pytest.mark.parametrize("kind", sorted(CALIBRATIONS))
def test_what_a_curve_states_comes_true_on_pairs_it_has_not_seen(kind: str) -> None:
    curve = CALIBRATIONS[kind](*sample(4000, 1))
    scores, same = sample(20_000, 2)
    assert expected_calibration_error(curve.probability(scores), same) < 0.03
    assert expected_calibration_error(np.clip(scores, 0, 1), same) > 0.1  # the raw score is no probability


def test_a_hundred_thousand_pairs_are_fitted_in_seconds() -> None:
    scores, same = sample(100_000)
    start = time.perf_counter()
    fit_platt(scores, same)
    fit_isotonic(scores, same)
    assert time.perf_counter() - start < 10  # 0.2 s on an idle core


@pytest.mark.parametrize("kind", sorted(CALIBRATIONS))
@pytest.mark.parametrize(
    ("scores", "same", "words"),
    [
        ([0.1, 0.2], [True, True], "both kinds"),
        ([], [], "both kinds"),
        ([0.1], [True, False], "one of each"),
        ([0.1, math.nan], [True, False], "NaN"),
    ],
)
def test_pairs_without_a_curve_are_refused(kind: str, scores: list[float], same: list[bool], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CALIBRATIONS[kind](scores, same)


def test_shape_is_kept() -> None:
    curve = fit_platt(*sample(100))
    assert curve.probability(np.zeros((3, 4))).shape == (3, 4)
    assert float(curve.probability(0.3)) == pytest.approx(float(curve.probability([0.3])[0]))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "magic"},
        {"slope": -1.0},
        {"intercept": math.nan},
        {"colour": "red"},
        {"kind": "isotonic", "scores": [0.2, 0.1], "probabilities": [0.1, 0.2]},
        {"kind": "isotonic", "scores": [0.1, 0.2], "probabilities": [0.2, 0.1]},
        {"kind": "isotonic", "scores": [0.1], "probabilities": [1.5]},
        {"kind": "isotonic", "scores": [0.1, 0.2], "probabilities": [0.2]},
        {"kind": "isotonic", "scores": [], "probabilities": []},
    ],
)
def test_a_damaged_curve_is_refused(change: dict[str, Any]) -> None:
    whole = Calibration("platt", 10, 5, slope=2.0, intercept=-1.0)
    assert Calibration.from_dict(whole.to_dict()) == whole == replace(whole)
    with pytest.raises(ValueError, match="not a calibration"):
        Calibration.from_dict(whole.to_dict() | change)


def test_a_curve_with_a_missing_key_is_refused() -> None:
    with pytest.raises(ValueError, match="not a calibration"):
        Calibration.from_dict({"kind": "platt"})
