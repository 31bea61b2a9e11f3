"""What `reid status` and `reid evaluate` print: their fields in words, and why a figure is missing. Prints; measures nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reid import console

if TYPE_CHECKING:
    from reid.evaluate import Evaluation, Measured
    from reid.kept import Kept
    from reid.status import StoreStatus

INDEX = {
    "current": "up to date",
    "behind": "behind the catalogue; the next query brings it up to date",
    "stale": "of another model or other settings than reid.toml's: reid reindex",
    "corrupt": "damaged: reid reindex",
    "none": "not made yet",
}
BASIS = {
    "measured": "measured on this store's own photos",
    "unknowns": "nine in ten animals that were left out stay below; known ones could not be measured",
    "default": "a general one: nothing could be measured on this store yet",
}
SOURCES = {
    "embedding": "the embedder alone",
    "prior": "embedder and local features, by general weights",
    "prior_votes": "embedder and votes, by general weights (none are known for geometry by these settings)",
    "trees": "embedder and local features, weighed as this store's photos teach",
    "logistic": "embedder and local features, each calibrated on this store's photos, by logistic regression",
    "power": "embedder and local features, each calibrated on this store's photos, by Σ w·P^α",
    "mean": "embedder and local features, by the mean of general weights and of what this store's photos teach",
    "geometry_first": "the photos whose points agree first, then embedder and local features",
}
SIDES = {"together": "compared with each other", "separate": "never compared, where the side is known"}
MEASURES = {
    "map_at_5": "MAP@5, answers as given",
    "map_at_5_known": "MAP@5, known animals only",
    "top1": "top-1, known animals only",
    "top5": "top-5, known animals only",
    "map": "mAP over gallery photos",
    "baks": "BAKS: known animals named right",
    "baus": "BAUS: new animals called new",
    "geometric": "√(BAKS·BAUS)",
    "auroc_known": "AUROC, known against new",
    "ece": "calibration error of P",
    "auroc_best_score": "AUROC, by the best score instead of P(known)",
    "geometric_best_score": "√(BAKS·BAUS), likewise",
}
NEEDS_BOTH = frozenset({"geometric", "auroc_known", "auroc_best_score", "geometric_best_score"})
NEEDS_KNOWN = NEEDS_BOTH | {"map_at_5_known", "top1", "top5", "map", "baks"}
NEEDS_NEW = NEEDS_BOTH | {"baus"}
COUNTS = {
    "n_queries": "query photos",
    "n_known": "… of animals in the gallery",
    "n_new": "… of animals not in the gallery",
    "n_gallery": "gallery photos",
    "n_near_duplicates_dropped": "query photos dropped as near-duplicates",
}
SECONDS = {
    "known": "recognising known files",
    "read": "reading photos",
    "embed": "embedding",
    "catalogue": "writing the catalogue",
    "index": "indexing",
    "fit": "measuring on the gallery itself",
    "enrol": "enrolling, all of it",
    "query": "all queries",
    "per_query_read": "a query: reading",
    "per_query_embed": "a query: embedding",
    "per_query_search": "a query: searching",
    "per_query_decide": "a query: deciding",
    "total": "everything",
}


def stated(found: StoreStatus) -> None:
    """A store's state, a line a field."""
    console.table(("", ""), [*rows_of(found), ("error rates promised", "\n".join(console.promises(found.promise)))])
    for warning in found.warnings:
        console.say(f"warning: {warning}")


def rows_of(found: StoreStatus) -> list[tuple[str, Any]]:
    """What `stated` shows, but for promises and warnings."""
    threshold = None if found.threshold is None else f"{found.threshold:.3f}: {BASIS[found.threshold_basis]}"
    return [
        ("store", found.store),
        ("model (the embedder)", found.model),
        ("photos", found.photos),
        ("… whose file is missing", found.missing_files),
        ("… whose file holds another photo now", found.changed_files),
        ("… that were removed (reid remove)", found.removed_photos),
        ("boxes (one animal in one photo)", found.annotations),
        ("… that nobody has named", found.unnamed),
        ("individuals", found.individuals),
        ("encounters (sightings)", found.encounters),
        ("index", INDEX[found.index]),
        ("boxes in the index", found.indexed),
        ("changes in the catalogue · seen by the index", f"{found.revision} · {found.index_revision}"),
        ("score from which an animal is a known one", threshold),
        ("answers rest on", SOURCES.get(found.sources, found.sources)),
        ("… of what was tried: MAP@5, left-out photos", "\n".join(way(one) for one in found.fusions)),
        ("known or new is told by", told_by(found.known)),
        ("left and right flanks are", SIDES.get(found.opposite_sides, found.opposite_sides)),
    ]


