"""The catalogue: what was photographed, where and when, who it is, and who said so. The only package that speaks SQL.

    with Catalogue.open("sqlite:////survey/catalogue.sqlite", create=True) as catalogue:
    catalogue.add_photos([NewPhoto(facts, (NewAnnotation(box, identity="Ana"),))], who="field team")

One file for each thing it does: `tables` (what is kept), `engine` (transactions), `schema` and `migrations` (versions),
`enrol`, `files`, `sightings` and `encounters` (photos in), `identity` (the rules), `names`, `events`, `undo` and
`history` (the log), `vectors` (embeddings), `queries` (looking up), `encoding` (bytes and text), `records` (what goes
in and comes out).
"""

from reid.catalogue.catalogue import Catalogue
from reid.catalogue.encounters import group_encounters
from reid.catalogue.engine import sqlite_url
from reid.catalogue.records import (
    Added,
    AnnotationInfo,
    Conflict,
    Counts,
    Event,
    IndividualInfo,
    KnownFile,
    Labels,
    NewAnnotation,
    NewPhoto,
    PhotoInfo,
    PhotoState,
    VectorChunk,
)

__all__ = [
    "Added",
    "AnnotationInfo",
    "Catalogue",
    "Conflict",
    "Counts",
    "Event",
    "IndividualInfo",
    "KnownFile",
    "Labels",
    "NewAnnotation",
    "NewPhoto",
    "PhotoInfo",
    "PhotoState",
    "VectorChunk",
    "group_encounters",
    "sqlite_url",
]
