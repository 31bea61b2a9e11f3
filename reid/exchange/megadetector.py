"""Boxes from MegaDetector's JSON: `images[].detections[]` with category, `conf` and `bbox` [x, y, w, h] in fractions.

Animals only, above the threshold the file itself calls typical (else .2). A photo without such a detection is still a
sighting, without a box. Reference: MegaDetector batch output format, version 1.0 to 1.6. The list format of the newer
`megadetector` package (`file`, category names, corners in pixels) is read too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reid.errors import PhotoError, TableError
from reid.exchange.gather import Gathering
from reid.exchange.tables import PhotoFinder
from reid.images import printable
from reid.records import Box, Sighting

_TYPICAL = 0.2


def matches(document: Any) -> bool:
    """Whether a JSON document is a detector's output."""
    if isinstance(document, list):
        return bool(document) and isinstance(document[0], dict) and {"file", "detections"} <= document[0].keys()
    return isinstance(document, dict) and "images" in document and "detection_categories" in document


def read_megadetector(document: Any, path: Path, gathering: Gathering, *, bases: Sequence[Path] = ()) -> None:
    """Every photo of the document into `gathering`, one sighting per animal found in it."""
    in_pixels = isinstance(document, list)
    images = document if in_pixels else document["images"]
    threshold = _TYPICAL if in_pixels else _threshold(document)
    animals = {"animal"} if in_pixels else _animal_categories(document)
    finder, name = PhotoFinder([*bases, path.parent]), printable(path.name)
    if not isinstance(images, list):
        raise TableError("its 'images' is not a list", source=printable(path), next_step="write it anew")
    for number, image in enumerate(images, 1):
        where = f"{name} image {number}"
        file = str(image.get("file", "")) if isinstance(image, dict) else ""
        photo = finder.find(file)
        if photo is None:
            step = "correct the path, or tell where the photos lie (--root)"
            error = PhotoError(f"there is no photo '{printable(file)}'", source=where, next_step=step)
            gathering.no_photo(error, finder.meant(file))
            continue
        if image.get("failure"):
            gathering.odd("photos the detector failed on, taken without a box", f"{where}: {image['failure']}")
        boxes = []
        for detection in image.get("detections") or []:
            try:
                if str(detection["category"]) in animals and _confidence(detection) >= threshold:
                    boxes.append(_box(detection, in_pixels))
            except (KeyError, TypeError, ValueError):
                gathering.odd("detections not understood, left out", where)
        if not boxes:
            gathering.odd("photos without an animal above the threshold, taken without a box", where)
        size = None if in_pixels else (1, 1)
        for box in boxes:
            gathering.sightings.append(Sighting(path=photo, where=where, box=box, declared_size=size))
        if not boxes:
            gathering.sightings.append(Sighting(path=photo, where=where))


def _threshold(document: dict[str, Any]) -> float:
    try:
        return float(document["info"]["detector_metadata"]["typical_detection_threshold"])
    except (KeyError, TypeError, ValueError):
        return _TYPICAL


def _animal_categories(document: dict[str, Any]) -> set[str]:
    categories = document["detection_categories"]
    named = (
        {str(k) for k, v in categories.items() if str(v).lower() == "animal"} if isinstance(categories, dict) else set()
    )
    return named or {"1"}


def _confidence(detection: dict[str, Any]) -> float:
    return float(detection["conf"] if "conf" in detection else detection["confidence"])


def _box(detection: dict[str, Any], in_pixels: bool) -> Box:
    a, b, c, d = map(float, detection["bbox"])
    box = Box(a, b, c, d) if in_pixels else Box(a, b, a + c, b + d)
    if not (box.width > 0 and box.height > 0):
        raise ValueError("no area")
    return Box(box.x0, box.y0, box.x1, box.y1, min(max(_confidence(detection), 0.0), 1.0), "detector")
