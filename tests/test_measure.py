"""Left-out photos asked with and without their animal: every number against a loop over a gallery small enough for it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from reid import crowding, fusion, measure
from reid.crowding import Crowd, Crowding
from reid.embed import unit_rows
from reid.fusion import EMBEDDING, NAMES, PRIOR_FUSION
from reid.index import LocalIndex
from reid.keypoints import LocalFeatures, describe
from reid.measure import Asked, Gallery
from reid.verify import VerifyConfig, verify

ANIMALS, SHOTS = 7, 3
CHECKED, NEAR = 6, 9
VOTED = 50
NOBODY = frozenset[int]()


def photo(animal: int, shot: int) -> LocalFeatures:
    """A pattern, moved a little and with noise of its own."""
    coarse = np.random.default_rng(animal).integers(0, 256, (20, 30), np.uint8)
    pixels = cv2.resize(coarse, (180, 120), interpolation=cv2.INTER_CUBIC)
    rng = np.random.default_rng((animal, shot))
    moved = np.roll(pixels, tuple(rng.integers(-6, 7, 2)), axis=(0, 1))
    return describe(np.clip(moved + rng.normal(0, 18, moved.shape), 0, 255).astype(np.uint8))


@dataclass
class World:
    """Photo `3 a + s` is shot s of animal a; shots 0 and 1 of the first two animals are one sighting; the last two
    photos are of nobody.
    """

    gallery: Gallery
    features: list[LocalFeatures]
    local: measure.Local
    root: Path

    def fresh_votes(self, query: int, rows: list[int]) -> dict[int, float]:
        """Of an index that holds these rows and nothing else."""
        index = LocalIndex.create(Path(tempfile.mkdtemp(dir=self.root)), fingerprint="f")
        index.add([self.gallery.ids[r] for r in rows], [self.features[r].descriptors for r in rows])
        index.commit(revision=1)
        names = {
            self.gallery.ids[r]: str(self.gallery.individuals[r]) for r in rows if self.gallery.individuals[r] >= 0
        }
        found = index.search(self.features[query].descriptors, names=index.names(names), top=VOTED)
        return {self.gallery.ids.index(id): v for id, v in zip(found.photos, found.votes, strict=True)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("measure")
    rng = np.random.default_rng(1)
    count = ANIMALS * SHOTS
    centres = rng.normal(size=(ANIMALS, 16))
    rows = unit_rows((np.repeat(centres, SHOTS, axis=0) + 1.1 * rng.normal(size=(count, 16))).astype(np.float32))
    individuals = np.repeat(np.arange(ANIMALS), SHOTS)
    individuals[-2:] = -1
    groups = np.arange(count)
    groups[[1, 4]] = groups[[0, 3]]
    features = [photo(n // SHOTS, n % SHOTS) for n in range(count)]
    ids = tuple(f"photo{n:02d}" for n in range(count))
    index = LocalIndex.create(root / "local", fingerprint="f")
    index.add(ids, [f.descriptors for f in features])
    index.commit(revision=1)
    names = index.names({id: str(a) for id, a in zip(ids, individuals.tolist(), strict=True) if a >= 0})
    members = np.setdiff1d(np.flatnonzero(individuals >= 0), QUERIES)
    crowd = Crowd(rows[members], individuals[members], np.zeros(len(members), np.int64))
    one_kind = np.zeros(count, np.int64)
    crowded = crowding.around(rows, individuals, one_kind, crowd).centred(one_kind)
    gallery = Gallery(ids, rows, individuals, groups, crowded)
    return World(gallery, features, measure.Local(index, names, by_id(ids, features), VerifyConfig(), CHECKED), root)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell of the index is looked into, as a loop would."""
    defaults = LocalIndex.search.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "probes", 10_000)


def by_id(ids: tuple[str, ...], features: list[LocalFeatures]) -> Callable[[str], LocalFeatures | None]:
    return lambda id: features[ids.index(id)]


QUERIES = np.array([0, 5, 6, 9, 20])


def ask(
    world: World, excluded: Callable[[int], frozenset[int]] = lambda row: NOBODY, neighbours: int = NEAR
) -> list[Asked]:
    return measure.ask(
        world.gallery, QUERIES, excluded, world.local, neighbours=neighbours, progress=lambda *_: None
    )  # fmt: skip


@pytest.fixture(scope="module")
def asked(world: World) -> list[Asked]:
    return ask(world)


