"""Where furniture stands and how high: our own table for the places that objects are kept in."""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

from worlds.housekeep.house import LEVELS

FLOOR, TABLE, SHELF = range(len(LEVELS))
TURN = 0.618  # of the colour wheel from one place's colour to the next
MUTED = (0.4, 0.7), (0.55, 0.8), (0.35, 0.55)  # saturation and value, in turn

# Six of them, in any order, around a corridor.
ROOMS = ("kitchen", "living room", "bedroom", "bathroom", "child's room", "home office")
CORRIDOR = "corridor"


class Place(NamedTuple):
    """A kind of furniture: the rooms it may stand in, its level, how many things it holds."""

    rooms: tuple[str, ...]
    level: int
    capacity: int = 3


_BEDROOMS = ("bedroom", "child's room")
_SITTING = ("living room", "home office")

# The 39 places of TextWorld Commonsense.
PLACES = {
    "TV stand": Place(("living room",), TABLE),
    "armchair": Place(_SITTING, FLOOR, 2),
    "bathroom cabinet": Place(("bathroom",), SHELF, 4),
    "bathtub": Place(("bathroom",), FLOOR),
    "bed": Place(_BEDROOMS, FLOOR, 4),
    "bookcase": Place((*_SITTING, "child's room"), SHELF, 4),
    "chest of drawers": Place(_BEDROOMS, TABLE, 4),
    "clothes drier": Place(("bathroom",), TABLE),
    "clothesline": Place(("bathroom",), SHELF, 4),
    "coat hanger": Place((CORRIDOR,), SHELF, 2),
    "coffee table": Place(("living room",), TABLE),
    "counter": Place(("kitchen",), TABLE, 4),
    "cutlery drawer": Place(("kitchen",), TABLE, 4),
    "desk": Place(("home office", "child's room"), TABLE, 4),
    "dishwasher": Place(("kitchen",), FLOOR, 4),
    "dressing table": Place(("bedroom",), TABLE),
    "end table": Place(("living room",), TABLE, 2),
    "fridge": Place(("kitchen",), SHELF, 4),
    "hat rack": Place((CORRIDOR,), SHELF, 2),
    "key holder": Place((CORRIDOR,), TABLE, 2),
    "kitchen cupboard": Place(("kitchen",), SHELF, 4),
    "laundry basket": Place(("bathroom", *_BEDROOMS), FLOOR, 4),
    "nightstand": Place(_BEDROOMS, TABLE, 2),
    "pedal bin": Place(("kitchen", "bathroom"), FLOOR),
    "shelf": Place(("kitchen",), SHELF, 4),
    "shoe cabinet": Place((CORRIDOR,), FLOOR, 4),
    "shower": Place(("bathroom",), TABLE, 2),
    "side table": Place((*_SITTING, "bedroom"), TABLE, 2),
    "sink": Place(("kitchen", "bathroom"), TABLE, 2),
    "sofa": Place(("living room",), FLOOR, 4),
    "suspended shelf": Place((*_SITTING, "child's room"), SHELF),
    "toilet roll holder": Place(("bathroom",), TABLE, 1),
    "towel rail": Place(("bathroom",), SHELF, 2),
    "trash can": Place(("kitchen", "home office"), FLOOR),
    "umbrella stand": Place((CORRIDOR,), FLOOR, 2),
    "wall hook": Place((CORRIDOR, "bathroom"), SHELF, 1),
    "wardrobe": Place(_BEDROOMS, SHELF, 4),
    "washing machine": Place(("bathroom",), FLOOR, 4),
    "wastepaper basket": Place(("home office", "child's room"), FLOOR),
}

# Places that people ranked in each room; those not named here are at the height of a table.
LOW = ("basket", "bathtub", "bed", "bottom cabinet", "carpet", "chair", "chest", "dishwasher")
LOW += ("dryer", "office chair", "oven", "sofa", "sofa chair", "stool", "toilet", "treadmill")
LOW += ("washer",)
HIGH = ("shelf", "top cabinet", "fridge", "microwave")


def place_of(name: str, room: str) -> Place:
    """Return the place that people ranked in a room."""
    level = FLOOR if name in LOW else SHELF if name in HIGH else TABLE
    return Place((room,), level, 4)


def colours(places: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Return a colour for each place, all different and duller than those of things."""
    found = {}
    for number, place in enumerate(dict.fromkeys(places)):
        shade = colorsys.hsv_to_rgb(number * TURN % 1, *MUTED[number % len(MUTED)])
        found[place] = tuple(round(255 * part) for part in shade)
    return found
