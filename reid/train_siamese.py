"""`reid train-siamese`: Siamese heads on kept vectors of a store's photos, LAP-hard negatives, minutes on two cores.

    catalogue → raw vectors → + augmented views of each photo (kept below `training/`) → names that may be one animal
              → neighbours of each photo in the index → three heads → gain on animals not seen → in force

Three heads: one for queries on all named animals, and one on each half of the animals, by which the other half is
judged and the store's fusion measured (`reid.rescore` says why). They replace the store's heads all at once, and the
gallery is measured anew; nothing else changes. Photos whose names may be one animal's are never set against each other,
and are told (`[training] suspect` in reid.toml). What was done is on record below `training/`, as of any training; there is
nothing to resume. Knows stores and `reid.train`; prints nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from reid import alike, fit, local, models, siamese, steps, withheld, witness
from reid.alike import Suspected
from reid.catalogue import Labels
from reid.errors import MissingExtra, ReidError, TrainError
from reid.intervals import bootstrap_interval
from reid.judge import Refused, sources_of
from reid.metrics import reciprocal_ranks
from reid.rescore import FOLDER, HALVES, WHOLE, half_of
from reid.siamese import Siamese
from reid.store import Store
from reid.train import ladder, runs
from reid.train.runs import Run

if TYPE_CHECKING:
    from reid.train.siamese import Negatives, Trained

KEPT = "kept"  # below `TRAINING`: vectors of photos' views, beside those of other trainings
NEAR = 100  # photos of other animals listed for each: of those that one half's head is shown, half of them
LARGEST = 0.25  # share of the photos that animals suspected of being one may have together
FEWEST = 8  # animals with two sightings or more in each half, below which a head would learn those by heart

Progress = Callable[[str, int, int], None]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Options:
    """What to train. `epochs` passes over the photos; `negatives` (how they are found), `among`, `hard_positives` and
    `mirror` as in `reid.train.siamese.SiameseConfig`; `views` of each photo, 0 as `[training]` in reid.toml says, 1 the
    plain one.
    """

    epochs: int = 40
    seed: int = 0
    negatives: Negatives = "auto"
    hard_positives: bool = False
    views: int = 0
    mirror: Literal["views", "none"] = "views"
    among: int = ladder.AMONG


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
    animals alone, one photo an animal as the query. `lonely` photos have no second one of their animal and were not
    shown; `varied` ones were shown in `views` views, the others (not readable now) plain alone. `negatives` is how the
    head for queries found them; `suspects` are names that were not taught as two animals; `run` is the record's folder.
    `heard` is whether queries ask heads here at all: they do beside local features only.
    """

    photos: int
    animals: int
    lonely: int
    views: int
    varied: int
    negatives: str
    suspects: tuple[Suspected, ...]
    queries: int
    map_at_5: Gain
    fusion: str
    folder: str
    run: str
    seconds: dict[str, float]
    heard: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class _Photos:
    """Those with a name: their `labels`, vectors `rows (n, D)`, sightings `(n,)` and halves of the gallery `(n,)`."""

    labels: Labels
    rows: NDArray[np.float32]
    sightings: IntArray
    halves: IntArray


def train(store: Store, options: Options, progress: Progress) -> Report:
    """Train the heads of a store and put them in force.

    Raises:
        TrainError: too few named animals, one with more than half of the photos, or a full disk: the heads are those of
            before then. MissingExtra: there is no torch.
    """
    try:
        from reid.train import siamese as training  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"training needs {error.name}", next_step=steps.install("train")) from error
    if witness.present(store):
        raise TrainError(
            "the network in force has learnt every photo, so no left-out one could say what a head is worth",
            source=store.model,
            next_step="reid train --no-refit, put that network in force, and train heads on it",
        )
    photos = _named(store)
    _check(store, photos)
    run = runs.begin(store.root / withheld.TRAINING, "siamese", "siamese", {
        "options": asdict(options), "seed": options.seed, "present": store.embedder.card.name,
        "present_fingerprint": store.fingerprint, "photos": len(photos.rows),
        "animals": len(np.unique(photos.labels.individuals)), "catalogue_revision": store.catalogue.revision,
    })  # fmt: skip
    with runs.recorded(run, then=runs.ANEW):
        report, heads = _trained(store, options, photos, run, progress)
        curves = {name: [asdict(one) for one in head.history] for name, head in heads.items()}
        run.write_curves([one.loss for one in heads[WHOLE].history], [one.map_at_5 for one in heads[WHOLE].history])
        run.write_json(runs.METRICS, asdict(report) | {"epochs": curves})
    return report


