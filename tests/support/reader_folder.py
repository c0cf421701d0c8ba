"""A folder as a reader of the documentation has it after the demo, and programs that run in it."""

import os
import shlex
import subprocess
import sys

import tiny
from doc_blocks import ROOT

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
    """Run a script as a reader would, with ``logitcask`` and ``python`` on the path; return its output."""
    path = os.pathsep.join([str(folder / "bin"), os.path.dirname(sys.executable), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "MPLBACKEND": "agg"}
    command = [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
    done = subprocess.run([*command, text], cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout
