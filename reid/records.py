"""The values that travel between stages: frozen, slotted, without behaviour beyond simple geometry.

Conventions, stated once: images are `(H, W, 3) uint8 RGB`, upright (EXIF orientation already applied). Boxes are XYXY in pixels
of the *upright original* photo, x1 and y1 exclusive. Vectors are float32 rows of unit length. Times are naive local time as the
camera wrote it, because that is what EXIF holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

Side = Literal["left", "right", "front", "back", "top", "bottom", "unknown"]
Status = Literal["match", "new", "review", "no_candidates", "no_detection", "index_stale", "error"]
BoxOrigin = Literal["table", "detector", "whole", "user"]


@dataclass(frozen=True, slots=True)
class Box:
    """XYXY in pixels of the upright original photo; `confidence` in [0, 1]; `origin` says who drew it."""

    x0: float
    y0: float
    x1: float
    y1: float
    confidence: float = 1.0
    origin: BoxOrigin = "table"

    @property
    def width(self) -> float:
        """Pixels, may be fractional."""
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        """Pixels, may be fractional."""
        return self.y1 - self.y0


@dataclass(frozen=True, slots=True)
class Mask:
    """Where exactly an animal is, as it was given: `text` JSON of COCO polygons or run lengths, or a `picture`; one of
    the two is set. `reid.masks` makes pixels of it.
    """

    text: str = ""
    picture: Path | None = None


@dataclass(frozen=True, slots=True)
class PhotoFacts:
    """What a file says of itself, read without keeping its pixels.

    `sha256` hex of the bytes; `phash` 64-bit perceptual hash (None where the pixels were not decoded); width and height after
    orientation; `taken_at` naive local time; latitude/longitude in degrees, WGS 84; `notes` lists what was odd but harmless
    (broken EXIF, further frames ignored).
    """

    path: Path
    sha256: str
    width: int
    height: int
    format: str
    size_bytes: int
    phash: int | None = None
    taken_at: datetime | None = None
    latitude: float | None = None
    longitude: float | None = None
    camera: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sighting:
    """One row of input: a photo and what its owner says of the animal in it.

    `identity` None means nobody has said; `encounter` None means it may be grouped by time and place; `box` None means the
    engine finds one, around the `mask` where there is one. `where` names the row for reports (`labels.csv row 12`). `declared_size` is the photo's
    (width, height) when the table was made, to which `box` refers; the file may since have been scaled or squashed, and
    `exchange.fit_box` maps the box. (1, 1) means that `box` is in fractions of the photo and tells nothing of its shape.
    """

    path: Path
    where: str
    identity: str | None = None
    box: Box | None = None
    encounter: str | None = None
    side: Side = "unknown"
    species: str | None = None
    taken_at: datetime | None = None
    latitude: float | None = None
    longitude: float | None = None
    declared_size: tuple[int, int] | None = None
    mask: Mask | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """One thing that was left out, for the report: where, what kind (an error's `code`), why, and what to do."""

    source: str
    code: str
    message: str
    next_step: str = ""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The nearest gallery rows of one query, best first: `ids[i]` scored `scores[i]`, higher is better: of an index the
    cosine, of a search what its sources make of it (`fusion.Fusion`).
    """

    ids: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class IdentityScore:
    """One label of an answer. `probability` is calibrated P(same animal) where a calibration exists, else None.

    `score` is the fused sources' P(same), or the cosine where the embedder answers alone, half with its animal's
    prototype (`reid.prototypes`) and less the photo's crowding (`reid.crowding`) where these were measured; where
    P(known) is in force (`reid.known`), all scores of an answer are moved so that the first is P(known).

    `photo` and `annotation` name the best-scoring gallery photo, None for the new-individual label. `n_photos` is how many photos of that
    identity the gallery holds. `evidence` says what spoke for that photo: the cosine as it is, and votes and inliers of local features;
    `mirrored` is there where the inliers are of the query's mirror image.
    """

    label: str
    score: float
    probability: float | None = None
    photo: str | None = None
    annotation: str | None = None
    n_photos: int = 0
    is_new: bool = False
    evidence: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Compared:
    """What an answer was compared with."""

    photos: int
    identities: int
    filters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to one query (a photo, or all photos of an encounter).

    `labels` best first, at most five, the new-individual label among them where its threshold puts it; empty unless
    `status` is `match`, `new` or `review`: a person should look, since a promised error rate does not allow to decide,
    or nothing was measured on this gallery (`basis` is `default`) and the score is not clearly beyond the threshold.
    `threshold` is the score at which the new-individual label stands. `message` says in words what happened and, where
    something is wrong, the next step. `seconds` per stage; `stages_skipped` what was left out on the way and why.
    `promise` has the thresholds `match_at` and `new_at` (None: refused) and the rates they keep, where there is one.
    `basis` says where the threshold comes from: `measured` on this gallery, `unknowns` (on left-out animals alone),
    `default` (nothing could be measured), `settings`; empty where nothing was compared. `warnings` are what to know
    before the answer is believed, each with the next step.
    """

    status: Status
    photos: tuple[str, ...]
    labels: tuple[IdentityScore, ...] = ()
    threshold: float | None = None
    compared: Compared = field(default_factory=lambda: Compared(0, 0))
    model: str = ""
    message: str = ""
    boxes: tuple[Box, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    stages_skipped: tuple[str, ...] = ()
    promise: dict[str, float | None] = field(default_factory=dict)
    basis: str = ""
    warnings: tuple[str, ...] = ()
