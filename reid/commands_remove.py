"""`reid remove`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reid.invocation import LEFT_OUT, Json, Who, Why, opened, user


def remove(
    context: typer.Context,
    photos: Annotated[
        list[Path] | None, typer.Argument(help="Paths of photos, whether their files are there or not.")
    ] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Also every photo whose file is not there.")] = False,
    who: Who = "",
    why: Why = "",
    json: Json = False,
) -> None:
    """Take photos out of the answers for good; no file is touched, and who was on them stays on record.

    Nightly runs pass them by. `reid enroll PHOTO` brings one back.

    Example: reid --store whales remove --missing --why "disk lost"
    """
    from reid import console
    from reid import remove as removal

    if not photos and not missing:
        raise typer.BadParameter("name photos, or --missing", param_hint="PHOTOS...")
    with opened(context) as store:
        done = removal.remove(store, photos or [], missing=missing, who=who or user(), why=why)
    console.as_json(done) if json else removed(done.photos, done.indexed)
    if not json:
        console.failures(done.failures)
    raise typer.Exit(LEFT_OUT if done.failures else 0)


def removed(photos: list[str], indexed: int) -> None:
    """What went out of service."""
    from reid import console

    print(f"{len(photos)} photos removed; the index holds {indexed} boxes")
    for path in photos[: console.SHOWN]:
        print(f"  {path}")
    if len(photos) > console.SHOWN:
        print(f"  … and {len(photos) - console.SHOWN} more (--json lists all)")
