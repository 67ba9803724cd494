"""The rules form of asking: once and for all, which goals make sense and what each needs.

Which goals: a language model scores how likely each goal is to go on with some opening phrases, and
answers yes-or-no questions on each in several wordings. What they need: it answers whether a goal
needs a fact, for the goals that make most sense. It says yes to some words more easily than to
others, so scores count after centring, and a wording counts as much as it agrees with the phrases.
Every caption of the world is a candidate: what is sensible and what it needs is the model's word
alone. C captions, F facts.
"""

import dataclasses
import json
import os
import string
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from goals.model import LEAST_EVIDENCE, LanguageModel
from goals.packing import pack_scores, unpack_scores
from goals.prompts import hash_bytes, load_prompt, newest_versions
from goals.recipes import Recipe, find_recipe
from lab.errors import UserError
from worlds.world import World

# The placeholders of each prompt file, <world>_rules_<kind>_v<k>.txt.
WORDINGS = ("sensible", "possible", "useful", "known", "aimed", "gainful", "described")
PLACEHOLDERS = {
    "phrases": ("goal",),
    **dict.fromkeys(WORDINGS, ("goal",)),
    "needs": ("fact", "goal"),
}
YES_NO = {"form": "yes-no"}
ENDINGS = (".", "\n", ",")  # what may follow a goal, so that none speaks for a longer one
GOALS_WITH_NEEDS = 48  # the most sensible goals, which the needs are asked of
LEAST_KNOWN = 0.5  # share of questions with an answer, below which a run is warned of
FULL_AGREEMENT = 0.5  # correlation of a good model's yes-or-no answers with its phrases


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a model's answers come to.

    sensible: bool [C]; needs: bool [C, F], facts that must all hold.

    alternatives: bool [C, K, F], sets of facts of which one must hold (empty: no condition).
    """

    sensible: np.ndarray
    needs: np.ndarray
    alternatives: np.ndarray


def no_rules(world: World) -> Rules:
    """Return the rules of who knows nothing: all goals make sense and need nothing."""
    num_captions = len(world.captions)
    return Rules(
        np.arange(num_captions) > 0,
        np.zeros((num_captions, len(world.facts)), bool),
        np.zeros((num_captions, len(world.kinds), len(world.facts)), bool),
    )


def say_rules(world: World, rules: Rules) -> dict[str, str]:
    """Return what each sensible goal needs, in words, by goal."""
    said = {}
    for goal in np.flatnonzero(rules.sensible):
        needs = [world.facts[fact] for fact in np.flatnonzero(rules.needs[goal])]
        sets = [np.flatnonzero(some) for some in rules.alternatives[goal]]
        needs += [" or ".join(world.facts[fact] for fact in some) for some in sets if len(some)]
        said[world.captions[goal]] = f"needs {', '.join(needs)}" if needs else "needs nothing"
    return said


class RulesForm:
    """Ask for the rules of a world and compile them, with the model's recipe or the given one.

    After `prepare`, known is the share of the yes-or-no questions that have an answer.

    prompts: each prompt file's hash by kind. answered: see `newest_versions`. The files are the
    newest `prompt`_<kind>_v<k>.txt, by default those of the world. Raises UserError if one is
    missing, its placeholders are wrong, or a phrase does not end with the goal.
    """

    def __init__(
        self,
        world: World,
        prompt: str | os.PathLike | None = None,
        model: str = "",
        recipe: Recipe | None = None,
        answered: Collection[str] = (),
    ):
        self.world, self.recipe = world, recipe or find_recipe(world.recipes, model)
        prefix = Path(prompt or world.prompts / f"{world.name}_rules")
        files = newest_versions(prefix, PLACEHOLDERS, answered)
        loaded = {kind: load_prompt(file, PLACEHOLDERS[kind]) for kind, file in files.items()}
        self.templates = {kind: prompt.template for kind, prompt in loaded.items()}
        self.prompts = {kind: prompt.hash for kind, prompt in loaded.items()}
        text = self.templates["phrases"].template
        self.phrases = [phrase.strip() for phrase in text.split("\n\n")]
        if not all(phrase.endswith("$goal") for phrase in self.phrases):
            raise UserError(
                f"prompt {files['phrases']}: every phrase, one a paragraph, must end with $goal"
            )
        self.goals = world.captions[1:]
        self.facts = world.needable
        self.known = 1.0

    @property
    def plausible(self) -> np.ndarray:
        """Return which goals make sense, bool [C - 1]."""
        return self.rules.sensible[1:]

    def prepare(self, answers: Callable[..., dict[str, str]]) -> None:
        """Ask, and compile `rules`.

        answers(prompt_hash, parameters, questions, ask) finds or gets the raw answers.
        """
        self.sensible = self.ask_sensible(answers)
        best = np.argsort(-self.sensible, kind="stable")[:GOALS_WITH_NEEDS]
        asked = [self.goals[i] for i in np.sort(best)]
        questions = [f"{goal}: {fact}" for goal in asked for fact in self.facts]
        odds = _log_odds(self._ask_yes_no("needs", questions, answers), questions)
        self.known = min(self.known, _share_known(odds))
        self.needs = calibrate_needs(odds.reshape(len(asked), len(self.facts)))
        self.rules = compile_rules(self.world, self.sensible, asked, self.needs, self.recipe)
        self.margins = self._margins(asked)

    def _margins(self, asked: Sequence[str]) -> np.ndarray:
        """Return by how much the needs' scores are above the threshold, float64 [C, F + kinds].

        0 where nothing was asked or answered. A kind's score is the mean of its facts'.
        """
        world = self.world
        columns = [world.facts.index(fact) for fact in self.facts]
        margins = np.zeros((len(world.captions), len(world.facts) + len(world.kinds)))
        for goal, line in zip(asked, self.needs - self.recipe.need_threshold, strict=True):
            row = margins[world.captions.index(goal)]
            row[columns] = line
            for number, kind in enumerate(world.kinds):
                row[len(world.facts) + number] = line[[self.facts.index(f) for f in kind]].mean()
        return np.nan_to_num(margins)

    def ask_sensible(self, answers: Callable[..., dict[str, str]]) -> np.ndarray:
        """Ask which goals make sense; return scores float64 [C - 1] in standard deviations."""
        parameters = {"form": "phrases", "endings": list(ENDINGS), "goals": hash_texts(self.goals)}
        raw = answers(self.prompts["phrases"], parameters, self.phrases, self.score_phrases)
        scored = [unpack_scores(raw.get(phrase, "")) for phrase in self.phrases]
        scored = [line for line in scored if len(line) == len(self.goals)]
        wordings = {
            kind: _log_odds(self._ask_yes_no(kind, self.goals, answers), self.goals)
            for kind in WORDINGS
        }
        self.known = _share_known(np.concatenate(list(wordings.values())))
        return score_sensible([self.world.parts(goal) for goal in self.goals], scored, wordings)

    def score_phrases(self, model: LanguageModel, phrases: Sequence[str]) -> list[str | None]:
        """Return each phrase's packed scores of all goals, None where there is no answer."""
        if not model.can_score:
            # An answer without scores: it is not asked for again, and a recording is complete.
            return [pack_scores([])] * len(phrases)
        openings = [string.Template(phrase).substitute(goal="").rstrip() for phrase in phrases]
        lines = model.score(openings, [f" {goal}{end}" for goal in self.goals for end in ENDINGS])

        def pack(line: Sequence[float]) -> str:
            return pack_scores(np.logaddexp.reduce(np.reshape(line, (-1, len(ENDINGS))), axis=1))

        return [None if line is None else pack(line) for line in lines]

    def _ask_yes_no(
        self, kind: str, questions: Sequence[str], answers: Callable[..., dict[str, str]]
    ) -> dict[str, str]:
        ask = partial(ask_yes_no, self.templates[kind])
        return answers(self.prompts[kind], YES_NO, list(questions), ask)


