"""Memory that a training frees stays with the process, for its next step.

Every step of a training on the CPU asks for the same large blocks. By default the GNU C library gets each from the system
and gives it back, and the system hands out cleared pages one fault at a time: with batches of 64 photos that took a fifth
of an epoch, on a busy machine half of a step (`docs/experiments/recipes.md`). A training's peak is then about a sixth
higher. Elsewhere (macOS, Windows, musl) nothing is changed.

And memory that there is not: `bounded` says what to lower. Knows the C library; nothing of training.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from reid.errors import TrainError

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of mallopt(3)
_NEVER = 2**31 - 1
_AHEAD = 64 << 20  # bytes asked of the system at a time


def keep() -> bool:
    """From now on large blocks come from the heap, which does not shrink. False where the C library has no such switch."""
    try:
        change = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; no such library; Windows has no library of itself
        return False
    return all([change(_MMAP_MAX, 0), change(_TRIM_THRESHOLD, _NEVER), change(_TOP_PAD, _AHEAD)])


@contextmanager
def bounded(lower: str) -> Iterator[None]:
    """Memory that runs out, of the machine or of the GPU, as a TrainError whose next step is `lower`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        on_gpu = type(error).__name__ == "OutOfMemoryError"  # torch's, a RuntimeError
        if isinstance(error, RuntimeError) and not on_gpu and "can't allocate memory" not in str(error):
            raise
        raise TrainError(
            f"there is not enough memory {'on the GPU' if on_gpu else 'on this machine'}", next_step=lower
        ) from error
