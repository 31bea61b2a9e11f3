"""Recipes as files: what they may say, and that each of the package's can be trained and exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from few_flukes import Sources, fluke_sources
from painted_store import one_thread

from reid import siamese
from reid.errors import ConfigError
from reid.train import recipe
from reid.train.recipe import Divided, Margin, Pair, Recipe

__all__ = ["fluke_sources", "one_thread"]

SMALL = """
system = "ours"
[input]
height = 64
width = 96
[[loss]]
kind = "margin"
scale = 30
dynamic = [0.27, 0.364, 0.05]
[schedule]
epochs = 9
sizes = [0.5, 1]
[laptop.schedule]
epochs = 2
[[gpu.loss]]
kind = "divided"
clusters = 4
"""
PUBLISHED = {
    "arcface_768", "fifteenth_sphereface", "fifth_place", "first_place", "happywhale_subcentre", "ninth_cosface",
    "second_place", "seventh_metric", "seventh_stripes", "siamese_lap", "tenth_divided_margin", "tenth_siamese",
    "third_place",
}  # fmt: skip
OWN = {"any_animal", "flukes"}


def test_a_scale_changes_what_its_sections_say_and_nothing_else() -> None:
    laptop, gpu = (recipe.parse(SMALL, "mine", scale) for scale in ("laptop", "gpu"))  # type: ignore[arg-type]
    assert laptop.schedule == replace(gpu.schedule, epochs=2) and gpu.schedule.epochs == 9
    assert gpu.schedule.sizes == (0.5, 1.0) and laptop.input == gpu.input and gpu.input.width == 96
    assert laptop.losses == (Margin(scale=30.0, dynamic=(0.27, 0.364, 0.05)),) and gpu.losses == (Divided(clusters=4),)
    assert laptop.to_dict()["losses"][0]["kind"] == "margin" and laptop.name == "mine"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("hight = 3", "unknown key 'hight'"),
        ("[input]\nhight = 3", "unknown key 'input.hight'"),
        ("[laptop]\nspeed = 3", "unknown key 'laptop.speed'"),
        ("[laptop.network]\ndepth = 3", "unknown key 'network.depth'"),
        ("[schedule]\nepochs = 2.5", "'schedule.epochs' is 2.5"),
        ("[network]\npooling = 'mean'", "'network.pooling' is 'mean'"),
        ("[network]\npooling = 'inner'\nlevels = 3", "goes with no levels"),
        ("[schedule]\nsizes = ['large']", "'schedule.sizes'"),
        ("[schedule]\nepochs = true", "'schedule.epochs' is True"),
        ("network = 3", "'network' is 3"),
        ("[[loss]]\nkind = 'hinge'", "no loss 'hinge'"),
        ("[[loss]]\nscale = 3", "no loss 'None'"),
        ("[[loss]]\nkind = 'ring'\nscale = 3", "unknown key 'loss ring: scale'"),
        ("[[loss]]\nkind = 'pair'", "go together"),
        ("[network]\nboth = true\n[sampling]\nkind = 'pairs'\n[[loss]]\nkind = 'pair'", "network.both"),
        ("[schedule]\nepochs = 0", "schedule.epochs is 0: it must be in [1, "),
        ("[sampling]\namong = -1", "sampling.among is -1: it must be 0 or more"),
        (
            "[network]\ndim = 8\n[[loss]]\nkind = 'divided'\nclusters = 2\n[[loss]]\nkind = 'divided'\nclusters = 4",
            "at most",
        ),
        ("[sampling]\nalike = 0.5", "sampling.alike needs"),
        ("[input]\nserved = 3.0", "input.served must be"),
        ("[input]\nheight = 96\nwidth = 192\nserved = 1.05", "too near 1"),
        ("[sampling]\nkind = 'identities'\nalike = 1.5", "sampling.alike must be"),
        (
            "[sampling]\nkind = 'identities'\nalike = 0.5\n[network]\ndim = 8\n[[loss]]\nkind = 'divided'",
            "take one",
        ),
        ("[sampling]\nnew_targets = 'distilled'", "go together"),
        ("[sampling]\nteacher = 'm'", "go together"),
        ("[sampling]\nnew_targets = 'distilled'\nteacher = 'm'\nnew_share = 0.2", "a loss with uniform"),
        ("[sampling]\nnew_targets = 'guessed'", "'sampling.new_targets' is 'guessed'"),
        ("[sampling]\nheat = 0", "sampling.heat must be above 0"),
        ("[laptop.input]\nheight = 8", "input.height is 8: it must be in [32, 4096]"),
        ("[", "not a recipe"),
        ("loss = 5  # no [[loss]]", "write [[loss]]"),
        ("[laptop]\nloss = ['margin']", "write [[loss]]"),
        ("[[loss]]\nkind = ['margin']", "no loss"),
        ("[[loss]]\nkind = 'divided'\nclusters = 0", "loss divided.clusters is 0"),
        ("[[loss]]\nkind = 'margin'\ncentres = 0", "loss margin.centres is 0"),
        ("[[loss]]\nkind = 'sphere'\nm = 0", "loss sphere.m is 0"),
        ("[[loss]]\nkind = 'sigmoid'\nhardest = -30", "loss sigmoid.hardest is -30"),
        ("[[loss]]\nkind = 'margin'\nweight = nan", "weight' is nan"),
        ("[network]\nlocal = -1", "network.local is -1"),
        ("[network]\ngem = nan", "'network.gem' is nan"),
        ("[network]\ngem = -3", "network.gem is -3"),
        ("[input]\nserved = nan", "'input.served' is nan"),
        ("[augment]\nshift = 1e308", "'augment.shift' is 1e+308"),
        ("[augment]\nzoom = 5", "augment.zoom is 5"),
        ("[schedule]\nrate = inf", "'schedule.rate' is inf"),
        ("[schedule]\nhead_rate = -3", "schedule.head_rate is -3"),
        ("[schedule]\nrestarts = -2", "schedule.restarts is -2"),
        ("[schedule]\naverage_of = 5", "schedule.average_of is 5"),
        ("[schedule]\nepochs = 1000000000000", "'schedule.epochs' is 1000000000000"),
    ],
)
def test_what_is_not_known_is_an_error_that_names_it(change: str, said: str) -> None:
    text = change if "[[loss]]" in change else f"{change}\n[[loss]]\nkind = 'margin'\n"
    with pytest.raises(ConfigError) as caught:
        recipe.parse(text, "mine", "gpu", "mine.toml")
    assert said in str(caught.value) and "mine.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("height", "width", "served", "size"),
    [(96, 192, 1.17, (112, 224)), (160, 192, 1.17, (192, 230)), (96, 96, 0.5, (48, 48)), (96, 192, 1.0, (96, 192))],
)
def test_a_network_serves_at_one_shape(height: int, width: int, served: float, size: tuple[int, int]) -> None:
    assert recipe.InputConfig(height, width, served=served).served_size == size


def test_a_recipe_of_ones_own_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(SMALL)
    assert recipe.load(tmp_path / "mine.toml", "laptop") == recipe.parse(SMALL, "mine", "laptop")
    with pytest.raises(ConfigError, match="cannot be read"):
        recipe.load(tmp_path / "other.toml", "laptop")
    with pytest.raises(ConfigError, match="no recipe 'thrid_place'.*third_place"):
        recipe.load("thrid_place", "laptop")
    with pytest.raises(ConfigError, match="no scale 'tpu'"):
        recipe.load("third_place", "tpu")  # type: ignore[arg-type]


def test_the_package_has_every_published_system_and_those_of_our_own() -> None:
    assert set(recipe.names()) == PUBLISHED | OWN
    for name in recipe.names():
        laptop, gpu = (recipe.load(name, scale) for scale in ("laptop", "gpu"))  # type: ignore[arg-type]
        assert laptop.system and laptop.notes and laptop.network.backbone == "tf_efficientnet_lite0"
        assert gpu.input.height * gpu.input.width > laptop.input.height * laptop.input.width
        assert (gpu.sampling.kind == "pairs") == any(isinstance(loss, Pair) for loss in gpu.losses)


def tiny(made: Recipe) -> Recipe:
    """The same system on as few pixels and numbers as it can stand."""
    wide = made.input.width > made.input.height
    network = replace(
        made.network, backbone="test_efficientnet", dim=32 if made.network.dim else 0, local=8 if made.network.local else 0,
    )  # fmt: skip
    schedule = replace(made.schedule, epochs=2, batch=12, sizes=made.schedule.sizes[-2:])
    return replace(
        made, input=replace(made.input, height=32, width=64 if wide else 32), network=network, schedule=schedule
    )


@pytest.mark.parametrize("name", sorted(PUBLISHED | OWN))
def test_every_recipe_takes_steps_and_is_exported(name: str, tmp_path: Path, fluke_sources: Sources) -> None:
    pytest.importorskip("torch")
    from reid.embed import OpenVinoEmbedder
    from reid.train import embedder

    sources, labels = fluke_sources
    made = tiny(recipe.load(name, "laptop"))
    done = embedder.train(sources, labels, made, tmp_path, name, pretrained=False)
    assert done.steps >= 2 and len(done.history) == 2 and all(np.isfinite(e.loss) for e in done.history)
    assert (done.model / siamese.FOLDER).is_dir() == (made.sampling.kind == "pairs")
    found = OpenVinoEmbedder(done.model)
    crops = np.random.default_rng(0).integers(0, 256, (3, *made.input.served_size, 3), np.uint8)
    vectors = found.embed(crops)
    assert vectors.shape == (3, found.card.dim) and found.card.extra["recipe"] == name
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("name", sorted(PUBLISHED | OWN))
def test_at_gpu_scale_networks_take_their_photos_and_losses_begin_on_the_device_they_are_on(name: str) -> None:
    torch = pytest.importorskip("torch")
    from reid.train import losses, network

    made = recipe.load(name, "gpu")
    size = made.input.height, made.input.width
    classes = 12 if made.sampling.mirror == "class" else 6
    with torch.device("meta"):  # shapes and devices alone, so that the real sizes cost nothing
        net, _ = network.build(made.network, grey=made.input.grey, pretrained=False, size=size)
        found = net.train().embed(torch.empty(4, 3, *size))
        summed = losses.Sum(made.losses, losses.Space(net.dim, net.n_parts, np.arange(1, classes + 1)))
    summed.start(torch.empty(classes, net.dim, device="meta"))  # what is made beside them is made there, too
    assert found.whole.shape == (4, net.dim) and found.whole.device.type == "meta"
