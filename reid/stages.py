"""A stage of a query that may fail or take too long: what it gave, or in words why it gave nothing.

A stage runs on a thread of its own where it has a limit. When the limit is over the answer goes on without it; the
thread is told to stop (`Running.stop`), and what does not listen ends whenever it ends, its result unread. Knows
clocks and threads; not what a stage does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from reid.errors import ReidError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """`value` of a stage, or None and the `reason`; the reason is empty where the stage was done."""

    value: T | None
    reason: str = ""


class Running:
    """Handed to a stage that can stop half-way: it looks at `stop` between its steps."""

    def __init__(self) -> None:
        self._over = threading.Event()

    @property
    def stop(self) -> bool:
        """Whether the time is over and nobody waits any more."""
        return self._over.is_set()

    def end(self) -> None:
        """Tell the stage that its time is over."""
        self._over.set()


def run(name: str, work: Callable[[Running], T], seconds: float) -> Outcome[T]:
    """Do `work` within `seconds` (0: however long it takes). An exception becomes the reason, never an exception of
    the caller's.
    """
    running = Running()
    if seconds <= 0:
        return _attempt(name, work, running)
    box: list[Outcome[T]] = []
    thread = threading.Thread(
        target=lambda: box.append(_attempt(name, work, running)), name=f"reid-{name}", daemon=True
    )
    thread.start()
    thread.join(seconds)
    done = list(box)
    if done:
        return done[0]
    running.end()
    return Outcome(None, f"{name}: not done within {seconds:g} s")


def _attempt(name: str, work: Callable[[Running], T], running: Running) -> Outcome[T]:
    try:
        return Outcome(work(running))
    except ReidError as error:
        return Outcome(None, f"{name}: failed ({error})")
    except Exception as error:  # a bug or a library's trouble in one source must not cost the others' answer
        return Outcome(None, f"{name}: failed ({type(error).__name__}: {error})")
