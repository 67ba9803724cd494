"""Housekeep as a world: its words, its rules, what is seen of it.

Axes: A actions, C captions, F facts, R receptacles, O objects, P poses, K things misplaced.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lab.errors import UserError
from worlds.housekeep.house import HEADINGS, LEVELS, House
from worlds.housekeep.houses import find_house, find_truth
from worlds.housekeep.places import colours
from worlds.housekeep.recipes import RECIPES
from worlds.housekeep.truth import Truth
from worlds.housekeep.view import SIZE, View, film_picture, first_person, make_view
from worlds.world import (
    PROMPTS,
    RECORDED,
    Guide,
    Transition,
    WorldArgs,
    choose_options,
    mask_of,
    pack_facts,
)

ACTIONS = ("move forward", "turn left", "turn right", "look up", "look down", "grab or release")
FORWARD, LEFT, RIGHT, UP, DOWN, GRAB = range(len(ACTIONS))
EMPTY_HAND = "empty hand"
START_LEVEL = LEVELS.index("table")
DEFAULTS = {  # the discount: a house takes over a hundred steps to tidy
    "goal_form": "pairs",
    "wrong_reward": -0.1,
    "goal_view": True,
    "approach_coef": 1.0,
    "discovery_coef": 0.2,
    "exploring_starts": 0.5,
    # One house, whose goals the goal view shows: words say nothing new (and the paper reads none).
    "goal_conditioned": False,
    "text_observation": "none",
    "total_timesteps": 4_000_000,
    "num_envs": 128,
    "num_minibatches": 16,
    "hidden_size": 128,
    "gamma": 0.995,
    "gae_lambda": 0.95,
}
NUM_REFERENCES = 40
UNIT = 16  # cells; distances are multiples of 1/16, which float16 holds exactly
FAR = 128  # actions; what is farther away is no nearer than what was never seen


@struct.dataclass
class State:
    """Where everything is, and what the episode has seen.

    pose: int32 []; level: int32 [], which level is in view; held: int32 [], an object, -1: none;
    place: int32 [O], a receptacle each, -1: held; placed_at: int32 [O], what was placed first is
    grabbed first; seen_receptacles: bool [R]; seen_in, first_in: int32 [O], the receptacles where
    an object was last and first seen to stand, -1: never; achieved: bool [K], put right so far;
    timestep: int32 [].
    """

    pose: jax.Array
    level: jax.Array
    held: jax.Array
    place: jax.Array
    placed_at: jax.Array
    seen_receptacles: jax.Array
    seen_in: jax.Array
    first_in: jax.Array
    achieved: jax.Array
    timestep: jax.Array


@dataclass(frozen=True)
class Housekeep:
    """One house, which every episode begins anew (the paper's setting).

    task: see `houses.read_task`; placements: a file of people's rankings, read instead of TextWorld
    Commonsense. Raises UserError for a task or a file that is not there.
    """

    task: str = "1"
    observation: str = "symbolic"
    placements: Path | None = None

    name = "housekeep"
    packages = ("textworld-express",)
    actions = ACTIONS
    score_name = "success"
    max_episode_steps = 1_000
    defaults = DEFAULTS
    aliases = ()

    def __repr__(self) -> str:
        """Name placements by their content: a run goes on in the same house, or not at all."""
        content = self.placements and hashlib.sha256(self.placements.read_bytes()).hexdigest()[:16]
        fields = f"task={self.task!r}, observation={self.observation!r}, placements={content!r}"
        return f"Housekeep({fields})"

    @classmethod
    def from_args(cls, args: WorldArgs) -> "Housekeep":
        """Make the world of the options; raises UserError for options that it does not have."""
        known = {"observation": ("symbolic", "pixels"), "task": (), "placements": ()}
        options = choose_options(cls.name, args, known)
        path = options["placements"] and Path(options["placements"])
        world = cls(options["task"] or "1", options["observation"], path)
        world.house  # noqa: B018, so that a wrong task is refused now
        return world

    # WORDS
    @cached_property
    def house(self) -> House:
        """The house of the task."""
        return find_house(self.task, self.placements)

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """What can be said of a step: "nothing", [O] pick up, [O x R] place, object-major."""
        objects, receptacles = self.house.objects, self._receptacle_names
        picks = [f"pick up the {thing}" for thing in objects]
        places = [f"place the {thing} in the {name}" for thing in objects for name in receptacles]
        return ("nothing", *picks, *places)

    @cached_property
    def facts(self) -> tuple[str, ...]:
        """[O x R] where a thing first stood, object-major; [R] seen; [O] held; the empty hand."""
        objects, receptacles = self.house.objects, self._receptacle_names
        stands = [f"{thing} in {name}" for thing in objects for name in receptacles]
        seen = [f"see {name}" for name in receptacles]
        return (*stands, *seen, *(f"hold {thing}" for thing in objects), EMPTY_HAND)

    @property
    def _receptacle_names(self) -> tuple[str, ...]:
        return tuple(receptacle.name for receptacle in self.house.receptacles)

    @property
    def num_scene_words(self) -> int:
        """W, ceil(F / 32)."""
        return -(-len(self.facts) // 32)

    @cached_property
    def achievements(self) -> tuple[str, ...]:
        """The things that stand wrong at first, [K]: each can be put right."""
        pairs = zip(self.house.objects, self.house.misplaced, strict=True)
        return tuple(f"{thing} put right" for thing, is_misplaced in pairs if is_misplaced)

    @property
    def max_return(self) -> float:
        """Every misplaced thing put right."""
        return float(len(self.achievements))

    # PLAY
    def reset(self, key: jax.Array) -> State:
        """Begin an episode; every one begins alike, so that the key is not used."""
        del key
        house = self.house
        y, x, heading = house.agent
        num_objects, num_receptacles = house.right.shape
        state = State(
            pose=jnp.int32((y * house.solid.shape[1] + x) * 4 + heading),
            level=jnp.int32(START_LEVEL),
            held=jnp.int32(-1),
            place=jnp.array(house.start),
            placed_at=jnp.zeros(num_objects, jnp.int32),
            seen_receptacles=jnp.zeros(num_receptacles, bool),
            seen_in=jnp.full(num_objects, -1, jnp.int32),
            first_in=jnp.full(num_objects, -1, jnp.int32),
            achieved=jnp.zeros(len(self.achievements), bool),
            timestep=jnp.int32(0),
        )
        return self._look(state)

    def reset_anywhere(self, key: jax.Array) -> State:
        """Begin at any place and heading, at any level.

        Half the time all things are mixed up among the receptacles, half the time one is in hand
        (where it was taken from counts as seen), half the time all the furniture was seen.
        """
        cell_key, heading_key, level_key, key = jax.random.split(key, 4)
        thing_key, hand_key, seen_key, mixed_key, place_key = jax.random.split(key, 5)
        state, (num_objects, num_receptacles) = self.reset(key), self.house.right.shape
        anywhere = jax.random.permutation(place_key, num_receptacles)[:num_objects]
        is_mixed = jax.random.bernoulli(mixed_key)
        state = state.replace(place=jnp.where(is_mixed, anywhere, state.place))
        free = jnp.array(np.flatnonzero(~self.house.solid))
        cell = jax.random.choice(cell_key, free)
        thing = jax.random.randint(thing_key, (), 0, num_objects)
        is_held = (jnp.arange(num_objects) == thing) & jax.random.bernoulli(hand_key)
        known = jnp.where(is_held, state.place, -1)
        state = state.replace(
            pose=(cell * 4 + jax.random.randint(heading_key, (), 0, 4)).astype(jnp.int32),
            level=jax.random.randint(level_key, (), 0, len(LEVELS), jnp.int32),
            held=jnp.where(is_held.any(), thing, -1).astype(jnp.int32),
            place=jnp.where(is_held, -1, state.place),
            seen_receptacles=jnp.full_like(state.seen_receptacles, jax.random.bernoulli(seen_key)),
            seen_in=known,
            first_in=known,
        )
        return self._look(state)

    def step(self, key: jax.Array, state: State, action: jax.Array) -> tuple[State, Transition]:
        """Take one action, int [] below A. Nothing is reset."""
        del key
        house = self.house
        heading = state.pose % 4
        turn = (action == RIGHT).astype(jnp.int32) - (action == LEFT).astype(jnp.int32)
        pose = state.pose - heading + (heading + turn) % 4
        pose = jnp.where(action == FORWARD, jnp.array(house.forward)[pose], pose)
        look = (action == UP).astype(jnp.int32) - (action == DOWN).astype(jnp.int32)
        level = jnp.clip(state.level + look, 0, len(LEVELS) - 1)
        timestep = state.timestep + 1

        faced = jnp.array(house.faced)[pose, level]
        inside = (state.place == faced) & (faced >= 0)
        first = self._first(state, inside)
        grabs = (action == GRAB) & (state.held < 0) & inside.any()
        has_room = (faced >= 0) & (inside.sum() < jnp.array(house.capacity)[faced])
        places = (action == GRAB) & (state.held >= 0) & has_room
        thing = jnp.where(grabs, first, jnp.maximum(state.held, 0))
        moved = (jnp.arange(len(house.objects)) == thing) & (grabs | places)
        after = state.replace(
            pose=pose,
            level=level,
            held=jnp.where(grabs, first, jnp.where(places, -1, state.held)).astype(jnp.int32),
            place=jnp.where(moved, jnp.where(grabs, -1, faced), state.place),
            placed_at=jnp.where(moved, timestep, state.placed_at),
            timestep=timestep,
        )
        after = self._look(after)

        before_right, right = self._is_right(state), self._is_right(after)
        achieved = state.achieved | right[np.flatnonzero(house.misplaced)]
        after = after.replace(achieved=achieved)
        num_objects, num_receptacles = house.right.shape
        place_caption = 1 + num_objects + thing * num_receptacles + faced
        caption = jnp.where(grabs, 1 + thing, jnp.where(places, place_caption, 0))
        is_done = right.all()
        won = right.sum() - (~house.misplaced).sum()
        return after, Transition(
            caption=caption.astype(jnp.int32),
            reward=(right.sum() - before_right.sum()).astype(jnp.float32),
            terminated=is_done,
            truncated=~is_done & (timestep >= self.max_episode_steps),
            score=won / jnp.float32(len(self.achievements)),
            achievements=achieved,
        )

    def _first(self, state: State, inside: jax.Array) -> jax.Array:
        """Return which of the objects `inside`, bool [O], is longest there; any if there are none.

        So nothing hides what it is placed beside.
        """
        return jnp.argmin(jnp.where(inside, state.placed_at, jnp.iinfo(jnp.int32).max))

    def _is_right(self, state: State) -> jax.Array:
        """Return which objects stand where they belong, bool [O]; a held one does not."""
        numbers = np.arange(len(self.house.objects))
        return jnp.array(self.house.right)[numbers, state.place] & (state.place >= 0)

    def _look(self, state: State) -> State:
        """Note what is in the field of view: receptacles, and objects at the level in view."""
        in_view = jnp.array(self.house.visible)[state.pose]
        at_level = in_view & (jnp.array(self.house.level) == state.level)
        is_seen = at_level[state.place] & (state.place >= 0)
        return state.replace(
            seen_receptacles=state.seen_receptacles | in_view,
            seen_in=jnp.where(is_seen, state.place, state.seen_in),
            first_in=jnp.where(is_seen & (state.first_in < 0), state.place, state.first_in),
        )

    # WHAT IS SEEN
    @property
    def observation_shape(self) -> tuple[int, ...]:
        """[D], or a first-person picture [128, 128, 3]."""
        if self.observation == "pixels":
            return SIZE, SIZE, 3
        num_objects, num_receptacles = self.house.right.shape
        own = self._pose_features.shape[1] + len(LEVELS)
        return (5 * num_receptacles + 6 * num_objects + own,)

    history = 1

    @cached_property
    def _pose_features(self) -> np.ndarray:
        """What each pose senses of itself, float32 [P, H + W + 7]: row, column, heading, way ahead.

        The way ahead is whether one, two and three steps forward are free.
        """
        height, width = self.house.solid.shape
        poses = np.arange(height * width * 4)
        y, x, heading = poses // 4 // width, poses // 4 % width, poses % 4
        ahead, free = poses, []
        for _ in range(3):
            following = self.house.forward[ahead]
            free.append(following != ahead)
            ahead = following
        own = [np.eye(height)[y], np.eye(width)[x], np.eye(4)[heading], np.stack(free, 1)]
        return np.concatenate(own, 1).astype(np.float32)

    @cached_property
    def _offsets(self) -> np.ndarray:
        """How far ahead and to the right each pose has each receptacle, float32 [P, R, 2]."""
        height, width = self.house.solid.shape
        poses = np.arange(height * width * 4)
        here = np.stack([poses // 4 // width, poses // 4 % width], 1)
        cells = np.array([receptacle.cell for receptacle in self.house.receptacles])
        away = cells[None] - here[:, None]
        ahead = np.array(HEADINGS)[poses % 4][:, None]
        right = np.stack([ahead[..., 1], -ahead[..., 0]], -1)
        both = np.stack([(away * ahead).sum(-1), (away * right).sum(-1)], -1)
        return (both / UNIT).astype(np.float32)

    @cached_property
    def _steps_to(self) -> np.ndarray:
        """How many actions bring each pose to face each receptacle, looks aside, float32 [P, R]."""
        poses = np.arange(len(self.house.forward))
        left, right = ((poses - poses % 4) + (poses % 4 + turn) % 4 for turn in (3, 1))
        following = np.stack([self.house.forward, left, right])
        is_facing = (self.house.faced[..., None] == np.arange(len(self.house.receptacles))).any(1)
        steps = np.where(is_facing, 0, np.inf)
        while True:
            fewer = np.minimum(steps, steps[following].min(0) + 1)
            if (fewer == steps).all():
                return steps.astype(np.float32)
            steps = fewer

    counts_finds = True

    def guide(self, state: State, named: jax.Array) -> Guide:
        """Return where is what the captions `named`, bool [C], name.

        The view: for each receptacle whether a named thing to pick up was last seen in it, or the
        thing in hand is to be placed in it; that to grab or to release would do it now; whether
        there is any such receptacle; and of the nearest, in actions, how far ahead and to the right
        and how many levels up it is, and its nearness.
        """
        house, num_objects = self.house, len(self.house.objects)
        picks, places = jnp.split(named[1:], [num_objects])
        places = places.reshape(house.right.shape)
        thing, is_free = jnp.maximum(state.held, 0), state.held < 0
        numbers = jnp.arange(len(house.receptacles))[None]
        stands = (state.seen_in[:, None] == numbers) & picks[:, None]
        is_target = jnp.where(is_free, stands.any(0), places[thing] & state.seen_receptacles)

        faced = jnp.array(house.faced)[state.pose, state.level]
        inside = (state.place == faced) & (faced >= 0)
        grabs = is_free & inside.any() & picks[self._first(state, inside)]
        releases = ~is_free & (faced >= 0) & places[thing, faced]

        levels = jnp.array(house.level) - state.level
        away = jnp.array(self._steps_to)[state.pose] + jnp.abs(levels)
        away = jnp.where(is_target, away, jnp.inf)
        nearest, is_any = jnp.argmin(away), is_target.any()
        where = jnp.array(self._offsets)[state.pose, nearest]
        up = jax.nn.one_hot(levels[nearest] + len(LEVELS) - 1, 2 * len(LEVELS) - 1)
        nearness = jnp.maximum(1.0 - away[nearest] / FAR, 0.0)
        flags = jnp.stack([grabs, releases, is_any])
        parts = is_target, flags, where * is_any, up * is_any, nearness[None]
        view = jnp.concatenate(parts, dtype=jnp.float32)
        found = state.seen_receptacles.sum() + (state.first_in >= 0).sum()
        is_grab = jnp.arange(len(ACTIONS)) == GRAB
        acts = is_grab[:, None] & jnp.stack([is_any, grabs | releases])[None]
        return Guide(view, acts, nearness, found.astype(jnp.float32))

    def observe(self, state: State) -> jax.Array:
        """Return what the robot senses, float32 [D], or its picture uint8 [128, 128, 3].

        Of each receptacle: that it is in the field of view, that it was, how far ahead and to the
        right it is if it was, that it is within reach at this level. Of each object the same, and
        that it is held; what was seen is remembered. Of the robot: see `_pose_features`, and the
        level in view.
        """
        if self.observation == "pixels":
            return first_person(self._view, state.pose, state.level, state.held, state.place)
        house = self.house
        in_view = jnp.array(house.visible)[state.pose]
        offsets = jnp.array(self._offsets)[state.pose] * state.seen_receptacles[:, None]
        faced = jnp.array(house.faced)[state.pose, state.level]
        is_faced = (jnp.arange(len(in_view)) == faced) & (faced >= 0)
        furniture = jnp.stack([in_view, state.seen_receptacles, *offsets.T, is_faced])
        at_level = in_view & (jnp.array(house.level) == state.level)
        is_seen = at_level[state.place] & (state.place >= 0)
        inside = (state.place == faced) & (faced >= 0)
        is_next = inside & (jnp.arange(len(inside)) == self._first(state, inside))
        is_held = jnp.arange(len(state.place)) == state.held
        was_seen = state.seen_in >= 0
        where = offsets[state.seen_in] * was_seen[:, None]
        things = jnp.stack([is_seen, was_seen, *where.T, is_held, is_next])
        level = jax.nn.one_hot(state.level, len(LEVELS))
        own = jnp.array(self._pose_features)[state.pose]
        return jnp.concatenate([furniture.ravel(), things.ravel(), own, level])

    def pack_observation(self, observation: jax.Array) -> jax.Array:
        """Keep pictures as they are, numbers as float16, which holds them exactly, [..., *P]."""
        if self.observation == "pixels":
            return observation
        return observation.astype(jnp.float16)

    def unpack_observation(self, packed: jax.Array) -> jax.Array:
        """Undo `pack_observation`: [..., 1, *P] becomes [..., *observation_shape]."""
        if self.observation == "pixels":
            return packed[..., 0, :, :, :]
        return packed[..., 0, :].astype(jnp.float32)

    def scene(self, state: State) -> jax.Array:
        """Return the facts that hold, packed, uint32 [W]."""
        num_receptacles = len(self.house.receptacles)
        stood = state.first_in[:, None] == jnp.arange(num_receptacles)[None]
        held = jnp.arange(len(state.place)) == state.held
        facts = [stood.ravel(), state.seen_receptacles, held, state.held[None] < 0]
        bits = jnp.concatenate(facts)
        words = jnp.pad(bits, (0, -len(bits) % 32)).reshape(-1, 32).astype(jnp.uint32)
        return (words << jnp.arange(32, dtype=jnp.uint32)[None]).sum(1, dtype=jnp.uint32)

    def describe(self, scene: np.ndarray) -> str:
        """Say a packed scene, uint32 [W], in words (host)."""
        bits = np.unpackbits(scene.astype("<u4").view(np.uint8), bitorder="little")
        true = [fact for fact, bit in zip(self.facts, bits, strict=False) if bit]
        number = self.house.right.size
        stood = [fact for fact, bit in zip(self.facts[:number], bits, strict=False) if bit]
        seen = [fact.removeprefix("see ") for fact in true if fact.startswith("see ")]
        held = [fact.removeprefix("hold ") for fact in true if fact.startswith("hold ")]
        parts = [f"You hold {held[0]}." if held else "Your hand is empty."]
        parts += [f"At first there were {', '.join(stood)}."] if stood else []
        return " ".join([*parts, f"You have seen {', '.join(seen)}."] if seen else parts)

    def oracle(self, state: State) -> jax.Array:
        """Return which captions make sense as goals now, bool [C].

        With an empty hand: pick up what stood wrong when it was first seen. Else: place what is
        held, if it stood so, where it belongs, if that was seen.
        """
        right = jnp.array(self.house.right)
        is_free = state.held < 0
        stood_wrong = (state.first_in >= 0) & ~right[np.arange(len(right)), state.first_in]
        is_held = jnp.arange(len(right)) == state.held
        picks = is_free & stood_wrong
        places = (is_held & stood_wrong)[:, None] & right & state.seen_receptacles[None]
        return jnp.concatenate([jnp.zeros(1, bool), picks, places.ravel()])

    def render(self, state: State) -> jax.Array:
        """Return the house from above and what the robot sees, uint8 [height, width, 3]."""
        seen = state.seen_receptacles
        return film_picture(self._view, state.pose, state.level, state.held, state.place, seen)

    @cached_property
    def _view(self) -> View:
        return make_view(self.house, colours(self.places))

    # WHAT ASKING NEEDS
    prompts, recorded, recipes = PROMPTS, RECORDED, RECIPES
    needable, held, kinds = (), frozenset(), ()

    def prompt_mask(self, scope: str) -> np.ndarray:
        """Return the facts that a prompt tells, uint32 [W]; compact: where things are and the hand.

        Raises UserError for another scope.
        """
        if scope not in ("full", "compact"):
            raise UserError(f"housekeep has no --prompt-scope {scope!r}; known: full, compact")
        told = (f for f in self.facts if scope == "full" or not f.startswith("see "))
        return mask_of(self.facts, told)

    def in_view_masks(self) -> np.ndarray:
        """Return no conditions, uint32 [C, W]: what a goal needs stands in `rules_of`."""
        return np.zeros((len(self.captions), self.num_scene_words), np.uint32)

    def grounding_masks(self) -> np.ndarray:
        """Return per caption the facts of which one must hold, uint32 [C, W].

        A thing to pick up was seen somewhere; a thing to place is held.
        """
        return pack_facts(np.concatenate([self._none(1), *self._seen_and_held()]))

    def never_needs(self, caption: str) -> frozenset[str]:
        """Return no facts: none are asked about."""
        del caption
        return frozenset()

    def parts(self, caption: str) -> tuple[str, str]:
        """Return a caption's verb and the rest of it."""
        verb, the, noun = caption.partition(" the ")
        return verb, f"{the.strip()} {noun}".strip()

    @property
    def meaningful(self) -> frozenset[str]:
        """Captions that make sense as goals in some state."""
        sensible = self._rules_of(~self.house.right, self.house.right)[0]
        return frozenset(np.array(self.captions, object)[sensible])

    @cached_property
    def things(self) -> tuple[str, ...]:
        """The things here, then `reference_things`."""
        truth = find_truth(self.placements)
        return (*self.house.objects, *reference_things(truth))

    @property
    def once(self) -> tuple[tuple[str, ...], ...]:
        """For each thing all its places: where one is as good as another, one is enough."""
        first, number = 1 + len(self.house.objects), len(self.house.receptacles)
        starts = range(first, len(self.captions), number)
        return tuple(self.captions[start : start + number] for start in starts)

    @property
    def places(self) -> tuple[str, ...]:
        """All places of the table, here or not."""
        return find_truth(self.placements).places

    @property
    def places_here(self) -> np.ndarray:
        """Which places of the table there are in this house, bool [P]."""
        return np.isin(self.places, [receptacle.place for receptacle in self.house.receptacles])

    def rules_of(
        self, wrong: np.ndarray, right: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return `_rules_of` for things in all places, bool [T, P] each."""
        columns = [self.places.index(receptacle.place) for receptacle in self.house.receptacles]
        things = slice(len(self.house.objects))
        return self._rules_of(wrong[things][:, columns], right[things][:, columns])

    def _rules_of(
        self, wrong: np.ndarray, right: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which goals make sense and what they need; wrong, right: bool [O, R].

        Sensible bool [C], needs bool [C, F], alternatives bool [C, 1, F]: with an empty hand pick
        up what stood in a wrong place; place what is held, and stood so, in a right one.
        """
        num_objects, num_receptacles = right.shape
        picks = np.zeros((num_objects, len(self.facts)), bool)
        for thing in range(num_objects):
            stands = slice(thing * num_receptacles, (thing + 1) * num_receptacles)
            picks[thing, stands] = wrong[thing]
        sensible = np.concatenate([[False], picks.any(1), (picks.any(1)[:, None] & right).ravel()])
        needs = self._none(len(self.captions))
        first_seen = num_objects * num_receptacles
        first_held = first_seen + num_receptacles
        needs[1 : 1 + num_objects, self.facts.index(EMPTY_HAND)] = True
        for thing in range(num_objects):
            rows = 1 + num_objects + thing * num_receptacles + np.arange(num_receptacles)
            needs[rows, first_seen + np.arange(num_receptacles)] = True
            needs[rows, first_held + thing] = True
        places = np.repeat(picks, num_receptacles, axis=0)
        alternatives = np.concatenate([self._none(1), picks, places])
        return sensible, needs, alternatives[:, None]

    def _seen_and_held(self) -> tuple[np.ndarray, np.ndarray]:
        """Return for each pick-up where its thing may stand, for each placing that it is held."""
        num_objects, num_receptacles = self.house.right.shape
        nowhere = np.zeros_like(self.house.right)
        seen = self._rules_of(~nowhere, nowhere)[2][1 : 1 + num_objects, 0]
        held = self._none(num_objects * num_receptacles)
        first_held = (num_objects + 1) * num_receptacles
        numbers = np.arange(num_objects * num_receptacles)
        held[numbers, first_held + numbers // num_receptacles] = True
        return seen, held

    def _none(self, rows: int) -> np.ndarray:
        return np.zeros((rows, len(self.facts)), bool)


def reference_things(truth: Truth) -> tuple[str, ...]:
    """Return 40 things of the train split, in turn by category: what scores are centred by."""
    train = [i for i, split in enumerate(truth.split) if split == 0]
    by_category = [
        [truth.objects[i] for i in train if truth.category[i] == category]
        for category in sorted(set(truth.category))
    ]
    turns = [thing for turn in zip_longest(*by_category) for thing in turn if thing is not None]
    return tuple(turns[:NUM_REFERENCES])
