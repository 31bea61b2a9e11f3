"""Animals as the middle of their photos: a cosine with a photo, and with the mean of its animal's photos, half and half.

One photo of an animal is blurred, another is taken from aside; what they share is more like a further photo than most of
them are. So half of each candidate's cosine is that with its animal's *prototype*, the unit mean of its photos' vectors
(Snell et al. 2017, NeurIPS), and half that with the photo itself, which may be the only one from that side. Photos of
nobody and animals with one photo keep their cosines. Where opposite flanks are not compared each has a prototype of its
own. Both halves are cosines, so that scores keep their scale.

Knows arrays and the gallery's index; what it gives is in docs/results.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reid.index import Gallery

SHARE = 0.5
MOST = 64  # photos of an animal that its prototype is made of, evenly taken: a query's work stays bounded

Floats = NDArray[np.float64]
Rows = NDArray[np.float32]
IntArray = NDArray[np.int64]
GroupOf = Callable[[str], Hashable | None]
Learn = Callable[[set[int]], None]


@dataclass(frozen=True, slots=True, eq=False)
class Prototypes:
    """Of a gallery at hand: unit `rows (N, d)`; `groups (N,)`, whose photos belong together, −1 where a photo stands for
    itself; the `sums (G, d)` and `counts (G,)` of each group's rows.
    """

    rows: Rows
    groups: IntArray
    sums: Rows
    counts: IntArray

    @classmethod
    def none(cls, count: int) -> Prototypes:
        """Every photo stands for itself."""
        return cls(
            np.empty((count, 0), np.float32), np.full(count, -1), np.empty((0, 0), np.float32), np.empty(0, np.int64)
        )

    @classmethod
    def of(cls, rows: Rows, groups: IntArray, gallery: IntArray) -> Prototypes:
        """Of the unit `rows (N, d)` at `gallery`; `groups (N,)` are codes of any kind, −1 for none."""
        inside = gallery[groups[gallery] >= 0]
        _, codes, counts = np.unique(groups[inside], return_inverse=True, return_counts=True)
        several = np.flatnonzero(counts > 1)
        places = np.full(len(counts), -1)
        places[several] = np.arange(len(several))
        own = np.full(len(rows), -1)
        own[inside] = places[codes]
        members = np.flatnonzero(own >= 0)
        sums = np.zeros((len(several), rows.shape[1]), np.float32)
        np.add.at(sums, own[members], rows[members])
        return cls(rows, own, sums, counts[several])

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
        away = away[np.isin(self.groups[away], used)]
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
    """The prototypes of an index, made at first need and kept. `owners` names the animal of each photo that has one now."""

    def __init__(self, gallery: Gallery, owners: Mapping[str, str]) -> None:
        self._gallery, self._owners = gallery, owners
        self._photos: dict[str, list[str]] | None = None
        self._made: dict[Hashable, tuple[Rows, frozenset[str]]] = {}

    def blended(
        self,
        query: Rows,
        ids: Sequence[str],
        cosines: Floats,
        barred: AbstractSet[str],
        group_of: GroupOf,
        learn: Learn,
    ) -> Floats:
        """As `Prototypes.blended`, of photos of the index by their ids. `group_of` says which photos belong together, None
        for one that stands for itself; `learn` is told beforehand of those that are not among `ids`.
        """
        groups = [group_of(id) for id in ids]
        self._make({id: group for id, group in zip(ids, groups, strict=True) if group is not None}, group_of, learn)
        place = {group: row for row, group in enumerate(dict.fromkeys(one for one in groups if one is not None))}
        if not place:
            return cosines
        sums = np.stack([self._made[group][0] for group in place])
        counts = np.array([len(self._made[group][1]) for group in place], np.int64)
        for group, row in place.items():
            away = sorted(self._made[group][1] & barred) if barred else []
            if away:
                sums[row] -= self._gallery.vectors(away).sum(axis=0)
                counts[row] -= len(away)
        found = np.append(_with_means(query, sums, counts), np.nan)  # the last: no group
        return _half(cosines, found[[-1 if one is None else place[one] for one in groups]])

    def _make(self, wanted: Mapping[str, Hashable], group_of: GroupOf, learn: Learn) -> None:
        """The sums of groups that are not kept yet, by a photo of each."""
        animals = {self._owners[id] for id, group in wanted.items() if group not in self._made and id in self._owners}
        if animals:
            photos = [photo for animal in sorted(animals) for photo in _some(self._by_animal()[animal])]
            photos = [photo for photo, held in zip(photos, self._gallery.holds(photos).tolist(), strict=True) if held]
            learn({int(photo) for photo in photos})
            members: dict[Hashable, list[str]] = {}
            for photo in photos:
                group = group_of(photo)
                if group is not None:
                    members.setdefault(group, []).append(photo)
            order = [photo for some in members.values() for photo in some]
            rows = dict(zip(order, self._gallery.vectors(order), strict=True)) if order else {}
            for group, some in members.items():
                self._made[group] = np.sum([rows[photo] for photo in some], axis=0), frozenset(some)
        for id, group in wanted.items():  # one that the even choice passed over, or whose owner changed meanwhile
            if group not in self._made:
                self._made[group] = self._gallery.vectors([id])[0].copy(), frozenset([id])

    def _by_animal(self) -> dict[str, list[str]]:
        if self._photos is None:
            self._photos = {}
            for photo, animal in self._owners.items():
                self._photos.setdefault(animal, []).append(photo)
        return self._photos


def _some(photos: Collection[str]) -> list[str]:
    """At most `MOST` of an animal's, evenly taken in the order in which they came."""
    ordered = sorted(photos, key=int)
    return ordered if len(ordered) <= MOST else [ordered[i] for i in np.linspace(0, len(ordered) - 1, MOST).astype(int)]
