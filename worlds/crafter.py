"""Craftax-Classic played as the paper's text Crafter.

The game is craftax's; what stands here is its words (actions, captions, scenes, the oracle) and a faster
step. Indices: A actions, C captions, K achievements, F facts, W = ceil(F / 32) scene words. All methods of
`Crafter` but `describe` and the masks are pure and jittable and take one state; use vmap for many.
Packing and unpacking observations takes any leading axes.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from craftax.craftax_classic import game_logic
from craftax.craftax_classic.constants import (
    CLOSE_BLOCKS,
    DIRECTIONS,
    OBS_DIM,
    SOLID_BLOCKS,
    Achievement,
    Action,
    BlockType,
    load_all_textures_given_size,
)
from craftax.craftax_classic.envs.craftax_state import EnvParams, EnvState, StaticEnvParams
from craftax.craftax_classic.renderer import make_craftax_pixel_renderer
from craftax.craftax_classic.world_gen import generate_world
from flax import struct

from lab.errors import UserError

# WORDS
VERBS = ("mine", "eat", "attack", "chop", "drink", "place", "make")
TOOLS = tuple(f"{material} {tool}" for tool in ("pickaxe", "sword") for material in ("wood", "stone", "iron"))
THINGS = ("zombie", "skeleton", "cow", "tree", "stone", "coal", "iron", "diamond", "water", "grass")
THINGS += ("crafting table", "furnace", "plant")
NOUNS = THINGS + TOOLS
MOVES = ("do nothing", "move left", "move right", "move up", "move down")
PAIRS = tuple(f"{verb} {noun}" for verb in VERBS for noun in NOUNS)
CAPTIONS = ("nothing", *PAIRS, "sleep")
ACHIEVEMENTS = tuple(a.name.lower().replace("_", " ") for a in Achievement)

# What a scene names. Sand, arrows and the player have no name.
VISIBLE = (*THINGS, "ripe plant", "lava", "path")
ITEMS = ("wood", "stone", "coal", "iron", "diamond", "sapling", *TOOLS)
NEEDS = {
    "hungry": "player_food",
    "thirsty": "player_drink",
    "hurt": "player_health",
    "sleepy": "player_energy",
}
FACTS = tuple(f"see {x}" for x in VISIBLE) + tuple(f"facing {x}" for x in VISIBLE)
FACTS += tuple(f"have {x}" for x in ITEMS) + tuple(NEEDS)
LOW = 5  # a need is felt below this value of at most 9; our choice
NUM_SCENE_WORDS = -(-len(FACTS) // 32)

# Pairs that mean something in the game, with the game's action.
MEANINGFUL = {
    pair: Action.DO
    for pair in [
        "eat plant",
        "eat cow",
        "attack zombie",
        "attack skeleton",
        "attack cow",
        "chop tree",
        "chop grass",
        "mine stone",
        "mine coal",
        "mine iron",
        "mine diamond",
        "drink water",
    ]
}
MEANINGFUL |= {
    "place stone": Action.PLACE_STONE,
    "place crafting table": Action.PLACE_TABLE,
    "place furnace": Action.PLACE_FURNACE,
    "place plant": Action.PLACE_PLANT,
    "make crafting table": Action.PLACE_TABLE,
}
MEANINGFUL |= {f"make {tool}": Action[f"MAKE_{tool.upper().replace(' ', '_')}"] for tool in TOOLS}
EFFECTS = (*MEANINGFUL, "sleep")  # what can really happen, in the order of the bits of `_effects`
# The one name of a DO on each thing, for the game's own 17 actions.
NAME_OF_DO = {pair.split(" ", 1)[1]: pair for pair, a in MEANINGFUL.items() if a is Action.DO and pair != "attack cow"}

BLOCK_OF = {name: BlockType[name.upper().replace(" ", "_")].value for name in VISIBLE[3:]}
NO_NOUN, EVER = 30, 31  # bits of a noun set: never set, always set
DIAMOND_RADIUS = 14  # craftax's mob_despawn_distance: mobs live at a smaller Manhattan distance
STATIC = StaticEnvParams()


def _bit_table(names, universe, absent):
    """Return the index of each name in `universe`, or `absent`."""
    return np.array([universe.index(n) if n in universe else absent for n in names], np.int32)


def _noun_of_caption(caption):
    return EVER if caption == "sleep" else NO_NOUN if caption == "nothing" else NOUNS.index(caption.split(" ", 1)[1])


CAPTION_NOUN = np.array([_noun_of_caption(c) for c in CAPTIONS], np.int32)
CAPTION_EFFECT = _bit_table(CAPTIONS, EFFECTS, 31)
DO_CAPTION = np.array(
    [CAPTIONS.index(NAME_OF_DO.get(noun, "nothing")) for noun in THINGS] + [0] * (33 - len(THINGS)), np.int32
)  # by the index of the faced noun; 32 when nothing is faced


def _action_tables(action_set):
    """Return names, the game's actions, captions claimed and the nouns a DO must face, each [A]."""
    if action_set == "pairs":
        names = (*MOVES, "sleep", *PAIRS)
        base = [*range(5), Action.SLEEP.value] + [MEANINGFUL.get(p, Action.NOOP).value for p in PAIRS]
        target = [EVER] * 6 + [NOUNS.index(p.split(" ", 1)[1]) if MEANINGFUL.get(p) is Action.DO else EVER for p in PAIRS]
    else:
        named = {Action.PLACE_TABLE: "place crafting table", Action.DO: "do"}
        names = MOVES + tuple(named.get(a, a.name.lower().replace("_", " ")) for a in list(Action)[5:])
        base = list(range(17))
        target = [EVER] * 17
    return names, np.array(base, np.int32), _bit_table(names, CAPTIONS, 0), np.array(target, np.int32)


@struct.dataclass
class Transition:
    """What one step did. All fields describe the step just taken, achievements after it."""

    caption: jax.Array  # int32 []
    reward: jax.Array  # float32 [], craftax's own
    terminated: jax.Array  # bool [], died
    truncated: jax.Array  # bool [], the time limit, not dead
    achievements: jax.Array  # bool [K], unlocked so far in the episode


@struct.dataclass
class _Front:
    """What the player faces: the cell and what is in it, mobs before the block."""

    position: jax.Array  # int32 [2]
    in_bounds: jax.Array  # bool []
    block: jax.Array  # int32 [], whatever stands on it; OUT_OF_BOUNDS outside
    zombies: jax.Array  # bool [3], which of them stand there
    skeletons: jax.Array  # bool [2]
    cows: jax.Array  # bool [3]
    mob: jax.Array  # bool [], any of them
    named: jax.Array  # uint32 [], bits over VISIBLE


def pack(state: EnvState) -> EnvState:
    """Return craftax's state as this world keeps it: map as uint8 [64, 64], mob_map as bits, uint32 [64, 2].

    A third of a world's bytes is what makes steps, resets and checkpoints quick.
    """
    lanes = state.mob_map.reshape(64, 2, 32).astype(jnp.uint32) << np.arange(32, dtype=np.uint32)[None, None]
    return state.replace(map=state.map.astype(jnp.uint8), mob_map=lanes.sum(-1, dtype=jnp.uint32))


