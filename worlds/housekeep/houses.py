"""Houses drawn from a seed: rooms around a corridor, furniture, things standing right or wrong."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from lab.errors import UserError
from worlds.housekeep.house import House, Receptacle, make_tables
from worlds.housekeep.places import CORRIDOR, PLACES, ROOMS, Place, place_of
from worlds.housekeep.truth import SPLITS, Truth, read_placements, read_twc

NUM_TASKS = 4  # fixed houses, as many as the paper's
NUM_RECEPTACLES, NUM_OBJECTS, NUM_MISPLACED = (28, 42), (7, 10), (3, 5)  # from, to
ROOM_HEIGHT, LEAST_WIDTH, INNER_WIDTH = 3, 3, 12  # cells; three rooms share the inner width
CORRIDOR_HEIGHT = 2
STACKED = 0.6  # chance that furniture goes above or below what stands there, if that can be
ATTEMPTS = 200


class Furniture(NamedTuple):
    """What could stand in a house."""

    room: str
    place: str
    kind: Place
    column: int  # of the truth's places


class Plan(NamedTuple):
    """Rooms without furniture; doors are gaps (y, x) in walls, cells of no room."""

    rooms: tuple[str, ...]
    room_of: np.ndarray
    doors: tuple[tuple[int, int], ...]

    @property
    def walls(self) -> np.ndarray:
        """Cells of walls, bool [H, W]."""
        walls = self.room_of == -1
        walls[tuple(np.transpose(self.doors))] = False
        return walls


def read_task(task: str) -> tuple[str, int]:
    """Return split and number of a task, "2" or "test:7"; raises UserError for any other word."""
    if task in map(str, range(1, NUM_TASKS + 1)):
        return "task", int(task)
    split, colon, number = task.partition(":")
    is_number = len(number) < 10 and number.isascii() and number.isdecimal()
    if split in SPLITS and colon and is_number and number == str(int(number)):
        return split, int(number)
    wanted = f"1 to {NUM_TASKS}, or {', '.join(f'{split}:7' for split in SPLITS)}"
    raise UserError(f"housekeep has no --task {task!r}; known: {wanted} (any number)")


@lru_cache(maxsize=64)
def find_house(task: str, placements: Path | None = None) -> House:
    """Return the house of a task, always the same; raises UserError as `read_task`, `read_twc`.

    The fixed tasks have objects of the train split; placements: a file of people's rankings, read
    instead of TextWorld Commonsense.
    """
    split, number = read_task(task)
    truth = find_truth(placements)
    seed = [number, len(SPLITS) if split == "task" else SPLITS.index(split)]
    return make_house(truth, "train" if split == "task" else split, seed)


def find_truth(placements: Path | None = None) -> Truth:
    """Return the table of what belongs where; raises UserError as `read_twc`, `read_placements`."""
    return read_twc() if placements is None else read_placements(placements)


def make_house(truth: Truth, split: str, seed: Sequence[int]) -> House:
    """Make a house with objects of a split, all of it drawn from the seed."""
    rng = np.random.default_rng(seed)
    for _ in range(ATTEMPTS):
        furniture = _choose_furniture(rng, truth)
        plan = _lay_out(rng, furniture)
        receptacles = _furnish(rng, plan, furniture)
        things = _choose_things(rng, truth, split, furniture)
        if receptacles is None or things is None:
            continue
        house = _fill(rng, truth, plan, furniture, receptacles, things)
        if house is not None:
            return house
    raise UserError(_why_no_house(truth, split))


def _why_no_house(truth: Truth, split: str) -> str:
    """Say what the table, which is not the package's, has too little of."""
    rooms = sorted({room for room in truth.rooms if room in (*ROOMS, CORRIDOR)})
    objects = int((truth.split == SPLITS.index(split)).sum())
    return (
        f"--placements has no house for --task with things of the split {split}: it needs "
        f"{NUM_RECEPTACLES[0]} receptacles or more in {', '.join((*ROOMS, CORRIDOR))} (there are "
        f"{sum(room in rooms for room in truth.rooms)} in {', '.join(rooms) or 'none of them'}), "
        f"and {NUM_OBJECTS[1]} things that belong in some of them, not in all (the split has "
        f"{objects} things)"
    )


