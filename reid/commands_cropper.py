"""`reid train-cropper`: parse, call, print."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reid import steps
from reid.errors import MissingExtra
from reid.invocation import LEFT_OUT, Json, opened

if TYPE_CHECKING:
    from reid.recrop import Report


def train_cropper(
    context: typer.Context,
    from_store: Annotated[
        bool, typer.Option("--from-store", help="Learn from the boxes that tables and people gave.")
    ] = False,
    whales: Annotated[
        int, typer.Option(min=-1, help="Flukes to render, 3 photos each; −1: 2,000, none with --from-store.")
    ] = -1,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the photos.")] = 18,
    folds: Annotated[int, typer.Option(min=1, help="Regressors whose boxes are compared.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same cropper.")] = 0,
    name: Annotated[str, typer.Option(help="The cropper's name, behind the date.")] = "cropper",
    resume: Annotated[bool, typer.Option(help="Go on with the newest unfinished one of that --name.")] = False,
    json: Json = False,
) -> None:
    """Train a box regressor, on rendered flukes or on this store's boxes (needs the train extra).

    The new cropper is put below models/ and nothing else changes; `[crop] model` in reid.toml puts it in force.

    Example: reid --store whales train-cropper --from-store --name ours
    """
    from reid import console

    with opened(context) as store, console.progress(json) as show:
        recrop = _recrop()
        options = recrop.Options(from_store, whales, epochs, folds, seed, name, resume)
        done = recrop.train(store, options, show)
    console.as_json(done) if json else trained(done)
    raise typer.Exit(LEFT_OUT if done.failures else 0)


def _recrop() -> Any:
    """`reid.recrop`, which needs torch; MissingExtra where that is not installed."""
    try:
        from reid import recrop
    except ImportError as error:
        raise MissingExtra(f"training needs {error.name}", next_step=steps.install("train")) from error
    return recrop


def trained(report: Report) -> None:
    """What a training gave, and what to do next."""
    from reid import console

    print(f"trained on {report.photos} photos of this store and {report.rendered} rendered ones; run: {report.run}")
    measures = (
        ("median IoU, this store's held-out animals", report.iou_store),
        ("the same, by the cropper that ships", report.iou_before),
        ("median IoU, rendered flukes held out", report.iou_rendered),
        ("landmark error there, share of the width", report.landmark_error),
    )
    console.table(("measure", "value"), [(what, f"{value:.3f}") for what, value in measures if not math.isnan(value)])
    console.say(report.next_step)
    console.failures(report.failures)
