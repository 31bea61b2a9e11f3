"""`reid remove`: photos out of service. Their vectors leave the index; boxes, names and events stay in the catalogue.

For photos that are gone for good, or should never have been taken in. A removed photo is passed by when its folder or
table is read again, so that nightly runs neither miss it nor bring it back; `reid enroll PHOTO`, the photo itself
named, puts it back into service. Knows a store's files and photos; no vectors.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reid.images import printable
from reid.records import Failure
from reid.store import Store


@dataclass
class Removed:
    """Paths that went out of service, how many boxes the index holds now, and what could not be removed."""

    photos: list[str] = field(default_factory=list)
    indexed: int = 0
    failures: list[Failure] = field(default_factory=list)


def remove(store: Store, paths: Sequence[Path], *, missing: bool = False, who: str, why: str = "") -> Removed:
    """Take the photos at `paths` out (a bare name will do where one photo bears it); with `missing`, every photo, too,
    whose file is not there.

    Raises:
        CatalogueError, GalleryError: the store cannot be written.
    """
    done = Removed()
    out = {photo.id for photo in store.catalogue.removed()}
    shown: dict[str, int] = {}
    present: set[int] = set()
    for file in store.catalogue.known_files():  # a photo's own path comes before those of copies
        shown.setdefault(os.fspath(store.resolve(file.path)), file.photo)
        if missing and file.photo not in present and store.resolve(file.path).exists():
            present.add(file.photo)
    chosen = set(shown.values()) - present - out if missing else set()
    for path in paths:
        found = _meant(path, shown)
        if len(found) == 1 and not found & out:
            chosen |= found
        else:
            done.failures.append(_refusal(path, len(found), bool(found & out)))
    ids = store.catalogue.remove(sorted(chosen), who=who, why=why)
    done.photos = [printable(store.resolve(info.path)) for info in store.catalogue.photos(ids).values()]
    done.indexed = len(store.gallery())
    return done


def removed_paths(store: Store) -> frozenset[str]:
    """Absolute paths at which the photos are or were that somebody removed."""
    out = {photo.id for photo in store.catalogue.removed()}
    if not out:
        return frozenset()
    return frozenset(os.fspath(store.resolve(f.path)) for f in store.catalogue.known_files() if f.photo in out)


def _meant(path: Path, shown: dict[str, int]) -> set[int]:
    """The photos that a path, or a bare file name, may mean."""
    exact = shown.get(os.path.abspath(path))
    if exact is not None:
        return {exact}
    if path.name != os.fspath(path):
        return set()
    return {photo for other, photo in shown.items() if os.path.basename(other) == path.name}


def _refusal(path: Path, found: int, removed: bool) -> Failure:
    source = printable(path)
    if found > 1:
        return Failure(source, "bad_input", f"{found} photos bear this name", "give the whole path")
    if removed:
        return Failure(source, "bad_input", "was removed before", f"reid enroll {source} brings it back")
    return Failure(source, "bad_input", "no photo of this store", "give its path as it was enrolled")
