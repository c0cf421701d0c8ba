"""What holds for every test: no setting of the shell, and no slow machine, decides whether it passes."""

import gc
import os

from hypothesis import settings

for _name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
    os.environ.pop(_name, None)  # tables are as wide as into a pipe, without colours

settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
"""Without a deadline: how long an example takes depends on what else the machine does."""


def pytest_collection_finish() -> None:
    """Take what was imported out of the garbage collector's sight: the trainer calls it once a run, for 0.2 s."""
    gc.collect()
    gc.freeze()
