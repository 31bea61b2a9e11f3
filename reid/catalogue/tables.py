"""The tables of the catalogue and the types of their columns, and nothing else: no query, no connection, no rule of
identity. Core tables, not mapped classes: importing the mapper takes .25 s, 7 % of a query.

Three kinds of column:

- *facts* about files and boxes, some of which may be mended later (a path after a move, a state, a time that a table
  added);
- the *log*: `identity_event` and `event_annotation` are only ever added to, and triggers in both databases refuse
  anything else;
- *projections* of the log (`annotation.given_id/individual_id`, `individual.name/merged_into_id/live`, `former_name`,
  `undone_event`): kept for speed, written in the transaction of the event, and derivable from the log at any time.

Ids are assigned by the writer under its lock (see `engine`), so that order of id is order of commit. Text columns hold
text as `encoding` makes it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Named,
    String,
    Table,
    Text,
    TypedColumns,
    TypeDecorator,
    event,
    text,
)

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite's row id must be spelt INTEGER to be the key itself


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time, kept as naive UTC, so that both databases store and order it alike."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Aware → naive UTC."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Naive UTC → aware."""
        return None if value is None else value.replace(tzinfo=UTC)


METADATA = MetaData(naming_convention=NAMING)  # names every constraint, which SQLite needs to alter one later


def _partial(name: str, column: str, where: str, *, unique: bool = False) -> Index:
    """An index over few rows, which costs the others nothing. Naming a dialect here would import it on the way of
    every query.
    """
    return Index(name, column, unique=unique, info={"where": where})


def spell_out_partial_indexes(metadata: MetaData, *_: object, **__: object) -> None:
    """Tell each dialect the condition of the partial indexes; done before tables are made from this metadata."""
    for table in metadata.tables.values():
        for index in table.indexes:
            if "where" in index.info:
                for dialect in ("sqlite", "postgresql"):
                    index.dialect_kwargs[f"{dialect}_where"] = text(index.info["where"])


event.listen(METADATA, "before_create", spell_out_partial_indexes)


class CatalogueStateColumns(TypedColumns):
    """The one row (id 1) every writer locks. `revision` counts changes; `vectors_revision` is the last that changed
    which vectors serve.
    """

    id: Named[int] = Column(Integer, primary_key=True, autoincrement=False)
    revision: Named[int] = Column(BigInteger)
    vectors_revision: Named[int] = Column(BigInteger)


CatalogueState = Table("catalogue_state", METADATA, CatalogueStateColumns)


class EncounterColumns(TypedColumns):
    """One sighting. `key` is the owner's name for it; NULL where it was grouped by time and place."""

    id: Named[int] = Column(Id, primary_key=True, autoincrement=False)
    key: Named[str | None] = Column(Text, unique=True)


Encounter = Table("encounter", METADATA, EncounterColumns)


class PhotoColumns(TypedColumns):
    """A photo: its bytes (by hash), where they are, and what they say of themselves.

    `state` as in `records.PhotoState`; `revision` is the catalogue's when it last began or ceased to serve.
    """

    id: Named[int] = Column(Id, primary_key=True, autoincrement=False)
    sha256: Named[str] = Column(String(64), unique=True)
    phash: Named[int | None] = Column(BigInteger)
    path: Named[str] = Column(Text, index=True)
    name: Named[str] = Column(Text)
    format: Named[str] = Column(Text)
    width: Named[int]
    height: Named[int]
    size_bytes: Named[int] = Column(BigInteger)
    mtime_ns: Named[int | None] = Column(BigInteger)
    taken_at: Named[datetime | None] = Column(DateTime, index=True)
    latitude: Named[float | None] = Column(Double)
    longitude: Named[float | None] = Column(Double)
    camera: Named[str | None] = Column(Text)
    notes: Named[list[str]] = Column(JSON)
    state: Named[str] = Column(String(8))
    encounter_id: Named[int | None] = Column(Id, ForeignKey("encounter.id"), index=True)
    added_at: Named[datetime] = Column(UtcDateTime)
    revision: Named[int] = Column(BigInteger, index=True)


Photo = Table(
    "photo",
    METADATA,
    PhotoColumns,
    _partial("ix_photo_out_of_service", "revision", "state = 'changed'"),
    _partial("ix_photo_ungrouped", "id", "encounter_id IS NULL"),
)


class PhotoCopyColumns(TypedColumns):
    """A further path of a photo's bytes; `present` false once the file there is gone (a path it was moved from,
    too).
    """

    path: Named[str] = Column(Text, primary_key=True)
    photo_id: Named[int] = Column(Id, ForeignKey("photo.id"), index=True)
    size_bytes: Named[int] = Column(BigInteger)
    mtime_ns: Named[int | None] = Column(BigInteger)
    present: Named[bool]


PhotoCopy = Table("photo_copy", METADATA, PhotoCopyColumns)


