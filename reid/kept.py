"""Promised error rates against queries whose animals are known: what was promised by left-out photos, and what came of it.

Knows scores and thresholds; no photos, no stores.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from reid import promise
from reid.intervals import clopper_pearson
from reid.risk import Cases, accepted_shares


@dataclass(frozen=True, slots=True)
class Kept:
    """One promised rate of false matches: the threshold, None where it was refused, with the `reason`; of `queries`
    `given` were answered as a match, `wrong` of these with another animal, or where there was none: a `measured` share
    with its exact 95 % interval (NaN without any). `automatic` is the share answered so in the expected mixture of known
    and new animals, where `queries` are another.
    """

    rate: float
    threshold: float | None
    reason: str
    queries: int
    given: int = 0
    wrong: int = 0
    measured: float = math.nan
    low: float = math.nan
    high: float = math.nan
    automatic: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes null."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self).items()
        }


def kept(left_out: Cases, asked: Cases, rate: float, new_share: float) -> Kept:
    """Promise `rate` by `left_out`, and count on `asked`. Both rates lie in (0, 1): `ValueError`."""
    made = promise.promise_matches(left_out, rate, new_share=new_share)
    queries = len(asked.known_score) + len(asked.unknown_score)
    if made.threshold is None:
        return Kept(rate, None, made.reason, queries)
    at = made.threshold
    known, unknown = asked.known_score >= at, asked.unknown_score >= at
    given = int(known.sum() + unknown.sum())
    wrong = int((known & asked.known_wrong).sum() + unknown.sum())
    low, high = (float(bound[0]) for bound in clopper_pearson(wrong, given)) if given else (math.nan, math.nan)
    share = float(accepted_shares(asked, new_share, np.array([at]))[0][0])
    return Kept(rate, at, made.reason, queries, given, wrong, wrong / given if given else math.nan, low, high, share)
