"""The command line `reid`: parse → call → print. Everything else is below it.

Exit codes: 0 done · 1 an error, said on standard error · 2 wrong usage · 3 done, but some photos or rows were left out · 4 no candidates · 5 no
animal found · 6 the index is stale (run `reid reindex`).
"""

from __future__ import annotations

import getpass
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from reid import (
    commands_cropper,
    commands_ensemble,
    commands_individuals,
    commands_models,
    commands_remove,
    commands_siamese,
    steps,
)
from reid.errors import ReidError

app = typer.Typer(
    name="reid",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Find the individual animal in a photo.\n\nExample: reid init && reid enroll photos/ --table names.csv && reid query new.jpg\n\n"
    "Exit codes: 0 done (match, new, review) · 1 error · 2 wrong usage · 3 done, but photos or rows were left out · "
    "4 no candidates · 5 no animal found · 6 the index is stale.",
)
EXITS = {"match": 0, "new": 0, "review": 0, "error": 1, "no_candidates": 4, "no_detection": 5, "index_stale": 6}
LEFT_OUT = 3
STORELESS = ("evaluate", "demo")  # commands that need no store

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Who = Annotated[str, typer.Option(help="Who says so, for the log.", envvar="REID_USER")]
Report = Annotated[Path | None, typer.Option(help="Write everything that was left out to this CSV.")]
Root = Annotated[Path | None, typer.Option(help="Where relative paths in tables start (else the table's folder).")]


class Layout(StrEnum):
    """What the folders below a source mean."""

    auto = "auto"
    flat = "flat"
    folders = "folders"


class Side(StrEnum):
    """Which side of the animal a photo shows."""

    left = "left"
    right = "right"
    unknown = "unknown"


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


@contextmanager
def _errors() -> Iterator[None]:
    """Our own errors become one line and exit code 1 (6 for a stale index)."""
    try:
        yield
    except ReidError as error:
        typer.echo(f"error: {steps.pasted(str(error))}", err=True)
        raise typer.Exit(EXITS["index_stale"] if error.code in ("index_stale", "snapshot_corrupt") else 1) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted: what was done is kept; the same command goes on from there", err=True)
        raise typer.Exit(130) from error


@contextmanager
def _store(context: typer.Context, *, create: bool = False) -> Iterator[Any]:
    from reid.store import SETTINGS, Store

    with _errors():
        root: Path = context.obj
        store = Store.create(root) if create and not (root / SETTINGS).exists() else Store.open(root)
        with store:
            yield store


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


@app.command()
def init(
    context: typer.Context,
    species: Annotated[str, typer.Option(help="Species of this store's animals.")] = "",
    new_label: Annotated[
        str, typer.Option(help="What an animal is called that is not in the catalogue.")
    ] = "new_whale",
    model: Annotated[str, typer.Option(help="Embedder; empty: chosen at the first enrolment.")] = "",
    cropper: Annotated[
        str, typer.Option(help="Who finds the animal where a table gives no box: none, or fluke for humpback flukes.")
    ] = "none",
) -> None:
    """Make an empty store.

    Example: reid --store whales init --species "Megaptera novaeangliae" --cropper fluke
    """
    from reid.store import Store

    with _errors():
        store = Store.create(context.obj, species=species, new_label=new_label, model=model, cropper=cropper)
    typer.echo(f"made a store in {store.root}; next: reid --store {shlex.quote(str(store.root))} enroll PHOTOS")


@app.command()
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

    with _store(context, create=True) as store, console.progress(json) as show:
        out = removed_paths(store)
        found = read_sources(sources, table=table, root=root, layout=layout.value, removed=out)
        sightings = attached(found.sightings, masks)[0] if masks else found.sightings
        done = enrol.enrol(store, sightings, who=who or _user(), progress=show)
        reindex.remember_sources(store, sources, table, root, layout.value)
    done.failures[:0] = found.failures
    if report:
        with _errors():
            console.write_report(report, done.failures, [*found.notes, *done.notes])
    console.as_json(done) if json else console.enrolled(done, found.notes)
    raise typer.Exit(LEFT_OUT if done.failures else 0)


