"""The progress bar and its plain lines."""

import io
import time

import pytest

from lab.progress import Progress


class Terminal(io.StringIO):
    """A text file which says it is a terminal."""

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
