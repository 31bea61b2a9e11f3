"""In which arithmetic a network learns, and what becomes of gradients that overflow."""

from __future__ import annotations

from pathlib import Path

import pytest
from few_flukes import Sources, fluke_sources
from painted_store import one_thread

torch = pytest.importorskip("torch")

from quick_trainings import quick_export, train  # noqa: E402

from reid.errors import TrainError  # noqa: E402
from reid.train.precision import Arithmetic  # noqa: E402

__all__ = ["fluke_sources", "one_thread", "quick_export"]

CPU = torch.device("cpu")


def _stepped(arithmetic: Arithmetic, factor: float = 1.0) -> tuple[float, float]:
    """A weight of 1 after one step down its loss's slope of `factor`, and the gradient's length as told."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimiser = torch.optim.SGD([weight], 0.25)
    arithmetic.backward((weight * factor).sum())
    norm = arithmetic.step(optimiser, [weight], 0.0)
    return float(weight.detach()), float(norm)


@pytest.mark.parametrize("wanted", ["auto", "single", "bfloat16", "float16"])
def test_a_cpu_learns_in_single_precision_whatever_the_recipe_wants(wanted: str) -> None:
    assert Arithmetic.of(wanted, CPU).dtype is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "has", "expected"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float16),
        ("bfloat16", False, torch.bfloat16),
        ("float16", True, torch.float16),
        ("single", True, None),
    ],
)
def test_a_gpu_learns_in_what_it_has(
    monkeypatch: pytest.MonkeyPatch, wanted: str, has: bool, expected: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *_, **__: None)
    assert Arithmetic.of(wanted, torch.device("cuda")).dtype is expected  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_a_step_is_the_same_scaled_or_not(dtype: torch.dtype | None) -> None:
    assert _stepped(Arithmetic(dtype, CPU), 2.0) == (0.5, 2.0)


def test_gradients_are_bounded_after_they_are_scaled_back() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    arithmetic = Arithmetic(torch.float16, CPU)
    arithmetic.backward((weight * 8).sum())
    assert float(arithmetic.step(torch.optim.SGD([weight], 0.25), [weight], 2.0)) == 8
    assert float(weight.detach()) == pytest.approx(0.5)


def test_a_step_that_overflows_is_left_out_and_the_scale_comes_down() -> None:
    arithmetic = Arithmetic(torch.float16, CPU)
    before = arithmetic.state()["scale"]
    assert _stepped(arithmetic, 1e38) == (1.0, 0.0)  # 1e38 times the scale is no single-precision number
    assert arithmetic.state()["scale"] == before / 2
    assert _stepped(arithmetic, 2.0) == (0.5, 2.0)


def test_gradients_that_overflow_at_any_scale_end_the_training() -> None:
    arithmetic = Arithmetic(torch.float16, CPU)
    with pytest.raises(TrainError, match="at any scale") as caught:
        for _ in range(100):
            assert _stepped(arithmetic, float("inf"))[0] == 1.0
    assert 'precision = "single"' in caught.value.next_step


def test_without_a_scale_a_gradient_that_is_no_number_makes_no_step_and_is_told() -> None:
    weight, norm = _stepped(Arithmetic(None, CPU), float("inf"))
    assert weight == 1.0 and norm == float("inf")


def test_the_scale_survives_a_checkpoint_and_another_arithmetic_does_not_mind_it() -> None:
    one, other = Arithmetic(torch.float16, CPU), Arithmetic(torch.float16, CPU)
    _stepped(one, 1e38)
    other.restore(one.state())
    assert other.state()["scale"] == one.state()["scale"]
    single = Arithmetic(None, CPU)
    single.restore(one.state())
    other.restore(single.state())
    assert other.state()["scale"] == one.state()["scale"]


def test_a_training_in_half_precision_learns_nearly_the_same(
    fluke_sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(fluke_sources, tmp_path / "single")
    half = Arithmetic(torch.float16, CPU)
    half.restore(half.state() | {"scale": 256.0})  # at which none of so few steps overflows
    monkeypatch.setattr(Arithmetic, "of", classmethod(lambda cls, wanted, device: half))
    done = train(fluke_sources, tmp_path / "half")
    assert half.state()["_growth_tracker"] == done.steps  # every step went through the scale
    losses = [e.loss for e in done.history]
    assert losses == pytest.approx([e.loss for e in plain.history], rel=0.05) and losses != [
        e.loss for e in plain.history
    ]
