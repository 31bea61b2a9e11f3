"""What a training was dealt, written down when it begins: which photos, whose they are, which of them judge.

    <run>/dealt.npz   of each annotation of the pool its individual, encounter, photo, sighting, and part in the training

A resumed training is dealt the same again, whatever has been enrolled or named since: else photos that a finished fold
has learnt might be left out for it, or judge it. What the store cannot deal that way any more is refused. The file goes
once the training is done. Knows stores and runs; deals nothing itself (`reid.judge`).
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid import withheld
from reid.catalogue import Labels
from reid.errors import TrainError
from reid.judge import Pool, pool_of
from reid.store import Store

if TYPE_CHECKING:
    from reid.train.runs import Run

DEALT = "dealt.npz"
LEARNT, PLAYED, JUDGE = 1, 2, 3  # parts; 0 for neither: no name, or of a judge's sighting

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Dealt:
    """Arrays `(N,)`, ascending by annotation: columns of `Labels`, sightings as numbers, and parts."""

    annotations: IntArray
    individuals: IntArray
    encounters: IntArray
    photos: IntArray
    sightings: IntArray
    parts: IntArray


def write(store: Store, run: Run, pool: Pool) -> None:
    """Put down what a run that begins was dealt. OSError where the disk refuses."""
    file = io.BytesIO()
    found = _dealt(store, pool)
    np.savez_compressed(file, **{f.name: getattr(found, f.name) for f in fields(found)})
    (run.folder / DEALT).write_bytes(file.getvalue())


def again(store: Store, run: Run, seen: ArrayLike = ()) -> Pool:
    """The pool of a run that goes on, with names as they were when it began; `seen` as for `pool_of`.

    Raises:
        TrainError: nothing is on record, photos of it are gone, or sightings or judges would be others now.
    """
    then = _read(run)
    labels = Labels(then.annotations, then.individuals, then.encounters, then.photos)
    serving = store.catalogue.labels()
    there = np.isin(then.annotations, serving.annotations)
    if not there.all():
        raise _changed(run, f"{int((~there).sum())} of its {len(there)} photos are gone")
    pool = pool_of(store, seen=seen, among=labels)
    if len(pool.labels.annotations) < len(there):
        raise _changed(run, "not all of its photos have a vector by the model in force")
    now = _dealt(store, pool)
    if not np.array_equal(now.sightings, then.sightings):
        raise _changed(run, "its photos make other sightings now")
    if not np.array_equal(now.parts, then.parts):
        raise _changed(run, "other photos would judge it now")
    at = np.searchsorted(serving.annotations, then.annotations)
    renamed = int((serving.individuals[at] != then.individuals).sum())
    more = len(serving.annotations) - len(there)
    if renamed or more:
        run.log(
            f"as it began: {renamed} photos that have another name now keep theirs, {more} photos that have come since "
            "take no part"
        )
    return pool


def forget(run: Run) -> None:
    """The run is done and will not be resumed."""
    (run.folder / DEALT).unlink(missing_ok=True)


def _dealt(store: Store, pool: Pool) -> Dealt:
    labels = pool.labels
    parts = np.zeros(len(labels.annotations), np.int64)
    for rows, part in ((pool.chosen, LEARNT), (pool.played, PLAYED), (pool.judges, JUDGE)):
        parts[rows] = part
    sightings = withheld.sightings_of(store.catalogue, labels)
    return Dealt(labels.annotations, labels.individuals, labels.encounters, labels.photos, sightings, parts)


def _read(run: Run) -> Dealt:
    path = run.folder / DEALT
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return Dealt(**{f.name: arrays[f.name] for f in fields(Dealt)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TrainError(
            f"which photos it was begun with cannot be read ({error})",
            source=str(path),
            next_step="leave out --resume: `reid train` begins anew",
        ) from error


def _changed(run: Run, what: str) -> TrainError:
    return TrainError(
        f"the store has changed since that training was begun: {what}",
        source=str(run.folder),
        next_step="leave out --resume: `reid train` begins anew",
    )
