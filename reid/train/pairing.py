"""Training a whole network by pairs of photos, as the Siamese systems did: which pairs, and what their head says.

Every epoch sets each photo against another of its animal and one of another animal (`reid.train.mining`). The pairs are
hard for the network as it was when scores were last found; the head is that of `reid.train.siamese`.

Knows vectors and labels; no photos.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from reid.errors import TrainError
from reid.train import mining
from reid.train.recipe import Pair, Recipe
from reid.train.siamese import PairNetwork, PairScores, SiameseConfig, positives

IntArray = NDArray[np.int64]
_NOISE = (1.0, 0.25)  # of the assignment, in scores' own range from 0 to 1: at first, and in the end


class Pairing(torch.nn.Module):  # type: ignore[misc]
    """The head, and the pairs of the present epoch: `rows (P,)` photos, each with `positive` and `negative (P,)`."""

    def __init__(self, recipe: Recipe, dim: int, codes: IntArray) -> None:
        """Raises TrainError where no two animals have two photos each."""
        super().__init__()
        counts = np.bincount(codes[codes >= 0])
        self.rows = np.flatnonzero((codes >= 0) & (counts[codes.clip(0)] >= 2))
        self.labels = codes[self.rows]
        if len(np.unique(self.labels)) < 2:
            raise TrainError(
                "no two animals have two photos each: there are no pairs to learn from",
                next_step="add photos of known animals",
            )
        pair = next(one for one in recipe.losses if isinstance(one, Pair))
        sampled = recipe.sampling
        self.config = SiameseConfig(
            features=0, hidden=pair.hidden, negatives=sampled.negatives, block=sampled.block,
            neighbours=sampled.neighbours, hard_positives=sampled.hard_positives, dropout=0.0,
        )  # fmt: skip
        self.weight, self.every, self.mirrors = pair.weight, sampled.rescore, sampled.mirror != "none"
        self.head = PairNetwork(dim, self.config)
        self.head.projection.requires_grad_(False)
        self.scores: PairScores | None = None
        self.used = np.empty((0, 2), np.int64)
        self.age = 0

    def stale(self, epoch: int) -> bool:
        """Whether the pairs' scores are to be found anew."""
        return self.scores is None or epoch % self.every == 0

    def rescore(self, vectors: NDArray[np.float32]) -> None:
        """New scores by unit rows `vectors (P, D)` of `rows`; used pairs may be used again."""
        self.scores = PairScores(self.head.plain(), vectors, self.config.negatives)
        self.used, self.age = np.empty((0, 2), np.int64), self.age + 1

    def assign(self, rng: np.random.Generator) -> None:
        """The pairs of an epoch: none that was used since the last scores."""
        assert self.scores is not None
        noise = _NOISE[0] if self.age <= 1 else _NOISE[1]
        self.negative = self.scores.assign(self.labels, self.config, noise, self.used, rng)
        self.used = mining.forbid(self.used, self.negative)
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
        """Binary cross entropy of the pairs in `unit (3·b, D)`, as `batches` has them."""
        first, same, other = unit.chunk(3)
        logits = self.head(torch.cat([first, first]), torch.cat([same, other]))
        truth = torch.cat([torch.ones(len(first)), torch.zeros(len(first))]).to(logits.device)
        found: torch.Tensor = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
        return self.weight * found