@app.command()
def query(
    context: typer.Context,
    photos: Annotated[list[Path], typer.Argument(help="Photos to name; each by itself unless --encounter.")],
    encounter: Annotated[bool, typer.Option(help="All photos show the same animal: one answer.")] = False,
    side: Annotated[
        Side,
        typer.Option(
            help="Which side they show; the opposite flank is left out, unless this gallery showed that it helps "
            "(opposite_sides in reid.toml)."
        ),
    ] = Side.unknown,
    species: Annotated[str, typer.Option(help="Compare with this species only.")] = "",
    box: Annotated[str, typer.Option(help="The animal's box in the photo: x0,y0,x1,y1 in pixels.")] = "",
    mask: Annotated[
        Path | None,
        typer.Option(exists=True, help="Where exactly the animal is: a mask (not black on it), or a folder of masks."),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Draw the answer: query beside the best photo of each candidate.")
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(help="Write into this folder what speaks for each candidate, and a page to leaf through."),
    ] = None,
    json: Json = False,
) -> None:
    """The five best individuals for a photo, the new one among them where none fits.

    Example: reid query IMG_0412.jpg --sheet answer.png
    """
    from reid import pipeline

    _no_folders(photos)
    with _store(context) as store:
        corners = _box(box)
        groups = [photos] if encounter else [[photo] for photo in photos]
        drawn_by = _masks(photos, mask)
        queries = [
            pipeline.query_of(group, side=side.value, species=species, box=corners, masks=drawn_by) for group in groups
        ]
        answers = pipeline.identify(store, queries)
        drawn = _draw(store, answers, sheet) if sheet else []
        explained = _explain_answers(store, answers, groups, explain, drawn_by) if explain else []
    _print_answers(answers, drawn, json, explained)
    raise typer.Exit(max(EXITS[answer.status] for answer in answers))


def _no_folders(photos: list[Path]) -> None:
    for photo in photos:
        if photo.is_dir():
            raise typer.BadParameter(
                f"'{photo}' is a folder: name its photos ({photo}/*.jpg), or enrol it", param_hint="PHOTOS..."
            )


def _box(text: str, option: str = "--box") -> Any:
    from reid.records import Box

    if not text:
        return None
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"'{text}' is not x0,y0,x1,y1", param_hint=option) from error
    if not (x0 < x1 and y0 < y1):
        raise typer.BadParameter(f"'{text}' is empty: x0 < x1 and y0 < y1 are needed", param_hint=option)
    return Box(x0, y0, x1, y1, origin="user")


def _masks(photos: list[Path], mask: Path | None) -> Any:
    """The mask of each photo: the one that was named, or those of a folder that bear the photos' names."""
    from reid.masks import attached
    from reid.records import Mask, Sighting

    if mask is None:
        return {}
    if mask.is_dir():
        found, _ = attached([Sighting(photo, str(photo)) for photo in photos], mask)
        return {one.path: one.mask for one in found if one.mask}
    if len(photos) > 1:
        raise typer.BadParameter("one mask for several photos: name a folder of masks", param_hint="--mask")
    return {photos[0]: Mask(picture=mask)}


def _draw(store: Any, answers: Any, target: Path) -> list[Path]:
    """One sheet an answer, none where there is nothing to show; several get a number before the suffix."""
    from reid.sheet import write_sheet

    names = (
        [target] if len(answers) == 1 else [target.with_stem(f"{target.stem}-{i}") for i in range(1, len(answers) + 1)]
    )
    try:
        return [write_sheet(store, a, name) for a, name in zip(answers, names, strict=True) if a.labels]
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"cannot write the sheet: {error}", param_hint="--sheet") from error


def _explain_answers(store: Any, answers: Any, groups: list[list[Path]], folder: Path, drawn: Any) -> list[Any]:
    """One page an answer; several get a folder each and a page that leads to them."""
    from reid import explaining

    folders = [folder] if len(answers) == 1 else [folder / f"query-{i}" for i in range(1, len(answers) + 1)]
    done = [explaining.explain_answer(store, *one, drawn=drawn) for one in zip(answers, groups, folders, strict=True)]
    if len(done) > 1:
        explaining.contents(folder, list(zip(answers, done, strict=True)))
    return done


