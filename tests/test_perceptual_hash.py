"""The perceptual hash: signs of low cosine coefficients, hardly changed by scale or saving again."""

from __future__ import annotations

import cv2
import numpy as np
from made_photos import encoded, textured
from numpy.typing import NDArray

from reid.images import (
    hamming,
    load_bytes,
    perceptual_hash,
    read,
)


def reference_hash(rgb: NDArray[np.uint8]) -> int:
    """The same definition with loops: block means, cosine sums, signs."""
    height, width = rgb.shape[:2]
    grey = rgb.astype(float) @ np.array([0.299, 0.587, 0.114])
    ys, xs = ([size * i // 32 for i in range(33)] for size in (height, width))
    small = np.array([[grey[ys[i] : ys[i + 1], xs[j] : xs[j + 1]].mean() for j in range(32)] for i in range(32)])
    bits = 0
    for v in range(8):
        for u in range(8):
            total = 0.0
            for y in range(32):
                for x in range(32):
                    total += small[y, x] * np.cos((2 * y + 1) * v * np.pi / 64) * np.cos((2 * x + 1) * u * np.pi / 64)
            bits = bits << 1 | int(total > 0.5 and (u, v) != (0, 0))
    return bits


def test_the_hash_is_the_signs_of_low_cosine_coefficients() -> None:
    rgb = textured(320, 256, 5)
    assert hamming(perceptual_hash(rgb), reference_hash(rgb)) <= 1  # rounding of the means to 8 bits


def test_the_hash_hardly_changes_with_the_decoded_scale_or_after_saving_again() -> None:
    distances = []
    for seed in range(12):
        photo = load_bytes(encoded(textured(1601, 1203, seed), "JPEG", quality=92))
        full = read(photo)
        again = encoded(cv2.resize(full.pixels, (800, 601), interpolation=cv2.INTER_AREA), "JPEG", quality=60)
        hashes = [perceptual_hash(read(photo, target=t).pixels) for t in (800, 400, 200)]
        hashes.append(perceptual_hash(read(again).pixels))
        distances += [hamming(perceptual_hash(full.pixels), other) for other in hashes]
    assert max(distances) <= 3
    assert np.mean(np.array(distances) <= 2) > 0.95


def test_a_plain_surface_hashes_to_zero_and_a_mirrored_photo_to_something_else() -> None:
    assert perceptual_hash(np.full((50, 60, 3), 77, np.uint8)) == 0
    photo = textured(300, 200)
    assert hamming(perceptual_hash(photo), perceptual_hash(np.ascontiguousarray(photo[:, ::-1]))) > 10


def test_hamming_counts_differing_bits() -> None:
    assert (hamming(0, 0), hamming(0, 2**64 - 1), hamming(0b1011, 0b0010)) == (0, 64, 2)
