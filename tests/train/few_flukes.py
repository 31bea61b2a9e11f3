"""A few rendered flukes as sources with names, made once a test session, and a recipe small enough for them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from reid.exchange import read_sources
from reid.synth import write_dataset
from reid.train import recipe
from reid.train.features import Source
from reid.train.recipe import Recipe

WHALES, PHOTOS = 10, 36
TINY = """
[input]
height = 32
width = 64
[network]
backbone = "test_efficientnet"
pooling = "gem"
dim = 32
[[loss]]
kind = "margin"
scale = 16
m2 = 0.2
[schedule]
epochs = 3
batch = 12
rate = 2e-3
"""

Sources = tuple[list[Source], list[str]]


@cache
def _rendered(base: Path) -> Sources:
    table = write_dataset(base, WHALES, PHOTOS, seed=11, long_side=160)
    sightings = read_sources([table]).sightings
    sources = [Source(one.path, one.box, *(one.declared_size or (0, 0))) for one in sightings]
    return sources, [one.identity or "" for one in sightings]


@pytest.fixture(scope="session")
def fluke_sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return _rendered(tmp_path_factory.getbasetemp() / "few-flukes")


def tiny(more: str = "") -> Recipe:
    """The recipe above, with `more` as what differs."""
    return recipe.parse(TINY + more, "tiny", "laptop")
