"""What a training leaves behind: a directory that says what was done, with what, and what came of it.

    <parent>/<date>-<name>/
      config.json    what kind of training, settings, seed, base model, numbers of photos, code revision, versions of the libraries
      log.txt        a line a stage and an epoch, with the time
      metrics.json   what was measured, and every epoch
      curves.png     loss and MAP@5 by epoch
      state.txt      `running`, `finished`, `interrupted`, or `failed: …`
      <date>-<name>/ the model directory (`reid.models`)

`config.json` is all that `resume` needs: vectors are kept elsewhere by content, and a head's epochs take seconds, so a
run that goes on finds its vectors and repeats its epochs, which the seed makes the same. Files are written aside and
renamed. Knows files and numbers; trains nothing.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from reid.errors import ReidError, StoreBusy, TrainError
from reid.index.snapshot import lock

CONFIG, LOG, METRICS, CURVES, STATE = "config.json", "log.txt", "metrics.json", "curves.png", "state.txt"
LOCK = ".lock"  # held while a process trains
Kind = Literal["network", "cropper", "siamese", "ensemble"]
RUNNING, FINISHED, INTERRUPTED = "running", "finished", "interrupted"
RESUMED, ANEW = "the same command with --resume", "the same command again"
_LIBRARIES = ("numpy", "openvino", "torch", "pytorch-metric-learning")
_INK, _PAPER, _FAINT, _LOSS, _SCORE = (24, 32, 38), (255, 255, 255), (214, 218, 220), (0, 114, 178), (213, 94, 0)


@dataclass(frozen=True, slots=True)
class Run:
    """One training's directory, and the settings that it was begun with."""

    folder: Path
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """The directory's name, which is also its model's."""
        return self.folder.name

    @property
    def model(self) -> Path:
        """Where its model is, once it is finished; as it was judged, where it was taught further."""
        return self.folder / self.name

    @property
    def state(self) -> str:
        """How it stands: `running` also where the process was killed."""
        return read_state(self.folder)

    def log(self, line: str) -> None:
        """Add a line with the time."""
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a small file whole or not at all; NaN becomes null."""
        text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)
        _write(self.folder / name, text + "\n")

    def write_curves(
        self, losses: Sequence[float], scores: Sequence[float], measure: str = "MAP@5", *, worn: Sequence[float] = ()
    ) -> None:
        """Draw `curves.png`: the loss, and the `measure` of the held-out photos, as they are and worn, where there is
        one.
        """
        told = {f"{measure}, held out": scores, f"{measure}, held out and made small or lossy": worn}
        series = {"loss": losses} | {title: values for title, values in told.items() if any(map(math.isfinite, values))}
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".png", delete=False) as file:
            Image.fromarray(draw_curves(series)).save(file, format="PNG")
        os.replace(file.name, self.folder / CURVES)


def begin(
    parent: Path, name: str, kind: Kind, config: dict[str, Any], *, today: date | None = None, taken: Path | None = None
) -> Run:
    """A new directory `<date>-<name>` below `parent` (with a number behind it where that exists there, or in the folder
    `taken`), with its config. Only a training of the same `kind` will go on with it.

    Raises:
        TrainError: it cannot be written, or the name is none for a directory.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise TrainError(
            f"'{name}' cannot be a model's name", next_step="use letters, digits, '-', '_' and '.', a letter first"
        )
    stem = f"{(today or date.today()).isoformat()}-{name}"
    with written(parent, then=ANEW):
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            folder = parent / (stem if number == 1 else f"{stem}-{number}")
            if taken is not None and (taken / folder.name).exists():
                continue
            try:
                folder.mkdir()
                break
            except FileExistsError:
                continue
        run = Run(folder, {"kind": kind, **config, "code": revision(), "versions": _versions()})
        run.write_json(CONFIG, run.config)
        _write(folder / STATE, RUNNING + "\n")
    return run


def resume(parent: Path, kind: Kind, name: str = "") -> Run:
    """The newest run of that kind below `parent` that is not finished; of that name (with or without its date) where one
    is given.

    Raises:
        TrainError: there is none, none whose config can be read, or it is still running.
    """
    named = re.compile(r"\d{4}-\d{2}-\d{2}-" + re.escape(name) + r"(-\d+)?")
    found = [
        folder
        for folder in (parent.iterdir() if parent.is_dir() else ())
        if (folder / CONFIG).is_file()
        and read_state(folder) != FINISHED
        and (not name or folder.name == name or named.fullmatch(folder.name))
    ]
    unread: TrainError | None = None
    for folder in sorted(found, key=lambda one: (one.stat().st_mtime_ns, one.name), reverse=True):
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            if config.get("kind") == kind:
                with _alone(folder):
                    return Run(folder, config)
        except TrainError as error:
            unread = unread or error
        except (OSError, ValueError, AttributeError) as error:
            unread = unread or TrainError(
                f"its settings cannot be read ({error})", source=str(folder / CONFIG), next_step="begin a new training"
            )
    raise unread or TrainError(
        f"no unfinished training{f' called {name!r}' if name else ''} there",
        source=str(parent),
        next_step="leave out --resume to begin one",
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """TrainError where another process works in that folder; errors of the work inside are left as they are."""
    with ExitStack() as held:
        try:
            held.enter_context(lock(folder / LOCK, timeout=0))
        except StoreBusy as error:
            raise TrainError(
                "that training is still running", source=str(folder), next_step="wait for its end, or stop it first"
            ) from error
        try:
            yield
        finally:
            with suppress(OSError):  # some systems keep what is open
                (folder / LOCK).unlink()


@contextmanager
def recorded(run: Run, then: str = RESUMED) -> Iterator[None]:
    """Write down how the work inside ends; nobody else works in the run's folder meanwhile. What the disk refuses becomes
    a TrainError, which says what to do `then`.
    """
    with written(run.folder, then), _alone(run.folder):
        try:
            _write(run.folder / STATE, RUNNING + "\n")
            yield
        except BaseException as error:
            state = INTERRUPTED if isinstance(error, KeyboardInterrupt) else f"failed: {error or type(error).__name__}"
            with suppress(OSError):  # a disk that ended the run may have no room for its epitaph
                _write(run.folder / STATE, state + "\n")
            with suppress(OSError):
                run.log(state)
            raise
        _write(run.folder / STATE, FINISHED + "\n")
        run.log(FINISHED)


@contextmanager
def written(folder: Path, then: str = RESUMED) -> Iterator[None]:
    """A disk that is full or forbids writing, as a TrainError that names the file, or the folder, and what to do `then`."""
    try:
        yield
    except ReidError:
        raise
    except OSError as error:
        raise TrainError(
            f"cannot be written ({error.strerror or error})",
            source=str(error.filename or folder),
            next_step=f"free some space there, then {then}",
        ) from error


def read_state(folder: Path) -> str:
    """What `state.txt` says; `running` where it is missing."""
    try:
        return (folder / STATE).read_text(encoding="utf-8").strip()
    except OSError:
        return RUNNING


def revision() -> str:
    """The git revision of this code when it runs from a checkout, with `+` where files differ from it; else empty."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        head, changed = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=True)
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def draw_curves(series: dict[str, Sequence[float]], *, width: int = 900, height: int = 260) -> NDArray[np.uint8]:
    """A panel for each series, one below the other, over the epochs from 1; `(H, W, 3) uint8 RGB`. NaN is a gap."""
    picture = Image.new("RGB", (width, height * len(series)), _PAPER)
    draw = ImageDraw.Draw(picture)
    for number, (title, values) in enumerate(series.items()):
        _panel(draw, title, list(values), (70, number * height + 34, width - 24, (number + 1) * height - 34), number)
    return np.asarray(picture, np.uint8)


def _panel(
    draw: ImageDraw.ImageDraw, title: str, values: list[float], frame: tuple[int, int, int, int], number: int
) -> None:
    """One curve with its axes: lowest and highest value at the left, first and last epoch below."""
    left, top, right, bottom = frame
    finite = [v for v in values if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    reach = (high - low) or 1.0
    font = ImageFont.load_default(14)
    draw.text((left, top - 26), title, _INK, font)
    for part in range(5):
        y = bottom - part * (bottom - top) // 4
        draw.line((left, y, right, y), _FAINT)
        draw.text((left - 8, y), f"{low + reach * part / 4:.3g}", _INK, font, anchor="rm")
    step = (right - left) / max(1, len(values) - 1)
    points = [
        (left + i * step, bottom - (v - low) / reach * (bottom - top)) if math.isfinite(v) else None
        for i, v in enumerate(values)
    ]
    colour = (_LOSS, _SCORE)[number % 2]
    for one, other in zip(points, points[1:], strict=False):
        if one and other:
            draw.line((*one, *other), colour, 2)
    for point in points:
        if point:
            draw.ellipse((point[0] - 2, point[1] - 2, point[0] + 2, point[1] + 2), colour)
    draw.text((left, bottom + 8), "1", _INK, font)
    draw.text((right, bottom + 8), f"epoch {len(values)}", _INK, font, anchor="ra")


def _write(path: Path, text: str) -> None:
    """Aside, to disk, renamed."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}-", delete=False, encoding="utf-8"
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            Path(file.name).unlink(missing_ok=True)
            raise
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
