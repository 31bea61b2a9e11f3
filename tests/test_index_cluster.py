"""Spherical k-means, against what can be known of it."""

from __future__ import annotations

import numpy as np
import pytest

from reid.index import cluster


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def test_well_separated_groups_are_found() -> None:
    rng = np.random.default_rng(1)
    truth = np.eye(12, dtype=np.float32)[:6]
    group = rng.permutation(np.repeat(np.arange(6), 200))
    rows = unit(truth[group] + 0.02 * rng.standard_normal((1200, 12)))
    found = cluster.centres(rows, 24)
    lists = cluster.nearest(rows, found)
    assert all(len(set(group[lists == number])) == 1 for number in np.unique(lists))
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_the_nearest_centre_is_the_one_a_loop_finds() -> None:
    rows, centres = (
        unit(np.random.default_rng(1).standard_normal((50, 7))),
        unit(np.random.default_rng(2).standard_normal((9, 7))),
    )
    expected = [max(range(9), key=lambda number: float(row @ centres[number])) for row in rows]
    assert cluster.nearest(rows, centres).tolist() == expected


def test_more_rounds_represent_the_rows_better_and_equal_seeds_give_equal_centres() -> None:
    rows = unit(np.random.default_rng(3).standard_normal((3000, 10)))

    def quality(rounds: int) -> float:
        return float((rows @ cluster.centres(rows, 30, rounds=rounds).T).max(axis=1).mean())

    assert quality(6) > quality(1) > quality(0)
    assert np.array_equal(cluster.centres(rows, 30), cluster.centres(rows, 30))


def test_identical_rows_and_too_few_rows() -> None:
    same = np.repeat(unit(np.ones((1, 5))), 40, axis=0)
    assert np.allclose(cluster.centres(same, 8), same[:8])
    with pytest.raises(ValueError, match="8 centres of 3 rows"):
        cluster.centres(same[:3], 8)
