"""Match, new or review at a stated error rate: thresholds that keep a promise, or the reason why none can be given.

Pure functions on arrays, numpy alone; knows nothing of photos or stores. A query whose best animal scores `score` is
answered `match` by itself when `score >= match_at`, `new` when `score < new_at`, and is otherwise a person's to
`review`.

The promise is about the future: of the queries answered by themselves as matches, at most `rate` name the wrong animal,
with `confidence` over the choice of photos it was measured on. A threshold picked because it looks good looks better
than it is, so thresholds are tested in an order fixed by the scores alone: from a few starting points downwards until
the first failure, each start with its share of the allowed error (multi-start fixed sequences: Angelopoulos et al.,
Learn then Test, 2021), each test by the exact binomial (Clopper & Pearson 1934) on what the sample is worth (`risk`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reid.decide import DEFAULT_NEW_SHARE
from reid.intervals import binomial_tail, clopper_pearson
from reid.risk import Cases, accepted_shares, share_above, worth

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Verdict = Literal["match", "new", "review"]


def verdict(score: float, match_at: float | None, new_at: float | None) -> Verdict:
    """What to do with a query whose best animal scores `score`; None stands for a threshold that was refused."""
    if match_at is not None and score >= match_at:
        return "match"
    return "new" if new_at is not None and score < new_at else "review"


@dataclass(frozen=True, slots=True)
class Promise:
    """A threshold that keeps `rate` with `confidence`, or None and the reason why the data do not support one.

    `measured` is the rate seen at the threshold, `low` and `upper` its bounds (NaN when refused; each holds by itself
    at the level tested, both together at twice its error). `automatic` is the share
    of queries decided by it, with its exact 95 % interval `automatic_low`, `automatic_high`. `photos` and `animals`
    stand behind it, worth `queries` independent queries. `needed` is how many photos of either kind, of the sort
    there are, would do (None where none would).
    """

    rate: float
    confidence: float
    threshold: float | None
    reason: str
    measured: float = math.nan
    low: float = math.nan
    upper: float = math.nan
    automatic: float = 0.0
    automatic_low: float = 0.0
    automatic_high: float = 0.0
    photos: int = 0
    animals: int = 0
    queries: float = 0.0
    needed: int | None = None


def promise_matches(
    cases: Cases, rate: float, confidence: float = 0.95, new_share: float = DEFAULT_NEW_SHARE
) -> Promise:
    """The lowest `match_at` at which at most `rate` of automatic matches are wrong, or a refusal with its reason."""
    seen = np.unique(np.concatenate([cases.known_score, cases.unknown_score]))
    at = seen[np.isfinite(seen)][::-1]  # an empty list of candidates matches nobody
    accepted, wrong, _ = accepted_shares(cases, new_share, at)
    return _promise(cases, at, accepted, wrong, rate, confidence, new_share, "matches")


def promise_new(
    cases: Cases,
    rate: float,
    confidence: float = 0.95,
    new_share: float = DEFAULT_NEW_SHARE,
    match_at: float | None = None,
) -> Promise:
    """The highest `new_at` (not above `match_at`) at which at most `rate` of those called new are known animals."""
    seen = np.unique(np.concatenate([cases.known_score, cases.unknown_score]))
    at = np.append(seen[1:], np.nextafter(seen[-1], math.inf)) if len(seen) else seen
    if match_at is not None:
        at = at[at <= match_at]
    known = (1 - new_share) * (1 - share_above(cases.known_score, at))
    unknown = new_share * (1 - share_above(cases.unknown_score, at))
    return _promise(cases, at, known + unknown, known, rate, confidence, new_share, "new")


def _promise(
    cases: Cases,
    at: FloatArray,
    decided: FloatArray,
    wrong: FloatArray,
    rate: float,
    confidence: float,
    new_share: float,
    of: Literal["matches", "new"],
) -> Promise:
    """Test thresholds `at (T,)`, strictest first; `decided`, `wrong` (T,), shares of all queries, rise along them."""
    if not 0 < rate < 1 or not 0 < confidence < 1:
        raise ValueError(f"rate {rate} and confidence {confidence} must lie in (0, 1)")
    value = worth(cases, new_share, of)
    what = "matches" if of == "matches" else "animals called new"
    photos = min(len(cases.known_score), len(cases.unknown_score))
    behind = _Behind(rate, confidence, photos, value.animals, value.queries)
    n, x = decided * value.queries, np.minimum(wrong, decided) * value.queries
    starts = _starts(n, rate, confidence)
    if not len(starts):
        return behind.too_few(n, x, what)
    tail = binomial_tail(x, n, rate)
    allowed = (1 - confidence) / len(starts)
    passed = np.zeros(len(at), dtype=np.bool_)
    for start in starts:
        failures = np.flatnonzero(tail[start:] > allowed)
        passed[start : start + (failures[0] if len(failures) else len(at))] = True
    if not passed.any():
        return behind.too_many_mistakes(n[starts], x[starts], allowed, what)
    i = int(np.flatnonzero(passed)[-1])
    least, most = clopper_pearson(x[i], n[i], 1 - 2 * allowed)
    low, high = clopper_pearson(n[i], value.queries)
    return Promise(
        rate=rate,
        confidence=confidence,
        threshold=float(at[i]),
        reason=f"at most {rate:.3g} of {what} are wrong, with {confidence:.0%} confidence",
        measured=float(x[i] / n[i]),
        low=float(least[0]),
        upper=float(most[0]),
        automatic=float(decided[i]),
        automatic_low=float(low[0]),
        automatic_high=float(high[0]),
        photos=photos,
        animals=value.animals,
        queries=value.queries,
    )


def _starts(n: FloatArray, rate: float, confidence: float) -> IntArray:
    """Where the tests begin: the first thresholds that decide L, 2L, 4L … queries, `n (T,)` being what each decides.

    L is the least number that passes without a mistake once the allowed error is shared among the starts.
    """
    starts: list[int] = []
    for count in range(1, 64):
        least = math.log((1 - confidence) / count) / math.log(1 - rate)
        sizes = least * 2.0 ** np.arange(count)
        if not len(n) or sizes[-1] > n[-1]:
            break
        starts = np.searchsorted(n, sizes, side="left").tolist()
    return np.unique(np.asarray(starts, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class _Behind:
    """What stands behind a promise that cannot be given, and the words for it."""

    rate: float
    confidence: float
    photos: int
    animals: int
    queries: float

    def too_few(self, n: FloatArray, x: FloatArray, what: str) -> Promise:
        least = math.ceil(math.log(1 - self.confidence) / math.log(1 - self.rate))
        most = float(n[-1]) if len(n) else 0.0
        needed = self._needed(n, x, 1 - self.confidence)
        if needed is not None:
            step = f"; about {needed} would do if they are like these"
        elif most > 0:
            step = "; with mistakes as often as among them no number would do: better evidence is needed"
        else:
            step = ""
        return self._refuse(
            f"a rate of {self.rate:.3g} at {self.confidence:.0%} confidence takes at least {least} independent {what} "
            f"without a mistake; the {self.photos} photos measured are worth {math.floor(most)}{step}",
            needed,
        )

    def too_many_mistakes(self, n: FloatArray, x: FloatArray, allowed: float, what: str) -> Promise:
        best = int(np.argmin(x / n))
        share = float(x[best] / n[best])
        needed = self._needed(n, x, allowed)
        if needed is None:
            return self._refuse(
                f"even of the {n[best]:.0f} surest {what} a share of {share:.3g} is wrong, more than {self.rate:.3g}: "
                f"better evidence is needed, not more photos",
                None,
            )
        return self._refuse(
            f"of the {n[best]:.0f} surest {what} a share of {share:.3g} is wrong: from {self.photos} photos too little to "
            f"promise {self.rate:.3g}; about {needed} would do if they are like these",
            needed,
        )

    def _needed(self, n: FloatArray, x: FloatArray, allowed: float) -> int | None:
        """Photos that would do, if they are like these: at the threshold that needs fewest; None where none does."""
        some = n > 0
        each = (_times_as_many(a, b, self.rate, allowed) for a, b in zip(x[some], n[some], strict=True))
        factor = min(each, default=math.inf)
        return None if math.isinf(factor) else math.ceil(self.photos * factor)

    def _refuse(self, reason: str, needed: int | None) -> Promise:
        return Promise(
            rate=self.rate,
            confidence=self.confidence,
            threshold=None,
            reason=reason,
            photos=self.photos,
            animals=self.animals,
            queries=self.queries,
            needed=needed,
        )


def _times_as_many(x: float, n: float, rate: float, allowed: float) -> float:
    """How many times the data, with mistakes in the same proportion, pass the test; infinite when no amount does."""
    if x >= rate * n:
        return math.inf
    low, high = 1.0, 2.0
    while binomial_tail(x * high, n * high, rate)[0] > allowed and high < 1e6:
        low, high = high, 2 * high
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if binomial_tail(x * middle, n * middle, rate)[0] <= allowed else (middle, high)
    return high if high < 1e6 else math.inf


@dataclass(frozen=True, slots=True)
class Policy:
    """Both promises together: `verdict(score)` is match, new or review. Each holds with its own confidence."""

    matches: Promise
    new: Promise

    def verdict(self, score: float) -> Verdict:
        """What to do with a query whose best animal scores `score`."""
        return verdict(score, self.matches.threshold, self.new.threshold)

    @property
    def automatic(self) -> float:
        """Expected share of queries that no person has to look at."""
        return self.matches.automatic + self.new.automatic

    def within(self, threshold: float) -> float:
        """`threshold` moved between `new_at` and `match_at`, so that the order of labels agrees with the verdict."""
        if self.new.threshold is not None:
            threshold = max(threshold, self.new.threshold)
        return threshold if self.matches.threshold is None else min(threshold, self.matches.threshold)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not a number becomes null."""
        return {name: _plain(asdict(one)) for name, one in (("matches", self.matches), ("new", self.new))}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Policy:
        """Inverse of `to_dict`. KeyError or TypeError for what it cannot have written."""
        return cls(Promise(**_numbers(raw["matches"])), Promise(**_numbers(raw["new"])))


_MAY_LACK = ("threshold", "needed")  # None means something there; elsewhere it stands for "not a number"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: math.nan if v is None and k not in _MAY_LACK else v for k, v in values.items()}


def choose_policy(
    cases: Cases,
    false_match: float = 0.01,
    false_new: float = 0.05,
    confidence: float = 0.95,
    new_share: float = DEFAULT_NEW_SHARE,
) -> Policy:
    """Thresholds that decide as many queries as the two rates allow; what cannot be promised is left to review."""
    matches = promise_matches(cases, false_match, confidence, new_share)
    return Policy(matches, promise_new(cases, false_new, confidence, new_share, matches.threshold))
