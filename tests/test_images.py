"""Photos in: every format upright, facts from the header, every bad file a typed error naming it and the next step."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

from reid import headers
from reid.errors import PhotoError
from reid.exif import read_exif
from reid.images import (
    LIMITS,
    DecodedPhoto,
    hamming,
    load,
    load_bytes,
    perceptual_hash,
    printable,
    probe,
    read,
)
from reid.records import Box, PhotoFacts

QUARTERS = (
    (30, 200, 30),
    (200, 30, 30),
    (200, 30, 30),
    (30, 30, 200),
)  # top left, top right, bottom left, bottom right


def picture(width: int = 96, height: int = 64) -> NDArray[np.uint8]:
    """An upright picture whose corners tell every orientation apart: green, red / red, blue."""
    image = np.empty((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = QUARTERS[0]
    image[: height // 2, width // 2 :] = QUARTERS[1]
    image[height // 2 :, : width // 2] = QUARTERS[2]
    image[height // 2 :, width // 2 :] = QUARTERS[3]
    return image


def textured(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth random picture: content at every scale, compressible like a photo."""
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def corners(image: NDArray[np.uint8]) -> tuple[str, ...]:
    """Names of the corner colours, clockwise from the top left."""
    found = (image[4, 4], image[4, -5], image[-5, -5], image[-5, 4])
    return tuple("RGB"[int(np.argmax(pixel))] for pixel in found)


UPRIGHT = ("G", "R", "B", "R")


def stored(orientation: int) -> NDArray[np.uint8]:
    """The pixels a camera stores so that `orientation` makes `picture()` of them: the inverse, by index arithmetic."""
    upright = picture()
    height, width = upright.shape[:2]
    shape = (height, width, 3) if orientation < 5 else (width, height, 3)
    out = np.empty(shape, np.uint8)
    for y in range(height):
        for x in range(width):
            r, b = width - 1 - x, height - 1 - y
            row, column = {
                1: (y, x), 2: (y, r), 3: (b, r), 4: (b, x), 5: (x, y), 6: (r, y), 7: (r, b), 8: (x, b),
            }[orientation]  # fmt: skip
            out[row, column] = upright[y, x]
    return out


def encoded(image: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def exif_of(**values: Any) -> Image.Exif:
    exif = Image.Exif()
    for name, value in values.items():
        exif[{"orientation": 0x112, "make": 0x10F, "model": 0x110, "changed": 0x132}[name]] = value
    return exif


def heic(image: NDArray[np.uint8] | Image.Image, **options: Any) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pil = image if isinstance(image, Image.Image) else Image.fromarray(image)
    pillow_heif.from_pillow(pil).save(buffer, quality=90, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def refused(path: Path) -> PhotoError:
    """The error of decoding `path`; it must name the photo and a next step."""
    with pytest.raises(PhotoError) as caught:
        read(path)
    assert caught.value.source == printable(path)
    assert caught.value.next_step
    return caught.value


# -------------------------------------------------------------------------------------------------- formats and pixels


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "AVIF"])
def test_every_format_gives_the_same_upright_rgb_picture(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo"
    path.write_bytes(encoded(picture(), kind))
    photo = load(path)
    decoded = read(photo)
    assert (photo.facts.format, photo.facts.width, photo.facts.height) == (kind, 96, 64)
    assert (decoded.pixels.shape, decoded.pixels.dtype, decoded.scale) == ((64, 96, 3), np.uint8, 1.0)
    assert decoded.pixels.flags.c_contiguous
    assert corners(decoded.pixels) == UPRIGHT
    assert np.abs(decoded.pixels.astype(int) - picture()).mean() < 4


def test_heic_is_read_without_registering_a_global_opener(tmp_path: Path) -> None:
    path = tmp_path / "phone.HEIC"
    path.write_bytes(heic(picture()))
    before = set(Image.registered_extensions().values())
    assert probe(path).format == "HEIC"
    assert corners(read(path).pixels) == UPRIGHT
    assert set(Image.registered_extensions().values()) == before


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "HEIC"])
def test_orientation_is_applied_once_in_every_format(orientation: int, kind: str) -> None:
    exif = exif_of(orientation=orientation)
    if kind == "HEIC":
        data = heic(stored(orientation), exif=exif.tobytes())
    else:
        data = encoded(stored(orientation), kind, exif=exif)
    photo = load_bytes(data)
    assert (photo.facts.width, photo.facts.height) == (96, 64)
    assert corners(read(photo).pixels) == UPRIGHT


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_16_bit_tiff(orientation: int) -> None:
    ok, plain = cv2.imencode(".tiff", stored(orientation)[:, :, ::-1].astype(np.uint16) * 257)
    assert ok
    data = bytearray(plain.tobytes())
    # OpenCV writes no orientation: append a copy of the directory that has one
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    entries = [bytes(data[at + 2 + 12 * i : at + 14 + 12 * i]) for i in range(count)]
    entries = [entry for entry in entries if entry[:2] != struct.pack("<H", 0x112)]
    entries.append(struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0))
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2])[0])
    struct.pack_into("<I", data, 4, len(data))
    data += struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    photo = load_bytes(bytes(data))
    assert (photo.facts.width, photo.facts.height, photo.header.bits) == (96, 64, 16)
    assert corners(read(photo).pixels) == UPRIGHT


