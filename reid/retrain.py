"""Training on a store's own photos, judged on photos of the store that it never saw.

    catalogue → photos with names, less the judges' → a head on kept vectors (`reid.train.quick`), or the whole network
              by a recipe (`reid.train.embedder`) → a run's directory and a model directory
              → old and new vectors of everything → the same left-out photos answered by both → verdict

Who judges and how is said in `reid.judge`; what follows from it in `reid.adopt`. Nothing in force is touched before
`adopt`.

Needs the extra `train`. Knows stores; how anything is trained is the business of `reid.train`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from reid import ensemble, models, steps, teaching, whole, withheld
from reid.adopt import adopt, decision
from reid.config import TrainingMode
from reid.enrol import Progress, quiet
from reid.errors import MissingExtra, ModelError, ReidError, TrainError
from reid.judge import Candidate, Pool, advice, embedded, judge, pool_of, sources_of
from reid.judge import Report as Report
from reid.store import Store
from reid.teaching import Lesson, Made, Seen
from reid.withheld import TRAINED_ON, TRAINING

if TYPE_CHECKING:
    from reid.train.features import Source
    from reid.train.recipe import Recipe
    from reid.train.runs import Run

KEPT = "kept"  # below `TRAINING`: vectors of photos' views
# By which a whole network is trained where none is named: flukes, in wide boxes, all lie alike; other animals do not.
RECIPE_WIDE, RECIPE = "first_place", "any_animal"
LEAST_FULL = 1000  # photos with names from which on a GPU trains the whole network unasked

Mode = TrainingMode
IntArray = NDArray[np.int64]
Told = Callable[[int, float, float], None]


@dataclass(frozen=True, slots=True)
class Options:
    """How to train. 0 epochs and 0 views: as `[training]` in reid.toml says, or the recipe; mode "auto" without a recipe
    takes mode, recipe and minutes from there, too. `recipe` (of `reid.train.recipe`, or a .toml file), `scale` ("" for
    what the machine is fit for) and `minutes` (0: as long as the recipe says) are for the whole network. From 2 `folds`
    on as many models become one, each by the photos of the others; `pseudo_rounds` learn from photos without a name
    first (`reid.teaching`). `begin_with` is a trained network of the store that learns further, by its own recipe where
    none is named.
    """

    mode: Mode = "auto"
    epochs: int = 0
    views: int = 0
    seed: int = 0
    name: str = "head"
    resume: bool = False
    recipe: str = ""
    scale: str = ""
    minutes: float = 0.0
    folds: int = 0
    fold_by: Literal["sighting", "identity"] = "sighting"
    pseudo_rounds: int = 0
    begin_with: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A training that could not be: the typed error's parts. The present model stays."""

    code: str
    reason: str
    source: str
    next_step: str
    swapped: bool = False


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is trained, by what recipe (None for a head), and why, in words."""

    mode: Mode
    recipe: Recipe | None
    why: str


def night(store: Store, progress: Progress = quiet, options: Options = Options()) -> Report | Refused:
    """Train, judge, and adopt the model if it is not worse than `[training] tolerance` allows: for `reindex --train`.

    Errors of training come back as `Refused`, so that the rest of the nightly run goes on.
    """
    try:
        candidate = train(store, options, progress)
        reason, better = decision(candidate.report, store.config.training)
        if better:
            adopt(store, candidate)
    except ReidError as error:
        return Refused(error.code, error.message, error.source, error.next_step)
    return replace(candidate.report, swapped=better, reason=reason, next_step="")


def train(store: Store, options: Options, progress: Progress = quiet) -> Candidate:
    """Train on the store's photos, put the model below `models/`, and measure it against the present one.

    Raises:
        TrainError: too few photos or animals, no animal with a second sighting, a loss that is no number, a full disk,
            nothing to resume.
        ConfigError: no such recipe, or its teacher is no model.
        MissingExtra: torch is not installed.
    """
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
        run = runs.resume(parent, "" if options.name == Options().name else options.name)
        options = _options_of(run)
    else:
        options = _as_settled(options, store)
    plan = _planned(options, store)
    base = _base(store)
    before = _learnt_before(store, options, plan)
    pool = pool_of(store, seen=before)
    if not options.resume:
        unnamed = options.name == Options().name
        stem = plan.recipe.name if plan.recipe is not None and unnamed else options.name
        run = runs.begin(parent, stem, _config(store, options, plan, base, pool))
    elif run.config["base_fingerprint"] != models.read_card(base).fingerprint:
        raise TrainError(
            "that training was begun on another model", source=str(run.folder), next_step="leave out --resume"
        )
    with runs.recorded(run):
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
            next_step=advice(verdict, run.name),
        )  # fmt: skip
        run.log(done.line)
        history = done.notes.get("epochs")  # of the last lesson, from its first epoch on; else what was told
        losses = done.notes.pop("losses", [loss for loss, _ in epochs])
        scores = [score for _, score in epochs] if history is None else [one["map_at_5"] for one in history]
        run.write_curves(losses, scores, worn=[one["worn"] for one in history or ()])
        learnt_from = np.union1d(pool.chosen, np.array(done.also, np.int64))
        learnt = np.union1d(pool.labels.annotations[learnt_from], before)
        run.write_json(TRAINED_ON, {"annotations": learnt.tolist()})
        run.write_json(runs.METRICS, asdict(report) | done.notes | {"losses": losses})
        models.write_learnt(done.model, withheld.photos_of(store, learnt))
        _put(done.model, store.models_folder)
        teaching.swept(run, options.folds)
        shutil.rmtree(_white_of(run), ignore_errors=True)
    return Candidate(report, store.models_folder / run.name, pool.labels.annotations[there], vectors[there])


# Two ways to train ----------------------------------------------------------------------------------------------------


def _taught(
    store: Store, options: Options, plan: _Plan, base: Path, pool: Pool, run: Run, progress: Progress, tell: Told
) -> Made:
    """One lesson on the whole pool, or those that folds and rounds ask for."""
    several = teaching.lessons(options.folds, options.pseudo_rounds) > 1
    shared = _whitened(store, options, base, pool, run, progress) if several and plan.recipe is None else None

    def teach(lesson: Lesson) -> Made:
        if plan.recipe is None:
            sources = sources_of(store, pool.labels, lesson.rows)
            return _head(store, options, base, lesson, sources, run, shared, progress, tell)
        return whole.teach(
            store, plan.recipe, base.name, pool, lesson, progress, tell, seed=options.seed, resume=options.resume,
            seconds=60 * options.minutes / teaching.lessons(options.folds, options.pseudo_rounds),
            begin_with=store.models_folder / options.begin_with if options.begin_with else None,
        )  # fmt: skip

    lesson: teaching.Teach = teach
    if options.pseudo_rounds:
        lesson = teaching.with_pseudo_labels(store, teach, pool, run, options.pseudo_rounds, options.seed, progress)
    if options.folds:
        return teaching.in_folds(store, lesson, pool, run, options.folds, options.fold_by, options.seed, progress)
    return lesson(Lesson(pool.chosen, pool.names, run.folder, run.name))


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
    store: Store, options: Options, base: Path, lesson: Lesson, sources: Sequence[Source], run: Run,
    white: Path | None, progress: Progress, tell: Told,
) -> Made:  # fmt: skip
    """A projection on kept vectors."""
    from reid.train import quick

    done = quick.train(
        sources, lesson.names, base, lesson.folder, lesson.name,
        keep=run.folder.parent / KEPT, white=white, config=_quick_config(store, options), progress=progress,
        epochs=tell,
    )  # fmt: skip
    line = f"mirrored photos are {'other animals' if done.chosen.mirror_as_class else 'of the same animal'}"
    return Made(done.model, done.photos, done.failures, done.seconds, {"tried": done.tried}, line)


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


def _as_settled(options: Options, store: Store) -> Options:
    """With what `[training]` in reid.toml says where the options leave it open."""
    from reid.train import recipe as recipes

    rules = store.config.training
    if options.mode == "auto" and not (options.recipe or options.begin_with):
        own = store.root / rules.recipe  # a file of the store
        recipe = str(own) if rules.recipe.endswith(".toml") and own.is_file() else rules.recipe
        options = replace(options, mode=rules.mode, recipe=recipe, minutes=options.minutes or rules.minutes)
    present = store.embedder.card
    whole = options.mode == "full" or options.recipe
    if rules.onwards and whole and not (options.begin_with or options.folds):
        by = str(present.extra.get("recipe", ""))
        known = Path(options.recipe).stem == by if options.recipe else by in recipes.names()
        if known and present.extra.get("scale") == _scale(options):
            options = replace(options, begin_with=present.name)
    return options


def _scale(options: Options) -> str:
    """As asked for, or what the machine is fit for."""
    import torch

    return options.scale or ("gpu" if torch.cuda.is_available() else "laptop")


def _planned(options: Options, store: Store) -> _Plan:
    """Head or whole network, by the machine and the number of photos where it is not said, and why.

    Raises:
        ConfigError: no such recipe or scale.
    """
    import torch

    from reid.train import recipe

    cuda = torch.cuda.is_available()
    photos = store.catalogue.counts().annotations
    machine = f"{'a' if cuda else 'no'} CUDA device, {photos} animals in photos"
    asked = options.mode == "full" or bool(options.recipe or options.begin_with)
    if options.mode == "head" or not (asked or (cuda and photos >= LEAST_FULL)):
        hint = "" if cuda else "; --mode full --minutes 60 trains all of it on a CPU"
        few = f"; fewer than {LEAST_FULL} are little for a whole network" if cuda and photos < LEAST_FULL else hint
        how = "asked for" if options.mode == "head" else "chosen"
        return _Plan("head", None, f"head, {how}: {machine}; the network itself stays as it is{few}")
    scale = _scale(options)
    seen = ensemble.lead(store.embedder.card)
    usual = RECIPE_WIDE if seen.width >= models.WIDE_ASPECT * seen.height else RECIPE
    if options.begin_with:
        usual = _recipe_of(store, options.begin_with)
    chosen = recipe.load(options.recipe or usual, scale)  # type: ignore[arg-type]  # a wrong one is refused there
    if options.epochs:
        chosen = replace(chosen, schedule=replace(chosen.schedule, epochs=options.epochs))
    if chosen.sampling.teacher:
        chosen = _with_teacher(chosen, store)
    how = "asked for" if asked else "chosen"
    bound = f", within {options.minutes:g} minutes" if options.minutes else ""
    return _Plan("full", chosen, f"full, {how}: {machine}; recipe {chosen.name}, scale {scale}{bound}")


def _with_teacher(recipe: Recipe, store: Store) -> Recipe:
    """The recipe with its teacher's directory: that of a model of the store, or a path.

    Raises:
        ConfigError: it is none.
    """
    from reid.train import teacher

    name = recipe.sampling.teacher
    own = store.models_folder / name
    folder = teacher.found(str(own if own.is_dir() else name)).resolve()
    return replace(recipe, sampling=replace(recipe.sampling, teacher=str(folder)))


def _learnt_before(store: Store, options: Options, plan: _Plan) -> IntArray:
    """The annotations that a training knows through others: those learnt by the network that it goes on from, and by
    its teacher. They judge nothing.

    Raises:
        TrainError: a teacher has seen the photos by which a fold would be judged.
    """
    found = [withheld.trained_on_by(store, options.begin_with)] if options.begin_with else []
    if plan.recipe is not None and plan.recipe.sampling.teacher:
        folder = Path(plan.recipe.sampling.teacher)
        own = folder.parent == store.models_folder.resolve()
        found.append(withheld.trained_on_by(store, folder.name if own else str(folder)))
        if options.folds and len(found[-1]):
            raise TrainError(
                "the recipe's teacher has seen the photos by which a fold would be judged",
                source=str(folder),
                next_step="leave out --folds, or name a teacher that learnt elsewhere",
            )
    return np.unique(np.concatenate([np.empty(0, np.int64), *found]))


def _recipe_of(store: Store, model: str) -> str:
    """The recipe by which a network of the store was trained.

    Raises:
        TrainError: it was not.
    """
    found = {card.name: card.extra.get("recipe") for card in models.listed(store.models_folder)}
    if not found.get(model):
        raise TrainError(
            f"'{model}' is no network that a recipe trained in this store",
            source=str(store.models_folder),
            next_step="choose one of `reid models list`, or leave out --from",
        )
    return str(found[model])


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


def _config(store: Store, options: Options, plan: _Plan, base: Path, pool: Pool) -> dict[str, Any]:
    """What `config.json` says."""
    card = models.read_card(base)
    training = asdict(_quick_config(store, options)) if plan.recipe is None else plan.recipe.to_dict()
    fixed: dict[str, str] = {}
    if plan.recipe is not None:
        fixed = {"mode": "full", "recipe": options.recipe or plan.recipe.name, "scale": plan.recipe.scale}
    return {
        "options": asdict(options) | fixed,
        "seed": options.seed,
        "training": training,
        "base": card.name,
        "base_fingerprint": card.fingerprint,
        "present": store.embedder.card.name,
        "photos": len(pool.sources),
        "animals": len(set(pool.names)),
        "judges": len(pool.judges),
        "catalogue_revision": store.catalogue.revision,
    }


def _options_of(run: Run) -> Options:
    """The options that a run was begun with."""
    try:
        found = replace(Options(**run.config["options"]), resume=True)
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


def _put(model: Path, folder: Path) -> None:
    """A copy of the model directory below `folder`, whole or absent."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{model.name}-", dir=folder))
    try:
        shutil.copytree(model, aside / "model", ignore=shutil.ignore_patterns("compiled"))
        if (folder / model.name).exists():
            raise ModelError(
                "a model of that name is there", source=str(folder / model.name), next_step="choose a --name"
            )
        (aside / "model").rename(folder / model.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
