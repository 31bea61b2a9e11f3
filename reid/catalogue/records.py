"""What goes into the catalogue and what comes out of it: frozen records, free of SQLAlchemy.

Ids are positive integers, given once and never reused. Times of events are aware UTC; times of photos are naive local
time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reid.catalogue.identity import Kind
from reid.records import Box, PhotoFacts, Side

PhotoState = Literal["present", "missing", "changed"]
"""`missing`: the file was not found, its vectors still serve. `changed`: the file now holds other bytes, or somebody took
the photo out (its notes say who, see `REMOVED`); its vectors no longer serve.
"""
REMOVED = "removed by "
"""How the note of a photo begins that somebody took out of service."""


@dataclass(frozen=True, slots=True)
class NewAnnotation:
    """One animal in a photo: box, what its owner says of it, and its vector `(D,) float32` if it is already
    embedded.
    """

    box: Box
    identity: str | None = None
    side: Side = "unknown"
    species: str | None = None
    quality: float | None = None
    vector: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class NewPhoto:
    """A photo to enrol. Where a table gave time or place, `facts` hold the table's. `where` names the row, and goes
    into the evidence of its events.

    `facts.path` is kept as it is given: absolute, or relative to whatever the caller resolves it against. `encounter`
    is the owner's key of the sighting, None where it may be grouped. `relocated`: another machine has looked again, and
    its only box takes the place of a machine's that is the only one on record.
    """

    facts: PhotoFacts
    annotations: tuple[NewAnnotation, ...] = ()
    encounter: str | None = None
    mtime_ns: int | None = None
    where: str = ""
    relocated: bool = False


@dataclass(frozen=True, slots=True)
class Conflict:
    """Something given that differs from what the catalogue holds; the catalogue's is kept. `annotation` is None for
    an encounter.
    """

    kind: Literal["identity", "encounter"]
    annotation: int | None
    kept: str
    given: str


@dataclass(frozen=True, slots=True)
class Added:
    """What became of one `NewPhoto`, in the order given.

    `status`: `new`; `known` (same bytes at the same path); `moved` (same bytes, and the path known before was missing
    or changed); `copy` (same bytes at a further path). `annotations[i]` is the id of the i-th annotation given,
    `fresh[i]` whether it was added now. `named` are the annotations that got their identity now.
    """

    photo: int
    status: Literal["new", "known", "moved", "copy"]
    annotations: tuple[int, ...] = ()
    fresh: tuple[bool, ...] = ()
    named: tuple[int, ...] = ()
    conflicts: tuple[Conflict, ...] = ()


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file the catalogue has read: unchanged as long as size and modification time are."""

    path: Path
    photo: int
    sha256: str
    size_bytes: int
    mtime_ns: int | None
    state: PhotoState


@dataclass(frozen=True, slots=True)
class PhotoInfo:
    """A photo as the catalogue holds it. `name` is the file name under which it was first enrolled."""

    id: int
    path: Path
    name: str
    sha256: str
    phash: int | None
    format: str
    width: int
    height: int
    size_bytes: int
    mtime_ns: int | None
    taken_at: datetime | None
    latitude: float | None
    longitude: float | None
    camera: str | None
    notes: tuple[str, ...]
    state: PhotoState
    encounter: int | None
    added_at: datetime


@dataclass(frozen=True, slots=True)
class AnnotationInfo:
    """An annotation with what an answer says of it. `identity` is the present name, None while nobody has said."""

    id: int
    photo: int
    path: Path
    photo_state: PhotoState
    box: Box
    side: Side
    species: str | None
    quality: float | None
    individual: int | None
    identity: str | None
    encounter: int | None
    taken_at: datetime | None


@dataclass(frozen=True, slots=True)
class IndividualInfo:
    """An individual that exists and is not merged into another.

    `aliases`: names of those merged into it and its own former names. `first_seen`/`last_seen` from the photos that
    have a time. `sides` in alphabetical order without `unknown`.
    """

    id: int
    name: str
    aliases: tuple[str, ...] = ()
    n_photos: int = 0
    n_annotations: int = 0
    n_encounters: int = 0
    first_seen: datetime | None = None
    last_seen: datetime | None = None
    sides: tuple[Side, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the log of identity, as it was recorded; `undone` is whether it is out of force now.

    `individual`, `other`, `name`, `annotations`, `undoes` as in `identity.Step`; `label` and `other_label` are the
    names `individual` and `other` bore at the time (for a rename, `label` is the name before it). `taken_from[i]` is
    whose `annotations[i]` was before (None: nobody's).
    """

    id: int
    kind: Kind
    at: datetime
    who: str
    why: str
    evidence: Mapping[str, Any]
    individual: int | None
    label: str | None
    other: int | None
    other_label: str | None
    name: str | None
    annotations: tuple[int, ...]
    taken_from: tuple[int | None, ...]
    undoes: int | None
    undone: bool


@dataclass(frozen=True, slots=True)
class Counts:
    """How much there is. `annotations` and `unnamed` count those in service; `bare` photos hold no annotation."""

    photos: int
    missing: int
    changed: int
    bare: int
    annotations: int
    unnamed: int
    individuals: int
    encounters: int
    events: int


@dataclass(frozen=True, slots=True)
class Labels:
    """Who is who in bulk: every annotation in service, in order of id; arrays `(N,) int64`, −1 where there is none."""

    annotations: NDArray[np.int64]
    individuals: NDArray[np.int64]
    encounters: NDArray[np.int64]
    photos: NDArray[np.int64]
    names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VectorChunk:
    """Some annotations `(n,) int64`, ascending, and their vectors `(n, D) float32`."""

    annotations: NDArray[np.int64]
    vectors: NDArray[np.float32]
