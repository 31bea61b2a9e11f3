"""From the flat fluke to the picture plane: bending, turning, perspective, and the way back.

Pure geometry on arrays. `place` knows where a point of the canonical frame falls in the photo; `unplace` inverts it
on a coarse lattice by Newton's method and interpolates, which gives the map `cv2.remap` needs. A lobe may bend by at
most about a radian in all: the map never folds over itself, so its inverse is unique.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from reid.synth.view import View

Points = npt.NDArray[np.float64]
_STEP = 16  # pixels between the points of the lattice on which the inverse is solved


@dataclass(frozen=True, slots=True)
class Placement:
    """A pose with its place in the photo: pixel = `scale` * projected + (`dx`, `dy`)."""

    view: View
    scale: float = 1.0
    dx: float = 0.0
    dy: float = 0.0


def place(points: Points, placement: Placement) -> Points:
    """Canonical (..., 2) → pixels (..., 2), float64."""
    v = placement.view
    x, y = points[..., 0], points[..., 1]
    across, lift = _bent(x, v.bend_left, v.bend_right)
    lift = lift + v.curl * (y - 0.2) ** 2 * np.abs(np.clip(x, -1.2, 1.2))
    px, pz = across * np.cos(v.yaw) - lift * np.sin(v.yaw), across * np.sin(v.yaw) + lift * np.cos(v.yaw)
    py, pz = y * np.cos(v.pitch) - pz * np.sin(v.pitch), y * np.sin(v.pitch) + pz * np.cos(v.pitch)
    nearness = v.distance / np.maximum(v.distance - pz, 0.4 * v.distance)
    px, py = px * nearness, py * nearness
    turn = v.roll + v.camera_roll
    c, s = np.cos(turn), np.sin(turn)
    seen = np.stack(
        [placement.scale * (c * px - s * py) + placement.dx, placement.scale * (s * px + c * py) + placement.dy], -1
    )
    return np.asarray(seen, np.float64)


def _bent(x: Points, bend_left: float, bend_right: float) -> tuple[Points, Points]:
    """Roll the flat x on to an arc: its angle grows from 0 at the stock to the bend at the tip, then stays.

    Returns the position across and the lift towards the camera, from closed integrals of cos and sin of the angle k·s.
    """
    bend = np.where(x < 0, bend_left, bend_right)
    k = np.where(np.abs(bend) < 1e-3, 1e-3, bend)
    s = np.minimum(np.abs(x), 1.0)
    beyond = np.abs(x) - s
    across = np.sin(k * s) / k + beyond * np.cos(k)
    lift = (1.0 - np.cos(k * s)) / k + beyond * np.sin(k)
    return np.sign(x) * across, lift


def slope_light(x: Points, placement: Placement, sun_side: float) -> Points:
    """Light falling on the bent skin at canonical x, relative to a flat one: (...,) in [0.45, 1.5]."""
    v = placement.view
    bend = np.where(x < 0, -v.bend_left, v.bend_right) * np.clip(np.abs(x), 0.0, 1.0)
    return np.asarray(np.clip(1.0 + 0.9 * np.sin(v.yaw + bend) * sun_side - 0.12 * np.sin(v.pitch), 0.45, 1.5))


def unplace(shape: tuple[int, int], placement: Placement) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Canonical x and y seen at every pixel of a photo (H, W): two float32 arrays.

    Good to a hundredth of a half span

    Far outside the fluke the values are clipped; they are never near it.
    """
    rows, columns = shape[0] // _STEP + 3, shape[1] // _STEP + 3
    # A lattice point stands in the middle of its tile, where `cv2.resize` expects the value of a pixel.
    targets = np.stack(np.meshgrid(np.arange(columns) - 1.0, np.arange(rows) - 1.0), -1) * _STEP + (_STEP - 1) / 2
    guess = _first_guess(targets, placement)
    h = 1e-4
    for _ in range(7):
        error = place(guess, placement) - targets
        jx = (place(guess + (h, 0.0), placement) - targets - error) / h
        jy = (place(guess + (0.0, h), placement) - targets - error) / h
        det = jx[..., 0] * jy[..., 1] - jx[..., 1] * jy[..., 0]
        det = np.where(np.abs(det) < 1e-3 * placement.scale**2, 1e-3 * placement.scale**2, det)
        du = (error[..., 0] * jy[..., 1] - error[..., 1] * jy[..., 0]) / det
        dv = (error[..., 1] * jx[..., 0] - error[..., 0] * jx[..., 1]) / det
        guess = np.clip(guess - np.clip(np.stack([du, dv], -1), -0.4, 0.4), -2.5, 2.5)
    whole = (columns * _STEP, rows * _STEP)
    dense = cv2.resize(
        guess.astype(np.float32), whole, interpolation=cv2.INTER_LINEAR
    )  # cubic would not keep straight lines
    dense = dense[_STEP : _STEP + shape[0], _STEP : _STEP + shape[1]]
    return np.ascontiguousarray(dense[..., 0]), np.ascontiguousarray(dense[..., 1])


def _first_guess(targets: Points, placement: Placement) -> Points:
    """Invert the affine map that fits the placement best over the lobes."""
    sample = np.stack(np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-0.2, 0.8, 5)), -1).reshape(-1, 2)
    seen = place(sample, placement)
    design = np.concatenate([seen, np.ones((len(seen), 1))], 1)
    solution = np.linalg.lstsq(design, sample, rcond=None)[0]
    return np.asarray(np.clip(targets @ solution[:2] + solution[2], -2.0, 2.0))
