"""ELLM with DQN, the paper's learner: rewards for goals that a language model suggests.

Each scene is put into words and a language model suggests goals for it. A step whose caption
matches a suggested goal, by the cosine of their sentence embeddings, earns that similarity, once
per goal and episode (Du et al., ICML 2023). Dueling n-step Q-learning, double (the paper's) or
Munchausen, learns from a replay on the device; steps are rewarded before they enter it.

    python ellm_dqn.py --env crafter                 recorded rules of a 1.5B model, in minutes
    python ellm_dqn.py --preset paper                the paper's pixels and hyper-parameters
    python ellm_dqn.py --goal-source oracle          the upper bound: the true prerequisites

The first and the last run on two CPU cores, the second wants an accelerator; on a GPU or TPU (jax
for the device installed) begin with --preset gpu.
Axes: T steps, N envs, B minibatch, A actions, D observation, C captions, G goals, K achievements,
E embedding, W scene words, L steps of an env in the replay, P what an observation is packed into.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from goals.arguments import GoalArgs
from goals.guidance import GoalHead, find_guide, guide_rewards, make_goal_head
from goals.service import GoalService
from goals.tables import (
    GoalTables,
    grow_goals,
    is_known,
    pack_bits,
    read_text,
    share_unanswered,
    suggest,
    unpack_bits,
    word_sets,
)
from lab.arguments import RunArgs
from lab.cli import run_cli
from lab.convolution import Convolution
from lab.dense import Dense
from lab.errors import UserError
from lab.mentor import Mentor, begin_reached, load_mentor
from lab.play import Moment, Policy, Unknown, first_moment, select
from lab.ranges import Count, CountOrNone, Positive, Share, SomeShare, StepSize, Weight, Width
from lab.replay import Replay, Transitions, add, can_sample, empty_replay, sample_transitions
from lab.session import Session, configure
from lab.transfer import fine_tuning, trainable
from lab.words import Words
from worlds import make_world
from worlds.vector import VectorState, VectorWorld
from worlds.world import Guide, Transition, World, WorldArgs

# ---------------------------------------------------------------------------------------- arguments


@dataclass(frozen=True)
class Args(RunArgs, WorldArgs, GoalArgs):
    """Train an agent on goals that a language model suggests."""

    FREE: ClassVar[tuple[str, ...]] = ("preset",)

    # BEGIN DQN
    preset: Literal["cpu", "gpu", "paper"] = "cpu"
    """defaults for a laptop's CPU, for an accelerator, or the paper's"""
    checkpoint_every: Count = 500
    """time between checkpoints [updates], each with the replay; the last update has one"""
    num_envs: Count = 32  # worlds in step (N)
    num_steps: Count = 16  # steps of each world per update (T)
    train_frequency: Count = 16  # env steps per gradient step; the paper's: 4
    sample_size: Count = 64  # transitions per gradient step (B)
    learning_starts: CountOrNone = 20_000  # env steps before the first gradient step
    buffer_size: Count = 1_000_000  # transitions that the replay holds, of all worlds together
    learning_rate: StepSize = 1e-3  # Adam's step size
    gamma: Share = 0.97  # discount; the paper's: 0.99
    n_step: Count = 3  # rewards summed before the value is bootstrapped [env steps]
    target_network_frequency: Count = 8_000
    """env steps between copies of the parameters into the target network"""
    start_e: Share = 1.0  # chance of a random action at the start
    end_e: Share = 0.01  # chance of a random action after the exploration
    policy_temperature: Weight = 0.03
    """temperature of a softmax over the action values, for most of the 139 actions do nothing and
    the best may be one of them for ever; 0: always the best action, as in the paper"""
    exploration_fraction: SomeShare = 0.2
    """share of --total-timesteps in which the chance of a random action falls linearly"""
    munchausen: Share = 0.9
    """share of the log-probability of the action taken that is added to its reward (Munchausen
    DQN), which averages the noise of action values; 0: double Q-learning, as in the paper"""
    max_grad_norm: Weight = 10.0  # gradients are scaled down to this global norm; 0: they are not
    adam_eps: Positive = 1e-5  # what Adam adds to the root of the second moment; the paper's: 1e-8
    reward_clip: Weight = 0.0  # rewards are clipped to plus and minus this; 0: not; the paper's: 1
    time_limit_ends: bool = False
    """nothing is to come after the time limit, as in the paper, instead of a state's value"""
    evaluation_e: Share = 0.01  # chance of a random action in evaluation; the paper's: 0.001
    network: Literal["narrow", "paper"] = "narrow"
    """narrow: two layers with layer norm, then linear heads; paper: features at unit length, one
    linear layer, two hidden layers in each head"""
    # END DQN
    hidden_size: Width = 256  # width of the two hidden layers
    caption_memory: bool = True
    """also read which captions the episode has seen: the once-per-episode reward can be learned"""
    guide: str | None = None
    """run whose policy explores for this one, its directory or the name of a shipped agent"""
    guide_probability: Share = 0.5
    """how often the guide acts: share of the actions at the start (PPO), of the exploring ones
    (DQN; the paper's)"""

    @property
    def batch_size(self) -> int:
        """Env steps per update."""
        return self.num_envs * self.num_steps

    # BEGIN DQN
    @property
    def gradient_steps(self) -> int:
        """Gradient steps per update; raises UserError if there is no whole number of them."""
        if self.batch_size % self.train_frequency:
            wrong = f"--train-frequency {self.train_frequency} does not divide"
            raise UserError(f"{wrong} --num-envs x --num-steps, {self.batch_size}")
        return self.batch_size // self.train_frequency

    @property
    def target_period(self) -> int:
        """Gradient steps between target networks; raises UserError if that is no whole number."""
        frequency = self.target_network_frequency
        if frequency % self.train_frequency:
            wrong = f"--train-frequency {self.train_frequency} does not divide"
            raise UserError(f"{wrong} --target-network-frequency {frequency}")
        return frequency // self.train_frequency

    @property
    def buffer_steps(self) -> int:
        """Steps of each world that the replay holds (L)."""
        return min(self.buffer_size, self.total_timesteps) // self.num_envs

    # END DQN


