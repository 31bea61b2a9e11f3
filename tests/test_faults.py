"""Processes that die, compete, or find damage: what was acknowledged stays, nothing is taken in twice, and damage is
never mistaken for "no match". REID_KILLS raises the number of kills.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_stores import (
    assert_database_is_sound,
    assert_index_is_the_catalogue,
    counted,
    fake_store,
    herd,
    labels,
    paint,
    reopened,
    seen,
    taken_in,
)

from reid import fit, whiten, withheld
from reid.pipeline import identify, query_of
from reid.store import Store

KILLS = int(os.environ.get("REID_KILLS", "6"))
CHILD = Path(__file__).with_name("fault_child.py")
linux = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")


def child(what: str, root: Path, where: Path, **more: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", str(CHILD), what, str(root), str(where)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more)  # type: ignore[call-overload, no-any-return]


def killed(process: subprocess.Popen[str], after_s: float) -> list[str]:
    """Wait until it is ready, let it work for a while, kill it; the lines it wrote."""
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(after_s)
    process.kill()
    written, _ = process.communicate()
    return written.splitlines()


@linux
def test_an_enrolment_killed_at_any_moment_loses_nothing_it_acknowledged_and_is_finished_by_the_next(
    tmp_path: Path,
) -> None:
    chance = random.Random(os.urandom(8))
    rows = herd(tmp_path / "p", 60, 3)
    fake_store(tmp_path / "s").close()
    for _ in range((KILLS + 1) // 2):
        lines = killed(child("enrol", tmp_path / "s", tmp_path / "p"), chance.uniform(0.0, 0.6))
        assert_database_is_sound(tmp_path / "s")
        with reopened(tmp_path / "s") as store:
            counts = store.catalogue.counts()
            acknowledged = [int(line) for line in lines if line.isdigit()]
            assert counts.photos >= max(acknowledged, default=0)
            assert counts.photos == counts.annotations and counts.unnamed == 0
            assert len(store.catalogue.lacking_embeddings(store.fingerprint)) == 0
            assert_index_is_the_catalogue(store)
    with reopened(tmp_path / "s") as store:
        before = store.catalogue.counts().photos
        report = taken_in(store, [seen(row.path, row.identity) for row in rows])
        assert counted(report) == (180 - before, before, 0, 0, 0)
        counts = store.catalogue.counts()
        assert (counts.photos, counts.annotations, counts.individuals, counts.unnamed) == (180, 180, 60, 0)
        assert_index_is_the_catalogue(store)
        [answer] = identify(store, [query_of([paint(tmp_path / "q.png", 7, 50)])])
        assert answer.status == "match" and labels(answer)[0] == "a007"


@linux
def test_a_rebuild_killed_at_any_moment_leaves_an_index_that_can_be_used_or_says_that_it_cannot(tmp_path: Path) -> None:
    chance = random.Random(os.urandom(8))
    with fake_store(tmp_path / "s") as store:
        taken_in(store, herd(tmp_path / "p", 60, 3))
    photo = paint(tmp_path / "q.png", 7, 50)
    for _ in range((KILLS + 1) // 2):
        killed(child("fit", tmp_path / "s", tmp_path), chance.uniform(0.0, 1.0))
        with reopened(tmp_path / "s") as store:
            [answer] = identify(store, [query_of([photo])])
            # the child's own whitenings have no fit, which is said
            assert (answer.status, labels(answer)[:1]) in [("match", ["a007"]), ("index_stale", [])]
            _, repaired = store.repaired_gallery()
            assert not repaired  # one gallery or the other, whole
            assert_index_is_the_catalogue(store)
    with reopened(tmp_path / "s") as store:
        fit.fit(store)
        [answer] = identify(store, [query_of([photo])])
        assert answer.status == "match"
        left = {path.name for path in store.index_folder.glob("build-*")}
        assert left == set()


@linux
def test_two_enrolments_of_overlapping_folders_at_once_while_queries_go_on(tmp_path: Path) -> None:
    with fake_store(tmp_path / "s") as store:
        taken_in(store, herd(tmp_path / "first", 5, 2))
    rows = herd(tmp_path / "all", 50, 2)
    for name, part in (("a", rows[:70]), ("b", rows[30:])):
        (tmp_path / name).mkdir()
        for row in part:
            shutil.copy2(row.path, tmp_path / name / row.path.name)
    photo = paint(tmp_path / "q.png", 3, 50)
    enrolments = [child("enrol", tmp_path / "s", tmp_path / name) for name in "ab"]
    asking = child("ask", tmp_path / "s", photo)
    assert asking.stdin is not None and asking.stdout is not None
    assert asking.stdout.readline() == "ready\n"
    answers = []
    while True:
        answers.append(asking.stdout.readline())
        over = all(one.poll() is not None for one in enrolments) or not answers[-1]
        if asking.poll() is None:
            asking.stdin.write("stop\n" if over else "go on\n")
            asking.stdin.flush()
        if over:
            break
    asking.communicate()
    written = [one.communicate()[0].splitlines() for one in enrolments]
    assert [one.returncode for one in enrolments] == [0, 0] and [lines[-1] for lines in written] == ["done", "done"]
    assert set(answers) == {"match a003\n"}
    assert_database_is_sound(tmp_path / "s")
    with reopened(tmp_path / "s") as store:
        counts = store.catalogue.counts()
        assert (counts.photos, counts.annotations, counts.unnamed, counts.individuals) == (100, 100, 0, 50)
        assert_index_is_the_catalogue(store)


# Damage ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whitened store of 210 animals in `s`, its photos in `p`; nobody changes it."""
    folder = tmp_path_factory.mktemp("whole")
    with fake_store(folder / "s") as store:
        taken_in(store, herd(folder / "p", 210, 2))
        assert store.whitening(store.gallery()) is not None
    paint(folder / "q.png", 7, 50)
    return folder


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Iterator[Store]:
    """A copy of it that a test may damage."""
    shutil.copytree(whole / "s", tmp_path / "s")
    with reopened(tmp_path / "s") as opened:
        yield opened


