"""Tables in the wildlife-datasets style, and those near enough: one row per animal in a photo.

`path` and `identity` are required (`image_id` too in that library; nothing here needs it). Read besides: `bbox` as
[x, y, w, h] or as four columns, `date`, `orientation`, `species`, `encounter` (or `video`), `latitude`, `longitude`,
and `original_width`, `original_height` where the files were scaled after the boxes were drawn. Keypoints,
segmentations and all other columns are not used, and a note says which. Reference: wildlife-datasets,
`datasets.WildlifeDataset`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from reid.errors import PhotoError, TableError
from reid.exchange.gather import Gathering, known_name
from reid.exchange.tables import (
    PhotoFinder,
    Table,
    box_of,
    date_of,
    degrees_of,
    missing_columns,
    open_table,
    side_of,
    text_of,
)
from reid.images import printable
from reid.masks import mask_of
from reid.records import Box, Sighting

EXPECTED = "path and identity, or Image and Id"


@dataclass(frozen=True, slots=True)
class Dialect:
    """Which column may bear which name, the first that is there wins. Names are compared in lower case."""

    name: str
    path: tuple[str, ...]
    identity: tuple[str, ...]
    ignored: frozenset[str] = field(default_factory=frozenset)


WILDLIFE = Dialect(
    "wildlife_csv",
    ("path", "file_path", "filepath", "filename", "file_name", "file", "photo"),
    ("identity", "individual", "individual_id", "individualid", "name"),
    frozenset({"image_id", "id", "identity_id", "split"}),
)
_BOXES = (
    (("bbox",), False),
    (("bbox_x", "bbox_y", "bbox_w", "bbox_h"), False),
    (("bbox_x", "bbox_y", "bbox_width", "bbox_height"), False),
    (("x", "y", "w", "h"), False),
    (("x0", "y0", "x1", "y1"), True),
    (("xmin", "ymin", "xmax", "ymax"), True),
    (("x_min", "y_min", "x_max", "y_max"), True),
)
_ENCOUNTER = ("encounter", "encounter_id", "encounterid", "sighting_id", "video")
_LATITUDE = ("latitude", "lat", "decimallatitude")
_LONGITUDE = ("longitude", "lon", "lng", "decimallongitude")
_DATE = ("date", "datetime", "timestamp", "taken_at")
_SIDE = ("orientation", "side", "viewpoint")
_SIZE = (("original_width", "original_height"), ("width", "height"))


def matches(columns: Sequence[str], dialect: Dialect = WILDLIFE) -> bool:
    """Whether a table's header has what this dialect requires."""
    lower = {column.lower() for column in columns}
    return any(name in lower for name in dialect.path) and any(name in lower for name in dialect.identity)


def read_wildlife_csv(path: Path, gathering: Gathering, *, bases: Sequence[Path] = ()) -> None:
    """Read one table into `gathering`; photos are looked for below `bases`, then beside the table.

    Raises TableError where the table as a whole cannot be used; a row's problem is put down and the next row read.
    """
    with open_table(path) as table:
        read_rows(table, gathering, WILDLIFE, PhotoFinder([*bases, path.parent]), source=printable(path))


def read_rows(table: Table, gathering: Gathering, dialect: Dialect, finder: PhotoFinder, *, source: str) -> None:
    """The rows of an open table in a dialect. `source` names the table in an error about all of it."""
    if not matches(table.columns, dialect):
        raise missing_columns(source, table.columns, EXPECTED)
    columns = _columns(table, dialect, gathering)
    width = max(columns.values()) + 1 if columns else 0
    box_names, as_corners = next(((names, c) for names, c in _BOXES if names[0] in columns), ((), False))
    box_cells = _cells([columns[name] for name in box_names])
    missing = rows = 0
    for entry in table.rows:
        if isinstance(entry, TableError):
            gathering.fail(entry)
            continue
        number, cells = entry
        rows += 1
        if len(cells) < width:
            cells = cells + [""] * (width - len(cells))
        photo = finder.find(cells[columns["path"]])
        if photo is None:
            missing += 1
            cell = cells[columns["path"]]
            gathering.no_photo(_no_photo(table.where(number), cell), finder.meant(cell))
            continue
        try:
            box = box_of(box_cells(cells), as_corners) if box_names else None
        except ValueError as error:
            step = "write it as [x, y, width, height] in pixels, or leave it empty"
            gathering.fail(TableError(str(error), source=table.where(number), next_step=step))
            if not gathering.keep_boxless:
                continue
            box = None
        gathering.sightings.append(_sighting(table.where(number), photo, box, cells, columns, gathering, finder))
    if not rows:
        step = "add a row for each photo"
        gathering.fail(TableError("has a header and no rows", source=source, next_step=step))
    if rows and missing == rows:
        gathering.notes.append(
            f"{table.name}: none of its photos was found; tell where they lie (--root), or put the table beside them"
        )


