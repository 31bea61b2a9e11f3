"""Databases to test the catalogue on: SQLite files, and PostgreSQL from REID_TEST_POSTGRES or a private cluster made
for the run.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from reid.catalogue import Catalogue, NewAnnotation, NewPhoto, sqlite_url
from reid.records import Box, PhotoFacts

_numbers = itertools.count(1)


class Clock:
    """A clock that is a second later each time it is read."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


def _programs() -> Path | None:
    """The folder with initdb and postgres, the newest version of several."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    found = [*installed, *([Path(on_path).resolve()] if on_path else [])]
    return found[-1].parent if found else None


@functools.cache
def postgres_server() -> URL | str:
    """The server's address (any database of it), or the reason why there is none. A private cluster stops when the
    run ends.
    """
    given = os.environ.get("REID_TEST_POSTGRES")
    if given:
        return make_url(given)
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed"
    programs = _programs()
    if programs is None:
        return "no PostgreSQL: neither REID_TEST_POSTGRES nor initdb"
    owner: str | None = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        owner = next((name for name in ("postgres", "nobody") if _is_user(name)), None)
        if owner is None:
            return "PostgreSQL refuses to run as root, and there is no other user"
    folder = Path(tempfile.mkdtemp(prefix="reid-pg-"))
    if owner is not None:
        os.chown(folder, pwd.getpwnam(owner).pw_uid, -1)
    data = folder / "data"
    try:
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "reid", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"],
            user=owner,
            cwd=folder,
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        return f"initdb failed: {error}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    setpriv = shutil.which("setpriv")  # has the kernel stop the server when this run is killed before it can
    server = subprocess.Popen(
        [
            *([setpriv, "--pdeathsig", "INT"] if setpriv else []),
            programs / "postgres",
            "-D",
            data,
            "-p",
            str(port),
            "-k",
            folder,
            "-h",
            "127.0.0.1",
            "-c",
            "fsync=off",
        ],
        user=owner,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def stop() -> None:
        server.send_signal(signal.SIGINT)  # "fast": does not wait for clients
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    url = URL.create("postgresql+psycopg", "reid", host="127.0.0.1", port=port, database="postgres")
    for _ in range(200):
        engine = create_engine(url)
        try:
            engine.connect().close()
        except OperationalError:
            time.sleep(0.1)
        else:
            return url
        finally:
            engine.dispose()
    return "the PostgreSQL server did not start"


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _admin(statement: str) -> URL:
    server = postgres_server()
    if isinstance(server, str):
        pytest.skip(server)
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
    return server


@functools.cache
def _template() -> str:
    """A database with the tables in it, for others to be copied from."""
    name = f"reid_template_{os.getpid()}"
    server = _admin(f"CREATE DATABASE {name}")
    Catalogue.open(server.set(database=name), create=True).close()
    atexit.register(lambda: _admin(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
    return name


@functools.cache
def _sqlite_template() -> Path:
    """A file with the tables in it, for others to be copied from."""
    folder = Path(tempfile.mkdtemp(prefix="reid-sqlite-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Catalogue.open(sqlite_url(folder / "template.sqlite"), create=True).close()
    return folder / "template.sqlite"


def empty_postgres(template: str = "template0") -> URL:
    """The address of a fresh database."""
    name = f"reid_test_{os.getpid()}_{next(_numbers)}"
    return _admin(f"CREATE DATABASE {name} TEMPLATE {template}").set(database=name)


def drop(url: URL) -> None:
    """Remove a fresh database again; an SQLite file goes with its folder."""
    if url.get_backend_name() == "postgresql":
        _admin(f"DROP DATABASE IF EXISTS {url.database} WITH (FORCE)")


def fresh_url(kind: str, folder: Path) -> URL:
    """The address of an empty catalogue, tables made."""
    if kind == "postgresql":
        postgres_server()
        return empty_postgres(_template())
    file = folder / f"catalogue-{next(_numbers)}.sqlite"
    shutil.copy(_sqlite_template(), file)
    return sqlite_url(file)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    """The address of an empty catalogue, on either database."""
    url = fresh_url(request.param, tmp_path)
    yield url
    drop(url)


@pytest.fixture
def catalogue(database: URL) -> Iterator[Catalogue]:
    """An empty catalogue, on either database, with a clock of its own."""
    with Catalogue.open(database, clock=Clock()) as opened:
        yield opened


def sha(number: int) -> str:
    """A hash, one for each number."""
    return f"{number:064x}"


WHOLE = Box(0, 0, 640, 480, origin="table")


def photo(
    number: int,
    identity: str | None = None,
    *,
    path: str | None = None,
    boxes: tuple[Box, ...] = (WHOLE,),
    encounter: str | None = None,
    taken_at: datetime | None = None,
    place: tuple[float, float] | None = None,
    vector: NDArray[np.float32] | None = None,
    mtime_ns: int | None = None,
    where: str = "",
    side: str = "unknown",
) -> NewPhoto:
    """A photo to enrol, its bytes named by a number; the identity goes to every box."""
    facts = PhotoFacts(
        path=Path(path or f"photos/{number}.jpg"),
        sha256=sha(number),
        width=640,
        height=480,
        format="JPEG",
        size_bytes=1000 + number,
        phash=number,
        taken_at=taken_at,
        latitude=place and place[0],
        longitude=place and place[1],
    )
    marks = tuple(NewAnnotation(box, identity, side=side, vector=vector) for box in boxes)  # type: ignore[arg-type]
    return NewPhoto(facts, marks, encounter=encounter, mtime_ns=mtime_ns, where=where)


def enrolled(catalogue: Catalogue, *photos: NewPhoto) -> list[int]:
    """Enrol photos; the ids of their annotations, in order."""
    return [i for added in catalogue.add_photos(photos, who="tester", fingerprint="model") for i in added.annotations]
