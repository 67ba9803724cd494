"""The forms in which goals are asked for."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from goals.arguments import GoalArgs
from goals.closed import Closed
from goals.open_ended import STOP, OpenEnded, parse_goals
from goals.packing import unpack_scores
from goals.pairs import PairsForm
from goals.rules import RulesForm, read_odds
from worlds.world import World

Form = OpenEnded | Closed | RulesForm | PairsForm


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
    if args.goal_form == "pairs":
        scoring, choice = args.pair_scoring, args.pair_choice
        return PairsForm(world, args.prompt, model, scoring, choice=choice, answered=answered)
    return RulesForm(world, args.prompt, model, answered=answered)


def is_answer(parameters: Mapping[str, Any], raw: str) -> bool:
    """Return whether a raw answer can be used, by the parameters that it was asked for with.

    A list without a goal cannot, nor yes-or-no where neither was likely, nor scores that are none.
    A model that cannot score opening phrases says so by an empty answer to them, which can.
    """
    if "max_tokens" in parameters:
        lists = raw.split(STOP[0]) if "votes" in parameters else [raw]
        return any(map(parse_goals, lists))
    form = parameters.get("form")
    if form in ("likelihood", "pairs") or (form == "yes-no" and "goals" in parameters):
        return unpack_scores(raw).size > 0
    return form != "yes-no" or not np.isnan(read_odds(raw))
