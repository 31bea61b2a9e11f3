"""The catalogue: one object that opens the database and offers what the rest of the engine may do with it.

Every method is one short transaction, and safe to call from several threads and processes. Knows no photo's pixels, no
model and no index; the clock is handed in. What the methods mean stands in the modules they call: `enrol`, `files`,
`sightings`, `events`, `undo`, `names`, `queries`, `history`, `vectors`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import URL, Engine, select

from reid.catalogue import enrol, events, files, history, names, queries, schema, sightings, undo, vectors
from reid.catalogue.encoding import path_to_text
from reid.catalogue.encounters import MAX_GAP, MAX_KM
from reid.catalogue.engine import WAIT_S, connect, database_url, reading, writing
from reid.catalogue.events import Signature
from reid.catalogue.identity import Replay, State
from reid.catalogue.records import (
    REMOVED,
    Added,
    AnnotationInfo,
    Counts,
    Event,
    IndividualInfo,
    KnownFile,
    Labels,
    NewPhoto,
    PhotoInfo,
    PhotoState,
    VectorChunk,
)
from reid.catalogue.tables import CatalogueState
from reid.errors import CatalogueError
from reid.records import Side

Evidence = Mapping[str, Any]


def utc_now() -> datetime:
    """The time of an event, unless another clock is handed in."""
    return datetime.now(UTC)


class Catalogue:
    """Photos, annotations, individuals, embeddings, and the log of identity. Open it with `Catalogue.open`; usable
    in a `with` statement.
    """

    def __init__(self, engine: Engine, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._clock = clock

    @classmethod
    def open(
        cls,
        url: str | URL,
        *,
        create: bool = False,
        wait_s: float = WAIT_S,
        clock: Callable[[], datetime] = utc_now,
    ) -> Catalogue:
        """Open `sqlite:////path/to/file` or `postgresql://user@host/name`; with `create`, make or upgrade the tables
        first.

        `wait_s` is how long a writer waits for another one, seconds. CatalogueError when there is no catalogue, it is
        of another schema, or the database cannot be reached, each with the next step.
        """
        parsed = database_url(url)
        if not create and not schema.exists(parsed):
            raise CatalogueError(
                "there is no catalogue", source=parsed.render_as_string(), next_step="create one: reid init"
            )
        engine = connect(parsed, wait_s)
        try:
            if create:
                schema.upgrade(engine)
            schema.check(engine)
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, clock)

    def close(self) -> None:
        """Close every connection; the object cannot be used afterwards."""
        self._engine.dispose()

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    def revision(self) -> int:
        """Counts the changes that an answer may depend on; only ever grows."""
        with reading(self._engine) as connection:
            return connection.scalar(select(CatalogueState.c.revision)) or 0

    @property
    def vectors_revision(self) -> int:
        """The revision that last changed which vectors serve: an index made at it or later is complete."""
        with reading(self._engine) as connection:
            return connection.scalar(select(CatalogueState.c.vectors_revision)) or 0

    # Photos

    def add_photos(
        self, batch: Sequence[NewPhoto], *, who: str, why: str = "enrolled", fingerprint: str | None = None
    ) -> list[Added]:
        """Take photos in, all or none: facts, boxes, identities (as assign events), encounters, vectors of the model
        `fingerprint`.

        What is on record already is recognised (see `enrol`), so that a batch can be repeated. TableError names the
        photo that cannot be kept.
        """
        enrol.check(batch, fingerprint)
        if not batch:
            return []
        with writing(self._engine) as writer:
            return enrol.add(writer, batch, self._sign(who, why, None), fingerprint)

    def known_files(self) -> list[KnownFile]:
        """Every path at which a photo is or was, so that files that did not change need not be read again."""
        with reading(self._engine) as connection:
            return list(files.known_files(connection))

    def mark_missing(self, paths: Collection[str | PathLike[str]]) -> list[int]:
        """No file is at these paths: the photos that were shown from them. One with a copy is shown from the copy."""
        with writing(self._engine) as writer:
            return files.gone(writer, [path_to_text(path) for path in paths], "missing")

    def mark_changed(self, paths: Collection[str | PathLike[str]]) -> list[int]:
        """Other bytes are at these paths: the photos that were shown from them. Their vectors serve no longer."""
        with writing(self._engine) as writer:
            return files.gone(writer, [path_to_text(path) for path in paths], "changed")

    def mark_present(self, paths: Collection[str | PathLike[str]]) -> list[int]:
        """The files at these paths are back with the bytes they had: the photos that were missing."""
        with writing(self._engine) as writer:
            return files.back(writer, [path_to_text(path) for path in paths])

    def remove(self, photos: Collection[int], *, who: str, why: str = "") -> list[int]:
        """Take photos out of service for good: their vectors leave the index, all that was said of them stays. Those
        that were in service; one comes back when it is enrolled again.
        """
        by = self._sign(who, why, None)
        note = f"{REMOVED}{by.who} on {by.at:%Y-%m-%d %H:%M} UTC" + (f": {by.why}" if by.why else "")
        with writing(self._engine) as writer:
            return files.remove(writer, photos, note)

    def removed(self) -> list[PhotoInfo]:
        """The photos that somebody took out of service, in order of id; the last of their notes says who."""
        return [p for p in self.photos_in_state("changed") if any(note.startswith(REMOVED) for note in p.notes)]

    def group_encounters(
        self, max_gap: timedelta = MAX_GAP, max_km: float = MAX_KM, *, everything: bool = False
    ) -> int:
        """Group photos without a given encounter by time and place; with `everything`, also those grouped before.
        How many changed.
        """
        with writing(self._engine) as writer:
            return sightings.group(writer, max_gap, max_km, everything=everything)

    # Identity: each returns the id of its event, or raises IdentityError and changes nothing

    def assign(
        self, annotations: Sequence[int], name: str, *, who: str, why: str = "", evidence: Evidence | None = None
    ) -> int:
        """Say whose annotations are; the individual is made if `name` means nobody."""
        with writing(self._engine) as writer:
            return events.assign(writer, self._sign(who, why, evidence), annotations, name)

    def unassign(self, annotations: Sequence[int], *, who: str, why: str = "", evidence: Evidence | None = None) -> int:
        """Say that it is not known whose annotations are."""
        with writing(self._engine) as writer:
            return events.unassign(writer, self._sign(who, why, evidence), annotations)

    def merge(self, keep: str, absorbed: str, *, who: str, why: str = "", evidence: Evidence | None = None) -> int:
        """Say that two individuals are one animal; `absorbed` becomes an alias of `keep`."""
        with writing(self._engine) as writer:
            return events.merge(writer, self._sign(who, why, evidence), keep, absorbed)

    def split(
        self,
        annotations: Sequence[int],
        name: str | None = None,
        *,
        who: str,
        why: str = "",
        evidence: Evidence | None = None,
    ) -> int:
        """Say that some annotations of an individual are another's: `name`, or a new one named after the old with a
        number.
        """
        with writing(self._engine) as writer:
            return events.split(writer, self._sign(who, why, evidence), annotations, name)

    def rename(self, name: str, new: str, *, who: str, why: str = "", evidence: Evidence | None = None) -> int:
        """Call an individual otherwise; the old name still finds it."""
        with writing(self._engine) as writer:
            return events.rename(writer, self._sign(who, why, evidence), name, new)

    def undo(self, event: int, *, who: str, why: str = "", evidence: Evidence | None = None) -> int:
        """Take an event back, however old; undoing an undo brings it back."""
        with writing(self._engine) as writer:
            return undo.undo(writer, self._sign(who, why, evidence), event)

    def replay(self) -> Replay:
        """What the log of identity alone says."""
        with reading(self._engine) as connection:
            return undo.replayed(connection)

    def projection(self) -> State:
        """What the projected columns say; equal to `replay().state` unless somebody else has written to the
        database.
        """
        with reading(self._engine) as connection:
            return undo.projection(connection)

    def rebuild_identity(self) -> bool:
        """Derive the projected columns from the log again; whether anything had to be changed."""
        with writing(self._engine) as writer:
            return undo.rebuild(writer)

    # Looking up

    def annotations(self, ids: Collection[int]) -> dict[int, AnnotationInfo]:
        """Annotations by id, in the order given, with all an answer says of them; unknown ids are left out."""
        with reading(self._engine) as connection:
            return queries.details(connection, ids)

    def annotations_of(
        self,
        *,
        individual: str | None = None,
        photos: Collection[int] | None = None,
        encounters: Collection[int] | None = None,
        sides: Collection[Side] | None = None,
        species: Collection[str] | None = None,
    ) -> list[int]:
        """Ids of the annotations in service that meet every condition given, ascending."""
        with reading(self._engine) as connection:
            who = None if individual is None else names.get(connection, individual).root
            return queries.annotations_of(
                connection, individual=who, photos=photos, encounters=encounters, sides=sides, species=species
            )

    def photos(self, ids: Collection[int]) -> dict[int, PhotoInfo]:
        """Photos by id, in the order given; unknown ids are left out."""
        with reading(self._engine) as connection:
            return queries.photos(connection, ids)

    def photo_by_hash(self, sha256: str) -> PhotoInfo | None:
        """The photo of these bytes, or None."""
        with reading(self._engine) as connection:
            return queries.photo_by_hash(connection, sha256)

    def photos_in_state(self, state: PhotoState) -> list[PhotoInfo]:
        """The photos that are present, missing or changed."""
        with reading(self._engine) as connection:
            return queries.photos_in_state(connection, state)

    def bare_photos(self) -> list[PhotoInfo]:
        """The photos in which no animal was found."""
        with reading(self._engine) as connection:
            return queries.bare_photos(connection)

    def individuals(self) -> list[IndividualInfo]:
        """Every individual, in order of name; those merged into another are among that one's aliases."""
        with reading(self._engine) as connection:
            return queries.individuals(connection)

    def individual(self, name: str) -> IndividualInfo:
        """The individual a name, alias or former name means. IdentityError when nobody."""
        with reading(self._engine) as connection:
            return queries.individual(connection, name)

    def photo_counts(self, individuals: Collection[int]) -> dict[int, int]:
        """How many photos there are of each of these individuals."""
        with reading(self._engine) as connection:
            return queries.photo_counts(connection, individuals)

    def history(self, name: str) -> list[Event]:
        """Every event that concerns an individual, those merged into it included, in order."""
        with reading(self._engine) as connection:
            return history.of_individual(connection, name)

    def annotation_history(self, annotation: int) -> list[Event]:
        """Every event that concerns an annotation, in order."""
        with reading(self._engine) as connection:
            return history.of_annotation(connection, annotation)

    def events(self, after: int = 0, limit: int = 1000) -> list[Event]:
        """The next events of the log after an id."""
        with reading(self._engine) as connection:
            return history.events(connection, after, limit)

    def owners(self) -> dict[int, int]:
        """Annotation in service → its individual, for those that have one: less than `labels`, and faster."""
        with reading(self._engine) as connection:
            return queries.owners(connection)

    def species(self) -> dict[int, str]:
        """Annotation in service → its species, for those that have one."""
        with reading(self._engine) as connection:
            return queries.species(connection)

    def labels(self) -> Labels:
        """Who is who in bulk, for calibration and evaluation."""
        with reading(self._engine) as connection:
            return queries.labels(connection)

    def phashes(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """The photos that have a perceptual hash, ascending `(N,)`, and the hashes `(N,) uint64`."""
        with reading(self._engine) as connection:
            return queries.phashes(connection)

    def counts(self) -> Counts:
        """How much of everything there is."""
        with reading(self._engine) as connection:
            return queries.counts(connection)

    def live_individuals(self) -> int:
        """How many animals there are: of `counts`, the one that a query needs."""
        with reading(self._engine) as connection:
            return queries.live_individuals(connection)

    def cut_out(self, newest: int = 500) -> tuple[int, int]:
        """Of the `newest` annotations in service, how many show a part of their photo only; and how many there are."""
        with reading(self._engine) as connection:
            return queries.cut_out(connection, newest)

    def encounter_keys(self, ids: Collection[int]) -> dict[int, str | None]:
        """The owner's key of each encounter, None where it was grouped."""
        with reading(self._engine) as connection:
            return queries.encounter_keys(connection, ids)

    # Embeddings

    def put_embeddings(self, fingerprint: str, annotations: Sequence[int], rows: NDArray[np.float32]) -> int:
        """Write the vectors `(N, D)` of a model, over those that were there, as half floats; how many."""
        given = vectors.by_annotation(annotations, rows)
        if not given:
            return 0
        with writing(self._engine) as writer:
            return vectors.store(writer, fingerprint, given)

    def embeddings(
        self, fingerprint: str, *, after_revision: int | None = None, size: int = 4096
    ) -> Iterator[VectorChunk]:
        """The vectors of a model that serve, in order of annotation, `size` at a time.

        With `after_revision`, only those written, or in service again, since: an index made at revision r takes these
        in and drops `withdrawn(r)`. Read `revision` *before* this: what is written meanwhile may or may not be among
        the chunks, and is among those after that revision.
        """
        return vectors.chunks_of_vectors(self._engine, fingerprint, after_revision=after_revision, size=size)

    def embeddings_of(self, fingerprint: str, ids: Collection[int]) -> dict[int, NDArray[np.float32]]:
        """The vectors `(D,) float32` of some annotations; those that have none are left out."""
        with reading(self._engine) as connection:
            return vectors.fetch(connection, fingerprint, ids)

    def embedded_since(self, fingerprint: str, after_revision: int) -> list[int]:
        """The annotations that `embeddings` would give with this `after_revision`, without their vectors, ascending."""
        with reading(self._engine) as connection:
            return vectors.changed_since(connection, fingerprint, after_revision)

    def withdrawn(self, after_revision: int = -1) -> list[int]:
        """Annotations that ceased to serve after a revision, ascending: an index must drop them."""
        with reading(self._engine) as connection:
            return sorted(vectors.out_of_service(connection, after_revision))

    def lacking_embeddings(self, fingerprint: str) -> NDArray[np.int64]:
        """Annotations in service that have no vector of a model yet, ascending `(N,)`."""
        with reading(self._engine) as connection:
            return vectors.lacking(connection, fingerprint)

    def drop_embeddings(self, fingerprints: Collection[str]) -> int:
        """Delete the vectors of models that nothing asks for any more; how many. No answer depends on them, so the
        catalogue's revision stays.
        """
        if not fingerprints:
            return 0
        with writing(self._engine) as writer:
            return vectors.drop(writer.connection, fingerprints)

    def models(self) -> dict[str, int]:
        """Fingerprints of the models that made vectors, and the size of those."""
        with reading(self._engine) as connection:
            return vectors.models(connection)

    def _sign(self, who: str, why: str, evidence: Evidence | None) -> Signature:
        return Signature(who, self._clock(), why, evidence or {})
