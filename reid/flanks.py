"""Which photos of the opposite flank a query is not compared with.

Left and right of an animal look different, and what they share is often the background. Whether they are compared is said
for a species (`[gallery.opposite_sides_of]`), else for the store, else by its fit. Knows stores; measures nothing.
"""

from __future__ import annotations

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


def flank_of(store: Store, sides: Sides) -> dict[int, Side]:
    """The flank of each annotation that those of the opposite one are not compared with."""
    return {id: side for side, other in OPPOSITE.items() for id in barred(store, other, sides)}


def grouped(store: Store, labels: Labels, sides: Sides) -> NDArray[np.int64]:
    """A code `(N,)` for what of each animal is compared as one: all of it, or a flank of it; −1 where nobody knows it."""
    codes = labels.individuals * (1 + len(OPPOSITE))
    for number, other in enumerate(OPPOSITE.values(), 1):
        codes += number * np.isin(labels.annotations, barred(store, other, sides))
    return np.where(labels.individuals < 0, -1, codes)
