"""The renderer of flukes: the same numbers give the same bytes, and what it says of a photo is true of its pixels."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import reid.synth as synth
from reid.records import Box
from reid.synth import pose, skin
from reid.synth.exif import with_exif
from reid.synth.fluke import Mark, Nick
from reid.synth.population import FIRST_YEAR, encounter_of, encounters
from reid.synth.render import tight_box

PLAIN = synth.View(defocus=0.0, noise=0.0, splash=0.0, streaming=0.0, spray=0.0, horizon=-1.0, waterline=0.7)


def digest(photo: synth.RenderedPhoto) -> str:
    return hashlib.sha256(photo.pixels.tobytes() + photo.mask.tobytes() + photo.landmarks.tobytes()).hexdigest()


@lru_cache(maxsize=1)
def sample() -> tuple[synth.RenderedPhoto, ...]:
    """Twenty whales under random views; made once."""
    views = [synth.random_view(np.random.default_rng([6, i])) for i in range(20)]
    return tuple(synth.render(synth.fluke(6, i), view) for i, view in enumerate(views))


def edge_distance(points: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Distance of each point to the nearest pixel of the mask, by looking at all of them."""
    rows, columns = np.nonzero(mask)
    return np.array([np.hypot(columns - x, rows - y).min() for x, y in points])


def test_public_names_are_sorted_and_importable() -> None:
    assert synth.__all__ == sorted(synth.__all__)
    assert all(hasattr(synth, name) for name in synth.__all__)


def test_same_numbers_give_same_bytes_in_this_process_and_in_another() -> None:
    code = (
        "import hashlib, reid.synth as s;"
        "[print(hashlib.sha256(p.pixels.tobytes() + p.mask.tobytes() + p.landmarks.tobytes()).hexdigest())"
        " for p in s.catalogue(3, 5, seed=9)]"
    )
    here = [digest(photo) for photo in synth.catalogue(3, 5, seed=9)]
    again = [digest(photo) for photo in synth.catalogue(3, 5, seed=9)]
    there = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert here == again == there
    assert len(set(here)) == 5


def test_another_seed_gives_other_whales() -> None:
    assert synth.fluke(1, 0) != synth.fluke(2, 0)
    assert synth.fluke(1, 0) != synth.fluke(1, 1)
    assert synth.fluke(1, 0) == synth.fluke(1, 0)
    assert hash(synth.fluke(1, 0)) == hash(synth.fluke(1, 0))


def test_negative_seed_or_index_is_refused() -> None:
    with pytest.raises(ValueError, match="index -1"):
        synth.fluke(0, -1)


def test_a_photo_does_not_depend_on_how_many_are_asked_for() -> None:
    few = {(p.identity, p.encounter, p.taken_at): digest(p) for p in synth.catalogue(2, 6, seed=3)}
    many = {(p.identity, p.encounter, p.taken_at): digest(p) for p in synth.catalogue(4, 16, seed=3)}
    shared = few.keys() & many.keys()
    assert len(shared) >= 4
    assert {key: few[key] for key in shared} == {key: many[key] for key in shared}


def test_catalogue_is_lazy() -> None:
    first = next(synth.catalogue(1_000, seed=4))
    assert first.identity == "fluke_0000"


def test_box_is_the_tight_bound_of_the_mask() -> None:
    for photo in sample():
        rows, columns = np.nonzero(photo.mask)
        expected = Box(columns.min(), rows.min(), columns.max() + 1.0, rows.max() + 1.0)
        assert photo.box == expected
        assert photo.pixels.shape == (*photo.mask.shape, 3)
        assert photo.pixels.dtype == np.uint8


def test_an_empty_mask_has_the_whole_picture_as_box_without_confidence() -> None:
    assert tight_box(np.zeros((4, 6), bool)) == Box(0.0, 0.0, 6.0, 4.0, confidence=0.0, origin="whole")


def test_landmarks_lie_on_the_fluke_or_beside_it() -> None:
    for index in range(12):
        photo = synth.render(synth.fluke(2, index), replace(PLAIN, fill=0.85))
        near = edge_distance(photo.landmarks, photo.mask)
        assert near.max() < 0.02 * photo.pixels.shape[1], (index, near)
        left, notch, right, base = photo.landmarks
        assert left[0] < notch[0] < right[0]
        assert notch[1] < base[1]


def test_tips_are_the_ends_of_the_mask_when_the_fluke_is_seen_square() -> None:
    photo = synth.render(synth.fluke(2, 3), replace(PLAIN, yaw=0.0, bend_left=0.0, bend_right=0.0, fill=0.8))
    assert abs(photo.landmarks[0, 0] - photo.box.x0) < 4
    assert abs(photo.landmarks[2, 0] - photo.box.x1) < 4


