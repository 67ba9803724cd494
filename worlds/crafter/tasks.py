"""Crafter's tasks: the paper's seven, and harder ones of our own.

A success is what truly happens, never an attempt. To add one: a line in TASKS.
"""

from typing import Any

import jax
import numpy as np
from craftax.craftax_classic.constants import BlockType

from worlds.crafter.step import find_front
from worlds.tasks import InOrder, Task, Times, is_one_of
from worlds.world import World

AROUND = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)])


def judge_plant_row(
    world: World, memory: jax.Array, effect: jax.Array, before: Any, after: Any
) -> tuple[jax.Array, jax.Array]:
    """Succeed when a plant is placed with another, ripe or not, in the eight cells around it."""
    cells = find_front(before).position[None] + AROUND
    inside = ((cells >= 0) & (cells < before.map.shape[0])).all(-1)
    blocks = before.map.at[cells[:, 0], cells[:, 1]].get(mode="clip")
    is_plant = (blocks == BlockType.PLANT.value) | (blocks == BlockType.RIPE_PLANT.value)
    is_beside = (inside & is_plant).any()
    return memory, is_one_of(world, effect, ("place plant",)) & is_beside


TABLE = ("chop tree", "chop tree", "place crafting table")
PICKAXE = (*TABLE, "chop tree", "make wood pickaxe")
STONE = (*PICKAXE, "mine stone")
GARDEN = ("chop grass", "chop tree", "place plant")
ROW = ("chop grass", "place plant", "chop grass", "place plant")


def _make(sentence: str, subgoals: tuple[str, ...], *more: str) -> Task:
    """Return the task to do the last sub-goal, or what else is said for it, once."""
    return Task(sentence, subgoals, Times((subgoals[-1], *more)))


TASKS = {
    "attack cow": _make("attack a cow", ("attack cow",), "eat cow"),
    "place crafting table": _make("place a crafting table", TABLE, "make crafting table"),
    "make wood sword": _make("make a wood sword", (*TABLE, "chop tree", "make wood sword")),
    "mine stone": _make("mine stone", STONE),
    "deforestation": Task("cut down five trees", ("chop tree",) * 5, Times(("chop tree",), 5)),
    "gardening": Task(
        "chop grass, chop a tree, place a plant", GARDEN, InOrder(GARDEN), in_order=True
    ),
    "plant row": Task("place two plants in a row", ROW, judge_plant_row),
    "make stone pickaxe": _make(
        "make a stone pickaxe", (*STONE, "chop tree", "make stone pickaxe")
    ),
    "mine coal": _make("mine coal", (*PICKAXE, "mine coal")),
    "place furnace": _make("place a furnace", (*STONE, "place furnace")),
    "mine iron": _make("mine iron", (*STONE, "chop tree", "make stone pickaxe", "mine iron")),
}
