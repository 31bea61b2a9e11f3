"""Looking things up: photos, annotations, individuals, labels, counts. Only reads; every function takes a connection
and returns records.

An annotation is *in service* unless it is superseded or its photo's file holds other bytes now. What a query needs for
its shortlist is one SELECT by primary key, whatever the size of the catalogue.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, RowMapping, Select, distinct, func, select
from sqlalchemy.sql.elements import ColumnElement

from reid.catalogue.encoding import phash_to_unsigned, text_to_path
from reid.catalogue.names import chunks, get, merged
from reid.catalogue.records import AnnotationInfo, Counts, IndividualInfo, Labels, PhotoInfo, PhotoState
from reid.catalogue.tables import (
    Annotation,
    Encounter,
    FormerName,
    IdentityEvent,
    Individual,
    Photo,
)
from reid.records import Box, BoxOrigin, Side

NEARLY_WHOLE = 0.9
"""Share of a photo's area from which a box is no cut at all."""


def photo_state(text: str) -> PhotoState:
    """A state as read from a column."""
    return cast(PhotoState, text)


def in_service() -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The conditions for an annotation joined with its photo to serve."""
    return Annotation.c.superseded_by_id.is_(None), Photo.c.state != "changed"


def details(connection: Connection, ids: Collection[int]) -> dict[int, AnnotationInfo]:
    """Annotations by id, in the order given; ids that do not exist are left out."""
    found: dict[int, AnnotationInfo] = {}
    for part in chunks(ids):
        query = (
            select(
                Annotation.c.id,
                Annotation.c.photo_id,
                Photo.c.path,
                Photo.c.state,
                Annotation.c.x0,
                Annotation.c.y0,
                Annotation.c.x1,
                Annotation.c.y1,
                Annotation.c.confidence,
                Annotation.c.origin,
                Annotation.c.side,
                Annotation.c.species,
                Annotation.c.quality,
                Annotation.c.individual_id,
                Individual.c.name,
                Photo.c.encounter_id,
                Photo.c.taken_at,
            )
            .join(Photo, Photo.c.id == Annotation.c.photo_id)
            .outerjoin(Individual, Individual.c.id == Annotation.c.individual_id)
            .where(Annotation.c.id.in_(part))
        )
        for row in connection.execute(query):
            number, photo, path, state, x0, y0, x1, y1, confidence, origin, side, *rest = row
            box = Box(x0, y0, x1, y1, confidence, cast(BoxOrigin, origin))
            found[number] = AnnotationInfo(
                number, photo, text_to_path(path), photo_state(state), box, cast(Side, side), *rest
            )
    return {i: found[i] for i in ids if i in found}


def photos(connection: Connection, ids: Collection[int]) -> dict[int, PhotoInfo]:
    """Photos by id, in the order given; ids that do not exist are left out."""
    found: dict[int, PhotoInfo] = {}
    for part in chunks(ids):
        for row in connection.execute(select(Photo).where(Photo.c.id.in_(part))).mappings():
            found[row["id"]] = _photo(row)
    return {i: found[i] for i in ids if i in found}


def photo_by_hash(connection: Connection, sha256: str) -> PhotoInfo | None:
    """The photo of these bytes, or None."""
    row = connection.execute(select(Photo).where(Photo.c.sha256 == sha256)).mappings().first()
    return None if row is None else _photo(row)


def _photo(row: RowMapping) -> PhotoInfo:
    same = "id sha256 format width height size_bytes mtime_ns taken_at latitude longitude camera state added_at".split()
    return PhotoInfo(
        path=text_to_path(row["path"]),
        name=str(text_to_path(row["name"])),
        phash=phash_to_unsigned(row["phash"]),
        notes=tuple(row["notes"]),
        encounter=row["encounter_id"],
        **{key: row[key] for key in same},
    )


def photos_in_state(connection: Connection, state: PhotoState) -> list[PhotoInfo]:
    """The photos that are present, missing or changed, in order of id."""
    query = select(Photo).where(Photo.c.state == state).order_by(Photo.c.id)
    return [_photo(row) for row in connection.execute(query).mappings()]


def bare_photos(connection: Connection) -> list[PhotoInfo]:
    """The photos in which no animal was found, in order of id."""
    return [_photo(row) for row in connection.execute(_bare(select(Photo)).order_by(Photo.c.id)).mappings()]


def _bare(query: Select[Any]) -> Select[Any]:
    return query.where(~select(Annotation.c.id).where(Annotation.c.photo_id == Photo.c.id).exists())


def annotations_of(
    connection: Connection,
    *,
    individual: int | None = None,
    photos: Collection[int] | None = None,
    encounters: Collection[int] | None = None,
    sides: Collection[Side] | None = None,
    species: Collection[str] | None = None,
) -> list[int]:
    """Ids of the annotations in service that meet every condition given, ascending."""
    query = select(Annotation.c.id).join(Photo, Photo.c.id == Annotation.c.photo_id).where(*in_service())
    if individual is not None:
        query = query.where(Annotation.c.individual_id == individual)
    if sides is not None:
        query = query.where(Annotation.c.side.in_(sides))
    if species is not None:
        query = query.where(Annotation.c.species.in_(species))
    ids: set[int] | None = None
    for column, values in ((Annotation.c.photo_id, photos), (Photo.c.encounter_id, encounters)):
        if values is not None:
            met = {i for part in chunks(values) for i in connection.scalars(query.where(column.in_(part)))}
            ids = met if ids is None else ids & met
    return sorted(set(connection.scalars(query)) if ids is None else ids)


def phashes(connection: Connection) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The photos that have a perceptual hash, ascending `(N,)`, and the hashes `(N,) uint64`."""
    rows = connection.execute(
        select(Photo.c.id, Photo.c.phash).where(Photo.c.phash.is_not(None)).order_by(Photo.c.id)
    ).all()
    table = np.array(rows, dtype=np.int64).reshape(-1, 2)
    return np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1]).view(np.uint64)


