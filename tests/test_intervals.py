"""Intervals: the same numbers as slow loops and as SciPy, and the coverage they promise."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from reid import intervals


def bootstrap_by_loop(values: list[float], groups: list[str], n: int, seed: int, group_mean: bool) -> list[float]:
    """Draw group names with replacement, pool their values, take the mean; the draws are the generator's integers."""
    rng = np.random.default_rng(seed)
    names = sorted(set(groups))
    of = {name: [v for v, g in zip(values, groups, strict=True) if g == name] for name in names}
    draws = rng.integers(len(names), size=(n, len(names)))
    means = []
    for draw in draws:
        if group_mean:
            means.append(sum(sum(of[names[i]]) / len(of[names[i]]) for i in draw) / len(draw))
        else:
            pooled = [v for i in draw for v in of[names[i]]]
            means.append(sum(pooled) / len(pooled))
    return means


@pytest.mark.parametrize("statistic", ["mean", "group_mean"])
def test_the_fast_bootstrap_is_the_loop(statistic: str) -> None:
    rng = np.random.default_rng(8)
    groups = [f"w_{i}" for i in rng.integers(0, 12, 60)]
    values = rng.random(60).tolist()
    found = intervals.bootstrap_interval(values, groups, statistic, n=300, seed=4)  # type: ignore[arg-type]
    means = bootstrap_by_loop(values, groups, 300, 4, statistic == "group_mean")
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    by_group = {g: [v for v, h in zip(values, groups, strict=True) if h == g] for g in groups}
    whole = np.mean([np.mean(v) for v in by_group.values()]) if statistic == "group_mean" else np.mean(values)
    assert found.value == pytest.approx(whole)
    assert (found.n_values, found.n_groups) == (60, len(by_group))


def test_any_statistic_gets_whole_groups() -> None:
    groups = np.repeat(np.arange(20), np.arange(1, 21))
    seen: list[NDArray[np.int64]] = []

    def spy(rows: NDArray[np.int64]) -> float:
        seen.append(rows)
        return float(len(rows))

    intervals.bootstrap_interval(groups, groups, spy, n=50)
    for rows in seen:
        names, counts = np.unique(rows, return_counts=True)
        assert (counts % (names + 1) == 0).all()  # group g has g + 1 rows, and all of them come along
        assert (counts // (names + 1)).sum() == 20


def test_a_mean_given_as_a_function_has_the_same_interval_within_noise() -> None:
    rng = np.random.default_rng(1)
    groups, values = rng.integers(0, 80, 500), rng.random(500)
    fast = intervals.bootstrap_interval(values, groups, n=4000, seed=1)
    slow = intervals.bootstrap_interval(values, groups, lambda v: float(v.mean()), n=4000, seed=2)
    assert slow.value == pytest.approx(fast.value)
    assert (slow.low, slow.high) == pytest.approx((fast.low, fast.high), abs=0.003)


def test_resampling_animals_gives_a_wider_interval_than_pretending_photos_are_independent() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 25)
    values = (rng.random(40) < 0.5)[groups].astype(float)  # all photos of an animal succeed or fail together
    animals = intervals.bootstrap_interval(values, groups)
    photos = intervals.bootstrap_interval(values, np.arange(1000))
    assert animals.high - animals.low > 4 * (photos.high - photos.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(6)
    covered = 0
    for repeat in range(200):
        rates = rng.beta(2, 2, 60)
        groups = np.repeat(np.arange(60), 4)
        found = intervals.bootstrap_interval(rng.random(240) < rates[groups], groups, n=300, seed=repeat, level=0.9)
        covered += found.low <= 0.5 <= found.high
    assert 0.83 <= covered / 200 <= 0.96


def test_one_animal_leaves_nothing_to_resample() -> None:
    found = intervals.bootstrap_interval([0.0, 1.0], ["a", "a"])
    assert found.value == 0.5 and math.isnan(found.low) and math.isnan(found.high)
    empty = intervals.bootstrap_interval([], [])
    assert math.isnan(empty.value) and (empty.n_values, empty.n_groups) == (0, 0)


def test_replicates_without_a_value_are_left_out() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0])
    found = intervals.bootstrap_interval(values, [0, 1, 2, 3], lambda v: math.nan if 1.0 in v else 7.0, n=200)
    assert (found.low, found.high) == (7.0, 7.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1.0, 2.0], ["a"]), "one group a value"),
        (([1.0], ["a"], "median"), "unknown statistic"),
        (([[1.0]], ["a"]), "needs"),
        (([1.0], ["a"], "mean", 10, 0, 95.0), "level"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        intervals.bootstrap_interval(*arguments)  # type: ignore[arg-type]


def test_a_thousand_replicates_over_five_thousand_animals_take_no_time_to_speak_of() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.random(20_000), rng.integers(0, 5000, 20_000)
    start = time.perf_counter()
    intervals.bootstrap_interval(values, groups)
    assert time.perf_counter() - start < 5  # 0.1 s on an idle core; a loop over replicates and rows takes a minute


@given(st.integers(0, 60), st.integers(1, 60), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
@settings(max_examples=60)
def test_the_exact_interval_inverts_the_binomial_tails(x: int, n: int, level: float) -> None:
    x = min(x, n)
    low, high = (float(v[0]) for v in intervals.clopper_pearson(x, n, level))

    def at_most(k: int, p: float) -> float:
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))

    if x == 0:
        assert low == 0.0
    else:
        assert 1 - at_most(x - 1, low) == pytest.approx((1 - level) / 2, abs=1e-9)
    if x == n:
        assert high == 1.0
    else:
        assert at_most(x, high) == pytest.approx((1 - level) / 2, abs=1e-9)


