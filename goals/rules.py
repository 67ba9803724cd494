"""The rules form of asking: once and for all, which goals make sense and what each needs.

Which goals: a language model scores how likely each goal is to go on with some opening phrases, and answers yes-or-no questions on
each in several wordings. What they need: it answers whether a goal needs a fact, for the goals that make most sense. It says yes to
some words more easily than to others, so scores count after centring, and a wording counts as much as it agrees with the phrases.
Every caption of the world is a candidate: what is sensible and what it needs is the model's word alone. C captions, F facts.
"""

import dataclasses
import hashlib
import json
import os
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from goals.language_models import LanguageModel
from goals.open_ended import PROMPTS, load_prompt
from goals.packing import pack_scores, unpack_scores
from goals.recipes import Recipe, find_recipe
from lab.errors import UserError

# The placeholders of each prompt file, prompts/<world>_rules_<kind>_v1.txt.
WORDINGS = ("sensible", "possible", "useful", "known", "aimed", "gainful", "described")
PLACEHOLDERS = {"phrases": ("goal",), **dict.fromkeys(WORDINGS, ("goal",)), "needs": ("fact", "goal")}
YES_NO = {"form": "yes-no"}
ENDINGS = (".", "\n", ",")  # what may follow a goal, so that "chop wood" does not speak for "chop wood pickaxe"
GOALS_WITH_NEEDS = 48  # the most sensible goals, which the needs are asked of
FULL_AGREEMENT = 0.5  # correlation of a good model's yes-or-no answers with its phrases


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a model's answers come to: sensible bool [C]; needs bool [C, F], facts that must all hold.

    alternatives: bool [C, K, F], sets of facts of which one must hold (empty: no condition).
    """

    sensible: np.ndarray
    needs: np.ndarray
    alternatives: np.ndarray


class RulesForm:
    """Ask for the rules of a world and compile them, with the model's recipe (the thresholds chosen for it) or the given one.

    prompts: each prompt file's hash by kind. The files are `prompt`_<kind>_v1.txt, by default those of the world in prompts/.
    Raises UserError if one is missing, its placeholders are wrong, or a phrase does not end with the goal.
    """

    def __init__(self, world, prompt: str | os.PathLike | None = None, model: str = "", recipe: Recipe | None = None):
        self.world, self.recipe = world, recipe or find_recipe(model)
        prefix = Path(prompt or PROMPTS / f"{world.name}_rules")
        self._files = {
            kind: load_prompt(prefix.with_name(f"{prefix.name}_{kind}_v1.txt"), names) for kind, names in PLACEHOLDERS.items()
        }
        self.prompts = {kind: prompt_hash for kind, (_, prompt_hash) in self._files.items()}
        self.phrases = [phrase.strip() for phrase in self._files["phrases"][0].template.split("\n\n")]
        if not all(phrase.endswith("$goal") for phrase in self.phrases):
            raise UserError(f"prompt {prefix}_phrases_v1.txt: every phrase, one a paragraph, must end with $goal")
        self.goals = world.captions[1:]
        self.facts = asked_facts(world)

    def prepare(self, answers: Callable[..., dict[str, str]]) -> None:
        """Ask, and compile `rules`; answers(prompt_hash, parameters, questions, ask) finds or gets the raw answers."""
        self.sensible = self.ask_sensible(answers)
        asked = [self.goals[i] for i in np.sort(np.argsort(-self.sensible, kind="stable")[:GOALS_WITH_NEEDS])]
        questions = [f"{goal}: {fact}" for goal in asked for fact in self.facts]
        raw = self._ask_yes_no("needs", questions, answers)
        self.needs = calibrate_needs(_log_odds(raw, questions).reshape(len(asked), len(self.facts)))
        self.rules = compile_rules(self.world, self.sensible, asked, self.facts, self.needs, self.recipe)

    def ask_sensible(self, answers: Callable[..., dict[str, str]]) -> np.ndarray:
        """Ask which goals make sense; return scores float64 [C - 1] in standard deviations."""
        parameters = {"form": "phrases", "endings": list(ENDINGS), "goals": hash_texts(self.goals)}
        raw = answers(self.prompts["phrases"], parameters, self.phrases, self._score_phrases)
        scored = [unpack_scores(raw.get(phrase, "")) for phrase in self.phrases]
        wordings = {kind: _log_odds(self._ask_yes_no(kind, self.goals, answers), self.goals) for kind in WORDINGS}
        return score_sensible(self.goals, [line for line in scored if len(line) == len(self.goals)], wordings)

    def _score_phrases(self, model: LanguageModel, phrases: Sequence[str]) -> list[str | None]:
        if not model.can_score:
            # An answer without scores: it is not asked for again, and a recording of such a model is complete.
            return [pack_scores([])] * len(phrases)
        openings = [string.Template(phrase).substitute(goal="").rstrip() for phrase in phrases]
        lines = model.score(openings, [f" {goal}{end}" for goal in self.goals for end in ENDINGS])

        def pack(line):
            return pack_scores(np.logaddexp.reduce(np.reshape(line, (-1, len(ENDINGS))), axis=1))

        return [None if line is None else pack(line) for line in lines]

    def _ask_yes_no(self, kind: str, questions: Sequence[str], answers) -> dict[str, str]:
        template, prompt_hash = self._files[kind]
        return answers(prompt_hash, YES_NO, list(questions), partial(ask_yes_no, template))


def ask_yes_no(template: string.Template, model: LanguageModel, questions: Sequence[str]) -> list[str | None]:
    """Ask yes-or-no questions, "goal" or "goal: fact" each; return raw answers, None where there is none."""
    parts = [question.partition(": ") for question in questions]
    pairs = model.yes_no([template.substitute(goal=goal, fact=fact) for goal, _, fact in parts])
    return [None if pair is None else json.dumps({"yes": pair[0], "no": pair[1]}) for pair in pairs]


def read_odds(raw: str) -> float:
    """Read the log-odds of yes from a raw answer; NaN from any other text."""
    try:
        answer = json.loads(raw)
        odds = float(answer["yes"]) - float(answer["no"])
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        return np.nan
    return odds if np.isfinite(odds) else np.nan


def asked_facts(world) -> tuple[str, ...]:
    """Return the facts a goal may need: what a prompt says the player has, or sees of what a caption names.

    How the player feels is a reason for a goal, never a need; what is faced may be anything in view a step later.
    """
    mask = world.prompt_mask("full")
    nouns = {caption.split(" ", 1)[-1] for caption in world.captions}

    def is_asked(index, fact):
        kind, _, thing = fact.partition(" ")
        told = mask[index // 32] >> (index % 32) & 1
        return told and (kind == "have" or (kind == "see" and thing in nouns))

    return tuple(fact for index, fact in enumerate(world.facts) if is_asked(index, fact))


def score_sensible(goals: Sequence[str], phrases: Sequence[np.ndarray], wordings: Mapping[str, np.ndarray]) -> np.ndarray:
    """Combine log-likelihoods after phrases [goals] and log-odds of wordings [goals] into one score, in standard deviations.

    A wording weighs as much as it correlates with the phrases; all wordings together as much as the phrases if they agree well. A
    model that cannot score phrases is judged by its wordings alone. A missing answer counts as a middling one.
    """
    said = {kind: _unit(calibrate_pairs(goals, odds)) for kind, odds in wordings.items()}
    if not phrases:
        return _unit(np.mean(np.nan_to_num(list(said.values())), axis=0))
    phrased = _unit(np.mean([_unit(calibrate_pairs(goals, line)) for line in phrases], axis=0))
    agreement = np.array([max(0.0, _correlation(phrased, line)) for line in said.values()])
    if not agreement.any():
        return phrased
    answered = _unit(np.average([np.nan_to_num(line) for line in said.values()], axis=0, weights=agreement))
    return _unit(phrased + min(1.0, agreement.mean() / FULL_AGREEMENT) * answered)


def calibrate_needs(log_odds: np.ndarray) -> np.ndarray:
    """Centre log-odds [goals, facts] over both and give them in standard deviations; NaN where an answer is missing."""
    return _unit(_scale(centre(log_odds)))


def compile_rules(
    world, sensible: np.ndarray, asked: Sequence[str], facts: Sequence[str], needs: np.ndarray, recipe: Recipe
) -> Rules:
    """Turn scores into rules: sensible [C - 1]; needs [asked, facts] of the goals `asked`; a missing answer counts as no.

    Things of one head noun (wood, stone and iron pickaxe) are alternatives: one of them must be there if on average they are
    needed; none is needed for its own kind. What must be in view by the world's word needs nothing else but things to have. Any
    other goal of two words, which makes or places something, needs at least the likeliest thing to have, and not to see the thing
    itself.
    """
    groups = _kinds(facts)
    rules = Rules(
        np.zeros(len(world.captions), bool),
        np.zeros((len(world.captions), len(world.facts)), bool),
        np.zeros((len(world.captions), len(groups), len(world.facts)), bool),
    )
    rules.sensible[1:] = sensible > recipe.sensible_threshold
    must_be_seen = world.in_view_masks().any(-1)
    columns = np.array([world.facts.index(fact) for fact in facts])
    have = np.array([fact.startswith("have ") for fact in facts])
    for goal, line in zip(asked, np.nan_to_num(needs, nan=-np.inf), strict=True):
        caption, (_, _, thing) = world.captions.index(goal), goal.partition(" ")
        line = line.copy()
        for number, kinds in enumerate(groups):
            things = [facts[i].partition(" ")[2] for i in kinds]
            own = thing.split(" ")[-1:] == things[0].split(" ")[-1:]
            if not own and line[kinds].mean() > recipe.need_threshold:
                rules.alternatives[caption, number, columns[kinds]] = True
            line[kinds] = -np.inf
        needed = line > recipe.need_threshold
        if must_be_seen[caption]:
            needed &= have
        elif thing:
            likeliest = np.where(have, line, -np.inf)
            needed[likeliest.argmax()] |= np.isfinite(likeliest.max())
            needed &= np.array([fact != f"see {thing}" for fact in facts])
        rules.needs[caption, columns] = needed
    return rules


def pack_facts(world, bits: np.ndarray) -> np.ndarray:
    """Pack facts bool [..., F] as the world packs scenes: uint32 [..., W]."""
    padded = np.zeros((*bits.shape[:-1], world.num_scene_words * 32), bool)
    padded[..., : bits.shape[-1]] = bits
    return np.packbits(padded, axis=-1, bitorder="little").view("<u4").astype(np.uint32)


def hash_texts(texts: Sequence[str]) -> str:
    """Return the first 16 hex digits of the SHA-256 of texts, one a line."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def centre(table: np.ndarray) -> np.ndarray:
    """Take from a table [R, K] the means of rows, then of columns; NaN stays NaN and counts nowhere.

    From the only number of a row or column, whose own mean would leave nothing of it, the mean of the table is taken.
    """
    for axis in (1, 0):
        is_alone = (~np.isnan(table)).sum(axis) == 1
        table = table - np.expand_dims(np.where(is_alone, _mean(table), _mean(table, axis)), axis)
    return table