def test_grey_palette_and_one_bit_pictures_become_rgb() -> None:
    grey = Image.fromarray(picture()).convert("L")
    for image, kind in ((grey, "JPEG"), (grey, "PNG"), (grey.convert("1"), "PNG"), (grey.convert("P"), "GIF")):
        pixels = read(encoded(image, kind)).pixels
        assert pixels.shape == (64, 96, 3)
        assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all()
    palette = Image.fromarray(picture()).quantize(8)
    assert corners(read(encoded(palette, "PNG")).pixels) == UPRIGHT


def test_grey_heic_becomes_rgb() -> None:
    pixels = read(heic(Image.fromarray(picture()).convert("L"))).pixels
    assert pixels.shape == (64, 96, 3)
    assert (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_full_16_bits_are_rounded_to_8(extension: str) -> None:
    deep = np.random.default_rng(3).integers(0, 65_536, (40, 50, 3), np.uint16)
    decoded = read(cv2.imencode(extension, deep[:, :, ::-1])[1].tobytes())
    expected = np.array([[[round(255 * int(v) / 65_535) for v in pixel] for pixel in row] for row in deep])
    assert (decoded.pixels == expected).all()
    assert decoded.notes == ()


@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_12_bits_stored_in_16_are_not_left_black(extension: str) -> None:
    deep = np.random.default_rng(3).integers(0, 4096, (40, 50), np.uint16)
    decoded = read(cv2.imencode(extension, deep)[1].tobytes())
    expected = np.rint(deep * (255 / 4095)).astype(np.uint8)
    assert (decoded.pixels == expected[:, :, None]).all()
    assert decoded.notes == ("its 16-bit values fill only 12 bits and were scaled from there",)


def test_transparent_parts_lie_over_mid_grey_with_a_note() -> None:
    rgba = np.dstack([picture(), np.full((64, 96), 255, np.uint8)])
    opaque = read(encoded(rgba, "PNG"))
    assert (opaque.pixels == picture()).all() and opaque.notes == ()
    rgba[:, :, 3] = 0
    rgba[32:, :, 3] = 128
    mixed = read(encoded(rgba, "PNG"))
    assert (mixed.pixels[:32] == 128).all()
    for y, x in ((40, 5), (40, 90)):
        want = [round((int(c) * 128 + 128 * 127) / 255) for c in picture()[y, x]]
        assert np.abs(mixed.pixels[y, x].astype(int) - want).max() <= 1
    assert mixed.notes == ("its transparent parts were filled with grey",)
    deep = rgba.astype(np.uint16) * 257
    deep[:, :, :3] = deep[:, :, 2::-1]
    assert np.abs(read(cv2.imencode(".png", deep)[1].tobytes()).pixels.astype(int) - mixed.pixels).max() <= 1


def test_cmyk_without_a_profile_is_converted_plainly_and_said_so() -> None:
    decoded = read(encoded(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=95))
    assert corners(decoded.pixels) == UPRIGHT
    assert decoded.notes == ("its CMYK colours were converted without a profile",)


def test_cmyk_with_a_broken_profile_still_gives_a_photo() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()  # not one for CMYK
    for bad in (b"nonsense", profile):
        decoded = read(encoded(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=95, icc_profile=bad))
        assert corners(decoded.pixels) == UPRIGHT


def test_floating_point_pixels_are_refused_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "depth.tif"
    path.write_bytes(encoded(np.ones((40, 40), np.float32), "TIFF"))
    assert "8 or 16 bits" in refused(path).next_step


# ---------------------------------------------------------------------------------------------------- reduced decoding


@pytest.mark.parametrize(
    ("box", "target", "reduction"),
    [
        (None, None, 1),
        (None, 1200, 1),
        (None, 600, 2),
        (None, 150, 8),
        (None, 10, 8),
        (Box(100, 100, 900, 500), 224, 2),
        (Box(100, 100, 900, 500), 200, 4),
        (Box(100, 100, 900, 500), 100, 8),
        (Box(100, 100, 900, 500), (200, 200), 2),
        (Box(100, 100, 150, 120), 224, 1),
    ],
)
def test_a_large_jpeg_is_decoded_no_larger_than_the_crop_needs(
    box: Box | None, target: int | tuple[int, int] | None, reduction: int
) -> None:
    photo = load_bytes(encoded(textured(1203, 803), "JPEG"))
    decoded = read(photo, box=box, target=target)
    assert decoded.scale == 1 / reduction
    assert decoded.pixels.shape == (803 // reduction, 1203 // reduction, 3)


def test_a_box_lands_on_the_same_animal_at_every_scale_and_orientation() -> None:
    upright = np.full((800, 1200, 3), 90, np.uint8)
    upright[240:560, 320:960] = (250, 240, 20)
    box = Box(320, 240, 960, 560, 0.7, "user")
    for orientation, quarter_turns in ((1, 0), (6, 1), (3, 2), (8, 3)):
        data = encoded(np.rot90(upright, quarter_turns), "JPEG", exif=exif_of(orientation=orientation), quality=95)
        for target in (None, 300, 150, 80):
            decoded = read(data, box=box, target=target)
            inside = decoded.to_decoded(box)
            assert (inside.confidence, inside.origin) == (0.7, "user")
            x0, y0, x1, y1 = (round(v) for v in (inside.x0, inside.y0, inside.x1, inside.y1))
            assert decoded.pixels[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1, 0].min() > 200
            outside = decoded.pixels.copy()
            outside[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = 90
            assert outside[..., 0].max() < 140


def test_other_formats_are_decoded_whole_whatever_the_target() -> None:
    assert read(encoded(textured(400, 300), "PNG"), target=20).scale == 1.0


# ---------------------------------------------------------------------------------------------------------- the header


def gps(latitude: tuple[Any, ...], north: str, longitude: tuple[Any, ...], east: str) -> dict[int, Any]:
    return {1: north, 2: latitude, 3: east, 4: longitude}


def tiff_with(block: bytes) -> bytes:
    """`picture()` as an uncompressed TIFF whose first directory also holds the entries of an EXIF block."""
    assert block[:4] == b"MM\0*"
    (at,) = struct.unpack_from(">I", block, 4)
    (count,) = struct.unpack_from(">H", block, at)
    entries = [block[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(count)]
    pixels = picture().tobytes()
    body = block + struct.pack(">HHH", 8, 8, 8) + pixels
    for tag, kind, n, value in (
        (256, 3, 1, 96), (257, 3, 1, 64), (258, 3, 3, len(block)), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, len(block) + 6), (277, 3, 1, 3), (278, 3, 1, 64), (279, 4, 1, len(pixels)),
    ):  # fmt: skip
        inline = kind == 3 and n == 1  # short values stand at the left of their four bytes
        entries.append(struct.pack(">HHIHH" if inline else ">HHII", tag, kind, n, value, *([0] if inline else [])))
    entries.sort()
    directory = struct.pack(">H", len(entries)) + b"".join(entries) + struct.pack(">I", 0)
    return body[:4] + struct.pack(">I", len(body)) + body[8:] + directory


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "HEIC"])
def test_date_place_and_camera_are_read_by_themselves(tmp_path: Path, kind: str) -> None:
    exif = exif_of(make="NIKON CORPORATION\0", model="NIKON D850", changed="2024:05:06 07:08:09")
    exif.get_ifd(0x8769).update({0x9003: "2019:07:30 09:15:42", 0x9004: "2020:01:01 00:00:00", 0x9291: "77"})
    exif.get_ifd(0x8825).update(gps((21.0, 30.0, 36.0), "S", (174.0, 45.5, 0.0), "W"))
    image = Image.fromarray(picture())
    if kind == "TIFF":
        data = tiff_with(exif.tobytes()[6:])
    else:
        data = heic(image, exif=exif.tobytes()) if kind == "HEIC" else encoded(image, kind, exif=exif)
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    facts = probe(path)
    assert facts == PhotoFacts(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        width=96,
        height=64,
        format=kind,
        size_bytes=len(data),
        taken_at=datetime(2019, 7, 30, 9, 15, 42),
        latitude=pytest.approx(-21.51, abs=1e-6),
        longitude=pytest.approx(-174.758333, abs=1e-6),
        camera="NIKON D850",
    )


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("Canon", "Canon EOS 5D Mark IV", "Canon EOS 5D Mark IV"),
        ("SONY", "ILCE-7M3", "SONY ILCE-7M3"),
        ("", "Pixel 8", "Pixel 8"),
        ("GoPro", "", "GoPro"),
        ("  ", "", None),
    ],
)
def test_the_camera_is_named_once(make: str, model: str, camera: str | None) -> None:
    assert read_exif(exif_of(make=make, model=model).tobytes()).camera == camera


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2019:07:30 09:15:42", datetime(2019, 7, 30, 9, 15, 42)),
        ("2019-07-30T09:15:42.731+02:00", datetime(2019, 7, 30, 9, 15, 42)),
        ("2019:07:30 09:15", datetime(2019, 7, 30, 9, 15)),
        ("0000:00:00 00:00:00", None),
        ("2019:13:41 09:15:42", None),
        ("    :  :     :  :  ", None),
    ],
)
def test_dates_in_the_spellings_of_cameras(text: str, date: datetime | None) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = text
    assert read_exif(exif.tobytes()).taken_at == date


