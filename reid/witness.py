"""A model that speaks for another: the same training without the photos that judge.

A network that was trained on all named photos finds more, and nothing in its store can say how much more: it knows every
photo by heart. So the network of the training that left the judges out stays in its directory,

    models/<name>/            the network that serves
    models/<name>/witness/    a model directory, whole by itself: the same before it learnt the judges' photos

and whatever is measured on left-out photos (a fit's fusion and thresholds, a verdict, an ensemble's weights) is asked of
the witness, whose vectors the catalogue holds beside the served ones. Photos of strangers are as new to the one as to the
other; known animals are better known to the one that serves, so a score at which the witness is seldom wrong should be one
at which that is seldom wrong, too (measured in `docs/experiments/training.md`). An ensemble has one where a member has: the members'
witnesses, side by side.

Knows model directories and stores; trains and measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reid import ensemble, models
from reid.embed import Embedder
from reid.errors import ModelError
from reid.models import ModelCard
from reid.store import Store

FOLDER = ensemble.WITNESS


def inside(model: Path) -> Path:
    """The directory of the model that speaks for the one in directory `model`: its witness, or itself where it has none."""
    own = model / FOLDER
    return own if own.is_dir() else model


def of(store: Store, model: str) -> str:
    """The name, below the store's models, of what speaks for `model`, itself where it has no witness. For a member of an
    ensemble (`ensemble/member`) that of the ensemble's witness.
    """
    whole, _, member = model.partition("/")
    for name in (f"{whole}/{FOLDER}/{member}".rstrip("/"), f"{model}/{FOLDER}"):
        if (store.models_folder / name).is_dir():
            return name
    return model


def present(store: Store) -> str:
    """The witness of the model in force, below the store's models; empty where it speaks for itself."""
    found = of(store, store.model)
    return found if found != store.model else ""


def card(store: Store) -> ModelCard:
    """Of what speaks for the model in force.

    Raises:
        ModelError: the witness is damaged.
    """
    found = present(store)
    if not found:
        return store.embedder.card
    with _damaged(store):
        return models.read_card(store.models_folder / found)


def fingerprint(store: Store) -> str:
    """Of the raw vectors that left-out photos are asked by. ModelError as for `card`."""
    return store.fingerprint_with(card(store))


def embedder(store: Store) -> Embedder:
    """The runtime of what speaks for the model in force. ModelError as for `card`."""
    found = present(store)
    if not found:
        return store.embedder
    rules = store.config.embedder
    with _damaged(store):
        return ensemble.open_embedder(store.models_folder / found, device=rules.device, threads=rules.threads)


@contextmanager
def _damaged(store: Store) -> Iterator[None]:
    """A ModelError in it says whose witness cannot be used, and what to do about that."""
    try:
        yield
    except ModelError as error:
        raise ModelError(
            f"the witness of '{store.model}' cannot be used ({error.message}), and nothing can be measured without it",
            source=error.source,
            next_step="copy the model's whole folder again, or name another model in reid.toml and run reid reindex",
        ) from error
