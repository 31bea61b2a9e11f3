"""The noise ladder: how random pairs are at first, how hard in the end, and how fast is learnt meanwhile.

A random number K·U[0,1) is added to every score before photos are set against each other (`reid.train.mining`). A large
K makes the pairs random, one below the scores' own range leaves them hard.

Source: the schedule of the public Siamese kernels of the Humpback Whale Identification challenge (M. Piotte, 2018).
Knows numbers only.
"""

from __future__ import annotations

from dataclasses import dataclass

AMONG = 32
"""Other photos of which a negative is the hardest, unless said otherwise: the very hardest unteach what a cosine knows."""


@dataclass(frozen=True, slots=True)
class Step:
    """How to train at one epoch: `noise` K is added to scores as K·U[0,1) before the assignment; `rescore` asks for
    fresh scores.
    """

    noise: float
    learning_rate: float
    weight_decay: float
    rescore: bool


def step_at(epoch: int, total: int = 400) -> Step:
    """The step at `epoch` (from 0) of a run of `total` epochs; 400 gives the original ladder, other lengths squeeze or
    stretch it.

    The noise starts so large that pairs are random, falls to a hundredth of the first steps and ends below the scores'
    own range, while the learning rate falls with it; the second part repeats the end of the ladder with L2 on the
    weights. Scores are renewed every fifth epoch of the original's time, at least once in each of its stages."""
    if not 0 <= epoch < total:
        raise ValueError(f"epoch {epoch} lies outside 0 … {total - 1}")
    at = epoch * 400 / total
    noise, learning_rate, weight_decay = _ladder(at)
    before = (epoch - 1) * 400 / total
    fresh = epoch == 0 or int(at // 5) != int(before // 5)
    return Step(noise, learning_rate, weight_decay, fresh)


def least_noise(photos: int, among: int) -> float:
    """The K at which an assignment over `photos` takes for each about the hardest of `among` others; 0 for all of them.

    Of `photos` numbers K·U[0,1) the largest lie K/photos apart, so about photos/K of them are within 1, the range of
    scores, of the largest, and the score decides between these.
    """
    return photos / among if among else 0.0


def noise_at(done: float) -> float:
    """K when a share `done` of a training is over."""
    return _ladder(min(max(done, 0.0), 1.0) * 400)[0]


def _ladder(at: float) -> tuple[float, float, float]:
    """(noise, learning rate, weight decay) at epoch `at` of the 400."""
    if at < 10:
        return 1000.0, 64e-5, 0.0
    if at < 60:
        return 100.0 * 10.0 ** (-0.2 * ((at - 10) // 5)), 64e-5, 0.0
    decay, since = (0.0, at - 100.0) if at < 250 else (2e-4, at - 250.0)
    if since < 50:
        return 1.0, 64e-5, decay
    if since < 100:
        return 0.5, 16e-5, decay
    return 0.25, 4e-5 if since < 140 else 1e-5, decay
