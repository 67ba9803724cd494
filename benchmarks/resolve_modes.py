"""Compare the ways to wait for answers, one process at a time, and draw the curves: python benchmarks/resolve_modes.py.

A run that is finished is not run again, one that was interrupted goes on. Each has a store of its own, so that all begin with what
ships. Writes results/resolve_modes.json and .png.
"""

import dataclasses
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lab.plots import compare_curves  # noqa: E402
from lab.run import read_config, read_json, read_metrics, write_json  # noqa: E402

CLOSED = ["--llm", "gemma3-270m", "--goal-form", "closed", "--prompt-scope", "compact", "--total-timesteps", "200000"]
WAYS = {
    "exact: the run waits for answers": [*CLOSED, "--resolve", "exact"],
    "async: answers come when they come": [*CLOSED, "--resolve", "async"],
    "replay: recorded answers only": [*CLOSED, "--resolve", "replay", "--on-missing", "no-goals"],
}
POINTS = (50_000, 100_000, 150_000, 200_000)
WINDOW = 50_000
REPORTED = (
    *("sps", "wall_seconds", "compile_seconds", "host_share", "scenes", "store_hits", "unanswered", "steps_without_answer"),
    *("queries", "prompt_tokens", "generated_tokens", "language_model_seconds", "per_million_steps"),
)


@dataclasses.dataclass(frozen=True)
class Args:
    """Run what is missing, then report."""

    runs: Path = ROOT / "runs" / "resolve_modes"
    """where the runs' directories are"""
    seed: int = 1
    """seed of every run"""
    out: Path = ROOT / "results" / "resolve_modes"
    """path of the JSON and the PNG, without ending"""


def run_dir(args: Args, name: str) -> Path:
    """Return the directory of a run."""
    return args.runs / f"{re.sub(r'[,:]', '', name).replace(' ', '-')}-s{args.seed}"


def means(lines: list[dict]) -> dict[str, float]:
    """Return achievements per episode over the episodes that ended in the steps before each point."""
    table = {}
    for point in POINTS:
        near = [line for line in lines if point - WINDOW < line["env_steps"] <= point and line["episodes"]]
        if near and lines[-1]["env_steps"] >= 0.99 * point:
            episodes = sum(line["episodes"] for line in near)
            table[f"{point:,}"] = round(sum(line["achievements_per_episode"] * line["episodes"] for line in near) / episodes, 2)
    return table


def main(args: Args) -> None:
    """Run, print the table, write it and draw the curves."""
    rows = {}
    for name, way in WAYS.items():
        directory = run_dir(args, name)
        flags = [*way, "--seed", str(args.seed), "--store", f"{directory}.sqlite"]
        if not (directory / "summary.json").exists():
            subprocess.run([sys.executable, ROOT / "ellm_ppo.py", *flags, "--run-dir", directory], check=True)
        summary, config = read_json(directory / "summary.json"), read_config(directory)
        rows[name] = {
            "command": f"python ellm_ppo.py {' '.join(way)} --seed {args.seed}",
            "achievements_per_episode": means(read_metrics(directory)),
            "evaluation": summary["evaluation"],
            **{key: summary[key] for key in REPORTED if key in summary},
            "git_commit": config["git_commit"],
            "git_dirty": config["git_dirty"],
        }
        print(f"{name}: {json.dumps(rows[name]['achievements_per_episode'])}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    machine = f"{os.cpu_count()} x {platform.machine()} CPU"
    write_json(args.out.with_suffix(".json"), {"machine": machine, "window": WINDOW, "seed": args.seed, "runs": rows})
    compare_curves({name: run_dir(args, name) for name in rows}, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Args))
