"""The hardest pairs of a store: photos of different names that look most alike, and photos of one name that look least
alike. They are where labels are wrong.

Pairs of different names come from each photo's nearest neighbours in the index, and of these the assignment of
`reid.train.mining` takes each photo once on either side, so that one odd photo does not fill the list. Pairs of one
name are the least alike arrangement within each name, a side at a time where sides are known, since two flanks of an
animal differ. Photos of one sighting, and near-duplicates, prove nothing and are never a pair. No matrix of all photos
is made.

Needs `lap` (extra `train`), not torch. Knows stores; draws with `reid.explain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reid import alike, images, steps, withheld
from reid.catalogue import AnnotationInfo, Labels
from reid.enrol import Progress, quiet
from reid.errors import InputError, MissingExtra, ReidError, TrainError
from reid.explain import NEW, OTHER, Tile, contact_sheet
from reid.images import printable
from reid.store import Store

NEIGHBOURS = 50  # other animals' photos looked at for each photo
MOST_OF_A_NAME = 1500  # photos of a name that are compared with each other; a random sample of a larger one
ACROSS = 5  # pairs side by side on the sheet
SIDE = 480  # pixels decoded of a photo's long side

Kind = Literal["two names", "one name"]
IntArray = NDArray[np.int64]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Shown:
    """One photo of a pair."""

    annotation: int
    name: str
    photo: str


@dataclass(frozen=True, slots=True)
class HardPair:
    """Two photos that deserve a look; `score` is their similarity (cosine of the index's vectors), `ask` what to ask
    oneself.
    """

    kind: Kind
    score: float
    first: Shown
    second: Shown
    ask: str


@dataclass(frozen=True, slots=True)
class Mined:
    """The hardest pairs of both kinds, hardest first, and how many photos were looked at."""

    pairs: tuple[HardPair, ...]
    photos: int
    animals: int
    model: str


def hardest(store: Store, *, top: int = 40, seed: int = 0, progress: Progress = quiet) -> Mined:
    """The `top` hardest pairs, half of either kind where there are enough.

    Raises:
        MissingExtra: `lap` is not installed. GalleryError: there is no index to search.
    """
    try:
        import lap  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"mining needs {error.name}", next_step=steps.install("train")) from error
    gallery = store.gallery()
    labels = _named(store.catalogue.labels(), set(gallery.ids()))
    groups = withheld.sightings_of(store.catalogue, labels)
    rng = np.random.default_rng(seed)
    two, two_scores = _of_two_names(store, labels, groups, rng, progress)
    one, one_scores = _of_one_name(store, labels, groups, rng, progress)
    half = top - min(len(one), top // 2)
    two, two_scores = two[:half], two_scores[:half]
    one, one_scores = one[: top - len(two)], one_scores[: top - len(two)]
    rows = sorted({int(r) for r in np.concatenate([two.ravel(), one.ravel()])})
    infos = store.catalogue.annotations(labels.annotations[rows].tolist())
    pairs = [_pair(store, "two names", p, s, labels, infos) for p, s in zip(two, two_scores, strict=True)]
    pairs += [_pair(store, "one name", p, s, labels, infos) for p, s in zip(one, one_scores, strict=True)]
    animals = len(np.unique(labels.individuals))
    return Mined(tuple(pairs), len(labels.annotations), animals, store.embedder.card.name)


def _named(labels: Labels, indexed: set[str]) -> Labels:
    """Only what has a name and a vector in the index."""
    keep = (labels.individuals >= 0) & np.array([str(a) in indexed for a in labels.annotations.tolist()], np.bool_)
    columns = (labels.annotations, labels.individuals, labels.encounters, labels.photos)
    ids, individuals, encounters, photos = (column[keep] for column in columns)
    return Labels(ids, individuals, encounters, photos, labels.names)


def _of_two_names(
    store: Store, labels: Labels, groups: IntArray, rng: np.random.Generator, progress: Progress
) -> tuple[IntArray, NDArray[np.float64]]:
    """Pairs of rows `(P, 2)` of different names, most alike first, and their scores."""
    from reid.train import mining

    n = len(labels.annotations)
    nothing = np.empty((0, 2), np.int64), np.empty(0)
    if len(np.unique(labels.individuals)) < 2:
        return nothing
    found = alike.others(store, labels.annotations, labels.individuals, NEIGHBOURS, groups=groups, progress=progress)
    near, scores = found.near, found.scores
    try:
        partner = mining.assign_sparse(near, scores, labels.individuals, rng=rng)
        left = np.arange(n)
        listed = [(near[i] == partner[i]).nonzero()[0] for i in left]
        back = [(near[partner[i]] == i).nonzero()[0] for i in left]
        value = np.array(
            [
                scores[i, a[0]] if len(a) else scores[partner[i], b[0]] if len(b) else -np.inf
                for i, a, b in zip(left, listed, back, strict=True)
            ]
        )
        pairs = np.stack([left, partner], axis=1)
    except TrainError:  # one animal has most of the photos, so not everybody can meet another: the nearest then
        pairs = np.stack([np.repeat(np.arange(n), near.shape[1]), near.ravel()], axis=1)
        value = np.where(near.ravel() >= 0, scores.ravel(), -np.inf)
    pairs, cost = _hardest_first(pairs[np.isfinite(value)], -value[np.isfinite(value)], n)
    return pairs, -cost


def _of_one_name(
    store: Store, labels: Labels, groups: IntArray, rng: np.random.Generator, progress: Progress
) -> tuple[IntArray, NDArray[np.float64]]:
    """Pairs of rows `(P, 2)` of one name and side, of different sightings, least alike first, and their scores."""
    from reid.train import mining

    gallery = store.gallery()
    side_of = np.zeros(len(labels.annotations), np.int64)
    for code, side in ((1, "left"), (2, "right")):
        side_of[np.isin(labels.annotations, store.catalogue.annotations_of(sides=[side]))] = code  # type: ignore[list-item]
    kinds = np.unique(labels.individuals * 3 + side_of, return_inverse=True)[1]
    pairs, values = [np.empty((0, 2), np.int64)], [np.empty(0)]
    clusters = [rows for rows in alike.members(kinds).values() if len(np.unique(groups[rows])) > 1]
    for done, rows in enumerate(clusters):
        if len(rows) > MOST_OF_A_NAME:
            rows = np.sort(rng.choice(rows, MOST_OF_A_NAME, replace=False))
        vectors = gallery.vectors([str(a) for a in labels.annotations[rows].tolist()])
        products = vectors @ vectors.T
        mates = groups[rows][:, None] == groups[rows][None]
        partner = mining.assign_hard_positives(np.where(mates, 2.0, products), np.zeros(len(rows), np.int64), rng=rng)
        real = groups[rows] != groups[rows][partner]
        pairs.append(np.stack([rows, rows[partner]], axis=1)[real])
        values.append(products[np.arange(len(rows)), partner][real].astype(np.float64))
        if done % 100 == 0:
            progress("names", done, len(clusters))
    return _hardest_first(np.concatenate(pairs), np.concatenate(values), len(labels.annotations))


def _hardest_first(pairs: IntArray, cost: NDArray[np.float64], n: int) -> tuple[IntArray, NDArray[np.float64]]:
    """The pairs of least cost and their costs, rising; no photo is in more than one."""
    order = np.lexsort((pairs[:, 1], pairs[:, 0], cost))
    taken = np.zeros(n, np.bool_)
    kept = []
    for place in order.tolist():
        a, b = pairs[place]
        if not (taken[a] or taken[b]):
            taken[a] = taken[b] = True
            kept.append(place)
    return pairs[kept], cost[kept]


def _pair(
    store: Store, kind: Kind, rows: IntArray, score: float, labels: Labels, infos: dict[int, AnnotationInfo]
) -> HardPair:
    first, second = (_shown(store, infos[int(labels.annotations[row])]) for row in rows)
    ask = (
        f"one animal under two names? {alike.merging(first.name, second.name)}"
        if kind == "two names"
        else f"two animals under one name? reid individuals split {second.annotation}"
    )
    return HardPair(kind, round(float(score), 4), first, second, ask)


def _shown(store: Store, info: AnnotationInfo) -> Shown:
    return Shown(info.id, info.identity or "", printable(store.resolve(info.path)))


def write_sheet(store: Store, mined: Mined, target: Path) -> Path:
    """Draw the pairs into the picture file `target`, `ACROSS` side by side, one photo above the other.

    Raises:
        InputError: it cannot be written.
    """
    strips = [
        contact_sheet(
            [_tile(store, pair, pair.first) for pair in part],
            [_tile(store, pair, pair.second) for pair in part],
            heading=f"hardest pairs {at + 1} to {at + len(part)}: is the label right?",
            tile=260,
        )
        for at in range(0, len(mined.pairs), ACROSS)
        if (part := mined.pairs[at : at + ACROSS])
    ]
    width = max((strip.shape[1] for strip in strips), default=1)
    padded = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=250) for s in strips]
    whole = np.concatenate(padded) if padded else np.full((1, 1, 3), 250, np.uint8)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(whole).save(target)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the sheet cannot be written ({error})", source=str(target), next_step="name another file (.png, .jpg)"
        ) from error
    return target


def _tile(store: Store, pair: HardPair, shown: Shown) -> Tile:
    """A photo of a pair; one that has gone since leaves its frame empty and says so."""
    title, colour = f"{shown.name} · {shown.annotation}", NEW if pair.kind == "two names" else OTHER
    lines: Sequence[str] = (f"{pair.kind}, score {pair.score:.3f}", Path(shown.photo).name)
    info = store.catalogue.annotations([shown.annotation])[shown.annotation]
    try:
        decoded = images.read(store.resolve(info.path), target=SIDE)
    except ReidError as error:
        return Tile(title, (lines[0], error.message), colour=colour)
    box = None if info.box.origin == "whole" else decoded.to_decoded(info.box)
    return Tile(title, tuple(lines), decoded.pixels, box, colour)