def loop(
    world: World, query: int, barred: frozenset[int]
) -> tuple[list[int], list[list[float]], list[int], list[list[float]]]:
    """Candidates and rows, with the animal and without, one photo at a time."""
    gallery = world.gallery
    group, own = gallery.groups[query], int(gallery.individuals[query])
    rest = [r for r in range(len(gallery.ids)) if r not in QUERIES and gallery.groups[r] != group and r not in barred]
    away = [r for r in rest if own < 0 or gallery.individuals[r] != own]
    return *by_itself(world, query, rest, -1), *by_itself(world, query, away, own)


def by_itself(world: World, query: int, rest: list[int], without: int) -> tuple[list[int], list[list[float]]]:
    """Of a gallery that holds the photos `rest` and nothing else."""
    gallery = world.gallery
    plain = {r: float(gallery.rows[r] @ gallery.rows[query]) for r in rest}
    cosine = {r: c - relief(gallery, r, without) for r, c in plain.items()}
    near = sorted(sorted(rest, key=lambda r: -plain[r])[:NEAR], key=lambda r: -cosine[r])
    votes = world.fresh_votes(query, rest)
    candidates = near + [r for r in votes if r not in near]
    chosen: list[int] = []
    for place in range(len(candidates)):
        for ranked in (near, list(votes)):
            if place < len(ranked) and ranked[place] not in chosen and len(chosen) < CHECKED:
                chosen.append(ranked[place])
    made = {r: verify(world.features[query], world.features[r], VerifyConfig()) for r in chosen}
    rows: list[list[float]] = fusion.pair_features(
        [cosine[r] for r in candidates],
        [cosine[r] for r in near],
        [votes.get(r, 0.0) for r in candidates],
        [made.get(r) for r in candidates],
        len(world.features[query]),
    ).tolist()
    return candidates, rows


def relief(gallery: Gallery, row: int, without: int) -> float:
    """Half of how much more crowded it is around a row than on average, an animal being away."""
    named = [r for r in range(len(gallery.ids)) if gallery.individuals[r] >= 0 and r not in QUERIES]

    def mean(row: int, without: int) -> float:
        away = {int(gallery.individuals[row]), without}
        near = [float(gallery.rows[r] @ gallery.rows[row]) for r in named if int(gallery.individuals[r]) not in away]
        return float(np.mean(sorted(near)[-crowding.NEAR :]))

    middle = np.mean([mean(r, -1) for r in range(len(gallery.ids))])
    return float(crowding.SHARE * (mean(row, without) - middle))


@pytest.mark.parametrize("barring", [False, True])
def test_both_cases_of_every_query_equal_a_loop_over_the_gallery(world: World, barring: bool) -> None:
    out = frozenset({2, 7, 12}) if barring else NOBODY
    asked = ask(world, lambda row: out)
    assert [one.row for one in asked] == QUERIES.tolist()
    for one in asked:
        rows, known, others, unknown = loop(world, one.row, out)
        assert one.rows.tolist() == rows and one.others.tolist() == others
        np.testing.assert_allclose(one.known, np.array(known, np.float32), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one.unknown, np.array(unknown, np.float32), rtol=1e-4, atol=1e-5)


def test_neither_its_own_sighting_nor_another_query_nor_what_is_barred_is_a_candidate(world: World) -> None:
    groups, individuals = world.gallery.groups, world.gallery.individuals
    for one in ask(world, lambda row: frozenset({(row + 2) % 21}), neighbours=200):
        seen = one.rows.tolist()
        assert len(set(seen)) == len(seen)
        assert not set(seen) & set(QUERIES.tolist()) and (one.row + 2) % 21 not in seen
        assert groups[one.row] not in groups[one.rows]
        own = int(individuals[one.row])
        assert set(one.others.tolist()) == {r for r in seen if own < 0 or individuals[r] != own}
        expected = len(individuals) - len(QUERIES) - (one.row == 0) - ((one.row + 2) % 21 not in QUERIES)
        assert len(seen) == expected