def unpack(state: EnvState) -> EnvState:
    """Return the state as craftax's own functions want it: map int32 [64, 64], mob_map bool [64, 64]."""
    lanes = (state.mob_map[:, :, None] >> np.arange(32, dtype=np.uint32)[None, None]) & 1
    return state.replace(map=state.map.astype(jnp.int32), mob_map=lanes.reshape(64, 64) == 1)


def _pack(bits):
    """Pack a list of bool [] into one uint32, first bit lowest."""
    word = jnp.uint32(0)
    for i, bit in enumerate(bits):
        word |= bit.astype(jnp.uint32) << i
    return word


def _in_bounds(position):
    return (position[0] >= 0) & (position[0] < 64) & (position[1] >= 0) & (position[1] < 64)


def _same(a, b):
    """Whether two cells are the same."""
    return (a[0] == b[0]) & (a[1] == b[1])


def _block_at(state, position):
    """Return the block at `position`, int32 [], OUT_OF_BOUNDS outside the map."""
    row, column = jnp.clip(position[0], 0, 63), jnp.clip(position[1], 0, 63)
    block = state.map[row, column].astype(jnp.int32)
    return jnp.where(_in_bounds(position), block, BlockType.OUT_OF_BOUNDS.value)


def _wrapped(position):
    """Return the cell that craftax reads for one beyond the top or left: the one on the other side."""
    return jnp.where(position < 0, position + 64, position)


def _mob_at(state, position):
    """Return craftax's mob_map at `position` inside the map, bool []."""
    row, column = jnp.clip(position[0], 0, 63), jnp.clip(position[1], 0, 63)
    return ((state.mob_map[row, column >> 5] >> (column & 31).astype(jnp.uint32)) & 1) == 1


def _front(state):
    position = state.player_position + DIRECTIONS[state.player_direction]
    zombies, skeletons, cows = (
        (mobs.position == position[None]).all(-1) & mobs.mask for mobs in (state.zombies, state.skeletons, state.cows)
    )
    block = _block_at(state, position)
    kinds = [zombies.any(), skeletons.any(), cows.any()]
    mob = kinds[0] | kinds[1] | kinds[2]
    named = _pack(kinds + [~mob & (block == BLOCK_OF[name]) for name in VISIBLE[3:]])
    return _Front(position, _in_bounds(position), block, zombies, skeletons, cows, mob, named)


def _faced_nouns(front):
    """Bits over NOUNS of what is faced: a ripe plant is a plant."""
    plant, ripe = THINGS.index("plant"), VISIBLE.index("ripe plant")
    nouns = front.named & np.uint32((1 << len(THINGS)) - 1)
    return nouns | (((front.named >> ripe) & 1) << plant)


def _held_nouns(inventory):
    """Bits over NOUNS of what is held: a sapling is a plant."""
    held = {noun: getattr(inventory, noun.replace(" ", "_")) for noun in ("stone", "coal", "iron", "diamond", *TOOLS)}
    held["plant"] = inventory.sapling
    no = jnp.zeros((), bool)
    return _pack([held[noun] > 0 if noun in held else no for noun in NOUNS])


def _near(state):
    """Return the blocks of the eight cells around the player, int32 [8], OUT_OF_BOUNDS outside."""
    cells = state.player_position[None] + CLOSE_BLOCKS
    inside = ((cells >= 0) & (cells < 64)).all(-1)
    blocks = state.map[jnp.clip(cells[:, 0], 0, 63), jnp.clip(cells[:, 1], 0, 63)].astype(jnp.int32)
    return jnp.where(inside, blocks, BlockType.OUT_OF_BOUNDS.value)


def _damage(inventory):
    swords = (2 * inventory.wood_sword, 3 * inventory.stone_sword, 5 * inventory.iron_sword)
    damage = jnp.int32(1)
    for sword in swords:
        damage = jnp.maximum(damage, sword)
    return damage


def _solid(block):
    """Whether a block stops walking and placing."""
    return ((np.uint32(sum(1 << int(b) for b in np.asarray(SOLID_BLOCKS))) >> block.astype(jnp.uint32)) & 1) == 1


def _effects(state, front, sapling_gained):
    """Return the bits over EFFECTS of what each action would really do, uint32 [].

    Judged on the state before the step, awake; only whether grass yields a sapling must be told.
    """
    inventory, block = state.inventory, front.block
    free = ~front.mob & front.in_bounds
    index = jnp.argmax(front.cows)
    placing = front.in_bounds & ~_mob_at(state, front.position)
    open_cell = placing & ~_solid(block)
    near = _near(state)
    at_table = (near == BlockType.CRAFTING_TABLE.value).any()
    at_furnace = at_table & (near == BlockType.FURNACE.value).any()
    wood, stone = inventory.wood >= 1, inventory.stone >= 1
    iron = at_furnace & wood & stone & (inventory.coal >= 1) & (inventory.iron >= 1)

    def faced(name):
        return free & (block == BLOCK_OF[name])

    happened = {
        "eat plant": faced("ripe plant"),
        "eat cow": front.cows.any() & (state.cows.health[index] <= _damage(inventory)),
        "attack zombie": front.zombies.any(),
        "attack skeleton": front.skeletons.any(),
        "attack cow": front.cows.any(),
        "chop tree": faced("tree"),
        "chop grass": faced("grass") & sapling_gained,
        "mine stone": faced("stone") & (inventory.wood_pickaxe > 0),
        "mine coal": faced("coal") & (inventory.wood_pickaxe > 0),
        "mine iron": faced("iron") & (inventory.stone_pickaxe > 0),
        "mine diamond": faced("diamond") & (inventory.iron_pickaxe > 0),
        "drink water": faced("water"),
        "place stone": placing & (~_solid(block) | (block == BLOCK_OF["water"])) & stone,
        "place crafting table": open_cell & (inventory.wood >= 2),
        "place furnace": open_cell & stone,
        "place plant": placing & (block == BLOCK_OF["grass"]) & (inventory.sapling > 0),
        "make crafting table": open_cell & (inventory.wood >= 2),
        "make wood pickaxe": at_table & wood,
        "make stone pickaxe": at_table & wood & stone,
        "make iron pickaxe": iron,
        "make wood sword": at_table & wood,
        "make stone sword": at_table & wood & stone,
        "make iron sword": iron,
        "sleep": state.player_energy < 9,
    }
    return _pack([happened[name] for name in EFFECTS])


