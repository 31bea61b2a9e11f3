"""`reid train-siamese` on photos that are there: views, neighbours from the index, and names that may be one animal."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_stores import DIM, fake_store, herd, reopened, taken_in, with_vectors

torch = pytest.importorskip("torch")

from reid import reindex as reindexing  # noqa: E402
from reid import rescore, siamese, train_siamese, verdicts  # noqa: E402
from reid.errors import ConfigError, TrainError  # noqa: E402
from reid.judge import Refused  # noqa: E402
from reid.store import Store  # noqa: E402
from reid.train import runs  # noqa: E402
from reid.train import siamese as training  # noqa: E402
from reid.train_siamese import Options  # noqa: E402

ANIMALS, SHOTS = 48, 3


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of painted photos: two of the three of animal 0 are called "alias", and one animal has a single photo."""
    folder = tmp_path_factory.mktemp("siamese")
    sightings = herd(folder / "photos", ANIMALS, SHOTS + 1)
    kept = [one for n, one in enumerate(sightings) if n % (SHOTS + 1) < SHOTS or n < SHOTS + 1]
    kept[:2] = [replace(one, identity="alias") for one in kept[:2]]
    kept += herd(folder / "photos", 1, 1, first=ANIMALS)
    store = fake_store(folder / "store")
    taken_in(store, kept)
    store.close()
    return folder / "store"


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each head was trained on."""
    found: list[dict[str, Any]] = []
    original = training.train

    def spy(vectors: Any, labels: Any, config: Any, **more: Any) -> Any:
        found.append({"vectors": vectors, "labels": labels, "config": config, **more})
        return original(vectors, labels, config, **more)

    monkeypatch.setattr(training, "train", spy)
    return found


def quiet(*_: Any) -> None:
    pass


def test_heads_see_views_find_pairs_by_the_index_and_tell_who_may_be_one(
    taken: Path, given: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    store = reopened(taken)
    report = train_siamese.train(store, Options(epochs=1, negatives="sparse", hard_positives=True, views=3), quiet)
    n = ANIMALS * SHOTS + 2
    assert (report.photos, report.lonely, report.views, report.varied, report.negatives) == (n, 1, 3, n - 1, "sparse")
    whole = given[0]
    assert whole["config"].hard_positives and whole["vectors"].shape == (n, 3, 2, DIM)
    shown = whole["vectors"].astype(np.float32)
    assert np.abs(shown[:5, 0, 0] - shown[:5, 1, 0]).max() > 0.02 < np.abs(shown[:5, 0, 0] - shown[:5, 0, 1]).max()
    alike = np.einsum("nd,nvd->nv", shown[:, 0, 0], shown[:, :, 0])
    assert np.median(alike) > 0.75 > 0.5 > np.median(shown[:, 0, 0] @ shown[:, 1, 0].T)  # in the catalogue's order
    for one in given:
        near, labels = one["near"], one["labels"]
        assert near.max() < len(labels) and (labels[near] != labels[:, None])[near >= 0].all() and (near >= 0).any()
    assert [{one.first, one.second} for one in report.suspects] == [{"alias", "a000"}]
    groups, labels = whole["groups"], whole["labels"]
    assert len(np.unique(groups)) == len(np.unique(labels)) - 1
    verdicts.heads(report)
    said = capsys.readouterr().out
    assert "not taught as two: 1 pair" in said and "mine --sheet" in said
    assert not report.heard and "no query asks them" in said  # such a store has no local features
    first = report.suspects[0]
    assert f"individuals merge {first.first} {first.second}" in said
    again = train_siamese.train(reopened(taken), Options(epochs=1, views=3), quiet)
    assert again.negatives == "exact" and again.varied == n - 1


def test_kept_views_are_not_made_again_and_one_view_needs_no_photos(taken: Path, given: list[dict[str, Any]]) -> None:
    store = reopened(taken)
    train_siamese.train(store, Options(epochs=1, views=2), quiet)
    embedded = store.embedder.embedded  # type: ignore[attr-defined]
    train_siamese.train(store, Options(epochs=1, views=2), quiet)
    assert store.embedder.embedded == embedded  # type: ignore[attr-defined]
    report = train_siamese.train(store, Options(epochs=1, views=1, mirror="none"), quiet)
    assert report.varied == 0 and given[-1]["vectors"].shape[1] == 1 and given[-1]["config"].mirror == "none"


def test_photos_that_are_gone_are_shown_as_the_catalogue_has_them(tmp_path: Path, given: list[dict[str, Any]]) -> None:
    store = fake_store(tmp_path / "s")
    rows = np.random.default_rng(0).normal(size=(120, DIM)).astype(np.float32)
    with_vectors(store, rows, [f"a{n // 3}" for n in range(120)])
    report = train_siamese.train(store, Options(epochs=1, views=2), quiet)
    assert report.varied == 0 and report.views == 2
    shown = given[0]["vectors"].astype(np.float32)
    assert (shown == shown[:, :1, :1]).all()


def test_an_animal_with_more_than_half_of_the_photos_is_named(tmp_path: Path, given: list[dict[str, Any]]) -> None:
    store = fake_store(tmp_path / "s")
    rows = np.random.default_rng(0).normal(size=(320, DIM)).astype(np.float32)
    with_vectors(store, rows, [f"a{n // 3}" for n in range(120)] + ["Moby"] * 200)
    with pytest.raises(TrainError, match="'Moby' has 200 of ") as caught:
        train_siamese.train(store, Options(epochs=1, views=1), quiet)
    assert "other animals" in caught.value.next_step and not given


def test_nobody_is_suspected_where_the_store_says_so(taken: Path) -> None:
    store = reopened(taken)
    changed(store, "suspect = 0.9", "suspect = 1.0")
    try:
        assert train_siamese.train(reopened(taken), Options(epochs=1, views=1), quiet).suspects == ()
        changed(store, "suspect = 1.0", "suspect = 0.2")
        with pytest.raises(ConfigError, match=r"training.suspect must be in \[0.5, 1\]"):
            Store.open(taken)
    finally:
        text = (taken / "reid.toml").read_text().replace("suspect = 0.2", "suspect = 0.9")
        (taken / "reid.toml").write_text(text)


def test_a_training_leaves_its_record(taken: Path) -> None:
    store = reopened(taken)
    report = train_siamese.train(store, Options(epochs=2, seed=5, views=1), quiet)
    run = Path(report.run)
    assert run.parent == taken / "training" and runs.read_state(run) == "finished"
    settings = json.loads((run / runs.CONFIG).read_text())
    assert (settings["kind"], settings["seed"], settings["options"]["epochs"]) == ("siamese", 5, 2)
    assert settings["code"] == runs.revision() and settings["present_fingerprint"] == store.fingerprint
    metrics = json.loads((run / runs.METRICS).read_text())
    assert metrics["map_at_5"]["after"] == report.map_at_5.after and metrics["run"] == str(run)
    heads = (rescore.WHOLE, *rescore.HALVES)
    assert {name: len(found) for name, found in metrics["epochs"].items()} == dict.fromkeys(heads, 2)
    assert (run / runs.CURVES).is_file() and "by the head" in (run / runs.LOG).read_text()
    assert siamese.load(taken / siamese.FOLDER / rescore.WHOLE).about["run"] == run.name


def test_a_full_disk_is_said_and_the_heads_of_before_stay(taken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = reopened(taken)
    train_siamese.train(store, Options(epochs=1, views=1), quiet)
    before = {path: path.read_bytes() for path in (taken / siamese.FOLDER).rglob("*") if path.is_file()}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(siamese, "save", full)
    with pytest.raises(TrainError, match="No space left on device") as caught:
        train_siamese.train(store, Options(epochs=1, views=1, seed=1), quiet)
    assert caught.value.next_step == "free some space there, then the same command again"
    assert runs.read_state(Path(caught.value.source)).startswith("failed: ")
    assert before == {path: path.read_bytes() for path in (taken / siamese.FOLDER).rglob("*") if path.is_file()}
    assert not list(taken.glob(f".{siamese.FOLDER}-*"))


def changed(store: Store, old: str, new: str) -> None:
    text = (store.root / "reid.toml").read_text()
    assert old in text
    (store.root / "reid.toml").write_text(text.replace(old, new))


def night(root: Path) -> reindexing.ReindexReport:
    def quickly(store: Store, progress: Any) -> Any:
        return train_siamese.night(store, progress, Options(epochs=1, views=1))

    return reindexing.reindex(reopened(root), who="t", heads=quickly)


def test_a_night_trains_heads_where_the_settings_ask_for_them(taken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert night(taken).siamese is None
    settings = taken / "reid.toml"
    before = settings.read_text()
    changed(reopened(taken), "siamese = false", "siamese = true")
    try:
        found = night(taken).siamese
        assert isinstance(found, train_siamese.Report) and found.queries
        told = siamese.load(taken / siamese.FOLDER / rescore.WHOLE, reopened(taken).fingerprint).about
        assert told["run"] == Path(found.run).name
        verdicts.night(None, found)
        assert "Siamese heads:" in capsys.readouterr().out
    finally:
        settings.write_text(before)


def test_a_night_whose_heads_cannot_be_trained_does_all_the_rest_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = fake_store(tmp_path / "s", settings="siamese = false → siamese = true")
    taken_in(store, herd(tmp_path / "photos", 3, 2))
    store.close()
    done = night(tmp_path / "s")
    assert isinstance(done.siamese, Refused) and done.photos_now == 6
    assert "photos of two sightings" in done.siamese.reason and not (tmp_path / "s" / siamese.FOLDER).exists()
    verdicts.night(done.training, done.siamese)
    said = capsys.readouterr()
    assert "no Siamese heads" in said.out + said.err and "what was in force stays" in said.out + said.err
