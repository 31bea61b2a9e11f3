"""The fourth place's way: the first place by geometry where it is sure, all others by looks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from reid import fusion
from reid.fusion import GEOMETRY, NAMES, WIDE_NAMES, Fusion
from reid.score import ValidatorConfig

QUICK = ValidatorConfig(rounds=30)
INLIERS = NAMES.index("inliers")
LOG_INLIERS = NAMES.index("log_inliers")


def pairs(animals: int = 12, each: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs whose geometry tells the same animal from others, and whose cosine does a little."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(animals * each, len(NAMES))).astype(np.float32)
    own = np.repeat(np.arange(animals), each)
    same = rng.random(len(own)) < 0.3
    rows[:, INLIERS] = np.where(same, rng.integers(6, 40, len(own)), rng.integers(4, 12, len(own)))
    rows[:, LOG_INLIERS] = np.log1p(rows[:, INLIERS])
    rows[:, 0] = 0.3 * same + 0.2 * rng.normal(size=len(own))
    other = np.where(same, own, (own + 1 + rng.integers(0, animals - 1, len(own))) % animals)
    return rows, same, np.stack([own, other], axis=1)


def test_one_candidate_is_first_by_geometry_and_the_others_stand_by_looks():
    valid = np.array([0.4, 0.9, 0.95, 0.99])
    looks = np.array([0.8, 0.1, 0.5, 0.3])
    inliers = np.array([30.0, 30.0, 30.0, 5.0])
    found = fusion.placed(valid, looks, inliers, 10)
    assert np.allclose(found, [0.4, 0.05, 0.975, 0.15])  # the fourth has too few points, the first is not believed
    assert np.allclose(fusion.placed(valid, looks, inliers, 31), 0.5 * looks)
    assert fusion.placed(np.array([]), np.array([]), np.array([]), 10).shape == (0,)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_accepted_stands_above_whatever_is_not(seed):
    rng = np.random.default_rng(seed)
    valid, looks, inliers = rng.random(30), rng.random(30), rng.integers(0, 30, 30).astype(float)
    found = fusion.placed(valid, looks, inliers, 10)
    accepted = [i for i in range(30) if valid[i] >= 0.5 and inliers[i] >= 10]
    best = max(accepted, key=lambda i: valid[i]) if accepted else None
    by_looks = sorted((i for i in range(30) if i != best), key=lambda i: -looks[i])
    expected = ([best] if best is not None else []) + by_looks
    assert np.argsort(-found).tolist() == expected
    assert found.min() >= 0 and found.max() <= 1 and (np.sort(found)[:-1] <= 0.5).all()


def test_the_validator_sees_geometry_alone():
    rows = pairs()[0]
    seen = fusion.only_geometry(rows)
    for i, name in enumerate(NAMES):
        assert np.isnan(seen[:, i]).all() != (name in GEOMETRY)
    assert not np.isnan(rows).any()  # the caller's rows are as they were
    found, _ = fusion.fit_geometry_first(*pairs(), 10, QUICK)
    noisy = rows.copy()
    noisy[:, [i for i, name in enumerate(NAMES) if name not in GEOMETRY and name != "cosine"]] += 100
    assert np.allclose(found.scores(noisy[:20]), found.scores(rows[:20]))


def test_fitted_pairs_are_placed_by_points_and_by_cosine():
    rows, same, animals = pairs()
    found, valid = fusion.fit_geometry_first(rows, same, animals, 10, QUICK)
    assert found.kind == "geometry_first" and (found.pairs, found.same) == (len(rows), int(same.sum()))
    assert valid[same].mean() > valid[~same].mean() + 0.3
    query = np.stack([rows[same][0], rows[~same][0], rows[~same][1]])
    query[:, INLIERS] = [35, 5, 5]
    query[:, LOG_INLIERS] = np.log1p([35, 5, 5])
    query[:, 0] = [-0.9, 0.2, 0.6]
    scores = found.scores(query)
    assert scores.argmax() == 0 and scores[0] > 0.5 > scores[2] > scores[1]
    query[0, [INLIERS, LOG_INLIERS]] = 9, np.log1p(9)  # one point too few
    assert np.argsort(-found.scores(query)).tolist() == [2, 1, 0]


def test_a_map_that_cannot_be_gives_nobody_the_first_place():
    rows, same, animals = pairs()
    found, _ = fusion.fit_geometry_first(rows, same, animals, 10, QUICK)
    query = np.stack([rows[same][0], rows[~same][0]])
    query[:, INLIERS] = [40, 5]  # as many points agree on a mirrored map, say
    query[:, 0] = [-0.9, 0.6]
    query[:, LOG_INLIERS] = np.log1p([40, 5])
    assert found.scores(query).argmax() == 0
    query[0, LOG_INLIERS] = 0  # `Verification.inliers` of a pair whose map is degenerate
    assert found.scores(query).argmax() == 1 and fusion.inliers_of(query).tolist() == [0, 5]


def test_looks_are_the_heads_where_there_is_one():
    wide = np.zeros((3, len(WIDE_NAMES)), np.float32)
    wide[:, 0] = [0.1, 0.2, 0.3]
    wide[:, -2] = np.nan
    assert np.allclose(fusion.looks_of(wide), [0.1, 0.2, 0.3])
    wide[:, -2] = [4.0, np.nan, -1.0]
    assert np.allclose(fusion.looks_of(wide), [4.0, -1.0, -1.0])


def test_it_survives_being_written_down():
    rows, same, animals = pairs()
    found, _ = fusion.fit_geometry_first(rows, same, animals, 7, QUICK)
    again = Fusion.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.kind == "geometry_first" and again.least == 7
    assert np.allclose(again.scores(rows[:50]), found.scores(rows[:50]), atol=1e-6)
    broken = found.to_dict()
    del broken["looks"]
    with pytest.raises(ValueError):
        Fusion.from_dict(broken)


def test_trees_of_either_width_are_read_and_used():
    rows, same, animals = pairs()
    rng = np.random.default_rng(1)
    logits = (np.where(same, 2.0, -2.0) + rng.normal(size=len(same)))[:, None].astype(np.float32)
    wide = np.concatenate([rows, logits, logits - logits.max()], axis=1)
    narrow_fit, _ = fusion.fit_trees(rows, same, animals, QUICK)
    wide_fit, out = fusion.fit_trees(wide, same, animals, QUICK)
    assert narrow_fit.columns == NAMES and wide_fit.columns == WIDE_NAMES
    assert out[same].mean() > out[~same].mean() + 0.3
    for one in (narrow_fit, wide_fit):
        again = Fusion.from_dict(json.loads(json.dumps(one.to_dict())))
        assert again.columns == one.columns and np.allclose(again.scores(wide[:9]), one.scores(wide[:9]), atol=1e-6)
    assert np.allclose(narrow_fit.scores(wide[:9]), narrow_fit.scores(rows[:9]))  # it knows nothing of a head
    assert np.isfinite(wide_fit.scores(rows[:9])).all()  # the head was not asked


def test_old_files_without_the_new_keys_are_read():
    found, _ = fusion.fit_trees(*pairs(), QUICK)
    old = {k: v for k, v in found.to_dict().items() if k in ("kind", "names", "curve", "booster", "pairs", "same")}
    assert Fusion.from_dict(old).columns == NAMES
    assert Fusion.from_dict({"kind": "prior"}).kind == "prior"
