"""A store on disk: made, opened, settled, its index brought up and mended."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_stores import (
    ColourEmbedder,
    assert_index_is_the_catalogue,
    fake_store,
    herd,
    paint,
    reopened,
    seen,
    taken_in,
)

from reid import config_file, whiten, withheld
from reid.config import Config
from reid.errors import ConfigError, IndexStale, ModelError, SnapshotCorrupt, StoreError, StoreNotFound
from reid.index import Gallery
from reid.index.view import stamp
from reid.store import Store, write_atomically


def test_a_new_store_holds_the_defaults_and_nothing_else(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", species="zebra", new_label="nobody") as store:
        expected = config_file.parse('species = "zebra"\n[decision]\nnew_label = "nobody"', "here")
        assert Store.open(tmp_path / "s").config == expected == store.config
        assert store.catalogue.counts().photos == 0


def test_a_store_begins_with_the_settings_given_and_what_is_said_beside_them_wins(tmp_path: Path) -> None:
    values = {"species": "eland", "embedder": {"views": "aligned"}}  # which takes a cropper
    with Store.create(tmp_path / "a", begin_with=values, cropper="fluke") as store:
        assert (store.config.species, store.config.crop.model) == ("eland", "fluke")
    with Store.create(tmp_path / "b", begin_with=values, species='a "zebra"', cropper="fluke") as store:
        assert (store.config.species, store.config.embedder.views) == ('a "zebra"', "aligned")
        assert "# without one the whole photo serves" in (store.root / "reid.toml").read_text()
    with pytest.raises(ConfigError, match=r"the settings given.*crop\.model"):
        Store.create(tmp_path / "c", begin_with=values)


def test_a_store_is_not_made_over_another_nor_in_a_file(tmp_path: Path) -> None:
    Store.create(tmp_path / "s").close()
    with pytest.raises(StoreError, match="a store here already"):
        Store.create(tmp_path / "s")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Store.create(tmp_path / "file" / "s")


def test_where_no_store_is_the_next_step_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound) as caught:
        Store.open(tmp_path)
    assert caught.value.next_step == f"reid --store {tmp_path} init"


@pytest.mark.parametrize(
    "wrong", [{"new_label": "two words"}, {"new_label": ""}, {"begin_with": {"crop": {"model": "nobody"}}}]
)
def test_settings_that_cannot_be_make_no_store(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, ModelError)):
        Store.create(tmp_path / "s", **wrong)
    assert not (tmp_path / "s").exists()
    with pytest.raises(StoreNotFound):
        Store.open(tmp_path / "s")


@pytest.mark.parametrize(
    "text",
    [
        config_file.TEMPLATE,
        "",
        '[embedder]\nmodel="auto"\n',
        "[embedder]\nmodel = 'auto' # a remark\nthreads = 1\n",
        "[embedder]\nthreads = 1\n",
        "[ embedder ] # ours\n  threads = 1\n\n[photos]\ncopy = true\n",
        '[photos]\ncopy = true\n\n[embedder]\n    model   =   "auto"\n',
    ],
)
def test_the_model_is_settled_however_the_settings_are_written(tmp_path: Path, text: str) -> None:
    Store.create(tmp_path / "s").close()
    (tmp_path / "s" / "reid.toml").write_text(text)
    before = Store.open(tmp_path / "s").config
    Store.open(tmp_path / "s").settle_model("lite0-wide")
    after = Store.open(tmp_path / "s").config
    assert after.embedder.model == "lite0-wide"
    assert after.embedder.threads == before.embedder.threads and after.photos == before.photos


def test_a_model_that_was_named_stays(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", model="mine")
    store.settle_model("lite0")
    assert Store.open(tmp_path / "s").config.embedder.model == "mine"
    assert isinstance(store.config, Config)


def test_the_index_is_made_and_brought_up_by_whoever_asks(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    assert len(store.gallery()) == 0
    rows = herd(tmp_path / "p", 3, 2)
    taken_in(store, rows)
    other = reopened(tmp_path / "s")
    seen_before = stamp(store.index_folder)
    assert len(other.gallery()) == 6 and stamp(store.index_folder) == seen_before  # nothing to do, nothing written
    other.catalogue.mark_changed([rows[0].path])
    assert reopened(tmp_path / "s").gallery().ids() == ["2", "3", "4", "5", "6"]
    taken_in(other, rows[:1])
    assert len(reopened(tmp_path / "s").gallery()) == 6
    assert_index_is_the_catalogue(store)


def test_a_gallery_of_another_model_is_refused_and_repaired_on_request(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    taken_in(store, herd(tmp_path / "p", 2, 2))
    other = reopened(tmp_path / "s", ColourEmbedder("other"))
    with pytest.raises(IndexStale, match="another model") as caught:
        other.gallery()
    assert caught.value.next_step == "reid reindex"
    gallery, rebuilt = other.repaired_gallery()
    assert (rebuilt, len(gallery), gallery.fingerprint) == (True, 0, other.fingerprint)
    assert reopened(tmp_path / "s").repaired_gallery()[1]
    assert_index_is_the_catalogue(reopened(tmp_path / "s"))


def test_a_rebuild_keeps_fresh_whitenings_and_sweeps_old_ones(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    taken_in(store, herd(tmp_path / "p", 20, 3))
    _, vectors = withheld.gathered(store.catalogue, store.fingerprint)
    old, other, mine = (whiten.fit(vectors, least=2, dimensions=d) for d in (8, 9, 10))
    assert old and other and mine
    for one in (old, other):
        write_atomically(store.index_folder / f"whitening-{one.name}.npz", whiten.to_bytes(one))
    hours_ago = time.time() - 7200
    os.utime(store.index_folder / f"whitening-{old.name}.npz", (hours_ago, hours_ago))
    store.rebuild(mine)
    left = {path.name for path in store.index_folder.glob("whitening-*")}
    assert left == {f"whitening-{one.name}.npz" for one in (other, mine)}
    os.utime(store.index_folder / f"whitening-{mine.name}.npz", (hours_ago, hours_ago))
    assert len(reopened(tmp_path / "s").gallery()) == 60
    store.rebuild(mine)
    assert_index_is_the_catalogue(reopened(tmp_path / "s"))


def test_vectors_are_projected_by_the_whitening_of_the_gallery_in_hand(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    taken_in(store, herd(tmp_path / "p", 20, 3))
    _, vectors = withheld.gathered(store.catalogue, store.fingerprint)
    raw = store.gallery()
    np.testing.assert_allclose(store.project(2 * vectors, raw), vectors, atol=1e-6)
    first, second = (whiten.fit(vectors, least=2, dimensions=d) for d in (8, 9))
    assert first and second
    in_hand = store.rebuild(first)
    reopened(tmp_path / "s").rebuild(second)
    np.testing.assert_allclose(store.project(vectors, in_hand), first.apply(vectors), atol=1e-6)
    np.testing.assert_allclose(store.project(vectors, store.gallery()), second.apply(vectors), atol=1e-6)


def test_a_gallery_replaced_while_it_is_opened_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = fake_store(tmp_path / "s"), reopened(tmp_path / "s")
    taken_in(other, herd(tmp_path / "p", 20, 3))
    _, vectors = withheld.gathered(store.catalogue, store.fingerprint)
    whitening = whiten.fit(vectors, least=2)
    opened, times = Gallery.open, []

    def overtaken(folder: Path, **more: object) -> Gallery:
        gallery = opened(folder, **more)  # type: ignore[arg-type]
        if not times:
            times.append(1)
            with monkeypatch.context() as patched:
                patched.setattr(Gallery, "open", opened)
                other.rebuild(whitening)
                taken_in(other, [seen(paint(tmp_path / "late.png", 99), "late")])
        return gallery

    monkeypatch.setattr(Gallery, "open", overtaken)
    assert len(store.gallery()) == 61


def test_a_whitening_that_is_missing_or_changed_is_damage(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    taken_in(store, herd(tmp_path / "p", 20, 3))
    whitening = whiten.fit(withheld.gathered(store.catalogue, store.fingerprint)[1], least=2)
    assert whitening
    store.rebuild(whitening)
    path = store.index_folder / f"whitening-{whitening.name}.npz"
    content = path.read_bytes()
    for damage in (None, b"", content[:-100], content[:500] + bytes([content[500] ^ 1]) + content[501:]):
        path.unlink(missing_ok=True)
        if damage is not None:
            path.write_bytes(damage)
        with pytest.raises(SnapshotCorrupt) as caught:
            reopened(tmp_path / "s").gallery()
        assert caught.value.next_step == "reid reindex" and path.name in caught.value.source


def test_an_index_behind_that_may_not_be_written_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fake_store(tmp_path / "s")
    rows = herd(tmp_path / "p", 2, 1)
    taken_in(store, rows)
    store.catalogue.mark_changed([rows[0].path])

    def forbidden(gallery: Gallery) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store, "_sync", forbidden)
    with pytest.raises(IndexStale, match="cannot be written"):
        store.gallery()


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "früher")
    assert path.read_bytes() == "früher".encode() and path.stat().st_mode & 0o777 == 0o644
    with monkeypatch.context() as patched, pytest.raises(StoreError) as caught:
        patched.setattr("reid.store.os.replace", _no_space)
        write_atomically(path, "later")
    assert caught.value.source == str(path) and caught.value.next_step
    assert path.read_bytes() == "früher".encode() and list(tmp_path.iterdir()) == [path]
    with pytest.raises(StoreError):
        write_atomically(tmp_path / "absent" / "file", b"")


def _no_space(source: object, target: object) -> None:
    raise OSError(28, "No space left on device")


def test_small_results_are_read_back_and_unreadable_ones_are_none(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    store.write_json("x.json", {"a": [1, 2.5, None, "é"]})
    assert store.read_json("x.json") == {"a": [1, 2.5, None, "é"]}
    for content in (b"", b"[1]", b"\xff", b'{"a": '):
        (store.root / "x.json").write_bytes(content)
        assert store.read_json("x.json") is None
    assert store.read_json("absent.json") is None


def test_paths_of_kept_copies_are_relative_to_the_store(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    assert store.resolve(Path("photos/ab/x.jpg")) == tmp_path / "s" / "photos/ab/x.jpg"
    assert store.resolve(tmp_path / "y.jpg") == tmp_path / "y.jpg"
