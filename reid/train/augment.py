"""Views of kept pictures for training, a batch at a time: one warp for all geometry, then tones, then wear.

torchvision's transforms draw one set of numbers for a whole batch, or go photo by photo; here every photo draws its own
and the batch is still one operation. The same wear (JPEG and down-scaling, each on two photos in nine, wide margins on
one in ten) can be put on held-out photos, so that a score is one of the field. Results depend on the generator alone.

Knows pixels; no identities.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from reid.train.pictures import Pictures
from reid.train.recipe import AugmentConfig

Bools = NDArray[np.bool_]
Size = tuple[int, int]  # height, width
_NOTHING: dict[str, Any] = dict.fromkeys((one.name for one in fields(AugmentConfig)), 0)
PLAIN = AugmentConfig(**_NOTHING | {"worn": False})
_LUMA = (0.299, 0.587, 0.114)
_WIDE = 0.4  # share by which a wide window is larger at most


def views(
    pictures: Pictures,
    rows: NDArray[np.int64],
    size: Size,
    how: AugmentConfig,
    rng: np.random.Generator,
    mirrored: Bools,
) -> torch.Tensor:
    """`(B, 3, height, width) float32`, 0–255 RGB: a view of each of `rows (B,)`, turned over where `mirrored (B,)`."""
    x = warped(pictures, rows, size, corners(len(rows), how, rng), mirrored)
    return worn(toned(x, how, rng), how, rng)


def plain(pictures: Pictures, rows: NDArray[np.int64], size: Size, mirrored: Bools | None = None) -> torch.Tensor:
    """As `views`, without any variation: the crop that production sees."""
    none = np.zeros(len(rows), np.bool_) if mirrored is None else mirrored
    return warped(pictures, rows, size, np.tile(_SQUARE, (len(rows), 1, 1)), none)


def field(pictures: Pictures, rows: NDArray[np.int64], size: Size, how: AugmentConfig, seed: int) -> torch.Tensor:
    """As `plain`, with the wear of `how` on it: for held-out photos, the same at every call."""
    rng = np.random.default_rng([seed, 7])
    wear = replace(PLAIN, wide=how.wide, jpeg=how.jpeg, shrink=how.shrink)
    return views(pictures, rows, size, wear, rng, np.zeros(len(rows), np.bool_))


_SQUARE = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def corners(n: int, how: AugmentConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """Where the corners of each view lie, `(n, 4, 2)` x, y, the plain crop spanning −1 to 1; clockwise from top left."""
    turn, shear = np.deg2rad(rng.uniform(-1, 1, (2, n)) * np.array([[how.rotate], [how.shear]]))
    zoom = 1 + rng.uniform(-1, 1, (n, 2)) * how.zoom
    wide = 1 + np.where(rng.random(n) < how.wide, rng.uniform(0, _WIDE, n), 0.0)
    shift = 2 * rng.uniform(-1, 1, (n, 1, 2)) * how.shift
    bend = 2 * rng.uniform(-1, 1, (n, 4, 2)) * how.perspective
    linear = np.empty((n, 2, 2))
    linear[:, 0, 0], linear[:, 0, 1] = np.cos(turn), np.cos(turn) * np.tan(shear) - np.sin(turn)
    linear[:, 1, 0], linear[:, 1, 1] = np.sin(turn), np.sin(turn) * np.tan(shear) + np.cos(turn)
    grown: NDArray[np.float64] = _SQUARE * (zoom * wide[:, None])[:, None, :]
    out: NDArray[np.float64] = np.einsum("nij,nkj->nki", linear, grown) + shift + bend
    return out


def warped(
    pictures: Pictures, rows: NDArray[np.int64], size: Size, at: NDArray[np.float64], mirrored: Bools
) -> torch.Tensor:
    """The quadrilaterals `at` (see `corners`) of the rows' plain crops, brought to `size`; what lies outside the kept
    picture repeats its edge.
    """
    height, width = size
    x = torch.from_numpy(pictures.pixels[rows]).permute(0, 3, 1, 2).float()
    matrix = torch.from_numpy(homographies(at)).float()
    ys = (torch.arange(height) + 0.5) / height * 2 - 1
    xs = (torch.arange(width) + 0.5) / width * 2 - 1
    grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
    flip = torch.from_numpy(np.where(mirrored, -1.0, 1.0)).float()
    points = torch.stack([grid_x.flatten(), grid_y.flatten(), torch.ones(height * width)])  # (3, h·w)
    points = points[None] * torch.stack([flip, torch.ones_like(flip), torch.ones_like(flip)], 1)[:, :, None]
    mapped = matrix @ points
    inside = mapped[:, :2] / mapped[:, 2:]
    window = torch.from_numpy(pictures.windows[rows]) * 2 - 1
    low, high = window[:, :2, None], window[:, 2:, None]
    inside = low + (inside + 1) / 2 * (high - low)
    grid = inside.permute(0, 2, 1).reshape(len(rows), height, width, 2)
    shrinks = max(x.shape[2] / height, x.shape[3] / width)
    if shrinks > 2:  # bilinear sampling alone would skip pixels
        x = functional.avg_pool2d(x, int(shrinks))
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def homographies(at: NDArray[np.float64]) -> NDArray[np.float64]:
    """The projective maps `(n, 3, 3)` that take the square from −1 to 1 to quadrilaterals `at (n, 4, 2)`."""
    n = len(at)
    system, right = np.zeros((n, 8, 8)), np.empty((n, 8))
    for corner, (u, v) in enumerate(_SQUARE):
        x, y = at[:, corner, 0], at[:, corner, 1]
        for row, value, first in ((2 * corner, x, 0), (2 * corner + 1, y, 3)):
            system[:, row, first : first + 3] = (u, v, 1.0)
            system[:, row, 6], system[:, row, 7] = -u * value, -v * value
            right[:, row] = value
    found = np.linalg.solve(system, right[:, :, None])[:, :, 0]
    return np.concatenate([found, np.ones((n, 1))], axis=1).reshape(n, 3, 3)


def toned(x: torch.Tensor, how: AugmentConfig, rng: np.random.Generator) -> torch.Tensor:
    """Light, contrast, colour and gamma of `(B, 3, h, w)`, grey, blur, noise and an erased box."""
    n = len(x)

    def draw(bound: float) -> torch.Tensor:
        return torch.from_numpy(1 + rng.uniform(-1, 1, (n, 1, 1, 1)) * bound).float()

    def some(share: float) -> torch.Tensor:
        return torch.from_numpy(rng.random(n) < share)[:, None, None, None]

    luma = torch.tensor(_LUMA)[None, :, None, None]
    light, contrast, colour = draw(how.light), draw(how.contrast), draw(how.colour)
    grey = (x * luma).sum(1, keepdim=True)
    x = grey + (x - grey) * torch.where(some(how.grey), 0.0, colour)
    middle = x.mean((1, 2, 3), keepdim=True)
    x = ((x - middle) * contrast + middle * light).clamp(0, 255)
    if how.gamma:
        x = 255 * (x / 255).clamp_min(1e-6) ** draw(how.gamma)
    if how.blur:
        soft = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = torch.where(some(how.blur), soft, x)
    if how.noise:
        level = torch.from_numpy(rng.uniform(0, how.noise, (n, 1, 1, 1))).float()
        x = (x + level * torch.from_numpy(rng.standard_normal(x.shape, np.float32))).clamp(0, 255)
    if how.erase:
        x = _erased(x, how.erase, rng)
    return x


def _erased(x: torch.Tensor, share: float, rng: np.random.Generator) -> torch.Tensor:
    """A box of noise in some of the photos (Zhong et al. 2020, AAAI, random erasing)."""
    x = x.clone()
    _, _, height, width = x.shape
    for row in np.flatnonzero(rng.random(len(x)) < share):
        area, ratio = rng.uniform(0.02, 0.15) * height * width, np.exp(rng.uniform(-1.2, 1.2))
        h, w = min(height, max(1, round((area * ratio) ** 0.5))), min(width, max(1, round((area / ratio) ** 0.5)))
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        noise = rng.integers(0, 256, (3, h, w)).astype(np.float32)
        x[int(row), :, top : top + h, left : left + w] = torch.from_numpy(noise)
    return x


def worn(x: torch.Tensor, how: AugmentConfig, rng: np.random.Generator) -> torch.Tensor:
    """JPEG artefacts, and the loss of having been photographed smaller, on some of `(B, 3, h, w)`, 0–255."""
    small, lossy = rng.random(len(x)) < how.shrink, rng.random(len(x)) < how.jpeg
    factors, qualities = rng.uniform(1.5, 3, len(x)), rng.integers(30, 81, len(x))
    if not (small | lossy).any():
        return x
    x = x.clone()
    for row in np.flatnonzero(small | lossy):
        pixels = x[int(row)].permute(1, 2, 0).numpy().round().astype(np.uint8)
        if small[row]:
            pixels = _shrunk(pixels, factors[row])
        if lossy[row]:
            pixels = _recoded(pixels, int(qualities[row]))
        x[int(row)] = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float()
    return x


def _shrunk(pixels: NDArray[np.uint8], factor: float) -> NDArray[Any]:
    height, width = pixels.shape[:2]
    small = cv2.resize(
        pixels, (max(1, round(width / factor)), max(1, round(height / factor))), interpolation=cv2.INTER_AREA
    )
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))


def _recoded(pixels: NDArray[np.uint8], quality: int) -> NDArray[Any]:
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(pixels[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[:, :, ::-1]
