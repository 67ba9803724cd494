"""The progress bar and its plain lines."""

import fcntl
import io
import os
import struct
import termios
import time
from contextlib import suppress

import pytest

from lab.progress import Progress


class Terminal(io.StringIO):
    """A text file which says it is a terminal, of a size that nobody knows."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("score_name", "label"), [("achievements", "achievements"), ("doors_opened", "doors opened")]
)
@pytest.mark.parametrize("make", [io.StringIO, Terminal])
def test_progress_shows_compiling_at_once_and_then_numbers(make, score_name, label):
    file = make()
    with Progress(1000, score_name, file=file) as progress:
        assert "compiling" in file.getvalue() and "0/1,000 steps" in file.getvalue()
        progress.update(100)
        progress.waiting(12)
        time.sleep(0.02)
        progress.update(200, 3.14159, 1234, 56)
        progress.write("a note")
    last = file.getvalue().splitlines()[-1]
    for part in (
        "200/1,000 steps",
        "steps/s",
        "left",
        f"3.14 {label}/episode",
        "1,234 scenes",
        "56 queries waiting",
    ):
        assert part in last
    assert "a note" in file.getvalue()


def test_progress_without_a_terminal_prints_rarely():
    file = io.StringIO()
    with Progress(1000, "achievements", file=file) as progress:
        for step in range(1000):
            progress.update(step)
    assert len(file.getvalue().splitlines()) == 2  # the first and the last


@pytest.mark.parametrize(
    ("rows", "columns", "has_bar"), [(24, 80, True), (0, 80, False), (0, 0, False)]
)
def test_a_terminal_without_rows_gets_plain_lines(rows, columns, has_bar, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with open(slave, "w") as file, Progress(1000, "achievements", file=file) as progress:
        progress.update(1000)
    shown = ""
    with suppress(OSError):  # at the end of what was written
        while part := os.read(master, 10_000).decode():
            shown += part
    os.close(master)
    assert ("\x1b" in shown or "%" in shown) == has_bar and "1,000/1,000 steps" in shown


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    file = Terminal()
    with Progress(1000, "achievements", file=file) as progress:
        progress.update(1000)
    assert "%" not in file.getvalue()
