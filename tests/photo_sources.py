"""Photos and tables on disk for tests of what is read in, and what reading reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from reid.exchange import SightingList


def photo(path: Path, seed: int = 0, kind: str = "JPEG") -> Path:
    """A small photo at `path`, its folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), np.uint8)
    with open(path, "wb") as file:
        Image.fromarray(pixels).save(file, kind)
    return path


def table(path: Path, header: str, *rows: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join([header, *rows, ""]).encode(encoding))
    return path


def names(found: SightingList) -> list[tuple[str, str | None]]:
    return [(sighting.path.name, sighting.identity) for sighting in found.sightings]


def reported(found: SightingList) -> list[tuple[str, str]]:
    """Where and why; every failure must also say what to do."""
    assert all(failure.next_step and failure.code for failure in found.failures)
    return [(failure.source, failure.message) for failure in found.failures]
