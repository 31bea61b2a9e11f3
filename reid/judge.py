"""Two models of one store, on photos that neither was trained on: which, how they are asked, and what came of it.

The judges are the photos that `reid.fit` leaves out to place the threshold. They, their encounters and their
near-duplicates are kept from the training, so the figures are those of new photos of known animals; a photo that the
*present* model was trained on is no judge, or the older model would be flattered.

Knows stores and vectors; trains nothing and changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid import intake, local, thresholds, whiten, withheld
from reid.alike import Suspected
from reid.catalogue import AnnotationInfo, Labels
from reid.embed import Embedder, unit_rows
from reid.enrol import Progress, quiet
from reid.errors import NothingNew, ReidError, TrainError
from reid.images import printable
from reid.intervals import bootstrap_interval
from reid.leaving_out import LeftOut
from reid.metrics import hits_at_k, reciprocal_ranks
from reid.records import Failure, Sighting
from reid.store import Store
from reid.vectors import embed_views, views_of

if TYPE_CHECKING:
    from reid.train.features import Source

LEAST_JUDGES = 20  # left-out photos of known animals below which no model is put in another's place

IntArray = NDArray[np.int64]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Figure:
    """A measure with its 95 % bootstrap interval over animals."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Both models on the same left-out photos. `gain` is of MAP@5, paired; `answers` is MAP@5 with the new individual
    among the labels, at each model's own threshold (NaN where there is too little to place one).
    """

    photos: int
    animals: int
    map_at_5_before: Figure
    map_at_5_after: Figure
    gain: Figure
    top1_before: Figure
    top1_after: Figure
    answers_before: float
    answers_after: float
    lost: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A training that could not be: the typed error's parts. What was in force stays."""

    code: str
    reason: str
    source: str
    next_step: str
    swapped: bool = False

    @property
    def failed(self) -> bool:
        """False where there was nothing to learn that the model in force does not know."""
        return self.code != NothingNew.code

    @classmethod
    def of(cls, error: ReidError) -> Refused:
        """What an error says."""
        return cls(error.code, error.message, error.source, error.next_step)


