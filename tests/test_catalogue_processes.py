# ruff: noqa: F811  (fixtures are named as the arguments that ask for them)
"""Several processes on one store, and processes that die: every photo once, what was acknowledged kept, never half a
batch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from catalogue_databases import database, enrolled, fresh_url, photo, sha  # noqa: F401
from sqlalchemy import URL, create_engine, text

from reid.catalogue import Catalogue, NewPhoto
from reid.errors import CatalogueError, IdentityError

BATCH = 8
SPAWN = multiprocessing.get_context("spawn")


def numbered(start: int, stop: int) -> list[NewPhoto]:
    """Photos whose every field follows from their number, four to an individual."""
    return [
        photo(n, f"w{n // 4}", encounter=f"e{n // 8}", vector=np.full(4, n % 7, np.float32)) for n in range(start, stop)
    ]


def enrol_all(url: str, seed: int, total: int) -> None:
    """Enrol the photos 1 to `total` in batches of chance size and order."""
    chance = random.Random(seed)
    order = list(range(1, total + 1, 5))
    chance.shuffle(order)
    with Catalogue.open(url) as opened:
        for start in order:
            opened.add_photos(numbered(start, min(start + 8, total + 1)), who=f"process {seed}", fingerprint="model")


def test_enrolments_at_once_take_every_photo_in_once_while_queries_go_on(database: URL) -> None:
    url = database.render_as_string(hide_password=False)
    total = 120
    workers = [SPAWN.Process(target=enrol_all, args=(url, seed, total)) for seed in range(3)]
    for worker in workers:
        worker.start()
    looked = 0
    with Catalogue.open(database) as catalogue:
        revisions = []
        while any(worker.is_alive() for worker in workers):
            revisions.append(catalogue.revision)
            labels = catalogue.labels()
            assert len(set(labels.photos.tolist())) == len(labels.photos)
            assert (labels.individuals > 0).all()  # an annotation and its identity come together
            looked += 1
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
        assert revisions == sorted(revisions)
        counts = catalogue.counts()
        assert (counts.photos, counts.annotations, counts.events, counts.unnamed) == (total, total, total, 0)
        assert counts.individuals == len({n // 4 for n in range(1, total + 1)})
        assert counts.encounters == len({n // 8 for n in range(1, total + 1)})
        assert sum(len(chunk.annotations) for chunk in catalogue.embeddings("model")) == total
        assert catalogue.replay().state == catalogue.projection()
    assert looked > 0


def test_threads_share_one_catalogue(database: URL) -> None:
    with Catalogue.open(database) as catalogue:
        enrolled(catalogue, *numbered(1, 41))
        failures: list[BaseException] = []

        def work(seed: int) -> None:
            chance = random.Random(seed)
            try:
                for _ in range(15):
                    a, b = chance.sample(range(10), 2)
                    with contextlib.suppress(IdentityError):
                        event = catalogue.merge(f"w{a}", f"w{b}", who=f"thread {seed}")
                        catalogue.annotations(range(1, 41))
                        catalogue.undo(event, who=f"thread {seed}")
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        replay = catalogue.replay()
        assert (replay.impossible, replay.state) == ((), catalogue.projection())


def create(url: str) -> None:
    Catalogue.open(url, create=True).close()


def test_processes_that_create_one_catalogue_at_once_make_one(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'c.sqlite'}"
    workers = [SPAWN.Process(target=create, args=(url,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert Catalogue.open(url).revision == 0


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_catalogue_processes import write_for_ever
write_for_ever({url!r}, {start})
"""


def write_for_ever(url: str, start: int) -> None:
    """Enrol batch after batch and change identities, saying after each commit what is done."""
    with Catalogue.open(url) as opened:
        while True:
            opened.add_photos(numbered(start, start + BATCH), who="writer", fingerprint="model")
            print("photos", start, flush=True)
            first, second = f"w{start // 4}", f"w{start // 4 + 1}"
            merge = opened.merge(first, second, who="writer")
            print("event", merge, flush=True)
            if start % 3:
                print("event", opened.undo(merge, who="writer"), flush=True)
            start += BATCH


def kill_a_writer(url: URL, start: int, after_s: float) -> list[tuple[str, int]]:
    """Start a writer, kill it some time after it first said something; all that it said."""
    code = WRITER.format(tests=str(Path(__file__).parent), url=url.render_as_string(hide_password=False), start=start)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(after_s)
    os.kill(process.pid, signal.SIGKILL)
    lines = [first, *process.stdout.read().splitlines(keepends=True)]
    process.stdout.close()
    process.wait()
    return [(line.split()[0], int(line.split()[1])) for line in lines if line.endswith("\n")]


def assert_whole(url: URL, said: list[tuple[str, int]]) -> int:
    """Everything that was acknowledged is there and nothing is there by half; the next number to write."""
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url)
        with engine.connect() as connection:
            assert connection.execute(text("PRAGMA integrity_check")).scalars().all() == ["ok"]
            assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
        engine.dispose()
    with Catalogue.open(url) as catalogue:
        for kind, number in said:
            if kind == "photos":
                assert catalogue.photo_by_hash(sha(number + BATCH - 1)) is not None
            else:
                assert [event.id for event in catalogue.events(number - 1, 1)] == [number]
        counts = catalogue.counts()
        assert counts.photos % BATCH == 0
        assert (counts.annotations, counts.unnamed) == (counts.photos, 0)
        assert sum(len(chunk.annotations) for chunk in catalogue.embeddings("model")) == counts.photos
        replay = catalogue.replay()
        assert (replay.impossible, replay.state) == ((), catalogue.projection())
        return BATCH + counts.photos


@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        ("sqlite", 5),
        ("postgresql", 2),
        pytest.param("sqlite", 50, marks=pytest.mark.slow),
        pytest.param("postgresql", 50, marks=pytest.mark.slow),
    ],
)
def test_a_killed_writer_leaves_the_catalogue_whole(
    kind: str, kills: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if request.node.get_closest_marker("slow") and "slow" not in request.config.option.markexpr:
        pytest.skip("minutes long: run with -m slow")
    url = fresh_url(kind, tmp_path)
    chance = random.Random(kills)
    start = BATCH
    said: list[tuple[str, int]] = []
    for _ in range(kills):
        said += kill_a_writer(url, start, chance.uniform(0, 0.4))
        start = assert_whole(url, said)
    assert len(said) > kills


def test_a_disk_that_is_full_refuses_and_leaves_what_was_there(tmp_path: Path) -> None:
    url = fresh_url("sqlite", tmp_path)
    with Catalogue.open(url) as catalogue:
        enrolled(catalogue, *numbered(1, 9))
        with catalogue._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1")  # no page more than there are
        start = 9
        with pytest.raises(CatalogueError, match="full"):
            while True:
                enrolled(catalogue, *numbered(start, start + 8))
                start += 8
        assert catalogue.counts().photos == start - 1
        assert catalogue.replay().state == catalogue.projection()
