"""Which pairs of photos a Siamese head is taught by: all scores as far as they are needed, and the assignments on them.

How they are assigned is said by a `SiameseConfig`. Knows vectors, labels and a head; no network, no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reid.errors import TrainError
from reid.siamese import Siamese
from reid.train import mining

if TYPE_CHECKING:
    from reid.train.siamese import Negatives, SiameseConfig

IntArray = NDArray[np.int64]
_RANK = 12  # of the head's function in mined scores (`Siamese.expanded`): exact to some thousandths of a logit
_PAIRS = 1000  # pairs scored at once
_ROWS = 16  # photos whose listed neighbours are scored at once


class PairScores:
    """All pairs' scores by the head as it is, as far as each way of mining (`settled`) needs them. `near (N, k)` lists
    photos that look alike; without it the head's own nearest are found among all.
    """

    def __init__(
        self, head: Siamese, vectors: NDArray[np.float32], negatives: Negatives, near: IntArray | None = None
    ) -> None:
        self.left, self.right = head.expanded(vectors, _RANK)
        self.bias = np.float32(head.bias)
        self.matrix = self.left @ self.right.T + self.bias if negatives == "exact" else None
        self.near = near
        self.listed: NDArray[np.float32] | None = None

    def block(self, photos: IntArray) -> NDArray[np.float32]:
        """Logits of all pairs of these photos, `(n, n)`."""
        return np.asarray(self.left[photos] @ self.right[photos].T + self.bias)

    def of(self, first: IntArray, second: IntArray) -> NDArray[np.float32]:
        """Logits of these pairs, `(P,)`."""
        out = np.empty(len(first), np.float32)
        for start in range(0, len(first), _PAIRS):
            part = slice(start, start + _PAIRS)
            out[part] = np.einsum("pf,pf->p", self.left[first[part]], self.right[second[part]])
        return out + self.bias

    def _lists(self, labels: IntArray, k: int) -> tuple[IntArray, NDArray[np.float32]]:
        """Each photo's neighbours of other identities and their logits, `(N, k)` both; found once."""
        if self.near is None:
            self.near = nearest(self.left, self.right, labels, k)
        if self.listed is None:
            self.listed = np.empty(self.near.shape, np.float32)
            for start in range(0, len(self.near), _ROWS):
                part = slice(start, start + _ROWS)
                self.listed[part] = np.matmul(self.right[self.near[part]], self.left[part, :, None])[:, :, 0]
            self.listed += self.bias
        return self.near, self.listed

    def fresh(
        self, labels: IntArray, config: SiameseConfig, noise: float, never: IntArray, used: IntArray,
        rng: np.random.Generator,
    ) -> tuple[IntArray, IntArray]:  # fmt: skip
        """A partner of another identity for every photo, and the pairs used by now: no pair of `never (P, 2)`, nor of
        those `used (Q, 2)` since scores were last found. Where these leave none (few photos have few partners), they are
        forgotten.
        """
        try:
            partner = self.assign(labels, config, noise, np.concatenate([never, used]), rng)
        except TrainError:
            if not len(used):
                raise
            used = used[:0]
            partner = self.assign(labels, config, noise, never, rng)
        return partner, mining.forbid(used, partner)

    def assign(
        self, labels: IntArray, config: SiameseConfig, noise: float, used: IntArray, rng: np.random.Generator
    ) -> IntArray:
        """A partner of another identity for every photo, none of `used`."""
        if config.negatives == "random":
            return mining.random_negatives(labels, rng, forbidden=used)
        if self.matrix is not None:
            return mining.assign_hard_negatives(_squashed(self.matrix), labels, noise=noise, forbidden=used, rng=rng)
        if config.negatives == "blocks":
            return mining.assign_in_blocks(
                lambda photos: _squashed(self.block(photos)), labels, config.block, noise=noise, forbidden=used, rng=rng
            )
        near, listed = self._lists(labels, config.neighbours)
        return mining.assign_sparse(
            near,
            _squashed(listed),
            labels,
            noise=noise,
            forbidden=used,
            rng=rng,
            pair_scores=lambda i, j: _squashed(self.of(i, j)),
        )


def _squashed(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities, in which the ladder's noise is measured."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -30, 30))), np.float32)


def nearest(left: NDArray[np.float32], right: NDArray[np.float32], labels: IntArray, k: int) -> IntArray:
    """The places of the k highest products `left (N, E) @ right.T` of each row with those of other `labels (N,)`, `(N, k)
    int64`, −1 where there are no more.
    """
    n = len(left)
    k = min(k, n - 1)
    near = np.empty((n, k), np.int64)
    step = max(1, 4_000_000 // max(1, n))
    for start in range(0, n, step):
        part = left[start : start + step] @ right.T
        part[labels[start : start + step, None] == labels] = -np.inf
        found = np.argpartition(-part, k - 1, axis=1)[:, :k]
        near[start : start + step] = np.where(np.take_along_axis(part, found, 1) > -np.inf, found, -1)
    return near


def positives(
    scores: PairScores, labels: IntArray, config: SiameseConfig, noise: float, rng: np.random.Generator
) -> IntArray:
    """A partner of the same identity for every photo."""
    if config.hard_positives:
        return mining.assign_hard_positives(
            lambda photos: _squashed(scores.block(photos)), labels, noise=noise, rng=rng
        )
    return mining.derangements(labels, rng)
