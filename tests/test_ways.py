"""Ways to fuse compete: a challenger takes over where it is better beyond chance, and the record says by how much."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from reid import fusion, measure, score, ways
from reid.crowding import Crowding
from reid.fusion import EMBEDDING, NAMES, PRIOR_FUSION, WIDE_NAMES, Fusion
from reid.leaving_out import LeftOut
from reid.measure import Asked, Fused, Gallery
from reid.score import ValidatorConfig

Floats = NDArray[np.float32]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A validator of few trees."""
    monkeypatch.setattr(score, "ValidatorConfig", lambda: ValidatorConfig(rounds=12, depth=2, folds=3))


def answered(kind: Fusion, ranks: list[int]) -> Fused:
    """Photos of one animal each, all known; nothing else is asked of them here."""
    n = len(ranks)
    nothing, every = np.zeros(n), np.ones(n, bool)
    cases = LeftOut(np.arange(n), nothing, np.array(ranks), np.zeros((n, 5)), every, every, 0, nothing)
    return Fused(kind, cases, (), ())


def test_a_challenger_that_is_better_by_chance_alone_stays_outside() -> None:
    default = answered(PRIOR_FUSION, [1, 2] * 40)
    worse = answered(EMBEDDING, [3] * 80)
    luck = answered(Fusion("logistic"), [1, 2] * 38 + [1] * 4)
    winner, tried = ways.chosen([worse, default], [luck])
    assert winner is default
    assert [(w.kind, w.default, w.in_force) for w in tried] == [
        ("logistic", False, False),
        ("prior", True, True),
        ("embedding", False, False),
    ]
    assert tried[0].gain == pytest.approx(1 / 80) and tried[0].gain_low <= 0
    assert (tried[1].gain, tried[1].gain_low) == (0, 0) and tried[2].gain_high < 0


def test_a_challenger_that_is_better_beyond_chance_takes_over() -> None:
    default = answered(PRIOR_FUSION, [1, 2] * 40)
    better = answered(Fusion("power"), [1, 2, 1, 1] * 20)
    winner, tried = ways.chosen([default], [answered(Fusion("logistic"), [2] * 80), better])
    assert winner is better
    assert (tried[0].kind, tried[0].in_force, tried[0].gain) == ("power", True, pytest.approx(1 / 8))
    assert 0 < tried[0].gain_low < 1 / 8 < tried[0].gain_high
    json.loads(json.dumps([way.to_dict() for way in tried]))


def test_the_more_challengers_the_surer_the_best_must_be() -> None:
    default = answered(PRIOR_FUSION, [1, 2] * 100)
    some = answered(Fusion("power"), [1, 2] * 96 + [1] * 8)
    lows = []
    for n in (1, 10):
        others = [answered(Fusion("logistic"), [4] * 200) for _ in range(n - 1)]
        lows.append(next(w for w in ways.chosen([default], [*others, some])[1] if w.kind == "power").gain_low)
    assert lows[1] < lows[0]


def test_without_challengers_the_best_of_the_present_ways_serves() -> None:
    plain, prior, trees = (
        answered(EMBEDDING, [1] * 30),
        answered(PRIOR_FUSION, [3] * 30),
        answered(Fusion("trees"), [2] * 30),
    )
    assert ways.chosen([plain, prior, trees], [])[0] is plain
    assert ways.chosen([prior, trees], [])[0] is trees
    assert ways.chosen([plain], [])[0] is plain


def test_the_embedder_alone_serves_only_where_it_is_clearly_better() -> None:
    prior = answered(PRIOR_FUSION, [1, 2] * 100)
    hardly = answered(EMBEDDING, [2, 1] * 99 + [1, 1])
    assert hardly.map_at_5 > prior.map_at_5
    assert ways.chosen([hardly, prior], [])[0] is prior
    clearly = answered(EMBEDDING, [1, 2] * 90 + [1] * 20)
    assert ways.chosen([clearly, prior], [])[0] is clearly


def world(columns: dict[str, float], names: tuple[str, ...] = NAMES, seed: int = 0) -> tuple[Gallery, list[Asked]]:
    """Forty animals of three photos; of an own photo each of these columns says so by as many deviations. One in three
    candidates was compared by geometry.
    """
    rng = np.random.default_rng(seed)
    individuals = np.repeat(np.arange(40), 3)
    count = len(individuals)
    gallery = Gallery(
        tuple(map(str, range(count))),
        np.eye(count, dtype=np.float32),
        individuals,
        np.arange(count),
        Crowding.none(count),
    )
    asked = []
    for query in range(0, count, 3):
        strangers = np.setdiff1d(np.arange(count), [query, query + 1, query + 2])
        rows = np.r_[query + 1, query + 2, rng.choice(strangers, 16, replace=False)]
        features = rng.normal(size=(len(rows), len(names))).astype(np.float32)
        same = individuals[rows] == individuals[query]
        for name, gap in columns.items():
            features[same, names.index(name)] += gap
        features[3::3, len(fusion.SOURCE_NAMES) : len(NAMES)] = np.nan
        other = np.flatnonzero(~same)
        asked.append(Asked(query, rows, features, rows[other], features[other]))
    return gallery, asked


