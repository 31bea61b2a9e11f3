"""What a local index is to hold → segments beside the present ones, and the manifest that names them.

A commit writes one segment of what is new and of those segments of like size; where the cells are made anew, all of
them. Nothing is in force before the caller replaces the manifest. Knows segments, files and arrays. Must not know
votes, identities, locks or what anybody waits for.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid.index import lists, segments, snapshot
from reid.index.local_files import LocalManifest, LocalSegment
from reid.index.local_view import Descriptors, Part, View
from reid.index.segments import Ids

_PHOTO_WEIGHT = 8  # a photo counts as this many rows of a vector segment when segments are merged by size


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Whether the cells are made anew (`retrain`), for how many descriptors (`expected`, where that is more than there
    are) and from what `sample` (empty: from what there is).
    """

    retrain: bool = False
    expected: int = 0
    sample: tuple[Descriptors, ...] = ()


def committed(folder: Path, view: View, touched: Ids, new: Mapping[str, Descriptors], plan: Plan) -> LocalManifest:
    """Write what `new` adds, without the photos `touched` in what there was; the manifest to be."""
    parts = [_with_dead(folder, part, touched) for part in view.parts]
    gone = list(range(len(parts)))
    if not plan.retrain:
        live = [part.record.live * _PHOTO_WEIGHT for part in parts]
        gone = list(segments.to_merge(live, len(new) * _PHOTO_WEIGHT))
    return _written(folder, view, parts, gone, new, plan)


def merged(folder: Path, view: View, plan: Plan) -> LocalManifest:
    """Write one segment of all there is; the manifest to be."""
    return _written(folder, view, view.parts, range(len(view.parts)), {}, plan)


def _written(
    folder: Path,
    view: View,
    parts: Sequence[Part],
    gone: Sequence[int],
    new: Mapping[str, Descriptors],
    plan: Plan,
) -> LocalManifest:
    """Write the photos of the parts `gone` and the `new` ones as a segment; the manifest with that in their place."""
    sources = [lists.unpacked(parts[at].lists, parts[at].starts, parts[at].dead) for at in gone]
    ids = [np.delete(parts[at].ids, parts[at].dead) for at in gone]
    arrays = [array for source, _ in sources for array in source] + list(new.values())
    known = [cell for _, cells in sources for cell in cells] if not plan.retrain else []
    all_ids = np.concatenate([*ids, segments.encoded(new)])
    manifest, cells = view.manifest, view.cells
    if plan.retrain:
        count = max(plan.expected, sum(len(array) for array in arrays))
        cells = lists.trained(plan.sample or arrays, count)
        record = None
        if cells is not None:
            name = f"seg-{secrets.token_hex(6)}.centroids.npy"
            record = snapshot.write_array(folder, name, "<f4", cells.centroids.shape, [cells.centroids])
        manifest = replace(manifest, centroids=record, lists=0 if cells is None else cells.count, trained_on=count)
    records = [part.record for at, part in enumerate(parts) if at not in gone]
    if len(all_ids):
        records.append(_write_segment(folder, cells, all_ids, arrays, known))
    return replace(manifest, segments=tuple(records), generation=manifest.generation + 1)


def _with_dead(folder: Path, part: Part, touched: Ids) -> Part:
    """The part without the photos `touched`; the same one where it has none of them."""
    dead = np.union1d(part.dead, np.flatnonzero(np.isin(part.ids, touched))).astype(np.uint32)
    if len(dead) == len(part.dead):
        return part
    name = f"{part.record.name}.dead-{secrets.token_hex(4)}.npy"
    file = snapshot.write_array(folder, name, "<u4", dead.shape, [dead])
    return replace(part, record=replace(part.record, dead=file, dead_photos=len(dead)), dead=dead)


def _write_segment(
    folder: Path,
    cells: lists.Cells | None,
    ids: Ids,
    arrays: Sequence[Descriptors],
    known: Sequence[NDArray[np.int32] | None],
) -> LocalSegment:
    """Write photos and their descriptors as a new segment, durably; `known` as in `lists.write`."""
    name = f"seg-{secrets.token_hex(6)}"
    starts = np.concatenate([[0], np.cumsum([len(array) for array in arrays], dtype=np.int64)])
    lists.write(folder / f"{name}.lists.faiss", cells, arrays, known)
    width = f"S{max(1, int(np.char.str_len(ids).max()))}"
    return LocalSegment(
        name,
        len(ids),
        int(starts[-1]),
        snapshot.record_file(folder, f"{name}.lists.faiss"),
        snapshot.write_array(folder, f"{name}.ids.npy", width, (len(ids),), [ids.astype(width)]),
        snapshot.write_array(folder, f"{name}.starts.npy", "<i8", starts.shape, [starts]),
    )
