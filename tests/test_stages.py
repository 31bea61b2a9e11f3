"""Stages that fail, hang or stop half-way: the caller gets words, in time."""

from __future__ import annotations

import threading
import time

from reid.errors import ModelError
from reid.stages import Outcome, Running, run


def test_a_stage_that_works_gives_its_value_with_a_limit_and_without():
    assert run("votes", lambda running: 7, 0) == Outcome(7, "")
    assert run("votes", lambda running: 7, 5.0) == Outcome(7, "")


def test_a_stage_that_gives_none_is_not_one_that_failed():
    assert run("votes", lambda running: None, 5.0) == Outcome(None, "")


def test_a_failure_is_said_with_the_stage_and_the_reason():
    def ours(running: Running) -> int:
        raise ModelError("no weights", source="here", next_step="install them")

    def theirs(running: Running) -> int:
        raise ZeroDivisionError("oh")

    for seconds in (0.0, 5.0):
        assert run("geometry", ours, seconds) == Outcome(None, "geometry: failed (here: no weights; install them)")
        assert run("geometry", theirs, seconds) == Outcome(None, "geometry: failed (ZeroDivisionError: oh)")


def test_a_slow_stage_is_left_behind_in_time_and_told_to_stop():
    stopped, never = threading.Event(), threading.Event()

    def slow(running: Running) -> int:
        while not running.stop:
            time.sleep(0.005)
        stopped.set()
        return 1

    start = time.perf_counter()
    assert run("votes", slow, 0.1) == Outcome(None, "votes: not done within 0.1 s")
    assert time.perf_counter() - start < 2.0
    assert stopped.wait(5.0)

    start = time.perf_counter()
    assert run("votes", lambda running: never.wait(20), 0.1).reason == "votes: not done within 0.1 s"
    assert time.perf_counter() - start < 2.0  # although it does not listen
    never.set()


def test_without_a_limit_a_stage_may_take_its_time():
    assert run("votes", lambda running: time.sleep(0.05) or 3, 0).value == 3
