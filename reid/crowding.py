"""How crowded the place is where each photo of a gallery stands, and cosines with that taken off.

Some photos look like many others (dark, blurred, all sky) and come up wherever anything is asked; in many dimensions
there are always such hubs (Radovanović et al. 2010, JMLR). So a candidate's cosine is lowered by half of its *crowding*,
the mean cosine to its ten nearest photos of other animals, and raised by half of what the gallery's photos have on
average, so that scores keep their scale. The order is that of cross-domain similarity local scaling (Conneau et al.
2018, ICLR), whose ten neighbours these are; its other term is the query's own and the same for all candidates.

Knows arrays and the gallery's index; what it gives is in docs/results.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.index import Gallery

NEAR = 10
SHARE = 0.5
_BLOCK = 512  # rows compared with all others at a time

Floats = NDArray[np.float64]


def crowding(rows: NDArray[np.float32], individuals: NDArray[np.int64]) -> Floats:
    """Of unit `rows (N, d)` with codes of their animals `(N,)` (−1 nobody knows) each one's mean cosine to the `NEAR`
    nearest of other animals, `(N,)`: of fewer where there are fewer, NaN where there is none.
    """
    out = np.full(len(rows), np.nan)
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        cosines = rows[part] @ rows.T
        own = (individuals[part, None] == individuals) & (individuals >= 0)
        own[np.arange(len(own)), start + np.arange(len(own))] = True
        cosines[own] = -np.inf
        near = np.partition(cosines, -min(NEAR, len(rows)), axis=1)[:, -NEAR:].astype(np.float64)
        there = np.isfinite(near)
        counts = there.sum(axis=1)
        sums = np.where(there, near, 0.0).sum(axis=1)
        out[part] = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return out


def middle(crowded: ArrayLike) -> float:
    """The mean of what there is; 0 where nothing is."""
    values = np.asarray(crowded, np.float64)
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else 0.0


def taken_off(crowded: ArrayLike, middle: float) -> Floats:
    """What the cosines of photos with this crowding are lowered by; 0 where nothing is known."""
    values = np.asarray(crowded, np.float64)
    return np.where(np.isfinite(values), SHARE * (values - middle), 0.0)


class Crowds:
    """The crowding of photos of an index, looked up at first need and kept. `owners` names the animal of each photo that
    has one.
    """

    def __init__(self, gallery: Gallery, owners: Mapping[str, str]) -> None:
        self._gallery = gallery
        self._owners = owners
        self._herds: dict[str, set[str]] | None = None
        self._kept: dict[str, float] = {}

    def of(self, ids: Sequence[str]) -> Floats:
        """`(n,)` of these photos, all of them in the index; as `crowding` of all its rows."""
        missing = [id for id in dict.fromkeys(ids) if id not in self._kept]
        if missing:
            own = [self._herd(id) | {id} for id in missing]
            found = self._gallery.search(self._gallery.vectors(missing), NEAR, exclude=own)
            for id, near in zip(missing, found, strict=True):
                self._kept[id] = float(np.mean(near.scores)) if near.scores else float("nan")
        return np.array([self._kept[id] for id in ids], np.float64)

    def _herd(self, id: str) -> set[str]:
        """All photos of its animal; none where nobody knows it."""
        if self._herds is None:
            self._herds = {}
            for photo, animal in self._owners.items():
                self._herds.setdefault(animal, set()).add(photo)
        return self._herds.get(self._owners.get(id, ""), set())
