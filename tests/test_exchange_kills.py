"""Imports and exports that are killed again and again, at random moments, end in the bytes of a straight run."""

import os
import random
import signal
from unittest.mock import patch

import pytest

from cache_tools.exchange.exporting import export_rows
from cache_tools.exchange.importing import import_rows
from cache_tools.exchange.plan import ImportOptions
from cache_tools.store.reader import Cache
from processes import finish, start
from row_fixtures import FORMATS, SILENT, made_rows, write_rows, write_tokenizer

KILLS = 10
"""How often each command is killed."""


def run_import(source, cache, tokenizer):
    import_rows(source, cache, ImportOptions(tokenizer, positions_per_shard=64, chunk_positions=16), SILENT)


def run_export(cache, target):
    export_rows(Cache(cache).encoding().teacher(), target, "axolotl", SILENT)


def killed(seed, work, *arguments):
    """Do some work that dies beside one of the next few renames: before it, or behind it."""
    moments = random.Random(seed)
    left, before = moments.randint(1, 6), moments.random() < 0.5

    def replace(source, destination, real=os.replace):
        nonlocal left
        left -= 1
        if not before:
            real(source, destination)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if before:
            real(source, destination)

    with patch("os.replace", replace):
        work(*arguments)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill_until_finished(work, straight, place, *sources):
    """Kill KILLS runs of some work, beginning anew whenever it finished; compare every result with the straight one."""
    kills = runs = 0
    while kills < KILLS:
        target = place.with_name(f"{place.name}{runs}")
        arguments = (*sources, target) if work is run_export else (sources[0], target, *sources[1:])
        while kills < KILLS and finish(start(killed, 100 * kills + runs, work, *arguments)) == -signal.SIGKILL:
            kills += 1
        work(*arguments)
        assert contents(target) == straight
        runs += 1


@pytest.mark.slow
def test_commands_that_are_killed_at_random_end_in_the_same_bytes(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    source = write_rows(tmp_path / "rows", made_rows(sequences=30), FORMATS["raw"])
    run_import(source, tmp_path / "straight", tokenizer)
    kill_until_finished(run_import, contents(tmp_path / "straight"), tmp_path / "cache", source, tokenizer)
    run_export(tmp_path / "straight", tmp_path / "exported")
    kill_until_finished(run_export, contents(tmp_path / "exported"), tmp_path / "export", tmp_path / "straight")
