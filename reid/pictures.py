"""Evidence as pictures: two crops joined by their matches, one crop laid over the other, heat over a crop.

Pixels, points and words in; RGB pixels out. Must not know files, stores, identities, or how matches and heat came
about. Points are `(N, 2)` pixels (x, y) of the picture they belong to, the centre of the first pixel at (0, 0).

Colours are Okabe & Ito's (2008), which colour-blind people can tell apart: lines run from yellow over green to blue
by their place in the first crop, so that the eye can follow one of them; vermilion is kept for warnings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from reid.explain import FAINT, INK, MATCH, NEW, PAPER, Pixels, fitted, font

LINES = 60
"""Most matches drawn, strongest first: more hide what they should show."""
WIDTH = 1500
"""Pixels of the sheet on which two crops stand."""
TALLEST = 900
"""Pixels: most that a crop beside another takes of the screen's height."""
WIDE_ASPECT = 1.7
"""Crops wider than this stand one above the other, where they come out larger."""

_MARGIN, _LABEL, _GAP = 18, 22, 12
_PATH = np.array([(240, 228, 66), (0, 158, 115), (86, 180, 233), (230, 150, 200)], np.float64)
_FRAME = (255, 255, 255)
_FOR, _AGAINST = np.array(NEW, np.float32), np.array(MATCH, np.float32)

Points = NDArray[np.floating]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """One crop of a sheet. `box` XYXY in pixels of `pixels` is outlined where it is given."""

    pixels: Pixels
    label: str
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """Matches to draw: row i joins `left[i]` and `right[i]` (pixels of the two panels), `weight (M,)` says how much it
    counts, `outside (M,)` whether it lies outside the animal in either."""

    left: Points
    right: Points
    weight: NDArray[np.floating]
    outside: Bools

    def __len__(self) -> int:
        return len(self.left)


def no_links() -> Links:
    """Nothing to draw."""
    none = np.zeros((0, 2), np.float32)
    return Links(none, none, np.zeros(0, np.float32), np.zeros(0, bool))


def strongest(links: Links, most: int = LINES) -> Links:
    """The `most` links of greatest weight, strongest first; equal ones in their given order."""
    kept = np.argsort(-links.weight, kind="stable")[:most]
    return Links(links.left[kept], links.right[kept], links.weight[kept], links.outside[kept])


def joined(left: Panel, right: Panel, links: Links, *, heading: str, notes: Sequence[str] = ()) -> Pixels:
    """Two crops and the lines between their matches, `(H, W, 3) uint8 RGB`.

    At most `LINES` lines. Links outside the animal are vermilion with squares at their ends; the others follow the
    colours of the module's docstring, with rings.
    """
    sheet, corners, factors = _pair_sheet(left, right, heading, notes)
    drawn = strongest(links)
    a = (drawn.left + 0.5) * factors[0] + corners[0]
    b = (drawn.right + 0.5) * factors[1] + corners[1]
    across = np.argsort(np.argsort(drawn.left[:, 0], kind="stable")) / max(1, len(drawn) - 1)
    for row in range(len(drawn) - 1, -1, -1):  # weakest first, so that the strongest lie on top
        colour = NEW if drawn.outside[row] else along(float(across[row]))
        _line(sheet, a[row], b[row], colour)
    for row in range(len(drawn) - 1, -1, -1):
        colour = NEW if drawn.outside[row] else along(float(across[row]))
        for place in (a[row], b[row]):
            _mark(sheet, place, colour, square=bool(drawn.outside[row]))
    return sheet


def side_by_side(left: Panel, right: Panel, *, heading: str, notes: Sequence[str] = ()) -> Pixels:
    """Two crops with labels and nothing between them, laid out as `joined` does."""
    return _pair_sheet(left, right, heading, notes)[0]


