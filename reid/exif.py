"""EXIF block → orientation, date, place and camera.

A reader of its own, some hundred lines, because a broken block must cost a note and never the photo, must not print
warnings, and must be safe in threads. It knows the TIFF structure inside EXIF (JEITA CP-3451, Exif 2.32) and nothing
of files or pixels. A TIFF file *is* such a structure, so the same function reads one.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from datetime import datetime

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I"}
_LONGEST_TEXT = 512
_DATE = re.compile(r"(\d{4})[:\-/.](\d{1,2})[:\-/.](\d{1,2})[ T](\d{1,2}):(\d{2})(?::(\d{2}))?")

_MAKE, _MODEL, _ORIENTATION, _CHANGED, _EXIF_IFD, _GPS_IFD = 0x010F, 0x0110, 0x0112, 0x0132, 0x8769, 0x8825
_TAKEN, _DIGITISED = 0x9003, 0x9004
_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE = 1, 2, 3, 4

_Value = str | tuple[float, ...]
_Tags = dict[int, _Value]


@dataclass(frozen=True, slots=True)
class Exif:
    """What a block says; every field has the value of "not said" where it is absent or broken.

    `orientation` 1 to 8; `taken_at` naive local time without fractions; degrees WGS 84, north and east positive.
    """

    orientation: int = 1
    taken_at: datetime | None = None
    latitude: float | None = None
    longitude: float | None = None
    camera: str | None = None
    notes: tuple[str, ...] = ()


class _Broken(Exception):
    """The structure points outside itself."""


def read_exif(block: bytes) -> Exif:
    """Read one EXIF block (with or without the `Exif\\0\\0` prefix). Never raises: what is broken becomes a note."""
    if block[:6] == b"Exif\0\0":
        block = block[6:]
    notes: list[str] = []
    try:
        order = {b"II": "<", b"MM": ">"}[block[:2]]
        (first,) = struct.unpack_from(order + "I", block, 4)
        main = _directory(block, order, first)
    except (KeyError, struct.error, _Broken):
        return Exif(notes=("its EXIF block is broken and was ignored",))
    parts: list[_Tags] = []
    for tag in (_EXIF_IFD, _GPS_IFD):
        try:
            parts.append(_directory(block, order, _integer(main, tag)) if tag in main else {})
        except (struct.error, _Broken):
            notes.append("its EXIF block is partly broken")
            parts.append({})
    inner, gps = parts
    orientation = _integer(main, _ORIENTATION, 1)
    if not 1 <= orientation <= 8:
        if orientation:
            notes.append(f"its EXIF orientation {orientation} does not exist, taken as upright")
        orientation = 1
    latitude, longitude = _place(gps, notes)
    return Exif(
        orientation=orientation,
        taken_at=_date(main, inner, notes),
        latitude=latitude,
        longitude=longitude,
        camera=_camera(main),
        notes=tuple(dict.fromkeys(notes)),
    )


def _directory(block: bytes, order: str, offset: int) -> _Tags:
    """One image file directory as tag → text or numbers; entries that point outside the block are left out."""
    if not 8 <= offset <= len(block) - 2:
        raise _Broken
    (count,) = struct.unpack_from(order + "H", block, offset)
    if offset + 2 + 12 * count > len(block):
        raise _Broken
    tags: _Tags = {}
    for i in range(count):
        entry = offset + 2 + 12 * i
        tag, kind, n = struct.unpack_from(order + "HHI", block, entry)
        size = _SIZES.get(kind, 0) * n
        where = entry + 8 if size <= 4 else struct.unpack_from(order + "I", block, entry + 8)[0]
        if size == 0 or size > 8 * _LONGEST_TEXT or where + size > len(block):
            continue
        if kind == 2:
            tags[tag] = _text(block[where : where + min(size, _LONGEST_TEXT)])
        elif kind in _INTEGERS:
            tags[tag] = tuple(map(float, struct.unpack_from(f"{order}{n}{_INTEGERS[kind]}", block, where)))
        elif kind in (5, 10):
            flat = struct.unpack_from(f"{order}{2 * n}{'I' if kind == 5 else 'i'}", block, where)
            pairs = zip(flat[::2], flat[1::2], strict=True)
            tags[tag] = tuple(top / bottom if bottom else float("nan") for top, bottom in pairs)
    return tags


def _text(raw: bytes) -> str:
    """UTF-8 where it is, else Latin-1; up to the first NUL, without control characters."""
    raw = raw.split(b"\0", 1)[0]
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return "".join(c for c in text if c.isprintable()).strip()


def _integer(tags: _Tags, tag: int, default: int = 0) -> int:
    value = tags.get(tag)
    return int(value[0]) if isinstance(value, tuple) and value and value[0] == value[0] else default


def _word(tags: _Tags, tag: int) -> str:
    value = tags.get(tag)
    return value if isinstance(value, str) else ""


def parse_date(text: str) -> datetime | None:
    """`2019:07:30 09:15:00` in the spellings cameras use, fractions and zones dropped; None where it is no date."""
    found = _DATE.match(text.strip())
    if not found:
        return None
    try:
        year, month, day, hour, minute, second = (int(part or 0) for part in found.groups())
        value = datetime(year, month, day, hour, minute, second)
    except ValueError:
        return None
    return value if 1826 <= value.year <= 2200 else None


def _date(main: _Tags, inner: _Tags, notes: list[str]) -> datetime | None:
    """DateTimeOriginal, else DateTimeDigitized, else DateTime (the last change of the file: said in a note)."""
    for tags, tag in ((inner, _TAKEN), (inner, _DIGITISED), (main, _CHANGED)):
        value = parse_date(_word(tags, tag))
        if value is not None:
            if tag == _CHANGED:
                notes.append("its date is that of the file's last change")
            return value
    return None


def _camera(main: _Tags) -> str | None:
    """`Make Model`; only the model where it repeats the make (`NIKON CORPORATION`, `NIKON D850` → `NIKON D850`)."""
    make, model = _word(main, _MAKE), _word(main, _MODEL)
    if make and model and model.lower().startswith(make.split()[0].lower()):
        return model
    return " ".join(part for part in (make, model) if part) or None


def _place(gps: _Tags, notes: list[str]) -> tuple[float | None, float | None]:
    """Decimal degrees; (None, None) where absent. An exact 0, 0 is a receiver without a fix."""
    if _LATITUDE not in gps and _LONGITUDE not in gps:
        return None, None
    latitude = _degrees(gps.get(_LATITUDE), _word(gps, _LATITUDE_REF), "S", 90.0)
    longitude = _degrees(gps.get(_LONGITUDE), _word(gps, _LONGITUDE_REF), "W", 180.0)
    if latitude is None or longitude is None or (latitude == 0.0 and longitude == 0.0):
        notes.append("its GPS position is not usable")
        return None, None
    return latitude, longitude


def _degrees(value: _Value | None, reference: str, negative: str, most: float) -> float | None:
    if not isinstance(value, tuple) or not 1 <= len(value) <= 3:
        return None
    angle = sum(part / 60.0**i for i, part in enumerate(value) if part == part)
    if value[0] != value[0] or not 0.0 <= angle <= most:
        return None
    return -angle if reference.upper().startswith(negative) else angle
