"""Tasks: a world whose reward is for one thing done, for what comes after pretraining (section 5).

A world that has some says so by `tasks` and `effect` (`worlds.world.TaskingWorld`); --task NAME
wraps it. C captions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lab.errors import UserError
from worlds.world import Transition, World
from worlds.wrapper import WorldWrapper

# (world, memory int32 [], effect int32 [], state before, state after) -> (memory, success bool []):
# judges one step. The memory is the judge's own, 0 when an episode begins.
Judge = Callable[[World, jax.Array, jax.Array, Any, Any], tuple[jax.Array, jax.Array]]


@dataclass(frozen=True)
class Task:
    """What is to be done.

    sentence: what the policy reads as its goal; subgoals: captions that lead to it, one at least,
    which it reads one by one instead if --task-goals says so; in_order: whether a sub-goal counts
    only when those before it are done, else each counts whenever it truly happens.
    """

    sentence: str
    subgoals: tuple[str, ...]
    judge: Judge = field(repr=False)
    in_order: bool = False


# JUDGES
@dataclass(frozen=True)
class Times:
    """Succeeds each time that one of the captions has truly happened `number` times more."""

    captions: tuple[str, ...]
    number: int = 1

    def __call__(
        self, world: World, memory: jax.Array, effect: jax.Array, before: Any, after: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Judge one step."""
        memory += is_one_of(world, effect, self.captions)
        success = memory >= self.number
        return jnp.where(success, 0, memory), success


