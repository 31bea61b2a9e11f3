"""Masks on their way: tables and folders → what is described, kept, asked, explained and written out again."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_stores import ColourEmbedder, fake_store, taken_in
from local_store import WITH_LOCAL, described, local_store, sightings
from rendered_store import flukes, reid, reid_json

from reid import fit, intake, keypoints, local, masks
from reid.exchange import read_sources
from reid.explaining import explain_answer, explain_pair
from reid.export import write_wildlife_csv
from reid.keypoints import KeypointConfig, to_bytes
from reid.local import LocalSource
from reid.look import Options
from reid.pipeline import Query, identify, query_of
from reid.records import Box, Mask, Sighting
from reid.reindex import reindex
from reid.store import Store

__all__ = ["described", "flukes", "local_store"]

PREPROCESSING = ColourEmbedder().card.preprocessing


def size_of(path: Path) -> tuple[int, int]:
    height, width = cv2.imread(str(path)).shape[:2]
    return width, height


def drawn(path: Path, photo: Path, *, left: float = 0.0, right: float = 1.0) -> Path:
    """A mask picture of the photo's size: its columns from `left` to `right`."""
    width, height = size_of(photo)
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, round(left * width) : round(right * width)] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    written, data = cv2.imencode(".png", pixels)
    assert written
    path.write_bytes(data.tobytes())
    return path


@pytest.fixture
def photo(flukes: Path) -> Sighting:
    """An enrolled photo, with its box."""
    return sightings(flukes)[0]


def middle(sighting: Sighting) -> float:
    """The column of the box's middle, as a share of the photo's width."""
    assert sighting.box is not None
    return (sighting.box.x0 + sighting.box.x1) / 2 / size_of(sighting.path)[0]


def features_on_file(store: Store, annotation: int = 1):
    source = LocalSource.open(store)
    return source.features_of(local.keys(store, [annotation]), str(annotation))


def test_only_what_lies_within_the_mask_is_described(photo: Sighting, tmp_path: Path) -> None:
    half = drawn(tmp_path / "half.png", photo.path, right=middle(photo))
    config = KeypointConfig()
    [all_of_it] = intake.prepare([photo], PREPROCESSING, describe=config).local
    masked = intake.prepare([replace(photo, mask=Mask(picture=half))], PREPROCESSING, describe=config)
    [within] = masked.local
    assert 10 <= len(within) < len(all_of_it) and (within.height, within.width) == (all_of_it.height, all_of_it.width)
    assert within.xy[:, 0].max() <= within.width / 2 + 1 < all_of_it.xy[:, 0].max()
    [png] = masked.masks
    assert png is not None and np.array_equal(cv2.imdecode(np.frombuffer(png, np.uint8), 0), cv2.imread(str(half), 0))


def test_a_mask_without_a_box_gives_the_box_around_it(photo: Sighting, tmp_path: Path) -> None:
    width, height = size_of(photo.path)
    half = drawn(tmp_path / "half.png", photo.path, right=0.5)
    prepared = intake.prepare([replace(photo, box=None, mask=Mask(picture=half))], PREPROCESSING)
    assert prepared.boxes == (Box(0.0, 0.0, float(round(0.5 * width)), float(height)),)


def test_an_empty_mask_without_a_box_is_said_and_nothing_is_cut(photo: Sighting, tmp_path: Path) -> None:
    nothing = drawn(tmp_path / "none.png", photo.path, right=0.0)
    one = replace(photo, box=None, mask=Mask(picture=nothing))
    prepared = intake.prepare([one], PREPROCESSING, describe=KeypointConfig())
    assert prepared.boxes == () and prepared.local == () and len(prepared.crops) == 0
    [failure] = prepared.failures
    assert failure.code == "no_detection" and "mask is empty" in failure.message and failure.next_step


