"""Evidence as pictures: the contact sheet of an answer.

Takes pixels, boxes and words; returns an RGB picture. Reads no files and knows no stores. Colours are Okabe & Ito's
(2008), which colour-blind people can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from reid.records import Box

Pixels = NDArray[np.uint8]
INK, PAPER, FAINT = (24, 32, 38), (250, 250, 247), (120, 128, 134)
MATCH, NEW, OTHER = (0, 114, 178), (213, 94, 0), (150, 156, 160)


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of a sheet. `pixels` None leaves the frame empty (a new individual has no photo); `box` in pixels of
    `pixels`.
    """

    title: str
    lines: tuple[str, ...] = ()
    pixels: Pixels | None = None
    box: Box | None = None
    colour: tuple[int, int, int] = OTHER


def contact_sheet(
    queries: Sequence[Tile], candidates: Sequence[Tile], *, heading: str, footer: str = "", tile: int = 320
) -> Pixels:
    """Query photos in the first row, candidates best first in the next; `(H, W, 3) uint8 RGB`. `tile` is a picture's
    width in pixels.
    """
    rows = [list(queries), list(candidates)]
    columns = max(len(row) for row in rows)
    picture = tile * 2 // 3
    cell = picture + 78
    margin, head = 16, 44
    width = columns * (tile + margin) + margin
    height = head + len(rows) * (cell + margin) + (34 if footer else 0)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, 10), heading, INK, font(22))
    for r, row in enumerate(rows):
        for c, one in enumerate(row):
            x, y = margin + c * (tile + margin), head + r * (cell + margin)
            _place(sheet, draw, one, x, y, tile, picture)
    if footer:
        draw.text((margin, height - 30), footer, FAINT, font(14))
    return np.asarray(sheet, np.uint8)


def _place(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, x: int, y: int, width: int, height: int) -> None:
    """One framed picture with its title and lines below."""
    draw.rectangle((x - 3, y - 3, x + width + 2, y + height + 2), outline=tile.colour, width=3, fill=(232, 234, 234))
    if tile.pixels is not None:
        photo = Image.fromarray(tile.pixels)
        factor = min(width / photo.width, height / photo.height)
        size = max(1, round(photo.width * factor)), max(1, round(photo.height * factor))
        left, top = x + (width - size[0]) // 2, y + (height - size[1]) // 2
        sheet.paste(photo.resize(size, Image.Resampling.LANCZOS), (left, top))
        if tile.box is not None:
            b = tile.box
            corners = (left + b.x0 * factor, top + b.y0 * factor, left + b.x1 * factor - 1, top + b.y1 * factor - 1)
            draw.rectangle(corners, outline=tile.colour, width=2)
    else:
        draw.text((x + width // 2, y + height // 2), "?", FAINT, font(64), anchor="mm")
    draw.text(
        (x, y + height + 8), fitted(draw, tile.title, 18, width), tile.colour if tile.colour != OTHER else INK, font(18)
    )
    for i, line in enumerate(tile.lines[:2]):
        draw.text((x, y + height + 32 + 19 * i), fitted(draw, line, 14, width), FAINT, font(14))


def fitted(draw: ImageDraw.ImageDraw, text: str, size: int, width: int) -> str:
    """`text` cut in its middle until it is at most `width` pixels wide."""
    shown = text
    while len(shown) > 4 and draw.textlength(shown, font(size)) > width:
        text = text[: len(text) // 2 - 1] + text[len(text) // 2 + 1 :]
        shown = text[: len(text) // 2] + "…" + text[len(text) // 2 :]
    return shown


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The typeface of every picture, `size` in pixels."""
    return ImageFont.load_default(size)
