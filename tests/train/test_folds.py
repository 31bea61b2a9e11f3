"""Folds that keep sightings whole and animals findable, and out-of-fold scores as loops give them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reid.embed import unit_rows
from reid.errors import TrainError
from reid.train import folds


def crowd(seed: int = 0, animals: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Codes and sightings: 1 to 5 sightings an animal, 1 to 3 photos each, some photos without a name; a few
    sightings show two animals."""
    rng = np.random.default_rng(seed)
    codes, groups, number = [], [], 0
    for animal in range(animals):
        for _ in range(rng.integers(1, 6)):
            for _ in range(rng.integers(1, 4)):
                codes.append(animal)
                groups.append(number)
            if rng.random() < 0.1:
                codes.append((animal + 1) % animals)
                groups.append(number)
            number += 1
    codes += [-1] * 7
    groups += [0, 1, *range(number, number + 5)]
    return np.array(codes), np.array(groups)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [2, 3, 5])
def test_sightings_are_whole_and_animals_spread(k: int, seed: int) -> None:
    codes, groups = crowd(seed)
    found = folds.assign(codes, groups, k, seed=seed)
    assert set(found[codes >= 0]) == set(range(k)) and (found[codes < 0] == -1).all()
    for group in np.unique(groups[codes >= 0]):
        assert len(set(found[(groups == group) & (codes >= 0)])) == 1
    findable = folds.findable(codes, groups, found)
    for row, code in enumerate(codes):
        others = found[(codes == code) & (codes >= 0)]
        assert findable[row] == (code >= 0 and len(set(others)) > 1)
    lone = [c for c in range(30) if len(set(groups[codes == c])) > 1 and not findable[codes == c].any()]
    assert len(lone) <= 1  # a sighting of two animals may force one together
    sizes = np.bincount(found[codes >= 0], minlength=k)
    assert sizes.max() - sizes.min() <= 0.25 * sizes.sum() / k + 3


def test_the_same_seed_gives_the_same_folds() -> None:
    codes, groups = crowd()
    first, again, other = (folds.assign(codes, groups, 4, seed=s) for s in (3, 3, 4))
    assert (first == again).all() and (first != other).any()


def test_by_identity_no_animal_is_in_two_folds() -> None:
    codes, groups = crowd(2)
    found = folds.assign(codes, groups, 3, by="identity")
    for code in range(30):
        assert len(set(found[codes == code])) == 1
    for group in np.unique(groups[codes >= 0]):
        assert len(set(found[(groups == group) & (codes >= 0)])) == 1
    assert np.bincount(found[codes >= 0]).min() > 0


@pytest.mark.parametrize("by", ["sighting", "identity"])
def test_out_of_fold_scores_are_those_of_loops(by: folds.By, tmp_path: Path) -> None:
    codes, groups = crowd(1, animals=9)
    rng = np.random.default_rng(0)
    dealt = folds.assign(codes, groups, 3, by=by)
    vectors = [unit_rows(rng.normal(size=(len(codes), 6)).astype(np.float32)) for _ in range(3)]
    annotations = np.arange(len(codes)) * 10
    found = folds.out_of_fold(vectors, codes, groups, dealt, annotations, by)
    rows = [r for r in range(len(codes)) if codes[r] >= 0]
    assert found.annotations.tolist() == [10 * r for r in rows] and found.identities.tolist() == list(range(9))
    points = []
    for line, row in enumerate(rows):
        model = vectors[dealt[row]]
        expected = np.full(9, -np.inf)
        for other in rows:
            apart = dealt[other] != dealt[row] if by == "sighting" else True
            if apart and groups[other] != groups[row]:
                expected[codes[other]] = max(expected[codes[other]], float(model[other] @ model[row]))
        np.testing.assert_allclose(found.scores[line], expected, atol=1e-6)
        there = np.isfinite(expected[codes[row]])
        assert found.truth[line] == (codes[row] if there else -1) and found.folds[line] == dealt[row]
        if there:
            rank = int((expected >= expected[codes[row]]).sum())
            points.append(1 / rank if rank <= 5 else 0.0)
    assert found.map_at_5 == pytest.approx(np.mean(points))
    folds.write(tmp_path / "kept.npz", found)
    again = folds.read(tmp_path / "kept.npz")
    for name in ("scores", "annotations", "identities", "folds", "truth"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


def test_what_cannot_be_folds_is_a_typed_error(tmp_path: Path) -> None:
    codes, groups = np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3])
    with pytest.raises(TrainError, match="cannot be 5 folds"):
        folds.assign(codes, groups, 5)
    with pytest.raises(TrainError, match="cannot be 1 folds"):
        folds.assign(codes, groups, 1)
    with pytest.raises(TrainError, match="no animal has photos of two sightings"):
        folds.assign(np.arange(4), np.arange(4), 2)
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    for name in ("bad.npz", "absent.npz"):
        with pytest.raises(TrainError, match="cannot be read"):
            folds.read(tmp_path / name)
