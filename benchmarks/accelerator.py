"""Measure worlds and learners on whatever device JAX finds: python -m benchmarks.accelerator.

For each number of worlds, in one process: worlds alone with random actions, plain craftax with
optimistic resets, ELLM with PPO and with DQN, which read goals and facts (whole updates, warm).
Reports steps a second, compile time and memory, and the fastest number of worlds of each, by which
--preset gpu is chosen. After --budget seconds nothing new begins; what was left out is listed. The
file is written anew after each contestant, so whatever stops this takes nothing that was measured.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

import ellm_dqn
import ellm_ppo
from benchmarks import speed
from benchmarks.origin import RESULTS, command_line, git_commit, machine, versions
from goals.arguments import GoalArgs
from lab.cli import run_cli
from lab.compile_clock import CompileClock
from lab.machine import set_up_jax
from lab.ranges import Count, Ranged, Weight, Width
from lab.run import write_text
from worlds.world import WorldArgs

PACKAGES = ("jax", "jaxlib", "flax", "craftax")
PPO_MINIBATCH = 2048  # env steps, at least; there are at most 8 minibatches
Make = Callable[[], tuple[speed.Run, int]]  # makes a contestant: one round of it, its env steps


@dataclass(frozen=True)
class Args(Ranged):
    """Measure, print and write the speeds."""

    env: str = WorldArgs().env
    """our world; craftax is comparable with crafter alone"""
    goal_source: str = GoalArgs().goal_source
    """goals of the learners; a world without recorded answers needs another source than llm"""
    num_envs: tuple[Count, ...] = (256, 1024, 4096, 16384)
    """numbers of worlds in step"""
    num_steps: Count = 16
    """steps of each world per rollout"""
    hidden_size: Width = 512
    """width of the learners' hidden layers"""
    dqn_sample_size: Count = 1024
    """transitions per gradient step of DQN"""
    buffer_size: Count = 1_000_000
    """transitions in DQN's replay, at least those of two updates"""
    rounds: Count = 5
    """timed rounds of each contestant"""
    budget: Weight = 420.0
    """time after which nothing new begins [s]"""
    out: Path = RESULTS / "accelerator.json"
    """where the figures go"""


def contestants(args: Args, num_envs: int) -> dict[str, Make]:
    """Return by name what makes a contestant."""
    size = speed.Args(env=args.env, num_envs=num_envs, num_steps=args.num_steps)
    shape = {"env": args.env, "num_envs": num_envs, "num_steps": args.num_steps}
    shape |= {"goal_source": args.goal_source, "hidden_size": args.hidden_size}
    steps = size.num_env_steps
    ppo = {"num_minibatches": max(1, min(8, steps // PPO_MINIBATCH))}
    # An update of DQN takes a gradient step for each `sample` env steps: every step is used once.
    sample = min(args.dqn_sample_size, steps)
    dqn = {"sample_size": sample, "train_frequency": sample, "target_network_frequency": sample}
    dqn |= {"buffer_size": max(args.buffer_size, 2 * steps), "learning_starts": 0}
    return {
        "worlds": lambda: (speed.random_ours(size), steps),
        "craftax": lambda: (speed.random_reference(size, speed.optimistic), steps),
        "ppo": lambda: speed.train_ours(ellm_ppo, **shape, **ppo),
        "dqn": lambda: speed.train_ours(ellm_dqn, **shape, **dqn),
    }


def measure(make: Make, rounds: int) -> dict[str, Any]:
    """Make a contestant, run it until all is compiled, then time it; return its figures."""
    clock = CompileClock()
    run, steps = make()
    for _ in range(speed.WARM_UP):
        run()
    compile_seconds, programs, seconds = clock.seconds, clock.programs, []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {
        "steps_per_second": steps / statistics.median(seconds),
        "fastest": steps / min(seconds),
        "slowest": steps / max(seconds),
        "compile_seconds": compile_seconds,
        "compiled_while_timed": clock.programs - programs,
        "peak_memory_bytes": peak_memory(),
    }


def peak_memory() -> int:
    """Return the most bytes in use so far, by any contestant.

    Of the device where it tells, else of this process.
    """
    told = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return int(told.get("peak_bytes_in_use", own))


def measure_all(args: Args) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield each contestant's figures and True; of one that is left out why, and False."""
    began = time.perf_counter()
    for num_envs in args.num_envs:
        for name, make in contestants(args, num_envs).items():
            what = {"what": name, "num_envs": num_envs}
            if time.perf_counter() - began > args.budget:
                yield what | {"why": "budget"}, False
                continue
            try:
                row = what | measure(make, args.rounds)
            except jax.errors.JaxRuntimeError as error:  # most likely out of memory
                yield what | {"why": str(error).splitlines()[0][:200]}, False
                continue
            rate, compiling = row["steps_per_second"], row["compile_seconds"]
            told = f"{rate:>12,.0f} steps/s, {compiling:.0f} s compiling"
            print(f"{name:>8} {num_envs:>7,} worlds {told}", flush=True)
            yield row, True


def fastest(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return for each contestant the number of worlds with which it was the fastest."""
    ordered = sorted(rows, key=lambda row: row["steps_per_second"])
    return {row["what"]: row["num_envs"] for row in ordered}


def main(args: Args) -> dict[str, Any]:
    """Measure, print, and return what the JSON holds."""
    set_up_jax()
    began, device = time.perf_counter(), jax.local_devices()[0]
    rows, left_out = [], []
    result = {
        "command": command_line("accelerator"),
        "env": args.env,
        "goal_source": args.goal_source,
        "device": f"{device.platform}: {device.device_kind}",
        "machine": machine(),
        "packages": versions(PACKAGES),
        "git_commit": git_commit(),
        "rows": rows,
        "left_out": left_out,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for row, measured in measure_all(args):
        (rows if measured else left_out).append(row)
        result["fastest_num_envs"] = fastest(rows)
        result["seconds"] = time.perf_counter() - began
        write_text(args.out, json.dumps(result, indent=2) + "\n")
    return result


if __name__ == "__main__":
    run_cli(main, Args)