def composed(top: Pixels, below: Sequence[Panel]) -> Pixels:
    """A picture with a row of labelled smaller ones below it, of its own width: one sheet for a report."""
    if not below:
        return top.copy()
    room = top.shape[1] - 2 * _MARGIN - _GAP * (len(below) - 1)
    aspects = [panel.pixels.shape[1] / panel.pixels.shape[0] for panel in below]
    height = max(1, round(room / sum(aspects)))
    sheet = Image.new("RGB", (top.shape[1], top.shape[0] + _LABEL + 14 + height + _MARGIN), PAPER)
    sheet.paste(Image.fromarray(top), (0, 0))
    draw, x, y = ImageDraw.Draw(sheet), _MARGIN, top.shape[0] + _LABEL + 8
    for panel, aspect in zip(below, aspects, strict=True):
        width = max(1, round(height * aspect))
        draw.text((x, y - _LABEL - 6), fitted(draw, panel.label, 20, width), INK, font(20))
        sheet.paste(Image.fromarray(enlarged(panel.pixels, width, height)), (x, y))
        x += width + _GAP
    return np.array(sheet, np.uint8)


def warp_pair(query: Pixels, candidate: Pixels, H: NDArray[np.float64]) -> tuple[Pixels, Pixels, Bools]:
    """`(warped query, candidate, covered)`, all of the candidate's height and width: a pair for a slider.

    `H (3, 3)` maps pixels of the query to pixels of the candidate. Where the query does not reach, the warped picture
    is mid-grey and `covered` False.
    """
    size = (candidate.shape[1], candidate.shape[0])
    warped = cv2.warpPerspective(query, H, size, flags=cv2.INTER_LINEAR, borderValue=(128, 128, 128))
    covered = cv2.warpPerspective(np.full(query.shape[:2], 255, np.uint8), H, size, flags=cv2.INTER_NEAREST) > 0
    return np.asarray(warped, np.uint8), candidate.copy(), np.asarray(covered, np.bool_)


def overlay(warped: Pixels, candidate: Pixels, covered: Bools) -> Pixels:
    """Half of each where `covered`, the candidate alone elsewhere."""
    mixed = ((warped.astype(np.uint16) + candidate + 1) // 2).astype(np.uint8)
    return np.where(covered[:, :, None], mixed, candidate)


def heat_over(pixels: Pixels, heat: NDArray[np.floating], *, scale: float | None = None) -> Pixels:
    """`heat (H, W)`, positive and negative, over the grey crop `(H, W, 3)`: vermilion where it is positive, blue where
    it is negative, clear where it is zero. `scale` is the heat of full colour; None: its own largest."""
    if heat.shape != pixels.shape[:2]:
        raise ValueError(f"heat {heat.shape} does not fit a crop of {pixels.shape[:2]}")
    top = float(np.abs(heat).max(initial=0.0)) if scale is None else scale
    share = np.clip(heat.astype(np.float32) / np.float32(max(top, 1e-12)), -1, 1)[:, :, None]
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)[:, :, None].astype(np.float32)
    light = 40 + grey * np.float32(215 / 255)  # black animals must show colour too
    tint = np.where(share > 0, _FOR, _AGAINST) * (np.float32(0.35) + light * np.float32(0.65 / 255))
    return np.asarray(np.rint(light + (tint - light) * (np.float32(0.85) * np.abs(share))), np.uint8)


def enlarged(pixels: Pixels, width: int, height: int) -> Pixels:
    """The picture at another size: area average where it shrinks, cubic where it grows."""
    shrinks = pixels.shape[1] > width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=how), np.uint8)


def _pair_sheet(
    left: Panel, right: Panel, heading: str, notes: Sequence[str]
) -> tuple[Pixels, list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """The sheet without lines; of each panel its top left corner on the sheet and sheet pixels per panel pixel,
    (x, y)."""
    sizes, corners, total = _placed(left.pixels, right.pixels)
    sheet = Image.new("RGB", (total[0], total[1] + 26 * len(notes)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 12), fitted(draw, heading, 26, total[0] - 2 * _MARGIN), INK, font(26))
    factors = []
    for panel, (width, height), (x, y) in zip((left, right), sizes, corners, strict=True):
        draw.text((x, y - _LABEL - 6), fitted(draw, panel.label, 20, width), INK, font(20))
        sheet.paste(Image.fromarray(enlarged(panel.pixels, width, height)), (x, y))
        factor = np.array([width / panel.pixels.shape[1], height / panel.pixels.shape[0]])
        factors.append(factor)
        if panel.box is not None:
            x0, y0, x1, y1 = np.array(panel.box) * np.tile(factor, 2) + np.tile((x, y), 2)
            draw.rectangle((x0 - 1, y0 - 1, x1, y1), outline=(0, 0, 0), width=1)
            draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=_FRAME, width=2)
    for i, note in enumerate(notes):
        draw.text((_MARGIN, total[1] - 6 + 26 * i), fitted(draw, note, 18, total[0] - 2 * _MARGIN), FAINT, font(18))
    return np.array(sheet, np.uint8), [np.array(c, np.float64) for c in corners], factors


