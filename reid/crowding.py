"""How crowded the place is where each photo of a gallery stands, and cosines with that taken off.

Some photos look like many others (dark, blurred, all sky) and come up wherever anything is asked; in many dimensions
there are always such hubs (Radovanović et al. 2010, JMLR). So a candidate's cosine is lowered by half of its *crowding*,
the mean cosine to the ten nearest photos of other animals, and raised by half of what the gallery's photos have on
average (those of its species), so that scores keep their scale. The order is that of cross-domain similarity local scaling (Conneau et al.
2018, ICLR), whose ten neighbours these are; its other term is the query's own and the same for all candidates.

Neighbours are looked for in a *crowd*, some photos of each named animal, drawn once a fit: a photo's crowding costs the
same in any gallery, does not move as the gallery grows, and no animal is kept down by many photos of another or by
photos of itself that nobody has named yet. Photos are compared with their own species. Knows arrays and the gallery's
index; what it gives is in docs/experiments/engine.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reid.index import Gallery

NEAR = 10
SHARE = 0.5
EACH = 4  # photos of one animal in a crowd at most: with the animal taken out, the ten nearest are still known
CROWD = 2048  # photos in a crowd at most
_BLOCK = 1024  # rows compared with a crowd at a time

Floats = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Crowd:
    """Photos of named animals that others are compared with: unit `rows (M, d)`, codes of `animals` and `kinds (M,)`."""

    rows: NDArray[np.float32]
    animals: IntArray
    kinds: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Crowding:
    """The nearest of a crowd to each of N photos: their `cosines (N, K)`, best first, −inf past the end, and `animals
    (N, K)`. `middles (N,)` are what photos of each one's kind have on average.
    """

    cosines: NDArray[np.float32]
    animals: IntArray
    middles: Floats

    @classmethod
    def none(cls, count: int) -> Crowding:
        """Nothing is known of any photo, and nothing is taken off."""
        return cls(np.full((count, 1), -np.inf, np.float32), np.full((count, 1), -1, np.int64), np.zeros(count))

    def means(self, rows: IntArray | None = None, without: IntArray | int = -1) -> Floats:
        """`(n,)` of the photos at `rows` (all): the mean cosine to the `NEAR` nearest, of fewer where there are fewer,
        NaN where there is none; as if the animal `without` (or `(n,)`, one for each row; −1 none) were not in the crowd.
        """
        every = slice(None) if rows is None else rows
        left_out = np.asarray(without, np.int64).reshape(-1, 1)
        away = (self.animals[every] == left_out) & (left_out >= 0)
        near = -np.sort(np.where(away, np.inf, -self.cosines[every].astype(np.float64)), axis=1)[:, :NEAR]
        there = np.isfinite(near)
        counts = there.sum(axis=1)
        sums = np.where(there, near, 0.0).sum(axis=1)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    def relief(self, rows: IntArray | None = None, without: IntArray | int = -1) -> Floats:
        """What cosines with the photos at `rows` (all) are lowered by, `(n,)`; 0 where nothing is known."""
        means = self.means(rows, without)
        middles = self.middles if rows is None else self.middles[rows]
        return np.where(np.isfinite(means), SHARE * (means - middles), 0.0)

    def centred(self, kinds: IntArray) -> Crowding:
        """Of a whole gallery or a sample of it, of these `kinds (N,)`: with the middles of these photos."""
        means, middles = self.means(), np.zeros(len(kinds))
        there = np.isfinite(means)
        for kind in np.unique(kinds[there]):
            middles[kinds == kind] = means[there & (kinds == kind)].mean()
        return replace(self, middles=middles)


def drawn(animals: IntArray, *, most: int = CROWD, seed: int = 0) -> IntArray:
    """Rows that make up a crowd, ascending: at random, named photos only (`animals (N,)`, −1 nobody knows), at most
    `EACH` of an animal, at most `most`.
    """
    order = np.random.default_rng([seed, 31]).permutation(np.flatnonzero(animals >= 0))
    by_animal = order[np.argsort(animals[order], kind="stable")]
    codes = animals[by_animal]
    turn = np.arange(len(codes)) - np.searchsorted(codes, codes)  # which photo of its animal it is
    some = by_animal[turn < EACH]
    return np.sort(order[np.isin(order, some)][:most])


def around(rows: NDArray[np.float32], animals: IntArray, kinds: IntArray, crowd: Crowd) -> Crowding:
    """The crowd's nearest photos of other animals and the same kind to each of the unit `rows (N, d)`."""
    width = min(NEAR + EACH, len(crowd.rows))
    if not width:
        return Crowding.none(len(rows))
    cosines = np.full((len(rows), width), -np.inf, np.float32)
    codes = np.full((len(rows), width), -1, np.int64)
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        found = rows[part] @ crowd.rows.T
        found[(animals[part, None] == crowd.animals) | (kinds[part, None] != crowd.kinds)] = -np.inf
        some = np.argpartition(found, -width, axis=1)[:, -width:]
        order = np.argsort(-np.take_along_axis(found, some, axis=1), axis=1, kind="stable")
        near = np.take_along_axis(some, order, axis=1)
        cosines[part], codes[part] = np.take_along_axis(found, near, axis=1), crowd.animals[near]
    return Crowding(cosines, codes, np.zeros(len(rows)))


class Crowds:
    """The crowding of photos of an index, looked up at first need and kept.

    `members` are the photos of the crowd that a fit drew, by species, and `middles` what photos of each have on average;
    `owners` names the animal of each photo that has one now. Members that are out of service or nobody's any more are
    passed over.
    """

    def __init__(
        self,
        gallery: Gallery,
        members: Mapping[str, Sequence[int]],
        middles: Mapping[str, float],
        owners: Mapping[str, str],
    ) -> None:
        self._gallery = gallery
        named = {str(photo): kind for kind, photos in members.items() for photo in photos if str(photo) in owners}
        there = gallery.holds(list(named))
        self._members = {id: kind for (id, kind), held in zip(named.items(), there.tolist(), strict=True) if held}
        self._owners = owners
        self._middles = middles
        self._codes = {kind: code for code, kind in enumerate(sorted(members))}
        self._crowd: Crowd | None = None
        self._kept: dict[str, float] = {}

    def of(self, ids: Sequence[str], kinds: Sequence[str]) -> Floats:
        """What cosines with these photos, all of them in the index and of these species, are lowered by, `(n,)`."""
        missing = {id: kind for id, kind in zip(ids, kinds, strict=True) if id not in self._kept}
        if missing:
            species = np.array([self._codes.get(kind, -1) for kind in missing.values()], np.int64)
            found = around(self._gallery.vectors(list(missing)), self._animals(missing), species, self._gathered())
            middles = np.array([self._middles.get(kind, 0.0) for kind in missing.values()])
            relief = replace(found, middles=middles).relief()
            self._kept.update(zip(missing, relief.tolist(), strict=True))
        return np.array([self._kept[id] for id in ids], np.float64)

    def _gathered(self) -> Crowd:
        if self._crowd is None:
            kinds = np.array([self._codes[kind] for kind in self._members.values()], np.int64)
            self._crowd = Crowd(self._gallery.vectors(list(self._members)), self._animals(self._members), kinds)
        return self._crowd

    def _animals(self, ids: Mapping[str, str]) -> IntArray:
        """Codes of their animals, −1 where nobody knows."""
        return np.array([int(self._owners.get(id, -1)) for id in ids], np.int64)
