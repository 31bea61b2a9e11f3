"""Training on a store: judged on photos it never saw, adopted only when not worse, and whatever goes wrong leaves what
serves as it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from fake_stores import assert_index_is_the_catalogue  # noqa: E402
from painted_store import herd, one_thread, painted_store, small_head, with_rules  # noqa: E402

from reid import adopt, config, fit, judge, local, models, rescore, retrain, siamese, withheld  # noqa: E402
from reid.config import TrainingConfig  # noqa: E402
from reid.errors import ConfigError, MissingExtra, ModelError, ReidError, TrainError  # noqa: E402
from reid.judge import Figure, Report, Verdict  # noqa: E402
from reid.reindex import reindex  # noqa: E402
from reid.retrain import Options, Refused  # noqa: E402
from reid.store import Store  # noqa: E402
from reid.train import heads, quick, runs  # noqa: E402
from reid.withheld import TRAINED_ON  # noqa: E402

__all__ = ["one_thread", "small_head"]

ANIMALS, SHOTS = 24, 4
CONFIG_OF = retrain._quick_config
RULES = "epochs = 8\nviews = 2\ntolerance = 0.0\n"


@cache
def _made(root: Path) -> Path:
    painted_store(root / "store", herd(root / "photos", ANIMALS, SHOTS)).close()
    return with_rules(root / "store", RULES)


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Store:
    made = _made(tmp_path_factory.getbasetemp() / "painted")
    return Store.open(Path(shutil.copytree(made, tmp_path / "store")))


def live(store: Store) -> dict[str, str]:
    """Checksums of what serves: settings, index and calibration."""
    kept = [store.root / "reid.toml", *store.index_folder.rglob("*"), store.root / "calibration.json"]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(kept) if p.is_file()}


def test_a_training_is_judged_on_photos_apart_and_changes_nothing_that_serves(store: Store) -> None:
    before = live(store)
    done = retrain.train(store, Options(name="night"))
    assert live(store) == before
    report = done.report
    assert report.model.endswith("-night") and not report.swapped and report.base == "colours" == report.present
    found = report.verdict
    assert found.photos == found.animals == 24 and report.photos == 72 and report.animals == 24 and found.lost == 0
    assert found.map_at_5_after.value > found.map_at_5_before.value + 0.1
    assert found.gain.value == pytest.approx(found.map_at_5_after.value - found.map_at_5_before.value)
    assert found.gain.low <= found.gain.value <= found.gain.high
    run = store.root / "training" / report.model
    names = {runs.CONFIG, runs.LOG, runs.METRICS, runs.CURVES, runs.STATE, TRAINED_ON, report.model}
    assert {p.name for p in run.iterdir()} == names and runs.read_state(run) == "finished"
    card = models.read_card(store.models_folder / report.model)
    assert card.fingerprint == models.read_card(run / report.model).fingerprint
    metrics = json.loads((run / runs.METRICS).read_text())
    assert metrics["verdict"]["map_at_5_after"]["value"] == found.map_at_5_after.value and len(metrics["losses"]) == 8


def test_settings_and_options_say_how_to_train(store: Store) -> None:
    plain = quick.QuickConfig()
    said, asked = (CONFIG_OF(store, options) for options in (Options(), Options(epochs=3, views=5, seed=9)))
    assert [head.epochs for head in said.heads] == [8] * len(plain.heads) and (said.views, said.seed) == (2, 0)
    assert asked == replace(plain, views=5, seed=9, heads=tuple(replace(head, epochs=3) for head in plain.heads))


def test_judges_and_their_sightings_are_not_trained_on(store: Store) -> None:
    labels = store.catalogue.labels()
    groups = withheld.sightings_of(store.catalogue, labels)
    judges = withheld.chosen_queries(labels.individuals, groups)
    report = retrain.train(store, Options()).report
    seen = json.loads((Path(report.run) / TRAINED_ON).read_text())["annotations"]
    assert len(judges) == 24 and len(seen) == report.photos
    assert not set(groups[np.isin(labels.annotations, seen)]) & set(groups[judges])


def test_once_in_force_a_model_is_measured_on_photos_that_it_has_not_learnt(store: Store) -> None:
    labels = store.catalogue.labels()
    groups = withheld.sightings_of(store.catalogue, labels)
    assert not withheld.learnt(store, labels, groups).any()
    done = retrain.train(store, Options())
    adopt.adopt(store, done)
    now = Store.open(store.root)
    learnt = withheld.learnt(now, labels, groups)
    seen = json.loads((Path(done.report.run) / TRAINED_ON).read_text())["annotations"]
    assert set(labels.annotations[learnt].tolist()) >= set(seen) and 0 < int((~learnt).sum())
    for each in (1, 2):
        asked = withheld.chosen_queries(labels.individuals, groups, allowed=~learnt, each=each)
        assert len(asked) and not set(labels.annotations[asked].tolist()) & set(seen)


def test_a_model_that_is_brought_to_another_store_says_which_of_its_photos_it_has_learnt(store: Store) -> None:
    done = retrain.train(store, Options())
    seen = json.loads((Path(done.report.run) / TRAINED_ON).read_text())["annotations"]
    shutil.rmtree(store.root / "training")
    assert withheld.trained_on_by(store, done.report.model).tolist() == sorted(seen)
    (store.models_folder / done.report.model / models.LEARNT).write_text("{")
    with pytest.raises(ModelError, match="trained on"):
        withheld.trained_on_by(store, done.report.model)


def test_the_verdict_is_that_of_plain_loops_over_the_left_out_photos(store: Store) -> None:
    done = retrain.train(store, Options())
    labels, old = withheld.gathered(store.catalogue, store.fingerprint)
    groups = withheld.sightings_of(store.catalogue, labels)
    judges = withheld.chosen_queries(labels.individuals, groups)
    for vectors, figure, first in (
        (old, done.report.verdict.map_at_5_before, done.report.verdict.top1_before),
        (done.vectors, done.report.verdict.map_at_5_after, done.report.verdict.top1_after),
    ):
        points, hits = [], []
        for asked in judges:
            best: dict[int, float] = {}
            for row in range(len(labels.annotations)):
                if row not in judges and groups[row] != groups[asked]:
                    who = int(labels.individuals[row])
                    best[who] = max(best.get(who, -2.0), float(vectors[row] @ vectors[asked]))
            rank = sorted(best, key=lambda who: -best[who]).index(int(labels.individuals[asked])) + 1
            points.append(1 / rank if rank <= 5 else 0.0)
            hits.append(rank == 1)
        assert figure.value == pytest.approx(np.mean(points)) and first.value == pytest.approx(np.mean(hits))


def test_a_nightly_run_puts_a_better_model_in_force(store: Store) -> None:
    old = store.gallery().fingerprint
    done = reindex(store, who="t", train=retrain.night)
    assert isinstance(done.training, Report) and done.training.swapped
    assert (done.rebuilt, done.photos_before, done.photos_now) == ("a new model", 96, 96)
    assert "not worse, the new model is in force" in done.training.reason
    fresh = Store.open(store.root)
    assert fresh.config.embedder.model == done.training.model
    assert fresh.gallery().fingerprint.partition("/")[0] == fresh.fingerprint != old.partition("/")[0]
    assert_index_is_the_catalogue(fresh)
    again = reindex(fresh, who="t")
    assert (again.embedded, again.rebuilt, again.photos_now) == (0, "", 96)


def test_the_next_training_starts_from_the_same_network_and_spares_the_older_models_photos(store: Store) -> None:
    first = reindex(store, who="t", train=retrain.night).training
    second = retrain.night(store)
    assert isinstance(first, Report) and isinstance(second, Report)
    assert second.base == "colours" and second.present == first.model and second.model == f"{first.model}-2"
    assert second.verdict.photos == 24  # the same judges: the older model has not seen them
    record = Path(first.run) / TRAINED_ON
    everything = store.catalogue.labels().annotations.tolist()
    record.write_text(json.dumps({"annotations": everything}))
    store.root.joinpath("training", second.model, TRAINED_ON).write_text(record.read_text())
    third = retrain.night(store)
    assert isinstance(third, Report) and third.verdict.photos == 0 and not third.swapped
    assert "0 photos of known animals could judge" in third.reason


def test_a_worse_model_stays_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = live(store)
    train_head = heads.train_head

    def forgetful(*some: Any, **more: Any) -> heads.Head:
        head = train_head(*some, **more)
        layer = head.layers[-1]
        blind = np.zeros_like(layer.matrix)
        blind[:, 0] = 1.0  # all that is left of a photo is one number
        return replace(head, layers=(replace(layer, matrix=blind),))

    monkeypatch.setattr(heads, "train_head", forgetful)
    done = reindex(store, who="t", train=retrain.night)
    assert isinstance(done.training, Report) and not done.training.swapped and done.rebuilt == ""
    assert done.training.reason.endswith("worse, the present model stays")
    assert live(store) == before
    assert done.training.model in {card.name for card in models.listed(store.models_folder)}


@pytest.mark.parametrize(
    ("before", "after", "photos", "lost", "rules", "said"),
    [
        (0.5, 0.5, 30, 0, TrainingConfig(), "not worse"),
        (0.5, 0.49, 30, 0, TrainingConfig(), "worse, the present"),
        (0.5, 0.49, 30, 0, TrainingConfig(tolerance=0.02), "not worse"),
        (0.5, 0.51, 30, 0, TrainingConfig(tolerance=-0.02), "worse, the present"),
        (0.5, float("nan"), 30, 0, TrainingConfig(), "worse, the present"),
        (0.5, 0.9, 19, 0, TrainingConfig(), "20 are needed"),
        (0.5, 0.9, 30, 2, TrainingConfig(), "2 photos cannot be read"),
        (0.5, 0.9, 30, 2, TrainingConfig(may_lose=0.05), "not worse"),
    ],
)
def test_when_a_new_model_comes_into_force(
    before: float, after: float, photos: int, lost: int, rules: TrainingConfig, said: str
) -> None:
    figures = [Figure(v, v, v) for v in (before, after, after - before, before, after)]
    verdict = Verdict(photos, photos, *figures, 0.0, 0.0, lost)
    reason, swapped = adopt.decision(Report("m", "head", "", "", "b", "b", 100, 30, verdict), rules)
    assert said in reason and swapped == ("not worse" in said)


def stopped_at(stage: str) -> Any:
    def progress(what: str, done: int, total: int) -> None:
        if what == stage:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("stage", ["views", "judge"])
def test_a_training_that_was_interrupted_leaves_the_index_alone_and_is_resumed(store: Store, stage: str) -> None:
    before = live(store)
    with pytest.raises(KeyboardInterrupt):
        reindex(store, who="t", train=lambda s, p: retrain.night(s, stopped_at(stage)))
    assert live(store) == before
    (run,) = [p for p in (store.root / "training").iterdir() if p.name != retrain.KEPT]
    assert runs.read_state(run) == "interrupted"
    assert not (store.models_folder / run.name).exists()
    done = retrain.train(store, Options(resume=True))
    assert done.report.run == str(run) and runs.read_state(run) == "finished" and live(store) == before
    whole = retrain.train(store, Options(name="whole"))
    prints = {models.read_card(store.models_folder / r.report.model).fingerprint for r in (done, whole)}
    assert len(prints) == 1
    with pytest.raises(TrainError, match="no unfinished training"):
        retrain.train(store, Options(resume=True))


def full_disk(*some: object, **more: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("module", "name", "spoilt", "code", "message"),
    [
        (runs.Run, "log", full_disk, "bad_training", "No space left on device"),
        (models, "write", full_disk, "bad_training", "No space left on device"),
        (retrain.shutil, "copytree", full_disk, "bad_training", "No space left on device"),  # type: ignore[attr-defined]
        (quick, "whiten", lambda *a, **k: (_ for _ in ()).throw(TrainError("the loss is no number")), "bad_training", "no number"),
    ],
)  # fmt: skip
def test_a_full_disk_or_a_lost_loss_is_reported_and_the_nightly_run_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, spoilt: Any, code: str, message: str
) -> None:
    before = live(store)
    with monkeypatch.context() as patched:
        patched.setattr(module, name, spoilt)
        done = reindex(store, who="t", train=retrain.night)
    assert isinstance(done.training, Refused) and not done.training.swapped
    assert done.training.code == code and message in done.training.reason and done.photos_now == 96
    assert live(store) == before
    (run,) = [p for p in (store.root / "training").iterdir() if p.name != retrain.KEPT]
    assert runs.read_state(run).startswith("failed: ")
    assert {card.name for card in models.listed(store.models_folder)} == {"colours"}


@pytest.mark.parametrize(
    ("animals", "shots", "name", "message"),
    [
        (1, 6, "one", "photos of 1 animals with a name: there is nothing to tell apart"),
        (12, 1, "a{}", "no animal has photos of two sightings apart from one another"),
    ],
)
def test_too_little_to_train_on_is_a_typed_error(
    tmp_path: Path, animals: int, shots: int, name: str, message: str
) -> None:
    store = painted_store(tmp_path / "store", herd(tmp_path / "photos", animals, shots, name=name))
    before = live(store)
    with pytest.raises(TrainError, match=message):
        retrain.train(store, Options())
    refused = reindex(store, who="t", train=retrain.night).training
    assert isinstance(refused, Refused) and refused.code == "bad_training" and refused.next_step.startswith("enrol")
    assert live(store) == before


def test_photos_that_vanished_count_against_the_new_model(store: Store) -> None:
    for file in store.catalogue.known_files()[:10]:
        Path(file.path).rename(Path(file.path).with_suffix(".away"))
    try:
        done = retrain.night(store)
    finally:
        for file in store.catalogue.known_files()[:10]:
            Path(file.path).with_suffix(".away").rename(file.path)
    assert isinstance(done, Report) and not done.swapped and done.verdict.lost == 10
    assert done.reason == "10 photos cannot be read any more and would leave the index: the present model stays"


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
    opened = Store.open(with_rules(store.root, "tolerance = 1.0\n"))
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


def test_a_training_goes_on_from_an_earlier_network_and_spares_what_that_has_seen(store: Store, tiny: str) -> None:
    first = retrain.train(store, Options(recipe=tiny)).report
    after = retrain.train(store, Options(recipe=tiny, begin_with=first.model)).report
    losses = [json.loads((Path(one.run) / runs.METRICS).read_text())["losses"] for one in (first, after)]
    assert losses[1][0] < losses[0][0]
    learnt = [set(json.loads((Path(one.run) / TRAINED_ON).read_text())["annotations"]) for one in (first, after)]
    pool = judge.pool_of(store, seen=list(learnt[0]))
    assert learnt[1] == learnt[0] | set(pool.labels.annotations[pool.chosen].tolist())
    assert not learnt[0] & set(pool.labels.annotations[pool.judges].tolist())


def test_a_nightly_run_trains_as_the_settings_say_and_goes_on_from_last_night(store: Store, tiny: str) -> None:
    shutil.copy(tiny, store.root / "tiny.toml")
    with_rules(store.root, 'recipe = "tiny.toml"\nonwards = true\ntolerance = 1.0\n')
    first = retrain.night(Store.open(store.root))
    assert isinstance(first, Report) and first.swapped and first.mode == "full"
    second = retrain.night(Store.open(store.root))
    assert isinstance(second, Report) and second.present == first.model
    begun = [json.loads((Path(one.run) / runs.CONFIG).read_text())["options"]["begin_with"] for one in (first, second)]
    assert begun == ["", first.model]


def test_only_a_network_of_the_same_shape_can_be_gone_on_from(store: Store, tiny: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="'colours' is no network that a recipe trained") as caught:
        retrain.train(store, Options(begin_with="colours"))
    assert "reid models" in caught.value.next_step
    first = retrain.train(store, Options(recipe=tiny)).report.model
    with pytest.raises(ConfigError, match="no recipe 'tiny'"):  # one's own file is not in the package
        retrain.train(store, Options(begin_with=first))
    with pytest.raises(TrainError, match="a fold would be judged"):
        retrain.train(store, Options(recipe=tiny, begin_with=first, folds=2))
    other = tmp_path / "other.toml"
    other.write_text(TINY.replace("dim = 16", "dim = 8"))
    with pytest.raises(ModelError, match="does not fit"):
        retrain.train(store, Options(recipe=str(other), begin_with=first))


def test_what_is_trained_unasked_depends_on_machine_and_photos(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    plan = retrain._planned(Options(), store)
    assert plan.recipe is None and plan.why.startswith("head, chosen: no CUDA device") and "--mode full" in plan.why
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plan = retrain._planned(Options(), store)
    assert plan.recipe is None and "fewer than 1000 are little" in plan.why
    monkeypatch.setattr(retrain, "LEAST_FULL", 50)
    plan = retrain._planned(Options(), store)
    assert plan.recipe is not None and plan.recipe.scale == "gpu" and plan.why.startswith("full, chosen: a CUDA device")
    assert retrain._planned(Options(mode="head"), store).recipe is None
    named = retrain._planned(Options(recipe="ninth_cosface", scale="laptop", epochs=3), store).recipe
    assert named is not None and (named.name, named.scale, named.schedule.epochs) == ("ninth_cosface", "laptop", 3)


@pytest.mark.parametrize(("width", "name"), [(64, "any_animal"), (128, "first_place")])
def test_flukes_and_other_animals_have_recipes_of_their_own(
    store: Store, monkeypatch: pytest.MonkeyPatch, width: int, name: str
) -> None:
    seen = replace(store.embedder.card.preprocessing, height=64, width=width)
    monkeypatch.setattr(retrain.ensemble, "lead", lambda card: seen)
    plan = retrain._planned(Options(mode="full"), store)
    assert plan.recipe is not None and plan.recipe.name == name and f"recipe {name}" in plan.why


def test_an_unknown_recipe_is_refused_before_anything_is_written(store: Store) -> None:
    with pytest.raises(ConfigError, match="no recipe 'fourth_place'"):
        retrain.train(store, Options(recipe="fourth_place"))
    assert not (store.root / "training").exists()


def test_without_torch_training_names_what_to_install(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(MissingExtra, match=r"pip install '\.\[train\]'"):
        retrain.train(store, Options())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[embedder]\nmodel = "a"  # why\nx = 1\n', '[embedder]\nmodel = "new"  # why\nx = 1\n'),
        ("[embedder]\n model='a'\n", '[embedder]\n model = "new"\n'),
        ('[other]\nmodel = "a"\n[embedder]\nx = 1\n', '[other]\nmodel = "a"\n[embedder]\nmodel = "new"\nx = 1\n'),
        ('[embedder]\n[other]\nmodel = "a"\n', '[embedder]\nmodel = "new"\n[other]\nmodel = "a"\n'),
        ("[embedder]", '[embedder]\nmodel = "new"\n'),
        ("x = 1", 'x = 1\n\n[embedder]\nmodel = "new"\n'),
    ],
)
def test_a_models_name_is_written_into_the_settings_and_nothing_else_changes(text: str, expected: str) -> None:
    assert adopt.with_model(text, "new") == expected


def test_the_template_of_settings_takes_a_models_name() -> None:
    text = config.TEMPLATE.format(species="", new_label="new")
    changed = adopt.with_model(text, "2026-11-21-head")
    assert config.parse(changed, "x").embedder.model == "2026-11-21-head"
    assert changed.count("2026-11-21-head") == 1 and len(changed.splitlines()) == len(text.splitlines())


def test_an_adoption_that_fails_leaves_the_settings(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    done = retrain.train(store, Options())
    before = live(store)

    def fails(*some: object) -> None:
        raise ReidError("no room")

    monkeypatch.setattr(adopt, "write_atomically", fails)
    with pytest.raises(ReidError, match="no room"):
        adopt.adopt(store, done)
    assert live(store) == before and Store.open(store.root).config.embedder.model == "colours"
