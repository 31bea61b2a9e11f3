"""A photo's bytes → its format, size, EXIF, and whether the file is whole. No pixel is decoded here.

The extension is never believed: the bytes say what a file is. `LIMITS` is the one place that says how large a photo
may be. This module knows file formats, and nothing of paths, catalogues or animals: what cannot be used raises
`Unusable`, which its caller turns into a PhotoError with the photo's name.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from reid.exif import Exif, read_exif

AGAIN = "copy it again from the camera or the original, or leave it out"
EXPORT = "export it as JPEG or PNG"
_FIRST_FRAME = "the first of several frames was used"
_BITS, _SUBFILE_TYPE, _SUB_IFDS, _DNG_VERSION = 258, 254, 330, 50706  # TIFF tags
_PILLOW_FORMATS = ("PNG", "TIFF", "WEBP", "AVIF", "GIF", "BMP", "JPEG")
# `warnings.catch_warnings` is not safe in threads: one of ours at a time, for reading headers, never while decoding.
_WARNINGS = threading.Lock()


@dataclass(frozen=True, slots=True)
class Limits:
    """What is accepted as a photo; what is beyond is refused from the header, before any pixel is decoded."""

    max_file_bytes: int = 512 * 2**20  # an uncompressed 16-bit TIFF of 80 megapixels
    max_megapixels: float = 160.0  # the largest survey cameras have 151
    max_side: int = 65_500  # the JPEG format's own
    min_side: int = 16  # pixels; less shows no animal


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its picture.

    `width` and `height` as stored; `orientation` 1 to 8 is what is still to be applied to decoded pixels (1 where the
    decoder turns them itself). `damage` is why the file is not whole, "" where it is.
    """

    format: str
    width: int
    height: int
    exif: Exif
    orientation: int = 1
    channels: int = 3
    bits: int = 8
    damage: str = ""
    notes: tuple[str, ...] = ()

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) after orientation."""
        return (self.width, self.height) if self.orientation < 5 else (self.height, self.width)


class Unusable(Exception):
    """A reason and a next step, before the photo's name is known."""

    def __init__(self, reason: str, next_step: str = AGAIN) -> None:
        super().__init__(reason)
        self.reason, self.next_step = reason, next_step


def read_header(data: bytes) -> Header:
    """Header of a file in memory. Raises Unusable; hostile bytes may raise anything a decoder's header reader can."""
    check_bytes(len(data))
    try:
        header = _READERS[sniff(data)](data)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        if isinstance(error, Image.DecompressionBombError):
            raise _too_many_pixels() from error
        raise Unusable("has a damaged header") from error
    _check_size(*header.upright)
    return header


def check_bytes(size: int) -> None:
    """Raise Unusable where a file is larger than the limit."""
    if size > LIMITS.max_file_bytes:
        raise Unusable(f"has {size / 2**20:.0f} MiB; the limit is {LIMITS.max_file_bytes / 2**20:.0f}", EXPORT)


def sniff(data: bytes) -> str:
    """The format by its first bytes; raises Unusable for what is no photo, saying what it seems to be."""
    if not data:
        raise Unusable("is empty (0 bytes)")
    head = data[:32]
    for magic, name in (
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF8", "GIF"),
        (b"BM", "BMP"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"II+\0", "TIFF"),
        (b"MM\0+", "TIFF"),
    ):
        if head.startswith(magic):
            if name == "TIFF" and head[8:10] == b"CR":
                break
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    brands = data[8 : min(len(data), struct.unpack(">I", data[:4])[0], 128)] if head[4:8] == b"ftyp" else b""
    if b"avif" in brands or b"avis" in brands:
        return "AVIF"
    if brands[:4] in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"):
        return "HEIC"
    raise Unusable(*_what_else(head))


def _what_else(head: bytes) -> tuple[str, str]:
    raws = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"IIU\0")
    if head.startswith(raws) or head[8:10] == b"CR" or head[4:12] == b"ftypcrx ":
        return "is a camera's raw file", EXPORT
    if head[4:8] == b"ftyp" or head[:4] in (b"RIFF", b"\x1aE\xdf\xa3"):
        return "is a video or sound recording, not a photo", "export single frames as JPEG"
    if head.startswith((b"%PDF", b"PK\x03\x04")):
        return "is a document or an archive, not a photo", "take the photos out of it"
    if not any(head):
        return "holds only zeros, as after an interrupted copy", AGAIN
    if head.lstrip()[:1] in (b"<", b"{", b"["):
        return "is text, not a photo (a web page saved under a photo's name?)", "download the photo itself"
    return "is not a photo: JPEG, PNG, TIFF, WebP, HEIC, AVIF, GIF and BMP are read", EXPORT


