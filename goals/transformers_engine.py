"""Who answers: a causal language model by transformers, many prompts at a time, in this process.

What a batch holds besides changes an answer by no more than rounding. Needs PyTorch.
"""

import dataclasses
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import filelock
import torch
import transformers

from goals.model import (
    DECIMALS,
    GEMMA,
    LOADING,
    Usage,
    check_is_file,
    explained,
    first_line,
    gguf_identity,
    hash_files,
    log_sum,
    timed,
)
from goals.prompts import PARAGRAPH
from goals.shared_prefix import GrowingRows, SharedPrefixModel, TokenTree
from lab.errors import UserError
from lab.machine import cache_folder

MAX_ROWS = 128  # prompts that are continued at once
COMPACT_BELOW = (
    0.75  # share of rows still growing below which the others are dropped from the batch
)
SAMPLE = (
    "The player sees a cow and some trees. "
    "It is getting dark, so the best thing to do now is to sleep."
)


class Transformers:
    """A causal language model of the transformers library, on a GPU if torch sees one.

    The text before the last paragraph (the examples of a few-shot prompt) is computed once, then
    its keys and values are used again. bfloat16 where a GPU or the CPU multiplies it faster, else
    float32; the logits that count are float32 in any case. The rest of a batch changes an answer by
    no more than rounding.
    """

    can_score = True
    trouble = ""

    def __init__(self, spec: str | os.PathLike):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        precision = "bfloat16" if multiplies_bfloat16() else "float32"
        transformers.utils.logging.disable_progress_bar()
        path, folder = Path(spec), spec
        advice = f"check the name and the network, or give --llm {GEMMA}"
        is_gguf = path.suffix.lower() == ".gguf"
        if is_gguf:
            check_is_file(path)
            identity = gguf_identity(path)
            folder = cache_folder("models") / f"{identity.rpartition('@')[2]}-{precision}"
            advice = f"delete {folder}, and it is made again"
            convert_once(path, precision, folder)
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            with LOADING:
                model = (
                    transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=precision)
                    .to(device)
                    .eval()
                )
        except Exception as error:
            raise UserError(
                f"language model {spec} cannot be loaded ({first_line(error)}): {advice}"
            ) from None
        if is_gguf:
            self.name = f"{identity},transformers,{precision}"
        else:
            self.name = _identity(spec, model) + ("" if precision == "float32" else f",{precision}")
        self.model = SharedPrefixModel(model, self.tokenizer(SAMPLE)["input_ids"])
        self.usage = Usage()
        self._ends = {self.tokenizer.eos_token_id, *_listed(model.generation_config.eos_token_id)}
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
                self.model.set_prefix(prefix)
                # What a row draws depends on its prompt and the seed, not on the others.
                drafts = [
                    _Draft(row, rest, random.Random(f"{seed} {prompts[row]}"))
                    for row, rest in rests
                ]
                self._write(drafts, max_tokens, stop, temperature)
                for draft in drafts:
                    answers[draft.row] = draft.text
        return answers

    def yes_no(self, prompts: Sequence[str]) -> list[tuple[float, float] | None]:
        """See LanguageModel."""
        answers: list[tuple[float, float] | None] = [None] * len(prompts)
        with self._asked(len(prompts)):
            for rows, rests in self._batches(prompts):
                logits = self.model.next_logits(rests, [i for ids in self._words for i in ids])
                for row, line in zip(rows, logits.log_softmax(-1).double().cpu(), strict=True):
                    yes, no = (log_sum(line[ids].tolist()) for ids in self._words)
                    answers[row] = yes, no
        return answers

    def score(self, prompts: Sequence[str], candidates: Sequence[str]) -> list[list[float] | None]:
        """See LanguageModel."""
        tree = TokenTree(self.tokenizer(list(candidates), add_special_tokens=False)["input_ids"])
        answers: list[list[float] | None] = [None] * len(prompts)
        with self._asked(len(prompts)):
            for rows, rests in self._batches(prompts, len(tree.inner) - 1):
                for row, line in zip(
                    rows, self.model.log_likelihoods(rests, tree).tolist(), strict=True
                ):
                    answers[row] = [round(value, DECIMALS) for value in line]
        return answers

    def close(self) -> None:
        """Free the model; closing twice does no harm."""
        self.model = None

    def _spellings(self):
        """Return the token ids that read yes and those that read no."""
        ids = [
            i
            for token, i in self.tokenizer.get_vocab().items()
            if "yes" in token.lower() or "no" in token.lower()
        ]
        texts = [
            text.strip().lower() for text in self.tokenizer.batch_decode([[i] for i in sorted(ids)])
        ]
        words = [
            [i for i, text in zip(sorted(ids), texts, strict=True) if text == word]
            for word in ("yes", "no")
        ]
        if not all(words):
            raise UserError(
                f"language model {self.name} has no single tokens yes and no: choose another"
            )
        return words

    @contextmanager
    def _asked(self, queries: int) -> Iterator[None]:
        """Count, time and explain what is asked inside."""
        with timed(self.usage, queries), explained(self.name):
            before = self.model.tokens_computed
            yield
            self.usage.prompt_tokens += self.model.tokens_computed - before

    def _by_prefix(self, prompts) -> list[tuple[tuple[int, ...], list[tuple[int, list[int]]]]]:
        """Group prompts by the tokens they begin with: (prefix, [(row, the other tokens)]).

        Short rows come first.
        """
        if not prompts:
            return []
        groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        heads = {prompt: "".join(PARAGRAPH.split(prompt)[:-1]) for prompt in prompts}
        known = list(dict.fromkeys([*heads.values(), *prompts]))
        tokens = dict(zip(known, self.tokenizer(known)["input_ids"], strict=True))
        for row, prompt in enumerate(prompts):
            head, ids = tokens[heads[prompt]] if heads[prompt] else [], tokens[prompt]
            # A token may reach across the cut; at least one is left to ask with.
            shared = next(
                (i for i, (a, b) in enumerate(zip(head, ids[:-1], strict=False)) if a != b),
                min(len(head), len(ids) - 1),
            )
            groups.setdefault(tuple(ids[:shared]), []).append((row, ids[shared:]))
        return [
            (prefix, sorted(members, key=lambda member: len(member[1])))
            for prefix, members in groups.items()
        ]

    def _batches(self, prompts, extra: int = 0) -> Iterator[tuple[list[int], list[list[int]]]]:
        """Yield (rows, their tokens after the prefix) in batches, with the prefix computed.

        extra: how many tokens more a row takes.
        """
        for prefix, members in self._by_prefix(prompts):
            self.model.set_prefix(prefix)
            while members:
                count = self.model.rows_at_once(len(members[-1][1]) + extra)
                batch, members = members[-count:], members[:-count]
                rows, rests = zip(*batch, strict=True)
                yield list(rows), list(rests)

    def _write(self, drafts, max_tokens, stop, temperature):
        """Continue the drafts, each as far as it goes; one that is done makes room for the next."""
        waiting = list(drafts)
        rows = GrowingRows(
            self.model, min(MAX_ROWS, len(drafts)), len(drafts[-1].rest) + max_tokens
        )
        going: dict[int, _Draft] = {}  # by slot
        while waiting or going:
            free = [slot for slot in range(rows.num_slots) if slot not in going]
            count = (
                min(len(waiting), self.model.rows_at_once(len(waiting[-1].rest))) if waiting else 0
            )
            if count and (len(free) >= count or not going):
                slots = free[:count]
                going |= {slot: waiting.pop() for slot in slots}
                logits = rows.start(slots, [going[slot].rest for slot in slots])
            else:
                if not waiting and len(going) <= rows.num_slots * COMPACT_BELOW:
                    rows.select(list(going))
                    going = dict(enumerate(going.values()))
                slots = range(rows.num_slots)
                logits = rows.advance(
                    [going[slot].tokens[-1] if slot in going else 0 for slot in slots]
                )
            drawn = (
                [going[slot].random.random() if slot in going else 0.0 for slot in slots]
                if temperature > 0
                else []
            )
            for slot, token in zip(slots, choose(logits, temperature, drawn), strict=True):
                if slot in going and self._is_done(going[slot], token, max_tokens, stop):
                    del going[slot]

    def _is_done(self, draft, token, max_tokens, stop) -> bool:
        """Add a token to a draft; return whether that ended it."""
        if token in self._ends:
            return True
        draft.tokens.append(token)
        self.usage.generated_tokens += 1
        text = self.tokenizer.decode(draft.tokens, skip_special_tokens=True)
        draft.text, stopped = until(text, stop)
        return stopped or len(draft.tokens) >= max_tokens


