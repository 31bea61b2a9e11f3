"""What each step of a training sees: which photos make a batch, how they are varied, and what they count as.

    codes → batches of an epoch → views, made ahead on threads of their own → targets of the losses

Pairs, look-alikes and clusters of photos are found anew when it is time. Everything is drawn from the seed, the epoch
and the step.

Knows pixels and identities as numbers; no network but by the vectors it gives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from reid.embed import unit_rows
from reid.train import augment, backgrounds, dividing, lookalikes, losses, sampling
from reid.train.lookalikes import Near
from reid.train.pairing import Pairing
from reid.train.pictures import Pictures
from reid.train.recipe import Divided, Recipe
from reid.train.teacher import Teacher

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """What one step sees: photos `rows (B,)`, whether each is mirrored, the part of a divided vector that they train (as
    `losses.Targets`), and `pixels (B, 3, h, w)`, 0–255.
    """

    rows: IntArray
    turned: NDArray[np.bool_]
    part: tuple[int, int] | None
    pixels: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Photos of one step; which are mirrored, where that is not drawn; the part of a divided vector that they train."""

    rows: IntArray
    turned: NDArray[np.bool_] | None = None
    part: tuple[int, int] | None = None


def by_class(recipe: Recipe) -> bool:
    """Whether mirrored photos are classes of their own."""
    return recipe.sampling.mirror == "class" and recipe.sampling.kind != "pairs"


