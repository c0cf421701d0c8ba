"""An engine's process: one question, one answer, over standard input and output.

A message is a line of JSON and then the bytes that it announces. The process first gets its settings and answers with
what it is; after that each message holds the token ids of one batch, and each answer states. What the engine prints
goes to a file, whose last lines stand in the error if the process ends. The process ends by itself when its standard
input does, so none outlives this program, however that ends.

Rejected: HTTP (forty times the bytes, batches formed by somebody else), and shared memory, which a pipe of some
hundred megabytes a second makes unnecessary.
"""

import json
import os
import subprocess
import tempfile
import weakref
from typing import IO

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import ConfigError, ModelError
from cache_tools.mappings import JsonObject

PROTOCOL = 1
"""Version of the messages, which both sides name."""

LAST_LINES = 8
"""Lines of the engine's own output that an error quotes, and the bytes that they are looked for in."""
LAST_BYTES = 8192

END_SECONDS = 10
"""How long a process may take to end after its input has."""

HIDDEN_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Variables of this program's Python, which would lead the engine's Python to the wrong packages."""


class EngineProcess:
    """A running engine.

    Args:
        python: The engine's Python.
        script: The file that it runs.
        subject: Whose engine this is, for errors, such as ``teacher 'big'``.

    Raises:
        ConfigError: that Python cannot be started.
    """

    def __init__(self, python: str, script: str, subject: str) -> None:
        self.subject, self.python = subject, python
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process runs
        environment = {name: value for name, value in os.environ.items() if name not in HIDDEN_VARIABLES}
        environment["PYTHONSAFEPATH"] = "1"  # or the modules beside the script would stand before the engine's own
        try:
            self._process = subprocess.Popen(
                [python, script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches this program alone, which then ends the engine
            )
        except OSError as error:
            self._log.close()
            raise ConfigError(
                f"the engine's Python of {subject} cannot be started",
                where="engine.python",
                expected="a Python in whose environment the engine is installed",
                found=f"{python}: {error.strerror}",
            ) from error
        self._stop = weakref.finalize(self, _end, self._process, self._log)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def ask(self, header: JsonObject, *arrays: NDArray[np.int32]) -> tuple[JsonObject, bytes]:
        """Send a message and return the answer: its header, and the bytes that follow it.

        Raises:
            ModelError: the process has ended, or answers with an error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(header).encode() + b"\n")
            for array in arrays:
                self._process.stdin.write(np.ascontiguousarray(array, "<i4").tobytes())
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
            content = self._process.stdout.read(answer.get("bytes", 0))
        except (OSError, ValueError) as error:
            raise self._error("has stopped") from error
        if "error" in answer:
            raise self._error("has failed", str(answer["error"]))
        if len(content) < answer.get("bytes", 0):
            raise self._error("has stopped")
        return answer, content

    def stop(self) -> None:
        """End the process; it is not asked again."""
        self._stop()

    def _error(self, what: str, problem: str = "") -> ModelError:
        _end(self._process)
        code, lines = self._process.returncode, self._last_lines()
        self.stop()
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        return ModelError(
            f"the engine of {self.subject} {what}",
            where=self.python,
            found=problem or f"{ended}; its last lines: {lines or 'none'}",
            fix="Correct the cause, then run the same command again: it continues at the same shard",
        )

    def _last_lines(self) -> str:
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, end - LAST_BYTES))
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines()]
        return " / ".join([line for line in lines if line][-LAST_LINES:])


def _end(process: subprocess.Popen[bytes], log: IO[bytes] | None = None) -> None:
    """Close a process' input, wait for its end, and kill it if that takes too long; then close its log."""
    for stream in (process.stdin, process.stdout):
        try:
            if stream is not None:
                stream.close()
        except OSError:  # what was not yet sent cannot be
            pass
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if log is not None:
        log.close()
