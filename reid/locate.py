"""Photo → where the animal is: its box, four landmarks, how sure that is, and how far several regressors disagree.

A cropper is a directory, found below a store's `models/`, or shipped with the package (`fluke`):

    <name>/
      cropper.json    the card: side, folds, what it was trained on, when, from which seed, what it measured
      graph.xml/.bin  OpenVINO graph, `(B, side, side, 3) uint8 RGB`, whole photos squashed to a square →
                      `folds (B, K, 13) float32`: box XYXY and landmarks in shares of the photo, confidence in [0, 1]
      compiled/       its machine code (`reid.compiled`); that of one that ships is in the store's `models/.compiled/`

The K rows are those of regressors trained on different folds of the photos, each asked for the photo and for its mirror
image. Their median is the answer, their disagreement its quality: the idea of several boxes for each photo is that of
the winners of the Kaggle humpback competition of 2018. Landmarks are left tip, notch, right tip and base.

Knows pixels and graphs; no files of photos, no stores, and not how a cropper is trained (`reid.train.cropper`).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.compiled import compiled, core
from reid.errors import ModelError
from reid.records import Box

Pixels = NDArray[np.uint8]
Points = NDArray[np.float32]

CARD = "cropper.json"
FORMAT = 1
NUMBERS = 13  # four of the box, eight of the landmarks, one of the confidence
SHIPPED: dict[str, Path] = {"fluke": Path(__file__).with_name("weights_cropper") / "fluke"}
NONE = "none"
WINDOW = 0.2  # of a box's size, added on each side before its landmarks are looked for
SMALL, LOOKS = 0.7, 3  # of the width: a narrower box is looked at again, closer; looks in all
CLOSER = 0.3  # of that box's size, left on each side for it
AGREE = 0.5  # intersection over union from which a box found in a window is the one that was asked for


@dataclass(frozen=True, slots=True)
class CropperCard:
    """One cropper. `landmarks` says whether it has learned any; `figures` are measures by name; `graph_sha256` is over
    the graph's two files.
    """

    name: str
    side: int
    folds: int
    landmarks: bool
    graph_sha256: str
    source: str
    licence: str
    seed: int
    date: str
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """16 hex digits: croppers with the same one find the same boxes."""
        return hashlib.sha256(f"{FORMAT} {self.side} {self.folds} {self.graph_sha256}".encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """What was found in one photo, in pixels of the original. `box.confidence` is the mean of the folds', as is
    `confidence`; `landmarks (4, 2)` float32 may lie outside the photo; `boxes (K, 4)` float32 XYXY are those of the
    folds. `spread` in [0, 1] is 1 − the mean overlap (IoU) of the folds' boxes with `box`: 0 where all agree.
    """

    box: Box
    landmarks: Points
    confidence: float
    spread: float
    boxes: Points


class Locator:
    """One cropper, compiled when it is first asked. Thread-safe: one call at a time runs."""

    def __init__(self, folder: Path, keep: Path | None = None) -> None:
        """Machine code is kept in the folder `keep`, so that the next process need not compile; None: nowhere."""
        self.card = read_card(folder)
        self._folder, self._keep = folder, keep
        self._lock = threading.Lock()
        self._compiled: Any = None

    def locate(self, pixels: Pixels, size: tuple[int, int] | None = None) -> Located:
        """`pixels (H, W, 3) uint8 RGB` of a whole photo; `size` (width, height) of the original where they were decoded
        smaller.
        """
        return self.locate_all([pixels], None if size is None else [size])[0]

    def locate_all(self, photos: Sequence[Pixels], sizes: Sequence[tuple[int, int]] | None = None) -> list[Located]:
        """As `locate`, for several photos of any sizes."""
        for pixels in photos:
            if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
                raise ValueError(f"pixels must be (H, W, 3) uint8 and not empty, not {pixels.shape} {pixels.dtype}")
        sizes = [(p.shape[1], p.shape[0]) for p in photos] if sizes is None else sizes
        if not photos:
            return []
        squares = np.stack([squash(pixels, self.card.side) for pixels in photos])
        rows = [self._closer(pixels, folds) for pixels, folds in zip(photos, self.folds(squares), strict=True)]
        return [summed(folds, size) for folds, size in zip(rows, sizes, strict=True)]

    def _closer(self, pixels: Pixels, folds: NDArray[np.float32]) -> NDArray[np.float32]:
        """The folds' rows `(K, 13)` from further looks, as long as the box is small in what was looked at last; whether
        there is an animal, they must say every time.
        """
        size = np.array([pixels.shape[1], pixels.shape[0]])
        reach, sure = size.astype(np.float64), folds[:, 12:]
        for _ in range(LOOKS - 1):
            low, high = np.median(folds[:, :2], axis=0), np.median(folds[:, 2:4], axis=0)
            if high[0] <= low[0] or high[1] <= low[1] or (high[0] - low[0]) * size[0] >= SMALL * reach[0]:
                break
            first = np.floor(np.clip(low - CLOSER * (high - low), 0, 1) * size).astype(int)
            last = np.ceil(np.clip(high + CLOSER * (high - low), 0, 1) * size).astype(int)
            if (last - first < 2).any():
                break
            [rows] = self.folds(squash(pixels[first[1] : last[1], first[0] : last[0]], self.card.side)[None])
            start, reach = first.astype(np.float64), (last - first).astype(np.float64)
            points = ((rows[:, :12].reshape(-1, 6, 2) * reach + start) / size).reshape(-1, 12)
            sure = np.minimum(sure, rows[:, 12:])
            folds = np.concatenate([points.astype(np.float32), sure], axis=1)
        return folds

    def landmarks_in(self, pixels: Pixels, box: Box, scale: tuple[float, float] = (1.0, 1.0)) -> Points | None:
        """The landmarks `(4, 2)` of the animal in `box`, in pixels of the original; None where none is found there.

        The box is in pixels of the original, `scale` decoded ÷ original as in `reid.crop`. They are looked for in the
        box's own surroundings, so that they depend on the box and not on what else a photo shows.
        """
        if not self.card.landmarks:
            return None
        height, width = pixels.shape[:2]
        grow_x, grow_y = WINDOW * box.width, WINDOW * box.height
        x0 = int(np.clip(round((box.x0 - grow_x) * scale[0]), 0, width - 1))
        y0 = int(np.clip(round((box.y0 - grow_y) * scale[1]), 0, height - 1))
        x1 = int(np.clip(round((box.x1 + grow_x) * scale[0]), x0 + 1, width))
        y1 = int(np.clip(round((box.y1 + grow_y) * scale[1]), y0 + 1, height))
        found = self.locate(pixels[y0:y1, x0:x1])
        inside = np.array([[box.x0, box.y0, box.x1, box.y1]]) * (*scale, *scale) - (x0, y0, x0, y0)
        ours = np.array([found.box.x0, found.box.y0, found.box.x1, found.box.y1])
        if found.confidence < 0.5 or overlaps(inside, ours)[0] < AGREE:
            return None
        return np.asarray((found.landmarks + (x0, y0)) / scale, np.float32)

    def folds(self, squares: Pixels) -> NDArray[np.float32]:
        """`(N, side, side, 3) uint8 → (N, K, 13) float32`, in shares of the photo."""
        with self._lock:
            graph = self._compiled = self._compiled or self._compile()
            return np.concatenate([np.asarray(graph(square[None])[0], np.float32) for square in squares])

    def _compile(self) -> Any:
        # One thread: the graph is small, and several photos are prepared side by side.
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
        try:
            return compiled(self._read_graph, config, self._keep, self.card.fingerprint)
        except RuntimeError as error:
            raise _broken(self._folder, "its graph cannot be read") from error

    def _read_graph(self) -> Any:
        graph = core().read_model(self._folder / "graph.xml")
        graph.reshape([1, self.card.side, self.card.side, 3])
        return graph


@dataclass(frozen=True, slots=True, eq=False)
class Croppers:
    """Who finds animals in a store: `usual`, and by species where that differs; None leaves photos whole. Boxes below
    `confidence` do not count; then the photo serves whole where `whole`, else not at all.
    """

    usual: Locator | None
    by_species: Mapping[str, Locator | None]
    confidence: float
    whole: bool

    def of(self, species: str | None) -> Locator | None:
        """Who is asked for a photo of that species."""
        return self.by_species.get(species, self.usual) if species else self.usual

    @property
    def fingerprint(self) -> str:
        """Of the boxes they find: the same one, the same boxes; empty where none is looked for."""
        if not any({"": self.usual, **self.by_species}.values()):
            return ""
        return _digest([self._named(), self.confidence, self.whole])

    @property
    def landmarks_fingerprint(self) -> str:
        """Of the landmarks they find in a box that is there."""
        return _digest(self._named())

    def _named(self) -> list[tuple[str, str]]:
        named = {"": self.usual, **self.by_species}
        return [(name, one.card.fingerprint if one else NONE) for name, one in sorted(named.items())]


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def open_croppers(
    model: str, species: Mapping[str, str], models_folder: Path, *, confidence: float, whole: bool
) -> Croppers:
    """The croppers of those names, each opened once; `NONE` is nobody.

    Raises:
        ModelError: there is none of that name, or it is damaged.
    """
    names = {model, *species.values()} - {NONE}
    opened: dict[str, Locator | None] = {}
    for name in sorted(names):
        folder = folder_of(name, models_folder)
        own = folder.parent == models_folder  # one that ships may lie where nobody can write
        opened[name] = Locator(folder, folder / "compiled" if own else models_folder / ".compiled")
    by_species = {name: opened.get(one) for name, one in species.items()}
    return Croppers(opened.get(model), by_species, confidence, whole)


def summed(folds: NDArray[np.float32], size: tuple[int, int]) -> Located:
    """The folds' rows `(K, 13)` in shares → what was found, in pixels of a photo of `size` (width, height)."""
    width, height = size
    boxes = np.clip(folds[:, :4], 0.0, 1.0)
    middle = np.median(boxes, axis=0)
    # Edges that have crossed are no box: it is the smallest one there can be, a pixel, and nobody is sure of it.
    pixel = 1.0 / np.array([width, height])
    low = np.minimum(middle[:2], 1.0 - pixel)
    high = np.maximum(middle[2:], low + pixel)
    crossed = bool((middle[2:] <= middle[:2]).any())
    confidence = 0.0 if crossed else float(folds[:, 12].mean())
    whole = np.concatenate([low, high])
    spread = float(1.0 - overlaps(boxes, whole).mean())
    x0, y0, x1, y1 = (float(v) for v in whole * (width, height, width, height))
    marks = np.median(folds[:, 4:12].reshape(-1, 4, 2), axis=0) * (width, height)
    return Located(
        Box(x0, y0, x1, y1, confidence=confidence, origin="detector"),
        np.asarray(marks, np.float32),
        confidence,
        spread,
        np.asarray(boxes * (width, height, width, height), np.float32),
    )


