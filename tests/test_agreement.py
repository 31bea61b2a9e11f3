"""What is said of two crops laid over each other: overlap and likeness, of the animals where their outlines are known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

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


# --- the numbers of a map and its inliers, against the definitions


WIDE, TALL = (200, 100), (120, 150)  # width and height of the query and of the candidate
TURN = 0.4  # radians


def turned_and_sheared() -> NDArray[np.float64]:
    """Shear and unequal scale, then a turn by `TURN`: an affinity."""
    turn = np.array([[np.cos(TURN), -np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]])
    H = np.eye(3)
    H[:2, :2] = turn @ np.array([[0.7, 0.2], [0.2, 1.1]])  # symmetric, so that all the turning is in `turn`
    H[:2, 2] = [25, -14]
    return H


IN_PERSPECTIVE = (
    np.array([[0.9, 0.25, 12], [-0.15, 1.3, -9], [-1.2e-3, -2.1e-3, 1.0]]) * 1.7
)  # scaled: it is up to scale


def keypoints(
    size: tuple[int, int], xy: NDArray[np.float64], scale: NDArray[np.float64], angle: NDArray[np.float64]
) -> LocalFeatures:
    """A plain crop of this size with keypoints there."""
    ones, plain = np.ones(len(xy), np.float32), np.zeros((SIDE, SIDE), np.uint8)
    places, descriptors = xy.astype(np.float32), np.zeros((len(xy), 128), np.uint8)
    frames = scale.astype(np.float32), angle.astype(np.float32)
    return LocalFeatures(places, *frames, ones, descriptors, plain, size[1], size[0])


def at(H: NDArray[np.float64], x: float, y: float) -> tuple[float, float]:
    u, v, w = (sum(H[row, column] * one for column, one in enumerate((x, y, 1.0))) for row in range(3))
    return u / w, v / w


def jacobian(f: Callable[[float, float], tuple[float, float]], x: float, y: float) -> NDArray[np.float64]:
    """By differences on both sides."""
    step = 1e-5
    columns = [np.subtract(f(x + a, y + b), f(x - a, y - b)) / (2 * step) for a, b in ((step, 0), (0, step))]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("name", ["affinity", "perspective"])
def test_every_number_of_a_map_is_what_its_name_says(name: str) -> None:
    """All but overlap and likeness, of sixteen matches of which eleven agree."""
    H = turned_and_sheared() if name == "affinity" else IN_PERSPECTIVE
    random = np.random.default_rng(5)
    xy, there = random.uniform((5, 5), (195, 95), (14, 2)), random.uniform((5, 5), (115, 145), (17, 2))
    middle = jacobian(lambda x, y: at(H, x, y), WIDE[0] / 2, WIDE[1] / 2)
    growth = abs(middle[0, 0] * middle[1, 1] - middle[0, 1] * middle[1, 0]) ** 0.5
    turning = float(np.arctan2(H[1, 0] - H[0, 1], H[0, 0] + H[1, 1])) if name == "perspective" else TURN
    query = keypoints(WIDE, xy, np.full(14, 3.0), np.full(14, 10.0))
    rows = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 0, 1], np.int32)
    targets = np.array([16, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 9, 10, 11, 12, 12], np.int32)
    inside = np.arange(11)
    scales, angles = np.full(17, 3 * growth), np.full(17, 10 + np.rad2deg(turning))
    scales[[1, 2, 3]] *= 1.7  # three of eleven grow otherwise, and five turn otherwise
    angles[[3, 4, 5, 6, 7]] += 25
    candidate = keypoints(TALL, there, scales, angles)
    matches = Matches(rows, targets, np.linspace(0.1, 0.9, 16, dtype=np.float32))
    errors = np.array([4, 9, 1, 8, 3, 7, 2, 10, 6, 5, 0, 40, 50, 60, 70, 80]) / 500

    def normalised(u: float, v: float) -> tuple[float, float]:
        x, y = at(H, u * WIDE[0], v * WIDE[1])
        return x / TALL[0], y / TALL[1]

    J = jacobian(normalised, 0.5, 0.5)
    a, b, c = J[:, 0] @ J[:, 0], J[:, 0] @ J[:, 1], J[:, 1] @ J[:, 1]
    half, root = (a + c) / 2, (((a - c) / 2) ** 2 + b**2) ** 0.5  # squares of the singular values: half ± root
    corners = [normalised(u, v) for u, v in ((0, 0), (1, 0), (1, 1), (0, 1))]
    entries = {
        f"h{i + 1}{j + 1}": H[i, j] / H[2, 2] * (*WIDE, 1)[j] / (*TALL, 1)[i] for i, j in np.ndindex(3, 3) if i + j < 4
    }
    expected = (
        entries
        | {
            "matches": 16,
            "matched_targets": 13,
            "inliers": 11,
            "inlier_targets": 9,
            "inlier_ratio": 11 / 16,
            "inlier_weight": sum(0.1 + 0.8 * i / 15 for i in range(11)),
            "error_median": 5 / 500,
            "error_p90": 9 / 500,  # the tenth of eleven
            "determinant": J[0, 0] * J[1, 1] - J[0, 1] * J[1, 0],
            "singular_ratio": ((half + root) / (half - root)) ** 0.5,
            "abs_h31": abs(entries["h31"]),
            "abs_h32": abs(entries["h32"]),
            "quad_convex": 1,
            "quad_area": ConvexHull(corners).volume,  # of points in the plane, their hull's area
            "hull_query": ConvexHull(xy[:11] / WIDE).volume,
            "hull_candidate": ConvexHull(there[targets[:11]] / TALL).volume,
            "scale_agreement": 8 / 11,
            "angle_agreement": 6 / 11,
            "rotation": abs(turning),
            "log_keypoints": np.log(14),
        }
    )
    found = features_of(query, candidate, matches, H, inside, errors)
    said = {key: value for key, value in zip(FEATURE_NAMES, found.tolist(), strict=True) if key in expected}
    assert set(FEATURE_NAMES) - set(said) == {"overlap", "zncc"}
    assert said == pytest.approx(expected, rel=1e-4, abs=1e-6)
    if name == "perspective":  # so no two columns could be exchanged unseen
        values = sorted(expected.values())
        assert min(abs(x - y) / max(abs(x), abs(y)) for x, y in pairwise(values)) > 1e-3


@pytest.mark.parametrize(
    ("H", "determinant"),
    [
        (np.array([[-1, 0, 128], [0, 1, 0], [0, 0, 1.0]]), -1),  # mirrored
        (np.array([[1, 0, 0], [0, 1, 0], [-1 / 80, 0, 1.0]]), 125),  # the horizon runs through the photo
    ],
)
def test_a_frame_that_is_mirrored_or_torn_is_not_convex(H: NDArray[np.float64], determinant: float) -> None:
    rows = np.arange(4, dtype=np.int32)
    matches = Matches(rows, rows, np.ones(4, np.float32))
    said = dict(
        zip(FEATURE_NAMES, features_of(crop(None), crop(None), matches, H, np.arange(4), np.zeros(4)), strict=True)
    )
    assert said["quad_convex"] == 0
    assert said["determinant"] == pytest.approx(determinant, rel=1e-4)
