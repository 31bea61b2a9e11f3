"""Parts of a divided vector: each keeps its animals, none has fewer than two, and all are trained."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from few_flukes import tiny
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from reid.embed import unit_rows  # noqa: E402
from reid.train import dividing, losses  # noqa: E402
from reid.train.network import Embedded  # noqa: E402
from reid.train.showing import Showing  # noqa: E402

DIM, EACH = 32, 3


def photos(groups: list[int], seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Unit rows, animals and groups: so many animals of three photos in each group, which lie far apart."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(groups)), groups)
    animals = 3 * np.eye(DIM)[group] + 0.2 * rng.normal(size=(len(group), DIM))
    rows = np.repeat(animals, EACH, axis=0) + 0.05 * rng.normal(size=(len(group) * EACH, DIM))
    return unit_rows(rows.astype(np.float32)), np.repeat(np.arange(len(group)), EACH), np.repeat(group, EACH)


def showing(rows: NDArray[np.float32], codes: NDArray[np.int64], clusters: int, more: str = "") -> Showing:
    """What a recipe with this many clusters shows of photos that have these vectors."""
    how = f'[laptop.sampling]\nkind = "identities"\n[[laptop.loss]]\nkind = "divided"\nclusters = {clusters}\n{more}'
    kept: Any = None
    return Showing(kept, codes, tiny(how), 0, None, lambda some: rows[some])


def test_a_part_keeps_its_animals_when_clusters_are_found_anew() -> None:
    rows, codes, group = photos([6, 5, 4, 3])
    shown = showing(np.concatenate([rows, rows[:2]]), np.concatenate([codes, [-1, -2]]), 4)
    found = []
    for epoch in range(0, 12, 2):
        shown.renew(epoch, 0.0, np.random.default_rng([5, epoch]))
        assert shown.clusters is not None and list(shown.clusters[-2:]) == [-1, -1]
        found.append(shown.clusters[:-2].tolist())
    assert len(set(zip(found[0], group.tolist(), strict=True))) == 4  # the groups, by some number each
    assert all(one == found[0] for one in found)


def test_new_clusters_get_the_numbers_by_which_they_share_most_with_the_old_ones() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        before, found = rng.integers(0, 4, (2, 30))

        def shared(numbers: tuple[int, ...], before: Any = before, found: Any = found) -> float:
            total = 0.0
            for old, new in enumerate(numbers):
                one, other = set(np.flatnonzero(before == old)), set(np.flatnonzero(found == new))
                total += len(one & other) / max(1, len(one | other))
            return total

        now = dividing.renamed(found, before, 4)
        assert len(set(zip(now.tolist(), found.tolist(), strict=True))) == len(set(found.tolist()))
        assert shared((0, 1, 2, 3), found=now) == pytest.approx(max(map(shared, itertools.permutations(range(4)))))


def test_an_animal_that_is_like_no_other_is_not_alone_in_its_cluster() -> None:
    rows, codes, group = photos([1, 6, 1, 6])
    found = dividing.clusters(rows, codes, 4, 0)
    members = [set(codes[found == number]) for number in range(4)]
    assert min(map(len, members)) == 2 and sum(map(len, members)) == 14  # an animal's photos stay together
    assert {frozenset(set(group[np.isin(codes, list(one))])) for one in members} >= {frozenset([1]), frozenset([3])}


@pytest.mark.parametrize(("groups", "parts"), [([1, 6, 1, 6], 4), ([3, 4], 3), ([2, 1], 1)])
def test_every_number_of_a_divided_vector_is_trained(groups: list[int], parts: int) -> None:
    rows, codes, _ = photos(groups)
    shown = showing(rows, codes, 4)
    shown.renew(0, 0.0, np.random.default_rng(0))
    loss = losses.Sum(shown.recipe.losses, losses.Space(DIM, 1, np.full(len(set(codes)), EACH)))
    moved, seen = np.zeros(DIM), set()
    for batch in shown.batches(0.0, np.random.default_rng(0)):
        part, some = batch.part, batch.rows
        seen.add(part or (0, 1))
        x = torch.tensor(np.random.default_rng(1).normal(size=(len(some), DIM)), dtype=torch.float32).requires_grad_()
        none = torch.full((len(some),), -1)
        loss(Embedded(x, (x,)), losses.Targets(torch.from_numpy(codes[some]), none, part=part)).backward()
        assert x.grad is not None
        moved += np.abs(x.grad.numpy()).sum(0)
    assert seen == {(part, parts) for part in range(parts)} and (moved > 0).all()
