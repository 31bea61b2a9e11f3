"""Whitening against a covariance written out plainly, its rules, and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from reid import whiten
from reid.errors import SnapshotCorrupt

Array = NDArray[np.float32]


def gallery(number: int, dim: int, seed: int = 0) -> Array:
    """Unit rows around a common direction, each axis weaker than the one before."""
    rng = np.random.default_rng(seed)
    rows = 3 / np.sqrt(dim) + rng.normal(size=(number, dim)) * np.linspace(1, 0.1, dim)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def fitted(vectors: Array, **options: float | NDArray[np.int64]) -> whiten.Whitening:
    found = whiten.fit(vectors, **options)  # type: ignore[arg-type]
    assert found is not None
    return found


def reference(vectors: Array, queries: Array, dimensions: int, shrink: float) -> NDArray[np.float64]:
    """One axis and one query at a time, from the covariance matrix."""
    x = vectors.astype(np.float64)
    mean = sum(x) / len(x)
    covariance = sum(np.outer(row - mean, row - mean) for row in x) / (len(x) - 1)
    variances, axes = np.linalg.eigh(covariance)
    kept = sorted(range(len(variances)), key=lambda i: -variances[i])[:dimensions]
    average = sum(variances[i] for i in kept) / len(kept)
    out = []
    for query in queries.astype(np.float64):
        row = [(query - mean) @ axes[:, i] / np.sqrt((1 - shrink) * variances[i] + shrink * average) for i in kept]
        out.append(np.array(row) / np.sqrt(sum(v * v for v in row)))
    return np.array(out)


@pytest.mark.parametrize("shrink", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("number", "dim"), [(420, 48), (400, 450)], ids=["more photos", "more dimensions"])
def test_whitened_rows_compare_as_the_covariance_says(number: int, dim: int, shrink: float) -> None:
    vectors, queries = gallery(number, dim), gallery(9, dim, seed=1)
    found = fitted(vectors, dimensions=20, shrink=shrink).apply(queries)
    expected = reference(vectors, queries, 20, shrink)
    assert found.shape == (9, 20) and found.dtype == np.float32
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-3)  # an axis may point either way


def test_both_ways_to_the_axes_agree() -> None:
    """Columns of zeros change no product of two rows, but send the same photos down the other way."""
    vectors, queries = gallery(420, 48), gallery(9, 48, seed=1)
    few = fitted(vectors, dimensions=20).apply(queries)
    wide = fitted(np.pad(vectors, ((0, 0), (0, 400))), dimensions=20).apply(np.pad(queries, ((0, 0), (0, 400))))
    np.testing.assert_allclose(few @ few.T, wide @ wide.T, atol=2e-3)


def test_full_whitening_leaves_no_axis_stronger_than_another() -> None:
    vectors = gallery(2000, 32)
    found = fitted(vectors, dimensions=32, shrink=0.0)
    turned = (vectors - found.mean) @ found.axes
    np.testing.assert_allclose(np.cov(turned.T), np.eye(32), atol=1e-3)


def test_rows_come_out_with_unit_length_and_the_mean_itself_as_zero() -> None:
    vectors = gallery(400, 32)
    found = fitted(vectors)
    np.testing.assert_allclose(np.linalg.norm(found.apply(vectors), axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found.apply(found.mean[None]), np.zeros((1, found.dim), np.float32))
    assert found.apply(vectors[:0]).shape == (0, found.dim)


def test_too_few_photos_are_not_whitened() -> None:
    vectors = gallery(whiten.LEAST_PHOTOS, 16)
    assert whiten.fit(vectors[:-1]) is None
    assert fitted(vectors).dim == 16


@pytest.mark.parametrize(("number", "dim", "expected"), [(400, 600, 399), (400, 40, 40), (700, 600, 512)])
def test_no_more_axes_than_the_photos_span(number: int, dim: int, expected: int) -> None:
    found = fitted(gallery(number, dim))
    assert (found.dim, found.mean.shape, found.axes.shape) == (expected, (dim,), (dim, expected))
    assert np.isfinite(found.axes).all()


def test_copies_of_few_photos_give_finite_axes() -> None:
    """A gallery of bursts spans fewer directions than it has photos."""
    vectors = np.repeat(gallery(5, 64), 100, axis=0)
    assert np.isfinite(fitted(vectors).apply(vectors)).all()


def test_a_large_gallery_is_sampled_the_same_way_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = gallery(900, 16)
    monkeypatch.setattr(whiten, "MOST_PHOTOS", 500)
    assert fitted(vectors).name == fitted(vectors).name
    assert fitted(vectors).name != fitted(vectors, seed=1).name


def test_the_vectors_given_are_left_as_they_were() -> None:
    vectors = gallery(450, 24)
    before = vectors.copy()
    fitted(vectors).apply(vectors)
    np.testing.assert_array_equal(vectors, before)


def test_the_name_follows_every_number() -> None:
    found = fitted(gallery(400, 16))
    mean, axes = found.mean.copy(), found.axes.copy()
    mean[3] += 1e-3
    axes[-1, -1] += 1e-3
    names = {whiten.Whitening(found.mean.copy(), found.axes.copy()).name, found.name}
    assert len(names) == 1
    names |= {whiten.Whitening(mean, found.axes).name, whiten.Whitening(found.mean, axes).name}
    assert len(names) == 3
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in names)


def animals(number: int, shots: int, dim: int = 40, seed: int = 0) -> tuple[Array, NDArray[np.int64]]:
    """Unit rows whose first axes tell the light, shared by no two photos, and whose last tell animals apart."""
    rng = np.random.default_rng(seed)
    own = np.concatenate([np.full(dim // 2, 0.15), np.full(dim - dim // 2, 1.0)])
    light = np.concatenate([np.full(dim // 2, 1.0), np.full(dim - dim // 2, 0.3)])
    centres = rng.normal(size=(number, dim)) * own
    rows = np.repeat(centres, shots, axis=0) + rng.normal(size=(number * shots, dim)) * light
    rows += 2 / np.sqrt(dim)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), np.repeat(np.arange(number), shots)


def by_hand(whitened: NDArray[np.float64], individuals: NDArray[np.int64]) -> NDArray[np.float64]:
    """The scatter within animals of rows `(N, d)`, one pair of a photo and its animal's mean at a time, shrunk."""
    d = whitened.shape[1]
    scatter, free = np.zeros((d, d)), 0
    for animal in sorted(set(individuals.tolist()) - {-1}):
        mine = [row for row, who in zip(whitened, individuals.tolist(), strict=True) if who == animal]
        if len(mine) < 2:
            continue
        mean = sum(mine) / len(mine)
        free += len(mine) - 1
        for row in mine:
            scatter += np.outer(row - mean, row - mean)
    scatter /= free
    return np.asarray(scatter + whiten.WITHIN_SHRINK * np.trace(scatter) / d * np.eye(d))


