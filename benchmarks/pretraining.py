"""Run the comparison of pretraining methods over seeds: python -m benchmarks.pretraining.

Runs go in the order of their worth: seed 1 of every method, the most telling ones first, then the
other seeds in the same order, pixels and long runs last. So whenever it stops, what matters most is
there. A run that is finished is not run again, one that was interrupted goes on. Each finished run
becomes a row of results/pretraining/runs.jsonl, from which benchmarks.figures draws. Several
instances share the work: each takes the next run that no other one is at. Give each its own cores:

    taskset -c 0 python -m benchmarks.pretraining
    python -m benchmarks.pretraining --group dqn            one group of methods
    python -m benchmarks.pretraining --only oracle rnd --seeds 1
    python -m benchmarks.pretraining --results mine         rows of one's own, beside those here
"""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from filelock import FileLock, Timeout

from benchmarks.origin import RESULTS, ROOT, machine
from lab.cli import run_cli
from lab.errors import UserError
from lab.metrics import score_key
from lab.ranges import Ranged, Seed
from lab.run import SUMMARY, read_config, read_evaluations, read_json, read_metrics, write_text

ROWS = "runs.jsonl"
BIN = 20_000  # env steps of one point of a curve
FINAL = 0.05  # share of the run, at its end, over which the final figures are means
REPORTED = (  # of summary.json
    *("evaluation", "first_million", "sps", "wall_seconds", "compile_seconds", "queries"),
    "steps_without_answer",
)

Group = Literal["ppo", "dqn", "standard", "deep", "deep-5m", "housekeep", "gpu", "pixels", "long"]
# Groups that begin when all others are done.
LAST: tuple[Group, ...] = ("deep", "deep-5m", "housekeep", "gpu", "pixels", "long")
MILLION = 1_000_000
HOUSE_STEPS = 4 * MILLION


class Method(NamedTuple):
    """What is run, after `python`, and how often; group: of this comparison, or another one's."""

    group: str
    command: tuple[str, ...]
    seeds: tuple[int, ...] = (1, 2, 3)
    total_timesteps: int = MILLION


BLIND = ("--text-observation", "none")  # the policy reads no words of the scene
NO_GOALS = ("--no-goal-conditioned",)  # the policy reads no goals
LISTS = (  # lists are recorded for this version of the prompt
    *(
        "--goal-form",
        "open",
        "--prompt",
        "prompts/crafter_open_v2.txt",
        "--prompt-scope",
        "compact",
    ),
    *("--resolve", "replay", "--on-missing", "no-goals"),
)
GEMMA = ("--llm", "gemma3-270m")
UNIFORM = ("--start-e", "1", "--end-e", "1", "--learning-starts", str(MILLION))  # never learns
STANDARD = ("--actions", "base", "--game-rules", "craftax")  # 17 actions, 10,000 steps
FRAMES = ("--observation", "frames")
PAPER_HOUSE = (  # nothing that leads to the goals, and all places that the model says are right
    *("--no-goal-view", "--approach-coef", "0", "--discovery-coef", "0"),
    *("--exploring-starts", "0", "--pair-choice", "threshold"),
)
VERBS, MAP = ("--goal-head", "verbs"), ("--goal-view",)  # the policy acts on its goals' words
GPU = ("--preset", "gpu")
MANY = ("--num-envs", "128")  # worlds: a GPU takes few of them no faster
EVIDENCE = ("--evidence",)  # rules corrected by what happens
PPO, DQN = "ellm_ppo.py", "ellm_dqn.py"
ORACLE, NOVELTY = ("--goal-source", "oracle"), ("--goal-source", "novelty")
GROUNDED = ("--goal-source", "grounded")
FIVE = (1, 2, 3, 4, 5)

