"""The contact sheet of an answer: each query photo beside the best gallery photo of each candidate.

Reads the photos that an answer names; draws with `reid.explain`.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from reid import images
from reid.errors import ReidError
from reid.explain import MATCH, NEW, OTHER, Tile, contact_sheet
from reid.records import Answer, Box, IdentityScore
from reid.store import Store

SIDE = 640  # pixels decoded of a photo's long side


def write_sheet(store: Store, answer: Answer, target: Path) -> Path:
    """Draw `answer` into the picture file `target` (PNG or JPEG by its name).

    Raises:
        OSError: it cannot be written.
    """
    queries = [_tile(Path(p), "query", (Path(p).name,)) for p in answer.photos[:5]]
    candidates = [_candidate(store, rank, label) for rank, label in enumerate(answer.labels, 1)]
    photos, animals = answer.compared.photos, answer.compared.identities
    heading = (
        {
            "match": f"match: {answer.labels[0].label}",
            "new": "a new individual",
            "review": "for a person to review",
        }.get(answer.status, answer.status)
        if answer.labels
        else answer.status
    )
    footer = f"compared with {photos} photos of {animals} individuals · model {answer.model}"
    picture = contact_sheet(queries, candidates, heading=heading, footer=footer)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(target)
    return target


def _candidate(store: Store, rank: int, label: IdentityScore) -> Tile:
    chance = "" if label.probability is None else f" · P {label.probability:.0%}"
    if label.is_new:
        return Tile(f"{rank}. {label.label}", (f"none of the known ones{chance}",), colour=NEW)
    lines = (
        f"score {label.score:.3f}{chance} · {label.n_photos} photo{'s' if label.n_photos != 1 else ''}",
        Path(label.photo or "").name,
    )
    box, path = None, Path(label.photo or "")
    if label.annotation is not None:
        info = store.catalogue.annotations([int(label.annotation)]).get(int(label.annotation))
        if info is not None:
            box, path = None if info.box.origin == "whole" else info.box, store.resolve(info.path)
    return _tile(path, f"{rank}. {label.label}", lines, MATCH if rank == 1 else OTHER, box)


def _tile(
    path: Path, title: str, lines: tuple[str, ...], colour: tuple[int, int, int] = OTHER, box: Box | None = None
) -> Tile:
    """A photo on the sheet; one that has gone since leaves its frame empty and says so."""
    try:
        decoded = images.read(path, target=SIDE)
    except ReidError as error:
        return Tile(title, (*lines[:1], error.message), colour=colour)
    return Tile(title, lines, decoded.pixels, decoded.to_decoded(box) if box else None, colour)
