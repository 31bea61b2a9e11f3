"""Tables as people have them: delimiters, encodings, spreadsheet row numbers, cells, and the files they mean.

Rows stream: a million of them need no more memory than what is kept. Knows CSV and paths; which column means what,
its callers know.
"""

from __future__ import annotations

import csv
import math
import os
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

from reid.errors import TableError
from reid.exif import parse_date
from reid.images import printable
from reid.records import Box, Side

_SUBFOLDERS = ("photos", "images", "train", "train_images", "test", "test_images")
_SIDES: dict[str, Side] = {
    **dict.fromkeys(("left", "l", "left side", "port"), "left"),
    **dict.fromkeys(("right", "r", "right side", "starboard"), "right"),
    **dict.fromkeys(("front", "f", "frontal", "face"), "front"),
    **dict.fromkeys(("back", "b", "behind", "rear"), "back"),
    **dict.fromkeys(("top", "up", "above", "dorsal"), "top"),
    **dict.fromkeys(("bottom", "down", "below", "ventral"), "bottom"),
    **dict.fromkeys(("", "unknown", "nan"), "unknown"),
}


@dataclass(frozen=True, slots=True)
class Table:
    """An open table: `columns` as its header spells them; `rows` gives (row number as in a spreadsheet, cells)."""

    name: str
    columns: tuple[str, ...]
    rows: Iterator[tuple[int, list[str]] | TableError]

    def where(self, row: int) -> str:
        """How a report names a row: `labels.csv row 12`, the header being row 1."""
        return f"{self.name} row {row}"


@contextmanager
def open_table(path: Path) -> Iterator[Table]:
    """Open a CSV, TSV or semicolon table. Raises TableError: unreadable, empty, no text.

    Rows that cannot be split come as a TableError in their place. Bytes that are not UTF-8 are kept
    (surrogateescape), for a file name may consist of them; `text_of` makes words of such cells.
    """
    name = printable(path.name)
    try:
        with open(path, "rb") as raw:
            head = raw.read(65_536)
        file = open(path, encoding=_encoding(head), errors="surrogateescape", newline="")  # noqa: SIM115
    except OSError as error:
        raise TableError(
            f"cannot be read ({error.strerror or error})",
            source=printable(path),
            next_step="check the path and the rights",
        ) from error
    with file:
        if not head.strip():
            raise TableError("is empty", source=printable(path), next_step="write a header row and one row per photo")
        if b"\0" in head[:4096] and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
            hint = "save the spreadsheet as CSV" if head.startswith(b"PK") else "give a CSV file"
            raise TableError("is not a text table", source=printable(path), next_step=hint)
        if head.startswith(b"PK\x03\x04"):
            raise TableError("is a spreadsheet, not CSV", source=printable(path), next_step="save it as CSV")
        rows = _rows(file, name)
        header = next(rows, None)
        if header is None or isinstance(header, TableError):
            raise header or TableError(
                "has no header row", source=name, next_step="write the names of the columns first"
            )
        yield Table(name, tuple(text_of(cell) for cell in header[1]), rows)


def _encoding(head: bytes) -> str:
    return "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"


def _rows(file: TextIO, name: str) -> Iterator[tuple[int, list[str]] | TableError]:
    first = file.readline()
    file.seek(0)
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(file, delimiter=delimiter)
    row = 0
    while True:
        row += 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except (csv.Error, UnicodeError) as error:
            yield TableError(
                f"cannot be split into cells ({error})",
                source=f"{name} row {row}",
                next_step="correct its quotes, or drop the column with very long cells",
            )
            if isinstance(error, UnicodeError):
                return
            continue
        if any(cells):
            yield row, cells


def missing_columns(path: str, found: Sequence[str], expected: str) -> TableError:
    """The error of a table nobody can read: what it has and what it needs."""
    return TableError(
        f"has the columns {', '.join(found) or '(none)'}; expected {expected}",
        source=path,
        next_step="rename its columns, or add them with empty cells where nothing is known",
    )


# ------------------------------------------------------------------------------------------------------------ cells


def text_of(cell: str) -> str:
    """A cell as words: bytes that were not UTF-8 are taken for Windows-1252, as old spreadsheets write."""
    cell = cell.strip()
    if cell.isascii() or not any("\udc80" <= c <= "\udcff" for c in cell):
        return cell
    return cell.encode("utf-8", "surrogateescape").decode("cp1252", "replace")