def test_calibrated_sources_find_what_several_columns_say_together_and_what_is_read_back_says_the_same() -> None:
    gallery, asked = world({"cosine": 1.5, "log_votes": 1.5, "inliers": 1.5})
    plain = measure.fused(gallery, asked, EMBEDDING, "max")
    found = measure.combined(gallery, asked, "max")
    assert [one.fusion.kind for one in found] == ["logistic", "power"]
    for one in found:
        assert one.map_at_5 > plain.map_at_5 + 0.05
        again = Fusion.from_dict(json.loads(json.dumps(one.fusion.to_dict())))
        for block in asked[:5]:
            scores = one.fusion.scores(block.known)
            np.testing.assert_array_equal(again.scores(block.known), scores)
            assert ((scores > 0) & (scores < 1)).all()
        assert again.scores(asked[0].known[:0]).shape == (0,)


def test_the_mean_of_two_ways_averages_their_log_odds_and_is_read_back() -> None:
    gallery, asked = world({"cosine": 1.5, "log_votes": 1.5, "inliers": 1.5})
    trees, logistic = measure.fitted(gallery, asked, "max"), measure.combined(gallery, asked, "max")[0]
    assert trees is not None
    mean = measure.averaged(gallery, asked, [trees, logistic], "max")
    assert mean is not None and mean.fusion.kind == "mean" and mean.fusion.curve is not None
    for at, one in enumerate(asked):
        for scores, parts in ((mean.known[at], (trees.known[at], logistic.known[at])),):
            odds = sum(np.log(part) - np.log1p(-part) for part in parts) / 2
            np.testing.assert_allclose(scores, mean.fusion.curve.probability(odds), rtol=1e-6)
        assert len(mean.unknown[at]) == len(one.others)
    again = Fusion.from_dict(json.loads(json.dumps(mean.fusion.to_dict())))
    block = asked[0].known
    scores = mean.fusion.scores(block)
    np.testing.assert_array_equal(again.scores(block), scores)
    odds = sum(np.log(p) - np.log1p(-p) for p in (trees.fusion.scores(block), logistic.fusion.scores(block))) / 2
    np.testing.assert_allclose(scores, mean.fusion.curve.probability(odds), rtol=1e-6)
    assert again.scores(block[:0]).shape == (0,)
    raw = mean.fusion.to_dict()
    for damage in ({"parts": raw["parts"][:1]}, {"parts": None}, {"curve": None}):
        with pytest.raises(ValueError):
            Fusion.from_dict(raw | damage)


def test_the_mean_competes_for_the_default_and_the_calibrated_sources_challenge_it() -> None:
    gallery, asked = world({"cosine": 1.5, "log_votes": 1.5, "inliers": 1.5})
    defaults, challengers = ways.competing(gallery, asked, "max")
    assert [one.fusion.kind for one in defaults] == ["embedding", "prior", "trees", "mean"]
    assert [one.fusion.kind for one in challengers] == ["logistic", "power"]
    assert [part.kind for part in defaults[-1].fusion.parts] == ["prior", "trees", "logistic", "power"]
    assert defaults[-1].fusion.pairs == defaults[2].fusion.pairs > 0
    other = ways.competing(gallery, asked, "max", general=fusion.PRIOR_VOTES)[0]
    assert other[1].fusion is fusion.PRIOR_VOTES and other[-1].fusion.parts[0] is fusion.PRIOR_VOTES
    wide = ways.competing(*world({"siamese": 3.0}, WIDE_NAMES), "max")
    assert [one.fusion.kind for one in wide[0]] == ["embedding", "prior", "trees", "mean", "trees", "mean"]
    assert [len(one.fusion.columns) for one in wide[0][3::2]] == [len(NAMES), len(WIDE_NAMES)]


def test_geometry_speaks_by_a_validator_where_enough_pairs_were_compared() -> None:
    gallery, asked = world({"inliers": 3.0})
    speaks = {s.name: s.column for s in measure.combined(gallery, asked, "max")[0].fusion.combined.sources}  # type: ignore[union-attr]
    assert speaks["geometry"] == "validator"
    blind = [
        replace(
            one,
            known=np.where(np.isin(np.arange(len(NAMES)), range(10, len(NAMES))), np.nan, one.known),
            unknown=np.where(np.isin(np.arange(len(NAMES)), range(10, len(NAMES))), np.nan, one.unknown),
        )
        for one in asked
    ]
    (first, _) = measure.combined(gallery, blind, "max")
    assert first.fusion.trees is None and "geometry" not in {s.name for s in first.fusion.combined.sources}  # type: ignore[union-attr]


def test_a_siamese_head_is_one_more_source_and_rows_without_it_are_answered_too() -> None:
    gallery, asked = world({"siamese": 3.0}, WIDE_NAMES)
    narrow, wide = (measure.combined(gallery, some, "max")[0] for some in measure.with_and_without_siamese(asked))
    assert wide.map_at_5 > narrow.map_at_5 + 0.2
    scores = wide.fusion.scores(asked[0].known[:, : len(NAMES)])
    assert np.isfinite(scores).all()
    winner, tried = ways.chosen([narrow], [wide])
    assert winner is wide and [way.siamese for way in tried] == [True, False]


@pytest.mark.parametrize("damage", ["kind", "names", "column"])
def test_a_damaged_fusion_of_sources_is_refused(damage: str) -> None:
    gallery, asked = world({"cosine": 1.5, "inliers": 2.0})
    raw = json.loads(json.dumps(measure.combined(gallery, asked, "max")[0].fusion.to_dict()))
    if damage == "kind":
        raw["kind"] = "power"
    elif damage == "names":
        raw["names"] = raw["names"][:-1]
    else:
        raw["booster"] = None
        raw["combined"]["sources"][2]["column"] = "validator"
    with pytest.raises(ValueError):
        Fusion.from_dict(raw)
