"""Recipes: what made a published system that system, as a TOML file of one machinery.

    <name>.toml
      system, notes            whose it is; what was scaled down for a laptop
      [input] [network] [[loss]] [sampling] [augment] [schedule]
      [laptop.…] [gpu.…]       what differs at that scale, section by section; [[laptop.loss]] replaces all losses

Everything is a frozen dataclass; a key that is not known is an error, and so is a value of another type. A new system is
a new file, not a new program. How a section is read is said in `reid.train.sections`. Knows numbers and names; trains
nothing and imports no torch.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from reid.errors import ConfigError
from reid.train import ladder
from reid.train.sections import known_only, section

Scale = Literal["laptop", "gpu"]
Pooling = Literal["avg", "gem", "max", "max_avg", "last_two", "all_stages", "inner", "stripes"]
Views = Literal["one", "around", "scales", "boxes"]
Kind = Literal["shuffled", "identities", "pairs"]
Mirror = Literal["class", "views", "none"]
Negatives = Literal["auto", "exact", "blocks", "sparse", "random"]
NewTargets = Literal["uniform", "distilled"]
Optimiser = Literal["adamw", "adam", "sgd"]
Average = Literal["none", "ema", "swa"]
Precision = Literal["auto", "single", "bfloat16", "float16"]
_FOLDER = "recipes"


@dataclass(frozen=True, slots=True)
class InputConfig:
    """What the network sees of a box: `margin` is a share of the box's size, on each side."""

    height: int = 96  # pixels
    width: int = 96  # pixels
    margin: float = 0.1
    grey: bool = False  # True: no colours, in training and ever after
    served: float = 1.0  # size at which the network serves, as a share of that at which it learns
    views: Views = "one"  # of `reid.crop.VIEWS`, averaged when the model serves, unless a store says otherwise

    @property
    def served_size(self) -> tuple[int, int]:
        """Height and width at which the network serves: the shorter side a multiple of 16, the other in proportion. A
        little larger than it learnt at it may find more (Touvron et al. 2019, NeurIPS), and the training costs no more.
        """
        if self.served == 1:
            return self.height, self.width
        short = min(self.height, self.width)
        factor = max(2, round(short * self.served / 16)) * 16 / short
        return round(self.height * factor), round(self.width * factor)


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """From pixels to the vector: `reid.train.network`."""

    backbone: str = "tf_efficientnet_lite0"  # any timm name
    levels: int = 0  # of the backbone's maps that are kept, the finest first; 0: all
    pooling: Pooling = "gem"
    gem: float = 3.0  # power of the generalised mean; 1 is the mean
    learn_gem: bool = False
    stripes: int = 4  # upright strips of the map, with `stripes`
    rows: int = 1  # cells of the map that are pooled apart, and laid side by side (not with `stripes`)
    columns: int = 1
    norm_first: bool = False  # a batch norm before the dropout
    dropout: float = 0.0  # share of the pooled numbers; 0: none
    dim: int = 512  # numbers of the vector; 0: the pooled ones as they are
    act: Literal["none", "relu", "celu"] = "none"  # between the projection and the neck
    neck: bool = True  # a batch norm behind it, whose shift stays zero
    local: int = 0  # numbers of each row of the map for the aligned local distance (training only); 0: none
    begin: Literal["", "fluke"] = ""  # a network that ships, of this shape, which learns further; empty: ImageNet's
    start: Literal["random", "whitened"] = "whitened"  # the projection and class centres at first
    both: bool = False  # the trained network serves the vectors of the photo and of its mirror image, side by side


@dataclass(frozen=True, slots=True)
class Margin:
    """Softmax over cosines whose target is cos(m1·θ + m2) − m3, times `scale`: ArcFace (1, .5, 0), CosFace (1, 0, .35),
    combined (1, .4, .15). With `centres` above 1 each class has so many. With `dynamic` the angle is m_c = a·n^(−b) + c
    instead of m2, by photos n of the class. The margins grow from nothing over the first `grows` of the training: whole
    at once, they undo a good start. `uniform` weighs the cross entropy of `new_whale` photos to 1/C, or to what
    `sampling.new_targets` says instead; 0: none.
    """

    weight: float = 1.0
    scale: float = 30.0
    m1: float = 1.0
    m2: float = 0.0  # radians
    m3: float = 0.0
    centres: int = 1
    dynamic: tuple[float, ...] = ()  # a, b, c
    grows: float = 0.0  # share of the training
    uniform: float = 0.0


