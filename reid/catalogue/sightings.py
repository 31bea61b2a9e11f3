"""Putting photos that nobody gave an encounter into one by time and place, in the catalogue. How photos are grouped
stands in `encounters`.

New photos are grouped with those near them in time only: beyond a silence longer than the gap nothing can be joined, so
the outcome is that of grouping everything, at the cost of what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Row, select, update

from reid.catalogue.encounters import group_encounters
from reid.catalogue.engine import Writer
from reid.catalogue.names import chunks
from reid.catalogue.tables import Encounter, Photo

_EVERYTHING = 500
"""With more separate times than this among the new photos, grouping everything is cheaper than looking around each."""

_STEP = 256
"""Times fetched at once while looking for a silence."""

_GIVEN = select(Encounter.c.id).where(Encounter.c.id == Photo.c.encounter_id, Encounter.c.key.is_not(None)).exists()
_FREE = ~_GIVEN  # told row by row, so that a search by time goes by the index of times


def group(writer: Writer, max_gap: timedelta, max_km: float, *, everything: bool) -> int:
    """Group the photos that have no encounter, with `everything` also those grouped before; how many changed theirs."""
    connection = writer.connection
    fresh = connection.execute(select(Photo.c.taken_at).where(Photo.c.encounter_id.is_(None))).scalars().all()
    if not fresh and not everything:
        return 0
    windows = _windows([time for time in fresh if time is not None], max_gap)
    if everything or len(windows) > _EVERYTHING:
        return _group_rows(writer, [_FREE], max_gap, max_km)
    changed = _group_rows(writer, [Photo.c.encounter_id.is_(None), Photo.c.taken_at.is_(None)], max_gap, max_km)
    for low, high in windows:
        low, high = _silence(writer, low, high, max_gap)
        changed += _group_rows(writer, [_FREE, Photo.c.taken_at.between(low, high)], max_gap, max_km)
    return changed


def _windows(times: Sequence[datetime], max_gap: timedelta) -> list[tuple[datetime, datetime]]:
    """Spans of times without a silence longer than the gap."""
    spans: list[tuple[datetime, datetime]] = []
    for time in sorted(times):
        if spans and time - spans[-1][1] <= max_gap:
            spans[-1] = (spans[-1][0], time)
        else:
            spans.append((time, time))
    return spans


def _silence(writer: Writer, low: datetime, high: datetime, max_gap: timedelta) -> tuple[datetime, datetime]:
    """The span widened until nothing lies within the gap of either end."""
    return _walk(writer, low, max_gap, back=True), _walk(writer, high, max_gap, back=False)


def _walk(writer: Writer, end: datetime, max_gap: timedelta, *, back: bool) -> datetime:
    """The last time before a silence, going back or on from an end of a span."""
    while True:
        beyond = Photo.c.taken_at < end if back else Photo.c.taken_at > end
        query = select(Photo.c.taken_at).where(beyond, _FREE).limit(_STEP)
        query = query.order_by(Photo.c.taken_at.desc() if back else Photo.c.taken_at)
        times = [time for time in writer.connection.scalars(query) if time is not None]
        for time in times:
            if abs(time - end) > max_gap:
                return end
            end = time
        if len(times) < _STEP:
            return end


def _group_rows(writer: Writer, where: Sequence[ColumnElement[bool]], max_gap: timedelta, max_km: float) -> int:
    """Group some photos among themselves. A group keeps the lowest encounter that one of its photos had, if no other
    group has it.
    """
    query = select(Photo.c.id, Photo.c.taken_at, Photo.c.latitude, Photo.c.longitude, Photo.c.encounter_id)
    rows = writer.connection.execute(query.where(*where).order_by(Photo.c.id)).all()
    numbers = group_encounters(
        [row.taken_at for row in rows], [row.latitude for row in rows], [row.longitude for row in rows], max_gap, max_km
    )
    groups: dict[int, list[Row[int, datetime | None, float | None, float | None, int | None]]] = {}
    for number, row in zip(numbers.tolist(), rows, strict=True):
        groups.setdefault(number, []).append(row)
    taken: set[int] = set()
    fresh: list[int] = []
    moves: dict[int, list[int]] = {}
    for members in groups.values():
        had = sorted({row.encounter_id for row in members if row.encounter_id is not None} - taken)
        if had:
            encounter = had[0]
        else:
            encounter = writer.new_id(Encounter)
            fresh.append(encounter)
        taken.add(encounter)
        moves[encounter] = [row.id for row in members if row.encounter_id != encounter]
    writer.insert(Encounter, [{"id": encounter, "key": None} for encounter in fresh])
    for encounter, photos in moves.items():
        for part in chunks(photos):
            writer.connection.execute(update(Photo).where(Photo.c.id.in_(part)).values(encounter_id=encounter))
    changed = sum(map(len, moves.values()))
    if changed:
        writer.touch()
    return changed
