"""What each source adds: the same queries answered with more and more of what the engine knows of a pair.

Two tables are enrolled and asked by the production path, once. Then the sources are added one by one: for each set the
fusion is fitted anew on the gallery's left-out photos, as the engine does (what is not in the set is hidden from the
trees), the threshold of the new individual is placed on the same photos, and the queries' candidates are ranked again.
Milliseconds a query are what the source itself takes, beyond those before it. `--store` keeps the store, or uses one
that is there. Prints one JSON object last; brackets are 95 % bootstrap intervals over animals.
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
from reid.fusion import Fusion
from reid.index import LocalIndex
from reid.intervals import bootstrap_interval
from reid.leaving_out import LeftOut
from reid.pipeline import Identifier, Query
from reid.records import Sighting
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
}


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """The queries as the engine found them, and whose they are: codes of the gallery's animals, −1 new."""

    found: Sequence[Found]
    truth: NDArray[np.int64]
    animals: NDArray[np.str_]
    code: Callable[[str], int]


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
    """A row for each step."""
    spent: dict[str, float] = {}
    with (
        timed(LocalIndex, "search", spent, "+ votes"),
        timed(shortlist, "verified", spent, "+ geometry"),
        timed(shortlist, "ranked", spent, "+ validator"),
    ):
        asked, seconds = ask(store, sightings)
    spent["embedding"] = seconds - sum(spent.values())
    labels, vectors = withheld.gathered(store.catalogue, store.fingerprint)
    kept = fit.read(store, store.gallery().fingerprint)
    source = withheld.local_of(store, labels)
    if kept is None or source is None:
        raise SystemExit("the store has no fit, or does without local features")
    groups = withheld.sightings_of(store.catalogue, labels)
    whitened = store.whitening(store.gallery()) is not None
    gallery, left_out = withheld.ask_left_out(
        store, labels, vectors, groups, source, whitened=whitened, sides=kept.sides, progress=lambda *_: None
    )
    method = store.config.decision.aggregate
    rows: dict[str, Any] = {}
    names: tuple[str, ...] = ()
    for step, more in STEPS.items():
        if not more:
            continue
        names += more
        hidden = [i for i, name in enumerate(fusion.NAMES) if name not in names]
        shown = [
            replace(one, known=without(one.known, hidden), unknown=without(one.unknown, hidden)) for one in left_out
        ]
        if step == "embedding":
            made = measure.fused(gallery, shown, fusion.EMBEDDING, method)
        else:
            trees = measure.fitted(gallery, shown, method)
            if trees is None:
                raise SystemExit("too few left-out photos to fit trees on")
            made = trees
        rows[step] = judged(store, asked, made.fusion, made.cases, hidden, method)
        rows[step]["ms"] = round(1000 * spent.get(step, 0.0) / len(sightings), 1)
    return {"rows": rows, "left_out": len(left_out), "opposite_flanks": kept.sides}


def ask(store: Store, sightings: Sequence[Sighting]) -> tuple[Asked, float]:
    """The queries' candidates by the production path, and its seconds less those of reading photos."""
    identifier = Identifier.open(store, k=6)
    found: dict[int, Found] = {}

    def observe(positions: list[int], vectors: NDArray[np.float32], each: Sequence[Found]) -> None:
        found.update(zip(positions, each, strict=True))

    answers = identifier.answers([Query((s,)) for s in sightings], observe=observe)
    seconds = sum(a.seconds.get("embed", 0.0) + a.seconds.get("search", 0.0) for a in answers)
    labels = store.catalogue.labels()
    code = {name: number for number, name in labels.names.items() if number >= 0}
    rows = sorted(found)
    truth = np.array([code.get(sightings[i].identity or "", -1) for i in rows], np.int64)
    animals = np.array([sightings[i].identity or f"unnamed {i}" for i in rows])
    return Asked([found[i] for i in rows], truth, animals, identifier.search.code), seconds


def without(features: NDArray[np.float32], hidden: Sequence[int]) -> NDArray[np.float32]:
    """Rows with some columns as if they had not been measured."""
    out = features.copy()
    out[:, hidden] = np.nan
    return out


def judged(
    store: Store, asked: Asked, fused: Fusion, cases: LeftOut, hidden: Sequence[int], method: str
) -> dict[str, Any]:
    """The measures of one way to score."""
    settings = store.config.decision
    threshold = thresholds.choose_threshold(cases, objective=settings.objective, new_share=settings.share_new).value
    closed, open_, best, called_new = [], [], [], []
    for found, truth in zip(asked.found, asked.truth.tolist(), strict=True):
        listed = found.shortlist
        assert listed is not None  # or there were no local features to take away
        scores = fused.scores(without(listed.features, hidden))
        ranking = aggregate.identity_scores(scores, [asked.code(id) for id in listed.ids], method)
        place = decide.place_of_new(ranking.scores[:5], threshold)
        at = np.flatnonzero(ranking.codes == truth)
        rank = int(at[0]) + 1 if truth >= 0 and len(at) else 0
        closed.append(rank)
        open_.append(place + 1 if truth < 0 else rank + (rank > place) if rank else 0)
        best.append(ranking.scores[0] if len(ranking.scores) else -np.inf)
        called_new.append(place == 0)
    known = asked.truth >= 0
    new = np.array(called_new, float)[~known]
    right = (np.array(open_)[known] == 1).astype(float)
    worth = metrics.reciprocal_ranks(np.array(closed)[known], 5)
    first = (np.array(closed)[known] == 1).astype(float)
    return {
        "top1": measured(first, asked.animals[known]),
        "map_at_5_known": measured(worth, asked.animals[known]),
        "map_at_5": measured(metrics.reciprocal_ranks(np.array(open_), 5), asked.animals),
        "geometric": round(float(np.sqrt(right.mean() * new.mean())), 3) if len(new) else None,
        "auroc_known": round(metrics.auroc(np.array(best), known), 3) if len(new) else None,
    }


def measured(values: NDArray[np.float64], animals: NDArray[np.str_]) -> list[float]:
    """Mean, and the ends of its interval."""
    found = bootstrap_interval(values, animals)
    return [round(found.value, 3), round(found.low, 3), round(found.high, 3)]


@contextmanager
def timed(owner: Any, name: str, spent: dict[str, float], step: str) -> Any:
    """Add up what a function takes."""
    plain = getattr(owner, name)

    def clocked(*given: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return plain(*given, **named)
        finally:
            spent[step] = spent.get(step, 0.0) + time.perf_counter() - start

    setattr(owner, name, clocked)
    try:
        yield
    finally:
        setattr(owner, name, plain)


if __name__ == "__main__":
    main()
