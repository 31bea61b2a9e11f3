"""Lens, film and scanner: from light to the bytes of a picture. Knows nothing of what is in it."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from reid.synth.noise import Field, tile, window
from reid.synth.view import View, planes

Picture = npt.NDArray[np.uint8]


def expose(light: Field, view: View, rng: np.random.Generator) -> Picture:
    """Linear light (P, H, W) float32 (changed in place) → (H, W, 3) uint8 RGB.

    Haze, blur, exposure, tone curve, colour, grain and noise, in this order.
    """
    c = view.conditions
    height, width = light.shape[1:]
    if c.haze > 0:
        light += np.float32(min(c.haze, 0.6)) * (np.float32(0.9) * planes(c.sky, view.grey) - light)
    light = _blurred(light, view, width / 640.0)
    mean = max(float(light[:, ::4, ::4].mean()), 0.02)
    light *= np.float32(view.exposure * (0.26 / mean) ** 0.65)
    tone = np.sqrt(np.clip(light, 0.0, 4.0, out=light), out=light)
    span = np.float32(view.white_point - view.black_point)
    tone *= np.float32(1.09 / span) / (np.float32(1.0) + np.float32(0.12) * tone * tone)  # highlights roll off
    tone -= np.float32(view.black_point) / span
    np.clip(tone, 0.0, 1.0, out=tone)
    tone += np.float32(view.contrast) * tone * (tone * (np.float32(3.0) - np.float32(2.0) * tone) - np.float32(1.0))
    if len(tone) == 3:
        grey = tone.mean(axis=0)
        tone = grey + (tone - grey) * np.float32(view.saturation)
    if view.grain > 0:
        tone += np.float32(view.grain) * window(rng, "grain", (height, width), (0.9, 0.9))
    for number, plane in enumerate(tone):
        plane += np.float32(view.noise) * _shot(rng, number, (height, width))
    levels = [cv2.convertScaleAbs(np.maximum(plane, 0.0), alpha=255.0) for plane in tone]
    return np.asarray(cv2.merge(levels if len(levels) == 3 else levels * 3), np.uint8)


def _shot(rng: np.random.Generator, number: int, shape: tuple[int, int]) -> Field:
    """Pixel noise of unit deviation, (H, W): a whole-pixel window on a wrapping tile, since drawing it costs more."""
    top, left = int(rng.integers(512)), int(rng.integers(512))
    source = _white(number)
    reps = (-(-(shape[0] + top) // 512), -(-(shape[1] + left) // 512))
    return np.asarray(np.tile(source, reps)[top : top + shape[0], left : left + shape[1]], np.float32)


@lru_cache(maxsize=4)
def _white(number: int) -> Field:
    """The sharpest part of a grain tile."""
    source = tile("grain", number)
    sharp = source - cv2.blur(source, (3, 3))
    return np.asarray(sharp / sharp.std(), np.float32)


def _blurred(light: Field, view: View, unit: float) -> Field:
    """Defocus, then camera shake along a line, plane by plane; `unit` is the width over 640."""
    sigma, length = view.defocus * unit, round(view.shake * unit)
    kernel = None
    if length >= 2:
        half = length // 2
        kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
        dx, dy = round(half * np.cos(view.shake_angle)), round(half * np.sin(view.shake_angle))
        cv2.line(kernel, (half - dx, half - dy), (half + dx, half + dy), 1.0, 1)
        kernel /= kernel.sum()
    for plane in light:
        if sigma > 0.3:
            plane[...] = cv2.GaussianBlur(plane, (0, 0), sigma)
        if kernel is not None:
            plane[...] = cv2.filter2D(plane, -1, kernel)
    return light


def encode(picture: Picture, quality: int) -> bytes:
    """JPEG bytes of an RGB picture; one that is grey throughout is written with a single channel."""
    grey = bool((picture[..., 0] == picture[..., 1]).all() and (picture[..., 1] == picture[..., 2]).all())
    source = picture[..., 0] if grey else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    ok, data = cv2.imencode(".jpg", source, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise ValueError(f"OpenCV could not encode a picture of shape {picture.shape}")
    return data.tobytes()


def decode(data: bytes) -> Picture:
    """JPEG bytes → (H, W, 3) uint8 RGB."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"OpenCV could not decode {len(data)} bytes as a JPEG")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
