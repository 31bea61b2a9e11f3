"""The loop: it learns, repeats itself, ends in time, and survives what interrupts it."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few_flukes import PHOTOS, WHALES, Sources, fluke_sources, tiny
from painted_store import herd, one_thread, sources_of

torch = pytest.importorskip("torch")

from quick_trainings import EXPORT, quick_export, same, train  # noqa: E402

from reid import models  # noqa: E402
from reid.embed import OpenVinoEmbedder, unit_rows  # noqa: E402
from reid.errors import ModelError, TrainError  # noqa: E402
from reid.train import (  # noqa: E402
    augment,
    backbone,
    checkpoints,
    holdout,
    loop,
    losses,
    pictures,
)
from reid.train.features import Source  # noqa: E402
from reid.train.recipe import ScheduleConfig  # noqa: E402
from reid.train.schedule import Budget, Plan  # noqa: E402

__all__ = ["fluke_sources", "one_thread", "quick_export"]


def test_a_network_from_nothing_learns_to_tell_animals_apart(tmp_path: Path) -> None:
    animals = sources_of(herd(tmp_path / "photos", 20, 6))
    held = holdout.split(np.array(animals[1]), seed=0)
    how = tiny(
        '[augment]\ngrey = 0\nshrink = 0\njpeg = 0\nrotate = 2\nshear = 0\nblur = 0\nwide = 0\n[sampling]\nmirror = "none"\n'
    )
    how = replace(how, schedule=replace(how.schedule, epochs=20, rate=8e-3, batch=16))
    told: list[tuple[int, float, float]] = []
    done = train(animals, tmp_path / "run", how, held=held, epochs=lambda *line: told.append(line))
    first, last = done.history[0], done.history[-1]
    assert last.map_at_5 > max(0.45, first.map_at_5 + 0.1) and last.loss < 0.5 * first.loss
    assert last.worn == last.worn and told == [(i, e.loss, e.map_at_5) for i, e in enumerate(done.history)]
    assert (done.animals, done.photos, done.steps) == (20, 100, 20 * 7)  # 20 photos are held out


def test_the_exported_model_gives_the_trained_networks_vectors(
    fluke_sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "export", EXPORT)
    how = tiny("[laptop.network]\nnorm_first = true\ndropout = 0.3\nlocal = 4\n")
    how = replace(how, input=replace(how.input, grey=True))
    done = train(fluke_sources, tmp_path, how)
    network, card = backbone.from_folder(done.model)  # the torch runtime's way, from the weights beside the graph
    crops = np.random.default_rng(0).integers(0, 256, (5, 32, 64, 3), np.uint8)
    kept = pictures.load(fluke_sources[0], card.preprocessing)
    seen = augment.plain(kept, np.arange(6), (32, 64)).permute(0, 2, 3, 1).round().byte().numpy()
    both = np.concatenate([crops, seen])
    with torch.inference_mode():
        ours = unit_rows(network(torch.from_numpy(both)).numpy())
    theirs = OpenVinoEmbedder(done.model).embed(both)
    assert float((ours * theirs).sum(1).min()) >= backbone.LEAST_COSINE
    assert (card.dim, card.architecture, card.extra["recipe"]) == (32, "test_efficientnet", "tiny")
    assert card.preprocessing.margin == how.input.margin and not checkpoints.exists(tmp_path)


def test_a_network_of_another_version_is_a_typed_error(fluke_sources: Sources, tmp_path: Path) -> None:
    done = train(fluke_sources, tmp_path, tiny(""))
    file = done.model / models.CARD
    card = json.loads(file.read_text())
    card["extra"]["network"]["twisted"] = True
    file.write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r"a network of another version.*twisted.*train it again"):
        backbone.from_folder(done.model)


def test_the_same_seed_gives_the_same_model_and_another_another(fluke_sources: Sources, tmp_path: Path) -> None:
    one, two, other = (train(fluke_sources, tmp_path / str(i), seed=seed) for i, seed in enumerate((3, 3, 4)))
    assert same(one.model, two.model) and not same(one.model, other.model)
    assert models.read_card(one.model).fingerprint == models.read_card(two.model).fingerprint
    assert [e.loss for e in one.history] == [e.loss for e in two.history]


SWA = '[laptop.schedule]\naverage = "swa"\naverage_of = 0.7\noptimiser = "sgd"\n'


DIVIDED = '[laptop.sampling]\nkind = "identities"\n[[laptop.loss]]\nkind = "divided"\nclusters = 4\nrenew = 1\n'


ALIKE = '[laptop.sampling]\nkind = "identities"\nalike = 0.5\n[laptop.schedule]\nnorms = "frozen"\n'


@pytest.mark.parametrize("more", ["", '[laptop.schedule]\naverage = "ema"\n', SWA, DIVIDED, ALIKE])
def test_an_interrupted_training_goes_on_to_the_same_model(fluke_sources: Sources, tmp_path: Path, more: str) -> None:
    how = tiny(more)
    whole = train(fluke_sources, tmp_path / "whole", how)

    def interrupt(epoch: int, loss: float, score: float) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(fluke_sources, tmp_path / "cut", how, epochs=interrupt)
    assert checkpoints.exists(tmp_path / "cut") and not (tmp_path / "cut" / "m").exists()
    rest = train(fluke_sources, tmp_path / "cut", how, resume=True)
    assert same(whole.model, rest.model) and [e.loss for e in rest.history] == [e.loss for e in whole.history]
    assert rest.steps == whole.steps


@pytest.mark.parametrize(("what", "clip"), [("loss", 5), ("gradient", 5), ("gradient", 0)])
def test_a_loss_or_gradient_that_is_no_number_ends_the_training_and_the_checkpoint_before_it_is_whole(
    fluke_sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, clip: int
) -> None:
    how = tiny(f"[laptop.schedule]\nclip = {clip}\n")
    with monkeypatch.context() as patched:
        forward, count = losses.Sum.forward, [0]

        def spoilt(self: Any, x: Any, *some: Any) -> Any:
            count[0] += 1
            loss = forward(self, x, *some)
            if count[0] <= 4:
                return loss
            return loss * float("nan") if what == "loss" else loss + (x.whole - x.whole.detach()).sum().sqrt()

        patched.setattr(losses.Sum, "forward", spoilt)
        with pytest.raises(TrainError, match=f"the {what} is no number any more, in epoch 2"):
            train(fluke_sources, tmp_path / "cut", how)
    rest = train(fluke_sources, tmp_path / "cut", how, resume=True)
    assert same(rest.model, train(fluke_sources, tmp_path / "whole", how).model)


def test_a_full_disk_leaves_the_checkpoint_before_it(
    fluke_sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, count = torch.save, [0]

    def full(state: Any, file: Any) -> None:
        count[0] += 1
        if count[0] == 2:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, file)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.torch, "save", full)  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="No space"):
            train(fluke_sources, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [checkpoints.FILE]
    assert len(train(fluke_sources, tmp_path, resume=True).history) == 3


def test_a_training_that_asks_for_too_much_memory_says_what_to_lower(
    fluke_sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.Loop, "epoch", lambda *some: torch.empty(2**48))
    with pytest.raises(TrainError, match="not enough memory") as caught:
        train(fluke_sources, tmp_path)
    assert "schedule.batch" in caught.value.next_step


def test_a_checkpoint_of_another_training_or_none_at_all_is_refused(fluke_sources: Sources, tmp_path: Path) -> None:
    def interrupt(*line: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(fluke_sources, tmp_path, epochs=interrupt)
    for other, more in ((tiny(), {"seed": 5}), (tiny("[laptop.schedule]\nrate = 1e-4\n"), {})):
        with pytest.raises(TrainError, match="another recipe, seed"):
            train(fluke_sources, tmp_path, other, resume=True, **more)
    sources, labels = fluke_sources
    swapped = [labels[-1], *labels[1:-1], labels[0]]  # as many animals, as many photos
    assert swapped != labels
    for others in ((sources, swapped), ([sources[-1], *sources[1:-1], sources[0]], labels)):
        with pytest.raises(TrainError, match="or set of photos"):
            train(others, tmp_path, resume=True)
    (tmp_path / checkpoints.FILE).write_bytes(b"not a checkpoint")
    with pytest.raises(TrainError, match="cannot be read"):
        train(fluke_sources, tmp_path, resume=True)


def test_what_cannot_be_trained_on_is_said(fluke_sources: Sources, tmp_path: Path) -> None:
    sources, labels = fluke_sources
    with pytest.raises(TrainError, match="36 readable photos of 1 animals"):
        train((sources, ["one"] * PHOTOS), tmp_path)
    with pytest.raises(TrainError, match="0 readable photos"):
        train(([Source(tmp_path / "gone.jpg")] * 2, ["a", "b"]), tmp_path)
    with pytest.raises(TrainError, match="no two animals have two photos"):
        how = tiny('[laptop.sampling]\nkind = "pairs"\n[[laptop.loss]]\nkind = "pair"\n')
        train((sources, [str(i) for i in range(PHOTOS)]), tmp_path, how)
        names = ["Ana"] * 20 + [f"w{i // 2}" for i in range(PHOTOS - 21)] + ["alone"]
        with pytest.raises(TrainError, match="'Ana' has 20 of 34 photos, more than half") as caught:
            train((sources, names), tmp_path, how)
        assert "other animals" in caught.value.next_step
    some = [*sources, Source(tmp_path / "gone.jpg")]
    done = train((some, [*labels, "w"]), tmp_path / "run")
    assert [f.code for f in done.failures] == ["bad_photo"] and (done.photos, done.animals) == (PHOTOS, WHALES)


class Clock:
    """So many seconds a look."""

    def __init__(self, each: float) -> None:
        self.now, self.each = 0.0, each

    def __call__(self) -> float:
        self.now += self.each
        return self.now


@pytest.mark.parametrize(("step", "slower", "epochs"), [(1.0, 1.0, 4), (1.0, 0.0, 5), (30.0, 1.0, 1), (1.0, 2.0, 3)])
def test_a_budget_fixes_the_number_of_epochs_by_the_first_steps(step: float, slower: float, epochs: int) -> None:
    """40 steps an epoch, 200 seconds; from the second epoch on `slower` times as slow."""
    config, plan, now = ScheduleConfig(), Plan(20), [0.0]
    budget = Budget(215, lambda: now[0]).begun()
    shown = 0
    while plan.left:
        plan.begin(40, budget, config)
        for number in range(40):
            if plan.cut(number):
                break
            now[0] += step * (slower if shown else 1.0)
            plan.step(budget)
        plan.end(budget)
        shown += 1
    assert plan.done == pytest.approx(1.0)
    assert shown == pytest.approx(epochs, abs=1) and (now[0] <= 1.16 * 200 or step > 20)


def test_what_an_epoch_takes_before_its_first_step_is_paid_for_out_of_the_budget() -> None:
    """40 steps of a second, and 40 seconds before them: two epochs of 200 seconds and a part of a third, not five."""
    config, plan, now, shown = ScheduleConfig(), Plan(20), [0.0], 0
    budget = Budget(215, lambda: now[0]).begun()
    while plan.left:
        now[0] += 40
        plan.begin(40, budget, config, 40)
        for number in range(40):
            if plan.cut(number):
                break
            now[0] += 1
            plan.step(budget)
        plan.end(budget)
        shown += 1
    assert shown in (2, 3) and now[0] <= 215


def test_a_training_with_a_budget_ends_in_time(fluke_sources: Sources, tmp_path: Path) -> None:
    how = replace(tiny(), schedule=replace(tiny().schedule, epochs=500))
    done = train(fluke_sources, tmp_path, how, budget=Budget(8.0))
    assert 1 <= len(done.history) < 500
    assert sum(one.seconds for one in done.history) < 12
