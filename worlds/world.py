"""What a world is: the contract that algorithms, goals and films are written against.

Axes: A actions, C captions, D observation, F facts, K achievements, W = ceil(F / 32) scene words.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
from flax import struct

from lab.errors import UserError

if TYPE_CHECKING:
    from worlds.tasks import Task

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ROOT / "prompts"  # prompt files, <world>_<form>_v<k>.txt
RECORDED = ROOT / "goals" / "recorded"  # recorded answers, <world>_<form>_<model>.sqlite


@dataclass(frozen=True)
class WorldArgs:
    """Which world, and its options; a world refuses by name what it does not have."""

    env: str = "crafter"  # world to live in; package.module:Class names one of your own
    actions: str | None = None
    """what the agent can do, by default the world's first choice; crafter: pairs (the paper's 139
    verb-noun actions), base (the game's own 17)"""
    captions: str | None = None
    """when an action is called by its name; crafter: attempt (the thing was at hand, the paper's),
    effect (it really happened)"""
    game_rules: str | None = None
    """crafter: paper (400 steps, mobs fall at one hit), craftax (the game's own rules)"""
    observation: str | None = None
    """what the policy sees of the world; crafter: symbolic, pixels (a coloured picture), frames
    (the paper's last four grey pictures of 84 x 84)"""
    needs_below: int | None = None
    """value of health, food, drink and energy below which the captions tell of it; crafter: 1 to 9,
    default 5, the paper's 9"""
    task: str | None = None
    """crafter: a task whose success alone is paid, such as mine stone (--task x names all);
    housekeep: 1 to 4, the four fixed houses, or train:7, valid:7, test:7, house number 7 (any
    number) with things of that split"""
    task_reward: str | None = None
    """once: a task's success is paid once an episode, the default; each: every time (the
    paper's)"""
    placements: Path | None = None
    """housekeep: people's rankings of where things belong (.npz), instead of TextWorld
    Commonsense's table"""


@struct.dataclass
class Transition:
    """What one step did; score and achievements are those after it."""

    caption: jax.Array  # int32 [], index into `captions`
    reward: jax.Array  # float32 [], the game's own
    terminated: jax.Array  # bool [], the episode is over, for good
    truncated: jax.Array  # bool [], cut by the time limit; never both
    score: jax.Array  # float32 [], of the episode so far
    achievements: jax.Array  # bool [K], unlocked so far in the episode


class World(Protocol):
    """One world. Its class makes it by `from_args(args: WorldArgs)`, see `worlds.make_world`.

    Hashable, and equal to a world of the same options. Methods take one state and are pure and
    jittable, unless they are marked as the host's; use vmap for many. A state is a pytree of plain
    arrays (keys as uint32) with a field `timestep`, int32 [], which `replace` changes: first
    episodes begin at a random step of their time.
    """

    # WORDS
    @property
    def name(self) -> str:
        """Name in file names of prompts and recorded answers."""
        ...

    @property
    def packages(self) -> tuple[str, ...]:
        """PyPI names of the packages whose versions a run records."""
        ...

    @property
    def actions(self) -> tuple[str, ...]:
        """Name of each action, [A]."""
        ...

    @property
    def captions(self) -> tuple[str, ...]:
        """What can be said of a step, [C]; all but captions[0], "nothing", are candidate goals."""
        ...

    @property
    def facts(self) -> tuple[str, ...]:
        """What can be said of a state, [F]; bit f % 32 of word f // 32 of a scene is fact f."""
        ...

    @property
    def num_scene_words(self) -> int:
        """W, ceil(F / 32)."""
        ...

    @property
    def achievements(self) -> tuple[str, ...]:
        """What an episode can unlock, [K]; may be empty."""
        ...

    @property
    def score_name(self) -> str:
        """What the score counts, as an identifier: its mean is called <score_name>_per_episode."""
        ...

    @property
    def max_return(self) -> float:
        """Largest sum of rewards of an episode."""
        ...

    @property
    def max_episode_steps(self) -> int:
        """Steps after which an episode is truncated."""
        ...

    @property
    def aliases(self) -> tuple[tuple[str, ...], ...]:
        """Groups of captions that name one thing: as goals they are reached together."""
        ...

    @property
    def once(self) -> tuple[tuple[str, ...], ...]:
        """Groups of captions of which one is enough: once one is reached as a goal, all are.

        They count where somebody suggests goals (llm, oracle). Unlike `aliases` they mean different
        things: each is reached by its own caption alone.
        """
        ...

    # PLAY
    def reset(self, key: jax.Array) -> Any:
        """Begin an episode; return its state."""
        ...

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Transition]:
        """Take one action, int [] below A. Nothing is reset."""
        ...

    # WHAT IS SEEN
    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of an observation: [D], a picture [H, W, channels], or one grey frame [H, W].

        `make_world` stacks frames; no policy reads a single one.
        """
        ...

    @property
    def history(self) -> int:
        """Packed observations, oldest first, that make up one observation; 1 or more."""
        ...

    def observe(self, state: Any) -> jax.Array:
        """Return what the policy reads: float32 [D], or pixels uint8 [H, W, channels] or [H, W]."""
        ...

    def pack_observation(self, observation: jax.Array) -> jax.Array:
        """Pack observations [..., *observation_shape] for a replay buffer, [..., *P]."""
        ...

    def unpack_observation(self, packed: jax.Array) -> jax.Array:
        """Undo `pack_observation`: [..., history, *P] becomes [..., *observation_shape]."""
        ...

    def render(self, state: Any) -> jax.Array:
        """Return a picture for films, uint8 [height, width, 3]."""
        ...

    def scene(self, state: Any) -> jax.Array:
        """Return the facts that hold, packed, uint32 [W]."""
        ...

    def describe(self, scene: np.ndarray) -> str:
        """Say a packed scene, uint32 [W], in words (host)."""
        ...

    def oracle(self, state: Any) -> jax.Array:
        """Return which captions make sense as goals now, bool [C]."""
        ...

    # WHAT ASKING NEEDS (all on the host)
    @property
    def prompts(self) -> Path:
        """Folder of the prompt files."""
        ...

    @property
    def recorded(self) -> Path:
        """Folder of the recorded answers; it need not exist."""
        ...

    @property
    def recipes(self) -> Mapping[str, Mapping[str, float]]:
        """Thresholds by the beginning of a model's name in lower case, "" for any other model.

        Each has sensible_threshold, need_threshold and closed_threshold, in standard deviations.
        """
        ...

    def prompt_mask(self, scope: str) -> np.ndarray:
        """Return the facts that a prompt tells, uint32 [W]: "full" or "compact" (fewer scenes).

        Raises UserError for another scope.
        """
        ...

    def in_view_masks(self) -> np.ndarray:
        """Return per caption the facts of which one must hold to do it, uint32 [C, W].

        A zero row has no condition.
        """
        ...

    def grounding_masks(self) -> np.ndarray:
        """Return per caption the facts of which one must hold, uint32 [C, W].

        They say that its thing is there: in view, held or to be made. A zero row has no condition.
        """
        ...

    @property
    def needable(self) -> tuple[str, ...]:
        """Facts that a goal may need, in the order in which they are asked about."""
        ...

    @property
    def held(self) -> frozenset[str]:
        """The needable facts that say what one has, rather than what is in view."""
        ...

    @property
    def kinds(self) -> tuple[tuple[str, ...], ...]:
        """Groups of needable facts that are alternatives of one another (three kinds of sword)."""
        ...

    def never_needs(self, caption: str) -> frozenset[str]:
        """Return the needable facts that are not asked of a goal: its own thing, its own kind.

        What must be in view stands in `in_view_masks`.
        """
        ...

    def parts(self, caption: str) -> tuple[str, str]:
        """Return a caption's verb and noun; noun "" where there is none."""
        ...

    @property
    def meaningful(self) -> frozenset[str]:
        """Captions that make sense as goals in some state; only grading knows them."""
        ...


