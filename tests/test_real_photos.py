"""The whole way on real photos beside the checkout; skipped where they are absent. Nothing of them is copied anywhere but a temporary folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import need_shared_data
from rendered_store import reid, reid_json, rows_of, write_rows

NEW = "new_whale"
LIMIT_S = 120.0  # for the whole way of one data set, on two cores that others use too


def sample(data: Path, folder: Path, gallery: int = 150, queries: int = 40) -> tuple[Path, Path]:
    """Tables of about `gallery` and `queries` rows: animals with several photos first, the last photo of each a query, and some new ones."""
    photos: dict[str, list[dict[str, str]]] = {}
    for row in rows_of(data / "labels.csv"):
        photos.setdefault(row["identity"], []).append(row | {"path": str(data / row["path"])})
    unknown = photos.pop(NEW, [])
    known: list[dict[str, str]] = []
    asked: list[dict[str, str]] = []
    for rows in sorted(photos.values(), key=lambda rows: (not 3 <= len(rows) <= 8, rows[0]["image_id"])):
        if len(known) < gallery:
            asked += rows[-1:] if 3 <= len(rows) and len(asked) < queries * 3 // 4 else []
            known += rows[:-1] if asked and asked[-1] is rows[-1] else rows
        elif len(unknown) < queries // 4:
            unknown += rows[:1]
    folder.mkdir(exist_ok=True)
    return (
        write_rows(folder / "gallery.csv", known[:gallery]),
        write_rows(folder / "queries.csv", asked + unknown[: queries - len(asked)]),
    )


def broken_boxes(failures: list[dict[str, Any]]) -> bool:
    """Whether all that was left out are boxes that the table itself has wrong."""
    return all(f["code"] == "bad_table" and "box" in f["message"] for f in failures)


@pytest.mark.parametrize("name", ["flukes", "nyala"])
def test_enroll_query_reindex_and_evaluate(name: str, tmp_path: Path) -> None:
    begun = time.monotonic()
    gallery, queries = sample(need_shared_data(name), tmp_path / "tables")
    known, asked = rows_of(gallery), rows_of(queries)
    store = tmp_path / "store"

    enrolled = reid("enroll", gallery, "--json", store=store)
    done = json.loads(enrolled.stdout)
    assert broken_boxes(done["failures"]) and enrolled.exit_code == (3 if done["failures"] else 0)
    assert done["new"] + done["copies"] + len(done["failures"]) >= len(known) - 2
    found = reid_json("status", store=store)
    assert (found["index"], found["unnamed"], found["indexed"]) == ("current", 0, found["annotations"])
    assert found["individuals"] == len({row["identity"] for row in known})
    # flukes are wide; whole flanks are not
    assert found["model"] == {"flukes": "fluke", "nyala": "lite0"}[name]

    for row in known[:3]:
        x, y, w, h = json.loads(row["bbox"]) if row.get("bbox") else (0, 0, 0, 0)
        sx, sy = (100 / float(row["original_width"]), 100 / float(row["original_height"])) if w else (1.0, 1.0)
        box = ["--box", f"{x * sx},{y * sy},{(x + w) * sx},{(y + h) * sy}"] if w else []
        answer = reid_json("query", row["path"], *box, store=store)
        assert (answer["status"], answer["labels"][0]["label"]) == ("match", row["identity"])
        first = answer["labels"][0]
        assert first["evidence"]["cosine"] > 0.99  # it is the very photo

    night = reid_json("reindex", store=store, code=enrolled.exit_code)
    assert (night["vanished"], night["changed"], night["enrolled"]["new"], night["embedded"]) == ([], [], 0, 0)
    assert (night["photos_before"], night["photos_now"]) == (found["indexed"], found["indexed"])

    figures = reid_json("evaluate", gallery, queries, "--dedup")
    assert broken_boxes(figures["failures"])
    assert figures["n_queries"] == figures["n_known"] + figures["n_new"]
    assert figures["n_queries"] + figures["n_near_duplicates_dropped"] == len(asked)
    assert 0 < figures["top1"] <= figures["top5"] <= 1
    assert figures["top1"] <= figures["map_at_5_known"] <= figures["top5"]
    assert figures["top5"] > 2 * 5 / found["individuals"]  # better than twice what guessing gives
    assert all(0 <= figures[k] <= 1 for k in ("map_at_5", "map", "baks", "baus", "auroc_known"))
    assert time.monotonic() - begun < LIMIT_S * 3, "far beyond what this takes, even on a busy machine"
