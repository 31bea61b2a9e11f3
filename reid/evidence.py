"""Everything that is known of a query and its shortlist → one row of numbers a candidate, for the validator to weigh.

A pair's geometry alone says too little: how much better it fits than the other candidates' says more, and a vote or a
cosine likewise. So each source is given as it is and relative to the shortlist. Knows arrays and `Verification`s.
Must not know identities, or what the numbers mean for a decision.

Row i of the result belongs to candidate i throughout; NaN is unknown, and the trees can live with it. The idea of
feeding the neighbours' standing to boosted trees is the seventh place's of Happywhale 2022; votes are those of
`reid.index.local`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.errors import InputError
from reid.verify import FEATURE_NAMES, Verification

STANDING = 5
"""A source's value is also given relative to that of the candidate at this place."""

EVIDENCE_NAMES = (
    *FEATURE_NAMES,
    *(
        f"{source}_{what}"
        for source in ("votes", "weight", "inliers", "cosine")
        for what in ("value", "share", "gap", "rank")
    ),
)
"""Entries of a row. Of each source: `value`, `share` of the best candidate's, `gap` to the fifth best candidate's,
`rank` from 0."""


def evidence(verified: Sequence[Verification], votes: ArrayLike, cosine: ArrayLike) -> NDArray[np.float32]:
    """`(C, len(EVIDENCE_NAMES)) float32` for the C candidates of one query.

    `votes (C,)` from the local index, 0 where it gave none; `cosine (C,)` of the embeddings, NaN where it is not
    known. Votes, inliers and weights enter as square roots, which evens out crops with many keypoints. `InputError`
    where the lengths differ.
    """
    count = len(verified)
    vote, near = np.asarray(votes, np.float64), np.asarray(cosine, np.float64)
    if vote.shape != (count,) or near.shape != (count,):
        raise InputError(
            f"{count} verified candidates, votes {vote.shape}, cosines {near.shape}", next_step="give one of each"
        )
    if count == 0:
        return np.zeros((0, len(EVIDENCE_NAMES)), np.float32)
    weight = np.sqrt([each.weight for each in verified])
    inliers = np.sqrt([each.inliers for each in verified])
    columns = [np.stack([each.features for each in verified]).astype(np.float64)]
    columns += [standing(source) for source in (np.sqrt(np.maximum(vote, 0)), weight, inliers, near)]
    return np.concatenate(columns, axis=1).astype(np.float32)


def standing(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`values (C,)` → `(C, 4)`: value, share of the best, gap to the fifth best (to the last where there are fewer),
    rank; NaN stays NaN."""
    out = np.full((len(values), 4), np.nan)
    known = np.isfinite(values)
    if not known.any():
        return out
    kept = values[known]
    descending = np.sort(kept)[::-1]
    best, reference = descending[0], descending[min(STANDING, len(kept)) - 1]
    share = kept / best if best > 0 else np.zeros_like(kept)
    rank = np.searchsorted(-descending, -kept, side="left")
    out[known] = np.stack([kept, share, kept - reference, rank], axis=1)
    return out


def untrained(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """A score `(C,)` from `evidence` rows for a store that has nothing to train on: higher is likelier the same
    animal, in no unit.

    Geometry leads, votes break ties, and the cosine where there are neither.
    """
    column = {name: rows[:, at].astype(np.float64) for at, name in enumerate(EVIDENCE_NAMES)}
    weight, votes = column["weight_value"] ** 2, column["votes_value"]
    return np.asarray(weight + 0.05 * votes + 1e-3 * np.nan_to_num(column["cosine_value"]), np.float64)