METHODS = {  # in the order of their worth
    "oracle": Method("ppo", (PPO, *ORACLE)),
    "ellm": Method("ppo", (PPO,)),
    "ellm-blind": Method("ppo", (PPO, *NO_GOALS, *BLIND)),
    "novelty": Method("ppo", (PPO, *NOVELTY)),
    "game": Method("ppo", ("-m", "baselines.ppo")),
    "standard-game": Method("standard", ("-m", "baselines.ppo", *STANDARD)),
    "standard-ellm": Method("standard", (PPO, *STANDARD)),
    "standard-ellm-game": Method("standard", (PPO, *STANDARD, "--extrinsic-coef", "1")),
    "standard-oracle": Method("standard", (PPO, *STANDARD, *ORACLE)),
    "standard-novelty": Method("standard", (PPO, *STANDARD, *NOVELTY)),
    "dqn-ellm": Method("dqn", (DQN,)),
    "dqn-oracle": Method("dqn", (DQN, *ORACLE)),
    "ellm-lists": Method("ppo", (PPO, *LISTS)),
    "ellm-270m": Method("ppo", (PPO, *GEMMA, "--resolve", "replay")),
    "oracle-blind": Method("ppo", (PPO, *ORACLE, *NO_GOALS, *BLIND)),
    "ellm-goals": Method("ppo", (PPO, *BLIND)),
    "ellm-scene": Method("ppo", (PPO, *NO_GOALS)),
    "grounded": Method("ppo", (PPO, *GROUNDED)),
    "game-lr3e-4": Method("ppo", ("-m", "baselines.ppo", "--learning-rate", "3e-4")),
    "rnd": Method("ppo", ("-m", "baselines.ppo_rnd")),
    "random": Method("ppo", ("-m", "baselines.dqn", *UNIFORM)),
    "novelty-paper": Method("ppo", (PPO, "--goal-source", "novelty-paper")),
    "uniform": Method("ppo", (PPO, "--goal-source", "uniform")),
    "apt": Method("ppo", ("-m", "baselines.ppo_apt")),
    "noveld": Method("ppo", ("-m", "baselines.ppo_rnd", "--noveld")),
    "ellm-lists-270m": Method("ppo", (PPO, *GEMMA, *LISTS)),
    "rnd-blind": Method("ppo", ("-m", "baselines.ppo_rnd", *BLIND)),
    "apt-blind": Method("ppo", ("-m", "baselines.ppo_apt", *BLIND)),
    "dqn-novelty": Method("dqn", (DQN, *NOVELTY)),
    "dqn-rnd": Method("dqn", ("-m", "baselines.dqn_rnd")),
    "deep-oracle": Method("deep", (PPO, *ORACLE, *VERBS, *MAP)),
    "deep-ellm": Method("deep", (PPO, *VERBS, *MAP, *EVIDENCE)),
    "deep-novelty": Method("deep", (PPO, *NOVELTY, *VERBS, *MAP)),
    "deep-grounded-evidence": Method("deep", (PPO, *GROUNDED, *VERBS, *MAP, *EVIDENCE)),
    "deep-ellm-head": Method("deep", (PPO, *VERBS, *MAP)),
    "deep-ellm-evidence": Method("deep", (PPO, *EVIDENCE)),
    "deep-oracle-verbs": Method("deep", (PPO, *ORACLE, *VERBS)),
    "deep-oracle-faced": Method("deep", (PPO, *ORACLE, "--goal-head", "faced")),
    "deep-oracle-named": Method("deep", (PPO, *ORACLE, "--goal-head", "named")),
    "deep-oracle-map": Method("deep", (PPO, *ORACLE, *MAP)),
    "deep-ellm-5m": Method("deep-5m", (PPO, *MANY, *VERBS, *MAP, *EVIDENCE), FIVE, 5 * MILLION),
    "deep-oracle-5m": Method("deep-5m", (PPO, *MANY, *ORACLE, *VERBS, *MAP), FIVE, 5 * MILLION),
    "deep-grounded-evidence-5m": Method(
        "deep-5m", (PPO, *MANY, *GROUNDED, *VERBS, *MAP, *EVIDENCE), FIVE, 5 * MILLION
    ),
    "deep-ellm-plain-5m": Method("deep-5m", (PPO, *MANY), FIVE, 5 * MILLION),
    "deep-ellm-evidence-5m": Method("deep-5m", (PPO, *MANY, *EVIDENCE), FIVE, 5 * MILLION),
    "deep-ellm-head-5m": Method("deep-5m", (PPO, *MANY, *VERBS, *MAP), FIVE, 5 * MILLION),
    "deep-novelty-5m": Method("deep-5m", (PPO, *MANY, *NOVELTY, *VERBS, *MAP), FIVE, 5 * MILLION),
    "gpu-oracle": Method("gpu", (PPO, *GPU, *ORACLE, *VERBS, *MAP), (1,), 50 * MILLION),
    "gpu-ellm": Method("gpu", (PPO, *GPU, *VERBS, *MAP, *EVIDENCE), (1,), 50 * MILLION),
    "gpu-novelty": Method("gpu", (PPO, *GPU, *NOVELTY, *VERBS, *MAP), (1,), 50 * MILLION),
    "pixels-oracle": Method("pixels", (PPO, *FRAMES, *ORACLE), (1,), 150_000),
    "pixels-dqn-oracle": Method("pixels", (DQN, *FRAMES, *ORACLE), (1,), 150_000),
    "oracle-5m": Method("long", (PPO, *ORACLE), (1,), 5 * MILLION),
    "ellm-5m": Method("long", (PPO,), (1,), 5 * MILLION),
}
HOUSES = ("1", "2", "3", "4")  # the tasks of Housekeep
UNSEEN = tuple(f"test:{number}" for number in range(8))  # houses with held-out things
IN_HOUSES = {
    "oracle": (PPO, *ORACLE),
    "ellm": (PPO,),
    "novelty": (PPO, *NOVELTY),
    "ellm-270m": (PPO, *GEMMA, "--resolve", "replay"),
    "game": ("-m", "baselines.ppo"),
    "uniform": (PPO, "--goal-source", "uniform"),
    "rnd": ("-m", "baselines.ppo_rnd"),
    "apt": ("-m", "baselines.ppo_apt"),
    "oracle-paper": (PPO, *ORACLE, *PAPER_HOUSE),
    "ellm-paper": (PPO, *PAPER_HOUSE),
    "ellm-threshold": (PPO, "--pair-choice", "threshold"),
    "dqn-oracle": (DQN, *ORACLE),
    "dqn-ellm": (DQN,),
    "dqn-novelty": (DQN, *NOVELTY),
}
METHODS |= {
    f"house{task}-{name}": Method(
        "housekeep", (*command, "--env", "housekeep", "--task", task), FIVE, HOUSE_STEPS
    )
    for name, command in IN_HOUSES.items()
    for task in HOUSES
}
METHODS |= {
    f"unseen{number}-{name}": Method(
        "housekeep", (*IN_HOUSES[name], "--env", "housekeep", "--task", task), (1,), HOUSE_STEPS
    )
    for number, task in enumerate(UNSEEN)
    for name in ("oracle", "ellm", "novelty")
}


