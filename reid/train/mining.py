"""Which photos to set against each other: hard negatives by linear assignment, positives by derangement.

Learning from random pairs of animals is slow, because most differ at a glance. The linear assignment problem (LAP)
pairs every photo with a photo of *another* animal, each used exactly once on either side, so that the total score is as
high as it can be: hard pairs, and balanced over photos. Three ways to solve it: `assign_hard_negatives` (exact, a
matrix of N² float64), `assign_in_blocks` (exact inside random blocks) and `assign_sparse` (over each photo's nearest
other-identity neighbours, no N² matrix).

Conventions: `labels (N,)` are identities of any sortable type. An assignment is `partner (N,) int64`, a permutation:
photo `i` is set against photo `partner[i]`. Scores are higher for more alike. `forbidden (P, 2) int` are unordered
pairs of photo numbers that must not be used. A photo is never its own partner, and a negative is never of the photo's
own identity: where that cannot be, `TrainError` is raised.

Source: the method is that of the public Siamese kernels of the Humpback Whale Identification challenge (M. Piotte,
2018). Knows arrays and labels only: no photos, no files, no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.errors import TrainError
from reid.train.assignment import (
    EdgeSolver,
    FloatArray,
    IntArray,
    codes_of,
    draw_costs,
    solve_dense,
    solve_edges,
)
from reid.train.listed_pairs import (
    ROTATIONS,
    TRIES,
    PairScores,
    edge_costs,
    exchanged,
    listed_edges,
    rotation,
    shuffled_by_identity,
    with_rotations,
    with_strays,
)
from reid.train.pricing import solve_priced

Solver = Literal["auto", "lap", "scipy", "priced"]
BlockScores = Callable[[IntArray], FloatArray]  # photo numbers (n,) → scores (n, n)

_MANY = 3000  # photos from which on pricing beats solving the whole matrix


# Negatives ------------------------------------------------------------------------------------------------------------


def assign_hard_negatives(
    scores: FloatArray,
    labels: ArrayLike,
    *,
    noise: float = 0.0,
    forbidden: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    solver: Solver = "auto",
) -> IntArray:
    """The permutation of photos with the highest total score in which no photo meets its own identity. (N,) int64.

    `scores (N, N)` of any float type; row i holds photo i's score against each other photo. `noise` K adds K·U[0,1) to
    every score (drawn from `rng`), which turns the hardest pairs into random ones as it grows past the scores' range.
    Needs a further N² float64.

    Raises:
        TrainError: an identity has more than half of the photos, `forbidden` leaves no assignment, or a score is not a
        number.
    """
    codes = codes_of(labels)
    if scores.shape != (len(codes), len(codes)):
        raise ValueError(f"scores {scores.shape} for {len(codes)} labels")
    check_sizes(labels)
    rng = rng or np.random.default_rng()
    costs = draw_costs(scores, codes, noise, _pairs(forbidden, len(codes)), rng)
    if solver == "priced" or (solver == "auto" and len(codes) >= _MANY):
        partner = solve_priced(costs, [rotation(codes, rng) for _ in range(ROTATIONS)])
    else:
        partner = solve_dense(costs, "scipy" if solver == "scipy" else "lap")
    if partner is None:
        raise _infeasible()
    return partner


def assign_in_blocks(
    scores: FloatArray | BlockScores,
    labels: ArrayLike,
    block_size: int,
    *,
    noise: float = 0.0,
    forbidden: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    solver: Solver = "auto",
) -> IntArray:
    """As `assign_hard_negatives`, inside random blocks of at most `block_size` photos: time and memory grow with
    N·block_size.

    `scores` may be a function of photo numbers, so that only the blocks' scores are ever computed. The photos of an
    identity are spread evenly over the blocks, which are drawn anew by every call.

    Raises:
        TrainError: as above, for one block.
    """
    codes = codes_of(labels)
    check_sizes(labels)
    rng = rng or np.random.default_rng()
    pairs = _pairs(forbidden, len(codes))
    partner = np.empty(len(codes), np.int64)
    for block in _blocks(codes, block_size, rng):
        inside = _renumber(pairs, block, len(codes))
        names = np.asarray(labels)[block]
        check_sizes(names, "photos of a block", "use larger blocks (`block` under [sampling] of the recipe)")
        part = scores(block) if callable(scores) else scores[np.ix_(block, block)]
        within = assign_hard_negatives(part, names, noise=noise, forbidden=inside, rng=rng, solver=solver)
        partner[block] = block[within]
    return partner


def assign_sparse(
    neighbours: NDArray[np.integer[Any]],
    scores: FloatArray,
    labels: ArrayLike,
    *,
    noise: float = 0.0,
    forbidden: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
    pair_scores: PairScores | None = None,
    solver: EdgeSolver = "auto",
) -> IntArray:
    """As `assign_hard_negatives`, but only over listed pairs: memory grows with N·k.

    `neighbours (N, k) int` lists, for each photo, others that score high (from the gallery index, say), −1 where a list
    has ended; `scores (N, k)` belong to them. Photos of the same identity and the photo itself may be listed and are
    passed over. A listed pair may be used in either direction. So that an assignment always exists, each photo also
    gets a few partners from random rotations of the photos sorted by identity; `pair_scores` says how those pairs
    score; without it they are used only where the lists leave a photo without a partner. `noise` then also lifts random
    pairs that are not listed, as it would over the whole matrix; without `pair_scores` it shuffles listed ones only.

    Raises:
        TrainError: an identity has more than half of the photos, `forbidden` leaves no assignment, or a score is not a
        number.
    """
    codes = codes_of(labels)
    if neighbours.shape != scores.shape or neighbours.ndim != 2 or len(neighbours) != len(codes):
        raise ValueError(f"neighbours {neighbours.shape} and scores {scores.shape} for {len(codes)} labels")
    check_sizes(labels)
    if not len(codes):
        return np.empty(0, np.int64)
    rng = rng or np.random.default_rng()
    pairs = _pairs(forbidden, len(codes))
    keys, value = listed_edges(neighbours, scores, codes, pairs)
    for _ in range(TRIES):
        if noise and pair_scores is not None:
            listed, noisy = with_strays(keys, value, codes, pairs, noise, rng, pair_scores)
        else:
            listed, noisy = keys, value + noise * rng.random(len(value))
        edges, value_of, feasible = with_rotations(listed, noisy, codes, pairs, rng, pair_scores)
        partner = solve_edges(edges, edge_costs(value_of, rng), len(codes), solver, feasible=feasible)
        if partner is not None:
            return partner
    raise _infeasible()


def random_negatives(labels: ArrayLike, rng: np.random.Generator, *, forbidden: ArrayLike | None = None) -> IntArray:
    """A random partner of another identity for every photo, each used once, no forbidden pair. (N,) int64. See
    `listed_pairs.rotation`: where that has a forbidden pair, two photos exchange partners.

    Raises:
        TrainError: an identity has more than half of the photos, or `forbidden` leaves no assignment that is found.
    """
    codes = codes_of(labels)
    check_sizes(labels)
    pairs = _pairs(forbidden, len(codes))
    if not len(pairs):
        return rotation(codes, rng)
    for _ in range(TRIES):
        partner = exchanged(rotation(codes, rng), codes, pairs, rng)
        if partner is not None:
            return partner
    raise _infeasible()


def check_sizes(
    labels: ArrayLike, of: str = "photos", remedy: str = "add photos of other animals, or take some of its photos out"
) -> None:
    """Raise TrainError unless every identity has at most half of the photos: with more, some must meet each other."""
    codes = codes_of(labels)
    if not len(codes):
        return
    counts = np.bincount(codes)
    largest = int(counts.argmax())
    if len(counts) == 1:
        raise TrainError(f"all {of} are of one identity, so there are no negatives", next_step=remedy)
    if 2 * counts[largest] > len(codes):
        name = np.asarray(labels)[np.flatnonzero(codes == largest)[0]]
        raise TrainError(
            f"identity '{name}' has {counts[largest]} of {len(codes)} {of}, "
            "more than half: they cannot all meet another animal",
            next_step=remedy,
        )


def forbid(forbidden: ArrayLike | None, partner: IntArray) -> IntArray:
    """`forbidden` with the pairs of an assignment added, `(P + N, 2) int64`: what the next epoch must not use again."""
    used = np.stack([np.arange(len(partner)), partner], axis=1)
    return used if forbidden is None else np.concatenate([np.asarray(forbidden, np.int64).reshape(-1, 2), used])


# Positives ------------------------------------------------------------------------------------------------------------


def derangements(labels: ArrayLike, rng: np.random.Generator) -> IntArray:
    """A partner of the same identity for every photo, never itself, each used once; every such arrangement equally
    likely. (N,) int64.

    Raises:
        TrainError: an identity has a single photo.
    """
    partner = np.empty(len(codes_of(labels)), np.int64)
    for members in _groups(labels):
        order = rng.permutation(members)
        while (order == members).any():  # a permutation has no fixed point with probability 1/e
            order = rng.permutation(members)
        partner[members] = order
    return partner


def assign_hard_positives(
    scores: FloatArray | BlockScores,
    labels: ArrayLike,
    *,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
) -> IntArray:
    """As `derangements`, but the arrangement with the *lowest* total score within each identity: pairs least alike.
    (N,) int64.

    `scores (N, N)`, or a function of photo numbers that is asked for one identity at a time. `noise` K adds K·U[0,1).

    Raises:
        TrainError: an identity has a single photo, or a score is not a number.
    """
    rng = rng or np.random.default_rng()
    partner = np.empty(len(codes_of(labels)), np.int64)
    for members in _groups(labels):
        part = scores(members) if callable(scores) else scores[np.ix_(members, members)]
        alone = np.arange(len(members))  # each photo its own identity: only the diagonal must not be
        within = solve_dense(draw_costs(-part, alone, noise, np.empty((0, 2), np.int64), rng))
        assert within is not None  # two photos or more
        partner[members] = members[within]
    return partner


# Inside ---------------------------------------------------------------------------------------------------------------


def _groups(labels: ArrayLike) -> list[IntArray]:
    """The photo numbers of each identity, two or more."""
    codes = codes_of(labels)
    order = np.argsort(codes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(codes) else []
    lonely = [group for group in groups if len(group) < 2]
    if lonely:
        raise TrainError(
            f"{len(lonely)} identities have a single photo (first: '{np.asarray(labels)[lonely[0][0]]}')",
            next_step="train on identities with two photos or more",
        )
    return groups


def _infeasible() -> TrainError:
    return TrainError(
        "the forbidden pairs leave no assignment of every photo to another animal",
        next_step="suspect fewer animals of being one (`suspect` nearer 1), or add photos of other animals",
    )


def _pairs(forbidden: ArrayLike | None, n: int) -> IntArray:
    """Forbidden pairs in both directions, `(2P, 2)`."""
    pairs = np.asarray([] if forbidden is None else forbidden, np.int64).reshape(-1, 2)
    if len(pairs) and not (0 <= pairs.min() and pairs.max() < n):
        raise ValueError(f"forbidden pairs name photos outside 0 … {n - 1}")
    return np.concatenate([pairs, pairs[:, ::-1]])


def _renumber(pairs: IntArray, block: IntArray, n: int) -> IntArray:
    """The pairs that lie inside `block`, in the block's own numbers."""
    place = np.full(n, -1, np.int64)
    place[block] = np.arange(len(block))
    inside: IntArray = place[pairs]
    return inside[(inside >= 0).all(axis=1)]


def _blocks(codes: IntArray, block_size: int, rng: np.random.Generator) -> list[IntArray]:
    """Random blocks of at most `block_size` photos and nearly equal size; each identity's photos are dealt out like
    cards.
    """
    if block_size < 2:
        raise ValueError(f"blocks of {block_size}: expected 2 photos or more")
    dealt = shuffled_by_identity(codes, rng)
    n_blocks = -(-len(codes) // block_size)
    return [np.sort(dealt[start::n_blocks]) for start in range(n_blocks)]
