"""Text to unit vectors, by a small sentence encoder on the CPU, and the normal form of a goal's text."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lab.errors import UserError

# Every call of the network has the same number of rows, and a row's length depends on its text alone: matrix
# products of another shape may round differently, and a text would depend on its company in the last bits.
ROWS = 8
LENGTH_STEP = 8

DASHES = str.maketrans(dict.fromkeys("-_‐‑‒–—―−", " "))
NUMBERING = re.compile(r"^(?:\d+\s*[.):]\s*(?=\D|$))+")
EDGES = re.compile(r"^\W+|\W+$")
ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalise_goal(text: str) -> str:
    """Bring a goal to its normal form: lower case, no bullet, number, article, dash or punctuation at its ends.

    Normal forms stay as they are, and hold no control characters or lone surrogates.
    """
    before = None
    while text != before:
        before = text
        text = " ".join(text.lower().translate(DASHES).split())
        text = "".join(character for character in text if character.isprintable())
        text = EDGES.sub("", ARTICLES.sub(" ", EDGES.sub("", NUMBERING.sub("", text))))
    return text


class SentenceEncoder:
    """Encode texts with a transformer, the mean over its tokens, and unit length; see `load_sentence_encoder`.

    `name` is the identity for the store, with a hash of the weights; `size` is E.
    """

    def __init__(self, name: str, model, tokenizer):
        self.name = name
        self.size: int = model.config.hidden_size
        self._model, self._tokenizer = model, tokenizer

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32 [len(texts), E]; a text gets the same bits in whatever call it stands."""
        import torch

        vectors = np.zeros((len(texts), self.size), np.float32)
        # A lone surrogate is no character for a tokenizer.
        sentences = [text.encode("utf-8", "replace").decode() for text in texts]
        tokens = self._tokenizer(sentences, truncation=True)["input_ids"] if sentences else []
        lengths = np.array([-(-len(row) // LENGTH_STEP) * LENGTH_STEP for row in tokens], np.int64)
        threads = torch.get_num_threads()
        # One thread: two wait for each other at every layer when JAX has the other core, and bits would depend on them.
        torch.set_num_threads(1)
        try:
            for length in np.unique(lengths):
                indices = np.flatnonzero(lengths == length)
                for start in range(0, len(indices), ROWS):
                    rows = indices[start : start + ROWS]
                    vectors[rows] = self._forward([tokens[i] for i in rows], int(length))[: len(rows)]
        finally:
            torch.set_num_threads(threads)
        return vectors

    def _forward(self, tokens: list[list[int]], length: int) -> np.ndarray:
        """Encode at most ROWS token rows padded to `length`; return float32 [ROWS, E]."""
        import torch

        ids = np.full((ROWS, length), self._tokenizer.pad_token_id, np.int64)
        mask = np.zeros((ROWS, length), np.int64)
        mask[:, 0] = 1  # a row that stands for nothing still has a mean
        for row, numbers in enumerate(tokens):
            ids[row, : len(numbers)] = numbers
            mask[row, : len(numbers)] = 1
        with torch.inference_mode():
            attended = torch.from_numpy(mask)
            hidden = self._model(input_ids=torch.from_numpy(ids), attention_mask=attended).last_hidden_state
            weights = attended[..., None].to(hidden.dtype)
            mean = (hidden * weights).sum(1) / weights.sum(1)
            return torch.nn.functional.normalize(mean, dim=1).numpy()


def load_sentence_encoder(name: str = "all-MiniLM-L6-v2") -> SentenceEncoder:
    """Load an encoder: all-MiniLM-L6-v2 (installed with the requirements), a folder, or a hub id.

    Raises UserError if it is not there, or does not pool by the mean.
    """
    folder = _find(name)
    modules = _read_json(folder / "modules.json", default=[])
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    pooling = [_read_json(folder / m["path"] / "config.json") for m, k in zip(modules, kinds, strict=True) if k == "Pooling"]
    others = [k for k in kinds if k not in ("Transformer", "Pooling", "Normalize")]
    modes = [mode for config in pooling for mode, on in config.items() if mode.startswith("pooling_mode") and on is True]
    if others or modes not in ([], ["pooling_mode_mean_tokens"]):
        raise UserError(f"sentence encoder {name} has {', '.join(others + modes)}: choose one that pools by the mean only")
    folder = folder / modules[0]["path"] if modules else folder
    limit = _read_json(folder / "sentence_bert_config.json", default={}).get("max_seq_length")
    try:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"sentence encoder {name} in {folder} cannot be loaded ({reason})") from error
    tokenizer.model_max_length = min(tokenizer.model_max_length, limit or tokenizer.model_max_length)
    return SentenceEncoder(f"{name}@{_hash(folder)}", model.eval().float(), tokenizer)
