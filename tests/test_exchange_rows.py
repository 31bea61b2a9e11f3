"""One photo in several rows, told apart by box and merged without guessing; boxes fitted to their photo."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photo_sources import names, photo, reported, table

from reid.errors import TableError
from reid.exchange import fit_box, read_sources
from reid.exchange.gather import settle
from reid.records import Box, Sighting


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
