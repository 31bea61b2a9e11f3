"""Every bad file is a typed error that names it and the next step."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_photos import UPRIGHT, chunk, corners, encoded, heic, picture, refused
from PIL import Image

from reid import headers
from reid.errors import PhotoError
from reid.images import (
    LIMITS,
    load,
    load_bytes,
    printable,
    probe,
    read,
)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIC"])
def test_a_wrong_extension_does_not_matter(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("photo.png" if kind != "PNG" else "photo.jpg")
    path.write_bytes(heic(picture()) if kind == "HEIC" else encoded(picture(), kind))
    assert probe(path).format == kind
    assert corners(read(path).pixels) == UPRIGHT


@pytest.mark.parametrize(
    "kind", ["JPEG", "PROGRESSIVE", "CMYK", "PNG", "PNG16", "TIFF", "TIFF16", "WEBP", "HEIC", "AVIF"]
)
@pytest.mark.parametrize("kept", [0.97, 0.6, 0.3, 0.02])
def test_a_truncated_photo_is_refused(tmp_path: Path, kind: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    if kind == "CMYK":
        data = encoded(Image.fromarray(noise).convert("CMYK"), "JPEG")
    elif kind == "PROGRESSIVE":
        data = encoded(noise, "JPEG", progressive=True)
    elif kind.endswith("16"):
        data = cv2.imencode(f".{kind[:-2].lower()}", noise.astype(np.uint16) * 257)[1].tobytes()
    else:
        data = heic(noise) if kind == "HEIC" else encoded(noise, kind)
    path = tmp_path / "cut.jpg"
    path.write_bytes(data)
    read(path)
    path.write_bytes(data[: int(len(data) * kept)])
    refused(path)
    path.write_bytes(data[: int(len(data) * kept)] + b"\0" * (len(data) - int(len(data) * kept)))
    if kind in ("JPEG", "PROGRESSIVE", "CMYK", "PNG"):  # as an interrupted copy leaves it: right size, zeros behind
        refused(path)


def test_a_jpeg_overwritten_in_the_middle_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encoded(np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8), "JPEG"))
    data[len(data) // 2 : len(data) // 2 + 4096] = np.random.default_rng(1).bytes(4096)
    path = tmp_path / "bad-sector.jpg"
    path.write_bytes(data)
    refused(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\0" * 4000, "only zeros"),
        (b"%PDF-1.7 ...", "document"),
        (b"PK\x03\x04" + b"\0" * 40, "archive"),
        (b"<!DOCTYPE html><html>not found</html>", "text"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "video"),
        (b"RIFF\x24\0\0\0AVI LIST", "video"),
        (b"FUJIFILMCCD-RAW 0201", "raw"),
        (b"II*\0\x10\0\0\0CR\x02\0", "raw"),
        (b"image_id,identity,path\n1,a,b\n", "is not a photo"),
        (b"\xff\xd8\xff\xe0", "truncated"),
        (b"\xff\xd8\xff\xd9" * 5, "truncated"),
        (b"\x89PNG\r\n\x1a\n" + b"garbage" * 20, "header"),
        (b"II*\0\xff\xff\xff\x7f", "header"),
        (b"RIFF\x24\0\0\0WEBPVP8 \x01", "header"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "header"),
        (b"BMnonsense that begins like a bitmap", "header"),
        (b"x", "is not a photo"),
    ],
)
def test_what_is_no_photo_is_a_typed_error_that_says_what_it_is(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "IMG_0001.JPG"
    path.write_bytes(content)
    error = refused(path)
    assert says in error.message
    assert str(error).startswith(f"{path}: {error.message}; ")


def test_a_dng_is_refused_as_raw_not_read_as_its_thumbnail(tmp_path: Path) -> None:
    path = tmp_path / "photo.dng"
    path.write_bytes(encoded(picture(), "TIFF", tiffinfo={50706: b"\x01\x04\0\0"}))
    assert "raw" in refused(path).message


def test_paths_that_are_no_readable_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone.jpg").message == "does not exist"
    assert "folder" in refused(tmp_path).message
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    assert "regular file" in refused(pipe).message
    loop = tmp_path / "loop.jpg"
    loop.symlink_to(loop)
    assert "cannot be read" in refused(loop).message
    with pytest.raises(PhotoError, match="null"):
        load("a\0b.jpg")


def test_a_file_without_the_right_to_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.jpg"
    path.write_bytes(encoded(picture(), "JPEG"))
    if os.geteuid() == 0:  # root may read everything: let the system call say no

        def denied(*_: Any) -> bytes:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "read_bytes", denied)
    else:
        path.chmod(0)
    assert "right" in refused(path).next_step


def png_bomb(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        png_bomb(60_000, 60_000),
        png_bomb(14_000, 12_000),
        png_bomb(2_000_000, 20),
        encoded(picture(), "GIF").replace(struct.pack("<HH", 96, 64), struct.pack("<HH", 65_000, 65_000)),
        b"RIFF"
        + struct.pack("<I", 30)
        + b"WEBPVP8X"
        + struct.pack("<I", 10)
        + b"\0" * 4
        + b"\xff\x3f\0" * 2
        + b"\0" * 8,
    ],
    ids=["png", "png-small", "png-wide", "gif", "webp"],
)
def test_a_bomb_is_refused_from_its_header(tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(data)
    with pytest.raises(PhotoError) as caught:
        probe(path)
    assert f"{LIMITS.max_megapixels:g} megapixels" in caught.value.message
    assert caught.value.next_step


def test_between_pillows_warning_and_our_limit_a_large_photo_is_read_without_a_warning() -> None:
    assert load_bytes(png_bomb(12_000, 9_000)).facts.width == 12_000  # pytest makes warnings errors


def test_a_jpeg_that_claims_more_pixels_than_the_limit_is_refused() -> None:
    data = bytearray(encoded(picture(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(PhotoError, match="60000×60000"):
        load_bytes(bytes(data))


def test_sizes_beyond_the_limits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "icon.png"
    path.write_bytes(encoded(picture(96, 8), "PNG"))
    assert "only 96×8 pixels" in refused(path).message
    monkeypatch.setattr(headers, "LIMITS", headers.Limits(max_file_bytes=100))
    assert "the limit is" in refused(path).message


def test_a_png_whose_text_is_a_bomb_is_refused(tmp_path: Path) -> None:
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 200_000_000))
    data = encoded(picture(), "PNG")
    path = tmp_path / "text.png"
    path.write_bytes(data[:33] + text + data[33:])
    refused(path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow only Unicode file names")
def test_a_name_that_is_not_utf_8_survives_reading_failing_and_printing(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/baleine_\xe9t\xe9.jpg"))
    path.write_bytes(encoded(picture(), "JPEG"))
    assert probe(path).path == path
    path.write_bytes(b"")
    error = refused(path)
    assert str(error).encode("utf-8").decode() == str(error)
    assert error.source.endswith("baleine_\\xe9t\\xe9.jpg")
    assert printable("a\nb\x1b[31m\x85é.jpg") == "a\\x0ab\\x1b[31m\\x85é.jpg"


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"]), st.data())
def test_damaged_bytes_give_a_photo_or_a_typed_error_and_nothing_else(kind: str, data: st.DataObject) -> None:
    good = bytearray(encoded(picture(), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        photo = load_bytes(bytes(good))
        pixels = read(photo).pixels
    except PhotoError as error:
        assert error.next_step
    else:
        assert pixels.shape == (photo.facts.height, photo.facts.width, 3)
