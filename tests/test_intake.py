"""One photo's way from bytes to crops."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_stores import ColourEmbedder, paint, pattern, seen

from reid import crop, images, intake
from reid.errors import PhotoError
from reid.intake import Prepared
from reid.keypoints import KeypointConfig
from reid.models import Preprocessing
from reid.records import Box, Failure
from reid.verify import verify

SMALL = ColourEmbedder().card.preprocessing


def test_sightings_are_grouped_by_file_in_order_of_first_mention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b, again = seen(Path("a.jpg")), seen(Path("b.jpg")), seen(tmp_path / "x" / ".." / "a.jpg")
    assert intake.by_photo([a, b, again]) == [(a, again), (b,)]
    assert intake.by_photo([]) == []


def test_a_photo_gives_its_facts_its_boxes_and_a_crop_for_each_view(tmp_path: Path) -> None:
    path = paint(tmp_path / "p.png", 1, beside=2)
    rows = [seen(path, box=Box(0, 0, 96, 64)), seen(path, box=Box(96, 0, 192, 64)), seen(path)]
    one = intake.prepare(rows, SMALL, (crop.PLAIN, crop.View(mirror=True)))
    assert one.crops.shape == (6, 32, 48, 3) and one.crops.dtype == np.uint8
    assert [(b.x0, b.x1, b.origin) for b in one.boxes] == [(0, 96, "table"), (96, 192, "table"), (0, 192, "whole")]
    assert one.sightings == tuple(rows) and one.failures == ()
    assert one.facts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (one.facts.width, one.facts.height, one.facts.path) == (192, 64, path)
    assert one.mtime_ns == path.stat().st_mtime_ns and one.facts.phash is not None
    np.testing.assert_array_equal(one.crops[1], one.crops[0][:, ::-1])
    expected = cv2.resize(pattern(1), (48, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(one.crops[0].astype(int) - expected).mean() < 3
    assert np.abs(one.crops[2].astype(int) - expected).mean() > 20


def test_what_the_table_says_of_time_and_place_goes_before_what_the_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = paint(tmp_path / "p.png", 1)
    load, early, late = images.load, datetime(2001, 1, 1), datetime(2020, 2, 2)
    facts = {"taken_at": early, "latitude": 1.0, "longitude": 2.0}

    def told(file: Path) -> images.LoadedPhoto:
        loaded = load(file)
        return replace(loaded, facts=replace(loaded.facts, **facts))

    monkeypatch.setattr(images, "load", told)
    by_file = intake.prepare([seen(path)], SMALL).facts
    assert (by_file.taken_at, by_file.latitude, by_file.longitude) == (early, 1.0, 2.0)
    by_table = intake.prepare([seen(path, taken_at=late, latitude=0.0, longitude=0.0)], SMALL).facts
    assert (by_table.taken_at, by_table.latitude, by_table.longitude) == (late, 0.0, 0.0)


def test_a_box_that_does_not_fit_is_a_failure_and_the_others_stay(tmp_path: Path) -> None:
    path = paint(tmp_path / "p.png", 1)
    out, fits = seen(path, "out", box=Box(300, 0, 400, 64)), seen(path, "in", box=Box(10, 10, 200, 60))
    one = intake.prepare([out, fits], SMALL)
    assert one.sightings == (fits,) and one.boxes == (Box(10, 10, 96, 60),) and len(one.crops) == 1
    assert [(f.source, f.code) for f in one.failures] == [("row of p.png", "bad_table")]
    none = intake.prepare([out], SMALL)
    assert none.boxes == () and none.crops.shape == (0, 32, 48, 3)


def test_a_box_drawn_on_a_larger_version_is_scaled(tmp_path: Path) -> None:
    path = paint(tmp_path / "p.png", 1)
    drawn = seen(path, box=Box(96, 64, 192, 128), declared_size=(192, 128))
    assert intake.prepare([drawn], SMALL).boxes == (Box(48, 32, 96, 64),)


def test_a_photo_that_cannot_be_used_raises_and_among_many_is_a_failure_in_its_place(tmp_path: Path) -> None:
    good = [paint(tmp_path / f"{n}.png", n) for n in range(60)]
    (tmp_path / "bad.png").write_bytes(b"no photo")
    with pytest.raises(PhotoError):
        intake.prepare([seen(tmp_path / "bad.png")], SMALL)
    paths = [*good[:30], tmp_path / "bad.png", tmp_path / "absent.png", *good[30:]]
    found = list(intake.prepare_all([(seen(path),) for path in paths], SMALL, (crop.PLAIN,), workers=3))
    assert [one.facts.path if isinstance(one, Prepared) else one.code for one in found] == [
        *good[:30],
        "bad_photo",
        "bad_photo",
        *good[30:],
    ]
    assert all("bad.png" in f.source or "absent.png" in f.source for f in found if isinstance(f, Failure))


def test_no_photos_give_nothing() -> None:
    assert list(intake.prepare_all([], SMALL, (crop.PLAIN,))) == []


def test_only_a_few_photos_are_read_ahead_and_none_after_the_taker_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = paint(tmp_path / "p.png", 1)
    load, lock, times = images.load, threading.Lock(), []

    def counted(file: Path) -> images.LoadedPhoto:
        with lock:
            times.append(1)
        return load(file)

    monkeypatch.setattr(images, "load", counted)
    before = threading.active_count()
    taken = intake.prepare_all([(seen(path),)] * 500, SMALL, (crop.PLAIN,), workers=2)
    for _ in range(10):
        next(taken)
    assert len(times) <= 10 + intake.AHEAD
    taken.close()
    assert threading.active_count() == before
    assert len(times) <= 10 + intake.AHEAD


@pytest.mark.parametrize("size", [(1000, 700), (2100, 1500), (3000, 1100)])
def test_a_large_photo_is_described_alike_beside_any_embedder(tmp_path: Path, size: tuple[int, int]) -> None:
    """A gallery is described again beside another network, or none; queries by then still have to find it."""
    texture = np.random.default_rng(0).integers(0, 256, (75, 75, 3), np.uint8)
    path = tmp_path / "large.jpg"
    assert cv2.imwrite(str(path), cv2.resize(texture, size, interpolation=cv2.INTER_CUBIC))
    shapes = [(8, 8), (96, 192), (384, 384), (1024, 1024)]
    one, *others = (
        intake.prepare(
            [seen(path)], Preprocessing(*shape, (0.0,) * 3, (1.0,) * 3), (), KeypointConfig(max_keypoints=400)
        ).local[0]
        for shape in shapes
    )
    for other in others:
        assert (other.width, other.height) == (one.width, one.height)
        assert verify(one, other).inliers > 0.75 * len(one)


def test_what_is_described_is_decoded_no_finer_than_that_takes() -> None:
    config = KeypointConfig(long_side=300)  # 360 pixels at least
    for width, scale in ((719, 1.0), (720, 0.5), (2880, 0.125), (9000, 0.125)):
        photo = images.load_bytes(cv2.imencode(".jpg", np.zeros((40, width, 3), np.uint8))[1].tobytes())
        assert intake.described_scale(photo, config, None) == scale
        assert intake.described_scale(photo, config, Box(0, 0, 40, 40)) == 1.0
        assert intake.described_scale(photo, KeypointConfig(long_side=0), None) == 1.0
    plain = images.load_bytes(cv2.imencode(".png", np.zeros((40, 900, 3), np.uint8))[1].tobytes())
    assert intake.described_scale(plain, config, None) == 1.0
