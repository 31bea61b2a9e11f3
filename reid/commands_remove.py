"""`reid remove`: parse, call, print; registered by `reid.cli`, which knows how a store is opened and who asks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer

Opened = Callable[..., AbstractContextManager[Any]]
LEFT_OUT = 3  # exit code: done, but some photos were left out


def register(app: typer.Typer, opened: Opened, user: Callable[[], str]) -> None:
    """Add the command to `app`; `opened(context)` opens the store, `user()` is who asks where nobody is named."""

    @app.command("remove")
    def remove(
        context: typer.Context,
        photos: Annotated[
            list[Path] | None, typer.Argument(help="Paths of photos, whether their files are there or not.")
        ] = None,
        missing: Annotated[bool, typer.Option("--missing", help="Also every photo whose file is not there.")] = False,
        who: Annotated[str, typer.Option(help="Who says so, for the log.", envvar="REID_USER")] = "",
        why: Annotated[str, typer.Option(help="Why, for the log.")] = "",
        json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
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
