"""What each source adds, and what each is by itself: the same queries answered with more and more of what the engine
knows of a pair.

Two tables are enrolled and asked by the production path, once, query by query. Then the sources are added one by one:
for each set the fusion is fitted anew on the gallery's left-out photos, as the engine does (what is not in the set is
hidden from the trees), the threshold of the new individual is placed on the same photos, and the queries' candidates are
ranked again. Rows `… alone` rank by one source, `as served` by the fusion that the store's own fit chose; `+ calibration`
is the answers as given, P(known) in force or not: calibration error of the bare score (`ece_score`) and of the first
label's P (`ece`), and what promised rates of false matches come to. `fusion_over_best_single` is `as served` less the
best source alone, query by query.

Milliseconds a query are what the source itself takes, beyond those before it. `--store` keeps the store, or uses one
that is there. Prints one JSON object last; brackets are 95 % bootstrap intervals over animals, of milliseconds over
queries.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid import aggregate, decide, enrol, fit, fusion, measure, metrics, shortlist, thresholds, withheld
from reid.agreement import FEATURE_NAMES
from reid.exchange import read_sources
from reid.index import LocalIndex
from reid.intervals import Interval, bootstrap_interval
from reid.kept import kept
from reid.leaving_out import LeftOut
from reid.pipeline import Identifier, Query
from reid.records import Answer, Sighting
from reid.rescore import Heads
from reid.risk import Cases
from reid.search import Found
from reid.store import Store

VOTES = ("log_votes", "log_votes_behind_best", "votes_share", "log_query_keypoints")
INLIERS = ("log_weight", "log_weight_behind_best", "log_inliers")
COSINES = ("cosine", "cosine_behind_best", "cosine_standing")
STEPS: dict[str, tuple[str, ...]] = {
    "embedding": COSINES,
    "+ votes": VOTES,
    "+ geometry": INLIERS,
    "+ validator": FEATURE_NAMES,
    "+ others": tuple(name for name in fusion.NAMES if name not in (*COSINES, *VOTES, *INLIERS, *FEATURE_NAMES)),
    "+ siamese": fusion.SIAMESE_NAMES,  # where the store has a head
}
ALONE = {"embedder": "cosine", "votes": "log_votes", "geometry": "log_weight", "siamese": "siamese"}
RATES = (0.01, 0.05, 0.1, 0.2)  # of false matches, promised and counted
Scorer = Callable[[NDArray[np.float32]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Alone:
    """One column as the only source; where it says nothing, the least it says of anybody."""

    column: str

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """`(C, F) → (C,)`, as `Fusion.scores`."""
        values = np.asarray(features[:, fusion.WIDE_NAMES.index(self.column)], np.float64)
        there = np.isfinite(values)
        return np.where(there, values, values[there].min() if there.any() else 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """The queries as the engine found them, and whose they are: codes of the gallery's animals, −1 new."""

    found: Sequence[Found]
    truth: NDArray[np.int64]
    animals: NDArray[np.str_]
    code: Callable[[str], int]
    answers: Sequence[Answer]
    names: NDArray[np.str_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--store", type=Path, help="where the store is, or is to stay")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.store or Path(folder) / "store"
        with Store.open(root) if root.exists() else Store.create(root) as store:
            enrol.enrol(store, read_sources([options.gallery], keep_boxless=True).sightings, who="bench")
            sightings = read_sources([options.queries], keep_boxless=True).sightings
            result = ablation(store, sightings)
    print(json.dumps(result | {"gallery": str(options.gallery), "queries": len(sightings)}))


def ablation(store: Store, sightings: Sequence[Sighting]) -> dict[str, Any]:
    """A row for each step, and for each source alone."""
    spent: dict[str, list[float]] = {}
    with (
        timed(LocalIndex, "search", spent, "+ votes"),
        timed(shortlist, "verified", spent, "+ geometry"),
        timed(shortlist, "ranked", spent, "+ validator"),
        timed(Heads, "scores", spent, "+ siamese"),
    ):
        asked, seconds = ask(store, sightings)
    rest = sum(sum(times) for times in spent.values()) / max(1, len(seconds))
    spent["embedding"] = [max(0.0, one - rest) for one in seconds]
    labels, vectors, _ = withheld.spoken_for(store)
    fitted = fit.read(store, store.gallery().fingerprint)
    source = withheld.local_of(store, labels)
    if fitted is None or source is None:
        raise SystemExit("the store has no fit, or does without local features")
    groups = withheld.sightings_of(store.catalogue, labels)
    whitened = fitted.whitened if store.whitening(store.gallery()) is not None else 0.0
    gallery, left_out, further = withheld.ask_left_out(
        store, labels, vectors, groups, source, whitened=whitened, sides=fitted.sides, progress=lambda *_: None
    )
    method = store.config.decision.aggregate
    judgements: dict[str, Judged] = {}
    names: tuple[str, ...] = ()
    head = bool(left_out) and left_out[0].known.shape[1] > len(fusion.NAMES)
    for step, more in STEPS.items():
        if not more or (step == "+ siamese" and not head):
            continue
        names += more
        hidden = [i for i, name in enumerate(fusion.WIDE_NAMES) if name not in names]
        shown = [
            replace(one, known=without(one.known, hidden), unknown=without(one.unknown, hidden)) for one in left_out
        ]
        if step == "embedding":
            made = measure.fused(gallery, shown, fusion.EMBEDDING, method)
        else:
            others = [
                replace(one, known=without(one.known, hidden), unknown=without(one.unknown, hidden)) for one in further
            ]
            trees = measure.fitted(gallery, shown, method, further=others)
            if trees is None:
                raise SystemExit("too few left-out photos to fit trees on")
            made = trees
        judgements[step] = judged(store, asked, made.fusion.scores, placed(store, made.cases), hidden, method)
    for name, column in ALONE.items():
        if name != "siamese" or head:
            cases = measure.fused(gallery, left_out, Alone(column), method).cases  # type: ignore[arg-type]
            judgements[f"{name} alone"] = judged(store, asked, Alone(column).scores, placed(store, cases), [], method)
    at = fitted.known_record["threshold_before"] if fitted.known else fitted.threshold
    served = judgements["as served"] = judged(store, asked, fitted.fusion.scores, at, [], method)
    rows = {name: one.row(asked) | milliseconds(spent.get(name, [])) for name, one in judgements.items()}
    rows["+ calibration"] = as_answered(asked).row(asked) | calibrated(store, fitted, served, asked)
    return {
        "rows": rows,
        "fusion_over_best_single": over_best_single(judgements, asked),
        "served_by": fitted.fusion.kind,
        "left_out": len(left_out),
        "opposite_flanks": fitted.sides,
    }


def placed(store: Store, cases: LeftOut) -> float:
    """The threshold of the new individual."""
    settings = store.config.decision
    return thresholds.choose_threshold(cases, objective=settings.objective, new_share=settings.share_new, n=0).value


def over_best_single(judgements: dict[str, Judged], asked: Asked) -> dict[str, Any]:
    """What the fusion in force gives beyond the best source alone, by MAP@5 of known animals, with paired intervals."""
    known = asked.truth >= 0
    worths = {name: one.worth for name, one in judgements.items() if name.endswith(" alone")}
    best = max(worths, key=lambda name: float(worths[name].mean()))
    served, animals = judgements["as served"], asked.animals[known]
    gain = bootstrap_interval(served.worth - worths[best], animals)
    top = bootstrap_interval(served.first - judgements[best].first, animals)
    return {
        "best_single": best,
        "measure": "map_at_5_known",
        **{name: round(getattr(gain, name), 4) for name in ("value", "low", "high")},
        "top1": {name: round(getattr(top, name), 4) for name in ("value", "low", "high")},
    }


def as_answered(asked: Asked) -> Judged:
    """The queries as they were answered."""
    known = asked.truth >= 0
    labels = [answer.labels for answer in asked.answers]
    closed = metrics.ranks_of_truth(
        [[x.label for x in one if not x.is_new][:5] for one in labels], asked.names.tolist()
    )
    opened = metrics.ranks_of_truth(
        [["" if x.is_new else x.label for x in one[:5]] for one in labels],
        np.where(known, asked.names, "").tolist(),
    )
    return Judged(
        np.array([first_score(one) for one in asked.answers]),
        np.array([bool(one) and one[0].is_new for one in labels], float),
        metrics.reciprocal_ranks(closed[known], 5),
        (closed[known] == 1).astype(float),
        metrics.reciprocal_ranks(opened, 5),
        (opened[known] == 1).astype(float),
    )


def first_score(answer: Answer) -> float:
    """Of the first animal; −∞ without one."""
    return max((label.score for label in answer.labels if not label.is_new), default=-np.inf)


def calibrated(store: Store, fitted: fit.Fit, served: Judged, asked: Asked) -> dict[str, Any]:
    """Calibration error of the first animal's score and of the first label's P, and what promised rates come to."""
    known = asked.truth >= 0
    right = np.zeros(len(known), np.bool_)
    right[known] = served.first > 0
    usable = np.isfinite(served.best)
    out = {"ece_score": calibration_error(np.clip(served.best, 0, 1), right, asked.animals, usable)}
    chances = [one.labels[0].probability if one.labels else None for one in asked.answers]
    said = np.array([
        bool(one.labels) and (not there if one.labels[0].is_new else one.labels[0].label == name)
        for one, there, name in zip(asked.answers, known.tolist(), asked.names.tolist(), strict=True)
    ])  # fmt: skip
    some = np.array([chance is not None for chance in chances])
    if some.any():
        filled = np.array([chance or 0.0 for chance in chances])
        out["ece"] = calibration_error(filled, said, asked.animals, some)
    best = np.array([first_score(one) for one in asked.answers])
    there = np.flatnonzero(known & np.isfinite(best))
    first = [next((x.label for x in asked.answers[i].labels if not x.is_new), "") for i in there.tolist()]
    counted = Cases(
        best[there], np.array(first) != asked.names[there], asked.truth[there],
        best[~known & np.isfinite(best)], -1 - np.arange(int((~known & np.isfinite(best)).sum())),
    )  # fmt: skip
    share = store.config.decision.share_new
    cases = Cases.from_dict(fitted.cases)
    return out | {"promised": [kept(cases, counted, rate, share).to_json() for rate in RATES]}


def calibration_error(
    chances: NDArray[np.float64], right: NDArray[np.bool_], animals: NDArray[np.str_], some: NDArray[np.bool_]
) -> list[float]:
    """With its interval, of those that are usable."""
    rows = np.stack([chances[some], right[some].astype(np.float64)], axis=1)
    return interval(
        bootstrap_interval(
            rows, animals[some], lambda d: metrics.expected_calibration_error(d[:, 0], d[:, 1] > 0), n=300
        )
    )


def ask(store: Store, sightings: Sequence[Sighting]) -> tuple[Asked, list[float]]:
    """The queries' candidates by the production path, and the seconds of each less those of reading photos."""
    identifier = Identifier.open(store, k=6)
    found: dict[int, Found] = {}
    given: dict[int, Answer] = {}
    seconds = []
    for number, sighting in enumerate(sightings):

        def observe(rows: list[int], vectors: Any, each: Sequence[Found], number: int = number) -> None:
            if each:  # nothing where the photo cannot be used: it counts for nothing
                found[number] = each[0]

        (answer,) = identifier.answers([Query((sighting,))], observe=observe)
        given[number] = answer
        seconds.append(answer.seconds.get("embed", 0.0) + answer.seconds.get("search", 0.0))
    labels = store.catalogue.labels()
    code = {name: number for number, name in labels.names.items() if number >= 0}
    rows = sorted(found)
    truth = np.array([code.get(sightings[i].identity or "", -1) for i in rows], np.int64)
    animals = np.array([sightings[i].identity or f"unnamed {i}" for i in rows])
    names = np.array([sightings[i].identity or "" for i in rows])
    return Asked(
        [found[i] for i in rows], truth, animals, identifier.search.code, [given[i] for i in rows], names
    ), seconds


def without(features: NDArray[np.float32], hidden: Sequence[int]) -> NDArray[np.float32]:
    """Rows with some columns as if they had not been measured."""
    out = features.copy()
    out[:, [column for column in hidden if column < out.shape[1]]] = np.nan
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The queries by one way to score: `best` score and whether `called_new`, all (Q,); of the known ones what they earn
    under MAP@5 (`worth`) and whether the `first` is right, both with known animals alone; `open_worth` (Q,) and
    `right_open` as answers are given.
    """

    best: NDArray[np.float64]
    called_new: NDArray[np.float64]
    worth: NDArray[np.float64]
    first: NDArray[np.float64]
    open_worth: NDArray[np.float64]
    right_open: NDArray[np.float64]

    def row(self, asked: Asked) -> dict[str, Any]:
        """The measures."""
        known = asked.truth >= 0
        new = self.called_new[~known]
        return {
            "top1": measured(self.first, asked.animals[known]),
            "map_at_5_known": measured(self.worth, asked.animals[known]),
            "map_at_5": measured(self.open_worth, asked.animals),
            "geometric": round(float(np.sqrt(self.right_open.mean() * new.mean())), 3) if len(new) else None,
            "auroc_known": self.auroc(asked) if len(new) else None,
        }

    def auroc(self, asked: Asked) -> list[float]:
        """How often a known animal scores above a new one, with its interval."""
        rows = np.stack([self.best, (asked.truth >= 0).astype(np.float64)], axis=1)
        return interval(
            bootstrap_interval(rows, asked.animals, lambda d: float(metrics.auroc(d[:, 0], d[:, 1] > 0)), n=300)
        )


def judged(store: Store, asked: Asked, score: Scorer, threshold: float, hidden: Sequence[int], method: str) -> Judged:
    """The queries' candidates ranked again."""
    closed, open_, best, called_new = [], [], [], []
    for found, truth in zip(asked.found, asked.truth.tolist(), strict=True):
        listed = found.shortlist
        if listed is None:
            raise SystemExit("the store's fit asks the embedder alone: there is nothing to take away")
        scores = score(without(listed.features, hidden))
        ranking = aggregate.identity_scores(scores, [asked.code(id) for id in listed.ids], method)
        place = decide.place_of_new(ranking.scores[:5], threshold)
        at = np.flatnonzero(ranking.codes == truth)
        rank = int(at[0]) + 1 if truth >= 0 and len(at) else 0
        closed.append(rank)
        open_.append(place + 1 if truth < 0 else rank + (rank > place) if rank else 0)
        best.append(ranking.scores[0] if len(ranking.scores) else -np.inf)
        called_new.append(place == 0)
    known = asked.truth >= 0
    ranks, opened = np.array(closed)[known], np.array(open_)
    return Judged(
        np.array(best),
        np.array(called_new, float),
        metrics.reciprocal_ranks(ranks, 5),
        (ranks == 1).astype(float),
        metrics.reciprocal_ranks(opened, 5),
        (opened[known] == 1).astype(float),
    )


def measured(values: NDArray[np.float64], animals: NDArray[np.str_]) -> list[float]:
    """Mean, and the ends of its interval."""
    return interval(bootstrap_interval(values, animals))


def interval(found: Interval) -> list[float]:
    return [round(found.value, 3), round(found.low, 3), round(found.high, 3)]


def milliseconds(times: Sequence[float]) -> dict[str, Any]:
    """Mean of what each query took, and the ends of its interval."""
    return {"ms": measured(1000 * np.array(times), np.arange(len(times)).astype(str))} if times else {}


@contextmanager
def timed(owner: Any, name: str, spent: dict[str, list[float]], step: str) -> Any:
    """Note what each call of a function takes."""
    plain = getattr(owner, name)

    def clocked(*given: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return plain(*given, **named)
        finally:
            spent.setdefault(step, []).append(time.perf_counter() - start)

    setattr(owner, name, clocked)
    try:
        yield
    finally:
        setattr(owner, name, plain)


if __name__ == "__main__":
    main()
