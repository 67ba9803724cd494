"""The pairs form of asking: once for each thing ever, in which places it belongs.

For worlds in which a goal is sensible because a thing belongs in a place. By the recipe a language
model scores how well place and thing go together: each place after the thing and a list of things
and their places, the thing after each place and a list of what places are for, and after the words
that the place is right for it. Beside that stands how tidy a place is for any thing: how likely it
follows opening phrases about tidy keeping, less how likely it follows phrases about mess. By yes or
no it is asked one question for each pair, as in the paper. T things, P places, C captions, F facts.
"""

import os
import string
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from goals.model import LanguageModel
from goals.packing import pack_scores, unpack_scores
from goals.prompts import load_prompt, newest_versions
from goals.recipes import Recipe, find_recipe
from goals.rules import LEAST_KNOWN, Rules, centre, hash_texts, mean, unit
from lab.errors import UserError
from worlds.world import PairsWorld, World

# The placeholders of each prompt file, <world>_pairs_<kind>_v<k>.txt, by the way of scoring.
PLACEHOLDERS = {
    "recipe": {
        "tidy": ("thing",),
        "mess": ("thing",),
        "keeps": ("thing",),
        "holds": ("place",),
        "suits": ("place",),
    },
    "yes-no": {"yesno": ("place", "thing")},
}
OPENINGS = ("tidy", "mess")  # whose paragraphs are asked each on its own
ANY_THING = ("thing", "object", "item")  # what the openings are about
CONTRAST_WEIGHT = 0.2  # of tidy less mess, beside how well thing and place go together
PLACE_WEIGHT = 0.3  # of how well a place goes with all things, which is else taken off
BEST_WEIGHT = 0.5  # of a thing's best score, which is taken off, for each thing belongs somewhere
MOST_PLACES = 2  # in which a thing belongs where the recipe has no threshold

Answers = Callable[..., dict[str, str]]


