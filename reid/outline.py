"""Masks for photos that have none: what stands out in each, drawn into a folder that `enroll --masks` and
`query --mask` take.

    <out>/<photo's folder>/<photo's name>.png    one bit a pixel, of the upright photo's size; written whole or not at all

A mask that is there is kept, so that it may be mended by hand, and an interrupted run goes on. Knows photos and files; no
stores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reid import images, masks
from reid.errors import InputError, ReidError
from reid.exchange import failure_of
from reid.images import printable
from reid.records import Failure
from reid.salient import Salient

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Outlined:
    """Masks that were drawn and that were there, and the photos that have none."""

    out: str
    drawn: int
    there: int
    failures: tuple[Failure, ...]


def outline(photos: Sequence[Path], out: Path, network: Salient, progress: Progress) -> Outlined:
    """Draw the masks of `photos` into the folder `out`.

    Raises:
        InputError: it cannot be written; what was drawn before is kept.
    """
    drawn = there = 0
    failures: list[Failure] = []
    made: dict[Path, Path] = {}
    for done, photo in enumerate(photos, 1):
        target = masks.place_of(out, photo)
        if made.setdefault(target, photo) != photo:
            failures.append(
                Failure(
                    printable(photo),
                    "conflict",
                    f"its mask would have the name of that of {printable(made[target])}",
                    "draw the masks of the two folders into different ones",
                )  # fmt: skip
            )
        elif masks.beside(out, photo) is not None:
            there += 1
        else:
            try:
                mask = network.mask(images.read(photo).pixels)
            except ReidError as error:
                failures.append(failure_of(error))
            else:
                if mask is None:
                    failures.append(
                        Failure(printable(photo), "no_detection", "nothing stands out in it", "draw its mask by hand")
                    )
                else:
                    _write(target, masks.encoded(mask))
                    drawn += 1
        progress("masks", done, len(photos))
    return Outlined(str(out), drawn, there, tuple(failures))


def _write(target: Path, png: bytes) -> None:
    aside = target.with_name(f".{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(png)
        os.replace(aside, target)
    except OSError as error:
        raise InputError(
            f"the mask cannot be written ({error.strerror})",
            source=str(target),
            next_step="free the disk, or name another folder with --out",
        ) from error
