"""Answers: known animals, strangers, filters, several photos, and everything that can be wrong with a query."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from fake_stores import ColourEmbedder, fake_store, herd, labels, paint, reopened, seen, taken_in

from reid import enrol, fit
from reid.config import DecisionConfig
from reid.errors import ReidError
from reid.exchange import read_sources
from reid.pipeline import Identifier, Query, _bursts, _chances, identify, query_of
from reid.records import Answer, Box
from reid.store import CALIBRATION, Store
from reid.synth import write_dataset


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Six animals of three photos each; the same pattern scores above 0.95, another one far below."""
    made = fake_store(tmp_path / "s")
    taken_in(made, herd(tmp_path / "p", 6, 3))
    return made


def ask(store: Store, *paths: Path, **more: object) -> Answer:
    [answer] = identify(store, [query_of(paths, **more)])  # type: ignore[arg-type]
    return answer


def test_a_known_animal_comes_first_and_five_labels_with_the_new_one_among_them(store: Store, tmp_path: Path) -> None:
    photo = paint(tmp_path / "q.png", 3, 50)
    answer = ask(store, photo)
    assert answer.status == "match" and answer.message == "" and answer.photos == (str(photo),)
    assert labels(answer)[:2] == ["a003", "new_whale"] and len(set(labels(answer))) == 5
    first, new, *rest = answer.labels
    assert first.score > 0.95 and first.n_photos == 3 and not first.is_new
    assert first.photo is not None and Path(first.photo).name.startswith("a003-")
    [info] = store.catalogue.annotations([int(first.annotation or 0)]).values()
    assert info.identity == "a003"
    assert (new.is_new, new.photo, new.annotation, new.n_photos, new.score) == (True, None, None, 0, answer.threshold)
    assert [one.score for one in rest] == sorted((one.score for one in rest), reverse=True)
    assert rest[0].score < (answer.threshold or 0)
    assert (answer.compared.photos, answer.compared.identities, answer.compared.filters) == (18, 6, {})
    assert answer.boxes == (Box(0, 0, 96, 64, 0.0, "whole"),) and answer.model == "colours"
    assert set(answer.seconds) == {"read", "embed", "search", "decide"}


def test_a_stranger_is_new_first_and_the_four_nearest_follow(store: Store, tmp_path: Path) -> None:
    answer = ask(store, paint(tmp_path / "q.png", 77))
    assert answer.status == "new"
    assert labels(answer)[0] == "new_whale" and len(labels(answer)) == 5 and answer.labels[0].is_new


def test_scores_are_those_of_a_loop_over_all_photos(store: Store, tmp_path: Path) -> None:
    answer = ask(store, paint(tmp_path / "q.png", 2, 9))
    from reid import intake

    embedder = ColourEmbedder()
    [query] = embedder.embed(intake.prepare([seen(tmp_path / "q.png")], embedder.card.preprocessing).crops)
    best: dict[str, float] = {}
    for info in store.catalogue.annotations(range(1, 19)).values():
        [vector] = embedder.embed(intake.prepare([seen(info.path)], embedder.card.preprocessing).crops)
        best[info.identity or ""] = max(best.get(info.identity or "", -1.0), float(vector @ query))
    for one in answer.labels:
        if not one.is_new:
            assert one.score == pytest.approx(best[one.label], abs=2e-3)
    assert [one.label for one in answer.labels if not one.is_new] == sorted(best, key=lambda n: -best[n])[:4]


@pytest.mark.parametrize("animals", [1, 2, 3, 4, 5])
def test_there_are_as_many_labels_as_animals_and_the_new_one_up_to_five(tmp_path: Path, animals: int) -> None:
    store = fake_store(tmp_path / "s")
    taken_in(store, herd(tmp_path / "p", animals, 2))
    found = labels(ask(store, paint(tmp_path / "q.png", 0, 50)))
    assert len(found) == min(5, animals + 1) and found[0] == "a000" and "new_whale" in found


