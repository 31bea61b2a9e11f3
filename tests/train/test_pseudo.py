"""Names given by a model: where they are given, how right they are said to be, and what becomes of them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from reid.embed import unit_rows
from reid.errors import TrainError
from reid.train import pseudo
from reid.train.pseudo import Place, held_out, named, placed, rounds

ANIMALS, SHOTS, DIM = 30, 4, 24


def herd(noise: float, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Vectors, true animals (`SHOTS` photos of each, those from `ANIMALS` on are strangers with one) and sightings."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.repeat(np.arange(ANIMALS), SHOTS), np.arange(ANIMALS, ANIMALS + 10)])
    centres = rng.normal(size=(ANIMALS + 10, DIM))
    return (
        unit_rows((centres[truth] + rng.normal(0, noise, (len(truth), DIM))).astype(np.float32)),
        truth,
        np.arange(len(truth)),
    )


def setting(noise: float = 0.4) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The last photo of each animal and all strangers have no name."""
    vectors, truth, groups = herd(noise)
    codes = truth.copy()
    codes[SHOTS - 1 : ANIMALS * SHOTS : SHOTS] = -1
    codes[ANIMALS * SHOTS :] = -1
    return vectors, truth, codes, groups


def test_a_place_is_measured_as_loops_measure_it() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 8, 80)
    scores = np.eye(8)[truth] * 0.9 + rng.normal(0, 0.3, (80, 8))
    place = placed(scores, truth, least=0.8, share_new=0.3)
    hits = misses = strangers = given = 0
    for row, own in zip(scores, truth, strict=True):
        for case in ("known", "stranger"):
            listed = sorted(((v, i) for i, v in enumerate(row) if case == "known" or i != own), reverse=True)
            if listed[0][0] >= place.threshold and listed[0][0] - listed[1][0] >= place.gap:
                if case == "stranger":
                    strangers += 1
                else:
                    given += 1
                    hits += listed[0][1] == own
                    misses += listed[0][1] != own
    expected = 0.7 * hits / (0.7 * hits + 0.7 * misses + 0.3 * strangers + 1)
    assert place.precision == pytest.approx(expected) and place.precision >= 0.8
    assert place.judged == given and place.recall == pytest.approx(hits / 80)


def test_a_stricter_precision_names_fewer_and_strangers_count() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 8, 200)
    scores = np.eye(8)[truth] * 0.9 + rng.normal(0, 0.35, (200, 8))
    loose, strict = (placed(scores, truth, least=least, share_new=0.3) for least in (0.6, 0.93))
    assert strict.recall < loose.recall and strict.precision >= 0.93
    crowded = placed(scores, truth, least=0.8, share_new=0.7)
    assert crowded.recall < placed(scores, truth, least=0.8, share_new=0.0).recall


def test_names_are_given_from_the_threshold_on_where_the_best_leads() -> None:
    scores = np.array([[0.9, 0.1], [0.9, 0.85], [0.4, 0.1], [-np.inf, 0.9], [-np.inf, -np.inf]])
    rows, columns = named(scores, Place(0.5, 0.2, 1.0, 1.0, 10))
    assert rows.tolist() == [0, 3] and columns.tolist() == [0, 1]


def test_what_would_be_wrong_too_often_is_refused() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 8, 60)
    with pytest.raises(TrainError, match="90% are asked for"):
        placed(rng.normal(size=(60, 8)), truth, least=0.9, share_new=0.3)


def test_held_out_photos_are_one_of_an_animal_with_another_sighting() -> None:
    _, _, codes, groups = setting()
    taught = np.flatnonzero(codes >= 0)
    held = held_out(codes, groups, taught, seed=4)
    assert len(set(codes[held])) == len(held) == ANIMALS and set(held) <= set(taught)
    assert (held == held_out(codes, groups, taught, seed=4)).all()
    pairs = taught[codes[taught] < 12][np.arange(36) % 3 < 2]  # two sightings each of twelve animals
    assert len(held_out(codes, groups, pairs)) == pseudo.LEAST_HELD
    with pytest.raises(TrainError, match="needed"):
        held_out(codes, np.zeros(len(groups), np.int64), taught)


def test_rounds_name_photos_rightly_and_train_on_no_held_out_sighting() -> None:
    vectors, truth, codes, groups = setting()
    taught, unnamed = np.flatnonzero(codes >= 0), np.flatnonzero(codes < 0)
    held = held_out(codes, groups, taught, seed=0)
    lessons: list[tuple[set[int], dict[int, int]]] = []

    def teach(rows: NDArray[np.int64], given: NDArray[np.int64], number: int) -> NDArray[np.float32]:
        lessons.append((set(rows.tolist()), dict(zip(rows.tolist(), given.tolist(), strict=True))))
        return vectors

    found = rounds(teach, codes, groups, taught, unnamed, n=2, least=0.8, share_new=0.3)
    assert len(found) == len(lessons) == 2
    assert not lessons[0][0] & set(held.tolist()) and not lessons[1][0] & set(held.tolist())
    assert lessons[0][0] == set(taught.tolist()) - set(held.tolist())
    assert lessons[1][0] == lessons[0][0] | set(found[0].rows)
    assert all(lessons[1][1][row] == code for row, code in zip(found[0].rows, found[0].codes, strict=True))
    right = np.mean([truth[row] == code for row, code in zip(found[1].rows, found[1].codes, strict=True)])
    assert len(found[1].rows) >= ANIMALS // 2 and right >= 0.8
    assert (found[1].changed, found[1].lost) == (0, 0) and found[0].place.precision >= 0.8


def test_a_photo_may_change_or_lose_its_name() -> None:
    vectors, _, codes, groups = setting(noise=0.2)
    taught, unnamed = np.flatnonzero(codes >= 0), np.flatnonzero(codes < 0)

    def teach(rows: NDArray[np.int64], given: NDArray[np.int64], number: int) -> NDArray[np.float32]:
        if number == 0:
            return vectors
        moved = vectors.copy()
        moved[unnamed[0]] = vectors[unnamed[1]]  # looks like another animal now
        moved[unnamed[2]] = -vectors[unnamed[2]]  # like none
        return moved

    first, second = rounds(teach, codes, groups, taught, unnamed, n=2, least=0.8, share_new=0.3)
    before = dict(zip(first.rows, first.codes, strict=True))
    after = dict(zip(second.rows, second.codes, strict=True))
    assert before[int(unnamed[0])] == 0 and after[int(unnamed[0])] == 1 and int(unnamed[2]) not in after
    assert second.changed == 1 and second.lost >= 1 and pseudo.LEAST_JUDGED <= second.place.judged


def test_without_photos_to_name_there_is_nothing_to_do() -> None:
    _, _, codes, groups = setting()
    with pytest.raises(TrainError, match="without a name"):
        rounds(lambda *a: np.empty(0), codes, groups, np.flatnonzero(codes >= 0), np.empty(0, np.int64), n=1,
               least=0.9, share_new=0.3)  # fmt: skip
