"""LNBNN over a gallery's local descriptors: milliseconds a query, top-1 beside exact search, bytes a descriptor,
growth.

The gallery are up to 1,500 photos of at most 1,000 descriptors each (nyala beside the checkout where they are,
rendered flukes otherwise); queries are photos of the gallery, as many different animals as there are, their own photo
excluded. `lnbnn_ms` is the median of `LocalIndex.search` of one photo, asked as a store asks (`LocalIndex.asking`).

`recall_vs_exact` is the share of queries whose best animal is that of an exact search over all descriptors of the others
(float32 matrix products, the same voting rule); `top1_index` and `top1_exact` say how often each is right,
`top1_vs_exact` is their difference over the same queries (negative: lost) with its 95 % bootstrap interval over
animals. Both are asked with the query's `--exact-descriptors` strongest: the exact search of 100 queries of 250 is 5
million million multiplications, some four minutes of one core, and its answers are kept between runs.

`--growth` goes on to 5,000, 10,000 and 20,000 photos of rendered flukes: `--distinct` of them are described, the others
are copies, every byte with noise of its own (±20 of 512, then a tenth exchanged with another descriptor's of its
photo). `growth` has for each size the milliseconds of a real query and of a fluke (in whose cells it is crowded), top-1
of the real ones among so many others, and bytes. Six minutes of one core, 5 GB of memory and 6 GB of disk beside that.
Prints one JSON object last.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from reid.index import lnbnn
from reid.index.local import NEIGHBOURS, PROBES, VOTERS, LocalIndex
from reid.intervals import bootstrap_interval
from reid.keypoints import KeypointConfig, describe

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
BLOCK = 1000  # photos of a commit while growing
OWN = 32  # neighbours beyond those wanted, for a photo's own descriptors are among its nearest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1500)
    parser.add_argument("--queries", type=int, default=100, help="timed and compared with the truth")
    parser.add_argument("--exact", type=int, default=100, help="of them, compared with exact search")
    parser.add_argument("--exact-descriptors", type=int, default=250, help="with so many of each, the strongest")
    parser.add_argument("--growth", action="store_true", help="also grow to the sizes of --grow")
    parser.add_argument("--grow", default="5000,10000,20000", help="photos to grow to, separated by commas")
    parser.add_argument("--distinct", type=int, default=200, help="flukes that are rendered for that")
    parser.add_argument("--probes", default=str(PROBES), help="cells looked into; several, separated by commas")
    parser.add_argument("--rendered", action="store_true", help="rendered flukes even where real photos are")
    parser.add_argument(
        "--keep", type=Path, default=ROOT / ".bench" / "local", help="where descriptors are kept between runs"
    )
    options = parser.parse_args()
    start = time.perf_counter()
    gallery, animals, what = described(options.photos, options.rendered, options.keep)
    ids = [f"p{number:05d}" for number in range(len(gallery))]
    identity = dict(zip(ids, animals, strict=True))
    queries = of_many_animals(animals)[: options.queries]
    result: dict[str, Any] = {"photos": what, "gallery": len(gallery), "cores": os.cpu_count()}
    result |= {"queries": len(queries), "query_animals": len({animals[query] for query in queries})}
    result["described_s"] = round(time.perf_counter() - start, 1)
    with tempfile.TemporaryDirectory(dir=options.keep) as folder:
        index = LocalIndex.create(Path(folder) / "index", fingerprint="bench")
        start = time.perf_counter()
        index.add(ids, gallery)
        index.commit(revision=1)
        result["build_s"] = round(time.perf_counter() - start, 1)
        result["descriptors"] = index.descriptors
        result["bytes_a_descriptor"] = round(index.nbytes / max(index.descriptors, 1), 1)
        start, most = time.perf_counter(), options.exact_descriptors
        exact = kept_exact(gallery, animals, queries[: options.exact], most, options.keep)
        result["exact_s"] = round(time.perf_counter() - start, 1)
        result["probes"] = {}
        for probes in (int(value) for value in options.probes.split(",")):
            result["probes"][probes] = asked(index, gallery, animals, ids, identity, queries, probes)
            result["probes"][probes] |= compared(index, gallery, animals, ids, identity, exact, most, probes)
        result = {**next(iter(result["probes"].values())), **result}
        result["added_100_ms"] = added(index, gallery[:100])
        if options.growth:
            flukes_kept, _, _ = described(options.distinct, True, options.keep)
            result["growth"] = grown(index, gallery, animals, flukes_kept, options.grow, queries, ids)
    result["load_average"] = [round(value, 1) for value in os.getloadavg()]
    print(json.dumps(result))


def asked(
    index: LocalIndex,
    gallery: list[np.ndarray],
    animals: list[str],
    ids: list[str],
    identity: dict[str, str],
    queries: list[int],
    probes: int,
) -> dict[str, Any]:
    """Time and answers of all queries."""
    names = index.names(identity)
    index.search(index.asking(gallery[queries[0]]), names=names, probes=probes)
    took, best = [], {}
    for query in queries:
        start = time.perf_counter()
        found = index.search(index.asking(gallery[query]), names=names, exclude={ids[query]}, probes=probes)
        took.append(time.perf_counter() - start)
        best[query] = found.names[0] if found.names else ""
    return {
        "lnbnn_ms": round(1e3 * statistics.median(took), 1),
        "lnbnn_p90_ms": round(1e3 * float(np.percentile(took, 90)), 1),
        "top1": round(float(np.mean([best[query] == animals[query] for query in queries])), 3),
    }


def compared(
    index: LocalIndex,
    gallery: list[np.ndarray],
    animals: list[str],
    ids: list[str],
    identity: dict[str, str],
    exact: dict[int, str],
    most: int,
    probes: int,
) -> dict[str, Any]:
    """The index's answers beside those of the exact search, to the same queries with the same descriptors."""
    if not exact:
        return {}
    names = index.names(identity)
    found = {
        query: index.search(gallery[query][:most], names=names, exclude={ids[query]}, probes=probes).names
        for query in exact
    }
    best = {query: labels[0] if labels else "" for query, labels in found.items()}
    right = {
        name: np.array([answers[query] == animals[query] for query in exact], np.float64)
        for name, answers in (("index", best), ("exact", exact))
    }
    animal = np.unique([animals[query] for query in exact], return_inverse=True)[1]
    gain = bootstrap_interval(right["index"] - right["exact"], animal)
    return {
        "recall_vs_exact": round(float(np.mean([best[query] == answer for query, answer in exact.items()])), 3),
        "top1_index": round(float(right["index"].mean()), 3),
        "top1_exact": round(float(right["exact"].mean()), 3),
        "top1_vs_exact": round(float(np.mean(right["index"] - right["exact"])), 3),
        "top1_vs_exact_95": [round(gain.low, 3), round(gain.high, 3)],
        "compared": {"queries": len(exact), "animals": int(animal.max()) + 1, "descriptors": most},
    }


