"""Single tensors of safetensors files in numpy, which has no bfloat16: a tensor keeps its bits until rows are widened.

A file is eight bytes with the length of a JSON header, the header, and the tensors' bytes. Only the header and the
tensors that are asked for are read. Rejected: the library's numpy interface, which refuses bfloat16.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import FormatError
from cache_tools.hidden_codecs.bfloat16 import from_bfloat16
from cache_tools.limits import DOCUMENT_BYTES
from cache_tools.mappings import JsonObject
from cache_tools.models.files import listed_weight_files
from cache_tools.regular_files import open_regular

LENGTH_BYTES = 8
"""Length of the header, before the header."""

TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
"""Types of safetensors that hold weights, as they are read; of bfloat16 the bits."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it is stored.

    Attributes:
        type: Its type in safetensors, a key of TYPES.
        values: Its numbers; of bfloat16 their bits, uint16.
    """

    type: str
    values: NDArray[Any]

    def rows(self, index: Any = slice(None)) -> NDArray[np.float32]:
        """Return some rows as float32."""
        selected_values = self.values[index]
        return from_bfloat16(selected_values) if self.type == "BF16" else selected_values.astype(np.float32)


@dataclass(frozen=True)
class TensorEntry:
    """What the header of a file says of a tensor.

    Attributes:
        dtype: Its type, as safetensors spells it, such as ``BF16`` or ``I8``.
        shape: Its shape.
        bytes: Its size.
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: int


def tensor_entries(folder: Path) -> dict[str, TensorEntry]:
    """Return every tensor of the weight files that transformers would read, by name; no weight is read.

    Raises:
        FormatError: a file is damaged.
        ModelError: the index of the files cannot be read.
    """
    files = [path for path in listed_weight_files(folder) if path.is_file()]
    return {name: _entry(entry, name, path) for path in files for name, entry in _entries(path)}


def _entries(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    header, _ = _header_of(path)
    yield from ((name, entry) for name, entry in header.items() if name != "__metadata__")


def _entry(entry: Mapping[str, Any], name: str, path: Path) -> TensorEntry:
    try:
        first, stop = (int(offset) for offset in entry["data_offsets"])
        return TensorEntry(str(entry["dtype"]), tuple(int(size) for size in entry["shape"]), max(0, stop - first))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"the tensor {name} cannot be read", where=path, found=error) from error


def tensors_of(content: bytes, where: object) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return the tensors of a file's content by name, without copying them, and the metadata of its header.

    Raises:
        FormatError: it is not safetensors, or a tensor has a type that holds no weights.
    """
    header, start = _header(content[:LENGTH_BYTES], content[LENGTH_BYTES:], where)
    metadata = header.pop("__metadata__", {})
    return {name: _tensor(entry, content[start:], name, where) for name, entry in header.items()}, metadata


def find_tensor(folder: Path, names: Iterable[str]) -> StoredTensor | None:
    """Return the first of some tensors that the safetensors files of a folder hold; None if they hold none of them.

    Raises:
        FormatError: a file is damaged, or the tensor has a type that holds no weights.
    """
    headers = [(path, *_header_of(path)) for path in sorted(folder.glob("*.safetensors"))]
    for name in names:
        for path, header, start in headers:
            if name in header:
                return _read_tensor(path, header[name], start, name)
    return None


def _header_of(path: Path) -> tuple[JsonObject, int]:
    with open_regular(path) as (file, _):
        beginning = file.read(LENGTH_BYTES)
        return _header(beginning, file.read(min(int.from_bytes(beginning, "little"), DOCUMENT_BYTES)), path)


def _header(beginning: bytes, following: bytes, where: object) -> tuple[JsonObject, int]:
    """Return a parsed header, and where the tensors' bytes begin."""
    length = int.from_bytes(beginning, "little")
    try:
        if length > min(len(following), DOCUMENT_BYTES):
            raise ValueError(f"a header of {length:,} bytes")
        header = json.loads(following[:length])
        if not isinstance(header, dict):
            raise ValueError("a header that is no object")
    except (ValueError, RecursionError) as error:
        raise FormatError("this is not a safetensors file", where=where, found=error) from error
    return header, LENGTH_BYTES + length


def _read_tensor(path: Path, entry: Mapping[str, Any], start: int, name: str) -> StoredTensor:
    with open_regular(path) as (file, size):
        try:
            first, stop = (int(offset) for offset in entry["data_offsets"])
            if not 0 <= first <= stop <= size - start:
                raise ValueError("offsets outside the file")
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"the tensor {name} cannot be read", where=path, found=error) from error
        file.seek(start + first)
        return _tensor({**entry, "data_offsets": [0, stop - first]}, file.read(stop - first), name, path)


def _tensor(entry: Mapping[str, Any], data: bytes, name: str, where: object) -> StoredTensor:
    try:
        kind, shape = TYPES[entry["dtype"]], tuple(int(size) for size in entry["shape"])
        first, stop = (int(offset) for offset in entry["data_offsets"])
        if stop - first != math.prod(shape) * np.dtype(kind).itemsize:
            raise ValueError(f"{stop - first} bytes for a shape of {shape}")
        values = np.frombuffer(data, kind, math.prod(shape), first).reshape(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"the tensor {name} cannot be read", where=where, found=error) from error
    return StoredTensor(entry["dtype"], values)
