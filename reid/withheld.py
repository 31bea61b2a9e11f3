"""Photos of a store that play queries: which they are, what of the gallery they may be compared with, and how the store
answers them.

A photo that plays a query is left out of whitening and gallery, as a real query is, together with its sighting: its
encounter and its near-duplicates. Knows stores; fits nothing and writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid import crowding, duplicates, flanks, leaving_out, local, measure, models, rescore, thresholds, whiten, witness
from reid.catalogue import Catalogue, Labels
from reid.crowding import Crowd, Crowding
from reid.embed import unit_rows
from reid.flanks import Sides
from reid.keypoints import LocalFeatures
from reid.leaving_out import LeftOut, Neighbours
from reid.measure import Asked
from reid.prototypes import Prototypes
from reid.records import Failure
from reid.store import Store
from reid.vectors import embed_lacking

TRAINING = "training"  # in the store: a directory a run, and the kept vectors
TRAINED_ON = "trained-on.json"  # in a run's
MOST_QUERIES = 1000
MOST_FUSED = 600  # photos that go through local features and geometry too
FEATURES_HELD = 2000  # photos whose local features are held in memory while measuring (about 150 kB each)
SPREAD = 2_654_435_761  # an odd number that scatters numbers in a row over 2³²
MOST_GALLERY = 30_000  # photos held in memory for the measurement; a random sample of a larger gallery
LEAST_PHOTOS = 4 * thresholds.MIN_CASES  # a quarter of the gallery plays queries at most: below, nothing is measured
LEAST_ANIMALS = thresholds.MIN_CASES  # an animal may give one photo only; with a third sighting of each, fewer will do

IntArray = NDArray[np.int64]
Progress = Callable[[str, int, int], None]


def gathered(
    catalogue: Catalogue, fingerprint: str, *, most: int = MOST_GALLERY, seed: int = 0, among: Labels | None = None
) -> tuple[Labels, NDArray[np.float32]]:
    """Labels and raw unit vectors `(N, D) float32` of the annotations in service that have one; a random sample of
    `most` where there are more. With `among` those of its annotations, all of them, and with its labels.
    """
    serving = catalogue.labels()
    labels = serving if among is None else among
    share = 1.0 if among is not None else min(1.0, most / max(1, len(labels.annotations)))
    rng = np.random.default_rng(seed)
    ids, parts = [], []
    for chunk in catalogue.embeddings(fingerprint):
        keep = np.isin(chunk.annotations, labels.annotations) & (rng.random(len(chunk.annotations)) < share)
        ids.append(chunk.annotations[keep])
        parts.append(chunk.vectors[keep])
    if not ids:
        nothing = np.empty(0, np.int64)
        return Labels(nothing, nothing, nothing, nothing), np.empty((0, 1), np.float32)
    kept = np.concatenate(ids)
    at = np.searchsorted(labels.annotations, kept)
    some = Labels(kept, labels.individuals[at], labels.encounters[at], labels.photos[at], serving.names)
    return some, unit_rows(np.concatenate(parts))


def spoken_for(
    store: Store, *, among: Labels | None = None, most: int = MOST_GALLERY, progress: Progress = local.quiet
) -> tuple[Labels, NDArray[np.float32], list[Failure]]:
    """As `gathered`, by what speaks for the present model (`reid.witness`). Vectors that a witness lacks yet are made, of
    no more photos than are gathered and of none where `among` says which they are; photos that could not be read are
    named.
    """
    if not witness.present(store):
        return *gathered(store.catalogue, store.fingerprint, most=most, among=among), []
    failures: list[Failure] = []
    if among is None:
        labels = store.catalogue.labels()
        if len(labels.annotations) > most:
            chance = labels.annotations * SPREAD % 2**32  # the same photos again, once there are more of them
            kept = chance < most / len(labels.annotations) * 2**32
            labels = among = Labels(
                labels.annotations[kept], labels.individuals[kept], labels.encounters[kept], labels.photos[kept],
                labels.names,
            )  # fmt: skip
        by = witness.embedder(store)
        failures = embed_lacking(store, by=by, among=labels.annotations, progress=progress)
    return *gathered(store.catalogue, witness.fingerprint(store), among=among), failures


def chosen_queries(
    individuals: IntArray,
    groups: IntArray,
    *,
    allowed: NDArray[np.bool_] | None = None,
    most: int = MOST_QUERIES,
    each: int = 1,
    seed: int = 0,
) -> IntArray:
    """Rows that play queries: at most `each` photos (of different sightings) of each of a random choice of animals, at
    most `most` and a quarter of the gallery; only `allowed (N,)` ones.

    Animals with a sighting more than they give come first (they give known cases), the others fill up to as many
    again.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.flatnonzero(individuals >= 0))
    seen: dict[int, set[int]] = {}
    gave: dict[int, set[int]] = {}
    rounds: list[list[int]] = [[] for _ in range(each)]
    for row in order.tolist():
        sightings = seen.setdefault(int(individuals[row]), set())
        given = gave.setdefault(int(individuals[row]), set())
        if len(given) < each and int(groups[row]) not in given and (allowed is None or allowed[row]):
            rounds[len(given)].append(row)
            given.add(int(groups[row]))
        sightings.add(int(groups[row]))
    limit = min(most, len(individuals) // 4)
    known: list[int] = []
    for turn, rows in enumerate(rounds):  # a second photo of an animal only where a third sighting is left to find
        known += [row for row in rows if len(seen[int(individuals[row])]) > turn + 1]
    known = known[:limit]
    rest = [row for row in rounds[0] if len(seen[int(individuals[row])]) == 1]
    rest = rest[: min(limit - len(known), max(len(known), thresholds.MIN_CASES))]
    return np.sort(np.array([*known, *rest], np.int64))


def trained_on_by(store: Store, model: str) -> IntArray:
    """The annotations that a model was trained on: by the record of its run in this store, else by the photos that the
    model itself names, as one from another store does; none where neither says.
    """
    try:
        found = json.loads((store.root / TRAINING / model / TRAINED_ON).read_text(encoding="utf-8"))["annotations"]
    except (OSError, ValueError, KeyError):
        hashes = models.read_learnt(store.models_folder / model)
        photos = {one.photo for one in store.catalogue.known_files() if one.sha256 in hashes} if hashes else set()
        found = store.catalogue.annotations_of(photos=photos) if photos else []
    return np.asarray(found, np.int64)


def photos_of(store: Store, annotations: IntArray) -> list[str]:
    """The sha256 of the photos of annotations, for `models.write_learnt`."""
    infos = store.catalogue.annotations(annotations.tolist())
    return [one.sha256 for one in store.catalogue.photos(sorted({info.photo for info in infos.values()})).values()]


def learnt(store: Store, labels: Labels, groups: IntArray, more: ArrayLike = ()) -> NDArray[np.bool_]:
    """`(N,)`: the rows that the present model, or the witness that speaks for it, was trained on, or on another photo of
    their sighting, and the same of the annotations in `more`. It knows them by heart: as queries they would promise more
    than new photos keep.
    """
    found = np.union1d(trained_on_by(store, witness.of(store, store.model)), np.asarray(more, np.int64))
    return np.isin(groups, groups[np.isin(labels.annotations, found)])


def sightings_of(catalogue: Catalogue, labels: Labels) -> IntArray:
    """A code for each annotation, `(N,)`: annotations of one encounter, or of near-duplicate photos, share it."""
    photo_ids, hashes = catalogue.phashes()
    pairs = duplicates.near_duplicates(*_distinct(hashes))
    first = {int(h): i for i, h in reversed(list(enumerate(hashes.tolist())))}
    parent = np.arange(len(photo_ids))
    edges = [(first[int(h)], i) for i, h in enumerate(hashes.tolist())]
    unique = np.unique(hashes)
    edges += [
        (first[int(unique[a])], first[int(unique[b])])
        for a, b in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
    ]
    for a, b in edges:
        parent[_root(parent, b)] = _root(parent, a)
    lookup = {int(p): int(_root(parent, i)) for i, p in enumerate(photo_ids.tolist())}
    by_photo = np.array([lookup.get(int(p), -int(p) - 2) for p in labels.photos], np.int64)
    return _joined(by_photo, labels.encounters)


def _distinct(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64]]:
    """Each hash once: equal ones would pair with one another in their square."""
    return (np.unique(hashes),)


