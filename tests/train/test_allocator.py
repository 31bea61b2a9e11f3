"""What a training frees stays with the process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from reid.errors import TrainError
from reid.train import allocator

FAULTS = """
import resource, numpy
{before}
def step():
    numpy.ones(4_000_000)
step()
first = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - first)
"""

KEEP = """
from reid.train import allocator
if not allocator.keep():
    print(-1)
    raise SystemExit
"""


def faults(before: str) -> int:
    """Pages that twenty steps, each with a block of 32 MB of its own, had to be given; −1 where memory cannot be kept."""
    code = FAULTS.format(before=before)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems keep memory by rules of their own")
def test_large_blocks_are_used_again() -> None:
    kept = faults(KEEP)
    if kept < 0:
        pytest.skip("this C library has no mallopt")
    assert kept < 0.05 * faults("")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert allocator.keep() is False


def test_memory_that_runs_out_says_what_to_lower() -> None:
    torch = pytest.importorskip("torch")

    @allocator.bounded("take fewer")
    def asks(what: str) -> None:
        if what == "gpu":  # there may be none here: its error alone
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        np.empty(2**48) if what == "numpy" else torch.empty(2**48)

    for what, where in (("numpy", "on this machine"), ("torch", "on this machine"), ("gpu", "on the GPU")):
        with pytest.raises(TrainError, match=f"not enough memory {where}; take fewer"):
            asks(what)
    with pytest.raises(RuntimeError, match="another"), allocator.bounded("take fewer"):
        raise RuntimeError("another fault")
