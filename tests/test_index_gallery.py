"""Adding, replacing, removing, committing and compacting: the gallery against a dictionary."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reid.errors import GalleryError, IndexStale, SnapshotCorrupt, StoreBusy
from reid.index import Gallery, IdSet, compaction, publish, snapshot, staging, write_snapshot
from reid.index.segments import FROZEN

DIM = 8


def rows(n: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def holds(gallery: Gallery, store: dict[str, np.ndarray]) -> bool:
    """Whether the gallery has exactly these ids and, rounded to half precision, these vectors."""
    ids = sorted(store)
    if gallery.ids() != ids or len(gallery) != len(ids) or gallery.count != len(ids):
        return False
    if not ids:
        return True
    stored = np.stack([store[id] for id in ids]).astype(np.float16).astype(np.float32)
    return np.array_equal(gallery.vectors(ids), stored)


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    return Gallery.create(tmp_path / "index", fingerprint="model-a", dim=DIM)


def test_nothing_is_visible_before_the_commit_and_all_of_it_after(gallery: Gallery) -> None:
    gallery.add(["b", "a"], rows(2, 1))
    assert ("a" in gallery, len(gallery), gallery.revision) == (False, 0, 0)
    gallery.commit(revision=4)
    assert ("a" in gallery, "c" in gallery, 5 in gallery, len(gallery), gallery.revision) == (True, False, False, 2, 4)
    again = Gallery.open(gallery.folder, fingerprint="model-a", verify=True)
    assert (again.fingerprint, again.dim, again.backend, again.revision) == ("model-a", DIM, "flat", 4)
    assert holds(again, dict(zip(["b", "a"], rows(2, 1), strict=True)))


def test_the_last_word_on_an_id_counts(gallery: Gallery) -> None:
    gallery.add(["a", "b", "c"], rows(3, 1))
    gallery.add(["b"], rows(1, 2))
    assert gallery.remove(["c", "nobody"]) == 1
    gallery.add(["d"], rows(1, 3))
    assert gallery.remove(["d", "d"]) == 1
    gallery.add(["d"], rows(1, 4))
    gallery.commit(revision=1)
    assert holds(gallery, {"a": rows(3, 1)[0], "b": rows(1, 2)[0], "d": rows(1, 4)[0]})
    assert gallery.remove(["a", "c"]) == 1
    gallery.add(["b"], rows(1, 5))
    gallery.commit(revision=2)
    assert holds(gallery, {"b": rows(1, 5)[0], "d": rows(1, 4)[0]})
    gallery.remove(["b", "d"])
    gallery.commit(revision=3)
    assert holds(gallery, {}) and gallery.check().files == 0


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_changes_leaves_what_a_dictionary_would(gallery: Gallery, seed: int) -> None:
    rng = np.random.default_rng(seed)
    store: dict[str, np.ndarray] = {}
    seen: dict[str, np.ndarray] = {}
    for step in range(60):
        names = [f"id-{i}" for i in rng.choice(400, rng.integers(1, 40), replace=False)]
        match rng.integers(0, 6):
            case 0:
                present = sum(name in store for name in names)
                assert gallery.remove(names) == present
                store = {id: vector for id, vector in store.items() if id not in names}
            case 1:
                gallery.commit(revision=step)
                seen = dict(store)
            case 2:
                gallery.compact()
            case 3:
                assert holds(Gallery.open(gallery.folder, verify=True), seen)
            case _:
                vectors = rows(len(names), 1000 * seed + step)
                gallery.add(names, vectors)
                store |= dict(zip(names, vectors, strict=True))
        assert holds(gallery, seen)
    gallery.commit(revision=100)
    assert holds(gallery, store)
    query = rows(1, 5)
    products = {id: float(vector.astype(np.float16).astype(np.float64) @ query[0]) for id, vector in store.items()}
    (found,) = gallery.search(query, 10)
    assert list(found.ids) == sorted(products, key=lambda id: (-products[id], id))[:10]
    assert found.scores == tuple(np.float32([products[id] for id in found.ids]).tolist())


def test_ids_are_any_text_of_reasonable_length(gallery: Gallery) -> None:
    names = ["Zürich/фото 12.jpg", "z", "鯨", "a" * 255, "a\n", "A"]
    gallery.add(names, rows(6, 1))
    gallery.commit(revision=1)
    assert gallery.ids() == sorted(names) and all(name in gallery for name in names)
    assert gallery.search(rows(6, 1)[2:3], 1)[0].ids == ("鯨",)
    for bad in ("", "a\0", "a" * 256, "é" * 128, "photo-\udcff.jpg"):
        assert bad not in gallery
        with pytest.raises(GalleryError, match="cannot be an id"):
            gallery.add([bad], rows(1, 1))


def test_vectors_that_are_no_unit_rows_are_refused_and_leave_nothing_behind(gallery: Gallery) -> None:
    good = rows(2, 1)
    nan, inf = good.copy(), good.copy()
    nan[1, 2], inf[0, 0] = np.nan, np.inf
    for bad in (good * 1.01, nan, inf, good * 0, good[:, :5], good[0]):
        with pytest.raises(GalleryError):
            gallery.add(["a", "b"], bad)
    with pytest.raises(GalleryError, match="row 1 has nan"):
        gallery.add(["a", "b"], nan)
    with pytest.raises(GalleryError, match="3 ids for 2 vectors"):
        gallery.add(["a", "b", "c"], good)
    with pytest.raises(GalleryError, match="'a' was given twice"):
        gallery.add(["a", "a"], good)
    with pytest.raises(GalleryError, match="no vector of 'x'"):
        gallery.vectors(["x"])
    gallery.commit(revision=1)
    assert holds(gallery, {})


def test_the_callers_arrays_are_left_alone_and_need_not_stay(gallery: Gallery) -> None:
    vectors = rows(3, 1)
    kept = vectors.copy()
    gallery.add(["a", "b", "c"], vectors)
    assert np.array_equal(vectors, kept)
    vectors[:] = 0
    gallery.commit(revision=1)
    assert holds(gallery, dict(zip("abc", kept, strict=True)))


def test_another_models_query_is_refused_with_the_command_that_mends_it(gallery: Gallery) -> None:
    with pytest.raises(IndexStale) as caught:
        Gallery.open(gallery.folder, fingerprint="model-b")
    assert "`reid reindex`" in caught.value.next_step
    assert "model-a" in caught.value.message and "model-b" in caught.value.message
    assert caught.value.source == str(gallery.folder)


def test_no_gallery_and_a_second_gallery_are_errors(gallery: Gallery, tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="no gallery here"):
        Gallery.open(tmp_path / "elsewhere")
    with pytest.raises(GalleryError, match="a gallery here already"):
        Gallery.create(gallery.folder, fingerprint="model-a", dim=DIM)


def test_a_commit_at_another_revision_than_expected_changes_nothing(gallery: Gallery) -> None:
    other = Gallery.open(gallery.folder)
    other.add(["a"], rows(1, 1))
    other.commit(revision=7, expect=0)
    gallery.add(["b"], rows(1, 2))
    with pytest.raises(IndexStale, match="at revision 7, not 0"):
        gallery.commit(revision=8, expect=0)
    assert Gallery.open(gallery.folder).ids() == ["a"]
    gallery.commit(revision=8, expect=7)
    assert (gallery.ids(), gallery.revision) == (["a", "b"], 8)


def test_the_revision_never_goes_down(gallery: Gallery) -> None:
    gallery.commit(revision=9)
    gallery.add(["a"], rows(1, 1))
    gallery.commit(revision=3)
    assert (gallery.revision, gallery.ids()) == (9, ["a"])


def test_a_commit_of_nothing_writes_nothing(gallery: Gallery) -> None:
    gallery.commit(revision=5)
    before = gallery.generation
    gallery.remove(["nobody"]) and gallery.commit(revision=5)
    gallery.commit(revision=5)
    assert gallery.generation == before


def test_what_others_commit_is_seen_on_refresh(gallery: Gallery) -> None:
    other = Gallery.open(gallery.folder)
    gallery.add(["a"], rows(1, 1))
    gallery.commit(revision=1)
    assert (other.ids(), other.refresh(), other.ids(), other.refresh()) == ([], True, ["a"], False)


def test_two_writers_keep_what_both_added(gallery: Gallery) -> None:
    other = Gallery.open(gallery.folder)
    gallery.add(["a", "both"], rows(2, 1))
    other.add(["b", "both"], rows(2, 2))
    gallery.commit(revision=1)
    other.commit(revision=2)
    assert holds(other, {"a": rows(2, 1)[0], "b": rows(2, 2)[0], "both": rows(2, 2)[1]})


def test_a_reader_keeps_the_generation_it_opened_while_files_go(gallery: Gallery) -> None:
    gallery.add([f"{i}" for i in range(500)], rows(500, 1))
    gallery.commit(revision=1)
    reader = Gallery.open(gallery.folder)
    before = reader.search(rows(3, 2), 5)
    for i in range(12):
        gallery.add([f"new{i}"], rows(1, 10 + i))
        gallery.remove([f"{i}"])
        gallery.commit(revision=2 + i)
    gallery.compact()
    assert reader.search(rows(3, 2), 5) == before and len(reader) == 500
    assert reader.refresh() and reader.ids() == gallery.ids()


def test_a_reader_that_has_not_searched_yet_follows_a_compaction(tmp_path: Path) -> None:
    gallery = Gallery.create(tmp_path / "index", fingerprint="m", dim=DIM, backend="ivf")
    gallery.add([f"{i}" for i in range(2000)], rows(2000, 1))
    gallery.commit(revision=1)
    gallery.compact()
    reader = Gallery.open(gallery.folder)
    gallery.remove(["5"])
    gallery.commit(revision=2)
    gallery.compact()
    assert reader.search(rows(2000, 1)[6:7], 1)[0].ids == ("6",)


def test_a_second_writer_waits_and_then_says_so(gallery: Gallery) -> None:
    other = Gallery.open(gallery.folder, timeout=0.1)
    other.add(["a"], rows(1, 1))
    with gallery.writing(), pytest.raises(StoreBusy) as caught:
        other.commit(revision=1)
    assert caught.value.next_step
    other.commit(revision=1)
    assert Gallery.open(gallery.folder).ids() == ["a"]


def test_holding_the_lock_brings_up_to_date_and_allows_commits(gallery: Gallery) -> None:
    other = Gallery.open(gallery.folder)
    other.add(["a"], rows(1, 1))
    other.commit(revision=3)
    with gallery.writing():
        assert gallery.revision == 3
        gallery.add(["b"], rows(1, 2))
        gallery.commit(revision=4, expect=3)
        gallery.commit(revision=5, expect=4)
    assert other.refresh() and (other.revision, other.ids()) == (5, ["a", "b"])


def test_a_full_disk_is_a_typed_error_and_the_change_still_waits(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.add(["a"], rows(1, 1))
    with monkeypatch.context() as patch:

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device", "seg-x")

        patch.setattr(snapshot, "write_manifest", full)
        with pytest.raises(GalleryError, match="No space left on device"):
            gallery.commit(revision=1)
    assert (gallery.ids(), Gallery.open(gallery.folder).ids()) == ([], [])
    gallery.commit(revision=1)
    assert gallery.ids() == ["a"] and {path.name[:3] for path in gallery.folder.iterdir()} == {"MAN", "LOC", "seg"}
    assert len(list(gallery.folder.glob("seg-*"))) == 2


def test_a_compaction_keeps_what_others_commit_meanwhile(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    store = {f"{i:03d}": vector for i, vector in enumerate(rows(300, 1))}
    gallery.add(list(store), np.stack(list(store.values())))
    gallery.commit(revision=1)
    for i in range(5):
        gallery.add([f"small{i}"], rows(1, 10 + i))
        store[f"small{i}"] = rows(1, 10 + i)[0]
        gallery.commit(revision=2 + i)
    other = Gallery.open(gallery.folder)
    original = compaction.with_structure

    def meanwhile(*arguments: Any) -> Any:
        other.remove(["000", "small1"])
        other.add(["001", "small2", "new"], rows(3, 30))
        store.update(zip(["001", "small2", "new"], rows(3, 30), strict=True))
        other.commit(revision=20)
        for i in range(12):  # enough for the small segments to be merged elsewhere
            other.add([f"later{i}"], rows(1, 40 + i))
            store[f"later{i}"] = rows(1, 40 + i)[0]
            other.commit(revision=21 + i)
        return original(*arguments)

    monkeypatch.setattr(compaction, "with_structure", meanwhile)
    gallery.compact()
    for id in ("000", "small1"):
        del store[id]
    assert holds(gallery, store) and gallery.revision == 32
    assert holds(Gallery.open(gallery.folder, verify=True), store)
    monkeypatch.undo()
    gallery.compact()
    generation = gallery.generation
    gallery.compact()
    assert gallery.generation == generation
    assert holds(gallery, store) and (gallery.loose, len(list(gallery.folder.glob("seg-*")))) == (0, 2)


def test_two_compactions_at_once_end_as_one(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    store = {f"{i:03d}": vector for i, vector in enumerate(rows(300, 1))}
    for low in range(0, 300, 100):
        gallery.add(list(store)[low : low + 100], np.stack(list(store.values())[low : low + 100]))
        gallery.commit(revision=1)
    other = Gallery.open(gallery.folder)
    original = compaction.with_structure

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(compaction, "with_structure", original)
        other.compact()
        return original(*arguments)

    monkeypatch.setattr(compaction, "with_structure", meanwhile)
    gallery.compact()
    assert holds(gallery, store) and gallery.check().files == 2 and len(list(gallery.folder.glob("seg-*"))) == 2


def test_searching_threads_and_a_committing_one_share_a_gallery(gallery: Gallery) -> None:
    gallery.add([f"{i}" for i in range(800)], rows(800, 1))
    gallery.commit(revision=1)
    failures: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                for at, found in zip((3, 700), gallery.search(rows(800, 1)[[3, 700]], 4), strict=True):
                    assert found.ids[0] == f"{at}" and len(found.ids) == 4
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(40):
        gallery.add([f"new{i}"], rows(1, 100 + i))
        gallery.commit(revision=2 + i)
    gallery.compact()
    done.set()
    for thread in threads:
        thread.join()
    assert failures == [] and len(gallery) == 840


def test_a_filter_serves_before_and_after_segments_change(gallery: Gallery) -> None:
    gallery.add([f"{i}" for i in range(100)], rows(100, 1))
    gallery.commit(revision=1)
    left = IdSet({f"{i}" for i in range(0, 100, 2)} | {"new"})
    query = rows(1, 2)
    first = gallery.search(query, 100, allow=left)[0]
    gallery.add(["new"], query)
    gallery.remove(["0"])
    gallery.commit(revision=2)
    second = gallery.search(query, 100, allow=left)[0]
    gallery.compact()
    assert gallery.search(query, 100, allow=left)[0] == second
    assert len(left) == 51 and set(first.ids) == {f"{i}" for i in range(0, 100, 2)}
    assert second.ids == ("new", *(id for id in first.ids if id != "0"))


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
