"""Hubs do not come first because they look like everything: crowding is what a loop finds, at fitting as at asking."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from fake_stores import DIM, fake_store, reopened, with_vectors
from numpy.typing import NDArray

from reid import crowding, fit, prototypes, whiten, withheld
from reid.crowding import EACH, NEAR, Crowd, Crowding, Crowds
from reid.embed import unit_rows
from reid.index import Gallery
from reid.prototypes import Prototypes
from reid.search import Probe, Searcher
from reid.store import CALIBRATION, Store

Rows = NDArray[np.float32]
Codes = NDArray[np.int64]


def rows_of(count: int, dim: int = 12, seed: int = 0) -> Rows:
    return unit_rows(np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32) + 0.5)


def by_a_loop(rows: Rows, animals: Codes, kinds: Codes, members: Codes, without: int = -1) -> list[float]:
    out = []
    for i, row in enumerate(rows):
        others = [j for j in members.tolist() if animals[j] not in (animals[i], without) and kinds[j] == kinds[i]]
        best = sorted((float(rows[j] @ row) for j in others), reverse=True)[:NEAR]
        out.append(sum(best) / len(best) if best else math.nan)
    return out


def codes_of(count: int, animals: int, seed: int = 1) -> Codes:
    return np.random.default_rng(seed).integers(-1 if count > 3 else 0, animals, count)


@pytest.mark.parametrize(("count", "animals"), [(1400, 190), (25, 8), (6, 3), (3, 1), (1, 1)])
@pytest.mark.parametrize("species", [1, 3])
def test_crowding_is_the_mean_cosine_to_the_nearest_of_other_animals(count: int, animals: int, species: int) -> None:
    rows, own = rows_of(count), codes_of(count, animals)
    kinds = np.random.default_rng(2).integers(0, species, count)
    members = crowding.drawn(own)
    found = crowding.around(rows, own, kinds, Crowd(rows[members], own[members], kinds[members]))
    np.testing.assert_allclose(found.means(), by_a_loop(rows, own, kinds, members), atol=1e-5)
    for away in range(3):  # the animal taken out, as if it had never been in the gallery
        wanted = by_a_loop(rows, own, kinds, members, away)
        np.testing.assert_allclose(found.means(without=away), wanted, atol=1e-5)
    some = np.arange(0, count, 2)
    away_of = np.random.default_rng(3).integers(0, animals, len(some))
    one_by_one = [found.means(some[i : i + 1], int(a))[0] for i, a in enumerate(away_of.tolist())]
    np.testing.assert_array_equal(found.means(some, away_of), one_by_one)


def test_a_crowd_is_some_photos_of_each_named_animal() -> None:
    animals = np.array([-1] * 20 + [3] * 30 + [5] * 2 + [7])
    members = crowding.drawn(animals)
    assert np.bincount(animals[members]).tolist() == [0, 0, 0, EACH, 0, 2, 0, 1]
    assert (np.diff(members) > 0).all()
    many = np.repeat(np.arange(900), 3)
    some = crowding.drawn(many, most=500)
    assert (
        len(set(some.tolist())) == 500 and len(set(many[some].tolist())) > 300
    )  # drawn from all of them, not the first
    assert some.tolist() == crowding.drawn(many, most=500).tolist() != crowding.drawn(many, most=500, seed=1).tolist()
    assert crowding.drawn(np.full(5, -1)).tolist() == []


def test_what_is_taken_off_averages_to_nothing_and_is_nothing_where_nothing_is_known() -> None:
    cosines, nobody = np.array([[0.1], [0.5], [-np.inf], [0.3]], np.float32), np.zeros(4)
    crowded = Crowding(cosines, np.array([[1], [2], [-1], [2]]), nobody)
    one_kind = crowded.centred(np.zeros(4, np.int64))
    np.testing.assert_allclose(one_kind.relief(), [-0.1, 0.1, 0.0, 0.0], atol=1e-7)
    np.testing.assert_allclose(one_kind.relief(without=2), [-0.1, 0.0, 0.0, 0.0], atol=1e-7)
    two_kinds = crowded.centred(np.array([4, 4, 4, 7]))
    np.testing.assert_allclose(two_kinds.relief(), [-0.1, 0.1, 0.0, 0.0], atol=1e-7)
    np.testing.assert_allclose(crowded.centred(np.array([4, 7, 7, 7])).relief(), [0.0, 0.05, 0.0, -0.05], atol=1e-7)
    assert Crowding.none(3).centred(np.zeros(3, np.int64)).relief().tolist() == [0.0] * 3


def test_the_index_gives_the_same_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, animals = rows_of(120), codes_of(120, 9)
    kinds = np.arange(120) % 2
    ids = [str(n) for n in range(120)]
    gallery = Gallery.create(tmp_path, fingerprint="f", dim=rows.shape[1])
    gallery.add(ids, rows)
    gallery.commit(revision=1)
    owners = {id: str(who) for id, who in zip(ids, animals.tolist(), strict=True) if who >= 0}
    members = crowding.drawn(animals)
    named = {name: members[kinds[members] == code].tolist() for code, name in enumerate(("fluke", "flank"))}
    gone, nobodys = 1000, int(np.flatnonzero(animals < 0)[0])  # removed since the fit; and unassigned
    middles = {"fluke": 0.2, "flank": 0.3}
    crowds = Crowds(gallery, {**named, "fluke": [*named["fluke"], gone, nobodys]}, middles, owners)
    species = [("fluke", "flank")[kind] for kind in kinds]
    wanted = crowding.SHARE * (np.array(by_a_loop(rows, animals, kinds, members)) - np.array([0.2, 0.3])[kinds])
    np.testing.assert_allclose(crowds.of(ids[:50], species[:50]), wanted[:50], atol=2e-3)  # kept in half precision
    read = []
    vectors = Gallery.vectors
    monkeypatch.setattr(Gallery, "vectors", lambda self, ids: read.append(len(ids)) or vectors(self, ids))
    again = crowds.of([*ids[40:60], "7", "7"], [*species[40:60], species[7], species[7]])
    np.testing.assert_allclose(again, [*wanted[40:60], wanted[7], wanted[7]], atol=2e-3)
    assert read == [10]
    assert len(crowds.of([], [])) == 0
    assert crowds.of(["119"], ["ape"]).tolist() == [0.0]  # nobody of its kind was there when the fit was made
    assert Crowds(gallery, {}, {}, owners).of(["5"], [""]).tolist() == [0.0]


@pytest.fixture
def photos_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cosines with photos, none with prototypes, so that crowding can be told by a loop."""
    monkeypatch.setattr(prototypes, "SHARE", 0.0)


