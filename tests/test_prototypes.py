"""Half of each cosine is that with the mean of the animal's photos: as a loop has it, at fitting as at asking."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_stores import DIM, fake_store, reopened, with_vectors
from numpy.typing import NDArray

from reid import crowding, fit, flanks, prototypes, withheld
from reid.embed import unit_rows
from reid.prototypes import Animals, Prototypes
from reid.search import Probe, Searcher
from reid.store import CALIBRATION

Rows = NDArray[np.float32]


def rows_of(count: int, dim: int = 12, seed: int = 0) -> Rows:
    return unit_rows(np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32) + 0.3)


def by_a_loop(
    rows: Rows, groups: list[int], gallery: list[int], query: Rows, at: list[int], barred: list[int]
) -> list[float]:
    out = []
    for photo in at:
        own = [i for i in gallery if groups[i] == groups[photo] and i not in barred]
        cosine = float(rows[photo] @ query)
        if groups[photo] >= 0 and len(own) > 0:
            mean = np.mean([rows[i] for i in own], axis=0)
            cosine = (cosine + float(mean @ query) / float(np.linalg.norm(mean))) / 2
        out.append(cosine)
    return out


@pytest.mark.parametrize("barred", [[], [4, 5, 9, 80]])
def test_half_of_each_cosine_is_that_with_the_mean_of_its_animals_photos(barred: list[int]) -> None:
    rows = rows_of(90)
    groups = np.random.default_rng(1).integers(-3, 25, 90).clip(-1)
    gallery = np.arange(3, 88)
    made = Prototypes.of(rows, groups, gallery)
    at = np.setdiff1d(gallery, barred)
    query = rows_of(1, seed=7)[0]
    found = made.blended(query, np.asarray(rows[at] @ query, np.float64), at, barred)
    np.testing.assert_allclose(
        found, by_a_loop(rows, groups.tolist(), gallery.tolist(), query, at.tolist(), barred), atol=1e-6
    )
    assert np.abs(found - rows[at] @ query).max() > 0.01


def test_photos_of_nobody_and_only_ones_keep_their_cosines() -> None:
    rows, cosines = rows_of(6), np.linspace(0, 1, 6)
    nobody = Prototypes.of(rows, np.full(6, -1), np.arange(6))
    alone = Prototypes.of(rows, np.arange(6), np.arange(6))
    for made in (nobody, alone):
        assert made.blended(rows[0], cosines, np.arange(6)).tolist() == cosines.tolist()


class Read:
    """A gallery at hand that says what was read of it."""

    def __init__(self, rows: Rows, gone: set[str]) -> None:
        self.rows, self.gone, self.read = rows, gone, []

    def holds(self, ids: list[str]) -> NDArray[np.bool_]:
        return np.array([id not in self.gone for id in ids], np.bool_)

    def vectors(self, ids: list[str]) -> Rows:
        self.read.append(len(ids))
        return self.rows[[int(id) for id in ids]]


@pytest.mark.parametrize("most", [64, 3])
def test_of_an_index_it_is_the_same_in_any_order_is_made_once_and_passes_over_what_is_gone(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """With flanks, and with fewer photos taken than an animal has."""
    monkeypatch.setattr(prototypes, "MOST", most)
    rows = rows_of(90)
    animals = np.random.default_rng(2).integers(-1, 7, 90)
    flank = np.random.default_rng(3).choice([0, 0, 1, 2], 90)
    groups = np.where(animals < 0, -1, animals * 3 + flank)
    gone = {"3", "17"}
    there = np.array([i for i in range(90) if str(i) not in gone])
    owners = {str(i): str(g) for i, g in enumerate(animals.tolist()) if g >= 0}
    sides = {str(i): ("left", "right")[f - 1] for i, f in enumerate(flank.tolist()) if f}
    wanted = Prototypes.of(rows, groups, there)
    queries = rows_of(4, seed=5)
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        gallery = Read(rows, gone)
        made = Animals(gallery, owners, lambda: sides)  # type: ignore[arg-type]
        for number in order:
            barred = {"21", "59"} if number % 2 else set()
            at = np.array([i for i in range(20 * number, 20 * number + 30) if str(i) not in gone | barred])
            plain = np.asarray(rows[at] @ queries[number], np.float64)
            found = made.blended(queries[number], [str(i) for i in at], plain, barred)
            loop = wanted.blended(queries[number], plain, at, [int(b) for b in barred])
            np.testing.assert_allclose(found, loop, atol=1e-6)
        assert sum(gallery.read) <= min(90, 7 * 3 * most)
    if most == 64:
        at = there[:40]
        loop = by_a_loop(rows, groups.tolist(), there.tolist(), queries[0], at.tolist(), [])
        np.testing.assert_allclose(
            wanted.blended(queries[0], np.asarray(rows[at] @ queries[0], np.float64), at), loop, atol=1e-6
        )


def test_so_many_photos_at_most_are_taken_and_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prototypes, "MOST", 5)
    assert [prototypes.evenly(n).tolist() for n in (0, 1, 5)] == [[], [0], [0, 1, 2, 3, 4]]
    for n in range(6, 60):
        gaps = np.diff(prototypes.evenly(n))
        assert len(gaps) == 4 and gaps.max() - gaps.min() <= 1


def several(seed: int = 0, animals: int = 60, shots: int = 5) -> tuple[Rows, list[str]]:
    """Animals around directions of their own, in photos that stray far from it."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(unit_rows(rng.normal(size=(animals, DIM)).astype(np.float32)), shots, 0)
    strayed = centres + 0.26 * rng.normal(size=centres.shape)
    return unit_rows(strayed.astype(np.float32)), [f"w{n // shots}" for n in range(animals * shots)]


