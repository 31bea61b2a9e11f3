"""The gallery of vectors: add, remove, commit, search; what it was built by, and how far it has got.

A `Gallery` shows the state of its last commit, refresh or opening. `add` and `remove` wait until `commit` writes
them, in time proportional to what was added and not to what is there. Any number of processes may read while one
writes; a second writer waits for the first, then adds to what the first wrote. Searching is safe from several
threads; adding is for one.

Knows float32 arrays and string ids: no model, no catalogue, no photos. Errors: `GalleryError` for what cannot be
stored or asked, `IndexStale` for vectors of another model, `SnapshotCorrupt` for bytes that are not those written,
`StoreBusy` when another writer does not finish, `MissingExtra` where the gallery is on a GPU that is not there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.errors import GalleryError, IndexStale, SnapshotCorrupt
from reid.index import backends, compaction, rank, segments, snapshot
from reid.index.segments import Halves, Ids, IdSet, Segment
from reid.index.snapshot import Manifest
from reid.index.view import REINDEX, View, exclusions, filtered, locate, missing, open_view, stamp
from reid.records import Candidates

UNIT_TOLERANCE = 1e-3  # how far a row's length may be from 1
WAIT = 60.0  # seconds to wait for another writer


@dataclass(frozen=True, slots=True)
class Checked:
    """What `Gallery.check` found whole."""

    files: int
    bytes: int
    count: int


class Gallery:
    """Unit vectors under string ids, in one directory. Make one with `create`, `open` or `reid.index.staging`."""

    def __init__(self, folder: Path, view: View, timeout: float) -> None:
        """Not for callers: `create` and `open` know how."""
        self._folder = folder
        self._view = view
        self._searchers: dict[tuple[str, str], backends.Searcher] = {}
        self._timeout = timeout
        self._waiting: list[tuple[Ids, Halves | None]] = []
        self._writing = False

    @classmethod
    def create(
        cls, folder: Path, *, fingerprint: str, dim: int, backend: str = "flat", timeout: float = WAIT
    ) -> Gallery:
        """A new, empty gallery in `folder`, which must not hold one. `timeout` is in seconds, for other writers."""
        if dim < 1:
            raise GalleryError(f"vectors of {dim} dimensions", source=str(folder))
        backends.named(backend)
        folder.mkdir(parents=True, exist_ok=True)
        with typed_failures(folder), snapshot.lock(folder / snapshot.LOCK, timeout=timeout):
            if (folder / snapshot.MANIFEST).exists():
                raise GalleryError("there is a gallery here already", source=str(folder), next_step="open it")
            snapshot.write_manifest(folder, Manifest(fingerprint, dim, backend))
        return cls.open(folder, timeout=timeout)

    @classmethod
    def open(
        cls, folder: Path, *, fingerprint: str | None = None, verify: bool = False, timeout: float = WAIT
    ) -> Gallery:
        """The gallery in `folder`: maps its files and reads next to nothing; `verify` reads all and compares sha256.

        `IndexStale` unless it was made by `fingerprint` (None takes any), `SnapshotCorrupt` where a file is missing,
        has another size or, with `verify`, other bytes.
        """
        gallery = cls(folder, open_view(folder, fingerprint), timeout)
        if verify:
            gallery.check()
        return gallery

    @property
    def folder(self) -> Path:
        """Where it lives."""
        return self._folder

    @property
    def fingerprint(self) -> str:
        """Of the model and preprocessing that made the vectors."""
        return self._view.manifest.fingerprint

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._view.manifest.dim

    @property
    def backend(self) -> str:
        """A key of `BACKENDS`."""
        return self._view.manifest.backend

    @property
    def count(self) -> int:
        """Ids that a search can find."""
        return self._view.manifest.count

    @property
    def revision(self) -> int:
        """Of the catalogue that the gallery reflects."""
        return self._view.manifest.revision

    @property
    def generation(self) -> int:
        """How often the gallery was written: two openings with the same generation see the same."""
        return self._view.manifest.generation

    @property
    def loose(self) -> int:
        """Rows that are dead, or that an approximate backend has to scan: what `compact` would tidy up."""
        structured = backends.BACKENDS[self.backend].build is not None
        return sum(
            each.dead_rows + (each.live if structured and each.structure_kind != self.backend else 0)
            for each in self._view.manifest.segments
        )

    def __len__(self) -> int:
        return self.count

    def __contains__(self, id: object) -> bool:
        try:
            return isinstance(id, str) and bool((locate(self._view, segments.encoded([id]))[0] >= 0).all())
        except GalleryError:  # no id could be that
            return False

    def ids(self) -> list[str]:
        """All ids, ascending by code point."""
        parts = [part.ids[part.live_rows()] for part in self._view.parts]
        return segments.decoded(np.sort(np.concatenate(parts)), str(self._folder)) if parts else []

    def holds(self, ids: Sequence[str]) -> NDArray[np.bool_]:
        """Which of them are here, `(N,)`."""
        return np.asarray(locate(self._view, segments.encoded(ids))[0] >= 0)

    def vectors(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """`(N, D) float32`, as stored in half precision, in the order of `ids`.

        `GalleryError` for one that is not here.
        """
        view = self._view
        part_of, row_of = locate(view, segments.encoded(ids))
        if (part_of < 0).any():
            missing = ids[int(np.argmax(part_of < 0))]
            raise GalleryError(f"no vector of {missing!r}", source=str(self._folder), next_step=REINDEX)
        out = np.empty((len(ids), view.manifest.dim), np.float32)
        for number, part in enumerate(view.parts):
            mine = part_of == number
            out[mine] = part.vectors[row_of[mine]]
        return out

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        allow: AbstractSet[str] | IdSet | None = None,
        exclude: AbstractSet[str] | IdSet | Sequence[AbstractSet[str]] | None = None,
    ) -> list[Candidates]:
        """The k best ids for each of `queries (Q, D) float32`, unit rows: highest inner product first, ties by id.

        `allow` restricts the search to these ids, `exclude` keeps ids out: one set for all queries, or a sequence
        with a set for each. An `IdSet` is looked up once and serves many searches. Fewer than k come back where fewer
        are allowed.
        """
        queries = unit_rows(queries, self.dim, "a query")
        if k < 1:
            raise GalleryError(f"the {k} best were asked for", next_step="ask for 1 or more")
        common, each = exclusions(exclude, len(queries))
        allowed = IdSet(allow) if isinstance(allow, AbstractSet) else allow
        return rank.nearest(self._parts(allowed, common), queries, k, each)

    def _parts(self, allow: IdSet | None, exclude: IdSet | None) -> list[rank.Part]:
        """What a search goes through: the segments of one generation that have rows it may find."""
        view = self._view
        parts, first = [], 0
        for part, live in zip(view.parts, view.masks, strict=True):
            mask = filtered(part, live, allow, exclude)
            if mask is None or mask.any():
                try:
                    searcher = self._searcher(view.manifest.backend, part)
                except FileNotFoundError as error:  # damage, unless a compaction elsewhere swept it since
                    if not self.refresh():
                        raise missing(error) from error
                    return self._parts(allow, exclude)
                parts.append(rank.Part(part, searcher, mask, first))
            first += len(part.ids)
        for known in (allow, exclude):
            if known is not None:
                known.forget({part.record.name for part in view.parts})
        return parts

    def _searcher(self, backend: str, part: Segment) -> backends.Searcher:
        """Over the part's structure if it has one, else exact; on the GPU if the gallery says so.

        Opened at first need.
        """
        structure = part.record.structure
        key = (part.record.name, part.record.structure_kind or backend)
        if key not in self._searchers:
            path = self._folder / structure.name if structure else None
            self._searchers[key] = backends.named(key[1]).open(part.vectors, path)
        return self._searchers[key]

    def _show(self, view: View) -> None:
        names = {record.name for record in view.manifest.segments}
        self._searchers = {key: each for key, each in self._searchers.items() if key[0] in names}
        self._view = view

    def add(self, ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Keep `vectors (N, D) float32`, unit rows, under `ids` for the next commit; an id that exists is replaced.

        `GalleryError` for ids given twice or unusable (`segments.encoded`), and for vectors that are not finite unit
        rows.
        """
        vectors = unit_rows(vectors, self.dim, "a vector")
        if len(ids) != len(vectors):
            raise GalleryError(f"{len(ids)} ids for {len(vectors)} vectors", source=str(self._folder))
        raw = segments.encoded(ids)
        if len(np.unique(raw)) != len(raw):
            seen: set[str] = set()
            twice = next(id for id in ids if id in seen or seen.add(id))  # type: ignore[func-returns-value]
            raise GalleryError(f"{twice!r} was given twice", source=str(self._folder), next_step="give each id once")
        if len(raw):
            self._waiting.append((raw, vectors.astype(np.float16)))

    def remove(self, ids: Sequence[str]) -> int:
        """Forget `ids` at the next commit; how many of them are there now, committed or waiting."""
        raw = np.unique(segments.encoded(ids))
        there = locate(self._view, raw)[0] >= 0
        for waiting, vectors in self._waiting:
            there[np.isin(raw, waiting)] = vectors is not None
        if len(raw):
            self._waiting.append((raw, None))
        return int(there.sum())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writers' lock over several steps; `StoreBusy` when another writer does not finish.

        What is here is brought up to date first, so that `revision` and `ids()` are those on disk as long as the lock
        is held.
        """
        if self._writing:
            yield
            return
        with snapshot.lock(self._folder / snapshot.LOCK, timeout=self._timeout):
            self._writing = True
            try:
                self.refresh()
                yield
            finally:
                self._writing = False

    def refresh(self) -> bool:
        """See what other processes committed; whether there was anything.

        `IndexStale` if another model's vectors are here now.
        """
        if stamp(self._folder) == self._view.stamp:
            return False
        self._show(open_view(self._folder, self.fingerprint, self._view))
        return True

    def commit(self, *, revision: int, expect: int | None = None) -> None:
        """Make what was added and removed durable and visible: it is on disk when this returns.

        `revision` is the catalogue's that the gallery now reflects; it never goes down. With `expect`, `IndexStale`
        unless the gallery on disk is at that revision: someone else's changes are missing here, or ours there. After
        an error nothing has changed and everything still waits.
        """
        with typed_failures(self._folder), self.writing():
            view = self._view
            old = view.manifest
            if expect is not None and old.revision != expect:
                raise IndexStale(
                    f"the gallery is at revision {old.revision}, not {expect}",
                    source=str(self._folder),
                    next_step=REINDEX,
                )
            changes = segments.fold(self._waiting, old.dim)
            records = tuple(segments.committed(self._folder, view.parts, changes, old.dim))
            if records != old.segments or revision > old.revision:
                self._replace(_next(old, revision=max(revision, old.revision), segments=records))
            self._waiting.clear()

    def _replace(self, manifest: Manifest) -> None:
        """Under the lock: put `manifest` in force, delete what it no longer names, and show it."""
        snapshot.write_manifest(self._folder, manifest)
        snapshot.sweep(self._folder, manifest)
        self._show(open_view(self._folder, manifest.fingerprint, self._view))

    def compact(self, *, backend: str | None = None) -> None:
        """Merge all segments into one, drop the dead rows, build `backend`'s structure (None: the present backend's).

        Others may commit meanwhile: the lock is held only to put the result in place, and what they did is kept.
        """
        self.refresh()
        view = self._view
        chosen = view.manifest.backend if backend is None else backend
        backends.named(chosen)
        if compaction.is_tidy(view.manifest, chosen):
            if chosen != view.manifest.backend:
                with typed_failures(self._folder), self.writing():
                    self._replace(_next(self._view.manifest, backend=chosen))
            return
        with typed_failures(self._folder), snapshot.building(self._folder, timeout=self._timeout) as place:
            rows = segments.merged(view.parts)
            written = segments.write_segment(place, rows, view.manifest.dim)
            record = compaction.with_structure(place, written, view, chosen)
            with self.writing():
                now = self._view
                for file in record.files:
                    os.replace(place / file.name, self._folder / file.name)
                snapshot.force_folder(self._folder)
                built = segments.open_segment(self._folder, record, now.manifest.dim)
                built = segments.with_dead(self._folder, built, compaction.overtaken(rows, view, now))
                sources = {part.record.name for part in view.parts}
                kept = [part.record for part in (*now.parts, built) if part.record.name not in sources]
                kept = [each for each in kept if each.live]
                self._replace(_next(now.manifest, backend=chosen, segments=tuple(kept)))

    def check(self) -> Checked:
        """Read every file and compare it with its record; `SnapshotCorrupt` for the first that differs."""
        whole: set[str] = set()
        while True:
            view = self._view
            try:
                for file in view.manifest.files:
                    if file.name not in whole:
                        snapshot.check_bytes(self._folder, file)
                        whole.add(file.name)
                break
            except FileNotFoundError as error:  # damage, unless a writer has replaced the manifest since
                if not self.refresh():
                    raise missing(error) from error
        ids = self.ids()
        if len(set(ids)) != view.manifest.count or ids != sorted(set(ids)):
            raise SnapshotCorrupt(
                f"{len(set(ids))} ids, recorded {view.manifest.count}",
                source=str(self._folder),
                next_step=snapshot.REBUILD,
            )
        return Checked(len(view.manifest.files), sum(file.bytes for file in view.manifest.files), len(ids))


def unit_rows(vectors: NDArray[np.float32], dim: int, what: str) -> NDArray[np.float32]:
    """`vectors` as `(N, dim) float32`; `GalleryError` unless every row is finite and of unit length."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise GalleryError(f"vectors of shape {vectors.shape}", next_step=f"give an array of shape (N, {dim})")
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    wrong = ~(np.abs(lengths - 1) <= UNIT_TOLERANCE)  # a NaN is wrong, too
    if wrong.any():
        row = int(np.argmax(wrong))
        raise GalleryError(
            f"{what} is not of unit length: row {row} has {lengths[row]:.4g}", next_step="normalise the rows"
        )
    return vectors


def _next(manifest: Manifest, **changes: Any) -> Manifest:
    """The manifest of the next generation."""
    return replace(manifest, generation=manifest.generation + 1, **changes)


@contextmanager
def typed_failures(folder: Path) -> Iterator[None]:
    """A disk that is full or forbids writing is a `GalleryError`, too."""
    try:
        yield
    except OSError as error:
        raise GalleryError(
            f"cannot write: {error.strerror}",
            source=str(error.filename or folder),
            next_step="free the disk and try again",
        ) from error
