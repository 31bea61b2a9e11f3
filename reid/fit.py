"""What a store learns from its own photos without training: the whitening of its vectors, how its sources are fused,
whether opposite flanks tell anything, and where a new animal begins.

All are measured on the user's gallery. For the threshold some photos play queries: they are left out of the whitening
and of the gallery, as a real query is, together with their encounter and their near-duplicates (`reid.decide` says how
known and unknown cases come of that). Renewed when the gallery has grown by half, so the cost stays a constant share of
enrolling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reid import calibrate, decide, duplicates, fusion, local, measure, metrics, promise, rescore, whiten
from reid.calibrate import Calibration
from reid.catalogue import Catalogue, Labels
from reid.decide import LeftOut, Neighbours, NewThreshold
from reid.embed import unit_rows
from reid.errors import InputError
from reid.fusion import Fusion
from reid.intervals import bootstrap_interval
from reid.keypoints import LocalFeatures
from reid.measure import Asked
from reid.promise import Policy
from reid.risk import Cases
from reid.store import CALIBRATION, Store

CURVES = ("curve", "curve_new")
GROWTH = 1.5  # times the photos of the last fit, at which a new one is due
LEAST_GROWTH = 50  # photos that must have been added all the same
MOST_QUERIES = 1000
MOST_FUSED = 600  # left-out photos that go through local features and geometry too
FEATURES_HELD = 2000  # photos whose local features are held in memory while measuring (about 150 kB each)
EARLIER_FILE = "calibration.earlier.json"
EARLIER = 3  # fits of earlier galleries that are kept, in case the new gallery never comes into force
MOST_GALLERY = 30_000  # photos held in memory for the measurement; a random sample of a larger gallery

IntArray = NDArray[np.int64]
Progress = Callable[[str, int, int], None]
Sides = Literal["separate", "together"]


@dataclass(frozen=True, slots=True)
class Fit:
    """What the last fit found. `threshold` is the score at which the new-individual label stands; `gallery` and `local`
    are the fingerprints it holds for; `sides` says whether opposite flanks are compared. `cases` are the left-out
    photos' scores (`risk.Cases.to_dict`), on which a `policy` of stated error rates can be measured at any time.
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
    """Whether the gallery has outgrown its last fit, or never had one."""
    gallery = store.gallery()
    last = read(store, gallery.fingerprint)
    if last is None:
        return len(gallery) > 0
    return len(gallery) >= max(GROWTH * last.photos, last.photos + LEAST_GROWTH)


def fit(store: Store, *, progress: Progress = local.quiet) -> Fit:
    """Whiten, measure, write it down, and build the gallery anew.

    In this order, with earlier fits kept beside the new one: whenever it is killed, the gallery in force has its fit.
    """
    labels, vectors = gathered(store.catalogue, store.fingerprint)
    whitening = whiten.fit(vectors, labels.individuals)
    sides = sides_policy(store, labels, vectors, whitened=whitening is not None)
    kind, cases = measured(store, labels, vectors, whitened=whitening is not None, sides=sides, progress=progress)
    settings = store.config.decision
    default = fusion.PRIOR_THRESHOLD
    if kind.kind == "embedding":
        default = store.embedder.card.extra.get("threshold", decide.DEFAULT_THRESHOLD)
    found = decide.choose_threshold(cases, objective=settings.objective, new_share=settings.share_new, default=default)
    if found.basis == "default":
        whitening = None  # the defaults hold for raw vectors
    gathered_cases = Cases.of(cases)
    result = Fit(
        gallery=store.fingerprint if whitening is None else f"{store.fingerprint}/{whitening.name}",
        local=local.fingerprint(store),
        fusion=kind,
        sides=sides,
        photos=store.catalogue.counts().annotations - len(store.catalogue.lacking_embeddings(store.fingerprint)),
        threshold=found.value,
        basis=found.basis,
        reason=found.reason,
        curve=_curve(cases, found, of_new=False),
        curve_new=_curve(cases, found, of_new=True),
        report={k: v for k, v in asdict(found).items() if not (isinstance(v, float) and math.isnan(v))},
        made=datetime.now().isoformat(timespec="seconds"),
        cases=gathered_cases.to_dict(),
        policy=_renewed(store, gathered_cases),
    )
    write(store, result)
    store.rebuild(whitening)
    return result