# THE STEP
# craftax_step in other words, for speed: one write to the map instead of copies of it, mobs one after another
# as scalars, all random bits at once. tests/test_crafter.py holds it to craftax_step bit for bit
# (spawn="craftax").
def _threefry(keys, count):
    """Return threefry2x32 of keys and the counters (0, count), uint32 [..., 2]; jax's is slow on CPUs."""
    k0, k1 = keys[..., 0], keys[..., 1]
    schedule = (k0, k1, k0 ^ k1 ^ np.uint32(0x1BD11BDA))
    x0, x1 = k0, k1 + jnp.uint32(count)
    for i in range(5):
        for r in (13, 15, 26, 6) if i % 2 == 0 else (17, 29, 16, 24):
            x0 = x0 + x1
            x1 = ((x1 << r) | (x1 >> (32 - r))) ^ x0
        x0 = x0 + schedule[(i + 1) % 3]
        x1 = x1 + schedule[(i + 2) % 3] + np.uint32(i + 1)
    return jnp.stack([x0, x1], -1)


def _split_chain(key, go_right):
    """Split a key again and again like jax.random.split. Return the other child of each split, uint32 [n, 2].

    The chain goes on with the first child, or with the second where `go_right`, bool [n].
    """

    def split(key, right):
        left_child, right_child = _threefry(key, 0), _threefry(key, 1)
        return jnp.where(right, right_child, left_child), right_child

    return jax.lax.scan(split, key, np.array(go_right))[1]


def _bits(keys, count=0):
    """Return jax.random.bits of each key, uint32 [...]; with an array `count` those at its places of one key's."""
    out = _threefry(keys, count)
    return out[..., 0] ^ out[..., 1]


def _uniform(keys, count=0):
    """Return jax.random.uniform of each key, float32 [...]; with an array `count` those at its places of one key's."""
    bits = (_bits(keys, count) >> 9) | np.uint32(0x3F800000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32) - 1.0


def _act(state, action, front, grass_draw):
    """Craft, interact and place as `do_crafting`, `do_action` and `place_block` do.

    One cell of the map may change. Return the state and whether a mob was killed.
    """
    inventory, block = state.inventory, front.block
    doing = action == Action.DO.value
    damage = _damage(inventory)
    effects = jax.lax.optimization_barrier(_effects(state, front, grass_draw < 0.1))

    def does(game_action, *pairs):
        bits = sum(1 << EFFECTS.index(pair) for pair in pairs)
        return (action == game_action.value) & ((effects & np.uint32(bits)) != 0)

    def attack(mobs, hit):
        index = jnp.arange(hit.shape[0]) == jnp.argmax(hit)
        health = mobs.health - jnp.where(index & hit & doing, damage, 0)
        mask = jnp.where(doing, health > 0, mobs.mask)
        return mobs.replace(health=health, mask=mask), doing & (index & mobs.mask & ~mask).any()

    zombies, killed_zombie = attack(state.zombies, front.zombies)
    cows, killed_cow = attack(state.cows, front.cows)
    skeletons, killed_skeleton = attack(state.skeletons, front.skeletons)

    wood, stone, coal = (
        does(Action.DO, "chop tree"),
        does(Action.DO, "mine stone"),
        does(Action.DO, "mine coal"),
    )
    iron, diamond = does(Action.DO, "mine iron"), does(Action.DO, "mine diamond")
    sapling, drink = does(Action.DO, "chop grass"), does(Action.DO, "drink water")
    eats_plant = does(Action.DO, "eat plant")
    puts_stone, puts_table = (
        does(Action.PLACE_STONE, "place stone"),
        does(Action.PLACE_TABLE, "place crafting table"),
    )
    puts_furnace = does(Action.PLACE_FURNACE, "place furnace")
    puts_plant = does(Action.PLACE_PLANT, "place plant")
    made = {tool: does(MEANINGFUL[f"make {tool}"], f"make {tool}") for tool in TOOLS}
    of_stone = made["stone pickaxe"] | made["stone sword"]
    of_iron = made["iron pickaxe"] | made["iron sword"]
    any_tool = made["wood pickaxe"] | made["wood sword"] | of_stone | of_iron

    new_inventory = inventory.replace(
        wood=inventory.wood + wood - any_tool - 2 * puts_table,
        stone=inventory.stone + stone - (of_stone | of_iron | puts_stone | puts_furnace),
        coal=inventory.coal + coal - of_iron,
        iron=inventory.iron + iron - of_iron,
        diamond=inventory.diamond + diamond,
        sapling=inventory.sapling + sapling - puts_plant,
        **{tool.replace(" ", "_"): getattr(inventory, tool.replace(" ", "_")) + made[tool] for tool in TOOLS},
    )
    new_inventory = jax.tree.map(lambda x: jnp.minimum(x, 9), new_inventory)

    new_block = block
    for happens, put in (
        (wood, BlockType.GRASS),
        (stone | coal | iron | diamond, BlockType.PATH),
        (eats_plant | puts_plant, BlockType.PLANT),
        (puts_table, BlockType.CRAFTING_TABLE),
        (puts_furnace, BlockType.FURNACE),
        (puts_stone, BlockType.STONE),
    ):
        new_block = jnp.where(happens, put.value, new_block)
    row = jnp.where(front.in_bounds, front.position[0], 64)
    game_map = state.map.at[row, front.position[1]].set(new_block.astype(jnp.uint8), mode="drop")

    slots = jnp.arange(STATIC.max_growing_plants)
    there = (state.growing_plants_positions == front.position[None]).all(-1)
    eaten = (slots == jnp.argmax(there)) & eats_plant
    planted = (slots == jnp.argmax(~state.growing_plants_mask)) & ~state.growing_plants_mask & puts_plant

    unlocked = {
        "collect wood": wood,
        "place table": puts_table,
        "eat cow": killed_cow,
        "collect sapling": sapling,
        "collect drink": drink,
        "place plant": puts_plant,
        "defeat zombie": killed_zombie,
        "collect stone": stone,
        "place stone": puts_stone,
        "eat plant": eats_plant,
        "defeat skeleton": killed_skeleton,
        "wake up": jnp.zeros((), bool),
        "place furnace": puts_furnace,
        "collect coal": coal,
        "collect iron": iron,
        "collect diamond": diamond,
    } | {f"make {tool}": made[tool] for tool in TOOLS}
    food = jnp.where(killed_cow, jnp.minimum(9, state.player_food + 6), state.player_food)
    state = state.replace(
        map=game_map,
        inventory=new_inventory,
        zombies=zombies,
        cows=cows,
        skeletons=skeletons,
        player_food=jnp.where(eats_plant, jnp.minimum(9, food + 4), food),
        player_hunger=jnp.where(killed_cow | eats_plant, 0.0, state.player_hunger),
        player_drink=jnp.where(drink, jnp.minimum(9, state.player_drink + 1), state.player_drink),
        player_thirst=jnp.where(drink, 0.0, state.player_thirst),
        growing_plants_positions=jnp.where(planted[:, None], front.position[None], state.growing_plants_positions),
        growing_plants_age=jnp.where(eaten | planted, 0, state.growing_plants_age),
        growing_plants_mask=state.growing_plants_mask | planted,
        achievements=state.achievements | jnp.stack([unlocked[name] for name in ACHIEVEMENTS]),
    )
    return state, killed_zombie | killed_cow | killed_skeleton


