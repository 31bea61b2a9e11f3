"""The box regressor: a small network from a squashed photo to a box, four landmarks and whether there is an animal.

    Photos (`reid.train.cropper_data`) → epochs of varied batches → `Network` → a directory that `reid.locate` reads

One trunk, K heads: head j learns nothing from the photos of fold j (whole animals), so the heads disagree where a photo
is unlike what they know. Each head reads points off maps by their centre of mass (integral regression, Sun et al. 2018,
arXiv 1711.08229) and corrects them by a layer that sees the whole photo. Coordinates under smooth L1, presence under
binary cross entropy; where a photo has a box and no landmarks, only the box counts. The same seed gives the same
network on the same machine.

Checkpoints are plain arrays (`.npz`), written aside and renamed; after an interruption training goes on from the last.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from reid import locate, models
from reid.errors import TrainError
from reid.locate import NUMBERS
from reid.train import cropper_data as data
from reid.train.cropper_data import Photos, Shown, Variation
from reid.train.runs import written

_BETA = 0.02  # share of the photo at which smooth L1 turns from square to straight
_REACH = 1.3  # how far beyond the photo's edges a centre of mass may lie, 1: not at all
_POINTS = 8  # four edges of the box, four landmarks
_LANDMARKS, _PRESENCE = 0.5, 0.1  # weights of the losses beside the box's
_SAME = 0.02  # share of the photo by which the graph in half precision may differ from the network


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


class Network(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """`(B, side, side, 3) uint8 RGB → (B, K, 13) float32`: box and landmarks in shares, presence as a logit."""

    def __init__(self, folds: int, side: int) -> None:
        super().__init__()
        if side % 16:
            raise ValueError(f"a side must be a multiple of 16 pixels, not {side}")
        self.count = folds
        self.fine = nn.Sequential(_block(3, 16, 2), _block(16, 32, 2), _Residual(32), _block(32, 64, 2), _Residual(64))
        self.coarse = nn.Sequential(_block(64, 128, 2), _Residual(128))
        self.context = nn.Conv2d(128, 64, 1)
        self.merged = _block(64, 64, 1)
        self.maps = nn.Conv2d(64, folds * _POINTS, 1)
        self.squeeze = nn.Conv2d(128, 24, 1)
        cells = (side // 16) ** 2
        self.whole = nn.ModuleList(
            nn.Sequential(nn.Linear(24 * cells, 64), nn.ReLU(), nn.Linear(64, NUMBERS)) for _ in range(folds)
        )
        for head in self.whole:
            nn.init.zeros_(head[2].weight)
            nn.init.zeros_(head[2].bias)
        steps = side // 8
        at = (torch.arange(steps, dtype=torch.float32) + 0.5) / steps
        self.register_buffer("at", 0.5 + _REACH * (at - 0.5), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = pixels.permute(0, 3, 1, 2).float() * (1 / 255)
        mean = x.mean((1, 2, 3), keepdim=True)
        x = x - mean
        x = x / ((x * x).mean((1, 2, 3), keepdim=True) + 1e-3).sqrt()
        fine = self.fine(x)
        coarse = self.coarse(fine)
        merged = self.merged(fine + functional.interpolate(self.context(coarse), scale_factor=2.0, mode="nearest"))
        size = merged.shape[-1]
        mass = self.maps(merged).flatten(2).softmax(-1).unflatten(2, (size, size))
        across, down = (mass.sum(2) * self.at).sum(-1), (mass.sum(3) * self.at).sum(-1)  # (B, K * 8) each
        across, down = across.unflatten(1, (self.count, _POINTS)), down.unflatten(1, (self.count, _POINTS))
        box = torch.stack([across[..., 0], down[..., 1], across[..., 2], down[..., 3]], -1)
        marks = torch.stack([across[..., 4:], down[..., 4:]], -1).flatten(2)
        points = torch.cat([box, marks, torch.zeros_like(box[..., :1])], -1)
        flat = functional.relu(self.squeeze(coarse)).flatten(1)
        return points + torch.stack([head(flat) for head in self.whole], 1)


class _Mirrored(nn.Module):  # type: ignore[misc]
    """What is exported: the photo and its mirror image, `(B, S, S, 3) uint8 → (B, 2 K, 13)`, presence in [0, 1]."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See the class."""
        there, back = self.network(pixels), self.network(torch.flip(pixels, [2]))
        swapped = torch.cat([back[..., 4 + 2 * i : 6 + 2 * i] for i in data.SWAPPED], -1)
        back = torch.cat([back[..., 2:3], back[..., 1:2], back[..., 0:1], back[..., 3:4], swapped, back[..., 12:]], -1)
        sign = torch.tensor([-1.0, 1, -1, 1] + [-1.0, 1] * 4 + [1.0])
        shift = torch.tensor([1.0, 0, 1, 0] + [1.0, 0] * 4 + [0.0])
        both = torch.cat([there, back * sign + shift], 1)
        return torch.cat([both[..., :12], both[..., 12:].sigmoid()], -1)