def write(store: Store, result: Fit) -> None:
    """Put a fit on file, those of other galleries kept behind it."""
    earlier = [one for one in _kept(store) if one.get("gallery") not in (None, result.gallery)][:EARLIER]
    store.write_json(EARLIER_FILE, {"fits": earlier})  # first: no fit is ever on neither file
    plain = {name: curve.to_dict() if (curve := getattr(result, name)) else None for name in CURVES}
    plain["fusion"] = result.fusion.to_dict()
    plain["policy"] = result.policy.to_dict() if result.policy else None
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
        raise InputError(
            "there are no left-out photos to measure on", source=str(store.root), next_step="enrol named photos first"
        )
    share = store.config.decision.share_new
    policy = promise.choose_policy(cases, false_match, false_new, confidence, share)
    changed = replace(found, policy=policy)
    if policy.matches.threshold is not None or policy.new.threshold is not None:
        write(store, changed)
    return changed


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


def sides_policy(store: Store, labels: Labels, vectors: NDArray[np.float32], *, whitened: bool) -> Sides:
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
        sides: left_out(store, labels, vectors, whitened=whitened, sides=sides) for sides in ("separate", "together")
    }
    known = cases["separate"].known_case & cases["together"].known_case
    if known.sum() < decide.MIN_CASES:
        return "separate"
    worth = {sides: metrics.reciprocal_ranks(one.truth_rank[known], decide.LABELS) for sides, one in cases.items()}
    gain = bootstrap_interval(worth["together"] - worth["separate"], cases["separate"].identity[known])
    return "together" if gain.low > 0 else "separate"


def measured(
    store: Store,
    labels: Labels,
    vectors: NDArray[np.float32],
    *,
    whitened: bool,
    sides: Sides,
    progress: Progress = local.quiet,
) -> tuple[Fusion, LeftOut]:
    """The fusion that finds most of the left-out photos' animals, and how it answers them.

    The embedding alone where the settings or the photos leave nothing else, or nothing else does better; weights
    fitted elsewhere where the store has too few cases to choose by.
    """
    alone = left_out(store, labels, vectors, whitened=whitened, sides=sides)
    source = local_of(store, labels)
    if source is None:
        return fusion.EMBEDDING, alone
    groups = sightings_of(store.catalogue, labels)
    gallery, asked = ask_left_out(
        store, labels, vectors, groups, source, whitened=whitened, sides=sides, progress=progress
    )
    if not asked:
        return fusion.PRIOR_FUSION, alone
    method = store.config.decision.aggregate
    plain, prior = (measure.fused(gallery, asked, kind, method) for kind in (fusion.EMBEDDING, fusion.PRIOR_FUSION))
    if int(plain.cases.known_case.sum()) < decide.MIN_CASES:
        return fusion.PRIOR_FUSION, prior.cases
    query = store.config.query
    if query.ranking == "geometry_first":
        first = measure.fitted(gallery, asked, method, query.geometry_inliers)
        if first is not None:
            return first.fusion, first.cases
    trees = measure.fitted(gallery, asked, method)
    best = max((one for one in (plain, prior, trees) if one is not None), key=lambda one: one.map_at_5)
    return best.fusion, best.cases


def ask_left_out(
    store: Store,
    labels: Labels,
    vectors: NDArray[np.float32],
    groups: IntArray,
    source: measure.Local,
    *,
    whitened: bool,
    sides: Sides,
    progress: Progress,
) -> tuple[measure.Gallery, list[Asked]]:
    """Left-out photos asked with all sources, by a whitening that has not seen them, and the gallery they belong to."""
    queries = chosen_queries(labels.individuals, groups, most=MOST_FUSED, each=2)
    rest = np.setdiff1d(np.arange(len(groups)), queries)
    whitening = whiten.fit(vectors[rest], labels.individuals[rest], least=2) if whitened else None
    rows = vectors if whitening is None else whitening.apply(vectors)
    gallery = measure.Gallery(tuple(map(str, labels.annotations.tolist())), rows, labels.individuals, groups)
    opposite = _opposite(store, labels) if sides == "separate" else lambda row: frozenset[int]()
    near = store.config.gallery.neighbours
    return gallery, measure.ask(gallery, queries, opposite, source, neighbours=near, progress=progress)


