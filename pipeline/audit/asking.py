"""Which engine an audit asks, where that is not the one of the capture file: ``audit --engine``.

A capture is trusted most if something else computes the same: transformers for an engine's rows, an engine for rows of
transformers. The choice becomes assignments to the capture file, as ``--set`` makes them, so every rule of that file
holds, and ``--set`` can add options of the engine.
"""

import json
from pathlib import Path

from cache_tools.comparison.rounding import TRANSFORMERS
from cache_tools.yaml_file import read_file


def engine_assignments(path: Path, engine: str) -> tuple[str, ...]:
    """Return the assignments that let an engine read every teacher of a capture file.

    An engine that the file names already keeps its options.

    Args:
        path: The capture file.
        engine: The Python of an environment with vLLM, or ``transformers``.

    Raises:
        ConfigError: the file cannot be read.
    """
    content = read_file(path)
    blocks = content.get("teachers") if isinstance(content, dict) else None
    if not isinstance(blocks, list):  # refused when the file is checked
        return ()
    return tuple(f"teachers.{number}.engine{_value(block, engine)}" for number, block in enumerate(blocks))


def _value(block: object, engine: str) -> str:
    if engine == TRANSFORMERS:
        return "=null"
    stated = block.get("engine") if isinstance(block, dict) else None
    if isinstance(stated, dict) and stated.get("kind") == "vllm":
        return f".python={json.dumps(engine)}"
    return f"={json.dumps({'kind': 'vllm', 'python': engine})}"
