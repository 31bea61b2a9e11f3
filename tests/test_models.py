"""Model directories and the two runtimes behind them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from reid import lite0, models
from reid.embed import TOLERANCE, OpenVinoEmbedder
from reid.errors import ModelError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.ensure(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def crops(folder: Path) -> np.ndarray:
    """Smooth random pictures (noise alone would give vectors that are all alike)."""
    size = models.read_card(folder).preprocessing
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (20, 8, 8, 3), np.uint8)
    return np.stack([np.kron(c, np.ones((size.height // 8, size.width // 8, 1), np.uint8)) for c in coarse])


def apart_from_mean(vectors: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both less the first ones' mean, as unit rows: what tells crops apart, without what all of them share."""
    left, right = vectors - vectors.mean(0), others - vectors.mean(0)
    return left / np.linalg.norm(left, axis=1, keepdims=True), right / np.linalg.norm(right, axis=1, keepdims=True)


def test_vectors_are_unit_rows_and_do_not_depend_on_their_batch(folder: Path, crops: np.ndarray) -> None:
    embedder = OpenVinoEmbedder(folder)
    together = embedder.embed(crops)
    assert together.shape == (20, embedder.card.dim) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([embedder.embed(crops[i : i + 1]) for i in range(20)])
    assert (together * alone).sum(1).min() >= TOLERANCE
    apart, _ = apart_from_mean(together, together)
    assert (apart @ apart.T)[~np.eye(20, dtype=bool)].max() < 0.7


def test_no_crops_give_no_vectors(folder: Path, crops: np.ndarray) -> None:
    embedder = OpenVinoEmbedder(folder)
    assert embedder.embed(crops[:0]).shape == (0, embedder.card.dim)


def test_crops_of_another_size_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="crops must be"):
        OpenVinoEmbedder(folder).embed(np.zeros((1, 10, 10, 3), np.uint8))


def test_a_lost_or_broken_compiled_copy_is_made_again(folder: Path, crops: np.ndarray) -> None:
    first = OpenVinoEmbedder(folder).embed(crops[:1])
    blobs = list((folder / "compiled").iterdir())
    assert blobs
    for blob in blobs:
        blob.write_bytes(b"not machine code")
    np.testing.assert_allclose(OpenVinoEmbedder(folder).embed(crops[:1]), first, atol=1e-4)


@pytest.mark.parametrize("pooling", lite0.POOLINGS)
def test_torch_and_openvino_give_the_same_vectors(tmp_path: Path, crops: np.ndarray, pooling: str) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    from reid.train.torch_runtime import TorchEmbedder

    folder = models.write_default(tmp_path, pooling=pooling)
    ours, theirs = OpenVinoEmbedder(folder).embed(crops), TorchEmbedder(folder, device="cpu").embed(crops)
    assert theirs.shape == (20, lite0.POOLINGS[pooling])
    assert (ours * theirs).sum(1).min() >= TOLERANCE
    left, right = apart_from_mean(ours, theirs)
    assert (left * right).sum(1).min() > 0.99


def test_every_pooling_is_another_model(tmp_path: Path) -> None:
    cards = [models.read_card(models.write_default(tmp_path, pooling=pooling)) for pooling in lite0.POOLINGS]
    assert len({card.fingerprint for card in cards}) == len(lite0.POOLINGS)


def test_the_defaults_differ_in_the_shape_of_their_crops(tmp_path: Path) -> None:
    cards = [models.read_card(models.ensure(tmp_path, name)) for name in models.DEFAULTS]
    sizes = [(c.name, c.preprocessing.height, c.preprocessing.width, c.preprocessing.margin, c.dim) for c in cards]
    assert sizes == [("lite0", 384, 384, 0.1, 2304), ("lite0-wide", 192, 384, 0.1, 2304)]
    assert cards[0].weights_sha256 == cards[1].weights_sha256 and cards[0].fingerprint != cards[1].fingerprint


def test_the_fingerprint_follows_weights_and_preprocessing_and_nothing_else(folder: Path) -> None:
    card = models.read_card(folder)
    same = dataclasses.replace(card, name="other", source="elsewhere", licence="MIT")
    larger = dataclasses.replace(card, preprocessing=dataclasses.replace(card.preprocessing, height=288))
    retrained = dataclasses.replace(card, weights_sha256="0" * 64)
    assert same.fingerprint == card.fingerprint
    assert len({card.fingerprint, larger.fingerprint, retrained.fingerprint}) == 3


def test_a_card_edited_by_hand_is_refused(folder: Path, tmp_path: Path) -> None:
    raw = json.loads((folder / models.CARD).read_text())
    raw["preprocessing"]["margin"] = 0.5
    (tmp_path / models.CARD).write_text(json.dumps(raw))
    with pytest.raises(ModelError, match="edited by hand"):
        models.read_card(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1}'])
def test_a_broken_card_is_a_typed_error(tmp_path: Path, text: str) -> None:
    (tmp_path / models.CARD).write_text(text)
    with pytest.raises(ModelError):
        models.read_card(tmp_path)


