"""The oracle agent, the rules in plain Python, and the tables of a house against them."""

import copy
from collections import deque

import numpy as np
import pytest

from tests.helpers.houses import build_house
from worlds.housekeep import agent
from worlds.housekeep.agent import DOWN, FORWARD, GRAB, LEFT, RIGHT, UP, PlainHouse, plan

MAP = """
##########
#a.b#...c#
#...+....#
#.>.#d...#
##########
"""
FURNITURE = {
    "a": [("counter", 1, 2), ("cupboard", 2, 1)],
    "b": [("sink", 1, 1), ("bin", 0, 1)],
    "c": [("bed", 0, 4), ("shelf", 2, 3)],
    "d": [("chair", 1, 1)],
}
ROW = "#########\n#a..>..b#\n#########"


def two_rooms(**objects):
    return build_house(MAP, FURNITURE, objects)


def row(a, b, objects, picture=ROW):
    return build_house(picture, {"a": a, "b": b}, objects)


def carry(house, actions):
    """Play the actions; return the house after them and the captions of what was carried."""
    played = PlainHouse(house)
    captions = [played.step(action) for action in actions]
    return played, [caption for caption in captions if caption != "nothing"]


def shortest(house):
    """Return the length of the best plan: all states are searched, for one or two objects."""

    def key(played):
        stacks = tuple(tuple(played.standing_in(r)) for r in range(len(house.receptacles)))
        return played.y, played.x, played.heading, played.level, played.held, stacks

    begin = PlainHouse(house)
    queue, known = deque([(begin, 0)]), {key(begin)}
    while queue:
        played, steps = queue.popleft()
        if played.is_tidy:
            return steps
        for action in range(6):
            after = copy.copy(played)
            after.place, after.placed_at = list(played.place), list(played.placed_at)
            after.step(action)
            if key(after) not in known:
                known.add(key(after))
                queue.append((after, steps + 1))
    return None


# THE TABLES
def test_the_tables_of_a_house_are_what_the_plain_rules_say():
    house = two_rooms()
    width = house.solid.shape[1]
    free = np.flatnonzero(np.repeat(~house.solid.reshape(-1), 4))
    assert len(free) == 4 * 18
    for pose in map(int, free):
        played = PlainHouse(house)
        played.y, played.x, played.heading = pose // 4 // width, pose // 4 % width, pose % 4
        assert played.seen == house.visible[pose].tolist()
        for level in range(3):
            played.level = level
            assert played.faced == house.faced[pose, level]
        played.step(FORWARD)
        assert played.pose == house.forward[pose]
    inside = np.setdiff1d(np.arange(house.solid.size * 4), free)
    assert not house.visible[inside].any() and (house.faced[inside] == -1).all()


def sees(*lines):
    """Return whether the agent of a map without its outer walls sees the chair a."""
    inner = "".join(f"#{line}#\n" for line in lines)
    outer = "#" * (len(lines[0]) + 2) + "\n"
    house = build_house(outer + inner + outer, {"a": [("chair", 1, 1)], "b": [("sofa", 1, 1)]}, {})
    y, x, heading = house.agent
    seen = house.visible[(y * house.solid.shape[1] + x) * 4 + heading]
    return bool(seen[[receptacle.place for receptacle in house.receptacles].index("chair")])


def test_the_field_of_view_ends_45_degrees_aside_and_12_cells_away():
    assert sees("a..", "...", "..^")
    assert sees("..a", "...", "^..")
    assert not sees("a...", "....", "...^")
    assert not sees(".a^.") and not sees("^", "a") and sees("v", "a")
    assert sees("a...........<") and not sees("a............<")


def test_walls_hide_and_furniture_and_corners_do_not():
    assert not sees("a", "#", "^")
    assert not sees("..a", ".#.", "^..")
    assert not sees(".a", "#.", "^.") and not sees(".a", ".#", "^.")  # half of the way is wall
    assert sees("a", "b", "^")
    assert sees("..a", ".b.", "^..")
    assert sees("#a", "^.") and sees("#a", "^#")  # along the corner of a wall


def test_reach_is_two_cells_with_nothing_solid_between():
    def faced(line, level):
        picture = f"{'#' * len(line)}\n{line}\n{'#' * len(line)}"
        furniture = {"a": [("chair", 1, 1), ("mat", 0, 1)], "b": [("sofa", 1, 1), ("lamp", 2, 1)]}
        house = build_house(picture, furniture, {})
        y, x, heading = house.agent
        index = house.faced[(y * house.solid.shape[1] + x) * 4 + heading, level]
        return house.receptacles[index].place if index >= 0 else None

    assert [faced("#.>a#", level) for level in range(3)] == ["mat", "chair", None]
    assert [faced("#>.a#", level) for level in range(3)] == ["mat", "chair", None]
    assert [faced("#>..a#", level) for level in range(3)] == [None] * 3
    assert [faced("#>ab#", level) for level in range(3)] == ["mat", "chair", None]  # not the lamp
    assert [faced("#>+a#", level) for level in range(3)] == ["mat", "chair", None]
    assert [faced("#>#a#", level) for level in range(3)] == [None] * 3


# THE RULES
def test_the_agent_turns_walks_and_looks():
    played = PlainHouse(two_rooms())
    assert (played.y, played.x, played.heading, played.level) == (3, 2, 1, 1)
    for action in (UP, UP, RIGHT, FORWARD):
        assert played.step(action) == "nothing"
    assert (played.y, played.x, played.heading, played.level) == (3, 2, 2, 2)  # walls stop it
    for action in (LEFT, LEFT, FORWARD, DOWN, DOWN, DOWN):
        played.step(action)
    assert (played.y, played.x, played.heading, played.level) == (2, 2, 0, 0)
    assert played.timestep == 10


def test_what_is_placed_first_is_taken_first_and_a_full_place_refuses():
    b = [("cupboard", 1, 1), ("shelf", 2, 2)]
    objects = {
        "cup": ("kitchen counter", ["kitchen shelf"]),
        "fork": ("kitchen counter", ["kitchen shelf"]),
        "pan": ("kitchen cupboard", ["kitchen cupboard"]),
    }
    house = row([("counter", 1, 2)], b, objects, "#####\n#a<b#\n#####")
    played = PlainHouse(house)
    assert played.step(GRAB) == "pick up the cup"
    assert (played.held, played.place) == (0, [-1, 0, 1])
    for action in (LEFT, LEFT, GRAB):
        assert played.step(action) == "nothing"  # the cupboard is full
    assert played.held == 0
    assert [played.step(action) for action in (UP, GRAB)][1] == "place the cup in the kitchen shelf"
    assert (played.held, played.place, played.placed_at) == (-1, [2, 0, 1], [6, 0, 0])
    assert played.score == 2 / 3 and not played.is_tidy
    fetched = [played.step(action) for action in (LEFT, LEFT, DOWN, GRAB, LEFT, LEFT, UP, GRAB)]
    assert fetched[3] == "pick up the fork" and fetched[7] == "place the fork in the kitchen shelf"
    assert played.is_tidy and played.standing_in(2) == [0, 1]
    assert played.step(GRAB) == "pick up the cup"
    assert not played.is_tidy


def test_nothing_is_taken_from_nowhere_or_put_there():
    objects = {"cup": ("kitchen counter", ["kitchen sink"])}
    played = PlainHouse(row([("counter", 1, 1)], [("sink", 1, 1)], objects))
    assert played.step(GRAB) == "nothing"  # out of reach
    for action in (LEFT, LEFT, FORWARD, GRAB, LEFT):
        played.step(action)
    assert played.held == 0 and played.step(GRAB) == "nothing" and played.held == 0


def test_things_are_seen_only_at_the_level_in_view_and_remembered():
    objects = {
        "cup": ("kitchen counter", ["kitchen sink"]),
        "hat": ("kitchen cupboard", ["kitchen cupboard"]),
        "fork": ("kitchen sink", ["kitchen sink"]),
    }
    a, b = [("counter", 1, 1), ("cupboard", 2, 1)], [("sink", 1, 2)]
    played = PlainHouse(row(a, b, objects, "#######\n#a.<.b#\n#######"))
    see = ["see kitchen counter", "see kitchen cupboard"]
    assert played.facts() == ["cup in kitchen counter", *see, "empty hand"]
    played.step(UP)
    both = ["cup in kitchen counter", "hat in kitchen cupboard"]
    assert played.facts() == [*both, *see, "empty hand"]
    played.step(DOWN)
    played.step(GRAB)
    assert played.facts() == [*both, *see, "hold cup"], "where it stood is remembered"
    for action in (LEFT, LEFT, GRAB):
        played.step(action)
    seen = [*both, "fork in kitchen sink"]
    assert played.facts() == [*seen, *see, "see kitchen sink", "empty hand"]
    assert played.is_tidy


# THE PLAN
def test_one_thing_is_carried_by_the_shortest_way():
    cup = {"cup": ("kitchen cupboard", ["kitchen counter"])}
    a = [("counter", 1, 1), ("cupboard", 2, 1)]
    assert plan(row(a, [], cup, "#####\n#>.a#\n#####")) == [UP, GRAB, DOWN, GRAB]
    cup = {"cup": ("kitchen counter", ["kitchen sink"])}
    a, b = [("counter", 1, 1)], [("sink", 1, 1)]
    near = row(a, b, cup, "#######\n#a.>.b#\n#######")
    assert len(plan(near)) == 2 + 1 + 2 + 1
    far = row(a, b, cup)
    assert len(plan(far)) == 2 + 1 + 1 + 2 + 2 + 1
    played, captions = carry(far, plan(far))
    assert captions == ["pick up the cup", "place the cup in the kitchen sink"]
    assert played.is_tidy


