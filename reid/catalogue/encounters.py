"""Photos of one sighting, grouped by time and place where nobody has said: arrays in, group numbers out.

Knows no database and no identities: whether two photos were taken on one occasion is a matter of the camera's clock and
GPS.

Groups are followed through time as one follows a boat. Photos are taken in order of time; each joins the group whose
*latest* photo is no more than `max_gap` older and no more than `max_km` away (the nearest such group, and of equally
near ones the most recent), else it opens a new one. Comparing with the latest photo rather than with the first lets a
group last as long as the animals are followed, and a burst is one group whatever its length. A photo without a position
goes by time alone, to the most recent group; it never joins two groups that are far apart. A photo without a time
stands alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from math import asin, cos, isnan, radians, sin, sqrt

import numpy as np
from numpy.typing import NDArray

MAX_GAP = timedelta(minutes=30)
"""Longest silence within an encounter: the interval after which camera-trap studies count a visit as another one."""
MAX_KM = 3.0
"""Farthest step within an encounter, kilometres: about what a fluking whale or a slow boat covers in that time."""

EARTH_KM = 6371.0088


def distance_km(lat0: float, lon0: float, lat1: float, lon1: float) -> float:
    """Great-circle distance in kilometres between two points in degrees (haversine, mean Earth radius)."""
    p0, p1 = radians(lat0), radians(lat1)
    h = sin((p1 - p0) / 2) ** 2 + cos(p0) * cos(p1) * sin(radians(lon1 - lon0) / 2) ** 2
    return 2 * EARTH_KM * asin(min(1.0, sqrt(h)))


class _Group:
    """A group still open: when it last saw a photo and where it last knew it was."""

    __slots__ = ("number", "place", "time")

    def __init__(self, number: int, time: datetime, place: tuple[float, float] | None) -> None:
        self.number = number
        self.time = time
        self.place = place


def group_encounters(
    times: Sequence[datetime | None],
    lats: Sequence[float | None],
    lons: Sequence[float | None],
    max_gap: timedelta = MAX_GAP,
    max_km: float = MAX_KM,
) -> NDArray[np.int64]:
    """Group numbers `(N,) int64`, counted from 0 in the order in which groups first appear in the input.

    `times` naive local time; `lats`, `lons` in degrees, None or NaN where unknown. ValueError when the lengths differ
    or a limit is negative.
    """
    if not len(times) == len(lats) == len(lons):
        raise ValueError(f"{len(times)} times, {len(lats)} latitudes and {len(lons)} longitudes: lengths differ")
    if max_gap < timedelta(0) or max_km < 0:
        raise ValueError(f"max_gap {max_gap} and max_km {max_km} must not be negative")
    groups = np.full(len(times), -1, dtype=np.int64)
    dated = sorted((time, i) for i, time in enumerate(times) if time is not None)
    opened: list[_Group] = []
    count = 0
    for time, i in dated:
        place = _place(lats[i], lons[i])
        opened = [group for group in opened if time - group.time <= max_gap]
        group = _choose(opened, place, max_km)
        if group is None:
            group = _Group(count, time, place)
            count += 1
        else:
            opened.remove(group)
            group.time = time
            group.place = place or group.place
        opened.append(group)  # most recent last
        groups[i] = group.number
    alone = np.flatnonzero(groups < 0)
    groups[alone] = count + np.arange(len(alone))
    return _in_order_of_appearance(groups)


def _place(lat: float | None, lon: float | None) -> tuple[float, float] | None:
    if lat is None or lon is None or isnan(lat) or isnan(lon):
        return None
    return lat, lon


def _choose(opened: list[_Group], place: tuple[float, float] | None, max_km: float) -> _Group | None:
    """The open group a photo joins, or None: the nearest known place, then the most recent of those whose place is
    unknown.
    """
    if place is None:
        return opened[-1] if opened else None
    best, best_km = None, max_km
    for group in reversed(opened):
        if group.place is None:
            continue
        km = distance_km(*group.place, *place)
        if km < best_km or (best is None and km <= best_km):
            best, best_km = group, km
    if best is not None:
        return best
    return next((group for group in reversed(opened) if group.place is None), None)


def _in_order_of_appearance(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]
