"""Describing a crop and verifying a shortlist of twenty, from keypoints as the store keeps them.

`sift_ms`: `keypoints.describe` of a crop whose long side is 512 pixels, defaults, by which it is first reduced to 320; `sift_512_ms`:
without that. `verify20_ms`: a query's twenty
candidates are read from the feature store's files and verified, defaults: reading, matching, fitting and describing
the pairs; the query's own features are at hand. The photos are the nyala beside the checkout where they are, rendered
flukes otherwise. Medians over the queries; the candidates of a query are photos of its own animal first, then others,
as a shortlist would have them. Prints one JSON object last.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from reid.keypoints import FeatureStore, KeypointConfig, LocalFeatures, describe
from reid.verify import ESTIMATORS, VerifyConfig, verify_many

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
LONG_SIDE = 512
SHORTLIST = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=120, help=f"above {SHORTLIST}")
    parser.add_argument("--queries", type=int, default=30)
    parser.add_argument("--rendered", action="store_true", help="rendered flukes even where real photos are")
    options = parser.parse_args()
    crops, animals, what = photos(options.photos, options.rendered)
    config, full = KeypointConfig(), KeypointConfig(long_side=LONG_SIDE)
    features, sift, sift_full = [], [], []
    for crop in crops:
        start = time.perf_counter()
        features.append(describe(crop, None, config))
        sift.append(time.perf_counter() - start)
        start = time.perf_counter()
        describe(crop, None, full)
        sift_full.append(time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder), config)
        for number, each in enumerate(features):
            store.put(f"{number:064x}", None, each)
        lists = [shortlist(query, animals) for query in range(min(options.queries, len(crops)))]
        default = [verify_from(store, features[query], rows, VerifyConfig()) for query, rows in enumerate(lists)]
        others = {
            f"{model}/{estimator}": round(
                1e3
                * statistics.median(
                    verify_from(store, features[query], rows, VerifyConfig(model=model, estimator=estimator))
                    for query, rows in enumerate(lists[:10])
                ),
                1,
            )
            for model in ("homography", "affine", "similarity")
            for estimator in ESTIMATORS
        }
    result: dict[str, Any] = {
        "verify20_ms": round(1e3 * statistics.median(default), 1),
        "verify20_p90_ms": round(1e3 * float(np.percentile(default, 90)), 1),
        "sift_ms": round(1e3 * statistics.median(sift), 1),
        "sift_512_ms": round(1e3 * statistics.median(sift_full), 1),
        "sift_p90_ms": round(1e3 * float(np.percentile(sift, 90)), 1),
        "verify20_ms_of": others,
        "photos": what,
        "keypoints": round(statistics.mean(len(each) for each in features), 1),
        "bytes_a_photo": round(statistics.mean(each.nbytes for each in features)),
        "cores": os.cpu_count(),
    }
    print(json.dumps(result))


def verify_from(store: FeatureStore, query: LocalFeatures, rows: list[int], config: VerifyConfig) -> float:
    """Seconds to read and verify `rows` of the store."""
    start = time.perf_counter()
    candidates = [store.get(f"{row:064x}", None) for row in rows]
    found = verify_many(query, [each for each in candidates if each is not None], config)
    took = time.perf_counter() - start
    assert len(found) == len(rows) == SHORTLIST, f"{len(found)} verified: --photos must be above {SHORTLIST}"
    return took


def shortlist(query: int, animals: list[str]) -> list[int]:
    """Twenty other photos, those of the query's animal first."""
    others = [row for row in range(len(animals)) if row != query]
    return sorted(others, key=lambda row: animals[row] != animals[query])[:SHORTLIST]


def photos(count: int, rendered: bool) -> tuple[list[np.ndarray], list[str], str]:
    """`count` RGB crops with a long side of 512 pixels, their animals, and where they are from."""
    folder = SHARED / "nyala"
    if folder.is_dir() and not rendered:
        with (folder / "labels.csv").open(newline="") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: row["identity"])[:count]
        crops = [cv2.cvtColor(cv2.imread(str(folder / row["path"])), cv2.COLOR_BGR2RGB) for row in rows]
        return [sized(crop) for crop in crops], [row["identity"] for row in rows], "nyala"
    from reid.synth import catalogue

    crops, animals = [], []
    for photo in catalogue(n_identities=max(1, count // 4), n_photos=count, seed=1):
        x0, y0, x1, y1 = (round(value) for value in (photo.box.x0, photo.box.y0, photo.box.x1, photo.box.y1))
        crops.append(sized(photo.pixels[max(y0, 0) : y1, max(x0, 0) : x1]))
        animals.append(str(photo.identity))
    return crops, animals, "rendered flukes"


def sized(crop: np.ndarray) -> np.ndarray:
    factor = LONG_SIDE / max(crop.shape[:2])
    size = (max(1, round(crop.shape[1] * factor)), max(1, round(crop.shape[0] * factor)))
    return np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC))


if __name__ == "__main__":
    main()
