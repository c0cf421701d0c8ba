"""The folder in which a benchmark keeps what it has made, so that it continues where it was stopped."""

import json
from collections.abc import Mapping
from pathlib import Path

from cache_tools.errors import IdentityError
from cache_tools.format.fingerprint import differences
from cache_tools.storage import write_object


def check_work_folder(settings: Mapping[str, object], work: Path) -> None:
    """Write down what a work folder is for, or refuse one that was made for something else.

    Args:
        settings: Everything that the figures depend on; what JSON does not know is written as text.
        work: The folder.

    Raises:
        IdentityError: it was.
    """
    path, current = work / "settings.json", json.loads(json.dumps(settings, default=str))
    if not path.exists():
        write_object(path, json.dumps(current, indent=2).encode())
    elif (stored := json.loads(path.read_text())) != current:
        raise IdentityError(
            "another table is being made in this folder",
            where=path,
            expected="the same settings",
            found="; ".join(differences(stored, current)),
            why="its students would be mixed with these",
            fix="Choose another --work, or delete this one",
        )