def night(store: Store, progress: Progress, options: Options | None = None) -> Report | Refused | None:
    """New heads for the model in force, where `[training] siamese` wants them: for `reindex --train`. None where it does
    not. Errors come back as `Refused`: the heads of before stay, and so does the rest of the nightly run.
    """
    if not store.config.training.siamese:
        return None
    try:
        return train(store, options or Options(), progress)
    except ReidError as error:
        return Refused.of(error)


def _named(store: Store) -> _Photos:
    """The photos with a name."""
    gathered, rows = withheld.gathered(store.catalogue, store.fingerprint)
    sightings = withheld.sightings_of(store.catalogue, gathered)
    named = np.flatnonzero(gathered.individuals >= 0)
    labels = _of(gathered, named)
    halves = np.array([half_of(int(code)) for code in labels.individuals], np.int64)
    return _Photos(labels, rows[named], sightings[named], halves)


def _trained(
    store: Store, options: Options, photos: _Photos, run: Run, progress: Progress
) -> tuple[Report, dict[str, Trained]]:
    """The heads, in force, and what they are worth."""
    from reid.train import mining
    from reid.train import siamese as training

    begun = time.perf_counter()
    labels, codes, halves = photos.labels, photos.labels.individuals, photos.halves
    run.log(f"{len(codes)} photos of {len(np.unique(codes))} animals")
    parts = {WHOLE: np.arange(len(codes)), **{HALVES[h]: np.flatnonzero(halves != h) for h in (0, 1)}}
    for part in parts.values():
        several = part[np.bincount(codes[part])[codes[part]] >= 2]
        mining.check_sizes([labels.names[int(code)] for code in codes[several]])
    views = options.views or store.config.training.views
    shown, varied = _shown(store, labels, photos.rows, views, options.seed, progress)
    near, groups, suspects = _looked_at(store, labels, progress)
    done: dict[str, Trained] = {}
    config = training.SiameseConfig(
        epochs=options.epochs, seed=options.seed, negatives=options.negatives, hard_positives=options.hard_positives,
        mirror=options.mirror, among=options.among,
    )  # fmt: skip
    for number, (name, part) in enumerate(parts.items()):

        def told(epoch: int, loss: float, score: float, number: int = number, name: str = name) -> None:
            run.log(f"{name}, epoch {epoch + 1}, loss {loss:.4f}")
            progress("train", number * options.epochs + epoch + 1, 3 * options.epochs)

        done[name] = training.train(
            shown[part], codes[part], config,
            groups=groups[part], near=training.listed_inside(near, part), progress=told,
        )  # fmt: skip
    heads = {name: one.head for name, one in done.items()}
    trained = time.perf_counter()
    gain, queries = _judged(photos, (heads[HALVES[0]], heads[HALVES[1]]))
    run.log(f"MAP@5 of {queries} photos of animals not seen: {gain.before:.4f} by cosine, {gain.after:.4f} by the head")
    whole = done[WHOLE]
    about = {
        "photos": len(codes), "map_at_5": gain.after, "map_at_5_cosine": gain.before, "views": views,
        "negatives": whole.negatives, "suspects": [[one.first, one.second] for one in suspects], "run": run.name,
    }  # fmt: skip
    folder = _saved(store, heads, options, about)
    found = fit.fit(store, progress=progress)
    report = Report(
        photos=len(codes), animals=len(np.unique(codes)), lonely=whole.lonely, views=views, varied=varied,
        negatives=whole.negatives, suspects=suspects, queries=queries, map_at_5=gain, fusion=found.fusion.kind,
        folder=str(folder), run=str(run.folder),
        seconds={"train": trained - begun, "fit": time.perf_counter() - trained}, heard=local.description(store) is not None,
    )  # fmt: skip
    return report, done