def hubs(seed: int = 0) -> tuple[Rows, list[str]]:
    """Animals with two photos each around directions of their own, and ten with one photo that look like all others."""
    rng = np.random.default_rng(seed)
    centres = unit_rows(rng.normal(size=(150, DIM)).astype(np.float32))
    twice = unit_rows(np.repeat(centres, 2, 0) + 0.13 * rng.normal(size=(300, DIM)).astype(np.float32) + 0.18)
    alone = unit_rows((np.ones((10, DIM)) + 0.3 * rng.normal(size=(10, DIM))).astype(np.float32))
    return np.concatenate([twice, alone]), [f"w{n // 2}" for n in range(300)] + [f"hub{n}" for n in range(10)]


def found(store: Store, vectors: Rows, own: int) -> tuple[Searcher, list[str], list[float], list[float]]:
    """What a photo of the gallery finds but itself: ids, scores, and the cosines said to have spoken for them."""
    searcher = Searcher.open(store, k=5)
    probe = Probe(store.project(vectors[own : own + 1], searcher.gallery)[0], exclude=frozenset({str(own + 1)}))
    [answer] = searcher.find([probe])
    ids = list(answer.candidates.ids)
    return searcher, ids, list(answer.candidates.scores), [answer.evidence(id)["cosine"] for id in ids]


