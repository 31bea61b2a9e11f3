"""The second runtime: a model directory on a GPU through torch, giving the CPU graph's vectors within `reid.embed.TOLERANCE`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from reid.embed import Crops, Vectors, unit_rows
from reid.errors import ModelError
from reid.train import backbone


class TorchEmbedder:
    """See `reid.embed.Embedder`. Half precision on CUDA (autocast), float32 elsewhere."""

    def __init__(self, folder: Path, *, device: str = "cuda", batch: int = 64) -> None:
        """Load the model at `folder` on to `device`.

        Raises:
            ModelError: there is no CUDA device, or the directory has no weights for torch.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise ModelError(
                "no CUDA device here", source=str(folder), next_step='set device = "cpu" under [embedder] in reid.toml'
            )
        network, self.card = backbone.from_folder(folder)
        self._device = torch.device(device)
        self._network = network.to(self._device)
        self._batch = batch

    def embed(self, crops: Crops) -> Vectors:
        """`(N, H, W, 3) uint8 RGB → (N, D) float32` unit rows."""
        rows: list[NDArray[np.float32]] = [np.empty((0, self.card.dim), np.float32)]
        cuda = self._device.type == "cuda"
        with torch.inference_mode(), torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=cuda):
            for at in range(0, len(crops), self._batch):
                pixels = torch.from_numpy(np.ascontiguousarray(crops[at : at + self._batch])).to(
                    self._device, non_blocking=True
                )
                rows.append(self._network(pixels).float().cpu().numpy())
        return unit_rows(np.concatenate(rows))
