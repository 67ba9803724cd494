"""A language model that answers as a test tells it to."""

from collections.abc import Callable

from goals.model import Usage
from lab.errors import UserError


def last_line(prompt: str) -> str:
    """Return the line that a prompt ends with, its question."""
    return prompt.rsplit("\n", 1)[-1]


class ScriptedModel:
    """Answer by odds(prompt), log-odds of yes or None, and likelihood(prompt, candidate) [nats].

    All prompts are kept in `asked`.
    """

    trouble = ""

    def __init__(
        self,
        odds: Callable[[str], float | None] = lambda prompt: 0.0,
        likelihood: Callable[[str, str], float] = lambda prompt, candidate: 0.0,
        name: str = "scripted@0",
        can_score: bool = True,
    ):
        self.odds, self.likelihood, self.name, self.can_score = odds, likelihood, name, can_score
        self.usage, self.asked, self.candidates = Usage(), [], []

    def generate(self, prompts, max_tokens, stop=(), temperature=0.0, seed=0):
        self.asked += prompts
        return [" eat cow\n- sleep" for _ in prompts]

    def yes_no(self, prompts):
        self.asked += prompts
        odds = [self.odds(prompt) for prompt in prompts]
        return [None if value is None else (value - 3.0, -3.0) for value in odds]

    def score(self, prompts, candidates):
        if not self.can_score:
            raise UserError(f"{self.name} cannot score candidates")
        self.asked += prompts
        self.candidates = list(candidates)
        return [
            [self.likelihood(prompt, candidate) for candidate in candidates] for prompt in prompts
        ]

    def close(self):
        pass
