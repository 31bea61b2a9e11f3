"""Drawing of evidence: what is on the picture, and that it lies where it should."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from reid.explain import NEW
from reid.pictures import (
    LINES,
    WIDTH,
    Links,
    Panel,
    heat_over,
    joined,
    no_links,
    overlay,
    side_by_side,
    strongest,
    warp_pair,
)


def texture(height: int = 200, width: int = 300, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 10, width // 10, 3)).astype(np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def links(count: int, seed: int = 2, *, outside: bool = False) -> Links:
    random = np.random.default_rng(seed)
    places = random.uniform([5, 5], [290, 190], (2, count, 2)).astype(np.float32)
    return Links(places[0], places[1], random.random(count).astype(np.float32), np.full(count, outside))


def correlation(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    return float(np.corrcoef(a[where].ravel(), b[where].ravel())[0, 1])


def test_the_strongest_links_are_kept_in_order() -> None:
    every = links(100)
    kept = strongest(every, 7)
    expected = sorted(every.weight.tolist(), reverse=True)[:7]
    assert kept.weight.tolist() == expected
    for weight, left, right in zip(kept.weight, kept.left, kept.right, strict=True):
        row = every.weight.tolist().index(weight)
        assert (left == every.left[row]).all() and (right == every.right[row]).all()


def test_no_more_lines_than_the_limit_are_drawn() -> None:
    a, b, every = Panel(texture(), "A"), Panel(texture(seed=5), "B"), links(3 * LINES)
    all_of_them = joined(a, b, every, heading="x")
    best_only = joined(a, b, strongest(every, LINES), heading="x")
    fewer = joined(a, b, strongest(every, LINES - 1), heading="x")
    assert (all_of_them == best_only).all()
    assert (all_of_them != fewer).any()


def test_a_line_joins_the_two_places_and_touches_nothing_else() -> None:
    black = np.zeros((200, 300, 3), np.uint8)
    a, b = Panel(black, "A"), Panel(black, "B")
    one = Links(np.array([[149.5, 99.5]]), np.array([[29.5, 39.5]]), np.ones(1), np.zeros(1, bool))
    with_line, without = joined(a, b, one, heading=""), side_by_side(a, b, heading="")
    changed = np.argwhere((with_line != without).any(axis=2))[:, ::-1].astype(float)
    dark = np.argwhere((without == 0).all(axis=2))
    top, left = dark.min(axis=0)
    width = (WIDTH - 2 * 18 - 12) / 2
    factor = width / 300
    start = np.array([left + 150 * factor, top + 100 * factor])
    end = np.array([left + width + 12 + 30 * factor, top + 40 * factor])
    along = np.clip(((changed - start) @ (end - start)) / ((end - start) @ (end - start)), 0, 1)
    distance = np.linalg.norm(changed - start - along[:, None] * (end - start), axis=1)
    assert len(changed) > np.linalg.norm(end - start)
    assert distance.max() < 12 and along.min() < 0.01 and along.max() > 0.99


def test_red_is_kept_for_what_lies_outside() -> None:
    a, b = Panel(np.zeros((100, 150, 3), np.uint8), "A"), Panel(np.zeros((100, 150, 3), np.uint8), "B")

    def red(picture: np.ndarray) -> int:
        return int((np.abs(picture.astype(int) - NEW).sum(axis=2) < 30).sum())

    within, outside = links(20), links(20, outside=True)
    half = [Links(x.left / 2, x.right / 2, x.weight, x.outside) for x in (within, outside)]
    assert red(joined(a, b, half[0], heading="")) == 0
    assert red(joined(a, b, half[1], heading="")) > 500


@pytest.mark.parametrize("sizes", [((200, 300), (200, 300)), ((100, 400), (90, 420)), ((300, 40), (20, 500)), ((1, 1), (1, 1))])  # fmt: skip
def test_crops_of_any_shape_fit_on_a_sheet(sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    panels = [Panel(np.full((*size, 3), 77, np.uint8), "x" * 200, (0, 0, size[1], size[0])) for size in sizes]
    sheet = joined(panels[0], panels[1], no_links(), heading="h" * 300, notes=("n" * 300,))
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    assert sheet.shape[1] <= WIDTH + 1 and sheet.shape[0] < 2200


def test_wide_crops_stand_one_above_the_other() -> None:
    wide = Panel(np.zeros((100, 300, 3), np.uint8), "A")
    square = Panel(np.zeros((100, 100, 3), np.uint8), "B")
    above, beside = side_by_side(wide, wide, heading=""), side_by_side(wide, square, heading="")
    dark = [np.argwhere((s == 0).all(axis=2).sum(axis=1) > 200).ravel() for s in (above, beside)]
    gaps = [int((np.diff(rows) > 1).sum()) for rows in dark]
    assert gaps == [1, 0]


def test_drawing_leaves_the_crops_as_they_were() -> None:
    a, b = texture(), texture(seed=9)
    before = a.copy(), b.copy()
    joined(Panel(a, "A", (3, 3, 50, 50)), Panel(b, "B"), links(30), heading="x")
    heat_over(a, np.ones((200, 300), np.float32))
    _, plain, covered = warp_pair(a, b, np.eye(3))
    overlay(a, b, covered)
    plain[:] = 0
    assert (a == before[0]).all() and (b == before[1]).all()


def test_a_warped_pair_is_of_one_size_and_lies_on_each_other() -> None:
    candidate = texture()
    H = np.array([[0.9, -0.2, 30], [0.15, 1.1, -12], [2e-4, 1e-4, 1]])
    query = cv2.warpPerspective(candidate, np.linalg.inv(H), (320, 240), flags=cv2.INTER_CUBIC)
    warped, plain, covered = warp_pair(query, candidate, H)
    assert warped.shape == plain.shape == candidate.shape and covered.shape == candidate.shape[:2]
    assert (plain == candidate).all()
    assert 0.5 < covered.mean() < 1
    inner = cv2.erode(covered.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert correlation(warped, candidate, inner) > 0.97
    assert correlation(cv2.resize(query, (300, 200)), candidate, inner) < 0.5
    assert (warped[~cv2.dilate(covered.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)] == 128).all()


def test_an_overlay_is_half_of_each_where_both_are() -> None:
    a, b = texture(20, 30, seed=3), texture(20, 30, seed=4)
    covered = np.zeros((20, 30), bool)
    covered[5:15, 10:20] = True
    mixed = overlay(a, b, covered)
    for y in range(20):
        for x in range(30):
            for c in range(3):
                expected = (int(a[y, x, c]) + int(b[y, x, c]) + 1) // 2 if covered[y, x] else int(b[y, x, c])
                assert mixed[y, x, c] == expected


def test_heat_is_orange_blue_or_nothing() -> None:
    crop = np.full((10, 30, 3), 120, np.uint8)
    heat = np.zeros((10, 30), np.float32)
    heat[:, :10], heat[:, 20:] = 0.02, -0.01
    red, nothing, blue = heat_over(crop, heat)[5, [5, 15, 25]].astype(int)
    assert red[0] > red[1] > red[2] and red[0] - red[2] > 100
    assert nothing[0] == nothing[1] == nothing[2]
    assert blue[2] > blue[1] > blue[0]
    half = heat_over(crop, heat, scale=0.04)[5, 5].astype(int)
    assert 0 < half[0] - half[2] < red[0] - red[2]


def test_heat_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        heat_over(np.zeros((10, 30, 3), np.uint8), np.zeros((7, 7), np.float32))
