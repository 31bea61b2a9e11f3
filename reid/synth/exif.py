"""The camera's own note in a JPEG: when and where, as an EXIF block (Exif 2.3, little-endian TIFF).

Bytes in, bytes out; knows nothing of pictures.
"""

from __future__ import annotations

import struct
from datetime import datetime

_ASCII, _LONG, _RATIONAL, _BYTE, _SHORT = 2, 4, 5, 1, 3
_SIZES = {_ASCII: 1, _LONG: 4, _RATIONAL: 8, _BYTE: 1, _SHORT: 2}
Entry = tuple[int, int, bytes]  # tag, type, packed value


def with_exif(
    jpeg: bytes, taken_at: datetime, latitude: float, longitude: float, camera: str = "Synthetic Fluke Camera"
) -> bytes:
    """The JPEG with an APP1 block: date, position (degrees, WGS 84), camera, orientation upright."""
    if jpeg[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG: the first two bytes must be FF D8")
    moment = _text(taken_at.strftime("%Y:%m:%d %H:%M:%S"))
    maker, _, model = camera.partition(" ")
    head = [
        (0x010F, _ASCII, _text(maker)),
        (0x0110, _ASCII, _text(model)),
        (0x0112, _SHORT, struct.pack("<H", 1)),
        (0x0132, _ASCII, moment),
    ]
    shot = [(0x9000, 7, b"0230"), (0x9003, _ASCII, moment), (0x9004, _ASCII, moment)]
    gps = [
        (0x0000, _BYTE, bytes((2, 3, 0, 0))),
        (0x0001, _ASCII, _text("N" if latitude >= 0 else "S")),
        (0x0002, _RATIONAL, _degrees(latitude)),
        (0x0003, _ASCII, _text("E" if longitude >= 0 else "W")),
        (0x0004, _RATIONAL, _degrees(longitude)),
    ]
    at_shot = 8 + _length([*head, (0x8769, _LONG, b"0000"), (0x8825, _LONG, b"0000")])
    at_gps = at_shot + _length(shot)
    links = [(0x8769, _LONG, struct.pack("<L", at_shot)), (0x8825, _LONG, struct.pack("<L", at_gps))]
    tiff = (
        struct.pack("<2sHL", b"II", 42, 8)
        + _directory([*head, *links], 8)
        + _directory(shot, at_shot)
        + _directory(gps, at_gps)
    )
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def _text(value: str) -> bytes:
    """ASCII with its closing zero."""
    return value.encode("ascii") + b"\0"


def _degrees(value: float) -> bytes:
    """Degrees, minutes and seconds as three rationals, seconds to 1/10,000."""
    seconds = round(abs(value) * 3600 * 10_000)
    degrees, rest = divmod(seconds, 3600 * 10_000)
    minutes, seconds = divmod(rest, 60 * 10_000)
    return struct.pack("<6L", degrees, 1, minutes, 1, seconds, 10_000)


def _count(entry: Entry) -> int:
    """How many values an entry holds."""
    return len(entry[2]) // _SIZES.get(entry[1], 1)


def _length(entries: list[Entry]) -> int:
    """Bytes a directory takes, its outlying values included."""
    return 6 + 12 * len(entries) + sum(len(e[2]) + len(e[2]) % 2 for e in entries if len(e[2]) > 4)


def _directory(entries: list[Entry], start: int) -> bytes:
    """One image file directory at offset `start`; values beyond four bytes follow it."""
    table, heap = struct.pack("<H", len(entries)), b""
    at = start + 6 + 12 * len(entries)
    for tag, kind, value in entries:
        table += struct.pack("<HHL", tag, kind, _count((tag, kind, value)))
        if len(value) <= 4:
            table += value.ljust(4, b"\0")
        else:
            table += struct.pack("<L", at + len(heap))
            heap += value + b"\0" * (len(value) % 2)
    return table + struct.pack("<L", 0) + heap
