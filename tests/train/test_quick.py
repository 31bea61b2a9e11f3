"""Training a head from photos: better than what it began with, the same every time, resumed where it stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")

from painted_store import HEAD, QUICK, animal, colour_model, herd, one_thread, sources_of  # noqa: E402

from reid import models  # noqa: E402
from reid.embed import OpenVinoEmbedder  # noqa: E402
from reid.errors import TrainError  # noqa: E402
from reid.train import features, heads, holdout, quick  # noqa: E402
from reid.train.features import Source  # noqa: E402

__all__ = ["one_thread"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return colour_model(tmp_path / "models")


def embedded(model: Path, photos: NDArray[np.uint8]) -> NDArray[np.float32]:
    import cv2

    small = np.stack([cv2.resize(p, (48, 32), interpolation=cv2.INTER_AREA) for p in photos])
    return OpenVinoEmbedder(model).embed(small)


def test_a_trained_model_finds_animals_in_new_photos_that_its_base_confuses(base: Path, tmp_path: Path) -> None:
    sources, labels = sources_of(herd(tmp_path / "photos", 30, 4))
    done = quick.train(sources, labels, base, tmp_path / "out", "trained", keep=tmp_path / "keep", config=QUICK)
    photos = np.stack([animal(number, shot) for number in range(30) for shot in range(5)])  # shot 4 was never seen
    shots = np.arange(150).reshape(30, 5)
    split = holdout.Split(shots[:, 4], shots[:, :4].ravel())
    codes = np.repeat(np.arange(30), 5)
    before, after = (holdout.map_at_5(embedded(m, photos), codes, split) for m in (base, done.model))
    assert after > before + 0.15 and after > 0.7, (before, after)
    assert done.photos == 120 and not done.failures and len(done.head.history) == HEAD.epochs
    card = models.read_card(done.model)
    assert (card.name, card.dim, card.extra["base"]) == ("trained", 16, "colours")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["trained"]


def test_a_head_on_a_network_of_a_recipe_takes_its_vector_as_it_is(tmp_path: Path) -> None:
    """That network has neither lite0's last maps, which wide crops are pooled from otherwise, nor a use for a larger photo."""
    base = models.ensure(tmp_path / "models", models.FLUKE)
    sources, labels = sources_of(herd(tmp_path / "photos", 6, 3))
    done = quick.train(
        sources,
        labels,
        base,
        tmp_path / "out",
        "m",
        keep=tmp_path / "keep",
        config=replace(QUICK, larger=1.5, grid=True),
    )
    before, after = models.read_card(base), models.read_card(done.model)
    assert after.preprocessing == before.preprocessing and after.pooling == before.pooling
    assert after.extra["views"] == before.extra["views"] == "around"
    seen = after.preprocessing
    rows = OpenVinoEmbedder(done.model).embed(np.zeros((1, seen.height, seen.width, 3), np.uint8))
    assert rows.shape == (1, after.dim)


