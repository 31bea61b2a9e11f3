"""Linear assignment of hard negatives: exact at 13,623 photos, sparse at 100,000, and what the sparse one keeps.

Scores are cosines of a real model on real photos, the flukes beside the checkout (`../shared/data/flukes`): the default
network at 64×128 pixels of each photo's box, six views each (one plain, five augmented), upright and mirrored, whitened
to 128 numbers. As usual in this field a mirrored photo counts as another animal.

* exact: plain views of the photos of animals with two photos or more, upright and mirrored, the first 13,623. A photo
and
  its own mirror image, nearly equal vectors, are forbidden: otherwise most of the assignment is obvious and too easy.
* sparse: 100,000 of all the views; the 30 nearest of each from an exact scan of the gallery index, which is timed apart
  (`neighbours_s`), since a catalogue has that index anyway.
* `sparse_over_exact`: mean score of the sparse assignment over that of the exact one, at 8,000 photos (random, as
  under exact). Blocks of 2,000 and 500 are there for comparison.

Each measurement runs in a fresh process; peak memory is that of the process, Python and the score matrix included.
Prints one JSON object last. Vectors are kept in `.bench` between runs; embedding them takes minutes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# Python looks beside a script first, and this file would stand in for the library of its name.
sys.path[:] = [one for one in sys.path if Path(one or ".").resolve() != Path(__file__).resolve().parent]
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data" / "flukes"
VIEWS, DIM, NEAR = 6, 128, 30
SIZES = {"exact": 13_623, "sparse": 100_000, "kept": 8_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--keep", type=Path, default=ROOT / ".bench" / "lap", help="where vectors are kept between runs"
    )
    parser.add_argument("--only", choices=sorted(SIZES), help="one measurement alone")
    parser.add_argument("--measure", choices=sorted(SIZES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure](options.keep)))
        return
    result: dict[str, Any] = {"cpu_count": os.cpu_count(), "vectors": prepare(options.keep)}
    for name in [options.only] if options.only else list(SIZES):
        command = [sys.executable, __file__, "--measure", name, "--keep", str(options.keep)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result |= json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(result))


def prepare(keep: Path) -> str:
    """Embed the photos where that has not been done yet; says what the vectors are."""
    if (keep / "vectors.npy").is_file():
        return (keep / "what.txt").read_text()
    from reid import embed, models
    from reid.embed import unit_rows
    from reid.train import features, graphs, heads

    rows = [row for row in csv.DictReader((SHARED / "labels.csv").open()) if row["identity"] != "new_whale"]
    folder = models.write_default(keep / "models", name="small", height=64, width=128)
    embedder = embed.OpenVinoEmbedder(folder)

    def tell(done: int, of: int) -> None:
        if done % 512 < 32:
            print(f"{done} of {of} photos embedded", file=sys.stderr)

    kept = features.cached([source(row) for row in rows], embedder, keep / "features", views=VIEWS, progress=tell)
    layer = heads.whitening(kept.vectors[:, 0, 0].astype(np.float32), DIM)
    labels = np.array([rows[i]["identity"] for i in kept.rows])
    vectors = np.empty((len(labels), VIEWS, 2, DIM), np.float32)
    for view in range(VIEWS):
        for mirrored in range(2):
            vectors[:, view, mirrored] = unit_rows(graphs.apply_layers(kept.vectors[:, view, mirrored], [layer]))
    np.save(keep / "labels.npy", labels)
    what = f"{len(labels)} flukes, {VIEWS} views, upright and mirrored; {embedder.card.name} {embedder.card.pooling} 64x128, whitened to {DIM}"
    (keep / "what.txt").write_text(what)
    np.save(keep / "vectors.npy", vectors)
    return what


def source(row: dict[str, str]) -> Any:
    from reid.records import Box
    from reid.train.features import Source

    width, height = int(row["original_width"]), int(row["original_height"])
    x, y, w, h = json.loads(row["bbox"]) if row["bbox"] else (0, 0, width, height)
    return Source(SHARED / row["path"], Box(x, y, x + w, y + h), width, height)


def plain(keep: Path, n: int) -> tuple[Any, Any, Any]:
    """Vectors, labels and forbidden pairs of `n` photos, half of them mirrored, of animals with two photos or more."""
    vectors, names = np.load(keep / "vectors.npy", mmap_mode="r"), np.load(keep / "labels.npy")
    codes = np.unique(names, return_inverse=True)[1]
    several = np.flatnonzero(np.bincount(codes)[codes] >= 2)
    half = -(-n // 2)
    chosen = several if len(several) < half else np.random.default_rng(0).permutation(several)[:half]
    both = np.concatenate([vectors[chosen, 0, 0], vectors[chosen, 0, 1]])[:n]
    labels = np.concatenate([codes[chosen], codes[chosen] + codes.max() + 1])[:n]
    first = np.arange(len(chosen))
    own = np.stack([first, first + len(chosen)], axis=1)
    return both, labels, own[own[:, 1] < n]


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_exact(keep: Path) -> dict[str, Any]:
    from reid.train import mining

    vectors, labels, own = plain(keep, SIZES["exact"])
    scores = vectors @ vectors.T
    result: dict[str, Any] = {"exact_n": len(labels)}
    for key, noise in (("exact_s", 0.0), ("exact_noise_1_s", 1.0)):
        started = time.perf_counter()
        partner = mining.assign_hard_negatives(scores, labels, noise=noise, forbidden=own, rng=np.random.default_rng(0))
        result[key] = round(time.perf_counter() - started, 2)
        result[key.replace("_s", "_score")] = mean_score(vectors, labels, partner)
    return result | {"exact_peak_mb": round(peak_mb())}


def measure_sparse(keep: Path) -> dict[str, Any]:
    from reid.index import scan
    from reid.train import mining

    vectors = np.load(keep / "vectors.npy", mmap_mode="r")
    codes = np.unique(np.load(keep / "labels.npy"), return_inverse=True)[1]
    labels = np.broadcast_to(codes[:, None, None] + np.array([0, codes.max() + 1]), (len(codes), VIEWS, 2)).ravel()
    chosen = np.sort(np.random.default_rng(0).permutation(len(labels))[: SIZES["sparse"]])
    labels, rows = labels[chosen], vectors.reshape(-1, DIM)[chosen]
    halves = rows.astype(np.float16)
    largest = int(np.bincount(labels).max())
    started = time.perf_counter()
    near = np.empty((len(rows), NEAR), np.int64)
    listed = np.empty((len(rows), NEAR), np.float32)
    for start in range(0, len(rows), 2000):
        part = slice(start, start + 2000)
        found = scan.many(halves, rows[part], NEAR + largest, None)
        keep_first(found, labels, labels[part], near[part], listed[part])
    neighbours = time.perf_counter() - started
    started = time.perf_counter()
    partner = mining.assign_sparse(
        near,
        listed,
        labels,
        rng=np.random.default_rng(0),
        pair_scores=lambda i, j: np.einsum("pd,pd->p", rows[i], rows[j]),
    )
    return {
        "sparse_n": len(rows),
        "sparse_s": round(time.perf_counter() - started, 2),
        "neighbours_s": round(neighbours, 2),
        "sparse_score": mean_score(rows, labels, partner),
        "random_score": mean_score(rows, labels, mining.random_negatives(labels, np.random.default_rng(0))),
        "sparse_peak_mb": round(peak_mb()),
    }


def keep_first(found: Any, labels: Any, own: Any, near: Any, listed: Any) -> None:
    """Of each query's neighbours the nearest of other identities, best first."""
    other = labels[found.rows] != own[:, None]
    order = np.argsort(~other, axis=1, kind="stable")[:, : near.shape[1]]
    near[:] = np.where(np.take_along_axis(other, order, 1), np.take_along_axis(found.rows, order, 1), -1)
    listed[:] = np.take_along_axis(found.scores, order, 1)