def _joined(photos: IntArray, encounters: IntArray) -> IntArray:
    """Connected components of annotations that share a duplicate group or an encounter."""
    parent = np.arange(len(photos))
    for codes in (photos, encounters):
        seen: dict[int, int] = {}
        for i, code in enumerate(codes.tolist()):
            if code == -1:
                continue
            if code in seen:
                parent[_root(parent, i)] = _root(parent, seen[code])
            else:
                seen[code] = i
    roots = np.array([_root(parent, i) for i in range(len(parent))], np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def _root(parent: IntArray, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int(parent[i])
    return i


def left_out(
    store: Store,
    labels: Labels,
    vectors: NDArray[np.float32],
    queries: IntArray | None = None,
    *,
    whitened: float,
    sides: Sides = "separate",
    prototypes: bool = False,
) -> LeftOut:
    """By the embedding alone: photos of the gallery answered as if they were queries, unseen by model, whitening and
    crowd, as their encounter and near-duplicates are (`unseen`), which they are not compared with; rows `queries`, or
    those that the present model has not learnt. `whitened` is the share of `whiten.fit`, 0: vectors as they are; with
    `prototypes` half of each cosine is that with its animal's, unless a threshold was stated.
    """
    groups = sightings_of(store.catalogue, labels)
    if queries is None:
        queries = chosen_queries(labels.individuals, groups, allowed=~learnt(store, labels, groups))
    rest = np.setdiff1d(np.arange(len(groups)), queries)
    teach = unseen(groups, queries)
    rows = _rows(store, vectors, labels, teach, whitened)
    crowded = crowding_among(store, rows, labels, rest, teach)
    middles = prototypes_among(store, rows, labels, rest, sides) if prototypes else None
    k = min(len(rest), store.config.gallery.neighbours + int(np.bincount(groups).max(initial=1)))
    near = np.full((len(queries), max(k, 1)), -1, np.int64)
    scores = np.zeros((len(queries), max(k, 1)))
    for at in range(0, len(queries), 256):
        part = queries[at : at + 256]
        matrix = rows[part] @ rows[rest].T
        matrix = _sided(store, labels, matrix, part, rest, sides)
        if k:
            found = leaving_out.nearest(matrix, k)
            near[at : at + 256], scores[at : at + 256] = rest[found.rows], found.scores
    near[np.isneginf(scores)] = -1
    if middles is not None:
        for row, query in enumerate(queries.tolist()):
            there, sighting = near[row] >= 0, np.flatnonzero(groups == groups[query])
            scores[row, there] = middles.blended(rows[query], scores[row, there], near[row, there], sighting)
    there, own = near >= 0, np.repeat(labels.individuals[queries], near.shape[1]).reshape(near.shape)
    known, unknown = (
        leaving_out.leave_one_out(
            queries,
            _lowered(near, scores, crowded.relief(near[there], without)),
            labels.individuals,
            groups,
            store.config.decision.aggregate,
        )
        for without in (-1, own[there])
    )
    return leaving_out.both_cases(known, unknown)


def _lowered(near: IntArray, scores: NDArray[np.float64], relief: NDArray[np.float64]) -> Neighbours:
    """The same neighbours `(Q, K)` with what is taken off those that there are, best first."""
    there = near >= 0
    lowered = np.full(near.shape, -np.inf)
    lowered[there] = scores[there] - relief
    order = np.argsort(-lowered, axis=1, kind="stable")
    rows = np.take_along_axis(near, order, axis=1)
    return Neighbours(rows, np.where(rows >= 0, np.take_along_axis(lowered, order, axis=1), 0.0))


def unseen(groups: IntArray, queries: IntArray) -> IntArray:
    """Rows that nothing of a query's sighting is among, ascending: what whitening and crowd are made of. All but the
    queries themselves where that would leave less than half of them.
    """
    rest = np.setdiff1d(np.arange(len(groups)), queries)
    apart = rest[~np.isin(groups[rest], groups[queries])]
    return apart if 2 * len(apart) >= len(rest) else rest


def numbers_kept(store: Store, vectors: NDArray[np.float32]) -> int:
    """How many numbers the whitening of `vectors (N, D)` keeps: by the boxes in service, of which these may be a sample."""
    return whiten.dimensions_of(store.catalogue.counts().annotations, vectors.shape[1])


def _rows(
    store: Store, vectors: NDArray[np.float32], labels: Labels, teach: IntArray, whitened: float
) -> NDArray[np.float32]:
    """All vectors by the whitening of those at `teach`."""
    if not whitened:
        return vectors
    whitening = whiten.fit(
        vectors[teach], labels.individuals[teach], least=2, share=whitened,
        dimensions=numbers_kept(store, vectors),
    )  # fmt: skip
    return vectors if whitening is None else whitening.apply(vectors)


def crowding_among(
    store: Store, rows: NDArray[np.float32], labels: Labels, rest: IntArray, teach: IntArray
) -> Crowding:
    """How crowded it is around each of the unit `rows (N, d)` at `rest`, by a crowd drawn from those at `teach`; nothing
    is known of the others, nor of any where a threshold was stated, which holds for cosines as they are.
    """
    if store.config.decision.threshold >= 0:
        return Crowding.none(len(rows))
    kinds, members = kinds_of(store, labels), teach[crowding.drawn(labels.individuals[teach])]
    crowd = Crowd(rows[members], labels.individuals[members], kinds[members])
    found = crowding.around(rows[rest], labels.individuals[rest], kinds[rest], crowd).centred(kinds[rest])
    cosines = np.full((len(rows), found.cosines.shape[1]), -np.inf, np.float32)
    animals = np.full(cosines.shape, -1, np.int64)
    middles = np.zeros(len(rows))
    cosines[rest], animals[rest], middles[rest] = found.cosines, found.animals, found.middles
    return Crowding(cosines, animals, middles)


def prototypes_among(
    store: Store, rows: NDArray[np.float32], labels: Labels, rest: IntArray, sides: Sides
) -> Prototypes | None:
    """Those of the animals of the unit `rows (N, d)` at `rest`; None where a threshold was stated."""
    if store.config.decision.threshold >= 0:
        return None
    return Prototypes.of(rows, flanks.grouped(store, labels, sides), rest)


def kinds_of(store: Store, labels: Labels) -> IntArray:
    """A code for the species of each annotation, `(N,)`; those without one share one."""
    said = store.catalogue.species()
    kinds = np.array([said.get(id, "") for id in labels.annotations.tolist()], np.str_)
    return np.unique(kinds, return_inverse=True)[1].astype(np.int64)


def _sided(
    store: Store, labels: Labels, scores: NDArray[np.float32], queries: IntArray, gallery: IntArray, sides: Sides
) -> NDArray[np.float32]:
    """Scores with opposite flanks struck out, as a query does."""
    infos = store.catalogue.annotations(labels.annotations[queries].tolist())
    shown = [infos[int(a)].side for a in labels.annotations[queries]]
    for side in flanks.OPPOSITE:
        mine = [i for i, s in enumerate(shown) if s == side]
        if mine:
            other = np.isin(labels.annotations[gallery], flanks.barred(store, side, sides))
            scores[np.ix_(np.array(mine), np.flatnonzero(other))] = -np.inf
    return scores


def ask_left_out(
    store: Store,
    labels: Labels,
    vectors: NDArray[np.float32],
    groups: IntArray,
    source: measure.Local,
    *,
    whitened: float,
    sides: Sides,
    progress: Progress,
) -> tuple[measure.Gallery, list[Asked], list[Asked]]:
    """Left-out photos asked with all sources, by a whitening that has not seen them, and the gallery they belong to;
    last, where the network has learnt most photos, some of these: they tell what votes and geometry are worth.
    """
    by_heart = learnt(store, labels, groups)
    queries = chosen_queries(labels.individuals, groups, allowed=~by_heart, most=MOST_FUSED, each=2)
    further = _taught_by(labels.individuals, groups, queries, by_heart)
    rest = np.setdiff1d(np.arange(len(groups)), queries)
    teach = unseen(groups, queries)
    rows = _rows(store, vectors, labels, teach, whitened)
    ids = tuple(map(str, labels.annotations.tolist()))
    crowded = crowding_among(store, rows, labels, rest, teach)
    gallery = measure.Gallery(ids, rows, labels.individuals, groups, crowded)
    opposite = _opposite(store, labels, sides)
    near = store.config.gallery.neighbours
    total = len(queries) + len(further)
    asked = measure.ask(
        gallery, queries, opposite, source, neighbours=near, progress=lambda what, done, _: progress(what, done, total)
    )
    taught = measure.ask(
        gallery, further, opposite, source, neighbours=near,
        progress=lambda what, done, _: progress(what, len(queries) + done, total),
    )  # fmt: skip
    return gallery, asked, [one.by_heart() for one in taught]


def _taught_by(individuals: IntArray, groups: IntArray, queries: IntArray, by_heart: NDArray[np.bool_]) -> IntArray:
    """Rows of photos learnt `by_heart` that may play queries after `queries`, none of whose sightings they are of: as many
    as make up the most that are fused.
    """
    free = np.where(np.isin(groups, groups[queries]), -1, individuals)
    return chosen_queries(free, groups, allowed=by_heart, most=max(0, MOST_FUSED - len(queries)), each=2)


def local_of(store: Store, labels: Labels) -> measure.Local | None:
    """The store's local features opened for measuring; None where it does without or has none."""
    if local.description(store) is None:
        return None
    source = local.LocalSource.open(store)
    if not source.index.descriptors:
        return None
    keys = local.keys(store, labels.annotations.tolist())

    @lru_cache(maxsize=FEATURES_HELD)
    def features_of(id: str) -> LocalFeatures | None:
        return source.features_of(keys, id)

    @lru_cache(maxsize=FEATURES_HELD)
    def compared_of(id: str) -> LocalFeatures | None:
        return source.compared_of(keys, id)

    heads = rescore.open_heads(store)
    half = {str(a): rescore.half_of(int(i)) for a, i in zip(labels.annotations, labels.individuals, strict=True)}
    siamese_of = (lambda id, ids: heads.unseen(half[id], id, ids)) if heads is not None else None
    names = source.index.names(local.names_of(store))
    return measure.Local(
        source.index,
        names,
        features_of,
        source.verify,
        store.config.local.verify,
        compared_of if source.further else None,
        siamese_of,
    )


def _opposite(store: Store, labels: Labels, sides: Sides) -> Callable[[int], frozenset[int]]:
    """Row → the rows of the other flank that it is not compared with."""
    shown: dict[int, str] = {}
    rows: dict[str, frozenset[int]] = {"": frozenset()}
    for side in flanks.OPPOSITE:
        mine = np.isin(labels.annotations, store.catalogue.annotations_of(sides=[side]))
        shown |= dict.fromkeys(np.flatnonzero(mine).tolist(), side)
        away = np.isin(labels.annotations, flanks.barred(store, side, sides))
        rows[side] = frozenset(np.flatnonzero(away).tolist())
    return lambda row: rows[shown.get(row, "")]