def box_of(cells: Sequence[str], as_corners: bool) -> Box | None:
    """One cell `[x, y, w, h]`, or four cells, corners if `as_corners` → Box; None where empty. Raises ValueError."""
    text = ",".join(cells).strip()
    if text.lower().replace(" ", "").strip("[](),") in ("", "nan", "none", "null", "nan,nan,nan,nan"):
        return None
    parts = text.strip("[]() ").replace(";", ",").split(",")
    if len(parts) == 1:
        parts = parts[0].split()
    try:
        a, b, c, d = map(float, parts)
    except ValueError:
        raise ValueError(f"box {text[:60]!r} is not four numbers") from None
    box = Box(a, b, c, d) if as_corners else Box(a, b, a + c, b + d)
    if not (math.isfinite(box.x1) and math.isfinite(box.y1) and box.width > 0 and box.height > 0):
        raise ValueError(f"box {text[:60]!r} has no area")
    return box


def date_of(text: str) -> datetime | None:
    """ISO dates with or without time, and the spellings of cameras; zones are dropped. None where it is neither."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:
        return parse_date(text)


def degrees_of(text: str, most: float) -> float | None:
    """Decimal degrees within ±`most`, else None."""
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return None
    return value if abs(value) <= most else None


def side_of(text: str) -> Side | None:
    """The side that was photographed; None where the word is not known."""
    return _SIDES.get(text.lower().replace("_", " "))


# ------------------------------------------------------------------------------------------------------------ files


class PhotoFinder:
    """Paths in a table → files: below `bases` and their usual sub-folders, first match wins.

    Folders are listed once, not each file asked for. Where nothing fits exactly, a name that differs only in case or
    in Unicode normalisation (as between macOS and others), or that uses backslashes, is accepted if it is the only
    one.
    """

    def __init__(self, bases: Sequence[Path]) -> None:
        self._bases = [
            folder
            for base in dict.fromkeys(os.path.abspath(base) for base in bases)
            for folder in (base, *(os.path.join(base, name) for name in _SUBFOLDERS))
            if os.path.isdir(folder)
        ]
        self._names: dict[str, frozenset[str]] = {}
        self._folded: dict[str, dict[str, str]] = {}

    def find(self, cell: str) -> Path | None:
        """The file a cell means, None where there is none."""
        cell = cell.strip()
        if not cell or "\0" in cell:
            return None
        spellings = [cell]
        if "\\" in cell:
            spellings.append(cell.replace("\\", "/"))
        if not cell.isascii() and text_of(cell) != cell:
            spellings.append(text_of(cell))
        for look in (self._exact, self._alike):
            for spelling in spellings:
                for base in self._bases or ["."]:
                    folder, name = os.path.split(os.path.join(base, spelling))
                    found = look(folder, name)
                    if found is not None:
                        return Path(os.path.normpath(os.path.join(folder, found)))
        return None

    def meant(self, cell: str) -> frozenset[str]:
        """Every path that a cell may have meant, whether there is a file or not."""
        cell = cell.strip()
        if not cell or "\0" in cell:
            return frozenset()
        spellings = {cell, cell.replace("\\", "/"), text_of(cell)}
        bases = self._bases or [os.path.abspath(".")]
        return frozenset(os.path.normpath(os.path.join(base, one)) for base in bases for one in spellings)

    def _exact(self, folder: str, name: str) -> str | None:
        return name if name in self._listing(folder) else None

    def _alike(self, folder: str, name: str) -> str | None:
        if folder not in self._folded:
            folded: dict[str, str] = {}
            for entry in self._listing(folder):
                key = _fold(entry)
                folded[key] = "" if key in folded else entry
            self._folded[folder] = folded
        return self._folded[folder].get(_fold(name)) or None

    def _listing(self, folder: str) -> frozenset[str]:
        if folder not in self._names:
            try:
                with os.scandir(folder) as entries:
                    self._names[folder] = frozenset(entry.name for entry in entries if not entry.is_dir())
            except OSError:
                self._names[folder] = frozenset()
        return self._names[folder]


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
