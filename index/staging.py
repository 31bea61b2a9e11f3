"""A gallery made aside and put in the place of another in one step.

For a rebuild: fill it, ask it, compare its answers with the present gallery's, and only then `publish` it. Until then
the present one serves; afterwards readers that still have it open keep it until they refresh. What a killed rebuild
leaves behind is swept by the next writer. Knows galleries and files. Errors: those of `Gallery`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid.errors import GalleryError, IndexStale
from reid.index import snapshot
from reid.index.gallery import WAIT, Gallery, typed_failures
from reid.index.view import REINDEX

COMMIT_ROWS = 65_536  # rows of a new snapshot that are held in memory at a time


@contextmanager
def staging(
    folder: Path, *, fingerprint: str, dim: int, backend: str = "flat", timeout: float = WAIT
) -> Iterator[Gallery]:
    """An empty gallery beside the one in `folder`, which need not exist yet.

    Gone when left, whether published or not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with snapshot.building(folder, timeout=timeout) as place:
        yield Gallery.create(place / "staged", fingerprint=fingerprint, dim=dim, backend=backend, timeout=timeout)


def publish(staged: Gallery, folder: Path, *, expect: int | None = None, timeout: float = WAIT) -> Gallery:
    """Put `staged`, as last committed, in the place of the gallery in `folder`; the gallery that is there now.

    Its revision replaces the old one, even a higher one. With `expect`, `IndexStale` unless the gallery in `folder`
    is still at that revision, for what was committed there since would be lost. `SnapshotCorrupt`, and no change, if
    `staged` is damaged.
    """
    staged.refresh()
    staged.check()
    with typed_failures(folder), snapshot.lock(folder / snapshot.LOCK, timeout=timeout):
        generation: int = 0
        revision: int | None = None
        with suppress(GalleryError):  # what is absent or damaged is what a rebuild is for
            present = snapshot.read_manifest(folder)
            generation = present.generation
            revision = present.revision
        if expect is not None and revision not in (expect, None):
            raise IndexStale(
                f"the gallery went on from revision {expect} to {revision}", source=str(folder), next_step=REINDEX
            )
        manifest = snapshot.read_manifest(staged.folder)
        for file in manifest.files:
            _link(staged.folder / file.name, folder / file.name)
        snapshot.force_folder(folder)
        manifest = replace(manifest, generation=max(generation, manifest.generation) + 1)
        snapshot.write_manifest(folder, manifest)
        snapshot.sweep(folder, manifest)
    return Gallery.open(folder, fingerprint=manifest.fingerprint, timeout=timeout)


def write_snapshot(
    folder: Path,
    rows: Iterable[tuple[Sequence[str], NDArray[np.float32]]],
    *,
    fingerprint: str,
    dim: int,
    revision: int,
    backend: str = "flat",
    expect: int | None = None,
    timeout: float = WAIT,
) -> Gallery:
    """Build a gallery of `rows`, chunks of ids and `(n, dim) float32` unit rows, in place of the one in `folder`."""
    with staging(folder, fingerprint=fingerprint, dim=dim, backend=backend, timeout=timeout) as staged:
        held = 0
        for ids, vectors in rows:
            staged.add(ids, vectors)
            held += len(ids)
            if held >= COMMIT_ROWS:
                staged.commit(revision=revision)
                held = 0
        staged.commit(revision=revision)
        staged.compact()
        return publish(staged, folder, expect=expect, timeout=timeout)


def _link(source: Path, target: Path) -> None:
    """The same file under a second name, so that the staged gallery stays whole.

    A copy where the file system cannot.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        snapshot.record_file(target.parent, target.name)
