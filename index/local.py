"""The index over local descriptors: which gallery photos hold the descriptors most like a query's? LNBNN, with no
training at all.

A `LocalIndex` lives in a directory of its own (`reid.index.local_files` says what is there), is searched
memory-mapped, and grows by what is added: a commit writes one small segment, and segments of like size are merged.
Any number of processes may read while one writes. Searching is safe from several threads; adding is for one.

Knows uint8 descriptor arrays and string ids, and at search time who is who, since identities change while descriptors
do not. Must not know photos, catalogues or keypoints' places. Errors: `GalleryError`, `IndexStale`,
`SnapshotCorrupt`, `StoreBusy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid.errors import GalleryError, SnapshotCorrupt
from reid.index import lists, lnbnn, local_files, local_view, local_write, segments, snapshot
from reid.index.local_files import LocalManifest
from reid.index.local_view import Codes, Descriptors, View
from reid.index.local_write import Plan
from reid.index.segments import Ids

VOTERS = 3
"""Nearest neighbours of a descriptor that vote."""
NEIGHBOURS = 8
"""Neighbours looked up: beyond the voters, where the background is found."""
PROBES = 4
"""Coarse cells looked into for each descriptor."""
WAIT = 60.0
RETRAIN_AT = 4
"""The cells are made anew when there are this many times the descriptors they were made from…"""
RETRAIN_BELOW = 4_000_000
"""…unless there are more descriptors than this: then `compact` does it, by night."""
LARGE = 2_000_000
"""Descriptors from which an index counts as large: a query asks with fewer of its own then."""
ASKING = 500
"""Descriptors with which a large index is asked: half the time and half the pages, for about .01 of MAP@5."""


@dataclass(frozen=True, slots=True)
class Votes:
    """The photos that the query's descriptors speak for, best first.

    `photos[i]` has `votes[i]` > 0. Where names were given, `names` and `name_votes` hold the same for identities,
    best first: each descriptor speaks once for a name. `descriptors` is how many the query had.
    """

    photos: tuple[str, ...]
    votes: tuple[float, ...]
    names: tuple[str, ...] = ()
    name_votes: tuple[float, ...] = ()
    descriptors: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Names:
    """Who is who at one generation of the index: `code[p]` names photo p of the view, `labels` spells the codes that
    are known."""

    generation: int
    code: Codes
    labels: tuple[str, ...]


class LocalIndex:
    """Descriptors under photo ids, in one directory. Make one with `create` or `open`."""

    def __init__(self, folder: Path, view: View, timeout: float) -> None:
        """Not for callers: `create` and `open` know how."""
        self._folder = folder
        self._view = view
        self._timeout = timeout
        self._waiting: dict[str, Descriptors | None] = {}
        self._expected = 0
        self._sample: tuple[Descriptors, ...] = ()
        self._writing = False

    @classmethod
    def create(cls, folder: Path, *, fingerprint: str, timeout: float = WAIT) -> LocalIndex:
        """A new, empty index in `folder`. `fingerprint` says how descriptors are made; `timeout` is in seconds."""
        folder.mkdir(parents=True, exist_ok=True)
        with snapshot.lock(folder / snapshot.LOCK, timeout=timeout):
            if (folder / snapshot.MANIFEST).exists():
                raise GalleryError("there is an index here already", source=str(folder), next_step="open it")
            local_files.write_manifest(folder, LocalManifest(fingerprint))
        return cls.open(folder, timeout=timeout)

    @classmethod
    def open(
        cls, folder: Path, *, fingerprint: str | None = None, verify: bool = False, timeout: float = WAIT
    ) -> LocalIndex:
        """The index in `folder`, memory-mapped; `verify` reads all files and compares their sha256.

        `IndexStale` unless it was made by `fingerprint` (None takes any), `SnapshotCorrupt` where a file is missing
        or has another size (with `verify`: other bytes).
        """
        index = cls(folder, local_view.open_view(folder, None, fingerprint), timeout)
        if verify:
            index.check()
        return index

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._folder

    @property
    def fingerprint(self) -> str:
        """Of the description that made the descriptors."""
        return self._view.manifest.fingerprint

    @property
    def revision(self) -> int:
        """Of the catalogue that the index reflects."""
        return self._view.manifest.revision

    @property
    def generation(self) -> int:
        """How often it was written."""
        return self._view.manifest.generation

    @property
    def count(self) -> int:
        """Photos that a search can find."""
        return self._view.manifest.count

    @property
    def descriptors(self) -> int:
        """Descriptors on disk."""
        return self._view.manifest.descriptors

    @property
    def nbytes(self) -> int:
        """Bytes of all files that the manifest names."""
        return sum(file.bytes for file in self._view.manifest.files)

    def __len__(self) -> int:
        return self.count

    @property
    def outgrown(self) -> bool:
        """Whether the cells were made for less than half of what is there now: `compact` would speed up searches."""
        manifest = self._view.manifest
        return len(self._view.parts) > 1 and manifest.descriptors > 2 * manifest.trained_on

    def ids(self) -> list[str]:
        """All photo ids, ascending."""
        parts = [np.delete(part.ids, part.dead) for part in self._view.parts]
        return segments.decoded(np.sort(np.concatenate(parts)), str(self._folder)) if parts else []

    def add(self, ids: Sequence[str], descriptors: Sequence[Descriptors]) -> None:
        """Keep `descriptors[i] (N_i, 128) uint8` under `ids[i]` at the next commit; an id that exists is replaced.

        A photo without keypoints is kept, too: it is known to have none. `GalleryError` for unusable ids and other
        shapes.
        """
        if len(ids) != len(descriptors):
            raise GalleryError(f"{len(ids)} ids for {len(descriptors)} arrays", source=str(self._folder))
        segments.encoded(ids)
        if len(set(ids)) != len(ids):
            raise GalleryError("an id was given twice", source=str(self._folder), next_step="give each id once")
        for array in descriptors:
            _check(array)
        for id, array in zip(ids, descriptors, strict=True):
            self._waiting[id] = np.array(array, np.uint8, order="C")

    def remove(self, ids: Iterable[str]) -> None:
        """Forget `ids` at the next commit; those that are not there are passed over."""
        for id in ids:
            self._waiting[id] = None

    def expect(self, total: int, sample: Sequence[Descriptors]) -> None:
        """Say before a large addition that there will be about `total` descriptors, like those of `sample`: the next
        commit makes its cells for them, and none of the commits that follow has to make them anew.
        """
        for array in sample:
            _check(array)
        self._expected, self._sample = total, tuple(sample)

    def asking(self, descriptors: Descriptors) -> Descriptors:
        """Those of a query's `descriptors (Q, 128)`, strongest first, with which an index of this size is asked."""
        return descriptors[:ASKING] if self.descriptors > LARGE else descriptors

    def names(self, identity: Mapping[str, str]) -> Names:
        """Prepare who is who (photo id → identity) for many searches; photos that `identity` lacks stand for
        themselves."""
        labels = tuple(sorted(set(identity.values())))
        number = {label: code for code, label in enumerate(labels)}
        code = np.empty(sum(part.record.photos for part in self._view.parts), np.int32)
        for part in self._view.parts:
            for at, id in enumerate(segments.decoded(part.ids, str(self._folder))):
                here = part.first + at
                code[here] = number[identity[id]] if id in identity else len(labels) + here
        return Names(self.generation, code, labels)

    def search(
        self,
        descriptors: Descriptors,
        *,
        names: Names | None = None,
        allow: AbstractSet[str] | None = None,
        exclude: AbstractSet[str] | None = None,
        voters: int = VOTERS,
        neighbours: int = NEIGHBOURS,
        probes: int = PROBES,
        top: int = 100,
    ) -> Votes:
        """The `top` photos that `descriptors (Q, 128) uint8` of one query vote for; see `reid.index.lnbnn` for the
        rule.

        `allow` restricts the search to these photos, `exclude` keeps photos out: neither votes nor serves as
        background. With `names`, the background of a neighbour is the nearest descriptor of another identity,
        without, of another photo.
        """
        return self.search_many(
            [descriptors],
            names=names,
            allow=allow,
            exclude=exclude,
            voters=voters,
            neighbours=neighbours,
            probes=probes,
            top=top,
        )[0]

    def search_many(
        self,
        queries: Sequence[Descriptors],
        *,
        names: Names | None = None,
        allow: AbstractSet[str] | None = None,
        exclude: AbstractSet[str] | None = None,
        voters: int = VOTERS,
        neighbours: int = NEIGHBOURS,
        probes: int = PROBES,
        top: int = 100,
    ) -> list[Votes]:
        """`search` of several photos under one filter, in one pass."""
        view = self._view
        if names is not None and names.generation != view.manifest.generation:
            raise GalleryError("these names belong to another generation", next_step="prepare them again with `names`")
        for query in queries:
            _check(query)
        flat = np.concatenate([*queries, np.zeros((0, lists.DIM), np.uint8)])
        distance, photo = local_view.neighbours(view, flat, neighbours, probes, allow, exclude)
        code = np.arange(local_view.photos(view), dtype=np.int32) if names is None else names.code
        weights = lnbnn.match_weights(distance, photo, code, voters)
        ids = np.concatenate([part.ids for part in view.parts]) if view.parts else np.empty(0, "S1")
        out, first = [], 0
        for query in queries:
            rows = slice(first, first + len(query))
            first += len(query)
            out.append(_votes(weights[rows], photo[rows], ids, names, top, len(query), str(self._folder)))
        return out

    def refresh(self) -> bool:
        """See what other processes committed; whether there was anything."""
        if local_view.stamp_of(self._folder) == self._view.stamp:
            return False
        self._view = local_view.open_view(self._folder, self._view, self.fingerprint)
        return True

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writers' lock over several steps; what others wrote is seen first."""
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

    def commit(self, *, revision: int) -> None:
        """Make what was added and removed durable and visible; after an error nothing has changed and everything
        still waits."""
        with self.writing():
            old = self._view.manifest
            if not self._waiting and revision <= old.revision:
                return
            new = {id: array for id, array in self._waiting.items() if array is not None}
            total = old.descriptors + sum(len(array) for array in new.values())
            grown = total > RETRAIN_AT * max(old.trained_on, 1) and total <= RETRAIN_BELOW
            retrain = grown or (total > 0 and (old.centroids is None or self._expected > 2 * old.trained_on))
            plan = Plan(retrain, self._expected, self._sample)
            manifest = local_write.committed(self._folder, self._view, segments.encoded(self._waiting), new, plan)
            self._replace(replace(manifest, revision=max(revision, old.revision)))
            self._waiting.clear()
            self._expected, self._sample = 0, ()

    def merge(self) -> None:
        """One segment of all, in the cells there are: what was committed in many parts is searched as fast as in one.
        Costs the copying of the index; readers go on meanwhile.
        """
        with self.writing():
            if len(self._view.parts) > 1:
                self._replace(local_write.merged(self._folder, self._view, Plan()))

    def compact(self) -> None:
        """Make the cells anew for what is there now, and one segment of all; holds the writers' lock, readers go on
        meanwhile."""
        with self.writing():
            if self._view.manifest.descriptors:
                plan = Plan(True, self._expected, self._sample)
                self._replace(local_write.merged(self._folder, self._view, plan))

    def check(self) -> int:
        """Read every file and compare it with its record; the number of files. `SnapshotCorrupt` for the first that
        differs."""
        try:
            for file in self._view.manifest.files:
                snapshot.check_bytes(self._folder, file)
        except FileNotFoundError as error:
            raise SnapshotCorrupt("a file is missing", source=str(self._folder), next_step=snapshot.REBUILD) from error
        return len(self._view.manifest.files)

    def _replace(self, manifest: LocalManifest) -> None:
        """Under the lock: put `manifest` in force, delete what it no longer names, and show it."""
        local_files.write_manifest(self._folder, manifest)
        local_files.sweep(self._folder, manifest)
        self._view = local_view.open_view(self._folder, self._view, manifest.fingerprint)


