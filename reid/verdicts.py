"""What trainings, ensembles and `reid mine` print: how a new model does beside the present one, which pairs are hard. Judges nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reid import console, steps
from reid.alike import Suspected
from reid.judge import Figure, Report
from reid.mine import HardPair, Mined
from reid.retrain import Refused

if TYPE_CHECKING:
    from reid.train_siamese import Report as Heads

WORST = 10  # hard pairs printed unless all are asked for


def trained(report: Report) -> None:
    """What a training gave, and what to do next."""
    print(f"mode: {report.why_mode}")
    on = f", on top of {report.base}" if report.mode == "head" else ""
    print(f"trained on {report.photos} photos of {report.animals} animals{on}; run: {report.run}")
    suspected(report.suspects)
    judged(report)


def suspected(found: Sequence[Suspected]) -> None:
    """Names that may be one animal, which a training by pairs did not teach as two, and how to look at them."""
    if not found:
        return
    print(
        f"names that may be one animal, and were not taught as two: {len(found)} {'pair' if len(found) == 1 else 'pairs'}"
    )
    for one in found[:WORST]:
        print(f"  {one.first} and {one.second} (score {one.score:.3f}): if so, {steps.pasted(one.ask)}")
    more = f"; {len(found) - WORST} more: --json has them" if len(found) > WORST else ""
    print(f"look at them first: {steps.pasted('reid mine --sheet pairs.png')}{more}")


def judged(report: Report) -> None:
    """How a new model does beside the present one, and what to do next."""
    verdict = report.verdict
    print(f"judged by {verdict.photos} photos of {verdict.animals} animals that were not trained on (95 % intervals):")
    console.table(
        (
            "measure",
            f"before ({report.present}{', by its witness' if report.by_witness else ''})",
            f"after ({report.model})",
        ),
        [
            ("MAP@5", said(verdict.map_at_5_before), said(verdict.map_at_5_after)),
            ("top-1", said(verdict.top1_before), said(verdict.top1_after)),
        ],
    )
    print(f"difference of MAP@5: {said(verdict.gain, sign=True)}")
    if report.refitted and report.mode == "ensemble":
        print(
            f"members of it have learnt {report.refitted} photos, the judges' among them: the figures are of their witnesses"
        )
    elif report.refitted:
        print(
            f"then taught all {report.refitted} photos, the judges' among them: that is {report.model}, and the figures are "
            "of the one before"
        )
    elif report.refit_reason:
        print(f"not taught the judges' photos: {report.refit_reason}")
    if report.reason:
        print(report.reason)
    if report.next_step:
        console.say(report.next_step)
    console.failures(report.failures)


def night(found: Report | Refused | None, siamese: Heads | Refused | None = None) -> None:
    """What the trainings of a nightly run gave, if there were any."""
    if isinstance(found, Report):
        trained(found)
    elif found is not None:
        _refused("training", found, "the present model stays")
    if isinstance(siamese, Refused):
        _refused("Siamese heads", siamese, "what was in force stays")
    elif siamese is not None:
        print("Siamese heads:")
        heads(siamese)


def _refused(what: str, found: Refused, stays: str) -> None:
    """Why there was none; the nightly run has done everything else."""
    where = f"{found.source}: " if found.source else ""
    console.say(f"no {what} ({where}{found.reason}); {found.next_step}; {stays}")


def heads(report: Heads) -> None:
    """What a training of Siamese heads gave."""
    gain = report.map_at_5
    shown = report.photos - report.lonely
    print(f"trained on {shown} photos of animals with two or more ({report.seconds['train']:.0f} s); run: {report.run}")
    print(
        f"negatives: {report.negatives}; {report.varied} photos in {report.views} views; {report.lonely} photos left out: "
        "the only ones of their animals"
    )
    suspected(report.suspects)
    print(
        f"MAP@5 of {report.queries} photos of animals that the head had not seen: cosine {gain.before:.3f}, head "
        f"{gain.after:.3f}; difference {gain.gain:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    )
    if report.heard:
        print(f"in force: {report.folder}; the sources are fused by: {report.fusion}")
    else:
        print(
            f"in {report.folder}, where no query asks them: local features are off here, and heads are heard beside these; "
            "set use = true under [local] and run reid reindex, or go without heads"
        )


def mined(found: Mined, *, everything: bool = False) -> None:
    """The hardest pairs as a table: the worst ones, or all of them."""
    shown = found.pairs if everything else worst(found)
    print(f"{found.photos} photos of {found.animals} animals looked at, by model {found.model}")
    if not found.pairs:
        print("no pairs: that takes two named animals, or two sightings of one")
        return
    console.table(
        ("kind", "score", "photo", "photo", "ask yourself"),
        [
            (
                pair.kind,
                f"{pair.score:.3f}",
                *(
                    f"{one.name} · {one.annotation} · {one.photo.rpartition('/')[2]}"
                    for one in (pair.first, pair.second)
                ),
                steps.pasted(pair.ask),
            )
            for pair in shown
        ],
    )
    if len(shown) < len(found.pairs):
        print(f"{len(found.pairs) - len(shown)} more: --all prints them, --sheet PICTURE draws them, --json has them")


def worst(found: Mined, most: int = WORST) -> tuple[HardPair, ...]:
    """The `most` hardest pairs, half of either kind where there are enough, in the order they were found."""
    ranks: dict[str, int] = {}
    place = []
    for at, pair in enumerate(found.pairs):
        ranks[pair.kind] = ranks.get(pair.kind, 0) + 1
        place.append((ranks[pair.kind], at))
    kept = {at for _, at in sorted(place)[:most]}
    return tuple(pair for at, pair in enumerate(found.pairs) if at in kept)


def said(figure: Figure, *, sign: bool = False) -> str:
    """`.123 [.100, .150]`."""
    form = "+.3f" if sign else ".3f"
    return f"{figure.value:{form}} [{figure.low:{form}}, {figure.high:{form}}]"
