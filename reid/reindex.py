"""The nightly run: what changed on disk and in the settings → vectors → a new index beside the old, checked, swapped → a report of what is different.

Looks again at everything that was ever enrolled: files that vanished or hold other bytes are marked, never deleted; the folders and tables that
enrolments named are read again for what is new. A change of model embeds everything anew and swaps only when all of it is there. At the end every
photo that nobody has named is asked again, and those that match now, but did not last time, are listed.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reid import decide, fit, local, relocate
from reid.aggregate import identity_scores
from reid.catalogue import KnownFile
from reid.enrol import EnrolReport, Progress, enrol, quiet, settle_encounters
from reid.errors import IndexStale, ReidError, SnapshotCorrupt
from reid.exchange import failure_of, read_sources
from reid.images import printable
from reid.pipeline import Identifier
from reid.records import Failure, Sighting
from reid.remove import removed_paths
from reid.search import Probe
from reid.store import Store
from reid.vectors import embed_lacking

if TYPE_CHECKING:
    from reid.retrain import Refused, Report
    from reid.train_siamese import Report as Heads

SOURCES = "sources.json"
UNKNOWNS = "unknowns.json"
ASKED = 64  # unknowns asked together
MOST_REPORTED = 1000  # unknowns listed in one report


@dataclass(frozen=True, slots=True)
class UnknownMatch:
    """A photo nobody has named that the gallery now takes for a known animal."""

    annotation: int
    photo: str
    identity: str
    score: float
    probability: float | None


@dataclass
class ReindexReport:
    """What a nightly run found and did."""

    vanished: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    back: list[str] = field(default_factory=list)
    enrolled: EnrolReport = field(default_factory=EnrolReport)
    relocated: int = 0
    embedded: int = 0
    rebuilt: str = ""
    photos_before: int = 0
    photos_now: int = 0
    threshold_before: float | None = None
    threshold_now: float | None = None
    matches: list[UnknownMatch] = field(default_factory=list)
    training: Report | Refused | None = None
    siamese: Heads | Refused | None = None
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0


def remember_sources(
    store: Store, sources: Sequence[str | Path], table: Path | None, root: Path | None, layout: str
) -> None:
    """Note what an enrolment was given, so that the nightly run looks there again."""
    known = (store.read_json(SOURCES) or {}).get("sources", [])
    entry: dict[str, Any] = {
        "sources": [os.path.abspath(s) for s in sources],
        "table": os.path.abspath(table) if table else None,
        "root": os.path.abspath(root) if root else None,
        "layout": layout,
    }
    if entry not in known:
        store.write_json(SOURCES, {"sources": [*known, entry]})


def reindex(
    store: Store,
    *,
    who: str,
    force: bool = False,
    train: Callable[[Store, Progress], Report | Refused] | None = None,
    heads: Callable[[Store, Progress], Heads | Refused | None] | None = None,
    progress: Progress = quiet,
) -> ReindexReport:
    """Bring the store up to date; `force` builds the index anew even where nothing asks for it. `train` may put another
    model in force once everything else is taken in (`reid.retrain.night`), and `heads` train its Siamese heads after that
    (`reid.train_siamese.night`).

    Raises:
        CatalogueError, GalleryError, ModelError: the store itself cannot be read or written; what was there before still serves.
    """
    begun = time.perf_counter()
    report = ReindexReport()
    before = _present(store, report)
    changed = _look_at_files(store, report, progress)
    _relocate(store, who, report, progress)
    report.embedded = _embed_anew(store, report, progress)
    report.enrolled = _enrol_again(store, who, progress)
    _enrol_changed(store, changed, who, report)
    report.failures = list(dict.fromkeys([*report.failures, *report.enrolled.failures]))
    settle_encounters(store)
    if train is not None:
        report.training = train(store, progress)
        if report.training.swapped:
            report.embedded += _embed_anew(store, report, progress)
            report.rebuilt = "a new model"
    progress("index", 0, 1)
    report.rebuilt = report.rebuilt or ("asked for" if force else "")
    report.failures = list(dict.fromkeys([*report.failures, *local.bring_up(store, check=True, progress=progress)]))
    if report.rebuilt or fit.is_due(store):
        report.rebuilt = report.rebuilt or "the gallery has outgrown its last fit"
        fit.fit(store, failures=report.failures, progress=progress)
    if heads is not None:
        report.siamese = heads(store, progress)
    gallery = store.gallery()
    gallery.check()
    gallery.compact()
    progress("index", 1, 1)
    fitted = fit.read(store, gallery.fingerprint)
    report.photos_before, report.threshold_before = before
    report.photos_now, report.threshold_now = len(gallery), fitted.threshold if fitted else None
    report.matches = _ask_unknowns(store, progress)
    report.seconds = time.perf_counter() - begun
    return report


def _present(store: Store, report: ReindexReport) -> tuple[int, float | None]:
    """Photos and threshold of the index as found; a damaged or foreign one is noted for rebuilding."""
    try:
        gallery = store.gallery()
        gallery.check()
        store.whitening(gallery)
    except (SnapshotCorrupt, IndexStale) as error:
        report.rebuilt = error.message
        return 0, None
    last = fit.read(store, gallery.fingerprint)
    return len(gallery), last.threshold if last else None


def _look_at_files(store: Store, report: ReindexReport, progress: Progress) -> list[Path]:
    """Compare every known file with the disk: gone, back, or holding other bytes; the files that do."""
    out = {photo.id for photo in store.catalogue.removed()}
    files = [file for file in store.catalogue.known_files() if file.photo not in out]
    gone: list[Path] = []
    changed: list[Path] = []
    back: list[Path] = []
    for done, file in enumerate(files):
        kind = _state(store, file)
        if kind == "missing" and file.state == "present":
            gone.append(file.path)
        elif kind == "changed" and file.state != "changed":
            changed.append(file.path)
        elif kind == "present" and file.state != "present":
            back.append(file.path)
        if done % 500 == 0:
            progress("files", done, len(files))
    store.catalogue.mark_missing(gone)
    store.catalogue.mark_changed(changed)
    store.catalogue.mark_present(back)
    report.vanished, report.changed, report.back = ([printable(p) for p in paths] for paths in (gone, changed, back))
    return changed


def _relocate(store: Store, who: str, report: ReindexReport, progress: Progress) -> None:
    """Boxes again, where `reid.toml` names another cropper than the one that found them."""
    if relocate.is_due(store):
        done = relocate.relocate(store, who=who, progress=progress)
        report.failures.extend(done.failures)
        report.relocated = done.moved
        report.rebuilt = report.rebuilt or ("another cropper" if done.moved else "")


def _embed_anew(store: Store, report: ReindexReport, progress: Progress) -> int:
    """Vectors for what has none of the present model (all, after a change of model); how many were made."""
    lacking = len(store.catalogue.lacking_embeddings(store.fingerprint))
    report.failures.extend(embed_lacking(store, progress=progress))
    return lacking - len(store.catalogue.lacking_embeddings(store.fingerprint))


def _enrol_changed(store: Store, changed: Sequence[Path], who: str, report: ReindexReport) -> None:
    """Take in the new content of files that no source of an earlier enrolment has brought: a photo nobody has named."""
    if changed:
        sightings = [Sighting(store.resolve(p), f"{printable(p)} (its content changed)") for p in changed]
        _add(report.enrolled, enrol(store, sightings, who=who))


def _state(store: Store, file: KnownFile) -> str:
    """`present`, `missing` or `changed`; a file of the same size and time is not read."""
    path = store.resolve(file.path)
    try:
        status = os.stat(path)
        if status.st_size == file.size_bytes and status.st_mtime_ns == file.mtime_ns and file.state != "changed":
            return "present"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "missing"
    return "present" if digest == file.sha256 else "changed"


def _enrol_again(store: Store, who: str, progress: Progress) -> EnrolReport:
    """Read every source of earlier enrolments again; known files cost a look at their time and size."""
    total = EnrolReport()
    photos = {os.fspath(store.resolve(file.path)) for file in store.catalogue.known_files()}
    out = removed_paths(store)
    for entry in (store.read_json(SOURCES) or {}).get("sources", []):
        # a single photo that has gone is listed as vanished; a folder or table that has gone is somebody's mistake
        sources = [s for s in entry["sources"] if s not in out and (os.path.exists(s) or s not in photos)]
        if entry["sources"] and not sources:
            continue
        table, root = (Path(entry[k]) if entry[k] else None for k in ("table", "root"))
        try:
            found = read_sources(sources, table=table, root=root, layout=entry["layout"], removed=out)
        except ReidError as error:  # a table that has gone: the rest of the store is brought up to date all the same
            total.failures.append(failure_of(error))
            continue
        total.failures.extend(found.failures)
        _add(total, enrol(store, found.sightings, who=who, progress=progress))
    return total


def _add(total: EnrolReport, one: EnrolReport) -> None:
    """Count an enrolment into the sum."""
    total.failures.extend(one.failures)
    total.notes.extend(one.notes)
    for name in ("new", "known", "moved", "copies", "named", "annotations"):
        setattr(total, name, getattr(total, name) + getattr(one, name))


def _ask_unknowns(store: Store, progress: Progress) -> list[UnknownMatch]:
    """Photos without a name that match a known animal at the store's threshold now, and did not at the last run."""
    identifier = Identifier.open(store)
    labels = store.catalogue.labels()
    unnamed = labels.annotations[labels.individuals < 0].tolist()
    before = set((store.read_json(UNKNOWNS) or {}).get("matched", []))
    matched: list[UnknownMatch] = []
    for at in range(0, len(unnamed), ASKED):
        part = [a for a in unnamed[at : at + ASKED] if str(a) in identifier.gallery]
        if part:
            matched.extend(_match(identifier, part))
        progress("unknowns", min(at + ASKED, len(unnamed)), len(unnamed))
    store.write_json(UNKNOWNS, {"matched": sorted(f"{m.annotation}:{m.identity}" for m in matched)})
    fresh = [m for m in matched if f"{m.annotation}:{m.identity}" not in before]
    return sorted(fresh, key=lambda m: -m.score)[:MOST_REPORTED]


