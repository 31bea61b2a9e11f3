"""The vector of each box: its views embedded and averaged; and vectors for the boxes of a store that have none yet.

Knows stores, crops and models; no names, no index. A photo's own trouble is a `Failure`, never an exception.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid import crop, ensemble, intake
from reid.embed import Embedder
from reid.images import printable
from reid.intake import Prepared
from reid.records import Failure, Sighting
from reid.store import Store

BATCH = 32  # photos embedded together

Progress = Callable[[str, int, int], None]  # stage, done, total


def quiet(stage: str, done: int, total: int) -> None:
    """No progress shown."""


def views_of(store: Store, embedder: Embedder | None = None) -> tuple[crop.View, ...]:
    """The views whose vectors are averaged, as the settings ask, or by the present model's card or another's."""
    name = store.views_with((embedder or store.embedder).card)
    return crop.views_named(name, mirror=store.config.embedder.mirror)


def embed_views(embedder: Embedder, crops: NDArray[np.uint8], views: int) -> NDArray[np.float32]:
    """`(N · views, H, W, 3)` crops, views of a box side by side → `(N, D) float32` unit rows, the mean of each box's
    views.
    """
    vectors = embedder.embed(crops)
    if views == 1:
        return vectors
    return ensemble.balanced(vectors.reshape(-1, views, vectors.shape[1]).mean(1), embedder.card)


def embed_lacking(
    store: Store, *, by: Embedder | None = None, among: NDArray[np.int64] | None = None, progress: Progress = quiet
) -> list[Failure]:
    """Vectors of the present model, or `by` another, for every annotation in service (`among` some) that has none: new
    boxes, or all after a change of model.
    """
    embedder = by or store.embedder
    fingerprint = store.fingerprint_with(embedder.card)
    lacking = store.catalogue.lacking_embeddings(fingerprint)
    if among is not None:
        lacking = lacking[np.isin(lacking, among)]
    if not len(lacking):
        return []
    infos = store.catalogue.annotations(lacking.tolist())
    hashes = {id: photo.sha256 for id, photo in store.catalogue.photos({i.photo for i in infos.values()}).items()}
    by_path: dict[Path, list[int]] = {}
    for annotation, info in infos.items():
        by_path.setdefault(store.resolve(info.path), []).append(annotation)
    groups = list(by_path.values())
    photos = [
        tuple(Sighting(path, printable(path), box=infos[a].box, species=infos[a].species) for a in ids)
        for path, ids in by_path.items()
    ]
    views, failures, done = views_of(store, embedder), [], 0
    pending: list[tuple[list[int], Prepared]] = []
    prepared = intake.prepare_all(photos, embedder.card.preprocessing, views, croppers=store.croppers)
    for ids, one in zip(groups, prepared, strict=True):
        done += 1
        if isinstance(one, Failure):
            failures.append(one)
        elif one.facts.sha256 != hashes[infos[ids[0]].photo]:
            name = printable(one.facts.path)
            failures.append(Failure(name, "bad_photo", "the file holds another photo now", "reid reindex"))
        elif len(one.boxes) != len(ids):
            failures.extend(one.failures)
        else:
            pending.append((ids, one))
        if len(pending) >= BATCH or done == len(groups):
            if pending:
                crops = np.concatenate([p.crops for _, p in pending])
                vectors = embed_views(embedder, crops, len(views))
                store.catalogue.put_embeddings(fingerprint, [a for ids, _ in pending for a in ids], vectors)
            pending = []
        progress("embed", done, len(groups))
    return failures