def ask_yes_no(
    template: string.Template, model: LanguageModel, questions: Sequence[str]
) -> list[str | None]:
    """Ask yes-or-no questions, "goal" or "goal: fact" each.

    Return raw answers, None where there is none.
    """
    parts = [question.partition(": ") for question in questions]
    pairs = model.yes_no([template.substitute(goal=goal, fact=fact) for goal, _, fact in parts])
    return [None if pair is None else json.dumps({"yes": pair[0], "no": pair[1]}) for pair in pairs]


def read_odds(raw: str) -> float:
    """Read the log-odds of yes from a raw answer.

    NaN from any other text, and where neither yes nor no was likely at all.
    """
    try:
        answer = json.loads(raw)
        yes, no = float(answer["yes"]), float(answer["no"])
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        return np.nan
    is_said = np.isfinite(yes - no) and np.logaddexp(yes, no) > LEAST_EVIDENCE
    return yes - no if is_said else np.nan


def check_plausible(plausible: np.ndarray, known: float, model: str) -> None:
    """Say in one line if suggestions will mean little; raise UserError if there can be none.

    plausible, known: as RulesForm has them.
    """
    advice = "look at the answers (python -m goals.store_cli inspect), or choose another --llm"
    if known < LEAST_KNOWN:
        said = f"only {known:.0%} of the questions have an answer"
    elif not plausible.any():
        raise UserError(f"{model} tells no sensible goal, nothing can be suggested: {advice}")
    elif plausible.all():
        said = "every goal is said to make sense, which tells none from another"
    else:
        return
    print(f"{model}: {said}: {advice}", file=sys.stderr, flush=True)


