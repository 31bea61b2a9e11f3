"""Features of a verified pair → P(same animal): boosted trees, trained by XGBoost, applied by numpy.

Knows arrays, group codes and xgboost's JSON. Must not know photos, identities' names or thresholds of decision.
xgboost is imported by training alone (it takes a second to load); a query reads the model's JSON and walks the trees
itself, with the numbers that xgboost gives.

Source: the validator of the fourth place of Humpback Whale Identification 2019, with gradient boosting as in Chen &
Guestrin (KDD 2016).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.errors import InputError, ModelError

Floats = NDArray[np.float32]
FEWEST = 20
"""Pairs of each kind below which nothing is trained."""


@dataclass(frozen=True, slots=True)
class ValidatorConfig:
    """How the trees grow: few, shallow and slow, since positive pairs are rare."""

    rounds: int = 150
    """Trees."""
    depth: int = 3
    """Splits from root to leaf."""
    rate: float = 0.06
    """Shrinkage of each tree."""
    min_weight: float = 3.0
    """Least sum of second derivatives in a leaf."""
    subsample: float = 0.8
    """Share of the pairs each tree sees."""
    columns: float = 0.8
    """Share of the features each tree sees."""
    l2: float = 2.0
    """Penalty on leaves."""
    folds: int = 5
    """Of the out-of-fold scores."""
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Trees:
    """A forest as flat arrays: node i goes to `left[i]` if its feature is below `threshold[i]`, else to `right[i]`.

    `feature (M,) int32`, −1 at a leaf, where both children are the node itself and `value (M,) float32` is its
    margin; a NaN goes left where `nan_left (M,) bool`. `roots (T,) int32`, `depth` is the longest path, `bias` the
    margin before any tree.
    """

    feature: NDArray[np.int32]
    threshold: Floats
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    nan_left: NDArray[np.bool_]
    value: Floats
    roots: NDArray[np.int32]
    depth: int
    bias: float

    def margin(self, features: Floats) -> NDArray[np.float64]:
        """Log-odds `(N,)` of `features (N, F) float32`; NaN means unknown."""
        rows = np.arange(len(features))[:, None]
        node = np.broadcast_to(self.roots, (len(features), len(self.roots)))
        for _ in range(self.depth):
            x = features[rows, np.maximum(self.feature[node], 0)]
            below = np.where(np.isnan(x), self.nan_left[node], x < self.threshold[node])
            node = np.where(below, self.left[node], self.right[node])
        return np.asarray(self.bias + self.value[node].sum(axis=1, dtype=np.float64), np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Validator:
    """A trained validator: the trees, and how many pairs (and matching ones) they were trained on.

    `booster` is the model as xgboost's own JSON, kept whole so that xgboost can load it again.
    """

    trees: Trees
    pairs: int
    same: int
    booster: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A validator fitted on all pairs, and `out_of_fold (N,)`: each pair scored by trees that saw no pair with its
    query's animal."""

    validator: Validator
    out_of_fold: NDArray[np.float64]


def train_validator(
    features: ArrayLike,
    same: ArrayLike,
    groups: ArrayLike,
    names: Sequence[str],
    config: ValidatorConfig | None = None,
) -> Trained:
    """Fit on `features (N, F)` of pairs, `same (N,) bool`, and `groups (N,)` or `(N, 2)` int: the animals of each pair.

    A pair is scored by trees that saw no pair with its query's animal; the animal of a candidate that differs may have
    been seen in pairs with others. The two kinds weigh the same in sum, so
    P is for even odds: calibrate it. `InputError` for fewer than `FEWEST` pairs of either kind, or fewer than two
    groups.
    """
    settings = config or ValidatorConfig()
    x, y, animals = _checked(features, same, groups, names)
    import xgboost

    def fitted(rows: NDArray[np.bool_]) -> dict[str, Any]:
        weight = np.where(y[rows], 1 / max(y[rows].sum(), 1), 1 / max((~y[rows]).sum(), 1)) * rows.sum() / 2
        data = xgboost.DMatrix(x[rows], label=y[rows].astype(np.float32), weight=weight)
        booster = xgboost.train(_parameters(settings), data, num_boost_round=settings.rounds)
        model: dict[str, Any] = json.loads(bytes(booster.save_raw("json")))
        return model

    out = np.full(len(y), np.nan)
    fold_of = folds_of(animals, settings.folds, settings.seed)
    for fold in range(int(fold_of.max()) + 1):
        inside = fold_of[animals] == fold
        test, train = inside[:, 0], ~inside.any(axis=1)
        if not test.any():
            continue
        if 0 < y[train].sum() < train.sum():
            out[test] = 1 / (1 + np.exp(-read_trees(fitted(train)).margin(x[test])))
        else:
            out[test] = 0.5  # what is left says nothing
    model = fitted(np.ones(len(y), np.bool_))
    validator = Validator(read_trees(model), len(y), int(y.sum()), model)
    return Trained(validator, out)