def _check(descriptors: Descriptors) -> None:
    if descriptors.dtype != np.uint8 or descriptors.ndim != 2 or descriptors.shape[1] != lists.DIM:
        raise GalleryError(
            f"descriptors are (N, {lists.DIM}) uint8, not {descriptors.shape} {descriptors.dtype}",
            next_step="describe the crop with `reid.keypoints.describe`",
        )


def _votes(
    weights: NDArray[np.float32], photo: Codes, ids: Ids, names: Names | None, top: int, count: int, source: str
) -> Votes:
    """The best photos and names of one query."""
    per_photo = lnbnn.photo_votes(weights, photo, len(ids))
    best = _best(per_photo, top)
    labels: tuple[str, ...] = ()
    label_votes: tuple[float, ...] = ()
    if names is not None and len(names.code):
        per_name = lnbnn.name_votes(weights, photo, names.code, int(names.code.max()) + 1)[: len(names.labels)]
        order = _best(per_name, top)
        labels, label_votes = tuple(names.labels[at] for at in order), tuple(map(float, per_name[order]))
    return Votes(
        tuple(segments.decoded(ids[best], source)), tuple(map(float, per_photo[best])), labels, label_votes, count
    )


def _best(votes: NDArray[np.float32], top: int) -> NDArray[np.intp]:
    """Positions of the highest positive votes, best first, ties by position."""
    order = np.argsort(-votes, kind="stable")[:top]
    return order[votes[order] > 0]
