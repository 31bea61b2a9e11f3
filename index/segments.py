"""Segments: ascending ids beside half-precision rows, found by binary search, merged by size.

A segment never changes. Adding writes a small new one; an id that is replaced or removed is marked dead in the
segment that held it; segments of like size are merged, so that each row is rewritten a logarithmic number of times
and few files stay open. Ids are compared as UTF-8 bytes, which is also the order of their code points. Knows arrays
and files; nothing of searching.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.errors import GalleryError, SnapshotCorrupt
from reid.index import snapshot
from reid.index.snapshot import SegmentRecord

LONGEST_ID = 255  # bytes of UTF-8
FAN = 8  # segments of one tier that are merged into one; a tier is FAN times the one below
FROZEN = 32_768  # rows from which on a segment is left to `compact`: bounds what one commit can cost
_CHUNK = 8192  # rows copied at a time when merging

Ids = NDArray[np.bytes_]
Halves = NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Segment:
    """An open segment: `vectors (n, D) float16` and `ids (n,)` bytes memory-mapped, `dead (m,)` ascending rows."""

    record: SegmentRecord
    vectors: Halves
    ids: Ids
    dead: NDArray[np.uint32]

    def live_mask(self) -> NDArray[np.bool_] | None:
        """`(n,) bool`, or None where every row is alive."""
        if not len(self.dead):
            return None
        mask = np.ones(len(self.ids), np.bool_)
        mask[self.dead] = False
        return mask

    def live_rows(self) -> NDArray[np.int64]:
        """The rows that count, ascending."""
        mask = self.live_mask()
        return np.arange(len(self.ids)) if mask is None else np.flatnonzero(mask)


def open_segment(folder: Path, record: SegmentRecord, dim: int) -> Segment:
    """Map the files of `record`; reads next to nothing.

    `SnapshotCorrupt` where a file has another size than recorded.
    """
    vectors = snapshot.open_array(folder, record.vectors, "<f2", (record.rows, dim))
    ids = snapshot.open_array(folder, record.ids, "S", (record.rows,))
    if record.dead is None:
        dead = np.empty(0, np.uint32)
    else:
        dead = snapshot.open_array(folder, record.dead, "<u4", (record.dead_rows,))
        if len(dead) and (dead[-1] >= record.rows or not (np.diff(dead.astype(np.int64)) > 0).all()):
            raise SnapshotCorrupt(
                "rows that cannot be", source=str(folder / record.dead.name), next_step=snapshot.REBUILD
            )
    if record.structure is not None:
        snapshot.check_size(folder, record.structure)
    return Segment(record, vectors, ids, dead)


def encoded(ids: Iterable[str]) -> Ids:
    """Ids as an array of UTF-8 bytes. `GalleryError` for one that is empty, too long, or holds NUL."""
    raw = [each.encode(errors="surrogatepass") for each in ids]
    for each in raw:
        if not 0 < len(each) <= LONGEST_ID or b"\0" in each or b"\xed" in each and not _is_text(each):
            raise GalleryError(
                f"{each!r} cannot be an id", next_step=f"ids are 1 to {LONGEST_ID} bytes of UTF-8 without NUL"
            )
    return np.array(raw, np.bytes_) if raw else np.empty(0, "S1")


def _is_text(raw: bytes) -> bool:
    """Whether these bytes are UTF-8; lone surrogates, as in names of files that are not, are none."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def decoded(ids: Ids, source: str = "") -> list[str]:
    """The inverse of `encoded`; `SnapshotCorrupt` where bytes are no UTF-8."""
    try:
        return [each.decode() for each in ids.tolist()]
    except UnicodeDecodeError as error:
        raise SnapshotCorrupt("an id is not UTF-8", source=source, next_step=snapshot.REBUILD) from error


def find(ids: Ids, wanted: Ids) -> NDArray[np.int64]:
    """For each of `wanted (m,)` its row in the ascending `ids (n,)`, −1 where it is not there."""
    width = ids.dtype.itemsize
    fits = np.char.str_len(wanted) <= width if wanted.dtype.itemsize > width else np.ones(len(wanted), np.bool_)
    keys = wanted.astype(ids.dtype)
    rows = np.minimum(np.searchsorted(ids, keys), len(ids) - 1).astype(np.int64)
    return np.where(fits & (ids[rows] == keys), rows, -1)