def _move(state, action):
    """Walk as `move_player` does: lava may be entered."""
    step = DIRECTIONS[action]
    position = state.player_position + step
    walks = (action >= Action.LEFT.value) & (action <= Action.DOWN.value)
    free = _in_bounds(position) & ~_solid(_block_at(state, position)) & ~_mob_at(state, position)
    lava = _block_at(state, _wrapped(position)) == BlockType.LAVA.value
    moved = walks & (free | lava)
    return state.replace(
        player_position=jnp.where(moved, position, state.player_position),
        player_direction=jnp.where(walks, action, state.player_direction),
    )


def _mark(state, position, value):
    """Write one bit of mob_map; a cell beyond the map is left out."""
    row, column = position[0], position[1]
    bit = jnp.uint32(1) << (column & 31).astype(jnp.uint32)
    here = (np.arange(64)[:, None] == row) & (np.arange(2)[None] == column >> 5)
    words = state.mob_map
    return state.replace(mob_map=jnp.where(here, jnp.where(value, words | bit, words & ~bit), words))


def _free(state, position):
    """Whether a mob may go to `position`."""
    block = _block_at(state, position)
    blocked = _solid(block) | (block == BlockType.LAVA.value) | _mob_at(state, position)
    return _in_bounds(position) & ~blocked & ~_same(position, state.player_position)


def _go(state, old, new, alive, stays):
    """Take a mob from its old cell to the new one in mob_map, unless it has gone too far."""
    state = _mark(state, old, _mob_at(state, old) & ~alive)
    return _mark(state, new, _mob_at(state, new) | stays)


def _toward(position, player, draw):
    """Return one step to the player along the longer axis, by chance if equal, int32 [2]."""
    away = jnp.abs(player - position)
    longest, total = jnp.maximum(away[0], away[1]), away[0] + away[1]
    first = (away[0] == longest).astype(jnp.float32) / total
    both = first + (away[1] == longest).astype(jnp.float32) / total
    rank = both * (1 - draw)
    axis = (first < rank).astype(jnp.int32) + (both < rank)
    return jnp.where(np.arange(2) == jnp.minimum(axis, 1), jnp.sign(player - position), 0)


def _update_mobs(key, state, front, killed, params):
    """Move zombies, cows, skeletons and arrows as `update_mobs` does.

    Return the state, and for each arrow the cell it struck and whether it broke it, which `_grow` writes.

    front, killed: the cell where a mob was killed in this step, whose entry in mob_map is cleared first.
    """
    zombie, cow, skeleton = [False, False, False, True], [False], [False, False, False]
    keys = _split_chain(key, [False] + 3 * zombie + [False] + 3 * cow + [False] + 2 * skeleton)
    zombie_keys, cow_keys, skeleton_keys = (
        keys[1:13].reshape(3, 4, 2),
        keys[14:17],
        keys[18:24].reshape(2, 3, 2),
    )
    turns = _bits(_threefry(jnp.concatenate([zombie_keys[:, 0], cow_keys, skeleton_keys[:, 0]]), 1))
    chances = _uniform(jnp.concatenate([zombie_keys[:, 1:3].reshape(6, 2), skeleton_keys[:, 1:].reshape(4, 2)]))

    player = state.player_position
    state = _mark(state, front.position, _mob_at(state, front.position) & ~killed)
    woke = np.array([name == "wake up" for name in ACHIEVEMENTS])
    # What a mob sees and changes of the state; the map stays outside of the loops.
    moving = ("mob_map", "player_health", "is_sleeping", "achievements", "arrows", "arrow_directions")

    def in_turn(move, state, mobs, *draws):
        """Let each of `mobs` move, one after another. Return the state and the mobs moved."""

        def turn(carry, x):
            now, moved = move(state.replace(**dict(zip(moving, carry, strict=True))), *x)
            return tuple(getattr(now, name) for name in moving), moved

        carry, moved = jax.lax.scan(turn, tuple(getattr(state, name) for name in moving), (mobs, *draws))
        return state.replace(**dict(zip(moving, carry, strict=True))), moved

    def move_zombie(state, zombie, turn, chances):
        old, alive = zombie.position, zombie.mask
        wander = old + DIRECTIONS[1 + (turn & 3).astype(jnp.int32)]
        distance = jnp.abs(old - player).sum()
        chase = (distance < 10) & (chances[1] < 0.75)
        attacks = (distance == 1) & (zombie.attack_cooldown <= 0) & alive
        wish = jnp.where(chase, old + _toward(old, player, chances[0]), wander)
        new = jnp.where(_free(state, wish) & ~attacks, wish, old)
        stays = alive & (distance < params.mob_despawn_distance)
        asleep = state.is_sleeping
        state = _go(state, old, new, alive, stays).replace(
            player_health=state.player_health - jnp.where(attacks, jnp.where(asleep, 7, 2), 0),
            is_sleeping=asleep & ~attacks,
            achievements=state.achievements | (woke & asleep & attacks),
        )
        cooldown = jnp.where(attacks, 5, zombie.attack_cooldown - 1)
        return state, zombie.replace(position=new, mask=stays, attack_cooldown=cooldown)

    def move_cow(state, cow, turn):
        old, alive = cow.position, cow.mask
        wish = old + DIRECTIONS[1 + (turn & 7).astype(jnp.int32)]
        new = jnp.where(_free(state, wish), wish, old)
        stays = alive & (jnp.abs(old - player).sum() < params.mob_despawn_distance)
        return _go(state, old, new, alive, stays), cow.replace(position=new, mask=stays)

    def move_skeleton(state, skeleton, turn, chances):
        old, alive = skeleton.position, skeleton.mask
        wander = old + DIRECTIONS[1 + (turn & 3).astype(jnp.int32)]
        distance = jnp.abs(old - player).sum()
        toward = _toward(old, player, chances[0])
        close = distance <= 3
        wish = jnp.where(distance >= 10, old + toward, wander)
        wish = jnp.where(close, old - toward, wish)
        wish = jnp.where(chances[1] > 0.85, wish, wander)
        open_cell = _free(state, wish)
        attacks = ((distance >= 4) & (distance <= 5)) | (close & ~open_cell)
        attacks &= (skeleton.attack_cooldown <= 0) & alive
        arrows = state.arrows
        shot = (np.arange(STATIC.max_arrows) == jnp.argmax(~arrows.mask)) & attacks & ~arrows.mask.all()
        new = jnp.where(open_cell & ~attacks, wish, old)
        stays = alive & (distance < params.mob_despawn_distance)
        state = _go(state, old, new, alive, stays).replace(
            arrows=arrows.replace(position=jnp.where(shot[:, None], old[None], arrows.position), mask=arrows.mask | shot),
            arrow_directions=jnp.where(shot[:, None], toward[None], state.arrow_directions),
        )
        cooldown = jnp.where(attacks, 4, skeleton.attack_cooldown - 1)
        return state, skeleton.replace(position=new, mask=stays, attack_cooldown=cooldown)

    state, zombies = in_turn(move_zombie, state, state.zombies, turns[:3], chances[:6].reshape(3, 2))
    state, cows = in_turn(move_cow, state, state.cows, turns[3:6])
    state, skeletons = in_turn(move_skeleton, state, state.skeletons, turns[6:], chances[6:].reshape(2, 2))

    alive, new = state.arrows.mask, state.arrows.position + state.arrow_directions
    struck = _wrapped(new)
    block = jax.vmap(_block_at, (None, 0))(state, struck)
    breaks = alive & ((block == BlockType.CRAFTING_TABLE.value) | (block == BlockType.FURNACE.value))
    for i in range(1, STATIC.max_arrows):  # what an earlier arrow broke is open to a later one
        opened = ((struck[:i] == struck[i][None]).all(-1) & breaks[:i]).any()
        block = block.at[i].set(jnp.where(opened, BlockType.PATH.value, block[i]))
        breaks = breaks.at[i].set(breaks[i] & ~opened)
    passable = ~_solid(block) | (block == BlockType.WATER.value)
    hits = (new == player[None]).all(-1)
    goes_on = jax.vmap(_in_bounds)(new) & passable & ~jax.vmap(_mob_at, (None, 0))(state, new) & ~hits
    state = state.replace(
        zombies=zombies,
        cows=cows,
        skeletons=skeletons,
        player_health=state.player_health - 2 * (hits & alive).sum(),
        is_sleeping=state.is_sleeping & ~(hits & alive).any(),
        arrows=state.arrows.replace(position=new, mask=alive & goes_on),
    )
    return state, (struck, breaks)


