"""Who answers a question, the run's store, a recorded store or a live model, at what cost."""

import dataclasses
import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence

from goals.forms import is_answer
from goals.model import LanguageModel
from goals.reasoning import without_reasoning
from goals.store import Store
from lab.errors import UserError

QUESTIONS_PER_CALL = 64
ATTEMPTS = 3  # how often a question is asked whose answers cannot be used, one run after the other
PATIENCE = 24  # a live model that answers none of so many questions in a row never will
MAX_SAID = 80  # characters shown of an answer
MEND = "mend the server, or choose another --llm or --goal-form, and start again; all is kept"
# What to do where only stores are read and none has the answer, by form.
MEND_OF_SCENES = (
    "choose a live --llm (such as gemma3-270m), another --goal-form, of scenes --prompt-scope "
    "compact (most recordings are of compact ones), or --on-missing no-goals"
)
MENDS = {
    "pairs": (
        "choose another --llm (gemma3-270m is recorded on all things and can be asked), record "
        "these (python -m goals.record --form pairs), or choose --pair-scoring recipe or "
        "--goal-source oracle"
    )
}


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

    An answer that cannot be used (empty, cut, no list: see `goals.forms.is_answer`) is kept too,
    and a later run asks again, ATTEMPTS times in all. The first answer to be used is the one that
    counts; of a recorded store any counts.
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
        self._failed = 0  # questions in a row without a usable answer

    @property
    def left(self) -> float:
        """Return how many questions the budget still allows."""
        return max(0, self.budget - self.costs.queries) if self.budget else math.inf

    def find(self, prompt_hash: str, parameters: dict, questions: Sequence[str]) -> dict[str, str]:
        """Return the raw answers that are in the stores and need not be asked for again."""
        answers, others = self._look_up(prompt_hash, parameters, questions)
        return answers | {
            question: _last(tries) for question, tries in others.items() if self._is_final(tries)
        }

    def answers(
        self,
        prompt_hash: str,
        parameters: dict,
        questions: Sequence[str],
        ask: Callable[[LanguageModel, list[str]], list[str | None]],
    ) -> dict[str, str]:
        """Find or get the raw answers of distinct questions; what nobody answers is left out.

        An answer that cannot be used is among them if it says anything. Raises UserError if the
        model fails or answers no question for long and, without a live model and with on_missing
        "error", if a store has no answer.
        """
        answers, others = self._look_up(prompt_hash, parameters, questions)
        missing = [question for question in questions if question not in answers]
        unknown = [question for question in missing if question not in others]
        if unknown and self.model is None and self.on_missing == "error":
            names = f" ({', '.join(unknown[:3])} ...)" if parameters.get("form") == "pairs" else ""
            mend = MENDS.get(parameters.get("form"), MEND_OF_SCENES)
            raise UserError(
                f"no stored answer of {self.name} for {len(unknown)} question(s){names}: {mend}"
            )
        asked = [question for question in missing if not self._is_final(others.get(question, {}))]
        asked = asked[: int(min(self.left, len(asked)))]
        # What is left of questions that stores answer may be hard for the model alone.
        are_all_new = not any(answers.values())
        for start in range(0, len(asked), QUESTIONS_PER_CALL):
            self.on_progress(len(asked) - start)
            batch = asked[start : start + QUESTIONS_PER_CALL]
            number = sum(question not in others for question in batch) if are_all_new else 0
            new = self._ask(batch, ask)
            self._keep(prompt_hash, parameters, new, others)
            # Another run may have answered first: the stored answer is the one that counts.
            found, tried = self._stored(prompt_hash, parameters, batch)
            answers, others = answers | found, others | tried
            self._check_progress(number, found, tried)
        if asked:
            self.on_progress(0)
        for question in missing:
            said = "" if question in answers else _last(others.get(question, {}))
            if without_reasoning(said).strip():
                answers[question] = said
        self.costs += Costs(unanswered=len(questions) - len(answers))
        return answers

    def _look_up(
        self, prompt_hash: str, parameters: dict, questions: Sequence[str]
    ) -> tuple[dict[str, str], dict[str, dict[int, str]]]:
        """Return what is recorded and, where nothing is, `_stored` of the run's store.

        What is recorded counts first: it is the same whatever other runs have stored.
        """
        key = self._key(prompt_hash, parameters)
        answers = self.recorded.get_answers(*key, questions) if self.recorded else {}
        others: dict[str, dict[int, str]] = {}
        if len(answers) < len(questions):
            missing = [question for question in questions if question not in answers]
            found, others = self._stored(prompt_hash, parameters, missing)
            answers |= found
        self.costs += Costs(store_hits=len(answers))
        return answers, others

    def _stored(
        self, prompt_hash: str, parameters: dict, questions: Sequence[str]
    ) -> tuple[dict[str, str], dict[str, dict[int, str]]]:
        """Return the answers in the run's store, and by attempt those that cannot be used."""
        answers: dict[str, str] = {}
        others: dict[str, dict[int, str]] = {}
        for attempt in range(ATTEMPTS):
            missing = [question for question in questions if question not in answers]
            key = self._key(prompt_hash, parameters, attempt)
            for question, raw in self.store.get_answers(*key, missing).items():
                if is_answer(parameters, raw):
                    answers[question] = raw
                else:
                    others.setdefault(question, {})[attempt] = raw
        return answers, {q: tries for q, tries in others.items() if q not in answers}

    def _is_final(self, tries: Mapping[int, str]) -> bool:
        """Return whether a question with such answers, which cannot be used, is not asked again."""
        return self.model is None or len(tries) == ATTEMPTS

    def _keep(
        self,
        prompt_hash: str,
        parameters: dict,
        new: Mapping[str, str],
        others: Mapping[str, Mapping[int, str]],
    ) -> None:
        """Store new answers, each as the first attempt that the store does not have."""
        by_attempt: dict[int, dict[str, str]] = {}
        for question, raw in new.items():
            attempt = min(set(range(ATTEMPTS)) - set(others.get(question, ())))
            by_attempt.setdefault(attempt, {})[question] = raw
        for attempt, answers in by_attempt.items():
            self.store.put_answers(*self._key(prompt_hash, parameters, attempt), answers)

    def _check_progress(
        self, number: int, found: Mapping[str, str], tried: Mapping[str, Mapping[int, str]]
    ) -> None:
        """Raise UserError if no question is answered for long; a number of the last ones are new.

        An empty answer, which stands for scores that a model does not give, proves nothing.
        """
        self._failed = 0 if any(found.values()) else self._failed + number
        if self._failed >= PATIENCE:
            said = next((_last(tries) for tries in tried.values()), None)
            raise UserError(
                f"{self.name} has no usable answer to any of {self._failed} questions in a row "
                f"({self.why(said)}): {MEND}"
            )

    def why(self, said: str | None) -> str:
        """Say why an answer cannot be used, None for one that has not come."""
        trouble = self.model.trouble if self.model else ""
        return trouble or "no answer" if said is None else f"it says {said[:MAX_SAID]!r}"

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

    def _key(self, prompt_hash: str, parameters: dict, attempt: int = 0) -> tuple[str, str, str]:
        again = {"attempt": attempt} if attempt else {}
        return self.name, prompt_hash, json.dumps(parameters | again, sort_keys=True)


def _last(tries: Mapping[int, str]) -> str:
    """Return the answer of the last attempt, "" if there is none."""
    return tries[max(tries)] if tries else ""
