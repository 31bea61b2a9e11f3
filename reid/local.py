"""A store's local features: every box in service described once, kept by content hash, and indexed for voting.

    <store>/features/…   what was described, by the photo's sha256 and the box
    <store>/local/       the index of it (`reid.index.local`), brought up to the catalogue at the cost of what changed
    <store>/masks/…      where a table said the animal is, by the same; keypoints are those within

All but the masks are derived and can be made again from the photos. Where the settings name a learned matcher, boxes
are described by it as well, for the geometry of the shortlist; the index has RootSIFT alone. Knows a store's photos and boxes; no identities.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reid import intake, learned, rescore
from reid.catalogue import AnnotationInfo
from reid.errors import GalleryError, IndexStale, SnapshotCorrupt
from reid.images import printable
from reid.index import LocalIndex
from reid.intake import Describe, Prepared
from reid.keypoints import FeatureStore, KeypointConfig, LocalFeatures
from reid.learned import ENLARGED_TO, NETWORKS, LearnedConfig
from reid.masks import MaskStore
from reid.records import Box, Failure, Mask, Sighting
from reid.store import Store
from reid.verify import VerifyConfig

FOLDER = "local"
MASKS = "masks"
OUTLINED = "outlined"  # a file in `MASKS`: what is described of masked boxes has their outline, by which overlaps go
REDRAWN = "redrawn"  # a file in `MASKS`: keypoints of boxes whose mask has changed are gone, and to be described again
_BATCH = 256  # boxes indexed in one commit while describing
_MANY = 8 * _BATCH  # boxes from which an addition is planned for, rather than taken as it comes
_SAMPLE = 500  # boxes whose features stand for all in that plan

BoxKey = tuple[float, float, float, float]
Progress = Callable[[str, int, int], None]  # stage, done, total


def quiet(stage: str, done: int, total: int) -> None:
    """No progress shown."""


def description(store: Store) -> KeypointConfig | None:
    """How boxes are described in this store; None where its settings do without."""
    settings = store.config.local
    if not settings.use:
        return None
    return KeypointConfig(
        max_keypoints=settings.keypoints,
        long_side=settings.long_side,
        min_long_side=min(settings.enlarge_to, settings.long_side),
    )


def learned_description(store: Store) -> LearnedConfig | None:
    """How boxes are described for geometry, where the settings name a learned matcher."""
    settings = store.config.local
    if not settings.use or settings.matcher not in NETWORKS:
        return None
    return LearnedConfig(
        settings.matcher,
        settings.matcher_keypoints,
        settings.long_side,
        min(ENLARGED_TO, settings.long_side),
        settings.matcher_weights,
    )


def describer(store: Store) -> Describe | None:
    """What describes a box by the learned matcher, None without.

    Raises:
        MissingExtra, ModelError: its packages or weights are not there.
    """
    config = learned_description(store)
    if config is None:
        return None
    learned.networks(config)
    return lambda crop, mask: learned.describe(crop, mask, config)


def verification(store: Store) -> VerifyConfig:
    """How this store's settings compare two boxes."""
    settings = store.config.local
    estimator = _of_itself(store) if settings.estimator == "auto" else settings.estimator
    further = learned_description(store)
    return VerifyConfig(
        matcher=settings.matcher if settings.use else "sift",
        model=settings.model,
        estimator=estimator,
        threshold=settings.inlier_distance,
        min_matches=settings.min_matches,
        iterations=settings.iterations,
        mirrored=settings.mirrored,
        learned=further,
    )


def _of_itself(store: Store) -> str:
    """The estimator where the settings name none: learned keypoints have no frames."""
    return "frames" if learned_description(store) is None else "lmeds_ransac"


def fingerprint(store: Store) -> str:
    """Of description and geometry together, empty without: what a fusion was fitted for."""
    config, further = description(store), learned_description(store)
    if config is None:
        return ""
    compared = verification(store)
    by = f"-{compared.matcher}" if compared.matcher != "sift" else ""
    by += f"-{further.fingerprint}" if further else ""
    by += f"-{compared.estimator}" if compared.estimator != _of_itself(store) else ""
    by += _limits(compared)
    by += "-mirrored" if store.config.local.mirrored else ""
    by += "-outlined" if (store.root / MASKS / OUTLINED).exists() else ""
    query, head = store.config.query, rescore.fingerprint(store)
    how = f"-{query.ranking}-{query.geometry_inliers}" if query.ranking != "fused" else ""
    how += f"-siamese-{head}" if head else ""
    return f"{config.fingerprint}-{store.config.local.verify}-{store.config.local.model}{by}{how}"


def compared_as_usual(store: Store) -> bool:
    """Whether this store compares two boxes as rendered flukes were for `reid.fusion.PRIOR`: RootSIFT, each match with its
    own scale and angle.
    """
    compared = verification(store)
    return compared.learned is None and compared.estimator == "frames" and not _limits(compared)


def _limits(compared: VerifyConfig) -> str:
    """The limits of the geometry that are not as they come, for the fingerprint."""
    usual = VerifyConfig()
    names = ["threshold", "min_matches"] + (["iterations"] if compared.estimator != "frames" else [])
    limits = ((name, getattr(compared, name)) for name in names)
    return "".join(f"-{name}-{value}" for name, value in limits if value != getattr(usual, name))


def key_of(box: Box) -> BoxKey:
    """A box as its features are filed."""
    return (box.x0, box.y0, box.x1, box.y1)


def keep(store: Store, photo: Prepared) -> None:
    """File what was described of a photo, and its masks."""
    drawn = {key_of(box): png for box, png in zip(photo.boxes, photo.masks, strict=False) if png is not None}
    keep_masks(store, photo.facts.sha256, drawn)
    features, further = _features(store), _further(store)
    for box, found in zip(photo.boxes, photo.local, strict=False):
        features.put(photo.facts.sha256, key_of(box), found)
    for box, more in zip(photo.boxes, photo.further, strict=False):
        if further is not None and more is not None:
            further.put(photo.facts.sha256, key_of(box), more)


def keep_masks(store: Store, sha256: str, drawn: Mapping[BoxKey, bytes]) -> None:
    """File masks (`masks.encoded`) of a photo's boxes; what was described under another one is forgotten, and
    `bring_up` describes it again.
    """
    kept = masks_of(store)
    stores = [one for one in (_features(store), _further(store)) if one is not None]
    for key, png in drawn.items():
        if not kept.put(sha256, key, png):
            continue
        described = [path for one in stores if (path := one.path(sha256, key)).exists()]
        if described:
            (store.root / MASKS / REDRAWN).touch()
        for path in described:
            path.unlink(missing_ok=True)


def masks_of(store: Store) -> MaskStore:
    """The masks that tables gave."""
    return MaskStore(store.root / MASKS)


def _features(store: Store) -> FeatureStore:
    return FeatureStore(store.root / "features", description(store) or KeypointConfig())


def _further(store: Store) -> FeatureStore | None:
    config = learned_description(store)
    return FeatureStore(store.root / "features", config) if config is not None else None


