"""Training a whole network by pairs of photos, as the Siamese systems did: which pairs, and what their head says.

Every epoch sets each photo against another of its animal and one of another animal (`reid.train.mining`). The pairs are
hard for the network as it was when scores were last found, and so are animals found that may be one under two names
(`reid.train.suspects`), which are not set against each other; the head is that of `reid.train.siamese`. How random the
pairs are is said by the noise ladder (`reid.train.ladder`), and how hard they get at most by `among` of the recipe.

Knows vectors and labels; no photos.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from reid.errors import TrainError
from reid.train import ladder, mining, suspects
from reid.train.listed_pairs import nearest_others
from reid.train.pair_scores import PairScores, positives
from reid.train.recipe import Pair, Recipe
from reid.train.siamese import PairNetwork, SiameseConfig, settled
from reid.train.suspects import Suspects

IntArray = NDArray[np.int64]
_LARGEST = 0.25  # share of the photos that animals suspected of being one may have together


def paired(codes: IntArray) -> IntArray:
    """The photos of animals with two or more, by `codes (N,)` that are below 0 for none."""
    counts = np.bincount(codes[codes >= 0])
    return np.flatnonzero((codes >= 0) & (counts[codes.clip(0)] >= 2))


def check(codes: IntArray, names: NDArray[np.str_]) -> None:
    """Raises TrainError where an animal has so many photos that they cannot all meet another; `names (N,)`."""
    rows = paired(codes)
    if len(np.unique(codes[rows])) >= 2:
        mining.check_sizes(names[rows])


class Pairing(torch.nn.Module):  # type: ignore[misc]
    """The head, and the pairs of the present epoch: `rows (P,)` photos, each with `positive` and `negative (P,)`."""

    def __init__(self, recipe: Recipe, dim: int, codes: IntArray) -> None:
        """Raises TrainError where no two animals have two photos each."""
        super().__init__()
        self.rows = paired(codes)
        self.labels = codes[self.rows]
        if len(np.unique(self.labels)) < 2:
            raise TrainError(
                "no two animals have two photos each: there are no pairs to learn from",
                next_step="add photos of known animals",
            )
        pair = next(one for one in recipe.losses if isinstance(one, Pair))
        sampled = recipe.sampling
        self.suspect = sampled.suspect
        self.config = SiameseConfig(
            features=0, hidden=pair.hidden, negatives=sampled.negatives, block=sampled.block,
            neighbours=sampled.neighbours, among=sampled.among, hard_positives=sampled.hard_positives, dropout=0.0,
        )  # fmt: skip
        self.weight, self.every, self.mirrors = pair.weight, sampled.rescore, sampled.mirror != "none"
        self.head = PairNetwork(dim, self.config)
        self.head.projection.requires_grad_(False)
        self.config = replace(self.config, negatives=settled(self.config, len(self.rows)))
        self.scores: PairScores | None = None
        self.suspects = Suspects(np.empty((0, 2), np.int64), np.empty(0))
        self.groups = self.labels
        self.used = np.empty((0, 2), np.int64)

    def stale(self, epoch: int) -> bool:
        """Whether the pairs' scores are to be found anew."""
        return self.scores is None or epoch % self.every == 0

    def rescore(self, vectors: NDArray[np.float32]) -> None:
        """New scores by unit rows `vectors (P, D)` of `rows`, and suspects; used pairs may be used again."""
        near = None
        if self.suspect < 1 or self.config.negatives == "sparse":
            near = nearest_others(vectors, self.labels, self.config.neighbours)
        if near is not None and self.suspect < 1:
            self.suspects = suspects.likely(vectors, near, self.labels, self.suspect)
            self.groups = suspects.merged(self.labels, self.suspects.pairs, share=_LARGEST)
        self.scores = PairScores(self.head.plain(), vectors, self.config.negatives, near)
        self.used = np.empty((0, 2), np.int64)

    def assign(self, done: float, rng: np.random.Generator) -> None:
        """The pairs of an epoch when a share `done` of the training is over: none that was used since the last scores,
        while that can be.
        """
        assert self.scores is not None
        noise = ladder.noise_at(done)
        against = max(noise, self.config.least_noise(len(self.rows)))
        none = self.used[:0]
        self.negative, self.used = self.scores.fresh(self.groups, self.config, against, none, self.used, rng)
        self.positive = positives(self.scores, self.labels, self.config, noise, rng)

    def batches(self, size: int, rng: np.random.Generator) -> list[IntArray]:
        """Arrays `(3, b)` of photos: one, another of its animal, one of another animal; 3·b is about `size`."""
        order = rng.permutation(len(self.rows))
        per = max(2, size // 3)
        parts = np.array_split(order, max(1, len(order) // per))
        return [self.rows[np.stack([part, self.positive[part], self.negative[part]])] for part in parts]

    def turned(self, n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Which of `(3, n)` photos are mirrored: both of one animal or none, of two animals as it comes."""
        if not self.mirrors:
            return np.zeros((3, n), np.bool_)
        first, third = rng.random((2, n)) < 0.5
        return np.stack([first, first, third])

    def loss(self, unit: torch.Tensor) -> torch.Tensor:
        """Binary cross entropy of the pairs in `unit (3·b, D)`, as `batches` has them; in float32, as `losses.Sum`."""
        first, same, other = unit.float().chunk(3)
        with torch.autocast(unit.device.type, enabled=False):
            logits = self.head(torch.cat([first, first]), torch.cat([same, other]))
        truth = torch.cat([torch.ones(len(first)), torch.zeros(len(first))]).to(logits.device)
        found: torch.Tensor = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
        return self.weight * found
