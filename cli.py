"""The command line `reid`: which commands there are, and those of a store's life: parse → call → print.

Groups, and commands with helpers of their own, stand in `reid.commands_*`; what all share in `reid.invocation`.

Exit codes: 0 done · 1 an error, said on standard error · 2 wrong usage · 3 done, but some photos or rows were left out · 4 no candidates · 5 no
animal found · 6 the index is stale (run `reid reindex`).
"""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from reid import commands_individuals, commands_models, steps
from reid.commands_cropper import train_cropper
from reid.commands_ensemble import ensemble
from reid.commands_masks import masks
from reid.commands_query import explain, query
from reid.commands_remove import remove
from reid.commands_siamese import train_siamese
from reid.commands_train import Train, mine, train
from reid.invocation import LEFT_OUT, Json, Who, errors_said, opened, user

app = typer.Typer(
    name="reid",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Find the individual animal in a photo.\n\nExample: reid init && reid enroll photos/ --table names.csv && reid query new.jpg\n\n"
    "Exit codes: 0 done (match, new, review) · 1 error · 2 wrong usage · 3 done, but photos or rows were left out · "
    "4 no candidates · 5 no animal found · 6 the index is stale.",
)
STORELESS = ("evaluate", "demo", "masks")  # commands that need no store

Report = Annotated[Path | None, typer.Option(help="Write everything that was left out to this CSV.")]
Root = Annotated[Path | None, typer.Option(help="Where relative paths in tables start (else the table's folder).")]


class Layout(StrEnum):
    """What the folders below a source mean."""

    auto = "auto"
    flat = "flat"
    folders = "folders"


@app.callback()
def main(
    context: typer.Context,
    store: Annotated[Path, typer.Option("--store", envvar="REID_STORE", help="The store's directory.")] = Path(
        "reid-store"
    ),
) -> None:
    """Where the store is."""
    context.obj = store
    source = context.get_parameter_source("store")
    typed = source is not None and source.name == "COMMANDLINE"
    names = getattr(context.command, "commands", {})
    steps.stand_at(store if typed else None, [name for name in names if name not in STORELESS])


def init(
    context: typer.Context,
    species: Annotated[str | None, typer.Option(help="Species of this store's animals.")] = None,
    new_label: Annotated[
        str | None, typer.Option(help="What an animal is called that is not in the catalogue; else new_whale.")
    ] = None,
    model: Annotated[str, typer.Option(help="Embedder; empty: chosen at the first enrolment.")] = "",
    cropper: Annotated[
        str,
        typer.Option(help="Who finds the animal where a table gives no box: fluke for humpback flukes; else nobody."),
    ] = "",
    settings: Annotated[
        str, typer.Option(help="What to begin with: fourth_place (first place by geometry), or your own .toml file.")
    ] = "",
) -> None:
    """Make an empty store.

    Example: reid --store whales init --species "Megaptera novaeangliae" --cropper fluke
    """
    from reid import config_file
    from reid.store import Store

    with errors_said():
        values = config_file.values_of(settings) if settings else None
        store = Store.create(
            context.obj, begin_with=values, species=species, new_label=new_label, model=model, cropper=cropper
        )
    typer.echo(f"made a store in {store.root}; next: reid --store {shlex.quote(str(store.root))} enroll PHOTOS")


def enroll(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folders, globs, photos, or tables (wildlife-datasets CSV, Kaggle CSV, COCO, MegaDetector)."
        ),
    ],
    table: Annotated[Path | None, typer.Option(help="A table that names the photos.")] = None,
    root: Root = None,
    layout: Annotated[Layout, typer.Option(help="Whether folders are names of individuals.")] = Layout.auto,
    masks: Annotated[
        Path | None,
        typer.Option(exists=True, help="Folder of masks (.png, not black on the animal) that bear the photos' names."),
    ] = None,
    report: Report = None,
    who: Who = "",
    json: Json = False,
) -> None:
    """Take photos in: catalogue, vectors, index. Running it again goes on where it stopped.

    Example: reid enroll photos/ --table labels.csv --report left-out.csv
    """
    from reid import console, enrol, reindex
    from reid.exchange import read_sources
    from reid.masks import attached
    from reid.remove import removed_paths

    with opened(context, create=True) as store, console.progress(json) as show:
        out = removed_paths(store)
        found = read_sources(sources, table=table, root=root, layout=layout.value, removed=out)
        sightings = attached(found.sightings, masks)[0] if masks else found.sightings
        done = enrol.enrol(store, sightings, who=who or user(), progress=show)
        reindex.remember_sources(store, sources, table, root, layout.value)
    done.failures[:0] = found.failures
    if report:
        with errors_said():
            console.write_report(report, done.failures, [*found.notes, *done.notes])
    console.as_json(done) if json else console.enrolled(done, found.notes)
    raise typer.Exit(LEFT_OUT if done.failures else 0)


