"""DQN on the world's own reward: the learner of ellm_dqn.py without goals (double, dueling, n-step; Hessel et al., 2018).

The same networks, worlds, inputs and file layout as ellm_dqn.py, whose `--goal-source none` learns the same numbers from the same
seed; no language model. The embedded caption of the scene may be read beside the observation.

    python -m baselines.dqn --env crafter                          minutes on two CPU cores
    python -m baselines.dqn --preset paper                         pixels and the paper's hyper-parameters, for an accelerator

On a GPU or TPU (jax for the device installed) begin with --preset gpu.
Axes: T steps, N envs, B minibatch, A actions, D observation, C captions, K achievements, E embedding, W scene words, L steps of an
env in the replay, P what an observation is packed into.
"""

import dataclasses
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import chex
import flashbax as fbx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from goals.service import GoalService
from goals.tables import GoalTables, embed_facts, lookup, pack_bits, unpack_bits
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
    # BEGIN DQN
    preset: Literal["cpu", "gpu", "paper"] = "cpu"  # defaults of the command line: a laptop's CPU, an accelerator, the paper's
    checkpoint_every: int = 500  # time between checkpoints [updates], the replay is part of each; the last update always has one
    # END DQN
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

    # BEGIN DQN
    num_envs: int = 32  # worlds in step (N)
    num_steps: int = 16  # steps of each world per update (T)
    train_frequency: int = 16  # env steps per gradient step; the paper's: 4
    sample_size: int = 64  # transitions per gradient step (B)
    learning_starts: int = 20_000  # env steps before the first gradient step
    buffer_size: int = 1_000_000  # transitions that the replay holds, of all worlds together
    learning_rate: float = 1e-3  # Adam's step size
    gamma: float = 0.97  # discount; the paper's: 0.99
    n_step: int = 3  # rewards summed before the value is bootstrapped [env steps]
    target_network_frequency: int = 8_000  # env steps between copies of the parameters into the target network
    start_e: float = 1.0  # chance of a random action at the start
    end_e: float = 0.01  # chance of a random action after the exploration, and in evaluation
    policy_temperature: float = 0.03
    """temperature of a softmax over the action values, for most of the 139 actions do nothing and the best may be one of them for
    ever; 0: always the best action, as in the paper"""
    exploration_fraction: float = 0.2  # share of --total-timesteps in which the chance falls linearly
    munchausen: float = 0.9
    """share of the log-probability of the action taken that is added to its reward (Munchausen DQN), which averages the noise of
    action values; 0: double Q-learning, as in the paper"""
    max_grad_norm: float = 10.0  # gradients are scaled down to this global norm
    # END DQN
    hidden_size: int = 256  # width of the two hidden layers

    @property
    def batch_size(self) -> int:
        """Env steps per update."""
        return self.num_envs * self.num_steps

    # BEGIN DQN
    @property
    def gradient_steps(self) -> int:
        """Gradient steps per update; raises UserError if --train-frequency does not divide the env steps of an update."""
        if self.train_frequency < 1 or self.batch_size % self.train_frequency:
            raise UserError(f"--train-frequency {self.train_frequency} does not divide --num-envs x --num-steps, {self.batch_size}")
        return self.batch_size // self.train_frequency

    @property
    def target_period(self) -> int:
        """Gradient steps between copies into the target network; raises UserError if there is no whole number of them."""
        if self.target_network_frequency < 1 or self.target_network_frequency % self.train_frequency:
            target = f"--target-network-frequency {self.target_network_frequency}"
            raise UserError(f"--train-frequency {self.train_frequency} does not divide {target}")
        return self.target_network_frequency // self.train_frequency

    @property
    def buffer_steps(self) -> int:
        """Steps of each world that the replay holds."""
        return min(self.buffer_size, self.total_timesteps) // self.num_envs

    # END DQN
    @property
    def num_updates(self) -> int:
        """Updates of the whole run; raises UserError if there is not one."""
        if self.total_timesteps < self.batch_size:
            raise UserError(f"--total-timesteps {self.total_timesteps} is less than --num-envs x --num-steps, {self.batch_size}")
        return self.total_timesteps // self.batch_size


