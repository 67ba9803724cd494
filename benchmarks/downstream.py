"""Measure what pretraining is for, task by task and way by way: python -m benchmarks.downstream.

Each run learns one task, from scratch, from the parameters of a shipped agent (tuned), exploring by
it (guided), or with a language model's goals besides (bonus). Every run is evaluated in held-out
worlds before its first update and every 25,000 env steps. Rows go to results/downstream/runs.jsonl,
from which benchmarks.figures draws; stopping and sharing the work are as in benchmarks.pretraining:

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

STEPS, EVERY = 300_000, 25_000  # env steps of a run, and between its evaluations
SEEDS = (1, 2, 3, 4, 5)
PPO, DQN, PLAIN = ("ellm_ppo.py",), ("ellm_dqn.py",), ("-m", "baselines.ppo")
HARD = ("mine stone", "make stone pickaxe", "mine coal", "place furnace")
TUNED = ("--learning-rate", "3e-4")
BONUS = ("--goal-source", "llm", "--extrinsic-coef", "10")

WAYS = {  # in the order of their worth; a policy without goals is of the baselines' script
    "scratch": PPO,
    "tuned-ellm": (*PPO, "--from-run", "ellm-crafter", *TUNED),
    "guided-ellm": (*PPO, "--guide", "ellm-crafter"),
    "tuned-novelty": (*PPO, "--from-run", "novelty-crafter", *TUNED),
    "guided-novelty": (*PPO, "--guide", "novelty-crafter"),
    "tuned-oracle": (*PPO, "--from-run", "oracle-crafter", *TUNED),
    "guided-oracle": (*PPO, "--guide", "oracle-crafter"),
    "bonus-ellm": (*PPO, *BONUS),
    "tuned-rnd": (*PLAIN, "--from-run", "rnd-crafter", *TUNED),
    "guided-rnd": (*PPO, "--guide", "rnd-crafter"),
    "tuned-apt": (*PLAIN, "--from-run", "apt-crafter", *TUNED),
    "guided-apt": (*PPO, "--guide", "apt-crafter"),
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
    if not seeds:
        raise UserError(f"--seeds: choose of {', '.join(map(str, SEEDS))}")
    return [(name, seed) for seed in seeds for name in METHODS if name in wanted]


def main(args: Args) -> None:
    """Run and record one after the other; exits with 1 if a run failed."""
    run_all(plan(args), args, METHODS)


if __name__ == "__main__":
    run_cli(main, Args)
