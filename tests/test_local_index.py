from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from reid.errors import GalleryError, IndexStale, SnapshotCorrupt
from reid.index import lists, lnbnn, local_files
from reid.index.local import LocalIndex

FINGERPRINT = "f" * 12


def photos(count: int, seed: int = 0, low: int = 20, high: int = 60) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        f"p{seed}-{i:03d}": random.integers(0, 120, (int(random.integers(low, high)), 128)).astype(np.uint8)
        for i in range(count)
    }


def filled(folder: Path, gallery: dict[str, np.ndarray]) -> LocalIndex:
    index = LocalIndex.create(folder, fingerprint=FINGERPRINT)
    index.add(list(gallery), list(gallery.values()))
    index.commit(revision=1)
    return index


def near(array: np.ndarray, seed: int = 9) -> np.ndarray:
    """Noisy copies of some descriptors."""
    random = np.random.default_rng(seed)
    return np.clip(array[::2].astype(int) + random.integers(-12, 13, array[::2].shape), 0, 255).astype(np.uint8)


def loop_votes(query, gallery, name_of, voters, neighbours):
    """LNBNN as its text says, one descriptor at a time: votes of photos, votes of names."""
    rows = [(id, row) for id, array in gallery.items() for row in array.astype(float)]
    photo: dict[str, float] = {}
    name: dict[str, float] = {}
    for one in query.astype(float):
        ranked = sorted((float(np.sqrt(((one - row) ** 2).sum())) / 512, id) for id, row in rows)[:neighbours]
        spoken_photos, spoken_names = set(), set()
        for t in range(min(voters, len(ranked))):
            distance, owner = ranked[t]
            others = [d for d, id in ranked[t + 1 :] if name_of(id) != name_of(owner)]
            weight = max((others[0] if others else ranked[-1][0]) - distance, 0.0)
            if owner not in spoken_photos:
                photo[owner] = photo.get(owner, 0.0) + weight
            if name_of(owner) not in spoken_names:
                name[name_of(owner)] = name.get(name_of(owner), 0.0) + weight
            spoken_photos.add(owner)
            spoken_names.add(name_of(owner))
    return photo, name


@pytest.mark.parametrize("named", [False, True])
def test_votes_equal_a_loop_over_all_descriptors(tmp_path, named):
    gallery = photos(9)
    index = filled(tmp_path, gallery)
    identity = {id: f"animal{int(id[-3:]) // 3}" for id in gallery if id != "p0-008"}
    name_of = (lambda id: identity.get(id, id)) if named else (lambda id: id)
    query = np.concatenate([near(gallery["p0-004"]), near(gallery["p0-000"])[:7], photos(1, 5)["p5-000"]])
    names = index.names(identity) if named else None
    found = index.search(query, names=names, voters=3, neighbours=6, probes=10_000)
    photo, name = loop_votes(query, gallery, name_of, 3, 6)
    assert dict(zip(found.photos, found.votes, strict=True)) == pytest.approx(
        {id: value for id, value in photo.items() if value > 0}, rel=1e-4
    )
    assert list(found.votes) == sorted(found.votes, reverse=True)
    assert found.photos[0] == "p0-004" and found.descriptors == len(query)
    if named:
        expected = {label: value for label, value in name.items() if label.startswith("animal") and value > 0}
        assert dict(zip(found.names, found.name_votes, strict=True)) == pytest.approx(expected, rel=1e-4)
        assert found.names[0] == "animal1"
    else:
        assert found.names == ()


def test_excluded_photos_neither_vote_nor_serve_as_background(tmp_path):
    gallery = photos(8)
    index = filled(tmp_path / "all", gallery)
    out = {"p0-003", "p0-005"}
    without = filled(tmp_path / "some", {id: array for id, array in gallery.items() if id not in out})
    query = near(gallery["p0-003"])
    expected = without.search(query, probes=10_000)
    assert index.search(query, exclude=out, probes=10_000) == expected
    assert index.search(query, allow=set(gallery) - out, probes=10_000) == expected
    assert "p0-003" not in expected.photos
    assert index.search(query, allow=set()).photos == ()


