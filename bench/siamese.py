"""Which negatives teach a Siamese head: assigned ones (LAP, exact and sparse) or random ones, in the same time.

Heads are trained on the kept vectors of the photos in `gallery` (the default network, inner maps pooled and whitened,
as `reid train --mode head` keeps them), with the same epochs and `--seeds` each, and rank the photos of `queries` whose
animal the gallery has by their scores of all pairs: MAP@5, mean and standard deviation over seeds, beside the cosine of
the same vectors. Prints one JSON object last; `lap_over_random` is the difference of the means over the larger of the
two standard deviations.

    python bench/siamese.py gallery.csv queries.csv --seeds 3
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse  # noqa: E402
import json  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from recipes import Split, source  # noqa: E402

from reid import models  # noqa: E402
from reid.embed import OpenVinoEmbedder  # noqa: E402
from reid.metrics import reciprocal_ranks  # noqa: E402
from reid.train import features, holdout, quick, siamese  # noqa: E402
from reid.train.assignment import codes_of  # noqa: E402

KINDS: tuple[siamese.Negatives, ...] = ("lap", "sparse", "blocks", "random")
BLOCK = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--model", default=models.WIDE)
    parser.add_argument("--epochs", type=int, default=siamese.SiameseConfig().epochs)
    parser.add_argument("--views", type=int, default=quick.QuickConfig().views)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where vectors are kept; else they are not")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as aside:
        work = options.work or Path(aside)
        split = Split.read(options.gallery, options.queries)
        gallery, codes, asked, wanted = kept(split, work, options)
        plain = gallery[:, 0, 0].astype(np.float32)
    result: dict[str, Any] = {
        "photos": len(codes), "animals": int(codes.max()) + 1, "queries": len(wanted), "epochs": options.epochs,
        "cosine": map_at_5(asked @ plain.T, wanted, codes),
    }  # fmt: skip
    for kind in KINDS:
        scores, seconds = [], time.process_time()
        for seed in range(options.seeds):
            config = siamese.SiameseConfig(epochs=options.epochs, negatives=kind, block=BLOCK, seed=seed)
            head = siamese.train(gallery, codes, config).head
            left, right = head.expanded(np.concatenate([asked, plain]))
            scores.append(map_at_5(left[: len(asked)] @ right[len(asked) :].T, wanted, codes))
            print(kind, seed, scores[-1], flush=True)
        result[kind] = {
            "map_at_5": round(float(np.mean(scores)), 4), "sd": round(float(np.std(scores, ddof=1)), 4),
            "scores": scores, "cpu_s": round((time.process_time() - seconds) / options.seeds),
        }  # fmt: skip
    spread = max(result["lap"]["sd"], result["random"]["sd"])
    result["lap_over_random"] = round((result["lap"]["map_at_5"] - result["random"]["map_at_5"]) / spread, 2)
    print(json.dumps(result))


def kept(
    split: Split, work: Path, options: argparse.Namespace
) -> tuple[NDArray[np.float16], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Views of the gallery `(n, V, 2, D)` and their codes `(n,)`, plain unit rows of the queries `(Q, D)` and theirs."""
    base = models.ensure(work / "models", options.model)
    sources = [source(one) for one in split.gallery]
    white = quick.whiten(sources, base, work / "models", "white", keep=work / "kept")
    embedder = OpenVinoEmbedder(white, threads=options.threads)
    every = features.cached(sources, embedder, work / "kept", views=options.views)
    asked = features.cached([source(one) for one in split.queries], embedder, work / "kept", views=1)
    names = [split.gallery[row].identity or "" for row in every.rows]
    wanted = [split.queries[row].identity or "" for row in asked.rows]
    codes = codes_of([*names, *wanted])
    return every.vectors, codes[: len(names)], asked.vectors[:, 0, 0].astype(np.float32), codes[len(names) :]


def map_at_5(scores: NDArray[np.float32], wanted: NDArray[np.int64], codes: NDArray[np.int64]) -> float:
    return round(float(reciprocal_ranks(holdout.ranks(scores, wanted, codes)).mean()), 4)


if __name__ == "__main__":
    main()
