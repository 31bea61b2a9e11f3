"""A network made ready for a package: half the bytes, the same vectors in both runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from reid import models  # noqa: E402
from reid.embed import OpenVinoEmbedder  # noqa: E402
from reid.models import Preprocessing  # noqa: E402
from reid.train import embedder, network, recipe, shipping  # noqa: E402
from reid.train.torch_runtime import TorchEmbedder  # noqa: E402

RECIPE = """
[input]
height = 48
width = 96
[network]
backbone = "test_efficientnet"
dim = 16
both = true
[[loss]]
kind = "triplet"
"""


@pytest.fixture(scope="module")
def models_of_one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A network as a training writes it, and as it ships."""
    folder = tmp_path_factory.mktemp("shipping")
    (folder / "tiny.toml").write_text(RECIPE)
    how = recipe.load(folder / "tiny.toml", "gpu")
    torch.manual_seed(3)
    net, (mean, std) = network.build(how.network, pretrained=False)
    whole = embedder.write(net.eval(), how, Preprocessing(48, 96, mean, std), folder, "whole")
    return whole, shipping.halved(whole, folder, "small", source="drawn", by="tiny", threshold=0.7)


def test_it_takes_half_the_bytes_and_says_where_it_comes_from(models_of_one: tuple[Path, Path]) -> None:
    whole, small = (sum(file.stat().st_size for file in one.glob("*.[bs]*")) for one in models_of_one)
    assert small < 0.6 * whole
    card = models.read_card(models_of_one[1])
    assert (card.name, card.source, card.licence) == ("small", "drawn", shipping.LICENCE)
    assert card.extra["recipe"] == "tiny" and card.extra["network"]["dim"] == 16
    assert card.fingerprint != models.read_card(models_of_one[0]).fingerprint


def test_both_runtimes_give_its_vectors_and_hardly_others_than_before(models_of_one: tuple[Path, Path]) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (5, 48, 96, 3), dtype=np.uint8)
    before, after = (OpenVinoEmbedder(one, threads=1).embed(crops) for one in models_of_one)
    assert after.shape == (5, 32)
    np.testing.assert_allclose(TorchEmbedder(models_of_one[1], device="cpu").embed(crops), after, atol=2e-3)
    assert 0.999 < (before * after).sum(1).min() < 1


def test_it_can_learn_further(models_of_one: tuple[Path, Path]) -> None:
    shape = recipe.NetworkConfig(**models.read_card(models_of_one[1]).extra["network"])
    net, _ = network.build(shape, pretrained=False)
    embedder.backbone.load_weights(net, models_of_one[1])
    assert all(
        torch.equal(value, value.half().float()) for value in net.state_dict().values() if value.is_floating_point()
    )


def test_graph_and_weights_of_the_network_that_ships_are_of_one_training(tmp_path: Path) -> None:
    shipped = models.ensure(tmp_path, models.FLUKE)
    card = models.read_card(shipped)
    size = (3, card.preprocessing.height, card.preprocessing.width, 3)
    crops = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    served = OpenVinoEmbedder(shipped, threads=1).embed(crops)
    np.testing.assert_allclose(TorchEmbedder(shipped, device="cpu").embed(crops), served, atol=2e-3)
