"""Where the weights for stores too small to measure their own come from (`reid.fusion.PRIOR`).

Rendered fluke catalogues of several sizes are enrolled by the default model; left-out photos are asked with local
features and geometry (`reid.measure`), and a logistic regression of "same animal" is fitted on three columns. Prints
the weights, the probability that nine in ten left-out animals stay below, and what share of the known ones comes first,
as one JSON object last. Rendered photos only: real ones judge the result (`reid evaluate`), they do not make it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid import enrol, fusion, measure, synth, withheld
from reid.crowding import Crowding
from reid.embed import unit_rows
from reid.exchange import read_sources
from reid.store import Store

COLUMNS = ("cosine_standing", "log_votes", "log_weight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whales", default="15,30,60,120", help="catalogue sizes, separated by commas")
    parser.add_argument("--seed", type=int, default=100)
    options = parser.parse_args()
    known, unknown, answers = [], [], []
    for i, whales in enumerate(int(n) for n in options.whales.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            gallery, asked = asked_of(Path(folder), whales, options.seed + i)
        answers.append((gallery, asked))
        known += [block(gallery, one.row, one.rows, one.known) for one in asked]
        unknown += [block(gallery, one.row, one.others, one.unknown) for one in asked]
    x = np.concatenate([features for features, _ in known + unknown])
    y = np.concatenate([same for _, same in known + unknown])
    weights = logistic(x[:, [fusion.NAMES.index(name) for name in COLUMNS]].astype(np.float64), y)
    fusion.PRIOR = tuple(weights)  # type: ignore[assignment]
    best = np.concatenate([[fusion.prior(features).max()] for features, _ in unknown if len(features)])
    parts = [measure.fused(gallery, asked, fusion.PRIOR_FUSION, "max") for gallery, asked in answers]
    result = {
        "prior": [round(float(w), 3) for w in weights],
        "columns": COLUMNS,
        "threshold": round(float(np.quantile(best, 0.9)), 3),
        "map_at_5": [round(part.map_at_5, 3) for part in parts],
        "pairs": len(y),
        "same": int(y.sum()),
        "queries": sum(len(asked) for _, asked in answers),
    }
    print(json.dumps(result))


def asked_of(folder: Path, whales: int, seed: int) -> tuple[measure.Gallery, list[measure.Asked]]:
    """One rendered catalogue's left-out photos, asked."""
    table = synth.write_dataset(folder, whales, seed=seed)
    with Store.create(folder / "store") as store:
        enrol.enrol(store, read_sources([table]).sightings, who="bench")
        labels, vectors = withheld.gathered(store.catalogue, store.fingerprint)
        groups = withheld.sightings_of(store.catalogue, labels)
        queries = withheld.chosen_queries(labels.individuals, groups)
        gallery = measure.Gallery(
            tuple(map(str, labels.annotations.tolist())),
            unit_rows(vectors),
            labels.individuals,
            groups,
            Crowding.none(len(groups)),  # these weights serve where nothing was measured, crowding neither
        )
        local = withheld.local_of(store, labels)
        assert local is not None
        return gallery, measure.ask(
            gallery, queries, lambda row: frozenset(), local, neighbours=200, progress=lambda *_: None
        )


def block(
    gallery: measure.Gallery, row: int, rows: NDArray[np.int64], features: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    return features, gallery.individuals[rows] == gallery.individuals[row]


def logistic(x: NDArray[np.float64], y: NDArray[np.bool_], steps: int = 50, l2: float = 1.0) -> NDArray[np.float64]:
    """Newton's method; intercept first."""
    design = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    w = np.zeros(design.shape[1])
    penalty = l2 * np.diag([0.0, *np.ones(x.shape[1])])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-design @ w))
        gradient = design.T @ (p - y) + penalty @ w
        w -= np.linalg.solve(design.T @ (design * (p * (1 - p) + 1e-9)[:, None]) + penalty, gradient)
    return w


if __name__ == "__main__":
    main()