def _match(identifier: Identifier, annotations: list[int]) -> list[UnknownMatch]:
    store, search = identifier.store, identifier.search
    infos = store.catalogue.annotations(annotations)
    vectors = identifier.gallery.vectors([str(a) for a in annotations])
    keys = local.keys(store, annotations) if search.local else {}
    raw = store.catalogue.embeddings_of(store.fingerprint, annotations) if search.heads else {}
    probes = [
        Probe(
            vector,
            search.local.features_of(keys, str(a)) if search.local else None,
            infos[a].side,
            exclude=frozenset(mates),
            further=search.local.compared_of(keys, str(a)) if search.local else None,
            raw=raw.get(a),
        )
        for a, vector, mates in zip(annotations, vectors, _mates(store, annotations), strict=True)
    ]
    out = []
    for annotation, found in zip(annotations, search.find(probes), strict=True):
        ids, scores = found.candidates.ids, found.candidates.scores
        ranking = identity_scores(scores, [search.code(i) for i in ids], store.config.decision.aggregate)
        ranking = search.weighed(ranking, [found])
        if len(ranking.codes) and decide.place_of_new(ranking.scores[:1], identifier.threshold):
            name = search.info(ids[int(ranking.best[0])]).identity or ""
            curve = identifier.fit.curve if identifier.fit else None
            chance = float(curve.probability(ranking.scores[:1])[0]) if curve else None
            path = printable(store.resolve(infos[annotation].path))
            out.append(UnknownMatch(annotation, path, name, float(ranking.scores[0]), chance))
    return out


def _mates(store: Store, annotations: list[int]) -> list[set[str]]:
    """For each annotation those of its own encounter, itself among them: frames of one sighting prove nothing."""
    infos = store.catalogue.annotations(annotations)
    encounters = sorted({i.encounter for i in infos.values() if i.encounter is not None})
    members: dict[int, set[str]] = {
        e: {str(a) for a in store.catalogue.annotations_of(encounters=[e])} for e in encounters
    }
    return [{str(a)} | members.get(infos[a].encounter or -1, set()) for a in annotations]
