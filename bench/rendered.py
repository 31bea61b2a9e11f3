"""The embedder that ships for flukes (`reid/weights_embedder/fluke`): made from rendered whales alone, judged on real photos.

Renders `--animals` whales, `--photos` each; teaches a network from ImageNet on them by the recipes `rendered-1.toml`, at
a larger size `rendered-2.toml`, and on look-alikes `rendered-3.toml`, `rendered-4.toml` and, of two to four times the
whales, `rendered-5.toml`, `rendered-6.toml` and `rendered-7.toml` beside this file; halves its numbers' bytes; measures. Everything is
kept in `--work`, and a run that was interrupted goes on. With `--ship` the model directory is put into the package.

Judged as `bench/recipes.py` judges: the photos of `queries` whose animal `gallery` has, exact cosine, MAP@5 with a 95 %
bootstrap interval over animals, as it is and after the whitening that a store's fit learns; beside it the default
network from ImageNet. Tables come in pairs, so that other animals can be asked about as well. Prints one JSON object last.

    python bench/rendered.py --work DIR --on gallery.csv queries.csv --on other/gallery.csv other/queries.csv
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse  # noqa: E402
import csv  # noqa: E402
import json  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
from recipes import Split, measured  # noqa: E402

from reid import models  # noqa: E402
from reid.records import Box  # noqa: E402
from reid.synth import Shot, staged  # noqa: E402
from reid.synth.render import expose, tight_box  # noqa: E402
from reid.train import embedder, recipe, shipping  # noqa: E402
from reid.train.features import Source  # noqa: E402

SEED = 777
LONG_SIDE = 200  # pixels
SOURCE = "EfficientNet-lite0 from ImageNet, then rendered humpback flukes (bench/rendered.py)"
RECIPES = tuple(Path(__file__).with_name(f"rendered-{stage}.toml") for stage in range(1, 8))
TIMES = {"rendered-5": 2, "rendered-6": 3, "rendered-7": 4}  # as many whales as the others are shown
THRESHOLD = 0.80  # of cosines: of 60 to 300 real flukes nine in ten have no other animal nearer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--on", type=Path, nargs=2, action="append", default=[], metavar=("GALLERY", "QUERIES"))
    parser.add_argument("--animals", type=int, default=2500)
    parser.add_argument("--photos", type=int, default=6)
    parser.add_argument("--recipes", type=Path, nargs="+", default=RECIPES, help="each goes on from the one before")
    parser.add_argument("--ship", action="store_true")
    options = parser.parse_args()
    seconds = 0.0
    stages: list[dict[str, Any]] = []
    taught: Path | None = None
    for file in options.recipes:
        folder = options.work / file.stem
        model = folder / "raw"
        if not (model / models.CARD).is_file():
            begun = time.perf_counter()
            whales = options.animals * TIMES.get(file.stem, 1)
            rows = rendered(options.work / "whales", whales, options.photos)
            seconds += time.perf_counter() - begun
            done = embedder.train(
                [source for source, _ in rows], [animal for _, animal in rows], recipe.load(file, "laptop"), folder,
                "raw", resume=True, begin_with=taught,
                epochs=lambda epoch, loss, _: print(f"pass {epoch + 1}: loss {loss:.3f}", file=sys.stderr),
            )  # fmt: skip
            stages.append({
                "recipe": file.stem, "photos": done.photos, "animals": done.animals, "steps": done.steps,
                "losses": [round(one.loss, 3) for one in done.history], "seconds": round(done.seconds["total"]),
            })  # fmt: skip
        taught = model
    assert taught is not None
    model = shipping.halved(taught, options.work, models.FLUKE, source=SOURCE, by="flukes", threshold=THRESHOLD)
    size = sum(file.stat().st_size for file in model.iterdir() if file.is_file())
    result: dict[str, Any] = {"render_s": round(seconds), "stages": stages, "bytes": size}
    base = models.ensure(options.work / "models", models.WIDE)
    for gallery, queries in options.on:
        split = Split.read(gallery, queries)
        result[str(gallery)] = {one.name: measured(one, split, options.work) for one in (base, model)}
    if options.ship:
        shutil.copytree(
            model, models.SHIPPED[models.FLUKE], dirs_exist_ok=True, ignore=shutil.ignore_patterns("compiled")
        )
    print(json.dumps(result))


def rendered(folder: Path, animals: int, photos: int) -> list[tuple[Source, str]]:
    """The whales' photos below `folder`, with their boxes and names; those that are there are not drawn again."""
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda animal: _whale(folder, animal, photos), range(animals))
        return [one for whale in found for one in whale]


def _whale(folder: Path, animal: int, photos: int) -> list[tuple[Source, str]]:
    table = folder / f"{animal}.csv"
    if not table.is_file():
        lines = []
        for number in range(photos):
            individual, view = staged(Shot(SEED, animal, 2 * number))
            photo = expose(individual, view, None, LONG_SIDE)
            path = folder / "photos" / f"{animal}_{number}.jpg"
            path.write_bytes(photo.jpeg)
            box = tight_box(photo.mask)
            lines.append([path.name, individual.identity, *np.round((box.x0, box.y0, box.x1, box.y1)).astype(int)])
        aside = table.with_suffix(".part")
        with aside.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lines)
        aside.rename(table)
    with table.open(encoding="utf-8") as file:
        return [
            (Source(folder / "photos" / name, Box(*map(float, corners))), identity)
            for name, identity, *corners in csv.reader(file)
        ]


if __name__ == "__main__":
    main()