def _columns(table: Table, dialect: Dialect, gathering: Gathering) -> dict[str, int]:
    """What is read → its column's place; the others are named in a note."""
    at = {name.lower(): i for i, name in reversed(list(enumerate(table.columns)))}
    wanted: dict[str, tuple[str, ...]] = {
        "path": dialect.path,
        "identity": dialect.identity,
        "date": _DATE,
        "side": _SIDE,
        "species": ("species",),
        "encounter": _ENCOUNTER,
        "latitude": _LATITUDE,
        "longitude": _LONGITUDE,
        "segmentation": ("segmentation", "mask", "mask_path"),
    }
    columns = {key: at[name] for key, names in wanted.items() for name in reversed(names) if name in at}
    boxes = next((names for names, _ in _BOXES if all(name in at for name in names)), ())
    columns.update({name: at[name] for name in boxes})
    size = next((names for names in _SIZE if all(name in at for name in names)), None)
    if size:
        columns.update({"declared_width": at[size[0]], "declared_height": at[size[1]]})
    used = set(columns.values()) | {at[name] for name in dialect.ignored if name in at}
    unused = [name for i, name in enumerate(table.columns) if i not in used and name]
    if unused:
        gathering.notes.append(f"{table.name}: not used: {', '.join(unused)}")
    return columns


def _cells(places: list[int]) -> Callable[[Sequence[str]], Sequence[str]]:
    """A fast way to pick cells by place; always gives a sequence."""
    if not places:
        return lambda cells: ()
    if len(places) == 1:
        return lambda cells: (cells[places[0]],)
    picker: Any = itemgetter(*places)
    return picker  # type: ignore[no-any-return]


def _sighting(
    where: str,
    photo: Path,
    box: Box | None,
    cells: Sequence[str],
    columns: dict[str, int],
    gathering: Gathering,
    finder: PhotoFinder,
) -> Sighting:
    """One good row; cells nobody understands are counted and left out."""

    said = {key: text_of(cells[place]) for key, place in columns.items() if cells[place]}
    date = declared = None
    if "date" in said:
        date = date_of(said["date"])
        if date is None and said["date"] != "nan":
            gathering.odd("dates not understood, left out", f"{where}: {said['date']!r}")
    side = side_of(said["side"]) if "side" in said else "unknown"
    if side is None:
        gathering.odd("sides not known, taken as unknown", f"{where}: {said['side']!r}")
    latitude = longitude = None
    if "latitude" in said or "longitude" in said:
        latitude, longitude = degrees_of(said.get("latitude", ""), 90.0), degrees_of(said.get("longitude", ""), 180.0)
        if latitude is None or longitude is None:
            place = f"{said.get('latitude', '')!r}, {said.get('longitude', '')!r}"
            if place != "'nan', 'nan'":
                gathering.odd("places not understood, left out", f"{where}: {place}")
            latitude = longitude = None
    if "declared_width" in said:
        declared = _size(said["declared_width"], said.get("declared_height", ""))
        if declared is None and said["declared_width"] != "nan":
            gathering.odd("original sizes not understood, left out", where)
    mask = None
    try:
        mask = mask_of(said.get("segmentation", ""), finder.find)
    except ValueError as error:
        gathering.odd("segmentations not understood, left out", f"{where}: {printable(str(error))}")
    return Sighting(
        path=photo,
        where=where,
        identity=known_name(said.get("identity", "")),
        box=box,
        encounter=said.get("encounter") or None,
        side=side or "unknown",
        species=said.get("species") or None,
        taken_at=date,
        latitude=latitude,
        longitude=longitude,
        declared_size=declared,
        mask=mask,
    )


def _size(width: str, height: str) -> tuple[int, int] | None:
    try:
        size = (round(float(width)), round(float(height)))
    except (ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def _no_photo(where: str, cell: str) -> PhotoError:
    name = printable(cell.strip())
    step = "correct the path, or tell where the photos lie (--root)" if name else "fill the cell or delete the row"
    return PhotoError(f"there is no photo '{name}'" if name else "names no photo", source=where, next_step=step)
