"""What a training frees stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
