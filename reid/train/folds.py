"""K folds of photos, and what each photo scores against all identities by a model that never saw it.

A fold is a set of sightings: photos of one encounter, and near-duplicates, are never in two folds. By `sighting` each
identity's sightings are spread, so that a photo finds its animal in the other folds; by `identity` an animal is in one
fold alone, and its photos are found among its other sightings by a model that knows none of them.

    codes    (N,) identity of each photo as a number, −1 for none
    groups   (N,) sighting of each photo (`reid.withheld.sightings_of`)
    folds    (N,) from 0, −1 for photos without identity

Knows arrays and one file format, an `.npz` read without unpickling.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reid.errors import TrainError
from reid.metrics import reciprocal_ranks
from reid.train import ensembles

IntArray = NDArray[np.int64]
Vectors = NDArray[np.float32]
By = Literal["sighting", "identity"]

_AT_ONCE = 512  # queries compared with the gallery at once


def assign(codes: IntArray, groups: IntArray, k: int, *, by: By = "sighting", seed: int = 0) -> IntArray:
    """The fold of every photo, `(N,)`. The same seed gives the same folds.

    Sightings are dealt in random order, those of the identities with fewest first; each goes to the fold that has
    fewest photos of its animals, and of those to the smallest.

    Raises:
        TrainError: fewer sightings than folds, or no animal with photos in two folds to be found by.
    """
    named = np.flatnonzero(codes >= 0)
    units = _units(codes, groups, by)
    listed = np.unique(units[named])
    if k < 2 or len(listed) < k:
        raise TrainError(
            f"{len(listed)} {'animals' if by == 'identity' else 'sightings'} cannot be {k} folds",
            next_step="choose 2 folds or more, and fewer than that",
        )
    out = np.full(len(codes), -1, np.int64)
    sizes = np.zeros(k, np.int64)
    there: dict[int, NDArray[np.int64]] = {}
    members = _members(units, named)
    pairs = np.unique(np.stack([codes[named], groups[named]]), axis=1)
    sightings = dict(zip(*(part.tolist() for part in np.unique(pairs[0], return_counts=True)), strict=True))
    order = np.random.default_rng(seed).permutation(listed).tolist()
    order.sort(key=lambda unit: min(sightings[c] for c in codes[members[unit]].tolist()))
    for unit in order:
        rows = members[unit]
        own = np.unique(codes[rows]).tolist()
        crowd = sum((there.setdefault(c, np.zeros(k, np.int64)) for c in own), np.zeros(k, np.int64))
        fold = min(range(k), key=lambda f: (int(crowd[f]), int(sizes[f]), f))
        out[rows] = fold
        sizes[fold] += len(rows)
        for c in own:
            there[c][fold] += int((codes[rows] == c).sum())
    if not findable(codes, groups, out, by).any():
        raise TrainError(
            "no animal has photos of two sightings: no fold could find it in the others",
            next_step="enrol photos of second sightings",
        )
    return out


def findable(codes: IntArray, groups: IntArray, folds: IntArray, by: By = "sighting") -> NDArray[np.bool_]:
    """Whether each photo's animal is in what it is compared with, `(N,)`."""
    places = groups if by == "identity" else folds
    named = codes >= 0
    pairs = np.unique(np.stack([codes[named], places[named]]), axis=1)
    animals, counts = np.unique(pairs[0], return_counts=True)
    return np.asarray(np.isin(codes, animals[counts > 1]))


def identity_scores(
    vectors: Vectors, queries: IntArray, gallery: IntArray, codes: IntArray, groups: IntArray
) -> tuple[NDArray[np.float32], IntArray]:
    """Cosines of unit rows `vectors (N, D)`: `(Q, I)`, each identity scoring as the best of its gallery photos that are
    not of the query's sighting (−inf where there is none), and the identities' codes `(I,)`, rising.
    """
    gallery = gallery[codes[gallery] >= 0]
    gallery = gallery[np.argsort(codes[gallery], kind="stable")]
    known, first = np.unique(codes[gallery], return_index=True)
    out = np.full((len(queries), len(known)), -np.inf, np.float32)
    if not len(known):
        return out, known
    for at in range(0, len(queries), _AT_ONCE):
        part = queries[at : at + _AT_ONCE]
        scores = vectors[part] @ vectors[gallery].T
        scores[groups[part][:, None] == groups[gallery]] = -np.inf
        out[at : at + _AT_ONCE] = np.maximum.reduceat(scores, first, axis=1)
    return out, known


