"""The fast way to train: linear maps on kept vectors, minutes on two cores for ten thousand photos.

`whitening` needs no labels: it turns off what all photos of a gallery share. `train_head` needs them: a projection with
a batch-norm neck under an ArcFace loss (Deng et al. 2019, arXiv 1801.07698; `reid.train.losses`) over the identities,
where the mirror image of a photo may count as another animal (first place, Humpback Whale Identification 2019), with
which the photo itself does not compete. Both come out as plain matrices, which `write_model` makes part of a model
directory: no query needs torch.

Vectors are those of `reid.train.features`: `(n, V, 2, D)` unit rows. Knows vectors, labels and model directories; no
photos.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from reid import models
from reid.embed import unit_rows
from reid.errors import ModelError, TrainError
from reid.train import graphs, holdout, losses
from reid.train.assignment import codes_of
from reid.train.graphs import Layer, Tap
from reid.train.holdout import Split
from reid.train.losses import MarginSoftmax, Space
from reid.train.network import Embedded
from reid.train.recipe import Margin

_WITH_HEAD = ", with a head"
Floats = NDArray[np.floating[Any]]
Progress = Callable[[int, float, float], None]  # epoch, loss, MAP@5 of the held-out photos (NaN without any)


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """How a projection is trained.

    `dim` numbers in the new vector; `hidden` units of a layer before it, 0 for none; `margin` in degrees and `scale` of
    ArcFace; `dropout` share of the inputs, 0 for none; `mirror_as_class` makes mirrored photos another animal, with
    which the photos that they mirror do not compete, otherwise they are more views of the same; `patience` epochs
    without a better MAP@5 on the held-out photos end the run, 0 never: then these are asked for after the last epoch
    alone, and its weights are kept.
    """

    dim: int = 512
    hidden: int = 0
    margin: float = 17.0
    scale: float = 24.0
    epochs: int = 40
    batch: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    dropout: float = 0.2
    mirror_as_class: bool = True
    patience: int = 10
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line of a training run. `map_at_5` and `worn` are of held-out photos as they are, and in the first of their
    augmented views: small, lossy or wide (NaN without any).
    """

    loss: float
    map_at_5: float
    worn: float
    seconds: float

    @property
    def judged(self) -> float:
        """What one epoch, or one way to train, is preferred to another by: the mean of both."""
        return self.map_at_5 if math.isnan(self.worn) else (self.map_at_5 + self.worn) / 2


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """Trained layers, and how they came about; `best` is the epoch (from 0) whose weights these are."""

    layers: tuple[Layer, ...]
    history: tuple[Epoch, ...]
    best: int

    def apply(self, vectors: Floats) -> NDArray[np.float32]:
        """`(N, D) unit rows → (N, dim) float32` unit rows."""
        return unit_rows(graphs.apply_layers(vectors, list(self.layers)))


def whitening(vectors: Floats, dim: int, *, shrink: float = 0.0, seed: int = 0) -> Layer:
    """The map `(D) → (dim)` after which the rows `(N, D)` have mean 0 and, along their main directions, variance 1.

    `shrink` is the share of the mean variance mixed into each direction's, as in `reid.whiten`: faint directions, of
    which few photos tell little, are then turned up less.

    The directions come from subspace iteration (Halko, Martinsson & Tropp 2011), four rounds, which takes a small part
    of a full decomposition's time.

    Raises:
        TrainError: fewer than two rows, or rows that do not differ.
    """
    n, width = vectors.shape
    dim = min(dim, width, n - 1)
    if n < 2:
        raise TrainError(f"{n} photos are too few to whiten by", next_step="add photos")
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = np.asarray(vectors, np.float32) - mean
    basis = np.random.default_rng(seed).normal(size=(width, min(dim + 64, width))).astype(np.float32)
    for _ in range(4):
        basis = np.linalg.qr(centred @ basis)[0]
        basis = np.linalg.qr(centred.T @ basis)[0]
    inner = centred @ basis
    values, turn = np.linalg.eigh((inner.T @ inner).astype(np.float64) / (n - 1))
    values, turn = values[::-1][:dim], turn[:, ::-1][:, :dim]
    keep = values > 1e-6 * values[0]
    if not values[0] > 0:
        raise TrainError("the photos do not differ", next_step="add other photos")
    scale = np.sqrt((1 - shrink) * values[keep] + shrink * values[keep].mean())
    matrix = ((basis @ turn[:, keep]) / scale).T.astype(np.float32)
    return Layer(matrix, -(matrix @ mean))


