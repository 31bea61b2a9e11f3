"""How a photo of a cropper's training differs each time it is shown: framed, turned, mirrored and retoned, its points with it.

Pixels and points go through one and the same matrix between shares of the photo. A mirrored photo swaps the tips, so
that the left one stays the left one. Knows `reid.train.cropper_data.Photos`; no networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.train.cropper_data import Photos, Pixels, Points, box_of

SWAPPED = (2, 1, 0, 3)  # landmarks of the mirrored photo, by those of the photo
_BORDERS = (cv2.BORDER_REFLECT_101, cv2.BORDER_REPLICATE, cv2.BORDER_CONSTANT)


@dataclass(frozen=True, slots=True)
class Variation:
    """How a photo differs each time it is shown; 0 switches a kind off. Angles in degrees, the rest probabilities
    except where it says otherwise.

    `tight` of the photos are framed so that the animal fills 80 to 100 % of the width, `cut` so that the frame cuts it;
    the others show it smaller. Its height in the frame is drawn on its own: whatever shape a photo has, it is squashed.
    """

    mirror: float = 0.5
    tight: float = 0.62
    cut: float = 0.1
    rotate: float = 14.0
    shear: float = 10.0
    grey: float = 0.4
    light: float = 0.45  # ± share of brightness, contrast and gamma
    colour: float = 0.25  # ± share by which a channel is stronger
    blur: float = 0.3
    shrink: float = 0.4  # taken at a fraction of the resolution
    jpeg: float = 0.5
    noise: float = 0.3
    paper: float = 0.08  # a white strip with writing, as scans have
    patch: float = 0.2  # something in front


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A varied batch: `pixels (B, side, side, 3)`, `boxes (B, 4)` XYXY and `landmarks (B, 4, 2)` in shares."""

    pixels: Pixels
    boxes: Points
    landmarks: Points
    animal: NDArray[np.bool_]
    marked: NDArray[np.bool_]


def varied(photos: Photos, side: int, how: Variation, rng: np.random.Generator) -> Shown:
    """Every photo framed, turned, mirrored and retoned anew, its points with it."""
    made = [_varied(photos, i, side, how, rng) for i in range(len(photos))]
    animal = np.array([there for *_, there in made], np.bool_)
    boxes, marks = (np.stack([one[k] for one in made]).astype(np.float32) for k in (1, 2))
    return Shown(np.stack([one[0] for one in made]), boxes, marks, animal, photos.marked & animal)


def _varied(
    photos: Photos, i: int, side: int, how: Variation, rng: np.random.Generator
) -> tuple[Pixels, Points, Points, bool]:
    matrix = _framing(box_of(photos.outline[i]), bool(photos.animal[i]), bool(photos.shaped[i]), how, rng)
    marks = _moved(photos.landmarks[i], matrix)
    if rng.random() < how.mirror:
        matrix = np.array([[-1.0, 0, 1], [0, 1, 0]]) @ np.concatenate([matrix, [[0, 0, 1]]])
        marks = _moved(photos.landmarks[i], matrix)[list(SWAPPED)]
    pixels = _warped(photos.pixels[i], matrix, side, _BORDERS[int(rng.choice(3, p=(0.6, 0.25, 0.15)))])
    pixels = _retoned(_covered(pixels, how, rng), how, rng)
    box = box_of(_moved(photos.outline[i], matrix))
    there = bool(photos.animal[i]) and float((box[2] - box[0]) * (box[3] - box[1])) > 1e-3
    return pixels, box, marks, there


def _moved(points: Points, matrix: NDArray[np.float64]) -> Points:
    """`points (..., 2)` through a matrix `(2, 3)`."""
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2], np.float32)


def _warped(pixels: Pixels, matrix: NDArray[np.float64], side: int, border: int = cv2.BORDER_REFLECT_101) -> Pixels:
    """The photo through a matrix between shares of the photo, at `side` pixels: a point p of it comes to `matrix` p."""
    size = pixels.shape[0]
    to_pixels = np.diag([side, side, 1.0]) @ np.concatenate([matrix, [[0, 0, 1]]]) @ np.diag([1 / size, 1 / size, 1.0])
    to_pixels = _centres(-0.5) @ to_pixels @ _centres(0.5)  # OpenCV counts from the middle of the first pixel
    return np.asarray(
        cv2.warpAffine(
            pixels, to_pixels[:2], (side, side), flags=cv2.INTER_LINEAR, borderMode=border, borderValue=(250, 250, 250)
        ),
        np.uint8,
    )


def _centres(by: float) -> NDArray[np.float64]:
    return np.array([[1.0, 0, by], [0, 1, by], [0, 0, 1]])


