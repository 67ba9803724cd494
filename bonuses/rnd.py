"""RND (Burda et al., 2018): an agent is paid for reaching states that it cannot predict.

A fixed random network embeds the state that each action led to, another learns to predict the
embedding; its squared error, divided by the standard deviation of its discounted sums, is the
bonus. Where the policy reads text, the embedded text of the state is embedded with it.

Deviations from the paper:
1. One value and one discount serve both rewards, and the bonus ends with the episode as the game's
   reward does. RND has two heads and two discounts, and its bonus goes on over ends of episodes.
2. The statistics of observations count a rollout before it is rewarded. RND begins with random
   steps and counts it afterwards.
3. The predictor learns after the reward, with an optimizer of its own, in 4 passes over the
   rollout in minibatches of 512 states. RND's learns in one loss with the policy, in 4 passes in
   minibatches of 1024.
4. Symbols are read by a hidden layer instead of three convolutions; hidden layers are --hidden-size
   wide, the paper's 512.
5. With DQN steps are rewarded once, before they enter the replay. The predictor learns from them
   then, not when they are sampled.

Axes: T steps, N envs, B states, D observation, E embedding, W scene words, F features, P what an
observation is packed into.
"""

from dataclasses import dataclass
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from bonuses.bonus import BonusArgs, Seen, keep
from goals.tables import GoalTables, embed_text
from lab.convolution import Convolution
from lab.errors import UserError
from lab.ranges import Count, SomeShare, StepSize
from worlds.world import World

RND_KEY = 0x524E44  # folded into a key for what is RND's own; no key is split into so many


@dataclass(frozen=True)
class RNDArgs(BonusArgs):
    """Random network distillation."""

    rnd_features: Count = 128  # width of the random embedding (F); the paper's: 512
    rnd_learning_rate: StepSize = 1e-4  # Adam's step size for the predictor
    rnd_epochs: Count = 4  # passes of the predictor over each rollout
    rnd_minibatch_size: Count = 512
    """states per gradient step of the predictor, or more: a rollout is cut into equal parts"""
    rnd_proportion: SomeShare | None = None
    """share of the rollout in each pass; default: the paper's, 32 / --num-envs, at most 1"""


@struct.dataclass
class Statistics:
    """Of so many numbers, [] float32, the mean and the variance, of any one shape, float32."""

    count: jax.Array
    mean: jax.Array
    variance: jax.Array


@struct.dataclass
class RNDState:
    """What RND knows, across rollouts.

    target: parameters that never change; predictor, opt_state: what learns to predict it;
    observations: of the states reached; returns: of the discounted sums of the bonus, of which
    running_return [N] float32 is the latest in each env.
    """

    target: Any
    predictor: Any
    opt_state: Any
    observations: Statistics
    returns: Statistics
    running_return: jax.Array


class Embedding(nn.Module):
    """Embed a state: the target with no hidden layers after the first, the predictor with two."""

    num_features: int
    hidden_size: int
    hidden_layers: int

    @nn.compact
    def __call__(self, observation: jax.Array, text: jax.Array) -> jax.Array:
        """Return features [B, F] of normalised observations and text [B, E], all float32.

        observation: [B, D] or [B, H, W, channels].
        """
        init = nn.initializers.orthogonal(np.sqrt(2))
        if observation.ndim > 2:
            for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
                observation = Convolution(features, size, stride)(observation)
                observation = nn.leaky_relu(observation, 0.2)
            observation = observation.reshape(observation.shape[0], -1)
            x = jnp.concatenate([observation, text], axis=-1)
        else:
            x = jnp.concatenate([observation, text], axis=-1)
            x = nn.leaky_relu(nn.Dense(self.hidden_size, kernel_init=init)(x), 0.2)
        for _ in range(self.hidden_layers):
            x = nn.relu(nn.Dense(self.hidden_size, kernel_init=init)(x))
        return nn.Dense(self.num_features, kernel_init=init)(x)


