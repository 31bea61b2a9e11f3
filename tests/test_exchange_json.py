"""JSON tables: a detector's boxes, COCO with individuals."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from photo_sources import photo

from reid.errors import TableError
from reid.exchange import fit_box, read_sources
from reid.records import Box, Sighting


def detections(tmp_path: Path, **more: Any) -> Path:
    document = {
        "info": {"format_version": "1.4", **more},
        "detection_categories": {"1": "animal", "2": "person"},
        "images": [
            {
                "file": "a.jpg",
                "detections": [
                    {"category": "1", "conf": 0.9, "bbox": [0.25, 0.5, 0.5, 0.25]},
                    {"category": "1", "conf": 0.4, "bbox": [0.0, 0.0, 0.1, 0.1]},
                    {"category": "2", "conf": 0.99, "bbox": [0.1, 0.1, 0.1, 0.1]},
                    {"category": "1", "conf": 0.1, "bbox": [0.1, 0.1, 0.1, 0.1]},
                    {"category": "1", "conf": 0.9, "bbox": [0.1, 0.1]},
                ],
            },
            {"file": "b.jpg", "detections": None, "failure": "image access failure"},
            {"file": "gone.jpg", "detections": []},
            "nonsense",
        ],
    }
    path = tmp_path / "md.json"
    path.write_text(json.dumps(document))
    return path


def test_a_detectors_boxes_become_sightings_in_fractions(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "b.jpg")
    found = read_sources([detections(tmp_path)])
    assert [(s.path.name, s.box, s.declared_size) for s in found.sightings] == [
        ("a.jpg", Box(0.25, 0.5, 0.75, 0.75, 0.9, "detector"), (1, 1)),
        ("a.jpg", Box(0.0, 0.0, 0.1, 0.1, 0.4, "detector"), (1, 1)),
        ("b.jpg", None, None),
    ]
    first = found.sightings[0]
    assert first.box is not None
    assert fit_box(first.box, 32, 24, first.where, first.declared_size) == Box(8, 12, 24, 18, 0.9, "detector")
    assert [f.source for f in found.failures] == ["md.json image 3", "md.json image 4"]
    assert found.format == "megadetector"
    assert found.notes == (
        "detections not understood, left out: 1 (first: md.json image 1)",
        "photos the detector failed on, taken without a box: 1 (first: md.json image 2: image access failure)",
        "photos without an animal above the threshold, taken without a box: 1 (first: md.json image 2)",
    )


def test_the_detectors_own_threshold_is_respected(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    found = read_sources([detections(tmp_path, detector_metadata={"typical_detection_threshold": 0.8})])
    assert len([s for s in found.sightings if s.box]) == 1


def test_folders_name_the_animals_and_a_detector_gives_the_boxes(tmp_path: Path) -> None:
    photo(tmp_path / "Anna" / "a.jpg")
    photo(tmp_path / "Bo" / "b.jpg")
    path = tmp_path / "md.json"
    box = {"category": "1", "conf": 0.9, "bbox": [0.25, 0.5, 0.5, 0.25]}
    other = {"category": "1", "conf": 0.5, "bbox": [0.0, 0.0, 0.5, 0.25]}
    images = [{"file": "Anna/a.jpg", "detections": [other, box]}, {"file": "Bo/b.jpg", "detections": [box]}]
    path.write_text(json.dumps({"images": images, "detection_categories": {"1": "animal"}}))
    found = read_sources([tmp_path], table=path)
    want = Box(0.25, 0.5, 0.75, 0.75, 0.9, "detector")
    assert [(s.path.name, s.identity, s.box) for s in found.sightings] == [
        ("a.jpg", "Anna", want),
        ("b.jpg", "Bo", want),
    ]


def test_the_list_form_of_detections_has_corners_in_pixels(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    path = tmp_path / "md.json"
    box = {"category": "animal", "confidence": 0.93, "bbox": [2.5, 3.0, 20.0, 22.0]}
    path.write_text(json.dumps([{"file": "a.jpg", "detections": [box, {**box, "category": "person"}]}]))
    found = read_sources([path])
    assert [(s.box, s.declared_size) for s in found.sightings] == [(Box(2.5, 3, 20, 22, 0.93, "detector"), None)]


def test_coco_with_individuals(tmp_path: Path) -> None:
    for name in "abcd":
        photo(tmp_path / "images" / f"{name}.jpg")
    document = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 640, "height": 480, "date_captured": "2019-07-30 09:15:42"},
            {"id": 2, "file_name": "b.jpg"},
            {"id": 3, "file_name": "c.jpg"},
            {"id": 4, "file_name": "gone.jpg"},
            {"id": 5, "file_name": "d.jpg"},
        ],
        "categories": [{"id": 1, "name": "whale_fluke"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "name": "Anna", "viewpoint": "left"},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [50, 2, 30, 40], "name": "____", "viewpoint": "upish"},
            {"id": 3, "image_id": 2, "individual_ids": [7]},
            {"id": 4, "image_id": 5, "bbox": [1, 2, 3], "name": "Bo"},
            {"id": 5, "image_id": 99},
            {"id": 6, "image_id": 4},
        ],
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(document))
    found = read_sources([path])
    common: dict[str, Any] = {
        "path": tmp_path / "images" / "a.jpg",
        "species": "whale_fluke",
        "taken_at": datetime(2019, 7, 30, 9, 15, 42),
        "declared_size": (640, 480),
    }
    assert found.sightings == (
        Sighting(where="coco.json annotation 1", identity="Anna", box=Box(1, 2, 31, 42), side="left", **common),
        Sighting(where="coco.json annotation 2", box=Box(50, 2, 80, 42), **common),
        Sighting(path=tmp_path / "images" / "b.jpg", where="coco.json annotation 3", identity="7"),
        Sighting(path=tmp_path / "images" / "c.jpg", where="coco.json image 3"),
    )
    assert [f.source for f in found.failures] == [
        "coco.json image 4",
        "coco.json annotation 4",
        "coco.json annotation 5",
    ]
    kept = read_sources([path], keep_boxless=True)
    assert [s.where for s in kept.sightings if s not in found.sightings] == ["coco.json annotation 4"]
    assert kept.failures == found.failures


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "[1, 2]", '{"images": 3, "annotations": []}', "[" * 100_000])
def test_json_that_is_something_else_is_a_table_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(TableError) as caught:
        read_sources([path])
    assert caught.value.source == str(path) and caught.value.next_step
