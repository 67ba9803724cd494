"""Ask a language model all questions of the rules form and keep its answers, and the captions' embeddings, in a store.

    python -m goals.record --llm model.gguf --store rules.sqlite                        record, or go on
    python -m goals.record --llm model.gguf --store new.sqlite --compare rules.sqlite   check a recording

Answers are stored as they come, so an interrupted recording loses at most one batch. A comparison asks anew,
all questions or `--sample` of them, and fails if the log-odds differ by more than `--tolerance`.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np
import tyro

from goals import rules
from goals.language_models import load_language_model
from goals.sentence_encoder import load_sentence_encoder
from goals.store import Store
from lab.errors import UserError
from worlds import make_world

QUESTIONS_PER_BATCH = 26


@dataclasses.dataclass(frozen=True)
class Args:
    llm: str
    """gemma3-270m, path of a GGUF file, or folder or hub id of a transformers model"""
    store: Path
    """the store the answers go to"""
    env: str = "crafter"
    """the world to ask about"""
    prompt: str | None = None
    """folder/prefix of the three prompt files; default: the world's in prompts/"""
    sentence_encoder: str = "all-MiniLM-L6-v2"
    """embeds the captions, so that a run on the recording need not"""
    sample: int = 0
    """ask only so many questions of each kind, evenly spread; 0: all"""
    compare: Path | None = None
    """a recorded store to compare the answers with"""
    tolerance: float = 0.5
    """largest difference of log-odds that a comparison lets pass (other machines have other kernels)"""


def record(args: Args) -> float:
    """Ask what the store has no answer to; return the largest difference of log-odds from `compare`."""
    world = make_world(args.env)
    asked = rules.questions(world, args.prompt)
    recorded = Store(args.compare, read_only=True) if args.compare else None
    model = load_language_model(args.llm)
    difference = 0.0
    with Store(args.store) as store:
        for kind, questions in asked.items():
            texts = _spread_out(questions.texts, args.sample)
            answers = _ask(model, store, kind, questions, texts)
            if recorded:
                difference = max(difference, _compare(recorded, model.name, kind, questions, answers))
        encoder = load_sentence_encoder(args.sentence_encoder)
        store.put_embeddings(encoder.name, dict(zip(world.captions, encoder.encode(world.captions), strict=True)))
    usage = model.usage
    rate = usage.queries / max(usage.seconds, 1e-9)
    print(f"{model.name}: {usage.queries} questions asked, {rate:.1f} a second")
    if recorded:
        print(f"largest difference of log-odds: {difference:.6f}")
    return difference


def _ask(model, store, kind, questions, texts):
    key = (model.name, questions.prompt_hash, json.dumps(questions.parameters, sort_keys=True))
    missing = [text for text in texts if text not in store.get_answers(*key, texts)]
    print(f"{kind}: {len(texts) - len(missing)} of {len(texts)} questions have an answer")
    start = time.perf_counter()
    for done in range(0, len(missing), QUESTIONS_PER_BATCH):
        batch = missing[done : done + QUESTIONS_PER_BATCH]
        pairs = model.yes_no([questions.prompt(text) for text in batch])
        answers = [json.dumps({"yes": yes, "no": no}) for yes, no in pairs]
        store.put_answers(*key, dict(zip(batch, answers, strict=True)))
        done += len(batch)
        left = (time.perf_counter() - start) / done * (len(missing) - done)
        print(f"\r{kind}: {done}/{len(missing)}, {left:.0f} s left   ", end="", flush=True)
    if missing:
        print()
    return store.get_answers(*key, texts)


def _compare(recorded, model, kind, questions, answers):
    key = (model, questions.prompt_hash, json.dumps(questions.parameters, sort_keys=True))
    old = recorded.get_answers(*key, answers)
    if len(old) < len(answers):
        raise UserError(
            f"{recorded.path} has no answer of {model} to {len(answers) - len(old)} of these questions "
            f"({kind}); it holds answers of {', '.join(recorded.models())}"
        )
    pairs = [(json.loads(answers[text]), json.loads(old[text])) for text in answers]
    return max(abs((new["yes"] - new["no"]) - (was["yes"] - was["no"])) for new, was in pairs)


def _spread_out(texts, count):
    if not 0 < count < len(texts):
        return list(texts)
    return [texts[i] for i in np.linspace(0, len(texts) - 1, count).round().astype(int)]


def main() -> None:
    """Run the command line; exit code 2 for what is the user's to mend, 1 for a difference."""
    args = tyro.cli(Args)
    try:
        difference = record(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if difference > args.tolerance:
        print(f"error: that is more than {args.tolerance}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
