"""Training on a store's own photos, judged on photos of the store that it never saw.

    catalogue → photos with names, less the judges' → `reid.train.quick` → a run's directory and a model directory
              → old and new vectors of everything → the same left-out photos answered by both (`fit.left_out`) → verdict

The judges are the photos that `reid.fit` leaves out to place the threshold. They, their encounters and their
near-duplicates are kept from the training, so the figures are those of new photos of known animals; a judge that the
*present* model was trained on is passed over, or the older model would be flattered. Nothing in force is touched before
`adopt`, which puts the new model's vectors into the catalogue and its name into the settings.

Needs the extra `train`. Knows stores; how a head is trained is the business of `reid.train`.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from reid import config as settings
from reid import decide, enrol, fit, intake, models, whiten
from reid.catalogue import Labels
from reid.decide import LeftOut
from reid.embed import Embedder, OpenVinoEmbedder, unit_rows
from reid.enrol import Progress, quiet
from reid.errors import MissingExtra, ModelError, ReidError, TrainError
from reid.images import printable
from reid.intervals import bootstrap_interval
from reid.metrics import hits_at_k, reciprocal_ranks
from reid.records import Failure, Sighting
from reid.store import SETTINGS, Store, write_atomically

if TYPE_CHECKING:
    from reid.train.features import Source
    from reid.train.runs import Run

FOLDER = "training"  # in the store: a directory a run, and the kept vectors
KEPT, TRAINED_ON = "kept", "trained-on.json"
LEAST_JUDGES = 20  # left-out photos of known animals below which no model is put in another's place

Mode = Literal["auto", "head", "full"]
IntArray = NDArray[np.int64]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Options:
    """How to train. 0 epochs and 0 views: as `[training]` in reid.toml says."""

    mode: Mode = "auto"
    epochs: int = 0
    views: int = 0
    seed: int = 0
    name: str = "head"
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A measure with its 95 % bootstrap interval over animals."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Both models on the same left-out photos. `gain` is of MAP@5, paired; `answers` is MAP@5 with the new individual
    among the labels, at each model's own threshold (NaN where there is too little to place one).
    """

    photos: int
    animals: int
    map_at_5_before: Figure
    map_at_5_after: Figure
    gain: Figure
    top1_before: Figure
    top1_after: Figure
    answers_before: float
    answers_after: float
    lost: int


