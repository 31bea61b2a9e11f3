"""What an answer says of itself: that the whole photo was looked at, that nothing was measured, and when a match is for review."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_stores import DIM, fake_store, herd, labels, paint, pattern, seen, taken_in, with_vectors

from reid import caveats, console, decide, fit
from reid.pipeline import Identifier, identify, query_of
from reid.records import Answer, Box, Compared, IdentityScore
from reid.store import Store

WHOLE = Box(0, 0, 96, 64, 0.0, "whole")
LEFT = Box(0, 0, 96, 64, origin="user")


def ask(store: Store, *paths: Path, box: Box | None = None) -> Answer:
    [answer] = identify(store, [query_of(paths, box=box)])
    return answer


def boxed(folder: Path, animals: int) -> list[object]:
    """Photos of two animals each, with a box around the one on the left."""
    return [seen(paint(folder / f"{n}.png", n, beside=50 + n), f"a{n}", box=Box(0, 0, 96, 64)) for n in range(animals)]


def test_a_query_without_a_box_in_a_store_of_boxes_says_what_was_looked_at(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    taken_in(store, boxed(tmp_path / "p", 4))  # type: ignore[arg-type]
    photo = paint(tmp_path / "q.png", 2, 9, beside=80)
    [warning, _] = ask(store, photo).warnings
    assert warning.startswith("looked at the whole photo (q.png): no box was given and the store has no cropper")
    assert "4 of 4 boxes" in warning and "--box" in warning and "[crop]" in warning
    assert not any("whole photo" in one for one in ask(store, photo, box=LEFT).warnings)


def test_a_store_of_whole_photos_is_asked_with_whole_photos_without_a_word(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    taken_in(store, herd(tmp_path / "p", 4, 1))
    assert store.catalogue.cut_out() == (0, 4)
    assert not any("whole photo" in one for one in ask(store, paint(tmp_path / "q.png", 2, 9)).warnings)
    taken_in(store, boxed(tmp_path / "b", 5))  # type: ignore[arg-type]
    assert (store.catalogue.cut_out(), store.catalogue.cut_out(5), store.catalogue.cut_out(6)) == (
        (5, 9),
        (5, 5),
        (5, 6),
    )


def test_a_box_around_nearly_the_whole_photo_is_no_cut(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    sightings = [seen(paint(tmp_path / f"{n}.png", n), f"a{n}", box=Box(1, 1, 95, 64)) for n in range(3)]
    taken_in(store, sightings)
    assert store.catalogue.cut_out() == (0, 3)


def test_the_photos_that_were_looked_at_whole_are_named_and_the_cropper_with_them() -> None:
    photos = [f"/p/{n}.jpg" for n in range(6)]
    boxes = [LEFT, *[WHOLE] * 5]
    said = caveats.whole_photo(photos, boxes, True, 30, 40)
    assert "(1.jpg, 2.jpg, 3.jpg and 2 more)" in said and "the cropper found no animal for sure" in said
    assert "init" not in said and "--box" in said
    assert caveats.whole_photo(photos, boxes, True, 10, 40) == caveats.whole_photo(photos, boxes, True, 0, 0) == ""


def test_a_small_store_says_that_nothing_was_measured_and_what_is_missing(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    taken_in(store, herd(tmp_path / "p", 6, 3))
    answer = ask(store, paint(tmp_path / "q.png", 3, 50))
    [said] = answer.warnings
    assert answer.basis == "default" and answer.labels[0].probability is None
    assert "nothing was measured on this store yet" in said
    assert "enrol 62 more photos and 14 more named animals, then reid reindex" in said


def pack(store: Store, names: list[str | None]) -> list[int]:
    """Photos straight into the catalogue, those of one name alike, each of an encounter of its own."""
    rng = np.random.default_rng(1)
    centres = {name: rng.normal(size=DIM) + 3 for name in dict.fromkeys(names)}
    rows = np.stack([centres[name] + 0.25 * rng.normal(size=DIM) for name in names])
    return with_vectors(store, rows.astype(np.float32), names)


def test_what_was_said_to_be_missing_is_enough_once_it_is_there(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    ids = pack(store, [f"w{n}" for n in range(19)] * 3 + [None] * 23)
    found = fit.fit(store)
    assert (found.basis, caveats.missing(found)) == ("default", "enrol 1 more named animal")
    assert not fit.is_due(store)
    store.catalogue.assign(ids[-1:], "Ana", who="t")
    assert fit.is_due(store)
    found = fit.fit(store)
    assert (found.basis, caveats.missing(found)) == ("unknowns", "add a second sighting of 1 more animal")
    assert "add a second sighting" in caveats.unmeasured(found) and not fit.is_due(store)
    store.catalogue.assign(ids[-2:-1], "Ana", who="t")
    assert fit.is_due(store)
    found = fit.fit(store)
    assert (found.basis, caveats.unmeasured(found)) == ("measured", "") and not fit.is_due(store)


def test_names_that_help_no_measurement_do_not_make_one_due(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    ids = pack(store, ["w1"] * 30 + [None] * 60)
    assert fit.fit(store).basis == "default"
    store.catalogue.assign(ids[-5:], "w1", who="t")
    assert not fit.is_due(store)


@pytest.mark.parametrize(
    ("score", "threshold", "beyond"),
    [
        (0.32, 0.25, False),
        (0.62, 0.25, False),
        (0.63, 0.25, True),
        (0.93, 0.88, False),
        (0.95, 0.88, True),
        (1.0, 1.0, True),
    ],
)
def test_what_is_clearly_beyond_a_threshold_lies_half_the_way_to_one(
    score: float, threshold: float, beyond: bool
) -> None:
    assert decide.clearly_beyond(score, threshold) is beyond


def half_seen(path: Path, animal: int, other: int) -> Path:
    """A photo of an animal that is only partly like itself."""
    mixed = 0.75 * pattern(animal) + 0.25 * pattern(other)
    assert cv2.imwrite(str(path), mixed.astype(np.uint8)[:, :, ::-1])
    return path


def test_a_match_barely_beyond_a_threshold_nobody_measured_is_for_review(tmp_path: Path) -> None:
    """One photo under three default thresholds: match, review, new; the labels stay in order."""
    store = fake_store(tmp_path / "s")
    taken_in(store, herd(tmp_path / "p", 3, 2))
    identifier = Identifier.open(store)
    photo = half_seen(tmp_path / "q.png", 1, 40)
    score = max(one.score for one in ask(store, photo).labels if not one.is_new)
    assert 0.5 < score < 0.99
    said = []
    for threshold in (2 * score - 1.001, 2 * score - 0.999, score + 0.001):
        object.__setattr__(identifier.search.fit, "threshold", threshold)
        [answer] = identifier.answers([query_of([photo])])
        said.append((answer.status, labels(answer)[0]))
    assert said == [("match", "a001"), ("review", "a001"), ("new", "new_whale")]


def test_a_threshold_of_the_settings_decides_as_it_stands(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s", settings="threshold = -1.0 → threshold = 0.5")
    taken_in(store, herd(tmp_path / "p", 3, 2))
    answer = ask(store, half_seen(tmp_path / "q.png", 1, 40))
    score = max(one.score for one in answer.labels if not one.is_new)
    assert not decide.clearly_beyond(score, 0.99) and (answer.status, answer.basis) == ("match", "settings")


def test_the_printed_answer_says_why_it_is_for_review_and_warns(capsys: pytest.CaptureFixture[str]) -> None:
    label = IdentityScore("Ana", 0.32, photo="a.jpg", annotation="1", n_photos=1)
    answer = Answer("review", ("q.jpg",), (label,), 0.25, Compared(12, 12), basis="default", warnings=("look out",))
    console.answers([answer])
    said = " ".join(capsys.readouterr().out.split())
    assert "a person should look: the score is not clearly beyond the threshold 0.25, which was not measured" in said
    assert "warning: look out" in said
