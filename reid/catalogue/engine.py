"""Connections and transactions, alike on SQLite and PostgreSQL: one writer at a time, readers that see one moment.

Knows of the tables only the row that writers lock and which of them have ids. Every change goes through `writing`,
every look through `reading`.

- A writer takes the lock first (SQLite `BEGIN IMMEDIATE`; PostgreSQL `FOR UPDATE` on the state row), so what it has
  read stays true until it commits, unique violations cannot come from another writer, and revisions and ids ascend in
  order of commit. Who waits longer than `WAIT_S` gets `StoreBusy`.
- SQLite runs in WAL mode with `synchronous=FULL`: readers never wait, a killed process loses nothing it acknowledged,
  and neither does a power cut; the price is one fsync a transaction, and a transaction is a batch.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, func, insert, make_url, select, update
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError, SQLAlchemyError

from reid import steps
from reid.catalogue.tables import (
    Annotation,
    CatalogueState,
    EmbeddingModel,
    Encounter,
    IdentityEvent,
    Individual,
    Photo,
)
from reid.errors import CatalogueError, StoreBusy

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

WAIT_S = 30.0
"""How long a writer waits for another one, seconds."""

_NUMBERED = (Photo, Encounter, Annotation, Individual, IdentityEvent, EmbeddingModel)

_BUSY = ("database is locked", "database table is locked", "lock timeout", "LockNotAvailable")


def sqlite_url(path: Path) -> URL:
    """The address of an SQLite file, whatever characters its path holds."""
    return URL.create("sqlite", database=str(path))


def database_url(url: str | URL) -> URL:
    """A checked address. CatalogueError when it is none, or of a database that is not supported."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise CatalogueError(
            f"{url!r} is not a database address",
            next_step="write sqlite:////path/to/file or postgresql://user@host/name",
        ) from error
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise CatalogueError(
            f"{parsed.get_backend_name()} is not supported",
            source=parsed.render_as_string(),
            next_step="use SQLite or PostgreSQL",
        )
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise CatalogueError("a catalogue cannot live in memory", next_step="give a file: sqlite:////path/to/file")
    return parsed


def connect(url: URL, wait_s: float = WAIT_S) -> Engine:
    """An engine for `url`; nothing is opened yet. CatalogueError when the driver is not installed."""
    try:
        engine = create_engine(url)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise CatalogueError(
            f"the driver is not installed ({error})",
            source=url.render_as_string(),
            next_step=steps.install("postgres"),
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _sqlite_connect(wait_s))
        event.listen(engine, "begin", _sqlite_begin)
    else:
        engine = engine.execution_options(reid_wait_ms=int(wait_s * 1000))
    return engine


def _sqlite_connect(wait_s: float) -> Callable[[sqlite3.Connection, object], None]:
    def prepare(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None  # the driver begins nothing of its own accord: `_sqlite_begin` does
        connection.execute(f"PRAGMA busy_timeout={int(wait_s * 1000)}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    return prepare


def _sqlite_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("reid_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def errors_named(engine: Engine) -> Iterator[None]:
    """Turn what the database raises into our errors, with the address and the next step."""
    source = engine.url.render_as_string()
    try:
        yield
    except OperationalError as error:
        if any(sign in f"{type(error.orig).__name__} {error.orig}" for sign in _BUSY):
            raise StoreBusy(
                "another process has been writing for long",
                source=source,
                next_step="wait for it to finish and try again",
            ) from error
        raise CatalogueError(
            f"the database failed: {error.orig}",
            source=source,
            next_step="check that it can be reached, is not full and may be written",
        ) from error
    except DBAPIError as error:
        raise CatalogueError(
            f"the database refused: {error.orig}",
            source=source,
            next_step="check that this is a catalogue and is not damaged",
        ) from error
    except SQLAlchemyError as error:
        raise CatalogueError(f"the database could not be used: {error}", source=source) from error


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection that sees one moment of the catalogue, and blocks nobody."""
    options: dict[str, Any] = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    with errors_named(engine), engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


def _insert(connection: Connection, table: Table[Any]) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that knows ON CONFLICT; the dialects are imported here so that a query on SQLite does not pay for
    PostgreSQL's.
    """
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


class Writer:
    """A transaction that may change the catalogue. `revision` is the one it will leave behind if it changes anything.

    Say `touch()` for a change an answer depends on, `touch(vectors=True)` for one that changes which vectors serve.
    """

    def __init__(self, connection: Connection, revision: int) -> None:
        self.connection = connection
        self.revision = revision + 1
        self.changed = False
        self.vectors_changed = False
        self._last: dict[Table[Any], int] = {}

    def touch(self, *, vectors: bool = False) -> None:
        """Note that this transaction moves the catalogue to the next revision."""
        self.changed = True
        self.vectors_changed = self.vectors_changed or vectors

    def new_id(self, table: Table[Any]) -> int:
        """The next id of a table; safe because writers come one at a time and rows are never deleted."""
        if not self._last:
            highest = [select(func.max(one.c.id)).scalar_subquery() for one in _NUMBERED]
            found = self.connection.execute(select(*highest)).one()
            self._last = {one: number or 0 for one, number in zip(_NUMBERED, found, strict=True)}
        self._last[table] += 1
        return self._last[table]

    def insert(self, table: Table[Any], rows: list[dict[str, Any]]) -> None:
        """Insert many rows, possibly none."""
        if rows:
            self.connection.execute(insert(table), rows)

    def upsert(self, table: Table[Any], rows: list[dict[str, Any]]) -> None:
        """Insert rows, or overwrite those whose primary key is there."""
        if not rows:
            return
        statement = _insert(self.connection, table)
        keys = [column.name for column in table.primary_key.columns]
        values = {name: statement.excluded[name] for name in rows[0] if name not in keys}
        self.connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=values), rows)


@contextmanager
def writing(engine: Engine) -> Iterator[Writer]:
    """The transaction of the one writer: committed whole, or not at all. StoreBusy when another holds the lock too
    long.
    """
    with errors_named(engine), engine.connect().execution_options(reid_write=True) as connection, connection.begin():
        wait_ms = connection.get_execution_options().get("reid_wait_ms")
        if wait_ms is not None:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(wait_ms)}")
        revision = connection.scalar(
            select(CatalogueState.c.revision).where(CatalogueState.c.id == 1).with_for_update()
        )
        writer = Writer(connection, revision or 0)
        yield writer
        if writer.changed:
            values = {"revision": writer.revision}
            if writer.vectors_changed:
                values["vectors_revision"] = writer.revision
            connection.execute(update(CatalogueState).where(CatalogueState.c.id == 1).values(values))
