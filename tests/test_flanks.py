"""Left and right flanks: compared or not as species, store, or left-out photos have it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_stores import DIM, fake_store, with_vectors
from numpy.typing import NDArray

from reid import fit, flanks, withheld
from reid.embed import unit_rows
from reid.flanks import Sides
from reid.records import Side
from reid.search import Probe, Searcher
from reid.store import Store

SHOTS = 4  # photos of each animal: left, right, left, right


def herd(seed: int, *, alike: bool, animals: int = 150) -> NDArray[np.float32]:
    """Vectors of animals whose two flanks look alike, or have nothing to do with one another."""
    rng = np.random.default_rng(seed)
    flank = rng.normal(size=(animals, 2, DIM))
    if alike:
        flank[:, 1] = flank[:, 0]
    rows = np.stack([flank[:, shot % 2] for shot in range(SHOTS)], axis=1) + 1.6 * rng.normal(
        size=(animals, SHOTS, DIM)
    )
    return unit_rows(rows.reshape(-1, DIM).astype(np.float32))


def filled(root: Path, rows: NDArray[np.float32], settings: str = "", species: list[str] | None = None) -> Store:
    store = fake_store(root, settings=settings)
    sides: list[Side] = [("left", "right")[n % 2] for n in range(len(rows))]  # type: ignore[misc]
    with_vectors(store, rows, [f"w{n // SHOTS}" for n in range(len(rows))], sides=sides, species=species)
    return store


def stated(wanted: str) -> str:
    return f'opposite_sides = "auto" → opposite_sides = "{wanted}"'


@pytest.mark.parametrize(
    ("settings", "alike", "expected"),
    [
        ("", True, "together"),
        ("", False, "separate"),
        (stated("never"), True, "separate"),
        (stated("always"), False, "together"),
    ],
)
def test_flanks_are_compared_as_settings_or_left_out_photos_say(
    tmp_path: Path, settings: str, alike: bool, expected: Sides
) -> None:
    store = filled(tmp_path / "s", herd(0, alike=alike), settings)
    labels, vectors = withheld.gathered(store.catalogue, store.fingerprint)
    assert fit.sides_policy(store, labels, vectors, whitened=0.0) == expected


def test_a_store_with_one_flank_keeps_them_apart(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    rows = herd(0, alike=True)
    with_vectors(store, rows, [f"w{n // SHOTS}" for n in range(len(rows))], sides=["left"] * len(rows))
    labels, vectors = withheld.gathered(store.catalogue, store.fingerprint)
    assert fit.sides_policy(store, labels, vectors, whitened=0.0) == "separate"


def test_a_species_may_have_a_rule_of_its_own(tmp_path: Path) -> None:
    """Asked and measured alike: whales follow the store, zebras are never compared, lynxes always."""
    kinds = [("whale", "zebra", "lynx")[n // SHOTS % 3] for n in range(24)]
    rule = '[gallery.opposite_sides_of] → [gallery.opposite_sides_of]\nzebra = "never"\nlynx = "always"\n'
    store = fake_store(tmp_path / "s")
    text = (store.root / "reid.toml").read_text().replace(*(part for part in rule.split(" → ")))
    (store.root / "reid.toml").write_text(text)
    store.close()
    store = Store.open(store.root)
    store.__dict__["embedder"] = fake_store(tmp_path / "other").embedder
    rows = herd(1, alike=True, animals=6)
    sides: list[Side] = [("left", "right")[n % 2] for n in range(24)]  # type: ignore[misc]
    ids = with_vectors(store, rows, [f"w{n // SHOTS}" for n in range(24)], sides=sides, species=kinds)

    def right(*species: str) -> list[int]:
        return [id for id, side, kind in zip(ids, sides, kinds, strict=True) if side == "right" and kind in species]

    assert flanks.barred(store, "left", "separate") == right("whale", "zebra")
    assert flanks.barred(store, "left", "together") == right("zebra")
    assert flanks.barred(store, "unknown", "separate") == flanks.barred(store, "front", "separate") == []
    labels, _ = withheld.gathered(store.catalogue, store.fingerprint)
    for apart in ("separate", "together"):
        away = withheld._opposite(store, labels, apart)  # type: ignore[arg-type]
        assert {ids[row] for row in away(0)} == set(flanks.barred(store, "left", apart))  # type: ignore[arg-type]
        assert away(1) and {sides[row] for row in away(1)} == {"left"}
        scores = withheld._sided(store, labels, np.zeros((2, 24), np.float32), np.arange(2), np.arange(24), apart)  # type: ignore[arg-type]
        assert {ids[row] for row in np.flatnonzero(np.isneginf(scores[0]))} == {ids[row] for row in away(0)}
        assert {ids[row] for row in np.flatnonzero(np.isneginf(scores[1]))} == {ids[row] for row in away(1)}
    store.rebuild(None)
    searcher = Searcher.open(store, k=5)
    [found] = searcher.find([Probe(rows[0], side="left")])
    assert {int(id) for id in found.candidates.ids} == set(ids) - set(right("whale", "zebra"))
