"""`identify`: photos of a sighting → the five best identities, the new individual among them where no known one fits.

One photo's way: `intake` (read, place the box, cut) → `embed` → gallery search → identity scores → fused over the
sighting's photos → the new individual inserted at the store's threshold → `Answer`. Many queries go through the same
steps together; an evaluation and a nightly run use exactly this path. Reads the store, writes nothing but an index that
was behind.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid import aggregate, decide, fit, intake
from reid.aggregate import Ranking
from reid.catalogue import AnnotationInfo
from reid.config import DecisionConfig
from reid.enrol import embed_views, views_of
from reid.errors import IndexStale, ReidError, SnapshotCorrupt
from reid.fit import Fit
from reid.images import hamming, printable
from reid.index import Gallery, IdSet
from reid.intake import Prepared
from reid.records import Answer, Box, Candidates, Compared, Failure, IdentityScore, Side, Sighting
from reid.store import CALIBRATION, Store

OPPOSITE: dict[Side, Side] = {"left": "right", "right": "left"}
BURST_BITS = 8  # perceptual hashes closer than this are frames of one burst, and have one vote
DEEPER = 4  # times as many neighbours, where the nearest show too few animals
BATCH = 64  # queries embedded and searched together


Observe = Callable[[list[int], NDArray[np.float32]], None]


@dataclass(frozen=True, slots=True)
class Query:
    """One sighting to name: its photos (with boxes and side where known) and who it may be.

    `species` restricts the gallery to annotations of that species; empty for all.
    """

    sightings: tuple[Sighting, ...]
    species: str = ""


def query_of(paths: Sequence[Path], *, side: Side = "unknown", species: str = "", box: Box | None = None) -> Query:
    """A query from bare paths."""
    return Query(tuple(Sighting(path, printable(path), side=side, box=box) for path in paths), species)


@dataclass(eq=False)
class _Asked:
    """One query on its way."""

    query: Query
    prepared: list[Prepared] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Identifier:
    """A store opened for answering: gallery and fit, once for many queries."""

    store: Store
    gallery: Gallery
    fit: Fit | None
    identities: int
    photos: int
    k: int = decide.LABELS

    @classmethod
    def open(cls, store: Store, *, k: int = decide.LABELS) -> Identifier:
        """For answers of `k` labels. Raises IndexStale, SnapshotCorrupt and what the catalogue raises."""
        gallery = store.gallery()
        counts = store.catalogue.counts()
        found = fit.read(store, gallery.fingerprint)
        if found is None and store.whitening(gallery) is not None and store.config.decision.threshold < 0:
            raise IndexStale(
                "nobody knows where a new animal begins among these whitened vectors",
                source=str(store.root / CALIBRATION),
                next_step="reid reindex",
            )
        return cls(store, gallery, found, counts.individuals, len(gallery), k)

    @property
    def threshold(self) -> float:
        """Score at which the new individual stands: the settings', else the measured one, else the default."""
        fixed = self.store.config.decision.threshold
        if fixed >= 0:
            return fixed
        if self.fit:
            return self.fit.threshold
        return float(self.store.embedder.card.extra.get("threshold", decide.DEFAULT_THRESHOLD))

    def answers(self, queries: Sequence[Query], *, observe: Observe | None = None) -> list[Answer]:
        """An answer for each query; a query's own trouble becomes its status, never an exception.

        `observe`, for evaluations, is called with the positions of the queries that every vector row belongs to, and
        the rows.
        """
        out: list[Answer] = []
        for at in range(0, len(queries), BATCH):
            out.extend(self._batch(queries[at : at + BATCH], at, observe))
        return out

    def _batch(self, queries: Sequence[Query], first: int, observe: Observe | None) -> list[Answer]:
        clock = {"read": time.perf_counter()}
        asked = _read(self.store, queries)
        start = clock["read"]
        clock["read"] = time.perf_counter() - start
        start = time.perf_counter()
        photos = [photo for one in asked for photo in one.prepared]
        vectors = self._vectors(photos)
        clock["embed"] = time.perf_counter() - start
        if observe is not None:
            observe([first + i for i, one in enumerate(asked) for _ in range(_boxes(one))], vectors)
        start = time.perf_counter()
        found, infos = self._search(asked, vectors)
        clock["search"] = time.perf_counter() - start
        start = time.perf_counter()
        answers, at = [], 0
        for one in asked:
            mine = found[at : at + _boxes(one)]
            at += _boxes(one)
            answers.append(self._answer(one, mine, infos))
        clock["decide"] = time.perf_counter() - start
        share = {stage: seconds / max(1, len(queries)) for stage, seconds in clock.items()}

        return [replace(answer, seconds=share) for answer in answers]

    def _vectors(self, photos: Sequence[Prepared]) -> NDArray[np.float32]:
        if not photos:
            return np.empty((0, self.gallery.dim), np.float32)
        crops = np.concatenate([photo.crops for photo in photos])
        raw = embed_views(self.store.embedder, crops, len(views_of(self.store)))
        return self.store.project(raw, self.gallery)

    def _search(
        self, asked: Sequence[_Asked], vectors: NDArray[np.float32]
    ) -> tuple[list[Candidates], dict[int, AnnotationInfo]]:
        """The nearest gallery annotations of every box, opposite flanks and other species left out, and what is known
        of them.
        """
        kinds = [(s.side, one.query.species) for one in asked for p in one.prepared for s in p.sightings]
        found = [Candidates((), ())] * len(kinds)
        infos: dict[int, AnnotationInfo] = {}
        if not len(self.gallery):
            return found, infos
        for side, species in sorted(set(kinds)):
            rows = [i for i, kind in enumerate(kinds) if kind == (side, species)]
            allow = exclude = None
            if species:
                allow = _ids(self.store.catalogue.annotations_of(species=[species]))
            if side in OPPOSITE:
                exclude = _ids(self.store.catalogue.annotations_of(sides=[OPPOSITE[side]]))
            k = self.store.config.gallery.neighbours
            while rows:
                hits = self.gallery.search(vectors[rows], k, allow=allow, exclude=exclude)
                infos |= self.store.catalogue.annotations({int(i) for c in hits for i in c.ids} - infos.keys())
                for row, candidates in zip(rows, hits, strict=True):
                    found[row] = candidates
                rows = [row for row in rows if len(found[row].ids) == k and self._too_few(found[row], infos)]
                k *= DEEPER
        return found, infos

    def _too_few(self, candidates: Candidates, infos: dict[int, AnnotationInfo]) -> bool:
        """Whether the gallery has animals for more labels than these neighbours show."""
        known = {code for i in candidates.ids if (code := _code(infos.get(int(i)), self._new_label)) >= 0}
        return len(known) < min(self.k, self.identities)

    @property
    def _new_label(self) -> str:
        return self.store.config.decision.new_label

    def _answer(self, one: _Asked, found: Sequence[Candidates], infos: dict[int, AnnotationInfo]) -> Answer:
        photos = tuple(printable(s.path) for s in one.query.sightings)
        base = Answer("error", photos, model=self.store.embedder.card.name, threshold=self.threshold)
        trouble = "; ".join(f"{f.source}: {f.message}" for f in one.failures)
        boxes = tuple(box for photo in one.prepared for box in photo.boxes)

        base = replace(base, boxes=boxes, compared=self._compared(one), message=trouble)
        if not one.prepared:
            step = one.failures[0].next_step if one.failures else "name at least one photo"
            return replace(base, message=f"{trouble or 'no photos were given'}; {step}")
        if not boxes:
            return replace(base, status="no_detection", message=trouble or "no animal was found in the photo")
        ranking, codes = _ranking(one, found, infos, self.store.config.decision, self.k)
        if not len(ranking.codes):
            step = (
                "enrol named photos first"
                if not len(self.gallery)
                else "no named photo is left to compare with: widen the filters or name some"
            )
            return replace(base, status="no_candidates", message=f"{trouble + '; ' if trouble else ''}{step}")
        labels = self._labels(ranking, codes, infos, found)
        status = decide.status_of([label.label for label in labels], self._new_label)
        return replace(base, status=status, labels=labels, message=trouble)

    def _compared(self, one: _Asked) -> Compared:
        filters = {"species": one.query.species} if one.query.species else {}
        sides = {s.side for s in one.query.sightings} & set(OPPOSITE)
        if sides:
            filters["side"] = f"not {', '.join(sorted(OPPOSITE[s] for s in sides))}"
        return Compared(self.photos, self.identities, filters)

    def _labels(
        self,
        ranking: Ranking,
        best: list[AnnotationInfo],
        infos: dict[int, AnnotationInfo],
        found: Sequence[Candidates],
    ) -> tuple[IdentityScore, ...]:
        """Five labels, the new individual among them."""
        names = [info.identity or "" for info in best]
        scores = ranking.scores[: len(names)]
        new_label = self._new_label
        order = decide.insert_new(names, scores, self.threshold, new_label, self.k)
        curve = self.fit.curve if self.fit else None
        chances = curve.probability(scores) if curve else None
        counts = self.store.catalogue.photo_counts([info.individual for info in best if info.individual is not None])
        known = {
            name: IdentityScore(
                name,
                float(scores[i]),
                None if chances is None else float(chances[i]),
                printable(self.store.resolve(best[i].path)),
                str(best[i].id),
                counts.get(best[i].individual or -1, 0),
            )
            for i, name in enumerate(names)
        }
        curve_new = self.fit.curve_new if self.fit else None
        chance_new = float(curve_new.probability(-scores[:1])[0]) if curve_new else None
        new = IdentityScore(new_label, self.threshold, chance_new, is_new=True)
        return tuple(new if label == new_label else known[label] for label in order)


