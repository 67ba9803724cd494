"""Stacks of frames: on a tiny world whose every frame is known, and on a few steps of Crafter."""

import copy
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from lab.errors import UserError
from tests.toy.world import ToyWorld
from worlds import MEMBERS, make_world
from worlds.crafter.world import Crafter
from worlds.frames import FrameStack
from worlds.vector import VectorWorld
from worlds.world import Transition, WorldArgs

LIMIT = 6
drawn = []  # one entry for each frame drawn, or traced


@struct.dataclass
class Clock:
    serial: jax.Array  # which world this is
    moves: jax.Array
    timestep: jax.Array


@dataclass(frozen=True)
class Clocks(ToyWorld):
    """Shows [3, 5] numbers that name the world, its moves and the place; ends by time only."""

    max_episode_steps: int = LIMIT
    name = "clocks"
    actions = ("wait", "go")
    captions = ("nothing", "went")
    achievements = ("gone",)
    facts = ("late",)
    needable, held, meaningful = (), frozenset(), frozenset({"went"})
    observation_shape = (3, 5)

    def reset(self, key):
        return Clock(jax.random.randint(key, (), 0, 50), jnp.int32(0), jnp.int32(0))

    def step(self, key, state, action):
        after = Clock(state.serial, state.moves + action, state.timestep + 1)
        late = after.timestep >= self.max_episode_steps
        return after, Transition(
            caption=action,
            reward=jnp.float32(1),
            terminated=jnp.zeros((), bool),
            truncated=late,
            score=after.moves.astype(jnp.float32),
            achievements=(after.moves > 0)[None],
        )

    def observe(self, state):
        drawn.append(1)
        place = jnp.arange(15, dtype=jnp.int32).reshape(3, 5)
        return (state.serial + 50 * state.moves + place).astype(jnp.uint8)

    def scene(self, state):
        return (state.timestep >= 3).astype(jnp.uint32)[None]

    def oracle(self, state):
        return jnp.stack([jnp.zeros((), bool), state.timestep >= 3])

    def render(self, state):
        return jnp.full((2, 2, 3), state.timestep, jnp.uint8)

    def describe(self, scene):
        return "late" if int(scene[0]) else "early"

    def grounding_masks(self):
        return np.zeros((2, 1), np.uint32)


def _frames_one_by_one(world, key, actions):
    """Return the frames of an episode played without a stack, uint8 [T + 1, H, W]."""
    state = world.reset(key)
    frames = [world.observe(state)]
    for action in actions:
        state, _ = world.step(key, state, action)
        frames.append(world.observe(state))
    return np.stack(frames)


@pytest.mark.parametrize("num_frames", [1, 3, 4])
def test_a_stack_is_the_last_frames_oldest_first(num_frames):
    key, actions = jax.random.PRNGKey(0), jnp.array([1, 0, 1, 1, 0])
    frames = _frames_one_by_one(Clocks(), key, actions)
    padded = np.concatenate([np.repeat(frames[:1], num_frames - 1, 0), frames])
    stack = FrameStack(Clocks(), num_frames)
    state = stack.reset(key)
    stacks = [stack.observe(state)]
    for action in actions:
        state, _ = jax.jit(stack.step)(key, state, action)
        stacks.append(stack.observe(state))
    assert stacks[0].dtype == jnp.uint8
    assert stacks[0].shape == stack.observation_shape == (3, 5, num_frames)
    for t, observed in enumerate(stacks):
        np.testing.assert_array_equal(observed, np.moveaxis(padded[t : t + num_frames], 0, -1))


def test_each_frame_is_drawn_once():
    stack = FrameStack(Clocks())
    drawn.clear()
    state = stack.reset(jax.random.PRNGKey(0))
    for _ in range(3):
        state, _ = stack.step(jax.random.PRNGKey(1), state, jnp.int32(1))
        stack.observe(state), stack.scene(state)
    assert len(drawn) == 4


def test_the_timestep_of_the_stack_holds():
    stack = FrameStack(Clocks())
    state = stack.reset(jax.random.PRNGKey(0)).replace(timestep=jnp.int32(3))
    assert stack.describe(stack.scene(state)) == "late"
    assert stack.oracle(state).tolist() == [False, True]
    assert (stack.render(state) == 3).all()
    state, transition = stack.step(jax.random.PRNGKey(1), state, jnp.int32(0))
    assert int(state.timestep) == 4 and not transition.truncated
    late = state.replace(timestep=jnp.int32(LIMIT - 1))
    _, transition = stack.step(jax.random.PRNGKey(1), late, jnp.int32(0))
    assert transition.truncated


