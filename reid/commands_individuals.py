"""`reid individuals …`: parse, call, print."""

from __future__ import annotations

from typing import Annotated

import typer

from reid.invocation import Json, Who, Why, opened, user

people = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Individuals: list, show, name, merge, split; every change can be undone.\n\n"
    "Example: reid individuals merge Ana Anna --why 'same notch'",
)


@people.command("list")
def list_people(context: typer.Context, json: Json = False) -> None:
    """Every individual with its photos.

    Example: reid individuals list
    """
    from reid import console

    with opened(context) as store:
        found = store.catalogue.individuals()
    if json:
        console.as_json({"individuals": found})
        return
    rows = [(i.name, i.n_photos, i.n_encounters, i.first_seen, i.last_seen, ", ".join(i.aliases)) for i in found]
    console.table(("individual", "photos", "encounters", "first seen", "last seen", "also called"), rows)


@people.command()
def show(context: typer.Context, name: str, json: Json = False) -> None:
    """One individual: its photos, and who changed what.

    Example: reid individuals show Ana
    """
    from reid import console

    with opened(context) as store:
        info, events = store.catalogue.individual(name), store.catalogue.history(name)
        photos = list(store.catalogue.annotations(store.catalogue.annotations_of(individual=name)).values())
    if json:
        console.as_json({"individual": info, "annotations": photos, "history": events})
        return
    console.table(("annotation", "photo", "taken", "side"), [(p.id, p.path, p.taken_at, p.side) for p in photos])
    rows = [(e.id, f"{e.at:%Y-%m-%d %H:%M}", e.kind + (" (undone)" if e.undone else ""), e.who, e.why) for e in events]
    console.table(("event", "when", "what", "who", "why"), rows)


@people.command()
def rename(context: typer.Context, name: str, new: str, who: Who = "", why: Why = "", json: Json = False) -> None:
    """Call an individual otherwise; the old name still finds it.

    Example: reid individuals rename w_17 Ana
    """
    with opened(context) as store:
        _said(store.catalogue.rename(name, new, who=who or user(), why=why), json)


@people.command()
def assign(
    context: typer.Context, annotation: int, name: str, who: Who = "", why: Why = "", json: Json = False
) -> None:
    """Say whose an annotation is.

    Example: reid individuals assign 12 Ana
    """
    with opened(context) as store:
        _said(store.catalogue.assign([annotation], name, who=who or user(), why=why), json)


@people.command()
def undo(context: typer.Context, event: int, who: Who = "", why: Why = "", json: Json = False) -> None:
    """Take an event back, however old; undoing an undo brings it back.

    Example: reid individuals undo 42
    """
    with opened(context) as store:
        _said(store.catalogue.undo(event, who=who or user(), why=why), json)


@people.command()
def merge(context: typer.Context, keep: str, absorbed: str, who: Who = "", why: Why = "", json: Json = False) -> None:
    """Say that two individuals are one animal.

    Example: reid individuals merge Ana Anna --why "same notch"
    """
    with opened(context) as store:
        _said(store.catalogue.merge(keep, absorbed, who=who or user(), why=why), json)


@people.command()
def split(
    context: typer.Context,
    annotations: Annotated[list[int], typer.Argument(help="Annotation numbers, from `reid individuals show`.")],
    name: Annotated[str, typer.Option(help="Whose they are; empty: a new individual.")] = "",
    who: Who = "",
    why: Why = "",
    json: Json = False,
) -> None:
    """Say that some photos of an individual show another one.

    Example: reid individuals split 12 13 --name Bela
    """
    with opened(context) as store:
        _said(store.catalogue.split(annotations, name or None, who=who or user(), why=why), json)


def _said(event: int, json: bool) -> None:
    from reid import console

    console.as_json({"event": event}) if json else console.say(
        f"event {event}; take it back with: reid individuals undo {event}"
    )