@dataclasses.dataclass(frozen=True)
class Args(Ranged):
    """Run what is missing and record it."""

    only: tuple[str, ...] = ()
    """names of the methods wanted; default: all"""
    group: tuple[Group, ...] = ()
    """groups of the methods wanted; default: all"""
    seeds: tuple[Seed, ...] = ()
    """of each method's seeds, those wanted; default: all"""
    runs: Path = ROOT / "runs" / "pretraining"
    """where the runs' directories are"""
    results: Path = RESULTS / "pretraining"
    """where runs.jsonl is"""


def plan(args: Args) -> list[tuple[str, int]]:
    """Return (method, seed) of the runs in their order.

    Raises UserError for an unknown method, and where nothing is left.
    """
    unknown = [name for name in args.only if name not in METHODS]
    if unknown:
        raise UserError(f"--only {unknown[0]} is unknown: choose of {', '.join(METHODS)}")
    runs = [
        (name, seed)
        for name, method in METHODS.items()
        for seed in method.seeds
        if name in (args.only or METHODS)
        and method.group in (args.group or get_args(Group))
        and seed in (args.seeds or method.seeds)
    ]
    if not runs:
        raise UserError("no method has all that --only, --group and --seeds ask for")
    return sorted(runs, key=lambda run: (METHODS[run[0]].group in LAST, run[1]))


def learner(command: Sequence[str]) -> str:
    """Return "dqn" or "ppo", by the script's name."""
    return "dqn" if any("dqn" in word for word in command[:2]) else "ppo"


# ROWS
Lines = Sequence[Mapping[str, Any]]  # of metrics.jsonl


def mean(lines: Lines, get: Callable[[Mapping[str, Any]], float]) -> float | None:
    """Return the mean of `get(line)` over the episodes that ended in these lines, None without."""
    ended = [line for line in lines if line["episodes"]]
    episodes = sum(line["episodes"] for line in ended)
    return sum(get(line) * line["episodes"] for line in ended) / episodes if episodes else None


def learning_curve(lines: Lines, score: str) -> dict[str, list[float | None]]:
    """Return means of a score over bins of `BIN` env steps; "env_steps" are the bins' ends."""
    ends = range(BIN, lines[-1]["env_steps"] + BIN, BIN)
    bins = [[line for line in lines if end - BIN < line["env_steps"] <= end] for end in ends]
    means = [mean(inside, itemgetter(score)) for inside in bins]
    return {"env_steps": list(ends), score: means}


def final(lines: Lines, score: str) -> dict[str, Any]:
    """Return means over the episodes that ended in the last `FINAL` of the run."""
    window = [line for line in lines if line["env_steps"] > (1 - FINAL) * lines[-1]["env_steps"]]
    names = next((line["success_rates"] for line in lines if line["episodes"]), {})
    rates = {
        name: mean(window, lambda line, name=name: line["success_rates"][name]) for name in names
    }
    return {score: mean(window, itemgetter(score)), "success_rates": rates}


