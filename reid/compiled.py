"""OpenVINO graph → machine code for this CPU, kept as a file for the next process: reading it is several times faster.

    <folder>/<16 hex digits>.blob    crc32 of what follows (4 bytes, little-endian), then what OpenVINO exports

The name is over the OpenVINO version, the CPU, the settings and what the caller says of the graph, so that what another
machine or version has made is never found. A file that is cut, changed or refused by OpenVINO is as none and is
replaced: OpenVINO itself takes changed weights without a word. Files are written aside and renamed, and may be deleted
at any time. Knows graphs and files; no models, no pixels.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_CHECKSUM = 4  # bytes
SINGLE = {"INFERENCE_PRECISION_HINT": "f32"}
"""Single precision: where a CPU has bf16 OpenVINO would round to it, and a photo's vector would differ from machine to
machine (cosine .96 at worst on real flukes). Nothing is found better or worse by it, and without matrix units not faster.
"""


def core() -> Any:
    """The process's OpenVINO core (creating one costs 0.1–0.25 s, so it is kept)."""
    global _shared_core
    if _shared_core is None:
        import openvino

        _shared_core = openvino.Core()
    return _shared_core


_shared_core: Any = None


def compiled(read: Callable[[], Any], config: dict[str, Any], folder: Path | None, facts: str) -> Any:
    """The compiled model from `folder`, where this machine has kept it there; else `read()`, compiled and kept.

    In single precision. `facts` say which graph it is, as far as the folder leaves that open; None for a folder keeps nothing. What `read`
    raises comes through, and RuntimeError where OpenVINO cannot compile.
    """
    import openvino

    engine, config = core(), config | SINGLE
    name = f"{openvino.get_version()}|{engine.get_property('CPU', 'FULL_DEVICE_NAME')}|{facts}|{sorted(config.items())}"
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.blob" if folder is not None else None
    found = _kept(path, config) if path is not None else None
    if found is None:
        found = engine.compile_model(read(), "CPU", config)
        if path is not None:
            _keep(path, found)
    return found


def _kept(path: Path, config: dict[str, Any]) -> Any:
    """What is kept at `path`, or None where there is nothing that this machine can use."""
    try:
        data = path.read_bytes()
        code = data[_CHECKSUM:]
        if data[:_CHECKSUM] != zlib.crc32(code).to_bytes(_CHECKSUM, "little"):
            return None
        return core().import_model(code, "CPU", config)
    except (OSError, RuntimeError):
        return None


def _keep(path: Path, found: Any) -> None:
    """Keep machine code for the next process; a store that cannot be written to is only slower."""
    aside = ""
    try:
        code = bytes(found.export_model().getbuffer())
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            aside = file.name
            file.write(zlib.crc32(code).to_bytes(_CHECKSUM, "little"))
            file.write(code)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except (OSError, RuntimeError):
        with suppress(OSError):
            Path(aside).unlink(missing_ok=True)
