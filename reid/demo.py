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
from reid.store import SETTINGS, Store
from reid.synth import write_dataset

MARK = "README.txt"  # in the demo's folder, so that nobody's own store is taken for its


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
    """Render, enrol, query; everything is left in `folder` (photos/, labels.csv, queries.csv, store/, sheets/). Run
    again, finished or not, it goes on with what is there.

    Raises:
        StoreError: `folder` holds a store that no demo made.
    """
    store = _store(folder)
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


def _store(folder: Path) -> Store:
    """The demo's store in `folder`: a new one, or that of an earlier run."""
    made, place = folder / MARK, folder / "store"
    if made.exists() and (place / SETTINGS).exists():
        return Store.open(place)
    store = Store.create(place, species="Megaptera novaeangliae", cropper="fluke")
    made.write_text("Made by `reid demo`: rendered photos and a store of them. It may be deleted.\n", encoding="utf-8")
    return store


def _truth(table: Path) -> list[str]:
    with open(table, newline="", encoding="utf-8") as file:
        return [row["identity"] for row in csv.DictReader(file)]
