"""The Siamese head: symmetric, as its formula, the same with and without torch, and trained on vectors in which
identity can be learned.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assignments import clustered
from numpy.typing import NDArray

from reid import siamese
from reid.errors import ModelError, TrainError
from reid.siamese import Siamese

torch = pytest.importorskip("torch")

from reid.train import heads, holdout  # noqa: E402
from reid.train import siamese as training  # noqa: E402
from reid.train.listed_pairs import nearest_others  # noqa: E402
from reid.train.pair_scores import PairScores, nearest  # noqa: E402
from reid.train.siamese import SiameseConfig  # noqa: E402

FAST: Any = {"features": 16, "epochs": 14, "batch": 16, "rate": 16.0}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as these are slower on two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


def random_head(dim: int = 10, features: int = 6, hidden: int = 5, seed: int = 0) -> Siamese:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> NDArray[np.float32]:
        return rng.normal(size=shape).astype(np.float32)

    return Siamese(
        draw(features, dim), draw(features), draw(hidden, 4), draw(hidden), draw(hidden), 0.3, draw(features), -0.2
    )


def logit_by_loops(head: Siamese, a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    total = head.bias
    for f in range(len(head.weights)):
        x = sum(head.projection[f, i] * a[i] for i in range(len(a))) + head.shift[f]
        y = sum(head.projection[f, i] * b[i] for i in range(len(b))) + head.shift[f]
        h = head.output_bias
        for unit_ in range(len(head.hidden)):
            v = (x * y, x + y, abs(x - y), (x - y) ** 2)
            inner = sum(head.hidden[unit_, k] * v[k] for k in range(4)) + head.hidden_bias[unit_]
            h += head.output[unit_] * max(inner, 0)
        total += head.weights[f] * h
    return float(total)


def animals(
    n_identities: int = 40, photos: int = 4, views: int = 2, dim: int = 24, useful: int = 8, seed: int = 0
) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Vectors `(n, views, 2, dim)` in which only the first `useful` numbers tell animals apart; the others are louder
    noise.
    """
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(n_identities), photos)
    own = np.concatenate([rng.normal(size=(n_identities, useful)), np.zeros((n_identities, dim - useful))], axis=1)
    noise = np.concatenate([np.full(useful, 0.35), np.full(dim - useful, 1.5)])
    base = own[labels] + noise * rng.normal(size=(len(labels), dim))
    views_of = base[:, None, None] + 0.05 * rng.normal(size=(len(labels), views, 2, dim))
    return unit(views_of).astype(np.float16), labels


