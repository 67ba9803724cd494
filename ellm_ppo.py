"""ELLM with PPO: rewards for goals that a language model suggests (Du et al., ICML 2023).

Each scene is put into words and a language model suggests goals for it. A step whose caption
matches a suggested goal, by the cosine of their sentence embeddings, earns that similarity, once
per goal and episode. By default no reward of the game is used.

    python ellm_ppo.py --env crafter                 recorded rules of a 1.5B model, in minutes
    python ellm_ppo.py --llm gemma3-270m --goal-form open    the paper's form: lists of goals
    python ellm_ppo.py --goal-source oracle          the upper bound: the true prerequisites

All three run on two CPU cores; on a GPU or TPU (jax for the device installed) begin with
--preset gpu.
Axes: T steps, N envs, B minibatch, A actions, D observation, C captions, G goals, K achievements,
E embedding, W scene words.
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
from lab.mentor import Mentor, begin_reached, load_mentor, mix
from lab.play import Moment, Policy, Unknown, first_moment, select
from lab.ranges import Count, Share, SomeShare, StepSize, Weight, Width
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

    # BEGIN PPO
    preset: Literal["cpu", "gpu"] = "cpu"  # defaults for a laptop's CPU, or for an accelerator
    num_envs: Count = 32  # worlds in step (N)
    num_steps: Count = 64  # steps of each world per update (T)
    num_minibatches: Count = 4  # minibatches per epoch
    update_epochs: Count = 4  # passes over each rollout
    learning_rate: StepSize = 1e-3  # Adam's step size at the start
    anneal_lr: bool = True  # lower the learning rate linearly to zero
    gamma: Share = 0.99  # discount
    gae_lambda: Share = 0.9  # lambda of generalised advantage estimation
    clip_coef: Weight = 0.2  # clipping range of the probability ratio
    ent_coef: Weight = 0.01  # weight of the entropy bonus
    vf_coef: Weight = 0.5  # weight of the value loss
    max_grad_norm: Weight = 0.5  # gradients are scaled down to this global norm; 0: they are not
    guide_fraction: SomeShare = 0.5
    """share of the training in which the guide's share of the actions falls linearly to zero"""
    # END PPO
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

    # BEGIN PPO
    @property
    def minibatch_size(self) -> int:
        """Env steps per gradient step; raises UserError if the batch cannot be divided so."""
        if self.batch_size % self.num_minibatches:
            wrong = f"--num-minibatches {self.num_minibatches} does not divide"
            raise UserError(f"{wrong} --num-envs x --num-steps, {self.batch_size}")
        return self.batch_size // self.num_minibatches

    # END PPO


# BEGIN PPO
PRESETS = {
    "cpu": {},
    "gpu": {"num_envs": 1024, "hidden_size": 512, "total_timesteps": 50_000_000},
}
# END PPO

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


@struct.dataclass
class Rollout:
    """T steps of N envs: inputs, scenes, suggestions before the action, the rest after it.

    scenes: [T, N, W] uint32; suggested: [T, N, G / 32] uint32, packed, of size zero where the
    scenes suffice to know it later; guides: [T, N], of the open goals, for rewards; actions,
    captions: [T, N] int32; rewards: [T, N] float32, the game's own; terminated, truncated: [T, N]
    bool.
    """

    # BEGIN PPO
    inputs: PolicyInput
    log_probs: jax.Array  # [T, N] float32, of the actions by what acted: with a guide the mixture
    values: jax.Array  # [T, N] float32
    # END PPO
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


# BEGIN PPO
class ActorCritic(nn.Module):
    """Policy and value on one torso."""

    num_actions: int
    hidden_size: int
    goal_head: GoalHead | None = None

    @nn.compact
    def __call__(self, inputs: PolicyInput, tables: GoalTables) -> tuple[jax.Array, jax.Array]:
        """Return logits [B, A] and values [B], float32."""
        x = Torso(self.hidden_size)(inputs, tables)
        logits = nn.Dense(self.num_actions, kernel_init=nn.initializers.orthogonal(0.01))(x)
        if self.goal_head:
            logits += self.goal_head(x, inputs.goal_acts)
        values = nn.Dense(1, kernel_init=nn.initializers.orthogonal(1.0))(x)
        return logits, values[:, 0]


