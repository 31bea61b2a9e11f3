"""Sightings from the forms people have them in; every bad row, file or source is reported and the rest is read."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reid.errors import TableError
from reid.exchange import SightingList, fit_box, read_sources
from reid.exchange.gather import settle
from reid.images import probe
from reid.records import Box, Failure, Sighting


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


# ------------------------------------------------------------------------------------------------------------- tables


def test_a_wildlife_table_with_everything_in_it(tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "a.jpg")
    photo(tmp_path / "photos" / "b.jpg")
    found = read_sources([
        table(
            tmp_path / "labels.csv",
            "image_id,identity,path,bbox,date,orientation,species,encounter,latitude,longitude,original_width,"
            "original_height,keypoints,segmentation",
            '1,Anna,photos/a.jpg,"[10, 20, 30, 40]",2019-07-30 09:15:42,left,humpback,e7,-21.5,174.25,64,48,"[1, 2]",x',
            "2,unknown,photos/b.jpg,,2020-01-02,up,,,,,,,,",
        )
    ])  # fmt: skip
    assert found == SightingList(
        sightings=(
            Sighting(
                path=tmp_path / "photos" / "a.jpg",
                where="labels.csv row 2",
                identity="Anna",
                box=Box(10, 20, 40, 60, 1.0, "table"),
                encounter="e7",
                side="left",
                species="humpback",
                taken_at=datetime(2019, 7, 30, 9, 15, 42),
                latitude=-21.5,
                longitude=174.25,
                declared_size=(64, 48),
            ),
            Sighting(
                path=tmp_path / "photos" / "b.jpg",
                where="labels.csv row 3",
                side="top",
                taken_at=datetime(2020, 1, 2),
            ),
        ),
        failures=(),
        format="wildlife_csv",
        notes=(
            "labels.csv: not used: keypoints",
            "segmentations not understood, left out: 1 (first: labels.csv row 2: there is no mask 'x')",
        ),
    )


@pytest.mark.parametrize(
    ("header", "row", "kind"),
    [
        ("Image,Id", "a.jpg,w_1", "kaggle"),
        ("image,species,individual_id", "a.jpg,beluga,w_1", "kaggle"),
        ("Path;Identity", "a.jpg;w_1", "wildlife_csv"),
        ("identity\tfilename", "w_1\ta.jpg", "wildlife_csv"),
        ("\ufeffpath,identity", '"a.jpg","w_1"', "wildlife_csv"),
        ("path , identity", " a.jpg , w_1 ", "wildlife_csv"),
    ],
)
@pytest.mark.parametrize("folder", ["", "photos", "train_images"])
def test_headers_delimiters_and_folders_people_use(
    tmp_path: Path, header: str, row: str, kind: str, folder: str
) -> None:
    photo(tmp_path / folder / "a.jpg")
    found = read_sources([table(tmp_path / "t.csv", header, row)])
    assert (names(found), found.failures, found.format) == ([("a.jpg", "w_1")], (), kind)


@pytest.mark.parametrize("nobody", ["", "unknown", "Unknown", "____", "new_whale", "new_individual", "nan"])
def test_all_words_for_nobody_knows_give_no_identity(tmp_path: Path, nobody: str) -> None:
    photo(tmp_path / "a.jpg")
    assert names(read_sources([table(tmp_path / "t.csv", "Image,Id", f"a.jpg,{nobody}")])) == [("a.jpg", None)]


def test_photos_are_looked_for_below_the_root_that_was_given(tmp_path: Path) -> None:
    photo(tmp_path / "disk" / "2019" / "a.jpg")
    listed = table(tmp_path / "t.csv", "path,identity", "2019/a.jpg,w")
    assert read_sources([listed]).sightings == ()
    assert names(read_sources([listed], root=tmp_path / "disk")) == [("a.jpg", "w")]


@pytest.mark.parametrize(
    ("columns", "cells", "box"),
    [
        ("bbox", '"[1, 2, 30, 40]"', Box(1, 2, 31, 42)),
        ("bbox", '"(1.5, 2, 30, 40)"', Box(1.5, 2, 31.5, 42)),
        ("bbox", "1 2 30 40", Box(1, 2, 31, 42)),
        ("bbox", '"[nan, nan, nan, nan]"', None),
        ("bbox", '""', None),
        ("bbox_x,bbox_y,bbox_w,bbox_h", "1,2,30,40", Box(1, 2, 31, 42)),
        ("bbox_x,bbox_y,bbox_w,bbox_h", ",,,", None),
        ("x0,y0,x1,y1", "1,2,30,40", Box(1, 2, 30, 40)),
        ("xmin,ymin,xmax,ymax", "-5,2,3e1,40", Box(-5, 2, 30, 40)),
    ],
)
def test_boxes_in_the_spellings_of_tables(tmp_path: Path, columns: str, cells: str, box: Box | None) -> None:
    photo(tmp_path / "a.jpg")
    found = read_sources([table(tmp_path / "t.csv", f"path,identity,{columns}", f"a.jpg,w,{cells}")])
    assert [sighting.box for sighting in found.sightings] == [box]
    assert found.failures == ()


@pytest.mark.parametrize(
    "cell",
    ["[1, 2, 3]", "[1, 2, 3, 4, 5]", "left half", "[1, 2, 0, 4]", "[1, 2, -3, 4]", "[1, 2, inf, 4]", "[1,2,x,4]"],
)
def test_a_box_that_is_none_fails_its_row_and_no_other(tmp_path: Path, cell: str) -> None:
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "b.jpg")
    listed = table(tmp_path / "t.csv", "path,identity,bbox", f'a.jpg,w,"{cell}"', "b.jpg,v,")
    found = read_sources([listed])
    assert names(found) == [("b.jpg", "v")]
    kept = read_sources([listed], keep_boxless=True)
    assert names(kept) == [("a.jpg", "w"), ("b.jpg", "v")] and kept.sightings[0].box is None
    assert kept.failures == found.failures
    ((where, why),) = reported(found)
    assert where == "t.csv row 2" and cell in why


def test_an_unknown_photo_is_reported_by_row_and_the_rest_is_read(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    (tmp_path / "folder.jpg").mkdir()
    found = read_sources([
        table(tmp_path / "labels.csv", "path,identity", "a.jpg,w", "gone.jpg,v", ",x", "folder.jpg,y")
    ])  # fmt: skip
    assert names(found) == [("a.jpg", "w")]
    assert found.failures == (
        Failure(
            "labels.csv row 3",
            "bad_photo",
            "there is no photo 'gone.jpg'",
            "correct the path, or tell where the photos lie (--root)",
        ),
        Failure("labels.csv row 4", "bad_photo", "names no photo", "fill the cell or delete the row"),
        Failure(
            "labels.csv row 5",
            "bad_photo",
            "there is no photo 'folder.jpg'",
            "correct the path, or tell where the photos lie (--root)",
        ),
    )


def test_when_no_photo_is_found_a_note_says_what_is_wrong(tmp_path: Path) -> None:
    found = read_sources([table(tmp_path / "t.csv", "Image,Id", "a.jpg,w", "b.jpg,v")])
    assert len(found.failures) == 2
    assert found.notes == (
        "t.csv: none of its photos was found; tell where they lie (--root), or put the table beside them",
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"photo_number,animal\n1,2\n", "has the columns photo_number, animal; expected path and identity"),
        (b"path\na.jpg\n", "has the columns path; expected"),
        (b"", "is empty"),
        (b"  \n\n", "is empty"),
        (b"PK\x03\x04\x14\0\x06\0", "is not a text table"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not a text table"),
    ],
)
def test_a_table_nobody_can_read_says_what_it_has_and_what_it_needs(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(TableError) as caught:
        read_sources([path])
    assert caught.value.message.startswith(says)
    assert caught.value.source == str(path)
    assert caught.value.next_step


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="cannot be read"):
        read_sources([], table=tmp_path / "labels.csv")
    assert reported(read_sources([tmp_path / "labels.csv"])) == [(str(tmp_path / "labels.csv"), "does not exist")]


def test_cells_nobody_understands_are_counted_once_and_the_photo_is_used(tmp_path: Path) -> None:
    for name in "abc":
        photo(tmp_path / f"{name}.jpg")
    found = read_sources([
        table(
            tmp_path / "t.csv",
            "path,identity,date,orientation,latitude,longitude",
            "a.jpg,w,spring 2019,frontleft,12,190",
            "b.jpg,w,last week,left,north,3",
            "c.jpg,w,2019:07:30 09:15:42,right,12.5,3",
        )
    ])  # fmt: skip
    assert found.failures == ()
    assert [(s.taken_at, s.side, s.latitude, s.longitude) for s in found.sightings] == [
        (None, "unknown", None, None),
        (None, "left", None, None),
        (datetime(2019, 7, 30, 9, 15, 42), "right", 12.5, 3.0),
    ]
    assert found.notes == (
        "dates not understood, left out: 2 (first: t.csv row 2: 'spring 2019')",
        "sides not known, taken as unknown: 1 (first: t.csv row 2: 'frontleft')",
        "places not understood, left out: 2 (first: t.csv row 2: '12', '190')",
    )


def test_short_rows_empty_rows_and_quoted_line_breaks_keep_the_row_numbers(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "b.jpg")
    found = read_sources([
        table(tmp_path / "t.csv", "path,identity,remark", 'a.jpg,w,"two\nlines"', "", "b.jpg", "gone.jpg,x,y")
    ])  # fmt: skip
    assert names(found) == [("a.jpg", "w"), ("b.jpg", None)]
    assert [s.where for s in found.sightings] == ["t.csv row 2", "t.csv row 4"]
    assert [f.source for f in found.failures] == ["t.csv row 5"]


def test_a_row_that_cannot_be_split_is_reported_and_the_next_is_read(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    found = read_sources([
        table(tmp_path / "t.csv", "path,identity,segmentation", "a.jpg,w," + "1" * 200_000, "a.jpg,w,")
    ])  # fmt: skip
    assert names(found) == [("a.jpg", "w")]
    ((where, why),) = reported(found)
    assert where == "t.csv row 2" and "cannot be split" in why


# ------------------------------------------------------------------------------------------------- names and encodings


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow only Unicode file names")
def test_file_names_that_are_not_utf_8_survive_tables_folders_and_reports(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/baleine_\xe9t\xe9.jpg"
    path = photo(Path(os.fsdecode(raw)))
    (tmp_path / "t.csv").write_bytes(b"path,identity\nbaleine_\xe9t\xe9.jpg,\xc9lise\nparti_\xe9.jpg,x\n")
    found = read_sources([tmp_path / "t.csv"])
    assert [(s.path, s.identity) for s in found.sightings] == [(path, "Élise")]
    assert probe(found.sightings[0].path).width == 32
    ((_, why),) = reported(found)
    assert why == "there is no photo 'parti_\\xe9.jpg'"
    below = read_sources([tmp_path])
    assert [s.path for s in below.sightings] == [path]
    assert below.sightings[0].where.endswith("baleine_\\xe9t\\xe9.jpg")
    matched = read_sources([str(tmp_path / "bal*.jpg")])
    assert [s.path for s in matched.sightings] == [path]
    for text in (why, *[s.where for s in (*found.sightings, *below.sightings)], *found.notes, *below.notes):
        text.encode("utf-8")


def test_a_header_in_latin_1_can_be_printed(tmp_path: Path) -> None:
    listed = table(tmp_path / "t.csv", "fichier,individu identifié", "a.jpg,x", encoding="cp1252")
    with pytest.raises(TableError, match="individu identifié") as caught:
        read_sources([listed])
    str(caught.value).encode("utf-8")


def test_a_table_in_latin_1_finds_photos_named_in_unicode(tmp_path: Path) -> None:
    photo(tmp_path / "été.jpg")
    listed = table(tmp_path / "t.csv", "path,identity", "été.jpg,Élise", encoding="cp1252")
    assert names(read_sources([listed])) == [("été.jpg", "Élise")]


def test_a_table_in_utf_16_as_spreadsheets_save_unicode_text(tmp_path: Path) -> None:
    photo(tmp_path / "été.jpg")
    listed = table(tmp_path / "t.csv", "path\tidentity", "été.jpg\tÉlise", encoding="utf-16")
    assert names(read_sources([listed])) == [("été.jpg", "Élise")]


@pytest.mark.parametrize("cell", ["photos\\A.JPG", "photos/A.Jpg", "./photos/../photos/a.jpg", "photos\\a.jpg"])
def test_backslashes_and_case_of_another_system_are_understood(tmp_path: Path, cell: str) -> None:
    path = photo(tmp_path / "photos" / "a.jpg")
    found = read_sources([table(tmp_path / "t.csv", "path,identity", f"{cell},w")])
    assert [s.path for s in found.sightings] == [path]


def test_case_is_not_guessed_where_two_files_differ_only_in_it(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    if (tmp_path / "A.JPG").exists():
        pytest.skip("this file system does not tell case apart")
    photo(tmp_path / "A.JPG", 1)
    found = read_sources([table(tmp_path / "t.csv", "path,identity", "a.Jpg,w", "A.JPG,v")])
    assert names(found) == [("A.JPG", "v")]
    assert len(found.failures) == 1


def test_decomposed_and_composed_unicode_are_one_name(tmp_path: Path) -> None:
    photo(tmp_path / "e\u0301te\u0301.jpg")
    assert len(read_sources([table(tmp_path / "t.csv", "path,identity", "\u00e9t\u00e9.jpg,w")]).sightings) == 1


# -------------------------------------------------------------------------------------------- one photo in several rows


def test_one_photo_under_two_names_keeps_the_photo_and_believes_neither(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "b.jpg")
    found = read_sources([table(tmp_path / "labels.csv", "path,identity", "a.jpg,Anna", "b.jpg,Bo", "./a.jpg,Cleo")])
    assert names(found) == [("a.jpg", None), ("b.jpg", "Bo")]
    assert reported(found) == [
        (
            "labels.csv row 2",
            "names the animal in 'a.jpg' 'Anna', labels.csv row 4 names it 'Cleo': the photo was taken without a name",
        ),
        (
            "labels.csv row 4",
            "names the animal in 'a.jpg' 'Cleo', labels.csv row 2 names it 'Anna': the photo was taken without a name",
        ),
    ]


def seen(row: int, identity: str | None = None, box: Box | None = None, path: str = "a.jpg") -> Sighting:
    return Sighting(Path(path), f"t.csv row {row}", identity, box)


LEFT, RIGHT = Box(0, 0, 10, 10), Box(20, 0, 30, 10)


@pytest.mark.parametrize(
    ("rows", "kept", "lost"),
    [
        ([seen(2, "A", LEFT), seen(3, "B", RIGHT)], [(2, "A"), (3, "B")], []),
        ([seen(2, "A", LEFT), seen(3, "B", LEFT)], [(2, None)], [2, 3]),
        ([seen(2, "A", LEFT), seen(3, "A", LEFT)], [(2, "A")], [3]),
        ([seen(2, None, LEFT), seen(3, "A", LEFT)], [(3, "A")], [2]),
        ([seen(2, "A"), seen(3, "A", LEFT)], [(3, "A")], [2]),
        ([seen(2, "A"), seen(3, None, LEFT)], [(3, "A")], [2]),
        ([seen(2, "A"), seen(3, "B", LEFT)], [(3, None)], [2, 3]),
        ([seen(2), seen(3, "A", LEFT), seen(4, "B", RIGHT)], [(3, "A"), (4, "B")], [2]),
        ([seen(2), seen(3), seen(4, "A", path="b.jpg")], [(2, None), (4, "A")], [3]),
        ([seen(2, "A"), seen(3, "A"), seen(4, "B")], [(2, None)], [2, 3, 4]),
        ([seen(2, "A", LEFT), seen(3, "A", RIGHT)], [(2, "A"), (3, "A")], []),
    ],
)
def test_rows_of_one_photo_are_told_apart_by_box_and_merged_without_guessing(
    rows: list[Sighting], kept: list[tuple[int, str | None]], lost: list[int]
) -> None:
    sightings, failures = settle(rows)
    assert [(int(s.where.split()[-1]), s.identity) for s in sightings] == kept
    assert [int(f.source.split()[-1]) for f in failures] == lost


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(*map(st.sampled_from, (["a.jpg", "b.jpg"], [None, "A", "B"], [None, LEFT, RIGHT]))),
        max_size=8,
    )
)  # fmt: skip
def test_no_photo_is_ever_lost_and_no_box_gets_two_names(rows: list[tuple[str, str | None, Box | None]]) -> None:
    sightings, _ = settle([seen(i + 2, name, box, path) for i, (path, name, box) in enumerate(rows)])
    assert {str(s.path) for s in sightings} == {path for path, _, _ in rows}
    assert {(str(s.path), s.box) for s in sightings if s.box} == {(path, box) for path, _, box in rows if box}
    assert len({(s.path, s.box) for s in sightings}) == len(sightings)
    for sighting in sightings:
        if sighting.identity is not None:
            said = {n for p, n, b in rows if p == str(sighting.path) and b in (None, sighting.box) and n}
            assert said == {sighting.identity}


# --------------------------------------------------------------------------------------------------------------- boxes


def test_a_box_inside_the_photo_stays_as_it_is() -> None:
    box = Box(1.5, 2, 30, 40, 0.7, "detector")
    assert fit_box(box, 100, 80, "t.csv row 2") == box


def test_a_box_partly_outside_is_clipped() -> None:
    assert fit_box(Box(-5, 70, 30, 90), 100, 80, "t.csv row 2") == Box(0, 70, 30, 80)


@pytest.mark.parametrize(
    "box", [Box(100, 0, 120, 10), Box(-20, 0, 0, 10), Box(10, 90, 20, 99), Box(0.1, 0.2, 0.9, 0.8), Box(99, 0, 150, 10)]
)
def test_a_box_outside_the_photo_is_an_error_with_row_and_next_step(box: Box) -> None:
    with pytest.raises(TableError) as caught:
        fit_box(box, 100, 80, "labels.csv row 12")
    assert caught.value.source == "labels.csv row 12"
    assert "100×80" in caught.value.message and caught.value.next_step


def test_a_box_follows_a_photo_that_was_squashed_or_is_in_fractions() -> None:
    assert fit_box(Box(100, 60, 1050, 600), 100, 100, "r", (1050, 600)) == Box(
        pytest.approx(100 / 10.5), 10, pytest.approx(100), pytest.approx(100)
    )
    assert fit_box(Box(0.25, 0.5, 0.75, 1.0), 400, 200, "r", (1, 1)) == Box(100, 100, 300, 200)


def test_a_box_drawn_before_the_photo_was_turned_is_refused() -> None:
    with pytest.raises(TableError, match="before the photo was turned"):
        fit_box(Box(10, 10, 300, 200), 300, 400, "r", (400, 300))
    assert fit_box(Box(10, 10, 300, 200), 300, 300, "r", (300, 300)) == Box(10, 10, 300, 200)


# ------------------------------------------------------------------------------------------------------------- folders


def test_a_flat_folder_gives_photos_without_names_in_order(tmp_path: Path) -> None:
    for name in ("b.jpg", "A.JPEG", "deep/er/c.png", ".hidden.jpg", ".thumbs/d.jpg", "@eaDir/e.jpg"):
        photo(tmp_path / name)
    photo(tmp_path / "noextension", kind="PNG")
    photo(tmp_path / "odd.dat", kind="TIFF")
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "clip.mp4").write_bytes(b"\0" * 40)
    (tmp_path / "other.dat").write_bytes(b"\1" * 40)
    found = read_sources([tmp_path])
    assert [str(s.path.relative_to(tmp_path)) for s in found.sightings] == [
        "A.JPEG",
        "b.jpg",
        "noextension",
        "odd.dat",
        "deep/er/c.png",
    ]
    assert {s.identity for s in found.sightings} == {None}
    assert (found.failures, found.format) == ((), "photos")
    assert found.notes == (f"{tmp_path}: passed by what is no photo: 1 .mp4, 1 .dat, 1 .txt",)


def test_one_folder_per_animal_is_recognised_and_said(tmp_path: Path) -> None:
    for name in ("Anna/1.jpg", "Anna/2.jpg", "Bo/1.jpg", "unknown/1.jpg"):
        photo(tmp_path / name)
    found = read_sources([tmp_path])
    assert names(found) == [("1.jpg", "Anna"), ("2.jpg", "Anna"), ("1.jpg", "Bo"), ("1.jpg", None)]
    assert found.format == "folders"
    assert found.notes == (f"{tmp_path}: each of its 3 folders was taken for one animal; the layout 'flat' avoids it",)
    assert {s.identity for s in read_sources([tmp_path], layout="flat").sightings} == {None}


@pytest.mark.parametrize(
    "folders",
    [
        ("2019-07-30", "2019-07-31"),
        ("20190730", "20190731 afternoon"),
        ("100CANON", "101CANON"),
        ("train", "test"),
        ("left", "right"),
        ("photos", "photos/more"),
        ("Anna",),
        ("Anna", "."),
        ("Anna/2019", "Bo/2020"),
        ("encounter 1", "encounter 2"),
    ],
)
def test_folders_that_need_not_be_animals_give_no_names(tmp_path: Path, folders: Sequence[str]) -> None:
    for folder in folders:
        photo(tmp_path / folder / "1.jpg")
    found = read_sources([tmp_path])
    assert {s.identity for s in found.sightings} == {None}
    assert len(found.sightings) == len(folders)


def test_the_layout_can_be_said(tmp_path: Path) -> None:
    for name in ("Anna/2019/1.jpg", "2020/2.jpg", "3.jpg"):
        photo(tmp_path / name)
    assert names(read_sources([tmp_path], layout="folders")) == [("3.jpg", None), ("2.jpg", "2020"), ("1.jpg", "Anna")]


def test_a_folder_without_photos_and_a_lost_disk_are_reported(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    found = read_sources([tmp_path / "empty", tmp_path / "links", tmp_path / "nowhere", str(tmp_path / "*.png")])
    assert reported(found) == [
        (str(tmp_path / "empty"), "holds no photos"),
        (str(tmp_path / "links" / "a.jpg"), "is a link to nothing"),
        (str(tmp_path / "links"), "holds no photos"),
        (str(tmp_path / "nowhere"), "does not exist"),
        (str(tmp_path / "*.png"), "no file matches this pattern"),
    ]


def test_a_folder_that_contains_itself_by_a_link_is_entered_once(tmp_path: Path) -> None:
    photo(tmp_path / "a" / "1.jpg")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert len(read_sources([tmp_path]).sightings) == 1


def test_a_table_in_a_folder_is_pointed_out(tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "a.jpg")
    table(tmp_path / "labels.csv", "path,identity", "photos/a.jpg,w")
    assert f"{tmp_path}: labels.csv was not read; name it to use its labels" in read_sources([tmp_path]).notes


def test_globs_and_single_photos(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "sub/c.jpg", "with[brackets].jpg"):
        photo(tmp_path / name)
    assert [s.path.name for s in read_sources([str(tmp_path / "?.jpg")]).sightings] == ["a.jpg", "b.jpg"]
    assert len(read_sources([str(tmp_path / "**" / "*.jpg")]).sightings) == 4
    assert [s.path.name for s in read_sources([tmp_path / "with[brackets].jpg"]).sightings] == ["with[brackets].jpg"]
    twice = read_sources([tmp_path / "a.jpg", tmp_path / "a.jpg"])
    assert len(twice.sightings) == 1 and len(twice.failures) == 1


# ------------------------------------------------------------------------------------------------ a table beside photos


def test_a_table_gives_names_to_the_photos_of_a_folder(tmp_path: Path) -> None:
    for name in "abc":
        photo(tmp_path / "in" / f"{name}.jpg")
    listed = table(tmp_path / "t.csv", "path,identity,bbox", 'a.jpg,Anna,"[1, 2, 3, 4]"', "b.jpg,,", "z.jpg,Zoe,")
    found = read_sources([tmp_path / "in"], table=listed)
    assert [(s.path.name, s.where, s.identity, s.box) for s in found.sightings] == [
        ("a.jpg", "t.csv row 2", "Anna", Box(1, 2, 4, 6)),
        ("b.jpg", "t.csv row 3", None, None),
        ("c.jpg", str(tmp_path / "in" / "c.jpg"), None, None),
    ]
    assert [f.source for f in found.failures] == ["t.csv row 4"]
    assert f"photos t.csv does not mention: 1 (first: {tmp_path / 'in' / 'c.jpg'})" in found.notes
    assert names(read_sources([], table=table(tmp_path / "in" / "u.csv", "Image,Id", "a.jpg,w"))) == [("a.jpg", "w")]


def test_rows_of_a_table_whose_photos_were_not_asked_for_are_passed_by(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "b.jpg")
    found = read_sources([tmp_path / "a.jpg"], table=table(tmp_path / "t.csv", "Image,Id", "a.jpg,A", "b.jpg,B"))
    assert names(found) == [("a.jpg", "A")]
    assert found.notes == ("rows whose photos are not among the sources, passed by: 1 (first: t.csv row 3)",)


# --------------------------------------------------------------------------------------------------- JSON: boxes, COCO


def detections(tmp_path: Path, **more: Any) -> Path:
    document = {
        "info": {"format_version": "1.4", **more},
        "detection_categories": {"1": "animal", "2": "person"},
        "images": [
            {
                "file": "a.jpg",
                "detections": [
                    {"category": "1", "conf": 0.9, "bbox": [0.25, 0.5, 0.5, 0.25]},
                    {"category": "1", "conf": 0.4, "bbox": [0.0, 0.0, 0.1, 0.1]},
                    {"category": "2", "conf": 0.99, "bbox": [0.1, 0.1, 0.1, 0.1]},
                    {"category": "1", "conf": 0.1, "bbox": [0.1, 0.1, 0.1, 0.1]},
                    {"category": "1", "conf": 0.9, "bbox": [0.1, 0.1]},
                ],
            },
            {"file": "b.jpg", "detections": None, "failure": "image access failure"},
            {"file": "gone.jpg", "detections": []},
            "nonsense",
        ],
    }
    path = tmp_path / "md.json"
    path.write_text(json.dumps(document))
    return path


def test_a_detectors_boxes_become_sightings_in_fractions(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "b.jpg")
    found = read_sources([detections(tmp_path)])
    assert [(s.path.name, s.box, s.declared_size) for s in found.sightings] == [
        ("a.jpg", Box(0.25, 0.5, 0.75, 0.75, 0.9, "detector"), (1, 1)),
        ("a.jpg", Box(0.0, 0.0, 0.1, 0.1, 0.4, "detector"), (1, 1)),
        ("b.jpg", None, None),
    ]
    first = found.sightings[0]
    assert first.box is not None
    assert fit_box(first.box, 32, 24, first.where, first.declared_size) == Box(8, 12, 24, 18, 0.9, "detector")
    assert [f.source for f in found.failures] == ["md.json image 3", "md.json image 4"]
    assert found.format == "megadetector"
    assert found.notes == (
        "detections not understood, left out: 1 (first: md.json image 1)",
        "photos the detector failed on, taken without a box: 1 (first: md.json image 2: image access failure)",
        "photos without an animal above the threshold, taken without a box: 1 (first: md.json image 2)",
    )


def test_the_detectors_own_threshold_is_respected(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    found = read_sources([detections(tmp_path, detector_metadata={"typical_detection_threshold": 0.8})])
    assert len([s for s in found.sightings if s.box]) == 1


def test_folders_name_the_animals_and_a_detector_gives_the_boxes(tmp_path: Path) -> None:
    photo(tmp_path / "Anna" / "a.jpg")
    photo(tmp_path / "Bo" / "b.jpg")
    path = tmp_path / "md.json"
    box = {"category": "1", "conf": 0.9, "bbox": [0.25, 0.5, 0.5, 0.25]}
    other = {"category": "1", "conf": 0.5, "bbox": [0.0, 0.0, 0.5, 0.25]}
    images = [{"file": "Anna/a.jpg", "detections": [other, box]}, {"file": "Bo/b.jpg", "detections": [box]}]
    path.write_text(json.dumps({"images": images, "detection_categories": {"1": "animal"}}))
    found = read_sources([tmp_path], table=path)
    want = Box(0.25, 0.5, 0.75, 0.75, 0.9, "detector")
    assert [(s.path.name, s.identity, s.box) for s in found.sightings] == [
        ("a.jpg", "Anna", want),
        ("b.jpg", "Bo", want),
    ]


def test_the_list_form_of_detections_has_corners_in_pixels(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    path = tmp_path / "md.json"
    box = {"category": "animal", "confidence": 0.93, "bbox": [2.5, 3.0, 20.0, 22.0]}
    path.write_text(json.dumps([{"file": "a.jpg", "detections": [box, {**box, "category": "person"}]}]))
    found = read_sources([path])
    assert [(s.box, s.declared_size) for s in found.sightings] == [(Box(2.5, 3, 20, 22, 0.93, "detector"), None)]


def test_coco_with_individuals(tmp_path: Path) -> None:
    for name in "abcd":
        photo(tmp_path / "images" / f"{name}.jpg")
    document = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 640, "height": 480, "date_captured": "2019-07-30 09:15:42"},
            {"id": 2, "file_name": "b.jpg"},
            {"id": 3, "file_name": "c.jpg"},
            {"id": 4, "file_name": "gone.jpg"},
            {"id": 5, "file_name": "d.jpg"},
        ],
        "categories": [{"id": 1, "name": "whale_fluke"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "name": "Anna", "viewpoint": "left"},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [50, 2, 30, 40], "name": "____", "viewpoint": "upish"},
            {"id": 3, "image_id": 2, "individual_ids": [7]},
            {"id": 4, "image_id": 5, "bbox": [1, 2, 3], "name": "Bo"},
            {"id": 5, "image_id": 99},
            {"id": 6, "image_id": 4},
        ],
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(document))
    found = read_sources([path])
    common: dict[str, Any] = {
        "path": tmp_path / "images" / "a.jpg",
        "species": "whale_fluke",
        "taken_at": datetime(2019, 7, 30, 9, 15, 42),
        "declared_size": (640, 480),
    }
    assert found.sightings == (
        Sighting(where="coco.json annotation 1", identity="Anna", box=Box(1, 2, 31, 42), side="left", **common),
        Sighting(where="coco.json annotation 2", box=Box(50, 2, 80, 42), **common),
        Sighting(path=tmp_path / "images" / "b.jpg", where="coco.json annotation 3", identity="7"),
        Sighting(path=tmp_path / "images" / "c.jpg", where="coco.json image 3"),
    )
    assert [f.source for f in found.failures] == [
        "coco.json image 4",
        "coco.json annotation 4",
        "coco.json annotation 5",
    ]
    kept = read_sources([path], keep_boxless=True)
    assert [s.where for s in kept.sightings if s not in found.sightings] == ["coco.json annotation 4"]
    assert kept.failures == found.failures


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "[1, 2]", '{"images": 3, "annotations": []}', "[" * 100_000])
def test_json_that_is_something_else_is_a_table_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(TableError) as caught:
        read_sources([path])
    assert caught.value.source == str(path) and caught.value.next_step


# ----------------------------------------------------------------------------------------------------------- real data


def test_the_real_tables_are_read_and_their_boxes_fit(shared_data: Path) -> None:
    flukes = read_sources([shared_data / "flukes" / "labels.csv"])
    assert (len(flukes.sightings) + len(flukes.failures), flukes.format) == (9445, "wildlife_csv")
    assert all("has no area" in failure.message for failure in flukes.failures)  # five rows of the source are nonsense
    assert len(flukes.failures) == 5
    misfits = 0
    for sighting in flukes.sightings:
        assert sighting.box is not None and sighting.declared_size is not None
        try:
            box = fit_box(sighting.box, 100, 100, sighting.where, sighting.declared_size)
        except TableError:
            misfits += 1
        else:
            assert 0 <= box.x0 < box.x1 <= 100 and 0 <= box.y0 < box.y1 <= 100
    assert misfits <= 5
    nyala = read_sources([shared_data / "nyala" / "labels.csv"])
    assert (len(nyala.sightings), nyala.failures) == (1514, ())
    assert {s.side for s in nyala.sightings} == {"left", "right"}
    assert len({s.identity for s in nyala.sightings}) == 237
