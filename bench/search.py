"""The gallery's search by size: exact and approximate, beside faiss's float32 index and a plain float32 matrix product.

What is searched are embeddings of photos by the default embedder: the research photos beside the checkout where they
are, rendered flukes otherwise, one vector for each photo's box. Their 1,280 dimensions are projected on the 512 of
greatest energy (no centring: a gallery's vectors are not centred either). Larger galleries are made of these by
documented mixing: a photo's vector, moved a random part of the way (0 to .6) to one of its five nearest neighbours,
plus what changing the view did to some other photo (the difference of its two embeddings, mirrored and wider cut), to
unit length. Queries are second views of photos whose first view is in the gallery: mirrored, wider cut. The speed of
the exact scan does not depend on any of this; the recall of the approximate backends does, and is the share of the
exact search's ten best that they find.

Each size is measured in a fresh process. Memory is what the process gained between before opening the gallery and
after a search of all of it (anonymous and mapped pages), over the bytes of the half-precision vectors. Prints one
JSON object last.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

DIM = 512
QUERIES = 200
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000,1000000", help="gallery sizes, separated by commas")
    parser.add_argument("--photos", type=int, default=6000, help="most photos to embed")
    parser.add_argument("--rendered", action="store_true", help="embed rendered flukes even where real photos are")
    parser.add_argument(
        "--hnsw-up-to", type=int, default=100_000, help="largest size for which a graph is built (0: never)"
    )
    parser.add_argument(
        "--ivf-up-to", type=int, default=1_000_000, help="largest size for which lists are built (0: never)"
    )
    parser.add_argument("--peers-up-to", type=int, default=1_000_000, help="largest size compared with float32 peers")
    parser.add_argument("--keep", type=Path, default=ROOT / ".bench", help="where embeddings are kept between runs")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options)))
        return
    vectors, queries, what = photos(options)
    result: dict[str, Any] = {"vectors": what, "dim": DIM, "cpu_count": os.cpu_count(), "sizes": {}}
    for n in (int(size) for size in options.sizes.split(",")):
        with tempfile.TemporaryDirectory(dir=options.keep) as folder:
            seconds = build(Path(folder), vectors, queries, n)
            command = [sys.executable, __file__, "--measure", folder]
            for name in ("hnsw_up_to", "ivf_up_to", "peers_up_to"):
                command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result["sizes"][str(n)] = {**json.loads(run.stdout.splitlines()[-1]), "write_s": round(seconds, 2)}
        print(f"{n}: {json.dumps(result['sizes'][str(n)])}", flush=True)
    print(json.dumps(result))


def photos(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, str]:
    """Embeddings `(N, 512)` of first views and `(N, 512)` of second views, unit rows in one shuffled order.

    What they are of.
    """
    real = [name for name in ("flukes", "nyala") if (SHARED / name / "labels.csv").is_file() and not options.rendered]
    what = " and ".join(f"real {name}" for name in real) or "rendered flukes"
    options.keep.mkdir(exist_ok=True)
    kept = options.keep / f"search-{'-'.join(real) or 'rendered'}-{options.photos}.npz"
    if not kept.is_file():
        np.savez(kept, views=embedded(real, options))
    views = np.load(kept)["views"]
    _, axes = np.linalg.eigh(views[:, 0].T @ views[:, 0])  # ascending by energy
    projected = views @ axes[:, -DIM:]
    projected /= np.linalg.norm(projected, axis=2, keepdims=True)
    what = (
        f"embeddings (EfficientNet-lite0, ImageNet) of {len(views)} {what} photos, projected to {DIM} dimensions; "
        "beyond that number mixed: moved 0 to .6 of the way to one of 5 nearest neighbours, plus another photo's "
        "change of view; queries are mirrored, wider second views"
    )
    return projected[:, 0].astype(np.float32), projected[:, 1].astype(np.float32), what


def embedded(real: list[str], options: argparse.Namespace) -> np.ndarray:
    """`(N, 2, 1280) float32`: two views of each photo."""
    from reid import crop, models
    from reid.embed import OpenVinoEmbedder

    with tempfile.TemporaryDirectory() as folder:
        embedder = OpenVinoEmbedder(models.ensure(Path(folder)))
        preprocessing = embedder.card.preprocessing
        parts, batch = [], []
        for pixels, box, scale in sources(real, options.photos):
            views = (crop.PLAIN, crop.View(mirror=True, widen=0.12))
            batch.append(crop.cut_views(pixels, box, preprocessing, views, scale=scale))
            if len(batch) == 64:
                parts.append(embedder.embed(np.concatenate(batch)))
                batch.clear()
        if batch:
            parts.append(embedder.embed(np.concatenate(batch)))
    return np.concatenate(parts).reshape(-1, 2, embedder.card.dim)


def sources(real: list[str], most: int) -> Iterator[tuple[np.ndarray, Any, tuple[float, float]]]:
    """At most so many photos in a fixed random order: pixels, box in original pixels, and decoded ÷ original pixels."""
    from reid import crop, images, synth
    from reid.records import Box

    if not real:
        for photo in synth.catalogue(n_identities=max(1, most // 4), n_photos=most, seed=1):
            yield photo.pixels, photo.box, (1.0, 1.0)
        return
    rows = [(SHARED / name, row) for name in real for row in csv.DictReader((SHARED / name / "labels.csv").open())]
    for at in np.random.default_rng(0).permutation(len(rows))[:most]:
        folder, row = rows[at]
        pixels = images.read(folder / row["path"]).pixels
        width, height = int(row["original_width"]), int(row["original_height"])
        box = crop.whole(width, height)
        if row.get("bbox"):
            x, y, w, h = json.loads(row["bbox"])
            box = Box(x, y, x + w, y + h)
        yield pixels, box, (pixels.shape[1] / width, pixels.shape[0] / height)


def mixed(views: np.ndarray, changes: np.ndarray, n: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """`n` vectors in chunks: `views (N, 512)` as they are, then mixtures, see above.

    `changes (N, 512)` are second less first.
    """
    rng = np.random.default_rng(1)
    products = views @ views.T
    np.fill_diagonal(products, -1)
    neighbours = np.argpartition(-products, 5, axis=1)[:, :5]
    for low in range(0, n, 16_384):
        count = min(16_384, n - low)
        rows = np.arange(low, low + count)
        own, source = rows < len(views), rows % len(views)
        towards = views[neighbours[source, rng.integers(0, 5, count)]] - views[source]
        part = rng.random((count, 1), np.float32) * 0.6
        chunk = views[source] + np.where(own[:, None], 0, part * towards + changes[rng.integers(0, len(views), count)])
        chunk /= np.linalg.norm(chunk, axis=1, keepdims=True)
        yield [f"photo-{row:07d}" for row in rows], chunk.astype(np.float32)


def build(folder: Path, views: np.ndarray, second: np.ndarray, n: int) -> float:
    """Write a gallery of `n` vectors and the queries into `folder`; seconds for the gallery, mixing included."""
    from reid.index import write_snapshot

    chosen = np.random.default_rng(2).choice(min(n, len(views)), QUERIES, replace=False)
    np.save(folder / "queries.npy", second[chosen])
    start = time.perf_counter()
    chunks = mixed(views, second - views, n)
    write_snapshot(folder / "index", chunks, fingerprint="bench", dim=views.shape[1], revision=1)
    return time.perf_counter() - start


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about the gallery in `folder`, in this process, which has opened nothing yet."""
    import faiss

    from reid.index import Gallery

    queries = np.load(folder / "queries.npy")
    faiss.knn(queries, queries, 1)  # its threads and buffers are not the gallery's
    before = resident()
    start = time.perf_counter()
    gallery = Gallery.open(folder / "index", fingerprint="bench")
    result: dict[str, Any] = {"load_s": round(time.perf_counter() - start, 4)}
    n, dim = len(gallery), gallery.dim
    exact = [set(found.ids) for query in queries for found in gallery.search(query[None], 10)]
    result["memory_ratio"] = round((resident() - before) / (2 * n * dim), 3)
    gallery.search(queries[:64], 10)
    result["memory_ratio_after_batch"] = round((resident() - before) / (2 * n * dim), 3)
    contenders: dict[str, Callable[[np.ndarray], Any]] = {"exact": lambda some: gallery.search(some, 10)}
    if n <= options.peers_up_to:
        contenders |= peers(gallery)
    result |= timed(contenders, queries)
    del contenders
    result |= incremental(gallery, folder)
    for backend, most in (("hnsw", options.hnsw_up_to), ("ivf", options.ivf_up_to)):
        if n <= most:
            start = time.perf_counter()
            gallery.compact(backend=backend)
            result[f"{backend}_build_s"] = round(time.perf_counter() - start, 1)
            result[f"{backend}_mb"] = round(next((folder / "index").glob(f"*.{backend}")).stat().st_size / 1e6, 1)
            found = [set(each.ids) for query in queries for each in gallery.search(query[None], 10)]
            hits = sum(len(one & other) for one, other in zip(found, exact, strict=True))
            result[f"{backend}_recall_at_10"] = round(hits / sum(map(len, exact)), 4)
            result |= timed({backend: lambda some: gallery.search(some, 10)}, queries)
    return result


