"""Where the things of goals are in Crafter: cells of the view, and actions that name them.

A actions, C captions.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from craftax.craftax_classic.constants import OBS_DIM, Action
from craftax.craftax_classic.envs.craftax_state import EnvState

from worlds.crafter import words
from worlds.crafter.step import faced_nouns, find_front, held_nouns
from worlds.crafter.view import find_cells
from worlds.world import Guide

FAR = sum(OBS_DIM)  # steps; more than to any cell of the view
ROWS, COLUMNS = np.divmod(np.arange(OBS_DIM[0] * OBS_DIM[1]), OBS_DIM[1])
DISTANCE = abs(ROWS - OBS_DIM[0] // 2) + abs(COLUMNS - OBS_DIM[1] // 2)


@lru_cache
def _at_hand(action_set: str, caption_regime: str) -> np.ndarray:
    """Return the bit of the noun that must be at hand for each action, int32 [A]."""
    tables = words.make_action_tables(action_set)
    has_effect = words.CAPTION_EFFECT[tables.claimed] < len(words.EFFECTS)
    if caption_regime == "effect":
        return np.where(has_effect, tables.target, words.NO_NOUN)
    is_anywhere = has_effect & (tables.target == words.EVER)
    return np.where(is_anywhere, words.EVER, words.CAPTION_NOUN[tables.claimed])


def find_guide(state: EnvState, named: jax.Array, action_set: str, caption_regime: str) -> Guide:
    """Return where is what the captions `named`, bool [C], name.

    The view: in which of the 7 x 9 cells a thing stands that must be mined, eaten, attacked,
    chopped or drunk for one of them. What is placed or made is at hand wherever one stands.
    """
    tables, faced = words.make_action_tables(action_set), faced_nouns(find_front(state))
    is_named = named[tables.claimed]
    present = faced | np.uint32(1 << words.EVER)
    if caption_regime == "attempt":
        present |= held_nouns(state.inventory)
    bits = jnp.asarray(_at_hand(action_set, caption_regime))
    is_at_hand = is_named & (((present >> bits) & 1) == 1)
    if action_set == "base":
        is_do = np.arange(len(tables.names)) == Action.DO.value
        first = jax.lax.population_count((faced & (~faced + 1)) - 1)
        now = named[jnp.asarray(words.DO_CAPTION)[first]]
        is_named |= is_do & named[words.DO_CAPTION].any()
        is_at_hand |= is_do & now

    sought = jnp.where(named, words.CAPTION_SOUGHT, jnp.uint32(0))
    sought = jax.lax.reduce(sought, jnp.uint32(0), jax.lax.bitwise_or, (0,))
    cells = find_cells(state, sought)
    steps = jnp.where(cells, jnp.maximum(DISTANCE - 1, 1), FAR).min()
    steps = jnp.where(is_at_hand.any(), 0, steps)
    return Guide(
        view=cells.astype(jnp.float32),
        acts=jnp.stack([is_named, is_at_hand], -1),
        nearness=1.0 - steps.astype(jnp.float32) / FAR,
        found=jnp.float32(0),
    )
