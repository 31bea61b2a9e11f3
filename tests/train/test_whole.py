"""What a whole network of a store is shown beside its lesson: photos of nobody known, and judges who tell a curve."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from fake_stores import MORNING, seen  # noqa: E402
from painted_store import animal, colour_graph, herd, one_thread, painted_store, small_head  # noqa: E402
from test_retrain_whole import TINY, tiny  # noqa: E402

from reid import judge, models, retrain, whole  # noqa: E402
from reid.errors import ConfigError, TrainError  # noqa: E402
from reid.retrain import Options  # noqa: E402
from reid.store import Store  # noqa: E402
from reid.teaching import Lesson  # noqa: E402
from reid.train import backbone, holdout, runs  # noqa: E402
from reid.train.holdout import Split  # noqa: E402
from reid.withheld import TRAINED_ON  # noqa: E402

__all__ = ["one_thread", "small_head", "tiny"]

ANIMALS, SHOTS, STRANGERS = 20, 3, 6


@pytest.fixture(autouse=True)
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turning a network into a graph takes seconds: here colours answer in its place, and its weights lie beside."""

    def write(made: Any, card: models.ModelCard, folder: Path) -> Path:
        return models.write(folder, replace(card, dim=48), colour_graph(), backbone.tensors_of(made.network))

    monkeypatch.setattr(backbone, "export", write)


NEW = TINY.replace("scale = 12", "scale = 12\nuniform = 0.5").replace("mirror", "new_share = 0.25\nmirror")


@cache
def _made(root: Path) -> Path:
    """Named animals; strangers without a name; and a photo without a name in the first sighting of every animal."""
    named = herd(root / "photos", ANIMALS, SHOTS)
    strangers = [replace(one, identity=None) for one in herd(root / "strangers", ANIMALS + STRANGERS, 1)[ANIMALS:]]
    beside = []
    for number in range(ANIMALS):
        path = root / f"beside-{number}.png"
        cv2.imwrite(str(path), animal(number, 50)[:, :, ::-1])
        for shot in range(SHOTS):
            if shot == number % SHOTS:
                beside.append(seen(path, None, encounter=f"{number}-{shot}", taken_at=MORNING))
    strangers = [replace(one, encounter=f"stranger-{i}") for i, one in enumerate(strangers)]
    painted_store(root / "store", [*named, *strangers, *beside]).close()
    return root / "store"


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Store:
    made = _made(tmp_path_factory.getbasetemp() / "strangers")
    return Store.open(Path(shutil.copytree(made, tmp_path / "store")))


@pytest.fixture
def fresh(tiny: str, tmp_path: Path) -> str:
    """A recipe with room for photos of nobody known."""
    (tmp_path / "fresh.toml").write_text(NEW)
    return str(tmp_path / "fresh.toml")


def learnt_photos(store: Store, run: str) -> set[str]:
    found = json.loads((Path(run) / TRAINED_ON).read_text())["annotations"]
    return {Path(info.path).name for info in store.catalogue.annotations(found).values()}


def test_photos_without_a_name_are_shown_as_nobody_known_and_never_judge(store: Store, fresh: str, tiny: str) -> None:
    strangers = {f"{number:03d}-0.png" for number in range(ANIMALS, ANIMALS + STRANGERS)}
    plain = retrain.train(store, Options(recipe=tiny)).report
    done = retrain.train(store, Options(recipe=fresh))
    infos = store.catalogue.annotations(json.loads((Path(done.report.run) / TRAINED_ON).read_text())["annotations"])
    unnamed = [info.path for info in infos.values() if info.individual is None]
    assert {Path(one).name for one in unnamed} == strangers and all("strangers" in str(one) for one in unnamed)
    assert done.report.photos == plain.photos + STRANGERS and done.report.animals == plain.animals
    assert "6 photos without a name" in (Path(done.report.run) / runs.LOG).read_text()
    listed = models.read_learnt(done.folder)
    assert {hashlib.sha256(store.resolve(one).read_bytes()).hexdigest() for one in unnamed} < listed
    assert len(listed) == len(models.read_learnt(store.models_folder / plain.model)) + STRANGERS
    again = json.loads((Path(plain.run) / TRAINED_ON).read_text())["annotations"]
    assert all(info.individual is not None for info in store.catalogue.annotations(again).values())