@dataclass(frozen=True, slots=True)
class Sphere:
    """SphereFace: ‖x‖·cos(m·θ) for the target, blended with ‖x‖·cos θ by λ, which falls to `least` over the steps."""

    weight: float = 1.0
    m: int = 4
    base: float = 1000.0  # λ at first
    least: float = 5.0  # λ in the end
    falls: float = 0.12  # how fast, per step: λ = base / (1 + falls·step)


@dataclass(frozen=True, slots=True)
class Softmax:
    """Cross entropy of a linear classifier. `uniform` as in `Margin`; on the network's `parts` too, where it has them."""

    weight: float = 1.0
    uniform: float = 0.0


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """A binary classifier for each class on cosines times `scale`: mean cross entropy of each photo's `hardest` classes
    (a share of all, or a number of them from 1 on), plus that of the true class. `focal` is the exponent; 0: none.
    """

    weight: float = 1.0
    scale: float = 16.0
    hardest: float = 30.0
    hardest_end: float = 0.0  # reached at the end of training; 0: as `hardest`
    focal: float = 0.0


@dataclass(frozen=True, slots=True)
class Triplet:
    """Batch-hard triplets of unit rows at `margin`; `aligned` takes the network's rows of the map instead, along the
    shortest path.
    """

    weight: float = 1.0
    margin: float = 0.3
    aligned: bool = False


@dataclass(frozen=True, slots=True)
class Divided:
    """Margin loss [d_ap − β + α]₊ + [β − d_an + α]₊ with learnable β, negatives weighted by distance; with `clusters`
    above 1 the vector is divided, and each cluster of animals, found anew every `renew` epochs, trains its own part; there
    are as many parts as clusters, and fewer where there are fewer than two animals for each.
    """

    weight: float = 1.0
    alpha: float = 0.2
    beta: float = 1.2
    clusters: int = 1
    renew: int = 2


@dataclass(frozen=True, slots=True)
class Centre:
    """Centre loss: half the squared distance of each vector to its class's centre."""

    weight: float = 0.001


@dataclass(frozen=True, slots=True)
class Ring:
    """Ring loss: squared difference of the vectors' lengths to a learnt one."""

    weight: float = 0.01


@dataclass(frozen=True, slots=True)
class Pair:
    """Cross entropy of the Siamese head on pairs (with `sampling.kind = "pairs"`); `hidden` units a feature."""

    weight: float = 1.0
    hidden: int = 32


