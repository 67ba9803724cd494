"""What all bonuses share: the weights of the rewards, and what is kept of states and steps.

Axes: T steps, N envs, B states, E embedding, W scene words, D observation.
"""

from dataclasses import dataclass

import jax
from flax import struct

from goals.arguments import TextArgs
from lab.ranges import Weight


@dataclass(frozen=True)
class BonusArgs(TextArgs):
    """The weights of the two rewards; a bonus reads the words that the policy reads."""

    extrinsic_coef: Weight = 0.0  # weight of the game's reward; 0: pretraining without it
    intrinsic_coef: Weight = 1.0  # weight of the bonus


@struct.dataclass
class Seen:
    """What a bonus reads of states, of any leading shape.

    observation: [..., *shape], shape and type as the bonus says; scenes: [..., W] uint32, from
    which the text is embedded, or [..., 0] if none is read.
    """

    observation: jax.Array
    scenes: jax.Array


@struct.dataclass
class Moves:
    """The states before and after steps; nothing is reset yet, so that both are of one episode."""

    before: Seen
    after: Seen


def keep(args: TextArgs, observation: jax.Array, scenes: jax.Array) -> Seen:
    """Keep of N states what is read: scenes [N, W] only for a text observation."""
    return Seen(observation, scenes if args.text_observation != "none" else scenes[:, :0])
