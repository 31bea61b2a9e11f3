"""Several numbers → log-odds: logistic regression with a ridge, by Newton's method.

Pure functions on arrays, numpy alone; knows nothing of where numbers come from. Columns are standardised for the fit, so
that one ridge suits all of them, and the weights are given in the columns' own units.

Source: le Cessie & van Houwelingen, Ridge estimators in logistic regression, Applied Statistics 41 (1992).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

_STEPS = 50
_SETTLED = 1e-10


@dataclass(frozen=True, slots=True)
class Logistic:
    """Log-odds = `offset` + row · `weights` (F,)."""

    offset: float
    weights: tuple[float, ...]

    def margin(self, rows: ArrayLike) -> FloatArray:
        """Log-odds `(N,)` of `rows (N, F)`."""
        return np.asarray(self.offset + np.asarray(rows, np.float64) @ np.array(self.weights, np.float64))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"weights": list(self.weights)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Logistic:
        """Inverse of `to_dict`. KeyError, TypeError or ValueError for what it cannot have written."""
        found = cls(float(raw["offset"]), tuple(float(w) for w in raw["weights"]))
        if not np.isfinite([found.offset, *found.weights]).all():
            raise ValueError("not a logistic regression: its weights are not finite")
        return found


def fit(rows: ArrayLike, truth: ArrayLike, weights: ArrayLike | None = None, *, ridge: float = 1.0) -> Logistic:
    """The weights that make `truth (N,) bool` most likely given `rows (N, F)`, each row counted `weights (N,)` times,
    less `ridge`/2 · Σ (weight · the column's spread)². A column that never varies gets weight 0.

    Raises ValueError where either kind is missing, or a number is not finite.
    """
    x, y = np.asarray(rows, np.float64), np.asarray(truth, np.bool_)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    if x.ndim != 2 or not len(x) == len(y) == len(w):
        raise ValueError(f"rows {x.shape}, {len(y)} truths, {len(w)} weights: one of each a row")
    if not np.isfinite(x).all() or not (np.isfinite(w) & (w >= 0)).all():
        raise ValueError("rows and weights must be finite, weights not negative")
    matches, others = float(w[y].sum()), float(w[~y].sum())
    if not (matches and others):
        raise ValueError("a regression needs both kinds")
    centre = np.average(x, axis=0, weights=w)
    spread = np.sqrt(np.average((x - centre) ** 2, axis=0, weights=w))
    scale = np.where(spread > 1e-12, spread, np.inf)
    z = np.concatenate([np.ones((len(x), 1)), (x - centre) / scale], axis=1)
    beta = np.zeros(z.shape[1])
    beta[0] = np.log(matches / others)
    beta = _newton(z, y.astype(np.float64), w, beta, np.r_[0.0, np.full(x.shape[1], ridge)])
    own = beta[1:] / scale
    return Logistic(float(beta[0] - own @ centre), tuple(own.tolist()))


def _newton(z: FloatArray, y: FloatArray, w: FloatArray, beta: FloatArray, penalty: FloatArray) -> FloatArray:
    """Newton's method with step halving on the penalised log loss."""

    def loss(b: FloatArray) -> float:
        logit = z @ b
        return float((w * (np.logaddexp(0, logit) - y * logit)).sum() + 0.5 * (penalty * b * b).sum())

    now = loss(beta)
    for _ in range(_STEPS):
        p = sigmoid(z @ beta)
        slope = z.T @ (w * (p - y)) + penalty * beta
        bend = (z * (w * p * (1 - p))[:, None]).T @ z + np.diag(penalty + 1e-9)
        move = np.linalg.solve(bend, slope)
        step = 1.0
        while step > 1e-8 and loss(beta - step * move) > now:
            step /= 2
        beta = beta - step * move if step > 1e-8 else beta
        before, now = now, loss(beta)
        if before - now <= _SETTLED * max(1.0, abs(before)):
            break
    return beta


def sigmoid(logit: ArrayLike) -> FloatArray:
    """1 / (1 + e^−x) without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0, -np.asarray(logit, np.float64))))


def logit(probability: ArrayLike, least: float = 1e-6) -> FloatArray:
    """Log-odds, of probabilities kept at least `least` from 0 and 1."""
    p = np.clip(np.asarray(probability, np.float64), least, 1 - least)
    return np.asarray(np.log(p) - np.log1p(-p))