def test_a_trial_for_pseudo_labels_does_not_learn_that_the_unnamed_are_nobody(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reid.train import embedder, recipe

    given: list[list[str]] = []

    def train(sources: Any, names: list[str], *some: Any, **more: Any) -> None:
        given.append(names)
        raise KeyboardInterrupt

    monkeypatch.setattr(embedder, "train", train)
    how, pool = recipe.parse(NEW, "fresh", "laptop"), retrain.pool_of(store)
    lesson = Lesson(pool.chosen, pool.names, store.root / "run", "m")
    for one in (lesson, replace(lesson, trial=True)):
        with pytest.raises(KeyboardInterrupt):
            whole.teach(store, how, "colours", pool, one, lambda *a: None, lambda *a: None)
    assert [names.count("") for names in given] == [STRANGERS, 0]


def test_the_judges_tell_a_curve_that_decides_nothing(
    store: Store, fresh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = retrain.train(store, Options(recipe=fresh)).report
    metrics = json.loads((Path(told.run) / runs.METRICS).read_text())
    assert len(metrics["epochs"]) == 2
    assert all(0 <= one[key] <= 1 for one in metrics["epochs"] for key in ("map_at_5", "worn"))
    with Image.open(Path(told.run) / runs.CURVES) as picture:
        assert picture.height == 3 * 260  # loss, as they are, worn
    monkeypatch.setattr(whole, "asked_of", lambda pool, *more: pool.judges[:0])
    untold = retrain.train(store, Options(recipe=fresh)).report
    assert json.loads((Path(untold.run) / runs.METRICS).read_text())["epochs"][0]["map_at_5"] is None
    first, second = (
        backbone.read_checkpoint(store.models_folder / one.model / "weights.safetensors") for one in (told, untold)
    )
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert (told.photos, learnt_photos(store, told.run)) == (untold.photos, learnt_photos(store, untold.run))


def test_what_a_teacher_has_learnt_does_not_judge_its_pupil(store: Store, tiny: str, tmp_path: Path) -> None:
    first = retrain.train(store, Options(recipe=tiny, refit=False)).report
    taught = tmp_path / "taught.toml"

    def by(name: str) -> str:
        rules = f'new_share = 0.25\nnew_targets = "distilled"\nteacher = "{name}"\nmirror'
        taught.write_text(TINY.replace("scale = 12", "scale = 12\nuniform = 0.5").replace("mirror", rules))
        return str(taught)

    with pytest.raises(ConfigError, match="no model 'nobody' to teach") as caught:
        retrain.train(store, Options(recipe=by("nobody")))
    assert "[sampling] teacher" in caught.value.next_step
    with pytest.raises(TrainError, match="teacher has seen the photos"):
        retrain.train(store, Options(recipe=by(first.model), folds=2))
    after = retrain.train(store, Options(recipe=by(first.model), refit=False)).report
    learnt = [set(json.loads((Path(one.run) / TRAINED_ON).read_text())["annotations"]) for one in (first, after)]
    pool = judge.pool_of(store, seen=sorted(learnt[0]))
    assert learnt[0] < learnt[1] and not learnt[0] & set(pool.labels.annotations[pool.judges].tolist())
    assert after.verdict.photos == len(pool.judges) > 0


def test_a_curve_asks_some_photos_among_some_of_their_own_animals() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 500, 6000)
    queries, gallery = np.arange(1000), np.arange(1000, 6000)
    gallery = gallery[codes[gallery] != codes[0]]  # the first one's animal is in no other photo
    found = holdout.told_by(Split(queries, gallery), codes)
    assert len(found.queries) == holdout.ASKED and set(found.queries) <= set(queries) and 0 not in found.queries
    assert set(found.gallery) <= set(gallery)
    assert set(codes[found.gallery]) == set(codes[found.queries])
    have = np.bincount(codes[gallery], minlength=500)
    for code, n in zip(*np.unique(codes[found.gallery], return_counts=True), strict=True):
        assert n == min(holdout.FOUND, have[code])
    nothing = holdout.told_by(Split(queries, gallery[:0]), codes)
    assert not len(nothing.queries) and not len(nothing.gallery)
