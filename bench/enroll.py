"""Enrolling twelve-megapixel photos with boxes, end to end, beside the way wildlife-tools goes with the same network.

Ours is all of `reid.enrol`: reading, decoding, cropping, embedding, catalogue, index, and what the store learns from
its photos (with which of the embedders that ship a store begins is settled before, once). Theirs is PIL's decoder, the
box cut out, torchvision's resize, and timm in float32 in batches of 16, with one worker process loading ahead, which is
wildlife-tools' default; it ends with vectors in memory. Ours is measured twice:
as it is by default (`photos_per_s`, `ratio_with_local`), which also finds and indexes the local features of each box, and
with the embedder alone (`ratio`, `embedder_photos_per_s`), which is what theirs does. All take turns, chunk by chunk, on
the same files (theirs on some of each chunk); a ratio is photos a second over photos a second, all chunks together. Each
chunk grows the store enough that it measures its thresholds anew, three times more often than one enrolment would.
The photos are rendered flukes enlarged to 4000 × 3000, each cut elsewhere, with grain that brings the files to the size
that cameras write. Prints one JSON object last.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from reid import enrol, models, suitable
from reid.exchange import read_sources
from reid.records import Sighting
from reid.store import Store
from reid.synth import RenderedPhoto, catalogue

WIDTH, HEIGHT = 4000, 3000
GRAIN = 7.0  # standard deviation, in pixel units
QUALITY = 92
SCENES = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--theirs", type=int, default=64, help="how many of them the other way takes as well")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1, help="the other way's loading processes")
    parser.add_argument("--model", help="the embedder of both ways; else the store chooses, by its first photos")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_photos(folder, options.photos)
        print(json.dumps(compare(folder, table, options)))


def write_photos(folder: Path, number: int) -> Path:
    """`photos/*.jpg` and `labels.csv`; returns the table's path."""
    (folder / "photos").mkdir()
    scenes = list(catalogue(max(1, SCENES // 3), SCENES, size=(960, 720)))
    rng = np.random.default_rng(0)
    grain = np.clip(rng.normal(0, GRAIN, (HEIGHT + 512, WIDTH + 512, 1)), -40, 40).astype(np.int16)
    cv2.blur(grain, (2, 2), dst=grain)  # sensors' grain is not finer than their colour filter
    grain = np.repeat(grain.reshape(HEIGHT + 512, WIDTH + 512, 1), 3, axis=2)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(lambda i: write_photo(folder, i, scenes[i % SCENES], grain), range(number)))
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "identity", "path", "bbox"])
        writer.writerows(rows)
    return folder / "labels.csv"


