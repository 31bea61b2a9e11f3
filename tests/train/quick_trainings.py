"""Trainings of whole networks on a few rendered flukes that spare the export of a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few_flukes import Sources, tiny
from painted_store import colour_graph

torch = pytest.importorskip("torch")

from reid import models  # noqa: E402
from reid.train import (  # noqa: E402
    backbone,
    embedder,
)
from reid.train.recipe import Recipe  # noqa: E402

EXPORT = backbone.export


@pytest.fixture(autouse=True)
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turning a network into a graph takes seconds; but for one test, the weights beside it are what counts."""

    def write(made: Any, card: models.ModelCard, folder: Path) -> Path:
        return models.write(folder, card, colour_graph(), backbone.tensors_of(made.network))

    monkeypatch.setattr(backbone, "export", write)


def train(flukes: Sources, folder: Path, how: Recipe | None = None, **more: Any) -> embedder.Trained:
    return embedder.train(*flukes, how or tiny(), folder, "m", pretrained=False, **more)


def weights(model: Path) -> dict[str, Any]:
    return backbone.read_checkpoint(model / "weights.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(np.array_equal(first[k], second[k]) for k in first)