@dataclass(frozen=True, slots=True, eq=False)
class LocalSource:
    """A store's local features opened for asking: the index, and the features behind it."""

    index: LocalIndex
    features: FeatureStore
    verify: VerifyConfig
    further: FeatureStore | None = None  # the learned matcher's; None: geometry compares the same as vote

    @classmethod
    def open(cls, store: Store) -> LocalSource:
        """Brought up to the catalogue as far as features are at hand; nothing is described here.

        Raises:
            IndexStale, SnapshotCorrupt: the index is of another description or damaged: `bring_up` mends it.
        """
        source = cls(_index(store), _features(store), verification(store), _further(store))
        if source.index.revision < store.catalogue.vectors_revision:
            with source.index.writing():
                since, now = source.index.revision, store.catalogue.revision
                source.index.remove([str(a) for a in store.catalogue.withdrawn(since)])
                source._add_described(store, store.catalogue.embedded_since(store.fingerprint, since))
                source.index.commit(revision=now)
        return source

    def features_of(self, keys: Mapping[str, tuple[str, BoxKey]], id: str) -> LocalFeatures | None:
        """The features filed for an annotation whose photo and box `keys` names; None where there are none."""
        return self.features.get(*keys[id]) if id in keys else None

    def compared_of(self, keys: Mapping[str, tuple[str, BoxKey]], id: str) -> LocalFeatures | None:
        """As `features_of`, those that geometry compares."""
        return (self.further or self.features).get(*keys[id]) if id in keys else None

    def _add_described(self, store: Store, annotations: Sequence[int]) -> list[int]:
        """Index the annotations whose features are at hand and not indexed yet; those that lack features."""
        there = set(self.index.ids())
        fresh = [a for a in annotations if str(a) not in there]
        many = len(fresh) > max(_MANY, len(there))
        if many:
            self._expect(store, fresh)
        lacking = []
        for at in range(0, len(fresh), _BATCH):
            for id, key in keys(store, fresh[at : at + _BATCH]).items():
                found = self.features.get(*key)
                if found is None:
                    lacking.append(int(id))
                else:
                    self.index.add([id], [found.descriptors])
            if at and at % (8 * _BATCH) == 0:  # what waits is held in memory
                self.index.commit(revision=self.index.revision)
        if many:
            self.index.commit(revision=self.index.revision)
            self.index.merge()
        return lacking

    def _expect(self, store: Store, fresh: Sequence[int]) -> None:
        """Tell the index how much is coming, from some of it at random."""
        some = np.random.default_rng(0).choice(np.array(fresh), min(len(fresh), _SAMPLE), replace=False)
        found = [self.features.get(*key) for key in keys(store, some.tolist()).values()]
        sample = [one.descriptors for one in found if one is not None]
        each = sum(map(len, sample)) / max(1, len(some))
        self.index.expect(self.index.descriptors + round(each * len(fresh)), sample)


def keys(store: Store, annotations: Collection[int]) -> dict[str, tuple[str, BoxKey]]:
    """Annotation id → the photo's sha256 and the box: where its features are filed."""
    infos = store.catalogue.annotations(annotations)
    photos = store.catalogue.photos({info.photo for info in infos.values()})
    return {str(id): (photos[info.photo].sha256, key_of(info.box)) for id, info in infos.items()}


def names_of(store: Store) -> dict[str, str]:
    """Annotation id → its animal's code as text, for those that have one."""
    return {str(annotation): str(animal) for annotation, animal in store.catalogue.owners().items()}


def bring_up(store: Store, *, check: bool = False, progress: Progress = quiet) -> list[Failure]:
    """Index every annotation in service, describing what was not described yet; an index that is of another
    description or damaged is made anew. `check` reads all of it, compares checksums, describes again what is filed no
    more or was damaged, and makes the index anew where it was made for far fewer photos. Where the settings do without
    local features nothing is done.
    """
    if description(store) is None:
        return []
    try:
        source = LocalSource(_index(store), _features(store), verification(store), _further(store))
        if check:
            source.index.check()
    except (IndexStale, SnapshotCorrupt):
        shutil.rmtree(store.root / FOLDER, ignore_errors=True)
        source = LocalSource(_index(store), _features(store), verification(store), _further(store))
    now = store.catalogue.revision
    serving = store.catalogue.labels().annotations.tolist()
    with source.index.writing():
        source.index.remove(set(source.index.ids()) - {str(a) for a in serving})
        lacking = source._add_described(store, serving)
        source.index.commit(revision=now)
    redrawn = store.root / MASKS / REDRAWN
    if check:
        lacking = sorted({*lacking, *_damaged(store, source, serving)})
    elif source.further is not None or redrawn.exists():
        lacking = sorted({*lacking, *_absent(store, source, serving)})
    outlined = store.root / MASKS / OUTLINED
    if outlined.parent.is_dir() and not outlined.exists():
        lacking = sorted({*lacking, *_without_outline(store, source, serving)})
    failures: list[Failure] = []
    done = 0
    for ids, photo in _described(store, lacking):
        done += len(ids)
        progress("describe", done, len(lacking))
        if isinstance(photo, Failure):
            failures.append(photo)
            continue
        keep(store, photo)
        source.index.add([str(a) for a in ids], [features.descriptors for features in photo.local])
        if done % _BATCH < len(ids):
            source.index.commit(revision=now)
    source.index.commit(revision=now)
    redrawn.unlink(missing_ok=True)
    if outlined.parent.is_dir():
        outlined.touch()
    if check and source.index.outgrown:
        source.index.compact()
    return failures


