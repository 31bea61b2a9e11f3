"""What is said of two crops laid over each other: overlap and likeness, of the animals where their outlines are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from reid.agreement import FEATURE_NAMES, features_of
from reid.keypoints import LocalFeatures
from reid.matching import Matches

SIDE = 64
Outline = NDArray[np.bool_]


def crop(outline: Outline | None, thumbnail: NDArray[np.uint8] | None = None) -> LocalFeatures:
    """A crop of 128 × 128 pixels with four keypoints."""
    xy = np.array([[10, 10], [110, 15], [100, 100], [20, 90]], np.float32)
    ones = np.ones(4, np.float32)
    picture = np.zeros((SIDE, SIDE), np.uint8) if thumbnail is None else thumbnail
    return LocalFeatures(xy, ones, 0 * ones, ones, np.zeros((4, 128), np.uint8), picture, 128, 128, outline)


def laid(query: LocalFeatures, candidate: LocalFeatures, H: NDArray[np.float64]) -> tuple[float, float]:
    """Overlap and correlation of the pair under this map of pixels."""
    rows = np.arange(4, dtype=np.int32)
    found = features_of(query, candidate, Matches(rows, rows, np.ones(4, np.float32)), H, np.arange(4), np.zeros(4))
    said = dict(zip(FEATURE_NAMES, found.tolist(), strict=True))
    return said["overlap"], said["zncc"]


def disc(x: float, y: float, radius: float) -> Outline:
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2, np.bool_)


def overlap_by_points(query: Outline, candidate: Outline, H: NDArray[np.float64]) -> float:
    """The same by asking of a fine grid of points, far beyond the candidate's frame, on which animals they lie."""
    at = np.linspace(-128, 256, 769)
    x, y = (each.ravel() for each in np.meshgrid(at, at))
    back = np.linalg.inv(H) @ np.stack([x, y, np.ones_like(x)])
    back = back[:2] / back[2]

    def on(outline: Outline, px: NDArray[np.float64], py: NDArray[np.float64]) -> Outline:
        column, row = np.floor(px / 2).astype(int), np.floor(py / 2).astype(int)
        there = (column >= 0) & (column < SIDE) & (row >= 0) & (row < SIDE)
        return there & outline[np.clip(row, 0, SIDE - 1), np.clip(column, 0, SIDE - 1)]

    mine, theirs = on(query, *back), on(candidate, x, y)
    return float((mine & theirs).sum() / (mine | theirs).sum())


MAPS = {
    "same": np.eye(3),
    "shifted": np.array([[1, 0, 12], [0, 1, -6], [0, 0, 1.0]]),
    "out of the frame": np.array([[1, 0, 70], [0, 1, 0], [0, 0, 1.0]]),
    "turned and smaller": np.array([[0.6, -0.3, 40], [0.3, 0.6, 5], [0, 0, 1.0]]),
    "in perspective": np.array([[1.1, 0.1, -5], [0.05, 0.9, 4], [1e-3, 5e-4, 1.0]]),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    ("query", "candidate"), [(disc(32, 32, 20), disc(32, 32, 20)), (disc(20, 30, 15), disc(40, 30, 22))]
)
def test_the_overlap_is_that_of_the_animals_where_both_outlines_are_known(
    name: str, query: Outline, candidate: Outline
) -> None:
    overlap, _ = laid(crop(query), crop(candidate), MAPS[name])
    assert overlap == pytest.approx(overlap_by_points(query, candidate, MAPS[name]), abs=0.03)


@pytest.mark.parametrize("name", MAPS)
def test_where_an_outline_is_lacking_the_overlap_is_that_of_the_frames(name: str) -> None:
    every = np.ones((SIDE, SIDE), np.bool_)
    frames = overlap_by_points(every, every, MAPS[name])
    for outlines in ((None, None), (disc(10, 10, 5), None), (None, disc(50, 50, 5)), (every, every)):
        overlap, _ = laid(crop(outlines[0]), crop(outlines[1]), MAPS[name])
        assert overlap == pytest.approx(frames, abs=0.03)


def test_animals_in_opposite_corners_do_not_overlap_however_their_boxes_do() -> None:
    corner, other = disc(12, 12, 8), disc(52, 52, 8)
    assert laid(crop(corner), crop(other), np.eye(3)) == (0.0, 0.0)
    assert laid(crop(None), crop(None), np.eye(3))[0] == pytest.approx(1)


def test_a_shared_background_is_not_likeness_where_the_outlines_are_known() -> None:
    random = np.random.default_rng(0)
    animal, wall = disc(32, 32, 14), random.integers(0, 256, (SIDE, SIDE), np.uint8)
    first, second = (np.where(animal, random.integers(0, 256, (SIDE, SIDE)), wall).astype(np.uint8) for _ in range(2))
    _, by_box = laid(crop(None, first), crop(None, second), np.eye(3))
    _, by_animal = laid(crop(animal, first), crop(animal, second), np.eye(3))
    _, itself = laid(crop(animal, first), crop(animal, first), np.eye(3))
    assert by_box > 0.7 and abs(by_animal) < 0.15 and itself == pytest.approx(1, abs=1e-5)


def test_an_outline_of_nothing_is_an_ordinary_answer() -> None:
    nothing = np.zeros((SIDE, SIDE), np.bool_)
    assert laid(crop(nothing), crop(disc(32, 32, 9)), np.eye(3)) == (0.0, 0.0)
    assert laid(crop(nothing), crop(nothing), np.eye(3)) == (0.0, 0.0)
