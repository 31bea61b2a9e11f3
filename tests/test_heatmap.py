"""Occlusion heat: against a loop, and with the exported network on photos that share one thing."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from reid import models
from reid.embed import OpenVinoEmbedder, unit_rows
from reid.errors import InputError
from reid.heatmap import covered_crops, heat, occlude, patches, share_outside, upsampled


def cells_embed(crops: np.ndarray) -> np.ndarray:
    """A vector of the means of 4 × 4 parts: what each part does is known."""
    small = np.stack([cv2.resize(c, (4, 4), interpolation=cv2.INTER_AREA) for c in crops.astype(np.float32)])
    return unit_rows(small.reshape(len(crops), -1) - 60)


def noise(seed: int, height: int = 56, width: int = 84) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> OpenVinoEmbedder:
    return OpenVinoEmbedder(models.ensure(tmp_path_factory.mktemp("models"), "lite0"))


@pytest.mark.parametrize(("grid", "spread"), [(7, 1.5), (1, 1.0), (5, 1.0), (7, 2.0)])
def test_patches_cover_every_pixel_around_the_middles_of_cells(grid: int, spread: float) -> None:
    height, width = 50, 91
    found = patches(height, width, grid, spread)
    seen = np.zeros((height, width), int)
    for at, (x0, y0, x1, y1) in enumerate(found):
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        row, column = at // grid, at % grid
        assert x0 <= (column + 0.5) * width / grid <= x1 and y0 <= (row + 0.5) * height / grid <= y1
        assert x1 - x0 <= spread * width / grid + 2
        seen[y0:y1, x0:x1] += 1
    assert len(found) == grid**2 and seen.min() >= 1


@pytest.mark.parametrize(("grid", "spread"), [(0, 1.5), (51, 1.5), (7, 0.5)])
def test_a_grid_that_does_not_fit_is_refused(grid: int, spread: float) -> None:
    with pytest.raises(InputError, match="does not fit"):
        patches(50, 91, grid, spread)


def test_a_covered_copy_differs_under_its_patch_alone() -> None:
    crop = noise(1)
    places = patches(56, 84)
    copies = covered_crops(crop, places)
    grey = round(float(crop.mean()))
    assert copies.shape == (49, 56, 84, 3)
    for copy, (x0, y0, x1, y1) in zip(copies, places, strict=True):
        assert (copy[y0:y1, x0:x1] == grey).all()
        outside = np.ones((56, 84), bool)
        outside[y0:y1, x0:x1] = False
        assert (copy[outside] == crop[outside]).all()
    assert (crop == noise(1)).all()


def test_heat_equals_a_loop() -> None:
    crop, other = noise(1), cells_embed(noise(2)[None])[0]
    found = heat(occlude(crop, cells_embed, grid=5), other)
    plain = float(cells_embed(crop[None])[0] @ other)
    assert found.cosine == pytest.approx(plain, abs=1e-6)
    for at, (x0, y0, x1, y1) in enumerate(patches(56, 84, 5)):
        copy = crop.copy()
        copy[y0:y1, x0:x1] = round(float(crop.mean()))
        drop = plain - float(cells_embed(copy[None])[0] @ other)
        assert found.drops[at // 5, at % 5] == pytest.approx(drop, abs=1e-6)
    assert found.map.shape == (56, 84) and found.milliseconds > 0


def test_every_other_patch_gives_the_others_the_mean_of_their_neighbours() -> None:
    crop, other = noise(3), cells_embed(noise(4)[None])[0]
    calls: list[int] = []

    def counting(crops: np.ndarray) -> np.ndarray:
        calls.append(len(crops))
        return cells_embed(crops)

    found = heat(occlude(crop, counting, sparse=True), other).drops
    assert calls == [26]
    plain = float(cells_embed(crop[None])[0] @ other)
    places = patches(56, 84, 7, 2.0)
    known = {}
    for at, (x0, y0, x1, y1) in enumerate(places):
        if (at // 7 + at % 7) % 2 == 0:
            copy = crop.copy()
            copy[y0:y1, x0:x1] = round(float(crop.mean()))
            known[at // 7, at % 7] = plain - float(cells_embed(copy[None])[0] @ other)
    for row in range(7):
        for column in range(7):
            near = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
            expected = known.get((row, column), np.mean([known[p] for p in near if p in known] or [0]))
            assert found[row, column] == pytest.approx(expected, abs=1e-6)


def test_a_smooth_map_keeps_the_drops_at_the_middles_of_cells() -> None:
    drops = np.random.default_rng(0).normal(size=(7, 7)).astype(np.float32)
    smooth = upsampled(drops, 7 * 9, 7 * 11)
    assert smooth.shape == (63, 77)
    assert smooth[4::9, 5::11] == pytest.approx(drops, abs=1e-5)
    assert smooth.min() >= drops.min() - 1e-6 and smooth.max() <= drops.max() + 1e-6


def test_the_share_outside_is_of_positive_heat_and_unknown_without_it() -> None:
    found = np.array([[0.3, 0.1], [-0.2, 0.1]], np.float32)
    inside = np.array([[True, False], [False, True]])
    assert share_outside(found, inside) == pytest.approx(0.1 / 0.5)
    assert share_outside(found, ~inside) == pytest.approx(0.4 / 0.5)
    assert share_outside(-found, inside) is None
    assert share_outside(np.zeros((2, 2), np.float32), inside) is None


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("cell", [(1, 1), (5, 3), (2, 4)])
def test_covering_what_two_photos_share_lowers_their_cosine_most(
    lite0: OpenVinoEmbedder, cell: tuple[int, int], sparse: bool
) -> None:
    """Two plain photos with nothing in common but one mark that fits under a patch, in another place in each."""
    pre = lite0.card.preprocessing
    mark = cv2.resize(np.random.default_rng(8).integers(0, 256, (6, 6, 3)).astype(np.uint8), (48, 48), interpolation=0)

    def photo(shade: int, row: int, column: int) -> np.ndarray:
        y, x = round((row + 0.5) * pre.height / 7), round((column + 0.5) * pre.width / 7)
        random = np.random.default_rng(shade)
        out = np.clip(shade + random.normal(0, 4, (pre.height, pre.width, 3)), 0, 255).astype(np.uint8)
        out[y - 24 : y + 24, x - 24 : x + 24] = mark
        return out

    mine = occlude(photo(110, *cell), lite0.embed, sparse=sparse)
    found = heat(mine, lite0.embed(photo(150, 3, 3)[None])[0])
    row, column = np.unravel_index(int(found.drops.argmax()), (7, 7))
    assert (row, column) == cell
    assert found.drops.max() > 3 * np.median(np.abs(found.drops))


def test_a_models_heat_needs_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys, reid.heatmap, reid.compare, reid.explaining; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"
