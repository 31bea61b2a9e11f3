"""Heads on kept vectors: graphs that pool and project as loops do, whitening, ArcFace, and model directories that need
no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from reid import models
from reid.embed import OpenVinoEmbedder, unit_rows
from reid.errors import ModelError, TrainError
from reid.models import ModelCard, Preprocessing
from reid.records import Box
from reid.train import features, graphs, holdout
from reid.train.features import Augmentation, Source
from reid.train.graphs import Layer, Tap

torch = pytest.importorskip("torch")

from reid.train import heads, losses  # noqa: E402
from reid.train.heads import HeadConfig  # noqa: E402
from reid.train.network import Embedded  # noqa: E402

SIZE = (24, 48)
FAST: Any = {"dim": 12, "epochs": 14, "batch": 32, "learning_rate": 2e-2, "dropout": 0.1, "scale": 12.0}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as these are slower on two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_graph() -> Any:
    """A network of one convolution: 3 → 5 channels at half size, then its mean; no weights from anywhere."""
    import openvino
    from openvino import opset13 as ops

    rng = np.random.default_rng(0)
    pixels = ops.parameter([-1, -1, -1, 3], np.uint8, name="pixels")
    x = ops.multiply(ops.transpose(ops.convert(pixels, "f32"), np.array([0, 3, 1, 2], np.int64)), np.float32(1 / 255))
    kernel = rng.normal(size=(5, 3, 2, 2)).astype(np.float32)
    x = ops.relu(ops.convolution(x, kernel, [2, 2], [0, 0], [0, 0], [1, 1]))
    pooled = ops.reduce_mean(x, np.array([2, 3], np.int64), keep_dims=False)
    outputs = [ops.result(pooled, name="embedding"), ops.result(x, name="map")]
    for result, name in zip(outputs, ("embedding", "map"), strict=True):
        result.output(0).get_tensor().set_names({name})
    return openvino.Model(outputs, [pixels], "small")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    card = ModelCard("small", 5, Preprocessing(*SIZE, (0.0,) * 3, (255.0,) * 3), "avg", "0" * 64, "a test", "none")
    return models.write(tmp_path / "models", card, small_graph())


def run(graph: Any, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    import openvino

    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    out = compiled(pixels)
    return {name: np.array(out[name]) for name in ("embedding", "map")}


def pictures(n: int, size: tuple[int, int] = SIZE, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, *size, 3), np.uint8)


def animals(n_identities: int = 40, photos: int = 5, views: int = 2) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Vectors `(n, views, 2, 24)`: 8 numbers tell animals apart, the others are louder noise; a mirror turns their
    sign.
    """
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(n_identities), photos)
    base = np.concatenate(
        [rng.normal(size=(n_identities, 8))[labels], 1.5 * rng.normal(size=(len(labels), 16))], axis=1
    )
    base[:, :8] += 0.35 * rng.normal(size=(len(labels), 8))
    pair = np.stack([base, base * np.r_[np.full(2, -1.0), np.full(22, 1.0)]], axis=1)
    vectors = pair[:, None] + 0.05 * rng.normal(size=(len(labels), views, 2, 24))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float16), labels


def test_taps_are_the_means_over_a_grid_of_the_inner_map_each_of_unit_length() -> None:
    photos = pictures(3)
    out = run(graphs.tapped(small_graph(), (Tap(5, 2, 3), Tap(3, 1, 1))), photos)
    inner, pixels = out["map"], photos.transpose(0, 3, 1, 2) / 255
    for i in range(3):
        grid = [
            inner[i, c, 6 * r : 6 * r + 6, 8 * k : 8 * k + 8].mean()
            for c in range(5)
            for r in range(2)
            for k in range(3)
        ]
        tones = np.array([pixels[i, c].mean() for c in range(3)])
        expected = np.concatenate([np.array(grid) / np.linalg.norm(grid), tones / np.linalg.norm(tones)])
        np.testing.assert_allclose(out["embedding"][i], expected, atol=1e-5)


