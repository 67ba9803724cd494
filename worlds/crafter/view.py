"""What is seen of the text Crafter: the view, symbols, pictures, and observations packed."""

from collections.abc import Callable
from functools import lru_cache
from types import FunctionType

import jax
import jax.numpy as jnp
import numpy as np
from craftax.craftax_classic import renderer
from craftax.craftax_classic.constants import (
    OBS_DIM,
    BlockType,
    load_all_textures_given_size,
)
from craftax.craftax_classic.envs.craftax_state import EnvState, Mobs
from craftax.craftax_classic.renderer import make_craftax_pixel_renderer
from flax import struct

from worlds.crafter.step import pack_bits, uniform, unpack_state
from worlds.crafter.words import BLOCK_OF, ITEMS, NO_NOUN, NOUNS, TOOLS, VISIBLE

NUM_BITS = OBS_DIM[0] * OBS_DIM[1] * (len(BlockType) + 4)  # entries of `observe_symbolic` 0 or 1
NUM_NUMBERS = 22  # its other entries
NOUN_OF_BLOCK = np.full(len(BlockType), NO_NOUN, np.uint32)
for _name, _block in BLOCK_OF.items():
    if _name.removeprefix("ripe ") in NOUNS:
        NOUN_OF_BLOCK[_block] = NOUNS.index(_name.removeprefix("ripe "))


def _view(state: EnvState) -> jax.Array:
    """Return the blocks in the 7 x 9 view, int32 [7, 9], OUT_OF_BOUNDS outside the map."""
    rows = state.player_position[0] - OBS_DIM[0] // 2 + jnp.arange(OBS_DIM[0])
    columns = state.player_position[1] - OBS_DIM[1] // 2 + jnp.arange(OBS_DIM[1])
    inside = ((rows >= 0) & (rows < 64))[:, None] & ((columns >= 0) & (columns < 64))[None]
    blocks = state.map[jnp.clip(rows, 0, 63)[:, None], jnp.clip(columns, 0, 63)[None]].astype(
        jnp.int32
    )
    return jnp.where(inside, blocks, BlockType.OUT_OF_BOUNDS.value)


