"""Local features of a store: described once, indexed as the catalogue serves, made anew where they are lost."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_stores import fake_store, reopened, seen, taken_in
from local_store import WITH_LOCAL, changed_settings, described, local_store, sightings
from numpy.typing import NDArray
from rendered_store import PHOTOS, flukes

from reid import fit, keypoints, local, ways
from reid.errors import IndexStale, SnapshotCorrupt
from reid.index import LocalIndex
from reid.local import LocalSource
from reid.records import Box
from reid.store import CALIBRATION, Store
from reid.verify import VerifyConfig

__all__ = ["described", "flukes", "local_store"]

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def describing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one entry for each box that is described."""
    calls: list[int] = []
    whole = keypoints.describe

    def counted(*given: object) -> object:
        calls.append(1)
        return whole(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(keypoints, "describe", counted)
    return calls


@pytest.fixture
def small(flukes: Path, tmp_path: Path) -> Store:
    """A store with local features and nothing in it, and photos of its own in `p`."""
    (tmp_path / "p").mkdir()
    for one in sightings(flukes)[:6]:
        shutil.copy2(one.path, tmp_path / "p" / one.path.name)
    return fake_store(tmp_path / "s", settings=WITH_LOCAL)


def photos(store: Store) -> list[Path]:
    return sorted((store.root.parent / "p").iterdir())


def assert_index_is_what_serves(store: Store) -> None:
    source = LocalSource.open(store)
    serving = store.catalogue.labels().annotations.tolist()
    assert source.index.ids() == sorted(map(str, serving))
    keys = local.keys(store, serving)
    total = 0
    for id in source.index.ids():
        features = source.features_of(keys, id)
        assert features is not None
        total += len(features)
    live = LocalIndex.open(store.root / local.FOLDER, verify=True)
    live.compact()
    assert live.descriptors == total
    assert source.features_of(keys, "999999") is None


def test_every_box_is_described_once_and_never_again(small: Store, describing: list[int]) -> None:
    given = [seen(p, f"w{n}") for n, p in enumerate(photos(small))]
    taken_in(small, given)
    assert len(describing) == 6
    again = reopened(small.root)
    taken_in(again, given)
    assert local.bring_up(again) == [] == local.bring_up(again, check=True)
    assert len(describing) == 6
    assert_index_is_what_serves(again)


def test_a_store_that_does_without_local_features_describes_nothing(
    flukes: Path, tmp_path: Path, describing: list[int]
) -> None:
    store = fake_store(tmp_path / "s")
    taken_in(store, sightings(flukes)[:3])
    assert local.bring_up(store, check=True) == [] and local.description(store) is None
    assert describing == [] and local.fingerprint(store) == ""
    assert not (store.root / local.FOLDER).exists() and not (store.root / "features").exists()


def test_switched_on_later_all_photos_are_described_by_the_next_enrolment(small: Store, describing: list[int]) -> None:
    store = changed_settings(small, "use = true → use = false")
    taken_in(store, [seen(p) for p in photos(store)[:4]])
    assert describing == []
    store = changed_settings(store, "use = false → use = true")
    taken_in(store, [seen(p) for p in photos(store)])
    assert len(describing) == 6
    assert_index_is_what_serves(store)


def test_the_index_follows_photos_that_are_added(small: Store) -> None:
    for many in (2, 3, 6):
        taken_in(small, [seen(p, p.name) for p in photos(small)[:many]])
        assert len(LocalSource.open(small).index) == many
    assert_index_is_what_serves(small)


def test_a_large_addition_is_planned_for_and_ends_in_one_segment(small: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [seen(p, f"w{n}") for n, p in enumerate(photos(small))]
    taken_in(small, given)
    plain = LocalSource.open(small)
    keys = local.keys(small, small.catalogue.labels().annotations.tolist())
    asked = plain.features_of(keys, plain.index.ids()[0])
    assert asked is not None
    expected = plain.index.search(asked.descriptors, probes=10_000)
    shutil.rmtree(small.root / local.FOLDER)
    monkeypatch.setattr(local, "_BATCH", 1)
    monkeypatch.setattr(local, "_MANY", 3)
    planned: list[int] = []
    expect = LocalIndex.expect

    def noted(index: LocalIndex, total: int, sample: Sequence[NDArray[np.uint8]]) -> None:
        planned.append(total)
        expect(index, total, sample)

    monkeypatch.setattr(LocalIndex, "expect", noted)
    assert local.bring_up(small) == []
    source = LocalSource.open(small)
    assert planned == [source.index.descriptors] and not source.index.outgrown
    assert len(list((small.root / local.FOLDER).glob("*.lists.faiss"))) == 1
    assert source.index.search(asked.descriptors, probes=10_000).photos == expected.photos
    assert_index_is_what_serves(small)


def test_a_box_that_takes_the_place_of_another_is_described_and_the_old_one_goes(
    small: Store, describing: list[int]
) -> None:
    path = photos(small)[0]
    taken_in(small, [seen(path, "Ana")])
    [before] = LocalSource.open(small).index.ids()
    taken_in(small, [seen(path, "Ana", box=Box(20, 10, 200, 120))])
    assert len(describing) == 2
    [now] = LocalSource.open(small).index.ids()
    assert now != before
    found = LocalSource.open(small).features_of(local.keys(small, [int(now)]), now)
    assert found is not None and (found.width, found.height) == (180, 110)
    assert_index_is_what_serves(small)


def test_a_file_with_new_content_is_described_anew_and_its_old_points_no_longer_vote(
    small: Store, describing: list[int]
) -> None:
    given = photos(small)
    taken_in(small, [seen(p, p.name) for p in given[:3]])
    old = {i.path: str(a) for a, i in small.catalogue.annotations([1, 2, 3]).items()}[given[0]]
    shutil.copyfile(given[5], given[0])
    small.catalogue.mark_changed([given[0]])
    assert old not in LocalSource.open(small).index.ids()  # at once, without describing
    assert len(describing) == 3
    taken_in(small, [seen(given[0], "another")])
    assert len(describing) == 4
    assert len(LocalSource.open(small).index) == 3
    assert_index_is_what_serves(small)


def segments(store: Store) -> list[Path]:
    return sorted(p for p in (store.root / local.FOLDER).iterdir() if p.name.startswith("seg-"))


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest", "no manifest"])
def test_a_damaged_index_is_made_again_without_describing(
    local_store: Store, describing: list[int], damage: str
) -> None:
    before = LocalSource.open(local_store).index
    ids, count = before.ids(), before.descriptors
    largest = max(segments(local_store), key=lambda p: p.stat().st_size)
    manifest = local_store.root / local.FOLDER / "MANIFEST.json"
    if damage == "cut":
        largest.write_bytes(largest.read_bytes()[:-1])
    elif damage == "gone":
        largest.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-20])
    else:
        manifest.unlink()
    if damage != "no manifest":
        with pytest.raises(SnapshotCorrupt, match="reid reindex"):
            LocalSource.open(local_store)
    assert local.bring_up(local_store) == []
    found = LocalSource.open(local_store).index
    assert (found.ids(), found.descriptors, describing) == (ids, count, [])
    assert_index_is_what_serves(local_store)