def test_worlds_in_step_end_at_their_time_and_stacks_begin_anew():
    num_envs, stack = 30, FrameStack(Clocks())
    vector = VectorWorld(stack, num_envs, 60)
    vs = jax.jit(vector.reset)(jax.random.PRNGKey(0))
    left = LIMIT - np.asarray(vs.states.timestep)
    assert left.min() == 1 and left.max() == LIMIT, "staggered"

    def step(vs, key):
        vs, transition = vector.advance(key, vs, jnp.ones(num_envs, jnp.int32))
        return vector.reset_done(vs, transition.truncated), transition.truncated

    step = jax.jit(step, donate_argnums=0)
    for t in range(1, LIMIT + 3):
        vs, ended = step(vs, jax.random.PRNGKey(t))
        np.testing.assert_array_equal(ended, (left == t) | (left + LIMIT == t))
        played = np.where(t < left, t, (t - left) % LIMIT)
        newest, oldest = (np.asarray(vs.states.frames[..., i], np.int32) for i in (-1, 0))
        np.testing.assert_array_equal((newest - oldest)[:, 0, 0] % 256, 50 * np.minimum(played, 3))


def test_a_window_of_packed_frames_is_the_observation():
    stack, num_envs = FrameStack(Clocks(max_episode_steps=100), 3), 2
    states = jax.vmap(stack.reset)(jax.random.split(jax.random.PRNGKey(0), num_envs))

    def step(states, key):
        actions = jax.random.randint(key, (num_envs,), 0, 2)
        states, _ = jax.vmap(stack.step)(jax.random.split(key, num_envs), states, actions)
        return states, jax.vmap(stack.observe)(states)

    observed = jax.lax.scan(step, states, jax.random.split(jax.random.PRNGKey(1), 12))[
        1
    ]  # [T, N, H, W, F]
    packed = jax.jit(stack.pack_observation)(observed)
    assert packed.dtype == jnp.uint8 and packed.shape == (12, num_envs, 3, 5) and stack.history == 3
    window = jnp.stack([packed[i : 10 + i] for i in range(3)], 2)  # [T, N, history, H, W]
    np.testing.assert_array_equal(jax.jit(stack.unpack_observation)(window), observed[2:])


def test_all_else_is_the_inner_world():
    inner = Crafter(observation="frames", action_set="base")
    stack = make_world(WorldArgs(observation="frames", actions="base"))
    assert stack == FrameStack(inner) and hash(stack) == hash(FrameStack(inner))
    assert stack != FrameStack(inner, 2) and copy.deepcopy(stack) == stack
    words = [name for name in MEMBERS if not callable(getattr(inner, name))]
    assert len(words) >= 19
    for name in set(words) - {"observation_shape", "history"}:
        assert getattr(stack, name) == getattr(inner, name), name
    for mask in ("in_view_masks", "grounding_masks"):
        np.testing.assert_array_equal(getattr(stack, mask)(), getattr(inner, mask)())
    for scope in ("full", "compact"):
        np.testing.assert_array_equal(stack.prompt_mask(scope), inner.prompt_mask(scope))
    for caption in inner.captions:
        assert stack.never_needs(caption) == inner.never_needs(caption)
        assert stack.parts(caption) == inner.parts(caption)
    assert not hasattr(stack, "weather")
    with pytest.raises(UserError, match="frame"):
        FrameStack(inner, 0)


def test_make_world_stacks_whatever_shows_single_frames():
    stack = make_world(WorldArgs("tests.test_frames:Clocks"))
    assert stack == FrameStack(Clocks()) and stack.observation_shape == (3, 5, 4)
    assert isinstance(make_world(WorldArgs(observation="pixels")), Crafter)


def test_crafter_shows_where_the_player_goes():
    stack = make_world(WorldArgs(observation="frames"))
    key, step = jax.random.PRNGKey(0), jax.jit(stack.step)
    first = jax.jit(stack.reset)(key)
    sand = first.inner.map.at[32, 33].set(13)  # free to walk on
    first = state = first.replace(inner=first.inner.replace(map=sand))
    for action in ("move right", "do nothing"):
        state, _ = step(key, state, stack.actions.index(action))
    frames = np.asarray(stack.observe(state))
    assert frames.dtype == np.uint8 and frames.shape == stack.observation_shape == (84, 84, 4)
    np.testing.assert_array_equal(frames[..., 0], frames[..., 1])
    np.testing.assert_array_equal(frames[..., 1], stack.observe(first)[..., 0])
    assert (state.inner.player_position - first.inner.player_position).tolist() == [0, 1]
    moved, waited = ((frames[1:64, 1:82, i] != frames[1:64, 1:82, i + 1]).mean() for i in (1, 2))
    assert moved > 0.5, "the view moved by a cell"
    assert waited < moved