def test_landmarks_of_random_views_stay_near_their_mask_unless_cut_off_or_drowned() -> None:
    for photo in sample():
        height, width = photo.mask.shape
        seen = (photo.landmarks >= 4).all(axis=1) & (photo.landmarks < (width - 4, height - 4)).all(axis=1)
        near = edge_distance(photo.landmarks[seen], photo.mask)
        drowned = photo.landmarks[seen][:, 1] > photo.box.y1 - 0.3 * photo.box.height
        assert (near[~drowned] < 0.03 * width).all()


@pytest.mark.parametrize("size", [(640, 400), (320, 320), (200, 300), (900, 180)])
def test_size_is_kept_and_the_fluke_fits(size: tuple[int, int]) -> None:
    photo = synth.render(synth.fluke(0, 1), replace(PLAIN, fill=0.9), size)
    assert photo.pixels.shape == (size[1], size[0], 3)
    assert photo.box.x0 > 0 and photo.box.x1 < size[0]
    assert photo.box.width > 0.3 * size[0] or photo.box.height > 0.6 * size[1]


def test_default_size_has_640_pixels_on_its_long_side() -> None:
    assert {max(photo.mask.shape) for photo in sample()} == {640}


def test_grey_photos_are_grey_and_others_are_not() -> None:
    grey = synth.render(synth.fluke(0, 0), replace(PLAIN, grey=True)).pixels
    assert (grey == grey[..., :1]).all()
    coloured = synth.render(synth.fluke(0, 0), PLAIN).pixels.astype(int)
    assert np.abs(coloured[..., 0] - coloured[..., 2]).mean() > 5


def test_two_photos_in_five_are_grey() -> None:
    views = [synth.random_view(np.random.default_rng([8, i])) for i in range(1_000)]
    assert 0.33 < np.mean([view.grey for view in views]) < 0.47


def test_water_hides_what_is_below_it() -> None:
    """The less of it is out, the less of its height is left below the notch; the base follows the surface."""

    def left(waterline: float) -> float:
        view = replace(PLAIN, waterline=waterline, fill=0.5, bend_left=0.0, bend_right=0.0)
        photo = synth.render(synth.fluke(1, 2), view, (640, 480))
        notch, base = photo.landmarks[1, 1], photo.landmarks[3, 1]
        assert base <= photo.box.y1 + 1
        return float((photo.box.y1 - notch) / photo.box.width)

    heights = [left(waterline) for waterline in (0.2, 0.4, 0.6, 0.85)]
    assert heights == sorted(heights)
    assert heights[0] < 0.5 * heights[-1]


def test_turning_the_finished_picture_turns_truth_with_it() -> None:
    photo = synth.render(synth.fluke(1, 4), replace(PLAIN, turned=0.25))
    assert (photo.pixels[0, 0] > 240).all()
    assert edge_distance(photo.landmarks, photo.mask).max() < 14


def test_inverse_map_undoes_the_placement() -> None:
    for seed in range(20):
        view = synth.random_view(np.random.default_rng([77, seed]))
        placement = pose.Placement(view, 300.0, 320.0, 200.0)
        x, y = pose.unplace((420, 640), placement)
        rows, columns = np.mgrid[20:400:40, 20:620:40]
        flat = np.stack([x[rows, columns], y[rows, columns]], -1).astype(np.float64)
        on_skin = (np.abs(flat[..., 0]) < 1.02) & (flat[..., 1] > -0.25) & (flat[..., 1] < 0.8)
        there = pose.place(flat, placement)
        error = np.hypot(there[..., 0] - columns, there[..., 1] - rows)[on_skin]
        assert on_skin.sum() > 10
        assert np.median(error) < 0.2 and error.max() < 4.0, (seed, error.max())


def test_a_flat_fluke_seen_square_is_only_scaled_and_moved() -> None:
    view = replace(PLAIN, yaw=0.0, pitch=0.0, roll=0.0, bend_left=0.0, bend_right=0.0, curl=0.0, distance=1e6)
    points = np.array([(-1.0, 0.0), (0.3, -0.1), (0.0, 0.5)])
    seen = pose.place(points, pose.Placement(view, 100.0, 7.0, 9.0))
    expected = np.array([(100 * x + 7, 100 * y + 9) for x, y in points])
    assert np.abs(seen - expected).max() < 1e-3


def canonical(individual: synth.Fluke) -> npt.NDArray[np.float32]:
    """Whiteness under the cover at a tenth of the size, blurred against chance offsets: a plain descriptor."""
    flat = skin.skin(individual)
    white = cv2.resize(flat[..., 0] * (flat[..., 1] > 0), (88, 52), interpolation=cv2.INTER_AREA).astype(np.float32)
    return (white - white.mean()) / white.std()


