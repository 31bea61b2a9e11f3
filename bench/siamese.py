"""Which negatives teach a Siamese head: assigned ones (LAP, exact and sparse) or random ones, in as many steps.

Heads are trained on vectors of the photos in `gallery` (the default network of wide boxes, whitened by these photos, or
with `--raw` as they are, which is what `reid train-siamese` does), those of animals with two photos or more, each kind
of negatives with the same epochs and the same seeds, so the same number of steps and pairs. Animals that may be one
under two names are set against each other by none of them (`suspects`, as `reid train-siamese` does). They rank all
photos of `gallery` for those of `queries` whose animal it has, by their scores of all pairs: MAP@5, mean and standard
deviation over seeds, beside the cosine of the same vectors. Sparse assignments take their neighbours from the scan of
the gallery index, and blocks (`--kinds`) are there for comparison.

Prints one JSON object last. Two verdicts are differences of MAP@5 by seed, with their `mean` and `sd`, and `spread`, the
larger standard deviation of the two kinds over seeds:

* `lap_over_random` (exact less random): `holds` where the mean is above the spread.
* `sparse_over_exact` (sparse less exact): `holds` where the mean is not further from 0 than the spread.

`--views` above 1 also shows the head augmented views of the photos it is trained on; they are embedded first (.13
seconds of one core a photo, once). With `--work` vectors are kept, in the same place as those of `bench/recipes.py`.

    python bench/siamese.py gallery.csv queries.csv --work DIR --seeds 3 --threads 1
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse  # noqa: E402
import json  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from recipes import Split, source  # noqa: E402

from reid import models  # noqa: E402
from reid.embed import OpenVinoEmbedder, unit_rows  # noqa: E402
from reid.metrics import reciprocal_ranks  # noqa: E402
from reid.train import features, graphs, heads, holdout, siamese, suspects  # noqa: E402
from reid.train.assignment import codes_of  # noqa: E402
from reid.train.listed_pairs import nearest_others  # noqa: E402

KINDS = "random,exact,sparse"
BLOCK, NEAR = 500, siamese.SiameseConfig().neighbours
WHITE, SHRINK = 256, 0.5
SUSPECT = 0.9

IntArray = NDArray[np.int64]
Vectors = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--model", default=models.WIDE)
    parser.add_argument("--kinds", default=KINDS, help="of random, exact, sparse and blocks")
    parser.add_argument("--epochs", type=int, default=siamese.SiameseConfig().epochs)
    parser.add_argument("--raw", action="store_true", help="vectors are not whitened")
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--some", type=int, default=0, help="photos of the gallery, to time it; 0: all")
    parser.add_argument("--work", type=Path, help="where vectors are kept; else they are not")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    split = Split.read(options.gallery, options.queries)
    if options.some:
        split = Split(split.gallery[: options.some], split.queries)
    with tempfile.TemporaryDirectory() as aside:
        task = prepared(split, options.work or Path(aside), options)
    result: dict[str, Any] = {
        "photos": len(task.codes), "trained_on": len(task.rows), "queries": len(task.wanted),
        "epochs": options.epochs, "steps": options.epochs * -(-len(task.rows) // (siamese.SiameseConfig().batch // 2)),
        "views": options.views, "model": options.model,
        "raw": options.raw, "suspects": task.suspects, "cosine": map_at_5(task.asked @ task.plain.T, task),
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    for kind in options.kinds.split(","):
        result[kind] = measured(kind, task, options)
    result |= verdicts(result)
    print(json.dumps(result))


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Plain unit rows of the gallery and of what is asked, with codes; `shown (n, V, 2, D)` of the `rows` trained on, with
    what looks like each and `groups` in which the pairs of animals that are `suspects` are joined.
    """

    plain: Vectors
    codes: IntArray
    asked: Vectors
    wanted: IntArray
    rows: IntArray
    shown: NDArray[np.float16]
    near: IntArray
    groups: IntArray
    suspects: int


