"""What the command line prints: tables, progress, reports, JSON. The only place that knows rich; imported by commands alone."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reid import steps
from reid.enrol import EnrolReport, Progress
from reid.errors import InputError
from reid.records import Answer, Failure
from reid.reindex import ReindexReport

if TYPE_CHECKING:
    from reid.explaining import Explanation
    from reid.risk import RiskTable

SHOWN = 10  # failures and notes shown before "… and more"
PATIENCE = 2.0  # seconds before a progress bar appears
SAID = frozenset({"ask", "message", "next_step", "notes", "reason", "stages_skipped", "warnings"})
"""Fields whose text is meant for people and may name commands."""


def say(text: str, *, error: bool = False) -> None:
    """Print a line, its commands complete, on standard output or standard error."""
    print(steps.pasted(text), file=sys.stderr if error else sys.stdout)


def as_json(value: Any) -> None:
    """Print one JSON object on one line, NaN and infinities as null."""
    print(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False))


def _plain(value: Any, said: bool = False) -> Any:
    """Plain values for JSON; `said`: the text is meant for people."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(k): _plain(v, k in SAID) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, said) for v in value]
    if isinstance(value, float) and not (value == value and abs(value) != float("inf")):
        return None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str):
        return steps.pasted(value) if said else value
    return str(value) if isinstance(value, Path) else value


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """Bars with the time left on standard error, a bar a stage; nothing for work that is over within `PATIENCE` seconds."""
    if quiet:
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:>9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=Console(stderr=True), transient=True)
    tasks: dict[str, Any] = {}
    begun = time.monotonic()

    def show(stage: str, done: int, total: int) -> None:
        if not bars.live.is_started and time.monotonic() - begun < PATIENCE:
            return
        if not bars.live.is_started:
            bars.start()
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    try:
        yield show
    finally:
        if bars.live.is_started:
            bars.stop()


