"""Whether promised error rates hold on photos that were not used to promise them.

Takes the left-out photos' scores of a store's present fit (`reid.fit.Fit.cases`: known animals with their animal in the
gallery, and the same and others with it taken out), splits the animals at random into two halves, lets one half choose
the thresholds (`reid.promise.choose_policy`), and counts mistakes on the other, in the store's expected mixture of known
and new. Repeated for `--splits` random halves. For each promised rate: how often it was refused, the share decided
automatically, the rate that was measured over all splits, and in how many splits the rate measured lies above the
promise beyond chance (one-sided exact binomial, 5 %). Prints one JSON object last.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid import enrol, fit, promise, synth
from reid.exchange import read_sources
from reid.intervals import binomial_tail
from reid.risk import Cases, accepted_shares
from reid.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, nargs="?", help="a store with a fit; else rendered flukes are enrolled")
    parser.add_argument("--whales", type=int, default=150, help="how many are rendered where no store is named")
    parser.add_argument("--rates", default="0.01,0.05,0.1,0.2", help="promised shares of false matches")
    parser.add_argument("--splits", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.store or rendered(Path(folder), options.whales)
        with Store.open(root) as store:
            found = fit.read(store, store.gallery().fingerprint)
            share = store.config.decision.share_new
    if found is None:
        raise SystemExit("the store has no fit: enrol named photos first")
    cases = Cases.from_dict(found.cases)
    result: dict[str, Any] = {
        "known_photos": len(cases.known_score),
        "unknown_photos": len(cases.unknown_score),
        "sources": found.fusion.kind,
        "splits": options.splits,
        "rates": {rate: resplit(cases, float(rate), share, options.splits) for rate in options.rates.split(",")},
    }
    print(json.dumps(result))


def rendered(folder: Path, whales: int) -> Path:
    """A store of rendered flukes."""
    table = synth.write_dataset(folder, whales, seed=7)
    with Store.create(folder / "store") as store:
        enrol.enrol(store, read_sources([table]).sightings, who="bench")
    return folder / "store"


def resplit(cases: Cases, rate: float, share: float, splits: int) -> dict[str, Any]:
    """One promised rate over random halves of the animals."""
    animals = np.unique(np.concatenate([cases.known_animal, cases.unknown_animal]))
    refused, above, kept = 0, 0, []
    for seed in range(splits):
        half = np.random.default_rng(seed).permutation(animals)[: len(animals) // 2]
        chosen = promise.promise_matches(part(cases, half, True), rate, 0.95, share)
        if chosen.threshold is None:
            refused += 1
            continue
        test = part(cases, half, False)
        accepted, wrong, _ = (values[0] for values in accepted_shares(test, share, np.array([chosen.threshold])))
        n = min(len(test.known_score) / (1 - share), len(test.unknown_score) / share) * accepted
        mistakes = wrong / accepted * n if accepted else 0.0
        if mistakes >= 1 and mistakes > rate * n:
            above += bool(1 - binomial_tail(mistakes - 1, n, rate)[0] < 0.05)
        kept.append((chosen.automatic, accepted, wrong))
    if not kept:
        return {"refused": refused, "of": splits}
    promised, automatic, wrong = np.array(kept).T
    return {
        "refused": refused,
        "of": splits,
        "automatic_promised": round(float(promised.mean()), 4),
        "automatic_measured": round(float(automatic.mean()), 4),
        "false_match_measured": round(float(wrong.sum() / automatic.sum()), 4),
        "worst_split": round(float((wrong / np.maximum(automatic, 1e-9)).max()), 4),
        "splits_above_beyond_chance": above,
    }


def part(cases: Cases, animals: NDArray[np.int64], inside: bool) -> Cases:
    """The cases of these animals, or of all others."""
    known = np.isin(cases.known_animal, animals) == inside
    unknown = np.isin(cases.unknown_animal, animals) == inside
    return Cases(
        cases.known_score[known],
        cases.known_wrong[known],
        cases.known_animal[known],
        cases.unknown_score[unknown],
        cases.unknown_animal[unknown],
    )


if __name__ == "__main__":
    main()
