"""Whole runs that go on while a model is asked: when goals come, and what if the model dies."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from goals.service import GoalService
from lab.checkpoint import Checkpoints
from lab.errors import UserError
from lab.run import Run, read_metrics
from tests.helpers.table_model import PATIENCE, DyingModel, SlowModel, TableModel
from tests.toy.world import ToyWorld
from tests.training import train

ROOT = Path(__file__).resolve().parent.parent
ASYNC = {
    "goal_form": "open",
    "resolve": "async",
    "total_timesteps": 4 * 8 * 8,
    "checkpoint_every": 100,
}


def wait_after(monkeypatch, model, *updates):
    """Let the model answer from the first of these updates on.

    The run waits after each of them until all is answered.
    """
    services, observe, log = [], GoalService.observe, Run.log

    def note(self, scenes, captions, done):
        services.append(self)
        return observe(self, scenes, captions, done)

    def log_and_wait(self, line):
        if line["update"] in updates:
            model.allowed.set()
            assert services[-1].background.wait(PATIENCE)
        return log(self, line)

    monkeypatch.setattr(GoalService, "observe", note)
    monkeypatch.setattr(Run, "log", log_and_wait)


@pytest.mark.parametrize(
    "fields",
    [{}, {"goal_conditioned": True, "text_observation": "caption"}],
    ids=["blind", "reads"],
)
def test_async_run_gets_its_goals_later_and_learns_from_them(monkeypatch, tmp_path, fields):
    model = SlowModel()
    wait_after(monkeypatch, model, 3, 4, 5, 6, 7, 8)
    summary, _, lines = train(
        monkeypatch, ToyWorld(), tmp_path, "run", model, on_exit="drain", **ASYNC, **fields
    )
    assert [line["steps_without_answer"] for line in lines[:4]] == [1.0] * 4 and lines[0][
        "queue_length"
    ] > 0
    assert lines[-1]["steps_without_answer"] == 0.0 == lines[-1]["queue_length"]
    assert lines[3]["reward_per_step"] == 0.0 < lines[4]["reward_per_step"]
    assert len(model.prompts) == len(set(model.prompts)) == summary["queries"] > 3
    assert (
        summary["prompt_tokens"] == 10 * summary["queries"]
        and summary["language_model_seconds"] == summary["queries"] / 2
    )
    assert summary["per_million_steps"]["generated_tokens"] == 3 * summary["queries"] * 1e6 / 256


def test_a_model_that_dies_stops_the_run_after_a_checkpoint_and_the_same_command_goes_on(
    monkeypatch, tmp_path
):
    model = DyingModel()
    model.allowed = threading.Event()
    wait_after(monkeypatch, model, 1, 2, 3, 4, 5, 6, 7)
    with pytest.raises(
        UserError,
        match="background ended .the server is gone.; all is kept: resume with --run-dir .*run$",
    ) as error:
        train(monkeypatch, ToyWorld(), tmp_path, "run", model, **ASYNC)
    assert "\n" not in str(error.value)
    lines = read_metrics(tmp_path / "run")
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == len(lines) < 8
        assert checkpoints.host()["service"]["queue"]
    again = TableModel()
    again.allowed = threading.Event()
    summary, state, lines = train(monkeypatch, ToyWorld(), tmp_path, "run", again, **ASYNC)
    assert int(state.update) == 8 == len(lines) and not set(again.prompts) & set(model.prompts)
    assert summary["queries"] == len(again.prompts) + len(model.prompts)


INTERRUPTED = """
import signal, sys, threading
from pathlib import Path
import pytest
import goals.background
from lab.cli import run_cli
from tests.helpers.table_model import SlowModel
from tests.test_background_runs import ASYNC
from tests.toy.world import ToyWorld
from tests.training import train

# A shell's background job ignores it, and so would its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
goals.background.CLOSE_SECONDS = 0.2
with pytest.MonkeyPatch.context() as patch:
    fields = ASYNC | {"total_timesteps": 10**9, "compilation_cache": True}
    train(patch, ToyWorld(), Path(sys.argv[1]), "run", SlowModel(), **fields)
"""


@pytest.mark.slow
def test_no_thread_keeps_an_interrupted_run_alive(tmp_path):
    """The model never answers; the run is interrupted in its loop."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    try:
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 3):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGINT and errors.rstrip().endswith(
        "KeyboardInterrupt\n--run-dir " + str(tmp_path / "run")
    )


def test_a_start_that_is_refused_leaves_nothing_in_the_way_of_the_next(monkeypatch, tmp_path):
    model = TableModel()
    model.answer = lambda scene: "\n\nHm."
    fields = {"goal_form": "open", "goal_conditioned": True, "llm_url": "http://there"}
    fields["total_timesteps"] = 4 * 8 * 2
    with pytest.raises(UserError, match="no usable answer to a scene"):
        train(monkeypatch, ToyWorld(), tmp_path, "run", model, **fields)
    fields["total_timesteps"] *= 2  # another configuration
    summary, _, lines = train(monkeypatch, ToyWorld(), tmp_path, "run", TableModel(), **fields)
    assert len(lines) == 4 and summary["queries"] > 0 == summary["unparsed"]