@pytest.mark.parametrize("unknown", [0, 60])
def test_with_animals_known_rows_compare_as_the_scatter_within_animals_says(unknown: int) -> None:
    """x · S⁻¹ · y of whitened rows, whatever way the axes are turned."""
    vectors, individuals = animals(140, 3)
    individuals[:unknown] = -1
    individuals[-3:] = [500, 501, 502]  # animals of one photo say nothing of how photos differ
    queries = animals(5, 2, seed=9)[0]
    plain = fitted(vectors)
    rows = (vectors - plain.mean).astype(np.float64) @ plain.axes
    asked = (queries - plain.mean).astype(np.float64) @ plain.axes
    product = asked @ np.linalg.inv(by_hand(rows, individuals)) @ asked.T
    length = np.sqrt(np.diag(product))
    found = fitted(vectors, individuals=individuals).apply(queries)
    np.testing.assert_allclose(found @ found.T, product / np.outer(length, length), atol=2e-3)


@pytest.mark.parametrize("number", [60, 12], ids=["more photos", "more dimensions"])
@pytest.mark.parametrize("share", [0.9, 0.4])
def test_a_share_of_whitening_is_that_share_of_both_products(number: int, share: float) -> None:
    """Whitened products and those of the rows without their mean, brought to the same mean square over the gallery."""
    vectors, individuals = animals(number, 3)
    queries = animals(5, 2, seed=9)[0]
    white = fitted(vectors, individuals=individuals, least=2)
    turned = fitted(vectors, least=2, shrink=1.0)  # axes turned, all of one length
    plain = turned.axes / np.linalg.norm(turned.axes, axis=0)

    def rows(of: Array, axes: Array) -> NDArray[np.float64]:
        return np.asarray((of - white.mean).astype(np.float64) @ axes)

    strength = np.square(rows(vectors, plain)).sum() / np.square(rows(vectors, white.axes)).sum()
    product = share * strength * rows(queries, white.axes) @ rows(queries, white.axes).T
    product += (1 - share) * rows(queries, plain) @ rows(queries, plain).T
    length = np.sqrt(np.diag(product))
    found = fitted(vectors, individuals=individuals, least=2, share=share).apply(queries)
    np.testing.assert_allclose(found @ found.T, product / np.outer(length, length), atol=2e-3)
    assert not np.allclose(found @ found.T, white.apply(queries) @ white.apply(queries).T, atol=2e-3)