def test_a_tap_that_the_network_lacks_is_an_error() -> None:
    with pytest.raises(ModelError, match="no map of 77 channels"):
        graphs.tapped(small_graph(), (Tap(77, 1, 1),))


def test_appended_layers_compute_what_numpy_does_and_keep_other_outputs() -> None:
    rng = np.random.default_rng(0)
    layers = [
        Layer(rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=7).astype(np.float32), relu=True),
        Layer(rng.normal(size=(4, 7)).astype(np.float32), rng.normal(size=4).astype(np.float32)),
    ]
    photos = pictures(3)
    plain, more = run(small_graph(), photos), run(graphs.append_layers(small_graph(), layers), photos)
    np.testing.assert_array_equal(more["map"], plain["map"])
    for i in range(3):
        v = plain["embedding"][i] / np.linalg.norm(plain["embedding"][i])
        inner = [max(sum(layers[0].matrix[j, k] * v[k] for k in range(5)) + layers[0].bias[j], 0) for j in range(7)]
        expected = [sum(layers[1].matrix[j, k] * inner[k] for k in range(7)) + layers[1].bias[j] for j in range(4)]
        np.testing.assert_allclose(more["embedding"][i], expected, atol=1e-4)
    np.testing.assert_allclose(more["embedding"], graphs.apply_layers(unit_rows(plain["embedding"]), layers), atol=1e-4)
    one = run(graphs.append_layers(small_graph(), [Layer(layers[0].matrix, layers[0].bias)]), photos)["embedding"]
    np.testing.assert_allclose(np.maximum(one, 0) @ layers[1].matrix.T + layers[1].bias, more["embedding"], atol=1e-4)


def test_layers_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ModelError, match="does not follow 5 numbers"):
        graphs.append_layers(small_graph(), [Layer(np.zeros((3, 6), np.float32), np.zeros(3, np.float32))])


def test_a_written_model_embeds_as_its_parts_do_and_has_its_own_fingerprint(base: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layer = Layer(rng.normal(size=(4, 5)).astype(np.float32), rng.normal(size=4).astype(np.float32))
    photos = pictures(5)
    written = heads.write_model(base, tmp_path / "models", "headed", [layer])
    plain, headed = OpenVinoEmbedder(base), OpenVinoEmbedder(written)
    expected = unit_rows(graphs.apply_layers(plain.embed(photos), [layer]))
    assert (expected * headed.embed(photos)).sum(axis=1) == pytest.approx(1, abs=1e-3)
    assert headed.card.dim == 4 and headed.card.extra["base"] == "small"
    other = heads.write_model(base, tmp_path / "models", "other", [Layer(layer.matrix * 2, layer.bias)])
    prints = {models.read_card(folder).fingerprint for folder in (base, written, other)}
    assert len(prints) == 3
    again = heads.write_model(base, tmp_path / "models", "again", [layer])
    assert models.read_card(again).fingerprint == models.read_card(written).fingerprint


def test_whitened_vectors_have_no_mean_and_equal_variances() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 20)) @ rng.normal(size=(20, 20)) + 3
    layer = heads.whitening(rows.astype(np.float32), 20)
    out = graphs.apply_layers(rows, [layer])
    np.testing.assert_allclose(out.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(out.T), np.eye(20), atol=2e-2)


def test_whitening_to_few_numbers_keeps_the_main_directions() -> None:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(200, 200)))[0]
    rows = rng.normal(size=(300, 200)) * np.r_[np.full(5, 10.0), np.full(195, 0.1)] @ turn
    layer = heads.whitening(rows.astype(np.float32), 5)
    along = layer.matrix / np.linalg.norm(layer.matrix, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(along @ turn[:5].T, axis=1), 1, atol=1e-3)


@pytest.mark.parametrize(("rows", "match"), [(np.ones((1, 4)), "too few"), (np.ones((9, 4)), "do not differ")])
def test_photos_that_cannot_be_whitened_are_an_error(rows: NDArray[np.float64], match: str) -> None:
    with pytest.raises(TrainError, match=match):
        heads.whitening(rows.astype(np.float32), 3)


