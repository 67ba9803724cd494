"""A house: rooms on a grid, receptacles in them, and what is reached and seen from every pose.

Axes: M rooms, R receptacles, O objects, P = H * W * 4 poses; pose (y * W + x) * 4 + heading.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LEVELS = ("floor", "table", "shelf")  # what a look can be at: 0, 1, 2
HEADINGS = ((-1, 0), (0, 1), (1, 0), (0, -1))  # (dy, dx) of north, east, south, west: 0 to 3
SIGHT = 12  # cells; farther away nothing is recognised


class Receptacle(NamedTuple):
    """A place that holds things."""

    name: str  # room and place, "kitchen counter"; unique in the house
    place: str  # "counter"
    room: int  # index into House.rooms
    cell: tuple[int, int]  # (y, x), solid; up to three share it, each at another level
    level: int  # 0, 1 or 2
    capacity: int  # things it holds, 1 to 4


@dataclass(frozen=True, eq=False)
class House:
    """A house, its objects, and where they stand at first and belong."""

    rooms: tuple[str, ...]  # [M]
    room_of: np.ndarray  # int8 [H, W], the room of a cell, -1 in walls and doors
    solid: np.ndarray  # bool [H, W], walls and furniture, where nobody walks
    receptacles: tuple[Receptacle, ...]  # [R]
    objects: tuple[str, ...]  # [O]
    start: np.ndarray  # int32 [O], the receptacle in which each object is at first
    right: np.ndarray  # bool [O, R], whether the object belongs there
    agent: tuple[int, int, int]  # (y, x, heading) at first
    forward: np.ndarray  # int32 [P], the pose after a step forward, the same where it is blocked
    visible: np.ndarray  # bool [P, R], in the field of view, see `find_cells_in_view`
    faced: np.ndarray  # int32 [P, 3], per level the receptacle within reach, -1: none

    @property
    def capacity(self) -> np.ndarray:
        """Things that each receptacle holds, int32 [R]."""
        return np.array([receptacle.capacity for receptacle in self.receptacles], np.int32)

    @property
    def level(self) -> np.ndarray:
        """Level of each receptacle, int32 [R]."""
        return np.array([receptacle.level for receptacle in self.receptacles], np.int32)

    @property
    def misplaced(self) -> np.ndarray:
        """Which objects stand wrong at first, bool [O]."""
        return ~self.right[np.arange(len(self.objects)), self.start]


def make_tables(
    room_of: np.ndarray, solid: np.ndarray, receptacles: Sequence[Receptacle]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return House.forward, House.visible and House.faced of a map.

    Faced is what stands straight ahead, one cell away, or two if the cell between is free.
    """
    height, width = solid.shape
    blocked = np.pad(solid, 2, constant_values=True)
    at = np.full((height + 4, width + 4, len(LEVELS)), -1, np.int32)
    for index, receptacle in enumerate(receptacles):
        y, x = receptacle.cell
        at[y + 2, x + 2, receptacle.level] = index

    def ahead(padded: np.ndarray, heading: int, cells: int) -> np.ndarray:
        dy, dx = HEADINGS[heading]
        y, x = 2 + cells * dy, 2 + cells * dx
        return padded[y : y + height, x : x + width]

    cell = np.arange(height * width).reshape(height, width)
    forward = np.empty((height, width, 4), np.int32)
    faced = np.empty((height, width, 4, len(LEVELS)), np.int32)
    for heading, (dy, dx) in enumerate(HEADINGS):
        stays = solid | ahead(blocked, heading, 1)
        forward[:, :, heading] = np.where(stays, cell, cell + dy * width + dx) * 4 + heading
        beyond = np.where(stays[..., None], -1, ahead(at, heading, 2))
        near = ahead(at, heading, 1)
        faced[:, :, heading] = np.where(solid[..., None], -1, np.where(near >= 0, near, beyond))
    in_view = find_cells_in_view(room_of, solid)
    cells = [y * width + x for y, x in (receptacle.cell for receptacle in receptacles)]
    return forward.reshape(-1), in_view[:, cells], faced.reshape(-1, len(LEVELS))


def find_cells_in_view(room_of: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """Return which cells are in the field of view of each pose, bool [P, H * W].

    A cell is in view if its centre lies within 45 degrees left and right of the heading, both
    included, at most SIGHT cells away, and the straight line from centre to centre crosses no wall
    (solid, of no room). The line may cross furniture, and may touch a wall's corner. The cell
    itself does not hide itself; the own cell, and all from within something solid, is not in view.
    """
    height, width = solid.shape
    walls = np.pad(solid & (room_of == -1), SIGHT, constant_values=True)
    in_view = np.zeros((height, width, 4, height, width), bool)
    reach = range(-SIGHT, SIGHT + 1)
    offsets = [(dy, dx) for dy in reach for dx in reach if 0 < dy * dy + dx * dx <= SIGHT * SIGHT]
    for dy, dx in offsets:
        free = ~solid
        for y, x in _crossed(dy, dx):
            free = free & ~walls[SIGHT + y :, SIGHT + x :][:height, :width]
        ys, xs = np.nonzero(free)
        inside = (ys + dy >= 0) & (ys + dy < height) & (xs + dx >= 0) & (xs + dx < width)
        ys, xs = ys[inside], xs[inside]
        for heading, (hy, hx) in enumerate(HEADINGS):
            if abs(dy * hx - dx * hy) <= dy * hy + dx * hx:  # sideways at most as far as ahead
                in_view[ys, xs, heading, ys + dy, xs + dx] = True
    return in_view.reshape(height * width * 4, height * width)


def _crossed(dy: int, dx: int) -> list[tuple[int, int]]:
    """Return the cells strictly between (0, 0) and (dy, dx) whose inside the line crosses."""
    ys, xs = range(min(0, dy), max(0, dy) + 1), range(min(0, dx), max(0, dx) + 1)
    between = [(y, x) for y in ys for x in xs if (y, x) not in ((0, 0), (dy, dx))]
    # A centre's distance from the line against the half width of a cell across the line.
    return [(y, x) for y, x in between if 2 * abs(y * dx - x * dy) < abs(dy) + abs(dx)]
