"""Where the animal is: the cropper that ships, what its folds are worth, and the way of its boxes into a store."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import need_shared_data
from fake_stores import fake_store, paint, reopened, seen, taken_in

from reid import crop, intake, locate, models
from reid.catalogue.boxes import overlap
from reid.errors import ConfigError, ModelError
from reid.index import Gallery
from reid.locate import SHIPPED, Croppers, Locator
from reid.models import Preprocessing
from reid.pipeline import Identifier, query_of
from reid.records import Box
from reid.reindex import reindex
from reid.store import Store
from reid.suitable import by_shape, with_boxes
from reid.synth import RenderedPhoto, Shot, render, staged

SMALL = Preprocessing(32, 48, (127.5,) * 3, (127.5,) * 3)
SEED = 4711  # of whales that the shipped cropper was not trained on


@pytest.fixture(scope="module")
def fluke() -> Locator:
    return Locator(SHIPPED["fluke"])


@pytest.fixture(scope="module")
def photos() -> list[RenderedPhoto]:
    return [render(*staged(Shot(SEED, i, 0))) for i in range(10)]


def saved(path: Path, pixels: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), pixels[:, :, ::-1])
    return path


def sea(path: Path) -> Path:
    """A photo without an animal."""
    rng = np.random.default_rng(0)
    waves = cv2.GaussianBlur(rng.normal(0, 60, (300, 400)).astype(np.float32), (0, 0), 3, sigmaY=1)
    return saved(path, np.clip(np.stack([60 + waves, 90 + waves, 130 + waves], -1), 0, 255).astype(np.uint8))


# --- what several folds say


def test_the_canonical_box_is_the_folds_median_and_their_disagreement_its_spread() -> None:
    rng = np.random.default_rng(1)
    folds = np.zeros((5, 13), np.float32)
    folds[:, :2], folds[:, 2:4] = rng.uniform(0.05, 0.2, (5, 2)), rng.uniform(0.7, 0.9, (5, 2))
    folds[:, 4:12], folds[:, 12] = rng.uniform(-0.1, 1.1, (5, 8)), (0.9, 0.8, 1.0, 0.7, 0.6)
    found = locate.summed(folds, (200, 100))
    middle = [sorted(folds[:, i])[2] for i in range(12)]
    scale = (200, 100) * 6
    expected = [float(m) * s for m, s in zip(middle, scale, strict=False)]
    np.testing.assert_allclose((found.box.x0, found.box.y0, found.box.x1, found.box.y1), expected[:4], rtol=1e-5)
    np.testing.assert_allclose(found.landmarks.ravel(), expected[4:], rtol=1e-5)
    ious = [overlap(Box(*(row[:4] * scale[:4])), found.box) for row in folds.astype(float)]
    assert found.spread == pytest.approx(1 - np.mean(ious), abs=1e-6)
    assert found.confidence == found.box.confidence == pytest.approx(0.8) and found.box.origin == "detector"
    np.testing.assert_allclose(found.boxes, folds[:, :4] * scale[:4], rtol=1e-6)


def test_folds_that_agree_have_no_spread_and_edges_that_crossed_are_no_box() -> None:
    one = np.array([[0.2, 0.3, 0.8, 0.9, *([0.5] * 8), 1.0]], np.float32)
    assert locate.summed(np.repeat(one, 3, axis=0), (100, 50)).spread == pytest.approx(0, abs=1e-6)
    crossed = one.copy()
    crossed[0, :4] = (0.999, 0.6, 0.4, 0.5)
    found = locate.summed(crossed, (100, 50))
    assert found.confidence == 0.0 and found.box.width >= 0.99 and found.box.height >= 0.99
    assert 0 <= found.box.x0 and found.box.x1 <= 100 + 1e-6 and found.box.y1 <= 50 + 1e-6


def test_overlaps_are_those_of_the_catalogues_boxes() -> None:
    rng = np.random.default_rng(2)
    corners = rng.uniform(0, 1, (40, 2, 2, 2))
    boxes = np.concatenate([corners.min(2), corners.max(2)], axis=-1)
    expected = [overlap(Box(*a), Box(*b)) for a, b in boxes]
    np.testing.assert_allclose(locate.overlaps(boxes[:, 0], boxes[:, 1]), expected, atol=1e-9)


# --- the cropper that ships


def test_it_finds_rendered_flukes_with_their_landmarks_and_no_fluke_in_the_sea(
    fluke: Locator, photos: list[RenderedPhoto], tmp_path: Path
) -> None:
    found = fluke.locate_all([photo.pixels for photo in photos])
    ious = [overlap(one.box, photo.box) for one, photo in zip(found, photos, strict=True)]
    assert np.median(ious) > 0.85
    errors = [
        np.linalg.norm(one.landmarks - photo.landmarks, axis=1) / photo.box.width
        for one, photo in zip(found, photos, strict=True)
    ]
    assert np.median(errors) < 0.08
    assert np.median([one.confidence for one in found]) > 0.9
    empty = cv2.imread(str(sea(tmp_path / "sea.png")))[:, :, ::-1]
    assert fluke.locate(np.ascontiguousarray(empty)).confidence < 0.5


def test_a_small_fluke_is_looked_at_again_closer(fluke: Locator, monkeypatch: pytest.MonkeyPatch) -> None:
    far = []
    for whale in range(8):
        individual, view = staged(Shot(SEED, whale, 1))
        far.append(render(individual, replace(view, fill=0.25, aspect=1.5, turned=0.0, margin=0.0)))
    twice = [overlap(fluke.locate(photo.pixels).box, photo.box) for photo in far]
    monkeypatch.setattr(locate, "SMALL", 0.0)
    once = [overlap(fluke.locate(photo.pixels).box, photo.box) for photo in far]
    assert np.median(twice) > 0.8 and np.median(twice) > np.median(once) + 0.05


def test_boxes_are_in_pixels_of_the_original_whatever_was_decoded(fluke: Locator, photos: list[RenderedPhoto]) -> None:
    pixels = photos[0].pixels
    height, width = pixels.shape[:2]
    full = fluke.locate(pixels)
    small = fluke.locate(cv2.resize(pixels, (width // 2, height // 2), interpolation=cv2.INTER_AREA), (width, height))
    assert overlap(full.box, small.box) > 0.95
    alone, batch = fluke.locate(pixels), fluke.locate_all([photos[1].pixels, pixels])[1]
    assert alone.box == batch.box


def test_pixels_that_are_no_photo_are_refused_and_no_photos_give_nothing(fluke: Locator) -> None:
    with pytest.raises(ValueError, match="uint8"):
        fluke.locate(np.zeros((4, 4, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not empty"):
        fluke.locate(np.zeros((0, 4, 3), np.uint8))
    assert fluke.locate_all([]) == []


def test_landmarks_are_looked_for_in_their_own_box_and_not_given_where_there_is_none(
    fluke: Locator, photos: list[RenderedPhoto]
) -> None:
    photo = photos[int(np.argmax([overlap(fluke.locate(p.pixels).box, p.box) for p in photos]))]
    marks = fluke.landmarks_in(photo.pixels, photo.box)
    assert marks is not None
    assert np.median(np.linalg.norm(marks - photo.landmarks, axis=1)) < 0.1 * photo.box.width
    beside = np.concatenate([photo.pixels, np.full_like(photo.pixels, 90)], axis=1)
    width = photo.pixels.shape[1]
    assert fluke.landmarks_in(beside, Box(width + 30, 10, 2 * width - 30, 200)) is None


def test_the_query_path_asks_the_cropper_without_torch() -> None:
    program = (
        "import sys, numpy as np; from reid.locate import Locator, SHIPPED;"
        "Locator(SHIPPED['fluke']).locate(np.zeros((50, 80, 3), np.uint8)); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "False"


def test_a_cropper_that_is_missing_damaged_or_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no cropper 'flank' \(there are: fluke, mine\)"):
        (tmp_path / "mine").mkdir()
        shutil.copy(SHIPPED["fluke"] / "cropper.json", tmp_path / "mine")
        locate.folder_of("flank", tmp_path)
    with pytest.raises(ModelError, match="its graph cannot be read"):
        Locator(tmp_path / "mine")
    own = shutil.copytree(SHIPPED["fluke"], tmp_path / "own")
    assert locate.folder_of("own", tmp_path) == own
    graph = own / "graph.bin"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ModelError, match="not the one that its card describes"):
        Locator(own)
    card = json.loads((own / "cropper.json").read_text())
    for changed, said in (({**card, "format": 2}, "another version"), ({"format": 1}, "incomplete")):
        (own / "cropper.json").write_text(json.dumps(changed))
        with pytest.raises(ModelError, match=said):
            Locator(own)
    with pytest.raises(ModelError, match="no cropper there"):
        Locator(tmp_path / "nowhere")


def test_machine_code_of_a_cropper_is_kept_in_the_store_and_read_by_the_next_process(
    tmp_path: Path, photos: list[RenderedPhoto], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(SHIPPED["fluke"], tmp_path / "own")

    def found() -> list[locate.Located]:
        both = locate.open_croppers("fluke", {"nyala": "own"}, tmp_path, confidence=0.5, whole=True)
        usual, other = both.usual, both.of("nyala")
        assert usual is not None and other is not None
        return [usual.locate(photos[0].pixels), other.locate(photos[0].pixels)]

    first = found()
    kept = sorted(str(path.relative_to(tmp_path).parent) for path in tmp_path.rglob("*.blob"))
    assert kept == [".compiled", "own/compiled"] and models.listed(tmp_path) == []

    def read(self: Locator) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(Locator, "_read_graph", read)
    assert [one.box for one in found()] == [one.box for one in first]


def test_the_shipped_directory_is_small_and_holds_no_pickle() -> None:
    files = {path.name: path.stat().st_size for path in SHIPPED["fluke"].iterdir()}
    assert set(files) == {"cropper.json", "graph.bin", "graph.xml"}
    assert sum(files.values()) < 3_000_000
    card = locate.read_card(SHIPPED["fluke"])
    assert card.source == "rendered flukes" and card.landmarks and card.licence == "Apache-2.0"


# --- real photos


def test_it_finds_real_flukes_though_it_has_seen_rendered_ones_only(fluke: Locator) -> None:
    folder = need_shared_data("flukes")
    with open(folder / "labels.csv", newline="", encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row["bbox"]][:120]
    ious = []
    for row in rows:
        pixels = np.ascontiguousarray(cv2.imread(str(folder / row["path"]))[:, :, ::-1])
        size = int(row["original_width"]), int(row["original_height"])
        x, y, w, h = json.loads(row["bbox"])
        ious.append(overlap(fluke.locate(pixels, size).box, Box(x, y, x + w, y + h)))
    assert np.median(ious) >= 0.80


# --- aligned crops


def test_an_alignment_brings_landmarks_to_their_places_and_refuses_what_cannot_be_an_animal() -> None:
    box = Box(50, 20, 250, 120)
    there = crop.CANONICAL * (200, 100) + (50, 20)
    np.testing.assert_allclose(crop.alignment(there, box), [[1 / 200, 0, -0.25], [0, 1 / 100, -0.2]], atol=1e-6)
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    turned = (there - (150, 70)) @ turn.T + (150, 70)
    matrix = crop.alignment(turned.astype(np.float32), box)
    assert matrix is not None
    np.testing.assert_allclose(turned @ matrix[:, :2].T + matrix[:, 2], crop.CANONICAL, atol=1e-5)
    line = np.array([(50, 50), (100, 50), (150, 50), (200, 50)], np.float32)
    lying = (there - (150, 70)) @ np.array([[0, -1], [1, 0]]) + (150, 70)
    for wrong in (line, there[[2, 1, 0, 3]], lying, (there - (150, 70)) * 0.2 + (150, 70)):
        assert crop.alignment(np.asarray(wrong, np.float32), box) is None


def test_an_aligned_crop_is_the_same_however_the_camera_was_held() -> None:
    rng = np.random.default_rng(3)
    scene = cv2.GaussianBlur(rng.integers(0, 256, (300, 400, 3), np.uint8), (0, 0), 6)
    scene = cv2.normalize(scene, None, 0, 255, cv2.NORM_MINMAX)
    box = Box(100, 100, 300, 200)
    marks = (crop.CANONICAL * (200, 100) + (100, 100)).astype(np.float32)
    tilt = cv2.getRotationMatrix2D((200, 150), 12, 0.9)
    tilted = cv2.warpAffine(scene, tilt, (400, 300), borderMode=cv2.BORDER_REPLICATE)
    moved = (marks @ tilt[:, :2].T + tilt[:, 2]).astype(np.float32)
    preprocessing = Preprocessing(64, 128, (127.5,) * 3, (127.5,) * 3, margin=0.1)
    low, high = moved.min(0), moved.max(0)
    aligned = crop.View(aligned=True)
    one = crop.cut(scene, box, preprocessing, view=aligned, landmarks=marks).astype(int)
    other = crop.cut(tilted, Box(*low, *high), preprocessing, view=aligned, landmarks=moved).astype(int)
    assert np.abs(one - other).mean() < 3 < 10 < np.abs(one - crop.cut(tilted, Box(*low, *high), preprocessing)).mean()
    plain = crop.cut(scene, box, preprocessing).astype(int)
    assert np.abs(one - plain).mean() < 3  # landmarks in their places: alignment changes nothing, the margin is kept
    np.testing.assert_array_equal(crop.cut(scene, box, preprocessing, view=aligned), plain)  # none are known
    half = cv2.resize(scene, (200, 150), interpolation=cv2.INTER_AREA)
    reduced = crop.cut(half, box, preprocessing, view=aligned, landmarks=marks, scale=(0.5, 0.5)).astype(int)
    assert np.abs(one - reduced).mean() < 3
    mirrored = crop.cut(scene, box, preprocessing, view=crop.View(aligned=True, mirror=True), landmarks=marks)
    np.testing.assert_array_equal(mirrored, one[:, ::-1])


# --- into a store


def croppers(fluke: Locator, **more: object) -> Croppers:
    return Croppers(**({"usual": fluke, "by_species": {}, "confidence": 0.5, "whole": True} | more))  # type: ignore[arg-type]


def test_a_photo_without_a_box_gets_the_croppers_and_a_tables_box_stays(
    fluke: Locator, photos: list[RenderedPhoto], tmp_path: Path
) -> None:
    photo = photos[0]
    path = saved(tmp_path / "fluke.png", photo.pixels)
    drawn = Box(5, 5, 60, 40)
    one = intake.prepare([seen(path), seen(path, box=drawn)], SMALL, croppers=croppers(fluke))
    assert one.boxes[0].origin == "detector" and overlap(one.boxes[0], photo.box) > 0.7
    assert one.boxes[1] == drawn
    assert one.qualities[0] is not None and 0.5 < one.qualities[0] <= 1 and one.qualities[1] is None
    assert intake.prepare([seen(path)], SMALL).boxes[0].origin == "whole"  # without a cropper


def test_without_a_confident_box_the_whole_photo_serves_and_says_so_or_nothing_does(
    fluke: Locator, tmp_path: Path
) -> None:
    path = sea(tmp_path / "sea.png")
    whole = intake.prepare([seen(path)], SMALL, croppers=croppers(fluke))
    assert whole.boxes == (crop.whole(400, 300),) and whole.boxes[0].confidence == 0.0 and whole.qualities == (None,)
    none = intake.prepare([seen(path)], SMALL, croppers=croppers(fluke, whole=False))
    assert none.boxes == () and len(none.crops) == 0 and [f.code for f in none.failures] == ["no_detection"]


def test_a_species_may_have_a_cropper_of_its_own_or_none(fluke: Locator, tmp_path: Path) -> None:
    both = locate.open_croppers("fluke", {"nyala": "none"}, tmp_path, confidence=0.5, whole=True)
    assert both.of("nyala") is None and both.of("Megaptera novaeangliae") is both.of(None) is both.usual
    nobody = locate.open_croppers("none", {}, tmp_path, confidence=0.5, whole=True)
    assert nobody.fingerprint == "" and both.fingerprint not in ("", croppers(fluke).fingerprint)
    stricter = croppers(fluke, confidence=0.9)
    assert stricter.fingerprint != croppers(fluke).fingerprint
    assert stricter.landmarks_fingerprint == croppers(fluke).landmarks_fingerprint


@pytest.fixture
def enrolled(tmp_path: Path, photos: list[RenderedPhoto]) -> Iterator[Store]:
    """Six whales enrolled without a cropper, the first with a table's box."""
    rows = []
    for i, photo in enumerate(photos[:6]):
        box = Box(photo.box.x0, photo.box.y0, photo.box.x1, photo.box.y1) if i == 0 else None
        rows.append(seen(saved(tmp_path / f"w{i}.png", photo.pixels), f"whale{i}", box=box))
    with fake_store(tmp_path / "store") as store:
        taken_in(store, rows)
        yield store


