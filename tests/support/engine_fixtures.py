"""A Python in whose environment a stand-in of vLLM is installed."""

import sys
from pathlib import Path
from typing import Any

PACKAGES = Path(__file__).parent / "fake_engine"


def engine_python(folder: Path) -> Path:
    """Return an executable like a virtual environment's Python, which imports the stand-in."""
    path = folder / "engine-python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{PACKAGES}" exec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return path


def by_engine(values: dict[str, Any], python: Path, **changes: Any) -> dict[str, Any]:
    """Return a capture file whose only teacher is read by the engine; changes go into the teacher's block."""
    (block,) = values["teachers"]
    return values | {"teachers": [block | {"engine": {"kind": "vllm", "python": str(python)}} | changes]}
