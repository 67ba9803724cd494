"""Let the oracle agent tidy generated houses of Housekeep: python -m benchmarks.solved_houses.

Every house of each split is planned by shortest paths, and the plan is played by the rules in
plain Python; the file says how many were tidied, and in how many steps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.origin import RESULTS, command_line, git_commit, machine
from lab.cli import run_cli
from lab.ranges import Count, Ranged
from lab.run import write_json
from worlds.housekeep.agent import plan
from worlds.housekeep.houses import NUM_TASKS, find_house
from worlds.housekeep.truth import SPLITS


@dataclass(frozen=True)
class Args(Ranged):
    """Tidy the fixed tasks and houses of each split."""

    houses: Count = 334
    """houses of each split, number 0 and on"""
    out: Path = RESULTS / "housekeep" / "solved.json"
    """where the figures go"""


def main(args: Args) -> dict[str, Any]:
    """Plan, count, write and return the figures."""
    tasks = [str(number) for number in range(1, NUM_TASKS + 1)]
    tasks += [f"{split}:{number}" for split in SPLITS for number in range(args.houses)]
    steps, unsolved = {}, {}
    for task in tqdm(tasks):
        try:
            steps[task] = len(plan(find_house(task)))
        except ValueError as error:
            unsolved[task] = str(error)
    lengths = np.array(list(steps.values()))
    result = {
        "command": command_line("solved_houses"),
        "houses": len(tasks),
        "tidied": len(steps),
        "steps": {"least": int(lengths.min()), "mean": float(lengths.mean())},
        "steps_of_tasks": {task: steps.get(task) for task in tasks[:NUM_TASKS]},
        "unsolved": unsolved,
        "git_commit": git_commit(),
        "machine": machine(),
    }
    result["steps"]["most"] = int(lengths.max())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, result)
    print(f"{len(steps)} of {len(tasks)} houses tidied, in {lengths.mean():.0f} steps on average")
    return result


if __name__ == "__main__":
    run_cli(main, Args)
