"""PPO rewarded for reaching states unlike the others of its rollout: APT (Liu & Abbeel, 2021), without a language model.

A representation learns to tell the action from the states before and after it, as in ICM-APT of URLB (Laskin et al., 2021). A step
earns log(1 + d / running mean of d), d the mean distance from the state it led to, so represented, to its k nearest others of the
rollout. The world's own reward counts --extrinsic-coef times, by default not at all: pretraining. All else is baselines/ppo.py.

    python -m baselines.ppo_apt --env crafter                      pretraining, minutes on two CPU cores
    python -m baselines.ppo_apt --extrinsic-coef 1 --intrinsic-coef 0.01     also for the world's reward

On a GPU or TPU (jax for the device installed) begin with --preset gpu.
Unlike URLB: there is no forward model; a step is rewarded for the state it led to, not for the one it began in; no state is its own
neighbour; the others are of the same rollout, not of a replay.
Axes: T steps, N envs, B minibatch, A actions, D observation, C captions, K achievements, E embedding, W scene words, F features,
P particles.
"""

import dataclasses
import time
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
from goals.tables import GoalTables, embed_facts, lookup
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
    """Train an agent on the reward of its world."""

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

    # The policy's inputs
    text_observation: Literal["none", "caption", "facts"] = "none"
    """also read the scene in words: the embedded caption (the paper's), or the mean of its facts' embeddings"""
    caption_memory: bool = True  # also read which captions the episode has seen, as the agents of ellm_ppo.py do
    sentence_encoder: str = "all-MiniLM-L6-v2"
    """all-MiniLM-L6-v2, or a hub id or folder (the paper's: sentence-transformers/paraphrase-MiniLM-L3-v2)"""
    store: str = "runs/store.sqlite"  # embeddings, shared by all runs that name the same file

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
    # BEGIN APT
    extrinsic_coef: float = 0.0  # weight of the world's reward; 0: pretraining without it
    intrinsic_coef: float = 1.0  # weight of the bonus
    apt_k: int = 12  # nearest neighbours whose distances are averaged (k)
    apt_particles: int = 2048  # most states of the rollout that each one is compared with (P), drawn anew for each rollout
    apt_features: int = 64  # width of the representation (F)
    apt_learning_rate: float = 1e-3  # Adam's step size for the representation
    apt_minibatches: int = 4  # gradient steps on the representation per update, together one pass over the rollout
    # END APT

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
    # BEGIN APT
    @property
    def apt_minibatch_size(self) -> int:
        """Env steps per gradient step on the representation; raises UserError if --apt-minibatches does not divide the batch."""
        if self.apt_minibatches < 1 or self.batch_size % self.apt_minibatches:
            raise UserError(f"--apt-minibatches {self.apt_minibatches} does not divide --num-envs x --num-steps, {self.batch_size}")
        return self.batch_size // self.apt_minibatches

    @property
    def num_particles(self) -> int:
        """States that each one is compared with, itself among them; raises UserError if they are fewer than --apt-k others."""
        particles = min(self.apt_particles, self.batch_size)
        if not 1 <= self.apt_k < particles:
            raise UserError(f"--apt-k {self.apt_k} is not from 1 to {particles - 1}, the others that a state is compared with")
        return particles

    # END APT
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
FREE_FIELDS = ("preset", "run_dir", "checkpoint_every", "evaluate_episodes", "film", "track", "compilation_cache", "store")

# -------------------------------------------------------------------------------------------------------- state and transition


@struct.dataclass
class PolicyInput:
    """What the policy reads, of any leading shape; an input that is switched off has size zero.

    observation: [..., D] float32 or [..., H, W, 3] uint8; captions_so_far: [..., C] bool; text: [..., E] float32.
    """

    observation: jax.Array
    captions_so_far: jax.Array
    text: jax.Array


# BEGIN APT
@struct.dataclass
class Moves:
    """The states before and after steps, of any leading shape; after, nothing is reset yet, so that both are of one episode.

    observation, following_observation: [..., D] float32 or [..., H, W, 3] uint8; scenes, following_scenes: [..., W] uint32, of size
    zero if no text is read.
    """

    observation: jax.Array
    following_observation: jax.Array
    scenes: jax.Array
    following_scenes: jax.Array


