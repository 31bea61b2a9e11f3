"""What a store learns from its own photos without training: the whitening of its vectors, how its sources are fused,
whether opposite flanks tell anything, and where a new animal begins.

All are measured on the user's gallery, by photos that play queries (`reid.withheld`; `reid.leaving_out` says how known and
unknown cases come of that). Renewed when the gallery has grown by half, so the cost stays a constant share of enrolling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid import (
    calibrate,
    crowding,
    decide,
    fusion,
    known,
    local,
    measure,
    metrics,
    promise,
    thresholds,
    ways,
    whiten,
    withheld,
    witness,
)
from reid.calibrate import Calibration
from reid.catalogue import Labels
from reid.errors import InputError
from reid.flanks import Sides
from reid.fusion import Fusion
from reid.intervals import bootstrap_interval
from reid.known import Known
from reid.leaving_out import LeftOut
from reid.promise import Policy
from reid.records import Failure
from reid.risk import Cases, RiskTable, risk_table
from reid.store import CALIBRATION, Store
from reid.thresholds import NewThreshold
from reid.ways import Way

CURVES = ("curve", "curve_new")
GROWTH = 1.5  # times the photos of the last fit, at which a new one is due
SHARES = (1.0, 0.9, 0.7)  # how far vectors may be whitened: networks that have learnt the gallery need less
LEAST_GROWTH = 50  # photos that must have been added all the same
EARLIER_FILE = "calibration.earlier.json"
EARLIER = 3  # fits of earlier galleries that are kept, in case the new gallery never comes into force

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Fit:
    """What the last fit found. `threshold` is the score at which the new-individual label stands; `gallery` and `local`
    are the fingerprints it holds for; `sides` says whether opposite flanks are compared. `cases` are the left-out
    photos' scores (`risk.Cases.to_dict`), on which a `policy` of stated error rates can be measured at any time. `ways`
    are those to fuse that were tried (`ways.Way.to_dict`), best first, by the `rule` of that number (`ways.RULE`). Where
    `known` is in force, threshold, curves and cases are of scores that it has moved; `known_record` says what it was
    worth (`known.tried`). `whitened` is the share of `whiten.fit`, 0 where vectors serve as they are. `crowd` are the
    annotations by which crowding is told (`reid.crowding`) and `crowded` what the gallery's photos have on average, by
    species; both None where cosines serve as they are. `prototypes`: the store has no local features (no other ways were
    tried), and half of each cosine is that with its animal's (`reid.prototypes`).
    """

    gallery: str
    local: str
    fusion: Fusion
    sides: Sides
    photos: int
    threshold: float
    basis: str
    reason: str
    curve: Calibration | None
    curve_new: Calibration | None
    report: dict[str, Any]
    made: str
    cases: dict[str, list[Any]]
    policy: Policy | None = None
    ways: list[dict[str, Any]] = field(default_factory=list)
    known: Known | None = None
    known_record: dict[str, Any] = field(default_factory=dict)
    whitened: float = 1.0
    crowd: dict[str, list[int]] | None = None
    crowded: dict[str, float] | None = None
    prototypes: bool = False
    rule: int = 1


def read(store: Store, gallery_fingerprint: str) -> Fit | None:
    """The fit of this gallery, or None where there is none (or one of another model)."""
    for raw in _kept(store):
        if raw.get("gallery") == gallery_fingerprint and raw.get("local") == local.fingerprint(store):
            try:
                parts: dict[str, Any] = {
                    name: Calibration.from_dict(raw[name]) if raw[name] else None for name in CURVES
                }
                parts["policy"] = Policy.from_dict(raw["policy"]) if raw["policy"] else None
                parts["fusion"] = Fusion.from_dict(raw["fusion"])
                parts["known"] = Known.from_dict(raw["known"]) if raw.get("known") else None
                return Fit(**(raw | parts))
            except (AttributeError, KeyError, TypeError, ValueError):
                return None
    return None


def _kept(store: Store) -> Iterator[dict[str, Any]]:
    """The fits on file, newest first: of the gallery to come, then of those before it, which a query seldom needs."""
    newest = store.read_json(CALIBRATION) or {}
    newest.pop("earlier", None)  # where they stood before they had a file of their own
    yield newest
    earlier = (store.read_json(EARLIER_FILE) or {}).get("fits")
    yield from (one for one in earlier if isinstance(one, dict)) if isinstance(earlier, list) else ()


def is_due(store: Store) -> bool:
    """Whether the gallery has outgrown its last fit, or never had one, or can be measured now and could not then."""
    gallery = store.gallery()
    last = read(store, gallery.fingerprint)
    if last is None:
        return len(gallery) > 0
    if last.basis != "default" and (last.crowd is None) != (store.config.decision.threshold >= 0):
        return True  # a threshold that somebody stated is for scores that nothing moves
    if last.ways and last.rule != ways.RULE:
        return True  # chosen by an earlier build's rule
    if last.prototypes != (last.crowd is not None and last.fusion.kind == "embedding" and not last.ways):
        return True  # of a build that knew no prototypes
    if last.basis != "measured" and _can_be_measured(store, last):
        return True
    return len(gallery) >= max(GROWTH * last.photos, last.photos + LEAST_GROWTH)


def _can_be_measured(store: Store, last: Fit) -> bool:
    """Whether there are photos and names enough now for what the last fit had too few of; never twice for the same."""
    counts = store.catalogue.counts()
    if (counts.annotations, counts.unnamed) == (last.report.get("gallery_photos"), last.report.get("gallery_unnamed")):
        return False
    gallery = _census(store)
    enough = gallery["gallery_photos"] >= withheld.LEAST_PHOTOS and gallery["gallery_animals"] >= withheld.LEAST_ANIMALS
    return enough and (last.basis == "default" or gallery["gallery_animals_twice"] >= withheld.LEAST_ANIMALS)


def _census(store: Store) -> dict[str, int]:
    """What a measurement needs enough of: photos, named animals, and those of them with a second sighting."""
    labels = store.catalogue.labels()
    named = labels.individuals >= 0
    groups = withheld.sightings_of(store.catalogue, labels)
    pairs = np.unique(np.stack([labels.individuals[named], groups[named]]), axis=1)[0]
    animals, sightings = np.unique(pairs, return_counts=True)
    return {
        "gallery_photos": len(named),
        "gallery_unnamed": int((~named).sum()),
        "gallery_animals": len(animals),
        "gallery_animals_twice": int((sightings > 1).sum()),
    }


def fit(store: Store, *, failures: list[Failure] | None = None, progress: Progress = local.quiet) -> Fit:
    """Whiten, measure, write it down, and build the gallery anew. Photos that a witness could not read, and that were not
    asked for that, are put to the `failures`.

    In this order, with earlier fits kept beside the new one: whenever it is killed, the gallery in force has its fit.
    """
    labels, vectors = withheld.gathered(store.catalogue, store.fingerprint)
    told, rows, unread = (
        withheld.spoken_for(store, progress=progress) if witness.present(store) else (labels, vectors, [])
    )
    if failures is not None:
        failures.extend(unread)
    share = whitening_share(store, told, rows) if len(vectors) >= whiten.LEAST_PHOTOS else 0.0
    kept = withheld.numbers_kept(store, vectors)
    whitening = whiten.fit(vectors, labels.individuals, share=share, dimensions=kept) if share else None
    sides = sides_policy(store, told, rows, whitened=share)
    best = measured(store, told, rows, whitened=share, sides=sides, progress=progress)
    kind, cases = best.fusion, best.cases
    settings = store.config.decision
    default = fusion.PRIOR_THRESHOLD
    if kind.kind == "embedding":
        default = store.embedder.card.extra.get("threshold", decide.DEFAULT_THRESHOLD)
    found = thresholds.choose_threshold(
        cases, objective=settings.objective, new_share=settings.share_new, default=default
    )
    crowd, crowded = None, None
    if found.basis == "default":
        whitening, share = None, 0.0  # the defaults hold for raw vectors and their cosines
    elif settings.threshold < 0:
        crowd, crowded = crowd_of(store, labels, vectors if whitening is None else whitening.apply(vectors))
    gathered_cases = Cases.nothing() if found.basis == "default" else Cases.of(cases)  # else of scores as they serve
    result = Fit(
        gallery=store.fingerprint if whitening is None else f"{store.fingerprint}/{whitening.name}",
        local=local.fingerprint(store),
        fusion=kind,
        sides=sides,
        whitened=share,
        crowd=crowd,
        crowded=crowded,
        prototypes=crowd is not None and kind.kind == "embedding" and not best.ways,
        photos=store.catalogue.counts().annotations - len(store.catalogue.lacking_embeddings(store.fingerprint)),
        threshold=found.value,
        basis=found.basis,
        reason=found.reason,
        curve=_curve(cases, found, of_new=False),
        curve_new=_curve(cases, found, of_new=True),
        report=_report(found) | ({} if found.basis == "measured" else _census(store)),
        made=datetime.now().isoformat(timespec="seconds"),
        cases=gathered_cases.to_dict(),
        policy=_renewed(store, gathered_cases),
        ways=[way.to_dict() for way in best.ways],
        rule=ways.RULE,
        known=best.known,
        known_record=best.known_record,
    )
    write(store, result)
    store.rebuild(whitening)
    return result


def crowd_of(store: Store, labels: Labels, rows: NDArray[np.float32]) -> tuple[dict[str, list[int]], dict[str, float]]:
    """The annotations by which crowding is told, and what the unit `rows (N, d)` have on average, both by species."""
    said, ids, every = store.catalogue.species(), labels.annotations.tolist(), np.arange(len(rows))
    middles = withheld.crowding_among(store, rows, labels, every, every).middles.tolist()
    crowd: dict[str, list[int]] = {}
    for row in crowding.drawn(labels.individuals).tolist():  # as there
        crowd.setdefault(said.get(ids[row], ""), []).append(ids[row])
    return crowd, {said.get(id, ""): middle for id, middle in zip(ids, middles, strict=True)}


def _report(found: NewThreshold) -> dict[str, Any]:
    """A threshold as plain values; what could not be measured is left out."""
    return {k: v for k, v in asdict(found).items() if not (isinstance(v, float) and math.isnan(v))}


def write(store: Store, result: Fit) -> None:
    """Put a fit on file, those of other galleries kept behind it."""
    earlier = [one for one in _kept(store) if one.get("gallery") not in (None, result.gallery)][:EARLIER]
    store.write_json(EARLIER_FILE, {"fits": earlier})  # first: no fit is ever on neither file
    plain = {name: curve.to_dict() if (curve := getattr(result, name)) else None for name in CURVES}
    plain["fusion"] = result.fusion.to_dict()
    plain["policy"] = result.policy.to_dict() if result.policy else None
    plain["known"] = result.known.to_dict() if result.known else None
    rest = {f.name: getattr(result, f.name) for f in fields(result) if f.name not in plain}
    store.write_json(CALIBRATION, rest | plain)


def calibrate_rates(store: Store, *, false_match: float, false_new: float, confidence: float) -> Fit:
    """Thresholds that keep these error rates, measured on the left-out photos of the present fit, and put in force;
    where both are refused, all stays as it was.

    Raises:
        InputError: there is no fit of this gallery, or it was measured on nothing.
    """
    found = read(store, store.gallery().fingerprint)
    try:
        cases = Cases.from_dict(found.cases) if found else None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            "the left-out photos' scores are damaged",
            source=str(store.root / CALIBRATION),
            next_step="reid reindex --force",
        ) from error
    if found is None or cases is None or not (len(cases.known_score) and len(cases.unknown_score)):
        why, step = _unmeasured(found)
        raise InputError(why, source=str(store.root), next_step=step)
    share = store.config.decision.share_new
    policy = promise.choose_policy(cases, false_match, false_new, confidence, share)
    changed = replace(found, policy=policy)
    if policy.matches.threshold is not None or policy.new.threshold is not None:
        write(store, changed)
    return changed


def _unmeasured(found: Fit | None) -> tuple[str, str]:
    """Why nothing can be promised where no left-out photos speak, and what to do."""
    if found is None:
        return "nothing was measured on this store yet", "reid reindex; enrol named photos first where there are none"
    photos, animals, twice = (
        int(found.report.get(f"gallery_{what}", 0)) for what in ("photos", "animals", "animals_twice")
    )
    if animals and not twice:
        return (
            f"each of the {animals} named animals has one sighting, so none can be left out and found again",
            f"enrol a second sighting of {withheld.LEAST_ANIMALS} of them",
        )
    return (
        f"{photos} photos of {animals} named animals ({twice} of them with a second sighting) are too few to measure on",
        f"enrol at least {withheld.LEAST_PHOTOS} photos, and two sightings each of {withheld.LEAST_ANIMALS} named animals",
    )


def measured_risk(store: Store, found: Fit) -> RiskTable:
    """What each threshold would cost and spare, on the left-out photos of a fit whose cases are sound."""
    return risk_table(Cases.from_dict(found.cases), store.config.decision.share_new)


def forget_rates(store: Store) -> None:
    """Back to the one threshold: nothing is promised any more."""
    found = read(store, store.gallery().fingerprint)
    if found is not None:
        write(store, replace(found, policy=None))


def _renewed(store: Store, cases: Cases) -> Policy | None:
    """The promise that is in force, measured again on these cases; a damaged one is as none."""
    for raw in islice(_kept(store), 1):
        try:
            old = Policy.from_dict(raw["policy"])
        except (AttributeError, KeyError, TypeError):  # null, too
            return None
        share = store.config.decision.share_new
        return promise.choose_policy(cases, old.matches.rate, old.new.rate, old.matches.confidence, share)
    return None


def whitening_share(store: Store, labels: Labels, vectors: NDArray[np.float32]) -> float:
    """By which of `SHARES` left-out photos find most of their animals (MAP@5 by the embedding alone). The first, at no
    cost, where the network in force has learnt none of the gallery's photos (`docs/experiments/recipes.md`: it gains nothing by less),
    or too few others can be asked.
    """
    if not withheld.learnt(store, labels, withheld.sightings_of(store.catalogue, labels)).any():
        return SHARES[0]
    cases = [withheld.left_out(store, labels, vectors, whitened=share) for share in SHARES]
    known = np.logical_and.reduce([one.known_case for one in cases])
    if known.sum() < thresholds.MIN_CASES:
        return SHARES[0]
    worth = [metrics.reciprocal_ranks(one.truth_rank[known], decide.LABELS).mean() for one in cases]
    return SHARES[int(np.argmax(worth))]


def sides_policy(store: Store, labels: Labels, vectors: NDArray[np.float32], *, whitened: float) -> Sides:
    """Whether opposite flanks are compared: as the settings say, or where left-out photos find their animal better by
    it, surely (lower end of the 95 % bootstrap interval over animals above 0).
    """
    wanted = store.config.gallery.opposite_sides
    if wanted != "auto":
        return "together" if wanted == "always" else "separate"
    flanks = [store.catalogue.annotations_of(sides=[side]) for side in ("left", "right")]
    if not all(flanks):
        return "separate"
    cases = {
        sides: withheld.left_out(store, labels, vectors, whitened=whitened, sides=sides)
        for sides in ("separate", "together")
    }
    both = cases["separate"].known_case & cases["together"].known_case
    if both.sum() < thresholds.MIN_CASES:
        return "separate"
    worth = {sides: metrics.reciprocal_ranks(one.truth_rank[both], decide.LABELS) for sides, one in cases.items()}
    gain = bootstrap_interval(worth["together"] - worth["separate"], cases["separate"].identity[both])
    return "together" if gain.low > 0 else "separate"


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """The fusion that serves, how left-out photos are answered by it, and what else was tried: `ways` to fuse, and
    P(known) with its record.
    """

    fusion: Fusion
    cases: LeftOut
    ways: tuple[Way, ...] = ()
    known: Known | None = None
    known_record: dict[str, Any] = field(default_factory=dict)


def measured(
    store: Store,
    labels: Labels,
    vectors: NDArray[np.float32],
    *,
    whitened: float,
    sides: Sides,
    progress: Progress = local.quiet,
) -> Measured:
    """The fusion that finds most of the left-out photos' animals (by the rule of `reid.ways`), and how it answers them.

    The embedding alone where the settings or the photos leave nothing else, or nothing else does better; weights
    fitted elsewhere where the store has too few cases to choose by.
    """
    alone = withheld.left_out(store, labels, vectors, whitened=whitened, sides=sides, prototypes=True)
    source = withheld.local_of(store, labels)
    if source is None:
        return Measured(fusion.EMBEDDING, alone)
    groups = withheld.sightings_of(store.catalogue, labels)
    gallery, asked, further = withheld.ask_left_out(
        store, labels, vectors, groups, source, whitened=whitened, sides=sides, progress=progress
    )
    general = fusion.PRIOR_FUSION if local.compared_as_usual(store) else fusion.PRIOR_VOTES
    if not asked:
        return Measured(general, alone)
    method, query = store.config.decision.aggregate, store.config.query
    prior = measure.fused(gallery, asked, general, method)
    best = prior
    tried: tuple[Way, ...] = ()
    if int(prior.cases.known_case.sum()) >= thresholds.MIN_CASES:
        first = None
        if query.ranking == "geometry_first":
            first = measure.fitted(gallery, asked, method, query.geometry_inliers, further=further)
        if first is not None:
            best = first
        else:
            best, tried = ways.chosen(*ways.competing(gallery, asked, method, further, general))
    settings = store.config.decision
    if settings.threshold >= 0:  # it was stated for the scores as they are
        return Measured(best.fusion, best.cases, tried)
    weighed = known.tried(
        gallery, asked, best, method=method, objective=settings.objective, new_share=settings.share_new
    )
    return Measured(best.fusion, weighed.cases, tried, weighed.model, weighed.record)


def _curve(cases: LeftOut, found: NewThreshold, *, of_new: bool) -> Calibration | None:
    """Best score → probability that the animal ranked first is right or, `of_new`, minus it → that the animal is none of
    the known ones. Known and new cases are weighted to their expected shares.
    """
    alike, unknown = np.flatnonzero(cases.known_case), np.flatnonzero(cases.unknown_case)
    if found.basis != "measured":
        return None
    scores = np.concatenate([cases.known_best[alike], cases.other_scores[unknown, 0]])
    right = np.concatenate([cases.known_right[alike], np.zeros(len(unknown), bool)])
    new = np.arange(len(scores)) >= len(alike)
    shares = np.where(new, found.new_share / len(unknown), (1 - found.new_share) / len(alike)) * len(scores)
    usable = np.isfinite(scores)
    if of_new:
        return calibrate.fit_platt(-scores[usable], new[usable], shares[usable])
    return calibrate.fit_platt(scores[usable], right[usable], shares[usable])
