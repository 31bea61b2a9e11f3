"""What an epoch shows, counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.errors import TrainError
from reid.train import sampling
from reid.train.recipe import SamplingConfig

PLAIN = SamplingConfig()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=20), st.integers(0, 12), st.integers(2, 7))
def test_every_photo_is_shown_and_every_identity_often_enough(sizes: list[int], least: int, batch: int) -> None:
    codes = np.repeat(np.arange(len(sizes)), sizes)
    shown = np.concatenate(sampling.epoch(codes, replace(PLAIN, least=least), batch, 0.0, rng()))
    counts = Counter(codes[shown].tolist())
    assert set(shown.tolist()) == set(range(len(codes)))
    assert all(counts[c] >= max(size, least) for c, size in enumerate(sizes))
    wanted = sum(max(size, least if least > 1 else 0) for size in sizes)
    assert wanted <= len(shown) < wanted + batch
    rows = sampling.oversampled(codes, np.arange(len(codes)), least, rng())
    often = np.bincount(rows, minlength=len(codes))
    for c in range(len(sizes)):  # repeats are shared evenly by an identity's photos
        assert np.ptp(often[codes == c]) <= 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=20), st.integers(2, 4), st.integers(4, 16))
def test_batches_of_identities_hold_so_many_photos_of_each(sizes: list[int], photos: int, size: int) -> None:
    codes = np.repeat(np.arange(len(sizes)), sizes)
    batches = sampling.identity_batches(codes, np.arange(len(codes)), size, photos, rng())
    assert set(np.concatenate(batches).tolist()) == set(range(len(codes)))
    for batch in batches:
        assert len(batch) == max(1, size // photos) * photos
        groups = codes[batch].reshape(-1, photos)
        assert (groups == groups[:, :1]).all()


def test_a_batch_of_identities_is_mirrored_animal_by_animal() -> None:
    codes = np.array([0, 0, 1, 1, 2, 2, -1, -1, -1, -1])
    drawn = [sampling.mirrored(codes, "identities", rng(seed)) for seed in range(40)]
    assert all((one[:6:2] == one[1:6:2]).all() for one in drawn)
    means = np.mean(drawn, axis=0)
    assert (np.abs(means - 0.5) < 0.3).all() and any(one[6] != one[7] for one in drawn)
    alone = [sampling.mirrored(codes, "shuffled", rng(seed)) for seed in range(40)]
    assert any(one[0] != one[1] for one in alone)


def test_so_many_photos_of_unknown_animals_are_in_every_batch() -> None:
    codes = np.array([0, 0, 1, 1, 2, 3, 4, 5, -1, -1, -1])
    for kind in ("shuffled", "identities"):
        config = SamplingConfig(kind=kind, new_share=0.25)  # type: ignore[arg-type]
        batches = sampling.epoch(codes, config, 8, 0.0, rng())
        assert [int((codes[b] < 0).sum()) for b in batches] == [2] * len(batches)
        assert {len(b) for b in batches} == {8}
        held = np.where(codes < 0, -2, codes)  # held out, not without a name: never shown
        found = np.concatenate(sampling.epoch(held, config, 8, 0.0, rng()))
        assert (codes[found] >= 0).all()
    without = sampling.epoch(codes[:8], SamplingConfig(new_share=0.25), 8, 0.0, rng())
    assert [len(b) for b in without] == [8]
    assert all((codes[b] >= 0).all() for b in sampling.epoch(codes, PLAIN, 4, 0.0, rng()))


def test_large_identities_come_first_for_a_while() -> None:
    codes = np.repeat([0, 1, 2, 3], [5, 4, 1, 2])
    config = SamplingConfig(large_first=4, large_for=0.3)
    early, late = (np.concatenate(sampling.epoch(codes, config, 3, done, rng())) for done in (0.1, 0.3))
    assert set(codes[early].tolist()) == {0, 1} and set(codes[late].tolist()) == {0, 1, 2, 3}
    few = SamplingConfig(large_first=5, large_for=0.3)  # one identity alone teaches nothing
    assert set(codes[np.concatenate(sampling.epoch(codes, few, 3, 0.1, rng()))].tolist()) == {0, 1, 2, 3}


def test_weighted_photos_are_drawn_by_one_over_the_root_of_their_identitys_size() -> None:
    codes = np.repeat([0, 1], [64, 4])
    drawn = np.concatenate([sampling.weighted(codes, np.arange(68), rng(seed)) for seed in range(60)])
    share = float((codes[drawn] == 1).mean())
    assert share == pytest.approx(4 * 0.5 / (64 * 0.125 + 4 * 0.5), abs=0.02)


def test_the_generator_decides_everything() -> None:
    codes = np.repeat(np.arange(9), 3)
    for config in (PLAIN, SamplingConfig(kind="identities"), SamplingConfig(weighted=True), SamplingConfig(least=5)):
        one, two, other = (sampling.epoch(codes, config, 5, 0.0, rng(seed)) for seed in (1, 1, 2))
        assert all((a == b).all() for a, b in zip(one, two, strict=True))
        assert any((a != b).any() for a, b in zip(one, other, strict=True))


def test_nothing_to_show_is_an_error() -> None:
    with pytest.raises(TrainError, match="no photos of known animals"):
        sampling.epoch(np.array([-1, -1]), PLAIN, 4, 0.0, rng())