# END APT
# BEGIN PPO
@struct.dataclass
class Rollout:
    """T steps of N envs. Inputs are from before the action, all else is what the action led to.

    actions: [T, N] int32; log_probs, values, rewards: [T, N] float32; terminated, truncated: [T, N] bool.
    """

    inputs: PolicyInput
    actions: jax.Array
    log_probs: jax.Array
    values: jax.Array
    rewards: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    # END PPO
    # BEGIN APT
    moves: Moves
    # END APT


@struct.dataclass
class LastState:
    """The state in which each env's episode was cut by the time limit in this rollout; unread where none was.

    An episode is not shorter than a rollout, so there is at most one. observation: [N, ...]; captions_so_far: [N, C] bool;
    scenes: [N, W] uint32.
    """

    observation: jax.Array
    captions_so_far: jax.Array
    scenes: jax.Array


@struct.dataclass
class Collector:
    """A rollout in the making, filled up to `step`; the same buffers serve all rollouts."""

    rollout: Rollout
    last: LastState
    step: jax.Array


@struct.dataclass
class Unknown:
    """Scenes that the host must resolve before the run goes on: count int32 [], which of scenes [M, W] uint32 as mask [M] bool."""

    count: jax.Array
    mask: jax.Array
    scenes: jax.Array


# BEGIN APT
@struct.dataclass
class Bonus:
    """What the bonus has learned: the inverse model, and the mean distance [] float32 over so many rollouts [] int32."""

    params: Any
    opt_state: Any
    mean_distance: jax.Array
    rollouts: jax.Array


# END APT
@struct.dataclass
class RunnerState:
    """All that training needs to go on, but for the table of embeddings; captions_so_far: [N, C] bool."""

    params: Any
    opt_state: Any
    envs: VectorState
    captions_so_far: jax.Array
    key: jax.Array
    update: jax.Array
    # BEGIN APT
    bonus: Bonus
    # END APT


