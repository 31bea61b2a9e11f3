"""Two photos compared: numbers and pictures on rendered flukes, and what is said where something cannot be shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from reid import images, intake, synth
from reid.compare import SWITCHED_OFF, Outside, compare
from reid.embed import unit_rows
from reid.errors import InputError, PhotoError
from reid.keypoints import describe
from reid.look import Eye, Options, Seen, look
from reid.models import Preprocessing
from reid.records import Box, Sighting
from reid.verify import verify

QUICK = Options(heat=False)


def means(crops: np.ndarray) -> np.ndarray:
    """A small, honest embedding: the means of 8 × 8 parts, less the crop's own mean."""
    small = np.stack([cv2.resize(c, (8, 8), interpolation=cv2.INTER_AREA) for c in crops.astype(np.float32)])
    rows = small.reshape(len(crops), -1)
    return unit_rows(rows - rows.mean(axis=1, keepdims=True))


EYE = Eye(Preprocessing(64, 128, (127.5,) * 3, (127.5,) * 3, margin=0.1), means)


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Path, Box, np.ndarray], ...]:
    """One whale photographed twice: path, box and mask of each."""
    folder, whale = tmp_path_factory.mktemp("pair"), synth.fluke(4, 0)
    plain = synth.View(seed=1, fill=0.62, aspect=1.7, splash=0.1, spray=0.0, defocus=0.2)
    other = replace(plain, seed=2, roll=0.12, yaw=0.15, fill=0.5, offset_x=0.08, offset_y=-0.05, exposure=1.15)
    found = []
    for name, view in (("a", plain), ("b", other)):
        photo = synth.render(whale, view)
        found.append((save(folder / f"{name}.png", photo.pixels), photo.box, photo.mask))
    return tuple(found)


def seen(pair: tuple[tuple[Path, Box, np.ndarray], ...], options: Options = QUICK) -> tuple[Seen, Seen]:
    a, b = (look(path, EYE, options, box=box) for path, box, _ in pair)
    return a, b


