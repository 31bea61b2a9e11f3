"""Photos taken out of service: gone from the answers, on record for ever, neither missed nor brought back by night."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_stores import assert_database_is_sound, assert_index_is_the_catalogue, fake_store, herd, paint, taken_in

from reid.exchange import read_sources
from reid.pipeline import identify, query_of
from reid.reindex import reindex, remember_sources
from reid.remove import remove, removed_paths
from reid.status import status
from reid.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Four animals of two photos, taken in by a table that a nightly run reads again."""
    made = fake_store(tmp_path / "s")
    rows = herd(tmp_path / "p", 4, 2)
    (tmp_path / "t.csv").write_text("path,identity\n" + "".join(f"p/{s.path.name},{s.identity}\n" for s in rows))
    taken_in(made, read_sources([tmp_path / "t.csv"]).sightings)
    remember_sources(made, [tmp_path / "t.csv"], None, None, "auto")
    return made


def best(store: Store, photo: Path) -> str:
    [answer] = identify(store, [query_of([photo])])
    return next(label.photo or "" for label in answer.labels if not label.is_new)


def test_a_missing_photo_that_is_removed_is_not_missed_any_more(store: Store, tmp_path: Path) -> None:
    (tmp_path / "p" / "a001-0.png").unlink()
    first = reindex(store, who="t")
    assert (len(first.vanished), [f.message for f in first.failures]) == (1, ["there is no photo 'p/a001-0.png'"])
    done = remove(store, [], missing=True, who="Eva", why="disk lost")
    assert (done.photos, done.indexed, done.failures) == ([str(tmp_path / "p" / "a001-0.png")], 7, [])
    assert_index_is_the_catalogue(store)
    for _ in range(2):
        night = reindex(store, who="t")
        assert (night.vanished, night.changed, night.back, night.failures, night.photos_now) == ([], [], [], [], 7)
    assert any(
        "photos that were removed, passed by: 1" in n
        for n in read_sources([tmp_path / "t.csv"], removed=removed_paths(store)).notes
    )
    found = status(store)
    assert (found.photos, found.removed_photos, found.changed_files, found.missing_files, found.indexed) == (
        8,
        1,
        0,
        0,
        7,
    )


def test_what_was_said_of_a_removed_photo_stays_on_record(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "p" / "a001-0.png"
    [before] = [p for p in store.catalogue.photos_in_state("present") if p.path == path]
    events = store.catalogue.events()
    remove(store, [path], who="Eva", why="blurred")
    [after] = store.catalogue.removed()
    assert (after.id, after.sha256, after.path) == (before.id, before.sha256, path)
    assert after.notes[-1].startswith("removed by Eva on ") and after.notes[-1].endswith(" UTC: blurred")
    assert store.catalogue.events() == events and path.exists()
    assert store.catalogue.individual("a001").n_photos == 1
    assert_database_is_sound(store.root)


def test_a_removed_photo_is_no_answer_and_no_folder_brings_it_back(store: Store, tmp_path: Path) -> None:
    query, path = paint(tmp_path / "q.png", 1, 60), tmp_path / "p" / "a001-0.png"
    remove(store, [path], who="t")
    assert Path(best(store, query)).name == "a001-1.png"
    remember_sources(store, [path], None, None, "auto")  # not even where it was once named itself
    night = reindex(store, who="t")
    assert (night.back, night.enrolled.new, night.enrolled.moved, night.photos_now) == ([], 0, 0, 7)
    again = read_sources([tmp_path / "p"], layout="flat", removed=removed_paths(store))
    assert path not in [s.path for s in again.sightings] and len(again.sightings) == 7


def test_a_removed_photo_comes_back_when_it_is_named(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "p" / "a001-0.png"
    remove(store, [path], who="t")
    taken_in(store, read_sources([path], removed=removed_paths(store)).sightings)
    assert store.catalogue.removed() == [] and len(store.gallery()) == 8
    [photo] = [p for p in store.catalogue.photos_in_state("present") if p.path == path]
    assert not any(note.startswith("removed") for note in photo.notes)
    assert store.catalogue.individual("a001").n_photos == 2
    assert_index_is_the_catalogue(store)


def test_photos_that_cannot_be_told_are_refused_with_the_reason(store: Store, tmp_path: Path) -> None:
    paint(tmp_path / "other" / "a000-0.png", 30)
    taken_in(store, read_sources([tmp_path / "other"], layout="flat").sightings)
    done = remove(store, [Path("a000-0.png"), Path("nowhere/x.png"), Path("a003-1.png")], who="t")
    assert [f.message for f in done.failures] == ["2 photos bear this name", "no photo of this store"]
    assert done.photos == [str(tmp_path / "p" / "a003-1.png")]
    [again] = remove(store, [tmp_path / "p" / "a003-1.png"], who="t").failures
    assert again.message == "was removed before" and again.next_step.startswith("reid enroll ")
