"""P(known): in force in a population where answers as a whole tell more than their best score, and not where they do not."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reid import known, logistic, measure
from reid.aggregate import Ranking, identity_scores
from reid.crowding import Crowding
from reid.fusion import EMBEDDING, NAMES, PRIOR_FUSION
from reid.known import COLUMNS, Known, Tried
from reid.logistic import Logistic
from reid.measure import Asked, Gallery

ANIMALS, SHOTS = 90, 3


def population(*, level: float, agrees: bool, seed: int = 0) -> tuple[Gallery, list[Asked]]:
    """An own photo has votes 2 above the others'. `level` is how much all votes of a query differ from those of other
    queries (good and bad photos): then a best score says little, its lead says much. With `agrees`, the cosine is of
    the same mind as the votes.
    """
    rng = np.random.default_rng(seed)
    individuals = np.repeat(np.arange(ANIMALS), SHOTS)
    count = len(individuals)
    gallery = Gallery(
        tuple(map(str, range(count))),
        np.eye(count, dtype=np.float32),
        individuals,
        np.arange(count),
        Crowding.none(count),
    )
    asked = []
    for query in range(0, count, SHOTS):
        rows = np.r_[query + 1, query + 2, rng.choice(np.setdiff1d(np.arange(count), query + np.arange(3)), 14, False)]
        features = np.full((len(rows), len(NAMES)), np.nan, np.float32)
        features[:, :10] = 0
        same = individuals[rows] == individuals[query]
        votes = 3 + rng.normal(size=len(rows)) * 0.6 + 2 * same + level * rng.normal()
        features[:, NAMES.index("log_votes")] = votes
        features[:, NAMES.index("cosine")] = rng.normal(size=len(rows)) * 0.1 + 0.4 * (same & agrees)
        features[:, NAMES.index("cosine_standing")] = 10 * features[:, NAMES.index("cosine")]
        other = np.flatnonzero(~same)
        asked.append(Asked(query, rows, features, rows[other], features[other]))
    return gallery, asked


def attempt(gallery: Gallery, asked: list[Asked], kind: Any = PRIOR_FUSION) -> Tried:
    fused = measure.fused(gallery, asked, kind, "max")
    return known.tried(gallery, asked, fused, method="max", objective="geometric", new_share=0.3)


def test_it_helps_where_scores_differ_from_photo_to_photo() -> None:
    found = attempt(*population(level=2.0, agrees=True))
    record = found.record
    assert record["in_force"] and found.model is not None
    assert record["auroc_after"] > record["auroc_before"] + 0.1 and record["gain_low"] > 0
    assert record["geometric_after"] > record["geometric_before"] + 0.05
    # and on a population that nobody was fitted on
    gallery, asked = population(level=2.0, agrees=True, seed=5)
    plain, moved, truth = [], [], []
    for one in asked:
        for rows, features, is_known in ((one.rows, one.known, True), (one.others, one.unknown, False)):
            ranking = identity_scores(PRIOR_FUSION.scores(features), gallery.individuals[rows], "max")
            plain.append(ranking.scores[0])
            moved.append(found.model.moved(ranking, gallery.individuals[rows], features, 2).scores[0])
            truth.append(is_known)
    assert auroc(moved, truth) > auroc(plain, truth) + 0.1
    assert abs(np.mean(np.array(moved)[np.array(truth)]) - np.mean(np.array(moved)[~np.array(truth)])) > 0.3


def auroc(scores: list[float], truth: list[bool]) -> float:
    """By the definition: how often a known one scores above a new one."""
    known_, new = np.array(scores)[np.array(truth)], np.array(scores)[~np.array(truth)]
    return float(np.mean((known_[:, None] > new) + 0.5 * (known_[:, None] == new)))


@pytest.mark.parametrize("seed", range(3))
def test_it_steps_aside_where_the_best_score_says_all(seed: int) -> None:
    gallery, asked = population(level=0.0, agrees=False, seed=seed)
    found = attempt(gallery, asked)
    assert found.model is None and not found.record["in_force"]
    assert "beyond chance" in found.record["reason"] and found.record["gain_low"] <= 0
    plain = measure.fused(gallery, asked, PRIOR_FUSION, "max").cases
    np.testing.assert_array_equal(found.cases.known_best, plain.known_best)


def test_it_is_not_tried_with_one_source_or_with_few_photos() -> None:
    gallery, asked = population(level=2.0, agrees=True)
    assert attempt(gallery, asked, EMBEDDING).record == {
        "in_force": False,
        "reason": "the embedder answers alone: there are no further sources to look at",
    }
    assert "too few" in attempt(gallery, asked[:15]).record["reason"]


def test_answers_keep_their_order_and_cases_are_of_the_moved_scores() -> None:
    gallery, asked = population(level=2.0, agrees=True)
    plain, found = measure.fused(gallery, asked, PRIOR_FUSION, "max").cases, attempt(gallery, asked).cases
    np.testing.assert_array_equal(found.truth_rank, plain.truth_rank)
    first = plain.truth_rank == 1
    np.testing.assert_allclose(found.known_best[first], found.truth_score[first])
    assert (found.truth_score[~first] < found.known_best[~first]).all()
    assert (np.diff(found.other_scores, axis=1) <= 0).all()
    # differences of log-odds within an answer stay
    for one in (plain, found):
        gaps = np.diff(logistic.logit(one.other_scores, 1e-12), axis=1)
        np.testing.assert_allclose(gaps, np.diff(logistic.logit(plain.other_scores, 1e-12), axis=1), atol=1e-6)


def test_a_row_says_what_is_seen_in_the_answer() -> None:
    features = np.zeros((4, len(NAMES)), np.float32)
    features[:, NAMES.index("cosine")] = [0.1, 0.9, 0.5, 0.95]
    features[:, NAMES.index("cosine_standing")] = [0, 2.5, 1, 3]
    features[:, NAMES.index("log_votes")] = [1.0, 3.0, 0.0, 0.0]
    codes = np.array([7, 4, 7, -1])  # nobody knows the last: it is no rival
    ranking = Ranking(np.array([4, 7]), np.array([0.8, 0.4]), np.array([1, 0]), np.zeros(2, np.int64))
    row = dict(zip(COLUMNS, known.row_of(ranking, codes, features, 6), strict=True))
    assert row["best"] == pytest.approx(np.log(4)) and row["lead"] == pytest.approx(np.log(4) - np.log(2 / 3))
    assert row["lead_on_rest"] == row["lead"] and row["photos"] == pytest.approx(np.log(7))
    assert (row["cosine"], row["votes"], row["geometry"]) == (2.5, 3.0, 0.0)
    assert row["agreeing"] == 2  # cosine and votes; geometry puts nobody first
    alone = Ranking(np.array([4]), np.array([0.8]), np.array([1]), np.zeros(1, np.int64))
    assert known.row_of(alone, codes, features, 6)[1:3].tolist() == [known.FARTHEST] * 2


def test_the_first_score_becomes_p_known_and_what_is_read_back_says_the_same() -> None:
    model = Known(Logistic(-1.0, tuple(np.linspace(-0.5, 0.5, len(COLUMNS)).tolist())))
    again = Known.from_dict(json.loads(json.dumps(model.to_dict())))
    assert again == model
    features: NDArray[np.float32] = np.zeros((2, len(NAMES)), np.float32)
    codes = np.array([0, 1])
    ranking = Ranking(codes, np.array([0.9, 0.2]), codes, np.zeros(2, np.int64))
    moved = again.moved(ranking, codes, features, 3)
    assert moved.scores[0] == pytest.approx(model.chance(known.row_of(ranking, codes, features, 3)))
    assert moved.scores[1] < moved.scores[0] and moved.codes is ranking.codes
    for damage in ({"columns": ["best"]}, {"logistic": {"offset": 0.0, "weights": [1.0]}}):
        with pytest.raises(ValueError):
            Known.from_dict(model.to_dict() | damage)
