"""Fusion: rows of pairs against a loop, probabilities that rise with every source, and what is read back from disk."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reid import fusion, score
from reid.agreement import FEATURE_NAMES
from reid.errors import InputError
from reid.fusion import EMBEDDING, NAMES, PRIOR_FUSION, PRIOR_VOTES, SOURCE_NAMES, Fusion
from reid.score import ValidatorConfig
from reid.verify import Verification

QUICK = ValidatorConfig(rounds=12, depth=2, folds=3)


def verification(inliers: int, weight: float, seed: int = 0) -> Verification:
    features = np.random.default_rng(seed).normal(size=len(FEATURE_NAMES)).astype(np.float32)
    nothing = np.zeros((0, 2), np.int32)
    return Verification("verified", 9, inliers, weight, np.eye(3), 0.01, nothing, features)


def loop_row(
    at: int,
    cosines: list[float],
    listed: list[float],
    votes: list[float],
    verifications: list[Verification | None],
    keypoints: int,
) -> list[float]:
    """One candidate's row, written out: each number beside the best or the average of its rivals."""
    weights = [0.0 if v is None else v.weight for v in verifications]
    inliers = [0 if v is None else v.inliers for v in verifications]
    middle = sum(listed) / len(listed)
    spread = math.sqrt(sum((c - middle) ** 2 for c in listed) / len(listed))
    mine = verifications[at]
    return [
        cosines[at],
        cosines[at] - max(listed),
        (cosines[at] - middle) / max(spread, 1e-6),
        math.log(1 + votes[at]),
        math.log(1 + votes[at]) - max(math.log(1 + v) for v in votes),
        votes[at] / (sum(votes) + 1),
        math.log(1 + weights[at]),
        math.log(1 + weights[at]) - max(math.log(1 + w) for w in weights),
        math.log(1 + inliers[at]),
        math.log(1 + keypoints),
        *([math.nan] * len(FEATURE_NAMES) if mine is None else mine.features.tolist()),
    ]


def test_a_row_says_of_each_source_what_a_loop_over_the_rivals_says() -> None:
    cosines, listed = [0.9, 0.7, 0.65, 0.2], [0.9, 0.7, 0.65]
    votes = [3.5, 0.0, 1.25, 8.0]
    verifications = [verification(12, 7.5, 1), None, verification(0, 0.0, 2), verification(4, 1.5, 3)]
    found = fusion.pair_features(cosines, listed, votes, verifications, 321)
    expected = [loop_row(i, cosines, listed, votes, verifications, 321) for i in range(4)]
    assert found.dtype == np.float32 and found.shape == (4, len(NAMES))
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-5, atol=1e-6)
    assert np.isnan(found[1, len(SOURCE_NAMES) :]).all() and np.isfinite(found[:, : len(SOURCE_NAMES)]).all()


@pytest.mark.parametrize("listed", [[], [0.5], [0.5, 0.5, 0.5]], ids=["nothing", "one", "all alike"])
def test_without_a_yardstick_rows_are_finite_and_make_no_probability_overflow(listed: list[float]) -> None:
    found = fusion.pair_features([0.5, -0.9], listed, [0.0, 0.0], [None, None], 0)
    assert np.isfinite(found[:, : len(SOURCE_NAMES)]).all()
    chances = PRIOR_FUSION.scores(found)
    assert ((chances >= 0) & (chances < fusion.PRIOR_THRESHOLD)).all() and chances[0] >= chances[1]


def test_no_candidates_give_no_rows_and_no_scores() -> None:
    nothing = fusion.pair_features([], [], [], [], 40)
    assert nothing.shape == (0, len(NAMES))
    for kind in (EMBEDDING, PRIOR_FUSION):
        assert kind.scores(nothing).shape == (0,)


def test_the_embedding_alone_scores_by_the_bare_cosine() -> None:
    rows = fusion.pair_features([0.9, -0.25], [0.9], [9.0, 1.0], [verification(9, 9.0), None], 10)
    np.testing.assert_allclose(EMBEDDING.scores(rows), [0.9, -0.25], atol=1e-6)


