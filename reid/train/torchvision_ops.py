"""Import timm where torchvision's compiled operators are missing.

A torchvision built for CUDA beside a torch built for CPUs cannot load its compiled operators, and then fails on import
because it refers to two of them, `nms` and `qnms` (non-maximum suppression), which nothing here calls. Declaring their
names is enough. With a matching pair of builds the import just works and nothing is declared.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_SYMPTOM = "torchvision::nms does not exist"
_declared: list[Any] = []  # a library's declarations last as long as the object


def import_timm() -> ModuleType:
    """The `timm` module."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if _SYMPTOM not in str(error):
            raise
        _declare()
    return importlib.import_module("timm")


def _declare() -> None:
    """Name the two operators, forget the half-imported package, and import it again."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    importlib.import_module("torchvision")
