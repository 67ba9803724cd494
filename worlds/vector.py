"""N worlds in step: a pool of fresh worlds for resets, episode statistics, staggered first episodes.

Generating a world costs a hundred steps, so resets take ready ones from a pool, which is refilled between
rollouts by as many as were used. Everything is a pure function of arrays: jittable, donatable,
checkpointable, and it may be sharded over the N axis.

Axes: N environments, P worlds in the pool, K achievements.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lab.errors import UserError

RESET_CHUNK = 4  # worlds exchanged in one go; more than this many ends in one step are rare
REFILL_BATCH = 16  # worlds generated in one go


@struct.dataclass
class EpisodeStats:
    """Sums over finished episodes; divide by `episodes` for means."""

    episodes: jax.Array  # int32 []
    episode_return: jax.Array  # float32 [], sum of undiscounted returns
    episode_length: jax.Array  # int32 [], sum of steps
    achievements: jax.Array  # int32 [K], episodes that unlocked each


@struct.dataclass
class VectorState:
    """All there is to N worlds."""

    states: Any  # [N, ...], what the worlds are now
    pool: Any  # [P, ...], fresh worlds
    pool_next: jax.Array  # int32 [], worlds taken from the pool since it was last full; may exceed P
    exhausted: jax.Array  # int32 [], how often a world had to be used a second time, ever
    episode_return: jax.Array  # float32 [N], of the running episode
    episode_length: jax.Array  # int32 [N]
    achievements: jax.Array  # bool [N, K], unlocked in the running episode
    counted: jax.Array  # bool [N], whether the running episode began at its beginning
    finished: EpisodeStats  # since the last `drain`


@dataclass(frozen=True)
class VectorWorld:
    """N copies of a world. Advance them all, look at the states reached, then reset those that are done.

    With `stagger` the first episodes begin at a random step of their time, so that time limits do not fall on
    one step (a world's state must then have a `timestep`). These shortened episodes never enter the
    statistics. Raises UserError if `num_envs` or `pool_size` is not positive.
    """

    world: Any
    num_envs: int
    pool_size: int
    stagger: bool = True

    def __post_init__(self):
        if self.num_envs < 1 or self.pool_size < 1:
            raise UserError("the number of environments and the size of the pool must be at least 1")

    def reset(self, key) -> VectorState:
        """Begin N episodes and fill the pool."""
        states_key, pool_key, stagger_key = jax.random.split(key, 3)
        states = self._generate(jax.random.split(states_key, self.num_envs))
        if self.stagger:
            limit = self.world.max_episode_steps
            offsets = jax.random.randint(stagger_key, (self.num_envs,), 0, limit, states.timestep.dtype)
            states = states.replace(timestep=offsets)
        n, k = self.num_envs, len(self.world.achievements)
        return VectorState(
            states=states,
            pool=self._generate(jax.random.split(pool_key, self.pool_size)),
            pool_next=jnp.int32(0),
            exhausted=jnp.int32(0),
            episode_return=jnp.zeros(n, jnp.float32),
            episode_length=jnp.zeros(n, jnp.int32),
            achievements=jnp.zeros((n, k), bool),
            counted=jnp.full(n, not self.stagger),
            finished=_no_episodes(k),
        )

    def advance(self, key, vs: VectorState, actions):
        """Take one action [N] in each world. Return the state, nothing reset, and the transitions [N]."""
        states, transition = jax.vmap(self.world.step)(jax.random.split(key, self.num_envs), vs.states, actions)
        vs = vs.replace(
            states=states,
            episode_return=vs.episode_return + transition.reward,
            episode_length=vs.episode_length + 1,
            achievements=transition.achievements,
        )
        return vs, transition

    def reset_done(self, vs: VectorState, done) -> VectorState:
        """Give each world that is done, bool [N], a fresh one and count its episode.

        When the pool is exhausted its worlds are used again from the first on, which `exhausted` counts.
        """
        ended = done & vs.counted
        finished = EpisodeStats(
            episodes=vs.finished.episodes + ended.sum(dtype=jnp.int32),
            episode_return=vs.finished.episode_return + jnp.where(ended, vs.episode_return, 0.0).sum(),
            episode_length=vs.finished.episode_length + jnp.where(ended, vs.episode_length, 0).sum(),
            achievements=vs.finished.achievements + (ended[:, None] & vs.achievements).sum(0, dtype=jnp.int32),
        )
        states, taken = self._exchange(vs.states, vs.pool, vs.pool_next, done)
        reused = jnp.maximum(taken - self.pool_size, 0) - jnp.maximum(vs.pool_next - self.pool_size, 0)
        return vs.replace(
            states=states,
            pool_next=taken,
            exhausted=vs.exhausted + reused,
            episode_return=jnp.where(done, 0.0, vs.episode_return),
            episode_length=jnp.where(done, 0, vs.episode_length),
            achievements=vs.achievements & ~done[:, None],
            counted=vs.counted | done,
            finished=finished,
        )

    def refill(self, key, vs: VectorState) -> VectorState:
        """Replace exactly the used worlds of the pool. The cost grows with their number."""
        used = jnp.minimum(vs.pool_next, self.pool_size)

        def replace(carry):
            start, pool = carry
            rows = start + jnp.arange(REFILL_BATCH)
            fresh = jax.vmap(self.world.reset)(jax.vmap(jax.random.fold_in, (None, 0))(key, rows))
            rows = jnp.where(rows < used, rows, self.pool_size)
            pool = jax.tree.map(lambda old, new: old.at[rows].set(new, mode="drop"), pool, fresh)
            return start + REFILL_BATCH, pool

        _, pool = jax.lax.while_loop(lambda carry: carry[0] < used, replace, (jnp.int32(0), vs.pool))
        return vs.replace(pool=pool, pool_next=jnp.int32(0))

    def drain(self, vs: VectorState) -> tuple[VectorState, EpisodeStats]:
        """Hand out the statistics of the episodes finished since the last call, and begin anew."""
        return vs.replace(finished=_no_episodes(len(self.world.achievements))), vs.finished

    def _generate(self, keys):
        """Generate a world for each key; in small batches, which is several times cheaper than in one."""
        return jax.lax.map(self.world.reset, keys, batch_size=REFILL_BATCH)

    def _exchange(self, states, pool, taken, done):
        """Put worlds of the pool where one is done. Return the states and the count of worlds taken.

        A loop over the few that are done: most steps end no episode, and a `where` would copy every world
        each step.
        """

        def exchange(carry):
            states, left, taken = carry
            places = jnp.nonzero(left, size=RESET_CHUNK, fill_value=self.num_envs)[0]
            rows = (taken + jnp.arange(RESET_CHUNK)) % self.pool_size
            states = jax.tree.map(lambda old, new: old.at[places].set(new[rows], mode="drop"), states, pool)
            return states, left.at[places].set(False, mode="drop"), taken + (places < self.num_envs).sum()

        states, _, taken = jax.lax.while_loop(lambda carry: carry[1].any(), exchange, (states, done, taken))
        return states, taken


def _no_episodes(num_achievements):
    zero = jnp.int32(0)
    return EpisodeStats(zero, jnp.float32(0), zero, jnp.zeros(num_achievements, jnp.int32))
