"""The contact sheet of an answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rendered_store import enrolled, field, flukes, rows_of, store

from reid.pipeline import identify, query_of
from reid.records import Answer
from reid.sheet import write_sheet
from reid.store import Store

__all__ = ["enrolled", "field", "flukes", "store"]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_sheet_shows_query_and_candidates_as_photos(enrolled: Path, flukes: Path, tmp_path: Path) -> None:
    photo = flukes / rows_of(flukes / "labels.csv")[0]["path"]
    with Store.open(enrolled) as opened:
        (answer,) = identify(opened, [query_of([photo])])
        full = pixels(write_sheet(opened, answer, tmp_path / "full.png"))
        bare = pixels(write_sheet(opened, Answer("no_candidates", answer.photos), tmp_path / "bare.png"))
    assert full.shape[2] == 3 and min(full.shape[:2]) > 200
    assert full.size > bare.size  # five candidates take room
    assert len(np.unique(full.reshape(-1, 3), axis=0)) > 1000  # photographs, not a drawing


def test_the_box_is_drawn_where_a_candidate_has_one(enrolled: Path, flukes: Path, tmp_path: Path) -> None:
    photo = flukes / rows_of(flukes / "labels.csv")[0]["path"]
    with Store.open(enrolled) as opened:
        (answer,) = identify(opened, [query_of([photo])])
        with_box = pixels(write_sheet(opened, answer, tmp_path / "a.png"))
        labels = tuple(
            type(x)(x.label, x.score, x.probability, x.photo, None, x.n_photos, x.is_new) for x in answer.labels
        )
        without = type(answer)(answer.status, answer.photos, labels, answer.threshold, answer.compared, answer.model)
        plain = pixels(write_sheet(opened, without, tmp_path / "b.png"))
    assert with_box.shape == plain.shape
    assert (with_box != plain).any()


def test_a_gallery_photo_or_query_that_has_gone_leaves_an_empty_frame(field: Path, tmp_path: Path) -> None:
    rows = rows_of(field / "labels.csv")
    photo = tmp_path / "query.jpg"
    shutil.copy2(field / rows[0]["path"], photo)
    with Store.open(field / "store") as opened:
        (answer,) = identify(opened, [query_of([photo])])
        before = pixels(write_sheet(opened, answer, tmp_path / "before.png"))
        shutil.rmtree(field / "photos")
        photo.unlink()
        after = pixels(write_sheet(opened, answer, tmp_path / "after.png"))
    assert after.shape == before.shape
    assert len(np.unique(after.reshape(-1, 3), axis=0)) < len(np.unique(before.reshape(-1, 3), axis=0)) / 4


def test_an_answer_without_labels_says_its_status(enrolled: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    with Store.open(enrolled) as opened:
        (answer,) = identify(opened, [query_of([tmp_path / "broken.jpg"])])
        assert answer.status == "error"
        assert pixels(write_sheet(opened, answer, tmp_path / "out.png")).size > 0


@pytest.mark.parametrize("name", ["no/such.suffix", "plain"])
def test_a_suffix_nobody_knows_is_refused(enrolled: Path, tmp_path: Path, name: str) -> None:
    with Store.open(enrolled) as opened, pytest.raises(ValueError, match="unknown file extension"):
        write_sheet(opened, Answer("error", ()), tmp_path / name)
