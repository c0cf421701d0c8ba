"""Files that ``torch.load`` reads, written without torch, always as the same bytes.

``torch.save`` writes a zip archive of uncompressed members: ``data.pkl``, a pickle in which each tensor is a call of
torch's rebuilding function with a reference to a storage, and one member with the bytes of each storage, aligned so
that they can be mapped into memory. The pickle's few instructions are written here one by one. Rejected: importing
torch, which the store must not need, for a format that is forty lines.

Nothing here reads such a file: a pickle can run code.
"""

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT, ALIGNMENT = "archive", 64
LOCAL_HEADER_BYTES, EXTRA_HEADER_BYTES = 30, 4
STORAGES = {"bfloat16": "BFloat16Storage", "float32": "FloatStorage", "int64": "LongStorage"}
"""Torch's storage of each type."""


@dataclass(frozen=True)
class TorchTensor:
    """A tensor to be written.

    Attributes:
        type: A key of STORAGES.
        values: Its numbers in row-major order; of bfloat16 their bits, uint16.
    """

    type: str
    values: NDArray[Any]


def tensors_file(tensors: Mapping[str, TorchTensor]) -> bytes:
    """Return the file of a dictionary of tensors by name."""
    items = [_text(name) + _tensor(str(number), tensor) for number, (name, tensor) in enumerate(tensors.items())]
    contents = {f"data/{number}": tensor.values.tobytes() for number, tensor in enumerate(tensors.values())}
    return _archive(_dictionary(items), contents)


def integers_file(numbers: Mapping[int, int]) -> bytes:
    """Return the file of a dictionary of integers."""
    return _archive(_dictionary([_integer(key) + _integer(value) for key, value in numbers.items()]), {})


def _archive(pickle: bytes, storages: Mapping[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {"data.pkl": pickle, "byteorder": b"little", **storages, "version": b"3\n"}.items():
            member = zipfile.ZipInfo(f"{ROOT}/{name}")  # dated 1980, so that the bytes do not depend on the day
            start = sink.tell() + LOCAL_HEADER_BYTES + len(member.filename) + EXTRA_HEADER_BYTES
            padding = -start % ALIGNMENT
            member.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            archive.writestr(member, content)
    return sink.getvalue()


def _dictionary(items: list[bytes]) -> bytes:
    """Return a pickle (protocol 2) of a dictionary, from the instructions that push each key and value."""
    return b"\x80\x02}(" + b"".join(items) + b"u."


def _tensor(key: str, tensor: TorchTensor) -> bytes:
    shape = tensor.values.shape
    strides = [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]
    storage = _text("storage") + _global("torch", STORAGES[tensor.type]) + _text(key) + _text("cpu")
    reference = b"(" + storage + _integer(tensor.values.size) + b"tQ"
    no_hooks = _global("collections", "OrderedDict") + b")R"
    arguments = reference + _integer(0) + _integers(shape) + _integers(strides) + b"\x89" + no_hooks
    return _global("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    content = text.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def _integer(number: int) -> bytes:
    content = number.to_bytes(8, "little", signed=True)
    return b"\x8a\x08" + content


def _integers(numbers: Any) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"
