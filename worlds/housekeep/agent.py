"""An agent that knows everything, and the rules of the house in plain Python (host only).

`plan` tidies a house by shortest paths: it shows that the house can be tidied, and in how many
steps. `PlainHouse` is written without the tables and the step of the JAX world, to compare them.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from worlds.housekeep.house import HEADINGS, LEVELS, SIGHT, House

FORWARD, LEFT, RIGHT, UP, DOWN, GRAB = range(6)
TABLE = LEVELS.index("table")  # where a look is at first
MAX_STEPS = 1000
MOST_EXPANSIONS = 2000  # of the search for what is carried where; a usual house needs ten
FAR = 10_000  # steps; more than any path has


# THE RULES
class PlainHouse:
    """One episode in a house, from its start; `seen` and the rest are those of the moment."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.y, self.x, self.heading = house.agent
        self.level = TABLE
        self.held = -1  # object in the hand, -1: none
        self.place = [int(receptacle) for receptacle in house.start]  # of each object, -1: held
        self.placed_at = [0] * len(house.objects)  # timestep; of equals the first object is first
        self.seen_receptacles = [False] * len(house.receptacles)
        self.first_in = [-1] * len(house.objects)  # where each object was first seen, or -1
        self.timestep = 0
        self._in_view: dict[tuple[int, int, int], list[bool]] = {}
        self._look()

    # WHAT THE AGENT DOES
    def step(self, action: int) -> str:
        """Take one action and return the caption of what happened."""
        self.timestep += 1
        caption = "nothing"
        if action == FORWARD:
            y, x = self._ahead(1)
            if not self._is_solid(y, x):
                self.y, self.x = y, x
        elif action == LEFT:
            self.heading = (self.heading - 1) % 4
        elif action == RIGHT:
            self.heading = (self.heading + 1) % 4
        elif action == UP:
            self.level = min(self.level + 1, len(LEVELS) - 1)
        elif action == DOWN:
            self.level = max(self.level - 1, 0)
        elif action == GRAB:
            caption = self._grab() if self.held < 0 else self._release()
        self._look()
        return caption

    def _grab(self) -> str:
        things = self.standing_in(self.faced)
        if not things:
            return "nothing"
        self.held = things[0]
        self.place[self.held] = -1
        return f"pick up the {self.house.objects[self.held]}"

    def _release(self) -> str:
        receptacle, held = self.faced, self.held
        if receptacle < 0:
            return "nothing"
        if len(self.standing_in(receptacle)) >= self.house.receptacles[receptacle].capacity:
            return "nothing"
        self.place[held], self.placed_at[held], self.held = receptacle, self.timestep, -1
        name = self.house.receptacles[receptacle].name
        return f"place the {self.house.objects[held]} in the {name}"

    def _look(self) -> None:
        """Note what is in the field of view."""
        seen = self.seen
        for receptacle, is_seen in enumerate(seen):
            self.seen_receptacles[receptacle] |= is_seen
        for thing, receptacle in enumerate(self.place):
            is_new = receptacle >= 0 and seen[receptacle] and self.first_in[thing] < 0
            if is_new and self.house.receptacles[receptacle].level == self.level:
                self.first_in[thing] = receptacle

    # WHAT HOLDS
    @property
    def pose(self) -> int:
        """The pose as a number below P."""
        return (self.y * self.house.solid.shape[1] + self.x) * 4 + self.heading

    @property
    def seen(self) -> list[bool]:
        """Whether each receptacle is in the field of view, [R]."""
        pose = (self.y, self.x, self.heading)
        if pose not in self._in_view:
            self._in_view[pose] = [self._sees(*r.cell) for r in self.house.receptacles]
        return self._in_view[pose]

    @property
    def faced(self) -> int:
        """The receptacle within reach at the level in view, -1: none."""
        for cells in (1, 2):
            cell = self._ahead(cells)
            for index, receptacle in enumerate(self.house.receptacles):
                if receptacle.cell == cell and receptacle.level == self.level:
                    return index
            if self._is_solid(*cell):
                break
        return -1

    def standing_in(self, receptacle: int) -> list[int]:
        """Return the objects in a receptacle, by how long they are in it; none in receptacle -1."""
        if receptacle < 0:
            return []
        objects = [thing for thing, place in enumerate(self.place) if place == receptacle]
        return sorted(objects, key=lambda thing: (self.placed_at[thing], thing))

    @property
    def score(self) -> float:
        """The share of objects that stand right."""
        right = [r >= 0 and bool(self.house.right[o, r]) for o, r in enumerate(self.place)]
        return sum(right) / len(right)

    @property
    def is_tidy(self) -> bool:
        """Whether every object stands right; then the hand is empty, and the episode over."""
        return self.score == 1

    def facts(self) -> list[str]:
        """Return what has been seen so far and what is held, in the order of the world's facts."""
        house = self.house
        facts = [
            f"{house.objects[thing]} in {house.receptacles[receptacle].name}"
            for thing, receptacle in enumerate(self.first_in)
            if receptacle >= 0
        ]
        names = [receptacle.name for receptacle in house.receptacles]
        pairs = zip(names, self.seen_receptacles, strict=True)
        facts += [f"see {name}" for name, is_seen in pairs if is_seen]
        return facts + ([f"hold {house.objects[self.held]}"] if self.held >= 0 else ["empty hand"])

    # THE MAP
    def _ahead(self, cells: int) -> tuple[int, int]:
        dy, dx = HEADINGS[self.heading]
        return self.y + cells * dy, self.x + cells * dx

    def _is_solid(self, y: int, x: int) -> bool:
        height, width = self.house.solid.shape
        return not (0 <= y < height and 0 <= x < width) or bool(self.house.solid[y, x])

    def _is_wall(self, y: int, x: int) -> bool:
        return self._is_solid(y, x) and self.house.room_of[y, x] == -1

    def _sees(self, y: int, x: int) -> bool:
        dy, dx = y - self.y, x - self.x
        ahead = dy * HEADINGS[self.heading][0] + dx * HEADINGS[self.heading][1]
        sideways = abs(dy) + abs(dx) - abs(ahead)
        if ahead <= 0 or sideways > ahead or dy * dy + dx * dx > SIGHT * SIGHT:
            return False
        return not any(self._is_wall(*cell) for cell in self._between(dy, dx))

    def _between(self, dy: int, dx: int) -> Iterator[tuple[int, int]]:
        """Walk the straight line to the cell (dy, dx) away; yield the cells on the way."""
        parts = {Fraction(0), Fraction(1)}  # of the line, where it goes from one cell to the next
        for way in (abs(dy), abs(dx)):
            parts |= {Fraction(2 * border + 1, 2 * way) for border in range(way)}
        ordered = sorted(parts)
        for begin, end in zip(ordered[1:-2], ordered[2:-1], strict=True):
            middle = (begin + end) / 2
            yield self.y + round(middle * dy), self.x + round(middle * dx)


