"""The cropper that ships: how well its boxes and landmarks fit on flukes it was not trained on, and what a photo costs.

Rendered flukes of another seed, and, where they are at hand, the research photos in `../shared/data/flukes` with their (noisy) boxes. A photo's
time is that of squashing decoded pixels and of all folds, one photo at a time. Prints one JSON
object last.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from reid.locate import SHIPPED, Located, Locator, overlaps
from reid.synth import Shot, render, staged

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "flukes"
SEED = 20_260_000  # whales that nothing was trained on


def corners(found: list[Located]) -> np.ndarray:
    return np.array([(f.box.x0, f.box.y0, f.box.x1, f.box.y1) for f in found])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def on_rendered(locator: Locator, whales: int) -> dict[str, Any]:
    photos = [render(*staged(Shot(SEED, whale, number))) for whale in range(whales) for number in range(2)]
    found = locator.locate_all([photo.pixels for photo in photos])
    truth = np.array([(p.box.x0, p.box.y0, p.box.x1, p.box.y1) for p in photos])
    iou = overlaps(corners(found), truth)
    errors = np.stack([f.landmarks - p.landmarks for f, p in zip(found, photos, strict=True)])
    share = np.linalg.norm(errors, axis=2) / (truth[:, 2] - truth[:, 0])[:, None]
    locator.locate(photos[0].pixels)
    times, cpu = [], time.process_time()
    for photo in photos:
        start = time.perf_counter()
        locator.locate(photo.pixels)
        times.append(time.perf_counter() - start)
    cpu = (time.process_time() - cpu) / len(photos)
    return {
        "rendered_photos": len(photos),
        "rendered_iou": round(float(np.median(iou)), 4),
        "rendered_iou_above_half": round(float((iou > 0.5).mean()), 4),
        "rendered_confident": round(float(np.mean([f.confidence >= 0.5 for f in found])), 4),
        "landmark_error": [round(float(v), 4) for v in np.median(share, axis=0)],  # left tip, notch, right tip, base
        "spread_against_iou": round(spearman(np.array([f.spread for f in found]), iou), 3),
        "ms_a_photo": round(1000 * statistics.median(times), 2),
        "cpu_ms_a_photo": round(1000 * cpu, 2),
    }


def on_real(locator: Locator, photos: int) -> dict[str, Any]:
    if not REAL.is_dir():
        return {"real": "skipped: ../shared/data/flukes is not there"}
    with open(REAL / "labels.csv", newline="", encoding="utf-8") as table:
        rows = [row for row in csv.DictReader(table) if row["bbox"]]
    order = np.random.default_rng(0).permutation(len(rows))[:photos]
    found, truth = [], []
    for row in (rows[i] for i in order):
        pixels = cv2.imread(str(REAL / row["path"]))
        found.append(
            locator.locate(
                np.ascontiguousarray(pixels[:, :, ::-1]), (int(row["original_width"]), int(row["original_height"]))
            )
        )
        x, y, w, h = json.loads(row["bbox"])
        truth.append((x, y, x + w, y + h))
    iou = overlaps(corners(found), np.array(truth, np.float64))
    return {
        "real_photos": len(iou),
        "real_iou": round(float(np.median(iou)), 4),
        "real_iou_above_half": round(float((iou > 0.5).mean()), 4),
        "real_confident": round(float(np.mean([f.confidence >= 0.5 for f in found])), 4),
        "real_spread_against_iou": round(spearman(np.array([f.spread for f in found]), iou), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cropper", type=Path, default=SHIPPED["fluke"])
    parser.add_argument("--whales", type=int, default=100, help="rendered, two photos each")
    parser.add_argument("--photos", type=int, default=2000, help="real ones, drawn at random")
    options = parser.parse_args()
    locator = Locator(options.cropper)
    result = {"cropper": locator.card.fingerprint, "folds": locator.card.folds}
    print(json.dumps(result | on_rendered(locator, options.whales) | on_real(locator, options.photos)))


if __name__ == "__main__":
    main()
