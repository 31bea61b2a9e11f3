"""Training of a whole network by a recipe, from photos to a model directory.

    photos → kept pictures → [epochs: batches → views → vectors → losses] → averaged weights, norms refreshed → export

On a GPU where there is one, else on the CPU, where a laptop-scale recipe teaches EfficientNet-lite0 in minutes. After
every epoch a checkpoint is written aside and renamed, so the last good one is always whole: Ctrl-C, a full disk or a
loss that is no number lose one epoch, and `resume` goes on from there. How it goes is said in `reid.train.loop`.

Knows photos with identities; no stores.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reid import models, siamese
from reid.errors import ModelError, TrainError
from reid.models import ModelCard, Preprocessing
from reid.records import Failure
from reid.siamese import Siamese
from reid.train import allocator, backbone, checkpoints, network, pairing, pictures, teacher
from reid.train.assignment import codes_of
from reid.train.features import Source
from reid.train.holdout import Split
from reid.train.loop import Epoch, Loop, Progress, Told, inside
from reid.train.network import Network
from reid.train.pictures import Pictures
from reid.train.recipe import Recipe
from reid.train.schedule import Budget
from reid.train.showing import by_class
from reid.train.teacher import Teacher

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out: the model directory, every epoch, how many photos and animals were trained on, which photos could
    not be read, the network's learnt numbers, the batches shown, and the seconds of each stage. `suspects` of a training by
    pairs are photos of animals that may be one under two names and were not set against each other: `(place in
    sources, place, score)`, most alike first. `outlined` photos were shown before the backgrounds of others, too.
    """

    model: Path
    history: tuple[Epoch, ...]
    photos: int
    animals: int
    failures: tuple[Failure, ...]
    parameters: int
    steps: int
    seconds: dict[str, float]
    suspects: tuple[tuple[int, int, float], ...] = ()
    outlined: int = 0


@allocator.bounded("lower schedule.batch, or height and width under [input], or end other programs")
def train(
    sources: Sequence[Source],
    labels: Sequence[str],
    recipe: Recipe,
    folder: Path,
    name: str,
    *,
    seed: int = 0,
    budget: Budget | None = None,
    held: Split | None = None,
    resume: bool = False,
    device: str = "",
    base: str = "",
    pretrained: bool = True,
    begin_with: Path | None = None,
    progress: Progress | None = None,
    epochs: Told | None = None,
) -> Trained:
    """Train by `recipe` on photos with identities `labels` ("" is a photo of no known animal), into the model directory
    `<folder>/<name>`; the checkpoint is kept in `folder`.

    `budget` bounds the time: the first steps are measured, and the number of epochs follows. `held` are photos by which
    progress is told (places in `sources`): only its gallery is then trained on, and what they say decides nothing.
    `device` "" takes a GPU where there is one. `base` is kept in the model's card as what a head would be trained on.
    `pretrained` False starts from nothing; `begin_with` is the model directory of a network of the same shape, whose
    weights are learnt further (a Siamese head begins anew); without it the recipe says what learns further. A network
    that learnt by pairs has its head in its directory's folder `siamese.FOLDER`.

    Raises:
        TrainError: fewer than two animals, with pairs one that has more than half of the photos, no photo can be read,
            the loss is no number, the checkpoint is of another recipe, or memory runs out.
        ModelError: the backbone cannot be had, gives no maps or no graph, or `begin_with` is of another shape.
        ConfigError: the recipe's teacher is no model directory.
    """
    if len(sources) != len(labels):
        raise ValueError(f"{len(sources)} sources and {len(labels)} labels")
    if recipe.sampling.new_targets == "distilled":
        teacher.found(recipe.sampling.teacher)
    budget = (budget or Budget()).begun()
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cpu":
        allocator.keep()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if begin_with is None and pretrained and recipe.network.begin:
            begin_with = models.SHIPPED[recipe.network.begin]
        fresh = begin_with is None
        net, (mean, std) = network.build(
            recipe.network, grey=recipe.input.grey, pretrained=pretrained and fresh,
            size=(recipe.input.height, recipe.input.width),
        )  # fmt: skip
        if network.one_size(net.backbone):
            _refuse_early(net, recipe, mean, std)
        if begin_with is not None:
            backbone.load_weights(net, begin_with)
        seen = Preprocessing(recipe.input.height, recipe.input.width, mean, std, margin=recipe.input.margin)
        tell = (lambda done, of: progress("photos", done, of)) if progress else None
        outlined = recipe.augment.background > 0 and any(one.mask for one in sources)
        kept = pictures.load(sources, seen, tell, outlined=outlined)
        codes = _codes(labels, kept, held)
        if recipe.sampling.kind == "pairs":
            pairing.check(codes, np.asarray(labels, np.str_)[kept.rows])
        taught = _taught_by(recipe, [sources[row] for row in kept.rows], codes, folder, tell)
        run = Loop(net, kept, codes, recipe, seed, chosen, seen, taught)
        try:
            run.clock["photos"] = budget.spent()
            if resume and checkpoints.exists(folder):
                run.restore(folder)
            else:
                run.start(progress, white=fresh)
                run.clock["start"] = budget.spent() - run.clock["photos"]
            asked = None if held is None else inside(held, kept, labels, seed)
            run.all_epochs(folder, budget, asked, progress, epochs)
            run.finish()
        finally:
            run.lanes.close()
    head = run.pairing.head.plain() if run.pairing else None
    height, width = recipe.input.served_size
    serving = replace(seen, height=height, width=width)
    model = write(net, recipe, serving, folder, name, base=base, head=head)
    checkpoints.remove(folder)
    shutil.rmtree(folder / teacher.FOLDER, ignore_errors=True)
    run.clock["total"] = budget.spent()
    learnt = sum(p.numel() for p in net.parameters())
    animals = int(run.codes.max()) + 1
    return Trained(
        model,
        tuple(run.history),
        len(run.rows),
        animals,
        kept.failures,
        learnt,
        run.steps,
        run.clock,
        _suspects(run),
        len(run.shown.outlined),
    )


def write(
    net: Network, recipe: Recipe, seen: Preprocessing, folder: Path, name: str, *, base: str = "",
    head: Siamese | None = None,
) -> Path:  # fmt: skip
    """The trained network as model directory `<folder>/<name>`; its graph gives the same vectors (checked). `head` goes
    into it, bound to the model's fingerprint.
    """
    net = net.cpu().float().eval().to(memory_format=torch.contiguous_format)
    extra: dict[str, Any] = {
        "recipe": recipe.name, "scale": recipe.scale, "network": asdict(recipe.network), "grey": recipe.input.grey,
        "views": recipe.input.views,
    }  # fmt: skip
    facts = (
        f"{sorted(extra['network'].items())} {extra['grey']} {models.hash_tensors(backbone.tensors_of(net).items())}"
    )
    card = ModelCard(
        name=name,
        dim=net.served,
        preprocessing=seen,
        pooling=recipe.network.pooling,
        weights_sha256=hashlib.sha256(facts.encode()).hexdigest(),
        source=f"{recipe.network.backbone}, trained by recipe {recipe.name} ({recipe.scale})",
        licence="that of the photos it was trained on",
        architecture=recipe.network.backbone,
        extra=extra | ({"base": base} if base else {}),
    )
    made = backbone.Backbone(net, seen.mean, seen.std)
    if head is None:
        return backbone.export(made, card, folder)
    about = {"fingerprint": card.fingerprint, "recipe": recipe.name, "scale": recipe.scale}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as aside:  # whole with its head, or absent
        model = backbone.export(made, card, Path(aside))
        siamese.save(replace(head, about=about), model / siamese.FOLDER)
        models.swap(model, folder / name)
    return folder / name


def _taught_by(
    recipe: Recipe, sources: Sequence[Source], codes: IntArray, folder: Path, tell: Callable[[int, int], None] | None
) -> Teacher | None:
    """The recipe's teacher, where it has one and there are photos to be taught by it."""
    rules = recipe.sampling
    if rules.new_targets != "distilled" or not (codes == -1).any():
        return None
    vectors = teacher.look(
        teacher.found(rules.teacher), sources, folder / teacher.FOLDER, threads=torch.get_num_threads(), progress=tell
    )
    return Teacher(vectors, codes, rules.heat, by_class=by_class(recipe), mirrors=rules.mirror != "none")


def _refuse_early(net: Network, recipe: Recipe, mean: Any, std: Any) -> None:
    """Raises ModelError where a transformer cannot be trained by the recipe or exported: now, not after the training."""
    name, size = recipe.network.backbone, (recipe.input.height, recipe.input.width)
    if set(recipe.schedule.sizes) != {1.0}:
        raise ModelError(
            f"'{name}' takes photos of one size, and schedule.sizes has {list(recipe.schedule.sizes)}",
            next_step="write sizes = [1.0] under [schedule], or choose another backbone",
        )
    if recipe.input.served_size != size:
        raise ModelError(
            f"'{name}' takes photos of one size, and input.served is {recipe.input.served}",
            next_step="write served = 1.0 under [input], or choose another backbone",
        )
    backbone.graph_of(backbone.Backbone(net, mean, std), size, name)


def _suspects(run: Loop) -> tuple[tuple[int, int, float], ...]:
    """Those that the pairs' scores named last, by their places in the sources."""
    if run.pairing is None:
        return ()
    places = run.kept.rows[run.pairing.rows]
    found = run.pairing.suspects
    return tuple(
        (int(places[a]), int(places[b]), float(s)) for (a, b), s in zip(found.pairs, found.scores, strict=True)
    )


def _codes(labels: Sequence[str], kept: Pictures, held: Split | None) -> IntArray:
    """Identities of the kept pictures as numbers from 0; −1 for none; −2 for what is held out.

    Raises:
        TrainError: there are not two animals to tell apart.
    """
    names = np.asarray(labels, dtype=np.str_)[kept.rows] if len(kept) else np.empty(0, np.str_)
    codes = np.full(len(names), -1, np.int64)
    used = np.ones(len(names), np.bool_) if held is None else np.isin(kept.rows, held.gallery)
    known = (names != "") & used
    if len(np.unique(names[known])) < 2:
        raise TrainError(
            f"{int(known.sum())} readable photos of {len(np.unique(names[known]))} animals: there is nothing to tell apart",
            next_step="add photos with names of other animals, and see what enrolment left out: reid enroll … --report left-out.csv",
        )
    codes[known] = codes_of(names[known])
    codes[~used] = -2
    return codes
