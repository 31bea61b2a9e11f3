"""Enrolment: sightings → catalogue (photos, boxes, names, vectors) → index; whatever cannot be used goes into a report.

Work is committed in small batches: what a batch acknowledged survives a kill, and running the same command again goes
on where it stopped, because a file of known path, size and time is not read again. Only catalogue and index are
written, never a photo.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from reid import fit, intake, local, relocate, suitable
from reid.catalogue import Added, KnownFile, NewAnnotation, NewPhoto, PhotoInfo
from reid.errors import PhotoError, ReidError, StoreBusy, StoreError
from reid.exchange import failure_of
from reid.images import printable
from reid.intake import Prepared
from reid.records import Failure, PhotoFacts, Sighting
from reid.store import Store
from reid.vectors import embed_lacking, embed_views, views_of

BATCH = 32  # photos a transaction

Progress = Callable[[str, int, int], None]  # stage, done, total


def quiet(stage: str, done: int, total: int) -> None:
    """No progress shown."""


@dataclass
class EnrolReport:
    """What an enrolment did. Counts are of photos unless named otherwise; `seconds` by stage."""

    new: int = 0
    known: int = 0
    moved: int = 0
    copies: int = 0
    named: int = 0
    annotations: int = 0
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def spent(self, stage: str, since: float) -> float:
        """Add the time since `since` to a stage; the time now."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now


def enrol(store: Store, sightings: Sequence[Sighting], *, who: str, progress: Progress = quiet) -> EnrolReport:
    """Take sightings in; running it again with the same ones changes nothing.

    Raises:
        CatalogueError, GalleryError: the store itself cannot be written. A photo's own trouble is in the report.
    """
    report = EnrolReport()
    if store.config.embedder.model == "auto" and sightings:
        choice = suitable.choose(store, sightings)
        store.settle_model(choice.name)
        report.notes.append(f"model {choice.name}: {choice.why}")
    if not store.catalogue.counts().annotations:
        relocate.note(store)
    photos = intake.by_photo(sightings)
    start = time.perf_counter()
    files = store.catalogue.known_files()
    unread, reread = _split_known(files, photos)
    by_hash: dict[str, list[KnownFile]] = {}
    for file in files:
        by_hash.setdefault(file.sha256, []).append(file)
    if reread:
        _name_known(store, reread, report, who)
    start = report.spent("known", start)
    done, total = len(reread), len(photos)
    progress("enrol", done, total)
    views, card = views_of(store), store.embedder.card
    batch: list[Prepared] = []
    unread = [tuple(_of_species(store, sighting) for sighting in group) for group in unread]
    describe, croppers = local.description(store), store.croppers
    prepared = intake.prepare_all(
        unread, card.preprocessing, views, describe=describe, croppers=croppers, further=local.describer(store)
    )
    for one in prepared:
        done += 1
        if isinstance(one, Failure):
            report.failures.append(one)
        else:
            report.failures.extend(one.failures)
            batch.append(one)
        if len(batch) >= BATCH:
            start = report.spent("read", start)
            start = _commit(store, batch, by_hash, report, who, start)
            batch = []
        progress("enrol", done, total)
    start = report.spent("read", start)
    if batch:
        start = _commit(store, batch, by_hash, report, who, start)
    report.failures.extend(embed_lacking(store, progress=progress))
    start = report.spent("embed", start)
    settle_encounters(store)
    store.repaired_gallery()
    report.failures.extend(local.bring_up(store, progress=progress))
    start = report.spent("index", start)
    if fit.is_due(store):
        fit.fit(store, failures=report.failures, progress=progress)
        report.spent("fit", start)
    return report


def _of_species(store: Store, sighting: Sighting) -> Sighting:
    """The sighting with its species, the store's where it names none."""
    return replace(sighting, species=sighting.species or store.config.species or None)


