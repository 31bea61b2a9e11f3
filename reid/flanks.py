"""Which photos of the opposite flank a query is not compared with.

Left and right of an animal look different, and what they share is often the background. Whether they are compared is said
for a species (`[gallery.opposite_sides_of]`), else for the store, else by its fit. Knows stores; measures nothing.
"""

from __future__ import annotations

from typing import Literal

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
