"""Ways to fuse the sources compete on left-out photos; which comes into force, and by how much it is better.

The rule. Of the general weights, the boosted trees and the mean of all ways that fuse sources (each with and without the
columns of a Siamese head) the one that finds most of the known animals is the present default: highest MAP@5, known
animals alone being ranked. Each way that was fitted on a few hundred cases errs by chance in another direction, and so do
the general weights, which saw none of them: the mean errs less. The embedder alone is the default only where it finds
more than that by more than the difference's standard error: several sources tell known from new better than one where
they find as much. The ways that fuse sources calibrated each by itself (`reid.sources`), parts of the mean, challenge it
alone, too; the best of them takes over only where its gain, photo by photo, is above 0 beyond chance: the lower end of
the bootstrap interval over animals, at a level that allows one false alarm in twenty shared among all challengers. All
are measured out of fold by animal.

Knows answers of left-out photos (`reid.measure.Fused`); no stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid import decide, fusion, measure, metrics
from reid.fusion import Fusion
from reid.intervals import bootstrap_interval
from reid.measure import Asked, Fused, Gallery

ONE_ERROR = 0.6827  # level of the interval that reaches one standard error to either side
RULE = 2  # counted up whenever the rule changes or a way joins: what an earlier one chose is chosen anew
FALSE_ALARMS = 0.05  # chance that some challenger takes over although none is better


@dataclass(frozen=True, slots=True)
class Way:
    """One way and what it found: `map_at_5` of known animals with its 95 % interval over animals, and its `gain` over
    the default with an interval at the level of the rule (0 for the default itself).
    """

    kind: str
    siamese: bool
    map_at_5: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    default: bool
    in_force: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, to four digits."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def competing(
    gallery: Gallery,
    asked: Sequence[Asked],
    method: str,
    further: Sequence[Asked] = (),
    general: Fusion = fusion.PRIOR_FUSION,
) -> tuple[list[Fused], list[Fused]]:
    """The ways of which the default is the best (the embedder alone, `general` weights, trees, and the mean of these
    weights, trees and challengers), and the challengers: those that fuse calibrated sources. `further` photos, known by
    heart to the network, teach trees.
    """
    alone, prior = (measure.fused(gallery, asked, kind, method) for kind in (fusion.EMBEDDING, general))
    defaults = [alone, prior]
    challengers = []
    taught = measure.with_and_without_siamese(further) if further else [(), ()]
    for some, more in zip(measure.with_and_without_siamese(asked), taught, strict=False):
        trees = measure.fitted(gallery, some, method, further=more)
        combined = measure.combined(gallery, some, method, further=more)
        mean = measure.averaged(gallery, some, [prior, trees, *combined], method) if trees and combined else None
        defaults += [one for one in (trees, mean) if one is not None]
        challengers += combined
    return defaults, challengers


def chosen(defaults: Sequence[Fused], others: Sequence[Fused]) -> tuple[Fused, tuple[Way, ...]]:
    """The way that comes into force by the module's rule, and all of them, best first."""
    default = _default(defaults)
    known = default.cases.known_case
    animals, own = default.cases.identity[known], _worths(default, known)
    level = 1 - FALSE_ALARMS / max(1, len(others))
    every = [*defaults, *others]
    gains = [bootstrap_interval(_worths(one, known) - own, animals, level=level) for one in every]
    best, winner = max(others, key=lambda one: one.map_at_5, default=default), default
    if best is not default and gains[_at(every, best)].low > 0:
        winner = best
    found = []
    for one, gain in zip(every, gains, strict=True):
        value = bootstrap_interval(_worths(one, known), animals)
        found.append(
            Way(
                one.fusion.kind,
                _siamese(one),
                value.value,
                value.low,
                value.high,
                gain.value,
                gain.low,
                gain.high,
                one is default,
                one is winner,
            )  # fmt: skip
        )
    return winner, tuple(sorted(found, key=lambda way: -way.map_at_5))


def _default(present: Sequence[Fused]) -> Fused:
    """The best that fuses sources, unless the embedder alone is better by more than one standard error."""
    alone, several = ([one for one in present if (one.fusion.kind == "embedding") is bare] for bare in (True, False))
    best, *rest = (max(ways, key=lambda one: one.map_at_5) for ways in (several, alone) if ways)
    for plain in rest:
        known = best.cases.known_case
        gain = _worths(plain, known) - _worths(best, known)
        if bootstrap_interval(gain, best.cases.identity[known], level=ONE_ERROR).low > 0:
            return plain
    return best


def _siamese(one: Fused) -> bool:
    """Whether it hears a Siamese head."""
    return len(one.fusion.columns) > len(fusion.NAMES)


def _at(ways: Sequence[Fused], wanted: Fused) -> int:
    return next(i for i, one in enumerate(ways) if one is wanted)


def _worths(one: Fused, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What each known case earns under MAP@5."""
    return np.asarray(metrics.reciprocal_ranks(one.cases.truth_rank[known], decide.LABELS))
