"""P(known): whether an answer as a whole looks like those of animals that are in the gallery.

The best score alone says little where scores differ from photo to photo. A logistic regression looks at the answer: its
best score, how far it leads, how many photos the first animal has, what each source says of it and how many sources
would have put it first. It is fitted on left-out photos, with their animal in the gallery and with it taken out, and is
in force only where it tells the two apart better than the best score does: AUROC out of fold by animal, beyond chance
(lower end of the paired bootstrap interval over animals above 0).

Where it is in force an answer's scores are moved, all by the same log-odds, so that the first one is P(known): order
and ties stay, and thresholds, curves and promised rates are measured on the moved scores as they were on the others.

Knows answers of left-out photos (`reid.measure`) and rows of `fusion.NAMES`; no stores. Source: the new/known
meta-classifier of the tenth place of Humpback Whale Identification 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid import fusion, logistic, metrics, thresholds
from reid.aggregate import Ranking, identity_scores
from reid.config import Objective
from reid.decide import LABELS
from reid.intervals import bootstrap_interval
from reid.leaving_out import LeftOut
from reid.logistic import Logistic, logit
from reid.measure import Asked, Fused, Gallery
from reid.score import folds_of

Floats = NDArray[np.float64]
IntArray = NDArray[np.int64]

COLUMNS = ("best", "lead", "lead_on_rest", "photos", "cosine", "votes", "geometry", "agreeing")
"""What is looked at in an answer: log-odds of the best score, its lead on the second and on the mean of the further
labels, log of the photos that the first animal has, what three sources say of it, and how many put it first."""
RIDGE = 3.0
FOLDS = 5
FARTHEST = 8.0  # log-odds that a lead counts at most: of a list with one animal, too
_LEAST = 1e-9
_SOURCES = ("cosine_standing", "log_votes", "log_weight")
_FIRST_BY = ("cosine", "log_votes", "log_weight")


@dataclass(frozen=True, slots=True)
class Known:
    """The regression that is in force."""

    logistic: Logistic

    def chance(self, row: Floats) -> float:
        """P(known) of an answer's row, as `row_of` makes it."""
        return float(logistic.sigmoid(self.logistic.margin(row[None]))[0])

    def moved(self, ranking: Ranking, codes: IntArray, features: NDArray[np.float32], photos: int) -> Ranking:
        """An answer with its scores moved so that the first is P(known); arguments as `row_of`."""
        if not len(ranking.codes):
            return ranking
        chance = self.chance(row_of(ranking, codes, features, photos))
        return replace(ranking, scores=moved(ranking.scores, float(ranking.scores[0]), chance))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"columns": list(COLUMNS), "logistic": self.logistic.to_dict()}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Known:
        """Inverse of `to_dict`. KeyError, TypeError or ValueError for what it cannot have written, or of other columns."""
        found = cls(Logistic.from_dict(raw["logistic"]))
        if tuple(raw["columns"]) != COLUMNS or len(found.logistic.weights) != len(COLUMNS):
            raise ValueError("P(known) was fitted on other columns")
        return found


def row_of(ranking: Ranking, codes: IntArray, features: NDArray[np.float32], photos: int) -> Floats:
    """`COLUMNS` of an answer that names somebody, `(8,)`. `ranking` best first; `codes (C,)` and `features (C, F)` of
    the candidates of the photo that speaks for the first animal, `ranking.best[0]` among them; `photos` of that animal.
    """
    odds = logit(ranking.scores[:LABELS], _LEAST)
    lead = odds[0] - odds[1] if len(odds) > 1 else FARTHEST
    rest = odds[0] - odds[1:].mean() if len(odds) > 1 else FARTHEST
    first = features[int(ranking.best[0])]
    said = [float(np.nan_to_num(first[fusion.NAMES.index(name)])) for name in _SOURCES]
    named = codes >= 0
    agreeing = 0
    for name in _FIRST_BY:
        values = np.where(named, np.nan_to_num(features[:, fusion.NAMES.index(name)]), -np.inf)
        top = int(np.argmax(values))
        heard = name == "cosine" or values[top] > 0
        agreeing += bool(heard and codes[top] == ranking.codes[0])
    return np.array([odds[0], min(lead, FARTHEST), min(rest, FARTHEST), math.log1p(photos), *said, agreeing])


def moved(scores: Floats, first: float, chance: float) -> Floats:
    """Probabilities moved by the log-odds that bring `first` to `chance`."""
    return logistic.sigmoid(logit(scores, _LEAST) + logit(chance, _LEAST) - logit(first, _LEAST))


