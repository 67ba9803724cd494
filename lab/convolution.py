"""The convolution of the policies that see pixels."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lab.errors import UserError


class Convolution(nn.Module):
    """Compute what `nn.Conv` with square windows and "VALID" padding does, from equal parameters.

    On a CPU it is a product of patches with the kernel: XLA's own convolution takes some 15 times
    as long there when it stands in a loop, as scans make it (jax issue 12868). On other platforms
    it is XLA's. `size` is a multiple of `stride`. Raises UserError for images smaller than a
    window.
    """

    features: int
    size: int
    stride: int
    kernel_init: Callable = nn.initializers.orthogonal(np.sqrt(2))

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Turn images [B, H, W, channels] into features.

        Returns [B, (H - size) // stride + 1, (W - size) // stride + 1, features].
        """
        height, width, channels = images.shape[1:]
        if min(height, width) < self.size:
            raise UserError(
                f"pictures have become {height} x {width}, too small for a window of {self.size}"
            )
        shape = (self.size, self.size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        product = jax.lax.platform_dependent(
            images, kernel, cpu=self.by_patches, default=self.by_xla
        )
        return product + jnp.expand_dims(bias, (0, 1, 2))

    def by_xla(self, images: jax.Array, kernel: jax.Array) -> jax.Array:
        """Convolve images [B, H, W, channels] with kernel [size, size, channels, features]."""
        strides = (self.stride, self.stride)
        return jax.lax.conv_general_dilated(
            images, kernel, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def by_patches(self, images: jax.Array, kernel: jax.Array) -> jax.Array:
        """Do the same with tiles of stride x stride, a window's tiles laid side by side."""
        stride, tiles = self.stride, self.size // self.stride
        # Of the result.
        high, wide = (1 + (side - self.size) // stride for side in images.shape[1:3])
        rows, columns = high + tiles - 1, wide + tiles - 1
        images = images[:, : rows * stride, : columns * stride]
        images = images.reshape(-1, rows, stride, columns, stride, images.shape[-1])
        images = images.transpose(0, 1, 3, 2, 4, 5)
        images = images.reshape(-1, rows, columns, stride * stride * images.shape[-1])
        kernel = kernel.reshape(tiles, stride, tiles, stride, -1, self.features)
        kernel = kernel.transpose(0, 2, 1, 3, 4, 5)
        windows = [
            images[:, i : i + high, j : j + wide] for i in range(tiles) for j in range(tiles)
        ]
        return jnp.concatenate(windows, axis=-1) @ kernel.reshape(-1, self.features)
