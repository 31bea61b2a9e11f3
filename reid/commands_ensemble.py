"""`reid ensemble`: parse, call, print."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from reid.invocation import LEFT_OUT, Json, opened


def ensemble(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the ensemble is called, behind the date.")],
    members: Annotated[list[str], typer.Argument(help="Models of this store, two or more (reid models list).")],
    seed: Annotated[int, typer.Option(min=0, help="Of the halves that judge the fit.")] = 0,
    json: Json = False,
) -> None:
    """Make several models of this store into one, weighed by photos that none of them was trained on.

    The ensemble is put below models/ and nothing else changes. A query then runs every member: it takes as long as all
    of them together.

    Example: reid --store whales ensemble both lite0-wide 2026-11-21-first_place
    """
    from reid import assemble, console

    with opened(context) as store, console.progress(json) as show:
        done, _ = assemble.assembled(store, members, name, show, seed=seed)
    console.as_json(done) if json else printed(done)
    raise typer.Exit(LEFT_OUT if done.report.failures else 0)


def printed(done: Any) -> None:
    """What the ensemble is, and how it does beside the present model."""
    from reid import assemble, verdicts

    for line in assemble.lines(done):
        print(line)
    print(f"run: {done.report.run}")
    verdicts.judged(done.report)
