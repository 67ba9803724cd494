"""A world in terms of another, for subclasses that change some of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from worlds.world import Guide, Transition, World


@dataclass(frozen=True)
class WorldWrapper:
    """The contract of worlds/world.py, member by member `world`'s.

    A subclass with states of its own says by `bare` and `wrap` what they hold.
    """

    world: World

    @property
    def name(self) -> str:
        return self.world.name

    @property
    def packages(self) -> tuple[str, ...]:
        return self.world.packages

    @property
    def actions(self) -> tuple[str, ...]:
        return self.world.actions

    @property
    def captions(self) -> tuple[str, ...]:
        return self.world.captions

    @property
    def facts(self) -> tuple[str, ...]:
        return self.world.facts

    @property
    def num_scene_words(self) -> int:
        return self.world.num_scene_words

    @property
    def achievements(self) -> tuple[str, ...]:
        return self.world.achievements

    @property
    def score_name(self) -> str:
        return self.world.score_name

    @property
    def aliases(self) -> tuple[tuple[str, ...], ...]:
        return self.world.aliases

    @property
    def once(self) -> tuple[tuple[str, ...], ...]:
        return self.world.once

    @property
    def max_return(self) -> float:
        return self.world.max_return

    @property
    def max_episode_steps(self) -> int:
        return self.world.max_episode_steps

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return self.world.observation_shape

    @property
    def history(self) -> int:
        return self.world.history

    @property
    def prompts(self) -> Path:
        return self.world.prompts

    @property
    def recorded(self) -> Path:
        return self.world.recorded

    @property
    def recipes(self) -> Mapping[str, Mapping[str, float]]:
        return self.world.recipes

    @property
    def needable(self) -> tuple[str, ...]:
        return self.world.needable

    @property
    def held(self) -> frozenset[str]:
        return self.world.held

    @property
    def kinds(self) -> tuple[tuple[str, ...], ...]:
        return self.world.kinds

    @property
    def meaningful(self) -> frozenset[str]:
        return self.world.meaningful

    @property
    def things(self) -> tuple[str, ...]:
        return self.world.things

    @property
    def places(self) -> tuple[str, ...]:
        return self.world.places

    @property
    def places_here(self) -> np.ndarray:
        return self.world.places_here

    def rules_of(
        self, wrong: np.ndarray, right: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.world.rules_of(wrong, right)

    @property
    def changing(self) -> tuple[str, ...]:
        return self.world.changing

    @property
    def felt(self) -> tuple[str, ...]:
        return self.world.felt

    @property
    def counts_finds(self) -> bool:
        return self.world.counts_finds

    @property
    def guide(self) -> Callable[[Any, jax.Array], Guide]:
        find = self.world.guide  # raises AttributeError where the world does not guide
        return lambda state, named: find(self.bare(state), named)

    @property
    def reset_anywhere(self) -> Callable[[jax.Array], Any]:
        begin = self.world.reset_anywhere
        return lambda key: self.wrap(begin(key))

    @property
    def task_goals(self) -> Callable[[Any, bool], jax.Array]:
        find = self.world.task_goals
        return lambda state, in_parts: find(self.bare(state), in_parts)

    @property
    def task_sentence(self) -> str:
        return self.world.task_sentence

    @property
    def in_evaluation(self) -> World:
        return replace(self, world=self.world.in_evaluation)

    def bare(self, state: Any) -> Any:
        """Return the wrapped world's state in a state of this one, its `timestep` as here."""
        return state

    def wrap(self, state: Any) -> Any:
        """Return this world's first state for one of the wrapped world's."""
        return state

    def reset(self, key: jax.Array) -> Any:
        return self.wrap(self.world.reset(key))

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Transition]:
        return self.world.step(key, state, action)

    def observe(self, state: Any) -> jax.Array:
        return self.world.observe(self.bare(state))

    def pack_observation(self, observation: jax.Array) -> jax.Array:
        return self.world.pack_observation(observation)

    def unpack_observation(self, packed: jax.Array) -> jax.Array:
        return self.world.unpack_observation(packed)

    def render(self, state: Any) -> jax.Array:
        return self.world.render(self.bare(state))

    def scene(self, state: Any) -> jax.Array:
        return self.world.scene(self.bare(state))

    def describe(self, scene: np.ndarray) -> str:
        return self.world.describe(scene)

    def oracle(self, state: Any) -> jax.Array:
        return self.world.oracle(self.bare(state))

    def effect(self, before: Any, action: jax.Array, after: Any) -> jax.Array:
        return self.world.effect(self.bare(before), action, self.bare(after))

    def prompt_mask(self, scope: str) -> np.ndarray:
        return self.world.prompt_mask(scope)

    def in_view_masks(self) -> np.ndarray:
        return self.world.in_view_masks()

    def grounding_masks(self) -> np.ndarray:
        return self.world.grounding_masks()

    def never_needs(self, caption: str) -> frozenset[str]:
        return self.world.never_needs(caption)

    def parts(self, caption: str) -> tuple[str, str]:
        return self.world.parts(caption)
