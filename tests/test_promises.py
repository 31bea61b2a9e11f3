"""`reid calibrate`: rates that are kept or refused with a reason, and answers that follow them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_stores import DIM, ColourEmbedder, fake_store, herd, paint, reopened, taken_in, with_vectors
from numpy.typing import NDArray
from promised_store import (
    ANIMALS,
    RATES,
    Scripted,
    ask,
    asked_all_the_way,
    assert_policy_of,
    best_score,
    calibrated,
    cases_of,
    fitted,
    many,
    measured,
    scripted,
    stranger,
    strictly,
    vectors,
)
from rendered_store import reid, reid_json

from reid import fit
from reid.embed import unit_rows
from reid.store import CALIBRATION, Store

__all__ = ["many", "measured", "scripted"]


# Refusal -------------------------------------------------------------------------------------------


def test_a_small_store_is_refused_with_the_reason_and_the_number_that_would_do(
    tmp_path: Path, scripted: Scripted
) -> None:
    store = fake_store(tmp_path / "s")
    with_vectors(store, *vectors(30, 4))
    fit.fit(store)
    store.close()
    before = (tmp_path / "s" / CALIBRATION).read_bytes()
    refused = reid("calibrate", "--json", store=tmp_path / "s")
    assert refused.exit_code == 1 and "nothing was changed" in refused.stderr
    found = strictly(refused.stdout)
    for kind, least in (("matches", 299), ("new", 59)):
        one = found[kind]
        assert (one["threshold"], one["measured"], one["upper"], one["automatic"]) == (None, None, None, 0.0)
        assert str(least) in one["reason"] and 0 < one["photos"] < one["needed"]
    assert (tmp_path / "s" / CALIBRATION).read_bytes() == before
    said = reid("calibrate", store=tmp_path / "s")
    assert [line.split(";")[0] for line in said.stdout.splitlines()][:2] == ["match: refused", "new: refused"]
    assert found["matches"]["reason"] in said.stdout
    assert reid_json("status", store=tmp_path / "s")["promise"] == {}
    assert {a["status"] for a in asked_all_the_way(tmp_path / "s", scripted, 5)} == {"match", "new"}


def test_a_store_without_named_photos_says_what_to_do(tmp_path: Path, scripted: Scripted) -> None:
    fake_store(tmp_path / "s").close()
    result = reid("calibrate", store=tmp_path / "s")
    assert result.exit_code != 0 and "enrol named photos first" in result.stderr + result.stdout


@pytest.mark.parametrize("option", ["--false-match", "--false-new", "--confidence"])
@pytest.mark.parametrize("value", ["0", "1", "nan"])
def test_certainty_and_nonsense_are_refused(measured: Path, scripted: Scripted, option: str, value: str) -> None:
    before = (measured / CALIBRATION).read_bytes()
    result = reid("calibrate", f"{option}={value}", store=measured)
    assert result.exit_code == 2 and option in result.stderr
    assert (measured / CALIBRATION).read_bytes() == before


# In force ------------------------------------------------------------------------------------------


def test_a_sighting_is_new_only_if_each_of_its_photos_would_be(many: Path, scripted: Scripted) -> None:
    """Rates are measured on single photos; the mean over a sighting could hide a sharp one among blurred ones."""
    calibrated(many, *RATES)
    rows, _ = vectors()
    strangers = unit_rows(np.random.default_rng(77).normal(size=(40, DIM)).astype(np.float32))
    new = [one for one in strangers if ask(many, scripted, one)["status"] == "new"][:6]
    assert len(new) == 6 and ask(many, scripted, rows[0])["status"] == "match"
    noted = len((many / "recent.jsonl").read_text().splitlines())
    photos = [paint(many.parent / f"q{n}.png", n) for n in range(7)]
    for sees, status in (([*new, new[0]], "new"), ([*new, unit_rows(rows[:1])[0]], "review")):
        scripted.sees = np.stack(sees)
        answer = reid_json("query", *photos, "--encounter", store=many)
        assert answer["status"] == status
        assert ("one photo by itself" in answer["message"]) == (status == "review")
    assert len((many / "recent.jsonl").read_text().splitlines()) == noted  # means are not compared with single photos


def share(values: NDArray[np.bool_]) -> float:
    return sum(bool(v) for v in values) / len(values)


def test_what_is_promised_was_measured_on_the_left_out_photos(many: Path) -> None:
    found = calibrated(many, *RATES)
    cases = cases_of(fitted(many))
    match_at, new_at = found["matches"]["threshold"], found["new"]["threshold"]
    assert new_at < match_at
    new = 0.3  # `share_new` of the settings
    right = (1 - new) * share((cases.known_score >= match_at) & ~cases.known_wrong)
    wrong = (1 - new) * share((cases.known_score >= match_at) & cases.known_wrong)
    wrong += new * share(cases.unknown_score >= match_at)
    assert found["matches"]["measured"] == pytest.approx(wrong / (right + wrong), abs=1e-9)
    assert found["matches"]["automatic"] == pytest.approx(right + wrong, abs=1e-9)
    known, unknown = (1 - new) * share(cases.known_score < new_at), new * share(cases.unknown_score < new_at)
    assert found["new"]["measured"] == pytest.approx(known / (known + unknown), abs=1e-9)
    for one, rate in ((found["matches"], 0.01), (found["new"], 0.1)):
        assert one["rate"] == rate and 0 <= one["low"] <= one["measured"] < one["upper"] <= rate + 1e-9
        assert one["automatic_low"] < one["automatic"] < one["automatic_high"]
        assert one["photos"] == min(len(cases.known_score), len(cases.unknown_score)) and one["animals"] > 100
    assert reid_json("status", store=many)["promise"] == found


def test_a_promise_from_before_lower_bounds_were_kept_still_holds(many: Path) -> None:
    found = calibrated(many, *RATES)
    path = many / CALIBRATION
    kept = json.loads(path.read_text())
    for one in kept["policy"].values():
        del one["low"]
    path.write_text(json.dumps(kept))
    told = reid("status", store=many)
    assert told.exit_code == 0 and f"at most {found['matches']['upper']:.1%}" in told.stdout
    assert reid_json("status", store=many)["promise"]["matches"]["threshold"] == found["matches"]["threshold"]


def test_answers_follow_the_promise_and_the_labels_agree_with_it(many: Path, scripted: Scripted) -> None:
    found = calibrated(many, *RATES)
    match_at, new_at = found["matches"]["threshold"], found["new"]["threshold"]
    answers = asked_all_the_way(many, scripted)
    for answer in answers:
        score = best_score(answer)
        expected = "match" if score >= match_at else "new" if score < new_at else "review"
        assert answer["status"] == expected
        first_is_new = answer["labels"][0]["is_new"]
        assert expected == "review" or first_is_new == (expected == "new")
        assert new_at <= answer["threshold"] <= match_at
        assert first_is_new == (score < answer["threshold"])
        assert answer["promise"] == {
            "match_at": match_at, "new_at": new_at, "false_match": 0.01, "false_new": 0.1, "confidence": 0.95,
        }  # fmt: skip
    assert {answer["status"] for answer in answers} == {"match", "review", "new"}


def test_a_review_is_said_in_words(many: Path, scripted: Scripted) -> None:
    reid_json("calibrate", *RATES, store=many)
    said = {}
    rows, _ = vectors()
    for share_of_noise in np.linspace(0, 1, 10):
        mixed = (1 - share_of_noise) * unit_rows(rows[:1])[0] + share_of_noise * stranger()
        answer = ask(many, scripted, mixed.astype(np.float32))
        said[answer["status"]] = reid("query", many.parent / "q.png", store=many).stdout
    assert "a person should look" in said["review"]
    assert not any("a person should look" in said[status] for status in ("match", "new"))


@pytest.mark.parametrize("kind", ["matches", "new"])
def test_the_threshold_itself_counts_as_a_match_and_as_not_new(many: Path, kind: str) -> None:
    reid_json("calibrate", *RATES, store=many)
    policy = fitted(many).policy
    assert policy is not None
    match_at, new_at = policy.matches.threshold, policy.new.threshold
    assert match_at is not None and new_at is not None
    at = match_at if kind == "matches" else new_at
    above, below = ("match", "review") if kind == "matches" else ("review", "new")
    assert (policy.verdict(at), policy.verdict(float(np.nextafter(at, -1)))) == (above, below)
    assert (policy.within(-1), policy.within(2), policy.within((match_at + new_at) / 2)) == (
        new_at, match_at, (match_at + new_at) / 2,
    )  # fmt: skip


def test_of_one_rate_promised_and_one_refused_the_refused_verdict_is_never_given(
    many: Path, scripted: Scripted
) -> None:
    found = calibrated(many, "--false-match", 0.0005, "--false-new", 0.2)
    assert found["matches"]["threshold"] is None and found["matches"]["reason"]
    new_at = found["new"]["threshold"]
    assert new_at is not None
    answers = asked_all_the_way(many, scripted)
    assert [a["status"] for a in answers] == ["new" if best_score(a) < new_at else "review" for a in answers]
    assert {a["status"] for a in answers} == {"new", "review"}
    assert {a["promise"]["match_at"] for a in answers} == {None}


def test_a_stricter_rate_that_is_refused_leaves_the_promise_in_force(many: Path) -> None:
    found = calibrated(many, *RATES)
    assert reid("calibrate", "--false-match", 0.0005, "--false-new", 0.0005, store=many).exit_code == 1
    assert reid_json("status", store=many)["promise"] == found


def test_off_goes_back_to_one_threshold(many: Path, scripted: Scripted) -> None:
    before = [(a["status"], a["threshold"], a["labels"]) for a in asked_all_the_way(many, scripted, 5)]
    reid_json("calibrate", *RATES, store=many)
    assert reid_json("calibrate", "--off", store=many) == {}
    assert reid_json("status", store=many)["promise"] == {}
    after = asked_all_the_way(many, scripted, 5)
    assert [(a["status"], a["threshold"], a["labels"]) for a in after] == before
    assert all(a["promise"] == {} for a in after) and {a["status"] for a in after} <= {"match", "new"}
    assert "nothing is promised" in reid("calibrate", "--off", store=many).stdout


def test_nothing_that_is_kept_or_printed_holds_nan(many: Path, scripted: Scripted) -> None:
    for rates in (RATES, ("--false-match", 0.0005, "--false-new", 0.1)):
        strictly(reid("calibrate", *rates, "--json", store=many).stdout)
        strictly((many / CALIBRATION).read_text())
        strictly(reid("status", "--json", store=many).stdout)
        scripted.sees = np.eye(1, DIM, dtype=np.float32)[0]
        strictly(reid("query", paint(many.parent / "q.png", 1), "--json", store=many).stdout)


# Ageing --------------------------------------------------------------------------------------------


def test_status_warns_when_the_gallery_has_outgrown_its_measurement_and_the_next_fit_renews_the_rates(
    many: Path,
) -> None:
    reid_json("calibrate", *RATES, store=many)
    before = fitted(many)
    assert reid_json("status", store=many)["warnings"] == []
    with reopened(many) as store:
        rows, names = vectors(582)
        with_vectors(store, rows, names)  # the first of them are there already
        store.gallery()
    [warning] = reid_json("status", store=many)["warnings"]
    assert "has grown from 1800 to 2328 photos" in warning
    [said] = reid_json("calibrate", *RATES, store=many)["warnings"]
    assert "has grown from 1800 to 2328 photos" in said
    assert "reid reindex --force measures anew" in reid("calibrate", *RATES, store=many).stdout
    with reopened(many) as store:
        fit.fit(store)
    after = fitted(many)
    assert after.policy is not None and before.policy is not None and after.gallery != before.gallery
    assert_policy_of(after, 0.01, 0.1, 0.95)
    assert after.policy.matches.threshold != before.policy.matches.threshold
    assert reid_json("status", store=many)["warnings"] == []
    assert reid_json("status", store=many)["promise"] == after.policy.to_dict()


def test_a_store_that_promises_nothing_is_never_warned_of_its_growth(many: Path) -> None:
    with reopened(many) as store:
        with_vectors(store, *vectors(ANIMALS * 2))
        store.gallery()
    assert reid_json("status", store=many)["warnings"] == []


def test_a_fit_after_off_promises_nothing(many: Path) -> None:
    reid_json("calibrate", *RATES, store=many)
    reid_json("calibrate", "--off", store=many)
    with reopened(many) as store:
        assert fit.fit(store).policy is None


def test_an_enrolment_that_fits_anew_keeps_the_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "embedder", ColourEmbedder())
    taken: Callable[..., Any] = taken_in
    store = fake_store(tmp_path / "s")
    taken(store, herd(tmp_path / "p", 70, 3))
    store.close()
    found = reid_json("calibrate", "--false-match", 0.2, "--false-new", 0.3, "--confidence", 0.8, store=tmp_path / "s")
    assert found["matches"]["threshold"] is not None
    before = fitted(tmp_path / "s")
    with reopened(tmp_path / "s") as store:
        taken(store, herd(tmp_path / "p", 40, 3, first=70))
    after = fitted(tmp_path / "s")
    assert after.photos == 330 > before.photos == 210
    assert after.policy is not None
    assert (after.policy.matches.rate, after.policy.new.rate, after.policy.matches.confidence) == (0.2, 0.3, 0.8)
    assert_policy_of(after, 0.2, 0.3, 0.8)


@pytest.mark.parametrize("damage", [3, {"matches": 3}, {"matches": {}, "new": {}}], ids=str)
def test_a_damaged_promise_is_as_no_fit_and_the_next_one_mends_it(many: Path, damage: object) -> None:
    raw = json.loads((many / CALIBRATION).read_text())
    (many / CALIBRATION).write_text(json.dumps(raw | {"policy": damage}))
    with reopened(many) as store:
        assert fit.read(store, store.gallery().fingerprint) is None
        assert fit.fit(store).policy is None
    assert fitted(many).policy is None


# What other thresholds would cost --------------------------------------------------------------------


def test_the_curve_is_the_measured_one_and_five_lines_of_it_are_said(many: Path) -> None:
    curve = reid_json("calibrate", *RATES, store=many)["curve"]
    cases = cases_of(fitted(many))
    assert len(curve["points"]) == 12 and curve["new_share"] == 0.3
    assert (curve["known_photos"], curve["unknown_photos"]) == (len(cases.known_score), len(cases.unknown_score))
    steps = [one["automatic"] for one in curve["points"]]
    assert np.diff(steps) == pytest.approx(1 / 12, abs=0.02)
    for one in curve["points"]:
        known, unknown = cases.known_score >= one["threshold"], cases.unknown_score >= one["threshold"]
        wrong = known & cases.known_wrong
        assert (one["known"], one["wrong"], one["unknown"]) == (known.sum(), wrong.sum(), unknown.sum())
        mistakes = 0.7 * wrong.mean() + 0.3 * unknown.mean()
        assert one["false_match"] == pytest.approx(mistakes / (0.7 * known.mean() + 0.3 * unknown.mean()))
        assert one["false_match_low"] <= one["false_match"] <= one["false_match_high"]
        assert one["miss"] == pytest.approx(1 - known.mean())
    lines = reid("calibrate", *RATES, store=many).stdout.splitlines()
    said = [line for line in lines if line.startswith("  from score")]
    assert len(said) == 5 and f"{curve['points'][0]['threshold']:.3f}" in said[0]


def test_a_refusal_shows_the_curve_too(tmp_path: Path, scripted: Scripted) -> None:
    store = fake_store(tmp_path / "s")
    with_vectors(store, *vectors(60, 4))
    fit.fit(store)
    store.close()
    refused = reid("calibrate", "--json", store=tmp_path / "s")
    assert refused.exit_code == 1 and strictly(refused.stdout)["curve"]["points"]
