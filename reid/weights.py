"""Tensors out of a published torch weight file, without torch and without unpickling.

The default embedder's weights are published as a torch file of the 2016 layout: five pickles one after another (magic,
protocol, machine facts, the tensors' table, the storages' keys), then each storage as an int64 count and its raw
little-endian items. Unpickling runs whatever the file says, so nothing here does: the opcodes are *listed*
(`pickletools.genops` never executes) and the few that build a table of tensors are followed symbolically, a call
becoming a tuple. Any other opcode is refused.

Knows bytes and arrays; no models, no graphs.
"""

from __future__ import annotations

import pickletools
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from reid.errors import ModelError

_MAGIC = 0x1950A86A20F9469CFC6C
_ITEM = {"FloatStorage": "<f4", "LongStorage": "<i8", "HalfStorage": "<f2", "DoubleStorage": "<f8", "IntStorage": "<i4"}
_MARK = object()
_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Every tensor of a legacy torch state dict at `path`, by name in file order; arrays are copies.

    Raises:
        ModelError: the file is not of that layout, or holds anything beyond a table of plain tensors.
    """
    try:
        with open(path, "rb") as file:
            if _follow(file) != _MAGIC:
                raise ModelError("not a torch weight file of the expected layout", source=str(path))
            _follow(file), _follow(file)
            table, keys = _follow(file), _follow(file)
            kinds = dict(_storages(table))
            data = {key: _storage(file, kinds[key]) for key in keys}
    except (OSError, ValueError, KeyError, IndexError, struct.error) as error:
        raise ModelError(
            f"unreadable weight file ({error})", source=str(path), next_step="reinstall the package it comes from"
        ) from error
    return {name: _tensor(value, data) for name, value in table.items()}


def _follow(file: BinaryIO) -> Any:
    """Follow one pickle's opcodes to its value, a call staying the tuple `("call", callee, arguments)`."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in _CONSTANT:
            stack.append(_CONSTANT[name])
        elif name in ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE"):
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[int(str(argument))] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(str(argument))])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"):
            stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[name])
        elif name == "GLOBAL":
            stack.append(str(argument))
        elif name == "TUPLE":
            stack.append(tuple(_since_mark(stack)))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "APPENDS":
            items = _since_mark(stack)
            stack[-1].extend(items)
        elif name == "SETITEMS":
            items = _since_mark(stack)
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name == "BINPERSID":
            stack.append(("storage", stack.pop()))
        elif name == "REDUCE":
            arguments, callee = stack.pop(), stack.pop()
            stack.append({} if callee == "collections OrderedDict" else ("call", callee, arguments))
        elif name == "BUILD":
            stack.pop()  # attributes of the ordered dict (format versions): not tensors
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise ValueError(f"opcode {name} does not belong in a table of tensors")
    raise ValueError("the file ends early")


def _since_mark(stack: list[Any]) -> list[Any]:
    """Pop everything above the last mark, and the mark."""
    at = len(stack) - 1 - stack[::-1].index(_MARK)
    items = stack[at + 1 :]
    del stack[at:]
    return items


def _storages(table: dict[str, Any]) -> list[tuple[str, str]]:
    """`(key, item dtype)` of every storage that a tensor of the table points to."""
    found = []
    for value in table.values():
        _, callee, arguments = value
        if callee != "torch._utils _rebuild_tensor_v2":
            raise ValueError(f"{callee} is not a plain tensor")
        _, (_, kind, key, _, _, _) = arguments[0]
        found.append((key, _ITEM[kind.removeprefix("torch ")]))
    return found


def _storage(file: BinaryIO, dtype: str) -> NDArray[Any]:
    (count,) = struct.unpack("<q", file.read(8))
    size = count * np.dtype(dtype).itemsize
    raw = file.read(size) if 0 <= size < 1 << 32 else b""
    if len(raw) != size:
        raise ValueError("a storage is cut short")
    return np.frombuffer(raw, dtype)


def _tensor(value: Any, data: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """The array of one table entry: a view of its storage by offset, shape and strides (in items), copied to C order.

    Some of the published convolutions are stored channels-last, so the strides must be followed.
    """
    (_, (_, _, key, _, _, _)), offset, shape, strides = value[2][:4]
    storage = data[key][offset:]
    reach = sum((size - 1) * step for size, step in zip(shape, strides, strict=True)) + 1
    if reach > len(storage) or min((*shape, *strides, 0)) < 0:
        raise ModelError("a tensor reaches beyond its storage")
    view = np.lib.stride_tricks.as_strided(
        storage, shape, [step * storage.itemsize for step in strides], writeable=False
    )
    return np.array(view, order="C")
