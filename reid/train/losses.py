"""What embedders are taught by: margin softmax and its relatives, many binary classifiers, triplets, margin loss, centre
and ring loss, and weighted sums of them.

A `Loss` takes what the network gave for a batch and its `Targets`. Classes are numbers from 0; −1 is a photo of no
known animal (`new_whale`). Where mirrored photos count as other animals, class c + C is the mirror image of class c, and
a photo does not compete with its own twin: that logit is left out (`Targets.twins`).

Triplets and margin loss are those of pytorch-metric-learning, which has batch-hard mining and distance weighting; its
classifiers know no left-out logits, photos without a class, or centres chosen by class size, so those are written here.
Knows tensors; no photos.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from reid.train.network import Embedded
from reid.train.recipe import (
    Centre,
    Divided,
    LossConfig,
    Margin,
    Pair,
    Ring,
    Sigmoid,
    Softmax,
    Sphere,
    Triplet,
)

_LEFT_OUT = -1e4  # a logit that takes no part
_LENGTH = 4.0  # of a class centre at first: only its direction counts, and the longer it is the slower it turns


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """`classes (B,) int64`, −1 for none; `twins (B,) int64` the class of the mirror image, −1 where it competes or there
    is none; `done` the share of the training that is over; `part` (p, k): this batch trains the p-th, from 0, of k parts
    of the vector; None: the whole. `soft (K, C)` is what each of the K photos of no class is to be taken for, in their
    order; None: all classes alike.
    """

    classes: torch.Tensor
    twins: torch.Tensor
    done: float = 0.0
    part: tuple[int, int] | None = None
    soft: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """What a loss is built for: vectors of `dim` numbers in `parts` equal parts, and photos of each class, `(C,)`."""

    dim: int
    parts: int
    counts: NDArray[np.int64]

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.counts)


class MarginSoftmax(torch.nn.Module):  # type: ignore[misc]
    """See `recipe.Margin`. ArcFace: Deng et al. 2019 (arXiv 1801.07698), which also has the combined margin; CosFace:
    Wang et al. 2018 (1801.09414); sub-centres: Deng et al. 2020 (ECCV); margins by class size: Ha et al. 2020
    (2010.05350), the exponents of Happywhale's first place.
    """

    def __init__(self, config: Margin, space: Space) -> None:
        super().__init__()
        self.config = config
        self.classes = space.classes
        self.centres = torch.nn.Parameter(torch.randn(space.classes * config.centres, space.dim) / space.dim**0.5)
        margin = np.full(space.classes, config.m2)
        if config.dynamic:
            a, b, c = config.dynamic
            margin = a * np.maximum(space.counts, 1.0) ** -b + c
        self.register_buffer("margin", torch.from_numpy(margin).float())

    def cosines(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, D) → (B, C)`, of each class's nearest centre."""
        all_of = functional.normalize(x) @ functional.normalize(self.centres).T
        return all_of.view(len(x), self.classes, self.config.centres).amax(2) if self.config.centres > 1 else all_of

    def forward(self, x: Embedded, targets: Targets) -> torch.Tensor:
        """See the class."""
        config, cosine = self.config, self.cosines(x.whole)
        known = targets.classes >= 0
        classes = targets.classes.clamp_min(0)
        true = cosine.gather(1, classes[:, None])[:, 0].clamp(-1 + 1e-6, 1 - 1e-6)
        grown = min(1.0, targets.done / config.grows) if config.grows else 1.0
        angle = (1 + grown * (config.m1 - 1)) * true.acos() + grown * self.margin[classes]
        # Beyond π a cosine would rise again: there the target goes on falling along a line (Deng et al.'s code).
        wanted = torch.where(angle < math.pi, angle.cos(), -1 - (angle - math.pi)) - grown * config.m3
        logits = cosine.scatter(1, classes[:, None], wanted[:, None].to(cosine.dtype)) * config.scale
        loss = _cross_entropy(without_twins(logits, targets), classes, known)
        if config.uniform and not bool(known.all()):
            loss = loss + config.uniform * _to_soft(cosine[~known] * config.scale, targets.soft)
        return loss

    def start(self, centres: torch.Tensor) -> None:
        """Begin with these class centres `(C, D)`; further centres of a class beside the first."""
        k = self.config.centres
        if k > 1:
            noise = torch.randn(len(centres), k, centres.shape[1]).to(centres.device) / centres.shape[1] ** 0.5
            noise[:, 0] = 0
            centres = (functional.normalize(centres)[:, None] + 0.5 * noise).flatten(0, 1)
        with torch.no_grad():
            self.centres.copy_(functional.normalize(centres) * _LENGTH)


