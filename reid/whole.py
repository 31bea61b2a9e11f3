"""A whole network trained on photos of a store by a recipe: which photos it is shown, and which only tell how it goes.

    a lesson's photos with names  +  photos of nobody known, where the recipe has room for them (`sampling.new_share`)
    judges' photos → a curve: after every epoch the judges are asked, and the figures are written down

The curve is told and never acted upon: no epoch is chosen by it, nothing ends early, and the weights that serve are the
last or their mean whatever it says. So `reid.judge` may ask the same photos afterwards, and its verdict stays that of
photos which had no say. (A person who picks among several runs by their curves picks by the judges.)

Knows stores and lessons; how a network learns is the business of `reid.train.embedder`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reid import alike, siamese, withheld
from reid.enrol import Progress
from reid.judge import Pool, sources_of
from reid.store import Store
from reid.teaching import Lesson, Made

if TYPE_CHECKING:
    from reid.train.recipe import Recipe

IntArray = NDArray[np.int64]
Told = Callable[[int, float, float], None]


def teach(
    store: Store, recipe: Recipe, base: str, pool: Pool, lesson: Lesson, progress: Progress, tell: Told, *,
    seed: int = 0, seconds: float = 0.0, resume: bool = False, begin_with: Path | None = None,
) -> Made:  # fmt: skip
    """One lesson by `recipe`, within `seconds` (0: as long as it says); `begin_with` learns further."""
    from reid.train import embedder, holdout
    from reid.train.schedule import Budget

    new = unnamed_of(store, pool, lesson, seed) if recipe.sampling.new_share and not lesson.trial else lesson.rows[:0]
    asked = asked_of(pool, lesson, seed, holdout.ASKED)
    rows = np.concatenate([lesson.rows, new, asked])
    names = [*lesson.names, *[""] * len(new), *map(str, pool.labels.individuals[asked])]
    shown = len(rows) - len(asked)
    done = embedder.train(
        sources_of(store, pool.labels, rows), names, recipe, lesson.folder, lesson.name, seed=seed, base=base,
        held=holdout.Split(np.arange(shown, len(rows)), np.arange(shown)) if len(asked) else None,
        budget=Budget(seconds), resume=resume, progress=progress, epochs=tell, begin_with=begin_with,
    )  # fmt: skip
    notes: dict[str, Any] = {
        "parameters": done.parameters,
        "steps": done.steps,
        "unnamed": len(new),
        "outlined": done.outlined,
        "losses": [one.loss for one in done.history],
        "epochs": [asdict(one) for one in done.history],
    }
    line = f"{len(done.history)} epochs, {done.steps} steps, {done.parameters} learnt numbers"
    if len(new):
        line += f"; {len(new)} photos without a name among the others"
    if done.outlined:
        line += f"; {done.outlined} photos with a mask, shown before the backgrounds of others, too"
    if (done.model / siamese.FOLDER).is_dir():
        line += "; its Siamese head comes with it"
    said = alike.suspected(
        pool.labels.annotations[lesson.rows], np.array([int(one) for one in lesson.names]), pool.labels.names,
        done.suspects,
    )  # fmt: skip
    if said:
        line += f"; names that may be one animal, and were not taught as two: {len(said)}"
    return Made(done.model, done.photos, done.failures, done.seconds, notes, line, tuple(new.tolist()), said)


def unnamed_of(store: Store, pool: Pool, lesson: Lesson, seed: int) -> IntArray:
    """Rows of photos without a name that are shown as nobody known: none of a sighting that has a named photo, or one
    of the lesson's, since that is likely to be the same animal (so none of a judge's sighting either); a random choice
    of as many as the lesson has photos, where there are more.
    """
    labels = pool.labels
    groups = withheld.sightings_of(store.catalogue, labels)
    taken = labels.individuals >= 0
    taken[lesson.rows] = True
    free = np.flatnonzero(~np.isin(groups, groups[taken]))
    return np.sort(np.random.default_rng([seed, 17]).permutation(free)[: len(lesson.rows)])


def asked_of(pool: Pool, lesson: Lesson, seed: int, most: int) -> IntArray:
    """Rows of the judges by which the curve is told: a random choice of `most` of those whose animal the lesson knows."""
    learnt = set(lesson.names)
    known = np.array([str(code) in learnt for code in pool.labels.individuals[pool.judges]], np.bool_)
    return np.sort(np.random.default_rng([seed, 19]).permutation(pool.judges[known])[:most])
