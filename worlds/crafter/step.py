"""Craftax-Classic's step in other words, for speed, and what each action really does."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from craftax.craftax_classic import game_logic
from craftax.craftax_classic.constants import (
    CLOSE_BLOCKS,
    DIRECTIONS,
    SOLID_BLOCKS,
    Action,
    BlockType,
)
from craftax.craftax_classic.envs.craftax_state import (
    EnvParams,
    EnvState,
    Inventory,
    StaticEnvParams,
)
from flax import struct

from worlds.crafter.words import (
    ACHIEVEMENTS,
    BLOCK_OF,
    EFFECTS,
    MEANINGFUL,
    NOUNS,
    THINGS,
    TOOLS,
    VISIBLE,
)

DIAMOND_RADIUS = 14  # craftax's mob_despawn_distance: mobs live at a smaller Manhattan distance
STATIC = StaticEnvParams()


@struct.dataclass
class Front:
    """What the player faces: the cell and what is in it, mobs before the block."""

    position: jax.Array  # int32 [2]
    in_bounds: jax.Array  # bool []
    block: jax.Array  # int32 [], whatever stands on it; OUT_OF_BOUNDS outside
    zombies: jax.Array  # bool [3], which of them stand there
    skeletons: jax.Array  # bool [2]
    cows: jax.Array  # bool [3]
    mob: jax.Array  # bool [], any of them
    named: jax.Array  # uint32 [], bits over VISIBLE


def pack_state(state: EnvState) -> EnvState:
    """Return craftax's state as this world keeps it: map uint8 [64, 64], mob_map uint32 [64, 2].

    mob_map is packed to bits. A third of a world's bytes is what makes steps, resets and
    checkpoints quick.
    """
    lanes = state.mob_map.reshape(64, 2, 32).astype(jnp.uint32)
    lanes <<= np.arange(32, dtype=np.uint32)[None, None]
    return state.replace(map=state.map.astype(jnp.uint8), mob_map=lanes.sum(-1, dtype=jnp.uint32))


def unpack_state(state: EnvState) -> EnvState:
    """Return the state as craftax's own functions want it: map int32, mob_map bool, [64, 64]."""
    lanes = (state.mob_map[:, :, None] >> np.arange(32, dtype=np.uint32)[None, None]) & 1
    return state.replace(map=state.map.astype(jnp.int32), mob_map=lanes.reshape(64, 64) == 1)


def pack_bits(bits: Sequence[jax.Array]) -> jax.Array:
    """Pack a list of bool [] into one uint32, first bit lowest."""
    word = jnp.uint32(0)
    for i, bit in enumerate(bits):
        word |= bit.astype(jnp.uint32) << i
    return word


def _in_bounds(position: jax.Array) -> jax.Array:
    return (position[0] >= 0) & (position[0] < 64) & (position[1] >= 0) & (position[1] < 64)


def _same(a: jax.Array, b: jax.Array) -> jax.Array:
    """Whether two cells are the same."""
    return (a[0] == b[0]) & (a[1] == b[1])


def _block_at(state: EnvState, position: jax.Array) -> jax.Array:
    """Return the block at `position`, int32 [], OUT_OF_BOUNDS outside the map."""
    row, column = jnp.clip(position[0], 0, 63), jnp.clip(position[1], 0, 63)
    block = state.map[row, column].astype(jnp.int32)
    return jnp.where(_in_bounds(position), block, BlockType.OUT_OF_BOUNDS.value)


def _wrapped(position: jax.Array) -> jax.Array:
    """Return the cell that craftax reads for one beyond the top or left: on the other side."""
    return jnp.where(position < 0, position + 64, position)


def _mob_at(state: EnvState, position: jax.Array) -> jax.Array:
    """Return craftax's mob_map at `position` inside the map, bool []."""
    row, column = jnp.clip(position[0], 0, 63), jnp.clip(position[1], 0, 63)
    return ((state.mob_map[row, column >> 5] >> (column & 31).astype(jnp.uint32)) & 1) == 1


