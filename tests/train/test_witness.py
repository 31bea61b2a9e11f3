"""A network that learns on from all photos once it was judged, and the one before it that speaks for it ever after."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from fake_stores import taken_in  # noqa: E402
from named_store import live, stopped_at, store  # noqa: E402
from painted_store import herd, one_thread, small_head, with_rules  # noqa: E402
from test_retrain_whole import PAIRED, tiny  # noqa: E402

from reid import (
    adopt,
    assemble,
    ensemble,
    fit,
    judge,
    models,
    rescore,
    retrain,
    train_siamese,
    verdicts,
    withheld,
    witness,
)  # noqa: E402
from reid.config import TrainingConfig  # noqa: E402
from reid.errors import InputError, ModelError, TrainError  # noqa: E402
from reid.judge import Report  # noqa: E402
from reid.reindex import reindex  # noqa: E402
from reid.retrain import Options  # noqa: E402
from reid.store import Store  # noqa: E402
from reid.train import runs  # noqa: E402
from reid.withheld import TRAINED_ON  # noqa: E402

__all__ = ["one_thread", "small_head", "store", "tiny"]

ALL, JUDGED_WITHOUT = 96, 72


@pytest.fixture
def lenient(store: Store) -> Store:
    """One that takes any network, for it is too small to be better."""
    return Store.open(with_rules(store.root, "tolerance = 1.0\n"))


def in_force(store: Store, done: judge.Candidate) -> Store:
    adopt.adopt(store, done)
    reindex(Store.open(store.root), who="t")
    return Store.open(store.root)


def test_what_was_judged_learns_on_from_all_photos_and_stays_as_the_witness(
    lenient: Store, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = live(lenient)
    plain = retrain.train(lenient, Options(recipe=tiny, name="plain", refit=False)).report
    done = retrain.train(lenient, Options(recipe=tiny)).report  # a whole network does unasked
    assert live(lenient) == before
    assert done.verdict == plain.verdict  # judged before it saw the judges
    assert (plain.refitted, plain.photos, done.refitted, done.photos) == (0, JUDGED_WITHOUT, ALL, JUDGED_WITHOUT)
    served = lenient.models_folder / done.model
    prints = [
        models.read_card(one).fingerprint
        for one in (served, served / witness.FOLDER, lenient.models_folder / plain.model)
    ]
    assert prints[1] == prints[2] != prints[0]
    learnt = [models.read_learnt(one) for one in (served, served / witness.FOLDER)]
    assert [len(one) for one in learnt] == [ALL, JUDGED_WITHOUT] and learnt[1] < learnt[0]
    assert len(json.loads((Path(done.run) / TRAINED_ON).read_text())["annotations"]) == ALL
    assert [card.name for card in models.listed(lenient.models_folder)].count(done.model) == 1
    verdicts.trained(done)
    assert f"then taught all {ALL} photos" in capsys.readouterr().out


def test_a_fit_asks_the_witness_and_serves_the_network_that_knows_all(
    lenient: Store, tiny: str, tmp_path: Path
) -> None:
    other = Store.open(Path(shutil.copytree(lenient.root, tmp_path / "other")))
    plain = in_force(other, retrain.train(other, Options(recipe=tiny, refit=False)))
    refitted = in_force(lenient, retrain.train(lenient, Options(recipe=tiny, refit=True)))
    name = refitted.embedder.card.name
    assert witness.present(refitted) == f"{name}/{witness.FOLDER}" and witness.present(plain) == ""
    assert witness.fingerprint(refitted) == plain.fingerprint != refitted.fingerprint
    fits = [fit.read(one, one.gallery().fingerprint) for one in (plain, refitted)]
    assert fits[0] is not None and fits[1] is not None and fits[0].basis == "measured"
    assert fits[1].cases == fits[0].cases and fits[1].threshold == fits[0].threshold
    assert refitted.gallery().fingerprint.partition("/")[0] == refitted.fingerprint
    rows = refitted.catalogue.embeddings_of(refitted.fingerprint, refitted.catalogue.labels().annotations.tolist())
    assert len(rows) == ALL and refitted.embedder.card.name == name


def test_photos_that_come_later_are_shown_to_the_witness_and_learnt_by_the_next_training(
    lenient: Store, tiny: str, tmp_path: Path
) -> None:
    opened = in_force(lenient, retrain.train(lenient, Options(recipe=tiny)))
    assert not taken_in(opened, herd(tmp_path / "more", 26, 3)[-6:]).failures and not fit.is_due(opened)
    assert len(opened.catalogue.lacking_embeddings(witness.fingerprint(opened))) == 6
    done = retrain.train(opened, Options(recipe=tiny, name="next")).report
    assert done.refitted == ALL + 6 and not len(opened.catalogue.lacking_embeddings(witness.fingerprint(opened)))


def test_of_a_large_gallery_the_witness_is_asked_about_a_part_that_stays_the_same(lenient: Store, tiny: str) -> None:
    opened = in_force(lenient, retrain.train(lenient, Options(recipe=tiny)))
    seen = [withheld.spoken_for(opened, most=most)[0].annotations for most in (40, 40, 60)]
    assert 20 < len(seen[0]) < 60 and np.array_equal(seen[0], seen[1])
    assert set(seen[0]) < set(seen[2]) and len(seen[2]) < ALL


def test_a_witness_speaks_for_its_folder_whatever_that_is_called(lenient: Store, tiny: str) -> None:
    name = retrain.train(lenient, Options(recipe=tiny)).report.model
    (lenient.models_folder / name).rename(lenient.models_folder / "mine")
    shutil.rmtree(lenient.root / "training")
    with_model = (lenient.root / "reid.toml").read_text().replace('model = "colours"', 'model = "mine"')
    (lenient.root / "reid.toml").write_text(with_model)
    opened = Store.open(lenient.root)
    reindex(opened, who="t")
    assert witness.present(opened) == f"mine/{witness.FOLDER}" and len(withheld.trained_on_by(opened, "mine")) == ALL
    labels, _, _ = withheld.spoken_for(opened)
    known = withheld.learnt(opened, labels, withheld.sightings_of(opened.catalogue, labels))
    assert int(known.sum()) == JUDGED_WITHOUT


def test_a_damaged_witness_is_named_and_what_serves_goes_on(lenient: Store, tiny: str) -> None:
    opened = in_force(lenient, retrain.train(lenient, Options(recipe=tiny)))
    (opened.models_folder / opened.model / witness.FOLDER / models.CARD).unlink()
    again = Store.open(opened.root)
    before = live(again)
    with pytest.raises(ModelError, match=f"the witness of '{opened.model}' cannot be used") as caught:
        fit.fit(again)
    assert "reid.toml" in caught.value.next_step
    assert live(again) == before and len(again.gallery()) == ALL


def test_what_has_learnt_all_photos_gives_way_to_what_is_surely_better_alone() -> None:
    same = judge.Figure(0.5, 0.4, 0.6)
    found = judge.Verdict(100, 100, same, same, judge.Figure(0.0, -0.1, 0.1), same, same, 0.5, 0.5, 0)
    report = judge.Report("m", "head", "", "", "", "p", 300, 100, found)
    assert adopt.decision(report, TrainingConfig())[1]
    why, better = adopt.decision(replace(report, by_witness=True), TrainingConfig())
    assert not better and "not surely better" in why and why.endswith("the present model stays")
    assert adopt.decision(replace(report, by_witness=True, refitted=300), TrainingConfig())[1]
    surely = replace(report, by_witness=True, verdict=replace(found, gain=judge.Figure(0.1, 0.05, 0.2)))
    assert adopt.decision(surely, TrainingConfig())[1]


def test_a_run_that_was_begun_before_there_were_witnesses_ends_without_one(lenient: Store, tiny: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        retrain.train(lenient, Options(recipe=tiny, refit=False), stopped_at("epoch 2 of 2"))
    (run,) = (lenient.root / "training").iterdir()
    config = json.loads((run / runs.CONFIG).read_text())
    del config["options"]["refit"]
    (run / runs.CONFIG).write_text(json.dumps(config))
    assert retrain.train(lenient, Options(resume=True)).report.refitted == 0


def test_the_next_training_is_judged_beside_the_witness_and_goes_on_from_it(lenient: Store, tiny: str) -> None:
    shutil.copy(tiny, lenient.root / "tiny.toml")
    with_rules(lenient.root, 'recipe = "tiny.toml"\nonwards = true\ntolerance = 1.0\n')
    nights = []
    for _ in range(2):
        opened = Store.open(lenient.root)
        found = reindex(opened, who="t", train=retrain.night).training
        assert isinstance(found, Report) and found.swapped, found
        nights.append(found)
    assert [one.refitted for one in nights] == [ALL, ALL] and nights[1].present == nights[0].model
    assert nights[1].verdict.photos == nights[0].verdict.photos == 24  # none of them known by heart
    assert nights[1].verdict.map_at_5_before == nights[0].verdict.map_at_5_after
    begun = json.loads((Path(nights[1].run) / runs.CONFIG).read_text())["options"]["begin_with"]
    assert begun == nights[0].model


def test_a_head_is_trained_anew_on_all_photos_where_that_is_asked_for(lenient: Store) -> None:
    assert retrain.train(lenient, Options()).report.refitted == 0
    done = retrain.train(lenient, Options(refit=True)).report
    assert (done.mode, done.photos, done.refitted) == ("head", JUDGED_WITHOUT, ALL)
    served = lenient.models_folder / done.model
    prints = {models.read_card(one).fingerprint for one in (served, served / witness.FOLDER)}
    assert len(prints) == 2


def test_an_interrupted_training_goes_on_to_the_same_network(lenient: Store, tiny: str) -> None:
    whole = retrain.train(lenient, Options(recipe=tiny, name="whole", refit=True)).report
    with pytest.raises(KeyboardInterrupt):
        retrain.train(lenient, Options(recipe=tiny, refit=True), stopped_at("epoch 1 of 1"))
    done = retrain.train(lenient, Options(resume=True)).report
    prints = {models.read_card(lenient.models_folder / one.model).fingerprint for one in (done, whole)}
    assert len(prints) == 1 and done.verdict == whole.verdict and done.refitted == ALL


def test_what_the_gate_would_not_let_in_learns_no_further(
    store: Store, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Store.open(with_rules(store.root, "tolerance = -1.0\n"))
    done = retrain.train(opened, Options(recipe=tiny, refit=True)).report
    assert done.refitted == 0 and not (opened.models_folder / done.model / witness.FOLDER).exists()
    assert "worse" in done.refit_reason and done.refit_reason in (Path(done.run) / runs.LOG).read_text()
    verdicts.trained(done)
    assert "not taught the judges' photos: MAP@5" in capsys.readouterr().out


def test_an_ensemble_of_such_networks_is_weighed_by_their_witnesses(
    lenient: Store, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        retrain.train(lenient, Options(recipe=tiny, name=f"n{seed}", seed=seed, refit=True)).report.model
        for seed in (1, 2)
    ]
    done, candidate = assemble.assembled(lenient, names, "both")
    assert done.queries == done.report.verdict.photos == 24
    assert done.report.refitted == ALL
    verdicts.judged(done.report)
    assert f"members of it have learnt {ALL} photos" in capsys.readouterr().out
    mixed = assemble.assembled(lenient, [names[0], "colours"], "mixed")[0].report
    assert mixed.refitted == ALL  # one of the two has learnt the judges' photos
    served = lenient.models_folder / done.report.model
    listed = [[one.name for one in ensemble.members_of(models.read_card(f))] for f in (served, served / witness.FOLDER)]
    assert listed == [names, names]
    for name in names:
        own = models.read_card(lenient.models_folder / name / witness.FOLDER)
        assert models.read_card(served / witness.FOLDER / name).fingerprint == own.fingerprint
        assert not (served / name / witness.FOLDER).exists()
    assert [len(models.read_learnt(one)) for one in (served, served / witness.FOLDER)] == [ALL, JUDGED_WITHOUT]
    opened = in_force(lenient, candidate)
    assert witness.of(opened, f"{done.report.model}/{names[0]}") == f"{done.report.model}/witness/{names[0]}"
    found = fit.read(opened, opened.gallery().fingerprint)
    assert found is not None and found.basis == "measured"


def test_what_has_no_judges_of_its_own_is_refused(lenient: Store, tiny: str, tmp_path: Path) -> None:
    for more in ({"folds": 2}, {"pseudo_rounds": 1}):
        with pytest.raises(TrainError, match="not taught further") as caught:
            retrain.train(lenient, Options(recipe=tiny, refit=True, **more))
        assert "--refit" in caught.value.next_step
    (tmp_path / "paired.toml").write_text(PAIRED)
    with pytest.raises(TrainError, match="Siamese head"):
        retrain.train(lenient, Options(recipe=str(tmp_path / "paired.toml"), refit=True))
    opened = in_force(lenient, retrain.train(lenient, Options(recipe=tiny, refit=True)))
    assert rescore.open_heads(opened) is None
    with pytest.raises(TrainError, match="learnt every photo") as caught:
        train_siamese.train(opened, train_siamese.Options(), lambda *_: None)
    assert "--no-refit" in caught.value.next_step
    with pytest.raises(InputError, match="speaks for"):
        assemble.assembled(opened, ["colours", f"{opened.model}/{witness.FOLDER}"], "both")
