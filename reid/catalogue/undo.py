"""Taking an event of identity back, and deriving the projections from the log.

An undo changes which events are in force, in the middle of the history, so its effect is found by folding again: the
names and merges of the whole log (few events: the first that names each individual, the merges, the renames), and the
owners of just those annotations that the event touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, Select, delete, func, insert, select, update

from reid.catalogue import names
from reid.catalogue.engine import Writer
from reid.catalogue.events import Signature, entry, record
from reid.catalogue.identity import Impossible, Replay, State, Step, replay
from reid.catalogue.names import chunks
from reid.catalogue.tables import Annotation, EventAnnotation, FormerName, IdentityEvent, Individual, UndoneEvent
from reid.errors import IdentityError

_IN_FORCE = ~select(UndoneEvent.c.event_id).where(UndoneEvent.c.event_id == IdentityEvent.c.id).exists()


def undo(writer: Writer, by: Signature, event: int) -> int:
    """Take one event out of force, or, where it is an undo, put back what it undid.

    IdentityError when there is no such event, when it is out of force already, or when a later event could then not
    stand: the message names those, which must be undone first.
    """
    connection = writer.connection
    touched = _flip(writer, event)
    result = replay(_structure(connection), first_names(connection))
    if result.impossible:
        raise _refusal(event, result.impossible)
    query = select(EventAnnotation.c.annotation_id).where(EventAnnotation.c.event_id == touched)
    moved = list(connection.scalars(query.order_by(EventAnnotation.c.annotation_id)))
    before = projection(connection, annotations=moved)
    after = result.state
    after.given = _given(connection, moved)
    number = record(writer, entry(writer, "undo", by, undoes_id=event), ((a, before.given.get(a)) for a in moved))
    _project(writer, before, after, moved)
    return number


def log(connection: Connection) -> list[Step]:
    """The whole log, in order of id."""
    annotations: dict[int, list[int]] = {}
    query = select(EventAnnotation.c.event_id, EventAnnotation.c.annotation_id)
    for event, annotation in connection.execute(
        query.order_by(EventAnnotation.c.event_id, EventAnnotation.c.annotation_id)
    ):
        annotations.setdefault(event, []).append(annotation)
    return [
        Step(
            row.id,
            row.kind,
            row.individual_id,
            row.other_id,
            row.name,
            tuple(annotations.get(row.id, ())),
            row.undoes_id,
        )
        for row in connection.execute(_steps())
    ]


def replayed(connection: Connection) -> Replay:
    """What the log alone says."""
    return replay(log(connection), first_names(connection))


def first_names(connection: Connection) -> Mapping[int, str]:
    """The name each individual began with."""
    return dict(connection.execute(select(Individual.c.id, Individual.c.first_name)).all())


def projection(connection: Connection, annotations: Sequence[int] | None = None) -> State:
    """What the projected columns say; of owners, only those of the annotations given, if any are."""
    state = State()
    query = select(Individual.c.id, Individual.c.name, Individual.c.merged_into_id).where(
        Individual.c.live | Individual.c.merged_into_id.is_not(None)
    )
    for row in connection.execute(query):
        state.names[row.id] = row.name
        if row.merged_into_id is not None:
            state.parent[row.id] = row.merged_into_id
    former: dict[int, list[str]] = {}
    for who, name in connection.execute(select(FormerName.c.individual_id, FormerName.c.name)):
        former.setdefault(who, []).append(name)
    state.former = {who: tuple(sorted(held)) for who, held in former.items()}
    owners = select(Annotation.c.id, Annotation.c.given_id).where(Annotation.c.given_id.is_not(None))
    parts = (
        [owners] if annotations is None else [owners.where(Annotation.c.id.in_(part)) for part in chunks(annotations)]
    )
    for part in parts:
        state.given.update((row.id, row.given_id) for row in connection.execute(part) if row.given_id is not None)
    return state


def rebuild(writer: Writer) -> bool:
    """Make the projections say what the log says; whether anything had to be changed."""
    connection = writer.connection
    result = replayed(connection)
    before = projection(connection)
    undone = set(connection.scalars(select(UndoneEvent.c.event_id)))
    if undone != result.undone:
        connection.execute(delete(UndoneEvent))
        writer.insert(UndoneEvent, [{"event_id": event} for event in sorted(result.undone)])
    owners = connection.execute(select(Annotation.c.id, Annotation.c.individual_id))
    wrong = [
        a for a, owner in owners if owner != result.state.owner(a) or before.given.get(a) != result.state.given.get(a)
    ]
    if before == result.state and undone == result.undone and not wrong:
        return False
    writer.touch()
    _project(writer, before, result.state, wrong)
    return True


def _flip(writer: Writer, event: int) -> int:
    """Put an event out of force, and along a chain of undos each back in or out; the id of the last, which is no
    undo.
    """
    connection = writer.connection
    found = connection.scalar(select(IdentityEvent.c.id).where(IdentityEvent.c.id == event))
    if found is None:
        raise IdentityError(f"there is no event {event}", next_step="list the events: reid individuals show NAME")
    if connection.scalar(select(UndoneEvent.c.event_id).where(UndoneEvent.c.event_id == event)) is not None:
        query = select(func.max(IdentityEvent.c.id)).where(IdentityEvent.c.undoes_id == event, _IN_FORCE)
        by = connection.scalar(query)
        raise IdentityError(f"event {event} is undone already, by event {by}", next_step=f"to bring it back, undo {by}")
    out = True
    while True:
        if out:
            connection.execute(insert(UndoneEvent).values(event_id=event))
        else:
            connection.execute(delete(UndoneEvent).where(UndoneEvent.c.event_id == event))
        below = connection.scalar(select(IdentityEvent.c.undoes_id).where(IdentityEvent.c.id == event))
        if below is None:
            return event
        event, out = below, not out


def _steps() -> Select[int, str, int | None, int | None, str | None, int | None]:
    return select(
        IdentityEvent.c.id,
        IdentityEvent.c.kind,
        IdentityEvent.c.individual_id,
        IdentityEvent.c.other_id,
        IdentityEvent.c.name,
        IdentityEvent.c.undoes_id,
    ).order_by(IdentityEvent.c.id)


def _structure(connection: Connection) -> list[Step]:
    """The events in force that decide who exists, under which name and merged into whom, without their annotations."""
    given = IdentityEvent.c.kind.in_(("assign", "split"))
    first = (
        select(func.min(IdentityEvent.c.id).label("id"), IdentityEvent.c.individual_id)
        .where(given, _IN_FORCE)
        .group_by(IdentityEvent.c.individual_id)
    )
    steps = [Step(row.id, "assign", row.individual_id) for row in connection.execute(first)]
    query = _steps().where(IdentityEvent.c.kind.in_(("merge", "rename")), _IN_FORCE)
    steps += [Step(row.id, row.kind, row.individual_id, row.other_id, row.name) for row in connection.execute(query)]
    return sorted(steps, key=lambda step: step.id)


def _given(connection: Connection, annotations: Sequence[int]) -> dict[int, int]:
    """Whose these annotations were last said to be, by the events in force."""
    last: dict[int, int] = {}
    for part in chunks(annotations):
        query = (
            select(EventAnnotation.c.annotation_id, IdentityEvent.c.kind, IdentityEvent.c.individual_id)
            .join(IdentityEvent, IdentityEvent.c.id == EventAnnotation.c.event_id)
            .where(EventAnnotation.c.annotation_id.in_(part), IdentityEvent.c.kind != "undo", _IN_FORCE)
            .order_by(IdentityEvent.c.id)
        )
        for annotation, _kind, individual in connection.execute(query):
            if individual is None:
                last.pop(annotation, None)
            else:
                last[annotation] = individual
    return last


def _refusal(event: int, impossible: Sequence[Impossible]) -> IdentityError:
    named = ", ".join(str(one.event) for one in impossible)
    return IdentityError(
        f"without event {event} the history would not hold: at event {impossible[0].event}, {impossible[0].reason}",
        source=f"event {event}",
        next_step=f"undo first: {named}",
    )


def _project(writer: Writer, before: State, after: State, moved: Sequence[int]) -> None:
    """Write the difference between two states, owners only of the annotations `moved`."""
    connection = writer.connection
    born = first_names(connection)
    everyone = sorted({*before.names, *after.names})
    differ = [
        i for i in everyone if before.names.get(i) != after.names.get(i) or before.parent.get(i) != after.parent.get(i)
    ]
    for part in chunks(differ):  # so that no two bear one name meanwhile
        connection.execute(update(Individual).where(Individual.c.id.in_(part)).values(live=False))
    for i in differ:
        parent = after.parent.get(i)
        values = {
            "name": after.names.get(i, born[i]),
            "merged_into_id": parent,
            "live": i in after.names and parent is None,
        }
        connection.execute(update(Individual).where(Individual.c.id == i).values(values))
    for i in everyone:
        if before.former.get(i, ()) != after.former.get(i, ()):
            names.set_former(writer, i, after.former.get(i, ()))
    owners: dict[int | None, list[int]] = {}
    for annotation in moved:
        owners.setdefault(after.given.get(annotation), []).append(annotation)
    for given, theirs in owners.items():
        root = None if given is None else after.root(given)
        for part in chunks(theirs):
            connection.execute(
                update(Annotation).where(Annotation.c.id.in_(part)).values(given_id=given, individual_id=root)
            )
    for i in everyone:
        if before.root(i) != after.root(i):
            connection.execute(update(Annotation).where(Annotation.c.given_id == i).values(individual_id=after.root(i)))
