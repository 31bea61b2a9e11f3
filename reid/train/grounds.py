"""What is behind the animals, exchanged between photos: of two views of an animal the animal alone is then the same.

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
LEAST, MOST = 0.05, 0.9  # share of a picture that an outline covers, for it to be believed
_COARSE = 8  # times smaller, where grounds are filled in
_EDGE = 9  # pixels around an outline that may still show its animal


def usable(kept: Pictures) -> NDArray[np.int64]:
    """The pictures whose animal is outlined, with some ground around it."""
    if kept.outlines is None:
        return np.empty(0, np.int64)
    covered = (kept.outlines > 127).mean(axis=(1, 2))
    return np.flatnonzero((covered >= LEAST) & (covered <= MOST))


def exchanged(
    kept: Pictures, among: NDArray[np.int64], rows: NDArray[np.int64], share: float, rng: np.random.Generator
) -> Pictures:
    """The pictures `rows (B,)`, a `share` of those `among` (see `usable`) on the ground of another of them."""
    pixels = kept.pixels[rows]
    outlines = kept.outlines
    assert outlines is not None
    drawn = np.isin(rows, among) & (rng.random(len(rows)) < share)
    others = rng.choice(among, len(rows))
    turned = rng.random(len(rows)) < 0.5
    for at in np.flatnonzero(drawn).tolist():
        other = int(others[at])
        ground = bare(kept.pixels[other], outlines[other])
        weight = outlines[rows[at]].astype(np.float32)[:, :, None] / 255
        behind = ground[:, ::-1] if turned[at] else ground
        pixels[at] = np.rint(pixels[at] * weight + behind * (1 - weight))
    return replace(kept, pixels=pixels, windows=kept.windows[rows], rows=kept.rows[rows], outlines=outlines[rows])


def bare(pixels: Pixels, outline: NDArray[np.uint8]) -> Pixels:
    """A picture `(H, W, 3)` without what `outline (H, W)` covers: filled in, smoothly, with what is around it."""
    height, width = outline.shape
    hole = cv2.dilate((outline > 63).astype(np.float32), np.ones((_EDGE, _EDGE), np.uint8))
    small = (max(2, width // _COARSE), max(2, height // _COARSE))
    around = np.asarray(1 - hole, np.float32)
    seen = cv2.resize(around, small, interpolation=cv2.INTER_AREA)
    colours = cv2.resize(pixels * around[:, :, None], small, interpolation=cv2.INTER_AREA)
    total, weights = np.zeros_like(colours), np.full_like(seen, 1e-9)
    for reach in (1.0, 3.0, 9.0):  # what is near counts a thousand times what is further
        total = 1e3 * total + cv2.GaussianBlur(colours, (0, 0), reach)
        weights = 1e3 * weights + cv2.GaussianBlur(seen, (0, 0), reach)
    coarse = np.asarray(total / weights[:, :, None], np.float32)
    filled = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    soft = np.minimum(2 * cv2.GaussianBlur(hole, (0, 0), _EDGE / 3), 1)[:, :, None]  # all of it inside the hole
    return np.asarray(np.clip(np.rint(pixels * (1 - soft) + filled * soft), 0, 255), np.uint8)