def read_trees(model: dict[str, Any]) -> Trees:
    """The trees in xgboost's JSON of a `binary:logistic` booster of numeric splits; `ModelError` for another kind."""
    learner = model["learner"]
    if learner["objective"]["name"] != "binary:logistic" or learner["gradient_booster"]["name"] != "gbtree":
        raise ModelError("only boosted trees for binary:logistic can be read", next_step="train it again")
    base = float(np.float32(re.sub(r"[\[\]]", "", str(learner["learner_model_param"]["base_score"]))))
    parts = learner["gradient_booster"]["model"]["trees"]
    sizes = [len(tree["left_children"]) for tree in parts]
    roots = np.concatenate([[0], np.cumsum(sizes[:-1])]).astype(np.int32) if parts else np.zeros(0, np.int32)

    def joined(key: str, kind: type[np.generic]) -> NDArray[Any]:
        return np.concatenate([np.asarray(tree[key]) for tree in parts] or [np.zeros(0)]).astype(kind)

    if any(any(tree.get("split_type", ())) for tree in parts):
        raise ModelError("categorical splits cannot be read", next_step="train it again")
    left, right = joined("left_children", np.int32), joined("right_children", np.int32)
    leaf = left < 0
    shift = np.repeat(roots, sizes)
    here = np.arange(len(left), dtype=np.int32)
    left, right = np.where(leaf, here, left + shift), np.where(leaf, here, right + shift)
    if len(left) and not ((0 <= left) & (left < len(left)) & (0 <= right) & (right < len(left))).all():
        raise ModelError("a tree points outside itself", next_step="train it again: `reid calibrate`")
    condition = joined("split_conditions", np.float32)
    return Trees(
        np.where(leaf, -1, joined("split_indices", np.int32)).astype(np.int32),
        condition,
        left.astype(np.int32),
        right.astype(np.int32),
        joined("default_left", np.bool_),
        np.where(leaf, condition, np.float32(0)).astype(np.float32),
        roots,
        _depth(left, right, leaf, roots),
        float(np.log(base / (1 - base))),
    )


def _parameters(config: ValidatorConfig) -> dict[str, Any]:
    return {
        "objective": "binary:logistic",
        "base_score": 0.5,
        "max_depth": config.depth,
        "eta": config.rate,
        "min_child_weight": config.min_weight,
        "subsample": config.subsample,
        "colsample_bytree": config.columns,
        "lambda": config.l2,
        "tree_method": "hist",
        "seed": config.seed,
        "nthread": 1,  # the pairs are few: threads would wait for each other
        "verbosity": 0,
    }


def _checked(
    features: ArrayLike, same: ArrayLike, groups: ArrayLike, names: Sequence[str]
) -> tuple[Floats, NDArray[np.bool_], NDArray[np.int64]]:
    """Arrays of agreeing shapes; groups as `(N, 2)` codes from 0."""
    x, y = np.asarray(features, np.float32), np.asarray(same, np.bool_)
    animals = np.asarray(groups)
    animals = np.stack([animals, animals], axis=1) if animals.ndim == 1 else animals
    if x.shape != (len(y), len(names)) or animals.shape != (len(y), 2):
        raise InputError(
            f"features {x.shape}, same {y.shape} and groups {animals.shape} do not belong together",
            next_step=f"give (N, {len(names)}), (N,) and (N,) or (N, 2)",
        )
    fewer = min(int(y.sum()), int((~y).sum()))
    if fewer < FEWEST:
        raise InputError(
            f"{int(y.sum())} matching and {int((~y).sum())} other pairs are too few to train on",
            next_step=f"enrol more photos: {FEWEST} pairs of each kind are the least",
        )
    codes = np.unique(animals, return_inverse=True)[1].reshape(animals.shape)
    if codes.max() < 1:
        raise InputError("all pairs are of one animal", next_step="enrol photos of others")
    return x, y, codes.astype(np.int64)


def folds_of(animals: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Fold of each animal 0 … max: the animals in random order, dealt out in turn."""
    count = int(animals.max()) + 1
    fold_of = np.empty(count, np.int64)
    fold_of[np.random.default_rng(seed).permutation(count)] = np.arange(count) % max(2, min(folds, count))
    return fold_of


def _depth(left: NDArray[Any], right: NDArray[Any], leaf: NDArray[np.bool_], roots: NDArray[np.int32]) -> int:
    """Steps from the roots after which every path has reached a leaf; `ModelError` for a tree that never does."""
    here = np.zeros(len(left), np.bool_)  # marks in place of np.unique, which imports numpy.ma: 20 ms of a cold query
    here[roots] = True
    for depth in range(len(left) + 1):
        level = np.flatnonzero(here & ~leaf)
        if not len(level):
            return depth
        here[:] = False
        here[left[level]] = here[right[level]] = True
    raise ModelError("a tree has a cycle", next_step="train it again: `reid calibrate`")
