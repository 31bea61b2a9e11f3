"""Look-alikes: found as brute force finds them, batched together, and every photo shown as often as without."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.embed import unit_rows
from reid.train import lookalikes, sampling
from reid.train.lookalikes import Near


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def some(n: int, seed: int, *, mirrored: bool = True) -> tuple[Near, np.ndarray, np.ndarray]:
    upright, over = (unit_rows(rng(seed + way).standard_normal((n, 6), np.float32)) for way in (1, 2))
    return lookalikes.nearest(np.arange(n) * 3, upright, over if mirrored else None, rng(seed)), upright, over


@pytest.mark.parametrize("mirrored", [True, False])
def test_the_nearest_are_those_of_brute_force(mirrored: bool) -> None:
    near, upright, over = some(40, 5, mirrored=mirrored)
    for i in range(40):
        all_of = [(-float(upright[i] @ upright[j]), j, False) for j in range(40) if j != i]
        if mirrored:
            all_of += [(-float(upright[i] @ over[j]), j, True) for j in range(40) if j != i]
        best = [(j, turned) for _, j, turned in sorted(all_of)][:10]
        assert list(zip(near.others[i, :10].tolist(), near.turned[i, :10].tolist(), strict=True)) == best


def test_many_animals_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookalikes, "_ALL", 16)
    monkeypatch.setattr(lookalikes, "_AT_ONCE", 100)
    near, _, _ = some(50, 3)
    assert near.others.shape[0] == 50 and near.others.shape[1] >= 8
    assert (near.others != np.arange(50)[:, None]).all() and near.others.min() >= 0 and near.others.max() < 50


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), animals=st.integers(2, 30), photos=st.integers(2, 4), size=st.integers(4, 24))
def test_an_epoch_shows_each_animal_as_often_as_without(seed: int, animals: int, photos: int, size: int) -> None:
    near, _, _ = some(animals, seed)
    codes = rng(seed).permutation(np.repeat(near.animals, rng(seed).integers(1, 7, animals)))
    found = lookalikes.batches(codes, np.arange(len(codes)), size, photos, 0.5, near, rng(seed))
    plain = sampling.identity_batches(codes, np.arange(len(codes)), size, photos, rng(seed))
    assert len(found) == len(plain)
    assert {len(rows) for rows, _ in found} == {len(rows) for rows in plain}
    shown = np.concatenate([rows for rows, _ in found])
    assert set(shown) == set(range(len(codes)))
    for rows, turned in found:
        ways = {(int(codes[row]), bool(turn)) for row, turn in zip(rows, turned, strict=True)}
        assert len(ways) == len(set(codes[rows].tolist()))  # no animal beside its own mirror image
        for start in range(0, len(rows), photos):  # photos of one animal, all or none of them mirrored
            assert len(set(codes[rows[start : start + photos]])) == 1
            assert len(set(turned[start : start + photos].tolist())) == 1


def test_a_batch_holds_look_alikes_the_way_round_that_they_look_alike() -> None:
    """Twenty kinds of six animals: three upright, three whose mirror images are of that kind."""
    kinds = unit_rows(rng(1).standard_normal((20, 32), np.float32))
    others = unit_rows(rng(2).standard_normal((20, 32), np.float32))
    kind, over = np.arange(120) // 6, np.arange(120) % 6 >= 3
    noise = 0.02 * rng(3).standard_normal((2, 120, 32)).astype(np.float32)
    upright = unit_rows(np.where(over[:, None], others[kind], kinds[kind]) + noise[0])
    mirrored = unit_rows(np.where(over[:, None], kinds[kind], others[kind]) + noise[1])
    near = lookalikes.nearest(np.arange(120), upright, mirrored, rng())
    codes = np.repeat(np.arange(120), 2)
    found = lookalikes.batches(codes, np.arange(240), 24, 2, 0.5, near, rng())
    together, right = [], []
    for rows, turned in found:
        kinds_in, ways = kind[codes[rows[::2]]], (over[codes[rows]] ^ turned)[::2]
        for one in set(kinds_in.tolist()):
            at = kinds_in == one
            together.append(int(at.sum()))
            right.append(len(set(ways[at].tolist())) == 1)
    drawn = [
        len(set(kind[codes[rows[::2]]].tolist()))
        for rows in sampling.identity_batches(codes, np.arange(240), 24, 2, rng())
    ]
    assert np.mean(together) > 3 * 12 / np.mean(drawn)
    assert np.mean(right) > 0.8


def test_where_mirrored_photos_are_not_shown_none_is() -> None:
    near, _, _ = some(12, 4, mirrored=False)
    codes = np.repeat(near.animals, 3)
    assert not any(turned.any() for _, turned in lookalikes.batches(codes, np.arange(36), 8, 2, 0.5, near, rng()))


def test_the_generator_decides_everything() -> None:
    near, _, _ = some(30, 9)
    codes = np.repeat(near.animals, 3)
    one, two, other = (lookalikes.batches(codes, np.arange(90), 16, 2, 0.25, near, rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, c) and np.array_equal(b, d) for (a, b), (c, d) in zip(one, two, strict=True))
    assert not all(np.array_equal(a, c) for (a, _), (c, _) in zip(one, other, strict=True))
