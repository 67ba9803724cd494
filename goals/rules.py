"""The rules form of asking: once and for all, which goals make sense and what each needs.

A language model scores two kinds of questions by its log-odds of yes: does a goal make sense, and does a goal
need a fact. It says yes to some words more easily than to others, so scores count after centring. Every caption
of the world is a candidate: what is sensible and what it needs is the model's word alone. Letters: C captions,
F facts.
"""

import dataclasses
import hashlib
import json
import os
import string
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from lab.errors import UserError

PROMPTS = Path(__file__).parent.parent / "prompts"
KINDS = {"sensible": ("goal",), "needs": ("fact", "goal")}  # the placeholders of each prompt
PARAMETERS = {"form": "yes-no"}
# Both count in standard deviations of the centred scores of one kind; chosen on the game's true rules, not on play.
SENSIBLE_THRESHOLD = 1.0
NEED_THRESHOLD = 1.5


@dataclasses.dataclass(frozen=True)
class Questions:
    """One prompt and all that is asked with it; a question's text is "goal" or "goal: fact"."""

    template: string.Template
    prompt_hash: str
    texts: tuple[str, ...]
    parameters: dict = dataclasses.field(default_factory=PARAMETERS.copy)

    def prompt(self, question: str) -> str:
        """Put a question into the prompt."""
        goal, _, fact = question.partition(": ")
        return self.template.substitute(goal=goal, fact=fact)


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a model's answers come to: sensible bool [C], needs bool [C, F]."""

    sensible: np.ndarray
    needs: np.ndarray

    def need_masks(self, world) -> np.ndarray:
        """Pack the needs as the world packs scenes: uint32 [C, W]."""
        bits = np.zeros((len(self.needs), world.num_scene_words * 32), bool)
        bits[:, : self.needs.shape[1]] = self.needs
        return np.packbits(bits, axis=1, bitorder="little").view("<u4").astype(np.uint32)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Log-odds of yes, NaN where there is no answer: sensible float64 [C], needs float64 [C, len(facts)]."""

    goals: tuple[str, ...]
    facts: tuple[str, ...]
    sensible: np.ndarray
    needs: np.ndarray

    @cached_property
    def centred_sensible(self) -> np.ndarray:
        """Return what verb and noun together add to what each says alone, in standard deviations, [C]."""
        words = [goal.split(" ", 1) for goal in self.goals]
        verbs = list(dict.fromkeys(w[0] for w in words if len(w) == 2))
        nouns = list(dict.fromkeys(w[1] for w in words if len(w) == 2))
        table = np.full((len(verbs), len(nouns)), np.nan)
        places = [(verbs.index(w[0]), nouns.index(w[1])) if len(w) == 2 else None for w in words]
        for place, score in zip(places, self.sensible, strict=True):
            if place:
                table[place] = score
        centred = centre(table)
        # A goal that is no pair has neither a row nor a column: it is compared with all pairs.
        alone = self.sensible - _mean(table)
        values = np.array([centred[p] if p else alone[i] for i, p in enumerate(places)])
        return values / _spread(centred)

    @cached_property
    def centred_needs(self) -> np.ndarray:
        """Return what goal and fact together add to what each says alone, in standard deviations, [C, len(facts)]."""
        centred = centre(self.needs)
        return centred / _spread(centred)


def questions(world, prompt: str | os.PathLike | None = None) -> dict[str, Questions]:
    """Return all questions about a world by kind, "sensible" and "needs".

    The prompt files are `prompt`_<kind>_v1.txt, by default those of the world in prompts/. Raises UserError if one
    is missing or its placeholders are not $goal, and $fact for the needs.
    """
    prefix = Path(prompt or PROMPTS / f"{world.name}_rules")
    goals = world.captions[1:]
    facts = asked_facts(world)
    texts = {"sensible": goals, "needs": tuple(f"{goal}: {fact}" for goal in goals for fact in facts)}
    return {
        kind: Questions(*_load(prefix.with_name(f"{prefix.name}_{kind}_v1.txt"), placeholders), texts[kind])
        for kind, placeholders in KINDS.items()
    }


def asked_facts(world) -> tuple[str, ...]:
    """Return the facts a goal may need: what a prompt tells, but not what is faced or no caption names."""
    mask = world.prompt_mask("full")
    nouns = {caption.split(" ", 1)[-1] for caption in world.captions}

    def is_asked(index, fact):
        kind, _, thing = fact.partition(" ")
        told = mask[index // 32] >> (index % 32) & 1
        return told and kind != "facing" and (kind != "see" or thing in nouns)

    return tuple(fact for index, fact in enumerate(world.facts) if is_asked(index, fact))


def score(world, answers: Mapping[str, Mapping[str, str]]) -> Scores:
    """Read raw answers, by kind and question, as log-odds; an answer that cannot be read counts as none."""
    goals, facts = world.captions[1:], asked_facts(world)
    needs = _log_odds(answers["needs"], (f"{goal}: {fact}" for goal in goals for fact in facts))
    return Scores(goals, facts, _log_odds(answers["sensible"], goals), needs.reshape(len(goals), len(facts)))


def compile_rules(
    world,
    asked: Mapping[str, Questions],
    answers: Mapping[str, Mapping[str, str]],
    sensible_threshold: float = SENSIBLE_THRESHOLD,
    need_threshold: float = NEED_THRESHOLD,
) -> Rules:
    """Turn raw answers, by kind and question, into rules.

    A goal without an answer is not sensible, a fact without one not needed. Where the world says that a goal's thing
    must be in view, that stands for all the goal needs to see.
    """
    scores = score(world, {kind: answers[kind] for kind in asked})
    sensible = np.zeros(len(world.captions), bool)
    needs = np.zeros((len(world.captions), len(world.facts)), bool)
    sensible[1:] = scores.centred_sensible > sensible_threshold
    columns = [world.facts.index(fact) for fact in scores.facts]
    needs[1:, columns] = scores.centred_needs > need_threshold
    seen = np.array([fact.startswith("see ") for fact in world.facts])
    grounded = world.in_view_masks().any(-1)
    needs &= ~(grounded[:, None] & seen[None])
    return Rules(sensible, needs)


def centre(table: np.ndarray) -> np.ndarray:
    """Take the means of rows and columns from a table [R, K], so that both become 0; NaN stays NaN and counts nowhere."""
    table = table - _mean(table, 1)[:, None]
    return table - _mean(table, 0)[None]


def _mean(values, axis=None):
    known = ~np.isnan(values)
    return np.where(known, values, 0.0).sum(axis) / np.maximum(known.sum(axis), 1)


def _spread(values):
    known = values[~np.isnan(values)]
    return max(float(known.std()), 1e-6) if known.size else 1.0


def _log_odds(answers: Mapping[str, str], texts: Iterable[str]) -> np.ndarray:
    def read(text):
        try:
            answer = json.loads(answers[text])
            return float(answer["yes"]) - float(answer["no"])
        except (KeyError, TypeError, ValueError):
            return np.nan

    return np.array([read(text) for text in texts])


def _load(path: Path, placeholders: tuple[str, ...]) -> tuple[string.Template, str]:
    try:
        content = path.read_bytes()
        template = string.Template(content.decode("utf-8").replace("\r\n", "\n").rstrip())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        there = ", ".join(sorted(p.name for p in PROMPTS.glob("*_rules_*.txt")))
        raise UserError(f"prompt {path} cannot be read ({reason}); in {PROMPTS} there are {there}") from None
    if not template.is_valid() or sorted(template.get_identifiers()) != list(placeholders):
        names = " and ".join(f"${name}" for name in placeholders)
        raise UserError(f"prompt {path} must have {names}, no other placeholder; write a dollar sign as $$")
    return template, hashlib.sha256(content).hexdigest()[:16]
