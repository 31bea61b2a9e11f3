"""What `reid train --mode head` takes and gives: a projection on the kept vectors of a gallery, on two cores.

Trains on the photos of `gallery` (all views are embedded first, and kept in `--work` for the next run) and asks for
those of `queries` whose animal the gallery has: exact cosine, MAP@5 with a 95 % bootstrap interval over animals, of

* `base`: the default network as it ships, * `whitened`: after the whitening that a store's fit learns,
* `head`: the trained model, as it is and whitened likewise.

`train_s` is the head alone, the choice between the ways to train it included; `embed_s` the views. Prints one JSON
object last.

    python bench/train_head.py gallery.csv queries.csv
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse  # noqa: E402
import json  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

from recipes import Split, measured, source  # noqa: E402

from reid import models  # noqa: E402
from reid.train import quick  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--model", default=models.WIDE, help="the network to train on")
    parser.add_argument("--views", type=int, default=quick.QuickConfig().views)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where vectors and models are kept; else they are not")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        work = options.work or Path(aside)
        split = Split.read(options.gallery, options.queries)
        base = models.ensure(work / "models", options.model)
        done = quick.train(
            [source(one) for one in split.gallery], [one.identity or "" for one in split.gallery], base, work, "head",
            keep=work / "kept", config=quick.QuickConfig(views=options.views, seed=options.seed),
        )  # fmt: skip
        result = {
            "photos": done.photos,
            "views": 2 * options.views,
            "embed_s": round(done.seconds["whiten"] + done.seconds["embed"]),
            "train_s": round(done.seconds["head"]),
            "mirror_as_class": done.chosen.mirror_as_class,
            "tried": [round(one, 4) for one in done.tried],
            "base": measured(base, split, work),
            "head": measured(done.model, split, work),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
