"""Reading the log of identity: who said what about whom, and what is still in force. Only reads."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, or_, select

from reid.catalogue.names import chunks, get, merged
from reid.catalogue.records import Event
from reid.catalogue.tables import EventAnnotation, IdentityEvent, UndoneEvent


def events(connection: Connection, after: int, limit: int) -> list[Event]:
    """The next events of the log after an id."""
    query = select(IdentityEvent.c.id).where(IdentityEvent.c.id > after).order_by(IdentityEvent.c.id).limit(limit)
    return by_id(connection, connection.scalars(query).all())


def of_individual(connection: Connection, name: str) -> list[Event]:
    """Every event that concerns an individual or one merged into it, in order: also those that took annotations from
    it, and the undos of all these.
    """
    whole = merged(connection, get(connection, name).root)
    concerned: set[int] = set()
    for part in chunks(whole):
        named = or_(IdentityEvent.c.individual_id.in_(part), IdentityEvent.c.other_id.in_(part))
        concerned.update(connection.scalars(select(IdentityEvent.c.id).where(named)))
        lost = select(EventAnnotation.c.event_id).where(EventAnnotation.c.from_id.in_(part))
        concerned.update(connection.scalars(lost))
    return by_id(connection, _with_undos(connection, concerned))


def of_annotation(connection: Connection, annotation: int) -> list[Event]:
    """Every event that concerns an annotation, in order, and the undos of these."""
    query = select(EventAnnotation.c.event_id).where(EventAnnotation.c.annotation_id == annotation)
    return by_id(connection, _with_undos(connection, set(connection.scalars(query))))


def _with_undos(connection: Connection, concerned: set[int]) -> set[int]:
    border = concerned
    while border:
        found: set[int] = set()
        for part in chunks(border):
            found.update(connection.scalars(select(IdentityEvent.c.id).where(IdentityEvent.c.undoes_id.in_(part))))
        border = found - concerned
        concerned = concerned | found
    return concerned


def by_id(connection: Connection, ids: Collection[int]) -> list[Event]:
    """Events in order of id; those that do not exist are left out."""
    found: list[Event] = []
    for part in chunks(sorted(ids)):
        moved: dict[int, list[tuple[int, int | None]]] = {}
        query = select(EventAnnotation.c.event_id, EventAnnotation.c.annotation_id, EventAnnotation.c.from_id)
        query = query.where(EventAnnotation.c.event_id.in_(part)).order_by(EventAnnotation.c.annotation_id)
        for event, annotation, before in connection.execute(query):
            moved.setdefault(event, []).append((annotation, before))
        undone = set(connection.scalars(select(UndoneEvent.c.event_id).where(UndoneEvent.c.event_id.in_(part))))
        rows = select(IdentityEvent).where(IdentityEvent.c.id.in_(part)).order_by(IdentityEvent.c.id)
        for row in connection.execute(rows).mappings():
            pairs = moved.get(row["id"], [])
            found.append(
                Event(
                    individual=row["individual_id"],
                    other=row["other_id"],
                    undoes=row["undoes_id"],
                    annotations=tuple(annotation for annotation, _ in pairs),
                    taken_from=tuple(before for _, before in pairs),
                    undone=row["id"] in undone,
                    **{
                        key: row[key]
                        for key in ("id", "kind", "at", "who", "why", "evidence", "label", "other_label", "name")
                    },
                )
            )
    return found
