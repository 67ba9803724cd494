"""Houses made by hand from a map in letters."""

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from worlds.housekeep.house import HEADINGS, House, Receptacle, make_tables

AGENTS = "^>v<"  # by heading


def build_house(
    picture: str,
    furniture: Mapping[str, Sequence[tuple[str, int, int]]],
    objects: Mapping[str, tuple[str, Sequence[str]]],
    rooms: Sequence[str] = ("kitchen", "bedroom", "bathroom", "corridor"),
) -> House:
    """Build a house from its map: # wall, + door, . floor, letters furniture, ^ > v < the agent.

    furniture: for each letter (place, level, capacity); objects: where each stands at first and
    belongs, by receptacles' names. Rooms are named in the order in which the map shows them.
    """
    letters = np.array([list(line) for line in picture.split()])
    solid = ~np.isin(letters, [".", "+", *AGENTS])
    wall = letters == "#"
    room_of = _find_rooms(wall | (letters == "+"))
    names = tuple(rooms[: room_of.max() + 1])
    receptacles = tuple(
        Receptacle(f"{names[room_of[y, x]]} {place}", place, int(room_of[y, x]), (y, x), *numbers)
        for y, x in (tuple(map(int, cell)) for cell in np.argwhere(solid & ~wall))
        for place, *numbers in furniture[letters[y, x]]
    )
    index = {receptacle.name: i for i, receptacle in enumerate(receptacles)}
    right = np.zeros((len(objects), len(receptacles)), bool)
    for row, (_, belongs) in zip(right, objects.values(), strict=True):
        row[[index[name] for name in belongs]] = True
    ((y, x),) = np.argwhere(np.isin(letters, list(AGENTS)))
    return House(
        names,
        room_of,
        solid,
        receptacles,
        tuple(objects),
        np.array([index[start] for start, _ in objects.values()], np.int32),
        right,
        (int(y), int(x), AGENTS.index(letters[y, x])),
        *make_tables(room_of, solid, receptacles),
    )


def _find_rooms(between: np.ndarray) -> np.ndarray:
    """Number what is not `between` rooms, piece by piece, int8 [H, W], -1 between."""
    room_of = np.where(between, -1, -2).astype(np.int8)
    for y, x in np.argwhere(room_of == -2):
        if room_of[y, x] == -2:
            number, queue = room_of.max() + 1, deque([(y, x)])
            while queue:
                cell = queue.popleft()
                if room_of[cell] == -2:
                    room_of[cell] = number
                    queue.extend((cell[0] + dy, cell[1] + dx) for dy, dx in HEADINGS)
    return room_of
