"""Read the float32 weights of a BERT encoder from an ONNX file, under the names that transformers gives them.

An ONNX file is a protocol buffer, of which few fields matter here: ModelProto 7 is the graph; GraphProto 1 are nodes
and 5 initializers, which are the weights; NodeProto 1 are names of inputs, 3 its own name and 4 its kind; TensorProto 1
are dimensions, 2 the type (1 is float32), 8 the name and 9 the numbers in little-endian order. A file is read as data;
nothing in it is run. Rejected: the package ``onnx``, a dependency for one file.

Embeddings, biases and layer norms keep their names. Exporting has transposed the matrices of ``nn.Linear`` and named
them anew, so each takes its name from the MatMul node that multiplies with it:
``/…/encoder/layer.0/attention/self/query/MatMul`` is ``encoder.layer.0.attention.self.query.weight``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import FormatError

FLOAT32 = 1
MATRIX = "/MatMul"


class Node(NamedTuple):
    """An operation of the graph."""

    kind: str
    name: str
    inputs: list[str]


def read_weights(path: Path, roots: tuple[str, ...] = ("embeddings.", "encoder.")) -> dict[str, NDArray[np.float32]]:
    """Return the weights of an encoder by name.

    Args:
        path: The ONNX file.
        roots: What the names begin with, after the names of the modules around the encoder.

    Raises:
        FormatError: The file is no ONNX model, or its weights are not float32.
    """
    try:
        (graph,) = (value for field, value in fields(memoryview(path.read_bytes())) if field == 7)
        assert isinstance(graph, memoryview)
        parts = list(fields(graph))
        tensors = dict(tensor(value) for field, value in parts if field == 5 and isinstance(value, memoryview))
        nodes = [node(value) for field, value in parts if field == 1 and isinstance(value, memoryview)]
    except (IndexError, ValueError, AssertionError) as error:
        raise FormatError("this is not an ONNX model with float32 weights", where=path, found=str(error)) from error
    names = {name: name for name in tensors}
    transposed = {}
    for operation in nodes:
        for matrix in (name for name in operation.inputs if name in tensors and operation.kind == "MatMul"):
            names[matrix] = operation.name.removesuffix(MATRIX).replace("/", ".") + ".weight"
            transposed[matrix] = np.ascontiguousarray(tensors[matrix].T)
    weights = {below(names[name], roots): transposed.get(name, values) for name, values in tensors.items()}
    named = {name: values for name, values in weights.items() if name}
    if not named or any(not values.size for values in named.values()):
        raise FormatError("this ONNX model holds no encoder with float32 weights", where=path)
    return named


def below(name: str, roots: tuple[str, ...]) -> str:
    """Return a name from one of the roots on, or nothing."""
    starts = [name.find(root) for root in roots if f".{name}".find(f".{root}") >= 0]
    return name[min(starts) :] if starts else ""


def node(content: memoryview) -> Node:
    """Return an operation."""
    values = list(fields(content))
    (kind,) = (text(value) for field, value in values if field == 4)
    name = "".join(text(value) for field, value in values if field == 3)
    return Node(kind, name, [text(value) for field, value in values if field == 1])


def tensor(content: memoryview) -> tuple[str, NDArray[np.float32]]:
    """Return a weight and its name; one that is not float32 is an empty array."""
    dims: list[int] = []
    name, kind, numbers = "", 0, memoryview(b"")
    for field, value in fields(content):
        if field == 1:
            dims += [value] if isinstance(value, int) else list(varints(value))
        elif field == 2 and isinstance(value, int):
            kind = value
        elif field == 8:
            name = text(value)
        elif field == 9 and isinstance(value, memoryview):
            numbers = value
    if kind != FLOAT32:
        return name, np.zeros(0, np.float32)
    return name, np.frombuffer(numbers, "<f4").reshape(dims).astype(np.float32)


def text(value: int | memoryview) -> str:
    """Return a field as text."""
    assert isinstance(value, memoryview)
    return bytes(value).decode()


def fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field of a message."""
    place = 0
    while place < len(content):
        key, place = varint(content, place)
        field, wire = key >> 3, key & 7
        if wire == 0:
            value, place = varint(content, place)
            yield field, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if size is None:
            if wire != 2:
                raise ValueError(f"a field of the wire type {wire}")
            size, place = varint(content, place)
        if place + size > len(content):
            raise ValueError("a field that ends after the file")
        yield field, content[place : place + size]
        place += size


def varint(content: memoryview, place: int) -> tuple[int, int]:
    """Return the whole number at a place, seven bits to a byte, and the place after it."""
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise ValueError("a whole number of more than 64 bits")


def varints(content: memoryview) -> Iterator[int]:
    """Yield packed whole numbers."""
    place = 0
    while place < len(content):
        value, place = varint(content, place)
        yield value