# FURNITURE
def _choose_furniture(rng: np.random.Generator, truth: Truth) -> list[Furniture]:
    """Return what stands in a house: each place at most once in a room."""
    if not any(truth.rooms):
        pieces = [
            Furniture(room, place, PLACES[place], truth.places.index(place))
            for place in PLACES
            for room in rng.permutation(PLACES[place].rooms)
        ]
        first = [piece for i, piece in enumerate(pieces) if piece.place != pieces[i - 1].place]
    else:
        pieces = first = [
            Furniture(room, place, place_of(place.removeprefix(f"{room} "), room), column)
            for column, (room, place) in enumerate(zip(truth.rooms, truth.places, strict=True))
            if room in (*ROOMS, CORRIDOR)
        ]
    number = int(rng.integers(NUM_RECEPTACLES[0], NUM_RECEPTACLES[1] + 1))
    order = [first[i] for i in rng.permutation(len(first))]
    order += [pieces[i] for i in rng.permutation(len(pieces)) if pieces[i] not in first]
    return order[:number]


# PLAN
def _lay_out(rng: np.random.Generator, furniture: Sequence[Furniture]) -> Plan:
    """Return six rooms in two rows with a corridor between them, a door each."""
    order = [ROOMS[i] for i in rng.permutation(len(ROOMS))]
    per_row = len(ROOMS) // 2
    height, width = 2 * ROOM_HEIGHT + CORRIDOR_HEIGHT + 4, INNER_WIDTH + per_row + 1
    room_of = np.full((height, width), -1, np.int8)
    middle = ROOM_HEIGHT + 2
    room_of[middle : middle + CORRIDOR_HEIGHT, 1:-1] = len(order)
    doors = []
    below = height - 1 - ROOM_HEIGHT
    for row, (top, wall) in enumerate(((1, middle - 1), (below, below - 1))):
        names = order[row * per_row : (row + 1) * per_row]
        left = 1
        for name, inside in zip(names, _widths(rng, names, furniture), strict=True):
            room = order.index(name)
            room_of[top : top + ROOM_HEIGHT, left : left + inside] = room
            doors.append((wall, int(rng.integers(left, left + inside))))
            left += inside + 1
    return Plan((*order, CORRIDOR), room_of, tuple(doors))


def _widths(
    rng: np.random.Generator, names: Sequence[str], furniture: Sequence[Furniture]
) -> list[int]:
    """Share the inner width among the rooms of a row; a room with more furniture gets more."""
    wanted = np.array([sum(piece.room == name for piece in furniture) for name in names], float)
    spare = INNER_WIDTH - LEAST_WIDTH * len(names)
    share = wanted + rng.random(len(names))
    cuts = np.round(np.cumsum(share) / share.sum() * spare).astype(int)
    return [LEAST_WIDTH + b - a for a, b in pairwise([0, *cuts.tolist()])]


# FURNISH
def _furnish(
    rng: np.random.Generator, plan: Plan, furniture: Sequence[Furniture]
) -> tuple[Receptacle, ...] | None:
    """Put the furniture along the walls; None where it does not fit or blocks the way."""
    kept_free = {(y + d, x) for y, x in plan.doors for d in (-1, 1)}
    occupied: dict[tuple[int, int], set[int]] = {}
    receptacles = []
    for piece in furniture:
        room = plan.rooms.index(piece.room)
        own = [(int(y), int(x)) for y, x in np.argwhere(plan.room_of == room)]
        at_walls = [cell for cell in own if cell not in kept_free and _at_wall(plan, cell)]
        stacks = [c for c in at_walls if c in occupied and piece.kind.level not in occupied[c]]
        free = [c for c in at_walls if c not in occupied and _can_block(plan, occupied, c)]
        cells = stacks if stacks and (not free or rng.random() < STACKED) else free
        if not cells:
            return None
        cell = cells[rng.integers(len(cells))]
        occupied.setdefault(cell, set()).add(piece.kind.level)
        name = piece.place if piece.place.startswith(piece.room) else f"{piece.room} {piece.place}"
        level, capacity = piece.kind.level, piece.kind.capacity
        receptacles.append(Receptacle(name, piece.place, room, cell, level, capacity))
    return tuple(receptacles)


