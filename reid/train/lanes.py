"""One batch through the backbone on several cores: each lane takes a share of the photos, on a thread of its own.

The operators of a small network are too small to be shared among threads: two lanes of one thread each teach
EfficientNet-lite0 more photos a second than one lane of two (`docs/experiments/recipes.md`). Lanes share the weights and keep batch
norms of their own, whose running statistics are averaged after every batch; gradients are summed lane by lane, so that
results do not depend on which thread was first.

    split(x) → maps of each lane → joined, cut off from the graph → the caller's loss → backward() → gradients

Knows networks that give maps; no losses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from reid.train.network import Network

_PHOTOS = 16  # of a lane at least: fewer make poor batch norms


def fitting(batch: int) -> int:
    """As many lanes as torch has threads, each with enough photos of a batch."""
    threads: int = torch.get_num_threads()
    return max(1, min(threads, batch // _PHOTOS))


class Lanes:
    """Call `maps`, make a loss of what it gives, send that backward, then call `backward`."""

    def __init__(self, net: Network, count: int) -> None:
        """`count` lanes at most; torch's threads are shared among them until `close`. `own` are their networks."""
        self.net, self.count = net, max(1, count)
        shared = {id(p): p for p in net.parameters()}
        self.own = [net, *(copy.deepcopy(net, dict(shared)) for _ in range(self.count - 1))]
        self._joined: list[torch.Tensor] = []
        self._apart: list[list[torch.Tensor]] = []
        self._before = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None
        if self.count > 1:
            torch.set_num_threads(max(1, self._before // self.count))
            self._pool = ThreadPoolExecutor(self.count)

    def close(self) -> None:
        """Give torch its threads back."""
        if self._pool is not None:
            self._pool.shutdown()
            torch.set_num_threads(self._before)

    def each(self, call: Callable[[Any], Any], given: Sequence[Any]) -> list[Any]:
        """`call` of all that is given, in order, so many at once as there are lanes."""
        return list(map(call, given) if self._pool is None else self._pool.map(call, given))

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """As `Network.maps`, of a batch in training; the gradients they get are taken on by `backward`."""
        if self._pool is None or len(x) < 2 * _PHOTOS:
            return self.net.maps(x)
        shares = x.chunk(min(self.count, len(x) // _PHOTOS))
        self._follow()
        self._apart = self.each(lambda one: one[0].maps(one[1]), list(zip(self.own, shares, strict=False)))
        joined = [torch.cat([one.detach() for one in level]) for level in zip(*self._apart, strict=True)]
        self._joined = [one.requires_grad_() for one in joined]
        return self._joined

    def backward(self) -> None:
        """Gradients of the joined maps on to the weights, and the lanes' batch norms into one."""
        if not self._apart:
            return
        weights = [p for p in self.net.backbone.parameters() if p.requires_grad]
        apart, self._apart, joined, self._joined = self._apart, [], self._joined, []
        coming = zip(*(one.grad.split([len(lane[0]) for lane in apart]) for one in joined), strict=True)

        def pull(given: tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor | None, ...]:
            out: tuple[torch.Tensor | None, ...] = torch.autograd.grad(
                given[0], weights, grad_outputs=given[1], allow_unused=True
            )
            return out

        for gradients in self.each(pull, list(zip(apart, coming, strict=True))) if weights else ():
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        with torch.no_grad():
            for buffers in zip(*(one.backbone.buffers() for one in self.own[: len(apart)]), strict=True):
                if buffers[0].is_floating_point():
                    buffers[0].copy_(torch.stack(buffers).mean(0))

    def _follow(self) -> None:
        """All lanes in the state of the network itself: which modules train, and their statistics."""
        for one in self.own[1:]:
            for mine, its in zip(one.modules(), self.net.modules(), strict=True):
                mine.training = its.training
            with torch.no_grad():
                for buffer, of_net in zip(one.buffers(), self.net.buffers(), strict=True):
                    buffer.copy_(of_net)