def _block(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):  # type: ignore[misc]
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = _block(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What is added is what the block finds."""
        return x + self.block(x)


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
            return data.varied(part, self.config.side, self.config.variation, rng), part.group

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


def predict(network: Network, photos: Photos, batch: int = 64) -> NDArray[np.float32]:
    """The folds' rows for photos as they are, mirror images included: `(N, 2 K, 13) float32`, presence in [0, 1]."""
    exported = _Mirrored(network).eval()
    side = network.at.shape[0] * 8
    parts = [np.zeros((0, 2 * network.count, NUMBERS), np.float32)]
    with torch.inference_mode():
        for at in range(0, len(photos), batch):
            pixels = np.stack([locate.squash(p, side) for p in photos.pixels[at : at + batch]])
            parts.append(exported(torch.from_numpy(pixels)).numpy())
    return np.concatenate(parts)


def median_iou(network: Network, photos: Photos) -> float:
    """Median IoU of the canonical boxes with the true ones, over the photos that show an animal; NaN without one."""
    shown = photos.part(photos.animal)
    if not len(shown):
        return float("nan")
    found = np.median(np.clip(predict(network, shown)[..., :4], 0, 1), axis=1)
    return float(np.median(locate.overlaps(found, data.box_of(shown.outline))))


def landmark_error(network: Network, photos: Photos) -> float:
    """Median distance of the canonical landmarks from the true ones, in shares of the animal's width in the photo; NaN
    without landmarks.
    """
    shown = photos.part(photos.marked & photos.animal)
    if not len(shown):
        return float("nan")
    found = np.median(predict(network, shown)[..., 4:12], axis=1).reshape(-1, 4, 2)
    boxes = data.box_of(shown.outline)
    width = (boxes[:, 2] - boxes[:, 0])[:, None]
    return float(np.median(np.linalg.norm(found - shown.landmarks, axis=-1) / width))


def export(network: Network, folder: Path, card: locate.CropperCard) -> Path:
    """Write the directory `folder/<card.name>` that `reid.locate` reads, in half precision, replacing one of that name;
    returns its path. The graph's hash goes into the card.

    Raises:
        TrainError: the graph's numbers are not the network's, or the disk refuses.
    """
    import openvino

    side = card.side
    sample = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8))
    exported = _Mirrored(network).eval()
    program = torch.export.export(exported, (sample,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    with warnings.catch_warnings():  # torch copies its own deprecated tree nodes while OpenVINO reads the program
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
        graph = openvino.convert_model(program)
    graph.reshape([-1, side, side, 3])
    graph.outputs[0].get_tensor().set_names({"folds"})
    with torch.inference_mode():
        ours = exported(sample).numpy()
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{card.name}-", dir=folder) as aside:
            target = Path(aside) / card.name
            target.mkdir()
            openvino.save_model(graph, target / "graph.xml", compress_to_fp16=True)
            card = replace(card, graph_sha256=locate.graph_sha256(target))
            (target / locate.CARD).write_text(locate.card_text(card), encoding="utf-8")
            theirs = locate.Locator(target).folds(sample.numpy())
            if not np.abs(ours - theirs).max() < _SAME:
                raise TrainError(
                    f"the exported graph differs from the network by {np.abs(ours - theirs).max():.4f}",
                    source=card.name,
                    next_step="report this: it is a fault of the export",
                )
            models.swap(target, folder / card.name)
    return folder / card.name