def _placed(left: Pixels, right: Pixels) -> tuple[list[tuple[int, int]], list[tuple[int, int]], tuple[int, int]]:
    """Sizes and corners of two crops on a sheet, and the sheet's own size without notes; (width, height), (x, y)."""
    aspects = [p.shape[1] / p.shape[0] for p in (left, right)]
    top = 56 + _LABEL + 8
    if min(aspects) > WIDE_ASPECT:  # one above the other
        width = min(WIDTH - 2 * _MARGIN, round(TALLEST * 0.55 * min(aspects)))
        sizes = [(width, max(1, round(width / aspect))) for aspect in aspects]
        second = top + sizes[0][1] + _GAP + _LABEL + 8
        corners = [(_MARGIN, top), (_MARGIN, second)]
        return sizes, corners, (width + 2 * _MARGIN, second + sizes[1][1] + _MARGIN)
    room = WIDTH - 2 * _MARGIN - _GAP
    height = min(TALLEST, room / sum(aspects))
    sizes = [(max(1, round(height * aspect)), max(1, round(height))) for aspect in aspects]
    corners = [(_MARGIN, top), (_MARGIN + sizes[0][0] + _GAP, top)]
    return sizes, corners, (sum(w for w, _ in sizes) + _GAP + 2 * _MARGIN, top + round(height) + _MARGIN)


def along(share: float) -> tuple[int, int, int]:
    """The colour of a line at `share` (0 to 1) of the way from yellow to pink."""
    at = np.clip(share, 0, 1) * (len(_PATH) - 1)
    low = min(int(at), len(_PATH) - 2)
    r, g, b = np.rint(_PATH[low] + (_PATH[low + 1] - _PATH[low]) * (at - low)).astype(int)
    return int(r), int(g), int(b)


_SHIFT = 4  # bits behind the point in OpenCV's coordinates


def _fixed(place: NDArray[np.floating]) -> tuple[int, int]:
    return round(float(place[0]) * (1 << _SHIFT)), round(float(place[1]) * (1 << _SHIFT))


def _line(sheet: Pixels, a: NDArray[np.floating], b: NDArray[np.floating], colour: tuple[int, int, int]) -> None:
    """A thin line in the sheet, which is changed; a little clear, so that the animal shows through."""
    low = np.maximum(np.floor(np.minimum(a, b)).astype(int) - 3, 0)
    high = np.ceil(np.maximum(a, b)).astype(int) + 4
    part = sheet[low[1] : high[1], low[0] : high[0]]
    drawn = np.ascontiguousarray(part)
    cv2.line(drawn, _fixed(a - low), _fixed(b - low), colour, 2, cv2.LINE_AA, _SHIFT)
    part[:] = cv2.addWeighted(drawn, 0.75, np.ascontiguousarray(part), 0.25, 0)


def _mark(sheet: Pixels, place: NDArray[np.floating], colour: tuple[int, int, int], *, square: bool) -> None:
    """A small ring or square with a dark edge, in the sheet, which is changed."""
    for radius, ink, thick in ((6, (20, 20, 20), 4), (6, colour, 2)):
        if square:
            corner = np.array([radius, radius])
            cv2.rectangle(sheet, _fixed(place - corner), _fixed(place + corner), ink, thick, cv2.LINE_AA, _SHIFT)
        else:
            cv2.circle(sheet, _fixed(place), radius << _SHIFT, ink, thick, cv2.LINE_AA, _SHIFT)
