"""The gallery index: unit vectors under string ids, searched exactly or approximately, on disk in documented bytes.

`Gallery` is the whole of it for most callers; `staging`, `publish` and `write_snapshot` replace one gallery by
another in one step; `BACKENDS` names the ways to search; `IdSet` is a filter that is used again; `LocalIndex` is the other index, of
local descriptors that vote. Knows no model, no catalogue, no photos.
"""

from reid.index.backends import BACKENDS
from reid.index.gallery import Checked, Gallery
from reid.index.local import LocalIndex, Names
from reid.index.segments import IdSet
from reid.index.staging import publish, staging, write_snapshot

__all__ = ["BACKENDS", "Checked", "Gallery", "IdSet", "LocalIndex", "Names", "publish", "staging", "write_snapshot"]
