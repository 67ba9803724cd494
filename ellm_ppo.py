"""ELLM with PPO: a language model says what would make sense now, and the agent is paid for doing it (Du et al., ICML 2023).

Each scene is put into words, a language model suggests goals for it, and a step whose caption matches a suggested goal, by the
cosine of their sentence embeddings, earns that similarity, once per goal and episode. No reward of the game is used.

    python ellm_ppo.py --env crafter                        recorded rules of a 1.5B model: 1.5M steps, minutes on two CPU cores
    python ellm_ppo.py --llm gemma3-270m --goal-form open   the paper's form: a real model is asked for a list of goals per scene
    python ellm_ppo.py --goal-source oracle                 the upper bound: goals from the true prerequisites

On a GPU or TPU (jax for the device installed) begin with --preset gpu.
Axes: T steps, N envs, B minibatch, A actions, D observation, C captions, G goals, K achievements, E embedding, W scene words.
"""

import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from goals.service import GoalService
from goals.tables import (
    GoalTables,
    drop_needs,
    embed_facts,
    embed_goals,
    is_grounded,
    lookup,
    pack_bits,
    refute_needs,
    suggest_by_rules,
    suggest_by_scene,
    unpack_bits,
)
from lab.checkpoint import Checkpoints
from lab.cli import run_cli
from lab.compile_clock import CompileClock
from lab.convolution import Convolution
from lab.errors import UserError
from lab.film import film_frames, make_film
from lab.metrics import costs, metrics_line, summarise
from lab.plots import learning_curve
from lab.progress import Progress
from lab.run import Run, read_config, read_metrics
from worlds import make_world
from worlds.vector import VectorState, VectorWorld

# ------------------------------------------------------------------------------------------------------------------ arguments


@dataclass(frozen=True)
class Args:
    """Train an agent on goals that a language model suggests."""

    # The run
    seed: int = 1  # seed of everything random
    run_dir: str | None = None  # directory of the run; a run of the same configuration goes on; default: a new one under runs/
    total_timesteps: int = 1_500_000  # length of the training [env steps], rounded down to whole updates
    # BEGIN PPO
    preset: Literal["cpu", "gpu"] = "cpu"  # defaults of the command line: for a laptop's CPU, or for an accelerator
    checkpoint_every: int = 100  # time between checkpoints [updates]; the last update always has one
    # END PPO
    evaluate_episodes: int = 64  # episodes played at the end with the trained policy; 0: none
    film: bool = True  # make film.gif of the first evaluation episode
    track: Literal["none", "tensorboard", "wandb"] = "none"  # also send the metrics there
    compilation_cache: bool = True  # keep compiled programs in ~/.cache/ellm, so that the next start is quick

    # The world
    env: str = "crafter"  # world to live in
    actions: Literal["pairs", "base"] = "pairs"  # pairs: the paper's 139 verb-noun actions; base: the game's own 17
    captions: Literal["attempt", "effect"] = "attempt"  # attempt: the thing was at hand (the paper's); effect: it really happened
    game_rules: Literal["paper", "craftax"] = "paper"  # paper: 400 steps, mobs fall at one hit; craftax: the game's own rules
    observation: Literal["symbolic", "pixels", "frames"] = "symbolic"
    """what the policy sees of the world: symbols, a coloured picture, or the paper's four last grey pictures of 84 x 84"""

    # Goals
    goal_source: Literal["llm", "oracle", "novelty", "uniform", "grounded", "none"] = "llm"  # none: the game's own reward
    goal_form: Literal["rules", "open", "closed"] = "rules"
    """rules: ask once what each goal needs; open: ask for a list of goals in each scene; closed: ask of each goal in each scene"""
    similarity_threshold: float = 0.99  # cosine above which a caption fulfils a goal (the paper's T)
    uniform_goals: int = 5  # goals drawn at each step by --goal-source uniform
    grounding: bool = False  # drop suggested goals whose thing is neither seen, held nor makeable (open and closed form)
    evidence: bool = False  # drop a goal's need once a caption shows the goal reached without it (rules form)
    prompt: str | None = None  # prompt file, or folder/prefix of the files of the rules form; default: the newest in prompts/
    prompt_scope: Literal["full", "compact"] = "full"
    """how much of the scene the prompt tells; compact: no target, grass, path, lava: four times fewer distinct prompts"""
    resolve: Literal["exact", "async", "replay"] = "exact"
    """exact: wait for the model's answer to whatever no store has; async: ask in the background, what is visited most first, while
    scenes without an answer have no goals yet (such a run cannot be repeated bit for bit); replay: stores only"""
    on_missing: Literal["error", "no-goals"] = "error"  # what a scene without an answer means where only stores are read
    on_exit: Literal["drain", "discard"] = "discard"
    """what becomes of the scenes that still wait for an answer after the training (async)"""
    store: str = "runs/store.sqlite"  # answers and embeddings, shared by all runs that name the same file

    # The language model
    llm: str = "qwen2.5-coder-1.5b"
    """qwen2.5-coder-1.5b (recorded answers), gemma3-270m (asked live), a .gguf or recorded .sqlite file, a hub id or folder"""
    llm_url: str | None = None  # OpenAI-compatible server to ask for the model that --llm names, as in http://host:8000/v1
    llm_engine: Literal["auto", "llama.cpp", "transformers"] = "auto"  # what computes a .gguf file; auto: the faster one here
    llm_budget: int = 0  # most questions put to a live model in the whole run; 0: no limit
    max_goal_tokens: int = 64  # longest answer of the open form [tokens]
    temperature: float = 0.0  # sampling temperature of the open form (the paper's: 0.1); 0: greedy
    votes: int = 1  # lists drawn for each scene of the open form; a goal counts if more than half of them name it
    closed_scoring: Literal["likelihood", "yes-no"] = "likelihood"  # how the closed form asks of each goal in a scene
    closed_calibration: Literal["scene", "goal"] = "scene"  # a goal is compared with the others, or over scenes
    sentence_encoder: str = "all-MiniLM-L6-v2"
    """all-MiniLM-L6-v2, or a hub id or folder (the paper's: sentence-transformers/paraphrase-MiniLM-L3-v2)"""

    # The policy's inputs
    text_observation: Literal["none", "caption", "facts"] = "none"
    """also read the scene in words: the embedded caption (the paper's), or the mean of its facts' embeddings"""
    goal_conditioned: bool = False  # also read the goals that are suggested and not yet reached
    caption_memory: bool = True  # also read which captions the episode has seen, which makes the once-per-episode reward learnable

    # BEGIN PPO
    num_envs: int = 32  # worlds in step (N)
    num_steps: int = 64  # steps of each world per update (T)
    num_minibatches: int = 4  # minibatches per epoch
    update_epochs: int = 4  # passes over each rollout
    learning_rate: float = 1e-3  # Adam's step size at the start
    anneal_lr: bool = True  # lower the learning rate linearly to zero
    gamma: float = 0.99  # discount
    gae_lambda: float = 0.9  # lambda of generalised advantage estimation
    clip_coef: float = 0.2  # clipping range of the probability ratio
    ent_coef: float = 0.01  # weight of the entropy bonus
    vf_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # gradients are scaled down to this global norm
    # END PPO
    hidden_size: int = 256  # width of the two hidden layers

    @property
    def batch_size(self) -> int:
        """Env steps per update."""
        return self.num_envs * self.num_steps

    # BEGIN PPO
    @property
    def minibatch_size(self) -> int:
        """Env steps per gradient step; raises UserError if --num-minibatches does not divide the batch."""
        if self.num_minibatches < 1 or self.batch_size % self.num_minibatches:
            raise UserError(f"--num-minibatches {self.num_minibatches} does not divide --num-envs x --num-steps, {self.batch_size}")
        return self.batch_size // self.num_minibatches

    # END PPO
    @property
    def num_updates(self) -> int:
        """Updates of the whole run; raises UserError if there is not one."""
        if self.total_timesteps < self.batch_size:
            raise UserError(f"--total-timesteps {self.total_timesteps} is less than --num-envs x --num-steps, {self.batch_size}")
        return self.total_timesteps // self.batch_size