LossConfig = Margin | Sphere | Softmax | Sigmoid | Triplet | Divided | Centre | Ring | Pair
LOSSES: dict[str, type] = {
    "margin": Margin, "sphere": Sphere, "softmax": Softmax, "sigmoid": Sigmoid, "triplet": Triplet, "divided": Divided,
    "centre": Centre, "ring": Ring, "pair": Pair,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """Which photos an epoch shows: `shuffled`; `identities`, with `photos` of each in every batch; `pairs` set against
    each other by `reid.train.mining`.
    """

    kind: Kind = "shuffled"
    least: int = 0  # photos of an identity an epoch, repeated where it has fewer; 0: each photo once
    photos: int = 2  # of an identity in a batch, with `identities`
    alike: float = 0.0  # share of a batch that each cluster of look-alikes makes up, with `identities`; 0: as drawn
    mirror: Mirror = "class"  # mirrored photos are other animals, more views of the same, or not shown
    twins: bool = False  # True: an animal competes with its own mirror image, too; False: that class is masked
    new_share: float = 0.0  # of every batch, photos without identity; 0: none
    new_targets: NewTargets = "uniform"  # what they are taught, by losses with `uniform`: 1/C, or what `teacher` says
    teacher: str = ""  # a model directory (in a store: or a model's name), with `distilled`
    heat: float = 0.05  # that the teacher's cosines are divided by before the softmax: the more, the softer
    weighted: bool = False  # photos drawn in proportion to 1/√(photos of their identity), with replacement
    large_first: int = 0  # the first epochs show identities with so many photos; 0: all from the start
    large_for: float = 0.25  # share of the training for which
    negatives: Negatives = "auto"  # with `pairs`; auto: exact up to 4,000 photos, sparse beyond
    hard_positives: bool = False
    block: int = 4000  # photos assigned at once, with `blocks`
    neighbours: int = 30  # of each photo, with `sparse`
    among: int = ladder.AMONG  # other photos, about, of which a negative is the hardest at most, with `pairs`; 0: all
    rescore: int = 5  # epochs after which the pairs' scores are found anew
    suspect: float = 0.9  # P from which two animals may be one, and are not taught as two, with `pairs`; 1: none


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """How photos are varied; 0 switches a kind off. Each view draws uniformly within ± the bound, or with probability.

    `worn` makes the held-out photos small, lossy or wide as the training's are, so that a score is one of the field.
    """

    rotate: float = 8.0  # degrees
    shear: float = 5.0  # degrees
    zoom: float = 0.1  # share by which the window is wider or narrower, each axis by itself
    shift: float = 0.05  # share of the window
    perspective: float = 0.0  # share of the window by which corners move
    wide: float = 0.1  # probability of a window of up to 1.4 times the size
    light: float = 0.25  # brightness ± this share
    contrast: float = 0.25
    colour: float = 0.2  # saturation ± this share
    gamma: float = 0.0  # exponent 1 ± this
    grey: float = 0.2  # probability of losing the colours
    blur: float = 0.1  # probability
    noise: float = 0.0  # standard deviation of up to this many grey levels
    erase: float = 0.0  # probability of a box of noise, 2 to 15 % of the area
    background: float = 0.0  # probability of another photo's background, where both animals have masks
    jpeg: float = 2 / 9  # probability of JPEG artefacts, quality 30 to 80
    shrink: float = 2 / 9  # probability of having been photographed 1.5 to 3 times smaller
    worn: bool = True


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """How long, how fast, and what is held still."""

    epochs: int = 20
    batch: int = 32
    optimiser: Optimiser = "adamw"
    rate: float = 1e-3
    head_rate: float = 10.0  # times `rate`, for all that is not the backbone
    decay: float = 5e-4
    warm_up: float = 0.1  # share of the training
    restarts: int = 0  # of the cosine
    frozen: int = 0  # first stages of the backbone that stay as they are
    frozen_from: float = 0.0  # share of the training from which on
    frozen_for: float = 1.0  # and until which
    norms: Literal["train", "frozen"] = "train"  # the backbone's batch norms: follow the batches, or stay
    sizes: tuple[float, ...] = (1.0,)  # of the input, one after the other for equal shares of the training
    average: Average = "none"  # weights served: the last, their running mean, or that of the last epochs
    average_of: float = 0.25  # share of the training that `swa` takes in
    clip: float = 5.0  # largest norm of a gradient; 0: no bound
    precision: Precision = "auto"  # on a GPU; auto: bfloat16 where it has that, else float16; on a CPU always single


@dataclass(frozen=True, slots=True)
class Recipe:
    """One system at one scale."""

    name: str
    system: str
    notes: str
    scale: Scale
    losses: tuple[LossConfig, ...]
    input: InputConfig = field(default_factory=InputConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def to_dict(self) -> dict[str, Any]:
        """For a run's record: everything, the losses with their kind."""
        kinds = {kind: name for name, kind in LOSSES.items()}
        return asdict(self) | {"losses": [{"kind": kinds[type(loss)], **asdict(loss)} for loss in self.losses]}


_SECTIONS: dict[str, type] = {
    "input": InputConfig, "network": NetworkConfig, "sampling": SamplingConfig, "augment": AugmentConfig,
    "schedule": ScheduleConfig,
}  # fmt: skip
_KNOWN = {"system", "notes", "loss", "laptop", "gpu", *_SECTIONS}


def names() -> list[str]:
    """The recipes that come with the package."""
    files = (resources.files("reid.train") / _FOLDER).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load(name: str | Path, scale: Scale) -> Recipe:
    """A recipe of the package by name, or one's own by the path of its `.toml` file.

    Raises:
        ConfigError: there is none, or the file says something that is not known.
    """
    own = Path(name)
    if own.suffix != ".toml" and str(name) not in names():
        raise ConfigError(f"no recipe '{name}'", next_step=f"choose one of {', '.join(names())}, or a .toml file")
    source = str(own) if own.suffix == ".toml" else f"recipe {name}"
    file = own if own.suffix == ".toml" else resources.files("reid.train") / _FOLDER / f"{name}.toml"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read ({error})", source=source, next_step="name another file") from error
    return parse(text, own.stem if own.suffix == ".toml" else str(name), scale, source)


def parse(text: str, name: str, scale: Scale, source: str = "") -> Recipe:
    """As `load`, for text already read; `source` names it in errors."""
    source = source or name
    if scale not in get_args(Scale):
        raise ConfigError(f"no scale '{scale}'", source=source, next_step=f"choose one of {', '.join(get_args(Scale))}")
    try:
        raw = tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"not a recipe ({error})", source=source, next_step="correct that line") from error
    known_only(raw, _KNOWN, "", source)
    built = {one: _built(raw, one, name, source) for one in get_args(Scale)}  # a slip in the other scale is one, too
    return built[scale]


def _built(raw: dict[str, Any], scale: Scale, name: str, source: str) -> Recipe:
    own = raw.get(scale, {})
    known_only(own, {"loss", *_SECTIONS}, f"{scale}.", source)
    sections: dict[str, Any] = {}
    for key, kind in _SECTIONS.items():
        known = {one.name for one in fields(kind)}
        for part in (raw, own):
            known_only(part.get(key, {}), known, f"{key}.", source)
        sections[key] = section(kind, {**raw.get(key, {}), **own.get(key, {})}, source, f"{key}.")
    listed = own.get("loss", raw.get("loss", []))
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise ConfigError("'loss' is no list of sections", source=source, next_step="write [[loss]], with two brackets")
    losses = tuple(_loss(one, source) for one in listed)
    made = Recipe(name, str(raw.get("system", "")), str(raw.get("notes", "")), scale, losses, **sections)
    check(made, source)
    return made


def _loss(raw: dict[str, Any], source: str) -> LossConfig:
    rest = dict(raw)
    kind = rest.pop("kind", None)
    if not isinstance(kind, str) or kind not in LOSSES:
        raise ConfigError(f"no loss '{kind}'", source=source, next_step=f"choose one of {', '.join(LOSSES)}")
    known_only(rest, {one.name for one in fields(LOSSES[kind])}, f"loss {kind}: ", source)
    made: LossConfig = section(LOSSES[kind], rest, source, f"loss {kind}: ")
    return made


def check(recipe: Recipe, source: str, next_step: str = "correct it there") -> None:
    """Ranges and combinations that types cannot say; raises ConfigError."""
    sections = [(name, getattr(recipe, name)) for name in _SECTIONS]
    kinds = {kind: name for name, kind in LOSSES.items()}
    for name, part in [*sections, *((f"loss {kinds[type(loss)]}", loss) for loss in recipe.losses)]:
        _check_bounds(name, part, source, next_step)
    network, sampling, schedule = recipe.network, recipe.sampling, recipe.schedule
    pairs = any(isinstance(loss, Pair) for loss in recipe.losses)
    aligned = any(isinstance(loss, Triplet) and loss.aligned for loss in recipe.losses)
    distilled = sampling.new_targets == "distilled"
    soft = sampling.new_share > 0 and any(getattr(loss, "uniform", 0.0) > 0 for loss in recipe.losses)
    divided = [loss.clusters for loss in recipe.losses if isinstance(loss, Divided)]
    rules = [
        (bool(recipe.losses), "a recipe needs a [[loss]]"),
        (0.5 <= recipe.input.served <= 2, "input.served must be in [.5, 2]"),
        (
            recipe.input.served == 1 or recipe.input.served_size != (recipe.input.height, recipe.input.width),
            "input.served is too near 1: sizes are multiples of 16 pixels",
        ),
        (0 <= recipe.input.margin <= 1, "input.margin must be in [0, 1]"),
        (0 <= network.dropout < 1, "network.dropout must be in [0, 1)"),
        (network.pooling != "stripes" or network.dim > 0, "network.dim must be above 0 with stripes"),
        (
            network.pooling != "inner"
            or (network.levels == 0 and network.rows == network.columns == 1 and not network.local),
            'network.pooling "inner" goes with no levels, no cells and no local rows',
        ),
        (not aligned or network.local > 0, "network.local must be above 0 for an aligned triplet"),
        (all(network.dim % n == 0 for n in divided), "network.dim must be a multiple of the clusters"),
        (len(divided) < 2, 'one loss "divided" at most: there is one vector to divide'),
        (pairs == (sampling.kind == "pairs"), 'the loss "pair" and sampling.kind = "pairs" go together'),
        (not (pairs and network.both), 'network.both: the head that learns by "pairs" knows upright vectors alone'),
        (not pairs or all(isinstance(loss, Pair | Ring) for loss in recipe.losses), 'beside the loss "pair" only "ring"'),
        (sampling.kind != "identities" or sampling.photos >= 2, "sampling.photos must be 2 or more"),
        (0 <= sampling.alike <= 1, "sampling.alike must be in [0, 1]"),
        (not sampling.alike or sampling.kind == "identities", 'sampling.alike needs sampling.kind = "identities"'),
        (not (sampling.alike and divided), "sampling.alike and a divided loss both choose who meets whom: take one"),
        (0 <= sampling.new_share < 1, "sampling.new_share must be in [0, 1)"),
        (sampling.heat > 0, "sampling.heat must be above 0"),
        (distilled == bool(sampling.teacher), 'sampling.teacher and new_targets = "distilled" go together'),
        (not distilled or soft, 'new_targets = "distilled" needs sampling.new_share and a loss with uniform above 0'),
        (sampling.rescore >= 1, "sampling.rescore must be 1 or more"),
        (sampling.block >= 2 and sampling.neighbours >= 1, "sampling.block must be 2, neighbours 1 or more"),
        (0.5 <= sampling.suspect <= 1, "sampling.suspect must be in [.5, 1]"),
        (0 <= schedule.warm_up < 1, "schedule.warm_up must be in [0, 1)"),
        (0 <= schedule.frozen_from < schedule.frozen_for <= 1, "schedule: 0 <= frozen_from < frozen_for <= 1"),
        (bool(schedule.sizes) and all(0.2 <= s <= 1 for s in schedule.sizes), "schedule.sizes must be in [.2, 1]"),
        (all(len(one.dynamic) in (0, 3) for one in recipe.losses if isinstance(one, Margin)), "dynamic: a, b and c"),
    ]  # fmt: skip
    for holds, message in rules:
        if not holds:
            raise ConfigError(message, source=source, next_step=next_step)


_SHARE, _LESS, _MANY = (0.0, 1.0), (0.0, 0.95), 1e6
_BOUNDS: dict[type, dict[str, tuple[float, float]]] = {
    InputConfig: {"height": (32, 4096), "width": (32, 4096)},
    NetworkConfig: {
        "levels": (0, 10), "gem": (0.1, 100), "stripes": (1, 64), "rows": (1, 64), "columns": (1, 64), "dim": (0, 65536),
        "local": (0, 65536),
    },
    Margin: {"scale": (0.01, 1000), "m1": (0, 10), "m2": (0, 3.2), "m3": (0, 2), "centres": (1, 100), "grows": _SHARE},
    Sphere: {"m": (1, 10)},
    Sigmoid: {"scale": (0.01, 1000), "hardest": (1e-4, _MANY), "focal": (0, 20)},
    Triplet: {"margin": (0, 10)},
    Divided: {"alpha": (0, 10), "beta": (0, 10), "clusters": (1, 1000), "renew": (1, _MANY)},
    Pair: {"hidden": (1, 65536)},
    SamplingConfig: {"large_for": _SHARE, "photos": (1, 1000)},
    AugmentConfig: {
        "rotate": (0, 180), "shear": (0, 80), "noise": (0, 255),
        **dict.fromkeys(("zoom", "shift", "perspective", "light", "contrast", "colour", "gamma"), _LESS),
        **dict.fromkeys(("wide", "grey", "blur", "erase", "background", "jpeg", "shrink"), _SHARE),
    },
    ScheduleConfig: {
        "epochs": (1, _MANY), "batch": (2, _MANY), "rate": (1e-9, 1000), "head_rate": (1e-6, _MANY),
        "decay": (0, 10), "frozen": (0, 20), "average_of": (1e-3, 1),
    },
}  # fmt: skip


def _check_bounds(name: str, part: Any, source: str, next_step: str) -> None:
    """Numbers of a section or a loss: within its bounds, and not negative where it has none."""
    bounds = _BOUNDS.get(type(part), {})
    for key in (one.name for one in fields(part)):
        value, (low, high) = getattr(part, key), bounds.get(key, (0.0, float("inf")))
        if type(value) in (int, float) and not low <= value <= high:
            said = f"in [{low:g}, {high:g}]" if key in bounds else "0 or more"
            raise ConfigError(f"{name}.{key} is {value:g}: it must be {said}", source=source, next_step=next_step)
