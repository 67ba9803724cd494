"""The rules form of asking: once and for all, which goals make sense and what each needs.

A language model scores two kinds of questions by its log-odds of yes: does a goal make sense, and does a goal
need a fact. It says yes to some words more easily than to others, so scores count after centring. Every
caption of the world is a candidate: what is sensible and what it needs is the model's word alone. Letters: C
captions, F facts.
"""

import dataclasses
import hashlib
import json
import os
import string
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from lab.errors import UserError

PROMPTS = Path(__file__).parent.parent / "prompts"
# The placeholders of each prompt. "sensible" and "possible" word one question in two ways; their mean counts.
KINDS = {"sensible": ("goal",), "possible": ("goal",), "needs": ("fact", "goal")}
PARAMETERS = {"form": "yes-no"}
# In standard deviations of the centred scores; chosen on the true rules of Crafter, never on play. A senseless goal
# costs a little reward, a sensible one that is missing its achievement: hence low. A missing need suggests a goal too
# early, a wrong one silences it: hence high.
SENSIBLE_THRESHOLD = 0.6
NEED_THRESHOLD = 2.5


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
    """Calibrated scores, in standard deviations: sensible float64 [goals], needs float64 [goals, facts].

    NaN where an answer is missing.
    """

    goals: tuple[str, ...]
    facts: tuple[str, ...]
    sensible: np.ndarray
    needs: np.ndarray


def questions(world, prompt: str | os.PathLike | None = None) -> dict[str, Questions]:
    """Return all questions about a world by kind: "sensible", "possible" and "needs".

    The prompt files are `prompt`_<kind>_v1.txt, by default those of the world in prompts/. Raises UserError if
    one is missing or its placeholders are not $goal, and $fact for the needs.
    """
    prefix = Path(prompt or PROMPTS / f"{world.name}_rules")
    goals = world.captions[1:]
    facts = asked_facts(world)
    needs = tuple(f"{goal}: {fact}" for goal in goals for fact in facts)
    texts = {"sensible": goals, "possible": goals, "needs": needs}
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
    """Read raw answers, by kind and question, and calibrate them; one that cannot be read counts as missing.

    A goal is compared with what its verb and noun get elsewhere, a need with what its goal and fact get.
    """
    goals, facts = world.captions[1:], asked_facts(world)
    wordings = [_calibrate_pairs(goals, _log_odds(answers[kind], goals)) for kind in ("sensible", "possible")]
    needs = _log_odds(answers["needs"], (f"{goal}: {fact}" for goal in goals for fact in facts))
    needs = centre(needs.reshape(len(goals), len(facts)))
    return Scores(goals, facts, np.mean(wordings, axis=0), needs / _spread(needs))


def compile_rules(
    world,
    asked: Mapping[str, Questions],
    answers: Mapping[str, Mapping[str, str]],
    sensible_threshold: float = SENSIBLE_THRESHOLD,
    need_threshold: float = NEED_THRESHOLD,
) -> Rules:
    """Turn raw answers, by kind and question, into rules.

    A goal without an answer is not sensible, a fact without one not needed. Where the world says that a goal's
    thing must be in view, that stands for all the goal needs to see.
    """
    scores = score(world, {kind: answers[kind] for kind in asked})
    sensible = np.zeros(len(world.captions), bool)
    needs = np.zeros((len(world.captions), len(world.facts)), bool)
    sensible[1:] = scores.sensible > sensible_threshold
    columns = [world.facts.index(fact) for fact in scores.facts]
    needs[1:, columns] = scores.needs > need_threshold
    seen = np.array([fact.startswith("see ") for fact in world.facts])
    grounded = world.in_view_masks().any(-1)
    needs &= ~(grounded[:, None] & seen[None])
    return Rules(sensible, needs)


def centre(table: np.ndarray) -> np.ndarray:
    """Take from a table [R, K] the means of rows, then of columns; NaN stays NaN and counts nowhere."""
    table = table - _mean(table, 1)[:, None]
    return table - _mean(table, 0)[None]


def _calibrate_pairs(goals, scores):
    """Centre the scores of verb-noun pairs over both, in units of the spread of both, [goals]."""
    places = [tuple(goal.split(" ", 1)) for goal in goals]
    verbs = list(dict.fromkeys(place[0] for place in places if len(place) == 2))
    nouns = list(dict.fromkeys(place[1] for place in places if len(place) == 2))
    table = np.full((len(verbs), len(nouns)), np.nan)
    for place, value in zip(places, scores, strict=True):
        if len(place) == 2:
            table[verbs.index(place[0]), nouns.index(place[1])] = value
    centred = centre(table)
    spreads = [[_spread(row) for row in centred], [_spread(column) for column in centred.T]]
    calibrated = centred / np.sqrt(np.outer(*spreads))
    # A goal of one word has neither verb nor noun in common with others: it is compared with all pairs.
    alone = (scores - _mean(table)) / _spread(centred)
    return np.array(
        [
            calibrated[verbs.index(place[0]), nouns.index(place[1])] if len(place) == 2 else alone[i]
            for i, place in enumerate(places)
        ]
    )


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
