"""Score → probability that two photos show the same animal: a logistic curve (Platt) or a staircase (isotonic).

Pure functions on arrays; knows nothing of where scores come from, and needs numpy alone, so that a query pays for no
library to apply a curve that was fitted by night. Both curves never fall as the score rises, and never reach 0 or 1:
no number of photos proves that much.

Sources: Platt, Probabilistic outputs for support vector machines (1999), with the smoothed targets and the Newton
steps of Lin, Lin & Weng, Machine Learning 68 (2007); isotonic regression by pooling adjacent violators (Ayer et al.
1955; Zadrozny & Elkan 2002), linear between its steps as WildFusion (Cermak et al. 2024) and scikit-learn do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Kind = Literal["platt", "isotonic"]
_SURE = np.nextafter(0.0, 1.0), np.nextafter(1.0, 0.0)  # a few pairs far apart make a curve that rounds to 0 and 1

_NEWTON_STEPS = 100
_STEEPEST = 1e4  # logits a standard deviation of the scores: separable data without smoothing would go on for ever


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted curve.

    `platt` is σ(slope · score + intercept), `isotonic` linear between the points (`scores[i]`, `probabilities[i]`).
    `scores` ascend strictly, `probabilities` never fall, `slope` ≥ 0; outside the fitted scores an isotonic curve
    stays at its end. `n` and `n_same` are the pairs and the matching pairs it was fitted on.
    """

    kind: Kind
    n: int
    n_same: int
    slope: float = 0.0
    intercept: float = 0.0
    scores: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()

    def probability(self, scores: ArrayLike) -> FloatArray:
        """P(same animal), float64 of the same shape as `scores`."""
        score = np.asarray(scores, dtype=np.float64)
        if self.kind == "platt":
            return np.asarray(np.clip(_sigmoid(self.slope * score + self.intercept), *_SURE))
        return np.asarray(np.interp(score, self.scores, self.probabilities))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` gives back an equal curve."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Inverse of `to_dict`. Raises ValueError for keys or values that `to_dict` cannot have written."""
        plain: dict[str, Any] = {k: tuple(map(float, v)) if isinstance(v, list) else v for k, v in values.items()}
        try:
            curve = cls(**plain)
        except TypeError as error:
            raise ValueError(f"not a calibration: {error}") from None
        knots, heights = np.asarray(curve.scores), np.asarray(curve.probabilities)
        if curve.kind not in ("platt", "isotonic"):
            raise ValueError(f"not a calibration: kind '{curve.kind}', expected platt or isotonic")
        if curve.kind == "platt" and not (math.isfinite(curve.intercept) and 0 <= curve.slope < math.inf):
            raise ValueError(f"not a calibration: slope {curve.slope}, intercept {curve.intercept}")
        if curve.kind == "isotonic" and (
            not len(knots)
            or len(knots) != len(heights)
            or not np.isfinite(knots).all()
            or (np.diff(knots) <= 0).any()
            or not ((heights >= 0) & (heights <= 1)).all()
            or (np.diff(heights) < 0).any()
        ):
            raise ValueError("not a calibration: scores must rise and probabilities must not fall, one a score")
        return curve


def fit_platt(
    scores: ArrayLike, is_same: ArrayLike, weights: ArrayLike | None = None, smooth: bool = True
) -> Calibration:
    """Maximum-likelihood logistic curve of `scores (N,)` for `is_same (N,)` bool, each counted `weights (N,)` times.

    `smooth` aims at (n₁+1)/(n₁+2) and 1/(n₀+2) instead of 1 and 0, which keeps the curve finite where the scores
    separate the two kinds. Scores that say nothing, or point the wrong way, give a flat curve at the share of
    matches. Raises ValueError where a kind is missing: there is no curve to fit.
    """
    score, same, weight = _checked(scores, is_same, weights)
    matches, rest = float(weight[same].sum()), float(weight[~same].sum())
    high, low = ((matches + 1) / (matches + 2), 1 / (rest + 2)) if smooth else (1.0, 0.0)
    target = np.where(same, high, low)
    centre = float(np.average(score, weights=weight))
    spread = math.sqrt(float(np.average((score - centre) ** 2, weights=weight))) or 1.0
    z = (score - centre) / spread
    share = float(np.average(target, weights=weight))
    flat = math.log(share / (1 - share))
    slope, intercept = _newton(z, target, weight, flat)
    if slope <= 0:
        return Calibration("platt", len(score), int(same.sum()), 0.0, flat)
    return Calibration("platt", len(score), int(same.sum()), slope / spread, intercept - slope * centre / spread)


def _newton(z: FloatArray, target: FloatArray, weight: FloatArray, intercept: float) -> tuple[float, float]:
    """Newton's method with step halving on the weighted log loss, for standardised z (N,)."""
    slope = 0.0

    def loss(a: float, b: float) -> float:
        logit = a * z + b
        return float((weight * (np.logaddexp(0, logit) - target * logit)).sum())

    now = loss(slope, intercept)
    for _ in range(_NEWTON_STEPS):
        p = _sigmoid(slope * z + intercept)
        error, curvature = weight * (p - target), weight * p * (1 - p) + 1e-12
        g0, g1 = float((error * z).sum()), float(error.sum())
        h00, h01, h11 = float((curvature * z * z).sum()), float((curvature * z).sum()), float(curvature.sum())
        determinant = h00 * h11 - h01 * h01
        if determinant <= 0 or math.hypot(g0, g1) < 1e-10 * weight.sum() or abs(slope) > _STEEPEST:
            break
        da, db = (h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant
        step = 1.0
        while step > 1e-10 and loss(slope - step * da, intercept - step * db) > now:
            step /= 2
        if step <= 1e-10:  # rounding is all that is left to gain
            break
        slope, intercept = slope - step * da, intercept - step * db
        now = loss(slope, intercept)
    return slope, intercept


def fit_isotonic(
    scores: ArrayLike, is_same: ArrayLike, weights: ArrayLike | None = None, bounded: bool = True
) -> Calibration:
    """Non-decreasing least-squares fit of `is_same (N,)` to `scores (N,)`, each counted `weights (N,)` times.

    `bounded` keeps the curve in [1/(N+2), 1 − 1/(N+2)]: the rule of succession, the most that N pairs without an
    exception show. Raises ValueError where a kind is missing.
    """
    score, same, weight = _checked(scores, is_same, weights)
    distinct, group = np.unique(score, return_inverse=True)
    mass: FloatArray = np.bincount(group, weights=weight).astype(np.float64)
    fitted = _pool_violators(np.bincount(group, weights=weight * same) / mass, mass)
    if bounded:
        least = 1 / (len(score) + 2)
        fitted = np.clip(fitted, least, 1 - least)
    # Inside a flat stretch a straight line needs only its two ends.
    bend = np.ones(len(distinct), dtype=np.bool_)
    bend[1:-1] = (fitted[1:-1] != fitted[:-2]) | (fitted[1:-1] != fitted[2:])
    return Calibration(
        "isotonic",
        len(score),
        int(same.sum()),
        scores=tuple(distinct[bend].tolist()),
        probabilities=tuple(fitted[bend].tolist()),
    )


def _pool_violators(values: FloatArray, weights: FloatArray) -> FloatArray:
    """The non-decreasing sequence nearest to `values (M,)` in weighted least squares."""
    means: list[float] = []
    masses: list[float] = []
    lengths: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, mass, length = value, weight, 1
        while means and means[-1] >= mean:
            before = masses.pop()
            mean = (means.pop() * before + mean * mass) / (before + mass)
            mass += before
            length += lengths.pop()
        means.append(mean)
        masses.append(mass)
        lengths.append(length)
    return np.repeat(means, lengths)


CALIBRATIONS: dict[str, Callable[[ArrayLike, ArrayLike, ArrayLike | None], Calibration]] = {
    "platt": fit_platt,  # two numbers: for tens to hundreds of pairs
    "isotonic": fit_isotonic,  # any shape that does not fall: for a thousand pairs and more
}


def _sigmoid(logit: FloatArray) -> FloatArray:
    return np.asarray(np.exp(-np.logaddexp(0, -logit)))


def _checked(
    scores: ArrayLike, is_same: ArrayLike, weights: ArrayLike | None
) -> tuple[FloatArray, NDArray[np.bool_], FloatArray]:
    score, same = np.asarray(scores, dtype=np.float64).ravel(), np.asarray(is_same, dtype=np.bool_).ravel()
    weight = np.ones(len(score)) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    if not len(score) == len(same) == len(weight):
        raise ValueError(f"{len(score)} scores, {len(same)} truths, {len(weight)} weights: one of each a pair")
    if not np.isfinite(score).all():
        raise ValueError("scores hold NaN or infinity: leave out what was not scored")
    if not (np.isfinite(weight) & (weight >= 0)).all():
        raise ValueError("weights must be finite and not negative")
    kept = weight > 0
    score, same, weight = score[kept], same[kept], weight[kept]
    if not same.any() or same.all():
        raise ValueError(f"{int(same.sum())} of {len(same)} pairs match: a calibration needs both kinds")
    return score, same, weight