# END PPO
def make_setup(args: Args, world: World, mentor: Mentor | None = None) -> Setup:
    """Return the constants; raises UserError for arguments that do not go together."""
    if args.num_steps > world.max_episode_steps:
        raise UserError(f"--num-steps {args.num_steps}: give at most {world.max_episode_steps}")
    # BEGIN PPO
    _ = args.num_updates, args.minibatch_size  # raise what is wrong with them
    goal_head = make_goal_head(args, world)
    network = ActorCritic(len(world.actions), args.hidden_size, goal_head)
    # END PPO
    pool_size, starts = max(16, args.num_envs), args.exploring_starts
    envs = VectorWorld(world, args.num_envs, pool_size, exploring_starts=starts)
    return Setup(args, world, envs, network, mentor)


# BEGIN PPO
def make_optimizer(args: Args) -> optax.GradientTransformation:
    """Return Adam with clipped gradients; the learning rate is constant within an update."""

    def schedule(count):
        done = count // (args.num_minibatches * args.update_epochs)
        return args.learning_rate * (1.0 - done / args.num_updates)

    learning_rate = schedule if args.anneal_lr else args.learning_rate
    clip = optax.clip_by_global_norm(args.max_grad_norm) if args.max_grad_norm else optax.identity()
    optimizer = optax.chain(clip, optax.adam(learning_rate, eps=1e-5))
    return trainable(args, optimizer, critic="Dense_1")


