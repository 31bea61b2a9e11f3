"""Pseudo-labels: photos without a name that a trained model is sure of join the next round's training under that name.

A photo is named when its best identity scores at least a threshold, and the second best at least a gap less. Both are
placed on photos of known animals that the round's model was not trained on (`placed`): where the names so given are
right often enough, and of such places where most photos get one. Each of these photos counts twice, with its animal in
the gallery and, as a photo of an unknown animal, without it: an estimate from known animals alone would flatter, since
most wrong names are given to strangers. Each round names anew: a photo may change or lose its name.

Nothing here is written anywhere: pseudo-labels are of a training, not of a catalogue. Knows arrays only. Sources: first,
fifth and ninth places of Humpback Whale Identification (2019).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.errors import TrainError
from reid.train import folds

Floats = NDArray[np.float64]
IntArray = NDArray[np.int64]
Vectors = NDArray[np.float32]
Teach = Callable[[IntArray, IntArray, int], Vectors]
"""Rows trained on, their codes, number of the round → unit vectors `(N, D)` of all photos."""

LEAST_HELD = 10  # animals of which a photo is held out, below which nothing is measured
MOST_HELD = 300
LEAST_JUDGED = 5  # held-out photos that must be named; few can only support a low precision
_GAPS = (0.0, 0.25, 0.5, 0.75)  # quantiles of the held-out photos' gaps at which a least gap is tried


@dataclass(frozen=True, slots=True)
class Place:
    """Where photos get a name: score at least `threshold`, second best at least `gap` less.

    `precision` is the share of names given so that would be right, `recall` that of known animals' photos that would get
    their name, both by `judged` held-out photos (so many of which got a name, right or wrong).
    """

    threshold: float
    gap: float
    precision: float
    recall: float
    judged: int


@dataclass(frozen=True, slots=True)
class Round:
    """One round's naming: `rows` of photos and the `codes` they were given; `changed` and `lost` since the round before."""

    place: Place
    rows: tuple[int, ...]
    codes: tuple[int, ...]
    changed: int
    lost: int


def rounds(
    teach: Teach,
    codes: IntArray,
    groups: IntArray,
    taught: IntArray,
    unnamed: IntArray,
    *,
    n: int,
    least: float,
    share_new: float,
    seed: int = 0,
) -> list[Round]:
    """`n` rounds: each trains on `taught` (rows with identity `codes (N,)`, less the held-out ones) and on what the
    round before named, and then names `unnamed`. The last round's naming is for the final training.

    A photo of the same sighting as a held-out one (`groups (N,)`) is not trained on. `least` is the precision that the
    names must have, `share_new` the share of unnamed photos that are of animals without a name.

    Raises:
        TrainError: no unnamed photo, too few animals to hold photos out, or names that would not be right often enough.
    """
    if not len(unnamed):
        raise TrainError("there is no photo without a name", next_step="leave out --pseudo-rounds")
    held = held_out(codes, groups, taught, seed=seed)
    kept = taught[~np.isin(groups[taught], groups[held])]
    held = held[np.isin(codes[held], codes[kept])]  # two animals in one sighting may take each other's photos along
    free = unnamed[~np.isin(groups[unnamed], groups[held])]
    found: list[Round] = []
    rows, given = np.empty(0, np.int64), np.empty(0, np.int64)
    for number in range(n):
        vectors = teach(np.concatenate([kept, rows]), np.concatenate([codes[kept], given]), number)
        scores, columns = folds.identity_scores(vectors, held, kept, codes, groups)
        place = placed(scores, np.searchsorted(columns, codes[held]), least=least, share_new=share_new)
        scores, columns = folds.identity_scores(vectors, free, kept, codes, groups)
        chosen, best = named(scores, place)
        before = dict(zip(rows.tolist(), given.tolist(), strict=True))
        rows, given = free[chosen], columns[best]
        now = dict(zip(rows.tolist(), given.tolist(), strict=True))
        changed = sum(1 for row, code in now.items() if before.get(row, code) != code)
        lost = len(before.keys() - now.keys())
        found.append(Round(place, tuple(rows.tolist()), tuple(given.tolist()), changed, lost))
    return found


