"""Merging a gallery's segments into one while others go on committing.

The merge reads one generation and writes aside; when it is put in place, what has happened since is laid over it:
rows that died meanwhile are marked dead, and so are all rows of segments that another writer has merged elsewhere,
for their live rows live on there. Knows views and files; holds no lock. Errors: `SnapshotCorrupt`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid.index import backends, segments, snapshot
from reid.index.segments import Rows
from reid.index.snapshot import Manifest, SegmentRecord
from reid.index.view import View


def is_tidy(manifest: Manifest, backend: str) -> bool:
    """Whether merging, and building `backend`'s structure, would write what is there already."""
    if not manifest.segments:
        return True
    if len(manifest.segments) > 1 or manifest.segments[0].dead_rows:
        return False
    built = backends.BACKENDS[backend].build is not None and manifest.segments[0].rows >= backends.STRUCTURE_ROWS
    return manifest.segments[0].structure_kind == (backend if built else "")


def with_structure(place: Path, record: SegmentRecord, view: View, chosen: str) -> SegmentRecord:
    """The freshly written segment in `place`, with the backend's structure built beside it if it is large enough."""
    build = backends.BACKENDS[chosen].build
    if build is None or record.rows < backends.STRUCTURE_ROWS:
        return record
    name = f"{record.name}.{chosen}"
    build(segments.open_segment(place, record, view.manifest.dim).vectors, place / name)
    return replace(record, structure=snapshot.record_file(place, name), structure_kind=chosen)


def overtaken(rows: Rows, before: View, now: View) -> NDArray[np.int64]:
    """Which of `rows`, merged from `before`, count no longer: they died, or their segment was merged elsewhere."""
    dead = np.zeros(len(rows.ids), np.bool_)
    present = {part.record.name: part for part in now.parts}
    for number, part in enumerate(before.parts):
        mine = rows.source == number
        if part.record.name not in present:
            dead |= mine
        else:
            died = np.setdiff1d(present[part.record.name].dead, part.dead)
            dead |= mine & np.isin(rows.row, died)
    return np.flatnonzero(dead)
