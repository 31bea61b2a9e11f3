# ruff: noqa: F811  (fixtures are named as the arguments that ask for them)
"""Taking photos in: nothing twice, nothing lost, what differs reported; files that move, vanish and change; vectors;
encounters.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from catalogue_databases import Clock, catalogue, database, enrolled, photo, sha  # noqa: F401
from sqlalchemy import URL

from reid.catalogue import Added, Catalogue, Conflict, NewAnnotation, NewPhoto
from reid.catalogue.records import KnownFile
from reid.errors import CatalogueError, IdentityError, TableError
from reid.records import Box, PhotoFacts

NOON = datetime(2024, 7, 1, 12)


def vector(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def served(catalogue: Catalogue, after: int | None = None) -> dict[int, list[float]]:
    return {
        int(i): row.tolist()
        for chunk in catalogue.embeddings("model", after_revision=after, size=2)
        for i, row in zip(chunk.annotations, chunk.vectors, strict=True)
    }


def test_what_a_photo_says_comes_back_as_it_went_in(catalogue: Catalogue) -> None:
    name = os.fsdecode(b"caf\xc3\xa9 100% \xff\xfe/IMG\n1.jpg")
    facts = PhotoFacts(
        path=Path(name),
        sha256=sha(7),
        width=4000,
        height=3000,
        format="HEIF",
        size_bytes=5_000_000_000,
        phash=2**64 - 3,
        taken_at=datetime(2023, 5, 6, 7, 8, 9, 123456),
        latitude=-33.25,
        longitude=151.125,
        camera="Nikon\x00 D\udc80",
        notes=("broken EXIF", "frames ignored"),
    )
    box = Box(1.5, 2.25, 100.125, 200.0625, confidence=0.75, origin="detector")
    new = NewPhoto(facts, (NewAnnotation(box, "Ana", "left", "orca", 0.5),), encounter="trip 1", mtime_ns=2**60)
    (added,) = catalogue.add_photos([new], who="me")
    assert added == Added(1, "new", (1,), (True,), (1,))
    info = catalogue.photos([1])[1]
    assert (info.path, info.name, info.sha256, info.phash) == (Path(name), "IMG\n1.jpg", sha(7), 2**64 - 3)
    assert (info.width, info.height, info.format, info.size_bytes) == (4000, 3000, "HEIF", 5_000_000_000)
    assert (info.taken_at, info.latitude, info.longitude) == (facts.taken_at, -33.25, 151.125)
    assert (info.camera, info.notes, info.mtime_ns) == ("Nikon\ufffd D\ufffd", facts.notes, 2**60)
    assert (info.state, catalogue.encounter_keys([info.encounter or 0])) == ("present", {1: "trip 1"})
    assert info.added_at == datetime.fromisoformat("2026-01-01T00:00:01+00:00")
    mark = catalogue.annotations([1])[1]
    assert (mark.box, mark.side, mark.species, mark.quality, mark.identity) == (box, "left", "orca", 0.5, "Ana")
    assert (mark.path, mark.photo, mark.encounter, mark.taken_at) == (Path(name), 1, 1, facts.taken_at)
    assert catalogue.known_files() == [KnownFile(Path(name), 1, sha(7), 5_000_000_000, 2**60, "present")]
    assert catalogue.photo_by_hash(sha(7)) == info
    assert catalogue.phashes()[1].tolist() == [2**64 - 3]
    assert catalogue.photo_by_hash(sha(8)) is None


def test_taking_the_same_photos_in_again_changes_nothing(catalogue: Catalogue) -> None:
    batch = [
        photo(n, f"w{n % 3}", encounter="trip", vector=vector(n, 1), taken_at=NOON, mtime_ns=n, where=f"row {n}")
        for n in range(1, 8)
    ]
    catalogue.add_photos(batch, who="me", fingerprint="model")
    before = (catalogue.revision, catalogue.counts(), catalogue.events(), served(catalogue), catalogue.known_files())
    again = catalogue.add_photos(batch, who="me", fingerprint="model")
    assert {one.status for one in again} == {"known"} and not any(any(one.fresh) or one.named for one in again)
    assert before == (
        catalogue.revision,
        catalogue.counts(),
        catalogue.events(),
        served(catalogue),
        catalogue.known_files(),
    )
    assert catalogue.add_photos([], who="me") == []


def test_one_photo_twice_in_a_batch_is_taken_in_once(catalogue: Catalogue) -> None:
    first, second, third = catalogue.add_photos(
        [photo(1, "Ana"), photo(1, "Ana", path="copy.jpg"), photo(1, "Bea")], who="me"
    )
    assert (first.status, second.status, third.status) == ("new", "copy", "known")
    assert (second.annotations, second.fresh, second.conflicts) == ((1,), (False,), ())
    assert third.conflicts == (Conflict("identity", 1, "Ana", "Bea"),)
    assert catalogue.counts().photos == 1
    assert [one.name for one in catalogue.individuals()] == ["Ana"]  # the refused name makes no animal


def test_what_the_catalogue_holds_wins_and_what_it_lacks_is_filled_in(catalogue: Catalogue) -> None:
    enrolled(catalogue, photo(1), photo(2, "Ana", encounter="one"))
    first, second = catalogue.add_photos(
        [
            photo(1, "Bea", encounter="two", taken_at=NOON, place=(1.0, 2.0), side="left"),
            photo(2, "Bea", encounter="three"),
        ],
        who="me",
    )
    assert (first.named, first.conflicts) == ((1,), ())
    assert second.conflicts == (Conflict("encounter", None, "one", "three"), Conflict("identity", 2, "Ana", "Bea"))
    mended = catalogue.annotations([1])[1]
    assert (mended.identity, mended.side, mended.taken_at) == ("Bea", "left", NOON)
    assert catalogue.encounter_keys([mended.encounter or 0]) == {mended.encounter: "two"}
    assert catalogue.photos([1])[1].latitude == 1.0
    assert catalogue.counts().encounters == 2  # a key that was refused makes none
    again = catalogue.add_photos([photo(1, "Bea", side="right", taken_at=NOON + timedelta(1))], who="me")
    assert again[0].conflicts == ()
    assert (catalogue.annotations([1])[1].side, catalogue.annotations([1])[1].taken_at) == ("left", NOON)


def test_several_animals_in_one_photo_are_told_apart_by_their_boxes(catalogue: Catalogue) -> None:
    left, right = Box(0, 0, 100, 100), Box(200, 0, 300, 100)
    (added,) = catalogue.add_photos([photo(1, boxes=(left, right))], who="me")
    assert added.fresh == (True, True)
    nudged = Box(0.4, 0, 100, 99.2)
    third = Box(400, 0, 500, 100)
    (again,) = catalogue.add_photos([photo(1, "Ana", boxes=(nudged, third))], who="me")
    assert (again.annotations, again.fresh) == ((added.annotations[0], 3), (False, True))
    assert [one.identity for one in catalogue.annotations([1, 2, 3]).values()] == ["Ana", None, "Ana"]
    assert catalogue.annotations_of(photos=[1]) == [1, 2, 3]
    assert catalogue.annotations_of(individual="Ana") == [1, 3]
    assert catalogue.annotations_of(individual="Ana", photos=[2]) == []


def test_a_machines_box_never_adds_to_boxes_on_record(catalogue: Catalogue) -> None:
    left, right = Box(0, 0, 100, 100), Box(200, 0, 300, 100)
    enrolled(catalogue, photo(1, boxes=(left, right)))
    found = Box(190, 10, 310, 120, 0.9, "detector")
    (added,) = catalogue.add_photos([photo(1, "Ana", boxes=(found,))], who="me")
    assert (added.annotations, added.fresh, added.named) == ((2,), (False,), (2,))
    catalogue.add_photos([photo(1, boxes=(found,), vector=vector(1, 2))], who="me", fingerprint="model")
    assert served(catalogue) == {}  # a vector of another box than the one on record is none of it
    (both,) = catalogue.add_photos([photo(2, boxes=(found, Box(0, 0, 9, 9, 0.5, "detector")))], who="me")
    assert both.fresh == (True, True)


def test_a_persons_box_takes_the_place_of_a_machines_and_inherits_its_identity(catalogue: Catalogue) -> None:
    whole = Box(0, 0, 640, 480, origin="whole")
    catalogue.add_photos([photo(1, "Ana", boxes=(whole,), vector=vector(1, 0))], who="me", fingerprint="model")
    before = catalogue.revision
    drawn = Box(10, 10, 300, 200, origin="table")
    (added,) = catalogue.add_photos([photo(1, boxes=(drawn,), vector=vector(0, 1))], who="me", fingerprint="model")
    assert (added.annotations, added.fresh) == ((2,), (True,))
    assert (catalogue.annotations([2])[2].identity, catalogue.annotations_of(photos=[1])) == ("Ana", [2])
    assert (served(catalogue), catalogue.withdrawn(), catalogue.withdrawn(before + 1)) == ({2: [0, 1]}, [1], [])
    assert catalogue.labels().annotations.tolist() == [2]
    (event,) = catalogue.annotation_history(2)
    assert (event.kind, event.evidence) == ("assign", {"inherits": 1})
    with pytest.raises(IdentityError, match="annotation 1 was replaced by a better box; use annotation 2"):
        catalogue.assign([1], "Bea", who="me")
    with pytest.raises(IdentityError, match="nothing would stay"):
        catalogue.split([2], who="me")
    assert catalogue.replay().state == catalogue.projection()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (photo(2, boxes=(Box(5, 5, 5, 9),), where="a.csv row 3"), "a.csv row 3: the box 5, 5, 5, 9 is empty"),
        (photo(2, boxes=(Box(0, 0, float("nan"), 9),)), "photos/2.jpg: the box .* not finite"),
        (photo(2, "x" * 201), "201 characters"),
        (photo(2, "a\x00b"), "control characters"),
        (photo(2, "a\udc80"), "undecodable"),
        (photo(2, vector=vector(1, float("inf"))), "not one row of finite numbers"),
        (photo(2, vector=np.ones((2, 2), np.float32)), "not one row"),
    ],
)
def test_a_photo_that_cannot_be_kept_is_named_and_its_batch_left_out(
    catalogue: Catalogue, bad: NewPhoto, message: str
) -> None:
    with pytest.raises(TableError, match=message):
        catalogue.add_photos([photo(1), bad], who="me", fingerprint="model")
    assert (catalogue.counts().photos, catalogue.revision) == (0, 0)


def test_vectors_come_back_as_half_floats_and_know_their_model(catalogue: Catalogue) -> None:
    a, b, c = enrolled(catalogue, photo(1), photo(2), photo(3))
    rows = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)
    assert catalogue.put_embeddings("model", [c, a], rows) == 2
    stored = rows.astype("<f2").astype(np.float32)
    assert served(catalogue) == {a: stored[1].tolist(), c: stored[0].tolist()}
    fetched = catalogue.embeddings_of("model", [c, b])
    assert list(fetched) == [c] and fetched[c].dtype == np.float32
    assert catalogue.lacking_embeddings("model").tolist() == [b]
    assert catalogue.lacking_embeddings("other").tolist() == [a, b, c]
    assert list(catalogue.embeddings("other")) == []
    assert catalogue.models() == {"model": 5}
    with pytest.raises(CatalogueError, match="vectors of size 4 .* have size 5"):
        catalogue.put_embeddings("model", [b], rows[:1, :4])
    with pytest.raises(CatalogueError, match="annotation 99 does not exist"):
        catalogue.put_embeddings("model", [99], rows[:1])
    with pytest.raises(CatalogueError, match="NaN"):
        catalogue.put_embeddings("model", [b], rows[:1] * np.nan)
    with pytest.raises(CatalogueError, match="1e5|65504"):
        catalogue.put_embeddings("model", [b], np.full((1, 5), 1e5, np.float32))
    with pytest.raises(CatalogueError, match="2 annotations and vectors"):
        catalogue.put_embeddings("model", [a, b], rows[:1])
    with pytest.raises(CatalogueError, match="two vectors"):
        catalogue.put_embeddings("model", [b, b], rows)
    assert catalogue.lacking_embeddings("model").tolist() == [b]


def test_an_index_keeps_up_by_taking_in_what_came_and_dropping_what_went(catalogue: Catalogue) -> None:
    batch = [photo(n, vector=vector(n, n)) for n in range(1, 6)]
    catalogue.add_photos(batch, who="me", fingerprint="model")
    revision = catalogue.vectors_revision
    assert served(catalogue, revision) == {}
    catalogue.assign([1], "Ana", who="me")
    catalogue.mark_missing(["photos/5.jpg"])
    assert (catalogue.vectors_revision, catalogue.revision) == (
        revision,
        revision + 2,
    )  # nothing for the index in these
    assert 5 in served(catalogue)  # a missing photo still serves
    catalogue.add_photos([photo(6, vector=vector(6, 6))], who="me", fingerprint="model")
    catalogue.put_embeddings("model", [2], np.array([[9, 9]], np.float32))
    catalogue.mark_changed(["photos/3.jpg"])
    assert served(catalogue, revision) == {2: [9, 9], 6: [6, 6]}
    assert catalogue.withdrawn(revision) == [3]
    later = catalogue.vectors_revision
    catalogue.add_photos([photo(3)], who="me")  # its bytes are back
    assert (served(catalogue, later), catalogue.withdrawn(later)) == ({3: [3, 3]}, [])
    assert set(served(catalogue)) == {1, 2, 3, 4, 5, 6}


def test_files_that_move_vanish_and_change_are_marked_and_nothing_is_forgotten(catalogue: Catalogue) -> None:
    enrolled(catalogue, photo(1, "Ana", path="a.jpg"), photo(2, "Bea", path="b.jpg"))
    assert catalogue.mark_missing([Path("a.jpg"), "never.jpg"]) == [1]
    assert catalogue.mark_missing(["a.jpg"]) == []
    assert [one.id for one in catalogue.photos_in_state("missing")] == [1]
    (moved,) = catalogue.add_photos([photo(1, path="moved/a.jpg")], who="me")
    assert (moved.status, catalogue.photos([1])[1].path) == ("moved", Path("moved/a.jpg"))
    assert [(str(f.path), f.state) for f in catalogue.known_files()] == [
        ("moved/a.jpg", "present"),
        ("b.jpg", "present"),
        ("a.jpg", "missing"),
    ]
    (other,) = catalogue.add_photos([photo(3, "Cy", path="b.jpg")], who="me")  # b.jpg holds other bytes now
    assert other.status == "new"
    assert catalogue.photos([2])[2].state == "changed"
    assert (catalogue.counts().photos, catalogue.counts().changed, catalogue.counts().annotations) == (3, 1, 2)
    assert catalogue.individual("Bea").n_photos == 0
    assert catalogue.mark_missing(["moved/a.jpg"]) == [1]
    assert catalogue.mark_present(["moved/a.jpg", "b.jpg"]) == [1]
    assert catalogue.photos([1])[1].state == "present"
    (back,) = catalogue.add_photos([photo(2, path="b.jpg")], who="me")
    assert (back.status, catalogue.photos([2])[2].state, catalogue.photos([3])[3].state) == (
        "known",
        "present",
        "changed",
    )


def test_two_files_that_swap_their_bytes_are_two_photos_still(catalogue: Catalogue) -> None:
    enrolled(catalogue, photo(1, path="a.jpg"), photo(2, path="b.jpg"))
    first, second = catalogue.add_photos([photo(2, path="a.jpg"), photo(1, path="b.jpg")], who="me")
    assert (first.photo, second.photo) == (2, 1)
    shown = {i: (str(one.path), one.state) for i, one in catalogue.photos([1, 2]).items()}
    assert shown == {1: ("b.jpg", "present"), 2: ("a.jpg", "present")}
    assert len(served_paths(catalogue)) == 2


def served_paths(catalogue: Catalogue) -> set[str]:
    return {str(one.path) for one in catalogue.known_files() if one.state == "present"}


def test_a_photo_is_shown_from_its_copy_when_its_own_file_goes(catalogue: Catalogue) -> None:
    catalogue.add_photos([photo(1, path="a.jpg"), photo(1, path="copy.jpg", mtime_ns=5)], who="me")
    assert catalogue.mark_missing(["a.jpg"]) == [1]
    info = catalogue.photos([1])[1]
    assert (str(info.path), info.state, info.mtime_ns) == ("copy.jpg", "present", 5)
    assert catalogue.mark_changed(["copy.jpg"]) == [1]
    assert catalogue.photos([1])[1].state == "changed"
    catalogue.mark_present(["a.jpg"])
    assert catalogue.photos([1])[1].state == "present"
    assert str(catalogue.photos([1])[1].path) == "a.jpg"


def test_photos_without_an_animal_are_kept_and_listed(catalogue: Catalogue) -> None:
    (added,) = catalogue.add_photos([photo(1, boxes=())], who="me")
    assert added == Added(1, "new")
    assert [one.id for one in catalogue.bare_photos()] == [1]
    assert (catalogue.counts().bare, catalogue.counts().annotations) == (1, 0)
    catalogue.add_photos([photo(1, "Ana", boxes=(Box(0, 0, 9, 9, 0.5, "detector"),))], who="me")
    assert catalogue.bare_photos() == []


def test_individuals_are_counted_with_their_photos_encounters_sides_and_times(catalogue: Catalogue) -> None:
    two = (Box(0, 0, 9, 9), Box(20, 0, 29, 9))
    enrolled(
        catalogue,
        photo(1, "Ana", encounter="one", taken_at=NOON, side="left"),
        photo(2, "Ana", encounter="one", boxes=two, side="right"),
        photo(3, "Ana", encounter="two", taken_at=NOON - timedelta(days=400)),
        photo(4, "Bea", taken_at=NOON),
        photo(5),
    )
    ana, bea = catalogue.individuals()
    assert (ana.name, ana.n_photos, ana.n_annotations, ana.n_encounters) == ("Ana", 3, 4, 2)
    assert (ana.first_seen, ana.last_seen, ana.sides) == (NOON - timedelta(days=400), NOON, ("left", "right"))
    assert (bea.name, bea.n_photos, bea.n_encounters, bea.sides) == ("Bea", 1, 0, ())
    assert catalogue.photo_counts([ana.id, bea.id, 77]) == {ana.id: 3, bea.id: 1, 77: 0}
    labels = catalogue.labels()
    assert labels.annotations.tolist() == [1, 2, 3, 4, 5, 6]
    assert labels.individuals.tolist() == [ana.id] * 4 + [bea.id, -1]
    assert labels.encounters.tolist() == [1, 1, 1, 2, -1, -1]
    assert labels.photos.tolist() == [1, 2, 2, 3, 4, 5]
    assert labels.names == {ana.id: "Ana", bea.id: "Bea"}
    assert catalogue.annotations_of(sides=["right"]) == [2, 3]
    assert catalogue.annotations_of(sides=["right", "left"], encounters=[1], photos=[1, 3]) == [1]
    assert catalogue.annotations_of(species=["orca"]) == []
    numbers, hashes = catalogue.phashes()
    assert (numbers.tolist(), hashes.tolist(), hashes.dtype) == ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], np.uint64)
    counts = catalogue.counts()
    assert (counts.photos, counts.annotations, counts.unnamed, counts.individuals, counts.events) == (5, 6, 1, 2, 5)


def test_an_empty_catalogue_answers_with_nothing(catalogue: Catalogue) -> None:
    assert catalogue.labels().annotations.shape == (0,)
    assert catalogue.lacking_embeddings("model").shape == (0,)
    assert (catalogue.annotations([]), catalogue.annotations([3]), catalogue.individuals()) == ({}, {}, [])
    assert (catalogue.events(), catalogue.known_files(), catalogue.group_encounters()) == ([], [], 0)
    assert (catalogue.revision, catalogue.vectors_revision, sum(vars_of(catalogue))) == (0, 0, 0)
    assert catalogue.put_embeddings("model", [], np.zeros((0, 4), np.float32)) == 0


def vars_of(catalogue: Catalogue) -> list[int]:
    counts = catalogue.counts()
    return [getattr(counts, name) for name in counts.__slots__]


def test_every_change_is_a_new_revision_and_looking_is_none(catalogue: Catalogue) -> None:
    seen = [catalogue.revision]
    for change in (
        lambda: catalogue.add_photos([photo(1, vector=vector(1, 2))], who="me", fingerprint="model"),
        lambda: catalogue.assign([1], "Ana", who="me"),
        lambda: catalogue.rename("Ana", "Bea", who="me"),
        lambda: catalogue.undo(2, who="me"),
        lambda: catalogue.mark_missing(["photos/1.jpg"]),
        lambda: catalogue.mark_present(["photos/1.jpg"]),
        lambda: catalogue.group_encounters(),
        lambda: catalogue.put_embeddings("model", [1], np.ones((1, 2), np.float32)),
    ):
        change()
        catalogue.annotations([1])
        seen.append(catalogue.revision)
    assert seen == list(range(9))
    assert catalogue.vectors_revision == 8


def test_what_one_opens_another_sees(catalogue: Catalogue, database: URL) -> None:
    enrolled(catalogue, photo(1, "Ana"))
    with Catalogue.open(database, clock=Clock()) as other:
        assert other.individual("Ana").n_photos == 1
        other.rename("Ana", "Bea", who="you")
    assert catalogue.annotations([1])[1].identity == "Bea"
