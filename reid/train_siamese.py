"""`reid train-siamese`: Siamese heads on the vectors that the catalogue keeps, LAP-hard negatives, minutes on two cores.

Three heads: one for queries on all named animals, and one on each half of the animals, by which the other half is
judged and the store's fusion measured (`reid.rescore` says why). They replace the store's heads all at once, and the
gallery is measured anew; nothing else changes. Knows stores and `reid.train`; prints nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid import fit, models, siamese, steps, withheld
from reid.errors import MissingExtra, TrainError
from reid.intervals import bootstrap_interval
from reid.metrics import reciprocal_ranks
from reid.rescore import FOLDER, HALVES, WHOLE, half_of
from reid.siamese import Siamese
from reid.store import Store

LARGE = 4000  # photos from which negatives are assigned in blocks: all at once would take a matrix and minutes an epoch
FEWEST = 8  # animals with two sightings or more in each half, below which a head would learn those by heart

Progress = Callable[[str, int, int], None]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Options:
    """What to train. `epochs` passes over the photos."""

    epochs: int = 40
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Gain:
    """A figure before (cosine) and after (the head), and the difference with its 95 % interval over animals."""

    before: float
    after: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Report:
    """What was trained, on what, and how the heads rank photos of animals that they have not seen: MAP@5 of known
    animals alone, one photo an animal as the query.
    """

    photos: int
    animals: int
    queries: int
    map_at_5: Gain
    fusion: str
    folder: str
    seconds: dict[str, float]


def train(store: Store, options: Options, progress: Progress) -> Report:
    """Train the heads of a store and put them in force.

    Raises:
        TrainError: too few named animals. MissingExtra: there is no torch.
    """
    try:
        from reid.train import siamese as training
    except ImportError as error:
        raise MissingExtra(f"training needs {error.name}", next_step=steps.install("train")) from error
    begun = time.perf_counter()
    labels, rows = withheld.gathered(store.catalogue, store.fingerprint)
    sightings = withheld.sightings_of(store.catalogue, labels)
    named = np.flatnonzero(labels.individuals >= 0)
    codes, rows, sightings = labels.individuals[named], rows[named], sightings[named]
    halves = np.array([half_of(int(code)) for code in codes], np.int64)
    _check(store, codes, sightings, halves)
    parts = {WHOLE: np.arange(len(codes)), **{HALVES[h]: np.flatnonzero(halves != h) for h in (0, 1)}}
    heads: dict[str, Siamese] = {}
    for number, (name, part) in enumerate(parts.items()):
        config = training.SiameseConfig(
            epochs=options.epochs, seed=options.seed, negatives="lap" if len(part) <= LARGE else "blocks"
        )
        small = rows[part].astype(np.float16)
        shown = np.broadcast_to(small[:, None, None], (len(part), 1, 2, rows.shape[1]))  # mirrored: the same again

        def told(epoch: int, loss: float, score: float, number: int = number) -> None:
            progress("train", number * options.epochs + epoch + 1, 3 * options.epochs)

        heads[name] = training.train(shown, codes[part], config, progress=told).head
    trained = time.perf_counter()
    gain, queries = _judged(rows, codes, sightings, halves, (heads[HALVES[0]], heads[HALVES[1]]))
    folder = _saved(
        store, heads, options, {"photos": len(codes), "map_at_5": gain.after, "map_at_5_cosine": gain.before}
    )
    found = fit.fit(store, progress=progress)
    seconds = {"train": trained - begun, "fit": time.perf_counter() - trained}
    return Report(len(codes), len(np.unique(codes)), queries, gain, found.fusion.kind, str(folder), seconds)


def _check(store: Store, codes: IntArray, sightings: IntArray, halves: IntArray) -> None:
    """Whether each half has animals enough with photos of several sightings."""
    for half in (0, 1):
        mine = halves == half
        pairs = np.unique(np.stack([codes[mine], sightings[mine]], axis=1), axis=0)
        several = int((np.bincount(np.unique(pairs[:, 0], return_inverse=True)[1]) >= 2).sum()) if len(pairs) else 0
        if several < FEWEST:
            raise TrainError(
                f"only {several} animals of one half of the gallery have photos of two sightings",
                source=str(store.root),
                next_step=f"name animals until there are {FEWEST}, some {2 * FEWEST} in all",
            )


def _judged(
    rows: NDArray[np.float32], codes: IntArray, sightings: IntArray, halves: IntArray, heads: tuple[Siamese, Siamese]
) -> tuple[Gain, int]:
    """One photo of each animal with several sightings against all photos but its sighting's, by cosine and by the head
    that has not seen the animal.
    """
    _, first = np.unique(codes, return_index=True)
    before: list[int] = []
    after: list[int] = []
    for query in first.tolist():
        others = np.flatnonzero(sightings != sightings[query])
        if not (codes[others] == codes[query]).any():
            continue
        cosines = rows[others] @ rows[query]
        logits = heads[int(halves[query])].logits(rows[query][None], rows[others])[0]
        for scores, out in ((cosines, before), (logits, after)):
            out.append(_rank(scores, codes[others], int(codes[query])))
    worth = [reciprocal_ranks(np.array(ranks), 5) for ranks in (before, after)]
    gain = bootstrap_interval(worth[1] - worth[0], np.arange(len(before)))
    return Gain(float(worth[0].mean()), float(worth[1].mean()), gain.value, gain.low, gain.high), len(before)


def _rank(scores: NDArray[Any], codes: IntArray, truth: int) -> int:
    """The place of the true animal, an animal scoring as its best photo; of equals the truth comes last."""
    best = float(scores[codes == truth].max())
    return len(np.unique(codes[scores >= best]))


def _saved(store: Store, heads: dict[str, Siamese], options: Options, measured: dict[str, Any]) -> Path:
    """All heads written aside and put in the old ones' place."""
    target = store.root / FOLDER
    aside = target.with_name(f".{FOLDER}-{datetime.now():%Y%m%d%H%M%S%f}")
    about = {"fingerprint": store.fingerprint, "made": datetime.now().isoformat(timespec="seconds")}
    try:
        for name, head in heads.items():
            told = about | {"head": name, "epochs": options.epochs, "seed": options.seed} | measured
            siamese.save(Siamese(**{f: getattr(head, f) for f in _ARRAYS}, about=told), aside / name)
        models.swap(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


_ARRAYS = ("projection", "shift", "hidden", "hidden_bias", "output", "output_bias", "weights", "bias")
