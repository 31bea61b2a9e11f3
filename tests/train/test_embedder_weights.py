"""What of a network learns, how fast, and which of its weights serve."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few_flukes import PHOTOS, Sources, fluke_sources, tiny
from painted_store import one_thread

torch = pytest.importorskip("torch")

from quick_trainings import EXPORT, quick_export, train, weights  # noqa: E402

from reid import models, siamese  # noqa: E402
from reid.embed import OpenVinoEmbedder, unit_rows  # noqa: E402
from reid.errors import ModelError  # noqa: E402
from reid.models import Preprocessing  # noqa: E402
from reid.train import (  # noqa: E402
    augment,
    backbone,
    embedder,
    loop,
    losses,
    network,
    pictures,
    recipe,
    schedule,
)
from reid.train.pairing import Pairing  # noqa: E402
from reid.train.recipe import AugmentConfig, Recipe, ScheduleConfig  # noqa: E402
from reid.train.schedule import Budget  # noqa: E402
from reid.train.showing import Batch  # noqa: E402

__all__ = ["fluke_sources", "one_thread", "quick_export"]


def test_the_rate_rises_falls_and_restarts_and_sizes_grow() -> None:
    config = ScheduleConfig(warm_up=0.2, restarts=1)
    at = [schedule.rate_at(done, config) for done in (0.0, 0.1, 0.2, 0.4, 0.599, 0.601, 0.8, 1.0)]
    np.testing.assert_allclose(at, [0.01, 0.5, 1.0, 0.505, 0.01, 1.0, 0.505, 0.01], atol=5e-3)
    growing = tiny("[laptop.schedule]\nsizes = [0.5, 0.75, 1]\n")
    found = [schedule.size_at(done, growing) for done in (0.0, 0.3, 0.34, 0.67, 1.0)]
    assert found == [(32, 32), (32, 32), (32, 48), (32, 64), (32, 64)]


def test_frozen_stages_and_norms_stay_as_they_are(fluke_sources: Sources, tmp_path: Path) -> None:
    torch.manual_seed(0)
    still = tiny('[laptop.schedule]\nfrozen = 3\nnorms = "frozen"\n[laptop.network]\nstart = "random"\n')
    done = train(fluke_sources, tmp_path, still)
    network, _ = backbone.from_folder(done.model)
    first = {name for group in network.network.groups()[:3] for name in group}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        begun, _ = embedder.network.build(still.network, pretrained=False)
    trained, before = weights(done.model), backbone.tensors_of(begun)
    changed = {k.removeprefix("backbone.") for k, v in before.items() if not np.array_equal(v, trained[k])}
    assert not first & changed and "conv_head.weight" in changed
    assert not any("running" in name for name in changed if "necks" not in name)


def test_stages_are_held_still_between_two_shares_of_the_training(
    fluke_sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps an epoch, three epochs: the first learns all, the second not its first stages, the third all again."""
    how = tiny("[laptop.schedule]\nfrozen = 2\nfrozen_from = 0.3\nfrozen_for = 0.6\n")
    moved: list[bool] = []
    step = loop.Loop._step

    def spy(self: Any, views: Any) -> float:
        name = self.net.groups()[0][0]
        before = self.net.backbone.get_parameter(name).detach().clone()
        loss = step(self, views)
        moved.append(not torch.equal(before, self.net.backbone.get_parameter(name)))
        return loss

    monkeypatch.setattr(loop.Loop, "_step", spy)
    train(fluke_sources, tmp_path, how)
    assert moved == [True] * 3 + [False] * 3 + [True] * 3


def test_averaged_weights_are_served_with_norms_of_their_own(fluke_sources: Sources, tmp_path: Path) -> None:
    plain = train(fluke_sources, tmp_path / "plain")
    mean = train(fluke_sources, tmp_path / "mean", tiny('[laptop.schedule]\naverage = "swa"\naverage_of = 1.0\n'))
    one, two = weights(plain.model), weights(mean.model)
    assert not np.array_equal(one["backbone.conv_head.weight"], two["backbone.conv_head.weight"])
    assert not np.array_equal(one["backbone.bn1.running_mean"], two["backbone.bn1.running_mean"])
    assert [e.loss for e in plain.history] == [e.loss for e in mean.history]