@dataclass(frozen=True, slots=True)
class Report:
    """One training: what was trained on what, what it gave, and whether it is in force now."""

    model: str
    mode: str
    why_mode: str
    run: str
    base: str
    present: str
    photos: int
    animals: int
    verdict: Verdict
    swapped: bool = False
    reason: str = ""
    next_step: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """A training that could not be: the typed error's parts. The present model stays."""

    code: str
    reason: str
    source: str
    next_step: str
    swapped: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A trained model, and its raw vectors `(N, D)` of `annotations (N,)`."""

    report: Report
    folder: Path
    annotations: IntArray
    vectors: Vectors


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """`labels` and present `vectors` of everything in service; which of it is trained on, as sources and names."""

    labels: Labels
    vectors: Vectors
    chosen: IntArray
    sources: tuple[Source, ...]
    names: tuple[str, ...]
    judges: IntArray


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
    """Train a head on the store's photos, put the model below `models/`, and measure it against the present one.

    Raises:
        TrainError: too few photos or animals, no animal with a second sighting, a loss that is no number, a full disk,
            nothing to resume.
        MissingExtra: torch is not installed.
    """
    quick, runs = _training_modules()
    parent = store.root / FOLDER
    if options.resume:
        run = runs.resume(parent, "" if options.name == Options().name else options.name)
        options = _options_of(run)
    why = _why(options.mode, store)
    base = _base(store)
    pool = _pool(store)
    if not options.resume:
        run = runs.begin(parent, options.name, _config(store, options, base, pool))
    elif run.config["base_fingerprint"] != models.read_card(base).fingerprint:
        raise TrainError(
            "that training was begun on another model", source=str(run.folder), next_step="leave out --resume"
        )
    with runs.recorded(run):
        run.log(f"{len(pool.sources)} photos of {len(set(pool.names))} animals; {len(pool.judges)} judge")
        config = _quick_config(store, options)
        epochs: list[tuple[float, float]] = []

        def tell(epoch: int, loss: float, score: float) -> None:
            epochs.append((loss, score))
            run.log(f"epoch {epoch + 1}, loss {loss:.4f}")

        done = quick.train(
            pool.sources, pool.names, base, run.folder, run.name,
            keep=parent / KEPT, config=config, progress=progress, epochs=tell,
        )  # fmt: skip
        embedder = OpenVinoEmbedder(done.model, threads=store.config.embedder.threads)
        vectors, there, failures = _embedded(store, embedder, pool.labels, progress)
        verdict = _judge(store, pool, vectors, int((~there).sum()))
        report = Report(
            run.name, "head", why, str(run.folder), base.name, store.embedder.card.name, done.photos,
            len(set(pool.names)), verdict, seconds=done.seconds, failures=(*done.failures, *failures),
            next_step=_advice(verdict, run.name),
        )  # fmt: skip
        run.log(f"mirrored photos are {'other animals' if done.chosen.mirror_as_class else 'of the same animal'}")
        run.write_curves([loss for loss, _ in epochs], [score for _, score in epochs])
        run.write_json(TRAINED_ON, {"annotations": pool.labels.annotations[pool.chosen].tolist()})
        run.write_json(runs.METRICS, asdict(report) | {"tried": done.tried, "losses": [loss for loss, _ in epochs]})
        _put(done.model, store.models_folder)
    return Candidate(report, store.models_folder / run.name, pool.labels.annotations[there], vectors[there])


def decision(report: Report, rules: settings.TrainingConfig) -> tuple[str, bool]:
    """Why the new model takes the old one's place or does not, and whether it does."""
    found = report.verdict
    before, after = found.map_at_5_before.value, found.map_at_5_after.value
    if found.photos < LEAST_JUDGES:
        return (
            f"{found.photos} photos of known animals could judge, {LEAST_JUDGES} are needed: the present model stays",
            False,
        )
    total = max(1, report.photos + found.photos)
    if found.lost > rules.may_lose * total:
        return f"{found.lost} photos cannot be read any more and would leave the index: the present model stays", False
    figures = f"MAP@5 {before:.3f} → {after:.3f} on {found.photos} photos that neither model was trained on"
    if not after >= before - rules.tolerance:  # also where a figure is NaN
        return f"{figures}: worse, the present model stays", False
    return f"{figures}: not worse, the new model is in force", True


def adopt(store: Store, candidate: Candidate) -> None:
    """Make a candidate the store's model: vectors into the catalogue, then its name into `reid.toml`.

    The index still holds the old vectors until the next `fit.fit`; killed in between, `reid reindex` mends it.

    Raises:
        StoreError, CatalogueError: what was before is in force.
    """
    fingerprint = store.fingerprint_with(models.read_card(candidate.folder))
    for at in range(0, len(candidate.annotations), 512):
        part = slice(at, at + 512)
        store.catalogue.put_embeddings(fingerprint, candidate.annotations[part].tolist(), candidate.vectors[part])
    path = store.root / SETTINGS
    text = with_model(path.read_text(encoding="utf-8"), candidate.folder.name)
    changed = settings.parse(text, str(path))
    write_atomically(path, text)
    store.config = changed
    store.__dict__.pop("embedder", None)


def with_model(text: str, name: str) -> str:
    """The text of a `reid.toml` with `[embedder] model` set to `name`, all else as it was."""
    line = f'model = "{name}"'
    section = re.search(r"(?m)^[ \t]*\[[ \t]*embedder[ \t]*\][^\n]*\n?", text)
    if section is None:
        return f"{text.rstrip()}\n\n[embedder]\n{line}\n"
    following = re.search(r"(?m)^[ \t]*\[", text[section.end() :])
    end = section.end() + following.start() if following else len(text)
    body = text[section.end() : end]
    changed, found = re.subn(
        r"""(?m)^([ \t]*)model[ \t]*=[ \t]*("[^"\n]*"|'[^'\n]*')""", rf"\g<1>{line}", body, count=1
    )
    if not found:
        changed = f"{line}\n{body}"
    head = text[: section.end()]
    return (head if head.endswith("\n") else f"{head}\n") + changed + text[end:]


