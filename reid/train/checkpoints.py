"""The last good state of a training: one file of tensors and plain numbers, whole or absent.

Written aside, to disk, and renamed; read with `weights_only=True`, so that nothing in it can run. Knows files; trains
nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reid.disk import refusals
from reid.errors import TrainError
from reid.train.pictures import Pictures
from reid.train.recipe import Recipe

FILE = "checkpoint.pt"
_FORMAT = 2
_LOOK = 16  # every so many pixels of a photo, each way, tell it from another


def about(recipe: Recipe, seed: int, kept: Pictures, codes: NDArray[np.int64]) -> str:
    """What a checkpoint belongs to; another string is another training: another recipe or seed, other photos or outlines
    (of the pictures `kept`, looked at here and there), or another animal in one of them (`codes (N,)`).
    """
    text = json.dumps(recipe.to_dict() | {"notes": "", "system": ""}, sort_keys=True)
    shown = hashlib.sha256(codes.astype("<i8").tobytes())
    shown.update(np.ascontiguousarray(kept.pixels[:, ::_LOOK, ::_LOOK]).tobytes())
    if kept.outlines is not None:
        shown.update(np.ascontiguousarray(kept.outlines[:, ::_LOOK, ::_LOOK]).tobytes())
    return f"{_FORMAT} {recipe.name} {hashlib.sha256(text.encode()).hexdigest()[:16]} {seed} {shown.hexdigest()[:16]}"


def exists(folder: Path) -> bool:
    """Whether there is one."""
    return (folder / FILE).is_file()


def write(folder: Path, state: dict[str, Any]) -> None:
    """Put `state` in the place of the one before. OSError where the disk refuses; the one before is then whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with refusals(folder / FILE), tempfile.NamedTemporaryFile(dir=folder, prefix=f".{FILE}-", delete=False) as file:
        try:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    os.replace(file.name, folder / FILE)


def read(folder: Path, expected: str) -> dict[str, Any]:
    """The state in `folder`.

    Raises:
        TrainError: it cannot be read, or belongs to another training than `expected` says.
    """
    path = folder / FILE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state["about"]
    except Exception as error:  # torch raises a dozen kinds for a file that is not its own
        raise TrainError(
            f"the checkpoint cannot be read ({type(error).__name__})",
            source=str(path),
            next_step="remove it and begin anew",
        ) from error
    if found != expected:
        raise TrainError(
            "the checkpoint is of another recipe, seed, version or set of photos",
            source=str(path),
            next_step="leave out --resume, or name another folder",
        )
    return state


def remove(folder: Path) -> None:
    """Once the model is written it is not needed any more."""
    (folder / FILE).unlink(missing_ok=True)
