"""The dense layer of the policies, on several inputs side by side."""

from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np


class Dense(nn.Module):
    """Compute what `nn.Dense` does on the concatenated inputs, from equal parameters.

    As a sum over the inputs, so that gradients are computed only for those that have any: what the
    policy sees is thousands of numbers wide, the words it reads are few.
    """

    features: int
    kernel_init: Callable = nn.initializers.orthogonal(np.sqrt(2))

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """Turn inputs [B, D_i] float32 into [B, features] float32."""
        widths = [x.shape[-1] for x in inputs]
        kernel = self.param("kernel", self.kernel_init, (sum(widths), self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        ends = np.cumsum(widths)
        parts = [kernel[end - width : end] for width, end in zip(widths, ends, strict=True)]
        return sum(x @ part for x, part in zip(inputs, parts, strict=True)) + bias[None]
