"""Which photos an epoch shows, in which batches.

Codes are identities as numbers from 0, −1 for photos of no known animal, −2 for photos that are not shown. An epoch is a
list of batches, arrays of photo numbers; the generator decides everything. Knows arrays only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reid.errors import TrainError
from reid.train.recipe import SamplingConfig

IntArray = NDArray[np.int64]


def epoch(codes: IntArray, config: SamplingConfig, batch: int, done: float, rng: np.random.Generator) -> list[IntArray]:
    """The batches of one epoch; `done` is the share of the training that is over. No batch has a single photo.

    Raises:
        TrainError: there is nothing to batch.
    """
    known = shown(codes, config, done)
    places = batch - strangers(codes, config, batch)
    if config.kind == "identities":
        batches = identity_batches(codes, known, places, config.photos, rng)
    else:
        rows = weighted(codes, known, rng) if config.weighted else oversampled(codes, known, config.least, rng)
        batches = in_batches(rng.permutation(rows), places)
    if not batches:
        raise TrainError("no photos of known animals to train on", next_step="add photos with names")
    if places < batch:
        added = without_identity(codes, batch - places, len(batches), rng)
        batches = [np.concatenate([one, more]) for one, more in zip(batches, added, strict=True)]
    return batches


def shown(codes: IntArray, config: SamplingConfig, done: float) -> IntArray:
    """The photos of known animals that are shown when a share `done` of the training is over."""
    known = np.flatnonzero(codes >= 0)
    if config.large_first and done < config.large_for:
        counts = np.bincount(codes[known])
        large = known[counts[codes[known]] >= config.large_first]
        known = large if len(np.unique(codes[large])) >= 2 else known
    return known


def strangers(codes: IntArray, config: SamplingConfig, batch: int) -> int:
    """How many places of a batch are for photos without an identity."""
    return min(batch // 2, round(batch * config.new_share)) if (codes == -1).any() else 0


def without_identity(codes: IntArray, each: int, n: int, rng: np.random.Generator) -> list[IntArray]:
    """`each` photos without an identity for each of `n` batches, all as often as one another."""
    new = np.flatnonzero(codes == -1)
    return np.split(rng.permutation(np.resize(rng.permutation(new), each * n)), n)


def oversampled(codes: IntArray, rows: IntArray, least: int, rng: np.random.Generator) -> IntArray:
    """`rows`, with random photos of smaller identities repeated until each has `least`; each photo once at least."""
    if least <= 1:
        return rows
    out = [rows]
    order = rows[np.argsort(codes[rows], kind="stable")]
    for members in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        lacking = least - len(members)
        if lacking > 0:
            whole, rest = divmod(lacking, len(members))
            out += [np.tile(members, whole), rng.choice(members, rest, replace=False)]
    return np.concatenate(out)


def weighted(codes: IntArray, rows: IntArray, rng: np.random.Generator) -> IntArray:
    """As many as `rows`, drawn with replacement in proportion to 1/√(photos of the identity)."""
    share = np.bincount(codes[rows])[codes[rows]] ** -0.5
    return rng.choice(rows, len(rows), p=share / share.sum())


def in_batches(rows: IntArray, size: int) -> list[IntArray]:
    """Batches of `size`, the last one filled with photos from the front so that all are alike."""
    if not len(rows):
        return []
    n = -(-len(rows) // size)
    return np.split(np.resize(rows, n * size), n)


def identity_batches(
    codes: IntArray, rows: IntArray, size: int, photos: int, rng: np.random.Generator
) -> list[IntArray]:
    """Batches of `size // photos` identities with `photos` photos of each: a smaller identity repeats its own. An epoch
    shows each identity ceil(n / photos) times.
    """
    order = rng.permutation(rows)
    order = order[np.argsort(codes[order], kind="stable")]
    groups: list[IntArray] = []
    for members in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        n = -(-len(members) // photos)
        groups += np.split(np.resize(members, n * photos), n)
    per = max(1, size // photos)
    numbers = in_batches(rng.permutation(len(groups)), per)
    return [np.concatenate([groups[g] for g in part]) for part in numbers]


def mirrored(codes: IntArray, kind: str, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which photos of a batch are turned over: photos of one identity all or none, where they are to be pairs of one
    animal (`identities`); each for itself otherwise.
    """
    if kind != "identities":
        return rng.random(len(codes)) < 0.5
    drawn = rng.random(int(codes.max(initial=-1)) + 2) < 0.5
    return np.where(codes >= 0, drawn[codes], rng.random(len(codes)) < 0.5)
