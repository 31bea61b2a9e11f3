"""Fused scores of several models: against loops, never worse than the best of them, honest on photos apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from reid.train import ensembles
from reid.train.ensembles import fit_apart, fit_fusion, fuse, ranks

Q, IDS = 60, 12


def noisy(seed: int, *sigmas: float) -> tuple[list[NDArray[np.float64]], NDArray[np.int64]]:
    """Scores of models that see the truth through noise of their own."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, IDS, Q)
    signal = np.eye(IDS)[truth]
    return [
        scale * (signal + rng.normal(0, s, (Q, IDS))) for scale, s in zip((1.0, 0.1, 3.0), sigmas, strict=False)
    ], truth


def map_of(scores: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    points = []
    for row, own in zip(scores, truth, strict=True):
        rank = 1 + sum(1 for i, value in enumerate(row) if i != own and value >= row[own])
        points.append(1 / rank if rank <= 5 else 0.0)
    return float(np.mean(points))


def test_fused_scores_are_those_of_plain_loops() -> None:
    matrices, truth = noisy(1, 0.5, 0.6)
    matrices[0][3, 4] = -np.inf if truth[3] != 4 else matrices[0][3, 4]
    found = fit_fusion(matrices, truth)
    fused = fuse(matrices, found)
    for q in range(Q):
        for i in range(IDS):
            total = 0.0
            for model, weight, heat in zip(matrices, found.weights, found.temperatures, strict=True):
                powers = [math.exp((float(v) - max(model[q])) / heat) for v in model[q]]
                total += weight * (powers[i] / sum(powers)) ** found.alpha
            assert fused[q, i] == pytest.approx(total, rel=1e-9, abs=1e-15)
    assert found.map_at_5 == pytest.approx(map_of(fused, truth))
    assert found.singles == pytest.approx([map_of(one, truth) for one in matrices])
    assert sum(found.weights) == pytest.approx(1.0) and found.queries == Q


@pytest.mark.parametrize("seed", range(4))
def test_a_fusion_is_never_worse_than_the_best_model_nor_than_any_point_of_a_coarse_grid_by_much(seed: int) -> None:
    matrices, truth = noisy(seed, 0.6, 0.5)
    found = fit_fusion(matrices, truth)
    assert found.map_at_5 >= max(found.singles)
    grid = [
        map_of(
            sum(
                w * np.exp(alpha * ensembles._log_softmax(m, t))
                for w, m, t in zip((share, 1 - share), matrices, found.temperatures, strict=True)
            ),
            truth,
        )
        for alpha in ensembles.ALPHAS
        for share in np.linspace(0, 1, 5)
    ]
    assert found.map_at_5 >= max(grid) - 0.02


def test_models_with_errors_of_their_own_are_better_together() -> None:
    matrices, truth = noisy(7, 0.6, 0.6, 0.6)
    found = fit_fusion(matrices, truth)
    assert found.map_at_5 > max(found.singles) + 0.05 and min(found.weights) > 0.05
    assert fit_apart(matrices, truth) > max(found.singles)


def test_a_model_that_knows_nothing_gets_little_say() -> None:
    matrices, truth = noisy(3, 0.2, 50.0)
    found = fit_fusion(matrices, truth)
    assert found.weights[0] >= 0.5 and found.map_at_5 >= found.singles[0]


def test_alpha_can_be_held_and_the_same_scores_give_the_same_fit() -> None:
    matrices, truth = noisy(5, 0.5, 0.7)
    held = fit_fusion(matrices, truth, alphas=(1.0,))
    assert held.alpha == 1.0 and held == fit_fusion(matrices, truth, alphas=(1.0,))
    assert fit_fusion(matrices, truth).map_at_5 >= held.map_at_5


def test_the_temperature_is_the_most_likely_one() -> None:
    matrices, truth = noisy(2, 0.5)
    found = ensembles.temperature(matrices[0], truth)

    def loss(heat: float) -> float:
        return -float(ensembles._log_softmax(matrices[0], heat)[np.arange(Q), truth].mean())

    assert loss(found) <= min(loss(found * f) for f in (0.5, 0.8, 0.95, 1.05, 1.25, 2.0)) + 1e-9


def test_queries_without_their_identity_are_passed_over() -> None:
    matrices, truth = noisy(4, 0.5, 0.5)
    some = truth.copy()
    some[::3] = -1
    assert fit_fusion(matrices, some) == fit_fusion([m[some >= 0] for m in matrices], some[some >= 0])


def test_equal_scores_do_not_flatter() -> None:
    assert ranks(np.zeros((2, 4)), np.array([0, 3])).tolist() == [4, 4]


def test_what_cannot_be_fitted_is_refused() -> None:
    matrices, truth = noisy(1, 0.5, 0.5)
    with pytest.raises(ValueError, match="expected"):
        fit_fusion([matrices[0], matrices[1][:, :3]], truth)
    with pytest.raises(ValueError, match="NaN"):
        fit_fusion([np.full((Q, IDS), np.nan)], truth)
    with pytest.raises(ValueError, match="no query"):
        fit_fusion(matrices, np.full(Q, -1))
    assert math.isnan(fit_apart(matrices, np.zeros(Q, np.int64)))
