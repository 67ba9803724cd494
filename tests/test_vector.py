"""N worlds in step, on a tiny world whose every number is known."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from lab.errors import UserError
from worlds.crafter.world import Crafter
from worlds.vector import VectorWorld
from worlds.world import Transition


@struct.dataclass
class Count:
    timestep: jax.Array
    serial: jax.Array  # which world this is


@dataclass(frozen=True)
class Counting:
    """Counts to ten; action 1 kills; the reward is the step's number, the score half of it.

    The achievement is to live three steps.
    """

    max_episode_steps: int = 10
    achievements = ("three",)

    def reset(self, key):
        return Count(jnp.int32(0), jax.random.key_data(key)[1] if key.ndim == 0 else key[1])

    def step(self, key, state, action):
        t = state.timestep + 1
        dead = action == 1
        truncated = ~dead & (t >= self.max_episode_steps)
        return state.replace(timestep=t), Transition(
            caption=jnp.int32(0),
            reward=t.astype(jnp.float32),
            terminated=dead,
            truncated=truncated,
            score=t / 2,
            achievements=(t >= 3)[None],
        )


def _ready(n, p, stagger=False):
    vector = VectorWorld(Counting(), n, p, stagger)
    return (
        vector,
        jax.jit(vector.reset)(jax.random.PRNGKey(0)),
        jax.jit(vector.advance),
        jax.jit(vector.reset_done),
    )


def test_ends_are_told_apart_and_nothing_is_lost():
    vector, vs, advance, reset_done = _ready(12, 64)
    pool = np.asarray(vs.pool[0].serial)
    key = jax.random.PRNGKey(1)
    for _ in range(4):
        vs, tr = advance(key, vs, jnp.zeros(12, jnp.int32))
        vs = reset_done(vs, tr.terminated | tr.truncated)
    vs, tr = advance(
        key, vs, (jnp.arange(12) < 9).astype(jnp.int32)
    )  # nine die at once, more than a chunk
    assert int(tr.terminated.sum()) == 9 and not tr.truncated.any()
    assert (vs.states.timestep == 5).all(), "advance resets nothing"
    vs = reset_done(vs, tr.terminated | tr.truncated)
    assert vs.states.timestep.tolist() == [0] * 9 + [5] * 3
    assert np.asarray(vs.states.serial)[:9].tolist() == pool[:9].tolist(), (
        "each gets a world of its own"
    )
    for _ in range(5):
        vs, tr = advance(key, vs, jnp.zeros(12, jnp.int32))
    assert tr.truncated.tolist() == [False] * 9 + [True] * 3 and not tr.terminated.any()
    vs = reset_done(vs, tr.truncated)
    vs, stats = vector.drain(vs)
    assert int(stats.episodes) == 12 and int(stats.episode_length) == 9 * 5 + 3 * 10
    assert float(stats.episode_return) == 9 * 15 + 3 * 55
    assert float(stats.score) == 9 * 2.5 + 3 * 5.0, "the scores at the ends"
    assert stats.achievements.tolist() == [12]
    assert int(vs.pool_next) == 12 and int(vs.exhausted) == 0
    empty = vector.drain(vs)[1]
    assert int(empty.episodes) == 0 and float(empty.score) == 0, "drained once"
    assert vs.score.tolist() == [2.5] * 9 + [0] * 3, "of the running episodes"


def test_achievements_of_short_episodes_do_not_leak():
    vector, vs, advance, reset_done = _ready(2, 8)
    for actions in ([0, 0], [1, 0], [0, 0], [1, 1]):
        vs, tr = advance(jax.random.PRNGKey(0), vs, jnp.array(actions))
        vs = reset_done(vs, tr.terminated)
    _, stats = vector.drain(vs)
    assert int(stats.episodes) == 3 and stats.achievements.tolist() == [1]


def test_an_exhausted_pool_is_counted_and_reused():
    vector, vs, advance, reset_done = _ready(7, 3)
    pool = np.asarray(vs.pool[0].serial)
    vs = reset_done(vs, jnp.ones(7, bool))
    assert np.asarray(vs.states.serial).tolist() == pool[np.arange(7) % 3].tolist()
    assert int(vs.exhausted) == 4
    vs = reset_done(vs, jnp.arange(7) < 2)
    assert int(vs.exhausted) == 6
    vs = jax.jit(vector.refill)(jax.random.PRNGKey(9), vs)
    vs = reset_done(vs, jnp.arange(7) < 3)
    assert int(vs.exhausted) == 6 and int(vs.pool_next) == 3


@pytest.mark.parametrize("used", [0, 1, 5, 16, 17, 40])
def test_refill_replaces_what_was_used_and_only_that(used):
    vector, vs, _, reset_done = _ready(40, 40)
    before = np.asarray(vs.pool[0].serial)
    vs = reset_done(vs, jnp.arange(40) < used)
    vs = jax.jit(vector.refill)(jax.random.PRNGKey(9), vs)
    changed = np.asarray(vs.pool[0].serial) != before
    assert changed.tolist() == [True] * used + [False] * (40 - used)
    assert len(set(np.asarray(vs.pool[0].serial).tolist())) == 40 and int(vs.pool_next) == 0


def test_episodes_that_begin_in_the_midst_of_things_are_not_counted():
    class Anywhere(Counting):
        def reset_anywhere(self, key):
            return self.reset(key).replace(serial=jnp.int32(-1))

    vector = VectorWorld(Anywhere(), 100, 300, stagger=False, exploring_starts=0.3)
    vs, counted = jax.jit(vector.reset)(jax.random.PRNGKey(0)), 0
    for _ in range(3):
        is_explored = np.asarray(vs.states.serial) == -1
        assert 10 < is_explored.sum() < 60
        np.testing.assert_array_equal(vs.counted, ~is_explored)
        counted += 100 - is_explored.sum()
        vs = vector.reset_done(vs, jnp.ones(100, bool))
    assert int(vector.drain(vs)[1].episodes) == counted


def test_staggered_first_episodes_are_spread_and_not_counted():
    vector, vs, advance, reset_done = _ready(200, 400, stagger=True)
    offsets = np.asarray(vs.states.timestep)
    assert offsets.min() == 0 and offsets.max() == 9 and len(set(offsets.tolist())) == 10
    ends = []
    for _ in range(10):
        vs, tr = advance(jax.random.PRNGKey(1), vs, jnp.zeros(200, jnp.int32))
        ends.append(int(tr.truncated.sum()))
        vs = reset_done(vs, tr.truncated)
    assert sum(ends) == 200 and max(ends) < 60
    assert int(vs.finished.episodes) == 0 == float(vs.finished.score) and vs.counted.all()
    for _ in range(10):
        vs, tr = advance(jax.random.PRNGKey(1), vs, jnp.zeros(200, jnp.int32))
        vs = reset_done(vs, tr.truncated)
    _, stats = vector.drain(vs)
    assert int(stats.episodes) == 200 and int(stats.episode_length) == 2000
    assert float(stats.episode_return) == 200 * 55 and float(stats.score) == 200 * 5


def test_crafter_in_a_donated_loop_stays_arrays():
    """The state keeps its structure, dtypes and plain keys, so it can be carried and donated."""
    vector = VectorWorld(Crafter(), 4, 2)
    vs = jax.jit(vector.reset)(jax.random.key(0))

    def step(vs, key):
        vs, tr = vector.advance(key, vs, jnp.zeros(4, jnp.int32))
        return vector.reset_done(vs, tr.terminated | tr.truncated), tr.reward

    kinds = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), vs)
    run = jax.jit(lambda vs, keys: jax.lax.scan(step, vs, keys), donate_argnums=0)
    after, rewards = run(vs, jax.random.split(jax.random.key(1), 3))
    assert rewards.shape == (3, 4)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), after) == kinds
    assert all(not jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(after))


def test_bad_sizes_are_user_errors():
    with pytest.raises(UserError, match="at least 1"):
        VectorWorld(Counting(), 4, 0)