def make_row(
    name: str, seed: int, run_dir: Path, methods: Mapping[str, Method] | None = None
) -> dict[str, Any]:
    """Return all that is kept of a finished run; methods: default: those of this comparison."""
    method, summary = (methods or METHODS)[name], read_json(run_dir / SUMMARY)
    config, lines = read_config(run_dir), read_metrics(run_dir)
    steps, score = config["arguments"]["total_timesteps"], score_key(config["score_name"])
    command = ["python", *method.command, "--seed", str(seed), "--total-timesteps", str(steps)]
    row = {
        "method": name,
        "group": method.group,
        "seed": seed,
        "learner": learner(method.command),
        "command": shlex.join(command),
        "total_timesteps": steps,
        "score": score,
        "curve": learning_curve(lines, score),
        "final": final(lines, score),
        **_evaluations(run_dir, score),
        **{key: summary[key] for key in REPORTED if key in summary},
        "git_commit": config["git_commit"],
        "git_dirty": config["git_dirty"],
        "machine": machine(),
        "device": config["device_kind"],
    }
    if hasattr(os, "sched_getaffinity"):
        row["threads"] = len(os.sched_getaffinity(0))
    return _rounded(row)


def read_rows(results: Path) -> list[dict[str, Any]]:
    """Return the rows of runs.jsonl, none where there is no such file."""
    file = results / ROWS
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def append_row(row: Mapping[str, Any], results: Path) -> bool:
    """Add a row unless there is one of the same method and seed; return whether it was added."""
    results.mkdir(parents=True, exist_ok=True)
    (ROOT / "runs").mkdir(exist_ok=True)
    # The lock stays behind, so it lies where git does not look.
    with FileLock(ROOT / "runs" / "pretraining.lock"):
        rows = read_rows(results)
        key = row["method"], row["seed"]
        is_new = all((old["method"], old["seed"]) != key for old in rows)
        if is_new:
            lines = (json.dumps(row, allow_nan=False) + "\n" for row in [*rows, row])
            write_text(results / ROWS, "".join(lines))
    return is_new


def _evaluations(run_dir: Path, score: str) -> dict[str, Any]:
    """Return the held-out evaluations during the training, {} where there were none."""
    found = read_evaluations(run_dir)
    names = ("env_steps", score, "episodes")
    return {"evaluations": {name: [x[name] for x in found] for name in names}} if found else {}


# RUNS
@contextmanager
def claim(run_dir: Path) -> Iterator[bool]:
    """Take a run for this process until it leaves or dies; yield False if another one has it."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{run_dir}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def train(method: Method, seed: int, run_dir: Path) -> int:
    """Train one method to the end in a process of its own; return its exit code."""
    flags = ["--seed", str(seed), "--total-timesteps", str(method.total_timesteps)]
    flags += ["--run-dir", str(run_dir), "--store", f"{run_dir}.sqlite", "--no-film"]
    return subprocess.run([sys.executable, *method.command, *flags], cwd=ROOT).returncode


def is_finished(run_dir: Path) -> bool:
    """Return whether a run has been evaluated, the last thing of it that a row reports."""
    summary = run_dir / SUMMARY
    return summary.exists() and "evaluation" in read_json(summary)


def run(
    name: str,
    seed: int,
    args: Any,
    methods: Mapping[str, Method] | None = None,
    add: Callable[[str, Path], Mapping[str, Any]] = lambda name, run_dir: {},
) -> bool:
    """Train what is not finished and record it; return whether that worked.

    args: with `runs` and `results`; methods: default: those of this comparison; add(name, run_dir):
    what a finished run's row has besides.
    """
    methods = methods or METHODS
    folder = "-".join(re.findall(r"[\w.]+", name))
    run_dir, run_name = args.runs.resolve() / f"{folder}-s{seed}", f"{name}, seed {seed}"
    recorded = {(row["method"], row["seed"]) for row in read_rows(args.results)}
    if (name, seed) in recorded:
        print(f"{run_name}: {args.results / ROWS} has a row of it", flush=True)
        return True
    with claim(run_dir) as is_ours:
        if not is_ours:
            print(f"{run_name}: another process is at it", flush=True)
            return True
        if not is_finished(run_dir):
            print(f"{run_name}: begins", flush=True)
            code = train(methods[name], seed, run_dir)
            if code or not is_finished(run_dir):
                print(f"{run_name}: failed with exit code {code}", flush=True)
                return False
        row = {**make_row(name, seed, run_dir, methods), **add(name, run_dir)}
        append_row(row, args.results)
        said = row["score"].replace("_", " ")
        print(f"{run_name}: {row['final'][row['score']]} {said}", flush=True)
    return True


def run_all(
    runs: Iterable[tuple[str, int]],
    args: Any,
    methods: Mapping[str, Method],
    add: Callable[[str, Path], Mapping[str, Any]] = lambda name, run_dir: {},
) -> None:
    """Run and record one after the other, as `run`; exits with 1 if a run failed."""
    worked = [run(name, seed, args, methods, add) for name, seed in runs]
    if not all(worked):
        sys.exit(1)


def main(args: Args) -> None:
    """Run and record the comparison."""
    run_all(plan(args), args, METHODS)


def _rounded(value: Any) -> Any:
    """Return nested lists and dicts with their floats rounded to four digits."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    run_cli(main, Args)