def kept_exact(
    gallery: list[np.ndarray], animals: list[str], queries: list[int], most: int, keep: Path
) -> dict[int, str]:
    """`exact_answers`, those of the same descriptors and rule taken from the last run."""
    state = hashlib.sha256(json.dumps([animals, NEIGHBOURS, VOTERS, most]).encode())
    for each in gallery:
        state.update(each.tobytes())
    file = keep / f"exact-{state.hexdigest()[:12]}.json"
    known = {int(q): name for q, name in json.loads(file.read_text()).items()} if file.exists() else {}
    fresh = [query for query in queries if query not in known]
    flat = (
        np.concatenate(gallery).astype(np.float32) if fresh else None
    )  # products and squares of bytes are exact in it
    for at in range(0, len(fresh), 8):  # a run that is stopped loses little
        known |= exact_answers(gallery, flat, animals, fresh[at : at + 8], most)
        file.write_text(json.dumps(known))
    return {query: known[query] for query in queries}


def exact_answers(
    gallery: list[np.ndarray], flat: np.ndarray | None, animals: list[str], queries: list[int], most: int
) -> dict[int, str]:
    """The best animal of each query by the same votes over its true neighbours; `flat` are all descriptors."""
    import faiss

    labels, code = np.unique(animals, return_inverse=True)
    owner = np.repeat(np.arange(len(gallery), dtype=np.int32), [len(each) for each in gallery])
    some = [gallery[query][:most].astype(np.float32) for query in queries]
    squares, rows = faiss.knn(np.concatenate(some), flat, NEIGHBOURS + OWN)
    best: dict[int, str] = {}
    ends = np.cumsum([len(each) for each in some])[:-1]
    for query, squared, row in zip(queries, np.split(squares, ends), np.split(rows, ends), strict=True):
        there = owner[row] != query
        assert (there.sum(axis=1) >= NEIGHBOURS).all(), "a photo is too much like itself: raise OWN"
        first = np.argsort(~there, axis=1, kind="stable")[:, :NEIGHBOURS]  # nearest first, those of the photo last
        distance, photo = np.take_along_axis(squared, first, axis=1), owner[np.take_along_axis(row, first, axis=1)]
        weights = lnbnn.match_weights(np.sqrt(np.maximum(distance, 0)) / 512, photo, code.astype(np.int32), VOTERS)
        best[query] = str(labels[lnbnn.name_votes(weights, photo, code.astype(np.int32), len(labels)).argmax()])
    return best


def added(index: LocalIndex, some: list[np.ndarray]) -> float:
    """Milliseconds to add a hundred photos and commit, taken away again afterwards."""
    ids = [f"extra{number}" for number in range(len(some))]
    start = time.perf_counter()
    index.add(ids, some)
    index.commit(revision=index.revision + 1)
    took = time.perf_counter() - start
    index.remove(ids)
    index.commit(revision=index.revision + 1)
    return round(1e3 * took, 1)