def test_a_photo_that_looks_like_all_others_is_not_in_everyones_way(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    vectors, names = hubs()
    ids = with_vectors(store, vectors, names)
    assert ids == list(range(1, len(ids) + 1))
    made = fit.fit(store)
    assert made.crowded is not None and made.crowd is not None and set(made.crowd[""]) <= set(ids)
    crowded = crowding_of_all(store, vectors)
    assert made.crowded == {"": pytest.approx(crowded.middles[0], abs=1e-3)}
    searcher = Searcher.open(store, k=5)
    rows_of_all = store.project(vectors, searcher.gallery)
    middles = Prototypes.of(rows_of_all, store.catalogue.labels().individuals, np.arange(len(vectors)))
    first = {"relieved": 0, "plain": 0}
    for own in range(0, 300, 2):
        searcher, order, scores, cosines = found(store, vectors, own)
        rows = searcher.gallery.vectors(order)
        plain = rows @ store.project(vectors[own : own + 1], searcher.gallery)[0]
        np.testing.assert_allclose(cosines, plain, atol=1e-5)
        at = np.array([int(id) - 1 for id in order])
        halves = middles.blended(rows_of_all[own], plain.astype(np.float64), at, [own])
        np.testing.assert_allclose(scores, halves - crowded.relief(at), atol=3e-3)
        assert scores == sorted(scores, reverse=True)
        first["relieved"] += order[0] == str(own + 2)
        first["plain"] += order[int(np.argmax(plain))] == str(own + 2)
    assert first["relieved"] > first["plain"]


def crowding_of_all(store: Store, vectors: Rows) -> Crowding:
    labels, _ = withheld.gathered(store.catalogue, store.fingerprint)
    rows = store.project(vectors, store.gallery())
    every = np.arange(len(rows))
    return withheld.crowding_among(store, rows, labels, every, every)


def test_left_out_photos_are_measured_with_crowding_taken_off(tmp_path: Path, photos_alone: None) -> None:
    """With its animal in the gallery, and with it taken out: then it is not among the crowd either."""
    store = fake_store(tmp_path / "s")
    with_vectors(store, *hubs())
    labels, vectors = withheld.gathered(store.catalogue, store.fingerprint)
    queries = np.arange(0, 60, 2)
    rest = np.setdiff1d(np.arange(len(vectors)), queries)
    one_kind = np.zeros(len(vectors), np.int64)
    among = np.array(by_a_loop(vectors, labels.individuals, one_kind, rest))[rest]
    middle = among.mean()
    cases = withheld.left_out(store, labels, vectors, queries, whitened=0.0)
    plain = vectors[queries] @ vectors[rest].T
    np.testing.assert_allclose(cases.known_best, (plain - (among - middle) / 2).max(axis=1), atol=1e-5)
    for place, query in enumerate(queries.tolist()):
        who = int(labels.individuals[query])
        away = np.array(by_a_loop(vectors, labels.individuals, one_kind, rest, who))[rest]
        scores = np.where(labels.individuals[rest] == who, -np.inf, plain[place] - (away - middle) / 2)
        assert cases.other_scores[place, 0] == pytest.approx(scores.max(), abs=1e-5)


def test_frames_of_a_querys_own_sighting_are_not_in_the_crowd(tmp_path: Path, photos_alone: None) -> None:
    """They look like it, so they would push down whatever else does: its rivals."""
    store = fake_store(tmp_path / "s")
    vectors, names = hubs()
    with_vectors(store, vectors, names, encounters=[f"e{n // 2}" for n in range(len(names))])
    labels, rows = withheld.gathered(store.catalogue, store.fingerprint)
    groups = withheld.sightings_of(store.catalogue, labels)
    assert groups[0] == groups[1] != groups[2]
    queries = np.arange(0, 40, 2)
    assert withheld.unseen(groups, queries).tolist() == list(range(40, len(rows)))
    assert withheld.unseen(groups, np.arange(0, 300, 2)).tolist() == [
        *range(1, 300, 2),
        *range(300, 310),
    ]  # else too few
    cases = withheld.left_out(store, labels, rows, queries, whitened=0.0)
    rest, among = np.setdiff1d(np.arange(len(rows)), queries), np.zeros(len(rows), np.int64)
    crowded = np.array(by_a_loop(rows, labels.individuals, among, np.arange(40, len(rows))))
    for place, query in enumerate(queries.tolist()):
        away = rest[rest != query + 1]
        scores = rows[away] @ rows[query] - (crowded[away] - crowded[rest].mean()) / 2
        assert cases.other_scores[place, 0] == pytest.approx(scores.max(), abs=1e-5)


def test_each_species_has_a_crowd_of_its_own(tmp_path: Path, photos_alone: None) -> None:
    """Through fit and search: a few zebras among many whales are no less crowded for it."""
    store = fake_store(tmp_path / "s")
    vectors, names = hubs()
    few = unit_rows(np.random.default_rng(5).normal(size=(24, DIM)).astype(np.float32) - 2.0)
    kinds = ["whale"] * len(vectors) + ["zebra"] * 24
    every = np.concatenate([vectors, few])
    with_vectors(store, every, [*names, *(f"z{n // 2}" for n in range(24))], species=kinds)
    made = fit.fit(store)
    assert made.crowd is not None and made.crowded is not None and set(made.crowd) == {"whale", "zebra"}
    assert {id - 1 for id in made.crowd["zebra"]} == set(range(310, 334))
    searcher = Searcher.open(store, k=5)
    rows = store.project(every, searcher.gallery)
    animals = np.array([searcher.store.catalogue.owners()[id] for id in range(1, 335)])
    code = np.array([kind == "zebra" for kind in kinds]).astype(np.int64)
    wanted = np.array(by_a_loop(rows, animals, code, np.arange(334)))
    for at, kind in ((310, "zebra"), (0, "whale")):
        [answer] = searcher.find([Probe(rows[at], exclude=frozenset({str(at + 1)}), species=kind)])
        assert answer.candidates.ids and {kinds[int(id) - 1] for id in answer.candidates.ids} == {kind}
        middle = wanted[code == code[at]].mean()
        assert made.crowded[kind] == pytest.approx(middle, abs=2e-3)
        for id, score in zip(answer.candidates.ids, answer.candidates.scores, strict=True):
            plain = float(rows[int(id) - 1] @ rows[at])
            assert score == pytest.approx(plain - (wanted[int(id) - 1] - middle) / 2, abs=4e-3)


def test_a_stated_threshold_is_for_cosines_as_they_are(tmp_path: Path) -> None:
    """At once, for the fit that there is; and the next reindexing measures it so, there and back."""
    store = fake_store(tmp_path / "s")
    vectors, names = hubs()
    with_vectors(store, vectors, names)
    assert fit.fit(store).crowd is not None and not fit.is_due(store)
    before = (store.root / "reid.toml").read_text()
    stated = before.replace("threshold = -1.0", "threshold = 0.5")
    assert stated != before
    (store.root / "reid.toml").write_text(stated)
    again = reopened(store.root)
    _, order, scores, cosines = found(again, vectors, 0)
    assert scores == cosines and fit.is_due(again)
    assert fit.fit(again).crowd is None and not fit.is_due(again)
    labels, rows = withheld.gathered(again.catalogue, again.fingerprint)
    rest = np.arange(2, len(rows))
    cases = withheld.left_out(again, labels, rows, np.arange(2), whitened=0.0)
    np.testing.assert_allclose(cases.known_best, (rows[:2] @ rows[rest].T).max(axis=1), atol=1e-6)
    (store.root / "reid.toml").write_text(before)
    assert fit.is_due(reopened(store.root))


def test_with_nothing_measured_cosines_serve_as_they_are_and_so_they_do_by_an_earlier_fit(tmp_path: Path) -> None:
    few = fake_store(tmp_path / "few")
    few_vectors, _ = hubs()
    with_vectors(few, few_vectors[:12], [f"w{n // 2}" for n in range(12)])
    assert fit.fit(few).crowd is None
    store = fake_store(tmp_path / "s")
    vectors, names = hubs()
    with_vectors(store, vectors, names)
    fit.fit(store)
    kept = json.loads((store.root / CALIBRATION).read_text())
    del kept["crowded"], kept["crowd"]  # as a release before this one wrote it
    (store.root / CALIBRATION).write_text(json.dumps(kept))
    for one in (few, store):
        again = reopened(one.root)
        searcher, order, scores, cosines = found(again, vectors, 0)
        plain = searcher.gallery.vectors(order) @ again.project(vectors[:1], searcher.gallery)[0]
        np.testing.assert_allclose(scores, plain, atol=1e-6)
        assert cosines == scores
    assert whiten.LEAST_PHOTOS > len(vectors)  # so none of these galleries was whitened
