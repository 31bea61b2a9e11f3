"""The main job on photos that need no download: render whales, enrol them, ask for photos the store has not seen, draw the answers."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from reid import enrol
from reid.enrol import Progress
from reid.exchange import read_sources
from reid.pipeline import Query, identify
from reid.records import Answer
from reid.sheet import write_sheet
from reid.store import Store
from reid.synth import write_dataset


@dataclass(frozen=True, slots=True)
class Demo:
    """What was asked and answered: `truth[i]` is the whale on the photo of `answers[i]`, `known[i]` whether it was enrolled."""

    folder: Path
    answers: tuple[Answer, ...]
    truth: tuple[str, ...]
    known: tuple[bool, ...]
    sheets: tuple[Path, ...]
    enrolled: enrol.EnrolReport


def run(folder: Path, *, whales: int = 30, queries: int = 8, seed: int = 4, progress: Progress = enrol.quiet) -> Demo:
    """Render, enrol, query; everything is left in `folder` (photos/, labels.csv, queries.csv, store/, sheets/).

    Raises:
        StoreError: `folder` holds the store of an earlier demo.
    """
    store = Store.create(folder / "store", species="Megaptera novaeangliae", cropper="fluke")
    table = write_dataset(
        folder, whales, seed=seed, n_queries=queries, progress=lambda done, total: progress("render", done, total)
    )
    found = read_sources([table])
    with store:
        report = enrol.enrol(store, found.sightings, who="demo", progress=progress)
        asked = read_sources([folder / "queries.csv"]).sightings
        known = {sighting.identity for sighting in found.sightings}
        answers = identify(store, [Query((sighting,)) for sighting in asked])
        sheets = [write_sheet(store, a, folder / "sheets" / f"{Path(a.photos[0]).stem}.png") for a in answers]
    truth = tuple(_truth(folder / "queries.csv"))
    return Demo(folder, tuple(answers), truth, tuple(t in known for t in truth), tuple(sheets), report)


def _truth(table: Path) -> list[str]:
    with open(table, newline="", encoding="utf-8") as file:
        return [row["identity"] for row in csv.DictReader(file)]
