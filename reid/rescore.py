"""A store's Siamese heads: candidates of a shortlist scored again by a network that was trained on this gallery.

    <store>/siamese/whole/    the head that queries are scored with (`reid.siamese`)
    <store>/siamese/half-0/   one that saw no animal of the first half, and half-1/ none of the second: with them the
                              fit measures on photos whose animals the head has never seen
    <store>/models/<model>/siamese/   a model's own head, learnt together with its network (recipes by pairs)

The first three are trained by `reid.train_siamese` and go before a model's own, which comes and goes with its model.
An own head measures by itself: the fit asks photos alone that model and head have not learnt (`reid.withheld`). All
are of raw vectors of one model, and with another's they are as none. Knows a store's vectors and animals' codes; not
how heads are trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reid import siamese, witness
from reid.embed import unit_rows
from reid.siamese import FOLDER as FOLDER
from reid.siamese import Siamese
from reid.store import Store

WHOLE, HALVES = "whole", ("half-0", "half-1")


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """A store's heads, opened. `halves[h]` saw no animal of half h; a model's own head is all three."""

    store: Store
    whole: Siamese
    halves: tuple[Siamese, Siamese]

    def scores(self, raw: NDArray[np.float32], ids: Sequence[str]) -> NDArray[np.float64]:
        """Logits of a query's raw vector `(D,)` with annotations of the gallery `(C,)`; NaN for those without one."""
        return self._by(self.whole, raw, ids)

    def unseen(self, half: int, id: str, ids: Sequence[str]) -> NDArray[np.float64]:
        """The same for an annotation that plays a query and whose animal is of this half, by the head that did not
        see it (a model's own: that did not see this photo)."""
        found = self.store.catalogue.embeddings_of(self.store.fingerprint, [int(id)])
        raw = next(iter(found.values()), None)
        return np.full(len(ids), np.nan) if raw is None else self._by(self.halves[half], raw, ids)

    def _by(self, head: Siamese, raw: NDArray[np.float32], ids: Sequence[str]) -> NDArray[np.float64]:
        out = np.full(len(ids), np.nan)
        rows = self.store.catalogue.embeddings_of(self.store.fingerprint, [int(id) for id in ids])
        there = [place for place, id in enumerate(ids) if int(id) in rows]
        if there:
            gallery = np.stack([rows[int(ids[place])] for place in there])
            out[there] = head.logits(unit_rows(raw[None]), unit_rows(gallery))[0]
        return out


def half_of(individual: int) -> int:
    """The half of an animal by its code: the same for ever."""
    return hashlib.sha256(str(individual).encode()).digest()[0] % 2


def fingerprint(store: Store) -> str:
    """Of the heads that serve queries, empty where there are none of this model, or the settings do without."""
    if not store.config.query.siamese:
        return ""
    texts = [_card(folder) for folder in _folders(store)]
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:12] if texts else ""


def open_heads(store: Store) -> Heads | None:
    """The heads that serve, None without.

    Raises:
        ModelError: they are damaged; train them again, or switch them off.
    """
    folders = _folders(store) if store.config.query.siamese else []
    if not folders:
        return None
    heads = [siamese.load(folder, store.fingerprint) for folder in folders]
    return Heads(store, heads[0], (heads[0], heads[0]) if len(heads) == 1 else (heads[1], heads[2]))


def _folders(store: Store) -> list[Path]:
    """Where the heads are that are of the present vectors: the store's three, else the model's own, else none. None where
    a witness speaks for the model: its vectors are others, and nothing left out could say what the heads are worth.
    """
    if witness.present(store):
        return []
    own = [store.root / FOLDER / name for name in (WHOLE, *HALVES)]
    of_model = store.models_folder / store.model / FOLDER
    for folders in (own, [of_model]):
        texts = [_card(folder) for folder in folders]
        if all(texts) and _model(texts[0]) == store.fingerprint:
            return folders
    return []


def outdated(store: Store) -> bool:
    """Whether there are heads, but of another model than the one in force."""
    text = _card(store.root / FOLDER / WHOLE)
    asked = store.config.query.siamese and not witness.present(store)  # beside a witness there can be none
    return asked and bool(text) and _model(text) != store.fingerprint


def _card(folder: Path) -> str:
    try:
        return (folder / siamese.CARD).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _model(text: str) -> str:
    try:
        found = json.loads(text)
    except ValueError:
        return ""
    return str(found.get("fingerprint", "")) if isinstance(found, dict) else ""