# Before the training --------------------------------------------------------------------------------------------------


def _training_modules() -> tuple[Any, Any]:
    """`reid.train.quick` and `reid.train.runs`; MissingExtra where torch is not installed."""
    try:
        import pytorch_metric_learning  # noqa: F401

        from reid.train import quick, runs
    except ImportError as error:
        raise MissingExtra(f"training needs {error.name}", next_step='pip install "animal-reid[train]"') from error
    return quick, runs


def _why(mode: Mode, store: Store) -> str:
    """Why a head is trained, in words; TrainError for `full`."""
    import torch

    cuda = torch.cuda.is_available()
    if mode == "full":
        raise TrainError(
            "training the whole network is not part of this version"
            + ("" if cuda else ", and would need a GPU, which is not on this machine"),
            next_step="--mode head trains on kept vectors: minutes on a CPU",
        )
    machine = "a CUDA device" if cuda else "no CUDA device"
    asked = "asked for" if mode == "head" else "chosen"
    return (
        f"head, {asked}: {machine}, {store.catalogue.counts().annotations} animals in photos; "
        "the network itself stays as it is (training all of it is not part of this version)"
    )


def _base(store: Store) -> Path:
    """The directory of the model to train on: the present one, or what that was trained on."""
    card = store.embedder.card
    return models.ensure(store.models_folder, str(card.extra.get("base", card.name)))


def _pool(store: Store) -> _Pool:
    """See the class.

    Raises:
        TrainError: fewer than two animals, or none with a second sighting to judge by.
    """
    from reid.train.features import Source

    labels, vectors = fit.gathered(store.catalogue, store.fingerprint)
    named = labels.individuals >= 0
    if len(np.unique(labels.individuals[named])) < 2:
        raise TrainError(
            f"{int(named.sum())} photos of {len(np.unique(labels.individuals[named]))} animals with a name: "
            "there is nothing to tell apart",
            source=str(store.root),
            next_step="enrol photos with names of more animals",
        )
    groups = fit.sightings_of(store.catalogue, labels)
    judges = fit.chosen_queries(labels.individuals, groups)
    kept = named & ~np.isin(groups, groups[judges])
    known = np.isin(labels.individuals[judges], labels.individuals[kept])
    if not known.any():
        raise TrainError(
            "no animal has photos of two sightings apart from one another: nothing to learn from, nothing to judge by",
            source=str(store.root),
            next_step="enrol photos of second sightings",
        )
    chosen = np.flatnonzero(kept)
    infos = store.catalogue.annotations(labels.annotations[chosen].tolist())
    photos = store.catalogue.photos(sorted({info.photo for info in infos.values()}))
    sources = tuple(
        Source(
            store.resolve(info.path),
            None if info.box.origin == "whole" else info.box,
            photos[info.photo].width,
            photos[info.photo].height,
        )
        for info in infos.values()
    )
    names = tuple(str(labels.individuals[row]) for row in chosen)
    return _Pool(labels, vectors, chosen, sources, names, judges[known])


def _quick_config(store: Store, options: Options) -> Any:
    from reid.train.quick import QuickConfig

    rules = store.config.training
    plain = QuickConfig()
    heads = tuple(replace(head, epochs=options.epochs or rules.epochs) for head in plain.heads)
    return replace(plain, views=options.views or rules.views, seed=options.seed, heads=heads)