def measure_kept(keep: Path) -> dict[str, Any]:
    from reid.train import mining

    vectors, labels, own = plain(keep, SIZES["kept"])
    scores = vectors @ vectors.T
    rng = np.random.default_rng(0)
    others = np.where(labels[:, None] == labels, -np.inf, scores)
    others[own[:, 0], own[:, 1]] = others[own[:, 1], own[:, 0]] = -np.inf
    near = np.argpartition(-others, NEAR, axis=1)[:, :NEAR]
    near = np.take_along_axis(near, np.argsort(-np.take_along_axis(others, near, 1), axis=1), 1)
    listed = np.take_along_axis(scores, near, 1)
    del others
    exact = mean_score(vectors, labels, mining.assign_hard_negatives(scores, labels, forbidden=own))
    result: dict[str, Any] = {"kept_n": len(labels), "kept_exact_score": exact}
    told = mining.assign_sparse(near, listed, labels, forbidden=own, rng=rng, pair_scores=lambda i, j: scores[i, j])
    result["sparse_over_exact"] = round(mean_score(vectors, labels, told) / exact, 5)
    for k in (10, 20):
        few = mining.assign_sparse(near[:, :k], listed[:, :k], labels, forbidden=own, rng=rng)
        result[f"sparse_{k}_over_exact"] = round(mean_score(vectors, labels, few) / exact, 5)
    for size in (2000, 500):
        blocks = mining.assign_in_blocks(scores, labels, size, forbidden=own, rng=rng)
        result[f"blocks_{size}_over_exact"] = round(mean_score(vectors, labels, blocks) / exact, 5)
    random = mining.random_negatives(labels, rng)
    return (
        result | {"random_over_exact": round(mean_score(vectors, labels, random) / exact, 5)} | solvers(scores, labels)
    )


def solvers(scores: Any, labels: Any) -> dict[str, Any]:
    """Seconds of each way to the exact assignment, without and with noise, by size."""
    from reid.train import mining

    times: dict[str, Any] = {}
    ways: tuple[mining.Solver, ...] = ("lap", "scipy", "priced")
    for n in (1000, 2000, 4000):
        for noise in (0.0, 1.0):
            for solver in ways:
                started = time.perf_counter()
                rng = np.random.default_rng(0)
                mining.assign_hard_negatives(scores[:n, :n], labels[:n], noise=noise, rng=rng, solver=solver)
                times[f"{solver} n={n} noise={noise:g}"] = round(time.perf_counter() - started, 2)
    return {"solver_s": times}


def mean_score(vectors: Any, labels: Any, partner: Any) -> float:
    """Mean cosine of the assigned pairs, after a check that they are a permutation without a pair of one identity."""
    assert len(np.unique(partner)) == len(labels) and (labels[partner] != labels).all()
    return float(np.einsum("pd,pd->p", vectors, vectors[partner]).mean())


MEASURES = {"exact": measure_exact, "sparse": measure_sparse, "kept": measure_kept}

if __name__ == "__main__":
    main()