@dataclasses.dataclass
class _Draft:
    """An answer in the making."""

    row: int
    rest: list[int]
    random: random.Random
    tokens: list[int] = dataclasses.field(default_factory=list)
    text: str = ""


def choose(logits, temperature: float, drawn: Sequence[float]) -> list[int]:
    """Choose a token for each row of logits [B, V].

    It is the likeliest or, with a temperature, what a number in [0, 1) per row draws.
    """
    if temperature <= 0:
        return logits.max(-1).indices.tolist()  # three times as fast as argmax on a CPU
    weights = (logits.float() / temperature).softmax(-1).cumsum(-1)
    places = torch.tensor(drawn, device=weights.device)[:, None] * weights[:, -1:]
    return (
        torch.searchsorted(weights, places, right=True)
        .clamp(max=weights.shape[1] - 1)[:, 0]
        .tolist()
    )


def multiplies_bfloat16() -> bool:
    """Return whether this machine multiplies bfloat16 faster than float32.

    A GPU does, and a CPU with tiles (AMX) or vectors of bfloat16 (AVX-512).
    """
    capabilities = torch.cpu.get_capabilities()
    is_fast = any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
    return torch.cuda.is_available() or is_fast


def convert_once(path: Path, precision: str, folder: Path) -> None:
    """Put a GGUF file's weights and tokenizer into a folder as transformers wants them.

    A folder that is there is left as it is.
    """
    aside = folder.with_name(folder.name + ".part")
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(
        folder.with_name(folder.name + ".lock")
    ):  # let go of when a process dies
        if folder.is_dir():
            return
        print(
            f"{path.name} is converted for transformers, once; this takes about a minute",
            flush=True,
        )
        shutil.rmtree(aside, ignore_errors=True)
        try:
            plain = transformers.GgufConfig(dequantize=True)
            with LOADING:
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    **where, dtype=precision, quantization_config=plain
                )
            model.save_pretrained(aside)
            transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(aside)
            aside.rename(folder)
        except Exception as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise UserError(
                f"language model {path} cannot be converted into {folder} ({first_line(error)}): "
                "give a whole GGUF file of a kind that transformers knows, "
                "or --llm-engine llama.cpp"
            ) from None


def until(text, stop):
    """Return the text before the first stop string, and whether there was one."""
    places = [text.index(s) for s in stop if s in text]
    return (text[: min(places)], True) if places else (text, False)


def _listed(value):
    return value if isinstance(value, list | tuple) else (value,)


def _identity(spec: str | os.PathLike, model) -> str:
    """Name the folder or hub id of a transformers model, with its bytes' hash or its commit."""
    path = Path(spec)
    if not path.is_dir():
        return f"{spec}@{model.config._commit_hash}"
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return f"{path.resolve().name}@{hash_files(files)[:16]}"