def test_an_individual_is_more_like_its_older_self_than_like_any_other() -> None:
    young = [canonical(synth.fluke(3, i)) for i in range(25)]
    old = [canonical(synth.aged(synth.fluke(3, i), 12)) for i in range(25)]
    alike = np.array([[float((a * b).mean()) for b in old] for a in young])
    assert (alike.argmax(axis=1) == np.arange(25)).all()
    assert np.diag(alike).min() > 0.9


def test_photos_of_an_individual_are_more_alike_than_photos_of_different_ones() -> None:
    """Unwarped by their landmarks, in unlike sea and light: the pattern, not the scene, says who it is."""

    def straightened(photo: synth.RenderedPhoto) -> npt.NDArray[np.float32]:
        target = np.array([(8, 20), (80, 26), (152, 20), (80, 84)], np.float32)
        warp = cv2.getPerspectiveTransform(photo.landmarks, target)
        flat = cv2.warpPerspective(cv2.cvtColor(photo.pixels, cv2.COLOR_RGB2GRAY), warp, (160, 80))
        inside = cv2.warpPerspective(photo.mask.astype(np.uint8), warp, (160, 80)) > 0
        values = flat.astype(np.float32)
        values = np.where(inside, (values - values[inside].mean()) / (values[inside].std() + 1), 0.0)
        return np.asarray(cv2.GaussianBlur(values, (0, 0), 1.5), np.float32)

    shots = []
    for i in range(16):
        for k in range(2):
            conditions = synth.random_conditions(np.random.default_rng([21, i, k]))
            view = replace(
                PLAIN, conditions=conditions, seed=10 * i + k, yaw=0.15 * k, pitch=0.3 + 0.2 * k, roll=0.1 * k
            )
            shots.append(straightened(synth.render(synth.fluke(14, i), view)))
    first, second = np.array(shots[0::2]), np.array(shots[1::2])
    alike = np.einsum("aij,bij->ab", first, second) / np.sqrt(
        np.einsum("aij,aij->a", first, first)[:, None] * np.einsum("bij,bij->b", second, second)[None, :]
    )
    assert (alike.argmax(axis=1) == np.arange(16)).mean() >= 0.8
    assert np.diag(alike).mean() > alike[~np.eye(16, dtype=bool)].mean() + 0.3


def test_ageing_adds_dated_marks_and_keeps_the_old_ones() -> None:
    young = synth.fluke(0, 7)
    old = synth.aged(young, 15)
    assert old.marks[: len(young.marks)] == young.marks
    assert len(old.marks) > len(young.marks)
    assert all(isinstance(mark, Mark) and 1 <= mark.since <= 15 for mark in old.marks[len(young.marks) :])
    assert all(isinstance(nick, Nick) for nick in old.nicks)
    assert synth.aged(synth.aged(young, 6), 9) == old
    assert synth.aged(young, 0) == young
    assert (skin.skin(young) != skin.skin(old)).any()
    with pytest.raises(ValueError, match="-1 years"):
        synth.aged(young, -1)


def test_photo_counts_have_the_long_tail_of_the_real_set() -> None:
    counts = np.array(synth.photo_counts(5_004, seed=1))
    assert abs((counts == 1).mean() - 2_073 / 5_004) < 0.03
    assert np.median(counts) == 2
    assert abs((counts >= 10).mean() - 273 / 5_004) < 0.015
    assert 30 <= counts.max() <= 73
    assert abs(counts.mean() - 15_697 / 5_004) < 0.25


def test_a_count_does_not_depend_on_the_other_identities() -> None:
    assert synth.photo_counts(200, seed=2)[:50] == synth.photo_counts(50, seed=2)


@pytest.mark.parametrize(("n_identities", "n_photos"), [(10, 10), (10, 13), (50, 400), (1, 9), (100, 250)])
def test_counts_add_up_to_the_photos_asked_for(n_identities: int, n_photos: int) -> None:
    counts = synth.photo_counts(n_identities, n_photos, seed=3)
    assert (len(counts), sum(counts), min(counts) >= 1) == (n_identities, n_photos, True)


def test_fewer_photos_than_whales_are_refused() -> None:
    with pytest.raises(ValueError, match="3 photos cannot show 5"):
        synth.photo_counts(5, 3)


