from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from reid.errors import InputError, SnapshotCorrupt
from reid.keypoints import (
    DESCRIPTOR_SCALE,
    FeatureStore,
    KeypointConfig,
    LocalFeatures,
    describe,
    empty_features,
    from_bytes,
    mirrored,
    outline_of,
    root_sift,
    to_bytes,
)


def blobs(height: int = 240, width: int = 320, seed: int = 0, count: int = 120) -> np.ndarray:
    """A picture with structure at many scales, RGB."""
    random = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128, np.uint8)
    for _ in range(count):
        centre = (int(random.integers(width)), int(random.integers(height)))
        axes = (int(random.integers(3, 30)), int(random.integers(3, 30)))
        colour = tuple(int(value) for value in random.integers(0, 255, 3))
        cv2.ellipse(picture, centre, axes, float(random.integers(180)), 0, 360, colour, -1)
    return picture


def test_describes_with_documented_shapes_and_types_strongest_first():
    crop = blobs()
    before = crop.copy()
    found = describe(crop)
    assert 50 < len(found) <= 1000
    assert (found.xy.dtype, found.xy.shape) == (np.float32, (len(found), 2))
    assert (found.descriptors.dtype, found.descriptors.shape) == (np.uint8, (len(found), 128))
    assert found.scale.dtype == found.angle.dtype == found.response.dtype == np.float32
    assert (np.diff(found.response) <= 0).all()
    assert ((found.angle >= 0) & (found.angle < 360)).all()
    assert (found.height, found.width) == (240, 320)
    assert (found.xy >= -1).all() and (found.xy <= [320, 240]).all()
    assert np.array_equal(crop, before)


def test_the_same_crop_gives_the_same_features_and_grey_is_accepted():
    crop = blobs()
    assert describe(crop) == describe(crop)
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    assert describe(grey) == describe(crop)


def test_keypoint_count_is_limited_and_zero_means_all():
    crop = blobs()
    few, all_of_them = (
        describe(crop, None, KeypointConfig(max_keypoints=40)),
        describe(crop, None, KeypointConfig(max_keypoints=0)),
    )
    assert len(few) == 40
    assert len(all_of_them) > 40
    assert np.array_equal(few.response, all_of_them.response[:40])


def test_places_are_in_pixels_of_the_given_crop_whatever_the_working_size():
    small = blobs()
    large = cv2.resize(small, (1280, 960), interpolation=cv2.INTER_CUBIC)
    config = KeypointConfig(long_side=320, max_keypoints=100)
    a, b = describe(small, None, config), describe(large, None, config)
    distance = np.linalg.norm((a.xy + 0.5) * 4 - (b.xy + 0.5)[:, None], axis=2).min(axis=1)
    assert np.median(distance) < 2.0  # of 1280 pixels: half a pixel of the working image
    assert b.scale.mean() == pytest.approx(4 * a.scale.mean(), rel=0.1)


def test_a_small_crop_is_enlarged_on_request():
    tiny = cv2.resize(blobs(), (64, 48), interpolation=cv2.INTER_AREA)
    plain, enlarged = describe(tiny), describe(tiny, None, KeypointConfig(min_long_side=320))
    assert len(enlarged) > len(plain)
    assert (enlarged.xy <= [64, 48]).all()


def test_the_mask_keeps_keypoints_inside():
    crop = blobs()
    mask = np.zeros(crop.shape[:2], bool)
    mask[:, :160] = True
    found = describe(crop, mask)
    assert len(found) > 10
    assert (found.xy[:, 0] < 161).all()
    assert len(describe(crop, np.zeros_like(mask))) == 0


@pytest.mark.parametrize("shape", [(0, 0, 3), (1, 1, 3), (2, 400, 3), (50, 50, 3)])
def test_crops_without_structure_give_an_empty_result_of_the_right_types(shape: tuple[int, ...]):
    found = describe(np.full(shape, 77, np.uint8))
    assert len(found) == 0
    assert found.xy.shape == (0, 2) and found.descriptors.shape == (0, 128)
    assert found.xy.dtype == np.float32 and found.descriptors.dtype == np.uint8
    assert from_bytes(to_bytes(found)) == found


@pytest.mark.parametrize(
    ("crop", "mask"),
    [
        (np.zeros((4, 4, 4), np.uint8), None),
        (np.zeros((4, 4, 3), np.float32), None),
        (np.zeros(4, np.uint8), None),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.uint8)),
    ],
)
def test_other_arrays_are_refused(crop: np.ndarray, mask: np.ndarray | None):
    with pytest.raises(InputError):
        describe(crop, mask)


@pytest.mark.parametrize(
    "fields", [{"max_keypoints": -1}, {"sigma": 0.0}, {"clahe_tiles": 0}, {"long_side": 100, "min_long_side": 200}]
)
def test_settings_out_of_range_are_refused(fields: dict[str, float]):
    with pytest.raises(InputError):
        KeypointConfig(**fields)  # type: ignore[arg-type]