def switched_on(store: Store, when_none: str = "whole") -> Store:
    path = store.root / "reid.toml"
    text = path.read_text().replace('model = "none"', 'model = "fluke"')
    path.write_text(text.replace('when_none = "whole"', f'when_none = "{when_none}"'))
    store.close()
    return reopened(store.root)


def origins(store: Store) -> dict[str | None, tuple[str, bool]]:
    """Name → origin of its box, and whether the annotation has a vector in the index."""
    ids = store.catalogue.annotations_of()
    there = set(Gallery.open(store.index_folder).ids())
    infos = store.catalogue.annotations(ids)
    return {info.identity: (info.box.origin, str(info.id) in there) for info in infos.values()}


def test_another_cropper_is_noticed_by_the_nightly_run_and_names_stay(
    enrolled: Store, photos: list[RenderedPhoto]
) -> None:
    before = origins(enrolled)
    assert before == {"whale0": ("table", True)} | {f"whale{i}": ("whole", True) for i in range(1, 6)}
    with switched_on(enrolled) as store:
        report = reindex(store, who="tester")
        assert report.relocated == report.embedded == 5 and report.rebuilt == "another cropper"
        assert origins(store) == {"whale0": ("table", True)} | {f"whale{i}": ("detector", True) for i in range(1, 6)}
        infos = store.catalogue.annotations(store.catalogue.annotations_of())
        ious = [overlap(info.box, photos[int(str(info.identity)[5:])].box) for info in infos.values()]
        assert len(ious) == 6 and np.median(ious) > 0.8
        assert all(info.quality is not None for info in infos.values() if info.box.origin == "detector")
        again = reindex(store, who="tester")
        assert again.relocated == again.embedded == 0 and again.rebuilt == ""