def identify(store: Store, queries: Sequence[Query]) -> list[Answer]:
    """An answer for each query. A gallery of another model, or a damaged one, is said in the answers and never mistaken
    for "no match".
    """
    try:
        return Identifier.open(store).answers(queries)
    except (IndexStale, SnapshotCorrupt) as error:
        return [_failed("index_stale", query, error) for query in queries]


def _failed(status: str, query: Query, error: ReidError) -> Answer:
    return Answer(status, tuple(printable(s.path) for s in query.sightings), message=str(error))  # type: ignore[arg-type]


def _read(store: Store, queries: Sequence[Query]) -> list[_Asked]:
    """All photos of all queries, read on several threads, back in their queries."""
    groups = [(number, group) for number, query in enumerate(queries) for group in intake.by_photo(query.sightings)]
    asked = [_Asked(query) for query in queries]
    card = store.embedder.card
    workers = min(os.cpu_count() or 1, max(1, len(groups)))
    prepared = intake.prepare_all([group for _, group in groups], card.preprocessing, views_of(store), workers=workers)
    for (number, _), one in zip(groups, prepared, strict=True):
        if isinstance(one, Failure):
            asked[number].failures.append(one)
        else:
            asked[number].failures.extend(one.failures)
            asked[number].prepared.append(one)
    return asked


