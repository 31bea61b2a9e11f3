# ruff: noqa: F811  (fixtures are named as the arguments that ask for them)
"""Photos of one sighting belong together: by time and place, as one follows a boat."""

from __future__ import annotations

import math
import random
from datetime import datetime, timedelta

import numpy as np
import pytest
from catalogue_databases import catalogue, database, enrolled, photo  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st

from reid.catalogue import Catalogue, group_encounters, sightings
from reid.catalogue.encounters import distance_km

NOON = datetime(2024, 7, 1, 12)


def at(*minutes: float | None) -> list[datetime | None]:
    return [None if m is None else NOON + timedelta(minutes=m) for m in minutes]


def groups(times: list[datetime | None], places: list[tuple[float, float] | None] | None = None) -> list[int]:
    places = places or [None] * len(times)
    return group_encounters(times, [p and p[0] for p in places], [p and p[1] for p in places]).tolist()


def test_a_burst_is_one_encounter_whatever_its_length() -> None:
    assert groups(at(*(n * 0.01 for n in range(500)))) == [0] * 500
    assert groups(at(*(n * 29.0 for n in range(100)))) == [0] * 100


def test_a_silence_longer_than_the_gap_begins_another() -> None:
    assert groups(at(0, 30, 60.1, 61)) == [0, 0, 1, 1]


def test_photos_without_a_time_stand_alone() -> None:
    assert groups(at(None, 0, None, 1)) == [0, 1, 2, 1]
    assert groups(at(None, None), [(0.0, 0.0), (0.0, 0.0)]) == [0, 1]


def test_order_of_the_photos_does_not_matter() -> None:
    times = at(5, 100, 0, 103, 3)
    assert groups(times) == [0, 1, 0, 1, 0]


def test_two_boats_at_once_are_two_encounters() -> None:
    here, there = (10.0, 10.0), (10.0, 10.5)  # 55 km apart
    assert groups(at(0, 1, 2, 3, 4), [here, there, here, there, here]) == [0, 1, 0, 1, 0]


def test_a_boat_may_travel_far_in_small_steps() -> None:
    assert groups(at(*(n * 10 for n in range(20))), [(10.0, 10.0 + n * 0.02) for n in range(20)]) == [0] * 20


def test_a_photo_without_a_place_never_joins_two_places() -> None:
    here, there = (10.0, 10.0), (10.0, 10.5)
    assert groups(at(0, 1, 2), [here, None, there]) == [0, 0, 1]
    assert groups(at(0, 1, 2), [None, here, here]) == [0, 0, 0]


def test_nan_is_no_place_and_the_date_line_is_no_wall() -> None:
    assert group_encounters(at(0, 1), [math.nan, 1.0], [2.0, math.nan]).tolist() == [0, 0]
    assert groups(at(0, 1), [(0.0, 179.999), (0.0, -179.999)]) == [0, 0]


def test_nothing_gives_nothing_and_bad_input_is_refused() -> None:
    empty = group_encounters([], [], [])
    assert (empty.shape, empty.dtype) == ((0,), np.int64)
    with pytest.raises(ValueError, match="lengths differ"):
        group_encounters(at(0), [], [])
    with pytest.raises(ValueError, match="negative"):
        group_encounters(at(0), [None], [None], max_gap=timedelta(-1))


def test_distances_are_those_on_the_globe() -> None:
    assert distance_km(0, 0, 0, 1) == pytest.approx(111.195, abs=0.01)
    assert distance_km(51.5074, -0.1278, 48.8566, 2.3522) == pytest.approx(343.6, abs=0.5)  # London to Paris
    assert distance_km(90, 0, 90, 120) == pytest.approx(0, abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.integers(0, 400) | st.none(), max_size=40))
def test_by_time_alone_it_is_cutting_at_silences(minutes: list[int | None]) -> None:
    found = groups(at(*minutes))
    dated = sorted(m for m in minutes if m is not None)
    cuts = [b for a, b in zip(dated, dated[1:], strict=False) if b - a > 30]
    expected: dict[object, int] = {}
    for i, m in enumerate(minutes):
        key: object = ("alone", i) if m is None else sum(m >= cut for cut in cuts)
        assert found[i] == expected.setdefault(key, len(expected))


def partition(catalogue: Catalogue, numbers: list[int]) -> set[frozenset[int]]:
    together: dict[int | None, set[int]] = {}
    for number, info in catalogue.photos(numbers).items():
        together.setdefault(info.encounter, set()).add(number)
    assert None not in together
    return {frozenset(one) for one in together.values()}


@pytest.mark.parametrize(("seed", "step", "everything"), [(0, 256, 500), (1, 1, 500), (2, 2, 500), (3, 256, 0)])
def test_grouping_what_is_new_comes_to_the_same_as_grouping_everything(
    catalogue: Catalogue, seed: int, step: int, everything: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sightings, "_STEP", step)
    monkeypatch.setattr(sightings, "_EVERYTHING", everything)
    chance = random.Random(seed)
    places = [None, (10.0, 10.0), (10.0, 10.01), (12.0, 10.0)]
    every = [
        photo(
            n,
            taken_at=chance.choice([None, *([NOON + timedelta(minutes=chance.randrange(900))] * 9)]),
            place=chance.choice(places),
            encounter=chance.choice([None] * 5 + ["given"]),
        )
        for n in range(1, 61)
    ]
    start = 0
    while start < len(every):
        size = chance.randrange(1, 25)
        enrolled(catalogue, *every[start : start + size])
        catalogue.group_encounters()
        start += size
    numbers = list(range(1, 61))
    bit_by_bit = partition(catalogue, numbers)
    assert catalogue.group_encounters() == 0
    assert catalogue.group_encounters(everything=True) == 0
    free = [p for p in every if p.encounter is None]
    whole = group_encounters(
        [p.facts.taken_at for p in free], [p.facts.latitude for p in free], [p.facts.longitude for p in free]
    )
    expected: dict[object, set[int]] = {"given": {int(p.facts.sha256, 16) for p in every if p.encounter}}
    for p, group in zip(free, whole.tolist(), strict=True):
        expected.setdefault(group, set()).add(int(p.facts.sha256, 16))
    assert bit_by_bit == {frozenset(one) for one in expected.values() if one}


def test_a_given_encounter_is_never_touched(catalogue: Catalogue) -> None:
    enrolled(catalogue, photo(1, encounter="trip", taken_at=NOON), photo(2, taken_at=NOON), photo(3, taken_at=NOON))
    assert catalogue.group_encounters() == 2
    infos = catalogue.photos([1, 2, 3])
    assert infos[2].encounter == infos[3].encounter != infos[1].encounter
    assert list(catalogue.encounter_keys([i.encounter or 0 for i in infos.values()]).values()) == ["trip", None]
    assert catalogue.group_encounters(timedelta(0), everything=True) == 0
    enrolled(catalogue, photo(2, encounter="trip"))
    assert catalogue.photos([2])[2].encounter == infos[1].encounter


def test_a_photo_whose_time_becomes_known_is_grouped_anew(catalogue: Catalogue) -> None:
    enrolled(catalogue, photo(1, taken_at=NOON), photo(2))
    catalogue.group_encounters()
    assert partition(catalogue, [1, 2]) == {frozenset({1}), frozenset({2})}
    enrolled(catalogue, photo(2, taken_at=NOON))
    assert catalogue.group_encounters() == 1
    assert partition(catalogue, [1, 2]) == {frozenset({1, 2})}
    assert catalogue.counts().encounters == 1
