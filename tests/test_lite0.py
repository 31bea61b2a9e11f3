"""The default network as a graph: its numbers against loops over plain arrays, and against timm where installed."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reid import lite0, weights
from reid.errors import ModelError

Array = NDArray[np.float32]


@cache
def tensors() -> lite0.Tensors:
    return weights.read_tensors(lite0.weight_file())


def photos(number: int, height: int, width: int) -> NDArray[np.uint8]:
    """Blobs over a slope: smooth as a photo is, so that every layer has something to say."""
    rng = np.random.default_rng(7)
    coarse = rng.uniform(0, 255, (number, height // 16, width // 16, 3))
    return np.kron(coarse, np.ones((1, 16, 16, 1))).astype(np.uint8)


def run(pooling: str, crops: NDArray[np.uint8]) -> dict[str, Array]:
    """Outputs by name, in single precision: a CPU with bf16 would otherwise round."""
    import openvino

    graph = lite0.build(tensors(), pooling=pooling)
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(crops)
    return {name: np.array(found[name]) for output in graph.outputs for name in output.get_names()}


def convolve(x: Array, weight: Array, stride: int, groups: int) -> Array:
    """`x (C, H, W)`, `weight (O, C/groups, k, k)`, padded as TensorFlow's "same": the odd pixel below and right."""
    k, (_, height, width) = weight.shape[2], x.shape
    tall, wide = -(-height // stride), -(-width // stride)
    below, right = (max((n - 1) * stride + k - size, 0) for n, size in ((tall, height), (wide, width)))
    x = np.pad(x, ((0, 0), (below // 2, below - below // 2), (right // 2, right - right // 2)))
    out = np.zeros((len(weight), tall, wide), np.float32)
    for dy in range(k):
        for dx in range(k):
            seen = x[:, dy : dy + tall * stride : stride, dx : dx + wide * stride : stride][:, :tall, :wide]
            tap = weight[:, :, dy, dx]
            out += seen * tap[:, :1, None] if groups > 1 else np.einsum("oc,chw->ohw", tap, seen)
    return out


def reference(crop: NDArray[np.uint8]) -> dict[int, Array]:
    """The last map and the inner ones by stage, layer by layer, batch norms as their paper writes them."""

    def layer(x: Array, convolution: str, norm: str, stride: int = 1, groups: int = 1, clamp: bool = True) -> Array:
        t = tensors()
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, variance, gain, shift = (np.asarray(t[f"{norm}.{part}"][:, None, None], np.float32) for part in parts)
        y = (convolve(x, t[f"{convolution}.weight"], stride, groups) - mean) / np.sqrt(variance + 1e-3) * gain + shift
        return np.asarray(np.clip(y, 0, 6) if clamp else y, np.float32)

    x = layer(np.asarray(crop.transpose(2, 0, 1) / 127.5 - 1, np.float32), "_conv_stem", "_bn0", 2)
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    expanded = {}
    for block, stride in enumerate(strides):
        name = f"_blocks.{block}"
        y = layer(x, f"{name}._expand_conv", f"{name}._bn0") if block else x
        expanded[block] = y
        y = layer(y, f"{name}._depthwise_conv", f"{name}._bn1", stride, len(y))
        y = layer(y, f"{name}._project_conv", f"{name}._bn2", clamp=False)
        x = x + y if x.shape == y.shape else y
    return {lite0.LAST: layer(x, "_conv_head", "_bn1"), 6: expanded[15], 5: expanded[11], 4: expanded[8]}


def test_the_graph_computes_the_published_network() -> None:
    crop = photos(1, 64, 96)
    found = run("avg", crop)
    last = reference(crop[0])[lite0.LAST]
    np.testing.assert_allclose(found["map"][0], last, atol=2e-3)
    np.testing.assert_allclose(found["embedding"][0], last.mean((1, 2)), atol=1e-3)


@pytest.mark.parametrize(("pooling", "widths"), [("multi", [1280, 1152, 672]), ("inner", [1152, 672, 480])])
def test_three_maps_are_pooled_each_of_unit_length(pooling: str, widths: list[int]) -> None:
    crop = photos(1, 64, 96)
    found = run(pooling, crop)["embedding"]
    blocks = []
    maps = reference(crop[0])
    for pooled in (maps[stage] for stage in lite0.MAPS[pooling]):
        roots = np.array([np.sqrt(sum(channel.ravel()) / channel.size) for channel in pooled])
        blocks.append(roots / np.sqrt((roots**2).sum()))
    assert [len(block) for block in blocks] == widths
    assert found.shape == (1, lite0.POOLINGS[pooling])
    np.testing.assert_allclose(found[0], np.concatenate(blocks), atol=1e-4)


@pytest.mark.parametrize("pooling", lite0.POOLINGS)
def test_photos_of_a_batch_do_not_see_each_other(pooling: str) -> None:
    crops = photos(3, 64, 64)
    together = run(pooling, crops)["embedding"]
    alone = np.concatenate([run(pooling, crops[i : i + 1])["embedding"] for i in range(3)])
    assert together.shape == (3, lite0.POOLINGS[pooling])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_an_unknown_pooling_is_refused_with_those_there_are() -> None:
    with pytest.raises(ModelError, match=r"no pooling 'median'; choose one of avg, multi, inner"):
        lite0.build({}, pooling="median")


def test_the_weights_of_the_classifier_are_not_needed() -> None:
    used: lite0.Tensors = {name: tensor for name, tensor in tensors().items() if not name.startswith("_fc.")}
    assert [sorted(o.get_names()) for o in lite0.build(used, pooling="multi").outputs] == [["embedding"], ["map"]]
    ends = {name: t for name, t in used.items() if not name.startswith(("_conv_head", "_bn1."))}  # nor its last maps
    assert [sorted(o.get_names()) for o in lite0.build(ends, pooling="inner").outputs] == [["embedding"]]


def timm_network() -> Any:
    """`tf_efficientnet_lite0` with the same tensors, which map onto it in order."""
    torch = pytest.importorskip("torch")
    from reid.train.torchvision_ops import import_timm

    try:
        timm = import_timm()
    except ImportError:
        pytest.skip("needs timm")
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    names = list(network.state_dict())
    network.load_state_dict({n: torch.from_numpy(v) for n, v in zip(names, tensors().values(), strict=True)})
    return network


def test_the_graph_agrees_with_timm() -> None:
    network = timm_network()
    import torch

    crops = photos(2, 224, 224)
    taps: dict[int, Array] = {}
    for stage in (4, 5, 6):
        first = network.blocks[stage][0]
        first.conv_dw.register_forward_pre_hook(lambda _, inputs, stage=stage: taps.update({stage: inputs[0].numpy()}))
    with torch.inference_mode():
        last = network.forward_features(torch.from_numpy(crops.transpose(0, 3, 1, 2) / 127.5 - 1).float()).numpy()
    np.testing.assert_allclose(run("avg", crops)["embedding"], last.mean((2, 3)), atol=1e-3)
    taps[lite0.LAST] = last
    for pooling, maps in lite0.MAPS.items():
        roots = [np.sqrt(taps[stage].mean((2, 3))) for stage in maps]
        expected = np.concatenate([block / np.linalg.norm(block, axis=1, keepdims=True) for block in roots], axis=1)
        np.testing.assert_allclose(run(pooling, crops)["embedding"], expected, atol=1e-4)
