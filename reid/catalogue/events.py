"""Recording events of identity: each writes its entry in the log and, in the same transaction, what it changes in the
projections.

What an event *means* stands in `identity`; here it is done to tables, touching only the rows it concerns. Annotations
and names are checked first; a refused event leaves nothing behind. Taking events back is in `undo`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, select, update

from reid.catalogue import names
from reid.catalogue.encoding import storable
from reid.catalogue.engine import Writer
from reid.catalogue.identity import Kind
from reid.catalogue.names import Bearer, chunks
from reid.catalogue.tables import Annotation, EventAnnotation, FormerName, IdentityEvent, Individual
from reid.errors import IdentityError


@dataclass(frozen=True, slots=True)
class Signature:
    """Who says so, why, on what evidence (JSON), and when (aware)."""

    who: str
    at: datetime
    why: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Naming:
    """One annotation and whose it was and is to be, for `assign_many`."""

    annotation: int
    given_before: int | None
    bearer: Bearer
    evidence: Mapping[str, Any]


def entry(writer: Writer, kind: Kind, by: Signature, **columns: Any) -> dict[str, Any]:
    """A row of the log with the next id, not yet inserted. IdentityError when nobody signs or the evidence is not
    JSON.
    """
    who = storable(by.who.strip())
    if not who:
        raise IdentityError("an event must say who made it", next_step="give a name in `who`")
    try:
        json.dumps(by.evidence if isinstance(by.evidence, dict) else dict(by.evidence), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise IdentityError(
            f"the evidence is not JSON: {error}", next_step="give numbers, text, lists and dicts"
        ) from error
    row: dict[str, Any] = dict.fromkeys(("individual_id", "label", "other_id", "other_label", "name", "undoes_id"))
    row.update(
        id=writer.new_id(IdentityEvent), kind=kind, at=by.at, who=who, why=storable(by.why), evidence=dict(by.evidence)
    )
    row.update(columns)
    return row


def record(writer: Writer, row: dict[str, Any], moved: Iterable[tuple[int, int | None]] = ()) -> int:
    """Insert an event with its (annotation, whose before) pairs; its id."""
    writer.touch()
    writer.insert(IdentityEvent, [row])
    writer.insert(
        EventAnnotation, [{"annotation_id": a, "event_id": row["id"], "from_id": before} for a, before in moved]
    )
    return int(row["id"])


def assign_many(writer: Writer, by: Signature, namings: Sequence[Naming]) -> None:
    """One assign event for each annotation, with its own evidence. The caller has given the annotations their owner."""
    rows, moved = [], []
    for naming in namings:
        evidence = {**by.evidence, **naming.evidence}
        signed = Signature(by.who, by.at, by.why, evidence)
        row = entry(writer, "assign", signed, individual_id=naming.bearer.id, label=naming.bearer.name)
        rows.append(row)
        moved.append({"annotation_id": naming.annotation, "event_id": row["id"], "from_id": naming.given_before})
    if rows:
        writer.touch()
    writer.insert(IdentityEvent, rows)
    writer.insert(EventAnnotation, moved)


def assign(writer: Writer, by: Signature, annotations: Sequence[int], name: str) -> int:
    """Say whose these annotations are; the individual is made if the name means nobody."""
    owners = _owners(writer.connection, annotations)
    kept = names.checked(name)
    bearer = names.claim(writer, [kept])[kept]
    _give(writer, owners, bearer.id, bearer.root)
    row = entry(writer, "assign", by, individual_id=bearer.id, label=bearer.name)
    return record(writer, row, [(a, owner.given_id) for a, owner in owners.items()])


def unassign(writer: Writer, by: Signature, annotations: Sequence[int]) -> int:
    """Say that it is not known whose these annotations are. IdentityError when one is nobody's already."""
    owners = _owners(writer.connection, annotations)
    nobody = [a for a, owner in owners.items() if owner.given_id is None]
    if nobody:
        raise IdentityError(f"{_list(nobody)} belong to no individual already", next_step="leave them out")
    _give(writer, owners, None, None)
    return record(writer, entry(writer, "unassign", by), [(a, owner.given_id) for a, owner in owners.items()])


def merge(writer: Writer, by: Signature, keep: str, absorbed: str) -> int:
    """Say that two individuals are one animal, called as `keep` is; the other name becomes an alias."""
    kept, gone = (names.get(writer.connection, name) for name in (keep, absorbed))
    if kept.root == gone.root:
        raise IdentityError(f"{keep!r} and {absorbed!r} are the same individual already", source=kept.root_name)
    writer.connection.execute(
        update(Individual).where(Individual.c.id == gone.root).values(merged_into_id=kept.root, live=False)
    )
    writer.connection.execute(
        update(Annotation).where(Annotation.c.individual_id == gone.root).values(individual_id=kept.root)
    )
    row = entry(
        writer,
        "merge",
        by,
        individual_id=kept.root,
        label=kept.root_name,
        other_id=gone.root,
        other_label=gone.root_name,
    )
    return record(writer, row)


