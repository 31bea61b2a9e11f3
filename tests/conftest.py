"""Helpers that every test may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
from galleries import DIM

from reid.index import Gallery

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


def need_shared_data(name: str = "") -> Path:
    """The folder of research photos beside the checkout (`flukes`, `nyala`), or skip the test and say why."""
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"needs the research photos in ../shared/data/{name}, which are not part of the repository")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """`../shared/data` beside the checkout; the test is skipped where it is absent."""
    return need_shared_data()


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    """An empty gallery on disk, for rows of `galleries.DIM`."""
    return Gallery.create(tmp_path / "index", fingerprint="model-a", dim=DIM)
