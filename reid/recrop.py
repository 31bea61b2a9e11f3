"""`reid train-cropper`: a box regressor for a store, from rendered flukes or from the boxes that its people drew.

    rendered flukes and / or photos with a table's or a person's box → `reid.train.cropper` → <store>/models/<date>-<name>

The run's record is below `training/`, as that of any training. Whole animals are held out to judge by. Nothing else
changes: `[crop] model` in `reid.toml` says which cropper serves, and `reid reindex` then draws machines' boxes anew.
Knows a store's photos and boxes; trains through `reid.train`, and therefore imports torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import date

import numpy as np
from numpy.typing import NDArray

from reid import locate
from reid.catalogue.boxes import MACHINE
from reid.errors import TrainError
from reid.locate import CropperCard, Locator
from reid.records import Failure
from reid.store import Store
from reid.train import cropper, cropper_data, cropper_network, cropper_rendered, runs
from reid.train.cropper import CropperConfig, Epoch
from reid.train.cropper_data import Photos

Progress = Callable[[str, int, int], None]  # stage, done, total

CHECKPOINT = "checkpoint.npz"
PHOTOS_EACH = 3  # of a rendered whale
HELD_SHARE = 0.15  # of the store's animals, at least one
JUDGES = 100  # rendered whales held out
EMPTY_SHARE, SCRAMBLED_SHARE = 0.2, 0.05  # photos without an animal, in relation to those with one
_JUDGE_SEED = 1_000_000  # added to the seed: whales that nothing is trained on

USABLE = 0.5  # median IoU below which nobody is told how to put a cropper in force


@dataclass(frozen=True, slots=True)
class Options:
    """`whales` to render, −1: 2,000, none with `from_store`. `from_store` takes the boxes of the store's people."""

    from_store: bool = False
    whales: int = -1
    epochs: int = 18
    folds: int = 3
    seed: int = 0
    name: str = "cropper"
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What came out. IoU are medians, on animals that nothing was trained on: `before` is the shipped cropper's on the
    store's, NaN where there are none.
    """

    model: str
    run: str
    photos: int
    rendered: int
    iou_store: float
    iou_before: float
    iou_rendered: float
    landmark_error: float
    seconds: float
    failures: tuple[Failure, ...]
    next_step: str


@dataclass(frozen=True, slots=True, eq=False)
class _Sets:
    """What is trained on and judged by."""

    train: Photos
    store: Photos
    rendered: Photos
    own: int
    failures: list[Failure]


def train(store: Store, options: Options, progress: Progress) -> Report:
    """Train a cropper and put it below `models/`.

    Raises:
        TrainError: no boxes, a loss that is no number, a full disk; the last checkpoint is whole.
    """
    begun = time.perf_counter()
    run, options = _run(store, options)
    with runs.recorded(run):
        sets = _sets(store, options, progress)
        config = CropperConfig(folds=options.folds, epochs=options.epochs, seed=options.seed)
        history: list[Epoch] = []

        def tell(number: int, epoch: Epoch) -> None:
            history.append(epoch)
            run.log(f"epoch {number + 1}: loss {epoch.loss:.4f}, median IoU {epoch.iou:.4f}")
            progress("train", number + 1, options.epochs)

        held = sets.store if len(sets.store) else sets.rendered
        progress("train", 0, options.epochs)
        trained = cropper.train(sets.train, config, held=held, checkpoint=run.folder / CHECKPOINT, progress=tell)
        figures = _figures(trained.network, sets)
        source = " and ".join(
            part
            for part, there in (("photos of the store", sets.own), ("rendered flukes", sets.train.marked.any()))
            if there
        )
        card = CropperCard(
            run.name, config.side, config.folds, bool(sets.train.marked.any()), "", source,
            "as the photos it was trained on" if sets.own else "Apache-2.0", config.seed, date.today().isoformat(), figures,
        )  # fmt: skip
        model = cropper_network.export(trained.network, store.models_folder, card)
        run.write_curves([e.loss for e in trained.history], [e.iou for e in trained.history], "median IoU")
        report = Report(
            run.name,
            str(run.folder),
            sets.own,
            int(sets.train.marked.sum()),
            figures.get("iou_store", float("nan")),
            _before(sets.store),
            figures.get("iou_rendered", float("nan")),
            figures.get("landmark_error_rendered", float("nan")),
            time.perf_counter() - begun,
            tuple(sets.failures),
            _advice(model.name, figures),
        )
        run.write_json(runs.METRICS, asdict(report) | {"epochs": [asdict(e) for e in trained.history]})
    (run.folder / CHECKPOINT).unlink(missing_ok=True)
    return report


def _advice(model: str, figures: dict[str, float]) -> str:
    """What to do with it, by its boxes on animals that it did not learn from."""
    known = [figures[key] for key in ("iou_store", "iou_rendered") if not math.isnan(figures.get(key, math.nan))]
    best = max(known, default=math.nan)
    if best < USABLE:
        return (
            f"its boxes miss the animals (median IoU {best:.2f}): more photos or epochs are needed before it is of use"
        )
    return f'to use it: model = "{model}" under [crop] in reid.toml, then reid reindex'


def _run(store: Store, options: Options) -> tuple[runs.Run, Options]:
    """A new run, or the newest unfinished one with the options it was begun with."""
    parent = store.root / "training"
    if not options.resume:
        return runs.begin(parent, options.name, "cropper", {"cropper": asdict(options)}), options
    run = runs.resume(parent, "cropper", options.name)
    try:
        return run, replace(Options(**run.config["cropper"]), resume=True)
    except (KeyError, TypeError) as error:
        raise TrainError(
            f"its settings are those of another version ({error})",
            source=str(run.folder),
            next_step="leave out --resume: `reid train-cropper` begins anew",
        ) from error


def _sets(store: Store, options: Options, progress: Progress) -> _Sets:
    """Photos to train on and to judge by: whole animals are held out."""
    whales = options.whales if options.whales >= 0 else 0 if options.from_store else 2000
    parts: list[Photos] = []
    failures: list[Failure] = []
    own, judged = 0, Photos.none()
    if options.from_store:
        photos, failures = _of_store(store, progress)
        held = _held_out(photos.group, options.seed)
        judged, kept = photos.part(held), photos.part(~held)
        own = len(kept)
        parts += [kept, cropper_data.beside(kept)]
    rendered = Photos.none()
    if whales:
        parts.append(cropper_rendered.rendered(whales, PHOTOS_EACH, seed=options.seed, progress=progress))
        judges = min(JUDGES, whales)
        rendered = cropper_rendered.rendered(judges, PHOTOS_EACH, seed=options.seed + _JUDGE_SEED, plain=True)
    animals = cropper_data.joined(parts) if parts else Photos.none()
    few = animals.part(np.flatnonzero(animals.animal)[:: round(1 / SCRAMBLED_SHARE)])
    parts += [
        cropper_rendered.empty(round(EMPTY_SHARE * int(animals.animal.sum())), seed=options.seed),
        cropper_data.scrambled(few, seed=options.seed),
    ]
    return _Sets(cropper_data.joined(parts), judged, rendered, own, failures)


def _of_store(store: Store, progress: Progress) -> tuple[Photos, list[Failure]]:
    """The store's photos in which a table or a person has drawn the only box."""
    by_photo: dict[int, list[int]] = {}
    infos = store.catalogue.annotations(store.catalogue.annotations_of())
    for info in infos.values():
        by_photo.setdefault(info.photo, []).append(info.id)
    chosen = [infos[ids[0]] for ids in by_photo.values() if len(ids) == 1 and infos[ids[0]].box.origin not in MACHINE]
    groups = [info.individual if info.individual is not None else -info.id for info in chosen]
    return cropper_data.boxed([(store.resolve(i.path), i.box, None) for i in chosen], groups, progress=progress)


