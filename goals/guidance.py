"""What leads an agent to its goals: where their things are, and rewards on the way.

Beyond the paper, and off unless a world's defaults or flags say otherwise; for worlds that guide
(`worlds.world.GuidingWorld`). T steps, N envs, B minibatch, G goals, C captions, A actions, M
numbers of a view.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from goals.arguments import GoalArgs
from goals.tables import GoalTables
from lab.errors import UserError
from worlds.world import Guide, World


def check_guide(args: GoalArgs, world: World) -> None:
    """Raise UserError where guidance is asked for that there is none of."""
    if args.goal_head != "none" and not args.guides:
        raise UserError(
            f"--goal-head {args.goal_head} needs goals that are captions, and --goal-source "
            f"{args.goal_source} has none: give --goal-head none"
        )
    if args.goal_source == "task" and (args.approach_coef or args.discovery_coef):
        raise UserError(
            "--goal-source task pays the task alone: give --approach-coef 0 --discovery-coef 0"
        )
    if args.goal_source == "task" and args.guides and args.task_goals != "parts":
        raise UserError(
            "--goal-view and --goal-head need goals that are captions, and a task's sentence is "
            "none: give --task-goals parts"
        )
    if args.guides and not hasattr(world, "guide"):
        flags = "--no-goal-view --goal-head none --approach-coef 0 --discovery-coef 0"
        raise UserError(f"world {world.name} does not tell where goals are: give {flags}")
    if args.guides and args.discovery_coef and not world.counts_finds:
        raise UserError(f"world {world.name} counts no finds: give --discovery-coef 0")


def find_guide(
    args: GoalArgs, world: World, tables: GoalTables, states: Any, goals: jax.Array
) -> Guide:
    """Return where the open goals, [N, G] bool, are in N states; a Guide [N], empty without use."""
    num_envs = goals.shape[0]
    if not args.guides:
        return Guide(
            view=jnp.zeros((num_envs, 0)),
            acts=jnp.zeros((num_envs, 0, 2), bool),
            nearness=jnp.zeros(num_envs),
            found=jnp.zeros(num_envs),
        )
    matches = tables.similarity > args.similarity_threshold
    named = goals.astype(jnp.float32) @ matches.astype(jnp.float32) > 0
    guide = jax.vmap(world.guide)(states, named)
    view = guide.view if args.goal_view else guide.view[:, :0]
    acts = guide.acts if args.goal_head != "none" else guide.acts[:, :0]
    return guide.replace(view=view, acts=acts)


class GoalHead(nn.Module):
    """What open goals add to logits or action values: a policy that acts on the words it reads.

    alpha for an action that is called as an open goal, beta besides where that would come true now;
    both are linear in the features, shared by all actions, or by those of one verb. verbs: [A],
    each action's number among the verbs; reads_faced: whether there is a beta.
    """

    verbs: tuple[int, ...]
    reads_faced: bool

    @nn.compact
    def __call__(self, features: jax.Array, acts: jax.Array) -> jax.Array:
        """Return what is added, [B, A] float32; features [B, H] float32, acts [B, A, 2] bool."""
        num_parts = 1 + self.reads_faced
        width = num_parts * (max(self.verbs) + 1)
        gains = nn.Dense(width, kernel_init=nn.initializers.orthogonal(0.01))(features)
        gains = gains.reshape(len(features), -1, num_parts)[:, jnp.array(self.verbs)]
        return (gains * acts[..., :num_parts]).sum(-1)


def make_goal_head(args: GoalArgs, world: World) -> GoalHead | None:
    """Return the head that --goal-head asks for, None for none."""
    if args.goal_head == "none" or not args.guides:
        return None
    verbs = [
        world.parts(action)[0] if args.goal_head == "verbs" else "" for action in world.actions
    ]
    names = list(dict.fromkeys(verbs))
    return GoalHead(tuple(map(names.index, verbs)), args.goal_head != "named")


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
    whatever is newly found; all of it times --goal-coef. guides: of the states acted in, [T, N];
    following: of those after the last step, [N]; last: of those that the time limit cut, [N];
    terminated, truncated: [T, N] bool.
    """

    def after(now: jax.Array, then: jax.Array, cut: jax.Array) -> jax.Array:
        return jnp.where(truncated, cut[None], jnp.concatenate([now[1:], then[None]]))

    nearness = after(guides.nearness, following.nearness, last.nearness) * ~terminated
    found = after(guides.found, following.found, last.found) - guides.found
    rewards = args.approach_coef * (gamma * nearness - guides.nearness)
    return args.goal_coef * (rewards + args.discovery_coef * found * ~terminated)