def test_a_vision_transformer_is_trained_and_exported(
    fluke_sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "export", EXPORT)
    timm = network.import_timm()
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **more: make(name, **more, depth=2))
    how = tiny('[laptop.network]\nbackbone = "test_vit"\n[laptop.schedule]\nepochs = 1\n')
    growing = replace(how, schedule=replace(how.schedule, sizes=(0.5, 1.0)))
    with pytest.raises(ModelError, match="photos of one size") as caught:
        train(fluke_sources, tmp_path, growing)
    assert "sizes = [1.0]" in caught.value.next_step
    done = train(fluke_sources, tmp_path, how)
    net, card = backbone.from_folder(done.model)
    crops = np.random.default_rng(0).integers(0, 256, (3, 32, 64, 3), np.uint8)
    with torch.inference_mode():
        ours = unit_rows(net(torch.from_numpy(crops)).numpy())
    np.testing.assert_allclose(OpenVinoEmbedder(done.model).embed(crops), ours, atol=1e-3)
    assert card.architecture == "test_vit" and done.steps == 3


def test_the_served_weights_of_a_running_mean_are_that_mean(
    fluke_sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after: list[dict[str, Any]] = []
    step = loop.Loop._step

    def spy(self: Any, *some: Any) -> float:
        loss = step(self, *some)
        after.append({name: value.detach().double().numpy() for name, value in self.net.named_parameters()})
        return loss

    monkeypatch.setattr(loop.Loop, "_step", lambda self, views: spy(self, views))
    done = train(fluke_sources, tmp_path, tiny('[laptop.schedule]\naverage = "ema"\n'))
    served = weights(done.model)
    assert len(after) == done.steps == 9
    mean = after[0]
    for number, now in enumerate(after[1:], 2):  # the first ones count for more, as they would in a plain mean
        keep = number / (10 + number)
        mean = {name: keep * mean[name] + (1 - keep) * now[name] for name in mean}
    for name, value in mean.items():
        np.testing.assert_allclose(served[name], value, atol=1e-5)
    moved = [name for name in mean if np.abs(served[name] - after[-1][name]).max() > 1e-4]
    assert "backbone.conv_head.weight" in moved and "projections.0.weight" in moved


def begun(flukes: Sources, how: Recipe) -> loop.Loop:
    """A training of which nothing is done yet."""
    torch.manual_seed(0)
    net, (mean, std) = network.build(how.network, pretrained=False)
    seen = Preprocessing(how.input.height, how.input.width, mean, std)
    codes = np.unique(flukes[1], return_inverse=True)[1].astype(np.int64)
    return loop.Loop(net, pictures.load(flukes[0], seen), codes, how, 0, torch.device("cpu"), seen)


def one_step(run: loop.Loop) -> dict[str, Any]:
    """How far one batch moves each weight; of the losses' own, too."""
    both = [*run.net.named_parameters(), *((f"losses.{name}", one) for name, one in run.losses.named_parameters())]
    before = {name: one.detach().clone() for name, one in both}
    torch.manual_seed(0)
    run.plan.begin(1, Budget().begun(), run.recipe.schedule)
    run._step(next(iter(run.shown.prepared([Batch(np.arange(12))], 0, (32, 64), 1))))
    return {name: (one.detach() - before[name]).numpy() for name, one in both if one.requires_grad}


STEP = '[laptop.schedule]\noptimiser = "sgd"\nwarm_up = 0\ndecay = 0\nrate = 0.1\n'


def test_all_that_is_not_the_backbone_learns_faster(fluke_sources: Sources) -> None:
    slow, fast = (one_step(begun(fluke_sources, tiny(STEP + f"clip = 0\nhead_rate = {n}\n"))) for n in (1, 4))
    heads = {name for name in slow if not name.startswith("backbone.")}
    assert {"projections.0.weight", "necks.0.weight", "losses.losses.0.centres"} <= heads < slow.keys()
    for name in slow:
        times = 4 if name in heads else 1
        np.testing.assert_allclose(fast[name], times * slow[name], rtol=1e-3, atol=1e-5, err_msg=name)
    assert all(np.abs(slow[name]).max() > 0 for name in ("backbone.conv_head.weight", "projections.0.weight"))


def test_a_gradient_is_no_longer_than_its_bound_and_points_as_it_did(fluke_sources: Sources) -> None:
    free, held, loose = (
        one_step(begun(fluke_sources, tiny(STEP + f"head_rate = 1\nclip = {n}\n"))) for n in (0, 0.5, 1e6)
    )
    length, short = (
        np.sqrt(sum(float((one.astype(float) ** 2).sum()) for one in made.values())) for made in (free, held)
    )
    assert length > 2 * short and short == pytest.approx(0.1 * 1.9 * 0.5, rel=1e-3)  # rate, Nesterov's 1 + .9, bound
    for name in free:
        np.testing.assert_allclose(held[name], free[name] * (short / length), rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(loose[name], free[name])


@pytest.mark.parametrize(("mirror", "twins"), [("class", "false"), ("class", "true"), ("views", "false")])
def test_mirrored_photos_are_classes_of_their_own_that_their_twins_do_not_compete_with(
    fluke_sources: Sources, mirror: str, twins: str
) -> None:
    sources, labels = fluke_sources
    first = sorted(set(labels))[:6]
    codes = np.array([first.index(one) if one in first else -1 for one in labels])
    how = tiny(f'[laptop.sampling]\nmirror = "{mirror}"\ntwins = {twins}\n[laptop.schedule]\nwarm_up = 0\n')
    net, (mean, std) = network.build(how.network, pretrained=False)
    seen = Preprocessing(how.input.height, how.input.width, mean, std)
    run = loop.Loop(net, pictures.load(sources, seen), codes, how, 0, torch.device("cpu"), seen)
    assert run.losses.losses[0].classes == (12 if mirror == "class" else 6)
    given: list[tuple[Any, losses.Targets]] = []
    before = copy.deepcopy(run.losses)
    run.losses.register_forward_pre_hook(lambda _, some: given.append(some))
    run.plan.begin(1, Budget().begun(), how.schedule)
    (views,) = run.shown.prepared([Batch(np.arange(PHOTOS))], 0, (32, 64), 1)
    found = run._step(views)
    ((x, aims),) = given
    for code, turned, own, twin in zip(codes, views.turned, aims.classes.tolist(), aims.twins.tolist(), strict=True):
        shift = 6 if mirror == "class" else 0
        assert own == (-1 if code < 0 else code + shift * int(turned))
        masked = code >= 0 and mirror == "class" and twins == "false"
        assert twin == (code + 6 * int(not turned) if masked else -1)
    assert 0 < views.turned[codes >= 0].mean() < 1 and (codes < 0).any()
    everybody = before(x, replace(aims, twins=torch.full_like(aims.twins, -1))).item()
    assert found == pytest.approx(before(x, aims).item(), rel=1e-6)
    assert (everybody > found + 1e-3) == (mirror == "class" and twins == "false")


@pytest.mark.parametrize("average", ["swa", "ema"])
def test_necks_behind_a_still_backbone_know_the_averaged_weights(
    fluke_sources: Sources, tmp_path: Path, average: str
) -> None:
    plain = ", ".join(f"{one.name} = 0" for one in fields(AugmentConfig) if one.name != "worn").replace(", ", "\n")
    more = f'average = "{average}"\naverage_of = 1.0\nnorms = "frozen"\n'
    how = tiny(f'[augment]\n{plain}\n[sampling]\nmirror = "none"\n[laptop.schedule]\n{more}')
    done = train(fluke_sources, tmp_path, replace(how, network=replace(how.network, norm_first=True)))
    network, card = backbone.from_folder(done.model)
    net, kept = network.network, pictures.load(fluke_sources[0], card.preprocessing)
    x = augment.plain(kept, np.arange(len(kept)), (32, 64))
    with torch.inference_mode():
        normal = (x - network.mean) / network.std
        pooled = net.pooled(net.maps(normal))[0]
        before = net.act(net.projections[0](net.first[0].train()(pooled)))  # as the photos of a batch have it
    served = weights(done.model)
    for name, rows in (("first.0", pooled), ("necks.0", before)):
        np.testing.assert_allclose(served[f"{name}.running_mean"], rows.mean(0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(served[f"{name}.running_var"], rows.var(0), rtol=1e-3, atol=1e-5)


PAIRS = '[laptop.sampling]\nkind = "pairs"\n[[laptop.loss]]\nkind = "pair"\nhidden = 8\n'


def test_a_network_that_learnt_by_pairs_brings_its_head(
    fluke_sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Pairing] = []

    class Seen(Pairing):  # type: ignore[misc]
        def __init__(self, *some: Any) -> None:
            super().__init__(*some)
            used.append(self)

    monkeypatch.setattr(loop, "Pairing", Seen)
    done = train(fluke_sources, tmp_path, tiny(PAIRS))
    found = siamese.load(done.model / siamese.FOLDER, models.read_card(done.model).fingerprint)
    assert (found.about["recipe"], found.about["scale"]) == ("tiny", "laptop") and len(found.hidden) == 8
    rows = unit_rows(np.random.default_rng(0).normal(size=(6, 32)).astype(np.float32))
    with torch.inference_mode():
        first, second = (torch.from_numpy(rows[list(some)]) for some in ((0, 1, 2), (3, 4, 5)))
        ours = used[0].head.eval()(first, second).numpy()
    assert found.pair_logits(rows[:3], rows[3:]) == pytest.approx(ours, abs=1e-3)
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".m-")]


def test_photos_of_unknown_animals_are_trained_on_as_such(fluke_sources: Sources, tmp_path: Path) -> None:
    sources, labels = fluke_sources
    unknown = [label if label in sorted(set(labels))[:6] else "" for label in labels]
    how = tiny('[sampling]\nnew_share = 0.25\n[[laptop.loss]]\nkind = "margin"\nuniform = 1.0\n')
    done = train((sources, unknown), tmp_path, how)
    assert done.animals == 6 and done.photos == PHOTOS and all(np.isfinite(e.loss) for e in done.history)


def test_a_model_that_serves_both_has_vectors_twice_as_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone, "export", EXPORT)
    recipe = tiny("[laptop.network]\nboth = true\n")
    net, (mean, std) = network.build(recipe.network, pretrained=False)
    seen = Preprocessing(recipe.input.height, recipe.input.width, mean, std)
    folder = embedder.write(net, recipe, seen, tmp_path, "both")
    crops = np.random.default_rng(0).integers(0, 256, (2, seen.height, seen.width, 3), np.uint8)
    upright, turned = (OpenVinoEmbedder(folder).embed(one) for one in (crops, np.ascontiguousarray(crops[:, :, ::-1])))
    assert models.read_card(folder).dim == upright.shape[1] == 2 * net.dim
    np.testing.assert_allclose(upright[:, : net.dim], turned[:, net.dim :], atol=1e-3)


def test_a_recipe_goes_on_from_the_network_that_ships(fluke_sources: Sources, tmp_path: Path) -> None:
    chosen = recipe.load("flukes", "laptop")
    still = replace(chosen, schedule=replace(chosen.schedule, epochs=1, rate=1e-9))
    done = embedder.train(*fluke_sources, still, tmp_path, "on")
    ours, theirs = weights(done.model), weights(models.SHIPPED[models.FLUKE])
    learnt = [name for name in theirs if name.endswith("weight")]
    assert len(learnt) > 50
    assert all(np.allclose(ours[name], theirs[name].astype(np.float32), atol=1e-5) for name in learnt)


def test_a_network_serves_at_the_size_that_its_recipe_says(fluke_sources: Sources, tmp_path: Path) -> None:
    """Cells are pooled at any size, so that the vector is as long; its norms know the larger photos."""
    plain, larger = (
        train(
            fluke_sources,
            tmp_path / str(served),
            tiny(f"[laptop.input]\nserved = {served}\n[laptop.schedule]\nepochs = 1\n"),
        )
        for served in (1.0, 1.5)
    )
    cards = [models.read_card(one.model) for one in (plain, larger)]
    assert [(one.preprocessing.height, one.preprocessing.width) for one in cards] == [(32, 64), (48, 96)]
    assert cards[0].dim == cards[1].dim and cards[0].fingerprint != cards[1].fingerprint
    assert [e.loss for e in plain.history] == [e.loss for e in larger.history]
    same_there, others = (
        {k for k, v in weights(plain.model).items() if np.array_equal(v, weights(larger.model)[k]) is way}
        for way in (True, False)
    )
    assert others and all("running" in one or "batches" in one for one in others) and len(same_there) > len(others)