def test_a_long_way_through_a_door_is_as_short_as_a_search_of_all_states_finds():
    for start, belongs in (
        ("kitchen cupboard", ["bedroom chair"]),
        ("bedroom shelf", ["kitchen bin"]),
        ("kitchen sink", ["kitchen counter", "bedroom bed"]),
    ):
        house = two_rooms(cup=(start, belongs))
        assert len(plan(house)) == shortest(house)


def test_a_tidy_house_is_left_alone():
    assert plan(two_rooms(cup=("kitchen sink", ["kitchen sink"]))) == []


def test_what_was_there_before_a_wrong_thing_is_moved_first():
    a, b = [("counter", 1, 2), ("cupboard", 2, 1)], [("sink", 1, 1)]
    objects = {
        "cup": ("kitchen counter", ["kitchen counter", "kitchen cupboard"]),
        "fork": ("kitchen counter", ["kitchen sink"]),
    }
    house = row(a, b, objects)
    played, captions = carry(house, plan(house))
    assert played.is_tidy and len(plan(house)) == shortest(house)
    assert captions == [
        "pick up the cup",
        "place the cup in the kitchen counter",
        "pick up the fork",
        "place the fork in the kitchen sink",
    ]
    # What is there already is in nobody's way.
    house = row(a, b, dict(reversed(objects.items())))
    played, captions = carry(house, plan(house))
    assert played.is_tidy and len(captions) == 2


def test_room_is_made_where_places_are_full():
    objects = {
        "fork": ("kitchen counter", ["kitchen sink"]),
        "cup": ("kitchen sink", ["kitchen counter"]),
    }
    full_a, b = [("counter", 1, 1)], [("sink", 1, 1)]
    house = row([*full_a, ("mat", 0, 1)], b, objects)
    played, captions = carry(house, plan(house))
    assert played.is_tidy and len(captions) == 6
    with pytest.raises(ValueError, match="no way was found to tidy the house"):
        plan(row(full_a, b, objects))
    # A right thing makes room for one that belongs nowhere else.
    objects["cup"] = ("kitchen sink", ["kitchen sink", "kitchen mat"])
    house = row([*full_a, ("mat", 0, 1)], b, objects)
    played, captions = carry(house, plan(house))
    assert played.is_tidy and captions[1] == "place the cup in the kitchen mat"


def test_a_house_that_cannot_be_tidied_is_refused(monkeypatch):
    a, b = [("counter", 1, 2)], [("sink", 1, 1)]
    both = {name: ("kitchen counter", ["kitchen sink"]) for name in ("cup", "fork")}
    with pytest.raises(ValueError, match="no right place has room for the fork"):
        plan(row(a, b, both))
    with pytest.raises(ValueError, match="no right place has room for the cup"):
        plan(row(a, b, {"cup": ("kitchen counter", [])}))
    walled = {"cup": ("kitchen counter", ["bedroom sink"])}
    with pytest.raises(ValueError, match="no way was found to tidy the house$"):
        plan(row(a, b, walled, "#########\n#a..>.#b#\n#########"))
    house = row(a, b, {"cup": ("kitchen counter", ["kitchen sink"])})
    monkeypatch.setattr(agent, "MAX_STEPS", 9)
    assert len(plan(house)) == 9
    monkeypatch.setattr(agent, "MAX_STEPS", 8)
    with pytest.raises(ValueError, match="within 8 steps"):
        plan(house)


def test_houses_at_random_are_tidied_or_refused_for_want_of_room():
    rng, tidied = np.random.default_rng(0), 0
    names = [receptacle.name for receptacle in two_rooms().receptacles]
    capacity = [receptacle.capacity for receptacle in two_rooms().receptacles]
    slots = [name for name, most in zip(names, capacity, strict=True) for _ in range(most)]
    for _ in range(30):
        starts = rng.choice(slots, 8, replace=False)
        objects = {
            f"thing {index}": (str(start), [str(name) for name in rng.choice(names, 2)])
            for index, start in enumerate(starts)
        }
        house = two_rooms(**objects)
        try:
            actions = plan(house)
        except ValueError as error:
            assert "no right place has room" in str(error)
            continue
        tidied += 1
        played = PlainHouse(house)
        for action in actions:
            assert not played.is_tidy
            played.step(action)
        assert played.is_tidy and len(actions) <= agent.MAX_STEPS
    assert tidied >= 10
