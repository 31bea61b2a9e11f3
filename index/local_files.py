"""The local index's bytes on disk: immutable files, one manifest that is replaced whole.

A local index is a directory:

    MANIFEST.json          what it is; replaced atomically
    LOCK                   held by the one writer
    seg-….centroids.npy    `(lists, 128) <f4`: the coarse cells that all segments share
    seg-….lists.faiss      faiss IVF-SQ8 inverted lists over the segment's descriptors: 128 bytes and an int64 row each;
                           memory-mapped when searched. Its own quantiser is empty: the cells above stand in its place
    seg-….ids.npy          `(photos,) S<w>`, UTF-8 padded with NUL, in the order they were added
    seg-….starts.npy       `(photos + 1,) <i8`: photo i owns descriptor rows starts[i] to starts[i + 1]
    seg-….dead-….npy       `(m,) <u4`, ascending: photos of the segment that were removed or replaced since

Every live photo id is in exactly one segment. The manifest holds `format`, `kind`, `fingerprint` (of the description
that made the descriptors), `revision`, `generation`, `trained_on` (descriptors there were when the cells were made),
the segments and files with size and sha256, and `sha256` over itself without that key. A file is on disk before a
manifest names it. Knows files and arrays; nothing of searching. Errors: `SnapshotCorrupt`, `GalleryError`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reid.errors import GalleryError, SnapshotCorrupt
from reid.index import snapshot
from reid.index.snapshot import FileRecord

FORMAT = 1
KIND = "local"


@dataclass(frozen=True, slots=True)
class LocalSegment:
    """One immutable set of photos; `dead_photos` counts the entries of `dead`."""

    name: str
    photos: int
    descriptors: int
    lists: FileRecord
    ids: FileRecord
    starts: FileRecord
    dead: FileRecord | None = None
    dead_photos: int = 0

    @property
    def live(self) -> int:
        """Photos that count."""
        return self.photos - self.dead_photos

    @property
    def files(self) -> list[FileRecord]:
        """All files of the segment."""
        return [each for each in (self.lists, self.ids, self.starts, self.dead) if each is not None]


@dataclass(frozen=True, slots=True)
class LocalManifest:
    """What the index is at one moment."""

    fingerprint: str
    revision: int = 0
    generation: int = 0
    trained_on: int = 0
    centroids: FileRecord | None = None
    lists: int = 0
    segments: tuple[LocalSegment, ...] = ()

    @property
    def count(self) -> int:
        """Live photos."""
        return sum(each.live for each in self.segments)

    @property
    def descriptors(self) -> int:
        """Descriptors on disk, those of removed photos among them until their segment is merged."""
        return sum(each.descriptors for each in self.segments)

    @property
    def files(self) -> list[FileRecord]:
        """All files."""
        cells = [] if self.centroids is None else [self.centroids]
        return cells + [file for each in self.segments for file in each.files]


def read_manifest(folder: Path) -> LocalManifest:
    """The manifest in `folder`; `GalleryError` where there is none, `SnapshotCorrupt` where its sha256 is not its
    own."""
    path = folder / snapshot.MANIFEST
    try:
        raw = json.loads(path.read_bytes())
        stated = raw.pop("sha256")
        if stated != _digest(raw):
            raise ValueError("its sha256 is another")
        if raw.pop("kind") != KIND:
            raise ValueError("it is not that of a local index")
        if raw.pop("format") != FORMAT:
            raise GalleryError(
                "the local index has another format than this version reads",
                source=str(path),
                next_step=snapshot.REBUILD,
            )
        segments = tuple(_segment(each) for each in raw.pop("segments"))
        return LocalManifest(**{**raw, "centroids": _file(raw["centroids"]), "segments": segments})
    except FileNotFoundError as error:
        raise GalleryError("no local index here", source=str(folder), next_step="make one: `reid reindex`") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SnapshotCorrupt(
            f"the manifest is damaged: {error}", source=str(path), next_step=snapshot.REBUILD
        ) from error


def write_manifest(folder: Path, manifest: LocalManifest) -> None:
    """Replace the manifest in one step; what it names must be on disk already. Durable when it returns."""
    raw: dict[str, Any] = {"format": FORMAT, "kind": KIND, **asdict(manifest)}
    raw["sha256"] = _digest(raw)
    aside = folder / f"{snapshot.MANIFEST}.{secrets.token_hex(4)}.tmp"
    with aside.open("wb") as file:
        file.write(json.dumps(raw, indent=1, sort_keys=True).encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, folder / snapshot.MANIFEST)
    snapshot.force_folder(folder)


def sweep(folder: Path, manifest: LocalManifest) -> None:
    """Delete what `manifest`, the current one, does not name. Call it under the writers' lock."""
    named = {file.name for file in manifest.files}
    for path in folder.iterdir():
        if (path.name.startswith("seg-") and path.name not in named) or path.name.endswith(".tmp"):
            with suppress(OSError):
                path.unlink()


def _digest(raw: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _file(raw: dict[str, Any] | None) -> FileRecord | None:
    return FileRecord(**raw) if raw else None


def _segment(raw: dict[str, Any]) -> LocalSegment:
    return LocalSegment(**{**raw, **{key: _file(raw[key]) for key in ("lists", "ids", "starts", "dead")}})
