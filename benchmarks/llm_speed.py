"""Measure how many answers a second language models give: python benchmarks/llm_speed.py --llms gemma3-270m path/to/model.gguf.

The questions are those of a run: prompts of prompts/ about scenes that agents meet (benchmarks/scenes/), in three forms: `open`,
a list of goals for a scene; `closed`, the likelihood of every caption in a scene; `yes-no`, whether a goal needs a fact. A batch is
what one call asks. llama.cpp computes one prompt at a time and is measured in batches of one; it tells no likelihoods.
"""

import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.scenes import command_line, git_commit, load  # noqa: E402
from goals.closed import Closed  # noqa: E402
from goals.language_models import LanguageModel, load_language_model  # noqa: E402
from goals.open_ended import PROMPTS, OpenEnded, load_prompt  # noqa: E402
from goals.rules import ask_yes_no, asked_facts  # noqa: E402
from lab.cli import run_cli  # noqa: E402
from lab.run import write_json  # noqa: E402
from worlds import make_world  # noqa: E402

PACKAGES = ("xllamacpp", "transformers", "torch")


@dataclass(frozen=True)
class Args:
    """Load the models, ask, print and write down the speeds."""

    llms: tuple[str, ...] = ("gemma3-270m",)
    """models: gemma3-270m, .gguf files (by both engines), folders or hub ids"""
    batches: tuple[int, ...] = (1, 8, 64)
    """questions a call"""
    answers: int = 8
    """answers a round at least"""
    rounds: int = 3
    """rounds of measurement; everything is measured once in each"""
    scenes: Path = ROOT / "benchmarks" / "scenes" / "crafter.npz"
    """the scenes"""
    out: Path = ROOT / "results" / "llm_speed.json"
    """where the figures go"""


@dataclass(frozen=True)
class Form:
    """A form of asking: `ask(model, questions)` gets the answers."""

    name: str
    questions: Sequence[str]
    ask: Callable[[LanguageModel, list[str]], list]


def make_forms(world, path: Path) -> list[Form]:
    """Return the three forms with the questions of a run."""
    scenes = [world.describe(scene) for scene in load(path, world).test.scenes]
    template, _ = load_prompt(PROMPTS / f"{world.name}_rules_needs_v1.txt", ("fact", "goal"))
    needs = [f"{goal}: {fact}" for fact in asked_facts(world) for goal in world.captions[1:]]
    return [
        Form("open", scenes, OpenEnded(world).ask),
        Form("closed", scenes, Closed(world).ask),
        Form("yes-no", needs, partial(ask_yes_no, template)),
    ]


def load_engines(llm: str) -> list[tuple[str, LanguageModel]]:
    """Load a model by every engine that reads it."""
    is_gguf = llm == "gemma3-270m" or llm.lower().endswith(".gguf")
    engines = ("llama.cpp", "transformers") if is_gguf else ("transformers",)
    return [(engine, load_language_model(llm, engine=engine)) for engine in engines]


def measure(model: LanguageModel, form: Form, questions, batch: int, answers: int) -> dict[str, float]:
    """Ask at least so many questions in calls of one batch; return seconds, prompt and generated tokens per answer."""
    calls = -(-answers // batch)
    before = dict(vars(model.usage))
    start = time.perf_counter()
    for _ in range(calls):
        form.ask(model, list(itertools.islice(questions, batch)))
    spent = {"seconds": time.perf_counter() - start}
    spent |= {name: getattr(model.usage, name) - before[name] for name in ("prompt_tokens", "generated_tokens")}
    return {name: value / (calls * batch) for name, value in spent.items()}


def compare(args: Args, form: Form, models: Sequence[tuple[str, LanguageModel]]) -> list[dict]:
    """Measure one form with all engines and batches, round by round, after a question that does not count."""
    questions = itertools.cycle(form.questions)
    contestants = []
    for engine, model in models:
        if form.name != "closed" or model.can_score:
            form.ask(model, [next(questions)])
            contestants += [(engine, model, batch, []) for batch in (args.batches if engine != "llama.cpp" else (1,))]
    for _ in range(args.rounds):
        for _, model, batch, spent in contestants:
            spent.append(measure(model, form, questions, batch, args.answers))
    rows = []
    for engine, model, batch, spent in contestants:
        speeds = [1 / each["seconds"] for each in spent]
        row = {"model": model.name, "engine": engine, "form": form.name, "batch": batch}
        row |= {"median": statistics.median(speeds), "lowest": min(speeds), "highest": max(speeds), "rounds": speeds}
        row |= {name: statistics.mean(each[name] for each in spent) for name in ("prompt_tokens", "generated_tokens")}
        rows.append(row)
        print(
            f"{model.name[:24]:<26}{engine:<14}{form.name:<8}{batch:>5}{row['median']:>10.2f}{row['lowest']:>10.2f}"
            f"{row['prompt_tokens']:>11.0f}{row['generated_tokens']:>6.0f}",
            flush=True,
        )
    return rows


def main(args: Args) -> dict:
    """Measure, print, and return what the JSON holds."""
    forms = make_forms(make_world("crafter"), args.scenes)
    print(f"{'model':<26}{'engine':<14}{'form':<8}{'batch':>5}{'answers/s':>10}{'lowest':>10}{'tokens in':>11}{'out':>6}")
    rows = []
    for llm in args.llms:
        models = load_engines(llm)
        for form in forms:
            rows += compare(args, form, models)
        for _, model in models:
            model.close()
    result = {
        "command": command_line("benchmarks/llm_speed.py"),
        "git_commit": git_commit(),
        "machine": f"{os.cpu_count()} x {platform.machine()} CPU",
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "answers_per_second": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, result)
    return result


if __name__ == "__main__":
    run_cli(main, Args)