def test_a_changed_byte_of_the_index_is_found_by_the_nightly_check(local_store: Store, describing: list[int]) -> None:
    largest = max(segments(local_store), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    local.bring_up(local_store)
    with pytest.raises(SnapshotCorrupt):
        LocalSource.open(local_store).index.check()
    assert local.bring_up(local_store, check=True) == [] and describing == []
    LocalSource.open(local_store).index.check()
    assert_index_is_what_serves(local_store)


@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_lost_features_are_described_again_by_the_nightly_check(
    local_store: Store, describing: list[int], damage: str
) -> None:
    source = LocalSource.open(local_store)
    keys = local.keys(local_store, local_store.catalogue.labels().annotations.tolist())
    some = sorted(keys)[:3]
    before = {id: source.features_of(keys, id) for id in some}
    for id in some:
        path = source.features.path(*keys[id])
        data = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(data[:-7] if damage == "cut" else data[:-7] + bytes([data[-7] ^ 1]) + data[-6:])
    assert [source.features_of(keys, id) for id in some] == [None] * 3
    assert local.bring_up(local_store, check=True) == []
    assert len(describing) == 3
    assert {id: source.features_of(keys, id) for id in some} == before
    assert_index_is_what_serves(local_store)


def test_another_description_is_stale_until_all_is_described_and_the_way_back_costs_nothing(
    local_store: Store, describing: list[int]
) -> None:
    old, before = local.fingerprint(local_store), local_store.config.local.keypoints
    store = changed_settings(local_store, r"keypoints = \d+ → keypoints = 60")
    assert local.fingerprint(store) != old
    with pytest.raises(IndexStale):
        LocalSource.open(store)
    assert local.bring_up(store) == [] and len(describing) == PHOTOS
    source = LocalSource.open(store)
    assert len(source.index) == PHOTOS and source.index.descriptors <= 60 * PHOTOS
    assert_index_is_what_serves(store)
    back = changed_settings(store, f"keypoints = 60 → keypoints = {before}")
    assert local.bring_up(back) == [] and len(describing) == PHOTOS
    assert local.fingerprint(back) == old
    assert_index_is_what_serves(back)


def test_other_geometry_needs_no_new_description_but_another_fit(local_store: Store, describing: list[int]) -> None:
    old = local.fingerprint(local_store)
    store = changed_settings(local_store, 'model = "(affine|homography)" → model = "similarity"')
    LocalSource.open(store)
    assert local.bring_up(store) == [] and describing == []
    assert local.fingerprint(store) != old and local.verification(store).model == "similarity"


def test_another_estimator_asks_for_another_fit_and_the_one_that_auto_means_does_not(local_store: Store) -> None:
    gallery, old = local_store.gallery().fingerprint, local.fingerprint(local_store)
    assert fit.read(local_store, gallery) is not None and local.verification(local_store).estimator == "frames"
    named = changed_settings(local_store, 'estimator = "auto" → estimator = "frames"')
    assert local.fingerprint(named) == old and fit.read(named, gallery) is not None
    prints = {old}
    for before, estimator in (("frames", "lmeds_ransac"), ("lmeds_ransac", "magsac")):
        named = changed_settings(named, f'estimator = "{before}" → estimator = "{estimator}"')
        assert local.verification(named).estimator == estimator
        assert fit.read(named, gallery) is None and fit.is_due(named)
        prints.add(local.fingerprint(named))
    assert len(prints) == 3


def test_what_an_earlier_rule_chose_is_chosen_anew(local_store: Store) -> None:
    found = fit.fit(local_store)
    tried = [{"kind": found.fusion.kind, "in_force": True}]
    for rule, way, due in ((ways.RULE, tried, False), (ways.RULE - 1, tried, True), (ways.RULE - 1, [], False)):
        fit.write(local_store, replace(found, ways=way, rule=rule))
        assert fit.is_due(local_store) is due
    path = local_store.root / CALIBRATION
    old = json.loads(path.read_text()) | {"ways": tried}
    del old["rule"]  # as a build wrote it that had none
    path.write_text(json.dumps(old))
    assert fit.is_due(local_store)


def test_matching_both_ways_asks_for_another_fit_and_no_new_description(
    local_store: Store, describing: list[int]
) -> None:
    old = local.fingerprint(local_store)
    both = changed_settings(local_store, 'matcher = "sift" → matcher = "sift_mutual"')
    assert local.verification(both).matcher == "sift_mutual" and local.verification(both).learned is None
    assert local.fingerprint(both) == f"{old}-sift_mutual" and fit.is_due(both)
    assert local.bring_up(both) == [] and describing == []


def test_the_fourth_places_settings_reach_the_geometry_and_ask_for_another_fit(local_store: Store) -> None:
    prints = [local.fingerprint(local_store)]
    for line in (
        "iterations = 2000 → iterations = 20000",  # frames try no random hypotheses: the same as before
        'estimator = "auto" → estimator = "lmeds_ransac"',
        r"inlier_distance = 0\.03 → inlier_distance = 0.014",
        "min_matches = 0 → min_matches = 10",
        'matcher = "sift" → matcher = "sift_mutual"',
        'model = "affine" → model = "homography"',
        'ranking = "fused" → ranking = "geometry_first"',
    ):
        local_store = changed_settings(local_store, line)
        prints.append(local.fingerprint(local_store))
    assert local.verification(local_store) == VerifyConfig(
        "sift_mutual", model="homography", estimator="lmeds_ransac", threshold=0.014, min_matches=10, iterations=20_000
    )
    assert prints[0] == prints[1] and len(set(prints)) == len(prints) - 1


def test_a_learned_matcher_has_an_estimator_that_needs_no_frames(local_store: Store, tmp_path: Path) -> None:
    learned = changed_settings(local_store, 'matcher = "sift" → matcher = "xfeat"')
    assert local.verification(learned).estimator == "lmeds_ransac"
    robust = changed_settings(learned, 'estimator = "auto" → estimator = "magsac"')
    assert local.verification(robust).estimator == "magsac"


def test_a_photo_that_vanished_is_said_and_the_others_are_described(small: Store) -> None:
    given = photos(small)
    taken_in(small, [seen(p, p.name) for p in given])
    shutil.rmtree(small.root / "features")
    shutil.rmtree(small.root / local.FOLDER)
    given[1].unlink()
    shutil.copyfile(given[5], given[2])
    told: list[tuple[str, int, int]] = []
    failures = local.bring_up(small, progress=lambda *said: told.append(said))
    by_name = {Path(f.source).name: f for f in failures}
    assert set(by_name) == {given[1].name, given[2].name}
    assert "another photo now" in by_name[given[2].name].message and by_name[given[1].name].next_step
    assert len(LocalSource.open(small).index) == 4
    assert told == [("describe", n + 1, 6) for n in range(6)]
    assert {f.source for f in local.bring_up(small)} == {f.source for f in failures}


def test_two_boxes_of_one_photo_are_kept_apart(small: Store, describing: list[int]) -> None:
    path = photos(small)[0]
    boxes = [Box(0, 0, 160, 100), Box(150, 20, 300, 120)]
    taken_in(small, [seen(path, f"w{n}", box=box) for n, box in enumerate(boxes)])
    keys = local.keys(small, [1, 2])
    found = [LocalSource.open(small).features_of(keys, str(n)) for n in (1, 2)]
    assert [(f.width, f.height) for f in found if f] == [(160, 100), (150, 100)]
    assert len(describing) == 2
    shutil.rmtree(small.root / "features")
    assert local.bring_up(small, check=True) == []
    assert [LocalSource.open(small).features_of(keys, str(n)) for n in (1, 2)] == found


def brought_up(root: Path) -> None:
    with Store.open(root) as store:
        assert local.bring_up(store) == []


def test_two_processes_describing_at_once_leave_one_whole_index(local_store: Store) -> None:
    shutil.rmtree(local_store.root / "features")
    shutil.rmtree(local_store.root / local.FOLDER)
    workers = [SPAWN.Process(target=brought_up, args=(local_store.root,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert_index_is_what_serves(local_store)
    assert list((local_store.root / "features").rglob("*.tmp")) == []


def test_an_open_reader_keeps_its_answers_while_another_writes(local_store: Store, flukes: Path) -> None:
    reader = LocalSource.open(local_store)
    before = reader.index.ids()
    extra = replace(sightings(flukes, "queries.csv")[0], identity=None)
    taken_in(reopened(local_store.root), [extra])
    assert reader.index.ids() == before
    assert len(LocalSource.open(reopened(local_store.root)).index) == len(before) + 1
