"""In which arithmetic a network learns: single precision, or half of it on a GPU, where steps are faster so.

bfloat16 has single precision's range and needs no care. float16, for GPUs without it, has not: its loss is scaled up, and
a step whose gradients overflow is left out while the scale comes down (Micikevicius et al. 2018, ICLR). On a CPU it is
always single precision: half of it made steps slower there (`docs/experiments/recipes.md`).

Knows tensors and optimisers; no networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from reid.errors import TrainError
from reid.train.recipe import Precision

_LEAST_SCALE = 2.0**-4  # below it no step has had finite gradients for long


class Arithmetic:
    """`enter` around the forward pass; `backward` for the loss; `step` for the weights."""

    def __init__(self, dtype: torch.dtype | None, device: torch.device) -> None:
        """`dtype` None is single precision."""
        self.dtype, self._device = dtype, device
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    @classmethod
    def of(cls, wanted: Precision, device: torch.device) -> Arithmetic:
        """As a recipe wants it, and as the device can."""
        if device.type != "cuda" or wanted == "single":
            return cls(None, device)
        if wanted == "auto":
            wanted = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
        return cls(torch.bfloat16 if wanted == "bfloat16" else torch.float16, device)

    def enter(self) -> Any:
        """A context in which networks compute so."""
        return torch.autocast(self._device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of the loss, scaled where they must be."""
        self._scaler.scale(loss).backward()

    def step(self, optimiser: torch.optim.Optimizer, params: Sequence[torch.Tensor], clip: float) -> torch.Tensor:
        """One step with gradients of length `clip` at most (0: any); how long they were. Gradients that overflowed
        while scaled make no step, and count as 0.

        Raises:
            TrainError: they overflow at any scale.
        """
        self._scaler.unscale_(optimiser)
        norm: torch.Tensor = torch.nn.utils.clip_grad_norm_(params, clip or math.inf)
        overflown = self._scaler.is_enabled() and not bool(torch.isfinite(norm))
        if self._scaler.is_enabled() or bool(torch.isfinite(norm)):
            self._scaler.step(optimiser)  # leaves out a step with gradients that are no numbers
        self._scaler.update()
        if not overflown:
            return norm
        if self._scaler.get_scale() < _LEAST_SCALE:
            raise TrainError(
                "gradients are no numbers at any scale of the loss",
                next_step='write precision = "single" under [schedule] of the recipe, or lower schedule.rate',
            )
        return torch.zeros_like(norm)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return dict(self._scaler.state_dict())

    def restore(self, state: dict[str, Any]) -> None:
        """Of a checkpoint, which may be of another machine's arithmetic."""
        if state and self._scaler.is_enabled():
            self._scaler.load_state_dict(state)