def _config(store: Store, options: Options, base: Path, pool: _Pool) -> dict[str, Any]:
    """What `config.json` says."""
    card = models.read_card(base)
    return {
        "options": asdict(options),
        "seed": options.seed,
        "training": asdict(_quick_config(store, options)),
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
        found = Options(**run.config["options"])
        training = run.config["training"]
        return replace(found, resume=True, epochs=int(training["heads"][0]["epochs"]), views=int(training["views"]))
    except (KeyError, TypeError, ValueError) as error:
        raise TrainError(
            f"its settings are those of another version ({error})",
            source=str(run.folder),
            next_step="begin a new training",
        ) from error


# After it -------------------------------------------------------------------------------------------------------------


def _embedded(
    store: Store, embedder: Embedder, labels: Labels, progress: Progress
) -> tuple[Vectors, NDArray[np.bool_], list[Failure]]:
    """Vectors `(N, D)` of all annotations by another model, on the way of an enrolment; zeros where `there (N,)` is
    False.
    """
    infos = store.catalogue.annotations(labels.annotations.tolist())
    row_of = {int(a): row for row, a in enumerate(labels.annotations.tolist())}
    by_path: dict[Path, list[int]] = {}
    for annotation, info in infos.items():
        by_path.setdefault(store.resolve(info.path), []).append(annotation)
    photos = [
        tuple(Sighting(path, printable(path), box=infos[a].box, species=infos[a].species) for a in ids)
        for path, ids in by_path.items()
    ]
    views = enrol.views_of(store)
    rows = np.zeros((len(labels.annotations), embedder.card.dim), np.float32)
    there = np.zeros(len(rows), np.bool_)
    failures: list[Failure] = []
    prepared = intake.prepare_all(photos, embedder.card.preprocessing, views, croppers=store.croppers)
    for done, (ids, one) in enumerate(zip(by_path.values(), prepared, strict=True), 1):
        if isinstance(one, Failure):
            failures.append(one)
        elif len(one.boxes) != len(ids):
            failures.extend(one.failures)
        else:
            at = [row_of[a] for a in ids]
            rows[at] = enrol.embed_views(embedder, one.crops, len(views))
            there[at] = True
        progress("judge", done, len(photos))
    return rows, there, failures


def _judge(store: Store, pool: _Pool, vectors: Vectors, lost: int) -> Verdict:
    """The same left-out photos answered by the present and by the new vectors."""
    whitened = len(pool.labels.annotations) >= whiten.LEAST_PHOTOS
    before, after = (
        fit.left_out(store, pool.labels, unit_rows(rows), whitened=whitened) for rows in (pool.vectors, vectors)
    )
    queries = fit.chosen_queries(pool.labels.individuals, fit.sightings_of(store.catalogue, pool.labels))
    seen = _trained_on(store, store.embedder.card.name)
    unseen = ~np.isin(pool.labels.annotations[queries], seen)
    usable = np.flatnonzero((before.known_case | after.known_case) & unseen)
    animals = before.identity[usable]
    old, new = (reciprocal_ranks(cases.truth_rank[usable]) for cases in (before, after))
    old_first, new_first = (hits_at_k(cases.truth_rank[usable], 1).astype(float) for cases in (before, after))
    return Verdict(
        photos=len(usable),
        animals=len(np.unique(animals)),
        map_at_5_before=_figure(old, animals),
        map_at_5_after=_figure(new, animals),
        gain=_figure(new - old, animals),
        top1_before=_figure(old_first, animals),
        top1_after=_figure(new_first, animals),
        answers_before=_answers(store, before),
        answers_after=_answers(store, after),
        lost=lost,
    )


def _trained_on(store: Store, model: str) -> IntArray:
    """The annotations that a model of this store was trained on; none where there is no record of it."""
    try:
        found = json.loads((store.root / FOLDER / model / TRAINED_ON).read_text(encoding="utf-8"))["annotations"]
    except (OSError, ValueError, KeyError):
        found = []
    return np.asarray(found, np.int64)


def _figure(values: NDArray[np.float64], animals: IntArray) -> Figure:
    if not len(values):
        return Figure(math.nan, math.nan, math.nan)
    found = bootstrap_interval(values, animals)
    return Figure(found.value, found.low, found.high)


def _answers(store: Store, cases: LeftOut) -> float:
    rules = store.config.decision
    return decide.choose_threshold(cases, objective=rules.objective, new_share=rules.share_new, n=0).score


def _advice(verdict: Verdict, model: str) -> str:
    """What to do next, in words."""
    use = f'to use it: model = "{model}" under [embedder] in reid.toml, then reid reindex'
    if verdict.photos < LEAST_JUDGES:
        return f"only {verdict.photos} photos could judge: collect second sightings before you believe this; {use}"
    if verdict.gain.low > 0:
        return f"it is better beyond chance; {use}"
    if verdict.gain.high < 0:
        return "it is worse beyond chance: keep the present model; `reid mine` shows labels that may be wrong"
    return f"the difference may be chance: more photos of known animals would tell; {use}"


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
