"""Models of a store put together: weights fitted on its held-out photos, and the ensemble judged against the present one.

    members → vectors of everything, each photo decoded once → query × identity scores of each (`reid.train.folds`)
            → (w, α) of Σ w·P^α (`reid.train.ensembles`) → the weights that serve → `models/<date>-<name>/` → verdict

What serves is linear in the cosines. A member's weight is its share over the spread of its vectors about their mean:
cosines of a network that gives all photos of a species nearly one vector differ by little, and would have no voice. The
shares are those, of equal ones and of two fits (α free, α held at 1), by which the store's own way of answering,
whitening and all, finds most of the same photos. The power α stays in the
record: it says what a fusion of calibrated scores would give.

The photos are those that judge a training, less what a member has been trained on. Where witnesses speak for members
(`reid.witness`), they are weighed and judged, and speak for the ensemble. Needs no torch. Knows stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from reid import ensemble, local, models, whiten, withheld, witness
from reid.embed import unit_rows
from reid.enrol import Progress, quiet
from reid.errors import InputError, TrainError
from reid.judge import LEAST_JUDGES, Candidate, Pool, Report, advice, embedded, judge, pool_of
from reid.metrics import reciprocal_ranks
from reid.store import Store
from reid.train import ensembles, folds, runs
from reid.train.ensembles import Fusion
from reid.withheld import TRAINED_ON, TRAINING

IntArray = NDArray[np.int64]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Served:
    """One choice of the members' shares, what it was called, the weights of their cosines that give these, and the MAP@5 of
    the store's own answers with it.
    """

    name: str
    shares: tuple[float, ...]
    weights: tuple[float, ...]
    map_at_5: float


@dataclass(frozen=True, slots=True)
class Assembled:
    """An ensemble and how it came about. `singles` and `fusion` are of `queries` held-out photos; `apart` is the MAP@5
    of fusions on photos that they were not fitted on; `tried` are the weights that might have served, `served` that do.
    """

    report: Report
    members: tuple[str, ...]
    queries: int
    fusion: Fusion
    linear: Fusion
    apart: float
    tried: tuple[Served, ...]
    served: Served


def assemble(
    store: Store, members: Sequence[str], name: str, progress: Progress = quiet, *, seed: int = 0
) -> Candidate:
    """As `assembled`, for whoever adopts it."""
    return assembled(store, members, name, progress, seed=seed)[1]


def assembled(
    store: Store, members: Sequence[str], name: str, progress: Progress = quiet, *, seed: int = 0
) -> tuple[Assembled, Candidate]:
    """Make models of the store into one below `models/`, with fitted weights, and measure it; nothing else changes.

    Raises:
        InputError: fewer than two models. ModelError: one of them is not there.
        TrainError: too few held-out photos that no member was trained on.
    """
    if len(set(members)) < 2 or len(set(members)) < len(members):
        raise InputError(
            f"an ensemble takes two different models or more, not {', '.join(members) or 'none'}",
            next_step="`reid models list` shows what there is",
        )
    for one in members:
        if one.endswith(f"/{witness.FOLDER}"):
            whole = one.removesuffix(f"/{witness.FOLDER}")
            raise InputError(f"{one} speaks for {whole}, and serves by it", next_step=f"name {whole}")
    paths = [models.ensure(store.models_folder, one) for one in members]
    pool = pool_of(store, progress=progress)
    speaking = [store.models_folder / witness.of(store, one) for one in members]
    wholes = [witness.of(store, one.partition("/")[0]) for one in members]
    trained_on = np.unique(np.concatenate([withheld.trained_on_by(store, one) for one in wholes]))
    run = runs.begin(store.root / TRAINING, name, "ensemble", {"members": list(members), "seed": seed})
    with runs.recorded(run, then=runs.ANEW):
        opened = ensemble.joined(speaking, threads=store.config.embedder.threads)
        rows, there, failures = embedded(store, opened, pool.labels, progress)
        parts = ensemble.blocks(rows, [models.read_card(path).dim for path in speaking])
        queries = _queries(store, pool, there, trained_on)
        matrices, truth = _matrices(store, pool, parts, queries)
        fusion = ensembles.fit_fusion(matrices, truth)
        linear = ensembles.fit_fusion(matrices, truth, alphas=(1.0,))
        tried = _tried(store, pool, parts, there, queries, fusion, linear)
        served = max(tried, key=lambda one: one.map_at_5)
        record = {"queries": fusion.queries, "served_map_at_5": served.map_at_5, **asdict(fusion)}
        model = ensemble.write(
            store.models_folder, run.name, paths, served.weights, {"fusion": record},
            speaking=speaking if speaking != paths else (), shares=served.shares,
        )  # fmt: skip
        joined = ensemble.joined_rows(parts, served.weights)
        verdict = judge(store, pool, joined, int((~there).sum()), trained_on=trained_on)
        learnt = np.unique(np.concatenate([withheld.trained_on_by(store, one.partition("/")[0]) for one in members]))
        report = Report(
            run.name, "ensemble", f"an ensemble of {len(members)}", str(run.folder), models.read_card(model).source,
            store.embedder.card.name, len(pool.chosen), len(set(pool.names)), verdict,
            failures=tuple(failures), next_step=advice(verdict, run.name),
            refitted=len(learnt) if speaking != paths else 0, by_witness=bool(witness.present(store)),
        )  # fmt: skip
        apart = ensembles.fit_apart(matrices, truth, seed=seed)
        done = Assembled(report, tuple(members), fusion.queries, fusion, linear, apart, tried, served)
        run.write_json(TRAINED_ON, {"annotations": learnt.tolist()})
        run.write_json(runs.METRICS, asdict(done))
        for line in lines(done):
            run.log(line)
    return done, Candidate(report, model, pool.labels.annotations[there], joined[there])


def lines(done: Assembled) -> list[str]:
    """What came of it, in words."""
    alone = ", ".join(f"{one} {value:.3f}" for one, value in zip(done.members, done.fusion.singles, strict=True))
    return [
        f"{done.queries} held-out photos that no member was trained on; MAP@5 of each by itself: {alone}",
        f"Σ w·P^α: {_weighted(done, done.fusion.weights)}, α = {done.fusion.alpha:g}: {done.fusion.map_at_5:.3f} "
        f"({done.apart:.3f} on photos apart from those it was fitted on)",
        f"as it serves, once it is named: {done.served.name}: {_weighted(done, done.served.shares)}, α = 1, {done.served.map_at_5:.3f}",
    ]


def _weighted(done: Assembled, weights: Sequence[float]) -> str:
    return " + ".join(f"{weight:.2f} {one}" for one, weight in zip(done.members, weights, strict=True))


def _queries(store: Store, pool: Pool, there: NDArray[np.bool_], trained_on: IntArray) -> IntArray:
    """Held-out photos of known animals that all members could read and none was trained on."""
    unseen = ~np.isin(pool.labels.annotations[pool.judges], trained_on)
    queries = pool.judges[unseen & there[pool.judges]]
    if len(queries) < LEAST_JUDGES:
        raise TrainError(
            f"{len(queries)} held-out photos of known animals that no member was trained on, {LEAST_JUDGES} are needed "
            "to weigh the models",
            source=str(store.root),
            next_step="enrol photos of second sightings",
        )
    return queries


def _matrices(
    store: Store, pool: Pool, parts: Sequence[Vectors], queries: IntArray
) -> tuple[list[NDArray[np.float32]], IntArray]:
    """Each member's scores `(Q, I)`, whitened fully by its own gallery (the store's fit may choose a lesser share), and the
    truth's column.
    """
    groups = withheld.sightings_of(store.catalogue, pool.labels)
    rest = np.setdiff1d(np.arange(len(groups)), pool.played)
    codes = pool.labels.individuals
    matrices, known = [], np.empty(0, np.int64)
    for part in parts:
        found = None
        if len(codes) >= whiten.LEAST_PHOTOS:
            found = whiten.fit(part[rest], codes[rest], least=2, dimensions=withheld.numbers_kept(store, part))
        rows = part if found is None else found.apply(part)
        scores, known = folds.identity_scores(rows, queries, rest, codes, groups)
        matrices.append(scores)
    place = np.minimum(np.searchsorted(known, codes[queries]), len(known) - 1)
    return matrices, np.where(known[place] == codes[queries], place, -1).astype(np.int64)


def _tried(
    store: Store, pool: Pool, parts: Sequence[Vectors], there: NDArray[np.bool_], queries: IntArray,
    fusion: Fusion, linear: Fusion,
) -> tuple[Served, ...]:  # fmt: skip
    """Shares that might serve, equal ones first, each by the answers that the store would give. Photos that are not
    `there` have no vectors to be balanced by.
    """
    n = len(parts)
    choices: dict[str, tuple[float, ...]] = {"equal shares": (1 / n,) * n}
    for called, shares in (("shares fitted at α = 1", linear.weights), ("shares of the fusion", fusion.weights)):
        if all(shares) and shares not in choices.values():  # else a member would have no voice
            choices[called] = shares
    served = []
    for called, shares in choices.items():
        weights = balanced([part[there] for part in parts], shares)
        found = _answered(store, pool, ensemble.joined_rows(parts, weights), queries)
        served.append(Served(called, shares, weights, found))
    return tuple(served)


def balanced(parts: Sequence[Vectors], shares: Sequence[float]) -> tuple[float, ...]:
    """Weights of the members' cosines, of sum 1, by which each has its share of how these differ: `shares` over the mean
    squared distance of a member's unit rows `(N, D)` from their mean.
    """
    spread = [max(1 - float(np.square(part.mean(0, dtype=np.float64)).sum()), 1e-6) for part in parts]
    raw = np.asarray(shares, np.float64) / spread
    return tuple((raw / raw.sum()).tolist())


def _answered(store: Store, pool: Pool, rows: Vectors, queries: IntArray) -> float:
    """MAP@5 of the store's own answers to these photos, with these vectors whitened fully."""
    whitened = len(rows) >= whiten.LEAST_PHOTOS
    alone = local.description(store) is None  # then prototypes speak in answers, too
    cases = withheld.left_out(store, pool.labels, unit_rows(rows), pool.played, whitened=whitened, prototypes=alone)
    usable = cases.known_case & np.isin(pool.played, queries)
    return float(reciprocal_ranks(cases.truth_rank[usable]).mean()) if usable.any() else float("nan")
