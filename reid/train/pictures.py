"""Decoded photos at working size, held in memory, so that an epoch costs training alone.

What is kept of each photo is a window wider than the one the network sees, so that augmented views can look beyond it:
`pixels (n, H, W, 3) uint8 RGB`, all of one size, and where in it the plain crop lies. Cut as production cuts
(`reid.crop`): widened, clipped to the photo, squashed.

Knows pixels, boxes and masks; no identities.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from reid import crop, images, masks
from reid.errors import InputError, PhotoError, TrainError
from reid.models import Preprocessing
from reid.records import Box, Failure
from reid.train.features import Source

Pixels = NDArray[np.uint8]
Progress = Callable[[int, int], None]  # photos done, photos in all

SLACK = 0.2  # share of the box's size that is kept beyond the plain crop, on each side
_BLOCK = 64  # photos read at once


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """`pixels (n, H, W, 3) uint8 RGB`; `windows (n, 4) float32`, x0, y0, x1, y1 of the plain crop as shares of the
    kept picture; `rows (n,) int64`, places in the list of sources; `outlines (n, H, W) uint8`, how much of each pixel is
    the animal (255: all), 0 where no mask says so, None where nobody asked.
    """

    pixels: Pixels
    windows: NDArray[np.float32]
    rows: NDArray[np.int64]
    failures: tuple[Failure, ...]
    outlines: Pixels | None = None

    def __len__(self) -> int:
        return len(self.rows)


def load(
    sources: Sequence[Source], seen: Preprocessing, progress: Progress | None = None, *, outlined: bool = False
) -> Pictures:
    """Read and cut all photos, and with `outlined` their masks, for a network that sees `seen`. Photos that cannot be
    read are reported and left out, masks reported.

    Raises:
        TrainError: they do not fit into this machine's memory.
    """
    kept = replace(
        seen,
        height=_kept(seen.height, seen.margin),
        width=_kept(seen.width, seen.margin),
        margin=seen.margin + SLACK,
    )
    size = len(sources) * kept.height * kept.width * (4 if outlined else 3)
    free = _memory()
    if size > 0.6 * free:
        raise TrainError(
            f"{len(sources)} photos at {kept.width}×{kept.height} pixels take {size / 1e9:.1f} GB of memory, "
            f"of {free / 1e9:.1f} GB",
            next_step="choose a smaller input, or train on fewer photos",
        )
    pixels = np.empty((len(sources), kept.height, kept.width, 3), np.uint8)
    windows = np.empty((len(sources), 4), np.float32)
    outlines = np.zeros(pixels.shape[:3], np.uint8) if outlined else None
    rows: list[int] = []
    failures: list[Failure] = []
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(sources), _BLOCK):
            block = sources[start : start + _BLOCK]
            for row, one in enumerate(pool.map(lambda source: _cut(source, kept, seen.margin, outlined), block), start):
                if isinstance(one, Failure):
                    failures.append(one)
                    continue
                pixels[len(rows)], windows[len(rows)], outline = one
                if isinstance(outline, Failure):
                    failures.append(outline)
                elif outlines is not None and outline is not None:
                    outlines[len(rows)] = outline
                rows.append(row)
            if progress is not None:
                progress(min(start + _BLOCK, len(sources)), len(sources))
    n = len(rows)
    found = None if outlines is None else outlines[:n]
    return Pictures(pixels[:n], windows[:n], np.array(rows, np.int64), tuple(failures), found)


def _kept(size: int, margin: float) -> int:
    """Pixels of the kept picture, at which the plain crop of a box inside its photo has its own size."""
    return round(size * (1 + 2 * (margin + SLACK)) / (1 + 2 * margin))


def _memory() -> float:
    """Bytes of memory of this machine; plenty where it cannot be told."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return float("inf")


def _cut(
    source: Source, kept: Preprocessing, margin: float, outlined: bool
) -> tuple[Pixels, NDArray[np.float32], Pixels | Failure | None] | Failure:
    """The kept picture of a source, where in it the plain crop lies, and with `outlined` its mask, cut likewise."""
    try:
        photo = images.load(source.path)
        drawn = source.drawn_width or photo.facts.width, source.drawn_height or photo.facts.height
        box = source.box or crop.whole(*drawn)
        pixels = images.read(photo).pixels
    except PhotoError as error:
        return Failure(str(source.path), error.code, error.message, error.next_step)
    scale = pixels.shape[1] / drawn[0], pixels.shape[0] / drawn[1]
    wide, plain = (window(box, m, drawn) for m in (kept.margin, margin))
    size = np.array([wide[2] - wide[0], wide[3] - wide[1]] * 2, np.float32)
    lies = (plain - np.array([wide[0], wide[1]] * 2, np.float32)) / size
    outline = _outline(source, kept, box, drawn) if outlined and source.mask is not None else None
    return crop.cut(pixels, box, kept, scale=scale), lies, outline


def _outline(source: Source, kept: Preprocessing, box: Box, drawn: tuple[int, int]) -> Pixels | Failure:
    """The mask of a source as its kept picture is cut, `(H, W)`."""
    assert source.mask is not None
    try:
        mask = masks.read(source.mask)
    except (InputError, OSError, cv2.error):
        return Failure(
            str(source.mask), InputError.code, f"the mask of {source.path} cannot be read: its own background stays",
            "enrol the photo again with --masks",
        )  # fmt: skip
    height, width = mask.shape
    grey = np.repeat(mask[:, :, None], 3, axis=2).astype(np.uint8) * 255
    return crop.cut(grey, box, kept, scale=(width / drawn[0], height / drawn[1]))[:, :, 0]


def window(box: Box, margin: float, size: tuple[int, int]) -> NDArray[np.float32]:
    """`box` widened by `margin` and clipped to a photo of (width, height) pixels: `(4,)` x0, y0, x1, y1."""
    dx, dy = margin * box.width, margin * box.height
    low = [min(max(box.x0 - dx, 0.0), size[0] - 1.0), min(max(box.y0 - dy, 0.0), size[1] - 1.0)]
    high = [min(max(box.x1 + dx, low[0] + 1), size[0]), min(max(box.y1 + dy, low[1] + 1), size[1])]
    return np.array(low + high, np.float32)
