"""Measure what pretraining is for, task by task and way by way: python -m benchmarks.downstream.

Each run learns one task: from scratch, from the parameters of a shipped agent (tuned), exploring by
it (guided), or paid goals a little, too, from an agent (both) or from scratch (bonus). Every run is
evaluated in held-out worlds before its first update and every 24,576 env steps. Rows go to
results/downstream/runs.jsonl, from which benchmarks.figures draws; stopping and sharing the work
are as in benchmarks.pretraining:

    taskset -c 0 python -m benchmarks.downstream
    python -m benchmarks.downstream --tasks "mine stone" --ways scratch tuned-ellm --seeds 1 2
"""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.origin import RESULTS, ROOT
from benchmarks.pretraining import Method, run_all
from lab.cli import run_cli
from lab.errors import UserError
from lab.ranges import Ranged, Seed
from worlds.crafter.tasks import TASKS

# Env steps of a run, and between its evaluations: whole updates, the last of them evaluated.
STEPS, EVERY = 8 * 24_576, 24_576
SEEDS = (1, 2, 3, 4, 5)
PPO = ("ellm_ppo.py",)
HARD = ("mine stone", "make stone pickaxe", "mine coal", "place furnace", "mine iron")


def tuned(agent: str, source: str) -> tuple[str, ...]:
    """Return the command that goes on from an agent, which reads its goals; the task alone pays."""
    pays = ("--goal-source", source, "--goal-coef", "0", "--extrinsic-coef", "1")
    return (*PPO, "--from-run", agent, *pays, "--learning-rate", "1e-4", "--ent-coef", "0")


def guided(agent: str) -> tuple[str, ...]:
    """Return the command that explores by an agent; the task alone pays."""
    return (*PPO, "--guide", agent)


def both(source: str) -> tuple[str, ...]:
    """Return the flags with which the task pays a hundred times as much as a goal."""
    return ("--goal-source", source, "--goal-coef", "0.1", "--extrinsic-coef", "10")


SLOW = ("--learning-rate", "1e-4")
WAYS = {  # in the order of their worth
    "scratch": PPO,
    "both-ellm": (*PPO, "--from-run", "ellm-crafter", *both("llm"), *SLOW),
    "guided-ellm": guided("ellm-crafter"),
    "guided-deep": guided("ellm-deep-crafter"),
    "both-deep": (*PPO, "--from-run", "ellm-deep-crafter", *both("llm"), *SLOW),
    "tuned-ellm": tuned("ellm-crafter", "llm"),
    "both-novelty": (*PPO, "--from-run", "novelty-crafter", *both("novelty"), *SLOW),
    "guided-novelty": guided("novelty-crafter"),
    "tuned-novelty": tuned("novelty-crafter", "novelty"),
    "bonus-ellm": (*PPO, *both("llm")),
    "both-oracle": (*PPO, "--from-run", "oracle-crafter", *both("oracle"), *SLOW),
    "guided-oracle": guided("oracle-crafter"),
    "tuned-oracle": tuned("oracle-crafter", "oracle"),
    "scratch-1e-4": (*PPO, *SLOW),
}


def method_name(task: str, way: str) -> str:
    """Return how a task learned in one way is called among the rows."""
    return f"{task}: {way}"


# Ways by their worth, hard tasks first: see benchmarks.pretraining.
METHODS = {
    method_name(task, way): Method(
        "downstream", (*command, "--task", task, "--evaluate-every", str(EVERY)), SEEDS, STEPS
    )
    for way, command in WAYS.items()
    for task in sorted(TASKS, key=lambda task: task not in HARD)
}


@dataclass(frozen=True)
class Args(Ranged):
    """Run what is missing and record it."""

    tasks: tuple[str, ...] = ()
    """names of the tasks wanted; default: all"""
    ways: tuple[str, ...] = ()
    """ways to learn them; default: all"""
    seeds: tuple[Seed, ...] = ()
    """of the five seeds, those wanted; default: all"""
    runs: Path = ROOT / "runs" / "downstream"
    """where the runs' directories are"""
    results: Path = RESULTS / "downstream"
    """where runs.jsonl is"""


def plan(args: Args) -> list[tuple[str, int]]:
    """Return (method, seed) of the runs, seed by seed; raises UserError for an unknown name."""
    for flag, given, known in (("--tasks", args.tasks, TASKS), ("--ways", args.ways, WAYS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise UserError(f"{flag} {unknown[0]!r} is unknown: choose of {', '.join(known)}")
    wanted = {method_name(task, way) for task in args.tasks or TASKS for way in args.ways or WAYS}
    seeds = [seed for seed in SEEDS if seed in (args.seeds or SEEDS)]
    if set(args.seeds) - set(SEEDS):
        raise UserError(f"--seeds: choose of {', '.join(map(str, SEEDS))}")
    return [(name, seed) for seed in seeds for name in METHODS if name in wanted]


def main(args: Args) -> None:
    """Run and record one after the other; exits with 1 if a run failed."""
    run_all(plan(args), args, METHODS)


if __name__ == "__main__":
    run_cli(main, Args)
