"""What was measured of a model, kept in its folder, so that no recipe measures twice or overwrites what it measured.

A file is named for what was measured and for a hash of what it was measured on: ``measured/classes-3f0c….json``.
Another corpus or another capture is another file, so an old figure can neither be replaced nor be taken for a new one.
Files are written under a temporary name and renamed.

Tables show every student that has finished, whichever the command trained: ``finished_seeds`` looks for run folders
named ``<arm>-<seed>``.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cache_tools.format.fingerprint import fingerprint
from cache_tools.storage import write_object
from cache_tools.store.reader import Cache

DIGITS = 12
"""Hexadecimal digits of the hash in a file's name."""


def once(folder: Path, name: str, on: Any, measure: Callable[[], Any]) -> Any:
    """Return what was measured; unless there is a file of it, call ``measure`` and write its result first.

    Args:
        folder: The model's; the file lies below ``measured``.
        name: What is measured.
        on: JSON that identifies what it is measured on, such as ``sequences(cache)``.
        measure: Returns JSON.
    """
    path = folder / "measured" / f"{name}-{fingerprint({'on': on})[:DIGITS]}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_object(path, (json.dumps(measure()) + "\n").encode())
    return json.loads(path.read_text())


def sequences(cache: Path) -> str:
    """Return a hash of a cache's sequences: tokens, masks, labels and the split."""
    return Cache(cache).encoding().manifest.contents_fingerprint


def predictions_of(cache: Path, teacher: str | None = None) -> str:
    """Return a hash of what determines a teacher's predictions; the name may be left out if there is one teacher."""
    encoding = Cache(cache).encoding()
    return fingerprint({"of": encoding.teacher(teacher).manifest.fingerprint, "on": sequences(cache)})


def folder_name(arm: str) -> str:
    """Return the name of an arm in the paths of run folders."""
    return arm.replace(" ", "-")


def finished_seeds(students: Path, arm: str) -> list[int]:
    """Return the seeds of an arm whose run folder, ``<arm>-<seed>``, holds a finished student, in ascending order."""
    ends = (folder.name.removeprefix(f"{arm}-") for folder in students.glob(f"{arm}-*") if (folder / "final").exists())
    return sorted(int(end) for end in ends if end.isdigit())
