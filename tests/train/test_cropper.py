"""The box regressor's training: points that follow pixels, folds, checkpoints, and what is refused."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `train`")

import torch
from fake_stores import fake_store, paint, seen, taken_in

from reid import locate, recrop
from reid.errors import TrainError
from reid.records import Box
from reid.train import cropper, cropper_data, cropper_network, cropper_rendered, cropper_views, runs
from reid.train.cropper import CropperConfig
from reid.train.cropper_data import STORED, Photos
from reid.train.cropper_network import Network
from reid.train.cropper_views import SWAPPED, Shown, Variation

STILL = Variation(mirror=0, grey=0, light=0, colour=0, blur=0, shrink=0, jpeg=0, noise=0, paper=0, patch=0)
DOTS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255))
TINY = CropperConfig(side=32, folds=2, epochs=2, batch=8, variation=STILL)


def painted(n: int, seed: int = 0) -> Photos:
    """Grey ellipses on black, a coloured dot at each landmark: what a network or an eye can find."""
    rng = np.random.default_rng(seed)
    pixels, outlines, marks = [], [], []
    for _ in range(n):
        photo = np.zeros((STORED, STORED, 3), np.uint8)
        centre, axes = rng.uniform(0.4, 0.6, 2), rng.uniform(0.14, 0.3, 2)
        to_pixels = [int(v) for v in np.round(centre * STORED)], [int(v) for v in np.round(axes * STORED)]
        cv2.ellipse(photo, to_pixels[0], to_pixels[1], 0, 0, 360, (128, 128, 128), -1)
        outlines.append(cropper_data.outline_of(photo[:, :, 0] > 0))
        places = np.array(to_pixels[0]) + np.array([(-1, 0), (0, -1), (1, 0), (0, 1)]) * to_pixels[1] * 0.6
        for place, colour in zip(np.round(places).astype(int), DOTS, strict=True):
            cv2.circle(photo, (int(place[0]), int(place[1])), 5, colour, -1)
        marks.append((np.round(places) + 0.5) / STORED)
        pixels.append(photo)
    yes = np.ones(n, np.bool_)
    return Photos(np.stack(pixels), np.stack(outlines), np.stack(marks).astype(np.float32), yes, yes, yes, np.arange(n))


def dot(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where a dot of that colour lies, in shares."""
    near = np.abs(pixels.astype(int) - colour).sum(-1) < 120
    rows, columns = np.nonzero(near)
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5]) / len(pixels)


def test_an_outlines_box_is_the_masks_tight_box() -> None:
    mask = np.zeros((50, 80), np.bool_)
    mask[10:31, 20:61] = np.random.default_rng(0).random((21, 41)) < 0.3
    rows, columns = np.nonzero(mask)
    box = cropper_data.box_of(cropper_data.outline_of(mask))
    expected = (columns.min() / 80, rows.min() / 50, (columns.max() + 1) / 80, (rows.max() + 1) / 50)
    np.testing.assert_allclose(box, expected, rtol=1e-6)
    assert np.isnan(cropper_data.outline_of(np.zeros((5, 5), np.bool_))).all()


def test_points_and_boxes_follow_the_pixels_through_every_framing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cropper_views, "_BORDERS", (cv2.BORDER_REPLICATE,) * 3)  # black, as the photos' edges are
    photos, side = painted(40), 128
    how = replace(STILL, mirror=0.5, cut=0.0)
    shown = cropper_views.varied(photos, side, how, np.random.default_rng(1))
    mirrored = 0
    for pixels, box, marks in zip(shown.pixels, shown.boxes, shown.landmarks, strict=True):
        animal = pixels.max(-1) > 60
        rows, columns = np.nonzero(animal)
        seen_box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / side
        assert np.abs(seen_box - box).max() < 2.5 / side
        swapped = dot(pixels, DOTS[0])[0] > dot(pixels, DOTS[2])[0]
        mirrored += swapped
        for place, colour in zip(marks, [DOTS[i] for i in SWAPPED] if swapped else DOTS, strict=True):
            assert np.abs(dot(pixels, colour) - place).max() < 3 / side
        assert marks[0, 0] < marks[2, 0]  # the left tip is the left one, mirrored or not
    assert 10 <= mirrored <= 30