def _part(folder: Path, kind: str) -> Path:
    names = {"manifest": "MANIFEST.json", "whitening": "whitening-*.npz", "vectors": "*vec*", "ids": "*id*"}
    found = [path for path in folder.glob(names[kind]) if path.is_file()]
    assert found, sorted(path.name for path in folder.iterdir())
    return max(found, key=lambda path: path.stat().st_size)


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 0x55
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES: dict[str, Callable[[Path], None]] = {"flipped": _flipped, "cut": _cut, "gone": Path.unlink}


@pytest.mark.parametrize("part", ["manifest", "whitening", "vectors", "ids"])
@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_damage_is_said_or_mended_and_never_taken_for_no_match(
    store: Store, whole: Path, part: str, damage: str
) -> None:
    DAMAGES[damage](_part(store.index_folder, part))
    [answer] = identify(store, [query_of([whole / "q.png"])])
    mended = (part, damage) == ("manifest", "gone")  # an index that is not there is made
    if mended:
        assert (answer.status, labels(answer)[0]) == ("match", "a007")
    else:
        assert answer.status == "index_stale" and "reid reindex" in answer.message and answer.labels == ()
    rows = [seen(path, path.name.partition("-")[0]) for path in sorted((whole / "p").iterdir())]
    assert counted(taken_in(store, rows)) == (0, 420, 0, 0, 0)  # whoever enrols next mends it, and fits it anew
    assert_index_is_the_catalogue(store)
    [answer] = identify(reopened(store.root), [query_of([whole / "q.png"])])
    assert (answer.status, labels(answer)[0]) == ("match", "a007")
    assert store.whitening(store.gallery()) is not None


def test_an_index_folder_that_is_gone_is_made_again(store: Store, whole: Path) -> None:
    shutil.rmtree(store.index_folder)
    [answer] = identify(store, [query_of([whole / "q.png"])])
    assert (answer.status, labels(answer)[0]) == ("match", "a007")
    assert_index_is_the_catalogue(store)


def test_a_raw_gallery_with_a_flipped_byte_is_said(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    taken_in(store, herd(tmp_path / "p", 10, 2))
    _flipped(_part(store.index_folder, "vectors"))
    [answer] = identify(reopened(tmp_path / "s"), [query_of([paint(tmp_path / "q.png", 1)])])
    assert answer.status == "index_stale"


# Places that cannot be written -------------------------------------------------------------------


@linux
@pytest.mark.parametrize("behind", [False, True])
def test_a_store_that_may_only_be_read_answers_or_says_why_not(whole: Path, behind: bool) -> None:
    folder = Path(tempfile.mkdtemp(prefix="reid-readonly-"))
    try:
        shutil.copytree(whole / "s", folder / "s")
        shutil.copy(whole / "q.png", folder / "q.png")
        if behind:
            with reopened(folder / "s") as store:
                store.catalogue.mark_changed([whole / "p" / "a000-0.png"])
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        other = {"env": os.environ | {"REID_TEST_UID": "65534"}} if os.geteuid() == 0 else {}
        asking = child("ask", folder / "s", folder / "q.png", stderr=subprocess.PIPE, **other)
        written, trouble = asking.communicate("stop\n", timeout=60)
        lines = written.splitlines()
        assert lines[0] == "ready", trouble
        assert trouble == "" and asking.returncode == 0
        if behind:
            assert lines[1].startswith(("index_stale", "refused "))
        else:
            assert lines[1] == "match a007" or lines[1].startswith("refused ")
    finally:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_a_full_disk_while_fitting_leaves_the_store_answering(
    store: Store, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reid.errors import ReidError

    fsync = os.fsync

    def full_after(times: int) -> Callable[[int], None]:
        left = iter(range(times))

        def once_more(handle: int) -> None:
            if next(left, None) is None:
                raise OSError(28, "No space left on device")
            fsync(handle)

        return once_more

    for times in range(6):
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full_after(times))
            with pytest.raises(ReidError, match="No space left"):
                fit.fit(store)
        [answer] = identify(reopened(store.root), [query_of([whole / "q.png"])])
        assert (answer.status, labels(answer)[0]) == ("match", "a007")
    fit.fit(store)
    assert_index_is_the_catalogue(store)


def test_whitened_and_raw_galleries_follow_one_another(store: Store) -> None:
    _, vectors = withheld.gathered(store.catalogue, store.fingerprint)
    for least in (2, 10_000, 2):
        store.rebuild(whiten.fit(vectors, least=least))
        assert ("/" in store.gallery().fingerprint) == (least == 2)
        assert_index_is_the_catalogue(reopened(store.root))