def calibrate_pairs(goals: Sequence[str], scores: np.ndarray) -> np.ndarray:
    """Centre the scores of verb-noun pairs over verbs and nouns, in units of the spread of both, [goals]."""
    places = [tuple(goal.split(" ", 1)) for goal in goals]
    verbs = list(dict.fromkeys(place[0] for place in places if len(place) == 2))
    nouns = list(dict.fromkeys(place[1] for place in places if len(place) == 2))
    table = np.full((len(verbs), len(nouns)), np.nan)
    for place, value in zip(places, scores, strict=True):
        if len(place) == 2:
            table[verbs.index(place[0]), nouns.index(place[1])] = value
    centred = centre(table)
    calibrated = _scale(centred)
    # A goal of one word has neither verb nor noun in common with others: it is compared with all pairs, if there are any.
    alone = (scores - _mean(table)) / _spread(centred) if verbs else _unit(scores - _mean(scores))
    return np.array(
        [
            calibrated[verbs.index(place[0]), nouns.index(place[1])] if len(place) == 2 else alone[i]
            for i, place in enumerate(places)
        ]
    )


def _kinds(facts: Sequence[str]) -> list[list[int]]:
    """Return the groups of facts, by number, that name several kinds of one thing to have."""
    heads: dict[str, list[int]] = {}
    for number, fact in enumerate(facts):
        if fact.startswith("have "):
            heads.setdefault(fact.split(" ")[-1], []).append(number)
    return [numbers for numbers in heads.values() if len(numbers) > 1]


def _scale(centred: np.ndarray) -> np.ndarray:
    """Give a table in units of the spread of its rows and columns."""
    whole = _spread(centred)
    spreads = [[_spread(line, whole) for line in lines] for lines in (centred, centred.T)]
    return centred / np.sqrt(np.outer(*spreads))


def _unit(scores: np.ndarray) -> np.ndarray:
    return scores / _spread(scores)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    known = ~(np.isnan(x) | np.isnan(y))
    if known.sum() < 3 or x[known].std() == 0 or y[known].std() == 0:
        return 0.0
    return float(np.corrcoef(x[known], y[known])[0, 1])


def _mean(values, axis=None):
    known = ~np.isnan(values)
    return np.where(known, values, 0.0).sum(axis) / np.maximum(known.sum(axis), 1)


def _spread(values, of_one=1.0):
    known = values[~np.isnan(values)]
    return max(float(known.std()), 1e-6) if known.size > 1 else of_one


def _log_odds(answers: Mapping[str, str], texts: Iterable[str]) -> np.ndarray:
    return np.array([read_odds(answers.get(text, "")) for text in texts])
