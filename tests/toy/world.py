"""Worlds small enough to compile in a second: a corridor with a key and a door, and probes.

`--env tests.toy.world:ToyWorld` names the corridor, as any world of one's own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lab.errors import UserError
from worlds.tasks import Task, Times
from worlds.world import Transition, WorldArgs, choose_options, mask_of

HERE = Path(__file__).resolve().parent
LENGTH = 4
FACTS = ("see key", "have key", "see door", *(f"stand at {i}" for i in range(LENGTH)))
RECIPE = {"sensible_threshold": 0.67, "need_threshold": 1.38, "closed_threshold": 1.2}


@struct.dataclass
class ToyState:
    """Where the player stands, and what has happened."""

    position: jax.Array
    has_key: jax.Array
    open: jax.Array
    timestep: jax.Array


@dataclass(frozen=True)
class ToyWorld:
    """A corridor: the key lies at its left end, the door is at its right end.

    The episode ends when the door opens.
    """

    max_episode_steps: int = 12

    name: ClassVar[str] = "toy"
    packages: ClassVar[tuple[str, ...]] = ()
    actions: ClassVar[tuple[str, ...]] = ("left", "right", "take", "open")
    captions: ClassVar[tuple[str, ...]] = ("nothing", "take key", "open door", "kick wall")
    facts: ClassVar[tuple[str, ...]] = FACTS
    num_scene_words: ClassVar[int] = 1
    achievements: ClassVar[tuple[str, ...]] = ("take key", "open door")
    score_name: ClassVar[str] = "doors_opened"
    aliases: ClassVar[tuple[tuple[str, ...], ...]] = ()
    once: ClassVar[tuple[tuple[str, ...], ...]] = ()
    max_return: ClassVar[float] = 1.0
    observation_shape: ClassVar[tuple[int, ...]] = (LENGTH + 1,)
    history: ClassVar[int] = 1
    prompts: ClassVar[Path] = HERE / "prompts"
    recorded: ClassVar[Path] = HERE / "recorded"
    recipes: ClassVar[dict[str, dict[str, float]]] = {"": RECIPE}
    needable: ClassVar[tuple[str, ...]] = ("see key", "have key", "see door")
    changing: ClassVar[tuple[str, ...]] = ("have key",)
    felt: ClassVar[tuple[str, ...]] = ()
    held: ClassVar[frozenset[str]] = frozenset({"have key"})
    kinds: ClassVar[tuple[tuple[str, ...], ...]] = ()
    meaningful: ClassVar[frozenset[str]] = frozenset({"take key", "open door"})
    tasks: ClassVar[dict[str, Task]] = {
        "kick": Task("kick the wall", ("take key", "kick wall"), Times(("kick wall",))),
        "leave": Task("open the door", ("take key", "open door"), Times(("open door",))),
    }

    @classmethod
    def from_args(cls, args: WorldArgs) -> "ToyWorld":
        choose_options(cls.name, args, {})
        return cls()

    def reset(self, key: jax.Array) -> Any:
        position = jax.random.randint(key, (), 0, LENGTH)
        never = jnp.zeros((), bool)
        return ToyState(position, never, never, jnp.zeros((), jnp.int32))

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Transition]:
        target = state.position + jnp.where(action == 0, -1, jnp.where(action == 1, 1, 0))
        position = jnp.clip(target, 0, LENGTH - 1)
        takes = (action == 2) & (state.position == 0) & ~state.has_key
        opens = (action == 3) & (state.position == LENGTH - 1) & state.has_key
        after = ToyState(position, state.has_key | takes, state.open | opens, state.timestep + 1)
        transition = Transition(
            caption=self.effect(state, action, after),
            reward=opens.astype(jnp.float32),
            terminated=opens,
            truncated=(after.timestep >= self.max_episode_steps) & ~opens,
            score=after.open.astype(jnp.float32),
            achievements=jnp.stack([after.has_key, after.open]),
        )
        return after, transition

    def effect(self, before: Any, action: jax.Array, after: Any) -> jax.Array:
        kicks = (action < 2) & (before.position == after.position)
        takes, opens = (after.has_key & ~before.has_key), (after.open & ~before.open)
        return jnp.where(takes, 1, jnp.where(opens, 2, jnp.where(kicks, 3, 0))).astype(jnp.int32)

    def observe(self, state: Any) -> jax.Array:
        here = jax.nn.one_hot(state.position, LENGTH)
        return jnp.concatenate([here, state.has_key[None].astype(jnp.float32)])

    def pack_observation(self, observation: jax.Array) -> jax.Array:
        return observation

    def unpack_observation(self, packed: jax.Array) -> jax.Array:
        return packed.squeeze(-1 - len(self.observation_shape))

    def render(self, state: Any) -> jax.Array:
        return jnp.zeros((16, 16, 3), jnp.uint8).at[:, state.position * 4].set(255)

    def scene(self, state: Any) -> jax.Array:
        here = jax.nn.one_hot(state.position, LENGTH, dtype=bool)
        seen = jnp.stack([~state.has_key, state.has_key, state.position == LENGTH - 1])
        bits = jnp.concatenate([seen, here]).astype(jnp.uint32)
        places = jnp.arange(len(FACTS), dtype=jnp.uint32)
        return (bits << places).sum(keepdims=True, dtype=jnp.uint32)

    def describe(self, scene: np.ndarray) -> str:
        return ", ".join(fact for i, fact in enumerate(FACTS) if int(scene[0]) >> i & 1)

    def oracle(self, state: Any) -> jax.Array:
        at_door = state.position == LENGTH - 1
        never = jnp.zeros((), bool)
        takes = ~state.has_key & (state.position == 0)
        return jnp.stack([never, takes, state.has_key & at_door, never])

    def prompt_mask(self, scope: str) -> np.ndarray:
        if scope not in ("full", "compact"):
            raise UserError(f"toy has no --prompt-scope {scope!r}; known: full, compact")
        told = [x for x in self.facts if scope == "full" or not x.startswith("stand ")]
        return mask_of(self.facts, told)

    def in_view_masks(self) -> np.ndarray:
        seen = {"take key": ["see key"], "open door": ["see door"]}
        return np.stack([mask_of(FACTS, seen.get(caption, [])) for caption in self.captions])

    def grounding_masks(self) -> np.ndarray:
        there = ([], ["see key", "have key"], ["see door"], ["see door"])
        return np.stack([mask_of(FACTS, facts) for facts in there])

    def never_needs(self, caption: str) -> frozenset[str]:
        return frozenset({f"see {self.parts(caption)[1]}"} & set(self.needable))

    def parts(self, caption: str) -> tuple[str, str]:
        verb, _, noun = caption.partition(" ")
        return verb, noun


@dataclass(frozen=True)
class PictureWorld(ToyWorld):
    """Pixels to see, just wide enough for the convolutions."""

    observation_shape: ClassVar[tuple[int, ...]] = (36, 36, 3)

    def observe(self, state: Any) -> jax.Array:
        return jnp.zeros((36, 36, 3), jnp.uint8).at[:, state.position * 9].set(255)


@struct.dataclass
class ProbeState:
    """What is observed, and when."""

    observed: jax.Array
    timestep: jax.Array


@dataclass(frozen=True)
class ProbeWorld(ToyWorld):
    """One question to a learner, by where its reward comes from.

    "constant"; the "observation"; a step earlier, "delayed"; the "action".
    """

    kind: str = "constant"
    max_episode_steps: int = 100

    name: ClassVar[str] = "probe"
    actions: ClassVar[tuple[str, ...]] = ("left", "right")
    captions: ClassVar[tuple[str, ...]] = ("nothing", "left", "right")
    observation_shape: ClassVar[tuple[int, ...]] = (2,)
    meaningful: ClassVar[frozenset[str]] = frozenset()

    @property
    def episode_length(self) -> int:
        return 2 if self.kind == "delayed" else 1

    def reset(self, key: jax.Array) -> Any:
        return ProbeState(jax.random.bernoulli(key).astype(jnp.int32), jnp.zeros((), jnp.int32))

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Transition]:
        reward = {
            "constant": jnp.ones(()),
            "observation": jnp.where(state.observed == 1, 1.0, -1.0),
            "delayed": (state.timestep == 1).astype(jnp.float32),
            "action": jnp.where(action == state.observed, 1.0, -1.0),
        }[self.kind]
        after = ProbeState(state.observed, state.timestep + 1)
        return after, Transition(
            caption=action.astype(jnp.int32) + 1,
            reward=reward,
            terminated=after.timestep >= self.episode_length,
            truncated=jnp.zeros((), bool),
            score=jnp.zeros(()),
            achievements=jnp.zeros(2, bool),
        )

    def observe(self, state: Any) -> jax.Array:
        return jnp.stack([state.observed == 1, state.timestep == 1]).astype(jnp.float32)

    def render(self, state: Any) -> jax.Array:
        return jnp.zeros((16, 16, 3), jnp.uint8).at[:, state.observed * 8].set(255)

    def scene(self, state: Any) -> jax.Array:
        return jnp.zeros(1, jnp.uint32)

    def oracle(self, state: Any) -> jax.Array:
        return jnp.zeros(3, bool)

    def grounding_masks(self) -> np.ndarray:
        return np.zeros((3, 1), np.uint32)