def test_an_unknown_model_is_refused_with_the_names_there_are(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no model 'nessie' \(there are: fluke, lite0, lite0-wide\)"):
        models.ensure(folder.parent, "nessie")


def test_writing_a_model_again_replaces_it_whole(tmp_path: Path) -> None:
    first = models.write_default(tmp_path)
    models.write_default(tmp_path, height=64, width=64)
    assert models.read_card(first).preprocessing.height == 64
    assert [p.name for p in tmp_path.iterdir()] == ["lite0"]


def timm_checkpoint(folder: Path, name: str) -> Path:
    """Weights of timm's network `name`, drawn at random, as a file."""
    import torch
    from safetensors.numpy import save_file

    from reid.train import backbone
    from reid.train.torchvision_ops import import_timm

    torch.manual_seed(0)
    network = import_timm().create_model(name, pretrained=False, num_classes=0)
    save_file(backbone.tensors_of(network), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def test_a_timm_network_from_a_local_checkpoint_becomes_a_model_directory(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra")
    pytest.importorskip("safetensors", reason="needs the train extra")
    from reid.train import backbone
    from reid.train.torch_runtime import TorchEmbedder

    checkpoint = timm_checkpoint(tmp_path, "test_efficientnet")
    network, card = backbone.from_name("timm:test_efficientnet", checkpoint)
    written = backbone.export(network, card, tmp_path / "models")
    assert models.read_card(written) == card and card.name == "test_efficientnet"
    height, width = card.preprocessing.height, card.preprocessing.width
    crops = np.random.default_rng(1).integers(0, 256, (3, height, width, 3), np.uint8)
    with torch.inference_mode():
        rows = network(torch.from_numpy(crops)).numpy()
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert (OpenVinoEmbedder(written).embed(crops) * expected).sum(1).min() >= TOLERANCE
    np.testing.assert_allclose(TorchEmbedder(written, device="cpu").embed(crops), expected, atol=1e-5)
    with pytest.raises(ModelError, match="does not fit"):
        backbone.from_name("timm:test_vit", checkpoint)


def test_a_trained_default_network_is_exported_with_its_pooling(
    tmp_path: Path, folder: Path, crops: np.ndarray
) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra")
    from reid.train import backbone

    network, card = backbone.from_folder(folder)
    with torch.no_grad():  # as training would, it changes weights and keeps the rest
        network.network.blocks[6][0].conv_pw.weight[:640] = 0.0
    tensors = backbone.tensors_of(network.network)
    tuned = dataclasses.replace(card, name="tuned", weights_sha256=models.hash_tensors(tensors.items()))
    written = backbone.export(network, tuned, tmp_path)
    again, _ = backbone.from_folder(written)
    with torch.inference_mode():
        rows = again(torch.from_numpy(crops)).numpy()
    ours = OpenVinoEmbedder(written).embed(crops)
    assert ours.shape == (20, 2304)
    assert (ours * rows).sum(1).min() / np.linalg.norm(rows, axis=1).max() >= TOLERANCE
    assert (ours * OpenVinoEmbedder(folder).embed(crops)).sum(1).max() < TOLERANCE


def test_gradients_reach_every_layer_through_multi(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra")
    from reid.train import backbone

    network, _ = backbone.from_folder(models.write_default(tmp_path, pooling="multi"))
    network(torch.full((1, 64, 64, 3), 128, dtype=torch.uint8))[:, ::2].sum().backward()
    grads = {name: weight.grad for name, weight in network.network.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None or not torch.isfinite(grad).all()] == []


def test_the_pooling_of_another_network_is_refused(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    from reid.train import backbone

    card = dataclasses.replace(models.read_card(folder), architecture="resnet18")
    raw = {"format": models.FORMAT, "fingerprint": card.fingerprint, **dataclasses.asdict(card)}
    (tmp_path / models.CARD).write_text(json.dumps(raw))
    with pytest.raises(ModelError, match="no pooling 'inner' for resnet18"):
        backbone.from_folder(tmp_path)


@pytest.mark.parametrize("spec", ["timm:resnet18", "hf-hub:nobody/nothing"])
def test_without_a_network_published_weights_fail_at_once(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    hub = pytest.importorskip("huggingface_hub")
    from reid.train import backbone

    def unreachable(*args: object, **named: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *args, **named: None)
    with pytest.raises(ModelError, match=r"hub cannot be reached .* pass --checkpoint FILE"):
        backbone.from_name(spec)


def test_without_a_network_weights_fetched_before_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    hub = pytest.importorskip("huggingface_hub")
    from reid.train import backbone

    def unreachable(*args: object, **named: object) -> None:
        raise ConnectionError("no route")

    kept = timm_checkpoint(tmp_path, "test_efficientnet")
    monkeypatch.setattr(hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(
        hub, "try_to_load_from_cache", lambda _, name, **named: str(kept) if name == "model.safetensors" else None
    )
    cached, card = backbone.from_name("timm:test_efficientnet")
    assert card.weights_sha256 == backbone.from_name("timm:test_efficientnet", kept)[1].weights_sha256


def test_an_unknown_timm_name_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    from reid.train import backbone

    with pytest.raises(ModelError, match="cannot make 'timm:resnet_of_the_sea'"):
        backbone.from_name("timm:resnet_of_the_sea")


def test_a_pickled_checkpoint_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra")
    from reid.train import backbone

    torch.save({"hyper": Path("anything")}, tmp_path / "model.pth")
    with pytest.raises(ModelError, match="not a checkpoint of tensors"):
        backbone.read_checkpoint(tmp_path / "model.pth")