class PairsForm:
    """Ask where each thing of a world belongs, and compile the world's rules of it.

    scoring: "recipe" or "yes-no". choice: which places a thing is put in by the recipe's scores,
    the "best" of those that there are, or all above a "threshold". After `prepare`: scores float64
    [T, P], NaN where nobody has answered; right, bool [T, P], where things are to be put, and
    wrong, from where they are to be taken; rules; known, the share of pairs with an answer. A thing
    of which nothing is known is right wherever it is.

    prompts: each prompt file's hash by kind. answered: see `newest_versions`. The files are the
    newest `prompt`_<kind>_v<k>.txt, by default those of the world. Raises UserError if one is
    missing, its placeholders are wrong, or the world has no pairs.
    """

    def __init__(
        self,
        world: World,
        prompt: str | os.PathLike | None = None,
        model: str = "",
        scoring: str = "recipe",
        recipe: Recipe | None = None,
        choice: str = "best",
        answered: Collection[str] = (),
    ):
        self.world, self.scoring = with_pairs(world), scoring
        self.takes_best = choice == "best" and scoring == "recipe"
        self.recipe = recipe or find_recipe(world.recipes, model)
        prefix = Path(prompt or world.prompts / f"{world.name}_pairs")
        placeholders = PLACEHOLDERS[scoring]
        files = newest_versions(prefix, placeholders, answered)
        loaded = {kind: load_prompt(file, placeholders[kind]) for kind, file in files.items()}
        self.templates = {kind: prompt.template for kind, prompt in loaded.items()}
        self.prompts = {kind: prompt.hash for kind, prompt in loaded.items()}
        self.things, self.places = self.world.things, self.world.places
        self.parameters = {"form": "pairs", "places": hash_texts(self.places)}

    @property
    def plausible(self) -> np.ndarray:
        """Return which pairs are said to belong together, bool [T, P]."""
        return self.right

    def prepare(self, answers: Answers) -> None:
        """Ask, and compile `rules`.

        answers(prompt_hash, parameters, questions, ask) finds or gets the raw answers.
        """
        self.scores = self.judge(answers, self.things)
        is_known = ~np.isnan(self.scores)
        self.known = float(is_known.mean())
        right = self.choose(self.scores)
        wrong = ~right
        if self.takes_best:
            here = np.where(is_known & self.world.places_here, self.scores, -np.inf)
            right = (here == here.max(1, keepdims=True)) & (here > -np.inf)
            wrong = (self.scores < self.recipe.wrong_threshold) & ~right
        is_asked = is_known.any(1, keepdims=True)
        self.right, self.wrong = right | ~is_asked, wrong & is_asked
        self.rules = Rules(*self.world.rules_of(self.wrong, self.right))

    def report(self) -> str:
        """Say of each thing where it goes here, and where else it may stay."""
        here = self.world.places_here
        lines = []
        for thing, right, wrong in zip(self.things, self.right, self.wrong, strict=True):
            goes, stays = (
                ", ".join(np.array(self.places)[table & here]) or "nowhere"
                for table in (right, ~wrong & ~right)
            )
            lines.append(f"{thing}: goes to {goes}; may stay in {stays}\n")
        return "".join(lines)

    def judge(self, answers: Answers, things: Sequence[str]) -> np.ndarray:
        """Ask where things belong; return scores float64 [T, P], NaN where nothing is known.

        By the recipe as `combine` says, over all pairs of these things; by yes or no log-odds.
        """
        if self.scoring == "yes-no":
            return self._ask("yesno", answers, things)
        tidy, mess = (mean(self._ask(kind, answers, ANY_THING), axis=0) for kind in OPENINGS)
        fits = (kind for kind in self.templates if kind not in OPENINGS)
        return combine(tidy - mess, *(self._ask(kind, answers, things) for kind in fits))

    def choose(self, scores: np.ndarray) -> np.ndarray:
        """Return which scores [T, P] are high enough, bool [T, P]: above a threshold, or best."""
        if self.scoring == "yes-no":
            return scores > 0
        if self.recipe.pair_threshold is not None:
            return scores > self.recipe.pair_threshold
        ranks = np.argsort(np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable"))
        return (ranks < MOST_PLACES) & ~np.isnan(scores)

    def _ask(self, kind: str, answers: Answers, things: Sequence[str]) -> np.ndarray:
        """Ask in one way; return scores float64 [T, P], the mean over openings."""
        of_places = "place" in PLACEHOLDERS[self.scoring][kind]
        score = partial(self.score_things if of_places else self.score_places, kind)
        ask = self.ask_yes_no if kind == "yesno" else score
        questions = list(dict.fromkeys(things))
        raw = answers(self.prompts[kind], self.parameters, questions, ask)
        shape = len(self._openings(kind)), len(self.places)
        nothing = np.full(shape[1], np.nan)
        said = {}
        for thing in questions:
            scores = unpack_scores(raw.get(thing, ""))
            is_whole = scores.size == shape[0] * shape[1]
            said[thing] = scores.reshape(shape).mean(0) if is_whole else nothing
        return np.stack([said[thing] for thing in things])

    def _openings(self, kind: str) -> list[str]:
        text = self.templates[kind].template
        return [part.strip() for part in text.split("\n\n")] if kind in OPENINGS else [text]

    # WAYS TO ASK: each returns a raw answer for each thing, packed scores, None where there is none

    def score_places(
        self, kind: str, model: LanguageModel, things: Sequence[str]
    ) -> list[str | None]:
        """Score all places after each opening that names the thing, [openings * P]."""
        _check_scores(model)
        openings = [string.Template(text) for text in self._openings(kind)]
        prompts = [opening.substitute(thing=thing) for thing in things for opening in openings]
        lines = model.score(prompts, [f" {place}" for place in self.places])
        return _pack(_as_table(lines, len(self.places)).reshape(len(things), -1))

    def score_things(
        self, kind: str, model: LanguageModel, things: Sequence[str]
    ) -> list[str | None]:
        """Score the thing after a text that names each place, [P]."""
        _check_scores(model)
        prompts = [self.templates[kind].substitute(place=place) for place in self.places]
        lines = model.score(prompts, [f" {thing}" for thing in things])
        return _pack(_as_table(lines, len(things)).T)

    def ask_yes_no(self, model: LanguageModel, things: Sequence[str]) -> list[str | None]:
        """Ask whether the thing belongs in each place, log-odds of yes [P]."""
        render = self.templates["yesno"].substitute
        prompts = [render(thing=thing, place=place) for thing in things for place in self.places]
        pairs = model.yes_no(prompts)
        odds = [np.nan if pair is None else pair[0] - pair[1] for pair in pairs]
        return _pack(np.reshape(odds, (len(things), len(self.places))))


def combine(contrast: np.ndarray, *fits: np.ndarray) -> np.ndarray:
    """Combine a contrast [P] and fits [T, P] into scores, float64 [T, P]; NaN stays NaN.

    Of the fits counts what neither the thing nor the place brings along, by double centring, and a
    share of what the place does. The scores are in standard deviations, each thing's less a share
    of its best.
    """
    centred = (centre(x) + PLACE_WEIGHT * (mean(x, axis=0) - mean(x)) for x in fits)
    fit = unit(sum(map(unit, centred)))
    scores = unit(fit + CONTRAST_WEIGHT * unit(contrast - mean(contrast)))
    return scores - BEST_WEIGHT * np.fmax.reduce(scores, axis=1, keepdims=True)


def with_pairs(world: World) -> PairsWorld:
    """Return the world; raises UserError if it has no pairs."""
    members = ("things", "places", "places_here", "rules_of")
    if not all(hasattr(world, member) for member in members):
        raise UserError(f"world {world.name} has no pairs: choose another form")
    return world


def _check_scores(model: LanguageModel) -> None:
    if not model.can_score:
        raise UserError(
            f"{model.name} cannot score places: "
            "give --pair-scoring yes-no, or --llm-engine transformers for a file"
        )


def _as_table(lines: Sequence[Sequence[float] | None], width: int) -> np.ndarray:
    """Return lines of scores as float64 [lines, width], NaN for one without an answer."""
    return np.array([[np.nan] * width if line is None else line for line in lines])


def _pack(table: np.ndarray) -> list[str | None]:
    """Pack the rows of scores [T, n]; one of which too little is known is no answer."""
    known = (~np.isnan(table)).mean(1)
    rows = zip(known, table, strict=True)
    return [pack_scores(row) if share >= LEAST_KNOWN else None for share, row in rows]
