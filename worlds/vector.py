"""N worlds in step: a pool of fresh worlds for resets, statistics, staggered first episodes.

Generating a world costs a hundred steps, so resets take ready ones from a pool, which is refilled
between rollouts by as many as were used. Everything is a pure function of arrays: jittable,
donatable, checkpointable, and it may be sharded over the N axis.

Axes: N environments, P worlds in the pool, K achievements.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lab.errors import UserError
from worlds.world import Transition, World

RESET_CHUNK = 4  # worlds exchanged in one go; more than this many ends in one step are rare
REFILL_BATCH = 16  # worlds generated in one go


@struct.dataclass
class EpisodeStats:
    """Sums over finished episodes; divide by `episodes` for means."""

    episodes: jax.Array  # int32 []
    episode_return: jax.Array  # float32 [], sum of undiscounted returns
    episode_length: jax.Array  # int32 [], sum of steps
    score: jax.Array  # float32 [], sum of the scores at their ends
    achievements: jax.Array  # int32 [K], episodes that unlocked each


@struct.dataclass
class VectorState:
    """All there is to N worlds."""

    states: Any  # [N, ...], what the worlds are now
    pool: tuple[Any, jax.Array]  # [P, ...], fresh worlds; bool [P], whether their episodes count
    pool_next: (
        jax.Array
    )  # int32 [], worlds taken from the pool since it was last full; may exceed P
    exhausted: jax.Array  # int32 [], how often a world had to be used a second time, ever
    episode_return: jax.Array  # float32 [N], of the running episode
    episode_length: jax.Array  # int32 [N]
    score: jax.Array  # float32 [N], of the running episode
    achievements: jax.Array  # bool [N, K], unlocked in the running episode
    counted: jax.Array  # bool [N], whether the running episode began as episodes do
    finished: EpisodeStats  # since the last `drain`


@dataclass(frozen=True)
class VectorWorld:
    """N copies of a world. Advance them, look at the states reached, then reset those done.

    With `stagger` the first episodes begin at a random step of their time, so that time limits do
    not fall on one step. A share of the episodes, `exploring_starts` (Sutton and Barto, 2018,
    section 5.3), begins in the midst of things. Neither ever enters the statistics. Raises
    UserError if `num_envs` or `pool_size` is not positive, or the world has no such beginnings.
    """

    world: World
    num_envs: int
    pool_size: int
    stagger: bool = True
    exploring_starts: float = 0.0

    def __post_init__(self):
        if self.exploring_starts and not hasattr(self.world, "reset_anywhere"):
            raise UserError(f"world {self.world.name} has no --exploring-starts: give 0")
        if self.num_envs < 1 or self.pool_size < 1:
            raise UserError(
                "the number of environments and the size of the pool must be at least 1"
            )

    def reset(self, key: jax.Array) -> VectorState:
        """Begin N episodes and fill the pool."""
        states_key, pool_key, stagger_key = jax.random.split(key, 3)
        states, counted = self._generate(jax.random.split(states_key, self.num_envs))
        if self.stagger:
            limit = self.world.max_episode_steps
            offsets = jax.random.randint(
                stagger_key, (self.num_envs,), 0, limit, states.timestep.dtype
            )
            states = states.replace(timestep=offsets)
        n, k = self.num_envs, len(self.world.achievements)
        return VectorState(
            states=states,
            pool=self._generate(jax.random.split(pool_key, self.pool_size)),
            pool_next=jnp.int32(0),
            exhausted=jnp.int32(0),
            episode_return=jnp.zeros(n, jnp.float32),
            episode_length=jnp.zeros(n, jnp.int32),
            score=jnp.zeros(n, jnp.float32),
            achievements=jnp.zeros((n, k), bool),
            counted=counted & (not self.stagger),
            finished=_no_episodes(k),
        )

    def advance(
        self, key: jax.Array, vs: VectorState, actions: jax.Array
    ) -> tuple[VectorState, Transition]:
        """Take one action in each world, [N]; return the state, nothing reset, and transitions."""
        states, transition = jax.vmap(self.world.step)(
            jax.random.split(key, self.num_envs), vs.states, actions
        )
        vs = vs.replace(
            states=states,
            episode_return=vs.episode_return + transition.reward,
            episode_length=vs.episode_length + 1,
            score=transition.score,
            achievements=transition.achievements,
        )
        return vs, transition

    def reset_done(self, vs: VectorState, done: jax.Array) -> VectorState:
        """Give each world that is done, bool [N], a fresh one and count its episode.

        When the pool is exhausted its worlds are used again from the first on; `exhausted` counts.
        """
        ended = done & vs.counted
        unlocked = (ended[:, None] & vs.achievements).sum(0, dtype=jnp.int32)
        before = vs.finished
        finished = EpisodeStats(
            episodes=before.episodes + ended.sum(dtype=jnp.int32),
            episode_return=before.episode_return + jnp.where(ended, vs.episode_return, 0.0).sum(),
            episode_length=before.episode_length + jnp.where(ended, vs.episode_length, 0).sum(),
            score=before.score + jnp.where(ended, vs.score, 0.0).sum(),
            achievements=before.achievements + unlocked,
        )
        ours = vs.states, vs.counted
        (states, counted), taken = self._exchange(ours, vs.pool, vs.pool_next, done)
        reused = jnp.maximum(taken - self.pool_size, 0)
        reused -= jnp.maximum(vs.pool_next - self.pool_size, 0)
        return vs.replace(
            states=states,
            pool_next=taken,
            exhausted=vs.exhausted + reused,
            episode_return=jnp.where(done, 0.0, vs.episode_return),
            episode_length=jnp.where(done, 0, vs.episode_length),
            score=jnp.where(done, 0.0, vs.score),
            achievements=vs.achievements & ~done[:, None],
            counted=counted,
            finished=finished,
        )

    def refill(self, key: jax.Array, vs: VectorState) -> VectorState:
        """Replace exactly the used worlds of the pool. The cost grows with their number."""
        used = jnp.minimum(vs.pool_next, self.pool_size)

        def replace(carry):
            start, pool = carry
            rows = start + jnp.arange(REFILL_BATCH)
            fresh = jax.vmap(self._begin)(jax.vmap(jax.random.fold_in, (None, 0))(key, rows))
            rows = jnp.where(rows < used, rows, self.pool_size)
            pool = jax.tree.map(lambda old, new: old.at[rows].set(new, mode="drop"), pool, fresh)
            return start + REFILL_BATCH, pool

        _, pool = jax.lax.while_loop(
            lambda carry: carry[0] < used, replace, (jnp.int32(0), vs.pool)
        )
        return vs.replace(pool=pool, pool_next=jnp.int32(0))

    def drain(self, vs: VectorState) -> tuple[VectorState, EpisodeStats]:
        """Hand out the statistics of the episodes finished since the last call, and begin anew."""
        return vs.replace(finished=_no_episodes(len(self.world.achievements))), vs.finished

    def _generate(self, keys: jax.Array) -> tuple[Any, jax.Array]:
        """Generate a world for each key; small batches are several times cheaper than one."""
        return jax.lax.map(self._begin, keys, batch_size=REFILL_BATCH)

    def _begin(self, key: jax.Array) -> tuple[Any, jax.Array]:
        """Return a world, and whether its episode counts."""
        if not self.exploring_starts:
            return self.world.reset(key), jnp.ones((), bool)
        chance_key, key = jax.random.split(key)
        anywhere = jax.random.bernoulli(chance_key, self.exploring_starts)
        states = self.world.reset_anywhere(key), self.world.reset(key)
        return jax.tree.map(lambda x, y: jnp.where(anywhere, x, y), *states), ~anywhere

    def _exchange(
        self, states: Any, pool: Any, taken: jax.Array, done: jax.Array
    ) -> tuple[Any, jax.Array]:
        """Put worlds of the pool where one is done. Return the states and how many were taken.

        A loop over the few that are done: most steps end no episode, and a `where` would copy every
        world each step.
        """

        def exchange(carry):
            states, left, taken = carry
            places = jnp.nonzero(left, size=RESET_CHUNK, fill_value=self.num_envs)[0]
            rows = (taken + jnp.arange(RESET_CHUNK)) % self.pool_size
            states = jax.tree.map(
                lambda old, new: old.at[places].set(new[rows], mode="drop"), states, pool
            )
            return (
                states,
                left.at[places].set(False, mode="drop"),
                taken + (places < self.num_envs).sum(),
            )

        states, _, taken = jax.lax.while_loop(
            lambda carry: carry[1].any(), exchange, (states, done, taken)
        )
        return states, taken


def _no_episodes(num_achievements: int) -> EpisodeStats:
    return EpisodeStats(
        episodes=jnp.int32(0),
        episode_return=jnp.float32(0),
        episode_length=jnp.int32(0),
        score=jnp.float32(0),
        achievements=jnp.zeros(num_achievements, jnp.int32),
    )
