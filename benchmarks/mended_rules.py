"""Train ellm_ppo.py with three rules of its language model set right by hand: python benchmarks/mended_rules.py.

Tells what these rules cost ELLM; takes the arguments of ellm_ppo.py. The comparison runs it as a method of its own. No step towards
a better agent: the mends come from the game's rules, which ELLM is not told.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import ellm_ppo  # noqa: E402
import goals.rules  # noqa: E402
from ellm_ppo import PRESETS, Args  # noqa: E402
from lab.cli import run_cli  # noqa: E402
from lab.errors import UserError  # noqa: E402

# All that each goal needs, for the 1.5B's (wood, coal), (a table, iron) and nothing.
MENDED = {
    "place furnace": ("have stone",),
    "make stone sword": ("see crafting table", "have wood", "have stone"),
    "sleep": ("sleepy",),
}


def mend(rules: goals.rules.Rules, world) -> goals.rules.Rules:
    """Return the rules with those of `MENDED` replaced, in place."""
    for goal, needs in MENDED.items():
        caption = world.captions.index(goal)
        rules.sensible[caption] = True
        rules.needs[caption] = [fact in needs for fact in world.facts]
        rules.alternatives[caption] = False
    return rules


def main(args: Args) -> None:
    """Train with mended rules; raises UserError where goals do not come from rules."""
    if (args.env, args.goal_source, args.goal_form) != ("crafter", "llm", "rules"):
        raise UserError("mended rules need --env crafter, --goal-source llm and --goal-form rules")
    compile_rules = goals.rules.compile_rules
    goals.rules.compile_rules = lambda world, *scores: mend(compile_rules(world, *scores), world)
    ellm_ppo.main(args)


if __name__ == "__main__":
    run_cli(main, Args, lambda args: PRESETS[args.preset])
