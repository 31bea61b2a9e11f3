"""Which individual a name means, and how a name comes to be borne. Reads and writes the `individual` table only.

A name means, in this order: the individual that bears it (live, or merged into another and so an alias of that one);
else the one individual that bore it before a rename; else nobody. A former name that several animals bore means nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from sqlalchemy import Connection, delete, select, update

from reid.catalogue.encoding import normal_name
from reid.catalogue.engine import Writer
from reid.catalogue.tables import FormerName, Individual
from reid.errors import IdentityError

T = TypeVar("T")

CHUNK = 5000
"""Values in one SQL list: below the limit of either database."""


@dataclass(frozen=True, slots=True)
class Bearer:
    """The individual a name means: itself, its present name, and the live individual it now is."""

    id: int
    name: str
    root: int
    root_name: str


def chunks(values: Collection[T], size: int = CHUNK) -> Iterator[list[T]]:
    """The values in lists of at most `size`."""
    rest = iter(values)
    while part := list(islice(rest, size)):
        yield part


def checked(name: str) -> str:
    """The name as it is kept, or IdentityError."""
    try:
        return normal_name(name)
    except ValueError as error:
        raise IdentityError(str(error), next_step="give another name") from error


def roots(connection: Connection, individuals: Collection[int]) -> dict[int, tuple[int, str]]:
    """The live individual each now is, and its name."""
    found: dict[int, tuple[int, str]] = {}
    at = {i: i for i in individuals}
    while at:
        rows = {}
        for part in chunks(set(at.values())):
            query = select(Individual.c.id, Individual.c.name, Individual.c.merged_into_id).where(
                Individual.c.id.in_(part)
            )
            rows.update({row.id: row for row in connection.execute(query)})
        found.update({i: (j, rows[j].name) for i, j in at.items() if rows[j].merged_into_id is None})
        at = {i: rows[j].merged_into_id for i, j in at.items() if rows[j].merged_into_id is not None}
    return found


def find(connection: Connection, names: Collection[str]) -> dict[str, Bearer]:
    """Whom each of these (normal) names means; names that mean nobody are left out."""
    ids: dict[str, int] = {}
    labels: dict[int, str] = {}
    for part in chunks(set(names)):
        rows = connection.execute(
            select(Individual.c.id, Individual.c.name, Individual.c.live)
            .where(Individual.c.name.in_(part), Individual.c.live | Individual.c.merged_into_id.is_not(None))
            .order_by(Individual.c.live, Individual.c.id.desc())
        )
        for row in rows:  # the last one stays: live before merged, then the oldest
            ids[row.name] = row.id
            labels[row.id] = row.name
        former: dict[str, set[int]] = {}
        query = (
            select(FormerName.c.name, FormerName.c.individual_id, Individual.c.name.label("label"))
            .join(Individual, Individual.c.id == FormerName.c.individual_id)
            .where(FormerName.c.name.in_(part))
        )
        for name, who, label in connection.execute(query):
            former.setdefault(name, set()).add(who)
            labels[who] = label
        ids.update({name: min(who) for name, who in former.items() if len(who) == 1 and name not in ids})
    found = roots(connection, set(ids.values()))
    return {name: Bearer(i, labels[i], *found[i]) for name, i in ids.items()}


def get(connection: Connection, name: str) -> Bearer:
    """Whom a name means. IdentityError when nobody."""
    kept = checked(name)
    bearer = find(connection, [kept]).get(kept)
    if bearer is None:
        raise IdentityError(f"no individual is called {name!r}", next_step="list the names: reid individuals list")
    return bearer


def merged(connection: Connection, individual: int) -> set[int]:
    """An individual and all that were merged into it, directly or not."""
    whole = {individual}
    border = whole
    while border:
        found: set[int] = set()
        for part in chunks(border):
            found.update(connection.scalars(select(Individual.c.id).where(Individual.c.merged_into_id.in_(part))))
        border = found - whole
        whole = whole | found
    return whole


def claim(writer: Writer, names: Collection[str]) -> dict[str, Bearer]:
    """Whom these (normal) names mean, bringing those that mean nobody into being.

    An individual whose every event was undone comes back under its first name, so that redoing those events later still
    finds it.
    """
    connection = writer.connection
    bearers = find(connection, names)
    absent = [name for name in dict.fromkeys(names) if name not in bearers]
    asleep: dict[str, int] = {}
    for part in chunks(absent):
        query = select(Individual.c.first_name, Individual.c.id).where(
            Individual.c.first_name.in_(part), Individual.c.live.is_(False), Individual.c.merged_into_id.is_(None)
        )
        asleep.update({row.first_name: row.id for row in connection.execute(query.order_by(Individual.c.id.desc()))})
    fresh = []
    for name in absent:
        if name in asleep:
            who = asleep[name]
            connection.execute(update(Individual).where(Individual.c.id == who).values(name=name, live=True))
        else:
            who = writer.new_id(Individual)
            fresh.append({"id": who, "first_name": name, "name": name, "merged_into_id": None, "live": True})
        bearers[name] = Bearer(who, name, who, name)
    writer.insert(Individual, fresh)
    return bearers


def set_former(writer: Writer, individual: int, names: Sequence[str]) -> None:
    """Replace the former names of an individual."""
    writer.connection.execute(delete(FormerName).where(FormerName.c.individual_id == individual))
    writer.insert(FormerName, [{"individual_id": individual, "name": name} for name in names])
