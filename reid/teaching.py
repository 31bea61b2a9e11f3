"""Trainings made of several: K folds whose models serve together, and rounds that learn from photos without a name.

A *lesson* is one training of the recipe: rows of the pool, their names, and where its model goes. `in_folds` gives K of
them, keeps what every photo scored by the model that had not seen it (`out-of-fold.npz` in the run's folder), and makes
the K models one (`reid.ensemble`). `with_pseudo_labels` puts rounds before a lesson. Both give what one lesson gives, so
they can be put together: each fold then has rounds of its own, and no name reaches a fold from outside. What was learnt
already is not learnt again: an interrupted run goes on with the next lesson.

Knows stores and lessons; how a lesson is learnt is the business of whoever hands it in.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reid import ensemble, models, withheld
from reid.alike import Suspected
from reid.embed import unit_rows
from reid.enrol import Progress
from reid.judge import Pool, embedded
from reid.records import Failure
from reid.store import Store

if TYPE_CHECKING:
    from reid.train.folds import By
    from reid.train.runs import Run

SCORES = "out-of-fold.npz"
DONE = "lesson.json"  # in a lesson's folder, once it is learnt: which lesson it was, and what came of it

IntArray = NDArray[np.int64]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """One training: photos (`rows` of the pool's labels), what each is called, and the model directory it makes. A
    `trial` is made to give names to photos without one, so it must not learn that those are nobody.
    """

    rows: IntArray
    names: tuple[str, ...]
    folder: Path
    name: str
    trial: bool = False

    @property
    def digest(self) -> str:
        """Of what is taught: the same for the same photos under the same names."""
        text = json.dumps([self.rows.tolist(), self.names, self.trial])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Raw vectors `(N, D)` of all the pool's photos by a new model; which could be read, `(N,)`, and why others not."""

    vectors: Vectors
    there: NDArray[np.bool_]
    failures: list[Failure]


@dataclass(frozen=True, slots=True)
class Made:
    """What a training gave: the model directory, photos it could use, and what goes into the record. `also` are rows
    beyond the lesson's own that it learnt from; `suspects` are names that it did not teach as two animals; `seen` is
    there where everything was embedded on the way.
    """

    model: Path
    photos: int
    failures: tuple[Failure, ...]
    seconds: dict[str, float]
    notes: dict[str, Any]
    line: str
    also: tuple[int, ...] = ()
    suspects: tuple[Suspected, ...] = ()
    seen: Seen | None = field(default=None, compare=False)


Teach = Callable[[Lesson], Made]


def lessons(folds: int, pseudo_rounds: int) -> int:
    """How many trainings there are."""
    return max(1, folds) * (1 + pseudo_rounds)


def learnt(teach: Teach, lesson: Lesson) -> Made:
    """What the lesson gives; what it gave, where this very lesson was learnt already and its model is there."""
    done = _read(lesson)
    if done is not None:
        return done
    lesson.folder.mkdir(parents=True, exist_ok=True)
    (lesson.folder / DONE).unlink(missing_ok=True)
    made = teach(lesson)
    noted = {name: value for name, value in asdict(made).items() if name not in ("model", "seen")}
    aside = lesson.folder / f".{DONE}"
    aside.write_text(json.dumps({"lesson": lesson.digest, "made": noted}), encoding="utf-8")
    os.replace(aside, lesson.folder / DONE)
    return made


def _read(lesson: Lesson) -> Made | None:
    """What was noted of this lesson; None where there is no model, or it is another lesson's."""
    model = lesson.folder / lesson.name
    try:
        found = json.loads((lesson.folder / DONE).read_text(encoding="utf-8"))
        if found["lesson"] != lesson.digest or not (model / models.CARD).is_file():
            return None
        made = found["made"]
        made["failures"] = tuple(Failure(**one) for one in made["failures"])
        made["suspects"] = tuple(
            Suspected(**one | {"annotations": tuple(one["annotations"])}) for one in made["suspects"]
        )
        return Made(model, **made | {"also": tuple(made["also"]), "line": f"{lesson.name} was there: {made['line']}"})
    except (OSError, ValueError, KeyError, TypeError):
        return None


# Folds ----------------------------------------------------------------------------------------------------------------


def in_folds(store: Store, teach: Teach, pool: Pool, run: Run, k: int, by: By, seed: int, progress: Progress) -> Made:
    """Teach each fold's complement; the models together are `run.model`, all of one weight: a photo is scored out of fold
    by one model alone, so nothing that all of them have not seen says which is better but the judges, who judge it.

    Raises:
        TrainError: fewer sightings or animals than folds, or what a lesson raises.
    """
    from reid.train import folds

    groups = withheld.sightings_of(store.catalogue, pool.labels)
    codes = np.full(len(groups), -1, np.int64)
    codes[pool.chosen] = pool.labels.individuals[pool.chosen]
    dealt = folds.assign(codes, groups, k, by=by, seed=seed)
    made: list[Made] = []
    for fold in range(k):
        rows = pool.chosen[dealt[pool.chosen] != fold]
        names = tuple(str(code) for code in codes[rows])
        run.log(f"fold {fold + 1} of {k}: {len(rows)} photos, {int((dealt == fold).sum())} left out")
        made.append(learnt(teach, Lesson(rows, names, run.folder / f"fold-{fold + 1}", f"fold-{fold + 1}")))
        run.log(made[-1].line)
    parts = [one.model for one in made]
    seen = Seen(*embedded(store, ensemble.joined(parts, threads=store.config.embedder.threads), pool.labels, progress))
    own = [unit_rows(one) for one in ensemble.blocks(seen.vectors, [models.read_card(part).dim for part in parts])]
    dealt = np.where(seen.there, dealt, -1)
    found = folds.out_of_fold(own, codes, groups, dealt, pool.labels.annotations, by)
    folds.write(run.folder / SCORES, found)
    asked = int((found.truth >= 0).sum())
    figures = {"folds": k, "by": by, "map_at_5": found.map_at_5, "queries": asked}
    run.log(f"out of fold: MAP@5 {found.map_at_5:.4f} of {asked} photos, each by the model that had not seen it")
    model = ensemble.write(run.folder, run.name, parts, [1.0] * k, {"out_of_fold": figures})
    return Made(
        model,
        len(pool.chosen),
        tuple(dict.fromkeys(failure for one in made for failure in one.failures)),
        _summed([one.seconds for one in made]),
        {"out_of_fold": figures, "folds": [one.notes for one in made]},
        f"{k} folds, one model; out of fold MAP@5 {found.map_at_5:.3f} of {asked} photos",
        tuple(sorted({row for one in made for row in one.also})),
        tuple({(each.first, each.second): each for one in made for each in one.suspects}.values()),
        replace(seen, vectors=ensemble.balanced(seen.vectors, models.read_card(model))),
    )


def swept(run: Run, k: int) -> None:
    """Delete what only a resumed run would look for: the note of the lesson, and the folds' own folders, whose models
    live on as members.
    """
    (run.folder / DONE).unlink(missing_ok=True)
    for fold in range(k):
        shutil.rmtree(run.folder / f"fold-{fold + 1}", ignore_errors=True)


# Pseudo-labels --------------------------------------------------------------------------------------------------------


def with_pseudo_labels(
    store: Store, teach: Teach, pool: Pool, run: Run, n: int, seed: int, progress: Progress
) -> Teach:
    """`teach` with `n` rounds before it, in which photos without a name learn one."""

    def taught(lesson: Lesson) -> Made:
        from reid.train import pseudo

        groups = withheld.sightings_of(store.catalogue, pool.labels)
        codes = np.full(len(groups), -1, np.int64)
        codes[lesson.rows] = pool.labels.individuals[lesson.rows]
        elsewhere = np.concatenate([pool.judges, np.setdiff1d(pool.chosen, lesson.rows)])
        apart = np.isin(groups, groups[elsewhere])  # sightings by which the result will be judged
        unnamed = np.flatnonzero((pool.labels.individuals < 0) & ~apart)

        def one(rows: IntArray, given: IntArray, number: int) -> Vectors:
            names = tuple(str(code) for code in given)
            stem = f"round-{number + 1}"
            made = learnt(teach, Lesson(rows, names, lesson.folder / stem, stem, trial=True))
            run.log(made.line)
            opened = ensemble.open_embedder(made.model, threads=store.config.embedder.threads)
            vectors, _, _ = embedded(store, opened, pool.labels, progress)
            return unit_rows(vectors)

        found = pseudo.rounds(
            one, codes, groups, lesson.rows, unnamed,
            n=n, least=store.config.training.pseudo_precision, share_new=store.config.decision.share_new, seed=seed,
        )  # fmt: skip
        for number, each in enumerate(found, 1):
            run.log(
                f"round {number}: {len(each.rows)} of {len(unnamed)} photos without a name got one (score from "
                f"{each.place.threshold:.3f}, leading by {each.place.gap:.3f}; about {each.place.precision:.0%} right, "
                f"by {each.place.judged} held-out photos); {each.changed} changed, {each.lost} lost theirs"
            )
        last = found[-1]
        rows, names = np.array(last.rows, np.int64), tuple(str(code) for code in last.codes)
        made = teach(replace(lesson, rows=np.concatenate([lesson.rows, rows]), names=(*lesson.names, *names)))
        for number in range(n):
            shutil.rmtree(lesson.folder / f"round-{number + 1}", ignore_errors=True)
        notes = {"pseudo_rounds": [_said(pool, each) for each in found]}
        line = f"{made.line}; {len(rows)} photos without a name taken in"
        return replace(made, notes=made.notes | notes, line=line, also=(*made.also, *last.rows))

    return taught


def _said(pool: Pool, each: Any) -> dict[str, Any]:
    """A round for the record: which annotations were taken for whom."""
    names = pool.labels.names
    pairs = zip(each.rows, each.codes, strict=True)
    return {
        **asdict(each.place),
        "photos": len(each.rows),
        "changed": each.changed,
        "lost": each.lost,
        "taken_for": {str(pool.labels.annotations[row]): names.get(code, str(code)) for row, code in pairs},
    }


def _summed(parts: list[dict[str, float]]) -> dict[str, float]:
    """Seconds of several trainings, stage by stage."""
    total: dict[str, float] = {}
    for part in parts:
        for stage, seconds in part.items():
            total[stage] = total.get(stage, 0.0) + seconds
    return total
