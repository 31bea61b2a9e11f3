"""Out and in again: the exported table gives the same names and boxes, and says what it cannot hold."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from rendered_store import PHOTOS, enrolled, flukes, reid, reid_json, rows_of, store, write_rows

from reid.export import COLUMNS
from reid.store import Store

__all__ = ["enrolled", "flukes", "store"]

Known = dict[Path, tuple[str | None, tuple[float, ...], str | None, str]]


def known(root: Path) -> Known:
    """What a store says of every photo: name, box, species, time."""
    with Store.open(root) as opened:
        ids = opened.catalogue.labels().annotations.tolist()
        found: Known = {}
        for a in opened.catalogue.annotations(ids).values():
            box = (a.box.x0, a.box.y0, a.box.x1, a.box.y1)
            found[opened.resolve(a.path)] = (a.identity, box, a.species, f"{a.taken_at}")
        return found


def test_an_export_enrolled_again_gives_the_same_names_boxes_species_and_times(
    store: Path, enrolled: Path, tmp_path: Path
) -> None:
    done = reid_json("export", tmp_path / "out.csv", store=store)
    assert done["rows"] == PHOTOS
    assert any("event" in note for note in done["lost"])
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "models").symlink_to(enrolled / "models")
    back = reid_json("enroll", tmp_path / "out.csv", store=tmp_path / "again")
    assert (back["new"], back["named"], back["failures"]) == (PHOTOS, PHOTOS, [])
    first, second = known(store), known(tmp_path / "again")
    assert second.keys() == first.keys()
    for path, (name, box, species, taken) in first.items():
        assert (second[path][0], second[path][2:]) == (name, (species, taken))
        assert second[path][1] == pytest.approx(box, abs=0.01)


def test_the_table_holds_these_columns_and_one_row_an_annotation(enrolled: Path, tmp_path: Path, flukes: Path) -> None:
    reid_json("export", tmp_path / "out.csv", store=enrolled)
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    said = {Path(row["path"]): row for row in rows_of(tmp_path / "out.csv")}
    for row in rows_of(flukes / "labels.csv"):
        mine = said[flukes / row["path"]]
        assert (mine["identity"], mine["species"], mine["date"]) == (row["identity"], row["species"], row["date"])
        assert json.loads(mine["bbox"]) == pytest.approx(json.loads(row["bbox"]), abs=0.01)
        assert float(mine["latitude"]) == pytest.approx(float(row["latitude"]), abs=1e-4)


def test_an_export_can_be_evaluated(enrolled: Path, flukes: Path, tmp_path: Path) -> None:
    reid_json("export", tmp_path / "gallery.csv", store=enrolled)
    found = reid_json("evaluate", tmp_path / "gallery.csv", flukes / "queries.csv")
    assert (found["n_gallery"], found["n_queries"]) == (PHOTOS, 10)


def test_who_nobody_named_is_unknown_and_stays_so(store: Path, flukes: Path, tmp_path: Path) -> None:
    photo = flukes / rows_of(flukes / "queries.csv")[0]["path"]
    reid_json("enroll", photo, store=store)
    reid_json("export", tmp_path / "out.csv", store=store)
    (row,) = [row for row in rows_of(tmp_path / "out.csv") if Path(row["path"]) == photo]
    assert (row["identity"], row["bbox"]) == ("unknown", "")
    again = reid_json("enroll", tmp_path / "out.csv", store=store)
    assert (again["known"], again["annotations"], again["failures"]) == (PHOTOS + 1, 0, [])
    assert reid_json("status", store=store)["unnamed"] == 1


def test_renamed_animals_go_out_under_their_present_name_and_the_lost_one_is_said(store: Path, tmp_path: Path) -> None:
    name = reid_json("individuals", "list", store=store)["individuals"][0]["name"]
    reid_json("individuals", "rename", name, "Ana, the “first”", store=store)
    done = reid_json("export", tmp_path / "out.csv", store=store)
    names = {row["identity"] for row in rows_of(tmp_path / "out.csv")}
    assert ("Ana, the “first”" in names, name in names) == (True, False)
    assert any("former names" in note for note in done["lost"])


def test_awkward_names_survive(tmp_path: Path, flukes: Path, enrolled: Path) -> None:
    rows = rows_of(flukes / "labels.csv")[:3]
    names = ["=1+1", ' Ana; "B" ', "ñandú 鯨"]
    rows = [row | {"identity": name, "path": str(flukes / row["path"])} for row, name in zip(rows, names, strict=True)]
    write_rows(tmp_path / "in.csv", rows)
    for root in (tmp_path / "a", tmp_path / "b"):
        root.mkdir()
        (root / "models").symlink_to(enrolled / "models")
    reid_json("enroll", tmp_path / "in.csv", store=tmp_path / "a")
    reid_json("export", tmp_path / "out.csv", store=tmp_path / "a")
    reid_json("enroll", tmp_path / "out.csv", store=tmp_path / "b")
    assert known(tmp_path / "b") == known(tmp_path / "a")
    assert {name for name, *_ in known(tmp_path / "b").values()} == {name.strip() for name in names}


def test_a_target_that_cannot_be_written_exits_1_and_leaves_nothing(enrolled: Path, tmp_path: Path) -> None:
    result = reid("export", tmp_path / "no" / "out.csv", store=enrolled)
    assert (result.exit_code, "cannot be written" in result.stderr) == (1, True)
    (tmp_path / "folder").mkdir()
    result = reid("export", tmp_path / "folder", store=enrolled)
    assert (result.exit_code, "cannot be written" in result.stderr) == (1, True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder"]
