"""Spherical k-means: centres of unit rows, by cosine (Dhillon and Modha 2001). Knows arrays only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 8192  # rows compared with all centres at a time


def centres(rows: NDArray[np.float32], k: int, *, rounds: int = 6, seed: int = 0) -> NDArray[np.float32]:
    """`(k, D) float32` unit centres of `rows (n, D)`, n ≥ k; the same for the same rows and seed.

    Starts from random rows; a centre that loses all its rows starts again from the row that is worst represented.
    """
    if len(rows) < k:
        raise ValueError(f"{k} centres of {len(rows)} rows")
    found = rows[np.random.default_rng(seed).choice(len(rows), k, replace=False)].copy()
    for _ in range(rounds):
        closest, similarity = _compare(rows, found)
        order = np.argsort(closest, kind="stable")
        counts = np.bincount(closest, minlength=k)
        filled = np.flatnonzero(counts)
        starts = (np.cumsum(counts) - counts)[filled]
        found[filled] = np.add.reduceat(rows[order], starts, axis=0)
        empty = np.flatnonzero(counts == 0)
        found[empty] = rows[np.argsort(similarity)[: len(empty)]]
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return found


def nearest(rows: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """`(n,) int64`: the centre of greatest cosine for each of `rows (n, D)`."""
    return _compare(rows, centres)[0]


def _compare(rows: NDArray[np.float32], centres: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The nearest centre of each row, and its cosine."""
    closest = np.empty(len(rows), np.int64)
    similarity = np.empty(len(rows), np.float32)
    for low in range(0, len(rows), _BLOCK):
        products = rows[low : low + _BLOCK] @ centres.T
        closest[low : low + _BLOCK] = products.argmax(axis=1)
        similarity[low : low + _BLOCK] = products.max(axis=1)
    return closest, similarity