def score_sensible(
    goals: Sequence[tuple[str, str]],
    phrases: Sequence[np.ndarray],
    wordings: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Combine log-likelihoods after phrases and log-odds of wordings, [goals] each, into one score.

    The score is in standard deviations. A wording weighs as much as it correlates with the phrases;
    all wordings together as much as the phrases if they agree well. A model that cannot score
    phrases is judged by its wordings alone. A missing answer counts as a middling one. goals: verb
    and noun of each.
    """
    said = {kind: unit(calibrate_pairs(goals, odds)) for kind, odds in wordings.items()}
    if not phrases:
        return unit(np.mean(np.nan_to_num(list(said.values())), axis=0))
    phrased = unit(np.mean([unit(calibrate_pairs(goals, line)) for line in phrases], axis=0))
    agreement = np.array([max(0.0, _correlation(phrased, line)) for line in said.values()])
    if not agreement.any():
        return phrased
    lines = [np.nan_to_num(line) for line in said.values()]
    answered = unit(np.average(lines, axis=0, weights=agreement))
    return unit(phrased + min(1.0, agreement.mean() / FULL_AGREEMENT) * answered)


def calibrate_needs(log_odds: np.ndarray) -> np.ndarray:
    """Centre log-odds [goals, facts] over both and give them in standard deviations.

    NaN stays where an answer is missing.
    """
    return unit(_scale(centre(log_odds)))


def compile_rules(
    world: World, sensible: np.ndarray, asked: Sequence[str], needs: np.ndarray, recipe: Recipe
) -> Rules:
    """Turn scores into rules; a missing answer counts as no.

    sensible: [C - 1]; needs: [asked, needable facts], of the goals `asked`. Of the kinds of one
    thing, which are alternatives, one must be there if on average they are needed; none is needed
    for its own kind. What must be in view by the world's word needs nothing else but things to
    have. Any other goal with a noun, which makes or places something, needs at least the likeliest
    thing to have. What the world says a goal never needs, such as to see what it makes, it does
    not.
    """
    columns = np.array([world.facts.index(fact) for fact in world.needable])
    is_held = np.array([fact in world.held for fact in world.needable])
    kinds = [[world.needable.index(fact) for fact in kind] for kind in world.kinds]
    rules = Rules(
        np.zeros(len(world.captions), bool),
        np.zeros((len(world.captions), len(world.facts)), bool),
        np.zeros((len(world.captions), len(kinds), len(world.facts)), bool),
    )
    rules.sensible[1:] = sensible > recipe.sensible_threshold
    must_be_seen = world.in_view_masks().any(-1)
    for goal, line in zip(asked, np.nan_to_num(needs, nan=-np.inf), strict=True):
        caption, never = world.captions.index(goal), world.never_needs(goal)
        line = line.copy()
        for number, kind in enumerate(kinds):
            own = never.intersection(world.kinds[number])
            if not own and line[kind].mean() > recipe.need_threshold:
                rules.alternatives[caption, number, columns[kind]] = True
            line[kind] = -np.inf
        needed = line > recipe.need_threshold
        if must_be_seen[caption]:
            needed &= is_held
        elif world.parts(goal)[1] and is_held.any():
            likeliest = np.where(is_held, line, -np.inf)
            needed[likeliest.argmax()] |= np.isfinite(likeliest.max())
        rules.needs[caption, columns] = needed & [fact not in never for fact in world.needable]
    return rules


def hash_texts(texts: Sequence[str]) -> str:
    """Return the first 16 hex digits of the SHA-256 of texts, one a line."""
    return hash_bytes("\n".join(texts).encode())


def centre(table: np.ndarray) -> np.ndarray:
    """Take from a table [R, K] the means of rows, then of columns.

    NaN stays NaN and counts nowhere. From the only number of a row or column, whose own mean would
    leave nothing of it, the mean of the table is taken.
    """
    for axis in (1, 0):
        is_alone = (~np.isnan(table)).sum(axis) == 1
        means = np.where(is_alone, mean(table), mean(table, axis))
        table = table - np.expand_dims(means, axis)
    return table


def calibrate_pairs(goals: Sequence[tuple[str, str]], scores: np.ndarray) -> np.ndarray:
    """Centre the scores of verb-noun pairs over verbs and nouns, in units of the spread of both.

    goals: verb and noun of each. Returns [goals].
    """
    pairs = [pair for pair in goals if pair[1]]
    verbs = list(dict.fromkeys(verb for verb, _ in pairs))
    nouns = list(dict.fromkeys(noun for _, noun in pairs))
    table = np.full((len(verbs), len(nouns)), np.nan)
    for (verb, noun), value in zip(goals, scores, strict=True):
        if noun:
            table[verbs.index(verb), nouns.index(noun)] = value
    centred = centre(table)
    calibrated = _scale(centred)
    # A goal without a noun shares no word with others: it is compared with all pairs, if any.
    alone = scores - mean(table if verbs else scores)
    alone = alone / _spread(centred) if verbs else unit(alone)
    return np.array(
        [
            calibrated[verbs.index(verb), nouns.index(noun)] if noun else alone[i]
            for i, (verb, noun) in enumerate(goals)
        ]
    )


def _scale(centred: np.ndarray) -> np.ndarray:
    """Give a table in units of the spread of its rows and columns."""
    whole = _spread(centred)
    spreads = [[_spread(line, whole) for line in lines] for lines in (centred, centred.T)]
    return centred / np.sqrt(np.outer(*spreads))


def unit(scores: np.ndarray) -> np.ndarray:
    """Give scores in units of their spread; NaN stays NaN."""
    return scores / _spread(scores)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    known = ~(np.isnan(x) | np.isnan(y))
    if known.sum() < 3 or x[known].std() == 0 or y[known].std() == 0:
        return 0.0
    return float(np.corrcoef(x[known], y[known])[0, 1])


def mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Return the mean over an axis, or of all, without NaN; 0 where nothing is known."""
    known = ~np.isnan(values)
    return np.where(known, values, 0.0).sum(axis) / np.maximum(known.sum(axis), 1)


def _spread(values: np.ndarray, of_one: float = 1.0) -> float:
    known = values[~np.isnan(values)]
    return max(float(known.std()), 1e-6) if known.size > 1 else of_one


def _share_known(odds: np.ndarray) -> float:
    return float((~np.isnan(odds)).mean()) if odds.size else 1.0


def _log_odds(answers: Mapping[str, str], texts: Iterable[str]) -> np.ndarray:
    return np.array([read_odds(answers.get(text, "")) for text in texts])