@pytest.mark.parametrize("hidden", [0, 16])
@pytest.mark.parametrize("mirror_as_class", [True, False])
def test_training_a_projection_finds_the_numbers_that_tell_animals_apart(hidden: int, mirror_as_class: bool) -> None:
    vectors, labels = animals()
    held = holdout.split(labels, seed=1)
    plain = vectors[:, 0, 0].astype(np.float32)
    head = heads.train_head(
        vectors, labels, HeadConfig(hidden=hidden, mirror_as_class=mirror_as_class, **FAST), held=held
    )
    before, after = holdout.map_at_5(plain, labels, held), holdout.map_at_5(head.apply(plain), labels, held)
    assert after == pytest.approx(head.history[head.best].map_at_5)
    assert head.history[head.best].judged == max(epoch.judged for epoch in head.history)
    start = head.history[0].map_at_5 if hidden else before  # a layer before the projection does not begin as the cosine
    assert after > start + 0.1
    assert head.history[-1].loss < head.history[0].loss


@pytest.mark.parametrize("mirror_as_class", [True, False])
def test_a_photo_does_not_compete_with_its_mirror_image(mirror_as_class: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = animals(n_identities=8, photos=3)
    seen: list[tuple[list[int], list[int], torch.Tensor]] = []
    forward = losses.MarginSoftmax.forward

    def spy(self: losses.MarginSoftmax, x: Any, targets: losses.Targets) -> torch.Tensor:
        one = losses.Targets(targets.classes[:1], targets.twins[:1])
        first = Embedded(x.whole[:1].detach(), ())
        (gradient,) = torch.autograd.grad(forward(self, first, one), self.centres)
        seen.append((targets.classes.tolist(), targets.twins.tolist(), gradient.abs().sum(1)))
        return forward(self, x, targets)

    monkeypatch.setattr(losses.MarginSoftmax, "forward", spy)
    heads.train_head(vectors, labels, HeadConfig(dim=4, epochs=2, mirror_as_class=mirror_as_class))
    assert len(seen) == 2
    for classes, twins, pull in seen:
        if mirror_as_class:
            assert [abs(one - other) for one, other in zip(classes, twins, strict=True)] == [8] * 24
            assert len(pull) == 16 and pull[twins[0]] == 0 and int((pull > 0).sum()) == 15
        else:
            assert max(classes) == 7 and set(twins) == {-1} and len(pull) == 8 and bool((pull > 0).all())


def test_plain_layers_give_the_trained_networks_vectors() -> None:
    config = HeadConfig(dim=6, hidden=9)
    network = heads._network(10, config)
    rows = unit_rows(np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32))
    for _ in range(3):  # running means and variances that are not those of the start
        network(torch.from_numpy(rows * np.sqrt(np.float32(10))))
    layers = heads._layers(network)
    with torch.inference_mode():
        expected = network(torch.from_numpy(rows * np.sqrt(np.float32(10)))).numpy()
    np.testing.assert_allclose(graphs.apply_layers(rows, layers), expected, atol=1e-4)


def test_a_run_stops_when_the_held_out_photos_no_longer_gain_and_keeps_its_best_epoch() -> None:
    vectors, labels = animals()
    held = holdout.split(labels, seed=1)
    config = HeadConfig(**{**FAST, "epochs": 60, "patience": 3})
    head = heads.train_head(vectors, labels, config, held=held)
    assert len(head.history) == head.best + 4 < 60


def test_a_run_that_nothing_ends_asks_the_held_out_photos_once_and_keeps_its_last_epoch() -> None:
    vectors, labels = animals()
    held = holdout.split(labels, seed=1)
    head = heads.train_head(vectors, labels, HeadConfig(**{**FAST, "epochs": 3, "patience": 0}), held=held)
    assert head.best == 2 and [np.isnan(epoch.map_at_5) for epoch in head.history] == [True, True, False]
    found = holdout.map_at_5(head.apply(vectors[:, 0, 0]), np.unique(labels, return_inverse=True)[1], held)
    assert found == pytest.approx(head.history[-1].map_at_5)


