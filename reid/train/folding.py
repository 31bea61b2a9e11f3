"""Batch norms that stand still, folded into the convolutions before them: the same numbers, a pass fewer over every map.

A norm in evaluation mode is a factor and a shift a channel. Multiplied into the weights of the convolution before it, it
costs nothing, and gradients reach its own weights through the product. In training on a CPU, where such passes are bound
by memory, steps of EfficientNet-lite0 take two thirds of their time (`docs/experiments/recipes.md`).

    fold(network, maps) → pairs → unfold(pairs)

In between the network computes, and names its weights, as before.

Knows torch modules; no losses, no photos.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Norm = torch.nn.modules.batchnorm._BatchNorm
Pair = tuple[Any, Any]  # a convolution, and the norm that takes what it gives
_NEAR = 1e-3  # largest difference of a map, in shares of its largest value, that rounding explains


def fold(module: torch.nn.Module, maps: Callable[[], list[torch.Tensor]]) -> list[Pair]:
    """Fold what can be folded of `module`, and return it, convolution and norm; `maps` sends a photo through the module.

    A norm is folded while it is in evaluation mode and computes for itself while it trains. Should the maps come out
    otherwise than before, as they do where a convolution changes its own weights, all is left as it was: none.
    """
    training = {one: one.training for one in module.modules()}
    module.eval()
    with torch.no_grad():
        before, pairs = _followed(module, maps)
        for convolution, norm in pairs:
            _join(convolution, norm)
        after = maps()
    for one, was in training.items():
        one.training = was
    if not all(_alike(*both) for both in zip(before, after, strict=True)):
        unfold(pairs)
        return []
    return pairs


def unfold(pairs: list[Pair]) -> None:
    """Convolutions and norms as they were."""
    for pair in pairs:
        for one in pair:
            del one.forward


def _followed(module: torch.nn.Module, maps: Callable[[], list[torch.Tensor]]) -> tuple[list[torch.Tensor], list[Pair]]:
    """What `maps` gives, and each convolution with the norm that takes what it gives."""
    gave: dict[int, tuple[Any, torch.Tensor]] = {}  # the tensor is kept, so that no other takes its number
    pairs: list[Pair] = []

    def keep(convolution: Any, _: Any, out: torch.Tensor) -> None:
        gave[id(out)] = convolution, out

    def match(norm: Any, given: tuple[torch.Tensor, ...]) -> None:
        if id(given[0]) in gave:
            pairs.append((gave[id(given[0])][0], norm))

    hooks = [one.register_forward_hook(keep) for one in module.modules() if isinstance(one, torch.nn.Conv2d)]
    hooks += [one.register_forward_pre_hook(match) for one in module.modules() if _foldable(one)]
    try:
        found = maps()
    finally:
        for hook in hooks:
            hook.remove()
    once = [one for pair in pairs for one in pair]
    return found, [pair for pair in pairs if all(once.count(one) == 1 for one in pair)]


def _foldable(one: torch.nn.Module) -> bool:
    """A batch norm with weights and statistics of its own, plain or with timm's activation after it."""
    if not isinstance(one, Norm) or one.weight is None or one.running_mean is None:
        return False
    return type(one) is torch.nn.BatchNorm2d or (hasattr(one, "act") and hasattr(one, "drop"))


def _join(convolution: Any, norm: Any) -> None:
    """Have the convolution do what the norm does while that stands still."""

    def convolved(x: torch.Tensor) -> Any:
        kind, weight, bias = type(convolution), convolution.weight, convolution.bias
        if norm.training:
            return kind.forward(convolution, x)
        factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * factor
        if bias is not None:
            shift = shift + bias * factor
        own = {"weight": weight * factor.view(-1, 1, 1, 1), "bias": shift}
        twin = object.__new__(kind)  # the module itself is left alone: threads may be in it
        twin.__dict__ = {**vars(convolution), "_parameters": own}
        return kind.forward(twin, x)

    def normed(x: torch.Tensor) -> Any:
        if norm.training:
            return type(norm).forward(norm, x)
        return norm.act(norm.drop(x)) if hasattr(norm, "act") else x

    convolution.forward, norm.forward = convolved, normed


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max()) <= _NEAR * max(1e-6, float(a.abs().max()))
