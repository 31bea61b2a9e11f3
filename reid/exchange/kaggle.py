"""Tables of the Kaggle competitions: `Image,Id` (humpback whales, 2018–19) and `image,species,individual_id` (2022).

The photos lie beside the table or in a folder such as `train/` or `train_images/`; unnamed animals are `new_whale` or
`new_individual`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reid.exchange.gather import Gathering
from reid.exchange.tables import PhotoFinder, open_table
from reid.exchange.wildlife_csv import Dialect, read_rows
from reid.exchange.wildlife_csv import matches as _matches
from reid.images import printable

KAGGLE = Dialect("kaggle", ("image",), ("id", "individual_id"))


def matches(columns: Sequence[str]) -> bool:
    """Whether a table's header is one of the two."""
    return _matches(columns, KAGGLE)


def read_kaggle(path: Path, gathering: Gathering, *, bases: Sequence[Path] = ()) -> None:
    """Read one table into `gathering`; as `read_wildlife_csv`."""
    with open_table(path) as table:
        read_rows(table, gathering, KAGGLE, PhotoFinder([*bases, path.parent]), source=printable(path))
