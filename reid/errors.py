"""Every error this engine raises on purpose.

Each carries what was wrong, *where* (`source`: a file, a table row, a directory) and what to do next (`next_step`), so that the
command line, a report and a program that calls us can say the same thing.

    ReidError
    ├── InputError                 something the user gave us
    │   ├── PhotoError             one photo: unreadable, truncated, too large, not a photo
    │   └── TableError             one table or one row of it
    ├── ConfigError                reid.toml or an option
    ├── StoreError                 the store directory
    │   ├── StoreNotFound          no store there
    │   └── StoreBusy              another process holds the lock
    ├── CatalogueError             the database: schema version, connection, a broken rule
    │   └── IdentityError          an identity event that cannot be: unknown name, merge with itself
    ├── GalleryError               the vectors
    │   ├── IndexStale             built by another model, or behind the catalogue
    │   └── SnapshotCorrupt        the bytes on disk are not those that were written
    ├── ModelError                 an embedder or cropper: unknown, broken, another version
    │   └── MissingExtra           needs an optional part of the installation
    └── TrainError                 training or mining cannot go on: too few photos, a loss that is no number
        └── NothingNew             the model in force is what would come of it
"""

from __future__ import annotations


class ReidError(Exception):
    """Base of all. `code` is stable and meant for scripts; `str()` is meant for people."""

    code = "error"

    def __init__(self, message: str, *, source: str = "", next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.source = source
        self.next_step = next_step

    def __str__(self) -> str:
        """`source: message; next step`, leaving out what is empty."""
        head = f"{self.source}: {self.message}" if self.source else self.message
        return f"{head}; {self.next_step}" if self.next_step else head


class InputError(ReidError):
    """The user gave something that cannot be used."""

    code = "bad_input"


class PhotoError(InputError):
    """One photo cannot be used; the rest of its batch can."""

    code = "bad_photo"


class TableError(InputError):
    """A table, or one row of it, cannot be used."""

    code = "bad_table"


class ConfigError(ReidError):
    """A setting is unknown or out of range."""

    code = "bad_config"


class StoreError(ReidError):
    """The store directory cannot be used."""

    code = "bad_store"


class StoreNotFound(StoreError):
    """There is no store at that path."""

    code = "no_store"


class StoreBusy(StoreError):
    """Another process is writing to the store and did not finish in time."""

    code = "store_busy"


class CatalogueError(ReidError):
    """The database refused: connection, schema version or a broken rule."""

    code = "bad_catalogue"


class IdentityError(CatalogueError):
    """An identity event that cannot be applied."""

    code = "bad_identity"


class GalleryError(ReidError):
    """The gallery of vectors cannot be used."""

    code = "bad_gallery"


class IndexStale(GalleryError):
    """The gallery was built by another model than the one that asks."""

    code = "index_stale"


class SnapshotCorrupt(GalleryError):
    """Bytes on disk differ from what the manifest recorded."""

    code = "snapshot_corrupt"


class ModelError(ReidError):
    """A model is unknown, incomplete or of another version."""

    code = "bad_model"


class MissingExtra(ModelError):
    """The operation needs an optional part of the installation."""

    code = "missing_extra"


class TrainError(ReidError):
    """Training or mining cannot be done with these photos, or has gone wrong."""

    code = "bad_training"


class NothingNew(TrainError):
    """A training would make the model that is in force once more."""

    code = "nothing_new"
