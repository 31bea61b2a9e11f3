"""How sure a measured number is: bootstrap over animals, exact and Wilson intervals for shares, drift between samples.

Photos of one animal resemble each other, so what is resampled here is always a *group* (an identity, an encounter),
never a photo. Pure functions on arrays; knows nothing of photos, labels or stores, and needs numpy alone.

Sources: Efron & Tibshirani, An Introduction to the Bootstrap (1993), §13 (percentile intervals); Clopper & Pearson,
Biometrika 26 (1934); Wilson, JASA 22 (1927); Lentz, Applied Optics 15 (1976), for the continued fraction; Stephens,
JRSS B 32 (1970), for the two-sample Kolmogorov-Smirnov tail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Statistic = Literal["mean", "group_mean"] | Callable[[NDArray[Any]], float]
_NOTHING = 1e-9  # a fractional count below this is rounding
_CHUNK = 4_000_000  # draws held at once while bootstrapping: 32 MB of int64


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its interval: `low` and `high` are NaN where fewer than two groups leave nothing to resample."""

    value: float
    low: float
    high: float
    level: float
    n_values: int
    n_groups: int


def bootstrap_interval(
    values: ArrayLike,
    groups: ArrayLike,
    statistic: Statistic = "mean",
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of `statistic` under resampling of whole groups with replacement.

    `values (N,)` or `(N, D)`; `groups (N,)` of any sortable type. `"mean"` is the mean over rows, `"group_mean"` the
    mean over groups of each group's own mean (BAKS, BAUS); both are vectorised. A callable gets the resampled rows,
    where a group drawn twice is there twice; for a statistic that needs to tell the two apart, pass one row a group
    (`group_means`). Replicates for which a callable returns NaN are left out. Raises ValueError on lengths that
    differ or a level outside (0, 1).
    """
    rows = np.asarray(values)
    if not 0 < level < 1:
        raise ValueError(f"level {level} lies outside (0, 1)")
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    if rows.shape[:1] != codes.shape:
        raise ValueError(f"{rows.shape[:1]} values but {codes.shape} groups: one group a value")
    if not len(rows):
        return Interval(math.nan, math.nan, math.nan, level, 0, 0)
    rng = np.random.default_rng(seed)
    if isinstance(statistic, str):
        value, replicates = _bootstrap_mean(rows, codes, len(names), statistic, n, rng)
    else:
        value, replicates = float(statistic(rows)), _bootstrap_any(rows, codes, len(names), statistic, n, rng)
    finite = replicates[np.isfinite(replicates)]
    low = high = math.nan
    if len(names) > 1 and len(finite):
        low, high = (float(q) for q in np.quantile(finite, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(value, low, high, level, len(rows), len(names))


def _bootstrap_mean(
    rows: NDArray[Any], codes: NDArray[np.intp], n_groups: int, statistic: str, n: int, rng: np.random.Generator
) -> tuple[float, FloatArray]:
    """A mean is a ratio of group sums, so a replicate is two gathers and no copy of the rows."""
    if statistic not in ("mean", "group_mean"):
        raise ValueError(f"unknown statistic '{statistic}': expected mean, group_mean or a function")
    if rows.ndim != 1:
        raise ValueError(f"values of shape {rows.shape}: a mean needs (N,)")
    sums: FloatArray = np.bincount(codes, weights=rows.astype(np.float64), minlength=n_groups).astype(np.float64)
    counts: FloatArray = np.bincount(codes, minlength=n_groups).astype(np.float64)
    if statistic == "group_mean":
        sums, counts = sums / counts, np.ones(n_groups)
    out = np.empty(n)
    step = max(1, _CHUNK // n_groups)
    for start in range(0, n, step):
        drawn = rng.integers(n_groups, size=(min(step, n - start), n_groups))
        out[start : start + step] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return float(sums.sum() / counts.sum()), out


def _bootstrap_any(
    rows: NDArray[Any],
    codes: NDArray[np.intp],
    n_groups: int,
    statistic: Callable[[NDArray[Any]], float],
    n: int,
    rng: np.random.Generator,
) -> FloatArray:
    order = np.argsort(codes, kind="stable")
    counts: NDArray[np.int64] = np.bincount(codes, minlength=n_groups)
    starts = np.cumsum(counts) - counts
    out = np.empty(n)
    for i in range(n):
        drawn = rng.integers(n_groups, size=n_groups)
        sizes = counts[drawn]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        out[i] = statistic(rows[order[np.repeat(starts[drawn], sizes) + within]])
    return out


def group_means(values: ArrayLike, groups: ArrayLike) -> tuple[NDArray[Any], FloatArray]:
    """`values (N,)`, `groups (N,)` → sorted distinct groups (G,) and the mean of each (G,) float64."""
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(codes, weights=np.asarray(values, dtype=np.float64), minlength=len(names))
    return names, sums / np.bincount(codes, minlength=len(names))


def wilson(successes: float, trials: float, level: float = 0.95) -> tuple[float, float]:
    """Two-sided Wilson score interval of a share; (0, 1) when nothing was tried."""
    if trials <= 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def clopper_pearson(successes: ArrayLike, trials: ArrayLike, level: float = 0.95) -> tuple[FloatArray, FloatArray]:
    """Two-sided exact interval of shares, `low` and `high`, both (T,) float64; (0, 1) when nothing was tried.

    Counts may be fractional (effective counts of a weighted or clustered sample, as in Korn & Graubard 1998). A
    one-sided bound at confidence c is the end of the interval at level 2c − 1.
    """
    x = np.atleast_1d(np.asarray(successes, dtype=np.float64))
    n = np.atleast_1d(np.asarray(trials, dtype=np.float64))
    if (x < 0).any() or (x > n).any():
        raise ValueError("successes must lie between 0 and the trials")
    tail = (1 - level) / 2
    low, high = np.zeros_like(x), np.ones_like(x)
    some, less = x > _NOTHING, n - x > _NOTHING
    low[some] = _beta_quantile(tail, x[some], n[some] - x[some] + 1)
    high[less] = _beta_quantile(1 - tail, x[less] + 1, n[less] - x[less])
    return low, high


def binomial_tail(successes: ArrayLike, trials: ArrayLike, share: float) -> FloatArray:
    """P(Binomial(trials, share) ≤ successes), (T,) float64, continued to fractional counts by the beta distribution.

    It is the p-value against "the true share is at least `share`": small means the share is smaller.
    """
    x = np.atleast_1d(np.asarray(successes, dtype=np.float64))
    n = np.atleast_1d(np.asarray(trials, dtype=np.float64))
    out = np.ones_like(x)
    less = n - x > _NOTHING
    out[less] = beta_cdf(np.full(int(less.sum()), 1 - share), n[less] - x[less], x[less] + 1)
    return out


def _beta_quantile(probability: float, a: FloatArray, b: FloatArray) -> FloatArray:
    """Newton's method on the distribution function, falling back to halving the bracket where a step leaves it."""
    mean = a / (a + b)
    spread = np.sqrt(mean * (1 - mean) / (a + b + 1))
    low, high = np.zeros_like(a), np.ones_like(a)
    x = np.clip(mean + NormalDist().inv_cdf(probability) * spread, mean / 10, (9 + mean) / 10)
    log_beta = _log_beta(a, b)
    for _ in range(100):
        gap = beta_cdf(x, a, b) - probability
        low, high = np.where(gap < 0, x, low), np.where(gap < 0, high, x)
        density = np.exp((a - 1) * np.log(x) + (b - 1) * np.log1p(-x) - log_beta)
        ahead = x - gap / np.maximum(density, 1e-300)
        ahead = np.where((ahead > low) & (ahead < high), ahead, (low + high) / 2)
        ahead = np.clip(ahead, 1e-300, 1 - 2.0**-53)
        settled = np.abs(ahead - x) <= 1e-12 * np.minimum(ahead, 1 - ahead) + 2.0**-53
        x = ahead
        if settled.all():
            break
    return x


def _log_beta(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.array([math.lgamma(i) + math.lgamma(j) - math.lgamma(i + j) for i, j in zip(a, b, strict=True)])


def beta_cdf(x: ArrayLike, a: ArrayLike, b: ArrayLike) -> FloatArray:
    """Regularised incomplete beta function I_x(a, b), a, b > 0, elementwise over (T,) float64, to about 1e-12."""
    at, p, q = np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (x, a, b)))
    # The continued fraction converges fast below the mean; above it the mirror image does.
    mirrored = at > (p + 1) / (p + q + 2)
    y, p, q = np.where(mirrored, 1 - at, at), np.where(mirrored, q, p), np.where(mirrored, p, q)
    inside = (y > 0) & (y < 1)
    out = np.where(y >= 1, 1.0, 0.0)
    y, p, q = y[inside], p[inside], q[inside]
    front = np.exp(p * np.log(y) + q * np.log1p(-y) - _log_beta(p, q)) / p
    out[inside] = np.clip(front * _beta_fraction(y, p, q), 0.0, 1.0)
    return np.where(mirrored, 1 - out, out)


