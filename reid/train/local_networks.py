"""XFeat, ALIKED and DISK with their LightGlue, run by torch and kornia on weights that are on this machine.

Nothing is downloaded and nothing unpickled beyond tensors. Knows pixels and arrays; `reid.learned` knows what they are
for. A network is asked by one thread at a time.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kornia.feature as features
import numpy as np
import torch
from numpy.typing import NDArray

from reid.errors import ModelError

_BUFFERS = {"confidence_thresholds", "dkd.hw_grid"}  # derived, and absent from published weights
Side = tuple[NDArray[np.float32], NDArray[np.float32], tuple[int, int]]  # xy, descriptors, (width, height)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Keypoints of one picture: `xy (N, 2) float32` in its pixels, `scores (N,)`, `descriptors (N, D)` unit rows."""

    xy: NDArray[np.float32]
    scores: NDArray[np.float32]
    descriptors: NDArray[np.float32]


class Networks:
    """A describing network and the one that matches what it found; ModelError where the weights do not fit them."""

    def __init__(self, name: str, extractor: Path, matcher: Path) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._extractor = _extractor(name, extractor)
        self._matcher = _matcher(name, matcher)

    def describe(self, rgb: NDArray[np.uint8], most: int) -> Found:
        """`rgb (H, W, 3) uint8` → at most `most` keypoints, strongest first or not."""
        batch = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].float() / 255
        with self._lock, torch.inference_mode():
            found = _ASK[self._name](self._extractor, batch, most)
            arrays = [np.array(one.float().cpu().numpy(), np.float32) for one in found]
        xy, scores, descriptors = arrays
        return Found(xy.reshape(-1, 2), scores.reshape(-1), descriptors)

    def match(self, query: Side, candidate: Side) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows `(M, 2)` of both sides that belong together, and how certain that is `(M,)`."""
        data = {key: _side(*side) for key, side in (("image0", query), ("image1", candidate))}
        with self._lock, torch.inference_mode():
            found = self._matcher(data)
            rows, certainty = found["matches"][0].cpu().numpy(), found["scores"][0].float().cpu().numpy()
        return np.asarray(rows, np.int64).reshape(-1, 2), np.asarray(certainty, np.float32).reshape(-1)


def _xfeat(network: Any, batch: torch.Tensor, most: int) -> tuple[torch.Tensor, ...]:
    found = network.detectAndCompute(batch, top_k=most)[0]
    return found["keypoints"], found["scores"], found["descriptors"]


def _aliked(network: Any, batch: torch.Tensor, most: int) -> tuple[torch.Tensor, ...]:
    network.dkd.top_k = network.dkd.n_limit = most
    found = network(batch)[0]
    return found.keypoints, found.keypoint_scores, found.descriptors


def _disk(network: Any, batch: torch.Tensor, most: int) -> tuple[torch.Tensor, ...]:
    found = network(batch, n=most, pad_if_not_divisible=True)[0]
    return found.keypoints, found.detection_scores, found.descriptors


_ASK = {"xfeat": _xfeat, "aliked": _aliked, "disk": _disk}


def _extractor(name: str, path: Path) -> Any:
    tensors = _tensors(path)
    if name == "xfeat":
        network = features.XFeat()
        _fill(network.net, tensors, path)
    elif name == "aliked":
        network = features.ALIKED("aliked-n16", max_num_keypoints=256, detection_threshold=0.0)
        _fill(network, tensors, path)
    else:
        network = features.DISK()
        _fill(network, tensors.get("extractor", tensors), path)
    return network.eval()


def _matcher(name: str, path: Path) -> Any:
    settings = {key: value for key, value in features.LightGlue.features[name].items() if key != "weights"}
    network = features.LightGlue(None, **settings)
    tensors = {}
    for key, value in _tensors(path).items():
        key = key.removeprefix("matcher.")
        for kind in ("self_attn", "cross_attn"):  # their older names
            if key.startswith(f"{kind}."):
                number, _, rest = key.removeprefix(f"{kind}.").partition(".")
                key = f"transformers.{number}.{kind}.{rest}"
        tensors[key] = value
    known = set(network.state_dict())
    _fill(network, {key: value for key, value in tensors.items() if key in known}, path)
    return network.eval()


def _tensors(path: Path) -> dict[str, Any]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises for a file that is none differs by its damage
        raise ModelError(
            f"not a file of weights ({error})"[:200], source=str(path), next_step="install its package again"
        ) from error
    if not isinstance(found, dict):
        raise ModelError("not a file of weights", source=str(path), next_step="install its package again")
    return found


def _fill(network: Any, tensors: dict[str, Any], path: Path) -> None:
    try:
        missing, unknown = network.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise ModelError(f"weights of another network ({error})"[:200], source=str(path)) from error
    lacking = [name for name in missing if name not in _BUFFERS and not name.endswith("num_batches_tracked")]
    if lacking or unknown:
        raise ModelError(
            f"weights of another network: it lacks {lacking[:3]}, and has {unknown[:3]} too many",
            source=str(path),
            next_step="install the package of this network",
        )


def _side(xy: NDArray[np.float32], descriptors: NDArray[np.float32], size: tuple[int, int]) -> dict[str, torch.Tensor]:
    limits = np.array(size, np.float32)
    return {
        "keypoints": torch.from_numpy(np.clip(xy, 0, limits).astype(np.float32))[None],
        "descriptors": torch.from_numpy(np.ascontiguousarray(descriptors, np.float32))[None],
        "image_size": torch.from_numpy(limits)[None],
    }
