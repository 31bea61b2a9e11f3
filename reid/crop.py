"""A box in a photo → the pixels that an embedder takes.

`cut` widens the box by the model's margin, clips it to the photo and brings it to the model's size. Several `View`s of
one box (mirrored, wider, shifted) serve test-time augmentation: their vectors are averaged. An aligned view needs the
animal's landmarks (`reid.locate`) and brings them to the same places in every photo.

Knows pixels, boxes, landmarks and preprocessing; no files, no identities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.models import ModelCard, Preprocessing
from reid.records import Box

Pixels = NDArray[np.uint8]
Points = NDArray[np.float32]
_INTERPOLATION = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at a box. `widen` is added to the model's margin; shifts are shares of the box's width and
    height. `aligned` brings the landmarks to `CANONICAL`; without landmarks it is the box as it lies.
    """

    mirror: bool = False
    widen: float = 0.0
    shift_x: float = 0.0
    shift_y: float = 0.0
    aligned: bool = False


PLAIN = View()
VIEWS: dict[str, tuple[View, ...]] = {
    "one": (PLAIN,),
    "around": (PLAIN, View(widen=0.05), View(widen=-0.045), View(shift_y=0.07), View(shift_y=-0.07)),
    "scales": (PLAIN, View(widen=0.1), View(widen=0.2)),
    "boxes": (PLAIN, View(shift_x=0.05), View(shift_x=-0.05), View(shift_y=0.05), View(shift_y=-0.05)),
    "aligned": (View(aligned=True),),
}
"""Views whose vectors are averaged, by the name that settings give them."""
CANONICAL = np.array([(0.0, 0.05), (0.5, 0.5), (1.0, 0.05), (0.5, 0.95)], np.float32)
"""Where left tip, notch, right tip and base come to lie, in shares of the box: their medians on rendered flukes, made even."""
LEAST_AREA, MOST_AREA, MOST_TURN = 0.25, 4.0, 60.0  # of the aligned box against the box; degrees


def views_named(name: str, *, mirror: bool) -> tuple[View, ...]:
    """A set of `VIEWS`, with `mirror` each of them mirrored as well."""
    plain = VIEWS[name]
    return (*plain, *(replace(view, mirror=True) for view in plain)) if mirror else plain


def asked_by(card: ModelCard) -> str:
    """The set of `VIEWS` by which a model is to see, where nobody says otherwise: its card's."""
    name = str(card.extra.get("views", "one"))
    return name if name in VIEWS else "one"


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
    landmarks: Points | None = None,
) -> Pixels:
    """The crop of `box`, `(height, width, 3) uint8 RGB`; with members all their crops in one row.

    `pixels (H, W, 3) uint8 RGB` may be decoded smaller than the original: `scale` is decoded ÷ original pixels, (x, y),
    and `box` and `landmarks (4, 2)` are in original pixels. A box is clipped to the photo and never comes out empty.
    """
    if preprocessing.members:
        parts = [cut(pixels, box, m, scale=scale, view=view, landmarks=landmarks) for m in preprocessing.members]
        return np.concatenate([part.reshape(1, -1, 3) for part in parts], axis=1)
    if view.aligned and landmarks is not None:
        matrix = alignment(landmarks, box)
        if matrix is not None:
            return _aligned(pixels, matrix, preprocessing, scale, view)
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
    landmarks: Points | None = None,
) -> Pixels:
    """All views of one box, `(V, height, width, 3) uint8 RGB`."""
    return np.stack([cut(pixels, box, preprocessing, scale=scale, view=view, landmarks=landmarks) for view in views])


def resized(crops: Pixels, preprocessing: Preprocessing) -> Pixels:
    """Crops `(N, H, W, 3)` of one size in the size of each member, as `cut` lays them; as they are without members."""
    if not preprocessing.members:
        return crops
    out = np.empty((len(crops), 1, preprocessing.width, 3), np.uint8)
    for row, one in zip(out, crops, strict=True):
        parts = [_resize(one, m.width, m.height, m.interpolation) for m in preprocessing.members]
        row[0] = np.concatenate([part.reshape(-1, 3) for part in parts])
    return out


def alignment(landmarks: Points, box: Box) -> NDArray[np.float64] | None:
    """The affine map `(2, 3)`, least squares, from pixels of the original to shares of the box in which the `landmarks
    (4, 2)` lie at `CANONICAL`; None where they cannot be those of an animal in `box`: in one line, turned over, lying
    down, or of quite another size.
    """
    corners = np.array([box.x0, box.y0]), np.array([box.width, box.height])
    inside = (np.asarray(landmarks, np.float64) - corners[0]) / corners[1]
    design = np.concatenate([inside, np.ones((len(inside), 1))], axis=1)
    solution, _, rank, _ = np.linalg.lstsq(design, CANONICAL.astype(np.float64), rcond=1e-3)
    linear = solution[:2].T
    area = float(np.linalg.det(linear))
    tips = (inside[2] - inside[0]) * corners[1]
    if rank < 3 or not LEAST_AREA < area < MOST_AREA or abs(np.degrees(np.arctan2(tips[1], tips[0]))) > MOST_TURN:
        return None
    linear = linear / corners[1]
    return np.concatenate([linear, (solution[2] - linear @ corners[0])[:, None]], axis=1)


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


def _aligned(
    pixels: Pixels, matrix: NDArray[np.float64], preprocessing: Preprocessing, scale: tuple[float, float], view: View
) -> Pixels:
    """The photo through `matrix` (original pixels → shares of the box), the margin around it; beyond the photo its edge
    goes on. It is drawn at up to four times the size and averaged down, so that fine patterns do not alias.
    """
    margin = preprocessing.margin + view.widen
    frame = np.array([preprocessing.width, preprocessing.height], np.float64)
    place = np.diag(frame / (1 + 2 * margin))
    shift = frame * margin / (1 + 2 * margin) - frame * (view.shift_x, view.shift_y) / (1 + 2 * margin)
    linear = place @ matrix[:, :2] / scale
    offset = place @ matrix[:, 2] + shift
    finest = float(np.linalg.norm(linear, 2))  # crop pixels that a decoded pixel becomes, at least
    more = int(np.clip(np.ceil(1 / max(finest, 1e-6)), 1, 4))
    linear, offset = linear * more, offset * more
    offset = offset + linear @ (0.5, 0.5) - 0.5  # OpenCV counts from the middle of the first pixel
    crop = cv2.warpAffine(
        pixels,
        np.concatenate([linear, offset[:, None]], axis=1),
        (preprocessing.width * more, preprocessing.height * more),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    if more > 1:
        crop = cv2.resize(crop, (preprocessing.width, preprocessing.height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(crop[:, ::-1] if view.mirror else crop, np.uint8)


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