def _held_out(groups: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Photos of `HELD_SHARE` of the animals; of none where there are fewer than four."""
    animals = np.unique(groups)
    n = max(1, round(HELD_SHARE * len(animals))) if len(animals) >= 4 else 0
    chosen = np.random.default_rng([seed, 7]).permutation(animals)[:n]
    return np.isin(groups, chosen)


def _figures(network: cropper_network.Network, sets: _Sets) -> dict[str, float]:
    """Medians on what was held out; landmark errors in shares of the box's width."""
    found = {}
    if len(sets.store):
        found["iou_store"] = cropper.median_iou(network, sets.store)
    if len(sets.rendered):
        found["iou_rendered"] = cropper.median_iou(network, sets.rendered)
        found["landmark_error_rendered"] = cropper.landmark_error(network, sets.rendered)
    return {name: round(value, 4) for name, value in found.items()}


def _before(photos: Photos) -> float:
    """The shipped cropper's median IoU on the same photos."""
    if not len(photos):
        return float("nan")
    locator = Locator(locate.SHIPPED["fluke"])
    found = [one.box for one in locator.locate_all(list(photos.pixels))]
    boxes = np.array([(b.x0, b.y0, b.x1, b.y1) for b in found]) / cropper_data.STORED
    return round(float(np.median(locate.overlaps(boxes, cropper_data.box_of(photos.outline)))), 4)