class PairsWorld(World, Protocol):
    """A world in which goals make sense because a thing belongs in a place (--goal-form pairs).

    T things, P places. No other world needs these members.
    """

    @property
    def things(self) -> tuple[str, ...]:
        """Names, [T]: what is there to be tidied, then others to compare it with, always the same.

        A model's scores of a thing are centred over all of them.
        """
        ...

    @property
    def places(self) -> tuple[str, ...]:
        """Names, [P], those that are not here included: a thing is asked about once for all."""
        ...

    @property
    def places_here(self) -> np.ndarray:
        """Which places there are here, bool [P]."""
        ...

    def rules_of(
        self, wrong: np.ndarray, right: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which goals make sense: to take things from wrong places and to put them in right.

        wrong, right: bool [T, P]. They are the arrays of `goals.rules.Rules`: sensible bool [C];
        needs bool [C, F], facts that must all hold; alternatives bool [C, K, F], sets of facts of
        which one must hold. `in_view_masks` hold besides.
        """
        ...


class EvidenceWorld(World, Protocol):
    """A world whose scenes tell what actions do, for --evidence. No other world needs this."""

    @property
    def changing(self) -> tuple[str, ...]:
        """Facts that an action can make true or false: what is faced, held, felt, not just seen."""
        ...

    @property
    def felt(self) -> tuple[str, ...]:
        """Those of `changing` that tell of needs (hungry, tired): what ends them may do only so."""
        ...


class TaskingWorld(World, Protocol):
    """A world with tasks that --task names: see worlds/tasks.py. No other world needs this."""

    @property
    def tasks(self) -> Mapping[str, "Task"]:
        """The tasks by name; of the class, so that a task is known before there is a world."""
        ...

    def effect(self, before: Any, action: jax.Array, after: Any) -> jax.Array:
        """Return what an action really did, as a caption, int32 []; 0: nothing."""
        ...


@struct.dataclass
class Guide:
    """Where what some captions name is, as far as the episode has seen it.

    view: float32 [M], for the policy: where, and whether to act now would do one of them; acts:
    bool [A, 2], of each action whether it is called as one of them, and whether it would come true
    now, as far as one sees; nearness: float32 [], how near the nearest is in steps, from 0 (far, or
    not known) to 1 (at hand); found: float32 [], how much the episode has seen for the first time
    so far, of whatever is there.
    """

    view: jax.Array
    acts: jax.Array
    nearness: jax.Array
    found: jax.Array


class GuidingWorld(World, Protocol):
    """A world that tells how to come by its captions, for --goal-view, --goal-head and the like.

    No other world needs these members, and `reset_anywhere` only one that has such beginnings.
    """

    @property
    def counts_finds(self) -> bool:
        """Whether `Guide.found` counts anything."""
        ...

    def guide(self, state: Any, named: jax.Array) -> Guide:
        """Return where is what the captions `named`, bool [C], name."""
        ...

    def reset_anywhere(self, key: jax.Array) -> Any:
        """Begin an episode in the midst of things (--exploring-starts)."""
        ...


# HELPERS FOR WORLDS
def choose_options(
    name: str, args: WorldArgs, known: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """Return the options of the world `name`, the first of those known where none is given.

    An option of which no value is known takes any; not given it is None. Raises UserError, naming
    the flag, for an option or a value that the world does not have.
    """
    options = {}
    for field in [field.name for field in fields(WorldArgs) if field.name != "env"]:
        value, flag = getattr(args, field), f"--{field.replace('_', '-')}"
        if field in known:
            values = known[field]
            options[field] = values[0] if value is None and values else value
            if values and options[field] not in values:
                raise UserError(
                    f"{name} has no {flag} {value!r}; known: {', '.join(map(str, values))}"
                )
        elif value is not None:
            flags = ", ".join(f"--{option.replace('_', '-')}" for option in known)
            raise UserError(f"{name} has no option {flag}; its options: {flags or 'none'}")
    return options


def pack_facts(bits: np.ndarray) -> np.ndarray:
    """Pack facts bool [..., F] as a scene is packed, uint32 [..., W]."""
    padding = [(0, 0)] * (bits.ndim - 1) + [(0, -bits.shape[-1] % 32)]
    packed = np.packbits(np.pad(bits, padding), axis=-1, bitorder="little")
    return packed.view("<u4").astype(np.uint32)


def mask_of(facts: Sequence[str], chosen: Iterable[str]) -> np.ndarray:
    """Return the mask, uint32 [W], of those `chosen` of a world's `facts`; others are an error."""
    bits = np.zeros(len(facts), bool)
    bits[[facts.index(fact) for fact in chosen]] = True
    return pack_facts(bits)