# Fitting -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of the attempt: `model` None where it stays out of force. `cases` are the left-out photos' answers as
    they are given then, `record` has the measures before and after and the reason.
    """

    model: Known | None
    cases: LeftOut
    record: dict[str, Any]


def tried(
    gallery: Gallery, asked: Sequence[Asked], fused: Fused, *, method: str, objective: Objective, new_share: float
) -> Tried:
    """Fit P(known) on the answers of left-out photos, and put it into force if it is better beyond chance.

    `fused` are those answers by the fusion that serves; `new_share` weighs known and new ones.
    """
    cases = fused.cases
    if fused.fusion.kind == "embedding":
        return _stays_out(cases, "the embedder answers alone: there are no further sources to look at")
    known, unknown = cases.known_case & ~np.isnan(cases.known_best), cases.unknown_case
    few = min(known.sum(), unknown.sum()) < thresholds.MIN_CASES
    if few or min(len(np.unique(cases.identity[kind])) for kind in (known, unknown)) < thresholds.MIN_IDENTITIES:
        return _stays_out(cases, "too few left-out photos of known or new animals")
    answers = _answers(gallery, asked, fused, method)
    weights = [
        np.where(kind, share / kind.sum(), 0.0) for kind, share in ((known, 1 - new_share), (unknown, new_share))
    ]
    model, chances = _fitted(answers, cases.identity, np.stack(weights) * (known.sum() + unknown.sum()))
    after = replace(
        cases,
        truth_score=_shifted(cases.truth_score, cases.known_best, chances[0]),
        known_best=np.where(np.isnan(cases.known_best), np.nan, chances[0]),
        other_scores=_shifted(cases.other_scores, cases.other_scores[:, :1], chances[1][:, None]),
    )
    record = _compared(cases, after, known, objective, new_share)
    if not record["gain_low"] > 0:
        record["reason"] = "it tells known from new no better than the best score alone, beyond chance"
        return Tried(None, cases, record)
    return Tried(model, after, record | {"in_force": True, "reason": "it tells known from new better beyond chance"})


def _stays_out(cases: LeftOut, reason: str) -> Tried:
    return Tried(None, cases, {"in_force": False, "reason": reason})


def _answers(gallery: Gallery, asked: Sequence[Asked], fused: Fused, method: str) -> Floats:
    """Rows of all answers, `(2, Q, 8)`: with the animal in the gallery and without; NaN where nobody was named."""
    out = np.full((2, len(asked), len(COLUMNS)), np.nan)
    playing = np.zeros(len(gallery.ids), np.bool_)
    playing[[one.row for one in asked]] = True
    for number, one in enumerate(asked):
        lists = ((one.rows, one.known, fused.known[number]), (one.others, one.unknown, fused.unknown[number]))
        for kind, (rows, features, scores) in enumerate(lists):
            codes = gallery.individuals[rows]
            ranking = identity_scores(scores, codes, method)
            if not len(ranking.codes):
                continue
            there = (gallery.individuals == ranking.codes[0]) & ~playing & (gallery.groups != gallery.groups[one.row])
            out[kind, number] = row_of(ranking, codes, features, int(there.sum()))
    return out


def _fitted(answers: Floats, animals: IntArray, weights: Floats) -> tuple[Known, Floats]:
    """The regression on all answers, and P(known) `(2, Q)` of each by one that saw none of its animal's."""
    there = ~np.isnan(answers[:, :, 0])
    usable = (weights > 0) & there
    truth = np.broadcast_to(np.array([[True], [False]]), usable.shape)
    codes = np.unique(animals, return_inverse=True)[1].astype(np.int64)
    fold = folds_of(codes, FOLDS, seed=0)[codes]
    out = np.full(usable.shape, np.nan)
    for f in range(int(fold.max()) + 1):
        seen = usable & (fold != f)[None]
        model = logistic.fit(answers[seen], truth[seen], weights[seen], ridge=RIDGE)
        mine = there & (fold == f)[None]
        out[mine] = logistic.sigmoid(model.margin(answers[mine]))
    return Known(logistic.fit(answers[usable], truth[usable], weights[usable], ridge=RIDGE)), out


def _shifted(scores: Floats, first: Floats, chances: Floats) -> Floats:
    """`moved`, for many answers; NaN stays."""
    odds = logit(scores, _LEAST) + logit(chances, _LEAST) - logit(first, _LEAST)
    return np.where(np.isnan(odds), np.nan, logistic.sigmoid(np.nan_to_num(odds)))


def _compared(
    before: LeftOut, after: LeftOut, known: NDArray[np.bool_], objective: Objective, new_share: float
) -> dict[str, Any]:
    """AUROC known/new and √(BAKS·BAUS) by the best score and by P(known), and the gain in AUROC with its interval."""
    unknown = before.unknown_case
    scores = [np.r_[one.known_best[known], one.other_scores[unknown, 0]] for one in (before, after)]
    is_known = np.arange(len(scores[0])) < known.sum()
    rows = np.stack([*scores, is_known.astype(np.float64)], axis=1)
    animals = np.r_[before.identity[known], before.identity[unknown]]
    gain = bootstrap_interval(rows, animals, _gain, n=400)
    record: dict[str, Any] = {"in_force": False, "reason": ""}
    for name, one, score in (("before", before, scores[0]), ("after", after, scores[1])):
        at = thresholds.choose_threshold(one, objective=objective, new_share=new_share, n=0).value
        record[f"auroc_{name}"] = round(metrics.auroc(score, is_known), 4)
        record[f"geometric_{name}"] = round(thresholds.expected_score(one, at, "geometric", new_share), 4)
        record[f"threshold_{name}"] = at
    measured = {"gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
    counts = {"known_photos": int(known.sum()), "unknown_photos": int(unknown.sum())}
    return record | {name: round(value, 4) for name, value in measured.items()} | counts


def _gain(rows: NDArray[Any]) -> float:
    """AUROC by the second column less that by the first."""
    is_known = rows[:, 2] > 0
    if is_known.all() or not is_known.any():
        return math.nan
    return metrics.auroc(rows[:, 1], is_known) - metrics.auroc(rows[:, 0], is_known)