def local_of(store: Store, labels: Labels) -> measure.Local | None:
    """The store's local features opened for measuring; None where it does without or has none."""
    if local.description(store) is None:
        return None
    source = local.LocalSource.open(store)
    if not source.index.descriptors:
        return None
    keys = local.keys(store, labels.annotations.tolist())

    @lru_cache(maxsize=FEATURES_HELD)
    def features_of(id: str) -> LocalFeatures | None:
        return source.features_of(keys, id)

    @lru_cache(maxsize=FEATURES_HELD)
    def compared_of(id: str) -> LocalFeatures | None:
        return source.compared_of(keys, id)

    heads = rescore.open_heads(store)
    half = {str(a): rescore.half_of(int(i)) for a, i in zip(labels.annotations, labels.individuals, strict=True)}
    siamese_of = (lambda id, ids: heads.unseen(half[id], id, ids)) if heads is not None else None
    names = source.index.names(local.names_of(store))
    return measure.Local(
        source.index,
        names,
        features_of,
        source.verify,
        store.config.local.verify,
        compared_of if source.further else None,
        siamese_of,
    )


def _opposite(store: Store, labels: Labels) -> Callable[[int], frozenset[int]]:
    """Row → the rows that show the other flank."""
    flank: dict[int, str] = {}
    rows: dict[str, frozenset[int]] = {"": frozenset()}
    for side, other in (("left", "right"), ("right", "left")):
        mine = np.isin(labels.annotations, store.catalogue.annotations_of(sides=[side]))  # type: ignore[list-item]
        rows[side] = frozenset(np.flatnonzero(mine).tolist())
        flank |= dict.fromkeys(rows[side], other)
    return lambda row: rows[flank.get(row, "")]


def gathered(
    catalogue: Catalogue, fingerprint: str, *, most: int = MOST_GALLERY, seed: int = 0
) -> tuple[Labels, NDArray[np.float32]]:
    """Labels and raw unit vectors `(N, D) float32` of the annotations in service that have one; a random sample of
    `most` where there are more.
    """
    labels = catalogue.labels()
    share = min(1.0, most / max(1, len(labels.annotations)))
    rng = np.random.default_rng(seed)
    ids, parts = [], []
    for chunk in catalogue.embeddings(fingerprint):
        keep = np.isin(chunk.annotations, labels.annotations) & (rng.random(len(chunk.annotations)) < share)
        ids.append(chunk.annotations[keep])
        parts.append(chunk.vectors[keep])
    if not ids:
        nothing = np.empty(0, np.int64)
        return Labels(nothing, nothing, nothing, nothing), np.empty((0, 1), np.float32)
    kept = np.concatenate(ids)
    at = np.searchsorted(labels.annotations, kept)
    some = Labels(kept, labels.individuals[at], labels.encounters[at], labels.photos[at], labels.names)
    return some, unit_rows(np.concatenate(parts))


def left_out(
    store: Store, labels: Labels, vectors: NDArray[np.float32], *, whitened: bool, sides: Sides = "separate"
) -> LeftOut:
    """By the embedding alone: photos of the gallery answered as if they were queries: unseen by the whitening, apart from their encounter and
    near-duplicates.
    """
    groups = sightings_of(store.catalogue, labels)
    queries = chosen_queries(labels.individuals, groups)
    rest = np.setdiff1d(np.arange(len(groups)), queries)
    whitening = whiten.fit(vectors[rest], labels.individuals[rest], least=2) if whitened else None
    rows = vectors if whitening is None else whitening.apply(vectors)
    k = min(len(rest), store.config.gallery.neighbours + int(np.bincount(groups).max(initial=1)))
    near = np.full((len(queries), max(k, 1)), -1, np.int64)
    scores = np.zeros((len(queries), max(k, 1)))
    for at in range(0, len(queries), 256):
        part = queries[at : at + 256]
        matrix = rows[part] @ rows[rest].T
        if sides == "separate":
            matrix = _sided(store, labels, matrix, part, rest)
        if k:
            found = decide.nearest(matrix, k)
            near[at : at + 256], scores[at : at + 256] = rest[found.rows], found.scores
    near[np.isneginf(scores)] = -1
    scores[near < 0] = 0.0
    return decide.leave_one_out(
        queries, Neighbours(near, scores), labels.individuals, groups, store.config.decision.aggregate
    )