def test_held_out_photos_judge_as_they_are_and_in_an_augmented_view() -> None:
    vectors, labels = animals()
    held = holdout.split(labels, seed=1)
    spoilt = vectors.copy()
    spoilt[held.queries, 1] = np.random.default_rng(0).normal(size=spoilt[held.queries, 1].shape)
    config = HeadConfig(**{**FAST, "epochs": 2})
    sound, harmed, alone = (
        heads.train_head(one, labels, config, held=held).history[-1] for one in (vectors, spoilt, vectors[:, :1])
    )
    assert harmed.map_at_5 == sound.map_at_5 and harmed.worn < sound.worn - 0.1  # nobody learns from them
    assert harmed.judged == (harmed.map_at_5 + harmed.worn) / 2
    assert np.isnan(alone.worn) and alone.judged == alone.map_at_5


def test_the_same_seed_gives_the_same_projection() -> None:
    vectors, labels = animals(n_identities=8)
    trained = [heads.train_head(vectors, labels, HeadConfig(dim=4, epochs=2, seed=seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(trained[0].layers[0].matrix, trained[1].layers[0].matrix)
    assert (trained[0].layers[0].matrix != trained[2].layers[0].matrix).any()


def test_one_animal_or_vectors_that_are_not_finite_are_errors() -> None:
    vectors, labels = animals(n_identities=8)
    with pytest.raises(TrainError, match="one identity"):
        heads.train_head(vectors[:5], labels[:5])
    broken = vectors.copy()
    broken[0] = np.nan
    with pytest.raises(TrainError, match="no number") as caught:
        heads.train_head(broken, labels, HeadConfig(dim=4, epochs=2))
    assert caught.value.next_step


def test_a_split_keeps_sightings_apart() -> None:
    labels = ["a", "a", "b", "b", "c", "d", "d", "d"]
    sightings = np.array([0, 0, 1, 2, 3, 4, 5, 5])
    for seed in range(20):
        held = holdout.split(labels, sightings=sightings, seed=seed)
        names = [labels[i] for i in held.queries]
        assert "a" not in names and "c" not in names and "b" in names and "d" in names
        assert not set(sightings[held.queries]) & set(sightings[held.gallery])
        assert all(labels[i] in [labels[j] for j in held.gallery] for i in held.queries)
    assert len(holdout.split(labels, least=3).queries) == 1


def test_ranks_count_animals_not_photos() -> None:
    rng = np.random.default_rng(0)
    gallery, queries = rng.integers(0, 9, 30), rng.integers(0, 11, 12)
    scores = rng.normal(size=(12, 30))
    expected = []
    for q in range(12):
        best = {c: max(scores[q, gallery == c]) for c in set(gallery.tolist())}
        order = sorted(best, key=lambda c: -best[c])
        expected.append(order.index(queries[q]) + 1 if queries[q] in order else 0)
    assert holdout.ranks(scores, queries, gallery).tolist() == expected


# Kept vectors ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> list[Source]:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, pixels in enumerate(pictures(5, (40, 60))):
        cv2.imwrite(str(folder / f"{i}.png"), cv2.GaussianBlur(pixels, (9, 9), 3))
    return [Source(folder / f"{i}.png", Box(4, 4, 50, 36)) for i in range(5)]


class Counting:
    """An embedder that counts what it is asked to embed."""

    def __init__(self, folder: Path) -> None:
        self._inner = OpenVinoEmbedder(folder)
        self.card = self._inner.card
        self.crops = 0

    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.crops += len(crops)
        return self._inner.embed(crops)


def test_the_first_view_is_the_production_path_and_the_second_axis_its_mirror(
    base: Path, photos: list[Source], tmp_path: Path
) -> None:
    from reid import crop, images

    embedder = OpenVinoEmbedder(base)
    kept = features.cached(photos, embedder, tmp_path / "kept", views=3)
    assert kept.vectors.shape == (5, 3, 2, 5) and kept.rows.tolist() == [0, 1, 2, 3, 4] and not kept.failures
    crops = np.stack(
        [crop.cut(images.read(s.path).pixels, s.box, embedder.card.preprocessing) for s in photos if s.box]
    )
    np.testing.assert_allclose(kept.vectors[:, 0, 0], embedder.embed(crops), atol=2e-2)
    np.testing.assert_allclose(kept.vectors[:, 0, 1], embedder.embed(crops[:, :, ::-1]), atol=2e-2)
    assert (np.abs(kept.vectors[:, 1].astype(float) - kept.vectors[:, 0]).max(axis=(1, 2)) > 1e-4).all()


def test_kept_vectors_are_not_computed_twice_and_new_photos_are_added(
    base: Path, photos: list[Source], tmp_path: Path
) -> None:
    embedder = Counting(base)
    some = features.cached(photos[1:3], embedder, tmp_path / "kept", views=2)
    assert embedder.crops == 2 * 4
    every = features.cached(photos, embedder, tmp_path / "kept", views=2)
    assert embedder.crops == 5 * 4
    np.testing.assert_array_equal(every.vectors[1:3], some.vectors)
    again = features.cached(photos[::-1], embedder, tmp_path / "kept", views=2)
    assert embedder.crops == 5 * 4
    np.testing.assert_array_equal(again.vectors, every.vectors[::-1])
    features.cached(photos, embedder, tmp_path / "kept", views=2, augmentation=Augmentation(rotate=1))
    assert embedder.crops == 10 * 4


@pytest.mark.parametrize("cut", [1, 11, 40])
def test_a_half_written_row_is_computed_again(base: Path, photos: list[Source], tmp_path: Path, cut: int) -> None:
    embedder = Counting(base)
    whole = features.cached(photos, embedder, tmp_path / "kept", views=2)
    (stored,) = (tmp_path / "kept").glob("*/vectors.f16")
    stored.write_bytes(stored.read_bytes()[:-cut])
    keys = stored.with_name("keys.txt")
    keys.write_bytes(keys.read_bytes()[:-3])
    np.testing.assert_array_equal(features.cached(photos, embedder, tmp_path / "kept", views=2).vectors, whole.vectors)
    assert embedder.crops == 6 * 4
    assert len(keys.read_text().splitlines()) == 5 and stored.stat().st_size == 5 * 2 * 2 * 5 * 2


def test_a_photo_that_cannot_be_read_is_reported_and_left_out(base: Path, photos: list[Source], tmp_path: Path) -> None:
    photos[2].path.write_bytes(b"not a photo")
    kept = features.cached(photos, OpenVinoEmbedder(base), tmp_path / "kept", views=1)
    assert kept.rows.tolist() == [0, 1, 3, 4] and len(kept.vectors) == 4
    assert [(failure.source, failure.code) for failure in kept.failures] == [(str(photos[2].path), "bad_photo")]


def test_a_folder_that_cannot_be_written_to_is_a_typed_error(base: Path, photos: list[Source], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainError, match="cannot keep vectors there"):
        features.cached(photos, OpenVinoEmbedder(base), tmp_path / "file")


def test_no_augmentation_gives_the_plain_crop_every_time() -> None:
    still = Augmentation(0, 0, 0, 0, 0, 0, 0, 0, 0)
    preprocessing = Preprocessing(*SIZE, (0.0,) * 3, (255.0,) * 3)
    pixels = pictures(1, (60, 90))[0]
    views = features.views_of(pixels, Box(5, 5, 80, 50), preprocessing, 3, np.random.default_rng(0), augmentation=still)
    for view in views:
        np.testing.assert_array_equal(view[0], views[0, 0])
        np.testing.assert_array_equal(view[1], views[0, 0][:, ::-1])
