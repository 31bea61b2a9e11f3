"""Rendered flukes and a store of them, made once a test session; tests that change a store take a copy."""

from __future__ import annotations

import csv
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from reid.cli import app
from reid.synth import write_dataset

WHALES, PHOTOS, QUERIES = 10, 32, 10


def reid(*arguments: object, store: Path | None = None) -> Result:
    """Run the command line; a traceback fails the test, an exit code does not."""
    words = [*(["--store", str(store)] if store else []), *map(str, arguments)]
    result = CliRunner().invoke(app, words, env={"REID_USER": "tester", "COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def reid_json(*arguments: object, store: Path | None = None, code: int = 0) -> dict[str, Any]:
    """Run with --json: exactly one line of standard output, and it is an object."""
    result = reid(*arguments, "--json", store=store)
    assert result.exit_code == code, result.output
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def rows_of(table: Path) -> list[dict[str, str]]:
    with open(table, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(table: Path, rows: list[dict[str, str]]) -> Path:
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


@cache
def _flukes(base: Path) -> Path:
    write_dataset(base, WHALES, PHOTOS, seed=4, n_queries=QUERIES, long_side=320)
    return base


@cache
def _enrolled(base: Path, flukes: Path) -> Path:
    done = reid_json("enroll", flukes / "labels.csv", store=base)
    assert (done["new"], done["annotations"], done["failures"]) == (PHOTOS, PHOTOS, [])
    return base


@pytest.fixture(scope="session")
def flukes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/, labels.csv, queries.csv; nobody changes it."""
    return _flukes(tmp_path_factory.getbasetemp() / "rendered-flukes")


@pytest.fixture(scope="session")
def enrolled(tmp_path_factory: pytest.TempPathFactory, flukes: Path) -> Path:
    """A store of `flukes`; nobody changes it."""
    return _enrolled(tmp_path_factory.getbasetemp() / "enrolled-flukes", flukes)


@pytest.fixture
def store(enrolled: Path, tmp_path: Path) -> Path:
    """A copy of the enrolled store (its photos are those of `flukes`)."""
    return Path(shutil.copytree(enrolled, tmp_path / "store"))


@pytest.fixture
def field(enrolled: Path, flukes: Path, tmp_path: Path) -> Path:
    """A folder of a test's own, with twelve photos and their labels.csv, and a store of it in `store`."""
    (tmp_path / "photos").mkdir()
    rows = rows_of(flukes / "labels.csv")[:12]
    for row in rows:
        shutil.copy2(flukes / row["path"], tmp_path / row["path"])
    write_rows(tmp_path / "labels.csv", rows)
    assert reid("init", store=tmp_path / "store").exit_code == 0
    shutil.copytree(enrolled / "models", tmp_path / "store" / "models")
    done = reid_json("enroll", tmp_path / "photos", "--table", tmp_path / "labels.csv", store=tmp_path / "store")
    assert (done["new"], done["named"], done["failures"]) == (12, 12, [])
    return tmp_path