def write_photo(folder: Path, number: int, scene: RenderedPhoto, grain: np.ndarray) -> list[str]:
    """One photo, and its row in the table: a window of the scene that holds its box, enlarged, with grain."""
    rng = np.random.default_rng([1, number])
    height, width = scene.pixels.shape[:2]
    share = max(rng.uniform(0.75, 1.0), scene.box.width / width, scene.box.height / height)
    w, h = int(width * share), int(height * share)
    x = int(rng.integers(max(0, int(scene.box.x1) - w), min(int(scene.box.x0), width - w) + 1))
    y = int(rng.integers(max(0, int(scene.box.y1) - h), min(int(scene.box.y0), height - h) + 1))
    large = cv2.resize(scene.pixels[y : y + h, x : x + w], (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    dy, dx = rng.integers(0, 512, 2)
    noisy = cv2.add(large, grain[dy : dy + HEIGHT, dx : dx + WIDTH], dtype=cv2.CV_8U)
    name = f"photos/{number:04}.jpg"
    cv2.imwrite(str(folder / name), noisy[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    sx, sy = WIDTH / w, HEIGHT / h
    box = [(scene.box.x0 - x) * sx, (scene.box.y0 - y) * sy, scene.box.width * sx, scene.box.height * sy]
    return [str(number), scene.identity, name, json.dumps([round(v, 1) for v in box])]


def compare(folder: Path, table: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both ways by turns."""
    sightings = read_sources([table]).sightings
    chunks = options.chunks
    parts = [sightings[i::chunks] for i in range(chunks)]
    each = -(-options.theirs // chunks)
    if options.model:
        chosen = options.model
    else:  # asked apart: it is done once a store, and would weigh on the first chunk alone
        with Store.create(folder / "asked") as asked:
            chosen = suitable.choose(asked, sightings).name
    ways = {name: opened(folder / name, chosen, local=name == "default") for name in ("default", "embedder")}
    other = TheirWay(folder, chosen, options.workers)
    other(sightings[:1])
    rounds: list[dict[str, float]] = []
    stages: dict[str, float] = {}
    for turn, part in enumerate(parts):
        took = {}
        for name in ("default", "embedder") if turn % 2 else ("embedder", "default"):
            start = time.perf_counter()
            report = enrol.enrol(ways[name], part, who="bench")
            took[name] = (time.perf_counter() - start) / len(part)
            if report.new != len(part):
                raise SystemExit(f"{report.new} of {len(part)} photos enrolled: {report.failures[:1]}")
            if name == "default":
                stages = {key: stages.get(key, 0) + report.seconds.get(key, 0) for key in {*stages, *report.seconds}}
        start = time.perf_counter()
        other(part[:each])
        took["theirs"] = (time.perf_counter() - start) / min(each, len(part))
        rounds.append(took)
    for store in ways.values():
        store.close()
    mean = {name: statistics.mean(one[name] for one in rounds) for name in rounds[0]}
    by_round = {name: [one["theirs"] / one[name] for one in rounds] for name in ways}
    return {
        "photos_per_s": round(1 / mean["default"], 2),
        "ratio": round(mean["theirs"] / mean["embedder"], 2),
        "ratio_range": [round(min(by_round["embedder"]), 2), round(max(by_round["embedder"]), 2)],
        "ratio_with_local": round(mean["theirs"] / mean["default"], 2),
        "ratio_with_local_range": [round(min(by_round["default"]), 2), round(max(by_round["default"]), 2)],
        "embedder_photos_per_s": round(1 / mean["embedder"], 2),
        "their_photos_per_s": round(1 / mean["theirs"], 2),
        "stages_s": {key: round(value, 2) for key, value in sorted(stages.items())},
        "photos": len(sightings),
        "their_photos": sum(min(each, len(part)) for part in parts),
        "mb_a_photo": round(statistics.mean(s.path.stat().st_size for s in sightings) / 1e6, 2),
        "model": other.name,
        "cores": os.cpu_count(),
    }


def opened(folder: Path, model: str, *, local: bool) -> Store:
    """A new store with that embedder, with local features or without."""
    Store.create(folder).close()
    (folder / "reid.toml").write_text(f'[embedder]\nmodel = "{model}"\n[local]\nuse = {str(local).lower()}\n')
    return Store.open(folder)


class TheirWay:
    """Files with boxes → vectors, by PIL, torchvision and timm."""

    def __init__(self, folder: Path, model: str, workers: int) -> None:
        """The network is the store's own, one view a box."""
        from reid.train import backbone

        self.name = model
        self.network, card = backbone.from_folder(models.ensure(folder / "their-models", self.name))
        self.size = card.preprocessing.height, card.preprocessing.width
        self.workers = workers

    def __call__(self, sightings: Sequence[Sighting]) -> np.ndarray:
        """`(N, D) float32`."""
        import torch
        from torch.utils.data import DataLoader

        loader = DataLoader(Crops(sightings, self.size), batch_size=16, num_workers=self.workers)
        with torch.inference_mode():
            return np.concatenate([self.network(batch).numpy() for batch in loader])


class Crops:
    """A dataset as torch's loader wants it: the box of one photo, resized, `(H, W, 3) uint8 RGB`."""

    def __init__(self, sightings: Sequence[Sighting], size: tuple[int, int]) -> None:
        from torchvision.transforms import Resize

        self.sightings = sightings
        self.resize = Resize(size)

    def __len__(self) -> int:
        return len(self.sightings)

    def __getitem__(self, at: int) -> np.ndarray:
        from PIL import Image

        sighting = self.sightings[at]
        assert sighting.box is not None
        box = sighting.box
        with Image.open(sighting.path) as photo:
            crop = photo.convert("RGB").crop((round(box.x0), round(box.y0), round(box.x1), round(box.y1)))
        return np.array(self.resize(crop))


if __name__ == "__main__":
    main()
