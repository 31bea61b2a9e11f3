"""What a store holds, and whether its index is up to date; reads only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reid import caveats, fit, recent
from reid.errors import IndexStale, SnapshotCorrupt
from reid.index import Gallery
from reid.store import Store


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """Counts of the catalogue (`photos` counts the removed, too) and the state of the index; `index` is `current`,
    `behind`, `stale`, `corrupt` or `none`.

    `sources` is what answers rest on (`embedding`, or with local features `fusion.Kind`), `opposite_sides` whether
    left and right flanks are compared (`together`, `separate`), `promise` the error rates that were measured. `fusions`
    are the ways to fuse that were tried (`ways.Way`), `known` is what P(known) was worth (`known.tried`).
    """

    store: str
    model: str
    photos: int
    annotations: int
    individuals: int
    unnamed: int
    encounters: int
    missing_files: int
    changed_files: int
    removed_photos: int
    index: str
    indexed: int
    revision: int
    index_revision: int
    threshold: float | None
    threshold_basis: str
    sources: str
    fusions: list[dict[str, Any]]
    known: dict[str, Any]
    opposite_sides: str
    promise: dict[str, Any]
    warnings: tuple[str, ...]


def status(store: Store) -> StoreStatus:
    """Look at a store without changing it.

    Raises:
        CatalogueError: the catalogue cannot be read.
    """
    counts, revision = store.catalogue.counts(), store.catalogue.revision
    removed = len(store.catalogue.removed())
    state, indexed, index_revision, fitted = "none", 0, 0, None
    if (store.index_folder / "MANIFEST.json").exists():
        try:
            gallery = Gallery.open(store.index_folder)
            gallery.check()
            indexed, index_revision = len(gallery), gallery.revision
            stale = gallery.fingerprint.partition("/")[0] != store.fingerprint
            behind = index_revision < store.catalogue.vectors_revision
            state = "stale" if stale else "behind" if behind else "current"
            fitted = fit.read(store, gallery.fingerprint)
        except IndexStale:
            state = "stale"
        except SnapshotCorrupt:
            state = "corrupt"
    return StoreStatus(
        str(store.root),
        store.config.embedder.model,
        counts.photos,
        counts.annotations,
        counts.individuals,
        counts.unnamed,
        counts.encounters,
        counts.missing,
        counts.changed - removed,
        removed,
        state,
        indexed,
        revision,
        index_revision,
        fitted.threshold if fitted else None,
        fitted.basis if fitted else "",
        fitted.fusion.kind if fitted else "",
        fitted.ways if fitted else [],
        fitted.known_record if fitted else {},
        fitted.sides if fitted else "",
        fitted.policy.to_dict() if fitted and fitted.policy else {},
        _warnings(store, fitted, indexed),
    )


def _warnings(store: Store, fitted: fit.Fit | None, photos: int) -> tuple[str, ...]:
    """What was never measured, or has changed so much since that its error rates may no longer hold."""
    unmeasured = (caveats.unmeasured(fitted),) if fitted is not None and fitted.basis != "measured" and photos else ()
    if fitted is None or fitted.policy is None:
        return unmeasured
    said = list(recent.drift(store, fitted, photos))
    if fitted.policy.matches.threshold is None and fitted.policy.new.threshold is None:
        said.append("the promised rates cannot be kept any more, every answer is for review: `reid calibrate` others")
    return (*unmeasured, *said)
