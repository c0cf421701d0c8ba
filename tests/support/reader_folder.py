"""A folder as a reader of the documentation has it after the demo, and programs that run in it."""

import io
import os
import shlex
import subprocess
import sys
from contextlib import chdir, redirect_stdout

import pytest
from click.testing import CliRunner

import tiny
from doc_blocks import ROOT
from logitcask import cli

SHOWN = ("configs", "docs", "README.md", "FORMAT.md", "logitcask.py")


def reader_folder(folder):
    """Fill a folder as a reader has it after the demo, with a tiny cache."""
    for name in SHOWN:
        (folder / name).symlink_to(ROOT / name)
    (folder / "runs" / "demo").mkdir(parents=True)
    tiny.capture(folder / "runs" / "demo")
    (folder / "bin").mkdir()
    program = folder / "bin" / "logitcask"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {ROOT / "logitcask.py"} "$@"\n')
    program.chmod(0o755)
    return folder


def run(folder, language, text):
    """Run a script as a reader would, with ``logitcask`` and ``python`` on the path; return its output.

    A Python program, and a script of nothing but our commands, runs in this process, which has imported torch already.
    """
    commands = own_commands(text) if language == "bash" else []
    if language != "python" and not commands:
        return run_bash(folder, text)
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")
        return run_python(text) if language == "python" else "".join(map(run_command, commands))


def own_commands(script):
    """Return the arguments of each command of a script if all are ours and need no shell, or nothing."""
    if set(script) & set("|&;<>$*`()"):
        return []
    lines = [shlex.split(line) for line in script.replace("\\\n", " ").splitlines() if line.strip()]
    return [words[1:] for words in lines] if all(words[0] == "logitcask" for words in lines) else []


def run_command(arguments):
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, f"{arguments}\n{result.output}"
    return result.stdout


def run_python(text):
    output = io.StringIO()
    with redirect_stdout(output):
        exec(compile(text, "the program", "exec"), {"__name__": "__main__"})
    return output.getvalue()


def run_bash(folder, text):
    path = os.pathsep.join([str(folder / "bin"), os.path.dirname(sys.executable), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "MPLBACKEND": "agg"}
    command = ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout
