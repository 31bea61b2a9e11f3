"""Folding: the same numbers and gradients with norms that stand still, and none of it where that cannot be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

torch = pytest.importorskip("torch")

from reid.train import folding, network  # noqa: E402
from reid.train.recipe import NetworkConfig  # noqa: E402

PHOTO = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def small(backbone: str = "mobilenetv3_small_050") -> network.Network:
    torch.manual_seed(0)
    net = network.build(NetworkConfig(backbone=backbone, pooling="gem", dim=8), pretrained=False)[0]
    for one in net.backbone.modules():
        if isinstance(one, folding.Norm):  # as after a training: no norm that does nothing
            torch.nn.init.uniform_(one.weight, 0.5, 1.5)
            torch.nn.init.uniform_(one.bias, -0.5, 0.5)
            torch.nn.init.uniform_(one.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(one.running_var, 0.5, 2)
    return net.eval()


def learnt(net: network.Network, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    out = net.embed(x).whole
    out.pow(2).sum().backward()
    return out.detach(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "resnet18", "tf_efficientnet_lite0"])
def test_norms_that_stand_still_give_the_same_vectors_and_gradients(backbone: str) -> None:
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    before, gradients = learnt(small(backbone), x)
    net = small(backbone)
    folded = folding.fold(net.backbone, partial(net.maps, PHOTO))
    after, others = learnt(net, x)
    assert len(folded) == sum(isinstance(one, folding.Norm) for one in net.backbone.modules()) > 10
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=2e-2, atol=2e-3 * float(gradient.abs().max() + 1e-6))


def test_norms_that_follow_the_batch_compute_for_themselves() -> None:
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    plain, net = small().train(), small().train()
    assert folding.fold(net.backbone, partial(net.maps, PHOTO)) and net.backbone.training
    torch.testing.assert_close(net.embed(x).whole, plain.embed(x).whole)
    for mine, its in zip(net.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, its)  # the statistics moved as they do


def test_unfolded_and_weights_keep_their_names() -> None:
    net = small()
    names = set(net.state_dict())
    folded = folding.fold(net.backbone, partial(net.maps, PHOTO))
    assert set(net.state_dict()) == names
    folding.unfold(folded)
    assert not any("forward" in vars(one) for one in net.modules())


def test_a_convolution_that_changes_its_own_weights_is_left_alone() -> None:
    class Standardised(torch.nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = (self.weight - self.weight.mean()) / self.weight.std()
            return torch.nn.functional.conv2d(x, weight, self.bias)

    torch.manual_seed(0)
    net = torch.nn.Sequential(Standardised(3, 4, 1), torch.nn.BatchNorm2d(4)).eval()
    torch.nn.init.uniform_(net[1].weight, 2, 3)
    before = net(PHOTO)
    assert folding.fold(net, lambda: [net(PHOTO)]) == []
    torch.testing.assert_close(net(PHOTO), before)


def test_a_map_that_others_read_too_is_not_folded() -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.convolution(x)
            return x + self.norm(x)

    net = Both().eval()
    torch.nn.init.uniform_(net.norm.weight, 2, 3)
    assert folding.fold(net, lambda: [net(PHOTO)]) == []


def test_threads_in_one_network_see_the_same_and_leave_it_as_it_is() -> None:
    net = small()
    photos = torch.rand(24, 2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        plain = [net.embed(x).whole.clone() for x in photos]
    before = dict(net.named_parameters())
    folding.fold(net.backbone, partial(net.maps, PHOTO))

    def seen(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return net.embed(x).whole.clone()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(seen, photos))
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    after = dict(net.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
