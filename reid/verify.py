"""Two crops' local features → do their matches agree on one geometry? Matching and robust fitting.

Knows `LocalFeatures` and arrays. Must not know identities, thresholds of decision, files or where the features came
from.

Conventions: a match is a row of the query and a row of the candidate. `H` maps pixels of the query crop to pixels of
the candidate crop: `[x', y', 1] ~ H [x, y, 1]`. Distances are shares of the candidate's long side, so that they mean
the same at any size. What cannot be fitted is an ordinary result with a `status`, never an exception.

Sources: ratio test, Lowe (IJCV 2004); LMedS, then RANSAC with a plausibility check on H, fourth place of Humpback Whale
Identification 2019; MAGSAC++, Barath et al. (CVPR 2020), in OpenCV's USAC; hypotheses from the frames of single
matches, Philbin et al. (CVPR 2007), as HotSpotter (Crall et al., WACV 2013) verifies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from reid import learned
from reid.agreement import features_of, features_without_model
from reid.errors import InputError
from reid.geometry import (
    MIN_MATCHES,
    Matrix,
    Model,
    convex,
    fit_least_squares,
    linear_part_in_middle,
    project,
    transfer_errors,
    wrapped,
)
from reid.keypoints import LocalFeatures, mirrored
from reid.learned import NETWORKS, LearnedConfig
from reid.matching import Floats, Ints, Matches, extended, mutual_matches, ratio_matches

Status = Literal["verified", "no_keypoints", "too_few_matches", "no_model", "degenerate"]


@dataclass(frozen=True, slots=True)
class VerifyConfig:
    """How a pair is matched and fitted."""

    matcher: str = "sift"
    """A key of `MATCHERS`."""
    ratio: float = 0.8
    """Lowe's ratio of the nearest to the second distance, (0, 1]; 1 switches the test off."""
    model: Model = "affine"
    """`homography` for flat things seen in perspective, `affine` and `similarity` for bodies."""
    estimator: str = "frames"
    """A key of `ESTIMATORS`."""
    lmeds: float = 5 / 640
    """Inlier distance of the least-median stage, share of the long side."""
    threshold: float = 0.03
    """Inlier distance, share of the long side; 9 pixels in the source."""
    min_matches: int = 0
    """Matches below which no geometry is sought; 10 in the source, 0: one more than determine the model."""
    iterations: int = 2000
    """Most RANSAC hypotheses; 20,000 in the source."""
    max_scale: float = 4.0
    """Largest change of size that is plausible, either way."""
    max_stretch: float = 3.0
    """Largest ratio of the singular values of the map's linear part that is plausible."""
    max_rotation: float = 180.0
    """Degrees of turning that are plausible; 180 switches the check off."""
    mirrored: bool = False
    """True: the query is also tried left-right mirrored, for photos from a flipped scan; twice the time."""
    learned: LearnedConfig | None = None
    """How the network of a learned `matcher` described the crops; None for the others, which match RootSIFT."""

    def __post_init__(self) -> None:
        """Refuse unknown names and values out of range: `InputError`."""
        for name, key, known in (
            ("matcher", self.matcher, MATCHERS),
            ("estimator", self.estimator, ESTIMATORS),
            ("model", self.model, MIN_MATCHES),
        ):
            if key not in known:
                raise InputError(f"unknown {name} {key!r}", next_step=f"use one of {', '.join(known)}")
        limits = (self.threshold, self.lmeds, self.iterations)
        if not (0 < self.ratio <= 1 and min(limits) > 0 and self.min_matches >= 0):
            raise InputError(f"a limit of the verification is out of range: {self}", next_step="use the defaults")
        if (self.learned.network if self.learned else None) != (self.matcher if self.matcher in NETWORKS else None):
            raise InputError(
                f"matcher {self.matcher!r} does not go with the features of {self.learned}",
                next_step="give `learned` for a learned matcher, of the same name, and for no other",
            )
        if self.mirrored and self.learned is not None:
            raise InputError(
                "features of a network cannot be mirrored", next_step="do without `mirrored`, or without `learned`"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """What geometry says of one pair.

    `inliers` agree on `H (3, 3) float64` (query pixels → candidate pixels; None unless a model was found); 0 unless
    `status` is `verified`. `pairs (I, 2) int32` are their rows in query and candidate; `weight` is the sum of their
    weights; `error_median` is the median distance of the inliers as a share of the candidate's long side (NaN without
    a model); `features (F,) float32` are named by `reid.agreement.FEATURE_NAMES`. `mirrored`: all this holds of the
    query's mirror image, `H` from its pixels; rows stay those of the query.
    """

    status: Status
    matches: int
    inliers: int
    weight: float
    H: Matrix | None
    error_median: float
    pairs: Ints
    features: Floats
    mirrored: bool = False


def verify(query: LocalFeatures, candidate: LocalFeatures, config: VerifyConfig | None = None) -> Verification:
    """Match, fit and describe one pair."""
    return verify_many(query, [candidate], config)[0]


def verify_many(
    query: LocalFeatures, candidates: Sequence[LocalFeatures], config: VerifyConfig | None = None
) -> list[Verification]:
    """`verify` of one query against each candidate, the query prepared once."""
    compare = verifier(query, config or VerifyConfig())
    return [compare(candidate) for candidate in candidates]


def verifier(query: LocalFeatures, config: VerifyConfig) -> Callable[[LocalFeatures], Verification]:
    """Candidate → its `Verification`, the query prepared once; with `config.mirrored` the heavier of the query's two
    ways to lie, as it is where both weigh the same.

    Raises (when asked, with `config.learned`): MissingExtra, ModelError.
    """
    sides = [query, mirrored(query)] if config.mirrored else [query]
    ways = [(side, matching_of(side, config)) for side in sides]

    def compare(candidate: LocalFeatures) -> Verification:
        made = [verify_matches(side, candidate, matched(candidate), config) for side, matched in ways]
        if len(made) == 1 or made[0].weight >= made[1].weight:
            return made[0]
        return replace(made[1], mirrored=True)

    return compare


def matching_of(query: LocalFeatures, config: VerifyConfig) -> Pairing:
    """Candidate → its matches with the query, which is prepared once.

    Raises (when asked, with `config.learned`): MissingExtra, ModelError.
    """
    return MATCHERS[config.matcher](query, config)


def by_ratio(query: LocalFeatures, config: VerifyConfig) -> Pairing:
    """RootSIFT: nearest neighbours that stand out from the second (`config.ratio`)."""
    left = extended(query.descriptors, query_side=True)
    return lambda candidate: ratio_matches(left, extended(candidate.descriptors), config.ratio)


def by_ratio_both_ways(query: LocalFeatures, config: VerifyConfig) -> Pairing:
    """As `by_ratio`, and the query's keypoint is also the nearest of the candidate's."""
    left = extended(query.descriptors, query_side=True)
    return lambda candidate: mutual_matches(left, extended(candidate.descriptors), config.ratio)


def by_network(query: LocalFeatures, config: VerifyConfig) -> Pairing:
    """Learned features: what the matching network of `config.learned` puts together. It is loaded, and torch with it,
    when the first pair is asked for."""
    network = config.learned
    assert network is not None  # `VerifyConfig` has checked it
    return lambda candidate: learned.matches(query, candidate, network)


Pairing = Callable[[LocalFeatures], Matches]
"""Candidate → its matches with a query."""
MATCHERS: dict[str, Callable[[LocalFeatures, VerifyConfig], Pairing]] = {
    "sift": by_ratio,
    "sift_mutual": by_ratio_both_ways,
    "xfeat": by_network,
    "aliked": by_network,
    "disk": by_network,
}
"""Every way to match, learned or not, by the name that `[local] matcher` has for it (`reid.config.LocalMatcher`)."""


def verify_matches(
    query: LocalFeatures, candidate: LocalFeatures, matches: Matches, config: VerifyConfig | None = None
) -> Verification:
    """Fit and describe matches that were found elsewhere, such as the votes of a local index."""
    settings = config or VerifyConfig()
    if not len(query) or not len(candidate):
        return _without_model("no_keypoints", query, candidate, matches)
    if len(matches) < max(MIN_MATCHES[settings.model] + 1, settings.min_matches):
        return _without_model("too_few_matches", query, candidate, matches)
    H = ESTIMATORS[settings.estimator](query, candidate, matches, settings)
    if H is None or not np.isfinite(H).all():
        return _without_model("no_model", query, candidate, matches)
    errors = transfer_errors(H, query.xy[matches.query], candidate.xy[matches.candidate]) / _long_side(candidate)
    inside = np.flatnonzero(errors <= settings.threshold)
    if len(inside) <= MIN_MATCHES[settings.model]:
        return _without_model("no_model", query, candidate, matches)
    features = features_of(query, candidate, matches, H, inside, errors)
    good = _plausible(H, query, settings)
    return Verification(
        "verified" if good else "degenerate",
        len(matches),
        len(inside) if good else 0,
        float(matches.weight[inside].sum()) if good else 0.0,
        H,
        float(np.median(errors[inside])),
        np.stack([matches.query[inside], matches.candidate[inside]], axis=1),
        features,
    )


def from_frames(
    query: LocalFeatures, candidate: LocalFeatures, matches: Matches, config: VerifyConfig
) -> Matrix | None:
    """Each match proposes the similarity between its keypoints' own frames; the proposal with most weight behind it
    is refined to the model.

    Deterministic, and good where few matches in a hundred are right, since one right match is enough for a hypothesis.
    """
    strongest = np.argsort(-matches.weight, kind="stable")[:300]
    q, c = matches.query[strongest], matches.candidate[strongest]
    source, target = query.xy[q].astype(np.float64), candidate.xy[c].astype(np.float64)
    scale = candidate.scale[c].astype(np.float64) / np.maximum(query.scale[q], 1e-6)
    turn = np.deg2rad(candidate.angle[c].astype(np.float64) - query.angle[q])
    allowed = (np.abs(np.log(np.maximum(scale, 1e-9))) <= np.log(config.max_scale)) & (
        np.abs(wrapped(turn)) <= np.deg2rad(config.max_rotation) + 1e-9
    )
    if not allowed.any():
        return None
    z, w = source[:, 0] + 1j * source[:, 1], target[:, 0] + 1j * target[:, 1]
    spin = scale * np.exp(1j * turn)
    shift = w - spin * z
    limit = config.threshold * _long_side(candidate)
    near = np.abs(spin[:, None] * z[None] + shift[:, None] - w[None]) <= limit
    near &= np.abs(np.log(scale[:, None] / scale[None])) <= np.log(2.0)
    near &= np.abs(wrapped(turn[:, None] - turn[None])) <= np.pi / 4
    support = np.where(allowed, near @ matches.weight[strongest].astype(np.float64), -1.0)
    for seed in np.argsort(-support, kind="stable")[:5]:
        H = _refined(config, limit, source, target, np.flatnonzero(near[seed]))
        if H is not None:
            return H
    return None


def _refined(
    config: VerifyConfig, limit: float, source: Matrix, target: Matrix, inside: NDArray[np.intp]
) -> Matrix | None:
    """Alternate fitting and collecting inliers, three times; the last model that kept what it needs."""
    found: Matrix | None = None
    for _ in range(3):
        H = fit_least_squares(config.model, source[inside].astype(np.float32), target[inside].astype(np.float32))
        if H is None:
            break
        now = np.flatnonzero(transfer_errors(H, source, target) <= limit)
        if len(now) <= MIN_MATCHES[config.model]:
            break
        found = H
        if np.array_equal(now, inside):
            break
        inside = now
    return found


def by_lmeds_then_ransac(
    query: LocalFeatures, candidate: LocalFeatures, matches: Matches, config: VerifyConfig
) -> Matrix | None:
    """Least median of squares keeps what lies near its model, RANSAC fits that; where fewer than half are right,
    RANSAC alone does better."""
    source, target = query.xy[matches.query], candidate.xy[matches.candidate]
    long_side = _long_side(candidate)
    limit = config.threshold * long_side
    options: list[Matrix] = []
    first = _robust(config, cv2.LMEDS, source, target, limit)
    if first is not None:
        kept = transfer_errors(first, source, target) <= config.lmeds * long_side
        if kept.sum() > MIN_MATCHES[config.model]:
            options.append(first)
            again = _robust(config, cv2.RANSAC, source[kept], target[kept], limit)
            options += [again] if again is not None else []
    plain = _robust(config, cv2.RANSAC, source, target, limit)
    options += [plain] if plain is not None else []
    return max(options, key=lambda H: int((transfer_errors(H, source, target) <= limit).sum()), default=None)


def by_magsac(query: LocalFeatures, candidate: LocalFeatures, matches: Matches, config: VerifyConfig) -> Matrix | None:
    """MAGSAC++ for a homography; OpenCV has it for that model alone, the others get plain RANSAC."""
    method = cv2.USAC_MAGSAC if config.model == "homography" else cv2.RANSAC
    limit = config.threshold * _long_side(candidate)
    return _robust(config, method, query.xy[matches.query], candidate.xy[matches.candidate], limit)


Estimator = Callable[[LocalFeatures, LocalFeatures, Matches, VerifyConfig], Matrix | None]
ESTIMATORS: dict[str, Estimator] = {
    "frames": from_frames,
    "lmeds_ransac": by_lmeds_then_ransac,
    "magsac": by_magsac,
}


def _robust(config: VerifyConfig, method: int, source: Floats, target: Floats, limit: float) -> Matrix | None:
    """OpenCV's robust fit of the configured model, as a 3 × 3 matrix; its random numbers are seeded alike in every
    call."""
    if len(source) < MIN_MATCHES[config.model]:
        return None
    try:
        if config.model == "homography":
            H, _ = cv2.findHomography(source, target, method, limit, maxIters=config.iterations, confidence=0.995)
            return None if H is None else np.asarray(H, np.float64)
        fit = cv2.estimateAffine2D if config.model == "affine" else cv2.estimateAffinePartial2D
        A, _ = fit(
            source,
            target,
            method=method,
            ransacReprojThreshold=limit,
            maxIters=config.iterations,
            confidence=0.995,
        )
    except cv2.error:  # what OpenCV says of coinciding points differs by method and version
        return None
    return None if A is None else np.vstack([np.asarray(A, np.float64), [0.0, 0.0, 1.0]])


def _without_model(status: Status, query: LocalFeatures, candidate: LocalFeatures, matches: Matches) -> Verification:
    features = features_without_model(query, candidate, matches)
    return Verification(status, len(matches), 0, 0.0, None, float("nan"), np.zeros((0, 2), np.int32), features)


def _plausible(H: Matrix, query: LocalFeatures, config: VerifyConfig) -> bool:
    """The query's frame stays convex and unmirrored, and is neither blown up, crushed, stretched nor turned beyond
    the limits."""
    corners = np.array([[0, 0], [query.width, 0], [query.width, query.height], [0, query.height]], np.float64)
    quad = project(H, corners)
    linear = linear_part_in_middle(H, query.width, query.height)
    if not (np.isfinite(quad).all() and np.isfinite(linear).all() and convex(quad) and np.linalg.det(linear) > 0):
        return False
    large, small = np.linalg.svd(linear, compute_uv=False)
    scale = np.sqrt(large * small)
    rotation = np.rad2deg(np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1]))
    return bool(
        1 / config.max_scale <= scale <= config.max_scale
        and large <= config.max_stretch * small
        and abs(rotation) <= config.max_rotation + 1e-6
    )


def _long_side(features: LocalFeatures) -> float:
    return float(max(features.height, features.width, 1))
