"""`head` training from photos to a model directory: minutes on two cores, no GPU, the backbone left as it is.

    photos → the network's vectors at two sizes → shrunk whitening, without labels → kept vectors of several views
           → a projection under ArcFace → `<folder>/<name>`, an embedder like any other

How mirrored photos are taken is tried out: for flanks they are more photos of the animal, for flukes another animal.
Where boxes are wide, as flukes are, inner maps pooled over a grid stand in for the network's own vector.

Embedding the views takes most of the time; what was embedded is kept, and an interrupted training goes on from there.
Knows photos with identities; no stores.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid import models
from reid.embed import OpenVinoEmbedder
from reid.errors import TrainError
from reid.records import Failure
from reid.train import allocator, features, graphs, heads, holdout
from reid.train.features import Augmentation, Features, Source
from reid.train.graphs import Tap
from reid.train.heads import Head, HeadConfig

Progress = Callable[[str, int, int], None]  # what is being done, photos or epochs done, in all

TAPS: dict[str, tuple[Tap, ...]] = {"tf_efficientnet_lite0": graphs.LITE0_TAPS}  # by architecture
HEADS = (
    HeadConfig(margin=40.0, scale=30.0, dropout=0.5, mirror_as_class=False, patience=0),
    HeadConfig(mirror_as_class=True, patience=0),
)
_WHITENED_BY = 6000  # photos, at random, by which the whitening is fitted


@dataclass(frozen=True, slots=True)
class QuickConfig:
    """`white` numbers after whitening, shrunk by `shrink` (`heads.whitening`); `views` of each photo, the plain one
    included; `grid` pools inner maps where the network has `TAPS` and takes wide crops, which `larger` times the network's
    own size are looked at as well (1: at its own size alone). Neither holds for a network that a recipe
    made: its vector serves as it is. Of `heads` the one is used that finds
    most of an inner fold's photos.
    """

    white: int = 1024
    shrink: float = 0.5
    views: int = 3
    larger: float = 1.5
    grid: bool = True
    seed: int = 0
    augmentation: Augmentation = Augmentation()
    heads: tuple[HeadConfig, ...] = HEADS


@dataclass(frozen=True, slots=True, eq=False)
class Quick:
    """What came out: the model directory, its head, MAP@5 of each way to train it on the inner fold (of its photos as they
    are and in an augmented view, the mean; NaN where there was no choice), how many photos could be used, which not, and the seconds of each stage.
    """

    model: Path
    head: Head
    chosen: HeadConfig
    tried: tuple[float, ...]
    photos: int
    failures: tuple[Failure, ...]
    seconds: dict[str, float]


@allocator.bounded("lower `views` under [training] in reid.toml, or end other programs")
def train(
    sources: Sequence[Source],
    labels: Sequence[str],
    base: Path,
    folder: Path,
    name: str,
    *,
    keep: Path,
    white: Path | None = None,
    sightings: ArrayLike | None = None,
    config: QuickConfig = QuickConfig(),
    progress: Progress | None = None,
    epochs: heads.Progress | None = None,
) -> Quick:
    """Train model `name` below `folder` on photos with identities, from the model directory `base`; vectors are kept
    below `keep`.

    `white` is what `whiten` made of `base`, for several trainings that share it; without it these photos make one.
    `sightings (N,)` are numbers that sources of one sighting share: the inner fold leaves out what is of a query's
    sighting. `epochs` hears of every epoch of the final head, which is trained on all photos.

    Raises:
        TrainError: fewer than two animals, no photo can be read, or what `heads.train_head` raises.
    """
    if len(sources) != len(labels):
        raise ValueError(f"{len(sources)} sources and {len(labels)} labels")
    if sightings is not None and np.shape(sightings) != (len(sources),):
        raise ValueError(f"sightings {np.shape(sightings)} of {len(sources)} sources: expected one each")
    seconds: dict[str, float] = {}
    clock = time.perf_counter()
    own = white is None
    white = white or whiten(
        sources, base, keep / "models", f"{name}-white", keep=keep, config=config, progress=progress
    )
    seconds["whiten"], clock = time.perf_counter() - clock, time.perf_counter()
    kept = _cached(sources, white, keep, config.views, config, "views", progress)
    seconds["embed"], clock = time.perf_counter() - clock, time.perf_counter()
    names = np.asarray(labels)[kept.rows]
    groups = np.arange(len(sources)) if sightings is None else np.asarray(sightings, np.int64)
    chosen, tried = _choose(kept.vectors, names, groups[kept.rows], config, progress)

    def tell(epoch: int, loss: float, score: float) -> None:
        if epochs is not None:
            epochs(epoch, loss, score)
        if progress is not None:
            progress("head", epoch + 1, chosen.epochs)

    head = heads.train_head(kept.vectors, names, chosen, progress=tell)
    model = heads.write_model(white, folder, name, head.layers)
    seconds["head"] = time.perf_counter() - clock
    if own:
        shutil.rmtree(white)
    return Quick(model, head, chosen, tried, len(kept.rows), kept.failures, seconds)


def whiten(
    sources: Sequence[Source],
    base: Path,
    folder: Path,
    name: str,
    *,
    keep: Path,
    config: QuickConfig = QuickConfig(),
    progress: Progress | None = None,
) -> Path:
    """The model directory `<folder>/<name>`: `base` with its inner maps pooled and whitened by these photos; no labels
    needed.

    Raises:
        TrainError: fewer than two photos can be read.
    """
    card = models.read_card(base)
    wide = card.preprocessing.width >= models.WIDE_ASPECT * card.preprocessing.height
    pools = "network" in card.extra  # a network of a recipe has learnt where and at what size to look
    taps = TAPS.get(card.architecture, ()) if config.grid and wide and not pools else ()
    larger = config.larger if taps else 1.0  # the whole map of an inner layer says no more at two sizes than at one
    bare = heads.write_model(base, keep / "models", "bare", [], taps=taps, larger=larger)
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(sources))[:_WHITENED_BY])
    plain = _cached([sources[i] for i in chosen], bare, keep, 1, config, "photos to whiten by", progress)
    layer = heads.whitening(
        plain.vectors[:, 0, 0].astype(np.float32), config.white, shrink=config.shrink, seed=config.seed
    )
    return heads.write_model(base, folder, name, [layer], taps=taps, larger=larger)


def _choose(
    vectors: NDArray[np.float16],
    names: NDArray[np.str_],
    sightings: NDArray[np.int64],
    config: QuickConfig,
    progress: Progress | None,
) -> tuple[HeadConfig, tuple[float, ...]]:
    """The way to train that after half of its epochs finds most photos of an inner fold (one photo of each animal with three, as it
    is and in an augmented view), and the MAP@5 of each; the first of them where there is no such fold, or nothing left of it to tell apart.
    """
    ways = [replace(one, seed=config.seed) for one in config.heads]
    trials = [replace(one, epochs=-(-one.epochs // 2)) for one in ways]
    held = holdout.split(names, least=3, sightings=sightings, seed=config.seed)
    if len(ways) == 1 or not len(held.queries) or len(np.unique(names[held.gallery])) < 2:
        return ways[0], (float("nan"),) * len(ways)
    scores = []
    for number, way in enumerate(trials):
        if progress is not None:
            progress("choosing", number, len(ways))
        scores.append(heads.train_head(vectors, names, way, held=held).history[-1].judged)
    return ways[int(np.argmax(scores))], tuple(scores)


def _cached(
    sources: Sequence[Source],
    model: Path,
    keep: Path,
    views: int,
    config: QuickConfig,
    what: str,
    progress: Progress | None,
) -> Features:
    def tell(done: int, of: int) -> None:
        if progress is not None:
            progress(what, done, of)

    kept = features.cached(
        sources,
        OpenVinoEmbedder(model),
        keep,
        views=views,
        augmentation=config.augmentation,
        seed=config.seed,
        progress=tell,
    )
    if not len(kept.rows):
        raise TrainError(
            "not one of the photos can be read",
            next_step="see what enrolment left out: reid enroll … --report left-out.csv",
        )
    return kept
