"""A trained network as it can go into a package: every number in two bytes, in the graph and for torch.

Knows model directories; no photos.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from reid import models
from reid.disk import refusals
from reid.train import backbone, network, recipe

LICENCE = "Apache-2.0"


def halved(
    model: Path, folder: Path, name: str, *, source: str, by: str, threshold: float, licence: str = LICENCE
) -> Path:
    """The network in the model directory `model` as `<folder>/<name>`, its weights rounded to half precision: graph and
    vectors are those of the rounded weights, so both runtimes agree. `source` and `licence` go into the card, `by`, the recipe
    by which the network can learn further, and `threshold`, the cosine at which a new animal begins in galleries that are
    too small to measure it.

    Raises:
        ModelError: there are no weights for torch, or the graph's vectors are not the network's.
        OSError: the disk refuses.
    """
    import openvino
    from safetensors.numpy import load_file, save_file

    card = models.read_card(model)
    shape = recipe.NetworkConfig(**card.extra["network"])
    net, _ = network.build(shape, grey=bool(card.extra["grey"]), pretrained=False)
    backbone.load_weights(net, model)
    net.load_state_dict({
        key: value.half().to(value.dtype) if value.is_floating_point() else value for key, value in net.state_dict().items()
    })  # fmt: skip
    seen = card.preprocessing
    made = backbone.Backbone(net.eval(), seen.mean, seen.std)
    digest = models.hash_tensors(backbone.tensors_of(net).items())
    with tempfile.TemporaryDirectory() as aside:
        card = replace(
            card,
            name=name,
            source=source,
            licence=licence,
            weights_sha256=digest,
            extra=card.extra | {"recipe": by, "threshold": threshold},
        )
        whole = backbone.export(made, card, Path(aside))
        tensors = load_file(whole / "weights.safetensors")
        halves = {
            key: value.astype(np.float16) if value.dtype == np.float32 else value for key, value in tensors.items()
        }
        with refusals(whole / "weights.safetensors"):
            save_file(halves, whole / "weights.safetensors")
        graph = openvino.Core().read_model(whole / "graph.xml")
        with refusals(whole / "graph.xml"):
            openvino.save_model(graph, whole / "half.xml", compress_to_fp16=True)
        for end in ("xml", "bin"):
            (whole / f"half.{end}").replace(whole / f"graph.{end}")
        with models.whole_or_absent(folder, name) as beside:
            shutil.copytree(whole, beside, dirs_exist_ok=True)
    return folder / name
