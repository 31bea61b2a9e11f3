"""What the commands have in common: options that mean the same everywhere, the store opened, errors said, exit codes.

Knows no command; `reid.cli` says which there are.
"""

from __future__ import annotations

import errno
import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from reid import steps
from reid.errors import ReidError

EXITS = {"match": 0, "new": 0, "review": 0, "error": 1, "no_candidates": 4, "no_detection": 5, "index_stale": 6}
LEFT_OUT = 3  # exit code: done, but some photos or rows were left out

_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}  # by a disk
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Who = Annotated[str, typer.Option(help="Who says so, for the log.", envvar="REID_USER")]
Why = Annotated[str, typer.Option(help="Why, for the log.")]


@contextmanager
def errors_said(again: str = "the same command") -> Iterator[None]:
    """Our own errors, and what a disk refuses, become one line and exit code 1 (6 for a stale index); `again` is what goes
    on after Ctrl-C.
    """
    try:
        yield
    except ReidError as error:
        typer.echo(f"error: {steps.pasted(str(error))}", err=True)
        raise typer.Exit(EXITS["index_stale"] if error.code in ("index_stale", "snapshot_corrupt") else 1) from error
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(
            f"error: {where}{error.strerror}; make room there, or give the right to read and write, then {again} goes on",
            err=True,
        )
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        typer.echo(f"interrupted: what was done is kept; {again} goes on from there", err=True)
        raise typer.Exit(130) from error


@contextmanager
def opened(context: typer.Context, *, create: bool = False, again: str = "the same command") -> Iterator[Any]:
    """The store that the command line names; `create` makes it where there is none. Our own errors are said, and `again`
    as by `errors_said`.
    """
    from reid.store import SETTINGS, Store

    with errors_said(again):
        root: Path = context.obj
        store = Store.create(root) if create and not (root / SETTINGS).exists() else Store.open(root)
        with store:
            yield store


def user() -> str:
    """Who asks, where nobody is named."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