def _at_wall(plan: Plan, cell: tuple[int, int]) -> bool:
    return any(plan.walls[beside] for beside in _beside(cell))


def _can_block(
    plan: Plan, occupied: dict[tuple[int, int], set[int]], cell: tuple[int, int]
) -> bool:
    """Return whether all free cells hang together, and all furniture is beside one, with `cell`."""
    free = ~plan.walls
    blocked = [*occupied, cell]
    for there in blocked:
        free[there] = False
    todo = [plan.doors[0]]
    reached = set(todo)
    while todo:
        for beside in _beside(todo.pop()):
            if free[beside] and beside not in reached:
                reached.add(beside)
                todo.append(beside)
    rooms = plan.room_of
    return len(reached) == free.sum() and all(
        any(beside in reached and rooms[beside] == rooms[there] for beside in _beside(there))
        for there in blocked
    )


def _beside(cell: tuple[int, int]) -> list[tuple[int, int]]:
    y, x = cell
    return [(y - 1, x), (y, x + 1), (y + 1, x), (y, x - 1)]


# THINGS
def _choose_things(
    rng: np.random.Generator, truth: Truth, split: str, furniture: Sequence[Furniture]
) -> list[int] | None:
    """Draw objects that belong somewhere in the house, balanced over their categories."""
    columns = [piece.column for piece in furniture]
    of_split = truth.split == SPLITS.index(split)
    usable = of_split & truth.belongs[:, columns].any(1) & ~truth.belongs[:, columns].all(1)
    categories = sorted({truth.category[i] for i in np.flatnonzero(usable)})
    number = int(rng.integers(NUM_OBJECTS[0], NUM_OBJECTS[1] + 1))
    chosen: list[int] = []
    while len(chosen) < number and categories:
        category = categories[rng.integers(len(categories))]
        left = [
            i for i in np.flatnonzero(usable) if truth.category[i] == category and i not in chosen
        ]
        if left:
            chosen.append(int(left[rng.integers(len(left))]))
        else:
            categories.remove(category)
    return chosen if len(chosen) == number else None


def _has_room(right: np.ndarray, capacity: Sequence[int]) -> bool:
    """Return whether all things can be right at once; right: bool [O, R], capacity: [R]."""
    slots = csr_array(np.repeat(right, capacity, axis=1))
    return bool((maximum_bipartite_matching(slots, perm_type="column") >= 0).all())


def _fill(
    rng: np.random.Generator,
    truth: Truth,
    plan: Plan,
    furniture: Sequence[Furniture],
    receptacles: tuple[Receptacle, ...],
    things: Sequence[int],
) -> House | None:
    """Put the things where they stand at first, and the agent somewhere; None without room."""
    right = truth.belongs[np.ix_(things, [piece.column for piece in furniture])]
    number = int(rng.integers(NUM_MISPLACED[0], NUM_MISPLACED[1] + 1))
    misplaced = rng.permutation(len(things)) < number
    start = np.zeros(len(things), np.int32)
    is_free = np.ones(len(receptacles), bool)  # nothing lies below anything at first
    for thing, is_wrong in enumerate(misplaced):
        cells = np.flatnonzero(right[thing] != is_wrong)
        cells = cells[is_free[cells]]
        if not len(cells):
            return None
        start[thing] = rng.choice(cells)
        is_free[start[thing]] = False
    if not _has_room(right, [receptacle.capacity for receptacle in receptacles]):
        return None
    solid = plan.walls
    for receptacle in receptacles:
        solid[receptacle.cell] = True
    y, x = rng.choice(np.argwhere(~solid))
    return House(
        plan.rooms,
        plan.room_of,
        solid,
        receptacles,
        tuple(truth.objects[i] for i in things),
        start,
        right,
        (int(y), int(x), int(rng.integers(4))),
        *make_tables(plan.room_of, solid, receptacles),
    )
