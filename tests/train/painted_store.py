"""Painted animals, and a network of one pooling layer to know them by: a training takes a second."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fake_stores import GRID, MORNING, seen, taken_in
from numpy.typing import NDArray

from reid import models, retrain
from reid.models import ModelCard, Preprocessing
from reid.records import Sighting
from reid.store import Store
from reid.train.features import Source
from reid.train.heads import HeadConfig
from reid.train.quick import QuickConfig

HEIGHT, WIDTH = 32, 48
HEAD = HeadConfig(dim=16, epochs=8, batch=32, learning_rate=1e-2, scale=12.0, mirror_as_class=False)
QUICK = QuickConfig(white=24, shrink=0.0, views=2, larger=1.0, heads=(HEAD,))


@pytest.fixture(autouse=True)
def small_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of sixteen numbers is enough for painted animals."""
    monkeypatch.setattr(retrain, "_quick_config", lambda store, options: replace(QUICK, seed=options.seed))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as these are slower on two threads."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def colour_graph() -> Any:
    """`(B, H, W, 3) uint8` → mean colours on a grid, `(B, 48)`."""
    import openvino
    from openvino import opset13 as ops

    pixels = ops.parameter([-1, -1, -1, 3], np.uint8, name="pixels")
    x = ops.multiply(ops.transpose(ops.convert(pixels, "f32"), np.array([0, 3, 1, 2], np.int64)), np.float32(1 / 255))
    pooled = ops.adaptive_avg_pool(x, np.array([GRID, GRID], np.int64))
    out = ops.result(ops.reshape(pooled, np.array([0, 3 * GRID * GRID], np.int64), True), name="embedding")
    out.output(0).get_tensor().set_names({"embedding"})
    return openvino.Model([out], [pixels], "colours")


def colour_model(folder: Path, name: str = "colours") -> Path:
    card = ModelCard(
        name, 48, Preprocessing(HEIGHT, WIDTH, (0.0,) * 3, (255.0,) * 3), "avg", "0" * 64, "painted", "none"
    )
    return models.write(folder, card, colour_graph())


def animal(number: int, shot: int) -> NDArray[np.uint8]:
    """A faint pattern of its own under light and tint that differ from shot to shot, `(64, 96, 3) uint8`."""
    own = np.random.default_rng(number).normal(0, 14, (GRID, GRID, 3))
    chance = np.random.default_rng((number, shot))
    smooth = cv2.resize(chance.normal(0, 45, (2, 2, 3)), (GRID, GRID))
    cells = 128 + own + smooth + chance.normal(0, 5, (GRID, GRID, 3))
    pixels = cv2.resize(cells, (96, 64), interpolation=cv2.INTER_NEAREST) + chance.normal(0, 8, (64, 96, 3))
    return np.asarray(np.clip(pixels, 0, 255), np.uint8)


def herd(folder: Path, animals: int, shots: int, *, name: str = "a{:03d}") -> list[Sighting]:
    """Photos days apart, `shots` of each of `animals`."""
    folder.mkdir(parents=True, exist_ok=True)
    sightings = []
    for number in range(animals):
        for shot in range(shots):
            path = folder / f"{number:03d}-{shot}.png"
            cv2.imwrite(str(path), animal(number, shot)[:, :, ::-1])
            sightings.append(seen(path, name.format(number), encounter=f"{number}-{shot}", taken_at=MORNING))
    return sightings


def painted_store(root: Path, sightings: Sequence[Sighting], *, settings: str = "") -> Store:
    """A store whose model is the pooling layer, with these photos taken in; `settings` go to the end of reid.toml."""
    Store.create(root, model="colours").close()
    with (root / "reid.toml").open("a", encoding="utf-8") as file:
        file.write(settings)
    colour_model(root / "models")
    store = Store.open(root)
    assert not taken_in(store, sightings).failures
    return store


def with_rules(root: Path, rules: str) -> Path:
    """The store's folder, with `rules` in place of its [training]."""
    settings = root / "reid.toml"
    settings.write_text(f"{settings.read_text().partition('[training]')[0]}\n[training]\n{rules}")
    return root


def sources_of(sightings: Sequence[Sighting]) -> tuple[list[Source], list[str]]:
    return [Source(s.path) for s in sightings], [s.identity or "" for s in sightings]
