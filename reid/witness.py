"""A model that speaks for another: the same training without the photos that judge.

A network that was trained on all named photos finds more, and nothing in its store can say how much more: it knows every
photo by heart. So the network of the training that left the judges out stays in its directory,

    models/<name>/            the network that serves
    models/<name>/witness/    a model directory, whole by itself: the same before it learnt the judges' photos

and whatever is measured on left-out photos (a fit's fusion and thresholds, a verdict, an ensemble's weights) is asked of
the witness, whose vectors the catalogue holds beside the served ones. What it says holds for the served network on the
safe side: photos of strangers are as new to the one as to the other, animals that are known are better known to the one
that serves. An ensemble has one where a member has: the members' witnesses, side by side.

Knows model directories and stores; trains and measures nothing.
"""

from __future__ import annotations

from pathlib import Path

from reid import ensemble, models
from reid.embed import Embedder
from reid.models import ModelCard
from reid.store import Store

FOLDER = ensemble.WITNESS


def inside(model: Path) -> Path:
    """The directory of the model that speaks for the one in directory `model`: its witness, or itself where it has none."""
    own = model / FOLDER
    return own if (own / models.CARD).is_file() else model


def of(store: Store, model: str) -> str:
    """The name, below the store's models, of what speaks for `model`, itself where it has no witness. For a member of an
    ensemble (`ensemble/member`) that of the ensemble's witness.
    """
    whole, _, member = model.partition("/")
    for name in (f"{whole}/{FOLDER}/{member}".rstrip("/"), f"{model}/{FOLDER}"):
        if (store.models_folder / name / models.CARD).is_file():
            return name
    return model


def present(store: Store) -> str:
    """The witness of the model in force, below the store's models; empty where it speaks for itself."""
    name = store.embedder.card.name
    found = of(store, name)
    return found if found != name else ""


def card(store: Store) -> ModelCard:
    """Of what speaks for the model in force.

    Raises:
        ModelError: the witness is damaged.
    """
    found = present(store)
    return models.read_card(store.models_folder / found) if found else store.embedder.card


def fingerprint(store: Store) -> str:
    """Of the raw vectors that left-out photos are asked by."""
    return store.fingerprint_with(card(store))


def embedder(store: Store) -> Embedder:
    """The runtime of what speaks for the model in force.

    Raises:
        ModelError: the witness is damaged.
    """
    found = present(store)
    if not found:
        return store.embedder
    rules = store.config.embedder
    return ensemble.open_embedder(store.models_folder / found, device=rules.device, threads=rules.threads)