def _print_answers(answers: Any, sheets: list[Path], json: bool, explained: list[Any]) -> None:
    from dataclasses import asdict

    from reid import console

    if json:
        found = [asdict(a) | ({"explanation": explained[i]} if explained else {}) for i, a in enumerate(answers)]
        console.as_json(found[0] if len(found) == 1 else {"answers": found})
        return
    console.answers(answers)
    for sheet in sheets:
        typer.echo(f"contact sheet: {sheet}")
    for one in explained:
        console.explained(one)


@app.command()
def explain(
    context: typer.Context,
    a: Annotated[Path, typer.Argument(help="A photo.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the page that shows them.")],
    box_a: Annotated[str, typer.Option(help="The animal's box in the first photo: x0,y0,x1,y1 in pixels.")] = "",
    box_b: Annotated[str, typer.Option(exists=True, help="The same in the second.")] = "",
    mask_a: Annotated[
        Path | None,
        typer.Option(exists=True, help="Where exactly it is in the first photo: a mask (not black on the animal)."),
    ] = None,
    mask_b: Annotated[Path | None, typer.Option(exists=True, help="The same in the second.")] = None,
    heat: Annotated[bool, typer.Option(help="Heat maps of what the model looked at (most of the time).")] = True,
    matches: Annotated[bool, typer.Option(help="Lines between matching points.")] = True,
    warp: Annotated[bool, typer.Option(help="One photo laid over the other, for a slider.")] = True,
    mirror: Annotated[bool, typer.Option(help="Also try the first photo mirrored, for a flipped scan.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Also draw everything as one picture.")] = None,
    json: Json = False,
) -> None:
    """Show what speaks for one animal in two photos: matching points, one laid over the other, heat maps.

    Where there is a store its model is used, else the default one.

    Example: reid explain A.jpg B.jpg --box-a 10,20,400,180 --out why
    """
    from contextlib import nullcontext

    from reid import console, explaining
    from reid.look import Options
    from reid.records import Mask
    from reid.store import SETTINGS

    drawn = Mask(picture=mask_a) if mask_a else None, Mask(picture=mask_b) if mask_b else None
    boxes = _box(box_a, "--box-a"), _box(box_b, "--box-b")
    source = context.parent.get_parameter_source("store") if context.parent else None
    given = source is not None and source.name != "DEFAULT"
    options = Options(matches=matches, warp=warp, heat=heat, mirror=mirror)
    opened: Any = _store(context) if given or (context.obj / SETTINGS).is_file() else nullcontext()
    with opened as store, _errors():
        done = explaining.explain_pair((a, b), boxes, out, store=store, options=options, sheet=sheet, drawn=drawn)
    console.as_json(done) if json else console.explained(done)
    raise typer.Exit(LEFT_OUT if done.unread else 0)


@app.command()
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
    from reid import commands_train, console, retrain
    from reid.reindex import reindex as run

    with _store(context) as store, console.progress(json) as show:
        done = run(store, who=who or _user(), force=force, train=retrain.night if train else None, progress=show)
    if report:
        with _errors():
            console.write_report(report, done.failures)
    if json:
        console.as_json(done)
    else:
        console.reindexed(done)
        commands_train.night(done.training)
    refused = isinstance(done.training, retrain.Refused)
    raise typer.Exit(1 if refused else LEFT_OUT if done.failures else 0)