def test_trees_learn_from_the_hardest_negatives_and_an_assignments_are_among_them(
    world: World, asked: list[Asked]
) -> None:
    """What geometry compares are the nearest by cosine or by votes; the photos that an assignment (LAP) would give the
    queries, each its own and as near as can be, are on their lists already.
    """
    gallery = replace(
        world.gallery, crowding=Crowding.none(len(world.gallery.ids))
    )  # an assignment knows cosines alone
    world, inliers = replace(world, gallery=gallery), fusion.NAMES.index("inliers")
    rest = np.setdiff1d(np.arange(len(gallery.ids)), QUERIES)
    cosines = gallery.rows[QUERIES] @ gallery.rows[rest].T
    apart = gallery.groups[QUERIES][:, None] != gallery.groups[rest]
    others = apart & (gallery.individuals[QUERIES][:, None] != gallery.individuals[rest])
    harder, asked = [], ask(world)
    for i, one in enumerate(asked):
        nearest = rest[apart[i]][np.argsort(-cosines[i][apart[i]])][:CHECKED].tolist()
        voted = list(world.fresh_votes(one.row, rest[apart[i]].tolist()))[:CHECKED]
        negative = gallery.individuals[one.rows] != gallery.individuals[one.row]
        compared = one.rows[negative & np.isfinite(one.known[:, inliers])].tolist()
        assert compared and set(compared) <= {*nearest, *voted}
        harder.append(gallery.rows[compared] @ gallery.rows[one.row])
    assert np.concatenate(harder).mean() > cosines[others].mean() + 0.1
    queries, partners = linear_sum_assignment(np.where(others, -cosines, 10.0))
    assert all(rest[at] in asked[i].rows for i, at in zip(queries, partners, strict=True))


def test_a_photo_without_features_is_not_asked(world: World) -> None:
    of = world.local.features_of
    poorer = measure.Local(
        world.local.index, world.local.names, lambda id: None if id == "photo06" else of(id), VerifyConfig(), CHECKED
    )
    told: list[tuple[str, int, int]] = []
    asked = measure.ask(
        world.gallery, QUERIES, lambda row: NOBODY, poorer, neighbours=NEAR, progress=lambda *said: told.append(said)
    )
    assert [one.row for one in asked] == [0, 5, 9, 20]
    assert told == [("measure", n + 1, 5) for n in range(5)]


def loop_cases(world: World, one: Asked, scores: NDArray[np.float64], rows: NDArray[np.int64]) -> dict[int, float]:
    """Best score of each named animal among the candidates."""
    best: dict[int, float] = {}
    for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
        animal = int(world.gallery.individuals[row])
        if animal >= 0:
            best[animal] = max(best.get(animal, -math.inf), score)
    return best


@pytest.mark.parametrize("kind", [EMBEDDING, PRIOR_FUSION], ids=lambda kind: kind.kind)
def test_ranks_and_best_scores_equal_a_loop_over_the_answers(
    world: World, kind: fusion.Fusion, asked: list[Asked]
) -> None:
    found = measure.fused(world.gallery, asked, kind, "max")
    cases = found.cases
    earned = []
    for i, one in enumerate(asked):
        own = int(world.gallery.individuals[one.row])
        known = loop_cases(world, one, kind.scores(one.known), one.rows)
        unknown = loop_cases(world, one, kind.scores(one.unknown), one.others)
        if own < 0:
            assert not cases.known_case[i] and not cases.unknown_case[i]
            continue
        order = sorted(known, key=lambda a: -known[a])
        rank = order.index(own) + 1 if own in known else 0
        assert cases.truth_rank[i] == rank and cases.known_case[i] and cases.unknown_case[i]
        assert cases.known_best[i] == pytest.approx(max(known.values()), rel=1e-6)
        best = sorted(unknown.values(), reverse=True)[:5]
        np.testing.assert_allclose(cases.other_scores[i, : len(best)], best, rtol=1e-6)
        earned.append(1 / rank if 0 < rank <= 5 else 0.0)
    assert found.map_at_5 == pytest.approx(sum(earned) / len(earned)) and len(earned) == 4


def test_local_features_find_animals_that_the_vectors_confuse(world: World, asked: list[Asked]) -> None:
    alone, prior = (measure.fused(world.gallery, asked, kind, "max") for kind in (EMBEDDING, PRIOR_FUSION))
    assert prior.map_at_5 == 1.0 > alone.map_at_5
    known, new = prior.cases.known_best[:4], prior.cases.other_scores[:4, 0]
    assert known.min() > new.max()


def test_too_few_pairs_fit_no_trees_and_nothing_asked_is_no_error(world: World, asked: list[Asked]) -> None:
    assert measure.fitted(world.gallery, asked, "max") is None
    assert measure.fitted(world.gallery, [], "max") is None
    nothing = measure.fused(world.gallery, [], PRIOR_FUSION, "max")
    assert nothing.map_at_5 == 0.0 and len(nothing.cases.known_case) == 0


