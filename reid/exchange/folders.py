"""Folders of photos, with or without one folder per animal.

Hidden files and folders are passed by, and so is what is no photo, with a count by kind. An unfamiliar extension is
not believed: the first bytes decide. Knows the file system, not what is in a photo.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from reid.errors import InputError, PhotoError
from reid.exchange.gather import Gathering, known_name
from reid.headers import Unusable, sniff
from reid.images import PHOTO_SUFFIXES, printable
from reid.records import Sighting

Layout = Literal["auto", "flat", "folders"]

_NOT_PHOTOS = frozenset(
    ".csv .tsv .txt .json .jsonl .xml .yaml .yml .toml .md .html .pdf .doc .docx .xls .xlsx .zip .gz .tar .7z .rar .db "
    ".ini .log .py .ipynb .npy .npz .parquet .mp4 .mov .avi .mkv .mts .wav .mp3 .xmp .lrv .thm".split()
)
_SYSTEM_FOLDERS = frozenset({"@eadir", "__macosx", "lost+found", "system volume information", "$recycle.bin"})
# Folders that group photos by something else than the animal: a camera's own, dates, parts of a data set, sides.
_NOT_AN_ANIMAL = re.compile(
    r"(?i)\d{3}[a-z_0-9]{5}|dcim|misc"
    r"|(19|20)\d\d([-_. ]?[01]\d([-_. ]?[0-3]\d)?)?([-_ ].*)?|[0-3]?\d[-_.][01]?\d[-_.](19|20)\d\d"
    r"|photos?|images?|pictures?|img|imgs|jpe?gs?|raw|crops?|train(ing)?|test(ing)?|val(idation)?|query|queries|gallery"
    r"|left|right|front|back|new|old|todo|done|selected|export(ed)?|originals?|edited|good|bad|day ?\d+|week ?\d+"
    r"|(trip|encounter|survey|camera|station|site).*|cam ?\d+|card ?\d+"
)


def read_folder(folder: Path, gathering: Gathering, layout: Layout = "auto") -> str:
    """Every photo below `folder` into `gathering`, in order of their names; returns the layout that was used.

    `folders`: the first folder below `folder` is the animal's name. `flat`: no names. `auto`: names where every photo
    lies exactly one folder deep, in two folders or more, none of which looks like a date, a camera's folder or a part
    of a data set; a note says so, because a wrong guess would name animals after folders.
    """
    photos = list(_photos(folder, gathering))
    if not photos:
        gathering.fail(
            InputError(
                "holds no photos",
                source=printable(folder),
                next_step=f"expected {', '.join(sorted(PHOTO_SUFFIXES))} in it or below",
            )
        )
        return "flat"
    below = [os.path.relpath(photo, folder).split(os.sep)[:-1] for photo in photos]
    if layout == "auto":
        layout = "folders" if _one_folder_per_animal(below) else "flat"
        if layout == "folders":
            animals = len({parts[0] for parts in below})
            told = f"each of its {animals} folders was taken for one animal; the layout 'flat' avoids it"
            gathering.notes.append(f"{printable(folder)}: {told}")
    for photo, parts in zip(photos, below, strict=True):
        name = known_name(printable(parts[0])) if layout == "folders" and parts else None
        gathering.sightings.append(Sighting(path=Path(photo), where=printable(photo), identity=name))
    return layout


def _one_folder_per_animal(below: list[list[str]]) -> bool:
    names = {parts[0] for parts in below if parts}
    return (
        len(names) >= 2
        and all(len(parts) == 1 for parts in below)
        and not any(_NOT_AN_ANIMAL.fullmatch(name.strip()) for name in names)
    )


def _photos(folder: Path, gathering: Gathering) -> Iterator[str]:
    """Paths of photos below a folder, sorted; links are followed, each real folder is entered once."""
    passed: Counter[str] = Counter()
    tables: list[str] = []
    entered: set[tuple[int, int]] = set()
    waiting = [str(folder)]
    while waiting:
        here = waiting.pop()
        try:
            status = os.stat(here)
            with os.scandir(here) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            reason = f"cannot be listed ({error.strerror})"
            gathering.fail(InputError(reason, source=printable(here), next_step="give this user the right to read it"))
            continue
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        inner: list[str] = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                if entry.name.lower() not in _SYSTEM_FOLDERS:
                    inner.append(entry.path)
            elif is_photo(entry.path):
                yield entry.path
            elif entry.is_symlink() and not os.path.exists(entry.path):
                gathering.fail(_vanished(entry.path))
            elif os.path.abspath(entry.path) not in gathering.named:
                suffix = os.path.splitext(entry.name)[1].lower()
                passed[suffix or "without extension"] += 1
                if here == str(folder) and suffix in (".csv", ".tsv"):
                    tables.append(entry.name)
        waiting += reversed(inner)
    if passed:
        counts = ", ".join(f"{count} {printable(suffix)}" for suffix, count in passed.most_common())
        gathering.notes.append(f"{printable(folder)}: passed by what is no photo: {counts}")
    for name in tables:
        gathering.notes.append(f"{printable(folder)}: {printable(name)} was not read; name it to use its labels")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """False also for what this user may not look at, which is then no photo, either."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_photo(path: str) -> bool:
    """By extension where that is a photo's; where it is unfamiliar, by the first bytes."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in PHOTO_SUFFIXES:
        return os.path.isfile(path)
    if suffix in _NOT_PHOTOS or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            sniff(file.read(64))
    except (OSError, Unusable):
        return False
    return True


def _vanished(path: str) -> PhotoError:
    return PhotoError(
        "is a link to nothing", source=printable(path), next_step="check that the disk it leads to is connected"
    )