# BEGIN PPO
PRESETS = {"cpu": {}, "gpu": {"num_envs": 1024, "hidden_size": 512, "total_timesteps": 50_000_000}}
# END PPO

# Fields in which the command that goes on may differ from the one that began.
FREE_FIELDS = (
    *("preset", "run_dir", "checkpoint_every", "evaluate_episodes", "film", "track", "compilation_cache", "store"),
    *("llm_url", "llm_engine", "llm_budget", "on_exit"),
)

# -------------------------------------------------------------------------------------------------------- state and transition


@struct.dataclass
class PolicyInput:
    """What the policy reads, of any leading shape; an input that is switched off has size zero.

    observation: [..., D] float32 or [..., H, W, 3] uint8; captions_so_far: [..., C] bool; text, goals: [..., E] float32.
    """

    observation: jax.Array
    captions_so_far: jax.Array
    text: jax.Array
    goals: jax.Array


# BEGIN PPO
@struct.dataclass
class Rollout:
    """T steps of N envs. Inputs, scenes and suggestions are from before the action, all else is what the action led to.

    scenes: [T, N, W] uint32; suggested: [T, N, G / 32] uint32, packed, of size zero where the scenes suffice to tell it later;
    actions, captions: [T, N] int32; log_probs, values, rewards: [T, N] float32; terminated, truncated: [T, N] bool.
    """

    inputs: PolicyInput
    scenes: jax.Array
    suggested: jax.Array
    actions: jax.Array
    log_probs: jax.Array
    values: jax.Array
    captions: jax.Array
    rewards: jax.Array
    terminated: jax.Array
    truncated: jax.Array


# END PPO
@struct.dataclass
class LastState:
    """The state in which each env's episode was cut by the time limit in this rollout; unread where none was.

    An episode is not shorter than a rollout, so there is at most one. observation: [N, ...]; captions_so_far: [N, C] bool;
    scenes: [N, W] uint32; suggested, achieved: [N, G] bool, of size zero where they are not wanted.
    """

    observation: jax.Array
    captions_so_far: jax.Array
    scenes: jax.Array
    suggested: jax.Array
    achieved: jax.Array


@struct.dataclass
class Collector:
    """A rollout in the making, filled up to `step`; the same buffers serve all rollouts.

    achieved: [N, G] bool, goals reached in the running episodes, kept up step by step for a goal-conditioned policy only.
    """

    rollout: Rollout
    last: LastState
    achieved: jax.Array
    step: jax.Array


@struct.dataclass
class Unknown:
    """Scenes that the host must resolve before the run goes on: count int32 [], which of scenes [M, W] uint32 as mask [M] bool."""

    count: jax.Array
    mask: jax.Array
    scenes: jax.Array


@struct.dataclass
class RunnerState:
    """All that training needs to go on, but for the goal tables.

    captions_so_far: [N, C] bool; achieved: [N, G] bool, goals reached in the running episodes when the rollout began; refuted:
    [G, W] uint32, needs that captions have shown to be none, of size zero without --evidence.
    """

    params: Any
    opt_state: Any
    envs: VectorState
    captions_so_far: jax.Array
    achieved: jax.Array
    key: jax.Array
    update: jax.Array
    refuted: jax.Array


