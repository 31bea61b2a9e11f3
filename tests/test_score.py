from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from reid.errors import InputError, ModelError
from reid.score import (
    ValidatorConfig,
    geometry_first,
    load,
    read_trees,
    save,
    train_validator,
)

NAMES = ("a", "b", "c", "d")


def pairs(count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features with missing entries, of which two tell the pairs apart; animals on both sides."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, 4)).astype(np.float32)
    same = features[:, 0] + features[:, 1] * (features[:, 2] > 0) + random.normal(0, 0.5, count) > 0.8
    features[random.random((count, 4)) < 0.1] = np.nan
    left = random.integers(0, 40, count)
    right = np.where(same, left, (left + random.integers(1, 40, count)) % 40)
    return features, same, np.stack([left, right], axis=1)


def test_numpy_gives_what_xgboost_gives():
    import xgboost

    features, same, groups = pairs()
    trained = train_validator(features, same, groups, NAMES)
    booster = xgboost.Booster()
    booster.load_model(bytearray(json.dumps(trained.validator.booster).encode()))
    fresh = np.concatenate([pairs(300, seed=5)[0], np.full((1, 4), np.nan, np.float32), np.zeros((1, 4), np.float32)])
    thresholds = trained.validator.trees.threshold[:50]
    exactly_at = np.repeat(thresholds[:, None], 4, axis=1)  # "below" must mean below, to the last bit
    for array in (fresh, exactly_at):
        expected = booster.predict(xgboost.DMatrix(array))
        assert trained.validator.probability(array) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    "config", [ValidatorConfig(rounds=1, depth=1), ValidatorConfig(rounds=30, depth=6, min_weight=0)]
)
def test_numpy_gives_what_xgboost_gives_for_other_forests(config):
    import xgboost

    features, same, groups = pairs(150, seed=2)
    validator = train_validator(features, same, groups, NAMES, config).validator
    booster = xgboost.Booster()
    booster.load_model(bytearray(json.dumps(validator.booster).encode()))
    expected = booster.predict(xgboost.DMatrix(features))
    assert validator.probability(features) == pytest.approx(expected, abs=2e-6)


def test_it_learns_and_out_of_fold_scores_are_honest():
    features, same, groups = pairs(800)
    trained = train_validator(features, same, groups, NAMES)
    held_out = trained.out_of_fold
    assert np.isfinite(held_out).all()
    assert (held_out[same][:, None] > held_out[~same][None]).mean() > 0.8
    random = np.random.default_rng(1)
    noise = random.normal(size=features.shape)
    nothing = train_validator(noise, same, groups, NAMES).out_of_fold
    assert 0.4 < (nothing[same][:, None] > nothing[~same][None]).mean() < 0.6


def test_no_pair_is_scored_by_trees_that_saw_its_animals():
    """A feature that only names the animal of a matching pair is worthless out of fold, though perfect in the fold."""
    random = np.random.default_rng(0)
    left = np.repeat(np.arange(30), 8)
    same = np.tile([True, False], 120)
    right = np.where(same, left, (left + 7) % 30)
    features = np.stack([left, right, left == right, random.normal(size=240)], axis=1).astype(np.float32)
    features[:, 2] = 0
    code = random.permutation(900).reshape(30, 30)
    features[:, 0] = code[left, right]  # names the pair of animals, hence its kind, without any order in it
    features[:, 1] = 0
    trained = train_validator(
        features, same, np.stack([left, right], axis=1), NAMES, ValidatorConfig(depth=6, min_weight=0)
    )
    inside = trained.validator.probability(features)
    auc_inside = (inside[same][:, None] > inside[~same][None]).mean()
    held = trained.out_of_fold
    auc_outside = (held[same][:, None] > held[~same][None]).mean()
    assert auc_inside > 0.95
    assert auc_outside < 0.75


def test_the_same_seed_gives_the_same_model():
    features, same, groups = pairs(200)
    a, b = (train_validator(features, same, groups, NAMES) for _ in range(2))
    assert a.validator.booster == b.validator.booster
    assert np.array_equal(a.out_of_fold, b.out_of_fold)


def test_the_model_is_json_and_comes_back_whole(tmp_path):
    features, same, groups = pairs(200)
    validator = train_validator(features, same, groups, NAMES).validator
    save(validator, tmp_path / "validator.json")
    assert [path.name for path in tmp_path.iterdir()] == ["validator.json"]
    again = load(tmp_path / "validator.json", NAMES)
    assert (again.names, again.pairs, again.same) == (NAMES, 200, int(same.sum()))
    assert np.array_equal(again.probability(features), validator.probability(features))


def test_loading_and_scoring_need_no_xgboost(tmp_path):
    features, same, groups = pairs(200)
    save(train_validator(features, same, groups, NAMES).validator, tmp_path / "v.json")
    code = (
        "import sys, pathlib, numpy as np; from reid.score import load; "
        f"v = load(pathlib.Path({str(tmp_path / 'v.json')!r}), {NAMES!r}); "
        "v.probability(np.zeros((2, 4), np.float32)); assert 'xgboost' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_damaged_or_foreign_models_are_refused(tmp_path):
    features, same, groups = pairs(200)
    path = tmp_path / "v.json"
    save(train_validator(features, same, groups, NAMES).validator, path)
    good = json.loads(path.read_text())
    with pytest.raises(ModelError, match="other features"):
        load(path, ("x", *NAMES[1:]))
    with pytest.raises(ModelError):
        load(tmp_path / "none.json", NAMES)
    for text in (
        "",
        "{}",
        path.read_text()[:-20],
        json.dumps({**good, "kind": "else"}),
        json.dumps({**good, "format": 99}),
    ):
        path.write_text(text)
        with pytest.raises(ModelError):
            load(path, NAMES)
    tree = good["booster"]["learner"]["gradient_booster"]["model"]["trees"][0]
    tree["left_children"][0] = 0  # a cycle
    with pytest.raises(ModelError, match="cycle"):
        read_trees(good["booster"])
    tree["left_children"][0] = 10**6
    with pytest.raises(ModelError, match="outside"):
        read_trees(good["booster"])


def test_too_few_pairs_are_a_typed_answer():
    features, same, groups = pairs(200)
    for rows in (np.flatnonzero(same), np.flatnonzero(~same), np.arange(20)):
        with pytest.raises(InputError):
            train_validator(features[rows], same[rows], groups[rows], NAMES)
    with pytest.raises(InputError, match="one animal"):
        train_validator(features, same, np.zeros(200, int), NAMES)
    with pytest.raises(InputError, match="do not belong"):
        train_validator(features[:, :2], same, groups, NAMES)
    trained = train_validator(features, same, groups[:, 0], NAMES)
    with pytest.raises(ModelError):
        trained.validator.probability(np.zeros((1, 3)))


def test_geometry_takes_the_first_place_only_when_it_is_sure():
    scores, inliers = [0.9, 0.2, 0.5, 0.1], [3, 12, 0, 12]
    assert geometry_first(scores, inliers, 10).tolist() == [1, 0, 2, 3]
    assert geometry_first(scores, inliers, 13).tolist() == [0, 2, 1, 3]
    assert geometry_first([], [], 10).tolist() == []
