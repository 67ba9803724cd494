"""What leads an agent to its goals: where their things are, and rewards on the way.

Beyond the paper, and off unless a world's defaults or flags say otherwise; for worlds that guide
(`worlds.world.GuidingWorld`). T steps, N envs, G goals, C captions, M numbers of a view.
"""

from typing import Any

import jax
import jax.numpy as jnp

from goals.arguments import GoalArgs
from goals.tables import GoalTables
from lab.errors import UserError
from worlds.world import Guide, World


def check_guide(args: GoalArgs, world: World) -> None:
    """Raise UserError where guidance is asked of a world that has none."""
    if args.guides and not hasattr(world, "guide"):
        flags = "--no-goal-view --approach-coef 0 --discovery-coef 0"
        raise UserError(f"world {world.name} does not tell where goals are: give {flags}")


def find_guide(
    args: GoalArgs, world: World, tables: GoalTables, states: Any, goals: jax.Array
) -> Guide:
    """Return where the open goals, [N, G] bool, are in N states; a Guide [N], empty without use."""
    num_envs = goals.shape[0]
    if not args.guides:
        return Guide(jnp.zeros((num_envs, 0)), jnp.zeros(num_envs), jnp.zeros(num_envs))
    matches = tables.similarity > args.similarity_threshold
    named = goals.astype(jnp.float32) @ matches.astype(jnp.float32) > 0
    guide = jax.vmap(world.guide)(states, named)
    return guide if args.goal_view else guide.replace(view=guide.view[:, :0])


def guide_rewards(
    args: GoalArgs,
    gamma: float,
    guides: Guide,
    following: Guide,
    last: Guide,
    terminated: jax.Array,
    truncated: jax.Array,
) -> jax.Array:
    """Return the rewards on the way, [T, N] float32.

    For coming nearer the potential-based shaping of Ng et al. (1999), gamma F(s') - F(s) with F the
    nearness of the goals, 0 where the episode is over: it changes no policy's rank. And so much for
    whatever is newly found. guides: of the states acted in, [T, N]; following: of those after the
    last step, [N]; last: of those that the time limit cut, [N]; terminated, truncated: [T, N] bool.
    """

    def after(now: jax.Array, then: jax.Array, cut: jax.Array) -> jax.Array:
        return jnp.where(truncated, cut[None], jnp.concatenate([now[1:], then[None]]))

    nearness = after(guides.nearness, following.nearness, last.nearness) * ~terminated
    found = after(guides.found, following.found, last.found) - guides.found
    rewards = args.approach_coef * (gamma * nearness - guides.nearness)
    return rewards + args.discovery_coef * found * ~terminated
