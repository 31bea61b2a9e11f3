"""The nightly run: what changed on disk, in the settings or in the index, and what is reported of it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rendered_store import enrolled, field, flukes, reid, reid_json, rows_of, store, write_rows

from reid.store import Store

__all__ = ["enrolled", "field", "flukes", "store"]


def labels_of(answer: dict[str, object]) -> list[tuple[str, float]]:
    return [(label["label"], round(label["score"], 3)) for label in answer["labels"]]  # type: ignore[attr-defined]


def test_nothing_new_changes_nothing(field: Path) -> None:
    before = reid_json("status", store=field / "store")
    done = reid_json("reindex", store=field / "store")
    assert {k: done[k] for k in ("vanished", "changed", "back", "embedded", "rebuilt", "matches", "failures")} == {
        "vanished": [], "changed": [], "back": [], "embedded": 0, "rebuilt": "", "matches": [], "failures": [],
    }  # fmt: skip
    assert (done["photos_before"], done["photos_now"], done["enrolled"]["known"]) == (12, 12, 12)
    assert reid_json("status", store=field / "store") == before


def test_new_files_and_new_rows_of_enrolled_sources_are_taken_in(field: Path, flukes: Path) -> None:
    row = rows_of(flukes / "labels.csv")[20]
    shutil.copy2(flukes / row["path"], field / row["path"])
    write_rows(field / "labels.csv", [*rows_of(field / "labels.csv"), row])
    done = reid_json("reindex", store=field / "store")
    assert (done["enrolled"]["new"], done["enrolled"]["named"], done["photos_now"]) == (1, 1, 13)
    answer = reid_json("query", field / row["path"], store=field / "store")
    assert answer["labels"][0]["label"] == row["identity"]


def test_a_file_that_vanished_is_marked_serves_on_and_may_come_back(field: Path) -> None:
    row = rows_of(field / "labels.csv")[2]
    photo, away = field / row["path"], field / "away.jpg"
    photo.rename(away)
    done = reid_json("reindex", store=field / "store", code=3)  # the table's row has lost its photo
    assert (done["vanished"], done["photos_now"]) == ([str(photo)], 12)
    assert [Path(f["source"]).name for f in done["failures"]] == ["labels.csv row 4"]
    assert reid_json("status", store=field / "store")["missing_files"] == 1
    assert reid_json("query", away, store=field / "store")["labels"][0]["label"] == row["identity"]
    assert reid_json("reindex", store=field / "store", code=3)["vanished"] == []
    away.rename(photo)
    back = reid_json("reindex", store=field / "store")
    assert (back["back"], back["vanished"], back["photos_now"]) == ([str(photo)], [], 12)
    assert reid_json("status", store=field / "store")["missing_files"] == 0


def test_a_single_photo_that_vanished_is_no_failure(field: Path, flukes: Path) -> None:
    photo = field / "alone.jpg"
    shutil.copy2(flukes / rows_of(flukes / "queries.csv")[0]["path"], photo)
    reid_json("enroll", photo, store=field / "store")
    photo.unlink()
    done = reid_json("reindex", store=field / "store")
    assert (done["vanished"], done["failures"]) == ([str(photo)], [])


def test_a_folder_or_table_that_vanished_is_said_and_stops_nothing(field: Path, flukes: Path) -> None:
    (field / "more").mkdir()
    shutil.copy2(flukes / rows_of(flukes / "queries.csv")[0]["path"], field / "more" / "one.jpg")
    reid_json("enroll", field / "more", store=field / "store")
    (field / "labels.csv").rename(field / "elsewhere.csv")
    shutil.copy2(flukes / rows_of(flukes / "queries.csv")[1]["path"], field / "more" / "two.jpg")
    done = reid_json("reindex", store=field / "store", code=3)
    assert [Path(f["source"]).name for f in done["failures"]] == ["labels.csv"]
    assert (done["enrolled"]["new"], done["photos_now"]) == (1, 14)


def test_changed_content_takes_the_old_vectors_out_and_the_new_ones_in(field: Path, flukes: Path) -> None:
    row, other = rows_of(field / "labels.csv")[1], rows_of(flukes / "labels.csv")[25]
    photo, original = field / row["path"], (field / row["path"]).read_bytes()
    photo.write_bytes((flukes / other["path"]).read_bytes())
    done = reid_json("reindex", store=field / "store")
    assert (done["changed"], done["enrolled"]["new"], done["photos_now"]) == ([str(photo)], 1, 12)
    assert reid_json("status", store=field / "store")["changed_files"] == 1
    with Store.open(field / "store") as opened:  # the table still says whose it is and where: one animal, its box
        ids = opened.catalogue.labels().annotations.tolist()
        (new,) = [a for a in opened.catalogue.annotations(ids).values() if a.path == photo]
        assert (new.identity, new.box.origin) == (row["identity"], "table")
    assert reid_json("reindex", store=field / "store")["changed"] == []
    photo.write_bytes(original)
    again = reid_json("reindex", store=field / "store")
    assert (again["photos_now"], again["enrolled"]["new"]) == (12, 0)
    answer = reid_json("query", photo, store=field / "store")
    assert answer["labels"][0]["label"] == row["identity"]
    assert reid_json("reindex", store=field / "store")["back"] == []


def test_changed_content_that_no_table_names_is_an_unknown_animal(field: Path, flukes: Path) -> None:
    photo = field / "alone.jpg"
    queries = rows_of(flukes / "queries.csv")
    shutil.copy2(flukes / queries[0]["path"], photo)
    reid_json("enroll", photo, store=field / "store")
    photo.write_bytes((flukes / queries[1]["path"]).read_bytes())
    done = reid_json("reindex", store=field / "store")
    assert (done["changed"], done["photos_now"]) == ([str(photo)], 13)
    assert reid_json("status", store=field / "store")["unnamed"] == 1


def test_a_damaged_index_is_rebuilt_and_answers_as_before(store: Path, flukes: Path) -> None:
    photo = flukes / rows_of(flukes / "queries.csv")[0]["path"]
    before = labels_of(reid_json("query", photo, store=store))
    largest = max((p for p in (store / "index").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(data)
    assert reid_json("status", store=store)["index"] == "corrupt"
    done = reid_json("reindex", store=store)
    assert done["rebuilt"] and done["photos_now"] == 32
    assert reid_json("status", store=store)["index"] == "current"
    assert labels_of(reid_json("query", photo, store=store)) == before


def test_an_index_that_is_gone_is_made_again(store: Path, flukes: Path) -> None:
    photo = flukes / rows_of(flukes / "queries.csv")[0]["path"]
    before = labels_of(reid_json("query", photo, store=store))
    shutil.rmtree(store / "index")
    assert reid_json("reindex", store=store)["photos_now"] == 32
    assert labels_of(reid_json("query", photo, store=store)) == before


def test_another_model_embeds_everything_anew_and_back_again_costs_nothing(field: Path) -> None:
    settings, photo = field / "store" / "reid.toml", field / rows_of(field / "labels.csv")[0]["path"]
    before = labels_of(reid_json("query", photo, store=field / "store"))
    settings.write_text(settings.read_text().replace('"fluke"', '"lite0"'))
    reid_json("query", photo, store=field / "store", code=6)
    done = reid_json("reindex", store=field / "store")
    assert (done["embedded"], done["photos_now"], done["failures"]) == (12, 12, [])
    assert "another model" in done["rebuilt"]
    other = reid_json("query", photo, store=field / "store")
    assert (other["model"], other["labels"][0]["label"]) == ("lite0", before[0][0])
    settings.write_text(settings.read_text().replace('"lite0"', '"fluke"'))
    done = reid_json("reindex", store=field / "store")
    assert (done["embedded"], done["photos_now"]) == (0, 12)
    assert labels_of(reid_json("query", photo, store=field / "store")) == before


def test_force_builds_anew_and_gives_the_same_answers(store: Path, flukes: Path) -> None:
    photo = flukes / rows_of(flukes / "queries.csv")[1]["path"]
    before = labels_of(reid_json("query", photo, store=store))
    assert reid_json("reindex", "--force", store=store)["rebuilt"] == "asked for"
    assert labels_of(reid_json("query", photo, store=store)) == before


def test_an_old_unknown_that_now_matches_is_reported_once(field: Path, flukes: Path) -> None:
    """Somebody unknown was photographed; later the same animal gets a name with nearly the same photo."""
    row = next(
        r
        for r in rows_of(flukes / "labels.csv")
        if r["identity"] not in {s["identity"] for s in rows_of(field / "labels.csv")}
    )
    (field / "old").mkdir()
    shutil.copy2(flukes / row["path"], field / "old" / "unknown.jpg")
    settings = field / "store" / "reid.toml"
    settings.write_text(settings.read_text().replace("threshold = -1.0", "threshold = 0.97"))
    reid_json("enroll", field / "old", store=field / "store")
    assert reid_json("reindex", store=field / "store")["matches"] == []
    (field / "named" / "Nova").mkdir(parents=True)
    with Image.open(flukes / row["path"]) as picture:  # the same scene a year later: brighter, no EXIF, other bytes
        pixels = np.clip(np.asarray(picture.convert("RGB"), float) * 1.05 + 3, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(field / "named" / "Nova" / "first.jpg", quality=95)
    reid_json("enroll", field / "named", "--layout", "folders", store=field / "store")
    done = reid_json("reindex", store=field / "store")
    (match,) = done["matches"]
    assert (match["identity"], Path(match["photo"]).name) == ("Nova", "unknown.jpg")
    assert match["score"] > 0.97
    assert reid_json("reindex", store=field / "store")["matches"] == []
    reid_json("individuals", "assign", match["annotation"], "Nova", store=field / "store")
    assert reid_json("reindex", store=field / "store")["matches"] == []


def test_a_rebuild_that_is_killed_leaves_the_old_index_serving(store: Path, flukes: Path) -> None:
    photo = flukes / rows_of(flukes / "queries.csv")[0]["path"]
    before = labels_of(reid_json("query", photo, store=store))
    # the process stops itself where the new snapshot is complete but not yet swapped in
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "real = os.replace\n"
        "def replace(source, target, **more):\n"
        "    if Path(target).name == 'MANIFEST.json':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(source, target, **more)\n"
        "os.replace = replace\n"
        "from reid.cli import app\n"
        "app(['--store', sys.argv[1], 'reindex', '--force'])\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, store], capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert reid_json("status", store=store)["index"] == "current"
    assert labels_of(reid_json("query", photo, store=store)) == before
    assert reid_json("reindex", "--force", store=store)["photos_now"] == 32


def test_killed_at_any_moment_the_store_answers_or_says_that_it_is_stale(field: Path) -> None:
    """Five kills during a change of model; afterwards one run finishes the work."""
    settings, photo = field / "store" / "reid.toml", field / rows_of(field / "labels.csv")[0]["path"]
    settings.write_text(settings.read_text().replace('"fluke"', '"lite0"'))
    for wait in (0.4, 0.8, 1.2, 1.7, 2.2):
        run = subprocess.Popen(
            [sys.executable, "-m", "reid.cli", "--store", str(field / "store"), "reindex", "--json"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(wait)
        run.kill()
        run.wait()
        result = reid("query", photo, "--json", store=field / "store")
        answer = json.loads(result.stdout)
        assert (result.exit_code, answer["status"]) in ((6, "index_stale"), (0, "match"), (0, "new"))
    done = reid_json("reindex", store=field / "store")
    assert (done["photos_now"], done["failures"]) == (12, [])
    labels = reid_json("query", photo, store=field / "store")["labels"]
    assert labels[0]["label"] == rows_of(field / "labels.csv")[0]["identity"]
