"""Pictures of a house: what the agent sees, the house from above, and both for a film.

The view from within is drawn column by column: a ray finds the wall, and every cell ahead is given
rows and columns of its own, so that no piece of furniture covers another, as in the tables of
what is visible only walls hide. A cell's rows depend on how far ahead it is, its columns on its
bearing too. All of a picture is first an index into the palette of the house, uint8.

Axes: H, W the house; P poses; M rooms; R receptacles; O objects; E cells ahead; k the pixels of a
cell from above.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from worlds.housekeep.house import HEADINGS, LEVELS, SIGHT, House, find_cells_in_view

Colour = tuple[int, int, int]

# COLOURS
INK, CEILING, FOG, BODY, HIDDEN, DOOR, LIT_DOOR, WALL = range(8)
UNSEEN, LABEL, LIGHT, FAINT, GOOD, BAD = range(8, 14)
NAMED = (
    (22, 25, 31),  # as the film's background
    (72, 78, 88),  # above the walls
    (44, 48, 56),  # farther than is seen
    (66, 54, 46),  # furniture where it holds nothing
    (56, 47, 42),  # furniture whose middle is out of view
    (150, 112, 72),
    (186, 144, 96),
    (96, 100, 110),  # a wall from above
    (38, 42, 50),  # floor of a room of which nothing was seen
    (112, 116, 124),
    (248, 248, 248),
    (128, 132, 140),
    (40, 200, 80),
    (232, 40, 40),
)
FLOORS = (  # by room
    (176, 170, 150),
    (150, 168, 176),
    (170, 152, 172),
    (150, 174, 154),
    (180, 158, 144),
    (156, 158, 182),
    (174, 174, 140),
    (146, 174, 172),
)
OBJECTS = (  # by object; bright, so that they stand out from furniture
    (255, 64, 160),
    (0, 224, 255),
    (255, 240, 32),
    (64, 96, 255),
    (160, 255, 64),
    (255, 128, 0),
    (190, 80, 255),
    (255, 228, 181),
    (0, 255, 176),
    (255, 176, 208),
)
SHADES = (1.0, 0.86, 0.72, 0.58)  # of a wall, from near to far
WALL_TINT, LIT, DIM = 0.8, 0.45, 0.5  # of a floor's colour; towards white; of a place's colour
GAP = 8  # pixels between the two pictures of a film
NOTHING = 255  # the palette's index of what is transparent

# THE VIEW FROM WITHIN
SIZE, HUD, HORIZON = 128, 14, 18  # pixels: the picture, the strip below the view, the row far away
ROWS = (32, 15, 10, 8, 6, 5, 4, 4, 3, 3, 3, 3)  # pixels that a cell 1 to SIGHT ahead takes
FEET = SIZE - HUD - np.append(0, np.cumsum(ROWS))  # row where the cell u + 1 ahead begins, [13]
SLOTS = 4  # things that a receptacle holds at most
# Cells (ahead, to the right) within 45 degrees, [E, 2], the nearest first; cell (u, v) is number
# u * u - 1 + v + u, and the last is the agent's own.
AHEAD = np.array([(u, v) for u in range(1, SIGHT + 1) for v in range(-u, u + 1)] + [(0, 0)])
NUM_AHEAD = len(AHEAD)
OFFSETS = np.stack(  # (dy, dx) of them for each heading, int [4, E, 2]
    [AHEAD @ np.array([HEADINGS[h], HEADINGS[(h + 1) % 4]]) for h in range(4)]
)


class Screen(NamedTuple):
    """Which part of which cell ahead each pixel of the view shows; alike for all houses."""

    floor: np.ndarray  # int32 [114, 128], the cell whose floor it is
    band: np.ndarray  # int32 [114, 128], cell * 3 + level of the furniture, E * 3: none
    slot: np.ndarray  # int32 [114, 128], cell * SLOTS + slot of the thing, E * SLOTS: none
    level: np.ndarray  # int32 [114, 1], level of the furniture in the row, -1: none
    edge: np.ndarray  # bool [114, 128], the dark edge around a thing near by
    core: np.ndarray  # bool [114, 128], the middle of the furniture, where things stand
    foot: np.ndarray  # int32 [114, 1], row on which the furniture stands
    crosshair: np.ndarray  # bool [3, 3, 114, 128], nothing faced, 1 or 2 cells away; by level
    held: np.ndarray  # bool [14, 128], the held thing in the strip below
    strip: np.ndarray  # uint8 [14, 128], paint of the rest of it
    lamps: np.ndarray  # bool [3, 14, 128], the level in view


def _cell_number(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the number of the cell `u` ahead and `v` to the right."""
    return u * u - 1 + v + u


