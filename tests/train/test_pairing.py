"""Pairs of a whole network's training: hard, none twice, harder by and by, and never of animals that may be one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from few_flukes import tiny
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from reid.embed import unit_rows  # noqa: E402
from reid.errors import ConfigError, TrainError  # noqa: E402
from reid.train import siamese as heads  # noqa: E402
from reid.train.pair_scores import PairScores  # noqa: E402
from reid.train.pairing import Pairing  # noqa: E402

DIM, ANIMALS, EACH = 32, 40, 4


def vectors(noise: float = 0.4) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    own = rng.normal(size=(ANIMALS, DIM))
    return unit_rows((np.repeat(own, EACH, axis=0) + noise * rng.normal(size=(ANIMALS * EACH, DIM))).astype(np.float32))


def pairing(codes: NDArray[np.int64] | None = None, sampling: str = "", network: str = "") -> Pairing:
    """Of a recipe by pairs, with these lines in its sections."""
    text = (
        f'[laptop.sampling]\nkind = "pairs"\n{sampling}\n[laptop.network]\n{network}\n[[laptop.loss]]\nkind = "pair"\n'
    )
    every = np.repeat(np.arange(ANIMALS), EACH) if codes is None else codes
    return Pairing(tiny(text), DIM, every)


def split() -> NDArray[np.int64]:
    """Codes in which half of animal 3's photos are called another animal, and one of a single photo comes last."""
    codes = np.repeat(np.arange(ANIMALS), EACH)
    codes[14:16] = ANIMALS
    return np.append(codes, ANIMALS + 1)


@pytest.mark.parametrize("negatives", ["auto", "exact", "blocks", "sparse", "random"])
def test_animals_that_may_be_one_are_named_and_not_set_against_each_other(negatives: str) -> None:
    codes = split()
    pairs = pairing(codes, f'negatives = "{negatives}"\nblock = 80')
    rng = np.random.default_rng(0)
    pairs.rescore(vectors())
    assert [set(codes[pairs.rows[pair]]) for pair in pairs.suspects.pairs] == [{3, ANIMALS}]
    for done in (0.0, 0.3, 0.7):
        pairs.assign(done, rng)
        against = codes[pairs.rows[pairs.negative]]
        assert not {3, ANIMALS} & set(against[12:16]) and (against != codes[pairs.rows]).all()
        assert sorted(pairs.negative) == list(range(ANIMALS * EACH))
        assert (codes[pairs.rows[pairs.positive]] == codes[pairs.rows]).all()
        assert (pairs.positive != np.arange(len(pairs.rows))).all()


def test_nobody_is_suspected_where_a_recipe_says_so() -> None:
    pairs = pairing(split(), 'suspect = 1.0\nnegatives = "exact"')
    pairs.rescore(vectors())
    pairs.assign(0.9, np.random.default_rng(0))
    assert not len(pairs.suspects.pairs)
    assert {3, ANIMALS} & set(split()[pairs.rows[pairs.negative]][12:16])  # the hardest of all, and wrong
    with pytest.raises(ConfigError, match="suspect"):
        pairing(None, "suspect = 0.1")
    with pytest.raises(ConfigError, match="negatives"):
        pairing(None, 'negatives = "lap"')


@pytest.mark.parametrize("negatives", ["exact", "sparse", "random"])
def test_no_pair_comes_twice_before_new_scores(negatives: str) -> None:
    pairs = pairing(None, f'negatives = "{negatives}"')
    rng = np.random.default_rng(0)
    pairs.rescore(vectors())
    used: set[frozenset[int]] = set()
    for _ in range(4):
        pairs.assign(0.9, rng)
        now = {frozenset(pair) for pair in enumerate(pairs.negative.tolist())}
        assert not used & now
        used |= now
    pairs.rescore(vectors())
    assert not len(pairs.used)


@pytest.mark.parametrize("negatives", ["exact", "blocks", "sparse", "random"])
@pytest.mark.parametrize("sizes", [[2] * 8, [5] * 2, [4] * 3, [6, 2, 2, 2], [5, 5], [2, 2]])
def test_few_photos_meet_again_where_no_new_pairs_are_left(sizes: list[int], negatives: str) -> None:
    codes, rng = np.repeat(np.arange(len(sizes)), sizes), np.random.default_rng(0)
    pairs = pairing(codes, f'negatives = "{negatives}"\nrescore = 100')
    pairs.rescore(vectors()[: len(codes)])
    before: set[frozenset[int]] = set()
    for epoch in range(20):
        pairs.assign(epoch / 20, rng)
        assert (codes[pairs.negative] != codes).all() and sorted(pairs.negative) == list(range(len(codes)))
        now = {frozenset(pair) for pair in enumerate(pairs.negative.tolist())}
        assert epoch != 1 or not before & now or len(codes) < 10  # new pairs come first
        before = now


def test_pairs_that_must_never_be_are_not_forgotten_with_those_of_earlier_epochs() -> None:
    labels, rows = np.repeat(np.arange(4), 3), vectors()[:12]
    for negatives in ("exact", "sparse", "random"):
        pairs = pairing(labels, f'negatives = "{negatives}"')
        scores = PairScores(pairs.head.plain(), rows, pairs.config.negatives)
        never, used = np.array([[0, 3], [0, 4], [0, 5], [0, 6]]), np.empty((0, 2), np.int64)
        for _ in range(12):
            partner, used = scores.fresh(labels, pairs.config, 0.0, never, used, np.random.default_rng(1))
            assert partner[0] > 6 and 0 not in partner[3:7]
        everyone = np.array([[0, other] for other in range(3, 12)])
        with pytest.raises(TrainError, match="forbidden pairs leave no assignment") as caught:
            scores.fresh(labels, pairs.config, 0.0, everyone, used, np.random.default_rng(1))
        assert "suspect" in caught.value.next_step


def hardness(partner: Any, rows: NDArray[np.float32]) -> float:
    return float(np.einsum("pd,pd->p", rows, rows[partner]).mean())


def test_pairs_follow_the_noise_ladder_and_get_no_harder_than_among_says() -> None:
    found = {}
    for among in (0, 16):
        for done in (0.0, 0.6):
            torch.manual_seed(0)  # a head that has learnt nothing yet scores by chance
            pairs = pairing(None, f'negatives = "exact"\namong = {among}')
            pairs.rescore(vectors(1.0))
            pairs.assign(done, np.random.default_rng(0))
            found[among, done] = hardness(pairs.negative, vectors())
    assert max(found[0, 0.0], found[16, 0.0]) < 0.05 < found[16, 0.6] < found[0, 0.6]


def test_hard_positives_are_the_least_alike() -> None:
    found = {}
    for hard in ("true", "false"):
        pairs = pairing(None, f'negatives = "exact"\nhard_positives = {hard}')
        pairs.rescore(vectors(1.0))
        pairs.assign(0.9, np.random.default_rng(0))
        found[hard] = hardness(pairs.positive, vectors(1.0))
    assert found["true"] < found["false"] - 0.01


def test_auto_is_settled_by_the_photos_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pairing().config.negatives == "exact"
    monkeypatch.setattr(heads, "EXACT", 100)
    assert pairing().config.negatives == "sparse"


def test_half_precision_of_the_network_does_not_reach_the_head() -> None:
    pairs, rows = pairing(), torch.from_numpy(vectors()[:12])
    plain = pairs.loss(rows)
    with torch.autocast("cpu", torch.bfloat16):
        assert pairs.loss(rows).item() == plain.item()
