"""Identities that may be one animal: the pairs a loop finds, kept out of the assignment or merged."""

from __future__ import annotations

import numpy as np
import pytest
from assignments import clustered
from numpy.typing import NDArray

from reid.train import mining, suspects
from reid.train.listed_pairs import nearest_others


def test_suspects_are_the_pairs_a_loop_finds_and_are_kept_out_of_the_assignment() -> None:
    vectors, labels = clustered(12, np.full(12, 3), dim=6)
    scores = (vectors @ vectors.T).astype(np.float64)
    expected = sorted(
        (
            (scores[i, j], i, j)
            for i in range(36)
            for j in range(i + 1, 36)
            if labels[i] != labels[j] and scores[i, j] > 0.8
        ),
        reverse=True,
    )
    found = suspects.find_suspects(scores, labels, 0.8)
    assert len(expected) > 3
    assert found.pairs.tolist() == [[i, j] for _, i, j in expected]
    np.testing.assert_allclose(found.scores, [score for score, _, _ in expected])
    everyone = np.tile(np.arange(36), (36, 1))
    listed = suspects.find_suspects_listed(everyone, scores, labels, 0.8)
    assert listed.pairs.tolist() == found.pairs.tolist()
    partner = mining.assign_hard_negatives(scores, labels, forbidden=found.pairs)
    assert scores[np.arange(36), partner].max() <= 0.8


def test_merged_identities_are_joined_through_chains_and_never_paired() -> None:
    labels = ["a", "a", "b", "c", "d", "d", "e", "f", "g"]
    codes = suspects.merged(labels, [[1, 2], [2, 3]])
    assert codes[0] == codes[1] == codes[2] == codes[3]
    assert len(set(codes[3:].tolist())) == 5 and codes[4] == codes[5]
    partner = mining.assign_hard_negatives(np.ones((9, 9)), codes)
    assert (codes[partner] != codes).all()
    assert suspects.merged(labels, np.empty((0, 2))).tolist() == [0, 0, 1, 2, 3, 3, 4, 5, 6]


def test_a_chain_is_cut_before_it_holds_too_many_photos() -> None:
    labels = [0, 0, 1, 1, 2, 2, 3, 3]
    codes = suspects.merged(labels, [[0, 2], [2, 4], [4, 6]], share=0.5)
    assert codes[0] == codes[2] and codes[4] == codes[6] and codes[0] != codes[4]


def split_herd(sure_noise: float = 0.3) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """30 animals of four photos; half of animal 3's are called animal 30."""
    rng = np.random.default_rng(2)
    animal = np.repeat(np.arange(30), 4)
    rows = rng.normal(size=(30, 24))[animal] + sure_noise * rng.normal(size=(120, 24))
    labels = animal.copy()
    labels[14:16] = 30
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def test_an_animal_under_two_names_is_found_and_nobody_else() -> None:
    rows, labels = split_herd()
    near = nearest_others(rows, labels, 10)
    found = suspects.likely(rows, near, labels, 0.9)
    assert [set(labels[pair]) for pair in found.pairs] == [{3, 30}]
    best = max(float(rows[i] @ rows[j]) for i in (12, 13) for j in (14, 15))
    assert found.scores == pytest.approx([best], abs=1e-6)
    assert not len(suspects.likely(rows, near, labels, 1.0).pairs)
    together = np.arange(120)
    together[12:16] = 12  # one picture of several animals
    assert not len(suspects.likely(rows, near, labels, 0.9, apart=together).pairs)


@pytest.mark.parametrize("sure", [0.5, 0.7, 0.9])
def test_who_is_suspected_is_what_an_isotonic_regression_says(sure: float) -> None:
    isotonic = pytest.importorskip("sklearn.isotonic")
    rows, labels = split_herd(1.0)
    near = nearest_others(rows, labels, 4)
    pairs = [(i, int(j)) for i in range(120) for j in near[i]]
    pairs += [(i, j) for i in range(120) for j in range(120) if i != j and labels[i] == labels[j]]
    two = [tuple(sorted((int(labels[i]), int(labels[j])))) for i, j in pairs]
    votes = [1 / two.count(one) for one in two]
    scores = [float(rows[i] @ rows[j]) for i, j in pairs]
    regression = isotonic.IsotonicRegression(out_of_bounds="clip")
    told = regression.fit(scores, [float(a == b) for a, b in two], sample_weight=votes).predict(scores)
    expected = {one for one, p in zip(two, told, strict=True) if one[0] != one[1] and p >= sure - 1e-9}
    found = suspects.likely(rows, near, labels, sure)
    assert {tuple(sorted(labels[pair].tolist())) for pair in found.pairs} == expected
    assert len(found.pairs) == len(expected) and (sure == 0.9 or expected)


def test_no_photos_are_no_suspects() -> None:
    nothing = np.empty((0, 3), np.int64)
    assert not len(suspects.likely(np.empty((0, 4), np.float32), nothing, [], 0.9).pairs)
    lonely = np.eye(3, dtype=np.float32)
    assert not len(suspects.likely(lonely, nearest_others(lonely, np.arange(3), 2), [0, 1, 2], 0.9).pairs)
