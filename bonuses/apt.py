"""APT (Liu & Abbeel, 2021): an agent is paid for reaching states unlike the others of its rollout.

A representation learns to tell the action from the states before and after it, as in ICM-APT of
URLB (Laskin et al., 2021). A step earns log(1 + d / running mean of d), d the mean distance from
the state it led to, so represented, to its k nearest others of the rollout.

Deviations from URLB: rewards are computed once, when a step is collected, among the steps collected
with it, not anew whenever it is sampled from a replay, and the representation learns from each
rollout once, so that a rollout must be large enough to tell (512 steps by default with DQN, only 64
with its --preset paper as it is); there is no forward model; a step is rewarded for the state it
led to, not for the one it began in; no state is its own neighbour.

Axes: T steps, N envs, B states, A actions, D observation, E embedding, W scene words, F features,
P particles.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from bonuses.bonus import BonusArgs, Moves, Seen, keep
from goals.tables import GoalTables, embed_text
from lab.convolution import Convolution
from lab.errors import UserError
from lab.ranges import Count, StepSize
from worlds.world import World

APT_KEY = 0x415054  # folded into a key for what is APT's own; no key is split into so many
APT_ROWS = 256  # states whose neighbours are searched in one go, which bounds the memory


@dataclass(frozen=True)
class APTArgs(BonusArgs):
    """Active pre-training by particle entropy."""

    apt_k: Count = 12  # nearest neighbours whose distances are averaged (k)
    apt_particles: Count = 2048
    """most states of the rollout that each one is compared with (P), drawn for each rollout"""
    apt_features: Count = 64  # width of the representation (F)
    apt_learning_rate: StepSize = 1e-3  # Adam's step size for the representation
    apt_minibatches: Count = 4
    """gradient steps on the representation per update, together one pass over the rollout"""


@struct.dataclass
class APTState:
    """What APT has learned: the inverse model, and the mean distance [] over rollouts [] int32."""

    params: Any
    opt_state: Any
    mean_distance: jax.Array
    rollouts: jax.Array


class Trunk(nn.Module):
    """The representation: one bounded layer on symbols and words, pixels are convolved first."""

    num_features: int

    @nn.compact
    def __call__(self, observation: jax.Array, text: jax.Array) -> jax.Array:
        """Return features [B, F] float32 from -1 to 1."""
        if observation.ndim > 2:
            observation = observation.astype(jnp.float32) / 255.0
            for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
                observation = nn.relu(Convolution(features, size, stride)(observation))
            observation = observation.reshape(observation.shape[0], -1)
        x = jnp.concatenate([observation, text], axis=-1)
        return nn.tanh(nn.LayerNorm()(nn.Dense(self.num_features)(x)))


class InverseModel(nn.Module):
    """The action between two states, told from their representations (Pathak et al., 2017)."""

    num_actions: int
    num_features: int
    hidden_size: int

    def setup(self):
        self.trunk = Trunk(self.num_features)
        self.hidden, self.head = nn.Dense(self.hidden_size), nn.Dense(self.num_actions)

    def represent(self, observation: jax.Array, text: jax.Array) -> jax.Array:
        """Return features [B, F] float32 of states."""
        return self.trunk(observation, text)

    def __call__(
        self, before: tuple[jax.Array, jax.Array], after: tuple[jax.Array, jax.Array]
    ) -> jax.Array:
        """Return logits [B, A] float32 of the action between states: observations and texts."""
        pair = jnp.concatenate([self.represent(*before), self.represent(*after)], axis=-1)
        return self.head(nn.relu(self.hidden(pair)))


@dataclass(frozen=True)
class APT:
    """The bonus of a learner with N envs and rollouts of T steps.

    It keeps of a step the states before and after it, their observations as the policy reads them.
    Raises UserError for arguments that do not fit.
    """

    args: APTArgs
    world: World
    seed: int
    num_envs: int
    num_steps: int
    hidden_size: int

    def __post_init__(self):
        _ = self.minibatch_size, self.num_particles

    @property
    def batch_size(self) -> int:
        """Steps of a rollout."""
        return self.num_envs * self.num_steps

    @property
    def minibatch_size(self) -> int:
        """Steps per gradient step; raises UserError if the batch has no such part."""
        minibatches = self.args.apt_minibatches
        if self.batch_size % minibatches:
            wrong = f"--apt-minibatches {minibatches} does not divide"
            raise UserError(f"{wrong} --num-envs x --num-steps, {self.batch_size}")
        return self.batch_size // minibatches

    @property
    def num_particles(self) -> int:
        """States that each one is compared with, itself among them; raises UserError if too few."""
        particles, k = min(self.args.apt_particles, self.batch_size), self.args.apt_k
        if k >= particles:
            others = f"from 1 to {particles - 1}, the others that a state is compared with"
            raise UserError(f"--apt-k {k} is not {others}")
        return particles

    @property
    def model(self) -> InverseModel:
        """The network that learns the representation."""
        return InverseModel(len(self.world.actions), self.args.apt_features, self.hidden_size)

    def init(self, tables: GoalTables, observation: jax.Array, scenes: jax.Array) -> APTState:
        """Return the first state; scenes [N, W], or [N, 0]: those whose words are read."""
        text = embed_text(self.args, tables, scenes)
        # A key of its own, so that what the plain baseline draws is drawn here too.
        key = jax.random.fold_in(jax.random.key(self.seed), APT_KEY)
        params = self.model.init(key, (observation, text), (observation, text))
        opt_state = optax.adam(self.args.apt_learning_rate).init(params)
        return APTState(params, opt_state, jnp.zeros(()), jnp.zeros((), jnp.int32))

    # COLLECT
    def note(self, observation: jax.Array, scenes: jax.Array, states: Any) -> Moves:
        """Keep of N steps where they begin, and the states that they led to before any is reset."""
        after = jax.vmap(self.world.observe)(states), jax.vmap(self.world.scene)(states)
        return Moves(keep(self.args, observation, scenes), keep(self.args, *after))

    def scenes_reached(self, moves: Moves) -> jax.Array:
        """Return the scenes [T * N, W] that must be known before the rollout is rewarded."""
        return moves.after.scenes.reshape(-1, moves.after.scenes.shape[-1])

    # REWARD
    def reward(
        self,
        tables: GoalTables,
        state: APTState,
        moves: Moves,
        actions: jax.Array,
        key: jax.Array,
    ) -> tuple[jax.Array, APTState, dict[str, jax.Array]]:
        """Let the representation learn from a rollout, then reward its steps with it.

        moves, actions: [T, N, ...]. Returns rewards [T, N] float32, state and metrics.
        """
        chex.assert_shape(actions, (self.num_steps, self.num_envs))
        learn_key, particles_key = jax.random.split(jax.random.fold_in(key, APT_KEY))
        moves = jax.tree.map(lambda x: x.reshape(self.batch_size, *x.shape[2:]), moves)
        state, losses = self.learn_representation(
            tables, state, moves, actions.reshape(-1), learn_key
        )
        features = self.represent(tables, state.params, moves.after)
        rewards, state, distance = self.entropy_rewards(state, features, particles_key)
        metrics = {
            **losses,
            "bonus_mean": rewards.mean(),
            "bonus_std": rewards.std(),
            "knn_distance": distance,
        }
        return rewards.reshape(actions.shape), state, metrics

    def learn_representation(
        self,
        tables: GoalTables,
        state: APTState,
        moves: Moves,
        actions: jax.Array,
        key: jax.Array,
    ) -> tuple[APTState, dict[str, jax.Array]]:
        """Pass once over moves [T * N, ...] and actions [T * N]; return also the mean losses."""
        optimizer = optax.adam(self.args.apt_learning_rate)

        def minibatch(carry, indices):
            params, opt_state = carry
            chosen = jax.tree.map(lambda x: x[indices], moves)
            loss = partial(inverse_loss, self.model)
            before, after = self.read(tables, chosen.before), self.read(tables, chosen.after)
            gradient = jax.grad(loss, has_aux=True)
            gradients, parts = gradient(params, before, after, actions[indices])
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), parts

        indices = jax.random.permutation(key, self.batch_size)
        indices = indices.reshape(self.args.apt_minibatches, self.minibatch_size)
        carry = (state.params, state.opt_state)
        (params, opt_state), parts = jax.lax.scan(minibatch, carry, indices)
        return state.replace(params=params, opt_state=opt_state), jax.tree.map(jnp.mean, parts)

    def represent(self, tables: GoalTables, params: Any, seen: Seen) -> jax.Array:
        """Return the features [T * N, F] of states; nothing is learned through them."""

        def represent(seen):
            return self.model.apply(params, *self.read(tables, seen), method="represent")

        # As many at a time as one gradient step reads, which bounds the memory that pixels take.
        shape = (self.args.apt_minibatches, self.minibatch_size)
        pieces = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), seen)
        features = jax.lax.map(represent, pieces).reshape(self.batch_size, -1)
        return jax.lax.stop_gradient(features)

    def entropy_rewards(
        self, state: APTState, features: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, APTState, jax.Array]:
        """Reward features [T * N, F] for being far from others.

        Returns rewards [T * N], state, and the mean distance in this rollout [].
        """
        particles = jnp.arange(self.batch_size)
        if self.num_particles < self.batch_size:
            particles = jax.random.permutation(key, self.batch_size)[: self.num_particles]
        distances = neighbour_distances(features, particles, self.args.apt_k)
        # All rollouts have one size, so each counts alike in the running mean, this one included.
        rollouts, distance = state.rollouts + 1, distances.mean()
        mean_distance = state.mean_distance + (distance - state.mean_distance) / rollouts
        rewards = jnp.log1p(distances / jnp.maximum(mean_distance, 1e-8))
        return rewards, state.replace(mean_distance=mean_distance, rollouts=rollouts), distance

    def read(self, tables: GoalTables, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """Return what the model reads of B states: observations [B, ...] and text [B, E]."""
        return seen.observation, embed_text(self.args, tables, seen.scenes)


def inverse_loss(
    model: InverseModel,
    params: Any,
    before: tuple[jax.Array, jax.Array],
    after: tuple[jax.Array, jax.Array],
    actions: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the cross-entropy of the actions [B] told from the states, and how many are right."""
    logits = model.apply(params, before, after)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, actions).mean()
    return loss, {"inverse_loss": loss, "inverse_accuracy": (logits.argmax(-1) == actions).mean()}


def neighbour_distances(features: jax.Array, particles: jax.Array, k: int) -> jax.Array:
    """Return the mean distance [B] of each row of features [B, F] to its k nearest others.

    The others are among the rows `particles` [P] int32.
    """
    chosen = features[particles]
    squares = (chosen**2).sum(-1)

    def mean_distance(row_and_index):
        row, index = row_and_index
        # Half the squared distance, negative, but for the row's own square: it moves all alike.
        # Rounding may change who is chosen among almost equally near ones, but the distances
        # themselves are of differences, so that a duplicate's is zero.
        nearness = jnp.dot(chosen, row, precision="highest") - 0.5 * squares
        nearest = jax.lax.top_k(jnp.where(particles == index, -jnp.inf, nearness), k)[1]
        return jnp.sqrt(((chosen[nearest] - row[None]) ** 2).sum(-1)).mean()

    rows = (features, jnp.arange(len(features)))
    return jax.lax.map(mean_distance, rows, batch_size=APT_ROWS)
