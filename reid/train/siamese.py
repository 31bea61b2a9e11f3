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
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from reid.errors import TrainError
from reid.metrics import reciprocal_ranks
from reid.siamese import Siamese
from reid.train import allocator, heads, holdout, ladder, mining
from reid.train.assignment import codes_of
from reid.train.holdout import Split
from reid.train.pair_scores import PairScores, positives

IntArray = NDArray[np.int64]
Negatives = Literal["auto", "exact", "blocks", "sparse", "random"]
Mirror = Literal["views", "none"]
EXACT = 4000  # photos up to which "auto" assigns exactly: beyond, a matrix of all pairs takes minutes an epoch
_WHITENED_FROM, _SHRINK = 400, 0.5  # photos from which on the head begins with whitened vectors, and how much
_STEEPNESS = 10.0  # of the first logit over the cosine, which runs from −1 to 1
Progress = Callable[[int, float, float], None]  # epoch, loss, MAP@5 of the held-out photos (NaN without any)


@dataclass(frozen=True, slots=True)
class SiameseConfig:
    """How the head is trained.

    `features` numbers of the linear map before the head, 0 to use the vectors as they are; `rate` multiplies the
    learning rates of the noise ladder (`reid.train.ladder`), which was made for 400 epochs; `negatives` says how they
    are found, `block` photos at once and `neighbours` of each photo for the two that need it, "auto" exactly up to
    `EXACT` photos and sparse beyond; `among` is how many other photos, about, a negative is the hardest of at most
    (`ladder.least_noise`), 0 of all; `hard_positives` also sets the least alike photos of an animal against each other;
    `mirror` "views" also shows pairs mirrored (both photos of one animal or none), "none" never; `patience` epochs
    without a better MAP@5 end the run, 0 never.
    """

    features: int = 256
    hidden: int = 32  # 2 or more
    epochs: int = 40
    batch: int = 128
    rate: float = 4.0
    negatives: Negatives = "auto"
    block: int = 4000
    neighbours: int = 30
    among: int = ladder.AMONG
    hard_positives: bool = False
    mirror: Mirror = "views"
    dropout: float = 0.1
    patience: int = 0
    seed: int = 0

    def least_noise(self, photos: int) -> float:
        """The K that `among` asks for where so many photos are assigned."""
        return ladder.least_noise(min(photos, self.block) if self.negatives == "blocks" else photos, self.among)


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
    """The head of the `best` epoch (from 0), and every epoch's numbers; `negatives` as they were found, and how many
    photos were `paired`, `lonely` ones of no second photo having been left out.
    """

    head: Siamese
    history: tuple[Epoch, ...]
    best: int
    negatives: Negatives
    paired: int
    lonely: int


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

    def start_whitened(self, vectors: NDArray[np.float32]) -> None:
        """Begin with the main directions of unit rows `vectors (n, D)`, turned to equal weight (`heads.whitening`), where
        they are as many as the features: a random choice of directions would throw away what tells photos apart.
        """
        layer = heads.whitening(vectors, len(self.weights), shrink=_SHRINK)
        if self.frozen or len(layer.matrix) < len(self.weights):
            return
        features = vectors @ layer.matrix.T + layer.bias
        gain = float(np.sqrt(features.size / (features**2).sum()))
        with torch.no_grad():
            self.projection.weight.copy_(torch.from_numpy(layer.matrix * (gain / self.scale)))
            self.projection.bias.copy_(torch.from_numpy(layer.bias * gain))

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


