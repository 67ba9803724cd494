"""Measure how many answers a second language models give.

    python -m benchmarks.llm_speed --llms gemma3-270m path/to/model.gguf

The questions are those of a run: the world's newest prompts about scenes that agents meet
(benchmarks/scenes/), in three forms: `open`, a list of goals for a scene; `closed`, the likelihood
of every caption in a scene; `yes-no`, whether a goal needs a fact. A batch is what one call asks.
llama.cpp computes one prompt at a time and is measured in batches of one; it tells no likelihoods.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.origin import RESULTS, command_line, git_commit, machine, versions
from benchmarks.scenes import load, scenes_path
from goals.closed import Closed
from goals.language_models import load_language_model
from goals.model import GEMMA, LanguageModel
from goals.open_ended import OpenEnded
from goals.rules import RulesForm, ask_yes_no
from lab.cli import run_cli
from lab.ranges import Count, Ranged
from lab.run import write_json
from worlds import make_world
from worlds.world import World, WorldArgs

PACKAGES = ("xllamacpp", "transformers", "torch")


@dataclass(frozen=True)
class Args(Ranged):
    """Load the models, ask, print and write down the speeds."""

    env: str = WorldArgs().env
    """the world, which has a file of scenes"""
    llms: tuple[str, ...] = (GEMMA,)
    """models: gemma3-270m, .gguf files (by both engines), folders or hub ids"""
    batches: tuple[Count, ...] = (1, 8, 64)
    """questions a call"""
    answers: Count = 8
    """answers a round at least"""
    rounds: Count = 3
    """rounds of measurement; everything is measured once in each"""
    scenes: Path | None = None
    """the scenes; default: benchmarks/scenes/<world>.npz"""
    out: Path = RESULTS / "llm_speed.json"
    """where the figures go"""


@dataclass(frozen=True)
class Form:
    """A form of asking: `ask(model, questions)` gets the answers."""

    name: str
    questions: Sequence[str]
    ask: Callable[[LanguageModel, list[str]], list[str | None]]


def make_forms(world: World, path: Path) -> list[Form]:
    """Return the three forms with the questions of a run."""
    scenes = [world.describe(scene) for scene in load(path, world).test.scenes]
    rules = RulesForm(world)
    needs = [f"{goal}: {fact}" for fact in rules.facts for goal in rules.goals]
    return [
        Form("open", scenes, OpenEnded(world).ask),
        Form("closed", scenes, Closed(world).ask),
        Form("yes-no", needs, partial(ask_yes_no, rules.templates["needs"])),
    ]


def load_engines(llm: str) -> list[tuple[str, LanguageModel]]:
    """Load a model by every engine that reads it."""
    is_gguf = llm == GEMMA or llm.lower().endswith(".gguf")
    engines = ("llama.cpp", "transformers") if is_gguf else ("transformers",)
    return [(engine, load_language_model(llm, engine=engine)) for engine in engines]


def measure(
    model: LanguageModel, form: Form, questions: Iterator[str], batch: int, answers: int
) -> dict[str, float]:
    """Ask at least so many questions in calls of one batch.

    Returns seconds, prompt and generated tokens per answer.
    """
    calls = -(-answers // batch)
    before = dict(vars(model.usage))
    start = time.perf_counter()
    for _ in range(calls):
        form.ask(model, list(itertools.islice(questions, batch)))
    spent = {"seconds": time.perf_counter() - start}
    for name in ("prompt_tokens", "generated_tokens"):
        spent[name] = getattr(model.usage, name) - before[name]
    return {name: value / (calls * batch) for name, value in spent.items()}


@dataclass
class Contestant:
    """A model by one engine in batches of one size, and what each round has spent."""

    engine: str
    model: LanguageModel
    batch: int
    spent: list[dict[str, float]]


def compare(
    args: Args, form: Form, models: Sequence[tuple[str, LanguageModel]]
) -> list[dict[str, Any]]:
    """Measure one form with all engines and batches, round by round.

    Each engine answers one question first that does not count.
    """
    questions = itertools.cycle(form.questions)
    contestants = []
    for engine, model in models:
        if form.name != "closed" or model.can_score:
            form.ask(model, [next(questions)])
            batches = args.batches if engine != "llama.cpp" else (1,)
            contestants += [Contestant(engine, model, batch, []) for batch in batches]
    for _ in range(args.rounds):
        for each in contestants:
            spent = measure(each.model, form, questions, each.batch, args.answers)
            each.spent.append(spent)
    rows = [summarise(form, each) for each in contestants]
    for row in rows:
        print(
            f"{row['model'][:24]:<26}{row['engine']:<14}{row['form']:<8}{row['batch']:>5}"
            f"{row['median']:>10.2f}{row['lowest']:>10.2f}"
            f"{row['prompt_tokens']:>11.0f}{row['generated_tokens']:>6.0f}",
            flush=True,
        )
    return rows


def summarise(form: Form, contestant: Contestant) -> dict[str, Any]:
    """Return what the JSON holds of a contestant: answers a second, tokens an answer."""
    speeds = [1 / spent["seconds"] for spent in contestant.spent]
    tokens = ("prompt_tokens", "generated_tokens")
    return {
        "model": contestant.model.name,
        "engine": contestant.engine,
        "form": form.name,
        "batch": contestant.batch,
        "median": statistics.median(speeds),
        "lowest": min(speeds),
        "highest": max(speeds),
        "rounds": speeds,
        **{name: statistics.mean(spent[name] for spent in contestant.spent) for name in tokens},
    }


def main(args: Args) -> dict[str, Any]:
    """Measure, print, and return what the JSON holds."""
    world = make_world(WorldArgs(env=args.env))
    forms = make_forms(world, args.scenes or scenes_path(world))
    heads = f"{'batch':>5}{'answers/s':>10}{'lowest':>10}{'tokens in':>11}{'out':>6}"
    print(f"{'model':<26}{'engine':<14}{'form':<8}{heads}")
    rows = []
    for llm in args.llms:
        models = load_engines(llm)
        for form in forms:
            rows += compare(args, form, models)
        for _, model in models:
            model.close()
    result = {
        "command": command_line("llm_speed"),
        "git_commit": git_commit(),
        "machine": machine(),
        "packages": versions(PACKAGES),
        "answers_per_second": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, result)
    return result


if __name__ == "__main__":
    run_cli(main, Args)
