"""Craftax-Classic played as the paper's text Crafter.

The game is craftax's; what stands here is its words (actions, captions, scenes, the oracle) and a faster step.
Indices: A actions, C captions, K achievements, F facts, W = ceil(F / 32) scene words. All methods of `Crafter` but
`describe` and the masks are pure and jittable and take one state; use vmap for many.
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
)
from craftax.craftax_classic.envs.craftax_state import EnvParams, EnvState, Inventory, StaticEnvParams
from craftax.craftax_classic.renderer import make_craftax_pixel_renderer, render_craftax_symbolic
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
NEEDS = {"hungry": "player_food", "thirsty": "player_drink", "hurt": "player_health", "sleepy": "player_energy"}
FACTS = tuple(f"see {x}" for x in VISIBLE) + tuple(f"facing {x}" for x in VISIBLE)
FACTS += tuple(f"have {x}" for x in ITEMS) + tuple(NEEDS)
LOW = 5  # a need is felt below this value of at most 9; our choice
NUM_SCENE_WORDS = -(-len(FACTS) // 32)

# Pairs that mean something in the game, with the game's action.
MEANINGFUL = {
    pair: Action.DO
    for pair in (
        "eat plant, eat cow, attack zombie, attack skeleton, attack cow, chop tree, chop grass, mine stone, "
        "mine coal, mine iron, mine diamond, drink water"
    ).split(", ")
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
    """Return names [A], the game's action [A], the caption claimed [A] and, for a DO, the noun that must be faced [A]."""
    if action_set == "pairs":
        names = (*MOVES, "sleep", *PAIRS)
        base = [*range(5), Action.SLEEP.value] + [MEANINGFUL.get(p, Action.NOOP).value for p in PAIRS]
        target = [EVER] * 6 + [
            NOUNS.index(p.split(" ", 1)[1]) if MEANINGFUL.get(p) is Action.DO else EVER for p in PAIRS
        ]
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


def _pack(bits):
    """Pack a list of bool [] into one uint32, first bit lowest."""
    word = jnp.uint32(0)
    for i, bit in enumerate(bits):
        word |= bit.astype(jnp.uint32) << i
    return word


def _in_bounds(position):
    return ((position >= 0) & (position < 64)).all()


def _block_at(state, position):
    """Return the block at `position`, OUT_OF_BOUNDS outside the map."""
    block = state.map[position[0], position[1]]
    return jnp.where(_in_bounds(position), block, BlockType.OUT_OF_BOUNDS.value)


