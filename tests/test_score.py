from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from reid.errors import InputError, ModelError
from reid.score import Validator, ValidatorConfig, read_trees, train_validator

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


def probability(validator: Validator, features: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-validator.trees.margin(features)))


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
        assert probability(trained.validator, array) == pytest.approx(expected, abs=2e-6)


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
    assert probability(validator, features) == pytest.approx(expected, abs=2e-6)


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
    inside = probability(trained.validator, features)
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


def test_reading_the_trees_and_scoring_need_no_xgboost(tmp_path):
    features, same, groups = pairs(200)
    validator = train_validator(features, same, groups, NAMES).validator
    (tmp_path / "booster.json").write_text(json.dumps(validator.booster))
    code = (
        "import sys, json, pathlib, numpy as np; from reid.score import read_trees; "
        f"trees = read_trees(json.loads(pathlib.Path({str(tmp_path / 'booster.json')!r}).read_text())); "
        "print(trees.margin(np.zeros((1, 4), np.float32))[0]); assert 'xgboost' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) == validator.trees.margin(np.zeros((1, 4), np.float32))[0]


def test_damaged_or_foreign_models_are_refused():
    features, same, groups = pairs(200)
    booster = train_validator(features, same, groups, NAMES).validator.booster
    foreign = {**booster, "learner": {**booster["learner"], "objective": {"name": "reg:squarederror"}}}
    with pytest.raises(ModelError, match="binary:logistic"):
        read_trees(foreign)
    tree = booster["learner"]["gradient_booster"]["model"]["trees"][0]
    tree["left_children"][0] = 0  # a cycle
    with pytest.raises(ModelError, match="cycle"):
        read_trees(booster)
    tree["left_children"][0] = 10**6
    with pytest.raises(ModelError, match="outside"):
        read_trees(booster)


def test_too_few_pairs_are_a_typed_answer():
    features, same, groups = pairs(200)
    for rows in (np.flatnonzero(same), np.flatnonzero(~same), np.arange(20)):
        with pytest.raises(InputError):
            train_validator(features[rows], same[rows], groups[rows], NAMES)
    with pytest.raises(InputError, match="one animal"):
        train_validator(features, same, np.zeros(200, int), NAMES)
    with pytest.raises(InputError, match="do not belong"):
        train_validator(features[:, :2], same, groups, NAMES)
    assert train_validator(features, same, groups[:, 0], NAMES).validator.pairs == 200