def test_increments_find_what_one_commit_finds(tmp_path):
    gallery = photos(40)
    whole = filled(tmp_path / "whole", gallery)
    grown = LocalIndex.create(tmp_path / "grown", fingerprint=FINGERPRINT)
    for at in range(0, 40, 3):
        some = list(gallery)[at : at + 3]
        grown.add(some, [gallery[id] for id in some])
        grown.commit(revision=at)
    assert grown.ids() == whole.ids() == sorted(gallery)
    assert len(local_files.read_manifest(tmp_path / "grown").segments) <= 16
    for id in ("p0-000", "p0-020", "p0-039"):
        query = near(gallery[id])
        a, b = whole.search(query, probes=10_000), grown.search(query, probes=10_000)
        assert a.photos == b.photos
        assert a.votes == pytest.approx(b.votes)


def test_removal_replacement_and_compaction(tmp_path):
    gallery = photos(12)
    index = filled(tmp_path, gallery)
    new = photos(1, 7)["p7-000"]
    index.remove(["p0-001", "never there"])
    index.add(["p0-002"], [new])
    index.commit(revision=2)
    gallery.pop("p0-001")
    old, gallery["p0-002"] = gallery["p0-002"], new
    assert index.ids() == sorted(gallery) and len(index) == 11
    assert index.search(near(new), probes=10_000).photos[0] == "p0-002"
    before = index.search(near(old), probes=10_000)
    fresh = filled(tmp_path / "fresh", dict(sorted(gallery.items()))).search(near(old), probes=10_000)
    assert dict(zip(before.photos, before.votes, strict=True)) == pytest.approx(
        dict(zip(fresh.photos, fresh.votes, strict=True))
    )
    index.compact()
    assert index.search(near(old), probes=10_000).votes == pytest.approx(before.votes)
    manifest = local_files.read_manifest(tmp_path)
    assert len(manifest.segments) == 1 and manifest.segments[0].dead is None
    assert manifest.descriptors == sum(len(array) for array in gallery.values())


def test_lists_give_descriptors_back_as_they_were_added(tmp_path):
    arrays = [*photos(5).values(), np.zeros((0, 128), np.uint8)]
    cells = lists.trained(arrays)
    lists.write(tmp_path / "x", cells, arrays)
    starts = np.concatenate([[0], np.cumsum([len(array) for array in arrays])])
    back, cell_of = lists.unpacked(lists.opened(tmp_path / "x", int(starts[-1])), starts, np.array([1], np.uint32))
    assert len(back) == 5
    for got, expected in zip(back, arrays[:1] + arrays[2:], strict=True):
        assert np.array_equal(got, expected)
    assert cells is not None
    for array, cell in zip(back, cell_of, strict=True):
        floats = array.astype(np.float32)
        assert np.array_equal(cell, ((floats[:, None] - cells.centroids) ** 2).sum(2).argmin(1))


def test_lists_written_with_cells_known_are_those_written_without(tmp_path):
    arrays = list(photos(5).values())
    cells = lists.trained(arrays)
    starts = np.concatenate([[0], np.cumsum([len(array) for array in arrays])])
    lists.write(tmp_path / "found", cells, arrays)
    opened = lists.opened(tmp_path / "found", int(starts[-1]))
    _, cell_of = lists.unpacked(opened, starts, np.array([], np.uint32))
    lists.write(tmp_path / "known", cells, arrays, [cell_of[0], None, *cell_of[2:4]])
    assert (tmp_path / "known").read_bytes() == (tmp_path / "found").read_bytes()


