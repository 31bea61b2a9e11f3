"""What promised rates come to on queries: counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reid import figures, promise
from reid.intervals import clopper_pearson
from reid.kept import kept
from reid.risk import Cases


def cases(photos: int, seed: int, *, worse: float = 0.0) -> Cases:
    """Known animals score high and mostly right, strangers low; `worse` shifts strangers up."""
    rng = np.random.default_rng(seed)
    known, unknown = rng.normal(2, 1, photos), rng.normal(-1 + worse, 1, photos)
    wrong = rng.random(photos) < 1 / (1 + np.exp(2 * known))
    return Cases(known, wrong, np.arange(photos), unknown, np.arange(photos) + photos)


def test_what_is_answered_and_what_of_it_is_wrong_are_counted_on_the_queries_alone() -> None:
    left_out, asked = cases(800, 0), cases(300, 1)
    one = kept(left_out, asked, 0.05, 0.3)
    at = promise.promise_matches(left_out, 0.05, new_share=0.3).threshold
    assert at is not None and one.threshold == at and one.queries == 600
    given = [bool(w) for s, w in zip(asked.known_score, asked.known_wrong, strict=True) if s >= at]
    strangers = sum(s >= at for s in asked.unknown_score)
    assert (one.given, one.wrong) == (len(given) + strangers, sum(given) + strangers) and one.given > 100
    assert one.measured == one.wrong / one.given
    low, high = clopper_pearson(one.wrong, one.given)
    assert (one.low, one.high) == (low[0], high[0]) and one.low <= 0.05
    assert one.automatic == pytest.approx(0.7 * len(given) / 300 + 0.3 * strangers / 300)
    assert f"{one.given} of 600 queries" in figures.promised(one)[1] and figures.promised(one)[0] == "5 %"


def test_a_promise_that_is_broken_shows_it() -> None:
    one = kept(cases(800, 0), cases(300, 1, worse=3.0), 0.05, 0.3)
    assert one.low > 0.05


def test_what_is_refused_answers_nothing_and_says_why() -> None:
    for left_out in (cases(20, 0), Cases.nothing()):
        one = kept(left_out, cases(50, 1), 0.01, 0.3)
        assert one.threshold is None and (one.given, one.wrong) == (0, 0) and "1" in one.reason
        assert one.to_json()["measured"] is None and figures.promised(one)[1] == f"refused: {one.reason}"


def test_a_promise_under_which_nothing_is_answered_has_no_measured_rate() -> None:
    quiet = Cases(np.array([-9.0]), np.array([False]), np.array([0]), np.array([-9.0]), np.array([1]))
    one = kept(cases(800, 0), quiet, 0.05, 0.3)
    assert one.given == 0 and math.isnan(one.measured) and one.to_json()["low"] is None
    assert figures.promised(one)[1].startswith("0 of 2 queries")
