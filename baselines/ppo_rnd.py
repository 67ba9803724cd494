"""PPO rewarded for states that it cannot predict: RND (Burda et al., 2018) and NovelD (Zhang et al., 2021).

No language model. A fixed random network embeds the state that each action led to, another learns to predict the embedding; its
squared error, divided by the standard deviation of its discounted sums, is the bonus. NovelD pays for the first visit of an episode
to what is more novel than the state before. Where the policy reads text, the embedded text of the state is embedded with it. The
world's own reward counts --extrinsic-coef times, by default not at all: pretraining. All else is baselines/ppo.py.

    python -m baselines.ppo_rnd --env crafter                      pretraining, minutes on two CPU cores
    python -m baselines.ppo_rnd --noveld                           the same with NovelD
    python -m baselines.ppo_rnd --extrinsic-coef 1 --intrinsic-coef 0.01     also for the world's reward

On a GPU or TPU (jax for the device installed) begin with --preset gpu.
Deviations from the papers:
1. One value head and one discount serve both rewards, and the bonus ends with the episode as the world's reward does.
   RND has two heads and two discounts, and its bonus goes on over the ends of episodes.
2. The statistics of observations count a rollout before it is rewarded. RND begins with random steps and counts it afterwards.
3. The predictor learns after the reward, with an optimizer of its own, in 4 passes over the rollout in minibatches of 512 states.
   RND's learns in one loss with the policy, in 4 passes in minibatches of 1024.
4. Symbols are read by a hidden layer instead of three convolutions; hidden layers are --hidden-size wide, the paper's 512.
5. NovelD's errors are those of RND and its reward is divided as RND's is. NovelD's own are of the policy's features, and undivided.
   In Crafter's symbols the light changes at every step, so that nearly every visit is a first one: see first_visits in the metrics.
Axes: T steps, N envs, B minibatch, A actions, D observation, C captions, K achievements, E embedding, W scene words, F features,
P what an observation is packed into, L states of an episode.
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
from goals.tables import GoalTables, embed_facts, hash_scenes, lookup
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

    # BEGIN RND
    # The bonus
    extrinsic_coef: float = 0.0  # weight of the world's reward; 0: pretraining without it
    intrinsic_coef: float = 1.0  # weight of the bonus
    rnd_features: int = 128  # width of the random embedding (F); the paper's: 512
    rnd_learning_rate: float = 1e-4  # Adam's step size for the predictor
    rnd_epochs: int = 4  # passes of the predictor over each rollout
    rnd_minibatch_size: int = 512  # states per gradient step of the predictor, or a few more: a rollout is cut into equal parts
    rnd_proportion: float | None = None  # share of the rollout in each pass; default: the paper's, 32 / --num-envs, at most 1
    noveld: bool = False  # reward only what is more novel than the state before, and only at its first visit in the episode
    noveld_alpha: float = 0.5  # how much more: this times the novelty of the state before is taken away
    # END RND

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
    # BEGIN RND
    @property
    def rnd_minibatches(self) -> tuple[int, int]:
        """Gradient steps of the predictor per pass, and states in each; raises UserError if there are no states for them."""
        proportion = min(1.0, 32 / self.num_envs) if self.rnd_proportion is None else self.rnd_proportion
        states = round(proportion * self.batch_size)
        if not 1 <= states <= self.batch_size:
            raise UserError(f"--rnd-proportion {proportion} is not above 0 and at most 1: {states} of {self.batch_size} states")
        if self.rnd_minibatch_size < 1:
            raise UserError(f"--rnd-minibatch-size {self.rnd_minibatch_size} is less than 1")
        steps = max(1, states // self.rnd_minibatch_size)
        return steps, states // steps

    # END RND
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


# BEGIN RND
@struct.dataclass
class Moment:
    """What the bonus reads of a state, of any leading shape; an input that is switched off has size zero.

    observation: [..., *P], as the world packs it, of stacked frames the newest alone; scenes: [..., W] uint32, for the text.
    """

    observation: jax.Array
    scenes: jax.Array


# END RND
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
    # BEGIN RND
    before: Moment  # size zero without --noveld
    after: Moment  # nothing is reset yet: the last state of an episode is among them
    # END RND


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


# BEGIN RND
@struct.dataclass
class Statistics:
    """Of so many numbers, [] float32, the mean and the variance, of any one shape, float32."""

    count: jax.Array
    mean: jax.Array
    variance: jax.Array


@struct.dataclass
class Bonus:
    """What the bonus knows, across rollouts.

    target: parameters that never change; predictor, opt_state: what learns to predict it; observations: of the states reached;
    returns: of the discounted sums of the bonus, of which running_return [N] float32 is the latest in each env; visited: [N, L]
    uint32 and num_visited: [N] int32, hashes of the states of the running episode, of size zero without --noveld.
    """

    target: Any
    predictor: Any
    opt_state: Any
    observations: Statistics
    returns: Statistics
    running_return: jax.Array
    visited: jax.Array
    num_visited: jax.Array


# END RND
@struct.dataclass
class RunnerState:
    """All that training needs to go on, but for the table of embeddings; captions_so_far: [N, C] bool."""

    params: Any
    opt_state: Any
    # BEGIN RND
    bonus: Bonus
    # END RND
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
# BEGIN RND
class Embedding(nn.Module):
    """Embed a state: the target with no hidden layers after the first, the predictor with two (Burda et al., 2018)."""

    num_features: int
    hidden_size: int
    hidden_layers: int

    @nn.compact
    def __call__(self, observation: jax.Array, text: jax.Array) -> jax.Array:
        """Return features [B, F] of normalised observations [B, D] or [B, H, W, channels] and text [B, E], all float32."""
        init = nn.initializers.orthogonal(np.sqrt(2))
        if observation.ndim > 2:
            for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
                observation = Convolution(features, size, stride)(observation)
                observation = nn.leaky_relu(observation, 0.2)
            x = jnp.concatenate([observation.reshape(observation.shape[0], -1), text], axis=-1)
        else:
            x = jnp.concatenate([observation, text], axis=-1)
            x = nn.leaky_relu(nn.Dense(self.hidden_size, kernel_init=init)(x), 0.2)
        for _ in range(self.hidden_layers):
            x = nn.relu(nn.Dense(self.hidden_size, kernel_init=init)(x))
        return nn.Dense(self.num_features, kernel_init=init)(x)


# END RND
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
# BEGIN RND
RND_KEY = 0x524E44  # folded into a key for what is RND's own; larger than any number of keys that one is split into


def make_embeddings(args: Args) -> tuple[Embedding, Embedding]:
    """Return the target and the predictor."""
    return Embedding(args.rnd_features, args.hidden_size, 0), Embedding(args.rnd_features, args.hidden_size, 2)


def no_statistics(*shape: int) -> Statistics:
    """Return the statistics of no numbers of this shape."""
    return Statistics(jnp.zeros(()), jnp.zeros(shape), jnp.zeros(shape))


def newest_observation(world, packed: jax.Array) -> jax.Array:
    """Unpack B moments [B, *P] into observations, [B, D] or [B, H, W, channels]: of stacked frames the newest alone."""
    return world.unpack_observation(packed[:, None])


def init_bonus(setup: Setup, inputs: PolicyInput) -> Bonus:
    """Return the bonus before the first rollout; inputs: of N states."""
    args, (target, predictor) = setup.args, make_embeddings(setup.args)
    observation = newest_observation(setup.world, setup.world.pack_observation(inputs.observation)).astype(jnp.float32)
    # A key of its own, so that what the plain baseline draws is drawn here too.
    target_key, predictor_key = jax.random.split(jax.random.fold_in(jax.random.key(args.seed), RND_KEY))
    predictor_params = predictor.init(predictor_key, observation, inputs.text)
    return Bonus(
        target=target.init(target_key, observation, inputs.text),
        predictor=predictor_params,
        opt_state=optax.adam(args.rnd_learning_rate).init(predictor_params),
        observations=no_statistics(*observation.shape[1:]),
        returns=no_statistics(),
        running_return=jnp.zeros(args.num_envs),
        # An episode has one state more than steps.
        visited=jnp.zeros((args.num_envs, setup.world.max_episode_steps + 1 if args.noveld else 0), jnp.uint32),
        num_visited=jnp.zeros(args.num_envs if args.noveld else 0, jnp.int32),
    )


# END RND
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
        # BEGIN RND
        bonus=init_bonus(setup, inputs),
        # END RND
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


def read_states(setup: Setup, tables: GoalTables, states, captions_so_far) -> tuple[PolicyInput, jax.Array]:
    """Return what the policy reads in N states, and their scenes [N, W] uint32."""
    scenes = jax.vmap(setup.world.scene)(states)
    return make_inputs(setup, tables, jax.vmap(setup.world.observe)(states), captions_so_far, scenes), scenes


def are_known(setup: Setup, tables: GoalTables, scenes: jax.Array) -> jax.Array:
    """Tell for which scenes [..., W] uint32 there is no text that the run must wait for, [...] bool."""
    if not setup.must_know_scene:
        return jnp.ones(scenes.shape[:-1], bool)
    return lookup(tables.text_rows, scenes) >= 0


# BEGIN RND
def note_moment(setup: Setup, observation: jax.Array, scenes: jax.Array) -> Moment:
    """Keep of N states what the bonus reads."""
    num_words = setup.world.num_scene_words if setup.args.text_observation != "none" else 0
    return Moment(setup.world.pack_observation(observation), scenes[:, :num_words])


def note_before(setup: Setup, observation: jax.Array, scenes: jax.Array) -> Moment:
    """Keep of N states before the action what NovelD compares with."""
    moment = note_moment(setup, observation, scenes)
    return moment if setup.args.noveld else jax.tree.map(lambda x: x[:, :0], moment)


def note_after(setup: Setup, states) -> Moment:
    """Keep of N states what the action led to, before any is reset."""
    return note_moment(setup, jax.vmap(setup.world.observe)(states), jax.vmap(setup.world.scene)(states))


# END RND
def empty_collector(setup: Setup, state: RunnerState) -> Collector:
    """Allocate the buffers of a rollout."""
    args, world = setup.args, setup.world

    def steps(*shape, dtype=jnp.float32):
        return jnp.zeros((args.num_steps, args.num_envs, *shape), dtype)

    observation = jax.eval_shape(jax.vmap(world.observe), state.envs.states)
    # BEGIN RND
    scenes = jax.eval_shape(jax.vmap(world.scene), state.envs.states)
    # END RND
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
        # BEGIN RND
        before=jax.tree.map(
            lambda x: steps(*x.shape[1:], dtype=x.dtype), jax.eval_shape(partial(note_before, setup), observation, scenes)
        ),
        after=jax.tree.map(
            lambda x: steps(*x.shape[1:], dtype=x.dtype), jax.eval_shape(partial(note_after, setup), state.envs.states)
        ),
        # END RND
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
        # BEGIN RND
        before=note_before(setup, inputs.observation, scenes),
        after=note_after(setup, envs.states),
        # END RND
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
    # BEGIN RND
    if setup.must_know_scene:  # the bonus reads the words of every state reached, also where no policy acts any more
        reached = collector.rollout.after.scenes.reshape(-1, setup.world.num_scene_words)
        full = collector.step == setup.args.num_steps
        scenes = jnp.concatenate([scenes, reached])
        mask = jnp.concatenate([mask, jnp.broadcast_to(full, reached.shape[:1])])
    # END RND
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
# BEGIN RND
def add_to_statistics(statistics: Statistics, values: jax.Array) -> Statistics:
    """Count values [B, ...] in, as if all had come at once (Chan et al., 1979)."""
    count = statistics.count + values.shape[0]
    share, delta = values.shape[0] / count, values.mean(0) - statistics.mean
    variance = (1.0 - share) * statistics.variance + share * values.var(0) + share * (1.0 - share) * delta**2
    return Statistics(count, statistics.mean + share * delta, variance)


def read_moments(setup: Setup, tables: GoalTables, statistics: Statistics, moments: Moment) -> tuple[jax.Array, jax.Array]:
    """Return what the embeddings read of B moments: observations, normalised and clipped, and text [B, E]."""
    observation = newest_observation(setup.world, moments.observation)
    no_captions = jnp.zeros((observation.shape[0], 0), bool)
    text = make_inputs(setup, tables, observation, no_captions, moments.scenes).text
    # What never varied has no deviation; where it varies at last it is as far out as the clipping allows.
    deviation = jnp.sqrt(statistics.variance + 1e-8)
    return jnp.clip((observation.astype(jnp.float32) - statistics.mean[None]) / deviation[None], -5.0, 5.0), text


def prediction_errors(setup: Setup, tables: GoalTables, bonus: Bonus, moments: Moment) -> tuple[jax.Array, jax.Array]:
    """Return mean squared errors [T, N] and what was to be predicted [T, N, F], of moments [T, N, ...]."""
    target, predictor = make_embeddings(setup.args)

    def embed(moments):
        read = read_moments(setup, tables, bonus.observations, moments)
        features = target.apply(bonus.target, *read)
        return ((predictor.apply(bonus.predictor, *read) - features) ** 2).mean(-1), features

    return jax.lax.map(embed, moments)  # a step at a time, which bounds the memory that pixels take


def learn_to_predict(
    setup: Setup, tables: GoalTables, bonus: Bonus, moments: Moment, features: jax.Array, key: jax.Array
) -> tuple[Bonus, jax.Array]:
    """Let the predictor learn from moments [T * N, ...] and their features [T * N, F]; return the bonus and the mean loss []."""
    args, (_, predictor) = setup.args, make_embeddings(setup.args)
    optimizer, (steps, size) = optax.adam(args.rnd_learning_rate), args.rnd_minibatches

    def loss(params, indices):
        read = read_moments(setup, tables, bonus.observations, jax.tree.map(lambda x: x[indices], moments))
        return ((predictor.apply(params, *read) - features[indices]) ** 2).mean()

    def minibatch(carry, indices):
        params, opt_state = carry
        value, gradients = jax.value_and_grad(loss)(params, indices)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    def epoch(carry, key):
        return jax.lax.scan(minibatch, carry, jax.random.permutation(key, args.batch_size)[: steps * size].reshape(steps, size))

    carry = (bonus.predictor, bonus.opt_state)
    (params, opt_state), losses = jax.lax.scan(epoch, carry, jax.random.split(key, args.rnd_epochs))
    return bonus.replace(predictor=params, opt_state=opt_state), losses.mean()


def hash_observations(packed: jax.Array) -> jax.Array:
    """Mix packed observations [N, *P] into [N] uint32: the sum of its numbers, each mixed with its place."""
    numbers = packed.reshape(packed.shape[0], -1)
    if jnp.issubdtype(numbers.dtype, jnp.floating):
        numbers = jax.lax.bitcast_convert_type(numbers, jnp.uint32)
    places = jnp.broadcast_to(jnp.arange(numbers.shape[1], dtype=jnp.uint32)[None], numbers.shape)
    return hash_scenes(jnp.stack([numbers.astype(jnp.uint32), places], axis=-1)).sum(-1, dtype=jnp.uint32)


def find_first_visits(bonus: Bonus, rollout: Rollout) -> tuple[jax.Array, Bonus]:
    """Tell which steps led to a state new to the episode, [T, N] bool, not to the one it began in; return the bonus too."""
    envs, places = np.arange(rollout.actions.shape[1]), np.arange(bonus.visited.shape[1])[None]

    def visit(carry, step):
        visited, count = carry
        before, after, done = step
        visited = visited.at[:, 0].set(jnp.where(count == 0, before, visited[:, 0]))
        count = jnp.maximum(count, 1)
        seen = ((visited == after[:, None]) & (places < count[:, None])).any(-1)
        return (visited.at[envs, count].set(after), jnp.where(done, 0, count + 1)), ~seen

    hashes = [jax.vmap(hash_observations)(moments.observation) for moments in (rollout.before, rollout.after)]
    steps = (*hashes, rollout.terminated | rollout.truncated)
    (visited, count), is_first = jax.lax.scan(visit, (bonus.visited, bonus.num_visited), steps)
    return is_first, bonus.replace(visited=visited, num_visited=count)


def scale_by_returns(gamma: float, bonus: Bonus, rewards: jax.Array) -> tuple[jax.Array, Bonus, jax.Array]:
    """Divide rewards [T, N] by the standard deviation of all discounted sums; return them, the bonus and the divisor []."""

    def add(running_return, reward):
        running_return = gamma * running_return + reward  # also over the ends of episodes, as in the paper's code
        return running_return, running_return

    running_return, returns = jax.lax.scan(add, bonus.running_return, rewards)
    statistics = add_to_statistics(bonus.returns, returns.reshape(-1))
    scale = jnp.sqrt(statistics.variance)
    return rewards / jnp.maximum(scale, 1e-8), bonus.replace(returns=statistics, running_return=running_return), scale


def reward_novelty(
    setup: Setup, tables: GoalTables, bonus: Bonus, rollout: Rollout, key: jax.Array
) -> tuple[jax.Array, Bonus, dict[str, jax.Array]]:
    """Reward the steps of a rollout, then let the predictor learn from it: return rewards [T, N], bonus and metrics."""
    args, metrics = setup.args, {}
    chex.assert_equal_shape([rollout.actions, rollout.rewards])
    after = jax.tree.map(lambda x: x.reshape(args.batch_size, *x.shape[2:]), rollout.after)
    # Counted in before it is rewarded, so that the first rollout has statistics too.
    observations = newest_observation(setup.world, after.observation).astype(jnp.float32)
    bonus = bonus.replace(observations=add_to_statistics(bonus.observations, observations))
    rewards, features = prediction_errors(setup, tables, bonus, rollout.after)
    if args.noveld:
        errors_before, _ = prediction_errors(setup, tables, bonus, rollout.before)
        is_first, bonus = find_first_visits(bonus, rollout)
        novelty, novelty_before = (jnp.sqrt(args.rnd_features * errors) for errors in (rewards, errors_before))  # Euclidean norms
        rewards = jnp.maximum(novelty - args.noveld_alpha * novelty_before, 0.0) * is_first
        metrics["first_visits"] = is_first.mean()
    rewards, bonus, scale = scale_by_returns(args.gamma, bonus, rewards)
    bonus, loss = learn_to_predict(setup, tables, bonus, after, features.reshape(args.batch_size, -1), key)
    metrics |= {"rnd_loss": loss, "bonus_mean": rewards.mean(), "bonus_std": rewards.std(), "bonus_scale": scale}
    return rewards, bonus, metrics


# END RND
@partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def update(
    setup: Setup, tables: GoalTables, state: RunnerState, collector: Collector
) -> tuple[RunnerState, Collector, dict[str, Any]]:
    """Reward the rollout, learn from it, and refill the pool of fresh worlds; return state, emptied collector and metrics."""
    rollout, last = collector.rollout, collector.last

    # REWARD
    rewards = rollout.rewards
    # BEGIN RND
    bonus_key = jax.random.fold_in(state.key, RND_KEY)
    intrinsic, bonus, bonus_metrics = reward_novelty(setup, tables, state.bonus, rollout, bonus_key)
    rewards = setup.args.extrinsic_coef * rewards + setup.args.intrinsic_coef * intrinsic
    state = state.replace(bonus=bonus)
    # END RND

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
        # BEGIN RND
        **bonus_metrics,
        # END RND
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
    # BEGIN RND
    _ = args.rnd_minibatches  # wrong arguments end here
    # END RND
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
