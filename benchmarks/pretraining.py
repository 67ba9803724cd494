"""Run the comparison of pretraining methods over seeds: python benchmarks/pretraining.py.

One process at a time, seed 1 of every method first, so that whenever it stops all methods have equally many seeds. A run that is
finished is not run again, one that was interrupted goes on. Each finished run becomes a row of results/pretraining/runs.jsonl, from
which benchmarks/figures.py draws. A second instance may work on other methods at the same time.

    python benchmarks/pretraining.py --group dqn            one group of methods
    python benchmarks/pretraining.py --only oracle rnd --seeds 1
    python benchmarks/pretraining.py --results mine         rows of one's own, beside those that ship
"""

import dataclasses
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lab.cli import run_cli  # noqa: E402
from lab.errors import UserError  # noqa: E402
from lab.run import SUMMARY, read_config, read_json, read_metrics, write_text  # noqa: E402

ROWS = "runs.jsonl"
BIN = 20_000  # env steps of one point of a curve
FINAL = 0.05  # share of the run, at its end, over which the final figures are means
REPORTED = ("evaluation", "sps", "wall_seconds", "compile_seconds", "queries", "steps_without_answer")  # of summary.json

FACTS = ["--text-observation", "facts"]
OPEN = ["--goal-form", "open", "--resolve", "replay", "--on-missing", "no-goals", "--prompt-scope", "compact"]
RANDOM = ["--start-e", "1", "--end-e", "1", "--learning-starts", "1000000"]  # uniform actions, never learns


class Method(NamedTuple):
    """What is run, after `python`, and how often."""

    group: str
    command: list[str]
    seeds: tuple[int, ...] = (1, 2, 3)
    total_timesteps: int = 1_000_000


