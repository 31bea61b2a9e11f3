"""Out again: the catalogue as a wildlife-datasets CSV, and what that format cannot hold."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

from reid import local, masks
from reid.errors import InputError
from reid.images import printable
from reid.store import Store, replacing

COLUMNS = (
    "image_id",
    "identity",
    "path",
    "bbox",
    "date",
    "orientation",
    "species",
    "encounter",
    "latitude",
    "longitude",
    "photo_sha256",
)
MASKED = (*COLUMNS, "segmentation")
"""Columns where the store has masks: COCO's run lengths."""


@dataclass(frozen=True, slots=True)
class Exported:
    """How many rows were written, and in words what the table does not hold."""

    rows: int
    lost: tuple[str, ...]


def write_wildlife_csv(store: Store, target: Path) -> Exported:
    """One row an annotation in service; `unknown` where nobody has said whose it is. Written aside and renamed.

    Raises:
        InputError: `target` cannot be written.
    """
    catalogue = store.catalogue
    ids = catalogue.labels().annotations.tolist()
    try:
        with replacing(target) as raw:
            file = io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape", newline="")
            writer = csv.writer(file)
            writer.writerow(MASKED if (store.root / local.MASKS).is_dir() else COLUMNS)
            for at in range(0, len(ids), 1000):
                _write(store, writer, ids[at : at + 1000])
            file.detach()  # flushes; the file is closed by who opened it
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror})", source=printable(target), next_step="name another file"
        ) from error
    counts = catalogue.counts()
    lost = [f"the log of {counts.events} identity events (the present names are written)"]
    if counts.bare:
        lost.append(f"{counts.bare} photos without an animal")
    if grouped := _grouped(store, ids):
        lost.append(f"{grouped} encounters that were grouped by time and place (whoever reads the table groups anew)")
    if aliases := sum(len(i.aliases) for i in catalogue.individuals()):
        lost.append(f"{aliases} former names and aliases")
    return Exported(len(ids), tuple(lost))


def _grouped(store: Store, ids: list[int]) -> int:
    """Encounters that nobody gave a key."""
    met = set(store.catalogue.labels().encounters.tolist()) - {-1} if ids else set()
    return sum(key is None for key in store.catalogue.encounter_keys(met).values())


def _write(store: Store, writer: object, ids: list[int]) -> None:
    infos = store.catalogue.annotations(ids)
    photos = store.catalogue.photos({i.photo for i in infos.values()})
    keys = store.catalogue.encounter_keys({i.encounter for i in infos.values() if i.encounter is not None})
    kept = local.masks_of(store)
    for info in infos.values():
        photo = photos[info.photo]
        drawn = kept.get(photo.sha256, local.key_of(info.box))
        box = [round(v, 2) for v in (info.box.x0, info.box.y0, info.box.width, info.box.height)]
        writer.writerow(  # type: ignore[attr-defined]
            (
                info.id,
                info.identity or "unknown",
                os.fspath(store.resolve(info.path)),
                json.dumps(box) if info.box.origin != "whole" else "",
                f"{photo.taken_at:%Y-%m-%d %H:%M:%S}" if photo.taken_at else "",
                info.side,
                info.species or "",
                (keys.get(info.encounter) or "") if info.encounter is not None else "",
                photo.latitude if photo.latitude is not None else "",
                photo.longitude if photo.longitude is not None else "",
                photo.sha256,
                *([masks.spelled(drawn) if drawn is not None else ""] if kept.root.is_dir() else []),
            )
        )
