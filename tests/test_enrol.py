"""Enrolment: what becomes of every photo, run once, again, or half."""

from __future__ import annotations

import os
import shutil
import struct
import sys
import zlib
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from fake_stores import (
    MORNING,
    ColourEmbedder,
    assert_index_is_the_catalogue,
    counted,
    fake_store,
    herd,
    paint,
    reopened,
    seen,
    taken_in,
)

from reid import crop, images, models
from reid import enrol as enrolling
from reid.errors import CatalogueError, StoreError
from reid.records import Box, Sighting
from reid.store import Store
from reid.suitable import by_shape
from reid.vectors import embed_lacking


def test_photos_are_counted_as_what_they_are(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    rows = herd(tmp_path / "p", 3, 2)
    first = taken_in(store, rows)
    assert counted(first) == (6, 0, 0, 0, 0)
    assert (first.named, first.annotations) == (6, 6)
    os.rename(rows[0].path, tmp_path / "p" / "renamed.png")
    shutil.copy(rows[1].path, tmp_path / "p" / "again.png")
    more = [
        seen(tmp_path / "p" / "renamed.png", "a000"),
        *rows[1:],
        seen(tmp_path / "p" / "again.png", "a000"),
        seen(paint(tmp_path / "p" / "new.png", 9), "a009"),
    ]
    second = taken_in(store, more)
    assert counted(second) == (1, 5, 1, 1, 0)
    assert (second.named, second.annotations) == (1, 1)
    counts = store.catalogue.counts()
    assert (counts.photos, counts.missing, counts.annotations, counts.individuals) == (7, 0, 7, 4)
    assert_index_is_the_catalogue(store)


def test_enrolling_again_changes_nothing_and_embeds_nothing(tmp_path: Path) -> None:
    embedder = ColourEmbedder()
    store = fake_store(tmp_path / "s", embedder=embedder)
    rows = herd(tmp_path / "p", 4, 2)
    taken_in(store, rows)
    before = (store.catalogue.revision, store.catalogue.counts(), store.gallery().ids(), embedder.embedded)
    again = taken_in(reopened(tmp_path / "s", embedder), rows)
    assert counted(again) == (0, 8, 0, 0, 0)
    assert (again.named, again.annotations, again.notes) == (0, 0, [])
    assert (store.catalogue.revision, store.catalogue.counts(), store.gallery().ids(), embedder.embedded) == before


def test_an_interrupted_enrolment_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolling, "BATCH", 3)
    store = fake_store(tmp_path / "s")
    rows = herd(tmp_path / "p", 5, 4)

    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taken_in(store, rows, progress=interrupt)
    kept = store.catalogue.counts().photos
    assert kept == 9
    assert_index_is_the_catalogue(reopened(tmp_path / "s"))
    rest = taken_in(reopened(tmp_path / "s"), rows)
    assert counted(rest) == (20 - kept, kept, 0, 0, 0)
    counts = store.catalogue.counts()
    assert (counts.photos, counts.annotations, counts.individuals, counts.unnamed) == (20, 20, 5, 0)
    assert_index_is_the_catalogue(store)