# BEGIN DQN
PRESETS = {
    "cpu": {},
    "gpu": {
        "num_envs": 1024,
        "sample_size": 512,
        "train_frequency": 512,
        "target_network_frequency": 8_192,
        "hidden_size": 512,
        "total_timesteps": 20_000_000,
    },
    "paper": {
        "observation": "frames",
        "total_timesteps": 5_000_000,
        "num_envs": 8,
        "num_steps": 8,
        "hidden_size": 512,
        "train_frequency": 4,
        "sample_size": 64,
        "learning_starts": 5_000,
        "buffer_size": 5_000_000,
        "learning_rate": 6.25e-5,
        "gamma": 0.99,
        "policy_temperature": 0.0,
        "munchausen": 0.0,
        "max_grad_norm": 0.0,
        "adam_eps": 1e-8,
        "reward_clip": 1.0,
        "time_limit_ends": True,
        "evaluation_e": 0.001,
        "network": "paper",
    },
}
# END DQN

# ----------------------------------------------------------------------------- state and transition


@struct.dataclass
class PolicyInput:
    """What the policy reads, of any leading shape; what is switched off has size zero.

    observation: [..., D] float32 or [..., H, W, channels] uint8; captions_so_far: [..., C] bool;
    text: [..., W] uint32, the scene whose words are read; goals: [..., G / 32] uint32, suggested
    and not yet reached, packed; goal_view: [..., M] float32, where these were seen; goal_acts:
    [..., A, 2] bool, which actions do what they name.
    """

    observation: jax.Array
    captions_so_far: jax.Array
    text: jax.Array
    goals: jax.Array
    goal_view: jax.Array
    goal_acts: jax.Array


# BEGIN DQN
@struct.dataclass
class PackedInput:
    """What the policy reads as the replay holds it, of any leading shape.

    observation: [..., *P], the newest moment as the world packs it; captions_so_far:
    [..., ceil(C / 32)] uint32; text, goals: as the policy reads them; goal_view: float16;
    goal_acts: [..., ceil(A / 8), 2] uint8.
    """

    observation: jax.Array
    captions_so_far: jax.Array
    text: jax.Array
    goals: jax.Array
    goal_view: jax.Array
    goal_acts: jax.Array


# END DQN
@struct.dataclass
class Rollout:
    """T steps of N envs: inputs, scenes, suggestions before the action, the rest after it.

    scenes: [T, N, W] uint32; suggested: [T, N, G / 32] uint32, packed, of size zero where the
    scenes suffice to know it later; guides: [T, N], of the open goals, for rewards; actions,
    captions: [T, N] int32; rewards: [T, N] float32, the game's own; terminated, truncated: [T, N]
    bool.
    """

    # BEGIN DQN
    inputs: PackedInput
    # END DQN
    scenes: jax.Array
    suggested: jax.Array
    guides: Guide
    actions: jax.Array
    captions: jax.Array
    rewards: jax.Array
    terminated: jax.Array
    truncated: jax.Array


