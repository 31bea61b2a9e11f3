"""How fast fluke photos are rendered and written, 640 pixels on the long side: one worker, then two.

All is counted that `write_dataset` does: whales, sea, camera, JPEG, tables. Shared noise tiles are made before the
clock starts (once a process). `cpu_s_per_photo` is processor time, which a busy machine disturbs less. Prints one JSON
object last.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import cv2

from reid.synth import write_dataset


def timed(folder: Path, n_photos: int, workers: int) -> tuple[float, float]:
    """Photos a second by the clock and processor seconds a photo."""
    wall, busy = time.perf_counter(), time.process_time()
    write_dataset(folder, round(n_photos / 3.1), n_photos, seed=workers, workers=workers)
    return n_photos / (time.perf_counter() - wall), (time.process_time() - busy) / n_photos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=150)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_dataset(Path(name) / "warm", 12, 12)
        cv2.setNumThreads(1)  # one worker means one core; the workers are the parallelism
        one, cpu = timed(Path(name) / "one", options.photos, 1)
        two, _ = timed(Path(name) / "two", options.photos, 2)
    print(
        json.dumps(
            {
                "photos_per_s": round(two, 2),
                "photos_per_s_one": round(one, 2),
                "cpu_s_per_photo": round(cpu, 4),
                "photos": options.photos,
            }
        )
    )


if __name__ == "__main__":
    main()