def test_a_query_is_cropped_like_the_gallery_and_says_when_there_is_no_animal(
    enrolled: Store, photos: list[RenderedPhoto], tmp_path: Path
) -> None:
    with switched_on(enrolled, "no_detection") as store:
        reindex(store, who="tester")
        asked = [query_of([tmp_path / "w3.png"], species=""), query_of([sea(tmp_path / "sea.png")])]
        known, empty = Identifier.open(store).answers(asked)
        assert known.labels[0].label == "whale3" and known.boxes[0].origin == "detector"
        assert empty.status == "no_detection" and empty.labels == () and "no animal was found" in empty.message


def test_an_empty_photo_is_enrolled_bare_and_stays_so(tmp_path: Path) -> None:
    with fake_store(tmp_path / "store") as plain, switched_on(plain, "no_detection") as store:
        row = seen(sea(tmp_path / "sea.png"), "nobody")
        for _ in range(2):
            report = taken_in(store, [row])
            assert [failure.code for failure in report.failures] == ["no_detection"]
            assert store.catalogue.counts().bare == 1 and store.catalogue.counts().annotations == 0


def test_vectors_of_aligned_crops_are_another_models_and_take_a_cropper(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes a cropper"):
        fake_store(tmp_path / "a", settings='views = "auto" → views = "aligned"')
    settings = 'views = "auto" → views = "aligned"\nmodel = "none" → model = "fluke"'
    with fake_store(tmp_path / "b", settings="\n".join(reversed(settings.splitlines()))) as store:
        assert store.fingerprint == f"{store.embedder.card.fingerprint}+aligned:{store.croppers.landmarks_fingerprint}"
        report = taken_in(store, [seen(paint(tmp_path / "1.png", 1), "a")])
        assert report.failures == [] and store.catalogue.counts().annotations == 1


def test_a_new_store_refuses_a_cropper_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no cropper 'flank'"):
        Store.create(tmp_path / "store", cropper="flank")
    assert not (tmp_path / "store" / "reid.toml").exists()
    with Store.create(tmp_path / "store", cropper="fluke") as store:
        assert store.config.crop.model == "fluke" and store.config.embedder.model == "auto"


def test_the_default_model_is_chosen_by_the_boxes_that_the_cropper_finds(
    photos: list[RenderedPhoto], tmp_path: Path
) -> None:
    square = [np.pad(p.pixels, ((0, p.pixels.shape[1] - p.pixels.shape[0]), (0, 0), (0, 0)), "edge") for p in photos]
    rows = [seen(saved(tmp_path / f"{i}.png", pixels)) for i, pixels in enumerate(square)]
    for cropper, model in (("none", "lite0"), ("fluke", "lite0-wide")):
        with Store.create(tmp_path / cropper, cropper=cropper) as store:
            assert by_shape(with_boxes(store, rows)) == model
