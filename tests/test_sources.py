"""Sources calibrated one by one and fused: against obvious references, on pairs nobody was fitted on, and back from JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from reid import logistic, sources
from reid.errors import InputError
from reid.sources import WAYS, Combined, Heard, Pairs


def pairs(
    strength: dict[str, float], *, animals: int = 60, each: int = 12, seed: int = 0, missing: float = 0.0
) -> Pairs:
    """Lists of candidates, the first two of the query's own animal; a column says so by as many deviations."""
    rng = np.random.default_rng(seed)
    own = np.repeat(np.arange(animals), each)
    other = (own + rng.integers(1, animals, len(own))) % animals
    other[np.arange(len(own)) % each < 2] = own[np.arange(len(own)) % each < 2]
    same = own == other
    columns = {name: rng.normal(size=len(own)) + gap * same for name, gap in strength.items()}
    for values in columns.values():
        values[rng.random(len(own)) < missing] = np.nan
    return Pairs(columns, same, np.stack([own, other], axis=1), own.copy())


def ranks(found: Pairs, scores: NDArray[np.float64]) -> float:
    """Mean reciprocal rank, by a loop."""
    out = []
    for query in np.unique(found.lists):
        mine = found.lists == query
        best = {a: scores[mine & (found.animals[:, 1] == a)].max() for a in np.unique(found.animals[mine, 1])}
        own = best.pop(found.animals[mine][0, 0])
        out.append(1 / (1 + sum((s > own) + 0.5 * (s == own) for s in best.values())))
    return float(np.mean(out))


def test_a_regression_finds_the_weights_that_made_its_rows() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40_000, 3)) * [1.0, 20.0, 0.1] + [0, 5, 1]
    truth = rng.random(len(x)) < logistic.sigmoid(-1 + x @ [1.5, 0.1, -4.0])
    found = logistic.fit(x, truth, ridge=1e-6)
    np.testing.assert_allclose([found.offset, *found.weights], [-1, 1.5, 0.1, -4.0], rtol=0.1, atol=0.1)
    doubled = logistic.fit(np.repeat(x, 2, axis=0), np.repeat(truth, 2), ridge=1e-6)
    weighed = logistic.fit(x, truth, np.full(len(x), 2.0), ridge=1e-6)
    np.testing.assert_allclose(doubled.weights, weighed.weights, rtol=1e-6)


def test_a_ridge_holds_back_and_what_never_varies_has_no_weight() -> None:
    x = np.stack([np.r_[np.zeros(20), np.ones(20)], np.full(40, 3.0)], axis=1)
    truth = x[:, 0] > 0
    loose, tight = (logistic.fit(x, truth, ridge=r).weights for r in (0.1, 10.0))
    assert loose[0] > tight[0] > 0 and np.isfinite(loose).all()
    assert loose[1] == tight[1] == 0
    with pytest.raises(ValueError, match="both kinds"):
        logistic.fit(x, np.ones(40, bool))


def test_each_source_speaks_by_the_column_and_the_curve_that_lose_least() -> None:
    found = sources.hear(pairs({"cosine": 0.3, "cosine_standing": 2.5, "log_votes": 1.0}))
    assert [(s.name, s.column) for s in found.sources] == [("cosine", "cosine_standing"), ("votes", "log_votes")]
    assert found.sources[0].loss < found.sources[1].loss


def test_a_staircase_is_taken_where_the_truth_is_one() -> None:
    steps = pairs({"log_votes": 0.0}, animals=200)
    values = np.random.default_rng(5).random(len(steps.same))
    chance = np.select([values < 0.45, values < 0.55], [0.02, 0.5], 0.55)
    same = np.random.default_rng(6).random(len(values)) < chance
    (source,) = sources.hear(replace(steps, columns={"log_votes": values}, same=same)).sources
    assert source.curve.kind == "isotonic"
    (source,) = sources.hear(pairs({"log_votes": 1.5})).sources
    assert source.curve.kind == "platt"


