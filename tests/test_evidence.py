from __future__ import annotations

import numpy as np
import pytest

from reid.errors import InputError
from reid.evidence import EVIDENCE_NAMES, evidence, standing, untrained
from reid.verify import FEATURE_NAMES, Verification


def verified(inliers: int, weight: float) -> Verification:
    features = np.full(len(FEATURE_NAMES), inliers, np.float32)
    return Verification("verified", 30, inliers, weight, None, 0.0, np.zeros((0, 2), np.int32), features)


def test_each_source_is_given_as_it_is_and_relative_to_the_shortlist():
    shortlist = [verified(i, w) for i, w in [(9, 4.0), (0, 0.0), (16, 1.0)]]
    rows = evidence(shortlist, [4.0, 16.0, 0.0], [0.5, np.nan, 0.8])
    assert rows.shape == (3, len(EVIDENCE_NAMES)) and rows.dtype == np.float32
    first = dict(zip(EVIDENCE_NAMES, map(float, rows[0]), strict=True))
    expected = {
        "votes_value": 2, "votes_share": 0.5, "votes_gap": 2, "votes_rank": 1,
        "weight_value": 2, "weight_share": 1, "weight_gap": 2, "weight_rank": 0,
        "inliers_value": 3, "inliers_share": 0.75, "inliers_gap": 3, "inliers_rank": 1,
        "cosine_value": 0.5, "cosine_share": 0.625, "cosine_gap": 0, "cosine_rank": 1,
        "h11": 9,
    }  # fmt: skip
    assert {name: first[name] for name in expected} == pytest.approx(expected)
    second = dict(zip(EVIDENCE_NAMES, map(float, rows[1]), strict=True))
    assert all(np.isnan(second[f"cosine_{what}"]) for what in ("value", "share", "gap", "rank"))


def test_standing_equals_a_loop():
    values = np.array([0.3, 0.9, np.nan, 0.3, -0.2, 0.1, 0.5])
    known = [value for value in values if value == value]
    for value, row in zip(values, standing(values), strict=True):
        if value != value:
            assert np.isnan(row).all()
            continue
        rank = sum(other > value for other in known)
        assert row == pytest.approx([value, value / 0.9, value - sorted(known)[-5], rank])


def test_nothing_known_is_an_ordinary_answer():
    assert evidence([], [], []).shape == (0, len(EVIDENCE_NAMES))
    nothing = evidence([verified(0, 0.0)] * 2, [0, 0], [np.nan, np.nan])
    assert untrained(nothing).tolist() == [0.0, 0.0]
    with pytest.raises(InputError):
        evidence([verified(0, 0.0)], [0, 1], [0.5])


def test_untrained_puts_geometry_before_votes_before_cosine():
    rows = evidence(
        [verified(9, 4.0), verified(0, 0.0), verified(0, 0.0), verified(0, 0.0)], [0, 9, 0, 0], [0.1, 0.2, 0.9, np.nan]
    )
    assert np.argsort(-untrained(rows)).tolist() == [0, 1, 2, 3]