def settle_encounters(store: Store) -> int:
    """Group what has no encounter yet by time and place, as the settings say; how many photos changed."""
    from datetime import timedelta

    settings = store.config.encounters
    return store.catalogue.group_encounters(timedelta(minutes=settings.max_gap_minutes), settings.max_km)


def _split_known(
    files: Sequence[KnownFile], photos: Sequence[tuple[Sighting, ...]]
) -> tuple[list[tuple[Sighting, ...]], list[tuple[tuple[Sighting, ...], KnownFile]]]:
    """The photos to read, and those whose file is as it was when it was read last."""
    known = {os.fspath(file.path): file for file in files}
    unread, reread = [], []
    for group in photos:
        path = os.path.abspath(group[0].path)
        file = known.get(path)
        if file is not None and file.state == "present" and _unchanged(path, file):
            reread.append((group, file))
        else:
            unread.append(group)
    return unread, reread


def _unchanged(path: str, file: KnownFile) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return status.st_size == file.size_bytes and status.st_mtime_ns == file.mtime_ns


def _name_known(
    store: Store, reread: Sequence[tuple[tuple[Sighting, ...], KnownFile]], report: EnrolReport, who: str
) -> None:
    """Give known photos what the table says of them now; a box that is new gets its vector from `embed_lacking`."""
    infos = store.catalogue.photos([file.photo for _, file in reread])
    bare = set() if store.croppers.whole else _bare(store, infos)
    for at in range(0, len(reread), 256):
        new = []
        for group, file in reread[at : at + 256]:
            info = infos[file.photo]
            find = (lambda sighting: None) if file.photo in bare else None  # looked at before, and nothing found
            masked = intake.with_masks(group, info.width, info.height)
            kept, boxes, failures = intake.place_boxes(masked.sightings, info.width, info.height, find)
            report.failures.extend([*masked.failures, *failures])
            local.keep_masks(store, info.sha256, masked.encoded(kept, boxes))
            facts = replace(_facts_of(info), path=Path(os.path.abspath(group[0].path)))
            new.append(_new_photo(store, facts, file.mtime_ns, kept, [NewAnnotation(box) for box in boxes]))
        _record(store, new, report, who, None)


def _bare(store: Store, photos: Mapping[int, PhotoInfo]) -> set[int]:
    """Those of the photos that hold no annotation in service."""
    ids = store.catalogue.annotations_of(photos=list(photos))
    return set(photos) - {info.photo for info in store.catalogue.annotations(ids).values()}


def _facts_of(info: PhotoInfo) -> PhotoFacts:
    """What the catalogue knows of a photo, as if it had been read again."""
    return PhotoFacts(
        path=info.path,
        sha256=info.sha256,
        width=info.width,
        height=info.height,
        format=info.format,
        size_bytes=info.size_bytes,
        phash=info.phash,
        taken_at=info.taken_at,
        latitude=info.latitude,
        longitude=info.longitude,
        camera=info.camera,
        notes=info.notes,
    )


def _new_photo(
    store: Store,
    facts: PhotoFacts,
    mtime_ns: int | None,
    sightings: Sequence[Sighting],
    annotations: Sequence[NewAnnotation],
) -> NewPhoto:
    """What the catalogue is told: annotations filled with what their sightings say."""
    filled = tuple(
        replace(
            a,
            identity=None if s.identity == store.config.decision.new_label else s.identity,
            side=s.side,
            species=s.species or store.config.species or None,
        )
        for a, s in zip(annotations, sightings, strict=True)
    )
    encounter = next((s.encounter for s in sightings if s.encounter), None)
    where = sightings[0].where if sightings else ""
    return NewPhoto(facts, filled, encounter=encounter, mtime_ns=mtime_ns, where=where)


