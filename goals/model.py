"""What a language model is to those who ask it, and what the engines that compute one share."""

import dataclasses
import hashlib
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from goals.carried import file_sha256
from lab.errors import UserError

GEMMA = "gemma3-270m"
DECIMALS = 6  # of a log-probability
LEAST_EVIDENCE = math.log(1e-6)  # of yes and no together; below it both are noise
# transformers changes its own classes while it loads: two threads at it leave them changed for good
LOADING = threading.Lock()


@dataclasses.dataclass
class Usage:
    """What a model was asked so far; prompt_tokens are those computed, not those re-used."""

    queries: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0


class LanguageModel(Protocol):
    """A causal language model; `name` tells its answers apart from any other's.

    An answer depends on its prompt alone, never on what else is asked. None stands for a question
    that got no answer: an endpoint may give up on one, a model in this process never does. A
    failure raises UserError. `trouble` says why the last such question has no answer, if anybody
    knows.
    """

    name: str
    usage: Usage
    trouble: str
    can_score: bool  # whether `score` can be asked

    def generate(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str | None]:
        """Continue each prompt by at most `max_tokens` tokens, up to a stop string."""

    def yes_no(self, prompts: Sequence[str]) -> list[tuple[float, float] | None]:
        """Return for each prompt the log-probabilities that yes and that no comes next.

        Any spelling counts.
        """

    def score(self, prompts: Sequence[str], candidates: Sequence[str]) -> list[list[float] | None]:
        """Return for each prompt the log-likelihood [nats] of each candidate as what comes next.

        A candidate, such as " open door", has its own tokens, whatever the prompt. Raises UserError
        where the model's engine cannot score.
        """

    def close(self) -> None:
        """Let go of the model."""


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn any exception into a UserError that names the model."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"language model {name} failed ({first_line(error)}): "
            "start again, earlier answers are kept"
        ) from error


@contextmanager
def timed(usage: Usage, queries: int) -> Iterator[None]:
    """Count queries that are answered inside, and the seconds they take."""
    start = time.perf_counter()
    yield
    usage.queries += queries
    usage.seconds += time.perf_counter() - start


def first_line(error: BaseException) -> str:
    """Return what an exception says, in one short line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def log_sum(log_probabilities: Sequence[float]) -> float:
    """Return the log of the sum of probabilities, rounded."""
    highest = max(log_probabilities)
    return round(
        highest + math.log(sum(math.exp(p - highest) for p in log_probabilities)), DECIMALS
    )


def check_is_file(path: Path) -> None:
    """Raise UserError if there is no model file."""
    if not path.is_file():
        raise UserError(f"language model {path} does not exist: give a GGUF file, or --llm {GEMMA}")


def gguf_identity(path: Path) -> str:
    """Name a GGUF file by its name and its bytes."""
    return f"{path.name.lower()}@{file_sha256(path)[:16]}"


def hash_files(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
