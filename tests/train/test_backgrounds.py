"""Backgrounds exchanged behind animals: whose pixels stay, where the others come from, and that nothing else moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from few_flukes import tiny  # noqa: E402

from reid import masks  # noqa: E402
from reid.models import Preprocessing  # noqa: E402
from reid.records import Box  # noqa: E402
from reid.train import backgrounds, pictures, showing  # noqa: E402
from reid.train.features import Source  # noqa: E402
from reid.train.pictures import Pictures  # noqa: E402

SEEN = Preprocessing(48, 64, (0.0,) * 3, (1.0,) * 3, margin=0.1)
ANIMAL = np.array([200, 30, 40], np.float64)


def discs(n: int) -> Pictures:
    """A red disc on a ground of each picture's own grey; the last one has no outline."""
    ys, xs = np.mgrid[:60, :80]
    disc = (ys - 30) ** 2 + (xs - 40) ** 2 < 16**2
    pixels = np.empty((n, 60, 80, 3), np.uint8)
    pixels[:] = (40 + 20 * np.arange(n))[:, None, None, None]
    pixels[:, disc] = ANIMAL
    outlines = np.tile(np.where(disc, 255, 0).astype(np.uint8), (n, 1, 1))
    outlines[-1] = 0
    return Pictures(pixels, np.tile(np.array([0, 0, 1, 1], np.float32), (n, 1)), np.arange(n), (), outlines)


def test_an_animal_is_filled_in_with_what_is_around_it() -> None:
    some = discs(2)
    assert some.outlines is not None
    bare = backgrounds.bare(some.pixels[0], some.outlines[0])
    assert np.abs(bare.astype(int) - 40).max() <= 2
    halves = some.pixels[0].copy()
    halves[:, 40:][some.outlines[0][:, 40:] == 0] = 180  # the ground is of two colours
    bare = backgrounds.bare(halves, some.outlines[0]).astype(int)
    assert bare[30, 27:32].mean() < 80 and bare[30, 48:53].mean() > 140


@pytest.mark.parametrize("size", [(60, 80), (224, 269), (538, 538)])
@pytest.mark.parametrize("reach", [0.3, 0.48])
def test_large_animals_are_filled_in_whatever_the_size(size: tuple[int, int], reach: float) -> None:
    ys, xs = np.mgrid[: size[0], : size[1]]
    animal = ((ys / size[0] - 0.5) / reach) ** 2 + ((xs / size[1] - 0.5) / reach) ** 2 < 1
    for outline in (animal, xs > 0.25 * size[1]):  # with ground all around it; reaching three of the edges
        pixels = np.full((*size, 3), 200, np.uint8)
        pixels[outline] = ANIMAL
        bare = backgrounds.bare(pixels, np.where(outline, 255, 0).astype(np.uint8)).astype(int)
        assert np.abs(bare - 200).max() <= 1


def test_animals_stay_and_backgrounds_are_those_of_other_pictures() -> None:
    some = discs(6)
    assert some.outlines is not None
    among = backgrounds.usable(some)
    assert among.tolist() == [0, 1, 2, 3, 4]
    rows = np.array([3, 0, 5, 3])
    seen: dict[int, set[int]] = {0: set(), 3: set(), 5: set()}
    for seed in range(40):
        got = backgrounds.exchanged(some, among, rows, 1.0, np.random.default_rng(seed))
        assert got.rows.tolist() == rows.tolist() and len(got.pixels) == len(got.windows) == 4
        for picture, row in zip(got.pixels, rows, strict=True):
            disc = some.outlines[0] > 0
            assert np.abs(picture[disc] - ANIMAL).max() <= 1
            around = picture[0, 0, 0]
            assert (picture[0] == around).all()
            seen[int(row)].add(int(around))
    assert seen == {0: {60, 80, 100, 120}, 3: {40, 60, 80, 120}, 5: {140}}  # never its own
    assert (some.pixels == discs(6).pixels).all()


