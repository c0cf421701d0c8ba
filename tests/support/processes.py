"""Processes that die by SIGKILL in the middle of their work, so that nothing gets to clean up.

They are forked from one server that has imported torch once; each takes a fraction of a second.
"""

import gc
import multiprocessing
import os
import shutil
import signal
from unittest.mock import patch

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["pipeline.run", "trainer.run.train", "transformers.models.llama.modeling_llama", "pytest"]
)
TIMEOUT_SECONDS = 600
"""Only a process that hangs waits so long; how slow a busy machine is must not fail a test."""


def start(target, *arguments):
    process = PROCESSES.Process(target=_without_imports_as_garbage, args=(target, *arguments))
    process.start()
    return process


def _without_imports_as_garbage(target, *arguments):
    """Call a function; what was imported before is no garbage, and to look through it takes 0.3 s each time."""
    gc.freeze()
    target(*arguments)


def finish(process):
    """Wait for a process and return its exit code."""
    process.join(TIMEOUT_SECONDS)
    process.kill()
    return process.exitcode


def kill_at_rename(suffix, work):
    """Do some work that dies when the file with this suffix is written but not yet in its place."""

    def replace(source, destination, real=os.replace):
        if str(destination).endswith(suffix):
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, destination)

    with patch("os.replace", replace):
        work()


def kill_at_unlink(suffix, work):
    """Do some work that dies while it removes a tree, before the file with this suffix is gone."""

    def remove(folder, ignore_errors=False):
        for path in sorted(folder.rglob("*")):
            if str(path).endswith(suffix):
                os.kill(os.getpid(), signal.SIGKILL)
            if path.is_file():
                path.unlink()

    with patch.object(shutil, "rmtree", remove):
        work()
