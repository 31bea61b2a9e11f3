"""Several embedders as one: a model directory whose members are model directories.

    models/<name>/
      model.json     a card like any other; `extra["members"]` names the members with their weights, `extra["fusion"]`
                     says what (w, α) were fitted on which out-of-fold scores
      <member>/      a model directory, whole and loadable by itself

An ensemble's vector is √w_i × the unit vector of member i, one behind the other, Σ w_i = 1: a unit row whose cosine with
another is Σ w_i · cos_i, so that an index searches it as any vector. Each member sees its own crop of the box (other
size, other margin): `reid.crop` cuts them from one decoded photo and lays them in one row of pixels, which is split
again here. The fusion of an ensemble that serves is linear in the cosines; the power α of Σ w·P^α (`reid.train.ensembles`)
is fitted and reported, not served: its P are softmaxes over all identities of the gallery, each member's after a
whitening of its own, where an index holds one whitened vector of all members and finds a few candidates.

Knows model directories and vectors; no torch, no stores, no identities.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid import decide, models, siamese
from reid.embed import EMBEDDERS, Crops, Embedder, OpenVinoEmbedder, Vectors, unit_rows
from reid.errors import ModelError
from reid.models import ModelCard, Preprocessing

POOLING = "ensemble"
WITNESS = "witness"  # in a model's directory: the model that speaks for it (`reid.witness`)


@dataclass(frozen=True, slots=True)
class Member:
    """One of an ensemble: its folder's name, the weight of its cosine, the length of its vectors, its fingerprint, and its
    share of how cosines differ from pair to pair (0 where nobody measured it), of which a weight says little.
    """

    name: str
    weight: float
    dim: int
    fingerprint: str
    share: float = 0.0


def members_of(card: ModelCard) -> tuple[Member, ...]:
    """The members of an ensemble's card; none for any other model.

    Raises:
        ModelError: the card's list is not one of members.
    """
    try:
        found = tuple(Member(**one) for one in card.extra.get("members", ())) if card.pooling == POOLING else ()
    except TypeError as error:
        raise ModelError(
            f"incomplete model card ({error})", source=card.name, next_step="make the ensemble again"
        ) from error
    return found


def lead(card: ModelCard) -> Preprocessing:
    """How the member of an ensemble that has most to say sees; any other model as it does."""
    listed = members_of(card)
    if not listed:
        return card.preprocessing
    return card.preprocessing.members[_first([(one.share, one.weight) for one in listed])]


def _first(voices: Sequence[tuple[float, float]]) -> int:
    """Which of the members' (share, weight) has most to say, the first named of equals. A weight counts only where no
    shares were measured: it is large where a member's cosines are all alike.
    """
    return max(range(len(voices)), key=lambda i: voices[i][0] or voices[i][1])


class EnsembleEmbedder:
    """Embeds by every member; see the module."""

    def __init__(self, card: ModelCard, members: Sequence[Embedder], weights: Sequence[float]) -> None:
        """Not for callers: `open_embedder` and `joined` know how."""
        self.card = card
        self._members = tuple(members)
        self._weights = weights_of(weights, len(members))

    def prepare(self) -> None:
        """Compile what a single photo takes, of each member."""
        for member in self._members:
            if isinstance(member, OpenVinoEmbedder):
                member.prepare()

    def embed(self, crops: Crops) -> Vectors:
        """`(N, 1, all members' pixels, 3) uint8 RGB → (N, D) float32` unit rows."""
        parts = split(crops, self.card.preprocessing)
        return joined_rows([one.embed(part) for one, part in zip(self._members, parts, strict=True)], self._weights)


def open_embedder(folder: Path, *, device: str = "cpu", threads: int = 0) -> Embedder:
    """The runtime of a model directory on `device`, an ensemble's or a single network's.

    Raises:
        ModelError: no model there, or a member is missing, damaged or another than it was.
        MissingExtra: the device needs torch, which is not installed.
    """
    card = models.read_card(folder)
    listed = members_of(card)
    if not listed:
        return OpenVinoEmbedder(folder, threads=threads) if device == "cpu" else EMBEDDERS[device](folder)
    for one in listed:
        if models.read_card(folder / one.name).fingerprint != one.fingerprint:
            raise ModelError(
                "this member is not the one that the ensemble was made of",
                source=str(folder / one.name),
                next_step="make the ensemble again",
            )
    opened = [open_embedder(folder / one.name, device=device, threads=threads) for one in listed]
    return EnsembleEmbedder(card, opened, [one.weight for one in listed])


def joined(folders: Sequence[Path], weights: Sequence[float] | None = None, *, threads: int = 0) -> EnsembleEmbedder:
    """An ensemble of model directories that is not on disk (equal weights by default), on the CPU."""
    flat = _flat(folders, [1.0] * len(folders) if weights is None else weights)
    cards = [models.read_card(one.folder) for one in flat]
    card = _card("joined", cards, flat, {})
    opened = [open_embedder(one.folder, threads=threads) for one in flat]
    return EnsembleEmbedder(card, opened, [one.weight for one in flat])


def write(
    folder: Path, name: str, members: Sequence[Path], weights: Sequence[float], extra: dict[str, Any] | None = None,
    *, names: Sequence[str] = (), speaking: Sequence[Path] = (), shares: Sequence[float] = (),
) -> Path:  # fmt: skip
    """The model directory `<folder>/<name>` of these members, copied, replacing one of that name; returns its path.
    Siamese heads stay behind: they know a member's vectors, not the ensemble's, and so do witnesses, of which the
    ensemble has its own where there are models `speaking` for the members. It has learnt what its members have. Members
    are called as their folders are, or by `names`.

    A member that is an ensemble itself comes in with its own members, its weight shared out among them. `shares` are the
    members' of how cosines differ, where that was measured; `extra` goes into the card (what was fitted, and on what).

    Raises:
        ModelError: a member is no model directory; ValueError for weights that are none.
    """
    flat = _flat(members, weights, names, shares)
    called = [one.name for one in flat]
    if len(set(called)) < len(called):
        raise ModelError("a model is named twice", source=", ".join(called), next_step="name each model once")
    left_behind = shutil.ignore_patterns("compiled", siamese.FOLDER, WITNESS)
    with models.whole_or_absent(folder, name) as aside:
        for one in flat:
            shutil.copytree(one.folder, aside / one.name, ignore=left_behind)
        models.write_learnt(aside, frozenset[str]().union(*map(_learnt, members)))
        cards = [models.read_card(aside / member) for member in called]
        models.write_card(aside, _card(name, cards, flat, extra or {}))
        if speaking:
            told = names or [path.name for path in members]
            write(aside, WITNESS, speaking, weights, extra, names=told, shares=shares)
    return folder / name


def split(crops: Crops, preprocessing: Preprocessing) -> list[Crops]:
    """`(N, 1, all pixels, 3)` as `reid.crop.cut` lays them → the crops `(N, height, width, 3)` of each member."""
    if crops.ndim != 4 or crops.shape[1:] != (1, preprocessing.width, 3) or crops.dtype != np.uint8:
        raise ValueError(f"crops must be (N, 1, {preprocessing.width}, 3) uint8, not {crops.shape} {crops.dtype}")
    ends = np.cumsum([one.height * one.width for one in preprocessing.members])[:-1]
    parts = np.split(crops[:, 0], ends, axis=1)
    return [
        part.reshape(len(crops), one.height, one.width, 3)
        for part, one in zip(parts, preprocessing.members, strict=True)
    ]


def joined_rows(rows: Sequence[Vectors], weights: ArrayLike) -> Vectors:
    """Rows `(N, D_i)` of each member → `(N, ΣD_i) float32`: each to unit length, times √w_i, side by side."""
    shares = weights_of(weights, len(rows))
    return np.concatenate(
        [unit_rows(one) * np.float32(share**0.5) for one, share in zip(rows, shares, strict=True)], axis=1
    )


def blocks(rows: Vectors, dims: Sequence[int]) -> list[Vectors]:
    """Rows of an ensemble `(N, ΣD_i)` → unit rows of each member `(N, D_i)`."""
    return [unit_rows(part) for part in np.split(rows, np.cumsum(dims)[:-1], axis=1)]


def balanced(rows: Vectors, card: ModelCard) -> Vectors:
    """Means of several views' vectors → unit rows; of an ensemble each member's part gets its own length back, so that
    a member whose views agree has no more weight than one whose views differ.
    """
    listed = members_of(card)
    if not listed:
        return unit_rows(rows)
    return joined_rows(blocks(rows, [one.dim for one in listed]), [one.weight for one in listed])


def weights_of(weights: ArrayLike, n: int) -> NDArray[np.float64]:
    """`n` weights that sum to 1. ValueError for others than numbers from 0, not all of them 0."""
    shares = np.asarray(weights, np.float64)
    if shares.shape != (n,) or not np.isfinite(shares).all() or (shares < 0).any() or not shares.sum() > 0:
        raise ValueError(f"weights {shares.tolist()} for {n} models: expected as many numbers from 0, not all 0")
    return np.asarray(shares / shares.sum(), np.float64)


@dataclass(frozen=True, slots=True)
class _Part:
    """A member to be: its name in the ensemble, where it is, its weight and its share."""

    name: str
    folder: Path
    weight: float
    share: float


def _learnt(model: Path) -> frozenset[str]:
    """The photos that a model was trained on, those of its ensemble among them where it is a member of one."""
    own, parent = models.read_learnt(model), model.parent
    if not (parent / models.CARD).is_file() or model.name not in [m.name for m in members_of(models.read_card(parent))]:
        return own
    return own | models.read_learnt(parent)


def _flat(
    folders: Sequence[Path], weights: Sequence[float], names: Sequence[str] = (), shares: Sequence[float] = ()
) -> list[_Part]:
    """The single networks of these models. A member's share falls to its own members by their shares, if these were
    measured, else by their weights.
    """
    flat: list[_Part] = []
    called, heard = names or [path.name for path in folders], shares or [0.0] * len(folders)
    each = weights_of(weights, len(folders)).tolist()
    for path, name, weight, share in zip(folders, called, each, heard, strict=True):
        inner = members_of(models.read_card(path))
        measured = all(one.share for one in inner)
        for one in inner:
            own = one.share if measured else one.weight
            flat.append(_Part(f"{name}.{one.name}", path / one.name, weight * one.weight, share * own))
        flat += [] if inner else [_Part(name, path, weight, share)]
    return flat


def _card(name: str, cards: Sequence[ModelCard], parts: Sequence[_Part], extra: dict[str, Any]) -> ModelCard:
    """The card of an ensemble. Its `base`, on which a head would be trained, is that of the member that has most to say;
    it sees in the views of the first member that asks for several, whatever the weights, and where nothing was measured
    a new animal begins at its members' thresholds, weighed as their cosines are.
    """
    weights = weights_of([one.weight for one in parts], len(cards)).tolist()
    seen = [one.preprocessing for one in cards]
    listed = [
        {"name": part.name, "weight": weight, "share": part.share, "dim": card.dim, "fingerprint": card.fingerprint}
        for part, weight, card in zip(parts, weights, cards, strict=True)
    ]
    facts = json.dumps([[one["fingerprint"], round(float(one["weight"]), 9)] for one in listed])
    first = cards[_first([(one.share, one.weight) for one in parts])]
    asked = [str(card.extra.get("views", "one")) for card in cards]
    begins = [float(card.extra.get("threshold", decide.DEFAULT_THRESHOLD)) for card in cards]
    width = sum(one.height * one.width for one in seen)
    return ModelCard(
        name=name,
        dim=sum(one.dim for one in cards),
        preprocessing=replace(seen[0], height=1, width=width, margin=max(p.margin for p in seen), members=tuple(seen)),
        pooling=POOLING,
        weights_sha256=hashlib.sha256(facts.encode()).hexdigest(),
        source="an ensemble of " + ", ".join(card.name for card in cards),
        licence="; ".join(dict.fromkeys(card.licence for card in cards)),
        architecture=POOLING,
        extra={
            "base": first.extra.get("base", first.name),
            "views": next((one for one in asked if one != "one"), "one"),
            "threshold": float(np.dot(weights, begins)),
            **extra,
            "members": listed,
        },
    )
