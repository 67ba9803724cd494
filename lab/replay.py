"""A replay on the device: uniform draws of transitions of up to n steps, from the steps of N envs.

Pure functions over one struct. A jitted function that adds to the replay must donate it, and no
loop may carry it: then the big arrays stay where they are and nothing of them is copied.
Axes: T steps of a rollout, N envs, B transitions drawn, S steps of a sequence, L steps of an env in
the replay, R last states of an env in the replay, P what an observation is packed into.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lab.play import select
from worlds.world import World


@struct.dataclass
class Experience:
    """Steps, of any leading shape: inputs from before the action, the rest from after it.

    inputs: a struct of what the policy reads, with a field `observation` [..., *P], the newest
    moment as the world packs it; actions, place: int32; rewards: float32; terminated, truncated:
    bool. place: where an episode was cut, the place of the state it ended in among all last states.
    """

    inputs: Any
    actions: jax.Array
    rewards: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    place: jax.Array


@struct.dataclass
class Replay:
    """Each env's newest L steps, and the states in which the time limit cut an episode.

    No later step shows such a state. steps: `Experience` [N, L], a ring; added: int32 [], steps of
    each env so far; last: inputs [N, R, ...], a ring as long as there can be cuts in L steps; cuts:
    [N] int32, cuts so far.
    """

    steps: Experience
    added: jax.Array
    last: Any
    cuts: jax.Array


@struct.dataclass
class Transitions:
    """B transitions of up to n steps, each array [B, ...].

    inputs, next_inputs: where the transition begins and what it leads to; actions: int32, its first
    action; returns: float32, discounted sums of rewards; discounts: float32, of the value of what
    it leads to, 0 where that is terminal.
    """

    inputs: Any
    actions: jax.Array
    returns: jax.Array
    discounts: jax.Array
    next_inputs: Any


def empty_replay(inputs: Any, num_steps: int, max_episode_steps: int) -> Replay:
    """Allocate a replay of `num_steps` (L) steps of each env, for inputs like these [N, ...]."""

    def allocate(x, length):
        return jnp.zeros((x.shape[0], length, *x.shape[1:]), x.dtype)

    num_envs, num_last = jax.tree.leaves(inputs)[0].shape[0], num_steps // max_episode_steps + 2
    return Replay(
        steps=Experience(
            inputs=jax.tree.map(lambda x: allocate(x, num_steps), inputs),
            actions=jnp.zeros((num_envs, num_steps), jnp.int32),
            rewards=jnp.zeros((num_envs, num_steps)),
            terminated=jnp.zeros((num_envs, num_steps), bool),
            truncated=jnp.zeros((num_envs, num_steps), bool),
            place=jnp.zeros((num_envs, num_steps), jnp.int32),
        ),
        added=jnp.zeros((), jnp.int32),
        last=jax.tree.map(lambda x: allocate(x, num_last), inputs),
        cuts=jnp.zeros(num_envs, jnp.int32),
    )


def add(
    replay: Replay,
    inputs: Any,
    actions: jax.Array,
    rewards: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    last: Any,
) -> Replay:
    """Append the next T steps of every env, each array [T, N, ...]; T is at most L.

    last: inputs [N, ...] of the state in which the time limit cut each env's episode, unread where
    it did not. An episode is not shorter than T steps, so there is at most one such state.
    """
    chex.assert_equal_shape([actions, rewards, terminated, truncated])
    (num_envs, length), num_last = (
        replay.steps.rewards.shape,
        jax.tree.leaves(replay.last)[0].shape[1],
    )
    chex.assert_shape(rewards, (rewards.shape[0], num_envs))
    chex.assert_axis_dimension_lteq(rewards, 0, length)
    envs, cut = np.arange(num_envs, dtype=np.int32), truncated.any(0)
    place = replay.cuts % num_last
    steps = Experience(
        inputs=inputs,
        actions=actions,
        rewards=rewards,
        terminated=terminated,
        truncated=truncated,
        place=jnp.broadcast_to((envs * num_last + place)[None], rewards.shape),
    )
    times = (replay.added + np.arange(rewards.shape[0], dtype=np.int32)) % length

    def keep(ring, x):
        return ring.at[envs, place].set(select(cut, x, ring[envs, place]))

    return Replay(
        steps=jax.tree.map(
            lambda ring, x: ring.at[:, times].set(x.swapaxes(0, 1)), replay.steps, steps
        ),
        added=replay.added + rewards.shape[0],
        last=jax.tree.map(keep, replay.last, last),
        cuts=replay.cuts + cut,
    )


def can_sample(replay: Replay, length: int) -> jax.Array:
    """Return whether there are sequences of so many steps, bool []."""
    return replay.added >= length


def sample_sequences(replay: Replay, key: jax.Array, batch_size: int, length: int) -> Experience:
    """Draw B sequences of S = `length` steps of one env each, uniformly: [B, S, ...]."""
    num_envs, size = replay.steps.rewards.shape
    held = jnp.minimum(replay.added, size)
    rest, start_key = jax.random.split(key)
    env_key = jax.random.split(rest)[1]
    starts = jax.random.randint(start_key, (batch_size,), 0, held - length + 1)
    envs = jax.random.randint(env_key, (batch_size,), 0, num_envs)
    oldest = (replay.added - held) % size
    times = (oldest + starts)[:, None] + np.arange(length, dtype=np.int32)[None]
    return jax.tree.map(lambda ring: ring[envs[:, None], times % size], replay.steps)


def sample_transitions(
    world: World, replay: Replay, key: jax.Array, batch_size: int, n_step: int, gamma: float
) -> Transitions:
    """Draw B transitions; their inputs are as they were added, with `observation` unpacked."""
    steps = sample_sequences(replay, key, batch_size, world.history + n_step)
    now = world.history - 1
    rewards, terminated, truncated = (
        x[:, now : now + n_step] for x in (steps.rewards, steps.terminated, steps.truncated)
    )
    returns, discounts, taken, cut = n_step_returns(rewards, terminated, truncated, gamma)
    rows, then = np.arange(batch_size), now + taken
    done = steps.terminated | steps.truncated
    inputs = jax.tree.map(lambda x: x[:, now], steps.inputs)
    packed = steps.inputs.observation
    observation = gather_observations(world, packed, done, jnp.full_like(then, now))

    # Where the time limit cut the episode the next step in the replay is of another one: what
    # followed is among the last states.
    places = steps.place[rows, then - 1]
    last = jax.tree.map(
        lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[places], replay.last
    )
    next_inputs = select(cut, last, jax.tree.map(lambda x: x[rows, then], steps.inputs))
    packed = packed.at[rows, then].set(next_inputs.observation)
    same_episode = done.at[rows, then - 1].set(False)
    next_observation = gather_observations(world, packed, same_episode, then)
    return Transitions(
        inputs=inputs.replace(observation=observation),
        actions=steps.actions[:, now],
        returns=returns,
        discounts=discounts,
        next_inputs=next_inputs.replace(observation=next_observation),
    )


def n_step_returns(
    rewards: jax.Array, terminated: jax.Array, truncated: jax.Array, gamma: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Sum up to n rewards, no further than the end of the episode; all arguments [B, n].

    Returns the discounted sums [B] float32, the discounts [B] float32 of the value of the state
    reached (0 where it is terminal), the steps taken to it [B] int32, and whether the time limit
    cut the episode there [B] bool.
    """
    chex.assert_equal_shape([rewards, terminated, truncated])
    ended = terminated | truncated
    is_in = (jnp.cumsum(ended, axis=1) - ended) == 0
    powers = gamma ** np.arange(rewards.shape[1], dtype=np.float32)[None]
    steps = is_in.sum(1)
    discounts = gamma**steps * ~(terminated & is_in).any(1)
    return (rewards * powers * is_in).sum(1), discounts, steps, (truncated & is_in).any(1)


def gather_observations(
    world: World, packed: jax.Array, done: jax.Array, at: jax.Array
) -> jax.Array:
    """Unpack the observations at the places `at` [B] of packed sequences [B, S, *P].

    done: [B, S] bool. Of the moments that make up an observation, those before the episode's first
    are replaced by the first, as the world does at a reset.
    """
    num_sequences, length = done.shape
    places = np.arange(length, dtype=np.int32)[None]
    first = jnp.max(jnp.where(done & (places < at[:, None]), places + 1, 0), axis=1)
    ages = np.arange(world.history, dtype=np.int32)[None, ::-1]
    moments = jnp.maximum(at[:, None] - ages, first[:, None])
    return world.unpack_observation(packed[np.arange(num_sequences)[:, None], moments])
