"""Our embedder against timm run eagerly in float32: the same backbone, weights and crops from memory, on the CPU's threads.

Both get decoded crops (rendered flukes, of the size that the model asks for) as uint8 and give vectors; what differs
is the engine. The two take turns, so that a drift of the machine's speed hits both; the ratio is the median of the
rounds' ratios. Prints one JSON object last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from reid import crop, models
from reid.embed import OpenVinoEmbedder, unit_rows
from reid.synth import catalogue


def rate(embed: Callable[[np.ndarray], np.ndarray], crops: np.ndarray) -> float:
    start = time.perf_counter()
    embed(crops)
    return len(crops) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16, help="timm's batch")
    options = parser.parse_args()

    import torch

    from reid.train import backbone

    with tempfile.TemporaryDirectory() as folder:
        directory = models.ensure(Path(folder))
        ours = OpenVinoEmbedder(directory)
        network, card = backbone.from_folder(directory)
        rendered = catalogue(n_identities=options.photos // 3, n_photos=options.photos, seed=1)
        crops = np.stack([crop.cut(photo.pixels, photo.box, card.preprocessing) for photo in rendered])

        def timm_eager(pixels: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                parts = [
                    network(torch.from_numpy(pixels[i : i + options.batch])).numpy()
                    for i in range(0, len(pixels), options.batch)
                ]
            return unit_rows(np.concatenate(parts))

        cosine = float((ours.embed(crops) * timm_eager(crops)).sum(1).mean())
        pairs = [(rate(ours.embed, crops), rate(timm_eager, crops)) for _ in range(options.rounds)]
    ratios = [a / b for a, b in pairs]
    import openvino

    result: dict[str, Any] = {
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "cosine": round(cosine, 6),
        "photos_per_s": round(statistics.median(a for a, _ in pairs), 1),
        "timm_photos_per_s": round(statistics.median(b for _, b in pairs), 1),
        "rounds": options.rounds,
        "cpu": openvino.Core().get_property("CPU", "FULL_DEVICE_NAME"),
        "bf16": "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