def test_probabilities_are_of_curves_that_saw_no_pair_with_the_query_s_animal() -> None:
    told = pairs({"cosine": 1.0})
    before = sources.hear(told)
    mine = told.animals[:, 0] == 7
    turned = replace(told, same=np.where(mine, ~told.same, told.same))
    after = sources.hear(turned)
    # as an own animal 7 is told the wrong way round: what is heard of its own pairs must not know
    fold = before.fold == before.fold[mine][0]
    kind = before.sources[0].curve.kind
    assert kind == after.sources[0].curve.kind
    np.testing.assert_array_equal(before.out_of_fold[mine], after.out_of_fold[mine])
    assert not np.allclose(before.out_of_fold[~fold], after.out_of_fold[~fold])


def test_where_a_source_is_silent_it_says_the_share_of_matches_there() -> None:
    told = pairs({"cosine": 1.0, "log_weight": 3.0}, missing=0.4)
    geometry = next(s for s in sources.hear(told).sources if s.name == "geometry")
    silent = np.isnan(told.columns["log_weight"])
    assert geometry.absent == pytest.approx(told.same[silent].mean(), abs=0.01)
    assert geometry.probability(told.columns)[silent] == pytest.approx(geometry.absent)


@pytest.mark.parametrize("way", WAYS)
def test_two_sources_are_better_than_either_and_out_of_fold_so(way: sources.Way) -> None:
    told = pairs({"cosine": 1.6, "log_votes": 1.6}, animals=120)
    heard = sources.hear(told)
    combined, out = sources.combine(told, heard, way)
    singles = [ranks(told, told.columns[name]) for name in told.columns]
    assert ranks(told, out) > max(singles) + 0.03
    np.testing.assert_allclose(out.mean(), told.same.mean(), atol=0.03)  # probabilities, not just an order
    fresh = pairs({"cosine": 1.6, "log_votes": 1.6}, animals=120, seed=9)
    assert ranks(fresh, combined.probability(fresh.columns)) > max(singles) + 0.03


@pytest.mark.parametrize("way", WAYS)
def test_a_source_of_noise_does_no_harm(way: sources.Way) -> None:
    told = pairs({"cosine": 2.0, "log_votes": 0.0}, animals=120)
    _, out = sources.combine(told, sources.hear(told), way)
    assert ranks(told, out) > ranks(told, told.columns["cosine"]) - 0.01


def test_the_search_counts_ranks_as_a_loop_does() -> None:
    told = pairs({"cosine": 1.0, "log_votes": 0.5}, animals=25, missing=0.2)
    heard = sources.hear(told)
    lists = sources._Lists.of(told, heard.out_of_fold, np.ones(len(told.same), bool))
    for weights in ([1.0, 0.0], [0.4, 0.6]):
        whole = heard.out_of_fold @ weights
        assert lists.worth(lists.heard @ np.array(weights)) == pytest.approx(ranks(told, whole), abs=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_read_back_says_the_same(way: sources.Way) -> None:
    told = pairs({"cosine": 1.0, "log_votes": 1.0, "siamese": 1.0}, missing=0.1)
    combined, _ = sources.combine(told, sources.hear(told), way)
    again = Combined.from_dict(json.loads(json.dumps(combined.to_dict())))
    assert again == combined
    np.testing.assert_array_equal(again.probability(told.columns), combined.probability(told.columns))
    for damage in ({"way": "votes"}, {"weights": [1.0]}, {"offset": float("nan")}, {"sources": []}):
        with pytest.raises(ValueError):
            Combined.from_dict(combined.to_dict() | damage)


def test_too_few_pairs_are_refused() -> None:
    told = pairs({"cosine": 1.0}, animals=5)
    with pytest.raises(InputError, match="too few"):
        sources.hear(told)


def test_many_other_pairs_are_sampled_and_still_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    told = pairs({"cosine": 1.5}, animals=100)
    whole = sources.hear(told)
    monkeypatch.setattr(sources, "MOST_OTHERS", 400)
    some: Heard = sources.hear(told)
    assert (some.weights > 0).sum() == told.same.sum() + 400
    assert some.weights.sum() == pytest.approx(len(told.same))
    np.testing.assert_allclose(some.out_of_fold.mean(), whole.out_of_fold.mean(), atol=0.03)
