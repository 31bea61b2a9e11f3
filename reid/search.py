"""A store's gallery searched by all its sources: vectors and local features of boxes → candidates, best first.

One way for queries, evaluations and the nightly look at unknowns: nearest neighbours by the embedder, votes of the local
index, geometry for the best of both, and the fusion that the store's fit chose. Reads the store, writes nothing but an
index that was behind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from reid import fit, flanks, fusion, local, rescore, shortlist, stages
from reid.aggregate import Ranking
from reid.catalogue import AnnotationInfo
from reid.crowding import Crowds
from reid.errors import IndexStale, ModelError
from reid.fit import Fit
from reid.fusion import Fusion
from reid.index import Gallery, IdSet, Names
from reid.index.local import Votes
from reid.keypoints import LocalFeatures, empty_features
from reid.local import BoxKey, LocalSource
from reid.prototypes import Animals
from reid.records import Candidates, Side
from reid.rescore import Heads
from reid.shortlist import Shortlist
from reid.stages import Outcome, Running
from reid.store import CALIBRATION, Store
from reid.verify import Verification

DEEPER = 4  # times as many neighbours, where the nearest show too few animals
_MUTE = 0.05  # share of the gallery without local features, from which votes are a source that failed
_REPAIR = "have no local features: reid reindex describes them"


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One box to be found again: `vector (d,)` as the gallery holds them, `features` of the box where there are any.

    `species` restricts the gallery, empty for all; annotations in `exclude` are not compared with. `further` are the
    features that geometry compares where the store has a learned matcher, `raw (D,)` the vector before the whitening,
    which a Siamese head wants, and `troubles` says what went wrong in making
    any of it.
    """

    vector: NDArray[np.float32]
    features: LocalFeatures | None = None
    side: Side = "unknown"
    species: str = ""
    exclude: frozenset[str] = frozenset()
    further: LocalFeatures | None = None
    troubles: tuple[str, ...] = ()
    raw: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What the gallery has for a probe: candidates best first, what each source says of them (None by the embedder
    alone), and what was left out on the way. Of that, `failed` is what failed or took too long: low scores may be owed
    to it, and nobody should be called new for them. `relief` is what each cosine was lowered by (`reid.prototypes`,
    `reid.crowding`).
    """

    candidates: Candidates
    shortlist: Shortlist | None = None
    skipped: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    relief: Mapping[str, float] = field(default_factory=dict)

    def evidence(self, id: str) -> dict[str, float]:
        """What spoke for one candidate: cosine and, where local features were asked, votes and inliers; `mirrored` 1
        where these are of the query's mirror image.
        """
        if self.shortlist is None:
            there = dict(zip(self.candidates.ids, self.candidates.scores, strict=True))
            return {"cosine": there[id] + self.relief.get(id, 0.0)} if id in there else {}
        if id not in self.shortlist.ids:
            return {}
        row = self.shortlist.ids.index(id)
        made = self.shortlist.verifications[row]
        cosine = float(self.shortlist.cosines[row]) + self.relief.get(id, 0.0)
        said = {"cosine": cosine, "votes": float(self.shortlist.votes[row])}
        logit = float("nan") if self.shortlist.siamese is None else float(self.shortlist.siamese[row])
        said |= {"siamese": 1 / (1 + math.exp(-min(max(logit, -60.0), 60.0)))} if math.isfinite(logit) else {}
        said |= {"inliers": float(made.inliers)} if made else {}
        return said | ({"mirrored": 1.0} if made and made.mirrored else {})


@dataclass(frozen=True, slots=True, eq=False)
class Searcher:
    """A store opened for searching, once for many probes. `k` animals at least are looked for."""

    store: Store
    gallery: Gallery
    fit: Fit | None
    identities: int
    k: int
    local: LocalSource | None
    names: Names | None
    heads: Heads | None = None
    crowds: Crowds | None = None
    animals: Animals | None = None
    lacking: str = ""  # why a source that the fit reckons with could not be opened
    infos: dict[int, AnnotationInfo] = field(default_factory=dict)

    @classmethod
    def open(cls, store: Store, *, k: int) -> Searcher:
        """Raises IndexStale, SnapshotCorrupt and what the catalogue raises."""
        gallery = store.gallery()
        found = fit.read(store, gallery.fingerprint)
        if found is None and store.whitening(gallery) is not None and store.config.decision.threshold < 0:
            raise IndexStale(
                "nobody has measured where a new animal begins in this gallery, with these settings",
                source=str(store.root / CALIBRATION),
                next_step="reid reindex",
            )
        source, names, heads, crowds, lacking = None, None, None, None, ""
        fused = found is not None and found.fusion.kind != "embedding"
        moved = store.config.decision.threshold < 0  # one that somebody stated is for cosines as they are
        crowd = found.crowd if found is not None and moved else None
        owners = local.names_of(store) if fused or crowd else {}
        if found is not None and crowd is not None and found.crowded is not None:
            crowds = Crowds(gallery, crowd, found.crowded, owners)
        if fused:
            source = LocalSource.open(store)
            if len(source.index) < len(gallery) / 2:
                raise IndexStale(
                    f"local features of {len(gallery) - len(source.index)} of {len(gallery)} gallery photos are missing",
                    source=str(source.index.folder),
                    next_step="reid reindex",
                )
            names = source.index.names(owners)
            try:
                heads = rescore.open_heads(store)
            except ModelError as error:  # the other sources can answer
                lacking = f"siamese: failed ({error})"
        animals = None
        if crowds is not None and found is not None and found.prototypes:
            sides = found.sides
            animals = Animals(
                gallery, owners, lambda: {str(id): side for id, side in flanks.flank_of(store, sides).items()}
            )
        known = store.catalogue.live_individuals()
        return cls(store, gallery, found, known, k, source, names, heads, crowds, animals, lacking)

    @property
    def fusion(self) -> Fusion:
        """How the sources are fused: as the fit found best."""
        return self.fit.fusion if self.fit else fusion.EMBEDDING

    @property
    def compares_others(self) -> bool:
        """Whether geometry compares features of another kind than those that vote."""
        return self.local is not None and self.local.further is not None

    def find(self, probes: Sequence[Probe]) -> list[Found]:
        """Candidates of each probe. What is known of them is in `infos` afterwards."""
        found = [Found(Candidates((), ()))] * len(probes)
        if not len(self.gallery):
            return found
        kinds = [(p.side, p.species) for p in probes]
        for kind in sorted(set(kinds)):
            rows = [i for i, one in enumerate(kinds) if one == kind]
            some = [probes[i] for i in rows]
            allow, exclude = self._filters(*kind)
            moved = [self._moved(*one) for one in zip(some, self._nearest(some, allow, exclude), strict=True)]
            answers = [Found(one, None, self._unmeasured(), relief=off) for one, off in moved]
            if self.local is not None and self.names is not None:
                answers = self._fused(some, [candidates for candidates, _ in moved], allow, exclude)
            for row, answer in zip(rows, answers, strict=True):
                found[row] = answer
        return found

    def _unmeasured(self) -> tuple[str, ...]:
        """What to say where the store would have local features asked, but no fit says how they are weighed."""
        if self.fit is not None or local.description(self.store) is None:
            return ()
        return ("local features: nothing was measured with the present settings; reid reindex",)

    def info(self, id: str) -> AnnotationInfo:
        """What is known of a candidate that was found."""
        return self.infos[int(id)]

    def code(self, id: str) -> int:
        """The animal of a candidate; −1 where nobody knows it, or knows only that it was new."""
        info = self.infos.get(int(id))
        if info is None or info.individual is None or info.identity == self.store.config.decision.new_label:
            return -1
        return info.individual

    def weighed(self, ranking: Ranking, found: Sequence[Found]) -> Ranking:
        """Animals with scores moved to P(known), where the fit puts that into force (`reid.known`); `ranking.query`
        says which of `found` speaks for each.
        """
        model = self.fit.known if self.fit and self.store.config.decision.threshold < 0 else None
        if model is None or not len(ranking.codes):
            return ranking
        speaking = found[int(ranking.query[0])]
        if speaking.shortlist is None:
            return ranking
        listed = speaking.shortlist
        row = listed.ids.index(speaking.candidates.ids[int(ranking.best[0])])
        first = int(ranking.codes[0])
        photos = self.store.catalogue.photo_counts([first])[first]
        codes = np.array([self.code(id) for id in listed.ids], np.int64)
        at = replace(ranking, best=np.r_[row, ranking.best[1:]])
        return replace(ranking, scores=model.moved(at, codes, listed.features, photos).scores)

    def _filters(self, side: Side, species: str) -> tuple[set[str] | None, set[str]]:
        """The annotations a query of this flank and species is compared with (None: all), and those it is not."""
        catalogue = self.store.catalogue
        allow = {str(a) for a in catalogue.annotations_of(species=[species])} if species else None
        exclude = {str(a) for a in flanks.barred(self.store, side, self.fit.sides if self.fit else "separate")}
        return allow, exclude

    def _nearest(self, probes: Sequence[Probe], allow: set[str] | None, exclude: set[str]) -> list[Candidates]:
        """By the embedder: as many neighbours as it takes to see enough animals."""
        vectors = np.stack([p.vector for p in probes])
        found = [Candidates((), ())] * len(probes)
        allowed = None if allow is None else IdSet(allow)
        own = any(p.exclude for p in probes)
        barred = IdSet(exclude) if exclude else None
        rows, k = list(range(len(probes))), self.store.config.gallery.neighbours
        while rows:
            without = [probes[i].exclude | exclude for i in rows] if own else barred
            hits = self.gallery.search(vectors[rows], k, allow=allowed, exclude=without)
            self._learn({int(i) for c in hits for i in c.ids})
            for row, candidates in zip(rows, hits, strict=True):
                found[row] = candidates
            rows = [row for row in rows if len(found[row].ids) == k and self._too_few(found[row])]
            k *= DEEPER
        return found

    def _relief(self, ids: Sequence[str]) -> NDArray[np.float64]:
        """What the cosines with these photos are lowered by, `(n,)`."""
        if self.crowds is None:
            return np.zeros(len(ids))
        return self.crowds.of(ids, [self.info(id).species or "" for id in ids])

    def _moved(self, probe: Probe, near: Candidates) -> tuple[Candidates, dict[str, float]]:
        """Neighbours in the order of their cosines as they are compared, equal ones in the order given, and what each was
        lowered by: where the fit says so half is by prototypes, and crowding is taken off.
        """
        cosines = np.array(near.scores, np.float64)
        found = (
            cosines if self.animals is None else self.animals.blended(probe.vector, near.ids, cosines, probe.exclude)
        )
        scores = found - self._relief(near.ids)
        order = np.argsort(-scores, kind="stable")
        off = dict(zip(near.ids, (cosines - scores).tolist(), strict=True))
        return Candidates(tuple(near.ids[i] for i in order), tuple(scores[order].tolist())), off

    def _learn(self, annotations: set[int]) -> None:
        self.infos.update(self.store.catalogue.annotations(annotations - self.infos.keys()))

    def _too_few(self, candidates: Candidates) -> bool:
        """Whether the gallery has animals for more labels than these neighbours show."""
        known = {code for i in candidates.ids if (code := self.code(i)) >= 0}
        return len(known) < min(self.k, self.identities)

    def _fused(
        self, probes: Sequence[Probe], near: Sequence[Candidates], allow: set[str] | None, exclude: set[str]
    ) -> list[Found]:
        """The embedder's neighbours and the local index's votes, checked and fused; a source that fails or takes too
        long is done without.
        """
        polled = [self._voted(probe, allow, exclude) for probe in probes]
        votes = [outcome.value or Votes((), ()) for outcome in polled]
        self._learn({int(i) for one in votes for i in one.photos})
        settings = self.store.config
        listed = settings.gallery.neighbours
        checked = [
            shortlist.in_turn(one.ids, vote.photos, settings.local.verify)
            for one, vote in zip(near, votes, strict=True)
        ]
        keys = local.keys(self.store, {int(i) for ids in checked for i in ids})
        source = self.local
        assert source is not None  # or this would not have been called

        missing = len(self.gallery) - len(source.index)
        outdated = self.heads is None and rescore.outdated(self.store)
        absent = [f"votes: {missing} of {len(self.gallery)} gallery photos {_REPAIR}"] if missing > 0 else []
        mute = bool(missing > _MUTE * len(self.gallery))

        def one(at: int) -> Found:
            probe, candidates, vote = probes[at], near[at], votes[at]
            own = probe.features if probe.features is not None else empty_features(0, 0)
            troubles = [*probe.troubles, *([polled[at].reason] if polled[at].reason else [])]

            gathered = shortlist.gather(
                candidates.ids,
                candidates.scores,
                dict(zip(vote.photos, vote.votes, strict=True)),
                lambda ids: self.gallery.vectors(list(ids)) @ probe.vector - self._relief(ids),
                own,
                lambda id: source.compared_of(keys, id),
                listed=listed,
                checked=settings.local.verify,
                config=source.verify,
                check=lambda ids: self._checked(probe, keys, ids, troubles),
                siamese_of=(lambda ids: self._rescored(probe, ids, troubles)) if self.heads else None,
            )
            ids, scores = shortlist.ranked(gathered, self.fusion)
            undone = [] if troubles else _lacking(probe.features, gathered, checked[at])
            noted = [] if mute else list(absent)
            noted += ["siamese: the head is of another model; reid train-siamese"] if outdated else []
            if probe.features is not None and not len(own):
                noted.append("local features: none were found in the box")
            failed = (*([self.lacking] if self.lacking else []), *(absent if mute else []), *undone, *troubles)
            off = dict(zip(gathered.ids, self._relief(gathered.ids).tolist(), strict=True))
            return Found(Candidates(ids, scores), gathered, (*noted, *failed), failed, off)

        return [one(at) for at in range(len(probes))]  # the libraries below use all processors by themselves

    def _voted(self, probe: Probe, allow: set[str] | None, exclude: set[str]) -> Outcome[Votes]:
        """The photos that a probe's descriptors vote for, as far as the gallery holds them, too."""
        source, features = self.local, probe.features
        if source is None or features is None or not len(features):
            return Outcome(Votes((), ()))

        def ask(running: Running) -> Votes:
            found = source.index.search(
                source.index.asking(features.descriptors),
                names=self.names,
                allow=allow,
                exclude=exclude | probe.exclude,
                top=shortlist.VOTED,
            )
            there = [(p, v) for p, v in zip(found.photos, found.votes, strict=True) if p in self.gallery]
            return Votes(tuple(p for p, _ in there), tuple(v for _, v in there))

        return stages.run("votes", ask, self.store.config.query.stage_timeout_s)

    def _rescored(self, probe: Probe, ids: Sequence[str], troubles: list[str]) -> NDArray[np.float64]:
        """The Siamese head's logits; `troubles` is told where there are none."""
        heads, raw, nothing = self.heads, probe.raw, np.full(len(ids), np.nan)
        if heads is None or raw is None:
            return nothing
        limit = self.store.config.query.stage_timeout_s
        done = stages.run("siamese", lambda running: heads.scores(raw, ids), limit)
        troubles.extend([done.reason] if done.reason else [])
        return nothing if done.value is None else done.value

    def _checked(
        self, probe: Probe, keys: Mapping[str, tuple[str, BoxKey]], ids: Sequence[str], troubles: list[str]
    ) -> dict[str, Verification]:
        """The geometry of as many pairs as can be had in time, best first; `troubles` is told of the others."""
        source = self.local
        own = probe.features if source is None or source.further is None else probe.further
        if source is None or own is None:
            return {}
        made: dict[str, Verification] = {}
        done = stages.run(
            "geometry",
            lambda running: shortlist.verified(
                own, ids, lambda id: source.compared_of(keys, id), source.verify, made=made, stop=lambda: running.stop
            ),
            self.store.config.query.stage_timeout_s,
        )
        if not done.reason:
            return made
        there = dict(made)  # what is left behind may still write to the other
        troubles.append(f"{done.reason}; {len(there)} of {len(ids)} pairs were compared")
        return there


def _lacking(features: LocalFeatures | None, gathered: Shortlist, checked: Sequence[str]) -> list[str]:
    """The features on file that geometry would have needed, in words: a low score may be owed to that alone."""
    if features is None:
        return ["local features: the box has none on file; reid reindex"]
    if not len(features):
        return []
    made = {id for id, one in zip(gathered.ids, gathered.verifications, strict=True) if one is not None}
    lacking = len(set(checked) - made)
    return [f"geometry: {lacking} of {len(checked)} gallery photos {_REPAIR}"] if lacking else []
