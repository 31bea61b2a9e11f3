"""Siamese heads of a store: trained apart from what they are judged on, one more source of an answer, named when
missing.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_stores import DIM, ColourEmbedder, fake_store, reopened, with_vectors
from local_store import changed_settings, described, local_store, sightings
from rendered_store import flukes, reid

from reid import fit, fusion, intake, local, rescore, siamese, withheld
from reid.errors import ModelError, TrainError
from reid.pipeline import Query, identify
from reid.records import Answer
from reid.rescore import FOLDER, HALVES, WHOLE, Heads, half_of
from reid.siamese import Siamese
from reid.store import Store

__all__ = ["described", "flukes", "local_store"]


def head(seed: int = 0) -> Siamese:
    """A head of colours' vectors that is symmetric, and nothing more."""
    rng = np.random.default_rng(seed)

    def array(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return Siamese(array(16, DIM), array(16), array(8, 4), array(8), array(8), 0.1, array(16), -0.2)


def given_heads(store: Store) -> dict[str, Siamese]:
    """Three heads in the store's folder."""
    made = {}
    for seed, name in enumerate((WHOLE, *HALVES)):
        made[name] = replace(head(seed), about={"fingerprint": store.fingerprint})
        siamese.save(made[name], store.root / FOLDER / name)
    return made


def known(flukes: Path) -> Query:
    enrolled = {s.identity for s in sightings(flukes)}
    one = next(s for s in sightings(flukes, "queries.csv") if s.identity in enrolled)
    return Query((replace(one, identity=None),))


def ask(store: Store, flukes: Path) -> Answer:
    return identify(store, [known(flukes)])[0]


def herd_of_vectors(store: Store, animals: int = 40, each: int = 4) -> None:
    """Animals that differ in a few numbers, and photos in all others: a cosine sees the photos."""
    rng = np.random.default_rng(3)
    own = np.repeat(rng.normal(size=(animals, 6)), each, axis=0)
    photo, rest = 3 * rng.normal(size=(len(own), 4)), 0.1 * rng.normal(size=(len(own), DIM - 10))
    rows = np.concatenate([own, photo, rest], axis=1).astype(np.float32)
    with_vectors(store, rows, [f"a{i // each:02d}" for i in range(animals * each)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose heads were trained from the command line's glue."""
    pytest.importorskip("torch")
    from reid.train_siamese import Options, train

    root = tmp_path_factory.mktemp("trained") / "store"
    store = fake_store(root)
    herd_of_vectors(store)
    told: list[tuple[str, int, int]] = []
    report = train(store, Options(epochs=24), lambda *said: told.append(said))
    (root / "report.json").write_text(json.dumps([report.photos, report.animals, report.queries,
                                                  report.map_at_5.before, report.map_at_5.after]))  # fmt: skip
    assert told[-1][1:] == (72, 72) or told[-1][0] != "train"
    assert [said for said in told if said[0] == "train"][-1] == ("train", 72, 72)
    store.close()
    return root


def test_heads_rank_animals_better_that_they_have_not_seen(trained: Path) -> None:
    photos, animals, queries, before, after = json.loads((trained / "report.json").read_text())
    assert (photos, animals, queries) == (160, 40, 40)
    assert after > before + 0.05


def test_what_is_judged_is_what_a_loop_over_all_pairs_gives(trained: Path) -> None:
    store = reopened(trained)
    labels, rows = withheld.gathered(store.catalogue, store.fingerprint)
    heads = rescore.open_heads(store)
    assert heads is not None
    total = 0.0
    for code in sorted(set(labels.individuals.tolist())):
        query = int(np.flatnonzero(labels.individuals == code)[0])
        best: dict[int, float] = {}
        for other in range(len(rows)):
            if other != query:
                score = heads.halves[half_of(code)].logits(rows[[query]], rows[[other]])[0, 0]
                animal = int(labels.individuals[other])
                best[animal] = max(best.get(animal, -np.inf), score)
        rank = sorted(best, key=lambda animal: -best[animal]).index(code) + 1
        total += 1 / rank if rank <= 5 else 0
    assert json.loads((trained / "report.json").read_text())[4] == pytest.approx(total / 40, abs=1e-6)


def test_each_half_was_trained_without_the_others_animals(trained: Path) -> None:
    """A head that has seen an animal knows it better: were the halves swapped, it would show."""
    store = reopened(trained)
    labels, rows = withheld.gathered(store.catalogue, store.fingerprint)
    heads = rescore.open_heads(store)
    assert heads is not None
    gaps = {}
    for seen in (True, False):
        found = []
        for code in set(labels.individuals.tolist()):
            mine = np.flatnonzero(labels.individuals == code)
            other = np.flatnonzero(labels.individuals != code)
            one = heads.halves[half_of(code) if not seen else 1 - half_of(code)]
            logits = one.logits(rows[mine[:1]], rows)[0]
            found.append(logits[mine[1:]].mean() - logits[other].mean())
        gaps[seen] = float(np.mean(found))
    assert gaps[True] > gaps[False] > 0


def test_the_heads_hold_for_one_model_and_change_what_a_fit_is_for(trained: Path) -> None:
    store = reopened(trained)
    assert rescore.fingerprint(store) and not rescore.outdated(store)
    other = reopened(trained, ColourEmbedder("others"))
    assert other.fingerprint != store.fingerprint
    assert rescore.fingerprint(other) == "" and rescore.open_heads(other) is None and rescore.outdated(other)


def test_too_few_animals_are_said(local_store: Store) -> None:
    pytest.importorskip("torch")
    from reid.train_siamese import Options, train

    with pytest.raises(TrainError, match="animals of one half") as caught:
        train(local_store, Options(epochs=1), lambda *said: None)
    assert "16 in all" in caught.value.next_step
    said = reid("train-siamese", "--epochs", "1", store=local_store.root)
    assert said.exit_code == 1


def test_logits_are_those_of_the_raw_vectors_and_unknown_where_there_are_none(local_store: Store) -> None:
    made = given_heads(local_store)
    heads = rescore.open_heads(local_store)
    assert isinstance(heads, Heads)
    rows = local_store.catalogue.embeddings_of(local_store.fingerprint, [1, 2, 3])
    found = heads.scores(rows[1], ["3", "999", "2"])
    expected = [float(made[WHOLE].logits(rows[1][None], rows[i][None])[0, 0]) for i in (3, 2)]
    assert np.allclose(found[[0, 2]], expected, atol=1e-3) and np.isnan(found[1])
    for half in (0, 1):
        unseen = heads.unseen(half, "1", ["2"])
        assert np.allclose(unseen, made[HALVES[half]].logits(rows[1][None], rows[2][None])[0], atol=1e-3)
    assert np.isnan(heads.unseen(0, "999", ["2"])).all()


def test_a_head_is_one_more_source_of_an_answer(local_store: Store, flukes: Path) -> None:
    before = local.fingerprint(local_store)
    assert "siamese" not in ask(local_store, flukes).labels[0].evidence
    made = given_heads(local_store)
    assert local.fingerprint(local_store) == f"{before}-siamese-{rescore.fingerprint(local_store)}"
    fit.fit(local_store)
    answer = ask(local_store, flukes)
    first = next(one for one in answer.labels if not one.is_new)
    assert answer.stages_skipped == () and 0 <= first.evidence["siamese"] <= 1
    preprocessing = local_store.embedder.card.preprocessing
    [raw] = local_store.embedder.embed(intake.prepare(known(flukes).sightings, preprocessing).crops)
    rows = local_store.catalogue.embeddings_of(local_store.fingerprint, [int(first.annotation or 0)])
    logit = float(made[WHOLE].logits(raw[None], rows[int(first.annotation or 0)][None])[0, 0])
    assert first.evidence["siamese"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=0.01)


def test_a_head_that_fails_is_named_and_the_rest_stands(
    local_store: Store, flukes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_heads(local_store)
    fit.fit(local_store)

    def broken(*_: object) -> None:
        raise ModelError("its weights are gone")

    monkeypatch.setattr(Heads, "scores", broken)
    answer = ask(local_store, flukes)
    assert answer.stages_skipped == ("siamese: failed (its weights are gone)",)
    assert len(answer.labels) == 5 and answer.status in ("match", "review")


def test_heads_may_be_switched_off_and_those_of_another_model_are_named(local_store: Store, flukes: Path) -> None:
    plain = local.fingerprint(local_store)
    given_heads(local_store)
    off = changed_settings(local_store, "siamese = true → siamese = false")
    assert local.fingerprint(off) == plain and rescore.open_heads(off) is None and not rescore.outdated(off)
    assert ask(off, flukes).stages_skipped == ()
    on = changed_settings(off, "siamese = false → siamese = true")
    for name in (WHOLE, *HALVES):
        siamese.save(replace(head(), about={"fingerprint": "another"}), on.root / FOLDER / name)
    assert local.fingerprint(on) == plain
    assert ask(on, flukes).stages_skipped == ("siamese: the head is of another model; reid train-siamese",)


def test_damaged_heads_are_done_without_and_said_and_half_a_set_is_none(local_store: Store, flukes: Path) -> None:
    given_heads(local_store)
    fit.fit(local_store)
    (local_store.root / FOLDER / HALVES[1] / siamese.ARRAYS).write_bytes(b"x")
    with pytest.raises(ModelError):
        rescore.open_heads(local_store)
    answer = ask(local_store, flukes)  # the other sources do
    assert (
        answer.labels and len(answer.stages_skipped) == 1 and answer.stages_skipped[0].startswith("siamese: failed (")
    )
    assert answer.status in ("match", "review")  # never new: nobody has looked everywhere
    shutil.rmtree(local_store.root / FOLDER / HALVES[0])
    assert rescore.open_heads(local_store) is None and rescore.fingerprint(local_store) == ""


# --- a head that was learnt with its network


def own_head(store: Store, model: str, fingerprint: str) -> Siamese:
    """A head in the directory of that model."""
    made = replace(head(7), about={"fingerprint": fingerprint, "recipe": "siamese_lap"})
    siamese.save(made, store.models_folder / model / FOLDER)
    return made


def test_a_models_own_head_serves_while_the_model_does_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "model", property(lambda store: store.embedder.card.name))  # no settings name the fakes
    paired = ColourEmbedder("paired")
    store = fake_store(tmp_path / "store", embedder=paired)
    herd_of_vectors(store, animals=4)
    assert rescore.open_heads(store) is None
    own = own_head(store, "paired", paired.card.fingerprint)
    own_head(store, "plain", paired.card.fingerprint)  # copied there by hand: of another model's vectors
    heads = rescore.open_heads(store)
    assert heads is not None and rescore.fingerprint(store)
    labels, rows = withheld.gathered(store.catalogue, store.fingerprint)
    ids = [str(a) for a in labels.annotations.tolist()]
    expected = own.logits(rows[:1], rows[1:3])[0]
    assert np.allclose(heads.scores(rows[0], ids[1:3]), expected, atol=1e-2)
    for half in (0, 1):
        assert np.allclose(heads.unseen(half, ids[0], ids[1:3]), expected, atol=1e-2)
    for other in ("plain", "colours"):
        there = reopened(store.root, ColourEmbedder(other))
        assert rescore.open_heads(there) is None and rescore.fingerprint(there) == "" and not rescore.outdated(there)


def test_heads_trained_for_the_store_go_before_a_models_own(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "store")
    own = own_head(store, "colours", store.fingerprint)
    alone, rows = rescore.fingerprint(store), np.eye(2, DIM, dtype=np.float32)
    made = given_heads(store)
    both = rescore.open_heads(store)
    assert both is not None and rescore.fingerprint(store) != alone
    assert both.whole.logits(rows, rows) == pytest.approx(made[WHOLE].logits(rows, rows))
    for name in (WHOLE, *HALVES):  # they are of a model of before: the own head is what there is
        siamese.save(replace(head(), about={"fingerprint": "another"}), store.root / FOLDER / name)
    again = rescore.open_heads(store)
    assert again is not None and rescore.fingerprint(store) == alone
    assert again.whole.logits(rows, rows) == pytest.approx(own.logits(rows, rows))


def test_halves_are_even_and_stay_as_they_are() -> None:
    halves = [half_of(code) for code in range(1000)]
    assert 430 < sum(halves) < 570 and halves == [half_of(code) for code in range(1000)]
    assert set(halves) == {0, 1}


def test_columns_of_the_head_come_last_and_older_trees_do_without() -> None:
    rows = fusion.pair_features([0.9, 0.1], [0.9, 0.1], [3.0, 0.0], [None, None], 9)
    wide = fusion.pair_features([0.9, 0.1], [0.9, 0.1], [3.0, 0.0], [None, None], 9, [np.nan, 1.5])
    assert np.array_equal(wide[:, : rows.shape[1]], rows, equal_nan=True)
    assert wide.shape[1] == len(fusion.WIDE_NAMES) == rows.shape[1] + 2
    assert np.isnan(wide[0, -2:]).all() and wide[1, -2:].tolist() == [1.5, 0.0]
    assert fusion.pair_features([], [], [], [], 9, []).shape == (0, len(fusion.WIDE_NAMES))
