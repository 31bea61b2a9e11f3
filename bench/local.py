"""LNBNN over a gallery's local descriptors: milliseconds a query, top-1 beside exact search, bytes a descriptor,
growth.

The gallery are up to 1,500 photos of at most 1,000 descriptors each (nyala beside the checkout where they are,
rendered flukes otherwise); queries are photos of the gallery, their own photo excluded. `lnbnn_ms` is the median of
`LocalIndex.search` of one photo, asked as a store asks (`LocalIndex.asking`). `recall_vs_exact` is the share of queries
whose best animal is that of an exact search with all of its descriptors over all others (float32 matrix products, the
same voting rule); `top1_of_compared` and `top1_exact` say how often each is right, `top1_lost` is their difference. The
answers of the exact search (a third of a million million multiplications a query) are kept between runs, which take
some two minutes without them.

`--growth` goes on to 5,000, 10,000 and 20,000 photos (ten minutes and 10 GB of disk): copies of those that are there,
every descriptor with noise of its own (σ = 12 of 512, then 10 % of its entries exchanged with another descriptor's of
its photo), a different one for each copy: the lists fill as they would, the votes mean nothing. Prints one JSON object
last.
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
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from reid.index import lnbnn
from reid.index.local import NEIGHBOURS, PROBES, VOTERS, LocalIndex
from reid.keypoints import KeypointConfig, describe

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
OWN = 32  # neighbours beyond those wanted, for a photo's own descriptors are among its nearest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1500)
    parser.add_argument("--queries", type=int, default=100, help="timed and compared with the truth")
    parser.add_argument("--exact", type=int, default=12, help="of them, compared with exact search")
    parser.add_argument("--growth", action="store_true", help="also grow to the sizes of --grow")
    parser.add_argument("--grow", default="5000,10000,20000", help="photos to grow to, separated by commas")
    parser.add_argument("--probes", default=str(PROBES), help="cells looked into; several, separated by commas")
    parser.add_argument("--rendered", action="store_true", help="rendered flukes even where real photos are")
    parser.add_argument(
        "--keep", type=Path, default=ROOT / ".bench" / "local", help="where descriptors are kept between runs"
    )
    options = parser.parse_args()
    gallery, animals, what = described(options.photos, options.rendered, options.keep)
    ids = [f"p{number:05d}" for number in range(len(gallery))]
    identity = dict(zip(ids, animals, strict=True))
    queries = np.random.default_rng(0).permutation(several(animals))[: options.queries].tolist()
    result: dict[str, Any] = {"photos": what, "gallery": len(gallery), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory(dir=options.keep) as folder:
        index = LocalIndex.create(Path(folder) / "index", fingerprint="bench")
        start = time.perf_counter()
        index.add(ids, gallery)
        index.commit(revision=1)
        result["build_s"] = round(time.perf_counter() - start, 1)
        result["descriptors"] = index.descriptors
        result["bytes_a_descriptor"] = round(index.nbytes / max(index.descriptors, 1), 1)
        exact = kept_exact(gallery, animals, queries[: options.exact], options.keep)
        result["top1_exact"] = round(float(np.mean([exact[q] == animals[q] for q in exact])), 3) if exact else None
        result["probes"] = {}
        for probes in (int(value) for value in options.probes.split(",")):
            result["probes"][probes] = asked(index, gallery, animals, ids, identity, queries, exact, probes)
        result = {**next(iter(result["probes"].values())), **result}
        result["added_100_ms"] = added(index, gallery[:100])
        if options.growth:
            result["growth"] = grown(index, gallery, options.grow, queries[:20], ids)
    result["load_average"] = [round(value, 1) for value in os.getloadavg()]
    print(json.dumps(result))


def asked(
    index: LocalIndex,
    gallery: list[np.ndarray],
    animals: list[str],
    ids: list[str],
    identity: dict[str, str],
    queries: list[int],
    exact: dict[int, str],
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
    compared = [best[query] == answer for query, answer in exact.items()]
    right = {
        name: [answers[query] == animals[query] for query in exact] for name, answers in (("i", best), ("e", exact))
    }
    return {
        "lnbnn_ms": round(1e3 * statistics.median(took), 1),
        "lnbnn_p90_ms": round(1e3 * float(np.percentile(took, 90)), 1),
        "recall_vs_exact": round(float(np.mean(compared)), 3) if compared else None,
        "top1": round(float(np.mean([best[query] == animals[query] for query in queries])), 3),
        "top1_of_compared": round(float(np.mean(right["i"])), 3) if exact else None,
        "top1_lost": round(float(np.mean(right["e"]) - np.mean(right["i"])), 3) if exact else None,
    }


def kept_exact(gallery: list[np.ndarray], animals: list[str], queries: list[int], keep: Path) -> dict[int, str]:
    """`exact_answers`, those of the same descriptors and rule taken from the last run."""
    state = hashlib.sha256(json.dumps([animals, NEIGHBOURS, VOTERS]).encode())
    for each in gallery:
        state.update(each.tobytes())
    file = keep / f"exact-{state.hexdigest()[:12]}.json"
    known = {int(q): name for q, name in json.loads(file.read_text()).items()} if file.exists() else {}
    fresh = [query for query in queries if query not in known]
    for at in range(0, len(fresh), 4):  # a run that is stopped loses little
        known |= exact_answers(gallery, animals, fresh[at : at + 4])
        file.write_text(json.dumps(known))
    return {query: known[query] for query in queries}


def exact_answers(gallery: list[np.ndarray], animals: list[str], queries: list[int]) -> dict[int, str]:
    """The best animal of each query by the same votes over its true neighbours."""
    import faiss

    labels, code = np.unique(animals, return_inverse=True)
    owner = np.repeat(np.arange(len(gallery), dtype=np.int32), [len(each) for each in gallery])
    flat = np.concatenate(gallery).astype(np.float32)  # products and squares of bytes are exact in it
    best: dict[int, str] = {}
    for query in queries:
        asked_for, own = gallery[query].astype(np.float32), NEIGHBOURS + OWN
        squared, row = faiss.knn(asked_for, flat, own)
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
    index: LocalIndex, gallery: list[np.ndarray], sizes: str, queries: list[int], ids: list[str]
) -> dict[str, Any]:
    """Query time, bytes and the time of the last commit as the index grows by noisy copies."""
    out: dict[str, Any] = {}
    random = np.random.default_rng(1)
    copy = 0
    for size in (int(value) for value in sizes.split(",") if value):
        commit = 0.0
        while len(index) < size:
            copy += 1
            some = gallery[: size - len(index)]
            index.add([f"c{copy}-{number}" for number in range(len(some))], [varied(each, random) for each in some])
            start = time.perf_counter()
            index.commit(revision=index.revision + 1)
            commit = time.perf_counter() - start
        took = []
        for query in queries:
            start = time.perf_counter()
            index.search(index.asking(gallery[query]), exclude={ids[query]})
            took.append(time.perf_counter() - start)
        out[str(size)] = {
            "lnbnn_ms": round(1e3 * statistics.median(took), 1),
            "descriptors": index.descriptors,
            "bytes_a_descriptor": round(index.nbytes / max(index.descriptors, 1), 1),
            "gigabytes": round(index.nbytes / 1e9, 2),
            "last_commit_s": round(commit, 1),
        }
    return out


def varied(descriptors: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A photo's descriptors, each changed on its own."""
    noisy = descriptors + random.normal(0, 12, descriptors.shape)
    other = descriptors[random.permutation(len(descriptors))]
    noisy = np.where(random.random(descriptors.shape) < 0.1, other, noisy)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def several(animals: list[str]) -> np.ndarray:
    """Photos whose animal has another one."""
    counts = {animal: animals.count(animal) for animal in set(animals)}
    return np.array([number for number, animal in enumerate(animals) if counts[animal] > 1])


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
