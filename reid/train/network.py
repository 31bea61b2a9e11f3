"""A timm backbone with the pooling and the neck that a recipe asks for: normalised pixels in, one vector out.

    maps → pooling → [batch norm] → dropout → projection → [activation] → batch norm whose shift stays zero (the neck)

Poolings: `avg`; `gem`, the generalised mean (Radenović et al. 2018, TPAMI); `max`; `max_avg`, both side by side;
`last_two`, GeM of the last two maps; `all_stages`, means of the last four; `inner`, roots of the means of lite0's inner
maps (`reid.lite0`); `stripes`, GeM of upright strips of the map, each with a projection of its own, side by side (Sun et
al. 2018, ECCV, part-based). All but these two can be pooled in each cell of a grid over the map, side by side: where
animals lie alike in their boxes, a place says much.

With `both`, what serves is that vector and the mirrored photo's, side by side: a cosine is then the mean of those of
the upright and of the mirrored photos, and upright is never compared with mirrored, as averaged vectors are.

Knows tensors; what is learnt from them is the business of `reid.train.losses`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from reid import lite0, weights
from reid.errors import ModelError
from reid.train import lite0_maps
from reid.train.recipe import NetworkConfig
from reid.train.torchvision_ops import import_timm

Size = tuple[int, int]  # height, width
_LITE0 = "tf_efficientnet_lite0"
_INNER = lite0.MAPS["inner"]
_LEAST = 1e-6  # mean of a channel below which it counts as that


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """`whole (B, D)` is the vector; `parts` are its strips `(B, D/S)` (the vector alone where there are none); `rows
    (B, R, L)` unit vectors of the map's rows, for the aligned distance (None where not asked for).
    """

    whole: torch.Tensor
    parts: tuple[torch.Tensor, ...]
    rows: torch.Tensor | None = None


class Network(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """`(B, 3, H, W) float32 normalised → (B, served) float32`, not of unit length. What is taught is `embed`."""

    def __init__(
        self, backbone: torch.nn.Module, config: NetworkConfig, *, grey: bool = False, size: Size | None = None
    ) -> None:
        """`grey` takes the colours off whatever comes in; `size` is the photos' height and width, where it is known."""
        super().__init__()
        self.backbone, self.config, self.grey = backbone, config, grey
        widths = [int(stage["num_chs"]) for stage in backbone.feature_info]
        self.whole = not config.levels and _gives_a_map(backbone, size)
        last = int(backbone.num_features) if self.whole else widths[-1]
        if config.levels:
            widths = widths[: config.levels]
            last = widths[-1]
            backbone.prune_intermediate_layers([config.levels - 1], prune_norm=True, prune_head=True)
        if config.pooling == "inner":
            _inner_of(config)
            lite0_maps.prune(backbone, _INNER)
        before = {"last_two": 1, "all_stages": 3}.get(config.pooling, 0)
        self.stages = list(range(len(widths) - 1 - before, len(widths) - 1))
        self.cells = (1, 1) if config.pooling == "stripes" else (config.rows, config.columns)
        wide = {
            "max_avg": 2 * last, "last_two": sum(widths[-2:-1]) + last, "all_stages": sum(widths[-4:-1]) + last,
            "inner": lite0.POOLINGS["inner"],
        }.get(config.pooling, last) * self.cells[0] * self.cells[1]  # fmt: skip
        self.power = torch.nn.Parameter(torch.tensor(config.gem), requires_grad=config.learn_gem)
        self.n_parts = config.stripes if config.pooling == "stripes" else 1
        self.dim = config.dim or wide
        if self.dim % self.n_parts:
            raise ModelError(f"{self.dim} numbers cannot be shared by {self.n_parts} stripes")
        self.first = torch.nn.ModuleList(
            torch.nn.BatchNorm1d(wide) if config.norm_first else torch.nn.Identity() for _ in range(self.n_parts)
        )
        self.dropout = torch.nn.Dropout(config.dropout)
        each = self.dim // self.n_parts
        self.projections = torch.nn.ModuleList(
            torch.nn.Linear(wide, each) if config.dim else torch.nn.Identity() for _ in range(self.n_parts)
        )
        act = {"relu": torch.nn.ReLU, "celu": torch.nn.CELU, "none": torch.nn.Identity}[config.act]
        self.act = act()
        self.necks = torch.nn.ModuleList(
            _neck(each) if config.neck else torch.nn.Identity() for _ in range(self.n_parts)
        )
        self.local = torch.nn.Linear(last, config.local) if config.local else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The vector that serves, `(B, served)`; see the class."""
        whole = self.embed(x).whole
        if not self.config.both:
            return whole
        return torch.cat([functional.normalize(one, dim=1) for one in (whole, self.embed(x.flip(3)).whole)], 1)

    @property
    def served(self) -> int:
        """Numbers of the vector that serves."""
        return self.dim * (2 if self.config.both else 1)

    def embed(self, x: torch.Tensor) -> Embedded:
        """The vector, and what only training needs."""
        return self.embed_maps(self.maps(x))

    def embed_maps(self, maps: list[torch.Tensor]) -> Embedded:
        """As `embed`, from what `maps` gave."""
        parts = tuple(self.head(pooled, number) for number, pooled in enumerate(self.pooled(maps)))
        rows = None
        if self.local is not None:
            rows = functional.normalize(self.local(maps[-1].mean(3).transpose(1, 2)), dim=2)
        return Embedded(torch.cat(parts, 1), parts, rows)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The maps `(B, C, h, w)` that are pooled, the last one last (of `inner` as `reid.lite0` has them)."""
        if self.grey:
            luma = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
            x = (x * luma).sum(1, keepdim=True).expand(-1, 3, -1, -1)
        if self.config.pooling == "inner":
            return lite0_maps.expanded(self.backbone, x, _INNER)
        if not self.whole:
            levels = [*self.stages, (self.config.levels or len(self.backbone.feature_info)) - 1]
            cut: list[torch.Tensor] = self.backbone.forward_intermediates(
                x, indices=levels, norm=not self.config.levels, intermediates_only=True
            )
            return cut
        if not self.stages:
            return [self.backbone.forward_features(x)]
        last, inner = self.backbone.forward_intermediates(x, indices=self.stages)
        return [*inner, last]

    def pooled(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """One `(B, C)` for each part of the network."""
        last, kind = maps[-1], self.config.pooling
        if kind == "inner":
            return [torch.cat([lite0_maps.root(one, _LEAST) for one in maps], 1)]
        if kind == "stripes":
            return [self._gem(strip).flatten(1) for strip in _strips(last, self.n_parts)]
        if kind in ("gem", "last_two"):
            return [torch.cat([self._gem(one).flatten(1) for one in maps], 1)]
        found = [functional.adaptive_avg_pool2d(one, self.cells) for one in maps]
        if kind in ("max", "max_avg"):
            found = [functional.adaptive_max_pool2d(last, self.cells), *(found if kind == "max_avg" else [])]
        return [torch.cat([one.flatten(1) for one in found], 1)]

    def head(self, pooled: torch.Tensor, part: int = 0) -> torch.Tensor:
        """From what was pooled to the vector of that part."""
        x = self.dropout(self.first[part](pooled))
        out: torch.Tensor = self.necks[part](self.act(self.projections[part](x)))
        return out

    def _gem(self, maps: torch.Tensor) -> torch.Tensor:
        """Generalised mean over the places of each cell of `(B, C, h, w)`; inputs below 10⁻⁶ count as that. In single
        precision always: the cube of 10⁻⁶ is 0 in float16, and the slope of a cube root there has no end.
        """
        power = self.power if self.config.learn_gem else self.config.gem
        return functional.adaptive_avg_pool2d(maps.float().clamp_min(1e-6).pow(power), self.cells).pow(1 / power)

    def check(self, size: Size | None) -> None:
        """Raises ModelError where photos of that size give no maps of the expected widths."""
        name = self.config.backbone
        try:
            found = _tried(self.backbone, self.maps, size)
        except Exception as error:  # a network that cannot, says so in its own way
            raise _no_maps(name, size, error) from error
        widths = [int(stage["num_chs"]) for stage in self.backbone.feature_info]
        wanted = [*(widths[stage] for stage in self.stages), widths[(self.config.levels or len(widths)) - 1]]
        shapes = [tuple(one.shape) for one in found]
        if [shape[1:2] for shape in shapes] != [(one,) for one in wanted] or any(len(shape) != 4 for shape in shapes):
            raise _no_maps(name, size, f"but {', '.join(map(str, shapes))}")

    def groups(self) -> list[list[str]]:
        """Names of the backbone's parameters, stage by stage."""
        from timm.models import group_parameters

        found = group_parameters(self.backbone, self.backbone.group_matcher(coarse=True))
        return [found[number] for number in sorted(found)]


def _inner_of(config: NetworkConfig) -> None:
    """Raises ModelError where a network has no such maps, or something else is asked of them."""
    if config.backbone != _LITE0:
        raise ModelError(
            f"no pooling 'inner' for '{config.backbone}'",
            next_step=f'choose another pooling under [network], or backbone = "{_LITE0}"',
        )


def _neck(width: int) -> torch.nn.BatchNorm1d:
    """A batch norm whose shift stays zero (Luo et al. 2019, CVPRW)."""
    neck = torch.nn.BatchNorm1d(width)
    neck.bias.requires_grad_(False)
    return neck


def _strips(maps: torch.Tensor, n: int) -> list[torch.Tensor]:
    """`n` upright strips of `(B, C, h, w)`, overlapping where the width is no multiple of `n`."""
    width = int(maps.shape[3])
    bounds = [(width * i // n, max(-(-width * (i + 1) // n), width * i // n + 1)) for i in range(n)]
    return [maps[:, :, :, low:high] for low, high in bounds]


def build(
    config: NetworkConfig, *, grey: bool = False, pretrained: bool = True, size: Size | None = None
) -> tuple[Network, tuple[Any, Any]]:
    """A network as `config` says, and the (mean, std) in pixel units (0–255) that its inputs are normalised by.

    ImageNet weights of lite0 come from its package; those of other backbones from timm's hub or its cache. A backbone
    whose weights belong to one size of photo, as most transformers' do, is brought to `size` (height, width).

    Raises:
        ModelError: no such backbone, its weights cannot be had, or it gives no maps of photos of that size to pool.
    """
    from reid.train import backbone

    timm = import_timm()
    if pretrained and config.backbone != _LITE0:
        kept, _ = backbone.from_name(config.backbone)
        network = kept.network
    else:
        try:
            network = timm.create_model(config.backbone, pretrained=False, num_classes=0)
        except RuntimeError as error:
            raise ModelError(f"no backbone '{config.backbone}'", next_step="timm.list_models() lists them") from error
    if pretrained and config.backbone == _LITE0:
        published = weights.read_tensors(lite0.weight_file())
        tensors = [tensor for name, tensor in published.items() if not name.startswith("_fc.")]
        network.load_state_dict(
            {name: torch.from_numpy(np.array(t)) for name, t in zip(network.state_dict(), tensors, strict=True)}
        )
    if not hasattr(network, "forward_intermediates") or not hasattr(network, "feature_info"):
        raise _no_maps(config.backbone, None, "it has no levels that can be asked for")
    if config.levels > len(network.feature_info):
        raise ModelError(
            f"'{config.backbone}' has {len(network.feature_info)} levels, not {config.levels}",
            next_step="choose fewer levels under [network], or 0 for all of them",
        )
    data = timm.data.resolve_model_data_config(network)
    mean, std = (tuple(255.0 * float(v) for v in data[key]) for key in ("mean", "std"))
    if size is not None and one_size(network):
        try:
            _set_size(network, size)
        except Exception as error:  # timm's own kinds differ from network to network
            raise _no_maps(config.backbone, size, error) from error
    made = Network(network, config, grey=grey, size=size)
    if not made.whole:
        made.check(size)
    return made, (mean, std)


def one_size(backbone: torch.nn.Module) -> bool:
    """Whether a backbone is made for photos of one size, though it can be made anew for another."""
    return hasattr(backbone, "set_input_size")


def _set_size(backbone: Any, size: Size) -> None:
    """A backbone for photos of that size and no other. One that would fit itself to each photo is held to this size: how
    it stretches its positions at every call cannot be exported.
    """
    with warnings.catch_warnings():  # timm stretches tables of positions by functions that warn of their own callers
        warnings.simplefilter("ignore")
        backbone.set_input_size(img_size=size)
    if getattr(backbone, "dynamic_img_size", False):
        backbone.dynamic_img_size = False
        backbone.patch_embed.flatten = True


def _gives_a_map(backbone: Any, size: Size | None) -> bool:
    """Whether what the backbone gives of itself is a map (B, C, h, w), as convolutions do; transformers give tokens, and
    some the channels last.
    """
    try:
        found = _tried(backbone, backbone.forward_features, size)
    except Exception:  # what is wrong with it is said by `Network.check`
        return False
    return isinstance(found, torch.Tensor) and found.ndim == 4 and found.shape[1] == backbone.num_features


def _tried(backbone: Any, call: Callable[[torch.Tensor], Any], size: Size | None) -> Any:
    """What `call` makes of one photo of that size, or of the backbone's own."""
    shape = tuple(size or backbone.pretrained_cfg["input_size"][1:])
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        found = call(torch.zeros(1, 3, *shape))
    backbone.train(training)
    return found


def _no_maps(name: str, size: Size | None, why: object) -> ModelError:
    photos = f"photos of {size[1]}×{size[0]} pixels" if size else "photos"
    return ModelError(
        f"'{name}' gives no maps of {photos} ({str(why).splitlines()[0] if str(why) else type(why).__name__})",
        next_step="choose [input] height and width that its patches divide, or another backbone of timm under [network]",
    )


def start_whitened(network: Network, pooled: list[NDArray[np.float32]]) -> None:
    """Begin with a projection that whitens what is pooled now, `(N, C)` for each part, and set the neck's statistics.

    A random projection of ImageNet features is no better than the features; the whitened ones find much more, and all
    that training adds comes on top (docs/experiments/recipes.md).
    """
    from reid.train.heads import whitening

    with torch.no_grad():
        for part, (projection, rows) in enumerate(zip(network.projections, pooled, strict=True)):
            out = rows
            if isinstance(projection, torch.nn.Linear):
                layer = whitening(rows, projection.out_features, shrink=0.5)
                n = len(layer.bias)
                torch.nn.init.orthogonal_(projection.weight)
                projection.weight.mul_(1e-3)
                projection.bias.zero_()
                projection.weight[:n] = torch.from_numpy(layer.matrix)
                projection.bias[:n] = torch.from_numpy(layer.bias)
                out = rows @ projection.weight.numpy().T + projection.bias.numpy()
            neck = network.necks[part]
            if isinstance(neck, torch.nn.BatchNorm1d):
                out = network.act(torch.from_numpy(np.asarray(out, np.float32))).numpy()
                neck.running_mean.copy_(torch.from_numpy(out.mean(0)))
                neck.running_var.copy_(torch.from_numpy(out.var(0)))
