"""Photos and what is known of them, from the forms people have them in → one list of sightings.

Folders, one folder per animal, globs, single photos, wildlife-datasets and Kaggle tables, MegaDetector and COCO JSON:
one module each; this one tells them apart and puts names to photos. Nothing here opens a photo beyond its first
bytes, so that a million rows can be listed; what needs the photo's size is a function to be called once it is open
(`fit_box`).
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reid.errors import InputError, ReidError, TableError
from reid.exchange import coco, kaggle, megadetector, wildlife_csv
from reid.exchange.folders import Layout, read_folder
from reid.exchange.gather import REMOVED, Gathering, SightingList, failure_of
from reid.exchange.tables import missing_columns, open_table
from reid.images import printable
from reid.records import Box, Sighting

__all__ = ["Layout", "SightingList", "failure_of", "fit_box", "read_sources", "read_table"]

_TABLES = (".csv", ".tsv", ".json")
_LEAST = 2.0  # pixels a side; what is left of a box below that shows nothing


def read_sources(
    sources: Sequence[str | Path],
    *,
    table: Path | None = None,
    root: Path | None = None,
    layout: Layout = "auto",
    keep_boxless: bool = False,
    removed: Collection[str] = (),
) -> SightingList:
    """List the sightings in folders, globs, photos and tables; never ends for one bad row, file or source.

    `table` gives names, boxes and dates to the photos of `sources` (to its own photos where there are no sources).
    `root` is where paths in tables start; else the table's own folder. `layout` says whether a folder holds one
    folder per animal (`folders`), no names (`flat`), or is to be looked at (`auto`). A row whose box is nonsense is
    left out and reported; with `keep_boxless` it is reported, and its photo stays without a box. Photos at the absolute
    paths `removed` were taken out by somebody: they are passed by with a note, unless one is itself a source. Rows are named
    `labels.csv row 12`, counted as a spreadsheet counts them. Raises TableError for a `table`, or a table among the
    sources, that cannot be read at all.
    """
    named = {os.path.abspath(one) for one in (*sources, *([table] if table else []))}
    gathering = Gathering(keep_boxless, removed, named)
    formats = [_read_source(source, gathering, root, layout) for source in sources]
    if table is not None:
        bases = [Path(s) for s in sources if os.path.isdir(s)]
        names = Gathering(keep_boxless, removed)
        formats.append(read_table(Path(table), names, bases=[*([root] if root else []), *bases]))
        if sources:
            names.sightings = _joined(gathering.sightings, names, printable(Path(table).name))
        gathering.sightings = names.sightings
        gathering.failures += names.failures
        gathering.notes += names.notes
        gathering.take_odd(names)
    _pass_by(gathering, {os.path.abspath(s) for s in sources})
    return gathering.finish("+".join(dict.fromkeys(formats)) or "empty")


def read_table(path: Path, gathering: Gathering, *, bases: Sequence[Path] = ()) -> str:
    """Read one CSV or JSON of any known kind into `gathering`; returns the name of its format. Raises TableError."""
    if path.suffix.lower() == ".json":
        document = _json(path)
        if megadetector.matches(document):
            megadetector.read_megadetector(document, path, gathering, bases=bases)
            return "megadetector"
        if coco.matches(document):
            coco.read_coco(document, path, gathering, bases=bases)
            return "coco"
        raise TableError(
            "is neither COCO (images, annotations) nor a detector's output (images, detection_categories)",
            source=printable(path),
            next_step="give one of these, or a CSV with path and identity",
        )
    with open_table(path) as table:
        columns = table.columns
    if wildlife_csv.matches(columns):
        wildlife_csv.read_wildlife_csv(path, gathering, bases=bases)
        return wildlife_csv.WILDLIFE.name
    if kaggle.matches(columns):
        kaggle.read_kaggle(path, gathering, bases=bases)
        return kaggle.KAGGLE.name
    raise missing_columns(printable(path), columns, wildlife_csv.EXPECTED)


def fit_box(box: Box, width: int, height: int, where: str, declared: tuple[int, int] | None = None) -> Box:
    """A table's box in pixels of the upright photo of `width` × `height`, clipped to it.

    `declared` is the size the box was drawn on (`Sighting.declared_size`): where the file was scaled or squashed
    since, the box is scaled with it, each axis by itself. Raises TableError, naming `where`, for a box that lies
    outside the photo, or that was drawn on the photo before it was turned upright.
    """
    x, y = 1.0, 1.0
    if declared is not None:
        if declared == (height, width) != (width, height):
            raise TableError(
                f"its box was drawn on {declared[0]}×{declared[1]} pixels, before the photo was turned upright",
                source=where,
                next_step="draw it on the upright photo, or leave it empty",
            )
        x, y = width / declared[0], height / declared[1]
    corners = (box.x0 * x, box.y0 * y, box.x1 * x, box.y1 * y)
    x0, x1 = max(corners[0], 0.0), min(corners[2], float(width))
    y0, y1 = max(corners[1], 0.0), min(corners[3], float(height))
    if x1 - x0 < _LEAST or y1 - y0 < _LEAST:
        drawn = ", ".join(f"{value:g}" for value in (box.x0, box.y0, box.x1, box.y1))
        lies = "outside" if x1 <= x0 or y1 <= y0 else "on less than two pixels of"
        hint = "is it given in fractions?" if max(box.x1, box.y1) <= 1.0 else "was the photo scaled or cropped since?"
        raise TableError(
            f"its box ({drawn}) lies {lies} the photo of {width}×{height}",
            source=where,
            next_step=f"give it as [x, y, width, height] in pixels of this file, or leave it empty ({hint})",
        )
    return Box(x0, y0, x1, y1, box.confidence, box.origin)


def _read_source(source: str | Path, gathering: Gathering, root: Path | None, layout: Layout) -> str:
    """One source into `gathering`; returns the name of what it was."""
    path = Path(source)
    bases = [root] if root else []
    if path.is_dir():
        return "folders" if read_folder(path, gathering, layout) == "folders" else "photos"
    if path.suffix.lower() in _TABLES and path.exists():
        return read_table(path, gathering, bases=bases)
    if not os.path.lexists(path) and glob.has_magic(str(source)):
        found = sorted(glob.glob(str(source), recursive=True))
        if not found:
            gathering.fail(_nothing(source, "no file matches this pattern"))
        formats = [_read_source(Path(name), gathering, root, layout) for name in found]
        return "+".join(dict.fromkeys(formats)) or "photos"
    if not path.exists():
        gathering.fail(_nothing(source, "does not exist"))
        return "photos"
    gathering.sightings.append(Sighting(path=path, where=printable(path)))
    return "photos"


def _pass_by(gathering: Gathering, named: set[str]) -> None:
    """Leave out what somebody removed, unless the photo itself was `named`."""
    kept = []
    for sighting in gathering.sightings:
        path = os.path.abspath(sighting.path) if gathering.removed else ""
        if path in gathering.removed and path not in named:
            gathering.odd(REMOVED, sighting.where)
        else:
            kept.append(sighting)
    gathering.sightings = kept


def _nothing(source: str | Path, message: str) -> ReidError:
    return InputError(message, source=printable(source), next_step="check the path, or that the disk is connected")


def _joined(photos: Sequence[Sighting], table: Gathering, name: str) -> list[Sighting]:
    """Photos with what the table's rows say of them; what a row leaves open, the photo's own source may say."""
    rows: dict[str, list[Sighting]] = {}
    for row in table.sightings:
        rows.setdefault(os.path.realpath(row.path), []).append(row)
    joined: list[Sighting] = []
    for photo in photos:
        found = rows.pop(os.path.realpath(photo.path), [])
        if not found:
            table.odd(f"photos {name} does not mention", photo.where)
            joined.append(photo)
            continue
        if photo.identity is not None and len(found) > 1 and not any(row.identity for row in found):
            # the folder names one animal, a detector saw several: the clearest is taken to be it
            table.odd("named photos with several boxes, the most confident was used", photo.where)
            found = [max(found, key=lambda row: row.box.confidence if row.box else 0.0)]
        for row in found:
            joined.append(replace(row, path=photo.path, identity=row.identity or photo.identity))
    if rows:
        example = next(iter(rows.values()))[0].where
        for _ in rows:
            table.odd("rows whose photos are not among the sources, passed by", example)
    return joined


def _json(path: Path) -> Any:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TableError(
            f"is no readable JSON ({reason})", source=printable(path), next_step="write it anew"
        ) from error