def test_a_users_box_is_never_turned_since_only_its_corners_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cropper_views, "_BORDERS", (cv2.BORDER_REPLICATE,) * 3)
    photos = replace(painted(12), shaped=np.zeros(12, np.bool_))
    photos = replace(photos, outline=np.stack([corners(box) for box in cropper_data.box_of(photos.outline)]))
    shown = cropper_views.varied(photos, 128, replace(STILL, cut=0.0), np.random.default_rng(2))
    for pixels, box in zip(shown.pixels, shown.boxes, strict=True):
        rows, columns = np.nonzero(pixels.max(-1) > 60)
        seen_box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 128
        assert np.abs(seen_box - box).max() < 2.5 / 128


def corners(box: np.ndarray) -> np.ndarray:
    x0, y0, x1, y1 = box
    return np.resize(np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float32), (32, 2))


def test_a_rendered_fluke_lies_where_its_points_say_and_the_same_seed_gives_the_same_photos() -> None:
    photos = cropper_rendered.rendered(2, 2, seed=3)
    again = cropper_rendered.rendered(2, 2, seed=3)
    np.testing.assert_array_equal(photos.pixels, again.pixels)
    assert photos.group.tolist() == [0, 0, 1, 1] and photos.animal.all() and photos.marked.all()
    boxes = cropper_data.box_of(photos.outline)
    assert (photos.landmarks[:, 0, 0] < photos.landmarks[:, 2, 0]).all()  # left tip, right tip
    middle = photos.landmarks[:, 1]
    assert ((boxes[:, :2] - 0.02 <= middle) & (middle <= boxes[:, 2:] + 0.02)).all()  # the notch is inside
    assert (boxes[:, 2] - boxes[:, 0] < 0.9).all()  # sea on both sides, to frame anew


def test_background_comes_from_beside_the_animal_and_holds_none_of_it() -> None:
    photos = painted(10)
    around = cropper_data.beside(photos)
    assert len(around) == 10 and not around.animal.any() and (around.pixels == 0).all()
    filled = replace(photos, outline=np.stack([corners(np.array([0.05, 0.05, 0.95, 0.95]))] * 10))
    assert len(cropper_data.beside(filled)) == 0


def test_the_loss_is_that_of_a_loop_and_leaves_out_folds_landmarks_and_empty_photos() -> None:
    rng = np.random.default_rng(4)
    out = rng.normal(0.5, 0.3, (5, 2, 13)).astype(np.float32)
    animal = np.array([True, True, False, True, True])
    marked = np.array([True, False, False, True, True])
    group = np.array([0, 1, 2, 3, 4])
    boxes, marks = rng.random((5, 4)).astype(np.float32), rng.normal(0.5, 0.9, (5, 4, 2)).astype(np.float32)
    shown = Shown(np.zeros((5, 32, 32, 3), np.uint8), boxes, marks, animal, marked)
    total, n = 0.0, 0
    for i in range(5):
        for head in range(2):
            if group[i] % 2 == head:
                continue
            truth = np.clip(marks[i], -0.5, 1.5).ravel()
            logit = float(out[i, head, 12])
            total += 0.1 * (np.log1p(np.exp(-logit)) if animal[i] else np.log1p(np.exp(logit)))
            total += np.mean([smooth(a - b) for a, b in zip(out[i, head, :4], boxes[i], strict=True)]) * animal[i]
            total += 0.5 * np.mean([smooth(a - b) for a, b in zip(out[i, head, 4:12], truth, strict=True)]) * marked[i]
            n += 1
    found = cropper.loss_of(torch.from_numpy(out), shown, group, 2)
    assert float(found) == pytest.approx(total / n, rel=1e-5)


def smooth(difference: float) -> float:
    """Smooth L1 with its bend at .02, after Girshick 2015."""
    size = abs(float(difference))
    return size * size / 0.04 if size < 0.02 else size - 0.01


