"""Stores whose vectors can be foreseen: painted photos of animals that are patterns, and an embedder that averages
colours.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.catalogue import NewAnnotation, NewPhoto
from reid.embed import unit_rows
from reid.enrol import EnrolReport, enrol
from reid.models import ModelCard, Preprocessing
from reid.records import Answer, Box, PhotoFacts, Side, Sighting
from reid.store import Store

GRID = 4
DIM = GRID * GRID * 3
MORNING = datetime(2024, 6, 1, 9)


class ColourEmbedder:
    """Mean colours on a 4×4 grid, grey at the origin: the same pattern points the same way, another one elsewhere."""

    def __init__(self, name: str = "colours", *, extra: dict[str, Any] | None = None) -> None:
        grey = (127.5, 127.5, 127.5)
        self.card = ModelCard(name, DIM, Preprocessing(32, 48, grey, grey), "mean", name, "painted", "none")
        self.card = replace(self.card, extra=extra or {})
        self.embedded = 0

    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert crops.dtype == np.uint8 and crops.shape[1:] == (32, 48, 3)
        self.embedded += len(crops)
        cells = crops.reshape(len(crops), GRID, 32 // GRID, GRID, 48 // GRID, 3).astype(np.float32)
        return unit_rows(cells.mean((2, 4)).reshape(len(crops), DIM) - 127.5)


def fake_store(root: Path, *, embedder: ColourEmbedder | None = None, settings: str = "", **create: str) -> Store:
    """A new store with that embedder, without local features (painted squares have none); `settings` are lines
    `old → new` of its reid.toml, one a line.
    """
    made = Store.create(root, model="colours", **create)
    for line in ("use = true → use = false", *settings.splitlines()):
        old, new = line.split(" → ")
        text = (root / "reid.toml").read_text()
        assert old in text
        (root / "reid.toml").write_text(text.replace(old, new, 1))
    made.close()
    return reopened(root, embedder)


def reopened(root: Path, embedder: ColourEmbedder | None = None) -> Store:
    """The store as another process would find it."""
    store = Store.open(root)
    store.__dict__["embedder"] = embedder or ColourEmbedder()
    return store


def pattern(animal: int, size: tuple[int, int] = (96, 64), noise: int = 0) -> NDArray[np.uint8]:
    """`(H, W, 3) uint8`: the colours of an animal, and noise that differs from shot to shot."""
    colours = np.random.default_rng(animal).integers(20, 236, (GRID, GRID, 3), np.uint8)
    pixels = cv2.resize(colours, size, interpolation=cv2.INTER_NEAREST).astype(np.int64)
    pixels += np.random.default_rng((animal, noise)).integers(-18, 19, pixels.shape)
    return np.asarray(np.clip(pixels, 0, 255), np.uint8)


def paint(path: Path, animal: int, shot: int = 0, *, beside: int | None = None, blot: int = 0) -> Path:
    """A photo of an animal, or of two side by side (each 96×64); frames of one shot differ by their blot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = pattern(animal, noise=shot)
    if beside is not None:
        pixels = np.concatenate([pixels, pattern(beside, noise=shot)], axis=1)
    pixels[0, 0] ^= blot
    written, data = cv2.imencode(".png", pixels[:, :, ::-1])
    assert written
    path.write_bytes(data.tobytes())
    return path


def seen(path: Path, identity: str | None = None, **said: Any) -> Sighting:
    """A row of a table."""
    return Sighting(path, f"row of {path.name.encode('utf-8', 'replace').decode()}", identity, **said)


def herd(folder: Path, animals: int, shots: int, *, first: int = 0) -> list[Sighting]:
    """Painted photos, some of each animal, days apart."""
    return [
        seen(
            paint(folder / f"a{animal:03d}-{shot}.png", animal, shot),
            f"a{animal:03d}",
            taken_at=MORNING + timedelta(days=100 * animal + shot),
        )
        for animal in range(first, first + animals)
        for shot in range(shots)
    ]


def taken_in(store: Store, sightings: Sequence[Sighting], **more: Any) -> EnrolReport:
    """Enrolled by the tester."""
    return enrol(store, sightings, who="tester", **more)


def counted(report: EnrolReport) -> tuple[int, int, int, int, int]:
    """New, known, moved, copies, failures."""
    return report.new, report.known, report.moved, report.copies, len(report.failures)


def labels(answer: Answer) -> list[str]:
    return [one.label for one in answer.labels]


def assert_index_is_the_catalogue(store: Store) -> None:
    """Every vector that serves is in the index, none else, each as it should be."""
    gallery, _ = store.repaired_gallery()
    expected: dict[str, NDArray[np.float32]] = {}
    for chunk in store.catalogue.embeddings(store.fingerprint):
        expected |= dict(zip(map(str, chunk.annotations.tolist()), store.project(chunk.vectors, gallery), strict=True))
    assert gallery.ids() == sorted(expected)
    if expected:
        np.testing.assert_allclose(
            gallery.vectors(sorted(expected)), np.stack([expected[i] for i in sorted(expected)]), atol=2e-3
        )
    gallery.check()


def assert_database_is_sound(root: Path) -> None:
    connection = sqlite3.connect(root / "catalogue.sqlite")
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    finally:
        connection.close()


def with_vectors(
    store: Store,
    vectors: NDArray[np.float32],
    identities: Sequence[str | None],
    *,
    encounters: Sequence[str | None] | None = None,
    species: Sequence[str] | None = None,
    sides: Sequence[Side] | None = None,
    phashes: Sequence[int] | None = None,
    box: Callable[[int], Box] = lambda n: Box(0, 0, 10, 10),
) -> list[int]:
    """Photos straight into the catalogue, without files; the ids of their annotations."""
    rng = np.random.default_rng(5)
    codes = phashes if phashes is not None else rng.integers(0, 2**63, len(vectors)).tolist()
    new = []
    for n, (row, who) in enumerate(zip(unit_rows(vectors), identities, strict=True)):
        facts = PhotoFacts(Path(f"/photos/{n}.jpg"), f"{n:064x}", 10, 10, "JPEG", 100, phash=codes[n])
        key = encounters[n] if encounters else f"e{n}"
        new.append(
            NewPhoto(
                facts,
                (
                    NewAnnotation(
                        box(n), who, sides[n] if sides else "unknown", species[n] if species else None, vector=row
                    ),
                ),
                encounter=key,
                mtime_ns=n,
            )
        )
    ids = []
    for at in range(0, len(new), 500):
        ids += [
            a.annotations[0]
            for a in store.catalogue.add_photos(new[at : at + 500], who="t", fingerprint=store.fingerprint)
        ]
    return ids
