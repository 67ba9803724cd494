"""The fast convolution against the library's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.convolution import Convolution
from lab.errors import UserError


@pytest.mark.parametrize(
    ("side", "size", "stride"),
    [((84, 84), 8, 4), ((20, 14), 4, 2), ((9, 9), 3, 1), ((8, 8), 8, 4)],
)
def test_patches_give_what_a_convolution_gives_and_its_gradients(side, size, stride):
    plain, ours = (
        nn.Conv(5, (size, size), (stride, stride), padding="VALID"),
        Convolution(5, size, stride),
    )
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, *side, 3)).astype(np.float32)
    params = {"params": {"kernel": rng.normal(size=(size, size, 3, 5)), "bias": rng.normal(size=5)}}
    params = jax.tree.map(lambda x: x.astype(np.float32), params)

    @jax.jit
    def compare(params, images):
        def loss(params, images, net):
            features = net.apply(params, images)
            return (jnp.sin(features)).sum(), features

        return [jax.grad(loss, (0, 1), has_aux=True)(params, images, net) for net in (ours, plain)]

    shapes = [
        jax.tree.map(jnp.shape, jax.eval_shape(net.init, jax.random.key(1), images))
        for net in (ours, plain)
    ]
    assert shapes[0] == shapes[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), *compare(params, images))


def test_only_the_processor_gets_patches():
    net, images = Convolution(5, 3, 1), np.zeros((1, 9, 9, 2), np.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), images)
    lower = jax.jit(net.apply).trace(params, images).lower
    has_convolution = {
        name: "stablehlo.convolution" in lower(lowering_platforms=(name,)).as_text()
        for name in ("cpu", "cuda", "tpu")
    }
    assert has_convolution == {"cpu": False, "cuda": True, "tpu": True}


def test_pictures_smaller_than_a_window_are_told():
    with pytest.raises(UserError, match="7 x 9, too small for a window of 8"):
        Convolution(5, 8, 4).init(jax.random.key(0), np.zeros((1, 7, 9, 2), np.float32))
