"""A box in a photo → the pixels that an embedder takes.

`cut` widens the box by the model's margin, clips it to the photo and brings it to the model's size. Several `View`s of
one box (mirrored, wider, shifted) serve test-time augmentation: their vectors are averaged.

Knows pixels, boxes and preprocessing; no files, no identities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.models import Preprocessing
from reid.records import Box

Pixels = NDArray[np.uint8]
_INTERPOLATION = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at a box. `widen` is added to the model's margin; shifts are shares of the box's width and
    height.
    """

    mirror: bool = False
    widen: float = 0.0
    shift_x: float = 0.0
    shift_y: float = 0.0


PLAIN = View()
VIEWS: dict[str, tuple[View, ...]] = {
    "one": (PLAIN,),
    "scales": (PLAIN, View(widen=0.1), View(widen=0.2)),
    "boxes": (PLAIN, View(shift_x=0.05), View(shift_x=-0.05), View(shift_y=0.05), View(shift_y=-0.05)),
}
"""Views whose vectors are averaged, by the name that settings give them."""


def views_named(name: str, *, mirror: bool) -> tuple[View, ...]:
    """A set of `VIEWS`, with `mirror` each of them mirrored as well."""
    plain = VIEWS[name]
    return (*plain, *(replace(view, mirror=True) for view in plain)) if mirror else plain


def whole(width: int, height: int) -> Box:
    """The box of a photo in which no animal was found or asked for: all of it, and saying so."""
    return Box(0.0, 0.0, float(width), float(height), confidence=0.0, origin="whole")


def cut(
    pixels: Pixels,
    box: Box,
    preprocessing: Preprocessing,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    view: View = PLAIN,
) -> Pixels:
    """The crop of `box`, `(height, width, 3) uint8 RGB`.

    `pixels (H, W, 3) uint8 RGB` may be decoded smaller than the original: `scale` is decoded ÷ original pixels, (x, y),
    and `box` is in original pixels. A box is clipped to the photo and never comes out empty.
    """
    x0, y0, x1, y1 = _window(pixels, box, preprocessing.margin + view.widen, scale, view)
    crop = pixels[y0:y1, x0:x1]
    if view.mirror:
        crop = crop[:, ::-1]
    if preprocessing.shape == "squash":
        return _resize(crop, preprocessing.width, preprocessing.height, preprocessing.interpolation)
    return _pad(crop, preprocessing)


def cut_views(
    pixels: Pixels,
    box: Box,
    preprocessing: Preprocessing,
    views: tuple[View, ...],
    *,
    scale: tuple[float, float] = (1.0, 1.0),
) -> Pixels:
    """All views of one box, `(V, height, width, 3) uint8 RGB`."""
    return np.stack([cut(pixels, box, preprocessing, scale=scale, view=view) for view in views])


def region(pixels: Pixels, box: Box, *, scale: tuple[float, float] = (1.0, 1.0)) -> Pixels:
    """What `pixels` show of `box`, at their own size: `(h, w, 3) uint8 RGB`; for local features."""
    x0, y0, x1, y1 = _window(pixels, box, 0.0, scale, PLAIN)
    return np.ascontiguousarray(pixels[y0:y1, x0:x1])


def _window(
    pixels: Pixels, box: Box, margin: float, scale: tuple[float, float], view: View
) -> tuple[int, int, int, int]:
    """The box in decoded pixels: widened, shifted, clipped, at least one pixel each way."""
    height, width = pixels.shape[:2]
    dx, dy = view.shift_x * box.width, view.shift_y * box.height
    left, right = box.x0 - margin * box.width + dx, box.x1 + margin * box.width + dx
    top, bottom = box.y0 - margin * box.height + dy, box.y1 + margin * box.height + dy
    x0 = int(np.clip(round(left * scale[0]), 0, width - 1))
    y0 = int(np.clip(round(top * scale[1]), 0, height - 1))
    x1 = int(np.clip(round(right * scale[0]), x0 + 1, width))
    y1 = int(np.clip(round(bottom * scale[1]), y0 + 1, height))
    return x0, y0, x1, y1


def _resize(crop: Pixels, width: int, height: int, interpolation: str) -> Pixels:
    """Bring to size; shrinking always averages over areas, so that fine patterns do not alias."""
    shrinks = crop.shape[1] > width or crop.shape[0] > height
    how = cv2.INTER_AREA if interpolation == "area" and shrinks else _INTERPOLATION.get(interpolation, cv2.INTER_LINEAR)
    return np.asarray(cv2.resize(np.ascontiguousarray(crop), (width, height), interpolation=how), np.uint8)


def _pad(crop: Pixels, preprocessing: Preprocessing) -> Pixels:
    """Keep the crop's shape; the rest of the frame is the model's mean colour."""
    factor = min(preprocessing.width / crop.shape[1], preprocessing.height / crop.shape[0])
    width = max(1, round(crop.shape[1] * factor))
    height = max(1, round(crop.shape[0] * factor))
    frame = np.empty((preprocessing.height, preprocessing.width, 3), np.uint8)
    frame[:] = np.round(preprocessing.mean).astype(np.uint8)
    x, y = (preprocessing.width - width) // 2, (preprocessing.height - height) // 2
    frame[y : y + height, x : x + width] = _resize(crop, width, height, preprocessing.interpolation)
    return frame
