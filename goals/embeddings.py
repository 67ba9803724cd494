"""Embeddings of texts, each computed once and for all."""

import hashlib
from collections.abc import Sequence

import numpy as np

from goals.sentence_encoder import SentenceEncoder, load_sentence_encoder
from goals.store import Store

PROBE = "a text whose vector tells how this machine rounds"


class Embeddings:
    """Embed texts from memory, a recording, the run's store, or the encoder, in this order.

    What the encoder computes is stored under its name and a fingerprint of this machine's
    rounding, and found by both: so a run's vectors are those of the recording and of this machine,
    whatever else its store holds. The encoder is loaded when the recording lacks a text.
    """

    def __init__(self, encoder: str, store: Store, recorded: Store | None = None):
        self._name, self._store, self._recorded = encoder, store, recorded
        self._encoder, self._stored_as, self._recorded_as = None, "", None
        self._known: dict[str, np.ndarray] = {}

    @property
    def source(self) -> str:
        """Where vectors come from, in words; raises UserError if there is no encoder."""
        name = self._load().name
        if self._recorded_as:
            return f"{name}, recorded in {self._recorded.path.name}, else computed"
        return f"{name}, computed"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32 [len(texts), E]; raises UserError if there is no encoder."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        if missing:
            self._known |= self._find(missing)
        return np.stack([self._known[text] for text in texts])

    def _load(self) -> SentenceEncoder:
        if self._encoder is None:
            self._encoder = load_sentence_encoder(self._name)
            recorded = self._recorded.encoders() if self._recorded else ()
            ours = [as_ for as_ in recorded if as_.split(",")[0] == self._encoder.name]
            self._recorded_as = ours[0] if ours else None
        return self._encoder

    def _find(self, texts: list[str]) -> dict[str, np.ndarray]:
        self._load()
        found = {}
        if self._recorded_as:
            found = self._recorded.get_embeddings(self._recorded_as, texts)
        missing = [text for text in texts if text not in found]
        return found | self._compute(missing) if missing else found

    def _compute(self, texts: list[str]) -> dict[str, np.ndarray]:
        if not self._stored_as:
            bits = hashlib.sha256(self._encoder.encode([PROBE]).tobytes()).hexdigest()
            self._stored_as = f"{self._encoder.name},{bits[:8]}"
        found = self._store.get_embeddings(self._stored_as, texts)
        missing = [text for text in texts if text not in found]
        if missing:
            new = dict(zip(missing, self._encoder.encode(missing), strict=True))
            self._store.put_embeddings(self._stored_as, new)
            found |= new
        return found
