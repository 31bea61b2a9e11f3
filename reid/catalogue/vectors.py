"""Embeddings in the catalogue: the authority that every index is derived from. Knows bytes and ids, not what a vector
means.

A vector *serves* unless its annotation is superseded or its photo's file holds other bytes now. What changed since a
revision is found by index, so that keeping an index up to date costs what changed and not what there is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, delete, select

from reid.catalogue.encoding import bytes_to_vectors, vectors_to_bytes
from reid.catalogue.engine import Writer, reading
from reid.catalogue.names import chunks
from reid.catalogue.records import VectorChunk
from reid.catalogue.tables import Annotation, Embedding, EmbeddingModel, Photo
from reid.errors import CatalogueError


def model_id(writer: Writer, fingerprint: str, dim: int) -> int:
    """The row of a model, made if need be. CatalogueError when its vectors had another size before."""
    found = _model(writer.connection, fingerprint)
    if found is None:
        number = writer.new_id(EmbeddingModel)
        writer.insert(EmbeddingModel, [{"id": number, "fingerprint": fingerprint, "dim": dim}])
        return number
    number, known = found
    if known != dim:
        raise CatalogueError(
            f"vectors of size {dim} from model {fingerprint[:12]}, whose vectors have size {known}",
            next_step="a model that changed must have another fingerprint",
        )
    return number


def store(writer: Writer, fingerprint: str, vectors: Mapping[int, NDArray[np.float32]], *, keep: bool = False) -> int:
    """Write vectors by annotation id; with `keep`, only where there is none. How many were written.

    CatalogueError when an annotation does not exist, sizes differ, or a value does not fit half precision.
    """
    if not vectors:
        return 0
    ids = sorted(vectors)
    try:
        rows = np.stack([np.asarray(vectors[i], dtype=np.float32) for i in ids])
        if rows.ndim != 2:
            raise ValueError(f"vectors have shape {rows.shape[1:]}, expected one row each")
        blobs = vectors_to_bytes(rows)
    except ValueError as error:
        raise CatalogueError(f"vectors cannot be stored: {error}", source=f"model {fingerprint[:12]}") from error
    model = model_id(writer, fingerprint, rows.shape[1])
    connection = writer.connection
    known: set[int] = set()
    there: set[int] = set()
    for part in chunks(ids):
        known.update(connection.scalars(select(Annotation.c.id).where(Annotation.c.id.in_(part))))
        if keep:
            query = select(Embedding.c.annotation_id)
            there.update(
                connection.scalars(query.where(Embedding.c.model_id == model, Embedding.c.annotation_id.in_(part)))
            )
    unknown = [i for i in ids if i not in known]
    if unknown:
        raise CatalogueError(f"annotation {unknown[0]} does not exist", next_step="take ids from the catalogue")
    written = [
        {"model_id": model, "annotation_id": i, "revision": writer.revision, "vector": blob}
        for i, blob in zip(ids, blobs, strict=True)
        if i not in there
    ]
    if written:
        writer.upsert(Embedding, written)
        writer.touch(vectors=True)
    return len(written)


def chunks_of_vectors(
    engine: Engine, fingerprint: str, *, after_revision: int | None, size: int
) -> Iterator[VectorChunk]:
    """The vectors of a model that serve, in order of annotation; see `Catalogue.embeddings`.

    Each chunk is a transaction of its own, so that a slow reader holds nothing up.
    """
    with reading(engine) as connection:
        found = _model(connection, fingerprint)
        if found is None:
            return
        model, dim = found
        ids = None if after_revision is None else _changed(connection, model, after_revision)
        idle = out_of_service(connection)
    columns = select(Embedding.c.annotation_id, Embedding.c.vector).where(Embedding.c.model_id == model)
    columns = columns.order_by(Embedding.c.annotation_id)
    parts = None if ids is None else chunks([i for i in ids if i not in idle], size)
    last = 0
    while True:
        if parts is None:
            query = columns.where(Embedding.c.annotation_id > last).limit(size)
        else:
            part = next(parts, None)
            if part is None:
                return
            query = columns.where(Embedding.c.annotation_id.in_(part))
        with reading(engine) as connection:
            rows = connection.execute(query).all()
        if not rows:
            return
        last = rows[-1].annotation_id
        kept = [row for row in rows if row.annotation_id not in idle]
        if kept:
            numbers = np.array([row.annotation_id for row in kept], dtype=np.int64)
            yield VectorChunk(numbers, bytes_to_vectors([row.vector for row in kept], dim))


def changed_since(connection: Connection, fingerprint: str, after_revision: int) -> list[int]:
    """Annotations that serve and whose vector was written, or that began to serve, after a revision; ascending."""
    found = _model(connection, fingerprint)
    if found is None:
        return []
    idle = out_of_service(connection)
    return [i for i in _changed(connection, found[0], after_revision) if i not in idle]


def out_of_service(connection: Connection, after_revision: int = -1) -> set[int]:
    """Annotations that ceased to serve after a revision, and do not serve now."""
    superseded = select(Annotation.c.id).where(
        Annotation.c.superseded_by_id.is_not(None), Annotation.c.revision > after_revision
    )
    changed = (
        select(Annotation.c.id)
        .join(Photo, Photo.c.id == Annotation.c.photo_id)
        .where(Photo.c.state == "changed", Photo.c.revision > after_revision)
    )
    return {*connection.scalars(superseded), *connection.scalars(changed)}


def lacking(connection: Connection, fingerprint: str) -> NDArray[np.int64]:
    """Annotations in service that have no vector of a model, ascending `(N,) int64`."""
    query = (
        select(Annotation.c.id)
        .join(Photo, Photo.c.id == Annotation.c.photo_id)
        .where(Annotation.c.superseded_by_id.is_(None), Photo.c.state != "changed")
    )
    found = _model(connection, fingerprint)
    if found is not None:
        made = select(Embedding.c.annotation_id)
        made = made.where(Embedding.c.model_id == found[0], Embedding.c.annotation_id == Annotation.c.id)
        query = query.where(~made.exists())
    return np.array(connection.scalars(query.order_by(Annotation.c.id)).all(), dtype=np.int64)


def models(connection: Connection) -> dict[str, int]:
    """Fingerprints of the models that made vectors, and the size of those."""
    query = select(EmbeddingModel.c.fingerprint, EmbeddingModel.c.dim).order_by(EmbeddingModel.c.id)
    return dict(connection.execute(query).all())


def drop(connection: Connection, fingerprints: Collection[str]) -> int:
    """Delete the vectors of models; how many. Their rows stay: numbers of models are never given twice."""
    ids = [found[0] for one in fingerprints if (found := _model(connection, one)) is not None]
    return sum(connection.execute(delete(Embedding).where(Embedding.c.model_id == id)).rowcount for id in ids)


def _model(connection: Connection, fingerprint: str) -> tuple[int, int] | None:
    query = select(EmbeddingModel.c.id, EmbeddingModel.c.dim).where(EmbeddingModel.c.fingerprint == fingerprint)
    row = connection.execute(query).first()
    return None if row is None else (row.id, row.dim)


def _changed(connection: Connection, model: int, after_revision: int) -> list[int]:
    """Annotations whose vector was written, or began to serve, after a revision."""
    written = select(Embedding.c.annotation_id).where(
        Embedding.c.model_id == model, Embedding.c.revision > after_revision
    )
    began = (
        select(Annotation.c.id)
        .join(Photo, Photo.c.id == Annotation.c.photo_id)
        .where(Photo.c.revision > after_revision, Photo.c.state != "changed")
    )
    return sorted({*connection.scalars(written), *connection.scalars(began)})


def by_annotation(ids: Sequence[int], vectors: NDArray[np.float32]) -> dict[int, NDArray[np.float32]]:
    """Rows under their ids. CatalogueError when the numbers differ or an id comes twice."""
    if vectors.ndim != 2 or len(ids) != len(vectors):
        raise CatalogueError(
            f"{len(ids)} annotations and vectors of shape {vectors.shape}", next_step="give one row each"
        )
    if len(set(ids)) != len(ids):
        raise CatalogueError("an annotation is given two vectors", next_step="give each once")
    return dict(zip(ids, vectors, strict=True))


def fetch(connection: Connection, fingerprint: str, ids: Collection[int]) -> dict[int, NDArray[np.float32]]:
    """The vectors `(D,) float32` of some annotations; those that have none are left out."""
    found = _model(connection, fingerprint)
    if found is None:
        return {}
    model, dim = found
    vectors: dict[int, NDArray[np.float32]] = {}
    for part in chunks(ids):
        query = select(Embedding.c.annotation_id, Embedding.c.vector)
        query = query.where(Embedding.c.model_id == model, Embedding.c.annotation_id.in_(part))
        rows = connection.execute(query).all()
        if rows:
            made = bytes_to_vectors([row.vector for row in rows], dim)
            vectors.update((row.annotation_id, vector) for row, vector in zip(rows, made, strict=True))
    return vectors
