"""What `reid status`, `reid evaluate` and `reid mine` print: words, not fields; no interval that does not exist."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from fake_stores import fake_store, herd, taken_in

from reid import figures, fusion
from reid.errors import InputError
from reid.evaluate import Evaluation, Measured, evaluate
from reid.mine import HardPair, Mined, Shown
from reid.records import Failure
from reid.status import status
from reid.verdicts import mined, worst

NAN = math.nan


def test_an_interval_that_does_not_exist_is_a_dash_with_the_reason() -> None:
    good, lone, none = Measured(0.5, 0.25, 0.75), Measured(0.5, NAN, NAN), Measured(NAN, NAN, NAN)
    assert figures.cells("top1", good, 9, 9) == ("0.5000", "0.2500 – 0.7500")
    assert figures.cells("top1", lone, 9, 9) == ("0.5000", "– (too few animals to draw from)")
    assert figures.cells("top1", none, 0, 9) == ("–", "– (no query shows an animal of the gallery)")
    assert figures.cells("baus", none, 9, 0) == ("–", "– (no query shows an animal that the gallery lacks)")
    assert figures.cells("ece", none, 9, 9) == ("–", "– (no answer has a P: too little was measured on this gallery)")


def test_every_way_to_fuse_has_its_words() -> None:
    assert set(figures.SOURCES) == set(fusion.KINDS)


def test_an_evaluation_is_printed_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    measures = {name: Measured(NAN, NAN, NAN) for name in figures.MEASURES}
    failure = Failure("q.csv row 2", "bad_photo", "there is no photo 'x.jpg'", "correct the path")
    seconds = dict.fromkeys(figures.SECONDS, 0.1)
    figures.evaluated(Evaluation(measures, {}, dict.fromkeys(figures.COUNTS, 0), {}, "m", seconds, (failure,)))
    said = capsys.readouterr()
    assert "nan" not in said.out and "_" not in said.out
    assert "MAP@5, answers as given" in said.out and "gallery photos" in said.out and "q.csv row 2" in said.err


def test_every_field_of_the_status_is_said_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = fake_store(tmp_path / "s")
    figures.stated(status(store))
    assert "not made yet" in capsys.readouterr().out
    taken_in(store, herd(tmp_path / "p", 3, 2))
    found = status(store)
    rows = dict(figures.rows_of(found))
    assert (rows["boxes (one animal in one photo)"], rows["index"]) == (6, "up to date")
    assert rows["score from which an animal is a known one"].endswith("nothing could be measured on this store yet")
    assert rows["answers rest on"] == "the embedder alone"
    figures.stated(found)
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: nothing was measured on this store yet" in said
    assert "annotations" not in said and "revision" not in said


def pairs(two: int, one: int) -> Mined:
    def pair(kind: str, n: int) -> HardPair:
        return HardPair(kind, 0.5, Shown(n, "Ana", f"{n}.jpg"), Shown(n + 1, "Bo", "b.jpg"), f"ask {kind} {n}")  # type: ignore[arg-type]

    listed = [pair("two names", n) for n in range(two)] + [pair("one name", n) for n in range(one)]
    return Mined(tuple(listed), 100, 20, "m")


def test_the_worst_ten_pairs_are_printed_and_how_to_have_the_rest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert [p.ask for p in worst(pairs(20, 20))] == [
        f"ask {k} name{'s' if k == 'two' else ''} {n}" for k in ("two", "one") for n in range(5)
    ]
    assert [p.kind for p in worst(pairs(3, 20))] == ["two names"] * 3 + ["one name"] * 7
    assert worst(pairs(2, 1)) == pairs(2, 1).pairs
    mined(pairs(20, 20))
    said = capsys.readouterr().out
    assert said.count("Ana") == 10 and "30 more: --all prints them" in said
    mined(pairs(20, 20), everything=True)
    said = capsys.readouterr().out
    assert said.count("Ana") == 40 and "more:" not in said


def test_an_evaluation_without_queries_names_the_table_and_the_first_row(tmp_path: Path) -> None:
    herd(tmp_path, 2, 1)
    (tmp_path / "g.csv").write_text("path,identity\na000-0.png,a\na001-0.png,b\n")
    (tmp_path / "q.csv").write_text("path,identity\ngone.png,a\nlost.png,b\n")
    (tmp_path / "empty.csv").write_text("path,identity\n")
    with pytest.raises(InputError, match=r"2 rows lost; q\.csv row 2: there is no photo 'gone\.png'") as caught:
        evaluate(tmp_path / "g.csv", tmp_path / "q.csv")
    assert caught.value.source == str(tmp_path / "q.csv") and "--root" in caught.value.next_step
    with pytest.raises(InputError, match="has a header and no rows"):
        evaluate(tmp_path / "g.csv", tmp_path / "empty.csv")
    with pytest.raises(InputError, match="no named gallery photo could be used"):
        evaluate(tmp_path / "empty.csv", tmp_path / "q.csv")
