"""Boxes become crops: where the pixels come from, whatever the decode scale, the margin or the edge of the photo."""

import numpy as np
import pytest

from reid.crop import PLAIN, View, cut, cut_views, views_named, whole
from reid.models import Preprocessing
from reid.records import Box

GREY = (127.5, 127.5, 127.5)


def preprocessing(height: int = 32, width: int = 64, **more: object) -> Preprocessing:
    return Preprocessing(height, width, GREY, GREY, **more)  # type: ignore[arg-type]


def gradient(height: int, width: int) -> np.ndarray:
    """Red grows with x, green with y: a crop's colours tell where it came from."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 / (width - 1), y * 255 / (height - 1), np.zeros_like(x)], -1).astype(np.uint8)


def test_a_crop_of_the_models_size_is_the_boxs_own_pixels() -> None:
    photo = gradient(200, 300)
    np.testing.assert_array_equal(cut(photo, Box(10, 20, 74, 52), preprocessing()), photo[20:52, 10:74])


def test_a_reduced_decode_gives_the_same_crop_within_rounding() -> None:
    photo, box = gradient(800, 1200), Box(200, 80, 1000, 480)
    half = photo.reshape(400, 2, 600, 2, 3).mean((1, 3)).astype(np.uint8)
    full = cut(photo, box, preprocessing()).astype(int)
    reduced = cut(half, box, preprocessing(), scale=(0.5, 0.5)).astype(int)
    assert np.abs(full - reduced).max() <= 2


def test_the_mirrored_view_is_the_crop_reversed() -> None:
    photo, box = gradient(90, 120), Box(5, 5, 100, 80)
    plain, mirrored = cut_views(photo, box, preprocessing(), (View(), View(mirror=True)))
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])


def test_the_margin_widens_each_side_by_its_share_and_stops_at_the_photos_edge() -> None:
    photo = gradient(100, 200)
    wide = cut(photo, Box(50, 40, 114, 72), preprocessing(48, 96, margin=0.25))
    np.testing.assert_array_equal(wide, photo[32:80, 34:130])
    corner = cut(photo, Box(0, 0, 64, 32), preprocessing(40, 80, margin=0.25))
    np.testing.assert_array_equal(corner, photo[0:40, 0:80])


def test_pad_keeps_the_shape_and_fills_with_the_mean() -> None:
    photo = np.full((50, 50, 3), 255, np.uint8)
    padded = cut(photo, whole(50, 50), preprocessing(32, 64, shape="pad"))
    assert padded.shape == (32, 64, 3)
    assert (padded[:, 16:48] == 255).all()
    assert (padded[:, :16] == 128).all() and (padded[:, 48:] == 128).all()


@pytest.mark.parametrize("box", [Box(10, 10, 10.2, 10.1), Box(199.9, 99.9, 200, 100), Box(-50, -50, 400, 400)])
def test_no_box_gives_an_empty_crop(box: Box) -> None:
    assert cut(gradient(100, 200), box, preprocessing()).shape == (32, 64, 3)


def test_the_whole_photos_box_says_so() -> None:
    assert whole(640, 480) == Box(0.0, 0.0, 640.0, 480.0, confidence=0.0, origin="whole")


def test_named_views_are_those_that_settings_promise() -> None:
    assert views_named("one", mirror=False) == (PLAIN,)
    assert [view.widen for view in views_named("scales", mirror=False)] == [0.0, 0.1, 0.2]
    moved = {(view.shift_x, view.shift_y) for view in views_named("boxes", mirror=False)}
    assert moved == {(0.0, 0.0), (0.05, 0.0), (-0.05, 0.0), (0.0, 0.05), (0.0, -0.05)}
    around = views_named("around", mirror=False)
    assert around[0] == PLAIN and len(set(around)) == 5 and {view.shift_x for view in around} == {0.0}
    assert {np.sign(view.widen) for view in around} == {np.sign(view.shift_y) for view in around} == {-1.0, 0.0, 1.0}
    both = views_named("scales", mirror=True)
    assert [view.mirror for view in both] == [False] * 3 + [True] * 3
    assert {view.widen for view in both if view.mirror} == {0.0, 0.1, 0.2}
