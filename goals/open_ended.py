"""The paper's open-ended form of asking: a prompt that shows lists of goals, and its reader."""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from goals.model import LanguageModel
from goals.prompts import load_prompt, newest_version
from goals.reasoning import without_reasoning
from goals.sentence_encoder import normalise_goal
from lab.errors import UserError
from worlds.world import World

MAX_GOALS = 20
MAX_GOAL_LENGTH = 60  # characters, where no caption is longer
MAX_GOAL_WORDS = 6  # of a goal without a bullet that ends as a sentence does
MAX_LINE_LENGTH = 200  # characters; nothing of a longer line is worth reading
MAX_ANSWER_LENGTH = MAX_GOALS * MAX_LINE_LENGTH

BULLET = re.compile(r"(\s*)(?:[-*•‣◦–—+]|\d+\s*[.):])")
EXPLANATION = re.compile(r"(?<!^)(?:\s(?:[-–—]+>?|→)\s|:(?=[\s*_]|$)|\s\().*")
NESTED = 2  # spaces by which a bullet stands under another
BLANK_LINES = re.compile(r"\n\s*\n")
# What begins and ends a turn of a chat, where a model writes it out: no goal, nor what follows it.
TURN = re.compile(r"<\|\w{1,32}\|>|</?s>|<(?:start|end)_of_turn>")
LINE_END = re.compile(r"\r\n|\r|\n")
STOP = ("\n\n",)


class OpenEnded:
    """The form as the service sees it: a scene's sentence is the question, a list the answer.

    With `votes` above 1 each scene is answered so often, each time drawn with another seed, and a
    goal counts if more than half of the lists name it. answered: see `newest_version`. prompts:
    the prompt's hash by name; prompt_hash and parameters are part of the stores' key. Raises
    UserError as `load_prompt`, or if votes could not differ.
    """

    def __init__(
        self,
        world: World,
        prompt: str | os.PathLike | None = None,
        max_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        votes: int = 1,
        answered: Collection[str] = (),
    ):
        file = prompt or newest_version(world.prompts / f"{world.name}_open", answered)
        self._template, self.prompt_hash = load_prompt(file)
        self.prompts = {"open": self.prompt_hash}
        self.parameters = {
            "max_tokens": max_tokens,
            "stop": list(STOP),
            "temperature": temperature,
        }
        if votes > 1 and not temperature > 0:
            raise UserError(
                f"--votes {votes} without --temperature would draw {votes} times the same: "
                "give --temperature 0.7"
            )
        if temperature > 0:
            self.parameters["seed"] = seed
        if votes > 1:
            self.parameters["votes"] = votes
        self._seed, self._votes = seed, votes
        self._captions = {normalise_goal(caption): caption for caption in world.captions}
        self._max_length = max(MAX_GOAL_LENGTH, *map(len, self._captions))

    def prepare(self, answers: Callable[..., dict[str, str]]) -> None:
        """Ask beforehand what the form needs to read answers: nothing."""

    def ask(self, model: LanguageModel, questions: Sequence[str]) -> list[str | None]:
        """Return the raw answers, None where there is none.

        Several votes stand one under the other, a blank line between.
        """
        prompts = [self._template.substitute(scene=question) for question in questions]
        max_tokens, temperature = self.parameters["max_tokens"], self.parameters["temperature"]
        votes = [
            model.generate(
                prompts,
                max_tokens=max_tokens,
                stop=STOP,
                temperature=temperature,
                seed=self._seed + vote,
            )
            for vote in range(self._votes)
        ]
        if self._votes == 1:
            return votes[0]
        return [
            None
            if None in answers
            else STOP[0].join(BLANK_LINES.sub("\n", answer) for answer in answers)
            for answers in zip(*votes, strict=True)
        ]

    def goals(self, raw: str) -> tuple[str, ...]:
        """Read an answer as `parse_goals`, several votes as what more than half of them say.

        A goal that is a caption but for articles, capitals and dashes is that caption.
        """
        lists = [raw] if self._votes == 1 else raw.split(STOP[0])
        votes = Counter(goal for text in lists for goal in parse_goals(text, self._max_length))
        agreed = (goal for goal, count in votes.items() if 2 * count > self._votes)
        return tuple(self._captions.get(goal, goal) for goal in agreed)


def parse_goals(raw: str, max_length: int = MAX_GOAL_LENGTH) -> tuple[str, ...]:
    """Read the goals of an answer, in order, each once, in normal form; any text is an answer.

    The answer is the rest of a list whose first bullet ended the prompt, or a list with a bullet or
    a number on each line, whatever reasoning or words stand before it. Explanations are dropped:
    after a dash, a colon or in brackets, indented lines, bullets under a goal's. The list ends at
    the first other line without a bullet. What is longer than `max_length` characters is no goal.
    """
    text = next(filter(str.strip, TURN.split(without_reasoning(raw))), "")
    if len(text) > MAX_ANSWER_LENGTH:
        text = text[:MAX_ANSWER_LENGTH].rpartition("\n")[0]
    lines = LINE_END.split(text)
    goals: dict[str, None] = {}
    depth: int | None = None  # spaces before the bullets of goals
    for number, line in enumerate(lines):
        bullet = BULLET.match(line)
        if not bullet and goals:
            if line.strip() and not line[0].isspace():
                break
            continue
        # Only the very first line may lack its bullet, unless it speaks to the user.
        if not bullet and (number or _is_talk(lines)):
            continue
        indent = len(bullet[1]) if bullet else 0
        if bullet and _is_heading(line, indent, lines[number + 1 :]):
            depth = None
            continue
        if depth is not None and indent >= depth + NESTED:
            continue
        goal = _read_goal(line) if len(line) <= MAX_LINE_LENGTH else ""
        if len(goal) <= max_length and any(map(str.isalpha, goal)):
            goals[goal] = None
            depth = indent
        if len(goals) == MAX_GOALS:
            break
    return tuple(goals)


def _read_goal(line: str) -> str:
    """Return the goal on a line in normal form, without what explains it."""
    before = None
    while line != before:
        before, bullet = line, BULLET.match(line)
        line = normalise_goal(EXPLANATION.sub("", line[bullet.end() :] if bullet else line))
    return line


def _is_talk(lines: Sequence[str]) -> bool:
    """Return whether the first line, which has no bullet, is no goal but speaks to the user."""
    first, *rest = lines
    is_sentence = first.rstrip().endswith((".", "!", "?")) and len(first.split()) > MAX_GOAL_WORDS
    follows_apart = bool(rest) and not rest[0].strip() and any(map(BULLET.match, rest))
    return is_sentence or first.rstrip().endswith(":") or follows_apart


def _is_heading(line: str, indent: int, rest: Sequence[str]) -> bool:
    """Return whether a line with a bullet names a group of goals: those on the lines below it."""
    below = next(filter(str.strip, rest), "")
    bullet = BULLET.match(below)
    is_deeper = bool(bullet) and len(bullet[1]) >= indent + NESTED
    return is_deeper and line.rstrip().rstrip("*_").endswith(":")
