"""Planar maps on points: fitting by least squares, projecting, and what a map does to area and angles.

Knows arrays. Must not know keypoints, photos or identities. Convention: `H (3, 3)` maps `[x, y, 1]`, defined up to
scale.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Model = Literal["homography", "affine", "similarity"]
Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]

MIN_MATCHES = {"homography": 4, "affine": 3, "similarity": 2}
"""Matches that determine a model; one more is asked for, since a model that explains only what made it proves
nothing."""


def fit_least_squares(model: Model, source: Floats, target: Floats) -> Matrix | None:
    """The `model` that maps `source (M, 2)` to `target (M, 2)` with least squared error; None where the points do not
    determine it."""
    if len(source) < MIN_MATCHES[model]:
        return None
    if model == "homography":
        if len(source) == MIN_MATCHES[model] and collinear(source):
            return None
        H, _ = cv2.findHomography(source.astype(np.float64), target.astype(np.float64), 0)
        return None if H is None else np.asarray(H, np.float64)
    a, b = source.astype(np.float64), target.astype(np.float64)
    a_mean, b_mean = a.mean(axis=0), b.mean(axis=0)
    a, b = a - a_mean, b - b_mean
    if model == "affine":
        if collinear(source):
            return None
        linear = np.linalg.lstsq(a, b, rcond=None)[0].T
    else:
        total = float((a * a).sum())
        if total < 1e-9:
            return None
        cosine = float((a * b).sum()) / total
        sine = float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / total
        linear = np.array([[cosine, -sine], [sine, cosine]])
    H = np.eye(3)
    H[:2, :2] = linear
    H[:2, 2] = b_mean - linear @ a_mean
    return H


def project(H: Matrix, xy: NDArray[np.floating]) -> Matrix:
    """`xy (N, 2)` through `H`; a point that goes to infinity comes out as infinity."""
    homogeneous = xy @ H[:, :2].T + H[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        out = homogeneous[:, :2] / homogeneous[:, 2:]
    return np.asarray(np.nan_to_num(out, nan=np.inf), np.float64)


def transfer_errors(H: Matrix, source: NDArray[np.floating], target: NDArray[np.floating]) -> Matrix:
    """Distance `(N,)`, in pixels, of each projected source point from its target; infinite behind the horizon."""
    off = project(H, source) - target
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", off, off)), np.float64)


def linear_part_in_middle(H: Matrix, width: float, height: float) -> Matrix:
    """Jacobian `(2, 2)` of the map at the middle of a crop of this size."""
    x, y = width / 2, height / 2
    return linear_part(H @ np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]]), at=(0.0, 0.0))


def linear_part(H: Matrix, at: tuple[float, float] = (0.5, 0.5)) -> Matrix:
    """Jacobian `(2, 2)` of a projective map at a point."""
    u, v, w = H @ np.array([*at, 1.0])
    if abs(w) < 1e-12:
        return np.full((2, 2), np.inf)
    return np.asarray((H[:2, :2] - np.outer([u / w, v / w], H[2, :2])) / w, np.float64)


def convex(quad: Matrix) -> bool:
    """All corners turn the same way as on the screen: not folded and not mirrored."""
    if not np.isfinite(quad).all():
        return False
    edges = np.roll(quad, -1, axis=0) - quad
    after = np.roll(edges, -1, axis=0)
    return bool((edges[:, 0] * after[:, 1] - edges[:, 1] * after[:, 0] > 0).all())


def area(polygon: Matrix) -> float:
    """Absolute area of a polygon `(N, 2)`."""
    if not np.isfinite(polygon).all():
        return 1e6
    x, y = polygon[:, 0], polygon[:, 1]
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def hull_area(points: NDArray[np.floating]) -> float:
    """Area of the convex hull of `points (N, 2)`; 0 for fewer than three."""
    return float(cv2.contourArea(cv2.convexHull(points.astype(np.float32)))) if len(points) > 2 else 0.0


def collinear(points: NDArray[np.floating]) -> bool:
    """Whether the points lie on a line, to within a thousandth of their extent."""
    singular = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return bool(singular[1] <= 1e-3 * max(float(singular[0]), 1e-9))


def wrapped(radians: Matrix) -> Matrix:
    """Angles in [−π, π)."""
    return np.asarray(np.mod(radians + np.pi, 2 * np.pi) - np.pi, np.float64)
