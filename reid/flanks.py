"""Which photos of the opposite flank a query is not compared with.

Left and right of an animal look different, and what they share is often the background. Whether they are compared is said
for a species (`[gallery.opposite_sides_of]`), else for the store, else by its fit. Knows stores; measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reid.catalogue import Labels
from reid.records import Side
from reid.store import Store

Sides = Literal["separate", "together"]
OPPOSITE: dict[Side, Side] = {"left": "right", "right": "left"}


def barred(store: Store, side: Side, sides: Sides) -> list[int]:
    """The annotations that one of this flank is not compared with, where species of which nothing is said are compared
    as `sides` has it.
    """
    if side not in OPPOSITE:
        return []
    opposite, said = [OPPOSITE[side]], store.config.gallery.opposite_sides_of
    apart = [species for species, wanted in said.items() if wanted == "never"]
    joined = [species for species, wanted in said.items() if wanted == "always"]
    if sides == "together":
        return store.catalogue.annotations_of(sides=opposite, species=apart) if apart else []
    free = set(store.catalogue.annotations_of(sides=opposite, species=joined)) if joined else set()
    return [id for id in store.catalogue.annotations_of(sides=opposite) if id not in free]


def apart(store: Store, sides: Sides) -> Callable[[str | None], bool]:
    """Whether opposite flanks of a species are not compared."""
    said = store.config.gallery.opposite_sides_of
    return lambda species: said.get(species or "", "never" if sides == "separate" else "always") == "never"


def grouped(store: Store, labels: Labels, sides: Sides) -> NDArray[np.int64]:
    """A code `(N,)` for what of each animal is compared as one: all of it, or a flank of it; −1 where nobody knows it."""
    codes, said, keeps = labels.individuals * (1 + len(OPPOSITE)), store.catalogue.species(), apart(store, sides)
    split = np.array([keeps(said.get(id)) for id in labels.annotations.tolist()], np.bool_)
    for number, side in enumerate(OPPOSITE, 1):
        codes[split & np.isin(labels.annotations, store.catalogue.annotations_of(sides=[side]))] += number
    return np.where(labels.individuals < 0, -1, codes)
