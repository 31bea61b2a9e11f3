"""A disk that is full for real (no file may grow beyond a limit): a typed error, and what was there stays whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from reid.disk import refusals  # noqa: E402
from reid.train import checkpoints, runs  # noqa: E402

LIMITED = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails, and the process goes on
folder = Path(sys.argv[1])

def full(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

"""


def after(code: str, folder: Path) -> str:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED + code, str(folder)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert not done.returncode, done.stderr
    return done.stdout


def everything(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


def test_the_checkpoint_before_stays_whole_wherever_the_disk_ends(tmp_path: Path) -> None:
    checkpoints.write(tmp_path, {"weights": torch.arange(5.0)})
    before = everything(tmp_path)
    said = after(
        """
import torch
from reid.train import checkpoints
for size in (0, 100, 5000, 50_000):
    full(size)
    try:
        checkpoints.write(folder, {"weights": torch.zeros(30_000)})
    except OSError as error:
        print(error)
""",
        tmp_path,
    )
    assert (
        said == 4 * f"[Errno 27] File too large: '{tmp_path / checkpoints.FILE}'\n" and everything(tmp_path) == before
    )


WRITTEN = """
import numpy, openvino
from painted_store import HEIGHT, WIDTH, colour_graph
from reid import models
card = models.ModelCard("m", 48, models.Preprocessing(HEIGHT, WIDTH, (0.0,) * 3, (255.0,) * 3), "avg", "0" * 64, "a", "b")
models.write(folder, card, colour_graph(), {"w": numpy.zeros(9, numpy.float32)})
from reid.errors import TrainError
from reid.train.runs import written
print(sorted((one.name, one.stat().st_size) for one in (folder / "m").iterdir()))
full(SIZE)
try:
    with written(folder):
        models.write(folder, card, colour_graph(), {"w": numpy.ones(30_000, numpy.float32)})
except TrainError as error:
    print(error)
full(resource.RLIM_INFINITY)
print(sorted((one.name, one.stat().st_size) for one in (folder / "m").iterdir()))
"""


@pytest.mark.parametrize(("size", "file"), [(1000, "graph.xml"), (50_000, "weights.safetensors")])
def test_a_model_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, size: int, file: str) -> None:
    before, error, left = after(WRITTEN.replace("SIZE", str(size)), tmp_path).splitlines()
    assert error.startswith(f"{tmp_path / 'm' / file}: cannot be written (") and "free some space" in error
    assert left == before and [one.name for one in tmp_path.iterdir()] == ["m"]


def test_a_cropper_that_cannot_be_written_is_absent(tmp_path: Path) -> None:
    said = after(
        """
from reid.errors import TrainError
from reid.locate import CropperCard
from reid.train import cropper_network
full(2000)
try:
    cropper_network.export(
        cropper_network.Network(1, 32).eval(), folder, CropperCard("c", 32, 1, False, "", "a", "b", 0, "", {})
    )
except TrainError as error:
    print(error)
""",
        tmp_path,
    )
    assert said.startswith(f"{tmp_path / 'c' / 'graph.xml'}: cannot be written (") and not everything(tmp_path)


TRAINED = """
from few_flukes import tiny
from painted_store import herd, sources_of
from reid.errors import TrainError
from reid.train import checkpoints, embedder, runs
run = runs.begin(folder, "night", "network", {})
def told(epoch, *more):
    full((run.folder / checkpoints.FILE).stat().st_size - 1)
try:
    with runs.recorded(run):
        embedder.train(*sources_of(herd(folder / "photos", 6, 3)), tiny(), run.folder, "m", pretrained=False, epochs=told)
except TrainError as error:
    print(error)
print(run.state)
"""


def test_a_training_whose_disk_is_full_ends_with_a_typed_error_and_a_whole_checkpoint(tmp_path: Path) -> None:
    error, state = after(TRAINED, tmp_path).splitlines()
    (run,) = (one for one in tmp_path.iterdir() if one.name.endswith("night"))
    assert error.startswith(f"{run / checkpoints.FILE}: cannot be written (File too large); free some space there")
    assert state.startswith("failed: ") and runs.read_state(run) == state
    kept = torch.load(run / checkpoints.FILE, weights_only=True)
    assert len(kept["history"]) == 1 and not [one for one in run.iterdir() if one.name.startswith(".")]


NIGHT = """
from dataclasses import replace
from painted_store import QUICK, herd, painted_store
from reid import retrain
retrain._quick_config = lambda store, options: replace(QUICK, seed=options.seed)
store = painted_store(folder / "store", herd(folder / "photos", 12, 3))
before = sorted((store.root / "models").rglob("*"))
full(4000)
done = retrain.night(store)
print(done.code, done.source)
print(done.next_step)
print(sorted((store.root / "models").rglob("*")) == before)
"""


def test_a_night_whose_disk_is_full_goes_on_without_the_training(tmp_path: Path) -> None:
    error, advice, same = after(NIGHT, tmp_path).splitlines()
    assert error.startswith(f"bad_training {tmp_path / 'store' / 'training'}") and error.endswith("graph.xml")
    assert "free some space there" in advice and same == "True"


def test_faults_that_are_not_the_disks_stay_what_they_are(tmp_path: Path) -> None:
    for fault in (ValueError("a"), NotImplementedError("b"), MemoryError("c"), np.linalg.LinAlgError("d")):
        with pytest.raises(type(fault)), refusals(tmp_path / "file"):
            raise fault
