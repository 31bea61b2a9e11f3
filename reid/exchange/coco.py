"""COCO annotations of individuals: `name` (or `individual_ids`) and `viewpoint` beside the usual `bbox`.

Unnamed animals are `____`. `individual_ids` is read where it holds one value: in some exports it lists the other
annotations of the same animal instead, which names nobody. Segmentations become masks; keypoints and rotations are
not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reid.errors import PhotoError, TableError
from reid.exchange.gather import Gathering, known_name
from reid.exchange.tables import PhotoFinder, date_of, side_of
from reid.images import printable
from reid.masks import mask_of
from reid.records import Box, Sighting

_NAMES = ("name", "individual", "individual_id", "individual_ids", "identity")


def matches(document: Any) -> bool:
    """Whether a JSON document is COCO."""
    return isinstance(document, dict) and "images" in document and "annotations" in document


def read_coco(document: dict[str, Any], path: Path, gathering: Gathering, *, bases: Sequence[Path] = ()) -> None:
    """One sighting per annotation, and one without a box for a photo that has none."""
    images, annotations = document["images"], document["annotations"]
    if not (isinstance(images, list) and isinstance(annotations, list)):
        raise TableError("its images or annotations are not lists", source=printable(path), next_step="write it anew")
    finder, table = PhotoFinder([*bases, path.parent]), printable(path.name)
    species = {c.get("id"): c.get("name") for c in document.get("categories") or [] if isinstance(c, dict)}
    found: dict[Any, tuple[dict[str, Any], Path]] = {}
    for number, image in enumerate(images, 1):
        file = str(image.get("file_name", "")) if isinstance(image, dict) else ""
        photo = finder.find(file)
        if photo is None:
            step = "correct the path, or tell where the photos lie (--root)"
            error = PhotoError(
                f"there is no photo '{printable(file)}'", source=f"{table} image {number}", next_step=step
            )
            gathering.no_photo(error, finder.meant(file))
            continue
        found[image.get("id")] = (image, photo)
    bare = dict(found)
    listed = {image.get("id") for image in images if isinstance(image, dict)}
    for number, annotation in enumerate(annotations, 1):
        where = f"{table} annotation {number}"
        key = annotation.get("image_id") if isinstance(annotation, dict) else None
        if key not in found:
            if key not in listed:
                step = "correct its image_id"
                gathering.fail(TableError(f"belongs to no image ({key!r})", source=where, next_step=step))
            continue
        bare.pop(key, None)
        image, photo = found[key]
        try:
            gathering.sightings.append(_sighting(annotation, image, photo, where, species, gathering))
        except (TypeError, ValueError) as error:
            step = "write its bbox as [x, y, width, height] in pixels"
            gathering.fail(TableError(f"is not understood ({error})", source=where, next_step=step))
            if gathering.keep_boxless:
                boxless = {**annotation, "bbox": None}
                gathering.sightings.append(_sighting(boxless, image, photo, where, species, gathering))
    for key, (image, photo) in bare.items():
        gathering.sightings.append(
            Sighting(path=photo, where=f"{table} image {key}", taken_at=date_of(str(image.get("date_captured") or "")))
        )


def _sighting(
    annotation: dict[str, Any],
    image: dict[str, Any],
    photo: Path,
    where: str,
    species: dict[Any, Any],
    gathering: Gathering,
) -> Sighting:
    box = None
    if annotation.get("bbox"):
        x, y, width, height = map(float, annotation["bbox"])
        if not (width > 0 and height > 0):
            raise ValueError(f"box {annotation['bbox']} has no area")
        box = Box(x, y, x + width, y + height)
    side = side_of(str(annotation.get("viewpoint") or ""))
    if side is None:
        gathering.odd("sides not known, taken as unknown", f"{where}: {annotation.get('viewpoint')!r}")
    kind = annotation.get("species") or species.get(annotation.get("category_id"))
    mask = None
    try:
        mask = mask_of(annotation.get("segmentation"))
    except ValueError as error:
        gathering.odd("segmentations not understood, left out", f"{where}: {printable(str(error))}")
    return Sighting(
        path=photo,
        where=where,
        identity=_name(annotation, where, gathering),
        box=box,
        encounter=str(annotation["encounter"]) if annotation.get("encounter") else None,
        side=side or "unknown",
        species=str(kind) if kind else None,
        taken_at=date_of(str(image.get("date_captured") or "")),
        declared_size=_size(image),
        mask=mask,
    )


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    if not (isinstance(width, int) and isinstance(height, int)):
        return None
    return (width, height) if min(width, height) > 0 else None


def _name(annotation: dict[str, Any], where: str, gathering: Gathering) -> str | None:
    for key in _NAMES:
        value = annotation.get(key)
        if isinstance(value, list):
            if len(value) > 1:
                gathering.odd("individual_ids with several values, taken without a name", where)
                continue
            value = value[0] if value else None
        if value is not None:
            return known_name(str(value))
    return None
