"""Training of the Siamese head on kept vectors, against negatives that get harder by the epoch.

Every epoch shows each photo twice as a positive pair (a derangement of its identity) and twice as a negative one (an
assignment over all photos, see `reid.train.mining`), under binary cross entropy. The assignment uses the head's own
scores, so it keeps finding what the head still confuses. Photos whose identity has a single photo have no positive and
are left out.

Knows vectors and labels; the trained head is `reid.siamese.Siamese`, which needs no torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from reid.errors import TrainError
from reid.metrics import reciprocal_ranks
from reid.siamese import Siamese
from reid.train import holdout, mining
from reid.train.assignment import codes_of
from reid.train.holdout import Split

IntArray = NDArray[np.int64]
Negatives = Literal["lap", "blocks", "sparse", "random"]
_STEEPNESS = 10.0  # of the first logit over the cosine, which runs from −1 to 1
Progress = Callable[[int, float, float], None]  # epoch, loss, MAP@5 of the held-out photos (NaN without any)


@dataclass(frozen=True, slots=True)
class SiameseConfig:
    """How the head is trained.

    `features` numbers of the linear map before the head, 0 to use the vectors as they are; `rate` multiplies the
    learning rates of the noise ladder (`mining.schedule`), which was made for 400 epochs; `negatives` says how they are
    found, `block` photos at once and `neighbours` of each photo for the two that need it; `hard_positives` also sets
    the least alike photos of an animal against each other; `patience` epochs without a better MAP@5 end the run, 0
    never.
    """

    features: int = 256
    hidden: int = 32  # 2 or more
    epochs: int = 40
    batch: int = 128
    rate: float = 4.0
    negatives: Negatives = "lap"
    block: int = 4000
    neighbours: int = 50
    hard_positives: bool = False
    dropout: float = 0.1
    patience: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line of a training run; `hardness` is the mean logit that the head gave this epoch's negatives when they were
    chosen.
    """

    loss: float
    map_at_5: float
    hardness: float


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """The head of the `best` epoch (from 0), and every epoch's numbers."""

    head: Siamese
    history: tuple[Epoch, ...]
    best: int


class PairNetwork(torch.nn.Module):  # type: ignore[misc]
    """`(P, D)`, `(P, D)` → logits `(P,)`; see `reid.siamese`."""

    def __init__(self, width: int, config: SiameseConfig) -> None:
        super().__init__()
        features = config.features or width
        self.projection = torch.nn.Linear(width, features)
        self.frozen = not config.features
        self.scale = float(width) ** 0.5
        self.dropout = torch.nn.Dropout(config.dropout)
        self.hidden = torch.nn.Linear(4, config.hidden)
        self.output = torch.nn.Linear(config.hidden, 1)
        self.weights = torch.nn.Parameter(torch.full((features,), _STEEPNESS / features))
        self.bias = torch.nn.Parameter(torch.tensor(-_STEEPNESS / 2))
        self._start_as_cosine()

    def _start_as_cosine(self) -> None:
        """Begin with h = xy, so that the first logit is the cosine, scaled: training goes on from what search does now."""
        width = self.projection.in_features
        sign = torch.tensor([1.0, -1.0])
        with torch.no_grad():
            if self.frozen:
                self.projection.weight.copy_(torch.eye(width))
            else:
                torch.nn.init.orthogonal_(self.projection.weight)
            self.projection.weight.mul_(max(1.0, width / self.projection.out_features) ** 0.5)
            torch.nn.init.zeros_(self.projection.bias)
            self.hidden.weight[:2] = torch.tensor([1.0, 0.0, 0.0, 0.0]) * sign[:, None]
            self.hidden.bias[:2] = 0.0
            self.output.weight.mul_(0.05)
            self.output.weight[0, :2] = sign
            torch.nn.init.zeros_(self.output.bias)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """See the class."""
        keep = self.dropout(torch.ones_like(first))  # the same for both of a pair
        x, y = (self.projection(side * self.scale * keep) for side in (first, second))
        apart = x - y
        v = torch.stack([x * y, x + y, apart.abs(), apart * apart], dim=-1)
        h = self.output(torch.relu(self.hidden(v))).squeeze(-1)
        logits: torch.Tensor = h @ self.weights + self.bias
        return logits

    def trained(self) -> list[torch.nn.Parameter]:
        """What is learnt."""
        frozen = {id(p) for p in self.projection.parameters()} if self.frozen else set()
        return [p for p in self.parameters() if id(p) not in frozen]

    def plain(self) -> Siamese:
        """The head without torch."""

        def array(tensor: torch.Tensor) -> NDArray[np.float32]:
            return np.array(tensor.detach().cpu().numpy(), np.float32)

        return Siamese(
            projection=array(self.projection.weight) * np.float32(self.scale),
            shift=array(self.projection.bias),
            hidden=array(self.hidden.weight),
            hidden_bias=array(self.hidden.bias),
            output=array(self.output.weight)[0],
            output_bias=self.output.bias.item(),
            weights=array(self.weights),
            bias=self.bias.item(),
        )


