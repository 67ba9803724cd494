"""Guided exploration (section 5): the policy of another run acts for a learner now and then.

The guide reads what it was trained to read: its own goals, which it reaches or not in the learner's
episodes. N envs, A actions, G goals of the guide.
"""

import zlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from goals.tables import GoalTables
from lab.errors import UserError
from lab.evaluate import find_script, load_run, load_script
from lab.play import Moment
from lab.pretrained import find_run
from worlds.tasks import bare_world, without_task
from worlds.world import World


@struct.dataclass
class MentorTables:
    """A guide's tables and parameters: what of it is on the device."""

    tables: GoalTables
    params: Any


@struct.dataclass
class Advice:
    """What a guide would do: probabilities [N, A] float32; its goals: suggested, [N, G] bool."""

    probabilities: jax.Array
    suggested: jax.Array


@dataclass(frozen=True)
class Mentor:
    """A guide, as the jitted functions treat it as constant; its arrays are in `MentorTables`.

    knows_task: whether its world has the learner's task, too.
    """

    script: ModuleType
    setup: Any
    knows_task: bool

    def advise(
        self,
        mentor: MentorTables,
        key: jax.Array,
        moment: Moment,
        reached: jax.Array,
        share: jax.Array,
    ) -> Advice:
        """Say what the guide would do; reached: [N, G] bool, which of its goals it has reached.

        share: of the actions that it takes, float32 []; at 0 it is not asked, and says nothing.
        """
        states = moment.states if self.knows_task else without_task(moment.states)
        seen = Moment(states, moment.captions_so_far, reached)

        def ask() -> Advice:
            said = self.script.propose(self.setup, mentor.tables, mentor.params, key, seen)
            return Advice(*said)

        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(ask))
        return jax.lax.cond(share > 0, ask, lambda: nothing)

    def follow(
        self,
        mentor: MentorTables,
        advice: Advice,
        reached: jax.Array,
        actions: jax.Array,
        captions: jax.Array,
    ) -> jax.Array:
        """Return which of its goals the guide has reached after the step, [N, G] bool."""
        args = self.setup.args
        if not args.tracks_goals:
            return reached
        names, threshold = args.names_of(actions, captions), args.similarity_threshold
        reward_step = self.script.reward_step
        return reward_step(mentor.tables, threshold, advice.suggested, reached, names)[1]


def load_mentor(run: str | None, world: World) -> tuple[Mentor | None, MentorTables | None]:
    """Return the guide that --guide names, and its arrays; two times None without one.

    world: the learner's. Raises UserError where there is no such run, or it lives in another
    world or asks for what nobody can tell it here.
    """
    if run is None:
        return None, None
    folder = find_run(run, "--guide")
    script = load_script(find_script(folder))
    if not hasattr(script, "propose"):
        raise UserError(f"--guide {run} was trained by {script.__file__}, which has no `propose`")
    policy, service, params = load_run(script, folder)
    setup, tables = policy.setup, service.evaluation_tables
    service.close()
    other_task = getattr(setup.world, "task_sentence", None)
    if other_task and bare_world(setup.world) == bare_world(world) and setup.world != world:
        raise UserError(
            f"--guide {run} was trained on another task ({other_task!r}): give a run without one, "
            "or of this one"
        )
    if setup.world not in (world, bare_world(world)):
        raise UserError(f"--guide {run} is of another world: {setup.world!r} there, {world!r} here")
    if setup.args.asks:
        raise UserError(
            f"--guide {run} reads answers or captions scene by scene, which nobody gives it here: "
            "give a run of --goal-form rules or pairs, and --text-observation facts or none"
        )
    return Mentor(script, setup, setup.world == world), MentorTables(tables, params)


def begin_reached(mentor: MentorTables | None, num_envs: int) -> jax.Array:
    """Return that the guide has reached none of its goals, bool [N, G]; G is 0 without a guide."""
    num_goals = 0 if mentor is None else mentor.tables.sensible.shape[0]
    return jnp.zeros((num_envs, num_goals), bool)


def mix(logits: jax.Array, advice: Advice, share: jax.Array) -> jax.Array:
    """Return the log-probabilities [N, A] of a policy of which the guide acts a `share`.

    b(a|s) = (1 - share) softmax(logits) + share guide(a|s), a mixture as in policy reuse (Fernandez
    and Veloso, 2006).
    """
    return jnp.log((1.0 - share) * jax.nn.softmax(logits) + share * advice.probabilities)


def checksum(mentor: MentorTables | None) -> int | None:
    """Return a number that tells a guide, its parameters and its rules, from any other."""
    if mentor is None:
        return None
    total = 0
    for leaf in jax.tree.leaves(jax.device_get(mentor)):
        total = zlib.crc32(np.ascontiguousarray(leaf), total)
    return total