def photo_counts(connection: Connection, individuals: Collection[int]) -> dict[int, int]:
    """How many photos of each of these individuals are in service."""
    counts = dict.fromkeys(individuals, 0)
    for part in chunks(counts):
        query = (
            select(Annotation.c.individual_id, func.count(distinct(Annotation.c.photo_id)))
            .join(Photo, Photo.c.id == Annotation.c.photo_id)
            .where(Annotation.c.individual_id.in_(part), *in_service())
            .group_by(Annotation.c.individual_id)
        )
        counts.update((who, number) for who, number in connection.execute(query) if who is not None)
    return counts


def individual(connection: Connection, name: str) -> IndividualInfo:
    """The live individual that a name, alias or former name means. IdentityError when nobody."""
    return _individuals(connection, get(connection, name).root)[0]


def individuals(connection: Connection) -> list[IndividualInfo]:
    """Every individual that exists and is not merged into another, in order of name."""
    return _individuals(connection, None)


def _individuals(connection: Connection, only: int | None) -> list[IndividualInfo]:
    live = (
        select(Individual.c.id, Individual.c.name).where(Individual.c.live).order_by(Individual.c.name, Individual.c.id)
    )
    seen = (
        select(
            Annotation.c.individual_id,
            func.count(distinct(Annotation.c.photo_id)),
            func.count(),
            func.count(distinct(Photo.c.encounter_id)),
            func.min(Photo.c.taken_at),
            func.max(Photo.c.taken_at),
        )
        .join(Photo, Photo.c.id == Annotation.c.photo_id)
        .where(Annotation.c.individual_id.is_not(None), *in_service())
        .group_by(Annotation.c.individual_id)
    )
    flanks = (
        select(Annotation.c.individual_id, Annotation.c.side)
        .join(Photo, Photo.c.id == Annotation.c.photo_id)
        .where(Annotation.c.individual_id.is_not(None), Annotation.c.side != "unknown", *in_service())
        .distinct()
    )
    if only is not None:
        live = live.where(Individual.c.id == only)
        seen = seen.where(Annotation.c.individual_id == only)
        flanks = flanks.where(Annotation.c.individual_id == only)
    figures = {row[0]: row[1:] for row in connection.execute(seen)}
    sides: dict[int | None, list[Side]] = {}
    for who, side in connection.execute(flanks):
        sides.setdefault(who, []).append(cast(Side, side))
    alias = aliases(connection, only)
    found = []
    for who, name in connection.execute(live):
        n_photos, n_annotations, n_encounters, first, last = figures.get(who, (0, 0, 0, None, None))
        other = tuple(sorted(alias.get(who, set()) - {name}))
        flanks_seen = tuple(sorted(sides.get(who, ())))
        found.append(IndividualInfo(who, name, other, n_photos, n_annotations, n_encounters, first, last, flanks_seen))
    return found


