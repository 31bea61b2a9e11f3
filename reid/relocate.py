"""Another cropper in `reid.toml`: boxes that a machine drew are drawn again; those of tables and people stay.

    <store>/cropper.json   the fingerprint of the croppers by which the boxes on record were found

A photo with one box that a machine drew (or with the whole photo for a box) is looked at again. Where the new box
differs it takes the place of the old one, which stays on record as superseded, and inherits its name; its vector is
made as for any new box. Knows a store's photos and boxes; no vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from reid import intake
from reid.catalogue import AnnotationInfo, NewAnnotation, NewPhoto, PhotoInfo
from reid.catalogue.boxes import MACHINE, same
from reid.images import printable
from reid.intake import Prepared
from reid.records import Failure, Sighting
from reid.store import Store

RECORD = "cropper.json"
_BATCH = 32  # photos a transaction

Progress = Callable[[str, int, int], None]  # stage, done, total


@dataclass
class Relocated:
    """How many photos were looked at, how many boxes moved, and what could not be read or holds no animal now."""

    looked: int = 0
    moved: int = 0
    failures: list[Failure] = field(default_factory=list)


def note(store: Store) -> None:
    """Record that the boxes there are come from the present croppers."""
    if store.croppers.fingerprint != _noted(store):
        store.write_json(RECORD, {"fingerprint": store.croppers.fingerprint})


def is_due(store: Store) -> bool:
    """Whether boxes on record were found by other croppers than those of `reid.toml`."""
    return store.croppers.fingerprint != _noted(store)


def _noted(store: Store) -> str:
    return str((store.read_json(RECORD) or {}).get("fingerprint", ""))


def relocate(store: Store, *, who: str, progress: Progress) -> Relocated:
    """Look at every photo with a machine's box again. Interrupted, it begins anew with what is left to move."""
    done = Relocated()
    chosen = _chosen(store)
    photos = store.catalogue.photos([info.photo for info in chosen])
    groups = [(Sighting(store.resolve(i.path), printable(i.path), species=i.species),) for i in chosen]
    waiting: list[NewPhoto] = []
    prepared = intake.prepare_all(groups, intake.NO_CROP, (), croppers=store.croppers)
    for info, one in zip(chosen, prepared, strict=True):
        done.looked += 1
        if isinstance(one, Failure):
            done.failures.append(one)
        elif one.facts.sha256 != photos[info.photo].sha256:
            name = printable(info.path)
            done.failures.append(Failure(name, "bad_photo", "the file holds another photo now", "reid reindex"))
        elif not one.boxes:
            done.failures.extend(replace(f, next_step=f"its old box stays; {f.next_step}") for f in one.failures)
        elif same(one.boxes[0], [info.box]) is None or one.boxes[0].origin != info.box.origin:
            waiting.append(_moved(info, photos[info.photo], one))
        if len(waiting) >= _BATCH or done.looked == len(chosen):
            store.catalogue.add_photos(waiting, who=who, fingerprint=None)
            done.moved += len(waiting)
            waiting = []
        progress("boxes", done.looked, len(chosen))
    note(store)
    return done


def _chosen(store: Store) -> list[AnnotationInfo]:
    """The annotations that are a machine's and alone in their photo."""
    by_photo: dict[int, list[AnnotationInfo]] = {}
    for info in store.catalogue.annotations(store.catalogue.annotations_of()).values():
        by_photo.setdefault(info.photo, []).append(info)
    return [infos[0] for infos in by_photo.values() if len(infos) == 1 and infos[0].box.origin in MACHINE]


def _moved(info: AnnotationInfo, photo: PhotoInfo, one: Prepared) -> NewPhoto:
    """What the catalogue is told of a photo whose box is another one now."""
    quality = one.qualities[0] if one.qualities else None
    annotation = NewAnnotation(one.boxes[0], side=info.side, species=info.species, quality=quality)
    return NewPhoto(
        replace(one.facts, path=photo.path), (annotation,), mtime_ns=one.mtime_ns, where="reindex", relocated=True
    )