def _grow(state, broken):
    """Age the plants as `update_plants` does, and write what ripens and what arrows broke into the map.

    Both are rare: the loop runs only in steps in which any world has such a cell.
    """
    age = (state.growing_plants_age + 1) * state.growing_plants_mask
    plants = state.growing_plants_positions
    ripe = (age >= 600) & (state.map[plants[:, 0], plants[:, 1]] != BlockType.RIPE_PLANT.value)
    pending = jnp.concatenate([broken[1], ripe])
    cells = jnp.concatenate([broken[0], plants])
    blocks = np.array([BlockType.PATH.value] * len(broken[1]) + [BlockType.RIPE_PLANT.value] * len(plants), np.uint8)

    def write(carry):
        pending, game_map = carry
        first = jnp.argmax(pending)
        cell = cells[first]
        game_map = game_map.at[cell[0], cell[1]].set(jnp.asarray(blocks)[first])
        return pending & (np.arange(len(blocks)) != first), game_map

    _, game_map = jax.lax.while_loop(lambda carry: carry[0].any(), write, (pending, state.map))
    return state.replace(map=game_map, growing_plants_age=age)


def _spawn(key, state, params):
    """Spawn mobs as craftax does, but draw the row of the cell and then the column, where mobs may live.

    A row is as likely as the number of its permitted cells, a column as any other of its row: every permitted
    cell is equally likely, as in craftax. All three kinds take their chance and their cell from one draw.
    """
    size = 2 * DIAMOND_RADIUS - 1
    corner = jnp.clip(state.player_position - (DIAMOND_RADIUS - 1), 0, 64 - size)
    blocks = jax.lax.dynamic_slice(state.map, corner, (size, size))
    words = jax.lax.dynamic_slice(state.mob_map, (corner[0], 0), (size, 2))
    rows, columns = corner[0] + jnp.arange(size), corner[1] + jnp.arange(size)
    halves = jnp.where(columns[None] < 32, words[:, :1], words[:, 1:])
    occupied = ((halves >> (columns[None] & 31).astype(jnp.uint32)) & 1) == 1
    distance = jnp.abs(rows - state.player_position[0])[:, None] + jnp.abs(columns - state.player_position[1])[None]
    grass, path = blocks == BlockType.GRASS.value, blocks == BlockType.PATH.value
    within = distance < params.mob_despawn_distance
    zombie_chance = params.spawn_zombie_base_chance + params.spawn_zombie_night_chance * jnp.square(1 - state.light_level)
    draws = jax.random.uniform(key, (6,))
    kinds = {
        "cows": (grass & (distance > 3), params.spawn_cow_chance, params.cow_health),
        "zombies": ((grass | path) & (distance > 9), zombie_chance, params.zombie_health),
        "skeletons": (path & (distance > 9), params.spawn_skeleton_chance, params.skeleton_health),
    }
    new = {}
    for i, (kind, (permitted, chance, health)) in enumerate(kinds.items()):
        mobs = getattr(state, kind)
        permitted = permitted & within & ~occupied
        upto = jnp.cumsum(permitted.sum(1))
        total = upto[-1]
        rank = jnp.minimum((draws[2 * i] * total).astype(jnp.int32), total - 1)
        row = (upto <= rank).sum()
        rank -= jnp.where(row > 0, upto[row - 1], 0)
        column = (jnp.cumsum(permitted[row]) <= rank).sum()
        spawns = (draws[2 * i + 1] < chance) & (total > 0) & ~mobs.mask.all()
        slot = (jnp.arange(mobs.mask.shape[0]) == jnp.argmax(~mobs.mask)) & spawns
        cell = jnp.stack([corner[0] + row, corner[1] + column])
        new[kind] = mobs.replace(
            position=jnp.where(slot[:, None], cell[None], mobs.position),
            health=jnp.where(slot, health, mobs.health),
            mask=mobs.mask | slot,
        )
        occupied |= spawns & (rows == cell[0])[:, None] & (columns == cell[1])[None]
        state = _mark(state, jnp.where(spawns, cell, 64), True)
    return state.replace(**new)


def _advance(key, state, action, front, params, spawn):
    """Play one of the game's 17 actions like craftax_step, with a choice of spawn."""
    before = state
    action = jnp.where(state.is_sleeping, Action.NOOP.value, action)
    do_key, mobs_key, spawn_key, state_key = _split_chain(key, [False] * 4)
    state, killed = _act(state, action, front, _uniform(_threefry(do_key, 1)))
    state = _move(state, action)
    state, broken = _update_mobs(mobs_key, state, front, killed, params)
    state = _grow(state, broken)
    if spawn == "fast":
        state = _spawn(spawn_key, state, params)
    else:
        state = pack(game_logic.spawn_mobs(unpack(state), spawn_key, params, STATIC))
    state = game_logic.update_player_intrinsics(state, action)
    state = game_logic.update_health(state)
    reward = (
        state.achievements.astype(jnp.float32).sum()
        - before.achievements.astype(jnp.float32).sum()
        + (state.player_health - before.player_health) * 0.1
    )
    timestep = state.timestep + 1
    light = game_logic.calculate_light_level(timestep, params)
    state = state.replace(timestep=timestep, light_level=light, state_rng=state_key)
    return _strong(state), reward


