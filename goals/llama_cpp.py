"""Who answers: a GGUF file by llama.cpp, inside this process.

An answer depends on its prompt alone to the last bit: `chunks_of` cuts a prompt where it may be
computed in parts, and what was computed is used again only up to such a cut.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from goals.model import Usage, check_is_file, explained, first_line, gguf_identity, log_sum, timed
from goals.prompts import PARAGRAPH
from lab.errors import UserError

CONTEXT_TOKENS = 4096
LISTED_TOKENS = 64  # the most likely next tokens that are listed for a yes/no question
MAX_THREADS = 8  # more only wait for each other in chunks this short

SENTENCE = re.compile(r"(?<=\n)(?=[^\n])|(?<=[.:])(?= )")


class LlamaCpp:
    """A GGUF file in llama.cpp, one prompt at a time.

    Its kernels round differently for every number of tokens computed together, so prompts asked at
    once would change each other's answers; chunk by chunk, a prompt always meets the same kernels.
    """

    can_score = False
    trouble = ""

    def __init__(self, path: str | os.PathLike):
        path = Path(path)
        check_is_file(path)
        # Waiting threads that spin would take the cores from whatever else runs, this process's JAX
        # included.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        try:
            import xllamacpp
        except ImportError:
            raise UserError("a GGUF file needs llama.cpp: pip install xllamacpp") from None
        self.name = gguf_identity(path)
        self.usage = Usage()
        self._computed: list[str] = []
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel = 1
        params.n_ctx = CONTEXT_TOKENS
        params.swa_full = (
            True  # else a model with a sliding window could not go back to the end of a chunk
        )
        params.cache_ram_mib = 0
        params.n_ctx_checkpoints = 0
        params.warmup = False
        params.verbosity = -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _num_threads()
        try:
            self._server = xllamacpp.Server(params)
        except Exception as error:
            raise UserError(
                f"language model {path} cannot be loaded ({first_line(error)}): "
                "give a whole GGUF file"
            ) from None

    def generate(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str | None]:
        """See LanguageModel."""
        options = {
            "n_predict": max_tokens,
            "stop": list(stop),
            "temperature": temperature,
            "seed": seed,
        }
        with timed(self.usage, len(prompts)):
            return [self._ask(prompt, options)["text"] for prompt in prompts]

    def yes_no(self, prompts: Sequence[str]) -> list[tuple[float, float] | None]:
        """See LanguageModel."""
        with timed(self.usage, len(prompts)):
            return [self._yes_no(prompt) for prompt in prompts]

    def score(self, prompts: Sequence[str], candidates: Sequence[str]) -> list[list[float] | None]:
        """Raise UserError: llama.cpp lists its most likely next tokens only."""
        raise UserError(
            "llama.cpp cannot score candidates: "
            "ask for yes or no instead, or give --llm-engine transformers"
        )

    def close(self) -> None:
        """Stop the server; closing twice does no harm."""
        self._server = None

    def _yes_no(self, prompt):
        choice = self._ask(prompt, {"n_predict": 1, "temperature": 0.0, "n_probs": LISTED_TOKENS})
        listed = choice["logprobs"]["content"][0]["top_logprobs"]
        # A word that is not listed is at most as likely as the last that is.
        least = min(token["logprob"] for token in listed)
        found = {
            word: [t["logprob"] for t in listed if t["token"].strip().lower() == word] or [least]
            for word in ("yes", "no")
        }
        return log_sum(found["yes"]), log_sum(found["no"])

    def _ask(self, prompt, options):
        chunks = chunks_of(prompt)
        known = 0
        for new, old in zip(chunks[:-1], self._computed, strict=False):
            if new != old:
                break
            known += 1
        if known < len(self._computed):
            # The next question may begin as the last one did: go back to the cut itself, by a word
            # that no chunk begins with.
            self._complete("".join(chunks[:known]) + " ~", {"n_predict": 0})
        self._computed = chunks[:known]
        for chunk in chunks[known:-1]:
            self._complete("".join([*self._computed, chunk]), {"n_predict": 0})
            self._computed.append(chunk)
        self._computed = chunks
        return self._complete(prompt, options)["choices"][0]

    def _complete(self, prompt, options):
        with explained(self.name):
            answer = self._server.handle_completions(
                {"prompt": prompt, "cache_prompt": True, **options}
            )
            if "choices" not in answer:
                raise RuntimeError(answer.get("message") or answer)
        self.usage.prompt_tokens += answer["timings"]["prompt_n"]
        self.usage.generated_tokens += (
            answer["timings"]["predicted_n"] if options["n_predict"] else 0
        )
        return answer


def chunks_of(prompt: str) -> list[str]:
    """Cut a prompt after each paragraph, and the last paragraph after each line and sentence."""
    *head, last = PARAGRAPH.split(prompt)
    return head + SENTENCE.split(last)


def _num_threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min(cores, MAX_THREADS)
