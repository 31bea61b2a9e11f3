"""Ensembles as model directories: vectors that are the members' side by side, crops of each member's own kind, and a
store that serves one as any model, without torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_stores import GRID, assert_index_is_the_catalogue, herd, paint, taken_in
from numpy.typing import NDArray

from reid import crop, ensemble, explaining, models
from reid.crop import View
from reid.embed import OpenVinoEmbedder, unit_rows
from reid.errors import ModelError
from reid.models import ModelCard, Preprocessing
from reid.pipeline import identify, query_of
from reid.records import Box
from reid.reindex import reindex
from reid.store import Store
from reid.vectors import embed_views

ZERO, ONE = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)


def colours(folder: Path, name: str, seen: Preprocessing, *, centre: float = 0.5) -> Path:
    """A model directory: mean colours less `centre` on a 4×4 grid."""
    import openvino
    from openvino import opset13 as ops

    pixels = ops.parameter([-1, -1, -1, 3], np.uint8, name="pixels")
    x = ops.multiply(ops.transpose(ops.convert(pixels, "f32"), np.array([0, 3, 1, 2], np.int64)), np.float32(1 / 255))
    pooled = ops.adaptive_avg_pool(ops.subtract(x, np.float32(centre)), np.array([GRID, GRID], np.int64))
    out = ops.result(ops.reshape(pooled, np.array([0, 3 * GRID * GRID], np.int64), True), name="embedding")
    out.output(0).get_tensor().set_names({"embedding"})
    card = ModelCard(name, 3 * GRID * GRID, seen, "avg", f"{centre}", "painted", "none")
    return models.write(folder, card, openvino.Model([out], [pixels], "colours"))


@pytest.fixture
def members(tmp_path: Path) -> list[Path]:
    """Two networks that see boxes differently."""
    wide = Preprocessing(32, 48, ZERO, ONE, margin=0.1)
    square = Preprocessing(16, 16, ZERO, ONE, shape="pad", margin=0.3)
    return [colours(tmp_path / "made", "wide", wide), colours(tmp_path / "made", "square", square, centre=0.3)]


def photo(seed: int = 3) -> NDArray[np.uint8]:
    small = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    return np.asarray(cv2.resize(small, (120, 80)), np.uint8)


def test_its_vector_is_each_members_own_by_the_root_of_its_weight(members: list[Path], tmp_path: Path) -> None:
    made = ensemble.open_embedder(ensemble.write(tmp_path, "both", members, [3.0, 1.0]))
    box, pixels = Box(20, 10, 100, 60), [photo(1), photo(2)]
    rows = made.embed(np.stack([crop.cut(one, box, made.card.preprocessing) for one in pixels]))
    parts = []
    for member, share in zip(members, (0.75, 0.25), strict=True):
        alone = OpenVinoEmbedder(member)
        vectors = alone.embed(np.stack([crop.cut(one, box, alone.card.preprocessing) for one in pixels]))
        parts.append((share, vectors))
    np.testing.assert_allclose(rows, np.concatenate([v * share**0.5 for share, v in parts], axis=1), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
    expected = sum(share * float(v[0] @ v[1]) for share, v in parts)
    assert float(rows[0] @ rows[1]) == pytest.approx(expected, abs=1e-5)
    assert made.card.dim == rows.shape[1] == 96 and made.embed(np.empty((0, 1, 1792, 3), np.uint8)).shape == (0, 96)


def test_views_are_averaged_member_by_member(members: list[Path], tmp_path: Path) -> None:
    made = ensemble.open_embedder(ensemble.write(tmp_path, "both", members, [1.0, 1.0]))
    views = (View(), View(mirror=True), View(shift_x=0.1))
    box = Box(20, 10, 100, 60)
    crops = crop.cut_views(photo(), box, made.card.preprocessing, views)
    row = embed_views(made, crops, len(views))[0]
    expected = []
    for member in members:
        alone = OpenVinoEmbedder(member)
        mean = alone.embed(crop.cut_views(photo(), box, alone.card.preprocessing, views)).mean(0)
        expected.append(mean / np.linalg.norm(mean) * 0.5**0.5)
    np.testing.assert_allclose(row, np.concatenate(expected), atol=1e-6)


def test_every_member_is_a_model_by_itself(members: list[Path], tmp_path: Path) -> None:
    folder = ensemble.write(tmp_path, "both", members, [1.0, 2.0], {"fusion": {"alpha": 0.5}})
    card = models.read_card(folder)
    assert [c.name for c in models.listed(tmp_path)] == ["both"] and card.extra["fusion"] == {"alpha": 0.5}
    assert [(m.name, m.dim) for m in ensemble.members_of(card)] == [("wide", 48), ("square", 48)]
    assert [m.weight for m in ensemble.members_of(card)] == pytest.approx([1 / 3, 2 / 3])
    for path in members:
        assert models.read_card(folder / path.name).fingerprint == models.read_card(path).fingerprint
    assert models.ensure(tmp_path, "both/square") == folder / "square"


def test_its_fingerprint_is_of_members_and_weights(members: list[Path], tmp_path: Path) -> None:
    prints = {
        models.read_card(ensemble.write(tmp_path, "e", chosen, weights)).fingerprint
        for chosen, weights in ((members, [1.0, 1.0]), (members, [1.0, 2.0]), (members[::-1], [1.0, 1.0]))
    }
    same = models.read_card(ensemble.write(tmp_path, "f", members, [5.0, 5.0])).fingerprint
    assert len(prints) == 3 and same in prints


def test_an_ensemble_of_an_ensemble_is_one_of_its_members(members: list[Path], tmp_path: Path) -> None:
    third = colours(tmp_path / "made", "third", Preprocessing(8, 8, ZERO, ONE), centre=0.7)
    inner = ensemble.write(tmp_path / "models", "inner", members, [1.0, 3.0])
    outer = ensemble.write(tmp_path / "models", "outer", [inner, third], [1.0, 1.0])
    listed = ensemble.members_of(models.read_card(outer))
    assert [m.name for m in listed] == ["inner.wide", "inner.square", "third"]
    assert [m.weight for m in listed] == pytest.approx([0.125, 0.375, 0.5])
    on_disk, in_memory = ensemble.open_embedder(outer), ensemble.joined([inner, third])
    crops = crop.cut(photo(), Box(20, 10, 100, 60), on_disk.card.preprocessing)[None]
    np.testing.assert_allclose(in_memory.embed(crops), on_disk.embed(crops), atol=1e-6)


def test_it_has_learnt_the_photos_of_its_members_and_of_the_ensembles_they_come_from(
    members: list[Path], tmp_path: Path
) -> None:
    third = colours(tmp_path / "made", "third", Preprocessing(8, 8, ZERO, ONE), centre=0.7)
    models.write_learnt(third, ["c"])
    inner = ensemble.write(tmp_path / "models", "inner", members, [1.0, 3.0])
    models.write_learnt(inner, ["a", "b"])
    for parts in ([inner, third], [inner / members[0].name, third]):
        outer = ensemble.write(tmp_path / "models", "outer", parts, [1.0, 1.0])
        assert models.read_learnt(outer) == {"a", "b", "c"}


def test_a_card_without_members_is_what_it_was(members: list[Path]) -> None:
    raw = json.loads((members[0] / models.CARD).read_text())
    assert "members" not in raw["preprocessing"]
    card = models.read_card(members[0])
    assert card.preprocessing.said == "32×48" and card.preprocessing.finest == (48, 32)


def test_what_cannot_be_is_a_typed_error(members: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="named twice"):
        ensemble.write(tmp_path, "twice", [members[0], members[0]], [1.0, 1.0])
    with pytest.raises(ValueError, match="weights"):
        ensemble.write(tmp_path, "none", members, [0.0, 0.0])
    folder = ensemble.write(tmp_path, "both", members, [1.0, 1.0])
    other = replace(models.read_card(members[0]), weights_sha256="other")
    models.write_card(folder / "wide", other)
    with pytest.raises(ModelError, match="not the one"):
        ensemble.open_embedder(folder)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def store_of(root: Path, members: list[Path], more: str = "") -> Store:
    Store.create(root, model="both").close()
    text = (root / "reid.toml").read_text().replace("use = true", "use = false", 1)
    (root / "reid.toml").write_text(text.replace("mirror = false", "mirror = true", 1) if more == "mirror" else text)
    ensemble.write(root / "models", "both", members, [2.0, 1.0])
    return Store.open(root)


@pytest.mark.parametrize("more", ["", "mirror"])
def test_a_store_serves_an_ensemble_as_any_model(members: list[Path], tmp_path: Path, more: str) -> None:
    with store_of(tmp_path / "store", members, more) as store:
        assert not taken_in(store, herd(tmp_path / "photos", 12, 3)).failures
        assert_index_is_the_catalogue(store)
        assert store.config.embedder.mirror == (more == "mirror")
        asked = [paint(tmp_path / f"q{n}.png", n, shot=9) for n in range(12)]
        answers = identify(store, [query_of([one]) for one in asked])
        best = [next(one.label for one in a.labels if not one.is_new) for a in answers]
        assert best == [f"a{n:03d}" for n in range(12)] and {a.model for a in answers} == {"both"}
        assert reindex(store, who="t").rebuilt == ""


def test_a_change_to_an_ensemble_is_taken_in_by_reindex(members: list[Path], tmp_path: Path) -> None:
    with store_of(tmp_path / "store", members) as store:
        taken_in(store, herd(tmp_path / "photos", 6, 2))
        before = store.fingerprint
        ensemble.write(store.models_folder, "third", members, [1.0, 1.0])
    text = (tmp_path / "store" / "reid.toml").read_text()
    (tmp_path / "store" / "reid.toml").write_text(text.replace('model = "both"', 'model = "third"', 1))
    with Store.open(tmp_path / "store") as store:
        done = reindex(store, who="t")
        assert done.rebuilt and done.embedded == 12 and store.fingerprint != before
        assert_index_is_the_catalogue(store)


def test_an_explanation_sees_with_the_heaviest_members_eye(members: list[Path], tmp_path: Path) -> None:
    small = colours(tmp_path / "made", "small", Preprocessing(16, 24, ZERO, ONE, margin=0.1), centre=0.3)
    with store_of(tmp_path / "store", [members[0], small], "mirror") as store:
        taken_in(store, herd(tmp_path / "photos", 4, 2))
        eye = explaining.eye_of(store)
        assert (eye.preprocessing.height, eye.preprocessing.width) == (32, 48)
        some = np.stack([crop.cut(photo(n), Box(0, 0, 120, 80), eye.preprocessing) for n in (1, 2, 3)])
        rows = eye.embed(some)
        whole = store.embedder.card.preprocessing
        views = crop.views_named("one", mirror=True)
        cut = np.concatenate([crop.cut_views(photo(n), Box(0, 0, 120, 80), whole, views) for n in (1, 2, 3)])
        asked = embed_views(store.embedder, cut, 2)
        assert rows.shape == asked.shape and ((rows * asked).sum(1) > 0.99).all()


def test_the_member_with_most_to_say_leads_whatever_its_weight(members: list[Path], tmp_path: Path) -> None:
    small = colours(tmp_path / "made", "small", Preprocessing(16, 24, ZERO, ONE, margin=0.1), centre=0.3)
    loud = ensemble.write(tmp_path, "loud", [members[0], small], [0.1, 0.9], shares=[0.6, 0.4])
    plain = ensemble.write(tmp_path, "plain", [members[0], small], [0.1, 0.9])
    nested = ensemble.write(tmp_path, "nested", [plain, loud], [0.5, 0.5], shares=[0.3, 0.7])
    assert [ensemble.lead(models.read_card(one)).height for one in (loud, plain)] == [32, 16]
    shares = [one.share for one in ensemble.members_of(models.read_card(nested))]
    assert shares == pytest.approx([0.03, 0.27, 0.42, 0.28])


def test_of_equal_shares_the_first_named_leads(members: list[Path], tmp_path: Path) -> None:
    small = colours(tmp_path / "made", "small", Preprocessing(16, 24, ZERO, ONE, margin=0.1), centre=0.3)
    made = ensemble.write(tmp_path, "even", [members[0], small], [0.05, 0.95], shares=[0.5, 0.5])
    card = models.read_card(made)
    assert ensemble.lead(card).height == 32 and card.extra["base"] == "wide"


def test_views_and_threshold_of_an_ensemble_are_its_members(members: list[Path], tmp_path: Path) -> None:
    for path, extra in zip(members, ({"views": "around", "threshold": 0.7}, {"threshold": 0.99}), strict=True):
        card = models.read_card(path)
        models.write_card(path, replace(card, extra=dict(card.extra) | extra))
    # whatever the weights, and before there are any: what judges it sees as what serves does
    for weights in ([0.1, 0.9], [0.9, 0.1]):
        card = models.read_card(ensemble.write(tmp_path, "mixed", members, weights))
        assert card.extra["views"] == ensemble.joined(members).card.extra["views"] == "around"
        assert card.extra["threshold"] == pytest.approx(weights[0] * 0.7 + weights[1] * 0.99)


def test_a_query_by_an_ensemble_imports_no_torch(members: list[Path], tmp_path: Path) -> None:
    with store_of(tmp_path / "store", members) as store:
        taken_in(store, herd(tmp_path / "photos", 3, 2))
    photo_path = paint(tmp_path / "q.png", 1, shot=9)
    code = (
        "import sys\nfrom pathlib import Path\nfrom reid.store import Store\n"
        "from reid.pipeline import identify, query_of\n"
        f"store = Store.open(Path({str(tmp_path / 'store')!r}))\n"
        f"print(identify(store, [query_of([Path({str(photo_path)!r})])])[0].labels[0].label, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False" and done.stdout.split()[0] in ("a001", "new_whale")


def test_rows_of_members_come_apart_as_they_were_put_together() -> None:
    rng = np.random.default_rng(1)
    parts = [unit_rows(rng.normal(size=(5, d)).astype(np.float32)) for d in (3, 7)]
    rows = ensemble.joined_rows(parts, [0.2, 0.8])
    for found, part in zip(ensemble.blocks(rows, [3, 7]), parts, strict=True):
        np.testing.assert_allclose(found, part, atol=1e-6)
