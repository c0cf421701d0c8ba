"""``head.safetensors``: a teacher's output matrix with its scaling, written and read in one place.

The bytes are described in FORMAT.md. They are the same every time for the same matrix: safetensors writes the keys of
its header in random order, so the header is rewritten with sorted keys.
"""

import json
from dataclasses import asdict, dataclass

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cache_tools.errors import FormatError
from cache_tools.format import layout
from cache_tools.torch_models.scaling import Scaling

LENGTH_BYTES = 8
"""Of a safetensors file: the length of its header, before the header."""


@dataclass(frozen=True)
class StoredHead:
    """A linear head.

    Attributes:
        weight: (V, D), any floating type.
        bias: (V,), or None.
        scaling: From products to logits.
    """

    weight: Tensor
    bias: Tensor | None
    scaling: Scaling


def head_bytes(head: StoredHead) -> bytes:
    """Return the content of ``head.safetensors``; the same bytes every time."""
    tensors = {"weight": head.weight.cpu().contiguous().clone()}
    if head.bias is not None:
        tensors["bias"] = head.bias.cpu().contiguous().clone()
    content = save(
        tensors, metadata={name: repr(value) if value else "" for name, value in asdict(head.scaling).items()}
    )
    start, stop = LENGTH_BYTES, LENGTH_BYTES + _header_bytes(content)
    header = json.dumps(json.loads(content[start:stop]), sort_keys=True, separators=(",", ":")).encode()
    return content[:start] + header.ljust(stop - start) + content[stop:]


def read_head(content: bytes) -> StoredHead:
    """Parse the content of ``head.safetensors``.

    Raises:
        FormatError: It does not hold an output matrix.
    """
    try:
        tensors = load(content)
        metadata = json.loads(content[LENGTH_BYTES : LENGTH_BYTES + _header_bytes(content)]).get("__metadata__", {})
        scaling = Scaling(float(metadata.get("logit_scale") or 1.0), float(metadata.get("softcap") or 0.0))
        head = StoredHead(tensors["weight"], tensors.get("bias"), scaling)
        if head.weight.ndim != 2 or (head.bias is not None and head.bias.shape != head.weight.shape[:1]):
            raise ValueError(f"a weight of shape {tuple(head.weight.shape)} and the bias do not fit")
    except (SafetensorError, ValueError, KeyError) as error:
        raise FormatError("this is not the output matrix of a teacher", where=layout.HEAD, found=error) from error
    return head


def _header_bytes(content: bytes) -> int:
    return int.from_bytes(content[:LENGTH_BYTES], "little")
