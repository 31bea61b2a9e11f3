"""A store with many left-out photos, measured once a test session, and what is asked of it and said by it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_stores import DIM, ColourEmbedder, fake_store, paint, reopened, with_vectors
from numpy.typing import NDArray
from rendered_store import reid_json

from reid import fit, promise, risk
from reid.embed import unit_rows
from reid.fit import Fit
from reid.store import Store

ANIMALS, SHOTS = 450, 4
RATES = ("--false-match", 0.01, "--false-new", 0.1)
Vectors = NDArray[np.float32]


def vectors(animals: int = ANIMALS, shots: int = SHOTS, seed: int = 0) -> tuple[Vectors, list[str]]:
    """Photos around the points of their animals, some of them poor: known and new animals overlap."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(animals, DIM))
    poor = rng.choice([0.25, 0.5, 1.6], size=(animals * shots, 1), p=[0.65, 0.25, 0.1])
    rows = np.repeat(centres, shots, axis=0) + poor * rng.normal(size=(animals * shots, DIM))
    return rows.astype(np.float32), [f"{seed}-{n // shots:03d}" for n in range(animals * shots)]


def stranger() -> Vectors:
    """What looks least like any photo, of a few random looks."""
    some = unit_rows(np.random.default_rng(77).normal(size=(50, DIM)).astype(np.float32))
    away: Vectors = some[np.argmin((some @ unit_rows(vectors()[0]).T).max(axis=1))]
    return away


class Scripted(ColourEmbedder):
    """Sees in every photo the vector that it was told, or of several told `(n, DIM)` one in each, in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.sees = np.eye(1, DIM, dtype=np.float32)[0]

    def embed(self, crops: NDArray[np.uint8]) -> Vectors:
        told = np.atleast_2d(self.sees)
        return told[np.arange(len(crops)) % len(told)]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """The embedder of every store that is opened."""
    embedder = Scripted()
    monkeypatch.setattr(Store, "embedder", embedder)
    return embedder


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with many left-out photos and no promise; nobody changes it."""
    root = tmp_path_factory.mktemp("promises") / "store"
    store = fake_store(root)
    with_vectors(store, *vectors())
    assert fit.fit(store).basis == "measured"
    store.close()
    return root


@pytest.fixture
def many(measured: Path, tmp_path: Path, scripted: Scripted) -> Path:
    return Path(shutil.copytree(measured, tmp_path / "store"))


def strictly(text: str) -> Any:
    """JSON as its standard has it: no NaN, no Infinity."""

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} in JSON")

    return json.loads(text, parse_constant=refuse)


def fitted(root: Path) -> Fit:
    with reopened(root) as store:
        found = fit.read(store, store.gallery().fingerprint)
    assert found is not None
    return found


def cases_of(found: Fit) -> risk.Cases:
    return risk.Cases.from_dict(found.cases)


def assert_policy_of(found: Fit, false_match: float, false_new: float, confidence: float) -> None:
    """The promise in force is that of the fit's own cases, which are kept to six digits."""
    expected = promise.choose_policy(cases_of(found), false_match, false_new, confidence, 0.3)
    assert found.policy is not None
    for mine, other in ((found.policy.matches, expected.matches), (found.policy.new, expected.new)):
        assert mine.threshold == pytest.approx(other.threshold, abs=2e-6) and mine.threshold is not None
        assert replace(mine, threshold=0.0) == replace(other, threshold=0.0)


def ask(root: Path, scripted: Scripted, sees: Vectors) -> dict[str, Any]:
    scripted.sees = unit_rows(sees[None])[0]
    return reid_json("query", paint(root.parent / "q.png", 1), store=root)


def asked_all_the_way(root: Path, scripted: Scripted, count: int = 10) -> list[dict[str, Any]]:
    """From a photo that the gallery knows to one of something else, step by step."""
    rows, _ = vectors()
    known, away = unit_rows(rows[:1])[0], stranger()
    return [ask(root, scripted, (1 - share) * known + share * away) for share in np.linspace(0, 1, count)]


def calibrated(root: Path, *options: object) -> dict[str, Any]:
    """The two promises, without the curve that is printed with them."""
    found = reid_json("calibrate", *options, store=root)
    assert len(found.pop("curve")["points"]) > 5
    assert found.pop("warnings") == []
    return found


def best_score(answer: dict[str, Any]) -> float:
    return float(next(one["score"] for one in answer["labels"] if not one["is_new"]))