def _boxes(one: _Asked) -> int:
    return sum(len(photo.boxes) for photo in one.prepared)


def _ids(annotations: Sequence[int]) -> IdSet:
    return IdSet({str(a) for a in annotations})


def _ranking(
    one: _Asked, found: Sequence[Candidates], infos: dict[int, AnnotationInfo], settings: DecisionConfig, k: int
) -> tuple[Ranking, list[AnnotationInfo]]:
    """Animals best first over all photos of the sighting, and the gallery annotation that speaks most for each of the
    first five.
    """
    rankings = []
    for candidates in found:
        codes = [_code(infos.get(int(i)), settings.new_label) for i in candidates.ids]
        rankings.append(aggregate.identity_scores(candidates.scores, codes, settings.aggregate))
    hashes = [photo.facts.phash or 0 for photo in one.prepared for _ in photo.boxes]
    ranking = rankings[0] if len(rankings) == 1 else aggregate.fuse_photos(rankings, _bursts(hashes))
    best = []
    for i in range(min(k, len(ranking.codes))):
        photo = int(ranking.query[i])
        best.append(infos[int(found[photo].ids[int(ranking.best[i])])])
    return ranking, best


def _code(info: AnnotationInfo | None, new_label: str) -> int:
    """The animal of a gallery annotation; −1 where nobody knows it, or knows only that it was new."""
    if info is None or info.individual is None or info.identity == new_label:
        return -1
    return info.individual


def _bursts(hashes: Sequence[int]) -> list[int]:
    """A number for each photo, the same for frames that look alike."""
    codes: list[int] = []
    for i, one in enumerate(hashes):
        codes.append(next((codes[j] for j in range(i) if hamming(one, hashes[j]) <= BURST_BITS), i))
    return codes
