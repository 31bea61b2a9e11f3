"""The best scores of queries asked since the last fit, kept to see whether its error rates have aged.

    <store>/recent.jsonl   a line a query: {"fit": when it was made, "score": …, "photo": …, "at": …, "place": …}

A query adds one line and never fails for it. Lines of an earlier fit count no more; photos asked twice, and queries of
one encounter (by the settings' time and distance), count once, by the first, since frames of a burst would raise a false
alarm. Knows stores and their fit; searches nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid import risk
from reid.catalogue.encounters import group_encounters
from reid.errors import StoreError
from reid.fit import Fit
from reid.records import Answer, PhotoFacts
from reid.risk import Cases
from reid.store import Store, write_atomically

FILE = "recent.jsonl"
KEPT = 512  # queries that are looked back on
MOST_BYTES = 256 << 10  # from which the file is cut to the last `KEPT` lines
LEAST = 20  # encounters below which their scores say nothing


@dataclass(frozen=True, slots=True)
class Note:
    """What is kept of one answered query: the best animal's score, and its first photo."""

    score: float
    photo: str
    at: datetime | None
    place: tuple[float, float] | None

    @classmethod
    def of(cls, answer: Answer, facts: PhotoFacts) -> Note | None:
        """None for an answer that names nobody."""
        scores = [label.score for label in answer.labels if not label.is_new]
        if not scores:
            return None
        place = None
        if facts.latitude is not None and facts.longitude is not None:
            place = facts.latitude, facts.longitude
        return cls(max(scores), facts.sha256[:16], facts.taken_at, place)


def remember(store: Store, found: Fit | None, notes: Sequence[Note]) -> str:
    """Put the notes on file; empty, or why they could not be. Nothing is kept where nothing was measured."""
    if found is None or found.basis != "measured" or not notes:
        return ""
    lines = [
        {
            "fit": found.made,
            "score": round(one.score, 6),
            "photo": one.photo,
            "at": one.at.isoformat(timespec="seconds") if one.at else None,
            "place": one.place,
        }
        for one in notes
    ]
    path = store.root / FILE
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            size = file.tell()
        if size > MOST_BYTES:
            kept = path.read_text(encoding="utf-8", errors="replace").splitlines()[-KEPT:]
            write_atomically(path, "".join(f"{line}\n" for line in kept))
    except (OSError, StoreError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        return f"recent scores: not kept ({why}), so nobody sees whether the promised rates age"
    return ""


def scores(store: Store, found: Fit) -> NDArray[np.float64]:
    """The best scores of queries since this fit, `(R,)`, one an encounter, at most `KEPT`."""
    notes: dict[str, Note] = {}
    for note in _read(store, found.made):
        notes.setdefault(note.photo, note)
    some = list(notes.values())[-KEPT:]
    if not some:
        return np.empty(0)
    settings = store.config.encounters
    gap, km = timedelta(minutes=settings.max_gap_minutes), settings.max_km
    times = [one.at if gap else None for one in some]
    lats, lons = ([one.place[i] if one.place else None for one in some] for i in (0, 1))
    _, first = np.unique(group_encounters(times, lats, lons, gap, km), return_index=True)
    return np.array([some[i].score for i in np.sort(first)])


def _read(store: Store, made: str) -> Iterator[Note]:
    """The notes on file that are of this fit; lines that are damaged are passed over."""
    try:
        lines = (store.root / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            raw: dict[str, Any] = json.loads(line)
            if raw["fit"] != made or not math.isfinite(raw["score"]):
                continue
            at = datetime.fromisoformat(raw["at"]) if raw["at"] else None
            place = (float(raw["place"][0]), float(raw["place"][1])) if raw["place"] else None
            yield Note(float(raw["score"]), str(raw["photo"]), at, place)
        except (ValueError, TypeError, KeyError, IndexError):
            continue


def drift(store: Store, found: Fit | None, photos: int) -> tuple[str, ...]:
    """Why the promised rates may no longer hold, in words: the gallery, now of `photos`, is another, or recent queries
    score differently from those measured. Empty where nothing is promised.
    """
    if found is None or found.policy is None:
        return ()
    try:
        measured = risk.mixture_scores(Cases.from_dict(found.cases), store.config.decision.share_new)
    except (KeyError, TypeError, ValueError):  # damaged: `reid calibrate` says so
        return risk.drift((), (), found.photos, photos).reasons
    recent = scores(store, found)
    seen = recent if len(recent) >= LEAST else ()
    return risk.drift(measured[np.isfinite(measured)], seen, found.photos, photos).reasons
