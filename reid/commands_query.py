"""`reid query` and `reid explain`: whose a photo is, and what speaks for it. Parse, call, print."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from reid.invocation import EXITS, LEFT_OUT, Json, errors_said, opened

SWITCHES = ("heat", "matches", "warp", "mirror")
Heat = Annotated[bool, typer.Option(help="Heat maps of what the model looked at (most of the time).")]
MatchLines = Annotated[bool, typer.Option(help="Lines between matching points.")]
Warp = Annotated[bool, typer.Option(help="One photo laid over the other, for a slider.")]
Mirror = Annotated[bool, typer.Option(help="Also try the first photo mirrored, for a flipped scan.")]


class Side(StrEnum):
    """Which side of the animal a photo shows."""

    left = "left"
    right = "right"
    unknown = "unknown"


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
    heat: Heat = True,
    matches: MatchLines = True,
    warp: Warp = True,
    mirror: Mirror = False,
    json: Json = False,
) -> None:
    """The five best individuals for a photo, the new one among them where none fits.

    Heat, matches, warp and mirror say what --explain shows; the answer is the same with any of them.

    Example: reid query IMG_0412.jpg --sheet answer.png
    """
    from reid import pipeline

    _no_folders(photos)
    if explain is None:
        _nothing_to_switch(context)
    shown = {"heat": heat, "matches": matches, "warp": warp, "mirror": mirror}
    with opened(context) as store:
        corners = _box(box)
        groups = [photos] if encounter else [[photo] for photo in photos]
        drawn_by = _masks(photos, mask)
        queries = [
            pipeline.query_of(group, side=side.value, species=species, box=corners, masks=drawn_by) for group in groups
        ]
        answers = pipeline.identify(store, queries)
        drawn = _draw(store, answers, sheet) if sheet else []
        explained = _explain_answers(store, answers, groups, explain, drawn_by, shown) if explain else []
    _print_answers(answers, drawn, json, explained)
    partly = any(answer.labels and len(answer.boxes) < len(answer.photos) for answer in answers)
    raise typer.Exit(max(EXITS[answer.status] for answer in answers) or (LEFT_OUT if partly else 0))


def _no_folders(photos: list[Path]) -> None:
    for photo in photos:
        if photo.is_dir():
            raise typer.BadParameter(
                f"'{photo}' is a folder: name its photos ({photo}/*.jpg), or enrol it", param_hint="PHOTOS..."
            )


def _nothing_to_switch(context: typer.Context) -> None:
    """Wrong usage where a switch of the explanation was given, and none was asked for."""
    for name in SWITCHES:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise typer.BadParameter("it takes --explain FOLDER", param_hint=f"--{name} / --no-{name}")


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


def _explain_answers(
    store: Any, answers: Any, groups: list[list[Path]], folder: Path, drawn: Any, shown: dict[str, Any]
) -> list[Any]:
    """One page an answer; several get a folder each and a page that leads to them."""
    from reid import explaining
    from reid.look import Options

    folders = [folder] if len(answers) == 1 else [folder / f"query-{i}" for i in range(1, len(answers) + 1)]
    options = Options(**shown, sparse=True)  # several candidates: every other patch
    done = [
        explaining.explain_answer(store, *one, options=options, drawn=drawn)
        for one in zip(answers, groups, folders, strict=True)
    ]
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


def explain(
    context: typer.Context,
    a: Annotated[Path, typer.Argument(help="A photo.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the pictures and the page that shows them; else explain/ where you are, or explain-2/ and "
            "so on where that is taken."
        ),
    ] = None,
    box_a: Annotated[str, typer.Option(help="The animal's box in the first photo: x0,y0,x1,y1 in pixels.")] = "",
    box_b: Annotated[str, typer.Option(help="The same in the second.")] = "",
    mask_a: Annotated[
        Path | None,
        typer.Option(exists=True, help="Where exactly it is in the first photo: a mask (not black on the animal)."),
    ] = None,
    mask_b: Annotated[Path | None, typer.Option(exists=True, help="The same in the second.")] = None,
    heat: Heat = True,
    matches: MatchLines = True,
    warp: Warp = True,
    mirror: Mirror = False,
    sheet: Annotated[Path | None, typer.Option(help="Also draw everything as one picture.")] = None,
    json: Json = False,
) -> None:
    """Show what speaks for one animal in two photos: matching points, one laid over the other, heat maps.

    Where there is a store its model is used, else the default one; and the boxes and masks that it has of these photos.

    Example: reid explain A.jpg B.jpg --box-a 10,20,400,180
    """
    from contextlib import nullcontext

    from reid import console, explaining
    from reid.look import Options
    from reid.picture_files import unused
    from reid.records import Mask
    from reid.store import SETTINGS

    folder = out or unused(Path("explain"))
    drawn = Mask(picture=mask_a) if mask_a else None, Mask(picture=mask_b) if mask_b else None
    boxes = _box(box_a, "--box-a"), _box(box_b, "--box-b")
    source = context.parent.get_parameter_source("store") if context.parent else None
    given = source is not None and source.name != "DEFAULT"
    options = Options(matches=matches, warp=warp, heat=heat, mirror=mirror)
    asked: Any = opened(context) if given or (context.obj / SETTINGS).is_file() else nullcontext()
    with asked as store, errors_said():
        done = explaining.explain_pair((a, b), boxes, folder, store=store, options=options, sheet=sheet, drawn=drawn)
    console.as_json(done) if json else console.explained(done)
    raise typer.Exit(EXITS["error"] if done.unread else 0)
