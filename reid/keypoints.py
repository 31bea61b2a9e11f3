"""A crop → local features: CLAHE, SIFT, RootSIFT in bytes, and the store that keeps them so that a photo is described
once.

Knows pixels and arrays. Must not know identities, catalogues, indexes or where a photo came from: the caller hands in
a crop and, for the store, the content hash and box it was cut by.

Conventions: `xy` are pixels of the crop as it was given (not of the resized working image), x to the right, y down,
the centre of the first pixel at (0, 0). Descriptors are RootSIFT (Arandjelović & Zisserman, CVPR 2012: L1-normalise
SIFT, take the square root, so that the Euclidean distance becomes the Hellinger distance) times `DESCRIPTOR_SCALE`,
rounded and clipped to uint8. A row then has an L2 norm of about 512, and `‖a − b‖ / 512` is the RootSIFT distance to
within the rounding: on random crops its mean error is below .002 (see tests), and values above 255/512 are clipped,
which hits fewer than one entry in ten thousand.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from reid import disk
from reid.errors import InputError, SnapshotCorrupt

DESCRIPTOR_DIM = 128
DESCRIPTOR_SCALE = 512.0
"""RootSIFT in [0, 1] times this is what a descriptor byte holds."""

_MAGIC = b"RKP1"
_MAGIC_SIZED = b"RKP2"  # descriptors of another length than SIFT's: one more uint32 says which
_MAGIC_OUTLINED = b"RKP3"  # as RKP2, and the outline at the end
THUMBNAIL = 64
"""Side of the grey picture that is kept with the keypoints, in its own pixels."""
_HEADER = struct.Struct("<4sIIII")  # magic, keypoints, crop height, crop width, crc32 of what follows
_SIZED = struct.Struct("<I")
_OUTLINE = THUMBNAIL**2 // 8  # bytes of an outline, a bit a pixel
_PLACE = 5 * 4  # bytes a keypoint beside its descriptor
_ALGORITHM = "clahe-sift-rootsift/2"  # 2: from pixels decoded whatever the embedder wants


@dataclass(frozen=True, slots=True)
class KeypointConfig:
    """How a crop is described. Frozen: the fingerprint of these values is part of every stored feature's name."""

    max_keypoints: int = 1000
    """Strongest responses kept; 0 keeps all."""
    long_side: int = 320
    """Pixels: a larger crop is reduced to this long side before SIFT; 0 never reduces."""
    min_long_side: int = 0
    """Pixels: a smaller crop is enlarged to this long side (bicubic); 0 never enlarges."""
    clahe_clip: float = 2.0
    """Contrast limit of the local equalisation; 0 switches it off."""
    clahe_tiles: int = 8
    """Tiles per side of the local equalisation."""
    contrast_threshold: float = 0.01
    """SIFT's peak threshold; lower finds more and weaker points."""
    edge_threshold: float = 10.0
    """SIFT's limit on the ratio of principal curvatures; higher keeps points on edges."""
    octave_layers: int = 3
    """Scales sampled per octave."""
    sigma: float = 1.6
    """Pixels of blur of the first layer."""
    upright: bool = False
    """True sets every angle to zero: descriptors stop being rotation invariant and grow more distinctive."""

    def __post_init__(self) -> None:
        """Refuse values out of range: `InputError`."""
        if self.max_keypoints < 0 or self.long_side < 0 or self.min_long_side < 0 or self.clahe_clip < 0:
            raise InputError(f"keypoint limits cannot be negative: {self}", next_step="use 0 to switch a limit off")
        if self.clahe_tiles < 1 or self.octave_layers < 1 or self.sigma <= 0:
            raise InputError(f"keypoint scales must be positive: {self}", next_step="use the defaults")
        if self.long_side and self.min_long_side > self.long_side:
            raise InputError(
                f"min_long_side {self.min_long_side} is above long_side {self.long_side}",
                next_step="lower min_long_side",
            )

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits over the algorithm's version and every field."""
        text = json.dumps([_ALGORITHM, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, eq=False)
class LocalFeatures:
    """The keypoints of one crop, strongest response first; row i of every array is one keypoint.

    `xy (N, 2) float32` pixels of the crop; `scale (N,) float32` diameter in the same pixels; `angle (N,) float32`
    degrees in [0, 360), clockwise on the screen; `response (N,) float32`; `descriptors (N, 128) uint8` RootSIFT × 512
    (or `(N, D)`, as `reid.learned` packs those of a network, which know neither scale nor angle);
    `thumbnail (64, 64) uint8` the equalised grey crop, squashed to a square, so that two photos can be laid over each
    other without reading either again; `height`, `width` of the crop in pixels. `outline (64, 64) bool` is the mask that
    the keypoints lie in, squashed alike, True on the animal; None where there was none.
    """

    xy: NDArray[np.float32]
    scale: NDArray[np.float32]
    angle: NDArray[np.float32]
    response: NDArray[np.float32]
    descriptors: NDArray[np.uint8]
    thumbnail: NDArray[np.uint8]
    height: int
    width: int
    outline: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return int(self.xy.shape[0])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LocalFeatures):
            return NotImplemented
        if (self.height, self.width) != (other.height, other.width):
            return False
        mine, theirs = (
            _arrays(each) if each.outline is None else (*_arrays(each), each.outline) for each in (self, other)
        )
        return len(mine) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes that `to_bytes` would take."""
        dim = self.descriptors.shape[1]
        further = _SIZED.size if dim != DESCRIPTOR_DIM or self.outline is not None else 0
        further += 0 if self.outline is None else _OUTLINE
        return int(_HEADER.size + further + (_PLACE + dim) * len(self) + THUMBNAIL**2)


def empty_features(
    height: int, width: int, thumbnail: NDArray[np.uint8] | None = None, dim: int = DESCRIPTOR_DIM
) -> LocalFeatures:
    """A crop in which nothing was found: arrays of the right types and no rows."""
    none = np.zeros(0, np.float32)
    picture = np.zeros((THUMBNAIL, THUMBNAIL), np.uint8) if thumbnail is None else thumbnail
    descriptors = np.zeros((0, dim), np.uint8)
    return LocalFeatures(np.zeros((0, 2), np.float32), none, none, none, descriptors, picture, height, width)


def describe(
    crop: NDArray[np.uint8],
    mask: NDArray[np.uint8] | NDArray[np.bool_] | None = None,
    config: KeypointConfig | None = None,
) -> LocalFeatures:
    """Local features of one crop.

    `crop (H, W, 3) uint8 RGB` or `(H, W) uint8` grey; `mask (H, W)`, non-zero where the animal is: keypoints outside
    it are not reported (an all-zero mask gives none). Returns an empty result where nothing is found. Raises
    `InputError` on another shape or dtype. The caller's arrays are left as they were.
    """
    settings = config or KeypointConfig()
    check_crop(crop, mask)
    height, width = crop.shape[:2]
    if height == 0 or width == 0:
        return empty_features(height, width)
    grey, factor = _working_image(crop, settings)
    thumbnail = np.asarray(cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA), np.uint8)
    small_mask, outline = None, None
    if mask is not None:
        outline = outline_of(mask)
        size = (grey.shape[1], grey.shape[0])
        small_mask = cv2.resize((mask != 0).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) * np.uint8(255)
        if not small_mask.any():
            return replace(empty_features(height, width, thumbnail), outline=outline)
    sift = cv2.SIFT.create(
        nfeatures=settings.max_keypoints,
        nOctaveLayers=settings.octave_layers,
        contrastThreshold=settings.contrast_threshold,
        edgeThreshold=settings.edge_threshold,
        sigma=settings.sigma,
        enable_precise_upscale=True,  # without it every place is off by a quarter of a pixel
    )
    if settings.upright:
        points = sift.detect(grey, small_mask)
        for point in points:
            point.angle = 0.0
        points, raw = sift.compute(grey, points)
    else:
        points, raw = sift.detectAndCompute(grey, small_mask)
    if raw is None or len(points) == 0:
        return replace(empty_features(height, width, thumbnail), outline=outline)
    found = _pack(points, np.asarray(raw, np.float32), thumbnail, factor, (height, width), settings.max_keypoints)
    return replace(found, outline=outline)


def outline_of(mask: NDArray[np.uint8] | NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A crop's mask `(H, W)`, non-zero on the animal, squashed to `(64, 64) bool`: True where it covers half of a pixel,
    or any of it where it covers half of none.
    """
    share = cv2.resize((mask != 0).astype(np.float32), (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    half = share >= 0.5
    return np.asarray(half if half.any() else share > 0, np.bool_)


def root_sift(raw: NDArray[np.float32]) -> NDArray[np.uint8]:
    """SIFT rows `(N, 128) float32`, non-negative → RootSIFT × 512 as uint8. A row of zeros stays zeros."""
    totals = raw.sum(axis=1, keepdims=True)
    share = raw / np.maximum(totals, 1e-12)
    octets: NDArray[np.uint8] = np.minimum(np.rint(np.sqrt(share) * DESCRIPTOR_SCALE), 255.0).astype(np.uint8)
    return octets


def to_bytes(features: LocalFeatures) -> bytes:
    """The stored form, little-endian: magic `RKP1`, N, height, width, crc32 (uint32 each), then the arrays one after
    another: xy (N×2 float32), scale, angle, response (N float32 each), descriptors (N×128 uint8), thumbnail (64×64
    uint8). 148 bytes a keypoint and 4,116 a crop. Descriptors of another length D have the magic `RKP2`, and D (uint32)
    stands before the arrays. Where there is an outline the magic is `RKP3`: as `RKP2`, whatever D is, and the outline
    after the thumbnail, 512 bytes, a bit a pixel, rows one after another, the first pixel in the highest bit.
    """
    body = b"".join(np.ascontiguousarray(a, dtype=a.dtype.newbyteorder("<")).tobytes() for a in _arrays(features))
    magic, dim = _MAGIC, features.descriptors.shape[1]
    if features.outline is not None:
        magic, body = _MAGIC_OUTLINED, _SIZED.pack(dim) + body + np.packbits(features.outline).tobytes()
    elif dim != DESCRIPTOR_DIM:
        magic, body = _MAGIC_SIZED, _SIZED.pack(dim) + body
    return _HEADER.pack(magic, len(features), features.height, features.width, zlib.crc32(body)) + body


def from_bytes(data: bytes, source: str = "") -> LocalFeatures:
    """The inverse of `to_bytes`, exact. Raises `SnapshotCorrupt` when the bytes are not what was written."""
    broken = SnapshotCorrupt(
        "stored keypoints are damaged", source=source, next_step="delete the file: it will be described again"
    )
    if len(data) < _HEADER.size:
        raise broken
    magic, count, height, width, crc = _HEADER.unpack_from(data)
    body, dim, outline = memoryview(data)[_HEADER.size :], DESCRIPTOR_DIM, None
    if zlib.crc32(body) != crc or magic not in (_MAGIC, _MAGIC_SIZED, _MAGIC_OUTLINED):
        raise broken
    if magic != _MAGIC and len(body) >= _SIZED.size:
        (dim,), body = _SIZED.unpack_from(body), body[_SIZED.size :]
    if magic == _MAGIC_OUTLINED and len(body) >= _OUTLINE:
        bits, body = np.frombuffer(body[-_OUTLINE:], np.uint8), body[:-_OUTLINE]
        outline = np.unpackbits(bits).reshape(THUMBNAIL, THUMBNAIL).astype(np.bool_)
    if len(body) != count * (_PLACE + dim) + THUMBNAIL**2:
        raise broken
    numbers = np.frombuffer(body[: _PLACE * count], dtype="<f4").astype(np.float32)
    xy, scale, angle, response = np.split(numbers, [2 * count, 3 * count, 4 * count])
    octets = np.frombuffer(body[_PLACE * count :], dtype=np.uint8)
    descriptors = octets[: -(THUMBNAIL**2)].reshape(count, dim).copy()
    thumbnail = octets[-(THUMBNAIL**2) :].reshape(THUMBNAIL, THUMBNAIL).copy()
    size = int(height), int(width)
    return LocalFeatures(xy.reshape(count, 2), scale, angle, response, descriptors, thumbnail, *size, outline)


def mirrored(features: LocalFeatures) -> LocalFeatures:
    """The features that the left-right mirrored crop would give, without looking at it again: for photos from a
    flipped scan.

    In the frame of a keypoint a mirror image exchanges the rows of SIFT's 4 × 4 cells and reverses the sense of its 8
    directions.
    """
    rows, columns, turns = np.meshgrid(np.arange(3, -1, -1), np.arange(4), -np.arange(8) % 8, indexing="ij")
    order = ((rows * 4 + columns) * 8 + turns).ravel()
    xy = features.xy.copy()
    xy[:, 0] = features.width - 1 - xy[:, 0]
    return replace(
        features,
        xy=xy,
        angle=np.mod(180.0 - features.angle, 360.0).astype(np.float32),
        descriptors=np.ascontiguousarray(features.descriptors[:, order]),
        thumbnail=np.ascontiguousarray(features.thumbnail[:, ::-1]),
        outline=None if features.outline is None else np.ascontiguousarray(features.outline[:, ::-1]),
    )


class Description(Protocol):
    """How crops are described; whatever may change what comes of it changes the fingerprint."""

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits."""
        ...


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """Features on disk, one file per (content hash, box, configuration): `root/<config>/<aa>/<sha256>.rkp`.

    Files are written aside and renamed, so readers and several writers may work at once; a damaged file counts as
    absent and is written anew. Nothing here is precious: it can all be computed again from the photos.
    """

    root: Path
    config: Description

    def path(self, content_hash: str, box: tuple[float, float, float, float] | None) -> Path:
        """Where the features of this crop are, or would be. `box` XYXY in pixels of the photo; None is the whole
        photo."""
        key = crop_key(content_hash, box)
        return self.root / self.config.fingerprint / key[:2] / f"{key}.rkp"

    def get(self, content_hash: str, box: tuple[float, float, float, float] | None) -> LocalFeatures | None:
        """Stored features, or None where there are none (or what is there is damaged)."""
        path = self.path(content_hash, box)
        try:
            return from_bytes(path.read_bytes(), str(path))
        except (FileNotFoundError, SnapshotCorrupt):
            return None

    def put(self, content_hash: str, box: tuple[float, float, float, float] | None, features: LocalFeatures) -> Path:
        """Keep features; replaces what was there in one step."""
        path = self.path(content_hash, box)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with disk.refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                aside.write_bytes(to_bytes(features))
                os.replace(aside, path)
            finally:
                aside.unlink(missing_ok=True)
        return path


def crop_key(content_hash: str, box: tuple[float, float, float, float] | None) -> str:
    """What belongs to one box of one photo is filed under these 64 hex digits."""
    where = "whole" if box is None else ",".join(f"{value:.2f}" for value in box)
    return hashlib.sha256(f"{content_hash}|{where}".encode()).hexdigest()


def _arrays(features: LocalFeatures) -> tuple[NDArray[np.generic], ...]:
    return (features.xy, features.scale, features.angle, features.response, features.descriptors, features.thumbnail)


def check_crop(crop: NDArray[np.uint8], mask: NDArray[np.uint8] | NDArray[np.bool_] | None) -> None:
    """`InputError` unless the crop is 8-bit RGB or grey, and the mask of its size."""
    if crop.dtype != np.uint8 or not (crop.ndim == 2 or (crop.ndim == 3 and crop.shape[2] == 3)):
        raise InputError(
            f"a crop is (H, W, 3) or (H, W) uint8, not {crop.shape} {crop.dtype}", next_step="convert it to 8-bit RGB"
        )
    if mask is not None and mask.shape != crop.shape[:2]:
        raise InputError(f"the mask is {mask.shape}, the crop {crop.shape[:2]}", next_step="cut both by the same box")


def _working_image(crop: NDArray[np.uint8], config: KeypointConfig) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """Grey, resized, equalised image, and working pixels per crop pixel in x and y."""
    grey = crop if crop.ndim == 2 else cv2.cvtColor(np.ascontiguousarray(crop), cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    long_side = max(height, width)
    factor = 1.0
    if config.long_side and long_side > config.long_side:
        factor = config.long_side / long_side
    elif long_side < config.min_long_side:
        factor = config.min_long_side / long_side
    if factor != 1.0:
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        grey = cv2.resize(grey, size, interpolation=how)
    if config.clahe_clip > 0:
        tiles = (config.clahe_tiles, config.clahe_tiles)
        grey = cv2.createCLAHE(clipLimit=config.clahe_clip, tileGridSize=tiles).apply(np.ascontiguousarray(grey))
    return np.asarray(grey, np.uint8), (grey.shape[1] / width, grey.shape[0] / height)


def _pack(
    points: Sequence[cv2.KeyPoint],
    raw: NDArray[np.float32],
    thumbnail: NDArray[np.uint8],
    factor: tuple[float, float],
    size: tuple[int, int],
    limit: int,
) -> LocalFeatures:
    """OpenCV's keypoints → arrays in crop pixels, strongest first. SIFT may give ties beyond its limit: they are
    cut."""
    numbers = np.array([(*p.pt, p.size, p.angle, p.response) for p in points], np.float32)
    order = np.argsort(-numbers[:, 4], kind="stable")
    if limit:
        order = order[:limit]
    numbers = numbers[order]
    fx, fy = factor
    # Pixel centres: working x = (crop x + ½)·f − ½.
    xy = (numbers[:, :2] + 0.5) / np.array([fx, fy], np.float32) - 0.5
    return LocalFeatures(
        np.ascontiguousarray(xy, np.float32),
        numbers[:, 2] / np.float32(np.sqrt(fx * fy)),
        np.mod(numbers[:, 3], 360.0).astype(np.float32),
        numbers[:, 4].copy(),
        root_sift(raw[order]),
        thumbnail,
        *size,
    )
