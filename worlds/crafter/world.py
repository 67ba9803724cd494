"""Craftax-Classic played as the paper's text Crafter.

The game is craftax's; its words (words.py), a faster step (step.py) and what is seen (view.py)
stand beside this file. Indices: A actions, C captions, K achievements, F facts, W scene words.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from craftax.craftax_classic.constants import Action
from craftax.craftax_classic.envs.craftax_state import EnvParams, EnvState
from craftax.craftax_classic.world_gen import generate_world

from worlds.crafter import words
from worlds.crafter.guide import find_guide
from worlds.crafter.step import (
    STATIC,
    Front,
    advance,
    faced_nouns,
    find_effects,
    find_front,
    held_nouns,
    pack_bits,
    pack_state,
    raw_key,
    strong,
)
from worlds.crafter.tasks import TASKS
from worlds.crafter.view import (
    FRAME_PIXELS,
    NUM_BITS,
    NUM_NUMBERS,
    draw_frame,
    draw_pixels,
    find_seen,
    observe_symbolic,
    pack_symbolic,
    unpack_symbolic,
)
from worlds.world import PROMPTS, RECORDED, Guide, Transition, WorldArgs, choose_options

OBSERVATION_SHAPES = {
    "symbolic": (NUM_BITS + NUM_NUMBERS,),
    "pixels": (63, 63, 3),
    "frames": (FRAME_PIXELS, FRAME_PIXELS),  # which worlds.frames stacks
}
OPTIONS = {  # the first is the default
    "actions": ("pairs", "base"),
    "captions": ("attempt", "effect"),
    "game_rules": ("paper", "craftax"),
    "observation": tuple(OBSERVATION_SHAPES),
    "needs_below": (5, 1, 2, 3, 4, 6, 7, 8, 9),
}
# Chosen for each model on the dev scenes of benchmarks/scenes/; others get Qwen2.5-Coder 1.5B's.
RECIPES = {
    "gemma-3-270m": {
        "sensible_threshold": 1.06,
        "need_threshold": 2.35,
        "closed_threshold": 0.4,
    },
    "": {
        "sensible_threshold": 0.67,
        "need_threshold": 1.38,
        "closed_threshold": 1.2,
    },
}


@dataclass(frozen=True)
class Crafter:
    """Crafter as the paper plays it, on Craftax-Classic.

    Arrows hide nothing; the view does not end at night: the words name what a captioner with all
    the state would. Under the rules `paper` an episode is shorter than a sapling needs to ripen
    (600 steps): nobody eats a plant.
    """

    action_set: str = "pairs"  # "pairs": 139 verb-noun actions; "base": the game's 17
    caption_regime: str = "attempt"  # "attempt": noun faced or held; "effect": it really happened
    game_rules: str = "paper"  # "paper": one-hit mobs, 400 steps; "craftax": its own, 10,000 steps
    observation: str = "symbolic"  # or "pixels", "frames" (one grey frame)
    needs_below: int = 5  # what is felt is told below this value; the paper's captions: 9
    spawn: str = "fast"  # or "craftax": its own spawn, a tenth of the speed

    name: ClassVar = "crafter"
    packages: ClassVar = ("craftax",)
    captions: ClassVar = words.CAPTIONS
    facts: ClassVar = words.FACTS
    num_scene_words: ClassVar = words.NUM_SCENE_WORDS
    achievements: ClassVar = words.ACHIEVEMENTS
    score_name: ClassVar = "achievements"
    aliases: ClassVar = words.ALIASES
    once: ClassVar = ()
    max_return: ClassVar = float(len(words.ACHIEVEMENTS))
    history: ClassVar = 1
    counts_finds: ClassVar = False
    prompts: ClassVar = PROMPTS
    recorded: ClassVar = RECORDED
    recipes: ClassVar = RECIPES
    tasks: ClassVar = TASKS
    needable: ClassVar = words.NEEDABLE
    held: ClassVar = frozenset(words.HELD)
    changing: ClassVar = words.CHANGING
    felt: ClassVar = tuple(words.FELT)
    kinds: ClassVar = tuple(words.KINDS.values())
    meaningful: ClassVar = frozenset(words.EFFECTS)
    describe = staticmethod(words.describe)
    prompt_mask = staticmethod(words.prompt_mask)
    in_view_masks = staticmethod(words.in_view_masks)
    grounding_masks = staticmethod(words.grounding_masks)
    never_needs = staticmethod(words.never_needs)
    parts = staticmethod(words.parts)

    @classmethod
    def from_args(cls, args: WorldArgs) -> "Crafter":
        """Make the world that the arguments ask for; raises UserError for what it does not have."""
        options = choose_options(cls.name, args, OPTIONS)
        return cls(*(options[name] for name in OPTIONS))

    @cached_property
    def params(self) -> EnvParams:
        """The game's parameters."""
        if self.game_rules == "craftax":
            return EnvParams()
        return EnvParams(max_timesteps=400, cow_health=1, zombie_health=1, skeleton_health=1)

    @property
    def max_episode_steps(self) -> int:
        """Steps after which an episode is truncated."""
        return self.params.max_timesteps

    @property
    def actions(self) -> tuple[str, ...]:
        """Name of each action, [A]."""
        return words.make_action_tables(self.action_set).names

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation."""
        return OBSERVATION_SHAPES[self.observation]

    def reset(self, key: jax.Array) -> EnvState:
        """Generate a new world."""
        return strong(pack_state(generate_world(raw_key(key), self.params, STATIC)))

    def step(
        self, key: jax.Array, state: EnvState, action: jax.Array
    ) -> tuple[EnvState, Transition]:
        """Take one action, int [] below A. Nothing is reset."""
        tables = words.make_action_tables(self.action_set)
        front = find_front(state)
        faced = faced_nouns(front)
        target = jnp.asarray(tables.target)[action]
        named = ((faced | np.uint32(1 << words.EVER)) >> target) & 1
        played = jnp.where(named == 1, jnp.asarray(tables.played)[action], 0)
        after, reward = advance(raw_key(key), state, played, front, self.params, self.spawn)

        is_attempt = self.caption_regime == "attempt"
        caption = self._call(state, action, after, front, is_attempt)

        terminated = after.player_health <= 0
        transition = Transition(
            caption=caption,
            reward=reward,
            terminated=terminated,
            truncated=~terminated & (after.timestep >= self.max_episode_steps),
            score=after.achievements.sum(dtype=jnp.float32),
            achievements=after.achievements,
        )
        return after, transition

    def effect(self, before: EnvState, action: jax.Array, after: EnvState) -> jax.Array:
        """Return what an action really did, whatever the caption says: int32 [], a caption."""
        return self._call(before, action, after, find_front(before), is_attempt=False)

    def _call(
        self,
        before: EnvState,
        action: jax.Array,
        after: EnvState,
        front: Front,
        is_attempt: bool,
    ) -> jax.Array:
        """Return the caption of a step, int32 []: of what really happened, or was only tried."""
        faced = faced_nouns(front)
        caption = jnp.asarray(words.make_action_tables(self.action_set).claimed)[action]
        if self.action_set == "base":
            first = jax.lax.population_count((faced & (~faced + 1)) - 1)
            of_do = jnp.asarray(words.DO_CAPTION)[first]
            caption = jnp.where(action == Action.DO.value, of_do, caption)
        gained = after.inventory.sapling > before.inventory.sapling
        effects = find_effects(before, front, gained)
        counts = (effects >> jnp.asarray(words.CAPTION_EFFECT)[caption]) & 1
        if is_attempt:
            present = faced | held_nouns(before.inventory) | np.uint32(1 << words.EVER)
            counts |= (present >> jnp.asarray(words.CAPTION_NOUN)[caption]) & 1
        return jnp.where(before.is_sleeping, 0, caption * counts.astype(jnp.int32))

    def observe(self, state: EnvState) -> jax.Array:
        """Return float32 [1345] (symbolic) or uint8 [63, 63, 3] (pixels), [84, 84] (frames)."""
        if self.observation == "pixels":
            return draw_pixels(state, 7)
        return draw_frame(state) if self.observation == "frames" else observe_symbolic(state)

    def pack_observation(self, observation: jax.Array) -> jax.Array:
        """Pack symbols [..., 1345] into uint32 [..., 64]; pictures stay as they are."""
        return pack_symbolic(observation) if self.observation == "symbolic" else observation

    def unpack_observation(self, packed: jax.Array) -> jax.Array:
        """Undo `pack_observation`: [..., 1, *P] becomes [..., *observation_shape]."""
        if self.observation == "symbolic":
            return unpack_symbolic(packed[..., 0, :])
        return packed.squeeze(-1 - len(self.observation_shape))

    def render(self, state: EnvState) -> jax.Array:
        """Return a picture for films, uint8 [144, 144, 3]."""
        return draw_pixels(state, 16)

    def scene(self, state: EnvState) -> jax.Array:
        """Return the facts that hold, packed, uint32 [W]."""
        seen, facing = find_seen(state), find_front(state).named
        items = [getattr(state.inventory, item.replace(" ", "_")) for item in words.ITEMS]
        have = pack_bits([number > 0 for number in items])
        felt = [getattr(state, field) < self.needs_below for field in words.FELT.values()]
        low = pack_bits(felt)
        return jnp.stack([seen | (facing << len(words.VISIBLE)), have | (low << len(words.ITEMS))])

    def guide(self, state: EnvState, named: jax.Array) -> Guide:
        """Return where is what the captions `named`, bool [C], name: see `guide.find_guide`."""
        return find_guide(state, named, self.action_set, self.caption_regime)

    def oracle(self, state: EnvState) -> jax.Array:
        """Return which captions make sense now by the game's true prerequisites, bool [C]."""
        seen, inventory = find_seen(state), state.inventory

        def see(name: str) -> jax.Array:
            return ((seen >> words.VISIBLE.index(name)) & 1) == 1

        wood, stone = inventory.wood >= 1, inventory.stone >= 1
        table = see("crafting table")
        iron = table & see("furnace") & wood & stone & (inventory.coal >= 1) & (inventory.iron >= 1)
        sensible = {
            "eat plant": see("ripe plant"),
            "eat cow": see("cow"),
            "attack zombie": see("zombie"),
            "attack skeleton": see("skeleton"),
            "attack cow": see("cow"),
            "chop tree": see("tree"),
            "chop grass": see("grass"),
            "mine stone": see("stone") & (inventory.wood_pickaxe > 0),
            "mine coal": see("coal") & (inventory.wood_pickaxe > 0),
            "mine iron": see("iron") & (inventory.stone_pickaxe > 0),
            "mine diamond": see("diamond") & (inventory.iron_pickaxe > 0),
            "drink water": see("water"),
            "place stone": stone,
            "place crafting table": inventory.wood >= 2,
            "place furnace": stone,
            "place plant": see("grass") & (inventory.sapling > 0),
            "make crafting table": inventory.wood >= 2,
            "make wood pickaxe": table & wood,
            "make stone pickaxe": table & wood & stone,
            "make iron pickaxe": iron,
            "make wood sword": table & wood,
            "make stone sword": table & wood & stone,
            "make iron sword": iron,
            "sleep": (state.player_energy < 9) & ~state.is_sleeping,
        }
        bits = pack_bits([sensible[name] for name in words.EFFECTS])
        return ((bits >> words.CAPTION_EFFECT.astype(np.uint32)) & 1) == 1
