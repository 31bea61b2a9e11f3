"""Where exactly the animal is in a photo: polygons, run lengths or a picture → a mask of the upright photo's size.

Spellings are those of COCO (a list of polygons; run lengths as a list of counts or as COCO's own text) and of
wildlife-datasets tables (one flat polygon, either of the former as text, or the path of a picture, non-zero on the
animal). Knows files of masks and arrays; no animals, no stores.

Conventions: masks are `(H, W) bool` of the upright photo's size, True on the animal. Polygons are in pixels of the
photo as it was when they were drawn (`declared` (width, height)); run lengths and pictures bring their own size. A
mask of another size is scaled to the photo's, if it has the photo's shape.

Source: the mask format of the COCO API (T.-Y. Lin, P. Dollár), run lengths column by column, absence first.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.errors import InputError
from reid.keypoints import crop_key
from reid.records import Mask, Sighting

Bools = NDArray[np.bool_]
SHAPE_TOLERANCE = 0.02  # of width ÷ height: a mask made of a scaled photo is off by a pixel or so
_PICTURES = (".png", ".tif", ".tiff", ".bmp", ".webp", ".gif")


def mask_of(value: Any, find: Callable[[str], Path | None] = lambda cell: None) -> Mask | None:
    """A table's cell or a COCO `segmentation` → Mask; None where nothing is said. `find` knows where pictures lie.

    Raises:
        ValueError: neither polygons, run lengths nor a picture that is there.
    """
    if isinstance(value, str):
        cell = value.strip()
        if cell.lower() in ("", "nan", "none", "null", "[]"):
            return None
        if cell[0] not in "[{(":
            picture = find(cell)
            if picture is None:
                raise ValueError(f"there is no mask '{cell[:80]}'")
            return Mask(picture=picture)
        try:
            value = json.loads(cell)
        except ValueError:
            try:
                value = ast.literal_eval(cell)  # numbers and quotes as Python prints them; runs nothing
            except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
                raise ValueError(f"segmentation {cell[:40]!r} is not understood") from error
    if value is None or (isinstance(value, list | tuple) and not len(value)):
        return None
    return Mask(text=json.dumps(_plain(value)))


def _plain(value: Any) -> Any:
    """Polygons as a list of flat lists, or `{"size": [h, w], "counts": …}`; ValueError for anything else."""
    if isinstance(value, dict):
        counts = value.get("counts")
        if isinstance(counts, bytes):
            counts = counts.decode("ascii")
        try:
            height, width = (int(n) for n in value["size"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError("run lengths without a size [height, width]") from error
        if not (isinstance(counts, str) or (isinstance(counts, list) and all(type(n) is int for n in counts))):
            raise ValueError("run lengths without counts")
        if min(height, width) < 1:
            raise ValueError(f"run lengths of size {height}×{width}")
        return {"size": [height, width], "counts": counts}
    if not isinstance(value, list | tuple):
        raise ValueError("a segmentation is a list of polygons or run lengths")
    polygons = [value] if isinstance(value[0], int | float) else list(value)
    out = []
    for polygon in polygons:
        try:
            flat = [float(n) for n in np.asarray(polygon, np.float64).ravel()]
        except (TypeError, ValueError) as error:
            raise ValueError("a polygon is a list of numbers [x1, y1, x2, y2, …]") from error
        if len(flat) < 6 or len(flat) % 2 or not np.isfinite(flat).all():
            raise ValueError("a polygon needs three points [x1, y1, x2, y2, x3, y3, …]")
        out.append(flat)
    return out


def raster(mask: Mask, width: int, height: int, declared: tuple[int, int] | None = None, source: str = "") -> Bools:
    """The mask `(height, width)` of the upright photo; `declared` (width, height) is what polygons were drawn on.

    Raises:
        InputError: the picture cannot be read, or is of another shape than the photo.
    """
    if mask.picture is not None:
        return fitted(read(mask.picture), width, height, str(mask.picture))
    said = json.loads(mask.text)
    if isinstance(said, dict):
        high, wide = said["size"]
        return fitted(run_lengths(said["counts"], high, wide, source), width, height, source)
    sx, sy = (1.0, 1.0) if declared is None else (width / declared[0], height / declared[1])
    canvas = np.zeros((height, width), np.uint8)
    for flat in said:
        points = np.asarray(flat, np.float64).reshape(-1, 2) * (sx, sy) - 0.5  # COCO's corner → centre of pixels
        points = np.clip(points, -4.0 * max(width, height), 4.0 * max(width, height))
        cv2.fillPoly(canvas, [np.rint(points * 16).astype(np.int32)], 1, shift=4)
    return canvas > 0


def read(path: Path) -> Bools:
    """A mask picture `(H, W)`: grey or colour not black, or with transparency not transparent. InputError."""
    data = np.fromfile(path, np.uint8) if path.is_file() else np.zeros(0, np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    if pixels is None:
        raise InputError(
            "no mask could be read there", source=str(path), next_step="give a picture that is not black on the animal"
        )
    if pixels.ndim == 2:
        return np.asarray(pixels != 0)
    if pixels.shape[2] in (2, 4) and not pixels[:, :, -1].all():
        return np.asarray(pixels[:, :, -1] != 0)
    return np.asarray((pixels[:, :, :3] != 0).any(axis=2))


def fitted(mask: Bools, width: int, height: int, source: str = "") -> Bools:
    """The mask brought to the photo's size; InputError where its shape is not the photo's."""
    high, wide = mask.shape
    if (high, wide) == (height, width):
        return mask
    if abs(wide * height / (high * width) - 1) > SHAPE_TOLERANCE:
        raise InputError(
            f"the mask is {wide}×{high} pixels, the photo {width}×{height}",
            source=source,
            next_step="give a mask of the upright photo's size",
        )
    return np.asarray(cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0)


def run_lengths(counts: Sequence[int] | str, height: int, width: int, source: str = "") -> Bools:
    """COCO's run lengths → `(height, width)`: runs go down the columns, the first one says how much is absent."""
    runs = _counts(counts, source) if isinstance(counts, str) else [int(n) for n in counts]
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise InputError(
            f"run lengths of {sum(runs)} pixels for a mask of {width}×{height}",
            source=source,
            next_step="export the masks again",
        )
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def _counts(text: str, source: str) -> list[int]:
    """COCO's text: groups of 5 bits from the lowest, each a character from 48, the 6th bit for more to come; signed,
    and from the third run on the difference to the run before the last."""
    out: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise InputError("run lengths that are no COCO text", source=source, next_step="export the masks again")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        out.append(value + (out[-2] if len(out) > 2 else 0))
        value = shift = 0
    return out


