"""A rendered catalogue on disk: JPEGs and tables in the columns of wildlife-datasets, as if a team had sent them.

The only module of the package that writes files. Threads suffice: nearly all the time is spent in array code that
lets go of the interpreter.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from reid.synth.exif import with_exif
from reid.synth.population import Shot, encounter_of, photo_counts, queries, shots, staged
from reid.synth.render import LONG_SIDE, expose, tight_box

COLUMNS = ("image_id", "identity", "path", "bbox", "date", "species", "encounter", "keypoints", "latitude", "longitude")
FIRST_DIGITAL_YEAR = 2006  # black-and-white photos before it are scans of film
Row = dict[str, str]


def write_dataset(
    folder: str | os.PathLike[str],
    n_identities: int,
    n_photos: int | None = None,
    *,
    seed: int = 0,
    n_queries: int = 0,
    new_share: float = 0.276,
    long_side: int = LONG_SIDE,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `photos/*.jpg` and `labels.csv` (and `queries.csv` where `n_queries` > 0) into `folder`; returns the path
    of `labels.csv`.

    Paths in the tables are relative to `folder`. `bbox` is `[x, y, w, h]`, `keypoints` `[x, y] * 4` (left tip, notch,
    right tip, base), both in pixels; `date` is `%Y-%m-%d %H:%M:%S`. Queries carry their true identity, whether it is
    in the catalogue or not, and never share an encounter with it; `new_share` of them are whales the catalogue lacks.
    Scans of film have no EXIF, as in life. `progress(done, total)` is called after every whale, from the
    calling thread. The same arguments write the same bytes; what is there already is overwritten.
    """
    root = Path(folder)
    (root / "photos").mkdir(parents=True, exist_ok=True)
    counts = photo_counts(n_identities, n_photos, seed)
    gallery = list(shots(n_identities, n_photos, seed))
    asked = list(queries(counts, n_queries, new_share, seed)) if n_queries else []
    rows = _written(root, [*gallery, *asked], long_side, workers, progress)
    _table(root / "labels.csv", (rows[shot] for shot in gallery))
    if asked:
        _table(root / "queries.csv", (rows[shot] for shot in asked))
    return root / "labels.csv"


def _written(
    root: Path, wanted: list[Shot], long_side: int, workers: int, progress: Callable[[int, int], None] | None
) -> dict[Shot, Row]:
    """Render and save all, one whale a task, so that its skin is drawn once."""
    tasks = [list(group) for _, group in groupby(wanted, key=lambda shot: shot.identity)]
    rows: dict[Shot, Row] = {}
    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        for task, made in zip(tasks, pool.map(lambda t: list(_saved(root, t, long_side)), tasks), strict=True):
            rows.update(zip(task, made, strict=True))
            if progress is not None:
                progress(len(rows), len(wanted))
    return rows


def _saved(root: Path, wanted: Iterable[Shot], long_side: int) -> Iterator[Row]:
    """Render, save and describe photos, one by one."""
    for shot in wanted:
        individual, view = staged(shot)
        photo = expose(individual, view, None, long_side)
        name = f"{individual.identity}_{shot.number:03d}"
        film = view.conditions.archive and view.taken_at.year < FIRST_DIGITAL_YEAR
        data = photo.jpeg if film else with_exif(photo.jpeg, view.taken_at, view.latitude, view.longitude)
        (root / "photos" / f"{name}.jpg").write_bytes(data)
        box = tight_box(photo.mask)
        yield {
            "image_id": name,
            "identity": individual.identity,
            "path": f"photos/{name}.jpg",
            "bbox": json.dumps([round(box.x0), round(box.y0), round(box.width), round(box.height)]),
            "date": view.taken_at.strftime("%Y-%m-%d %H:%M:%S"),
            "species": "humpback_whale",
            "encounter": encounter_of(shot).name,
            "keypoints": json.dumps([round(float(v), 1) for v in photo.landmarks.ravel()]),
            "latitude": f"{view.latitude:.5f}",
            "longitude": f"{view.longitude:.5f}",
        }


def _table(path: Path, rows: Iterable[Row]) -> None:
    """Write a CSV aside, then rename it, so that a table is whole or absent."""
    aside = path.with_suffix(".csv.part")
    with aside.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(aside, path)
