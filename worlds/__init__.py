"""Worlds an agent lives in: a JAX environment and its words."""

import importlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lab.errors import UserError
from worlds.frames import FrameStack
from worlds.tasks import Task, TaskWorld
from worlds.world import World, WorldArgs

WORLDS = {  # imported when asked for
    "crafter": "worlds.crafter.world:Crafter",
    "housekeep": "worlds.housekeep.world:Housekeep",
}
MEMBERS = tuple(name for name in vars(World) if not name.startswith("_"))  # of the contract


def make_world(args: WorldArgs) -> World:
    """Make the world that `args.env` names; one that observes single frames is made to stack them.

    Raises UserError for a name or an option that is unknown, and for a class that is no world.
    """
    world_class = _find(args.env)
    if not hasattr(world_class, "from_args"):
        raise UserError(f"--env {args.env}: the class has no from_args (see worlds/world.py)")
    reward, (task, args) = args.task_reward, _find_task(world_class, args)
    world = world_class.from_args(args)
    missing = [name for name in MEMBERS if not hasattr(world, name)]
    if missing:
        lacks = ", ".join(missing)
        raise UserError(f"--env {args.env} is no world, it lacks {lacks} (see worlds/world.py)")
    if task is not None:
        world = TaskWorld(world, task, is_once=reward != "each")
    # Grey frames, [H, W], are the only observations of two axes.
    return FrameStack(world) if len(world.observation_shape) == 2 else world


def world_defaults(args: WorldArgs) -> Mapping[str, Any]:
    """Return what arguments are by default in the world, and for the task, that `args` name.

    Raises UserError for a class that cannot be imported.
    """
    if not _is_known(args.env):
        return {}
    of_task = {"goal_source": "task"} if args.task in world_tasks(args) else {}
    return {**getattr(_find(args.env), "defaults", {}), **of_task}


def world_tasks(args: WorldArgs) -> Mapping[str, Task]:
    """Return the tasks by name of the world that `args.env` names, none for an unknown one."""
    return getattr(_find(args.env), "tasks", {}) if _is_known(args.env) else {}


def _find_task(world_class: type, args: WorldArgs) -> tuple[Task | None, WorldArgs]:
    """Return the task that `args.task` names in a world with tasks, and the arguments without it.

    Raises UserError for a task that is unknown, and for a wrong --task-reward.
    """
    tasks = getattr(world_class, "tasks", {})
    if args.task is None or not tasks:
        if args.task_reward is not None:
            raise UserError(f"--task-reward {args.task_reward} is of a --task of {args.env}: none")
        return None, args
    if args.task not in tasks:
        known = ", ".join(tasks)
        raise UserError(f"{args.env} has no --task {args.task!r}; known: {known}")
    if args.task_reward not in (None, "once", "each"):
        raise UserError(f"--task-reward {args.task_reward!r} is unknown; known: once, each")
    return tasks[args.task], replace(args, task=None, task_reward=None)


def _is_known(env: str) -> bool:
    return env in WORLDS or ":" in env


def _find(env: str) -> type:
    if not _is_known(env):
        known = ", ".join(sorted(WORLDS))
        raise UserError(f"unknown --env {env!r}; known: {known}, or package.module:Class")
    return _import(env, WORLDS.get(env, env))


def _import(env: str, path: str) -> type:
    """Import package.module:Class; raises UserError naming `env` where that fails."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of the user's own may raise anything
        said = " ".join(str(error).split())
        raise UserError(f"--env {env}: {type(error).__name__}: {said}") from error
