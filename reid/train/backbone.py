"""timm networks as the engine sees them: pixels in, one embedding out; and their export to a model directory.

A `Backbone` takes `(B, H, W, 3) uint8 RGB` and holds mean and std itself, exactly as the exported graph does, so that a
preprocessing mismatch between training, the torch runtime and the CPU's graph cannot happen. Weights come from a timm name, a
`hf-hub:` name or a local checkpoint: safetensors, or a torch file read with `weights_only=True`; a pickle that holds anything
but tensors is refused.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from reid import lite0, models, weights
from reid.compiled import SINGLE
from reid.errors import ModelError
from reid.models import ModelCard, Preprocessing
from reid.train import lite0_maps
from reid.train.torchvision_ops import import_timm

if TYPE_CHECKING:
    import openvino

LEAST_COSINE = 0.999  # between the exported graph's vectors and the network's
LITE0 = "tf_efficientnet_lite0"
HUB_TIMEOUT_S = 5.0
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # in the order in which timm looks for them


class Backbone(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """`(B, H, W, 3) uint8 RGB → (B, D) float32`, not normalised.

    `network` is timm's; with a `pooling` of `lite0.MAPS` its maps are pooled as `reid.lite0` says, else it pools itself.
    """

    def __init__(
        self, network: torch.nn.Module, mean: tuple[float, ...], std: tuple[float, ...], pooling: str = "native"
    ) -> None:
        """`mean` and `std` in pixel units, 0–255."""
        super().__init__()
        self.network = network
        self.pooling = pooling
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        maps = lite0.MAPS.get(self.pooling)
        if maps is None:
            out: torch.Tensor = self.network(x)
            return out
        return torch.cat([lite0_maps.root(one) for one in lite0_maps.expanded(self.network, x, maps)], dim=1)


def from_name(spec: str, checkpoint: Path | None = None) -> tuple[Backbone, ModelCard]:
    """A network by `timm` or `hf-hub:` name, with its published weights or those of `checkpoint`.

    Raises:
        ModelError: unknown name, no network to fetch weights over, or a checkpoint that does not fit.
    """
    timm = import_timm()
    architecture = spec.removeprefix("timm:")
    try:
        source, found = (architecture, {}) if checkpoint else _published(timm, architecture)
        network = timm.create_model(source, pretrained=checkpoint is None, num_classes=0, **found)
    except ModelError:
        raise
    except Exception as error:  # timm and the hub raise a dozen kinds for "no such name" and "no network"
        raise ModelError(
            f"cannot make '{spec}' ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'})",
            next_step="check the name with timm.list_models(); without a network, fetch the weights elsewhere and pass --checkpoint FILE",
        ) from error
    if checkpoint is not None:
        _load(network, read_checkpoint(checkpoint), checkpoint)
    data = timm.data.resolve_model_data_config(network)
    _, height, width = data["input_size"]
    scaled = [tuple(255.0 * float(v) for v in data[key]) for key in ("mean", "std")]
    backbone = Backbone(network, scaled[0], scaled[1]).eval()
    with torch.inference_mode():
        dim = int(backbone(torch.zeros(1, height, width, 3, dtype=torch.uint8)).shape[1])
    card = ModelCard(
        name=_short(architecture),
        dim=dim,
        preprocessing=Preprocessing(height, width, scaled[0], scaled[1]),  # type: ignore[arg-type]
        pooling=str(getattr(network, "global_pool", "") or "native")
        if isinstance(getattr(network, "global_pool", ""), str)
        else "native",
        weights_sha256=models.hash_tensors(tensors_of(network).items()),
        source=f"{spec} weights from {checkpoint.name}" if checkpoint else spec,
        licence=str(getattr(network, "pretrained_cfg", {}).get("license") or "see its model card"),
        architecture=architecture,
    )
    return backbone, card


def _published(timm: Any, architecture: str) -> tuple[str, dict[str, Any]]:
    """What timm is to make so that published weights load: the name and keyword arguments.

    Without a network the hub's client tries each of several files for half a minute; one short question is asked first, and
    what its cache holds is used where there is no answer.

    Raises:
        ModelError: the hub cannot be reached and its cache does not hold the weights.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    on_hub = architecture.removeprefix("hf-hub:").removeprefix("hf_hub:")
    config = None if on_hub != architecture else timm.models.get_pretrained_cfg(architecture, allow_unregistered=False)
    repository, _, revision = (on_hub if config is None else config.hf_hub_id or "").partition("@")
    if not repository:
        return architecture, {}
    try:
        HfApi().model_info(repository, revision=revision or None, timeout=HUB_TIMEOUT_S)
        return architecture, {}
    except HfHubHTTPError:  # it answered: timm says what is wrong
        return architecture, {}
    except (
        Exception
    ) as error:  # no answer; the client's library, and so the kind of error, differs between its versions
        cached = (try_to_load_from_cache(repository, name, revision=revision or None) for name in _HUB_FILES)
        file = next((path for path in cached if isinstance(path, str)), None)
        if file is None:
            raise ModelError(
                f"the hub cannot be reached ({type(error).__name__}) and the weights of {repository} were not fetched before",
                source=architecture,
                next_step="fetch the weights where there is a network and pass --checkpoint FILE",
            ) from error
    if config is None:
        return f"local-dir:{Path(file).parent}", {}
    return architecture, {"pretrained_cfg_overlay": {"file": file}}


