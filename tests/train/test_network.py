"""Poolings and necks against plain arithmetic on the same maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from reid import models  # noqa: E402
from reid.embed import OpenVinoEmbedder, unit_rows  # noqa: E402
from reid.errors import ModelError  # noqa: E402
from reid.train import network  # noqa: E402
from reid.train.network import Network  # noqa: E402
from reid.train.recipe import NetworkConfig  # noqa: E402

TINY = NetworkConfig(backbone="test_efficientnet", dim=0, neck=False)
X = torch.randn(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))


def made(config: NetworkConfig) -> Network:
    torch.manual_seed(0)
    return network.build(config, pretrained=False)[0].eval()


def gem(maps: Any, power: float) -> Any:
    values = np.maximum(maps.detach().numpy().astype(np.float64), 1e-6)
    return (values**power).mean((2, 3)) ** (1 / power)


@torch.inference_mode()
def test_each_pooling_is_what_its_name_says() -> None:
    bare = made(TINY).backbone
    last, inner = bare.forward_intermediates(X)
    means = last.mean((2, 3)).numpy()
    top = last.amax((2, 3)).numpy()
    width = last.shape[3]
    quarters = [last[:, :, :, width * i // 2 : width * (i + 1) // 2] for i in range(2)]
    expected = {
        "avg": means,
        "max": top,
        "max_avg": np.concatenate([top, means], 1),
        "gem": gem(last, 3.0),
        "last_two": np.concatenate([gem(inner[-2], 3.0), gem(last, 3.0)], 1),
        "all_stages": np.concatenate([one.mean((2, 3)).numpy() for one in (*inner[-4:-1], last)], 1),
    }
    for pooling, wanted in expected.items():
        found = made(replace(TINY, pooling=pooling))  # type: ignore[arg-type]
        assert found.dim == wanted.shape[1], pooling
        np.testing.assert_allclose(found(X).numpy(), wanted, rtol=1e-3, atol=1e-5, err_msg=pooling)
    strips = made(replace(TINY, pooling="stripes", stripes=2, dim=8, gem=4.0))
    halves = [
        gem(one, 4.0) @ p.weight.numpy().T + p.bias.numpy() for one, p in zip(quarters, strips.projections, strict=True)
    ]
    np.testing.assert_allclose(strips(X).numpy(), np.concatenate(halves, 1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pooling", ["avg", "gem", "max", "max_avg", "last_two", "all_stages"])
@torch.inference_mode()
def test_cells_of_a_grid_are_pooled_apart(pooling: Any) -> None:
    whole, cells = made(replace(TINY, pooling=pooling)), made(replace(TINY, pooling=pooling, rows=1, columns=2))
    maps = whole.maps(X)
    halves = [[one[..., : one.shape[3] // 2] for one in maps], [one[..., one.shape[3] // 2 :] for one in maps]]
    left, right = (whole.pooled(half)[0].numpy() for half in halves)
    found = cells(X).numpy()
    assert cells.dim == 2 * whole.dim == found.shape[1]
    np.testing.assert_allclose(np.sort(found), np.sort(np.concatenate([left, right], 1)), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_both_serves_the_mirrored_photos_vector_beside_the_photos_own() -> None:
    one, both = made(replace(TINY, dim=8)), made(replace(TINY, dim=8, both=True))
    both.load_state_dict(one.state_dict())
    found, turned = both(X), both(X.flip(3))
    assert (both.dim, both.served, found.shape) == (8, 16, (2, 16))
    np.testing.assert_allclose(found[:, :8], torch.nn.functional.normalize(one(X)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[:, 8:], turned[:, :8], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both.embed(X).whole, one.embed(X).whole)


@torch.inference_mode()
def test_a_network_cut_short_gives_the_maps_of_its_first_levels() -> None:
    whole, cut = made(TINY), made(replace(TINY, levels=4, pooling="last_two", dim=8))
    inner = whole.backbone.forward_intermediates(X)[1]
    for found, wanted in zip(cut.maps(X), inner[2:4], strict=True):
        np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-4, atol=1e-6)
    assert sum(p.numel() for p in cut.backbone.parameters()) < sum(p.numel() for p in whole.backbone.parameters())
    with pytest.raises(ModelError, match="levels"):
        made(replace(TINY, levels=9))


@pytest.fixture
def small_swin(monkeypatch: pytest.MonkeyPatch) -> str:
    """Swin with so few numbers that it is made at once."""
    few = {"embed_dim": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 1, 2, 2)}
    timm = network.import_timm()
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **more: make(name, **more, **few))
    return "swin_tiny_patch4_window7_224"


SIZE = (64, 128)  # of X


@torch.inference_mode()
def test_transformers_give_maps_of_photos_of_any_size(small_swin: str) -> None:
    swin = network.build(
        NetworkConfig(backbone=small_swin, dim=0, neck=False, pooling="avg"), pretrained=False, size=SIZE
    )
    net = swin[0].eval()
    last = net.backbone.forward_features(X)  # (B, h, w, C)
    assert [tuple(one.shape) for one in net.maps(X)] == [(2, 64, 2, 4)] and net.dim == last.shape[3] == 64
    np.testing.assert_allclose(net(X).numpy(), last.mean((1, 2)).numpy(), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_tokens_of_a_vision_transformer_are_pooled_where_they_lie() -> None:
    def vit(**more: Any) -> Network:
        config = NetworkConfig(backbone="test_vit", dim=0, neck=False, pooling="avg", **more)
        return network.build(config, pretrained=False, size=SIZE)[0].eval()

    torch.manual_seed(0)
    net = vit(rows=1, columns=2)
    tokens = net.backbone.forward_features(X)[:, net.backbone.num_prefix_tokens :]
    laid = tokens.reshape(2, 4, 8, 64)
    halves = np.stack([laid[:, :, :4].mean((1, 2)).numpy(), laid[:, :, 4:].mean((1, 2)).numpy()], 2).reshape(2, 128)
    np.testing.assert_allclose(net(X).numpy(), halves, rtol=1e-3, atol=1e-4)
    assert vit(levels=2)(X).shape == (2, 64)
    assert network.build(NetworkConfig(backbone="test_vit", pooling="last_two"), pretrained=False, size=SIZE)[0](
        X
    ).shape == (2, 512)


@torch.inference_mode()
def test_a_convolutions_vectors_do_not_depend_on_being_asked_whether_it_gives_maps() -> None:
    for name in ("test_efficientnet", "test_convnext", "test_resnet"):
        config = NetworkConfig(backbone=name, dim=0, neck=False, pooling="avg")
        torch.manual_seed(0)
        net = network.build(config, pretrained=False, size=SIZE)[0].eval()
        np.testing.assert_allclose(
            net(X).numpy(), net.backbone.forward_features(X).mean((2, 3)).numpy(), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(("name", "size"), [("test_vit", (64, 100)), ("mixer_s32_224", SIZE)])
def test_a_network_that_cannot_give_maps_is_refused_with_a_next_step(name: str, size: tuple[int, int]) -> None:
    with pytest.raises(ModelError, match=f"'{name}' gives no maps of photos of {size[1]}×64") as caught:
        network.build(NetworkConfig(backbone=name), pretrained=False, size=size)
    assert "[input] height and width" in caught.value.next_step


def test_more_stripes_than_columns_overlap() -> None:
    maps = torch.arange(2.0).view(1, 1, 1, 2)
    assert [s.flatten().tolist() for s in network._strips(maps, 4)] == [[0.0], [0.0], [1.0], [1.0]]
    three = network._strips(torch.arange(3.0).view(1, 1, 1, 3), 2)
    assert [s.flatten().tolist() for s in three] == [[0.0, 1.0], [1.0, 2.0]]


def test_the_neck_has_no_shift_and_the_rows_are_unit_vectors() -> None:
    found = made(replace(TINY, dim=16, neck=True, norm_first=True, dropout=0.5, act="celu", local=4))
    assert not found.necks[0].bias.requires_grad and float(found.necks[0].bias.abs().sum()) == 0
    out = found.embed(X)
    assert out.whole.shape == (2, 16) and out.parts[0] is not None and out.rows is not None
    last = found.backbone.forward_features(X)
    assert out.rows.shape == (2, last.shape[2], 4)
    np.testing.assert_allclose(out.rows.norm(dim=2).detach().numpy(), 1, atol=1e-5)
    assert torch.equal(found(X), out.whole)


def test_a_grey_network_sees_no_colours() -> None:
    torch.manual_seed(0)
    found = network.build(replace(TINY, dim=8), grey=True, pretrained=False)[0].eval()
    luma = 0.299 * X[:, :1] + 0.587 * X[:, 1:2] + 0.114 * X[:, 2:]
    np.testing.assert_allclose(found(X).detach().numpy(), found(luma.expand(-1, 3, -1, -1)).detach().numpy(), atol=1e-4)


def test_stages_are_groups_of_all_parameters_in_order() -> None:
    found = made(TINY)
    names = [name for group in found.groups() for name in group]
    assert set(names) == {name for name, _ in found.backbone.named_parameters()}
    assert "conv_stem.weight" in found.groups()[0] and "conv_head.weight" in found.groups()[-1]


def test_a_whitened_start_gives_directions_of_equal_weight() -> None:
    found = made(replace(TINY, dim=20, neck=True))
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((500, 256)) @ rng.standard_normal((256, 256)) * np.linspace(0.1, 3, 256)).astype(
        np.float32
    )
    network.start_whitened(found, [rows])
    with torch.inference_mode():
        out = found.head(torch.from_numpy(rows)).numpy()
    assert np.abs(out.mean(0)).max() < 1e-3
    np.testing.assert_allclose(np.cov(out.T), np.eye(20), atol=0.05)


def test_an_unknown_backbone_or_uneven_stripes_are_errors() -> None:
    with pytest.raises(ModelError, match="no backbone 'nonet'"):
        network.build(NetworkConfig(backbone="nonet"), pretrained=False)
    with pytest.raises(ModelError, match="cannot be shared"):
        made(replace(TINY, pooling="stripes", stripes=3, dim=8))


@torch.inference_mode()
def test_inner_maps_are_those_of_what_ships(tmp_path: Path) -> None:
    from reid.train import backbone

    net, (mean, std) = network.build(NetworkConfig(dim=0, neck=False, pooling="inner"))
    rng = np.random.default_rng(0)
    pixels = np.stack([cv2.blur(rng.integers(0, 256, (96, 128, 3), np.uint8), (5, 5)) for _ in range(2)])
    mine = backbone.Backbone(net.eval(), mean, std)(torch.from_numpy(pixels)).numpy()
    ships = OpenVinoEmbedder(models.write_default(tmp_path, name="small", height=96, width=128)).embed(pixels)
    assert np.abs(unit_rows(mine) - ships).max() < 2e-3
    whole, _ = network.build(NetworkConfig(dim=0, neck=False, pooling="avg"))
    assert sum(p.numel() for p in net.parameters()) < 0.8 * sum(p.numel() for p in whole.parameters())


def test_inner_maps_learn_and_come_back_from_their_weights(tmp_path: Path) -> None:
    from reid.train import backbone

    config = NetworkConfig(dim=16, pooling="inner")
    net, _ = network.build(config, size=(64, 64))
    net(torch.rand(4, 3, 64, 64)).square().sum().backward()
    first, last = net.backbone.conv_stem.weight.grad, net.backbone.blocks[6][0].conv_pw.weight.grad
    assert torch.isfinite(first).all() and first.abs().max() > 0 and last.abs().max() > 0
    again, _ = network.build(config, pretrained=False, size=(64, 64))
    again.load_state_dict({name: torch.from_numpy(one) for name, one in backbone.tensors_of(net).items()})
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(net.eval()(x), again.eval()(x))


def test_inner_maps_are_those_of_lite0_alone() -> None:
    with pytest.raises(ModelError, match="no pooling 'inner' for 'mobilenetv3_small_050'"):
        network.build(NetworkConfig(backbone="mobilenetv3_small_050", pooling="inner"), pretrained=False)


def test_lite0_begins_with_its_published_weights() -> None:
    from reid.train import backbone

    found, (mean, std) = network.build(NetworkConfig(dim=0, neck=False, pooling="avg"))
    assert mean == std == (127.5,) * 3
    published = network.weights.read_tensors(network.lite0.weight_file())
    np.testing.assert_array_equal(found.backbone.conv_stem.weight.detach().numpy(), published["_conv_stem.weight"])
    assert len(backbone.tensors_of(found.backbone)) == 294