def _front(state):
    position = state.player_position + DIRECTIONS[state.player_direction]
    zombies, skeletons, cows = (
        (mobs.position == position[None]).all(-1) & mobs.mask
        for mobs in (state.zombies, state.skeletons, state.cows)
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
    return jnp.where(inside, state.map[cells[:, 0], cells[:, 1]], BlockType.OUT_OF_BOUNDS.value)


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
    placing = free & ~state.mob_map[front.position[0], front.position[1]]
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
def _spawn(key, state, params):
    """Spawn mobs as craftax does, but draw the row and then the column of the cell, in the window mobs live in.

    A row is as likely as the number of its permitted cells, a column as any other of its row: every permitted cell
    is equally likely, as in craftax. All three kinds take their chance and their cell from one draw.
    """
    size = 2 * DIAMOND_RADIUS - 1
    corner = jnp.clip(state.player_position - (DIAMOND_RADIUS - 1), 0, 64 - size)
    blocks = jax.lax.dynamic_slice(state.map, corner, (size, size))
    occupied = jax.lax.dynamic_slice(state.mob_map, corner, (size, size))
    rows, columns = corner[0] + jnp.arange(size), corner[1] + jnp.arange(size)
    distance = jnp.abs(rows - state.player_position[0])[:, None] + jnp.abs(columns - state.player_position[1])[None]
    grass, path = blocks == BlockType.GRASS.value, blocks == BlockType.PATH.value
    within = distance < params.mob_despawn_distance
    zombie_chance = params.spawn_zombie_base_chance + params.spawn_zombie_night_chance * jnp.square(
        1 - state.light_level
    )
    draws = jax.random.uniform(key, (6,))
    kinds = {
        "cows": (grass & (distance > 3), params.spawn_cow_chance, params.cow_health),
        "zombies": ((grass | path) & (distance > 9), zombie_chance, params.zombie_health),
        "skeletons": (path & (distance > 9), params.spawn_skeleton_chance, params.skeleton_health),
    }
    mob_map = state.mob_map
    new = {}
    for i, (kind, (permitted, chance, health)) in enumerate(kinds.items()):
        mobs = getattr(state, kind)
        permitted = permitted & within & ~occupied
        counts = permitted.sum(1)
        upto = jnp.cumsum(counts)
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
        mob_map = mob_map.at[jnp.where(spawns, cell[0], 64), cell[1]].set(True, mode="drop")
    return state.replace(mob_map=mob_map, **new)


def _advance(key, state, action, params, spawn):
    """Play one of the game's 17 actions: craftax_step, with a choice of spawn. Return state, reward float32 []."""
    before = state
    action = jnp.where(state.is_sleeping, Action.NOOP.value, action)
    state = game_logic.do_crafting(state, action)
    key, do_key = jax.random.split(key)
    state = game_logic.do_action(do_key, state, action, STATIC)
    state = game_logic.place_block(state, action, STATIC)
    state = game_logic.move_player(state, action)
    key, mobs_key = jax.random.split(key)
    state = game_logic.update_mobs(mobs_key, state, params, STATIC)
    key, spawn_key = jax.random.split(key)
    if spawn == "fast":
        state = _spawn(spawn_key, state, params)
    else:
        state = game_logic.spawn_mobs(state, spawn_key, params, STATIC)
    state = game_logic.update_plants(state, STATIC)
    state = game_logic.update_player_intrinsics(state, action)
    state = game_logic.cap_inventory(state)
    state = game_logic.update_health(state)
    reward = (
        state.achievements.astype(jnp.float32).sum()
        - before.achievements.astype(jnp.float32).sum()
        + (state.player_health - before.player_health) * 0.1
    )
    _, state_key = jax.random.split(key)
    timestep = state.timestep + 1
    light = game_logic.calculate_light_level(timestep, params)
    state = state.replace(timestep=timestep, light_level=light, state_rng=state_key)
    return _strong(state), reward


def _strong(tree):
    """Give every leaf a dtype that does not depend on what it meets, so that loops can carry it."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)


def _raw(key):
    """Return the uint32 data of a key of either kind: the state keeps one, and checkpoints like plain arrays."""
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


# WHAT IS SEEN
def _view(state):
    """Return the blocks in the 7 x 9 view, int32 [7, 9], OUT_OF_BOUNDS outside the map."""
    rows = state.player_position[0] - OBS_DIM[0] // 2 + jnp.arange(OBS_DIM[0])
    columns = state.player_position[1] - OBS_DIM[1] // 2 + jnp.arange(OBS_DIM[1])
    inside = ((rows >= 0) & (rows < 64))[:, None] & ((columns >= 0) & (columns < 64))[None]
    blocks = state.map[jnp.clip(rows, 0, 63)[:, None], jnp.clip(columns, 0, 63)[None]]
    return jnp.where(inside, blocks, BlockType.OUT_OF_BOUNDS.value)


def _on_screen(state, mobs):
    """Return the index of each mob's cell in the flat view, int32 [M], and whether it is there, bool [M]."""
    shape = np.array(OBS_DIM, np.int32)
    local = mobs.position - state.player_position[None] + (shape // 2)[None]
    shown = ((local >= 0) & (local < shape[None])).all(-1) & mobs.mask
    return local[:, 0] * OBS_DIM[1] + local[:, 1], shown


def _seen(state):
    """Return the bits over VISIBLE of what is in view, uint32 []. Mobs and the player hide the block below."""
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


@lru_cache
def _renderer(block_pixels):
    return make_craftax_pixel_renderer(block_pixels)


def _pixels(state, block_pixels):
    with jax.numpy_rank_promotion("allow"):
        pixels = _renderer(block_pixels)(state)
    return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)


# THE WORLD
@dataclass(frozen=True)
class Crafter:
    """Crafter as the paper plays it, on Craftax-Classic.

    Arrows hide nothing; the view does not end at night: the words name what a captioner with all the state would.
    Under the rules `paper` an episode is shorter than a sapling needs to ripen (600 steps): nobody eats a plant.
    Raises UserError for an unknown option.
    """

    action_set: str = "pairs"  # "pairs": 139 verb-noun actions; "base": the game's 17
    caption_regime: str = "attempt"  # "attempt": the noun is faced or held; "effect": it really happened
    game_rules: str = "paper"  # "paper": one-hit mobs, 400 steps; "craftax": its defaults, 10,000 steps
    observation: str = "symbolic"  # or "pixels"
    spawn: str = "fast"  # or "craftax": its own spawn, the same game at a third of the speed
    name = "crafter"
    captions = CAPTIONS
    achievements = ACHIEVEMENTS
    facts = FACTS
    num_scene_words = NUM_SCENE_WORDS

    def __post_init__(self):
        options = {
            "action_set": ("pairs", "base"),
            "caption_regime": ("attempt", "effect"),
            "game_rules": ("paper", "craftax"),
            "observation": ("symbolic", "pixels"),
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
        return (1345,) if self.observation == "symbolic" else (63, 63, 3)

    def reset(self, key) -> EnvState:
        """Generate a new world."""
        return _strong(generate_world(_raw(key), self.params, STATIC))

    def step(self, key, state: EnvState, action) -> tuple[EnvState, Transition]:
        """Take one action, int [] below A. Nothing is reset."""
        _, base, claimed, target = (jnp.asarray(t) if i else t for i, t in enumerate(_action_tables(self.action_set)))
        front = _front(state)
        faced = _faced_nouns(front)
        played = jnp.where((((faced | np.uint32(1 << EVER)) >> target[action]) & 1) == 1, base[action], 0)
        after, reward = _advance(_raw(key), state, played, self.params, self.spawn)

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
        """Return float32 [1345] (symbolic, craftax's values) or uint8 [63, 63, 3] (pixels)."""
        if self.observation == "pixels":
            return _pixels(state, 7)
        with jax.numpy_rank_promotion("allow"):
            return render_craftax_symbolic(state)

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
        """Return the facts a prompt tells, uint32 [W]: "full" (the paper's) or "compact" (a quarter of the scenes).

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

        A thing to be mined, eaten, attacked, chopped or drunk must be in view, a tool (never in view) at hand.
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
