"""The benchmarks run, on next to nothing, and print the numbers under the names by which they are asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def printed(script: str, *arguments: object) -> dict[str, Any]:
    """The JSON object in a benchmark's last line."""
    paths = os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH", "")) if path)
    command = [sys.executable, f"bench/{script}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_describing_and_verifying_twenty_candidates() -> None:
    found = printed("verify.py", "--rendered", "--photos", 21, "--queries", 1)
    assert found["verify20_ms"] > 1 and found["sift_ms"] > 1  # in 1 ms nothing has been compared
    assert all(milliseconds > 1 for milliseconds in found["verify20_ms_of"].values())


def test_votes_beside_exact_search(tmp_path: Path) -> None:
    few = ("--photos", 12, "--queries", 2, "--exact", 2, "--exact-descriptors", 20)
    found = printed("local.py", "--rendered", *few, "--keep", tmp_path)
    assert found["lnbnn_ms"] > 0 and 0 <= found["recall_vs_exact"] <= 1
    assert 100 < found["bytes_a_descriptor"] < 1000


def test_assignments_exact_and_sparse(tmp_path: Path) -> None:
    pytest.importorskip("lap")
    vectors = np.random.default_rng(0).normal(size=(90, 6, 2, 128)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
    np.save(tmp_path / "labels.npy", np.array([f"animal {row // 3}" for row in range(90)]))
    (tmp_path / "what.txt").write_text("noise")
    found = printed("lap.py", "--keep", tmp_path)
    assert found["exact_s"] >= 0 and found["sparse_s"] >= 0 and min(found["exact_peak_mb"], found["sparse_peak_mb"]) > 1
    assert 0.9 < found["sparse_over_exact"] <= 1 and found["vectors"] == "noise"