def aliases(connection: Connection, only: int | None = None) -> dict[int, set[str]]:
    """By live individual, all or one: names of those merged into it, and former names of all of these."""
    rows = select(Individual.c.id, Individual.c.merged_into_id, Individual.c.name)
    rows = rows.where(Individual.c.merged_into_id.is_not(None))
    former = select(FormerName.c.individual_id, FormerName.c.name)
    if only is not None:
        whole = merged(connection, only)
        rows = rows.where(Individual.c.id.in_(whole))
        former = former.where(FormerName.c.individual_id.in_(whole))
    absorbed = connection.execute(rows).all()
    parent = {row.id: row.merged_into_id for row in absorbed}

    def root(who: int) -> int:
        while who in parent:
            who = parent[who]
        return who

    found: dict[int, set[str]] = {}
    for row in absorbed:
        found.setdefault(root(row.id), set()).add(row.name)
    for who, name in connection.execute(former):
        found.setdefault(root(who), set()).add(name)
    return found


def labels(connection: Connection) -> Labels:
    """Who is who, for every annotation in service."""
    query = (
        select(Annotation.c.id, Annotation.c.individual_id, Photo.c.encounter_id, Annotation.c.photo_id)
        .join(Photo, Photo.c.id == Annotation.c.photo_id)
        .where(*in_service())
        .order_by(Annotation.c.id)
    )
    rows = [(a, -1 if who is None else who, -1 if e is None else e, p) for a, who, e, p in connection.execute(query)]
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    names = connection.execute(select(Individual.c.id, Individual.c.name).where(Individual.c.live)).all()
    ids, owners, encounters, photos = map(np.ascontiguousarray, columns)
    return Labels(ids, owners, encounters, photos, dict(names))


def cut_out(connection: Connection, newest: int) -> tuple[int, int]:
    """Of the newest annotations in service, how many are a part of their photo and not (nearly) the whole of it; and
    how many were looked at.
    """
    query = (
        select(Annotation.c.x1 - Annotation.c.x0, Annotation.c.y1 - Annotation.c.y0, Photo.c.width, Photo.c.height)
        .join(Photo, Photo.c.id == Annotation.c.photo_id)
        .where(*in_service())
        .order_by(Annotation.c.id.desc())
        .limit(newest)
    )
    rows = connection.execute(query).all()
    return sum(w * h < NEARLY_WHOLE * width * height for w, h, width, height in rows), len(rows)


def owners(connection: Connection) -> dict[int, int]:
    """Annotation in service → its individual, for those that have one."""
    query = (
        select(Annotation.c.id, Annotation.c.individual_id)
        .join(Photo, Photo.c.id == Annotation.c.photo_id)
        .where(Annotation.c.individual_id.is_not(None), *in_service())
    )
    rows = connection.execute(query).all()  # at once: a query asks for every owner there is
    return {annotation: who for annotation, who in rows if who is not None}


def species(connection: Connection) -> dict[int, str]:
    """Annotation in service → its species, for those that have one."""
    query = (
        select(Annotation.c.id, Annotation.c.species)
        .join(Photo, Photo.c.id == Annotation.c.photo_id)
        .where(Annotation.c.species.is_not(None), *in_service())
    )
    rows = connection.execute(query).all()
    return {annotation: kind for annotation, kind in rows if kind}


def counts(connection: Connection) -> Counts:
    """How much of everything there is."""
    states = dict(connection.execute(select(Photo.c.state, func.count()).group_by(Photo.c.state)).all())
    serving = (
        select(func.count(), func.count(Annotation.c.individual_id))
        .select_from(Annotation)
        .join(Photo, Photo.c.id == Annotation.c.photo_id)
        .where(*in_service())
    )
    total, named = connection.execute(serving).one()

    return Counts(
        photos=sum(states.values()),
        missing=states.get("missing", 0),
        changed=states.get("changed", 0),
        bare=_number(connection, _bare(select(func.count()).select_from(Photo))),
        annotations=total,
        unnamed=total - named,
        individuals=live_individuals(connection),
        encounters=_number(connection, select(func.count(distinct(Photo.c.encounter_id)))),
        events=_number(connection, select(func.count()).select_from(IdentityEvent)),
    )


def live_individuals(connection: Connection) -> int:
    """How many animals there are."""
    return _number(connection, select(func.count()).where(Individual.c.live))


def _number(connection: Connection, query: Select[Any]) -> int:
    return int(connection.scalar(query) or 0)


def encounter_keys(connection: Connection, ids: Collection[int]) -> dict[int, str | None]:
    """The owner's key of each encounter, None where it was grouped."""
    found: dict[int, str | None] = {}
    for part in chunks(ids):
        query = select(Encounter.c.id, Encounter.c.key).where(Encounter.c.id.in_(part))
        found.update(dict(connection.execute(query).all()))
    return found