@dataclass(frozen=True)
class RND:
    """The bonus of a learner with N envs and rollouts of T steps.

    It keeps of a step the state that it led to, its observation [N, *P] as the world packs it, of
    stacked frames the newest alone. Raises UserError for arguments that do not fit.
    """

    args: RNDArgs
    world: World
    seed: int
    num_envs: int
    num_steps: int
    hidden_size: int
    gamma: float

    def __post_init__(self):
        _ = self.minibatches

    @property
    def batch_size(self) -> int:
        """States of a rollout."""
        return self.num_envs * self.num_steps

    @property
    def minibatches(self) -> tuple[int, int]:
        """Gradient steps of the predictor per pass, and states in each; raises UserError."""
        args = self.args
        proportion = args.rnd_proportion
        if proportion is None:
            proportion = min(1.0, 32 / self.num_envs)
        states = round(proportion * self.batch_size)
        if not 1 <= states <= self.batch_size:
            wrong = f"--rnd-proportion {proportion} is not above 0 and at most 1"
            raise UserError(f"{wrong}: {states} of {self.batch_size} states")
        steps = max(1, states // args.rnd_minibatch_size)
        return steps, states // steps

    @property
    def target(self) -> Embedding:
        """The network to predict."""
        return Embedding(self.args.rnd_features, self.hidden_size, 0)

    @property
    def predictor(self) -> Embedding:
        """The network that learns to."""
        return Embedding(self.args.rnd_features, self.hidden_size, 2)

    def init(self, tables: GoalTables, observation: jax.Array, scenes: jax.Array) -> RNDState:
        """Return the first state; scenes [N, W], or [N, 0]: those whose words are read."""
        text = embed_text(self.args, tables, scenes)
        packed = self.world.pack_observation(observation)
        observation = newest_observation(self.world, packed).astype(jnp.float32)
        # A key of its own, so that what the plain baseline draws is drawn here too.
        key = jax.random.fold_in(jax.random.key(self.seed), RND_KEY)
        target_key, predictor_key = jax.random.split(key)
        predictor = self.predictor.init(predictor_key, observation, text)
        return RNDState(
            target=self.target.init(target_key, observation, text),
            predictor=predictor,
            opt_state=optax.adam(self.args.rnd_learning_rate).init(predictor),
            observations=no_statistics(*observation.shape[1:]),
            returns=no_statistics(),
            running_return=jnp.zeros(self.num_envs),
        )

    # COLLECT
    def note(self, observation: jax.Array, scenes: jax.Array, states: Any) -> Seen:
        """Keep of N steps the states that they led to, before any is reset."""
        return self.pack(jax.vmap(self.world.observe)(states), jax.vmap(self.world.scene)(states))

    def pack(self, observation: jax.Array, scenes: jax.Array) -> Seen:
        """Keep of N states what the networks read."""
        return keep(self.args, self.world.pack_observation(observation), scenes)

    def scenes_reached(self, seen: Seen) -> jax.Array:
        """Return the scenes [T * N, W] that must be known before the rollout is rewarded."""
        return seen.scenes.reshape(-1, seen.scenes.shape[-1])

    # REWARD
    def reward(
        self, tables: GoalTables, state: RNDState, seen: Seen, done: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, RNDState, dict[str, jax.Array]]:
        """Reward the steps that led to states [T, N, ...], then let the predictor learn from them.

        Returns rewards [T, N] float32, state and metrics. done: [T, N] bool, for NovelD.
        """
        state = self.count_observations(state, seen)
        errors, features = self.prediction_errors(tables, state, seen)
        chex.assert_equal_shape([errors, done])
        return self.pay(tables, state, seen, features, errors, key)

    def count_observations(self, state: RNDState, seen: Seen) -> RNDState:
        """Count in what was seen, before it is rewarded: the first rollout has statistics too."""
        observations = newest_observation(self.world, self.flatten(seen).observation)
        counted = add_to_statistics(state.observations, observations.astype(jnp.float32))
        return state.replace(observations=counted)

    def prediction_errors(
        self, tables: GoalTables, state: RNDState, seen: Seen
    ) -> tuple[jax.Array, jax.Array]:
        """Return mean squared errors [T, N] and what was to be predicted [T, N, F]."""

        def embed(seen):
            read = self.read(tables, state.observations, seen)
            features = self.target.apply(state.target, *read)
            return ((self.predictor.apply(state.predictor, *read) - features) ** 2).mean(
                -1
            ), features

        return jax.lax.map(embed, seen)  # a step at a time, which bounds the memory of pixels

    def pay(
        self,
        tables: GoalTables,
        state: RNDState,
        seen: Seen,
        features: jax.Array,
        errors: jax.Array,
        key: jax.Array,
    ) -> tuple[jax.Array, RNDState, dict[str, jax.Array]]:
        """Turn errors [T, N] into rewards [T, N] and learn to predict the features [T, N, F]."""
        rewards, state, scale = scale_by_returns(self.gamma, state, errors)
        features = features.reshape(self.batch_size, -1)
        state, loss = self.learn_to_predict(tables, state, self.flatten(seen), features, key)
        metrics = {
            "rnd_loss": loss,
            "bonus_mean": rewards.mean(),
            "bonus_std": rewards.std(),
            "bonus_scale": scale,
        }
        return rewards, state, metrics

    def learn_to_predict(
        self,
        tables: GoalTables,
        state: RNDState,
        seen: Seen,
        features: jax.Array,
        key: jax.Array,
    ) -> tuple[RNDState, jax.Array]:
        """Let the predictor learn features [T * N, F] of states; return also the mean loss []."""
        optimizer, (steps, size) = optax.adam(self.args.rnd_learning_rate), self.minibatches

        def loss(params, indices):
            chosen = jax.tree.map(lambda x: x[indices], seen)
            read = self.read(tables, state.observations, chosen)
            return ((self.predictor.apply(params, *read) - features[indices]) ** 2).mean()

        def minibatch(carry, indices):
            params, opt_state = carry
            value, gradients = jax.value_and_grad(loss)(params, indices)
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value

        def epoch(carry, key):
            indices = jax.random.permutation(key, self.batch_size)[: steps * size]
            return jax.lax.scan(minibatch, carry, indices.reshape(steps, size))

        carry = (state.predictor, state.opt_state)
        keys = jax.random.split(jax.random.fold_in(key, RND_KEY), self.args.rnd_epochs)
        (params, opt_state), losses = jax.lax.scan(epoch, carry, keys)
        return state.replace(predictor=params, opt_state=opt_state), losses.mean()

    def read(
        self, tables: GoalTables, statistics: Statistics, seen: Seen
    ) -> tuple[jax.Array, jax.Array]:
        """Return what the networks read of B states: normalised observations and text [B, E]."""
        observation = newest_observation(self.world, seen.observation).astype(jnp.float32)
        # What never varied has no deviation; once it varies it is as far out as clipping allows.
        deviation = jnp.sqrt(statistics.variance + 1e-8)
        observation = (observation - statistics.mean[None]) / deviation[None]
        return jnp.clip(observation, -5.0, 5.0), embed_text(self.args, tables, seen.scenes)

    def flatten(self, seen: Seen) -> Seen:
        """Turn states [T, N, ...] into [T * N, ...]."""
        return jax.tree.map(lambda x: x.reshape(self.batch_size, *x.shape[2:]), seen)


def newest_observation(world: World, packed: jax.Array) -> jax.Array:
    """Unpack B packed observations [B, *P]: [B, D], [B, H, W, 3] or, of frames, [B, H, W, 1]."""
    return world.unpack_observation(packed[:, None])


def no_statistics(*shape: int) -> Statistics:
    """Return the statistics of no numbers of this shape."""
    return Statistics(jnp.zeros(()), jnp.zeros(shape), jnp.zeros(shape))


def add_to_statistics(statistics: Statistics, values: jax.Array) -> Statistics:
    """Count values [B, ...] in, as if all had come at once (Chan et al., 1979)."""
    count = statistics.count + values.shape[0]
    share, delta = values.shape[0] / count, values.mean(0) - statistics.mean
    variance = (1.0 - share) * statistics.variance + share * values.var(0)
    variance = variance + share * (1.0 - share) * delta**2
    return Statistics(count, statistics.mean + share * delta, variance)


def scale_by_returns(
    gamma: float, state: RNDState, rewards: jax.Array
) -> tuple[jax.Array, RNDState, jax.Array]:
    """Divide rewards [T, N] by the standard deviation of all discounted sums, which is returned."""

    def add(running_return, reward):
        running_return = gamma * running_return + reward  # over ends too, as in the paper's code
        return running_return, running_return

    running_return, returns = jax.lax.scan(add, state.running_return, rewards)
    statistics = add_to_statistics(state.returns, returns.reshape(-1))
    scale = jnp.sqrt(statistics.variance)
    state = state.replace(returns=statistics, running_return=running_return)
    return rewards / jnp.maximum(scale, 1e-8), state, scale
