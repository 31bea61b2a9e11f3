"""Masks in all their spellings against loops, and the store that keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from reid import masks
from reid.errors import InputError
from reid.masks import MaskStore, mask_of, raster
from reid.records import Mask


def blob(height: int = 30, width: int = 50, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    return cv2.GaussianBlur(noise, (9, 9), 3) > 0.02


def runs_of(mask: np.ndarray) -> list[int]:
    """COCO's run lengths by a loop: down the columns, absence first."""
    runs, now, length = [], False, 0
    for x in range(mask.shape[1]):
        for y in range(mask.shape[0]):
            if bool(mask[y, x]) != now:
                runs.append(length)
                now, length = not now, 0
            length += 1
    return [*runs, length]


def text_of(runs: list[int]) -> str:
    """COCO's text of run lengths, as its API writes it."""
    out = []
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != -1 if bits & 16 else value != 0
            out.append(chr(48 + bits + (32 if more else 0)))
    return "".join(out)


def png(path: Path, pixels: np.ndarray) -> Path:
    written, data = cv2.imencode(".png", pixels)
    assert written
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())
    return path


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_as_counts_and_as_text_give_the_mask_they_were_made_of(seed):
    mask = blob(seed=seed) if seed else np.zeros((7, 300), bool)
    runs = runs_of(mask)
    for counts in (runs, text_of(runs), text_of(runs).encode()):
        said = mask_of({"size": [*mask.shape], "counts": counts})
        assert np.array_equal(raster(said, mask.shape[1], mask.shape[0]), mask)


def test_a_polygon_covers_the_pixels_whose_middle_lies_in_it():
    corners = [10.0, 5.0, 40.0, 5.0, 40.0, 25.0, 10.0, 25.0]
    expected = np.zeros((30, 50), bool)
    for y in range(30):
        for x in range(50):
            expected[y, x] = 10 < x + 0.5 < 40 and 5 < y + 0.5 < 25
    found = raster(mask_of([corners]), 50, 30)
    assert (found != expected).sum() <= 2 * (30 + 20)  # OpenCV also draws the outline: a pixel all around at most
    assert found[5:25, 10:40].all() and not found[:4].any() and not found[:, :9].any()


def test_tables_spell_polygons_in_several_ways():
    flat = [1, 2, 30, 2, 30, 20, 1, 20]
    expected = raster(mask_of([flat]), 50, 30)
    pairs = [[1, 2], [30, 2], [30, 20], [1, 20]]
    for cell in (flat, [flat], [pairs], str(flat), str([flat]), json.dumps([flat]), f"({', '.join(map(str, flat))})"):
        assert np.array_equal(raster(mask_of(cell), 50, 30), expected), cell
    runs = runs_of(expected)
    as_python = str({"size": [30, 50], "counts": text_of(runs).encode()})
    assert np.array_equal(raster(mask_of(as_python), 50, 30), expected)


def test_polygons_follow_a_photo_that_was_scaled_since():
    said = mask_of([[20, 10, 80, 10, 80, 50, 20, 50]])
    small, large = raster(said, 50, 30, declared=(100, 60)), raster(said, 100, 60)
    halved = cv2.resize(large.astype(np.uint8), (50, 30), interpolation=cv2.INTER_NEAREST) > 0
    assert np.mean(small != halved) < 0.06


def test_two_polygons_are_one_mask():
    one, other = [0, 0, 10, 0, 10, 10, 0, 10], [30, 20, 40, 20, 40, 29, 30, 29]
    both = raster(mask_of([one, other]), 50, 30)
    assert np.array_equal(both, raster(mask_of([one]), 50, 30) | raster(mask_of([other]), 50, 30))


@pytest.mark.parametrize("cell", ["", "nan", "[]", None, [], "None"])
def test_nothing_said_is_no_mask(cell):
    assert mask_of(cell) is None


@pytest.mark.parametrize(
    "cell",
    ["[1, 2, 3]", "[[1, 2, 3, 4]]", "{'size': [3, 4]}", "{'counts': [1]}", "[1, 2, 'a', 4, 5, 6]", "[1,", "(((", 7,
     "__import__('os')", {"size": [0, 4], "counts": []}, [float("nan")] * 6],
)  # fmt: skip
def test_what_is_no_segmentation_is_refused(cell):
    with pytest.raises(ValueError):
        mask_of(cell)


def test_damaged_run_lengths_are_a_typed_error():
    for counts in ([5, 5], "~~", [-1, 1201]):
        said = mask_of({"size": [30, 40], "counts": counts})
        with pytest.raises(InputError):
            raster(said, 40, 30, source="row 3")


def test_pictures_are_masks_where_they_are_not_black_or_not_transparent(tmp_path):
    mask = blob()
    grey = png(tmp_path / "grey.png", mask.astype(np.uint8) * 200)
    colour = png(tmp_path / "colour.png", np.dstack([mask * 0, mask * 7, mask * 0]).astype(np.uint8))
    alpha = png(tmp_path / "alpha.png", np.dstack([mask * 0 + 9] * 3 + [mask * 255]).astype(np.uint8))
    for path in (grey, colour, alpha):
        assert np.array_equal(raster(Mask(picture=path), 50, 30), mask), path.name
    cell = mask_of("grey.png", lambda name: tmp_path / name)
    assert cell == Mask(picture=grey)
    with pytest.raises(ValueError, match="gone.png"):
        mask_of("gone.png")


def test_a_mask_of_another_size_is_scaled_and_one_of_another_shape_refused(tmp_path):
    mask = blob(60, 100)
    path = png(tmp_path / "m.png", mask.astype(np.uint8) * 255)
    small = raster(Mask(picture=path), 50, 30)
    assert small.shape == (30, 50) and abs(small.mean() - mask.mean()) < 0.05
    with pytest.raises(InputError, match="100×60"):
        raster(Mask(picture=path), 60, 100)
    with pytest.raises(InputError, match="no mask"):
        masks.read(tmp_path / "gone.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="no mask"):
        masks.read(tmp_path / "bad.png")


def test_bounds_hold_the_mask_and_nothing_more():
    mask = np.zeros((30, 50), bool)
    assert masks.bounds(mask) is None
    mask[4, 9] = mask[20, 40] = True
    assert masks.bounds(mask) == (9.0, 4.0, 41.0, 21.0)


def test_the_mask_beside_a_photo_bears_its_name(tmp_path):
    assert masks.beside(tmp_path, Path("x/a.jpg")) is None
    second = png(tmp_path / "a.jpg.png", np.ones((2, 2), np.uint8))
    assert masks.beside(tmp_path, Path("x/a.jpg")) == second
    first = png(tmp_path / "a.png", np.ones((2, 2), np.uint8))
    assert masks.beside(tmp_path, Path("x/a.jpg")) == first


def test_the_store_keeps_masks_exactly_and_says_whether_one_is_new(tmp_path):
    store, box, mask = MaskStore(tmp_path / "masks"), (1.0, 2.0, 30.0, 20.0), blob(31, 53)
    assert store.get("aa", box) is None
    assert store.put("aa", box, masks.encoded(mask)) and not store.put("aa", box, masks.encoded(mask))
    assert np.array_equal(store.get("aa", box), mask)
    assert store.get("aa", (1.0, 2.0, 30.0, 21.0)) is None and store.get("ab", box) is None
    other = blob(31, 53, seed=5)
    assert store.put("aa", box, masks.encoded(other)) and np.array_equal(store.get("aa", box), other)
    assert len(masks.encoded(np.ones((3000, 4000), bool))) < 20_000  # a bit a pixel, and packed