def test_the_date_of_the_last_change_is_used_only_for_want_of_better_and_said_so() -> None:
    found = read_exif(exif_of(changed="2024:05:06 07:08:09").tobytes())
    assert found.taken_at == datetime(2024, 5, 6, 7, 8, 9)
    assert found.notes == ("its date is that of the file's last change",)


@pytest.mark.parametrize(
    "place",
    [
        gps((0.0, 0.0, 0.0), "N", (0.0, 0.0, 0.0), "E"),
        gps((95.0, 0.0, 0.0), "N", (10.0, 0.0, 0.0), "E"),
        {1: "N", 2: (10.0, 0.0, 0.0)},
    ],
)
def test_an_impossible_place_is_dropped_with_a_note(place: dict[int, Any]) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825).update(place)
    found = read_exif(exif.tobytes())
    assert (found.latitude, found.longitude) == (None, None)
    assert found.notes == ("its GPS position is not usable",)


def test_a_png_tells_its_exif_even_behind_the_pixels() -> None:
    data = encoded(stored(6), "PNG")
    block = exif_of(orientation=6, model="Scanner").tobytes()[6:]
    late = data[:-12] + chunk(b"eXIf", block) + data[-12:]
    photo = load_bytes(late)
    assert (photo.facts.width, photo.facts.height, photo.facts.camera) == (96, 64, "Scanner")
    assert corners(read(photo).pixels) == UPRIGHT


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_corrupt_exif_block_never_raises(data: st.DataObject) -> None:
    exif = exif_of(make="Canon", model="Canon EOS", orientation=6, changed="2024:05:06 07:08:09")
    exif.get_ifd(0x8825).update(gps((21.0, 30.0, 36.0), "S", (174.0, 45.5, 0.0), "W"))
    block = bytearray(exif.tobytes())
    for _ in range(data.draw(st.integers(1, 12))):
        block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    found = read_exif(bytes(block[: data.draw(st.integers(0, len(block)))]))
    assert 1 <= found.orientation <= 8