def prior_by_hand(row: NDArray[np.float32]) -> float:
    first, *weights = fusion.PRIOR
    values = [float(row[NAMES.index(name)]) for name in ("cosine_standing", "log_votes", "log_weight")]
    return 1 / (1 + math.exp(-(first + sum(w * v for w, v in zip(weights, values, strict=True)))))


@pytest.mark.parametrize("name", ["cosine_standing", "log_votes", "log_weight"])
def test_the_prior_is_the_logistic_of_three_sources_and_rises_with_each(name: str) -> None:
    rows = np.random.default_rng(3).normal(size=(7, len(NAMES))).astype(np.float32)
    rows[:, len(SOURCE_NAMES) :] = np.nan
    rows = np.repeat(rows[:1], 7, axis=0)
    rows[:, NAMES.index(name)] = np.linspace(-2, 4, 7)
    found = PRIOR_FUSION.scores(rows)
    np.testing.assert_allclose(found, [prior_by_hand(row) for row in rows], rtol=1e-5)
    assert (np.diff(found) > 0).all()


def test_where_the_geometry_is_another_the_prior_asks_cosine_and_votes_alone() -> None:
    rows = np.random.default_rng(3).normal(size=(9, len(NAMES))).astype(np.float32)
    deaf = rows.copy()
    deaf[:, NAMES.index("log_weight")] = 0.0
    np.testing.assert_array_equal(PRIOR_VOTES.scores(rows), PRIOR_FUSION.scores(deaf))
    assert (PRIOR_VOTES.scores(rows) != PRIOR_FUSION.scores(rows)).all()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("cosine_standing", "log_votes", "log_weight")])
def test_the_prior_asks_nothing_else(name: str) -> None:
    rows = np.zeros((3, len(NAMES)), np.float32)
    rows[:, NAMES.index(name)] = [-5, 7, np.nan]
    assert len(set(PRIOR_FUSION.scores(rows).tolist())) == 1


