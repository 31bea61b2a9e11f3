"""Whether a trained model takes the present one's place, and how it does.

`decision` is the gate; `adopt` puts the new model's vectors into the catalogue and its name into the settings. Nothing
in force is touched before that. Knows verdicts and stores; trains and judges nothing.
"""

from __future__ import annotations

from reid import config_file, models, witness
from reid.config import TrainingConfig
from reid.judge import LEAST_JUDGES, Candidate, Report
from reid.store import SETTINGS, Store, write_atomically


def decision(report: Report, rules: TrainingConfig) -> tuple[str, bool]:
    """Why the new model takes the old one's place or does not, and whether it does."""
    why, better = weighed(report, rules, refits=bool(report.refitted))
    return f"{why}, {'the new model is in force' if better else 'the present model stays'}", better


def weighed(report: Report, rules: TrainingConfig, *, refits: bool) -> tuple[str, bool]:
    """What speaks for or against the new model, and whether it may serve; `refits`: it learns on from all photos first.
    One that does not must be better beyond chance than the witness of one that did, which is worse than that one itself.
    """
    found = report.verdict
    before, after = found.map_at_5_before.value, found.map_at_5_after.value
    if found.photos < LEAST_JUDGES:
        return f"{found.photos} photos of known animals could judge, {LEAST_JUDGES} are needed", False
    total = max(1, report.photos + found.photos)
    if found.lost > rules.may_lose * total:
        return f"{found.lost} photos cannot be read any more and would leave the index", False
    figures = f"MAP@5 {before:.3f} → {after:.3f} on {found.photos} photos that neither model was trained on"
    if not after >= before - rules.tolerance:  # also where a figure is NaN
        return f"{figures}: worse", False
    if report.by_witness and not refits and not found.gain.low > 0:
        return f"{figures}: not surely better, and the present model has since learnt from all photos", False
    return f"{figures}: not worse", True


def adopt(store: Store, candidate: Candidate) -> None:
    """Make a candidate the store's model: vectors into the catalogue, then its name into `reid.toml`.

    The index still holds the old vectors until the next `fit.fit`; killed in between, `reid reindex` mends it.

    Raises:
        StoreError, CatalogueError: what was before is in force.
    """
    fingerprint = store.fingerprint_with(models.read_card(witness.inside(candidate.folder)))
    for at in range(0, len(candidate.annotations), 512):
        part = slice(at, at + 512)
        store.catalogue.put_embeddings(fingerprint, candidate.annotations[part].tolist(), candidate.vectors[part])
    path = store.root / SETTINGS
    text = config_file.with_model(path.read_text(encoding="utf-8"), candidate.folder.name)
    changed = config_file.parse(text, str(path))
    write_atomically(path, text)
    store.config = changed
    store.__dict__.pop("embedder", None)
