"""The command line: every command, its help, its JSON, its exit codes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import typer
from PIL import Image
from rendered_store import PHOTOS, WHALES, enrolled, field, flukes, reid, reid_json, rows_of, store, write_rows

from reid.cli import app

__all__ = ["enrolled", "field", "flukes", "store"]


def commands() -> list[list[str]]:
    """Every command and group, as words."""
    found: list[list[str]] = []

    def walk(command: object, words: list[str]) -> None:
        found.append(words)
        for name, below in getattr(command, "commands", {}).items():
            walk(below, [*words, name])

    walk(typer.main.get_command(app), [])
    return found


def test_all_commands_are_there() -> None:
    assert {" ".join(words) for words in commands()} >= {
        "init", "enroll", "query", "reindex", "status", "models", "evaluate", "demo", "export", "individuals",
        "individuals list", "individuals show", "individuals rename", "individuals merge", "individuals split",
        "individuals assign", "individuals undo", "remove", "models list", "models info", "models add",
        "models remove",
    }  # fmt: skip


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words) or "reid")
def test_help_of_every_command_shows_an_example(words: list[str]) -> None:
    result = reid(*words, "--help")
    assert result.exit_code == 0
    assert "Example: reid " in result.stdout


def test_init_makes_a_store_once(tmp_path: Path) -> None:
    first = reid("init", "--species", "Megaptera", "--new-label", "nobody", store=tmp_path / "s")
    assert (first.exit_code, (tmp_path / "s" / "reid.toml").is_file()) == (0, True)
    settings = (tmp_path / "s" / "reid.toml").read_text()
    assert 'species = "Megaptera"' in settings and 'new_label = "nobody"' in settings
    second = reid("init", store=tmp_path / "s")
    assert second.exit_code == 1
    assert "there is a store here already" in second.stderr
    assert (tmp_path / "s" / "reid.toml").read_text() == settings


@pytest.mark.parametrize("words", [["status"], ["query", "x.jpg"], ["reindex"], ["export", "x.csv"]])
def test_without_a_store_the_command_that_makes_one_is_named(tmp_path: Path, words: list[str]) -> None:
    result = reid(*words, store=tmp_path / "none")
    assert result.exit_code == 1
    assert "init" in result.stderr and str(tmp_path / "none") in result.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "words",
    [["nonsense"], ["query"], ["query", "a.jpg", "--box", "1,2,3"], ["query", "a.jpg", "--box", "5,5,1,9"],
     ["query", "a.jpg", "--side", "above"], ["enroll"], ["demo", "--whales", "two"]],
)  # fmt: skip
def test_wrong_usage_exits_2(enrolled: Path, words: list[str]) -> None:
    assert reid(*words, store=enrolled).exit_code == 2


@pytest.mark.parametrize("what", ["cropper", "siamese"])
def test_a_training_that_is_a_command_of_its_own_is_named(enrolled: Path, what: str) -> None:
    found = reid("train", what, "--from-store", store=enrolled)
    assert found.exit_code == 2 and f"run reid --store {enrolled} train-{what}" in found.stderr


def test_the_store_may_come_from_the_environment(enrolled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REID_STORE", str(enrolled))
    assert reid_json("status")["photos"] == PHOTOS


def test_status_counts_and_says_that_the_index_is_current(enrolled: Path) -> None:
    found = reid_json("status", store=enrolled)
    assert {k: found[k] for k in ("photos", "annotations", "individuals", "unnamed", "index", "indexed", "model")} == {
        "photos": PHOTOS,
        "annotations": PHOTOS,
        "individuals": WHALES,
        "unnamed": 0,
        "index": "current",
        "indexed": PHOTOS,
        "model": "fluke",
    }
    assert "fluke" in reid("status", store=enrolled).stdout


def test_a_query_finds_the_photo_itself_first(enrolled: Path, flukes: Path) -> None:
    row = rows_of(flukes / "labels.csv")[3]
    x, y, w, h = json.loads(row["bbox"])
    box = f"{x},{y},{x + w},{y + h}"
    answer = reid_json("query", flukes / row["path"], "--box", box, store=enrolled)
    assert (answer["status"], answer["labels"][0]["label"]) == ("match", row["identity"])
    assert answer["labels"][0]["score"] == pytest.approx(1, abs=2e-3)
    assert Path(answer["labels"][0]["photo"]) == flukes / row["path"]
    assert len({label["label"] for label in answer["labels"]}) == len(answer["labels"]) == 5
    scores = [label["score"] for label in answer["labels"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["compared"] == {"photos": PHOTOS, "identities": WHALES, "filters": {}}
    assert answer["model"] == "fluke"
    table = reid("query", flukes / row["path"], "--box", box, store=enrolled)
    assert (table.exit_code, row["identity"] in table.stdout) == (0, True)


def test_several_photos_give_an_answer_each_and_an_encounter_gives_one(enrolled: Path, flukes: Path) -> None:
    photos = [flukes / row["path"] for row in rows_of(flukes / "queries.csv")[:3]]
    each = reid_json("query", *photos, store=enrolled)["answers"]
    assert [answer["photos"] for answer in each] == [[str(p)] for p in photos]
    together = reid_json("query", *photos, "--encounter", store=enrolled)
    assert together["photos"] == [str(p) for p in photos]
    assert len(together["labels"]) == 5


def test_a_photo_that_an_encounter_goes_without_shows_in_the_exit_code(
    enrolled: Path, flukes: Path, tmp_path: Path
) -> None:
    photos = [flukes / row["path"] for row in rows_of(flukes / "queries.csv")[:2]]
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    found = reid_json("query", *photos, tmp_path / "bad.png", "--encounter", store=enrolled, code=3)
    assert len(found["labels"]) == 5 and len(found["boxes"]) == 2 and "bad.png" in found["message"]


def test_a_sheet_is_a_picture_and_several_are_numbered(enrolled: Path, flukes: Path, tmp_path: Path) -> None:
    photos = [flukes / row["path"] for row in rows_of(flukes / "queries.csv")[:2]]
    one = reid("query", photos[0], "--sheet", tmp_path / "new" / "one.png", store=enrolled)
    assert (one.exit_code, "one.png" in one.stdout) == (0, True)
    with Image.open(tmp_path / "new" / "one.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 200
    assert reid("query", *photos, "--sheet", tmp_path / "two.jpg", store=enrolled).exit_code == 0
    assert sorted(p.name for p in tmp_path.glob("two*")) == ["two-1.jpg", "two-2.jpg"]
    assert reid("query", photos[0], "--sheet", tmp_path / "x.nonsense", store=enrolled).exit_code == 2


def test_no_sheet_is_drawn_of_an_error_and_a_folder_is_wrong_usage(tmp_path: Path) -> None:
    assert reid("init", store=tmp_path / "s").exit_code == 0
    (tmp_path / "broken.jpg").write_bytes(b"nonsense")
    one = reid("query", tmp_path / "broken.jpg", "--sheet", tmp_path / "sheet.png", store=tmp_path / "s")
    assert (one.exit_code, "contact sheet" in one.stdout, (tmp_path / "sheet.png").exists()) == (1, False, False)
    folder = reid("query", tmp_path, "--sheet", tmp_path / "sheet.png", store=tmp_path / "s")
    assert (folder.exit_code, "is a folder" in folder.stderr, (tmp_path / "sheet.png").exists()) == (2, True, False)


def test_removed_photos_leave_the_answers_and_the_command_says_so(field: Path) -> None:
    gone = sorted((field / "photos").glob("*.jpg"))[0]
    gone.unlink()
    assert "reid --store" in reid("reindex", store=field / "store").stdout
    done = reid_json("remove", "--missing", "--why", "lost", store=field / "store")
    assert ([Path(p).name for p in done["photos"]], done["indexed"], done["failures"]) == ([gone.name], 11, [])
    assert reid_json("reindex", store=field / "store")["failures"] == []
    found = reid_json("status", store=field / "store")
    assert (found["photos"], found["removed_photos"], found["missing_files"]) == (12, 1, 0)
    assert reid("remove", store=field / "store").exit_code == 2
    assert reid("remove", "nobody.jpg", store=field / "store").exit_code == 3


def test_photos_that_cannot_be_read_exit_1_beside_good_ones(enrolled: Path, flukes: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a photo")
    good = flukes / rows_of(flukes / "labels.csv")[0]["path"]
    answers = reid_json("query", tmp_path / "broken.jpg", good, tmp_path / "no.jpg", store=enrolled, code=1)["answers"]
    assert [a["status"] == "error" for a in answers] == [True, False, True]
    assert "broken.jpg" in answers[0]["message"] and answers[0]["labels"] == []


def test_an_empty_store_has_no_candidates(tmp_path: Path, flukes: Path) -> None:
    assert reid("init", store=tmp_path / "s").exit_code == 0
    photo = flukes / rows_of(flukes / "labels.csv")[0]["path"]
    answer = reid_json("query", photo, store=tmp_path / "s", code=4)
    assert (answer["status"], answer["labels"]) == ("no_candidates", [])
    assert reid_json("reindex", "--force", store=tmp_path / "s")["photos_now"] == 0
    assert reid_json("individuals", "list", store=tmp_path / "s") == {"individuals": []}
    assert reid_json("export", tmp_path / "out.csv", store=tmp_path / "s")["rows"] == 0


def test_filters_that_leave_nobody_have_no_candidates(enrolled: Path, flukes: Path) -> None:
    photo = flukes / rows_of(flukes / "labels.csv")[0]["path"]
    answer = reid_json("query", photo, "--species", "Orcinus orca", store=enrolled, code=4)
    assert answer["compared"]["filters"] == {"species": "Orcinus orca"}
    assert reid_json("query", photo, "--species", "humpback_whale", store=enrolled)["status"] in ("match", "review")


def test_a_model_changed_by_hand_makes_the_index_stale(store: Path, flukes: Path) -> None:
    settings = store / "reid.toml"
    settings.write_text(settings.read_text().replace('"fluke"', '"lite0"'))
    photo = flukes / rows_of(flukes / "labels.csv")[0]["path"]
    answer = reid_json("query", photo, store=store, code=6)
    assert answer["status"] == "index_stale" and f"reid --store {store} reindex" in answer["message"]
    assert reid_json("status", store=store)["index"] == "stale"


def test_a_misspelt_setting_is_named(store: Path) -> None:
    settings = store / "reid.toml"
    settings.write_text(settings.read_text().replace("share_new", "share_knew"))
    result = reid("status", store=store)
    assert (result.exit_code, "decision.share_knew" in result.stderr) == (1, True)


def test_what_is_left_out_is_in_the_report_and_the_exit_code(store: Path, flukes: Path, tmp_path: Path) -> None:
    rows = rows_of(flukes / "queries.csv")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "empty.jpg").write_bytes(b"")
    (tmp_path / "in" / "good.jpg").write_bytes((flukes / rows[0]["path"]).read_bytes())
    report = tmp_path / "left-out.csv"
    done = reid_json("enroll", tmp_path / "in", tmp_path / "gone.jpg", "--report", report, store=store, code=3)
    assert (done["new"], len(done["failures"])) == (1, 2)
    with open(report, newline="", encoding="utf-8") as file:
        written = [row for row in csv.DictReader(file) if row["code"] != "note"]
    assert sorted(Path(row["source"]).name for row in written) == ["empty.jpg", "gone.jpg"]
    assert all(row["message"] and row["next_step"] for row in written)
    again = reid("enroll", tmp_path / "in", store=store)
    assert (again.exit_code, "0 photos new, 1 known" in again.stdout, "empty.jpg" in again.stderr) == (3, True, True)


def test_a_report_that_cannot_be_written_is_said_after_the_work(store: Path, flukes: Path, tmp_path: Path) -> None:
    photo = flukes / rows_of(flukes / "queries.csv")[0]["path"]
    result = reid("enroll", photo, "--report", tmp_path / "no" / "report.csv", store=store)
    assert (result.exit_code, "report.csv" in result.stderr) == (1, True)
    assert reid_json("status", store=store)["photos"] == PHOTOS + 1


def test_individuals_can_be_renamed_merged_split_assigned_and_all_of_it_undone(store: Path) -> None:
    def people() -> dict[str, int]:
        return {i["name"]: i["n_photos"] for i in reid_json("individuals", "list", store=store)["individuals"]}

    def do(*words: object) -> int:
        return int(reid_json("individuals", *words, "--why", "a test", store=store)["event"])

    before = people()
    a, b = sorted(before)[:2]
    events = [do("rename", a, "Ana")]
    assert people() == {"Ana" if k == a else k: v for k, v in before.items()}
    assert reid_json("individuals", "show", a, store=store)["individual"]["name"] == "Ana"
    events.append(do("merge", "Ana", b))
    assert people()["Ana"] == before[a] + before[b] and b not in people()
    first = reid_json("individuals", "show", "Ana", store=store)["annotations"][0]["id"]
    events.append(do("split", first, "--name", "Bela"))
    assert (people()["Bela"], people()["Ana"]) == (1, before[a] + before[b] - 1)
    events.append(do("assign", first, "Ana"))
    assert people()["Ana"] == before[a] + before[b]
    log = reid_json("individuals", "show", "Ana", store=store)["history"]
    assert {e["who"] for e in log if e["id"] in events} == {"tester"}
    assert {e["why"] for e in log if e["id"] in events} == {"a test"}
    for event in reversed(events):
        do("undo", event)
    assert people() == before
    text = reid("individuals", "show", a, store=store).stdout
    assert "rename (undone)" in text


def test_individuals_who_do_not_exist_exit_1(enrolled: Path) -> None:
    for words in (["show", "Nobody"], ["rename", "Nobody", "X"], ["undo", "9999"], ["split", "9999"]):
        result = reid("individuals", *words, store=enrolled)
        assert (words, result.exit_code, result.stderr.startswith("error: ")) == (words, 1, True)


def test_a_query_answers_by_the_names_of_now(store: Path, flukes: Path) -> None:
    row = rows_of(flukes / "labels.csv")[0]
    reid_json("individuals", "rename", row["identity"], "Ana", store=store)
    assert reid_json("query", flukes / row["path"], store=store)["labels"][0]["label"] == "Ana"


def test_models_are_listed_and_described(enrolled: Path) -> None:
    found = reid_json("models", "list", store=enrolled)
    assert (found["used"], [m["name"] for m in found["models"]]) == ("fluke", ["fluke"])
    card = reid_json("models", "info", "fluke", store=enrolled)
    assert card["preprocessing"]["width"] == 2 * card["preprocessing"]["height"] and len(card["fingerprint"]) == 64
    assert "* " in reid("models", "list", store=enrolled).stdout
    assert found["models"][0]["bytes"] > 1e6 and " MB" in reid("models", "list", store=enrolled).stdout
    unknown = reid("models", "info", "nonsense", store=enrolled)
    assert (unknown.exit_code, "lite0" in unknown.stderr) == (1, True)


def test_a_model_is_removed_by_its_name_unless_it_is_in_force(store: Path) -> None:
    shutil.copytree(store / "models" / "fluke", store / "models" / "fluke-2")
    done = reid("models", "remove", "fluke-2", "fluke", store=store)
    assert done.exit_code == 3 and done.stdout.startswith("models removed: 1 (") and "in force" in done.stderr
    assert reid_json("models", "remove", "fluke-2", store=store, code=3)["models"] == []
    assert [one["name"] for one in reid_json("models", "list", store=store)["models"]] == ["fluke"]


def test_the_whole_round_enroll_query_reindex_status(field: Path, flukes: Path) -> None:
    photo = flukes / rows_of(flukes / "queries.csv")[0]["path"]
    store = field / "store"
    assert reid_json("query", photo, store=store)["compared"]["photos"] == 12
    reid_json("enroll", photo, store=store)
    assert reid_json("query", photo, store=store)["compared"]["photos"] == 13
    done = reid_json("reindex", store=store)
    assert (done["vanished"], done["changed"], done["photos_now"], done["failures"]) == ([], [], 13, [])
    found = reid_json("status", store=store)
    assert (found["photos"], found["unnamed"], found["index"]) == (13, 1, "current")
    assert "index: 13 → 13 photos" in reid("reindex", store=store).stdout


def test_the_demo_renders_enrols_asks_and_draws(tmp_path: Path) -> None:
    done = reid_json("demo", tmp_path / "d", "--whales", 5, "--queries", 3)
    assert len(done["answers"]) == len(done["truth"]) == len(done["known"]) == 3
    assert [Path(s).is_file() for s in done["sheets"]] == [True] * 3
    assert done["enrolled"]["failures"] == []
    assert {a["status"] for a in done["answers"]} <= {"match", "review", "new"}
    again = reid_json("demo", tmp_path / "d", "--whales", 5, "--queries", 3)  # goes on with what is there
    assert again["enrolled"]["new"] == 0 and again["answers"][0]["labels"] == done["answers"][0]["labels"]
    (tmp_path / "d" / "README.txt").unlink()  # as if the store were somebody's own
    refused = reid("demo", tmp_path / "d", "--whales", 5, "--queries", 3)
    assert (refused.exit_code, "store" in refused.stderr) == (1, True)


def test_a_store_of_the_fourth_place_is_made_enrolled_and_asked(flukes: Path, enrolled: Path, tmp_path: Path) -> None:
    whales = tmp_path / "whales"
    assert reid("init", "--settings", "fourth_place", "--model", "lite0-wide", store=whales).exit_code == 0
    shutil.copytree(enrolled / "models", whales / "models")
    rows = rows_of(flukes / "labels.csv")[:12]
    table = write_rows(tmp_path / "labels.csv", [row | {"path": str(flukes / row["path"])} for row in rows])
    assert "geometry_first" in (whales / "reid.toml").read_text()
    assert reid_json("enroll", table, store=whales)["annotations"] == 12
    answer = reid_json("query", flukes / rows[0]["path"], store=whales)
    assert answer["labels"][0]["label"] == rows[0]["identity"] and not answer["stages_skipped"]
    assert reid("init", "--settings", "sixth_place", store=tmp_path / "none").exit_code != 0
    assert not (tmp_path / "none").exists()


def test_what_a_disk_refuses_is_one_line_that_names_the_file(
    flukes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reid.keypoints import FeatureStore

    def full(self: FeatureStore, *_: object) -> Path:
        raise OSError(28, "No space left on device", "features/ab.rkp")

    monkeypatch.setattr(FeatureStore, "put", full)
    said = reid("enroll", flukes / "labels.csv", store=tmp_path / "store")
    assert said.exit_code == 1 and "features/ab.rkp: No space left on device; make room" in said.stderr
    monkeypatch.undo()
    done = reid_json("enroll", flukes / "labels.csv", store=tmp_path / "store")
    assert done["new"] == len(rows_of(flukes / "labels.csv")) and not done["failures"]
