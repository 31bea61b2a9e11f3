"""A store of rendered flukes with local features and an embedder that sees colours alone, made once a test session."""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path

import pytest
from fake_stores import fake_store, reopened, taken_in

from reid.exchange import read_sources
from reid.records import Sighting
from reid.store import Store

WITH_LOCAL = "use = false → use = true"  # what `fake_store` switches off


def sightings(flukes: Path, table: str = "labels.csv") -> tuple[Sighting, ...]:
    return tuple(read_sources([flukes / table]).sightings)


@cache
def _described(base: Path, flukes: Path) -> Path:
    store = fake_store(base, settings=WITH_LOCAL)
    report = taken_in(store, sightings(flukes))
    assert report.failures == []
    store.close()
    return base


@pytest.fixture(scope="session")
def described(tmp_path_factory: pytest.TempPathFactory, flukes: Path) -> Path:
    """The store; nobody changes it."""
    return _described(tmp_path_factory.getbasetemp() / "described-flukes", flukes)


@pytest.fixture
def local_store(described: Path, tmp_path: Path) -> Store:
    """A copy, opened."""
    return reopened(Path(shutil.copytree(described, tmp_path / "store")))


def changed_settings(store: Store, *lines: str) -> Store:
    """The store opened again with lines `old → new` of its reid.toml; `old` is a pattern."""
    path = store.root / "reid.toml"
    text = path.read_text()
    for line in lines:
        old, new = line.split(" → ")
        text, found = re.subn(old, new, text, count=1)
        assert found
    path.write_text(text)
    store.close()
    return reopened(store.root)
