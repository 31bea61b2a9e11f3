"""Which photos meet which: permutations against brute force, positives, blocks, noise, and what is refused."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Set

import numpy as np
import pytest
from assignments import check_negatives, clustered, total
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from reid.errors import TrainError
from reid.train import ladder, mining
from reid.train.mining import Solver

labels_of = st.lists(st.integers(0, 3), min_size=2, max_size=7)


def best_total(
    scores: NDArray[np.float64],
    labels: list[int],
    forbidden: Set[tuple[int, int]] = frozenset(),
) -> float | None:
    """The highest total score over all permutations without a same-identity or forbidden pair; None where there is
    none.
    """
    totals = [
        sum(scores[i, j] for i, j in enumerate(order))
        for order in itertools.permutations(range(len(labels)))
        if all(
            labels[i] != labels[j] and (i, j) not in forbidden and (j, i) not in forbidden for i, j in enumerate(order)
        )
    ]
    return max(totals, default=None)


@pytest.mark.parametrize("solver", ["auto", "lap", "scipy", "priced"])
@given(labels=labels_of, seed=st.integers(0, 2**31), n_forbidden=st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_exact_assignment_has_the_best_total_of_all_permutations(
    solver: Solver, labels: list[int], seed: int, n_forbidden: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(len(labels), len(labels)))
    pairs = rng.integers(0, len(labels), (n_forbidden, 2))
    best = best_total(scores, labels, {(int(i), int(j)) for i, j in pairs})
    if best is None:
        with pytest.raises(TrainError):
            mining.assign_hard_negatives(scores, labels, forbidden=pairs, solver=solver)
        return
    partner = mining.assign_hard_negatives(scores, labels, forbidden=pairs, solver=solver)
    check_negatives(partner, np.array(labels))
    assert total(scores, partner) == pytest.approx(best)


@given(labels=labels_of, seed=st.integers(0, 2**31), n_forbidden=st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_sparse_assignment_over_all_pairs_equals_the_exact_one(labels: list[int], seed: int, n_forbidden: int) -> None:
    rng = np.random.default_rng(seed)
    n = len(labels)
    half = rng.normal(size=(n, n))
    scores = half + half.T
    pairs = rng.integers(0, n, (n_forbidden, 2))
    everyone = np.tile(np.arange(n), (n, 1))
    best = best_total(scores, labels, {(int(i), int(j)) for i, j in pairs})
    if best is None:
        with pytest.raises(TrainError):
            mining.assign_sparse(everyone, scores, labels, forbidden=pairs, rng=rng)
        return
    partner = mining.assign_sparse(everyone, scores, labels, forbidden=pairs, rng=rng)
    check_negatives(partner, np.array(labels))
    assert total(scores, partner) == pytest.approx(best)


@given(sizes=st.lists(st.integers(2, 4), min_size=1, max_size=2), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_hard_positives_have_the_lowest_total_of_all_derangements(sizes: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes)).tolist()
    scores = np.random.default_rng(seed).normal(size=(len(labels), len(labels)))
    least = min(
        sum(scores[i, j] for i, j in enumerate(order))
        for order in itertools.permutations(range(len(labels)))
        if all(labels[i] == labels[j] and i != j for i, j in enumerate(order))
    )
    partner = mining.assign_hard_positives(scores, labels)
    assert total(scores, partner) == pytest.approx(least)
    by_function = mining.assign_hard_positives(lambda rows: scores[np.ix_(rows, rows)], labels)
    assert total(scores, by_function) == pytest.approx(least)


@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=12), seed=st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_random_negatives_never_meet_their_own_identity_however_uneven_the_identities(
    sizes: list[int], seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rng = np.random.default_rng(seed)
    if 2 * max(sizes) > sum(sizes):
        with pytest.raises(TrainError, match="more than half"):
            mining.random_negatives(labels, rng)
        return
    check_negatives(mining.random_negatives(labels, rng), labels)


@given(sizes=st.lists(st.integers(1, 6), min_size=6, max_size=14), seed=st.integers(0, 2**31), k=st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_sparse_assignment_exists_even_when_the_lists_alone_allow_none(sizes: list[int], seed: int, k: int) -> None:
    assume(2 * max(sizes) <= sum(sizes))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    popular = np.tile(np.arange(k), (len(labels), 1))  # everybody lists the same few photos
    rng = np.random.default_rng(seed)
    scores = rng.random(popular.shape)
    partner = mining.assign_sparse(popular, scores, labels, rng=rng)
    check_negatives(partner, labels)


def test_blocks_pair_within_themselves_and_cover_every_photo() -> None:
    vectors, labels = clustered(60, np.full(60, 5))
    asked: list[NDArray[np.int64]] = []

    def scores(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        asked.append(rows)
        return np.asarray(vectors[rows] @ vectors[rows].T)

    partner = mining.assign_in_blocks(scores, labels, 70, rng=np.random.default_rng(1))
    check_negatives(partner, labels)
    assert sorted(np.concatenate(asked)) == list(range(300))
    assert max(len(rows) for rows in asked) <= 70
    block = np.empty(300, np.int64)
    for number, rows in enumerate(asked):
        block[rows] = number
    assert (block[partner] == block).all()


def test_blocks_keep_the_forbidden_pairs_of_the_whole() -> None:
    vectors, labels = clustered(20, np.full(20, 4))
    scores = vectors @ vectors.T
    forbidden = None
    rng = np.random.default_rng(0)
    for _ in range(4):
        partner = mining.assign_in_blocks(scores, labels, 40, forbidden=forbidden, rng=rng)
        used = {frozenset(pair) for pair in np.asarray([] if forbidden is None else forbidden).tolist()}
        assert not used & {frozenset(pair) for pair in enumerate(partner.tolist())}
        forbidden = mining.forbid(forbidden, partner)
    assert forbidden is not None and forbidden.shape == (320, 2)


@pytest.mark.parametrize("method", ["exact", "sparse"])
def test_epochs_that_forbid_what_was_used_get_new_and_ever_easier_pairs(method: str) -> None:
    vectors, labels = clustered(40, np.full(40, 3))
    scores = (vectors @ vectors.T).astype(np.float64)
    near = np.argsort(-scores, axis=1)[:, :40]
    rng = np.random.default_rng(0)
    forbidden, seen, hardness = None, set[frozenset[int]](), []
    for _ in range(5):
        if method == "exact":
            partner = mining.assign_hard_negatives(scores, labels, forbidden=forbidden)
        else:
            partner = mining.assign_sparse(
                near, np.take_along_axis(scores, near, 1), labels, forbidden=forbidden, rng=rng
            )
        check_negatives(partner, labels)
        pairs = {frozenset(pair) for pair in enumerate(partner.tolist())}
        assert not seen & pairs
        seen |= pairs
        hardness.append(total(scores, partner))
        forbidden = mining.forbid(forbidden, partner)
    assert hardness == sorted(hardness, reverse=True)


def test_noise_turns_the_hardest_pairs_into_random_ones() -> None:
    vectors, labels = clustered(100, np.full(100, 3))
    scores = vectors @ vectors.T
    rng = np.random.default_rng(0)
    hard, some, random = (
        scores[np.arange(300), mining.assign_hard_negatives(scores, labels, noise=noise, rng=rng)].mean()
        for noise in (0.0, 1.0, 1000.0)
    )
    baseline = scores[np.arange(300), mining.random_negatives(labels, rng)].mean()
    assert hard > some + 0.05 > random + 0.1
    assert random == pytest.approx(baseline, abs=0.08)


def test_noise_leaves_the_callers_scores_alone_and_is_repeatable() -> None:
    vectors, labels = clustered(30, np.full(30, 3))
    scores = vectors @ vectors.T
    before = scores.copy()
    first, second = (
        mining.assign_hard_negatives(scores, labels, noise=0.5, rng=np.random.default_rng(7)) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(scores, before)


def test_sparse_lists_keep_nearly_all_of_the_exact_hardness_without_knowing_the_other_pairs() -> None:
    vectors, labels = clustered(300, np.random.default_rng(0).integers(1, 6, 300))
    scores = vectors @ vectors.T
    near = np.argsort(-scores, axis=1)[:, :30]
    listed = np.take_along_axis(scores, near, 1)
    every = np.arange(len(labels))
    exact = scores[every, mining.assign_hard_negatives(scores, labels)].mean()
    blind = mining.assign_sparse(near, listed, labels, rng=np.random.default_rng(0))
    told = mining.assign_sparse(
        near, listed, labels, rng=np.random.default_rng(0), pair_scores=lambda i, j: scores[i, j]
    )
    check_negatives(blind, labels)
    assert 0.97 * exact <= scores[every, blind].mean() <= exact + 1e-6
    assert 0.97 * exact <= scores[every, told].mean() <= exact + 1e-6


@pytest.mark.parametrize(
    ("labels", "match"),
    [([0, 0, 0, 1], "'0' has 3 of 4 photos"), (["a"] * 5, "all photos are of one identity"), ([1], "one identity")],
)
def test_an_identity_too_large_for_its_block_is_an_error_that_names_it(labels: list[int], match: str) -> None:
    n = len(labels)
    calls: list[Callable[[], NDArray[np.int64]]] = [
        lambda: mining.assign_hard_negatives(np.zeros((n, n)), labels),
        lambda: mining.assign_in_blocks(np.zeros((n, n)), labels, n + 1),
        lambda: mining.assign_sparse(np.zeros((n, 0), np.int64), np.zeros((n, 0)), labels),
        lambda: mining.random_negatives(labels, np.random.default_rng(0)),
    ]
    for call in calls:
        with pytest.raises(TrainError, match=match) as caught:
            call()
        assert caught.value.code == "bad_training" and caught.value.next_step


def test_an_identity_that_fits_the_whole_but_not_its_block_is_an_error() -> None:
    labels = [0, 0, 0, 0, 1, 2, 3, 4]
    mining.assign_in_blocks(np.zeros((8, 8)), labels, 4, rng=np.random.default_rng(0))  # two of four: just fits
    with pytest.raises(TrainError, match="of a block") as caught:
        mining.assign_in_blocks(np.zeros((8, 8)), labels, 3, rng=np.random.default_rng(0))
    assert "larger blocks" in caught.value.next_step


def test_scores_that_are_not_numbers_are_an_error_not_an_answer() -> None:
    scores = np.zeros((4, 4))
    scores[1, 2] = np.nan
    with pytest.raises(TrainError, match="not numbers"):
        mining.assign_hard_negatives(scores, [0, 1, 2, 3])
    with pytest.raises(TrainError, match="not numbers"):
        mining.assign_sparse(np.tile(np.arange(4), (4, 1)), scores, [0, 1, 2, 3])


def test_no_photos_give_an_empty_assignment() -> None:
    for partner in (
        mining.assign_hard_negatives(np.empty((0, 0)), []),
        mining.assign_hard_negatives(np.empty((0, 0)), [], solver="priced"),
        mining.assign_in_blocks(np.empty((0, 0)), [], 10),
        mining.assign_sparse(np.empty((0, 5), np.int64), np.empty((0, 5)), []),
        mining.random_negatives([], np.random.default_rng(0)),
        mining.derangements([], np.random.default_rng(0)),
    ):
        assert partner.shape == (0,) and partner.dtype == np.int64


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: mining.assign_hard_negatives(np.zeros((3, 2)), [0, 1, 2]), "scores \\(3, 2\\) for 3 labels"),
        (lambda: mining.assign_hard_negatives(np.zeros((2, 2)), [0, 1], forbidden=[[0, 2]]), "outside 0 … 1"),
        (lambda: mining.assign_in_blocks(np.zeros((2, 2)), [0, 1], 1), "blocks of 1"),
        (lambda: mining.assign_sparse(np.full((2, 1), 7), np.zeros((2, 1)), [0, 1]), "photo 7 of 2"),
        (lambda: ladder.step_at(5, 5), "epoch 5"),
    ],
)
def test_arguments_that_do_not_fit_are_value_errors(call: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


def test_derangements_are_all_equally_likely() -> None:
    rng = np.random.default_rng(0)
    labels = ["a", "b", "a", "b", "a", "a"]
    counts = Counter(tuple(mining.derangements(labels, rng).tolist()) for _ in range(9000))
    assert len(counts) == 9  # of four photos, times the one of two
    assert all(partner[1] == 3 and partner[3] == 1 for partner in counts)
    assert all(p != i for partner in counts for i, p in enumerate(partner))
    chi_square = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert chi_square < 26.1  # 8 degrees of freedom, p = .001


def test_a_lonely_photo_has_no_positive() -> None:
    calls: list[Callable[[], NDArray[np.int64]]] = [
        lambda: mining.derangements(["a", "b", "a"], np.random.default_rng(0)),
        lambda: mining.assign_hard_positives(np.zeros((3, 3)), ["a", "b", "a"]),
    ]
    for call in calls:
        with pytest.raises(TrainError, match="1 identities have a single photo \\(first: 'b'\\)"):
            call()


def test_the_schedule_at_full_length_is_the_published_ladder() -> None:
    steps = [ladder.step_at(epoch) for epoch in range(400)]
    assert [s.noise for s in steps[:10]] == [1000.0] * 10
    assert [round(s.noise, 3) for s in steps[10:60:5]] == [round(100 * 10 ** (-0.2 * i), 3) for i in range(10)]
    assert Counter(s.noise for s in steps[60:250]) == {1.0: 90, 0.5: 50, 0.25: 50}
    assert Counter((s.noise, s.learning_rate) for s in steps[250:]) == {
        (1.0, 64e-5): 50,
        (0.5, 16e-5): 50,
        (0.25, 4e-5): 40,
        (0.25, 1e-5): 10,
    }
    assert [s.weight_decay for s in steps] == [0.0] * 250 + [2e-4] * 150
    assert [epoch for epoch, s in enumerate(steps) if s.rescore] == list(range(0, 400, 5))


@pytest.mark.parametrize("total_epochs", [1, 7, 20, 40, 1000])
def test_a_schedule_of_any_length_starts_random_and_ends_hard(total_epochs: int) -> None:
    steps = [ladder.step_at(epoch, total_epochs) for epoch in range(total_epochs)]
    assert steps[0].noise == 1000.0 and steps[0].rescore
    first_part = [s.noise for s in steps if s.weight_decay == 0]
    assert first_part == sorted(first_part, reverse=True)
    if total_epochs >= 40:
        assert steps[-1] == ladder.Step(0.25, 1e-5, 2e-4, steps[-1].rescore)
        assert math.isclose(sum(s.rescore for s in steps), min(80, total_epochs), abs_tol=1)


@given(st.integers(0, 10_000), st.integers(4, 12), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_random_pairs_keep_off_those_that_are_forbidden(seed: int, animals: int, n_forbidden: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(animals), 4)
    forbidden = rng.integers(0, len(labels), (n_forbidden, 2))
    never = {(int(a), int(b)) for a, b in forbidden} | {(int(b), int(a)) for a, b in forbidden}
    try:
        partner = mining.random_negatives(labels, rng, forbidden=forbidden)
    except TrainError:
        with pytest.raises(TrainError):
            mining.assign_hard_negatives(np.zeros((len(labels),) * 2), labels, forbidden=forbidden)
        return
    check_negatives(partner, labels)
    assert not never & set(enumerate(partner.tolist()))


def test_the_noise_of_a_share_of_the_training_is_that_of_its_epoch() -> None:
    assert [ladder.noise_at(epoch / 400) for epoch in range(400)] == [ladder.step_at(e).noise for e in range(400)]
    assert ladder.noise_at(1.0) == 0.25
