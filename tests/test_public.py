"""The public surface, and what the way of a query does not import."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rendered_store import enrolled, flukes, rows_of

import reid

__all__ = ["enrolled", "flukes"]

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("reid/**/*.py"), *ROOT.glob("index/*.py"), ROOT / "cli.py"])
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "tomlkit",
    "alembic",
    "xgboost",
    "scipy",
    "sklearn",
    "rich",
    "pandas",
    "matplotlib",
)


def test_all_is_sorted_and_importable() -> None:
    assert reid.__all__ == sorted(set(reid.__all__))
    for name in reid.__all__:
        assert getattr(reid, name) is not None
        assert name in dir(reid)


def test_what_is_not_there_is_said_as_python_says_it() -> None:
    with pytest.raises(AttributeError, match="module 'reid' has no attribute 'enrolment'"):
        _ = reid.enrolment


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process; it may fail."""
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def test_importing_the_package_imports_nothing_else() -> None:
    done = run(
        "import sys, reid; print(sorted(m for m in sys.modules if m.startswith('reid')), 'numpy' in sys.modules)"
    )
    assert (done.returncode, done.stdout) == (0, "['reid'] False\n"), done.stderr


def test_a_query_imports_no_heavy_library(enrolled: Path, flukes: Path) -> None:
    code = (
        "import sys\n"
        "from reid.cli import app\n"
        "try:\n"
        "    app(sys.argv[1:])\n"
        "finally:\n"
        "    print(sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)\n"
    )
    photo = flukes / rows_of(flukes / "queries.csv")[0]["path"]
    done = run(code, "--store", enrolled, "query", photo, "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["labels"]) == 5
    loaded = set(ast.literal_eval(done.stderr.splitlines()[-1]))
    assert {"numpy", "openvino", "reid"} <= loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_could_run_code_is_read_from_a_file(path: Path) -> None:
    """No pickle, and torch and numpy load arrays alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {a.name.partition(".")[0] for a in node.names} & {
                "pickle",
                "dill",
                "joblib",
                "shelve",
                "marshal",
            }
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in {"pickle", "dill", "joblib", "shelve", "marshal"}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            said = {k.arg: ast.unparse(k.value) for k in node.keywords}
            owner = ast.unparse(node.func.value)
            if (owner, node.func.attr) == ("torch", "load"):
                assert said.get("weights_only") == "True", f"line {node.lineno}"
            if (owner, node.func.attr) == ("np", "load"):
                assert said.get("allow_pickle", "False") == "False", f"line {node.lineno}"


def test_what_the_package_links_to_is_not_a_copy() -> None:
    for name in ("cli.py", "index"):
        assert (ROOT / "reid" / name).resolve() == ROOT / name, f"reid/{name} must be a link: a copy goes its own way"
