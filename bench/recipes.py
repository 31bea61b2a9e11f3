"""What each recipe reaches at a scale, within the same time, on the same split.

Trains the recipes on the photos of `gallery` alone and asks for those of `queries` whose animal the gallery has: exact
cosine, as it is and after the whitening that a store's fit learns from its gallery (`reid.whiten`). MAP@5 of known
animals, with a 95 % bootstrap interval over animals. The default model, untrained, is the first line. Where a recipe
trained a Siamese head with its network, `siamese` is the cosine's shortlist of `SHORTLIST` photos in the order of the
head alone, nothing blended in (the product fuses the head with its other sources, where that helps).

After every epoch some of the queries are asked, among a few photos of their own animals (`curve`: MAP@5 as they are, and
worn). That is an easier question than the result's, is paid for out of the same budget, and decides nothing.

The budget counts the process's own seconds over both cores (`--clock cpu`), so that recipes get the same work on a
machine that is shared. Appends one JSON line a recipe to `--out`, passes over those that are there, goes on with a
training that was interrupted, and prints one JSON object last.

    python bench/recipes.py gallery.csv queries.csv --out recipes.jsonl --minutes 8
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait for one another leave the core to others

import argparse  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import asdict  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from reid import models, siamese, whiten  # noqa: E402
from reid.embed import OpenVinoEmbedder, unit_rows  # noqa: E402
from reid.exchange import read_sources  # noqa: E402
from reid.intervals import bootstrap_interval  # noqa: E402
from reid.metrics import reciprocal_ranks  # noqa: E402
from reid.records import Sighting  # noqa: E402
from reid.train import embedder, features, holdout, recipe  # noqa: E402
from reid.train.assignment import codes_of  # noqa: E402
from reid.train.features import Source  # noqa: E402
from reid.train.schedule import Budget  # noqa: E402

# Python looks beside a script first, and `lap.py` there would stand in for the library of that name.
sys.path[:] = [one for one in sys.path if Path(one or ".").resolve() != Path(__file__).resolve().parent]
UNTRAINED = "untrained"
SHORTLIST = 50  # photos that a Siamese head puts in its own order
THREADS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--recipes", default="", help="names or .toml files, with commas; all where left out")
    parser.add_argument("--scale", choices=("laptop", "gpu"), default="laptop")
    parser.add_argument("--minutes", type=float, default=8.0, help="for each recipe")
    parser.add_argument("--threads", type=int, default=THREADS, help="1 where two trainings run side by side")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--base", default=models.WIDE, help="the model of the first line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("recipes.jsonl"))
    parser.add_argument("--work", type=Path, help="where trainings and models are kept; else they are not")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        work = options.work or Path(aside)
        split = Split.read(options.gallery, options.queries)
        for name in [UNTRAINED, *(options.recipes.split(",") if options.recipes else recipe.names())]:
            if not any(line["recipe"] == Path(name).stem for line in lines(options.out)):
                line = (
                    untrained(split, work, options.base) if name == UNTRAINED else trained(name, split, work, options)
                )
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)
    print(json.dumps({line["recipe"]: line["whitened"] for line in lines(options.out)}))


def lines(out: Path) -> list[dict[str, Any]]:
    """What is measured already."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []


class Split:
    """Photos with names to train on and to find, and photos of the same animals to ask for; `unnamed` ones of the
    gallery's table are shown as nobody known by recipes that have room for them, and never scored.
    """

    def __init__(self, gallery: Sequence[Sighting], queries: Sequence[Sighting]) -> None:
        self.gallery = [one for one in gallery if one.identity]
        self.unnamed = [one for one in gallery if not one.identity]
        known = {one.identity for one in self.gallery}
        self.queries = [one for one in queries if one.identity in known]

    def queries_of(self, most: int, seed: int) -> list[Sighting]:
        """As many of the queries as a curve is told by."""
        chosen = np.random.default_rng([seed, 19]).permutation(len(self.queries))[:most]
        return [self.queries[place] for place in sorted(chosen.tolist())]

    @classmethod
    def read(cls, gallery: Path, queries: Path) -> Split:
        """From two tables."""
        return cls(*(read_sources([table], keep_boxless=True).sightings for table in (gallery, queries)))


def source(one: Sighting) -> Source:
    return Source(one.path, one.box, *(one.declared_size or (0, 0)))


def untrained(split: Split, work: Path, name: str) -> dict[str, Any]:
    """A model as it is."""
    model = models.ensure(work / "models", name)
    return {"recipe": UNTRAINED, "model": name, "seconds": 0, **measured(model, split, work)}