def prepared(split: Split, work: Path, options: argparse.Namespace) -> Task:
    """All vectors, whitened by the gallery's unless they are wanted raw."""
    embedder = OpenVinoEmbedder(models.ensure(work / "models", options.model), threads=options.threads)
    sources = [source(one) for one in split.gallery]
    gallery = features.cached(sources, embedder, work / "kept", views=1)
    asked = features.cached([source(one) for one in split.queries], embedder, work / "kept", views=1)
    names = [split.gallery[row].identity or "" for row in gallery.rows]
    wanted = [split.queries[row].identity or "" for row in asked.rows]
    codes = codes_of([*names, *wanted])
    own, theirs = codes[: len(names)], codes[len(names) :]
    first = gallery.vectors[:, 0, 0].astype(np.float32)
    layers = [] if options.raw else [heads.whitening(first, WHITE, shrink=SHRINK)]

    def white(vectors: NDArray[np.float16]) -> Vectors:
        return unit_rows(graphs.apply_layers(vectors, layers) if layers else vectors.astype(np.float32))

    plain = white(gallery.vectors[:, 0, 0])
    rows = np.flatnonzero(np.bincount(own)[own] >= 2)
    views = gallery.vectors[rows]
    if options.views > 1:
        some = [sources[row] for row in gallery.rows[rows]]
        views = features.cached(some, embedder, work / "kept", views=options.views).vectors
    shown = white(views.reshape(-1, views.shape[-1])).astype(np.float16).reshape(*views.shape[:3], -1)
    near = nearest_others(plain[rows], own[rows], NEAR)
    found = suspects.likely(plain[rows], near, own[rows], SUSPECT)
    groups = suspects.merged(own[rows], found.pairs, share=0.25)
    return Task(plain, own, white(asked.vectors[:, 0, 0]), theirs, rows, shown, near, groups, len(found.pairs))


def measured(kind: Any, task: Task, options: argparse.Namespace) -> dict[str, Any]:
    """Heads of one kind of negatives: MAP@5 by seed."""
    scores, hardness = [], []
    begun, wall = time.process_time(), time.perf_counter()
    labels = task.codes[task.rows]
    for seed in range(options.seeds):
        config = siamese.SiameseConfig(epochs=options.epochs, negatives=kind, block=BLOCK, seed=seed)
        done = siamese.train(task.shown, labels, config, groups=task.groups, near=task.near)
        left, right = done.head.expanded(np.concatenate([task.asked, task.plain]))
        scores.append(map_at_5(left[: len(task.asked)] @ right[len(task.asked) :].T, task))
        hardness.append(round(done.history[-1].hardness, 3))
        print(kind, seed, scores[-1], f"{time.process_time() - begun:.0f} s", flush=True)
    return {
        "map_at_5": round(float(np.mean(scores)), 4), "sd": sd(scores), "scores": scores, "hardness": hardness,
        "cpu_s": round((time.process_time() - begun) / options.seeds),
        "wall_s": round((time.perf_counter() - wall) / options.seeds),
    }  # fmt: skip


def verdicts(result: dict[str, Any]) -> dict[str, Any]:
    """What of the two can be said from the kinds that were measured."""
    found: dict[str, Any] = {}
    for key, one, other in (("lap_over_random", "exact", "random"), ("sparse_over_exact", "sparse", "exact")):
        if one in result and other in result:
            by_seed = np.subtract(result[one]["scores"], result[other]["scores"])
            mean, spread = float(by_seed.mean()), max(result[one]["sd"], result[other]["sd"])
            found[key] = {
                "by_seed": by_seed.round(4).tolist(), "mean": round(mean, 4), "sd": sd(by_seed.tolist()),
                "spread": spread, "holds": mean > spread if other == "random" else abs(mean) <= spread,
            }  # fmt: skip
    return found


def sd(values: list[float]) -> float:
    return round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else 0.0


def map_at_5(scores: Vectors, task: Task) -> float:
    return round(float(reciprocal_ranks(holdout.ranks(scores, task.wanted, task.codes)).mean()), 4)


if __name__ == "__main__":
    main()
