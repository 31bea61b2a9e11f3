"""A disk that refuses, in the words of Python whoever was writing. Knows errors and paths."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = 1 << 20  # bytes left on a disk that a write has just filled, at most


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Around what writes `path`. torch, OpenVINO and safetensors tell of a full disk by errors of their own (`unexpected
    pos`, `basic_ios::clear`), and Python by one without a name: they become an OSError that names the file and says why,
    as far as it can be told.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        if type(error) is not RuntimeError and type(error).__name__ != "SafetensorError":
            raise
        raise OSError(*_why(error, path), str(path)) from error


def _why(error: Exception, path: Path) -> tuple[int, str]:
    """Number and words: those that the system gave; else by what is left of the disk."""
    system = error.__context__  # torch writes by a file of Python's, and lets its own error take that one's place
    if isinstance(system, OSError) and system.errno:
        return system.errno, os.strerror(system.errno)
    said = re.search(r"\(os error (\d+)\)", str(error))
    if said:
        return int(said[1]), os.strerror(int(said[1]))
    if shutil.disk_usage(next(one for one in path.parents if one.exists())).free < _FULL:
        return errno.ENOSPC, os.strerror(errno.ENOSPC)
    return errno.EIO, f"{os.strerror(errno.EIO)}: {str(error).strip() or type(error).__name__}"
