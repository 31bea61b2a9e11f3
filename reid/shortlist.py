"""One query's candidates from both sources → one list with P(same animal): union, geometry for the best, fusion.

Pure orchestration of arrays and local features: the caller says where vectors and features come from, so that a query,
the nightly look at unknowns and the measurement on left-out photos go exactly the same way. Knows annotation ids and
features; no stores, no identities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid import fusion, verify
from reid.fusion import Fusion
from reid.keypoints import LocalFeatures
from reid.verify import Verification, VerifyConfig

VOTED = 50
"""Photos taken from the local index's list; those behind have next to no votes."""

FeaturesOf = Callable[[str], LocalFeatures | None]
CosinesOf = Callable[[Sequence[str]], ArrayLike]
RESCORED = 100
"""Candidates that a Siamese head scores again, where the store has one."""

SiameseOf = Callable[[Sequence[str]], ArrayLike]
Check = Callable[[Sequence[str]], Mapping[str, Verification]]


@dataclass(frozen=True, slots=True, eq=False)
class Shortlist:
    """Candidates of one query: `ids`, and rows of all that is known of each: `cosines` (crowding taken off), `votes` (C,),
    verifications (None where none was made), `features (C, F)` as in `reid.fusion.NAMES`; `siamese (C,)` logits, NaN where the head
    was not asked, None without one.
    """

    ids: tuple[str, ...]
    cosines: NDArray[np.float64]
    votes: NDArray[np.float64]
    verifications: tuple[Verification | None, ...]
    features: NDArray[np.float32]
    siamese: NDArray[np.float64] | None = None


def gather(
    near: Sequence[str],
    cosines: ArrayLike,
    votes: Mapping[str, float],
    cosines_of: CosinesOf,
    query: LocalFeatures,
    features_of: FeaturesOf,
    *,
    listed: int,
    checked: int,
    config: VerifyConfig,
    compared: LocalFeatures | None = None,
    check: Check | None = None,
    siamese_of: SiameseOf | None = None,
) -> Shortlist:
    """The union of `near` (best first, with `cosines`) and `votes` (best first), the best of each checked by geometry.

    `listed` is how many of `near` are the yardstick of a cosine's standing (the same at fitting and asking); `checked`
    pairs at most are verified, taken from both lists in turn: the features that `features_of` gives with the query's
    `compared` (None: those by which it was voted for), or as `check` does it. `siamese_of` scores `RESCORED` of the
    candidates again.
    """
    by_votes, there = list(votes)[:VOTED], set(near)
    voted = [id for id in by_votes if id not in there]
    own = np.asarray(cosines, np.float64)
    further = np.asarray(cosines_of(voted), np.float64).reshape(-1) if voted else np.empty(0)
    ids = (*near, *voted)
    every = np.concatenate([own, further])
    vote = np.array([votes.get(id, 0.0) for id in ids], np.float64)
    chosen = in_turn(near, by_votes, checked)
    asked = query if compared is None else compared
    made = check(chosen) if check is not None else verified(asked, chosen, features_of, config)
    verifications = tuple(made.get(id) for id in ids)
    logits = None if siamese_of is None else _rescored(ids, in_turn(near, by_votes, RESCORED), siamese_of)
    rows = fusion.pair_features(every, own[:listed], vote, verifications, len(query), logits)
    return Shortlist(ids, every, vote, verifications, rows, logits)


def _rescored(ids: Sequence[str], chosen: Sequence[str], siamese_of: SiameseOf) -> NDArray[np.float64]:
    """Logits of the chosen ids in the places of all."""
    out = np.full(len(ids), np.nan)
    if chosen:
        place = {id: i for i, id in enumerate(ids)}
        out[[place[id] for id in chosen]] = siamese_of(chosen)
    return out


def in_turn(first: Sequence[str], second: Sequence[str], most: int) -> list[str]:
    """At most `most` different ids, taken from both lists in turn, best first."""
    chosen: dict[str, None] = {}
    for place in range(max(len(first), len(second))):
        for ids in (first, second):
            if place < len(ids) and len(chosen) < most:
                chosen.setdefault(ids[place])
        if len(chosen) >= most:
            break
    return list(chosen)


def verified(
    query: LocalFeatures,
    ids: Sequence[str],
    features_of: FeaturesOf,
    config: VerifyConfig,
    *,
    made: dict[str, Verification] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Verification]:
    """Geometry of the query against each candidate whose features are at hand, put into `made` one by one until `stop`
    says so.
    """
    out = {} if made is None else made
    if not len(query):
        return out
    compare = verify.verifier(query, config)
    for id in ids:
        if stop():
            break
        features = features_of(id)
        if features is not None:
            out[id] = compare(features)
    return out


def ranked(shortlist: Shortlist, fused: Fusion) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Ids and scores, best first; equal scores by cosine, then in the order given."""
    scores = fused.scores(shortlist.features)
    order = np.lexsort((-shortlist.cosines, -scores))
    return tuple(shortlist.ids[i] for i in order), tuple(scores[order].tolist())
