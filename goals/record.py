"""Ask a language model beforehand what runs will ask it, and keep what it says in a store.

    python -m goals.record --llm model.gguf --store mine.sqlite
        the rules: some thousand questions
    python -m goals.record --llm model.gguf --store mine.sqlite --form open --scenes scenes.txt
        a list for each scene of a file
    python -m goals.record --env housekeep --task valid:1 --llm model.gguf --store mine.sqlite
        --form pairs --things things.txt
        where each thing belongs, those of the task and those of a file
    python -m goals.record --llm model.gguf --store new.sqlite --compare mine.sqlite
        ask anew and compare

The embeddings of the world's captions and facts are kept too. Answers are stored as they come, so
an interrupted recording loses at most one batch. A comparison says how many answers differ, and by
how much those that are scores.
"""

import dataclasses
import time
from pathlib import Path
from typing import Literal

import numpy as np

from goals.arguments import GoalArgs
from goals.asking import Asker
from goals.embeddings import Embeddings
from goals.forms import make_form
from goals.language_models import load_language_model
from goals.model import LanguageModel
from goals.packing import unpack_scores
from goals.rules import read_odds
from goals.store import Answer, Store
from lab.cli import run_cli
from lab.errors import UserError
from worlds import make_world
from worlds.world import World, WorldArgs


@dataclasses.dataclass(frozen=True)
class Args:
    """Record a language model's answers."""

    llm: str
    """gemma3-270m, path of a GGUF file, or folder or hub id of a transformers model"""
    store: Path
    """the store the answers go to"""
    form: Literal["rules", "open", "closed", "pairs"] = "rules"
    """what to ask"""
    closed_scoring: Literal["likelihood", "yes-no"] = "likelihood"
    """how the closed form asks of each goal in a scene"""
    closed_calibration: Literal["scene", "goal"] = "scene"
    """goal: ask about the published scenes too"""
    pair_scoring: Literal["recipe", "yes-no"] = "recipe"
    """how the pairs form asks where things belong"""
    scenes: Path | None = None
    """sentences of scenes, one a line, the most important first (forms open and closed)"""
    things: Path | None = None
    """names of more things than the world at hand has, one a line (form pairs)"""
    env: str = "crafter"
    """the world to ask about; package.module:Class names one of your own"""
    task: str | None = None
    """the task whose things are asked about; default: the world's first"""
    placements: Path | None = None
    """a table of where things belong, instead of the world's own"""
    prompt: str | None = None
    """prompt file, or folder/prefix of those of the rules or pairs; default: the world's newest"""
    llm_engine: Literal["auto", "llama.cpp", "transformers"] = "auto"
    """what computes a GGUF file"""
    llm_url: str | None = None
    """address of an OpenAI-compatible server that has the model"""
    sentence_encoder: str = GoalArgs.sentence_encoder
    """embeds captions and facts, so that a run on the recording need not"""
    compare: Path | None = None
    """a recorded store to compare the answers with"""


def main(args: Args) -> dict[str, float]:
    """Ask what the store has no answer to; return what was asked and what `compare` found."""
    world = make_world(WorldArgs(env=args.env, task=args.task, placements=args.placements))
    questions = _read_questions(args)
    recorded = Store(args.compare, read_only=True) if args.compare else None
    model = load_language_model(args.llm, url=args.llm_url, engine=args.llm_engine)
    with Store(args.store) as store:
        report = record(world, args, model, store, questions)
        if recorded:
            report |= compare(store, recorded)
    model.close()
    figures = [f"{value:g} {name.replace('_', ' ')}" for name, value in report.items()]
    print(f"{model.name}: {', '.join(figures)}")
    return report


def record(
    world: World, args: Args, model: LanguageModel, store: Store, questions: list[str]
) -> dict[str, float]:
    """Ask a model what runs in a world will ask, and embed the world's captions and facts.

    questions: sentences of scenes or, by the pairs form, names of things. Return how much was
    asked, and how much was not answered.
    """
    asker = Asker(model.name, store, model)
    start = time.perf_counter()

    def show(waiting: int) -> None:
        rate = asker.costs.queries / max(time.perf_counter() - start, 1e-9)
        line = f"{asker.costs.queries} asked, {rate:.1f} a second, {waiting} of this kind left"
        print(f"\r{line}   ", end="" if waiting else "\n", flush=True)

    asker.on_progress = show
    goal_args = GoalArgs(
        goal_form=args.form,
        prompt=args.prompt,
        closed_scoring=args.closed_scoring,
        closed_calibration=args.closed_calibration,
        pair_scoring=args.pair_scoring,
    )
    form = make_form(world, goal_args, model.name)
    form.prepare(asker.answers)
    if questions and args.form == "pairs":
        form.judge(asker.answers, questions)
    elif questions:
        asker.answers(form.prompt_hash, form.parameters, questions, form.ask)
    Embeddings(args.sentence_encoder, store).embed([*world.captions, *world.facts])
    return {"queries": asker.costs.queries, "unanswered": asker.costs.unanswered}


def compare(store: Store, recorded: Store) -> dict[str, float]:
    """Compare the answers that both stores have; raises UserError if there are none.

    Returns how many both have, how many differ as texts, and the largest difference of log-odds or
    log-likelihoods in nats.
    """
    old = {row[:-1]: row.answer for row in recorded.rows() if isinstance(row, Answer)}
    pairs = [
        (row.answer, old[row[:-1]])
        for row in store.rows()
        if isinstance(row, Answer) and row[:-1] in old
    ]
    if not pairs:
        models = ", ".join(recorded.models())
        raise UserError(f"{recorded.path} has none of these answers; it holds answers of {models}")
    scores = [(_scores(new), _scores(was)) for new, was in pairs]
    differences = [np.abs(new - was).max() for new, was in scores if len(new) == len(was) > 0]
    return {
        "compared": len(pairs),
        "different": sum(new != was for new, was in pairs),
        "largest_difference": float(max(differences, default=0.0)),
    }


def _scores(answer: str) -> np.ndarray:
    """Return the numbers of a raw answer: log-odds, or log-likelihoods, or none."""
    odds = read_odds(answer)
    return np.nan_to_num(unpack_scores(answer)) if np.isnan(odds) else np.array([odds])


def _read_questions(args: Args) -> list[str]:
    """Return the lines, each once, of the file that the form needs or may have."""
    if args.form == "rules" or (args.form == "pairs" and args.things is None):
        return []
    flag = "things" if args.form == "pairs" else "scenes"
    path = getattr(args, flag)
    if path is None:
        raise UserError(
            f"--form {args.form} needs --scenes: a file with one scene's sentence a line"
        )
    try:
        lines = map(str.strip, path.read_text("utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"--{flag} {path} cannot be read ({reason}): give a text file") from error
    return list(dict.fromkeys(line for line in lines if line))


if __name__ == "__main__":
    run_cli(main, Args)
