"""The layer of the policies that read words."""

import flax.linen as nn
import jax
import numpy as np

from goals.tables import WordSet


class Words(nn.Module):
    """A layer on the embedding of a set of texts: relu(x E W / scale + b), x the set's bits.

    Embedding is linear, so E W is computed once for all rows of a batch.
    """

    size: int

    @nn.compact
    def __call__(self, texts: WordSet) -> jax.Array:
        """Return [B, size] float32."""
        init, width = nn.initializers.orthogonal(np.sqrt(2)), texts.embeddings.shape[-1]
        kernel = self.param("kernel", init, (width, self.size))
        bias = self.param("bias", nn.initializers.zeros, (self.size,))
        weights = texts.embeddings @ kernel
        return nn.relu(texts.bits @ weights / texts.scale[:, None] + bias[None])
