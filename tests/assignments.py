"""Photos in clusters to set against each other, and what an assignment of negatives must be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def total(scores: NDArray[np.float64], partner: NDArray[np.int64]) -> float:
    return float(scores[np.arange(len(partner)), partner].sum())


def check_negatives(partner: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
    assert sorted(partner) == list(range(len(labels)))
    assert (labels[partner] != labels).all()


def clustered(
    n_identities: int, sizes: NDArray[np.int64], dim: int = 16, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit vectors in clusters, identities of the given sizes."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(n_identities), sizes)
    vectors = rng.normal(size=(n_identities, dim))[labels] + 0.7 * rng.normal(size=(len(labels), dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels
