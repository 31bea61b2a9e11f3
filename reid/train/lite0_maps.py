"""Inner maps of timm's EfficientNet-lite0, as `reid.lite0` pools them without torch.

Knows that one network's blocks by their names in timm; no photos, no losses.
"""

from __future__ import annotations

from typing import Any

import torch

from reid import lite0

_BEHIND = ("conv_dw", "bn2", "conv_pwl", "bn3")  # what of a block comes after the map


def expanded(network: Any, x: torch.Tensor, wanted: tuple[int, ...]) -> list[torch.Tensor]:
    """The maps `(B, C, h, w) ≥ 0` of `lite0.MAPS` for photos `x (B, 3, H, W)`, in the order of `wanted`."""
    found: dict[int, torch.Tensor] = {}
    x = network.bn1(network.conv_stem(x))
    for number, stage in enumerate(network.blocks):
        if number not in wanted:
            x = stage(x)
            continue
        first = stage[0]  # its stride or its width differs from its input's, so nothing is added around it
        found[number] = wide = first.bn1(first.conv_pw(x))
        if number == max(wanted):  # nothing behind it is asked for
            break
        x = first.bn3(first.conv_pwl(first.bn2(first.conv_dw(wide))))
        for block in stage[1:]:
            x = block(x)
    if lite0.LAST in wanted:
        found[lite0.LAST] = network.bn2(network.conv_head(x))
    return [found[number] for number in wanted]


def root(maps: torch.Tensor, least: float = 1e-12) -> torch.Tensor:
    """`(B, C, H, W) ≥ 0 → (B, C)` of unit length: the square roots of the means, of `least` where they are smaller. A root
    has no slope at 0, and next to it one that no training survives.
    """
    return torch.nn.functional.normalize(maps.float().mean((2, 3)).clamp_min(least).sqrt(), dim=1)


def prune(network: Any, wanted: tuple[int, ...]) -> None:
    """Take off what lies behind the last of the maps that are `wanted` (not `lite0.LAST`)."""
    last = max(wanted)
    network.blocks = network.blocks[: last + 1]
    network.blocks[last] = network.blocks[last][:1]
    for name in _BEHIND:
        setattr(network.blocks[last][0], name, torch.nn.Identity())
    network.conv_head = network.bn2 = torch.nn.Identity()
