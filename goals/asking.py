"""Who answers a question, the run's store, a recorded store or a live model, at what cost."""

import dataclasses
import json
import math
import operator
from collections.abc import Callable, Sequence

from goals.model import LanguageModel
from goals.store import Store
from lab.errors import UserError

QUESTIONS_PER_CALL = 64


@dataclasses.dataclass(frozen=True)
class Costs:
    """What goals cost.

    queries: questions put to a live model, with the tokens and seconds they took; store_hits:
    answers found in a store; unparsed: answers that held no goal; unanswered: questions that got no
    answer; queue_dropped: scenes that a full queue let go.
    """

    queries: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    language_model_seconds: float = 0.0
    store_hits: int = 0
    unparsed: int = 0
    unanswered: int = 0
    queue_dropped: int = 0

    def __add__(self, other: "Costs") -> "Costs":
        return Costs(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))


class Asker:
    """The answers of one model, which is never asked what a store has.

    It belongs to the thread that opened the stores. name: the model's identity, part of the stores'
    key. budget: most questions put to the live model, 0: no limit. on_missing ("error" or
    "no-goals"): what a question means that no store answers where there is no live model.
    """

    def __init__(
        self,
        name: str | None,
        store: Store,
        model: LanguageModel | None = None,
        recorded: Store | None = None,
        budget: int = 0,
        on_missing: str = "error",
    ):
        self.name, self.store, self.model, self.recorded = name, store, model, recorded
        self.budget, self.on_missing = budget, on_missing
        self.costs = Costs()
        self.on_progress: Callable[[int], None] = lambda waiting: None

    @property
    def left(self) -> float:
        """Return how many questions the budget still allows."""
        return max(0, self.budget - self.costs.queries) if self.budget else math.inf

    def find(self, prompt_hash: str, parameters: dict, questions: Sequence[str]) -> dict[str, str]:
        """Return the raw answers that are in the stores, keyed by question.

        What is recorded counts first: it is the same whatever other runs have stored.
        """
        key = self._key(prompt_hash, parameters)
        answers = self.recorded.get_answers(*key, questions) if self.recorded else {}
        if len(answers) < len(questions):
            answers |= self.store.get_answers(*key, [q for q in questions if q not in answers])
        self.costs += Costs(store_hits=len(answers))
        return answers

    def answers(
        self,
        prompt_hash: str,
        parameters: dict,
        questions: Sequence[str],
        ask: Callable[[LanguageModel, list[str]], list[str | None]],
    ) -> dict[str, str]:
        """Find or get the raw answers of distinct questions; what nobody answers is left out.

        Raises UserError if the model fails or, without a live model and with on_missing "error", if
        a store has no answer.
        """
        answers = self.find(prompt_hash, parameters, questions)
        missing = [question for question in questions if question not in answers]
        if missing and self.model is None and self.on_missing == "error":
            raise UserError(
                f"no stored answer of {self.name} for {len(missing)} question(s): "
                "choose --prompt-scope compact (most recordings are of compact scenes), another "
                "--goal-form, a live --llm (such as gemma3-270m), or --on-missing no-goals"
            )
        asked = missing[: int(min(self.left, len(missing)))] if self.model else []
        for start in range(0, len(asked), QUESTIONS_PER_CALL):
            self.on_progress(len(asked) - start)
            batch = asked[start : start + QUESTIONS_PER_CALL]
            new = self._ask(batch, ask)
            self.store.put_answers(*self._key(prompt_hash, parameters), new)
            # Another run may have answered first: the stored answer is the one that counts.
            answers |= self.store.get_answers(*self._key(prompt_hash, parameters), new)
        if asked:
            self.on_progress(0)
        self.costs += Costs(unanswered=len(questions) - len(answers))
        return answers

    def _ask(self, batch, ask) -> dict[str, str]:
        before = dataclasses.replace(self.model.usage)
        raw = ask(self.model, batch)
        after = self.model.usage
        self.costs += Costs(
            queries=len(batch),
            prompt_tokens=after.prompt_tokens - before.prompt_tokens,
            generated_tokens=after.generated_tokens - before.generated_tokens,
            language_model_seconds=after.seconds - before.seconds,
        )
        return {
            question: answer
            for question, answer in zip(batch, raw, strict=True)
            if answer is not None
        }

    def _key(self, prompt_hash: str, parameters: dict) -> tuple[str, str, str]:
        return self.name, prompt_hash, json.dumps(parameters, sort_keys=True)
