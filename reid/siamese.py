"""Same animal or not, from two vectors: the symmetric per-feature network, scored with numpy alone.

For every feature f of a pair with values x and y, v = [xy, x+y, |x−y|, (x−y)²], h = W₂·ReLU(W₁v + b₁) + b₂ with weights
shared by all features, and P(same) = σ(Σ w_f h_f + b): the head of the public Siamese kernels of the Humpback Whale
Identification challenge (M. Piotte, 2018). It is symmetric, score(a, b) = score(b, a), and has about 700 parameters at
512 features. An optional linear map goes before it. Trained on kept vectors by `reid.train.siamese`, or with the whole
network by recipes that learn by pairs (`reid.train.pairing`); such a head lies in the folder `FOLDER` of its model.

    <folder>/siamese.npz    the arrays below, read without unpickling
    <folder>/siamese.json   format, fingerprint of the embedder, sizes, sha256 of the arrays, provenance

Knows vectors; no photos, no identities, no torch.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.errors import ModelError

Floats = NDArray[np.floating[Any]]
Matrix = NDArray[np.float32]

ARRAYS, CARD = "siamese.npz", "siamese.json"
FOLDER = "siamese"  # below a store (heads of `reid train-siamese`), and below a model directory (its own head)
FORMAT = 1
_CHUNK = 131_072  # feature pairs at once: 16 MB of hidden units


@dataclass(frozen=True, slots=True, eq=False)
class Siamese:
    """The trained head. All float32; H hidden units, F features, D numbers in a vector.

    `projection (F, D)` and `shift (F,)` bring a unit row to features; `hidden (H, 4)`, `hidden_bias (H,)`, `output
    (H,)` and `output_bias ()` are W₁, b₁, W₂, b₂; `weights (F,)` and `bias ()` are w and b.
    """

    projection: Matrix
    shift: Matrix
    hidden: Matrix
    hidden_bias: Matrix
    output: Matrix
    output_bias: float
    weights: Matrix
    bias: float
    about: dict[str, Any] = field(default_factory=dict)

    def features(self, vectors: Floats) -> Matrix:
        """`(N, D) unit rows → (N, F) float32`."""
        return np.asarray(np.asarray(vectors, np.float32) @ self.projection.T + self.shift, np.float32)

    def score(self, queries: Floats, gallery: Floats) -> NDArray[np.float64]:
        """P(same) of every pair of unit rows, `(Q, D)`, `(N, D)` → `(Q, N) float64`."""
        return _sigmoid(self.logits(queries, gallery))

    def logits(self, queries: Floats, gallery: Floats) -> NDArray[np.float64]:
        """What `score` takes the logistic function of: the same order, without ties near 0 and 1. `(Q, N) float64`."""
        left, right = self.features(queries), self.features(gallery)
        out = np.empty((len(left), len(right)), np.float64)
        step = max(1, _CHUNK // max(1, left.shape[1]))
        for i, row in enumerate(left):
            for start in range(0, len(right), step):
                out[i, start : start + step] = self._pairs(row[None], right[start : start + step])
        return out

    def pair_logits(self, first: Floats, second: Floats) -> NDArray[np.float64]:
        """The same for pairs side by side, `(P, D)`, `(P, D)` → `(P,) float64`."""
        left, right = self.features(first), self.features(second)
        out = np.empty(len(left), np.float64)
        step = max(1, _CHUNK // max(1, left.shape[1]))
        for start in range(0, len(left), step):
            part = slice(start, start + step)
            out[part] = self._pairs(left[part], right[part])
        return out

    def expanded(self, vectors: Floats, rank: int = 24) -> tuple[Matrix, Matrix]:
        """Two arrays `(N, F·rank) float32` of which `left @ right.T + bias` is about `logits`: all N² pairs by one
        product.

        h is one function of two numbers for all features, so its table over a grid of values has an eigendecomposition
        h(x, y) ≈ Σ λ_r φ_r(x) φ_r(y). Good for mining, where the order of hard pairs matters; the answer to a query is
        exact.
        """
        x = self.features(vectors)
        grid = np.unique(np.quantile(x, np.linspace(0, 1, 129))) if x.size else np.zeros(1)
        table = self._function(np.repeat(grid, len(grid)), np.tile(grid, len(grid))).reshape(len(grid), -1)
        values, functions = np.linalg.eigh(table.astype(np.float64))
        main = np.argsort(-np.abs(values))[:rank]
        basis = np.stack([np.interp(x, grid, functions[:, r]) for r in main], axis=2).astype(np.float32)
        left = basis * (self.weights[:, None] * values[main]).astype(np.float32)
        return left.reshape(len(x), -1), basis.reshape(len(x), -1)

    def _pairs(self, left: Matrix, right: Matrix) -> NDArray[np.float64]:
        """Features `(P, F)`, or one row for all, → logits `(P,)`."""
        left, right = np.broadcast_arrays(left, right)
        h = self._function(left.ravel(), right.ravel()).reshape(right.shape)
        return np.asarray((h @ self.weights).astype(np.float64) + self.bias)

    def _function(self, x: Floats, y: Floats) -> Matrix:
        """h of values side by side, `(M,)`, `(M,)` → `(M,)`."""
        apart = x - y
        v = np.stack([x * y, x + y, np.abs(apart), apart * apart], axis=1).astype(np.float32)
        inner = np.maximum(v @ self.hidden.T + self.hidden_bias, 0)
        return np.asarray(inner @ self.output + np.float32(self.output_bias), np.float32)


def save(model: Siamese, folder: Path) -> None:
    """Write the two files; `about` goes into the card and must hold the embedder's `fingerprint`."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        projection=model.projection,
        shift=model.shift,
        hidden=model.hidden,
        hidden_bias=model.hidden_bias,
        output=model.output,
        output_bias=np.float32(model.output_bias),
        weights=model.weights,
        bias=np.float32(model.bias),
    )
    (folder / ARRAYS).write_bytes(buffer.getvalue())
    card = {
        **model.about,
        "format": FORMAT,
        "dim": model.projection.shape[1],
        "features": len(model.weights),
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def load(folder: Path, fingerprint: str | None = None) -> Siamese:
    """Read what `save` wrote; `fingerprint` is that of the embedder whose vectors will be scored.

    Raises:
        ModelError: no head there, damaged or of another version, or trained on another embedder's vectors.
    """
    again = "train the head again, or switch it off"
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        data = (folder / ARRAYS).read_bytes()
    except FileNotFoundError as error:
        raise ModelError("no Siamese head there", source=str(folder), next_step=again) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"unreadable Siamese head ({error})", source=str(folder), next_step=again) from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ModelError("a Siamese head of another version", source=str(folder), next_step=again)
    if hashlib.sha256(data).hexdigest() != card.get("sha256"):
        raise ModelError("the head's arrays are not those that its card describes", source=str(folder), next_step=again)
    if fingerprint is not None and card.get("fingerprint") != fingerprint:
        raise ModelError("the head was trained on the vectors of another model", source=str(folder), next_step=again)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = {k: v for k, v in card.items() if k not in ("format", "dim", "features", "sha256")}
        output_bias, bias = float(arrays.pop("output_bias")), float(arrays.pop("bias"))
        return Siamese(**arrays, output_bias=output_bias, bias=bias, about=about)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"an incomplete Siamese head ({error})", source=str(folder), next_step=again) from error


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + e^−x) without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))
