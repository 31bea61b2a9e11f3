"""`reid models …`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from reid import steps
from reid.errors import MissingExtra
from reid.invocation import LEFT_OUT, Json, opened

networks = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Models that turn crops into vectors.\n\nExample: reid models list",
)


@networks.command("list")
def list_models(context: typer.Context, json: Json = False) -> None:
    """The models of this store; * marks the one in use.

    Example: reid models list
    """
    from reid import console, models

    with opened(context) as store:
        cards = models.listed(store.models_folder)
        used = store.config.embedder.model
        sizes = {c.name: models.size_of(store.models_folder / c.name) for c in cards}
    if json:
        console.as_json({"models": [_card(c) | {"bytes": sizes[c.name]} for c in cards], "used": used})
        return
    rows = [
        (
            "*" if c.name == used else "",
            c.name,
            c.dim,
            c.preprocessing.said,
            megabytes(sizes[c.name]),
            c.source,
        )
        for c in cards
    ]
    console.table(("", "model", "dimensions", "input", "size", "from"), rows)


@networks.command()
def info(context: typer.Context, name: str, json: Json = False) -> None:
    """Everything about one model.

    Example: reid models info lite0
    """
    from reid import console, models

    with opened(context) as store:
        folder = models.ensure(store.models_folder, name)
        said = _card(models.read_card(folder)) | _witness(folder)
    console.as_json(said) if json else console.table(("", ""), list(said.items()))


@networks.command()
def add(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(help="A timm name, hf-hub:OWNER/MODEL, or with --checkpoint the architecture of a local file."),
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Local weights: .safetensors, or a torch file of tensors only.")
    ] = None,
    json: Json = False,
) -> None:
    """Export a network into the store (needs the train extra). Put its name into reid.toml, then run reid reindex.

    Example: reid models add hf-hub:BVRA/MegaDescriptor-T-224
    """
    from reid import console

    with opened(context) as store:
        try:
            from reid.train import backbone
        except ImportError as error:
            raise MissingExtra(f"adding models needs {error.name}", next_step=steps.install("train")) from error
        network, card = backbone.from_name(name, checkpoint)
        backbone.export(network, card, store.models_folder)
    console.as_json(_card(card)) if json else console.say(
        f'added {card.name}; to use it: model = "{card.name}" under [embedder] in reid.toml, then reid reindex'
    )


@networks.command()
def remove(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(help="Models that are not in force, as `reid models list` names them.")],
    json: Json = False,
) -> None:
    """Delete models for good, with their trainings and, in the store's own catalogue, their vectors.

    Nights that train leave a model each. What the settings name stays, and so do photos and names.

    Example: reid models remove 2026-11-20 2026-11-21
    """
    from reid import console, forget

    with opened(context) as store:
        done = forget.forget(store, names)
    if json:
        console.as_json(done)
    else:
        print(f"models removed: {len(done.models)} ({megabytes(done.bytes)}, {done.vectors} vectors)")
        console.failures(done.failures)
    raise typer.Exit(LEFT_OUT if done.failures else 0)


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:.0f} MB"


def _witness(folder: Path) -> dict[str, str]:
    """That of a model's directory, if it has one."""
    from reid import witness

    own = witness.inside(folder)
    return {"witness": f"{folder.name}/{own.name}, which fits and verdicts ask in its place"} if own != folder else {}


def _card(card: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(card) | {"fingerprint": card.fingerprint}
