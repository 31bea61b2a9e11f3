"""Model directories and the two runtimes behind them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from reid import models
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


def test_vectors_are_unit_rows_and_do_not_depend_on_their_batch(folder: Path, crops: np.ndarray) -> None:
    embedder = OpenVinoEmbedder(folder)
    together = embedder.embed(crops)
    assert together.shape == (20, embedder.card.dim) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([embedder.embed(crops[i : i + 1]) for i in range(20)])
    assert (together * alone).sum(1).min() >= TOLERANCE
    assert (together @ together.T)[~np.eye(20, dtype=bool)].max() < 0.99


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


def test_torch_and_openvino_give_the_same_vectors(folder: Path, crops: np.ndarray) -> None:
    pytest.importorskip("torch", reason="needs the train extra")
    from reid.train.torch_runtime import TorchEmbedder

    ours, theirs = OpenVinoEmbedder(folder).embed(crops), TorchEmbedder(folder, device="cpu").embed(crops)
    assert (ours * theirs).sum(1).min() >= TOLERANCE


def test_the_fingerprint_follows_weights_and_preprocessing_and_nothing_else(folder: Path) -> None:
    card = models.read_card(folder)
    same = dataclasses.replace(card, name="other", source="elsewhere", licence="MIT")
    larger = dataclasses.replace(card, preprocessing=dataclasses.replace(card.preprocessing, height=256))
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
    with pytest.raises(ModelError, match=r"no model 'nessie' \(there are: lite0\)"):
        models.ensure(folder.parent, "nessie")


def test_writing_a_model_again_replaces_it_whole(tmp_path: Path) -> None:
    first = models.write_default(tmp_path)
    models.write_default(tmp_path, height=64, width=64)
    assert models.read_card(first).preprocessing.height == 64
    assert [p.name for p in tmp_path.iterdir()] == ["lite0"]


def test_a_timm_network_from_a_local_checkpoint_becomes_a_model_directory(tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("timm", reason="needs the train extra")
    from safetensors.numpy import save_file

    from reid.train import backbone

    network, _ = backbone.from_folder(folder)
    checkpoint = tmp_path / "weights.safetensors"
    save_file(backbone.tensors_of(network.network), checkpoint)
    loaded, card = backbone.from_name("timm:tf_efficientnet_lite0", checkpoint)
    written = backbone.export(loaded, card, tmp_path / "models")
    sample = np.random.default_rng(1).integers(0, 256, (2, 224, 224, 3), np.uint8)
    reference = OpenVinoEmbedder(models.write_default(tmp_path / "plain")).embed(sample)
    assert (OpenVinoEmbedder(written).embed(sample) * reference).sum(1).min() >= TOLERANCE
    with pytest.raises(ModelError, match="does not fit"):
        backbone.from_name("timm:resnet18", checkpoint)


def test_a_pickled_checkpoint_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra")
    from reid.train import backbone

    torch.save({"hyper": Path("anything")}, tmp_path / "model.pth")
    with pytest.raises(ModelError, match="not a checkpoint of tensors"):
        backbone.read_checkpoint(tmp_path / "model.pth")