def test_the_score_is_the_formula_of_the_network() -> None:
    head = random_head()
    rng = np.random.default_rng(1)
    queries, gallery = unit(rng.normal(size=(3, 10))), unit(rng.normal(size=(4, 10)))
    expected = np.array([[logit_by_loops(head, a, b) for b in gallery] for a in queries])
    np.testing.assert_allclose(head.logits(queries, gallery), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(head.score(queries, gallery), 1 / (1 + np.exp(-expected)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(head.pair_logits(queries, gallery[:3]), np.diag(expected[:, :3]), rtol=1e-4, atol=1e-4)


def test_the_score_does_not_depend_on_which_photo_is_asked_about() -> None:
    head = random_head()
    rows = unit(np.random.default_rng(2).normal(size=(7, 10)))
    logits = head.logits(rows, rows)
    np.testing.assert_allclose(logits, logits.T, atol=1e-5)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    head = random_head()
    rows = unit(np.random.default_rng(2).normal(size=(50, 10)))
    whole = head.logits(rows[:5], rows)
    monkeypatch.setattr(siamese, "_CHUNK", 40)
    np.testing.assert_allclose(head.logits(rows[:5], rows), whole, atol=1e-5)
    np.testing.assert_allclose(
        head.pair_logits(rows, rows[::-1]),
        [logit_by_loops(head, a, b) for a, b in zip(rows, rows[::-1], strict=True)],
        atol=1e-3,
    )


def test_one_product_of_expanded_vectors_gives_all_pairs_nearly() -> None:
    vectors, labels = animals()
    head = training.train(vectors, labels, SiameseConfig(**FAST)).head
    rows = vectors[:, 0, 0].astype(np.float32)
    left, right = head.expanded(rows)
    exact, near = head.logits(rows, rows), left @ right.T + head.bias
    assert np.abs(near - exact).max() < 0.02 * np.ptp(exact)
    assert np.corrcoef(near.ravel(), exact.ravel())[0, 1] > 0.9999


@pytest.mark.parametrize("features", [0, 12])
def test_torch_and_numpy_give_the_same_logits(features: int) -> None:
    network = training.PairNetwork(10, SiameseConfig(features=features, dropout=0.5)).eval()
    rng = np.random.default_rng(3)
    a, b = unit(rng.normal(size=(20, 10))), unit(rng.normal(size=(20, 10)))
    with torch.inference_mode():
        expected = network(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(network.plain().pair_logits(a, b), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("negatives", ["auto", "exact", "blocks", "sparse", "random"])
@pytest.mark.parametrize("hard_positives", [False, True])
def test_training_finds_the_numbers_that_tell_animals_apart(
    negatives: training.Negatives, hard_positives: bool
) -> None:
    vectors, labels = animals()
    held = holdout.split(labels, seed=1)
    before = holdout.map_at_5(vectors[:, 0, 0].astype(np.float32), labels, held)
    config = SiameseConfig(negatives=negatives, hard_positives=hard_positives, block=60, neighbours=15, **FAST)
    trained = training.train(vectors, labels, config, held=held)
    assert trained.history[trained.best].map_at_5 == max(epoch.map_at_5 for epoch in trained.history)
    assert trained.history[trained.best].map_at_5 > before + 0.15
    assert trained.history[-1].loss < trained.history[0].loss


def test_assigned_negatives_are_harder_than_random_ones() -> None:
    vectors, labels = animals()
    ways: tuple[training.Negatives, ...] = ("exact", "random")
    hardness = {}
    for negatives in ways:
        config = SiameseConfig(negatives=negatives, among=0, **FAST)
        hardness[negatives] = training.train(vectors, labels, config).history[-1].hardness
    assert hardness["exact"] > hardness["random"] + 1


@pytest.mark.parametrize("negatives", ["exact", "sparse", "blocks"])
def test_negatives_are_the_hardest_among_so_many(negatives: training.Negatives) -> None:
    rng = np.random.default_rng(0)
    rows, labels = unit(rng.normal(size=(800, 8))).astype(np.float32), np.repeat(np.arange(400), 2)
    head = training.PairNetwork(8, SiameseConfig(features=0)).plain()
    alike = head.logits(rows, rows)
    harder = {}
    for among in (0, 32, 4):
        config = SiameseConfig(features=0, negatives=negatives, among=among, block=400)
        scores = PairScores(head, rows, negatives)
        partner = scores.assign(labels, config, config.least_noise(800), np.empty((0, 2), np.int64), rng)
        chosen = alike[np.arange(800), partner]
        harder[among] = (alike >= chosen[:, None]).mean()  # share of all photos that would have been as hard
    assert harder[0] < 0.01 and 0.05 < harder[32] < 0.25 and 0.3 < harder[4] < 0.5


def test_an_untrained_head_ranks_as_the_cosine_does() -> None:
    rows = unit(np.random.default_rng(0).normal(size=(60, 10)))
    head = training.PairNetwork(10, SiameseConfig(features=0)).plain()
    cosine, logits = (rows @ rows.T)[np.triu_indices(60, 1)], head.logits(rows, rows)[np.triu_indices(60, 1)]
    assert np.corrcoef(cosine, logits)[0, 1] > 0.99


def test_the_same_seed_gives_the_same_head() -> None:
    vectors, labels = animals(n_identities=12)
    heads = [training.train(vectors, labels, SiameseConfig(features=8, epochs=3, seed=seed)).head for seed in (4, 4, 5)]
    np.testing.assert_array_equal(heads[0].projection, heads[1].projection)
    np.testing.assert_array_equal(heads[0].weights, heads[1].weights)
    assert (heads[0].projection != heads[2].projection).any()


def test_photos_without_a_second_one_of_their_animal_are_left_out() -> None:
    vectors, labels = animals(n_identities=12)
    lonely = np.concatenate([labels, [100, 101]])
    more = np.concatenate([vectors, vectors[:2]])
    alone, together = (
        training.train(v, names, SiameseConfig(features=8, epochs=2)).head
        for v, names in ((vectors, labels), (more, lonely))
    )
    np.testing.assert_array_equal(alone.projection, together.projection)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([0, 1, 2, 3], "no identity has two photos"),
        ([0, 0, 0, 0], "only one identity has two photos"),
        ([0, 0, 1, 2], "only one identity"),
        ([0, 0, 0, 1, 1], "'0' has 3 of 5"),
    ],
)
def test_labels_from_which_nothing_can_be_learned_are_an_error_that_says_so(labels: list[int], match: str) -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(len(labels), 1, 2, 6))).astype(np.float16)
    with pytest.raises(TrainError, match=match) as caught:
        training.train(vectors, labels, SiameseConfig(features=4, epochs=1))
    assert caught.value.next_step


@pytest.mark.parametrize("sizes", [[2] * 8, [5] * 2, [4] * 3, [6, 2, 2, 2]])
def test_few_photos_meet_again_where_no_new_pairs_are_left(sizes: list[int]) -> None:
    vectors, _ = animals(n_identities=12)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    for negatives in ("exact", "sparse", "random"):
        config = SiameseConfig(features=8, epochs=40, negatives=negatives)  # type: ignore[arg-type]
        done = training.train(vectors[: len(labels)], labels, config)
        assert len(done.history) == 40 and all(np.isfinite(one.loss) for one in done.history)


def test_vectors_that_are_not_finite_stop_training_with_an_error() -> None:
    vectors, labels = animals(n_identities=10)
    vectors[3, 1] = np.nan
    with pytest.raises(TrainError, match="no number"):
        training.train(vectors, labels, SiameseConfig(features=8, epochs=6))


def test_pairs_that_may_be_one_animal_are_never_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = animals(n_identities=10)
    forbidden = np.array([[0, j] for j in range(4, 20)])
    partners = []
    original = training._epoch

    def spy(*args: object) -> float:
        partners.append(args[5])
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "_epoch", spy)
    training.train(vectors, labels, SiameseConfig(features=8, epochs=5), forbidden=forbidden)
    assert len(partners) == 5
    for partner in partners:
        assert partner[0] >= 20 and 0 not in partner[4:20]  # type: ignore[index]