def overlaps(boxes: NDArray[np.floating[Any]], box: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Intersection over union of `boxes (..., 4)` XYXY with `box (..., 4)`: `(...,)`."""
    low, high = np.maximum(boxes[..., :2], box[..., :2]), np.minimum(boxes[..., 2:], box[..., 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(b[..., 2:] - b[..., :2], 0, None).prod(-1) for b in (boxes, box)]
    return np.asarray(shared / np.maximum(areas[0] + areas[1] - shared, 1e-12), np.float64)


def squash(pixels: Pixels, side: int) -> Pixels:
    """`(H, W, 3)` → `(side, side, 3)`, whatever its shape."""
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def folder_of(name: str, models_folder: Path) -> Path:
    """The directory of cropper `name`: one below `models_folder`, else one that ships.

    Raises:
        ModelError: there is none of that name.
    """
    own = models_folder / name
    if (own / CARD).is_file():
        return own
    if name in SHIPPED:
        return SHIPPED[name]
    there = sorted({*SHIPPED, *(p.parent.name for p in models_folder.glob(f"*/{CARD}"))})
    raise ModelError(
        f"no cropper '{name}' (there are: {', '.join(there)})",
        source=str(models_folder),
        next_step='reid train-cropper, or model = "none" under [crop] in reid.toml',
    )


def read_card(folder: Path) -> CropperCard:
    """The card of one cropper, its graph compared with it.

    Raises:
        ModelError: no cropper there, one of another version, or one whose files are not those that were written.
    """
    try:
        raw = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(folder, f"no cropper there ({error})") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise _broken(folder, "a cropper of another version")
    try:
        card = CropperCard(**{f.name: raw[f.name] for f in fields(CropperCard)})
    except KeyError as error:
        raise _broken(folder, f"its card is incomplete ({error})") from error
    try:
        found = graph_sha256(folder)
    except OSError as error:
        raise _broken(folder, f"its graph cannot be read ({error.strerror})") from error
    if found != card.graph_sha256:
        raise _broken(folder, "its graph is not the one that its card describes")
    return card


def card_text(card: CropperCard) -> str:
    """What stands in `cropper.json`."""
    return json.dumps({"format": FORMAT, "fingerprint": card.fingerprint, **asdict(card)}, indent=2) + "\n"


def graph_sha256(folder: Path) -> str:
    """Hex digits over `graph.xml` and `graph.bin`; OSError where one is missing."""
    digest = hashlib.sha256((folder / "graph.xml").read_bytes())
    digest.update((folder / "graph.bin").read_bytes())
    return digest.hexdigest()


def _broken(folder: Path, why: str) -> ModelError:
    return ModelError(why, source=str(folder), next_step="train it again (reid train-cropper) or restore the directory")
