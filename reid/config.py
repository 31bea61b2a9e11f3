"""Settings of a store as values: frozen dataclasses, and which values go together.

Each knob carries its unit and its off-switch in a comment; the defaults below are what holds for every key that a file
leaves out. Knows no files: `reid.config_file` reads and writes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

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


def check(config: Config, source: str) -> None:
    """Ranges that types cannot say; `source` is named in errors.

    Raises:
        ConfigError: a value is out of range, or two do not go together; the message names them.
    """
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
