"""One question to a gallery of 10,000 photos, from a new process to its answer, beside `import torch, timm` alone.

The store: rendered flukes are enrolled as a team would (photos, boxes, names); the catalogue is then filled up with
photos that exist only there, whose vectors are those of rendered ones moved by noise (`JITTER` of their length), three
to an individual, and whose local features are a rendered photo's with noise on every byte; then the store learns from
all of them (`reid.fit`). The query is a twelve-megapixel JPEG. Each
process runs once unmeasured, then both take turns. The bound is a third of the import plus .3 s; `ratio` is the median
of the rounds' wall ÷ bound, and must stay below 1. Peak memory is the query's own, read by a small process around it.
Prints one JSON object last.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from reid import enrol, fit, local, withheld
from reid.catalogue import NewAnnotation, NewPhoto
from reid.embed import unit_rows
from reid.exchange import read_sources
from reid.records import Box, PhotoFacts
from reid.store import Store
from reid.synth import write_dataset

JITTER = 0.25
EACH = 3  # photos of an individual that the catalogue is filled up with
BOX = Box(40.0, 30.0, 600.0, 300.0)

# Runs a command as its only child, so that what the kernel says of children's memory is said of that one alone.
AROUND = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
wall = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"wall": wall, "peak": peak, "code": done.returncode, "out": done.stdout, "err": done.stderr}))
"""
PLAIN = "import torch, timm"
# Where torch and torchvision are not of one build: see reid/train/torchvision_ops.py. Costs nothing measurable.
DECLARED = """
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import timm
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--rendered", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="", help="the store's embedder; else it chooses, by the rendered flukes")
    parser.add_argument(
        "--work", type=Path, help="where the store is kept, to be asked again (as it is); else it is not"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.work or Path(name)
        query = folder / "query.jpg"  # written last
        rendered = min(options.rendered, options.photos)
        if not query.is_file():
            if (folder / "store").exists():
                raise SystemExit(f"{folder / 'store'} was not prepared to its end: remove it, or choose another --work")
            prepare(folder, options.photos, rendered, options.model)
        with Store.open(folder / "store") as store:
            model, photos = store.embedder.card.name, len(store.gallery())
        if photos != options.photos or options.model not in ("", model):
            raise SystemExit(f"{folder} holds {photos} photos by {model}: choose another --work")
        result = measure(folder / "store", query, options.rounds) | {"model": model, "photos": photos}
    print(json.dumps(result | {"filled": f"catalogue filled from {rendered} photos with jittered vectors"}))


def prepare(folder: Path, photos: int, rendered: int, model: str) -> None:
    """Make `folder/store`, and `folder/query.jpg` to ask it about."""
    table = write_dataset(folder / "flukes", max(1, rendered // 3), rendered, n_queries=1)
    with Store.create(folder / "store", model=model) as store:
        report = enrol.enrol(store, read_sources([table]).sightings, who="bench")
        if report.failures:
            raise SystemExit(f"enrolment left out: {report.failures[0]}")
        fill(store, photos - report.new)
        describe(store)
        left_out = local.bring_up(store)
        if left_out:
            raise SystemExit(f"local features are missing: {left_out[0]}")
        fit.fit(store)
        if len(store.gallery()) < photos:
            raise SystemExit(f"the gallery holds {len(store.gallery())} of {photos} photos")
    asked = (folder / "flukes" / "queries.csv").read_text().splitlines()[1].split(",")[0]
    small = cv2.imread(str(folder / "flukes" / "photos" / f"{asked}.jpg"))
    cv2.imwrite(str(folder / "query.jpg"), cv2.resize(small, (4000, 3000), interpolation=cv2.INTER_CUBIC))


def fill(store: Store, number: int) -> None:
    """Add `number` photos to the catalogue and to nothing else."""
    _, real = withheld.gathered(store.catalogue, store.fingerprint)
    for batch in filled(real, number):
        store.catalogue.add_photos(batch, who="bench", fingerprint=store.fingerprint)


def describe(store: Store) -> None:
    """Local features for every photo that no file stands behind: a rendered one's, moved by noise."""
    source = local.LocalSource.open(store)
    labels = store.catalogue.labels().annotations.tolist()
    places = local.keys(store, labels)
    there = {id: found for id, key in places.items() if (found := source.features.get(*key)) is not None}
    real = list(there.values())
    rng = np.random.default_rng(1)
    for number, id in enumerate(id for id in places if id not in there):
        one = real[number % len(real)]
        noise = rng.integers(-12, 13, one.descriptors.shape)
        moved = np.clip(one.descriptors.astype(np.int64) + noise, 0, 255).astype(np.uint8)
        source.features.put(*places[id], replace(one, descriptors=moved))