def _jpeg_header(data: bytes) -> Header:
    """Walk the markers up to the first scan; then see whether the scan reaches its end marker."""
    at, exif, size = 2, b"", (0, 0, 0)
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 4 > len(data):
            raise Unusable("is truncated inside its header")
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = at + 4
        if marker == 0xD9 or length < 2 or at + 2 + length > len(data):
            raise Unusable("is truncated inside its header")
        if marker == 0xE1 and not exif and data[body : body + 6] == b"Exif\0\0":
            exif = data[body : at + 2 + length]
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _, height, width, channels = struct.unpack_from(">BHHB", data, body)
            size = (width, height, channels)
        at += 2 + length
        if marker == 0xDA:
            break
    found = read_exif(exif) if exif else Exif()
    width, height, channels = size
    return Header("JPEG", width, height, found, found.orientation, channels, damage=_scan_damage(data, at))


def _scan_damage(data: bytes, scan: int) -> str:
    """Why a JPEG whose first scan starts at byte `scan` is not whole; "" where it is.

    Inside entropy-coded data a byte FF is always followed by 00, a restart mark or padding. So the first FF D9 after
    the scan's start is the end marker and nothing else (cameras may append what they like behind it), and a marker that
    cannot stand between scans means overwritten bytes, which libjpeg would paint over in grey without an error.
    """
    view = np.frombuffer(data, np.uint8, offset=scan)
    after = view[np.flatnonzero(view[:-1] == 0xFF) + 1]
    ends = np.flatnonzero(after == 0xD9)
    if not len(ends):
        return "is truncated: the picture stops before its end"
    after = after[: ends[0]]
    if (((after > 0x00) & (after < 0xC4)) | (after == 0xD8) | ((after >= 0xF0) & (after < 0xFE))).any():
        return "is damaged in the middle of its pixels"
    return ""


def _pillow_header(data: bytes) -> Header:
    if data[:4] == b"RIFF":
        _check_size(*_webp_size(data))  # Pillow's reader reserves the canvas as it opens
    image = pillow_open(data)
    name = str(image.format)
    with _quiet():
        notes = (_FIRST_FRAME,) if getattr(image, "is_animated", False) else ()
    if name == "TIFF":
        tags = cast(dict[int, Any], getattr(image, "tag_v2", {}))
        if _DNG_VERSION in tags or (_SUB_IFDS in tags and tags.get(_SUBFILE_TYPE) == 1):
            raise Unusable("is a camera's raw file", EXPORT)
        bits = max(tags.get(_BITS, (8,)))
        found = read_exif(data) if data[2:4] in (b"*\0", b"\0*") else Exif()
        return Header(name, *image.size, found, bits=bits, notes=notes)  # Pillow turns a TIFF as it loads it
    exif, bits, damage = image.info.get("exif", b""), 8, ""
    if name == "PNG":
        late, damage = _png_chunks(data)
        exif, bits = exif or late, data[24]
    found = read_exif(exif) if exif else Exif()
    return Header(name, *image.size, found, found.orientation, bits=bits, damage=damage, notes=notes)


def _heif_header(data: bytes) -> Header:
    image = open_heif(data)
    exif = image.info.get("exif") or b""
    notes = (_FIRST_FRAME,) if len(image) > 1 else ()
    width, height = image.size
    return Header("HEIC", width, height, read_exif(exif) if exif else Exif(), notes=notes)  # libheif turns by itself


def _png_chunks(data: bytes) -> tuple[bytes, str]:
    """The EXIF chunk wherever it stands (Pillow sees a late one only after decoding the pixels), and the damage."""
    at, exif = 8, b""
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            return exif, ""
        if kind == b"eXIf":
            exif = data[at + 8 : at + 8 + length]
        at += 12 + length
    return exif, "is truncated: the picture stops before its end"


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        packed = int.from_bytes(data[21:25], "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow's warnings kept back: what matters of them, our own checks say."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pillow_open(data: bytes) -> Image.Image:
    """Pillow's header reader; the pixels are decoded when the caller asks for them."""
    with _quiet():
        return Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS)


def open_heif(data: bytes) -> Any:
    """pillow-heif without registering itself in Pillow for the whole process; imported when the first HEIC comes."""
    import pillow_heif

    return pillow_heif.open_heif(data)


def _check_size(width: int, height: int) -> None:
    if width * height > LIMITS.max_megapixels * 1e6 or max(width, height) > LIMITS.max_side:
        raise _too_many_pixels(f"{width}×{height}")
    if min(width, height) < LIMITS.min_side:
        raise Unusable(
            f"is only {width}×{height} pixels; the shorter side must have {LIMITS.min_side}", "use the original"
        )


def _too_many_pixels(size: str = "") -> Unusable:
    limit = f"{LIMITS.max_megapixels:g} megapixels, {LIMITS.max_side} a side"
    return Unusable(f"claims {size or 'more'} pixels; the limit is {limit}", "scale it down or cut it into parts")


_READERS: dict[str, Callable[[bytes], Header]] = {
    "JPEG": _jpeg_header,
    "HEIC": _heif_header,
    **dict.fromkeys(("PNG", "TIFF", "WEBP", "AVIF", "GIF", "BMP"), _pillow_header),
}