def pairs(animals: int = 30, each: int = 8, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Features, same, animals: pairs of the same animal score higher in one column of ours and one of geometry's."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(animals * each, len(NAMES))).astype(np.float32)
    own = np.repeat(np.arange(animals), each)
    other = np.where(np.arange(len(own)) % each < 3, own, (own + rng.integers(1, animals, len(own))) % animals)
    same = own == other
    rows[same, NAMES.index("log_votes")] += 2.5
    rows[same, NAMES.index("inlier_weight")] += 1.5
    rows[rng.random(len(own)) < 0.3, len(SOURCE_NAMES) :] = np.nan
    return rows, same, np.stack([own, other], axis=1)


@pytest.fixture(scope="module")
def trained() -> Fusion:
    return fusion.fit_trees(*pairs(), QUICK)[0]


def test_trees_tell_pairs_apart_that_they_never_saw(trained: Fusion) -> None:
    rows, same, _ = pairs(seed=9)
    chances = trained.scores(rows)
    assert ((chances > 0) & (chances < 1)).all()
    wins = chances[same][:, None] > chances[~same][None, :]
    assert wins.mean() > 0.9
    assert (trained.pairs, trained.same) == (240, 90)


def test_no_pair_is_scored_by_trees_that_saw_the_animal_in_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trees are watched: what each booster was given, and which pairs it scored. A pair of one animal is of
    nothing that was seen; of two, the two were never seen together, nor the query's animal with any.
    """
    rows, same, animals = pairs()
    rows[:, 0] = np.arange(len(rows))  # a pair's number, to know it again
    training: list[set[int]] = []
    scored: list[tuple[set[int], set[int]]] = []
    import xgboost

    whole, margin = xgboost.train, score.Trees.margin

    def train(parameters: Any, data: Any, **more: Any) -> Any:
        training.append({round(x) for x in data.get_data().toarray()[:, 0].tolist()})
        return whole(parameters, data, **more)

    def watched(self: score.Trees, features: NDArray[np.float32]) -> NDArray[np.float64]:
        scored.append((training[-1], {round(x) for x in features[:, 0].tolist()}))
        return margin(self, features)

    monkeypatch.setattr(xgboost, "train", train)
    monkeypatch.setattr(score.Trees, "margin", watched)
    _, chances = fusion.fit_trees(rows, same, animals, QUICK)
    assert len(scored) == QUICK.folds and len(training) == QUICK.folds + 1
    assert sorted(i for _, tested in scored for i in tested) == list(range(len(rows)))
    for seen, tested in scored:
        known = {a for i in seen for a in animals[i].tolist()}
        assert seen and not known & set(animals[list(tested)][:, 0].tolist())
        assert not known & {a for i in tested if same[i] for a in animals[i].tolist()}
        together = {frozenset(animals[i].tolist()) for i in seen}
        assert not together & {frozenset(animals[i].tolist()) for i in tested}
    assert np.isfinite(chances).all()


def test_labels_that_no_feature_explains_come_out_of_fold_as_chance() -> None:
    """Trees remember such pairs; out of fold they know nothing of them."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(600, len(NAMES))).astype(np.float32)
    animals = rng.integers(0, 40, (600, 2))
    same = rng.random(600) < 0.5
    fitted, out = fusion.fit_trees(rows, same, animals, ValidatorConfig(rounds=40))
    inside = fitted.scores(rows)

    def auroc(chances: NDArray[np.float64]) -> float:
        return float((chances[same][:, None] > chances[~same][None, :]).mean())

    assert auroc(inside) > 0.85 and abs(auroc(out) - 0.5) < 0.12


def test_too_few_pairs_of_either_kind_are_refused() -> None:
    rows, same, animals = pairs()
    few = np.flatnonzero(same)[: score.FEWEST - 1]
    some = np.concatenate([few, np.flatnonzero(~same)])
    with pytest.raises(InputError, match="too few"):
        fusion.fit_trees(rows[some], same[some], animals[some], QUICK)


@pytest.mark.parametrize("kind", ["embedding", "prior", "prior_votes", "trees"])
def test_what_goes_through_json_scores_exactly_as_before(kind: str, trained: Fusion) -> None:
    before = {"embedding": EMBEDDING, "prior": PRIOR_FUSION, "prior_votes": PRIOR_VOTES, "trees": trained}[kind]
    after = Fusion.from_dict(json.loads(json.dumps(before.to_dict(), allow_nan=False)))
    rows, _, _ = pairs(seed=5)
    assert after == before and after.to_dict() == before.to_dict()
    np.testing.assert_array_equal(after.scores(rows), before.scores(rows))


def broken(raw: dict[str, Any], *where: str, value: Any) -> dict[str, Any]:
    """A copy with one value changed; the value `...` takes the key out."""
    changed = copy.deepcopy(raw)
    inner = changed
    for key in where[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[where[-1]]
    else:
        inner[where[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (["kind"], "votes"),
        (["kind"], None),
        (["kind"], ...),
        (["names"], []),
        (["names"], None),
        (["names"], ...),
        (["names"], [*NAMES[1:], NAMES[0]]),
        (["curve"], None),
        (["curve"], {}),
        (["curve", "slope"], -1.0),
        (["curve", "slope"], "steep"),
        (["booster"], None),
        (["booster"], {}),
        (["booster", "learner", "objective", "name"], "reg:squarederror"),
        (["booster", "learner", "learner_model_param", "base_score"], "half"),
        (["booster", "learner", "gradient_booster", "model", "trees"], [{}]),
        (["booster", "learner", "gradient_booster", "model", "trees"], 3),
        (["pairs"], None),
        (["pairs"], "many"),
        (["same"], ...),
    ],
    ids=lambda x: ".".join(x) if isinstance(x, list) and all(isinstance(i, str) for i in x) and len(x) < 9 else None,
)
def test_what_no_fusion_can_have_written_is_refused(trained: Fusion, where: list[str], value: Any) -> None:
    with pytest.raises(ValueError):
        Fusion.from_dict(broken(trained.to_dict(), *where, value=value))


@pytest.mark.parametrize("damage", ["feature", "child", "cycle"])
def test_trees_that_point_outside_their_features_or_themselves_are_refused(trained: Fusion, damage: str) -> None:
    raw = copy.deepcopy(trained.to_dict())
    tree = raw["booster"]["learner"]["gradient_booster"]["model"]["trees"][0]
    assert tree["left_children"][0] > 0
    if damage == "feature":
        tree["split_indices"][0] = len(NAMES)
    else:
        tree["left_children"][0] = 10**6 if damage == "child" else 0
    with pytest.raises(ValueError):
        Fusion.from_dict(raw)