def grown(
    index: LocalIndex,
    gallery: list[np.ndarray],
    animals: list[str],
    filler: list[np.ndarray],
    sizes: str,
    queries: list[int],
    ids: list[str],
) -> dict[str, Any]:
    """Query time, top-1, bytes and the time of the last commit as the index grows by noisy copies of `filler`."""
    out: dict[str, Any] = {}
    random = np.random.default_rng(1)
    identity, copy = dict(zip(ids, animals, strict=True)), 0
    for size in (int(value) for value in sizes.split(",") if value):
        commit = 0.0
        while len(index) < size:
            block = min(size - len(index), BLOCK)
            some = [varied(filler[(copy + number) % len(filler)], random) for number in range(block)]
            index.add([f"c{copy + number}" for number in range(block)], some)
            copy += block
            start = time.perf_counter()
            index.commit(revision=index.revision + 1)
            commit = time.perf_counter() - start
        names = index.names(identity)
        took, right = [], []
        for query in queries:
            start = time.perf_counter()
            found = index.search(index.asking(gallery[query]), names=names, exclude={ids[query]})
            took.append(time.perf_counter() - start)
            right.append(bool(found.names) and found.names[0] == animals[query])
        crowded = []
        for each in filler[: len(queries) // 4]:
            start = time.perf_counter()
            index.search(index.asking(varied(each, random)), names=names)
            crowded.append(time.perf_counter() - start)
        out[str(size)] = {
            "lnbnn_ms": round(1e3 * statistics.median(took), 1),
            "lnbnn_p90_ms": round(1e3 * float(np.percentile(took, 90)), 1),
            "fluke_ms": round(1e3 * statistics.median(crowded), 1) if crowded else None,
            "top1": round(float(np.mean(right)), 3),
            "descriptors": index.descriptors,
            "bytes_a_descriptor": round(index.nbytes / max(index.descriptors, 1), 1),
            "gigabytes": round(index.nbytes / 1e9, 2),
            "last_commit_s": round(commit, 1),
        }
        print(json.dumps({size: out[str(size)]}), flush=True)  # a run that is stopped has said what it saw
    return out


def varied(descriptors: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A photo's descriptors, each changed on its own; of bytes, since there are thousands of millions of them."""
    size = descriptors.shape
    noise = np.frombuffer(random.bytes(descriptors.size), np.int8).reshape(size).astype(np.int16) * 20 // 128
    kept = np.frombuffer(random.bytes(descriptors.size), np.uint8).reshape(size) >= 26
    other = descriptors[random.permutation(len(descriptors))]
    return np.clip(np.where(kept, descriptors + noise, other), 0, 255).astype(np.uint8)


def of_many_animals(animals: list[str]) -> list[int]:
    """Photos whose animal has another one, at random: one of each animal first, then a second of each, and so on."""
    counts, turn = Counter(animals), Counter[str]()
    rounds: list[tuple[int, int]] = []
    for number in np.random.default_rng(0).permutation(len(animals)).tolist():
        if counts[animals[number]] > 1:
            rounds.append((turn[animals[number]], number))
            turn[animals[number]] += 1
    return [number for _, number in sorted(rounds, key=lambda each: each[0])]


def described(count: int, rendered: bool, keep: Path) -> tuple[list[np.ndarray], list[str], str]:
    """Descriptors of up to `count` photos by the default settings, kept between runs; their animals; where they are
    from."""
    config = KeypointConfig()
    folder = SHARED / "nyala"
    real = folder.is_dir() and not rendered
    keep.mkdir(parents=True, exist_ok=True)
    cache = keep / f"local-{'nyala' if real else 'rendered'}-{count}-{config.fingerprint}.npz"
    if not cache.exists():
        arrays, animals = [], []
        for crop, animal in nyala(folder, count) if real else flukes(count):
            arrays.append(describe(crop, None, config).descriptors)
            animals.append(animal)
        np.savez(cache, flat=np.concatenate(arrays), counts=[len(each) for each in arrays], animals=animals)
    with np.load(cache, allow_pickle=False) as held:
        flat, counts, names = held["flat"], held["counts"], held["animals"].tolist()
    return np.split(flat, np.cumsum(counts)[:-1]), names, "nyala" if real else "rendered flukes"


def nyala(folder: Path, count: int) -> Any:
    with (folder / "labels.csv").open(newline="") as file:
        for row in list(csv.DictReader(file))[:count]:
            yield cv2.cvtColor(cv2.imread(str(folder / row["path"])), cv2.COLOR_BGR2RGB), row["identity"]


def flukes(count: int) -> Any:
    from reid.synth import catalogue

    for photo in catalogue(n_identities=max(1, count // 4), n_photos=count, seed=1):
        x0, y0, x1, y1 = (round(value) for value in (photo.box.x0, photo.box.y0, photo.box.x1, photo.box.y1))
        yield photo.pixels[max(y0, 0) : y1, max(x0, 0) : x1], str(photo.identity)


if __name__ == "__main__":
    main()
