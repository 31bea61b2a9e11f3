"""What a training run is judged by while it goes: photos held out of known animals, sightings apart.

Codes are identities as numbers. Knows arrays only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.metrics import reciprocal_ranks
from reid.train.assignment import codes_of

ASKED = 200  # held-out photos that a curve is told by, at most
FOUND = 5  # photos of each of their animals among which they are looked for, at most

IntArray = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Photo numbers: `queries` have their identity among `gallery`, and no photo of their sighting there."""

    queries: IntArray
    gallery: IntArray


def split(
    labels: ArrayLike, *, least: int = 2, sightings: ArrayLike | None = None, share: float = 1.0, seed: int = 0
) -> Split:
    """One random photo of each identity with `least` photos or more against all the others.

    `sightings (N,)` are numbers that photos of one sighting share (near-duplicates, frames of one encounter): a gallery
    photo of a query's sighting is left out, and a query that thereby loses its identity is left out too. `share` of the
    identities give a query (a small inner fold for early stopping).
    """
    codes = codes_of(labels)
    rng = np.random.default_rng(seed)
    counts = np.bincount(codes)
    asked = np.flatnonzero((counts >= least) & (rng.random(len(counts)) < share))
    order = np.argsort(codes, kind="stable")
    first = np.searchsorted(codes[order], asked)
    queries = order[first + (rng.random(len(asked)) * counts[asked]).astype(np.int64)]
    groups = np.arange(len(codes)) if sightings is None else np.asarray(sightings)
    gallery = np.flatnonzero(~np.isin(groups, groups[queries]))
    return Split(queries[np.isin(codes[queries], codes[gallery])], gallery)


def told_by(held: Split, codes: IntArray, *, seed: int = 0) -> Split:
    """As much of a split as a curve needs, so that an epoch does not pay for the whole gallery: `ASKED` random queries,
    and of the gallery `FOUND` random photos of each of their animals. Queries without one are left out. `codes (N,)`
    are the identities of all photos.
    """
    rng = np.random.default_rng([seed, 23])
    queries = held.queries[np.isin(codes[held.queries], codes[held.gallery])]
    queries = np.sort(rng.permutation(queries)[:ASKED])
    near = rng.permutation(held.gallery[np.isin(codes[held.gallery], codes[queries])])
    order = near[np.argsort(codes[near], kind="stable")]
    first = np.searchsorted(codes[order], codes[order])  # where the photo's animal begins
    return Split(queries, np.sort(order[np.arange(len(order)) - first < FOUND]))


def ranks(scores: Floats, queries: IntArray, gallery: IntArray) -> IntArray:
    """Rank of each query's identity, an identity scoring as its best photo; 0 where the gallery has none of it.

    `scores (Q, N)`, codes `queries (Q,)` and `gallery (N,)` → (Q,) int64 from 1; of equal scores the truth comes last.
    """
    order = np.argsort(gallery, kind="stable")
    known, first = np.unique(gallery[order], return_index=True)
    best = np.maximum.reduceat(scores[:, order], first, axis=1)
    place = np.minimum(np.searchsorted(known, queries), len(known) - 1)
    truth = np.take_along_axis(best, place[:, None], axis=1)
    rank = (best >= truth).sum(axis=1)
    return np.where(known[place] == queries, rank, 0).astype(np.int64)


def map_at_5(vectors: Floats, codes: IntArray, held: Split) -> float:
    """MAP@5 by cosine of unit rows `vectors (N, D)`."""
    scores = vectors[held.queries] @ vectors[held.gallery].T
    return float(reciprocal_ranks(ranks(scores, codes[held.queries], codes[held.gallery])).mean())