def test_animals_that_may_be_one_are_neither_set_against_each_other_nor_taken_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors, labels = animals(n_identities=8)
    groups = np.where(labels == 1, 0, labels)
    seen: list[tuple[Any, Any]] = []
    original = training._epoch

    def spy(*some: Any) -> float:
        seen.append((some[4], some[5]))
        return original(*some)

    monkeypatch.setattr(training, "_epoch", spy)
    for negatives in ("exact", "blocks", "sparse", "random"):
        seen.clear()
        config = SiameseConfig(negatives=negatives, features=8, epochs=5, block=20, neighbours=31)  # type: ignore[arg-type]
        training.train(vectors, labels, config, groups=groups)
        for positive, negative in seen:
            assert (labels[positive] == labels).all()
            assert (groups[negative] != groups).all() and sorted(negative) == list(range(32))
        assert len(seen) == 5


def shown_rows(monkeypatch: pytest.MonkeyPatch, vectors: NDArray[np.float16], labels: Any, mirror: Any) -> set[int]:
    """Which of the numbered rows of `vectors (n, V, 2, D)` a head is shown in some epochs: by the row's own numbers."""
    places = {row.tobytes(): place for place, row in enumerate(vectors.reshape(-1, vectors.shape[-1]))}
    found: set[int] = set()
    original = training.PairNetwork.forward

    def spy(self: Any, first: Any, second: Any) -> Any:
        for side in (first, second):
            found.update(places[row.astype(np.float16).tobytes()] for row in side.numpy())
        return original(self, first, second)

    monkeypatch.setattr(training.PairNetwork, "forward", spy)
    training.train(vectors, labels, SiameseConfig(features=8, epochs=20, mirror=mirror))
    return found


