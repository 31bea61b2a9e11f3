"""Shrunk PCA-whitening: what all photos of a gallery share is turned down, what tells its animals apart is turned up.

Fitted on the gallery's own vectors without labels (Jégou & Chum 2012, ECCV, whitening; shrinkage as Ledoit & Wolf 2004
motivate it). A fit belongs to one model and one kind of animal; it outlives the photos it was made on, so it is renewed
rarely. Knows arrays and one file format: an `.npz` of two float32 arrays, read without unpickling. docs/experiments/embedder.md has
the measurements.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid.errors import SnapshotCorrupt

LEAST_PHOTOS = 400  # fewer gave no sure gain on any set tried
LEAST_WITHIN = 100  # photos beyond the first of their animal, from which on it counts how an animal's photos differ
WITHIN_SHRINK = 0.3  # share of the mean variance within animals that is added in every direction
MOST_PHOTOS = 20_000  # a random sample of so many is as good as all
DIMENSIONS = 512
LONG, LONG_FROM = 1024, 2048  # numbers kept of vectors that have so many, in galleries below `MANY` photos
MANY = 30_000
SHRINK = 0.5  # share of the mean variance mixed into each axis'; 0 whitens fully, 1 only rotates

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Whitening:
    """`mean (D,)` and `axes (D, d)`, float32: a unit row v becomes the unit row along (v − mean) · axes."""

    mean: Vectors
    axes: Vectors

    @property
    def dim(self) -> int:
        """Length of a whitened vector."""
        return int(self.axes.shape[1])

    @property
    def name(self) -> str:
        """16 hex digits over both arrays."""
        return hashlib.sha256(self.mean.tobytes() + self.axes.tobytes()).hexdigest()[:16]

    def apply(self, vectors: Vectors) -> Vectors:
        """`(N, D) → (N, d)` float32 unit rows."""
        turned = (vectors - self.mean) @ self.axes
        return np.asarray(turned / np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-12), np.float32)


def fit(
    vectors: Vectors,
    individuals: NDArray[np.int64] | None = None,
    *,
    least: int = LEAST_PHOTOS,
    dimensions: int = 0,
    shrink: float = SHRINK,
    share: float = 1.0,
    seed: int = 0,
) -> Whitening | None:
    """The whitening of unit rows `vectors (N, D)`, or None where N is below `least`. At most `MOST_PHOTOS` of
    them are used. `dimensions` 0 are those that `dimensions_of` gives.

    With `individuals (N,)` (−1 unknown), directions in which photos of one animal differ are turned down as well, as
    far as there are photos enough to see them.

    With `share` below 1 the product of two vectors (before they are brought to unit length) is `share` times the whitened
    product and 1 − `share` times that of the vectors without their mean, within the kept axes, of equal strength on
    average. A network that has learnt a gallery's own animals needs less whitening than one that has not.
    """
    if len(vectors) < least:
        return None
    dimensions = dimensions or dimensions_of(len(vectors), vectors.shape[1])
    if len(vectors) > MOST_PHOTOS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(vectors), MOST_PHOTOS, replace=False))
        vectors = vectors[chosen]
        individuals = None if individuals is None else individuals[chosen]
    mean = vectors.mean(0, dtype=np.float64).astype(np.float32)
    centred = vectors - mean
    d = min(dimensions, len(vectors) - 1, vectors.shape[1])
    if len(vectors) <= vectors.shape[1]:  # the small matrix of products has the same spectrum
        values, left = _largest(centred @ centred.T, d)
        values, left = np.maximum(values, 1e-12), left
        axes = (centred.T @ left.astype(np.float32)) / np.sqrt(values).astype(np.float32)
    else:
        values, right = _largest(centred.T @ centred, d)
        values, axes = np.maximum(values, 1e-12), right.astype(np.float32)
    variances = values / (len(vectors) - 1)
    scale = np.sqrt((1 - shrink) * variances + shrink * variances.mean())
    turned, axes = axes, axes / scale.astype(np.float32)
    if individuals is not None:
        axes = axes @ _within(centred @ axes, individuals)
    if share < 1:
        axes = turned @ _mixed(centred @ turned, turned.T @ axes, share)
    return Whitening(mean, np.ascontiguousarray(axes, np.float32))


def dimensions_of(photos: int, numbers: int) -> int:
    """Of vectors of so many numbers, how many a gallery of so many photos keeps: more of long ones, which find more by
    it, where memory allows (docs/experiments/embedder.md).
    """
    return LONG if numbers >= LONG_FROM and photos < MANY else DIMENSIONS


def _within(rows: Vectors, individuals: NDArray[np.int64]) -> Vectors:
    """`(d, d)`: turns and scales `rows (N, d)` so that photos of one animal differ alike in all directions; the
    identity where too few animals have two photos.
    """
    d = rows.shape[1]
    _, code, counts = np.unique(individuals, return_inverse=True, return_counts=True)
    several = (individuals >= 0) & (counts[code] > 1)
    animals, code = np.unique(code[several], return_inverse=True)
    free = int(several.sum()) - len(animals)
    if free < LEAST_WITHIN:
        return np.eye(d, dtype=np.float32)
    sums = np.zeros((len(animals), d))
    np.add.at(sums, code, rows[several])
    rest = rows[several] - (sums / np.bincount(code)[:, None])[code]
    scatter = (rest.T @ rest).astype(np.float64) / free
    scatter += WITHIN_SHRINK * np.trace(scatter) / d * np.eye(d)
    values, turn = np.linalg.eigh(scatter)
    return np.asarray(turn / np.sqrt(values), np.float32)


def _mixed(rows: Vectors, white: Vectors, share: float) -> Vectors:
    """`(d, d)`: products of `rows (N, d)` turned by it are `share` times those turned by `white (d, d)` and 1 − `share`
    times their own, both of the same mean square.
    """
    strength = np.square(rows).sum(dtype=np.float64) / max(np.square(rows @ white).sum(dtype=np.float64), 1e-30)
    product = (1 - share) * np.eye(len(white)) + share * strength * (white @ white.T).astype(np.float64)
    values, turn = np.linalg.eigh((product + product.T) / 2)
    return np.asarray(turn * np.sqrt(np.maximum(values, 0)), np.float32)


def _largest(symmetric: Vectors, d: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The d largest eigenvalues of a symmetric matrix `(n, n)`, falling, and their vectors `(n, d)`."""
    from scipy.linalg import eigh  # only when fitting: it costs a quarter of a second to import

    n = len(symmetric)
    values, vectors = eigh(
        symmetric.astype(np.float64), subset_by_index=[n - d, n - 1], overwrite_a=True, check_finite=False
    )
    return values[::-1], vectors[:, ::-1]


def to_bytes(whitening: Whitening) -> bytes:
    """The file's content."""
    file = io.BytesIO()
    np.savez(file, mean=whitening.mean, axes=whitening.axes)
    return file.getvalue()


def read(path: Path) -> Whitening:
    """The whitening kept at `path`.

    Raises:
        SnapshotCorrupt: the file is missing, or not what was written.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            found = Whitening(arrays["mean"], arrays["axes"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise SnapshotCorrupt(
            "the gallery's whitening cannot be read", source=str(path), next_step="reid reindex"
        ) from error
    if found.name not in path.name:
        raise SnapshotCorrupt("the gallery's whitening was changed", source=str(path), next_step="reid reindex")
    return found
