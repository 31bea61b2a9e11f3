"""Taking photos in: one batch is one transaction, whole or not at all, and taking the same batch in again changes
nothing.

Photos are recognised by their bytes, annotations by their box. What the catalogue holds wins: a differing identity or
encounter is reported as a conflict, while what it lacked (an identity, a time, a side) is filled in.

Boxes: one whose edges are all within `boxes.SAME_BOX_PX` of a box on record is that box. A machine's box (detector,
whole photo) never adds to a photo that has boxes already; it is taken for the one it overlaps most. A person's box
(table, user) that is the only one given takes the place of a machine's that is the only one on record, and inherits its
identity; else it is one more animal in the photo. So does a machine's where the photo was looked at again (`relocated`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select, update

from reid.catalogue import boxes, files, names
from reid.catalogue.encoding import normal_name, path_to_text, phash_to_signed, storable
from reid.catalogue.engine import Writer
from reid.catalogue.events import Naming, Signature, assign_many
from reid.catalogue.names import Bearer
from reid.catalogue.records import Added, Conflict, NewAnnotation, NewPhoto
from reid.catalogue.tables import Annotation, Encounter, Individual, Photo
from reid.catalogue.vectors import store
from reid.errors import TableError
from reid.records import Box


def check(batch: Sequence[NewPhoto], fingerprint: str | None) -> None:
    """TableError, with the photo's `where`, for a box, name, key or vector that cannot be kept; call it before
    anything is written.
    """
    for photo in batch:
        try:
            if photo.encounter is not None:
                normal_name(photo.encounter)
            for annotation in photo.annotations:
                _check(annotation, fingerprint)
            phash_to_signed(photo.facts.phash)
        except ValueError as error:
            source = photo.where or str(photo.facts.path)
            raise TableError(str(error), source=source, next_step="mend or leave out this photo") from error


def _check(annotation: NewAnnotation, fingerprint: str | None) -> None:
    box = annotation.box
    if not boxes.sound(box):
        raise ValueError(f"the box {box.x0}, {box.y0}, {box.x1}, {box.y1} is empty or not finite")
    if annotation.identity is not None:
        normal_name(annotation.identity)
    if annotation.vector is not None:
        if fingerprint is None:
            raise ValueError("a vector comes without the fingerprint of its model")
        if annotation.vector.ndim != 1 or not np.isfinite(annotation.vector).all():
            raise ValueError("the vector is not one row of finite numbers")


def add(writer: Writer, batch: Sequence[NewPhoto], by: Signature, fingerprint: str | None) -> list[Added]:
    """Take a checked batch in; what became of each photo, in order."""
    files.replaced(writer, {path_to_text(photo.facts.path): photo.facts.sha256 for photo in batch})
    added: dict[int, Added] = {}
    left = list(range(len(batch)))
    while left:  # a photo that comes twice in a batch is a new one and then a known one
        first: dict[str, int] = {}
        for i in left:
            first.setdefault(batch[i].facts.sha256, i)
        round_ = sorted(first.values())
        added.update(zip(round_, _Round(writer, by, fingerprint).run([batch[i] for i in round_]), strict=True))
        left = [i for i in left if i not in added]
    return [added[i] for i in range(len(batch))]


@dataclass(slots=True, eq=False)
class _Mark:
    """An annotation of a photo in this round. `row` holds its columns if it is to be inserted, `wants` the name it is
    to get.

    `owner` is whom it belongs to, on record or by inheritance; `columns` are those of its facts that may be mended.
    """

    id: int
    box: Box
    owner: Bearer | None = None
    wants: str | None = None
    where: str = ""
    row: dict[str, Any] | None = None
    inherits: int | None = None
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Known:
    """A photo on record, with its annotations in service and the facts that may be mended."""

    id: int
    path: str
    state: str
    file: tuple[int, int | None]
    encounter_key: str | None
    columns: dict[str, Any]
    marks: list[_Mark] = field(default_factory=list)


class _Round:
    """A batch in which no photo comes twice: decides everything first, then writes."""

    def __init__(self, writer: Writer, by: Signature, fingerprint: str | None) -> None:
        self.writer = writer
        self.by = by
        self.fingerprint = fingerprint
        self.fresh_encounters: list[dict[str, Any]] = []
        self.photos: list[dict[str, Any]] = []
        self.marks: dict[int, _Mark] = {}
        self.superseded: list[tuple[int, int]] = []
        self.mended: list[tuple[int, dict[str, Any]]] = []
        self.vectors: dict[int, NDArray[np.float32]] = {}

    def run(self, photos: Sequence[NewPhoto]) -> list[Added]:
        """Take the photos in; what became of each, in order."""
        self.known = _on_record(self.writer, [photo.facts.sha256 for photo in photos])
        self.means = self._meanings(photos)
        self.encounters = self._known_encounters(photos)
        results = []
        for photo in photos:
            known = self.known.get(photo.facts.sha256)
            results.append(self._fresh(photo) if known is None else self._again(photo, known))
        self._write()
        return results

    def _meanings(self, photos: Sequence[NewPhoto]) -> dict[str, Bearer]:
        """Whom the names given to photos on record mean; fresh photos need not ask."""
        asked = {
            normal_name(annotation.identity)
            for photo in photos
            if photo.facts.sha256 in self.known
            for annotation in photo.annotations
            if annotation.identity is not None
        }
        return names.find(self.writer.connection, asked) if asked else {}

    def _known_encounters(self, photos: Sequence[NewPhoto]) -> dict[str, int]:
        keys = {normal_name(photo.encounter) for photo in photos if photo.encounter is not None}
        if not keys:
            return {}
        query = select(Encounter.c.key, Encounter.c.id).where(Encounter.c.key.in_(keys))
        return {key: number for key, number in self.writer.connection.execute(query) if key is not None}

    def _encounter(self, key: str) -> int:
        """The encounter of a (normal) key, made if need be."""
        if key not in self.encounters:
            number = self.writer.new_id(Encounter)
            self.encounters[key] = number
            self.fresh_encounters.append({"id": number, "key": key})
        return self.encounters[key]

    def _fresh(self, photo: NewPhoto) -> Added:
        facts = photo.facts
        number = self.writer.new_id(Photo)
        self.photos.append(
            {
                "id": number,
                "sha256": facts.sha256,
                "path": path_to_text(facts.path),
                "name": path_to_text(facts.path.name),
                "format": facts.format,
                "width": facts.width,
                "height": facts.height,
                "size_bytes": facts.size_bytes,
                "mtime_ns": photo.mtime_ns,
                "notes": [storable(note) for note in facts.notes],
                "state": "present",
                "encounter_id": None if photo.encounter is None else self._encounter(normal_name(photo.encounter)),
                "added_at": self.by.at,
                "revision": self.writer.revision,
                **_mendable(photo),
            }
        )
        return self._annotate(photo, number, [], "new", [])

    def _again(self, photo: NewPhoto, known: _Known) -> Added:
        facts = photo.facts
        path = path_to_text(facts.path)
        conflicts: list[Conflict] = []
        status: Literal["known", "moved", "copy"] = "known"
        if path != known.path:
            if known.state == "present":
                status = "copy"
                files.put_copy(self.writer, known.id, path, facts.size_bytes, photo.mtime_ns, present=True)
            else:
                status = "moved"
        found = (path, "present", (facts.size_bytes, photo.mtime_ns))
        if status != "copy" and found != (known.path, known.state, known.file):
            files.show_from(self.writer, known.id, path, facts.size_bytes, photo.mtime_ns)
            files.set_state(self.writer, known.id, "present")
        missing = {k: v for k, v in _mendable(photo).items() if v is not None and known.columns[k] is None}
        if photo.encounter is not None:
            key = normal_name(photo.encounter)
            if known.encounter_key is None:
                missing["encounter_id"] = self._encounter(key)
            elif known.encounter_key != key:
                conflicts.append(Conflict("encounter", None, known.encounter_key, key))
        elif known.encounter_key is None and missing.keys() & {"taken_at", "latitude", "longitude"}:
            missing["encounter_id"] = None  # it was grouped without knowing this
        if missing:
            self.mended.append((known.id, missing))
        return self._annotate(photo, known.id, known.marks, status, conflicts)

    def _annotate(
        self,
        photo: NewPhoto,
        number: int,
        marks: list[_Mark],
        status: Literal["new", "known", "moved", "copy"],
        conflicts: list[Conflict],
    ) -> Added:
        """Find or make the annotation of each box given; `marks` are those on record."""
        on_record = list(marks)
        ids, fresh, named = [], [], []
        for new in photo.annotations:
            at = boxes.same(new.box, [mark.box for mark in marks])
            if photo.relocated and at is not None and marks[at].box.origin != new.box.origin:
                at = None  # found now, and as large as the whole photo that stood in for it
            elif at is None and new.box.origin in boxes.MACHINE and on_record and not photo.relocated:
                at = boxes.most_overlapped(new.box, [mark.box for mark in on_record])
            made = at is None
            if at is None:
                mark = self._make(new, number)
                marks.append(mark)
                if len(photo.annotations) == 1:
                    self._take_place(mark, on_record)
            else:
                mark = marks[at]
                self._mend(mark, new)
            if new.vector is not None and boxes.same(new.box, [mark.box]) is not None:
                self.vectors.setdefault(mark.id, new.vector)  # a vector is of its box
            if new.identity is not None and self._name(mark, normal_name(new.identity), photo.where, conflicts):
                named.append(mark.id)
            if made or mark.id in named:
                self.marks[mark.id] = mark
            ids.append(mark.id)
            fresh.append(made)
        return Added(number, status, tuple(ids), tuple(fresh), tuple(named), tuple(conflicts))

    def _make(self, new: NewAnnotation, photo: int) -> _Mark:
        box = new.box
        number = self.writer.new_id(Annotation)
        row = {
            "id": number,
            "photo_id": photo,
            "x0": box.x0,
            "y0": box.y0,
            "x1": box.x1,
            "y1": box.y1,
            "confidence": box.confidence,
            "origin": box.origin,
            "side": new.side,
            "species": storable(new.species),
            "quality": new.quality,
            "superseded_by_id": None,
            "revision": self.writer.revision,
        }
        return _Mark(number, box, row=row)

    def _take_place(self, mark: _Mark, on_record: list[_Mark]) -> None:
        """A person's only box takes the place of a machine's only one."""
        if len(on_record) == 1 and on_record[0].box.origin in boxes.MACHINE:
            self.superseded.append((on_record[0].id, mark.id))
            mark.owner = on_record[0].owner
            mark.inherits = on_record[0].id if mark.owner is not None else None

    def _mend(self, mark: _Mark, new: NewAnnotation) -> None:
        """Fill in what an annotation on record lacks."""
        given = {"side": new.side, "species": storable(new.species), "quality": new.quality}
        lacks = {
            k: v for k, v in given.items() if v not in (None, "unknown") and mark.columns.get(k, v) in (None, "unknown")
        }
        if lacks and mark.row is None:
            mark.columns.update(lacks)
            self.writer.touch()
            self.writer.connection.execute(update(Annotation).where(Annotation.c.id == mark.id).values(lacks))

    def _name(self, mark: _Mark, name: str, where: str, conflicts: list[Conflict]) -> bool:
        """Note the identity given to an annotation, or the conflict; whether it is to be named now."""
        if mark.owner is not None:
            means = self.means.get(name)
            if means is None or means.root != mark.owner.root:
                conflicts.append(Conflict("identity", mark.id, mark.owner.root_name, name))
        elif mark.wants is not None:
            if mark.wants != name:
                conflicts.append(Conflict("identity", mark.id, mark.wants, name))
        else:
            mark.wants, mark.where = name, where
            return True
        return False

    def _write(self) -> None:
        """Insert in the order in which rows refer to each other, then mend those on record."""
        writer = self.writer
        rows, namings = self._named()
        writer.insert(Encounter, self.fresh_encounters)
        writer.insert(Photo, self.photos)
        writer.insert(Annotation, rows)
        for old, new in self.superseded:
            values = {"superseded_by_id": new, "revision": writer.revision}
            writer.connection.execute(update(Annotation).where(Annotation.c.id == old).values(values))
        for number, facts in self.mended:
            writer.connection.execute(update(Photo).where(Photo.c.id == number).values(facts))
        if self.photos or rows or self.superseded or self.mended:
            writer.touch(vectors=bool(self.superseded))
        assign_many(writer, self.by, namings)
        if self.fingerprint is not None:
            store(writer, self.fingerprint, self.vectors, keep=True)

    def _named(self) -> tuple[list[dict[str, Any]], list[Naming]]:
        """The rows of fresh annotations with their owners, and whom annotations are named after; those on record are
        given theirs.
        """
        writer = self.writer
        bearers = names.claim(writer, [mark.wants for mark in self.marks.values() if mark.wants is not None])
        rows, namings = [], []
        for mark in self.marks.values():
            owner = mark.owner if mark.wants is None else bearers[mark.wants]
            owned = {"given_id": owner and owner.id, "individual_id": owner and owner.root}
            if mark.row is not None:
                rows.append({**mark.row, **owned})
            else:
                writer.connection.execute(update(Annotation).where(Annotation.c.id == mark.id).values(owned))
            if owner is not None:
                evidence: dict[str, Any] = {"where": mark.where} if mark.where else {}
                if mark.inherits is not None:
                    evidence["inherits"] = mark.inherits
                namings.append(Naming(mark.id, None, owner, evidence))
        return rows, namings


def _mendable(photo: NewPhoto) -> dict[str, Any]:
    """The facts that a photo may lack and be given later."""
    facts = photo.facts
    return {
        "phash": phash_to_signed(facts.phash),
        "taken_at": facts.taken_at,
        "latitude": facts.latitude,
        "longitude": facts.longitude,
        "camera": storable(facts.camera),
    }


def _on_record(writer: Writer, hashes: Sequence[str]) -> dict[str, _Known]:
    """The photos of these bytes that are in the catalogue, with their annotations in service."""
    connection = writer.connection
    query = (
        select(Photo, Encounter.c.key)
        .outerjoin(Encounter, Encounter.c.id == Photo.c.encounter_id)
        .where(Photo.c.sha256.in_(hashes))
    )
    known: dict[str, _Known] = {}
    for row in connection.execute(query).mappings():
        columns = {name: row[name] for name in ("phash", "taken_at", "latitude", "longitude", "camera")}
        known[row["sha256"]] = _Known(
            row["id"], row["path"], row["state"], (row["size_bytes"], row["mtime_ns"]), row["key"], columns
        )
    if not known:
        return known
    by_id = {photo.id: photo for photo in known.values()}
    given = (
        select(Annotation, Individual.c.name)
        .outerjoin(Individual, Individual.c.id == Annotation.c.given_id)
        .where(Annotation.c.photo_id.in_(by_id), Annotation.c.superseded_by_id.is_(None))
        .order_by(Annotation.c.id)
    )
    rows = connection.execute(given).mappings().all()
    live = names.roots(connection, {row["individual_id"] for row in rows if row["individual_id"] is not None})
    for row in rows:
        box = Box(row["x0"], row["y0"], row["x1"], row["y1"], row["confidence"], row["origin"])
        owner = None
        if row["given_id"] is not None:
            owner = Bearer(row["given_id"], row["name"], *live[row["individual_id"]])
        columns = {name: row[name] for name in ("side", "species", "quality")}
        by_id[row["photo_id"]].marks.append(_Mark(row["id"], box, owner, columns=columns))
    return known