def way(tried: Mapping[str, Any]) -> str:
    """One way to fuse (`ways.Way.to_dict`) in a line."""
    name = f"{tried['kind']}{' with the Siamese head' if tried['siamese'] else ''}"
    said = f"{name}: {tried['map_at_5']:.3f} [{tried['low']:.3f}, {tried['high']:.3f}]"
    if not tried["default"]:
        said += f", {tried['gain']:+.3f} [{tried['gain_low']:+.3f}, {tried['gain_high']:+.3f}] against the default"
    return said + (" (default)" if tried["default"] else "") + (" ← in force" if tried["in_force"] else "")


def told_by(record: Mapping[str, Any]) -> str:
    """What P(known) was worth on left-out photos (`known.tried`), in words; empty where it was not tried."""
    if not record:
        return ""
    name = "the whole answer, P(known)" if record["in_force"] else "the best score"
    if "gain" not in record:
        return f"{name}: {record['reason']}"
    return (
        f"{name}; by the whole answer instead of the best score, AUROC {record['auroc_before']:.3f} → "
        f"{record['auroc_after']:.3f} ({record['gain']:+.3f} [{record['gain_low']:+.3f}, {record['gain_high']:+.3f}]), "
        f"√(BAKS·BAUS) {record['geometric_before']:.3f} → {record['geometric_after']:.3f}"
    )


def evaluated(found: Evaluation) -> None:
    """Measures with their intervals, counts and seconds, and what could not be used."""
    known, new = found.counts.get("n_known", 0), found.counts.get("n_new", 0)
    lines = [(MEASURES.get(k, k), *cells(k, m, known, new)) for k, m in found.measures.items()]
    console.table(("measure", "value", "95 % interval, or why there is none"), lines)
    spent = [(f"seconds, {SECONDS.get(k, k)}", f"{v:.3f}") for k, v in found.seconds.items()]
    console.table(("", ""), [*((COUNTS.get(k, k), n) for k, n in found.counts.items()), *spent])
    if found.promises:
        console.table(
            ("wrong matches promised", "what came of it on the queries"), [promised(one) for one in found.promises]
        )
    if found.threshold.get("known"):
        console.say(f"known or new is told by {told_by(found.threshold['known'])} (on the gallery's left-out photos)")
    console.failures(found.failures)


def promised(one: Kept) -> tuple[str, str]:
    """A promised rate of false matches, and what came of it."""
    rate = f"{100 * one.rate:.3g} %"
    if one.threshold is None:
        return rate, f"refused: {one.reason}"
    given = (
        f"{one.given} of {one.queries} queries answered as a match ({100 * one.automatic:.1f} % of an expected mixture)"
    )
    if not one.given:
        return rate, given
    wrong = f"{one.wrong} of them wrong: {100 * one.measured:.1f} % [{100 * one.low:.1f}, {100 * one.high:.1f}]"
    return rate, f"{given}, {wrong}"


def cells(name: str, measured: Measured, known: int, new: int) -> tuple[str, str]:
    """Value and interval of a measure; `–` and the reason where there is none."""
    if not math.isfinite(measured.value):
        return "–", f"– ({_why(name, known, new)})"
    if not (math.isfinite(measured.low) and math.isfinite(measured.high)):
        return f"{measured.value:.4f}", "– (too few animals to draw from)"
    return f"{measured.value:.4f}", f"{measured.low:.4f} – {measured.high:.4f}"


def _why(name: str, known: int, new: int) -> str:
    if name in NEEDS_KNOWN and not known:
        return "no query shows an animal of the gallery"
    if name in NEEDS_NEW and not new:
        return "no query shows an animal that the gallery lacks"
    return "no answer has a P: too little was measured on this gallery" if name == "ece" else "no query to measure"