def test_encounters_hold_one_to_three_photos_numbered_without_gaps() -> None:
    following = 0
    sizes = Counter[int]()
    for met, _ in zip(encounters(0, 3), range(60), strict=False):
        assert met.first == following
        following = met.first + met.photos
        sizes[met.photos] += 1
        for number in range(met.first, following):
            assert encounter_of(synth.Shot(0, 3, number)) == met
    assert set(sizes) == {1, 2, 3}


def test_photos_of_an_encounter_share_light_and_differ_by_seconds() -> None:
    met = next(e for e in encounters(0, 1) if e.photos == 3)
    views = [synth.staged(synth.Shot(0, 1, met.first + k))[1] for k in range(3)]
    assert {view.conditions for view in views} == {views[0].conditions}
    assert {view.encounter for view in views} == {met.name}
    times = [view.taken_at for view in views]
    assert times == sorted(times) and 0 < (times[2] - times[0]).total_seconds() < 60
    assert len({view.seed for view in views}) == 3


def test_a_whale_is_as_old_as_the_year_of_its_photo() -> None:
    for number in range(12):
        individual, view = synth.staged(synth.Shot(0, 5, number))
        assert individual.age == view.taken_at.year - FIRST_YEAR


def test_queries_are_unseen_sightings_of_known_whales_and_whales_not_enrolled() -> None:
    counts = synth.photo_counts(20, seed=1)
    gallery = {encounter_of(shot).name for shot in synth.shots(20, seed=1)}
    asked = list(synth.queries(counts, 50, 0.3, seed=1))
    assert len(set(asked)) == 50
    assert {encounter_of(shot).name for shot in asked}.isdisjoint(gallery)
    assert sum(shot.identity >= 20 for shot in asked) == 15


def test_queries_without_a_gallery_need_new_whales_only() -> None:
    assert len(list(synth.queries((), 3, 1.0))) == 3
    with pytest.raises(ValueError, match="new_share"):
        list(synth.queries((), 3, 0.5))


def test_dataset_on_disk_says_what_it_shows(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    labels = synth.write_dataset(
        tmp_path, 4, 9, seed=2, n_queries=6, progress=lambda done, total: seen.append((done, total))
    )
    assert labels == tmp_path / "labels.csv"
    assert seen[-1] == (15, 15)
    with labels.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    with (tmp_path / "queries.csv").open(newline="") as lines:
        asked = list(csv.DictReader(lines))
    assert {row["identity"] for row in rows} == {f"fluke_{i:04d}" for i in range(4)}
    assert (len(rows), len(asked)) == (9, 6)
    assert {row["encounter"] for row in rows}.isdisjoint(row["encounter"] for row in asked)
    for row, photo in zip(rows, synth.catalogue(4, 9, seed=2), strict=True):
        read = cv2.cvtColor(cv2.imread(str(tmp_path / row["path"])), cv2.COLOR_BGR2RGB)
        assert (read == photo.pixels).all()
        x, y, w, h = json.loads(row["bbox"])
        assert Box(x, y, x + w, y + h) == photo.box
        assert (row["identity"], row["encounter"]) == (photo.identity, photo.encounter)
        assert datetime.strptime(row["date"], "%Y-%m-%d %H:%M:%S") == photo.taken_at
        assert np.allclose(np.reshape(json.loads(row["keypoints"]), (4, 2)), photo.landmarks, atol=0.06)


def test_dataset_is_the_same_whoever_writes_it(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        synth.write_dataset(tmp_path / name, 3, 5, seed=6, workers=workers)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in ("one", "two"))
    assert one == two
    assert len(one) == 6


def test_photos_carry_the_date_and_place_of_their_sighting(tmp_path: Path) -> None:
    synth.write_dataset(tmp_path, 6, 12, seed=4)
    stamped = 0
    with (tmp_path / "labels.csv").open(newline="") as lines:
        for row in csv.DictReader(lines):
            with Image.open(tmp_path / row["path"]) as image:
                exif = image.getexif()
            if not exif:
                continue
            stamped += 1
            assert exif.get_ifd(0x8769)[0x9003] == row["date"].replace("-", ":")
            gps = exif.get_ifd(0x8825)
            latitude = sum(float(v) / 60**i for i, v in enumerate(gps[2])) * (1 if gps[1] == "N" else -1)
            longitude = sum(float(v) / 60**i for i, v in enumerate(gps[4])) * (1 if gps[3] == "E" else -1)
            assert latitude == pytest.approx(float(row["latitude"]), abs=1e-6)
            assert longitude == pytest.approx(float(row["longitude"]), abs=1e-6)
    assert stamped >= 6


def test_exif_is_refused_on_what_is_not_a_jpeg() -> None:
    with pytest.raises(ValueError, match="not a JPEG"):
        with_exif(b"\x89PNG", datetime(2010, 1, 1), 0.0, 0.0)