def _commit(
    store: Store,
    batch: Sequence[Prepared],
    by_hash: Mapping[str, Sequence[KnownFile]],
    report: EnrolReport,
    who: str,
    start: float,
) -> float:
    """Embed what is new in a batch and record it in one transaction; the time when that was done."""
    fresh = [one for one in batch if one.facts.sha256 not in by_hash]
    rows = np.empty((0, 1), np.float32)
    if fresh:
        rows = embed_views(store.embedder, np.concatenate([one.crops for one in fresh]), len(views_of(store)))
    start = report.spent("embed", start)
    new, gone, at = [], [], 0
    for one in batch:
        qualities = one.qualities or (None,) * len(one.boxes)
        annotations = [NewAnnotation(box, quality=q) for box, q in zip(one.boxes, qualities, strict=True)]
        if one.facts.sha256 not in by_hash:  # else its vectors are there; a new box gets its own from `embed_lacking`
            vectors = rows[at : at + len(one.boxes)]
            at += len(one.boxes)
            annotations = [replace(a, vector=row) for a, row in zip(annotations, vectors, strict=True)]
        try:
            facts = _kept_copy(store, one.facts) if store.config.photos.copy else one.facts
        except PhotoError as error:
            report.failures.append(failure_of(error))
            continue
        gone += [
            file.path
            for file in by_hash.get(facts.sha256, ())
            if file.state == "present" and file.path != facts.path and not os.path.lexists(store.resolve(file.path))
        ]
        local.keep(store, one)
        new.append(_new_photo(store, facts, one.mtime_ns, one.sightings, annotations))
    if gone:
        store.catalogue.mark_missing(gone)
    _record(store, new, report, who, store.fingerprint)
    return report.spent("catalogue", start)


def _record(store: Store, new: Sequence[NewPhoto], report: EnrolReport, who: str, fingerprint: str | None) -> None:
    """Write a batch; where one photo spoils it, the photos go in one by one and that one is reported."""
    try:
        added = list(zip(new, store.catalogue.add_photos(new, who=who, fingerprint=fingerprint), strict=True))
    except StoreBusy:
        raise
    except ReidError as spoilt:
        added, failures = [], []
        for photo in new:
            try:
                added.append((photo, store.catalogue.add_photos([photo], who=who, fingerprint=fingerprint)[0]))
            except ReidError as error:
                failures.append(failure_of(error))
        if not added and len(new) > 1:  # it is the catalogue that fails, not a photo
            raise spoilt
        report.failures.extend(failures)
    for photo, one in added:
        _count(report, photo, one)


def _count(report: EnrolReport, photo: NewPhoto, added: Added) -> None:
    report.new += added.status == "new"
    report.known += added.status == "known"
    report.moved += added.status == "moved"
    report.copies += added.status == "copy"
    report.named += len(added.named)
    report.annotations += sum(added.fresh)
    name = printable(photo.facts.path)
    report.notes.extend(f"{name}: {note}" for note in photo.facts.notes if added.status == "new")
    if added.status == "copy":
        report.notes.append(f"{name}: the same photo is enrolled under another name; its new path was noted")
    for conflict in added.conflicts:
        report.failures.append(
            Failure(
                photo.where or name,
                "conflict",
                f"is on record with {conflict.kind} '{conflict.kept}', the table says '{conflict.given}'; "
                "the record was kept",
                "reid individuals split / merge, if the table is right",
            )
        )


def _kept_copy(store: Store, facts: PhotoFacts) -> PhotoFacts:
    """Copy a photo into the store under its checksum (written aside and renamed); its path is then relative to the
    store.
    """
    relative = Path("photos", facts.sha256[:2], facts.sha256 + facts.path.suffix.lower())
    target = store.root / relative
    if not target.exists():
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(facts.path, aside)
            os.replace(aside, target)
        except OSError as error:
            aside.unlink(missing_ok=True)
            if not os.access(facts.path, os.R_OK):
                raise PhotoError(
                    "it vanished before it could be copied",
                    source=printable(facts.path),
                    next_step="enrol it again when it is back",
                ) from error
            raise StoreError(
                f"the photo cannot be copied ({error.strerror})",
                source=printable(facts.path),
                next_step="free the disk",
            ) from error
    return replace(facts, path=relative)
