"""Whether promised error rates hold on photos that were not used to promise them.

Takes the left-out photos' scores of a store's present fit (`reid.fit.Fit.cases`: known animals with their animal in the
gallery, and the same and others with it taken out), splits the animals at random into two halves, lets one half choose
the thresholds (`reid.promise.choose_policy`), and counts mistakes on the other, in the store's expected mixture of known
and new. Repeated for `--splits` random halves. For each promised rate: how often it was refused, the share decided
automatically, the rate that was measured over all splits with the mean of the splits' exact 95 % intervals, and in how
many splits the promise lies below its interval (the rate measured is above it beyond chance, one-sided exact binomial,
5 %). Prints a line a rate, and one JSON object last.

Where no store is named, flukes are rendered (`--rendered` whales, `--photos` of each), of which a quarter is left out:
a promise of 5 % takes some 60 of them in each half, one of 1 % some 300 of known animals; `--rendered 600` has them (about
as many minutes on two cores as there are hundreds of photos).
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
from reid.intervals import binomial_tail, clopper_pearson
from reid.risk import Cases, accepted_shares
from reid.store import Store

LONG_SIDE = 400  # pixels of rendered photos: enough for the embedder and 320-pixel local features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, nargs="?", help="a store with a fit; else rendered flukes are enrolled")
    parser.add_argument(
        "--rendered", type=int, default=150, help="how many whales are rendered where no store is named"
    )
    parser.add_argument("--photos", type=int, default=4, help="photos of each of them")
    parser.add_argument("--rates", default="0.01,0.05,0.1,0.2", help="promised shares of false matches")
    parser.add_argument("--splits", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.store or rendered(Path(folder), options.rendered, options.photos)
        with Store.open(root) as store:
            found = fit.read(store, store.gallery().fingerprint)
            share = store.config.decision.share_new
    if found is None:
        raise SystemExit("the store has no fit: enrol named photos first")
    cases = Cases.from_dict(found.cases)
    rates = {rate: resplit(cases, float(rate), share, options.splits) for rate in options.rates.split(",")}
    for rate, one in rates.items():
        print(said(rate, one))
    result: dict[str, Any] = {
        "known_photos": len(cases.known_score),
        "unknown_photos": len(cases.unknown_score),
        "sources": found.fusion.kind,
        "splits": options.splits,
        "rates": rates,
    }
    print(json.dumps(result))


def said(rate: str, one: dict[str, Any]) -> str:
    """A rate's outcome in a line."""
    start = f"promised {float(rate):.1%}: refused in {one['refused']} of {one['of']} halves"
    if "automatic_measured" not in one:
        return start
    low, high = one["false_match_interval"]
    return (
        f"{start}; measured {one['false_match_measured']:.2%} [{low:.2%}, {high:.2%}], decided "
        f"{one['automatic_measured']:.1%} of queries; below its interval in {one['splits_above_beyond_chance']} halves"
    )


def rendered(folder: Path, whales: int, photos: int) -> Path:
    """A store of rendered flukes."""
    table = synth.write_dataset(folder, whales, whales * photos, seed=7, long_side=LONG_SIDE)
    with Store.create(folder / "store") as store:
        enrol.enrol(store, read_sources([table]).sightings, who="bench")
    return folder / "store"


def resplit(cases: Cases, rate: float, share: float, splits: int) -> dict[str, Any]:
    """One promised rate over random halves of the animals."""
    animals = np.unique(np.concatenate([cases.known_animal, cases.unknown_animal]))
    refused, above, kept, ends = 0, 0, [], []
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
        ends.append([float(end[0]) for end in clopper_pearson(min(mistakes, n), n)])
    if not kept:
        return {"refused": refused, "of": splits}
    promised, automatic, wrong = np.array(kept).T
    return {
        "refused": refused,
        "of": splits,
        "automatic_promised": round(float(promised.mean()), 4),
        "automatic_measured": round(float(automatic.mean()), 4),
        "false_match_measured": round(float(wrong.sum() / automatic.sum()), 4),
        "false_match_interval": [round(float(end), 4) for end in np.mean(ends, axis=0)],
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
