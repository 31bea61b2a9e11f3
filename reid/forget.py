"""`reid models remove`: a model that is no longer wanted leaves the disk, with all that is its alone.

Each night that trains leaves a model behind, with the network before it learnt the judges' photos and what the CPU's
runtime compiled of both, the folder of its training, and a vector for each box in the catalogue. None of that is ever
needed again once another model serves, nor can it be had back but by training. So models go by name alone, and never one
that the settings name. Vectors in a catalogue that is not the store's own stay: another store may ask for them.

Knows a store's models, trainings and vectors; photos and names are not touched.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reid import locate, models
from reid.errors import ModelError, StoreBusy
from reid.index.snapshot import lock
from reid.records import Failure
from reid.store import Store
from reid.train import runs
from reid.withheld import TRAINING

_GONE = "-removed"  # at the end of a hidden folder's name: it is being deleted


@dataclass
class Forgotten:
    """Names of models that are gone, the bytes that their files took, vectors that left the catalogue, and what stayed."""

    models: list[str] = field(default_factory=list)
    bytes: int = 0
    vectors: int = 0
    failures: list[Failure] = field(default_factory=list)


def forget(store: Store, names: Sequence[str]) -> Forgotten:
    """Remove models, croppers among them, by their names.

    Raises:
        CatalogueError: vectors cannot be deleted; the files are gone then, and the next call deletes the vectors.
    """
    done = Forgotten()
    parents = (store.root / TRAINING, store.models_folder)  # the model last: until it is gone it can be named again
    for left in (one for parent in parents for one in parent.glob(f".*{_GONE}")):
        shutil.rmtree(left, ignore_errors=True)  # of a call that was killed
    for name in dict.fromkeys(names):
        refused = _refusal(store, name)
        if refused:
            done.failures.append(refused)
            continue
        folders = [parent / name for parent in parents if (parent / name).is_dir()]
        size = sum(map(models.size_of, folders))
        gone = [folder.with_name(f".{name}{_GONE}") for folder in folders]
        try:
            for folder, aside in zip(folders, gone, strict=True):
                os.rename(folder, aside)  # whole, or not there
            for aside in gone:
                shutil.rmtree(aside)
        except OSError as error:
            done.failures.append(
                Failure(name, "error", f"cannot be deleted whole ({error.strerror or error})", "delete its folders")
            )
            continue
        done.models.append(name)
        done.bytes += size
    if not store.config.catalogue.url:
        done.vectors = store.catalogue.drop_embeddings(sorted(_orphans(store)))
    return done


def _refusal(store: Store, name: str) -> Failure | None:
    """Why a model has to stay; None where it may go."""
    folder, settings = store.models_folder / name, store.config
    named = {Path(name).name} == {name} and not name.startswith(".")
    if not named or not any((folder / card).is_file() for card in (models.CARD, locate.CARD)):
        return Failure(name, "bad_input", "no model of that name below models/", "reid models list")
    if name == store.model:
        return Failure(name, "bad_input", "is the model in force", "put another in force first: reid models list")
    if name in (settings.crop.model, *settings.crop.species.values()):
        return Failure(name, "bad_input", "is a cropper in force", "change [crop] in reid.toml first")
    run = store.root / TRAINING / name
    if run.is_dir() and _busy(run):
        return Failure(name, "bad_input", "its training is still running", "wait for its end, or stop it first")
    return None


def _busy(run: Path) -> bool:
    try:
        with lock(run / runs.LOCK, timeout=0):
            return False
    except StoreBusy:
        return True


def _orphans(store: Store) -> Iterator[str]:
    """Fingerprints of vectors that no model of the store made, by whatever views. Nothing, if a model cannot be read:
    whose vectors it made is not known then.
    """
    try:
        roots = (store.models_folder, store.root / TRAINING)  # a training that still runs, or may be resumed
        there = {models.read_card(card.parent).fingerprint for root in roots for card in root.rglob(models.CARD)}
        there.add(store.embedder.card.fingerprint)
    except ModelError:
        return
    yield from (made for made in store.catalogue.models() if made.partition("+")[0] not in there)