def test_two_animals_in_one_photo_are_two_annotations(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    photo = paint(tmp_path / "both.png", 1, beside=2)
    left, right = Box(0, 0, 96, 64), Box(96, 0, 192, 64)
    report = taken_in(store, [seen(photo, "one", box=left), seen(photo, "two", box=right)])
    assert (report.new, report.annotations, report.named) == (1, 2, 2)
    infos = store.catalogue.annotations(range(1, 10))
    assert {(i.identity, i.box.x0, i.box.x1) for i in infos.values()} == {("one", 0, 96), ("two", 96, 192)}
    one = ColourEmbedder().embed(_crop(photo, left))
    ids = [str(i) for i, info in infos.items() if info.identity == "one"]
    assert float(store.gallery().vectors(ids)[0] @ one[0]) > 0.97


def _crop(photo: Path, box: Box) -> np.ndarray:
    from reid import intake

    prepared = intake.prepare([seen(photo, box=box)], ColourEmbedder().card.preprocessing)
    return prepared.crops


def test_a_photo_under_two_names_is_one_photo(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    rows = herd(tmp_path / "p", 1, 1)
    shutil.copy(rows[0].path, tmp_path / "p" / "twin.png")
    report = taken_in(store, [rows[0], seen(tmp_path / "p" / "twin.png", "a000")])
    assert counted(report) == (1, 0, 0, 1, 0)
    assert len(report.notes) == 1 and "twin.png" in report.notes[0]
    assert store.catalogue.counts().annotations == 1
    again = taken_in(store, [rows[0], seen(tmp_path / "p" / "twin.png", "a000")])
    assert (again.new, again.annotations, again.named, again.failures) == (0, 0, 0, [])


def test_a_table_that_contradicts_the_record_is_reported_and_the_record_kept(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    photo = paint(tmp_path / "p.png", 1)
    taken_in(store, [seen(photo, "Ana")])
    report = taken_in(store, [seen(photo, "Berta")])
    [failure] = report.failures
    assert (failure.source, failure.code) == ("row of p.png", "conflict")
    assert "'Ana'" in failure.message and "'Berta'" in failure.message
    assert [i.name for i in store.catalogue.individuals()] == ["Ana"]


def _png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + b"\0" * 60


def test_bad_photos_are_reported_by_name_and_the_rest_is_enrolled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = herd(tmp_path / "p", 3, 2)
    whole = rows[0].path.read_bytes()
    bad = {
        "truncated.png": whole[: len(whole) // 2],
        "empty.png": b"",
        "text.jpg": b"these are not the pixels you are looking for",
        "bomb.png": _png_header(60_000, 60_000),
    }
    for name, content in bad.items():
        (tmp_path / "p" / name).write_bytes(content)
    vanished = paint(tmp_path / "p" / "vanished.png", 77)
    sightings = [rows[0], *(seen(tmp_path / "p" / n, "x") for n in bad), seen(vanished, "x"), *rows[1:]]
    vanished.unlink()
    store = fake_store(tmp_path / "s")
    report = taken_in(store, sightings)
    assert counted(report) == (6, 0, 0, 0, 5)
    for name in [*bad, "vanished.png"]:
        [failure] = [f for f in report.failures if name in f.source]
        assert failure.message and failure.next_step
    assert store.catalogue.counts().photos == 6
    assert [i.name for i in store.catalogue.individuals()] == ["a000", "a001", "a002"]
    assert_index_is_the_catalogue(store)


def test_a_box_outside_its_photo_is_reported_and_the_other_animals_are_enrolled(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    photo = paint(tmp_path / "p.png", 1, beside=2)
    rows = [seen(photo, "out", box=Box(500, 500, 600, 600)), seen(photo, "in", box=Box(96, 0, 192, 64))]
    report = taken_in(store, rows)
    assert (report.new, report.annotations, [f.code for f in report.failures]) == (1, 1, ["bad_table"])
    assert [i.name for i in store.catalogue.individuals()] == ["in"]


def test_copies_are_kept_in_the_store_when_asked_for(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s", settings="copy = false → copy = true")
    rows = herd(tmp_path / "p", 2, 2)
    contents = sorted(row.path.read_bytes() for row in rows)
    taken_in(store, rows)
    kept = [p for p in (tmp_path / "s" / "photos").rglob("*") if p.is_file()]
    assert sorted(p.read_bytes() for p in kept) == contents
    embedded = store.embedder.embedded  # type: ignore[attr-defined]
    again = taken_in(store, rows)
    assert counted(again) == (0, 4, 0, 0, 0)
    assert store.embedder.embedded == embedded  # type: ignore[attr-defined]
    shutil.rmtree(tmp_path / "p")
    for info in store.catalogue.annotations(range(1, 5)).values():
        assert not info.path.is_absolute() and store.resolve(info.path).is_file()
    assert_index_is_the_catalogue(store)


def test_a_photo_that_vanishes_before_it_is_copied_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fake_store(tmp_path / "s", settings="copy = false → copy = true")
    rows = herd(tmp_path / "p", 2, 2)
    copyfile = shutil.copyfile

    def gone(source: Path, target: Path) -> None:
        if source.name == "a000-1.png":
            source.unlink()
        copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", gone)
    report = taken_in(store, rows)
    assert counted(report) == (3, 0, 0, 0, 1)
    assert "a000-1.png" in report.failures[0].source
    assert {i.identity for i in store.catalogue.annotations(range(1, 9)).values()} == {"a000", "a001"}
    assert_index_is_the_catalogue(store)


def test_a_disk_that_fills_up_while_copying_ends_the_enrolment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fake_store(tmp_path / "s", settings="copy = false → copy = true")

    def full(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StoreError, match="No space left"):
        taken_in(store, herd(tmp_path / "p", 2, 2))
    assert [p for p in (tmp_path / "s" / "photos").rglob("*") if p.is_file()] == []


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_file_names_that_are_no_text_are_kept_and_can_be_shown(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/wal\xff\xe9.png"))
    paint(tmp_path / "plain.png", 3)
    os.rename(tmp_path / "plain.png", odd)
    broken = Path(os.fsdecode(os.fsencode(tmp_path) + b"/leer\xff.png"))
    broken.write_bytes(b"")
    rows = [Sighting(odd, "row 1", "Ana"), Sighting(broken, "row 2", "Ana")]
    report = taken_in(store, rows)
    assert counted(report) == (1, 0, 0, 0, 1)
    report.failures[0].source.encode("utf-8")
    [info] = store.catalogue.annotations([1]).values()
    assert info.path == odd and info.path.is_file()
    assert counted(taken_in(store, rows)) == (0, 1, 0, 0, 1)


def test_a_new_box_on_a_known_photo_gets_its_vector(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    photo = paint(tmp_path / "p.png", 1, beside=2)
    left, right = seen(photo, "one", box=Box(0, 0, 96, 64)), seen(photo, "two", box=Box(96, 0, 192, 64))
    taken_in(store, [left])
    report = taken_in(store, [left, right])
    assert (report.new, report.known, report.annotations, report.named) == (0, 1, 1, 1)
    assert len(store.gallery()) == 2
    assert_index_is_the_catalogue(store)


def test_a_lacking_vector_is_never_taken_from_a_file_that_holds_another_photo_now(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    photo = paint(tmp_path / "p.png", 1)
    taken_in(store, [seen(photo, "Ana")])
    paint(photo, 2)
    other = reopened(tmp_path / "s", ColourEmbedder("other"))  # which has no vector of it
    failures = embed_lacking(other)
    assert [f.code for f in failures] == ["bad_photo"] and "p.png" in failures[0].source
    assert len(other.catalogue.lacking_embeddings(other.fingerprint)) == 1


def test_a_file_that_holds_another_photo_now_is_a_new_photo(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    photo = paint(tmp_path / "p.png", 1)
    taken_in(store, [seen(photo, "Ana")])
    paint(photo, 2)
    assert counted(taken_in(store, [seen(photo, "Berta")])) == (1, 0, 0, 0, 0)
    counts = store.catalogue.counts()
    assert (counts.photos, counts.changed, counts.annotations) == (2, 1, 1)
    assert len(store.gallery()) == 1
    assert_index_is_the_catalogue(store)


@pytest.mark.parametrize(
    ("boxes", "name"),
    [
        ([Box(0, 0, 200, 100)] * 3, models.WIDE),
        ([Box(0, 0, 100, 100)] * 3, models.DEFAULT),
        ([Box(0, 0, 200, 100), None, None], models.DEFAULT),
        ([None, None, None], models.DEFAULT),
    ],
)
def test_the_model_follows_the_shape_of_most_boxes(boxes: list[Box | None], name: str) -> None:
    assert by_shape([seen(Path(f"{i}.jpg"), box=box) for i, box in enumerate(boxes)]) == name


def test_boxes_in_fractions_tell_nothing_of_their_shape() -> None:
    rows = [seen(Path(f"{i}.jpg"), box=Box(0, 0.4, 1, 0.6), declared_size=(1, 1)) for i in range(4)]
    assert by_shape(rows) == models.DEFAULT


def test_the_first_enrolment_settles_the_model_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "embedder", property(lambda store: ColourEmbedder()))
    store = Store.create(tmp_path / "s")
    photo = paint(tmp_path / "p.png", 1)
    taken_in(store, [seen(photo, "Ana", box=Box(0, 0, 90, 40))])
    assert Store.open(tmp_path / "s").config.embedder.model == models.WIDE
    taken_in(store, [seen(paint(tmp_path / "q.png", 2), "Ana", box=Box(0, 0, 40, 40))])
    assert Store.open(tmp_path / "s").config.embedder.model == models.WIDE


def test_photos_near_in_time_become_one_encounter(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    times = [0, 30, 80, 200]  # minutes; an hour's pause starts a new one
    rows = [
        seen(paint(tmp_path / f"{m}.png", m + 1), "Ana", taken_at=MORNING + timedelta(minutes=m)) for m in times
    ] + [seen(paint(tmp_path / "given.png", 7), "Ana", taken_at=MORNING, encounter="by hand")]
    taken_in(store, rows)
    by_name = {i.path.name: i.encounter for i in store.catalogue.annotations(range(1, 9)).values()}
    assert by_name["0.png"] == by_name["30.png"] == by_name["80.png"]
    assert len({by_name["0.png"], by_name["200.png"], by_name["given.png"]}) == 3 and None not in by_name.values()


def test_the_label_for_new_animals_names_nobody(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s", new_label="stranger")
    report = taken_in(
        store, [seen(paint(tmp_path / "p.png", 1), "stranger"), seen(paint(tmp_path / "q.png", 2), "Ana")]
    )
    assert (report.new, report.named) == (2, 1)
    assert [i.name for i in store.catalogue.individuals()] == ["Ana"]


def test_mirrored_views_are_averaged_and_tell_another_fingerprint(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s", settings="mirror = false → mirror = true")
    photo = paint(tmp_path / "p.png", 1)
    taken_in(store, [seen(photo, "Ana")])
    crop = _crop(photo, Box(0, 0, 96, 64))
    plain, mirrored = ColourEmbedder().embed(crop)[0], ColourEmbedder().embed(crop[:, :, ::-1])[0]
    mean = (plain + mirrored) / np.linalg.norm(plain + mirrored)
    np.testing.assert_allclose(store.gallery().vectors(["1"])[0], mean, atol=2e-3)
    assert store.gallery().fingerprint == ColourEmbedder().card.fingerprint + "+mirror"


@pytest.mark.parametrize(
    "asked, said, views", [("around", "", 5), ("around", "one", 1), ("thrice", "", 1), ("", "boxes", 5)]
)
def test_a_model_sees_by_the_views_that_its_card_asks_for_unless_the_store_says_otherwise(
    tmp_path: Path, asked: str, said: str, views: int
) -> None:
    embedder = ColourEmbedder(extra={"views": asked} if asked else None)
    store = fake_store(tmp_path / "s", embedder=embedder, settings=f'views = "auto" → views = "{said or "auto"}"')
    photo, box = paint(tmp_path / "p.png", 1), Box(20, 10, 80, 50)
    taken_in(store, [seen(photo, "Ana", box=box)])
    name = {1: "one", 5: said or "around"}[views]
    crops = crop.cut_views(images.read(photo).pixels, box, embedder.card.preprocessing, crop.VIEWS[name])
    mean = embedder.embed(crops).mean(0)
    assert len(crops) == views
    np.testing.assert_allclose(store.gallery().vectors(["1"])[0], mean / np.linalg.norm(mean), atol=2e-3)
    assert store.gallery().fingerprint == embedder.card.fingerprint + ("" if views == 1 else f"+{name}")


def test_a_catalogue_that_refuses_everything_is_an_error_and_not_a_list_of_bad_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fake_store(tmp_path / "s")

    def refuse(*photos: object, **more: object) -> None:
        raise CatalogueError("database or disk is full")

    monkeypatch.setattr(store.catalogue, "add_photos", refuse)
    with pytest.raises(CatalogueError, match="full"):
        taken_in(store, herd(tmp_path / "p", 2, 2))


def test_one_photo_that_spoils_its_batch_is_left_out_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fake_store(tmp_path / "s")
    rows = herd(tmp_path / "p", 2, 2)
    add = store.catalogue.add_photos

    def picky(photos, **more):  # type: ignore[no-untyped-def]
        if any(p.facts.path.name == "a001-0.png" for p in photos):
            raise CatalogueError("refused", source="a001-0.png")
        return add(photos, **more)

    monkeypatch.setattr(store.catalogue, "add_photos", picky)
    report = taken_in(store, rows)
    assert counted(report) == (3, 0, 0, 0, 1)
    assert report.failures[0].source == "a001-0.png"
    assert_index_is_the_catalogue(store)