@given(st.integers(0, 40), st.integers(1, 40), st.floats(0.001, 0.999))
def test_the_binomial_tail_is_the_sum(x: int, n: int, p: float) -> None:
    x = min(x, n)
    expected = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(x + 1))
    assert float(intervals.binomial_tail(x, n, p)[0]) == pytest.approx(expected, abs=1e-10)


def test_shares_agree_with_scipy_from_a_handful_to_a_million() -> None:
    stats = pytest.importorskip("scipy.stats")
    for x, n in [(0, 3), (1, 7), (12, 300), (299, 300), (0, 5000), (4000, 100_000), (999_990, 1_000_000)]:
        for level in (0.9, 0.99):
            exact = stats.binomtest(x, n).proportion_ci(level, method="exact")
            low, high = intervals.clopper_pearson(x, n, level)
            assert (low[0], high[0]) == pytest.approx((exact.low, exact.high), rel=1e-7, abs=1e-12)
            score = stats.binomtest(x, n).proportion_ci(level, method="wilson")
            assert intervals.wilson(x, n, level) == pytest.approx((score.low, score.high), rel=1e-9, abs=1e-12)


def test_the_beta_function_agrees_with_scipy_for_fractions() -> None:
    special = pytest.importorskip("scipy.special")
    rng = np.random.default_rng(0)
    a, b, x = 10 ** rng.uniform(-1, 4, 2000), 10 ** rng.uniform(-1, 4, 2000), rng.random(2000)
    near = rng.random(2000) < 0.7  # where the function turns, not only its flat ends
    x[near] = np.clip((a / (a + b) * rng.uniform(0.9, 1.1, 2000))[near], 0, 1)
    np.testing.assert_allclose(intervals.beta_cdf(x, a, b), special.betainc(a, b, x), atol=1e-10)
    assert intervals.beta_cdf([0.0, 1.0], 2.0, 3.0).tolist() == [0.0, 1.0]


def test_nothing_tried_says_nothing() -> None:
    assert intervals.wilson(0, 0) == (0.0, 1.0)
    low, high = intervals.clopper_pearson([0, 1], [0, 1])
    assert (low[0], high[0], high[1]) == (0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="successes"):
        intervals.clopper_pearson(3, 2)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=25), st.lists(st.integers(0, 9), min_size=1, max_size=25))
def test_the_ks_distance_is_the_largest_gap_between_the_two_shares(first: list[int], second: list[int]) -> None:
    gaps = [
        abs(sum(v <= t for v in first) / len(first) - sum(v <= t for v in second) / len(second)) for t in range(-1, 11)
    ]
    assert intervals.kolmogorov_smirnov(first, second).distance == pytest.approx(max(gaps))


def test_the_ks_p_value_is_close_to_scipys_exact_one_and_calm_under_no_change() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    alarms = 0
    for shift in (0.0, 0.1, 0.3):
        for _ in range(100):
            a, b = rng.normal(size=120), rng.normal(shift, size=150)
            found = intervals.kolmogorov_smirnov(a, b)
            exact = stats.ks_2samp(a, b, method="exact")
            assert found.distance == pytest.approx(exact.statistic)
            assert found.p_value == pytest.approx(exact.pvalue, abs=0.06)
            alarms += shift == 0.0 and found.p_value < 0.05
    assert alarms <= 12
    assert intervals.kolmogorov_smirnov(rng.normal(size=500), rng.normal(1, size=500)).p_value < 1e-12
    assert intervals.kolmogorov_smirnov([], [1.0]) == intervals.SampleShift(0.0, 1.0)


def test_group_means_are_means_of_each_group() -> None:
    names, means = intervals.group_means([1, 3, 10, 5], ["b", "b", "a", "a"])
    assert (names.tolist(), means.tolist()) == (["a", "b"], [7.5, 2.0])
