"""A store: one directory holding settings, catalogue, models and index, opened as one thing.

    <store>/reid.toml  catalogue.sqlite  models/  index/  photos/ (only where copies are kept)  calibration.json

The catalogue is the truth; the index is derived from it. `sync` brings the index up to the catalogue's revision and
costs what changed, so a killed enrolment is mended by whoever comes next. Knows where things live; decides nothing
about animals.
"""

from __future__ import annotations

import json
import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from reid import config_file, crop, ensemble, locate, models, whiten
from reid.catalogue import Catalogue, sqlite_url
from reid.config import Config
from reid.embed import Embedder, unit_rows
from reid.errors import GalleryError, IndexStale, SnapshotCorrupt, StoreError, StoreNotFound
from reid.index import Gallery, write_snapshot
from reid.index.view import stamp
from reid.locate import Croppers, open_croppers
from reid.whiten import Whitening

SETTINGS = "reid.toml"
CALIBRATION = "calibration.json"
TRIES = 4  # openings of a gallery that others keep replacing
VERIFIED_BYTES = 64 << 20  # up to this size an opening compares checksums (some 50 ms); beyond it `reid reindex` does
LEFTOVER_S = 3600.0  # age from which a whitening that no gallery names is swept


class Store:
    """See the module. Usable in a `with` statement; parts open when first asked for."""

    def __init__(self, root: Path, settings: Config) -> None:
        """Not for callers: `create` and `open` know how."""
        self.root = root
        self.config = settings
        self._whitening: Whitening | None = None

    @classmethod
    def create(
        cls,
        root: Path,
        *,
        begin_with: Mapping[str, Any] | None = None,
        species: str | None = None,
        new_label: str | None = None,
        model: str = "",
        cropper: str = "",
    ) -> Store:
        """Make a store in `root`, which may hold other things but no store.

        `begin_with` holds settings (`reid.config_file.values_of`); the others, where given, overrule them.

        Raises:
            StoreError: there is a store already, or the directory cannot be written.
            ConfigError: a setting that cannot be. ModelError: no cropper of that name.
        """
        if (root / SETTINGS).exists():
            raise StoreError(
                "there is a store here already", source=str(root), next_step="use it, or name another directory"
            )
        text = config_file.with_values(config_file.TEMPLATE, begin_with or {})
        given = {
            "": {} if species is None else {"species": species},
            "decision": {} if new_label is None else {"new_label": new_label},
            "embedder": {"model": model} if model else {},
            "crop": {"model": cropper} if cropper else {},
        }
        text = config_file.with_values(text, given.pop("") | given)
        settings = config_file.parse(text, "the settings given")
        for name in {settings.crop.model, *settings.crop.species.values()} - {locate.NONE}:
            locate.folder_of(name, root / "models")
        try:
            root.mkdir(parents=True, exist_ok=True)
            if not settings.catalogue.url:
                Catalogue.open(sqlite_url(root / "catalogue.sqlite"), create=True).close()
            write_atomically(root / SETTINGS, text)
        except OSError as error:
            raise StoreError(
                f"cannot be written ({error.strerror})", source=str(root), next_step="name another directory"
            ) from error
        return cls(root, settings)

    @classmethod
    def open(cls, root: Path) -> Store:
        """The store in `root`.

        Raises:
            StoreNotFound: there is none.
            ConfigError: its settings are wrong.
        """
        if not (root / SETTINGS).is_file():
            raise StoreNotFound(
                "no store there", source=str(root), next_step=f"reid --store {shlex.quote(str(root))} init"
            )
        return cls(root, config_file.load(root / SETTINGS))

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the catalogue's connections."""
        if "catalogue" in self.__dict__:
            self.catalogue.close()

    @cached_property
    def catalogue(self) -> Catalogue:
        """The catalogue; made where its database is still empty."""
        url = self.config.catalogue.url
        return Catalogue.open(url, create=True) if url else Catalogue.open(sqlite_url(self.root / "catalogue.sqlite"))

    def settle_model(self, name: str) -> None:
        """Write into `reid.toml` which model `auto` means for this store; a model that was named stays."""
        if self.config.embedder.model != "auto":
            return
        path = self.root / SETTINGS
        settled = config_file.with_model(path.read_text(encoding="utf-8"), name)
        self.config = config_file.parse(settled, str(path))
        write_atomically(path, settled)
        self.__dict__.pop("embedder", None)

    @property
    def models_folder(self) -> Path:
        """Where this store's models are."""
        return self.root / "models"

    @property
    def model(self) -> str:
        """The folder, below the store's models, of the one that `reid.toml` names."""
        name = self.config.embedder.model
        return models.DEFAULT if name == "auto" else name

    @cached_property
    def embedder(self) -> Embedder:
        """The model that `reid.toml` names, on the device that it names; the default model is exported at first use."""
        folder = models.ensure(self.models_folder, self.model)
        return ensemble.open_embedder(folder, device=self.config.embedder.device, threads=self.config.embedder.threads)

    @cached_property
    def croppers(self) -> Croppers:
        """Who finds the animal in photos that come without a box, as `reid.toml` says.

        Raises:
            ModelError: a cropper that it names is not there, or damaged.
        """
        settings = self.config.crop
        whole = settings.when_none == "whole"
        return open_croppers(
            settings.model, settings.species, self.models_folder, confidence=settings.confidence, whole=whole
        )

    @property
    def fingerprint(self) -> str:
        """Of the raw vectors that this store makes now: the model's, and which views are averaged in."""
        return self.fingerprint_with(self.embedder.card)

    def fingerprint_with(self, card: models.ModelCard) -> str:
        """Of the vectors that another model would make with these settings."""
        name = self.views_with(card)
        views = f"+{name}" if name != "one" else ""
        if name == "aligned":
            views += f":{self.croppers.landmarks_fingerprint}"
        return f"{card.fingerprint}{views}{'+mirror' if self.config.embedder.mirror else ''}"

    def views_with(self, card: models.ModelCard) -> str:
        """By which of `crop.VIEWS` a model sees: as the settings say, and what "auto" comes to."""
        settings = self.config.embedder.views
        return crop.asked_by(card) if settings == "auto" else settings

    @property
    def index_folder(self) -> Path:
        """Where the gallery is."""
        return self.root / "index"

    def gallery(self) -> Gallery:
        """The gallery of this store's model, made if there is none, and brought up to the catalogue.

        Raises:
            IndexStale: the gallery is of another model, or behind and not to be written here.
            SnapshotCorrupt: files of it, its whitening among them, are missing, cut or changed.
        """
        for last in (False,) * (TRIES - 1) + (True,):
            seen = stamp(self.index_folder)
            try:
                return self._opened()
            except (IndexStale, SnapshotCorrupt):
                if last or stamp(self.index_folder) == seen:  # else another process put a new one in its place
                    raise
        raise AssertionError("the last try returns or raises")

    def _opened(self) -> Gallery:
        if not (self.index_folder / "MANIFEST.json").exists():
            self._new_gallery()
        gallery = Gallery.open(self.index_folder)
        if gallery.fingerprint.partition("/")[0] != self.fingerprint:
            raise IndexStale(
                "the gallery holds vectors of another model than the one reid.toml names",
                source=str(self.index_folder),
                next_step="reid reindex",
            )
        self.whitening(gallery)
        if 2 * gallery.dim * len(gallery) <= VERIFIED_BYTES:
            gallery.check()
        if gallery.revision < self.catalogue.vectors_revision:
            try:
                self._sync(gallery)
            except OSError as error:
                raise IndexStale(
                    f"the gallery is behind the catalogue and cannot be written ({error.strerror})",
                    source=str(self.index_folder),
                    next_step="reid reindex, as someone who may write there",
                ) from error
        return gallery

    def repaired_gallery(self) -> tuple[Gallery, bool]:
        """As `gallery`, but one that is damaged or of another model is built again from the catalogue; whether it had
        to be.
        """
        try:
            return self.gallery(), False
        except (SnapshotCorrupt, IndexStale):
            return self.rebuild(None), True

    def whitening(self, gallery: Gallery) -> Whitening | None:
        """The whitening that the gallery's vectors went through, None for none; its name is part of the gallery's
        fingerprint.
        """
        name = gallery.fingerprint.partition("/")[2]
        if not name:
            return None
        if self._whitening is None or self._whitening.name != name:
            self._whitening = whiten.read(self.index_folder / f"whitening-{name}.npz")
        return self._whitening

    def project(self, vectors: NDArray[np.float32], gallery: Gallery) -> NDArray[np.float32]:
        """Raw vectors of this store's model `(N, D)` → unit rows as the gallery holds them."""
        whitening = self.whitening(gallery)
        return unit_rows(vectors) if whitening is None else whitening.apply(unit_rows(vectors))

    def rebuild(self, whitening: Whitening | None) -> Gallery:
        """A new snapshot of all vectors of the present model, whitened or not, built aside and swapped in."""
        revision = self.catalogue.revision
        fingerprint, dim = self.fingerprint, self.embedder.card.dim
        self.index_folder.mkdir(exist_ok=True)
        if whitening is not None:
            fingerprint, dim = f"{fingerprint}/{whitening.name}", whitening.dim
            write_atomically(self.index_folder / f"whitening-{whitening.name}.npz", whiten.to_bytes(whitening))
        apply = unit_rows if whitening is None else whitening.apply
        chunks = (
            ([str(a) for a in chunk.annotations.tolist()], apply(unit_rows(chunk.vectors)))
            for chunk in self.catalogue.embeddings(self.fingerprint)
        )
        gallery = write_snapshot(
            self.index_folder,
            chunks,
            fingerprint=fingerprint,
            dim=dim,
            revision=revision,
            backend=self.config.gallery.backend,
        )
        self._sweep_whitenings(gallery)
        return gallery

    def _sweep_whitenings(self, gallery: Gallery) -> None:
        """Delete old whitenings; a fresh one may belong to a gallery that another process is about to put in place."""
        for path in self.index_folder.glob("whitening-*.npz"):
            try:
                if not gallery.fingerprint.endswith(path.stem.partition("-")[2]):
                    if time.time() - path.stat().st_mtime > LEFTOVER_S:
                        path.unlink()
            except OSError:  # gone already, or kept open by a reader: the next sweep will do
                continue

    def _new_gallery(self) -> None:
        try:
            Gallery.create(
                self.index_folder,
                fingerprint=self.fingerprint,
                dim=self.embedder.card.dim,
                backend=self.config.gallery.backend,
            )
        except GalleryError:
            if not (self.index_folder / "MANIFEST.json").exists():  # else another process made it first
                raise

    def _sync(self, gallery: Gallery) -> None:
        """Take in what the catalogue gained and lost since the gallery's revision."""
        with gallery.writing():
            since = gallery.revision
            now = self.catalogue.revision
            if since >= self.catalogue.vectors_revision:
                return
            gallery.remove([str(a) for a in self.catalogue.withdrawn(since)])
            for chunk in self.catalogue.embeddings(self.fingerprint, after_revision=since):
                gallery.add([str(a) for a in chunk.annotations.tolist()], self.project(chunk.vectors, gallery))
            gallery.commit(revision=now)

    def resolve(self, path: Path) -> Path:
        """Where a photo's file is: paths of kept copies are relative to the store."""
        return path if path.is_absolute() else self.root / path

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A small file of results in the store, or None where it is absent or unreadable (it can always be made again)."""
        try:
            found = json.loads((self.root / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write such a file whole or not at all; one line a key."""
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
        write_atomically(self.root / name, "{\n" + ",\n".join(lines) + "\n}\n")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write aside, forced to disk and renamed to `path` at the end of the block; after an error `path` is as
    it was. OSError where the disk is full or forbids it.
    """
    aside = ""
    try:
        handle, aside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    finally:
        if aside:
            Path(aside).unlink(missing_ok=True)  # there only if something went wrong


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write aside, force to disk, rename; StoreError where the disk is full or forbids it, and then nothing has
    changed.
    """
    try:
        with replacing(path) as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
    except OSError as error:
        raise StoreError(
            f"cannot be written ({error.strerror})", source=str(path), next_step="free the disk, or allow writing there"
        ) from error
