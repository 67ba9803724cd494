"""The comparison of ways to learn a task: which runs, their commands, tables by hand, a picture."""

import importlib

import numpy as np
import pytest
import tyro
from PIL import Image

from benchmarks import downstream, downstream_figures, pretraining, statistics
from lab.errors import UserError
from lab.run import write_json, write_text
from worlds import make_world


def test_runs_go_by_seed_the_best_ways_and_hard_tasks_first():
    runs = downstream.plan(downstream.Args())
    assert len(runs) == 5 * len(downstream.TASKS) * len(downstream.WAYS)
    hard = [(f"{task}: scratch", 1) for task in downstream.TASKS if task in downstream.HARD]
    assert sorted(runs[: len(hard)]) == sorted(hard)
    assert [seed for _, seed in runs] == sorted(seed for _, seed in runs)
    args = downstream.Args(tasks=("mine coal",), ways=("scratch", "both-ellm"), seeds=(2,))
    assert downstream.plan(args) == [("mine coal: scratch", 2), ("mine coal: both-ellm", 2)]


@pytest.mark.parametrize(
    "args, said",
    [
        ({"tasks": ("fly",)}, "--tasks 'fly' is unknown: choose of attack cow"),
        ({"ways": ("magic",)}, "--ways 'magic' is unknown: choose of scratch"),
        ({"seeds": (9,)}, "--seeds: choose of 1, 2, 3, 4, 5"),
    ],
)
def test_an_unknown_name_is_refused_with_those_known(args, said):
    with pytest.raises(UserError, match=f"^{said}"):
        downstream.plan(downstream.Args(**args))


@pytest.mark.parametrize("name", list(downstream.METHODS)[:: len(downstream.TASKS)])
def test_every_way_is_a_command_that_its_script_takes(name):
    command = downstream.METHODS[name].command
    module = command[1] if command[0] == "-m" else command[0].removesuffix(".py")
    flags = command[2:] if command[0] == "-m" else command[1:]
    args = tyro.cli(importlib.import_module(module).Args, args=list(flags))
    assert make_world(args).task.sentence and args.evaluate_every == downstream.EVERY


def test_a_row_keeps_the_evaluations(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    arguments = {"total_timesteps": 100}
    config = {"arguments": arguments, "git_commit": "ab", "git_dirty": False}
    write_json(run / "config.json", config | {"score_name": "success", "device_kind": "cpu"})
    write_json(run / "summary.json", {"sps": 1.0})
    line = '{"env_steps": 100, "episodes": 1, "success_per_episode": 1.0, "success_rates": {}}\n'
    write_text(run / "metrics.jsonl", line)
    evaluated = '{"env_steps": %d, "episodes": 64, "success_per_episode": %f, "x": 1}\n'
    write_text(run / "evaluations.jsonl", evaluated % (0, 0.125) + evaluated % (100, 0.5))
    row = pretraining.make_row("mine coal: scratch", 3, run, downstream.METHODS)
    assert row["evaluations"] == {
        "env_steps": [0, 100],
        "success_per_episode": [0.125, 0.5],
        "episodes": [64, 64],
    }
    assert row["method"] == "mine coal: scratch" and row["group"] == "downstream"
    assert "--task 'mine coal'" in row["command"]


def row(task, way, rates, seed=1):
    evaluations = {"env_steps": [0, 10, 20], "success_per_episode": rates}
    return {"method": f"{task}: {way}", "seed": seed, "evaluations": evaluations}


def test_tables_by_hand_and_a_picture(tmp_path):
    rows = [row("mine stone", "scratch", [0.0, 0.25, 0.5])]
    rows += [row("mine stone", "scratch", [0.0, 0.0, 0.0], 2)]
    rows += [row("mine stone", "both-ellm", [0.4, 0.6, 0.8])]
    table = downstream_figures.downstream_table(rows)
    assert table.splitlines()[-1] == "| **mine stone** | 1/2 | 0.12 (0.00 to 0.25) | 0.60 |"
    assert downstream_figures.downstream_summary(rows) == "Not yet run."
    for task in downstream.HARD[1:]:
        rows += [row(task, "both-ellm", [0.2, 0.4, 0.3])]
    summary = downstream_figures.downstream_summary(rows).splitlines()
    # The median of four that never come to one half, and one that does.
    assert summary[-1] == "| `both-ellm` | 1 | 0.24 | 0.30 |  | 0.40 | not half of the runs |"
    downstream_figures.draw_downstream(rows, tmp_path / "tasks.png")
    assert Image.open(tmp_path / "tasks.png").size[0] > 900
    downstream_figures.draw_downstream([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_when_half_is_reached_by_hand():
    rates = np.array([[0.0, 0.5, 0.2], [0.6, 0.0, 0.0], [0.1, 0.2, 0.4]])
    found = downstream_figures.steps_to_half(np.array([0, 10, 20]), rates)
    assert found == [10.0, 0.0, np.inf]


def test_a_stratified_interval_draws_each_task_apart():
    scores = np.array([[0.0, 1.0], [1.0, 0.0]])  # two seeds of two tasks, the same mean in each
    low, high = statistics.stratified_interval(scores)
    assert (low, high) == (0.0, 1.0), "as if the seeds of the tasks had nothing in common"
    same = np.array([[0.2, 0.6], [0.2, 0.6]])
    assert statistics.stratified_interval(same) == pytest.approx((0.4, 0.4))
    assert statistics.stratified_interval(scores[:1]) is None
