"""The weight files in a model folder, and one hash that identifies the model.

The hash covers every weight file and the configuration: two revisions under one name have different hashes, a copy
under another path has the same. It costs one reading of the files, about a minute per 100 GB from a fast disk.
Rejected: names, sizes and dates, which cost nothing; further training keeps the first two, and copying changes the
third.
"""

import hashlib
import json
import re
from pathlib import Path
from textwrap import shorten

from cache_tools.errors import ModelError
from cache_tools.storage import file_sha256

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
"""The files that transformers looks for: one of weights, or the list of several."""

GGUF = ".gguf"
"""Ending of a file that holds weights, configuration and tokenizer of a quantised model."""


def is_gguf(source: str | Path) -> bool:
    """Say whether a model is named by a GGUF file, and not by its folder or hub id."""
    return Path(source).suffix == GGUF


def weight_files(folder: Path) -> list[Path]:
    """Return a model folder's weight files; of a GGUF file, the file itself.

    Raises:
        ModelError: there are no weight files that can be read safely.
    """
    if is_gguf(folder):
        if not folder.is_file():
            raise ModelError("there is no such GGUF file", where=folder, fix="Check gguf_file and the folder it is in")
        return [folder]
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(
            "this folder holds no safetensors weights",
            where=folder,
            why="other formats use pickle, which can run code, and are not read",
        )
    return weights


def listed_weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers would read, whether they are there or not.

    Raises:
        ModelError: the index that lists them cannot be read.
    """
    index = folder / INDEX
    if (folder / SINGLE).exists() or not index.exists():
        return [folder / SINGLE]
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        return [folder / name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError("the index of the weight files cannot be read", where=index, found=error) from error


def weights_sha256(folder: Path) -> str:
    """Return the hex sha256 over a model folder's weight files and its configuration; of a GGUF file, its own.

    Raises:
        ModelError: there are no weights that can be read safely.
        OSError: a file cannot be read.
    """
    if is_gguf(folder):
        return file_sha256(weight_files(folder)[0])
    parts = [f"{path.name}:{file_sha256(path)}" for path in [*weight_files(folder), folder / "config.json"]]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def why_not_found(error: BaseException) -> str:
    """Say in plain words why a name that is no folder is no model on the hub either.

    Args:
        error: What transformers or huggingface_hub said; they name exceptions and addresses.
    """
    text = str(error)
    if re.search("connect|offline|internet", text, re.IGNORECASE):
        return "no folder of this name exists, and the hub could not be reached"
    if "Repo id must" in text or "Repo_id" in text:
        return "no folder of this name exists, and it is no hub id"
    return f"no folder of this name exists; the hub said: {shorten(text, 300)}"
