"""Which of the models that come with the package a store begins with, where its settings leave it open.

    boxes' shape → lite0 or lite0-wide; instead of it `fluke`, where that finds more of this table's own animals, or where
    nothing can be measured and the species says so

`fluke` has learnt from rendered humpback flukes alone. On real ones it finds far more than a network from ImageNet, on
other animals next to nothing (docs/experiments/embedder.md): so the photos decide, two of each animal that has two.

Knows sightings, models and pixels; no vectors of a store.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid import crop, intake, models
from reid.embed import Embedder, OpenVinoEmbedder
from reid.intake import Prepared
from reid.intervals import bootstrap_interval
from reid.locate import Croppers
from reid.records import Sighting
from reid.store import Store

HUMPBACK = ("humpback", "megaptera novaeangliae")
LEAST, MOST = 20, 120  # animals by which two models are compared
GLANCE = 3  # one in so many of them is asked first; where the second model is no better there, that is all
RANKS = 5
ALIKE = 4  # bits by which two photos' perceptual hashes differ at most if one is a copy of the other
_SAMPLE = 64  # photos by whose boxes the shape is judged, where a cropper has to find them
_SEED = 7


@dataclass(frozen=True, slots=True)
class Choice:
    """A model's name, and a line that says why; `gain`: what `compare` measured, else 0."""

    name: str
    why: str
    gain: float = 0.0


def choose(store: Store, sightings: Sequence[Sighting]) -> Choice:
    """The model for a store that is about to take in its first `sightings`."""
    name = by_shape(with_boxes(store, sightings))
    own = store.config.species or None
    pairs = two_each([replace(one, species=one.species or own) for one in sightings])
    if len(pairs) >= LEAST:
        with tempfile.TemporaryDirectory() as aside:  # the one that is not chosen leaves nothing in the store
            both = [OpenVinoEmbedder(models.ensure(Path(aside), one)) for one in (name, models.FLUKE)]
            measured = compare(pairs[::GLANCE], both, store.croppers) if len(pairs) >= GLANCE * LEAST else None
            if measured is None or measured.gain > 0:
                measured = compare(pairs, both, store.croppers)
        if measured is not None:
            return measured
    humpbacks = sum(_is_humpback(one.species or own) for one in sightings)
    if humpbacks * 2 > len(sightings):
        return Choice(models.FLUKE, "the species; too few animals have two photos to measure it")
    shape = "wide" if name == models.WIDE else "not wide, or most photos have none"
    return Choice(name, f"boxes are {shape}")


def by_shape(sightings: Sequence[Sighting]) -> str:
    """The network from ImageNet for boxes of this shape: flukes and flanks are wide, a square crop would squash them."""
    aspects = [
        s.box.width / s.box.height
        for s in sightings
        if s.box is not None and s.box.height > 0 and s.declared_size != (1, 1)
    ]
    wide = len(aspects) * 2 >= len(sightings) and float(np.median(aspects)) >= models.WIDE_ASPECT
    return models.WIDE if wide else models.DEFAULT


def with_boxes(store: Store, sightings: Sequence[Sighting]) -> Sequence[Sighting]:
    """The sightings, or where a cropper is to find boxes some of them, with the boxes that it finds."""
    croppers = store.croppers
    own = store.config.species or None
    given = [replace(s, species=s.species or own) for s in sightings[:: -(-len(sightings) // _SAMPLE)]]
    if all(s.box is not None or croppers.of(s.species) is None for s in given):
        return sightings
    found = list(intake.prepare_all([(s,) for s in given], intake.NO_CROP, (), croppers=croppers))
    return [
        replace(s, box=one.boxes[0]) if s.box is None and isinstance(one, Prepared) and one.boxes else s
        for s, one in zip(given, found, strict=True)
    ]


def _is_humpback(species: str | None) -> bool:
    said = " ".join((species or "").lower().replace("_", " ").split())
    return any(word in said for word in HUMPBACK)


def two_each(sightings: Sequence[Sighting]) -> list[tuple[Sighting, Sighting]]:
    """Two photos of each of at most `MOST` animals, of different sightings where the table tells them."""
    animals: dict[str, list[Sighting]] = {}
    for one in sightings:
        if one.identity:
            animals.setdefault(one.identity, []).append(one)
    rng = np.random.default_rng(_SEED)
    pairs = []
    for name in sorted(animals):
        photos = [animals[name][i] for i in rng.permutation(len(animals[name]))]
        others = [one for one in photos[1:] if one.path != photos[0].path and one.side == photos[0].side]
        if others:
            pairs.append((photos[0], min(others, key=lambda one: _together(photos[0], one))))
    return [pairs[i] for i in sorted(rng.permutation(len(pairs))[:MOST])]


def _together(a: Sighting, b: Sighting) -> bool:
    """Whether two photos are of one sighting, for all the table says."""
    if a.encounter or b.encounter:
        return a.encounter == b.encounter
    return a.taken_at is not None and b.taken_at is not None and a.taken_at.date() == b.taken_at.date()


def compare(
    pairs: Sequence[tuple[Sighting, Sighting]], embedders: Sequence[Embedder], croppers: Croppers | None = None
) -> Choice | None:
    """The second model where it surely finds the other photo of more animals than the first, else the first; None
    where too few photos can be read. Copies of one photo do not count. `gain` is the second's over the first. Where the
    table gives no box, `croppers` find one; without them, and where they find none, all of the photo serves.
    """
    flat = [one for pair in pairs for one in pair]
    vectors, fine, hashes = [], np.ones(len(flat), np.bool_), np.zeros(len(flat), np.uint64)
    for embedder in embedders:
        made = intake.prepare_all(
            [(one,) for one in flat], embedder.card.preprocessing, (crop.PLAIN,), croppers=croppers
        )
        crops = np.zeros((len(flat), *_shape(embedder)), np.uint8)
        for row, one in enumerate(made):
            if isinstance(one, Prepared) and len(one.crops) == 1:
                crops[row], hashes[row] = one.crops[0], np.uint64(one.facts.phash or 0)
            else:
                fine[row] = False
        vectors.append(embedder.embed(crops))
    kept = fine.reshape(-1, 2).all(1) & (np.bitwise_count(hashes[::2] ^ hashes[1::2]) > ALIKE)
    if int(kept.sum()) < LEAST:
        return None
    rows = np.repeat(kept, 2)
    gains = [_found(found[rows]) for found in vectors]
    animals = np.repeat(np.arange(int(kept.sum())), 2)
    gain = bootstrap_interval(gains[1] - gains[0], animals)
    names = [one.card.name for one in embedders]
    scores = f"{names[1]} {gains[1].mean():.2f}, {names[0]} {gains[0].mean():.2f}"
    better = gain.low > 0
    why = f"measured on two photos each of {int(kept.sum())} animals, MAP@{RANKS}: {scores}"
    return Choice(names[better], why, gain.value)


def _shape(embedder: Embedder) -> tuple[int, int, int]:
    seen = embedder.card.preprocessing
    return seen.height, seen.width, 3


def _found(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Reciprocal rank of each row's mate (rows 0 and 1, 2 and 3, … are mates), 0 beyond `RANKS`."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    mates = np.arange(len(scores)) ^ 1
    ranks = 1 + (scores > scores[np.arange(len(scores)), mates][:, None]).sum(1)
    return np.where(ranks <= RANKS, 1 / ranks, 0.0)
