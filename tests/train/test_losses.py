"""Each loss against a reference of plain loops over photos and classes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from reid.train import losses  # noqa: E402
from reid.train.losses import Space, Targets  # noqa: E402
from reid.train.network import Embedded  # noqa: E402
from reid.train.recipe import Centre, Divided, Margin, Pair, Ring, Sigmoid, Softmax, Sphere, Triplet  # noqa: E402

B, C, D = 7, 5, 6  # photos; animals, with as many mirror images; numbers
COUNTS = np.array([1, 2, 3, 9, 30] * 2)


def embedded(seed: int = 0, scale: float = 2.0) -> Embedded:
    torch.manual_seed(seed)
    x = scale * torch.randn(B, D)
    return Embedded(x, (x,), torch.nn.functional.normalize(torch.randn(B, 3, 4), dim=2))


def targets(*, new: bool = True, twins: bool = True, done: float = 0.0) -> Targets:
    classes = torch.tensor([0, 0, 3, 8, 5, 4, -1 if new else 2])
    mirrored = torch.where(classes >= 0, (classes + C) % (2 * C), -1)
    return Targets(classes, mirrored if twins else torch.full_like(mirrored, -1), done)


def space(parts: int = 1) -> Space:
    return Space(D, parts, COUNTS)


def unit(rows: Any) -> Any:
    found = rows.detach().double().numpy()
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def cross_entropy(logits: dict[int, float], true: int) -> float:
    high = max(logits.values())
    return high + math.log(sum(math.exp(v - high) for v in logits.values())) - logits[true]


MARGINS = [
    Margin(scale=30, m2=0.5),
    Margin(scale=32, m3=0.35),
    Margin(scale=20, m1=1.0, m2=0.4, m3=0.15),
    Margin(scale=20, m1=0.9, m2=0.4, m3=0.15),
    Margin(scale=21, dynamic=(0.27, 0.364, 0.05)),
    Margin(scale=21, centres=3, m2=0.3),
    Margin(scale=10, m2=0.3, uniform=0.7),
]


@pytest.mark.parametrize("config", MARGINS)
@pytest.mark.parametrize("twins", [True, False])
def test_margin_softmax_is_cross_entropy_of_cosines_with_the_margin_on_the_target(config: Margin, twins: bool) -> None:
    loss, x, aims = losses.MarginSoftmax(config, space()), embedded(), targets(twins=twins)
    rows, centres = unit(x.whole), unit(loss.centres).reshape(2 * C, config.centres, D)
    points, uniform = [], []
    for row, true, twin in zip(rows, aims.classes.tolist(), aims.twins.tolist(), strict=True):
        cosines = {c: max(float(row @ one) for one in centres[c]) for c in range(2 * C)}
        if true < 0:
            logits = {c: config.scale * v for c, v in cosines.items()}
            uniform.append(np.mean([cross_entropy(logits, c) for c in logits]) - math.log(2 * C))
            continue
        a, b, c = config.dynamic or (0.0, 1.0, config.m2)
        angle = config.m1 * math.acos(cosines[true]) + a * COUNTS[true] ** -b + c
        wanted = math.cos(angle) if angle < math.pi else -1 - (angle - math.pi)
        logits = {k: config.scale * v for k, v in (cosines | {true: wanted - config.m3}).items() if k != twin}
        points.append(cross_entropy(logits, true))
    expected = np.mean(points) + (config.uniform * np.mean(uniform) if config.uniform else 0.0)
    assert loss(x, aims).item() == pytest.approx(expected, rel=1e-4)


def test_margins_grow_from_nothing_to_what_they_are() -> None:
    x, aims = embedded(), targets(new=False)
    for done, share in ((0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.9, 1.0)):
        growing = losses.MarginSoftmax(Margin(scale=20, m1=0.9, m2=0.4, m3=0.15, grows=0.2), space())
        whole = losses.MarginSoftmax(Margin(scale=20, m1=1 - 0.1 * share, m2=0.4 * share, m3=0.15 * share), space())
        whole.load_state_dict({**growing.state_dict(), "margin": whole.margin})
        assert growing(x, replace(aims, done=done)).item() == pytest.approx(whole(x, aims).item(), rel=1e-5)


def test_arcface_and_cosface_are_those_of_pytorch_metric_learning_where_nothing_is_left_out() -> None:
    from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss

    x, aims = embedded(), targets(new=False, twins=False)
    for config, other in (
        (Margin(scale=30, m2=math.radians(20)), ArcFaceLoss(2 * C, D, margin=20, scale=30)),
        (Margin(scale=32, m3=0.35), CosFaceLoss(2 * C, D, margin=0.35, scale=32)),
    ):
        ours = losses.MarginSoftmax(config, space())
        other.W.data.copy_(ours.centres.data.T)
        assert ours(x, aims).item() == pytest.approx(other(x.whole, aims.classes).item(), rel=1e-4)


def test_sphereface_multiplies_the_angle_by_m_piece_by_piece_and_less_so_at_first() -> None:
    config = Sphere(m=4, base=100.0, falls=0.5, least=2.0)
    loss, x, aims = losses.SphereFace(config, space()), embedded(), targets()
    for step in (1, 2, 1000):
        loss.steps.fill_(step - 1)
        blend = max(2.0, 100.0 / (1 + 0.5 * step))
        rows, centres, points = unit(x.whole), unit(loss.centres), []
        for row, whole, true, twin in zip(rows, x.whole, aims.classes.tolist(), aims.twins.tolist(), strict=True):
            if true < 0:
                continue
            angle, length = math.acos(float(row @ centres[true])), float(whole.norm())
            k = int(4 * angle / math.pi)
            psi = (-1) ** k * math.cos(4 * angle) - 2 * k
            wanted = (blend * math.cos(angle) + psi) / (1 + blend)
            logits = {c: length * float(row @ centres[c]) for c in range(2 * C) if c != twin} | {true: length * wanted}
            points.append(cross_entropy(logits, true))
        assert loss(x, aims).item() == pytest.approx(np.mean(points), rel=1e-4)


def test_softmax_adds_a_classifier_on_every_part() -> None:
    loss, aims = losses.SoftmaxHeads(Softmax(), space(parts=2)), targets()
    whole = embedded().whole
    x = Embedded(whole, (whole[:, :3], whole[:, 3:]))
    expected = 0.0
    for head, part in zip(loss.heads, [whole, *x.parts], strict=True):
        logits = part.detach() @ head.weight.detach().T + head.bias.detach()
        points = [
            cross_entropy({c: float(v) for c, v in enumerate(row) if c != twin}, true)
            for row, true, twin in zip(logits, aims.classes.tolist(), aims.twins.tolist(), strict=True)
            if true >= 0
        ]
        expected += float(np.mean(points))
    assert loss(x, aims).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("config", "done", "number"),
    [
        (Sigmoid(hardest=4), 0.0, 4),
        (Sigmoid(hardest=30), 0.0, 10),
        (Sigmoid(hardest=0.5, hardest_end=0.2), 0.0, 5),
        (Sigmoid(hardest=0.5, hardest_end=0.2), 1.0, 2),
        (Sigmoid(hardest=3, focal=2.0), 0.0, 3),
    ],
)
def test_sigmoids_average_the_hardest_classes_and_add_the_true_one(config: Sigmoid, done: float, number: int) -> None:
    loss, x, aims = losses.HardSigmoid(config, space()), embedded(), targets(twins=False, done=done)
    rows, centres = unit(x.whole), unit(loss.centres)
    hardest, true_ones = [], []
    for row, true in zip(rows, aims.classes.tolist(), strict=True):
        errors = []
        for c in range(2 * C):
            p = 1 / (1 + math.exp(-16 * float(row @ centres[c])))
            right = p if c == true else 1 - p
            errors.append(-math.log(right) * ((1 - right) ** config.focal if config.focal else 1.0))
        hardest.append(np.mean(sorted(errors)[-number:]))
        true_ones += [errors[true]] if true >= 0 else []
    assert loss(x, aims).item() == pytest.approx(np.mean(hardest) + np.mean(true_ones), rel=1e-4)


def test_a_mirror_image_left_out_changes_nothing_for_the_photo() -> None:
    x, aims = embedded(), targets()
    for config in (Margin(m2=0.3), Sigmoid(hardest=10), Sphere()):
        loss = losses.Sum([config], space()).eval()
        first = loss(x, aims)
        with torch.no_grad():  # class 5 is the mirror image of class 0: turn it towards the first photos
            loss.losses[0].centres[C] = x.whole[0]
        only = Targets(aims.classes[:2], aims.twins[:2])
        two = Embedded(x.whole[:2], (x.whole[:2],))
        before, after = loss(two, only), loss(two, Targets(only.classes, torch.full_like(only.twins, -1)))
        assert after > before and torch.isfinite(first)


def hard_triplets(apart: Any, classes: list[int], margin: float) -> list[float]:
    own = [c if c >= 0 else -10 - i for i, c in enumerate(classes)]
    found = []
    for i in range(len(own)):
        same = [apart[i][j] for j in range(len(own)) if j != i and own[j] == own[i]]
        other = [apart[i][j] for j in range(len(own)) if own[j] != own[i]]
        if same and other:
            found.append(max(0.0, max(same) - min(other) + margin))
    return found


def grouped() -> Targets:
    return Targets(torch.tensor([0, 0, 1, 1, 1, 4, -1]), torch.full((B,), -1))


def test_triplets_are_the_farthest_same_and_the_nearest_other_photo() -> None:
    x, aims = embedded(), grouped()
    rows = unit(x.whole)
    apart = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    found = [
        v for v in hard_triplets(apart, aims.classes.tolist(), 0.3) if v > 0
    ]  # it averages those that say something
    assert losses.BatchHard(Triplet(margin=0.3), space())(x, aims).item() == pytest.approx(np.mean(found), rel=1e-4)


def test_aligned_triplets_take_the_cheapest_path_through_the_rows() -> None:
    x, aims = embedded(), grouped()
    assert x.rows is not None
    rows, n = unit(x.rows), 3
    apart = np.zeros((B, B))
    for i, j in itertools.product(range(B), range(B)):
        cost = np.tanh(np.linalg.norm(rows[i][:, None] - rows[j][None], axis=2) / 2)
        best = math.inf
        for downs in itertools.combinations(range(2 * n - 2), n - 1):
            a = b = 0
            total = cost[0, 0]
            for step in range(2 * n - 2):
                a, b = (a + 1, b) if step in downs else (a, b + 1)
                total += cost[a, b]
            best = min(best, total)
        apart[i, j] = best / (2 * n - 1)
    np.testing.assert_allclose(losses.aligned_distances(x.rows).numpy(), apart, atol=1e-4)
    expected = np.mean(hard_triplets(apart, aims.classes.tolist(), 0.3))
    assert losses.BatchHard(Triplet(aligned=True), space())(x, aims).item() == pytest.approx(expected, rel=1e-3)


def test_margin_loss_trains_the_part_of_its_cluster_and_learns_beta() -> None:
    config = Divided(clusters=2)
    loss, whole = losses.DividedMargin(config, space()), embedded().whole.requires_grad_()
    classes = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    found = loss(Embedded(whole, (whole,)), Targets(classes, torch.full((B,), -1), 0.0, (1, 2)))
    found.backward()
    assert whole.grad is not None and float(whole.grad[:, :3].abs().sum()) == 0 < float(whole.grad[:, 3:].abs().sum())
    grads = [one.beta.grad for one in loss.losses]
    assert grads[0] is None and float(grads[1].abs()) > 0
    # The parts of the loss that do not depend on which negatives were drawn: positives beyond β − α.
    rows = unit(whole[:, 3:])
    far = [np.linalg.norm(rows[i] - rows[j]) for i in range(B) for j in range(B) if i != j and classes[i] == classes[j]]
    assert max(far) > 1.0 and found.item() > 0


def test_centre_and_ring_loss() -> None:
    x, aims = embedded(), targets()
    centre = losses.CentreLoss(Centre(), space())
    torch.nn.init.normal_(centre.centres)
    expected = np.mean([
        0.5 * float((row - centre.centres[c].detach()).pow(2).sum())
        for row, c in zip(x.whole, aims.classes.tolist(), strict=True) if c >= 0
    ])  # fmt: skip
    assert centre(x, aims).item() == pytest.approx(expected, rel=1e-5)
    ring = losses.RingLoss(Ring(), space())
    lengths = x.whole.norm(dim=1)
    assert ring(x, aims).item() == pytest.approx(float(((lengths - lengths.mean()) ** 2).mean()), rel=1e-5)
    longer = Embedded(2 * x.whole, (2 * x.whole,))
    assert ring(longer, aims).item() == pytest.approx(float(((2 * lengths - lengths.mean()) ** 2).mean()), rel=1e-5)


def test_a_sum_weighs_its_losses_and_every_one_gives_gradients() -> None:
    configs = [Margin(m2=0.2, weight=0.5), Triplet(weight=2.0), Ring(), Pair()]
    x, aims = embedded(), targets()
    total = losses.Sum(configs, space())
    parts = [loss(x, aims).item() for loss in total.losses]
    assert len(parts) == 3  # pairs are the loop's own business
    assert total(x, aims).item() == pytest.approx(0.5 * parts[0] + 2.0 * parts[1] + 0.01 * parts[2], rel=1e-5)
    for config in (
        Margin(),
        Sphere(),
        Softmax(),
        Sigmoid(),
        Triplet(),
        Triplet(aligned=True),
        Divided(),
        Centre(),
        Ring(),
    ):
        whole = embedded().whole.requires_grad_()
        rows = torch.nn.functional.normalize(whole.view(B, 2, 3), dim=2)
        losses.Sum([config], space())(Embedded(whole, (whole,), rows), targets()).backward()
        assert whole.grad is not None and torch.isfinite(whole.grad).all(), config


@pytest.mark.parametrize(
    "config",
    [Margin(m2=0.5), Margin(m3=0.35), Sphere(), Softmax(), Sigmoid(), Triplet(), Triplet(aligned=True), Ring()],
)
def test_half_precision_of_the_network_reaches_no_loss(config: Any) -> None:
    """Photos almost on their class's centre, cosine .99999: in bfloat16 they would be on it."""
    torch.manual_seed(0)
    loss, aims = losses.Sum([config], space()), targets()
    centres = torch.nn.functional.normalize(torch.randn(2 * C, D))
    if loss.has_centres:
        loss.start(centres)
    aside = torch.randn(B, D)
    own = centres[aims.classes.clamp_min(0)]
    aside = torch.nn.functional.normalize(aside - (aside * own).sum(1, keepdim=True) * own)
    whole = own + math.tan(math.acos(0.99999)) * aside
    found = []
    for half in (True, False):
        x = whole.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            rows = torch.nn.functional.normalize(x.view(B, 2, 3), dim=2)
            value = loss.eval()(Embedded(x, (x,), rows), aims)
        value.backward()
        assert x.grad is not None and torch.isfinite(x.grad).all()
        found.append((value.item(), x.grad.numpy()))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_class_centres_begin_where_they_are_told() -> None:
    centres = torch.randn(2 * C, D)
    x = Embedded(centres * 3, (centres * 3,))
    aims = Targets(torch.arange(2 * C), torch.full((2 * C,), -1))
    for config in (Margin(scale=30), Margin(scale=30, centres=2), Sphere(least=0.0), Softmax(), Sigmoid()):
        loss = losses.Sum([config], space())
        before = loss(x, aims).item()
        loss.start(centres)
        assert loss(x, aims).item() < 0.75 * before, config


def test_photos_without_a_class_alone_are_no_error() -> None:
    x, none = embedded(), Targets(torch.full((B,), -1), torch.full((B,), -1))
    for config in (
        Margin(uniform=1.0),
        Sphere(),
        Softmax(uniform=1.0),
        Sigmoid(),
        Triplet(),
        Triplet(aligned=True),
        Centre(),
    ):
        assert torch.isfinite(losses.Sum([config], space())(x, none)), config