def test_a_query_is_answered_as_the_left_out_photos_were_and_finds_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crowding, "SHARE", 0.0)
    store = fake_store(tmp_path / "s")
    vectors, names = several()
    with_vectors(store, vectors, names)
    made = fit.fit(store)
    assert made.prototypes and not fit.is_due(store)
    labels, rows = withheld.gathered(store.catalogue, store.fingerprint)
    queries = np.arange(0, 300, 5)
    rest = np.setdiff1d(np.arange(300), queries)
    cases = withheld.left_out(store, labels, rows, queries, whitened=0.0, prototypes=True)
    for place, query in enumerate(queries.tolist()):
        wanted = by_a_loop(rows, labels.individuals.tolist(), rest.tolist(), rows[query], rest.tolist(), [query])
        assert cases.known_best[place] == pytest.approx(max(wanted), abs=1e-5)
    searcher = Searcher.open(store, k=5)
    turned = store.project(vectors, searcher.gallery)
    first = {"prototypes": 0, "photos": 0}
    for own in range(0, 300, 5):
        [answer] = searcher.find([Probe(turned[own], exclude=frozenset({str(own + 1)}))])
        at = [int(id) - 1 for id in answer.candidates.ids]
        others = [i for i in range(300) if i != own]
        wanted = by_a_loop(turned, labels.individuals.tolist(), others, turned[own], at, [])
        np.testing.assert_allclose(answer.candidates.scores, wanted, atol=3e-3)  # kept in half precision
        plain = turned[at] @ turned[own]
        np.testing.assert_allclose([answer.evidence(str(i + 1))["cosine"] for i in at], plain, atol=3e-3)
        first["prototypes"] += names[at[0]] == names[own]
        first["photos"] += names[at[int(np.argmax(plain))]] == names[own]
    assert first["prototypes"] > first["photos"]


def test_flanks_that_are_not_compared_have_prototypes_of_their_own(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    settings = store.root / "reid.toml"
    table = "[gallery.opposite_sides_of]"
    settings.write_text(settings.read_text().replace(table, f'{table}\nzebra = "always"'))
    store = reopened(store.root)
    sides = ["left", "right", "unknown"] * 4
    with_vectors(
        store, rows_of(12, DIM), ["a"] * 6 + ["b"] * 5 + [None], sides=sides, species=["whale"] * 6 + ["zebra"] * 6
    )
    labels, _ = withheld.gathered(store.catalogue, store.fingerprint)
    apart = flanks.grouped(store, labels, "separate").tolist()
    assert len(set(apart[:6])) == 3 and apart[0] == apart[3] and len(set(apart[6:11])) == 1 and apart[11] == -1
    assert not set(apart[:6]) & set(apart[6:11])
    together = flanks.grouped(store, labels, "together").tolist()
    assert len(set(together[:6])) == 1 and len(set(together[6:11])) == 1


def test_an_earlier_fit_serves_as_it_did_until_the_next(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    vectors, names = several()
    with_vectors(store, vectors, names)
    fit.fit(store)
    file = store.root / CALIBRATION
    raw = json.loads(file.read_text())
    del raw["prototypes"]
    file.write_text(json.dumps(raw))
    again = reopened(store.root)
    searcher = Searcher.open(again, k=5)
    assert searcher.animals is None and fit.is_due(again)
    [answer] = searcher.find([Probe(again.project(vectors[:1], searcher.gallery)[0])])
    assert answer.candidates.ids
    fit.fit(again)
    assert Searcher.open(again, k=5).animals is not None and not fit.is_due(again)
