"""The last frames of a world as one observation, as DQN saw Atari and ELLM's agents Crafter."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lab.errors import UserError
from worlds.world import Transition
from worlds.wrapper import WorldWrapper


@struct.dataclass
class FrameStackState:
    """A world's state and the frames seen last."""

    inner: Any
    frames: jax.Array  # uint8 [H, W, num_frames], oldest first
    timestep: jax.Array  # int32 [], holds; the inner state's is overwritten with it


@dataclass(frozen=True)
class FrameStack(WorldWrapper):
    """A world whose observation is its last `num_frames` frames, oldest first.

    `world` observes uint8 [H, W]. At the beginning of an episode all frames are the first one.
    Each frame is drawn once, when the state is made. Raises UserError for less than one frame.
    """

    num_frames: int = 4

    def __post_init__(self):
        if self.num_frames < 1:
            raise UserError(f"a stack has at least 1 frame, not {self.num_frames}")

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """[H, W, num_frames]."""
        return (*self.world.observation_shape, self.num_frames)

    @property
    def history(self) -> int:
        """Packed observations, one frame each, that make up one observation."""
        return self.num_frames

    def bare(self, state: FrameStackState) -> Any:
        """Return the state without the frames."""
        return state.inner.replace(timestep=state.timestep)

    def wrap(self, state: Any) -> FrameStackState:
        """Return the first state of an episode: all frames are of this moment."""
        frames = jnp.repeat(self.world.observe(state)[..., None], self.num_frames, -1)
        return FrameStackState(state, frames, state.timestep)

    def step(
        self, key: jax.Array, state: FrameStackState, action: jax.Array
    ) -> tuple[FrameStackState, Transition]:
        """Take one action. Nothing is reset."""
        inner, transition = self.world.step(key, self.bare(state), action)
        newest = self.world.observe(inner)[..., None]
        frames = jnp.concatenate([state.frames[..., 1:], newest], -1)
        return FrameStackState(inner, frames, inner.timestep), transition

    def observe(self, state: FrameStackState) -> jax.Array:
        """Return the frames, uint8 [H, W, num_frames], oldest first."""
        return state.frames

    def pack_observation(self, observation: jax.Array) -> jax.Array:
        """Return the newest frame of each stack [..., H, W, num_frames], uint8 [..., H, W]."""
        return observation[..., -1]

    def unpack_observation(self, packed: jax.Array) -> jax.Array:
        """Stack successive frames [..., num_frames, H, W] into [..., H, W, num_frames]."""
        return jnp.moveaxis(packed, -3, -1)
