"""Tables of photos: every spelling people use; every bad row is reported and the rest is read."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path

import pytest
from photo_sources import names, photo, reported, table

from reid.errors import TableError
from reid.exchange import SightingList, fit_box, read_sources
from reid.images import probe
from reid.records import Box, Failure, Sighting


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