def find_front(state: EnvState) -> Front:
    """Return what the player faces."""
    position = state.player_position + DIRECTIONS[state.player_direction]
    zombies, skeletons, cows = (
        (mobs.position == position[None]).all(-1) & mobs.mask
        for mobs in (state.zombies, state.skeletons, state.cows)
    )
    block = _block_at(state, position)
    kinds = [zombies.any(), skeletons.any(), cows.any()]
    mob = kinds[0] | kinds[1] | kinds[2]
    named = pack_bits(kinds + [~mob & (block == BLOCK_OF[name]) for name in VISIBLE[3:]])
    return Front(position, _in_bounds(position), block, zombies, skeletons, cows, mob, named)


def faced_nouns(front: Front) -> jax.Array:
    """Return the bits over NOUNS of what is faced, uint32 []; a ripe plant is a plant."""
    plant, ripe = THINGS.index("plant"), VISIBLE.index("ripe plant")
    nouns = front.named & np.uint32((1 << len(THINGS)) - 1)
    return nouns | (((front.named >> ripe) & 1) << plant)


def held_nouns(inventory: Inventory) -> jax.Array:
    """Return the bits over NOUNS of what is held, uint32 []; a sapling is a plant."""
    held = {
        noun: getattr(inventory, noun.replace(" ", "_"))
        for noun in ("stone", "coal", "iron", "diamond", *TOOLS)
    }
    held["plant"] = inventory.sapling
    no = jnp.zeros((), bool)
    return pack_bits([held[noun] > 0 if noun in held else no for noun in NOUNS])


def _near(state: EnvState) -> jax.Array:
    """Return the blocks of the eight cells around the player, int32 [8], OUT_OF_BOUNDS outside."""
    cells = state.player_position[None] + CLOSE_BLOCKS
    inside = ((cells >= 0) & (cells < 64)).all(-1)
    blocks = state.map[jnp.clip(cells[:, 0], 0, 63), jnp.clip(cells[:, 1], 0, 63)].astype(jnp.int32)
    return jnp.where(inside, blocks, BlockType.OUT_OF_BOUNDS.value)


def _damage(inventory: Inventory) -> jax.Array:
    swords = (2 * inventory.wood_sword, 3 * inventory.stone_sword, 5 * inventory.iron_sword)
    damage = jnp.int32(1)
    for sword in swords:
        damage = jnp.maximum(damage, sword)
    return damage


def _solid(block: jax.Array) -> jax.Array:
    """Whether a block stops walking and placing."""
    solid = np.uint32(sum(1 << int(b) for b in np.asarray(SOLID_BLOCKS)))
    return ((solid >> block.astype(jnp.uint32)) & 1) == 1


