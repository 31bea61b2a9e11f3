"""The process `reid`: its exit codes and what it has written, though it ends without tidying up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from reid import __main__ as process


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "reid", *words], capture_output=True, text=True, check=False)


def test_what_it_prints_is_all_there_and_the_code_is_the_commands(tmp_path: Path) -> None:
    store = tmp_path / "s"
    made = run("--store", str(store), "init")
    assert (made.returncode, made.stderr) == (0, "") and made.stdout.startswith(f"made a store in {store}")
    empty = run("--store", str(store), "query", str(tmp_path / "no.jpg"), "--json")
    assert empty.returncode == 1 and '"status": "error"' in empty.stdout
    wrong = run("--store", str(store), "query")
    assert wrong.returncode == 2 and "Missing argument" in wrong.stderr
    assert run("--store", str(tmp_path / "none"), "status").returncode == 1


def test_a_reader_that_goes_early_is_no_crash(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m reid --help | head -1", shell=True, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("Usage: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize(("given", "code", "said"), [(None, 0, ""), (3, 3, ""), ("no store", 1, "no store\n")])
def test_codes_are_those_of_the_interpreter(
    given: object, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert process._code(SystemExit(given)) == code
    assert capsys.readouterr().err == said