def _make_screen() -> Screen:
    """Lay the cells ahead out on the picture."""
    height = SIZE - HUD
    rows, columns = np.arange(height), np.arange(SIZE) + 0.5
    slope = (columns - SIZE / 2) / (SIZE / 2)  # tangent of a column's bearing

    depth = np.interp(rows + 0.5, FEET[::-1], np.arange(SIGHT + 1)[::-1] + 0.5)[:, None]
    u = np.clip(np.floor(depth + 0.5), 1, SIGHT).astype(int)
    v = np.clip(np.floor(slope * depth + 0.5), -u, u).astype(int)
    floor = _cell_number(u, v)

    band = np.full((height, SIZE), NUM_AHEAD * len(LEVELS))
    slot = np.full((height, SIZE), NUM_AHEAD * SLOTS)
    level, foot = np.full((height, 1), -1), np.zeros((height, 1), int)
    edge, core = np.zeros((height, SIZE), bool), np.zeros((height, SIZE), bool)
    for u in range(1, SIGHT + 1):
        top, bottom = FEET[u], FEET[u - 1]
        wide = SIZE / 2 / u
        side = max(1, int(wide / 8))  # pixels of a slot
        v = np.arange(-u, u + 1)
        # At the edge of the field of view, the middle of the furniture is moved into the picture.
        centre = np.clip(np.rint(SIZE / 2 + wide * v), 2 * side, SIZE - 2 * side).astype(int)
        away = np.abs(columns[None] - centre[:, None])
        nearest = away.argmin(0)
        cell = _cell_number(np.full(SIZE, u), v[nearest])
        in_core = away.min(0) < 2 * side
        shown = in_core | (away.min(0) < 0.45 * wide)
        along = (columns - 0.5).astype(int) - centre[nearest] + 2 * side  # from the core's left end
        gap = (side >= 4) & (along % side == side - 1)
        of_slot = np.where(in_core & ~gap, cell * SLOTS + along // side, NUM_AHEAD * SLOTS)
        ends = [bottom - round((bottom - top) * part / len(LEVELS)) for part in range(4)]
        for index in range(len(LEVELS)):
            high, low = ends[index + 1], ends[index]
            band[high:low] = np.where(shown, cell * len(LEVELS) + index, NUM_AHEAD * len(LEVELS))
            level[high:low], foot[high:low], core[high:low] = index, bottom, in_core
            slot[high + (low - high >= 4) : low] = of_slot
            if side >= 8:
                edge[[high + 1, low - 1]] = in_core & ~gap
                edge[high + 1 : low] |= in_core & np.isin(along % side, (0, side - 2))

    ints = (array.astype(np.int32) for array in (floor, band, slot, level))
    return Screen(*ints, edge, core, foot.astype(np.int32), _draw_crosshairs(), *_draw_strip())


def _draw_crosshairs() -> np.ndarray:
    """Draw Screen.crosshair: a cross, or brackets around what is faced."""
    crosshair = np.zeros((3, len(LEVELS), SIZE - HUD, SIZE), bool)
    for index in range(len(LEVELS)):
        for near in range(3):
            top, bottom = (FEET[1], FEET[0]) if near == 1 else (FEET[2], FEET[1])
            high, low = (bottom - round((bottom - top) * part / 3) for part in (index + 1, index))
            mark = crosshair[near, index]
            if near:
                half = 21 if near == 1 else 11
                for left in (SIZE // 2 - half - 1, SIZE // 2 + half - 1):
                    mark[high:low, left : left + 2] = True
                for left in (SIZE // 2 - half, SIZE // 2 + half - 4):
                    mark[[high, low - 1], left : left + 4] = True
            else:
                middle = (high + low) // 2
                mark[middle, SIZE // 2 - 4 : SIZE // 2 + 5] = True
                mark[middle - 4 : middle + 5, SIZE // 2] = True
    return crosshair


def _draw_strip() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw Screen.held, strip and lamps."""
    held, lamps = np.zeros((HUD, SIZE), bool), np.zeros((len(LEVELS), HUD, SIZE), bool)
    strip = np.full((HUD, SIZE), INK, np.uint8)
    strip[0] = LABEL
    strip[2:, SIZE // 2 - 9 : SIZE // 2 + 9] = LABEL  # a frame for the hand
    held[3 : HUD - 1, SIZE // 2 - 8 : SIZE // 2 + 8] = True
    strip[held] = INK
    for index in range(len(LEVELS)):
        low = HUD - 1 - 4 * index
        lamps[index, low - 3 : low, 4:20] = True
    strip[lamps.any(0)] = LABEL
    return held, strip, lamps


class Rays(NamedTuple):
    """The cells that each column's ray enters, in order; alike for all houses."""

    cell: np.ndarray  # int [128, S], number of the cell entered, the last repeated
    before: np.ndarray  # int [128, S], the cell left
    row: np.ndarray  # int [128, S], row of the picture where it enters
    shade: np.ndarray  # int [128, S], index into SHADES


def _make_rays() -> Rays:
    """Follow a ray for each column until it is SIGHT cells ahead."""
    paths = []
    for column in range(SIZE):
        slope = (column + 0.5 - SIZE / 2) / (SIZE / 2)
        ahead = np.arange(SIGHT + 1) + 0.5
        sideways = ahead / abs(slope)
        crossings = [(depth, False) for depth in ahead]
        crossings += [(depth, True) for depth in sideways if depth < ahead[-1]]
        crossings.sort()
        path, before = [], NUM_AHEAD - 1
        for (depth, side), (following, _) in zip(crossings[:-1], crossings[1:], strict=True):
            middle = (depth + following) / 2
            u, v = np.floor(middle + 0.5), np.floor(middle * slope + 0.5)
            cell = int(_cell_number(u, v))
            row = round(np.interp(depth, np.arange(SIGHT + 1) + 0.5, FEET))
            shade = min(int(depth / 2.5) + side, len(SHADES) - 1)
            path.append((cell, before, row, shade))
            before = cell
        paths.append(path)
    longest = max(map(len, paths))
    padded = [path + path[-1:] * (longest - len(path)) for path in paths]
    return Rays(*np.moveaxis(np.array(padded), -1, 0))


SCREEN, RAYS = _make_screen(), _make_rays()


# THE TABLES OF A HOUSE
class View(NamedTuple):
    """What the pictures of one house are made from; every map is padded by SIGHT on each side."""

    palette: np.ndarray  # uint8 [256, 3]
    first_paint: np.ndarray  # int32 [4], where floors, receptacles, dim ones, objects begin in it
    wall_row: np.ndarray  # uint8 [P, 128], row of the picture where the wall of a column stands
    wall_paint: np.ndarray  # uint8 [P, 128]
    floor: np.ndarray  # uint8 [H + 24, W + 24], paint of the floor
    receptacle: np.ndarray  # int32 [H + 24, W + 24, 3], by level, -1: none
    cell: np.ndarray  # int32 [R, 2], of each receptacle, not padded
    room: np.ndarray  # int32 [H, W], index of the cell's room, -1: none
    room_has: np.ndarray  # bool [M, R], the receptacles of a room
    solid: np.ndarray  # bool [H, W]
    visible: np.ndarray  # bool [P, R]
    in_view: np.ndarray  # bool [P, H * W], cells in the field of view
    faced: np.ndarray  # int32 [P, 3]
    right: np.ndarray  # bool [O, R]
    label: np.ndarray  # bool [H, W, k, k], the names of the rooms
    arrow: np.ndarray  # uint8 [4, k, k], paint of the agent for each heading


def _mix(colour: Colour, other: Colour, part: float) -> Colour:
    return tuple(round(a + (b - a) * part) for a, b in zip(colour, other, strict=True))


def make_view(house: House, colours: Mapping[str, Colour]) -> View:
    """Make the tables of the pictures of `house` (host); `colours` are those of its places."""
    height, width = house.solid.shape
    num_rooms, num_receptacles = len(house.rooms), len(house.receptacles)
    floors = [FLOORS[room % len(FLOORS)] for room in range(num_rooms)]
    walls = [*floors, NAMED[WALL]]  # the last is seen from a door
    places = [colours[receptacle.place] for receptacle in house.receptacles]
    black, white = (0, 0, 0), (255, 255, 255)
    parts = [
        list(NAMED),
        floors,
        [_mix(floor, white, LIT) for floor in floors],
        [_mix(black, wall, WALL_TINT * shade) for wall in walls for shade in SHADES],
        places,
        [_mix(black, place, DIM) for place in places],
        [OBJECTS[index % len(OBJECTS)] for index in range(len(house.objects))],
    ]
    starts = np.cumsum([0] + [len(part) for part in parts])
    palette = np.zeros((256, 3), np.uint8)
    palette[: starts[-1]] = sum(parts, [])

    pad = ((SIGHT, SIGHT), (SIGHT, SIGHT))
    room = np.where(house.solid & (house.room_of < 0), -1, house.room_of).astype(np.int32)
    padded_room = np.pad(room, pad, constant_values=-1)
    wall = np.pad(house.solid & (house.room_of < 0), pad, constant_values=True)
    floor = np.where(padded_room >= 0, starts[1] + padded_room, DOOR).astype(np.uint8)
    receptacle_at = np.full((height + 2 * SIGHT, width + 2 * SIGHT, len(LEVELS)), -1, np.int32)
    for index, receptacle in enumerate(house.receptacles):
        y, x = receptacle.cell
        receptacle_at[y + SIGHT, x + SIGHT, receptacle.level] = index

    wall_row = np.empty((height, width, 4, SIZE), np.uint8)
    wall_paint = np.empty((height, width, 4, SIZE), np.uint8)
    ys, xs = np.mgrid[SIGHT : SIGHT + height, SIGHT : SIGHT + width, 0:1][:2]
    columns = np.arange(SIZE)
    for heading in range(4):
        around = ys + OFFSETS[heading, :, 0], xs + OFFSETS[heading, :, 1]
        hit = wall[around][..., RAYS.cell]
        first = hit.argmax(-1)
        ends = hit.any(-1)
        of_room = padded_room[around][..., RAYS.before][(*np.ogrid[:height, :width, :SIZE], first)]
        of_room = np.where(of_room < 0, num_rooms, of_room)
        paint = starts[3] + of_room * len(SHADES) + RAYS.shade[columns, first]
        wall_row[:, :, heading] = np.where(ends, RAYS.row[columns, first], HORIZON)
        wall_paint[:, :, heading] = np.where(ends, paint, FOG)

    pixels = _cell_pixels(height, width)
    of_receptacles = np.array([receptacle.room for receptacle in house.receptacles])
    return View(
        palette=palette,
        first_paint=starts[[1, 4, 5, 6]].astype(np.int32),
        wall_row=wall_row.reshape(-1, SIZE),
        wall_paint=wall_paint.reshape(-1, SIZE),
        floor=floor,
        receptacle=receptacle_at,
        cell=np.array([r.cell for r in house.receptacles], np.int32).reshape(num_receptacles, 2),
        room=room,
        room_has=np.arange(num_rooms)[:, None] == of_receptacles[None],
        solid=house.solid,
        visible=house.visible,
        in_view=find_cells_in_view(house.room_of, house.solid),
        faced=house.faced,
        right=house.right,
        label=_write_rooms(house, pixels),
        arrow=_draw_arrows(pixels),
    )


def _cell_pixels(height: int, width: int) -> int:
    """Return k: the house from above is at most 450 x 600 pixels, up to 37 x 50 cells."""
    return max(12, min(30, 450 // height, 600 // width) // 3 * 3)


def _write_rooms(house: House, pixels: int) -> np.ndarray:
    """Write each room's name where it has most floor side by side, bool [H, W, k, k]."""
    height, width = house.solid.shape
    image = Image.new("1", (width * pixels, height * pixels))
    draw = ImageDraw.Draw(image)
    draw.fontmode = "1"
    font = ImageFont.load_default(size=max(9, pixels * 0.45))
    for index, name in enumerate(house.rooms):
        free = (house.room_of == index) & ~house.solid
        runs, run = np.zeros((height, width), int), np.zeros(height, int)
        for x in range(width):
            run = np.where(free[:, x], run + 1, 0)
            runs[:, x] = run
        best = [(y, x) for y, x in zip(*np.nonzero(runs == runs.max()), strict=True)]
        y, x = best[len(best) // 2]
        middle = (x + 1 - runs.max() / 2) * pixels, (y + 0.5) * pixels
        draw.text(middle, name, 1, font, anchor="mm")
    return np.asarray(image).reshape(height, pixels, width, pixels).swapaxes(1, 2)


def _draw_arrows(pixels: int) -> np.ndarray:
    """Draw the agent for each heading, uint8 [4, k, k]: a light arrow with a dark edge."""

    def arrow(inset: float) -> np.ndarray:
        rows, columns = np.mgrid[:pixels, :pixels] + 0.5
        aside = np.abs(columns - pixels / 2)
        wide = (rows - 2 * inset) * 0.55 - inset / 2
        return (aside <= wide) & (rows <= pixels - inset) & (rows > inset)

    edge, inner = arrow(1), arrow(2.5)
    north = np.where(inner, LIGHT, np.where(edge, INK, NOTHING)).astype(np.uint8)
    return np.stack([np.rot90(north, -heading) for heading in range(4)])


# PICTURES
def _stand(place: jax.Array, num_receptacles: int) -> tuple[jax.Array, jax.Array]:
    """Return what stands in which slot, int32 [R + 1, SLOTS], -1: nothing, and how many, [R + 1].

    Things of a receptacle stand in the order of their numbers; the last row is of no receptacle.
    """
    objects = jnp.arange(place.shape[0], dtype=jnp.int32)
    together = (place[:, None] == place[None]) & (objects[:, None] > objects[None])
    rank = together.sum(-1)
    # What is held stands nowhere: its row is out of bounds and dropped.
    row = jnp.where(place < 0, num_receptacles + 1, place)
    slots = jnp.full((num_receptacles + 1, SLOTS), -1, jnp.int32)
    count = jnp.zeros(num_receptacles + 1, jnp.int32).at[row].add(1, mode="drop")
    return slots.at[row, rank].set(objects, mode="drop"), count


def first_person(
    view: View, pose: jax.Array, level: jax.Array, held: jax.Array, place: jax.Array
) -> jax.Array:
    """Draw what the agent sees, uint8 [128, 128, 3].

    pose, level, held: int32 []; place: int32 [O]. Every receptacle that is visible shows in its
    place's colour, dim but for the level in view, at which things show as well.
    """
    width = view.room.shape[1]
    num_receptacles = view.cell.shape[0]
    _, bright, dim, thing = (jnp.asarray(view.first_paint)[i] for i in range(4))
    y, x, heading = pose // 4 // width, pose // 4 % width, pose % 4
    around = jnp.asarray(OFFSETS)[heading] + (jnp.stack([y, x]) + SIGHT)[None]
    floor = jnp.asarray(view.floor)[around[:, 0], around[:, 1]]
    owner = jnp.asarray(view.receptacle)[around[:, 0], around[:, 1]]  # [E, 3]

    # FURNITURE: a level without a receptacle is open above the highest, else closed.
    visible = jnp.asarray(view.visible)[pose]
    shown = (owner >= 0) & visible[owner]
    in_level = np.arange(len(LEVELS))[None] == level
    colour = owner + jnp.where(in_level, bright, dim)
    filled = jax.lax.cummax(owner, axis=1, reverse=True) >= 0
    closed = jnp.where(shown.any(-1, keepdims=True), BODY, HIDDEN)
    bands = jnp.where(shown, colour, jnp.where(filled, closed, NOTHING)).astype(jnp.uint8)
    bands = jnp.append(bands.reshape(-1), np.uint8(NOTHING))
    # THINGS
    slots, _ = _stand(place, num_receptacles)
    things = slots[jnp.where(shown, owner, num_receptacles)[:, level]]
    things = jnp.where(things >= 0, thing + things, NOTHING).astype(jnp.uint8)
    things = jnp.append(things.reshape(-1), np.uint8(NOTHING))

    # PIXELS
    row = np.arange(SIZE - HUD, dtype=np.int32)[:, None]
    wall_row = jnp.asarray(view.wall_row)[pose].astype(jnp.int32)[None]
    wall_top = HORIZON - (wall_row - HORIZON) * HORIZON // (SIZE - HUD - HORIZON)
    wall = jnp.where(row < wall_top, CEILING, jnp.asarray(view.wall_paint)[pose][None])
    picture = jnp.where(row < wall_row, wall.astype(jnp.uint8), floor[SCREEN.floor])
    # What is visible behind the edge of a wall shows its middle in any case.
    band = bands[SCREEN.band]
    before_wall = (SCREEN.foot > wall_row) | (SCREEN.core & (band != HIDDEN))
    band = jnp.where(before_wall, band, NOTHING)
    picture = jnp.where(band != NOTHING, band, picture)
    placed = jnp.where(SCREEN.level == level, things[SCREEN.slot], NOTHING)
    placed_paint = jnp.where(SCREEN.edge, jnp.uint8(INK), placed)
    picture = jnp.where(placed != NOTHING, placed_paint, picture)

    # CROSSHAIR AND HAND
    faced = jnp.asarray(view.faced)[pose, level]
    far = jnp.abs(jnp.asarray(view.cell)[faced] - jnp.stack([y, x])).sum()
    near = jnp.where(faced >= 0, far, 0)
    aim = jnp.where(faced >= 0, LIGHT, FAINT).astype(jnp.uint8)
    picture = jnp.where(jnp.asarray(SCREEN.crosshair)[near, level], aim, picture)
    in_hand = jnp.where(held >= 0, thing + held, INK).astype(jnp.uint8)
    strip = jnp.where(SCREEN.held, in_hand, SCREEN.strip)
    strip = jnp.where(jnp.asarray(SCREEN.lamps)[level], jnp.uint8(LIGHT), strip)
    return jnp.asarray(view.palette)[jnp.concatenate([picture, strip])]


def top_view(
    view: View,
    pose: jax.Array,
    held: jax.Array,
    place: jax.Array,
    seen_receptacles: jax.Array,
) -> jax.Array:
    """Draw the house from above, uint8 [H * k, W * k, 3].

    pose, held: int32 []; place: int32 [O]; seen_receptacles: bool [R]. A piece of furniture has a
    strip for each level, the floor's lowest. Things are underlined in green where they stand right,
    in red elsewhere. The field of view is light; rooms of which nothing was seen are dark.
    """
    height, width = view.room.shape
    num_receptacles, pixels = view.cell.shape[0], view.label.shape[-1]
    floors, bright, dim, thing = (jnp.asarray(view.first_paint)[i] for i in range(4))
    room = jnp.asarray(view.room)

    # FLOORS
    has = jnp.asarray(view.room_has)
    seen_room = (has & seen_receptacles[None]).any(-1) | ~has.any(-1)
    in_view = jnp.asarray(view.in_view)[pose].reshape(height, width)
    in_view |= jnp.arange(height * width).reshape(height, width) == pose // 4
    # The palette has all the floors, then all of them lit.
    floor = jnp.where(in_view, has.shape[0], 0) + floors + room
    floor = jnp.where(in_view | seen_room[room], floor, UNSEEN)
    door = jnp.where(in_view, LIT_DOOR, DOOR)
    ground = jnp.where(room >= 0, floor, jnp.where(view.solid, WALL, door))[:, :, None, None]
    picture = jnp.where(jnp.asarray(view.label) & (ground != WALL), LABEL, ground)

    # FURNITURE AND THINGS: within a strip, a row of its edge, then the things and their marks.
    owner = jnp.asarray(view.receptacle)[SIGHT:-SIGHT, SIGHT:-SIGHT]
    owner = jnp.where(owner >= 0, owner, num_receptacles)
    seen = jnp.append(seen_receptacles, False)
    paint = jnp.where(seen[owner], bright, dim) + owner
    paint = jnp.where(owner < num_receptacles, paint, BODY)
    slots, count = _stand(place, num_receptacles)

    strip = pixels // 3
    level = len(LEVELS) - 1 - np.arange(pixels) // strip  # of each row of a cell
    within = np.arange(pixels) % strip
    inner = pixels - 2
    column = np.arange(pixels) - 1
    border = (within == 0)[:, None] | ((column < 0) | (column >= inner))[None]
    mark = within >= strip - max(1, strip // 4)
    of_row = owner[:, :, level][..., None]  # [H, W, k, 1]
    # A thing is at most as wide as high; four of them fill the cell.
    wide = jnp.minimum(strip, inner // jnp.maximum(count, 1))[of_row]
    slot, along = column[None, None, None] // wide, column[None, None, None] % wide
    in_slot = (slot < count[of_row]) & (along < wide - 1) & ~border[None, None]
    stands = jnp.where(in_slot, slots[of_row, jnp.clip(slot, 0, SLOTS - 1)], -1)
    is_right = jnp.append(jnp.asarray(view.right), np.zeros((view.right.shape[0], 1), bool), axis=1)
    marks = jnp.where(is_right[stands, of_row], GOOD, BAD)
    things = jnp.where(mark[None, None, :, None], marks, thing + stands)
    furniture = jnp.where(border[None, None], BODY, paint[:, :, level][..., None])
    furniture = jnp.where(stands >= 0, things, furniture)
    is_furniture = (jnp.asarray(view.solid) & (room >= 0))[:, :, None, None]
    picture = jnp.where(is_furniture, furniture, picture)

    # THE AGENT, with what it holds
    y, x = pose // 4 // width, pose // 4 % width
    arrow = jnp.asarray(view.arrow)[pose % 4]
    middle = np.abs(np.arange(pixels) - (pixels - 1) / 2) <= pixels / 6
    carried = jnp.where(held >= 0, thing + held, arrow)
    arrow = jnp.where(middle[:, None] & middle[None], carried, arrow)
    picture = picture.at[y, x].set(jnp.where(arrow == NOTHING, picture[y, x], arrow))
    flat = picture.swapaxes(1, 2).reshape(height * pixels, width * pixels)
    return jnp.asarray(view.palette)[flat]


def film_picture(
    view: View,
    pose: jax.Array,
    level: jax.Array,
    held: jax.Array,
    place: jax.Array,
    seen_receptacles: jax.Array,
) -> jax.Array:
    """Draw the house from above and, twice as large, what the agent sees beside it, for films.

    Shapes as in `first_person` and `top_view`; uint8 [max(H * k, 256), W * k + 264, 3].
    """
    above = top_view(view, pose, held, place, seen_receptacles)
    within = first_person(view, pose, level, held, place).repeat(2, 0).repeat(2, 1)
    height, left = max(above.shape[0], within.shape[0]), above.shape[1]
    shape = (height, left + GAP + within.shape[1], 3)
    picture = jnp.broadcast_to(np.array(NAMED[INK], np.uint8)[None, None], shape)
    top = (height - above.shape[0]) // 2
    picture = picture.at[top : top + above.shape[0], :left].set(above)
    top = (height - within.shape[0]) // 2
    return picture.at[top : top + within.shape[0], left + GAP :].set(within)
