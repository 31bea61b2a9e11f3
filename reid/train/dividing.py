"""Clusters of animals, of which each trains its own part of a divided vector (Sanakoyeu et al. 2019, arXiv 1906.05990).

Clusters found anew get the numbers of those that they have most photos in common with: with numbers by chance, every part
would begin again with other animals. Knows vectors, and identities as numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
_LEAST = 2  # animals of a cluster: one alone has nobody to be told from


def clusters(rows: NDArray[np.float32], codes: IntArray, k: int, seed: int, before: IntArray | None = None) -> IntArray:
    """The cluster of each photo, `(M,)`, of unit `rows (M, D)` of animals `codes (M,)` from 0 on, 2·k of them or more. An
    animal is in the one that has most of its photos; no cluster has fewer than two. `before (M,)` are the clusters that
    the new ones go on from.
    """
    from sklearn.cluster import KMeans

    means = KMeans(k, n_init=1, random_state=seed).fit(rows)
    votes = np.zeros((int(codes.max()) + 1, k))
    np.add.at(votes, (codes, means.labels_), 1)
    apart = np.zeros_like(votes)
    np.add.at(apart, codes, means.transform(rows))
    apart /= votes.sum(1, keepdims=True)
    own = votes.argmax(1)
    for poor in range(k):
        while (sizes := np.bincount(own, minlength=k))[poor] < _LEAST:
            spare = np.flatnonzero(sizes[own] > _LEAST)
            own[spare[apart[spare, poor].argmin()]] = poor
    found: IntArray = own[codes]
    return found if before is None else renamed(found, before, k)


def renamed(found: IntArray, before: IntArray, k: int) -> IntArray:
    """Clusters `found (M,)` by the numbers of those `before (M,)`, so that the shares of photos in common, of all in
    either, are largest in sum.
    """
    from scipy.optimize import linear_sum_assignment

    common = np.zeros((k, k))
    np.add.at(common, (found, before), 1)
    either = common.sum(1)[:, None] + common.sum(0)[None] - common
    numbers: IntArray = linear_sum_assignment(-common / np.maximum(either, 1))[1].astype(np.int64)
    return numbers[found]
