"""Find the individual animal in a photo: enrol, query, reindex.

As a library:

    from reid import Store, enrol, identify, query_of, read_sources

    with Store.create(Path("whales")) as store:
        enrol.enrol(store, read_sources(["photos/"], table=Path("names.csv")).sightings, who="me")
        answer, = identify(store, [query_of([Path("new.jpg")])])

`enrol`, `evaluate` and `reindex` are modules, each with a function of its own name. Everything here is imported when it is first asked for, so
`import reid` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reid import enrol, evaluate, reindex
    from reid.errors import ReidError
    from reid.exchange import read_sources
    from reid.index import Gallery
    from reid.pipeline import Identifier, Query, identify, query_of
    from reid.records import Answer, Box, Failure, IdentityScore, Sighting
    from reid.store import Store

__all__ = [
    "Answer",
    "Box",
    "Failure",
    "Gallery",
    "Identifier",
    "IdentityScore",
    "Query",
    "ReidError",
    "Sighting",
    "Store",
    "enrol",
    "evaluate",
    "identify",
    "query_of",
    "read_sources",
    "reindex",
]

_HOME = {
    "Answer": "reid.records",
    "Box": "reid.records",
    "Failure": "reid.records",
    "Gallery": "reid.index",
    "Identifier": "reid.pipeline",
    "IdentityScore": "reid.records",
    "Query": "reid.pipeline",
    "ReidError": "reid.errors",
    "Sighting": "reid.records",
    "Store": "reid.store",
    "identify": "reid.pipeline",
    "query_of": "reid.pipeline",
    "read_sources": "reid.exchange",
}
_MODULES = ("enrol", "evaluate", "reindex")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _MODULES:
        return import_module(f"reid.{name}")
    raise AttributeError(f"module 'reid' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
