"""Who is photographed, when and how often: a long-tailed catalogue whose every photo can be made on its own.

Knows numbers, dates and places; pixels only by calling `render`. A photo is named by `(seed, identity, number)` and
never depends on how many others are asked for: identity `i` meets the camera in encounters 0, 1, 2 ... of one to
three photos each, and photo `k` is found by counting them off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from reid.synth.fluke import Fluke, aged, fluke
from reid.synth.render import RenderedPhoto, render
from reid.synth.view import View, random_conditions, random_view

FIRST_YEAR, LAST_YEAR = 2001, 2016
MOST_PHOTOS = 73
_COUNT, _ENCOUNTER, _SHOT = 41, 42, 43  # streams of random numbers
_GROUNDS = ((43.4, -69.3), (20.7, -156.9), (57.9, -134.2), (-64.6, -62.4), (-18.8, -174.2), (70.2, 19.6))  # degrees


@dataclass(frozen=True, slots=True)
class Encounter:
    """One sighting of one whale: `photos` numbered from `first` on."""

    name: str
    first: int
    photos: int
    start: datetime
    latitude: float
    longitude: float


@dataclass(frozen=True, slots=True)
class Shot:
    """The name of a photo that can be made: number `number` of whale `identity` of population `seed`."""

    seed: int
    identity: int
    number: int


def photo_counts(n_identities: int, n_photos: int | None = None, seed: int = 0) -> tuple[int, ...]:
    """How many photos each identity has, at least one.

    Shares follow (n + 3.65)^-3.54 up to 73, which gives the shape of the 2019 humpback set (5,004 identities: 2,073
    with one photo, median 2, 273 with ten or more, most 73). Without `n_photos` an identity's count does not depend
    on the others; with it, counts are raised or lowered in proportion until they add up. Raises ValueError where
    `n_photos` < `n_identities`.
    """
    n = np.arange(1, MOST_PHOTOS + 1)
    share = np.cumsum((n + 3.65) ** -3.54)
    draws = [np.random.default_rng([_COUNT, seed, i]).random() for i in range(n_identities)]
    counts = 1 + np.searchsorted(share / share[-1], np.array(draws))
    if n_photos is None:
        return tuple(int(c) for c in counts)
    if n_photos < n_identities or (n_identities < 1 and n_photos > 0):
        raise ValueError(
            f"{n_photos} photos cannot show {n_identities} identities once each; ask for more photos or fewer whales"
        )
    extra = counts - 1.0
    if extra.sum() == 0:
        extra = np.ones_like(extra)
    share = np.cumsum(extra) / max(float(extra.sum()), 1.0) * (n_photos - n_identities)
    steps = np.diff(np.round(share), prepend=0.0)
    return tuple(1 + int(s) for s in steps)


def encounters(seed: int, identity: int) -> Iterator[Encounter]:
    """All sightings of one whale, without end, in the order its photos are numbered (not the order of their dates)."""
    ground = _GROUNDS[int(np.random.default_rng([_ENCOUNTER, seed, identity]).integers(len(_GROUNDS)))]
    first, e = 0, 0
    while True:
        rng = np.random.default_rng([_ENCOUNTER, seed, identity, e])
        photos = int(rng.choice((1, 2, 3), p=(0.5, 0.32, 0.18)))
        day = int(rng.integers(90)) + (15 if ground[0] < 0 else 165)
        start = datetime(int(rng.integers(FIRST_YEAR, LAST_YEAR + 1)), 1, 1, 7) + timedelta(
            days=day, seconds=int(rng.integers(11 * 3600))
        )
        latitude, longitude = ground[0] + float(rng.normal(0, 0.15)), ground[1] + float(rng.normal(0, 0.2))
        yield Encounter(f"enc_{identity:04d}_{e:02d}", first, photos, start, round(latitude, 5), round(longitude, 5))
        first, e = first + photos, e + 1


def encounter_of(shot: Shot) -> Encounter:
    """The sighting a photo belongs to."""
    for met in encounters(shot.seed, shot.identity):
        if shot.number < met.first + met.photos:
            return met
    raise AssertionError("sightings never end")


def staged(shot: Shot) -> tuple[Fluke, View]:
    """The whale at its age on that day, and the view: what `render` needs to make this photo."""
    met = encounter_of(shot)
    rng = np.random.default_rng([_SHOT, shot.seed, shot.identity, shot.number])
    common = np.random.default_rng([_SHOT, shot.seed, shot.identity, met.first, 0])
    moment = met.start + timedelta(seconds=7 * (shot.number - met.first) + int(rng.integers(5)))
    where = {"encounter": met.name, "taken_at": moment, "latitude": met.latitude, "longitude": met.longitude}
    view = random_view(rng, random_conditions(common), **where)
    return aged(fluke(shot.seed, shot.identity), moment.year - FIRST_YEAR), view


def shots(n_identities: int, n_photos: int | None = None, seed: int = 0) -> Iterator[Shot]:
    """The photos of a catalogue, whale by whale."""
    for identity, count in enumerate(photo_counts(n_identities, n_photos, seed)):
        for number in range(count):
            yield Shot(seed, identity, number)


def queries(gallery: tuple[int, ...], n_queries: int, new_share: float = 0.276, seed: int = 0) -> Iterator[Shot]:
    """Photos to ask about a catalogue with `gallery[i]` photos of whale i: known whales in sightings that it lacks,
    and unknown ones.

    `new_share` of them show whales beyond the catalogue (the true share of the 2019 test set by default), up to two
    photos each.
    """
    n_new = round(n_queries * new_share)
    order = np.random.default_rng([_SHOT, seed]).permutation(len(gallery))
    if n_queries > n_new and not gallery:
        raise ValueError("a catalogue without whales has no known ones to ask about; set new_share to 1")
    for j in range(n_queries - n_new):
        identity = int(order[j % len(gallery)])
        last = encounter_of(Shot(seed, identity, gallery[identity] - 1))
        yield Shot(seed, identity, last.first + last.photos + j // len(gallery))
    for j in range(n_new):
        yield Shot(seed, len(gallery) + j // 2, j % 2)


def catalogue(
    n_identities: int, n_photos: int | None = None, seed: int = 0, size: tuple[int, int] | None = None
) -> Iterator[RenderedPhoto]:
    """Render a catalogue, one photo at a time as they are asked for, whale by whale; `size` as in `render`."""
    for shot in shots(n_identities, n_photos, seed):
        yield render(*staged(shot), size)
