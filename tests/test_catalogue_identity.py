# ruff: noqa: F811  (fixtures are named as the arguments that ask for them)
"""Identity is a log: whatever is said and taken back, the state is what the log says, and a name finds its animal."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from catalogue_databases import Clock, catalogue, database, drop, enrolled, fresh_url, photo  # noqa: F401
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import DBAPIError

from reid.catalogue import Catalogue
from reid.catalogue.identity import Step, replay
from reid.errors import IdentityError


def owners(catalogue: Catalogue, ids: list[int]) -> list[str | None]:
    found = catalogue.annotations(ids)
    return [found[i].identity for i in ids]


def assert_sound(catalogue: Catalogue) -> None:
    """The projection says what the log says, in every column."""
    replay = catalogue.replay()
    assert replay.impossible == ()
    assert catalogue.projection() == replay.state
    for number, info in catalogue.annotations(range(1, 100)).items():
        owner = replay.state.owner(number)
        assert (info.individual, info.identity) == (owner, None if owner is None else replay.state.names[owner])
    live = {who: name for who, name in replay.state.names.items() if who not in replay.state.parent}
    assert {one.id: one.name for one in catalogue.individuals()} == live
    assert {event.id for event in catalogue.events() if event.undone} == replay.undone
    assert catalogue.rebuild_identity() is False


def test_merge_and_its_undo_give_back_exactly_what_was_merged(catalogue: Catalogue) -> None:
    a, b, c = enrolled(catalogue, photo(1, "Ana"), photo(2, "Bea"), photo(3))
    merge = catalogue.merge("Ana", "Bea", who="me", why="same notch")
    assert owners(catalogue, [a, b, c]) == ["Ana", "Ana", None]
    catalogue.assign([c], "Ana", who="me")
    undo = catalogue.undo(merge, who="you")
    assert owners(catalogue, [a, b, c]) == ["Ana", "Bea", "Ana"]
    catalogue.undo(undo, who="me")
    assert owners(catalogue, [a, b, c]) == ["Ana", "Ana", "Ana"]
    assert_sound(catalogue)


def test_what_is_assigned_to_an_alias_goes_with_it_when_the_merge_is_undone(catalogue: Catalogue) -> None:
    a, b, c = enrolled(catalogue, photo(1, "Ana"), photo(2, "Bea"), photo(3))
    merge = catalogue.merge("Ana", "Bea", who="me")
    catalogue.assign([c], "Bea", who="me")
    assert owners(catalogue, [c]) == ["Ana"]
    catalogue.undo(merge, who="me")
    assert owners(catalogue, [a, b, c]) == ["Ana", "Bea", "Bea"]
    assert_sound(catalogue)


def test_names_aliases_and_former_names_find_their_animal(catalogue: Catalogue) -> None:
    enrolled(catalogue, photo(1, "w_1"), photo(2, "w_2"))
    catalogue.rename("w_1", "Humphrey", who="me")
    catalogue.merge("Humphrey", "w_2", who="me")
    for name in ("Humphrey", "w_1", "w_2"):
        assert catalogue.individual(name).name == "Humphrey"
    assert catalogue.individual("w_1").aliases == ("w_1", "w_2")
    added = catalogue.add_photos([photo(3, "w_1")], who="me")
    assert owners(catalogue, list(added[0].annotations)) == ["Humphrey"]
    assert [one.name for one in catalogue.individuals()] == ["Humphrey"]
    assert_sound(catalogue)


def test_a_name_is_refused_while_it_is_another_animals(catalogue: Catalogue) -> None:
    enrolled(catalogue, photo(1, "Ana"), photo(2, "Bea"), photo(3, "Cy"))
    with pytest.raises(IdentityError, match="taken by 'Bea'"):
        catalogue.rename("Ana", "Bea", who="me")
    catalogue.merge("Ana", "Bea", who="me")
    with pytest.raises(IdentityError, match="taken by 'Ana'"):
        catalogue.rename("Cy", "Bea", who="me")
    catalogue.rename("Ana", "Bea", who="me")  # its own alias it may take
    assert catalogue.individual("Ana").name == "Bea"
    with pytest.raises(IdentityError, match="merged|called 'Bea' already"):
        catalogue.rename("Bea", "Bea", who="me")
    assert_sound(catalogue)


def test_an_undo_that_a_later_event_forbids_is_refused_and_names_it(catalogue: Catalogue) -> None:
    enrolled(catalogue, photo(1, "Ana"), photo(2, "Bea"))
    merge = catalogue.merge("Ana", "Bea", who="me")
    rename = catalogue.rename("Ana", "Bea", who="me")
    before = catalogue.events()
    with pytest.raises(IdentityError, match=f"undo first: {rename}"):
        catalogue.undo(merge, who="me")
    assert catalogue.events() == before
    catalogue.undo(rename, who="me")
    catalogue.undo(merge, who="me")
    assert [one.name for one in catalogue.individuals()] == ["Ana", "Bea"]
    assert_sound(catalogue)


def test_redoing_a_merge_into_a_circle_is_refused(catalogue: Catalogue) -> None:
    enrolled(catalogue, photo(1, "Ana"), photo(2, "Bea"))
    first = catalogue.merge("Ana", "Bea", who="me")
    undo = catalogue.undo(first, who="me")
    second = catalogue.merge("Bea", "Ana", who="me")
    with pytest.raises(IdentityError, match=f"undo first: {second}"):
        catalogue.undo(undo, who="me")
    assert_sound(catalogue)


def test_split_moves_the_given_annotations_and_nothing_else(catalogue: Catalogue) -> None:
    ids = enrolled(catalogue, *(photo(n, "Ana") for n in range(1, 6)))
    event = catalogue.split(ids[:2], who="me", why="other side", evidence={"score": 0.1})
    assert owners(catalogue, ids) == ["Ana (2)"] * 2 + ["Ana"] * 3
    catalogue.split(ids[2:3], who="me")
    catalogue.split(ids[3:4], "Bea", who="me")
    assert owners(catalogue, ids) == ["Ana (2)", "Ana (2)", "Ana (3)", "Bea", "Ana"]
    catalogue.undo(event, who="me")
    assert owners(catalogue, ids) == ["Ana", "Ana", "Ana (3)", "Bea", "Ana"]
    assert [one.name for one in catalogue.individuals()] == ["Ana", "Ana (3)", "Bea"]
    assert_sound(catalogue)


def test_splits_that_cannot_be_are_refused(catalogue: Catalogue) -> None:
    a, b, c, d = enrolled(catalogue, photo(1, "Ana"), photo(2, "Ana"), photo(3, "Bea"), photo(4))
    for ids, name, message in (
        ([a, b], None, "nothing would stay"),
        ([a, c], None, "do not all belong to one"),
        ([d], None, "do not all belong to one"),
        ([a], "Ana", "that same individual"),
        ([], None, "no annotations"),
        ([999], None, "annotations 999 do not exist"),
    ):
        with pytest.raises(IdentityError, match=message):
            catalogue.split(ids, name, who="me")
    assert len(catalogue.events()) == 3


def test_every_refusal_leaves_nothing_behind(catalogue: Catalogue) -> None:
    (a,) = enrolled(catalogue, photo(1))
    revision = catalogue.revision
    for attempt in (
        lambda: catalogue.assign([a, 99], "Ana", who="me"),
        lambda: catalogue.assign([a], "  ", who="me"),
        lambda: catalogue.assign([a], "Ana", who=" "),
        lambda: catalogue.assign([a], "A\nna", who="me"),
        lambda: catalogue.unassign([a], who="me"),
        lambda: catalogue.merge("Ana", "Bea", who="me"),
        lambda: catalogue.rename("Ana", "Bea", who="me"),
        lambda: catalogue.undo(1, who="me"),
        lambda: catalogue.individual("Ana"),
        lambda: catalogue.assign([a], "Ana", who="me", evidence={"score": float("nan")}),
        lambda: catalogue.assign([a], "Ana", who="me", evidence={"score": np.float32(1)}),
    ):
        with pytest.raises(IdentityError):
            attempt()
    assert (catalogue.revision, catalogue.events(), catalogue.individuals()) == (revision, [], [])


def test_undoing_all_that_names_an_animal_frees_its_name_and_redoing_brings_it_back(catalogue: Catalogue) -> None:
    a, b = enrolled(catalogue, photo(1), photo(2))
    first = catalogue.assign([a], "Ana", who="me")
    undo = catalogue.undo(first, who="me")
    assert catalogue.individuals() == []
    with pytest.raises(IdentityError, match=f"undone already, by event {undo}"):
        catalogue.undo(first, who="me")
    catalogue.assign([b], "Ana", who="me")
    catalogue.undo(undo, who="me")
    assert owners(catalogue, [a, b]) == ["Ana", "Ana"]
    assert_sound(catalogue)


def test_undoing_an_early_event_keeps_what_later_ones_said(catalogue: Catalogue) -> None:
    a, b = enrolled(catalogue, photo(1), photo(2))
    first = catalogue.assign([a, b], "Ana", who="me")
    catalogue.rename("Ana", "Bea", who="me")
    catalogue.assign([b], "Cy", who="me")
    catalogue.undo(first, who="me")
    assert owners(catalogue, [a, b]) == [None, "Cy"]
    assert catalogue.individual("Ana").name == "Bea"
    assert_sound(catalogue)


def test_history_tells_who_said_what_when_and_why(catalogue: Catalogue) -> None:
    a, b = enrolled(catalogue, photo(1, "Ana", where="labels.csv row 2"), photo(2, "Bea"))
    catalogue.assign([a], "Bea", who="Zoë", why="scar", evidence={"score": 0.93, "photos": ["1.jpg"]})
    merge = catalogue.merge("Bea", "Ana", who="me")
    catalogue.undo(merge, who="me")
    told = [(e.kind, e.who, e.label, e.other_label, e.annotations, e.undone) for e in catalogue.history("Ana")]
    assert told == [
        ("assign", "tester", "Ana", None, (a,), False),
        ("assign", "Zoë", "Bea", None, (a,), False),
        ("merge", "me", "Bea", "Ana", (), True),
        ("undo", "me", None, None, (), False),
    ]
    first, second = catalogue.annotation_history(a)
    assert (first.why, first.evidence) == ("enrolled", {"where": "labels.csv row 2"})
    assert second.evidence == {"score": 0.93, "photos": ["1.jpg"]}
    assert second.taken_from == (first.individual,)
    assert first.at < second.at and first.at.utcoffset() is not None
    assert [e.id for e in catalogue.history("Bea")] == [2, 3, 4, 5]


def test_the_log_cannot_be_altered_even_by_hand(catalogue: Catalogue, database: URL) -> None:
    enrolled(catalogue, photo(1, "Ana"))
    engine = create_engine(database)
    for statement in (
        "UPDATE identity_event SET who = 'x'",
        "DELETE FROM identity_event",
        "UPDATE event_annotation SET from_id = 1",
        "DELETE FROM event_annotation",
    ):
        with engine.connect() as connection, pytest.raises(DBAPIError, match="only added to"):
            connection.execute(text(statement))
    engine.dispose()


def test_a_damaged_projection_is_mended_from_the_log(catalogue: Catalogue, database: URL) -> None:
    a, b, c = enrolled(catalogue, photo(1, "Ana"), photo(2, "Bea"), photo(3, "Cy"))
    catalogue.merge("Ana", "Bea", who="me")
    catalogue.undo(catalogue.rename("Cy", "Di", who="me"), who="me")
    sound = (catalogue.projection(), owners(catalogue, [a, b, c]))
    engine = create_engine(database)
    with engine.begin() as connection:
        connection.execute(text("UPDATE annotation SET given_id = NULL, individual_id = 3"))
        connection.execute(text("DELETE FROM undone_event"))
        connection.execute(text("UPDATE individual SET name = 'x', merged_into_id = NULL WHERE id = 2"))
    engine.dispose()
    assert catalogue.rebuild_identity() is True
    assert (catalogue.projection(), owners(catalogue, [a, b, c])) == sound
    assert_sound(catalogue)


def test_composed_and_decomposed_names_are_one(catalogue: Catalogue) -> None:
    enrolled(catalogue, photo(1, "Zoe\u0308"), photo(2, " Zoë "))
    assert [(one.name, one.n_photos) for one in catalogue.individuals()] == [("Zoë", 2)]


def test_evidence_may_name_files_whose_names_are_not_text(catalogue: Catalogue) -> None:
    where = "caf\udcff\x00.csv row 2"
    (a,) = enrolled(catalogue, photo(1, "Ana", where=where))
    assert catalogue.annotation_history(a)[0].evidence == {"where": where}


def test_a_former_name_of_two_animals_means_neither(catalogue: Catalogue) -> None:
    enrolled(catalogue, photo(1, "Ana"), photo(2, "Bea"))
    catalogue.rename("Ana", "Cy", who="me")
    catalogue.rename("Bea", "Ana", who="me")
    assert catalogue.individual("Ana").aliases == ("Bea",)
    catalogue.rename("Ana", "Di", who="me")
    with pytest.raises(IdentityError, match="nobody|no individual"):
        catalogue.individual("Ana")
    assert {one.name: one.aliases for one in catalogue.individuals()} == {"Cy": ("Ana",), "Di": ("Ana", "Bea")}
    enrolled(catalogue, photo(3, "Ana"))
    assert catalogue.individual("Ana").n_photos == 1
    assert_sound(catalogue)


def test_a_name_that_is_also_an_alias_means_the_live_animal(catalogue: Catalogue) -> None:
    *_, c = enrolled(catalogue, photo(1, "Ana"), photo(2, "Bea"), photo(3))
    merge = catalogue.merge("Ana", "Bea", who="me")
    rename = catalogue.rename("Ana", "Bea", who="me")
    catalogue.assign([c], "Bea", who="me")
    catalogue.undo(rename, who="me")
    catalogue.undo(merge, who="me")
    assert owners(catalogue, [c]) == ["Ana"]
    assert_sound(catalogue)


def test_an_animal_that_gets_its_old_name_back_has_it_once(catalogue: Catalogue) -> None:
    enrolled(catalogue, photo(1, "Ana"))
    for name, new in (("Ana", "Bea"), ("Bea", "Ana"), ("Ana", "Bea"), ("Bea", "Cy")):
        catalogue.rename(name, new, who="me")
        assert new not in catalogue.individual(new).aliases
        assert_sound(catalogue)
    assert catalogue.individual("Ana").aliases == ("Ana", "Bea")


def test_enrolling_a_known_photo_under_an_alias_is_no_conflict(catalogue: Catalogue) -> None:
    enrolled(catalogue, photo(1, "Ana"), photo(2, "Bea"))
    catalogue.merge("Ana", "Bea", who="me")
    one, two = catalogue.add_photos([photo(1, "Bea"), photo(2, "Ana")], who="me")
    assert (one.conflicts, two.conflicts) == ((), ())


def test_history_follows_merges_of_merges(catalogue: Catalogue) -> None:
    enrolled(catalogue, photo(1, "Ana"), photo(2, "Bea"), photo(3, "Cy"))
    catalogue.merge("Bea", "Cy", who="me")
    catalogue.merge("Ana", "Bea", who="me")
    assert [event.id for event in catalogue.history("Cy")] == [1, 2, 3, 4, 5]
    assert catalogue.individual("Cy").aliases == ("Bea", "Cy")
    assert catalogue.events(after=3, limit=1)[0].other_label == "Cy"


INDIVIDUALS = {1: "Ana", 2: "Bea", 3: "Cy", 4: "Di"}


@st.composite
def logs(draw: st.DrawFn) -> list[Step]:
    """A sound log of events on a few annotations and individuals, built one event at a time."""
    steps: list[Step] = []
    for number in range(1, draw(st.integers(1, 25)) + 1):
        kind = draw(st.sampled_from(["assign", "unassign", "merge", "split", "rename", "undo"]))
        who, other = draw(st.permutations(sorted(INDIVIDUALS)))[:2]
        marks = tuple(sorted(draw(st.sets(st.integers(1, 6), min_size=1, max_size=3))))
        step = {
            "assign": Step(number, "assign", who, annotations=marks),
            "unassign": Step(number, "unassign", annotations=marks),
            "merge": Step(number, "merge", who, other),
            "split": Step(number, "split", who, other, annotations=marks),
            "rename": Step(number, "rename", who, name=draw(st.sampled_from(["Ana", "Bea", "Eve", "Flo"]))),
            "undo": Step(number, "undo", undoes=draw(st.integers(1, max(1, number - 1)))),
        }[kind]
        standing = replay(steps, INDIVIDUALS).undone
        if step.undoes is not None and (step.undoes in standing or step.undoes not in {s.id for s in steps}):
            continue
        if not replay([*steps, step], INDIVIDUALS).impossible:
            steps.append(step)
    return steps


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(logs(), st.data())
def test_undoing_an_event_is_as_if_it_had_never_been(steps: list[Step], data: st.DataObject) -> None:
    now = replay(steps, INDIVIDUALS)
    candidates = [step for step in steps if step.id not in now.undone and step.kind != "undo"]
    if not candidates:
        return
    event = data.draw(st.sampled_from(candidates))
    without = [step for step in steps if step.id != event.id and step.id not in now.undone and step.kind != "undo"]
    undone = replay([*steps, Step(100, "undo", undoes=event.id)], INDIVIDUALS)
    assert undone.state == replay(without, INDIVIDUALS).state
    assert {one.event for one in undone.impossible} <= {step.id for step in steps if step.id > event.id}
    redone = replay([*steps, Step(100, "undo", undoes=event.id), Step(101, "undo", undoes=100)], INDIVIDUALS)
    assert (redone.state, redone.impossible) == (now.state, ())


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(logs())
def test_the_fold_is_that_of_an_obvious_loop(steps: list[Step]) -> None:
    def in_force(step: Step) -> bool:
        return not any(later.undoes == step.id and in_force(later) for later in steps)

    owner: dict[int, int] = {}
    above: dict[int, int] = {}
    names: dict[int, str] = {}
    for step in steps:
        if not in_force(step) or step.kind == "undo":
            continue
        for who in (step.individual, step.other if step.kind == "merge" else None):
            if who is not None and who not in names:
                names[who] = INDIVIDUALS[who]
        for annotation in step.annotations:
            if step.kind == "unassign":
                owner.pop(annotation, None)
            else:
                owner[annotation] = step.individual or 0
        if step.kind == "merge":
            above[step.other or 0] = step.individual or 0
        if step.kind == "rename":
            names[step.individual or 0] = step.name or ""
    state = replay(steps, INDIVIDUALS).state
    assert (state.given, state.parent, state.names) == (owner, above, names)
    for annotation, who in owner.items():
        while who in above:
            who = above[who]
        assert state.owner(annotation) == who
    live = [name for who, name in names.items() if who not in above]
    assert len(live) == len(set(live))


NAMES = st.sampled_from(["Ana", "Bea", "Cy", "Di", "Eve"])
SOME = st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True)
ACTIONS = st.one_of(
    st.tuples(st.just("assign"), SOME, NAMES),
    st.tuples(st.just("unassign"), SOME),
    st.tuples(st.just("merge"), NAMES, NAMES),
    st.tuples(st.just("split"), SOME, st.none() | NAMES),
    st.tuples(st.just("rename"), NAMES, NAMES),
    st.tuples(st.just("undo"), st.integers(1, 14)),
)


def perform(catalogue: Catalogue, ids: list[int], action: tuple) -> int:  # type: ignore[type-arg]
    kind, *rest = action
    if kind in ("assign", "unassign", "split"):
        rest[0] = [ids[i] for i in rest[0]]
    return int(getattr(catalogue, kind)(*rest, who="chance"))


@contextmanager
def with_photos(kind: str) -> Iterator[tuple[Catalogue, list[int]]]:
    with tempfile.TemporaryDirectory() as folder:
        url = fresh_url(kind, Path(folder))
        with Catalogue.open(url, clock=Clock()) as opened:
            yield opened, enrolled(opened, *(photo(n) for n in range(1, 9)))
        drop(url)


@pytest.mark.parametrize(("kind", "examples"), [("sqlite", 60), ("postgresql", 12)])
def test_after_any_history_the_projection_is_what_the_log_says(kind: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.lists(ACTIONS, min_size=1, max_size=14))
    def check(actions: list[tuple]) -> None:  # type: ignore[type-arg]
        with with_photos(kind) as (opened, ids):
            for action in actions:
                before = (opened.projection(), opened.replay(), opened.revision)
                try:
                    event = perform(opened, ids, action)
                except IdentityError:
                    assert (opened.projection(), opened.replay(), opened.revision) == before
                    continue
                assert_sound(opened)
                if action[0] == "undo":
                    continue
                again = opened.projection()
                undo = opened.undo(event, who="chance")
                assert opened.projection() == before[0]
                opened.undo(undo, who="chance")
                assert opened.projection() == again
            assert_sound(opened)

    check()
