"""Who is who, as a fold over events: the rules of identity, free of any database.

An event asserts something and is never altered or removed. The state at any time is the fold, in order of event id,
over the events that are in force. This module knows ids and names only: no SQL, photos, clock or vectors. What it says
is the reference; the tables that `events` keeps up to date are a projection of it and are tested to equal it.

The rules, stated once:

- `assign(annotations → individual)` and `split(annotations → individual)` set the owner of each annotation, whatever it
  was before; `unassign` clears it.
- `merge(keep, absorbed)` hangs the absorbed individual below the kept one. Annotations keep the owner they were
  *given*; whose they *are* is found by walking up. So taking a merge back returns exactly the annotations that were the
  absorbed one's, whatever else has happened since.
- `rename` gives an individual another name; the earlier one is remembered as a former name.
- An individual comes to exist, under its first name, with the first event in force that names it, and it exists as long
  as there is one.
- `undo(event)` takes that one event out of force, wherever it stands in the order. An undo is an event like any other,
  so undoing an undo puts the first event back *in its old place*.
- An event is impossible, and nothing is recorded, when in the resulting history some event would (a) merge an
  individual that is already merged, or into its own descendant, or (b) give a name that is borne by an individual that
  is not, at that point, the same animal (same root).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["assign", "unassign", "merge", "split", "rename", "undo"]


@dataclass(frozen=True, slots=True)
class Step:
    """What an event does, without who, when and why.

    `individual` is the target (assign, split), the kept one (merge) or the renamed one; `other` the absorbed one
    (merge) or the source (split, for the record only); `name` the new name (rename); `undoes` the event taken back
    (undo).
    """

    id: int
    kind: Kind
    individual: int | None = None
    other: int | None = None
    name: str | None = None
    annotations: tuple[int, ...] = ()
    undoes: int | None = None


@dataclass(frozen=True, slots=True)
class Impossible:
    """An event that cannot stand in the history that was replayed, and why."""

    event: int
    reason: str


@dataclass(slots=True)
class State:
    """Who is who. `parent[i]` is the individual that `i` is merged into; `given[a]` the individual that annotation `a`
    was given to.

    `names` holds every individual that exists, `former` its earlier names without the present one, in alphabetical
    order.
    """

    names: dict[int, str] = field(default_factory=dict)
    former: dict[int, tuple[str, ...]] = field(default_factory=dict)
    parent: dict[int, int] = field(default_factory=dict)
    given: dict[int, int] = field(default_factory=dict)

    def root(self, individual: int) -> int:
        """The live individual that `individual` now is."""
        while individual in self.parent:
            individual = self.parent[individual]
        return individual

    def owner(self, annotation: int) -> int | None:
        """The live individual an annotation belongs to, or None."""
        given = self.given.get(annotation)
        return None if given is None else self.root(given)


@dataclass(frozen=True, slots=True)
class Replay:
    """The state derived from a log, the events out of force, and those that could not stand (empty for a sound log)."""

    state: State
    undone: frozenset[int]
    impossible: tuple[Impossible, ...]


def out_of_force(undos: Iterable[tuple[int, int]]) -> frozenset[int]:
    """Events taken back, from (undo id, id it undoes) pairs; an undo that is itself undone takes nothing back.

    Later events can only undo earlier ones, so going through the undos from the last to the first meets each with its
    own standing already decided.
    """
    undone: set[int] = set()
    for undo, target in sorted(undos, reverse=True):
        if undo not in undone:
            undone.add(target)
    return frozenset(undone)


def replay(steps: Sequence[Step], first_names: Mapping[int, str]) -> Replay:
    """Fold a log (in order of id) into a state. Impossible events are skipped and listed."""
    undone = out_of_force((step.id, step.undoes) for step in steps if step.undoes is not None)
    fold = _Fold(first_names)
    impossible: list[Impossible] = []
    for step in steps:
        if step.id in undone:
            continue
        reason = fold.apply(step)
        if reason is not None:
            impossible.append(Impossible(step.id, reason))
    return Replay(fold.finish(), undone, tuple(impossible))


class _Fold:
    """The state under construction, with an index of who bears a name."""

    def __init__(self, first_names: Mapping[int, str]) -> None:
        self.first_names = first_names
        self.state = State()
        self.bearers: dict[str, set[int]] = {}
        self.held: dict[int, set[str]] = {}

    def apply(self, step: Step) -> str | None:
        """Take one event in; the reason when it cannot stand, and then nothing is changed but the existence of who
        it names.
        """
        if step.kind == "undo":
            return None
        if step.kind == "unassign":
            for annotation in step.annotations:
                self.state.given.pop(annotation, None)
            return None
        individual = step.individual
        if individual is None:
            raise ValueError(f"event {step.id} ({step.kind}) names no individual")
        reason = self._exist(individual)
        if reason is not None:
            return reason
        if step.kind in ("assign", "split"):
            self.state.given.update(dict.fromkeys(step.annotations, individual))
            return None
        if step.kind == "merge":
            return self._merge(step, individual)
        if step.name is None:
            raise ValueError(f"event {step.id} (rename) holds no name")
        return self._name(individual, step.name)

    def _exist(self, individual: int) -> str | None:
        """Bring an individual into being under its first name, unless it is there."""
        if individual in self.state.names:
            return None
        return self._name(individual, self.first_names[individual])

    def _name(self, individual: int, name: str) -> str | None:
        root = self.state.root(individual)
        for other in sorted(self.bearers.get(name, ())):
            if self.state.root(other) != root:
                return f"the name {name!r} is borne by another individual"
        old = self.state.names.get(individual)
        if old is not None:
            self.bearers[old].discard(individual)
        self.state.names[individual] = name
        self.bearers.setdefault(name, set()).add(individual)
        self.held.setdefault(individual, set()).add(name)
        return None

    def _merge(self, step: Step, keep: int) -> str | None:
        absorbed = step.other
        if absorbed is None:
            raise ValueError(f"event {step.id} (merge) names no absorbed individual")
        reason = self._exist(absorbed)
        if reason is not None:
            return reason
        if absorbed in self.state.parent:
            return f"{self.state.names[absorbed]!r} is already merged"
        if self.state.root(keep) == absorbed:
            return f"{self.state.names[keep]!r} is merged into {self.state.names[absorbed]!r}"
        self.state.parent[absorbed] = keep
        return None

    def finish(self) -> State:
        """The state, with former names filled in."""
        for individual, names in self.held.items():
            earlier = tuple(sorted(names - {self.state.names[individual]}))
            if earlier:
                self.state.former[individual] = earlier
        return self.state