def test_an_addition_that_was_announced_makes_its_cells_once_and_can_be_merged_into_one_segment(tmp_path):
    gallery = photos(12, low=64, high=65)
    names = list(gallery)
    index = LocalIndex.create(tmp_path, fingerprint=FINGERPRINT)
    index.expect(12 * 64, [gallery[name] for name in names[:6]])
    made = set()
    for at in range(0, 12, 4):
        index.add(names[at : at + 4], [gallery[name] for name in names[at : at + 4]])
        index.commit(revision=1 + at)
        manifest = local_files.read_manifest(tmp_path)
        assert manifest.centroids is not None
        made.add(manifest.centroids.name)
    assert len(made) == 1 and manifest.trained_on == 12 * 64 and manifest.lists == lists.cells_for(12 * 64)
    index.add(["later"], [gallery[names[0]]])  # what waits is not lost by a merge, nor visible after it
    before = index.search(gallery[names[3]], probes=100)
    index.merge()
    merged = local_files.read_manifest(tmp_path)
    assert len(merged.segments) == 1 and merged.centroids is not None and merged.centroids.name in made
    assert index.search(gallery[names[3]], probes=100) == before
    index.commit(revision=20)
    assert index.ids() == sorted([*names, "later"])


def test_an_empty_index_and_empty_queries_give_empty_votes(tmp_path):
    index = LocalIndex.create(tmp_path, fingerprint=FINGERPRINT)
    query = photos(1)["p0-000"]
    assert index.search(query).photos == () and index.ids() == [] and len(index) == 0
    index.add(["blank"], [np.zeros((0, 128), np.uint8)])
    index.commit(revision=1)
    assert index.ids() == ["blank"]
    assert index.search(query).photos == ()
    assert index.search_many([np.zeros((0, 128), np.uint8), query])[0].descriptors == 0
    index.add(["one"], [query])
    index.commit(revision=2)
    assert index.search(query[:0]).photos == ()
    assert LocalIndex.open(tmp_path, verify=True).ids() == ["blank", "one"]


def test_search_many_equals_one_by_one(tmp_path):
    gallery = photos(10)
    index = filled(tmp_path, gallery)
    queries = [near(gallery["p0-001"]), np.zeros((0, 128), np.uint8), near(gallery["p0-007"])]
    assert index.search_many(queries) == [index.search(query) for query in queries]


def test_what_cannot_be_stored_or_asked_is_refused(tmp_path):
    index = filled(tmp_path, photos(3))
    good = np.zeros((2, 128), np.uint8)
    for ids, arrays in [
        (["a"], []),
        ([""], [good]),
        (["a", "a"], [good, good]),
        (["a"], [good.astype(np.float32)]),
        (["a"], [good[:, :64]]),
    ]:
        with pytest.raises(GalleryError):
            index.add(ids, arrays)
    with pytest.raises(GalleryError):
        index.search(good.astype(np.float32))
    names = index.names({})
    index.add(["new"], [good])
    index.commit(revision=2)
    with pytest.raises(GalleryError, match="another generation"):
        index.search(good, names=names)
    with pytest.raises(GalleryError, match="already"):
        LocalIndex.create(tmp_path, fingerprint=FINGERPRINT)
    with pytest.raises(GalleryError, match="no local index"):
        LocalIndex.open(tmp_path / "nowhere")


def test_another_description_is_stale(tmp_path):
    filled(tmp_path, photos(2))
    with pytest.raises(IndexStale):
        LocalIndex.open(tmp_path, fingerprint="e" * 12)


def test_damage_is_found(tmp_path):
    filled(tmp_path, photos(3))
    manifest = local_files.read_manifest(tmp_path)
    for file in manifest.files:
        path = tmp_path / file.name
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(SnapshotCorrupt):
            LocalIndex.open(tmp_path, verify=True)
        path.write_bytes(good[:-1])
        with pytest.raises(SnapshotCorrupt):
            LocalIndex.open(tmp_path)
        path.unlink()
        with pytest.raises(SnapshotCorrupt):
            LocalIndex.open(tmp_path)
        path.write_bytes(good)
    LocalIndex.open(tmp_path, verify=True)
    text = json.loads((tmp_path / "MANIFEST.json").read_text())
    text["revision"] = 99
    (tmp_path / "MANIFEST.json").write_text(json.dumps(text))
    with pytest.raises(SnapshotCorrupt):
        LocalIndex.open(tmp_path)