# BEGIN DQN
PRESETS = {
    "cpu": {},
    "gpu": {"num_envs": 256, "sample_size": 1024, "hidden_size": 512, "total_timesteps": 50_000_000},
    "paper": {
        **{"observation": "frames", "total_timesteps": 5_000_000, "num_envs": 8, "num_steps": 8, "hidden_size": 512},
        **{"train_frequency": 4, "sample_size": 64, "learning_starts": 5_000, "buffer_size": 5_000_000, "learning_rate": 6.25e-5},
        **{"gamma": 0.99, "policy_temperature": 0.0, "munchausen": 0.0},
    },
}
# END DQN

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


# BEGIN DQN
@struct.dataclass
class PackedInput:
    """What the policy reads as the replay holds it, of any leading shape; an input that is switched off has size zero.

    observation: [..., *P], the newest moment as the world packs it; captions_so_far: [..., ceil(C / 32)] uint32; scenes: [..., W]
    uint32, from which the text is embedded again.
    """

    observation: jax.Array
    captions_so_far: jax.Array
    scenes: jax.Array


@struct.dataclass
class Rollout:
    """T steps of N envs. Inputs are from before the action, all else is what the action led to.

    actions: [T, N] int32; rewards: [T, N] float32; terminated, truncated: [T, N] bool.
    """

    inputs: PackedInput
    actions: jax.Array
    rewards: jax.Array
    terminated: jax.Array
    truncated: jax.Array


@struct.dataclass
class Experience:
    """One step in the replay, of any leading shape: inputs from before the action, what it led to, and where an episode was cut the
    place, int32, among its env's last states."""

    inputs: PackedInput
    actions: jax.Array
    rewards: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    place: jax.Array


@struct.dataclass
class Replay:
    """The steps of every env in order, and the states in which the time limit cut an episode, which no later step shows.

    buffer: flashbax's, of `Experience` [N, L]; last: [N, P, ...], a ring as long as there can be cuts in L steps; cuts: [N] int32,
    cuts so far.
    """

    buffer: Any
    last: PackedInput
    cuts: jax.Array


# END DQN
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


@struct.dataclass
class RunnerState:
    """All that training needs to go on, but for the table of embeddings; captions_so_far: [N, C] bool."""

    params: Any
    opt_state: Any
    # BEGIN DQN
    target_params: Any
    replay: Replay
    # END DQN
    envs: VectorState
    captions_so_far: jax.Array
    key: jax.Array
    update: jax.Array


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


# BEGIN DQN
class DuelingNetwork(nn.Module):
    """Action values as value plus advantages on one torso (Wang et al., 2016)."""

    num_actions: int
    hidden_size: int

    @nn.compact
    def __call__(self, inputs: PolicyInput) -> jax.Array:
        """Return action values [B, A] float32."""
        x = Torso(self.hidden_size)(inputs)
        advantages = nn.Dense(self.num_actions, kernel_init=nn.initializers.orthogonal(0.01))(x)
        values = nn.Dense(1, kernel_init=nn.initializers.orthogonal(1.0))(x)
        return values + advantages - advantages.mean(-1, keepdims=True)


# END DQN
def make_setup(args: Args, world, service: GoalService) -> Setup:
    """Put together what the jitted functions treat as constant; raises UserError for arguments that do not go together."""
    if args.num_steps > world.max_episode_steps:
        raise UserError(f"--num-steps {args.num_steps} is longer than an episode ({world.max_episode_steps} steps)")
    # BEGIN DQN
    if args.munchausen and not args.policy_temperature:
        raise UserError(f"--munchausen {args.munchausen} needs a --policy-temperature above 0")
    fewest = args.num_envs * (args.num_steps + world.history + args.n_step)
    if args.num_envs * args.buffer_steps < fewest:
        raise UserError(f"--buffer-size {args.buffer_size} is too small for --num-envs {args.num_envs}: at least {fewest}")
    # END DQN
    return Setup(
        args=args,
        world=world,
        envs=VectorWorld(world, args.num_envs, pool_size=max(16, args.num_envs)),
        # BEGIN DQN
        network=DuelingNetwork(len(world.actions), args.hidden_size),
        # END DQN
        embedding_size=service.embedding_size,
    )