def reindex(
    context: typer.Context,
    force: Annotated[bool, typer.Option(help="Build the index anew even where nothing asks for it.")] = False,
    train: Annotated[
        bool,
        typer.Option(help="Also train on this store's photos; the new model serves only if it is not worse."),
    ] = False,
    report: Report = None,
    who: Who = "",
    json: Json = False,
) -> None:
    """Nightly: take in what changed, swap the index safely, report what is different.

    With --train (needs the train extra) it exits 1 where there could be no training; all else is done then, too.

    Example: reid --store /data/whales reindex --json >> reindex.log
    """
    from reid import console, retrain, train_siamese, verdicts
    from reid.reindex import reindex as run

    with opened(context) as store, console.progress(json) as show:
        done = run(
            store,
            who=who or user(),
            force=force,
            train=retrain.night if train else None,
            heads=train_siamese.night if train else None,
            progress=show,
        )
    if report:
        with errors_said():
            console.write_report(report, done.failures)
    if json:
        console.as_json(done)
    else:
        console.reindexed(done)
        verdicts.night(done.training, done.siamese)
    refused = any(isinstance(one, retrain.Refused) and one.failed for one in (done.training, done.siamese))
    raise typer.Exit(1 if refused else LEFT_OUT if done.failures else 0)


def status(context: typer.Context, json: Json = False) -> None:
    """What the store holds, and whether the index is up to date.

    Example: reid status --json
    """
    from reid import console, figures
    from reid.status import status as look

    with opened(context) as store:
        found = look(store)
    if json:
        console.as_json(found)
        return
    figures.stated(found)


def calibrate(
    context: typer.Context,
    false_match: Annotated[
        float, typer.Option(help="Of the answers given as matches, the share that may be wrong.")
    ] = 0.01,
    false_new: Annotated[float, typer.Option(help="Of the animals called new, the share that may be known.")] = 0.05,
    confidence: Annotated[float, typer.Option(help="How sure to be of that, over the choice of photos.")] = 0.95,
    off: Annotated[bool, typer.Option("--off", help="Promise nothing any more: match or new, never review.")] = False,
    json: Json = False,
) -> None:
    """Let queries answer match or new only at an error rate measured on this gallery; the rest is for a person to review.

    Photos of the gallery that were left out, with their animal and without it, say what the rates cost and whether there are
    enough of them to promise any; a rate that they cannot support is refused, with the number that would do. Below stands what
    other thresholds would spare and cost (--json: a dozen).

    Example: reid calibrate --false-match 0.01 && reid query new.jpg
    """
    from reid import console, fit, recent

    for name, value in (("--false-match", false_match), ("--false-new", false_new), ("--confidence", confidence)):
        if not 0 < value < 1:
            raise typer.BadParameter(f"{value} is not between 0 and 1", param_hint=name)
    aged: tuple[str, ...] = ()
    with opened(context) as store:
        if off:
            fit.forget_rates(store)
            found = {}
        else:
            made = fit.calibrate_rates(store, false_match=false_match, false_new=false_new, confidence=confidence)
            found = made.policy.to_dict() if made.policy else {}
            curve = fit.measured_risk(store, made)
            aged = recent.drift(store, made, len(store.gallery()))
    refused = bool(found) and all(one["threshold"] is None for one in found.values())
    if json:
        console.as_json(found | ({} if off else {"curve": curve, "warnings": list(aged)}))
    else:
        for line in console.promises(found) or ["nothing is promised: queries answer match or new by one threshold"]:
            typer.echo(line)
        if not off:
            console.risks(curve)
        for reason in aged:
            typer.echo(
                f"note: measured on left-out photos of another day: {reason}; reid reindex --force measures anew"
            )
    if refused:
        typer.echo("error: nothing can be promised from these photos; nothing was changed", err=True)
        raise typer.Exit(1)