def _of(labels: Labels, rows: IntArray) -> Labels:
    """Those of some rows."""
    columns = (labels.annotations, labels.individuals, labels.encounters, labels.photos)
    ids, individuals, encounters, photos = (column[rows] for column in columns)
    return Labels(ids, individuals, encounters, photos, labels.names)


def _shown(
    store: Store, labels: Labels, rows: NDArray[np.float32], views: int, seed: int, progress: Progress
) -> tuple[NDArray[np.float16], int]:
    """What the heads are shown, `(n, V, 2, D)`, and how many photos in more than their plain vector.

    View 0 is the catalogue's raw vector; mirrored, and of the views, it is what the model makes of augmented crops. A
    photo that cannot be read now is shown as the catalogue has it, in all views.
    """
    from reid.train import features

    plain = rows.astype(np.float16)
    shown = np.broadcast_to(plain[:, None, None], (len(rows), views, 2, rows.shape[1]))
    several = np.flatnonzero(np.bincount(labels.individuals)[labels.individuals] >= 2)  # no other photo is shown
    if views < 2:
        return shown, 0
    kept = features.cached(
        sources_of(store, labels, several), store.embedder, store.root / withheld.TRAINING / KEPT,
        views=views, seed=seed, progress=lambda at, of: progress("views", at, of),
    )  # fmt: skip
    shown = shown.copy()
    shown[several[kept.rows]] = kept.vectors
    shown[:, 0, 0] = plain
    return shown, len(kept.rows)


def _looked_at(store: Store, labels: Labels, progress: Progress) -> tuple[IntArray, IntArray, tuple[Suspected, ...]]:
    """Each photo's nearest of other animals in the index, `(n, k)`, codes in which animals that may be one are joined
    `(n,)`, and who these are. Photos without a second one of their animal are in nobody's list.
    """
    from reid.train import suspects

    several = np.flatnonzero(np.bincount(labels.individuals)[labels.individuals] >= 2)
    indexed = set(store.gallery().ids())
    there = several[[str(a) in indexed for a in labels.annotations[several].tolist()]]
    found = alike.others(store, labels.annotations[there], labels.individuals[there], NEAR, progress=progress)
    near = np.full((len(labels.individuals), NEAR), -1, np.int64)
    near[there] = np.append(there, -1)[found.near]
    vectors = store.gallery().vectors([str(a) for a in labels.annotations[there].tolist()])
    sure = store.config.training.suspect
    likely = suspects.likely(vectors, found.near, labels.individuals[there], sure, apart=labels.photos[there])
    pairs = there[likely.pairs]
    said = alike.suspected(
        labels.annotations, labels.individuals, labels.names,
        [(int(a), int(b), float(score)) for (a, b), score in zip(pairs, likely.scores, strict=True)],
    )  # fmt: skip
    return near, suspects.merged(labels.individuals, pairs, share=LARGEST), said


def _check(store: Store, photos: _Photos) -> None:
    """Whether each half has animals enough with photos of several sightings."""
    for half in (0, 1):
        mine = photos.halves == half
        pairs = np.unique(np.stack([photos.labels.individuals[mine], photos.sightings[mine]], axis=1), axis=0)
        several = int((np.bincount(np.unique(pairs[:, 0], return_inverse=True)[1]) >= 2).sum()) if len(pairs) else 0
        if several < FEWEST:
            raise TrainError(
                f"only {several} animals of one half of the gallery have photos of two sightings",
                source=str(store.root),
                next_step=f"name animals until there are {FEWEST}, some {2 * FEWEST} in all",
            )


def _judged(photos: _Photos, heads: tuple[Siamese, Siamese]) -> tuple[Gain, int]:
    """One photo of each animal with several sightings against all photos but its sighting's, by cosine and by the head
    that has not seen the animal.
    """
    rows, codes, sightings, halves = photos.rows, photos.labels.individuals, photos.sightings, photos.halves
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
