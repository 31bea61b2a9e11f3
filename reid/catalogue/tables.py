"""The tables of the catalogue, as typed models, and nothing else: no query, no connection, no rule of identity.

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
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    event,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

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


class Base(DeclarativeBase):
    """Common parent; names every constraint, which SQLite needs to alter one later."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {float: Double()}


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


event.listen(Base.metadata, "before_create", spell_out_partial_indexes)


class CatalogueState(Base):
    """The one row (id 1) every writer locks. `revision` counts changes; `vectors_revision` is the last that changed
    which vectors serve.
    """

    __tablename__ = "catalogue_state"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    revision: Mapped[int] = mapped_column(BigInteger)
    vectors_revision: Mapped[int] = mapped_column(BigInteger)


class Encounter(Base):
    """One sighting. `key` is the owner's name for it; NULL where it was grouped by time and place."""

    __tablename__ = "encounter"
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)
    key: Mapped[str | None] = mapped_column(Text, unique=True)


class Photo(Base):
    """A photo: its bytes (by hash), where they are, and what they say of themselves.

    `state` as in `records.PhotoState`; `revision` is the catalogue's when it last began or ceased to serve.
    """

    __tablename__ = "photo"
    __table_args__ = (
        _partial("ix_photo_out_of_service", "revision", "state = 'changed'"),
        _partial("ix_photo_ungrouped", "id", "encounter_id IS NULL"),
    )
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    phash: Mapped[int | None] = mapped_column(BigInteger)
    path: Mapped[str] = mapped_column(Text, index=True)
    name: Mapped[str] = mapped_column(Text)
    format: Mapped[str] = mapped_column(Text)
    width: Mapped[int]
    height: Mapped[int]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int | None] = mapped_column(BigInteger)
    taken_at: Mapped[datetime | None] = mapped_column(DateTime, index=True)
    latitude: Mapped[float | None]
    longitude: Mapped[float | None]
    camera: Mapped[str | None] = mapped_column(Text)
    notes: Mapped[list[str]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(String(8))
    encounter_id: Mapped[int | None] = mapped_column(ForeignKey("encounter.id"), index=True)
    added_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revision: Mapped[int] = mapped_column(BigInteger, index=True)


class PhotoCopy(Base):
    """A further path of a photo's bytes; `present` false once the file there is gone (a path it was moved from,
    too).
    """

    __tablename__ = "photo_copy"
    path: Mapped[str] = mapped_column(Text, primary_key=True)
    photo_id: Mapped[int] = mapped_column(ForeignKey("photo.id"), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int | None] = mapped_column(BigInteger)
    present: Mapped[bool]


class Individual(Base):
    """An animal. `first_name` is a fact; the rest is projected. Neither live nor merged: no event in force names it."""

    __tablename__ = "individual"
    __table_args__ = (
        Index("ix_individual_name", "name"),
        _partial("uq_individual_live_name", "name", "live", unique=True),
    )
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)
    first_name: Mapped[str] = mapped_column(Text, index=True)
    name: Mapped[str] = mapped_column(Text)
    merged_into_id: Mapped[int | None] = mapped_column(ForeignKey("individual.id"), index=True)
    live: Mapped[bool]


class FormerName(Base):
    """A name an individual bore before a rename. Projected."""

    __tablename__ = "former_name"
    individual_id: Mapped[int] = mapped_column(ForeignKey("individual.id"), primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True, index=True)


class Annotation(Base):
    """One animal in a photo: box XYXY in pixels of the upright original. `given_id`, `individual_id`: whose it was
    said to be, and is (projected).
    """

    __tablename__ = "annotation"
    __table_args__ = (_partial("ix_annotation_out_of_service", "revision", "superseded_by_id IS NOT NULL"),)
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)
    photo_id: Mapped[int] = mapped_column(ForeignKey("photo.id"), index=True)
    x0: Mapped[float]
    y0: Mapped[float]
    x1: Mapped[float]
    y1: Mapped[float]
    confidence: Mapped[float]
    origin: Mapped[str] = mapped_column(String(8))
    side: Mapped[str] = mapped_column(String(8))
    species: Mapped[str | None] = mapped_column(Text)
    quality: Mapped[float | None]
    superseded_by_id: Mapped[int | None] = mapped_column(ForeignKey("annotation.id"))
    revision: Mapped[int] = mapped_column(BigInteger)
    given_id: Mapped[int | None] = mapped_column(ForeignKey("individual.id"), index=True)
    individual_id: Mapped[int | None] = mapped_column(ForeignKey("individual.id"), index=True)


class IdentityEvent(Base):
    """The log of identity: only ever added to. Columns as in `records.Event`."""

    __tablename__ = "identity_event"
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(8))
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    who: Mapped[str] = mapped_column(Text)
    why: Mapped[str] = mapped_column(Text)
    evidence: Mapped[dict[str, Any]] = mapped_column(JSON)
    individual_id: Mapped[int | None] = mapped_column(ForeignKey("individual.id"), index=True)
    label: Mapped[str | None] = mapped_column(Text)
    other_id: Mapped[int | None] = mapped_column(ForeignKey("individual.id"), index=True)
    other_label: Mapped[str | None] = mapped_column(Text)
    name: Mapped[str | None] = mapped_column(Text)
    undoes_id: Mapped[int | None] = mapped_column(ForeignKey("identity_event.id"), index=True)


class EventAnnotation(Base):
    """The annotations of an event, and whose each was before it. Part of the log: only ever added to."""

    __tablename__ = "event_annotation"
    annotation_id: Mapped[int] = mapped_column(ForeignKey("annotation.id"), primary_key=True)
    event_id: Mapped[int] = mapped_column(ForeignKey("identity_event.id"), primary_key=True, index=True)
    from_id: Mapped[int | None] = mapped_column(ForeignKey("individual.id"), index=True)


class UndoneEvent(Base):
    """The events that are out of force. Projected."""

    __tablename__ = "undone_event"
    event_id: Mapped[int] = mapped_column(ForeignKey("identity_event.id"), primary_key=True)


class EmbeddingModel(Base):
    """A model that made vectors: `fingerprint` is the sha256 over its weights and preprocessing."""

    __tablename__ = "embedding_model"
    id: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)
    fingerprint: Mapped[str] = mapped_column(Text, unique=True)
    dim: Mapped[int]


class Embedding(Base):
    """One vector: `dim` half floats, little-endian. `revision` is the catalogue's when it was written."""

    __tablename__ = "embedding"
    __table_args__ = (Index("ix_embedding_model_id_revision", "model_id", "revision"),)
    model_id: Mapped[int] = mapped_column(ForeignKey("embedding_model.id"), primary_key=True)
    annotation_id: Mapped[int] = mapped_column(ForeignKey("annotation.id"), primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger)
    vector: Mapped[bytes] = mapped_column(LargeBinary)
