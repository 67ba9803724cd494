"""Worlds an agent lives in: a JAX environment and its words."""

from lab.errors import UserError
from worlds.crafter import Crafter
from worlds.frames import FrameStack

WORLDS = {"crafter": Crafter}


def make_world(env: str, **options):
    """Make the world called `env`; `options` are its fields. A world that observes frames is made to stack them.

    Raises UserError for an unknown name.
    """
    if env not in WORLDS:
        raise UserError(f"unknown --env {env!r}; known: {', '.join(sorted(WORLDS))}")
    world = WORLDS[env](**options)
    return FrameStack(world) if options.get("observation") == "frames" else world