@pytest.mark.parametrize("mirror", ["views", "none"])
def test_all_views_of_a_photo_are_shown_mirrored_ones_as_asked(monkeypatch: pytest.MonkeyPatch, mirror: str) -> None:
    vectors, labels = animals(n_identities=4, views=3)
    found = shown_rows(monkeypatch, vectors, labels, mirror)
    every = set(range(16 * 3 * 2))
    assert found == (every if mirror == "views" else {place for place in every if place % 2 == 0})


def test_views_teach_what_photos_of_an_animal_differ_by() -> None:
    """Each photo is one draw of a loud nuisance, and its views are others: with one view it looks like identity."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(30), 2)
    own = np.concatenate([rng.normal(size=(30, 6)), np.zeros((30, 6))], axis=1)[labels]
    session = np.repeat(rng.normal(size=(30, 6)), 2, axis=0)  # both photos of an animal were taken on one day

    def photo(days: NDArray[np.floating]) -> NDArray[np.float16]:
        return unit(own + 2 * np.concatenate([np.zeros((60, 6)), days], axis=1)).astype(np.float16)

    views = np.stack([photo(session), *(photo(rng.normal(size=(60, 6))) for _ in range(3))], axis=1)[:, :, None]
    plain = np.broadcast_to(views[:, :1], views.shape)
    asked = photo(rng.normal(size=(60, 6))).astype(np.float32)
    score = {}
    for name, one in (("views", views), ("plain", plain)):
        head = training.train(np.repeat(one, 2, axis=2), labels, SiameseConfig(**FAST)).head
        found = holdout.ranks(head.logits(asked, one[:, 0, 0].astype(np.float32)), labels, labels)
        score[name] = float((found == 1).mean())
    assert score["views"] > score["plain"] + 0.1


def test_mined_scores_are_the_heads_bias_and_all() -> None:
    vectors, labels = animals()
    rows = vectors[:, 0, 0].astype(np.float32)
    head = training.train(vectors, labels, SiameseConfig(**FAST)).head
    first, second = np.arange(160), np.random.default_rng(0).permutation(160)
    exact = head.pair_logits(rows, rows[second])
    scores = PairScores(head, rows, "exact")
    assert scores.matrix is not None
    for found in (scores.of(first, second), scores.matrix[first, second], scores.block(first)[first, second]):
        assert np.abs(found - exact).max() < 0.03 * np.ptp(exact)
    near = nearest_others(rows, labels, 5)
    listed = PairScores(head, rows, "sparse", near)._lists(labels, 5)[1]
    np.testing.assert_allclose(listed, scores.matrix[first[:, None], near], atol=1e-3)


def test_lists_without_an_index_are_of_other_animals_however_many_photos_one_has() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, 40, 6)).astype(np.float32)
    labels = np.array([0] * 30 + [1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    left[:30] = left[0] + 0.01 * left[:30]  # one animal's photos are much alike, and more than a list is long
    right[:30] = left[:30]
    products = left @ right.T
    for k in (5, 20):
        for photo, listed in enumerate(nearest(left, right, labels, k).tolist()):
            others = sorted((-products[photo, j], j) for j in range(40) if labels[j] != labels[photo])[:k]
            assert sorted(listed) == sorted([j for _, j in others] + [-1] * (k - len(others)))


def test_sparse_negatives_from_an_index_are_nearly_as_hard_as_exact_ones() -> None:
    """Where the index's cosine tells animals apart at all, as whitened vectors' does."""
    rows, labels = clustered(100, np.full(100, 4), dim=24)
    vectors = np.broadcast_to(rows.astype(np.float16)[:, None, None], (400, 1, 2, 24))
    head = training.train(vectors, labels, SiameseConfig(**FAST)).head
    hardness = {}
    for negatives, near in (("exact", None), ("sparse", nearest_others(rows, labels, 50)), ("random", None)):
        config = SiameseConfig(negatives=negatives)  # type: ignore[arg-type]
        scores = PairScores(head, rows, config.negatives, near)
        partner = scores.assign(labels, config, 0.0, np.empty((0, 2), np.int64), np.random.default_rng(0))
        assert sorted(partner) == list(range(400)) and (labels[partner] != labels).all()
        probability = 1 / (1 + np.exp(-head.pair_logits(rows, rows[partner])))
        hardness[negatives] = float(probability.mean())
    assert hardness["sparse"] > 0.95 * hardness["exact"] > 2 * hardness["random"]


@pytest.mark.parametrize("noise", [0.25, 1.0, 5.0])
def test_noise_makes_sparse_negatives_as_random_as_exact_ones(noise: float) -> None:
    rows, labels = clustered(150, np.full(150, 4), dim=24)
    head = training.PairNetwork(24, SiameseConfig(features=0)).plain()
    hardness = {}
    for negatives, near in (("exact", None), ("sparse", nearest_others(rows, labels, 50))):
        config = SiameseConfig(negatives=negatives)  # type: ignore[arg-type]
        scores = PairScores(head, rows, config.negatives, near)
        partner = scores.assign(labels, config, noise, np.empty((0, 2), np.int64), np.random.default_rng(0))
        assert sorted(partner) == list(range(600)) and (labels[partner] != labels).all()
        hardness[negatives] = float(np.einsum("pd,pd->p", rows, rows[partner]).mean())
    assert hardness["sparse"] == pytest.approx(hardness["exact"], abs=0.05)


def test_auto_is_exact_while_that_fits_and_says_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = animals(n_identities=10)
    more, names = np.concatenate([vectors, vectors[:3]]), np.concatenate([labels, [100, 101, 102]])
    found = training.train(more, names, SiameseConfig(features=8, epochs=1))
    assert (found.negatives, found.paired, found.lonely) == ("exact", 40, 3)
    monkeypatch.setattr(training, "EXACT", 39)
    assert training.train(more, names, SiameseConfig(features=8, epochs=1)).negatives == "sparse"


def test_a_head_of_many_photos_begins_with_whitened_vectors() -> None:
    vectors, _ = animals(n_identities=150)
    rows = vectors[:, 0, 0].astype(np.float32)
    network = training.PairNetwork(24, SiameseConfig(features=16))
    network.start_whitened(rows)
    features = network.plain().features(rows)
    expected = rows @ heads.whitening(rows, 16, shrink=0.5).matrix.T
    expected -= expected.mean(0)
    np.testing.assert_allclose(np.corrcoef(features.ravel(), expected.ravel())[0, 1], 1, atol=1e-4)
    assert (features**2).mean() == pytest.approx(1, abs=1e-3)


def test_a_saved_head_comes_back_as_it_was(tmp_path: Path) -> None:
    head = random_head()
    siamese.save(
        Siamese(
            **{name: getattr(head, name) for name in head.__slots__ if name != "about"},
            about={"fingerprint": "f" * 64, "trained_on": 7},
        ),
        tmp_path,
    )
    back = siamese.load(tmp_path, "f" * 64)
    for name in ("projection", "shift", "hidden", "hidden_bias", "output", "weights"):
        np.testing.assert_array_equal(getattr(back, name), getattr(head, name))
    assert (back.bias, back.output_bias) == pytest.approx((head.bias, head.output_bias))
    assert back.about == {"fingerprint": "f" * 64, "trained_on": 7}


def test_a_head_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no Siamese head there"):
        siamese.load(tmp_path)
    head = random_head()
    head.about["fingerprint"] = "a"
    siamese.save(head, tmp_path)
    with pytest.raises(ModelError, match="vectors of another model"):
        siamese.load(tmp_path, "b")
    arrays = (tmp_path / siamese.ARRAYS).read_bytes()
    (tmp_path / siamese.ARRAYS).write_bytes(arrays[:-10])
    with pytest.raises(ModelError, match="not those that its card describes"):
        siamese.load(tmp_path, "a")
    (tmp_path / siamese.ARRAYS).write_bytes(arrays)
    card = json.loads((tmp_path / siamese.CARD).read_text())
    (tmp_path / siamese.CARD).write_text(json.dumps({**card, "format": 99}))
    with pytest.raises(ModelError, match="another version"):
        siamese.load(tmp_path, "a")
    (tmp_path / siamese.CARD).write_text("{")
    with pytest.raises(ModelError, match="unreadable"):
        siamese.load(tmp_path, "a")


def test_scoring_imports_no_torch() -> None:
    code = "import sys, reid.siamese; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
