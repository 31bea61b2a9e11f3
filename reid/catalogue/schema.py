"""Is this database a catalogue of our version, and how it becomes one.

The check costs one SELECT and does not import Alembic, since every query pays for it; only creating and upgrading do.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, Engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from reid.catalogue.engine import errors_named
from reid.errors import CatalogueError

HEAD = "0001"
"""The schema this code speaks: the newest file in `migrations/versions` (a test compares)."""

_LOCK = 0x52656964  # the key of PostgreSQL's advisory lock while one process migrates: "Reid"


def exists(url: URL) -> bool:
    """Whether there may be a database: False only where an SQLite file is absent or empty."""
    if url.get_backend_name() != "sqlite":
        return True
    path = Path(url.database or "")
    return path.exists() and path.stat().st_size > 0


def version(engine: Engine) -> str | None:
    """The schema version recorded in the database, None where there is none."""
    with errors_named(engine), engine.connect() as connection:
        try:
            found = connection.scalar(text("SELECT version_num FROM alembic_version"))
        except SQLAlchemyError:
            connection.rollback()
            if inspect(connection).has_table("alembic_version"):
                raise
            return None
    return None if found is None else str(found)


def check(engine: Engine) -> None:
    """CatalogueError unless the database holds a catalogue of exactly this schema."""
    found = version(engine)
    if found == HEAD:
        return
    source = engine.url.render_as_string()
    if found is None:
        raise CatalogueError("there is no catalogue in this database", source=source, next_step="create one: reid init")
    if found in known_versions():
        raise CatalogueError(
            f"the catalogue has schema {found}, this program speaks {HEAD}",
            source=source,
            next_step="back it up, then upgrade it: reid init",
        )
    raise CatalogueError(
        f"the catalogue has schema {found}, which this program does not know: it speaks {HEAD}",
        source=source,
        next_step="install a newer animal-reid",
    )


def known_versions() -> frozenset[str]:
    """Schemas that there are migrations for."""
    folder = Path(__file__).with_name("migrations") / "versions"
    return frozenset(path.stem.split("_", 1)[0] for path in folder.glob("[0-9]*.py"))


def upgrade(engine: Engine) -> None:
    """Create the tables, or bring them to `HEAD`, in one transaction; nothing happens where they are at it.

    Processes that do so at once wait for each other. CatalogueError when the database is of a newer program.
    """
    found = version(engine) if exists(engine.url) else None
    if found == HEAD:
        return
    if found is not None and found not in known_versions():
        check(engine)
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    with errors_named(engine), engine.connect().execution_options(reid_write=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
