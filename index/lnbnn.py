"""Neighbours of descriptors → votes for photos: local naive Bayes nearest neighbour, as pure functions on arrays.

Knows distances and codes. Must not know how the neighbours were found, faiss, files or string ids.

Conventions: `distance (Q, k) float32` ascends along each row; `photo (Q, k) int` is the photo that owns each
neighbour, −1 where there is none (its distance counts as infinite). `name (P,) int` gives the identity of each photo;
photos of unknown identity have names of their own.

Source: McCann & Lowe, Local naive Bayes nearest neighbor for image classification (CVPR 2012): a neighbour that is
nearer than the background speaks for its class by the difference. As in HotSpotter (Crall et al., WACV 2013) the
background is the nearest descriptor of *another* identity: where photos of one animal hold many neighbours, they do
not normalise each other away.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.int32]


def match_weights(distance: Floats, photo: Codes, name: Codes, voters: int) -> Floats:
    """`(Q, voters) float32` ≥ 0: what each of the nearest neighbours says for its photo.

    The weight of neighbour t is d(n) − d(t), where n is the first neighbour after t of another name than t's; where
    the k found hold none, the last one found stands in, which understates the weight. A neighbour whose photo has a
    nearer neighbour in the row says nothing: a descriptor speaks once for a photo. Neighbours that are missing weigh 0.
    """
    count, k = distance.shape
    weights = np.zeros((count, min(voters, k)), np.float32)
    if count == 0 or k == 0:
        return weights
    present = photo >= 0
    names = np.where(present, name[photo] if len(name) else photo, -1)
    last = np.maximum(present.sum(axis=1) - 1, 0)
    farthest = distance[np.arange(count), last]
    for t in range(weights.shape[1]):
        later = present[:, t + 1 :] & (names[:, t + 1 :] != names[:, [t]])
        first = later.argmax(axis=1) + t + 1 if later.shape[1] else np.full(count, t)
        first = np.minimum(first, k - 1)
        beyond = np.where(later.any(axis=1), distance[np.arange(count), first], farthest)
        heard = present[:, t] & ~(photo[:, :t] == photo[:, [t]]).any(axis=1)
        weights[heard, t] = np.maximum(beyond[heard] - distance[heard, t], 0)
    return weights


def photo_votes(weights: Floats, photo: Codes, n_photos: int) -> Floats:
    """Sum of the weights for each photo `(n_photos,) float32`; `weights (Q, t)` and `photo (Q, ≥ t)`."""
    owners = photo[:, : weights.shape[1]]
    present = owners >= 0
    return np.bincount(owners[present], weights[present].astype(np.float64), minlength=n_photos).astype(np.float32)


def name_votes(weights: Floats, photo: Codes, name: Codes, n_names: int) -> Floats:
    """Sum of the weights for each name `(n_names,) float32`, where a descriptor speaks once for a name: by its
    nearest neighbour there."""
    total = np.zeros(n_names, np.float64)
    seen: list[Codes] = []
    for t in range(weights.shape[1]):
        present = photo[:, t] >= 0
        names = np.where(present, name[photo[:, t]], -1).astype(np.int32)
        for earlier in seen:
            present &= names != earlier
        total += np.bincount(names[present], weights[present, t].astype(np.float64), minlength=n_names)
        seen.append(names)
    return total.astype(np.float32)
