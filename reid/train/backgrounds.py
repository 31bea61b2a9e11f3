"""Backgrounds exchanged between photos: of two views of an animal the animal alone is then the same.

Animals are photographed where they live, at the same waterhole or on the same boat, and a network that is taught by such
photos learns the place as well (Tian et al. 2018, CVPR: Eliminating Background-bias for Robust Person Re-identification).
Where a mask says what is animal, the rest may be another photo's, its own animal filled in with what is around it.

Knows kept pictures and their outlines; no identities.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.train.pictures import Pictures

Pixels = NDArray[np.uint8]
LEAST = 0.05  # share of a picture that an animal covers at least, for its outline to be believed
AROUND = 0.05  # share that is background for certain, at least, for it to be lent
_COARSE = 32  # pixels of the longer side, where backgrounds are filled in
_EDGE = 0.034  # of the longer side: how wide what is around an outline may still show its animal


def usable(kept: Pictures) -> NDArray[np.int64]:
    """The pictures whose animal is outlined, with some background that can be told from it: `(k,)`, ascending."""
    outlines = kept.outlines
    if outlines is None:
        return np.empty(0, np.int64)
    return np.array([row for row, one in enumerate(outlines) if one.any() and _believed(one)], np.int64)


def _believed(outline: Pixels) -> bool:
    return float((outline > 127).mean()) >= LEAST and 1 - float(_hole(outline).mean()) >= AROUND


def exchanged(
    kept: Pictures, among: NDArray[np.int64], rows: NDArray[np.int64], share: float, rng: np.random.Generator
) -> Pictures:
    """The pictures `rows (B,)`, a `share` of those that are `among (k,)` (see `usable`; two or more) on the background
    of another of them; without outlines.
    """
    outlines = kept.outlines
    assert outlines is not None
    pixels = kept.pixels[rows]
    drawn = np.isin(rows, among) & (rng.random(len(rows)) < share)
    others = rng.integers(0, len(among) - 1, len(rows))
    others += others >= np.searchsorted(among, rows)  # never its own
    turned = rng.random(len(rows)) < 0.5
    for at in np.flatnonzero(drawn).tolist():
        other = int(among[others[at]])
        background = bare(kept.pixels[other], outlines[other])
        weight = outlines[rows[at]].astype(np.float32)[:, :, None] / 255
        behind = background[:, ::-1] if turned[at] else background
        pixels[at] = np.rint(pixels[at] * weight + behind * (1 - weight))
    return replace(kept, pixels=pixels, windows=kept.windows[rows], rows=kept.rows[rows], outlines=None)


def bare(pixels: Pixels, outline: Pixels) -> Pixels:
    """A picture `(H, W, 3)` without what `outline (H, W)` covers: filled in, smoothly, with what is around it."""
    height, width = outline.shape
    hole = _hole(outline)
    scale = _COARSE / max(height, width)
    small = (max(2, round(width * scale)), max(2, round(height * scale)))
    around = np.asarray(1 - hole, np.float32)
    seen = np.asarray(cv2.resize(around, small, interpolation=cv2.INTER_AREA), np.float64)
    colours = np.asarray(cv2.resize(pixels * around[:, :, None], small, interpolation=cv2.INTER_AREA), np.float64)
    floor = 1e-18  # the mean of all background speaks where none is near
    weights = np.full_like(seen, floor)
    total = np.broadcast_to(floor * colours.sum((0, 1)) / max(float(seen.sum()), 1e-6), colours.shape)
    for reach in (1.0, 3.0, 9.0):  # what is near counts a thousand times what is further
        total = 1e3 * total + cv2.GaussianBlur(colours, (0, 0), reach)
        weights = 1e3 * weights + cv2.GaussianBlur(seen, (0, 0), reach)
    coarse = np.asarray(total / weights[:, :, None], np.float32)
    filled = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    soft = cv2.GaussianBlur(hole, (0, 0), _edge(outline) / 3)
    share = np.minimum(2 * soft, 1)[:, :, None]  # all of it inside the hole
    return np.asarray(np.clip(np.rint(pixels * (1 - share) + filled * share), 0, 255), np.uint8)


def _hole(outline: Pixels) -> NDArray[np.float32]:
    """1 where the animal is or may be, else 0, `(H, W)`."""
    reach = 2 * round(_edge(outline) / 2) + 1
    return np.asarray(cv2.dilate((outline > 63).astype(np.float32), np.ones((reach, reach), np.uint8)), np.float32)


def _edge(outline: Pixels) -> float:
    return float(max(2.0, _EDGE * max(outline.shape)))
