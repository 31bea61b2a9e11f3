"""Photos of nobody known are taught what another model takes them for: against plain loops, and until it is learnt."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few_flukes import tiny
from painted_store import colour_graph, colour_model, herd, one_thread, sources_of

torch = pytest.importorskip("torch")

from reid import models  # noqa: E402
from reid.embed import unit_rows  # noqa: E402
from reid.errors import ConfigError  # noqa: E402
from reid.train import backbone, embedder, losses, teacher  # noqa: E402
from reid.train.losses import Space, Targets  # noqa: E402
from reid.train.network import Embedded  # noqa: E402
from reid.train.recipe import Margin, Softmax  # noqa: E402
from reid.train.teacher import Teacher  # noqa: E402

__all__ = ["one_thread"]

CODES = np.array([0, 0, 1, 2, 2, 2, -1, -1, -2])


def vectors(seed: int = 0) -> Any:
    rows = np.random.default_rng(seed).normal(size=(len(CODES) * 2, 5)).astype(np.float32)
    return unit_rows(rows).reshape(len(CODES), 2, 5).astype(np.float16)


@pytest.mark.parametrize("mirror", ["class", "views", "none"])
def test_a_photo_is_taken_for_the_classes_whose_mean_is_near(mirror: str) -> None:
    seen = vectors()
    found = Teacher(seen, CODES, 0.2, by_class=mirror == "class", mirrors=mirror != "none")
    rows, turned = np.array([6, 7, 6]), np.array([False, True, True])
    classes = [(c, (0,)) for c in range(3)] + [(c, (1,)) for c in range(3)]
    if mirror != "class":
        classes = [(c, (0, 1) if mirror == "views" else (0,)) for c in range(3)]
    for row, way, shares in zip(rows, turned, found.targets(rows, turned), strict=True):
        logits = []
        for c, ways in classes:
            photos = [seen[i, w].astype(float) for i in np.flatnonzero(CODES == c) for w in ways]
            mean = sum(photos) / np.linalg.norm(sum(photos))
            logits.append(float(seen[row, int(way)].astype(float) @ mean) / 0.2)
        expected = [math.exp(one) / sum(map(math.exp, logits)) for one in logits]
        assert shares == pytest.approx(expected, abs=2e-3) and shares.sum() == pytest.approx(1, abs=1e-5)


def test_a_photo_that_the_teacher_could_not_read_is_taken_for_all_alike() -> None:
    seen = vectors()
    seen[6] = 0
    found = Teacher(seen, CODES, 0.1, by_class=True).targets(np.array([6]), np.array([True]))
    np.testing.assert_allclose(found, np.full((1, 6), 1 / 6), rtol=1e-5)


@pytest.mark.parametrize("config", [Margin(scale=20, m2=0.3, uniform=1.0), Softmax(uniform=1.0)])
def test_the_loss_falls_to_nothing_as_photos_are_taken_for_what_the_teacher_says(config: Any) -> None:
    torch.manual_seed(0)
    soft = torch.softmax(2 * torch.randn(3, 4), 1)
    x = torch.nn.Parameter(torch.randn(3, 8))
    loss = losses.Sum([config], Space(8, 1, np.array([1, 2, 3, 4])))
    none = torch.full((3,), -1)
    optimiser = torch.optim.Adam([x, *loss.parameters()], 0.05)
    history = []
    for _ in range(400):
        value = loss(Embedded(x, (x,)), Targets(none, none, soft=soft))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        history.append(value.item())
    assert history[0] > 0.1 and -1e-5 < history[-1] < 0.01 * history[0]  # 0 but for rounding
    head = loss.losses[0]
    logits = head.cosines(x) * config.scale if isinstance(config, Margin) else head.heads[0](x)
    np.testing.assert_allclose(torch.softmax(logits, 1).detach(), soft, atol=0.03)
    alike = loss(Embedded(x, (x,)), Targets(none, none)).item()  # towards 1/C is another lesson
    same = loss(Embedded(x, (x,)), Targets(none, none, soft=torch.full((3, 4), 0.25))).item()
    assert alike == pytest.approx(same, rel=1e-5) and alike > 0.05


DISTILLED = """
[laptop.sampling]
new_share = 0.25
new_targets = "distilled"
teacher = "{}"
mirror = "none"
[[laptop.loss]]
kind = "margin"
scale = 16
uniform = 1.0
"""


def test_a_training_hands_its_strangers_the_teachers_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(made: Any, card: models.ModelCard, folder: Path) -> Path:
        return models.write(folder, card, colour_graph(), backbone.tensors_of(made.network))

    monkeypatch.setattr(backbone, "export", write)
    sources, names = sources_of(herd(tmp_path / "photos", 6, 4))
    labels = [name if name in ("a000", "a001", "a002", "a003") else "" for name in names]
    given: list[Targets] = []
    forward = losses.Sum.forward

    def kept(self: Any, x: Embedded, targets: Targets) -> Any:
        given.append(targets)
        return forward(self, x, targets)

    monkeypatch.setattr(losses.Sum, "forward", kept)
    how = tiny(DISTILLED.format(colour_model(tmp_path, "wise")))
    done = embedder.train(sources, labels, how, tmp_path / "run", "m", pretrained=False)
    assert done.photos == 24 and all(np.isfinite(one.loss) for one in done.history)
    assert not (tmp_path / "run" / teacher.FOLDER).exists()
    looked = teacher.look(tmp_path / "wise", sources, tmp_path / "aside", threads=1)
    codes = np.array([int(label[1:]) if label else -1 for label in labels])
    expected = Teacher(looked, codes, how.sampling.heat, by_class=False, mirrors=False)
    strangers = np.flatnonzero(codes < 0)
    wanted = expected.targets(strangers, np.zeros(len(strangers), np.bool_))
    assert np.ptp(wanted, axis=1).min() > 0.02  # it does tell the classes apart
    for one in given:
        assert one.soft is not None and len(one.soft) == int((one.classes < 0).sum()) > 0
        assert all(np.abs(wanted - row).max(1).min() < 1e-6 for row in one.soft.numpy())


def test_a_teacher_that_is_not_there_is_said_before_a_photo_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model .*nobody' to teach") as caught:
        embedder.train([], [], tiny(DISTILLED.format(tmp_path / "nobody")), tmp_path / "run", "m", pretrained=False)
    assert "new_targets" in caught.value.next_step and not (tmp_path / "run").exists()