def _framing(box: Points, animal: bool, shaped: bool, how: Variation, rng: np.random.Generator) -> NDArray[np.float64]:
    """A matrix `(2, 3)` in shares that turns, shears and frames: the animal's box gets a size and place of our choice."""
    if not animal:
        zoom = rng.uniform(1.0, 2.0, 2)
        return np.array([[zoom[0], 0, -rng.uniform(0, zoom[0] - 1)], [0, zoom[1], -rng.uniform(0, zoom[1] - 1)]])
    turn, shear = np.deg2rad(rng.uniform(-1, 1, 2) * (how.rotate, how.shear)) if shaped else (0.0, 0.0)
    have = np.maximum(np.array([box[2] - box[0], box[3] - box[1]], np.float64), 0.02)
    middle = np.array([box[0] + box[2], box[1] + box[3]], np.float64) / 2
    wanted = _wanted(how, rng)
    # a photo cannot be framed much wider than it is: what would come in from outside is no sea
    wanted = np.maximum(wanted, have * (0.75 if shaped else 0.9))
    slack = np.abs(1.0 - wanted) / 2
    place = 0.5 + rng.uniform(-1, 1, 2) * slack * np.where(wanted > 1, 1.0, 0.96)
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.array(
        [[1, np.tan(shear)], [0, 1]]
    )
    matrix = np.diag(wanted) @ linear @ np.diag(1 / have)  # turned in the animal's own frame, then brought to size
    return np.concatenate([matrix, (place - matrix @ middle)[:, None]], axis=1)


def _wanted(how: Variation, rng: np.random.Generator) -> NDArray[np.float64]:
    """Width and height of the box in the frame."""
    draw = rng.random()
    if draw < how.tight:
        width = rng.uniform(0.8, 1.0)
    elif draw < how.tight + how.cut:
        width = rng.uniform(1.0, 1.3)
    else:
        width = rng.uniform(0.22, 0.8)
    tall = rng.random()
    height = rng.uniform(0.28, 1.0) if tall < 0.85 else rng.uniform(0.1, 0.28) if tall < 0.93 else rng.uniform(1.0, 1.2)
    return np.array([width, min(height, 2.5 * width)])


def _covered(pixels: Pixels, how: Variation, rng: np.random.Generator) -> Pixels:
    """Perhaps something in front, perhaps a strip of paper with writing."""
    side = pixels.shape[0]
    if rng.random() < how.patch:
        pixels = pixels.copy()
        for _ in range(int(rng.integers(1, 4))):
            x, y = (int(v) for v in rng.integers(0, side, 2))
            size = tuple(int(v) for v in rng.integers(2, side // 5, 2))
            cv2.ellipse(pixels, (x, y), size, float(rng.uniform(0, 180)), 0, 360, rng.integers(0, 256, 3).tolist(), -1)
    if rng.random() < how.paper:
        pixels = pixels.copy()
        tall = int(rng.integers(3, side // 6))
        top = 0 if rng.random() < 0.3 else side - tall
        pixels[top : top + tall] = int(rng.integers(225, 256))
        place = (int(rng.integers(0, side // 2)), top + max(tall - 3, 3))
        cv2.putText(pixels, "No 4127 ab"[: int(rng.integers(3, 11))], place, 0, 0.3, (40, 40, 40), 1, cv2.LINE_AA)
    return pixels


def _retoned(pixels: Pixels, how: Variation, rng: np.random.Generator) -> Pixels:
    """Another camera, another light, another file."""
    side = pixels.shape[0]
    if rng.random() < how.shrink:
        small = max(16, round(side * rng.uniform(0.3, 0.8)))
        pixels = np.asarray(cv2.resize(pixels, (small, small), interpolation=cv2.INTER_AREA), np.uint8)
        pixels = np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)
    if rng.random() < how.blur:
        pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.3, 1.6)), np.uint8)
    tones = pixels.astype(np.float32)
    tones *= (1 + how.colour * rng.uniform(-1, 1, 3)).astype(np.float32)
    if rng.random() < how.grey:
        tones[:] = (tones @ rng.dirichlet((3, 6, 2)).astype(np.float32))[..., None]
    light, contrast, gamma = 1 + how.light * rng.uniform(-1, 1, 3)
    mean = float(tones.mean())
    tones = (tones - mean) * np.float32(contrast * (1.6 if rng.random() < 0.2 else 1.0)) + np.float32(mean * light)
    np.clip(tones, 0, 255, out=tones)
    tones = np.float32(255) * (tones * np.float32(1 / 255)) ** np.float32(gamma)
    if rng.random() < how.noise:
        tones += rng.normal(0, rng.uniform(1, 14), (side, side, 1)).astype(np.float32)
    pixels = np.clip(tones, 0, 255).astype(np.uint8)
    if rng.random() < how.jpeg:
        ok, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(12, 85))])
        if ok:
            pixels = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return pixels