def _damaged(store: Store, source: LocalSource, annotations: Sequence[int]) -> Iterator[int]:
    """Annotations whose features are gone or cannot be read; reads all that are filed."""
    for at in range(0, len(annotations), _BATCH):
        for id, key in keys(store, annotations[at : at + _BATCH]).items():
            if source.features.get(*key) is None or (source.further and source.further.get(*key) is None):
                yield int(id)


def _absent(store: Store, source: LocalSource, annotations: Sequence[int]) -> Iterator[int]:
    """Annotations that lack a file of features; looks at names alone."""
    stores = [one for one in (source.features, source.further) if one is not None]
    for at in range(0, len(annotations), _BATCH):
        for id, key in keys(store, annotations[at : at + _BATCH]).items():
            if not all(one.path(*key).exists() for one in stores):
                yield int(id)


def _without_outline(store: Store, source: LocalSource, annotations: Sequence[int]) -> Iterator[int]:
    """Annotations that have a mask, and were described when outlines were not kept."""
    stores, drawn = [one for one in (source.features, source.further) if one is not None], masks_of(store)
    for at in range(0, len(annotations), _BATCH):
        for id, key in keys(store, annotations[at : at + _BATCH]).items():
            if drawn.path(*key).exists() and any(
                (found := one.get(*key)) is not None and found.outline is None for one in stores
            ):
                yield int(id)


def _described(store: Store, annotations: Sequence[int]) -> Iterator[tuple[list[int], Prepared | Failure]]:
    """Photos read again for their local features, with the annotations in the order of the boxes."""
    infos = store.catalogue.annotations(annotations)
    hashes = {id: photo.sha256 for id, photo in store.catalogue.photos({i.photo for i in infos.values()}).items()}
    by_path: dict[Path, list[int]] = {}
    for annotation, info in infos.items():
        by_path.setdefault(store.resolve(info.path), []).append(annotation)
    drawn = masks_of(store)
    groups = [
        tuple(_sighting(path, infos[a], drawn, hashes[infos[a].photo]) for a in ids) for path, ids in by_path.items()
    ]
    prepared = intake.prepare_all(groups, intake.NO_CROP, (), describe=description(store), further=describer(store))
    for ids, one in zip(by_path.values(), prepared, strict=True):
        if isinstance(one, Prepared) and one.facts.sha256 != hashes[infos[ids[0]].photo]:
            name = printable(one.facts.path)
            yield ids, Failure(name, "bad_photo", "the file holds another photo now", "reid reindex")
        elif isinstance(one, Prepared) and len(one.local) != len(ids):
            yield ids, one.failures[0]
        else:
            yield ids, one


def _sighting(path: Path, info: AnnotationInfo, drawn: MaskStore, sha256: str) -> Sighting:
    mask = drawn.path(sha256, key_of(info.box))
    return Sighting(path, printable(path), box=info.box, mask=Mask(picture=mask) if mask.exists() else None)


def _index(store: Store) -> LocalIndex:
    config = description(store) or KeypointConfig()
    folder = store.root / FOLDER
    if not (folder / "MANIFEST.json").exists():
        try:
            return LocalIndex.create(folder, fingerprint=config.fingerprint)
        except GalleryError:
            if not (folder / "MANIFEST.json").exists():  # else another process made it first
                raise
    return LocalIndex.open(folder, fingerprint=config.fingerprint)
