"""What left-out photos would have been answered, with their animal in the gallery and without it.

A photo is left out together with its whole encounter (frames of one sighting match for reasons that have nothing to do
with the animal): once with its animal still in the gallery, which shows how known animals score, and once with the whole
animal taken out, which shows how new ones do. Both come from one list of nearest neighbours a photo, because taking an
animal out only shortens the list.

Pure functions on arrays; knows nothing of photos, stores or models. Ranks count from 1, and 0 means "not in the list".
Codes are integers ≥ 0, −1 means nobody knows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.aggregate import aggregate
from reid.decide import LABELS

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """Nearest gallery rows of each photo, best first: `rows (Q, K)` int64, −1 past a list's end; `scores (Q, K)`."""

    rows: IntArray
    scores: FloatArray


def nearest(scores: ArrayLike, k: int) -> Neighbours:
    """The k best columns of each row of `scores (Q, N)`, for galleries small enough to have the whole matrix."""
    matrix = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-matrix, axis=1, kind="stable")[:, :k].astype(np.int64)
    return Neighbours(order, np.take_along_axis(matrix, order, axis=1))


@dataclass(frozen=True, slots=True, eq=False)
class LeftOut:
    """What each left-out photo would have been answered; the photos are those handed to `leave_one_out`, (Q,) of them.

    With its animal in the gallery, the truth scores `truth_score` (NaN where it is not in the list) at rank
    `truth_rank`, and the best of all `known_best` (NaN where the list is empty). With its animal taken out, the best
    others score `other_scores (Q, depth)`, best first, NaN where there are fewer. `known_case` and `unknown_case` (Q,)
    bool say which photos count as either kind; `n_truncated` is how many were left out because their list ran out
    before it could tell.
    """

    identity: IntArray
    truth_score: FloatArray
    truth_rank: IntArray
    other_scores: FloatArray
    known_case: BoolArray
    unknown_case: BoolArray
    n_truncated: int
    known_best: FloatArray

    @property
    def known_right(self) -> BoolArray:
        """Whether the truth comes first with the animal in the gallery, (Q,)."""
        return np.asarray(self.truth_rank == 1)


def leave_one_out(
    photos: ArrayLike,
    neighbours: Neighbours,
    identities: ArrayLike,
    encounters: ArrayLike,
    method: str = "max",
    depth: int = LABELS,
    threshold: float = 0.0,
) -> LeftOut:
    """Both cases of every photo of `photos (Q,)`, gallery rows, from its neighbour list alone: no matrix of all pairs.

    `neighbours` are lists over the gallery (the photo itself may be among them), `identities (N,)` and `encounters
    (N,)` codes of all gallery rows, −1 unknown. The photo and its encounter are struck from the list, then image
    scores are aggregated to animals by `method` as in a query. Photos of nobody are no candidates and no cases.

    Lists should hold k = the query's shortlist + the largest encounter. Where a list runs out before `depth` other
    animals have appeared, although the gallery holds more, nothing is known of what comes next: the photo is no
    unknown case, and a known case only if its animal has appeared. A known animal that is missing from a list long
    enough has rank 0, which is what the query, with the same shortlist, would have made of it.
    """
    rows = np.asarray(photos, dtype=np.int64)
    identity, encounter = np.asarray(identities, dtype=np.int64), np.asarray(encounters, dtype=np.int64)
    near = neighbours.rows
    if near.shape != neighbours.scores.shape or len(near) != len(rows):
        raise ValueError(f"{len(rows)} photos but neighbours {near.shape} with scores {neighbours.scores.shape}")
    own = identity[rows]
    same = (near == rows[:, None]) | ((encounter[near] == encounter[rows][:, None]) & (encounter[rows] >= 0)[:, None])
    usable = (near >= 0) & ~same & (identity[near] >= 0)
    query, column = np.nonzero(usable)
    n_codes = int(identity.max(initial=0)) + 1
    animals = aggregate(
        query * n_codes + identity[near[query, column]], neighbours.scores[query, column], method, threshold
    )
    best_score = neighbours.scores[query, column][animals.best]
    query, code = np.divmod(animals.keys, n_codes)
    order = np.lexsort((code, -best_score, -animals.scores, query))
    query, code, score = query[order], code[order], animals.scores[order]

    sizes = np.bincount(query, minlength=len(rows))
    place = np.arange(len(query)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    is_own = code == own[query]
    truth_score, truth_rank = np.full(len(rows), math.nan), np.zeros(len(rows), dtype=np.int64)
    truth_score[query[is_own]] = score[is_own]
    truth_rank[query[is_own]] = place[is_own] + 1
    other_place = place - ((truth_rank[query] > 0) & (place >= truth_rank[query]))
    listed = ~is_own & (other_place < depth)
    others = np.full((len(rows), depth), math.nan)
    others[query[listed], other_place[listed]] = score[listed]

    whole = (near < 0).any(axis=1) | ((near != rows[:, None]).sum(axis=1) >= len(identity) - 1)
    told = whole | ~np.isnan(others[:, -1])
    has_other_photo = _photos_elsewhere(identity, encounter)[rows] > 0
    named = own >= 0
    known = named & has_other_photo & (told | (truth_rank > 0))
    unknown = named & told & ~np.isnan(others[:, 0])
    truncated = named & ~told
    best = np.fmax(truth_score, others[:, 0])
    return LeftOut(own, truth_score, truth_rank, others, known, unknown, int(truncated.sum()), best)


def both_cases(known: LeftOut, unknown: LeftOut) -> LeftOut:
    """Known cases from one list of answers and unknown ones from another, of the same photos: where scores depend on
    who else is in the list, taking an animal out gives other scores, not just a shorter list.
    """
    return replace(known, other_scores=unknown.other_scores, unknown_case=unknown.unknown_case)


def _photos_elsewhere(identity: IntArray, encounter: IntArray) -> IntArray:
    """How many photos of the same animal each row has outside its own encounter, (N,)."""
    alone = np.where(encounter >= 0, encounter, encounter.max(initial=-1) + 1 + np.arange(len(encounter)))
    _, animal, of_animal = np.unique(identity, return_inverse=True, return_counts=True)
    pairs = np.unique(np.stack([identity, alone]), axis=1, return_inverse=True, return_counts=True)
    return np.asarray(of_animal[animal] - pairs[2][pairs[1].ravel()], dtype=np.int64)
