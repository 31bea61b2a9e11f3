"""The bytes on disk: numpy alone reads them, damage is detected, a killed writer loses nothing it acknowledged."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from galleries import unit_rows

from reid.errors import GalleryError, SnapshotCorrupt
from reid.index import Gallery, snapshot

DIM = 16


def rows(n: int, seed: int) -> np.ndarray:
    return unit_rows(n, DIM, seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A gallery with two segments, dead rows in the first, and an approximate structure over it."""
    gallery = Gallery.create(tmp_path / "index", fingerprint="m", dim=DIM, backend="ivf")
    gallery.add([f"{i:04d}" for i in range(1500)], rows(1500, 1))
    gallery.commit(revision=1)
    gallery.compact()
    gallery.add(["new", "0003"], rows(2, 2))
    gallery.remove(["0007"])
    gallery.commit(revision=2)
    return gallery.folder


def test_numpy_and_json_alone_read_it(folder: Path) -> None:
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    stated = manifest.pop("sha256")
    assert stated == hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    assert {key: manifest[key] for key in manifest if key not in ("segments", "generation")} == {
        "format": 1,
        "fingerprint": "m",
        "dim": DIM,
        "metric": "cosine",
        "backend": "ivf",
        "count": 1500,
        "revision": 2,
    }
    found: dict[str, np.ndarray] = {}
    for segment in manifest["segments"]:
        vectors = np.load(folder / segment["vectors"]["name"], mmap_mode="r")
        ids = np.load(folder / segment["ids"]["name"])
        alive = np.ones(len(ids), bool)
        if segment["dead"]:
            alive[np.load(folder / segment["dead"]["name"])] = False
        assert vectors.dtype == "<f2" and vectors.shape == (segment["rows"], DIM)
        assert found.keys().isdisjoint(id.decode() for id in ids[alive])
        found |= {id.decode(): vector for id, vector in zip(ids[alive], vectors[alive], strict=True)}
        for file in ("vectors", "ids", "dead", "structure"):
            if segment[file]:
                data = (folder / segment[file]["name"]).read_bytes()
                assert (len(data), hashlib.sha256(data).hexdigest()) == (
                    segment[file]["bytes"],
                    segment[file]["sha256"],
                )
    expected = {f"{i:04d}": vector for i, vector in enumerate(rows(1500, 1)) if i not in (3, 7)}
    expected |= {"new": rows(2, 2)[0], "0003": rows(2, 2)[1]}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[id], expected[id].astype(np.float16)) for id in found)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("seg-"))


def test_a_changed_byte_anywhere_is_found_by_verifying(folder: Path) -> None:
    names = files(folder)
    assert len(names) == 6
    for name in names:
        path = folder / name
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[at] ^= 0x40
            path.write_bytes(damaged)
            with pytest.raises(SnapshotCorrupt) as caught:
                Gallery.open(folder, verify=True)
            assert caught.value.source == str(path) and "`reid reindex`" in caught.value.next_step
        path.write_bytes(whole)
    checked = Gallery.open(folder, verify=True).check()
    assert (checked.files, checked.count) == (6, 1500)
    assert checked.bytes == sum((folder / name).stat().st_size for name in names)


def test_a_file_that_is_short_long_or_gone_is_found_at_opening(folder: Path) -> None:
    for name in files(folder):
        path = folder / name
        whole = path.read_bytes()
        for wrong in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"\0", None):
            path.unlink() if wrong is None else path.write_bytes(wrong)
            with pytest.raises(SnapshotCorrupt) as caught:
                Gallery.open(folder)
            assert caught.value.source == str(path) and caught.value.next_step
        path.write_bytes(whole)
    assert len(Gallery.open(folder)) == 1500


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"sha256": 3}', None])
def test_a_damaged_manifest_is_found_at_opening(folder: Path, damage: bytes | None) -> None:
    path = folder / "MANIFEST.json"
    text = path.read_bytes()
    path.write_bytes(text.replace(b'"revision": 2', b'"revision": 3') if damage is None else damage)
    with pytest.raises(SnapshotCorrupt) as caught:
        Gallery.open(folder)
    assert caught.value.source == str(path) and "`reid reindex`" in caught.value.next_step


def test_a_manifest_of_another_format_says_so(folder: Path) -> None:
    path = folder / "MANIFEST.json"
    raw = json.loads(path.read_text())
    del raw["sha256"]
    raw["format"] = 99
    raw["sha256"] = hashlib.sha256(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps(raw))
    with pytest.raises(GalleryError, match="format 99"):
        Gallery.open(folder)