def from_folder(folder: Path) -> tuple[Backbone, ModelCard]:
    """The network behind a model directory, for training or the torch runtime.

    Raises:
        ModelError: the directory has no weights that torch can use, or a pooling that its network does not have.
    """
    card = models.read_card(folder)
    if card.pooling in lite0.MAPS and card.architecture != LITE0:
        raise ModelError(
            f"no pooling '{card.pooling}' for {card.architecture}",
            source=str(folder),
            next_step=models.AGAIN,
        )
    if "network" in card.extra:
        return _trained(folder, card), card
    timm = import_timm()
    network = timm.create_model(card.architecture, pretrained=False, num_classes=0)
    kept = folder / "weights.safetensors"
    if kept.is_file():
        _load(network, read_checkpoint(kept), kept)
    else:
        published = weights.read_tensors(lite0.weight_file())
        tensors = {name: tensor for name, tensor in published.items() if not name.startswith("_fc.")}
        if models.hash_tensors(tensors.items()) != card.weights_sha256:
            raise ModelError("no weights for torch beside the graph", source=str(folder), next_step=models.AGAIN)
        names = list(network.state_dict())
        _load(network, dict(zip(names, tensors.values(), strict=True)), folder)
    return Backbone(network, card.preprocessing.mean, card.preprocessing.std, card.pooling).eval(), card


def _trained(folder: Path, card: ModelCard) -> Backbone:
    """What `reid.train.embedder` trained: a network with pooling and neck of its own."""
    from reid.train.network import build
    from reid.train.recipe import NetworkConfig

    try:
        network, _ = build(
            NetworkConfig(**card.extra["network"]), grey=bool(card.extra["grey"]), pretrained=False,
            size=(card.preprocessing.height, card.preprocessing.width),
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"a network of another version ({error})", source=str(folder), next_step="train it again"
        ) from error
    load_weights(network, folder)
    made = Backbone(network, card.preprocessing.mean, card.preprocessing.std)
    made.eval()
    return made


def load_weights(network: torch.nn.Module, folder: Path) -> None:
    """The weights of the model directory `folder` into a network of the same shape.

    Raises:
        ModelError: it has none for torch, or they are of another shape.
    """
    kept = folder / "weights.safetensors"
    if not kept.is_file():
        raise ModelError("no weights for torch beside the graph", source=str(folder), next_step="name a trained model")
    _load(network, read_checkpoint(kept), kept)


def read_checkpoint(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file or of a torch file holding nothing but tensors (and the usual wrapping key)."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise several kinds for a file that is not theirs
        raise ModelError(
            f"not a checkpoint of tensors ({type(error).__name__})",
            source=str(path),
            next_step="convert it to .safetensors; files that need unpickling are not loaded",
        ) from error
    for key in ("state_dict", "model", "state_dict_ema"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    return {
        re.sub(r"^(module|model|backbone)\.", "", k): v.numpy() for k, v in state.items() if isinstance(v, torch.Tensor)
    }


def _load(network: torch.nn.Module, tensors: dict[str, NDArray[Any]], source: Path) -> None:
    """Load by name; a classifier's tensors may be left over, but none may be missing."""
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in tensors and not name.endswith("num_batches_tracked")]
    wrong = [name for name in wanted if name in tensors and tuple(tensors[name].shape) != tuple(wanted[name].shape)]
    if missing or wrong:
        raise ModelError(
            f"the checkpoint does not fit: {len(missing)} tensors missing, {len(wrong)} of another shape (first: {(missing + wrong)[0]})",
            source=str(source),
            next_step="name the architecture it was trained with",
        )
    network.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in tensors.items() if k in wanted}, strict=False)


def tensors_of(network: torch.nn.Module) -> dict[str, NDArray[Any]]:
    """The network's weights and buffers by name."""
    return {k: v.detach().cpu().contiguous().numpy() for k, v in network.state_dict().items()}


def _short(architecture: str) -> str:
    """A directory name for an architecture: its last part, plain characters only."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", architecture.rsplit("/", 1)[-1])


def graph_of(backbone: Backbone, size: tuple[int, int], name: str) -> openvino.Model:
    """The network as a graph for crops of that height and width.

    Raises:
        ModelError: it does something that OpenVINO has no rule for.
    """
    import openvino

    sample = torch.zeros((2, *size, 3), dtype=torch.uint8)
    try:
        program = torch.export.export(backbone.cpu().eval(), (sample,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        with warnings.catch_warnings():  # torch copies its own deprecated tree nodes while OpenVINO reads the program
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
            graph = openvino.convert_model(program)
    except Exception as error:  # torch and OpenVINO have kinds of their own for every operator they cannot take
        said = [line for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            f"'{name}' cannot be made a graph for CPUs ({said[-1].strip(' -') if said else type(error).__name__})",
            next_step="choose another backbone of timm",
        ) from error
    graph.reshape([-1, *size, 3])
    graph.outputs[0].get_tensor().set_names({"embedding"})
    return graph


def export(backbone: Backbone, card: ModelCard, folder: Path) -> Path:
    """Write `backbone` as model directory `folder/<card.name>` and check that its graph gives the same vectors.

    Raises:
        ModelError: there is no graph of it (`graph_of`), or its vectors differ from the network's by more than `LEAST_COSINE` allows.
    """
    import openvino

    size = card.preprocessing.height, card.preprocessing.width
    graph = graph_of(backbone, size, card.architecture)
    sample = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8))
    with torch.inference_mode():
        ours = backbone(sample).numpy()
    compiled = openvino.Core().compile_model(graph, "CPU", SINGLE)
    theirs = np.asarray(compiled(sample.numpy())[0])
    cosine = float(((ours * theirs).sum(1) / (np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1))).min())
    if not cosine >= LEAST_COSINE:
        raise ModelError(
            f"the exported graph's vectors differ from the network's (cosine {cosine:.4f})", source=card.name
        )
    return models.write(folder, card, graph, tensors_of(backbone.network))