# END PPO
@partial(jax.jit, static_argnums=0)
def init_state(setup: Setup, tables: GoalTables) -> RunnerState:
    """Return the state before the first step."""
    args = setup.args
    key, params_key, envs_key = jax.random.split(jax.random.key(args.seed), 3)
    envs = setup.envs.reset(envs_key)
    moment = first_moment(setup.world, envs.states, tables.sensible.shape[0])
    inputs = read(setup, tables, key, moment)[0]
    params = setup.network.init(params_key, inputs, tables)
    return RunnerState(
        params=params,
        opt_state=make_optimizer(args).init(params),
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


# BEGIN PPO
def mentor_share(args: Args, state: RunnerState) -> jax.Array:
    """Return the share of the actions that --guide takes: falling linearly to zero."""
    done = state.update / (args.guide_fraction * args.num_updates)
    return args.guide_probability * jnp.maximum(1.0 - done, 0.0)


# END PPO


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
    # BEGIN PPO
    logits, values = setup.network.apply(state.params, inputs, tables)
    if advice:
        logits = mix(logits, advice, share)
    actions = jax.random.categorical(policy_key, logits)
    log_policy = jax.nn.log_softmax(logits)
    log_probs = jnp.take_along_axis(log_policy, actions[:, None], axis=1)[:, 0]
    # END PPO
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
        # BEGIN PPO
        inputs=inputs,
        log_probs=log_probs,
        values=values,
        # END PPO
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

    carry = (state, rollout, is_ready(state))
    state, rollout, _ = jax.lax.while_loop(unfinished, advance, carry)
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


# BEGIN PPO
def generalised_advantages(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    terminated: jax.Array,
    done: jax.Array,
    gamma: float,
    gae_lambda: float,
) -> jax.Array:
    """Return advantages [T, N] float32 (Schulman et al., 2016); all arrays [T, N].

    next_values are of the state after the action, also where the episode was cut: only a terminated
    episode is worth nothing more.
    """
    chex.assert_equal_shape([rewards, values, next_values, terminated, done])
    deltas = rewards + gamma * next_values * ~terminated - values

    def walk_back(advantage, step):
        delta, done = step
        advantage = delta + gamma * gae_lambda * advantage * ~done
        return advantage, advantage

    return jax.lax.scan(walk_back, jnp.zeros_like(deltas[0]), (deltas, done), reverse=True)[1]


def ppo_loss(
    setup: Setup, tables: GoalTables, params: Any, batch: Rollout, advantages: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the clipped surrogate loss (Schulman et al., 2017) and what it is made of.

    batch: steps [B, ...]; advantages: [B] float32.
    """
    chex.assert_equal_shape([batch.actions, batch.log_probs, batch.values, advantages])
    args, returns = setup.args, advantages + batch.values
    logits, values = setup.network.apply(params, batch.inputs, tables)
    log_policy = jax.nn.log_softmax(logits)
    log_probs = jnp.take_along_axis(log_policy, batch.actions[:, None], axis=1)[:, 0]
    ratio = jnp.exp(log_probs - batch.log_probs)
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    clipped = jnp.clip(ratio, 1.0 - args.clip_coef, 1.0 + args.clip_coef)
    policy_loss = -jnp.minimum(advantages * ratio, advantages * clipped).mean()
    near = batch.values + jnp.clip(values - batch.values, -args.clip_coef, args.clip_coef)
    errors = jnp.maximum((values - returns) ** 2, (near - returns) ** 2)
    value_loss = 0.5 * errors.mean()
    entropy = -(jnp.exp(log_policy) * log_policy).sum(-1).mean()
    loss = policy_loss - args.ent_coef * entropy + args.vf_coef * value_loss
    parts = {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "approx_kl": ((ratio - 1.0) - jnp.log(ratio)).mean(),
        "clip_fraction": (jnp.abs(ratio - 1.0) > args.clip_coef).mean(),
    }
    return loss, parts


def advantages_of(
    setup: Setup,
    tables: GoalTables,
    key: jax.Array,
    state: RunnerState,
    rollout: Rollout,
    rewards: jax.Array,
) -> jax.Array:
    """Return the advantages [T, N] of a rewarded rollout."""
    args, apply = setup.args, partial(setup.network.apply, state.params)
    following = apply(read(setup, tables, key, state.moment)[0], tables)[1]
    last = apply(read(setup, tables, key, state.last)[0], tables)[1]
    next_values = jnp.concatenate([rollout.values[1:], following[None]])
    next_values = jnp.where(rollout.truncated, last[None], next_values)
    done = rollout.terminated | rollout.truncated
    return generalised_advantages(
        rewards, rollout.values, next_values, rollout.terminated, done, args.gamma, args.gae_lambda
    )


def learn(
    setup: Setup, tables: GoalTables, state: RunnerState, rollout: Rollout, advantages: jax.Array
) -> tuple[RunnerState, dict[str, jax.Array]]:
    """Take the gradient steps on a rollout and its advantages [T, N]; return also mean losses."""
    args, optimizer = setup.args, make_optimizer(setup.args)
    steps = jax.tree.map(lambda x: x.reshape(args.batch_size, *x.shape[2:]), (rollout, advantages))

    def minibatch(carry, indices):
        params, opt_state = carry
        batch, weights = jax.tree.map(lambda x: x[indices], steps)
        loss = partial(ppo_loss, setup, tables)
        gradients, parts = jax.grad(loss, has_aux=True)(params, batch, weights)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), parts

    def epoch(carry, key):
        indices = jax.random.permutation(key, args.batch_size)
        indices = indices.reshape(args.num_minibatches, args.minibatch_size)
        return jax.lax.scan(minibatch, carry, indices)

    key, epochs_key = jax.random.split(state.key)
    carry = (state.params, state.opt_state)
    keys = jax.random.split(epochs_key, args.update_epochs)
    (params, opt_state), parts = jax.lax.scan(epoch, carry, keys)
    state = state.replace(params=params, opt_state=opt_state, key=key)
    return state, jax.tree.map(jnp.mean, parts)


# END PPO
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

    # BEGIN PPO
    # ADVANTAGE
    advantages = advantages_of(setup, tables, goal_key, state, rollout, rewards)

    # LEARN
    state, losses = learn(setup, tables, state.replace(key=key), rollout, advantages)
    # END PPO

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
    # BEGIN PPO
    logits, _ = setup.network.apply(params, inputs, tables)
    actions = jax.random.categorical(policy_key, logits)
    # END PPO
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
    # BEGIN PPO
    probabilities = jax.nn.softmax(setup.network.apply(params, inputs, tables)[0])
    # END PPO
    return probabilities, suggested


# --------------------------------------------------------------------------------------------- main


def main(args: Args) -> dict[str, Any]:
    """Train, evaluate and report; return the content of summary.json."""
    configure(args)
    world = make_world(args)
    mentor, mentor_tables = load_mentor(args.guide, world)
    setup = make_setup(args, world, mentor)
    service = GoalService(world, args, seed=args.seed, mentor=mentor_tables)
    # BEGIN PPO
    name = f"{world.name}-ppo-{args.goal_source}"
    # END PPO
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
