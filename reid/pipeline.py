"""`identify`: photos of a sighting → the five best identities, the new individual among them where no known one fits.

One photo's way: `intake` (read, place the box, cut, describe) → `embed` → `search` (all sources, fused) → identity
scores → fused over the sighting's photos → the new individual inserted at the store's threshold → `Answer`. Many queries go through the same
steps together; an evaluation and a nightly run use exactly this path. Reads the store, writes nothing but an index that
was behind, and after `identify` a line on each answer's score (`reid.recent`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid import aggregate, caveats, decide, flanks, intake, learned, local, recent, stages
from reid.aggregate import Ranking
from reid.embed import prepare_aside
from reid.errors import IndexStale, ModelError, ReidError, SnapshotCorrupt
from reid.fit import Fit
from reid.images import hamming, printable
from reid.index import Gallery
from reid.intake import Prepared
from reid.keypoints import KeypointConfig, LocalFeatures
from reid.promise import Policy
from reid.recent import Note
from reid.records import Answer, Box, Compared, Failure, IdentityScore, Mask, Side, Sighting, Status
from reid.search import Found, Probe, Searcher
from reid.store import Store
from reid.vectors import embed_views, views_of

BURST_BITS = 8  # perceptual hashes closer than this are frames of one burst, and have one vote
BATCH = 64  # queries embedded and searched together


Observe = Callable[[list[int], NDArray[np.float32], Sequence[Found]], None]


@dataclass(frozen=True, slots=True)
class Query:
    """One sighting to name: its photos (with boxes and side where known) and who it may be.

    `species` restricts the gallery to annotations of that species; empty for all.
    """

    sightings: tuple[Sighting, ...]
    species: str = ""


def query_of(
    paths: Sequence[Path],
    *,
    side: Side = "unknown",
    species: str = "",
    box: Box | None = None,
    masks: Mapping[Path, Mask] | None = None,
) -> Query:
    """A query from bare paths; `masks` by path, of those that have one."""
    drawn = masks or {}
    return Query(
        tuple(Sighting(path, printable(path), side=side, box=box, mask=drawn.get(path)) for path in paths), species
    )


@dataclass(eq=False)
class _Asked:
    """One query on its way."""

    query: Query
    prepared: list[Prepared] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)  # of its learned features


@dataclass(frozen=True, slots=True, eq=False)
class Identifier:
    """A store opened for answering: once for many queries."""

    store: Store
    search: Searcher
    photos: int
    k: int = decide.LABELS
    aged: tuple[str, ...] = ()  # why promised rates may no longer hold

    @classmethod
    def open(cls, store: Store, *, k: int = decide.LABELS) -> Identifier:
        """For answers of `k` labels. Raises IndexStale, SnapshotCorrupt and what the catalogue raises."""
        search = Searcher.open(store, k=k)
        photos = len(search.gallery)
        return cls(store, search, photos, k, recent.drift(store, search.fit, photos))

    @property
    def gallery(self) -> Gallery:
        """The gallery that is searched."""
        return self.search.gallery

    @property
    def fit(self) -> Fit | None:
        """What was measured on it."""
        return self.search.fit

    @property
    def threshold(self) -> float:
        """Score at which the new individual stands: the settings', else the measured one, else the default;
        moved where a promised error rate asks for it, so that the order of labels agrees with the verdict.
        """
        fixed = self.store.config.decision.threshold
        if self.fit:
            stated = fixed if fixed >= 0 else self.fit.threshold
            return self.fit.policy.within(stated) if self.fit.policy else stated
        if fixed >= 0:
            return fixed
        return float(self.store.embedder.card.extra.get("threshold", decide.DEFAULT_THRESHOLD))

    @property
    def basis(self) -> str:
        """Where the threshold comes from, see `Answer.basis`."""
        if self.store.config.decision.threshold >= 0:
            return "settings"
        return self.fit.basis if self.fit else "default"

    def answers(
        self, queries: Sequence[Query], *, observe: Observe | None = None, noted: list[Note] | None = None
    ) -> list[Answer]:
        """An answer for each query; a query's own trouble becomes its status, never an exception.

        `observe`, for evaluations, is called with the positions of the queries that every box belongs to, the boxes'
        vectors and what was found for them. What `recent` keeps of the answers is put into `noted`.
        """
        out: list[Answer] = []
        for at in range(0, len(queries), BATCH):
            out.extend(self._batch(queries[at : at + BATCH], at, observe, noted))
        return out

    def _batch(
        self, queries: Sequence[Query], first: int, observe: Observe | None, noted: list[Note] | None
    ) -> list[Answer]:
        start, clock = time.perf_counter(), {}
        asked = _read(self.store, queries, None if self.search.local is None else local.description(self.store))
        clock["read"], start = time.perf_counter() - start, time.perf_counter()
        try:
            raw = self._raw([photo for one in asked for photo in one.prepared])
        except ReidError as error:
            return [_failed("error", query, error) for query in queries]
        vectors = self.store.project(raw, self.gallery) if len(raw) else np.empty((0, self.gallery.dim), np.float32)
        clock["embed"], start = time.perf_counter() - start, time.perf_counter()
        found = self.search.find(_probes(asked, vectors, raw, self.search.compares_others))
        clock["search"], start = time.perf_counter() - start, time.perf_counter()
        if observe is not None:
            observe([first + i for i, one in enumerate(asked) for _ in range(_boxes(one))], vectors, found)
        answers, at = [], 0
        whole = any(box.origin == "whole" for one in asked for photo in one.prepared for box in photo.boxes)
        cut = caveats.cut_out(self.store) if whole else (0, 0)
        for one in asked:
            answers.append(self._answer(one, found[at : at + _boxes(one)], cut))
            at += _boxes(one)
            if noted is not None and answers[-1].labels and _boxes(one) == 1:  # as the left-out photos were asked
                note = Note.of(answers[-1], one.prepared[0].facts)
                noted.extend([note] if note else [])
        clock["decide"] = time.perf_counter() - start
        share = {stage: seconds / max(1, len(queries)) for stage, seconds in clock.items()}
        return [replace(answer, seconds=share) for answer in answers]

    def _raw(self, photos: Sequence[Prepared]) -> NDArray[np.float32]:
        """The vectors of all boxes as the model makes them."""
        if not photos:
            return np.empty((0, self.store.embedder.card.dim), np.float32)
        crops = np.concatenate([photo.crops for photo in photos])
        embedder = self.store.embedder
        try:
            return embed_views(embedder, crops, len(views_of(self.store)))
        except ReidError:
            raise
        except Exception as error:  # the runtime's own kinds: these photos get no answer, the next may
            raise ModelError(
                f"the network could not be run ({type(error).__name__}: {error})",
                source=embedder.card.name,
                next_step="ask again; if it stays, `reid models list` says what else there is",
            ) from error

    @property
    def _new_label(self) -> str:
        return self.store.config.decision.new_label

    def _answer(self, one: _Asked, found: Sequence[Found], cut: tuple[int, int]) -> Answer:
        photos = tuple(printable(s.path) for s in one.query.sightings)
        base = Answer("error", photos, model=self.store.embedder.card.name, threshold=self.threshold)
        trouble = "; ".join(f"{f.source}: {f.message}" for f in one.failures)
        boxes = tuple(box for photo in one.prepared for box in photo.boxes)
        skipped = tuple(dict.fromkeys(text for each in found for text in each.skipped))
        base = replace(base, boxes=boxes, compared=self._compared(one), message=trouble, stages_skipped=skipped)
        if not one.prepared:
            step = one.failures[0].next_step if one.failures else "name at least one photo"
            return replace(base, message=f"{trouble or 'no photos were given'}; {step}")
        if not boxes:
            if any(failure.code != "no_detection" for failure in one.failures):
                return replace(base, message=f"{trouble}; {one.failures[0].next_step}")
            return replace(base, status="no_detection", message=trouble or "no animal was found in the photo")
        ranking = self._ranking(one, found)
        if not len(ranking.codes):
            step = (
                "enrol named photos first"
                if not len(self.gallery)
                else "no named photo is left to compare with: widen the filters or name some"
            )
            return replace(base, status="no_candidates", message=f"{trouble + '; ' if trouble else ''}{step}")
        labels = self._labels(ranking, found)
        base = replace(base, basis=self.basis, warnings=self._caveats(one, cut))
        failed = tuple(dict.fromkeys(text for each in found for text in each.failed))
        status: Status = decide.status_of([label.label for label in labels], self._new_label)
        policy = self.fit.policy if self.fit else None
        if policy is not None:
            status = policy.verdict(float(ranking.scores[0]))
            base = replace(base, promise=_promised(policy))
            if status == "new" and self._doubted(found, policy):
                status = "review"
                trouble = "; ".join([*([trouble] if trouble else []), "one photo by itself would not be called new"])
        elif status == "match" and base.basis == "default":
            status = "match" if decide.clearly_beyond(float(ranking.scores[0]), self.threshold) else "review"
        if failed and status == "new":  # its low scores may be owed to that: nobody has looked everywhere
            status = "review"
            trouble = "; ".join([*([trouble] if trouble else []), "a source was missing: ask again", *failed])
        return replace(base, status=status, labels=labels, message=trouble)

    def _caveats(self, one: _Asked, cut: tuple[int, int]) -> tuple[str, ...]:
        """What to know before the answer is believed."""
        seen = [
            (printable(p.facts.path), s, box) for p in one.prepared for s, box in zip(p.sightings, p.boxes, strict=True)
        ]
        cropped = any(self.store.croppers.of(s.species) is not None for _, s, box in seen if box.origin == "whole")
        whole = caveats.whole_photo([name for name, _, _ in seen], [box for _, _, box in seen], cropped, *cut)
        return tuple(text for text in (whole, caveats.unmeasured(self.fit), *map(caveats.aged, self.aged)) if text)

    def _ranking(self, one: _Asked, found: Sequence[Found]) -> Ranking:
        """Animals best first over all photos of the sighting."""
        rankings = [self._alone(each) for each in found]
        hashes = [photo.facts.phash or 0 for photo in one.prepared for _ in photo.boxes]
        one_list = rankings[0] if len(rankings) == 1 else aggregate.fuse_photos(rankings, _bursts(hashes))
        return self.search.weighed(one_list, found)

    def _alone(self, found: Found) -> Ranking:
        """Animals best first by one photo."""
        codes = [self.search.code(i) for i in found.candidates.ids]
        return aggregate.identity_scores(found.candidates.scores, codes, self.store.config.decision.aggregate)

    def _doubted(self, found: Sequence[Found], policy: Policy) -> bool:
        """Whether a photo of several, asked alone, as rates are measured, would not be called new: their mean may lie
        below what blurred frames bring down.
        """
        alone = [self.search.weighed(self._alone(one), [one]) for one in found] if len(found) > 1 else []
        return any(len(one.codes) and policy.verdict(float(one.scores[0])) != "new" for one in alone)

    def _compared(self, one: _Asked) -> Compared:
        filters = {"species": one.query.species} if one.query.species else {}
        apart = self.fit.sides if self.fit else "separate"
        sides = {s.side for s in one.query.sightings if flanks.barred(self.store, s.side, apart)}
        if sides:
            filters["side"] = f"not {', '.join(sorted(flanks.OPPOSITE[s] for s in sides))}"
        return Compared(self.photos, self.search.identities, filters)

    def _labels(self, ranking: Ranking, found: Sequence[Found]) -> tuple[IdentityScore, ...]:
        """Five labels, the new individual among them."""
        few = range(min(self.k, len(ranking.codes)))
        ids = [found[int(ranking.query[i])].candidates.ids[int(ranking.best[i])] for i in few]
        best = [self.search.info(id) for id in ids]
        names = [info.identity or "" for info in best]
        scores = ranking.scores[: len(names)]
        new_label = self._new_label
        order = decide.insert_new(names, scores, self.threshold, new_label, self.k)
        curve = self.fit.curve if self.fit else None
        curve_new = self.fit.curve_new if self.fit else None
        chance_new = float(curve_new.probability(-scores[:1])[0]) if curve_new else None
        chances = _chances(curve.probability(scores), scores, chance_new or 0.0) if curve else None
        counts = self.store.catalogue.photo_counts([info.individual for info in best if info.individual is not None])
        known = {
            name: IdentityScore(
                name,
                float(scores[i]),
                None if chances is None else float(chances[i]),
                printable(self.store.resolve(best[i].path)),
                ids[i],
                counts.get(best[i].individual or -1, 0),
                evidence=found[int(ranking.query[i])].evidence(ids[i]),
            )
            for i, name in enumerate(names)
        }
        new = IdentityScore(new_label, self.threshold, chance_new, is_new=True)
        return tuple(new if label == new_label else known[label] for label in order)


def _chances(curve: NDArray[np.float64], scores: NDArray[np.float64], chance_new: float) -> NDArray[np.float64]:
    """P(same) of the labels, best first `(M,)`: the curve's for the first, of which alone it was measured; the others
    share what that and the new animal leave, by their scores, none getting more than the curve gives.
    """
    rest = np.maximum(scores[1:], 0.0)
    left = max(0.0, 1.0 - float(curve[0]) - chance_new)
    share = rest / rest.sum() if rest.sum() > 0 else np.zeros(len(rest))
    return np.concatenate([curve[:1], np.minimum(curve[1:], left * share)])


def _promised(policy: Policy) -> dict[str, float | None]:
    return {
        "match_at": policy.matches.threshold,
        "new_at": policy.new.threshold,
        "false_match": policy.matches.rate,
        "false_new": policy.new.rate,
        "confidence": policy.matches.confidence,
    }


def identify(store: Store, queries: Sequence[Query]) -> list[Answer]:
    """An answer for each query. A gallery of another model, or a damaged one, is said in the answers and never mistaken
    for "no match".
    """
    prepare_aside(store.embedder)  # while the gallery is opened
    try:
        identifier, noted = Identifier.open(store), list[Note]()
        answers = identifier.answers(queries, noted=noted)
        trouble = recent.remember(store, identifier.fit, noted)
    except (IndexStale, SnapshotCorrupt) as error:
        return [_failed("index_stale", query, error) for query in queries]
    if not (trouble and identifier.fit and identifier.fit.policy):
        return answers
    return [replace(one, stages_skipped=(*one.stages_skipped, trouble)) if one.labels else one for one in answers]


def _failed(status: str, query: Query, error: ReidError) -> Answer:
    return Answer(status, tuple(printable(s.path) for s in query.sightings), message=str(error))  # type: ignore[arg-type]


def _read(store: Store, queries: Sequence[Query], describe: KeypointConfig | None) -> list[_Asked]:
    """All photos of all queries, read on several threads, back in their queries."""
    groups = [(number, group) for number, query in enumerate(queries) for group in intake.by_photo(query.sightings)]
    asked = [_Asked(query) for query in queries]
    card = store.embedder.card
    workers = min(os.cpu_count() or 1, max(1, len(groups)))
    further, troubles = (None, []) if describe is None else _further(store)
    prepared = intake.prepare_all(
        [_of_species(store, queries[number], group) for number, group in groups],
        card.preprocessing,
        views_of(store),
        workers=workers,
        describe=describe,
        croppers=store.croppers,
        further=further,
    )
    for (number, _), one in zip(groups, prepared, strict=True):
        if isinstance(one, Failure):
            asked[number].failures.append(one)
        else:
            asked[number].failures.extend(one.failures)
            asked[number].prepared.append(one)
            if any(features is None for features in one.further):
                asked[number].troubles[:] = dict.fromkeys(troubles)
    return asked


def _further(store: Store) -> tuple[intake.Describe | None, list[str]]:
    """What describes boxes by the store's learned matcher, and the list in which it puts what went wrong."""
    config, limit = local.learned_description(store), store.config.query.stage_timeout_s
    troubles: list[str] = []
    if config is None:
        return None, troubles

    def describe(crop: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> LocalFeatures | None:
        done = stages.run(f"matcher {config.network}", lambda running: learned.describe(crop, mask, config), limit)
        troubles.extend([done.reason] if done.reason else [])
        return done.value

    return describe, troubles


def _of_species(store: Store, query: Query, group: Sequence[Sighting]) -> tuple[Sighting, ...]:
    """A photo's sightings with the species by which their cropper is chosen."""
    return tuple(replace(s, species=s.species or query.species or store.config.species or None) for s in group)


def _probes(
    asked: Sequence[_Asked], vectors: NDArray[np.float32], raw: NDArray[np.float32], others: bool
) -> list[Probe]:
    """One probe a box, in order; with `others`, geometry compares features of another kind."""
    boxes = [
        Probe(
            np.empty(0, np.float32),  # each gets its own below
            photo.local[i] if photo.local else None,
            sighting.side,
            one.query.species,
            further=photo.further[i] if others and photo.further else None,
            troubles=tuple(one.troubles) if others and photo.further and photo.further[i] is None else (),
        )
        for one in asked
        for photo in one.prepared
        for i, sighting in enumerate(photo.sightings)
    ]
    return [replace(probe, vector=vector, raw=row) for probe, vector, row in zip(boxes, vectors, raw, strict=True)]


def _boxes(one: _Asked) -> int:
    return sum(len(photo.boxes) for photo in one.prepared)


def _bursts(hashes: Sequence[int]) -> list[int]:
    """A number for each photo, the same for frames that look alike."""
    codes: list[int] = []
    for i, one in enumerate(hashes):
        codes.append(next((codes[j] for j in range(i) if hamming(one, hashes[j]) <= BURST_BITS), i))
    return codes
