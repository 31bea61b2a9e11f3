# ruff: noqa: F811  (fixtures are named as the arguments that ask for them)
"""The schema: migrations make what the models say, and a database that is not ours is refused with what to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from catalogue_databases import catalogue, database, drop, empty_postgres, enrolled, fresh_url, photo  # noqa: F401
from sqlalchemy import URL, create_engine, inspect, text

from reid.catalogue import Catalogue, schema, sqlite_url
from reid.catalogue.engine import database_url
from reid.catalogue.tables import METADATA
from reid.errors import CatalogueError, StoreBusy


@pytest.fixture(params=["sqlite", "postgresql"])
def bare(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    """A database without tables."""
    url = sqlite_url(tmp_path / "bare.sqlite") if request.param == "sqlite" else empty_postgres()
    yield url
    drop(url)


def test_migrating_from_nothing_makes_exactly_what_the_models_say(database: URL) -> None:
    engine = create_engine(database)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, METADATA) == []
    engine.dispose()


def test_tables_made_from_the_models_are_those_of_the_migrations(bare: URL, tmp_path: Path) -> None:
    migrated_url = fresh_url(bare.get_backend_name(), tmp_path)
    made, migrated = create_engine(bare), create_engine(migrated_url)
    METADATA.create_all(made)
    a, b = inspect(made), inspect(migrated)
    assert {*a.get_table_names(), "alembic_version"} == set(b.get_table_names())
    for table in a.get_table_names():
        assert [{**c, "type": str(c["type"])} for c in a.get_columns(table)] == [
            {**c, "type": str(c["type"])} for c in b.get_columns(table)
        ]
        assert a.get_pk_constraint(table) == b.get_pk_constraint(table)
        for listed in ("get_indexes", "get_foreign_keys", "get_unique_constraints"):
            ours, theirs = (sorted(getattr(i, listed)(table), key=lambda x: str(x["name"])) for i in (a, b))
            assert [_plain(one) for one in ours] == [_plain(one) for one in theirs]
    made.dispose()
    migrated.dispose()
    drop(migrated_url)


def _plain(entry: dict[str, object]) -> dict[str, object]:
    """A reflected entry with SQL clauses as text, so that equal ones compare equal."""
    options = entry.get("dialect_options") or {}
    assert isinstance(options, dict)
    return {**entry, "dialect_options": {key: str(value) for key, value in options.items()}}


def test_the_version_in_the_code_is_the_newest_migration() -> None:
    scripts = ScriptDirectory(str(Path(schema.__file__).with_name("migrations")))
    assert scripts.get_heads() == [schema.HEAD]
    assert {script.revision for script in scripts.walk_revisions()} == schema.known_versions()


def test_creating_twice_keeps_what_is_there(database: URL) -> None:
    with Catalogue.open(database, create=True) as first:
        enrolled(first, photo(1, "Ana"))
    with Catalogue.open(database, create=True) as second:
        assert second.individual("Ana").n_photos == 1


def test_a_database_without_a_catalogue_is_refused_and_stays_as_it_was(bare: URL) -> None:
    with pytest.raises(CatalogueError, match="there is no catalogue.*reid init"):
        Catalogue.open(bare)
    if bare.get_backend_name() == "sqlite":
        assert not Path(bare.database or "").exists()


@pytest.mark.parametrize(
    ("found", "message"),
    [("0000", "does not know.*install a newer"), ("9999", "does not know.*install a newer"), (None, "no catalogue")],
)
def test_another_schema_is_refused_with_the_next_step(database: URL, found: str | None, message: str) -> None:
    set_version(database, found)
    with pytest.raises(CatalogueError, match=message):
        Catalogue.open(database)
    if found is not None:
        with pytest.raises(CatalogueError, match=message):
            Catalogue.open(database, create=True)


def test_an_older_schema_says_how_to_upgrade(database: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "HEAD", "0002")
    with pytest.raises(CatalogueError, match="has schema 0001, this program speaks 0002.*upgrade"):
        Catalogue.open(database)


def set_version(url: URL, found: str | None) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM alembic_version"))
        if found is not None:
            connection.execute(text("INSERT INTO alembic_version VALUES (:v)"), {"v": found})
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("no address", "not a database address"),
        ("mysql://host/db", "mysql is not supported"),
        ("sqlite://", "cannot live in memory"),
        ("sqlite:///:memory:", "cannot live in memory"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str, message: str) -> None:
    with pytest.raises(CatalogueError, match=message):
        Catalogue.open(url, create=True)


def test_a_short_postgresql_address_gets_the_driver_we_ship() -> None:
    assert database_url("postgresql://a@b/c").drivername == "postgresql+psycopg"
    assert database_url("postgres://a@b/c").drivername == "postgresql+psycopg"


def test_a_password_is_not_shown_in_an_error() -> None:
    with pytest.raises(CatalogueError) as caught:
        Catalogue.open("postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value) and "127.0.0.1" in str(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "photo.sqlite"
    file.write_bytes(b"\xff\xd8\xff" * 3000)
    for create in (False, True):
        with pytest.raises(CatalogueError, match="not a database"):
            Catalogue.open(sqlite_url(file), create=create)
    assert file.read_bytes() == b"\xff\xd8\xff" * 3000


def test_a_path_with_odd_characters_is_a_path(tmp_path: Path) -> None:
    file = tmp_path / "50% of? our #1 (Ömsö) fluke's" / "c.sqlite"
    file.parent.mkdir()
    with Catalogue.open(sqlite_url(file), create=True) as opened:
        enrolled(opened, photo(1))
    assert file.exists()
    assert Catalogue.open(f"sqlite:///{tmp_path / 'plain.sqlite'}", create=True).revision == 0


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="nowhere"):
        Catalogue.open(sqlite_url(tmp_path / "nowhere" / "c.sqlite"), create=True)


def test_sqlite_is_set_to_survive(tmp_path: Path) -> None:
    with Catalogue.open(sqlite_url(tmp_path / "c.sqlite"), create=True) as opened:
        with opened._engine.connect() as connection:
            settings = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}


def test_a_writer_that_waits_too_long_says_that_the_store_is_busy(database: URL) -> None:
    with Catalogue.open(database) as slow, Catalogue.open(database, wait_s=0.2) as hasty:
        from reid.catalogue.engine import writing

        with writing(slow._engine):
            assert hasty.counts().photos == 0  # readers do not wait
            with pytest.raises(StoreBusy, match="another process has been writing"):
                enrolled(hasty, photo(1))
        enrolled(hasty, photo(1))


def test_opening_does_not_import_what_only_creating_needs(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "c.sqlite")
    Catalogue.open(url, create=True).close()
    program = (
        "import sys\n"
        "from reid.catalogue import Catalogue\n"
        f"with Catalogue.open({url.render_as_string()!r}) as c: c.annotations([1]), c.revision, c.counts()\n"
        "never = 'alembic', 'mako', 'psycopg', 'sqlalchemy.dialects.postgresql', 'torch', 'cv2', 'faiss'\n"
        "print([name for name in never if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