def _on_screen(state: EnvState, mobs: Mobs) -> tuple[jax.Array, jax.Array]:
    """Return each mob's cell in the flat view, int32 [M], and whether it is there, bool [M]."""
    shape = np.array(OBS_DIM, np.int32)
    local = mobs.position - state.player_position[None] + (shape // 2)[None]
    shown = ((local >= 0) & (local < shape[None])).all(-1) & mobs.mask
    return local[:, 0] * OBS_DIM[1] + local[:, 1], shown


def find_seen(state: EnvState) -> jax.Array:
    """Return the bits over VISIBLE of what is in view, uint32 [].

    Mobs and the player hide their block.
    """
    cells = np.arange(OBS_DIM[0] * OBS_DIM[1], dtype=np.int32)
    hidden = jnp.asarray(cells == cells[-1] // 2)
    kinds = []
    for mobs in (state.zombies, state.skeletons, state.cows):
        index, shown = _on_screen(state, mobs)
        hidden |= ((cells[:, None] == index[None]) & shown[None]).any(-1)
        kinds.append(shown.any())
    bits = jnp.where(
        hidden, jnp.uint32(0), jnp.uint32(1) << _view(state).reshape(-1).astype(jnp.uint32)
    )
    blocks = jax.lax.reduce(bits, jnp.uint32(0), jax.lax.bitwise_or, (0,))
    return pack_bits(kinds + [(blocks >> BLOCK_OF[name]) & 1 for name in VISIBLE[3:]])


def find_cells(state: EnvState, nouns: jax.Array) -> jax.Array:
    """Return in which cells of the flat view a thing of the noun set stands, bool [63].

    Mobs and the player hide their block, as in `find_seen`; a ripe plant is a plant.
    """
    cells = np.arange(OBS_DIM[0] * OBS_DIM[1], dtype=np.int32)
    hidden, found = jnp.asarray(cells == cells[-1] // 2), jnp.zeros(len(cells), bool)
    for kind in ("zombie", "skeleton", "cow"):
        index, shown = _on_screen(state, getattr(state, f"{kind}s"))
        there = ((cells[:, None] == index[None]) & shown[None]).any(-1)
        found |= there & (((nouns >> NOUNS.index(kind)) & 1) == 1)
        hidden |= there
    named = jnp.asarray(NOUN_OF_BLOCK)[_view(state).reshape(-1)]
    return found | (~hidden & (((nouns >> named) & 1) == 1))


def observe_symbolic(state: EnvState) -> jax.Array:
    """Return what craftax's render_craftax_symbolic does, float32 [1345]."""
    cells, width = np.arange(OBS_DIM[0] * OBS_DIM[1], dtype=np.int32), OBS_DIM[1]
    layers = [_view(state).reshape(-1)[:, None] == np.arange(len(BlockType))[None]]
    shape = np.array(OBS_DIM, np.int32)
    for mobs in (state.zombies, state.cows, state.skeletons, state.arrows):
        plane = jnp.zeros(len(cells), bool)
        for i in range(mobs.mask.shape[0]):
            local = mobs.position[i] - state.player_position + shape // 2
            shown = ((local >= 0) & (local < shape)).all() & mobs.mask[i]
            # As in craftax, one beyond the top or left of the view blanks the opposite cell.
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
    return jnp.concatenate(
        [blocks.astype(jnp.float32), numbers, direction.astype(jnp.float32), rest]
    )


@lru_cache
def _craftax_textures(block_pixels: int) -> dict[str, jax.Array]:
    # They are made of pictures, which must not become part of a traced program.
    with jax.ensure_compile_time_eval():
        return load_all_textures_given_size(block_pixels)


@lru_cache
def _renderer(block_pixels: int) -> Callable[[EnvState], jax.Array]:
    # craftax's own load_all_textures keeps a cache in the folder where craftax is installed, which
    # may be read-only or hold what another process is writing: here they are made each time.
    names = {"load_all_textures": lambda: {block_pixels: _craftax_textures(block_pixels)}}
    make = FunctionType(make_craftax_pixel_renderer.__code__, vars(renderer) | names)
    return make(block_pixels)


def draw_pixels(state: EnvState, block_pixels: int) -> jax.Array:
    """Return craftax's picture, uint8 [9 * block_pixels, 9 * block_pixels, 3]."""
    with jax.numpy_rank_promotion("allow"):
        pixels = _renderer(block_pixels)(unpack_state(state))
    return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)


# Craftax's picture in colour takes as long as twenty steps, this one as three. All that craftax
# does to colours is linear and alike for the three of them, so the grey of its picture is what
# its textures in grey make; tests/test_crafter.py compares.
BLOCK_PIXELS, FRAME_PIXELS = 9, 84
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
# What night and sleep are tinted with, as grey.
NIGHT, SLEEP = float(LUMINANCE @ [0, 16, 64]), float(LUMINANCE @ [0, 0, 16])
# The cells of the inventory, row by row: the state's number and what is drawn of it, the name of a
# texture or a block.
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
    """Craftax's textures in grey, float32.

    What moves is a pair [2, 9, 9]: grey times opacity, and 1 - opacity.
    """

    blocks: np.ndarray  # [17, 9, 9]
    players: np.ndarray  # [5, 2, 9, 9], left, right, up, down, asleep
    mobs: dict  # by kind, [2, 9, 9]
    arrows: np.ndarray  # [4, 2, 9, 9], flying up, down, left, right
    inventory: np.ndarray  # uint8 [20, 18, 9, 9], each of NUMBERS in each cell
    darkness: np.ndarray  # [7, 9, 9, 9], how strong the static of the night is


@lru_cache
def _textures() -> _Textures:
    textures = jax.tree.map(lambda x: np.asarray(x, np.float32), _craftax_textures(BLOCK_PIXELS))

    def pair(colours, opacity):
        return np.stack([colours @ LUMINANCE * opacity, 1 - opacity])

    zombie, cow, skeleton, up = (
        pair(textures[f"{kind}_texture"], textures[f"{kind}_texture_alpha"][..., 0])
        for kind in ("zombie", "cow", "skeleton", "arrow")
    )
    down = up[:, ::-1]
    inventory = np.zeros((len(NUMBERS), 2 * OBS_DIM[1], BLOCK_PIXELS, BLOCK_PIXELS), np.float32)
    for cell, source in enumerate(INVENTORY.values()):
        is_block = isinstance(source, BlockType)
        thing = textures["smaller_block_textures"][source.value] if is_block else textures[source]
        for tile, number in zip(inventory[:, cell], NUMBERS, strict=True):
            if number > 0:  # as in craftax, things are 0.8 of a cell and digits 0.6
                tile[:7, :7] = thing @ LUMINANCE
            digit = textures["number_textures"][number]
            opacity = textures["number_textures_alpha"][number, ..., 0]
            tile[3:8, 3:8] = tile[3:8, 3:8] * (1 - opacity) + digit @ LUMINANCE
    return _Textures(
        blocks=textures["block_textures"] @ LUMINANCE,
        players=np.stack(
            [pair(player[..., :3], player[..., 3] / 255) for player in textures["player_textures"]]
        ),
        mobs={"zombies": zombie, "cows": cow, "skeletons": skeleton},
        arrows=np.stack([up, down, up.swapaxes(1, 2), down.swapaxes(1, 2)]),
        inventory=np.round(inventory).astype(np.uint8),
        darkness=textures["night_noise_intensity_texture"][..., 0].reshape(
            OBS_DIM[0], BLOCK_PIXELS, OBS_DIM[1], BLOCK_PIXELS
        ),
    )


def draw_frame(state: EnvState) -> jax.Array:
    """Return craftax's picture in grey at 9 pixels a block, bordered in black, uint8 [84, 84]."""
    textures, width = _textures(), OBS_DIM[1]
    player = jnp.where(state.is_sleeping, 4, state.player_direction - 1)
    drawn = [(jnp.asarray(textures.players)[player], np.int32(OBS_DIM[0] * width // 2), True)]
    for kind, pair in textures.mobs.items():
        places = zip(*_on_screen(state, getattr(state, kind)), strict=True)
        drawn += [(pair, index, shown) for index, shown in places]
    turned = (state.arrow_directions > 0).any(-1) + 2 * (state.arrow_directions[:, 1] != 0)
    drawn += zip(
        jnp.asarray(textures.arrows)[turned], *_on_screen(state, state.arrows), strict=True
    )
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
        static = uniform(state.state_rng, row.astype(jnp.uint32) * pixels.size + places) * 95 + 32
        night = pixels + strength * darkness * (static - pixels)
        pixels = state.light_level * pixels + (1 - state.light_level) * (0.5 * night + 0.5 * NIGHT)
        pixels = jnp.where(state.is_sleeping, 0.5 * pixels + 0.5 * SLEEP, pixels)
        return jnp.round(pixels).astype(jnp.uint8)

    # Row by row: XLA would draw a whole picture pixel by pixel within the padding below, ten times
    # slower.
    view = jax.lax.map(draw_row, (jnp.arange(OBS_DIM[0]), _view(state), textures.darkness))
    numbers = [
        getattr(state if name.startswith("player") else state.inventory, name) for name in INVENTORY
    ]
    numbers = jnp.clip(jnp.pad(jnp.stack(numbers), (0, 2)), NUMBERS[0], NUMBERS[-1]) - NUMBERS[0]
    held = jnp.asarray(textures.inventory)[numbers, np.arange(2 * width)]
    held = held.reshape(2, width, BLOCK_PIXELS, BLOCK_PIXELS).transpose(0, 2, 1, 3)
    picture = jnp.concatenate([view, held]).reshape(width * BLOCK_PIXELS, width * BLOCK_PIXELS)
    border = FRAME_PIXELS - width * BLOCK_PIXELS
    return jnp.pad(picture, (border // 2, border - border // 2))


def pack_symbolic(observation: jax.Array) -> jax.Array:
    """Pack [..., 1345] into uint32 [..., 64], 42 words of bits and 22 floats."""
    bits, numbers = observation[..., :NUM_BITS] == 1, observation[..., NUM_BITS:]
    bits = jnp.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, -NUM_BITS % 32)])
    bits = bits.reshape(*bits.shape[:-1], -1, 32)
    words = pack_bits([bits[..., i] for i in range(32)])
    return jnp.concatenate([words, jax.lax.bitcast_convert_type(numbers, jnp.uint32)], -1)


def unpack_symbolic(packed: jax.Array) -> jax.Array:
    """Undo `pack_symbolic`, float32 [..., 1345]."""
    shifts = np.arange(32, dtype=np.uint32).reshape((1,) * packed.ndim + (32,))
    bits = (packed[..., :-NUM_NUMBERS, None] >> shifts) & 1
    bits = bits.reshape(*packed.shape[:-1], -1)[..., :NUM_BITS].astype(jnp.float32)
    numbers = jax.lax.bitcast_convert_type(packed[..., -NUM_NUMBERS:], jnp.float32)
    return jnp.concatenate([bits, numbers], -1)
