"""One generation of a gallery, open for reading: its manifest, its mapped segments, and where each id is.

A view never changes; a commit makes a new one. Readers need no lock: a manifest is read whole, its files are mapped,
and where a writer swept a file between the two the newer manifest is read instead. Knows files and arrays; nothing of
writing. Errors: `IndexStale`, `SnapshotCorrupt`, `GalleryError` where there is no gallery.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid.errors import GalleryError, IndexStale, SnapshotCorrupt
from reid.index import segments, snapshot
from reid.index.segments import Ids, IdSet, Segment
from reid.index.snapshot import Manifest

REINDEX = "bring it up to date: `reid reindex`"
_TRIES = 5  # generations that may pass while one is being opened


@dataclass(frozen=True, slots=True)
class View:
    """`masks[i] (n,) bool` marks the live rows of `parts[i]`, None where all are.

    `stamp` tells this manifest from a later one.
    """

    manifest: Manifest
    stamp: tuple[int, ...]
    parts: tuple[Segment, ...]
    masks: tuple[NDArray[np.bool_] | None, ...]


def open_view(folder: Path, fingerprint: str | None, before: View | None = None) -> View:
    """The present generation, with the segments that `before` has open already.

    `IndexStale` unless it was made by `fingerprint`; None takes any.
    """
    known = {} if before is None else {part.record: part for part in before.parts}
    for attempt in range(_TRIES):
        seen = stamp(folder)
        manifest = snapshot.read_manifest(folder)
        if fingerprint is not None and manifest.fingerprint != fingerprint:
            raise IndexStale(
                f"made by model {manifest.fingerprint}, not {fingerprint}", source=str(folder), next_step=REINDEX
            )
        try:
            parts = tuple(
                known.get(record) or segments.open_segment(folder, record, manifest.dim) for record in manifest.segments
            )
        except FileNotFoundError as error:  # damage, unless a writer has replaced the manifest since
            if stamp(folder) == seen or attempt == _TRIES - 1:
                raise missing(error) from error
        else:
            return View(manifest, seen, parts, tuple(part.live_mask() for part in parts))
    raise AssertionError("the last try returns or raises")


def stamp(folder: Path) -> tuple[int, ...]:
    """Changes whenever the manifest is replaced."""
    try:
        facts = (folder / snapshot.MANIFEST).stat()
    except FileNotFoundError:
        return ()
    return facts.st_mtime_ns, facts.st_ino, facts.st_size


def locate(view: View, ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Part and row of each live id, −1 where it is not there."""
    part_of, row_of = np.full(len(ids), -1), np.full(len(ids), -1)
    for number, (part, mask) in enumerate(zip(view.parts, view.masks, strict=True)):
        rows = segments.find(part.ids, ids)
        found = (rows >= 0) if mask is None else (rows >= 0) & mask[rows]
        part_of[found], row_of[found] = number, rows[found]
    return part_of, row_of


def exclusions(
    exclude: AbstractSet[str] | IdSet | Sequence[AbstractSet[str]] | None, n_queries: int
) -> tuple[IdSet | None, Sequence[AbstractSet[str]] | None]:
    """What all queries exclude, and what each excludes."""
    if exclude is None or isinstance(exclude, IdSet):
        return exclude, None
    if isinstance(exclude, AbstractSet):
        return IdSet(exclude), None
    if len(exclude) != n_queries or not all(isinstance(each, AbstractSet) for each in exclude):
        raise GalleryError(
            f"{len(exclude)} exclusions for {n_queries} queries",
            next_step="give one set of ids, or a set for each query",
        )
    return None, exclude


def filtered(
    part: Segment, live: NDArray[np.bool_] | None, allow: IdSet | None, exclude: IdSet | None
) -> NDArray[np.bool_] | None:
    """The rows of `part` that a search may find, None for all."""
    if allow is None and exclude is None:
        return live
    if allow is None:
        mask = np.ones(len(part.ids), np.bool_) if live is None else live.copy()
    else:
        mask = np.zeros(len(part.ids), np.bool_)
        mask[allow.rows(part)] = True
        if live is not None:
            mask &= live
    if exclude is not None:
        mask[exclude.rows(part)] = False
    return mask


def missing(error: FileNotFoundError) -> SnapshotCorrupt:
    """The absence of a file that the manifest names, as what it is."""
    return SnapshotCorrupt("a file is missing", source=str(error.filename), next_step=snapshot.REBUILD)
