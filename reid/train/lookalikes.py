"""Batches of animals that the network of now takes for one another.

Of a few dozen animals drawn from thousands hardly any look alike, and a network that is good already learns little by
telling them apart. So a batch is put together from clusters: an animal drawn, with those whose photos the network finds
nearest to its (graph sampling: Liao & Shao 2022, CVPR). Every photo is shown as often as without. Mirrored photos count
too: an animal may look like another one's mirror image.

    vectors of one photo an animal, upright and mirrored → nearest → clusters → batches

Knows arrays; no photos, no network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
Rows = NDArray[np.float32]
Bools = NDArray[np.bool_]
_NEAREST = 200  # kept of each animal; most are shown before their turn comes
_ALL = 20_000  # animals compared with one another; more are parted at random, so that work grows as they do
_AT_ONCE = 8_000_000  # scores in memory


@dataclass(frozen=True, slots=True, eq=False)
class Near:
    """Who looks like whom: `animals (n,)`, their numbers; `others (n, k)`, places among them, the nearest first; whether
    it is the other's mirror image that does, `turned (n, k)`; whether mirror images were looked at.
    """

    animals: IntArray
    others: IntArray
    turned: Bools
    mirrored: bool


def nearest(animals: IntArray, upright: Rows, mirrored: Rows | None, rng: np.random.Generator) -> Near:
    """Of `animals (n,)` by unit rows `(n, D)` of a photo each, and of its mirror image, where those are shown."""
    n = len(animals)
    if n < 2:
        return Near(animals, np.empty((n, 0), np.int64), np.empty((n, 0), np.bool_), mirrored is not None)
    parts = np.array_split(rng.permutation(n), max(1, -(-n // _ALL)))
    k = max(1, min(_NEAREST, min(len(part) for part in parts) - 1))
    others, turned = np.empty((n, k), np.int64), np.zeros((n, k), np.bool_)
    for part in parts:
        shown = [upright[part]] if mirrored is None else [upright[part], mirrored[part]]
        pool = np.concatenate(shown)
        for some in np.array_split(np.arange(len(part)), -(-len(part) * len(pool) // _AT_ONCE)):
            scores = upright[part[some]] @ pool.T
            for way in range(len(shown)):
                scores[np.arange(len(some)), some + way * len(part)] = -np.inf  # itself
            few = min(k, len(part) - 1)
            best = np.argpartition(scores, -few, axis=1)[:, -few:]
            best = np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable"), 1)
            others[part[some]] = part[best % len(part)]
            turned[part[some]] = best >= len(part)
    return Near(animals, others, turned, mirrored is not None)


def batches(
    codes: IntArray, rows: IntArray, size: int, photos: int, share: float, near: Near, rng: np.random.Generator
) -> list[tuple[IntArray, Bools]]:
    """One epoch of `rows`: batches of `size // photos` animals with `photos` photos of each, and which are mirrored. They
    are made of clusters, `share` of a batch each; late in an epoch, when look-alikes have been shown, of smaller ones. As
    `sampling.identity_batches`, each animal comes ceil(n / photos) times.
    """
    waiting = _groups(codes, rows, photos, near.animals, rng)
    per = max(1, size // photos)
    whole = max(2, round(per * share))
    clusters: list[list[tuple[IntArray, bool]]] = []
    for first in rng.permutation(np.repeat(np.arange(len(waiting)), [len(one) for one in waiting])):
        if not waiting[first]:
            continue
        turn = near.mirrored and bool(rng.random() < 0.5)
        cluster, inside = [(waiting[first].pop(), turn)], {int(first)}
        for other, over in zip(near.others[first], near.turned[first], strict=True):
            if len(cluster) == whole:
                break
            if int(other) not in inside and waiting[other]:
                inside.add(int(other))
                cluster.append((waiting[other].pop(), turn ^ bool(over)))
        clusters.append(cluster)
    shown = [group for number in rng.permutation(len(clusters)) for group in clusters[number]]
    n = -(-len(shown) // per)
    shown = [shown[place % len(shown)] for place in range(n * per)]  # the last batch is filled from the front
    return [_batch(codes, shown[start : start + per], photos) for start in range(0, len(shown), per)]


def _batch(codes: IntArray, groups: list[tuple[IntArray, bool]], photos: int) -> tuple[IntArray, Bools]:
    """Photos, and which are mirrored: all of an animal's the same way round, as its first are, for its mirror image is no
    other animal to learn from.
    """
    ways: dict[int, bool] = {}
    turned = [ways.setdefault(int(codes[group[0]]), turn) for group, turn in groups]
    return np.concatenate([group for group, _ in groups]), np.repeat(turned, photos)


def _groups(
    codes: IntArray, rows: IntArray, photos: int, animals: IntArray, rng: np.random.Generator
) -> list[list[IntArray]]:
    """The photos of each of `animals` in groups of `photos`; where it has too few, its own again."""
    order = rng.permutation(rows)
    order = order[np.argsort(codes[order], kind="stable")]
    bounds = np.searchsorted(codes[order], animals), np.searchsorted(codes[order], animals, side="right")
    out: list[list[IntArray]] = []
    for low, high in zip(*bounds, strict=True):
        members = order[low:high]
        n = -(-len(members) // photos)
        out.append(np.split(np.resize(members, n * photos), n) if n else [])
    return out
