"""The cropper's network: a squashed photo → a box, four landmarks and whether there is an animal; asked, and exported.

One trunk, K heads. Each head reads points off maps by their centre of mass (integral regression, Sun et al. 2018, arXiv
1711.08229) and corrects them by a layer that sees the whole photo. What is asked and exported also sees the mirror image.
Knows nothing of how it is trained (`reid.train.cropper`).
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from reid import locate, models
from reid.disk import refusals
from reid.errors import TrainError
from reid.locate import NUMBERS
from reid.train.cropper_data import Photos
from reid.train.cropper_views import SWAPPED
from reid.train.runs import written

_REACH = 1.3  # how far beyond the photo's edges a centre of mass may lie, 1: not at all
_POINTS = 8  # four edges of the box, four landmarks
_SAME = 0.02  # share of the photo by which the graph in half precision may differ from the network


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
        swapped = torch.cat([back[..., 4 + 2 * i : 6 + 2 * i] for i in SWAPPED], -1)
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
            with refusals(folder / card.name / "graph.xml"):
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
