"""Worlds an agent lives in: a JAX environment and its words."""

import importlib

from lab.errors import UserError
from worlds.frames import FrameStack
from worlds.world import World, WorldArgs

WORLDS = {"crafter": "worlds.crafter.world:Crafter"}  # imported when asked for
MEMBERS = tuple(name for name in vars(World) if not name.startswith("_"))  # of the contract


def make_world(args: WorldArgs) -> World:
    """Make the world that `args.env` names; one that observes single frames is made to stack them.

    Raises UserError for a name or an option that is unknown, and for a class that is no world.
    """
    if args.env not in WORLDS and ":" not in args.env:
        known = ", ".join(sorted(WORLDS))
        raise UserError(f"unknown --env {args.env!r}; known: {known}, or package.module:Class")
    world_class = _import(args.env, WORLDS.get(args.env, args.env))
    if not hasattr(world_class, "from_args"):
        raise UserError(f"--env {args.env}: the class has no from_args (see worlds/world.py)")
    world = world_class.from_args(args)
    missing = [name for name in MEMBERS if not hasattr(world, name)]
    if missing:
        lacks = ", ".join(missing)
        raise UserError(f"--env {args.env} is no world, it lacks {lacks} (see worlds/world.py)")
    # Grey frames, [H, W], are the only observations of two axes.
    return FrameStack(world) if len(world.observation_shape) == 2 else world


def _import(env: str, path: str) -> type:
    """Import package.module:Class; raises UserError naming `env` where that fails."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of the user's own may raise anything
        said = " ".join(str(error).split())
        raise UserError(f"--env {env}: {type(error).__name__}: {said}") from error