@dataclass(frozen=True, slots=True)
class Report:
    """One training: what was trained on what, what it gave, and whether it is in force now."""

    model: str
    mode: str
    why_mode: str
    run: str
    base: str
    present: str
    photos: int
    animals: int
    verdict: Verdict
    swapped: bool = False
    reason: str = ""
    next_step: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    suspects: tuple[Suspected, ...] = ()  # names that were not taught as two animals
    refitted: int = 0  # photos that it was taught after the verdict, the judges' among them
    refit_reason: str = ""  # why it was not taught further, where it was to be
    by_witness: bool = False  # the present model has learnt the judges' photos: its witness was asked for it


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A trained model, and its raw vectors `(N, D)` of `annotations (N,)`."""

    report: Report
    folder: Path
    annotations: IntArray
    vectors: Vectors


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """`labels` and present `vectors` of everything in service; which of it is trained on, as sources and names; the rows
    that played queries, and of them the `judges`, whose animals are known.
    """

    labels: Labels
    vectors: Vectors
    chosen: IntArray
    sources: tuple[Source, ...]
    names: tuple[str, ...]
    played: IntArray
    judges: IntArray


def pool_of(store: Store, *, seen: ArrayLike = (), among: Labels | None = None, progress: Progress = quiet) -> Pool:
    """What of a store is trained on, and what judges; `seen` are annotations that may not judge, besides those that the
    present model has learnt. Where that model has learnt all, its own photos judge, which flatters it alone; `seen` ones
    never do, since the new model learns on from them. `among` are the labels to deal, else the store's own.

    Raises:
        TrainError: fewer than two animals, or none with a second sighting to judge by.
    """
    labels, vectors, _ = withheld.spoken_for(store, among=among, progress=progress)
    named = labels.individuals >= 0
    if len(np.unique(labels.individuals[named])) < 2:
        raise TrainError(
            f"{int(named.sum())} photos of {len(np.unique(labels.individuals[named]))} animals with a name: "
            "there is nothing to tell apart",
            source=str(store.root),
            next_step="enrol photos with names of more animals",
        )
    groups = withheld.sightings_of(store.catalogue, labels)
    of_seen = np.isin(groups, groups[np.isin(labels.annotations, seen)])
    for allowed in (~withheld.learnt(store, labels, groups, seen), ~of_seen):
        played = withheld.chosen_queries(labels.individuals, groups, allowed=allowed)
        kept = named & ~np.isin(groups, groups[played])
        known = np.isin(labels.individuals[played], labels.individuals[kept])
        if known.any():
            break
    else:
        raise TrainError(
            "no animal has photos of two sightings apart from one another: nothing to learn from, nothing to judge by",
            source=str(store.root),
            next_step="enrol photos of second sightings" + (", or leave out --from" if of_seen.any() else ""),
        )
    chosen = np.flatnonzero(kept)
    names = tuple(str(labels.individuals[row]) for row in chosen)
    return Pool(labels, vectors, chosen, sources_of(store, labels, chosen), names, played, played[known])


def sources_of(store: Store, labels: Labels, rows: IntArray) -> tuple[Source, ...]:
    """The photos of these rows, for a training to read."""
    from reid.train.features import Source

    infos = store.catalogue.annotations(labels.annotations[rows].tolist())
    photos = store.catalogue.photos(sorted({info.photo for info in infos.values()}))
    masks = local.masks_of(store)

    def source(info: AnnotationInfo) -> Source:
        photo = photos[info.photo]
        mask = masks.path(photo.sha256, local.key_of(info.box))
        box = None if info.box.origin == "whole" else info.box
        return Source(store.resolve(info.path), box, photo.width, photo.height, mask if mask.exists() else None)

    return tuple(source(info) for info in infos.values())


def embedded(
    store: Store, embedder: Embedder, labels: Labels, progress: Progress
) -> tuple[Vectors, NDArray[np.bool_], list[Failure]]:
    """Vectors `(N, D)` of all annotations by another model, on the way of an enrolment; zeros where `there (N,)` is
    False.
    """
    infos = store.catalogue.annotations(labels.annotations.tolist())
    row_of = {int(a): row for row, a in enumerate(labels.annotations.tolist())}
    by_path: dict[Path, list[int]] = {}
    for annotation, info in infos.items():
        by_path.setdefault(store.resolve(info.path), []).append(annotation)
    photos = [
        tuple(Sighting(path, printable(path), box=infos[a].box, species=infos[a].species) for a in ids)
        for path, ids in by_path.items()
    ]
    views = views_of(store, embedder)
    rows = np.zeros((len(labels.annotations), embedder.card.dim), np.float32)
    there = np.zeros(len(rows), np.bool_)
    failures: list[Failure] = []
    prepared = intake.prepare_all(photos, embedder.card.preprocessing, views, croppers=store.croppers)
    for done, (ids, one) in enumerate(zip(by_path.values(), prepared, strict=True), 1):
        if isinstance(one, Failure):
            failures.append(one)
        elif len(one.boxes) != len(ids):
            failures.extend(one.failures)
        else:
            at = [row_of[a] for a in ids]
            rows[at] = embed_views(embedder, one.crops, len(views))
            there[at] = True
        progress("judge", done, len(photos))
    return rows, there, failures


def judge(store: Store, pool: Pool, vectors: Vectors, lost: int, *, trained_on: ArrayLike = ()) -> Verdict:
    """The same left-out photos answered by the present and by the new vectors; `trained_on` are annotations that the
    new model has seen. Both are whitened fully, though the fit that follows may choose a lesser share.
    """
    whitened = len(pool.labels.annotations) >= whiten.LEAST_PHOTOS
    alone = local.description(store) is None  # then prototypes speak in answers, too
    before, after = (
        withheld.left_out(store, pool.labels, unit_rows(rows), pool.played, whitened=whitened, prototypes=alone)
        for rows in (pool.vectors, vectors)
    )
    learnt = withheld.learnt(store, pool.labels, withheld.sightings_of(store.catalogue, pool.labels), trained_on)
    usable = np.flatnonzero((before.known_case | after.known_case) & ~learnt[pool.played])
    animals = before.identity[usable]
    old, new = (reciprocal_ranks(cases.truth_rank[usable]) for cases in (before, after))
    old_first, new_first = (hits_at_k(cases.truth_rank[usable], 1).astype(float) for cases in (before, after))
    return Verdict(
        photos=len(usable),
        animals=len(np.unique(animals)),
        map_at_5_before=_figure(old, animals),
        map_at_5_after=_figure(new, animals),
        gain=_figure(new - old, animals),
        top1_before=_figure(old_first, animals),
        top1_after=_figure(new_first, animals),
        answers_before=_answers(store, before),
        answers_after=_answers(store, after),
        lost=lost,
    )


def _figure(values: NDArray[np.float64], animals: IntArray) -> Figure:
    if not len(values):
        return Figure(math.nan, math.nan, math.nan)
    found = bootstrap_interval(values, animals)
    return Figure(found.value, found.low, found.high)


def _answers(store: Store, cases: LeftOut) -> float:
    rules = store.config.decision
    return thresholds.choose_threshold(cases, objective=rules.objective, new_share=rules.share_new, n=0).score


def advice(verdict: Verdict, model: str) -> str:
    """What to do next, in words."""
    use = f'to use it: model = "{model}" under [embedder] in reid.toml, then reid reindex'
    if verdict.photos < LEAST_JUDGES:
        return f"only {verdict.photos} photos could judge: collect second sightings before you believe this; {use}"
    if verdict.gain.low > 0:
        return f"it is better beyond chance; {use}"
    if verdict.gain.high < 0:
        return "it is worse beyond chance: keep the present model; `reid mine` shows labels that may be wrong"
    return f"the difference may be chance: more photos of known animals would tell; {use}"
