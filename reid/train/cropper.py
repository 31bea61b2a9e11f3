"""A cropper's training: the box regressor (`reid.train.cropper_network`) learns from photos with boxes, and is judged.

    Photos (`reid.train.cropper_data`) → epochs of batches varied by `reid.train.cropper_views` → `Network`

Of the K heads, head j learns nothing from the photos of fold j (whole animals), so the heads disagree where a photo is
unlike what they know. Coordinates under smooth L1, presence under binary cross entropy; where a photo has a box and no
landmarks, only the box counts. The same seed gives the same network on the same machine.

Checkpoints are plain arrays (`.npz`), written aside and renamed; after an interruption training goes on from the last.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from reid import locate
from reid.errors import TrainError
from reid.train import allocator
from reid.train.cropper_data import Photos, box_of
from reid.train.cropper_network import Network, predict
from reid.train.cropper_views import Shown, Variation, varied
from reid.train.runs import written

_BETA = 0.02  # share of the photo at which smooth L1 turns from square to straight
_LANDMARKS, _PRESENCE = 0.5, 0.1  # weights of the losses beside the box's


@dataclass(frozen=True, slots=True)
class CropperConfig:
    """`side` in pixels; `folds` is K, 1 for a single head; `rate` is AdamW's highest; `warm` the share of steps by which
    it is reached.
    """

    side: int = 96
    folds: int = 3
    epochs: int = 14
    batch: int = 32
    rate: float = 2e-3
    decay: float = 1e-3
    warm: float = 0.05
    seed: int = 0
    variation: Variation = field(default_factory=Variation)


@dataclass(frozen=True, slots=True)
class Epoch:
    """`loss` over the epoch; median IoU of the box on photos held out, NaN where there are none."""

    loss: float
    iou: float


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What came out."""

    network: Network
    history: tuple[Epoch, ...]


def loss_of(out: torch.Tensor, shown: Shown, group: NDArray[np.int64], folds: int) -> torch.Tensor:
    """The loss of `out (B, K, 13)`; fold j's photos do not count for head j."""
    box = torch.from_numpy(shown.boxes)[:, None]
    marks = torch.from_numpy(np.clip(shown.landmarks, -0.5, 1.5)).flatten(1)[:, None]
    animal, marked = (torch.from_numpy(a).float()[:, None] for a in (shown.animal, shown.marked))
    learns = torch.ones(len(out), folds)
    if folds > 1:
        learns[torch.arange(len(out)), torch.from_numpy(group % folds)] = 0.0
    edges = functional.smooth_l1_loss(out[..., :4], box.expand(-1, folds, -1), beta=_BETA, reduction="none").mean(-1)
    points = functional.smooth_l1_loss(out[..., 4:12], marks.expand(-1, folds, -1), beta=_BETA, reduction="none").mean(
        -1
    )
    presence = functional.binary_cross_entropy_with_logits(out[..., 12], animal.expand(-1, folds), reduction="none")
    total = edges * animal + _LANDMARKS * points * marked + _PRESENCE * presence
    return (total * learns).sum() / learns.sum()


@allocator.bounded("lower --folds, or end other programs")
def train(
    photos: Photos,
    config: CropperConfig = CropperConfig(),
    *,
    held: Photos | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[int, Epoch], None] | None = None,
) -> Trained:
    """A network for `photos`; `held` are judged by after every epoch. With `checkpoint`, the file of that name is
    written after every epoch, and training goes on from it where it is there already.

    Raises:
        TrainError: there is no box to learn from, the loss is no number, or the checkpoint cannot be written or is of
            other settings.
    """
    _check(photos, config)
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # small layers: a second thread costs more waiting than it saves, the more so on a busy machine
    try:
        return _Training(photos, config, held, checkpoint, progress).run()
    finally:
        torch.set_num_threads(threads)


def _check(photos: Photos, config: CropperConfig) -> None:
    if not photos.animal.any():
        raise TrainError(
            "there is no photo with a box to learn from",
            next_step="enrol photos with boxes (a bbox column, MegaDetector JSON), or train on rendered flukes",
        )
    animals = len(np.unique(photos.group[photos.animal]))
    if animals < config.folds:
        raise TrainError(
            f"{animals} animals cannot be dealt to {config.folds} folds", next_step="give more photos, or --folds 1"
        )


