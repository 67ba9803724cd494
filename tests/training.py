"""Run a script's own main on a toy world, with a language model that answers from a table."""

import dataclasses
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ellm_ppo
import goals.sources
from goals.service import GoalService
from lab import session
from lab.checkpoint import Checkpoints
from lab.compile_clock import CompileClock
from lab.mentor import load_mentor
from lab.run import Run, read_metrics
from tests.helpers.table_model import PROMPT

TINY = {
    "env": "tests.toy.world:ToyWorld",
    "num_envs": 4,
    "num_steps": 8,
    "num_minibatches": 2,
    "update_epochs": 2,
    "train_frequency": 16,
    "sample_size": 8,
    "learning_starts": 32,
    "target_network_frequency": 64,
    "hidden_size": 16,
    "evaluate_episodes": 0,
    "compilation_cache": False,
    "goal_conditioned": False,
    "text_observation": "none",
}


class Killed(Exception):
    """Stands for a kill in the middle of a run."""


def make_args(script: ModuleType, folder: Path, name: str, **fields):
    """Return tiny arguments for a run in folder/name, those that the script has."""
    prompt = folder / "toy_open_v1.txt"
    prompt.write_text(PROMPT, encoding="utf-8")
    where = {"run_dir": str(folder / name), "store": str(folder / "store.sqlite")}
    tiny = {**TINY, "llm": "table", "prompt": str(prompt), **where}
    known = {field.name for field in dataclasses.fields(script.Args)}
    return script.Args(**{**{k: v for k, v in tiny.items() if k in known}, **fields})


def train(monkeypatch, world, folder: Path, name: str, model=None, script=ellm_ppo, **fields):
    """Train in folder/name; return the summary, the final state and the metrics."""
    args = make_args(script, folder, name, **fields)
    monkeypatch.setattr(script, "make_world", lambda args: world)
    monkeypatch.setattr(goals.sources, "load_language_model", lambda spec, **options: model)
    summary = script.main(args)
    return summary, load_state(args, world, script), read_lines(folder / name)


def train_with_a_break(monkeypatch, world, folder: Path, name: str, *arguments, **fields):
    """Do what `train` does in two goes: the first is killed as it logs update 5."""
    log = Run.log

    def kill(self, metrics):
        if metrics["update"] == 5:
            raise Killed
        return log(self, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", kill)
        with pytest.raises(Killed):
            train(monkeypatch, world, folder, name, *arguments, **fields)
    return train(monkeypatch, world, folder, name, *arguments, **fields)


def count_programs(monkeypatch, world, folder: Path, name: str, *arguments, **fields) -> list[int]:
    """Do what `train` does; return the number of programs compiled up to each update."""
    clock, counts, log = CompileClock(), [], Run.log

    def count(self, metrics):
        counts.append(clock.programs)
        log(self, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", count)
        train(patch, world, folder, name, *arguments, **fields)
    return counts


def open_script(script: ModuleType, args: Any, world: Any):
    """Return the setup and the prepared service of a script on a world."""
    mentor, tables = load_mentor(getattr(args, "guide", None), world)
    service = GoalService(world, args, seed=args.seed, mentor=tables)
    service.prepare()
    guided = {"mentor": mentor} if mentor else {}
    return script.make_setup(args, world, **guided), service


def load_state(args, world, script=ellm_ppo):
    """Restore the last checkpoint of a toy run."""
    setup, service = open_script(script, args, world)
    with Checkpoints(Path(args.run_dir) / "checkpoints") as checkpoints:
        state, _ = session.restore(checkpoints, service, partial(script.init_state, setup))
    service.close()
    return state


def read_lines(run_dir: Path):
    """Return the metrics without what depends on the clock."""
    return [{k: v for k, v in line.items() if k != "time"} for line in read_metrics(run_dir)]


def assert_equal_trees(a, b):
    """Compare two trees of arrays or keys bit for bit."""

    def numbers(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    jax.tree.map(lambda x, y: np.testing.assert_array_equal(numbers(x), numbers(y)), a, b)
