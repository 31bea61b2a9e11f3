"""`reid train` and `reid mine`: a better model, and the pairs where labels may be wrong. Parse, call, print."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from reid import steps
from reid.invocation import LEFT_OUT, Json, opened

OTHERS = ("cropper", "siamese")  # trained by commands of their own


class Train(TyperCommand):
    """`reid train`, which tells whoever writes `reid train cropper` what that is called."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Click's, but for one of `OTHERS` in the first place."""
        if args and args[0] in OTHERS:
            ctx.fail(steps.pasted(f"that is a command of its own: run reid train-{args[0]}"))
        return super().parse_args(ctx, args)


class TrainMode(StrEnum):
    """What is trained."""

    auto = "auto"
    head = "head"
    full = "full"


class TrainScale(StrEnum):
    """For what machine a whole network is trained."""

    auto = "auto"
    laptop = "laptop"
    gpu = "gpu"


class FoldBy(StrEnum):
    """What is never in two folds."""

    sighting = "sighting"
    identity = "identity"


def train(
    context: typer.Context,
    mode: Annotated[
        TrainMode,
        typer.Option(
            help="head: a projection on kept vectors, minutes on a CPU. full: the whole network by a recipe. "
            "auto: what this machine and these photos are fit for, saying why."
        ),
    ] = TrainMode.auto,
    recipe: Annotated[
        str, typer.Option(help="A published system (reid/train/recipes), or your own .toml file; says --mode full.")
    ] = "",
    scale: Annotated[
        TrainScale, typer.Option(help="Backbone, input size and epochs: fit for which machine.")
    ] = TrainScale.auto,
    minutes: Annotated[float, typer.Option(min=0, help="End a full training within; 0: as the recipe says.")] = 0,
    epochs: Annotated[int, typer.Option(min=0, help="Passes over the photos; 0: as reid.toml or the recipe says.")] = 0,
    views: Annotated[int, typer.Option(min=0, help="Views of each photo; 0: as reid.toml says.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same model.")] = 0,
    name: Annotated[str, typer.Option(help="The model's name, behind the date; a recipe's has the recipe's.")] = "head",
    folds: Annotated[
        int, typer.Option(min=0, help="Train so many models, each without one part of the photos; together they serve.")
    ] = 0,
    fold_by: Annotated[FoldBy, typer.Option(help="What is never in two parts: a sighting, or an animal.")] = (
        FoldBy.sighting
    ),
    pseudo_rounds: Annotated[
        int,
        typer.Option(min=0, help="Rounds in which photos without a name lend theirs to the training, if it is sure."),
    ] = 0,
    begin_with: Annotated[
        str,
        typer.Option(
            "--from", help="A network of this store, trained by a recipe, that learns further: see `reid models list`."
        ),
    ] = "",
    refit: Annotated[
        bool | None,
        typer.Option(
            "--refit/--no-refit",
            help="Once judged and not worse, learn on from all photos, the judges' too: half as long again, or a third of "
            "--minutes. Whole networks do, unless reid.toml says otherwise (folds and recipes by pairs cannot); a head is "
            "trained anew.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the newest unfinished training (of that --name).")] = False,
    json: Json = False,
) -> None:
    """Train a model on this store's photos and judge it on photos it never saw (needs the train extra).

    The new model is put below models/ and nothing else changes; `reid reindex --train` also puts it in force if it is
    not worse. The run's record is below training/ in the store.

    Example: reid --store whales train --recipe first_place --minutes 60
    """
    from reid import console, retrain, verdicts

    size = "" if scale is TrainScale.auto else scale.value
    options = retrain.Options(
        mode.value, epochs, views, seed, name, resume, recipe, size, minutes, folds, fold_by.value, pseudo_rounds,
        begin_with, refit,
    )  # fmt: skip
    with opened(context, again="the same command with --resume") as store, console.progress(json) as show:
        done = retrain.train(store, options, show).report
    console.as_json(done) if json else verdicts.trained(done)
    raise typer.Exit(LEFT_OUT if done.failures else 0)


def mine(
    context: typer.Context,
    top: Annotated[int, typer.Option(min=1, help="Pairs to look for, of two names and of one.")] = 40,
    everything: Annotated[
        bool, typer.Option("--all", help="Print every pair; else the worst ten (--json and --sheet have them all).")
    ] = False,
    sheet: Annotated[Path | None, typer.Option(help="Draw the pairs into this picture.")] = None,
    json: Json = False,
) -> None:
    """The hardest pairs: different names that look alike, one name that does not. Labels are wrong there first.

    Example: reid --store whales mine --sheet pairs.png
    """
    from reid import console, verdicts
    from reid import mine as pairs

    with opened(context) as store, console.progress(json) as show:
        found = pairs.hardest(store, top=top, progress=show)
        drawn = pairs.write_sheet(store, found, sheet) if sheet and found.pairs else None
    console.as_json(found) if json else verdicts.mined(found, everything=everything)
    if drawn and not json:
        typer.echo(f"contact sheet: {drawn}")
