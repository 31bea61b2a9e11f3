"""Answers: where the new individual stands among five labels, and what the answer is called."""

from __future__ import annotations

import pytest

from reid import decide
from reid.decide import insert_new

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
