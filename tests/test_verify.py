from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import cv2
import numpy as np
import pytest

from reid.agreement import FEATURE_NAMES
from reid.config import LocalMatcher
from reid.errors import InputError
from reid.geometry import area, collinear, convex, fit_least_squares, linear_part, project, transfer_errors, wrapped
from reid.keypoints import KeypointConfig, LocalFeatures, describe, empty_features, mirrored
from reid.learned import NETWORKS, LearnedConfig
from reid.matching import Matches
from reid.verify import ESTIMATORS, MATCHERS, VerifyConfig, matching_of, verify, verify_many, verify_matches

WARPS = {
    "similarity": np.array(
        [[0.8 * math.cos(0.2), -0.8 * math.sin(0.2), 30], [0.8 * math.sin(0.2), 0.8 * math.cos(0.2), 5], [0, 0, 1]]
    ),
    "affine": np.array([[0.9, 0.15, 10], [-0.1, 0.75, 40], [0, 0, 1.0]]),
    "homography": np.array([[0.9, 0.1, 10], [-0.05, 0.8, 30], [4e-4, 2e-4, 1.0]]),
}


def blobs(seed: int = 0, height: int = 240, width: int = 320) -> np.ndarray:
    random = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128, np.uint8)
    for _ in range(150):
        centre = (int(random.integers(width)), int(random.integers(height)))
        axes = (int(random.integers(3, 25)), int(random.integers(3, 25)))
        colour = tuple(int(value) for value in random.integers(0, 255, 3))
        cv2.ellipse(picture, centre, axes, float(random.integers(180)), 0, 360, colour, -1)
    return picture


@pytest.fixture(scope="module")
def crop() -> np.ndarray:
    return blobs()


@pytest.fixture(scope="module")
def features(crop) -> LocalFeatures:
    return describe(crop)


def warped(picture: np.ndarray, H: np.ndarray) -> np.ndarray:
    return cv2.warpPerspective(picture, H, (picture.shape[1], picture.shape[0]), borderValue=(128, 128, 128))


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
@pytest.mark.parametrize("model", sorted(WARPS))
def test_a_known_warp_is_found_by_every_estimator(crop, features, model, estimator):
    H = WARPS[model]
    config = VerifyConfig(model=model, estimator=estimator, threshold=0.01)
    found = verify(features, describe(warped(crop, H)), config)
    assert found.status == "verified"
    assert found.inliers >= 30 and found.inliers == len(found.pairs)
    grid = np.array([[x, y] for x in (40, 160, 280) for y in (30, 120, 200)], float)
    assert np.abs(project(found.H, grid) - project(H, grid)).max() < 3.0
    assert found.error_median < 0.005


def test_pairs_are_rows_of_both_crops_that_agree(crop, features):
    other = describe(warped(crop, WARPS["affine"]))
    found = verify(features, other)
    assert found.pairs.dtype == np.int32 and found.pairs.shape == (found.inliers, 2)
    gap = transfer_errors(found.H, features.xy[found.pairs[:, 0]], other.xy[found.pairs[:, 1]])
    assert (gap <= 0.03 * 320).all()
    assert found.error_median == pytest.approx(np.median(gap) / 320)
    assert len(np.unique(found.pairs[:, 0])) == len(found.pairs)


def test_another_animal_has_far_fewer_inliers(features):
    same = verify(features, describe(warped(blobs(), WARPS["affine"])))
    other = verify(features, describe(blobs(seed=77)))
    assert same.inliers > 10 * max(other.inliers, 1)


def test_a_mirrored_photo_is_recognised_when_its_features_are_mirrored(crop, features):
    flipped = describe(np.ascontiguousarray(crop[:, ::-1]))
    assert verify(features, mirrored(flipped)).inliers > 5 * max(verify(features, flipped).inliers, 1)