def test_damage_that_a_search_meets_is_no_answer(folder: Path) -> None:
    manifest = snapshot.read_manifest(folder)
    vectors = folder / manifest.segments[1].vectors.name
    data = bytearray(vectors.read_bytes())
    data[-2 * DIM :] = np.full(DIM, np.nan, "<f2").tobytes()
    vectors.write_bytes(data)
    with pytest.raises(SnapshotCorrupt):
        Gallery.open(folder).search(rows(1, 3), 1502)
    structure = manifest.segments[0].structure
    assert structure is not None
    (folder / structure.name).write_bytes(b"\0" * structure.bytes)
    with pytest.raises(SnapshotCorrupt):
        Gallery.open(folder).search(rows(1, 3), 3)


WRITER = """
import pathlib, sys
import numpy as np
from reid.index import Gallery

def rows(n, seed):
    values = np.random.default_rng(seed).standard_normal((n, 16)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)

gallery = Gallery.open(pathlib.Path(sys.argv[1]), timeout=30)
print("ready", flush=True)
step = gallery.revision
while True:
    step += 1
    gallery.add([f"{step}-{i}" for i in range(30)], rows(30, step))
    if step % 3 == 0:
        gallery.remove([f"{step - 1}-{i}" for i in range(10)])
        gallery.add([f"{step - 2}-0"], rows(1, 100_000 + step))
    gallery.commit(revision=step)
    print(step, flush=True)
    if step % 7 == 0:
        gallery.compact()
"""


def expected(revision: int) -> dict[str, np.ndarray]:
    """What the writer above has committed at a revision."""
    store: dict[str, np.ndarray] = {}
    for step in range(1, revision + 1):
        store |= {f"{step}-{i}": vector for i, vector in enumerate(rows(30, step))}
        if step % 3 == 0:
            for i in range(10):
                del store[f"{step - 1}-{i}"]
            store[f"{step - 2}-0"] = rows(1, 100_000 + step)[0]
    return store


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system cannot kill without notice")
def test_a_writer_killed_at_any_moment_leaves_a_whole_gallery_with_all_it_acknowledged(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    Gallery.create(folder, fingerprint="m", dim=DIM, backend="ivf")
    rng = np.random.default_rng()
    for _ in range(int(os.environ.get("REID_KILLS", "6"))):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        time.sleep(rng.random() * 0.6)
        writer.kill()
        said = writer.stdout.read().split("\n")[:-1]
        writer.wait()
        writer.stdout.close()
        gallery = Gallery.open(folder, verify=True)
        assert gallery.revision >= max((int(step) for step in said), default=0)
        store = expected(gallery.revision)
        assert gallery.ids() == sorted(store)
        if store:
            stored = np.stack([store[id] for id in sorted(store)]).astype(np.float16)
            assert np.array_equal(gallery.vectors(sorted(store)), stored.astype(np.float32))
            last = f"{gallery.revision}-5"
            assert gallery.search(store[last][None], 1)[0].ids == (last,)
    gallery.commit(revision=gallery.revision + 1)
    named = {file.name for file in snapshot.read_manifest(folder).files}
    assert {path.name for path in folder.iterdir()} == named | {"MANIFEST.json", "LOCK"}


ENROLMENT = """
import pathlib, sys
import numpy as np
from reid.index import Gallery

gallery = Gallery.open(pathlib.Path(sys.argv[1]), timeout=60)
for batch in range(25):
    values = np.random.default_rng(batch).standard_normal((8, 16)).astype(np.float32)
    names = [f"{sys.argv[2]}-{batch}-{i}" for i in range(8)]
    gallery.add(names, values / np.linalg.norm(values, axis=1, keepdims=True))
    gallery.commit(revision=batch + 1)
    if batch == 12 and sys.argv[2] == "one":
        gallery.compact()
"""


def test_two_enrolments_and_queries_at_once_work_on_one_gallery(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    Gallery.create(folder, fingerprint="m", dim=DIM)
    writers = [subprocess.Popen([sys.executable, "-c", ENROLMENT, str(folder), name]) for name in ("one", "two")]
    reader = Gallery.open(folder)
    counts = [0]
    query = rows(1, 0)
    while any(writer.poll() is None for writer in writers):
        fresh = Gallery.open(folder, verify=True)
        reader.refresh()
        for gallery in (fresh, reader):
            (found,) = gallery.search(query, 1000)
            assert len(found.ids) == len(set(found.ids)) == gallery.count == len(gallery.ids())
            assert len(found.ids) % 8 == 0
        counts.append(reader.count)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert counts == sorted(counts)
    reader.refresh()
    assert reader.ids() == sorted(
        f"{name}-{batch}-{i}" for name in ("one", "two") for batch in range(25) for i in range(8)
    )
