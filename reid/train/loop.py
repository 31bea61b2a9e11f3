"""A training as it goes: a network, what teaches it, and how far it has come.

    start → epochs: views → vectors → losses → weights → checkpoint → averaged weights, norms refreshed

Every epoch draws from its own seed, so the same seed gives the same network on the same machine, interrupted or not
(with pairs, a resumed run scores them anew at once).

Knows pictures and identities as numbers; files only as checkpoints.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reid.embed import unit_rows
from reid.errors import TrainError
from reid.models import Preprocessing
from reid.train import augment, checkpoints, folding, holdout, lanes, losses, network, sampling
from reid.train.assignment import codes_of
from reid.train.holdout import Split
from reid.train.lanes import Lanes
from reid.train.network import Network
from reid.train.pairing import Pairing
from reid.train.pictures import Pictures
from reid.train.precision import Arithmetic
from reid.train.recipe import Recipe
from reid.train.schedule import Budget, Plan, rate_at, size_at
from reid.train.showing import Showing, Views, by_class
from reid.train.teacher import Teacher

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


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """Places of held-out queries and their gallery among the kept pictures; identities of both, one after the other, as
    numbers.
    """

    queries: IntArray
    gallery: IntArray
    codes: IntArray


def inside(held: Split, kept: Pictures, labels: Sequence[str], seed: int = 0) -> Held | None:
    """What of a split could be read, as much of it as a curve needs (`holdout.told_by`); None where nothing is left."""
    queries, gallery = (np.flatnonzero(np.isin(kept.rows, rows)) for rows in (held.queries, held.gallery))
    codes = codes_of(np.asarray(labels, dtype=np.str_)[kept.rows])
    found = holdout.told_by(Split(queries, gallery), codes, seed=seed)
    if not len(found.queries):
        return None
    return Held(found.queries, found.gallery, codes[np.concatenate([found.queries, found.gallery])])


def _norms(module: torch.nn.Module) -> list[Any]:
    """All batch norms within."""
    return [one for one in module.modules() if isinstance(one, torch.nn.modules.batchnorm._BatchNorm)]


class Loop:
    """One training as it goes: the network, what teaches it, and how far it has come."""

    def __init__(
        self, net: Network, kept: Pictures, codes: IntArray, recipe: Recipe, seed: int, device: torch.device,
        seen: Preprocessing, teacher: Teacher | None = None,
    ) -> None:  # fmt: skip
        self.kept, self.recipe, self.seed, self.device = kept, recipe, seed, device
        self.rows = np.flatnonzero(codes >= -1)
        self.codes = codes
        self.n = int(codes.max()) + 1
        counts = np.bincount(codes[codes >= 0], minlength=self.n)
        self.net = net.to(device, memory_format=torch.channels_last)
        self.lanes = Lanes(self.net, lanes.fitting(recipe.schedule.batch) if device.type == "cpu" else 1)
        space = losses.Space(net.dim, net.n_parts, np.tile(counts, 2) if by_class(recipe) else counts)
        self.folded = self._fold() if device.type == "cpu" else []
        self.losses = losses.Sum(recipe.losses, space).to(device)
        self.pairing = Pairing(recipe, net.dim, codes).to(device) if recipe.sampling.kind == "pairs" else None
        self.shown = Showing(kept, codes, recipe, seed, self.pairing, self.vectors, teacher)
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (seen.mean, seen.std))
        self.optimiser = self._optimiser()
        self.arithmetic = Arithmetic.of(recipe.schedule.precision, device)
        still = net.groups()[: recipe.schedule.frozen] if recipe.schedule.frozen else []
        self.still = {name for group in still for name in group}
        self.plan = Plan(recipe.schedule.epochs)
        self.average: dict[str, torch.Tensor] = {}
        self.averaged = 0
        self.history: list[Epoch] = []
        self.steps = 0
        self.clock: dict[str, float] = {}

    def _fold(self) -> list[folding.Pair]:
        """Norms that stand still into the convolutions before them, in every lane; those of the network itself."""
        photo = torch.rand(1, 3, self.recipe.input.height, self.recipe.input.width)
        return [folding.fold(one.backbone, partial(one.maps, photo)) for one in self.lanes.own][0]

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
            self.refresh(rng, (self.recipe.input.height, self.recipe.input.width))
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
        """Each class's centre where its photos are now; two looks at every photo, so only where a loss has centres."""
        if not self.losses.has_centres:
            return
        known = np.flatnonzero(self.codes >= 0)
        total = np.zeros((self.n * (2 if self.shown.by_class else 1), self.net.dim), np.float32)
        for turned in (False, True)[: 1 + self.shown.by_class]:
            vectors = unit_rows(self.vectors(known, turned=turned))
            np.add.at(total, self.codes[known] + (self.n if turned else 0), vectors)
        self.losses.start(torch.from_numpy(unit_rows(total)).to(self.device))

    def refresh(self, rng: np.random.Generator, size: tuple[int, int], *, backbone: bool = True) -> None:
        """Batch norms' running statistics anew, by augmented photos brought to that size; without `backbone` only
        those behind it.
        """
        norms = _norms(self.net)
        self.net.train()
        if not backbone:
            inner = _norms(self.net.backbone)
            for norm in inner:
                norm.eval()
            norms = [norm for norm in norms if norm not in inner]
        kept = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
        some = rng.permutation(self.rows)[:_REFRESHED]
        with torch.no_grad():
            for batch in sampling.in_batches(some, min(_AT_ONCE, max(2, len(some)))):
                turned = rng.random(len(batch)) < (0.0 if self.recipe.sampling.mirror == "none" else 0.5)
                self.net(self._normal(augment.views(self.kept, batch, size, self.recipe.augment, rng, turned)))
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum

    def finish(self) -> None:
        """The averaged weights, where the recipe wants some; batch norms as the photos have them with these weights, at
        the size that serves. A mean of the norms' statistics would be that of networks which do not serve; norms of the
        backbone that the recipe holds still stay, those behind it never do.
        """
        if self.average:
            self.net.load_state_dict(self.average)
        moving, size = self.recipe.schedule.norms == "train", self.recipe.input.served_size
        if moving or self.average or self.recipe.input.served != 1:
            self.refresh(np.random.default_rng([self.seed, 13]), size, backbone=moving)
        folding.unfold(self.folded)
        self.folded = []
        self.net.eval()

    # Epochs -----------------------------------------------------------------------------------------------------------

    def all_epochs(
        self, folder: Path, budget: Budget, held: Held | None, progress: Progress | None, told: Told | None
    ) -> None:
        """All that are left, each followed by a checkpoint. What the held-out photos say is written down and decides
        nothing: neither which weights serve nor when to stop.
        """
        while self.plan.left:
            started = time.perf_counter()
            loss = self.epoch(budget, progress)
            taught = budget.spent()
            scores = (math.nan, math.nan) if held is None else self.scores(held)
            self.history.append(Epoch(loss, *scores, time.perf_counter() - started))
            self._take_in(at_end=True)
            self.plan.each += budget.spent() - taught  # the curve is paid for out of the same budget
            checkpoints.write(folder, self.state())
            if told is not None:
                told(len(self.history) - 1, loss, scores[0])

    def epoch(self, budget: Budget, progress: Progress | None) -> float:
        """One pass; the mean loss of its steps."""
        number = len(self.history)
        rng = np.random.default_rng([self.seed, 100, number])
        torch.manual_seed(self.seed * 100_003 + number)
        before = budget.spent()
        self.shown.renew(number, self.plan.done, rng)
        batches = self.shown.batches(self.plan.done, rng)
        self.plan.begin(len(batches), budget, self.recipe.schedule, budget.spent() - before)
        total, shown = 0.0, 0
        size = size_at(self.plan.done, self.recipe)
        workers = 1 if self.device.type == "cpu" else max(1, min(8, (os.cpu_count() or 2) - 1))
        for views in self.shown.prepared(batches, number, size, workers):
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

    def _step(self, views: Views) -> float:
        """One batch: loss, gradients, weights."""
        config, done = self.recipe.schedule, self.plan.done
        self._hold_still(done)
        for group in self.optimiser.param_groups:
            group["lr"] = config.rate * group["factor"] * rate_at(done, config)
        with self.arithmetic.enter():
            out = self.net.embed_maps(self.lanes.maps(self._normal(views.pixels)))
            loss = self.losses(out, self.shown.targets(views, done, self.device))
            if self.pairing is not None:
                loss = loss + self.pairing.loss(torch.nn.functional.normalize(out.whole.float()))
        self._finite(loss, "loss")
        self.optimiser.zero_grad(set_to_none=True)
        self.arithmetic.backward(loss)
        self.lanes.backward()
        params = [p for group in self.optimiser.param_groups for p in group["params"]]
        self._finite(self.arithmetic.step(self.optimiser, params, config.clip), "gradient")
        self.steps += 1
        return float(loss.item())

    def _finite(self, value: torch.Tensor, what: str) -> None:
        """Raises TrainError where it is no number: before the weights are none."""
        if not bool(torch.isfinite(value)):
            raise TrainError(
                f"the {what} is no number any more, in epoch {len(self.history) + 1}",
                next_step="lower schedule.rate and train anew",
            )

    def _hold_still(self, done: float) -> None:
        """Training mode, but for stages and norms that the recipe holds still now."""
        config = self.recipe.schedule
        self.net.train()
        self.losses.train()
        if config.norms == "frozen":
            for norm in _norms(self.net.backbone):
                norm.eval()
        if not config.frozen:
            return
        still = self.still if config.frozen_from <= done < config.frozen_for else set()
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
        return self._through(rows, lambda x: self.net.embed(x).whole, turned=turned, worn=worn)

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

    def scores(self, held: Held) -> tuple[float, float]:
        """MAP@5 of the held-out photos as they are, and worn; as large as the photos that teach."""
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
            "about": self._about(),
            "network": self.net.state_dict(), "losses": self.losses.state_dict(),
            "pairing": self.pairing.state_dict() if self.pairing else {},
            "optimiser": self.optimiser.state_dict(), "arithmetic": self.arithmetic.state(), "plan": self.plan.to_dict(),
            "average": self.average, "averaged": self.averaged, "steps": self.steps,
            "clusters": None if self.shown.clusters is None else torch.from_numpy(self.shown.clusters),
            "history": [[e.loss, e.map_at_5, e.worn, e.seconds] for e in self.history],
        }  # fmt: skip

    def _about(self) -> str:
        """Whose checkpoint it is: this recipe's and seed's, of these photos of these animals, in this order."""
        return checkpoints.about(self.recipe, self.seed, self.kept, self.codes)

    def restore(self, folder: Path) -> None:
        """Go on from the checkpoint in `folder`."""
        kept = checkpoints.read(folder, self._about())
        self.net.load_state_dict(kept["network"])
        self.losses.load_state_dict(kept["losses"])
        if self.pairing:
            self.pairing.load_state_dict(kept["pairing"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.arithmetic.restore(kept["arithmetic"])
        self.plan = Plan.from_dict(kept["plan"])
        self.average = {name: value.to(self.device) for name, value in kept["average"].items()}
        self.averaged, self.steps = kept["averaged"], kept["steps"]
        self.shown.clusters = None if kept["clusters"] is None else kept["clusters"].numpy()
        self.history = [Epoch(*numbers) for numbers in kept["history"]]
