"""Identities that may be one animal: the pairs a loop finds, kept out of the assignment or merged."""

from __future__ import annotations

import numpy as np
from assignments import clustered

from reid.train import mining, suspects


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
