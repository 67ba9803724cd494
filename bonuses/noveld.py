"""NovelD (Zhang et al., 2021): an agent is paid for going from what it knows to what is novel.

The first visit of an episode to what is more novel than the state before it earns the difference,
novelty being the error of RND's predictor. Where an observation tells the time, if only by the
light of the day, nearly every visit is a first one: see first_visits in the metrics.

Deviations from the paper: those of RND in rnd.py, and the reward is divided as RND's is. NovelD's
own errors are of the policy's features, and its reward is undivided.

Axes: T steps, N envs, F features, P what an observation is packed into, L states of an episode.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from bonuses.bonus import Moves
from bonuses.rnd import RND, RNDArgs, RNDState
from goals.tables import GoalTables, hash_scenes
from lab.ranges import Weight
from worlds.world import World


@dataclass(frozen=True)
class NovelDArgs(RNDArgs):
    """RND, or NovelD upon it."""

    noveld: bool = False
    """reward only what is more novel than the state before, at its first visit in the episode"""
    noveld_alpha: Weight = 0.5
    """how much more: this times the novelty of the state before is taken away"""


@struct.dataclass
class NovelDState:
    """What RND knows, and hashes of the states of the running episode of each env.

    visited: [N, L] uint32, of which num_visited [N] int32 are filled.
    """

    rnd: RNDState
    visited: jax.Array
    num_visited: jax.Array


@dataclass(frozen=True)
class NovelD:
    """NovelD over the errors of an RND; keeps also the states in which steps begin."""

    rnd: RND

    def init(self, tables: GoalTables, observation: jax.Array, scenes: jax.Array) -> NovelDState:
        """Return the first state; scenes [N, W], or [N, 0]: those whose words are read."""
        num_envs = self.rnd.num_envs
        num_states = self.rnd.world.max_episode_steps + 1  # of an episode, one more than steps
        return NovelDState(
            rnd=self.rnd.init(tables, observation, scenes),
            visited=jnp.zeros((num_envs, num_states), jnp.uint32),
            num_visited=jnp.zeros(num_envs, jnp.int32),
        )

    def note(self, observation: jax.Array, scenes: jax.Array, states: Any) -> Moves:
        """Keep of N steps where they begin, and the states that they led to before any is reset."""
        return Moves(
            before=self.rnd.pack(observation, scenes),
            after=self.rnd.note(observation, scenes, states),
        )

    def scenes_reached(self, moves: Moves) -> jax.Array:
        """Return the scenes [T * N, W] that must be known before the rollout is rewarded."""
        return self.rnd.scenes_reached(moves.after)

    def reward(
        self, tables: GoalTables, state: NovelDState, moves: Moves, done: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, NovelDState, dict[str, jax.Array]]:
        """Reward the steps of a rollout, then let RND's predictor learn from it.

        r = max(novelty(after) - alpha novelty(before), 0) at a first visit, else 0.
        Returns rewards [T, N] float32, state and metrics. done: [T, N] bool.
        """
        rnd, args = self.rnd, self.rnd.args
        known = rnd.count_observations(state.rnd, moves.after)
        errors, features = rnd.prediction_errors(tables, known, moves.after)
        errors_before, _ = rnd.prediction_errors(tables, known, moves.before)
        is_first, state = find_first_visits(state, moves, done)
        # Novelty is the Euclidean norm of the error.
        novelty, before = (jnp.sqrt(args.rnd_features * x) for x in (errors, errors_before))
        gains = jnp.maximum(novelty - args.noveld_alpha * before, 0.0) * is_first
        rewards, known, metrics = rnd.pay(tables, known, moves.after, features, gains, key)
        metrics["first_visits"] = is_first.mean()
        return rewards, state.replace(rnd=known), metrics


def make_bonus(args: Any, world: World) -> RND | NovelD:
    """Return the bonus that a script's arguments ask for; raises UserError if they do not fit."""
    sizes = (args.num_envs, args.num_steps, args.hidden_size)
    rnd = RND(args, world, args.seed, *sizes, args.gamma)
    return NovelD(rnd) if args.noveld else rnd


def find_first_visits(
    state: NovelDState, moves: Moves, done: jax.Array
) -> tuple[jax.Array, NovelDState]:
    """Return which steps led to a state new to the episode, [T, N] bool.

    The state in which an episode began is not new.
    """
    envs, places = np.arange(done.shape[1]), np.arange(state.visited.shape[1])[None]

    def visit(carry, step):
        visited, count = carry
        before, after, done = step
        visited = visited.at[:, 0].set(jnp.where(count == 0, before, visited[:, 0]))
        count = jnp.maximum(count, 1)
        seen = ((visited == after[:, None]) & (places < count[:, None])).any(-1)
        visited = visited.at[envs, count].set(after)
        return (visited, jnp.where(done, 0, count + 1)), ~seen

    before, after = (
        jax.vmap(hash_observations)(x.observation) for x in (moves.before, moves.after)
    )
    carry = (state.visited, state.num_visited)
    (visited, count), is_first = jax.lax.scan(visit, carry, (before, after, done))
    return is_first, state.replace(visited=visited, num_visited=count)


def hash_observations(packed: jax.Array) -> jax.Array:
    """Hash packed observations [N, *P] to [N] uint32: a sum of numbers mixed with their places."""
    numbers = packed.reshape(packed.shape[0], -1)
    if jnp.issubdtype(numbers.dtype, jnp.floating):
        numbers = jax.lax.bitcast_convert_type(numbers, jnp.uint32)
    places = jnp.arange(numbers.shape[1], dtype=jnp.uint32)
    places = jnp.broadcast_to(places[None], numbers.shape)
    mixed = hash_scenes(jnp.stack([numbers.astype(jnp.uint32), places], axis=-1))
    return mixed.sum(-1, dtype=jnp.uint32)
