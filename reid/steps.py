"""What messages tell people to type: commands for the store they named, and what installs a missing part.

Messages are written where something went wrong, by code that does not know how the command line was called; the
command line says once where it stands (`stand_at`), and every line on its way out goes through `pasted`. Knows no
stores, no commands; reads nothing but this installation's own metadata.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from contextvars import ContextVar
from pathlib import Path

DISTRIBUTION = "animal-reid"

_PLACE: ContextVar[tuple[str, tuple[str, ...]] | None] = ContextVar("place", default=None)


def stand_at(store: str | Path | None, commands: Iterable[str] = ()) -> None:
    """From now on `reid COMMAND` in messages means this store, for these commands; None: they stay as they are."""
    _PLACE.set(None if store is None else (shlex.quote(str(store)), tuple(commands)))


def pasted(text: str) -> str:
    """The text, its commands complete: `run reid reindex` → `run reid --store whales reindex`."""
    place = _PLACE.get()
    if place is None or not place[1]:
        return text
    store, commands = place
    names = "|".join(re.escape(name) for name in sorted(commands, key=len, reverse=True))
    return re.sub(rf"(?<![\w./-])reid (?=(?:{names})(?![\w-]))", lambda found: f"reid --store {store} ", text)


def install(extra: str) -> str:
    """The command that installs an optional part: from the checkout this code runs in, else by what the part needs,
    for the distribution is on no package index.
    """
    root = Path(__file__).resolve().parents[1]
    if (root / "pyproject.toml").is_file():
        where = "." if root == Path.cwd() else str(root)
        return f"pip install {shlex.quote(f'{where}[{extra}]')}"
    needed = requirements(extra)
    return "pip install " + " ".join(shlex.quote(one) for one in needed) if needed else f"pip install '.[{extra}]'"


def requirements(extra: str) -> list[str]:
    """What an optional part of the installed distribution needs, as its metadata lists it; empty where there is none."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []
    parts = [line.partition(";") for line in lines]
    mine = re.compile(rf"""extra\s*==\s*["']{re.escape(extra)}["']""")
    return [what.replace(" ", "") for what, _, marker in parts if mine.search(marker)]