def test_five_labels_even_where_the_nearest_photos_are_all_of_one_animal(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s", settings="neighbours = 200 → neighbours = 5")
    unnamed = [seen(paint(tmp_path / f"u{n}.png", 0, 100 + n)) for n in range(30)]
    taken_in(store, [*herd(tmp_path / "p", 1, 20), *herd(tmp_path / "p", 5, 1, first=1), *unnamed])
    answer = ask(store, paint(tmp_path / "q.png", 0, 999))
    assert labels(answer)[:2] == ["a000", "new_whale"] and len(labels(answer)) == 5


def test_many_queries_are_answered_as_if_asked_one_by_one(store: Store, tmp_path: Path) -> None:
    paths = [paint(tmp_path / f"q{n}.png", n, 50) for n in range(8)]
    (tmp_path / "q3.png").write_bytes(b"")
    together = identify(store, [query_of([path]) for path in paths])
    assert [(a.status, labels(a), a.message) for a in together] == [
        (a.status, labels(a), a.message) for a in (ask(store, path) for path in paths)
    ]
    assert [a.status for a in together] == ["match"] * 3 + ["error"] + ["match"] * 2 + ["new"] * 2
    assert identify(store, []) == []


def test_the_opposite_flank_is_left_out(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    sides = {1: "left", 2: "right", 3: "unknown", 4: "front"}
    taken_in(store, [seen(paint(tmp_path / f"{n}.png", n), f"w{n}", side=side) for n, side in sides.items()])
    photo = paint(tmp_path / "q.png", 2, 50)
    left = ask(store, photo, side="left")
    assert sorted(labels(left)) == ["new_whale", "w1", "w3", "w4"]
    assert left.status == "new" and left.compared.filters == {"side": "not right"}
    assert labels(ask(store, photo, side="right"))[0] == "w2" and "w1" not in labels(ask(store, photo, side="right"))
    assert len(labels(ask(store, photo, side="front"))) == len(labels(ask(store, photo))) == 5


def test_another_species_is_left_out(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s", species="whale")
    taken_in(
        store, [seen(paint(tmp_path / "1.png", 1), "Ana"), seen(paint(tmp_path / "2.png", 2), "Zoe", species="zebra")]
    )
    photo = paint(tmp_path / "q.png", 1, 50)
    assert labels(ask(store, photo, species="zebra")) == ["new_whale", "Zoe"]
    whale = ask(store, photo, species="whale")
    assert labels(whale) == ["Ana", "new_whale"] and whale.compared.filters == {"species": "whale"}
    nothing = ask(store, photo, species="okapi")
    assert nothing.status == "no_candidates" and "widen the filters" in nothing.message and nothing.labels == ()


def test_frames_of_one_burst_have_one_vote(store: Store, tmp_path: Path) -> None:
    burst = [paint(tmp_path / f"b{n}.png", 1, 60, blot=n) for n in range(5)]
    others = [paint(tmp_path / "other.png", 2, 60)]
    answer = ask(store, *burst, *others)
    one, two = ({i.label: i.score for i in answer.labels}[name] for name in ("a001", "a002"))
    alone = ask(store, burst[0], *others)
    expected = {i.label: i.score for i in alone.labels}
    assert one == pytest.approx(expected["a001"], abs=0.02) and two == pytest.approx(expected["a002"], abs=0.02)
    assert len(answer.boxes) == 6
    assert _bursts([0, 0b11, 0xFFFF, 1 << 40, 0xFFFE]) == [0, 0, 2, 0, 2]


def test_one_unreadable_photo_of_two_is_said_and_the_other_answers(store: Store, tmp_path: Path) -> None:
    good, bad = paint(tmp_path / "q.png", 4, 50), tmp_path / "bad.png"
    bad.write_bytes(b"nonsense")
    answer = ask(store, bad, good)
    assert answer.status == "match" and labels(answer)[0] == "a004" and "bad.png" in answer.message
    assert len(answer.boxes) == 1 and answer.photos == (str(bad), str(good))


def test_a_query_without_a_readable_photo_is_an_error_that_names_the_files(store: Store, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    answer = ask(store, tmp_path / "bad.png", tmp_path / "absent.png")
    assert answer.status == "error" and answer.labels == ()
    assert "bad.png" in answer.message and "absent.png" in answer.message
    [empty] = identify(store, [Query(())])
    assert (empty.status, empty.message) == ("error", "no photos were given; name at least one photo")


def test_a_box_outside_the_photo_is_said(store: Store, tmp_path: Path) -> None:
    answer = ask(store, paint(tmp_path / "q.png", 4), box=Box(500, 500, 600, 600))
    assert answer.status == "error" and "outside" in answer.message and answer.labels == ()


def test_the_box_says_which_animal_is_asked_for(store: Store, tmp_path: Path) -> None:
    both = paint(tmp_path / "q.png", 1, 50, beside=2)
    assert labels(ask(store, both, box=Box(0, 0, 96, 64)))[0] == "a001"
    assert labels(ask(store, both, box=Box(96, 0, 192, 64)))[0] == "a002"


def test_an_empty_store_has_no_candidates_and_says_what_to_do(tmp_path: Path) -> None:
    answer = ask(fake_store(tmp_path / "s"), paint(tmp_path / "q.png", 1))
    assert (answer.status, answer.message) == ("no_candidates", "enrol named photos first")


def test_photos_of_nobody_are_never_labels(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    taken_in(store, [seen(paint(tmp_path / f"u{n}.png", 1, n)) for n in range(5)])
    photo = paint(tmp_path / "q.png", 1, 50)
    assert ask(store, photo).status == "no_candidates"
    taken_in(store, [seen(paint(tmp_path / "n.png", 2), "Ana")])
    assert labels(ask(store, photo)) == ["new_whale", "Ana"]


def test_an_animal_that_bears_the_name_for_new_ones_is_nobody(store: Store, tmp_path: Path) -> None:
    store.catalogue.rename("a002", "new_whale", who="tester")
    answer = ask(store, paint(tmp_path / "q.png", 2, 50))
    assert answer.status == "new" and labels(answer).count("new_whale") == 1 and len(labels(answer)) == 5


def test_a_merge_a_rename_and_an_undo_show_in_the_next_answer(store: Store, tmp_path: Path) -> None:
    photo = paint(tmp_path / "q.png", 2, 50)
    event = store.catalogue.merge("a005", "a002", who="tester")
    merged = ask(store, photo)
    assert labels(merged)[0] == "a005" and "a002" not in labels(merged)
    assert merged.labels[0].n_photos == 6 and merged.compared.identities == 5
    store.catalogue.rename("a005", "Vega", who="tester")
    assert labels(ask(store, photo))[0] == "Vega"
    store.catalogue.undo(event, who="tester")
    assert labels(ask(store, photo))[0] == "a002"


def test_a_gallery_of_another_model_is_stale_and_never_no_match(store: Store, tmp_path: Path) -> None:
    other = reopened(store.root, ColourEmbedder("other"))
    answer = ask(other, paint(tmp_path / "q.png", 2, 50))
    assert answer.status == "index_stale" and "reid reindex" in answer.message and answer.labels == ()


def test_the_threshold_is_the_settings_or_the_fits_or_the_models(store: Store, tmp_path: Path) -> None:
    measured = Identifier.open(store)
    assert measured.fit is not None and measured.threshold == measured.fit.threshold
    (store.root / CALIBRATION).unlink()
    own = reopened(store.root, ColourEmbedder(extra={"threshold": 0.5}))
    assert Identifier.open(own).threshold == 0.5
    text = (store.root / "reid.toml").read_text().replace("threshold = -1.0", "threshold = 1.0")
    (store.root / "reid.toml").write_text(text)
    fixed = reopened(store.root)
    assert ask(fixed, paint(tmp_path / "q.png", 2, 50)).status == "new"
    assert DecisionConfig().threshold < 0 < Identifier.open(fixed).threshold == 1.0


def test_a_whitened_gallery_without_its_fit_is_stale(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    taken_in(store, herd(tmp_path / "p", 205, 2))
    photo = paint(tmp_path / "q.png", 2, 50)
    assert "/" in store.gallery().fingerprint
    answer = ask(store, photo)
    assert answer.status == "match" and labels(answer)[0] == "a002" and answer.labels[0].probability is not None
    assert ask(store, paint(tmp_path / "n.png", 999)).status == "new"
    (store.root / CALIBRATION).unlink()
    stale = ask(reopened(store.root), photo)
    assert stale.status == "index_stale" and "reid reindex" in stale.message
    fit.fit(reopened(store.root))
    assert ask(reopened(store.root), photo).status == "match"


@pytest.fixture(scope="module")
def flukes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered flukes, enrolled with the default network into `store`."""
    folder = tmp_path_factory.mktemp("flukes")
    write_dataset(folder, 12, 40, seed=3, n_queries=8, new_share=0.25, long_side=320)
    with Store.create(folder / "store") as store:
        report = enrol.enrol(store, read_sources([folder / "labels.csv"]).sightings, who="tester")
        assert (report.new, report.failures) == (40, [])
    return folder


def test_rendered_flukes_are_found_by_the_default_network(flukes: Path) -> None:
    rows = list(csv.DictReader((flukes / "queries.csv").read_text(encoding="utf-8").splitlines()))
    sightings = read_sources([flukes / "queries.csv"]).sightings
    with Store.open(flukes / "store") as store:
        assert store.config.embedder.model == "fluke"
        enrolled = {one.name for one in store.catalogue.individuals()}
        answers = identify(store, [Query((one,)) for one in sightings])
        gallery = read_sources([flukes / "labels.csv"]).sightings
        again = identify(store, [Query((one,)) for one in gallery[:10]])
    assert [one.labels[0].label for one in again] == [one.identity for one in gallery[:10]]
    assert all(one.labels[0].score > 0.99 and one.status == "match" for one in again)
    assert all(len(labels(one)) == 5 and one.model == "fluke" for one in answers)
    known = [
        (row["identity"], labels(one)) for row, one in zip(rows, answers, strict=True) if row["identity"] in enrolled
    ]
    assert len(known) == 6 and sum(name in found for name, found in known) >= 4


def test_a_failing_catalogue_is_an_error_and_not_an_answer(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = paint(tmp_path / "q.png", 2, 50)
    store.close()
    (store.root / "catalogue.sqlite").write_bytes(b"this is no database" * 100)
    for beside in ("-wal", "-shm"):
        (store.root / f"catalogue.sqlite{beside}").unlink(missing_ok=True)
    with pytest.raises(ReidError):
        ask(reopened(store.root), photo)


def test_probabilities_of_all_labels_add_up_to_one_at_most() -> None:
    curve, scores = np.array([0.6, 0.5, 0.4, 0.01]), np.array([0.8, 0.3, 0.1, 0.0])
    found = _chances(curve, scores, 0.2)
    np.testing.assert_allclose(found, [0.6, 0.2 * 0.75, 0.2 * 0.25, 0.0])
    assert found.sum() + 0.2 <= 1 + 1e-12
    crowded = _chances(np.array([0.9, 0.9]), np.array([0.9, 0.9]), 0.5)
    np.testing.assert_allclose(crowded, [0.9, 0.0])  # nothing is left