def filled(real: np.ndarray, number: int, size: int = 500) -> Iterator[list[NewPhoto]]:
    """Photos that no file stands behind, `size` at a time."""
    rng = np.random.default_rng(0)
    for at in range(0, number, size):
        rows = np.arange(at, min(at + size, number))
        individuals = rows // EACH
        centres = real[individuals % len(real)] + JITTER * unit_rows(_noise(individuals, real.shape[1]))
        vectors = unit_rows(centres + JITTER * unit_rows(rng.normal(size=centres.shape).astype(np.float32)))
        yield [
            NewPhoto(
                replace(BLANK, path=Path(f"filled/{i:06}.jpg"), sha256=_sha256(i), phash=int(_sha256(i)[:16], 16)),
                (NewAnnotation(BOX, identity=f"filled {i // EACH:05}", vector=vector),),
            )
            for i, vector in zip(rows.tolist(), vectors, strict=True)
        ]


BLANK = PhotoFacts(Path("filled"), "", 640, 427, "JPEG", 100_000)


def _noise(individuals: np.ndarray, dim: int) -> np.ndarray:
    """The same noise for the same individual."""
    return np.stack([np.random.default_rng(i).normal(size=dim) for i in individuals.tolist()]).astype(np.float32)


def _sha256(number: int) -> str:
    return hashlib.sha256(f"filled {number}".encode()).hexdigest()


def measure(store: Path, query: Path, rounds: int) -> dict[str, Any]:
    """Query and import by turns."""
    ask = [*reid_command(), "--store", str(store), "query", str(query), "--json"]
    load = [sys.executable, "-c", PLAIN if _runs(PLAIN) else DECLARED]
    first = _around(ask)
    _around(load)
    pairs = [(_around(ask), _around(load)) for _ in range(rounds)]
    walls, imports = [a["wall"] for a, _ in pairs], [b["wall"] for _, b in pairs]
    ratios = [a / (b / 3 + 0.3) for a, b in zip(walls, imports, strict=True)]
    return {
        "wall_s": round(statistics.median(walls), 3),
        "import_torch_timm_s": round(statistics.median(imports), 3),
        "bound_s": round(statistics.median(b / 3 + 0.3 for b in imports), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "first_wall_s": round(first["wall"], 3),
        "torch_imported": torch_imported(ask),
        "peak_mb": round(max(a["peak"] for a, _ in pairs) / 2**20, 1),
        "status": answer_of(first)["status"],
        "rounds": rounds,
        "cores": os.cpu_count(),
    }


def answer_of(done: dict[str, Any]) -> dict[str, Any]:
    """The answer in what the query printed: one object, or one in a list, or under `answers`."""
    found = json.loads(done["out"])
    while "status" not in found:
        found = found[0] if isinstance(found, list) else found["answers"]
    return dict(found)


def reid_command() -> list[str]:
    """The installed entry point, run by this interpreter; else the module."""
    script = Path(sys.executable).with_name("reid")
    return (
        [sys.executable, str(script)] if script.is_file() else [sys.executable, "-c", "from reid.cli import app; app()"]
    )


def torch_imported(ask: list[str]) -> bool:
    """Whether any module of torch was imported by the query."""
    traced = subprocess.run([ask[0], "-X", "importtime", *ask[1:]], capture_output=True, text=True, check=False)
    names = {line.rpartition("|")[2].strip() for line in traced.stderr.splitlines() if line.startswith("import time:")}
    if "numpy" not in names:
        raise SystemExit(f"no trace of imports: {traced.stderr[-500:]}")
    return any(name.partition(".")[0] == "torch" for name in names)


def _runs(code: str) -> bool:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def _around(command: list[str]) -> dict[str, Any]:
    """Run a command; its wall time in seconds, its peak memory in bytes and what it printed."""
    done = subprocess.run([sys.executable, "-I", "-c", AROUND, *command], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    if found["code"]:
        raise SystemExit(f"{command[:3]} ended with {found['code']}: {found['err'][-800:]}")
    return found


if __name__ == "__main__":
    main()