def standing(rows: Array, individuals: NDArray[np.int64]) -> float:
    """How far pairs of one animal lie above others, in standard deviations of the others."""
    scores = rows @ rows.T
    same = individuals[:, None] == individuals[None, :]
    pairs = np.triu(np.ones_like(same), 1)
    others = scores[~same & pairs]
    return float((scores[same & pairs].mean() - others.mean()) / others.std())


def test_photos_of_animals_never_seen_come_closer_to_one_another_than_to_others() -> None:
    vectors, individuals = animals(200, 3)
    new, who = animals(60, 3, seed=1)
    without, known = fitted(vectors).apply(new), fitted(vectors, individuals=individuals).apply(new)
    assert standing(known, who) > 1.15 * standing(without, who) > 0
    shuffled = np.random.default_rng(0).permutation(individuals)
    assert standing(fitted(vectors, individuals=shuffled).apply(new), who) < 1.05 * standing(without, who)


@pytest.mark.parametrize("kind", ["nobody known", "one photo each", "one below"])
def test_too_few_second_photos_leave_the_whitening_as_it_was(kind: str) -> None:
    vectors, _ = animals(140, 3)
    individuals = np.full(len(vectors), -1)
    if kind == "one photo each":
        individuals = np.arange(len(vectors))
    elif kind == "one below":
        pairs = whiten.LEAST_WITHIN - 1
        individuals[: 2 * pairs] = np.repeat(np.arange(pairs), 2)
    assert fitted(vectors, individuals=individuals).name == fitted(vectors).name
    if kind == "one below":
        individuals[2 * pairs : 2 * pairs + 2] = pairs
        assert fitted(vectors, individuals=individuals).name != fitted(vectors).name


def test_of_a_large_gallery_photos_and_their_animals_are_sampled_together(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, individuals = animals(300, 3)
    monkeypatch.setattr(whiten, "MOST_PHOTOS", 600)
    chosen = np.sort(np.random.default_rng(0).choice(900, 600, replace=False))
    expected = fitted(vectors[chosen], individuals=individuals[chosen])
    assert fitted(vectors, individuals=individuals).name == expected.name


def kept(folder: Path, found: whiten.Whitening) -> Path:
    path = folder / f"whitening-{found.name}.npz"
    path.write_bytes(whiten.to_bytes(found))
    return path


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    found = fitted(gallery(400, 16))
    again = whiten.read(kept(tmp_path, found))
    assert again.name == found.name
    np.testing.assert_array_equal(again.mean, found.mean)
    np.testing.assert_array_equal(again.axes, found.axes)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SnapshotCorrupt, match="reid reindex") as caught:
        whiten.read(tmp_path / "whitening-0123456789abcdef.npz")
    assert caught.value.source.endswith("whitening-0123456789abcdef.npz")


@pytest.mark.parametrize("keep", [0, 1, 100, -1, -30])
def test_a_cut_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = kept(tmp_path, fitted(gallery(400, 16)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SnapshotCorrupt):
        whiten.read(path)


def test_no_changed_byte_gives_another_whitening(tmp_path: Path) -> None:
    """A byte may change what only the container says of itself; then the numbers are the same."""
    found = fitted(gallery(400, 8))
    path = kept(tmp_path, found)
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            assert whiten.read(path).name == found.name
        except SnapshotCorrupt:
            refused += 1
    assert refused > len(whole) / 7 / 2


def test_another_whitening_under_the_name_is_refused(tmp_path: Path) -> None:
    path = kept(tmp_path, fitted(gallery(400, 16)))
    path.write_bytes(whiten.to_bytes(fitted(gallery(400, 16, seed=1))))
    with pytest.raises(SnapshotCorrupt, match="was changed"):
        whiten.read(path)


def test_long_vectors_keep_more_numbers_while_the_gallery_is_not_large() -> None:
    assert whiten.dimensions_of(whiten.MANY - 1, whiten.LONG_FROM) == whiten.LONG
    assert whiten.dimensions_of(whiten.MANY, whiten.LONG_FROM) == whiten.DIMENSIONS
    assert whiten.dimensions_of(500, whiten.LONG_FROM - 1) == whiten.DIMENSIONS
    rows = np.random.default_rng(0).normal(size=(1100, whiten.LONG_FROM)).astype(np.float32)
    found = whiten.fit(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    assert found is not None and found.dim == whiten.LONG
