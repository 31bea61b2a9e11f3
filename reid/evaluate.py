"""How good the engine is on somebody's own photos: gallery table + query table → measures, by exactly the production path.

The gallery is enrolled into a temporary store with `reid.enrol`, which fits whitening and threshold on it alone; each query photo is answered by
`reid.pipeline`. Identities of the query table that the gallery lacks are new, and a query nobody has named is a new animal of its own.

Conventions: `map_at_5`, BAKS and BAUS are of the answers as given, the new-individual label among them. `top1`, `top5`,
`map_at_5_known` and `map` are over known queries and rank known identities only, so that they compare with closed-set
figures elsewhere. Where P(known) is in force, `auroc_best_score` and `geometric_best_score` say what the queries would
have come to without it. A query that got no answer (a broken photo) is wrong; a row whose file does not exist is no query, and
is among the failures.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid import config_file, duplicates, enrol, images, intake, metrics
from reid.aggregate import identity_scores
from reid.enrol import Progress, quiet
from reid.errors import InputError, ReidError
from reid.exchange import SightingList, read_sources
from reid.fit import Fit
from reid.intervals import bootstrap_interval, group_means
from reid.kept import Kept, kept
from reid.pipeline import Identifier, Query
from reid.records import Answer, Failure, Sighting
from reid.risk import Cases
from reid.search import Found
from reid.store import Store

NEAR_DUPLICATE_BITS = 2
MAP_DEPTH = 2000  # gallery photos ranked for mAP; what lies deeper counts as not found


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure with its 95 % bootstrap interval over identities."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All measures by name, the breakdown by gallery photos per identity, and what was left out."""

    measures: dict[str, Measured]
    by_gallery_photos: dict[str, dict[str, float]]
    counts: dict[str, int]
    threshold: dict[str, Any]
    model: str
    seconds: dict[str, float]
    failures: tuple[Failure, ...]
    promises: tuple[Kept, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Flat keys for the figures; intervals, breakdown and the rest below their own."""
        flat: dict[str, Any] = {name: _number(m.value) for name, m in self.measures.items()}
        return {
            **flat,
            **self.counts,
            "seconds": {k: round(v, 4) for k, v in self.seconds.items()},
            "intervals": {name: [_number(m.low), _number(m.high)] for name, m in self.measures.items()},
            "by_gallery_photos": self.by_gallery_photos,
            "threshold": self.threshold,
            "promises": [one.to_json() for one in self.promises],
            "model": self.model,
            "failures": [{"source": f.source, "code": f.code, "message": f.message} for f in self.failures],
        }


def evaluate(
    gallery: Path,
    queries: Path,
    *,
    model: Path | None = None,
    settings: str | Path = "",
    dedup: bool = False,
    root: Path | None = None,
    false_match: Sequence[float] = (),
    progress: Progress = quiet,
) -> Evaluation:
    """Measure on two tables (wildlife-datasets columns, or any other that enrolment reads). `model` is a model
    directory, `settings` others than the defaults (`reid.config_file.values_of`); `dedup` drops queries whose photo is a
    near-duplicate of a gallery photo. Each rate of `false_match`, in (0, 1), is promised by the gallery's left-out photos and
    counted on the queries.

    Raises:
        TableError: a table cannot be read. InputError: no named gallery photo, or no query, is left.
    """
    begun = time.perf_counter()
    known = read_sources([gallery], root=root, keep_boxless=True)
    asked = read_sources([queries], root=root, keep_boxless=True)
    with tempfile.TemporaryDirectory(prefix="reid-evaluate-") as folder, _store(Path(folder), model, settings) as store:
        taken = enrol.enrol(store, known.sightings, who="evaluate", progress=progress)
        enrolled = time.perf_counter()
        sightings, dropped, lost = _queries(store, asked, dedup)
        if not taken.named:
            raise _nothing("no named gallery photo", gallery, (*known.failures, *taken.failures))
        if not sightings:
            doubled = f" (all {dropped} are near-duplicates of gallery photos)" if dropped else ""
            raise _nothing(f"no query photo{doubled}", queries, asked.failures)
        result = _measure(store, sightings, progress, false_match)
        failures = (*known.failures, *taken.failures, *asked.failures, *lost, *result.failures)
        counts = result.counts | {"n_gallery": store.catalogue.counts().photos, "n_near_duplicates_dropped": dropped}
        stages = taken.seconds | {"enrol": enrolled - begun, "query": time.perf_counter() - enrolled}
    seconds = stages | {f"per_query_{k}": v for k, v in result.seconds.items()} | {"total": time.perf_counter() - begun}
    return Evaluation(
        result.measures, result.by_gallery_photos, counts, result.threshold, result.model, seconds, failures,
        result.promises,
    )  # fmt: skip


def _nothing(what: str, table: Path, failures: Sequence[Failure]) -> InputError:
    """Said where a table leaves nothing to measure, with the first of what it lost."""
    first = f" ({len(failures)} rows lost; {failures[0].source}: {failures[0].message})" if failures else ""
    step = failures[0].next_step if failures else ""
    return InputError(
        f"nothing to measure: {what} could be used{first}",
        source=str(table),
        next_step=step or "check its identity and path columns",
    )


def _store(folder: Path, model: Path | None, settings: str | Path) -> Store:
    """A fresh store, using the model directory `model` and the `settings` where they are given."""
    values = config_file.values_of(settings) if settings else {}
    values.pop("catalogue", None)  # a measurement has one of its own, never a team's
    store = Store.create(folder / "store", begin_with=values, model=model.name if model else "")
    if model is not None:
        store.models_folder.mkdir(exist_ok=True)
        (store.models_folder / model.name).symlink_to(model.resolve(), target_is_directory=True)
    return store


def _queries(store: Store, asked: SightingList, dedup: bool) -> tuple[list[Sighting], int, list[Failure]]:
    """The query sightings, one a photo and box; how many near-duplicates of the gallery were dropped; photos that could not be read for it."""
    if not dedup:
        return list(asked.sightings), 0, []
    photos = intake.by_photo(asked.sightings)
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_hash, (group[0].path for group in photos)))
    readable = [i for i, h in enumerate(hashes) if h is not None]
    mine = np.array([hashes[i] for i in readable], np.uint64)
    _, theirs = store.catalogue.phashes()
    pairs = duplicates.near_duplicates(mine, NEAR_DUPLICATE_BITS, np.unique(theirs))
    doubled = {readable[i] for i in pairs.first.tolist()}
    kept = [sighting for i, group in enumerate(photos) for sighting in group if i not in doubled]
    return kept, len(doubled), []


def _hash(path: Path) -> int | None:
    """Perceptual hash, None for a photo that cannot be read (the query itself will say why)."""
    try:
        return images.perceptual_hash(images.read(path, target=64).pixels)
    except ReidError:
        return None


def _measure(
    store: Store, sightings: Sequence[Sighting], progress: Progress, false_match: Sequence[float] = ()
) -> Evaluation:
    """Answer every query and count."""
    identifier = Identifier.open(store, k=6)
    ranked: dict[int, NDArray[np.int64]] = {}
    unmoved: dict[int, float] = {}
    labels = store.catalogue.labels()
    code_of = dict(zip((str(a) for a in labels.annotations.tolist()), labels.individuals.tolist(), strict=True))

    def observe(positions: list[int], vectors: NDArray[np.float32], found: Sequence[Found]) -> None:
        depth = min(MAP_DEPTH, max(1, len(identifier.gallery)))
        behind = identifier.gallery.search(vectors, depth)
        for position, first, rest in zip(positions, found, behind, strict=True):
            ids = dict.fromkeys((*first.candidates.ids, *rest.ids))
            codes = [code_of.get(i, -1) for i in ids][:depth]
            ranked[position] = np.array(codes + [-1] * (depth - len(codes)), np.int64)
            unmoved[position] = _best_score(store, identifier, first)

    answers: list[Answer] = []
    for at in range(0, len(sightings), 256):
        part = sightings[at : at + 256]
        answers += identifier.answers(
            [Query((s,)) for s in part],
            observe=lambda rows, vectors, found, at=at: observe([at + r for r in rows], vectors, found),  # type: ignore[misc]
        )
        progress("query", len(answers), len(sightings))
    record = identifier.fit.known_record if identifier.fit and identifier.fit.known else {}
    plain = np.array([unmoved.get(i, -1.0) for i in range(len(answers))]) if record else None
    before = None if plain is None else (plain, float(record["threshold_before"]))
    made = _counted(store, sightings, answers, ranked, labels.names, labels.individuals, before)
    return replace(made, promises=_promised(store, identifier.fit, sightings, answers, labels.names, false_match))


def _promised(
    store: Store,
    found: Fit | None,
    sightings: Sequence[Sighting],
    answers: Sequence[Answer],
    names: Mapping[int, str],
    rates: Sequence[float],
) -> tuple[Kept, ...]:
    """What each of `rates` of false matches, promised by the gallery's left-out photos, comes to on the queries that
    were answered.
    """
    if not rates:
        return ()
    code = {name: number for number, name in names.items() if number >= 0}
    rows = [
        (code.get(sighting.identity or "", -1), max(known, key=lambda label: label.score))
        for sighting, answer in zip(sightings, answers, strict=True)
        if (known := [label for label in answer.labels if not label.is_new])
    ]
    true = np.array([animal for animal, _ in rows], np.int64)
    best = np.array([label.score for _, label in rows], np.float64)
    wrong = np.array([code.get(label.label, -1) != animal for animal, label in rows], np.bool_)
    there = true >= 0
    strangers = -1 - np.arange(int((~there).sum()))
    asked = Cases(best[there], wrong[there], true[there], best[~there], strangers)
    left_out = Cases.from_dict(found.cases) if found and found.cases else Cases.nothing()
    return tuple(kept(left_out, asked, rate, store.config.decision.share_new) for rate in rates)


def _best_score(store: Store, identifier: Identifier, found: Found) -> float:
    """The first animal's score as the sources have it, before P(known) moves it; −1 without one."""
    codes = [identifier.search.code(id) for id in found.candidates.ids]
    ranking = identity_scores(found.candidates.scores, codes, store.config.decision.aggregate)
    return float(ranking.scores[0]) if len(ranking.scores) else -1.0


def _counted(
    store: Store,
    sightings: Sequence[Sighting],
    answers: Sequence[Answer],
    ranked: dict[int, NDArray[np.int64]],
    names: Any,
    individuals: NDArray[np.int64],
    before: tuple[NDArray[np.float64], float] | None,
) -> Evaluation:
    """All measures; `before` are the queries' best scores and the threshold that would hold without P(known)."""
    new_label = store.config.decision.new_label
    code = {name: number for number, name in names.items() if number >= 0}
    true_code = np.array([code.get(s.identity or "", -1) for s in sightings], np.int64)
    is_new = true_code < 0
    truth = [new_label if new else str(s.identity) for s, new in zip(sightings, is_new, strict=True)]
    animal = np.array([s.identity or f"unnamed {i}" for i, s in enumerate(sightings)])
    given = [[label.label for label in answer.labels] for answer in answers]
    closed = [[label.label for label in answer.labels if not label.is_new] for answer in answers]
    kaggle = metrics.reciprocal_ranks(metrics.ranks_of_truth([g[:5] for g in given], truth))
    ranks = metrics.ranks_of_truth(closed, truth)[~is_new]
    photos = np.bincount(individuals[individuals >= 0], minlength=int(individuals.max(initial=0)) + 1)
    depth = max((len(r) for r in ranked.values()), default=1)
    lists = (
        np.stack([ranked.get(int(i), np.full(depth, -1, np.int64)) for i in np.flatnonzero(~is_new)])
        if (~is_new).any()
        else np.empty((0, depth), np.int64)
    )
    precision = metrics.average_precision_ranked(lists, true_code[~is_new], photos[true_code[~is_new]])
    first = [g[0] if g else "" for g in given]
    right_known = np.array([f == t for f, t in zip(first, truth, strict=True)], float)[~is_new]
    called_new = np.array([f == new_label for f in first], float)[is_new]
    best = np.array([max((x.score for x in a.labels if not x.is_new), default=-1.0) for a in answers])
    measures = {
        "map_at_5": _mean(kaggle, animal),
        "map_at_5_known": _mean(metrics.reciprocal_ranks(ranks), animal[~is_new]),
        "top1": _mean(metrics.hits_at_k(ranks, 1).astype(float), animal[~is_new]),
        "top5": _mean(metrics.hits_at_k(ranks, 5).astype(float), animal[~is_new]),
        "map": _mean(precision, animal[~is_new]),
        "baks": _group_mean(right_known, animal[~is_new]),
        "baus": _group_mean(called_new, animal[is_new]),
        "geometric": _geometric(right_known, animal[~is_new], called_new, animal[is_new]),
        "auroc_known": _auroc(best, ~is_new, animal),
        "ece": _ece(answers, [f == t for f, t in zip(first, truth, strict=True)], animal),
    }
    if before is not None:
        plain, at = before
        named = (ranks == 1) & (plain[~is_new] >= at)
        measures["auroc_best_score"] = _auroc(plain, ~is_new, animal)
        measures["geometric_best_score"] = _geometric(
            named.astype(float), animal[~is_new], (plain < at).astype(float)[is_new], animal[is_new]
        )
    sizes = {
        name: {
            k: v.value if v.n else math.nan
            for k, v in metrics.by_gallery_size(values, photos[true_code[~is_new]]).items()
        }
        for name, values in (
            ("top1", metrics.hits_at_k(ranks, 1).astype(float)),
            ("top5", metrics.hits_at_k(ranks, 5).astype(float)),
        )
    }
    counts = {"n_queries": len(sightings), "n_known": int((~is_new).sum()), "n_new": int(is_new.sum())}
    fitted = store.read_json("calibration.json") or {}
    stages = answers[0].seconds.keys() if answers else ()
    seconds = {stage: float(np.mean([a.seconds.get(stage, 0.0) for a in answers])) for stage in stages}
    failures = tuple(
        Failure(a.photos[0], a.status, a.message)
        for a in answers
        if a.status in ("error", "no_detection", "index_stale", "no_candidates")
    )
    kind = (fitted.get("fusion") or {}).get("kind")
    threshold = fitted.get("report", {}) | {
        "sources": kind,
        "opposite_sides": fitted.get("sides"),
        "fusions": fitted.get("ways", []),
        "known": fitted.get("known_record", {}),
    }
    sizes = {k: {b: _number(v) for b, v in d.items()} for k, d in sizes.items()}  # type: ignore[misc]
    return Evaluation(measures, sizes, counts, threshold, store.embedder.card.name, seconds, failures)


def _mean(values: NDArray[np.float64], groups: NDArray[Any]) -> Measured:
    found = bootstrap_interval(values, groups)
    return Measured(found.value, found.low, found.high)


def _group_mean(values: NDArray[np.float64], groups: NDArray[Any]) -> Measured:
    found = bootstrap_interval(values, groups, "group_mean")
    return Measured(found.value, found.low, found.high)


def _geometric(
    known: NDArray[np.float64], known_animals: NDArray[Any], new: NDArray[np.float64], new_animals: NDArray[Any]
) -> Measured:
    """√(BAKS·BAUS): one row an animal, (is new, its accuracy)."""
    if not len(known) or not len(new):
        return Measured(math.nan, math.nan, math.nan)
    rows = np.array(
        [(0.0, v) for v in group_means(known, known_animals)[1]] + [(1.0, v) for v in group_means(new, new_animals)[1]]
    )

    def statistic(drawn: NDArray[Any]) -> float:
        kinds = [drawn[drawn[:, 0] == kind, 1] for kind in (0, 1)]
        return (
            metrics.geometric(float(kinds[0].mean()), float(kinds[1].mean()))
            if all(len(k) for k in kinds)
            else math.nan
        )

    found = bootstrap_interval(rows, np.arange(len(rows)), statistic)
    return Measured(found.value, found.low, found.high)


def _auroc(best: NDArray[np.float64], known: NDArray[np.bool_], animal: NDArray[Any]) -> Measured:
    rows = np.stack([best, known.astype(float)], 1)
    found = bootstrap_interval(rows, animal, lambda drawn: metrics.auroc(drawn[:, 0], drawn[:, 1] > 0), n=300)
    return Measured(found.value, found.low, found.high)


def _ece(answers: Sequence[Answer], right: Sequence[bool], animal: NDArray[Any]) -> Measured:
    """Calibration error of the first label's probability, where the gallery was large enough to have probabilities."""
    usable = [i for i, a in enumerate(answers) if a.labels and a.labels[0].probability is not None]
    if not usable:
        return Measured(math.nan, math.nan, math.nan)
    rows = np.array([(answers[i].labels[0].probability, float(right[i])) for i in usable], float)
    found = bootstrap_interval(
        rows, animal[usable], lambda d: metrics.expected_calibration_error(d[:, 0], d[:, 1] > 0), n=300
    )
    return Measured(found.value, found.low, found.high)


def _number(value: float) -> float | None:
    """JSON has no NaN: what could not be measured is null."""
    return round(value, 6) if math.isfinite(value) else None