class Showing:
    """The batches of a training. `codes (N,)` are the identities of the kept pictures as numbers from 0, −1 for none, −2
    for what is held out; `vectors` gives those of the network of now, for pictures by their places, mirrored where `turned`;
    `teacher` says what those without an identity are taken for.
    """

    def __init__(
        self, kept: Pictures, codes: IntArray, recipe: Recipe, seed: int, pairing: Pairing | None,
        vectors: Callable[..., NDArray[np.float32]], teacher: Teacher | None = None,
    ) -> None:  # fmt: skip
        self.kept, self.codes, self.recipe, self.seed, self.pairing = kept, codes, recipe, seed, pairing
        self.teacher = teacher
        self.n = int(codes.max()) + 1
        self.by_class = by_class(recipe)
        self.clusters: IntArray | None = None
        self.near: Near | None = None
        outlined = backgrounds.usable(kept) if recipe.augment.background else np.empty(0, np.int64)
        outlined = outlined[codes[outlined] != -2]  # nothing of what is held out is shown
        self.outlined = outlined if len(outlined) > 1 else outlined[:0]  # each needs another's
        self._vectors = vectors

    def renew(self, number: int, done: float, rng: np.random.Generator) -> None:
        """Pairs, look-alikes or clusters for epoch `number`, where it is time for new ones."""
        if self.recipe.sampling.alike:
            self.near = self._look_alikes(sampling.shown(self.codes, self.recipe.sampling, done), rng)
        if self.pairing is not None:
            if self.pairing.stale(number):
                self.pairing.rescore(unit_rows(self._vectors(self.pairing.rows)))
            self.pairing.assign(done, rng)
        divided = next((one for one in self.recipe.losses if isinstance(one, Divided) and one.clusters > 1), None)
        if divided is not None and (self.clusters is None or number % divided.renew == 0):
            known = np.flatnonzero(self.codes >= 0)
            k = min(divided.clusters, self.n // 2)
            if k > 1:
                before = None if self.clusters is None else self.clusters[known]
                rows, seed = unit_rows(self._vectors(known)), int(rng.integers(2**31))
                self.clusters = np.full(len(self.codes), -1, np.int64)
                self.clusters[known] = dividing.clusters(rows, self.codes[known], k, seed, before)

    def _look_alikes(self, rows: IntArray, rng: np.random.Generator) -> Near:
        """Who looks like whom by a photo of each animal, drawn anew."""
        order = rng.permutation(rows)
        animals, first = np.unique(self.codes[order], return_index=True)
        drawn = order[first]
        mirrored = None
        if self.recipe.sampling.mirror != "none":
            mirrored = unit_rows(self._vectors(drawn, turned=True))
        return lookalikes.nearest(animals, unit_rows(self._vectors(drawn)), mirrored, rng)

    def batches(self, done: float, rng: np.random.Generator) -> list[Batch]:
        """Of one epoch, in order, when a share `done` of the training is over."""
        size = self.recipe.schedule.batch
        if self.pairing is not None:
            return [Batch(one) for one in self.pairing.batches(size, rng)]
        if self.near is not None:
            return self._alike(self.near, size, done, rng)
        if self.clusters is None:
            return [Batch(one) for one in sampling.epoch(self.codes, self.recipe.sampling, size, done, rng)]
        parted: list[Batch] = []
        k = int(self.clusters.max()) + 1
        for cluster in range(k):
            inside = np.where((self.clusters == cluster) | (self.codes == -1), self.codes, -2)
            some = sampling.epoch(inside, self.recipe.sampling, size, done, rng)
            parted += [Batch(one, part=(cluster, k)) for one in some]
        return [parted[i] for i in rng.permutation(len(parted))]

    def _alike(self, near: Near, size: int, done: float, rng: np.random.Generator) -> list[Batch]:
        """Batches of look-alikes, with the share of photos without an identity that the recipe wants."""
        how = self.recipe.sampling
        each = sampling.strangers(self.codes, how, size)
        rows = sampling.shown(self.codes, how, done)
        known = lookalikes.batches(self.codes, rows, size - each, how.photos, how.alike, near, rng)
        if not each:
            return [Batch(*one) for one in known]
        new = sampling.without_identity(self.codes, each, len(known), rng)
        over = rng.random((len(known), each)) < (0.0 if how.mirror == "none" else 0.5)
        return [
            Batch(np.concatenate([one, more]), np.concatenate([turned, other]))
            for (one, turned), more, other in zip(known, new, over, strict=True)
        ]

    def prepared(self, batches: list[Batch], number: int, size: tuple[int, int], workers: int) -> Iterator[Views]:
        """The batches' views, in order, made ahead on threads of their own; each batch draws from its own seed, so that
        it does not matter which is made first.
        """

        def make(step: int) -> Views:
            return self._views(batches[step], size, np.random.default_rng([self.seed, 101, number, step]))

        ahead: deque[Future[Views]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            for step in range(len(batches) + 2 * workers):
                if step < len(batches):
                    ahead.append(pool.submit(make, step))
                if step >= 2 * workers and ahead:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _views(self, batch: Batch, size: tuple[int, int], rng: np.random.Generator) -> Views:
        """One batch: its pixels, and which of them are mirrored."""
        rows = batch.rows
        if self.pairing is not None:
            turned = self.pairing.turned(rows.shape[1], rng).ravel()
            rows = rows.ravel()
        elif batch.turned is not None:
            turned = batch.turned
        elif self.recipe.sampling.mirror == "none":
            turned = np.zeros(len(rows), np.bool_)
        else:
            turned = sampling.mirrored(self.codes[rows], self.recipe.sampling.kind, rng)
        kept, places = self.kept, rows
        if len(self.outlined):
            kept = backgrounds.exchanged(kept, self.outlined, rows, self.recipe.augment.background, rng)
            places = np.arange(len(rows))
        return Views(rows, turned, batch.part, augment.views(kept, places, size, self.recipe.augment, rng, turned))

    def targets(self, views: Views, done: float, device: torch.device) -> losses.Targets:
        """Classes of a batch: with mirrored photos as other animals, class c + n is the mirror image of class c."""
        classes = self.codes[views.rows]
        twins = np.full(len(classes), -1)
        if self.by_class:
            known, plain = classes >= 0, classes
            classes = np.where(known, plain + self.n * views.turned, -1)
            if not self.recipe.sampling.twins:
                twins = np.where(known, plain + self.n * ~views.turned, -1)
        own, other = (torch.from_numpy(one).to(device) for one in (classes, twins))
        soft, new = None, classes < 0
        if self.teacher is not None and new.any():
            soft = torch.from_numpy(self.teacher.targets(views.rows[new], views.turned[new])).to(device)
        return losses.Targets(own, other, done, views.part, soft)