class IndividualColumns(TypedColumns):
    """An animal. `first_name` is a fact; the rest is projected. Neither live nor merged: no event in force names it."""

    id: Named[int] = Column(Id, primary_key=True, autoincrement=False)
    first_name: Named[str] = Column(Text, index=True)
    name: Named[str] = Column(Text)
    merged_into_id: Named[int | None] = Column(Id, ForeignKey("individual.id"), index=True)
    live: Named[bool]


Individual = Table(
    "individual",
    METADATA,
    IndividualColumns,
    Index("ix_individual_name", "name"),
    _partial("uq_individual_live_name", "name", "live", unique=True),
)


class FormerNameColumns(TypedColumns):
    """A name an individual bore before a rename. Projected."""

    individual_id: Named[int] = Column(Id, ForeignKey("individual.id"), primary_key=True)
    name: Named[str] = Column(Text, primary_key=True, index=True)


FormerName = Table("former_name", METADATA, FormerNameColumns)


class AnnotationColumns(TypedColumns):
    """One animal in a photo: box XYXY in pixels of the upright original. `given_id`, `individual_id`: whose it was
    said to be, and is (projected).
    """

    id: Named[int] = Column(Id, primary_key=True, autoincrement=False)
    photo_id: Named[int] = Column(Id, ForeignKey("photo.id"), index=True)
    x0: Named[float] = Column(Double)
    y0: Named[float] = Column(Double)
    x1: Named[float] = Column(Double)
    y1: Named[float] = Column(Double)
    confidence: Named[float] = Column(Double)
    origin: Named[str] = Column(String(8))
    side: Named[str] = Column(String(8))
    species: Named[str | None] = Column(Text)
    quality: Named[float | None] = Column(Double)
    superseded_by_id: Named[int | None] = Column(Id, ForeignKey("annotation.id"))
    revision: Named[int] = Column(BigInteger)
    given_id: Named[int | None] = Column(Id, ForeignKey("individual.id"), index=True)
    individual_id: Named[int | None] = Column(Id, ForeignKey("individual.id"), index=True)


Annotation = Table(
    "annotation",
    METADATA,
    AnnotationColumns,
    _partial("ix_annotation_out_of_service", "revision", "superseded_by_id IS NOT NULL"),
)


class IdentityEventColumns(TypedColumns):
    """The log of identity: only ever added to. Columns as in `records.Event`."""

    id: Named[int] = Column(Id, primary_key=True, autoincrement=False)
    kind: Named[str] = Column(String(8))
    at: Named[datetime] = Column(UtcDateTime)
    who: Named[str] = Column(Text)
    why: Named[str] = Column(Text)
    evidence: Named[dict[str, Any]] = Column(JSON)
    individual_id: Named[int | None] = Column(Id, ForeignKey("individual.id"), index=True)
    label: Named[str | None] = Column(Text)
    other_id: Named[int | None] = Column(Id, ForeignKey("individual.id"), index=True)
    other_label: Named[str | None] = Column(Text)
    name: Named[str | None] = Column(Text)
    undoes_id: Named[int | None] = Column(Id, ForeignKey("identity_event.id"), index=True)


IdentityEvent = Table("identity_event", METADATA, IdentityEventColumns)


class EventAnnotationColumns(TypedColumns):
    """The annotations of an event, and whose each was before it. Part of the log: only ever added to."""

    annotation_id: Named[int] = Column(Id, ForeignKey("annotation.id"), primary_key=True)
    event_id: Named[int] = Column(Id, ForeignKey("identity_event.id"), primary_key=True, index=True)
    from_id: Named[int | None] = Column(Id, ForeignKey("individual.id"), index=True)


EventAnnotation = Table("event_annotation", METADATA, EventAnnotationColumns)


class UndoneEventColumns(TypedColumns):
    """The events that are out of force. Projected."""

    event_id: Named[int] = Column(Id, ForeignKey("identity_event.id"), primary_key=True)


UndoneEvent = Table("undone_event", METADATA, UndoneEventColumns)


class EmbeddingModelColumns(TypedColumns):
    """A model that made vectors: `fingerprint` is the sha256 over its weights and preprocessing."""

    id: Named[int] = Column(Id, primary_key=True, autoincrement=False)
    fingerprint: Named[str] = Column(Text, unique=True)
    dim: Named[int]


EmbeddingModel = Table("embedding_model", METADATA, EmbeddingModelColumns)


class EmbeddingColumns(TypedColumns):
    """One vector: `dim` half floats, little-endian. `revision` is the catalogue's when it was written."""

    model_id: Named[int] = Column(Id, ForeignKey("embedding_model.id"), primary_key=True)
    annotation_id: Named[int] = Column(Id, ForeignKey("annotation.id"), primary_key=True)
    revision: Named[int] = Column(BigInteger)
    vector: Named[bytes] = Column(LargeBinary)


Embedding = Table(
    "embedding", METADATA, EmbeddingColumns, Index("ix_embedding_model_id_revision", "model_id", "revision")
)
