"""Names in a capture file that become folders of the cache, checked when the file is read."""

from typing import Annotated

from pydantic import AfterValidator

from cache_tools.errors import FormatError
from cache_tools.format.layout import checked_name


def _legal(name: str) -> str:
    try:
        return checked_name(name)
    except FormatError as error:
        raise ValueError(str(error)) from error


FolderName = Annotated[str, AfterValidator(_legal)]
"""Name of an encoding or a teacher; see ``layout.checked_name`` for its letters and length."""
