"""Hubs do not come first because they look like everything: crowding is what a loop finds, at fitting as at asking."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from fake_stores import DIM, fake_store, reopened, with_vectors
from numpy.typing import NDArray

from reid import crowding, fit, whiten, withheld
from reid.crowding import NEAR, Crowds
from reid.embed import unit_rows
from reid.index import Gallery
from reid.search import Probe, Searcher
from reid.store import CALIBRATION, Store


def rows_of(count: int, dim: int = 12, seed: int = 0) -> NDArray[np.float32]:
    return unit_rows(np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32) + 0.5)


def by_a_loop(rows: NDArray[np.float32], individuals: NDArray[np.int64]) -> list[float]:
    out = []
    for i, row in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i and (individuals[j] < 0 or individuals[j] != individuals[i])]
        best = sorted((float(rows[j] @ row) for j in others), reverse=True)[:NEAR]
        out.append(sum(best) / len(best) if best else math.nan)
    return out


@pytest.mark.parametrize(("count", "animals"), [(700, 90), (25, 8), (6, 3), (3, 1), (1, 1)])
def test_crowding_is_the_mean_cosine_to_the_nearest_of_other_animals(count: int, animals: int) -> None:
    rows = rows_of(count)
    individuals = np.random.default_rng(1).integers(-1 if count > 3 else 0, animals, count)
    found = crowding.crowding(rows, individuals)
    np.testing.assert_allclose(found, by_a_loop(rows, individuals), atol=1e-5)


def test_the_index_gives_the_same_and_is_asked_once_a_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(120)
    individuals = np.random.default_rng(1).integers(-1, 9, 120)
    ids = [str(n) for n in range(120)]
    gallery = Gallery.create(tmp_path, fingerprint="f", dim=rows.shape[1])
    gallery.add(ids, rows)
    gallery.commit(revision=1)
    crowds = Crowds(gallery, {id: str(who) for id, who in zip(ids, individuals.tolist(), strict=True) if who >= 0})
    wanted = crowding.crowding(rows, individuals)
    np.testing.assert_allclose(crowds.of(ids[:50]), wanted[:50], atol=2e-3)  # vectors are kept in half precision
    asked = []
    search = Gallery.search
    monkeypatch.setattr(Gallery, "search", lambda self, q, *a, **k: asked.append(len(q)) or search(self, q, *a, **k))
    np.testing.assert_allclose(crowds.of([*ids[40:60], "7", "7"]), [*wanted[40:60], wanted[7], wanted[7]], atol=2e-3)
    assert asked == [10]
    assert len(crowds.of([])) == 0


def test_what_is_taken_off_averages_to_nothing_and_is_nothing_where_nothing_is_known() -> None:
    crowded = np.array([0.1, 0.5, math.nan, 0.3])
    off = crowding.taken_off(crowded, crowding.middle(crowded))
    np.testing.assert_allclose(off, [-0.1, 0.1, 0.0, 0.0], atol=1e-12)
    assert crowding.middle([math.nan]) == 0.0


def hubs(seed: int = 0) -> tuple[NDArray[np.float32], list[str]]:
    """Animals with two photos each around directions of their own, and ten with one photo that look like all others."""
    rng = np.random.default_rng(seed)
    centres = unit_rows(rng.normal(size=(150, DIM)).astype(np.float32))
    twice = unit_rows(np.repeat(centres, 2, 0) + 0.13 * rng.normal(size=(300, DIM)).astype(np.float32) + 0.18)
    alone = unit_rows((np.ones((10, DIM)) + 0.3 * rng.normal(size=(10, DIM))).astype(np.float32))
    return np.concatenate([twice, alone]), [f"w{n // 2}" for n in range(300)] + [f"hub{n}" for n in range(10)]


def found(store: Store, vectors: NDArray[np.float32], own: int) -> tuple[Searcher, list[str], list[float]]:
    searcher = Searcher.open(store, k=5)
    probe = Probe(store.project(vectors[own : own + 1], searcher.gallery)[0], exclude=frozenset({str(own + 1)}))
    [answer] = searcher.find([probe])
    return searcher, list(answer.candidates.ids), list(answer.candidates.scores)


def test_a_photo_that_looks_like_all_others_is_not_in_everyones_way(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    vectors, names = hubs()
    ids = with_vectors(store, vectors, names)
    assert ids == list(range(1, len(ids) + 1))
    crowded = fit.fit(store).crowded
    assert crowded is not None
    first = {"relieved": 0, "plain": 0}
    for own in range(0, 300, 2):
        searcher, order, scores = found(store, vectors, own)
        rows = searcher.gallery.vectors(order)
        plain = rows @ store.project(vectors[own : own + 1], searcher.gallery)[0]
        off = crowding.SHARE * (Crowds(searcher.gallery, owners(store)).of(order) - crowded)
        np.testing.assert_allclose(scores, plain - off, atol=1e-5)
        assert scores == sorted(scores, reverse=True)
        first["relieved"] += order[0] == str(own + 2)
        first["plain"] += order[int(np.argmax(plain))] == str(own + 2)
    assert first["relieved"] > first["plain"]


def owners(store: Store) -> dict[str, str]:
    return {str(photo): str(animal) for photo, animal in store.catalogue.owners().items()}


def test_left_out_photos_are_measured_with_crowding_taken_off(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    with_vectors(store, *hubs())
    labels, vectors = withheld.gathered(store.catalogue, store.fingerprint)
    queries = np.arange(0, 60, 2)
    rest = np.setdiff1d(np.arange(len(vectors)), queries)
    crowded = crowding.crowding(vectors[rest], labels.individuals[rest])
    scores = vectors[queries] @ vectors[rest].T - crowding.SHARE * (crowded - crowded.mean())
    cases = withheld.left_out(store, labels, vectors, queries, whitened=0.0)
    np.testing.assert_allclose(cases.known_best, scores.max(axis=1), atol=1e-5)


def test_with_nothing_measured_cosines_serve_as_they_are_and_so_they_do_by_an_earlier_fit(tmp_path: Path) -> None:
    few = fake_store(tmp_path / "few")
    few_vectors, _ = hubs()
    with_vectors(few, few_vectors[:12], [f"w{n // 2}" for n in range(12)])
    assert fit.fit(few).crowded is None
    store = fake_store(tmp_path / "s")
    vectors, names = hubs()
    with_vectors(store, vectors, names)
    fit.fit(store)
    kept = json.loads((store.root / CALIBRATION).read_text())
    del kept["crowded"]  # as a release before this one wrote it
    (store.root / CALIBRATION).write_text(json.dumps(kept))
    for one in (few, store):
        again = reopened(one.root)
        searcher, order, scores = found(again, vectors, 0)
        plain = searcher.gallery.vectors(order) @ again.project(vectors[:1], searcher.gallery)[0]
        np.testing.assert_allclose(scores, plain, atol=1e-6)
    assert whiten.LEAST_PHOTOS > len(vectors)  # so none of these galleries was whitened
