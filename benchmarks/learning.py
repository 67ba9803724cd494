"""Run the learning curves of the README, one process at a time, and draw them: python benchmarks/learning.py.

A run that is finished is not run again, one that was interrupted goes on. Writes results/learning.json and results/learning.png.
"""

import dataclasses
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lab.plots import compare_curves  # noqa: E402
from lab.run import read_config, read_json, read_metrics, write_json  # noqa: E402

RUNS = {
    "oracle, effect captions": ["--goal-source", "oracle", "--captions", "effect", "--total-timesteps", "5000000"],
    "ELLM, recorded rules of a 1.5B model": ["--goal-source", "llm", "--total-timesteps", "1500000"],
    "oracle": ["--goal-source", "oracle", "--total-timesteps", "1500000"],
    "grounded, no language model": ["--goal-source", "grounded", "--total-timesteps", "1500000"],
    "novelty": ["--goal-source", "novelty", "--total-timesteps", "1500000"],
    "the game's own reward": ["--goal-source", "none", "--total-timesteps", "1500000"],
}
POINTS = (100_000, 250_000, 500_000, 1_000_000, 1_500_000, 2_500_000, 5_000_000)
WINDOW = 50_000


@dataclasses.dataclass(frozen=True)
class Args:
    """Run what is missing, then report."""

    runs: Path = ROOT / "runs" / "learning"
    """where the runs' directories are"""
    only: tuple[str, ...] = ()
    """names of the runs wanted; default: all"""
    seed: int = 1
    """seed of every run"""
    out: Path = ROOT / "results" / "learning"
    """path of the JSON and the PNG, without ending"""


def run_dir(args: Args, name: str) -> Path:
    """Return the directory of a run."""
    return args.runs / f"{name.replace(',', '').replace(' ', '-')}-s{args.seed}"


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
    for name in args.only or RUNS:
        directory = run_dir(args, name)
        flags = [*RUNS[name], "--seed", str(args.seed), "--store", str(args.runs / "store.sqlite")]
        if not (directory / "summary.json").exists():
            subprocess.run([sys.executable, ROOT / "ellm_ppo.py", *flags, "--run-dir", directory], check=True)
        summary, config = read_json(directory / "summary.json"), read_config(directory)
        rows[name] = {
            "command": f"python ellm_ppo.py {' '.join(RUNS[name])} --seed {args.seed}",
            "achievements_per_episode": means(read_metrics(directory)),
            "evaluation": summary["evaluation"],
            **{key: summary[key] for key in ("sps", "wall_seconds", "compile_seconds", "host_share", "queries", "store_hits")},
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
