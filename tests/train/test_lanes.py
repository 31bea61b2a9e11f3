"""Lanes: the gradients of the whole batch, norms that follow every share, and nothing of them left behind."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from reid.train import lanes, network  # noqa: E402
from reid.train.lanes import Lanes  # noqa: E402
from reid.train.recipe import NetworkConfig  # noqa: E402

SIZE = 32


@pytest.fixture(autouse=True)
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def small() -> network.Network:
    torch.manual_seed(0)
    config = NetworkConfig(backbone="mobilenetv3_small_050", pooling="all_stages", dim=8)
    return network.build(config, pretrained=False)[0]


def photos(n: int) -> torch.Tensor:
    return torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def learn(net: network.Network, one: Lanes, x: torch.Tensor) -> torch.Tensor:
    maps = one.maps(x)
    loss = net.embed_maps(maps).whole.pow(2).sum() + sum(level.abs().mean() for level in maps)
    loss.backward()
    one.backward()
    return loss


def gradients(net: network.Network) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("n", [32, 51])
def test_with_norms_that_stay_two_lanes_give_the_gradients_of_one(n: int) -> None:
    found = []
    for count in (1, 2):
        net = small().eval()
        ways = Lanes(net, count)
        loss = learn(net, ways, photos(n))
        ways.close()
        found.append((loss.item(), gradients(net)))
    (one_loss, one), (two_loss, two) = found
    assert two_loss == pytest.approx(one_loss, rel=1e-5) and one.keys() == two.keys() and len(one) > 50
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-3, atol=1e-5)


def test_norms_follow_the_mean_of_the_shares_whichever_thread_is_first() -> None:
    net, plain = small().train(), small().train()
    ways = Lanes(net, 2)
    x = photos(32)
    for _ in range(2):
        learn(net, ways, x)
    shares = [small().train(), small().train()]
    for half, share in zip(shares, x.chunk(2), strict=True):
        half.maps(share)
    mean = (shares[0].backbone.bn1.running_mean + shares[1].backbone.bn1.running_mean) / 2
    once = plain.backbone.bn1
    once.running_mean.copy_(mean)
    for half in shares:  # the second batch begins with the mean of both
        half.backbone.bn1.running_mean.copy_(mean)
    for half, share in zip(shares, x.chunk(2), strict=True):
        half.maps(share)
    expected = (shares[0].backbone.bn1.running_mean + shares[1].backbone.bn1.running_mean) / 2
    torch.testing.assert_close(net.backbone.bn1.running_mean, expected)
    ways.close()


def test_the_same_batches_give_the_same_numbers() -> None:
    found = []
    for _ in range(2):
        net = small().train()
        ways = Lanes(net, 2)
        learn(net, ways, photos(40))
        ways.close()
        found.append(gradients(net) | dict(net.named_buffers()))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_weights_that_are_held_still_get_no_gradient_and_small_batches_go_one_way() -> None:
    net = small().train()
    for parameter in net.backbone.parameters():
        parameter.requires_grad_(False)
    ways = Lanes(net, 2)
    learn(net, ways, photos(32))
    assert all(p.grad is None for p in net.backbone.parameters()) and gradients(net)
    assert all(not one.is_leaf or not one.requires_grad for one in ways.maps(photos(31)))
    ways.close()


def test_threads_are_shared_among_lanes_and_given_back() -> None:
    assert (lanes.fitting(64), lanes.fitting(32), lanes.fitting(31)) == (2, 2, 1)
    ways = Lanes(small(), 2)
    assert torch.get_num_threads() == 1
    ways.close()
    assert torch.get_num_threads() == 2
