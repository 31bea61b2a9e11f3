"""Training on a store's own photos, judged on photos of the store that it never saw.

    catalogue → photos with names, less the judges' → a head on kept vectors (`reid.train.quick`), or the whole network
              by a recipe (`reid.train.embedder`) → a run's directory and a model directory
              → old and new vectors of everything → the same left-out photos answered by both → verdict
              → where asked for and the verdict allows it, on with all photos: the network that was judged stays beside
                the new one as its witness (`reid.witness`)

Who judges and how is said in `reid.judge`; what follows from it in `reid.adopt`. Nothing in force is touched before
`adopt`.

Needs the extra `train`. Knows stores; how anything is trained is the business of `reid.train`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reid import dealt, ensemble, models, steps, teaching, whole, withheld, witness
from reid.adopt import adopt, decision, weighed
from reid.catalogue import Labels
from reid.enrol import Progress, quiet
from reid.errors import MissingExtra, ModelError, NothingNew, ReidError, TrainError
from reid.judge import Candidate, Pool, advice, embedded, judge, pool_of, sources_of
from reid.judge import Refused as Refused
from reid.judge import Report as Report
from reid.planning import UNASKED, Plan, as_settled, learnt_before, planned, refits
from reid.planning import Options as Options
from reid.store import Store
from reid.teaching import Lesson, Made, Seen
from reid.withheld import TRAINED_ON, TRAINING

if TYPE_CHECKING:
    from reid.train.runs import Run

KEPT = "kept"  # below `TRAINING`: vectors of photos' views
REFIT = "refit"  # below a run's folder: the training that goes on with all photos
REFIT_PASSES, REFIT_TIME = 1 / 3, 1 / 3  # of the passes that a network was judged after, and of --minutes
Told = Callable[[int, float, float], None]


def night(store: Store, progress: Progress = quiet, options: Options = UNASKED) -> Report | Refused:
    """Train, judge, and adopt the model if it is not worse than `[training] tolerance` allows: for `reindex --train`.

    Errors of training come back as `Refused`, so that the rest of the nightly run goes on.
    """
    try:
        candidate = train(store, options, progress, nightly=True)
        reason, better = decision(candidate.report, store.config.training)
        if better:
            adopt(store, candidate)
    except ReidError as error:
        return Refused.of(error)
    return replace(candidate.report, swapped=better, reason=reason, next_step="")


def train(store: Store, options: Options, progress: Progress = quiet, *, nightly: bool = False) -> Candidate:
    """Train on the store's photos, put the model below `models/`, and measure it against the present one. `nightly`
    training is not resumed, and is not done where the model in force is what would come of it.

    Raises:
        TrainError: too few photos or animals, no animal with a second sighting, a loss that is no number, a full disk,
            nothing to resume, or a store that cannot deal the same photos again.
        NothingNew: the model in force was made of the same photos, names and settings (`nightly` alone).
        ConfigError: no such recipe, or its teacher is no model.
        MissingExtra: torch is not installed.
    """
    if options.mode == "head" and (options.recipe or options.begin_with or options.minutes):
        raise TrainError(
            "a head is not trained by a recipe, on from a network, or within minutes",
            next_step="leave out --mode head, or --recipe, --from and --minutes",
        )
    if options.folds == 1 or min(options.folds, options.pseudo_rounds) < 0:
        raise TrainError(
            f"{options.folds} folds, {options.pseudo_rounds} rounds", next_step="choose 2 folds or more, or none"
        )
    if options.begin_with and options.folds:
        raise TrainError(
            "a trained network has seen the photos by which a fold would be judged",
            next_step="leave out --from or --folds",
        )
    runs = _training_modules()
    parent = store.root / TRAINING
    if options.resume:
        run = runs.resume(parent, "network", "" if options.name == Options().name else options.name)
        options = _options_of(run)
    else:
        options = as_settled(options, store)
    plan = planned(options, store)
    options = replace(options, refit=refits(options, plan, store.config.training))
    base = _base(store)
    before = learnt_before(store, options, plan, base.name)
    if options.resume:
        _check(run, store, options, plan, base)
        with runs.written(run.folder):
            pool = dealt.again(store, run, before)
    else:
        pool = pool_of(store, seen=before, progress=progress)
        unnamed = options.name == Options().name
        stem = plan.recipe.name if plan.recipe is not None and unnamed else options.name
        config = _config(store, options, plan, base, pool)
        if nightly:
            _refuse_the_same(store, config, parent)
        run = runs.begin(parent, stem, "network", config, taken=store.models_folder)
    with runs.recorded(run, then=runs.ANEW if nightly else runs.RESUMED):
        if not options.resume:
            dealt.write(store, run, pool)
        run.log(f"{len(pool.sources)} photos of {len(set(pool.names))} animals; {len(pool.judges)} judge")
        epochs: list[tuple[float, float]] = []

        def tell(epoch: int, loss: float, score: float) -> None:
            epochs.append((loss, score))
            run.log(f"epoch {epoch + 1}, loss {loss:.4f}")

        done = _taught(store, options, plan, base, pool, run, progress, tell)
        seen = done.seen
        if seen is None:
            embedder = ensemble.open_embedder(done.model, threads=store.config.embedder.threads)
            seen = Seen(*embedded(store, embedder, pool.labels, progress))
        vectors, there, failures = seen.vectors, seen.there, seen.failures
        verdict = judge(store, pool, vectors, int((~there).sum()))
        why = f"{plan.why}; {done.line}" if options.folds or options.pseudo_rounds else plan.why
        report = Report(
            run.name, plan.mode, why, str(run.folder), base.name, store.embedder.card.name, done.photos,
            len(set(pool.names)), verdict, seconds=done.seconds, failures=(*done.failures, *failures),
            next_step=advice(verdict, run.name), suspects=done.suspects,
            by_witness=bool(witness.present(store)),
        )  # fmt: skip
        run.log(done.line)
        final = done
        if options.refit:
            reason, allowed = weighed(report, store.config.training, refits=True)
            if allowed:
                final = _refitted(store, options, plan, base, pool, run, done, progress)
                report = replace(
                    report, refitted=final.photos, seconds=_added(done.seconds, final.seconds),
                    failures=tuple(dict.fromkeys((*report.failures, *final.failures))),
                )  # fmt: skip
            else:
                report = replace(report, refit_reason=reason)
            run.log(f"on with all photos: {final.line}" if allowed else f"not on with all photos: {reason}")
        history = done.notes.get("epochs")  # of the last lesson, from its first epoch on; else what was told
        losses = done.notes.pop("losses", [loss for loss, _ in epochs])
        scores = [score for _, score in epochs] if history is None else [one["map_at_5"] for one in history]
        run.write_curves(losses, scores, worn=[one["worn"] for one in history or ()])
        learnt_from = np.union1d(pool.chosen, np.array(done.also, np.int64))
        learnt = np.union1d(pool.labels.annotations[learnt_from], before)
        models.write_learnt(done.model, withheld.photos_of(store, learnt))
        if final is not done:
            everything = np.flatnonzero(pool.labels.individuals >= 0)
            learnt = np.union1d(learnt, pool.labels.annotations[np.union1d(everything, np.array(final.also, np.int64))])
            models.write_learnt(final.model, withheld.photos_of(store, learnt))
        run.write_json(TRAINED_ON, {"annotations": learnt.tolist()})
        run.write_json(runs.METRICS, asdict(report) | done.notes | {"losses": losses})
        _put(final.model, store.models_folder, done.model if final is not done else None)
        teaching.swept(run, options.folds)
        shutil.rmtree(run.folder / REFIT, ignore_errors=True)
        dealt.forget(run)
        shutil.rmtree(_white_of(run), ignore_errors=True)
    return Candidate(report, store.models_folder / run.name, pool.labels.annotations[there], vectors[there])


# Two ways to train ----------------------------------------------------------------------------------------------------


def _taught(
    store: Store, options: Options, plan: Plan, base: Path, pool: Pool, run: Run, progress: Progress, tell: Told
) -> Made:
    """One lesson on the whole pool, or those that folds and rounds ask for."""
    several = teaching.lessons(options.folds, options.pseudo_rounds) > 1
    shared = _whitened(store, options, base, pool, run, progress) if several and plan.recipe is None else None

    def teach(lesson: Lesson) -> Made:
        if plan.recipe is None:
            return _head(store, options, base, lesson, pool.labels, run, shared, progress, tell)
        return whole.teach(
            store, plan.recipe, base.name, pool, lesson, progress, tell, seed=options.seed, resume=options.resume,
            seconds=60 * options.minutes * (1 - bool(options.refit) * REFIT_TIME)
            / teaching.lessons(options.folds, options.pseudo_rounds),
            begin_with=store.models_folder / witness.of(store, options.begin_with) if options.begin_with else None,
        )  # fmt: skip

    lesson: teaching.Teach = teach
    if options.pseudo_rounds:
        lesson = teaching.with_pseudo_labels(store, teach, pool, run, options.pseudo_rounds, options.seed, progress)
    if options.folds:
        return teaching.in_folds(store, lesson, pool, run, options.folds, options.fold_by, options.seed, progress)
    return teaching.learnt(lesson, Lesson(pool.chosen, pool.names, run.folder, run.name))


def _refitted(
    store: Store, options: Options, plan: Plan, base: Path, pool: Pool, run: Run, judged: Made, progress: Progress
) -> Made:
    """What was `judged`, taught all photos with a name: a head from the beginning, which takes as long again; a network
    on from where it stands, with a share of its passes.
    """

    def teach(lesson: Lesson) -> Made:
        if plan.recipe is None:
            return _head(store, options, base, lesson, pool.labels, run, None, progress, lambda *_: None)
        passes = math.ceil(REFIT_PASSES * len(judged.notes["epochs"]))
        recipe = replace(plan.recipe, schedule=replace(plan.recipe.schedule, epochs=passes))
        return whole.teach(
            store, recipe, base.name, replace(pool, judges=pool.judges[:0]), lesson, progress, lambda *_: None,
            seed=options.seed, resume=options.resume, seconds=60 * options.minutes * REFIT_TIME, begin_with=judged.model,
        )  # fmt: skip

    rows = np.flatnonzero(pool.labels.individuals >= 0)
    names = tuple(str(code) for code in pool.labels.individuals[rows])
    return teaching.learnt(teach, Lesson(rows, names, run.folder / REFIT, run.name))


def _added(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """Seconds of two trainings, stage by stage."""
    return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in first | second}


def _whitened(store: Store, options: Options, base: Path, pool: Pool, run: Run, progress: Progress) -> Path:
    """What all heads of a run stand on, so that a photo's views are embedded once: found by the pool's photos without
    their names.
    """
    from reid.train import quick

    white = _white_of(run)
    return quick.whiten(
        pool.sources, base, white.parent, white.name,
        keep=run.folder.parent / KEPT, config=_quick_config(store, options), progress=progress,
    )  # fmt: skip


def _white_of(run: Run) -> Path:
    return run.folder.parent / KEPT / "models" / f"{run.name}-white"


def _head(
    store: Store, options: Options, base: Path, lesson: Lesson, labels: Labels, run: Run,
    white: Path | None, progress: Progress, tell: Told,
) -> Made:  # fmt: skip
    """A projection on kept vectors."""
    from reid.train import quick

    sightings = withheld.sightings_of(store.catalogue, labels)[lesson.rows]
    done = quick.train(
        sources_of(store, labels, lesson.rows), lesson.names, base, lesson.folder, lesson.name,
        keep=run.folder.parent / KEPT, white=white, sightings=sightings, config=_quick_config(store, options),
        progress=progress, epochs=tell,
    )  # fmt: skip
    line = f"mirrored photos are {'other animals' if done.chosen.mirror_as_class else 'of the same animal'}"
    notes = {"tried": done.tried, "losses": [one.loss for one in done.head.history]}
    return Made(done.model, done.photos, done.failures, done.seconds, notes, line)


def _training_modules() -> Any:
    """`reid.train.runs`, once all that training needs is there; MissingExtra where torch is not installed."""
    # Threads of torch that wait for one another must not hold the core on a machine that does other things: with the
    # default a training beside other work has been six times as slow. Read when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import pytorch_metric_learning  # noqa: F401

        from reid.train import embedder, quick, runs  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"training needs {error.name}", next_step=steps.install("train")) from error
    return runs


def _base(store: Store) -> Path:
    """The directory of the model to train on: the present one, or what that was trained on."""
    card = store.embedder.card
    return models.ensure(store.models_folder, str(card.extra.get("base", card.name)))


def _quick_config(store: Store, options: Options) -> Any:
    from reid.train.quick import QuickConfig

    rules = store.config.training
    plain = QuickConfig()
    heads = tuple(replace(head, epochs=options.epochs or rules.epochs) for head in plain.heads)
    return replace(plain, views=options.views or rules.views, seed=options.seed, heads=heads)


def _config(store: Store, options: Options, plan: Plan, base: Path, pool: Pool) -> dict[str, Any]:
    """What `config.json` says."""
    card = models.read_card(base)
    fixed: dict[str, str] = {"mode": plan.mode}
    if plan.recipe is not None:
        fixed |= {"recipe": options.recipe or plan.recipe.name, "scale": plan.recipe.scale}
    return {
        "options": asdict(options) | fixed,
        "seed": options.seed,
        "training": _rules(store, options, plan),
        "base": card.name,
        "base_fingerprint": card.fingerprint,
        "present": store.embedder.card.name,
        "photos": len(pool.sources),
        "animals": len(set(pool.names)),
        "judges": len(pool.judges),
        "catalogue_revision": store.catalogue.revision,
        "taught": _digest(store, pool),
    }


def _digest(store: Store, pool: Pool) -> str:
    """Of the photos, their boxes, names and sightings, and the judges: what a head of this seed and these settings is
    made of.
    """
    sightings = withheld.sightings_of(store.catalogue, pool.labels).tolist()
    told = [repr(pool.sources), list(pool.names), sightings, pool.labels.annotations[pool.judges].tolist()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _refuse_the_same(store: Store, config: dict[str, Any], parent: Path) -> None:
    """Raises NothingNew where the model in force is a head that just such a run made: the same seed makes the same head.
    Whole networks go on from the night before.
    """
    present = store.embedder.card.name
    try:
        before = json.loads((parent / present / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if config["options"]["mode"] == "head" and _made_of(before) == _made_of(json.loads(json.dumps(config))):
        raise NothingNew(
            f"nothing has changed since {present} was trained on these photos",
            next_step="`reid train --seed 1` begins elsewhere",
        )


def _made_of(config: dict[str, Any]) -> tuple[Any, ...]:
    """All of a run's `config.json` that a head hangs on."""
    options = {key: value for key, value in config.get("options", {}).items() if key not in ("name", "resume")}
    return (options, *(config.get(key) for key in ("training", "base_fingerprint", "taught")))


