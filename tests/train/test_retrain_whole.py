"""Whole networks trained on a store by recipes: judged like a head, resumed, gone on from, chosen by machine and photos."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from named_store import live, stopped_at, store  # noqa: E402
from painted_store import one_thread, small_head, with_rules  # noqa: E402

from reid import adopt, fit, judge, local, masks, models, planning, rescore, retrain, siamese  # noqa: E402
from reid.config import TrainingConfig  # noqa: E402
from reid.errors import ConfigError, ModelError, TrainError  # noqa: E402
from reid.judge import Report  # noqa: E402
from reid.reindex import reindex  # noqa: E402
from reid.retrain import Options  # noqa: E402
from reid.store import Store  # noqa: E402
from reid.train import runs  # noqa: E402
from reid.withheld import TRAINED_ON  # noqa: E402

__all__ = ["one_thread", "small_head", "store"]

TINY = """
[input]
height = 32
width = 48
[network]
backbone = "test_efficientnet"
start = "random"
dim = 16
[[loss]]
kind = "margin"
scale = 12
[sampling]
mirror = "none"
[augment]
grey = 0
jpeg = 0
shrink = 0
[schedule]
epochs = 2
batch = 24
"""

ALIGNED = """
[[loss]]
kind = "triplet"
aligned = true
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe of one's own, from random weights (there is no network to fetch others over)."""
    from reid.train import network

    build = network.build
    monkeypatch.setattr(network, "build", lambda config, **more: build(config, **(more | {"pretrained": False})))
    (tmp_path / "tiny.toml").write_text(TINY)
    return str(tmp_path / "tiny.toml")


def test_a_whole_network_is_trained_and_judged_like_a_head(store: Store, tiny: str) -> None:
    before = live(store)
    done = retrain.train(store, Options(mode="full", recipe=tiny, minutes=2.0))
    assert live(store) == before
    report = done.report
    assert report.mode == "full" and report.model.endswith("-tiny") and report.base == "colours"
    assert "full, asked for" in report.why_mode and "scale laptop, within 2 minutes" in report.why_mode
    found = report.verdict
    assert (found.photos, found.animals, found.lost, report.photos) == (24, 24, 0, 72)
    card = models.read_card(store.models_folder / report.model)
    assert (card.extra["recipe"], card.extra["base"], card.dim) == ("tiny", "colours", 16)
    run = Path(report.run)
    metrics = json.loads((run / runs.METRICS).read_text())
    assert len(metrics["losses"]) == len(metrics["epochs"]) == 2 and metrics["steps"] == 6
    assert (run / runs.CURVES).is_file() and runs.read_state(run) == "finished"
    seen = json.loads((run / TRAINED_ON).read_text())["annotations"]
    assert len(seen) == 72
    reason, better = adopt.decision(report, TrainingConfig(tolerance=1.0))
    assert better and "in force" in reason
    adopt.adopt(store, done)
    assert "another model" in reindex(Store.open(store.root), who="t").rebuilt
    assert Store.open(store.root).gallery().fingerprint.partition("/")[0] == store.fingerprint


PAIRED = TINY.replace('"margin"\nscale = 12', '"pair"\nhidden = 8').replace("mirror", 'kind = "pairs"\nmirror')


def test_a_head_learnt_with_the_network_serves_with_it_and_an_older_models_head_does_not(
    store: Store, tiny: str, tmp_path: Path
) -> None:
    paired = tmp_path / "paired.toml"
    paired.write_text(PAIRED)
    for name in (rescore.WHOLE, *rescore.HALVES):  # what `reid train-siamese` left for the model of now
        head = siamese.Siamese(
            np.eye(48, dtype=np.float32), np.zeros(48, np.float32), np.ones((2, 4), np.float32),
            np.zeros(2, np.float32), np.ones(2, np.float32), 0.0, np.ones(48, np.float32), 0.0,
            {"fingerprint": store.fingerprint},
        )  # fmt: skip
        siamese.save(head, store.root / siamese.FOLDER / name)
    older = rescore.fingerprint(store)
    assert older
    opened = Store.open(with_rules(store.root, "tolerance = 1.0\nrefit = false\n"))
    options = Options(mode="full", recipe=str(paired))
    found = reindex(opened, who="t", train=lambda store, told: retrain.night(store, told, options)).training
    assert isinstance(found, Report) and found.swapped
    assert "its Siamese head comes with it" in (Path(found.run) / runs.LOG).read_text()
    after = Store.open(store.root)
    heads = rescore.open_heads(after)
    assert heads is not None and heads.whole.about["recipe"] == "paired"
    assert rescore.fingerprint(after) not in ("", older)
    fitted = fit.read(after, after.gallery().fingerprint)
    assert fitted is not None and fitted.local == local.fingerprint(after)
    shutil.rmtree(after.models_folder / found.model / siamese.FOLDER)  # as a recipe without pairs leaves it
    assert rescore.open_heads(after) is None and rescore.fingerprint(after) == "" and rescore.outdated(after)


