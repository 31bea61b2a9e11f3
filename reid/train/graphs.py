"""Surgery on OpenVINO graphs: pool inner maps of a network, and append trained linear layers to it.

What is trained on cached vectors becomes part of the graph, so that a trained model is a model directory like any
other: nothing on the way of a query knows that it has a head. Graphs take `(B, H, W, 3) uint8 RGB` and have an output
`embedding (B, D)`; other outputs (`map`) are kept.

Knows graphs and matrices; trains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reid.errors import ModelError

if TYPE_CHECKING:
    import openvino

Matrix = NDArray[np.float32]
Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tap:
    """The last map of a network with this many channels, averaged over a grid of `rows` × `columns` equal parts."""

    channels: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Layer:
    """`x (B, D) → act(x @ matrix.T + bias) (B, E)`; `relu` False is the off-switch of the activation."""

    matrix: Matrix
    bias: Vector
    relu: bool = False


# Of EfficientNet-lite0, at 1/8, 1/16 and 1/32 of the input: 6,400 numbers. Where a mark lies tells as much as the mark.
LITE0_TAPS = (Tap(40, 4, 8), Tap(112, 4, 8), Tap(192, 2, 4))


def tapped(graph: openvino.Model, taps: tuple[Tap, ...]) -> openvino.Model:
    """`graph` with another `embedding`: each tap's grid of channel means, scaled to unit length, side by side.

    Raises:
        ModelError: the network has no map with that many channels.
    """
    from openvino import opset13 as ops

    model = graph.clone()
    parts = []
    for tap in taps:
        pooled = ops.adaptive_avg_pool(_last_map(model, tap.channels), np.array([tap.rows, tap.columns], np.int64))
        flat = ops.reshape(pooled, np.array([0, tap.channels * tap.rows * tap.columns], np.int64), True)
        parts.append(_unit(ops, flat))
    return _with_embedding(model, ops.concat(parts, 1))


def beside_smaller(graph: openvino.Model, height: int, width: int) -> openvino.Model:
    """`graph` with another `embedding`: that of its input as it comes and that of its input averaged down to `height` ×
    `width` pixels, each scaled to unit length, side by side. Marks of the animal show at the one size, its shape at
    the other.
    """
    from openvino import opset13 as ops

    model, other = graph.clone(), graph.clone()
    tall = ops.transpose(ops.convert(model.get_parameters()[0], "f32"), np.array([0, 3, 1, 2], np.int64))
    small = ops.adaptive_avg_pool(tall, np.array([height, width], np.int64))
    small = ops.transpose(small, np.array([0, 2, 3, 1], np.int64))
    for reader in other.get_parameters()[0].output(0).get_target_inputs():
        reader.replace_source_output(small.output(0))
    parts = [_unit(ops, one.output("embedding").get_node().input_value(0)) for one in (model, other)]
    return _with_embedding(model, ops.concat(parts, 1))


def append_layers(graph: openvino.Model, layers: list[Layer], *, normalise: bool = True) -> openvino.Model:
    """`graph` with linear layers behind its `embedding`, which is scaled to unit length first where `normalise`.

    That is what a head trained on the vectors of `reid.embed` (unit rows) expects.

    Raises:
        ModelError: a layer does not fit what comes before it.
    """
    from openvino import opset13 as ops

    model = graph.clone()
    x: Any = model.output("embedding").get_node().input_value(0)
    dim = int(x.get_partial_shape()[1].get_length())
    x = _unit(ops, x) if normalise else x
    for layer in layers:
        if layer.matrix.ndim != 2 or layer.matrix.shape[1] != dim or layer.bias.shape != layer.matrix.shape[:1]:
            raise ModelError(
                f"a layer {layer.matrix.shape} with bias {layer.bias.shape} does not follow {dim} numbers",
                source="embedding",
            )
        dim = len(layer.matrix)
        x = ops.matmul(x, ops.constant(np.asarray(layer.matrix, np.float32)), False, True)
        x = ops.add(x, ops.constant(np.asarray(layer.bias, np.float32)[None]))
        x = ops.relu(x) if layer.relu else x
    return _with_embedding(model, x)


def apply_layers(vectors: NDArray[np.floating[Any]], layers: list[Layer]) -> Matrix:
    """The same layers in numpy: `(N, D) unit rows → (N, E) float32`, not normalised."""
    x = np.asarray(vectors, np.float32)
    for layer in layers:
        x = x @ layer.matrix.T + layer.bias
        x = np.maximum(x, 0) if layer.relu else x
    return x


def _last_map(model: openvino.Model, channels: int) -> Any:
    """The last inner output `(B, channels, H, W)` in the order of computation."""
    found = None
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Constant", "Result", "Parameter") or node.get_output_size() != 1:
            continue
        shape = node.output(0).get_partial_shape()
        if shape.rank.is_static and shape.rank.get_length() == 4 and not shape[1].is_dynamic:
            if shape[1].get_length() == channels and not _is_weight(node):
                found = node.output(0)
    if found is None:
        raise ModelError(
            f"the network has no map of {channels} channels", next_step="choose other taps for this backbone"
        )
    return found


def _is_weight(node: Any) -> bool:
    """Whether a node only prepares weights: nothing above it is an input of the graph."""
    stack, seen = [node], set()
    while stack:
        at = stack.pop()
        if at.get_type_name() == "Parameter":
            return False
        for value in at.input_values():
            source = value.get_node()
            if id(source) not in seen and source.get_friendly_name() not in seen:
                seen.add(source.get_friendly_name())
                stack.append(source)
    return True


def _unit(ops: Any, x: Any) -> Any:
    return ops.normalize_l2(x, np.array([1], np.int64), 1e-12, "max")


def _with_embedding(model: openvino.Model, embedding: Any) -> openvino.Model:
    """`model` with this node as its `embedding`, other outputs as they were."""
    import openvino
    from openvino import opset13 as ops

    outputs = []
    for old in model.outputs:
        names = old.get_names()
        source = embedding if "embedding" in names else old.get_node().input_value(0)
        result = ops.result(source, name=next(iter(names), "output"))
        result.output(0).get_tensor().set_names(names)
        outputs.append(result)
    return openvino.Model(outputs, model.get_parameters(), model.get_friendly_name())