@struct.dataclass
class RunnerState:
    """All that training needs to resume, but for the goal tables.

    captions_so_far: [N, C] bool; achieved, achieved_before: [N, G] bool, goals reached in the
    episodes now (kept up within a rollout only where `tracks_goals`) and when the rollout began;
    last: where the time limit cut each env's episode in this rollout, unread where it did not (a
    rollout is no longer than an episode: at most one); step: int32 [], steps of the rollout.
    """

    params: Any
    opt_state: Any
    # BEGIN DQN
    target_params: Any
    replay: Replay
    # END DQN
    envs: VectorState
    captions_so_far: jax.Array
    achieved: jax.Array
    achieved_before: jax.Array
    mentor_reached: jax.Array
    last: Moment
    key: jax.Array
    update: jax.Array
    step: jax.Array

    @property
    def moment(self) -> Moment:
        """Return the N envs now."""
        return Moment(self.envs.states, self.captions_so_far, self.achieved)


@dataclass(frozen=True)
class Setup:
    """What the jitted functions treat as constant."""

    args: Args
    world: World
    envs: VectorWorld
    network: nn.Module
    mentor: Mentor | None = None  # --guide


# ----------------------------------------------------------------------------------------- networks


class Torso(nn.Module):
    """Two hidden layers; pixels go through three convolutions first (Mnih et al., 2015)."""

    hidden_size: int

    @nn.compact
    def __call__(self, inputs: PolicyInput, tables: GoalTables) -> jax.Array:
        """Return features [B, hidden_size] float32."""
        observation = inputs.observation
        if observation.ndim > 2:
            observation = observation.astype(jnp.float32) / 255.0
            for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
                observation = nn.relu(Convolution(features, size, stride)(observation))
            observation = observation.reshape(observation.shape[0], -1)
        sets = word_sets(tables, inputs.text, inputs.goals)
        words = [Words(self.hidden_size // 2)(texts) for texts in sets]
        captions = inputs.captions_so_far.astype(jnp.float32)
        seen = (observation, captions, inputs.goal_view)
        x = nn.relu(nn.LayerNorm()(Dense(self.hidden_size)(*seen, *words)))
        return nn.relu(nn.LayerNorm()(Dense(self.hidden_size)(x)))


# BEGIN DQN
class PaperTorso(nn.Module):
    """The paper's: what is seen at unit length, then one linear layer for all that is read."""

    hidden_size: int

    @nn.compact
    def __call__(self, inputs: PolicyInput, tables: GoalTables) -> jax.Array:
        """Return features [B, hidden_size] float32."""
        seen = inputs.observation
        if seen.ndim > 2:
            seen = seen.astype(jnp.float32) / 255.0
            for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
                seen = nn.relu(Convolution(features, size, stride)(seen))
            seen = seen.reshape(seen.shape[0], -1)
        seen /= jnp.maximum(jnp.linalg.norm(seen, axis=-1, keepdims=True), 1e-12)
        sets = word_sets(tables, inputs.text, inputs.goals)
        words = [Words(self.hidden_size // 2)(texts) for texts in sets]
        captions = inputs.captions_so_far.astype(jnp.float32)
        seen = (seen, captions, inputs.goal_view)
        return Dense(self.hidden_size, nn.initializers.lecun_normal())(*seen, *words)


class DuelingNetwork(nn.Module):
    """Action values as value plus advantages on one torso (Wang et al., 2016)."""

    num_actions: int
    hidden_size: int
    kind: str
    goal_head: GoalHead | None = None

    @nn.compact
    def __call__(self, inputs: PolicyInput, tables: GoalTables) -> jax.Array:
        """Return action values [B, A] float32."""
        is_paper, size = self.kind == "paper", self.hidden_size
        x = (PaperTorso if is_paper else Torso)(size)(inputs, tables)

        def head(width, scale):
            y = x
            for _ in range(2 if is_paper else 0):
                y = nn.relu(nn.Dense(size)(y))
            return nn.Dense(width, kernel_init=nn.initializers.orthogonal(scale))(y)

        advantages, values = head(self.num_actions, 0.01), head(1, 1.0)
        if self.goal_head:
            advantages += self.goal_head(x, inputs.goal_acts)
        return values + advantages - advantages.mean(-1, keepdims=True)


# END DQN
def make_setup(args: Args, world: World, mentor: Mentor | None = None) -> Setup:
    """Return the constants; raises UserError for arguments that do not go together."""
    if args.num_steps > world.max_episode_steps:
        raise UserError(f"--num-steps {args.num_steps}: give at most {world.max_episode_steps}")
    # BEGIN DQN
    _ = args.num_updates, args.gradient_steps, args.target_period  # raise what is wrong with them
    if args.munchausen and not args.policy_temperature:
        raise UserError(f"--munchausen {args.munchausen} needs a --policy-temperature above 0")
    fewest = args.num_envs * (args.num_steps + world.history + args.n_step)
    if args.num_envs * args.buffer_steps < fewest:
        small = f"--buffer-size {args.buffer_size} is too small for --num-envs {args.num_envs}"
        raise UserError(f"{small}: at least {fewest}")
    goal_head, width = make_goal_head(args, world), args.hidden_size
    network = DuelingNetwork(len(world.actions), width, args.network, goal_head)
    # END DQN
    pool_size, starts = max(16, args.num_envs), args.exploring_starts
    envs = VectorWorld(world, args.num_envs, pool_size, exploring_starts=starts)
    return Setup(args, world, envs, network, mentor)


# BEGIN DQN
def make_optimizer(args: Args) -> optax.GradientTransformation:
    """Return Adam, with clipped gradients if --max-grad-norm says so."""
    adam = optax.adam(args.learning_rate, eps=args.adam_eps)
    clip = optax.clip_by_global_norm(args.max_grad_norm) if args.max_grad_norm else optax.identity()
    return trainable(args, optax.chain(clip, adam))


# END DQN
@partial(jax.jit, static_argnums=0)
def init_state(setup: Setup, tables: GoalTables) -> RunnerState:
    """Return the state before the first step."""
    args = setup.args
    key, params_key, envs_key = jax.random.split(jax.random.key(args.seed), 3)
    envs = setup.envs.reset(envs_key)
    moment = first_moment(setup.world, envs.states, tables.sensible.shape[0])
    inputs = read(setup, tables, key, moment)[0]
    params = setup.network.init(params_key, inputs, tables)
    # BEGIN DQN
    packed = pack_input(setup, inputs)
    # END DQN
    return RunnerState(
        params=params,
        opt_state=make_optimizer(args).init(params),
        # BEGIN DQN
        target_params=jax.tree.map(jnp.copy, params),
        replay=empty_replay(packed, args.buffer_steps, setup.world.max_episode_steps),
        # END DQN
        envs=envs,
        captions_so_far=moment.captions_so_far,
        achieved=moment.achieved,
        achieved_before=jnp.copy(moment.achieved),
        mentor_reached=begin_reached(tables.mentor, args.num_envs),
        last=jax.tree.map(jnp.copy, moment),
        key=key,
        update=jnp.zeros((), jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


# ------------------------------------------------------------------------------------------- REWARD


def reward_step(
    tables: GoalTables,
    threshold: float,
    suggested: jax.Array,
    achieved: jax.Array,
    captions: jax.Array,
    wrong_reward: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Reward one step (section 3 of the paper); return also what is achieved after it, [N, G].

    r = max s(g, c) over goals g suggested for the scene before the step, new in the episode and
    with s(g, c) > T, else 0; s: cosine of the embeddings of goal g and caption c. With a goal its
    aliases are achieved, suggested or not. A caption that reaches no suggested goal is wrong.
    suggested, achieved: [N, G] bool; captions: [N] int32.
    """
    similarity = tables.similarity.T[captions]
    chex.assert_equal_shape([suggested, achieved, similarity])
    reached = suggested & (similarity > threshold) & ~achieved
    rewards = jnp.max(jnp.where(reached, similarity, 0.0), axis=-1)
    rewards += wrong_reward * ((captions > 0) & ~reached.any(-1))
    aliases = tables.names.T[captions] & reached.any(-1, keepdims=True)
    return rewards, achieved | reached | aliases


def ellm_rewards(
    setup: Setup, tables: GoalTables, rollout: Rollout, achieved: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Reward a rollout in time order; return [T, N] and the goals reached by its end [N, G]."""
    chex.assert_equal_shape([rollout.captions, rollout.terminated, rollout.truncated])
    args, world = setup.args, setup.world

    def walk(achieved, step):
        scenes, packed, captions, done = step
        if args.stores_suggestions:
            suggested = unpack_bits(packed)
        else:
            suggested = suggest(args, world, tables, None, None, scenes)
        threshold, wrong = args.similarity_threshold, args.wrong_reward
        rewards, achieved = reward_step(tables, threshold, suggested, achieved, captions, wrong)
        return achieved & ~done[:, None], rewards

    done = rollout.terminated | rollout.truncated
    captions = args.names_of(rollout.actions, rollout.captions)
    steps = (rollout.scenes, rollout.suggested, captions, done)
    achieved, rewards = jax.lax.scan(walk, achieved, steps)
    return rewards, achieved


# ------------------------------------------------------------------------------------------ COLLECT


def read(
    setup: Setup, tables: GoalTables, key: jax.Array, moment: Moment
) -> tuple[PolicyInput, jax.Array, jax.Array, Guide]:
    """Return what the policy reads, scenes [N, W] uint32, suggested goals [N, G] bool, guides [N].

    The key is for goals drawn by --goal-source uniform. XLA drops what the caller does not use.
    """
    args, world = setup.args, setup.world
    scenes = jax.vmap(world.scene)(moment.states)
    suggested = jnp.zeros_like(moment.achieved)
    if args.goal_source != "none":
        suggested = suggest(args, world, tables, key, moment.states, scenes)
    goals = suggested & ~moment.achieved
    guide = find_guide(args, world, tables, moment.states, goals)
    captions = moment.captions_so_far
    inputs = PolicyInput(
        observation=jax.vmap(world.observe)(moment.states),
        captions_so_far=captions if args.caption_memory else captions[:, :0],
        text=read_text(args, scenes),
        goals=pack_bits(goals if args.reads_goals else goals[:, :0]),
        goal_view=guide.view,
        goal_acts=guide.acts,
    )
    return inputs, scenes, suggested, guide


# BEGIN DQN
def pack_input(setup: Setup, inputs: PolicyInput) -> PackedInput:
    """Pack for the replay what the policy reads in N envs."""
    captions = inputs.captions_so_far
    captions = jnp.pad(captions, ((0, 0), (0, -captions.shape[1] % 32)))
    return PackedInput(
        observation=setup.world.pack_observation(inputs.observation),
        captions_so_far=pack_bits(captions),
        text=inputs.text,
        goals=inputs.goals,
        goal_view=inputs.goal_view.astype(jnp.float16),
        goal_acts=jnp.packbits(inputs.goal_acts, axis=1),
    )


def unpack_input(setup: Setup, packed: PackedInput) -> PolicyInput:
    """Return what the policy reads, [B, ...], of a packed input whose observation is unpacked."""
    captions = unpack_bits(packed.captions_so_far)[:, : len(setup.world.captions)]
    view, num_actions = packed.goal_view.astype(jnp.float32), len(setup.world.actions)
    acts = jnp.unpackbits(packed.goal_acts, axis=1)[:, :num_actions].astype(bool)
    return PolicyInput(packed.observation, captions, packed.text, packed.goals, view, acts)


def exploration(args: Args, env_steps: jax.Array) -> jax.Array:
    """Return the chance of a random action: falling linearly, then constant."""
    share = jnp.minimum(env_steps / (args.exploration_fraction * args.total_timesteps), 1.0)
    return args.start_e + share * (args.end_e - args.start_e)


def mentor_share(args: Args, state: RunnerState) -> jax.Array:
    """Return the share of the actions that --guide takes: of the exploring ones."""
    env_steps = state.update * args.batch_size + state.step * args.num_envs
    return args.guide_probability * exploration(args, env_steps)


def choose_actions(
    args: Args, values: jax.Array, key: jax.Array, epsilon: jax.Array | float
) -> jax.Array:
    """Return actions [N] int32 by their values [N, A]: best or by a softmax, or random."""
    chance_key, action_key, policy_key = jax.random.split(key, 3)
    if args.policy_temperature:
        best = jax.random.categorical(policy_key, values / args.policy_temperature)
    else:
        best = values.argmax(-1)
    chance = jax.random.uniform(chance_key, values.shape[:1])
    drawn = jax.random.randint(action_key, values.shape[:1], 0, values.shape[1])
    return jnp.where(chance < epsilon, drawn, best.astype(jnp.int32))


def action_probabilities(args: Args, values: jax.Array) -> jax.Array:
    """Return how likely each action is by its value, [N, A] float32, but for random actions."""
    if args.policy_temperature:
        return jax.nn.softmax(values / args.policy_temperature)
    return jax.nn.one_hot(values.argmax(-1), values.shape[1])


# END DQN
def collect_step(
    setup: Setup, tables: GoalTables, state: RunnerState
) -> tuple[RunnerState, Rollout]:
    """Act once in every env; return the state one step further, and the step."""
    args = setup.args
    key, goal_key, policy_key, world_key, mentor_key = jax.random.split(state.key, 5)
    inputs, scenes, suggested, guide = read(setup, tables, goal_key, state.moment)
    mentor, advice, mentor_reached = setup.mentor, None, state.mentor_reached
    if mentor:
        share = mentor_share(args, state)
        advice = mentor.advise(tables.mentor, mentor_key, state.moment, mentor_reached, share)
    # BEGIN DQN
    epsilon = exploration(args, state.update * args.batch_size + state.step * args.num_envs)
    values = setup.network.apply(state.params, inputs, tables)
    if advice:  # of the exploring actions a share is the guide's, and the others are random
        epsilon = (epsilon - share) / jnp.maximum(1.0 - share, 1e-6)
    actions = choose_actions(args, values, policy_key, epsilon)
    if advice:
        chance_key = jax.random.fold_in(policy_key, 1)
        is_guided = jax.random.uniform(chance_key, actions.shape) < share
        actions = jnp.where(is_guided, advice.probabilities.argmax(-1).astype(jnp.int32), actions)
    # END DQN
    envs, transition = setup.envs.advance(world_key, state.envs, actions)

    after, cut = state.moment.after(envs.states, transition.caption), transition.truncated
    if args.tracks_goals:
        names, threshold = args.names_of(actions, transition.caption), args.similarity_threshold
        achieved = reward_step(tables, threshold, suggested, state.achieved, names)[1]
        after = after.replace(achieved=achieved)

    if mentor:
        mentor_reached = mentor.follow(
            tables.mentor, advice, mentor_reached, actions, transition.caption
        )

    # The states that the time limit cut are kept: their values are what is to come (truncation).
    last = jax.lax.cond(cut.any(), partial(select, cut), lambda _, old: old, after, state.last)

    done = transition.terminated | transition.truncated
    step = Rollout(
        # BEGIN DQN
        inputs=pack_input(setup, inputs),
        # END DQN
        scenes=scenes if args.reads_scenes else jnp.zeros_like(scenes),
        suggested=pack_bits(suggested if args.stores_suggestions else suggested[:, :0]),
        guides=guide.replace(view=guide.view[:, :0], acts=guide.acts[:, :0]),
        actions=actions,
        captions=transition.caption,
        rewards=transition.reward,
        terminated=transition.terminated,
        truncated=transition.truncated,
    )
    state = state.replace(
        envs=setup.envs.reset_done(envs, done),
        captions_so_far=after.captions_so_far & ~done[:, None],
        achieved=after.achieved & ~done[:, None],
        mentor_reached=mentor_reached & ~done[:, None],
        last=last,
        key=key,
        step=state.step + 1,
    )
    return state, step


def empty_rollout(setup: Setup, tables: GoalTables, state: RunnerState) -> Rollout:
    """Allocate the buffers of a rollout; the same ones serve all rollouts."""
    step = jax.eval_shape(partial(collect_step, setup), tables, state)[1]
    return jax.tree.map(lambda x: jnp.zeros((setup.args.num_steps, *x.shape), x.dtype), step)


@partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def collect(
    setup: Setup, tables: GoalTables, state: RunnerState, rollout: Rollout
) -> tuple[RunnerState, Rollout, Unknown]:
    """Fill the rollout; a policy that must know its scenes stops before an unknown one."""

    def is_ready(state):
        if not setup.args.must_know_scene:
            return jnp.ones((), bool)
        scenes = jax.vmap(setup.world.scene)(state.envs.states)
        return is_known(setup.args, setup.world, tables, scenes).all()

    def unfinished(carry):
        state, _, ready = carry
        return (state.step < setup.args.num_steps) & ready

    def advance(carry):
        before, rollout, _ = carry
        state, step = collect_step(setup, tables, before)
        rollout = jax.tree.map(lambda buffer, x: buffer.at[before.step].set(x), rollout, step)
        return state, rollout, is_ready(state)

    # BEGIN DQN
    replay, state = state.replay, state.replace(replay=None)  # the loop might copy it
    # END DQN
    carry = (state, rollout, is_ready(state))
    state, rollout, _ = jax.lax.while_loop(unfinished, advance, carry)
    # BEGIN DQN
    state = state.replace(replay=replay)
    # END DQN
    return state, rollout, find_unknown(setup, tables, state, rollout)


def find_unknown(setup: Setup, tables: GoalTables, state: RunnerState, rollout: Rollout) -> Unknown:
    """Return what the host must make known: before the next step, or before the reward."""
    args, scene = setup.args, jax.vmap(setup.world.scene)
    scenes, mask = jnp.zeros((0, setup.world.num_scene_words), jnp.uint32), jnp.zeros(0, bool)
    if args.must_know_scene:
        scenes = jnp.concatenate([scene(state.envs.states), scene(state.last.states)])
        cut = rollout.truncated.any(0) & (state.step == args.num_steps)
        mask = jnp.concatenate([jnp.ones_like(cut), cut])
    elif args.waits_for_goals:
        scenes = rollout.scenes.reshape(-1, setup.world.num_scene_words)
        mask = jnp.ones(scenes.shape[0], bool)
    return Unknown(scenes, mask & ~is_known(args, setup.world, tables, scenes))


# ------------------------------------------------------------------------------------------- UPDATE


# BEGIN DQN
def dqn_loss(
    network: nn.Module,
    args: Args,
    tables: GoalTables,
    params: Any,
    target_params: Any,
    batch: Transitions,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the Huber loss of n-step double Q-learning (van Hasselt et al., 2016), and its parts.

    With --munchausen that of Munchausen DQN (Vieillard et al., 2020): a soft value of the state
    reached and, for the action taken, with which n steps begin, a share of its log-probability.
    """
    actions = batch.actions
    chex.assert_equal_shape([actions, batch.returns, batch.discounts])
    values = network.apply(params, batch.inputs, tables)
    chosen = jnp.take_along_axis(values, actions[:, None], axis=1)[:, 0]
    returns, temperature = batch.returns, args.policy_temperature
    next_values = network.apply(target_params, batch.next_inputs, tables)
    if args.munchausen:
        log_policy = jax.nn.log_softmax(
            network.apply(target_params, batch.inputs, tables) / temperature
        )
        taken = temperature * jnp.take_along_axis(log_policy, actions[:, None], axis=1)[:, 0]
        returns += args.munchausen * jnp.maximum(taken, -1.0)
        next_values = temperature * jax.nn.logsumexp(next_values / temperature, axis=-1)
    else:
        best = network.apply(params, batch.next_inputs, tables).argmax(-1)
        next_values = jnp.take_along_axis(next_values, best[:, None], axis=1)[:, 0]
    targets = jax.lax.stop_gradient(returns + batch.discounts * next_values)
    loss = optax.huber_loss(chosen, targets).mean()
    return loss, {"td_loss": loss, "action_value": chosen.mean(), "target": targets.mean()}


def sample_batch(setup: Setup, replay: Replay, key: jax.Array) -> Transitions:
    """Draw B transitions of up to n steps."""
    args = setup.args
    batch = sample_transitions(setup.world, replay, key, args.sample_size, args.n_step, args.gamma)
    return batch.replace(
        inputs=unpack_input(setup, batch.inputs),
        next_inputs=unpack_input(setup, batch.next_inputs),
    )


def learn(
    setup: Setup, tables: GoalTables, state: RunnerState
) -> tuple[RunnerState, dict[str, jax.Array]]:
    """Take the gradient steps, none before --learning-starts; return also the mean losses."""
    args, optimizer = setup.args, make_optimizer(setup.args)
    loss = partial(dqn_loss, setup.network, args, tables)

    def gradient_step(carry, step):
        params, target_params, opt_state = carry
        key, number = step
        batch = sample_batch(setup, state.replay, key)
        gradients, parts = jax.grad(loss, has_aux=True)(params, target_params, batch)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        target_params = optax.periodic_update(params, target_params, number, args.target_period)
        return (params, target_params, opt_state), parts

    def train(carry):
        numbers = np.arange(1, args.gradient_steps + 1, dtype=np.int32)
        numbers = state.update * args.gradient_steps + numbers
        keys = jax.random.split(steps_key, args.gradient_steps)
        return jax.lax.scan(gradient_step, carry, (keys, numbers))

    def wait(carry):
        zeros = jnp.zeros(args.gradient_steps)
        return carry, {"td_loss": zeros, "action_value": zeros, "target": zeros}

    key, steps_key = jax.random.split(state.key)
    env_steps = (state.update + 1) * args.batch_size
    begins = can_sample(state.replay, setup.world.history + args.n_step)
    begins &= env_steps >= args.learning_starts
    carry = (state.params, state.target_params, state.opt_state)
    (params, target_params, opt_state), parts = jax.lax.cond(begins, train, wait, carry)
    state = state.replace(params=params, target_params=target_params, opt_state=opt_state, key=key)
    return state, {**jax.tree.map(jnp.mean, parts), "epsilon": exploration(args, env_steps)}


# END DQN
@partial(jax.jit, static_argnums=0, donate_argnums=2)
def update(
    setup: Setup, tables: GoalTables, state: RunnerState, rollout: Rollout
) -> tuple[RunnerState, dict[str, Any]]:
    """Reward the rollout, learn from it, refill the pool of worlds; return also the metrics."""
    args = setup.args
    # REWARD
    rewards, achieved = rollout.rewards, state.achieved_before
    if args.pays_goals:
        rewards, achieved = ellm_rewards(setup, tables, rollout, achieved)
        rewards = args.goal_coef * rewards + args.extrinsic_coef * rollout.rewards
    key, goal_key, refill_key = jax.random.split(state.key, 3)
    if args.guides:
        following, last = (
            read(setup, tables, goal_key, moment)[3] for moment in (state.moment, state.last)
        )
        ends = rollout.terminated, rollout.truncated
        rewards += guide_rewards(args, args.gamma, rollout.guides, following, last, *ends)

    # BEGIN DQN
    # REPLAY
    last = pack_input(setup, read(setup, tables, goal_key, state.last)[0])
    clip, ends = setup.args.reward_clip or np.inf, np.asarray(setup.args.time_limit_ends)
    replay = add(
        state.replay,
        inputs=rollout.inputs,
        actions=rollout.actions,
        rewards=jnp.clip(rewards, -clip, clip),
        terminated=rollout.terminated | (rollout.truncated & ends),
        truncated=rollout.truncated & ~ends,
        last=last,
    )

    # LEARN
    state, losses = learn(setup, tables, state.replace(key=key, replay=replay))
    # END DQN

    envs, episodes = setup.envs.drain(setup.envs.refill(refill_key, state.envs))
    metrics = {
        "episodes": episodes,
        "reward_per_step": rewards.mean(),
        "steps_without_answer": share_unanswered(args, setup.world, tables, rollout.scenes),
        "pool_exhausted": envs.exhausted,
        **losses,
    }
    if setup.mentor:
        metrics["guide_share"] = mentor_share(args, state)
    state = state.replace(
        envs=envs,
        achieved=achieved,
        achieved_before=jnp.copy(achieved),
        update=state.update + 1,
        step=jnp.zeros((), jnp.int32),
    )
    return state, metrics


# ----------------------------------------------------------------------------------------- EVALUATE


def act(
    setup: Setup, tables: GoalTables, params: Any, key: jax.Array, moment: Moment
) -> tuple[Moment, Transition, dict[str, jax.Array]]:
    """Act once in every world of an evaluation; return also what a film shows of it."""
    args, world = setup.args, setup.world
    goal_key, policy_key, world_key = jax.random.split(key, 3)
    inputs, scenes, suggested, _ = read(setup, tables, goal_key, moment)
    # BEGIN DQN
    values = setup.network.apply(params, inputs, tables)
    actions = choose_actions(args, values, policy_key, args.evaluation_e)
    # END DQN
    keys = jax.random.split(world_key, len(actions))
    states, transition = jax.vmap(world.step)(keys, moment.states, actions)
    rewards, achieved = transition.reward, moment.achieved
    reached = suggested & (rewards > 0)[:, None]
    if args.pays_goals:
        names, threshold = args.names_of(actions, transition.caption), args.similarity_threshold
        rewards, achieved = reward_step(
            tables, threshold, suggested, moment.achieved, names, args.wrong_reward
        )
        rewards = args.goal_coef * rewards + args.extrinsic_coef * transition.reward
        reached = achieved & suggested & ~moment.achieved
    shown = {
        "scene": scenes,
        "suggested": suggested,
        "reached": reached,
        "action": actions,
        "reward": rewards,
    }
    after = moment.after(states, transition.caption).replace(achieved=achieved)
    return after, transition, shown


def propose(
    setup: Setup, tables: GoalTables, params: Any, key: jax.Array, moment: Moment
) -> tuple[jax.Array, jax.Array]:
    """Return the policy's probabilities [N, A] float32 and suggested goals, for runs it guides."""
    inputs, _, suggested, _ = read(setup, tables, key, moment)
    # BEGIN DQN
    probabilities = action_probabilities(setup.args, setup.network.apply(params, inputs, tables))
    # END DQN
    return probabilities, suggested


# --------------------------------------------------------------------------------------------- main


def main(args: Args) -> dict[str, Any]:
    """Train, evaluate and report; return the content of summary.json."""
    configure(args)
    world = make_world(args)
    mentor, mentor_tables = load_mentor(args.guide, world)
    setup = make_setup(args, world, mentor)
    service = GoalService(world, args, seed=args.seed, mentor=mentor_tables)
    # BEGIN DQN
    name = f"{world.name}-dqn-{args.goal_source}"
    # END DQN
    policy = Policy(setup, act)
    with Session(args, world, service, name, __file__) as session:
        state = session.begin(partial(init_state, setup), policy)
        rollout = empty_rollout(setup, service.tables, state)
        for _ in session.updates():
            state, rollout, unknown = collect(setup, service.tables, state, rollout)
            while service.holds_up and np.asarray(unknown.mask).any():  # HOST WAITS.
                service.know(np.asarray(unknown.scenes)[np.asarray(unknown.mask)])
                state, rollout = grow_goals((state, rollout), service.num_goals)
                state, rollout, unknown = collect(setup, service.tables, state, rollout)
            state, metrics = update(setup, service.tables, state, rollout)
            service.observe(
                rollout.scenes, rollout.captions, rollout.terminated | rollout.truncated
            )
            session.evaluate(policy, state.params)
            state, rollout = grow_goals((state, rollout), service.num_goals)
            session.log(state, metrics)
        return session.finish(policy, state.params)


if __name__ == "__main__":
    run_cli(main, Args, lambda args: PRESETS[args.preset] | fine_tuning(args))