def test_root_sift_is_the_hellinger_map_to_within_rounding():
    raw = np.random.default_rng(3).gamma(0.4, 30, (200, 128)).astype(np.float32)
    exact = np.zeros_like(raw)
    for i, row in enumerate(raw):
        for j, value in enumerate(row):
            exact[i, j] = np.sqrt(value / row.sum())
    found = root_sift(raw)
    assert np.abs(found / DESCRIPTOR_SCALE - exact).max() <= 0.5 / DESCRIPTOR_SCALE + 1e-6
    assert not root_sift(np.zeros((1, 128), np.float32)).any()


def test_bytes_lose_next_to_nothing_of_the_distances_of_real_descriptors():
    crop = cv2.cvtColor(blobs(seed=5, count=400), cv2.COLOR_RGB2GRAY)
    _, raw = cv2.SIFT.create(nfeatures=400).detectAndCompute(crop, None)
    exact = np.sqrt(raw / raw.sum(axis=1, keepdims=True))
    stored = root_sift(raw).astype(np.float64) / DESCRIPTOR_SCALE
    left, right = np.triu_indices(len(raw), 1)
    true = np.linalg.norm(exact[left] - exact[right], axis=1)
    kept = np.linalg.norm(stored[left] - stored[right], axis=1)
    assert np.abs(true - kept).mean() < 0.002
    assert (root_sift(raw) == 255).mean() < 1e-3


def test_bytes_round_trip_exactly_and_have_the_documented_size():
    found = describe(blobs())
    data = to_bytes(found)
    assert len(data) == found.nbytes == 20 + 148 * len(found) + 64 * 64
    assert from_bytes(data) == found


@pytest.mark.parametrize("dim", [128, 64])
def test_an_outline_is_kept_with_the_keypoints_and_says_so_in_the_magic(dim: int):
    mask = np.random.default_rng(dim).random((240, 320)) < 0.3
    mask[:, :160] = True
    found = describe(blobs(), mask)
    assert found.outline is not None and found.outline[:, :31].all() and not found.outline[:, 33:].all()
    assert np.array_equal(mirrored(found).outline, found.outline[:, ::-1])
    found = replace(found, descriptors=np.ascontiguousarray(found.descriptors[:, :dim]))
    data = to_bytes(found)
    assert data[:4] == b"RKP3" and len(data) == found.nbytes == 24 + (20 + dim) * len(found) + 64 * 64 + 512
    assert from_bytes(data) == found != replace(found, outline=None)
    with pytest.raises(SnapshotCorrupt):
        from_bytes(data[:-1])
    plain = describe(blobs())
    assert plain.outline is None and to_bytes(plain)[:4] == b"RKP1"


def test_an_outline_of_next_to_nothing_is_still_somewhere():
    mask = np.zeros((640, 640), np.uint8)
    mask[333, 100] = 255
    assert np.argwhere(outline_of(mask)).tolist() == [[33, 10]]
    assert not outline_of(np.zeros((9, 9), np.bool_)).any()
    assert describe(blobs(), np.zeros((240, 320), np.bool_)).outline is not None


def test_damaged_bytes_are_recognised():
    data = to_bytes(describe(blobs()))
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    for broken in (b"", data[:10], data[:-1], data + b"x", bytes(flipped), b"XXXX" + data[4:]):
        with pytest.raises(SnapshotCorrupt):
            from_bytes(broken)


def test_mirroring_features_equals_describing_the_mirrored_crop():
    crop = blobs(seed=2)
    config = KeypointConfig(clahe_clip=0)
    turned = mirrored(describe(crop, None, config))
    seen = describe(np.ascontiguousarray(crop[:, ::-1]), None, config)
    found = 0
    for i in range(len(seen)):
        near = np.linalg.norm(turned.xy - seen.xy[i], axis=1) < 0.75
        near &= np.abs(np.mod(turned.angle - seen.angle[i] + 180, 360) - 180) < 5
        gaps = np.linalg.norm(turned.descriptors[near].astype(float) - seen.descriptors[i].astype(float), axis=1)
        found += bool((gaps < 0.15 * 512).any())
    assert found > 0.8 * len(seen)
    twice = mirrored(mirrored(seen))
    assert np.array_equal(twice.descriptors, seen.descriptors) and np.allclose(twice.xy, seen.xy, atol=1e-4)


def test_the_store_finds_what_it_kept_by_content_box_and_settings(tmp_path):
    found = describe(blobs())
    store = FeatureStore(tmp_path, KeypointConfig())
    box = (1.0, 2.0, 30.5, 40.0)
    assert store.get("aa", box) is None
    store.put("aa", box, found)
    assert store.get("aa", box) == found
    assert store.get("aa", None) is None and store.get("ab", box) is None
    assert FeatureStore(tmp_path, KeypointConfig(max_keypoints=7)).get("aa", box) is None
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".rkp"]


def test_a_damaged_file_counts_as_absent_and_is_replaced(tmp_path):
    store = FeatureStore(tmp_path, KeypointConfig())
    path = store.put("aa", None, describe(blobs()))
    path.write_bytes(path.read_bytes()[:100])
    assert store.get("aa", None) is None
    store.put("aa", None, empty_features(3, 4))
    assert store.get("aa", None) == empty_features(3, 4)


def test_features_of_other_crops_are_not_equal():
    a = describe(blobs())
    assert a != describe(blobs(seed=1))
    assert a != "something else"
    assert isinstance(a, LocalFeatures)