def _strong(tree):
    """Give every leaf a dtype that does not depend on what it meets, so that loops can carry it."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)


def _raw(key):
    """Return the uint32 data of a key of either kind: a state keeps one, as plain arrays."""
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


# WHAT IS SEEN
def _view(state):
    """Return the blocks in the 7 x 9 view, int32 [7, 9], OUT_OF_BOUNDS outside the map."""
    rows = state.player_position[0] - OBS_DIM[0] // 2 + jnp.arange(OBS_DIM[0])
    columns = state.player_position[1] - OBS_DIM[1] // 2 + jnp.arange(OBS_DIM[1])
    inside = ((rows >= 0) & (rows < 64))[:, None] & ((columns >= 0) & (columns < 64))[None]
    blocks = state.map[jnp.clip(rows, 0, 63)[:, None], jnp.clip(columns, 0, 63)[None]].astype(jnp.int32)
    return jnp.where(inside, blocks, BlockType.OUT_OF_BOUNDS.value)


def _on_screen(state, mobs):
    """Return the index of each mob's cell in the flat view, int32 [M], and whether it is there, bool [M]."""
    shape = np.array(OBS_DIM, np.int32)
    local = mobs.position - state.player_position[None] + (shape // 2)[None]
    shown = ((local >= 0) & (local < shape[None])).all(-1) & mobs.mask
    return local[:, 0] * OBS_DIM[1] + local[:, 1], shown


def _seen(state):
    """Return the bits over VISIBLE of what is in view, uint32 []. Mobs and the player hide their block."""
    cells = np.arange(OBS_DIM[0] * OBS_DIM[1], dtype=np.int32)
    hidden = jnp.asarray(cells == cells[-1] // 2)
    kinds = []
    for mobs in (state.zombies, state.skeletons, state.cows):
        index, shown = _on_screen(state, mobs)
        hidden |= ((cells[:, None] == index[None]) & shown[None]).any(-1)
        kinds.append(shown.any())
    bits = jnp.where(hidden, jnp.uint32(0), jnp.uint32(1) << _view(state).reshape(-1).astype(jnp.uint32))
    blocks = jax.lax.reduce(bits, jnp.uint32(0), jax.lax.bitwise_or, (0,))
    return _pack(kinds + [(blocks >> BLOCK_OF[name]) & 1 for name in VISIBLE[3:]])


def _symbolic(state):
    """Return what craftax's render_craftax_symbolic does, float32 [1345]."""
    cells, width = np.arange(OBS_DIM[0] * OBS_DIM[1], dtype=np.int32), OBS_DIM[1]
    layers = [_view(state).reshape(-1)[:, None] == np.arange(len(BlockType))[None]]
    shape = np.array(OBS_DIM, np.int32)
    for mobs in (state.zombies, state.cows, state.skeletons, state.arrows):
        plane = jnp.zeros(len(cells), bool)
        for i in range(mobs.mask.shape[0]):
            local = mobs.position[i] - state.player_position + shape // 2
            shown = ((local >= 0) & (local < shape)).all() & mobs.mask[i]
            # As in craftax, one beyond the top or left of the view blanks the cell on the other side.
            local = jnp.where(local < 0, local + shape, local)
            inside = ((local >= 0) & (local < shape)).all()
            plane = jnp.where((cells == local[0] * width + local[1]) & inside, shown, plane)
        layers.append(plane[:, None])
    numbers = [getattr(state.inventory, item.replace(" ", "_")) for item in ITEMS]
    numbers += [state.player_health, state.player_food, state.player_drink, state.player_energy]
    numbers = (jnp.stack(numbers).astype(jnp.float16) / 10.0).astype(jnp.float32)
    direction = state.player_direction - 1 == np.arange(4)
    rest = jnp.stack([state.light_level, state.is_sleeping.astype(jnp.float32)])
    blocks = jnp.concatenate(layers, -1).reshape(-1)
    return jnp.concatenate([blocks.astype(jnp.float32), numbers, direction.astype(jnp.float32), rest])


@lru_cache
def _renderer(block_pixels):
    # Where craftax has no cache of its textures yet it makes them now, which must not become part of a traced program.
    with jax.ensure_compile_time_eval():
        return make_craftax_pixel_renderer(block_pixels)


def _pixels(state, block_pixels):
    with jax.numpy_rank_promotion("allow"):
        pixels = _renderer(block_pixels)(unpack(state))
    return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)


# Craftax's picture in colour takes as long as twenty steps, this one as three. All that craftax does to colours is linear and
# alike for the three of them, so the grey of its picture is what its textures in grey make; tests/test_crafter.py compares.
BLOCK_PIXELS, FRAME_PIXELS = 9, 84
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
NIGHT, SLEEP = float(LUMINANCE @ [0, 16, 64]), float(LUMINANCE @ [0, 0, 16])  # what both are tinted with, as grey
# The cells of the inventory, row by row: the state's number and what is drawn of it, a texture's name or a block.
INVENTORY = {
    "player_health": "health_texture",
    "player_food": "hunger_texture",
    "player_drink": "thirst_texture",
    "player_energy": "energy_texture",
    "sapling": "sapling_texture",
    "wood": BlockType.WOOD,
    "stone": BlockType.STONE,
    "coal": BlockType.COAL,
    "iron": BlockType.IRON,
    "diamond": BlockType.DIAMOND,
} | {name: f"{name}_texture" for name in (tool.replace(" ", "_") for tool in TOOLS)}
NUMBERS = range(-10, 10)  # health may fall below zero; craftax then draws the digit ten above


@struct.dataclass
class _Textures:
    """Craftax's textures in grey, float32. What moves is a pair [2, 9, 9]: grey times opacity, and 1 - opacity."""

    blocks: np.ndarray  # [17, 9, 9]
    players: np.ndarray  # [5, 2, 9, 9], left, right, up, down, asleep
    mobs: dict  # by kind, [2, 9, 9]
    arrows: np.ndarray  # [4, 2, 9, 9], flying up, down, left, right
    inventory: np.ndarray  # uint8 [20, 18, 9, 9], each of NUMBERS in each cell
    darkness: np.ndarray  # [7, 9, 9, 9], how strong the static of the night is


@lru_cache
def _textures():
    with jax.ensure_compile_time_eval():
        textures = jax.tree.map(lambda x: np.asarray(x, np.float32), load_all_textures_given_size(BLOCK_PIXELS))

    def pair(colours, opacity):
        return np.stack([colours @ LUMINANCE * opacity, 1 - opacity])

    zombie, cow, skeleton, up = (
        pair(textures[f"{kind}_texture"], textures[f"{kind}_texture_alpha"][..., 0])
        for kind in ("zombie", "cow", "skeleton", "arrow")
    )
    down = up[:, ::-1]
    inventory = np.zeros((len(NUMBERS), 2 * OBS_DIM[1], BLOCK_PIXELS, BLOCK_PIXELS), np.float32)
    for cell, source in enumerate(INVENTORY.values()):
        thing = textures["smaller_block_textures"][source.value] if isinstance(source, BlockType) else textures[source]
        for tile, number in zip(inventory[:, cell], NUMBERS, strict=True):
            if number > 0:  # as in craftax, things are 0.8 of a cell and digits 0.6
                tile[:7, :7] = thing @ LUMINANCE
            digit, opacity = textures["number_textures"][number], textures["number_textures_alpha"][number, ..., 0]
            tile[3:8, 3:8] = tile[3:8, 3:8] * (1 - opacity) + digit @ LUMINANCE
    return _Textures(
        blocks=textures["block_textures"] @ LUMINANCE,
        players=np.stack([pair(player[..., :3], player[..., 3] / 255) for player in textures["player_textures"]]),
        mobs={"zombies": zombie, "cows": cow, "skeletons": skeleton},
        arrows=np.stack([up, down, up.swapaxes(1, 2), down.swapaxes(1, 2)]),
        inventory=np.round(inventory).astype(np.uint8),
        darkness=textures["night_noise_intensity_texture"][..., 0].reshape(OBS_DIM[0], BLOCK_PIXELS, OBS_DIM[1], BLOCK_PIXELS),
    )


def _frame(state):
    """Return the grey of craftax's picture at 9 pixels a block, a black border around it, uint8 [84, 84]."""
    textures, width = _textures(), OBS_DIM[1]
    player = jnp.where(state.is_sleeping, 4, state.player_direction - 1)
    drawn = [(jnp.asarray(textures.players)[player], np.int32(OBS_DIM[0] * width // 2), True)]
    for kind, pair in textures.mobs.items():
        drawn += [(pair, index, shown) for index, shown in zip(*_on_screen(state, getattr(state, kind)), strict=True)]
    turned = (state.arrow_directions > 0).any(-1) + 2 * (state.arrow_directions[:, 1] != 0)
    drawn += zip(jnp.asarray(textures.arrows)[turned], *_on_screen(state, state.arrows), strict=True)
    strength = jnp.maximum(2 * (0.5 - state.light_level), 0.0)

    def draw_row(x):
        """Draw a row of cells, uint8 [9, 9, 9]: rows of pixels, cells, columns of a cell."""
        row, blocks, darkness = x
        pixels = jnp.asarray(textures.blocks)[blocks].transpose(1, 0, 2)
        cells = row * width + np.arange(width, dtype=np.int32)[None, :, None]
        for pair, index, shown in drawn:
            grey, through = pair[:, :, None]
            pixels = jnp.where((cells == index) & shown, pixels * through + grey, pixels)
        places = np.arange(pixels.size, dtype=np.uint32).reshape(pixels.shape)
        static = _uniform(state.state_rng, row.astype(jnp.uint32) * pixels.size + places) * 95 + 32
        night = pixels + strength * darkness * (static - pixels)
        pixels = state.light_level * pixels + (1 - state.light_level) * (0.5 * night + 0.5 * NIGHT)
        return jnp.round(jnp.where(state.is_sleeping, 0.5 * pixels + 0.5 * SLEEP, pixels)).astype(jnp.uint8)

    # Row by row: XLA would draw one picture pixel by pixel within the padding below, ten times slower.
    view = jax.lax.map(draw_row, (jnp.arange(OBS_DIM[0]), _view(state), textures.darkness))
    numbers = [getattr(state if name.startswith("player") else state.inventory, name) for name in INVENTORY]
    numbers = jnp.clip(jnp.pad(jnp.stack(numbers), (0, 2)), NUMBERS[0], NUMBERS[-1]) - NUMBERS[0]
    held = jnp.asarray(textures.inventory)[numbers, np.arange(2 * width)]
    held = held.reshape(2, width, BLOCK_PIXELS, BLOCK_PIXELS).transpose(0, 2, 1, 3)
    picture = jnp.concatenate([view, held]).reshape(width * BLOCK_PIXELS, width * BLOCK_PIXELS)
    border = FRAME_PIXELS - width * BLOCK_PIXELS
    return jnp.pad(picture, (border // 2, border - border // 2))


# THE WORLD
NUM_BITS = OBS_DIM[0] * OBS_DIM[1] * (len(BlockType) + 4)  # entries of a symbolic observation that are 0 or 1
OBSERVATION_SHAPES = {"symbolic": (NUM_BITS + 22,), "pixels": (63, 63, 3), "frames": (FRAME_PIXELS, FRAME_PIXELS)}


@dataclass(frozen=True)
class Crafter:
    """Crafter as the paper plays it, on Craftax-Classic.

    Arrows hide nothing; the view does not end at night: the words name what a captioner with all the state
    would. Under the rules `paper` an episode is shorter than a sapling needs to ripen (600 steps): nobody
    eats a plant. Raises UserError for an unknown option.
    """

    action_set: str = "pairs"  # "pairs": 139 verb-noun actions; "base": the game's 17
    caption_regime: str = "attempt"  # "attempt": the noun is faced or held; "effect": it really happened
    game_rules: str = "paper"  # "paper": one-hit mobs, 400 steps; "craftax": its defaults, 10,000 steps
    observation: str = "symbolic"  # or "pixels", or "frames": one grey frame, which worlds.frames stacks
    spawn: str = "fast"  # or "craftax": its own spawn, a tenth of the speed
    name = "crafter"
    captions = CAPTIONS
    achievements = ACHIEVEMENTS
    facts = FACTS
    num_scene_words = NUM_SCENE_WORDS
    history = 1

    def __post_init__(self):
        options = {
            "action_set": ("pairs", "base"),
            "caption_regime": ("attempt", "effect"),
            "game_rules": ("paper", "craftax"),
            "observation": tuple(OBSERVATION_SHAPES),
            "spawn": ("fast", "craftax"),
        }
        for option, allowed in options.items():
            if getattr(self, option) not in allowed:
                known = ", ".join(allowed)
                raise UserError(f"crafter has no {option} {getattr(self, option)!r}; known: {known}")

    @cached_property
    def params(self) -> EnvParams:
        """The game's parameters."""
        if self.game_rules == "craftax":
            return EnvParams()
        return EnvParams(max_timesteps=400, cow_health=1, zombie_health=1, skeleton_health=1)

    @property
    def max_episode_steps(self) -> int:
        return self.params.max_timesteps

    @property
    def actions(self) -> tuple[str, ...]:
        return _action_tables(self.action_set)[0]

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return OBSERVATION_SHAPES[self.observation]

    def reset(self, key) -> EnvState:
        """Generate a new world."""
        return _strong(pack(generate_world(_raw(key), self.params, STATIC)))

    def step(self, key, state: EnvState, action) -> tuple[EnvState, Transition]:
        """Take one action, int [] below A. Nothing is reset."""
        _, base, claimed, target = (jnp.asarray(t) if i else t for i, t in enumerate(_action_tables(self.action_set)))
        front = _front(state)
        faced = _faced_nouns(front)
        played = jnp.where((((faced | np.uint32(1 << EVER)) >> target[action]) & 1) == 1, base[action], 0)
        after, reward = _advance(_raw(key), state, played, front, self.params, self.spawn)

        caption = claimed[action]
        if self.action_set == "base":
            first = jax.lax.population_count((faced & (~faced + 1)) - 1)
            caption = jnp.where(action == Action.DO.value, jnp.asarray(DO_CAPTION)[first], caption)
        effects = _effects(state, front, after.inventory.sapling > state.inventory.sapling)
        counts = (effects >> jnp.asarray(CAPTION_EFFECT)[caption]) & 1
        if self.caption_regime == "attempt":
            present = faced | _held_nouns(state.inventory) | np.uint32(1 << EVER)
            counts |= (present >> jnp.asarray(CAPTION_NOUN)[caption]) & 1
        caption = jnp.where(state.is_sleeping, 0, caption * counts.astype(jnp.int32))

        terminated = after.player_health <= 0
        truncated = ~terminated & (after.timestep >= self.max_episode_steps)
        return after, Transition(caption, reward, terminated, truncated, after.achievements)

    def observe(self, state: EnvState) -> jax.Array:
        """Return float32 [1345] (symbolic, craftax's values), uint8 [63, 63, 3] (pixels) or uint8 [84, 84] (frames)."""
        if self.observation == "pixels":
            return _pixels(state, 7)
        return _frame(state) if self.observation == "frames" else _symbolic(state)

    def pack_observation(self, observation) -> jax.Array:
        """Pack [..., 1345] into uint32 [..., 64], 42 words of bits and 22 floats; pictures stay as they are."""
        if self.observation != "symbolic":
            return observation
        lead = observation.shape[:-1]
        bits = jnp.pad(observation[..., :NUM_BITS] == 1, [(0, 0)] * len(lead) + [(0, -NUM_BITS % 32)]).reshape(*lead, -1, 32)
        words = _pack([bits[..., i] for i in range(32)])
        return jnp.concatenate([words, jax.lax.bitcast_convert_type(observation[..., NUM_BITS:], jnp.uint32)], -1)

    def unpack_observation(self, packed) -> jax.Array:
        """Undo `pack_observation`: [..., 1, *P] becomes [..., *S]."""
        if self.observation != "symbolic":
            return packed.reshape(*packed.shape[: -1 - len(self.observation_shape)], *self.observation_shape)
        packed = packed[..., 0, :]
        lead = packed.shape[:-1]
        shifts = np.arange(32, dtype=np.uint32).reshape((1,) * packed.ndim + (32,))
        bits = ((packed[..., :-22, None] >> shifts) & 1).reshape(*lead, -1)[..., :NUM_BITS]
        return jnp.concatenate([bits.astype(jnp.float32), jax.lax.bitcast_convert_type(packed[..., -22:], jnp.float32)], -1)

    def render(self, state: EnvState) -> jax.Array:
        """Return a picture for films, uint8 [144, 144, 3]."""
        return _pixels(state, 16)

    def scene(self, state: EnvState) -> jax.Array:
        """Return the facts that hold, packed: fact f is bit f % 32 of word f // 32, uint32 [W]."""
        seen, facing = _seen(state), _front(state).named
        have = _pack([getattr(state.inventory, item.replace(" ", "_")) > 0 for item in ITEMS])
        low = _pack([getattr(state, field) < LOW for field in NEEDS.values()])
        half = len(VISIBLE)
        return jnp.stack([seen | (facing << half), have | (low << len(ITEMS))])

    def describe(self, scene) -> str:
        """Say a packed scene, uint32 [W], in a sentence."""
        facts = [f for i, f in enumerate(FACTS) if int(scene[i // 32]) >> (i % 32) & 1]

        def of(kind):
            return ", ".join(sorted(f.split(" ", 1)[1] for f in facts if f.startswith(kind + " ")))

        parts = [f"You see {of('see') or 'nothing'}."]
        parts += [f"You are facing {of('facing')}."] if of("facing") else []
        parts += [f"You have {of('have')}."] if of("have") else []
        felt = ", ".join(sorted(f for f in facts if f in NEEDS))
        return " ".join(parts + ([f"You feel {felt}."] if felt else []))

    def oracle(self, state: EnvState) -> jax.Array:
        """Return which captions make sense now by the game's true prerequisites, bool [C]."""
        seen, inventory = _seen(state), state.inventory

        def see(name):
            return ((seen >> VISIBLE.index(name)) & 1) == 1

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
        bits = _pack([sensible[name] for name in EFFECTS])
        return ((bits >> CAPTION_EFFECT.astype(np.uint32)) & 1) == 1

    def prompt_mask(self, form: str) -> np.ndarray:
        """Return the facts a prompt tells, uint32 [W]: "full" (the paper's) or "compact" (far fewer scenes).

        Raises UserError for another form.
        """
        if form not in ("full", "compact"):
            raise UserError(f"crafter has no prompt form {form!r}; known: full, compact")
        untold = {"hungry", "thirsty", "hurt"}
        if form == "compact":
            untold |= {f for f in FACTS if f.startswith("facing ")} | {"see grass", "see path", "see lava"}
        return _mask(f for f in FACTS if f not in untold)

    def in_view_masks(self) -> np.ndarray:
        """Return per caption the facts of which one must hold, uint32 [C, W]; a zero row asks for nothing.

        A thing to be mined, eaten, attacked, chopped or drunk must be in view, a tool (never in view) at
        hand.
        """
        rows = [_mask([]) for _ in CAPTIONS]
        for i, pair in enumerate(PAIRS):
            verb, noun = pair.split(" ", 1)
            if verb not in ("place", "make"):
                rows[i + 1] = _mask(_visible_facts(noun) or [f"have {noun}"])
        return np.stack(rows)

    def grounding_masks(self) -> np.ndarray:
        """Return per caption the facts of which one must hold for its noun to be there, uint32 [C, W].

        The noun is in view, held, or (zero row: no condition) something to be made.
        """
        makeable = {"crafting table", "furnace", *TOOLS}
        rows = [_mask([]) for _ in CAPTIONS]
        for i, pair in enumerate(PAIRS):
            verb, noun = pair.split(" ", 1)
            if verb in ("place", "make") and noun in makeable:
                continue
            item = "sapling" if noun == "plant" else noun
            rows[i + 1] = _mask(_visible_facts(noun) + ([f"have {item}"] if item in ITEMS else []))
        return np.stack(rows)


def _visible_facts(noun):
    names = ("plant", "ripe plant") if noun == "plant" else (noun,)
    return [f"see {name}" for name in names if name in VISIBLE]


def _mask(facts):
    """Pack facts into uint32 [W]."""
    words = np.zeros(NUM_SCENE_WORDS, np.uint32)
    for fact in facts:
        index = FACTS.index(fact)
        words[index // 32] |= np.uint32(1 << (index % 32))
    return words
