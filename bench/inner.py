"""Two tables out of one set of photos with identities: a gallery, and queries that do not leak from it.

`labels.csv` (wildlife-datasets style: `image_id, identity, path`, and what else there is) is split by sightings: photos
whose perceptual hashes differ in at most `--duplicate` bits are one sighting, whoever they are said to show, and so are
photos of one animal that differ in at most `--burst` bits, since such tables have no times. A random 15 % of the animals
(`--unknown`) are kept out of the gallery. Every animal gives at most one random query, a known one only where another
sighting of it stays behind; the rest of a query's sighting is left out of both tables. Photos of `--new` (nobody's) are left out.

All figures for inner splits since 2026-11-22 are of such tables with the defaults. Prints one JSON object last.

    python bench/inner.py ../shared/data/flukes /tmp/flukes
"""

from __future__ import annotations

import argparse
import csv
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid import duplicates, images

Row = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder with labels.csv and the photos it names")
    parser.add_argument("out", type=Path, help="where gallery.csv and queries.csv are written")
    parser.add_argument(
        "--unknown", type=float, default=0.15, help="share of the animals that the gallery does not have"
    )
    parser.add_argument("--duplicate", type=int, default=2, help="bits within which two photos show one moment")
    parser.add_argument("--burst", type=int, default=12, help="the same for two photos of one animal")
    parser.add_argument("--most", type=int, default=0, help="queries at most, at random; 0: one of every animal")
    parser.add_argument("--new", default="new_whale", help="the label of photos that are nobody's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with (options.data / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = [row | {"path": str((options.data / row["path"]).resolve())} for row in csv.DictReader(file)]
    rows = [row for row in rows if row["identity"] != options.new]
    with ThreadPoolExecutor() as pool:
        hashes = np.array(list(pool.map(hash_of, (row["path"] for row in rows))), np.uint64)
    _, animals = np.unique([row["identity"] for row in rows], return_inverse=True)
    groups = sightings(hashes, animals, options.duplicate, options.burst)
    gallery, queries = split(animals, groups, options.unknown, options.seed, options.most)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, some in (("gallery", gallery), ("queries", queries)):
        write(options.out / f"{name}.csv", [rows[row] for row in some])
    known = np.isin(animals[queries], animals[gallery])
    print(json.dumps({
        "photos": len(rows), "animals": int(animals.max()) + 1, "sightings": len(np.unique(groups)), "seed": options.seed,
        "gallery": len(gallery), "gallery_animals": len(np.unique(animals[gallery])),
        "queries_known": int(known.sum()), "queries_new": int((~known).sum()),
    }))  # fmt: skip


def hash_of(path: str) -> int:
    return images.perceptual_hash(images.read(path).pixels)


def sightings(hashes: NDArray[np.uint64], animals: NDArray[np.int64], duplicate: int, burst: int) -> NDArray[np.int64]:
    """A code for each photo, `(N,)`: photos of one sighting share it."""
    parent = list(range(len(hashes)))

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    near = duplicates.near_duplicates(hashes, max(duplicate, burst))
    for a, b, bits in zip(near.first.tolist(), near.second.tolist(), near.distance.tolist(), strict=True):
        if bits <= duplicate or (animals[a] == animals[b] and bits <= burst):
            parent[root(a)] = root(b)
    return np.array([root(one) for one in range(len(hashes))], np.int64)


def split(
    animals: NDArray[np.int64], groups: NDArray[np.int64], unknown: float, seed: int, most: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the gallery and of the queries, both ascending."""
    rng = np.random.default_rng(seed)
    herd = rng.permutation(int(animals.max()) + 1)
    away = np.isin(animals, herd[: round(unknown * len(herd))])
    queries: dict[int, int] = {}
    for row in rng.permutation(len(animals)).tolist():
        own = animals == animals[row]
        if int(animals[row]) not in queries and (away[row] or len(np.unique(groups[own])) > 1):
            queries[int(animals[row])] = row
    asked = np.array(sorted(list(queries.values())[: most or None]), np.int64)
    gallery = np.flatnonzero(~away & ~np.isin(groups, groups[asked]))
    # another animal's query may have taken the sightings that were left: then its own is neither known nor new
    return gallery, asked[away[asked] | np.isin(animals[asked], animals[gallery])]


def write(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
