"""A store of painted animals that all have names, for tests that train in it."""

from __future__ import annotations

import hashlib
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from painted_store import herd, painted_store, with_rules

from reid.store import Store

ANIMALS, SHOTS = 24, 4
RULES = "epochs = 8\nviews = 2\ntolerance = 0.0\nrefit = false\n"


@cache
def _made(root: Path) -> Path:
    painted_store(root / "store", herd(root / "photos", ANIMALS, SHOTS)).close()
    return with_rules(root / "store", RULES)


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Store:
    made = _made(tmp_path_factory.getbasetemp() / "painted")
    return Store.open(Path(shutil.copytree(made, tmp_path / "store")))


def live(store: Store) -> dict[str, str]:
    """Checksums of what serves: settings, index and calibration."""
    kept = [store.root / "reid.toml", *store.index_folder.rglob("*"), store.root / "calibration.json"]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(kept) if p.is_file()}


def stopped_at(stage: str) -> Any:
    def progress(what: str, done: int, total: int) -> None:
        if what == stage:
            raise KeyboardInterrupt

    return progress