def peers(gallery: Any) -> dict[str, Callable[[np.ndarray], Any]]:
    """The same vectors as float32: faiss's flat index, and a matrix to multiply with (dense cosines, then the best)."""
    import faiss

    rows = gallery.vectors(gallery.ids())
    flat = faiss.IndexFlatIP(gallery.dim)
    flat.add(rows)

    def dense(some: np.ndarray) -> np.ndarray:
        cosines = some @ rows.T
        best = np.argpartition(-cosines, 10, axis=1)[:, :10]
        return np.take_along_axis(best, np.argsort(-np.take_along_axis(cosines, best, axis=1), axis=1), axis=1)

    return {"faiss_float32": lambda some: flat.search(some, 10), "numpy_float32": dense}


def timed(contenders: dict[str, Callable[[np.ndarray], Any]], queries: np.ndarray) -> dict[str, float]:
    """Milliseconds a query, alone and in a batch of 64: medians over turns that the contenders take in rotation."""
    spent: dict[str, list[float]] = {}
    for turn in range(12):
        for name, search in contenders.items():
            for kind, some in (("single", queries[turn : turn + 1]), ("batch", queries[turn : turn + 64])):
                if kind == "batch" and turn >= 4:
                    continue
                start = time.perf_counter()
                search(some)
                spent.setdefault(f"{name}_ms_{kind}", []).append((time.perf_counter() - start) * 1e3 / len(some))
    return {name: round(statistics.median(times), 3) for name, times in spent.items()} | {
        f"{name}_least": round(min(times), 3) for name, times in spent.items() if name.startswith("exact")
    }


def incremental(gallery: Any, folder: Path) -> dict[str, float]:
    """Adding 100 photos and committing, to this gallery and to an empty one: median milliseconds, made durable."""
    from reid.index import Gallery

    rng = np.random.default_rng(3)
    empty = Gallery.create(folder / "empty", fingerprint="bench", dim=gallery.dim)
    spent: dict[str, list[float]] = {"add_100_ms": [], "add_100_to_empty_ms": []}
    for turn in range(7):
        vectors = rng.standard_normal((100, gallery.dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for name, target in zip(spent, (gallery, empty), strict=True):
            start = time.perf_counter()
            target.add([f"new-{turn}-{i}" for i in range(100)], vectors)
            target.commit(revision=2 + turn)
            spent[name].append((time.perf_counter() - start) * 1e3)
    gallery.remove([f"new-{turn}-{i}" for turn in range(7) for i in range(100)])
    gallery.commit(revision=99)
    return {name: round(statistics.median(times), 2) for name, times in spent.items()}


def resident() -> int:
    """Bytes of this process in memory, mapped files included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the system does not say how much memory is used")


if __name__ == "__main__":
    main()
