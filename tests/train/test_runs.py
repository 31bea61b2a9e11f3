"""The record of a training: what it says, how it ends, and how it is found again."""

from __future__ import annotations

import errno
import json
import math
import os
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid.errors import StoreBusy, TrainError
from reid.train import runs

DAY = date(2026, 11, 21)


def test_a_run_leaves_its_settings_log_metrics_curves_and_state(tmp_path: Path) -> None:
    run = runs.begin(tmp_path / "training", "night", "network", {"seed": 3}, today=DAY)
    assert run.name == "2026-11-21-night" and run.state == "running"
    with runs.recorded(run):
        run.log("embedding")
        run.write_json(runs.METRICS, {"after": 0.5, "before": math.nan, "model": Path("a/b")})
        run.write_curves([3.0, 2.0, 1.5], [0.1, math.nan, 0.3])
    assert run.state == "finished"
    config = json.loads((run.folder / runs.CONFIG).read_text())
    assert config == run.config and config["seed"] == 3 and config["versions"]["numpy"] == np.__version__
    assert config["code"] == runs.revision()
    assert json.loads((run.folder / runs.METRICS).read_text()) == {"after": 0.5, "before": None, "model": "a/b"}
    lines = (run.folder / runs.LOG).read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["embedding", "finished"]
    with Image.open(run.folder / runs.CURVES) as picture:
        assert picture.size == (900, 520)
    left = {runs.CONFIG, runs.LOG, runs.METRICS, runs.CURVES, runs.STATE}
    assert {p.name for p in run.folder.iterdir()} == left


def test_a_run_that_another_process_works_on_is_not_resumed(tmp_path: Path) -> None:
    older = runs.begin(tmp_path, "older", "network", {}, today=DAY)
    run = runs.begin(tmp_path, "night", "network", {}, today=DAY)
    with runs.recorded(run):
        with pytest.raises(TrainError, match="still running"):
            runs.resume(tmp_path, "network", "night")
        with pytest.raises(TrainError, match="still running"), runs.recorded(run):
            raise AssertionError("two at once")
        assert run.state == "running" and runs.resume(tmp_path, "network").name == older.name
        with pytest.raises(KeyboardInterrupt), runs.recorded(older):
            raise KeyboardInterrupt
    assert run.state == "finished" and runs.resume(tmp_path, "network").name == older.name


def test_what_is_busy_inside_a_training_is_said_as_it_is(tmp_path: Path) -> None:
    run = runs.begin(tmp_path, "night", "network", {}, today=DAY)
    with pytest.raises(StoreBusy, match="the gallery"), runs.recorded(run):
        raise StoreBusy("the gallery is being written", next_step="wait")
    assert run.state.startswith("failed: the gallery")


def test_a_name_that_a_model_has_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "models" / "2026-11-21-night").mkdir(parents=True)
    run = runs.begin(tmp_path / "training", "night", "network", {}, today=DAY, taken=tmp_path / "models")
    assert run.name == "2026-11-21-night-2"


def test_a_second_run_of_the_day_gets_a_number_and_a_name_must_be_one(tmp_path: Path) -> None:
    names = [runs.begin(tmp_path, "night", "network", {}, today=DAY).name for _ in range(3)]
    assert names == ["2026-11-21-night", "2026-11-21-night-2", "2026-11-21-night-3"]
    for name in ("", "../up", "a b", ".hidden"):
        with pytest.raises(TrainError, match="cannot be a model's name"):
            runs.begin(tmp_path, name, "network", {}, today=DAY)


def test_curves_rise_and_fall_with_their_values_and_have_gaps_where_there_are_none() -> None:
    blue = np.array(runs._LOSS)
    drawn = (runs.draw_curves({"loss": [4.0, 3.0, 2.0, 1.0, 0.0]}) == blue).all(axis=2)
    columns = np.flatnonzero(drawn.any(axis=0))
    heights = np.array([np.flatnonzero(drawn[:, x]).mean() for x in columns])
    assert np.polyfit(columns, heights, 1)[0] > 0.1  # falling: further down as epochs go by
    assert columns.max() - columns.min() > 750
    gap = (runs.draw_curves({"loss": [1.0, math.nan, math.nan, math.nan, 0.0]}) == blue).all(axis=2)
    assert len(np.flatnonzero(gap.any(axis=0))) < 30  # two points and no line
    assert not (runs.draw_curves({"loss": [math.nan]}) == blue).all(axis=2).any()


@pytest.mark.parametrize(
    ("raised", "seen", "state"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, "interrupted"),
        (TrainError("too few photos"), TrainError, "failed: too few photos"),
        (OSError(errno.ENOSPC, "No space left on device"), TrainError, "failed: [Errno 28] No space left on device"),
    ],
)
def test_how_a_run_ended_is_written_down(
    tmp_path: Path, raised: BaseException, seen: type[BaseException], state: str
) -> None:
    run = runs.begin(tmp_path, "night", "network", {}, today=DAY)
    with pytest.raises(seen) as caught, runs.recorded(run):
        raise raised
    assert run.state == state
    if isinstance(raised, OSError):
        assert str(caught.value) == (
            f"{run.folder}: cannot be written (No space left on device); "
            "free some space there, then the same command with --resume"
        )


def test_the_newest_unfinished_run_is_resumed_with_its_own_settings(tmp_path: Path) -> None:
    made = [runs.begin(tmp_path, name, "network", {"seed": seed}, today=DAY) for seed, name in enumerate("abac")]
    with runs.recorded(made[3]):
        pass
    for age, run in enumerate(reversed(made)):
        os.utime(run.folder, (1e9 - age, 1e9 - age))
    assert runs.resume(tmp_path, "network").name == "2026-11-21-a-2"
    assert runs.resume(tmp_path, "network").config["seed"] == 2
    assert runs.resume(tmp_path, "network", "b").name == "2026-11-21-b"
    assert runs.resume(tmp_path, "network", "2026-11-21-a").config["seed"] == 0
    for name in ("c", "d"):
        with pytest.raises(TrainError, match="no unfinished training called"):
            runs.resume(tmp_path, "network", name)
    with pytest.raises(TrainError, match="no unfinished training there"):
        runs.resume(tmp_path / "nowhere", "network")
    (made[1].folder / runs.CONFIG).write_text("{")
    with pytest.raises(TrainError, match="its settings cannot be read"):
        runs.resume(tmp_path, "network", "b")


def test_only_a_run_of_the_same_kind_is_resumed(tmp_path: Path) -> None:
    mine = runs.begin(tmp_path, "night", "network", {}, today=DAY)
    for age, kind in enumerate(("cropper", "ensemble", "siamese")):
        other = runs.begin(tmp_path, "night", kind, {}, today=DAY)
        os.utime(other.folder, (2e9 + age, 2e9 + age))
    broken = runs.begin(tmp_path, "night", "cropper", {}, today=DAY)
    (broken.folder / runs.CONFIG).write_text("[]")
    assert runs.resume(tmp_path, "network") == mine == runs.resume(tmp_path, "network", "night")
    with runs.recorded(mine):
        pass
    with pytest.raises(TrainError, match="its settings cannot be read") as caught:
        runs.resume(tmp_path, "network")
    assert caught.value.source == str(broken.folder / runs.CONFIG)


def test_a_place_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainError, match="cannot be written"):
        runs.begin(tmp_path / "file", "night", "network", {}, today=DAY)