@allocator.bounded('choose negatives "sparse", or fewer views, or end other programs')
def train(
    vectors: NDArray[np.float16],
    labels: ArrayLike,
    config: SiameseConfig = SiameseConfig(),
    *,
    held: Split | None = None,
    forbidden: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    near: IntArray | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a head on `vectors (n, V, 2, D)` (`reid.train.features`) of photos with identities `labels (n,)`.

    `held` are photos by which the best epoch is chosen (`holdout.split`): only its gallery is then trained on.
    `forbidden (P, 2)` are pairs never to be used as negatives; nor are photos of one of `groups (n,)`, in which animals
    that may be one are joined (`suspects.merged`; the labels where left out). `near (n, k)` lists, for "sparse", photos
    that look like each (from the gallery index, −1 where a list has ended); without it those of other animals that the
    head itself finds most alike, among all.

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
    mining.check_sizes(np.asarray(labels)[rows])
    task = _Task(
        vectors, codes, rows, codes_of(codes if groups is None else groups)[rows], _inside(forbidden, rows, len(codes)),
        None if near is None else listed_inside(near, rows), replace(config, negatives=settled(config, len(rows))),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _run(task, held, progress, len(codes) - len(rows) if held is None else len(held.gallery) - len(rows))


def settled(config: SiameseConfig, n: int) -> Negatives:
    """How negatives of `n` photos are found: as the config says, and what "auto" comes to."""
    if config.negatives != "auto":
        return config.negatives
    return "exact" if n <= EXACT else "sparse"


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """What is trained on: `vectors (n, V, 2, D)` and `codes (n,)` of all photos, and of the `rows` that are shown their
    groups, forbidden pairs and neighbours, in the rows' own numbers.
    """

    vectors: NDArray[np.float16]
    codes: IntArray
    rows: IntArray
    groups: IntArray
    never: IntArray
    near: IntArray | None
    config: SiameseConfig


def _inside(forbidden: ArrayLike | None, rows: IntArray, n: int) -> IntArray:
    """The forbidden pairs among `rows`, in their own numbers."""
    pairs = np.asarray([] if forbidden is None else forbidden, np.int64).reshape(-1, 2)
    place = np.full(n, -1, np.int64)
    place[rows] = np.arange(len(rows))
    inside: IntArray = place[pairs]
    return inside[(inside >= 0).all(axis=1)]


def listed_inside(near: IntArray, rows: IntArray) -> IntArray:
    """The lists `near (n, k)` of some `rows`, in their own numbers; −1 for photos that are none of them."""
    place = np.full(len(near) + 1, -1, np.int64)
    place[rows] = np.arange(len(rows))
    inside: IntArray = place[near[rows]]  # −1 stays −1, by the last place
    return inside


def _run(task: _Task, held: Split | None, progress: Progress | None, lonely: int) -> Trained:
    vectors, codes, rows, config = task.vectors, task.codes, task.rows, task.config
    rng = np.random.default_rng(config.seed)
    network = PairNetwork(vectors.shape[3], config)
    if len(rows) >= _WHITENED_FROM:
        network.start_whitened(np.asarray(vectors[rows, 0, 0], np.float32))
    optimiser = torch.optim.Adam(network.trained())
    used = task.never[:0]
    history: list[Epoch] = []
    best, head = -1, network.plain()
    for epoch in range(config.epochs):
        step = ladder.step_at(epoch, config.epochs)
        for group in optimiser.param_groups:
            group.update(lr=step.learning_rate * config.rate, weight_decay=step.weight_decay)
        if step.rescore:
            scores = PairScores(
                network.plain(), np.asarray(vectors[rows, 0, 0], np.float32), config.negatives, task.near
            )
            used = used[:0]
        noise = max(step.noise, config.least_noise(len(rows)))
        negative, used = scores.fresh(task.groups, config, noise, task.never, used, rng)
        positive = positives(scores, codes[rows], config, step.noise, rng)
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
    return Trained(head, tuple(history), best, config.negatives, len(rows), lonely)


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
        mirrored = rng.integers(0, 2, 2 * size) * (config.mirror == "views")
        # Of a positive pair both are mirrored or none.
        other = np.concatenate([mirrored[:size], rng.integers(0, 2, size) * (config.mirror == "views")])
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
