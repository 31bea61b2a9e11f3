"""Which model a store begins with: the shape of boxes, the species, and what two photos of each animal say."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_stores import ColourEmbedder, paint, seen

from reid import models, suitable
from reid.embed import OpenVinoEmbedder
from reid.records import Box, Sighting
from reid.store import Store
from reid.suitable import LEAST, choose, compare, two_each
from reid.synth import Shot, staged
from reid.synth.render import expose, tight_box

WIDE = Box(0, 0, 96, 48)
SEED = 90_210  # of whales that the shipped embedder was not taught on
DAY = datetime(2021, 6, 1, 9)


class Blind(ColourEmbedder):
    """Colours that gives every crop a vector of its own."""

    def embed(self, crops: np.ndarray) -> np.ndarray:
        return np.random.default_rng(3).normal(size=super().embed(crops).shape).astype(np.float32)


def animals(folder: Path, n: int, *, copies: bool = False, **said: object) -> list[Sighting]:
    """Two painted photos of each animal, with others beside it, or the same."""
    return [
        seen(
            paint(folder / f"{animal}-{shot}.png", animal, beside=1000 + 2 * animal + (0 if copies else shot)),
            f"a{animal}",
            box=WIDE,
            taken_at=DAY + timedelta(days=shot),
            **said,
        )
        for animal in range(n)
        for shot in range(2)
    ]


@pytest.fixture(scope="module")
def whales(tmp_path_factory: pytest.TempPathFactory) -> list[Sighting]:
    """Two photos of of each of some rendered whales, with their boxes."""
    folder = tmp_path_factory.mktemp("whales")
    rows = []
    for animal in range(LEAST + 2):
        for number in (0, 6):
            individual, view = staged(Shot(SEED, animal, number))
            photo = expose(individual, view, None, 240)
            path = folder / f"{animal}-{number}.jpg"
            path.write_bytes(photo.jpeg)
            rows.append(seen(path, individual.identity, box=tight_box(photo.mask), encounter=view.encounter))
    return rows


def test_rendered_whales_get_the_embedder_that_has_learnt_whales(whales: list[Sighting], tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s")
    found = choose(store, whales)
    assert found.name == models.FLUKE and "measured" in found.why
    assert not list(store.models_folder.glob("*"))  # nothing is left of the comparison


@pytest.mark.parametrize(("species", "name"), [("Megaptera novaeangliae", models.FLUKE), ("zebra", models.WIDE)])
def test_with_too_few_animals_the_species_decides(tmp_path: Path, species: str, name: str) -> None:
    store = Store.create(tmp_path / "s")
    assert choose(store, animals(tmp_path, LEAST - 1, species=species)).name == name


def test_without_names_or_species_the_shape_decides(tmp_path: Path) -> None:
    rows = [seen(Path(f"{i}.jpg"), box=Box(0, 0, 50, 50)) for i in range(2 * LEAST)]  # no such files: none is read
    assert choose(Store.create(tmp_path / "s"), rows).name == models.DEFAULT


def test_whales_without_boxes_are_measured_too(whales: list[Sighting], tmp_path: Path) -> None:
    bare = [Sighting(one.path, one.where, one.identity, encounter=one.encounter) for one in whales]
    assert "measured" in choose(Store.create(tmp_path / "s"), bare).why


def test_a_croppers_boxes_are_those_of_all_photos_compared(
    whales: list[Sighting], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shape is judged by a few photos, the models by two of each animal."""
    monkeypatch.setattr(suitable, "_SAMPLE", 4)
    bare = [Sighting(one.path, one.where, one.identity, encounter=one.encounter) for one in whales]
    compared: list[tuple[int, bool]] = []

    def compare(pairs: Any, embedders: Any, croppers: Any) -> suitable.Choice:
        found = croppers.of(pairs[0][0].species) is not None
        compared.append((len(pairs), found))
        return suitable.Choice(embedders[1].card.name, "compared", 1.0)

    monkeypatch.setattr(suitable, "compare", compare)
    assert choose(Store.create(tmp_path / "s", cropper="fluke"), bare).why == "compared"
    assert compared == [(len(whales) // 2, True)]


@pytest.mark.parametrize(("blind", "name"), [("first", "second"), ("second", "first")])
def test_the_one_that_finds_more_is_chosen(tmp_path: Path, blind: str, name: str) -> None:
    both = [(Blind if one == blind else ColourEmbedder)(one) for one in ("first", "second")]
    found = compare(two_each(animals(tmp_path, LEAST)), both)
    assert found is not None and found.name == name


def test_without_a_sure_difference_the_first_stays(tmp_path: Path) -> None:
    found = compare(two_each(animals(tmp_path, LEAST)), [ColourEmbedder("first"), ColourEmbedder("second")])
    assert found is not None and found.name == "first"


def test_copies_and_photos_that_cannot_be_read_do_not_count(tmp_path: Path) -> None:
    both = [ColourEmbedder("first"), ColourEmbedder("second")]
    assert compare(two_each(animals(tmp_path / "copies", LEAST, copies=True)), both) is None
    rows = animals(tmp_path / "broken", LEAST)
    rows[0].path.write_bytes(b"no picture")
    assert compare(two_each(rows), both) is None


def test_two_photos_are_of_different_sightings_and_one_flank_where_there_are_such() -> None:
    rows = [
        seen(Path("a.jpg"), "Ana", box=WIDE, encounter="first", side="left"),
        seen(Path("b.jpg"), "Ana", box=WIDE, encounter="first", side="left"),
        seen(Path("c.jpg"), "Ana", box=WIDE, encounter="second", side="left"),
        seen(Path("d.jpg"), "Berta", box=WIDE, side="left"),
        seen(Path("e.jpg"), "Berta", box=WIDE, side="right"),
        seen(Path("f.jpg"), None, box=WIDE),
        seen(Path("g.jpg"), "Carla", box=WIDE),
        seen(Path("h.jpg"), "Carla", side="left"),
    ]
    pairs = two_each(rows)
    assert len(pairs) == 1
    assert {one.encounter for one in pairs[0]} == {"first", "second"}


def test_the_shipped_embedder_is_whole_and_small(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    folder = models.ensure(tmp_path, models.FLUKE)
    assert models.read_card(folder) == models.read_card(models.SHIPPED[models.FLUKE])
    tensors = load_file(folder / "weights.safetensors")
    assert {str(one.dtype) for one in tensors.values() if one.size > 1} == {"float16"}
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10e6
    crops = np.zeros((2, *_size(folder), 3), np.uint8)  # two drawings, one dark above and one dark to the left
    crops[0, : crops.shape[1] // 2], crops[1, :, : crops.shape[2] // 2] = 255, 255
    vectors = OpenVinoEmbedder(folder).embed(crops)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5) and float(vectors[0] @ vectors[1]) < 0.99


def test_torch_gives_the_shipped_embedders_vectors(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from reid.train.torch_runtime import TorchEmbedder

    folder = models.ensure(tmp_path, models.FLUKE)
    crops = np.random.default_rng(1).integers(0, 256, (3, *_size(folder), 3), np.uint8)
    ours, theirs = (one.embed(crops) for one in (OpenVinoEmbedder(folder), TorchEmbedder(folder, device="cpu")))
    assert float((ours * theirs).sum(1).min()) > 0.999


def _size(folder: Path) -> tuple[int, int]:
    seen_by = models.read_card(folder).preprocessing
    return seen_by.height, seen_by.width
