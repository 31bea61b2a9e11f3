"""Facts from the header: date, place, camera and orientation, and what becomes of broken ones."""

from __future__ import annotations

import hashlib
import struct
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_photos import UPRIGHT, chunk, corners, encoded, exif_of, heic, picture, stored, textured
from PIL import Image

from reid.exif import read_exif
from reid.images import (
    load_bytes,
    probe,
    read,
)
from reid.records import PhotoFacts


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
