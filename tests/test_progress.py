"""Long commands are never silent: lines by time without a terminal, a bar in one, nothing of either on stdout."""

import errno
import os
import pty
import re
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from cache_tools.progress import lines as progress
from cache_tools.progress.bars import BarReporter
from cache_tools.progress.lines import FIRST_LINE_SECONDS, LINE_SECONDS, LineReporter, open_reporter
from cache_tools.progress.reporter import Reporter

ROOT = Path(__file__).parents[1]


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


class Lines(LineReporter):
    """A reporter with a clock of its own, whose lines are kept with the second in which they came."""

    def __init__(self, **options):
        self.now, self.lines = Clock(), []
        super().__init__(lambda line: self.lines.append((self.now() - 100, line)), clock=self.now, **options)

    def wait(self, seconds, tokens_per_s=0):
        """Let time pass second by second, as the thread sees it."""
        for _ in range(seconds):
            self.now.seconds += 1
            if tokens_per_s:
                self.advance(tokens_per_s)
            self.tick()

    @property
    def text(self):
        return [line for _, line in self.lines]


def test_lines_come_at_the_beginning_soon_after_and_then_every_half_minute():
    reporter = Lines()
    reporter.stage("teacher toy", 20_000)
    reporter.wait(100, tokens_per_s=100)
    reporter.end()
    first = FIRST_LINE_SECONDS
    assert [at for at, _ in reporter.lines] == [
        0,
        first,
        first + LINE_SECONDS,
        first + 2 * LINE_SECONDS,
        first + 90,
        100,
    ]
    assert reporter.text[0] == "teacher toy: 20,000 tokens to do\n"
    assert reporter.text[2] == "teacher toy: 3,500 of 20,000 tokens (17.5%), 100 tokens/s, 0:02:45 left\n"
    assert reporter.text[-1] == "teacher toy: 10,000 tokens in 0:01:40, 100 tokens/s\n"


def test_a_stage_in_which_nothing_gets_done_is_not_silent():
    reporter = Lines()
    reporter.stage("loading teacher toy")
    reporter.wait(70)
    assert reporter.text == [
        "loading teacher toy: started\n",
        "loading teacher toy: 0:00:05 so far\n",
        "loading teacher toy: 0:00:35 so far\n",
        "loading teacher toy: 0:01:05 so far\n",
    ]
    reporter.stage("teacher toy", 1000)
    reporter.wait(5)
    assert reporter.text[-3] == "loading teacher toy: done in 0:01:10\n"
    assert reporter.text[-1] == "teacher toy: 0 of 1,000 tokens (0.0%), 0:00:05 so far\n"


def test_a_stall_is_told():
    reporter = Lines()
    reporter.stage("teacher toy", 20_000)
    reporter.wait(30, tokens_per_s=100)
    reporter.wait(100)
    assert "nothing new" not in reporter.text[2]
    assert reporter.text[-1].endswith(" left, nothing new for 0:01:35\n")


def test_speed_and_time_left_are_those_of_about_the_last_minute():
    reporter = Lines()
    reporter.stage("teacher toy", 1_000_000)
    reporter.wait(300, tokens_per_s=10)
    reporter.wait(120, tokens_per_s=1000)
    reporter.wait(5, tokens_per_s=1000)
    assert reporter.text[-1].split(", ")[-2:] == ["1,000 tokens/s", "0:14:32 left\n"]


def test_the_thread_prints_while_the_command_hangs(monkeypatch):
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.001)
    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 0.0)
    lines, printed = [], threading.Event()

    def write(line):
        lines.append(line)
        if len(lines) == 2:
            printed.set()

    with LineReporter(write) as reporter:
        reporter.stage("waiting for rank 0 to encode")
        assert printed.wait(10)
    assert lines[1] == "waiting for rank 0 to encode: 0:00:00 so far\n"


def test_the_thread_ends_with_the_block(monkeypatch):
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.001)
    before = set(threading.enumerate())  # threads of other reporters may still be ending
    with LineReporter(lambda _: None):
        (thread,) = (t for t in threading.enumerate() if t.name == "progress" and t not in before)
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("refusal", [BrokenPipeError(), OSError(errno.EIO, "gone"), ValueError("closed file")])
def test_what_stderr_refuses_ends_no_command(refusal):
    def write(line):
        raise refusal

    with LineReporter(write) as reporter:
        reporter.stage("teacher toy", 10)
        reporter.advance(10)


