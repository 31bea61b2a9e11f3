"""Photos in: every format upright, in RGB, decoded no larger than needed."""

from __future__ import annotations

import csv
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_photos import UPRIGHT, corners, encoded, exif_of, heic, picture, refused, stored, textured
from PIL import Image, ImageCms

from reid.images import (
    DecodedPhoto,
    load,
    load_bytes,
    perceptual_hash,
    probe,
    read,
)
from reid.records import Box, PhotoFacts


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


def test_threads_see_what_one_thread_sees() -> None:
    kinds = ["JPEG", "PNG", "TIFF", "WEBP"]
    files = [encoded(textured(300, 200, seed), kinds[seed % 4]) for seed in range(24)]

    def work(data: bytes) -> tuple[PhotoFacts, int]:
        photo = load_bytes(data)
        return photo.facts, perceptual_hash(read(photo, target=64).pixels)

    alone = [work(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, files * 4)) == alone * 4


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
