"""What to know before an answer is believed: that the whole photo was looked at, or that nothing was measured yet.

Each caveat is one line with its next step. Knows what was looked at and what the last fit rests on; searches nothing
and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reid.fit import Fit
from reid.records import Box
from reid.store import Store
from reid.withheld import LEAST_ANIMALS, LEAST_PHOTOS

MOSTLY = 0.5  # share of a store's newest boxes that are cut out of their photos, from which a whole photo is odd
NAMED = 3  # photos named in a line


def whole_photo(photos: Sequence[str], boxes: Sequence[Box], cropped: bool, cut: int, of: int) -> str:
    """Said where the whole of some `photos` was looked at, while `cut` of the store's newest `of` boxes show a part of
    their photo only; empty where there is nothing to say. `boxes` one a photo; `cropped` says that a cropper looked.
    """
    whole = [Path(p).name for p, box in zip(photos, boxes, strict=True) if box.origin == "whole"]
    if not whole or not of or cut < MOSTLY * of:
        return ""
    names = ", ".join(whole[:NAMED]) + (f" and {len(whole) - NAMED} more" if len(whole) > NAMED else "")
    why = "the cropper found no animal for sure" if cropped else "no box was given and the store has no cropper"
    step = "give --box x0,y0,x1,y1"
    if not cropped:
        step += ", or name a cropper (model under [crop] in reid.toml; for a new store: reid init --cropper)"
    return f"looked at the whole photo ({names}): {why}, but {cut} of {of} boxes in this store are cut out; {step}"


def cut_out(store: Store) -> tuple[int, int]:
    """How many of the store's newest boxes show a part of their photo only, and how many these are."""
    return store.catalogue.cut_out()


def unmeasured(found: Fit | None) -> str:
    """Said where the threshold, or P, was not measured on the store's own photos; empty where both were.

    Whoever adds what is `missing` and runs `reid reindex` has it measured.
    """
    if found is None:
        return "nothing was measured on this store yet, so P is not known: run reid reindex"
    if found.basis == "measured":
        return ""
    if found.basis == "unknowns":
        return f"how known animals score was not measured, so P is not known: {missing(found)}, then reid reindex"
    return (
        "nothing was measured on this store yet: match and new go by a general threshold, and P is not known; "
        f"{missing(found)}, then reid reindex"
    )


def aged(reason: str) -> str:
    """Said where promised rates may no longer hold, for a reason of `recent.drift`."""
    return f"the promised error rates may no longer hold: {reason}; reid reindex --force measures them again"


def missing(found: Fit) -> str:
    """`name 60 more photos and 8 more animals`: what the last fit lacked."""
    photos = LEAST_PHOTOS - int(found.report.get("gallery_photos", 0))
    animals = LEAST_ANIMALS - int(found.report.get("gallery_animals", 0))
    twice = LEAST_ANIMALS - int(found.report.get("gallery_animals_twice", 0))
    if found.basis == "unknowns" and photos <= 0 and twice > 0:
        return f"add a second sighting of {twice} more animal{'s' if twice > 1 else ''}"
    parts = [
        f"{n} more {what}{'s' if n > 1 else ''}" for n, what in ((photos, "photo"), (animals, "named animal")) if n > 0
    ]
    return f"enrol {' and '.join(parts) or 'more named photos'}"