def test_trees_are_fitted_on_named_pairs_and_answer_their_own_photos_out_of_fold(world: World) -> None:
    """Many painted rows: the same column speaks for the same animal; a second one betrays the pair and must not help."""
    rng = np.random.default_rng(4)
    animals, shots = 30, 3
    individuals = np.repeat(np.arange(animals), shots)
    count = len(individuals)
    individuals[-3:] = -1
    gallery = Gallery(
        tuple(map(str, range(count))),
        np.eye(count, dtype=np.float32),
        individuals,
        np.arange(count),
        Crowding.none(count),
    )
    asked = []
    for query in range(0, count, shots):
        rows = np.array(
            [
                query + 1,
                query + 2,
                *rng.choice(np.setdiff1d(np.arange(count), [query, query + 1, query + 2]), 12, replace=False),
            ]
        )
        features = rng.normal(size=(len(rows), len(NAMES))).astype(np.float32)
        same = (individuals[rows] == individuals[query]) & (individuals[query] >= 0)
        features[same, NAMES.index("log_votes")] += 3
        other = np.flatnonzero(individuals[rows] != individuals[query])
        asked.append(Asked(query, rows, features, rows[other], features[other]))
    found = measure.fitted(gallery, asked, "max")
    assert found is not None and found.fusion.kind == "trees"
    taught = [one.by_heart() for one in asked[10:]]
    assert np.isnan(taught[0].known[:, [0, 1, 2]]).all() and np.isfinite(taught[0].unknown[:, 3:10]).all()
    fewer, more = (measure.fitted(gallery, asked[:10], "max", further=further) for further in ((), taught))
    assert fewer is not None and more is not None and more.fusion.pairs == found.fusion.pairs > fewer.fusion.pairs
    assert len(more.known) == len(more.cases.truth_rank) == 10 and min(fewer.map_at_5, more.map_at_5) > 0.8
    ways = [measure.combined(gallery, asked[:10], "max", further=further) for further in ((), taught)]
    assert [len(one.known) for one in ways[1]] == [len(one.known) for one in ways[0]] == [10] * len(ways[0])
    named = [one for one in asked if individuals[one.row] >= 0]
    assert found.fusion.same == 2 * len(named)
    assert found.fusion.pairs == sum(int((individuals[r] >= 0).sum()) for one in named for r in (one.rows, one.others))
    assert found.map_at_5 > 0.8
    inside = measure.fused(gallery, asked, found.fusion, "max")
    assert inside.map_at_5 > found.map_at_5 - 1e-9
    known = found.cases.known_case
    assert not np.allclose(inside.cases.known_best[known], found.cases.known_best[known])
    assert found.cases.known_best[known].mean() < inside.cases.known_best[known].mean()


def test_columns_of_a_siamese_head_are_also_done_without(world: World, asked: list[Asked]) -> None:
    assert measure.with_and_without_siamese(asked) == [asked] and measure.with_and_without_siamese([]) == [[]]
    rng = np.random.default_rng(0)
    wide = [
        replace(
            one,
            known=np.hstack([one.known, rng.normal(size=(len(one.known), 2)).astype(np.float32)]),
            unknown=np.hstack([one.unknown, rng.normal(size=(len(one.unknown), 2)).astype(np.float32)]),
        )
        for one in asked
    ]
    without, with_them = measure.with_and_without_siamese(wide)
    assert with_them is wide
    for plain, one in zip(asked, without, strict=True):
        np.testing.assert_array_equal(one.known, plain.known)
        np.testing.assert_array_equal(one.unknown, plain.unknown)
        assert (one.row, one.rows.tolist(), one.others.tolist()) == (
            plain.row,
            plain.rows.tolist(),
            plain.others.tolist(),
        )


def test_trees_without_a_siamese_head_s_columns_answer_rows_that_have_them() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(400, len(NAMES))).astype(np.float32)
    same = rows[:, NAMES.index("log_votes")] > 1
    animals = np.stack([np.arange(400) % 40, 40 + np.arange(400) % 37], axis=1)
    found, _ = fusion.fit_trees(rows, same, animals)
    wide = np.hstack([rows, rng.normal(size=(400, 2)).astype(np.float32)])
    assert found.columns == NAMES
    np.testing.assert_array_equal(found.scores(wide), found.scores(rows))
