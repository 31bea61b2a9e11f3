"""What a store learns from its own photos: which photos belong together, who plays query, the threshold, the
whitening.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_stores import DIM, ColourEmbedder, assert_index_is_the_catalogue, fake_store, reopened, with_vectors
from numpy.typing import NDArray

from reid import decide, fit, whiten, withheld
from reid.embed import unit_rows
from reid.errors import InputError, StoreError
from reid.store import CALIBRATION, Store


def animals(count: int, photos: int, *, spread: float = 0.25, seed: int = 0) -> tuple[NDArray[np.float32], list[str]]:
    """Vectors around a common direction, some of each animal, and their names."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count, DIM)) + 3.0
    rows = np.repeat(centres, photos, 0) + spread * rng.normal(size=(count * photos, DIM))
    return unit_rows(rows.astype(np.float32)), [f"w{i}" for i in range(count) for _ in range(photos)]


def test_encounters_and_near_duplicates_are_one_sighting(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    far = 0xFFFF_0000_FFFF_0000
    #         photo:  0     1     2     3          4     5
    encounters = ["a", "a", "b", "c", "d", "e"]
    hashes = [0, far, far ^ 1, 0xFF00FF00FF00FF00, 0x0F0F0F0F0F0F0F0F, 0x0F0F0F0F0F0F0F0F]
    vectors, _ = animals(6, 1)
    with_vectors(store, vectors, ["w"] * 6, encounters=encounters, phashes=hashes)
    labels = store.catalogue.labels()
    codes = withheld.sightings_of(store.catalogue, labels)
    together = {(i, j) for i in range(6) for j in range(i) if codes[i] == codes[j]}
    assert together == {(1, 0), (2, 1), (2, 0), (5, 4)}  # 2 joins 0 through 1, its near-duplicate


@pytest.mark.parametrize("seed", range(5))
def test_sightings_are_the_connected_components(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    photos, encounters = rng.integers(0, 20, 40), rng.integers(-1, 15, 40)
    codes = withheld._joined(photos, encounters)
    reached = np.eye(40, dtype=bool)
    for i in range(40):
        for j in range(40):
            reached[i, j] |= photos[i] == photos[j] or (encounters[i] == encounters[j] != -1)
    for _ in range(40):
        reached = (reached.astype(int) @ reached.astype(int)) > 0
    np.testing.assert_array_equal(codes[:, None] == codes[None, :], reached)


def test_queries_are_one_photo_an_animal_and_at_most_a_quarter() -> None:
    individuals = np.array([0] * 4 + [1] * 4 + [2] * 2 + [-1] * 10 + list(range(3, 23)))
    groups = np.arange(len(individuals))
    chosen = withheld.chosen_queries(individuals, groups)
    assert len(chosen) <= len(individuals) // 4
    assert (individuals[chosen] >= 0).all() and len(set(individuals[chosen])) == len(chosen)
    assert {0, 1, 2} <= set(individuals[chosen].tolist())  # seen more than once: they give known cases
    np.testing.assert_array_equal(chosen, withheld.chosen_queries(individuals, groups))
    assert len(withheld.chosen_queries(individuals, groups, most=4)) == 4


def test_only_photos_that_are_allowed_play_queries_and_the_others_still_make_their_animal_known() -> None:
    individuals, groups = np.repeat(np.arange(6), 4), np.arange(24)
    allowed = np.zeros(24, np.bool_)
    allowed[[0, 1, 5, 9]] = True
    chosen = withheld.chosen_queries(individuals, groups, allowed=allowed, each=2)
    assert sorted(chosen.tolist()) == [0, 1, 5, 9]
    assert len(withheld.chosen_queries(individuals, groups, allowed=allowed, each=1)) == 3
    assert not len(withheld.chosen_queries(individuals, groups, allowed=np.zeros(24, np.bool_)))


def test_photos_known_by_heart_are_taught_by_where_no_query_is_of_their_sighting() -> None:
    individuals, groups = np.repeat(np.arange(30), 4), np.repeat(np.arange(60), 2)
    by_heart = np.arange(120) % 8 > 0  # of every second animal the first photo is not learnt
    queries = withheld.chosen_queries(individuals, groups, allowed=~by_heart, each=2)
    further = withheld._taught_by(individuals, groups, queries, by_heart)
    assert len(queries) and len(further) > len(queries) and by_heart[further].all()
    assert not np.isin(groups[further], groups[queries]).any()
    assert not len(withheld._taught_by(individuals, groups, queries, np.zeros(120, np.bool_)))


def test_an_animal_seen_in_one_encounter_only_is_not_preferred() -> None:
    individuals = np.array([0, 0, 0, 0, 1, 1, *range(2, 12)])
    groups = np.array([0, 0, 0, 0, 1, 2, *range(3, 13)])
    assert 1 in individuals[withheld.chosen_queries(individuals, groups, most=1)]


def test_a_gallery_of_nobody_gives_no_queries() -> None:
    assert len(withheld.chosen_queries(np.full(9, -1), np.arange(9))) == 0
    assert len(withheld.chosen_queries(np.empty(0, np.int64), np.empty(0, np.int64))) == 0


def test_a_fit_is_due_first_and_then_when_the_gallery_grew_by_half_and_fifty(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    assert not fit.is_due(store)
    vectors, names = animals(60, 3)
    with_vectors(store, vectors[:80], names[:80])
    assert fit.is_due(store)
    assert fit.fit(store).photos == 80
    assert not fit.is_due(store)
    _more(store, vectors, names, 80, 129)
    assert not fit.is_due(store)
    _more(store, vectors, names, 129, 130)
    assert fit.is_due(store)


def _more(store: Store, vectors: NDArray[np.float32], names: list[str], start: int, stop: int) -> None:
    """The photos from `start`, as further photos; those before are known."""
    with_vectors(store, vectors[:stop], names[:stop])
    assert len(store.gallery()) == stop


def test_an_empty_store_can_be_fitted(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    found = fit.fit(store)
    assert (found.basis, found.photos, found.threshold) == ("default", 0, decide.DEFAULT_THRESHOLD)


def test_the_threshold_says_what_it_rests_on(tmp_path: Path) -> None:
    few = fake_store(tmp_path / "few", embedder=ColourEmbedder(extra={"threshold": 0.61}))
    with_vectors(few, *animals(4, 2))
    assert (fit.fit(few).basis, fit.fit(few).threshold) == ("default", 0.61)  # the model's own
    alone = fake_store(tmp_path / "alone")
    with_vectors(alone, *animals(120, 1))
    found = fit.fit(alone)
    assert (found.basis, found.curve) == ("unknowns", None) and found.reason
    known = fake_store(tmp_path / "known")
    with_vectors(known, *animals(100, 3))
    found = fit.fit(known)
    assert found.basis == "measured" and found.curve is not None
    chances = found.curve.probability(np.array([found.threshold - 0.2, found.threshold + 0.2]))
    assert chances[0] < 0.5 < chances[1]
    assert fit.read(known, known.gallery().fingerprint) == found


def test_the_threshold_parts_the_animals_of_a_gallery_that_is_easy(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    vectors, names = animals(100, 3, spread=0.1)
    with_vectors(store, vectors, names)
    found = fit.fit(store)
    scores = vectors @ vectors.T
    same = np.array(names)[:, None] == np.array(names)[None, :]
    assert scores[~same].max() < found.threshold < scores[same].min()


@pytest.mark.parametrize("photos", [400, 500, 700])
def test_from_four_hundred_photos_on_vectors_are_whitened_and_the_threshold_is_of_whitened_scores(
    tmp_path: Path, photos: int
) -> None:
    store = fake_store(tmp_path / "s")
    vectors, names = animals(photos // 2, 2)
    with_vectors(store, vectors, names)
    found = fit.fit(store)
    gallery = store.gallery()
    raw, _, name = gallery.fingerprint.partition("/")
    whitening = whiten.fit(vectors)
    assert whitening is not None
    assert raw == store.fingerprint and name and found.gallery == gallery.fingerprint
    assert (store.index_folder / f"whitening-{name}.npz").is_file()
    projected = store.project(vectors, gallery)
    scores = projected @ projected.T
    same = np.array(names)[:, None] == np.array(names)[None, :]
    np.fill_diagonal(same, False)
    others = np.where(same | np.eye(len(scores), dtype=bool), -1, scores).max(1)
    mine = np.where(same, scores, -1).max(1)
    assert found.basis == "measured"
    assert np.median(others) < found.threshold < np.median(mine)
    assert_index_is_the_catalogue(store)


@pytest.mark.parametrize(("strong", "learnt"), [("light", True), ("animals", True), ("animals", False)])
def test_vectors_of_a_trained_model_are_whitened_as_far_as_left_out_photos_say(
    tmp_path: Path, strong: str, learnt: bool
) -> None:
    """Where the strongest axes tell the light, whitening turns them down; where they tell animals, it loses them. A
    model that has learnt none of the photos is whitened fully, unasked.
    """
    rng = np.random.default_rng(0)
    axes = np.zeros(DIM)
    axes[: DIM // 4] = 1.0
    between, within = (0.3 + 0 * axes, 0.1 + 1.2 * axes) if strong == "light" else (0.02 + axes, np.full(DIM, 0.35))
    rows = np.repeat(rng.normal(size=(220, DIM)) * between, 2, 0) + rng.normal(size=(440, DIM)) * within + 1.0
    store = fake_store(tmp_path / "s")
    with_vectors(store, unit_rows(rows.astype(np.float32)), [f"w{i}" for i in range(220) for _ in range(2)])
    labels, vectors = withheld.gathered(store.catalogue, store.fingerprint)
    if learnt:
        record = store.root / withheld.TRAINING / store.embedder.card.name / withheld.TRAINED_ON
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"annotations": labels.annotations[:20].tolist()}))
    found = fit.whitening_share(store, labels, vectors)
    assert found < 1.0 if learnt and strong == "animals" else found == 1.0
    assert fit.fit(store).whitened == found
    kept = fit.read(store, store.gallery().fingerprint)
    assert kept is not None and kept.whitened == found


def test_below_four_hundred_photos_vectors_stay_as_they_are(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    with_vectors(store, *animals(133, 3))
    fit.fit(store)
    assert store.gallery().fingerprint == store.fingerprint
    assert list(store.index_folder.glob("whitening-*")) == []


def test_where_no_threshold_can_be_measured_vectors_stay_raw_for_the_default_is_of_raw_vectors(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    vectors, _ = animals(420, 1)
    with_vectors(store, vectors, [None] * 420)
    found = fit.fit(store)
    assert (found.basis, found.threshold) == ("default", decide.DEFAULT_THRESHOLD)
    assert store.gallery().fingerprint == store.fingerprint == found.gallery


def test_photos_added_to_a_whitened_gallery_go_through_its_whitening(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    vectors, names = animals(220, 2)
    with_vectors(store, vectors[:420], names[:420])
    fit.fit(store)
    before = store.gallery().fingerprint
    with_vectors(store, vectors, names)
    again = reopened(tmp_path / "s")
    assert len(again.gallery()) == 440 and again.gallery().fingerprint == before
    assert_index_is_the_catalogue(again)


def test_a_fit_of_another_gallery_is_not_read(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    with_vectors(store, *animals(30, 3))
    found = fit.fit(store)
    assert fit.read(store, found.gallery) == found
    assert fit.read(store, found.gallery + "/0123456789abcdef") is None
    other = reopened(tmp_path / "s", ColourEmbedder("other"))
    assert fit.read(other, other.fingerprint) is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"gallery": "GALLERY"}', '{"gallery": "GALLERY", "curve": 3}']
)
def test_a_damaged_fit_is_as_none_and_the_next_one_mends_it(tmp_path: Path, content: str) -> None:
    store = fake_store(tmp_path / "s")
    with_vectors(store, *animals(30, 3))
    found = fit.fit(store)
    (store.root / CALIBRATION).write_text(content.replace("GALLERY", found.gallery))
    assert fit.read(store, found.gallery) is None and fit.is_due(store)
    fit.fit(store)
    assert fit.read(store, found.gallery) is not None


def test_a_fit_killed_before_the_swap_leaves_the_old_gallery_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fake_store(tmp_path / "s")
    vectors, names = animals(320, 2)
    with_vectors(store, vectors[:420], names[:420])
    old = fit.fit(store)
    with_vectors(store, vectors, names)
    for _ in range(2):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(store, "rebuild", _killed)
            fit.fit(store)
        assert fit.read(store, store.gallery().fingerprint) == old
    new = fit.fit(store)
    assert new.gallery != old.gallery and fit.read(store, store.gallery().fingerprint) == new


def _killed(*given: object) -> None:
    raise KeyboardInterrupt


def test_a_full_disk_leaves_the_last_fit_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fake_store(tmp_path / "s")
    with_vectors(store, *animals(30, 3))
    fit.fit(store)
    before = (store.root / CALIBRATION).read_bytes()
    there = sorted(p.name for p in store.root.iterdir())

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reid.store.os.fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        store.write_json(CALIBRATION, {"threshold": 0})
    assert (store.root / CALIBRATION).read_bytes() == before
    assert sorted(p.name for p in store.root.iterdir()) == there


def test_the_report_of_a_fit_is_plain_json(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    with_vectors(store, *animals(100, 3))
    found = fit.fit(store)
    kept = json.loads((store.root / CALIBRATION).read_text())
    assert kept["report"] == found.report and kept["report"]["known_photos"] >= 20


def test_opposite_flanks_are_struck_out_of_the_measurement(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    rows = np.eye(3, DIM, dtype=np.float32)
    ids = with_vectors(store, rows, ["a", "b", "c"])
    labels = store.catalogue.labels()
    from sqlalchemy import text

    with store.catalogue._engine.begin() as connection:
        for number, side in zip(ids, ["left", "right", "unknown"], strict=True):
            connection.execute(text("UPDATE annotation SET side = :s WHERE id = :i"), {"s": side, "i": number})
    every = np.arange(3)
    struck = withheld._sided(store, labels, np.zeros((3, 3), np.float32), every, every, "separate")
    np.testing.assert_array_equal(np.isneginf(struck), [[0, 1, 0], [1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("animals", "photos", "why"),
    [(9, 50, "450 photos of 9 named animals"), (120, 1, "120 named animals has one sighting")],
)
def test_nothing_is_promised_where_no_left_out_photo_speaks_for_served_scores(
    tmp_path: Path, animals: int, photos: int, why: str
) -> None:
    store = fake_store(tmp_path / "s")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(animals, DIM))
    rows = np.repeat(centres, photos, axis=0) + 0.4 * rng.normal(size=(animals * photos, DIM))
    with_vectors(store, rows.astype(np.float32), [f"w{n // photos}" for n in range(animals * photos)])
    made = fit.fit(store)
    assert made.basis != "measured" and not made.cases["known_score"]
    with pytest.raises(InputError, match=why) as caught:
        fit.calibrate_rates(store, false_match=0.3, false_new=0.3, confidence=0.9)
    assert "second sighting" in caught.value.next_step or "two sightings" in caught.value.next_step


def test_a_sample_of_a_large_gallery_keeps_as_many_numbers_as_the_gallery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LONG_FROM", 1), ("MANY", 440), ("LONG", 9), ("DIMENSIONS", 5)):
        monkeypatch.setattr(whiten, name, value)
    rows = unit_rows(np.random.default_rng(0).normal(size=(440, DIM)).astype(np.float32))
    store = fake_store(tmp_path / "s")
    with_vectors(store, rows, [f"w{n // 2}" for n in range(440)])
    _, some = withheld.gathered(store.catalogue, store.fingerprint, most=100)
    assert len(some) < whiten.MANY and withheld.numbers_kept(store, some) == 5
    with monkeypatch.context() as larger:
        larger.setattr(whiten, "MANY", 441)
        assert withheld.numbers_kept(store, some) == 9
