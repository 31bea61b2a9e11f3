"""Machine code that is kept for the next process: found again, never trusted when damaged, never another machine's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import opset8 as ops

from reid import compiled as place
from reid.compiled import compiled

CONFIG: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
WEIGHTS = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
ASKED = np.random.default_rng(1).normal(size=(1, 64)).astype(np.float32)


class Graph:
    """Reads a small graph, and counts how often it had to."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self) -> openvino.Model:
        self.read += 1
        x = ops.parameter([1, 64], np.float32, name="x")
        return openvino.Model([ops.matmul(x, ops.constant(WEIGHTS), False, False)], [x])


def answer(graph: Graph, folder: Path | None, facts: str = "small") -> np.ndarray:
    return np.asarray(compiled(graph, CONFIG, folder, facts)(ASKED)[0])


def flipped(data: bytes) -> bytes:
    """One byte of the weights changed, which OpenVINO itself does not notice."""
    at = data.index(WEIGHTS.tobytes()[:64])
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_the_next_process_reads_what_this_one_has_compiled(tmp_path: Path) -> None:
    graph, folder = Graph(), tmp_path / "compiled"
    first = answer(graph, folder)
    np.testing.assert_array_equal(answer(graph, folder), first)
    assert graph.read == 1
    [blob] = folder.iterdir()
    assert blob.suffix == ".blob" and blob.stat().st_mode & 0o777 == 0o644
    answer(graph, folder, "another graph")
    assert graph.read == 2 and len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: b"not machine code", lambda data: data[:-8], flipped, lambda data: data[4:]],
    ids=["empty", "foreign", "cut", "changed", "without-checksum"],
)
def test_a_damaged_file_is_passed_over_and_replaced(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    graph, folder = Graph(), tmp_path / "compiled"
    first = answer(graph, folder)
    [blob] = folder.iterdir()
    whole = blob.read_bytes()
    blob.write_bytes(damage(whole))
    np.testing.assert_array_equal(answer(graph, folder), first)
    assert graph.read == 2 and list(folder.iterdir()) == [blob]
    np.testing.assert_array_equal(answer(graph, folder), first)
    assert graph.read == 2


@pytest.mark.parametrize("what", ["version", "cpu"])
def test_another_version_or_another_cpu_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    graph = Graph()
    answer(graph, tmp_path)
    if what == "version":
        monkeypatch.setattr(openvino, "get_version", lambda: "2031.1")
    else:

        class Other:
            """The same core on another CPU."""

            compile_model, import_model = place.core().compile_model, place.core().import_model

            def get_property(self, device: str, name: str) -> str:
                return "another CPU"

        monkeypatch.setattr(place, "_shared_core", Other())
    answer(graph, tmp_path)
    assert graph.read == 2 and len(list(tmp_path.iterdir())) == 2


def test_where_nothing_can_be_kept_it_is_compiled_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph()
    first = answer(graph, None)
    np.testing.assert_array_equal(answer(graph, tmp_path / "no" / "store"), first)

    def full(*named: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(place.os, "replace", full)
    np.testing.assert_array_equal(answer(graph, tmp_path), first)
    assert graph.read == 3 and not list(tmp_path.iterdir())