def _sided(
    store: Store, labels: Labels, scores: NDArray[np.float32], queries: IntArray, gallery: IntArray
) -> NDArray[np.float32]:
    """Scores with opposite flanks struck out, as a query does."""
    infos = store.catalogue.annotations(labels.annotations[queries].tolist())
    sides = [infos[int(a)].side for a in labels.annotations[queries]]
    for side, opposite in (("left", "right"), ("right", "left")):
        mine = [i for i, s in enumerate(sides) if s == side]
        if mine:
            other = np.isin(labels.annotations[gallery], store.catalogue.annotations_of(sides=[opposite]))  # type: ignore[list-item]
            scores[np.ix_(np.array(mine), np.flatnonzero(other))] = -np.inf
    return scores


def sightings_of(catalogue: Catalogue, labels: Labels) -> IntArray:
    """A code for each annotation, `(N,)`: annotations of one encounter, or of near-duplicate photos, share it."""
    photo_ids, hashes = catalogue.phashes()
    pairs = duplicates.near_duplicates(*_distinct(hashes))
    first = {int(h): i for i, h in reversed(list(enumerate(hashes.tolist())))}
    parent = np.arange(len(photo_ids))
    edges = [(first[int(h)], i) for i, h in enumerate(hashes.tolist())]
    unique = np.unique(hashes)
    edges += [
        (first[int(unique[a])], first[int(unique[b])])
        for a, b in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
    ]
    for a, b in edges:
        parent[_root(parent, b)] = _root(parent, a)
    lookup = {int(p): int(_root(parent, i)) for i, p in enumerate(photo_ids.tolist())}
    by_photo = np.array([lookup.get(int(p), -int(p) - 2) for p in labels.photos], np.int64)
    return _joined(by_photo, labels.encounters)


def _distinct(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64]]:
    """Each hash once: equal ones would pair with one another in their square."""
    return (np.unique(hashes),)


def _joined(photos: IntArray, encounters: IntArray) -> IntArray:
    """Connected components of annotations that share a duplicate group or an encounter."""
    parent = np.arange(len(photos))
    for codes in (photos, encounters):
        seen: dict[int, int] = {}
        for i, code in enumerate(codes.tolist()):
            if code == -1:
                continue
            if code in seen:
                parent[_root(parent, i)] = _root(parent, seen[code])
            else:
                seen[code] = i
    roots = np.array([_root(parent, i) for i in range(len(parent))], np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def _root(parent: IntArray, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int(parent[i])
    return i


def chosen_queries(
    individuals: IntArray, groups: IntArray, *, most: int = MOST_QUERIES, each: int = 1, seed: int = 0
) -> IntArray:
    """Rows that play queries: at most `each` photos (of different sightings) of each of a random choice of animals, at
    most `most` and a quarter of the gallery.

    Animals with a sighting more than they give come first (they give known cases), the others fill up to as many
    again.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.flatnonzero(individuals >= 0))
    seen: dict[int, set[int]] = {}
    rounds: list[list[int]] = [[] for _ in range(each)]
    for row in order.tolist():
        sightings = seen.setdefault(int(individuals[row]), set())
        if len(sightings) < each and int(groups[row]) not in sightings:
            rounds[len(sightings)].append(row)
        sightings.add(int(groups[row]))
    limit = min(most, len(individuals) // 4)
    known: list[int] = []
    for turn, rows in enumerate(rounds):  # a second photo of an animal only where a third sighting is left to find
        known += [row for row in rows if len(seen[int(individuals[row])]) > turn + 1]
    known = known[:limit]
    rest = [row for row in rounds[0] if len(seen[int(individuals[row])]) == 1]
    rest = rest[: min(limit - len(known), max(len(known), decide.MIN_CASES))]
    return np.sort(np.array([*known, *rest], np.int64))


def _curve(cases: LeftOut, found: NewThreshold, *, of_new: bool) -> Calibration | None:
    """Best score → probability that the animal ranked first is right or, `of_new`, minus it → that the animal is none of
    the known ones. Known and new cases are weighted to their expected shares.
    """
    known, unknown = np.flatnonzero(cases.known_case), np.flatnonzero(cases.unknown_case)
    if found.basis != "measured":
        return None
    scores = np.concatenate([cases.known_best[known], cases.other_scores[unknown, 0]])
    right = np.concatenate([cases.known_right[known], np.zeros(len(unknown), bool)])
    new = np.arange(len(scores)) >= len(known)
    shares = np.where(new, found.new_share / len(unknown), (1 - found.new_share) / len(known)) * len(scores)
    usable = np.isfinite(scores)
    if of_new:
        return calibrate.fit_platt(-scores[usable], new[usable], shares[usable])
    return calibrate.fit_platt(scores[usable], right[usable], shares[usable])
