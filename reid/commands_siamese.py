"""`reid train-siamese`: parse, call, print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reid.invocation import Json, opened

if TYPE_CHECKING:
    from reid.train_siamese import Report


def train_siamese(
    context: typer.Context,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the photos.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same heads.")] = 0,
    json: Json = False,
) -> None:
    """Train a Siamese head on this store's vectors: queries score their shortlist again with it (needs the train extra).

    It is in force at once, as one more source of the answers; `siamese = false` under [query] in reid.toml does
    without. Of another model's vectors it knows nothing: train it again after a change of model.

    Example: reid --store whales train-siamese
    """
    from reid import console, train_siamese

    with opened(context) as store, console.progress(json) as show:
        done = train_siamese.train(store, train_siamese.Options(epochs, seed), show)
    console.as_json(done) if json else trained(done)


def trained(report: Report) -> None:
    """What a training gave."""
    gain = report.map_at_5
    print(f"trained on {report.photos} photos of {report.animals} animals ({report.seconds['train']:.0f} s)")
    print(
        f"MAP@5 of {report.queries} photos of animals that the head had not seen: cosine {gain.before:.3f}, head "
        f"{gain.after:.3f}; difference {gain.gain:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    )
    print(f"in force: {report.folder}; the sources are fused by: {report.fusion}")
