"""Training on a store: judged on photos it never saw, adopted only when not worse, and whatever goes wrong leaves what
serves as it was.
"""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from fake_stores import assert_index_is_the_catalogue  # noqa: E402
from named_store import live, stopped_at, store  # noqa: E402
from painted_store import herd, one_thread, painted_store, small_head  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from reid import adopt, cli, models, retrain, withheld  # noqa: E402
from reid.config import TrainingConfig  # noqa: E402
from reid.errors import MissingExtra, ModelError, ReidError, TrainError  # noqa: E402
from reid.judge import Figure, Report, Verdict  # noqa: E402
from reid.reindex import reindex  # noqa: E402
from reid.retrain import Options, Refused  # noqa: E402
from reid.store import Store  # noqa: E402
from reid.train import heads, quick, runs  # noqa: E402
from reid.withheld import TRAINED_ON  # noqa: E402

__all__ = ["one_thread", "small_head", "store"]

CONFIG_OF = retrain._quick_config


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
    assert json.loads((run / runs.CONFIG).read_text())["options"]["mode"] == "head"  # not "auto", were it to go on
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


def test_a_head_is_chosen_with_sightings_apart(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    plain = quick.train
    monkeypatch.setattr(
        quick, "train", lambda *some, **more: (given.append(more["sightings"]), plain(*some, **more))[1]
    )
    labels = store.catalogue.labels()
    together = np.arange(len(labels.annotations)) // 2
    monkeypatch.setattr(withheld, "sightings_of", lambda catalogue, labels: together)
    report = retrain.train(store, Options()).report
    seen = json.loads((Path(report.run) / TRAINED_ON).read_text())["annotations"]
    assert given[0].tolist() == together[np.isin(labels.annotations, seen)].tolist()


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
        rest = np.setdiff1d(np.arange(len(vectors)), judges)
        crowded = withheld.crowding_among(store, vectors, labels, rest, withheld.unseen(groups, judges)).relief()
        for asked in judges:
            best: dict[int, float] = {}
            for row in range(len(labels.annotations)):
                if row not in judges and groups[row] != groups[asked]:
                    who = int(labels.individuals[row])
                    best[who] = max(best.get(who, -2.0), float(vectors[row] @ vectors[asked]) - crowded[row])
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


def test_the_command_of_every_night_trains_and_puts_in_force(store: Store) -> None:
    store.close()
    told = CliRunner().invoke(cli.app, ["--store", str(store.root), "reindex", "--train", "--json"])
    assert told.exit_code == 0, told.stdout
    said = json.loads(told.stdout)["training"]
    assert said["swapped"] and "not worse, the new model is in force" in said["reason"]
    assert Store.open(store.root).config.embedder.model == said["model"]
    told = CliRunner().invoke(cli.app, ["--store", str(store.root), "status"])
    assert said["model"] in told.stdout and told.exit_code == 0
    told = CliRunner().invoke(cli.app, ["--store", str(store.root), "reindex"])  # nothing to do, nothing trained
    assert told.exit_code == 0 and "training" not in told.stdout


def test_a_night_on_which_nothing_changed_trains_nothing(store: Store) -> None:
    """The same photos, names, settings and seed make the same model: it would only fill the disk."""
    first = retrain.night(store)
    assert isinstance(first, Report) and first.swapped
    again = retrain.night(store)
    assert isinstance(again, Refused) and not again.failed and first.model in again.reason
    assert [folder.name for folder in sorted(store.models_folder.glob("20*"))] == [first.model]
    other = retrain.night(store, options=Options(seed=1))
    assert isinstance(other, Report)
    asked = retrain.train(store, Options())  # who asks by day is answered
    assert asked.report.model != first.model


@pytest.mark.parametrize("more", [{"recipe": "flukes"}, {"begin_with": "lite0"}, {"minutes": 3.0}])
def test_a_head_is_told_what_it_does_not_know(store: Store, more: dict[str, Any]) -> None:
    with pytest.raises(TrainError, match="leave out --mode head"):
        retrain.train(store, Options(mode="head", **more))


def test_the_next_training_starts_from_the_same_network_and_spares_the_older_models_photos(store: Store) -> None:
    first = reindex(store, who="t", train=retrain.night).training
    second = retrain.night(store, options=Options(seed=1))
    assert isinstance(first, Report) and isinstance(second, Report)
    assert second.base == "colours" and second.present == first.model and second.model == f"{first.model}-2"
    assert second.verdict.photos == 24  # the same judges: the older model has not seen them
    record = Path(first.run) / TRAINED_ON
    everything = store.catalogue.labels().annotations.tolist()
    record.write_text(json.dumps({"annotations": everything}))
    store.root.joinpath("training", second.model, TRAINED_ON).write_text(record.read_text())
    third = retrain.night(store, options=Options(seed=2))
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


def test_ctrl_c_says_what_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(retrain, "train", stopped)
    with pytest.raises(SystemExit) as caught:
        cli.app(["--store", str(store.root), "train"])
    assert caught.value.code == 130 and "the same command with --resume goes on" in capsys.readouterr().err


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


def test_a_training_begun_by_another_version_is_not_resumed(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt):
        retrain.train(store, Options(), stopped_at("views"))
    (run,) = [p for p in (store.root / "training").iterdir() if p.name != retrain.KEPT]
    written = json.loads((run / runs.CONFIG).read_text())
    (run / runs.CONFIG).write_text(json.dumps(written | {"options": written["options"] | {"lanes": 3}}))
    with pytest.raises(TrainError, match=r"those of another version.*lanes.*begin a new training"):
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
    assert done.reason == "10 photos cannot be read any more and would leave the index, the present model stays"


def test_without_torch_training_names_what_to_install(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(MissingExtra, match=r"pip install '\.\[train\]'"):
        retrain.train(store, Options())


def test_an_adoption_that_fails_leaves_the_settings(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    done = retrain.train(store, Options())
    before = live(store)

    def fails(*some: object) -> None:
        raise ReidError("no room")

    monkeypatch.setattr(adopt, "write_atomically", fails)
    with pytest.raises(ReidError, match="no room"):
        adopt.adopt(store, done)
    assert live(store) == before and Store.open(store.root).config.embedder.model == "colours"
