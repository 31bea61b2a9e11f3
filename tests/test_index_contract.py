"""What every backend of the gallery must do, against a search written with loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reid.errors import GalleryError, MissingExtra
from reid.index import BACKENDS, Gallery, IdSet
from reid.index.backends import GpuScan
from reid.records import Candidates

DIM = 48
ROWS = 6000
RECALL = {"flat": 1.0, "gpu": 1.0, "hnsw": 0.97, "ivf": 0.95}


def embeddings(n: int, seed: int, dim: int = DIM) -> np.ndarray:
    """Unit rows shaped like those of photos: identities in a low-dimensional space, views spread round them."""
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(7).standard_normal((16, dim))
    identities = rng.standard_normal((max(1, n // 6), 16)) @ basis
    views = identities[rng.integers(0, len(identities), n)] + 0.5 * rng.standard_normal((n, dim)) * 4
    return (views / np.linalg.norm(views, axis=1, keepdims=True)).astype(np.float32)


def naive(store: dict[str, np.ndarray], query: np.ndarray, k: int, barred: frozenset[str] = frozenset()) -> Candidates:
    """The k best by (score descending, id ascending), one product at a time, over vectors rounded to half precision."""
    scored = []
    for id, vector in store.items():
        if id in barred:
            continue
        total = 0.0
        for a, b in zip(vector.astype(np.float16).tolist(), query.tolist(), strict=True):
            total += a * b
        scored.append((-float(np.float32(min(1.0, max(-1.0, total)))), id.encode(), id))
    best = sorted(scored)[:k]
    return Candidates(tuple(id for _, _, id in best), tuple(-score for score, _, _ in best))


def same(found: Candidates, expected: Candidates) -> bool:
    """Equal ids in order, and scores but for one rounding."""
    return found.ids == expected.ids and np.allclose(found.scores, expected.scores, rtol=0, atol=1e-7)


@pytest.fixture(scope="module", params=list(BACKENDS))
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Gallery, dict[str, np.ndarray]]:
    """A compacted gallery of each backend with fresh, replaced and removed rows on top, and what it should hold."""
    backend: str = request.param
    vectors = embeddings(ROWS, seed=1)
    store = {f"a{i:05d}": vectors[i] for i in np.random.default_rng(2).permutation(ROWS)}
    gallery = Gallery.create(tmp_path_factory.mktemp(backend) / "index", fingerprint="m", dim=DIM, backend=backend)
    gallery.add(list(store), np.stack(list(store.values())))
    gallery.commit(revision=1)
    gallery.compact()
    fresh = embeddings(120, seed=3)
    changed = {f"b{i:03d}": fresh[i] for i in range(100)} | {f"a{i:05d}": fresh[100 + i] for i in range(20)}
    gallery.add(list(changed), np.stack(list(changed.values())))
    gone = [f"a{i:05d}" for i in range(50, 90)]
    assert gallery.remove(gone) == 40
    gallery.commit(revision=2)
    try:
        gallery.search(vectors[:1], 1)
    except MissingExtra as error:
        assert "gpu" in error.message and "flat" in error.next_step
        pytest.skip("no GPU here")
    return gallery, {id: vector for id, vector in (store | changed).items() if id not in gone}


def test_finds_what_exact_search_finds(served: tuple[Gallery, dict[str, np.ndarray]]) -> None:
    gallery, store = served
    queries = np.concatenate([embeddings(12, seed=1), embeddings(6, seed=9)])
    expected = [naive(store, query, 10) for query in queries]
    for found in (gallery.search(queries, 10), [gallery.search(query[None], 10)[0] for query in queries]):
        hits = sum(len(set(one.ids) & set(other.ids)) for one, other in zip(found, expected, strict=True))
        assert hits >= RECALL[gallery.backend] * 10 * len(queries)
        if RECALL[gallery.backend] == 1:
            assert all(same(one, other) for one, other in zip(found, expected, strict=True))


def test_scores_are_the_exact_ones_whatever_the_backend(served: tuple[Gallery, dict[str, np.ndarray]]) -> None:
    gallery, store = served
    query = embeddings(1, seed=11)
    (found,) = gallery.search(query, 25)
    again = naive({id: store[id] for id in found.ids}, query[0], 25)
    assert len(found.ids) == 25 and same(found, again)


def test_an_id_finds_itself_fresh_replaced_or_old_and_never_once_removed(
    served: tuple[Gallery, dict[str, np.ndarray]],
) -> None:
    gallery, store = served
    ids = ["b000", "b099", "a00000", "a00019", "a00020", "a05999"]
    assert [found.ids[0] for found in gallery.search(np.stack([store[id] for id in ids]), 3)] == ids
    removed = embeddings(ROWS, seed=1)[50:90]
    lost = {f"a{i:05d}" for i in range(50, 90)}
    assert not any(lost & set(found.ids) for found in gallery.search(removed, 20))


@pytest.mark.parametrize("share", [0.001, 0.05, 0.4, 0.9])
def test_filters_leave_the_nearest_of_those_allowed(
    served: tuple[Gallery, dict[str, np.ndarray]], share: float
) -> None:
    gallery, store = served
    rng = np.random.default_rng(5)
    allowed = {id for id in store if rng.random() < share} | {"nobody"}
    queries = embeddings(8, seed=13)
    expected = [naive({id: store[id] for id in store if id in allowed}, query, 5) for query in queries]
    by_name = gallery.search(queries, 5, allow=allowed)
    assert by_name == gallery.search(queries, 5, allow=IdSet(allowed))
    assert by_name == gallery.search(queries, 5, exclude={id for id in store if id not in allowed})
    hits = sum(len(set(one.ids) & set(other.ids)) for one, other in zip(by_name, expected, strict=True))
    assert hits >= RECALL[gallery.backend] * sum(len(each.ids) for each in expected)
    assert all(set(found.ids) <= allowed for found in by_name)


def test_each_query_may_exclude_its_own(served: tuple[Gallery, dict[str, np.ndarray]]) -> None:
    gallery, store = served
    ids = ["a01000", "b010", "a02000"]
    queries = np.stack([store[id] for id in ids])
    near = gallery.search(queries, 40)
    barred = [frozenset(found.ids[:30]) | {"nobody"} for found in near]
    found = gallery.search(queries, 5, exclude=barred)
    if RECALL[gallery.backend] == 1:
        expected = [naive(store, query, 5, each) for query, each in zip(queries, barred, strict=True)]
        assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert all(len(one.ids) == 5 and not set(one.ids) & each for one, each in zip(found, barred, strict=True))


def test_more_than_there_is_gives_all_there_is(served: tuple[Gallery, dict[str, np.ndarray]]) -> None:
    gallery, store = served
    (found,) = gallery.search(embeddings(1, seed=17), len(store) + 50)
    assert set(found.ids) == set(store) and len(found.ids) == len(store)
    assert list(found.scores) == sorted(found.scores, reverse=True)


def test_equal_scores_are_ordered_by_id_however_many_and_wherever_they_lie(tmp_path: Path) -> None:
    gallery = Gallery.create(tmp_path / "index", fingerprint="m", dim=DIM)
    twin, others = embeddings(1, seed=19), embeddings(3000, seed=21)
    names = [f"t{i:03d}" for i in np.random.default_rng(0).permutation(200)]
    gallery.add([f"x{i}" for i in range(3000)], others)
    gallery.commit(revision=1)
    for low in range(0, 200, 40):
        gallery.add(names[low : low + 40], np.repeat(twin, 40, axis=0))
        gallery.commit(revision=2)
    for queries in (twin, np.repeat(twin, 9, axis=0)):
        assert all(each.ids == tuple(sorted(names)[:7]) for each in gallery.search(queries, 7))
        assert all(len(set(each.scores)) == 1 for each in gallery.search(queries, 7))


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_an_empty_gallery_has_no_candidates(tmp_path: Path, backend: str) -> None:
    gallery = Gallery.create(tmp_path / "index", fingerprint="m", dim=DIM, backend=backend)
    assert gallery.search(embeddings(2, seed=1), 5) == [Candidates((), ()), Candidates((), ())]
    assert gallery.search(np.empty((0, DIM), np.float32), 5) == []
    gallery.compact()
    assert (len(gallery), gallery.ids(), gallery.loose) == (0, [], 0)


def test_a_filter_that_allows_nothing_has_no_candidates(served: tuple[Gallery, dict[str, np.ndarray]]) -> None:
    gallery, store = served
    assert gallery.search(embeddings(1, seed=1), 5, allow={"nobody"}) == [Candidates((), ())]
    assert gallery.search(embeddings(1, seed=1), 5, allow={"b001"}, exclude={"b001"}) == [Candidates((), ())]
    assert gallery.search(embeddings(1, seed=1), 5, exclude=[set(store)]) == [Candidates((), ())]


def test_unusable_questions_are_refused(served: tuple[Gallery, dict[str, np.ndarray]]) -> None:
    gallery, _ = served
    query = embeddings(2, seed=1)
    nan = query.copy()
    nan[1, 3] = np.nan
    for bad, k, exclude in [(query * 2, 5, None), (nan, 5, None), (query[:, :9], 5, None), (query[0], 5, None)]:
        with pytest.raises(GalleryError):
            gallery.search(bad, k, exclude=exclude)
    with pytest.raises(GalleryError, match="the 0 best"):
        gallery.search(query, 0)
    with pytest.raises(GalleryError, match="1 exclusions for 2 queries"):
        gallery.search(query, 5, exclude=[set()])
    with pytest.raises(GalleryError, match="for 2 queries"):
        gallery.search(query, 5, exclude=["a00001", "a00002"])  # type: ignore[list-item]


def test_an_unknown_backend_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(GalleryError) as caught:
        Gallery.create(tmp_path / "index", fingerprint="m", dim=4, backend="kdtree")
    assert caught.value.next_step == "choose one of flat, hnsw, ivf, gpu"
    assert not (tmp_path / "index").exists()


def test_the_gpu_side_filters_what_its_index_cannot() -> None:
    """The index on a GPU knows no filters; a CPU index that knows none either stands in for it."""
    faiss = pytest.importorskip("faiss")
    vectors = embeddings(5000, seed=23).astype(np.float16)
    queries = embeddings(3, seed=25)
    products = queries @ vectors.astype(np.float32).T
    gpu = GpuScan(vectors, faiss.IndexFlatIP(DIM))
    for barred in (0, 300, 4000):
        mask = np.ones(5000, np.bool_)
        mask[np.argsort(-products[0])[:barred]] = False
        found = gpu.propose(queries, 10, mask if barred else None)
        for query in range(3):
            expected = [row for row in np.argsort(-products[query]) if mask[row]][:10]
            scores = {row: score for row, score in zip(found.rows[query], found.scores[query], strict=True) if row >= 0}
            assert sorted(scores, key=lambda row: -scores[row])[:10] == expected
            assert found.bound[query] <= min(scores.values())


def test_the_approximate_backends_build_a_structure_and_search_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = embeddings(ROWS, seed=1)
    for backend in ("hnsw", "ivf"):
        gallery = Gallery.create(tmp_path / backend, fingerprint="m", dim=DIM, backend=backend)
        gallery.add([f"{i}" for i in range(ROWS)], vectors)
        gallery.commit(revision=1)
        assert gallery.loose == ROWS
        gallery.compact()
        assert gallery.loose == 0 and len(list((tmp_path / backend).glob(f"seg-*.{backend}"))) == 1
        with monkeypatch.context() as patch:
            patch.setattr("reid.index.scan.many", None)
            patch.setattr("reid.index.scan.FewQueries", None)
            assert gallery.search(vectors[:20], 1)[7].ids == ("7",)
        gallery.compact(backend="flat")
        assert not list((tmp_path / backend).glob(f"seg-*.{backend}")) and gallery.backend == "flat"
        assert gallery.search(vectors[:20], 1)[7].ids == ("7",)
