"""Which photos of other animals look like each photo of a store: its nearest neighbours in the index, as lists of rows;
and names that may be one animal, in words.

What hard pairs are chosen from (`reid mine`, `reid train-siamese`), without a matrix of all photos. Knows a store's
index; decides nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reid.index import IdSet
from reid.store import Store

BLOCK = 512  # photos searched at once

IntArray = NDArray[np.int64]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """Rows of each photo's nearest photos and their scores, `(N, k)` both; −1 and 0 where a list has ended."""

    near: IntArray
    scores: NDArray[np.float64]


def others(
    store: Store,
    annotations: IntArray,
    individuals: IntArray,
    k: int,
    *,
    groups: IntArray | None = None,
    progress: Progress | None = None,
) -> Lists:
    """The `k` nearest of `annotations (N,)`, all in the index, that are of other `individuals (N,)`, nor of the same of
    `groups (N,)` (sightings) where given.

    Raises:
        GalleryError: there is no index, or a photo is not in it.
    """
    gallery = store.gallery()
    ids = [str(a) for a in annotations.tolist()]
    row_of = {one: row for row, one in enumerate(ids)}
    among = IdSet(set(ids))
    own = {code: {ids[row] for row in rows} for code, rows in members(individuals).items()}
    in_group = members(groups) if groups is not None else {}
    found = Lists(np.full((len(ids), k), -1, np.int64), np.zeros((len(ids), k)))
    for at in range(0, len(ids), BLOCK):
        part = ids[at : at + BLOCK]
        mates = [set(own[int(individuals[row])]) for row in range(at, at + len(part))]
        if groups is not None:
            for row, mine in enumerate(mates, at):
                mine.update(ids[other] for other in in_group[int(groups[row])])
        for row, candidates in enumerate(gallery.search(gallery.vectors(part), k, allow=among, exclude=mates), at):
            found.near[row, : len(candidates.ids)] = [row_of[i] for i in candidates.ids]
            found.scores[row, : len(candidates.ids)] = candidates.scores
        if progress is not None:
            progress("search", min(at + BLOCK, len(ids)), len(ids))
    return found


@dataclass(frozen=True, slots=True)
class Suspected:
    """Two names that may be one animal: the two photos (annotations) that are most alike, their score by the vectors they
    were found with, and the command that makes them one.
    """

    first: str
    second: str
    annotations: tuple[int, int]
    score: float
    ask: str


def suspected(
    annotations: IntArray, individuals: IntArray, names: Mapping[int, str], found: Iterable[tuple[int, int, float]]
) -> tuple[Suspected, ...]:
    """Pairs of rows of `annotations (N,)` and `individuals (N,)`, and their scores, in words."""
    said = []
    for a, b, score in found:
        one, other = (names.get(int(individuals[row]), str(individuals[row])) for row in (a, b))
        ids = int(annotations[a]), int(annotations[b])
        said.append(Suspected(one, other, ids, round(float(score), 4), merging(one, other)))
    return tuple(said)


def merging(one: str, other: str) -> str:
    """The command that makes two names one."""
    return f"reid individuals merge {shlex.quote(one)} {shlex.quote(other)}"


def members(codes: IntArray) -> dict[int, IntArray]:
    """The rows of each code."""
    order = np.argsort(codes, kind="stable")
    values, starts = np.unique(codes[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts[1:]), strict=True)) if len(values) else {}
