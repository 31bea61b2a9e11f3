"""What the sources say of a pair of photos → P(same animal): cosine of embeddings, votes of local features, geometry.

`pair_features` lines the sources up for all candidates of one query, each beside the best of its rivals, since what is
a good score differs from photo to photo. A `Fusion` turns a row into a probability: by boosted trees fitted on the
store's own left-out photos (`trees`), by sources that are each calibrated on them and then fused (`logistic`, `power`:
see `reid.sources`), by the mean of these and of general weights (`mean`), by three weights that were fitted on rendered
flukes where a store is too small for that (`prior`), or not at all (`embedding`: the cosine stays what it is). Cosines
come with crowding taken off (`reid.crowding`).

Pure functions on arrays; knows no photos, stores or identities. Sources: score-level fusion of calibrated matchers,
WildFusion (Cermak et al. 2024); boosted trees over match features, fourth place of Humpback Whale Identification 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid import calibrate, score, sources
from reid.agreement import FEATURE_NAMES
from reid.calibrate import Calibration
from reid.errors import InputError, ModelError
from reid.logistic import logit
from reid.score import Trees, ValidatorConfig
from reid.sources import Combined, Heard, Pairs
from reid.verify import Verification

Floats = NDArray[np.float32]
Kind = Literal["embedding", "prior", "prior_votes", "trees", "geometry_first", "logistic", "power", "mean"]
KINDS = get_args(Kind)

SOURCE_NAMES = (
    "cosine",
    "cosine_behind_best",
    "cosine_standing",
    "log_votes",
    "log_votes_behind_best",
    "votes_share",
    "log_weight",
    "log_weight_behind_best",
    "log_inliers",
    "log_query_keypoints",
)
NAMES = (*SOURCE_NAMES, *FEATURE_NAMES)
"""Columns of `pair_features`."""
SIAMESE_NAMES = ("siamese", "siamese_behind_best")
WIDE_NAMES = (*NAMES, *SIAMESE_NAMES)
"""Columns where the store has a Siamese head, whose logits are a source, too."""
GEOMETRY = frozenset({"log_weight", "log_inliers", *FEATURE_NAMES})
"""What a validator of geometry alone may see."""
LOOKS = frozenset({"cosine", "cosine_behind_best", "cosine_standing", *SIAMESE_NAMES})
"""What the network that makes the vectors says."""
ACCEPTED = 0.5
"""P(same) of the validator from which `geometry_first` believes it."""
_STANDING, _VOTES, _WEIGHT = (SOURCE_NAMES.index(n) for n in ("cosine_standing", "log_votes", "log_weight"))

PRIOR = (-5.86, 0.045, 1.41, 3.71)
"""Logit = first + cosine_standing, log_votes and log_weight times the others; see `bench/prior.py` for their origin."""
PRIOR_THRESHOLD = 0.25
"""P(same) at which the new individual stands where nothing could be measured: nine in ten strangers stay below."""


def pair_features(
    cosines: ArrayLike,
    listed: ArrayLike,
    votes: ArrayLike,
    verifications: Sequence[Verification | None],
    keypoints: int,
    siamese: ArrayLike | None = None,
) -> Floats:
    """`(C, F) float32`, columns `NAMES`, of one query's C candidates.

    `cosines (C,)`; `listed (K,)` the cosines of the query's nearest neighbours, by which a cosine's standing is judged;
    `votes (C,)` of the local index, 0 for none; a verification None was not made (its columns are NaN, its weight 0);
    `keypoints` of the query; `siamese (C,)` logits of a head, NaN where it was not asked, give `WIDE_NAMES`.
    """
    cosine, near = np.asarray(cosines, np.float64), np.asarray(listed, np.float64)
    vote = np.asarray(votes, np.float64)
    weight = np.array([v.weight if v else 0.0 for v in verifications], np.float64)
    inliers = np.array([v.inliers if v else 0.0 for v in verifications], np.float64)
    spread = max(float(near.std()), 1e-6) if len(near) else 1.0
    middle = float(near.mean()) if len(near) else 0.0
    best = float(near.max()) if len(near) else 0.0
    logs = [np.log1p(np.maximum(values, 0.0)) for values in (vote, weight, inliers)]
    own = np.stack(
        [
            cosine,
            cosine - best,
            (cosine - middle) / spread,
            logs[0],
            logs[0] - logs[0].max(initial=0.0),
            vote / (vote.sum() + 1.0),
            logs[1],
            logs[1] - logs[1].max(initial=0.0),
            logs[2],
            np.full(len(cosine), np.log1p(keypoints)),
        ],
        axis=1,
    )
    nothing = np.full(len(FEATURE_NAMES), np.nan, np.float32)
    geometry = np.stack([v.features if v else nothing for v in verifications]) if verifications else np.empty((0, 0))
    names = NAMES if siamese is None else WIDE_NAMES
    if not len(cosine):
        return np.empty((0, len(names)), np.float32)
    columns = [own, geometry]
    if siamese is not None:
        logits = np.asarray(siamese, np.float64)
        columns.append(np.stack([logits, logits - np.fmax.reduce(logits)], axis=1))
    return np.concatenate(columns, axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Fusion:
    """Row of `pair_features` → P(same animal). `trees` and their `curve` (margin → probability) are there for the kinds
    `trees` and `geometry_first` alone; `pairs` and `same` are what they were fitted on. The kinds `logistic` and `power`
    are `combined`; `trees` are then the validator of geometry, one of their sources (None where too few pairs had any).

    `geometry_first` is the way of the fourth place of Humpback Whale Identification 2019: trees over geometry alone, and
    the one candidate of a query that they accept with at least `least` agreeing points has the first place; all others
    stand below it, by their `looks` (Siamese logit or cosine → probability).

    `mean` averages the log-odds of its `parts`, and its curve makes a probability of that.
    """

    kind: Kind
    trees: Trees | None = field(default=None, compare=False)  # they are the booster's
    curve: Calibration | None = None
    booster: Mapping[str, Any] | None = None
    pairs: int = 0
    same: int = 0
    looks: Calibration | None = None
    least: int = 0
    columns: tuple[str, ...] = NAMES
    combined: Combined | None = None
    parts: tuple[Fusion, ...] = ()

    def scores(self, features: Floats) -> NDArray[np.float64]:
        """`(C, F) → (C,)`: P(same animal) of one query's candidates; the bare cosine for the kind `embedding`."""
        if self.kind == "embedding" or not len(features):
            return np.asarray(features[:, 0], np.float64)
        if self.kind == "mean" and self.curve is not None:
            return self.curve.probability(mean_odds([part.scores(features) for part in self.parts]))
        if self.combined is not None:
            return self.combined.probability(columns_of(_of_columns(features, len(self.columns)), self.trees))
        if self.trees is None or self.curve is None:
            return prior(features, geometry=self.kind == "prior")
        seen = _of_columns(features, len(self.columns))
        if self.kind == "geometry_first" and self.looks is not None:
            valid = self.curve.probability(self.trees.margin(only_geometry(seen)))
            return placed(valid, self.looks.probability(looks_of(seen)), inliers_of(seen), self.least)
        return self.curve.probability(self.trees.margin(seen))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        curve = self.curve.to_dict() if self.curve else None
        names = list(self.columns) if self.trees is not None or self.combined is not None else []
        further: dict[str, Any] = {"looks": self.looks.to_dict(), "least": self.least} if self.looks else {}
        further |= {"combined": self.combined.to_dict()} if self.combined else {}
        further |= {"parts": [part.to_dict() for part in self.parts]} if self.parts else {}
        return {
            "kind": self.kind, "names": names, "curve": curve, "booster": self.booster, "pairs": self.pairs,
            "same": self.same, **further,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Fusion:
        """Inverse of `to_dict`. ValueError for what it cannot have written, or for trees over other columns."""
        try:
            if raw["kind"] not in KINDS:
                raise ValueError(f"not a fusion: kind '{raw['kind']}'")
            if raw["kind"] in ("embedding", "prior", "prior_votes"):
                return cls(raw["kind"])
            if raw["kind"] == "mean":
                return averaged([cls.from_dict(part) for part in raw["parts"]], Calibration.from_dict(raw["curve"]))
            names = tuple(raw["names"])
            if names not in (NAMES, WIDE_NAMES):
                raise ValueError("the fusion was fitted on other features")
            booster = raw["booster"]
            if raw["kind"] in sources.WAYS:
                return cls._of_sources(raw, names)
            trees, curve = score.read_trees(booster), Calibration.from_dict(raw["curve"])
            if trees.feature.max(initial=-1) >= len(names):
                raise ValueError("its trees ask for features that are not there")
            first = raw["kind"] == "geometry_first"
            looks, least = (Calibration.from_dict(raw["looks"]), int(raw["least"])) if first else (None, 0)
            return cls(raw["kind"], trees, curve, booster, int(raw["pairs"]), int(raw["same"]), looks, least, names)
        except (AttributeError, KeyError, IndexError, TypeError, ModelError) as error:
            raise ValueError(f"not a fusion: {error}") from error

    @classmethod
    def _of_sources(cls, raw: Mapping[str, Any], names: tuple[str, ...]) -> Fusion:
        combined, booster = Combined.from_dict(raw["combined"]), raw["booster"]
        trees = None if booster is None else score.read_trees(booster)
        speaking = {one.column for one in combined.sources}
        if combined.way != raw["kind"] or not speaking <= {*names, *(["validator"] if trees else [])}:
            raise ValueError("its sources speak by columns that are not there")
        if trees is not None and trees.feature.max(initial=-1) >= len(names):
            raise ValueError("its trees ask for features that are not there")
        return cls(
            raw["kind"], trees, None, booster, int(raw["pairs"]), int(raw["same"]), columns=names, combined=combined
        )


def averaged(parts: Sequence[Fusion], curve: Calibration) -> Fusion:
    """The mean of ways, those that were fitted on the same pairs. ValueError where there are not two."""
    if len(parts) < 2:
        raise ValueError("a mean takes two ways at least")
    most = max(parts, key=lambda one: one.pairs)  # general weights were fitted on none
    return Fusion(
        "mean", None, curve, None, most.pairs, most.same, columns=max((p.columns for p in parts), key=len),
        parts=tuple(parts),
    )  # fmt: skip


def mean_odds(scores: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Of several ways' P(same) `(N,)` each the mean log-odds `(N,)`."""
    return np.asarray(np.mean([logit(each, 1e-9) for each in scores], axis=0))


EMBEDDING = Fusion("embedding")
PRIOR_FUSION = Fusion("prior")
PRIOR_VOTES = Fusion("prior_votes")
"""Where geometry is not compared as it was for `PRIOR`: other matchers' points say other things, most of them too much."""


def prior(features: Floats, *, geometry: bool = True) -> NDArray[np.float64]:
    """P(same animal) `(C,)` by the three weights of `PRIOR`, without `geometry` by the first two."""
    offset, standing, votes, weight = PRIOR
    weight = weight if geometry else 0.0
    columns = np.asarray(features[:, [_STANDING, _VOTES, _WEIGHT]], np.float64)
    logit = np.clip(offset + columns @ np.array([standing, votes, weight]), -500, 500)  # beyond, exp would overflow
    return np.asarray(1 / (1 + np.exp(-logit)), np.float64)


def fit_trees(
    features: Floats, same: ArrayLike, animals: ArrayLike, config: ValidatorConfig | None = None,
    asked: ArrayLike | None = None,
) -> tuple[Fusion, NDArray[np.float64]]:  # fmt: skip
    """Trees for pairs `features (N, F)`, `same (N,) bool`, `animals (N, 2)` codes of query and candidate; and the
    out-of-fold P(same) `(N,)` of each pair, by trees that saw no pair with its query's animal on either side (of the
    candidate's, only pairs with others). `asked (N,) bool`: pairs of photos that are asked for; the others, whose `LOOKS`
    are unknown, teach the trees alone, not what their margins mean.

    Raises:
        InputError: fewer than `score.FEWEST` pairs of either kind, or one animal only.
    """
    y = np.asarray(same, np.bool_)
    names = NAMES if features.shape[1] == len(NAMES) else WIDE_NAMES
    trained = score.train_validator(features, y, animals, names, config)
    odds = np.clip(trained.out_of_fold, 1e-9, 1 - 1e-9)
    margins = np.log(odds / (1 - odds))
    some = np.ones(len(y), np.bool_) if asked is None else np.asarray(asked, np.bool_)
    curve = calibrate.fit_platt(margins[some], y[some])
    validator = trained.validator
    fusion = Fusion("trees", validator.trees, curve, validator.booster, validator.pairs, validator.same, columns=names)
    return fusion, curve.probability(margins)


def fit_geometry_first(
    features: Floats, same: ArrayLike, animals: ArrayLike, least: int, config: ValidatorConfig | None = None,
    asked: ArrayLike | None = None,
) -> tuple[Fusion, NDArray[np.float64]]:  # fmt: skip
    """The way of the fourth place, and the out-of-fold P(same) of its validator `(N,)`. Arguments and errors as
    `fit_trees`.
    """
    found, valid = fit_trees(only_geometry(features), same, animals, config, asked)
    some = np.ones(len(valid), np.bool_) if asked is None else np.asarray(asked, np.bool_)
    looks = calibrate.fit_platt(looks_of(features[some]), np.asarray(same, np.bool_)[some])
    return replace(found, kind="geometry_first", looks=looks, least=least), valid


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """All that `fit_sources` needs of some pairs, whichever way they are fused: calibrated once for both ways."""

    pairs: Pairs
    heard: Heard
    trees: Trees | None
    booster: Mapping[str, Any] | None
    names: tuple[str, ...]


def hear(
    features: Floats, same: ArrayLike, animals: ArrayLike, lists: ArrayLike, config: ValidatorConfig | None = None,
    asked: ArrayLike | None = None,
) -> Sources:  # fmt: skip
    """The sources of pairs, calibrated out of fold. Arguments and errors as `fit_trees`, and `lists (N,)` as in
    `sources.Pairs`.

    The validator is trained on the pairs whose geometry was compared, and heard out of fold, too. Only pairs that are
    `asked` for are among those of the result.
    """
    y, codes = np.asarray(same, np.bool_), np.asarray(animals, np.int64)
    some = np.ones(len(y), np.bool_) if asked is None else np.asarray(asked, np.bool_)
    names = NAMES if features.shape[1] == len(NAMES) else WIDE_NAMES
    compared = _compared(features)
    margins, trees, booster = np.full(len(y), np.nan), None, None
    try:
        trained = score.train_validator(only_geometry(features[compared]), y[compared], codes[compared], names, config)
    except InputError:
        pass  # too few were compared: geometry speaks by the weight of its points
    else:
        margins[compared] = logit(trained.out_of_fold, 1e-9)
        trees, booster = trained.validator.trees, trained.validator.booster
    columns = columns_of(features, None) | ({"validator": margins} if trees else {})
    columns = {name: values[some] for name, values in columns.items()}
    pairs = Pairs(columns, y[some], codes[some], np.asarray(lists, np.int64)[some])
    return Sources(pairs, sources.hear(pairs), trees, booster, names)


def fit_sources(found: Sources, way: sources.Way) -> tuple[Fusion, NDArray[np.float64]]:
    """The sources fused one way, and the out-of-fold P(same) `(N,)` of each pair."""
    combined, scores = sources.combine(found.pairs, found.heard, way)
    asked = any(one.column == "validator" for one in combined.sources)
    fusion = Fusion(
        way, found.trees if asked else None, None, found.booster if asked else None, len(scores),
        int(found.pairs.same.sum()), columns=found.names, combined=combined,
    )  # fmt: skip
    return fusion, scores


def columns_of(features: Floats, validator: Trees | None) -> dict[str, NDArray[np.float64]]:
    """The columns by which sources may speak, by name; NaN where nobody looked."""
    names = WIDE_NAMES[: features.shape[1]]
    speaking = {column for columns in sources.SPEAKS_BY.values() for column in columns}
    found = {name: np.asarray(features[:, i], np.float64) for i, name in enumerate(names) if name in speaking}
    compared = _compared(features)
    found["log_weight"] = np.where(compared, found["log_weight"], np.nan)
    if validator is not None:
        margins = np.full(len(features), np.nan)
        margins[compared] = validator.margin(only_geometry(features[compared]))
        found["validator"] = margins
    return found


def _compared(features: Floats) -> NDArray[np.bool_]:
    """The rows whose geometry was compared."""
    return np.asarray(np.isfinite(features[:, NAMES.index("inliers")]))


def placed(
    valid: NDArray[np.float64], looks: NDArray[np.float64], inliers: NDArray[np.float64], least: int
) -> NDArray[np.float64]:
    """Scores in [0, 1] of one query's candidates: the most `valid` of those accepted (at least `ACCEPTED`, with `least`
    inliers) in the upper half, all others in the lower, by their looks.
    """
    scores = 0.5 * looks
    accepted = np.flatnonzero((valid >= ACCEPTED) & (inliers >= least))
    if len(accepted):
        first = accepted[np.argmax(valid[accepted])]
        scores[first] = 0.5 + 0.5 * valid[first]
    return scores


def only_geometry(features: Floats) -> Floats:
    """Rows in which all but `GEOMETRY` is unknown."""
    out = features.copy()
    out[:, [i for i, name in enumerate(WIDE_NAMES[: features.shape[1]]) if name not in GEOMETRY]] = np.nan
    return out


def without_looks(features: Floats) -> Floats:
    """Rows of photos that the network knows by heart: what it says is unknown."""
    out = features.copy()
    out[:, [i for i, name in enumerate(WIDE_NAMES[: features.shape[1]]) if name in LOOKS]] = np.nan
    return out


def looks_of(features: Floats) -> NDArray[np.float64]:
    """The Siamese head's logit of each row, `(C,)`; where no row has one, the cosine; a row without one has the least."""
    if features.shape[1] > len(NAMES) and np.isfinite(features[:, len(NAMES)]).any():
        logits = np.asarray(features[:, len(NAMES)], np.float64)
        return np.where(np.isfinite(logits), logits, np.fmin.reduce(logits))
    return np.asarray(features[:, 0], np.float64)


def inliers_of(features: Floats) -> NDArray[np.float64]:
    """Points that agree, `(C,)`; 0 where nobody looked, or where what they agree on cannot be (`reid.verify`: the
    features of such a pair still count them).
    """
    logs = np.asarray(features[:, NAMES.index("log_inliers")], np.float64)
    return np.asarray(np.rint(np.nan_to_num(np.expm1(logs))), np.float64)


def _of_columns(features: Floats, columns: int) -> Floats:
    """Rows of as many columns as trees were fitted on: those that are lacking are unknown."""
    lacking = columns - features.shape[1]
    if lacking <= 0:
        return features
    return np.concatenate([features, np.full((len(features), lacking), np.nan, np.float32)], axis=1)
