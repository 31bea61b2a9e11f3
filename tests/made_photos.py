"""Photos for tests, made in memory: pictures whose corners tell every orientation apart, encoded in any format."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from reid.errors import PhotoError
from reid.images import (
    printable,
    read,
)

QUARTERS = (
    (30, 200, 30),
    (200, 30, 30),
    (200, 30, 30),
    (30, 30, 200),
)  # top left, top right, bottom left, bottom right


def picture(width: int = 96, height: int = 64) -> NDArray[np.uint8]:
    """An upright picture whose corners tell every orientation apart: green, red / red, blue."""
    image = np.empty((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = QUARTERS[0]
    image[: height // 2, width // 2 :] = QUARTERS[1]
    image[height // 2 :, : width // 2] = QUARTERS[2]
    image[height // 2 :, width // 2 :] = QUARTERS[3]
    return image


def textured(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth random picture: content at every scale, compressible like a photo."""
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def corners(image: NDArray[np.uint8]) -> tuple[str, ...]:
    """Names of the corner colours, clockwise from the top left."""
    found = (image[4, 4], image[4, -5], image[-5, -5], image[-5, 4])
    return tuple("RGB"[int(np.argmax(pixel))] for pixel in found)


UPRIGHT = ("G", "R", "B", "R")


def stored(orientation: int) -> NDArray[np.uint8]:
    """The pixels a camera stores so that `orientation` makes `picture()` of them: the inverse, by index arithmetic."""
    upright = picture()
    height, width = upright.shape[:2]
    shape = (height, width, 3) if orientation < 5 else (width, height, 3)
    out = np.empty(shape, np.uint8)
    for y in range(height):
        for x in range(width):
            r, b = width - 1 - x, height - 1 - y
            row, column = {
                1: (y, x), 2: (y, r), 3: (b, r), 4: (b, x), 5: (x, y), 6: (r, y), 7: (r, b), 8: (x, b),
            }[orientation]  # fmt: skip
            out[row, column] = upright[y, x]
    return out


def encoded(image: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def exif_of(**values: Any) -> Image.Exif:
    exif = Image.Exif()
    for name, value in values.items():
        exif[{"orientation": 0x112, "make": 0x10F, "model": 0x110, "changed": 0x132}[name]] = value
    return exif


def heic(image: NDArray[np.uint8] | Image.Image, **options: Any) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pil = image if isinstance(image, Image.Image) else Image.fromarray(image)
    pillow_heif.from_pillow(pil).save(buffer, quality=90, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def refused(path: Path) -> PhotoError:
    """The error of decoding `path`; it must name the photo and a next step."""
    with pytest.raises(PhotoError) as caught:
        read(path)
    assert caught.value.source == printable(path)
    assert caught.value.next_step
    return caught.value
