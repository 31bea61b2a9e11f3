"""One query's list: both sources in turn, every candidate once, geometry for the best, order that can be foreseen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reid import fusion, shortlist
from reid.agreement import FEATURE_NAMES
from reid.fusion import EMBEDDING, NAMES, PRIOR_FUSION, SOURCE_NAMES
from reid.keypoints import LocalFeatures, describe, empty_features
from reid.shortlist import Shortlist
from reid.verify import VerifyConfig, verify


def texture(seed: int) -> LocalFeatures:
    """Of a picture that no other seed shares a point with."""
    import cv2

    coarse = np.random.default_rng(seed).integers(0, 256, (24, 32), np.uint8)
    return describe(np.asarray(cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC), np.uint8))


FEATURES = {name: texture(seed) for seed, name in enumerate("abcdefgh")}
COSINES = dict(zip("abcdefgh", [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], strict=True))


def gathered(
    near: Sequence[str],
    votes: dict[str, float],
    *,
    query: LocalFeatures | None = None,
    listed: int = 200,
    checked: int = 4,
    lacking: str = "",
) -> Shortlist:
    return shortlist.gather(
        near,
        [COSINES[id] for id in near],
        votes,
        lambda ids: [COSINES[id] for id in ids],
        FEATURES["a"] if query is None else query,
        lambda id: None if id in lacking else FEATURES[id],
        listed=listed,
        checked=checked,
        config=VerifyConfig(),
    )


ids = st.lists(st.sampled_from("abcdefgh"), unique=True)


def loop_in_turn(first: list[str], second: list[str], most: int) -> list[str]:
    """First of one, first of the other, second of one…, passing over what is there."""
    queue = []
    for place in range(10):
        queue += first[place : place + 1] + second[place : place + 1]
    out: list[str] = []
    for id in queue:
        if id not in out:
            out.append(id)
    return out[:most]


@given(ids, ids, st.integers(0, 9))
def test_both_lists_are_taken_in_turn_each_id_once(first: list[str], second: list[str], most: int) -> None:
    assert shortlist.in_turn(first, second, most) == loop_in_turn(first, second, most)


@pytest.mark.parametrize(
    ("first", "second", "most", "expected"),
    [
        ("abc", "xyz", 4, "axby"),
        ("abc", "a", 3, "abc"),
        ("", "xyz", 2, "xy"),
        ("ab", "ba", 9, "ab"),
        ("ab", "xy", 0, ""),
    ],
)
def test_in_turn_on_sight(first: str, second: str, most: int, expected: str) -> None:
    assert "".join(shortlist.in_turn(list(first), list(second), most)) == expected


def test_the_list_is_the_union_each_candidate_with_what_either_source_says() -> None:
    found = gathered("abc", {"e": 5.0, "b": 2.0, "h": 1.0})
    assert found.ids == tuple("abceh")
    assert found.cosines.tolist() == [0.9, 0.8, 0.7, 0.5, 0.2]
    assert found.votes.tolist() == [0.0, 2.0, 0.0, 5.0, 1.0]
    expected = fusion.pair_features(
        found.cosines, found.cosines[:3], found.votes, found.verifications, len(FEATURES["a"])
    )
    np.testing.assert_array_equal(found.features, expected)


def test_only_photos_that_were_voted_for_alone_are_asked_for_their_cosine() -> None:
    asked: list[list[str]] = []

    def cosines_of(ids: Sequence[str]) -> list[float]:
        asked.append(list(ids))
        return [COSINES[id] for id in ids]

    def ask(near: str, votes: dict[str, float]) -> Shortlist:
        return shortlist.gather(
            near, [COSINES[i] for i in near], votes, cosines_of, FEATURES["a"], FEATURES.get,
            listed=9, checked=0, config=VerifyConfig(),
        )  # fmt: skip

    assert ask("ab", {"g": 2.0, "a": 1.5, "c": 1.0}).cosines.tolist() == [0.9, 0.8, 0.3, 0.7]
    assert ask("ab", {"a": 1.0}).ids == ("a", "b")
    assert asked == [["g", "c"]]


def test_a_cosines_standing_is_judged_by_the_nearest_alone() -> None:
    """Photos the index brings in do not move the yardstick, nor do neighbours beyond it."""
    standing = NAMES.index("cosine_standing")
    few, more = gathered("abc", {}), gathered("abcd", {"h": 3.0}, listed=3)
    np.testing.assert_allclose(more.features[:3, standing], few.features[:, standing], rtol=1e-6)
    assert more.features[4, standing] == pytest.approx((0.2 - 0.8) / np.std([0.9, 0.8, 0.7]), rel=1e-5)


def test_geometry_is_made_for_the_best_of_both_lists_and_nothing_is_nan_but_the_rest() -> None:
    found = gathered("abcd", {"f": 3.0, "g": 2.0}, checked=3)
    assert [id for id, made in zip(found.ids, found.verifications, strict=True) if made] == ["a", "b", "f"]
    geometry = found.features[:, len(SOURCE_NAMES) :]
    assert geometry.shape[1] == len(FEATURE_NAMES)
    for row, made in zip(geometry, found.verifications, strict=True):
        if made is None:
            assert np.isnan(row).all()
        else:
            np.testing.assert_array_equal(row, made.features)
    assert np.isfinite(found.features[:, : len(SOURCE_NAMES)]).all()
    own = verify(FEATURES["a"], FEATURES["a"], VerifyConfig())
    assert found.verifications[0] is not None and found.verifications[0].inliers == own.inliers > 50


def test_a_candidate_without_features_is_passed_over_and_not_replaced() -> None:
    found = gathered("abc", {}, checked=2, lacking="a")
    assert [made is not None for made in found.verifications] == [False, True, False]


def test_a_query_without_keypoints_verifies_nothing_and_keeps_its_neighbours() -> None:
    found = gathered("abc", {}, query=empty_features(10, 10))
    assert found.ids == ("a", "b", "c") and found.verifications == (None, None, None)
    assert (PRIOR_FUSION.scores(found.features) < fusion.PRIOR_THRESHOLD).all()


def test_nothing_found_is_an_empty_list() -> None:
    found = gathered("", {})
    assert (found.ids, found.features.shape) == ((), (0, len(NAMES)))
    assert shortlist.ranked(found, PRIOR_FUSION) == ((), ())


def test_more_votes_than_are_taken_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlist, "VOTED", 2)
    long, short = gathered("a", {"c": 3.0, "d": 2.0, "e": 1.0}), gathered("a", {"c": 3.0, "d": 2.0})
    assert long.ids == short.ids == ("a", "c", "d")
    np.testing.assert_array_equal(long.features, short.features)


def test_the_best_probability_comes_first() -> None:
    found = gathered("bcd", {"a": 9.0})
    ids, scores = shortlist.ranked(found, PRIOR_FUSION)
    assert ids[0] == "a" and scores == tuple(sorted(scores, reverse=True)) and set(ids) == set("abcd")
    by_id = dict(zip(found.ids, PRIOR_FUSION.scores(found.features).tolist(), strict=True))
    assert scores == tuple(by_id[id] for id in ids)
    assert shortlist.ranked(found, EMBEDDING)[0] == ("a", "b", "c", "d")


def test_equal_scores_are_told_apart_by_cosine_then_by_the_order_given() -> None:
    made = gathered("abcd", {}, checked=0)
    features = made.features.copy()
    features[:] = features[0]  # all score alike
    tied = replace(made, features=features, cosines=np.array([0.5, 0.9, 0.5, 0.7]))
    ids, scores = shortlist.ranked(tied, PRIOR_FUSION)
    assert ids == ("b", "d", "a", "c") and len(set(scores)) == 1
