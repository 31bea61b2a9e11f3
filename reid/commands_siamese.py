"""`reid train-siamese`: parse, call, print."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from reid.invocation import Json, opened


class Negatives(StrEnum):
    """How photos of different animals are set against each other."""

    auto = "auto"
    exact = "exact"
    blocks = "blocks"
    sparse = "sparse"
    random = "random"


class Mirrored(StrEnum):
    """What becomes of mirrored views."""

    views = "views"
    none = "none"


def train_siamese(
    context: typer.Context,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the photos.")] = 40,
    negatives: Annotated[
        Negatives,
        typer.Option(
            help="How pairs of two animals are chosen: the hardest by assignment (exact: over all pairs; blocks: inside "
            "random parts; sparse: over each photo's nearest in the index), or random. auto: exact up to 4,000 photos, "
            "sparse beyond."
        ),
    ] = Negatives.auto,
    hard_positives: Annotated[
        bool, typer.Option(help="Also set the least alike photos of an animal against each other.")
    ] = False,
    views: Annotated[
        int, typer.Option(min=0, help="Views of each photo, kept once made; 1: the plain one; 0: as reid.toml says.")
    ] = 0,
    mirror: Annotated[
        Mirrored, typer.Option(help="views: pairs are shown mirrored, too (both photos of an animal, or none).")
    ] = Mirrored.views,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same heads.")] = 0,
    among: Annotated[
        int, typer.Option(min=0, help="An assigned pair is the hardest of about so many at most; 0: of all photos.")
    ] = 32,
    json: Json = False,
) -> None:
    """Train a Siamese head on this store's vectors: queries score their shortlist again with it (needs the train extra).

    It is in force at once, as one more source of the answers; `siamese = false` under [query] in reid.toml does
    without. Of another model's vectors it knows nothing: train it again after a change of model. Names that may be one
    animal (`suspect` under [training]) are not taught as two, and are told.

    Example: reid --store whales train-siamese
    """
    from reid import console, train_siamese, verdicts

    with opened(context) as store, console.progress(json) as show:
        done = train_siamese.train(
            store,
            train_siamese.Options(epochs, seed, negatives.value, hard_positives, views, mirror.value, among),
            show,
        )
    console.as_json(done) if json else verdicts.heads(done)