# THE PLAN
class _Trip(NamedTuple):
    """To carry what is longest in its receptacle into another, or to put it back as the last."""

    thing: int
    start: int  # receptacle
    end: int
    grab: int  # pose, as a number of a free pose
    release: int
    steps: int  # both of them included


class _Paths:
    """Shortest paths over the poses in which one can stand, S of them; level changes aside."""

    def __init__(self, house: House) -> None:
        self.levels = np.array([receptacle.level for receptacle in house.receptacles])
        poses = np.flatnonzero(np.repeat(~house.solid.reshape(-1), 4))
        number = np.full(house.solid.size * 4, -1)
        number[poses] = np.arange(len(poses))
        turned = [poses - poses % 4 + (poses + turn) % 4 for turn in (-1, 1)]
        after = [house.forward[poses], *turned]  # by FORWARD, LEFT, RIGHT
        self.after = number[np.stack(after)]  # [3, S]
        self.number = number
        self.steps = self._all_pairs()  # [S, S], from and to
        self.facing = [
            np.flatnonzero((house.faced[poses] == index).any(-1))
            for index in range(len(house.receptacles))
        ]
        to = [self.steps[:, facing].min(1, initial=FAR) for facing in self.facing]
        self.steps_to = np.stack(to, axis=1)  # [S, R]

    def _all_pairs(self) -> np.ndarray:
        count = self.after.shape[1]
        steps = np.full((count, count), FAR, np.int16)
        np.fill_diagonal(steps, 0)
        while True:
            shorter = np.minimum(steps, steps[self.after].min(0) + np.int16(1))
            if (shorter == steps).all():
                return steps
            steps = shorter

    def trip(self, pose: int, level: int, thing: int, start: int, end: int) -> _Trip | None:
        """Return the shortest trip from where the agent is, None if there is no way."""
        grabs = self.facing[start]
        if not len(grabs):
            return None
        costs = self.steps[pose, grabs].astype(int) + self.steps_to[grabs, end]
        best = int(costs.argmin())
        if costs[best] >= FAR:
            return None
        looks = abs(level - self.levels[start]) + abs(self.levels[start] - self.levels[end])
        grab = int(grabs[best])
        releases = self.facing[end]
        release = int(releases[self.steps[grab, releases].argmin()])
        return _Trip(thing, start, end, grab, release, int(costs[best] + looks) + 2)

    def walk(self, pose: int, goal: int) -> list[int]:
        """Return the actions of a shortest path."""
        actions = []
        while pose != goal:
            following = self.steps[self.after[:, pose], goal]
            actions.append(int(following.argmin()))
            pose = int(self.after[actions[-1], pose])
        return actions


