"""How values that a database column cannot hold as they are become ones that it can: paths, hashes, vectors, text.

Pure functions, each with its inverse; nothing here knows a table.

- Paths are text: the bytes of the path as UTF-8, with `%` and every byte that is not valid UTF-8 written `%XX`. Almost
  every path so reads as itself, any path survives, and PostgreSQL, which refuses invalid UTF-8, takes all.
- Perceptual hashes are unsigned 64-bit and stored as the signed BIGINT of the same bits.
- Vectors are IEEE half floats, little-endian, `dim × 2` bytes without a header.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_ESCAPED = re.compile(rb"%([0-9A-F]{2})")
_UNSAFE = re.compile("[\x00\ud800-\udfff]")


def path_to_text(path: str | os.PathLike[str]) -> str:
    """A path as portable text; `text_to_path` gives it back byte for byte."""
    text = os.fsencode(path).replace(b"%", b"%25").decode("utf-8", "surrogateescape")
    if text.isascii():
        return text
    return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in text)


def text_to_path(text: str) -> Path:
    """The path that `path_to_text` was given."""
    if "%" not in text:
        return Path(text)
    return Path(os.fsdecode(_ESCAPED.sub(lambda m: bytes.fromhex(m[1].decode()), text.encode("utf-8"))))


def phash_to_signed(phash: int | None) -> int | None:
    """Unsigned 64-bit to the signed integer of the same bits."""
    if phash is None:
        return None
    if not 0 <= phash < 1 << 64:
        raise ValueError(f"perceptual hash {phash} is not an unsigned 64-bit integer")
    return phash - (1 << 64) if phash >= 1 << 63 else phash


def phash_to_unsigned(signed: int | None) -> int | None:
    """The inverse of `phash_to_signed`."""
    return None if signed is None else signed & (1 << 64) - 1


def vectors_to_bytes(vectors: NDArray[np.float32]) -> list[bytes]:
    """`(N, D)` floats → N byte strings of D little-endian half floats. ValueError where a value is not finite or
    overflows.
    """
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(vectors).astype("<f2")
    if not np.isfinite(half).all():
        raise ValueError("a vector holds NaN, infinity or a value beyond half precision (65504)")
    return [row.tobytes() for row in half]


def bytes_to_vectors(blobs: list[bytes], dim: int) -> NDArray[np.float32]:
    """N byte strings of D half floats → `(N, D) float32`."""
    return np.frombuffer(b"".join(blobs), dtype="<f2").reshape(len(blobs), dim).astype(np.float32)


def storable(text: str | None) -> str | None:
    """Text any database takes: NUL and lone surrogates (seen in broken EXIF) become U+FFFD."""
    return None if text is None else _UNSAFE.sub("\ufffd", text)


def normal_name(name: str) -> str:
    """An individual's name as it is kept: composed (NFC, so that a name from a macOS folder equals one typed), outer
    blanks stripped.

    ValueError when it is empty, longer than 200 characters, or holds control characters or undecodable bytes.
    """
    if name.isascii() and name.isprintable() and 0 < len(name) <= 200 and name[0] != " " != name[-1]:
        return name
    kept = unicodedata.normalize("NFC", name).strip()
    if not kept:
        raise ValueError("the name is empty")
    if len(kept) > 200:
        raise ValueError(f"the name is {len(kept)} characters long, more than 200")
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in kept):
        raise ValueError(f"the name {kept!r} holds control characters or undecodable bytes")
    return kept
