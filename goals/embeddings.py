"""Embeddings of texts, each computed once and for all."""

from collections.abc import Sequence

import numpy as np

from goals.sentence_encoder import load_sentence_encoder
from goals.store import Store


class Embeddings:
    """Embed texts from memory, the stores, or the encoder, in this order; what is new is stored.

    The encoder is found when a text is embedded first.
    """

    def __init__(self, encoder: str, store: Store, recorded: Store | None = None):
        self._name, self._store, self._recorded = encoder, store, recorded
        self._encoder = None
        self._known: dict[str, np.ndarray] = {}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32 [len(texts), E]; raises UserError if there is no encoder."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        if missing:
            self._known |= self._find(missing)
        return np.stack([self._known[text] for text in texts])

    def _find(self, texts: list[str]) -> dict[str, np.ndarray]:
        if self._encoder is None:
            self._encoder = load_sentence_encoder(self._name)
        found = self._store.get_embeddings(self._encoder.name, texts)
        if self._recorded and len(found) < len(texts):
            found = self._recorded.get_embeddings(self._encoder.name, texts) | found
        missing = [text for text in texts if text not in found]
        if missing:
            new = dict(zip(missing, self._encoder.encode(missing), strict=True))
            self._store.put_embeddings(self._encoder.name, new)
            found |= new
        return found
