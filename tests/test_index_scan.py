"""The two exact kernels, against loops."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from galleries import unit_rows

from reid.index import scan


def test_decoding_gives_every_finite_half_its_value() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(-1, 4)
    out = np.empty(halves.shape, np.float32)
    scan.decode(halves, out)
    assert np.array_equal(out.view(np.uint32), halves.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("kernel", ["many", "few"])
@pytest.mark.parametrize("n", [1, 5, 300, 4097, 9001, 40_000])
@pytest.mark.parametrize("share", [None, 0.002, 0.3, 0.8])
def test_a_kernel_proposes_the_best_rows_and_bounds_the_rest(kernel: str, n: int, share: float | None) -> None:
    vectors = unit_rows(n, 16, seed=n).astype(np.float16)
    queries = unit_rows(3, 16, seed=2)
    mask = None if share is None else np.random.default_rng(3).random(n) < share
    if mask is not None and not mask.any():
        mask[0] = True
    if kernel == "many":
        found = scan.many(vectors, queries, 7, mask)
    else:
        found = scan.FewQueries(pytest.importorskip("faiss"), vectors).propose(queries, 7, mask)
    for query in range(3):
        products = [float(np.dot(vectors[row].astype(np.float64), queries[query])) for row in range(n)]
        allowed = [row for row in range(n) if mask is None or mask[row]]
        expected = sorted(allowed, key=lambda row: -products[row])[:7]
        proposed = [row for row in found.rows[query].tolist() if row >= 0]
        assert proposed[: len(expected)] == expected
        assert np.allclose(found.scores[query][: len(expected)], [products[row] for row in expected], atol=1e-6)
        assert np.isneginf(found.scores[query][found.rows[query] < 0]).all()
        rest = [products[row] for row in allowed if row not in proposed]
        assert max(rest, default=-np.inf) <= found.bound[query] + 1e-6


def test_many_queries_at_once_keep_theirs_apart() -> None:
    vectors, queries = unit_rows(20_000, 8, seed=1).astype(np.float16), unit_rows(70, 8, seed=2)
    found = scan.many(vectors, queries, 12, None)
    products = queries @ vectors.astype(np.float32).T
    assert np.allclose(found.scores, -np.sort(-products, axis=1)[:, :12], atol=1e-6)
    assert np.allclose(np.take_along_axis(products, found.rows, axis=1), found.scores, atol=1e-6)


def test_scanning_reads_mapped_rows_where_they_lie_and_lets_them_go(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    np.save(tmp_path / "rows.npy", unit_rows(20_000, 8, seed=1).astype(np.float16))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    query = unit_rows(1, 8, seed=2)
    before = scan.many(mapped, query, 3, None)
    for _ in range(50):
        few = scan.FewQueries(faiss, np.asarray(mapped))
        assert np.array_equal(few.propose(query, 3, None).rows, before.rows)
        del few
        gc.collect()


def test_scanning_leaves_the_callers_number_of_threads_alone() -> None:
    faiss = pytest.importorskip("faiss")
    before = faiss.omp_get_max_threads()
    scan.FewQueries(faiss, unit_rows(5000, 8, seed=1).astype(np.float16)).propose(unit_rows(2, 8, seed=2), 3, None)
    assert faiss.omp_get_max_threads() == before


def test_joining_keeps_the_best_and_raises_the_bound_to_what_it_drops() -> None:
    one = scan.Proposals(np.float32([[0.9, 0.5]]), np.int64([[1, 2]]), np.float32([0.5]))
    two = scan.Proposals(np.float32([[0.8, 0.7]]), np.int64([[11, 12]]), np.float32([-np.inf]))
    both = scan.joined([one, two], 2)
    assert both.rows.tolist() == [[1, 11]] and both.bound.tolist() == [np.float32(0.7)]
    assert scan.joined([one, two], 4).bound.tolist() == [0.5]
