"""The hardest pairs of a store: wrong labels come first, one sighting proves nothing, no torch and no matrix of all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_stores import DIM, fake_store, with_vectors
from numpy.typing import NDArray
from painted_store import herd, painted_store
from PIL import Image

from reid import mine
from reid.errors import InputError, MissingExtra
from reid.store import Store

pytest.importorskip("lap")


def vectors_of(animals: list[int], seed: int = 0) -> NDArray[np.float32]:
    """Photos of these animals: a direction of its own for each, and a little noise."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(max(animals) + 1, DIM))
    return (own[animals] + 0.25 * rng.normal(size=(len(animals), DIM))).astype(np.float32)


def store_of(root: Path, animals: list[int], names: list[str], **more: object) -> tuple[Store, list[int]]:
    store = fake_store(root)
    return store, with_vectors(store, vectors_of(animals), names, **more)  # type: ignore[arg-type]


def test_an_animal_under_two_names_and_two_animals_under_one_come_first(tmp_path: Path) -> None:
    animals = [n for n in range(12) for _ in range(4)]
    names = [f"a{n}" for n in animals]
    names[2:4] = ["alias", "alias"]  # two of animal 0 under another name
    names[20] = "a7"  # one of animal 5 under that of animal 7
    store, ids = store_of(tmp_path / "s", animals, names)
    found = mine.hardest(store, top=6)
    assert (found.photos, found.animals, found.model) == (48, 13, "colours")
    two = [p for p in found.pairs if p.kind == "two names"]
    one = [p for p in found.pairs if p.kind == "one name"]
    assert len(two) == len(one) == 3
    assert {frozenset((p.first.name, p.second.name)) for p in two} == {
        frozenset(("a0", "alias")),
        frozenset(("a5", "a7")),
    }
    assert [p.score for p in two] == sorted((p.score for p in two), reverse=True)
    assert ids[20] in (one[0].first.annotation, one[0].second.annotation)
    assert one[0].first.name == one[0].second.name == "a7" and one[0].score < 0.5 < one[1].score
    assert [p.score for p in one] == sorted(p.score for p in one)
    merge = next(p for p in two if "alias" in (p.first.name, p.second.name))
    assert merge.ask == f"one animal under two names? reid individuals merge {merge.first.name} {merge.second.name}"
    shown = [one.annotation for p in found.pairs if p.kind == "two names" for one in (p.first, p.second)]
    assert len(shown) == len(set(shown))


def test_scores_are_the_cosines_of_the_index(tmp_path: Path) -> None:
    animals = [n for n in range(8) for _ in range(3)]
    store, _ = store_of(tmp_path / "s", animals, [f"a{n}" for n in animals])
    gallery = store.gallery()
    for pair in mine.hardest(store, top=10).pairs:
        a, b = gallery.vectors([str(pair.first.annotation), str(pair.second.annotation)])
        assert pair.score == pytest.approx(float(a @ b), abs=2e-3)


def test_photos_of_one_sighting_and_near_duplicates_are_no_pair(tmp_path: Path) -> None:
    animals = [0, 0, 0, 0, 1, 1, 2, 2]
    names = ["a", "a", "b", "a", "c", "c", "d", "d"]
    encounters = ["x", "x", "x", "y", "p", "q", "r", "s"]  # a sighting in which one photo has another name
    hashes = [int(h) for h in np.random.default_rng(1).integers(0, 1 << 62, 8)]
    hashes[5] = hashes[4] ^ 1  # c's photos are near-duplicates
    store, _ = store_of(tmp_path / "s", animals, names, encounters=encounters, phashes=hashes)
    found = mine.hardest(store, top=20)
    pairs = {(p.kind, frozenset((p.first.annotation, p.second.annotation))) for p in found.pairs}
    together = [{1, 2}, {1, 3}, {2, 3}, {5, 6}]
    assert not [p for p in pairs if set(p[1]) in together]
    assert {p.first.name for p in found.pairs if p.kind == "one name"} == {"a", "d"}
    assert ("two names", frozenset((3, 4))) in pairs  # the same animal at another time, under another name


def test_flanks_of_an_animal_are_not_compared_with_each_other(tmp_path: Path) -> None:
    from dataclasses import replace

    sightings = [replace(s, side="left" if n % 2 else "right") for n, s in enumerate(herd(tmp_path / "photos", 6, 4))]
    store = painted_store(tmp_path / "s", sightings)
    found = mine.hardest(store, top=30)
    sides = {a: info.side for a, info in store.catalogue.annotations(range(1, 25)).items()}
    one = [p for p in found.pairs if p.kind == "one name"]
    assert len(one) == 12
    assert all(sides[p.first.annotation] == sides[p.second.annotation] for p in one)


@pytest.mark.parametrize(
    ("animals", "two", "one"), [([0] * 9 + [1, 2], 2, True), ([0] * 5, 0, True), ([0, 1, 2], 1, False), ([0], 0, False)]
)
def test_galleries_without_a_full_assignment_give_what_there_is(
    tmp_path: Path, animals: list[int], two: int, one: bool
) -> None:
    store, _ = store_of(tmp_path / "s", animals, [f"a{n}" for n in animals])
    found = mine.hardest(store, top=40)
    kinds = [p.kind for p in found.pairs]
    assert kinds.count("two names") == two and ("one name" in kinds) == one
    assert mine.write_sheet(store, found, tmp_path / "sheet.png").is_file()


def test_the_sheet_shows_each_pair_one_photo_above_the_other(tmp_path: Path) -> None:
    sightings = herd(tmp_path / "photos", 8, 2)
    store = painted_store(tmp_path / "s", sightings)
    found = mine.hardest(store, top=7)
    assert len(found.pairs) == 7
    sightings[0].path.unlink()  # a photo that has gone leaves its frame empty
    target = mine.write_sheet(store, found, tmp_path / "out" / "sheet.png")
    with Image.open(target) as picture:
        assert picture.width == 5 * (260 + 16) + 16 and picture.height > 2 * 400
        colours = picture.convert("RGB").getcolors(1 << 24) or []
    assert (213, 94, 0) in {colour for _, colour in colours}  # the frame of pairs of two names
    with pytest.raises(InputError, match="the sheet cannot be written"):
        mine.write_sheet(store, found, tmp_path / "sheet.nonsense")


def test_mining_needs_no_torch_and_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = painted_store(tmp_path / "s", herd(tmp_path / "photos", 8, 3))
    store.close()
    program = f"""
import sys
from pathlib import Path
sys.modules["torch"] = None
from reid import mine
from reid.store import Store
print(len(mine.hardest(Store.open(Path({str(tmp_path / "s")!r})), top=4).pairs))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "4\n"
    monkeypatch.setitem(sys.modules, "lap", None)
    with pytest.raises(MissingExtra, match=r"mining needs lap; pip install '\.\[train\]'"):
        mine.hardest(Store.open(tmp_path / "s"))


def test_where_there_is_no_pair_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from reid import verdicts

    store, _ = store_of(tmp_path / "s", [0], ["a"])
    found = mine.hardest(store, top=6)
    verdicts.mined(found)
    said = capsys.readouterr().out
    assert found.pairs == () and "no pairs: that takes two named animals" in said and "ask yourself" not in said
