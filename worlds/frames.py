"""The last frames of a world as one observation, as DQN saw Atari and the paper's agents Crafter."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lab.errors import UserError
from worlds.crafter import Transition


@struct.dataclass
class FrameStackState:
    """A world's state and the frames seen last."""

    inner: Any
    frames: jax.Array  # uint8 [H, W, num_frames], oldest first
    timestep: jax.Array  # int32 [], holds; the inner state's is overwritten with it


@dataclass(frozen=True)
class FrameStack:
    """A world whose observation is its last `num_frames` frames, at the beginning of an episode all the first one.

    `world` observes uint8 [H, W] and its state has a `timestep`. Each frame is drawn once, when the state is made. What is
    not named here is the inner world's. Raises UserError if there is not at least one frame.
    """

    world: Any
    num_frames: int = 4

    def __post_init__(self):
        if self.num_frames < 1:
            raise UserError(f"a stack has at least 1 frame, not {self.num_frames}")

    def __getattr__(self, name):
        if name == "world" or name.startswith("__"):  # not there yet while a copy is made
            raise AttributeError(name)
        return getattr(self.world, name)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (*self.world.observation_shape, self.num_frames)

    @property
    def history(self) -> int:
        return self.num_frames

    def reset(self, key) -> FrameStackState:
        """Begin an episode."""
        inner = self.world.reset(key)
        frames = jnp.repeat(self.world.observe(inner)[..., None], self.num_frames, -1)
        return FrameStackState(inner, frames, inner.timestep)

    def step(self, key, state: FrameStackState, action) -> tuple[FrameStackState, Transition]:
        """Take one action. Nothing is reset."""
        inner, transition = self.world.step(key, _inner(state), action)
        frames = jnp.concatenate([state.frames[..., 1:], self.world.observe(inner)[..., None]], -1)
        return FrameStackState(inner, frames, inner.timestep), transition

    def observe(self, state: FrameStackState) -> jax.Array:
        """Return the frames, uint8 [H, W, num_frames], oldest first."""
        return state.frames

    def pack_observation(self, observation) -> jax.Array:
        """Return the newest frame of each stack [..., H, W, num_frames], uint8 [..., H, W]."""
        return observation[..., -1]

    def unpack_observation(self, packed) -> jax.Array:
        """Stack successive frames [..., num_frames, H, W], oldest first, into [..., H, W, num_frames]."""
        return jnp.moveaxis(packed, -3, -1)

    def render(self, state: FrameStackState) -> jax.Array:
        """Return the inner world's picture for films."""
        return self.world.render(_inner(state))

    def scene(self, state: FrameStackState) -> jax.Array:
        """Return the inner world's packed facts, uint32 [W]."""
        return self.world.scene(_inner(state))

    def oracle(self, state: FrameStackState) -> jax.Array:
        """Return which captions make sense now, bool [C]."""
        return self.world.oracle(_inner(state))


def _inner(state):
    return state.inner.replace(timestep=state.timestep)