def trained(name: str, split: Split, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One recipe: trained within the budget, measured."""
    import torch

    torch.set_num_threads(options.threads)
    chosen = recipe.load(Path(name) if name.endswith(".toml") else name, options.scale)
    folder = work / chosen.name
    begun, wall = time.process_time(), time.perf_counter()
    clock = (lambda: time.process_time() / THREADS) if options.clock == "cpu" else time.perf_counter

    def tell(epoch: int, loss: float, score: float) -> None:
        spent = (time.process_time() - begun) / THREADS
        print(
            f"{chosen.name}: epoch {epoch + 1}, loss {loss:.3f}, curve {score:.3f}, {spent:.0f} s of two cores",
            flush=True,
        )

    shown = [*split.gallery, *(split.unnamed if chosen.sampling.new_share else ())]
    asked = split.queries_of(holdout.ASKED, options.seed)
    held = holdout.Split(np.arange(len(shown), len(shown) + len(asked)), np.arange(len(shown)))
    done = embedder.train(
        [source(one) for one in (*shown, *asked)], [one.identity or "" for one in (*shown, *asked)], chosen, folder,
        chosen.name, seed=options.seed, budget=Budget(60 * options.minutes, clock), held=held, resume=True, epochs=tell,
    )  # fmt: skip
    models.write_learnt(done.model, (hashlib.sha256(one.path.read_bytes()).hexdigest() for one in shown))
    return {
        "recipe": chosen.name,
        "scale": options.scale,
        "minutes": options.minutes,
        "seed": options.seed,
        "input": [chosen.input.height, chosen.input.width],
        "served": list(chosen.input.served_size),
        "epochs": len(done.history),
        "steps": done.steps,
        "unnamed": len(shown) - len(split.gallery),
        "losses": [round(one.loss, 4) for one in done.history],
        "curve": [[round(one.map_at_5, 4), round(one.worn, 4)] for one in done.history],
        "parameters": done.parameters,
        "seconds": round((time.process_time() - begun) / THREADS),
        "wall_seconds": round(time.perf_counter() - wall),
        **measured(done.model, split, work),
    }


def measured(model: Path, split: Split, work: Path) -> dict[str, Any]:
    """MAP@5 and top-1 of the queries by exact cosine: as the vectors come, mirrored ones averaged in, whitened."""
    asked = [*split.queries, *split.gallery]
    kept = features.cached(
        [source(one) for one in asked], OpenVinoEmbedder(model, threads=THREADS), work / "kept", views=1
    )
    codes = codes_of([asked[row].identity or "" for row in kept.rows])
    n = int((kept.rows < len(split.queries)).sum())
    plain, both = kept.vectors[:, 0, 0].astype(np.float32), unit_rows(kept.vectors[:, 0].astype(np.float32).sum(1))
    result: dict[str, Any] = {"queries": n, "gallery": len(codes) - n, "dim": int(plain.shape[1])}
    for name, vectors, white in (
        ("cosine", plain, False), ("whitened", plain, True), ("mirrored", both, False), ("mirrored_whitened", both, True),
    ):  # fmt: skip
        result[name] = score(vectors, codes, n, white)
    if (model / siamese.FOLDER).is_dir():
        head = siamese.load(model / siamese.FOLDER, models.read_card(model).fingerprint)
        result["siamese"] = figures(rescored(head, unit_rows(plain), n), codes, n)
    return result


def rescored(head: siamese.Siamese, vectors: NDArray[np.float32], n: int) -> NDArray[np.float64]:
    """Scores `(n, N − n)` of the first `n` unit rows with the others: those that the cosine puts first by the head's
    logits, the others behind them by cosine.
    """
    scores = (vectors[:n] @ vectors[n:].T).astype(np.float64)
    for query, cosines in enumerate(scores):
        near = np.argsort(-cosines, kind="stable")[:SHORTLIST]
        logits = head.logits(vectors[query][None], vectors[n + near])[0]
        cosines[near] = 2.0 + logits - logits.min()
    return scores


def score(vectors: NDArray[np.float32], codes: NDArray[np.int64], n: int, white: bool) -> dict[str, Any]:
    """Measures of the first `n` rows against the others."""
    if white:
        found = whiten.fit(vectors[n:], codes[n:])
        if found is None:
            return {}
        vectors = found.apply(vectors)
    return figures(vectors[:n] @ vectors[n:].T, codes, n)


def figures(scores: NDArray[np.floating[Any]], codes: NDArray[np.int64], n: int) -> dict[str, Any]:
    """Measures of scores `(n, N − n)` of photos with identities `codes (N,)`."""
    ranks = holdout.ranks(scores, codes[:n], codes[n:])
    interval = bootstrap_interval(reciprocal_ranks(ranks), codes[:n])
    kept = {key: round(value, 4) for key, value in asdict(interval).items() if key in ("value", "low", "high")}
    return {"map_at_5": kept, "top1": round(float((ranks == 1).mean()), 4)}


if __name__ == "__main__":
    main()
