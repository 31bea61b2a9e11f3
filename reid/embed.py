"""Crops → unit vectors, by an OpenVINO graph on CPUs or by torch on a GPU.

`embed(crops (N, H, W, 3) uint8 RGB) → (N, D) float32`, rows of unit length. Crops already have the size that the
model's card asks for (`reid.crop` cuts them). Both runtimes give the same vectors within `TOLERANCE` (cosine), which is
tested.

Knows pixels and vectors; no files of photos, no identities. torch is imported only when the torch runtime is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reid import models, steps
from reid.compiled import compiled, core
from reid.errors import MissingExtra, ModelError
from reid.models import ModelCard

TOLERANCE = 0.999  # least cosine between the runtimes' vectors of one crop

Crops = NDArray[np.uint8]
Vectors = NDArray[np.float32]


class Embedder(Protocol):
    """What the pipeline needs of a runtime."""

    card: ModelCard

    def embed(self, crops: Crops) -> Vectors:
        """`(N, H, W, 3) uint8 RGB → (N, D) float32` unit rows; N = 0 gives `(0, D)`."""
        ...


class OpenVinoEmbedder:
    """The CPU runtime: one graph per batch size, compiled once and kept beside the model."""

    def __init__(self, folder: Path, *, threads: int = 0) -> None:
        """`threads` 0 leaves the number to the runtime (all cores)."""
        self.card = models.read_card(folder)
        self._folder = folder
        self._threads = threads
        self._lock = threading.Lock()
        self._queues: dict[int, Any] = {}

    def prepare(self) -> None:
        """Compile what a single photo takes; whoever embeds meanwhile waits."""
        with self._lock:
            if 1 not in self._queues:
                self._compile(1)

    def embed(self, crops: Crops) -> Vectors:
        """See `Embedder.embed`. Thread-safe: one call at a time runs."""
        height, width = self.card.preprocessing.height, self.card.preprocessing.width
        if crops.ndim != 4 or crops.shape[1:] != (height, width, 3) or crops.dtype != np.uint8:
            raise ValueError(f"crops must be (N, {height}, {width}, 3) uint8, not {crops.shape} {crops.dtype}")
        out = np.empty((len(crops), self.card.dim), np.float32)
        with self._lock:
            batch = self._bulk_batch() if len(crops) >= 16 else 1
            whole = len(crops) - len(crops) % batch
            self._run(batch, crops[:whole], out[:whole])
            self._run(1, crops[whole:], out[whole:])
        return unit_rows(out)

    def _run(self, batch: int, crops: Crops, out: Vectors) -> None:
        """Fill `out` for crops whose number is a multiple of `batch`."""
        if not len(crops):
            return
        queue = self._queues[batch] if batch in self._queues else self._compile(batch)

        def keep(request: Any, at: int) -> None:
            out[at : at + batch] = request.get_tensor("embedding").data

        queue.set_callback(keep)
        for at in range(0, len(crops), batch):
            queue.start_async({0: np.ascontiguousarray(crops[at : at + batch])}, at)
        queue.wait_all()

    def _bulk_batch(self) -> int:
        """Batches of 16 are up to twice as fast on CPUs that are new enough to have bf16, though it is not used; on older
        ones single photos stay in the cache and are faster.
        """
        return 16 if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else 1

    def _compile(self, batch: int) -> Any:
        import openvino

        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY" if batch == 1 else "THROUGHPUT"}
        if self._threads:
            config["INFERENCE_NUM_THREADS"] = self._threads
        code = compiled(lambda: self._read_graph(batch), config, self._folder / "compiled", str(batch))
        queue = openvino.AsyncInferQueue(code)
        self._queues[batch] = queue
        return queue

    def _read_graph(self, batch: int) -> Any:
        try:
            graph = core().read_model(self._folder / "graph.xml")
        except RuntimeError as error:
            raise ModelError(
                "the model's graph cannot be read", source=str(self._folder), next_step=models.AGAIN
            ) from error
        graph.reshape([batch, self.card.preprocessing.height, self.card.preprocessing.width, 3])
        return graph


def prepare_aside(embedder: Embedder) -> None:
    """Begin on a thread of its own what the first crop would wait for; its errors come up again when it is embedded."""

    ready: Callable[[], None] = getattr(embedder, "prepare", lambda: None)

    def begin() -> None:
        with suppress(ModelError, OSError, RuntimeError):
            ready()

    threading.Thread(target=begin, daemon=True).start()


def _torch(folder: Path) -> Embedder:
    """The torch runtime, on CUDA."""
    try:
        from reid.train.torch_runtime import TorchEmbedder
    except ImportError as error:
        raise MissingExtra(
            f"the torch runtime needs {error.name}", source=str(folder), next_step=steps.install("train")
        ) from error
    embedder: Embedder = TorchEmbedder(folder)
    return embedder


EMBEDDERS: dict[str, Callable[[Path], Embedder]] = {"cpu": OpenVinoEmbedder, "cuda": _torch}


def unit_rows(rows: Vectors) -> Vectors:
    """Rows scaled to unit length; a row of zeros stays zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-12), np.float32)
