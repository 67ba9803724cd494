"""Worlds small enough to compile in a second: a corridor with a key and a door, and probes that tell what a learner gets wrong."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from worlds.crafter import Transition

LENGTH = 4
FACTS = ("see key", "have key", "see door", *(f"stand at {i}" for i in range(LENGTH)))


@struct.dataclass
class ToyState:
    position: jax.Array
    has_key: jax.Array
    open: jax.Array
    timestep: jax.Array


@dataclass(frozen=True)
class ToyWorld:
    """A corridor: the key lies at its left end, the door is at its right end; the episode ends when the door opens."""

    max_episode_steps: int = 12
    name = "toy"
    actions = ("left", "right", "take", "open")
    captions = ("nothing", "take key", "open door", "kick wall")
    achievements = ("take key", "open door")
    facts = FACTS
    num_scene_words = 1
    history = 1

    def reset(self, key):
        position = jax.random.randint(key, (), 0, LENGTH)
        return ToyState(position, jnp.zeros((), bool), jnp.zeros((), bool), jnp.zeros((), jnp.int32))

    def step(self, key, state, action):
        target = state.position + jnp.where(action == 0, -1, jnp.where(action == 1, 1, 0))
        position = jnp.clip(target, 0, LENGTH - 1)
        takes = (action == 2) & (state.position == 0) & ~state.has_key
        opens = (action == 3) & (state.position == LENGTH - 1) & state.has_key
        after = ToyState(position, state.has_key | takes, state.open | opens, state.timestep + 1)
        transition = Transition(
            caption=jnp.where(takes, 1, jnp.where(opens, 2, jnp.where(target != position, 3, 0))).astype(jnp.int32),
            reward=opens.astype(jnp.float32),
            terminated=opens,
            truncated=(after.timestep >= self.max_episode_steps) & ~opens,
            achievements=jnp.stack([after.has_key, after.open]),
        )
        return after, transition

    def observe(self, state):
        return jnp.concatenate([jax.nn.one_hot(state.position, LENGTH), state.has_key[None].astype(jnp.float32)])

    def pack_observation(self, observation):
        return observation

    def unpack_observation(self, packed):
        return packed[..., 0, :]

    def scene(self, state):
        here = jax.nn.one_hot(state.position, LENGTH, dtype=bool)
        bits = jnp.concatenate([jnp.stack([~state.has_key, state.has_key, state.position == LENGTH - 1]), here])
        return (bits.astype(jnp.uint32) << jnp.arange(len(FACTS), dtype=jnp.uint32)).sum(keepdims=True, dtype=jnp.uint32)

    def describe(self, scene):
        return ", ".join(fact for i, fact in enumerate(FACTS) if int(scene[0]) >> i & 1)

    def oracle(self, state):
        at_door = state.position == LENGTH - 1
        never = jnp.zeros((), bool)
        return jnp.stack([never, ~state.has_key & (state.position == 0), state.has_key & at_door, never])

    def render(self, state):
        return jnp.zeros((16, 16, 3), jnp.uint8).at[:, state.position * 4].set(255)

    def prompt_mask(self, scope):
        return np.asarray([(1 << len(FACTS)) - 1 if scope == "full" else 0b111], np.uint32)

    def in_view_masks(self):
        return np.zeros((len(self.captions), 1), np.uint32)

    def grounding_masks(self):
        return np.asarray([[0], [0b011], [0b100], [0b100]], np.uint32)


@dataclass(frozen=True)
class PictureWorld(ToyWorld):
    """Pixels to see, just wide enough for the convolutions."""

    def observe(self, state):
        return jnp.zeros((36, 36, 3), jnp.uint8).at[:, state.position * 9].set(255)

    def unpack_observation(self, packed):
        return packed[..., 0, :, :, :]


@struct.dataclass
class ProbeState:
    observed: jax.Array
    timestep: jax.Array


@dataclass(frozen=True)
class ProbeWorld(ToyWorld):
    """One question to a learner: "constant" reward, one that depends on the "observation", a "delayed" one, one by "action"."""

    kind: str = "constant"
    max_episode_steps: int = 100
    name = "probe"
    actions = ("left", "right")
    captions = ("nothing", "left", "right")

    @property
    def episode_length(self):
        return 2 if self.kind == "delayed" else 1

    def reset(self, key):
        return ProbeState(jax.random.bernoulli(key).astype(jnp.int32), jnp.zeros((), jnp.int32))

    def step(self, key, state, action):
        reward = {
            "constant": jnp.ones(()),
            "observation": jnp.where(state.observed == 1, 1.0, -1.0),
            "delayed": (state.timestep == 1).astype(jnp.float32),
            "action": jnp.where(action == state.observed, 1.0, -1.0),
        }[self.kind]
        after = ProbeState(state.observed, state.timestep + 1)
        over = after.timestep >= self.episode_length
        return after, Transition(
            caption=action.astype(jnp.int32) + 1,
            reward=reward,
            terminated=over,
            truncated=jnp.zeros((), bool),
            achievements=jnp.zeros(2, bool),
        )

    def observe(self, state):
        return jnp.stack([state.observed == 1, state.timestep == 1]).astype(jnp.float32)

    def scene(self, state):
        return jnp.zeros(1, jnp.uint32)

    def oracle(self, state):
        return jnp.zeros(3, bool)

    def grounding_masks(self):
        return np.zeros((3, 1), np.uint32)