def _rules(store: Store, options: Options, plan: Plan) -> dict[str, Any]:
    """How is trained, as JSON has it."""
    rules = asdict(_quick_config(store, options)) if plan.recipe is None else plan.recipe.to_dict()
    found: dict[str, Any] = json.loads(json.dumps(rules, default=str))
    return found


def _check(run: Run, store: Store, options: Options, plan: Plan, base: Path) -> None:
    """Raises TrainError where the run was begun on another model or by other rules than there are now."""
    said = ""
    if run.config.get("base_fingerprint") != models.read_card(base).fingerprint:
        said = "on another model"
    elif run.config["training"] != _rules(store, options, plan):
        said = "with other settings, or by a recipe that has changed since"
    if said:
        raise TrainError(
            f"that training was begun {said}",
            source=str(run.folder),
            next_step="leave out --resume: `reid train` begins anew",
        )


def _options_of(run: Run) -> Options:
    """The options that a run was begun with."""
    try:
        found = replace(Options(**{"refit": False} | run.config["options"]), resume=True)
        if found.mode == "full":
            return found
        training = run.config["training"]
        return replace(found, epochs=int(training["heads"][0]["epochs"]), views=int(training["views"]))
    except (KeyError, TypeError, ValueError) as error:
        raise TrainError(
            f"its settings are those of another version ({error})",
            source=str(run.folder),
            next_step="begin a new training",
        ) from error


def _put(model: Path, folder: Path, speaks: Path | None = None) -> None:
    """A copy of the model directory below `folder`, whole or absent; what `speaks` for it inside, as its witness."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{model.name}-", dir=folder))
    try:
        shutil.copytree(model, aside / "model", ignore=shutil.ignore_patterns("compiled"))
        if speaks is not None:
            shutil.copytree(speaks, aside / "model" / witness.FOLDER, ignore=shutil.ignore_patterns("compiled"))
        if (folder / model.name).exists():
            raise ModelError(
                "a model of that name is there", source=str(folder / model.name), next_step="choose a --name"
            )
        (aside / "model").rename(folder / model.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