def test_the_result_does_not_depend_on_the_size_of_the_photos(crop, features):
    large = cv2.resize(crop, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    other = describe(large, None, KeypointConfig(long_side=320))
    found = verify(features, other)
    assert found.status == "verified" and found.inliers > 0.5 * len(features)
    value = dict(zip(FEATURE_NAMES, found.features, strict=True))
    assert value["h11"] == pytest.approx(1, abs=0.02) and value["quad_area"] == pytest.approx(1, abs=0.04)
    assert found.H[0, 0] == pytest.approx(2, abs=0.04)


def test_features_of_a_photo_with_itself_are_those_of_the_identity(features):
    found = verify(features, features)
    value = dict(zip(FEATURE_NAMES, map(float, found.features), strict=True))
    assert len(found.features) == len(FEATURE_NAMES) and found.features.dtype == np.float32
    expected = {
        "h11": 1, "h22": 1, "h12": 0, "h13": 0, "h21": 0, "h23": 0, "h31": 0, "h32": 0,
        "inlier_ratio": 1, "error_median": 0, "error_p90": 0, "determinant": 1, "singular_ratio": 1,
        "quad_convex": 1, "quad_area": 1, "overlap": 1, "zncc": 1, "scale_agreement": 1, "angle_agreement": 1,
        "rotation": 0, "log_keypoints": math.log(len(features)), "matches": found.matches, "inliers": found.matches,
    }  # fmt: skip
    assert {name: value[name] for name in expected} == pytest.approx(expected, abs=2e-3)
    assert value["inlier_weight"] == pytest.approx(found.weight, rel=1e-5)
    assert 0.5 < value["hull_query"] == pytest.approx(value["hull_candidate"], abs=1e-3)


def test_features_tell_what_a_shift_does_to_the_frame(crop, features):
    """Moved by a quarter of the width: three quarters lie on the other photo."""
    H = np.array([[1, 0, 80.0], [0, 1, 0], [0, 0, 1]])
    found = verify(features, describe(warped(crop, H)), VerifyConfig(model="similarity"))
    value = dict(zip(FEATURE_NAMES, map(float, found.features), strict=True))
    assert value["h13"] == pytest.approx(0.25, abs=0.01)
    assert value["overlap"] == pytest.approx(0.75 / 1.25, abs=0.03)
    assert value["quad_area"] == pytest.approx(1, abs=0.03)
    assert value["zncc"] > 0.9


# --- awkward inputs


def points(xy: np.ndarray, seed: int = 0) -> LocalFeatures:
    """Keypoints at these places with descriptors that are all different."""
    n = len(xy)
    descriptors = np.random.default_rng(seed).integers(0, 120, (n, 128)).astype(np.uint8)
    ones = np.ones(n, np.float32)
    thumbnail = np.zeros((64, 64), np.uint8)
    return LocalFeatures(xy.astype(np.float32), ones, ones * 0, ones, descriptors, thumbnail, 100, 100)


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
@pytest.mark.parametrize("model", sorted(WARPS))
def test_degenerate_places_are_ordinary_answers(model, estimator):
    config = VerifyConfig(model=model, estimator=estimator)
    random = np.random.default_rng(0)
    spread = random.uniform(0, 100, (30, 2))
    one_place, line = np.full((30, 2), 50.0), np.stack([np.linspace(0, 99, 30)] * 2, axis=1)
    for place in (one_place, line):
        for left, right in (
            (points(place), points(spread)),
            (points(spread), points(place)),
            (points(place), points(place)),
        ):
            found = verify(left, right, config)
            assert found.status in {"no_model", "degenerate", "verified", "too_few_matches"}
            assert found.features.shape == (len(FEATURE_NAMES),)
            assert np.isfinite(found.features[8:14]).all()
            if found.status != "verified":
                assert found.inliers == 0 and found.weight == 0
    assert verify(points(one_place), points(spread), config).status != "verified"
    assert verify(points(spread), points(one_place), config).status != "verified"


def test_no_keypoints_and_few_matches_are_ordinary_answers(features):
    nothing = empty_features(10, 20)
    for left, right in ((nothing, features), (features, nothing), (nothing, nothing)):
        found = verify(left, right)
        assert (found.status, found.inliers, found.matches, found.H) == ("no_keypoints", 0, 0, None)
        assert math.isnan(found.error_median) and found.pairs.shape == (0, 2)
    single = points(np.array([[5.0, 5.0]]))
    assert verify(features, single).status == "too_few_matches"
    assert verify(single, single).status == "too_few_matches"
    assert verify_many(features, []) == []


@pytest.mark.parametrize("model", sorted(WARPS))
def test_below_the_fewest_matches_no_geometry_is_sought(model):
    """As many as determine the model, and fewer, prove nothing; more may be asked for."""
    enough = {"similarity": 3, "affine": 4, "homography": 5}[model]
    xy = np.array(
        [[10, 15], [90, 20], [80, 85], [15, 70], [45, 40], [60, 75], [30, 90], [70, 50], [20, 40], [50, 10.0]]
    )
    for count in range(2, len(xy) + 1):
        for estimator in ESTIMATORS:
            found = verify(points(xy[:count]), points(xy[:count]), VerifyConfig(model=model, estimator=estimator))
            expected = ("verified", count) if count >= enough else ("too_few_matches", 0)
            assert (found.status, found.inliers, found.matches) == (*expected, count)
            value = dict(zip(FEATURE_NAMES, map(float, found.features), strict=True))
            assert (value["matches"], value["inliers"]) == (count, expected[1])
            assert math.isnan(value["h11"]) == (found.H is None) == (count < enough)
    gate = VerifyConfig(model=model, min_matches=10)
    assert [verify(points(xy[:n]), points(xy[:n]), gate).status for n in (9, 10)] == ["too_few_matches", "verified"]


def test_a_mirror_image_is_found_where_it_is_asked_for_and_said(crop, features):
    turned, both = describe(np.ascontiguousarray(crop[:, ::-1])), VerifyConfig(mirrored=True)
    plain, found = verify(turned, features), verify(turned, features, both)
    assert found.mirrored and found.status == "verified" and found.inliers > 50
    assert not plain.mirrored and plain.weight < 0.1 * found.weight
    # rows stay the query's, and H maps its mirror image on to the crop it was made from
    q, c = found.pairs.T
    x = features.width - 1 - turned.xy[q, 0]
    assert np.abs(np.stack([x, turned.xy[q, 1]], axis=1) - features.xy[c]).max() < 8
    assert np.abs(project(found.H, np.array([[50.0, 60.0]])) - [50, 60]).max() < 2
    as_it_is = verify(features, features, both)
    assert not as_it_is.mirrored and as_it_is.inliers == verify(features, features).inliers


def test_a_mirror_image_is_not_a_plausible_view():
    xy = np.random.default_rng(1).uniform(5, 95, (40, 2))
    left, right = points(xy), points(np.stack([100 - xy[:, 0], xy[:, 1]], axis=1))
    found = verify(left, right, VerifyConfig(model="affine", estimator="magsac"))
    assert (found.status, found.inliers) == ("degenerate", 0)
    assert found.H is not None and dict(zip(FEATURE_NAMES, found.features, strict=True))["determinant"] < 0


@pytest.mark.parametrize(
    ("H", "limit"),
    [
        (np.diag([5.0, 5.0, 1]), {"max_scale": 4.0}),
        (np.diag([2.0, 0.5, 1]), {"max_stretch": 3.0}),
        (np.array([[0, -1.0, 100], [1, 0, 0], [0, 0, 1]]), {"max_rotation": 45.0}),
    ],
)
def test_implausible_maps_are_named_degenerate_and_allowed_by_wider_limits(H, limit):
    xy = np.random.default_rng(1).uniform(5, 95, (40, 2))
    left, right = points(xy), points(project(H, xy))
    config = VerifyConfig(model="affine", estimator="magsac", **limit)
    assert verify(left, right, config).status == "degenerate"
    wide = VerifyConfig(model="affine", estimator="magsac", max_scale=10, max_stretch=10)
    assert verify(left, right, wide).inliers == 40


def test_matches_from_elsewhere_are_verified_too(features):
    rows = np.arange(len(features), dtype=np.int32)
    wrong = np.random.default_rng(0).permutation(rows)
    mixed = np.where(rows % 3 == 0, rows, wrong).astype(np.int32)
    found = verify_matches(features, features, Matches(rows, mixed, np.ones(len(rows), np.float32)))
    assert found.status == "verified"
    assert found.inliers >= (rows % 3 == 0).sum()
    assert found.matches == len(rows)


@pytest.mark.parametrize(
    "fields",
    [
        {"mirrored": True, "matcher": "xfeat", "learned": LearnedConfig("xfeat")},
        {"learned": LearnedConfig("xfeat")},
        {"matcher": "xfeat"},
        {"matcher": "disk", "learned": LearnedConfig("xfeat")},
        {"model": "cubic"},
        {"matcher": "x"},
        {"estimator": "y"},
        {"ratio": 0.0},
        {"threshold": -1.0},
        {"iterations": 0},
        {"min_matches": -1},
    ],
)
def test_unknown_settings_are_refused(fields):
    with pytest.raises(InputError):
        VerifyConfig(**fields)


def test_every_matcher_can_be_named_in_the_settings_and_every_network_is_a_matcher():
    assert tuple(MATCHERS) == get_args(LocalMatcher)
    assert set(NETWORKS) < set(MATCHERS)


# --- the parts, against loops


@pytest.mark.parametrize("ratio", [0.7, 0.9, 1.0])
@pytest.mark.parametrize("matcher", ["sift", "sift_mutual"])
def test_matching_equals_a_loop(matcher, ratio):
    random = np.random.default_rng(4)
    a = random.integers(0, 256, (40, 128)).astype(np.uint8)
    b = np.concatenate(
        [random.integers(0, 256, (50, 128)), np.clip(a[:20].astype(int) + random.integers(-60, 60, (20, 128)), 0, 255)]
    )
    b = b.astype(np.uint8)
    expected = []
    distances = np.array([[math.dist(x.astype(float), y.astype(float)) for y in b] for x in a])
    for i in range(len(a)):
        order = sorted(range(len(b)), key=lambda j, i=i: distances[i, j])
        share = distances[i, order[0]] / distances[i, order[1]]
        if share < ratio and (matcher == "sift" or distances[:, order[0]].argmin() == i):
            expected.append((i, order[0], 1 - share))
    left, right = (replace(points(np.zeros((len(rows), 2))), descriptors=rows) for rows in (a, b))
    found = matching_of(left, VerifyConfig(matcher=matcher, ratio=ratio))(right)
    assert list(zip(found.query.tolist(), found.candidate.tolist(), strict=True)) == [(i, j) for i, j, _ in expected]
    assert found.weight == pytest.approx([weight for *_, weight in expected], abs=1e-5)


@pytest.mark.parametrize("model", sorted(WARPS))
def test_least_squares_recovers_the_map_and_refuses_too_little(model):
    H = WARPS[model]
    xy = np.random.default_rng(2).uniform(0, 100, (12, 2)).astype(np.float32)
    found = fit_least_squares(model, xy, project(H, xy).astype(np.float32))
    assert found == pytest.approx(H / H[2, 2], abs=2e-3)
    assert fit_least_squares(model, xy[:1], xy[:1]) is None
    assert fit_least_squares(model, np.ones((5, 2), np.float32), xy[:5]) is None


def test_errors_and_projection_equal_a_loop():
    H = WARPS["homography"]
    random = np.random.default_rng(3)
    a, b = random.uniform(0, 300, (20, 2)), random.uniform(0, 300, (20, 2))
    for (x, y), (u, v), gap in zip(a, b, transfer_errors(H, a, b), strict=True):
        w = H[2, 0] * x + H[2, 1] * y + 1
        px, py = (H[0, 0] * x + H[0, 1] * y + H[0, 2]) / w, (H[1, 0] * x + H[1, 1] * y + H[1, 2]) / w
        assert gap == pytest.approx(math.hypot(px - u, py - v))
    flat = np.array([[1, 0, 0], [0, 1, 0], [1.0, 0, 0]])
    assert np.isinf(transfer_errors(flat, np.zeros((1, 2)), np.zeros((1, 2)))).all()


def test_the_linear_part_is_the_derivative():
    H, step = WARPS["homography"], 1e-5
    here = project(H, np.array([[50.0, 70.0]]))[0]
    dx = (project(H, np.array([[50 + step, 70.0]]))[0] - here) / step
    dy = (project(H, np.array([[50.0, 70 + step]]))[0] - here) / step
    assert linear_part(H, at=(50.0, 70.0)) == pytest.approx(np.stack([dx, dy], axis=1), abs=1e-4)


def test_shapes_are_told_apart():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    assert convex(square) and area(square) == pytest.approx(1)
    assert not convex(square[::-1]) and not convex(square[[0, 2, 1, 3]])
    assert collinear(np.array([[0, 0], [1, 1], [5, 5.0]])) and not collinear(square)
    assert wrapped(np.array([3 * np.pi, -3 * np.pi / 2, 0.5])) == pytest.approx([-np.pi, np.pi / 2, 0.5])
