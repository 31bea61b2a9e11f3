"""The solvers of large assignments: sparse, priced and exact ones agree, and none crashes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from assignments import check_negatives, clustered, total

from reid.errors import TrainError
from reid.train import mining


@pytest.mark.parametrize("solver", ["lap", "scipy"])
@pytest.mark.parametrize("crowded", [False, True])
def test_many_photos_with_everything_forbidden_are_an_error_and_do_not_crash_the_solver(
    crowded: bool, solver: Literal["lap", "scipy"]
) -> None:
    n = 700  # beyond the size at which small problems are solved whole
    labels = np.arange(n)
    others = np.arange(1, n)
    forbidden = np.stack([np.zeros(n - 1, np.int64), others], axis=1)  # photo 0 may meet nobody
    if crowded:  # photos 0 and 1 may only meet photo 2
        forbidden = np.array([[i, j] for i in (0, 1) for j in range(n) if j not in (i, 2)])
    rng = np.random.default_rng(0)
    near = rng.integers(0, n, (n, 5))
    with pytest.raises(TrainError, match="forbidden pairs leave no assignment"):
        mining.assign_sparse(near, rng.random((n, 5)), labels, forbidden=forbidden, rng=rng, solver=solver)


def test_large_sparse_problem_equals_the_exact_one_over_the_same_pairs() -> None:
    vectors, labels = clustered(250, np.full(250, 3))
    scores = (vectors @ vectors.T).astype(np.float64)
    n = len(labels)
    near = np.argsort(-scores, axis=1)[:, :25]
    rng = np.random.default_rng(0)
    partner = mining.assign_sparse(near, np.take_along_axis(scores, near, 1), labels, rng=rng)
    check_negatives(partner, labels)
    listed = np.zeros((n, n), bool)
    listed[np.arange(n)[:, None], near] = True
    listed |= listed.T
    only_listed = np.where(listed, scores, scores.min() - (scores.max() - scores.min()))
    exact = mining.assign_hard_negatives(only_listed, labels)
    both = listed[np.arange(n), partner] & listed[np.arange(n), exact]
    assert both.mean() > 0.99
    assert scores[np.arange(n), partner][both].sum() == pytest.approx(scores[np.arange(n), exact][both].sum(), rel=1e-3)


def test_a_random_schedule_never_crashes_the_sparse_solver() -> None:
    rng = np.random.default_rng(3)
    for trial in range(30):
        n = int(rng.integers(513, 900))
        labels = rng.integers(0, n // 2, n)
        near = rng.integers(-1, n, (n, int(rng.integers(0, 6))))
        forbidden = None
        for _ in range(3):
            partner = mining.assign_sparse(
                near, rng.random(near.shape), labels, forbidden=forbidden, rng=rng, noise=float(trial % 2)
            )
            check_negatives(partner, labels)
            forbidden = mining.forbid(forbidden, partner)


@pytest.mark.parametrize("noise", [0.0, 0.5, 1000.0])
@pytest.mark.parametrize("forbid_some", [False, True])
def test_the_priced_solution_of_many_photos_is_that_of_the_whole_matrix(noise: float, forbid_some: bool) -> None:
    vectors, labels = clustered(400, np.random.default_rng(1).integers(1, 5, 400), dim=6)
    scores = (vectors @ vectors.T).astype(np.float64)
    forbidden = mining.forbid(None, mining.assign_hard_negatives(scores, labels)) if forbid_some else None
    found = {}
    for solver in ("lap", "scipy", "priced"):
        rng = np.random.default_rng(5)  # the same noise for all
        found[solver] = mining.assign_hard_negatives(
            scores, labels, noise=noise, forbidden=forbidden, rng=rng, solver=solver
        )
        check_negatives(found[solver], labels)
    same = (found["priced"] == found["lap"]).mean()
    assert (
        same > 0.99 if noise else total(scores, found["priced"]) == pytest.approx(total(scores, found["lap"]), rel=1e-6)
    )
    assert total(scores, found["scipy"]) == pytest.approx(total(scores, found["lap"]), rel=1e-6)


@pytest.mark.parametrize("solver", ["lap", "scipy"])
def test_both_sparse_solvers_agree(solver: Literal["lap", "scipy"]) -> None:
    vectors, labels = clustered(250, np.full(250, 3))
    scores = (vectors @ vectors.T).astype(np.float64)
    near = np.argsort(-scores, axis=1)[:, :25]
    listed = np.take_along_axis(scores, near, 1)
    expected = mining.assign_sparse(near, listed, labels, rng=np.random.default_rng(0))
    partner = mining.assign_sparse(near, listed, labels, rng=np.random.default_rng(0), solver=solver)
    assert total(scores, partner) == pytest.approx(total(scores, expected), rel=1e-9)
