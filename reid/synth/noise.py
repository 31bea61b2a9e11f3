"""Tileable random fields, made once a process from fixed seeds and then only sampled.

A photo never draws a field of its own: it looks at a shared tile through its own window (offset, scale, turn), which
costs one warp. Knows nothing of whales or photos. Fields are float32; a tile is 512 by 512 and wraps at its edges.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]

TILE = 512
_N_TILES = 4


@lru_cache(maxsize=16)
def tile(kind: str, number: int) -> Field:
    """A tile (512, 512) float32 with mean 0 and standard deviation 1.

    `kind` is `cloud` (power falls as 1/f^1.7) or `grain` (1/f^0.9).
    """
    falloff = {"cloud": 1.7, "grain": 0.9}[kind]
    rng = np.random.default_rng([7919, len(kind), number])
    f = np.fft.fftfreq(TILE)
    radius = np.hypot(f[:, None], f[None, : TILE // 2 + 1])
    radius[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE))) * radius**-falloff
    field = np.fft.irfft2(spectrum, s=(TILE, TILE))
    return np.asarray((field - field.mean()) / field.std(), dtype=np.float32)


def window(
    rng: np.random.Generator, kind: str, shape: tuple[int, int], cell: tuple[float, float], turn: float = 0.0
) -> Field:
    """A random view of a random tile, (H, W) float32, mean about 0, deviation about 1.

    `cell` (x, y): how many output pixels one tile pixel covers; values above 1 enlarge, unequal values stretch the
    grain. `turn` in radians turns it. Draws exactly three numbers from `rng`.
    """
    number, ox, oy = int(rng.integers(_N_TILES)), float(rng.random()) * TILE, float(rng.random()) * TILE
    return look(tile(kind, number), shape, cell, (ox, oy), turn)


def look(
    source: Field, shape: tuple[int, int], cell: tuple[float, float], origin: tuple[float, float], turn: float = 0.0
) -> Field:
    """Sample a wrapping tile through an affine window: output pixel (x, y) reads `origin + turn(x, y) / cell`."""
    c, s = np.cos(turn), np.sin(turn)
    matrix = np.array([[c / cell[0], s / cell[0], origin[0]], [-s / cell[1], c / cell[1], origin[1]]], dtype=np.float64)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(source, matrix, (shape[1], shape[0]), flags=flags, borderMode=cv2.BORDER_WRAP), dtype=np.float32
    )


def smoothstep(low: float, high: float, x: Field) -> Field:
    """0 below `low`, 1 above `high`, a smooth ramp between; elementwise, float32."""
    t = np.clip((x - np.float32(low)) * np.float32(1.0 / (high - low)), 0.0, 1.0)
    return np.asarray(t * t * (np.float32(3.0) - np.float32(2.0) * t), dtype=np.float32)


STEEP = 36.0  # grey levels of an ocean tile a standard deviation


@lru_cache(maxsize=8)
def ocean(number: int) -> npt.NDArray[np.uint8]:
    """A wind-driven sea surface, (512, 512, 3) uint8, wrapping: slopes along x and y, height, as 128 + 36 sigma.

    A Phillips spectrum with a directional spread, after J. Tessendorf, "Simulating Ocean Water" (2001); the wind blows
    mostly along y, so crests lie across the picture.
    """
    rng = np.random.default_rng([104729, number])
    k1 = np.fft.fftfreq(TILE) * TILE
    kx, ky = k1[None, : TILE // 2 + 1], k1[:, None]
    k = np.hypot(kx, ky)
    k[0, 0] = np.inf
    turn = rng.uniform(-0.5, 0.5)
    along = np.abs(ky * np.cos(turn) + kx * np.sin(turn)) / k
    power = np.exp(-((7.5 / k) ** 2)) * k**-3.5 * (0.15 + along**2)
    height = np.fft.rfft2(rng.standard_normal((TILE, TILE))) * np.sqrt(power)
    parts = [np.fft.irfft2(height * f, s=(TILE, TILE)) for f in (1j * kx, 1j * ky, np.ones_like(k))]
    return np.stack([np.clip(128.0 + STEEP * p / p.std(), 0, 255) for p in parts], axis=-1).astype(np.uint8)