class SphereFace(torch.nn.Module):  # type: ignore[misc]
    """See `recipe.Sphere`. Liu et al. 2017 (arXiv 1704.08063): ψ(θ) = (−1)^k cos(mθ) − 2k, monotone in θ."""

    def __init__(self, config: Sphere, space: Space) -> None:
        super().__init__()
        self.config = config
        self.centres = torch.nn.Parameter(torch.randn(space.classes, space.dim) / space.dim**0.5)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Embedded, targets: Targets) -> torch.Tensor:
        """See the class."""
        config = self.config
        if self.training:
            self.steps += 1
        blend = max(config.least, config.base / (1 + config.falls * float(self.steps)))
        whole = x.whole
        length = whole.norm(dim=1, keepdim=True)
        cosine = functional.normalize(whole) @ functional.normalize(self.centres).T
        known, classes = targets.classes >= 0, targets.classes.clamp_min(0)
        true = cosine.gather(1, classes[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
        angle = true.acos()
        k = (config.m * angle.detach() / math.pi).floor()
        psi = (1 - 2 * (k % 2)) * (config.m * angle).cos() - 2 * k
        wanted = (blend * true + psi) / (1 + blend)
        logits = cosine.scatter(1, classes[:, None], wanted) * length
        return _cross_entropy(without_twins(logits, targets), classes, known)

    def start(self, centres: torch.Tensor) -> None:
        """Begin with these class centres `(C, D)`."""
        with torch.no_grad():
            self.centres.copy_(functional.normalize(centres) * _LENGTH)


class SoftmaxHeads(torch.nn.Module):  # type: ignore[misc]
    """See `recipe.Softmax`: a classifier on the vector, and one on each of its parts where it has several."""

    def __init__(self, config: Softmax, space: Space) -> None:
        super().__init__()
        self.config = config
        widths = [space.dim] + [space.dim // space.parts] * (space.parts if space.parts > 1 else 0)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(width, space.classes) for width in widths)

    def forward(self, x: Embedded, targets: Targets) -> torch.Tensor:
        """See the class."""
        known, classes = targets.classes >= 0, targets.classes.clamp_min(0)
        total = x.whole.new_zeros(())
        for head, part in zip(self.heads, [x.whole, *(x.parts if len(self.heads) > 1 else ())], strict=True):
            logits = head(part)
            total = total + _cross_entropy(without_twins(logits, targets), classes, known)
            if self.config.uniform and not bool(known.all()):
                total = total + self.config.uniform * _to_soft(logits[~known], targets.soft)
        return total

    def start(self, centres: torch.Tensor) -> None:
        """Begin with these class centres `(C, D)`, as a classifier by cosine."""
        wide = [centres, *(centres.chunk(len(self.heads) - 1, 1) if len(self.heads) > 1 else ())]
        with torch.no_grad():
            for head, part in zip(self.heads, wide, strict=True):
                head.weight.copy_(functional.normalize(part) * 8 / part.shape[1] ** 0.5)
                head.bias.zero_()


class HardSigmoid(torch.nn.Module):  # type: ignore[misc]
    """See `recipe.Sigmoid`: online hard example mining (Shrivastava et al. 2016) over classes, with a focal factor
    (Lin et al. 2017) where wanted. A photo of no known animal is a negative of all classes.
    """

    def __init__(self, config: Sigmoid, space: Space) -> None:
        super().__init__()
        self.config = config
        self.centres = torch.nn.Parameter(torch.randn(space.classes, space.dim) / space.dim**0.5)

    def forward(self, x: Embedded, targets: Targets) -> torch.Tensor:
        """See the class."""
        config = self.config
        logits = functional.normalize(x.whole) @ functional.normalize(self.centres).T * config.scale
        logits = without_twins(logits, targets)
        known, classes = targets.classes >= 0, targets.classes.clamp_min(0)
        truth = torch.zeros_like(logits).scatter(1, classes[:, None], known[:, None].to(logits.dtype))
        errors = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        if config.focal:
            wrong = torch.where(truth > 0, 1 - logits.sigmoid(), logits.sigmoid())
            errors = errors * wrong.detach() ** config.focal
        end = config.hardest_end or config.hardest
        hardest = config.hardest + (end - config.hardest) * targets.done
        number = max(1, round(hardest if hardest >= 1 else hardest * logits.shape[1]))
        loss = errors.topk(min(number, logits.shape[1]), dim=1).values.mean()
        if bool(known.any()):
            loss = loss + errors.gather(1, classes[:, None])[known].mean()
        return loss

    def start(self, centres: torch.Tensor) -> None:
        """Begin with these class centres `(C, D)`."""
        with torch.no_grad():
            self.centres.copy_(functional.normalize(centres) * _LENGTH)


class BatchHard(torch.nn.Module):  # type: ignore[misc]
    """See `recipe.Triplet`. Hermans et al. 2017 (arXiv 1703.07737), by pytorch-metric-learning; the aligned distance is
    that of Zhang et al. 2017 (1711.08184): the cheapest monotone path through the distances of two maps' rows.
    """

    def __init__(self, config: Triplet, space: Space) -> None:
        super().__init__()
        self.config = config
        from pytorch_metric_learning.losses import TripletMarginLoss
        from pytorch_metric_learning.miners import BatchHardMiner

        self.mine, self.loss = BatchHardMiner(), TripletMarginLoss(margin=config.margin)

    def forward(self, x: Embedded, targets: Targets) -> torch.Tensor:
        """See the class."""
        own = _own_classes(targets.classes)
        if not self.config.aligned:
            unit = functional.normalize(x.whole)
            found: torch.Tensor = self.loss(unit, own, self.mine(unit, own))
            return found
        assert x.rows is not None  # the recipe says so
        apart = aligned_distances(x.rows)
        same = own[:, None] == own[None]
        other = ~torch.eye(len(own), dtype=torch.bool, device=own.device)
        has = (same & other).any(1) & (~same).any(1)
        if not bool(has.any()):
            return x.rows.sum() * 0
        far = apart.masked_fill(~(same & other), -math.inf).amax(1)[has]
        near = apart.masked_fill(same, math.inf).amin(1)[has]
        return (far - near + self.config.margin).clamp_min(0).mean()


def aligned_distances(rows: torch.Tensor) -> torch.Tensor:
    """Of unit vectors `(B, R, L)`: the least mean of (e^d − 1)/(e^d + 1) along a path from the first rows to the last,
    going down in one map or the other at each step. `(B, B)`.
    """
    d = (2 - 2 * torch.einsum("irl,jsl->ijrs", rows, rows)).clamp_min(1e-8).sqrt()
    d = torch.tanh(d / 2)  # (e^d − 1)/(e^d + 1)
    n = d.shape[2]
    best: list[list[torch.Tensor]] = [[d[:, :, 0, 0]] * n for _ in range(n)]
    for i in range(n):
        for j in range(n):
            before = [best[i - 1][j]] * (i > 0) + [best[i][j - 1]] * (j > 0)
            if before:
                best[i][j] = d[:, :, i, j] + (torch.minimum(*before) if len(before) > 1 else before[0])
    return best[-1][-1] / (2 * n - 1)


class DividedMargin(torch.nn.Module):  # type: ignore[misc]
    """See `recipe.Divided`. Margin loss with distance-weighted negatives: Wu et al. 2017 (arXiv 1706.07567), by
    pytorch-metric-learning; the divided vector: Sanakoyeu et al. 2019 (1906.05990).
    """

    def __init__(self, config: Divided, space: Space) -> None:
        super().__init__()
        self.config = config
        from pytorch_metric_learning.losses import MarginLoss
        from pytorch_metric_learning.miners import DistanceWeightedMiner

        self.losses = torch.nn.ModuleList(
            MarginLoss(margin=config.alpha, nu=0, beta=config.beta, learn_beta=True) for _ in range(config.clusters)
        )
        self.mine = DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4)

    def forward(self, x: Embedded, targets: Targets) -> torch.Tensor:
        """See the class."""
        part, of = targets.part or (0, 1)
        own = _own_classes(targets.classes)
        unit = functional.normalize(x.whole.tensor_split(of, 1)[part])
        found: torch.Tensor = self.losses[part](unit, own, self.mine(unit, own))
        return found


class CentreLoss(torch.nn.Module):  # type: ignore[misc]
    """See `recipe.Centre`. Wen et al. 2016 (ECCV)."""

    def __init__(self, config: Centre, space: Space) -> None:
        super().__init__()
        self.centres = torch.nn.Parameter(torch.zeros(space.classes, space.dim))

    def forward(self, x: Embedded, targets: Targets) -> torch.Tensor:
        """See the class."""
        known = targets.classes >= 0
        if not bool(known.any()):
            return x.whole.sum() * 0
        apart = x.whole[known] - self.centres[targets.classes[known]]
        return 0.5 * apart.pow(2).sum(1).mean()


class RingLoss(torch.nn.Module):  # type: ignore[misc]
    """See `recipe.Ring`. Zheng et al. 2018 (arXiv 1803.00130); the length begins at the first batch's mean."""

    def __init__(self, config: Ring, space: Space) -> None:
        super().__init__()
        self.length = torch.nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: Embedded, targets: Targets) -> torch.Tensor:
        """See the class."""
        lengths = x.whole.norm(dim=1)
        if self.length.item() < 0:
            with torch.no_grad():
                self.length.copy_(lengths.mean())
        return (lengths - self.length).pow(2).mean()


_BUILT: dict[type, Callable[[Any, Space], torch.nn.Module]] = {
    Margin: MarginSoftmax, Sphere: SphereFace, Softmax: SoftmaxHeads, Sigmoid: HardSigmoid, Triplet: BatchHard,
    Divided: DividedMargin, Centre: CentreLoss, Ring: RingLoss,
}  # fmt: skip


class Sum(torch.nn.Module):  # type: ignore[misc]
    """A recipe's losses by their weights, in float32 whatever the network computes in: in bfloat16 a cosine of .999 is 1,
    where an angle's slope is endless. Losses on pairs are the loop's own business and are passed over.
    """

    def __init__(self, configs: Sequence[LossConfig], space: Space) -> None:
        super().__init__()
        chosen = [config for config in configs if not isinstance(config, Pair)]
        self.weights = [config.weight for config in chosen]
        self.losses = torch.nn.ModuleList(_BUILT[type(config)](config, space) for config in chosen)

    def forward(self, x: Embedded, targets: Targets) -> torch.Tensor:
        """See the class."""
        x = Embedded(x.whole.float(), tuple(p.float() for p in x.parts), None if x.rows is None else x.rows.float())
        total = x.whole.new_zeros(())
        with torch.autocast(x.whole.device.type, enabled=False):
            for weight, loss in zip(self.weights, self.losses, strict=True):
                total = total + weight * loss(x, targets)
        return total

    @property
    def has_centres(self) -> bool:
        """Whether any of them begins with class centres."""
        return any(hasattr(loss, "start") for loss in self.losses)

    def start(self, centres: torch.Tensor) -> None:
        """Begin with these class centres `(C, D)` wherever there are some."""
        for loss in self.losses:
            if hasattr(loss, "start"):
                loss.start(centres)


def without_twins(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """`logits (B, C)` with each photo's own mirror image out of the running."""
    has = targets.twins >= 0
    if not bool(has.any()):
        return logits
    mask = torch.zeros_like(logits, dtype=torch.bool)
    mask[has] = mask[has].scatter(1, targets.twins[has][:, None], True)
    return logits.masked_fill(mask, _LEFT_OUT)


def _cross_entropy(logits: torch.Tensor, classes: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Mean over the photos whose class is known; 0 where there are none."""
    if not bool(known.any()):
        return logits.sum() * 0
    return functional.cross_entropy(logits[known], classes[known])


def _to_soft(logits: torch.Tensor, soft: torch.Tensor | None) -> torch.Tensor:
    """Cross entropy to `soft`, or to 1/C, less its least value: 0 where the photos are taken for what they should be."""
    said = functional.log_softmax(logits, 1)
    if soft is None:
        return -said.mean() - math.log(logits.shape[1])
    return (torch.xlogy(soft, soft) - soft * said).sum(1).mean()


def _own_classes(classes: torch.Tensor) -> torch.Tensor:
    """Every photo of no known animal as a class of its own."""
    alone = -1 - torch.arange(len(classes), device=classes.device)
    return torch.where(classes >= 0, classes, alone)
