"""How far two crops' matches agree, as a validator needs to know it: numbers of the map, its inliers and the pictures.

Knows `LocalFeatures`, matches and the map between them; not how that was found (`reid.verify`). `H` maps pixels of the
query crop to pixels of the candidate crop. Normalised coordinates divide x by the crop's width and y by its height.
What becomes of the numbers is `reid.score`'s business.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.geometry import Matrix, area, convex, hull_area, linear_part, linear_part_in_middle, project, wrapped
from reid.keypoints import THUMBNAIL, LocalFeatures
from reid.matching import Floats, Matches

FEATURE_NAMES = (
    *(f"h{row}{column}" for row in (1, 2, 3) for column in (1, 2, 3) if (row, column) != (3, 3)),
    "matches",
    "matched_targets",
    "inliers",
    "inlier_targets",
    "inlier_ratio",
    "inlier_weight",
    "error_median",
    "error_p90",
    "determinant",
    "singular_ratio",
    "abs_h31",
    "abs_h32",
    "quad_convex",
    "quad_area",
    "hull_query",
    "hull_candidate",
    "overlap",
    "zncc",
    "scale_agreement",
    "angle_agreement",
    "rotation",
    "log_keypoints",
)
"""Entries of `Verification.features`, in order; NaN where there is no model."""


def features_of(
    query: LocalFeatures,
    candidate: LocalFeatures,
    matches: Matches,
    H: Matrix,
    inside: NDArray[np.intp],
    errors: Matrix,
) -> Floats:
    """`FEATURE_NAMES` of one pair: `inside` are the matches that agree with `H`, `errors (M,)` the distances of all."""
    N = _normalised(H, query, candidate)
    source = query.xy[matches.query[inside]] / [query.width, query.height]
    target = candidate.xy[matches.candidate[inside]] / [candidate.width, candidate.height]
    linear = linear_part(N)
    singular = np.linalg.svd(linear, compute_uv=False)
    quad = project(N, np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64))
    overlap, zncc = _laid_over(N, query, candidate)
    rotation = np.arctan2(H[1, 0] - H[0, 1], H[0, 0] + H[1, 1])
    scale = np.sqrt(max(abs(float(np.linalg.det(linear_part_in_middle(H, query.width, query.height)))), 1e-12))
    sizes = candidate.scale[matches.candidate[inside]] / np.maximum(query.scale[matches.query[inside]], 1e-6)
    turns = np.deg2rad(candidate.angle[matches.candidate[inside]] - query.angle[matches.query[inside]])
    values = [
        *N.ravel()[:8],
        len(matches),
        len(np.unique(matches.candidate)),
        len(inside),
        len(np.unique(matches.candidate[inside])),
        len(inside) / len(matches),
        float(matches.weight[inside].sum()),
        float(np.median(errors[inside])),
        float(np.percentile(errors[inside], 90)),
        float(np.linalg.det(linear)),
        float(singular[0] / max(singular[1], 1e-9)),
        abs(N[2, 0]),
        abs(N[2, 1]),
        float(convex(quad)),
        area(quad),
        hull_area(source),
        hull_area(target),
        overlap,
        zncc,
        float(np.mean(np.abs(np.log(np.maximum(sizes, 1e-9) / scale)) < np.log(1.5))),
        float(np.mean(np.abs(wrapped(turns - rotation)) < np.deg2rad(20))),
        abs(float(rotation)),
        float(np.log(min(len(query), len(candidate)))),
    ]
    with np.errstate(over="ignore"):
        out: Floats = np.clip(np.nan_to_num(np.array(values, np.float64), posinf=1e6, neginf=-1e6), -1e6, 1e6).astype(
            np.float32
        )
    return out


def features_without_model(query: LocalFeatures, candidate: LocalFeatures, matches: Matches) -> Floats:
    """`FEATURE_NAMES` of a pair whose matches agree on nothing: NaN, except for what is counted without a model."""
    features = np.full(len(FEATURE_NAMES), np.nan, np.float32)
    known = {
        "matches": len(matches),
        "matched_targets": len(np.unique(matches.candidate)),
        "inliers": 0,
        "inlier_targets": 0,
        "inlier_ratio": 0,
        "inlier_weight": 0,
        "log_keypoints": float(np.log(max(1, min(len(query), len(candidate))))),
    }
    for name, value in known.items():
        features[FEATURE_NAMES.index(name)] = value
    return features


def _normalised(H: Matrix, query: LocalFeatures, candidate: LocalFeatures) -> Matrix:
    """`H` between normalised coordinates, scaled so that its last entry is 1 (left as it is where that entry is
    zero)."""
    N = np.diag([1 / candidate.width, 1 / candidate.height, 1.0]) @ H @ np.diag([query.width, query.height, 1.0])
    return N / N[2, 2] if abs(N[2, 2]) > 1e-12 else N


def _laid_over(N: Matrix, query: LocalFeatures, candidate: LocalFeatures) -> tuple[float, float]:
    """Overlap (intersection over union) and correlation of the two thumbnails there, when the query is warped on the
    candidate: of the animals where both crops have an outline, else of the frames.
    """
    zoom = np.diag([THUMBNAIL, THUMBNAIL, 1.0])
    M = zoom @ N @ np.linalg.inv(zoom)
    if not np.isfinite(M).all():
        return 0.0, 0.0
    size = (THUMBNAIL, THUMBNAIL)
    warped = cv2.warpPerspective(query.thumbnail, M, size, flags=cv2.INTER_LINEAR).astype(np.float32)
    mine = np.full(size, 255, np.uint8)
    if query.outline is not None and candidate.outline is not None:
        mine = query.outline.astype(np.uint8) * np.uint8(255)
        theirs, sizes = candidate.outline, (_spread(N, query.outline), float(candidate.outline.mean()))
    else:
        quad = project(N, np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64))
        theirs, sizes = np.ones(size, np.bool_), (area(quad), 1.0)
    inside = (cv2.warpPerspective(mine, M, size, flags=cv2.INTER_NEAREST) > 0) & theirs
    share = float(inside.mean())
    overlap = share / max(sum(sizes) - share, 1e-9)
    if share < 0.05 * sizes[1] or not inside.any():
        return overlap, 0.0
    a, b = warped[inside], candidate.thumbnail[inside].astype(np.float32)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return overlap, float((a * b).sum()) / norm if norm > 1e-6 else 0.0


def _spread(N: Matrix, outline: NDArray[np.bool_]) -> float:
    """Area that an outline has after the map, as a share of the candidate's frame and beyond it: the map's determinant,
    summed where the outline is.
    """
    rows, columns = np.nonzero(outline)
    w = (columns + 0.5) / THUMBNAIL * N[2, 0] + (rows + 0.5) / THUMBNAIL * N[2, 1] + N[2, 2]
    swollen = abs(float(np.linalg.det(N))) / np.maximum(np.abs(w), 1e-3) ** 3
    return min(float(swollen.sum()) / THUMBNAIL**2, 1e6)