def plan(house: House) -> list[int]:
    """Return actions that tidy `house` from its start, a walk of short trips.

    Among the trips that leave least to do the shortest comes first, which need not be the best
    order. Raises ValueError if no way is found, or none within MAX_STEPS.
    """
    paths = _Paths(house)
    y, x, heading = house.agent
    pose = paths.number[(y * house.solid.shape[1] + x) * 4 + heading]
    if pose < 0:
        raise ValueError("the agent stands in something solid")
    level, actions = TABLE, []
    for trip in _choose_trips(house, paths, int(pose)):
        for goal, receptacle in ((trip.grab, trip.start), (trip.release, trip.end)):
            turn = int(paths.levels[receptacle]) - level
            actions += [UP if turn > 0 else DOWN] * abs(turn)
            actions += [*paths.walk(int(pose), goal), GRAB]
            pose, level = goal, level + turn
    played = PlainHouse(house)
    for action in actions:
        played.step(action)
    if not played.is_tidy:
        raise ValueError("the plan does not tidy the house: its tables are not those of its map")
    return actions


def _choose_trips(house: House, paths: _Paths, pose: int) -> list[_Trip]:
    """Search for the trips after which all stands right, those first that leave least to do."""
    capacity = [receptacle.capacity for receptacle in house.receptacles]
    queues: list[list[int]] = [[] for _ in house.receptacles]
    for thing, receptacle in enumerate(house.start):
        queues[receptacle].append(thing)
    begin = tuple(map(tuple, queues))
    _check_room(house, capacity)
    # What is left to do, steps so far, a number that ends ties; then where all is.
    queue = [(_left(house, capacity, begin), 0, 0, begin, pose, TABLE, ())]
    known: set[tuple] = set()
    pushed, too_long = 0, False
    for _ in range(MOST_EXPANSIONS):
        if not queue:
            break
        left, steps, _, now, pose, level, trips = heapq.heappop(queue)
        if left == 0:
            return list(trips)
        if now in known:
            continue
        known.add(now)
        for start, end in _moves(now, capacity):
            after = _moved(now, start, end)
            if after in known:
                continue
            trip = paths.trip(pose, level, now[start][0], start, end)
            if trip is None:
                continue
            if steps + trip.steps > MAX_STEPS:
                too_long = True
                continue
            pushed += 1
            node = (after, trip.release, int(paths.levels[end]), (*trips, trip))
            left = _left(house, capacity, after)
            heapq.heappush(queue, (left, steps + trip.steps, pushed, *node))
    within = f" within {MAX_STEPS} steps" if too_long else ""
    raise ValueError(f"no way was found to tidy the house{within}")


def _moves(queues: tuple, capacity: list[int]) -> Iterator[tuple[int, int]]:
    """Yield from which receptacle into which a thing can be carried; alone it is not put back."""
    room = [end for end, queue in enumerate(queues) if len(queue) < capacity[end]]
    for start in (start for start, queue in enumerate(queues) if queue):
        yield from ((start, end) for end in room if end != start)
        if len(queues[start]) > 1:
            yield start, start


def _moved(queues: tuple, start: int, end: int) -> tuple:
    after = list(queues)
    after[start] = queues[start][1:]
    after[end] += queues[start][:1]
    return tuple(after)


def _left(house: House, capacity: list[int], queues: tuple) -> int:
    """Return how many trips are needed at least, about; 0 only if all stands right.

    One for each wrong thing, one for each right thing before a wrong one, and one more for each
    wrong thing that finds no room in its right receptacles beside the others.
    """
    room = [most - len(queue) for queue, most in zip(queues, capacity, strict=True)]
    left, wrong = 0, []
    for receptacle, queue in enumerate(queues):
        covered = False
        for thing in reversed(queue):
            is_wrong = not house.right[thing, receptacle]
            wrong += [thing] if is_wrong else []
            covered |= is_wrong
            left += covered
    return left + len(_without_room(house, wrong, room))


def _check_room(house: House, capacity: list[int]) -> None:
    """Raise ValueError unless all things can stand right at the same time."""
    for thing in _without_room(house, range(len(house.objects)), capacity):
        raise ValueError(f"no right place has room for the {house.objects[thing]}")


def _without_room(house: House, things: Iterable[int], room: Sequence[int]) -> list[int]:
    """Return the things that find no room when as many as can be go to right receptacles."""
    stands: list[list[int]] = [[] for _ in room]

    def settle(thing: int, tried: set[int]) -> bool:
        for receptacle in (int(r) for r in np.flatnonzero(house.right[thing])):
            if receptacle in tried:
                continue
            tried.add(receptacle)
            if len(stands[receptacle]) < room[receptacle]:
                stands[receptacle].append(thing)
                return True
            for i, other in enumerate(stands[receptacle]):
                if settle(other, tried):
                    stands[receptacle][i] = thing
                    return True
        return False

    return [thing for thing in things if not settle(thing, set())]
