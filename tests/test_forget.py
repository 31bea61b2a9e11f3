"""Models that nobody wants any more leave the disk and the catalogue; what the settings name stays, and so does the rest."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_stores import ColourEmbedder, fake_store, reopened, with_vectors

from reid import forget, locate, models
from reid.index.snapshot import lock
from reid.store import Store
from reid.train.runs import LOCK


def model(folder: Path, name: str, pooling: str = "old") -> str:
    """A model directory of nothing but its card, and the card's fingerprint."""
    card = replace(ColourEmbedder().card, name=name, pooling=pooling)
    (folder / name).mkdir(parents=True)
    models.write_card(folder / name, card)
    return card.fingerprint


def begun(path: Path) -> Store:
    """A store with ten photos, and their vectors by the model in force."""
    store = fake_store(path)
    with_vectors(store, np.eye(10, 48, dtype=np.float32), [str(i) for i in range(10)])
    return store


def test_a_model_goes_with_its_training_its_witness_and_their_vectors_and_nothing_else(tmp_path: Path) -> None:
    store = begun(tmp_path / "s")
    gallery = store.gallery().fingerprint
    ids = store.catalogue.labels().annotations.tolist()
    prints = {name: model(store.models_folder, name, name) for name in ("monday", "tuesday")}
    prints["witness"] = model(store.models_folder / "monday", "witness", "witness")
    for made in (prints["monday"], prints["witness"] + "+around+mirror", prints["tuesday"]):
        store.catalogue.put_embeddings(made, ids, np.eye(len(ids), 4, dtype=np.float32))
    run = store.root / "training" / "monday"
    run.mkdir(parents=True)
    (run / "log.txt").write_text("x" * 1000)
    revision = store.catalogue.revision
    done = forget.forget(store, ["monday", "monday"])
    assert (done.models, done.failures, done.vectors) == (["monday"], [], 2 * len(ids))
    assert done.bytes > 1000 and not run.exists() and not (store.models_folder / "monday").exists()
    assert (store.models_folder / "tuesday").is_dir() and store.catalogue.revision == revision
    left = store.catalogue.embeddings_of(prints["tuesday"], ids)
    assert len(left) == len(ids) and len(store.catalogue.embeddings_of(store.fingerprint, ids)) == len(ids)
    assert not store.catalogue.embeddings_of(prints["monday"], ids)
    again = reopened(store.root)
    assert again.gallery().fingerprint == gallery and len(again.gallery()) == len(ids)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("colours", "in force"),
        ("crops", "cropper in force"),
        ("zebras", "cropper in force"),
        ("busy", "still running"),
        ("never", "no model"),
        ("..", "no model"),
        ("", "no model"),
        ("monday/witness", "no model"),
        (".monday", "no model"),
    ],
)
def test_what_the_settings_name_stays_and_so_does_what_is_no_model(name: str, why: str, tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s")
    for one in ("colours", "busy", "monday", ".monday", "tuesday"):
        model(store.models_folder, one, one)
    model(store.models_folder / "monday", "witness", "witness")
    for one in ("crops", "zebras"):
        (store.models_folder / one).mkdir()
        (store.models_folder / one / locate.CARD).write_text("{}")
    path = store.root / "reid.toml"
    text = path.read_text().replace('model = "none"', 'model = "crops"', 1)
    path.write_text(text.replace("[crop.species]", '[crop.species]\nzebra = "zebras"', 1))
    run = store.root / "training" / "busy"
    run.mkdir(parents=True)
    store = reopened(store.root)
    before = sorted(store.root.rglob("*"))
    with lock(run / LOCK, timeout=0):
        done = forget.forget(store, [name, "tuesday"])
    assert done.models == ["tuesday"]
    assert [(one.source, why in one.message, bool(one.next_step)) for one in done.failures] == [(name, True, True)]
    gone = {store.models_folder / "tuesday", store.models_folder / "tuesday" / models.CARD}
    assert set(before) - set(store.root.rglob("*")) == gone


def test_a_model_that_cannot_be_read_keeps_all_vectors(tmp_path: Path) -> None:
    store = begun(tmp_path / "s")
    ids = store.catalogue.labels().annotations.tolist()
    made = model(store.models_folder, "monday")
    store.catalogue.put_embeddings(made, ids, np.eye(len(ids), 4, dtype=np.float32))
    model(store.models_folder, "tuesday", "new")
    (store.models_folder / "tuesday" / models.CARD).write_text("{")
    done = forget.forget(store, ["monday"])
    assert (done.models, done.vectors) == (["monday"], 0)
    assert len(store.catalogue.embeddings_of(made, ids)) == len(ids)
    done = forget.forget(store, ["tuesday"])  # the next call finds them
    assert (done.models, done.vectors) == (["tuesday"], len(ids))


def test_a_removal_that_was_killed_is_ended_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = begun(tmp_path / "s")
    for one in ("monday", "tuesday"):
        model(store.models_folder, one, one)
        (store.root / "training" / one).mkdir(parents=True)

    class Killed(BaseException):
        pass

    def killed(path: Path) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(shutil, "rmtree", killed)
        forget.forget(store, ["monday"])
    assert [card.name for card in models.listed(store.models_folder)] == ["tuesday"]
    assert forget.forget(store, ["tuesday"]).models == ["tuesday"]
    assert list(store.models_folder.iterdir()) == list((store.root / "training").iterdir()) == []


def test_the_vectors_of_a_training_that_may_be_resumed_stay(tmp_path: Path) -> None:
    store = begun(tmp_path / "s")
    ids = store.catalogue.labels().annotations.tolist()
    made = model(store.root / "training" / "wednesday", "wednesday")
    store.catalogue.put_embeddings(made, ids, np.eye(len(ids), 4, dtype=np.float32))
    model(store.models_folder, "monday", "monday")
    assert forget.forget(store, ["monday"]).vectors == 0
    assert len(store.catalogue.embeddings_of(made, ids)) == len(ids)


def test_vectors_in_a_shared_catalogue_stay(tmp_path: Path) -> None:
    shared = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    store = fake_store(tmp_path / "s", settings=f'url = "" → url = "{shared}"')
    with_vectors(store, np.eye(10, 48, dtype=np.float32), [str(i) for i in range(10)])
    ids = store.catalogue.labels().annotations.tolist()
    made = model(store.models_folder, "monday")
    store.catalogue.put_embeddings(made, ids, np.eye(len(ids), 4, dtype=np.float32))
    done = forget.forget(store, ["monday"])
    assert (done.models, done.vectors) == (["monday"], 0)
    assert len(store.catalogue.embeddings_of(made, ids)) == len(ids)