@dataclass(frozen=True, slots=True, eq=False)
class OutOfFold:
    """`scores (Q, I) float32` of photos against identities, by models that saw neither photo nor sighting.

    `annotations (Q,)` and `identities (I,)` are the catalogue's numbers, `folds (Q,)` whose model scored the row,
    `truth (Q,)` the column of the photo's identity, −1 where it is in no other fold.
    """

    scores: NDArray[np.float32]
    annotations: IntArray
    identities: IntArray
    folds: IntArray
    truth: IntArray

    @property
    def map_at_5(self) -> float:
        """Over the photos whose animal could be found; NaN without any."""
        asked = np.flatnonzero(self.truth >= 0)
        if not len(asked):
            return float("nan")
        found = ensembles.ranks(np.asarray(self.scores[asked], np.float64), self.truth[asked])
        return float(reciprocal_ranks(found).mean())


def out_of_fold(
    vectors: list[Vectors], codes: IntArray, groups: IntArray, folds: IntArray, annotations: IntArray, by: By
) -> OutOfFold:
    """All photos with a fold, each scored by the vectors `(N, D)` of its own fold's model (unit rows): against the
    other folds, or by `identity` against all photos of other sightings.
    """
    identities = np.unique(codes[folds >= 0])
    rows = np.flatnonzero(folds >= 0)
    scores = np.full((len(rows), len(identities)), -np.inf, np.float32)
    for fold, own in enumerate(vectors):
        asked = np.flatnonzero(folds[rows] == fold)
        gallery = rows if by == "identity" else rows[folds[rows] != fold]
        found, known = identity_scores(own, rows[asked], gallery, codes, groups)
        scores[np.ix_(asked, np.searchsorted(identities, known))] = found
    truth = np.searchsorted(identities, codes[rows]).astype(np.int64)
    truth[np.isneginf(scores[np.arange(len(rows)), truth])] = -1
    return OutOfFold(scores, annotations[rows], identities, folds[rows], truth)


def write(path: Path, found: OutOfFold) -> None:
    """Keep out-of-fold scores as a compressed `.npz`. OSError where it cannot be written."""
    file = io.BytesIO()
    np.savez_compressed(file, **{f.name: getattr(found, f.name) for f in fields(found)})
    path.write_bytes(file.getvalue())


def read(path: Path) -> OutOfFold:
    """What `write` kept.

    Raises:
        TrainError: it is missing, or not what was written.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return OutOfFold(**{f.name: arrays[f.name] for f in fields(OutOfFold)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TrainError(
            f"out-of-fold scores cannot be read ({error})", source=str(path), next_step="train the folds again"
        ) from error


def _units(codes: IntArray, groups: IntArray, by: By) -> IntArray:
    """What is dealt as a whole: a sighting, or all sightings of animals that share one."""
    if by == "sighting":
        return groups
    parent = np.arange(int(codes.max(initial=0)) + 1)

    def root(code: int) -> int:
        while parent[code] != code:
            code = int(parent[code])
        return code

    named = np.flatnonzero(codes >= 0)
    first: dict[int, int] = {}
    for group, code in zip(groups[named].tolist(), codes[named].tolist(), strict=True):
        parent[root(code)] = root(first.setdefault(group, code))
    return np.array([root(code) if code >= 0 else -1 for code in codes.tolist()], np.int64)


def _members(units: IntArray, named: IntArray) -> dict[int, IntArray]:
    """The photos of each unit."""
    order = named[np.argsort(units[named], kind="stable")]
    values, first = np.unique(units[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, first[1:]), strict=True))
