"""What photos of nobody known are taken for by a trained model: the targets that a recipe may teach instead of 1/C.

    teacher's vectors of all photos, upright and mirrored → each class's mean → cosines / heat → softmax

The ninth place of Humpback Whale Identification 2019 taught its new whales uniform scores first and, once there was an
ensemble, what that made of them. A class is a known animal, or its mirror image where the recipe counts those apart. Only
photos that are trained on make the means.

Knows model directories, photos as sources and identities as numbers; what is learnt is the business of
`reid.train.losses`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid import ensemble, models
from reid.embed import unit_rows
from reid.errors import ConfigError
from reid.train import features
from reid.train.features import Source

IntArray = NDArray[np.int64]
FOLDER = "teacher"  # in a training's folder, as long as it runs: the teacher's vectors


class Teacher:
    """Softened class probabilities of photos. `vectors (N, 2, D)` are its unit rows of each, upright and mirrored
    (zeros: not known); `codes (N,)` identities from 0, −1 for none, −2 for what is not to be used.
    """

    def __init__(
        self, vectors: NDArray[np.float16], codes: IntArray, heat: float, *, by_class: bool, mirrors: bool = True
    ) -> None:
        """`by_class`: mirrored photos are classes of their own, behind the others; else `mirrors` says whether they are
        photos of their animal at all. `heat` divides the cosines.
        """
        self.vectors, self.heat = vectors, heat
        known = np.flatnonzero(codes >= 0)
        total = np.zeros((2, int(codes.max()) + 1, vectors.shape[2]), np.float32)
        for turned in range(2):
            np.add.at(total[turned], codes[known], vectors[known, turned].astype(np.float32))
        found = total.reshape(-1, total.shape[2]) if by_class else total[: 1 + mirrors].sum(0)
        self.means = unit_rows(found)

    def targets(self, rows: IntArray, turned: NDArray[np.bool_]) -> NDArray[np.float32]:
        """`(k, C) float32`: what each of the photos `rows (k,)`, mirrored or not, is taken for; each sums to 1."""
        seen = self.vectors[rows, turned.astype(np.int64)].astype(np.float32)
        logits = seen @ self.means.T / self.heat
        shares = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(shares / shares.sum(1, keepdims=True), np.float32)


def found(name: str) -> Path:
    """The teacher's model directory.

    Raises:
        ConfigError: it is none.
    """
    folder = Path(name)
    if not (folder / models.CARD).is_file():
        raise ConfigError(
            f"no model '{name}' to teach what photos without a name are taken for",
            next_step='name a model directory as [sampling] teacher, or write new_targets = "uniform"',
        )
    return folder


def look(
    folder: Path, sources: Sequence[Source], aside: Path, *, threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float16]:  # fmt: skip
    """The vectors `(N, 2, D)` of the model directory `folder` (an ensemble's, too) of all sources; they are kept in
    `aside`, so that an interrupted training need not ask again.
    """
    embedder = ensemble.open_embedder(folder, threads=threads)
    kept = features.cached(sources, embedder, aside, views=1, progress=progress)
    vectors = np.zeros((len(sources), 2, embedder.card.dim), np.float16)
    vectors[kept.rows] = kept.vectors[:, 0]
    return vectors