def test_an_interrupted_training_of_a_whole_network_goes_on_from_its_last_epoch(store: Store, tiny: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        retrain.train(store, Options(recipe=tiny), stopped_at("epoch 2 of 2"))
    (run,) = (store.root / "training").iterdir()
    assert runs.read_state(run) == "interrupted"
    done = retrain.train(store, Options(resume=True))
    assert done.report.run == str(run) and done.report.mode == "full"
    whole = retrain.train(store, Options(recipe=tiny, name="whole"))
    prints = {models.read_card(store.models_folder / one.report.model).fingerprint for one in (done, whole)}
    assert len(prints) == 1


def test_an_interrupted_network_goes_on_with_the_names_it_was_taught(store: Store, tiny: str) -> None:
    whole = retrain.train(store, Options(recipe=tiny, name="whole"))
    with pytest.raises(KeyboardInterrupt):
        retrain.train(store, Options(recipe=tiny), stopped_at("epoch 2 of 2"))
    labels = store.catalogue.labels()
    first, second = np.unique(labels.individuals)[:2].tolist()
    for one, other in ((first, second), (second, first)):  # as many photos and animals as before
        taken = labels.annotations[labels.individuals == one].tolist()[:1]
        store.catalogue.assign(taken, labels.names[other], who="t")
    assert not np.array_equal(store.catalogue.labels().individuals, labels.individuals)
    done = retrain.train(store, Options(resume=True))
    prints = {models.read_card(store.models_folder / one.report.model).fingerprint for one in (done, whole)}
    assert len(prints) == 1 and done.report.verdict == whole.report.verdict


def test_a_training_goes_on_from_an_earlier_network_and_spares_what_that_has_seen(store: Store, tiny: str) -> None:
    first = retrain.train(store, Options(recipe=tiny)).report
    after = retrain.train(store, Options(recipe=tiny, begin_with=first.model)).report
    losses = [json.loads((Path(one.run) / runs.METRICS).read_text())["losses"] for one in (first, after)]
    assert losses[1][0] < losses[0][0]
    learnt = [set(json.loads((Path(one.run) / TRAINED_ON).read_text())["annotations"]) for one in (first, after)]
    pool = judge.pool_of(store, seen=list(learnt[0]))
    assert learnt[1] == learnt[0] | set(pool.labels.annotations[pool.chosen].tolist())
    assert not learnt[0] & set(pool.labels.annotations[pool.judges].tolist())
    everything = pool.labels.annotations.tolist()
    with pytest.raises(TrainError, match="nothing to judge by") as caught:
        judge.pool_of(store, seen=everything)
    assert "--from" in caught.value.next_step


def test_a_nightly_run_trains_as_the_settings_say_and_goes_on_from_last_night(store: Store, tiny: str) -> None:
    shutil.copy(tiny, store.root / "tiny.toml")
    with_rules(store.root, 'recipe = "tiny.toml"\nonwards = true\ntolerance = 1.0\nrefit = false\n')
    first = retrain.night(Store.open(store.root))
    assert isinstance(first, Report) and first.swapped and first.mode == "full"
    second = retrain.night(Store.open(store.root))
    assert isinstance(second, Report) and second.present == first.model
    begun = [json.loads((Path(one.run) / runs.CONFIG).read_text())["options"]["begin_with"] for one in (first, second)]
    assert begun == ["", first.model]


def test_a_network_by_an_earlier_form_of_its_recipe_is_gone_on_from_as_it_is(store: Store, tiny: str) -> None:
    first = retrain.train(store, Options(recipe=tiny, refit=False)).report.model
    text = Path(tiny).read_text()
    assert "dim = 16" in text
    Path(tiny).write_text(text.replace("dim = 16", "dim = 24"))
    second = retrain.train(store, Options(recipe=tiny, begin_with=first, refit=False)).report.model
    anew = retrain.train(store, Options(recipe=tiny, name="anew", refit=False)).report.model
    assert [models.read_card(store.models_folder / one).dim for one in (first, second, anew)] == [16, 16, 24]


def test_a_recipe_that_asks_for_more_than_its_earlier_network_has_is_refused(store: Store, tiny: str) -> None:
    first = retrain.train(store, Options(recipe=tiny, refit=False)).report.model
    Path(tiny).write_text(TINY.replace("dim = 16", "dim = 16\nlocal = 8") + ALIGNED)
    with pytest.raises(ConfigError, match="network.local must be above 0") as caught:
        retrain.train(store, Options(recipe=tiny, begin_with=first))
    assert first in str(caught.value) and "--from" in caught.value.next_step


def test_animals_with_masks_are_shown_before_other_backgrounds_and_counted(store: Store, tiny: str) -> None:
    everything = store.catalogue.labels().annotations.tolist()
    masked = set(everything[::2])
    for info in store.catalogue.annotations(sorted(masked)).values():
        photo = store.catalogue.photos([info.photo])[info.photo]
        mask = np.zeros((photo.height, photo.width), np.bool_)
        x, y = int((info.box.x0 + info.box.x1) / 2), int((info.box.y0 + info.box.y1) / 2)
        mask[y - int(info.box.height / 4) : y + int(info.box.height / 4), x - int(info.box.width / 4) :] = True
        local.keep_masks(store, photo.sha256, {local.key_of(info.box): masks.encoded(mask)})
    Path(tiny).write_text(TINY.replace("grey = 0", "grey = 0\nbackground = 0.5"))
    report = retrain.train(store, Options(recipe=tiny, refit=False)).report
    shown = set(json.loads((Path(report.run) / TRAINED_ON).read_text())["annotations"])
    counted = json.loads((Path(report.run) / runs.METRICS).read_text())["outlined"]
    assert counted == len(shown & masked) > 5
    assert f"{counted} photos with a mask" in (Path(report.run) / runs.LOG).read_text()


def test_another_scale_of_a_recipe_has_its_own_network(store: Store, tiny: str) -> None:
    first = retrain.train(store, Options(recipe=tiny, refit=False)).report.model
    Path(tiny).write_text(TINY + "\n[gpu.network]\ndim = 24\n")
    plans = [
        planning.planned(Options(recipe=tiny, begin_with=first, scale=scale), store) for scale in ("laptop", "gpu")
    ]
    assert [plan.recipe.network.dim for plan in plans if plan.recipe] == [16, 24]


def test_only_a_network_of_the_same_shape_can_be_gone_on_from(store: Store, tiny: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="'colours' is no network that a recipe trained") as caught:
        retrain.train(store, Options(begin_with="colours"))
    assert "reid models" in caught.value.next_step
    first = retrain.train(store, Options(recipe=tiny)).report.model
    with pytest.raises(TrainError, match="a recipe of your own") as caught:  # which is not in the package
        retrain.train(store, Options(begin_with=first))
    assert "--recipe FILE.toml" in caught.value.next_step
    with pytest.raises(TrainError, match="a fold would be judged"):
        retrain.train(store, Options(recipe=tiny, begin_with=first, folds=2))
    other = tmp_path / "other.toml"
    other.write_text(TINY.replace("dim = 16", "dim = 8"))
    with pytest.raises(ModelError, match="does not fit"):
        retrain.train(store, Options(recipe=str(other), begin_with=first))


def test_what_is_trained_unasked_depends_on_machine_and_photos(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    plan = planning.planned(Options(), store)
    assert plan.recipe is None and plan.why.startswith("head, chosen: no CUDA device") and "--mode full" in plan.why
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plan = planning.planned(Options(), store)
    assert plan.recipe is None and "fewer than 1000 are little" in plan.why
    monkeypatch.setattr(planning, "LEAST_FULL", 50)
    plan = planning.planned(Options(), store)
    assert plan.recipe is not None and plan.recipe.scale == "gpu" and plan.why.startswith("full, chosen: a CUDA device")
    store.catalogue.unassign(store.catalogue.labels().annotations.tolist()[:47], who="t")
    plan = planning.planned(Options(), store)
    assert plan.recipe is None and "49 boxes with a name" in plan.why
    assert planning.planned(Options(mode="head"), store).recipe is None
    named = planning.planned(Options(recipe="ninth_cosface", scale="laptop", epochs=3), store).recipe
    assert named is not None and (named.name, named.scale, named.schedule.epochs) == ("ninth_cosface", "laptop", 3)


@pytest.mark.parametrize(("width", "name"), [(64, "any_animal"), (128, "first_place")])
def test_flukes_and_other_animals_have_recipes_of_their_own(
    store: Store, monkeypatch: pytest.MonkeyPatch, width: int, name: str
) -> None:
    seen = replace(store.embedder.card.preprocessing, height=64, width=width)
    monkeypatch.setattr(planning.ensemble, "lead", lambda card: seen)
    plan = planning.planned(Options(mode="full"), store)
    assert plan.recipe is not None and plan.recipe.name == name and f"recipe {name}" in plan.why


def test_an_unknown_recipe_is_refused_before_anything_is_written(store: Store) -> None:
    with pytest.raises(ConfigError, match="no recipe 'fourth_place'"):
        retrain.train(store, Options(recipe="fourth_place"))
    assert not (store.root / "training").exists()
