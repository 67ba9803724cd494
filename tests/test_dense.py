"""The dense layer on several inputs is the plain one on their concatenation, and does less."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lab.dense import Dense

WIDTHS = (300, 7, 16)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, *inputs):
        init = nn.initializers.orthogonal(np.sqrt(2))
        return nn.Dense(32, kernel_init=init, name="Dense_0")(jnp.concatenate(inputs, axis=-1))


class Ours(nn.Module):
    @nn.compact
    def __call__(self, *inputs):
        return Dense(32)(*inputs)


def make_inputs():
    keys = jax.random.split(jax.random.key(1), len(WIDTHS))
    return [jax.random.normal(key, (64, width)) for key, width in zip(keys, WIDTHS, strict=True)]


def test_it_computes_what_the_plain_layer_does_from_equal_parameters():
    inputs = make_inputs()
    plain, ours = (module.init(jax.random.key(2), *inputs) for module in (Plain(), Ours()))
    jax.tree.map(np.testing.assert_array_equal, plain, ours)

    def loss(module):
        return lambda params, inputs: jnp.sin(module.apply(params, *inputs)).sum()

    expected, actual = (jax.grad(loss(m), (0, 1))(plain, inputs) for m in (Plain(), Ours()))
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_no_gradient_is_computed_for_an_input_without_parameters():
    inputs = make_inputs()
    params = Ours().init(jax.random.key(2), *inputs)

    def flops(module):
        def loss(scale, params):  # only the last input depends on what is learned
            return module.apply(params, *inputs[:-1], inputs[-1] * scale).sum()

        return jax.jit(jax.grad(loss, (0, 1))).lower(1.0, params).compile().cost_analysis()["flops"]

    wide = 2 * 64 * 32 * sum(WIDTHS[:-1])  # of the product that is spared
    assert flops(Plain()) - flops(Ours()) > 0.9 * wide
