"""What writing costs, and galleries that are replaced whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from galleries import DIM, holds, rows

from reid.errors import IndexStale, SnapshotCorrupt
from reid.index import Gallery, publish, snapshot, staging, write_snapshot
from reid.index.segments import FROZEN


def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the size of every array that is written from now on."""
    sizes: list[int] = []
    original = snapshot.write_array

    def counting(*arguments: Any) -> Any:
        record = original(*arguments)
        sizes.append(record.bytes)
        return record

    monkeypatch.setattr(snapshot, "write_array", counting)
    return sizes


def test_adding_costs_what_is_added_and_not_what_is_there(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    large = FROZEN + 2000
    gallery.add([f"{i}" for i in range(large)], rows(large, 1))
    gallery.commit(revision=1)
    sizes = written(monkeypatch)
    gallery.add([f"n{i}" for i in range(100)], rows(100, 2))
    gallery.commit(revision=2)
    assert sum(sizes) < 100 * (2 * DIM + 8) + 1000
    sizes.clear()
    gallery.add(["5"], rows(1, 3))
    gallery.commit(revision=3)
    assert sum(sizes) < 1000


def test_many_small_enrolments_leave_few_files_and_rewrite_each_row_a_few_times(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = written(monkeypatch)
    monkeypatch.setattr("os.fsync", lambda _: None)
    most = 0
    for i in range(300):
        gallery.add([f"{i}-{j}" for j in range(10)], rows(10, i))
        gallery.commit(revision=i)
        most = max(most, len(list(gallery.folder.glob("seg-*"))))
    row = 2 * DIM + 5
    assert len(gallery) == 3000 and most <= 2 * 7 * 3 and sum(sizes) < 6 * 3000 * row


def test_a_staged_gallery_replaces_the_present_one_in_one_step(gallery: Gallery) -> None:
    gallery.add(["old"], rows(1, 1))
    gallery.commit(revision=9)
    reader = Gallery.open(gallery.folder, fingerprint="model-a")
    with staging(gallery.folder, fingerprint="model-b", dim=4) as staged:
        unit = np.eye(4, dtype=np.float32)
        staged.add(["x", "y"], unit[:2])
        staged.commit(revision=3)
        assert gallery.refresh() is False and staged.search(unit[1:2], 1)[0].ids == ("y",)
        live = publish(staged, gallery.folder, expect=9)
    assert (live.fingerprint, live.dim, live.revision, live.ids()) == ("model-b", 4, 3, ["x", "y"])
    assert live.generation > reader.generation and live.check().count == 2
    assert reader.search(rows(1, 1), 1)[0].ids == ("old",)
    with pytest.raises(IndexStale):
        reader.refresh()
    assert len(list(gallery.folder.glob("seg-*"))) == 2 and not list(gallery.folder.glob("build-*"))


def test_publishing_refuses_when_the_gallery_went_on_or_the_new_one_is_damaged(gallery: Gallery) -> None:
    gallery.commit(revision=2)
    with staging(gallery.folder, fingerprint="model-a", dim=DIM) as staged:
        staged.add(["a"], rows(1, 1))
        staged.commit(revision=2)
        with pytest.raises(IndexStale, match="from revision 1 to 2"):
            publish(staged, gallery.folder, expect=1)
        (file,) = staged.folder.glob("*.vectors.npy")
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        with pytest.raises(SnapshotCorrupt):
            publish(staged, gallery.folder, expect=2)
    assert (Gallery.open(gallery.folder).ids(), Gallery.open(gallery.folder).revision) == ([], 2)


def test_an_abandoned_rebuild_leaves_nothing(gallery: Gallery) -> None:
    with pytest.raises(RuntimeError), staging(gallery.folder, fingerprint="b", dim=DIM) as staged:
        staged.add(["a"], rows(1, 1))
        staged.commit(revision=1)
        raise RuntimeError("the gate said no")
    assert not list(gallery.folder.glob("build-*")) and gallery.refresh() is False


def test_a_snapshot_is_written_from_chunks_over_whatever_was_there(tmp_path: Path) -> None:
    def chunks() -> Iterator[tuple[list[str], np.ndarray]]:
        for i in range(3):
            yield [f"{i}-{j}" for j in range(700)], rows(700, i)

    store = {id: vector for ids, vectors in chunks() for id, vector in zip(ids, vectors, strict=True)}
    folder = tmp_path / "index"
    for backend in ("flat", "ivf"):
        gallery = write_snapshot(folder, chunks(), fingerprint="m", dim=DIM, revision=5, backend=backend)
        assert holds(gallery, store) and (gallery.backend, gallery.loose, gallery.revision) == (backend, 0, 5)
        (folder / "MANIFEST.json").write_text("{")
    assert holds(write_snapshot(folder, chunks(), fingerprint="m", dim=DIM, revision=5), store)


def test_a_cold_query_of_a_small_gallery_does_without_faiss(gallery: Gallery) -> None:
    gallery.add([f"{i}" for i in range(5000)], rows(5000, 1))
    gallery.commit(revision=1)
    program = (
        "import sys, numpy, pathlib; from reid.index import Gallery\n"
        f"gallery = Gallery.open(pathlib.Path({str(gallery.folder)!r}))\n"
        f"query = numpy.zeros((1, {DIM}), numpy.float32); query[0, 0] = 1\n"
        "assert len(gallery.search(query, 5)[0].ids) == 5\n"
        "print([name for name in ('faiss', 'torch', 'sqlalchemy', 'cv2', 'openvino') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
