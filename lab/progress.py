"""A progress bar over env steps, or plain lines where there is no terminal."""

import os
import sys
import time
from collections import deque
from typing import TextIO

from tqdm import tqdm

from lab.metrics import score_label

PLAIN_SECONDS = 60.0  # without a terminal: at most one line in this time
RATE_SECONDS = 20.0  # steps per second are measured over this much of the past


class Progress:
    """Show how far a run is; visible at once as "compiling", which the speed leaves out.

    `total_steps` counts env steps; `score_name` is the world's; `file` defaults to stderr.
    """

    def __init__(
        self,
        total_steps: int,
        score_name: str,
        file: TextIO | None = None,
    ):
        self._file = sys.stderr if file is None else file
        self._total, self._steps = total_steps, 0
        self._score_label = score_label(score_name)
        self._start = self._last_line = time.monotonic()
        self._history: deque[tuple[float, int]] = deque()
        self._details = self._shown = ""
        self._phase = "compiling"
        self._bar = None
        if _holds_a_bar(self._file):
            self._bar = tqdm(
                total=total_steps,
                file=self._file,
                bar_format="{percentage:3.0f}% |{bar:20}| {desc}",
                dynamic_ncols=True,
                mininterval=0.1,
            )
        self._show(force=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def phase(self, name: str) -> None:
        """Show what is done now and measure speed afresh; "" is training."""
        self._phase = name
        self._history.clear()
        if not name:
            self._history.append((time.monotonic(), self._steps))
        self._show(force=bool(name))

    def update(
        self,
        env_steps: int,
        score: float | None = None,
        scenes: int | None = None,
        waiting: int | None = None,
    ) -> None:
        """Show that `env_steps` are done, without what is None. The first call ends "compiling".

        score: mean of the finished episodes; waiting: queries without an answer.
        """
        now = time.monotonic()
        self._steps, self._phase = env_steps, ""
        self._history.append((now, env_steps))
        while len(self._history) > 2 and now - self._history[1][0] >= RATE_SECONDS:
            self._history.popleft()
        details = []
        if score is not None:
            details.append(f"{score:.2f} {self._score_label}/episode")
        if scenes is not None:
            details.append(f"{scenes:,} scenes")
        if waiting:
            details.append(f"{waiting:,} queries waiting")
        self._details = ", ".join(details)
        self._show()

    def waiting(self, queries: int) -> None:
        """Show that a language model still has `queries` to answer before the run goes on."""
        before, self._phase = self._phase, f"{queries:,} queries waiting"
        self._show()
        self._phase = before

    def write(self, text: str) -> None:
        """Print a line without spoiling the bar."""
        if self._bar is not None:
            tqdm.write(text, file=self._file)
        else:
            print(text, file=self._file, flush=True)

    def close(self) -> None:
        """Show the last state and leave it standing; calling it again is harmless."""
        if self._file is None:
            return
        self._show(force=True)
        if self._bar is not None:
            self._bar.close()
        self._file = None

    def _rate(self) -> float | None:
        """Return env steps per second over the last while, None before it is known."""
        if len(self._history) < 2 or self._history[-1][0] <= self._history[0][0]:
            return None
        (before, first), (now, last) = self._history[0], self._history[-1]
        return (last - first) / (now - before)

    def _show(self, force: bool = False) -> None:
        """Draw the bar, or print a line when one is due."""
        rate = self._rate()
        parts = [f"{self._steps:,}/{self._total:,} steps"]
        if self._phase:
            parts.append(self._phase)
        if rate is not None:
            parts.append(f"{rate:,.0f} steps/s")
            if rate > 0 and self._steps < self._total:
                parts.append(f"{_clock((self._total - self._steps) / rate)} left")
        if self._details:
            parts.append(self._details)
        text = ", ".join(parts)
        if self._bar is not None:
            self._bar.n = self._steps
            self._bar.set_description_str(text, refresh=True)
            return
        now = time.monotonic()
        if text != self._shown and (force or now - self._last_line >= PLAIN_SECONDS):
            self._last_line, self._shown = now, text
            print(f"[{_clock(now - self._start)}] {text}", file=self._file, flush=True)


def _holds_a_bar(file: TextIO) -> bool:
    """Return whether a file is a terminal that can redraw a line."""
    if not file.isatty() or os.environ.get("TERM") == "dumb":
        return False
    try:
        return min(os.get_terminal_size(file.fileno())) > 0  # some pseudo-terminals have no rows
    except (OSError, ValueError):  # of unknown size
        return True


def _clock(seconds: float) -> str:
    """Write a duration as m:ss or h:mm:ss."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
