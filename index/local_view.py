"""What a reader of the local index has open: one generation's segments, and the nearest descriptors over all of them.

Knows segments, files and arrays. Must not know votes, identities or how anything comes to be written.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid.errors import IndexStale, SnapshotCorrupt
from reid.index import lists, local_files, segments, snapshot
from reid.index.local_files import LocalManifest, LocalSegment
from reid.index.segments import Ids

SCALE = 512.0
"""Descriptor bytes per unit of RootSIFT: distances are reported in units of RootSIFT."""

Descriptors = NDArray[np.uint8]
Codes = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One open segment; `first` is the number of its first photo in the view."""

    record: LocalSegment
    lists: lists.Lists
    ids: Ids
    starts: NDArray[np.int64]
    dead: NDArray[np.uint32]
    first: int


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One generation, open. Its photos are numbered through its parts, removed ones among them."""

    manifest: LocalManifest
    stamp: tuple[int, ...]
    cells: lists.Cells | None
    parts: tuple[Part, ...]


def photos(view: View) -> int:
    """How many are numbered."""
    return sum(part.record.photos for part in view.parts)


def neighbours(
    view: View,
    query: Descriptors,
    k: int,
    probes: int,
    allow: AbstractSet[str] | None,
    exclude: AbstractSet[str] | None,
) -> tuple[NDArray[np.float32], Codes]:
    """The k nearest live descriptors `(Q, k)`: distances in units of RootSIFT, ascending, and the photos that own
    them; −1 for none."""
    distance = np.full((len(query), k), np.inf, np.float32)
    photo = np.full((len(query), k), -1, np.int32)
    if view.cells is None or not len(query):
        return distance, photo
    coarse = lists.nearest_cells(view.cells, query, probes)
    for part in view.parts:
        out = _left_out(part, allow, exclude)
        if out is not None and out.all():
            continue
        squared, row = lists.search(part.lists, query, k, coarse, None if out is None else (part.starts, ~out))
        owner = np.searchsorted(part.starts, row, side="right").astype(np.int32) - 1 + np.int32(part.first)
        owner[row < 0] = -1
        far = np.where(row < 0, np.inf, np.sqrt(np.maximum(squared, 0)) / SCALE).astype(np.float32)
        both, owners = np.concatenate([distance, far], axis=1), np.concatenate([photo, owner], axis=1)
        order = np.argsort(both, axis=1, kind="stable")[:, :k]
        distance, photo = np.take_along_axis(both, order, axis=1), np.take_along_axis(owners, order, axis=1)
    return distance, photo


def _left_out(part: Part, allow: AbstractSet[str] | None, exclude: AbstractSet[str] | None) -> NDArray[np.bool_] | None:
    """`(photos,) bool`: dead or filtered out; None where every photo counts."""
    out = np.zeros(part.record.photos, np.bool_)
    out[part.dead] = True
    if allow is not None:
        out |= ~np.isin(part.ids, segments.encoded(allow))
    if exclude:
        out |= np.isin(part.ids, segments.encoded(exclude))
    return out if out.any() else None


def open_view(folder: Path, before: View | None, fingerprint: str | None) -> View:
    """The present generation; what `before` has open is taken over."""
    for attempt in range(5):
        stamp = stamp_of(folder)
        manifest = local_files.read_manifest(folder)
        if fingerprint is not None and manifest.fingerprint != fingerprint:
            raise IndexStale(
                f"made by description {manifest.fingerprint}, not {fingerprint}",
                source=str(folder),
                next_step="bring it up to date: `reid reindex`",
            )
        known = {} if before is None else {part.record.name: part.lists for part in before.parts}
        try:
            return _opened(folder, manifest, stamp, known)
        except (SnapshotCorrupt, FileNotFoundError) as error:
            if stamp_of(folder) != stamp and attempt < 4:
                continue  # a writer replaced the manifest and swept files between our reading it and opening them
            if isinstance(error, SnapshotCorrupt):
                raise
            raise SnapshotCorrupt(
                f"a file is missing: {error.filename}", source=str(folder), next_step=snapshot.REBUILD
            ) from error
    raise AssertionError("unreachable")


def _opened(folder: Path, manifest: LocalManifest, stamp: tuple[int, ...], known: Mapping[str, lists.Lists]) -> View:
    cells = None
    if manifest.centroids is not None:
        array = snapshot.open_array(folder, manifest.centroids, "<f4", (manifest.lists, lists.DIM))
        cells = lists.Cells(np.array(array, np.float32))
    parts: list[Part] = []
    first = 0
    for record in manifest.segments:
        ids = snapshot.open_array(folder, record.ids, "S", (record.photos,))
        starts = np.array(snapshot.open_array(folder, record.starts, "<i8", (record.photos + 1,)))
        dead = np.zeros(0, np.uint32)
        if record.dead is not None:
            dead = np.array(snapshot.open_array(folder, record.dead, "<u4", (record.dead_photos,)))
        snapshot.check_size(folder, record.lists)
        opened = known.get(record.name) or lists.opened(folder / record.lists.name, record.descriptors)
        parts.append(Part(record, opened, ids, starts, dead, first))
        first += record.photos
    return View(manifest, stamp, cells, tuple(parts))


def stamp_of(folder: Path) -> tuple[int, ...]:
    """Changes whenever the manifest is replaced."""
    try:
        facts = (folder / snapshot.MANIFEST).stat()
    except FileNotFoundError:
        return ()
    return facts.st_mtime_ns, facts.st_ino, facts.st_size