def test_a_photo_with_corrupt_exif_is_used_with_a_note(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        good = encoded(picture(), kind, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f garbage")
        photo = load_bytes(good)
        decoded = read(photo)
        assert decoded.notes == ("its EXIF block is broken and was ignored",)
        assert corners(decoded.pixels) == UPRIGHT
    assert capfd.readouterr() == ("", "")


def test_an_impossible_orientation_is_taken_as_upright() -> None:
    photo = load_bytes(encoded(picture(), "JPEG", exif=exif_of(orientation=11)))
    assert photo.facts.notes == ("its EXIF orientation 11 does not exist, taken as upright",)
    assert corners(read(photo).pixels) == UPRIGHT


def test_probing_decodes_no_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(textured(2000, 1500), "JPEG"))

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(cv2, "imdecode", forbidden)
    monkeypatch.setattr(Image.Image, "load", forbidden)
    assert (probe(path).width, probe(path).phash) == (2000, None)


def test_what_cameras_append_behind_the_picture_does_no_harm() -> None:
    data = encoded(picture(), "JPEG") + b"\0" * 500 + b"motion photo \xff\xd8 \xff\xd9 video"
    assert corners(read(data).pixels) == UPRIGHT


def test_a_multi_picture_jpeg_is_a_jpeg_without_notes() -> None:
    second = Image.fromarray(textured(40, 40))
    data = encoded(picture(), "MPO", save_all=True, append_images=[second])
    photo = load_bytes(data)
    assert (photo.facts.format, photo.facts.notes) == ("JPEG", ())
    assert corners(read(photo).pixels) == UPRIGHT


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_used_with_a_note(kind: str) -> None:
    frames = [Image.fromarray(picture()), Image.fromarray(textured(96, 64)), Image.fromarray(textured(96, 64, 1))]
    decoded = read(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert corners(decoded.pixels) == UPRIGHT
    assert decoded.notes == ("the first of several frames was used",)


# ----------------------------------------------------------------------------------------------------------- bad files


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


def test_threads_see_what_one_thread_sees() -> None:
    kinds = ["JPEG", "PNG", "TIFF", "WEBP"]
    files = [encoded(textured(300, 200, seed), kinds[seed % 4]) for seed in range(24)]

    def work(data: bytes) -> tuple[PhotoFacts, int]:
        photo = load_bytes(data)
        return photo.facts, perceptual_hash(read(photo, target=64).pixels)

    alone = [work(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, files * 4)) == alone * 4


# ----------------------------------------------------------------------------------------------------- perceptual hash


def reference_hash(rgb: NDArray[np.uint8]) -> int:
    """The same definition with loops: block means, cosine sums, signs."""
    height, width = rgb.shape[:2]
    grey = rgb.astype(float) @ np.array([0.299, 0.587, 0.114])
    ys, xs = ([size * i // 32 for i in range(33)] for size in (height, width))
    small = np.array([[grey[ys[i] : ys[i + 1], xs[j] : xs[j + 1]].mean() for j in range(32)] for i in range(32)])
    bits = 0
    for v in range(8):
        for u in range(8):
            total = 0.0
            for y in range(32):
                for x in range(32):
                    total += small[y, x] * np.cos((2 * y + 1) * v * np.pi / 64) * np.cos((2 * x + 1) * u * np.pi / 64)
            bits = bits << 1 | int(total > 0.5 and (u, v) != (0, 0))
    return bits


def test_the_hash_is_the_signs_of_low_cosine_coefficients() -> None:
    rgb = textured(320, 256, 5)
    assert hamming(perceptual_hash(rgb), reference_hash(rgb)) <= 1  # rounding of the means to 8 bits


def test_the_hash_hardly_changes_with_the_decoded_scale_or_after_saving_again() -> None:
    distances = []
    for seed in range(12):
        photo = load_bytes(encoded(textured(1601, 1203, seed), "JPEG", quality=92))
        full = read(photo)
        again = encoded(cv2.resize(full.pixels, (800, 601), interpolation=cv2.INTER_AREA), "JPEG", quality=60)
        hashes = [perceptual_hash(read(photo, target=t).pixels) for t in (800, 400, 200)]
        hashes.append(perceptual_hash(read(again).pixels))
        distances += [hamming(perceptual_hash(full.pixels), other) for other in hashes]
    assert max(distances) <= 3
    assert np.mean(np.array(distances) <= 2) > 0.95


def test_a_plain_surface_hashes_to_zero_and_a_mirrored_photo_to_something_else() -> None:
    assert perceptual_hash(np.full((50, 60, 3), 77, np.uint8)) == 0
    photo = textured(300, 200)
    assert hamming(perceptual_hash(photo), perceptual_hash(np.ascontiguousarray(photo[:, ::-1]))) > 10


def test_hamming_counts_differing_bits() -> None:
    assert (hamming(0, 0), hamming(0, 2**64 - 1), hamming(0b1011, 0b0010)) == (0, 64, 2)


def test_read_gives_a_decoded_photo_from_path_bytes_or_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(), "PNG"))
    results = [read(path), read(str(path)), read(path.read_bytes()), read(load(path))]
    assert all(isinstance(r, DecodedPhoto) and (r.pixels == picture()).all() for r in results)


def test_real_photos_read_as_their_table_says(shared_data: Path) -> None:
    with open(shared_data / "nyala" / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))[::60]
    for row in rows:
        decoded = read(shared_data / "nyala" / row["path"])
        assert max(decoded.pixels.shape[:2]) <= 640
        aspect = decoded.pixels.shape[1] / decoded.pixels.shape[0]
        assert aspect == pytest.approx(int(row["original_width"]) / int(row["original_height"]), rel=0.02)