def test_a_process_without_stderr_is_silent(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with open_reporter() as reporter:
        reporter.stage("teacher toy", 10)


def test_an_error_ends_the_stage_and_does_not_call_it_finished():
    reporter = Lines()
    with suppress(RuntimeError), reporter:
        reporter.stage("teacher toy", 1000)
        reporter.wait(4, tokens_per_s=100)
        raise RuntimeError
    assert reporter.text[-1] == "teacher toy: stopped at 400 of 1,000 tokens (40.0%) after 0:00:04\n"


def test_training_counts_steps_and_shows_tokens_per_second_and_the_loss():
    reporter = Lines()
    reporter.stage("train", 400, "steps", speed_unit="tokens", done=100)
    reporter.note("loss 3.214")
    for _ in range(35):
        reporter.advance(2, work=500)
        reporter.wait(1)
    assert reporter.text[0] == "train: 300 steps to do, 100 done before\n"
    assert reporter.text[-1] == "train: 170 of 400 steps (42.5%), 500 tokens/s, loss 3.214, 0:01:55 left\n"
    reporter.end()
    assert reporter.text[-1] == "train: 70 steps in 0:00:35, 500 tokens/s, loss 3.214\n"


def test_a_share_that_is_done_gives_the_total():
    reporter, totals = Lines(), []
    reporter.stage("encode")
    for tokens, share in ((50, 0.0), (50, 0.25), (100, 0.5), (50, 0.9), (0, 1.0)):
        reporter.advance(tokens, share)
        totals.append(reporter.current.total)
    assert totals == [None, 400, 400, 278, 250]
    reporter.stage("encode")
    reporter.advance(50, 0.25)
    reporter.wait(5)
    assert reporter.text[-1] == "encode: 50 of about 200 tokens (25.0%), 10 tokens/s, 0:00:15 left\n"


def test_bytes_are_shown_in_their_units():
    reporter = Lines()
    reporter.stage("copying", 3_000_000_000, "bytes")
    reporter.wait(5, tokens_per_s=120_000_000)
    assert reporter.text[0] == "copying: 3.0 GB to do\n"
    assert reporter.text[-1] == "copying: 600.0 MB of 3.0 GB (20.0%), 120.0 MB/s, 0:00:20 left\n"


def test_parts_are_named_and_each_counts_once():
    reporter = Lines()
    reporter.stage("checking", 3, "shards")
    for part in ("toy: shard 0", "toy: shard 1", "toy: shard 2"):
        reporter.part(part)
        reporter.wait(5)
    assert reporter.text[1:2] == ["checking: 0 of 3 shards (0.0%), toy: shard 0, 0:00:05 so far\n"]
    reporter.end()
    assert reporter.text[-1] == "checking: 3 shards in 0:00:15, 0.2 shards/s\n"


def test_a_brief_reporter_says_nothing_of_what_was_quick():
    reporter = Lines(brief=True)
    reporter.stage("reading", 10, "shards")
    reporter.advance(10)
    reporter.wait(4)
    reporter.stage("drawing")
    assert reporter.lines == []
    reporter.wait(6)
    reporter.end()
    assert reporter.text == ["drawing: 0:00:05 so far\n", "drawing: done in 0:00:06\n"]


def test_one_part_is_counted_in_the_singular():
    reporter = Lines()
    reporter.stage("checking", 1, "shards")
    reporter.part("toy: shard 0")
    reporter.end()
    assert reporter.text[0] == "checking: 1 shard to do\n"
    assert reporter.text[-1].startswith("checking: 1 shard in ")


def test_nothing_left_to_do_is_said():
    reporter = Lines()
    reporter.stage("teacher toy", 0)
    reporter.end()
    assert reporter.text == ["teacher toy: nothing left to do\n"]


@pytest.mark.parametrize(
    ("variables", "prefix"),
    [({}, ""), ({"RANK": "3", "WORLD_SIZE": "8"}, "[rank 3 of 8] "), ({"RANK": "0", "WORLD_SIZE": "1"}, "")],
)
def test_each_of_several_processes_says_which_it_is(monkeypatch, capsys, variables, prefix):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with open_reporter() as reporter:
        reporter.stage("teacher toy", 10)
    assert capsys.readouterr() == ("", f"{prefix}teacher toy: 10 tokens to do\n")


def test_the_silent_reporter_takes_everything():
    with Reporter() as reporter:
        reporter.stage("train", 10, "steps", speed_unit="tokens", done=3)
        reporter.advance(1, 0.5, work=100)
        reporter.note("loss 1")
        reporter.part("toy")


SCRIPT = """
from cache_tools.progress.lines import open_reporter
with open_reporter() as reporter:
    reporter.stage("loading [b]teacher[/b]")
    reporter.stage("teacher toy", 1000)
    reporter.advance(1000)
print("data")
"""


def run_script(in_terminal, **variables):
    """Run the script and return (stdout, stderr); in a pseudo-terminal, stderr is that."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120", **variables}
    master, slave = pty.openpty() if in_terminal else os.pipe()
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    seen = b""
    with suppress(OSError):  # how a pseudo-terminal says that the other side is closed
        while part := os.read(master, 4096):
            seen += part
    os.close(master)
    stdout = process.communicate()[0]
    assert process.returncode == 0
    return stdout.decode(), seen.decode()


def test_a_terminal_gets_a_bar():
    stdout, stderr = run_script(in_terminal=True)
    assert stdout == "data\n"
    assert "\x1b[" in stderr
    assert "━" in stderr
    assert "1,000 of 1,000 tokens" in stderr


@pytest.mark.parametrize(
    ("in_terminal", "variables"),
    [(False, {}), (False, {"FORCE_COLOR": "1"}), (True, {"NO_COLOR": "1"}), (True, {"TERM": "dumb"})],
)
def test_everything_else_gets_plain_lines(in_terminal, variables):
    stdout, stderr = run_script(in_terminal, **variables)
    assert stdout == "data\n"
    begin, work, end = stderr.splitlines()
    assert (begin, work) == ("loading [b]teacher[/b]: started", "teacher toy: 1,000 tokens to do")
    assert re.fullmatch(r"teacher toy: 1,000 tokens in 0:00:0\d, [\d,]+ tokens/s", end)
    assert "\x1b" not in stderr


def test_bars_show_the_figures_of_the_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    clock = Clock()
    with BarReporter(clock=clock) as reporter:
        reporter.stage("loading")
        reporter.stage("train", 400, "steps", speed_unit="tokens")
        clock.seconds += 10
        reporter.advance(20, work=5000)
        reporter.note("loss 3.2")
        (bar,) = reporter._bars.tasks
        assert bar.description == "train"
        assert (bar.completed, bar.total) == (20, 400)
        assert bar.fields["figures"] == "20 of 400 steps (5.0%) · 500 tokens/s · loss 3.2"
