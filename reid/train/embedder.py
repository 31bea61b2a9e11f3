"""Training of a whole network by a recipe, from photos to a model directory.

    photos → kept pictures → [epochs: batches → views → vectors → losses] → averaged weights, norms refreshed → export

On a GPU where there is one, else on the CPU, where a laptop-scale recipe teaches EfficientNet-lite0 in minutes. After
every epoch a checkpoint is written aside and renamed, so the last good one is always whole: Ctrl-C, a full disk or a
loss that is no number lose one epoch, and `resume` goes on from there. Every epoch draws from its own seed, so the same
seed gives the same model on the same machine, interrupted or not (with pairs, a resumed run scores them anew at once).

Knows photos with identities; no stores.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reid import models, siamese
from reid.embed import unit_rows
from reid.errors import TrainError
from reid.models import ModelCard, Preprocessing
from reid.records import Failure
from reid.siamese import Siamese
from reid.train import augment, backbone, checkpoints, holdout, lanes, losses, network, pictures, sampling
from reid.train.assignment import codes_of
from reid.train.features import Source
from reid.train.holdout import Split
from reid.train.lanes import Lanes
from reid.train.network import Network
from reid.train.pairing import Pairing
from reid.train.pictures import Pictures
from reid.train.recipe import Divided, Recipe
from reid.train.schedule import Budget, Plan, rate_at, size_at

IntArray = NDArray[np.int64]
Progress = Callable[[str, int, int], None]  # what is being done, photos or epochs done, in all
Told = Callable[[int, float, float], None]  # epoch, loss, MAP@5 of the held-out photos (NaN without any)

_AT_ONCE = 64  # photos embedded at once
_REFRESHED = 1500  # photos by which batch norms are refreshed
_WHITENED = 6000  # photos by which the first projection is found
_EMA = 0.998


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line of a training run. `map_at_5` and `worn` are of held-out photos as they are, and made small, lossy or
    wide as the training's (NaN without any).
    """

    loss: float
    map_at_5: float
    worn: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out: the model directory, every epoch, how many photos and animals could be used, which photos not, the
    network's learnt numbers, the batches shown, and the seconds of each stage.
    """

    model: Path
    history: tuple[Epoch, ...]
    photos: int
    animals: int
    failures: tuple[Failure, ...]
    parameters: int
    steps: int
    seconds: dict[str, float]


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
    progress is told (places in `sources`): only its gallery is then trained on. `device` "" takes a GPU where there is
    one. `base` is kept in the model's card as what a head would be trained on. `pretrained` False starts from nothing;
    `begin_with` is the model directory of a network of the same shape, whose weights are learnt further (a Siamese head
    begins anew). A network that learnt by pairs has its head in its directory's folder `siamese.FOLDER`.

    Raises:
        TrainError: fewer than two animals, no photo can be read, the loss is no number, or the checkpoint is of another
            recipe.
        ModelError: the backbone cannot be had, or `begin_with` is of another shape.
    """
    if len(sources) != len(labels):
        raise ValueError(f"{len(sources)} sources and {len(labels)} labels")
    budget = (budget or Budget()).begun()
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = begin_with is None
        net, (mean, std) = network.build(recipe.network, grey=recipe.input.grey, pretrained=pretrained and fresh)
        if begin_with is not None:
            backbone.load_weights(net, begin_with)
        seen = Preprocessing(recipe.input.height, recipe.input.width, mean, std, margin=recipe.input.margin)
        tell = (lambda done, of: progress("photos", done, of)) if progress else None
        kept = pictures.load(sources, seen, tell)
        run = _Run(net, kept, _codes(labels, kept, held), recipe, seed, chosen, seen)
        try:
            run.clock["photos"] = budget.spent()
            if resume and checkpoints.exists(folder):
                run.restore(folder)
            else:
                run.start(progress, white=fresh)
                run.clock["start"] = budget.spent() - run.clock["photos"]
            inside = None if held is None else _inside(held, kept, labels)
            run.all_epochs(folder, budget, inside, progress, epochs)
            run.finish()
        finally:
            run.lanes.close()
    head = run.pairing.head.plain() if run.pairing else None
    model = write(net, recipe, seen, folder, name, base=base, head=head)
    checkpoints.remove(folder)
    run.clock["total"] = budget.spent()
    learnt = sum(p.numel() for p in net.parameters())
    animals = int(run.codes.max()) + 1
    return Trained(model, tuple(run.history), len(kept), animals, kept.failures, learnt, run.steps, run.clock)


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
    }  # fmt: skip
    facts = (
        f"{sorted(extra['network'].items())} {extra['grey']} {models.hash_tensors(backbone.tensors_of(net).items())}"
    )
    card = ModelCard(
        name=name,
        dim=net.dim,
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
            next_step="add photos with names of other animals, and see the failures of `reid check`",
        )
    codes[known] = codes_of(names[known])
    codes[~used] = -2
    return codes


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """Places of held-out queries and their gallery among the kept pictures; identities of both, one after the other, as
    numbers.
    """

    queries: IntArray
    gallery: IntArray
    codes: IntArray