def evaluate(
    gallery: Annotated[Path, typer.Argument(help="Table of known photos.")],
    queries: Annotated[Path, typer.Argument(help="Table of query photos with their true identities.")],
    model: Annotated[Path | None, typer.Option(help="A model directory; else the default model.")] = None,
    settings: Annotated[
        str, typer.Option(help="A reid.toml to measure, or fourth_place; else the default settings.")
    ] = "",
    dedup: Annotated[bool, typer.Option(help="Drop queries that are near-duplicates of gallery photos.")] = False,
    root: Root = None,
    false_match: Annotated[
        list[float] | None,
        typer.Option(help="Also promise this share of wrong matches, and count what comes of it (may be repeated)."),
    ] = None,
    json: Json = False,
) -> None:
    """Measure the engine on your own photos, by exactly the way that enroll and query go.

    Example: reid evaluate gallery.csv queries.csv --dedup --false-match 0.05 --json
    """
    from reid import console, figures
    from reid.evaluate import evaluate as run

    rates = false_match or []
    for rate in rates:
        if not 0 < rate < 1:
            raise typer.BadParameter(f"{rate} is not between 0 and 1", param_hint="--false-match")
    with errors_said(), console.progress(json) as show:
        found = run(
            gallery, queries, model=model, settings=settings, dedup=dedup, root=root, false_match=rates, progress=show
        )
    if json:
        console.as_json(found.to_json())
        return
    figures.evaluated(found)


def demo(
    folder: Annotated[Path, typer.Argument(help="Where to put photos, store and contact sheets.")] = Path("demo"),
    whales: Annotated[int, typer.Option(min=5, help="Whales to render.")] = 30,
    queries: Annotated[int, typer.Option(min=1, help="Photos to ask for.")] = 8,
    json: Json = False,
) -> None:
    """Render whales, enrol them, query photos the store has not seen.

    Example: reid demo /tmp/demo --whales 100
    """
    from reid import console
    from reid import demo as show_case

    with errors_said(), console.progress(json) as show:
        done = show_case.run(folder, whales=whales, queries=queries, progress=show)
    if json:
        console.as_json(done)
        return
    console.enrolled(done.enrolled)
    console.answers(
        done.answers, [t if k else f"{t}, not enrolled" for t, k in zip(done.truth, done.known, strict=True)]
    )
    typer.echo(
        f"contact sheets: {done.folder / 'sheets'}\nthe store: {done.folder / 'store'} (try: reid --store {done.folder / 'store'} status)"
    )


def export(
    context: typer.Context,
    target: Annotated[Path, typer.Argument(help="CSV to write (wildlife-datasets columns).")],
    json: Json = False,
) -> None:
    """Write photos, boxes and names as a wildlife-datasets CSV; what the format cannot hold is said.

    Example: reid export catalogue.csv
    """
    from reid import console
    from reid.export import write_wildlife_csv

    with opened(context) as store:
        done = write_wildlife_csv(store, target)
    if json:
        console.as_json(done)
        return
    typer.echo(f"{done.rows} annotations written to {target}")
    for note in done.lost:
        typer.echo(f"not in the table: {note}")


COMMANDS = (  # in the order of --help
    init, enroll, query, explain, reindex, train, mine, status, calibrate, evaluate, demo, export,
    remove, masks, train_cropper, train_siamese, ensemble,
)  # fmt: skip
for command in COMMANDS:
    app.command(cls=Train if command is train else None)(command)
app.add_typer(commands_individuals.people, name="individuals")
app.add_typer(commands_models.networks, name="models")

if __name__ == "__main__":
    app()
