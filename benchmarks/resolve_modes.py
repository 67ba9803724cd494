"""Compare the ways to wait for answers, one process at a time: python -m benchmarks.resolve_modes.

A run that is finished is not run again, one that was interrupted goes on. Each has a store of its
own, so that all begin with what ships. Writes results/resolve_modes.json and the curves beside it.
"""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.origin import RESULTS, ROOT, machine
from benchmarks.pretraining import mean
from lab.cli import run_cli
from lab.plots import compare_curves
from lab.ranges import Ranged, Seed
from lab.run import SUMMARY, read_config, read_json, read_metrics, write_json

CLOSED = [
    *("--llm", "gemma3-270m", "--goal-form", "closed", "--prompt-scope", "compact"),
    *("--total-timesteps", "200000"),
]
WAYS = {
    "exact: the run waits for answers": [*CLOSED, "--resolve", "exact"],
    "async: answers come when they come": [*CLOSED, "--resolve", "async"],
    "replay: recorded answers only": [*CLOSED, "--resolve", "replay", "--on-missing", "no-goals"],
}
POINTS = (50_000, 100_000, 150_000, 200_000)
WINDOW = 50_000
REPORTED = (
    *("sps", "wall_seconds", "compile_seconds", "host_share", "scenes", "store_hits"),
    *("unanswered", "steps_without_answer", "queries", "prompt_tokens", "generated_tokens"),
    *("language_model_seconds", "per_million_steps"),
)


@dataclasses.dataclass(frozen=True)
class Args(Ranged):
    """Run what is missing, then report."""

    runs: Path = ROOT / "runs" / "resolve_modes"
    """where the runs' directories are"""
    seed: Seed = 1
    """seed of every run"""
    out: Path = RESULTS / "resolve_modes"
    """path of the JSON and the PNG, without ending"""


def run_dir(args: Args, name: str) -> Path:
    """Return the directory of a run."""
    words = re.sub(r"[,:]", "", name).replace(" ", "-")
    return args.runs.resolve() / f"{words}-s{args.seed}"


def means(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return achievements per episode over the episodes that ended in the steps before a point."""
    table = {}
    for point in POINTS:
        near = [line for line in lines if point - WINDOW < line["env_steps"] <= point]
        value = mean(near, lambda line: line["achievements_per_episode"])
        if value is not None and lines[-1]["env_steps"] >= 0.99 * point:
            table[f"{point:,}"] = round(value, 2)
    return table


def row(name: str, args: Args) -> dict[str, Any]:
    """Return what a finished run is reported by."""
    directory = run_dir(args, name)
    summary, config = read_json(directory / SUMMARY), read_config(directory)
    return {
        "command": shlex.join(["python", "ellm_ppo.py", *WAYS[name], "--seed", str(args.seed)]),
        "achievements_per_episode": means(read_metrics(directory)),
        "evaluation": summary["evaluation"],
        **{key: summary[key] for key in REPORTED if key in summary},
        "git_commit": config["git_commit"],
        "git_dirty": config["git_dirty"],
    }


def main(args: Args) -> None:
    """Run, print the table, write it and draw the curves."""
    rows = {}
    for name, way in WAYS.items():
        directory = run_dir(args, name)
        flags = [*way, "--seed", str(args.seed), "--store", f"{directory}.sqlite"]
        if not (directory / SUMMARY).exists():
            command = [sys.executable, "ellm_ppo.py", *flags, "--run-dir", str(directory)]
            subprocess.run(command, cwd=ROOT, check=True)
        rows[name] = row(name, args)
        print(f"{name}: {json.dumps(rows[name]['achievements_per_episode'])}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"machine": machine(), "window": WINDOW, "seed": args.seed}
    write_json(args.out.with_suffix(".json"), {**facts, "runs": rows})
    compare_curves({name: run_dir(args, name) for name in rows}, args.out.with_suffix(".png"))


if __name__ == "__main__":
    run_cli(main, Args)