@dataclass(frozen=True)
class Setup:
    """What the jitted functions treat as constant."""

    args: Args
    world: Any
    envs: VectorWorld
    network: nn.Module
    prompt_words: tuple[int, ...]
    embedding_size: int

    @property
    def per_scene(self) -> bool:
        """Tell whether goals are suggested scene by scene by a language model."""
        return self.args.goal_source == "llm" and self.args.goal_form != "rules"

    @property
    def in_background(self) -> bool:
        """Tell whether the run goes on while the language model is asked."""
        return self.per_scene and self.args.resolve == "async"

    @property
    def waits_for_goals(self) -> bool:
        """Tell whether every scene of a rollout must have its goals before the reward."""
        return self.per_scene and not self.in_background

    @property
    def stores_suggestions(self) -> bool:
        """Tell whether suggestions depend on more than the packed scene and must be noted when the step is taken."""
        return self.args.goal_source in ("oracle", "uniform")

    @property
    def asks(self) -> bool:
        """Tell whether scenes may turn up that the host must resolve."""
        return self.waits_for_goals or self.args.text_observation == "caption"

    @property
    def reads_goals(self) -> bool:
        """Tell whether the policy reads the goals."""
        return self.args.goal_conditioned and self.args.goal_source != "none"

    @property
    def must_know_scene(self) -> bool:
        """Tell whether the policy cannot act in a scene that the host has not resolved."""
        return self.args.text_observation == "caption" or (self.reads_goals and self.waits_for_goals)

    @property
    def prompt_mask(self) -> np.ndarray:
        """Return the bits of a scene that the prompt tells, [W] uint32."""
        return np.asarray(self.prompt_words, np.uint32)


# ------------------------------------------------------------------------------------------------------------------- networks