def test_as_many_are_exchanged_as_was_said_and_the_same_ones_by_the_same_seed() -> None:
    some, rows = discs(30), np.arange(30).repeat(10)
    among = backgrounds.usable(some)
    one, two = (backgrounds.exchanged(some, among, rows, 0.3, np.random.default_rng(4)).pixels for _ in range(2))
    assert (one == two).all()
    moved = (one != some.pixels[rows]).any(axis=(1, 2, 3))
    assert moved.mean() == pytest.approx(0.3 * 29 / 30, abs=0.06)


def test_an_outline_of_all_or_nearly_nothing_is_not_believed() -> None:
    some = discs(4)
    assert some.outlines is not None
    some.outlines[0] = 255
    some.outlines[1] = 0
    some.outlines[1, :3, :3] = 255
    assert backgrounds.usable(some).tolist() == [2]
    some.outlines[2] = 255
    some.outlines[2, ::3, ::3] = 0  # ground, but none that is not at the animal's edge
    assert len(backgrounds.usable(some)) == 0
    assert len(backgrounds.usable(replace(some, outlines=None))) == 0


def test_masks_are_cut_as_their_photos_are(tmp_path: Path) -> None:
    photo = np.zeros((300, 400, 3), np.uint8)
    cv2.ellipse(photo, (180, 140), (60, 40), 20, 0, 360, (255, 255, 255), -1)
    cv2.imwrite(str(tmp_path / "a.png"), photo)
    (tmp_path / "mask.png").write_bytes(masks.encoded(photo[:, :, 0] > 0))
    small = cv2.resize(photo[:, :, 0], (200, 150), interpolation=cv2.INTER_AREA)
    (tmp_path / "small.png").write_bytes(masks.encoded(small > 127))
    (tmp_path / "broken.png").write_bytes(b"no mask")
    boxes = [Box(100, 80, 260, 200), None, Box(2, 5, 230, 170)]
    sources = [Source(tmp_path / "a.png", box, 400, 300, tmp_path / "mask.png") for box in boxes]
    sources += [replace(sources[0], mask=tmp_path / "small.png"), replace(sources[0], mask=tmp_path / "broken.png")]
    sources += [replace(sources[0], mask=None)]
    kept = pictures.load(sources, SEEN, outlined=True)
    assert kept.outlines is not None and len(kept) == 6  # a mask that cannot be read costs no photo
    assert [(one.source, one.code) for one in kept.failures] == [(str(tmp_path / "broken.png"), "bad_input")]
    for pixels, outline in zip(kept.pixels[:4], kept.outlines, strict=False):
        assert np.abs(pixels[:, :, 0].astype(int) - outline).mean() < 3
    assert not kept.outlines[4:].any()
    assert pictures.load(sources, SEEN).outlines is None


def test_without_masks_a_training_sees_what_it_saw_before() -> None:
    some = discs(8)
    blank = replace(some, outlines=np.zeros_like(some.outlines))
    codes = np.arange(8) // 2

    def views(kept: Pictures, ground: float) -> torch.Tensor:
        how = tiny(f"[augment]\nbackground = {ground}\n")
        shown = showing.Showing(kept, codes, how, 3, None, lambda *_: np.empty(0, np.float32))
        batches = shown.batches(0.0, np.random.default_rng(0))
        return torch.cat([one.pixels for one in shown.prepared(batches, 0, (32, 64), 1)])

    before = views(replace(some, outlines=None), 0.0)
    assert torch.equal(views(blank, 0.5), before) and torch.equal(views(some, 0.0), before)
    assert not torch.equal(views(some, 0.5), before)


def test_the_background_of_a_held_out_photo_is_behind_no_animal() -> None:
    codes = np.array([0, 0, 1, 1, -2, -1, 2, 2])
    how = tiny("[augment]\nbackground = 1.0\n")
    shown = showing.Showing(discs(8), codes, how, 3, None, lambda *_: np.empty(0, np.float32))
    assert shown.outlined.tolist() == [0, 1, 2, 3, 5, 6]  # the last has no outline