def test_a_reader_sees_another_writers_commit_and_keeps_its_own_view_until_then(tmp_path):
    gallery = photos(4)
    writer = filled(tmp_path, gallery)
    reader = LocalIndex.open(tmp_path)
    query = near(gallery["p0-002"])
    before = reader.search(query)
    writer.remove(["p0-002"])
    writer.commit(revision=5)
    writer.compact()
    assert reader.search(query) == before
    assert reader.refresh() and not reader.refresh()
    assert "p0-002" not in reader.search(query).photos and reader.revision == 5
    second = LocalIndex.open(tmp_path)
    second.add(["extra"], [gallery["p0-000"]])
    second.commit(revision=6)
    writer.add(["more"], [gallery["p0-001"]])
    writer.commit(revision=7)
    assert writer.ids() == sorted({*gallery, "extra", "more"} - {"p0-002"})


def _write_for_ever(folder: str) -> None:
    index = LocalIndex.open(Path(folder))
    for turn in range(10_000):
        gallery = photos(3, seed=turn % 50, low=5, high=10)
        index.add(list(gallery), list(gallery.values()))
        if turn % 4 == 3:
            index.remove(index.ids()[:2])
        index.commit(revision=turn + 2)
        if turn % 9 == 8:
            index.compact()


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_writers_leave_a_whole_index(tmp_path):
    filled(tmp_path, photos(3))
    context = multiprocessing.get_context("spawn")
    random = np.random.default_rng(1)
    for _ in range(3):
        process = context.Process(target=_write_for_ever, args=(str(tmp_path),))
        process.start()
        start = local_files.read_manifest(tmp_path).generation
        while local_files.read_manifest(tmp_path).generation < start + 2 and process.is_alive():
            time.sleep(0.01)
        time.sleep(float(random.uniform(0, 0.1)))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        index = LocalIndex.open(tmp_path, verify=True)
        assert len(index.ids()) == len(set(index.ids())) == len(index)
        index.commit(revision=index.revision + 1)
        named = {file.name for file in local_files.read_manifest(tmp_path).files}
        assert {path.name for path in tmp_path.glob("seg-*")} == named


def test_missing_neighbours_weigh_nothing():
    distance = np.array([[0.1, 0.4, np.inf], [np.inf] * 3, [0.2, np.inf, np.inf]], np.float32)
    photo = np.array([[0, 1, -1], [-1, -1, -1], [1, -1, -1]], np.int32)
    weights = lnbnn.match_weights(distance, photo, np.arange(2, dtype=np.int32), 3)
    assert weights == pytest.approx(np.array([[0.3, 0, 0], [0, 0, 0], [0, 0, 0]], np.float32))


@pytest.mark.parametrize("count", [0, 1, 31, 32, 1000, 100_000, 1_500_000, 20_000_000])
def test_cells_grow_with_the_descriptors(count):
    cells = lists.cells_for(count)
    assert 0 <= cells <= max(1, count // 32)
    assert (cells == 0) == (count == 0)
    assert lists.cells_for(4 * count) >= cells


def test_a_large_index_is_asked_with_the_strongest_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = LocalIndex.create(tmp_path / "index", fingerprint="f")
    rows = np.random.default_rng(0).integers(0, 200, (600, 128)).astype(np.uint8)
    index.add(["a"], [rows])
    index.commit(revision=1)
    assert len(index.asking(rows)) == 600
    monkeypatch.setattr("reid.index.local.LARGE", 599)
    np.testing.assert_array_equal(index.asking(rows), rows[:500])
