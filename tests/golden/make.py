"""Write the golden caches: ``PYTHONPATH=.:tests/support python tests/golden/make.py``.

Each was written once, by the first version of format 1 that had its codec, and is never written again: every
later version must read it to the same values. This script says how, and writes those that are missing.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from kinds import MADE, decoded, make

FOLDER = Path(__file__).parent
PREFIX = "format1-"


def write(name: str) -> None:
    """Write one golden cache of two shards and what a reader finds in it."""
    with tempfile.TemporaryDirectory() as folder:
        tiny = make(name, Path(folder), shards=2)
        target = FOLDER / f"{PREFIX}{name}"
        shutil.copytree(tiny.path, target)
        np.savez_compressed(FOLDER / f"{PREFIX}{name}.npz", **decoded(tiny))


if __name__ == "__main__":
    for kind in MADE:
        if not (FOLDER / f"{PREFIX}{kind}").exists():
            write(kind)
