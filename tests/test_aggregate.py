"""Image scores to animals, against loops that do it one animal at a time."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from reid import aggregate
from reid.aggregate import AGGREGATIONS, Ranking, fuse_photos, identity_centres, identity_scores, trimmed_centre
from reid.config import Aggregate


def test_settings_know_every_way_to_aggregate() -> None:
    assert get_args(Aggregate) == tuple(AGGREGATIONS)


def by_loop(method: str, scores: list[float], threshold: float) -> float:
    best_first = sorted(scores, reverse=True)
    n = len(best_first)
    if method == "max":
        return best_first[0]
    if method == "mean":
        return sum(best_first) / n
    if method == "top_half":
        half = best_first[: math.ceil(n / 2)]
        return sum(half) / len(half)
    if method == "trimmed":
        kept = best_first[n // 4 : n - n // 4]
        return sum(kept) / len(kept)
    above = [s for s in best_first if s >= threshold]
    return sum(above) if above else best_first[0]


PHOTOS = st.lists(st.tuples(st.integers(0, 8).map(lambda v: v / 8), st.integers(-1, 4)), max_size=30)


@given(PHOTOS, st.sampled_from(sorted(AGGREGATIONS)), st.sampled_from([0.0, 0.3, 0.5]))
@settings(max_examples=200)
def test_every_aggregation_is_its_loop_and_ranks_best_first(
    photos: list[tuple[float, int]], method: str, threshold: float
) -> None:
    rows = [(c, [(s, i) for i, (s, d) in enumerate(photos) if d == c]) for c in range(5)]
    expected = []
    for code, mine in rows:
        if mine:
            best_score = max(s for s, _ in mine)
            best = min(i for s, i in mine if s == best_score)
            expected.append((by_loop(method, [s for s, _ in mine], threshold), best_score, code, best))
    expected.sort(key=lambda e: (-round(e[0], 12), -e[1], e[2]))
    found = identity_scores([s for s, _ in photos], [c for _, c in photos], method, threshold)
    assert sorted(zip(found.codes.tolist(), found.best.tolist(), strict=True)) == sorted((e[2], e[3]) for e in expected)
    np.testing.assert_allclose(found.scores, [e[0] for e in expected], atol=1e-12)
    assert found.query.tolist() == [0] * len(expected)


def test_equal_scores_go_by_the_best_photo_then_by_the_code() -> None:
    found = identity_scores([0.5, 0.5, 0.75, 0.25, 0.5], [3, 1, 2, 2, 3], "mean")
    assert found.codes.tolist() == [2, 1, 3]


def test_photos_of_nobody_are_no_candidates() -> None:
    found = identity_scores([0.9, 0.4], [-1, 7])
    assert (found.codes.tolist(), found.scores.tolist(), found.best.tolist()) == ([7], [0.4], [1])
    assert identity_scores([0.9], [-1]).codes.tolist() == []


def test_bad_scores_and_methods_are_refused() -> None:
    with pytest.raises(ValueError, match="expected max, mean"):
        identity_scores([0.5], [1], "median")
    with pytest.raises(ValueError, match="NaN"):
        identity_scores([math.nan], [1])
    with pytest.raises(ValueError, match="negative"):
        identity_scores([0.5], [1], "sum_above", -0.1)
    with pytest.raises(ValueError, match=r"\(R,\)"):
        aggregate.aggregate([1, 2], [0.5])


def ranking(*rows: tuple[int, float, int]) -> Ranking:
    return Ranking(
        np.array([c for c, _, _ in rows], dtype=np.int64),
        np.array([s for _, s, _ in rows], dtype=np.float64),
        np.array([b for _, _, b in rows], dtype=np.int64),
        np.zeros(len(rows), dtype=np.int64),
    )


def test_a_burst_has_one_vote() -> None:
    burst = [ranking((1, 0.9, 10), (2, 0.1, 11))] * 9
    other = ranking((2, 0.8, 12), (1, 0.2, 13))
    votes = fuse_photos([*burst, other], bursts=["a"] * 9 + ["b"])
    assert votes.codes.tolist() == [1, 2]
    assert votes.scores.tolist() == pytest.approx([(0.9 + 0.2) / 2, (0.1 + 0.8) / 2])
    shouting = fuse_photos([*burst, other])
    assert shouting.scores.tolist() == pytest.approx([(9 * 0.9 + 0.2) / 10, (9 * 0.1 + 0.8) / 10])


def test_an_animal_missing_from_a_list_gets_that_lists_lowest_score() -> None:
    fused = fuse_photos([ranking((1, 0.9, 0), (2, 0.5, 1)), ranking((3, 0.7, 2), (2, 0.6, 3))])
    assert dict(zip(fused.codes.tolist(), fused.scores.tolist(), strict=True)) == pytest.approx(
        {1: (0.9 + 0.6) / 2, 2: (0.5 + 0.6) / 2, 3: (0.5 + 0.7) / 2}
    )


def test_a_photo_without_candidates_is_neutral() -> None:
    alone = ranking((4, 0.8, 5), (1, 0.3, 2))
    fused = fuse_photos([ranking(), alone, ranking()], bursts=[0, 1, 2])
    assert (fused.codes.tolist(), fused.scores.tolist()) == ([4, 1], [0.8, 0.3])
    assert fused.query.tolist() == [1, 1]
    assert fuse_photos([]).codes.tolist() == fuse_photos([ranking()]).codes.tolist() == []


def test_the_evidence_of_a_fused_animal_is_its_best_pair_of_photos() -> None:
    fused = fuse_photos([ranking((1, 0.9, 7), (2, 0.5, 8)), ranking((2, 0.95, 9), (1, 0.1, 6))], across="max")
    assert fused.codes.tolist() == [2, 1]
    assert fused.scores.tolist() == [0.95, 0.9]
    assert (fused.query.tolist(), fused.best.tolist()) == ([1, 0], [9, 7])


@given(st.integers(0, 2**32 - 1), st.sampled_from(["mean", "max"]))
@settings(max_examples=60)
def test_fusing_is_the_loop_over_animals_and_bursts(seed: int, across: str) -> None:
    rng = np.random.default_rng(seed)
    photos = [
        identity_scores(rng.integers(0, 20, k) / 20, rng.integers(0, 6, k))
        for k in rng.integers(0, 8, rng.integers(1, 6))
    ]
    bursts = rng.integers(0, 3, len(photos))
    expected = {}
    for code in {int(c) for p in photos for c in p.codes}:
        votes = []
        for burst in sorted(set(bursts.tolist())):
            mine = [p for p, b in zip(photos, bursts, strict=True) if b == burst and len(p.codes)]
            given = [dict(zip(p.codes.tolist(), p.scores.tolist(), strict=True)) for p in mine]
            if given:
                votes.append(sum(g.get(code, min(g.values())) for g in given) / len(given))
        expected[code] = max(votes) if across == "max" else sum(votes) / len(votes)
    fused = fuse_photos(photos, bursts, across)
    assert dict(zip(fused.codes.tolist(), fused.scores.tolist(), strict=True)) == pytest.approx(expected)
    assert (np.diff(fused.scores) <= 1e-12).all()


def test_fusing_refuses_what_it_cannot_mean() -> None:
    with pytest.raises(ValueError, match="one burst a photo"):
        fuse_photos([ranking((1, 0.5, 0))], bursts=[0, 1])
    with pytest.raises(ValueError, match="expected mean, max"):
        fuse_photos([ranking((1, 0.5, 0))], across="min")


def unit(rows: list[list[float]]) -> NDArray[np.float64]:
    matrix = np.array(rows, dtype=np.float64)
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True))


def test_a_trimmed_centre_ignores_the_photo_of_another_animal() -> None:
    photos = unit([[1, 0.1, 0], [1, -0.1, 0], [1, 0, 0.1], [-1, 0, 0.2]])
    plain, trimmed = trimmed_centre(photos, drop=0.0), trimmed_centre(photos, drop=0.25)
    expected = photos[:3].mean(axis=0)
    np.testing.assert_allclose(trimmed, expected / np.linalg.norm(expected), atol=1e-6)
    assert trimmed.dtype == np.float32
    assert trimmed @ photos[0] > plain @ photos[0]


def test_vectors_that_cancel_out_are_represented_by_the_first() -> None:
    np.testing.assert_array_equal(trimmed_centre([[0.0, 1.0], [0.0, -1.0]], 0.0), [0.0, 1.0])


def test_identity_centres_are_the_centres_of_each_animal() -> None:
    rng = np.random.default_rng(0)
    vectors = unit(rng.normal(size=(40, 8)).tolist()).astype(np.float32)
    codes = rng.integers(-1, 6, 40)
    found = identity_centres(vectors, codes)
    assert found.codes.tolist() == sorted({int(c) for c in codes if c >= 0})
    for code, centre, count in zip(found.codes, found.vectors, found.counts, strict=True):
        np.testing.assert_allclose(centre, trimmed_centre(vectors[codes == code]), atol=1e-6)
        assert np.linalg.norm(centre) == pytest.approx(1, abs=1e-6)
        assert count == (codes == code).sum()


def test_centres_of_nothing_are_refused_or_empty() -> None:
    with pytest.raises(ValueError, match="n ≥ 1"):
        trimmed_centre(np.empty((0, 4)))
    with pytest.raises(ValueError, match="drop"):
        trimmed_centre([[1.0, 0.0]], 1.0)
    assert identity_centres(np.ones((2, 4)), [-1, -1]).vectors.shape == (0, 4)