@dataclass(frozen=True)
class Setup:
    """What the jitted functions treat as constant."""

    args: Args
    world: Any
    envs: VectorWorld
    network: nn.Module
    embedding_size: int

    @property
    def must_know_scene(self) -> bool:
        """Tell whether the policy cannot act in a scene that the host has not embedded."""
        return self.args.text_observation == "caption"


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
        words = [nn.relu(dense(self.hidden_size // 2)(x)) for x in (inputs.text,) if x.shape[-1]]
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
# BEGIN APT
class Trunk(nn.Module):
    """The representation: one bounded layer on symbols and words, pixels through the convolutions of `Torso` first."""

    num_features: int

    @nn.compact
    def __call__(self, inputs: PolicyInput) -> jax.Array:
        """Return features [B, F] float32 from -1 to 1."""
        observation = inputs.observation
        if observation.ndim > 2:
            observation = observation.astype(jnp.float32) / 255.0
            for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
                observation = nn.relu(Convolution(features, size, stride)(observation))
            observation = observation.reshape(observation.shape[0], -1)
        x = jnp.concatenate([observation, inputs.text], axis=-1)
        return nn.tanh(nn.LayerNorm()(nn.Dense(self.num_features)(x)))


class InverseModel(nn.Module):
    """The action between two states, told from their representations (Pathak et al., 2017)."""

    num_actions: int
    num_features: int
    hidden_size: int

    def setup(self):
        self.trunk = Trunk(self.num_features)
        self.hidden, self.head = nn.Dense(self.hidden_size), nn.Dense(self.num_actions)

    def represent(self, inputs: PolicyInput) -> jax.Array:
        """Return features [B, F] float32 of states."""
        return self.trunk(inputs)

    def __call__(self, inputs: PolicyInput, following: PolicyInput) -> jax.Array:
        """Return logits [B, A] float32 of the action that led from one state to the following."""
        pair = jnp.concatenate([self.represent(inputs), self.represent(following)], axis=-1)
        return self.head(nn.relu(self.hidden(pair)))


# END APT
def make_setup(args: Args, world, service: GoalService) -> Setup:
    """Put together what the jitted functions treat as constant; raises UserError for arguments that do not go together."""
    if args.num_steps > world.max_episode_steps:
        raise UserError(f"--num-steps {args.num_steps} is longer than an episode ({world.max_episode_steps} steps)")
    return Setup(
        args=args,
        world=world,
        envs=VectorWorld(world, args.num_envs, pool_size=max(16, args.num_envs)),
        # BEGIN PPO
        network=ActorCritic(len(world.actions), args.hidden_size),
        # END PPO
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
# BEGIN APT
APT_KEY = 0x415054  # folded into a key for what is APT's own; larger than any number of keys that one is split into
APT_ROWS = 256  # states whose neighbours are searched in one go, which bounds the memory


def make_inverse_model(setup: Setup) -> InverseModel:
    """Return the network that learns the representation."""
    return InverseModel(len(setup.world.actions), setup.args.apt_features, setup.args.hidden_size)


def init_bonus(setup: Setup, inputs: PolicyInput) -> Bonus:
    """Return the bonus before the first rollout; inputs: of N states."""
    # A key of its own, so that what the plain baseline draws is drawn here too.
    key = jax.random.fold_in(jax.random.key(setup.args.seed), APT_KEY)
    params = make_inverse_model(setup).init(key, inputs, inputs)
    opt_state = optax.adam(setup.args.apt_learning_rate).init(params)
    return Bonus(params, opt_state, mean_distance=jnp.zeros(()), rollouts=jnp.zeros((), jnp.int32))


# END APT
@partial(jax.jit, static_argnums=0)
def init_state(setup: Setup, tables: GoalTables) -> RunnerState:
    """Return the state before the first step."""
    args, num_captions = setup.args, len(setup.world.captions)
    key, params_key, envs_key = jax.random.split(jax.random.key(args.seed), 3)
    envs = setup.envs.reset(envs_key)
    captions_so_far = jnp.zeros((args.num_envs, num_captions), bool)
    inputs = read_states(setup, tables, envs.states, captions_so_far)[0]
    params = setup.network.init(params_key, inputs)
    return RunnerState(
        params=params,
        opt_state=make_optimizer(args).init(params),
        envs=envs,
        captions_so_far=captions_so_far,
        key=key,
        update=jnp.zeros((), jnp.int32),
        # BEGIN APT
        bonus=init_bonus(setup, inputs),
        # END APT
    )


# -------------------------------------------------------------------------------------------------------------------- COLLECT


def make_inputs(setup: Setup, tables: GoalTables, observation, captions_so_far, scenes) -> PolicyInput:
    """Add to the observations of N states the words that the policy reads: captions so far and text."""
    text = jnp.zeros((observation.shape[0], 0))
    if setup.args.text_observation == "caption":
        rows = lookup(tables.text_rows, scenes)
        text = jnp.where((rows >= 0)[:, None], tables.text_embeddings[rows], 0.0)
    elif setup.args.text_observation == "facts":
        text = embed_facts(tables, scenes)
    return PolicyInput(
        observation=observation,
        captions_so_far=captions_so_far if setup.args.caption_memory else captions_so_far[:, :0],
        text=text,
    )


def read_states(setup: Setup, tables: GoalTables, states, captions_so_far) -> tuple[PolicyInput, jax.Array]:
    """Return what the policy reads in N states, and their scenes [N, W] uint32."""
    scenes = jax.vmap(setup.world.scene)(states)
    return make_inputs(setup, tables, jax.vmap(setup.world.observe)(states), captions_so_far, scenes), scenes


def are_known(setup: Setup, tables: GoalTables, scenes: jax.Array) -> jax.Array:
    """Tell for which scenes [..., W] uint32 there is no text that the run must wait for, [...] bool."""
    if not setup.must_know_scene:
        return jnp.ones(scenes.shape[:-1], bool)
    return lookup(tables.text_rows, scenes) >= 0


# BEGIN APT
def note_moves(setup: Setup, observation: jax.Array, scenes: jax.Array, states) -> Moves:
    """Note where N steps began, and the states that they led to before any was reset."""
    num_words = setup.world.num_scene_words if setup.args.text_observation != "none" else 0
    following_scenes = jax.vmap(setup.world.scene)(states)
    return Moves(observation, jax.vmap(setup.world.observe)(states), scenes[:, :num_words], following_scenes[:, :num_words])


# END APT
def empty_collector(setup: Setup, state: RunnerState) -> Collector:
    """Allocate the buffers of a rollout."""
    args, world = setup.args, setup.world

    def steps(*shape, dtype=jnp.float32):
        return jnp.zeros((args.num_steps, args.num_envs, *shape), dtype)

    observation = jax.eval_shape(jax.vmap(world.observe), state.envs.states)
    # BEGIN APT
    scenes = jax.eval_shape(jax.vmap(world.scene), state.envs.states)
    # END APT
    # BEGIN PPO
    rollout = Rollout(
        inputs=PolicyInput(
            observation=steps(*observation.shape[1:], dtype=observation.dtype),
            captions_so_far=steps(len(world.captions) if args.caption_memory else 0, dtype=bool),
            text=steps(setup.embedding_size if args.text_observation != "none" else 0),
        ),
        actions=steps(dtype=jnp.int32),
        log_probs=steps(),
        values=steps(),
        rewards=steps(),
        terminated=steps(dtype=bool),
        truncated=steps(dtype=bool),
        # END PPO
        # BEGIN APT
        moves=jax.tree.map(
            lambda x: steps(*x.shape[1:], dtype=x.dtype),
            jax.eval_shape(partial(note_moves, setup), observation, scenes, state.envs.states),
        ),
        # END APT
        # BEGIN PPO
    )
    # END PPO
    last = LastState(
        observation=jnp.zeros(observation.shape, observation.dtype),
        captions_so_far=jnp.zeros_like(state.captions_so_far),
        scenes=jnp.zeros((args.num_envs, world.num_scene_words), jnp.uint32),
    )
    return Collector(rollout, last, jnp.zeros((), jnp.int32))


def collect_step(setup: Setup, tables: GoalTables, state: RunnerState, collector: Collector) -> tuple:
    """Act once in every env; return state and collector, one step further."""
    key, _, policy_key, world_key, _ = jax.random.split(state.key, 5)  # as ellm_ppo.py does, for equal runs from equal seeds
    inputs, scenes = read_states(setup, tables, state.envs.states, state.captions_so_far)
    # BEGIN PPO
    logits, values = setup.network.apply(state.params, inputs)
    actions = jax.random.categorical(policy_key, logits)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), actions[:, None], axis=1)[:, 0]
    # END PPO
    envs, transition = setup.envs.advance(world_key, state.envs, actions)

    captions_so_far = state.captions_so_far | jax.nn.one_hot(transition.caption, state.captions_so_far.shape[1], dtype=bool)

    def note_last(last: LastState) -> LastState:
        new = LastState(
            observation=jax.vmap(setup.world.observe)(envs.states),
            captions_so_far=captions_so_far,
            scenes=jax.vmap(setup.world.scene)(envs.states),
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
        actions=actions,
        rewards=transition.reward,
        terminated=transition.terminated,
        truncated=transition.truncated,
        # BEGIN APT
        moves=note_moves(setup, inputs.observation, scenes, envs.states),
        # END APT
    )
    collector = collector.replace(
        rollout=jax.tree.map(lambda buffer, x: buffer.at[collector.step].set(x), collector.rollout, step),
        last=last,
        step=collector.step + 1,
    )
    state = state.replace(envs=setup.envs.reset_done(envs, done), captions_so_far=captions_so_far & ~done[:, None], key=key)
    return state, collector


@partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def collect(setup: Setup, tables: GoalTables, state: RunnerState, collector: Collector) -> tuple[RunnerState, Collector, Unknown]:
    """Fill the rollout; a policy that reads words stops before the first step in which it would face an unknown scene."""

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
    else:
        scenes, mask = jnp.zeros((0, setup.world.num_scene_words), jnp.uint32), jnp.zeros(0, bool)
    # BEGIN APT
    if setup.must_know_scene:  # the bonus reads the words of every state reached, also where no policy acts any more
        following = collector.rollout.moves.following_scenes.reshape(-1, setup.world.num_scene_words)
        full = collector.step == setup.args.num_steps
        scenes = jnp.concatenate([scenes, following])
        mask = jnp.concatenate([mask, jnp.broadcast_to(full, following.shape[:1])])
    # END APT
    mask &= ~are_known(setup, tables, scenes)
    return Unknown(mask.sum(), mask, scenes)


# -------------------------------------------------------------------------------------------------------------------- RESOLVE


def resolve(service: GoalService, unknown: Unknown) -> GoalTables:
    """Let the service embed the captions of the unknown scenes; return its new tables."""
    service.resolve(np.asarray(unknown.scenes)[np.asarray(unknown.mask)])
    return service.tables


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
# BEGIN APT
def read_moves(setup: Setup, tables: GoalTables, moves: Moves) -> tuple[PolicyInput, PolicyInput]:
    """Return what the representation reads of the states before and after B steps: all that the policy reads but its memory."""
    no_captions = jnp.zeros((len(moves.observation), 0), bool)
    return (
        make_inputs(setup, tables, moves.observation, no_captions, moves.scenes),
        make_inputs(setup, tables, moves.following_observation, no_captions, moves.following_scenes),
    )


def inverse_loss(model: nn.Module, params, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the cross-entropy of the actions told from the states before and after them, and how many were told right."""
    inputs, following, actions = batch
    logits = model.apply(params, inputs, following)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, actions).mean()
    return loss, {"inverse_loss": loss, "inverse_accuracy": (logits.argmax(-1) == actions).mean()}


def learn_representation(
    setup: Setup, tables: GoalTables, bonus: Bonus, moves: Moves, actions: jax.Array, key: jax.Array
) -> tuple[Bonus, dict[str, jax.Array]]:
    """Pass once over a rollout's moves [T * N, ...] and actions [T * N]; return the bonus and the mean of the losses."""
    args, model = setup.args, make_inverse_model(setup)
    optimizer = optax.adam(args.apt_learning_rate)

    def minibatch(carry, indices):
        params, opt_state = carry
        inputs, following = read_moves(setup, tables, jax.tree.map(lambda x: x[indices], moves))
        batch = (inputs, following, actions[indices])
        gradients, parts = jax.grad(partial(inverse_loss, model), has_aux=True)(params, batch)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), parts

    indices = jax.random.permutation(key, args.batch_size).reshape(args.apt_minibatches, args.apt_minibatch_size)
    (params, opt_state), parts = jax.lax.scan(minibatch, (bonus.params, bonus.opt_state), indices)
    return bonus.replace(params=params, opt_state=opt_state), jax.tree.map(jnp.mean, parts)


def represent_following(setup: Setup, tables: GoalTables, params, moves: Moves) -> jax.Array:
    """Return the features [T * N, F] of the states that a rollout's moves [T * N, ...] led to; nothing is learned through them."""
    args, model = setup.args, make_inverse_model(setup)

    def represent(moves):
        return model.apply(params, read_moves(setup, tables, moves)[1], method="represent")

    # As many at a time as one gradient step reads, which bounds the memory that pixels take.
    pieces = jax.tree.map(lambda x: x.reshape(args.apt_minibatches, args.apt_minibatch_size, *x.shape[1:]), moves)
    return jax.lax.stop_gradient(jax.lax.map(represent, pieces).reshape(args.batch_size, args.apt_features))


def neighbour_distances(features: jax.Array, particles: jax.Array, k: int) -> jax.Array:
    """Return the mean distance [B] of each row of features [B, F] to its k nearest others among the rows particles [P] int32."""
    chosen = features[particles]
    squares = (chosen**2).sum(-1)

    def mean_distance(row_and_index):
        row, index = row_and_index
        # Half the squared distance, negative, but for the row's own square: it moves all alike. Rounding may change who is chosen
        # among almost equally near ones, but the distances themselves are of differences, so that a duplicate's is zero.
        nearness = jnp.dot(chosen, row, precision="highest") - 0.5 * squares
        nearest = jax.lax.top_k(jnp.where(particles == index, -jnp.inf, nearness), k)[1]
        return jnp.sqrt(((chosen[nearest] - row[None]) ** 2).sum(-1)).mean()

    return jax.lax.map(mean_distance, (features, jnp.arange(len(features))), batch_size=APT_ROWS)


def entropy_rewards(args: Args, bonus: Bonus, features: jax.Array, key: jax.Array) -> tuple[jax.Array, Bonus, jax.Array]:
    """Reward features [T * N, F] for being far from others: return rewards [T * N], the bonus, and the mean distance now []."""
    particles = jnp.arange(args.batch_size)
    if args.num_particles < args.batch_size:
        particles = jax.random.permutation(key, args.batch_size)[: args.num_particles]
    distances = neighbour_distances(features, particles, args.apt_k)
    # All rollouts have one size, so that each counts alike in the running mean, this one included.
    rollouts, distance = bonus.rollouts + 1, distances.mean()
    mean_distance = bonus.mean_distance + (distance - bonus.mean_distance) / rollouts
    rewards = jnp.log1p(distances / jnp.maximum(mean_distance, 1e-8))
    return rewards, bonus.replace(mean_distance=mean_distance, rollouts=rollouts), distance


def reward_novelty(
    setup: Setup, tables: GoalTables, bonus: Bonus, rollout: Rollout, key: jax.Array
) -> tuple[jax.Array, Bonus, dict[str, jax.Array]]:
    """Let the representation learn from a rollout, then reward its steps with it: return rewards [T, N], bonus and metrics."""
    chex.assert_equal_shape([rollout.actions, rollout.rewards])
    learn_key, particles_key = jax.random.split(key)
    moves = jax.tree.map(lambda x: x.reshape(setup.args.batch_size, *x.shape[2:]), rollout.moves)
    bonus, losses = learn_representation(setup, tables, bonus, moves, rollout.actions.reshape(-1), learn_key)
    features = represent_following(setup, tables, bonus.params, moves)
    rewards, bonus, distance = entropy_rewards(setup.args, bonus, features, particles_key)
    metrics = {**losses, "bonus_mean": rewards.mean(), "bonus_std": rewards.std(), "knn_distance": distance}
    return rewards.reshape(rollout.rewards.shape), bonus, metrics


# END APT
@partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def update(
    setup: Setup, tables: GoalTables, state: RunnerState, collector: Collector
) -> tuple[RunnerState, Collector, dict[str, Any]]:
    """Reward the rollout, learn from it, and refill the pool of fresh worlds; return state, emptied collector and metrics."""
    rollout, last = collector.rollout, collector.last

    # REWARD
    rewards = rollout.rewards
    # BEGIN APT
    bonus_key = jax.random.fold_in(state.key, APT_KEY)
    intrinsic, bonus, bonus_metrics = reward_novelty(setup, tables, state.bonus, rollout, bonus_key)
    rewards = setup.args.extrinsic_coef * rewards + setup.args.intrinsic_coef * intrinsic
    state = state.replace(bonus=bonus)
    # END APT

    key, _, refill_key = jax.random.split(state.key, 3)

    # BEGIN PPO
    # ADVANTAGE
    args = setup.args
    inputs, _ = read_states(setup, tables, state.envs.states, state.captions_so_far)
    following_values = setup.network.apply(state.params, inputs)[1]
    inputs = make_inputs(setup, tables, last.observation, last.captions_so_far, last.scenes)
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
        "steps_without_answer": jnp.zeros(()),
        "pool_exhausted": envs.exhausted,
        **losses,
        # BEGIN APT
        **bonus_metrics,
        # END APT
    }
    state = state.replace(envs=envs, update=state.update + 1)
    return state, collector.replace(step=jnp.zeros((), jnp.int32)), metrics


def select(condition: jax.Array, new: Any, old: Any) -> Any:
    """Choose per env between two trees of [N, ...]; condition: [N] bool."""

    def choose(x, y):
        return jnp.where(condition.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(choose, new, old)


# ------------------------------------------------------------------------------------------------------------------- EVALUATE


@struct.dataclass
class Play:
    """Episodes being played, one in each of M worlds, each until it is over.

    captions_so_far: [M, C] bool; achievements: [M, K] bool; returns: [M] float32; lengths: [M] int32; over: [M] bool.
    """

    states: Any
    captions_so_far: jax.Array
    achievements: jax.Array
    returns: jax.Array
    lengths: jax.Array
    over: jax.Array


@partial(jax.jit, static_argnums=0)
def start_play(setup: Setup, keys: jax.Array) -> Play:
    """Begin one episode for each key [M]."""
    world, m = setup.world, keys.shape[0]
    return Play(
        states=jax.lax.map(world.reset, keys),
        captions_so_far=jnp.zeros((m, len(world.captions)), bool),
        achievements=jnp.zeros((m, len(world.achievements)), bool),
        returns=jnp.zeros(m),
        lengths=jnp.zeros(m, jnp.int32),
        over=jnp.zeros(m, bool),
    )


@partial(jax.jit, static_argnums=0)
def play_step(setup: Setup, tables: GoalTables, params, key: jax.Array, play: Play) -> tuple[Play, dict]:
    """Act once in every world that is not over; return the play and what the first world's step shows in a film."""
    _, policy_key, world_key = jax.random.split(key, 3)
    inputs, scenes = read_states(setup, tables, play.states, play.captions_so_far)
    # BEGIN PPO
    actions = jax.random.categorical(policy_key, setup.network.apply(params, inputs)[0])
    # END PPO
    states, transition = jax.vmap(setup.world.step)(jax.random.split(world_key, len(actions)), play.states, actions)
    no_goals = jnp.zeros((len(actions), len(setup.world.captions)), bool)
    shown = {
        "state": play.states,
        "scene": scenes,
        "suggested": no_goals,
        "achieved": no_goals,
        "reached": no_goals,
        "action": actions,
        "caption": transition.caption,
        "reward": transition.reward,
        "achievements": transition.achievements,
        "over": play.over,
    }
    caption_bits = jax.nn.one_hot(transition.caption, play.captions_so_far.shape[1], dtype=bool)
    after = Play(
        states=states,
        captions_so_far=play.captions_so_far | caption_bits,
        achievements=transition.achievements,
        returns=play.returns + transition.reward,
        lengths=play.lengths + 1,
        over=transition.terminated | transition.truncated,
    )
    return select(play.over, play, after), jax.tree.map(lambda x: x[0], shown)


def evaluate(setup: Setup, service: GoalService, params, num_episodes: int, key: jax.Array) -> tuple[dict[str, Any], list[dict]]:
    """Play episodes with the sampled policy; return their statistics and the steps of the first, for a film."""
    reset_key, key = jax.random.split(key)
    play = start_play(setup, jax.random.split(reset_key, num_episodes))
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


def make_service(args: Args, world) -> GoalService:
    """Open the service that embeds what the policy reads; it suggests no goals."""
    text = {"encoder": args.sentence_encoder, "text_observation": args.text_observation}
    return GoalService(world, source="none", store=args.store, **text)


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
    # END PPO
    # BEGIN APT
    _ = args.apt_minibatch_size, args.num_particles  # wrong arguments end here
    # END APT
    run_dir = Path(args.run_dir or f"runs/{args.env}-{Path(__file__).stem}-s{args.seed}-{time.strftime('%Y%m%d-%H%M%S')}")

    with ExitStack() as stack:
        service = stack.enter_context(closing(make_service(args, world)))
        setup = make_setup(args, world, service)
        identity = [f.name for f in dataclasses.fields(Args) if f.name not in FREE_FIELDS]
        run = stack.enter_context(Run(run_dir, dataclasses.asdict(args), {}, identity, track=args.track, script=__file__))
        print(f"{run.path}: {__doc__.splitlines()[0]}", flush=True)
        checkpoints = stack.enter_context(Checkpoints(run.path / "checkpoints"))
        progress = stack.enter_context(Progress(num_updates * args.batch_size))
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
            while setup.must_know_scene and int(unknown.count):  # HOST WAITS for one number.
                tables = resolve(service, unknown)
                state, collector, unknown = collect(setup, tables, state, collector)
            state, collector, metrics = update(setup, tables, state, collector)

            metrics = jax.device_get(metrics)  # HOST WAITS for the device.
            host_seconds, ended = began - ended, time.perf_counter()
            seconds = ended - began - (clock.seconds - compiled_before)
            line = {"update": number, "env_steps": number * args.batch_size, "scenes": service.num_scenes}
            line |= metrics_line(world.achievements, metrics)
            line["time"] = {"seconds": seconds, "sps": args.batch_size / seconds, "host_seconds": host_seconds}
            run.log(line)
            progress.update(line["env_steps"], line["achievements_per_episode"], service.num_scenes)
            if number % args.checkpoint_every == 0 or number == num_updates:
                checkpoints.save(number, state, {"service": service.state(), "spent": spent()})

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