@pytest.mark.parametrize("trouble", ["another shape", "no picture"])
def test_a_mask_that_says_nothing_does_not_cost_a_photo_without_a_box(
    photo: Sighting, tmp_path: Path, trouble: str
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(
        b"nonsense" if trouble == "no picture" else cv2.imencode(".png", np.full((50, 50), 255))[1].tobytes()
    )
    one = replace(photo, box=None, mask=Mask(picture=bad))
    prepared = intake.prepare([one], PREPROCESSING)
    plain = intake.prepare([replace(photo, box=None)], PREPROCESSING)
    assert [box.origin for box in prepared.boxes] == ["whole"] and np.array_equal(prepared.crops, plain.crops)
    [failure] = prepared.failures
    assert failure.code == "bad_input" and failure.message.endswith("the photo is used without it")


@pytest.mark.parametrize("trouble", ["empty", "another shape", "no picture"])
def test_a_mask_that_cannot_be_used_costs_a_photo_with_a_box_the_mask_alone(
    photo: Sighting, tmp_path: Path, trouble: str
) -> None:
    bad = tmp_path / "bad.png"
    if trouble == "empty":
        drawn(bad, photo.path, right=0.0)
    elif trouble == "another shape":
        assert cv2.imwrite(str(bad), np.full((50, 50), 255, np.uint8))
    else:
        bad.write_bytes(b"nonsense")
    one = replace(photo, mask=Mask(picture=bad))
    prepared = intake.prepare([one], PREPROCESSING, describe=KeypointConfig())
    plain = intake.prepare([photo], PREPROCESSING, describe=KeypointConfig())
    assert (prepared.boxes, prepared.local, prepared.masks) == (plain.boxes, plain.local, (None,))
    assert np.array_equal(prepared.crops, plain.crops) and plain.failures == ()
    [failure] = prepared.failures
    assert failure.code == "bad_input" and failure.next_step
    assert "mask" in failure.message and failure.message.endswith("the photo is used without it")
    [again] = intake.with_masks([one], prepared.facts.width, prepared.facts.height).sightings
    assert (again.box, again.mask, again.identity) == (photo.box, None, photo.identity)


def test_a_store_keeps_masks_and_describes_by_them_again(flukes: Path, tmp_path: Path) -> None:
    rows = [replace(s, mask=Mask(picture=drawn(tmp_path / f"{i}.png", s.path, right=middle(s))))
            for i, s in enumerate(sightings(flukes)[:6])]  # fmt: skip
    store = fake_store(tmp_path / "store", settings=WITH_LOCAL)
    assert taken_in(store, rows).failures == []
    before = features_on_file(store)
    assert before is not None and before.xy[:, 0].max() <= before.width / 2 + 1
    for row in rows:
        assert row.mask is not None and row.mask.picture is not None
        row.mask.picture.unlink()  # the store has its own
    shutil.rmtree(store.root / "features")
    shutil.rmtree(store.root / "local")
    assert local.bring_up(store) == []
    assert features_on_file(store) == before
    kept = list((store.root / local.MASKS).rglob("*.png"))
    assert len(kept) == 6 and sum(path.stat().st_size for path in kept) < 6 * 4000


def test_a_mask_that_comes_later_is_described_by_and_voted_with(photo: Sighting, tmp_path: Path, flukes: Path) -> None:
    store = fake_store(tmp_path / "store", settings=WITH_LOCAL)
    rows = sightings(flukes)[:5]
    taken_in(store, rows)
    all_of_it = features_on_file(store)
    votes_before = LocalSource.open(store).index.descriptors
    half = Mask(picture=drawn(tmp_path / "half.png", photo.path, right=middle(photo)))
    report = taken_in(store, [replace(rows[0], mask=half), *rows[1:]])
    assert report.failures == [] and report.new == 0
    within = features_on_file(store)
    assert within is not None and all_of_it is not None and 10 <= len(within) < len(all_of_it)
    index = LocalSource.open(store).index
    with index.writing():
        index.compact()  # what was replaced leaves the disk
    assert index.descriptors == votes_before - len(all_of_it) + len(within)
    assert not (store.root / local.MASKS / local.REDRAWN).exists()
    taken_in(store, [replace(rows[0], mask=half), *rows[1:]])  # the same again changes nothing
    assert features_on_file(store) == within


def test_what_was_described_without_outlines_serves_on_and_gets_them_by_and_by(
    flukes: Path, photo: Sighting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store from before outlines were kept: its fit stands until its masked boxes, and no others, are described anew."""
    store = fake_store(tmp_path / "store", settings=WITH_LOCAL)
    rows = sightings(flukes)[:5]
    half = Mask(picture=drawn(tmp_path / "half.png", photo.path, right=middle(photo)))
    taken_in(store, [replace(rows[0], mask=half), *rows[1:]])
    new, mark = local.fingerprint(store), store.root / local.MASKS / local.OUTLINED
    now = features_on_file(store)
    assert (
        mark.exists() and now is not None and now.outline is not None and fit.read(store, store.gallery().fingerprint)
    )
    mark.unlink()
    [path] = [p for p in (store.root / "features").rglob("*.rkp") if p.read_bytes()[:4] == b"RKP3"]
    path.write_bytes(to_bytes(replace(now, outline=None)))
    assert local.fingerprint(store) != new
    fit.fit(store)
    assert identify(store, [Query((replace(photo, identity=None),))])[0].labels and not fit.is_due(store)
    calls: list[object] = []
    whole = keypoints.describe
    monkeypatch.setattr(keypoints, "describe", lambda *given: (calls.append(given), whole(*given))[1])
    assert local.bring_up(store) == [] and len(calls) == 1
    assert features_on_file(store) == now
    assert local.fingerprint(store) == new and fit.is_due(store)  # overlaps mean something else than they did
    assert local.bring_up(store) == [] == local.bring_up(store, check=True) and len(calls) == 1


def test_a_store_without_masks_knows_nothing_of_outlines(local_store: Store) -> None:
    local.bring_up(local_store)
    assert not (local_store.root / local.MASKS).exists() and "outlined" not in local.fingerprint(local_store)


def test_a_query_with_an_empty_mask_has_no_animal(local_store: Store, photo: Sighting, tmp_path: Path) -> None:
    nothing = drawn(tmp_path / "none.png", photo.path, right=0.0)
    [answer] = identify(local_store, [query_of([photo.path], masks={photo.path: Mask(picture=nothing)})])
    assert answer.status == "no_detection" and "mask is empty" in answer.message and answer.labels == ()


def test_a_query_within_a_mask_compares_fewer_points(local_store: Store, photo: Sighting, tmp_path: Path) -> None:
    half = Mask(picture=drawn(tmp_path / "half.png", photo.path, right=middle(photo)))
    bare = replace(photo, identity=None)
    full, part = identify(local_store, [Query((bare,)), Query((replace(bare, mask=half),))])
    assert full.labels[0].label == part.labels[0].label == photo.identity
    assert 0 < part.labels[0].evidence["inliers"] < full.labels[0].evidence["inliers"]


def test_evidence_outside_the_mask_is_flagged(local_store: Store, photo: Sighting, tmp_path: Path) -> None:
    """The same photo twice: what agrees lies all over the box, so most of it is outside a narrow mask."""
    left = middle(photo) - 0.02
    narrow = Mask(picture=drawn(tmp_path / "m.png", photo.path, left=left, right=left + 0.04))
    pair, options = (photo.path, photo.path), Options(heat=False)
    boxes = (photo.box, photo.box)
    plain = explain_pair(pair, boxes, tmp_path / "a", store=local_store, options=options).pairs[0]
    masked = explain_pair(
        pair, boxes, tmp_path / "b", store=local_store, options=options, drawn=(narrow, narrow)
    ).pairs[0]
    assert not plain.flagged and masked.flagged
    assert (masked.outside.matches or 0) > 0.5 > (plain.outside.matches or 0)
    assert masked.inliers < plain.inliers
    assert "outside the animal" in (tmp_path / "b" / "index.html").read_text()


def test_an_explanation_with_an_empty_mask_says_so(local_store: Store, photo: Sighting, tmp_path: Path) -> None:
    nothing = Mask(picture=drawn(tmp_path / "none.png", photo.path, right=0.0))
    done = explain_pair((photo.path, photo.path), (None, None), tmp_path / "out", store=local_store,
                        drawn=(nothing, None))  # fmt: skip
    assert "mask is empty" in done.pairs[0].skipped["photo"] and done.unread


def test_the_masks_of_the_gallery_are_looked_through(flukes: Path, photo: Sighting, tmp_path: Path) -> None:
    store = fake_store(tmp_path / "store", settings=WITH_LOCAL)
    rows = sightings(flukes)[:5]
    half = Mask(picture=drawn(tmp_path / "half.png", photo.path, right=middle(photo)))
    taken_in(store, [replace(rows[0], mask=half), *rows[1:]])
    query = Query((replace(photo, identity=None),))
    [answer] = identify(store, [query])
    done = explain_answer(store, answer, [photo.path], tmp_path / "why", options=Options(heat=False))
    [mine] = [pair for pair in done.pairs if pair.label == photo.identity]
    [other] = explain_pair(
        (photo.path, photo.path), (photo.box, photo.box), tmp_path / "b", store=store, options=Options(heat=False),
        drawn=(None, half),
    ).pairs  # fmt: skip
    assert (mine.matches, mine.inliers, mine.outside) == (other.matches, other.inliers, other.outside)


def test_tables_and_coco_carry_masks_in(flukes: Path, photo: Sighting, tmp_path: Path) -> None:
    width, height = size_of(photo.path)
    polygon = [0.0, 0.0, width / 2, 0.0, width / 2, float(height), 0.0, float(height)]
    with open(tmp_path / "t.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["identity", "path", "segmentation"], ["w", photo.path, str([polygon])]])
    document = {
        "images": [{"id": 1, "file_name": str(photo.path), "width": width, "height": height}],
        "annotations": [{"id": 1, "image_id": 1, "name": "w", "segmentation": [polygon]}],
    }
    (tmp_path / "c.json").write_text(json.dumps(document))
    found = [read_sources([tmp_path / name]).sightings[0] for name in ("t.csv", "c.json")]
    assert found[0].mask == found[1].mask == masks.mask_of([polygon])
    assert intake.prepare([found[0]], PREPROCESSING).boxes[0].x1 == pytest.approx(width / 2, abs=1)
    document["annotations"][0]["segmentation"] = [[1, 2]]  # type: ignore[index]
    (tmp_path / "c.json").write_text(json.dumps(document))
    broken = read_sources([tmp_path / "c.json"])
    assert broken.sightings[0].mask is None and any("segmentations not understood" in note for note in broken.notes)


def test_masks_survive_the_way_out_and_in_again(flukes: Path, photo: Sighting, tmp_path: Path) -> None:
    store = fake_store(tmp_path / "store", settings=WITH_LOCAL)
    half = Mask(picture=drawn(tmp_path / "half.png", photo.path, right=middle(photo)))
    taken_in(store, [replace(photo, mask=half), *sightings(flukes)[1:3]])
    write_wildlife_csv(store, tmp_path / "out.csv")
    again = fake_store(tmp_path / "again", settings=WITH_LOCAL)
    back = read_sources([tmp_path / "out.csv"])
    assert not any("segmentation" in note for note in back.notes)
    taken_in(again, back.sightings)
    assert features_on_file(again) == features_on_file(store)
    for seed in range(3):
        mask = np.random.default_rng(seed).random((17, 23)) < 0.4
        said = masks.mask_of(masks.spelled(mask))
        assert said is not None and np.array_equal(masks.raster(said, 23, 17), mask)


def test_a_store_without_masks_writes_no_column_for_them(local_store: Store, tmp_path: Path) -> None:
    write_wildlife_csv(local_store, tmp_path / "out.csv")
    assert "segmentation" not in (tmp_path / "out.csv").read_text().splitlines()[0]


def test_by_night_masks_are_obeyed_too(flukes: Path, photo: Sighting, tmp_path: Path) -> None:
    store = fake_store(tmp_path / "store", settings=WITH_LOCAL)
    half = Mask(picture=drawn(tmp_path / "half.png", photo.path, right=middle(photo)))
    taken_in(store, [replace(photo, mask=half), *sightings(flukes)[1:4]])
    before = features_on_file(store)
    shutil.rmtree(store.root / "features")
    assert reindex(store, who="tester").failures == []
    assert features_on_file(store) == before


def test_masks_on_the_command_line(tmp_path: Path, flukes: Path) -> None:
    names = [s.path.name for s in sightings(flukes)[:3]]
    photos, folder = tmp_path / "photos", tmp_path / "masks"
    photos.mkdir()
    for name in names:
        shutil.copy(flukes / "photos" / name if (flukes / "photos" / name).exists() else flukes / name, photos / name)
    drawn(folder / f"{Path(names[0]).stem}.png", photos / names[0], right=0.5)
    store = tmp_path / "store"
    done = reid_json("enroll", photos, "--masks", folder, store=store)
    assert done["new"] == 3
    assert len(list((store / "masks").rglob("*.png"))) == 1
    empty = drawn(tmp_path / "empty.png", photos / names[1], right=0.0)
    answer = reid_json("query", photos / names[1], "--mask", empty, store=store, code=5)
    assert answer["status"] == "no_detection"
    boxed = reid_json("query", photos / names[0], "--mask", folder, store=store, code=4)  # nothing there is named
    assert boxed["boxes"][0]["x1"] == pytest.approx(size_of(photos / names[0])[0] / 2, abs=1)
    absent = reid("enroll", photos, "--masks", tmp_path / "nowhere", store=store)
    assert absent.exit_code == 2 and "does not exist" in " ".join(absent.output.split())
    gone = reid("query", photos / names[0], "--mask", tmp_path / "gone.png", store=store)
    assert gone.exit_code == 2 and "does not exist" in " ".join(gone.output.split())
    (tmp_path / "none").mkdir()
    nothing = reid("enroll", photos, "--masks", tmp_path / "none", store=store)
    assert nothing.exit_code == 1 and "no masks of these photos" in nothing.output
    several = reid("query", photos / names[0], photos / names[1], "--mask", empty, store=store)
    assert several.exit_code == 2 and "folder of masks" in several.output
    why = reid_json("explain", photos / names[0], photos / names[1], "--mask-b", empty, "--no-heat",
                    "--out", tmp_path / "why", store=store, code=1)  # fmt: skip
    assert "mask is empty" in why["pairs"][0]["skipped"]["photo"]