# BEGIN DQN
def make_optimizer(args: Args) -> optax.GradientTransformation:
    """Return Adam with clipped gradients."""
    return optax.chain(optax.clip_by_global_norm(args.max_grad_norm), optax.adam(args.learning_rate, eps=1e-5))


def make_buffer(args: Args, world) -> Any:
    """Return flashbax's functions of a replay of sequences: what an observation is made of, n steps, and the state after them."""
    length = world.history + args.n_step
    return fbx.make_trajectory_buffer(args.num_envs, args.sample_size, length, 1, length, max_length_time_axis=args.buffer_steps)


def empty_replay(setup: Setup, inputs: PackedInput) -> Replay:
    """Allocate the replay for inputs such as these [N, ...]."""
    args, zero, no = setup.args, jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    step = Experience(jax.tree.map(lambda x: x[0], inputs), zero, jnp.zeros(()), no, no, zero)
    places = args.buffer_steps // setup.world.max_episode_steps + 2
    last = jax.tree.map(lambda x: jnp.zeros((x.shape[0], places, *x.shape[1:]), x.dtype), inputs)
    return Replay(make_buffer(args, setup.world).init(step), last, jnp.zeros(args.num_envs, jnp.int32))


# END DQN
@partial(jax.jit, static_argnums=0)
def init_state(setup: Setup, tables: GoalTables) -> RunnerState:
    """Return the state before the first step."""
    args, num_captions = setup.args, len(setup.world.captions)
    key, params_key, envs_key = jax.random.split(jax.random.key(args.seed), 3)
    envs = setup.envs.reset(envs_key)
    captions_so_far = jnp.zeros((args.num_envs, num_captions), bool)
    inputs = read_states(setup, tables, envs.states, captions_so_far)[0]
    # BEGIN DQN
    no_scenes = jnp.zeros((args.num_envs, setup.world.num_scene_words), jnp.uint32)
    # END DQN
    params = setup.network.init(params_key, inputs)
    return RunnerState(
        params=params,
        opt_state=make_optimizer(args).init(params),
        # BEGIN DQN
        target_params=jax.tree.map(jnp.copy, params),
        replay=empty_replay(setup, pack_input(setup, inputs.observation, captions_so_far, no_scenes)),
        # END DQN
        envs=envs,
        captions_so_far=captions_so_far,
        key=key,
        update=jnp.zeros((), jnp.int32),
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


# BEGIN DQN
def pack_input(setup: Setup, observation, captions_so_far, scenes) -> PackedInput:
    """Pack for the replay what `make_inputs` makes of the same N states, without the text, which is computed again."""
    args, nothing = setup.args, jnp.zeros((observation.shape[0], 0), jnp.uint32)
    padding = ((0, 0), (0, -captions_so_far.shape[1] % 32))
    return PackedInput(
        observation=setup.world.pack_observation(observation),
        captions_so_far=pack_bits(jnp.pad(captions_so_far, padding)) if args.caption_memory else nothing,
        scenes=scenes if args.text_observation != "none" else nothing,
    )


def unpack_input(setup: Setup, tables: GoalTables, observation, packed: PackedInput) -> PolicyInput:
    """Make of observations [B, ...] and the rest of a packed input what the policy reads."""
    captions_so_far = unpack_bits(packed.captions_so_far)[:, : len(setup.world.captions)]
    return make_inputs(setup, tables, observation, captions_so_far, packed.scenes)


def exploration(args: Args, env_steps: jax.Array) -> jax.Array:
    """Return the chance of a random action after so many env steps: falling linearly, then constant."""
    share = jnp.minimum(env_steps / (args.exploration_fraction * args.total_timesteps), 1.0)
    return args.start_e + share * (args.end_e - args.start_e)


def choose_actions(setup: Setup, params, inputs: PolicyInput, key: jax.Array, epsilon: jax.Array | float) -> jax.Array:
    """Return actions [N] int32: the best, or drawn by a softmax, and each with the chance epsilon a random one instead."""
    chance_key, action_key, policy_key = jax.random.split(key, 3)
    values, temperature = setup.network.apply(params, inputs), setup.args.policy_temperature
    best = jax.random.categorical(policy_key, values / temperature) if temperature else values.argmax(-1)
    chance = jax.random.uniform(chance_key, values.shape[:1])
    drawn = jax.random.randint(action_key, values.shape[:1], 0, values.shape[1])
    return jnp.where(chance < epsilon, drawn, best.astype(jnp.int32))


# END DQN
def read_states(setup: Setup, tables: GoalTables, states, captions_so_far) -> tuple[PolicyInput, jax.Array]:
    """Return what the policy reads in N states, and their scenes [N, W] uint32."""
    scenes = jax.vmap(setup.world.scene)(states)
    return make_inputs(setup, tables, jax.vmap(setup.world.observe)(states), captions_so_far, scenes), scenes


def are_known(setup: Setup, tables: GoalTables, scenes: jax.Array) -> jax.Array:
    """Tell for which scenes [..., W] uint32 there is no text that the run must wait for, [...] bool."""
    if not setup.must_know_scene:
        return jnp.ones(scenes.shape[:-1], bool)
    return lookup(tables.text_rows, scenes) >= 0


def empty_collector(setup: Setup, state: RunnerState) -> Collector:
    """Allocate the buffers of a rollout."""
    args, world = setup.args, setup.world

    def steps(*shape, dtype=jnp.float32):
        return jnp.zeros((args.num_steps, args.num_envs, *shape), dtype)

    observation = jax.eval_shape(jax.vmap(world.observe), state.envs.states)
    # BEGIN DQN
    no_scenes = jnp.zeros((args.num_envs, world.num_scene_words), jnp.uint32)
    pack = partial(pack_input, setup)
    packed = jax.eval_shape(pack, observation, state.captions_so_far, no_scenes)
    rollout = Rollout(
        inputs=jax.tree.map(lambda x: steps(*x.shape[1:], dtype=x.dtype), packed),
        actions=steps(dtype=jnp.int32),
        rewards=steps(),
        terminated=steps(dtype=bool),
        truncated=steps(dtype=bool),
    )
    # END DQN
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
    # BEGIN DQN
    env_steps = state.update * setup.args.batch_size + collector.step * setup.args.num_envs
    actions = choose_actions(setup, state.params, inputs, policy_key, exploration(setup.args, env_steps))
    # END DQN
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
        # BEGIN DQN
        inputs=pack_input(setup, inputs.observation, state.captions_so_far, scenes),
        # END DQN
        actions=actions,
        rewards=transition.reward,
        terminated=transition.terminated,
        truncated=transition.truncated,
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

    # BEGIN DQN
    replay, state = state.replay, state.replace(replay=None)  # never part of a loop that might copy it
    # END DQN
    state, collector, _ = jax.lax.while_loop(unfinished, advance, (state, collector, is_ready(state)))
    # BEGIN DQN
    state = state.replace(replay=replay)
    # END DQN
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
    mask &= ~are_known(setup, tables, scenes)
    return Unknown(mask.sum(), mask, scenes)


# -------------------------------------------------------------------------------------------------------------------- RESOLVE


def resolve(service: GoalService, unknown: Unknown) -> GoalTables:
    """Let the service embed the captions of the unknown scenes; return its new tables."""
    service.resolve(np.asarray(unknown.scenes)[np.asarray(unknown.mask)])
    return service.tables


# --------------------------------------------------------------------------------------------------------------------- UPDATE


# BEGIN DQN
def remember(setup: Setup, replay: Replay, rollout: Rollout, rewards: jax.Array, last: PackedInput) -> Replay:
    """Append a rewarded rollout; last [N, ...] is what the policy would have read where the time limit cut an episode."""
    chex.assert_equal_shape([rewards, rollout.actions, rollout.terminated, rollout.truncated])
    envs, places = np.arange(setup.args.num_envs, dtype=np.int32), jax.tree.leaves(replay.last)[0].shape[1]
    place, cut = replay.cuts % places, rollout.truncated.any(0)

    def note(ring, x):
        kept = jnp.where(cut.reshape(-1, *(1,) * (x.ndim - 1)), x, ring[envs, place])
        return ring.at[envs, place].set(kept)

    steps = Experience(
        inputs=rollout.inputs,
        actions=rollout.actions,
        rewards=rewards,
        terminated=rollout.terminated,
        truncated=rollout.truncated,
        place=jnp.broadcast_to((envs * places + place)[None], rewards.shape),
    )
    buffer = make_buffer(setup.args, setup.world).add(replay.buffer, jax.tree.map(lambda x: x.swapaxes(0, 1), steps))
    return Replay(buffer, jax.tree.map(note, replay.last, last), replay.cuts + cut)


def n_step_returns(rewards, terminated, truncated, gamma: float) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Sum up to n rewards, all arguments [B, n]; no further than the end of the episode.

    Returns the discounted sums [B] float32, the discounts [B] float32 of the value of the state reached (0 where it is terminal),
    the steps taken to it [B] int32, and whether the time limit cut the episode there [B] bool.
    """
    chex.assert_equal_shape([rewards, terminated, truncated])
    ended = terminated | truncated
    is_in = (jnp.cumsum(ended, axis=1) - ended) == 0
    powers = gamma ** np.arange(rewards.shape[1], dtype=np.float32)[None]
    steps = is_in.sum(1)
    discounts = gamma**steps * ~(terminated & is_in).any(1)
    return (rewards * powers * is_in).sum(1), discounts, steps, (truncated & is_in).any(1)


def gather_observations(world, packed: jax.Array, done: jax.Array, at: jax.Array) -> jax.Array:
    """Make the observations at the places at [B] of packed sequences [B, L, *P]; done: [B, L] bool.

    Of what an observation is made of, moments before the episode's first are replaced by the first, as the world does at a reset.
    """
    sequences, length = done.shape
    places = np.arange(length, dtype=np.int32)[None]
    first = jnp.max(jnp.where(done & (places < at[:, None]), places + 1, 0), axis=1)
    moments = jnp.maximum(at[:, None] - np.arange(world.history, dtype=np.int32)[None, ::-1], first[:, None])
    return world.unpack_observation(packed[np.arange(sequences)[:, None], moments])


def sample_transitions(setup: Setup, tables: GoalTables, replay: Replay, key: jax.Array) -> tuple:
    """Draw B transitions of up to n steps: return inputs, actions, returns, discounts, following inputs, each [B, ...]."""
    world, n_step = setup.world, setup.args.n_step
    with jax.numpy_rank_promotion("allow"):  # flashbax promotes ranks
        steps = make_buffer(setup.args, world).sample(replay.buffer, key).experience
    now = world.history - 1
    rewards, terminated, truncated = (x[:, now : now + n_step] for x in (steps.rewards, steps.terminated, steps.truncated))
    returns, discounts, taken, cut = n_step_returns(rewards, terminated, truncated, setup.args.gamma)
    rows, then = np.arange(len(returns)), now + taken
    done = steps.terminated | steps.truncated
    current = jax.tree.map(lambda x: x[:, now], steps.inputs)
    observation = gather_observations(world, steps.inputs.observation, done, jnp.full_like(then, now))

    # Where the time limit cut the episode the next step in the replay is of another one: what followed is among the last states.
    places = steps.place[rows, then - 1]
    last = jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[places], replay.last)
    following = select(cut, last, jax.tree.map(lambda x: x[rows, then], steps.inputs))
    packed = steps.inputs.observation.at[rows, then].set(following.observation)
    next_observation = gather_observations(world, packed, done.at[rows, then - 1].set(False), then)
    inputs = unpack_input(setup, tables, observation, current)
    return inputs, steps.actions[:, now], returns, discounts, unpack_input(setup, tables, next_observation, following)


def dqn_loss(network: nn.Module, args: Args, params, target_params, batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the Huber loss of n-step double Q-learning (van Hasselt et al., 2016) and what it is made of.

    With --munchausen that of Munchausen DQN (Vieillard et al., 2020): a soft value of the state reached, and for the action taken,
    by which n steps begin, a share of its scaled log-probability.
    """
    inputs, actions, returns, discounts, next_inputs = batch
    chex.assert_equal_shape([actions, returns, discounts])
    values = network.apply(params, inputs)
    chosen = jnp.take_along_axis(values, actions[:, None], axis=1)[:, 0]
    next_values, temperature = network.apply(target_params, next_inputs), args.policy_temperature
    if args.munchausen:
        log_policy = jax.nn.log_softmax(network.apply(target_params, inputs) / temperature)
        taken = temperature * jnp.take_along_axis(log_policy, actions[:, None], axis=1)[:, 0]
        returns += args.munchausen * jnp.maximum(taken, -1.0)
        next_values = temperature * jax.nn.logsumexp(next_values / temperature, axis=-1)
    else:
        best = network.apply(params, next_inputs).argmax(-1)
        next_values = jnp.take_along_axis(next_values, best[:, None], axis=1)[:, 0]
    targets = jax.lax.stop_gradient(returns + discounts * next_values)
    loss = optax.huber_loss(chosen, targets).mean()
    return loss, {"td_loss": loss, "action_value": chosen.mean(), "target": targets.mean()}


def learn(setup: Setup, tables: GoalTables, state: RunnerState) -> tuple[RunnerState, dict[str, jax.Array]]:
    """Take the update's gradient steps, none before --learning-starts; return the state and the mean of the losses."""
    args, optimizer = setup.args, make_optimizer(setup.args)
    loss = partial(dqn_loss, setup.network, args)

    def gradient_step(carry, step):
        params, target_params, opt_state = carry
        key, number = step
        batch = sample_transitions(setup, tables, state.replay, key)
        gradients, parts = jax.grad(loss, has_aux=True)(params, target_params, batch)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        target_params = optax.periodic_update(params, target_params, number, args.target_period)
        return (params, target_params, opt_state), parts

    def train(carry):
        numbers = state.update * args.gradient_steps + np.arange(1, args.gradient_steps + 1, dtype=np.int32)
        return jax.lax.scan(gradient_step, carry, (jax.random.split(steps_key, args.gradient_steps), numbers))

    def wait(carry):
        return carry, {name: jnp.zeros(args.gradient_steps) for name in ("td_loss", "action_value", "target")}

    key, steps_key = jax.random.split(state.key)
    env_steps = (state.update + 1) * args.batch_size
    begins = (env_steps >= args.learning_starts) & make_buffer(args, setup.world).can_sample(state.replay.buffer)
    carry = (state.params, state.target_params, state.opt_state)
    (params, target_params, opt_state), parts = jax.lax.cond(begins, train, wait, carry)
    state = state.replace(params=params, target_params=target_params, opt_state=opt_state, key=key)
    return state, {**jax.tree.map(jnp.mean, parts), "epsilon": exploration(args, env_steps)}


# END DQN
@partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def update(
    setup: Setup, tables: GoalTables, state: RunnerState, collector: Collector
) -> tuple[RunnerState, Collector, dict[str, Any]]:
    """Reward the rollout, learn from it, and refill the pool of fresh worlds; return state, emptied collector and metrics."""
    rollout, last = collector.rollout, collector.last

    # REWARD
    rewards = rollout.rewards

    key, _, refill_key = jax.random.split(state.key, 3)

    # BEGIN DQN
    # REPLAY
    final = pack_input(setup, last.observation, last.captions_so_far, last.scenes)
    state = state.replace(key=key, replay=remember(setup, state.replay, rollout, rewards, final))

    # LEARN
    state, losses = learn(setup, tables, state)

    # END DQN

    envs, episodes = setup.envs.drain(setup.envs.refill(refill_key, state.envs))
    metrics = {
        "episodes": episodes,
        "reward_per_step": rewards.mean(),
        "steps_without_answer": jnp.zeros(()),
        "pool_exhausted": envs.exhausted,
        **losses,
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
    # BEGIN DQN
    actions = choose_actions(setup, params, inputs, policy_key, setup.args.end_e)
    # END DQN
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
    # BEGIN DQN
    num_updates, *_ = args.num_updates, args.gradient_steps, args.target_period, args.buffer_steps
    # END DQN
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
