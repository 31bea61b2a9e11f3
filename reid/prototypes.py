"""Animals as the middle of their photos: a cosine with a photo, and with the mean of its animal's photos, half and half.

One photo of an animal is blurred, another is taken from aside; what they share is more like a further photo than most of
them are. So half of each candidate's cosine is that with its animal's *prototype*, the unit mean of its photos' vectors
(Snell et al. 2017, NeurIPS), and half that with the photo itself, which may be the only one from that side. Photos of
nobody and animals with one photo keep their cosines. Where opposite flanks are not compared each has a prototype of its
own, and so have photos of neither. A prototype is made of `MOST` photos at most, evenly taken in the order in which they
came. Both halves are cosines, so that scores keep their scale.

That serves where the embedder answers alone. Fused with votes and geometry, which speak of single photos, it lost.

Knows arrays and the gallery's index; what it gives is in docs/experiments/engine.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reid.index import Gallery

SHARE = 0.5
MOST = 64  # photos of an animal, or of a flank of it: a query's work stays bounded

Floats = NDArray[np.float64]
Rows = NDArray[np.float32]
IntArray = NDArray[np.int64]
Group = tuple[str, str]  # an animal, and the flank of it, "" where there is none of its own


def evenly(count: int) -> IntArray:
    """Places of the photos, of so many, that a prototype is made of."""
    along = np.arange(count) * min(MOST, count)
    return np.flatnonzero(np.diff(along // max(1, count), prepend=-1))


@dataclass(frozen=True, slots=True, eq=False)
class Prototypes:
    """Of a gallery at hand: unit `rows (N, d)`; `groups (N,)`, whose photos belong together, −1 where a photo stands for
    itself; which are `taken (N,)`; the `sums (G, d)` and `counts (G,)` of the rows taken of each group.
    """

    rows: Rows
    groups: IntArray
    taken: NDArray[np.bool_]
    sums: Rows
    counts: IntArray

    @classmethod
    def of(cls, rows: Rows, groups: IntArray, gallery: IntArray) -> Prototypes:
        """Of the unit `rows (N, d)` at `gallery`; `groups (N,)` are codes of any kind, −1 for none."""
        inside = np.sort(gallery[groups[gallery] >= 0])
        inside = inside[np.argsort(groups[inside], kind="stable")]
        parts = np.split(inside, np.flatnonzero(np.diff(groups[inside])) + 1)
        several = [part for part in parts if len(part) > 1]
        own, taken = np.full(len(rows), -1), np.zeros(len(rows), np.bool_)
        sums = np.zeros((len(several), rows.shape[1]), np.float32)
        counts = np.zeros(len(several), np.int64)
        for code, part in enumerate(several):
            some = part[evenly(len(part))]
            own[part], taken[some] = code, True
            sums[code], counts[code] = rows[some].sum(axis=0), len(some)
        return cls(rows, own, taken, sums, counts)

    def blended(self, query: Rows, cosines: Floats, at: IntArray, barred: Sequence[int] | IntArray = ()) -> Floats:
        """`cosines (n,)` of the unit vector `query (d,)` with the rows `at (n,)`, half of each by its prototype, which the
        rows `barred` have no part in.
        """
        codes = self.groups[at]
        there = codes >= 0
        if not there.any():
            return cosines
        used, place = np.unique(codes[there], return_inverse=True)
        sums, counts = self.sums[used], self.counts[used]
        away = np.asarray(barred, np.int64)
        away = away[self.taken[away] & np.isin(self.groups[away], used)]
        places = np.searchsorted(used, self.groups[away])
        np.subtract.at(sums, places, self.rows[away])
        np.subtract.at(counts, places, 1)
        out = cosines.copy()
        out[there] = _half(cosines[there], _with_means(query, sums, counts)[place])
        return out


def _with_means(query: Rows, sums: Rows, counts: IntArray) -> Floats:
    """Cosines with the prototypes of `sums (G, d)`, NaN where no photo is left."""
    lengths = np.linalg.norm(sums, axis=1)
    known = (counts > 0) & (lengths > 0)
    found = np.asarray(sums @ query, np.float64)
    return np.where(known, found / np.where(known, lengths, 1.0), np.nan)


def _half(cosines: Floats, prototypes: Floats) -> Floats:
    return np.where(np.isfinite(prototypes), (1 - SHARE) * cosines + SHARE * prototypes, cosines)


class Animals:
    """The prototypes of an index, made at first need and kept. `owners` names the animal of each photo that has one now,
    `flanks` gives those of photos that opposite ones are not compared with, when they are asked for.
    """

    def __init__(self, gallery: Gallery, owners: Mapping[str, str], flanks: Callable[[], Mapping[str, str]]) -> None:
        self._gallery, self._owners, self._flanks = gallery, owners, flanks
        self._photos: dict[Group, list[str]] | None = None
        self._flank: Mapping[str, str] = {}
        self._made: dict[Group, tuple[Rows, frozenset[str]]] = {}

    def blended(
        self, query: Rows, ids: Sequence[str], cosines: Floats, barred: AbstractSet[str] = frozenset()
    ) -> Floats:
        """As `Prototypes.blended`, of photos of the index by their ids."""
        photos = self._by_group()
        groups = [self._group(id) for id in ids]
        place = {one: row for row, one in enumerate(dict.fromkeys(one for one in groups if one in photos))}
        if not place:
            return cosines
        self._make([one for one in place if one not in self._made])
        sums = np.stack([self._made[one][0] for one in place])
        counts = np.array([len(self._made[one][1]) for one in place], np.int64)
        for one, row in place.items() if barred else ():
            away = sorted(self._made[one][1] & barred)
            if away:
                sums[row] -= self._gallery.vectors(away).sum(axis=0)
                counts[row] -= len(away)
        found = np.append(_with_means(query, sums, counts), np.nan)  # the last: no group
        return _half(cosines, found[[place.get(one, -1) for one in groups]])

    def _group(self, id: str) -> Group:
        return self._owners.get(id, ""), self._flank.get(id, "")

    def _by_group(self) -> dict[Group, list[str]]:
        """The photos of each group of two or more."""
        if self._photos is None:
            self._flank = self._flanks()
            photos: dict[Group, list[str]] = {}
            for id in self._owners:
                photos.setdefault(self._group(id), []).append(id)
            self._photos = {group: some for group, some in photos.items() if len(some) > 1}
        return self._photos

    def _make(self, groups: Sequence[Group]) -> None:
        """The sums of groups that are not kept yet."""
        if not groups:
            return
        photos = [sorted(self._by_group()[group], key=int) for group in groups]
        held = self._gallery.holds([id for some in photos for id in some])
        ends = np.cumsum([len(some) for some in photos])[:-1]
        chosen: list[list[str]] = []
        for some, there in zip(photos, np.split(held, ends), strict=True):
            present = [id for id, held_now in zip(some, there.tolist(), strict=True) if held_now]
            chosen.append([present[i] for i in evenly(len(present))])
        order = [id for some in chosen for id in some]
        rows = dict(zip(order, self._gallery.vectors(order), strict=True)) if order else {}
        for group, some in zip(groups, chosen, strict=True):
            total = np.sum([rows[id] for id in some], axis=0) if some else np.zeros(self._gallery.dim, np.float32)
            self._made[group] = total, frozenset(some)
