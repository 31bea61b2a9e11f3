"""Scores of recent queries: what is kept of them, and when they say that promised rates have aged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_stores import paint, reopened, with_vectors
from promised_store import RATES, SHOTS, Scripted, ask, best_score, cases_of, fitted, many, measured, scripted, vectors
from rendered_store import reid_json

from reid import fit, recent
from reid.embed import unit_rows

__all__ = ["many", "measured", "scripted"]


def noted(root: Path, scores: list[float], at: list[str | None] | None = None) -> None:
    """As many queries of different photos since the fit, `at` these times."""
    made = fitted(root).made
    times = at or [None] * len(scores)
    with open(root / recent.FILE, "a", encoding="utf-8") as file:
        for n, (score, time) in enumerate(zip(scores, times, strict=True)):
            line = {"fit": made, "score": score, "photo": f"{n}", "at": time, "place": None}
            file.write(json.dumps(line) + "\n")


def kept(root: Path) -> list[float]:
    with reopened(root) as store:
        return [float(x) for x in recent.scores(store, fitted(root))]


def test_every_photo_that_is_asked_leaves_one_score(many: Path, scripted: Scripted) -> None:
    rows, _ = vectors()
    expected = []
    for animal in (1, 2, 3, 3, 2):
        scripted.sees = unit_rows(rows[None, animal * SHOTS])[0]
        answer = reid_json("query", paint(many.parent / f"q{animal}.png", animal), store=many)
        expected.append(best_score(answer))
    assert kept(many) == pytest.approx(expected[:3], abs=1e-6)
    with reopened(many) as store:
        fit.fit(store)
        found = fit.read(store, store.gallery().fingerprint)
        assert found is not None
        fit.write(store, replace(found, made="later"))
    assert kept(many) == []  # they were asked before


def test_queries_of_one_encounter_count_once(many: Path) -> None:
    times: list[str | None] = [f"2024-06-01T09:{m:02d}:00" for m in range(0, 50, 10)]
    noted(many, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], [*times, "2024-06-02T09:00:00", None])
    assert kept(many) == [0.1, 0.6, 0.7]


def test_recent_queries_that_score_differently_are_warned_of_by_status_and_by_the_next_answer(
    many: Path, scripted: Scripted
) -> None:
    reid_json("calibrate", *RATES, store=many)
    cases, rng = cases_of(fitted(many)), np.random.default_rng(0)
    like = [float(rng.choice(cases.known_score if rng.random() < 0.7 else cases.unknown_score)) for _ in range(60)]
    noted(many, like)
    assert reid_json("status", store=many)["warnings"] == []
    assert ask(many, scripted, vectors()[0][0])["warnings"] == []
    (many / recent.FILE).unlink()
    noted(many, [-1.0] * (recent.LEAST - 1))
    assert reid_json("status", store=many)["warnings"] == []  # too few to say
    (many / recent.FILE).unlink()
    noted(many, [float(x) for x in np.quantile(cases.unknown_score, np.linspace(0, 1, 60))])
    for said in (reid_json("status", store=many), ask(many, scripted, vectors()[0][0])):
        (warning,) = said["warnings"]
        assert "recent queries score differently" in warning


def test_an_answer_warns_of_a_gallery_that_has_outgrown_its_rates(many: Path, scripted: Scripted) -> None:
    reid_json("calibrate", *RATES, store=many)
    with reopened(many) as store:
        with_vectors(store, *vectors(582))
        store.gallery()
    (warning,) = ask(many, scripted, vectors()[0][0])["warnings"]
    assert "has grown from 1800 to 2328 photos" in warning and "reindex --force" in warning


def test_what_cannot_be_kept_never_fails_a_query_and_is_said_where_a_rate_is_promised(
    many: Path, scripted: Scripted
) -> None:
    (many / recent.FILE).mkdir()
    before = ask(many, scripted, vectors()[0][0])
    assert before["status"] == "match" and before["stages_skipped"] == []
    reid_json("calibrate", *RATES, store=many)
    answer = ask(many, scripted, vectors()[0][0])
    assert answer["status"] == "match" and "recent scores: not kept" in answer["stages_skipped"][0]


def test_the_file_stays_small_and_damaged_lines_are_passed_over(
    many: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "MOST_BYTES", 3000)
    monkeypatch.setattr(recent, "KEPT", 10)
    noted(many, [n / 100 for n in range(40)])
    with open(many / recent.FILE, "a") as file:
        file.write('{"fit": 3\n[]\n{"fit": "x"}\n\n')
    asked = best_score(ask(many, scripted, vectors()[0][0]))
    assert (many / recent.FILE).stat().st_size < 3000
    found = kept(many)
    assert found[-1] == pytest.approx(asked, abs=1e-6) and len(found) <= 10 and found[-2] == 0.39
