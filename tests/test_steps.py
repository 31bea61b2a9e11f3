"""What messages tell people to type works when it is typed: the store that was named, the part that is missing."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from rendered_store import reid
from typer.main import get_command

from reid import cli, steps

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _nowhere() -> Iterator[None]:
    steps.stand_at(None)
    yield
    steps.stand_at(None)


def test_commands_in_a_message_name_the_store_that_was_named() -> None:
    steps.stand_at("my whales", ["reindex", "train", "train-cropper", "individuals"])
    said = steps.pasted("stale; reid reindex, or `reid train-cropper --resume`; reid individuals merge A B")
    assert said == (
        "stale; reid --store 'my whales' reindex, or `reid --store 'my whales' train-cropper --resume`; "
        "reid --store 'my whales' individuals merge A B"
    )


@pytest.mark.parametrize(
    "text",
    ["reid --store x reindex", "/data/reid reindex.jpg", "reid reindexing", "reid evaluate a b", "the reid engine"],
)
def test_what_is_no_command_of_a_store_stays_as_it_is(text: str) -> None:
    steps.stand_at("whales", ["reindex"])
    assert steps.pasted(text) == text


def test_without_a_named_store_messages_stay_as_they_are() -> None:
    assert steps.pasted("reid reindex") == "reid reindex"


def test_every_command_of_the_line_but_those_without_a_store_is_completed(tmp_path: Path) -> None:
    assert reid("init", store=tmp_path / "a store").exit_code == 0
    (tmp_path / "x.jpg").write_bytes(b"nonsense")
    unknown = reid("individuals", "show", "Nobody", store=tmp_path / "a store")
    step = f"reid --store {shlex.quote(str(tmp_path / 'a store'))} individuals list"
    assert unknown.stderr.rstrip().endswith(step)
    assert steps.pasted("reid calibrate; reid evaluate; reid demo").count("--store") == 1
    missing = reid("status", store=tmp_path / "no store")
    assert missing.stderr.rstrip().endswith(f"reid --store {shlex.quote(str(tmp_path / 'no store'))} init")


def test_the_store_of_the_environment_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reid("init", store=tmp_path / "s").exit_code == 0
    monkeypatch.setenv("REID_STORE", str(tmp_path / "s"))
    assert reid("individuals", "show", "Nobody").stderr.rstrip().endswith("; list the names: reid individuals list")


def test_json_completes_commands_in_text_for_people_alone(capsys: pytest.CaptureFixture[str]) -> None:
    from reid import console

    steps.stand_at("w", ["reindex"])
    console.as_json({"next_step": "reid reindex", "path": "reid reindex", "warnings": ["reid reindex"]})
    assert capsys.readouterr().out.strip() == (
        '{"next_step": "reid --store w reindex", "path": "reid reindex", "warnings": ["reid --store w reindex"]}'
    )


def test_a_missing_part_is_installed_from_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    assert steps.install("train") == "pip install '.[train]'"
    monkeypatch.chdir(tmp_path)
    assert steps.install("train") == f"pip install {shlex.quote(f'{ROOT}[train]')}"


def test_an_installed_wheel_names_what_the_part_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = [
        "numpy>=2.0",
        'torch>=2.13; extra == "train"',
        "lap >= 0.5.12 ; extra == 'train'",
        'kornia>=0.9; extra == "matchers"',
    ]
    monkeypatch.setattr(steps, "__file__", str(tmp_path / "site-packages" / "reid" / "steps.py"))
    monkeypatch.setattr(metadata, "requires", lambda name: lines if name == "animal-reid" else None)
    assert steps.install("train") == "pip install 'torch>=2.13' 'lap>=0.5.12'"
    assert steps.requirements("matchers") == ["kornia>=0.9"]
    assert steps.install("nonsense") == "pip install '.[nonsense]'"


def test_every_command_that_a_text_of_ours_names_is_one() -> None:
    commands = getattr(get_command(cli.app), "commands")  # noqa: B009  # typer's own copy of click says nothing of its groups
    texts = [
        (file, node.value)
        for folder in (ROOT / "reid", ROOT / "index")  # a link below reid/, which is not followed there
        for file in sorted(folder.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    named = [
        (file.name, said) for file, text in texts for said in re.findall(r"\breid ([a-z][a-z-]*[a-z])\b(?!-)", text)
    ]
    assert len(named) > 100
    assert [one for one in named if one[1] not in {*commands, "import"}] == []
