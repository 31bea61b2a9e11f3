"""The gallery's bytes on disk: files that never change, one manifest that is replaced whole, one lock for writers.

A gallery is a directory:

    MANIFEST.json          what the gallery is; replaced atomically, so a reader sees the old one or the new one
    LOCK                   held by the one writer
    seg-….vectors.npy      `(rows, dim) <f2`, unit rows rounded to half precision
    seg-….ids.npy          `(rows,) S<w>`, UTF-8 padded with NUL, ascending: row i is the vector of ids[i]
    seg-….dead-….npy       `(m,) <u4`, ascending: rows of the segment that were removed or replaced since
    seg-….hnsw, seg-….ivf  faiss's search structure over the segment's rows, where the backend has one
    build-…/               a compaction under way; swept by the next writer if its owner died

Every live id is in exactly one segment. numpy alone reads it all:

    manifest = json.load(open("MANIFEST.json"))
    for segment in manifest["segments"]:
        vectors = numpy.load(segment["vectors"]["name"], mmap_mode="r")
        ids = numpy.load(segment["ids"]["name"])
        alive = numpy.ones(len(ids), bool)
        if segment["dead"]:
            alive[numpy.load(segment["dead"]["name"])] = False

The manifest holds `format`, `fingerprint` (of the model that made the vectors), `dim`, `metric` (`cosine`: the inner
product of unit rows), `backend`, `count` (live rows), `revision` (of the catalogue that the gallery reflects),
`generation` (how often it was replaced), for each segment `name`, `rows`, `structure_kind` and its files with `bytes`
and `sha256`, and `sha256` over itself: of its JSON without that key, keys sorted, no spaces.

A file is written and forced to disk before a manifest names it, and deleted after no manifest names it. Knows files and
arrays; nothing of searching. Errors: `SnapshotCorrupt`, `GalleryError`, `StoreBusy`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.errors import GalleryError, SnapshotCorrupt, StoreBusy

FORMAT = 1
MANIFEST = "MANIFEST.json"
LOCK = "LOCK"
REBUILD = "rebuild it: `reid reindex`"
_POLL = 0.02  # seconds between two tries for the lock
_CHUNK = 1 << 22  # bytes hashed at a time


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file as it was written: its name in the gallery's directory, size in bytes, sha256 in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """One immutable set of rows.

    `dead_rows` counts the entries of `dead`; `structure_kind` names the backend of `structure`.
    """

    name: str
    rows: int
    vectors: FileRecord
    ids: FileRecord
    dead: FileRecord | None = None
    dead_rows: int = 0
    structure: FileRecord | None = None
    structure_kind: str = ""

    @property
    def live(self) -> int:
        """Rows that count."""
        return self.rows - self.dead_rows

    @property
    def files(self) -> list[FileRecord]:
        """All files of the segment."""
        return [file for file in (self.vectors, self.ids, self.dead, self.structure) if file is not None]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the gallery is at one moment. Frozen: a change is a new manifest."""

    fingerprint: str
    dim: int
    backend: str
    revision: int = 0
    generation: int = 0
    segments: tuple[SegmentRecord, ...] = ()

    @property
    def count(self) -> int:
        """Live rows of all segments."""
        return sum(segment.live for segment in self.segments)

    @property
    def files(self) -> list[FileRecord]:
        """All files of all segments."""
        return [file for segment in self.segments for file in segment.files]


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`.

    `GalleryError` where there is none, `SnapshotCorrupt` where its sha256 is not its own.
    """
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_bytes())
        stated = raw.pop("sha256")
        if stated != _digest(raw):
            raise ValueError("its sha256 is another")
        if raw["format"] != FORMAT:
            raise GalleryError(
                f"format {raw['format']} is not the format {FORMAT} that this version reads",
                source=str(path),
                next_step=REBUILD,
            )
        segments = tuple(_segment(each) for each in raw["segments"])
        manifest = Manifest(
            raw["fingerprint"], raw["dim"], raw["backend"], raw["revision"], raw["generation"], segments
        )
        if manifest.count != raw["count"]:
            raise ValueError(f"it counts {raw['count']} rows and lists {manifest.count}")
    except FileNotFoundError as error:
        raise GalleryError("no gallery here", source=str(folder), next_step="make one: `reid reindex`") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SnapshotCorrupt(f"the manifest is damaged: {error}", source=str(path), next_step=REBUILD) from error
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest in one step; what it names must be on disk already. Durable when it returns."""
    raw = {"format": FORMAT, "metric": "cosine", "count": manifest.count, **asdict(manifest)}
    raw["sha256"] = _digest(raw)
    aside = folder / f"{MANIFEST}.{secrets.token_hex(4)}.tmp"
    with aside.open("wb") as file:
        file.write(json.dumps(raw, indent=1, sort_keys=True).encode())
        _force(file)
    os.replace(aside, folder / MANIFEST)
    force_folder(folder)


def _digest(raw: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _segment(raw: dict[str, Any]) -> SegmentRecord:
    files = {key: FileRecord(**raw[key]) if raw[key] else None for key in ("vectors", "ids", "dead", "structure")}
    return SegmentRecord(**{**raw, **files})


def write_array(
    folder: Path, name: str, dtype: str, shape: tuple[int, ...], chunks: Iterable[NDArray[Any]]
) -> FileRecord:
    """Write `chunks`, together an array of `shape`, as `folder/name` in numpy's format, and force it to disk."""
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    digest = hashlib.sha256(header.getvalue())
    size = len(header.getvalue())
    with (folder / name).open("wb") as file:
        file.write(header.getvalue())
        for chunk in chunks:
            data = np.ascontiguousarray(chunk, dtype).view(np.uint8).reshape(-1).data
            digest.update(data)
            file.write(data)
            size += len(data)
        _force(file)
    if size != len(header.getvalue()) + int(np.prod(shape)) * np.dtype(dtype).itemsize:
        raise AssertionError(f"{name}: the chunks do not make up {shape}")
    return FileRecord(name, size, digest.hexdigest())


def record_file(folder: Path, name: str) -> FileRecord:
    """The record of a file that someone else wrote, forced to disk."""
    with (folder / name).open("rb+") as file:
        _force(file)
        return FileRecord(name, os.fstat(file.fileno()).st_size, _hash(file))


def open_array(folder: Path, record: FileRecord, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The recorded array, memory-mapped. `SnapshotCorrupt` unless size, type and shape are as recorded."""
    check_size(folder, record)
    path = folder / record.name
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise SnapshotCorrupt(f"not an array: {error}", source=str(path), next_step=REBUILD) from error
    if array.shape != shape or array.dtype.kind != np.dtype(dtype).kind or (dtype != "S" and array.dtype != dtype):
        raise SnapshotCorrupt(
            f"holds {array.shape} {array.dtype}, recorded {shape} {dtype}", source=str(path), next_step=REBUILD
        )
    return array.view(np.ndarray)


def check_size(folder: Path, record: FileRecord) -> None:
    """`SnapshotCorrupt` unless the file has the recorded size; `FileNotFoundError` where it is gone."""
    size = (folder / record.name).stat().st_size
    if size != record.bytes:
        raise SnapshotCorrupt(
            f"{size} bytes, recorded {record.bytes}", source=str(folder / record.name), next_step=REBUILD
        )


def check_bytes(folder: Path, record: FileRecord) -> None:
    """`SnapshotCorrupt` unless the file's sha256 is the recorded one: reads it all."""
    check_size(folder, record)
    with (folder / record.name).open("rb") as file:
        if _hash(file) != record.sha256:
            raise SnapshotCorrupt(
                "its sha256 is not the recorded one", source=str(folder / record.name), next_step=REBUILD
            )


def _hash(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _force(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def force_folder(folder: Path) -> None:
    """Force the directory's entries to disk, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def lock(path: Path, *, timeout: float) -> Iterator[None]:
    """Hold the lock file `path` for this thread of this process; `StoreBusy` after `timeout` seconds.

    Dies with the process.
    """
    deadline = time.monotonic() + timeout
    with path.open("a+b") as file:
        while not _try_lock(file):
            if time.monotonic() >= deadline:
                raise StoreBusy(
                    f"another process has been writing for more than {timeout:g} s",
                    source=str(path),
                    next_step="wait for it to finish and try again",
                )
            time.sleep(_POLL)
        try:
            yield
        finally:
            _unlock(file)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: Any) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(file: Any) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(file: Any) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _unlock(file: Any) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def building(folder: Path, *, timeout: float) -> Iterator[Path]:
    """A directory for files of a snapshot to come; swept when left, or by the next writer if this process dies."""
    place = folder / f"build-{secrets.token_hex(6)}"
    with ExitStack() as held:
        with lock(folder / LOCK, timeout=timeout):  # no sweep may come between these two
            place.mkdir()
            held.enter_context(lock(place / LOCK, timeout=timeout))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


def sweep(folder: Path, manifest: Manifest) -> None:
    """Delete what `manifest`, the current one, does not name. Call it under the writers' lock.

    Readers of an older manifest keep the files they have open; where the system refuses to delete an open file, a later
    sweep will.
    """
    named = {file.name for file in manifest.files}
    for path in folder.iterdir():
        if path.name.startswith("build-") and path.is_dir():
            with suppress(OSError, StoreBusy):
                with lock(path / LOCK, timeout=0):
                    pass
                shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith("seg-") and path.name not in named or path.name.endswith(".tmp"):
            with suppress(OSError):
                path.unlink()
