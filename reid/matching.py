"""Descriptors of two crops → which rows look alike: nearest neighbours with a ratio test, by one matrix product.

Knows arrays. Must not know keypoints' places, geometry or identities. Settings choose among `reid.verify.MATCHERS`.

Convention: a match is a row of the query and a row of the candidate; no row of the query is matched twice. Source:
Lowe (IJCV 2004).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """`query (M,)` and `candidate (M,) int32` rows that look alike; `weight (M,) float32` ≥ 0, how much each one
    says."""

    query: Ints
    candidate: Ints
    weight: Floats

    def __len__(self) -> int:
        return len(self.query)


def ratio_matches(query: Floats, candidate: Floats, ratio: float) -> Matches:
    """Nearest neighbours that are nearer than `ratio` times the second; `query (N, 129)`, `candidate (M, 129)` as
    `extended` makes them."""
    if not len(query) or len(candidate) < 2:
        return _no_matches()
    nearest, ratios, _ = _two_nearest(query, candidate)
    rows = np.flatnonzero(ratios < ratio) if ratio < 1 else np.arange(len(query))
    return Matches(rows.astype(np.int32), nearest[rows].astype(np.int32), (1 - ratios[rows]).astype(np.float32))


def mutual_matches(query: Floats, candidate: Floats, ratio: float) -> Matches:
    """As `ratio_matches`, and the query is also the nearest of its match: the transposed check of systems of 2019."""
    if not len(query) or len(candidate) < 2:
        return _no_matches()
    nearest, ratios, back = _two_nearest(query, candidate, transposed=True)
    kept = (ratios < ratio) | (ratio >= 1)
    rows = np.flatnonzero(kept & (back[nearest] == np.arange(len(query))))
    return Matches(rows.astype(np.int32), nearest[rows].astype(np.int32), (1 - ratios[rows]).astype(np.float32))


def extended(descriptors: NDArray[np.uint8], query_side: bool = False) -> Floats:
    """`(N, 128) uint8 → (N, 129) float32` such that a row of the query side times a row of the other is a·b − ‖b‖²/2.

    The nearest neighbour is then the largest product, and one matrix product finds it. All entries are integers or
    halves below 2²⁴, so the products are exact.
    """
    out = np.empty((len(descriptors), descriptors.shape[1] + 1), np.float32)
    out[:, :-1] = descriptors
    out[:, -1] = -1.0 if query_side else 0.5 * np.einsum("nd,nd->n", out[:, :-1], out[:, :-1])
    return out


def _two_nearest(
    query: Floats, candidate: Floats, transposed: bool = False
) -> tuple[NDArray[np.intp], Floats, NDArray[np.intp]]:
    """For each query row its nearest candidate, the ratio of nearest to second distance, and (if asked) each
    candidate's nearest query row."""
    product = query @ candidate.T
    back = np.empty(0, np.intp)
    squares = np.einsum("nd,nd->n", query[:, :-1], query[:, :-1])
    if transposed:
        back = np.argmax(product - 0.5 * squares[:, None], axis=0)
    rows = np.arange(len(query))
    nearest = np.argmax(product, axis=1)
    best = product[rows, nearest]
    product[rows, nearest] = -np.inf
    second = product.max(axis=1)
    near, far = (np.sqrt(np.maximum(squares - 2 * value, 0.0)) for value in (best, second))
    return nearest, (near / np.maximum(far, 1e-6)).astype(np.float32), back


def _no_matches() -> Matches:
    none = np.zeros(0, np.int32)
    return Matches(none, none, np.zeros(0, np.float32))