def state_of(network: Network) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def same(one: Network, other: Network) -> bool:
    ours, theirs = state_of(one), state_of(other)
    return all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_the_same_seed_gives_the_same_network_and_another_one_does_not() -> None:
    photos = painted(16)
    first, again = (cropper.train(photos, TINY).network for _ in range(2))
    assert same(first, again)
    assert not same(first, cropper.train(photos, replace(TINY, seed=1)).network)


def test_an_interrupted_training_goes_on_to_the_same_network(tmp_path: Path) -> None:
    photos, checkpoint = painted(16), tmp_path / "run" / "checkpoint.npz"

    def interrupt(epoch: int, found: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cropper.train(photos, TINY, checkpoint=checkpoint, progress=interrupt)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint.npz"]
    epochs: list[int] = []
    resumed = cropper.train(photos, TINY, checkpoint=checkpoint, progress=lambda epoch, _: epochs.append(epoch))
    assert epochs == [1] and len(resumed.history) == 2
    assert same(resumed.network, cropper.train(photos, TINY).network)


def test_a_checkpoint_of_other_settings_or_damaged_is_refused(tmp_path: Path) -> None:
    photos, checkpoint = painted(16), tmp_path / "checkpoint.npz"
    cropper.train(photos, replace(TINY, epochs=1), checkpoint=checkpoint)
    with pytest.raises(TrainError, match="other settings"):
        cropper.train(photos, TINY, checkpoint=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(TrainError, match="cannot be read"):
        cropper.train(photos, replace(TINY, epochs=1), checkpoint=checkpoint)


def test_a_full_disk_is_said_and_the_last_checkpoint_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, checkpoint = painted(16), tmp_path / "checkpoint.npz"
    calls = 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cropper.os, "fsync", full)
    with pytest.raises(TrainError, match="No space left") as caught:
        cropper.train(photos, TINY, checkpoint=checkpoint)
    assert caught.value.next_step and [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]
    monkeypatch.undo()
    assert same(cropper.train(photos, TINY, checkpoint=checkpoint).network, cropper.train(photos, TINY).network)


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, true_loss = 0, cropper.loss_of

    def broken(*args: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return true_loss(*args) * (float("nan") if calls == 3 else 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(cropper, "loss_of", broken)
    with pytest.raises(TrainError, match="the loss became nan in epoch 2, step 1"):
        cropper.train(painted(16), TINY, checkpoint=tmp_path / "checkpoint.npz")
    assert (tmp_path / "checkpoint.npz").is_file()


def test_no_boxes_and_fewer_animals_than_folds_are_refused() -> None:
    with pytest.raises(TrainError, match="no photo with a box"):
        cropper.train(cropper_rendered.empty(4, seed=0), TINY)
    with pytest.raises(TrainError, match="1 animals cannot be dealt to 2 folds"):
        cropper.train(replace(painted(4), group=np.zeros(4, np.int64)), TINY)


def test_it_learns_to_find_what_is_there_and_where_nothing_is() -> None:
    config = replace(TINY, epochs=12, batch=16, rate=4e-3)
    held = painted(24, seed=9)
    trained = cropper.train(cropper_data.joined([painted(160), cropper_rendered.empty(40, seed=1)]), config, held=held)
    assert trained.history[-1].loss < 0.5 * trained.history[0].loss
    assert trained.history[-1].iou > 0.75
    assert cropper.landmark_error(trained.network, held) < 0.2
    sure = [
        cropper_network.predict(trained.network, one)[..., 12].mean(1)
        for one in (held, cropper_rendered.empty(24, seed=2))
    ]
    assert np.median(sure[0]) > 0.7 > 0.4 > np.median(sure[1])


def test_a_mirrored_photo_gives_the_mirrored_answer(tmp_path: Path) -> None:
    network = cropper.train(painted(16), TINY).network
    photos = painted(6, seed=5)
    mirrored = replace(photos, pixels=photos.pixels[:, :, ::-1].copy())
    there, back = cropper_network.predict(network, photos), cropper_network.predict(network, mirrored)
    order = [2, 3, 0, 1]  # the two folds of the photo are those of its mirror image's mirror image
    expected = back[:, order]
    flipped = expected.copy()
    flipped[..., 0], flipped[..., 2] = 1 - expected[..., 2], 1 - expected[..., 0]
    marks = expected[..., 4:12].reshape(6, 4, 4, 2)[:, :, list(SWAPPED)].copy()
    marks[..., 0] = 1 - marks[..., 0]
    flipped[..., 4:12] = marks.reshape(6, 4, 8)
    np.testing.assert_allclose(there, flipped, atol=1e-4)


def test_a_store_trains_on_the_boxes_that_its_people_drew(tmp_path: Path) -> None:
    photos = painted(42)
    boxes = np.round(cropper_data.box_of(photos.outline) * STORED).tolist()
    rows = []
    for i, (pixels, box) in enumerate(zip(photos.pixels, boxes, strict=True)):
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), pixels[:, :, ::-1])
        rows.append(seen(path, f"a{i % 14}", box=Box(*box)))
    with fake_store(tmp_path / "store") as store:
        taken_in(store, [*rows, seen(paint(tmp_path / "whole.png", 90), "b")])
        stages: list[str] = []
        options = recrop.Options(from_store=True, epochs=6, folds=2, name="ours")
        done = recrop.train(store, options, lambda stage, *_: stages.append(stage))
        assert (done.photos, done.rendered) == (
            36,
            0,
        )  # two animals of fourteen are held out; the whole photo has no box
        assert np.isnan(done.iou_rendered) and done.failures == () and "train" in stages
        card = locate.read_card(locate.folder_of(done.model, store.models_folder))
        assert (card.landmarks, card.folds, card.source) == (False, 2, "photos of the store")
        run = Path(done.run)
        assert (run / "state.txt").read_text() == "finished\n" and (run / "curves.png").is_file()
        assert not (run / recrop.CHECKPOINT).exists()
        held = recrop._held_out(np.arange(42) % 14, 0)
        assert held.sum() == 6
        found = locate.Locator(store.models_folder / done.model).locate_all(list(photos.pixels))
        assert found[0].boxes.shape == (4, 4)  # two folds, each asked for the photo and for its mirror image
        assert all(0 <= one.box.x0 < one.box.x1 <= STORED for one in found)


def test_a_store_without_boxes_is_told_so_and_its_run_says_why(tmp_path: Path) -> None:
    with fake_store(tmp_path / "store") as store:
        taken_in(store, [seen(paint(tmp_path / "1.png", 1), "a")])
        with pytest.raises(TrainError, match="no photo with a box"):
            recrop.train(store, recrop.Options(from_store=True, name="none"), lambda *_: None)
        [run] = (store.root / "training").iterdir()
        assert (run / "state.txt").read_text().startswith("failed: there is no photo with a box")
        assert not store.models_folder.exists() or not list(store.models_folder.glob("*/cropper.json"))


def test_settings_of_another_version_and_other_trainings_are_not_resumed(tmp_path: Path) -> None:
    with fake_store(tmp_path / "store") as store:
        parent = store.root / "training"
        run = runs.begin(parent, "cropper", "cropper", {"cropper": {"epochs": 3, "wheels": 4}})
        with pytest.raises(TrainError, match="settings are those of another version") as caught:
            recrop.train(store, recrop.Options(resume=True), lambda *_: None)
        assert caught.value.source == str(run.folder) and "`reid train-cropper`" in caught.value.next_step
        runs.begin(parent, "other", "network", {"options": {}})
        with pytest.raises(TrainError, match="no unfinished training called 'other'"):
            recrop.train(store, recrop.Options(resume=True, name="other"), lambda *_: None)


def test_what_to_do_with_a_cropper_hangs_on_its_boxes() -> None:
    bad = recrop._advice("mine", {"iou_store": math.nan, "iou_rendered": 0.04})
    assert "miss the animals" in bad and "0.04" in bad and "to use it" not in bad
    good = recrop._advice("mine", {"iou_store": 0.3, "iou_rendered": 0.9})
    assert good.startswith('to use it: model = "mine" under [crop]')
    assert "miss the animals" in recrop._advice("mine", {"iou_store": 0.2})