def correlation(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    grey = [cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[where].astype(float) for x in (a, b)]
    return float(np.corrcoef(grey[0], grey[1])[0, 1])


def test_the_warped_pair_is_of_one_size_and_correlates_far_more_than_before(pair) -> None:
    a, b = seen(pair)
    found = compare(a, b, QUICK)
    assert found.verification is not None and found.verification.inliers >= 20
    warped, plain = found.pictures["warp_a"], found.pictures["warp_b"]
    assert warped.shape == plain.shape == found.pictures["overlay"].shape == b.window.shape
    assert (plain == b.window).all()
    before = cv2.resize(a.window, (b.window.shape[1], b.window.shape[0]))
    assert correlation(warped, plain, b.inside) > 0.7
    assert correlation(warped, plain, b.inside) > correlation(before, plain, b.inside) + 0.25


def test_the_numbers_are_those_of_the_boxes_as_a_query_verifies_them(pair) -> None:
    a, b = seen(pair)
    found = compare(a, b, QUICK)
    crops = []
    for path, box, _ in pair:
        x0, y0, x1, y1 = (round(v) for v in (box.x0, box.y0, box.x1, box.y1))
        crops.append(images.read(path).pixels[y0:y1, x0:x1])
    expected = verify(*(describe(np.ascontiguousarray(crop)) for crop in crops))
    assert found.verification is not None
    assert (found.verification.status, found.verification.matches, found.verification.inliers) == (
        expected.status, expected.matches, expected.inliers,
    )  # fmt: skip
    assert found.verification.H == pytest.approx(expected.H)
    assert found.cosine == pytest.approx(float(a.vector @ b.vector), abs=1e-6)
    assert (found.box_a, found.box_b) == (replace(pair[0][1]), replace(pair[1][1]))


def test_a_large_photo_is_described_by_the_pixels_that_a_query_describes(pair, tmp_path: Path) -> None:
    path, box, _ = pair[0]
    small, times = images.read(path).pixels, 4
    large = cv2.resize(small, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)
    file = tmp_path / "large.jpg"
    cv2.imwrite(str(file), large[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    around = Box(*(times * v for v in (box.x0, box.y0, box.x1, box.y1)))
    near = look(file, EYE, QUICK, box=around).near
    asked = intake.prepare([Sighting(file, "large", box=around)], EYE.preprocessing, describe=QUICK.keypoints).local[0]
    assert near is not None and len(near) > 100 and (near.descriptors == asked.descriptors).all()
    assert near.width > 1.5 * asked.width  # it is drawn on a larger picture
    assert near.xy[:, 0] / near.width == pytest.approx(asked.xy[:, 0] / asked.width, abs=1e-3)


def test_evidence_on_the_animal_is_not_flagged(pair) -> None:
    found = compare(*seen(pair, Options()), Options())
    assert found.outside.matches is not None and found.outside.matches < 0.2
    assert not found.outside.flagged
    assert set(found.pictures) == {"matches", "warp_a", "warp_b", "overlay", "heat_a", "heat_b"}
    assert found.skipped == {}
    assert found.heat_a is not None and found.heat_a.drops.shape == (7, 7)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Box]]:
    """Two whales that share nothing but a board floating beside both boxes."""
    folder, random = tmp_path_factory.mktemp("strangers"), np.random.default_rng(5)
    board = cv2.resize(random.integers(0, 256, (6, 60, 3)).astype(np.uint8), (420, 42), interpolation=cv2.INTER_CUBIC)
    found = []
    for index, seed in ((1, 11), (2, 12)):
        view = synth.View(seed=seed, fill=0.7, aspect=1.3, splash=0.1, spray=0.0)
        photo = synth.render(synth.fluke(9, index), view, size=(640, 480))
        pixels, box = photo.pixels.copy(), photo.box
        y = round(box.y1) + 3
        assert y + 42 < 480 and 0.3 * box.height > 45
        pixels[y : y + 42, 110:530] = board
        found.append((save(folder / f"{index}.png", pixels), box))
    return found


def test_evidence_in_the_background_is_flagged_and_drawn_red(strangers) -> None:
    a, b = (look(path, EYE, QUICK, box=box) for path, box in strangers)
    found = compare(a, b, QUICK)
    assert found.outside.matches is not None and found.outside.matches > 0.8
    assert found.outside.flagged
    red = np.abs(found.pictures["matches"].astype(int) - (213, 94, 0)).sum(axis=2) < 30
    assert red.sum() > 500
    assert found.verification is not None and found.verification.inliers < 10


def test_a_few_points_outside_are_chance_and_not_flagged() -> None:
    assert not Outside(matches=1.0, points=7).flagged
    assert Outside(matches=1.0, points=8).flagged
    assert not Outside(matches=0.5, points=50).flagged
    assert Outside(heat_b=0.51).flagged and not Outside(heat_a=0.5, heat_b=0.5).flagged


def test_without_boxes_nobody_can_say_what_is_background(strangers) -> None:
    a, b = (look(path, EYE, QUICK) for path, _ in strangers)
    found = compare(a, b, QUICK)
    assert (found.box_a, found.box_b, found.outside) == (None, None, Outside())
    assert found.verification is not None and found.verification.inliers > 20  # the board


def test_a_mask_keeps_what_is_outside_it_from_counting(strangers) -> None:
    """The board lies within the whole photo, but not within the masks."""
    masks = []
    for path, box in strangers:
        height, width = images.read(path).pixels.shape[:2]
        mask = np.zeros((height, width), bool)
        mask[round(box.y0) : round(box.y1), round(box.x0) : round(box.x1)] = True
        masks.append(mask)
    a, b = (look(path, EYE, QUICK, mask=mask) for (path, _), mask in zip(strangers, masks, strict=True))
    found = compare(a, b, QUICK)
    assert found.verification is not None and found.verification.inliers < 10
    assert found.outside.flagged


def test_heat_outside_the_box_is_flagged(tmp_path: Path) -> None:
    """Two plain animals in photos that share a bright left edge, which the embedder's margin lets in."""
    photos = []
    for shade in (90, 140):
        pixels = np.full((200, 300, 3), shade, np.uint8)
        pixels[:, :50] = 255
        photos.append(save(tmp_path / f"{shade}.png", pixels))
    a, b = (look(path, EYE, Options(), box=Box(52, 10, 290, 190)) for path in photos)
    found = compare(a, b, Options())
    assert found.outside.heat_a is not None and found.outside.heat_a > 0.5
    assert found.outside.flagged and found.outside.matches is None


def test_a_mirrored_photo_is_found_where_asked_for(pair, tmp_path: Path) -> None:
    (path, box, _), (other, other_box, _) = pair
    pixels = images.read(path).pixels
    flipped = save(tmp_path / "flipped.png", pixels[:, ::-1])
    width = pixels.shape[1]
    there = Box(width - box.x1, box.y0, width - box.x0, box.y1)
    asked = replace(QUICK, mirror=True)
    a, b = look(flipped, EYE, asked, box=there), look(other, EYE, asked, box=other_box)
    plain, mirror = compare(a, b, QUICK), compare(a, b, asked)
    assert (plain.mirrored, mirror.mirrored) == (False, True)
    assert plain.verification is not None and mirror.verification is not None
    assert mirror.verification.inliers > 2 * max(plain.verification.inliers, 5)
    assert correlation(mirror.pictures["warp_a"], mirror.pictures["warp_b"], b.inside) > 0.7
    assert not compare(*seen(pair), asked).mirrored


def test_a_photo_without_points_gives_pictures_and_reasons(pair, tmp_path: Path) -> None:
    plain = save(tmp_path / "plain.png", np.full((120, 200, 3), 128, np.uint8))
    a, b = look(plain, EYE, Options()), seen(pair, Options())[1]
    found = compare(a, b, Options())
    why = "no distinct points were found on the animal in one of the photos"
    assert (found.skipped["matches"], found.skipped["warp"]) == (why, why)
    assert found.verification is not None and found.verification.status == "no_keypoints"
    assert "matches" in found.pictures and not {"warp_a", "warp_b", "overlay"} & set(found.pictures)


def test_an_empty_mask_is_an_ordinary_answer(pair) -> None:
    (path, box, mask), _ = pair
    a = look(path, EYE, Options(), box=box, mask=np.zeros_like(mask))
    found = compare(a, seen(pair, Options())[1], Options())
    assert found.verification is not None and found.verification.status == "no_keypoints"
    assert set(found.skipped) == {"matches", "warp"}
    assert found.outside.heat_a in (None, 1.0)


def test_other_whales_give_a_reason_and_never_a_warp(tmp_path: Path) -> None:
    view = synth.View(seed=1, fill=0.62, aspect=1.7)
    photos = [synth.render(synth.fluke(4, i), replace(view, seed=i, pitch=0.25 + 0.3 * i)) for i in (0, 1)]
    a, b = (look(save(tmp_path / f"{i}.png", p.pixels), EYE, QUICK, box=p.box) for i, p in enumerate(photos))
    found = compare(a, replace(b, near=describe(np.full((60, 90, 3), 9, np.uint8))), QUICK)
    assert "warp_a" not in found.pictures and found.skipped["warp"]


@pytest.mark.parametrize("status", ["too_few_matches", "no_model", "degenerate"])
def test_every_failure_of_geometry_is_said_in_words(pair, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import reid.compare as module

    real = module.verify_matches

    def failing(*arguments: object) -> object:
        found = real(*arguments)  # type: ignore[arg-type]
        return replace(found, status=status, inliers=0, matches=3)

    monkeypatch.setattr(module, "verify_matches", failing)
    found = compare(*seen(pair), QUICK)
    assert found.skipped["matches"] == found.skipped["warp"] and "3 points look alike" in found.skipped["warp"]
    assert set(found.pictures) == {"matches"}


def test_everything_can_be_switched_off(pair) -> None:
    nothing = Options(matches=False, heat=False)
    found = compare(*seen(pair, nothing), nothing)
    assert found.pictures == {} and found.verification is None
    assert found.skipped == {"matches": SWITCHED_OFF, "warp": SWITCHED_OFF, "heat": SWITCHED_OFF}
    assert found.cosine == pytest.approx(compare(*seen(pair), QUICK).cosine, abs=1e-6)
    no_warp = replace(QUICK, warp=False)
    assert compare(*seen(pair), no_warp).skipped == {"warp": SWITCHED_OFF, "heat": SWITCHED_OFF}


def test_what_cannot_be_looked_at_says_so(pair, tmp_path: Path) -> None:
    path, _, mask = pair[0]
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    with pytest.raises(PhotoError):
        look(tmp_path / "broken.jpg", EYE, QUICK)
    with pytest.raises(PhotoError, match="does not exist"):
        look(tmp_path / "absent.jpg", EYE, QUICK)
    with pytest.raises(InputError, match="outside"):
        look(path, EYE, QUICK, box=Box(5000, 5000, 6000, 6000))
    with pytest.raises(InputError, match="mask"):
        look(path, EYE, QUICK, mask=mask[:-1])


@pytest.mark.parametrize("size", [(16, 16), (16, 900), (900, 17)])
def test_tiny_and_narrow_photos_are_ordinary(pair, tmp_path: Path, size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    path = save(tmp_path / "small.png", random.integers(0, 256, (*size, 3)).astype(np.uint8))
    for box in (None, Box(3, 3, 5.5, 5.2)):
        found = compare(look(path, EYE, Options(), box=box), seen(pair, Options())[1], Options())
        assert np.isfinite(found.cosine) and "matches" in found.pictures


@pytest.mark.parametrize("shape", ["squash", "pad"])
def test_the_heat_lies_on_the_crop_that_the_embedder_sees(pair, shape: str) -> None:
    path, box, mask = pair[0]
    eye = Eye(replace(EYE.preprocessing, shape=shape), means)
    seen_by = look(path, eye, Options(), box=box, mask=mask)
    from reid.crop import cut

    expected = cut(images.read(path).pixels, box, eye.preprocessing)
    shrunk = cv2.resize(seen_by.view, (128, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(int) - expected).mean() < 6
    assert seen_by.crop_inside.shape == (64, 128)
    dark = cut((mask[:, :, None].repeat(3, 2) * 255).astype(np.uint8), box, eye.preprocessing)[:, :, 0] > 127
    if shape == "squash":
        assert (dark == seen_by.crop_inside).mean() > 0.97
        assert seen_by.view.shape[1] / seen_by.view.shape[0] == pytest.approx(box.width / box.height, rel=0.15)
