"""Run a script's own main on a toy world, with a language model that answers from a table."""

import dataclasses
from pathlib import Path

import pytest

import ellm_ppo
import goals.service
from goals.language_models import Usage
from lab.compile_clock import CompileClock

PROMPT = "You explore a corridor.\n\nScene: $scene\nGoals:\n-"
TINY = {
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
}


class Killed(Exception):
    """Stands for a kill in the middle of a run."""


class TableModel:
    """Suggest what suits the toy's scenes, and one goal that no caption equals; note every prompt."""

    name, can_score = "table", False

    def __init__(self):
        self.prompts = []
        self.usage = Usage()

    def generate(self, prompts, max_tokens, stop, temperature, seed):
        self.prompts.extend(prompts)
        self.usage.prompt_tokens += 10 * len(prompts)
        self.usage.generated_tokens += 3 * len(prompts)
        self.usage.seconds += 0.5 * len(prompts)
        return [self.answer(prompt.split("Scene: ")[1].split("\n")[0]) for prompt in prompts]

    def answer(self, scene):
        goals = ["take key"] if "see key" in scene else ["open door", "kick wall"]
        return " " + "\n- ".join([*goals, "sing a song"])

    def close(self):
        pass


def make_args(script, folder: Path, name: str, **fields):
    """Return tiny arguments for a run in folder/name, those that the script has."""
    prompt = folder / "toy_open_v1.txt"
    prompt.write_text(PROMPT, encoding="utf-8")
    tiny = {**TINY, "llm": "table", "prompt": str(prompt), "run_dir": str(folder / name), "store": str(folder / "store.sqlite")}
    known = {field.name for field in dataclasses.fields(script.Args)}
    return script.Args(**{**{k: v for k, v in tiny.items() if k in known}, **fields})


def train(monkeypatch, world, folder: Path, name: str, model=None, script=ellm_ppo, **fields):
    """Train on `world` in folder/name; return the script's summary, the final state and the metrics lines."""
    args = make_args(script, folder, name, **fields)
    monkeypatch.setattr(script, "make_args_world", lambda args: world)
    monkeypatch.setattr(goals.service, "load_language_model", lambda spec, **options: model)
    summary = script.main(args)
    return summary, load_state(args, world, script), read_lines(folder / name)


def train_with_a_break(monkeypatch, world, folder: Path, name: str, model=None, script=ellm_ppo, **fields):
    """Do what `train` does in two goes: the first is killed as it logs update 5."""
    log = script.Run.log

    def kill(self, metrics):
        if metrics["update"] == 5:
            raise Killed
        return log(self, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(script.Run, "log", kill)
        with pytest.raises(Killed):
            train(monkeypatch, world, folder, name, model, script, **fields)
    return train(monkeypatch, world, folder, name, model, script, **fields)


def count_programs(monkeypatch, world, folder: Path, name: str, model=None, script=ellm_ppo, **fields) -> list[int]:
    """Do what `train` does; return how many programs had been compiled as each update was logged."""
    clock, counts, log = CompileClock(), [], script.Run.log
    with monkeypatch.context() as patch:
        patch.setattr(script.Run, "log", lambda self, metrics: (counts.append(clock.programs), log(self, metrics)))
        train(patch, world, folder, name, model, script, **fields)
    return counts


def load_state(args, world, script=ellm_ppo):
    """Restore the last checkpoint of a toy run."""
    service = script.make_service(args, world)
    service.prepare()
    setup = script.make_setup(args, world, service)
    with script.Checkpoints(Path(args.run_dir) / "checkpoints") as checkpoints:
        state, _ = script.restore(setup, service, checkpoints)
    service.close()
    return state


def read_lines(run_dir: Path):
    """Return the metrics without what depends on the clock."""
    return [{k: v for k, v in line.items() if k != "time"} for line in ellm_ppo.read_metrics(run_dir)]