def split(writer: Writer, by: Signature, annotations: Sequence[int], name: str | None) -> int:
    """Say that some annotations of one individual are another animal's: the one `name` means, or a new one.

    Without a name the new one is called after the old, with the first number that is free: `Ana (2)`. IdentityError
    when they are not all of one individual, when nothing would stay with it, or when `name` means that same individual.
    """
    connection = writer.connection
    owners = _owners(connection, annotations)
    sources = {owner.individual_id for owner in owners.values()}
    if len(sources) != 1 or None in sources:
        raise IdentityError(
            "the annotations do not all belong to one individual", next_step="split one individual at a time"
        )
    source = sources.pop()
    source_name = names.roots(connection, [source])[source][1]
    stay = select(Annotation.c.id).where(Annotation.c.individual_id == source, Annotation.c.superseded_by_id.is_(None))
    if not set(connection.scalars(stay)) - owners.keys():
        raise IdentityError(
            "nothing would stay with the individual",
            source=source_name,
            next_step="rename it, or merge it into the other one",
        )
    target = names.checked(name) if name is not None else _free_name(connection, source_name)
    bearer = names.claim(writer, [target])[target]
    if bearer.root == source:
        raise IdentityError(f"{target!r} is that same individual", source=source_name, next_step="give another name")
    _give(writer, owners, bearer.id, bearer.root)
    row = entry(
        writer, "split", by, individual_id=bearer.id, label=bearer.name, other_id=source, other_label=source_name
    )
    return record(writer, row, [(a, owner.given_id) for a, owner in owners.items()])


def rename(writer: Writer, by: Signature, name: str, new: str) -> int:
    """Call an individual otherwise. IdentityError when the name is another animal's."""
    connection = writer.connection
    bearer = names.get(connection, name)
    if bearer.id != bearer.root:
        raise IdentityError(
            f"{name!r} was merged into {bearer.root_name!r}",
            next_step=f"rename {bearer.root_name!r}, or undo the merge first",
        )
    target = names.checked(new)
    if target == bearer.name:
        raise IdentityError(f"it is called {target!r} already", source=name)
    query = select(Individual.c.id).where(
        Individual.c.name == target, Individual.c.live | Individual.c.merged_into_id.is_not(None)
    )
    taken = names.roots(connection, set(connection.scalars(query)))
    others = sorted({label for root, label in taken.values() if root != bearer.id})
    if others:
        raise IdentityError(
            f"the name {target!r} is taken by {others[0]!r}",
            source=name,
            next_step="choose another, or merge the two if they are one animal",
        )
    connection.execute(update(Individual).where(Individual.c.id == bearer.id).values(name=target))
    connection.execute(
        delete(FormerName).where(FormerName.c.individual_id == bearer.id, FormerName.c.name.in_([target, bearer.name]))
    )
    writer.insert(FormerName, [{"individual_id": bearer.id, "name": bearer.name}])
    return record(writer, entry(writer, "rename", by, individual_id=bearer.id, label=bearer.name, name=target))


def _owners(connection: Connection, annotations: Sequence[int]) -> dict[int, Row[int, int | None, int | None]]:
    """Whose these annotations are, in order of id. IdentityError when one does not exist or none is given."""
    if not annotations:
        raise IdentityError("no annotations are given", next_step="name at least one")
    rows: dict[int, Row[int, int | None, int | None]] = {}
    for part in chunks(sorted(set(annotations))):
        query = select(Annotation.c.id, Annotation.c.given_id, Annotation.c.individual_id).where(
            Annotation.c.id.in_(part)
        )
        rows.update({row.id: row for row in connection.execute(query.order_by(Annotation.c.id))})
        replaced = query.with_only_columns(Annotation.c.id, Annotation.c.superseded_by_id)
        for old, new in connection.execute(replaced.where(Annotation.c.superseded_by_id.is_not(None))):
            raise IdentityError(f"annotation {old} was replaced by a better box", next_step=f"use annotation {new}")
    unknown = [a for a in annotations if a not in rows]
    if unknown:
        raise IdentityError(f"{_list(unknown)} do not exist", next_step="take their ids from the catalogue")
    return rows


def _give(writer: Writer, annotations: Iterable[int], given: int | None, root: int | None) -> None:
    for part in chunks(list(annotations)):
        writer.connection.execute(
            update(Annotation).where(Annotation.c.id.in_(part)).values(given_id=given, individual_id=root)
        )


def _free_name(connection: Connection, name: str) -> str:
    number = 2
    while names.find(connection, [names.checked(f"{name} ({number})")]):
        number += 1
    return names.checked(f"{name} ({number})")


def _list(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:5]))
    return f"annotations {shown}" + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