def answers(given: Sequence[Answer], truth: Sequence[str] = ()) -> None:
    """A table for each answer."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Console()
    for number, answer in enumerate(given):
        names = ", ".join(Path(p).name for p in answer.photos)
        said = f" (it is {truth[number]})" if truth else ""
        if not answer.labels:
            out.print(Text(steps.pasted(f"{names}: {answer.status}{said}. {answer.message}"), style="bold"))
            continue
        table = Table(title=Text(f"{names}: {answer.status}{said}"), title_justify="left", title_style="bold")
        checked = any("inliers" in label.evidence for label in answer.labels)
        for heading in ("", "individual", "score", "P(same)", *(["points"] if checked else []), "photos", "best photo"):
            table.add_column(heading, justify="left" if heading in ("individual", "best photo") else "right")
        for rank, label in enumerate(answer.labels, 1):
            chance = "–" if label.probability is None else f"{label.probability:.0%}"
            row = (
                str(rank),
                label.label,
                f"{label.score:.3f}",
                chance,
                *([_points(label.evidence)] if checked else []),
                str(label.n_photos or "–"),
                Path(label.photo or "–").name,
            )
            table.add_row(*(Text(cell) for cell in row), style="bold" if rank == 1 else None)
        out.print(table)
        filters = "".join(f", {k}: {v}" for k, v in answer.compared.filters.items())
        out.print(
            Text(
                f"compared with {answer.compared.photos} photos of {answer.compared.identities} individuals{filters}; model {answer.model}"
            )
        )
        why = ["a person should look: " + _why_review(answer)] if answer.status == "review" else []
        for text in (*why, *answer.stages_skipped, answer.message, *(f"warning: {w}" for w in answer.warnings)):
            if text:
                out.print(Text(steps.pasted(text), style="yellow"))


def _points(evidence: Mapping[str, float]) -> str:
    """How many points agree, and whether only with the query mirrored."""
    if "inliers" not in evidence:
        return "–"
    return f"{evidence['inliers']:.0f}{' mirrored' if 'mirrored' in evidence else ''}"


def _why_review(answer: Answer) -> str:
    if answer.promise:
        return "the promised error rate allows neither match nor new"
    if answer.labels and answer.labels[0].is_new:
        return "not everything could be compared, so nobody is called new"
    return f"the score is not clearly beyond the threshold {answer.threshold:.2f}, which was not measured on this store"


def promises(policy: Mapping[str, Any]) -> list[str]:
    """In words what a policy (`reid.promise.Policy.to_dict`) promises or refuses; nothing for an empty one."""
    lines = []
    for kind, name in (("matches", "match"), ("new", "new")):
        one = policy.get(kind)
        if one is None:
            continue
        if one["threshold"] is None:
            lines.append(f"{name}: refused; {one['reason']}")
            continue
        side = "from" if kind == "matches" else "below"
        bounds = f"at most {one['upper']:.1%}"
        if one["low"] is not None:  # it is in promises from before lower bounds were kept
            bounds = f"[{one['low']:.1%}, {one['upper']:.1%}]"
        lines.append(
            f"{name} {side} score {one['threshold']:.3f}: {one['reason']}; measured {one['measured']:.1%} "
            f"{bounds}; decides {one['automatic']:.0%} [{one['automatic_low']:.0%}, {one['automatic_high']:.0%}] "
            f"of queries; {one['photos']} photos of {one['animals']} animals behind it"
        )
    return lines


def risks(curve: RiskTable, shown: int = 5) -> None:
    """A few points of a risk–coverage curve, strictest first."""
    if not curve.points:
        return
    print(
        f"measured on {curve.known_photos} left-out photos of known and {curve.unknown_photos} of new animals, "
        f"{curve.new_share:.0%} of queries taken to be new:"
    )
    places = sorted({round(i * (len(curve.points) - 1) / (shown - 1)) for i in range(shown)})
    for one in (curve.points[i] for i in places):
        print(
            f"  from score {one.threshold:.3f}: {one.automatic:.0%} of queries, {one.false_match:.1%} "
            f"[{one.false_match_low:.1%}, {one.false_match_high:.1%}] of them wrong; {one.miss:.0%} of known animals below"
        )


def explained(explanation: Explanation) -> None:
    """Where the page is, and what each pair on it came to; what could not be compared, on standard error."""
    for pair in explanation.pairs:
        if "photo" in pair.skipped:
            say(f"not explained: {pair.skipped['photo']}", error=True)
            continue
        said = [f"{pair.inliers} points agree"] if pair.verification else []
        said += [f"cosine {pair.cosine:.3f}"] if pair.cosine is not None else []
        said += ["the first mirrored"] if pair.mirrored else []
        said += ["LOOK TWICE: evidence lies outside the animal"] if pair.flagged else []
        print(f"{pair.label or Path(pair.b).name}: {', '.join(said)}")
        for name, why in pair.skipped.items():
            say(f"  no {name.replace('_', ' ')}: {why}")
    if not explanation.unread or len(explanation.unread) < len(explanation.pairs):
        print(f"explained in {explanation.page}")


def enrolled(report: EnrolReport, notes: Sequence[str] = ()) -> None:
    """A line of counts, then what was left out and why."""
    print(
        f"{report.new} photos new, {report.known} known, {report.moved} moved, {report.copies} copies; "
        f"{report.annotations} boxes added, {report.named} named"
    )
    for note in _first([*notes, *report.notes]):
        say(f"note: {note}")
    failures(report.failures)


def failures(found: Sequence[Failure]) -> None:
    """What could not be used, on standard error."""
    if not found:
        return
    print(f"{len(found)} not used:", file=sys.stderr)
    for line in _first([f"  {f.source}: {f.message}" + (f"; {f.next_step}" if f.next_step else "") for f in found]):
        say(line, error=True)


def _first(lines: Sequence[str]) -> list[str]:
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"… and {more} more (--report FILE lists all)"] if more > 0 else [])]


def write_report(path: Path, found: Sequence[Failure], notes: Sequence[str] = ()) -> None:
    """All failures and notes as CSV: source, code, message, next step.

    Raises:
        InputError: `path` cannot be written.
    """
    import csv

    try:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("source", "code", "message", "next_step"))
            writer.writerows((f.source, f.code, f.message, f.next_step) for f in found)
            writer.writerows(("", "note", note, "") for note in notes)
    except OSError as error:
        raise InputError(
            f"the report cannot be written ({error.strerror})", source=str(path), next_step="name another file"
        ) from error


def reindexed(report: ReindexReport) -> None:
    """What a nightly run did, and what is different."""
    for label, paths in (("vanished", report.vanished), ("changed", report.changed), ("back", report.back)):
        print(f"{len(paths)} files {label}")
        for path in paths[:SHOWN]:
            print(f"  {path}")
    if report.vanished:
        say("gone for good? reid remove --missing takes them out of the answers; what was said of them stays on record")
    if report.relocated:
        print(f"{report.relocated} boxes drawn anew by another cropper")
    print(f"{report.enrolled.new} photos new; {report.embedded} boxes embedded anew")
    print(
        f"index: {report.photos_before} → {report.photos_now} photos"
        + (f", built anew ({report.rebuilt})" if report.rebuilt else "")
    )
    if report.threshold_now is not None:
        before = "–" if report.threshold_before is None else f"{report.threshold_before:.3f}"
        print(f"new individual at score: {before} → {report.threshold_now:.3f}")
    print(f"{len(report.matches)} photos without a name match a known individual now")
    for match in report.matches[:SHOWN]:
        chance = "" if match.probability is None else f", P {match.probability:.0%}"
        step = f"reid individuals assign {match.annotation} {shlex.quote(match.identity)}"
        say(f"  {match.photo} → {match.identity} (score {match.score:.3f}{chance}); {step}")
    failures(report.failures)


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A plain table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Table()
    for heading in headings:
        out.add_column(heading)
    for row in rows:
        out.add_row(*(Text("–" if cell is None or cell == "" else str(cell)) for cell in row))
    Console().print(out)