@dataclass(frozen=True)
class InOrder:
    """Succeeds when the captions have truly happened one after another, whatever came between."""

    captions: tuple[str, ...]

    def __call__(
        self, world: World, memory: jax.Array, effect: jax.Array, before: Any, after: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Judge one step."""
        wanted = jnp.array([world.captions.index(caption) for caption in self.captions])
        memory += effect == wanted[memory]
        success = memory >= len(self.captions)
        return jnp.where(success, 0, memory), success


def is_one_of(world: World, effect: jax.Array, captions: tuple[str, ...]) -> jax.Array:
    """Return whether what happened, int32 [], is one of the captions, bool []."""
    return jnp.array([effect == world.captions.index(caption) for caption in captions]).any()


# THE WORLD WITH A TASK
@struct.dataclass
class TaskState:
    """A world's state, and how far the task is.

    memory: int32 [], the judge's; done: bool [S], which sub-goals are done; solved: bool [], the
    episode has had its success; timestep: int32 [], holds, and overwrites the inner state's.
    """

    inner: Any
    memory: jax.Array
    done: jax.Array
    solved: jax.Array
    timestep: jax.Array


@dataclass(frozen=True)
class TaskWorld(WorldWrapper):
    """A world (`worlds.world.TaskingWorld`) that pays 1 for its task's success, and nothing else.

    is_once: it pays once an episode, else each time (the paper's); ends: success ends the episode,
    as evaluations have it. The score is 1 as soon as the episode has had its success. Raises
    UserError for a task of captions that the world does not have.
    """

    task: Task
    is_once: bool = True
    ends: bool = False

    score_name: ClassVar = "success"

    def __post_init__(self):
        named = (*self.task.subgoals, *getattr(self.task.judge, "captions", ()))
        unknown = [caption for caption in named if caption not in self.captions]
        if unknown or not self.task.subgoals or not hasattr(self.world, "effect"):
            what = f"{unknown[0]!r} is no caption" if unknown else "no sub-goals"
            what = what if hasattr(self.world, "effect") else "the world has no `effect`"
            raise UserError(f"task {self.task.sentence!r} of {self.name}: {what}; worlds/tasks.py")

    @property
    def max_return(self) -> float:
        """The most an episode can be paid: no more than 1 each step."""
        return 1.0 if self.is_once or self.ends else float(self.max_episode_steps)

    @property
    def in_evaluation(self) -> "TaskWorld":
        """The world in which evaluations take place."""
        return replace(self, ends=True)

    @property
    def task_sentence(self) -> str:
        """What the policy reads as its goal."""
        return self.task.sentence

    @cached_property
    def _subgoals(self) -> np.ndarray:
        """The sub-goals' captions, int32 [S]."""
        return np.array([self.captions.index(caption) for caption in self.task.subgoals], np.int32)

    @cached_property
    def _done_by(self) -> np.ndarray:
        """Which captions do each sub-goal, under any of its names, bool [S, C]."""
        same = np.eye(len(self.captions), dtype=bool)
        for group in self.aliases:
            numbers = [self.captions.index(caption) for caption in group]
            same[np.ix_(numbers, numbers)] = True
        return same[self._subgoals]

    def bare(self, state: TaskState) -> Any:
        """Return the state without the task."""
        return state.inner.replace(timestep=state.timestep)

    def wrap(self, state: Any) -> TaskState:
        """Return the first state of an episode: nothing is done."""
        done = jnp.zeros(len(self.task.subgoals), bool)
        memory, solved = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        return TaskState(state, memory, done, solved, state.timestep)

    def step(
        self, key: jax.Array, state: TaskState, action: jax.Array
    ) -> tuple[TaskState, Transition]:
        """Take one action, and judge it. Nothing is reset."""
        before = self.bare(state)
        after, transition = self.world.step(key, before, action)
        effect = self.world.effect(before, action, after)
        memory, success = self.task.judge(self.world, state.memory, effect, before, after)
        paid = success & ~state.solved if self.is_once else success
        solved = state.solved | success
        done = self._progress(state.done, effect, success)
        terminated = transition.terminated | (solved & self.ends)
        transition = transition.replace(
            reward=paid.astype(jnp.float32),
            terminated=terminated,
            truncated=transition.truncated & ~terminated,
            score=solved.astype(jnp.float32),
        )
        return TaskState(after, memory, done, solved, after.timestep), transition

    def _progress(self, done: jax.Array, effect: jax.Array, success: jax.Array) -> jax.Array:
        """Return which sub-goals are done after a step, bool [S].

        What happened does the first open sub-goal that it fits. A success opens again what it takes
        once more: the last sub-goal and all that are called the same, or all of a task in order.
        """
        subgoals = self.task.subgoals
        fits = jnp.asarray(self._done_by)[:, effect] & ~done
        if self.task.in_order:
            fits &= jnp.arange(len(subgoals)) == done.argmin()
        done |= fits & (jnp.arange(len(subgoals)) == fits.argmax())
        again = np.array([self.task.in_order or name == subgoals[-1] for name in subgoals])
        return done & ~(success & jnp.asarray(again))

    def task_goals(self, state: TaskState, in_parts: bool) -> jax.Array:
        """Return what the policy reads as its goal, bool [C + 1]: the last is the task's sentence.

        in_parts: the sub-goal that is next instead. Nothing when there is nothing more to earn.
        """
        num_captions = len(self.captions)
        goal = jnp.asarray(self._subgoals)[state.done.argmin()] if in_parts else num_captions
        is_open = ~(state.solved & (self.is_once or self.ends))
        return jax.nn.one_hot(goal, num_captions + 1, dtype=bool) & is_open


def bare_world(world: World) -> World:
    """Return a world, stacked or not, as it is without a task."""
    if isinstance(world, TaskWorld):
        return world.world
    return replace(world, world=bare_world(world.world)) if hasattr(world, "world") else world


def evaluation_world(world: World) -> World:
    """Return the world in which a policy of `world` is evaluated: itself, if it has no task."""
    return getattr(world, "in_evaluation", world)


def without_task(state: Any) -> Any:
    """Return a state of a world, stacked or not, as it is without a task."""
    if isinstance(state, TaskState):
        return state.inner.replace(timestep=state.timestep)
    inner = getattr(state, "inner", None)
    return state if inner is None else state.replace(inner=without_task(inner))