@app.command()
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
    name: Annotated[str, typer.Option(help="The model's name, behind the date.")] = "head",
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
    resume: Annotated[bool, typer.Option(help="Go on with the newest unfinished training (of that --name).")] = False,
    json: Json = False,
) -> None:
    """Train a model on this store's photos and judge it on photos it never saw (needs the train extra).

    The new model is put below models/ and nothing else changes; `reid reindex --train` also puts it in force if it is
    not worse. The run's record is below training/ in the store.

    Example: reid --store whales train --recipe third_place --minutes 60
    """
    from reid import commands_train, console, retrain

    size = "" if scale is TrainScale.auto else scale.value
    options = retrain.Options(
        mode.value, epochs, views, seed, name, resume, recipe, size, minutes, folds, fold_by.value, pseudo_rounds
    )
    with _store(context) as store, console.progress(json) as show:
        done = retrain.train(store, options, show).report
    console.as_json(done) if json else commands_train.trained(done)
    raise typer.Exit(LEFT_OUT if done.failures else 0)


@app.command()
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
    from reid import commands_train, console
    from reid import mine as pairs

    with _store(context) as store, console.progress(json) as show:
        found = pairs.hardest(store, top=top, progress=show)
        drawn = pairs.write_sheet(store, found, sheet) if sheet else None
    console.as_json(found) if json else commands_train.mined(found, everything=everything)
    if drawn and not json:
        typer.echo(f"contact sheet: {drawn}")


@app.command()
def status(context: typer.Context, json: Json = False) -> None:
    """What the store holds, and whether the index is up to date.

    Example: reid status --json
    """
    from reid import console, figures
    from reid.status import status as look

    with _store(context) as store:
        found = look(store)
    if json:
        console.as_json(found)
        return
    figures.stated(found)


@app.command()
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
    enough of them to promise any; a rate that they cannot support is refused, with the number that would do.

    Example: reid calibrate --false-match 0.01 && reid query new.jpg
    """
    from reid import console, fit

    for name, value in (("--false-match", false_match), ("--false-new", false_new), ("--confidence", confidence)):
        if not 0 < value < 1:
            raise typer.BadParameter(f"{value} is not between 0 and 1", param_hint=name)
    with _store(context) as store:
        if off:
            fit.forget_rates(store)
            found = {}
        else:
            made = fit.calibrate_rates(store, false_match=false_match, false_new=false_new, confidence=confidence)
            found = made.policy.to_dict() if made.policy else {}
    refused = bool(found) and all(one["threshold"] is None for one in found.values())
    if json:
        console.as_json(found)
    else:
        for line in console.promises(found) or ["nothing is promised: queries answer match or new by one threshold"]:
            typer.echo(line)
    if refused:
        typer.echo("error: nothing can be promised from these photos; nothing was changed", err=True)
        raise typer.Exit(1)


@app.command()
def evaluate(
    gallery: Annotated[Path, typer.Argument(help="Table of known photos.")],
    queries: Annotated[Path, typer.Argument(help="Table of query photos with their true identities.")],
    model: Annotated[Path | None, typer.Option(help="A model directory; else the default model.")] = None,
    settings: Annotated[Path | None, typer.Option(help="A reid.toml to measure; else the default settings.")] = None,
    dedup: Annotated[bool, typer.Option(help="Drop queries that are near-duplicates of gallery photos.")] = False,
    root: Root = None,
    json: Json = False,
) -> None:
    """Measure the engine on your own photos, by exactly the way that enroll and query go.

    Example: reid evaluate gallery.csv queries.csv --dedup --json
    """
    from reid import console, figures
    from reid.evaluate import evaluate as run

    with _errors(), console.progress(json) as show:
        found = run(gallery, queries, model=model, settings=settings, dedup=dedup, root=root, progress=show)
    if json:
        console.as_json(found.to_json())
        return
    figures.evaluated(found)


@app.command()
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

    with _errors(), console.progress(json) as show:
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


@app.command()
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

    with _store(context) as store:
        done = write_wildlife_csv(store, target)
    if json:
        console.as_json(done)
        return
    typer.echo(f"{done.rows} annotations written to {target}")
    for note in done.lost:
        typer.echo(f"not in the table: {note}")


commands_individuals.register(app, _store, _user)
commands_models.register(app, _store)
commands_remove.register(app, _store, _user)
commands_cropper.register(app, _store)
commands_siamese.register(app, _store)
commands_ensemble.register(app, _store)

if __name__ == "__main__":
    app()
