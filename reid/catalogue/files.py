"""Where the bytes of photos are: what was read, what vanished, what holds other bytes now. Never touches the disk
itself.

A photo is its bytes. It has one path it is shown from (`photo.path`) and may have copies; when that path goes, a copy
takes its place. Nothing is forgotten: a photo no path of which can be found stays, marked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from sqlalchemy import Connection, delete, select, update

from reid.catalogue.encoding import text_to_path
from reid.catalogue.engine import Writer
from reid.catalogue.names import chunks
from reid.catalogue.queries import photo_state
from reid.catalogue.records import REMOVED, KnownFile, PhotoState
from reid.catalogue.tables import Photo, PhotoCopy


def known_files(connection: Connection) -> Iterator[KnownFile]:
    """Every path at which a photo is or was: the photos' own paths, then those of copies."""
    own = select(
        Photo.c.path, Photo.c.id, Photo.c.sha256, Photo.c.size_bytes, Photo.c.mtime_ns, Photo.c.state
    ).order_by(Photo.c.id)
    for path, photo, sha256, size, mtime, state in connection.execute(own):
        yield KnownFile(text_to_path(path), photo, sha256, size, mtime, photo_state(state))
    copies = (
        select(
            PhotoCopy.c.path,
            PhotoCopy.c.photo_id,
            Photo.c.sha256,
            PhotoCopy.c.size_bytes,
            PhotoCopy.c.mtime_ns,
            PhotoCopy.c.present,
        )
        .join(Photo, Photo.c.id == PhotoCopy.c.photo_id)
        .order_by(PhotoCopy.c.path)
    )
    for path, photo, sha256, size, mtime, present in connection.execute(copies):
        yield KnownFile(text_to_path(path), photo, sha256, size, mtime, "present" if present else "missing")


def gone(writer: Writer, paths: Collection[str], state: PhotoState) -> list[int]:
    """The files at these paths are `missing`, or `changed`: the photos that are no longer shown from there, in order of
    id.

    A photo with a copy is shown from the copy from now on; one without gets the state.
    """
    connection = writer.connection
    touched: list[int] = []
    for part in chunks(paths):
        connection.execute(
            update(PhotoCopy).where(PhotoCopy.c.path.in_(part), PhotoCopy.c.present).values(present=False)
        )
        query = select(Photo.c.id).where(Photo.c.path.in_(part), Photo.c.state.not_in((state, "changed")))
        for photo in connection.scalars(query.order_by(Photo.c.id)).all():
            if not _show_copy(writer, photo):
                set_state(writer, photo, state)
            touched.append(photo)
    return touched


def back(writer: Writer, paths: Collection[str]) -> list[int]:
    """The files at these paths are there again, with the bytes they had: the photos that were not shown until now.

    Where several photos were at a path, it is the one that has it as its own; a path that another photo is shown from
    is left alone.
    """
    connection = writer.connection
    touched: list[int] = []
    for part in chunks(paths):
        own = select(Photo.c.path, Photo.c.id, Photo.c.state).where(Photo.c.path.in_(part), Photo.c.state != "changed")
        held = connection.execute(own.order_by(Photo.c.id)).all()
        for row in held:
            if row.state == "missing":
                set_state(writer, row.id, "present")
                touched.append(row.id)
        free = set(part) - {row.path for row in held}
        copies = select(PhotoCopy.c.path, PhotoCopy.c.photo_id, Photo.c.state).join(
            Photo, Photo.c.id == PhotoCopy.c.photo_id
        )
        copies = copies.where(PhotoCopy.c.path.in_(free), ~PhotoCopy.c.present).order_by(PhotoCopy.c.path)
        for copy in connection.execute(copies).all():
            connection.execute(update(PhotoCopy).where(PhotoCopy.c.path == copy.path).values(present=True))
            if copy.state != "present" and _show_copy(writer, copy.photo_id):
                touched.append(copy.photo_id)
    return sorted(set(touched))


