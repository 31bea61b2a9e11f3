"""Unit rows to fill galleries with, and what a gallery must hold."""

from __future__ import annotations

import numpy as np

from reid.index import Gallery

DIM = 8


def unit_rows(n: int, dim: int, seed: int) -> np.ndarray:
    """Random rows of length one, `(n, dim)` float32."""
    values = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def rows(n: int, seed: int) -> np.ndarray:
    """Rows for the fixture `gallery`."""
    return unit_rows(n, DIM, seed)


def holds(gallery: Gallery, store: dict[str, np.ndarray]) -> bool:
    """Whether the gallery has exactly these ids and, rounded to half precision, these vectors."""
    ids = sorted(store)
    if gallery.ids() != ids or len(gallery) != len(ids) or gallery.count != len(ids):
        return False
    if not ids:
        return True
    stored = np.stack([store[id] for id in ids]).astype(np.float16).astype(np.float32)
    return np.array_equal(gallery.vectors(ids), stored)
