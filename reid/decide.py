"""From identity scores to an answer: five labels, the new individual among them.

Pure functions on scores and labels; knows nothing of photos, stores or models, and not how a threshold is found
(`reid.thresholds`). An animal is put before the new individual when `score >= threshold`.

Source: `new_whale` inserted at a threshold (all teams of the Kaggle challenge of 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

LABELS = 5  # labels in an answer
# Cosine, used where the gallery is too small to measure one and the model's card says none: with the plain means of
# ImageNet EfficientNet-lite0's last map, nine in ten left-out animals stay below it (.870 on flukes, .881 on nyala).
DEFAULT_THRESHOLD = 0.88
DEFAULT_NEW_SHARE = 0.3  # of photos that show an animal not in the gallery; the Kaggle test set had .276


def place_of_new(scores: ArrayLike, threshold: float) -> int:
    """How many known animals stand before the new individual, given their `scores (M,)`, best first."""
    return int((np.asarray(scores, dtype=np.float64) >= threshold).sum())


def insert_new(
    labels: Sequence[str], scores: ArrayLike, threshold: float, new_label: str, k: int = LABELS
) -> tuple[str, ...]:
    """The first k of: animals scoring at or above `threshold`, the new individual, the other animals.

    `labels` and `scores (M,)` best first. With k animals or more above the threshold the new individual falls off the
    end. Raises ValueError when the lists differ in length, are out of order, or an animal bears the new individual's
    name.
    """
    score = np.asarray(scores, dtype=np.float64)
    if score.shape != (len(labels),):
        raise ValueError(f"{len(labels)} labels but scores {score.shape}: one score a label")
    if (np.diff(score) > 0).any():
        raise ValueError("scores rise along the list: expected best first")
    if new_label in labels:
        raise ValueError(f"an animal is called '{new_label}', the name for new ones: photos of nobody carry no name")
    before = place_of_new(score, threshold)
    return (*labels[:before], new_label, *labels[before:])[:k]


def status_of(labels: Sequence[str], new_label: str) -> Literal["match", "new"]:
    """`new` when the new individual comes first, else `match`. ValueError for an empty list: that is no answer."""
    if not labels:
        raise ValueError("no labels: without candidates the answer is `no_candidates`, not `new`")
    return "new" if labels[0] == new_label else "match"


def clearly_beyond(score: float, threshold: float) -> bool:
    """Whether a score lies at least half the way from a threshold to 1, the score of a photo with itself.

    Asked of a match where the threshold was not measured on this gallery: what is barely beyond it may be owed to
    photos unlike those it comes from.
    """
    return score >= threshold + (1.0 - threshold) / 2