def held_out(codes: IntArray, groups: IntArray, taught: IntArray, *, seed: int = 0) -> IntArray:
    """A photo of each animal with three sightings or more (at most `MOST_HELD`, at random), or, where these are too
    few, of half of those with two: rows of `taught`.

    Raises:
        TrainError: fewer than `LEAST_HELD` animals with two sightings.
    """
    rng = np.random.default_rng([seed, 17])
    pairs = np.unique(np.stack([codes[taught], groups[taught]]), axis=1)
    animals, counts = np.unique(pairs[0], return_counts=True)
    several = animals[counts >= 3]
    most = MOST_HELD
    if len(several) < 2 * LEAST_HELD:
        several = animals[counts >= 2]
        most = max(LEAST_HELD, len(several) // 2)
    if len(several) < LEAST_HELD:
        raise TrainError(
            f"{len(several)} animals have photos of two sightings: {LEAST_HELD} are needed to tell how often names "
            "given by a model are right",
            next_step="leave out --pseudo-rounds",
        )
    chosen = rng.permutation(several)[:most]
    rows = [rng.choice(taught[codes[taught] == animal]) for animal in np.sort(chosen)]
    return np.sort(np.array(rows, np.int64))


def placed(scores: NDArray[Any], truth: IntArray, *, least: float, share_new: float) -> Place:
    """Threshold and gap at which at least `least` of the names given would be right, for most photos of known animals;
    `scores (Q, I)` of held-out photos, `truth (Q,)` their columns.

    The estimate counts one wrong name more than was seen, so that few photos do not prove much.

    Raises:
        TrainError: there is no such place, with the best precision that there is.
    """
    best, second, column = _first_two(np.asarray(scores, np.float64))
    right = column == truth
    struck = np.array(scores, np.float64)
    struck[np.arange(len(truth)), truth] = -np.inf
    stranger, stranger_second, _ = _first_two(struck)
    gaps = np.unique(np.quantile(_gap(best, second), _GAPS))
    top = Place(float("nan"), 0.0, 0.0, 0.0, 0)
    good: Place | None = None
    for gap in (0.0, *gaps[gaps > 0].tolist()):
        named_known, named_stranger = _gap(best, second) >= gap, _gap(stranger, stranger_second) >= gap
        for threshold in np.unique(best[np.isfinite(best)]).tolist():
            known, unknown = named_known & (best >= threshold), named_stranger & (stranger >= threshold)
            judged = int(known.sum())
            if judged < LEAST_JUDGED:
                continue
            hits = (1 - share_new) * int((known & right).sum())
            misses = (1 - share_new) * int((known & ~right).sum()) + share_new * int(unknown.sum())
            one = Place(threshold, gap, hits / (hits + misses + 1), float((known & right).mean()), judged)
            if one.precision > top.precision:
                top = one
            if one.precision >= least and (good is None or (one.recall, one.precision) > (good.recall, good.precision)):
                good = one
    if good is None:
        raise TrainError(
            f"of names given by this model at most {top.precision:.0%} would be right ({len(truth)} held-out photos); "
            f"{least:.0%} are asked for",
            next_step="lower pseudo_precision under [training] in reid.toml, or leave out --pseudo-rounds",
        )
    return good


def named(scores: NDArray[Any], place: Place) -> tuple[IntArray, IntArray]:
    """Which rows of `scores (U, I)` get a name, `(n,)`, and the columns that they get, `(n,)`."""
    best, second, column = _first_two(np.asarray(scores, np.float64))
    rows = np.flatnonzero((best >= place.threshold) & (_gap(best, second) >= place.gap))
    return rows.astype(np.int64), column[rows]


def _gap(best: Floats, second: Floats) -> Floats:
    """By how much the best leads; of one identity alone it leads by all, of none by nothing."""
    out = np.zeros(len(best))
    there = np.isfinite(best)
    out[there] = best[there] - second[there]
    return np.where(np.isposinf(out), 2.0, out)


def _first_two(scores: Floats) -> tuple[Floats, Floats, IntArray]:
    """Best and second best of each row, −inf where there is none, and the column of the best."""
    column = scores.argmax(axis=1)
    rows = np.arange(len(scores))
    best = scores[rows, column]
    rest = scores.copy()
    rest[rows, column] = -np.inf
    return best, rest.max(axis=1), column.astype(np.int64)
