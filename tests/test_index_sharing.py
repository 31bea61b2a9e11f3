"""One gallery in many hands: readers, writers, threads and compactions at once, and a full disk."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from galleries import DIM, holds, rows

from reid.errors import GalleryError, StoreBusy
from reid.index import Gallery, IdSet, compaction, snapshot


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
