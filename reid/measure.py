"""Left-out photos answered with all sources, as a query is: what fusion learns from and thresholds are measured on.

Each photo that plays a query is asked twice: with its animal in the gallery, and with the whole animal taken out of it
(rivals then get the votes and the look by geometry that its own photos took, as they do when a new animal comes).
Candidates come from the rest of the gallery, never from the photo's own sighting. Knows arrays, a local index and
features by id; no catalogue, no thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reid import calibrate, decide, fusion, leaving_out, metrics, shortlist, sources
from reid.crowding import Crowding
from reid.errors import InputError
from reid.fusion import Fusion
from reid.index import LocalIndex, Names
from reid.keypoints import LocalFeatures, empty_features
from reid.leaving_out import LeftOut, Neighbours
from reid.verify import Verification, VerifyConfig

IntArray = NDArray[np.int64]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Gallery:
    """All photos of a measurement, N of them: `ids` in both indexes, whitened `rows (N, d)`, `individuals` and
    `groups` (N,) (codes of animals, −1 unknown, and of sightings), and how crowded it is around each.
    """

    ids: tuple[str, ...]
    rows: NDArray[np.float32]
    individuals: IntArray
    groups: IntArray
    crowding: Crowding

    def cosines(self, query: int, rows: IntArray, without: int = -1) -> NDArray[np.float64]:
        """Of a row with others, `(n,)`, crowding taken off as if the animal `without` (−1 none) were not in the gallery."""
        return np.asarray(self.rows[rows] @ self.rows[query], np.float64) - self.crowding.relief(rows, without)


@dataclass(frozen=True, slots=True, eq=False)
class Local:
    """Where the local features of the gallery are."""

    index: LocalIndex
    names: Names
    features_of: Callable[[str], LocalFeatures | None]
    verify: VerifyConfig
    checked: int
    compared_of: Callable[[str], LocalFeatures | None] | None = None  # for geometry, where that compares others
    siamese_of: Callable[[str, Sequence[str]], NDArray[np.float64]] | None = None  # logits by heads that saw neither


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """One left-out photo: its row, and the candidates (`rows` of the gallery) with and without its own animal."""

    row: int
    rows: IntArray
    known: NDArray[np.float32]
    others: IntArray
    unknown: NDArray[np.float32]

    def by_heart(self) -> Asked:
        """The same of a photo that the network has learnt: what the network says counts for nothing."""
        return replace(self, known=fusion.without_looks(self.known), unknown=fusion.without_looks(self.unknown))


def ask(
    gallery: Gallery,
    queries: IntArray,
    excluded: Callable[[int], AbstractSet[int]],
    local: Local,
    *,
    neighbours: int,
    progress: Progress,
) -> list[Asked]:
    """Every query (a row of the gallery) against the rest: `excluded(row)` names further rows it is not compared with."""
    asking = _Asking(gallery, local, frozenset(queries.tolist()), neighbours)
    asked: list[Asked] = []
    for done, query in enumerate(queries.tolist()):
        answer = asking.both(query, excluded(query))
        if answer is not None:
            asked.append(answer)
        progress("measure", done + 1, len(queries))
    return asked


class _Asking:
    """Queries of a gallery, `played` all of them, one after another."""

    def __init__(self, gallery: Gallery, local: Local, played: AbstractSet[int], neighbours: int) -> None:
        self._gallery = gallery
        self._local = local
        self._played = played
        self._neighbours = neighbours
        self._rest = np.setdiff1d(np.arange(len(gallery.ids)), np.array(sorted(played), np.int64))
        self._row_of = {id: row for row, id in enumerate(gallery.ids)}

    def both(self, query: int, excluded: AbstractSet[int]) -> Asked | None:
        """With its animal in the gallery and with the whole animal taken out; None where it has no local features."""
        gallery = self._gallery
        features = self._local.features_of(gallery.ids[query])
        if features is None:
            return None
        barred = set(excluded) | set(np.flatnonzero(gallery.groups == gallery.groups[query]).tolist())
        made: dict[str, Verification] = {}
        rows, known = self._listed(query, features, barred, -1, made)
        own = int(gallery.individuals[query])
        away = np.flatnonzero(gallery.individuals == own).tolist() if own >= 0 else []
        if self._played >= set(away):
            return Asked(query, rows, known, rows, known)
        others, unknown = self._listed(query, features, barred.union(away), own, made)
        return Asked(query, rows, known, others, unknown)

    def _listed(
        self, query: int, features: LocalFeatures, barred: AbstractSet[int], without: int, made: dict[str, Verification]
    ) -> tuple[IntArray, NDArray[np.float32]]:
        """Candidates (rows of the gallery) and what is known of each; of the animal `without` none is among those not
        `barred`. Pairs that were verified before are in `made`, and so are the new ones afterwards.
        """
        gallery, local, id = self._gallery, self._local, self._gallery.ids[query]
        open_rows = self._rest[~np.isin(self._rest, np.fromiter(barred, np.int64, len(barred)))]
        nearest = np.argsort(-(gallery.rows[open_rows] @ gallery.rows[query]), kind="stable")[: self._neighbours]
        cosines = gallery.cosines(query, open_rows[nearest], without)
        order = np.argsort(-cosines, kind="stable")
        near = open_rows[nearest[order]]
        found = local.index.search(
            local.index.asking(features.descriptors),
            names=local.names,
            exclude={gallery.ids[r] for r in barred | self._played},
            top=shortlist.VOTED,
        )
        compared_of, siamese = local.compared_of, local.siamese_of
        compared = features if compared_of is None else (compared_of(id) or empty_features(0, 0))

        def check(ids: Sequence[str]) -> dict[str, Verification]:
            missing = [one for one in ids if one not in made]
            shortlist.verified(compared, missing, compared_of or local.features_of, local.verify, made=made)
            return {one: made[one] for one in ids if one in made}

        listed = shortlist.gather(
            [gallery.ids[r] for r in near],
            cosines[order],
            {one: v for one, v in zip(found.photos, found.votes, strict=True) if one in self._row_of},
            lambda ids: gallery.cosines(query, np.array([self._row_of[i] for i in ids], np.int64), without),
            features,
            local.features_of,
            listed=self._neighbours,
            checked=local.checked,
            config=local.verify,
            check=check,
            siamese_of=(lambda ids: siamese(id, ids)) if siamese is not None else None,
        )
        return np.array([self._row_of[i] for i in listed.ids], np.int64), listed.features


@dataclass(frozen=True, slots=True, eq=False)
class Fused:
    """A way to fuse, and the left-out photos as it answers them (out of fold where it was fitted on them)."""

    fusion: Fusion
    cases: LeftOut
    known: Sequence[NDArray[np.float64]]  # scores of each photo's candidates, with its animal
    unknown: Sequence[NDArray[np.float64]]  # and without it

    @property
    def map_at_5(self) -> float:
        """Of known cases, known animals alone being ranked; 0 where there are none."""
        worth = metrics.reciprocal_ranks(self.cases.truth_rank[self.cases.known_case], decide.LABELS)
        return float(worth.mean()) if len(worth) else 0.0


def fused(gallery: Gallery, asked: Sequence[Asked], fusion_kind: Fusion, method: str) -> Fused:
    """The answers of a fusion that was fitted elsewhere."""
    known = [fusion_kind.scores(one.known) for one in asked]
    unknown = [fusion_kind.scores(one.unknown) for one in asked]
    return Fused(fusion_kind, _cases(gallery, asked, known, unknown, method), known, unknown)


def with_and_without_siamese(asked: Sequence[Asked]) -> list[Sequence[Asked]]:
    """The same left-out photos without the columns of a Siamese head, and with them where there are any: a head that
    does not help is not to be listened to.
    """
    narrow = len(fusion.NAMES)
    if all(one.known.shape[1] <= narrow for one in asked):
        return [asked]
    return [[replace(one, known=one.known[:, :narrow], unknown=one.unknown[:, :narrow]) for one in asked], asked]


def fitted(
    gallery: Gallery, asked: Sequence[Asked], method: str, least: int | None = None, *, further: Sequence[Asked] = ()
) -> Fused | None:
    """Trees fitted on all pairs of named animals, and the answers out of fold; None where there are too few pairs. With
    `least`, those of geometry alone, which has the first place from so many agreeing points. `further` photos
    (`Asked.by_heart`) teach the trees, and are not asked for.
    """
    pairs = _pairs(gallery, asked)
    if pairs is None:
        return None
    keep, features, blocks = pairs.named, pairs.features, pairs.blocks
    rows, same, animals, _, own = _taught(gallery, asked, further)
    try:
        if least is None:
            found, scores = fusion.fit_trees(rows, same, animals, asked=own)
        else:
            found, scores = fusion.fit_geometry_first(rows, same, animals, least, asked=own)
    except InputError:
        return None
    spread = np.full(len(keep), np.nan)
    spread[keep] = scores[own]
    rest = features[~keep] if least is None else fusion.only_geometry(features[~keep])
    spread[~keep] = replace(found, kind="trees").scores(rest)
    parts = np.split(spread, pairs.ends)
    if found.looks is not None and least is not None:
        parts = [
            fusion.placed(valid, found.looks.probability(fusion.looks_of(block)), fusion.inliers_of(block), least)
            for valid, block in zip(parts, blocks, strict=True)
        ]
    return _fused(gallery, asked, found, parts, method)


def combined(gallery: Gallery, asked: Sequence[Asked], method: str, *, further: Sequence[Asked] = ()) -> list[Fused]:
    """Sources that are each calibrated, fused in every way of `sources.WAYS`, and the answers out of fold; empty where
    there are too few pairs. `further` photos teach the validator of geometry alone.
    """
    pairs = _pairs(gallery, asked)
    if pairs is None:
        return []
    keep = pairs.named
    try:
        rows, same, animals, lists, own = _taught(gallery, asked, further)
        heard = fusion.hear(rows, same, animals, lists, asked=own)
    except InputError:
        return []
    out = []
    for way in sources.WAYS:
        found, scores = fusion.fit_sources(heard, way)
        spread = np.full(len(keep), np.nan)
        spread[keep] = scores
        spread[~keep] = found.scores(pairs.features[~keep])
        out.append(_fused(gallery, asked, found, np.split(spread, pairs.ends), method))
    return out


def averaged(gallery: Gallery, asked: Sequence[Asked], parts: Sequence[Fused], method: str) -> Fused | None:
    """The mean of ways, by what each of them answers out of fold; None where nobody was asked."""
    pairs = _pairs(gallery, asked)
    if pairs is None:
        return None
    margins = fusion.mean_odds([np.concatenate(_lists(one)) for one in parts])
    curve = calibrate.fit_platt(margins[pairs.named], pairs.same[pairs.named])
    found = fusion.averaged([one.fusion for one in parts], curve)
    return _fused(gallery, asked, found, np.split(curve.probability(margins), pairs.ends), method)


def _lists(one: Fused) -> list[NDArray[np.float64]]:
    """Its scores list by list, in the order of `_Pairs`."""
    return [scores for both in zip(one.known, one.unknown, strict=True) for scores in both]


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """All pairs of the left-out photos, a photo's with its animal and then those without, N of them: `features`,
    `same`, `animals (N, 2)`, whether both are `named`, and `lists` as in `sources.Pairs`. `blocks` are the features
    list by list, `ends` where each list but the last ends.
    """

    features: NDArray[np.float32]
    same: NDArray[np.bool_]
    animals: IntArray
    named: NDArray[np.bool_]
    lists: IntArray
    blocks: Sequence[NDArray[np.float32]]
    ends: IntArray


def _pairs(gallery: Gallery, asked: Sequence[Asked]) -> _Pairs | None:
    """None where nobody was asked."""
    blocks, animals, lists = [], [], []
    for number, one in enumerate(asked):
        own = gallery.individuals[one.row]
        for rows, features, code in ((one.rows, one.known, number), (one.others, one.unknown, -1)):
            codes = gallery.individuals[rows]
            blocks.append(features)
            animals.append(np.stack([np.full(len(codes), own), codes], axis=1))
            lists.append(np.full(len(codes), code, np.int64))
    if not blocks:
        return None
    both = np.concatenate(animals)
    named: NDArray[np.bool_] = np.all(both >= 0, axis=1)
    ends = np.cumsum([len(block) for block in blocks])[:-1]
    return _Pairs(
        np.concatenate(blocks), named & (both[:, 0] == both[:, 1]), both, named, np.concatenate(lists), blocks, ends
    )


def _taught(
    gallery: Gallery, asked: Sequence[Asked], further: Sequence[Asked]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], IntArray, IntArray, NDArray[np.bool_]]:
    """Features, same, animals and lists of all named pairs, those of `asked` first, and which are theirs."""
    found = [pairs for some in (asked, further) if (pairs := _pairs(gallery, some)) is not None]
    own = np.arange(sum(int(pairs.named.sum()) for pairs in found)) < int(found[0].named.sum())
    return (
        np.concatenate([pairs.features[pairs.named] for pairs in found]),
        np.concatenate([pairs.same[pairs.named] for pairs in found]),
        np.concatenate([pairs.animals[pairs.named] for pairs in found]),
        np.concatenate([pairs.lists[pairs.named] for pairs in found]),
        own,
    )


def _fused(
    gallery: Gallery, asked: Sequence[Asked], kind: Fusion, parts: Sequence[NDArray[np.float64]], method: str
) -> Fused:
    """The answers by scores list by list, as `_Pairs` has them."""
    return Fused(kind, _cases(gallery, asked, parts[0::2], parts[1::2], method), parts[0::2], parts[1::2])


def _cases(
    gallery: Gallery,
    asked: Sequence[Asked],
    known: Sequence[NDArray[np.float64]],
    unknown: Sequence[NDArray[np.float64]],
    method: str,
) -> LeftOut:
    """Both kinds of case from both lists of scores."""
    photos = np.array([one.row for one in asked], np.int64)
    kinds = []
    for rows, scores in (([one.rows for one in asked], known), ([one.others for one in asked], unknown)):
        width = max((len(r) for r in rows), default=0) + 1  # a −1 at the end says that nothing was cut off
        near = np.full((len(asked), width), -1, np.int64)
        value = np.zeros((len(asked), width))
        for i, (row, score) in enumerate(zip(rows, scores, strict=True)):
            order = np.argsort(-score, kind="stable")
            near[i, : len(row)], value[i, : len(row)] = row[order], score[order]
        kinds.append(
            leaving_out.leave_one_out(photos, Neighbours(near, value), gallery.individuals, gallery.groups, method)
        )
    return leaving_out.both_cases(kinds[0], kinds[1])