def find_effects(state: EnvState, front: Front, sapling_gained: jax.Array) -> jax.Array:
    """Return the bits over EFFECTS of what each action would really do, uint32 [].

    Judged on the state before the step, awake; only whether grass yields a sapling must be given.
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
    return pack_bits([happened[name] for name in EFFECTS])


# THE STEP
# craftax_step in other words, for speed: one write to the map instead of copies of it, mobs one
# after another as scalars, all random bits at once. tests/test_crafter.py holds it to craftax_step
# bit for bit (spawn="craftax").
def _threefry(keys: jax.Array, count: jax.Array | int) -> jax.Array:
    """Return threefry2x32 of keys and the counters (0, count), uint32 [..., 2].

    On CPUs jax's own is slow.
    """
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


def _split_chain(key: jax.Array, go_right: Sequence[bool]) -> jax.Array:
    """Split a key again and again like jax.random.split; return the other children, uint32 [n, 2].

    The chain goes on with the first child, or with the second where `go_right`, bool [n].
    """

    def split(key, right):
        left_child, right_child = _threefry(key, 0), _threefry(key, 1)
        return jnp.where(right, right_child, left_child), right_child

    return jax.lax.scan(split, key, np.array(go_right))[1]


def _bits(keys: jax.Array, count: jax.Array | int = 0) -> jax.Array:
    """Return jax.random.bits of each key, uint32 [...].

    With an array `count`, those at its places of one key's.
    """
    out = _threefry(keys, count)
    return out[..., 0] ^ out[..., 1]


def uniform(keys: jax.Array, count: jax.Array | int = 0) -> jax.Array:
    """Return jax.random.uniform of each key, float32 [...].

    With an array `count`, those at its places of one key's.
    """
    bits = (_bits(keys, count) >> 9) | np.uint32(0x3F800000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32) - 1.0


def _act(
    state: EnvState, action: jax.Array, front: Front, grass_draw: jax.Array
) -> tuple[EnvState, jax.Array]:
    """Craft, interact and place as `do_crafting`, `do_action` and `place_block` do.

    One cell of the map may change. Return the state and whether a mob was killed.
    """
    inventory, block = state.inventory, front.block
    doing = action == Action.DO.value
    damage = _damage(inventory)
    effects = jax.lax.optimization_barrier(find_effects(state, front, grass_draw < 0.1))

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
        **{
            tool.replace(" ", "_"): getattr(inventory, tool.replace(" ", "_")) + made[tool]
            for tool in TOOLS
        },
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
    planted = (
        (slots == jnp.argmax(~state.growing_plants_mask)) & ~state.growing_plants_mask & puts_plant
    )

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
        growing_plants_positions=jnp.where(
            planted[:, None], front.position[None], state.growing_plants_positions
        ),
        growing_plants_age=jnp.where(eaten | planted, 0, state.growing_plants_age),
        growing_plants_mask=state.growing_plants_mask | planted,
        achievements=state.achievements | jnp.stack([unlocked[name] for name in ACHIEVEMENTS]),
    )
    return state, killed_zombie | killed_cow | killed_skeleton


def _move(state: EnvState, action: jax.Array) -> EnvState:
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


def _mark(state: EnvState, position: jax.Array, value: jax.Array | bool) -> EnvState:
    """Write one bit of mob_map; a cell beyond the map is left out."""
    row, column = position[0], position[1]
    bit = jnp.uint32(1) << (column & 31).astype(jnp.uint32)
    here = (np.arange(64)[:, None] == row) & (np.arange(2)[None] == column >> 5)
    words = state.mob_map
    return state.replace(
        mob_map=jnp.where(here, jnp.where(value, words | bit, words & ~bit), words)
    )


def _free(state: EnvState, position: jax.Array) -> jax.Array:
    """Whether a mob may go to `position`."""
    block = _block_at(state, position)
    blocked = _solid(block) | (block == BlockType.LAVA.value) | _mob_at(state, position)
    return _in_bounds(position) & ~blocked & ~_same(position, state.player_position)


def _go(
    state: EnvState, old: jax.Array, new: jax.Array, alive: jax.Array, stays: jax.Array
) -> EnvState:
    """Take a mob from its old cell to the new one in mob_map, unless it has gone too far."""
    state = _mark(state, old, _mob_at(state, old) & ~alive)
    return _mark(state, new, _mob_at(state, new) | stays)


def _toward(position: jax.Array, player: jax.Array, draw: jax.Array) -> jax.Array:
    """Return one step to the player along the longer axis, by chance if equal, int32 [2]."""
    away = jnp.abs(player - position)
    longest, total = jnp.maximum(away[0], away[1]), away[0] + away[1]
    first = (away[0] == longest).astype(jnp.float32) / total
    both = first + (away[1] == longest).astype(jnp.float32) / total
    rank = both * (1 - draw)
    axis = (first < rank).astype(jnp.int32) + (both < rank)
    return jnp.where(np.arange(2) == jnp.minimum(axis, 1), jnp.sign(player - position), 0)


def _update_mobs(
    key: jax.Array, state: EnvState, front: Front, killed: jax.Array, params: EnvParams
) -> tuple[EnvState, tuple[jax.Array, jax.Array]]:
    """Move zombies, cows, skeletons and arrows as `update_mobs` does.

    Return the state, and for each arrow the cell it struck and whether it broke it, which `_grow`
    writes. front, killed: the cell where a mob was killed in this step, whose entry in mob_map is
    cleared first.
    """
    zombie, cow, skeleton = [False, False, False, True], [False], [False, False, False]
    keys = _split_chain(key, [False] + 3 * zombie + [False] + 3 * cow + [False] + 2 * skeleton)
    zombie_keys, cow_keys, skeleton_keys = (
        keys[1:13].reshape(3, 4, 2),
        keys[14:17],
        keys[18:24].reshape(2, 3, 2),
    )
    turns = _bits(_threefry(jnp.concatenate([zombie_keys[:, 0], cow_keys, skeleton_keys[:, 0]]), 1))
    chances = uniform(
        jnp.concatenate([zombie_keys[:, 1:3].reshape(6, 2), skeleton_keys[:, 1:].reshape(4, 2)])
    )

    player = state.player_position
    state = _mark(state, front.position, _mob_at(state, front.position) & ~killed)
    woke = np.array([name == "wake up" for name in ACHIEVEMENTS])
    # What a mob sees and changes of the state; the map stays outside of the loops.
    moving = (
        "mob_map",
        "player_health",
        "is_sleeping",
        "achievements",
        "arrows",
        "arrow_directions",
    )

    def in_turn(move, state, mobs, *draws):
        """Let each of `mobs` move, one after another. Return the state and the mobs moved."""

        def turn(carry, x):
            now, moved = move(state.replace(**dict(zip(moving, carry, strict=True))), *x)
            return tuple(getattr(now, name) for name in moving), moved

        carry, moved = jax.lax.scan(
            turn, tuple(getattr(state, name) for name in moving), (mobs, *draws)
        )
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
        is_first = np.arange(STATIC.max_arrows) == jnp.argmax(~arrows.mask)
        shot = is_first & attacks & ~arrows.mask.all()
        new = jnp.where(open_cell & ~attacks, wish, old)
        stays = alive & (distance < params.mob_despawn_distance)
        state = _go(state, old, new, alive, stays).replace(
            arrows=arrows.replace(
                position=jnp.where(shot[:, None], old[None], arrows.position),
                mask=arrows.mask | shot,
            ),
            arrow_directions=jnp.where(shot[:, None], toward[None], state.arrow_directions),
        )
        cooldown = jnp.where(attacks, 4, skeleton.attack_cooldown - 1)
        return state, skeleton.replace(position=new, mask=stays, attack_cooldown=cooldown)

    state, zombies = in_turn(
        move_zombie, state, state.zombies, turns[:3], chances[:6].reshape(3, 2)
    )
    state, cows = in_turn(move_cow, state, state.cows, turns[3:6])
    state, skeletons = in_turn(
        move_skeleton, state, state.skeletons, turns[6:], chances[6:].reshape(2, 2)
    )

    alive, new = state.arrows.mask, state.arrows.position + state.arrow_directions
    struck = _wrapped(new)
    block = jax.vmap(_block_at, (None, 0))(state, struck)
    breaks = alive & (
        (block == BlockType.CRAFTING_TABLE.value) | (block == BlockType.FURNACE.value)
    )
    for i in range(1, STATIC.max_arrows):  # what an earlier arrow broke is open to a later one
        opened = ((struck[:i] == struck[i][None]).all(-1) & breaks[:i]).any()
        block = block.at[i].set(jnp.where(opened, BlockType.PATH.value, block[i]))
        breaks = breaks.at[i].set(breaks[i] & ~opened)
    passable = ~_solid(block) | (block == BlockType.WATER.value)
    hits = (new == player[None]).all(-1)
    goes_on = (
        jax.vmap(_in_bounds)(new) & passable & ~jax.vmap(_mob_at, (None, 0))(state, new) & ~hits
    )
    state = state.replace(
        zombies=zombies,
        cows=cows,
        skeletons=skeletons,
        player_health=state.player_health - 2 * (hits & alive).sum(),
        is_sleeping=state.is_sleeping & ~(hits & alive).any(),
        arrows=state.arrows.replace(position=new, mask=alive & goes_on),
    )
    return state, (struck, breaks)


def _grow(state: EnvState, broken: tuple[jax.Array, jax.Array]) -> EnvState:
    """Age the plants as `update_plants` does; write what ripens and what arrows broke to the map.

    Both are rare: the loop runs only in steps in which any world has such a cell.
    """
    age = (state.growing_plants_age + 1) * state.growing_plants_mask
    plants = state.growing_plants_positions
    ripe = (age >= 600) & (state.map[plants[:, 0], plants[:, 1]] != BlockType.RIPE_PLANT.value)
    pending = jnp.concatenate([broken[1], ripe])
    cells = jnp.concatenate([broken[0], plants])
    blocks = np.array(
        [BlockType.PATH.value] * len(broken[1]) + [BlockType.RIPE_PLANT.value] * len(plants),
        np.uint8,
    )

    def write(carry):
        pending, game_map = carry
        first = jnp.argmax(pending)
        cell = cells[first]
        game_map = game_map.at[cell[0], cell[1]].set(jnp.asarray(blocks)[first])
        return pending & (np.arange(len(blocks)) != first), game_map

    _, game_map = jax.lax.while_loop(lambda carry: carry[0].any(), write, (pending, state.map))
    return state.replace(map=game_map, growing_plants_age=age)


def spawn_mobs(key: jax.Array, state: EnvState, params: EnvParams) -> EnvState:
    """Spawn mobs as craftax does, but draw the row of a permitted cell and then its column.

    A row is as likely as the number of its permitted cells, a column as any other of its row: every
    permitted cell is equally likely, as in craftax. All three kinds take their chance and their
    cell from one draw.
    """
    size = 2 * DIAMOND_RADIUS - 1
    corner = jnp.clip(state.player_position - (DIAMOND_RADIUS - 1), 0, 64 - size)
    blocks = jax.lax.dynamic_slice(state.map, corner, (size, size))
    words = jax.lax.dynamic_slice(state.mob_map, (corner[0], 0), (size, 2))
    rows, columns = corner[0] + jnp.arange(size), corner[1] + jnp.arange(size)
    halves = jnp.where(columns[None] < 32, words[:, :1], words[:, 1:])
    occupied = ((halves >> (columns[None] & 31).astype(jnp.uint32)) & 1) == 1
    distance = (
        jnp.abs(rows - state.player_position[0])[:, None]
        + jnp.abs(columns - state.player_position[1])[None]
    )
    grass, path = blocks == BlockType.GRASS.value, blocks == BlockType.PATH.value
    within = distance < params.mob_despawn_distance
    darkness = jnp.square(1 - state.light_level)
    zombie_chance = params.spawn_zombie_base_chance + params.spawn_zombie_night_chance * darkness
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


def advance(
    key: jax.Array, state: EnvState, action: jax.Array, front: Front, params: EnvParams, spawn: str
) -> tuple[EnvState, jax.Array]:
    """Play one of the game's 17 actions like craftax_step, with a choice of spawn."""
    before = state
    action = jnp.where(state.is_sleeping, Action.NOOP.value, action)
    do_key, mobs_key, spawn_key, state_key = _split_chain(key, [False] * 4)
    state, killed = _act(state, action, front, uniform(_threefry(do_key, 1)))
    state = _move(state, action)
    state, broken = _update_mobs(mobs_key, state, front, killed, params)
    state = _grow(state, broken)
    if spawn == "fast":
        state = spawn_mobs(spawn_key, state, params)
    else:
        state = pack_state(game_logic.spawn_mobs(unpack_state(state), spawn_key, params, STATIC))
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
    return strong(state), reward


def strong(tree: Any) -> Any:
    """Give every leaf a dtype that does not depend on what it meets, so that loops can carry it."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)


def raw_key(key: jax.Array) -> jax.Array:
    """Return the uint32 data of a key of either kind: a state keeps one, as plain arrays."""
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
