"""The closed form of asking: how likely the model finds each goal in a scene (section 3.2).

By likelihood, every caption of the world is scored as the continuation of the prompt; by yes or no,
one question is asked for each scene and goal, of the goals that make sense at all (the rules form's
first half, `goals.rules`, asked once). Scores count after they are centred, over the goals of a
scene or, per goal, over scenes that nobody has labelled.
"""

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from goals.model import LanguageModel
from goals.packing import pack_scores, unpack_scores
from goals.prompts import load_prompt, newest_version
from goals.recipes import Recipe, find_recipe
from goals.rules import LEAST_KNOWN, RulesForm, hash_texts
from lab.errors import UserError
from worlds.world import World

PLACEHOLDERS = {"closed": ("scene",), "closed_yesno": ("goal", "scene")}
PROMPT_NAMES = {"likelihood": "closed", "yes-no": "closed_yesno"}  # by scoring


class Closed:
    """The form as the service sees it: a scene's sentence is the question, scores the answer.

    scoring: "likelihood" or "yes-no"; calibration: "scene" (a goal stands out among all goals of
    the scene) or "goal" (it stands out among what the same goal gets in <world>_scenes_v<k>.txt).
    answered: see `newest_version`. prompts: the prompts' hashes by name; prompt_hash and parameters
    are part of the stores' key, after `prepare`; plausible and known: as RulesForm. Raises
    UserError for a prompt that is missing or has other placeholders, or missing scenes.
    """

    def __init__(
        self,
        world: World,
        prompt: str | os.PathLike | None = None,
        model: str = "",
        scoring: str = "likelihood",
        calibration: str = "scene",
        recipe: Recipe | None = None,
        answered: Collection[str] = (),
    ):
        name = PROMPT_NAMES[scoring]
        file = prompt or newest_version(world.prompts / f"{world.name}_{name}", answered)
        self._template, self.prompt_hash = load_prompt(file, PLACEHOLDERS[name])
        self._plausibility = RulesForm(world, None, model, recipe, answered)
        self.prompts = {"closed": self.prompt_hash} | self._plausibility.prompts
        self.recipe = recipe or find_recipe(world.recipes, model)
        self._goals = world.captions[1:]
        self.parameters = {"form": scoring, "goals": hash_texts(self._goals)}
        self._scenes = []
        if calibration == "goal":
            self._scenes = _read_scenes(newest_version(world.prompts / f"{world.name}_scenes"))

    def prepare(self, answers: Callable[..., dict[str, str]]) -> None:
        """Ask which goals make sense and, to calibrate goal by goal, score the published scenes."""
        self.plausible = self._plausibility.ask_sensible(answers) > self.recipe.sensible_threshold
        self.known = self._plausibility.known
        if self.parameters["form"] == "yes-no":
            # An answer holds these goals' scores alone: with another choice it is another answer.
            asked = [self._goals[goal] for goal in np.flatnonzero(self.plausible)]
            self.parameters["goals"] = hash_texts(asked)
        if self._scenes:
            raw = answers(self.prompt_hash, self.parameters, self._scenes, self.ask)
            lines = [unpack_scores(text) for text in raw.values()]
            lines = [line for line in lines if len(line) == len(self._goals)]
            table = np.ma.masked_invalid(np.reshape(lines, (-1, len(self._goals))))
            self._mean = table.mean(0).filled(np.nan)
            self._spread = np.maximum(table.std(0).filled(np.nan), 1e-6)

    def ask(self, model: LanguageModel, questions: Sequence[str]) -> list[str | None]:
        """Return raw answers, the packed scores of each scene's goals; None where there is none.

        A scene most of whose questions got no answer has none.
        """
        if self.parameters["form"] == "likelihood":
            prompts = [self._template.substitute(scene=scene) for scene in questions]
            scores = model.score(prompts, [f" {goal}" for goal in self._goals])
            return [None if line is None else pack_scores(line) for line in scores]
        return self._ask_each(model, questions)

    def _ask_each(self, model: LanguageModel, questions: Sequence[str]) -> list[str | None]:
        asked = np.flatnonzero(self.plausible)
        goals = [self._goals[goal] for goal in asked]
        render = self._template.substitute
        pairs = model.yes_no(
            [render(scene=scene, goal=goal) for scene in questions for goal in goals]
        )
        odds = [np.nan if pair is None else pair[0] - pair[1] for pair in pairs]
        scores = np.full((len(questions), len(self._goals)), np.nan)
        scores[:, asked] = np.reshape(odds, (len(questions), len(asked)))
        # Where no goal makes sense, nobody is asked: an answer nonetheless.
        known = (~np.isnan(scores[:, asked])).sum(1)
        return [
            None if number < LEAST_KNOWN * len(asked) else pack_scores(line)
            for number, line in zip(known, scores, strict=True)
        ]

    def goals(self, raw: str) -> tuple[str, ...]:
        """Return the goals that an answer suggests; one that cannot be read suggests none."""
        scores = unpack_scores(raw)
        if len(scores) != len(self._goals):
            return ()
        chosen = self.plausible & (self.calibrate(scores) > self.recipe.closed_threshold)
        return tuple(self._goals[goal] for goal in np.flatnonzero(chosen))

    def calibrate(self, scores: np.ndarray) -> np.ndarray:
        """Centre the scores [goals] of a scene, in standard deviations; NaN stays NaN."""
        if self._scenes:
            return (scores - self._mean) / self._spread
        known = scores[~np.isnan(scores)]
        return (scores - known.mean()) / max(known.std(), 1e-6) if known.size else scores


def _read_scenes(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"scenes {path} cannot be read ({error.strerror}): "
            "give --closed-calibration scene, or write the file"
        ) from error