def _beta_fraction(x: FloatArray, a: FloatArray, b: FloatArray) -> FloatArray:
    """The continued fraction of I_x(a, b) without its leading factor, by the modified Lentz recurrence."""
    tiny = 1e-300
    out = np.empty_like(x)
    open_ = np.arange(len(x))  # elements that have not converged yet
    c = np.ones_like(x)
    d = 1 / (1 - (a + b) * x / (a + 1))
    total = d.copy()
    limit = 200 + int(10 * math.sqrt(float(np.max(a + b, initial=1.0))))
    for m in range(1, limit):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + step * d
            d = 1 / np.where(np.abs(d) < tiny, tiny, d)
            c = 1 + step / c
            c = np.where(np.abs(c) < tiny, tiny, c)
            total *= c * d
        if m % 8 == 0:
            going = np.abs(c * d - 1) >= 1e-14
            if not going.all():
                out[open_[~going]] = total[~going]
                open_ = open_[going]
                x, a, b, c, d, total = (v[going] for v in (x, a, b, c, d, total))
            if not len(open_):
                break
    out[open_] = total
    return out


@dataclass(frozen=True, slots=True)
class SampleShift:
    """Two samples compared: `distance` is the largest gap between their distribution functions, in [0, 1]."""

    distance: float
    p_value: float


def kolmogorov_smirnov(first: ArrayLike, second: ArrayLike) -> SampleShift:
    """Two-sample Kolmogorov-Smirnov statistic with its asymptotic p-value; (0, 1) when a sample is empty."""
    a, b = (np.sort(np.asarray(v, dtype=np.float64).ravel()) for v in (first, second))
    if not len(a) or not len(b):
        return SampleShift(0.0, 1.0)
    both = np.concatenate([a, b])
    gaps = np.searchsorted(a, both, side="right") / len(a) - np.searchsorted(b, both, side="right") / len(b)
    distance = float(np.abs(gaps).max())
    root = math.sqrt(len(a) * len(b) / (len(a) + len(b)))
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.2:  # the series below alternates too slowly to sum here, and its limit is 1 to 12 digits
        return SampleShift(distance, 1.0)
    terms = np.arange(1, 101)
    p = 2 * float(np.sum((-1.0) ** (terms - 1) * np.exp(-2 * (terms * scaled) ** 2)))
    return SampleShift(distance, min(1.0, max(0.0, p)))