def train(
    vectors: NDArray[np.float16],
    labels: ArrayLike,
    config: SiameseConfig = SiameseConfig(),
    *,
    held: Split | None = None,
    forbidden: ArrayLike | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a head on `vectors (n, V, 2, D)` (`reid.train.features`) of photos with identities `labels (n,)`.

    `held` are photos by which the best epoch is chosen (`holdout.split`): only its gallery is then trained on.
    `forbidden (P, 2)` are pairs never to be used as negatives (`suspects.find_suspects`).

    Raises:
        TrainError: fewer than two identities with two photos, an identity with more than half of the photos, or a loss
        that is no number.
    """
    codes = codes_of(labels)
    if vectors.ndim != 4 or vectors.shape[0] != len(codes) or vectors.shape[2] != 2:
        raise ValueError(f"vectors {vectors.shape} for {len(codes)} labels: expected (n, V, 2, D)")
    rows = np.arange(len(codes)) if held is None else held.gallery
    counts = np.bincount(codes[rows], minlength=int(codes.max(initial=-1)) + 1)
    rows = rows[counts[codes[rows]] >= 2]
    if not len(rows):
        raise TrainError(
            "no identity has two photos: there are no pairs of one animal", next_step="add photos of known animals"
        )
    if len(np.unique(codes[rows])) < 2:
        raise TrainError(
            "only one identity has two photos: there are no pairs of two animals",
            next_step="add photos of other animals",
        )
    never = _inside(forbidden, rows, len(codes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _run(vectors, codes, rows, config, held, never, progress)


def _inside(forbidden: ArrayLike | None, rows: IntArray, n: int) -> IntArray:
    """The forbidden pairs among `rows`, in their own numbers."""
    pairs = np.asarray([] if forbidden is None else forbidden, np.int64).reshape(-1, 2)
    place = np.full(n, -1, np.int64)
    place[rows] = np.arange(len(rows))
    inside: IntArray = place[pairs]
    return inside[(inside >= 0).all(axis=1)]


def _run(
    vectors: NDArray[np.float16],
    codes: IntArray,
    rows: IntArray,
    config: SiameseConfig,
    held: Split | None,
    never: IntArray,
    progress: Progress | None,
) -> Trained:
    rng = np.random.default_rng(config.seed)
    network = PairNetwork(vectors.shape[3], config)
    optimiser = torch.optim.Adam(network.trained())
    used = never
    history: list[Epoch] = []
    best, head = -1, network.plain()
    for epoch in range(config.epochs):
        step = mining.schedule(epoch, config.epochs)
        for group in optimiser.param_groups:
            group.update(lr=step.learning_rate * config.rate, weight_decay=step.weight_decay)
        if step.rescore:
            scores = PairScores(network.plain(), np.asarray(vectors[rows, 0, 0], np.float32), config.negatives)
            used = never
        labels = codes[rows]
        negative = scores.assign(labels, config, step.noise, used, rng)
        used = mining.forbid(used, negative)
        positive = positives(scores, labels, config, step.noise, rng)
        loss = _epoch(network, optimiser, vectors, rows, positive, negative, config, rng)
        hardness = float(scores.of(np.arange(len(rows)), negative).mean())
        score = _held_out(network.plain(), vectors, codes, held) if held is not None else float("nan")
        history.append(Epoch(loss, score, hardness))
        if progress is not None:
            progress(epoch, loss, score)
        if held is None or best < 0 or score > history[best].map_at_5:
            best, head = epoch, copy.deepcopy(network.plain())
        elif config.patience and epoch - best >= config.patience:
            break
    return Trained(head, tuple(history), best)


class PairScores:
    """All pairs' scores by the head as it is, as far as each way of mining needs them."""

    def __init__(self, head: Siamese, vectors: NDArray[np.float32], negatives: Negatives) -> None:
        self.left, self.right = head.expanded(vectors)
        self.matrix = self.left @ self.right.T if negatives == "lap" else None
        self.near: tuple[IntArray, NDArray[np.float32]] | None = None

    def block(self, photos: IntArray) -> NDArray[np.float32]:
        """Logits of all pairs of these photos, `(n, n)`."""
        return np.asarray(self.left[photos] @ self.right[photos].T)

    def of(self, first: IntArray, second: IntArray) -> NDArray[np.float32]:
        """Logits of these pairs, `(P,)`."""
        return np.asarray(np.einsum("pf,pf->p", self.left[first], self.right[second]))

    def assign(
        self, labels: IntArray, config: SiameseConfig, noise: float, used: IntArray, rng: np.random.Generator
    ) -> IntArray:
        """A partner of another identity for every photo, none of `used`."""
        if config.negatives == "random":
            return mining.random_negatives(labels, rng)
        if self.matrix is not None:
            return mining.assign_hard_negatives(_squashed(self.matrix), labels, noise=noise, forbidden=used, rng=rng)
        if config.negatives == "blocks":
            return mining.assign_in_blocks(
                lambda photos: _squashed(self.block(photos)), labels, config.block, noise=noise, forbidden=used, rng=rng
            )
        if noise >= 10:  # the ladder's random part: neighbours alone would never be random
            return mining.random_negatives(labels, rng)
        if self.near is None:
            self.near = nearest(self.left, self.right, config.neighbours)
        near, listed = self.near
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


def nearest(left: NDArray[np.float32], right: NDArray[np.float32], k: int) -> tuple[IntArray, NDArray[np.float32]]:
    """The k highest products `left (N, E) @ right.T` of each row but its own, `(N, k) int64` and `(N, k) float32`."""
    n = len(left)
    k = min(k, n - 1)
    near, listed = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
    step = max(1, 4_000_000 // max(1, n))
    for start in range(0, n, step):
        part = left[start : start + step] @ right.T
        own = np.arange(len(part))
        part[own, own + start] = -np.inf
        near[start : start + step] = np.argpartition(-part, k - 1, axis=1)[:, :k]
        listed[start : start + step] = np.take_along_axis(part, near[start : start + step], axis=1)
    return near, listed


def positives(
    scores: PairScores, labels: IntArray, config: SiameseConfig, noise: float, rng: np.random.Generator
) -> IntArray:
    """A partner of the same identity for every photo."""
    if config.hard_positives:
        return mining.assign_hard_positives(
            lambda photos: _squashed(scores.block(photos)), labels, noise=noise, rng=rng
        )
    return mining.derangements(labels, rng)


def _epoch(
    network: PairNetwork,
    optimiser: torch.optim.Optimizer,
    vectors: NDArray[np.float16],
    rows: IntArray,
    positive: IntArray,
    negative: IntArray,
    config: SiameseConfig,
    rng: np.random.Generator,
) -> float:
    """One pass: every batch holds as many positive as negative pairs. Returns the mean loss."""
    network.train()
    loss_of = torch.nn.BCEWithLogitsLoss()
    total, n = 0.0, len(rows)
    half = max(1, config.batch // 2)
    for start in range(0, n, half):
        if start == 0:
            orders = rng.permutation(n), rng.permutation(n)
        first = np.concatenate([order[start : start + half] for order in orders])
        size = len(first) // 2
        second = np.concatenate([positive[first[:size]], negative[first[size:]]])
        same = torch.cat([torch.ones(size), torch.zeros(size)])
        mirrored = rng.integers(0, 2, 2 * size)
        other = np.concatenate(
            [mirrored[:size], rng.integers(0, 2, size)]
        )  # of a positive pair both are mirrored or none
        sides = [
            torch.from_numpy(
                vectors[rows[photos], rng.integers(0, vectors.shape[1], len(photos)), flips].astype(np.float32)
            )
            for photos, flips in ((first, mirrored), (second, other))
        ]
        loss = loss_of(network(*sides), same)
        if not torch.isfinite(loss):
            raise TrainError(
                "the loss is no number any more", next_step="lower `rate`, and look for vectors that are not finite"
            )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += loss.item() * size
    return total / n


def _held_out(head: Siamese, vectors: NDArray[np.float16], codes: IntArray, held: Split) -> float:
    """MAP@5 of the held-out photos against the gallery, by the head's scores."""
    both = np.concatenate([held.queries, held.gallery])
    left, right = head.expanded(np.asarray(vectors[both, 0, 0], np.float32))
    n = len(held.queries)
    scores: NDArray[Any] = left[:n] @ right[n:].T
    return float(reciprocal_ranks(holdout.ranks(scores, codes[held.queries], codes[held.gallery])).mean())
