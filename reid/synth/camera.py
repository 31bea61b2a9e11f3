"""Lens, film and scanner: from light to the bytes of a picture. Knows nothing of what is in it."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from reid.synth.noise import Field, tile, window
from reid.synth.view import View

Picture = npt.NDArray[np.uint8]


def expose(light: Field, view: View, rng: np.random.Generator) -> Picture:
    """Linear RGB (H, W, 3) float32 → (H, W, 3) uint8 RGB: haze, blur, exposure, tone curve, grey, grain and noise."""
    c = view.conditions
    height, width = light.shape[:2]
    if c.haze > 0:
        air = np.array(c.sky, np.float32) * np.float32(0.9)
        light = light + np.float32(min(c.haze, 0.6)) * (air - light)
    light = _blurred(light, view, width / 640.0)
    mean = float(light[::4, ::4].mean())
    light = light * np.float32(view.exposure * (0.24 / max(mean, 0.02)) ** 0.65 if mean > 0 else 1.0)
    if view.grey:
        light = np.repeat((light @ np.array((0.28, 0.55, 0.17), np.float32))[..., None], 1, 2)
    tone = cv2.pow(np.clip(light, 0.0, 4.0), 1 / 2.2).reshape(height, width, -1)
    tone = tone / (np.float32(1.0) + np.float32(0.12) * tone * tone) * np.float32(1.09)  # shoulder: highlights roll off
    tone = (tone - np.float32(view.black_point)) * np.float32(1.0 / (view.white_point - view.black_point))
    if not view.grey:
        grey = tone.mean(axis=2, keepdims=True)
        tone = grey + (tone - grey) * np.float32(view.saturation)
    if view.grain > 0:
        tone += (np.float32(view.grain) * window(rng, "grain", (height, width), (0.9, 0.9)))[..., None]
    tone += np.float32(view.noise) * _shot(rng, tone.shape)
    picture = cv2.convertScaleAbs(np.clip(tone, 0.0, 1.0), alpha=255.0).reshape(height, width, -1)
    picture = np.repeat(picture, 3, 2) if picture.shape[2] == 1 else picture
    return np.ascontiguousarray(picture, dtype=np.uint8)


def _shot(rng: np.random.Generator, shape: tuple[int, ...]) -> Field:
    """Pixel noise of unit deviation.

    Cut from a wrapping tile at whole-pixel offsets (drawing fresh numbers would cost more than the sea).
    """
    height, width, channels = shape
    planes = []
    for channel in range(channels):
        oy, ox = int(rng.integers(512)), int(rng.integers(512))
        source = _white(channel)
        reps = (-(-(height + oy) // 512), -(-(width + ox) // 512))
        planes.append(np.tile(source, reps)[oy : oy + height, ox : ox + width])
    return np.stack(planes, axis=-1)


def _white(channel: int) -> Field:
    """The sharpest part of a grain tile."""
    source = tile("grain", channel)
    sharp = source - cv2.blur(source, (3, 3))
    return np.asarray(sharp / sharp.std(), np.float32)


def _blurred(light: Field, view: View, unit: float) -> Field:
    """Defocus, then camera shake along a line; `unit` is the width over 640."""
    sigma = view.defocus * unit
    if sigma > 0.3:
        light = np.asarray(cv2.GaussianBlur(light, (0, 0), sigma), np.float32)
    length = round(view.shake * unit)
    if length >= 2:
        kernel = np.zeros((2 * (length // 2) + 1,) * 2, np.float32)
        half = length // 2
        dx, dy = round(half * np.cos(view.shake_angle)), round(half * np.sin(view.shake_angle))
        cv2.line(kernel, (half - dx, half - dy), (half + dx, half + dy), 1.0, 1)
        light = np.asarray(cv2.filter2D(light, -1, kernel / kernel.sum()), np.float32)
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