def test_the_same_seed_gives_the_same_model_and_another_seed_another(base: Path, tmp_path: Path) -> None:
    sources, labels = sources_of(herd(tmp_path / "photos", 6, 3))
    prints = []
    for number, seed in enumerate((0, 0, 1)):
        config = replace(QUICK, seed=seed)
        folder = tmp_path / str(number)
        done = quick.train(sources, labels, base, folder, "m", keep=folder / "keep", config=config)
        prints.append(models.read_card(done.model).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_an_interrupted_training_goes_on_with_what_was_embedded(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, labels = sources_of(herd(tmp_path / "photos", 20, 3))
    whole = quick.train(sources, labels, base, tmp_path / "whole", "m", keep=tmp_path / "a", config=QUICK)
    cut: list[int] = []
    keep = features._prepared

    def counting(source: Source, known: set[str], *rest: object) -> object:
        found = keep(source, known, *rest)  # type: ignore[arg-type]
        cut.append(found[1] is not None)
        return found

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "views" and done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick.train(sources, labels, base, tmp_path / "two", "m", keep=tmp_path / "b", config=QUICK, progress=stop)
    assert not (tmp_path / "two").exists()
    monkeypatch.setattr(features, "_prepared", counting)
    again = quick.train(sources, labels, base, tmp_path / "two", "m", keep=tmp_path / "b", config=QUICK)
    assert sum(cut) == 60 - 32  # whitening's vectors and the first block's were there
    assert models.read_card(again.model).fingerprint == models.read_card(whole.model).fingerprint


def test_photos_that_cannot_be_read_are_reported_and_the_rest_is_trained_on(base: Path, tmp_path: Path) -> None:
    sources, labels = sources_of(herd(tmp_path / "photos", 5, 3))
    sources[4].path.write_bytes(b"no photo")
    done = quick.train(sources, labels, base, tmp_path / "out", "m", keep=tmp_path / "keep", config=QUICK)
    assert done.photos == 14 and [f.source for f in done.failures] == [str(sources[4].path)]


def test_what_cannot_be_trained_on_is_a_typed_error_and_leaves_no_model(base: Path, tmp_path: Path) -> None:
    sources, labels = sources_of(herd(tmp_path / "photos", 4, 2))
    cases = [
        (sources, ["one"] * len(labels), QUICK, "all photos are of one identity"),
        ([Source(tmp_path / "nowhere.png")] * 3, ["a", "b", "c"], QUICK, "not one of the photos can be read"),
        (sources, labels, replace(QUICK, heads=(replace(HEAD, learning_rate=1e30),)), "the loss is no number"),
    ]
    for some, names, config, message in cases:
        with pytest.raises(TrainError, match=message):
            quick.train(some, names, base, tmp_path / "out", "m", keep=tmp_path / "keep", config=config)
    assert not (tmp_path / "out").exists()


def test_of_several_ways_to_train_the_one_is_used_that_finds_most_of_an_inner_fold(base: Path, tmp_path: Path) -> None:
    sources, labels = sources_of(herd(tmp_path / "photos", 12, 4))
    ways = (replace(HEAD, learning_rate=1e-9, dim=3), HEAD, replace(HEAD, learning_rate=1e-9, dim=2))
    config = replace(QUICK, heads=ways)
    done = quick.train(sources, labels, base, tmp_path / "out", "m", keep=tmp_path / "keep", config=config)
    assert done.chosen == HEAD and int(np.argmax(done.tried)) == 1 and len(done.tried) == 3
    alone = quick.train(sources, labels, base, tmp_path / "one", "m", keep=tmp_path / "keep", config=QUICK)
    assert np.isnan(alone.tried).all()
    assert models.read_card(alone.model).fingerprint == models.read_card(done.model).fingerprint


def test_the_inner_fold_has_no_photo_of_a_querys_sighting(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, labels = sources_of(herd(tmp_path / "photos", 8, 4))
    sources[1].path.write_bytes(b"no photo")
    sightings = np.arange(32) // 2  # an animal's photos are of two sightings
    readable = np.delete(np.arange(32), 1)
    asked: list[holdout.Split] = []
    train_head = heads.train_head

    def spy(*some: Any, held: holdout.Split | None = None, **more: Any) -> heads.Head:
        asked.extend([held] if held is not None else [])
        return train_head(*some, held=held, **more)

    monkeypatch.setattr(heads, "train_head", spy)
    config = replace(QUICK, heads=(HEAD, replace(HEAD, scale=9.0)))
    more = {"keep": tmp_path / "keep", "config": config}
    quick.train(sources, labels, base, tmp_path / "out", "m", sightings=sightings, **more)
    assert len(asked) == 2
    for held in asked:
        queries, gallery = (sightings[readable[rows]] for rows in (held.queries, held.gallery))
        assert len(queries) >= 7 and not set(queries.tolist()) & set(gallery.tolist())
    one = np.where(np.arange(32) < 4, sightings, 99)  # all other animals were seen together: one is left
    done = quick.train(sources, labels, base, tmp_path / "out", "n", sightings=one, **more)
    assert done.chosen == HEAD and np.isnan(done.tried).all()
    with pytest.raises(ValueError, match="expected one each"):
        quick.train(sources, labels, base, tmp_path / "out", "o", sightings=one[:3], **more)


def test_without_a_third_photo_of_any_animal_the_first_way_is_used(base: Path, tmp_path: Path) -> None:
    sources, labels = sources_of(herd(tmp_path / "photos", 6, 2))
    config = replace(QUICK, heads=(HEAD, replace(HEAD, mirror_as_class=True)))
    done = quick.train(sources, labels, base, tmp_path / "out", "m", keep=tmp_path / "keep", config=config)
    assert done.chosen == HEAD and np.isnan(done.tried).all()


def test_a_model_at_two_sizes_embeds_the_crop_and_its_shrunken_self(base: Path, tmp_path: Path) -> None:
    two = heads.write_model(base, tmp_path / "m", "two", [], larger=2.0)
    card = models.read_card(two)
    assert (card.preprocessing.height, card.preprocessing.width, card.dim) == (64, 96, 96)
    assert card.fingerprint != models.read_card(base).fingerprint
    crops = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8)
    out = OpenVinoEmbedder(two).embed(crops)
    for crop, row in zip(crops.astype(float) / 255, out, strict=True):
        halves = [crop, crop.reshape(32, 2, 48, 2, 3).mean((1, 3))]
        parts = []
        for pixels in halves:
            h, w = pixels.shape[0] // 4, pixels.shape[1] // 4
            cells = [
                pixels[h * r : h * r + h, w * k : w * k + w, c].mean()
                for c in range(3)
                for r in range(4)
                for k in range(4)
            ]
            parts.append(np.array(cells) / np.linalg.norm(cells))
        expected = np.concatenate(parts) / 2**0.5
        np.testing.assert_allclose(row, expected, atol=5e-3)


def test_shrunk_whitening_is_that_of_a_plain_covariance() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)) + 3).astype(np.float32)
    layer = heads.whitening(rows, 5, shrink=0.4)
    values, axes = np.linalg.eigh(np.cov(rows.T))
    values, axes = values[::-1][:5], axes[:, ::-1][:, :5]
    expected = (rows - rows.mean(0)) @ axes / np.sqrt(0.6 * values + 0.4 * values.mean())
    got = rows @ layer.matrix.T + layer.bias
    np.testing.assert_allclose(np.abs(got), np.abs(expected), atol=1e-2)
