"""Folders, globs and single photos, alone or with a table beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from photo_sources import names, photo, reported, table

from reid.exchange import read_sources
from reid.records import Box


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
    named = read_sources([tmp_path], table=tmp_path / "labels.csv").notes
    assert not [note for note in named if "labels.csv" in note or ".csv" in note]


def test_globs_and_single_photos(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "sub/c.jpg", "with[brackets].jpg"):
        photo(tmp_path / name)
    assert [s.path.name for s in read_sources([str(tmp_path / "?.jpg")]).sightings] == ["a.jpg", "b.jpg"]
    assert len(read_sources([str(tmp_path / "**" / "*.jpg")]).sightings) == 4
    assert [s.path.name for s in read_sources([tmp_path / "with[brackets].jpg"]).sightings] == ["with[brackets].jpg"]
    twice = read_sources([tmp_path / "a.jpg", tmp_path / "a.jpg"])
    assert len(twice.sightings) == 1 and len(twice.failures) == 1


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