METHODS = {
    "oracle": Method("ppo", ["ellm_ppo.py", "--goal-source", "oracle"]),
    "oracle-goals": Method("ppo", ["ellm_ppo.py", "--goal-source", "oracle", "--goal-conditioned"]),
    "ellm-rules-1.5b": Method("ppo", ["ellm_ppo.py"]),
    "ellm-rules-270m": Method("ppo", ["ellm_ppo.py", "--llm", "gemma3-270m", "--resolve", "replay"]),
    "ellm-open-1.5b": Method("ppo", ["ellm_ppo.py", *OPEN]),
    "ellm-open-270m": Method("ppo", ["ellm_ppo.py", "--llm", "gemma3-270m", *OPEN]),
    "ellm-rules-1.5b-goals": Method("ppo", ["ellm_ppo.py", "--goal-conditioned"]),
    "ellm-rules-1.5b-text": Method("ppo", ["ellm_ppo.py", *FACTS]),
    "ellm-rules-1.5b-goals-text": Method("ppo", ["ellm_ppo.py", "--goal-conditioned", *FACTS]),
    "grounded": Method("ppo", ["ellm_ppo.py", "--goal-source", "grounded"]),
    "novelty": Method("ppo", ["ellm_ppo.py", "--goal-source", "novelty"]),
    "uniform": Method("ppo", ["ellm_ppo.py", "--goal-source", "uniform"]),
    "rnd": Method("ppo", ["-m", "baselines.ppo_rnd"]),
    "rnd-text": Method("ppo", ["-m", "baselines.ppo_rnd", *FACTS]),
    "noveld": Method("ppo", ["-m", "baselines.ppo_rnd", "--noveld"]),
    "apt": Method("ppo", ["-m", "baselines.ppo_apt"]),
    "apt-coef0.02": Method("ppo", ["-m", "baselines.ppo_apt", "--intrinsic-coef", "0.02"], (1,)),
    "apt-text": Method("ppo", ["-m", "baselines.ppo_apt", *FACTS]),
    "extrinsic": Method("ppo", ["-m", "baselines.ppo"]),
    "extrinsic-lr3e-4": Method("ppo", ["-m", "baselines.ppo", "--learning-rate", "3e-4"]),
    "random": Method("ppo", ["-m", "baselines.dqn", *RANDOM]),
    "dqn-oracle": Method("dqn", ["ellm_dqn.py", "--goal-source", "oracle"]),
    "dqn-ellm-rules-1.5b": Method("dqn", ["ellm_dqn.py"]),
    "dqn-novelty": Method("dqn", ["ellm_dqn.py", "--goal-source", "novelty"]),
    "dqn-rnd": Method("dqn", ["-m", "baselines.dqn_rnd"]),
    "oracle-5m": Method("long", ["ellm_ppo.py", "--goal-source", "oracle"], (1,), 5_000_000),
    "ellm-rules-1.5b-5m": Method("long", ["ellm_ppo.py"], (1,), 5_000_000),
    "oracle-goals-5m": Method("long", ["ellm_ppo.py", "--goal-source", "oracle", "--goal-conditioned"], total_timesteps=5_000_000),
    "ellm-rules-1.5b-goals-5m": Method("long", ["ellm_ppo.py", "--goal-conditioned"], (1,), 5_000_000),
    "ellm-rules-1.5b-text-5m": Method("long", ["ellm_ppo.py", *FACTS], (1,), 5_000_000),
    "ellm-rules-1.5b-goals-text-5m": Method("long", ["ellm_ppo.py", "--goal-conditioned", *FACTS], total_timesteps=5_000_000),
    "ellm-rules-1.5b-mended-5m": Method("long", ["benchmarks/mended_rules.py"], (1,), 5_000_000),
    "pixels-oracle": Method("pixels", ["ellm_ppo.py", "--observation", "frames", "--goal-source", "oracle"], (1,), 150_000),
    "pixels-dqn-oracle": Method("pixels", ["ellm_dqn.py", "--observation", "frames", "--goal-source", "oracle"], (1,), 150_000),
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Run what is missing and record it."""

    only: tuple[str, ...] = ()
    """names of the methods wanted; default: all"""
    group: tuple[Literal["ppo", "dqn", "long", "pixels"], ...] = ()
    """groups of the methods wanted; default: all"""
    seeds: tuple[int, ...] = ()
    """of each method's seeds, those wanted; default: all"""
    runs: Path = ROOT / "runs" / "pretraining"
    """where the runs' directories are"""
    results: Path = ROOT / "results" / "pretraining"
    """where runs.jsonl is"""


def plan(args: Args) -> list[tuple[str, int]]:
    """Return (method, seed) of the runs in their order; raises UserError for an unknown method and where nothing is left."""
    unknown = [name for name in args.only if name not in METHODS]
    if unknown:
        raise UserError(f"--only {unknown[0]} is unknown: choose of {', '.join(METHODS)}")
    runs = [
        (name, seed)
        for name, method in METHODS.items()
        for seed in method.seeds
        if name in (args.only or METHODS)
        and method.group in (args.group or (method.group,))
        and seed in (args.seeds or method.seeds)
    ]
    if not runs:
        raise UserError("no method has all that --only, --group and --seeds ask for")
    return sorted(runs, key=lambda run: run[1])


def learner(command: list[str]) -> str:
    """Return "dqn" or "ppo", by the script's name."""
    return "dqn" if any("dqn" in word for word in command[:2]) else "ppo"


def mean(lines: list[dict], get: Callable[[dict], float]) -> float | None:
    """Return the mean of `get(line)` over the episodes that ended in these lines, or None without any."""
    ended = [line for line in lines if line["episodes"]]
    episodes = sum(line["episodes"] for line in ended)
    return sum(get(line) * line["episodes"] for line in ended) / episodes if episodes else None


def learning_curve(lines: list[dict]) -> dict[str, list]:
    """Return means over bins of `BIN` env steps; "env_steps" are the bins' ends."""
    ends = range(BIN, lines[-1]["env_steps"] + BIN, BIN)
    bins = [[line for line in lines if end - BIN < line["env_steps"] <= end] for end in ends]
    return {"env_steps": list(ends), "achievements_per_episode": [mean(inside, _achievements) for inside in bins]}


def final(lines: list[dict]) -> dict[str, Any]:
    """Return means over the episodes that ended in the last `FINAL` of the run."""
    window = [line for line in lines if line["env_steps"] > (1 - FINAL) * lines[-1]["env_steps"]]
    names = next((line["success_rates"] for line in lines if line["episodes"]), {})
    rates = {name: mean(window, lambda line, name=name: line["success_rates"][name]) for name in names}
    return {"achievements_per_episode": mean(window, _achievements), "success_rates": rates}


def make_row(name: str, seed: int, run_dir: Path) -> dict[str, Any]:
    """Return all that is kept of a finished run."""
    method, summary, config, lines = METHODS[name], read_json(run_dir / SUMMARY), read_config(run_dir), read_metrics(run_dir)
    steps = config["arguments"]["total_timesteps"]
    row = {
        "method": name,
        "group": method.group,
        "seed": seed,
        "learner": learner(method.command),
        "command": shlex.join(["python", *method.command, "--seed", str(seed), "--total-timesteps", str(steps)]),
        "total_timesteps": steps,
        "curve": learning_curve(lines),
        "final": final(lines),
        **{key: summary[key] for key in REPORTED if key in summary},
        "git_commit": config["git_commit"],
        "git_dirty": config["git_dirty"],
        "machine": f"{os.cpu_count()} x {platform.machine()} CPU",
    }
    if hasattr(os, "sched_getaffinity"):
        row["threads"] = len(os.sched_getaffinity(0))
    return _rounded(row)


def read_rows(results: Path) -> list[dict[str, Any]]:
    """Return the rows of runs.jsonl, none where there is no such file."""
    file = results / ROWS
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def append_row(row: dict[str, Any], results: Path) -> bool:
    """Add a row unless one of the same method and seed stands there; tell whether it was added."""
    results.mkdir(parents=True, exist_ok=True)
    (ROOT / "runs").mkdir(exist_ok=True)
    with FileLock(ROOT / "runs" / "pretraining.lock"):  # it stays behind, so it lies where git does not look
        rows = read_rows(results)
        is_new = all((old["method"], old["seed"]) != (row["method"], row["seed"]) for old in rows)
        if is_new:
            write_text(results / ROWS, "".join(json.dumps(row, allow_nan=False) + "\n" for row in [*rows, row]))
    return is_new


def main(args: Args) -> None:
    """Run and record one after the other; exits with 1 if a run failed."""
    runs, has_failed = plan(args), False
    for number, (name, seed) in enumerate(runs, start=1):
        method, run_dir = METHODS[name], args.runs.resolve() / f"{name}-s{seed}"
        was_finished = (run_dir / SUMMARY).exists()
        if not was_finished:
            print(f"[{number}/{len(runs)}] {name}, seed {seed}", flush=True)
            flags = ["--seed", str(seed), "--total-timesteps", str(method.total_timesteps)]
            flags += ["--run-dir", str(run_dir), "--store", f"{run_dir}.sqlite", "--no-film"]
            code = subprocess.run([sys.executable, *method.command, *flags], cwd=ROOT).returncode
            if code:
                has_failed = True
                print(f"{name}, seed {seed}: failed with exit code {code}", flush=True)
                continue
        row = make_row(name, seed, run_dir)
        if append_row(row, args.results):
            print(f"{name}, seed {seed}: {row['final']['achievements_per_episode']} achievements per episode", flush=True)
        elif not was_finished:
            print(f"{name}, seed {seed}: {args.results / ROWS} has a row of it already, which stays", flush=True)
    if has_failed:
        sys.exit(1)


def _achievements(line: dict) -> float:
    """Return a line's achievements per episode."""
    return line["achievements_per_episode"]


def _rounded(value: Any) -> Any:
    """Return nested lists and dicts with their floats rounded to four digits."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    run_cli(main, Args)