class IdSet:
    """A set of ids that remembers in which rows of a segment it found them: a filter to be used more than once."""

    def __init__(self, ids: AbstractSet[str]) -> None:
        self._ids = np.sort(encoded(ids))
        self._rows: dict[str, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def rows(self, segment: Segment) -> NDArray[np.int64]:
        """The rows of `segment`, dead ones among them, that hold one of the ids; ascending."""
        name = segment.record.name
        if name not in self._rows:
            rows = find(segment.ids, self._ids)
            self._rows[name] = rows[rows >= 0]
        return self._rows[name]

    def forget(self, names: AbstractSet[str]) -> None:
        """Drop what is remembered of segments other than `names`."""
        for name in self._rows.keys() - names:
            self._rows.pop(name, None)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a commit does: ascending ids `touched` lose their present row, ascending `ids` gain one of `vectors`."""

    touched: Ids
    ids: Ids
    vectors: Halves


def fold(operations: Sequence[tuple[Ids, Halves | None]], dim: int) -> Changes:
    """One `Changes` from additions `(ids, vectors)` and removals `(ids, None)` in order.

    The last word on an id counts.
    """
    if not operations:
        return Changes(np.empty(0, "S1"), np.empty(0, "S1"), np.empty((0, dim), np.float16))
    ids = np.concatenate([each for each, _ in operations])
    rows = np.concatenate(
        [np.full(len(each), -1) if vectors is None else np.arange(len(each)) for each, vectors in operations]
    )
    operation = np.repeat(np.arange(len(operations)), [len(each) for each, _ in operations])
    order = np.argsort(ids, kind="stable")
    last = np.append(ids[order][1:] != ids[order][:-1], True) if len(ids) else np.empty(0, np.bool_)
    final = order[last]
    gained = final[rows[final] >= 0]
    vectors = np.empty((len(gained), dim), np.float16)
    for number, (_, source) in enumerate(operations):
        if source is not None:
            mine = operation[gained] == number
            vectors[mine] = source[rows[gained[mine]]]
    return Changes(ids[final], ids[gained], vectors)


@dataclass(frozen=True, slots=True)
class Rows:
    """Ascending, unique `ids (n,)` whose vectors are `sources[source[i]][row[i]]`: a merge before it is written."""

    ids: Ids
    source: NDArray[np.intp]
    row: NDArray[np.int64]
    sources: tuple[Halves, ...]

    def chunks(self) -> Iterator[Halves]:
        """The vectors in order, some thousand rows at a time."""
        for low in range(0, len(self.ids), _CHUNK):
            source, row = self.source[low : low + _CHUNK], self.row[low : low + _CHUNK]
            chunk = np.empty((len(row), self.sources[0].shape[1]), np.float16)
            for number in np.unique(source):
                mine = source == number
                chunk[mine] = self.sources[number][row[mine]]
            yield chunk


def merged(segments: Sequence[Segment], changes: Changes | None = None) -> Rows:
    """The live rows of `segments`, which share no live id, and of `changes`, by ascending id."""
    parts = [(segment.ids[live], live, segment.vectors) for segment in segments for live in [segment.live_rows()]]
    if changes is not None:
        parts.append((changes.ids, np.arange(len(changes.ids)), changes.vectors))
    ids = np.concatenate([each for each, _, _ in parts])
    source = np.repeat(np.arange(len(parts)), [len(each) for each, _, _ in parts])
    row = np.concatenate([rows for _, rows, _ in parts])
    order = np.argsort(ids, kind="stable")
    return Rows(ids[order], source[order], row[order], tuple(vectors for _, _, vectors in parts))


def write_segment(folder: Path, rows: Rows, dim: int) -> SegmentRecord:
    """Write a segment's vectors and ids into `folder`, durably, under a new name."""
    name = f"seg-{secrets.token_hex(6)}"
    vectors = snapshot.write_array(folder, f"{name}.vectors.npy", "<f2", (len(rows.ids), dim), rows.chunks())
    width = f"S{max(1, int(np.char.str_len(rows.ids).max()))}"
    ids = snapshot.write_array(folder, f"{name}.ids.npy", width, (len(rows.ids),), [rows.ids.astype(width)])
    return SegmentRecord(name, len(rows.ids), vectors, ids)


def with_dead(folder: Path, segment: Segment, rows: NDArray[Any]) -> Segment:
    """The segment with `rows` dead as well, recorded on disk; the same one where they are already."""
    dead = np.union1d(segment.dead, rows).astype(np.uint32)
    if len(dead) == len(segment.dead):
        return segment
    name = f"{segment.record.name}.dead-{secrets.token_hex(4)}.npy"
    file = snapshot.write_array(folder, name, "<u4", dead.shape, [dead])
    return Segment(replace(segment.record, dead=file, dead_rows=len(dead)), segment.vectors, segment.ids, dead)


def committed(folder: Path, parts: Sequence[Segment], changes: Changes, dim: int) -> list[SegmentRecord]:
    """Write what `changes` asks for beside the present files; the records of the segments to be."""
    kept = list(parts)
    if len(changes.touched):
        for at, part in enumerate(kept):
            rows = find(part.ids, changes.touched)
            kept[at] = with_dead(folder, part, rows[rows >= 0])
    plain = [at for at, part in enumerate(kept) if part.record.structure is None]
    gone = {plain[at] for at in to_merge([kept[at].record.live for at in plain], len(changes.ids))}
    gone |= {at for at, part in enumerate(kept) if part.record.live == 0}
    records = [part.record for at, part in enumerate(kept) if at not in gone]
    rows_to_write = merged([kept[at] for at in sorted(gone)], changes)
    if len(rows_to_write.ids):
        records.append(write_segment(folder, rows_to_write, dim))
    return records


def to_merge(live_counts: Sequence[int], new: int) -> list[int]:
    """Which segments, by position, a commit of `new` rows merges with them.

    Size-tiered: when FAN segments of one tier have come together, the new one among them, they become one, which may
    complete the next tier. Segments of FROZEN rows or more are left alone, empty ones always go.
    """
    empty = [at for at, live in enumerate(live_counts) if live == 0]
    chosen: list[int] = []
    rows = new
    while 0 < rows < FROZEN:
        tier = _tier(rows)
        lower = [at for at, live in enumerate(live_counts) if live and at not in chosen and _tier(live) <= tier]
        if len(lower) + 1 < FAN:
            break
        chosen += lower
        rows += sum(live_counts[at] for at in lower)
    return sorted(empty + chosen)


def _tier(rows: int) -> int:
    tier = 0
    while rows >= FAN:
        rows //= FAN
        tier += 1
    return tier
