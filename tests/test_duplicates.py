"""Near-duplicates by perceptual hash: the same pairs as comparing all with all, in far less work."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from reid import duplicates
from reid.duplicates import NearDuplicates, near_duplicates
from reid.images import perceptual_hash, read


def as_list(found: NearDuplicates) -> list[tuple[int, int, int]]:
    assert (found.first.dtype, found.second.dtype, found.distance.dtype) == (np.int64, np.int64, np.uint8)
    return list(zip(found.first.tolist(), found.second.tolist(), found.distance.tolist(), strict=True))


def all_pairs(hashes: list[int], limit: int, other: list[int] | None = None) -> list[tuple[int, int, int]]:
    pairs = []
    for i, a in enumerate(hashes):
        for j, b in enumerate(hashes if other is None else other):
            distance = bin(a ^ b).count("1")
            if distance <= limit and (other is not None or i < j):
                pairs.append((i, j, distance))
    return pairs


def clustered(n: int, seed: int = 0) -> NDArray[np.uint64]:
    """Random hashes, two thirds of which are others with a few bits changed or none."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, n, np.uint64)
    for i in range(n // 3, n):
        hashes[i] = hashes[rng.integers(0, i)]
        for bit in rng.integers(0, 64, rng.integers(0, 5)):
            hashes[i] ^= np.uint64(1 << int(bit))
    return rng.permutation(hashes)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 5, 15])
def test_the_pairs_are_those_of_comparing_all_with_all(limit: int) -> None:
    hashes = clustered(300)
    assert as_list(near_duplicates(hashes, limit)) == all_pairs(hashes.tolist(), limit)
    other = np.concatenate([clustered(150, 1), hashes[:90] ^ np.uint64(5)])
    assert as_list(near_duplicates(hashes, limit, other)) == all_pairs(hashes.tolist(), limit, other.tolist())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 15), max_size=30), st.integers(0, 6))
def test_any_hashes_give_the_pairs_of_comparing_all_with_all(hashes: list[int], limit: int) -> None:
    assert as_list(near_duplicates(np.array(hashes, np.uint64), limit)) == all_pairs(hashes, limit)


def test_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = clustered(200)
    whole = as_list(near_duplicates(hashes, 3))
    monkeypatch.setattr(duplicates, "_CHUNK", 7)
    assert as_list(near_duplicates(hashes, 3)) == whole


def test_no_hashes_give_no_pairs() -> None:
    nothing = np.empty(0, np.uint64)
    assert len(near_duplicates(nothing)) == 0
    assert len(near_duplicates(nothing, 2, clustered(5))) == 0
    assert len(near_duplicates(clustered(5), 2, nothing)) == 0
    with pytest.raises(ValueError, match="0 to 15"):
        near_duplicates(nothing, 16)


def test_two_hundred_thousand_photos_take_seconds_not_hours() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 200_000, np.uint64)
    hashes[1000:1500] = hashes[:500] ^ np.uint64(0x8000000000000001)
    begin = time.process_time()
    found = near_duplicates(hashes, 2)
    assert time.process_time() - begin < 20  # comparing all with all: 2e10 pairs
    assert as_list(found) == [(i, i + 1000, 2) for i in range(500)]


def test_the_near_duplicates_among_real_flukes_are_found(shared_data: Path) -> None:
    with open(shared_data / "flukes" / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    hashes = np.array([perceptual_hash(read(shared_data / "flukes" / row["path"]).pixels) for row in rows], np.uint64)
    found = near_duplicates(hashes, 2)
    names = [row["identity"] for row in rows]
    named = [
        names[a] == names[b]
        for a, b in zip(found.first, found.second, strict=True)
        if "new_whale" not in (names[a], names[b])
    ]
    assert 600 <= len(named) <= 650  # the data's own notes count 628
    assert np.mean(named) > 0.97
