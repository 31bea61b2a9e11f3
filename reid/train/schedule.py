"""How far a training has come, how fast it learns there, and how it ends in time.

`done` runs from 0 to 1 over all steps; learning rate, input size and frozen stages follow from it. Within a `Budget` the
first steps are measured and the number of epochs follows; where the machine turns out slower, later epochs are dropped
and `done` moves faster, so that the rate still comes down to its end. Knows numbers only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from reid.train.recipe import Recipe, ScheduleConfig

_MEASURED = (3, 10)  # steps: the first ones warm up, then time is taken until the second
_RESERVE = 0.05  # share of a budget that is kept for what follows the epochs, and seconds of it at least
_EXPORT = 15.0
_STRIDE = 16  # inputs are multiples of so many pixels
_LEAST_RATE = 0.01  # share of the learning rate at the end


@dataclass(frozen=True, slots=True)
class Budget:
    """Seconds that a training may take by `clock`; 0: as long as its recipe says. `before` were spent in earlier runs."""

    seconds: float = 0.0
    clock: Callable[[], float] = time.perf_counter
    start: float = math.nan

    def begun(self) -> Budget:
        """The same, running from now."""
        return replace(self, start=self.clock())

    def spent(self) -> float:
        """Seconds since it began."""
        return self.clock() - self.start

    def left(self) -> float:
        """Seconds for epochs from now on; endless without a bound."""
        kept = max(self.seconds * _RESERVE, min(_EXPORT, self.seconds / 4))
        return self.seconds - kept - self.spent() if self.seconds else math.inf


@dataclass(slots=True)
class Plan:
    """Epochs `left` (this one included), the share `done`, and what the last epochs cost."""

    left: int
    done: float = 0.0
    fixed: bool = False
    steps: int = 0  # of this epoch
    shown: int = 0
    limit: int = 0  # steps of this epoch that fit into the budget; 0: all
    since: float = field(default=math.nan)
    ahead: float = 0.0  # seconds that this epoch took before its first step: look-alikes, pairs, clusters
    each: float = math.nan  # seconds an epoch
    costs: tuple[float, ...] = (1.0,)  # of an epoch at each of the sizes, in equal parts of the training

    def begin(self, steps: int, budget: Budget, config: ScheduleConfig, ahead: float = 0.0) -> None:
        """An epoch of so many steps begins, after `ahead` seconds of getting it ready."""
        self.steps, self.shown, self.since, self.ahead = steps, 0, budget.spent(), ahead
        self.costs = tuple(size * size for size in config.sizes)
        if self.fixed and not math.isnan(self.each):
            self._fit(budget.left() + ahead, self.each)

    def step(self, budget: Budget) -> None:
        """One more is done."""
        self.shown += 1
        steps = self.limit or self.steps
        self.done = min(
            1.0, self.done + (1 - self.done) / max(1.0, (self.left - 1) * self.steps + steps - self.shown + 1)
        )
        first, last = (min(n, max(1, self.steps - 1)) for n in _MEASURED)
        if self.fixed:
            return
        if self.shown == first:
            self.since = budget.spent()
        elif self.shown == last:
            stepping = (budget.spent() - self.since) / (last - first) * self.steps
            self.fixed = True
            self._fit(budget.left() + stepping * last / self.steps + self.ahead, stepping + self.ahead)
            self.limit = max(self.limit, last) if self.limit else 0

    def cut(self, shown: int) -> bool:
        """Whether this epoch has to end here."""
        return bool(self.limit) and shown >= self.limit

    def end(self, budget: Budget) -> None:
        """The epoch is over."""
        if not self.limit:
            spent = budget.spent() - self.since + self.ahead
            self.each = spent if self.shown else math.nan
        self.left -= 1
        self.fixed = True
        self.limit = 0
        if not self.left:
            self.done = 1.0

    def _fit(self, seconds: float, each: float) -> None:
        """No more epochs than fit, one at least; a part of one where not even that fits."""
        now = self.costs[min(int(self.done * len(self.costs)), len(self.costs) - 1)]
        to_come = self.costs[min(int(self.done * len(self.costs)), len(self.costs) - 1) :]
        mean = each / now * sum(to_come) / len(to_come)
        if seconds == math.inf or mean <= 0:
            return
        fits = seconds / mean
        self.left = max(1, min(self.left, int(fits + 0.15)))
        if fits < 0.85:
            self.limit = max(1, int(self.steps * max(fits, 0.0)))

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"left": self.left, "done": self.done, "each": self.each}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Plan:
        """Of a checkpoint."""
        return cls(left=raw["left"], done=raw["done"], each=raw["each"], fixed=True)


def rate_at(done: float, config: ScheduleConfig) -> float:
    """The share of the learning rate at `done`: a straight line up, then a cosine down, begun again after each restart."""
    if done < config.warm_up:
        return max(_LEAST_RATE, done / config.warm_up)
    along = (done - config.warm_up) / (1 - config.warm_up) * (config.restarts + 1)
    cycle = along - int(along) if along < config.restarts + 1 else 1.0
    return _LEAST_RATE + (1 - _LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * cycle))


def size_at(done: float, recipe: Recipe) -> tuple[int, int]:
    """Height and width of the input at `done`, multiples of 16 but for the last."""
    sizes = recipe.schedule.sizes
    factor = sizes[min(int(done * len(sizes)), len(sizes) - 1)]
    if factor == 1.0:
        return recipe.input.height, recipe.input.width
    height, width = (
        max(32, round(pixels * factor / _STRIDE) * _STRIDE) for pixels in (recipe.input.height, recipe.input.width)
    )
    return height, width