def _inside(held: Split, kept: Pictures, labels: Sequence[str]) -> _Held:
    found = [np.flatnonzero(np.isin(kept.rows, rows)) for rows in (held.queries, held.gallery)]
    names = np.asarray(labels, dtype=np.str_)[kept.rows[np.concatenate(found)]]
    return _Held(found[0], found[1], codes_of(names))


@dataclass(frozen=True, slots=True, eq=False)
class _Views:
    """What one step sees: photos `rows (B,)`, whether each is mirrored, the part of a divided vector that they train,
    and `pixels (B, 3, h, w)`, 0–255.
    """

    rows: IntArray
    turned: NDArray[np.bool_]
    part: int | None
    pixels: torch.Tensor


class _Run:
    """One training as it goes: the network, what teaches it, and how far it has come."""

    def __init__(
        self, net: Network, kept: Pictures, codes: IntArray, recipe: Recipe, seed: int, device: torch.device,
        seen: Preprocessing,
    ) -> None:  # fmt: skip
        self.kept, self.recipe, self.seed, self.device = kept, recipe, seed, device
        self.rows = np.flatnonzero(codes >= -1)
        self.codes = codes
        self.n = int(codes.max()) + 1
        counts = np.bincount(codes[codes >= 0], minlength=self.n)
        self.by_class = recipe.sampling.mirror == "class" and recipe.sampling.kind != "pairs"
        space = losses.Space(net.dim, net.n_parts, np.tile(counts, 2) if self.by_class else counts)
        self.net = net.to(device, memory_format=torch.channels_last)
        self.lanes = Lanes(self.net, lanes.fitting(recipe.schedule.batch) if device.type == "cpu" else 1)
        self.losses = losses.Sum(recipe.losses, space).to(device)
        self.pairing = Pairing(recipe, net.dim, codes).to(device) if recipe.sampling.kind == "pairs" else None
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (seen.mean, seen.std))
        self.optimiser = self._optimiser()
        self.still = {name for group in net.groups()[: recipe.schedule.frozen] for name in group}
        self.plan = Plan(recipe.schedule.epochs)
        self.average: dict[str, torch.Tensor] = {}
        self.averaged = 0
        self.history: list[Epoch] = []
        self.steps = 0
        self.clusters: IntArray | None = None
        self.clock: dict[str, float] = {}

    def _optimiser(self) -> torch.optim.Optimizer:
        """Decay for matrices only; whatever is not the backbone learns `head_rate` times as fast."""
        config = self.recipe.schedule
        inner = {id(p) for p in self.net.backbone.parameters()}
        more = [*self.losses.parameters(), *(self.pairing.parameters() if self.pairing else ())]
        groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
        for one in [*self.net.parameters(), *more]:
            if one.requires_grad:
                groups.setdefault((id(one) in inner, one.ndim > 1), []).append(one)
        listed = [
            {"params": found, "factor": 1.0 if within else config.head_rate,
             "weight_decay": config.decay if matrix else 0.0}
            for (within, matrix), found in groups.items()
        ]  # fmt: skip
        if config.optimiser == "sgd":
            return torch.optim.SGD(listed, config.rate, momentum=0.9, nesterov=True)
        kind = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
        return kind(listed, config.rate, fused=True)

    # Beginning and end ------------------------------------------------------------------------------------------------

    def start(self, progress: Progress | None, *, white: bool = True) -> None:
        """The norms, the projection and the class centres as these photos have them, before anything is learnt; the
        centres alone where the projection is learnt already (`white` False).
        """
        if not white:
            self._start_centres()
            return
        if self.recipe.network.start != "whitened":
            return
        rng = np.random.default_rng([self.seed, 11])
        if self.recipe.schedule.norms == "train":
            self.refresh(rng)
        some = self.rows if len(self.rows) <= _WHITENED else np.sort(rng.permutation(self.rows)[:_WHITENED])
        pooled = self._through(some, lambda x: torch.stack(self.net.pooled(self.net.maps(x)), 1))
        stacked = [pooled[:, part] for part in range(self.net.n_parts)]
        for number, norm in enumerate(self.net.first):
            if isinstance(norm, torch.nn.BatchNorm1d):
                norm.running_mean.copy_(torch.from_numpy(stacked[number].mean(0)))
                norm.running_var.copy_(torch.from_numpy(stacked[number].var(0)))
                stacked[number] = (stacked[number] - stacked[number].mean(0)) / (stacked[number].std(0) + 1e-3)
        network.start_whitened(self.net.cpu(), stacked)
        self.net.to(self.device)
        if progress is not None:
            progress("class centres", 0, 1)
        self._start_centres()

    def _start_centres(self) -> None:
        """Each class's centre where its photos are now."""
        known = np.flatnonzero(self.codes >= 0)
        total = np.zeros((self.n * (2 if self.by_class else 1), self.net.dim), np.float32)
        for turned in (False, True)[: 1 + self.by_class]:
            vectors = unit_rows(self.vectors(known, turned=turned))
            np.add.at(total, self.codes[known] + (self.n if turned else 0), vectors)
        self.losses.start(torch.from_numpy(unit_rows(total)).to(self.device))

    def refresh(self, rng: np.random.Generator) -> None:
        """Batch norms' running statistics anew, by augmented photos."""
        norms = [m for m in self.net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        kept = [norm.momentum for norm in norms]
        self.net.train()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
        some = rng.permutation(self.rows)[:_REFRESHED]
        size = self.recipe.input.height, self.recipe.input.width
        with torch.no_grad():
            for batch in sampling.in_batches(some, min(_AT_ONCE, max(2, len(some)))):
                turned = rng.random(len(batch)) < (0.0 if self.recipe.sampling.mirror == "none" else 0.5)
                self.net(self._normal(augment.views(self.kept, batch, size, self.recipe.augment, rng, turned)))
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum

    def finish(self) -> None:
        """The averaged weights, where the recipe wants some; batch norms as the photos have them with these weights."""
        if self.average:
            self.net.load_state_dict(self.average)
        if self.recipe.schedule.norms == "train":
            self.refresh(np.random.default_rng([self.seed, 13]))
        self.net.eval()

    # Epochs -----------------------------------------------------------------------------------------------------------

    def all_epochs(
        self, folder: Path, budget: Budget, held: _Held | None, progress: Progress | None, told: Told | None
    ) -> None:
        """All that are left, each followed by a checkpoint."""
        while self.plan.left:
            started = time.perf_counter()
            loss = self.epoch(budget, progress)
            scores = (math.nan, math.nan) if held is None else self.scores(held)
            self.history.append(Epoch(loss, *scores, time.perf_counter() - started))
            self._take_in(at_end=True)
            checkpoints.write(folder, self.state())
            if told is not None:
                told(len(self.history) - 1, loss, scores[0])

    def epoch(self, budget: Budget, progress: Progress | None) -> float:
        """One pass; the mean loss of its steps."""
        number = len(self.history)
        rng = np.random.default_rng([self.seed, 100, number])
        torch.manual_seed(self.seed * 100_003 + number)
        self._renew(number, rng)
        batches = self._batches(rng)
        self.plan.begin(len(batches), budget, self.recipe.schedule)
        total, shown = 0.0, 0
        for views in self._prepared(batches, number):
            total += self._step(views)
            shown += 1
            self.plan.step(budget)
            self._take_in(at_end=False)
            if progress is not None:
                progress(f"epoch {number + 1} of {number + self.plan.left}", shown, len(batches))
            if self.plan.cut(shown):
                break
        self.plan.end(budget)
        return total / max(1, shown)

    def _prepared(self, batches: list[Any], number: int) -> Iterator[_Views]:
        """The batches' views, in order, made ahead on threads of their own; each batch draws from its own seed, so that
        it does not matter which is made first.
        """
        size = size_at(self.plan.done, self.recipe)

        def make(step: int) -> _Views:
            return self._views(batches[step], size, np.random.default_rng([self.seed, 101, number, step]))

        ahead: deque[Future[_Views]] = deque()
        workers = 1 if self.device.type == "cpu" else max(1, min(8, (os.cpu_count() or 2) - 1))
        with ThreadPoolExecutor(workers) as pool:
            for step in range(len(batches) + 2 * workers):
                if step < len(batches):
                    ahead.append(pool.submit(make, step))
                if step >= 2 * workers and ahead:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _views(self, batch: Any, size: tuple[int, int], rng: np.random.Generator) -> _Views:
        """One batch: its pixels, which of them are mirrored, and which part of the vector it trains."""
        part, rows = batch if isinstance(batch, tuple) else (None, batch)
        if self.pairing is not None:
            turned = self.pairing.turned(rows.shape[1], rng).ravel()
            rows = rows.ravel()
        elif self.recipe.sampling.mirror == "none":
            turned = np.zeros(len(rows), np.bool_)
        else:
            turned = sampling.mirrored(self.codes[rows], self.recipe.sampling.kind, rng)
        return _Views(rows, turned, part, augment.views(self.kept, rows, size, self.recipe.augment, rng, turned))

    def _batches(self, rng: np.random.Generator) -> list[Any]:
        config = self.recipe.schedule
        if self.pairing is not None:
            return list(self.pairing.batches(config.batch, rng))
        if self.clusters is None:
            return list(sampling.epoch(self.codes, self.recipe.sampling, config.batch, self.plan.done, rng))
        parted: list[tuple[int, IntArray]] = []
        for cluster in np.unique(self.clusters[self.codes >= 0]):
            inside = np.where(self.clusters == cluster, self.codes, -2)
            if len(np.unique(inside[inside >= 0])) >= 2:
                some = sampling.epoch(inside, self.recipe.sampling, config.batch, self.plan.done, rng)
                parted += [(int(cluster), one) for one in some]
        return [parted[i] for i in rng.permutation(len(parted))]

    def _renew(self, number: int, rng: np.random.Generator) -> None:
        """Pairs or clusters, where it is time for new ones."""
        if self.pairing is not None:
            if self.pairing.stale(number):
                self.pairing.rescore(unit_rows(self.vectors(self.pairing.rows)))
            self.pairing.assign(rng)
        divided = next((one for one in self.recipe.losses if isinstance(one, Divided) and one.clusters > 1), None)
        if divided is not None and (self.clusters is None or number % divided.renew == 0):
            from sklearn.cluster import KMeans

            known = np.flatnonzero(self.codes >= 0)
            k = min(divided.clusters, self.n // 2)
            if k > 1:
                seed = int(rng.integers(2**31))
                found = KMeans(k, n_init=1, random_state=seed).fit_predict(unit_rows(self.vectors(known)))
                # An animal trains one part: that of most of its photos.
                votes = np.zeros((self.n, k), np.int64)
                np.add.at(votes, (self.codes[known], found), 1)
                self.clusters = np.where(self.codes >= 0, votes.argmax(1)[self.codes.clip(0)], -1)

    def _step(self, views: _Views) -> float:
        """One batch: loss, gradients, weights."""
        config, done = self.recipe.schedule, self.plan.done
        self._hold_still(done)
        for group in self.optimiser.param_groups:
            group["lr"] = config.rate * group["factor"] * rate_at(done, config)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            out = self.net.embed_maps(self.lanes.maps(self._normal(views.pixels)))
            loss = self.losses(out, self._targets(views))
            if self.pairing is not None:
                loss = loss + self.pairing.loss(torch.nn.functional.normalize(out.whole.float()))
        if not bool(torch.isfinite(loss)):
            raise TrainError(
                f"the loss is no number any more, in epoch {len(self.history) + 1}",
                next_step="lower schedule.rate; the checkpoint of the epoch before is whole (--resume)",
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.lanes.backward()
        if config.clip:
            params = [p for group in self.optimiser.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(params, config.clip)
        self.optimiser.step()
        self.steps += 1
        return float(loss.item())

    def _targets(self, views: _Views) -> losses.Targets:
        """Classes of a batch: with mirrored photos as other animals, class c + n is the mirror image of class c."""
        classes = self.codes[views.rows]
        twins = np.full(len(classes), -1)
        if self.by_class:
            known, plain = classes >= 0, classes
            classes = np.where(known, plain + self.n * views.turned, -1)
            if not self.recipe.sampling.twins:
                twins = np.where(known, plain + self.n * ~views.turned, -1)
        own, other = (torch.from_numpy(one).to(self.device) for one in (classes, twins))
        return losses.Targets(own, other, self.plan.done, views.part)

    def _hold_still(self, done: float) -> None:
        """Training mode, but for stages and norms that the recipe holds still now."""
        config = self.recipe.schedule
        self.net.train()
        self.losses.train()
        if config.norms == "frozen":
            for module in self.net.backbone.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.eval()
        if not config.frozen:
            return
        still = self.still if done < config.frozen_for else set()
        for name, parameter in self.net.backbone.named_parameters():
            parameter.requires_grad_(name not in still)
        owners = {name.rpartition(".")[0] for name in still}
        for name, module in self.net.backbone.named_modules():
            if name in owners and isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()

    def _take_in(self, *, at_end: bool) -> None:
        """The weights of now into the average."""
        config = self.recipe.schedule
        if config.average == "none" or at_end != (config.average == "swa"):
            return
        if config.average == "swa" and self.plan.done < 1 - config.average_of - 1e-9:
            return
        self.averaged += 1
        keep = 1 - 1 / self.averaged if config.average == "swa" else min(_EMA, self.averaged / (10 + self.averaged))
        for name, value in self.net.state_dict().items():
            now = value.detach()
            if name not in self.average or not now.is_floating_point():
                self.average[name] = now.clone()
            else:
                self.average[name].mul_(keep).add_(now, alpha=1 - keep)

    # Vectors ----------------------------------------------------------------------------------------------------------

    def vectors(self, rows: IntArray, *, turned: bool = False, worn: bool = False) -> NDArray[np.float32]:
        """`(len(rows), D) float32` of plain crops, mirrored or worn where asked; not of unit length."""
        return self._through(rows, self.net, turned=turned, worn=worn)

    def _through(
        self, rows: IntArray, what: Callable[[torch.Tensor], torch.Tensor], *, turned: bool = False, worn: bool = False
    ) -> NDArray[np.float32]:
        self.net.eval()
        size = self.recipe.input.height, self.recipe.input.width

        def found(at: int) -> NDArray[np.float32]:
            some = rows[at : at + _AT_ONCE]
            with torch.inference_mode():
                if worn:
                    x = augment.field(self.kept, some, size, self.recipe.augment, self.seed + at)
                else:
                    x = augment.plain(self.kept, some, size, np.full(len(some), turned))
                out: NDArray[np.float32] = what(self._normal(x)).float().cpu().numpy()
            return out

        out = self.lanes.each(found, range(0, len(rows), _AT_ONCE))
        return np.concatenate(out) if out else np.empty((0, self.net.dim), np.float32)

    def scores(self, held: _Held) -> tuple[float, float]:
        """MAP@5 of the held-out photos as they are, and worn."""
        both = np.concatenate([held.queries, held.gallery])
        split = Split(np.arange(len(held.queries)), np.arange(len(held.queries), len(both)))
        plain = unit_rows(self.vectors(both))
        first = holdout.map_at_5(plain, held.codes, split)
        if not self.recipe.augment.worn:
            return first, math.nan
        harmed = np.concatenate([unit_rows(self.vectors(held.queries, worn=True)), plain[len(held.queries) :]])
        return first, holdout.map_at_5(harmed, held.codes, split)

    def _normal(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return (x - self.mean) / self.std

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Tensors and plain numbers: all that the next epoch needs."""
        return {
            "about": checkpoints.about(self.recipe, self.seed, len(self.kept), self.n),
            "network": self.net.state_dict(), "losses": self.losses.state_dict(),
            "pairing": self.pairing.state_dict() if self.pairing else {},
            "optimiser": self.optimiser.state_dict(), "plan": self.plan.to_dict(),
            "average": self.average, "averaged": self.averaged, "steps": self.steps,
            "clusters": None if self.clusters is None else torch.from_numpy(self.clusters),
            "history": [[e.loss, e.map_at_5, e.worn, e.seconds] for e in self.history],
        }  # fmt: skip

    def restore(self, folder: Path) -> None:
        """Go on from the checkpoint in `folder`."""
        kept = checkpoints.read(folder, checkpoints.about(self.recipe, self.seed, len(self.kept), self.n))
        self.net.load_state_dict(kept["network"])
        self.losses.load_state_dict(kept["losses"])
        if self.pairing:
            self.pairing.load_state_dict(kept["pairing"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.plan = Plan.from_dict(kept["plan"])
        self.average = {name: value.to(self.device) for name, value in kept["average"].items()}
        self.averaged, self.steps = kept["averaged"], kept["steps"]
        self.clusters = None if kept["clusters"] is None else kept["clusters"].numpy()
        self.history = [Epoch(*numbers) for numbers in kept["history"]]
