"""Where all readers put what they find: sightings, failures, and a count of what was odd; then what contradicts itself.

A row's problem never ends a batch. What cannot be used becomes a Failure that names its row; what was used without
one of its cells (a date nobody understands) is counted and told once, with an example, in `notes`. Knows no file
format.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from reid.errors import ReidError, TableError
from reid.images import printable
from reid.records import Box, Failure, Sighting

# What tables write where nobody knows the animal: wildlife-datasets, Wildbook, both Kaggle competitions, pandas.
UNKNOWN_NAMES = frozenset({"", "unknown", "____", "new_whale", "new_individual", "nan"})
REMOVED = "photos that were removed, passed by"


@dataclass(frozen=True, slots=True)
class SightingList:
    """What was read: `format` is the reader's name; `notes` are remarks on what was used all the same."""

    sightings: tuple[Sighting, ...]
    failures: tuple[Failure, ...]
    format: str
    notes: tuple[str, ...] = ()


class Gathering:
    """Filled row by row by a reader, closed by `finish`.

    `removed` are the paths of photos that somebody took out: rows that mean one whose file is gone are no mistakes.
    With `keep_boxless`, a row whose box is nonsense is reported all the same, but its photo stays, without a box.
    `named` are the absolute paths of what the user named: a table in a folder is not one that was passed by then.
    """

    def __init__(self, keep_boxless: bool = False, removed: Collection[str] = (), named: Collection[str] = ()) -> None:
        self.keep_boxless = keep_boxless
        self.removed = frozenset(removed)
        self.named = frozenset(named)
        self.sightings: list[Sighting] = []
        self.failures: list[Failure] = []
        self.notes: list[str] = []
        self._odd: dict[str, tuple[int, str]] = {}

    def fail(self, error: ReidError) -> None:
        """Something was left out, for this reason."""
        self.failures.append(failure_of(error))

    def no_photo(self, error: ReidError, meant: Collection[str]) -> None:
        """A row's photo is not there; `meant` are the paths it may have had."""
        if self.removed.isdisjoint(meant):
            self.fail(error)
        else:
            self.odd(REMOVED, error.source)

    def odd(self, what: str, example: str) -> None:
        """Something was used without a part of it; the same `what` is told once, with its count and first example."""
        count, first = self._odd.get(what, (0, example))
        self._odd[what] = (count + 1, first)

    def take_odd(self, other: Gathering) -> None:
        """Add another's counts."""
        for what, (count, first) in other._odd.items():
            mine, earlier = self._odd.get(what, (0, first))
            self._odd[what] = (mine + count, earlier)

    def finish(self, format_name: str) -> SightingList:
        """Everything read, contradictions settled."""
        sightings, clashes = settle(self.sightings)
        counted = [f"{what}: {count} (first: {first})" for what, (count, first) in self._odd.items()]
        return SightingList(
            tuple(sightings), (*self.failures, *clashes), format_name, tuple(dict.fromkeys([*self.notes, *counted]))
        )


def failure_of(error: ReidError) -> Failure:
    """An error as a line of the report."""
    return Failure(error.source, error.code, error.message, error.next_step)


def known_name(text: str) -> str | None:
    """The identity a cell names, None where it says that nobody knows."""
    name = text.strip()
    return None if name in UNKNOWN_NAMES or name.lower() == "unknown" else name


def settle(sightings: Sequence[Sighting]) -> tuple[list[Sighting], list[Failure]]:
    """Rows that speak of the same animal in the same photo become one sighting; input order is kept.

    Rows of one photo with different boxes are different animals. With the same box, or none, they are the same:
    repeats are left out, and where they disagree on the name none of the names is believed, because nothing tells
    which is right and a wrong name in the gallery does harm for years. The photo stays, unnamed; every row is in the
    report.
    """
    by_photo: dict[str, list[int]] = {}
    for i, sighting in enumerate(sightings):
        by_photo.setdefault(str(sighting.path), []).append(i)
    if len(by_photo) == len(sightings):
        return list(sightings), []
    kept: dict[int, Sighting] = {}
    failures: list[Failure] = []
    for rows in by_photo.values():
        for group in _same_animal(sightings, rows):
            keep, lost = _merged(sightings, group)
            kept.update(keep)
            failures += lost
    return [kept[i] for i in sorted(kept)], failures


def _same_animal(sightings: Sequence[Sighting], rows: list[int]) -> list[list[int]]:
    """Rows of one photo → groups that can only mean one animal: by box, or all where a named row has no box."""
    whole = [i for i in rows if sightings[i].box is None]
    if len(rows) == 1 or any(sightings[i].identity is not None for i in whole) or len(whole) == len(rows):
        return [rows]
    groups: dict[tuple[object, ...], list[int]] = {}
    for i in rows:
        if i not in whole:
            groups.setdefault((_corners(sightings[i].box), sightings[i].declared_size), []).append(i)
    first, *others = groups.values()
    return [sorted(first + whole), *others]  # a row with neither box nor name adds nothing to those with boxes


def _corners(box: Box | None) -> tuple[float, ...] | None:
    return None if box is None else (box.x0, box.y0, box.x1, box.y1)


def _merged(sightings: Sequence[Sighting], rows: list[int]) -> tuple[dict[int, Sighting], list[Failure]]:
    """One group → the sightings to keep, by row, and the report on the others."""
    if len(rows) == 1:
        return {rows[0]: sightings[rows[0]]}, []
    names = {sightings[i].identity for i in rows} - {None}
    best: dict[tuple[float, ...] | None, int] = {}
    for i in rows:
        corners = _corners(sightings[i].box)
        if corners not in best or (sightings[best[corners]].identity is None and sightings[i].identity is not None):
            best[corners] = i
    if len(best) > 1:
        named_without_box = None in best and sightings[best[None]].identity is not None
        boxed = [i for corners, i in best.items() if corners is not None]
        best.pop(None, None)
        if named_without_box and len(boxed) == 1 and len(names) == 1:
            name = next(iter(names))
            return {boxed[0]: replace(sightings[boxed[0]], identity=name)}, _repeats(sightings, rows, boxed)
    keep = sorted(best.values())
    if len(names) <= 1:
        return {i: sightings[i] for i in keep}, _repeats(sightings, rows, keep)
    return {i: replace(sightings[i], identity=None) for i in keep}, _clashes(sightings, rows)


def _repeats(sightings: Sequence[Sighting], rows: list[int], keep: list[int]) -> list[Failure]:
    return [
        failure_of(
            TableError(
                f"repeats {sightings[keep[0]].where}: the same photo and animal",
                source=sightings[i].where,
                next_step="nothing is lost; delete one of the rows",
            )
        )
        for i in rows
        if i not in keep
    ]


def _clashes(sightings: Sequence[Sighting], rows: list[int]) -> list[Failure]:
    failures = []
    for i in rows:
        mine = sightings[i]
        other = next((sightings[j] for j in rows if sightings[j].identity not in (None, mine.identity)), None)
        if mine.identity is None or other is None:
            continue
        failures.append(
            failure_of(
                TableError(
                    f"names the animal in '{printable(mine.path.name)}' {mine.identity!r}, {other.where} names it "
                    f"{other.identity!r}: the photo was taken without a name",
                    source=mine.where,
                    next_step="correct the wrong row, or give each animal its own box",
                )
            )
        )
    return failures