class _Training:
    """The state of one training: network, optimiser, history."""

    def __init__(
        self,
        photos: Photos,
        config: CropperConfig,
        held: Photos | None,
        checkpoint: Path | None,
        progress: Callable[[int, Epoch], None] | None,
    ) -> None:
        self.photos, self.config, self.held = photos, config, held
        self.checkpoint, self.progress = checkpoint, progress
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network = Network(config.folds, config.side).to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=config.rate, weight_decay=config.decay)
        self.steps = -(-len(photos) // config.batch)
        self.history: list[Epoch] = []
        if checkpoint is not None and checkpoint.is_file():
            self._load(checkpoint)

    def run(self) -> Trained:
        """All epochs that are left."""
        for number in range(len(self.history), self.config.epochs):
            loss = self._epoch(number)
            epoch = Epoch(loss, float("nan") if self.held is None else median_iou(self.network, self.held))
            self.history.append(epoch)
            if self.checkpoint is not None:
                self._save(self.checkpoint)
            if self.progress is not None:
                self.progress(number, epoch)
        self.network.eval()
        return Trained(self.network, tuple(self.history))

    def _epoch(self, number: int) -> float:
        self.network.train()
        total, count = 0.0, 0
        for step, (shown, group) in enumerate(self._batches(number)):
            for one in self.optimiser.param_groups:
                one["lr"] = self._rate(number * self.steps + step)
            self.optimiser.zero_grad(set_to_none=True)
            loss = loss_of(self.network(torch.from_numpy(shown.pixels)), shown, group, self.config.folds)
            value = float(loss.detach())
            if not np.isfinite(value):
                raise TrainError(
                    f"the loss became {value} in epoch {number + 1}, step {step + 1}",
                    next_step="lower the rate; the checkpoint of the epoch before is whole",
                )
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
            self.optimiser.step()
            total, count = total + value * len(group), count + len(group)
        return total / count

    def _batches(self, number: int) -> Iterator[tuple[Shown, NDArray[np.int64]]]:
        """Varied batches in an order of their own each epoch, made one ahead; they depend on seed and epoch alone."""
        order = np.random.default_rng([self.config.seed, number]).permutation(len(self.photos))
        batch = self.config.batch
        parts = [order[at : at + batch] for at in range(0, len(order), batch)]
        if len(parts) > 1 and len(parts[-1]) == 1:
            parts.pop()  # batch norm has nothing to measure on a single photo

        def make(at: int) -> tuple[Shown, NDArray[np.int64]]:
            rng = np.random.default_rng([self.config.seed, number, at])
            part = self.photos.part(parts[at])
            return varied(part, self.config.side, self.config.variation, rng), part.group

        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(make, 0)
            for at in range(len(parts)):
                ready = ahead.result()
                if at + 1 < len(parts):
                    ahead = pool.submit(make, at + 1)
                yield ready

    def _rate(self, step: int) -> float:
        """Warm-up, then a cosine to nothing."""
        done = step / (self.steps * self.config.epochs)
        if done < self.config.warm:
            return self.config.rate * done / self.config.warm
        return self.config.rate * 0.5 * (1 + float(np.cos(np.pi * (done - self.config.warm) / (1 - self.config.warm))))

    def _facts(self) -> str:
        """What a checkpoint must agree with."""
        return repr((asdict(self.config), len(self.photos), float(self.photos.outline.sum())))

    def _save(self, path: Path) -> None:
        """All that the next epoch needs, aside, then renamed."""
        arrays = {f"net.{k}": v.numpy() for k, v in self.network.state_dict().items()}
        for index, parameter in enumerate(self.network.parameters()):
            arrays |= {f"opt.{index}.{k}": v.numpy() for k, v in self.optimiser.state[parameter].items()}
        history = np.array([(e.loss, e.iou) for e in self.history])
        with written(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = ""
            try:
                with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
                    aside = file.name
                    np.savez(file, allow_pickle=False, history=history, facts=np.array(self._facts()), **arrays)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(aside, path)
            finally:
                if aside:
                    Path(aside).unlink(missing_ok=True)  # there only if something went wrong

    def _load(self, path: Path) -> None:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                arrays = {name: kept[name] for name in kept.files}
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            raise TrainError(
                f"the checkpoint cannot be read ({error})", source=str(path), next_step="delete it and begin anew"
            ) from error
        if str(arrays["facts"]) != self._facts():
            raise TrainError(
                "the checkpoint is of other settings or photos",
                source=str(path),
                next_step="train with the same ones, or begin anew",
            )
        self.network.load_state_dict({k[4:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("net.")})
        for index, parameter in enumerate(self.network.parameters()):
            prefix = f"opt.{index}."
            state = {k[len(prefix) :]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith(prefix)}
            self.optimiser.state[parameter] = state
        self.history = [Epoch(float(loss), float(iou)) for loss, iou in arrays["history"]]


def median_iou(network: Network, photos: Photos) -> float:
    """Median IoU of the canonical boxes with the true ones, over the photos that show an animal; NaN without one."""
    shown = photos.part(photos.animal)
    if not len(shown):
        return float("nan")
    found = np.median(np.clip(predict(network, shown)[..., :4], 0, 1), axis=1)
    return float(np.median(locate.overlaps(found, box_of(shown.outline))))


def landmark_error(network: Network, photos: Photos) -> float:
    """Median distance of the canonical landmarks from the true ones, in shares of the animal's width in the photo; NaN
    without landmarks.
    """
    shown = photos.part(photos.marked & photos.animal)
    if not len(shown):
        return float("nan")
    found = np.median(predict(network, shown)[..., 4:12], axis=1).reshape(-1, 4, 2)
    boxes = box_of(shown.outline)
    width = (boxes[:, 2] - boxes[:, 0])[:, None]
    return float(np.median(np.linalg.norm(found - shown.landmarks, axis=-1) / width))