def bounds(mask: Bools) -> tuple[float, float, float, float] | None:
    """The smallest XYXY that holds all of the mask; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def spelled(mask: Bools) -> str:
    """The mask as COCO's run lengths in JSON, `{"size": [height, width], "counts": text}`: what `mask_of` reads."""
    flat = np.concatenate([[False], mask.T.ravel(), [not mask.T.ravel()[-1]] if mask.size else []]).astype(bool)
    runs = np.diff(np.flatnonzero(np.diff(flat)), prepend=0).tolist()
    out: list[str] = []
    for place, run in enumerate(runs):
        value, more = run - runs[place - 2] if place > 2 else run, True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            out.append(chr(48 + bits + (32 if more else 0)))
    return json.dumps({"size": [*mask.shape], "counts": "".join(out)})


def encoded(mask: Bools) -> bytes:
    """The mask as a PNG of one bit a pixel: the same bytes for the same mask."""
    written, data = cv2.imencode(".png", mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])
    assert written
    return data.tobytes()


def attached(sightings: Sequence[Sighting], folder: Path) -> tuple[list[Sighting], int]:
    """Sightings with the masks that lie in a folder under their photos' names, where they bring none; and how many
    were found.

    Raises:
        InputError: there is no such folder, or no mask in it is of any of the photos.
    """
    found = {path: beside(folder, path) for path in {s.path for s in sightings}} if folder.is_dir() else {}
    if not any(found.values()):
        raise InputError(
            "no masks of these photos there",
            source=str(folder),
            next_step="give a folder of pictures (.png) named as the photos are",
        )
    out = []
    for one in sightings:
        picture = found.get(one.path)
        out.append(replace(one, mask=Mask(picture=picture)) if picture is not None and one.mask is None else one)
    return out, sum(picture is not None for picture in found.values())


def beside(folder: Path, photo: Path) -> Path | None:
    """The picture in a folder of masks that bears the photo's name, `a.jpg` → `a.png` or `a.jpg.png`, first in one called
    as the photo's folder is (`place_of`); None for none.
    """
    for inside in (place_of(folder, photo).parent, folder):
        for name in (photo.stem, photo.name):
            for suffix in _PICTURES:
                path = inside / f"{name}{suffix}"
                if path.is_file():
                    return path
    return None


def place_of(folder: Path, photo: Path) -> Path:
    """Where a mask that is drawn for a photo goes in a folder of masks: photos of two animals' folders may bear one name."""
    return folder / Path(os.path.abspath(photo)).parent.name / f"{photo.name}.png"


@dataclass(frozen=True, slots=True)
class MaskStore:
    """Masks on disk, one PNG for each (content hash, box): `root/<aa>/<sha256>.png`, one bit a pixel, of the upright
    photo's size. They are what a table said, and cannot be made again from the photos.
    """

    root: Path

    def path(self, content_hash: str, box: tuple[float, float, float, float]) -> Path:
        """Where the mask of this box is, or would be."""
        key = crop_key(content_hash, box)
        return self.root / key[:2] / f"{key}.png"

    def get(self, content_hash: str, box: tuple[float, float, float, float]) -> Bools | None:
        """The mask of this box; None where there is none. InputError where it is damaged."""
        path = self.path(content_hash, box)
        return read(path) if path.exists() else None

    def put(self, content_hash: str, box: tuple[float, float, float, float], png: bytes) -> bool:
        """Keep a mask as `encoded` gave it, replacing what was there in one step; whether it was another one."""
        path = self.path(content_hash, box)
        if path.exists() and path.read_bytes() == png:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            aside.write_bytes(png)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        return True