class Torso(nn.Module):
    """Two hidden layers: symbols straight into them, pixels through three convolutions first (Mnih et al., 2015)."""

    hidden_size: int

    @nn.compact
    def __call__(self, inputs: PolicyInput) -> jax.Array:
        """Return features [B, hidden_size] float32."""
        dense = partial(nn.Dense, kernel_init=nn.initializers.orthogonal(np.sqrt(2)))
        observation = inputs.observation
        if observation.ndim > 2:
            observation = observation.astype(jnp.float32) / 255.0
            for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
                observation = nn.relu(Convolution(features, size, stride)(observation))
            observation = observation.reshape(observation.shape[0], -1)
        words = [nn.relu(dense(self.hidden_size // 2)(x)) for x in (inputs.text, inputs.goals) if x.shape[-1]]
        x = jnp.concatenate([observation, inputs.captions_so_far.astype(jnp.float32), *words], axis=-1)
        for _ in range(2):
            x = nn.relu(nn.LayerNorm()(dense(self.hidden_size)(x)))
        return x


# BEGIN PPO
class ActorCritic(nn.Module):
    """Policy and value on one torso."""

    num_actions: int
    hidden_size: int

    @nn.compact
    def __call__(self, inputs: PolicyInput) -> tuple[jax.Array, jax.Array]:
        """Return logits [B, A] and values [B], float32."""
        x = Torso(self.hidden_size)(inputs)
        logits = nn.Dense(self.num_actions, kernel_init=nn.initializers.orthogonal(0.01))(x)
        values = nn.Dense(1, kernel_init=nn.initializers.orthogonal(1.0))(x)
        return logits, values[:, 0]


# END PPO
def make_setup(args: Args, world, service: GoalService) -> Setup:
    """Put together what the jitted functions treat as constant; raises UserError for arguments that do not go together."""
    if args.evidence and (args.goal_source != "llm" or args.goal_form != "rules"):
        raise UserError("--evidence is for --goal-source llm with --goal-form rules: only they have needs")
    if args.num_steps > world.max_episode_steps:
        raise UserError(f"--num-steps {args.num_steps} is longer than an episode ({world.max_episode_steps} steps)")
    return Setup(
        args=args,
        world=world,
        envs=VectorWorld(world, args.num_envs, pool_size=max(16, args.num_envs)),
        # BEGIN PPO
        network=ActorCritic(len(world.actions), args.hidden_size),
        # END PPO
        prompt_words=tuple(int(word) for word in service.prompt_mask),
        embedding_size=service.embedding_size,
    )


# BEGIN PPO
def make_optimizer(args: Args) -> optax.GradientTransformation:
    """Return Adam with clipped gradients; the learning rate is constant within an update."""

    def schedule(count):
        done = count // (args.num_minibatches * args.update_epochs)
        return args.learning_rate * (1.0 - done / args.num_updates)

    learning_rate = schedule if args.anneal_lr else args.learning_rate
    return optax.chain(optax.clip_by_global_norm(args.max_grad_norm), optax.adam(learning_rate, eps=1e-5))


# END PPO
@partial(jax.jit, static_argnums=0)
def init_state(setup: Setup, tables: GoalTables) -> RunnerState:
    """Return the state before the first step."""
    args, num_captions = setup.args, len(setup.world.captions)
    key, params_key, envs_key = jax.random.split(jax.random.key(args.seed), 3)
    envs = setup.envs.reset(envs_key)
    captions_so_far = jnp.zeros((args.num_envs, num_captions), bool)
    achieved = jnp.zeros((args.num_envs, tables.sensible.shape[0]), bool)
    inputs = read_states(setup, tables, key, envs.states, captions_so_far, achieved)[0]
    params = setup.network.init(params_key, inputs)
    return RunnerState(
        params=params,
        opt_state=make_optimizer(args).init(params),
        envs=envs,
        captions_so_far=captions_so_far,
        achieved=achieved,
        key=key,
        update=jnp.zeros((), jnp.int32),
        refuted=jnp.zeros_like(tables.needs if args.evidence else tables.needs[:0]),
    )


# ---------------------------------------------------------------------------------------------------------- goals and reward


def suggest(setup: Setup, tables: GoalTables, key: jax.Array, states, scenes: jax.Array) -> jax.Array:
    """Return the goals suggested in the scenes [N, W] uint32 as [N, G] bool.

    states are read by the oracle alone, key by uniform alone. For grounded and novelty the tables hold trivial rules: the
    thing is at hand, or nothing at all.
    """
    args, num_goals = setup.args, tables.sensible.shape[0]
    if args.goal_source == "oracle":
        goals = jax.vmap(setup.world.oracle)(states)
        return jnp.pad(goals, ((0, 0), (0, num_goals - goals.shape[1])))
    if args.goal_source == "uniform":
        drawn = jax.random.randint(key, (scenes.shape[0], args.uniform_goals), 1, len(setup.world.captions))
        return jax.nn.one_hot(drawn, num_goals, dtype=bool).any(1)
    if setup.per_scene:
        goals = unpack_bits(suggest_by_scene(tables, setup.prompt_mask, scenes)[0])
        return goals & is_grounded(tables, scenes) if args.grounding else goals
    return suggest_by_rules(tables, scenes)


def reward_step(
    tables: GoalTables, threshold: float, suggested: jax.Array, achieved: jax.Array, captions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Reward one step (section 3 of the paper): the largest similarity to a goal that is suggested, above T and new in the episode.

    suggested, achieved: [N, G] bool; captions: [N] int32. Returns rewards [N] float32 and the goals reached now, [N, G] bool.
    """
    similarity = tables.similarity.T[captions]
    chex.assert_equal_shape([suggested, achieved, similarity])
    reached = suggested & ~achieved & (similarity > threshold)
    return jnp.max(jnp.where(reached, similarity, 0.0), axis=-1), reached


def ellm_rewards(setup: Setup, tables: GoalTables, rollout: Rollout, achieved: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Walk the rollout in time order and reward it; return rewards [T, N] float32 and the goals reached by its end [N, G]."""
    chex.assert_equal_shape([rollout.captions, rollout.terminated, rollout.truncated])

    def walk(achieved, step):
        scenes, packed, captions, done = step
        suggested = unpack_bits(packed) if setup.stores_suggestions else suggest(setup, tables, None, None, scenes)
        rewards, reached = reward_step(tables, setup.args.similarity_threshold, suggested, achieved, captions)
        return (achieved | reached) & ~done[:, None], rewards

    done = rollout.terminated | rollout.truncated
    achieved, rewards = jax.lax.scan(walk, achieved, (rollout.scenes, rollout.suggested, rollout.captions, done))
    return rewards, achieved


# -------------------------------------------------------------------------------------------------------------------- COLLECT


def observe_goals(setup: Setup, tables: GoalTables, key: jax.Array, states) -> tuple[jax.Array, jax.Array]:
    """Return the scenes of N states, [N, W] uint32, and the suggestions [N, G] bool if the step wants them, else [N, 0]."""
    args, num_envs = setup.args, jax.tree.leaves(states)[0].shape[0]
    if args.goal_source == "none" and args.text_observation == "none":
        return jnp.zeros((num_envs, setup.world.num_scene_words), jnp.uint32), jnp.zeros((num_envs, 0), bool)
    scenes = jax.vmap(setup.world.scene)(states)
    if setup.stores_suggestions or setup.reads_goals:
        return scenes, suggest(setup, tables, key, states, scenes)
    return scenes, jnp.zeros((num_envs, 0), bool)


def make_inputs(setup: Setup, tables: GoalTables, observation, captions_so_far, scenes, suggested, achieved) -> PolicyInput:
    """Add to the observations of N states the words that the policy reads: captions so far, text and goals."""
    text = goals = jnp.zeros((observation.shape[0], 0))
    if setup.args.text_observation == "caption":
        rows = lookup(tables.text_rows, scenes)
        text = jnp.where((rows >= 0)[:, None], tables.text_embeddings[rows], 0.0)
    elif setup.args.text_observation == "facts":
        text = embed_facts(tables, scenes)
    if setup.reads_goals:
        goals = embed_goals(tables, suggested & ~achieved)
    return PolicyInput(
        observation=observation,
        captions_so_far=captions_so_far if setup.args.caption_memory else captions_so_far[:, :0],
        text=text,
        goals=goals,
    )


def read_states(setup: Setup, tables: GoalTables, key: jax.Array, states, captions_so_far, achieved) -> tuple:
    """Return what the policy reads in N states, and as `observe_goals` their scenes and suggestions."""
    scenes, suggested = observe_goals(setup, tables, key, states)
    observation = jax.vmap(setup.world.observe)(states)
    return make_inputs(setup, tables, observation, captions_so_far, scenes, suggested, achieved), scenes, suggested


def are_known(setup: Setup, tables: GoalTables, scenes: jax.Array) -> jax.Array:
    """Tell in which scenes [..., W] uint32 there is nothing that the run must wait for, [...] bool."""
    known = jnp.ones(scenes.shape[:-1], bool)
    if setup.args.text_observation == "caption":
        known &= lookup(tables.text_rows, scenes) >= 0
    if setup.waits_for_goals:
        known &= suggest_by_scene(tables, setup.prompt_mask, scenes)[1] >= 0
    return known


def empty_collector(setup: Setup, state: RunnerState) -> Collector:
    """Allocate the buffers of a rollout."""
    args, world, num_goals = setup.args, setup.world, state.achieved.shape[1]

    def steps(*shape, dtype=jnp.float32):
        return jnp.zeros((args.num_steps, args.num_envs, *shape), dtype)

    observation = jax.eval_shape(jax.vmap(world.observe), state.envs.states)
    # BEGIN PPO
    rollout = Rollout(
        inputs=PolicyInput(
            observation=steps(*observation.shape[1:], dtype=observation.dtype),
            captions_so_far=steps(len(world.captions) if args.caption_memory else 0, dtype=bool),
            text=steps(setup.embedding_size if args.text_observation != "none" else 0),
            goals=steps(setup.embedding_size if setup.reads_goals else 0),
        ),
        scenes=steps(world.num_scene_words, dtype=jnp.uint32),
        suggested=steps(num_goals // 32 if setup.stores_suggestions else 0, dtype=jnp.uint32),
        actions=steps(dtype=jnp.int32),
        log_probs=steps(),
        values=steps(),
        captions=steps(dtype=jnp.int32),
        rewards=steps(),
        terminated=steps(dtype=bool),
        truncated=steps(dtype=bool),
    )
    # END PPO
    last = LastState(
        observation=jnp.zeros(observation.shape, observation.dtype),
        captions_so_far=jnp.zeros_like(state.captions_so_far),
        scenes=jnp.zeros((args.num_envs, world.num_scene_words), jnp.uint32),
        suggested=jnp.zeros((args.num_envs, num_goals if setup.stores_suggestions or setup.reads_goals else 0), bool),
        achieved=jnp.zeros((args.num_envs, num_goals if setup.reads_goals else 0), bool),
    )
    return Collector(rollout, last, jnp.copy(state.achieved), jnp.zeros((), jnp.int32))


def collect_step(setup: Setup, tables: GoalTables, state: RunnerState, collector: Collector) -> tuple:
    """Act once in every env; return state and collector, one step further."""
    key, goal_key, policy_key, world_key, last_key = jax.random.split(state.key, 5)
    inputs, scenes, suggested = read_states(setup, tables, goal_key, state.envs.states, state.captions_so_far, collector.achieved)
    # BEGIN PPO
    logits, values = setup.network.apply(state.params, inputs)
    actions = jax.random.categorical(policy_key, logits)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), actions[:, None], axis=1)[:, 0]
    # END PPO
    envs, transition = setup.envs.advance(world_key, state.envs, actions)

    captions_so_far = state.captions_so_far | jax.nn.one_hot(transition.caption, state.captions_so_far.shape[1], dtype=bool)
    achieved = collector.achieved
    if setup.reads_goals:
        reached = reward_step(tables, setup.args.similarity_threshold, suggested, achieved, transition.caption)[1]
        achieved |= reached

    def note_last(last: LastState) -> LastState:
        scenes, suggested = observe_goals(setup, tables, last_key, envs.states)
        new = LastState(
            observation=jax.vmap(setup.world.observe)(envs.states),
            captions_so_far=captions_so_far,
            scenes=scenes,
            suggested=suggested,
            achieved=achieved if setup.reads_goals else achieved[:, :0],
        )
        return select(transition.truncated, new, last)

    last = jax.lax.cond(transition.truncated.any(), note_last, lambda last: last, collector.last)
    done = transition.terminated | transition.truncated
    step = Rollout(
        # BEGIN PPO
        inputs=inputs,
        log_probs=log_probs,
        values=values,
        # END PPO
        scenes=scenes,
        suggested=pack_bits(suggested) if setup.stores_suggestions else jnp.zeros((scenes.shape[0], 0), jnp.uint32),
        actions=actions,
        captions=transition.caption,
        rewards=transition.reward,
        terminated=transition.terminated,
        truncated=transition.truncated,
    )
    collector = collector.replace(
        rollout=jax.tree.map(lambda buffer, x: buffer.at[collector.step].set(x), collector.rollout, step),
        last=last,
        achieved=achieved & ~done[:, None],
        step=collector.step + 1,
    )
    state = state.replace(envs=setup.envs.reset_done(envs, done), captions_so_far=captions_so_far & ~done[:, None], key=key)
    return state, collector


@partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def collect(setup: Setup, tables: GoalTables, state: RunnerState, collector: Collector) -> tuple[RunnerState, Collector, Unknown]:
    """Fill the rollout; a policy that reads words stops before the first step in which it would face an unknown scene."""
    tables = drop_needs(tables, state.refuted)

    def is_ready(state):
        if not setup.must_know_scene:
            return jnp.ones((), bool)
        return are_known(setup, tables, jax.vmap(setup.world.scene)(state.envs.states)).all()

    def unfinished(carry):
        _, collector, ready = carry
        return (collector.step < setup.args.num_steps) & ready

    def advance(carry):
        state, collector = collect_step(setup, tables, *carry[:2])
        return state, collector, is_ready(state)

    state, collector, _ = jax.lax.while_loop(unfinished, advance, (state, collector, is_ready(state)))
    return state, collector, find_unknown(setup, tables, state, collector)


def find_unknown(setup: Setup, tables: GoalTables, state: RunnerState, collector: Collector) -> Unknown:
    """Return what the host must resolve: before the next step for a policy that reads words, else before the reward."""
    if setup.must_know_scene:
        now = jax.vmap(setup.world.scene)(state.envs.states)
        scenes = jnp.concatenate([now, collector.last.scenes])
        cut = collector.rollout.truncated.any(0) & (collector.step == setup.args.num_steps)
        mask = jnp.concatenate([jnp.ones_like(cut), cut])
    elif setup.waits_for_goals:
        scenes = collector.rollout.scenes.reshape(-1, setup.world.num_scene_words)
        mask = jnp.ones(scenes.shape[0], bool)
    else:
        scenes, mask = jnp.zeros((0, setup.world.num_scene_words), jnp.uint32), jnp.zeros(0, bool)
    mask &= ~are_known(setup, tables, scenes)
    return Unknown(mask.sum(), mask, scenes)


# -------------------------------------------------------------------------------------------------------------------- RESOLVE


def resolve(service: GoalService, unknown: Unknown, state: RunnerState, collector: Collector) -> tuple:
    """Let the service resolve what is unknown; return what `renew` returns."""
    service.resolve(np.asarray(unknown.scenes)[np.asarray(unknown.mask)])
    return renew(service, state, collector)


def renew(service: GoalService, state: RunnerState, collector: Collector) -> tuple:
    """Return the service's new tables, and state and collector with room for their goals."""
    more = service.num_goals - state.achieved.shape[1]

    def grow(achieved):
        return jnp.pad(achieved, ((0, 0), (0, more if achieved.shape[1] else 0)))

    state = state.replace(achieved=grow(state.achieved))
    last = collector.last.replace(suggested=grow(collector.last.suggested), achieved=grow(collector.last.achieved))
    return service.tables, state, collector.replace(achieved=grow(collector.achieved), last=last)


@partial(jax.jit, static_argnums=0)
def find_unanswered(setup: Setup, tables: GoalTables, scenes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a copy of the scenes [T, N, W] and where they have not been answered, [T, N] bool."""
    return scenes, suggest_by_scene(tables, setup.prompt_mask, scenes)[1] < 0


# --------------------------------------------------------------------------------------------------------------------- UPDATE


# BEGIN PPO
def generalised_advantages(rewards, values, next_values, terminated, done, gamma: float, gae_lambda: float) -> jax.Array:
    """Return advantages [T, N] float32 (Schulman et al., 2016); all arguments [T, N].

    next_values are of the state after the action, also where the episode was cut: only a terminated episode is worth nothing more.
    """
    chex.assert_equal_shape([rewards, values, next_values, terminated, done])
    deltas = rewards + gamma * next_values * ~terminated - values

    def walk_back(advantage, step):
        delta, done = step
        advantage = delta + gamma * gae_lambda * advantage * ~done
        return advantage, advantage

    return jax.lax.scan(walk_back, jnp.zeros_like(deltas[0]), (deltas, done), reverse=True)[1]


def ppo_loss(network: nn.Module, args: Args, params, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the clipped surrogate loss of a minibatch (Schulman et al., 2017) and what it is made of."""
    inputs, actions, old_log_probs, old_values, advantages, returns = batch
    chex.assert_equal_shape([actions, old_log_probs, old_values, advantages, returns])
    logits, values = network.apply(params, inputs)
    log_policy = jax.nn.log_softmax(logits)
    log_probs = jnp.take_along_axis(log_policy, actions[:, None], axis=1)[:, 0]
    ratio = jnp.exp(log_probs - old_log_probs)
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    clipped = jnp.clip(ratio, 1.0 - args.clip_coef, 1.0 + args.clip_coef)
    policy_loss = -jnp.minimum(advantages * ratio, advantages * clipped).mean()
    near_values = old_values + jnp.clip(values - old_values, -args.clip_coef, args.clip_coef)
    value_loss = 0.5 * jnp.maximum((values - returns) ** 2, (near_values - returns) ** 2).mean()
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


def learn(setup: Setup, state: RunnerState, batch) -> tuple[RunnerState, dict[str, jax.Array]]:
    """Take the epochs of gradient steps on a batch of [T * N, ...]; return the state and the mean of the losses."""
    args, optimizer = setup.args, make_optimizer(setup.args)

    def minibatch(carry, indices):
        params, opt_state = carry
        chosen = jax.tree.map(lambda x: x[indices], batch)
        loss = partial(ppo_loss, setup.network, args)
        gradients, parts = jax.grad(loss, has_aux=True)(params, chosen)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), parts

    def epoch(carry, key):
        indices = jax.random.permutation(key, args.batch_size).reshape(args.num_minibatches, args.minibatch_size)
        return jax.lax.scan(minibatch, carry, indices)

    key, epochs_key = jax.random.split(state.key)
    carry = (state.params, state.opt_state)
    (params, opt_state), parts = jax.lax.scan(epoch, carry, jax.random.split(epochs_key, args.update_epochs))
    return state.replace(params=params, opt_state=opt_state, key=key), jax.tree.map(jnp.mean, parts)


# END PPO
@partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def update(
    setup: Setup, tables: GoalTables, state: RunnerState, collector: Collector
) -> tuple[RunnerState, Collector, dict[str, Any]]:
    """Reward the rollout, learn from it, and refill the pool of fresh worlds; return state, emptied collector and metrics."""
    args, rollout, last = setup.args, collector.rollout, collector.last
    refuted = state.refuted | refute_needs(tables, rollout.captions, rollout.scenes) if args.evidence else state.refuted
    tables = drop_needs(tables, state.refuted)

    # REWARD
    rewards, achieved = rollout.rewards, state.achieved
    if args.goal_source != "none":
        rewards, achieved = ellm_rewards(setup, tables, rollout, achieved)

    key, goal_key, refill_key = jax.random.split(state.key, 3)
    suggested = last.suggested
    if setup.reads_goals and setup.per_scene:
        suggested = suggest(setup, tables, goal_key, state.envs.states, last.scenes)

    # BEGIN PPO
    # ADVANTAGE
    inputs, _, _ = read_states(setup, tables, goal_key, state.envs.states, state.captions_so_far, collector.achieved)
    following_values = setup.network.apply(state.params, inputs)[1]
    inputs = make_inputs(setup, tables, last.observation, last.captions_so_far, last.scenes, suggested, last.achieved)
    last_values = setup.network.apply(state.params, inputs)[1]
    next_values = jnp.concatenate([rollout.values[1:], following_values[None]])
    next_values = jnp.where(rollout.truncated, last_values[None], next_values)
    done = rollout.terminated | rollout.truncated
    advantages = generalised_advantages(rewards, rollout.values, next_values, rollout.terminated, done, args.gamma, args.gae_lambda)

    # LEARN
    batch = (rollout.inputs, rollout.actions, rollout.log_probs, rollout.values, advantages, advantages + rollout.values)
    batch = jax.tree.map(lambda x: x.reshape(args.batch_size, *x.shape[2:]), batch)
    state, losses = learn(setup, state.replace(key=key), batch)
    # END PPO

    envs, episodes = setup.envs.drain(setup.envs.refill(refill_key, state.envs))
    metrics = {
        "episodes": episodes,
        "reward_per_step": rewards.mean(),
        "steps_without_answer": steps_without_answer(setup, tables, rollout.scenes),
        "pool_exhausted": envs.exhausted,
        **({"needs_dropped": jax.lax.population_count(refuted).sum()} if args.evidence else {}),
        **losses,
    }
    state = state.replace(envs=envs, achieved=achieved, update=state.update + 1, refuted=refuted)
    collector = collector.replace(achieved=jnp.copy(achieved), step=jnp.zeros((), jnp.int32))
    return state, collector, metrics


def steps_without_answer(setup: Setup, tables: GoalTables, scenes: jax.Array) -> jax.Array:
    """Return the share of scenes [T, N, W] for which no language model has answered, float32 []."""
    if not setup.per_scene:
        return jnp.zeros(())
    rows = suggest_by_scene(tables, setup.prompt_mask, scenes)[1]
    return 1.0 - (tables.answered[rows] & (rows >= 0)).mean()


def select(condition: jax.Array, new: Any, old: Any) -> Any:
    """Choose per env between two trees of [N, ...]; condition: [N] bool."""

    def choose(x, y):
        return jnp.where(condition.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(choose, new, old)


# ------------------------------------------------------------------------------------------------------------------- EVALUATE


@struct.dataclass
class Play:
    """Episodes being played, one in each of M worlds, each until it is over.

    captions_so_far: [M, C] bool; achieved: [M, G] bool; achievements: [M, K] bool; returns: [M] float32; lengths: [M] int32;
    over: [M] bool.
    """

    states: Any
    captions_so_far: jax.Array
    achieved: jax.Array
    achievements: jax.Array
    returns: jax.Array
    lengths: jax.Array
    over: jax.Array


@partial(jax.jit, static_argnums=0)
def start_play(setup: Setup, tables: GoalTables, keys: jax.Array) -> Play:
    """Begin one episode for each key [M]."""
    world, m = setup.world, keys.shape[0]
    return Play(
        states=jax.lax.map(world.reset, keys),
        captions_so_far=jnp.zeros((m, len(world.captions)), bool),
        achieved=jnp.zeros((m, tables.sensible.shape[0]), bool),
        achievements=jnp.zeros((m, len(world.achievements)), bool),
        returns=jnp.zeros(m),
        lengths=jnp.zeros(m, jnp.int32),
        over=jnp.zeros(m, bool),
    )


@partial(jax.jit, static_argnums=0)
def play_step(setup: Setup, tables: GoalTables, params, key: jax.Array, play: Play) -> tuple[Play, dict]:
    """Act once in every world that is not over; return the play and what the first world's step shows in a film."""
    goal_key, policy_key, world_key = jax.random.split(key, 3)
    scenes = jax.vmap(setup.world.scene)(play.states)
    suggested = jnp.zeros_like(play.achieved)
    if setup.args.goal_source != "none":
        suggested = suggest(setup, tables, goal_key, play.states, scenes)
    observation = jax.vmap(setup.world.observe)(play.states)
    inputs = make_inputs(setup, tables, observation, play.captions_so_far, scenes, suggested, play.achieved)
    # BEGIN PPO
    actions = jax.random.categorical(policy_key, setup.network.apply(params, inputs)[0])
    # END PPO
    states, transition = jax.vmap(setup.world.step)(jax.random.split(world_key, len(actions)), play.states, actions)
    rewards, reached = reward_step(tables, setup.args.similarity_threshold, suggested, play.achieved, transition.caption)
    shown = {
        "state": play.states,
        "scene": scenes,
        "suggested": suggested,
        "achieved": play.achieved,
        "reached": reached,
        "action": actions,
        "caption": transition.caption,
        "reward": rewards if setup.args.goal_source != "none" else transition.reward,
        "achievements": transition.achievements,
        "over": play.over,
    }
    caption_bits = jax.nn.one_hot(transition.caption, play.captions_so_far.shape[1], dtype=bool)
    after = Play(
        states=states,
        captions_so_far=play.captions_so_far | caption_bits,
        achieved=play.achieved | reached,
        achievements=transition.achievements,
        returns=play.returns + transition.reward,
        lengths=play.lengths + 1,
        over=transition.terminated | transition.truncated,
    )
    return select(play.over, play, after), jax.tree.map(lambda x: x[0], shown)


def evaluate(setup: Setup, service: GoalService, params, num_episodes: int, key: jax.Array) -> tuple[dict[str, Any], list[dict]]:
    """Play episodes with the sampled policy; return their statistics and the steps of the first, for a film.

    Only a policy that reads words asks for unknown scenes; in a film of any other, such scenes have no goals.
    """
    reset_key, key = jax.random.split(key)
    play = start_play(setup, service.tables, jax.random.split(reset_key, num_episodes))
    shown = []
    for step in range(setup.world.max_episode_steps):
        # HOST WAITS for the device every 20 steps, at every step if the policy reads words.
        if step % 20 == 0 and bool(play.over.all()):
            break
        if setup.must_know_scene:
            scenes = np.asarray(jax.vmap(setup.world.scene)(play.states))
            unknown = ~np.asarray(are_known(setup, service.tables, scenes)) & ~np.asarray(play.over)
            if unknown.any():
                service.resolve(scenes[unknown])
                more = service.num_goals - play.achieved.shape[1]
                play = play.replace(achieved=jnp.pad(play.achieved, ((0, 0), (0, more))))
        step_key = jax.random.fold_in(key, step)
        play, first = play_step(setup, service.tables, params, step_key, play)
        shown.append(first)
    rates = np.asarray(play.achievements).mean(0)
    statistics = {
        "episodes": num_episodes,
        "achievements_per_episode": float(rates.sum()),
        "achievements_standard_error": float(np.asarray(play.achievements).sum(1).std() / np.sqrt(num_episodes)),
        "episode_return": float(play.returns.mean()),
        "episode_length": float(play.lengths.mean()),
        "success_rates": dict(zip(setup.world.achievements, rates.tolist(), strict=True)),
    }
    return statistics, shown


# ----------------------------------------------------------------------------------------------------------------------- main


def make_service(args: Args, world, on_progress: Callable[[int], None] = lambda waiting: None) -> GoalService:
    """Open the way to everything that can answer; raises UserError for what is not there."""
    return GoalService(
        world,
        source=args.goal_source,
        form=args.goal_form,
        llm=args.llm,
        url=args.llm_url,
        engine=args.llm_engine,
        budget=args.llm_budget,
        prompt=args.prompt,
        store=args.store,
        resolve_mode=args.resolve,
        on_missing=args.on_missing,
        prompt_scope=args.prompt_scope,
        max_goal_tokens=args.max_goal_tokens,
        temperature=args.temperature,
        votes=args.votes,
        closed_scoring=args.closed_scoring,
        closed_calibration=args.closed_calibration,
        seed=args.seed,
        encoder=args.sentence_encoder,
        embeds_goals=args.goal_conditioned,
        text_observation=args.text_observation,
        on_progress=on_progress,
    )


def make_args_world(args: Args):
    """Make the world that the arguments name."""
    return make_world(
        args.env,
        action_set=args.actions,
        caption_regime=args.captions,
        game_rules=args.game_rules,
        observation=args.observation,
    )


def load_run(run_dir: str | Path) -> tuple[Setup, GoalService, Any]:
    """Open a run for evaluation: return its setup, its goal service and the parameters of its last checkpoint."""
    recorded = read_config(run_dir)["arguments"]
    args = Args(**{field.name: recorded[field.name] for field in dataclasses.fields(Args)})
    world = make_args_world(args)
    service = make_service(args, world)
    service.prepare()
    setup = make_setup(args, world, service)
    with Checkpoints(Path(run_dir) / "checkpoints") as checkpoints:
        state, _ = restore(setup, service, checkpoints)
    return setup, service, state.params


def restore(setup: Setup, service: GoalService, checkpoints: Checkpoints) -> tuple[RunnerState, dict[str, Any]]:
    """Bring the service to where the last checkpoint was made; return the runner's state and what the run had spent."""
    host = checkpoints.host()
    service.restore(host["service"])
    state, _ = checkpoints.restore(jax.eval_shape(partial(init_state, setup), service.tables))
    if setup.args.evidence:
        service.refute(np.asarray(state.refuted))
    return state, host["spent"]


def main(args: Args) -> dict[str, Any]:
    """Train, evaluate and report; return the content of summary.json."""
    start, clock = time.perf_counter(), CompileClock()
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if args.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/ellm/xla").expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    world = make_args_world(args)
    # BEGIN PPO
    num_updates, _ = args.num_updates, args.minibatch_size
    name = f"{args.env}-ppo"
    # END PPO
    run_dir = Path(args.run_dir or f"runs/{name}-{args.goal_source}-s{args.seed}-{time.strftime('%Y%m%d-%H%M%S')}")

    with ExitStack() as stack:
        service = stack.enter_context(closing(make_service(args, world)))
        setup = make_setup(args, world, service)
        facts = {"language_model": service.language_model, "prompts": service.prompts}
        identity = [f.name for f in dataclasses.fields(Args) if f.name not in FREE_FIELDS] + list(facts)
        run = stack.enter_context(Run(run_dir, dataclasses.asdict(args), facts, identity, track=args.track, script=__file__))
        print(f"{run.path}: {service.describe()}", flush=True)
        checkpoints = stack.enter_context(Checkpoints(run.path / "checkpoints"))
        progress = stack.enter_context(Progress(num_updates * args.batch_size))
        service.on_progress = progress.waiting
        service.prepare()
        before = {"wall_seconds": 0.0, "compile_seconds": 0.0}
        if checkpoints.latest_step() is not None:
            state, before = restore(setup, service, checkpoints)
        else:
            state = init_state(setup, service.tables)

        def spent() -> dict[str, float]:
            return {
                "wall_seconds": before["wall_seconds"] + time.perf_counter() - start,
                "compile_seconds": before["compile_seconds"] + clock.seconds,
            }

        run.truncate_after(int(state.update) * args.batch_size)  # HOST WAITS.
        tables, collector = service.tables, empty_collector(setup, state)
        ended = time.perf_counter()

        for number in range(int(state.update) + 1, num_updates + 1):
            began, compiled_before = time.perf_counter(), clock.seconds
            state, collector, unknown = collect(setup, tables, state, collector)
            while setup.asks and int(unknown.count):  # HOST WAITS for one number.
                tables, state, collector = resolve(service, unknown, state, collector)
                state, collector, unknown = collect(setup, tables, state, collector)
            if setup.in_background:
                met, is_unanswered = find_unanswered(setup, tables, collector.rollout.scenes)
            state, collector, metrics = update(setup, tables, state, collector)

            metrics = jax.device_get(metrics)  # HOST WAITS for the device.
            host_seconds, ended = began - ended, time.perf_counter()
            seconds = ended - began - (clock.seconds - compiled_before)
            line = {"update": number, "env_steps": number * args.batch_size, "scenes": service.num_scenes}
            line |= metrics_line(world.achievements, metrics)
            if setup.in_background:
                if service.exchange(np.asarray(met)[np.asarray(is_unanswered)]):
                    tables, state, collector = renew(service, state, collector)
                line |= {"queue_length": service.queue_length, "queue_dropped": service.usage.queue_dropped}
            line["time"] = {"seconds": seconds, "sps": args.batch_size / seconds, "host_seconds": host_seconds}
            run.log(line)
            progress.update(line["env_steps"], line["achievements_per_episode"], service.num_scenes, service.queue_length)
            failure = service.failure
            if number % args.checkpoint_every == 0 or number == num_updates or failure:
                checkpoints.save(number, state, {"service": service.state(), "spent": spent()})
            if failure:
                raise UserError(f"{failure}; all is kept: go on with --run-dir {run.path}") from failure

        service.finish(drain=args.on_exit == "drain")
        if args.evidence:
            service.refute(np.asarray(state.refuted))
        summary = summarise(read_metrics(run.path), world.achievements)
        learning_curve(run.path, run.path / "curve.png")
        shown = []
        if args.evaluate_episodes:
            progress.phase("evaluating")
            key = jax.random.fold_in(jax.random.key(args.seed), 1)
            summary["evaluation"], shown = evaluate(setup, service, state.params, args.evaluate_episodes, key)
        summary |= {
            "env_steps": num_updates * args.batch_size,
            **spent(),
            **costs(dataclasses.asdict(service.usage), num_updates * args.batch_size),
            "scenes": service.num_scenes,
            "goals": len(service.goals),
            "language_model": service.language_model,
            "git_commit": read_config(run.path)["git_commit"],
        }
        run.write_summary(summary)
        if args.film and shown:
            progress.phase("filming")
            make_film(film_frames(world, service.goals, shown), run.path / "film.gif")
    achievements = summary["achievements_per_episode"]
    ended = "no episode ended" if achievements is None else f"{achievements:.2f} achievements per episode"
    print(f"{run.path}: {ended}", flush=True)
    return summary


if __name__ == "__main__":
    run_cli(main, Args, lambda args: PRESETS[args.preset])
