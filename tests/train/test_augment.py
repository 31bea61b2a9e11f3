"""Kept pictures and their views: where pixels come from, and what each knob does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from reid import crop, images  # noqa: E402
from reid.errors import TrainError  # noqa: E402
from reid.models import Preprocessing  # noqa: E402
from reid.records import Box  # noqa: E402
from reid.train import augment, pictures  # noqa: E402
from reid.train.features import Source  # noqa: E402
from reid.train.pictures import Pictures  # noqa: E402
from reid.train.recipe import AugmentConfig  # noqa: E402

SEEN = Preprocessing(48, 64, (0.0,) * 3, (1.0,) * 3, margin=0.1)
SIZE = 48, 64


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth colours, so that a sample between pixels is near them."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(coarse, (400, 300), interpolation=cv2.INTER_CUBIC))
    (folder / "broken.png").write_bytes(b"no photo")
    return folder


def sources(photos: Path) -> list[Source]:
    """Inside the photo; at its edge; without a box; not a photo; drawn on a photo of twice the size."""
    return [
        Source(photos / "0.png", Box(100, 80, 260, 200)),
        Source(photos / "1.png", Box(2, 5, 170, 120)),
        Source(photos / "2.png"),
        Source(photos / "broken.png"),
        Source(photos / "0.png", Box(200, 160, 520, 400), 800, 600),
    ]


@pytest.fixture(scope="module")
def kept(photos: Path) -> Pictures:
    return pictures.load(sources(photos), SEEN)


def test_a_plain_view_is_the_crop_that_production_cuts(photos: Path, kept: Pictures) -> None:
    assert kept.rows.tolist() == [0, 1, 2, 4] and [f.code for f in kept.failures] == ["bad_photo"]
    views = augment.plain(kept, np.arange(4), SIZE).permute(0, 2, 3, 1).numpy()
    for view, row in zip(views, kept.rows, strict=True):
        source = sources(photos)[row]
        pixels = images.read(images.load(source.path)).pixels
        drawn = (source.drawn_width or 400, source.drawn_height or 300)
        box = source.box or crop.whole(400, 300)
        expected = crop.cut(pixels, box, SEEN, scale=(400 / drawn[0], 300 / drawn[1])).astype(np.float32)
        assert np.abs(view - expected).mean() < 3.0  # of 255: two resamplings in place of one
    np.testing.assert_allclose(views[0], views[3], atol=1e-3)


def test_a_mirrored_view_is_the_plain_one_turned_over(kept: Pictures) -> None:
    rows = np.arange(4)
    plain, turned = (augment.plain(kept, rows, SIZE, np.full(4, way)) for way in (False, True))
    np.testing.assert_allclose(turned.flip(3).numpy(), plain.numpy(), atol=1e-2)


def colour_at(pixels: NDArray[np.uint8], x: float, y: float) -> NDArray[np.float64]:
    """Between four pixels, by hand; `x` and `y` from 0 to 1 over the picture."""
    height, width = pixels.shape[:2]
    u, v = np.clip(x * width - 0.5, 0, width - 1), np.clip(y * height - 0.5, 0, height - 1)
    x0, y0 = int(u), int(v)
    x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
    a, b = u - x0, v - y0
    p = pixels.astype(np.float64)
    found: NDArray[np.float64] = (
        p[y0, x0] * (1 - a) * (1 - b) + p[y0, x1] * a * (1 - b) + p[y1, x0] * (1 - a) * b + p[y1, x1] * a * b
    )
    return found


def test_a_warped_view_samples_where_its_corners_say(kept: Pictures) -> None:
    corners = augment.corners(
        2, AugmentConfig(rotate=20, shear=10, zoom=0.2, shift=0.1, perspective=0.05), np.random.default_rng(3)
    )
    views = augment.warped(kept, np.array([0, 2]), SIZE, corners, np.zeros(2, np.bool_))
    for view, row, at in zip(views, (0, 2), corners, strict=True):
        source = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32)
        matrix = cv2.getPerspectiveTransform(source, at.astype(np.float32))
        window = kept.windows[row]
        for i, j in ((0, 0), (10, 50), (24, 32), (47, 63), (40, 3)):
            point = matrix @ np.array([(j + 0.5) / 64 * 2 - 1, (i + 0.5) / 48 * 2 - 1, 1.0])
            x, y = (point[:2] / point[2] + 1) / 2
            x, y = window[0] + x * (window[2] - window[0]), window[1] + y * (window[3] - window[1])
            np.testing.assert_allclose(view[:, i, j].numpy(), colour_at(kept.pixels[row], x, y), atol=0.5)


def test_corners_stay_within_their_bounds() -> None:
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(augment.corners(5, augment.PLAIN, rng), np.tile(augment._SQUARE, (5, 1, 1)))
    shifted = augment.corners(500, replace(augment.PLAIN, shift=0.05), rng).mean(1)
    assert 0.08 < np.abs(shifted).max() <= 0.1  # of a window two wide
    turned = augment.corners(500, replace(augment.PLAIN, rotate=10.0), rng)
    angles = np.degrees(np.arctan2(turned[:, 1, 1] - turned[:, 0, 1], turned[:, 1, 0] - turned[:, 0, 0]))
    assert 9 < np.abs(angles).max() <= 10
    wide = augment.corners(500, replace(augment.PLAIN, wide=0.3), rng)[:, 1, 0]
    assert 1.3 < wide.max() <= 1.4 and (wide == 1).mean() == pytest.approx(0.7, abs=0.1)


def test_tones_change_as_they_say_and_stay_pixels() -> None:
    x = torch.rand(6, 3, 16, 16) * 255
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(augment.toned(x, augment.PLAIN, rng).numpy(), x.numpy(), atol=1e-3)
    grey = augment.toned(x, replace(augment.PLAIN, grey=1.0), rng)
    luma = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    np.testing.assert_allclose(grey.numpy(), luma[:, None].expand(-1, 3, -1, -1).numpy(), atol=1e-2)
    lit = augment.toned(x, replace(augment.PLAIN, light=0.3), rng).mean((1, 2, 3)) / x.mean((1, 2, 3))
    assert (lit > 0.68).all() and (lit < 1.31).all() and float(lit.std()) > 0.02
    soft = augment.toned(x, replace(augment.PLAIN, blur=1.0), rng)
    assert float(soft[:, :, 5, 5].sub(x[:, :, 4:7, 4:7].mean((2, 3))).abs().max()) < 1e-3
    erased = augment.toned(x, replace(augment.PLAIN, erase=1.0), rng)
    changed = ((erased - x).abs().amax(1) > 1).float().mean((1, 2))
    assert (changed > 0.01).all() and (changed < 0.2).all()
    every = AugmentConfig(gamma=0.3, noise=10.0, erase=0.5, blur=0.5, light=0.9, contrast=0.9, colour=0.9)
    hard = augment.toned(x, every, rng)
    assert torch.isfinite(hard).all() and float(hard.min()) >= 0 and float(hard.max()) <= 255


def test_wear_takes_detail_from_its_share_of_photos() -> None:
    x = torch.rand(300, 3, 16, 16) * 255
    for config in (replace(augment.PLAIN, jpeg=2 / 9), replace(augment.PLAIN, shrink=2 / 9)):
        out = augment.worn(x, config, np.random.default_rng(1))
        changed = (out - x).abs().amax((1, 2, 3)) > 1
        assert float(changed.float().mean()) == pytest.approx(2 / 9, abs=0.07)
        np.testing.assert_array_equal(out[~changed].numpy(), x[~changed].numpy())
    small = augment.worn(x, replace(augment.PLAIN, shrink=1.0), np.random.default_rng(1))
    rough = (x[:, :, 1:] - x[:, :, :-1]).abs().mean((1, 2, 3))
    assert float((small[:, :, 1:] - small[:, :, :-1]).abs().mean((1, 2, 3)).div(rough).max()) < 0.8


def test_views_depend_on_the_generator_and_worn_held_out_photos_on_their_seed(kept: Pictures) -> None:
    rows, none = np.arange(4), np.zeros(4, np.bool_)
    how = AugmentConfig()
    one, two, other = (augment.views(kept, rows, SIZE, how, np.random.default_rng(seed), none) for seed in (1, 1, 2))
    assert one.shape == (4, 3, *SIZE) and torch.equal(one, two) and not torch.equal(one, other)
    wear = AugmentConfig(jpeg=1.0, shrink=0.0, wide=0.0)
    first, again = (augment.field(kept, rows, SIZE, wear, 5) for _ in range(2))
    plain = augment.plain(kept, rows, SIZE)
    assert torch.equal(first, again) and 0.1 < float((first - plain).abs().mean()) < 20


def slopes(n: int) -> Pictures:
    """Red grows by one a pixel to the right, green by one a pixel down; the plain crop is the middle, 48 × 60 pixels."""
    pixels = np.zeros((n, 80, 100, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(100), np.arange(80)[:, None]
    return Pictures(pixels, np.tile(np.array([0.2, 0.2, 0.8, 0.8], np.float32), (n, 1)), np.arange(n), ())


def test_worn_pictures_are_wide_in_their_share_and_in_no_other_way() -> None:
    some, rows = slopes(400), np.arange(400)
    out = augment.field(some, rows, (48, 60), replace(augment.PLAIN, wide=0.25, rotate=30, light=0.5, erase=1), 3)
    across, down = out[:, 0].diff(dim=2), out[:, 1].diff(dim=1)
    wide = across.mean((1, 2)).numpy()
    for slope in (across, down):  # as much wider as high, all over the picture
        np.testing.assert_allclose(slope, np.broadcast_to(wide[:, None, None], slope.shape), atol=1e-3)
    np.testing.assert_allclose(out[:, :2].mean((2, 3)), np.tile([49.5, 39.5], (400, 1)), atol=1e-2)  # about the middle
    plain = np.isclose(wide, 1, atol=1e-4)
    assert plain.mean() == pytest.approx(0.75, abs=0.07)
    assert 1 < wide[~plain].min() < 1.05 and 1.35 < wide[~plain].max() <= 1.4 + 1e-4


def test_worn_pictures_are_those_of_a_camera_that_saw_fewer_pixels_in_their_share() -> None:
    some, rows = slopes(60), np.arange(60)
    some.pixels[:] = np.random.default_rng(0).integers(0, 256, some.pixels.shape, np.uint8)
    out = augment.field(some, rows, (48, 60), replace(augment.PLAIN, shrink=0.5, blur=1), 3)
    kept, factors = 0, []
    for view, pixels in zip(out.permute(0, 2, 3, 1).numpy(), some.pixels[:, 16:64, 20:80], strict=True):
        if np.abs(view - pixels).max() < 0.01:
            kept += 1
            continue
        errors = {}
        for size in {(round(60 / f), round(48 / f)) for f in np.linspace(1.5, 3, 400)}:
            small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            errors[size] = np.abs(cv2.resize(small, (60, 48), interpolation=cv2.INTER_LINEAR) - view).max()
        assert min(errors.values()) <= 1  # a rounding
        factors.append(60 / min(errors, key=lambda size: errors[size])[0])
    assert 15 < kept < 45 and min(factors) < 1.7 and max(factors) > 2.7


def test_a_smaller_input_averages_rather_than_skips(kept: Pictures) -> None:
    fine = np.tile(np.array([[0, 255], [255, 0]], np.uint8).repeat(3).reshape(2, 2, 3), (48, 48, 1))
    board = Pictures(fine[None], np.array([[0, 0, 1, 1]], np.float32), np.arange(1), ())
    small = augment.plain(board, np.array([0]), (24, 24))[0]
    assert float((small - 127.5).abs().max()) < 1


def test_more_photos_than_memory_are_refused(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_memory", lambda: 10_000.0)
    with pytest.raises(TrainError, match="GB of memory"):
        pictures.load(sources(photos), SEEN)
