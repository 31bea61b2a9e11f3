"""The gallery searched by all sources: what local features find, what is left out, and that nothing is left out in
silence.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_stores import fake_store, reopened, taken_in
from local_store import WITH_LOCAL, changed_settings, described, local_store, sightings
from rendered_store import PHOTOS, flukes
from sqlalchemy import text

from reid import decide, fit, fusion, known, local, verify, withheld
from reid.index.local import LocalIndex
from reid.keypoints import empty_features
from reid.known import Known
from reid.local import LocalSource
from reid.logistic import Logistic
from reid.pipeline import Query, identify
from reid.records import Answer, Sighting
from reid.search import Found, Probe, Searcher
from reid.store import CALIBRATION, Store

__all__ = ["described", "flukes", "local_store"]

NEW = "new_whale"


def known_queries(flukes: Path) -> list[Sighting]:
    enrolled = {s.identity for s in sightings(flukes)}
    return [s for s in sightings(flukes, "queries.csv") if s.identity in enrolled]


def asked(store: Store, queries: list[Sighting], **more: str) -> list[Answer]:
    return identify(store, [Query((replace(s, identity=None),), **more) for s in queries])


def of_gallery(store: Store, *, exclude: frozenset[str] = frozenset(), at: int = 0, **more: object) -> Probe:
    """An enrolled box as a probe."""
    [id, *_] = sorted(LocalSource.open(store).index.ids(), key=int)[at:]
    source = LocalSource.open(store)
    features = source.features_of(local.keys(store, [int(id)]), id)
    vector = store.gallery().vectors([id])[0]
    return Probe(vector, features, exclude=exclude | {id}, **more)  # type: ignore[arg-type]


def one(store: Store, probe: Probe) -> tuple[Searcher, Found]:
    searcher = Searcher.open(store, k=5)
    return searcher, searcher.find([probe])[0]


def turned(store: Store, annotations: list[int], side: str) -> None:
    """Say which flank these show, as an edit of the catalogue would."""
    with store.catalogue._engine.begin() as connection:
        for number in annotations:
            connection.execute(text("UPDATE annotation SET side = :side WHERE id = :id"), {"side": side, "id": number})


def test_local_features_find_whales_that_the_embedder_alone_misses(local_store: Store, flukes: Path) -> None:
    queries = known_queries(flukes)
    alone = changed_settings(
        reopened(Path(shutil.copytree(local_store.root, local_store.root.parent / "alone"))),
        "use = true → use = false",
    )
    fit.fit(alone)
    with_local, without = asked(local_store, queries), asked(alone, queries)

    def found(answers: list[Answer]) -> set[str | None]:
        return {
            s.identity
            for s, a in zip(queries, answers, strict=True)
            if next(x for x in a.labels if not x.is_new).label == s.identity
        }

    assert len(found(with_local) - found(without)) >= 2 and len(found(with_local)) >= len(found(without)) + 2
    fitted = fit.read(local_store, local_store.gallery().fingerprint)
    assert fitted is not None and fitted.fusion.kind == "prior"
    for answer in with_local:
        first = answer.labels[0]
        beyond = decide.clearly_beyond(first.score, answer.threshold or 0.0)
        assert answer.stages_skipped == () and answer.basis == "default"
        assert answer.status == ("new" if first.is_new else "match" if beyond else "review")
        for label in answer.labels:
            assert label.is_new or {"cosine", "votes"} <= label.evidence.keys()
    best = [a.labels[0] for a in with_local if a.status != "new"]
    assert best and all(label.evidence["inliers"] > 3 and label.evidence["votes"] > 0 for label in best)
    assert all(label.is_new or label.evidence.keys() == {"cosine"} for a in without for label in a.labels)


@pytest.mark.parametrize("estimator", ["lmeds_ransac", "magsac"])
def test_queries_and_the_fit_verify_by_the_estimator_that_the_settings_name(
    local_store: Store, flukes: Path, monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    asked_of: list[str] = []
    for name, find in list(verify.ESTIMATORS.items()):
        monkeypatch.setitem(
            verify.ESTIMATORS, name, lambda *given, name=name, find=find: (asked_of.append(name), find(*given))[1]
        )
    store = changed_settings(
        local_store, f'estimator = "auto" → estimator = "{estimator}"', 'model = "affine" → model = "homography"'
    )
    fit.fit(store)
    assert set(asked_of) == {estimator}
    asked_of.clear()
    [answer] = asked(store, known_queries(flukes)[:1])
    assert set(asked_of) == {estimator} and any(label.evidence.get("inliers", 0) > 4 for label in answer.labels)


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ('matcher = "sift" → matcher = "sift_mutual"', "prior"),
        ('model = "affine" → model = "similarity"', "prior"),
        ('estimator = "auto" → estimator = "magsac"', "prior_votes"),
        ("inlier_distance = 0.03 → inlier_distance = 0.3", "prior_votes"),
    ],
)
def test_general_weights_believe_geometry_only_as_it_was_compared_for_them(
    local_store: Store, flukes: Path, changed: str, kind: str
) -> None:
    """In a store too small to measure on; else a pair of strangers with a few loose points would be a sure match."""
    store = changed_settings(local_store, changed)
    made = fit.fit(store)
    assert (made.fusion.kind, made.basis) == (kind, "default")
    [answer] = asked(store, known_queries(flukes)[:1])
    assert answer.labels and answer.stages_skipped == ()


def flipped(given: Sighting, folder: Path) -> Sighting:
    """The photo as a flipped scan would show it, and its box."""
    pixels = cv2.imread(str(given.path))[:, ::-1]
    assert cv2.imwrite(str(folder / f"flipped-{given.path.stem}.png"), pixels) and given.box is not None
    x0, x1 = pixels.shape[1] - given.box.x1, pixels.shape[1] - given.box.x0
    return replace(given, path=folder / f"flipped-{given.path.stem}.png", box=replace(given.box, x0=x0, x1=x1))


def test_a_flipped_scan_is_matched_and_flagged_where_the_settings_ask_for_it(
    local_store: Store, flukes: Path, tmp_path: Path
) -> None:
    queries = [flipped(s, tmp_path) for s in sightings(flukes)[:2]]
    before = asked(local_store, queries)
    store = changed_settings(local_store, "mirrored = false → mirrored = true")
    assert fit.is_due(store)  # what was fitted without is of no use with it
    fit.fit(store)
    labels = store.catalogue.labels()
    source = withheld.local_of(store, labels)
    assert source is not None and source.verify.mirrored
    for query, without, found in zip(queries, before, asked(store, queries), strict=True):
        first = found.labels[0]
        assert first.label == query.identity and first.evidence["mirrored"] == 1.0 and first.evidence["inliers"] > 20
        assert "mirrored" in json.dumps(asdict(found))
        assert without.labels[0].label != query.identity
        assert not any("mirrored" in label.evidence for label in without.labels)
    [as_it_is] = asked(store, sightings(flukes)[:1])
    assert as_it_is.labels[0].label == queries[0].identity and "mirrored" not in as_it_is.labels[0].evidence


def test_several_probes_are_answered_as_if_asked_one_by_one(local_store: Store) -> None:
    probes = [of_gallery(local_store, at=n, side=side) for n, side in enumerate(["left", "unknown", "right"])]
    searcher = Searcher.open(local_store, k=5)
    together, apart = searcher.find(probes), [searcher.find([probe])[0] for probe in probes]
    assert [f.candidates for f in together] == [f.candidates for f in apart]
    assert searcher.find([]) == []


def test_candidates_are_all_there_once_with_the_scores_of_the_fusion(local_store: Store) -> None:
    searcher, found = one(local_store, of_gallery(local_store))
    ids, scores = found.candidates.ids, found.candidates.scores
    assert found.shortlist is not None and sorted(ids) == sorted(found.shortlist.ids)
    assert len(set(ids)) == len(ids) == PHOTOS - 1
    by_id = dict(zip(found.shortlist.ids, searcher.fusion.scores(found.shortlist.features).tolist(), strict=True))
    assert scores == tuple(by_id[id] for id in ids) == tuple(sorted(scores, reverse=True))
    vector = local_store.gallery().vectors([ids[3]])[0]
    row = found.shortlist.ids.index(ids[3])
    probe = of_gallery(local_store)
    assert found.evidence(ids[3])["cosine"] == pytest.approx(float(vector @ probe.vector), abs=2e-3)
    assert found.evidence(ids[3])["votes"] == found.shortlist.votes[row]
    assert found.evidence("nobody") == {}
    assert searcher.info(ids[0]).identity is not None


def test_what_is_excluded_is_found_by_neither_source(local_store: Store) -> None:
    _, before = one(local_store, of_gallery(local_store))
    best = before.candidates.ids[:3]
    _, after = one(local_store, of_gallery(local_store, exclude=frozenset(best)))
    assert not set(best) & set(after.candidates.ids) and len(after.candidates.ids) == PHOTOS - 4
    searcher = Searcher.open(local_store, k=5)
    pair = searcher.find([of_gallery(local_store), of_gallery(local_store, exclude=frozenset(best))])
    assert [f.candidates for f in pair] == [before.candidates, after.candidates]  # one probe's are not another's


def sided(store: Store) -> tuple[list[int], Probe]:
    """All photos of the whale that a left probe shows are of its right flank; the probe itself stays out."""
    searcher, found = one(store, of_gallery(store))
    whale = searcher.code(found.candidates.ids[0])
    labels = store.catalogue.labels()
    others = labels.annotations[labels.individuals == whale].tolist()
    turned(store, others, "right")
    return others, of_gallery(store, side="left")


def test_opposite_flanks_are_kept_apart_in_both_sources(local_store: Store) -> None:
    right, probe = sided(local_store)
    _, found = one(local_store, probe)
    assert found.candidates.ids and not {str(i) for i in right} & set(found.candidates.ids)
    _, either = one(local_store, replace(probe, side="unknown"))
    assert either.candidates.ids[0] in {str(i) for i in right}


def test_opposite_flanks_are_compared_where_the_fit_says_that_they_tell_something(local_store: Store) -> None:
    right, probe = sided(local_store)
    fitted = fit.read(local_store, local_store.gallery().fingerprint)
    assert fitted is not None and fitted.sides == "separate"
    fit.write(local_store, replace(fitted, sides="together"))
    _, found = one(local_store, probe)
    assert found.candidates.ids[0] in {str(i) for i in right}


def test_another_species_is_found_by_neither_source(local_store: Store, flukes: Path) -> None:
    species = {i.species for i in local_store.catalogue.annotations(range(1, PHOTOS + 1)).values()}
    assert len(species) == 1
    probe = of_gallery(local_store)
    _, all_of_it = one(local_store, replace(probe, species=str(next(iter(species)))))
    assert len(all_of_it.candidates.ids) == PHOTOS - 1
    _, none = one(local_store, replace(probe, species="okapi"))
    assert none.candidates.ids == ()
    [answer] = asked(local_store, known_queries(flukes)[:1], species="okapi")
    assert answer.status == "no_candidates"


def test_an_empty_gallery_has_no_candidates(tmp_path: Path) -> None:
    store = fake_store(tmp_path / "s", settings=WITH_LOCAL)
    searcher = Searcher.open(store, k=5)
    [found] = searcher.find([Probe(np.zeros(48, np.float32))])
    assert (found.candidates.ids, found.skipped) == ((), ())


@pytest.mark.parametrize("features", ["none on file", "none were found"])
def test_a_box_without_local_features_is_said_and_scored_on_the_same_scale(local_store: Store, features: str) -> None:
    """Bare cosines would all lie above a threshold of probabilities: everything would match."""
    probe = of_gallery(local_store)
    bare = replace(probe, features=None if "file" in features else empty_features(9, 9))
    searcher, found = one(local_store, bare)
    assert len(found.skipped) == 1 and features in found.skipped[0]
    assert found.candidates.ids and max(found.candidates.scores) < fusion.PRIOR_THRESHOLD
    plain = searcher.gallery.search(probe.vector[None], PHOTOS, exclude=[probe.exclude])[0]
    assert found.candidates.ids == plain.ids  # the embedder's order is kept


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_gallery_photos_without_features_are_said(local_store: Store, flukes: Path, damage: str) -> None:
    [query] = known_queries(flukes)[:1]
    [whole] = asked(local_store, [query])
    assert whole.stages_skipped == ()
    source = LocalSource.open(local_store)
    for path in (local_store.root / "features").rglob("*.rkp"):
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1] + b"\x01\x02")
    assert len(source.index) == PHOTOS
    [answer] = asked(local_store, [query])
    checked = min(PHOTOS, local_store.config.local.verify)
    [skipped] = answer.stages_skipped
    assert skipped.startswith(f"geometry: {checked} of {checked} gallery photos have no local features")
    assert "reid reindex" in skipped
    assert all("inliers" not in label.evidence for label in answer.labels)
    assert local.bring_up(local_store, check=True) == []
    [again] = asked(local_store, [query])
    assert again.stages_skipped == () and again.labels == whole.labels


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_votes_that_many_photos_cannot_give_make_nobody_new(
    local_store: Store, flukes: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """A few photos without features are noted; of many, the animal may be one."""
    enrolled = {s.identity for s in sightings(flukes)}
    query = next(s for s in sightings(flukes, "queries.csv") if s.identity not in enrolled)
    lacking = max(1, round(share * PHOTOS))
    monkeypatch.setattr(LocalIndex, "__len__", lambda self: PHOTOS - lacking)
    [answer] = asked(local_store, [query])
    assert any(text.startswith(f"votes: {lacking} of {PHOTOS} gallery photos") for text in answer.stages_skipped)
    assert answer.status == ("review" if share > 0.05 else "new")


def test_features_lost_from_the_gallery_make_nobody_new(local_store: Store, flukes: Path) -> None:
    strangers = {s.identity for s in sightings(flukes, "queries.csv")} - {s.identity for s in sightings(flukes)}
    query = next(s for s in sightings(flukes, "queries.csv") if s.identity in strangers)
    [whole] = asked(local_store, [query])
    assert whole.status == "new"
    shutil.rmtree(local_store.root / "features")
    [answer] = asked(local_store, [query])
    assert answer.status == "review" and "no local features: reid reindex" in answer.message
    assert local.bring_up(local_store, check=True) == []
    assert asked(local_store, [query])[0].status == "new"


def test_a_blank_query_is_new_only_with_the_reason_beside_it(local_store: Store, tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "blank.png"), np.full((120, 200, 3), 128, np.uint8))
    [answer] = asked(local_store, [Sighting(tmp_path / "blank.png", "blank.png")])
    assert answer.status == "new" and answer.stages_skipped == ("local features: none were found in the box",)


@pytest.mark.parametrize("change", ["settings", "fit gone", "fit damaged"])
def test_where_nothing_was_measured_it_is_said_that_the_embedder_answers_alone(
    local_store: Store, flukes: Path, change: str
) -> None:
    store = local_store
    if change == "settings":
        store = changed_settings(store, r"verify = \d+ → verify = 5")
    elif change == "fit gone":
        (store.root / CALIBRATION).unlink()
    else:
        (store.root / CALIBRATION).write_text('{"gallery": "x"')
    [answer] = asked(store, known_queries(flukes)[:1])
    assert answer.stages_skipped == ("local features: nothing was measured with the present settings; reid reindex",)
    fit.fit(store)
    [after] = asked(store, known_queries(flukes)[:1])
    assert after.stages_skipped == ()


def test_a_store_that_does_without_local_features_has_nothing_to_say_of_them(local_store: Store, flukes: Path) -> None:
    store = changed_settings(local_store, "use = true → use = false")
    [answer] = asked(store, known_queries(flukes)[:1])
    assert answer.stages_skipped == () and answer.labels


@pytest.mark.parametrize("damage", ["cut", "manifest"])
def test_a_damaged_local_index_is_never_mistaken_for_no_match(local_store: Store, flukes: Path, damage: str) -> None:
    folder = local_store.root / local.FOLDER
    path = folder / "MANIFEST.json"
    if damage == "cut":
        path = max((p for p in folder.iterdir() if p.name.startswith("seg-")), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:-5])
    answers = asked(local_store, known_queries(flukes)[:2])
    assert [a.status for a in answers] == ["index_stale"] * 2
    for answer in answers:
        assert answer.labels == () and "reid reindex" in answer.message and str(folder) in answer.message
    assert local.bring_up(local_store) == []
    assert {a.status for a in asked(local_store, known_queries(flukes)[:2])} <= {"match", "review", "new"}


def test_a_photo_enrolled_elsewhere_meanwhile_is_found_by_the_next_search(local_store: Store, flukes: Path) -> None:
    new = next(s for s in sightings(flukes, "queries.csv") if s not in known_queries(flukes))
    taken_in(reopened(local_store.root), [replace(new, identity="Fresh")])
    [answer] = asked(reopened(local_store.root), [new])
    assert answer.labels[0].label == "Fresh" and answer.labels[0].evidence["inliers"] > 50


def test_where_p_known_is_in_force_answers_keep_their_order_and_the_first_score_is_the_chance(
    local_store: Store, flukes: Path
) -> None:
    queries = known_queries(flukes)[:3]
    before = asked(local_store, queries)
    found = fit.read(local_store, local_store.gallery().fingerprint)
    assert found is not None
    # four parts of the lead, against one of the first animal's photos
    weights = [0.0, 0.5, 0.0, -1.0, *[0.0] * (len(known.COLUMNS) - 4)]
    fit.write(local_store, replace(found, known=Known(Logistic(0.25, tuple(weights)))))
    for plain, moved in zip(before, asked(local_store, queries), strict=True):
        old, new = ([x for x in a.labels if not x.is_new] for a in (plain, moved))
        assert [x.label for x in new][:4] == [x.label for x in old][:4]
        odds = [math.log(x.score / (1 - x.score)) for x in old]
        chance = 0.25 + 0.5 * min(odds[0] - odds[1], known.FARTHEST) - math.log1p(old[0].n_photos)
        assert new[0].score == pytest.approx(1 / (1 + math.exp(-chance)), rel=1e-6)
        assert new[0].evidence == old[0].evidence
        moves = [math.log(x.score / (1 - x.score)) - o for x, o in zip(new, odds, strict=False)]
        assert moves[:4] == pytest.approx([chance - odds[0]] * 4, abs=1e-6)
        place = [x.is_new for x in moved.labels].index(True)
        assert place == sum(x.score >= (moved.threshold or 0) for x in new)
