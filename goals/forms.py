"""The forms in which goals are asked for."""

from collections.abc import Collection

from goals.arguments import GoalArgs
from goals.closed import Closed
from goals.open_ended import OpenEnded
from goals.rules import RulesForm
from worlds.world import World

Form = OpenEnded | Closed | RulesForm


def make_form(
    world: World,
    args: GoalArgs,
    model: str = "",
    seed: int = 0,
    answered: Collection[str] = (),
) -> Form:
    """Make the form that --goal-form names; raises UserError for a prompt that is not there.

    model: the identity of who answers, whose recipe is taken; seed: of what is drawn; answered:
    hashes of the prompts that there are answers to, see `newest_version`.
    """
    if args.goal_form == "open":
        limits = args.max_goal_tokens, args.temperature
        return OpenEnded(world, args.prompt, *limits, seed, args.votes, answered)
    if args.goal_form == "closed":
        ways = args.closed_scoring, args.closed_calibration
        return Closed(world, args.prompt, model, *ways, answered=answered)
    return RulesForm(world, args.prompt, model, answered=answered)