def replaced(writer: Writer, contents: Mapping[str, str]) -> list[int]:
    """Paths now hold these bytes (path → sha256): the photos that were shown from them and are other bytes, in order
    of id.
    """
    connection = writer.connection
    other: list[str] = []
    for part in chunks(contents):
        rows = connection.execute(
            select(Photo.c.path, Photo.c.sha256).where(Photo.c.path.in_(part), Photo.c.state != "changed")
        )
        other += [path for path, sha256 in rows if contents[path] != sha256]
        copies = (
            select(PhotoCopy.c.path, Photo.c.sha256)
            .join(Photo, Photo.c.id == PhotoCopy.c.photo_id)
            .where(PhotoCopy.c.path.in_(part), PhotoCopy.c.present)
        )
        other += [path for path, sha256 in connection.execute(copies) if contents[path] != sha256]
    return gone(writer, other, "changed") if other else []


def set_state(writer: Writer, photo: int, state: PhotoState) -> None:
    """Mark a photo; its vectors begin or cease to serve where `changed` is entered or left."""
    before = writer.connection.scalar(select(Photo.c.state).where(Photo.c.id == photo))
    if before == state:
        return
    values: dict[str, object] = {"state": state}
    if before == "changed":  # back in service
        notes = writer.connection.scalar(select(Photo.c.notes).where(Photo.c.id == photo)) or []
        values["notes"] = [note for note in notes if not note.startswith(REMOVED)]
    serves = "changed" not in (before, state)
    if not serves:
        values["revision"] = writer.revision
    writer.touch(vectors=not serves)
    writer.connection.execute(update(Photo).where(Photo.c.id == photo).values(values))


def remove(writer: Writer, photos: Collection[int], note: str) -> list[int]:
    """Take photos out of service, `note` (begins with `REMOVED`) saying who did; those that were in it, in order of id.

    Nothing else of them changes: boxes, names and events stay on record.
    """
    removed: list[int] = []
    for part in chunks(photos):
        query = (
            select(Photo.c.id, Photo.c.notes)
            .where(Photo.c.id.in_(part), Photo.c.state != "changed")
            .order_by(Photo.c.id)
        )
        for row in writer.connection.execute(query).all():
            set_state(writer, row.id, "changed")
            values = {"notes": [*row.notes, note]}
            writer.connection.execute(update(Photo).where(Photo.c.id == row.id).values(values))
            removed.append(row.id)
    return sorted(removed)


def show_from(writer: Writer, photo: int, path: str, size_bytes: int, mtime_ns: int | None) -> None:
    """Show a photo from another path; the one before stays on record as a copy that is gone."""
    connection = writer.connection
    old = connection.execute(
        select(Photo.c.path, Photo.c.size_bytes, Photo.c.mtime_ns).where(Photo.c.id == photo)
    ).one()
    if (old.path, old.size_bytes, old.mtime_ns) == (path, size_bytes, mtime_ns):
        return
    values = {"path": path, "size_bytes": size_bytes, "mtime_ns": mtime_ns}
    connection.execute(update(Photo).where(Photo.c.id == photo).values(values))
    if old.path != path:
        connection.execute(delete(PhotoCopy).where(PhotoCopy.c.path == path, PhotoCopy.c.photo_id == photo))
        put_copy(writer, photo, old.path, old.size_bytes, old.mtime_ns, present=False)
        writer.touch()


def put_copy(writer: Writer, photo: int, path: str, size_bytes: int, mtime_ns: int | None, *, present: bool) -> None:
    """Record a further path of a photo, taking it over from another photo that had a copy there once."""
    row = {"path": path, "photo_id": photo, "size_bytes": size_bytes, "mtime_ns": mtime_ns, "present": present}
    writer.upsert(PhotoCopy, [row])


def _show_copy(writer: Writer, photo: int) -> bool:
    """Show a photo from one of its copies, if one is there."""
    query = select(PhotoCopy.c.path, PhotoCopy.c.size_bytes, PhotoCopy.c.mtime_ns)
    query = query.where(PhotoCopy.c.photo_id == photo, PhotoCopy.c.present).order_by(PhotoCopy.c.path).limit(1)
    copy = writer.connection.execute(query).first()
    if copy is None:
        return False
    show_from(writer, photo, copy.path, copy.size_bytes, copy.mtime_ns)
    set_state(writer, photo, "present")
    return True
