"""Pictures of a house made by hand: what they must show, and what they must not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.houses import build_house
from worlds.housekeep import view
from worlds.housekeep.agent import FORWARD, GRAB, LEFT, UP, PlainHouse
from worlds.housekeep.view import HUD, film_picture, first_person, make_view, top_view

MAP = """
##########
#a.b#...c#
#...+....#
#.>.#d...#
##########
"""
FURNITURE = {
    "a": [("counter", 1, 2), ("cupboard", 2, 1)],
    "b": [("sink", 1, 4), ("bin", 0, 1)],
    "c": [("bed", 0, 4), ("shelf", 2, 3)],
    "d": [("chair", 1, 1)],
}
COLOURS = {
    name: (20 * index + 30, 40, 200 - 20 * index)
    for index, name in enumerate(["counter", "cupboard", "sink", "bin", "bed", "shelf", "chair"])
}
OBJECTS = {
    "cup": ("kitchen sink", ["kitchen cupboard"]),
    "fork": ("kitchen sink", ["kitchen sink"]),
    "hat": ("bedroom shelf", ["bedroom shelf"]),
    "shoe": ("bedroom bed", ["bedroom chair"]),
}


@pytest.fixture(scope="module")
def house():
    return build_house(MAP, FURNITURE, OBJECTS)


@pytest.fixture(scope="module")
def tables(house):
    return make_view(house, COLOURS)


@pytest.fixture(scope="module")
def draw(tables):
    """Draw the two pictures of a moment in the plain house."""
    within, above = jax.jit(first_person), jax.jit(top_view)

    def pictures(played):
        pose, level, held = (jnp.int32(n) for n in (played.pose, played.level, played.held))
        place, seen = jnp.array(played.place), jnp.array(played.seen_receptacles)
        return (
            np.asarray(within(tables, pose, level, held, place)),
            np.asarray(above(tables, pose, held, place, seen)),
        )

    return pictures


def put(played, y, x, heading, level=1):
    """Set the agent somewhere."""
    played.y, played.x, played.heading, played.level = y, x, heading, level
    return played


def has(picture, colour):
    """Return whether a colour is in each of the pictures [..., H, W, 3]."""
    return (picture == np.array(colour, np.uint8)).all(-1).any((-1, -2))


def dim(colour):
    return np.round(np.array(colour) * view.DIM)


def test_places_and_things_show_if_and_only_if_they_are_in_view(house, tables):
    width = house.solid.shape[1]
    poses = np.flatnonzero(np.repeat(~house.solid.reshape(-1), 4)).astype(np.int32)
    played = PlainHouse(house)
    seen = []
    for pose in map(int, poses):
        seen.append(put(played, pose // 4 // width, pose // 4 % width, pose % 4).seen)
    seen = np.array(seen)  # [P, R]
    assert 0.1 < seen.mean() < 0.5

    draw_all = jax.jit(jax.vmap(first_person, (None, 0, None, None, None)))
    for level in range(3):
        args = jnp.int32(level), jnp.int32(-1), jnp.array(house.start)
        pictures = np.asarray(draw_all(tables, poses, *args))
        assert pictures.shape == (len(poses), 128, 128, 3) and pictures.dtype == np.uint8
        for index, receptacle in enumerate(house.receptacles):
            colour, in_level = COLOURS[receptacle.place], receptacle.level == level
            assert (has(pictures, colour) == (seen[:, index] & in_level)).all()
            assert (has(pictures, dim(colour)) == (seen[:, index] & (not in_level))).all()
        for thing, start in enumerate(house.start):
            shown = seen[:, start] & (house.receptacles[start].level == level)
            assert (has(pictures, view.OBJECTS[thing]) == shown).all()


def test_a_wall_hides_and_a_door_does_not(house, draw):
    played = PlainHouse(house)
    bed = dim(COLOURS["bed"])
    assert not has(draw(put(played, 1, 2, 1))[0], bed)  # straight ahead, behind the wall
    assert has(draw(put(played, 2, 3, 1))[0], bed)  # through the door
    behind = draw(put(played, 3, 1, 1))[0]  # the chair, straight ahead, of which nothing shows
    assert not has(behind, view.NAMED[view.HIDDEN])
    blank = draw(put(played, 3, 2, 2))[0][:-HUD]  # before a wall: it and the crosshair
    assert len(np.unique(blank.reshape(-1, 3), axis=0)) == 2


def test_nearer_walls_are_larger_and_lighter(house, draw):
    played = PlainHouse(house)

    def wall(x):
        picture = draw(put(played, 2, x, 3))[0].astype(int)  # towards the kitchen's west wall
        column = picture[:-HUD, 64]
        ground = np.flatnonzero((column == view.FLOORS[0]).all(-1))
        return ground[0] if len(ground) else 128 - HUD, column[20].sum()

    feet, lights = zip(*map(wall, (1, 2, 3)), strict=True)
    assert feet[0] > feet[1] > feet[2]
    assert lights[0] > lights[2]


def test_what_is_held_shows_below_and_nowhere_else(house, draw):
    played = put(PlainHouse(house), 3, 3, 0)  # two cells before the sink
    cup, fork = view.OBJECTS[:2]
    before = draw(played)[0]
    assert has(before[:-HUD], cup) and has(before[:-HUD], fork) and not has(before[-HUD:], fork)
    assert played.step(GRAB) == "pick up the cup"
    after = draw(played)[0]
    assert has(after[:-HUD], fork) and not has(after[:-HUD], cup)
    assert has(after[-HUD:], cup) and not has(after[-HUD:], fork)
    rows, columns = np.nonzero((after[-HUD:] == cup).all(-1))
    assert len(rows) > 100 and abs(columns.mean() - 63.5) < 1


def test_four_things_stand_side_by_side(house, draw):
    played = put(PlainHouse(house), 3, 3, 0)
    played.place = [[r.place for r in house.receptacles].index("sink")] * 4
    picture = draw(played)[0]
    columns = [np.nonzero((picture == thing).all(-1))[1].mean() for thing in view.OBJECTS[:4]]
    assert columns == sorted(columns) and min(np.diff(columns)) >= 2
    things = (picture == view.OBJECTS[0]).all(-1).any(1)
    assert not (things & ~(picture == COLOURS["sink"]).all(-1).any(1)).any()  # within its band


def test_brackets_show_what_is_within_reach_and_a_lamp_the_level(house, draw):
    played = PlainHouse(house)
    near = draw(put(played, 3, 3, 0))[0]
    assert has(near[:-HUD], view.NAMED[view.LIGHT])
    far = draw(put(played, 3, 3, 0, level=2))[0]  # the sink has no shelf
    assert not has(far[:-HUD], view.NAMED[view.LIGHT])
    assert has(far[:-HUD], view.NAMED[view.FAINT])
    lamps = [draw(put(played, 3, 3, 0, level))[0][-HUD:] for level in range(3)]
    rows = [np.nonzero((lamp == view.NAMED[view.LIGHT]).all(-1))[0].mean() for lamp in lamps]
    assert rows[0] > rows[1] > rows[2]


def test_from_above_things_are_marked_right_or_wrong(house, tables, draw):
    played = PlainHouse(house)
    side = tables.label.shape[-1]

    def cell(y, x):
        return draw(played)[1][y * side : (y + 1) * side, x * side : (x + 1) * side]

    good, bad = view.NAMED[view.GOOD], view.NAMED[view.BAD]
    cup, fork, hat, shoe = view.OBJECTS[:4]
    sink, bed = cell(1, 3), cell(1, 8)
    assert has(sink, cup) and has(sink, fork) and has(bed, hat) and has(bed, shoe)
    left, right = sink[:, : side // 3 + 1], sink[:, side // 3 + 1 :]
    assert has(left, bad) and not has(left, good)  # the cup
    assert has(right, good) and not has(right, bad)  # the fork
    shelf, floor = bed[: side // 3], bed[-(side // 3) :]
    assert has(shelf, hat) and has(shelf, good) and not has(shelf, bad)
    assert has(floor, shoe) and has(floor, bad) and not has(floor, good)
    assert not has(cell(1, 1), good) and not has(cell(1, 1), bad)

    for action in (LEFT, FORWARD):
        played.step(action)
    put(played, 3, 3, 0)
    played.step(GRAB)
    assert has(cell(3, 3), cup) and not has(cell(1, 3), cup)  # in the agent's hand
    put(played, 2, 1, 0, level=2)
    assert played.step(GRAB) == "place the cup in the kitchen cupboard"
    assert has(cell(1, 1), good) and not has(cell(1, 1), bad)


def test_from_above_the_field_of_view_is_light_and_what_was_not_seen_dark(house, tables, draw):
    played = put(PlainHouse(house), 3, 2, 0)  # as at the start, but to the north
    played.seen_receptacles = [False] * len(house.receptacles)
    above = draw(played)[1]
    assert has(above, view.NAMED[view.UNSEEN])
    assert not has(above, view.FLOORS[1]) and not has(above, COLOURS["bed"])
    assert has(above, dim(COLOURS["bed"]))
    played.step(UP)
    side, palette = tables.label.shape[-1], tables.palette
    floors, lit = tables.palette[tables.first_paint[0] :][:2], tables.first_paint[0] + 2
    corners = draw(played)[1][::side, ::side]  # a pixel that neither name nor agent cover
    assert (floors == np.array(view.FLOORS[:2])).all()
    width = house.solid.shape[1]
    for y, x in np.argwhere(~house.solid & (house.room_of == 0)):
        is_lit = tables.in_view[played.pose, y * width + x] or (y, x) == (played.y, played.x)
        expected = palette[lit] if is_lit else view.FLOORS[0]
        assert (corners[y, x] == expected).all()
    assert (corners[1, 5] == view.NAMED[view.UNSEEN]).all()
    played.seen_receptacles[[r.place for r in house.receptacles].index("chair")] = True
    assert has(draw(played)[1], view.FLOORS[1])
    assert (draw(played)[1][::side, ::side][1, 5] == view.FLOORS[1]).all()


def test_the_arrow_points_where_the_agent_looks(house, tables, draw):
    played, side = PlainHouse(house), tables.label.shape[-1]
    for heading, (dy, dx) in enumerate(((-1, 0), (0, 1), (1, 0), (0, -1))):
        above = draw(put(played, 2, 2, heading))[1]
        cell = above[2 * side : 3 * side, 2 * side : 3 * side]
        ys, xs = np.nonzero((cell == view.NAMED[view.LIGHT]).all(-1))
        middle = (side - 1) / 2
        heavy = ys.mean() - middle, xs.mean() - middle  # the tip is lighter than the tail
        assert heavy[0] * dy + heavy[1] * dx < -1
        assert abs(heavy[0] * dx + heavy[1] * dy) < 0.5


def test_a_film_shows_both_in_few_colours(house, tables, draw):
    played = PlainHouse(house)
    within, above = draw(played)
    args = (jnp.int32(n) for n in (played.pose, played.level, played.held))
    place, seen = jnp.array(played.place), jnp.array(played.seen_receptacles)
    film = np.asarray(jax.jit(film_picture)(tables, *args, place, seen))
    height, width = above.shape[:2]
    assert film.shape == (max(256, height), width + 264, 3) and film.dtype == np.uint8
    assert height <= 500 and width <= 700
    top = (film.shape[0] - height) // 2
    assert (film[top : top + height, :width] == above).all()
    top = (film.shape[0] - 256) // 2
    assert (film[top : top + 256 : 2, width + 8 :: 2] == within).all()
    assert len(np.unique(film.reshape(-1, 3), axis=0)) < 48


def test_large_houses_fit_into_a_film():
    lines = ["#" * 40] + ["#" + "." * 38 + "#"] * 26 + ["#" + ">a" + "." * 36 + "#", "#" * 40]
    house = build_house("\n".join(lines), {"a": [("chair", 1, 1)]}, {})
    side = make_view(house, {"chair": (200, 0, 0)}).label.shape[-1]
    assert side % 3 == 0 and 28 * side <= 500 and 40 * side <= 700


def test_a_place_without_a_colour_is_named(house):
    with pytest.raises(KeyError, match="chair"):
        make_view(house, {name: colour for name, colour in COLOURS.items() if name != "chair"})
