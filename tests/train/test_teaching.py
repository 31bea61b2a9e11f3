"""Folds, pseudo-labels and ensembles of a store, from the command line to an answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from fake_stores import assert_index_is_the_catalogue, labels, taken_in  # noqa: E402
from named_store import stopped_at  # noqa: E402
from painted_store import animal, herd, one_thread, painted_store, small_head, with_rules  # noqa: E402
from PIL import Image  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from reid import assemble, dealt, ensemble, models, retrain, teaching, withheld  # noqa: E402
from reid.alike import Suspected  # noqa: E402
from reid.cli import app  # noqa: E402
from reid.embed import unit_rows  # noqa: E402
from reid.errors import InputError, TrainError  # noqa: E402
from reid.pipeline import identify, query_of  # noqa: E402
from reid.records import Failure  # noqa: E402
from reid.reindex import reindex  # noqa: E402
from reid.retrain import Options  # noqa: E402
from reid.store import Store  # noqa: E402
from reid.train import folds, runs  # noqa: E402
from reid.withheld import TRAINED_ON  # noqa: E402

__all__ = ["one_thread", "small_head"]

ANIMALS, SHOTS, STRANGERS = 24, 5, 6
RULES = "epochs = 8\nviews = 2\npseudo_precision = 0.5\n"


@cache
def _made(root: Path) -> Path:
    """The last photo of every animal has no name, nor have those of six animals more."""
    sightings = herd(root / "photos", ANIMALS + STRANGERS, SHOTS)
    kept = [
        replace(one, identity=None if number >= ANIMALS or shot == SHOTS - 1 else one.identity)
        for number, shot, one in ((i // SHOTS, i % SHOTS, s) for i, s in enumerate(sightings))
        if number < ANIMALS or shot == 0
    ]
    painted_store(root / "store", kept).close()
    settings = root / "store" / "reid.toml"
    settings.write_text(settings.read_text().replace("use = true", "use = false", 1))
    return with_rules(root / "store", RULES)


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Store:
    made = _made(tmp_path_factory.getbasetemp() / "partly-named")
    return Store.open(Path(shutil.copytree(made, tmp_path / "store")))


def told(store: Store, *words: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["--store", str(store.root), *words, "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def use(store: Store, model: str) -> Store:
    """The store with another model in force."""
    path = store.root / "reid.toml"
    path.write_text(path.read_text().replace(f'model = "{store.config.embedder.model}"', f'model = "{model}"', 1))
    store.close()
    return Store.open(store.root)


def test_folds_train_a_model_each_that_answer_together(store: Store, tmp_path: Path) -> None:
    report = told(store, "train", "--mode", "head", "--folds", "3", "--name", "three")
    card = models.read_card(store.models_folder / report["model"])
    assert [one.name for one in ensemble.members_of(card)] == ["fold-1", "fold-2", "fold-3"]
    assert card.extra["base"] == "colours" and report["photos"] == 72
    run = Path(report["run"])
    found = folds.read(run / teaching.SCORES)
    assert len(found.scores) == 72 and set(found.folds.tolist()) == {0, 1, 2}
    assert card.extra["out_of_fold"]["map_at_5"] == pytest.approx(found.map_at_5) and found.map_at_5 > 0.5
    assert not list(run.glob("fold-*")) and runs.read_state(run) == "finished"
    assert report["verdict"]["map_at_5_after"]["value"] > report["verdict"]["map_at_5_before"]["value"]
    again = use(store, report["model"])
    assert reindex(again, who="t").rebuilt
    assert_index_is_the_catalogue(again)
    asked = []
    for number in range(ANIMALS):
        asked.append(tmp_path / f"q{number}.png")
        Image.fromarray(animal(number, 77)).save(asked[-1])
    answers = identify(again, [query_of([one]) for one in asked])
    hits = sum(f"a{n:03d}" in labels(answer) for n, answer in enumerate(answers))
    assert hits >= ANIMALS // 2 and {answer.model for answer in answers} == {report["model"]}


def test_each_photo_is_scored_by_the_model_that_never_saw_it(store: Store) -> None:
    done = retrain.train(store, Options(mode="head", folds=2, name="two"))
    found = folds.read(Path(done.report.run) / teaching.SCORES)
    all_labels, _ = withheld.gathered(store.catalogue, store.fingerprint)
    made = done.folder
    members = [ensemble.open_embedder(made / f"fold-{n}") for n in (1, 2)]
    from reid.judge import embedded

    rows = [unit_rows(embedded(store, one, all_labels, lambda *a: None)[0]) for one in members]
    place = {int(a): row for row, a in enumerate(all_labels.annotations)}
    for line in range(0, len(found.annotations), 7):
        own = rows[found.folds[line]]
        query = own[place[int(found.annotations[line])]]
        for column, code in enumerate(found.identities.tolist()):
            gallery = [
                float(own[place[int(a)]] @ query)
                for other, a in enumerate(found.annotations)
                if found.folds[other] != found.folds[line] and all_labels.individuals[place[int(a)]] == code
            ]
            assert found.scores[line, column] == pytest.approx(max(gallery, default=-np.inf), abs=1e-4)


def test_an_interrupted_run_goes_on_with_the_next_fold(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = retrain.train(store, Options(mode="head", folds=2, name="whole"))
    teach, taught = retrain._head, []

    def broken(*some: Any, **more: Any) -> Any:
        taught.append(some[3].name)
        if len(taught) == 2:
            raise KeyboardInterrupt
        return teach(*some, **more)

    monkeypatch.setattr(retrain, "_head", broken)
    with pytest.raises(KeyboardInterrupt):
        retrain.train(store, Options(mode="head", folds=2, name="cut"))
    done = retrain.train(store, Options(name="cut", resume=True))
    assert taught == ["fold-1", "fold-2", "fold-2"]
    first, second = (models.read_card(one.folder) for one in (whole, done))
    assert first.fingerprint == second.fingerprint


def cut_after(monkeypatch: pytest.MonkeyPatch, lessons: int, **options: Any) -> Callable[[Store], list[str]]:
    """A training that is interrupted after so many lessons; returns the lessons that were taught, then and later."""
    teach, taught = retrain._head, list[str]()

    def broken(*some: Any, **more: Any) -> Any:
        taught.append(some[3].name)
        if len(taught) == lessons + 1:
            raise KeyboardInterrupt
        return teach(*some, **more)

    def cut(store: Store) -> list[str]:
        monkeypatch.setattr(retrain, "_head", broken)
        with pytest.raises(KeyboardInterrupt):
            retrain.train(store, Options(mode="head", name="cut", **options))
        return taught

    return cut


def test_a_resumed_run_keeps_to_the_photos_names_and_judges_that_it_began_with(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = retrain.train(store, Options(mode="head", folds=3, name="whole"))
    taught = cut_after(monkeypatch, 1, folds=3)(store)
    found = store.catalogue.labels()
    unnamed = found.annotations[found.individuals < 0].tolist()
    store.catalogue.assign(unnamed[:4], "somebody", who="t")
    store.catalogue.merge("a000", "a001", who="t")
    taken_in(store, herd(tmp_path / "later", 24, SHOTS + 1)[2 * (SHOTS + 1) + SHOTS :: SHOTS + 1])
    done = retrain.train(store, Options(name="cut", resume=True))
    assert taught == ["fold-1", "fold-2", "fold-2", "fold-3"]
    first, second = (models.read_card(one.folder) for one in (whole, done))
    assert first.fingerprint == second.fingerprint
    scores = [folds.read(Path(one.report.run) / teaching.SCORES) for one in (whole, done)]
    for one in ("annotations", "identities", "folds", "truth", "scores"):
        np.testing.assert_array_equal(*(getattr(each, one) for each in scores))
    assert whole.report.verdict == done.report.verdict and done.report.photos == whole.report.photos
    log = (Path(done.report.run) / runs.LOG).read_text()
    assert "8 photos that have another name now keep theirs, 22 photos that have come since" in log
    assert not (Path(done.report.run) / dealt.DEALT).exists()


def test_a_run_whose_photos_are_gone_or_would_be_judged_otherwise_is_not_resumed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_after(monkeypatch, 1, folds=3)(store)
    resume = Options(name="cut", resume=True)
    (run,) = (store.root / "training").glob("*-cut")
    record = store.root / "training" / "colours" / TRAINED_ON
    record.parent.mkdir()
    record.write_text(json.dumps({"annotations": store.catalogue.labels().annotations.tolist()[:40]}))
    with pytest.raises(TrainError, match="other photos would judge it now") as caught:
        retrain.train(store, resume)
    assert "begins anew" in caught.value.next_step and caught.value.source == str(run)
    record.unlink()
    settings = json.loads((run / runs.CONFIG).read_text())
    (run / runs.CONFIG).write_text(json.dumps(settings | {"training": settings["training"] | {"white": 3}}))
    with pytest.raises(TrainError, match="with other settings"):
        retrain.train(store, resume)
    (run / runs.CONFIG).write_text(json.dumps(settings))
    kept = (run / dealt.DEALT).read_bytes()
    (run / dealt.DEALT).write_bytes(kept[:99])
    with pytest.raises(TrainError, match="cannot be read"):
        retrain.train(store, resume)
    (run / dealt.DEALT).write_bytes(kept)
    some = store.catalogue.labels().photos[:2].tolist()
    store.catalogue.remove(some, who="t")
    with pytest.raises(TrainError, match=r"2 of its \d+ photos are gone"):
        retrain.train(store, resume)


def test_photos_that_come_to_link_two_sightings_end_a_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_after(monkeypatch, 1, folds=3)(store)
    plain = withheld.sightings_of
    monkeypatch.setattr(withheld, "sightings_of", lambda *some: np.minimum(plain(*some), 100))
    with pytest.raises(TrainError, match="other sightings"):
        retrain.train(store, Options(name="cut", resume=True))


def test_a_fold_that_was_done_before_keeps_its_failures_and_suspects(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach = retrain._head
    failure = Failure("gone.jpg", "bad_photo", "not there", "look for it")
    suspect = Suspected("a000", "a001", (1, 2), 0.97, "reid individuals merge a000 a001")

    def telling(*some: Any, **more: Any) -> teaching.Made:
        made = teach(*some, **more)
        told = some[3].name == "fold-1"
        return replace(made, failures=(failure,), suspects=(suspect,)) if told else made

    monkeypatch.setattr(retrain, "_head", telling)
    cut_after(monkeypatch, 1, folds=2)(store)
    report = retrain.train(store, Options(name="cut", resume=True)).report
    assert report.failures == (failure,) and report.suspects == (suspect,)
    metrics = json.loads((Path(report.run) / runs.METRICS).read_text())
    assert [len(one["losses"]) for one in metrics["folds"]] == [8, 8]


def test_a_lesson_is_learnt_again_only_where_it_is_another(tmp_path: Path) -> None:
    taught = []

    def teach(lesson: teaching.Lesson) -> teaching.Made:
        taught.append(lesson.names)
        (lesson.folder / lesson.name).mkdir(exist_ok=True)
        (lesson.folder / lesson.name / models.CARD).touch()
        return teaching.Made(lesson.folder / lesson.name, 2, (), {"head": 1.5}, {"tried": (0.5,)}, "well", also=(7,))

    lesson = teaching.Lesson(np.array([3, 4]), ("1", "2"), tmp_path / "fold-1", "fold-1")
    first, second = (teaching.learnt(teach, lesson) for _ in range(2))
    assert (first.line, second.line) == ("well", "fold-1 was there: well") and len(taught) == 1
    assert replace(second, line="well", notes={}) == replace(first, notes={})
    for other in (replace(lesson, names=("1", "3")), replace(lesson, rows=np.array([3, 5])), lesson):
        teaching.learnt(teach, other)
    assert taught == [("1", "2"), ("1", "3"), ("1", "2"), ("1", "2")]


def test_a_run_that_was_interrupted_while_it_was_judged_is_not_taught_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        retrain.train(store, Options(mode="head", name="cut"), stopped_at("judge"))
    monkeypatch.setattr(retrain, "_head", lambda *some, **more: pytest.fail("taught again"))
    report = retrain.train(store, Options(name="cut", resume=True)).report
    run = Path(report.run)
    assert len(json.loads((run / runs.METRICS).read_text())["losses"]) == 8
    assert not (run / teaching.DONE).exists() and report.verdict.photos == ANIMALS


def test_rounds_learn_from_photos_without_a_name_and_leave_the_catalogue_alone(store: Store) -> None:
    before = store.catalogue.labels()
    report = told(store, "train", "--mode", "head", "--pseudo-rounds", "2", "--name", "self")
    after = store.catalogue.labels()
    np.testing.assert_array_equal(before.individuals, after.individuals)
    run = Path(report["run"])
    metrics = json.loads((run / runs.METRICS).read_text())
    first, second = metrics["pseudo_rounds"]
    assert first["photos"] > 0 and first["precision"] >= 0.5 and first["threshold"] < 1
    assert len(second["taken_for"]) == second["photos"] and report["photos"] == 72 + second["photos"]
    unnamed = set(before.annotations[before.individuals < 0].tolist())
    learnt = set(json.loads((run / TRAINED_ON).read_text())["annotations"])
    assert {int(a) for a in second["taken_for"]} == learnt & unnamed
    names = {int(a): name for a, name in second["taken_for"].items()}
    infos = store.catalogue.annotations(sorted(names))
    right = [Path(infos[a].path).name.startswith(name[1:]) for a, name in names.items()]
    assert np.mean(right) >= 0.5
    assert "without a name got one" in (run / runs.LOG).read_text() and not list(run.glob("round-*"))


def test_names_that_would_be_wrong_too_often_end_the_training(store: Store) -> None:
    path = store.root / "reid.toml"
    path.write_text(path.read_text().replace("pseudo_precision = 0.5", "pseudo_precision = 0.999"))
    with pytest.raises(TrainError, match="are asked for"):
        retrain.train(Store.open(store.root), Options(mode="head", pseudo_rounds=1, name="self"))


def test_folds_and_rounds_together_keep_names_within_their_fold(store: Store) -> None:
    path = store.root / "reid.toml"
    path.write_text(path.read_text().replace("pseudo_precision = 0.5", "pseudo_precision = 0.2"))
    done = retrain.train(Store.open(store.root), Options(mode="head", folds=2, pseudo_rounds=1, name="both"))
    metrics = json.loads((Path(done.report.run) / runs.METRICS).read_text())
    assert [len(one["pseudo_rounds"]) for one in metrics["folds"]] == [1, 1]
    assert len(ensemble.members_of(models.read_card(done.folder))) == 2


def test_models_of_a_store_become_one_by_photos_that_none_was_trained_on(store: Store) -> None:
    made = [retrain.train(store, Options(mode="head", name=f"m{seed}", seed=seed)).report.model for seed in (0, 1)]
    found = told(store, "ensemble", "pair", "colours", *made)
    assert found["members"] == ["colours", *made] and found["queries"] == ANIMALS
    assert found["fusion"]["map_at_5"] >= max(found["fusion"]["singles"]) >= 0
    assert found["served"] in found["tried"] and found["tried"][0]["name"] == "equal shares"
    assert found["served"]["map_at_5"] == max(one["map_at_5"] for one in found["tried"])
    after = found["report"]["verdict"]["map_at_5_after"]["value"]
    assert after == pytest.approx(found["served"]["map_at_5"]) and found["report"]["verdict"]["photos"] == ANIMALS
    card = models.read_card(store.models_folder / found["report"]["model"])
    assert [m.name for m in ensemble.members_of(card)] == ["colours", *made]
    assert card.extra["fusion"]["alpha"] == found["fusion"]["alpha"]
    seen = json.loads((store.root / "training" / card.name / TRAINED_ON).read_text())["annotations"]
    assert len(seen) == 72
    again = use(store, card.name)
    reindex(again, who="t")
    assert_index_is_the_catalogue(again)


def test_a_member_whose_vectors_lie_close_together_has_its_share_all_the_same() -> None:
    """Rows of the second lie near their mean; weighed, both are spread about theirs alike."""
    rng = np.random.default_rng(0)
    wide, close = (unit_rows(rng.normal(size=(400, 32)) + far) for far in (0.0, 10.0))
    weights = assemble.balanced([wide, close], (0.5, 0.5))
    assert sum(weights) == pytest.approx(1) and weights[1] > 50 * weights[0]
    spread = [float(np.mean([np.sum((row - one.mean(0)) ** 2) for row in one])) for one in (wide, close)]
    assert spread[0] > 50 * spread[1] and weights[1] * spread[1] == pytest.approx(weights[0] * spread[0], rel=1e-4)
    assert assemble.balanced([wide, wide], (0.25, 0.75)) == pytest.approx((0.25, 0.75))
    assert assemble.balanced([wide, np.ones((9, 4)) / 2], (0.5, 0.5))[1] > 0.99  # all alike: finite at least


def test_what_cannot_be_put_together_is_a_typed_error(store: Store) -> None:
    with pytest.raises(InputError, match="two different models"):
        assemble.assembled(store, ["colours"], "one")
    with pytest.raises(InputError, match="two different models"):
        assemble.assembled(store, ["colours", "colours"], "one")
    with pytest.raises(TrainError, match="folds"):
        retrain.train(store, Options(folds=1))
    everything = store.catalogue.labels().annotations.tolist()
    (store.root / "training" / "greedy").mkdir(parents=True)
    (store.root / "training" / "greedy" / TRAINED_ON).write_text(json.dumps({"annotations": everything}))
    shutil.copytree(store.models_folder / "colours", store.models_folder / "greedy")
    with pytest.raises(TrainError, match="0 held-out photos"):
        assemble.assembled(store, ["colours", "greedy"], "spoilt")
    assert "spoilt" not in " ".join(card.name for card in models.listed(store.models_folder))
