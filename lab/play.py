"""Play whole episodes with a policy, for figures and films."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from goals.service import GoalService
from goals.tables import GoalTables, grow_goals, is_known
from lab.metrics import evaluation_statistics
from worlds.tasks import evaluation_world
from worlds.world import Transition, World

HELD_OUT = 0x4845  # seed of the worlds of evaluations, which no training shares
LOOK_EVERY = 20  # steps between looks at whether all episodes are over


@struct.dataclass
class Moment:
    """N worlds at one moment of their episodes.

    states: [N, ...]; captions_so_far: [N, C] bool, captions of the episode up to now; achieved:
    [N, G] bool, goals reached in the episode.
    """

    states: Any
    captions_so_far: jax.Array
    achieved: jax.Array

    def after(self, states: Any, captions: jax.Array) -> "Moment":
        """Return the moment one step later, no goal reached by it; captions: [N] int32."""
        caption = jax.nn.one_hot(captions, self.captions_so_far.shape[1], dtype=bool)
        return Moment(states, self.captions_so_far | caption, self.achieved)


@struct.dataclass
class Unknown:
    """Scenes [M, W] uint32, and which of them the host must make known, mask [M] bool."""

    scenes: jax.Array
    mask: jax.Array


@dataclass(frozen=True)
class Policy:
    """How a script acts: act(setup, tables, params, key, moment) -> (moment, transition, shown).

    `setup` is the script's and hashable, with `args` and `world`. transition: `Transition` [N];
    shown: dict of [N, ...], what a film shows of the step beyond moment and transition.
    """

    setup: Any
    act: Callable[..., tuple[Moment, Transition, dict[str, jax.Array]]]


@struct.dataclass
class Episodes:
    """M episodes being played, each until it is over.

    score, returns: [M] float32; achievements: [M, K] bool; lengths: [M] int32; over: [M] bool.
    """

    moment: Moment
    score: jax.Array
    achievements: jax.Array
    returns: jax.Array
    lengths: jax.Array
    over: jax.Array


def first_moment(world: World, states: Any, num_goals: int) -> Moment:
    """Return the beginning of the episodes of N states."""
    n = jax.tree.leaves(states)[0].shape[0]
    return Moment(
        states, jnp.zeros((n, len(world.captions)), bool), jnp.zeros((n, num_goals), bool)
    )


def select(condition: jax.Array, new: Any, old: Any) -> Any:
    """Choose per world between two trees of [N, ...]; condition: [N] bool."""

    def choose(x, y):
        return jnp.where(condition.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(choose, new, old)


@partial(jax.jit, static_argnums=(0, 2))
def begin(world: World, keys: jax.Array, num_goals: int) -> Episodes:
    """Begin one episode for each key [M]."""
    m = keys.shape[0]
    return Episodes(
        moment=first_moment(world, jax.lax.map(world.reset, keys), num_goals),
        score=jnp.zeros(m),
        achievements=jnp.zeros((m, len(world.achievements)), bool),
        returns=jnp.zeros(m),
        lengths=jnp.zeros(m, jnp.int32),
        over=jnp.zeros(m, bool),
    )


@partial(jax.jit, static_argnums=0)
def advance(
    policy: Policy, tables: GoalTables, params: Any, key: jax.Array, episodes: Episodes
) -> tuple[Episodes, dict[str, jax.Array]]:
    """Act once in every episode that is not over; return also what the first world's step shows."""
    moment, transition, shown = policy.act(policy.setup, tables, params, key, episodes.moment)
    after = Episodes(
        moment=moment,
        score=transition.score,
        achievements=transition.achievements,
        returns=episodes.returns + transition.reward,
        lengths=episodes.lengths + 1,
        over=transition.terminated | transition.truncated,
    )
    shown |= {
        "state": episodes.moment.states,
        "achieved": episodes.moment.achieved,
        "caption": transition.caption,
        "score": transition.score,
        "achievements": transition.achievements,
        "over": episodes.over,
    }
    first = jax.tree.map(lambda x: x[0], shown)
    return select(episodes.over, episodes, after), first


@partial(jax.jit, static_argnums=0)
def look(policy: Policy, tables: GoalTables, episodes: Episodes) -> tuple[jax.Array, jax.Array]:
    """Return the scenes [M, W] uint32 now, and which of them are not known, [M] bool."""
    args, world = policy.setup.args, policy.setup.world
    scenes = jax.vmap(world.scene)(episodes.moment.states)
    return scenes, ~is_known(args, world, tables, scenes) & ~episodes.over


def play(
    policy: Policy,
    service: GoalService,
    params: Any,
    num_episodes: int,
    key: jax.Array,
    film: bool = True,
) -> tuple[dict[str, Any], list[dict[str, jax.Array]]]:
    """Play episodes in fresh worlds; return statistics and, with film, the steps of the first.

    Only a policy that must know its scene asks for unknown ones; in a film of any other these have
    no goals.
    """
    args, world = policy.setup.args, evaluation_world(policy.setup.world)
    policy = replace(policy, setup=replace(policy.setup, world=world))
    reset_key, key = jax.random.split(key)
    episodes = begin(world, jax.random.split(reset_key, num_episodes), service.num_goals)
    shown, tables = [], service.evaluation_tables
    for step in range(world.max_episode_steps):
        # HOST WAITS for the device, at every step if the policy must know its scene.
        if step % LOOK_EVERY == 0 and bool(episodes.over.all()):
            break
        if args.must_know_scene:
            scenes, unknown = map(np.asarray, look(policy, tables, episodes))
            if unknown.any():
                service.know(scenes[unknown])
                tables = service.evaluation_tables
                episodes = grow_goals(episodes, service.num_goals)
        step_key = jax.random.fold_in(key, step)
        episodes, first = advance(policy, tables, params, step_key, episodes)
        if film:
            shown.append(first)
    numbers = (episodes.score, episodes.achievements, episodes.returns, episodes.lengths)
    return evaluation_statistics(world, *map(np.asarray, numbers)), shown
