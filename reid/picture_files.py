"""The pictures of comparisons → files: lossless where they must lie on each other, small elsewhere; one sheet of all.

Knows names of pictures and folders; must not know what they show or where it came from. Whatever cannot be written is
an `InputError` that names the folder or file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from reid import pictures
from reid.errors import InputError
from reid.explain import INK, MATCH, NEW, PAPER, Pixels
from reid.images import printable
from reid.pictures import Panel

LOSSLESS = ("warp_a", "warp_b")
"""A pair for a slider, as PNG; the others are JPEG."""
SHEET_WIDTH = 1100
"""Pixels."""

Write = Callable[[str, Mapping[str, Pixels]], dict[str, str]]
"""Takes a folder below the page's ("" for its own) and pictures by name; gives their paths from the page."""


@contextmanager
def writing(folder: Path) -> Iterator[Write]:
    """A function that writes pictures into a folder below `folder`, beside the work that goes on; all are there at the
    end.

    Raises:
        InputError: the folder cannot be written.
    """
    waiting: list[Future[None]] = []
    with ThreadPoolExecutor(2) as pool:

        def write(below: str, drawn: Mapping[str, Pixels]) -> dict[str, str]:
            names = {name: f"{name}.{'png' if name in LOSSLESS else 'jpg'}" for name in drawn}
            paths = {name: f"{below}/{file}" if below else file for name, file in names.items()}
            waiting.extend(pool.submit(_save, folder / paths[name], drawn[name]) for name in drawn)
            return paths

        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield write
            for one in waiting:
                one.result()
        except OSError as error:
            raise _unwritable(folder, error) from error


def _save(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    if path.suffix == ".jpg":
        flags = [
            cv2.IMWRITE_JPEG_QUALITY,
            90,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        ]
    done, data = cv2.imencode(path.suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), flags)
    if not done:
        raise OSError(f"{path.name} cannot be encoded")
    path.write_bytes(data.tobytes())


def write_sheet(drawn: Mapping[str, Pixels], path: Path) -> None:
    """Everything on one picture, `SHEET_WIDTH` wide; PNG in 256 colours, which is small enough to mail."""
    captions = {"overlay": "A laid over B", "heat_a": "What counts in A", "heat_b": "What counts in B"}
    below = [Panel(drawn[name], words) for name, words in captions.items() if name in drawn]
    whole = pictures.composed(drawn["matches"], below) if "matches" in drawn else None
    if whole is None and len(below) > 1:
        whole = pictures.side_by_side(below[-2], below[-1], heading="What made the photos look alike to the model")
    if whole is None:
        raise InputError("there is nothing to draw on a sheet", source=printable(path), next_step="switch something on")
    picture = Image.fromarray(whole)
    if picture.width > SHEET_WIDTH:
        size = SHEET_WIDTH, round(picture.height * SHEET_WIDTH / picture.width)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    if path.suffix.lower() == ".png":
        picture = picture.quantize(palette=_palette(picture), dither=Image.Dither.FLOYDSTEINBERG)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be written ({error})", source=printable(path), next_step="name a .png") from error


def _palette(picture: Image.Image) -> Image.Image:
    """256 colours for `picture`, in which thin lines keep theirs: a yellow line must not come out in a warning's red."""
    colours = [*(pictures.along(share) for share in np.linspace(0, 1, 24)), NEW, MATCH, INK, PAPER]
    sample = picture.resize((320, 240), Image.Resampling.NEAREST)
    strip = np.repeat(np.array(colours, np.uint8), 400, axis=0)  # 400 pixels each
    every = np.concatenate([np.asarray(sample).reshape(-1, 3), strip])
    return Image.fromarray(every[None]).quantize(256)


def unused(folder: Path) -> Path:
    """`folder`, or where anything of that name is there already, the first of `<folder>-2`, `<folder>-3`, …"""
    names = (folder if n == 1 else folder.with_name(f"{folder.name}-{n}") for n in count(1))
    return next(path for path in names if not os.path.lexists(path))


def put(path: Path, text: str) -> Path:
    """Write a text file and the folders above it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    return path


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"the pictures cannot be written ({error.strerror or error})",
        source=printable(folder),
        next_step="name another folder",
    )