def train_head(
    vectors: NDArray[np.float16],
    labels: ArrayLike,
    config: HeadConfig = HeadConfig(),
    *,
    held: Split | None = None,
    progress: Progress | None = None,
) -> Head:
    """Train a projection on `vectors (n, V, 2, D)` of photos with identities `labels (n,)`.

    Every epoch shows each photo once, in one of its views, mirrored or not at random. `held` are photos by which to
    stop (`holdout.split`): only its gallery is then trained on, and with `patience` the weights of the best epoch are
    kept; without it all photos are trained on for all epochs.

    Raises:
        TrainError: all photos are of one identity, or the loss is no number (any more).
    """
    codes = codes_of(labels)
    if vectors.ndim != 4 or vectors.shape[0] != len(codes) or vectors.shape[2] != 2:
        raise ValueError(f"vectors {vectors.shape} for {len(codes)} labels: expected (n, V, 2, D)")
    rows = np.arange(len(codes)) if held is None else held.gallery
    classes = codes_of(codes[rows])
    if len(classes) == 0 or classes.max() == 0:
        raise TrainError(
            "all photos are of one identity: there is nothing to tell apart", next_step="add photos of other animals"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _run(vectors, codes, rows, classes, config, held, progress)


def _run(
    vectors: NDArray[np.float16],
    codes: NDArray[np.int64],
    rows: NDArray[np.int64],
    classes: NDArray[np.int64],
    config: HeadConfig,
    held: Split | None,
    progress: Progress | None,
) -> Head:
    rng = np.random.default_rng(config.seed)
    n_classes = int(classes.max()) + 1
    network = _network(vectors.shape[3], config)
    loss_of = _arcface(n_classes, config)
    _centre(loss_of, network, vectors, rows, classes, n_classes, config)
    steps = -(-len(rows) // config.batch)
    optimiser = torch.optim.AdamW(
        [*network.parameters(), *loss_of.parameters()],
        config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=steps * config.epochs, pct_start=0.15
    )
    history: list[Epoch] = []
    best, best_state = -1, copy.deepcopy(network.state_dict())
    for epoch in range(config.epochs):
        started = time.perf_counter()
        loss = _epoch(network, loss_of, optimiser, rate, vectors, rows, classes, n_classes, config, rng)
        scores = [math.nan, math.nan]
        if held is not None and (config.patience or epoch == config.epochs - 1):
            for place, seen in enumerate(_asked(vectors, held)):
                found = unit_rows(graphs.apply_layers(seen, _layers(network)))
                scores[place] = holdout.map_at_5(found, codes, held)
        history.append(Epoch(loss, scores[0], scores[1], time.perf_counter() - started))
        if progress is not None:
            progress(epoch, loss, scores[0])
        if held is None or not config.patience or best < 0 or history[-1].judged > history[best].judged:
            best, best_state = epoch, copy.deepcopy(network.state_dict())
        elif epoch - best >= config.patience:
            break
    network.load_state_dict(best_state)
    return Head(tuple(_layers(network)), tuple(history), best)


def _asked(vectors: NDArray[np.float16], held: Split) -> Iterator[NDArray[np.float32]]:
    """All photos as they are; then the held-out queries in the first of their augmented views, where there are any."""
    seen = np.array(vectors[:, 0, 0], np.float32)
    yield seen
    if vectors.shape[1] > 1:
        seen[held.queries] = vectors[held.queries, 1, 0]
        yield seen


def _epoch(
    network: torch.nn.Sequential,
    loss_of: MarginSoftmax,
    optimiser: torch.optim.Optimizer,
    rate: Any,
    vectors: NDArray[np.float16],
    rows: NDArray[np.int64],
    classes: NDArray[np.int64],
    n_classes: int,
    config: HeadConfig,
    rng: np.random.Generator,
) -> float:
    """One pass over the photos; returns the mean loss."""
    network.train()
    total = 0.0
    batches = np.array_split(rng.permutation(len(rows)), -(-len(rows) // config.batch))
    for batch in batches:
        view = rng.integers(0, vectors.shape[1], len(batch))
        mirrored = rng.integers(0, 2, len(batch))
        x = torch.from_numpy(vectors[rows[batch], view, mirrored] * _scale(vectors.shape[3]))
        found = network(x)
        loss = loss_of(Embedded(found, (found,)), _targets(classes[batch], mirrored, n_classes, config))
        if not torch.isfinite(loss):
            raise TrainError(
                "the loss is no number any more",
                next_step="lower the learning rate, and look for vectors that are not finite",
            )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        rate.step()
        total += loss.item() * len(batch)
    return total / len(rows)


def _network(width: int, config: HeadConfig) -> torch.nn.Sequential:
    """Dropout, an optional hidden layer, the projection, and the batch-norm neck, whose bias stays zero (Luo et al.
    2019).
    """
    parts: list[torch.nn.Module] = [torch.nn.Dropout(config.dropout)]
    if config.hidden:
        parts += [torch.nn.Linear(width, config.hidden), torch.nn.BatchNorm1d(config.hidden), torch.nn.ReLU()]
        width = config.hidden
    neck = torch.nn.BatchNorm1d(config.dim)
    neck.bias.requires_grad_(False)
    projection = torch.nn.Linear(width, config.dim, bias=False)
    torch.nn.init.orthogonal_(projection.weight)  # training begins near the cosine of what comes in
    return torch.nn.Sequential(*parts, projection, neck)


def _arcface(n_classes: int, config: HeadConfig) -> MarginSoftmax:
    """Over the identities and, where they are others, their mirror images."""
    counts = np.ones(n_classes * (2 if config.mirror_as_class else 1), np.int64)
    return MarginSoftmax(Margin(scale=config.scale, m2=math.radians(config.margin)), Space(config.dim, 1, counts))


def _targets(
    classes: NDArray[np.int64], mirrored: NDArray[np.int64], n_classes: int, config: HeadConfig
) -> losses.Targets:
    """Class c + C is the mirror image of class c, where mirrored photos are other animals: each is the other's twin."""
    if not config.mirror_as_class:
        return losses.Targets(torch.from_numpy(classes), torch.full((len(classes),), -1))
    own, twin = classes + n_classes * mirrored, classes + n_classes * (1 - mirrored)
    return losses.Targets(torch.from_numpy(own), torch.from_numpy(twin))


def _centre(
    loss_of: MarginSoftmax,
    network: torch.nn.Sequential,
    vectors: NDArray[np.float16],
    rows: NDArray[np.int64],
    classes: NDArray[np.int64],
    n_classes: int,
    config: HeadConfig,
) -> None:
    """Begin with each class's centre where its photos are now, not anywhere: most of the first epochs' work is saved."""
    network.eval()
    centres = torch.zeros_like(loss_of.centres.data)
    with torch.inference_mode():
        for mirrored in (0, 1):
            for start in range(0, len(rows), 4096):
                part = slice(start, start + 4096)
                x = torch.from_numpy(vectors[rows[part], 0, mirrored] * _scale(vectors.shape[3]))
                target = torch.from_numpy(classes[part] + (n_classes * mirrored if config.mirror_as_class else 0))
                centres.index_add_(0, target, torch.nn.functional.normalize(network(x)))
        loss_of.centres.data.copy_(torch.nn.functional.normalize(centres))


def _layers(network: torch.nn.Sequential) -> list[Layer]:
    """The network in evaluation mode as plain layers: inputs' scale, dropout and batch norms go into the matrices."""
    network.eval()
    layers: list[Layer] = []
    for part in network:
        if isinstance(part, torch.nn.Linear):
            matrix = part.weight.detach().numpy().astype(np.float32)
            if not layers:
                matrix = matrix * _scale(matrix.shape[1])
            bias = np.zeros(len(matrix), np.float32) if part.bias is None else part.bias.detach().numpy().copy()
            layers.append(Layer(matrix, bias))
        elif isinstance(part, torch.nn.BatchNorm1d):
            layers[-1] = _with_norm(layers[-1], part)
        elif isinstance(part, torch.nn.ReLU):
            layers[-1] = replace(layers[-1], relu=True)
    return layers


def _scale(width: int) -> np.float32:
    """Unit rows have components of about D^-½; a network likes them of about 1."""
    return np.float32(width**0.5)


def _with_norm(layer: Layer, norm: torch.nn.BatchNorm1d) -> Layer:
    """A linear layer and the batch norm behind it as one."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None  # it tracks them
    gain = (norm.weight / torch.sqrt(variance + norm.eps)).detach().numpy()
    shift = norm.bias.detach().numpy() - mean.numpy() * gain
    return Layer(layer.matrix * gain[:, None], layer.bias * gain + shift)


def write_model(
    base: Path,
    folder: Path,
    name: str,
    layers: Sequence[Layer],
    *,
    taps: tuple[Tap, ...] = (),
    larger: float = 1.0,
    source: str = "",
    licence: str = "",
) -> Path:
    """The model directory `folder/<name>`: the graph of `base`, pooled over `taps` where given, looking at crops
    `larger` times its size as well as at its own where that is above 1, with `layers` behind it.

    Raises:
        ModelError: `base` is no model directory, or the layers do not fit it.
    """
    import openvino

    card = models.read_card(base)
    try:
        graph = openvino.Core().read_model(base / "graph.xml")
    except RuntimeError as error:
        raise ModelError("the model's graph cannot be read", source=str(base), next_step=models.AGAIN) from error
    if taps:
        graph = graphs.tapped(graph, taps)
    seen = card.preprocessing
    if larger > 1:
        graph = graphs.beside_smaller(graph, seen.height, seen.width)
        seen = replace(seen, height=_times(seen.height, larger), width=_times(seen.width, larger))
    if layers:
        graph = graphs.append_layers(graph, list(layers))
    tensors = [
        (str(i), tensor)
        for i, layer in enumerate(layers)
        for tensor in (layer.matrix, layer.bias, np.array(layer.relu))
    ]
    facts = f"{card.weights_sha256} {taps} {larger} {models.hash_tensors(tensors)}"
    new = replace(
        card,
        name=name,
        dim=int(graph.output("embedding").get_partial_shape()[1].get_length()),
        preprocessing=seen,
        pooling=card.pooling + (" taps" if taps else "") + (" at two sizes" if larger > 1 else ""),
        weights_sha256=hashlib.sha256(facts.encode()).hexdigest(),
        source=source or f"{card.source.removesuffix(_WITH_HEAD)}{_WITH_HEAD}",
        licence=licence or card.licence,
        extra={
            **{key: value for key, value in card.extra.items() if key != "threshold"},  # that is of the base's cosines
            "base": card.extra.get("base", card.name),
            "head": [list(layer.matrix.shape) for layer in layers],
        },
    )
    return models.write(folder, new, graph)


def _times(pixels: int, factor: float) -> int:
    """A larger size, a multiple of 32 as networks like it."""
    return max(32, round(pixels * factor / 32) * 32)
